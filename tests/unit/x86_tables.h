/*
 * For unit tests of protected and long mode: descriptor tables, gates, a TSS and stacks at fixed places in
 * the RAM of tests/unit/x86_cpu.h, and machine code written in bytes. Paging is off.
 */
#ifndef LODGE_TESTS_X86_TABLES_H
#define LODGE_TESTS_X86_TABLES_H

#include "tests/unit/x86_cpu.h"

#include "isa/x86/descriptor.h"

#define GDT		0x1000u
#define IDT		0x2000u
#define TSS		0x3000u
#define TSS2		0x3800u
#define LDT		0x3c00u
#define CODE		0x10000u /* the program */
#define HANDLER(vector) (0x20000u + (vector)*16u)
#define STACK0		0x30000u /* tops of stacks */
#define STACK1		0x34000u
#define STACK3		0x38000u
#define IST3		0x3c008u /* not aligned on purpose */

/* Selectors. The order of 0x18 to 0x28 is what SYSRET wants. */
enum {
	KCODE = 0x08,
	KDATA = 0x10,
	UCODE = 0x1b,
	UDATA = 0x23,
	UCODE64 = 0x2b,
	TR = 0x30,
	FREE = 0x40,
	FREE2 = 0x48,
	FREE3 = 0x50
};

#define A_CODE (X86_SEG_P | X86_SEG_S | X86_SEG_CODE | X86_SEG_WRITE | X86_SEG_ACCESSED)
#define A_DATA (X86_SEG_P | X86_SEG_S | X86_SEG_WRITE | X86_SEG_ACCESSED)
#define A_BIG  (X86_SEG_G | X86_SEG_DB)
#define A_DPL3 X86_SEG_DPL

static inline int setup(void **state)
{
	*state = test_cpu_new();
	return 0;
}

static inline int teardown(void **state)
{
	test_cpu_free(*state);
	return 0;
}

/* ---- memory and tables ---- */

static inline void put(struct test_cpu *t, gpa_t at, uint64_t value, unsigned bytes)
{
	memcpy(test_host(t, at), &value, bytes);
}

static inline uint64_t get(struct test_cpu *t, gpa_t at, unsigned bytes)
{
	uint64_t value = 0;
	memcpy(&value, test_host(t, at), bytes);
	return value;
}

static inline uint64_t descriptor(uint32_t base, uint32_t limit20, uint16_t attr)
{
	return (limit20 & 0xffffull) | (base & 0xffffffull) << 16 | (attr & 0xffull) << 40 |
	       (limit20 >> 16 & 0xfull) << 48 | (uint64_t)(attr >> 12) << 52 |
	       (uint64_t)(base >> 24) << 56;
}

static inline void set_descriptor(
	struct test_cpu *t, unsigned selector, uint32_t base, uint32_t limit20, uint16_t attr)
{
	put(t, GDT + (selector & ~7u), descriptor(base, limit20, attr), 8);
}

static inline void set_gate(struct test_cpu *t, unsigned vector, unsigned selector, unsigned type,
	unsigned dpl, unsigned ist)
{
	uint64_t offset = HANDLER(vector);
	uint64_t low = (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)ist << 32 |
		       (uint64_t)(X86_SEG_P | dpl << 5 | type) << 40 | (offset >> 16) << 48;
	bool wide = t->cpu.long_mode;

	put(t, IDT + vector * (wide ? 16 : 8), low, 8);
	if (wide)
		put(t, IDT + vector * 16 + 8, 0, 8);
}

/* A call gate in the GDT. */
static inline void set_call_gate(struct test_cpu *t, unsigned selector, unsigned target,
	uint32_t offset, unsigned type, unsigned params)
{
	put(t, GDT + (selector & ~7u),
		(offset & 0xffffull) | (uint64_t)target << 16 | (uint64_t)params << 32 |
			(uint64_t)(X86_SEG_P | A_DPL3 | type) << 40 |
			(uint64_t)(offset >> 16) << 48,
		8);
}

/* Load a segment register without any check. */
static inline void set_seg(struct test_cpu *t, unsigned index, uint16_t selector)
{
	struct x86_descriptor desc = {.raw[0] = get(t, GDT + (selector & ~7u), 8)};

	desc.attr = desc.raw[0] >> 40 & 0xf0ff;
	t->cpu.s.seg[index] = x86_descriptor_segment(&desc, selector);
	x86_cpu_refresh(&t->cpu);
}

static inline void code(struct test_cpu *t, const char *bytes, unsigned size)
{
	gpa_t at = t->cpu.s.seg[X86_CS].base + t->cpu.s.reg[X86_RIP];
	memcpy(test_host(t, at), bytes, size);
}
#define CODE_BYTES(t, bytes) code(t, bytes, sizeof(bytes) - 1)

static inline void tables(struct test_cpu *t, bool wide)
{
	struct x86_state *s = &t->cpu.s;

	set_descriptor(t, KCODE, 0, 0xfffff, A_CODE | (wide ? X86_SEG_L | X86_SEG_G : A_BIG));
	set_descriptor(t, KDATA, 0, 0xfffff, A_DATA | A_BIG);
	set_descriptor(t, UCODE, 0, 0xfffff, A_CODE | A_BIG | A_DPL3);
	set_descriptor(t, UDATA, 0, 0xfffff, A_DATA | A_BIG | A_DPL3);
	set_descriptor(t, UCODE64, 0, 0xfffff, A_CODE | X86_SEG_L | X86_SEG_G | A_DPL3);
	set_descriptor(t, TR, TSS, 0x67, X86_SEG_P | X86_SYS_TSS32_BUSY);
	s->gdtr = (struct x86_table_register){GDT, 0x7f};
	s->idtr = (struct x86_table_register){IDT, 0xfff};
	s->tr = (struct x86_segment){TSS, 0x67, TR, X86_SEG_P | X86_SYS_TSS32_BUSY};
	if (wide) {
		put(t, TSS + 4, STACK0, 8);
		put(t, TSS + 36 + 8 * 2, IST3, 8);
	} else {
		put(t, TSS + 4, STACK0, 4);
		put(t, TSS + 8, KDATA, 2);
	}
	for (unsigned vector = 0; vector < 32; vector++)
		set_gate(t, vector, KCODE, X86_SYS_INT32, 0, 0);
}

/* Protected (32) or long mode (64) at a privilege, about to run at CODE. */
static inline struct x86_cpu *start(struct test_cpu *t, unsigned bits, unsigned cpl)
{
	struct x86_state *s = &t->cpu.s;
	bool wide = bits == 64;

	s->cr0 |= X86_CR0_PE;
	if (wide)
		s->msr.efer |= X86_EFER_LME | X86_EFER_LMA;
	x86_cpu_refresh(&t->cpu);
	tables(t, wide);
	set_seg(t, X86_CS, cpl ? (wide ? UCODE64 : UCODE) : KCODE);
	for (unsigned i = 0; i < 6; i++)
		if (i != X86_CS)
			set_seg(t, i, cpl ? UDATA : KDATA);
	s->reg[X86_RSP] = cpl ? STACK3 : STACK0;
	s->reg[X86_RIP] = CODE;
	s->rflags = X86_FLAGS_FIXED | X86_IF;
	assert_int_equal(t->cpu.cpl, cpl);
	assert_int_equal(t->cpu.mode, bits);
	return &t->cpu;
}

/* Where is it now? */
static inline void at_handler(struct test_cpu *t, unsigned vector)
{
	assert_int_equal(t->cpu.s.reg[X86_RIP], HANDLER(vector));
	assert_int_equal(t->cpu.s.seg[X86_CS].selector, KCODE);
	assert_int_equal(t->cpu.cpl, 0);
	assert_int_equal(t->cpu.s.event.type, X86_EVENT_NONE);
}

/* The i-th slot from the top of the stack. */
static inline uint64_t slot(struct test_cpu *t, unsigned i, unsigned bytes)
{
	return get(t, t->cpu.s.seg[X86_SS].base + t->cpu.s.reg[X86_RSP] + i * bytes, bytes);
}

static inline void external(struct test_cpu *t, unsigned vector)
{
	struct x86_event event = {.type = X86_EVENT_INTR, .vector = (uint8_t)vector};
	assert_int_equal(x86_deliver(&t->cpu, &event), X86_BOUNDARY);
}

/* A second task in TSS2, named by FREE. */
static inline void second_task(struct test_cpu *t)
{
	set_descriptor(t, FREE, TSS2, 0x67, X86_SEG_P | A_DPL3 | X86_SYS_TSS32);
	memset(test_host(t, TSS2), 0, 0x68);
	put(t, TSS2 + 4, STACK1, 4);
	put(t, TSS2 + 8, KDATA, 2);
	put(t, TSS2 + 28, t->cpu.s.cr3, 4);
	put(t, TSS2 + 32, HANDLER(200), 4);
	put(t, TSS2 + 36, X86_FLAGS_FIXED, 4);
	put(t, TSS2 + 40, 0xaaaa0000, 4);
	put(t, TSS2 + 56, STACK1, 4);
	for (unsigned i = 0; i < 6; i++)
		put(t, TSS2 + 72 + 4 * i, i == X86_CS ? KCODE : i == X86_FS ? 0 : KDATA, 2);
}

#endif
