/*
 * Delivery of exceptions and interrupts in every mode, and the way back by IRET.
 */
#include "tests/unit/x86_tables.h"

/* ---- interrupts in 32-bit protected mode ---- */

static void test_int_inner_32(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 3);

	set_gate(t, 0x80, KCODE, X86_SYS_INT32, 3, 0);
	cpu->s.rflags |= X86_NT | X86_CF;
	CODE_BYTES(t, "\xcd\x80");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, 0x80);
	assert_int_equal(cpu->s.seg[X86_SS].selector, KDATA);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0 - 20);
	assert_int_equal(slot(t, 0, 4), CODE + 2);
	assert_int_equal(slot(t, 1, 4), UCODE);
	assert_int_equal(slot(t, 2, 4), X86_FLAGS_FIXED | X86_IF | X86_NT | X86_CF);
	assert_int_equal(slot(t, 3, 4), STACK3);
	assert_int_equal(slot(t, 4, 4), UDATA);
	assert_int_equal(cpu->s.rflags, X86_FLAGS_FIXED | X86_CF);

	/* And back: IRETD. */
	CODE_BYTES(t, "\xcf");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.reg[X86_RIP], CODE + 2);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK3);
	assert_int_equal(cpu->s.seg[X86_SS].selector, UDATA);
	assert_int_equal(cpu->s.rflags, X86_FLAGS_FIXED | X86_IF | X86_NT | X86_CF);
}

static void test_trap_gate_keeps_if(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	set_gate(t, 0x80, KCODE, X86_SYS_TRAP32, 0, 0);
	CODE_BYTES(t, "\xcd\x80");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, 0x80);
	assert_true(cpu->s.rflags & X86_IF);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0 - 12);
}

static void test_gate_16(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	set_descriptor(t, FREE, 0x20000, 0xffff, A_CODE);
	put(t, IDT + 0x80 * 8,
		0x0800 | (uint64_t)FREE << 16 | (uint64_t)(0x80 | X86_SYS_INT16) << 40 |
			0xffffull << 48,
		8);
	CODE_BYTES(t, "\xcd\x80");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RIP], 0x800);
	assert_int_equal(cpu->mode, 16);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0 - 6);
	assert_int_equal(slot(t, 0, 2), (CODE + 2) & 0xffff);
	assert_int_equal(slot(t, 1, 2), KCODE);
}

/* INT n through a gate that is not for this privilege: EXT is clear, RIP is the INT's, RF is pushed. */
static void test_int_not_allowed(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 3);

	set_gate(t, 0x80, KCODE, X86_SYS_INT32, 0, 0);
	CODE_BYTES(t, "\xcd\x80");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_GP);
	assert_int_equal(slot(t, 0, 4), 0x80 * 8 + 2);
	assert_int_equal(slot(t, 1, 4), CODE);
	assert_true(slot(t, 3, 4) & X86_RF);
}

static void test_external_not_present(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 3);

	set_gate(t, 0x40, KCODE, X86_SYS_INT32, 0, 0);
	put(t, IDT + 0x40 * 8 + 5, X86_SYS_INT32, 1);
	cpu->s.activity = X86_HALTED;
	external(t, 0x40);
	at_handler(t, X86_NP); /* an interrupt is benign: no double fault */
	assert_int_equal(slot(t, 0, 4), 0x40 * 8 + 3);
	assert_int_equal(cpu->s.activity, X86_RUNNING);
}

static void test_bad_tss_stack(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 3);

	put(t, TSS + 8, UDATA,
		2); /* SS0 of the wrong privilege: #TS, whose own delivery needs it too */
	struct x86_state before = cpu->s;
	set_gate(t, 0x80, KCODE, X86_SYS_INT32, 3, 0);
	struct x86_event event = {.type = X86_EVENT_SOFT_INT, .vector = 0x80};
	assert_int_equal(x86_deliver_software(cpu, &event), X86_FAULT);
	assert_int_equal(cpu->fault.vector, X86_TS);
	assert_int_equal(cpu->fault.error, UDATA & ~3);
	assert_memory_equal(&before, &cpu->s, sizeof(before));
	assert_int_equal(x86_deliver(cpu, &event), X86_TRIPLE);
	assert_int_equal(cpu->s.activity, X86_SHUTDOWN);
}

#define DIRECTORY 0x40000u

/* The pages of the first 4 MiB as they are, without the one below the stack's. */
static void page_below_stack_missing(struct test_cpu *t)
{
	put(t, DIRECTORY, (DIRECTORY + 0x1000) | 3, 4);
	for (unsigned i = 0; i < 1024; i++)
		put(t, DIRECTORY + 0x1000 + 4 * i,
			i == STACK0 / 0x1000 - 1 ? 0 : i * 0x1000 | 3, 4);
	t->cpu.s.cr3 = DIRECTORY;
	t->cpu.s.cr0 |= X86_CR0_PG;
	x86_cpu_refresh(&t->cpu);
	x86_tlb_flush(&t->cpu);
}

/* CR2 is the first push that faults, from the top. */
static void test_frame_page_fault(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);
	struct x86_event event = {.type = X86_EVENT_SOFT_INT, .vector = 0x80};

	set_gate(t, 0x80, KCODE, X86_SYS_INT32, 0, 0);
	page_below_stack_missing(t);
	cpu->s.reg[X86_RSP] = STACK0 + 4;
	assert_int_equal(x86_deliver_software(cpu, &event), X86_FAULT);
	assert_int_equal(cpu->fault.vector, X86_PF_EXC);
	assert_int_equal(cpu->fault.address, STACK0 - 4);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0 + 4);
	assert_int_equal(get(t, STACK0, 4), 0); /* what could be pushed was not */
}

/* ---- double and triple faults ---- */

static void test_double_fault(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	put(t, IDT + X86_GP * 8 + 5, X86_SYS_INT32, 1); /* not present */
	CODE_BYTES(t, "\xcd\xf0");			/* past the populated gates: type 0: #GP */
	put(t, IDT + 0xf0 * 8, 0, 8);
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_DF_EXC);
	assert_int_equal(slot(t, 0, 4), 0);
	assert_int_equal(slot(t, 1, 4), CODE);
}

static void test_triple_fault(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	cpu->s.idtr.limit = 0;
	CODE_BYTES(t, "\xcc");
	assert_int_equal(x86_step(cpu), X86_TRIPLE);
	assert_int_equal(cpu->s.activity, X86_SHUTDOWN);
}

/* 4 MiB pages, identity; the second one is missing. */
static void page_hole(struct test_cpu *t)
{
	struct x86_cpu *cpu = &t->cpu;

	for (unsigned i = 0; i < 16; i++)
		put(t, 0x8000 + 4 * i, i << 22 | (i == 1 ? 0 : 0x87), 4);
	cpu->s.cr3 = 0x8000;
	cpu->s.cr4 |= X86_CR4_PSE;
	cpu->s.cr0 |= X86_CR0_PG;
	x86_cpu_load(cpu, &cpu->s);
}

static void test_page_fault_twice(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 3);

	page_hole(t);
	put(t, TSS + 4, 0x400010, 4); /* ESP0 in the hole: pushes of #PF fault, and of #DF too */
	CODE_BYTES(t, "\xa1\x00\x00\x50\x00"); /* mov eax, [0x500000] */
	assert_int_equal(x86_step(cpu), X86_TRIPLE);
	/* The push of an interrupt alone: a page fault, then as above. */
	put(t, TSS + 4, STACK0, 4);
	cpu = start(t, 32, 3);
	cpu->s.activity = X86_RUNNING;
	CODE_BYTES(t, "\xa1\x00\x00\x50\x00");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_PF_EXC);
	assert_int_equal(cpu->s.cr2, 0x500000);
	assert_int_equal(slot(t, 0, 4), X86_PFEC_U);
}

/* ---- long mode ---- */

static void test_int_inner_64(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 3);

	put(t, TSS + 4, STACK0 + 8, 8); /* rounded down */
	set_gate(t, 0x80, KCODE, X86_SYS_INT32, 3, 0);
	CODE_BYTES(t, "\xcd\x80");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, 0x80);
	assert_int_equal(cpu->mode, 64);
	assert_int_equal(cpu->s.seg[X86_SS].selector, 0);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0 - 40);
	assert_int_equal(slot(t, 0, 8), CODE + 2);
	assert_int_equal(slot(t, 1, 8), UCODE64);
	assert_int_equal(slot(t, 2, 8), X86_FLAGS_FIXED | X86_IF);
	assert_int_equal(slot(t, 3, 8), STACK3);
	assert_int_equal(slot(t, 4, 8), UDATA);

	CODE_BYTES(t, "\x48\xcf"); /* iretq */
	cpu->s.nmi_blocked = true;
	cpu->s.seg[X86_FS] = x86_segment_null(0, 0);
	cpu->s.seg[X86_FS].base = 0x123456789000ull; /* a thread pointer */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.reg[X86_RIP], CODE + 2);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK3);
	assert_int_equal(cpu->s.rflags, X86_FLAGS_FIXED | X86_IF);
	assert_false(cpu->s.nmi_blocked);
	assert_int_equal(cpu->s.seg[X86_FS].base, 0x123456789000ull);
}

static void test_ist(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 0);
	struct x86_event nmi = {.type = X86_EVENT_NMI, .vector = X86_NMI};

	set_gate(t, X86_NMI, KCODE, X86_SYS_INT32, 0, 3);
	assert_int_equal(x86_deliver(cpu, &nmi), X86_BOUNDARY);
	at_handler(t, X86_NMI);
	assert_true(cpu->s.nmi_blocked);
	assert_int_equal(cpu->s.reg[X86_RSP], (IST3 & ~15u) - 40);
	assert_int_equal(cpu->s.seg[X86_SS].selector, KDATA); /* same privilege: SS stays */
	assert_int_equal(slot(t, 3, 8), STACK0);
	assert_int_equal(slot(t, 4, 8), KDATA);
}

static void test_exception_same_privilege_64(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 0);

	cpu->s.reg[X86_RSP] = STACK0 - 3;
	CODE_BYTES(t, "\x0f\x0b"); /* ud2 */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_UD);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0 - 16 - 40);
	assert_int_equal(slot(t, 0, 8), CODE);
	assert_int_equal(slot(t, 2, 8), X86_FLAGS_FIXED | X86_IF | X86_RF);
	assert_int_equal(slot(t, 3, 8), STACK0 - 3);
}

static void test_gate_to_compat_code(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 0);

	set_descriptor(t, FREE, 0, 0xfffff, A_CODE | A_BIG); /* 32-bit code */
	set_gate(t, 0x80, FREE, X86_SYS_INT32, 0, 0);
	CODE_BYTES(t, "\xcd\x80");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_GP);
	assert_int_equal(slot(t, 0, 8), FREE);
}

static void test_noncanonical_stack(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 0);

	cpu->s.reg[X86_RSP] = 0x0000800000000100ull;
	set_gate(t, X86_SS_EXC, KCODE, X86_SYS_INT32, 0, 3);
	CODE_BYTES(t, "\xcc");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_SS_EXC);
	assert_int_equal(slot(t, 0, 8), 0);
}

static void test_iret_null_ss(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 0);
	uint64_t frame[5] = {CODE + 64, KCODE, X86_FLAGS_FIXED, STACK1, 0};

	cpu->s.reg[X86_RSP] = STACK0 - 40;
	memcpy(test_host(t, STACK0 - 40), frame, sizeof(frame));
	CODE_BYTES(t, "\x48\xcf");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RIP], CODE + 64);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK1);
	assert_int_equal(cpu->s.seg[X86_SS].selector, 0);
	assert_int_equal(cpu->cpl, 0);
	/* To privilege 3 a null SS is refused. */
	frame[1] = UCODE64;
	frame[4] = 3;
	cpu->s.reg[X86_RSP] = STACK0 - 40;
	memcpy(test_host(t, STACK0 - 40), frame, sizeof(frame));
	CODE_BYTES(t, "\x48\xcf");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_GP);
	assert_int_equal(slot(t, 0, 8), 0);
}

static void test_iret_to_compat(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 0);
	uint64_t frame[5] = {0x12345, UCODE, X86_FLAGS_FIXED | X86_IF, 0x9988, UDATA};

	cpu->s.seg[X86_DS] = cpu->s.seg[X86_SS]; /* a privileged one */
	cpu->s.reg[X86_RSP] = STACK0 - 40;
	memcpy(test_host(t, STACK0 - 40), frame, sizeof(frame));
	CODE_BYTES(t, "\x48\xcf");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->mode, 32);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.reg[X86_RSP], 0x9988);
	assert_int_equal(cpu->s.seg[X86_DS].selector, 0);
	assert_false(cpu->s.seg[X86_DS].attr & X86_SEG_P);
}

/* ---- virtual-8086 mode ---- */

static struct x86_cpu *enter_v86(struct test_cpu *t, uint32_t iopl)
{
	struct x86_cpu *cpu = start(t, 32, 0);
	uint32_t frame[9] = {0x100, 0x1100, X86_FLAGS_FIXED | X86_VM | X86_IF | iopl, 0x8000,
		0x3000, 0x4000, 0x5000, 0x6000, 0x7000};

	cpu->s.reg[X86_RSP] = STACK0 - 36;
	memcpy(test_host(t, STACK0 - 36), frame, sizeof(frame));
	CODE_BYTES(t, "\xcf");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	return cpu;
}

static void test_v86(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = enter_v86(t, 0);

	assert_int_equal(cpu->cpl, 3);
	assert_true(cpu->real);
	assert_int_equal(cpu->mode, 16);
	assert_int_equal(cpu->s.seg[X86_CS].base, 0x11000);
	assert_int_equal(cpu->s.seg[X86_ES].base, 0x40000);
	assert_int_equal(cpu->s.seg[X86_GS].selector, 0x7000);
	assert_int_equal(cpu->s.reg[X86_RSP], 0x8000);
	CODE_BYTES(t, "\x0f\x0b"); /* ud2: out to the monitor */
	x86_step(cpu);
	at_handler(t, X86_UD);
	assert_false(cpu->s.rflags & X86_VM);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0 - 36);
	assert_int_equal(slot(t, 0, 4), 0x100);
	assert_int_equal(slot(t, 1, 4), 0x1100);
	assert_true(slot(t, 2, 4) & X86_VM);
	assert_int_equal(slot(t, 3, 4), 0x8000);
	assert_int_equal(slot(t, 4, 4), 0x3000);
	assert_int_equal(slot(t, 5, 4), 0x4000);
	assert_int_equal(slot(t, 8, 4), 0x7000);
	assert_int_equal(cpu->s.seg[X86_DS].selector, 0);
	/* INT n needs IOPL 3, and then a gate that privilege 3 may use. */
	set_gate(t, 0x21, KCODE, X86_SYS_INT32, 3, 0);
	cpu = enter_v86(t, 0);
	CODE_BYTES(t, "\xcd\x21");
	x86_step(cpu);
	at_handler(t, X86_GP);
	assert_int_equal(slot(t, 0, 4), 0);
	cpu = enter_v86(t, X86_IOPL);
	set_gate(t, 0x21, KCODE, X86_SYS_INT32, 3, 0);
	x86_step(cpu);
	at_handler(t, 0x21);
	assert_int_equal(slot(t, 0, 4), 0x102);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_int_inner_32),
		TEST(test_trap_gate_keeps_if),
		TEST(test_gate_16),
		TEST(test_int_not_allowed),
		TEST(test_external_not_present),
		TEST(test_bad_tss_stack),
		TEST(test_frame_page_fault),
		TEST(test_double_fault),
		TEST(test_triple_fault),
		TEST(test_page_fault_twice),
		TEST(test_int_inner_64),
		TEST(test_ist),
		TEST(test_exception_same_privilege_64),
		TEST(test_gate_to_compat_code),
		TEST(test_noncanonical_stack),
		TEST(test_iret_null_ss),
		TEST(test_iret_to_compat),
		TEST(test_v86),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
