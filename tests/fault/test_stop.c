/*
 * Guests that keep their processors as busy as they can: pause and stop take effect at once all the same,
 * nothing moves during a pause, and the monitor does not grow.
 *
 * Argument: the engine; 77 where this host has no KVM. GUEST=name runs only that one.
 *
 * Each guest is 32-bit code loaded by multiboot; those with more processors start the others in real mode.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/util.h"
#include "machine/machine.h"

#define LOAD  0x100000
#define ENTRY (LOAD + 32)

/* What it may take on an idle host, and what a busy one (or a sanitizer) is allowed in the worst case. */
#define SOON_NS	     50000000ull
#define LATE_NS	     3000000000ull
#define TURNS	     5
#define TURNS_MAX    40
#define FLAT_TURNS   30
#define FLAT_KIB     512 /* in half a second */
#define RSS_MORE_KIB (64 * 1024) /* guest memory, block caches of four processors, stacks */

/* The address sanitizer keeps what was freed for a while: not so much that it looks like the monitor's. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "quarantine_size_mb=8";
}

/* Guest address of a label: `label - 77b + 0x100020` (clang's assembler sets no symbol twice). */
#define GUEST(name, code)                                                       \
	extern const uint8_t guest_##name[], guest_##name##_end[];              \
	__asm__(".pushsection .rodata\n.balign 16\n.code32\nguest_" #name ":\n" \
		"77:\n" code "\nguest_" #name "_end:\n.code64\n.popsection\n")

/* A GDT, a stack, and an IDT whose every vector goes to HANDLER(). */
#define SETUP                                                                               \
	"mov $0x300000, %esp\nlgdt 90f - 77b + 0x100020\nljmp $8, $91f - 77b + 0x100020\n"  \
	".balign 8\n92: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n"                  \
	"90: .word 23\n.long 92b - 77b + 0x100020\n93: .word 0x7ff\n.long 0x200000\n"       \
	"91: mov $16, %eax\nmov %eax, %ss\nmov %eax, %ds\nmov %eax, %es\n"                  \
	"mov $0x200000, %edi\nmov $256, %ecx\n"                                             \
	"94: mov $83f - 77b + 0x100020, %eax\nmov %ax, (%edi)\nmovl $0x8e000008, 2(%edi)\n" \
	"movw $0x8e00, 4(%edi)\nmovw $8, 2(%edi)\nshr $16, %eax\nmov %ax, 6(%edi)\n"        \
	"add $8, %edi\nloop 94b\nlidt 93b - 77b + 0x100020\n"
#define HANDLER(code) "jmp 80f\n83:\n" code "\n80:\n"

/* Copy the real-mode code of AP() to 0x8000 and start all other processors there. */
#define START_OTHERS                                                                      \
	"mov $82f - 77b + 0x100020, %esi\nmov $0x8000, %edi\nmov $256, %ecx\nrep movsb\n" \
	"movl $0x1ff, 0xfee000f0\nmovl $0xc4500, 0xfee00300\n"                            \
	"mov $100000, %ecx\n95: loop 95b\nmovl $0xc4608, 0xfee00300\n"
#define AP(code) "jmp 81f\n82:\n.code16\n" code "\n.code32\n81:\n"

GUEST(spin, "1: jmp 1b");
GUEST(copy, "1: mov $0x400000, %esi\nmov $0x600000, %edi\nmov $-1, %ecx\nrep movsb\njmp 1b");
GUEST(fill_device, "1: mov $0x80000000, %edi\nmov $-1, %ecx\nrep stosb\njmp 1b");
GUEST(string_ports, "1: mov $0x400000, %esi\nmov $0xed, %edx\nmov $-1, %ecx\nrep outsb\njmp 1b");
GUEST(devices,
	"1: mov 0xd0000000, %eax\nmov %eax, 0xd0000000\nin $0xed, %al\nout %al, $0xed\njmp 1b");
GUEST(exceptions, SETUP HANDLER("add $12, %esp\njmp again1") "again1 = .\nud2");
GUEST(divide, SETUP HANDLER("iret") "1: xor %ecx, %ecx\ndiv %ecx\njmp 1b");
GUEST(interrupts, SETUP HANDLER("iret") "1: int $0x80\njmp 1b");
GUEST(modify,
	"1: incl 2f - 77b + 0x100020 + 1\n2: mov $0, %eax\nincb 3f - 77b + 0x100020 + 1\n3: mov $0, %al\njmp 1b");
GUEST(distinct, "mov $0x400000, %edi\n"
		"1: incl %eax\nmovb $0xb8, (%edi)\nmov %eax, 1(%edi)\nmovb $0xc3, 5(%edi)\n"
		"mov $0x300000, %esp\ncall *%edi\nadd $16, %edi\ncmp $0xe00000, %edi\njb 1b\n"
		"mov $0x400000, %edi\njmp 1b");
/* The same across the ends of pages. */
GUEST(page_ends, "mov $0x400ffd, %edi\n"
		 "1: incl %eax\nmovb $0xb8, (%edi)\nmov %eax, 1(%edi)\nmovb $0xc3, 5(%edi)\n"
		 "mov $0x300000, %esp\ncall *%edi\nadd $0x1000, %edi\ncmp $0xe00000, %edi\njb 1b\n"
		 "mov $0x400ffd, %edi\njmp 1b");
/* Code at every byte of two pages, which overlaps itself: or $0x0d0d0d0d, %eax; then a byte of it changes. */
GUEST(middle, "mov $0x300000, %esp\n1: mov $0x400000, %edi\nmov $0x0d, %al\nmov $0x1ff8, %ecx\nrep stosb\n"
	      "mov $0xc3, %al\nmov $8, %ecx\nrep stosb\nmov $0x400000, %ebx\n"
	      "2: call *%ebx\ninc %ebx\ncmp $0x401ff0, %ebx\njb 2b\nincb 0x400800\ndecb 0x400800\njmp 1b");
/* All ones, which are no instruction. */
GUEST(device_code, SETUP HANDLER("add $12, %esp\njmp 85f") "mov $0xd0000000, %ebx\n85: jmp *%ebx");
GUEST(tlb_thrash,
	"1: mov $0x400000, %edi\n2: incl (%edi)\nadd $0x1040, %edi\ncmp $0xf00000, %edi\njb 2b\njmp 1b");
/* 4 MiB pages, and an access that is never mended. */
GUEST(page_faults,
	SETUP HANDLER("add $4, %esp\niret") "mov $0x280000, %edi\nmov $1024, %ecx\nxor %eax, %eax\nrep stosl\n"
					    "movl $0x83, 0x280000\nmovl $0x400083, 0x280004\n"
					    "mov $0x280000, %eax\nmov %eax, %cr3\nmov $0x10, %eax\nmov %eax, %cr4\n"
					    "mov %cr0, %eax\nor $0x80000000, %eax\nmov %eax, %cr0\n"
					    "1: mov 0x80000000, %eax\njmp 1b");
GUEST(single_step, SETUP HANDLER("iret") "pushf\norl $0x100, (%esp)\npopf\n1: jmp 1b");
GUEST(timer,
	SETUP HANDLER(
		"movl $0, 0xfee000b0\niret") "movl $0x1ff, 0xfee000f0\nmovl $0x20040, 0xfee00320\nmovl $0xb, 0xfee003e0\n"
					     "movl $1, 0xfee00380\nsti\n1: jmp 1b");
GUEST(timer_halted,
	SETUP HANDLER(
		"movl $0, 0xfee000b0\niret") "movl $0x1ff, 0xfee000f0\nmovl $0x20040, 0xfee00320\nmovl $0xb, 0xfee003e0\n"
					     "movl $1, 0xfee00380\nsti\n1: hlt\njmp 1b");
GUEST(ipi_self,
	SETUP HANDLER(
		"movl $0, 0xfee000b0\niret") "movl $0x1ff, 0xfee000f0\nsti\n1: movl $0x44040, 0xfee00300\njmp 1b");
GUEST(console, "mov $0x3f8, %edx\n1: mov $0x55, %al\nout %al, %dx\njmp 1b");
GUEST(halt, "cli\n1: hlt\njmp 1b");
GUEST(lock_pages,
	SETUP HANDLER("iret") START_OTHERS AP(
		"xor %ax, %ax\nmov %ax, %ds\n1: lock incl 0x6ffe\njmp 1b") "1: lock incl 0x6ffe\njmp 1b");
GUEST(lock_device,
	SETUP HANDLER("iret") START_OTHERS AP(
		"xor %ax, %ax\nmov %ax, %ds\n1: lock incl 0x6ffe\njmp 1b") "1: lock incl 0xd0000000\nlock incl 0xfee00080\njmp 1b");
/* The others halt with interrupts on; an NMI or interrupt 0x40 wakes them: their handler is an IRET. */
GUEST(ipi_storm,
	SETUP HANDLER(
		"iret") "movl $0x9000, 0x100\nmovl $0x9000, 8\nmovl $0xcf90, 0x9000\n" START_OTHERS
		AP("xor %ax, %ax\nmov %ax, %ds\nmov %ax, %ss\nmov $0x7000, %sp\n"
		   "sti\n1: hlt\njmp 1b") "1: movl $0xc4040, 0xfee00300\nmovl $0xc4400, 0xfee00300\njmp 1b");
/* Processors that are started over and over. */
GUEST(init_storm,
	SETUP HANDLER("iret") START_OTHERS AP(
		"1: jmp 1b") "1: movl $0xc4500, 0xfee00300\nmovl $0xc4608, 0xfee00300\njmp 1b");

struct guest {
	const char *name;
	const uint8_t *code, *end;
	unsigned cpus;
};

#define ENTRY_OF(name, cpus)                                  \
	{                                                     \
#name, guest_##name, guest_##name##_end, cpus \
	}
static const struct guest guests[] = {
	ENTRY_OF(spin, 1),
	ENTRY_OF(copy, 1),
	ENTRY_OF(fill_device, 1),
	ENTRY_OF(string_ports, 1),
	ENTRY_OF(devices, 1),
	ENTRY_OF(exceptions, 1),
	ENTRY_OF(divide, 1),
	ENTRY_OF(interrupts, 1),
	ENTRY_OF(modify, 1),
	ENTRY_OF(distinct, 1),
	ENTRY_OF(page_ends, 1),
	ENTRY_OF(middle, 1),
	ENTRY_OF(device_code, 1),
	ENTRY_OF(tlb_thrash, 1),
	ENTRY_OF(page_faults, 1),
	ENTRY_OF(single_step, 1),
	ENTRY_OF(timer, 1),
	ENTRY_OF(timer_halted, 1),
	ENTRY_OF(ipi_self, 1),
	ENTRY_OF(console, 1),
	ENTRY_OF(halt, 1),
	ENTRY_OF(lock_pages, 2),
	ENTRY_OF(lock_pages, 4),
	ENTRY_OF(lock_device, 4),
	ENTRY_OF(ipi_storm, 2),
	ENTRY_OF(ipi_storm, 4),
	ENTRY_OF(init_storm, 2),
};

static int kernel_fd(const struct guest *guest)
{
	const uint32_t flags = 0x10000, magic = 0x1badb002;
	const uint32_t size = (uint32_t)(guest->end - guest->code);
	const uint32_t header[8] = {
		magic, flags, -(magic + flags), LOAD, LOAD, ENTRY + size, 0, ENTRY};
	int fd = memfd_create("guest", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, header, sizeof(header)), sizeof(header));
	assert_int_equal(write(fd, guest->code, size), size);
	return fd;
}

static void discard(void *opaque, const uint8_t *bytes, size_t count) {}

static unsigned long resident_kib(void)
{
	unsigned long pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");

	assert_non_null(file);
	assert_int_equal(fscanf(file, "%*u %lu", &pages), 1);
	fclose(file);
	return pages * (unsigned long)sysconf(_SC_PAGESIZE) / 1024;
}

static uint64_t instructions(struct machine *machine, unsigned cpus)
{
	struct engine_counters counters;
	uint64_t sum = 0;

	for (unsigned i = 0; i < cpus; i++) {
		machine_counters(machine, i, &counters);
		sum += counters.instructions;
	}
	return sum;
}

static void check_time(const struct guest *guest, const char *what, uint64_t best, uint64_t worst)
{
	printf("%-12s %u vCPUs: %s in %.2f to %.2f ms\n", guest->name, guest->cpus, what,
		(double)best / 1e6, (double)worst / 1e6);
	fflush(stdout);
	assert_true(best < SOON_NS);
	assert_true(worst < LATE_NS);
}

static void pause_and_resume(struct machine *machine, const struct guest *guest)
{
	uint64_t best = UINT64_MAX, worst = 0;

	/* On a host that is busy with other things the best of a few turns counts. */
	for (unsigned i = 0; i < TURNS || (best >= SOON_NS && i < TURNS_MAX); i++) {
		usleep(10000);
		uint64_t start = clock_monotonic_ns();
		machine_pause(machine);
		uint64_t took = clock_monotonic_ns() - start;
		best = MIN(best, took);
		worst = MAX(worst, took);
		uint64_t before = instructions(machine, guest->cpus);
		usleep(2000);
		if (instructions(machine, guest->cpus) != before) {
			struct machine_result result;
			machine_stop(machine);
			machine_wait(machine, &result);
			fail_msg("%s ran on in a pause: %s", guest->name, result.text);
		}
		machine_resume(machine);
	}
	check_time(guest, "paused", best, worst);
}

/* Some of the guests spend their life in a few long instructions. */
static bool does_little(const struct guest *guest)
{
	static const char *const names[] = {"halt", "copy", "fill_device", "string_ports"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (strcmp(guest->name, names[i]) == 0)
			return true;
	return false;
}

/* On a busy host a vCPU may have had no turn yet. */
static void wait_for_work(struct machine *machine, const struct guest *guest, bool counts)
{
	uint64_t until = clock_monotonic_ns() + LATE_NS;

	do
		usleep(20000);
	while (counts && !does_little(guest) && instructions(machine, guest->cpus) <= 1000 &&
		clock_monotonic_ns() < until);
}

/* KVM does not count instructions, and the translator only when it is told to. */
static bool counts(const struct engine_ops *engine)
{
	const char *options = getenv("LODGE_JIT");

	if (engine == &engine_jit_ops)
		return options && strstr(options, "count");
	return !(engine->caps & ENGINE_CAP_IRQCHIP);
}

/* What makes code without end fills its memory and the cache, and then no more. */
static void check_flat(const struct guest *guest)
{
	static const char *const names[] = {"distinct", "page_ends", "middle", "modify"};
	unsigned long now = resident_kib(), before = 0;
	bool bomb = false;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		bomb |= strcmp(guest->name, names[i]) == 0;
	if (!bomb)
		return;
	for (unsigned i = 0; i < FLAT_TURNS && now > before + FLAT_KIB; i++) {
		usleep(500000);
		before = now;
		now = resident_kib();
	}
	printf("%-12s resident: %lu KiB\n", guest->name, now);
	assert_in_range(now, 0, before + FLAT_KIB);
}

static void run_guest(const struct guest *guest, const struct engine_ops *engine)
{
	struct machine_config config = {.name = guest->name,
		.engine = engine,
		.cpus = guest->cpus,
		.memory_bytes = MIB(16),
		.boot = {.protocol = BOOT_MULTIBOOT, .cmdline = "", .kernel.path = "guest"},
		.console_output = discard};
	struct machine_result result;
	struct machine *machine;
	struct error err = {0};

	config.boot.kernel.fd = kernel_fd(guest);
	if (machine_create(&machine, &config, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(machine_start(machine, &err), 0);
	pause_and_resume(machine, guest);
	check_flat(guest);
	wait_for_work(machine, guest, counts(engine));
	uint64_t start = clock_monotonic_ns();
	machine_stop(machine);
	machine_wait(machine, &result);
	uint64_t took = clock_monotonic_ns() - start;
	check_time(guest, "stopped", 0, took);
	/* It ran to the end, and did what it says. */
	if (result.end != MACHINE_STOPPED)
		fail_msg("%s: %s", guest->name, result.text);
	assert_true(!counts(engine) || does_little(guest) ||
		    instructions(machine, guest->cpus) > 1000);
	machine_free(machine);
	close(config.boot.kernel.fd);
}

static void run_guests(const struct engine_ops *engine)
{
	unsigned long before = resident_kib();

	const char *only = getenv("GUEST");

	for (size_t i = 0; i < ARRAY_SIZE(guests); i++)
		if (!only || strcmp(only, guests[i].name) == 0)
			run_guest(&guests[i], engine);
	malloc_trim(0); /* what the allocator keeps for later is nobody's */
	printf("resident: %lu KiB before, %lu after\n", before, resident_kib());
	assert_true(resident_kib() < before + RSS_MORE_KIB);
}

static const struct engine_ops *engine;

static void test_stop(void **state)
{
	run_guests(engine);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_stop)};
	struct engine_probe probe = {0};

	engine = argc > 1 ? engine_find(argv[1]) : NULL;
	if (!engine) {
		fprintf(stderr, "usage: %s ENGINE\n", argv[0]);
		return 2;
	}
	engine->probe(&probe);
	if (!probe.usable) {
		printf("NOT CHECKED: busy guests under %s: %s\n", engine->name, probe.reason);
		return 77;
	}
	return cmocka_run_group_tests_name(engine->name, tests, NULL, NULL);
}
