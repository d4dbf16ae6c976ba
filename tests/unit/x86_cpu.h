/*
 * A processor for unit tests: a few megabytes of RAM, a ROM, an environment that records what it is asked.
 */
#ifndef LODGE_TESTS_X86_CPU_H
#define LODGE_TESTS_X86_CPU_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/util.h"
#include "isa/x86/access.h"
#include "isa/x86/cpuid.h"
#include "memory/memory.h"

#define TEST_RAM_BYTES	MIB(64)
#define TEST_HIGH_BASE	GIB(4) /* a second piece of RAM */
#define TEST_HIGH_BYTES MIB(8)
#define TEST_ROM_BASE	0xfff00000ull
#define TEST_ROM_BYTES	MIB(1)
#define TEST_PHYS_BITS	40

struct test_cpu {
	struct x86_cpu cpu;
	struct guest_memory *memory;
	struct x86_cpuid_model model;
	uint64_t tsc;
	unsigned pio_count, hypercalls;
	uint16_t pio_port;
	unsigned pio_size;
	uint32_t pio_value; /* read and written */
	uint64_t msr_value;
	uint8_t cr8;
	unsigned code_writes; /* calls of code_written, and the last one */
	gpa_t code_gpa;
	unsigned code_size;
};

static inline struct test_cpu *test_of(struct x86_cpu *cpu)
{
	return cpu->env_opaque;
}

static uint64_t test_mmio_read(struct x86_cpu *cpu, gpa_t gpa, unsigned size)
{
	return ~0ull;
}

static void test_mmio_write(struct x86_cpu *cpu, gpa_t gpa, unsigned size, uint64_t value) {}

static uint32_t test_pio_read(struct x86_cpu *cpu, uint16_t port, unsigned size)
{
	struct test_cpu *t = test_of(cpu);
	t->pio_count++;
	t->pio_port = port;
	t->pio_size = size;
	return t->pio_value++;
}

static void test_pio_write(struct x86_cpu *cpu, uint16_t port, unsigned size, uint32_t value)
{
	struct test_cpu *t = test_of(cpu);
	t->pio_count++;
	t->pio_port = port;
	t->pio_size = size;
	t->pio_value = value;
}

/* One MSR of the machine's: 0x4b564d00. */
static bool test_msr_read(struct x86_cpu *cpu, uint32_t index, uint64_t *ret_value)
{
	*ret_value = test_of(cpu)->msr_value;
	return index == 0x4b564d00;
}

static bool test_msr_write(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
	test_of(cpu)->msr_value = value;
	return index == 0x4b564d00;
}

static uint64_t test_tsc(struct x86_cpu *cpu)
{
	return test_of(cpu)->tsc;
}

static void test_adjust_tsc(struct x86_cpu *cpu, uint64_t delta)
{
	test_of(cpu)->tsc += delta;
}

static uint8_t test_cr8_read(struct x86_cpu *cpu)
{
	return test_of(cpu)->cr8;
}

static void test_cr8_write(struct x86_cpu *cpu, uint8_t value)
{
	test_of(cpu)->cr8 = value;
}

static void test_hypercall(struct x86_cpu *cpu)
{
	test_of(cpu)->hypercalls++;
	cpu->s.reg[X86_RAX] = 42;
}

static void test_nothing(struct x86_cpu *cpu) {}

static void test_code_written(struct x86_cpu *cpu, gpa_t gpa, unsigned size)
{
	struct test_cpu *t = test_of(cpu);
	t->code_writes++;
	t->code_gpa = gpa;
	t->code_size = size;
}

static const struct x86_env_ops test_env = {
	.mmio_read = test_mmio_read,
	.mmio_write = test_mmio_write,
	.pio_read = test_pio_read,
	.pio_write = test_pio_write,
	.msr_read = test_msr_read,
	.msr_write = test_msr_write,
	.tsc = test_tsc,
	.adjust_tsc = test_adjust_tsc,
	.cr8_read = test_cr8_read,
	.cr8_write = test_cr8_write,
	.hypercall = test_hypercall,
	.exclusive_begin = test_nothing,
	.exclusive_end = test_nothing,
	.code_written = test_code_written,
};

static inline void test_feature(struct test_cpu *t, unsigned feature, bool on)
{
	uint64_t *word = &t->cpu.features.bits[feature / 64];
	*word = on ? *word | BIT(feature % 64) : *word & ~BIT(feature % 64);
}

/* The default model, with all features that the core knows added, whatever rows and the host have. */
static inline struct test_cpu *test_cpu_new(void)
{
	struct test_cpu *t = calloc(1, sizeof(*t));
	struct error err = {0};

	assert_non_null(t);
	assert_int_equal(memory_create(&t->memory), 0);
	assert_int_equal(memory_add_ram(t->memory, 0, TEST_RAM_BYTES, 0, "low", &err), 0);
	assert_int_equal(memory_add_ram(t->memory, TEST_ROM_BASE, TEST_ROM_BYTES, MEMORY_READONLY,
				 "rom", &err),
		0);
	assert_int_equal(
		memory_add_ram(t->memory, TEST_HIGH_BASE, TEST_HIGH_BYTES, 0, "high", &err), 0);
	x86_cpuid_default(&t->model, 1, 2500000000ull);
	t->model.phys_bits = TEST_PHYS_BITS;
	assert_int_equal(x86_cpu_init(&t->cpu, t->memory, &t->model, &test_env, t), 0);
	for (unsigned f = 0; f < X86_FEATURES; f++)
		test_feature(t, f, true);
	return t;
}

static inline void test_cpu_free(struct test_cpu *t)
{
	x86_cpu_done(&t->cpu);
	memory_free(t->memory);
	free(t);
}

static inline void *test_host(struct test_cpu *t, gpa_t gpa)
{
	const struct memory_region *region = memory_find(t->memory, gpa);
	assert_non_null(region);
	return region->host + (gpa - region->base);
}

/* A flat segment of the given attributes. */
static inline struct x86_segment test_segment(uint16_t attr, unsigned dpl)
{
	return (struct x86_segment){.limit = 0xffffffff,
		.selector = (uint16_t)(8 | dpl),
		.attr = (uint16_t)(attr | dpl << X86_SEG_DPL_SHIFT)};
}

/* Protected mode at this privilege, paging off. bits: 16, 32, or 64 (which needs EFER.LMA). */
static inline void test_protected(struct test_cpu *t, unsigned bits, unsigned cpl)
{
	struct x86_state *s = &t->cpu.s;
	const uint16_t data = X86_SEG_P | X86_SEG_S | X86_SEG_WRITE | X86_SEG_ACCESSED;
	const uint16_t width = bits == 32 ? X86_SEG_DB : 0;

	s->cr0 |= X86_CR0_PE;
	for (unsigned i = 0; i < 6; i++)
		s->seg[i] = test_segment(data | (bits == 16 ? 0 : X86_SEG_DB), cpl);
	s->seg[X86_CS] =
		test_segment(data | X86_SEG_CODE | width | (bits == 64 ? X86_SEG_L : 0), cpl);
	x86_cpu_refresh(&t->cpu);
}

#endif
