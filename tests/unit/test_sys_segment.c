/*
 * Segment loads and checks, descriptor tables, system calls, interrupt shadows.
 */
#include "tests/unit/x86_tables.h"

/* ---- system calls ---- */

static void set_vendor(struct test_cpu *t, bool amd)
{
	for (unsigned i = 0; i < t->model.count; i++)
		if (t->model.leaf[i].leaf == 0)
			t->model.leaf[i].ebx = amd ? 0x68747541 : 0x756e6547;
}

static void set_syscall(struct x86_cpu *cpu)
{
	cpu->s.msr.efer |= X86_EFER_SCE;
	cpu->s.msr.star = (uint64_t)KCODE << 32 | (uint64_t)UCODE << 48;
	cpu->s.msr.lstar = HANDLER(200);
	cpu->s.msr.cstar = HANDLER(201);
	cpu->s.msr.sfmask = X86_IF | X86_DF;
}

static void test_syscall(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 3);

	CODE_BYTES(t, "\x0f\x05");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY); /* not enabled */
	at_handler(t, X86_UD);
	cpu = start(t, 64, 3);
	set_syscall(cpu);
	cpu->s.rflags |= X86_DF | X86_ZF;
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, 200);
	assert_int_equal(cpu->s.seg[X86_SS].selector, KDATA);
	assert_int_equal(cpu->s.reg[X86_RCX], CODE + 2);
	assert_int_equal(cpu->s.reg[X86_R11], X86_FLAGS_FIXED | X86_IF | X86_DF | X86_ZF);
	assert_int_equal(cpu->s.rflags, X86_FLAGS_FIXED | X86_ZF);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK3);

	CODE_BYTES(t, "\x48\x0f\x07"); /* sysretq */
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RIP], CODE + 2);
	assert_int_equal(cpu->s.seg[X86_CS].selector, UCODE64);
	assert_int_equal(cpu->s.seg[X86_SS].selector, UDATA);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->mode, 64);
	assert_int_equal(cpu->s.rflags, X86_FLAGS_FIXED | X86_IF | X86_DF | X86_ZF);
}

/* Where it is not enabled it does not exist, whatever the privilege. */
static void test_sysret_privilege(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 3);

	CODE_BYTES(t, "\x48\x0f\x07");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_UD);
	cpu = start(t, 64, 3);
	set_syscall(cpu);
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_GP);
}

/* SS is STAR's selector plus 8 as it is; of CS the low bits are cleared. */
static void test_syscall_selectors(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 3);

	set_syscall(cpu);
	cpu->s.msr.star |= 3ull << 32;
	CODE_BYTES(t, "\x0f\x05");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.seg[X86_CS].selector, KCODE);
	assert_int_equal(cpu->s.seg[X86_SS].selector, (KCODE | 3) + 8);
	assert_int_equal(cpu->cpl, 0);
}

/* The trap comes before the first instruction that SYSRET returns to, and goes by the TF it has loaded. */
static void test_sysret_single_step(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned before = 0; before < 2; before++) {
		struct x86_cpu *cpu = start(t, 64, 0);
		set_syscall(cpu);
		cpu->s.rflags |= before ? X86_TF : 0;
		x86_cpu_refresh(cpu);
		cpu->s.reg[X86_RCX] = CODE + 0x100;
		cpu->s.reg[X86_R11] = X86_FLAGS_FIXED | X86_TF;
		CODE_BYTES(t, "\x48\x0f\x07");
		assert_int_equal(x86_step(cpu), X86_BOUNDARY);
		at_handler(t, X86_DB);
		assert_int_equal(slot(t, 0, 8), CODE + 0x100);
		assert_int_equal(slot(t, 1, 8), UCODE64);
		assert_int_equal(cpu->s.dr[6] & BIT(14), BIT(14));
	}
	struct x86_cpu *cpu = start(t, 64, 0);
	set_syscall(cpu);
	cpu->s.rflags |= X86_TF;
	x86_cpu_refresh(cpu);
	cpu->s.reg[X86_RCX] = CODE + 0x100;
	cpu->s.reg[X86_R11] = X86_FLAGS_FIXED;
	CODE_BYTES(t, "\x48\x0f\x07");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RIP], CODE + 0x100);
}

static void test_sysret_compat(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 0);

	set_syscall(cpu);
	cpu->s.reg[X86_RCX] = 0xffffffff00012345ull;
	CODE_BYTES(t, "\x0f\x07");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RIP], 0x12345);
	assert_int_equal(cpu->s.seg[X86_CS].selector, UCODE);
	assert_int_equal(cpu->mode, 32);
}

static void test_sysret_noncanonical(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned amd = 0; amd < 2; amd++) {
		struct x86_cpu *cpu = start(t, 64, 0);
		set_vendor(t, amd);
		set_syscall(cpu);
		cpu->s.reg[X86_RCX] = 1ull << 47;
		CODE_BYTES(t, "\x48\x0f\x07");
		assert_int_equal(x86_step(cpu), X86_BOUNDARY);
		if (amd) {
			assert_int_equal(cpu->cpl, 3);
			assert_int_equal(cpu->s.reg[X86_RIP], 1ull << 47);
		} else {
			at_handler(t, X86_GP);
			assert_int_equal(slot(t, 1, 8), CODE);
			assert_int_equal(slot(t, 2, 8), KCODE);
		}
	}
}

static void test_syscall_from_compat(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned amd = 0; amd < 2; amd++) {
		struct x86_cpu *cpu = start(t, 64, 3);
		set_vendor(t, amd);
		set_syscall(cpu);
		set_seg(t, X86_CS, UCODE);
		CODE_BYTES(t, "\x0f\x05");
		assert_int_equal(x86_step(cpu), X86_BOUNDARY);
		at_handler(t, amd ? 201 : X86_UD);
	}
}

static void test_sysenter(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 3);

	CODE_BYTES(t, "\x0f\x34");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY); /* IA32_SYSENTER_CS is null */
	at_handler(t, X86_GP);
	cpu = start(t, 32, 3);
	cpu->s.msr.sysenter_cs = KCODE;
	cpu->s.msr.sysenter_esp = STACK1;
	cpu->s.msr.sysenter_eip = HANDLER(200);
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, 200);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK1);
	assert_false(cpu->s.rflags & X86_IF);
	cpu->s.reg[X86_RCX] = STACK3;
	cpu->s.reg[X86_RDX] = CODE + 2;
	CODE_BYTES(t, "\x0f\x35");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.seg[X86_CS].selector, KCODE + 16 + 3);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK3);
	assert_int_equal(cpu->s.reg[X86_RIP], CODE + 2);
}

/* ---- segment registers ---- */

/* mov sreg, ax at CPL 0 in 32-bit mode; expects a fault of this vector and error code, or none (0). */
static void try_load(
	struct test_cpu *t, unsigned seg, uint16_t selector, unsigned vector, uint32_t error)
{
	struct x86_cpu *cpu = &t->cpu;
	struct x86_segment before = cpu->s.seg[seg];

	enum x86_status status = x86_load_segment(cpu, (enum x86_seg_index)seg, selector);
	if (!vector) {
		assert_int_equal(status, X86_OK);
		assert_int_equal(cpu->s.seg[seg].selector, selector);
		return;
	}
	assert_int_equal(status, X86_FAULT);
	assert_int_equal(cpu->fault.vector, vector);
	assert_int_equal(cpu->fault.error, error);
	assert_memory_equal(&before, &cpu->s.seg[seg], sizeof(before));
}

static void test_load_segment_checks(void **state)
{
	struct test_cpu *t = *state;

	start(t, 32, 0);
	try_load(t, X86_DS, 0x1000, X86_GP, 0x1000);	 /* past the GDT */
	try_load(t, X86_DS, 0x1003 | 4, X86_GP, 0x1004); /* no LDT */
	try_load(t, X86_DS, 3, 0, 0);
	try_load(t, X86_SS, 0, X86_GP, 0);
	try_load(t, X86_SS, UDATA, X86_GP, UDATA & ~3);
	try_load(t, X86_SS, KDATA | 3, X86_GP, KDATA);
	try_load(t, X86_SS, KCODE, X86_GP, KCODE);
	try_load(t, X86_DS, KDATA | 3, X86_GP, KDATA); /* RPL > DPL */
	try_load(t, X86_ES, TR, X86_GP, TR);
	set_descriptor(t, FREE, 0, 0xffff, A_DATA & ~X86_SEG_P);
	try_load(t, X86_DS, FREE, X86_NP, FREE);
	try_load(t, X86_SS, FREE, X86_SS_EXC, FREE);
	set_descriptor(t, FREE, 0, 0xffff, A_CODE & ~X86_SEG_WRITE); /* execute-only */
	try_load(t, X86_DS, FREE, X86_GP, FREE);
	set_descriptor(t, FREE, 0, 0xffff, A_DATA & ~X86_SEG_WRITE);
	try_load(t, X86_SS, FREE, X86_GP, FREE);
	try_load(t, X86_FS, FREE, 0, 0);
	/* A conforming readable code segment is for everyone, whatever the RPL. */
	set_descriptor(t, FREE, 0, 0xffff, A_CODE | X86_SEG_EXPAND);
	try_load(t, X86_GS, FREE | 3, 0, 0);
}

static void test_accessed_bit(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 3);

	set_descriptor(t, FREE, 0x1234, 0xffff, (A_DATA | A_DPL3) & ~X86_SEG_ACCESSED);
	try_load(t, X86_DS, FREE | 3, 0, 0);
	assert_int_equal(get(t, GDT + FREE + 5, 1), (A_DATA | A_DPL3) & 0xff);
	assert_int_equal(cpu->s.seg[X86_DS].attr, A_DATA | A_DPL3);
	assert_int_equal(cpu->s.seg[X86_DS].base, 0x1234);
	assert_int_equal(cpu->s.seg[X86_DS].limit, 0xffff);
	assert_false(cpu->flat & 1 << X86_DS);
	assert_int_equal(cpu->cpl, 3);
}

static void check_access(
	struct test_cpu *t, uint64_t offset, unsigned size, enum x86_access access, bool good)
{
	gva_t linear;
	enum x86_status status = x86_segment_check(&t->cpu, X86_DS, offset, size, access, &linear);

	assert_int_equal(status, good ? X86_OK : X86_FAULT);
	if (good)
		assert_int_equal(linear, (uint32_t)(t->cpu.s.seg[X86_DS].base + offset));
	else
		assert_int_equal(t->cpu.fault.vector, X86_GP);
}

static void test_limits(void **state)
{
	struct test_cpu *t = *state;

	start(t, 32, 0);
	set_descriptor(t, FREE, 0x5000, 0xfff, A_DATA);
	try_load(t, X86_DS, FREE, 0, 0);
	check_access(t, 0xffc, 4, X86_WRITE, true);
	check_access(t, 0xffd, 4, X86_READ, false);
	check_access(t, 0xffffffff, 4, X86_READ, false);
	/* Expand-down: what is above the limit, up to 64 KiB or 4 GiB. */
	set_descriptor(t, FREE, 0x5000, 0xfff, A_DATA | X86_SEG_EXPAND);
	try_load(t, X86_DS, FREE, 0, 0);
	check_access(t, 0xfff, 1, X86_READ, false);
	check_access(t, 0x1000, 1, X86_READ, true);
	check_access(t, 0xffff, 1, X86_READ, true);
	check_access(t, 0xffff, 2, X86_READ, false);
	set_descriptor(t, FREE, 0x5000, 0xfff, A_DATA | X86_SEG_EXPAND | X86_SEG_DB);
	try_load(t, X86_DS, FREE, 0, 0);
	check_access(t, 0x10000, 4, X86_WRITE, true);
	check_access(t, 0xfff, 4, X86_READ, false);
	set_descriptor(t, FREE, 0, 0xffff, A_DATA & ~X86_SEG_WRITE);
	try_load(t, X86_DS, FREE, 0, 0);
	check_access(t, 0, 4, X86_READ, true);
	check_access(t, 0, 4, X86_WRITE, false);
	try_load(t, X86_DS, KCODE, 0, 0);
	check_access(t, 0, 4, X86_READ, true);
	check_access(t, 0, 4, X86_WRITE, false);
	try_load(t, X86_DS, 0, 0, 0);
	check_access(t, 0, 1, X86_READ, false);
}

/* An instruction really meets the limit: mov eax, [0x1000]. */
static void test_limit_in_code(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	set_descriptor(t, FREE, 0x5000, 0xfff, A_DATA);
	try_load(t, X86_DS, FREE, 0, 0);
	CODE_BYTES(t, "\xa1\x00\x10\x00\x00");
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	at_handler(t, X86_GP);
	assert_int_equal(slot(t, 0, 4), 0);
}

static void test_mov_ss_shadow(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	CODE_BYTES(t, "\x8e\xd0\x90"); /* mov ss, ax; nop */
	cpu->s.reg[X86_RAX] = KDATA;
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_true(cpu->s.mov_ss_shadow);
	assert_false(x86_interruptible(cpu));
	assert_int_equal(x86_step(cpu), X86_OK);
	assert_false(cpu->s.mov_ss_shadow);
	assert_true(x86_interruptible(cpu));
}

static void test_sti(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	cpu->s.rflags &= ~(uint64_t)X86_IF;
	CODE_BYTES(t, "\xfb\xfb\x90\xfa\xf4"); /* sti; sti; nop; cli; hlt */
	x86_step(cpu);
	assert_true(cpu->s.rflags & X86_IF);
	assert_false(x86_interruptible(cpu));
	x86_step(cpu); /* the second one casts no shadow */
	assert_true(x86_interruptible(cpu));
	x86_step(cpu);
	x86_step(cpu);
	assert_false(cpu->s.rflags & X86_IF);
	assert_int_equal(x86_step(cpu), X86_HLT);
	assert_int_equal(cpu->s.activity, X86_HALTED);
	/* Not allowed at privilege 3 without IOPL. */
	cpu = start(t, 32, 3);
	x86_step(cpu);
	at_handler(t, X86_GP);
	cpu = start(t, 32, 3);
	cpu->s.rflags = X86_FLAGS_FIXED | X86_IOPL;
	x86_step(cpu);
	assert_int_equal(cpu->cpl, 3);
	assert_true(cpu->s.rflags & X86_IF);
}

static void test_push_pop_load_far(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	CODE_BYTES(t,
		"\x1e\x07\xc4\x05\x00\x60\x00\x00\x8c\xc3"); /* push ds; pop es; les eax, [0x6000];
								       mov ebx, es */
	cpu->s.seg[X86_ES] = x86_segment_null(0, 0);
	cpu->s.reg[X86_RBX] = ~0ull;
	put(t, 0x6000, 0x11223344, 4);
	put(t, 0x6004, UDATA, 2);
	assert_int_equal(x86_step(cpu), X86_OK);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0 - 4);
	assert_int_equal(slot(t, 0, 4), KDATA);
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.seg[X86_ES].selector, KDATA);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK0);
	assert_int_equal(x86_step(cpu), X86_BOUNDARY);
	assert_int_equal(cpu->s.reg[X86_RAX], 0x11223344);
	x86_step(cpu);
	assert_int_equal(cpu->s.reg[X86_RBX], UDATA);
}

/* ---- descriptors and tables ---- */

static void test_lar_lsl_verr(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 32, 0);

	/* lar eax, bx; lsl ecx, bx; verr bx; verw bx; arpl bx, dx */
	CODE_BYTES(t, "\x0f\x02\xc3\x0f\x03\xcb\x0f\x00\xe3\x0f\x00\xeb\x63\xd3");
	cpu->s.reg[X86_RBX] = KCODE;
	cpu->s.reg[X86_RDX] = 3;
	x86_step(cpu);
	assert_true(cpu->s.rflags & X86_ZF);
	assert_int_equal(cpu->s.reg[X86_RAX] & 0xffff, (A_CODE & 0xff) << 8);
	x86_step(cpu);
	assert_int_equal(cpu->s.reg[X86_RCX], 0xffffffff);
	x86_step(cpu);
	assert_true(cpu->s.rflags & X86_ZF);
	x86_step(cpu);
	assert_false(cpu->s.rflags & X86_ZF);
	x86_step(cpu);
	assert_true(cpu->s.rflags & X86_ZF);
	assert_int_equal(cpu->s.reg[X86_RBX], KCODE | 3);
	/* A selector that is not there only clears ZF. */
	cpu->s.reg[X86_RIP] = CODE;
	cpu->s.reg[X86_RBX] = 0x8000;
	cpu->s.reg[X86_RAX] = 7;
	x86_step(cpu);
	assert_false(cpu->s.rflags & X86_ZF);
	assert_int_equal(cpu->s.reg[X86_RAX], 7);
}

static void test_tables(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 0);

	/* sgdt [rbx]; lgdt [rbx]; ltr cx; lldt dx; str eax */
	CODE_BYTES(t, "\x0f\x01\x03\x0f\x01\x13\x0f\x00\xd9\x0f\x00\xd2\x0f\x00\xc8");
	cpu->s.reg[X86_RBX] = 0x6000;
	cpu->s.reg[X86_RCX] = FREE;
	cpu->s.reg[X86_RDX] = FREE3;
	x86_step(cpu);
	assert_int_equal(get(t, 0x6000, 2), 0x7f);
	assert_int_equal(get(t, 0x6002, 8), GDT);
	x86_step(cpu);
	assert_int_equal(cpu->s.gdtr.base, GDT);
	set_descriptor(t, FREE, TSS2, 0x67, X86_SEG_P | X86_SYS_TSS32);
	put(t, GDT + FREE2, 0xffff8000, 8);
	set_descriptor(t, FREE3, LDT, 0xff, X86_SEG_P | X86_SYS_LDT);
	put(t, GDT + FREE3 + 8, 0, 8);
	assert_int_equal(x86_step(cpu), X86_OK);
	assert_int_equal(cpu->s.tr.base, 0xffff800000000000ull | TSS2);
	assert_int_equal(get(t, GDT + FREE + 5, 1), X86_SEG_P | X86_SYS_TSS32_BUSY);
	assert_int_equal(x86_step(cpu), X86_OK);
	assert_int_equal(cpu->s.ldtr.base, LDT);
	x86_step(cpu);
	assert_int_equal(cpu->s.reg[X86_RAX], FREE);
	/* A busy TSS cannot be loaded again. */
	cpu->s.reg[X86_RIP] = CODE + 6;
	cpu->s.tr.base = TSS;
	x86_step(cpu);
	at_handler(t, X86_GP);
	assert_int_equal(slot(t, 0, 8), FREE);
}

static void test_umip(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 3);

	cpu->s.reg[X86_RBX] = 0x6000;
	CODE_BYTES(t, "\x0f\x01\x03");
	assert_int_equal(x86_step(cpu), X86_OK);
	cpu->s.reg[X86_RIP] = CODE;
	cpu->s.cr4 |= X86_CR4_UMIP;
	x86_step(cpu);
	at_handler(t, X86_GP);
}

static void test_swapgs_bases(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = start(t, 64, 0);

	cpu->s.msr.kernel_gs_base = 0x1111;
	cpu->s.seg[X86_GS].base = 0x2222;
	cpu->s.reg[X86_RAX] = 0xffff888812345678ull;
	/* swapgs; wrfsbase rax; rdfsbase ebx; wrgsbase rcx */
	CODE_BYTES(t, "\x0f\x01\xf8\xf3\x48\x0f\xae\xd0\xf3\x0f\xae\xc3\xf3\x48\x0f\xae\xd9");
	x86_step(cpu);
	assert_int_equal(cpu->s.seg[X86_GS].base, 0x1111);
	assert_int_equal(cpu->s.msr.kernel_gs_base, 0x2222);
	cpu->s.cr4 |= X86_CR4_FSGSBASE;
	x86_step(cpu);
	assert_int_equal(cpu->s.seg[X86_FS].base, 0xffff888812345678ull);
	x86_step(cpu);
	assert_int_equal(cpu->s.reg[X86_RBX], 0x12345678);
	cpu->s.reg[X86_RCX] = 1ull << 47;
	x86_step(cpu);
	at_handler(t, X86_GP);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_syscall),
		TEST(test_sysret_privilege),
		TEST(test_syscall_selectors),
		TEST(test_sysret_single_step),
		TEST(test_sysret_compat),
		TEST(test_sysret_noncanonical),
		TEST(test_syscall_from_compat),
		TEST(test_sysenter),
		TEST(test_load_segment_checks),
		TEST(test_accessed_bit),
		TEST(test_limits),
		TEST(test_limit_in_code),
		TEST(test_mov_ss_shadow),
		TEST(test_sti),
		TEST(test_push_pop_load_far),
		TEST(test_lar_lsl_verr),
		TEST(test_tables),
		TEST(test_umip),
		TEST(test_swapgs_bases),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
