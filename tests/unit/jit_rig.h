/*
 * What the tests of the translator's hard cases share: 64-bit guests written as assembly, page tables of 4 KiB
 * pages, and handlers that tell which exception came with what.
 *
 * They run on any engine (the program's argument), so that the interpreter vouches for the tests, and on the
 * translator with several of its switches (LODGE_JIT).
 */
#ifndef LODGE_TESTS_JIT_RIG_H
#define LODGE_TESTS_JIT_RIG_H

#include "engine_rig.h"

/* Guest code: bytes code_NAME to code_NAME_end, made for no address of its own. */
#define GUEST(name, text)                                                                  \
	extern const uint8_t code_##name[], code_##name##_end[];                           \
	__asm__(".pushsection .rodata\n.balign 16\ncode_" #name ":\n" text "\ncode_" #name \
		"_end:\n.popsection\n")
#define GUEST_SIZE(name) ((size_t)(code_##name##_end - code_##name))

#define LOW_TABLE   0x18000u /* of the first 2 MiB, as they are */
#define HIGH_TABLE  0x19000u /* of the second, as they are */
#define ALIAS_TABLE 0x1a000u /* of 2 MiB at ALIAS, unmapped at first */
#define ALIAS	    0x40000000u
#define TSS	    0x7000u
#define RSP0	    0x8000u
#define TRAP_STACK  0x8800u /* of all exceptions */
#define TRAP_VECTOR 0x5100u /* which it was is written here */
#define TRAP_FIRST  0x2400u /* handlers of 16 bytes each */
#define USER_SS	    0x1b
#define USER_CS	    0x23
#define CS32	    0x28
#define USER_CS32   0x33

#define P 1u /* of page table entries */
#define W 2u
#define U 4u
#define G 0x100u

static inline uint64_t *jit_entry(struct rig *r, gva_t at)
{
	gpa_t table = at >= ALIAS ? ALIAS_TABLE : at >= MIB(2) ? HIGH_TABLE : LOW_TABLE;

	return memory_host(r->memory, table + (at >> 12 & 511) * 8, 8, true);
}

/* flags 0: not present. The guest has to flush its TLB, or be loaded anew. */
static inline void jit_map(struct rig *r, gva_t at, gpa_t gpa, unsigned flags)
{
	uint64_t value = flags ? gpa | flags : 0;

	rig_put64(r, (at >= ALIAS ? ALIAS_TABLE : at >= MIB(2) ? HIGH_TABLE : LOW_TABLE) +
			     (at >> 12 & 511) * 8, value);
}

static inline void jit_tables(struct rig *r)
{
	rig_put64(r, PAGING, (PAGING + 0x1000) | P | W | U);
	for (unsigned i = 0; i < 4; i++)
		rig_put64(r, PAGING + 0x1000 + 8 * i, (PAGING + 0x2000 + 0x1000 * i) | P | W | U);
	rig_put64(r, PAGING + 0x2000, LOW_TABLE | P | W | U);
	rig_put64(r, PAGING + 0x2008, HIGH_TABLE | P | W | U);
	rig_put64(r, PAGING + 0x3000, ALIAS_TABLE | P | W | U);
	for (unsigned i = 0; i < 512; i++) {
		jit_map(r, i << 12, i << 12, P | W | U);
		jit_map(r, MIB(2) + (i << 12), MIB(2) + (i << 12), P | W | U);
		jit_map(r, ALIAS + (i << 12), 0, 0);
	}
}

/* All exceptions: to a stack of their own, and to code that says which it was and ends the guest. */
static inline void jit_traps(struct rig *r)
{
	for (unsigned i = 0; i < 32; i++) {
		/* mov byte [TRAP_VECTOR], i; out END_PORT, al; hlt */
		const uint8_t code[] = {0xc6, 0x04, 0x25, 0x00, 0x51, 0x00, 0x00, (uint8_t)i, 0xe6,
			0xf4, 0xf4};

		rig_gate(r, i, TRAP_FIRST - HANDLERS + 16 * i, code, sizeof(code));
		rig_put(r, IDT + 16 * i + 4, "\1", 1); /* IST 1 */
	}
}

/* 64-bit mode, as rig_long(), in pages of 4 KiB that all may use. */
static inline void jit_state(struct rig *r, struct x86_state *s)
{
	const uint8_t zero[0x68] = {0};

	rig_long(r, s);
	jit_tables(r);
	jit_traps(r);
	rig_put(r, TSS, zero, sizeof(zero));
	rig_put64(r, TSS + 4, RSP0);
	rig_put64(r, TSS + 0x24, TRAP_STACK);
	rig_put(r, TRAP_VECTOR, "\xff", 1);
	s->tr = (struct x86_segment){
		.base = TSS, .limit = 0x67, .selector = 0x40, .attr = X86_SEG_P | 11};
	rig_put64(r, GDT + 0x18, 0x00cff3000000ffffull);
	rig_put64(r, GDT + 0x20, 0x00affb000000ffffull);
	rig_put64(r, GDT + CS32, 0x00cf9b000000ffffull);
	rig_put64(r, GDT + 0x30, 0x00cffb000000ffffull);
	s->gdtr.limit = 0x4f;
	r->done = false;
}

static inline void jit_user(struct x86_state *s)
{
	const uint16_t dpl3 = 3 << 5;

	for (unsigned i = 0; i < 6; i++)
		s->seg[i] = rig_segment(USER_SS, RIG_DATA | dpl3);
	s->seg[X86_CS] = rig_segment(USER_CS, RIG_CODE | X86_SEG_L | dpl3);
}

#define JIT_LOAD(r, s, name) rig_load(r, s, code_##name, GUEST_SIZE(name))

/* ---- what came of it ---- */

struct trap {
	uint8_t vector; /* 0xff: none */
	uint32_t error; /* 0 if there is none */
	uint64_t rip, cs, rflags, rsp, ss;
	struct x86_state s; /* in the handler */
};

static inline bool trap_has_error(unsigned vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21;
}

static inline void jit_run(struct rig *r, struct trap *ret)
{
	uint8_t vector;

	r->done = false;
	rig_run_to_end(r);
	rig_state(r, &ret->s);
	assert_int_equal(memory_read(r->memory, TRAP_VECTOR, &vector, 1), 0);
	ret->vector = vector;
	ret->error = vector < 32 && trap_has_error(vector)
			     ? (uint32_t)rig_get64(r, TRAP_STACK - 48) : 0;
	ret->rip = rig_get64(r, TRAP_STACK - 40);
	ret->cs = rig_get64(r, TRAP_STACK - 32);
	ret->rflags = rig_get64(r, TRAP_STACK - 24);
	ret->rsp = rig_get64(r, TRAP_STACK - 16);
	ret->ss = rig_get64(r, TRAP_STACK - 8);
}

/* Load and run to END_PORT, with no exception; the state there. */
static inline void jit_run_plainly(struct rig *r, struct x86_state *ret)
{
	struct trap trap;

	jit_run(r, &trap);
	if (trap.vector != 0xff)
		fail_msg("exception %u at %#llx, error %#x, CR2 %#llx", trap.vector,
			(unsigned long long)trap.rip, trap.error, (unsigned long long)trap.s.cr2);
	*ret = trap.s;
}

static inline bool jit_has_option(const char *name)
{
	const char *options = getenv("LODGE_JIT");

	return rig_ops != &engine_jit_ops || (options && strstr(options, name));
}

#endif
