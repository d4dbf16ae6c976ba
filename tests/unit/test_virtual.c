/*
 * Virtual time: a machine's clocks count its instructions, a halted processor does not wait, and a run can be
 * repeated. Argument: the engine.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "engine/engine.h"
#include "machine/private.h"
#include "machine/virtual.h"
#include "memory/memory.h"
#include "kernel_image.h"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#define HANDLER 0x5000u
#define TABLES	0x6000u /* GDTR, at + 8 IDTR, at + 16 the GDT, behind it the IDT */
#define IDT	(TABLES + 0x100)
#define RESULT	0x7000u
#define TICK_NS 1000000u /* what the guest sets its timer to */
#define STATUS	42

static const struct engine_ops *ops;

/* lgdt [TABLES]; lidt [TABLES + 8]; mov ebx, 0xfee00000; SVR = 0x1ff; timer's LVT = 0x40; divide by 1;
 * initial count = TICK_NS; sti; 1: hlt; jmp 1b */
static const uint8_t timer[] = {0x0f, 0x01, 0x15, 0x00, 0x60, 0x00, 0x00, 0x0f, 0x01, 0x1d, 0x08,
	0x60, 0x00, 0x00, 0xbb, 0x00, 0x00, 0xe0, 0xfe, 0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff,
	0x01, 0x00, 0x00, 0xc7, 0x83, 0x20, 0x03, 0x00, 0x00, 0x40, 0x00, 0x00, 0x00, 0xc7, 0x83,
	0xe0, 0x03, 0x00, 0x00, 0x0b, 0x00, 0x00, 0x00, 0xc7, 0x83, 0x80, 0x03, 0x00, 0x00, 0x40,
	0x42, 0x0f, 0x00, 0xfb, 0xf4, 0xeb, 0xfd};
/* rdtsc; mov [RESULT], eax; mov al, STATUS; out 0xf4, al; 1: hlt; jmp 1b */
static const uint8_t handler[] = {
	0x0f, 0x31, 0xa3, 0x00, 0x70, 0x00, 0x00, 0xb0, 0x2a, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd};
/* cli; hlt */
static const uint8_t sleeper[] = {0xfa, 0xf4};
/* 1: rdtsc; mov [RESULT], eax; inc dword [RESULT + 4]; jmp 1b */
static const uint8_t reader[] = {
	0x0f, 0x31, 0xa3, 0x00, 0x70, 0x00, 0x00, 0xff, 0x05, 0x04, 0x70, 0x00, 0x00, 0xeb, 0xf1};

static void put(struct machine *m, gpa_t gpa, const void *bytes, size_t count)
{
	assert_int_equal(memory_write(m->memory, gpa, bytes, count), 0);
}

static uint32_t get32(struct machine *m, gpa_t gpa)
{
	uint32_t value;

	assert_int_equal(memory_read(m->memory, gpa, &value, sizeof(value)), 0);
	return value;
}

static struct machine_config config_for(int fd)
{
	return (struct machine_config){.name = "virtual",
		.engine = ops,
		.cpus = 1,
		.memory_bytes = MACHINE_MEMORY_MIN,
		.boot.kernel = {.path = "kernel", .fd = fd},
		.virtual_time.on = true};
}

/* With descriptor tables in its memory: flat code at selector 8, a gate for vector 0x40. */
static struct machine *machine_new(const uint8_t *code, size_t bytes)
{
	static const struct {
		uint16_t gdt_limit;
		uint32_t gdt;
		uint16_t pad, idt_limit;
		uint32_t idt;
		uint16_t pad2;
		uint64_t table[3];
	} __attribute__((packed))
	tables = {23, TABLES + 16, 0, 0x7ff, IDT, 0, {0, 0x00cf9b000000ffff, 0x00cf93000000ffff}};
	const uint64_t gate = HANDLER | 8 << 16 | 0x8e00ull << 32;
	int fd = kernel_file(code, bytes);
	const struct machine_config config = config_for(fd);
	struct error err = {0};
	struct machine *m;

	if (machine_create(&m, &config, &err) < 0)
		fail_msg("%s", err.text);
	close(fd);
	put(m, TABLES, &tables, sizeof(tables));
	put(m, IDT + 8 * 0x40, &gate, sizeof(gate));
	put(m, HANDLER, handler, sizeof(handler));
	return m;
}

/* The millisecond passes while the processor halts: its clock says so, the host's does not. */
static void test_timer(void **state)
{
	uint64_t counts[2];

	for (unsigned i = 0; i < 2; i++) {
		struct machine *m = machine_new(timer, sizeof(timer));
		struct machine_result result;
		struct error err = {0};

		assert_int_equal(machine_start(m, &err), 0);
		machine_wait(m, &result);
		assert_int_equal(result.end, MACHINE_EXITED);
		assert_int_equal(result.status, STATUS);
		assert_int_equal(get32(m, RESULT), TICK_NS);
		counts[i] = machine_virtual_count(m);
		machine_free(m);
	}
	assert_int_equal(counts[0], counts[1]);
}

static void test_asleep(void **state)
{
	struct machine *m = machine_new(sleeper, sizeof(sleeper));

	assert_int_equal(machine_virtual_tick(m), MACHINE_READY);
	assert_int_equal(machine_virtual_run(m, 1000), 2);
	assert_int_equal(machine_virtual_tick(m), MACHINE_ASLEEP);
	machine_stop(m);
	assert_int_equal(machine_virtual_tick(m), MACHINE_ENDED);
	machine_free(m);
}

/* Time moves in ticks only, by the count of instructions. */
static void test_time_is_the_count(void **state)
{
	struct machine *m = machine_new(reader, sizeof(reader));
	uint64_t before = 0;

	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(machine_virtual_tick(m), MACHINE_READY);
		before = machine_virtual_count(m);
		assert_true(machine_virtual_run(m, 100 + i) >= 100 + i);
		assert_true(machine_virtual_run(m, 8) >= 8); /* the same slice */
		assert_int_equal(get32(m, RESULT), before);
	}
	assert_true(get32(m, RESULT + 4) > 20 * 100 / 4);
	machine_free(m);
}

static void test_refused(void **state)
{
	int fd = kernel_file(sleeper, sizeof(sleeper));
	struct machine_config config = config_for(fd);
	struct error err = {0};
	struct machine *m;

	config.cpus = 2;
	assert_int_equal(machine_create(&m, &config, &err), -EINVAL);
	assert_non_null(strstr(err.text, "one vCPU"));
	config.cpus = 1;
	config.engine = &engine_kvm_ops;
	assert_int_equal(machine_create(&m, &config, &err), -EINVAL);
	assert_non_null(strstr(err.text, "kvm"));
	close(fd);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_timer),
		cmocka_unit_test(test_asleep),
		cmocka_unit_test(test_time_is_the_count),
		cmocka_unit_test(test_refused),
	};

	ops = argc > 1 ? engine_find(argv[1]) : NULL;
	if (!ops) {
		fprintf(stderr, "usage: %s ENGINE\n", argv[0]);
		return 2;
	}
	struct engine_probe probe;
	ops->probe(&probe);
	if (!probe.usable) {
		printf("NOT CHECKED: virtual time on the %s engine: %s\n", ops->name, probe.reason);
		return 77;
	}
	return cmocka_run_group_tests_name(ops->name, tests, NULL, NULL);
}
