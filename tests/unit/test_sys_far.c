/*
 * Far transfers and tasks; and random instructions on random tables: whatever faults must have changed
 * nothing.
 */
#include "tests/unit/x86_tables.h"

/* ---- far transfers ---- */

static void test_call_gate_with_parameters(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 3);

	set_call_gate(t, FREE, KCODE, HANDLER(200), X86_SYS_CALL32, 2);
	put(t, STACK3 - 8, 0x11111111, 4);
	put(t, STACK3 - 4, 0x22222222, 4);
	cpu->s.reg[X86_RSP] = STACK3 - 8;
	cpu->s.seg[X86_ES] = cpu->s.seg[X86_SS];
	CODE_BYTES(t, "\x9a\x00\x00\x00\x00\x43\x00"); /* call 0x43:0 */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, 200);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0 - 24);
	assert_int_equal(slot(t, 0, 4), CODE + 7);
	assert_int_equal(slot(t, 1, 4), UCODE);
	assert_int_equal(slot(t, 2, 4), 0x11111111);
	assert_int_equal(slot(t, 3, 4), 0x22222222);
	assert_int_equal(slot(t, 4, 4), STACK3 - 8);
	assert_int_equal(slot(t, 5, 4), UDATA);

	set_seg(t, X86_DS, KDATA);     /* the program must not keep it */
	CODE_BYTES(t, "\xca\x08\x00"); /* retf 8 */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.reg[X86_RIP], CODE + 7);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK3);
	assert_int_equal(cpu->s.seg[X86_DS].selector, 0);
	assert_int_equal(cpu->s.seg[X86_ES].selector, UDATA);
}

static void test_call_gate_64(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 3);

	set_call_gate(t, FREE, KCODE, HANDLER(200), X86_SYS_CALL32, 0);
	put(t, GDT + FREE2, 0, 8);
	put(t, 0x6000, (uint64_t)(FREE | 3) << 32, 8);
	cpu->s.reg[X86_RBX] = 0x6000;
	CODE_BYTES(t, "\xff\x1b"); /* call far [rbx] */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, 200);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0 - 32);
	assert_int_equal(slot(t, 0, 8), CODE + 2);
	assert_int_equal(slot(t, 3, 8), UDATA);
	CODE_BYTES(t, "\x48\xcb"); /* retfq */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK3);
	assert_int_equal(cpu->mode, 64);
}

/* The stack is as wide as the target's mode has it, as AMD's processors do it. */
static void test_call_between_modes(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 3);

	put(t, 0x6000, (uint64_t)UCODE << 32 | HANDLER(200), 6);
	cpu->s.reg[X86_RBX] = 0x6000;
	cpu->s.reg[X86_RSP] = 0xff80000000000000 | STACK3; /* not canonical, and not looked at */
	CODE_BYTES(t, "\xff\x1b");			   /* call far [rbx] */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->mode, 32);
	assert_int_equal(cpu->s.reg[X86_RIP], HANDLER(200));
	assert_int_equal(cpu->s.reg[X86_RSP], STACK3 - 8);
	assert_int_equal(slot(t, 0, 4), CODE + 2);
	assert_int_equal(slot(t, 1, 4), UCODE64);

	cpu->s.seg[X86_SS].base = 0x1001; /* which 64-bit mode ignores */
	cpu->s.rflags |= X86_AC;
	cpu->s.cr0 |= X86_CR0_AM;
	x86_cpu_refresh(cpu);
	CODE_BYTES(t, "\x9a\x00\x00\x01\x00\x2b\x00"); /* call 0x2b:CODE */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->mode, 64);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK3 - 16);
	assert_int_equal(get(t, STACK3 - 16, 4), HANDLER(200) + 7);
	assert_int_equal(get(t, STACK3 - 12, 4), UCODE);
}

/* A stack that compatibility mode cannot use: here none, as 64-bit mode may have it. */
static void test_call_without_stack(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 0);

	set_descriptor(t, FREE, 0, 0xfffff, A_CODE | A_BIG);
	put(t, 0x6000, (uint64_t)FREE << 32 | HANDLER(200), 6);
	cpu->s.reg[X86_RBX] = 0x6000;
	cpu->s.seg[X86_SS] = x86_segment_null(0, 0);
	x86_cpu_refresh(cpu);
	CODE_BYTES(t, "\xff\x1b"); /* call far [rbx] */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_SS_EXC);
	assert_int_equal(slot(t, 0, 8), 0);
	assert_int_equal(slot(t, 1, 8), CODE);
}

static void test_jmp_far(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	set_descriptor(t, FREE, 0x10000, 0xfff, A_CODE);
	CODE_BYTES(t, "\xea\x34\x02\x00\x00\x40\x00");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RIP], 0x234);
	assert_int_equal(cpu->s.seg[X86_CS].base, 0x10000);
	assert_int_equal(cpu->mode, 16);
	/* Past the limit; to less privileged code; to data; to nothing. */
	static const struct {
		const char *bytes;
		uint32_t error;
	} bad[] = {
		{"\xea\x00\x10\x00\x00\x40\x00", 0},
		{"\xea\x00\x10\x00\x00\x1b\x00", UCODE & ~3},
		{"\xea\x00\x10\x00\x00\x10\x00", KDATA},
		{"\xea\x00\x10\x00\x00\x03\x00", 0},
	};
	for (unsigned i = 0; i < 4; i++) {
		cpu = start(t, 32, 0);
		code(t, bad[i].bytes, 7);
		x86_step(cpu);
		at_handler(t, X86_GP);
		assert_int_equal(slot(t, 0, 4), bad[i].error);
		assert_int_equal(slot(t, 1, 4), CODE);
	}
}

static void test_real_mode(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = &t->cpu;

	x86_load_segment(cpu, X86_SS, 0x3000);
	cpu->s.seg[X86_CS] = x86_segment_real(&cpu->s.seg[X86_CS], 0x1000);
	cpu->s.reg[X86_RIP] = 0x100;
	cpu->s.reg[X86_RSP] = 2; /* the frame wraps around */
	cpu->s.idtr = (struct x86_table_register){0, 0x3ff};
	cpu->s.rflags = X86_FLAGS_FIXED | X86_IF;
	x86_cpu_refresh(cpu);
	put(t, 0x21 * 4, 0x20000345, 4);
	CODE_BYTES(t, "\xcd\x21");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.seg[X86_CS].base, 0x20000);
	assert_int_equal(cpu->s.reg[X86_RIP], 0x345);
	assert_int_equal(cpu->s.reg[X86_RSP], 0xfffc);
	assert_int_equal(get(t, 0x30000, 2), X86_FLAGS_FIXED | X86_IF);
	assert_int_equal(get(t, 0x3fffe, 2), 0x1000);
	assert_int_equal(get(t, 0x3fffc, 2), 0x102);
	assert_int_equal(cpu->s.rflags, X86_FLAGS_FIXED);
	CODE_BYTES(t, "\xcf");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.seg[X86_CS].selector, 0x1000);
	assert_int_equal(cpu->s.reg[X86_RIP], 0x102);
	assert_int_equal(cpu->s.reg[X86_RSP], 2);
	assert_int_equal(cpu->s.rflags, X86_FLAGS_FIXED | X86_IF);
	cpu->s.reg[X86_RSP] = 0x100;
	CODE_BYTES(t, "\x9a\x10\x00\x00\x20"); /* call 2000:0010 */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RIP], 0x10);
	CODE_BYTES(t, "\xcb");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RIP], 0x107);
	assert_int_equal(cpu->s.reg[X86_RSP], 0x100);
}

/* ---- tasks ---- */

static void test_task_call_and_return(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 3);

	second_task(t);
	cpu->s.reg[X86_RAX] = 0x1234;
	cpu->s.dr[0] = 0xdead0000;
	cpu->s.dr[7] =
		0x403; /* a local and a global breakpoint: only the global one outlives the task */
	x86_cpu_refresh(cpu);
	CODE_BYTES(t, "\x9a\x00\x00\x00\x00\x43\x00");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, 200);
	assert_int_equal(cpu->s.reg[X86_RAX], 0xaaaa0000);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK1);
	assert_int_equal(cpu->s.rflags, X86_FLAGS_FIXED | X86_NT);
	assert_int_equal(cpu->s.tr.selector, FREE | 3);
	assert_int_equal(get(t, TSS2, 2), TR);
	assert_int_equal(get(t, TSS + 32, 4), CODE + 7);
	assert_int_equal(get(t, TSS + 36, 4), X86_FLAGS_FIXED | X86_IF);
	assert_int_equal(get(t, TSS + 40, 4), 0x1234);
	assert_int_equal(get(t, TSS + 76, 4), UCODE);
	assert_int_equal(get(t, GDT + FREE + 5, 1) & 15, X86_SYS_TSS32_BUSY);
	assert_int_equal(get(t, GDT + TR + 5, 1) & 15, X86_SYS_TSS32_BUSY);
	assert_true(cpu->s.cr0 & X86_CR0_TS);
	assert_int_equal(cpu->s.dr[7], 0x402);
	assert_false(cpu->s.seg[X86_FS].attr & X86_SEG_P);

	CODE_BYTES(t, "\xcf");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.reg[X86_RIP], CODE + 7);
	assert_int_equal(cpu->s.reg[X86_RAX], 0x1234);
	assert_int_equal(cpu->s.rflags, X86_FLAGS_FIXED | X86_IF);
	assert_int_equal(cpu->s.tr.selector, TR);
	assert_int_equal(get(t, GDT + FREE + 5, 1) & 15, X86_SYS_TSS32);
	assert_false(get(t, TSS2 + 36, 4) & X86_NT);
	assert_int_equal(get(t, TSS2 + 32, 4), HANDLER(200) + 1);
}

static void test_task_jmp(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	second_task(t);
	put(t, TSS2 + 100, 1, 2); /* T: a trap before its first instruction */
	CODE_BYTES(t, "\xea\x00\x00\x00\x00\x40\x00");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_DB);
	assert_true(cpu->s.dr[6] & 1 << 15);
	assert_int_equal(slot(t, 0, 4), HANDLER(200));
	assert_int_equal(get(t, GDT + TR + 5, 1) & 15, X86_SYS_TSS32);
	assert_int_equal(get(t, TSS2, 2), 0);
	/* It is busy now: no way to it. */
	cpu = start(t, 32, 0);
	x86_step(cpu);
	at_handler(t, X86_GP);
	assert_int_equal(slot(t, 0, 4), FREE);
}

/* A fault while the new task's segments are loaded belongs to the new task. */
static void test_task_bad_segment(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	second_task(t);
	put(t, TSS2 + 84, TR, 2); /* DS */
	CODE_BYTES(t, "\xea\x00\x00\x00\x00\x40\x00");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_TS);
	assert_int_equal(cpu->s.tr.selector, FREE);
	assert_int_equal(slot(t, 0, 4), TR);
	assert_int_equal(slot(t, 1, 4), HANDLER(200));
}

/* #DF through a task gate: the classic use. */
static void test_task_gate_double_fault(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	second_task(t);
	set_gate(t, X86_DF_EXC, FREE, X86_SYS_TASK_GATE, 0, 0);
	set_descriptor(t, FREE2, 0, 0, A_DATA); /* a stack too small for anything */
	set_seg(t, X86_SS, FREE2);
	CODE_BYTES(t, "\x50"); /* push eax: #SS, whose push is #SS */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, 200);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK1 - 4);
	assert_int_equal(slot(t, 0, 4), 0);
	assert_int_equal(get(t, TSS + 32, 4), CODE);
}

static void test_task_16(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	set_descriptor(t, FREE, TSS2, 0x2b, X86_SEG_P | X86_SYS_TSS16);
	memset(test_host(t, TSS2), 0, 0x2c);
	set_descriptor(t, FREE2, 0x20000, 0xffff, A_CODE);
	put(t, TSS2 + 14, 0x500, 2);
	put(t, TSS2 + 18 + 2 * X86_RSP, 0x7000, 2);
	put(t, TSS2 + 34, KDATA, 2);
	put(t, TSS2 + 36, FREE2, 2);
	put(t, TSS2 + 38, KDATA, 2);
	CODE_BYTES(t, "\x9a\x00\x00\x00\x00\x40\x00");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RIP], 0x500);
	assert_int_equal(cpu->s.seg[X86_CS].selector, FREE2);
	assert_int_equal(cpu->s.reg[X86_RSP], 0x7000);
	assert_int_equal(cpu->mode, 16);
	CODE_BYTES(t, "\xcf");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RIP], CODE + 7);
	assert_int_equal(get(t, TSS2 + 14, 2), 0x501);
}

/* ---- anything at all ---- */

static uint64_t random_next(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* Instructions of this piece: opcode bytes, to which random ones are added. */
static const char *const openings[] = {"\x8e", "\x8c", "\x07", "\x17", "\x1f", "\x0f\xa1", "\xc4",
	"\x0f\xb2", "\x0f\x02", "\x0f\x03", "\x0f\x01", "\x66\xcf", "\xcf", "\xcb", "\xca", "\xea",
	"\x9a", "\xff", "\xcd", "\xcc", "\x0f\x05", "\x0f\x07", "\x0f\x34", "\x0f\x35", "\xfb",
	"\x48\xcf", "\x48\xcb", "\x48\x0f\x07", "\x48\xff"};

static void scramble(struct test_cpu *t, uint64_t *seed)
{
	uint64_t r = random_next(seed);

	for (unsigned i = 0; i < 3; i++)
		put(t, GDT + 8 + random_next(seed) % 112, random_next(seed), 1 + r % 8);
	put(t, IDT + random_next(seed) % 512, random_next(seed), 8);
	put(t, TSS + random_next(seed) % 100, random_next(seed), 4);
	for (unsigned i = 0; i < 12; i++) /* selectors and small offsets on the stacks */
		put(t, t->cpu.s.reg[X86_RSP] + i * 4,
			random_next(seed) & (r & 256 ? 0x7b : 0x1fffff), 4);
	t->cpu.s.rflags = X86_FLAGS_FIXED | (random_next(seed) & 0x277fd5 & ~X86_TF);
	for (unsigned i = 0; i < 8; i++)
		if (i != X86_RSP)
			t->cpu.s.reg[i] = random_next(seed) & (r & 512 ? 0x7f : 0xfffff);
}

static void test_faults_change_nothing(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = &t->cpu;
	uint64_t seed = 0x9e3779b97f4a7c15ull;
	unsigned faults = 0, done = 0;

	for (unsigned round = 0; round < 30000; round++) {
		struct x86_insn insn;
		uint8_t bytes[15];
		x86_state_reset(&cpu->s);
		x86_cpu_refresh(cpu);
		start(t, round & 1 ? 64 : 32, round & 2 ? 3 : 0);
		cpu->s.msr.efer |= X86_EFER_SCE;
		second_task(t);
		cpu->s.reg[X86_RSP] -= 64;
		scramble(t, &seed);
		const char *opening = openings[random_next(&seed) % ARRAY_SIZE(openings)];
		for (unsigned i = 0; i < sizeof(bytes); i++)
			bytes[i] = (uint8_t)(random_next(&seed) & (i & 1 ? 0xff : 0x7b));
		memcpy(bytes, opening, strlen(opening));
		code(t, (const char *)bytes, sizeof(bytes));
		if (x86_fetch(cpu, &insn) != X86_OK || x86_check_row(cpu, &insn) != X86_OK)
			continue;
		struct x86_state before = cpu->s;
		if (insn.fn(cpu, &insn) != X86_FAULT) {
			done++;
			continue;
		}
		faults++;
		assert_memory_equal(&before, &cpu->s, sizeof(before));
		x86_deliver_fault(cpu);
	}
	assert_true(faults > 1000 && done > 1000);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_call_gate_with_parameters),
		TEST(test_call_gate_64),
		TEST(test_call_between_modes),
		TEST(test_call_without_stack),
		TEST(test_jmp_far),
		TEST(test_real_mode),
		TEST(test_task_call_and_return),
		TEST(test_task_jmp),
		TEST(test_task_bad_segment),
		TEST(test_task_gate_double_fault),
		TEST(test_task_16),
		TEST(test_faults_change_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
