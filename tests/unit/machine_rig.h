/*
 * A machine of several processors for the tests: its boot processor sends INIT and SIPI to the others; then
 * it counts up FIRST, and they OTHERS, for ever.
 */
#ifndef LODGE_TESTS_MACHINE_RIG_H
#define LODGE_TESTS_MACHINE_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/engine.h"
#include "machine/private.h"
#include "memory/memory.h"
#include "kernel_image.h"
#include <stdio.h>
#include <unistd.h>

#define CPUS	4
#define AP_GPA	0x8000u
#define FIRST	0x7000u /* counted up by the boot processor */
#define OTHERS	0x7008u /* counted up by the others */
#define WAIT_NS 20000000000ull

/* mov ebx, 0xfee00000; mov dword [ebx+0x310], 0; mov dword [ebx+0x300], 0xc4500 (INIT, all but self);
 * mov dword [ebx+0x300], 0xc4608 (SIPI, AP_GPA); 1: lock inc dword [FIRST]; jmp 1b */
static const uint8_t smp[] = {0xbb, 0x00, 0x00, 0xe0, 0xfe, 0xc7, 0x83, 0x10, 0x03, 0x00, 0x00,
	0x00, 0x00, 0x00, 0x00, 0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x00, 0x45, 0x0c, 0x00, 0xc7,
	0x83, 0x00, 0x03, 0x00, 0x00, 0x08, 0x46, 0x0c, 0x00, 0xf0, 0xff, 0x05, 0x00, 0x70, 0x00,
	0x00, 0xeb, 0xf7};
/* 16 bits: 1: lock inc dword [OTHERS]; jmp 1b */
static const uint8_t ap[] = {0x66, 0xf0, 0xff, 0x06, 0x08, 0x70, 0xeb, 0xf8};

static inline uint32_t counter(struct machine *m, gpa_t gpa)
{
	const uint32_t *at = memory_host(m->memory, gpa, 4, false);

	return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}

/* Until both counters have moved on. */
static inline void wait_running(struct machine *m)
{
	const uint32_t first = counter(m, FIRST), others = counter(m, OTHERS);
	const uint64_t end = clock_monotonic_ns() + WAIT_NS;

	while (counter(m, FIRST) == first || counter(m, OTHERS) == others) {
		if (clock_monotonic_ns() > end)
			fail_msg("the processors do not run");
		usleep(100);
	}
}

/* A machine of it, with its code for the others in place, not started. */
static inline struct machine *machine_rig(const struct engine_ops *ops, const char *name)
{
	const struct machine_config config = {.name = name,
		.engine = ops,
		.cpus = CPUS,
		.memory_bytes = MACHINE_MEMORY_MIN,
		.boot.kernel = {.path = "kernel", .fd = kernel_file(smp, sizeof(smp))}};
	struct error err = {0};
	struct machine *m;

	if (machine_create(&m, &config, &err) < 0)
		fail_msg("%s", err.text);
	close(config.boot.kernel.fd);
	assert_int_equal(memory_write(m->memory, AP_GPA, ap, sizeof(ap)), 0);
	return m;
}

/* main() of a test whose argument is the engine; 77: this host has no KVM. */
static inline int machine_rig_main(
	int argc, char **argv, const struct engine_ops **ret_ops, const char *what)
{
	struct engine_probe probe;

	*ret_ops = argc > 1 ? engine_find(argv[1]) : NULL;
	if (!*ret_ops) {
		fprintf(stderr, "usage: %s ENGINE\n", argv[0]);
		return 2;
	}
	(*ret_ops)->probe(&probe);
	if (!probe.usable) {
		printf("NOT CHECKED: %s on the %s engine: %s\n", what, (*ret_ops)->name,
			probe.reason);
		return 77;
	}
	return 0;
}

#endif
