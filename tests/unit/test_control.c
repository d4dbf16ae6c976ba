/*
 * Control registers, EFER and the modes they switch between; MSRs; XCR0; debug registers; the I/O
 * permission map; and the instructions that stand directly on them.
 */
#include "isa/x86/msr.h"
#include "isa/x86/semantics.h"
#include "tests/unit/x86_cpu.h"

static int setup(void **state)
{
	*state = test_cpu_new();
	return 0;
}

static int teardown(void **state)
{
	test_cpu_free(*state);
	return 0;
}

static void expect_gp(struct test_cpu *t, enum x86_status status)
{
	assert_int_equal(status, X86_FAULT);
	assert_int_equal(t->cpu.fault.vector, X86_GP);
	assert_true(t->cpu.fault.has_error);
	assert_int_equal(t->cpu.fault.error, 0);
}

static void expect_ud(struct test_cpu *t, enum x86_status status)
{
	assert_int_equal(status, X86_FAULT);
	assert_int_equal(t->cpu.fault.vector, X86_UD);
}

/* ---- the transition matrix ---- */

#define PE    X86_CR0_PE
#define PG    X86_CR0_PG
#define NW    X86_CR0_NW
#define CD    X86_CR0_CD
#define PAE   X86_CR4_PAE
#define PCIDE X86_CR4_PCIDE
#define LME   X86_EFER_LME
#define LMA   X86_EFER_LMA

/* A mode to start from. */
static const struct start {
	const char *name;
	uint64_t cr0, cr3, cr4, efer;
	unsigned bits; /* code size */
} starts[] = {
	{"real", 0, 0, 0, 0, 16},
	{"protected", PE, 0, 0, 0, 32},
	{"paged", PE | PG, 0x1000, 0, 0, 32},
	{"pae off", PE, 0x1000, PAE, 0, 32},
	{"pae", PE | PG, 0x1000, PAE, 0, 32},
	{"lme", PE, 0x1000, PAE, LME, 32},
	{"lme no pae", PE, 0x1000, 0, LME, 32},
	{"lme code64", PE, 0x1000, PAE, LME, 64},
	{"compat", PE | PG, 0x1000, PAE, LME | LMA, 32},
	{"long", PE | PG, 0x1000, PAE, LME | LMA, 64},
	{"long pcid", PE | PG, 0x1005, PAE | PCIDE, LME | LMA, 64},
	{"compat pcid", PE | PG, 0x1000, PAE | PCIDE, LME | LMA, 32},
	{"long cr3 low bits", PE | PG, 0x1018, PAE, LME | LMA, 64},
};

enum target { TO_CR0, TO_CR3, TO_CR4, TO_EFER };

static const struct transition {
	const char *from;
	enum target target;
	uint64_t value;
	bool ok;
	uint64_t efer; /* afterwards, if ok */
} transitions[] = {
	/* CR0 */
	{"real", TO_CR0, PE, true, 0},
	{"real", TO_CR0, PG, false, 0},
	{"real", TO_CR0, PE | PG, true, 0},
	{"real", TO_CR0, NW, false, 0},
	{"real", TO_CR0, NW | CD, true, 0},
	{"real", TO_CR0, BIT(32) | PE, false, 0},
	{"real", TO_CR0, BIT(63), false, 0},
	{"real", TO_CR0, 0x1ff8ffc0, true, 0}, /* reserved bits are dropped */
	{"protected", TO_CR0, 0, true, 0},
	{"paged", TO_CR0, PE, true, 0},
	{"paged", TO_CR0, PG, false, 0},
	{"paged", TO_CR0, 0, true, 0},
	{"pae off", TO_CR0, PE | PG, true, 0},
	{"lme", TO_CR0, PE | PG, true, LME | LMA},
	{"lme no pae", TO_CR0, PE | PG, false, 0},
	{"lme code64", TO_CR0, PE | PG, false, 0},
	{"compat", TO_CR0, PE, true, LME},
	{"long", TO_CR0, PE, false, 0},
	{"long", TO_CR0, PE | PG | X86_CR0_WP, true, LME | LMA},
	{"compat pcid", TO_CR0, PE, false, 0},
	/* CR3 */
	{"paged", TO_CR3, 0xfffff018, true, 0},
	{"long", TO_CR3, BIT(TEST_PHYS_BITS) - 1, true, LME | LMA},
	{"long", TO_CR3, BIT(TEST_PHYS_BITS), false, 0},
	{"long", TO_CR3, BIT(63) | 0x1000, false, 0},
	{"long pcid", TO_CR3, BIT(63) | 0x1000, true, LME | LMA},
	{"long pcid", TO_CR3, BIT(62) | 0x1000, false, 0},
	/* CR4 */
	{"real", TO_CR4, PAE, true, 0},
	{"real", TO_CR4, X86_CR4_LA57, false, 0},
	{"real", TO_CR4, X86_CR4_VME, false, 0},
	{"real", TO_CR4, X86_CR4_PKE, false, 0},
	{"real", TO_CR4, BIT(13), false, 0}, /* VMXE */
	{"real", TO_CR4, BIT(15), false, 0},
	{"real", TO_CR4, BIT(23), false, 0}, /* CET */
	{"real", TO_CR4, BIT(32), false, 0},
	{"real", TO_CR4, X86_CR4_OSXSAVE | X86_CR4_OSFXSR | X86_CR4_FSGSBASE, true, 0},
	{"real", TO_CR4, PCIDE, false, 0},
	{"pae", TO_CR4, PAE | PCIDE, false, 0},
	{"pae", TO_CR4, 0, true, 0},
	{"long", TO_CR4, 0, false, 0},
	{"compat", TO_CR4, 0, false, 0},
	{"long", TO_CR4, PAE | PCIDE, true, LME | LMA},
	{"compat", TO_CR4, PAE | PCIDE, true, LME | LMA},
	{"long cr3 low bits", TO_CR4, PAE | PCIDE, false, 0},
	{"long pcid", TO_CR4, PAE, true, LME | LMA},
	{"long pcid", TO_CR4, PAE | PCIDE | X86_CR4_PGE, true, LME | LMA},
	/* EFER */
	{"real", TO_EFER, LME, true, LME},
	{"protected", TO_EFER, LME | X86_EFER_SCE | X86_EFER_NXE, true,
		LME | X86_EFER_SCE | X86_EFER_NXE},
	{"protected", TO_EFER, LMA, true, 0}, /* LMA cannot be written */
	{"paged", TO_EFER, LME, false, 0},
	{"paged", TO_EFER, X86_EFER_NXE, true, X86_EFER_NXE},
	{"long", TO_EFER, 0, false, 0},
	{"long", TO_EFER, LME, true, LME | LMA},
	{"real", TO_EFER, BIT(1), false, 0},
	{"real", TO_EFER, BIT(12), false, 0}, /* SVME */
	{"real", TO_EFER, BIT(63), false, 0},
};

static const struct start *start_find(const char *name)
{
	for (unsigned i = 0; i < ARRAY_SIZE(starts); i++)
		if (!strcmp(starts[i].name, name))
			return &starts[i];
	fail_msg("no start %s", name);
	return NULL;
}

static void start_from(struct test_cpu *t, const struct start *start)
{
	struct x86_state *s = &t->cpu.s;

	x86_state_reset(s);
	if (start->bits != 16)
		test_protected(t, start->bits, 0);
	s->cr0 = start->cr0 | X86_CR0_ET;
	s->cr3 = start->cr3;
	s->cr4 = start->cr4;
	s->msr.efer = start->efer;
	x86_cpu_refresh(&t->cpu);
}

static uint64_t *target_reg(struct x86_state *s, enum target target)
{
	switch (target) {
	case TO_CR0: return &s->cr0;
	case TO_CR3: return &s->cr3;
	case TO_CR4: return &s->cr4;
	default: return &s->msr.efer;
	}
}

static enum x86_status target_write(struct x86_cpu *cpu, enum target target, uint64_t value)
{
	static const unsigned number[] = {0, 3, 4};
	if (target == TO_EFER)
		return x86_write_msr(cpu, X86_MSR_EFER, value);
	return x86_write_cr(cpu, number[target], value);
}

static void test_transitions(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(transitions); i++) {
		const struct transition *r = &transitions[i];
		const struct start *start = start_find(r->from);
		start_from(t, start);
		const struct x86_state before = t->cpu.s;
		enum x86_status status = target_write(&t->cpu, r->target, r->value);
		if ((status != X86_FAULT) != r->ok)
			fail_msg("row %u: from %s", i, r->from);
		if (!r->ok) {
			expect_gp(t, status);
			assert_memory_equal(&before, &t->cpu.s, sizeof(before));
			continue;
		}
		assert_true(t->cpu.s.msr.efer == r->efer);
		assert_int_equal(t->cpu.long_mode, !!(r->efer & LMA));
		if (r->target == TO_CR4)
			assert_true(t->cpu.s.cr4 == r->value);
		if (r->target == TO_CR3)
			assert_true(t->cpu.s.cr3 == (r->value & ~BIT(63)));
		if (r->target == TO_CR0)
			assert_true(t->cpu.s.cr0 == ((r->value & 0xe005003f) | X86_CR0_ET));
		assert_non_null(target_reg(&t->cpu.s, r->target));
	}
}

/* Each CR4 bit is there exactly when its feature is. */
static void test_cr4_features(void **state)
{
	static const struct {
		uint64_t bit;
		unsigned feature;
	} rows[] = {
		{X86_CR4_PGE, X86_F_PGE},
		{X86_CR4_SMEP, X86_F_SMEP},
		{X86_CR4_SMAP, X86_F_SMAP},
		{X86_CR4_UMIP, X86_F_UMIP},
		{X86_CR4_FSGSBASE, X86_F_FSGSBASE},
		{X86_CR4_OSXSAVE, X86_F_XSAVE},
		{X86_CR4_OSFXSR, X86_F_FXSR},
	};
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		assert_int_equal(x86_write_cr(&t->cpu, 4, rows[i].bit), X86_BOUNDARY);
		assert_int_equal(x86_write_cr(&t->cpu, 4, 0), X86_BOUNDARY);
		test_feature(t, rows[i].feature, false);
		expect_gp(t, x86_write_cr(&t->cpu, 4, rows[i].bit));
	}
}

/* PDPTEs are loaded by CR3, and by CR0 and CR4 writes that matter to them; a bad one is #GP(0). */
static void test_pdpte_loads(void **state)
{
	struct test_cpu *t = *state;
	uint64_t *good = test_host(t, 0x1000), *bad = test_host(t, 0x2000);

	good[0] = 0x5001;
	bad[1] = 0x6003;
	start_from(t, start_find("pae"));
	assert_int_equal(x86_write_cr(&t->cpu, 3, 0x1000), X86_BOUNDARY);
	assert_true(t->cpu.s.pdpte[0] == 0x5001);
	expect_gp(t, x86_write_cr(&t->cpu, 3, 0x2000));
	assert_true(t->cpu.s.cr3 == 0x1000 && t->cpu.s.pdpte[1] == 0);
	good[0] = 0x7001;
	assert_int_equal(x86_write_cr(&t->cpu, 4, PAE | X86_CR4_PGE), X86_BOUNDARY);
	assert_true(t->cpu.s.pdpte[0] == 0x7001);
	good[0] = 0x8003;
	expect_gp(t, x86_write_cr(&t->cpu, 4, PAE));
	assert_true(t->cpu.s.pdpte[0] == 0x7001);
	start_from(t, start_find("pae off"));
	expect_gp(t, x86_write_cr(&t->cpu, 0, PE | PG));
	good[0] = 0x9001;
	assert_int_equal(x86_write_cr(&t->cpu, 0, PE | PG), X86_BOUNDARY);
	assert_true(t->cpu.s.pdpte[0] == 0x9001);
}

/* Which writes drop cached translations. */
static void test_flushes(void **state)
{
	static const struct {
		enum target target;
		uint64_t value;
		bool local, global; /* dropped? */
	} rows[] = {
		{TO_CR0, PE | PG | X86_CR0_TS, false, false},
		{TO_CR0, PE | PG | X86_CR0_WP, true, true},
		{TO_CR3, 0x1000, true, false},
		{TO_CR4, PAE | X86_CR4_PGE | X86_CR4_TSD, false, false},
		{TO_CR4, PAE, true, true},
		{TO_CR4, PAE | X86_CR4_PGE | X86_CR4_SMEP, true, true},
		{TO_CR4, PAE | X86_CR4_PGE | X86_CR4_SMAP, true, true},
		{TO_EFER, LME | X86_EFER_SCE, false, false},
		{TO_EFER, LME | X86_EFER_NXE, true, true},
	};
	struct test_cpu *t = *state;
	uint64_t *table = test_host(t, 0x1000);

	table[0] = 0x2003;
	table[0x1000 / 8] = 0x3003;
	table[0x2000 / 8] = 0x83;		  /* 2M */
	table[0x2000 / 8 + 1] = 0x200000 | 0x183; /* global */
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		gpa_t gpa;
		start_from(t, start_find("long"));
		t->cpu.s.cr4 |= X86_CR4_PGE;
		x86_tlb_flush(&t->cpu);
		assert_int_equal(x86_translate(&t->cpu, 0x5000, X86_READ, false, &gpa), X86_OK);
		assert_int_equal(x86_translate(&t->cpu, 0x206000, X86_READ, false, &gpa), X86_OK);
		assert_int_not_equal(
			target_write(&t->cpu, rows[i].target, rows[i].value), X86_FAULT);
		assert_int_equal(!x86_tlb_host(&t->cpu, 0x5000, 1, X86_READ), rows[i].local);
		assert_int_equal(!x86_tlb_host(&t->cpu, 0x206000, 1, X86_READ), rows[i].global);
	}
}

static void test_cr8_and_bad_numbers(void **state)
{
	struct test_cpu *t = *state;

	assert_int_equal(x86_write_cr(&t->cpu, 8, 15), X86_BOUNDARY);
	assert_int_equal(t->cr8, 15);
	expect_gp(t, x86_write_cr(&t->cpu, 8, 16));
	assert_int_equal(x86_write_cr(&t->cpu, 2, ~0ull), X86_BOUNDARY);
	for (unsigned n = 0; n < 16; n++)
		if (n != 0 && n != 2 && n != 3 && n != 4 && n != 8)
			expect_ud(t, x86_write_cr(&t->cpu, n, 0));
}

/* ---- what refresh derives ---- */

static void test_refresh(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = &t->cpu;

	assert_int_equal(cpu->mode, 16);
	assert_true(cpu->real);
	assert_int_equal(cpu->stack_bytes, 2);
	assert_int_equal(cpu->flat, 0);
	cpu->s.seg[X86_SS].attr |= 3 << X86_SEG_DPL_SHIFT;
	x86_cpu_refresh(cpu);
	assert_int_equal(cpu->cpl, 0); /* real mode, whatever SS says */

	test_protected(t, 32, 3);
	assert_int_equal(cpu->mode, 32);
	assert_int_equal(cpu->cpl, 3);
	assert_false(cpu->real);
	assert_int_equal(cpu->stack_bytes, 4);
	assert_int_equal(cpu->flat, 0x3f & ~(1 << X86_CS));
	assert_ptr_equal(cpu->tlb_now, &cpu->context_now->tlb[1]);
	cpu->s.seg[X86_DS].base = 16;
	cpu->s.seg[X86_ES].limit--;
	cpu->s.seg[X86_FS].attr &= (uint16_t)~X86_SEG_WRITE;
	cpu->s.seg[X86_GS].attr |= X86_SEG_EXPAND;
	x86_cpu_refresh(cpu);
	assert_int_equal(cpu->flat, 1 << X86_SS);

	test_protected(t, 32, 0);
	cpu->s.rflags |= X86_VM;
	x86_cpu_refresh(cpu);
	assert_int_equal(cpu->mode, 16);
	assert_int_equal(cpu->cpl, 3);
	assert_true(cpu->real);

	start_from(t, start_find("long"));
	assert_int_equal(cpu->mode, 64);
	assert_int_equal(cpu->stack_bytes, 8);
	assert_ptr_equal(cpu->tlb_now, &cpu->context_now->tlb[0]);
	assert_false(cpu->slow_path);
	cpu->s.rflags |= X86_TF;
	x86_cpu_refresh(cpu);
	assert_true(cpu->slow_path);
	cpu->s.rflags &= ~(uint64_t)X86_TF;
	cpu->s.dr[7] = 0x401;
	x86_cpu_refresh(cpu);
	assert_true(cpu->slow_path);
	assert_false(cpu->watched);
	cpu->s.dr[7] = 0x10401;
	x86_cpu_refresh(cpu);
	assert_true(cpu->watched);
}

static void test_init_and_sipi(void **state)
{
	struct test_cpu *t = *state;
	struct x86_state *s = &t->cpu.s;

	assert_true(s->cr0 == 0x60000010 && s->rflags == 2 && s->reg[X86_RIP] == 0xfff0);
	assert_true(s->seg[X86_CS].base == 0xffff0000 && s->seg[X86_CS].selector == 0xf000);
	start_from(t, start_find("long"));
	s->msr.lstar = 0x1234;
	s->fpu.mxcsr = 0x1fa0;
	s->reg[X86_RBX] = 7;
	s->lapic.apic_base |= 0x100;
	x86_state_init(s);
	assert_int_equal(s->activity, X86_RUNNING); /* the bootstrap processor */
	assert_true(s->msr.lstar == 0x1234 && s->fpu.mxcsr == 0x1fa0);
	assert_true(s->msr.efer == 0 && s->cr4 == 0 && s->cr3 == 0 && s->reg[X86_RBX] == 0);
	assert_true(s->cr0 == X86_CR0_ET);
	s->lapic.apic_base &= ~0x100ull;
	x86_state_init(s);
	assert_int_equal(s->activity, X86_WAIT_FOR_SIPI);
	x86_state_sipi(s, 0x9a);
	assert_int_equal(s->activity, X86_RUNNING);
	assert_true(s->seg[X86_CS].base == 0x9a000 && s->seg[X86_CS].selector == 0x9a00);
	assert_true(s->reg[X86_RIP] == 0);
}

/* ---- MSRs ---- */

static void test_msr_values(void **state)
{
	static const struct {
		uint32_t index;
		uint64_t value;
		bool ok;
	} rows[] = {
		{X86_MSR_STAR, ~0ull, true},
		{X86_MSR_LSTAR, 0xffff800000000000, true},
		{X86_MSR_LSTAR, 0x800000000000, false},
		{X86_MSR_CSTAR, BIT(63), false},
		{X86_MSR_FS_BASE, 0x7fffffffffff, true},
		{X86_MSR_FS_BASE, 0x800000000000, false},
		{X86_MSR_GS_BASE, BIT(62), false},
		{X86_MSR_KERNEL_GS_BASE, 0xffff888000000000, true},
		{X86_MSR_KERNEL_GS_BASE, BIT(47), false},
		{X86_MSR_SYSENTER_EIP, BIT(47), false},
		{X86_MSR_SYSENTER_ESP, 0xffffffff80000000, true},
		{X86_MSR_TSC_AUX, 0xffffffff, true},
		{X86_MSR_TSC_AUX, BIT(32), false},
		{X86_MSR_PAT, 0x0007040600070406, true},
		{X86_MSR_PAT, 0x0007040600070402, false},
		{X86_MSR_PAT, 0x0807040600070406, false},
		{X86_MSR_MTRR_DEF_TYPE, 0xc06, true},
		{X86_MSR_MTRR_DEF_TYPE, 0xc02, false},
		{X86_MSR_MTRR_DEF_TYPE, 0x1c06, false},
		{X86_MSR_MTRR_FIX64K, 0x0606060606060606, true},
		{X86_MSR_MTRR_FIX4K + 7, 0x0706060606060606, false},
		{X86_MSR_MTRR_BASE0, 0x80000006, true},
		{X86_MSR_MTRR_BASE0, 0x80000003, false},
		{X86_MSR_MTRR_BASE0, BIT(TEST_PHYS_BITS), false},
		{X86_MSR_MTRR_BASE0 + 15, 0xff80000800, true},
		{X86_MSR_MTRR_BASE0 + 15, 0xff80000400, false},
		{X86_MSR_MTRR_BASE0 + 16, 0, false},
		{X86_MSR_TSC_ADJUST, 12345, true},
		{X86_MSR_SPEC_CTRL, 0x487, true},
		{X86_MSR_SPEC_CTRL, 8, false},
		{X86_MSR_DEBUGCTL, 3, true},
		{X86_MSR_DEBUGCTL, 4, false},
		{X86_MSR_ARCH_CAPABILITIES, 0, false},
		{X86_MSR_MTRRCAP, 0, false},
		{0x4b564d00, 77, true},	 /* the machine's */
		{0x4b564d01, 77, false}, /* nobody's */
		{0xdeadbeef, 0, false},
	};
	struct test_cpu *t = *state;
	uint64_t value;

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		enum x86_status status = x86_write_msr(&t->cpu, rows[i].index, rows[i].value);
		if ((status == X86_OK) != rows[i].ok)
			fail_msg("row %u", i);
		if (!rows[i].ok) {
			expect_gp(t, status);
			continue;
		}
		assert_int_equal(x86_read_msr(&t->cpu, rows[i].index, &value), X86_OK);
		assert_true(value == rows[i].value);
	}
	/* With neither RDTSCP nor RDPID there is no TSC_AUX. */
	t->cpu.features.bits[X86_F_RDTSCP / 64] &= ~BIT(X86_F_RDTSCP % 64);
	t->cpu.features.bits[X86_F_RDPID / 64] &= ~BIT(X86_F_RDPID % 64);
	expect_gp(t, x86_write_msr(&t->cpu, X86_MSR_TSC_AUX, 1));
	expect_gp(t, x86_read_msr(&t->cpu, X86_MSR_TSC_AUX, &value));
	expect_gp(t, x86_read_msr(&t->cpu, 0xdeadbeef, &value));
	assert_int_equal(x86_read_msr(&t->cpu, X86_MSR_MTRRCAP, &value), X86_OK);
	assert_true(value == 0x508);
	assert_int_equal(x86_read_msr(&t->cpu, X86_MSR_ARCH_CAPABILITIES, &value), X86_OK);
	assert_true((value & 0x3) == 3);
}

static void test_time_stamp(void **state)
{
	struct test_cpu *t = *state;
	uint64_t value;

	t->tsc = 1000;
	assert_int_equal(x86_write_msr(&t->cpu, X86_MSR_TSC_ADJUST, 50), X86_OK);
	x86_read_msr(&t->cpu, X86_MSR_TSC, &value);
	assert_true(value == 1050);
	assert_int_equal(x86_write_msr(&t->cpu, X86_MSR_TSC, 7), X86_OK);
	x86_read_msr(&t->cpu, X86_MSR_TSC, &value);
	assert_true(value == 7);
	x86_read_msr(&t->cpu, X86_MSR_TSC_ADJUST, &value);
	assert_true(value == (uint64_t)-993); /* a write of the TSC shows in TSC_ADJUST */
	t->tsc += 10;
	assert_int_equal(sem_rdtsc(&t->cpu, NULL), X86_OK);
	assert_true(t->cpu.s.reg[X86_RAX] == 17 && t->cpu.s.reg[X86_RDX] == 0);
	test_protected(t, 32, 3);
	t->cpu.s.cr4 |= X86_CR4_TSD;
	expect_gp(t, sem_rdtsc(&t->cpu, NULL));
	expect_gp(t, sem_rdtscp(&t->cpu, NULL));
}

static void test_xcr0(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpuid_leaf *l = NULL;

	for (unsigned i = 0; i < t->model.count; i++)
		if (t->model.leaf[i].leaf == 0xd && t->model.leaf[i].subleaf == 0)
			l = &t->model.leaf[i];
	if (!l)
		l = &t->model.leaf[t->model.count++];
	*l = (struct x86_cpuid_leaf){.leaf = 0xd, .indexed = true, .eax = 7};
	expect_gp(t, x86_write_xcr0(&t->cpu, 0));
	expect_gp(t, x86_write_xcr0(&t->cpu, 2));
	expect_gp(t, x86_write_xcr0(&t->cpu, 5));
	expect_gp(t, x86_write_xcr0(&t->cpu, 0xf));
	expect_gp(t, x86_write_xcr0(&t->cpu, BIT(63) | 7));
	assert_int_equal(x86_write_xcr0(&t->cpu, 3), X86_BOUNDARY);
	assert_int_equal(x86_write_xcr0(&t->cpu, 7), X86_BOUNDARY);

	expect_ud(t, sem_xsetbv(&t->cpu, NULL));
	expect_ud(t, sem_xgetbv(&t->cpu, NULL));
	t->cpu.s.cr4 |= X86_CR4_OSXSAVE;
	t->cpu.s.reg[X86_RAX] = 3;
	t->cpu.s.reg[X86_RCX] = 1;
	expect_gp(t, sem_xsetbv(&t->cpu, NULL));
	t->cpu.s.reg[X86_RCX] = 0;
	t->cpu.s.reg[X86_RDX] = 0;
	assert_int_equal(sem_xsetbv(&t->cpu, NULL), X86_BOUNDARY);
	assert_int_equal(sem_xgetbv(&t->cpu, NULL), X86_OK);
	assert_true(t->cpu.s.reg[X86_RAX] == 3);
	test_protected(t, 32, 3);
	expect_gp(t, sem_xsetbv(&t->cpu, NULL));
}

/* ---- instructions ---- */

static struct x86_insn insn_regs(unsigned kind0, unsigned reg0, unsigned kind1, unsigned reg1)
{
	return (struct x86_insn){.mode = 32,
		.osize = 4,
		.asize = 4,
		.operand_count = 2,
		.op = {{(uint8_t)kind0, (uint8_t)reg0, 4}, {(uint8_t)kind1, (uint8_t)reg1, 4}}};
}

static void test_debug_registers(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = &t->cpu;
	struct x86_insn insn = insn_regs(X86_O_DR, 7, X86_O_GPR, X86_RAX);

	cpu->s.reg[X86_RAX] = 0xffffffff & ~BIT(13);
	assert_int_equal(sem_mov_to_dr(cpu, &insn), X86_BOUNDARY);
	assert_true(cpu->s.dr[7] == 0xffff07ff);
	cpu->s.reg[X86_RAX] = 0;
	assert_int_equal(sem_mov_to_dr(cpu, &insn), X86_BOUNDARY);
	assert_true(cpu->s.dr[7] == 0x400);
	insn.op[0].reg = 4; /* an alias of DR6 */
	cpu->s.reg[X86_RAX] = 0xffffffff;
	assert_int_equal(sem_mov_to_dr(cpu, &insn), X86_BOUNDARY);
	assert_true(cpu->s.dr[6] == 0xffffefff);
	cpu->s.cr4 |= X86_CR4_DE;
	expect_ud(t, sem_mov_to_dr(cpu, &insn));
	insn.mode = 64;
	insn.op[0].reg = 6;
	cpu->s.reg[X86_RAX] = BIT(32);
	expect_gp(t, sem_mov_to_dr(cpu, &insn));
	insn.op[0].reg = 0;
	assert_int_equal(sem_mov_to_dr(cpu, &insn), X86_BOUNDARY);
	assert_true(cpu->s.dr[0] == BIT(32));
	cpu->s.dr[7] |= BIT(13);
	assert_int_equal(sem_mov_to_dr(cpu, &insn), X86_FAULT);
	assert_int_equal(cpu->fault.vector, X86_DB);
	assert_true(cpu->fault.dr6 == BIT(13));
}

static void test_watch(void **state)
{
	static const struct {
		uint32_t length, kind; /* of DR0 in DR7 */
		uint64_t at, start;
		unsigned size;
		enum x86_access access;
		bool hit;
	} rows[] = {
		{0, 1, 0x1000, 0x1000, 1, X86_WRITE, true},
		{0, 1, 0x1000, 0x1000, 1, X86_READ, false},
		{0, 3, 0x1000, 0x1000, 1, X86_READ, true},
		{0, 3, 0x1000, 0x1000, 1, X86_EXEC, false},
		{0, 3, 0x1000, 0xffe, 2, X86_READ, false},
		{0, 3, 0x1000, 0xffe, 4, X86_READ, true},
		{3, 3, 0x1003, 0x1000, 1, X86_READ, true}, /* low address bits do not count */
		{3, 3, 0x1000, 0x1003, 8, X86_READ, true},
		{3, 3, 0x1000, 0x1004, 8, X86_READ, false},
		{2, 3, 0x1000, 0x1007, 1, X86_READ, true},
		{1, 3, 0x1000, 0x1002, 1, X86_READ, false},
		{0, 0, 0x1000, 0x1000, 1, X86_READ, false},
	};
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		t->cpu.watch_hit = 0;
		t->cpu.s.dr[0] = rows[i].at;
		t->cpu.s.dr[7] = 0x401 | rows[i].kind << 16 | rows[i].length << 18;
		x86_watch(&t->cpu, rows[i].start, rows[i].size, rows[i].access);
		if (t->cpu.watch_hit != rows[i].hit)
			fail_msg("row %u", i);
	}
}

static void test_smsw_lmsw(void **state)
{
	struct test_cpu *t = *state;
	struct x86_insn insn = insn_regs(X86_O_GPR, X86_RBX, 0, 0);

	insn.op[0].size = 2;
	t->cpu.s.reg[X86_RBX] = 0x55550000 | X86_CR0_PE | X86_CR0_TS | X86_CR0_NE;
	assert_int_equal(sem_lmsw(&t->cpu, &insn), X86_BOUNDARY);
	assert_true(t->cpu.s.cr0 == (0x60000010 | X86_CR0_PE | X86_CR0_TS));
	t->cpu.s.reg[X86_RBX] = 0;
	assert_int_equal(sem_lmsw(&t->cpu, &insn), X86_BOUNDARY);
	assert_true(t->cpu.s.cr0 == (0x60000010 | X86_CR0_PE)); /* PE stays */
	insn.op[0].size = 4;
	assert_int_equal(sem_smsw(&t->cpu, &insn), X86_OK);
	assert_true(t->cpu.s.reg[X86_RBX] == (0x60000010 | X86_CR0_PE));
}

static void test_io_permission(void **state)
{
	struct test_cpu *t = *state;
	struct x86_state *s = &t->cpu.s;
	uint8_t *tss = test_host(t, 0x3000);

	test_protected(t, 32, 3);
	s->tr = (struct x86_segment){
		.base = 0x3000, .limit = 0x68 + 0x2000, .attr = X86_SEG_P | 11};
	memset(tss, 0, 0x3000);
	tss[0x66] = 0x68;
	assert_int_equal(x86_check_io(&t->cpu, 0x3f8, 4), X86_OK);
	tss[0x68 + 0x3ff / 8] = 0x80;
	assert_int_equal(x86_check_io(&t->cpu, 0x3f8, 4), X86_OK);
	expect_gp(t, x86_check_io(&t->cpu, 0x3ff, 1));
	expect_gp(t, x86_check_io(&t->cpu, 0x3fc, 4));
	expect_gp(t, x86_check_io(&t->cpu, 0x3fe, 2));
	assert_int_equal(x86_check_io(&t->cpu, 0x400, 4), X86_OK);
	tss[0x68 + 0x400 / 8] = 1;
	tss[0x68 + 0x3ff / 8] = 0;
	assert_int_equal(x86_check_io(&t->cpu, 0x3ff, 1), X86_OK);
	expect_gp(t, x86_check_io(&t->cpu, 0x3ff, 2)); /* the port is in the next byte */
	s->rflags |= X86_IOPL;
	assert_int_equal(x86_check_io(&t->cpu, 0x3ff, 2), X86_OK);
	s->rflags |= X86_VM; /* the map counts there whatever IOPL is */
	x86_cpu_refresh(&t->cpu);
	expect_gp(t, x86_check_io(&t->cpu, 0x3ff, 2));
	s->rflags = X86_FLAGS_FIXED;
	x86_cpu_refresh(&t->cpu);
	s->tr.limit = 0x68 + 0x7f; /* too short for port 0x3f8 */
	assert_int_equal(x86_check_io(&t->cpu, 0x3f0, 1), X86_OK);
	expect_gp(t, x86_check_io(&t->cpu, 0x3f8, 1));
	s->tr.limit = 0x60;
	expect_gp(t, x86_check_io(&t->cpu, 0, 1));
	s->tr.attr = X86_SEG_P | 3; /* a 16-bit TSS has no map */
	s->tr.limit = 0x2100;
	expect_gp(t, x86_check_io(&t->cpu, 0, 1));
	test_protected(t, 32, 0);
	assert_int_equal(x86_check_io(&t->cpu, 0, 1), X86_OK);
}

static void test_invpcid(void **state)
{
	static const struct {
		uint64_t type, pcid, linear;
		bool ok, pcide, drops;
	} rows[] = {
		{0, 0, 0x5000, true, false, true},
		{0, 1, 0x5000, false, false},
		{0, 1, 0x5000, true, true, true}, /* more than asked for */
		{0, 0, BIT(47), false, true},
		{1, 5, BIT(47), true, true, true},
		{1, 0xfff, BIT(47), true, true, false},
		{1, 0x1000, 0, false, true},
		{2, 5, 0, true, false, true},
		{3, 5, 0, true, false, true},
		{4, 0, 0, false, true},
		{BIT(32), 0, 0, false, true},
	};
	struct test_cpu *t = *state;
	struct x86_insn insn = insn_regs(X86_O_GPR, X86_RAX, X86_O_MEM, 0);
	uint64_t *descriptor = test_host(t, 0x1f00000);
	uint64_t *table = test_host(t, 0x1000);

	table[0] = 0x2003;
	table[0x1000 / 8] = 0x3003;
	for (unsigned i = 0; i < 16; i++)
		table[0x2000 / 8 + i] = i << 21 | 0x83;
	insn.mode = 64;
	insn.asize = 8;
	insn.seg = X86_DS;
	insn.base = insn.index = X86_ZERO;
	insn.disp = 0x1f00000;
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		gpa_t gpa;
		start_from(t, start_find(rows[i].pcide ? "long pcid" : "long"));
		x86_tlb_flush(&t->cpu);
		assert_int_equal(x86_translate(&t->cpu, 0x5000, X86_READ, false, &gpa), X86_OK);
		t->cpu.s.reg[X86_RAX] = rows[i].type;
		descriptor[0] = rows[i].pcid;
		descriptor[1] = rows[i].linear;
		enum x86_status status = sem_invpcid(&t->cpu, &insn);
		if ((status == X86_BOUNDARY) != rows[i].ok)
			fail_msg("row %u", i);
		if (!rows[i].ok)
			expect_gp(t, status);
		assert_int_equal(!x86_tlb_host(&t->cpu, 0x5000, 1, X86_READ), rows[i].drops);
	}
}

static void test_port_io(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = &t->cpu;
	struct x86_insn insn = insn_regs(X86_O_GPR, X86_RAX, X86_O_IMM, 0);

	test_protected(t, 32, 0);
	insn.imm = 0x70;
	insn.op[0].size = 1;
	t->pio_value = 0x11223344;
	cpu->s.reg[X86_RAX] = ~0ull;
	assert_int_equal(sem_in_imm(cpu, &insn), X86_BOUNDARY);
	assert_true(cpu->s.reg[X86_RAX] == 0xffffffffffffff44);
	assert_int_equal(t->pio_port, 0x70);
	insn.op[0].size = 4;
	cpu->s.reg[X86_RDX] = 0xabcd03f8;
	assert_int_equal(sem_in_dx(cpu, &insn), X86_BOUNDARY);
	assert_true(cpu->s.reg[X86_RAX] == 0x11223345);
	assert_int_equal(t->pio_port, 0x3f8);
	insn.op[1].size = 2;
	assert_int_equal(sem_out_dx(cpu, &insn), X86_BOUNDARY);
	assert_int_equal(t->pio_value, 0x3345);
	assert_int_equal(t->pio_size, 2);
}

static void test_string_io(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = &t->cpu;
	struct x86_insn insn = insn_regs(X86_O_MEM, 0, X86_O_GPR, X86_RDX);
	const uint16_t *out = test_host(t, 0x5000);

	/* REP INSW of 3, then of more than is done at once. */
	test_protected(t, 32, 0);
	insn.op[0].size = 2;
	insn.prefix = X86_P_REP;
	cpu->s.reg[X86_RDI] = 0x5000;
	cpu->s.reg[X86_RCX] = 3;
	cpu->s.reg[X86_RDX] = 0x1f0;
	t->pio_value = 100;
	assert_int_equal(sem_ins(cpu, &insn), X86_BOUNDARY);
	assert_true(out[0] == 100 && out[1] == 101 && out[2] == 102 && out[3] == 0);
	assert_true(cpu->s.reg[X86_RDI] == 0x5006 && cpu->s.reg[X86_RCX] == 0);
	t->pio_count = 0;
	assert_int_equal(sem_ins(cpu, &insn), X86_BOUNDARY); /* a count of 0 */
	assert_int_equal(t->pio_count, 0);
	cpu->s.reg[X86_RCX] = 3000;
	assert_int_equal(sem_ins(cpu, &insn), X86_REPEAT);
	assert_true(cpu->s.reg[X86_RCX] == 3000 - 2048);
	assert_int_equal(sem_ins(cpu, &insn), X86_BOUNDARY);
	assert_int_equal(t->pio_count, 3000);

	/* Backwards OUTSB. */
	insn = insn_regs(X86_O_GPR, X86_RDX, X86_O_MEM, 0);
	insn.op[1].size = 1;
	insn.seg = X86_DS;
	cpu->s.rflags |= X86_DF;
	cpu->s.reg[X86_RSI] = 0x5000;
	assert_int_equal(sem_outs(cpu, &insn), X86_BOUNDARY);
	assert_int_equal(t->pio_value, 100);
	assert_true(cpu->s.reg[X86_RSI] == 0x4fff);

	/* A store that would fault does so before the device is read. */
	insn = insn_regs(X86_O_MEM, 0, X86_O_GPR, X86_RDX);
	insn.op[0].size = 4;
	cpu->s.cr0 |= X86_CR0_PG;
	cpu->s.cr3 = 0x6000;
	x86_tlb_flush(cpu);
	t->pio_count = 0;
	assert_int_equal(sem_ins(cpu, &insn), X86_FAULT);
	assert_int_equal(cpu->fault.vector, X86_PF_EXC);
	assert_int_equal(t->pio_count, 0);
}

static void test_hypercall_insn(void **state)
{
	struct test_cpu *t = *state;

	assert_int_equal(sem_vmcall(&t->cpu, NULL), X86_BOUNDARY);
	assert_int_equal(t->hypercalls, 1);
	assert_true(t->cpu.s.reg[X86_RAX] == 42);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_transitions),
		T(test_cr4_features),
		T(test_pdpte_loads),
		T(test_flushes),
		T(test_cr8_and_bad_numbers),
		T(test_refresh),
		T(test_init_and_sipi),
		T(test_msr_values),
		T(test_time_stamp),
		T(test_xcr0),
		T(test_debug_registers),
		T(test_watch),
		T(test_smsw_lmsw),
		T(test_io_permission),
		T(test_invpcid),
		T(test_port_io),
		T(test_string_io),
		T(test_hypercall_insn),
	};
	return cmocka_run_group_tests_name("control", tests, NULL, NULL);
}
