/*
 * x86_step(): fetching, availability checks, single-step, breakpoints and what is delivered.
 *
 * Most tests run in real mode with CS = SS = 0, where delivery is three words on the stack.
 */
#include "tests/unit/x86_cpu.h"

#define CODE	0x7000u
#define STACK	0x9000u
#define HANDLER 0x6000u /* of vector v: HANDLER + v */

static int setup(void **state)
{
	struct test_cpu *t = test_cpu_new();
	struct x86_state *s = &t->cpu.s;
	uint16_t *ivt = test_host(t, 0);

	for (unsigned i = 0; i < 32; i++)
		ivt[2 * i] = (uint16_t)(HANDLER + i);
	memset(test_host(t, HANDLER), 0x90, 0x100);
	s->seg[X86_CS].selector = 0;
	s->seg[X86_CS].base = 0;
	s->reg[X86_RIP] = CODE;
	s->reg[X86_RSP] = STACK;
	s->idtr = (struct x86_table_register){.limit = 0x3ff};
	x86_cpu_refresh(&t->cpu);
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	test_cpu_free(*state);
	return 0;
}

static void code_at(struct test_cpu *t, unsigned at, const char *bytes, unsigned count)
{
	memcpy(test_host(t, at), bytes, count);
}

#define CODE_AT(t, at, bytes) code_at(t, at, bytes, sizeof(bytes) - 1)

/* An exception was delivered in real mode, with this return address. */
static void expect_delivered(
	struct test_cpu *t, enum x86_status status, unsigned vector, unsigned ip)
{
	uint16_t frame[3];

	assert_int_equal(status, X86_BOUNDARY);
	assert_int_equal(t->cpu.s.reg[X86_RIP], HANDLER + vector);
	memcpy(frame, test_host(t, t->cpu.s.reg[X86_RSP]), sizeof(frame));
	assert_int_equal(frame[0], ip);
}

static void debug_on(struct test_cpu *t, uint64_t dr7)
{
	t->cpu.s.dr[7] = dr7 | 0x400;
	x86_cpu_refresh(&t->cpu);
}

static void test_plain(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE, "\x90\xe5\x12");
	assert_int_equal(x86_step(&t->cpu), X86_OK);
	assert_int_equal(t->cpu.s.reg[X86_RIP], CODE + 1);
	t->cpu.s.interrupt_shadow = true;
	assert_int_equal(x86_step(&t->cpu), X86_BOUNDARY);
	assert_false(t->cpu.s.interrupt_shadow);
	assert_int_equal(t->pio_port, 0x12);
	assert_int_equal(t->cpu.instructions, 2);
}

static void test_undefined(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE, "\x0f\xff\xc0");
	expect_delivered(t, x86_step(&t->cpu), X86_UD, CODE);
	assert_int_equal(t->cpu.instructions, 1); /* ended by a fault */
}

static void test_too_long(void **state)
{
	struct test_cpu *t = *state;

	memset(test_host(t, CODE), 0x66, 32);
	CODE_AT(t, CODE + 14, "\x90");
	assert_int_equal(x86_step(&t->cpu), X86_OK); /* 15 bytes are allowed */
	t->cpu.s.reg[X86_RIP] = CODE;
	CODE_AT(t, CODE + 14, "\x66\x90");
	expect_delivered(t, x86_step(&t->cpu), X86_GP, CODE);
}

static void test_code_limit(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, 0xfffe, "\x90\xe5\x12");
	t->cpu.s.reg[X86_RIP] = 0xfffe;
	assert_int_equal(x86_step(&t->cpu), X86_OK);
	expect_delivered(t, x86_step(&t->cpu), X86_GP, 0xffff);
	t->cpu.s.reg[X86_RIP] = 0x10000;
	expect_delivered(t, x86_step(&t->cpu), X86_GP, 0);
}

/* 32-bit paging with the low 64 KiB mapped to themselves, but the page of `hole`. */
static void paging(struct test_cpu *t, unsigned hole)
{
	uint32_t *directory = test_host(t, 0x20000), *table = test_host(t, 0x21000);

	test_protected(t, 32, 0);
	directory[0] = 0x21003;
	for (unsigned i = 0; i < 16; i++)
		table[i] = i == hole >> 12 ? 0 : i << 12 | 3;
	t->cpu.s.cr3 = 0x20000;
	t->cpu.s.cr0 |= X86_CR0_PG;
	x86_cpu_refresh(&t->cpu);
	x86_tlb_flush(&t->cpu);
}

static void test_page_crossing(void **state)
{
	struct test_cpu *t = *state;
	struct x86_insn insn;

	/* in eax,0x12 right before the hole needs no second page; one byte on it does. */
	paging(t, 0x8000);
	CODE_AT(t, 0x7ffe, "\xe5\x12");
	t->cpu.s.reg[X86_RIP] = 0x7ffe;
	assert_int_equal(x86_fetch(&t->cpu, &insn), X86_OK);
	assert_int_equal(insn.len, 2);
	CODE_AT(t, 0x7fff, "\xe5");
	t->cpu.s.reg[X86_RIP] = 0x7fff;
	assert_int_equal(x86_fetch(&t->cpu, &insn), X86_FAULT);
	assert_int_equal(t->cpu.fault.vector, X86_PF_EXC);
	assert_true(t->cpu.fault.address == 0x8000);
	/* An undefined opcode is known without the second page. */
	CODE_AT(t, 0x7ffe, "\x0f\x04");
	t->cpu.s.reg[X86_RIP] = 0x7ffe;
	assert_int_equal(x86_fetch(&t->cpu, &insn), X86_FAULT);
	assert_int_equal(t->cpu.fault.vector, X86_UD);
	/* Both pages there, and not neighbours in memory. */
	paging(t, 0);
	((uint32_t *)test_host(t, 0x21000))[8] = 0x30003;
	CODE_AT(t, 0x7fff, "\xe5");
	CODE_AT(t, 0x30000, "\x77");
	t->cpu.s.reg[X86_RIP] = 0x7fff;
	assert_int_equal(x86_fetch(&t->cpu, &insn), X86_OK);
	assert_int_equal(insn.imm, 0x77);
	t->cpu.s.reg[X86_RIP] = 0x123;
	assert_int_equal(x86_fetch(&t->cpu, &insn), X86_FAULT);
	assert_true(t->cpu.fault.address == 0x123);
}

static void test_availability(void **state)
{
	static const struct {
		uint32_t attr, cr0, cr4;
		uint64_t xcr0;
		uint16_t fsw;
		int vector; /* -1: none */
	} rows[] = {
		{X86_A_X87, 0, 0, 1, 0, -1},
		{X86_A_X87, X86_CR0_EM, 0, 1, 0, X86_NM},
		{X86_A_X87, X86_CR0_TS, 0, 1, 0, X86_NM},
		{X86_A_X87, 0, 0, 1, 0x80, X86_MF},
		{X86_A_X87 | X86_A_NOWAIT, 0, 0, 1, 0x80, -1},
		{X86_A_X87 | X86_A_NOWAIT, X86_CR0_TS, 0, 1, 0x80, X86_NM},
		{X86_A_MMX, X86_CR0_EM | X86_CR0_TS, 0, 1, 0, X86_UD},
		{X86_A_MMX, X86_CR0_TS, 0, 1, 0x80, X86_NM},
		{X86_A_MMX, 0, 0, 1, 0x80, X86_MF},
		{X86_A_SSE, 0, 0, 1, 0, X86_UD},
		{X86_A_SSE, 0, X86_CR4_OSFXSR, 1, 0x80, -1},
		{X86_A_SSE, X86_CR0_EM, X86_CR4_OSFXSR, 1, 0, X86_UD},
		{X86_A_SSE, X86_CR0_TS, X86_CR4_OSFXSR, 1, 0, X86_NM},
		{X86_A_SSE, X86_CR0_TS, 0, 1, 0, X86_UD},
		{X86_A_SSE | X86_A_MMX, 0, X86_CR4_OSFXSR, 1, 0x80, X86_MF},
		{X86_A_AVX, 0, X86_CR4_OSFXSR, 7, 0, X86_UD},
		{X86_A_AVX, 0, X86_CR4_OSXSAVE, 3, 0, X86_UD},
		{X86_A_AVX, 0, X86_CR4_OSXSAVE, 7, 0, -1},
		{X86_A_AVX, X86_CR0_EM, X86_CR4_OSXSAVE, 7, 0, -1},
		{X86_A_AVX, X86_CR0_TS, X86_CR4_OSXSAVE, 7, 0, X86_NM},
	};
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct x86_row row = {.attr = rows[i].attr};
		const struct x86_insn insn = {.row = &row};
		t->cpu.s.cr0 = rows[i].cr0;
		t->cpu.s.cr4 = rows[i].cr4;
		t->cpu.s.xcr0 = rows[i].xcr0;
		t->cpu.s.fpu.fsw = rows[i].fsw;
		enum x86_status status = x86_check_row(&t->cpu, &insn);
		const int vector = status == X86_OK ? -1 : t->cpu.fault.vector;
		if (vector != rows[i].vector)
			fail_msg("row %u: %d", i, vector);
	}
	const struct x86_row privileged = {.attr = X86_A_CPL0};
	const struct x86_insn insn = {.row = &privileged};
	assert_int_equal(x86_check_row(&t->cpu, &insn), X86_OK);
	test_protected(t, 32, 3);
	assert_int_equal(x86_check_row(&t->cpu, &insn), X86_FAULT);
	assert_int_equal(t->cpu.fault.vector, X86_GP);
}

/* ---- single step ---- */

static void trap_on(struct test_cpu *t)
{
	t->cpu.s.rflags |= X86_TF;
	x86_cpu_refresh(&t->cpu);
}

static void test_single_step(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE, "\x90");
	trap_on(t);
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE + 1);
	assert_true(t->cpu.s.dr[6] == (0xffff0ff0 | BIT(14)));
	assert_false(t->cpu.s.rflags & X86_TF);
	assert_false(t->cpu.slow_path);
	assert_int_equal(t->cpu.instructions, 2); /* and the trap */
}

static void test_single_step_after_mov_ss(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE, "\x8e\xd0\x90"); /* mov ss,ax; nop */
	t->cpu.s.reg[X86_RAX] = 0;
	trap_on(t);
	assert_int_not_equal(x86_step(&t->cpu), X86_FAULT);
	assert_int_equal(t->cpu.s.reg[X86_RIP], CODE + 2); /* no trap yet */
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE + 3);
}

/* INT n clears TF: its handler's first instruction is not trapped before, and POPF's trap is not lost. */
static void test_single_step_of_int_and_popf(void **state)
{
	struct test_cpu *t = *state;
	const uint16_t flags = X86_FLAGS_FIXED;

	CODE_AT(t, CODE, "\xcd\x10");
	trap_on(t);
	expect_delivered(t, x86_step(&t->cpu), 0x10, CODE + 2);
	assert_int_equal(t->cpu.s.reg[X86_RSP], STACK - 6);

	CODE_AT(t, CODE, "\x9d");
	t->cpu.s.reg[X86_RIP] = CODE;
	t->cpu.s.reg[X86_RSP] = STACK - 2;
	memcpy(test_host(t, STACK - 2), &flags, 2);
	trap_on(t);
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE + 1);
}

static void test_fault_beats_single_step(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE, "\x0f\xff");
	trap_on(t);
	expect_delivered(t, x86_step(&t->cpu), X86_UD, CODE);
	assert_int_equal(t->cpu.s.reg[X86_RSP], STACK - 6);
}

static void test_single_step_of_rep(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE, "\xf3\x6c"); /* rep insb */
	t->cpu.s.reg[X86_RCX] = 2;
	t->cpu.s.reg[X86_RDI] = 0x5000;
	trap_on(t);
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE); /* after the first iteration */
	assert_int_equal(t->cpu.s.reg[X86_RCX], 1);
	t->cpu.s.reg[X86_RIP] = CODE;
	trap_on(t);
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE + 2);
	assert_int_equal(t->cpu.s.reg[X86_RCX], 0);
}

/* ---- breakpoints ---- */

static void test_instruction_breakpoint(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE, "\x90\x90");
	t->cpu.s.dr[2] = CODE;
	debug_on(t, 0x20); /* G2 */
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE);
	assert_true((t->cpu.s.dr[6] & 0xf) == 4);
	assert_int_equal(t->cpu.instructions, 1); /* ended by a fault */
	/* RF passes it once. */
	t->cpu.s.reg[X86_RIP] = CODE;
	t->cpu.s.rflags |= X86_RF;
	assert_int_equal(x86_step(&t->cpu), X86_OK);
	assert_int_equal(t->cpu.s.reg[X86_RIP], CODE + 1);
	assert_false(t->cpu.s.rflags & X86_RF);
	/* So does the shadow of MOV SS; a disabled one does nothing. */
	t->cpu.s.reg[X86_RIP] = CODE;
	t->cpu.s.mov_ss_shadow = true;
	assert_int_equal(x86_step(&t->cpu), X86_OK);
	t->cpu.s.reg[X86_RIP] = CODE;
	debug_on(t, 0x03);
	assert_int_equal(x86_step(&t->cpu), X86_OK);
}

static void test_data_breakpoint(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE,
		"\xa3\x00\x50\xa1\x02\x50\x50"); /* mov [5000],ax; mov ax,[5002]; push ax */
	t->cpu.s.dr[1] = 0x5001;
	debug_on(t, 0x04 | 1u << 20); /* one byte, writes */
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE + 3);
	assert_true((t->cpu.s.dr[6] & 0xf) == 2);
	assert_int_equal(t->cpu.instructions, 2); /* and the trap */
	t->cpu.s.reg[X86_RIP] = CODE + 3;
	assert_int_equal(x86_step(&t->cpu), X86_OK);
	debug_on(t, 0x04 | 0x7u << 20); /* two bytes at 5000, reads too */
	t->cpu.s.reg[X86_RIP] = CODE + 3;
	assert_int_equal(x86_step(&t->cpu), X86_OK);
	t->cpu.s.dr[1] = 0x5002;
	t->cpu.s.reg[X86_RIP] = CODE + 3;
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE + 6);
	/* An access that an operand does not name. */
	t->cpu.s.reg[X86_RSP] = STACK;
	t->cpu.s.dr[1] = STACK - 2;
	t->cpu.s.reg[X86_RIP] = CODE + 6;
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE + 7);
}

static void test_io_breakpoint(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE, "\xe5\x12"); /* in ax,0x12 */
	t->cpu.s.dr[0] = 0x13;
	debug_on(t, 0x01 | 2u << 16);
	assert_int_equal(x86_step(&t->cpu), X86_BOUNDARY);
	assert_int_equal(t->cpu.s.reg[X86_RIP], CODE + 2); /* without CR4.DE: nothing */
	t->cpu.s.cr4 |= X86_CR4_DE;
	t->cpu.s.reg[X86_RIP] = CODE;
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE + 2);
	assert_true((t->cpu.s.dr[6] & 0xf) == 1);
}

static void test_general_detect(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE, "\x0f\x21\xc0"); /* mov eax,dr0 */
	debug_on(t, BIT(13));
	expect_delivered(t, x86_step(&t->cpu), X86_DB, CODE);
	assert_true(t->cpu.s.dr[6] & BIT(13));
	assert_false(t->cpu.s.dr[7] & BIT(13));
}

static void test_triple_fault(void **state)
{
	struct test_cpu *t = *state;

	CODE_AT(t, CODE, "\x0f\xff");
	t->cpu.s.idtr.limit = 0;
	assert_int_equal(x86_step(&t->cpu), X86_TRIPLE);
	assert_int_equal(t->cpu.s.activity, X86_SHUTDOWN);
}

/* Code outside RAM reads as the bus says, here all ones: undefined. */
static void test_code_outside_ram(void **state)
{
	struct test_cpu *t = *state;

	t->cpu.s.seg[X86_CS].base = 0xf0000000;
	expect_delivered(t, x86_step(&t->cpu), X86_UD, CODE);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_plain),
		T(test_undefined),
		T(test_too_long),
		T(test_code_limit),
		T(test_page_crossing),
		T(test_availability),
		T(test_single_step),
		T(test_single_step_after_mov_ss),
		T(test_single_step_of_int_and_popf),
		T(test_fault_beats_single_step),
		T(test_single_step_of_rep),
		T(test_instruction_breakpoint),
		T(test_data_breakpoint),
		T(test_io_breakpoint),
		T(test_general_detect),
		T(test_triple_fault),
		T(test_code_outside_ram),
	};
	return cmocka_run_group_tests_name("step", tests, NULL, NULL);
}
