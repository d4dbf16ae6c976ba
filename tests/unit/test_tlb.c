/*
 * The software TLB: contexts by PCID, invalidation across them, branch targets, and writes to pages that hold
 * translated code. What a walk finds is test_mmu.c's.
 */
#include "isa/x86/semantics.h"
#include "tests/unit/x86_cpu.h"

#define P  BIT(0)
#define W  BIT(1)
#define U  BIT(2)
#define A  BIT(5)
#define D  BIT(6)
#define PS BIT(7)
#define G  BIT(8)

#define PML4  0x10000ull
#define PDPT  0x11000ull
#define PD    0x12000ull
#define PT    0x13000ull /* of the first 2 MiB, each to itself */
#define KEEP  BIT(63)	 /* of what is loaded into CR3 */
#define LOCAL 0x5000ull
#define LARGE 0x205000ull /* in the second 2 MiB, a large page */

#define GLOBAL 0x6000ull
#define HIGH(linear) ((linear) | 0xffff888000000000) /* the kernel's half: the same memory by PML4 273 */

static uint64_t *table(struct test_cpu *t, gpa_t gpa)
{
	return test_host(t, gpa);
}

/* 64-bit mode at CPL 0, with PCIDs and global pages. */
static int setup(void **state)
{
	struct test_cpu *t = test_cpu_new();
	struct x86_state *s = &t->cpu.s;

	table(t, PML4)[0] = table(t, PML4)[0x111] = PDPT | P | W | U | A;
	table(t, PDPT)[0] = PD | P | W | U | A;
	table(t, PD)[0] = PT | P | W | U | A;
	table(t, PD)[1] = 0x200000 | P | W | U | A | D | PS;
	for (unsigned i = 0; i < 512; i++)
		table(t, PT)[i] = i << 12 | P | W | U | A | D;
	table(t, PT)[GLOBAL >> 12] |= G;
	s->msr.efer = X86_EFER_LME | X86_EFER_LMA;
	s->cr0 |= X86_CR0_PG | X86_CR0_PE;
	s->cr3 = PML4;
	s->cr4 = X86_CR4_PAE | X86_CR4_PGE | X86_CR4_PCIDE;
	test_protected(t, 64, 0);
	x86_tlb_flush(&t->cpu);
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	test_cpu_free(*state);
	return 0;
}

static void load_cr3(struct test_cpu *t, unsigned pcid, uint64_t keep)
{
	assert_int_equal(x86_write_cr(&t->cpu, 3, PML4 | pcid | keep), X86_BOUNDARY);
	assert_true(t->cpu.s.cr3 == (PML4 | pcid));
}

static void touch(struct test_cpu *t, gva_t linear, enum x86_access access)
{
	gpa_t gpa;
	assert_int_equal(x86_translate(&t->cpu, linear, access, t->cpu.cpl == 3, &gpa), X86_OK);
	assert_true(gpa == (linear & 0x3fffffff));
}

static bool has(struct test_cpu *t, gva_t linear, enum x86_access access)
{
	const void *host = x86_tlb_host(&t->cpu, linear, 8, access);
	if (host)
		assert_ptr_equal(host, test_host(t, linear & 0x3fffffff));
	return host;
}

/* In the present context: the pages that these tests use. */
static void touch_all(struct test_cpu *t)
{
	touch(t, LOCAL, X86_READ);
	touch(t, GLOBAL, X86_READ);
	touch(t, LARGE, X86_READ);
}

/* ---- contexts ---- */

static void test_pcid_keep(void **state)
{
	struct test_cpu *t = *state;

	load_cr3(t, 1, 0);
	touch_all(t);
	load_cr3(t, 2, 0);
	assert_false(has(t, LOCAL, X86_READ));
	touch(t, LOCAL, X86_READ);
	load_cr3(t, 1, KEEP);
	assert_true(has(t, LOCAL, X86_READ) && has(t, GLOBAL, X86_READ) && has(t, LARGE, X86_READ));
	/* Without bit 63 only global pages of that PCID stay, and other PCIDs keep theirs. */
	load_cr3(t, 1, 0);
	assert_true(
		!has(t, LOCAL, X86_READ) && has(t, GLOBAL, X86_READ) && !has(t, LARGE, X86_READ));
	load_cr3(t, 2, KEEP);
	assert_true(has(t, LOCAL, X86_READ));
	/* A PCID of which nothing is known has nothing, whatever bit 63 says. */
	load_cr3(t, 3, KEEP);
	assert_false(has(t, LOCAL, X86_READ));
}

static void test_no_pcid(void **state)
{
	struct test_cpu *t = *state;

	load_cr3(t, 0, 0);
	assert_int_equal(x86_write_cr(&t->cpu, 4, X86_CR4_PAE | X86_CR4_PGE), X86_BOUNDARY);
	touch_all(t);
	/* The low bits are no PCID, but cache control: one context. */
	load_cr3(t, 0x18, 0);
	assert_true(!has(t, LOCAL, X86_READ) && has(t, GLOBAL, X86_READ));
	assert_int_equal(t->cpu.context_now->pcid, 0);
	assert_int_equal(x86_write_cr(&t->cpu, 3, PML4 | KEEP), X86_FAULT);
}

/* The context that was least recently switched to makes room. */
static void test_replacement(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned pcid = 0; pcid < X86_TLB_CONTEXTS; pcid++) {
		load_cr3(t, pcid, 0);
		touch(t, LOCAL, X86_READ);
	}
	load_cr3(t, 0, KEEP);
	load_cr3(t, 0xfff, KEEP); /* in the place of 1 */
	assert_false(has(t, LOCAL, X86_READ));
	for (unsigned pcid = 2; pcid < X86_TLB_CONTEXTS; pcid++) {
		load_cr3(t, pcid, KEEP);
		assert_true(has(t, LOCAL, X86_READ));
	}
	load_cr3(t, 0, KEEP);
	assert_true(has(t, LOCAL, X86_READ));
	load_cr3(t, 1, KEEP);
	assert_false(has(t, LOCAL, X86_READ));
}

/* Loads of CR0, CR4 and whole states leave nothing, in any context. */
static void test_flush_all(void **state)
{
	struct test_cpu *t = *state;
	const uint64_t cr4 = t->cpu.s.cr4;
	struct x86_state saved;

	for (unsigned n = 0; n < 4; n++) {
		load_cr3(t, 1, 0);
		touch_all(t);
		load_cr3(t, 2, 0);
		touch_all(t);
		switch (n) {
		case 0:
			assert_int_equal(x86_write_cr(&t->cpu, 4, cr4 ^ X86_CR4_PGE), X86_BOUNDARY);
			break;
		case 1: assert_int_equal(x86_write_cr(&t->cpu, 4, cr4), X86_BOUNDARY); break;
		case 2:
			assert_int_equal(
				x86_write_cr(&t->cpu, 0, t->cpu.s.cr0 ^ X86_CR0_WP), X86_BOUNDARY);
			break;
		default:
			saved = t->cpu.s;
			x86_cpu_load(&t->cpu, &saved);
			break;
		}
		assert_true(!has(t, LOCAL, X86_READ) && !has(t, GLOBAL, X86_READ) &&
			    !has(t, LARGE, X86_READ));
		touch(t, LOCAL, X86_READ);
		load_cr3(t, 1, KEEP);
		assert_true(!has(t, LOCAL, X86_READ) && !has(t, GLOBAL, X86_READ));
		load_cr3(t, 2, KEEP); /* the one that was the present one is so still */
		assert_true(has(t, LOCAL, X86_READ));
	}
}

/* After a load of a whole state the present context is that of the PCID in it. */
static void test_load(void **state)
{
	struct test_cpu *t = *state;

	load_cr3(t, 1, 0);
	struct x86_state saved = t->cpu.s;
	saved.cr3 = PML4 | 7;
	x86_cpu_load(&t->cpu, &saved);
	touch(t, LOCAL, X86_READ);
	load_cr3(t, 1, KEEP);
	assert_false(has(t, LOCAL, X86_READ));
	load_cr3(t, 7, KEEP);
	assert_true(has(t, LOCAL, X86_READ));
}

static void test_invlpg(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned pcid = 1; pcid <= 2; pcid++) {
		load_cr3(t, pcid, 0);
		touch_all(t);
	}
	x86_tlb_flush_page(&t->cpu, GLOBAL + 0x123);
	x86_tlb_flush_page(&t->cpu, LARGE + 0x10000);
	for (unsigned pcid = 1; pcid <= 2; pcid++) {
		load_cr3(t, pcid, KEEP);
		assert_true(has(t, LOCAL, X86_READ));
		assert_false(has(t, GLOBAL, X86_READ));
		assert_false(has(t, LARGE, X86_READ));
	}
}

static void test_invpcid(void **state)
{
	static const struct {
		unsigned type;
		bool local[2], global[2]; /* still there, [PCID 1 or 2] */
	} rows[] = {
		{0, {false, false}, {true, true}}, /* the page: more contexts than asked for */
		{1, {false, true}, {true, true}},
		{2, {false, false}, {false, false}},
		{3, {false, false}, {true, true}},
	};
	struct test_cpu *t = *state;
	struct x86_insn insn = {.mode = 64, .asize = 8, .seg = X86_DS, .disp = 0x8000};

	insn.base = insn.index = X86_ZERO;
	insn.op[0] = (struct x86_operand){.kind = X86_O_GPR, .size = 8, .reg = X86_RAX};
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		for (unsigned pcid = 1; pcid <= 2; pcid++) {
			load_cr3(t, pcid, 0);
			touch_all(t);
		}
		t->cpu.s.reg[X86_RAX] = rows[i].type;
		table(t, 0x8000)[0] = 1; /* the PCID that is not the present one */
		table(t, 0x8000)[1] = LOCAL;
		assert_int_equal(sem_invpcid(&t->cpu, &insn), X86_BOUNDARY);
		for (unsigned pcid = 1; pcid <= 2; pcid++) {
			load_cr3(t, pcid, KEEP);
			assert_int_equal(has(t, LOCAL, X86_READ), rows[i].local[pcid - 1]);
			assert_int_equal(has(t, GLOBAL, X86_READ), rows[i].global[pcid - 1]);
		}
	}
}

/* Every entry of a full table is found by a flush. */
static void test_full_tables(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned turn = 0; turn < 3; turn++) {
		for (unsigned i = 0; i < 512; i++)
			touch(t, (gva_t)i << 12, X86_WRITE);
		for (unsigned i = 0; i < 512; i++)
			touch(t, 0x200000 + ((gva_t)i << 12), X86_WRITE);
		for (unsigned i = 0; i < 1024; i++)
			assert_true(has(t, (gva_t)i << 12, X86_WRITE));
		if (turn == 0)
			x86_tlb_flush(&t->cpu);
		else if (turn == 1)
			x86_tlb_flush_writes(&t->cpu);
		else
			x86_tlb_flush_page(&t->cpu, 0x200000);
		for (unsigned i = 0; i < 1024; i++)
			assert_int_equal(has(t, (gva_t)i << 12, X86_WRITE), turn == 2 && i < 512);
	}
}

static void test_drop_writes(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned pcid = 1; pcid <= 2; pcid++) {
		load_cr3(t, pcid, 0);
		touch_all(t);
		touch(t, LOCAL, X86_WRITE);
		touch(t, GLOBAL, X86_WRITE);
		touch(t, LARGE, X86_WRITE);
	}
	x86_tlb_drop_writes(&t->cpu, LOCAL);
	x86_tlb_drop_writes(&t->cpu, LARGE + 0x18);
	for (unsigned pcid = 1; pcid <= 2; pcid++) {
		load_cr3(t, pcid, KEEP);
		assert_true(has(t, LOCAL, X86_READ) && !has(t, LOCAL, X86_WRITE));
		assert_true(has(t, LARGE, X86_READ) && !has(t, LARGE, X86_WRITE));
		assert_true(has(t, GLOBAL, X86_WRITE));
	}
}

/* Each page of a large one, from whichever of them it is dropped, and nothing beside it. */
static void test_large(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned from = 0; from < 512; from += 73) {
		for (unsigned i = 0; i < 512; i++)
			touch(t, 0x200000 + ((gva_t)i << 12), (enum x86_access)(i % 3));
		touch(t, 0x1ff000, X86_READ);
		touch(t, HIGH(0x2ff000ull), X86_READ);
		x86_tlb_flush_page(&t->cpu, 0x200000 + ((gva_t)from << 12));
		for (unsigned i = 0; i < 512; i++)
			assert_false(has(t, 0x200000 + ((gva_t)i << 12), (enum x86_access)(i % 3)));
		assert_true(has(t, 0x1ff000, X86_READ));
		assert_true(has(t, HIGH(0x2ff000ull), X86_READ));
	}
	/* 1G. */
	table(t, PDPT)[1] = P | W | U | A | D | PS;
	for (gva_t i = 0; i < 64; i++)
		touch(t, 0x40000000 + i * 0x15000, X86_READ);
	touch(t, HIGH(LARGE), X86_READ);
	x86_tlb_flush_page(&t->cpu, 0x7ffff000);
	for (gva_t i = 0; i < 64; i++)
		assert_false(has(t, 0x40000000 + i * 0x15000, X86_READ));
	assert_true(has(t, HIGH(LARGE), X86_READ));
}

/* ---- branch targets ---- */

static const char miss[] = "miss", code[] = "code";

static bool branches_to(struct test_cpu *t, gva_t target)
{
	const struct x86_tlb *tlb = t->cpu.tlb_now;
	const unsigned i = x86_branch_index(target);

	if (tlb->branch_code[i] == code)
		return tlb->branch_tag[i] == target;
	assert_ptr_equal(tlb->branch_code[i], miss);
	return false;
}

static void branch(struct test_cpu *t, gva_t target)
{
	touch(t, target, X86_EXEC);
	x86_branch_fill(&t->cpu, target, code);
	assert_true(branches_to(t, target));
}

static void branch_all(struct test_cpu *t)
{
	branch(t, LOCAL + 0x10);
	branch(t, GLOBAL + 0x20);
	branch(t, LARGE + 0x30);
}

static void expect_branches(struct test_cpu *t, bool local, bool global, bool large)
{
	assert_int_equal(branches_to(t, LOCAL + 0x10), local);
	assert_int_equal(branches_to(t, GLOBAL + 0x20), global);
	assert_int_equal(branches_to(t, LARGE + 0x30), large);
}

static void test_branches(void **state)
{
	struct test_cpu *t = *state;

	x86_branch_set_miss(&t->cpu, miss);
	for (unsigned pcid = 1; pcid <= 2; pcid++) {
		load_cr3(t, pcid, 0);
		expect_branches(t, false, false, false);
		branch_all(t);
	}
	load_cr3(t, 1, KEEP);
	expect_branches(t, true, true, true);
	x86_tlb_flush_page(&t->cpu, LOCAL + 0x1000 * X86_TLB_SIZE);
	x86_tlb_flush_page(&t->cpu, LOCAL + 0x2000);
	expect_branches(t, true, true, true);
	/* A page, in every context. */
	x86_tlb_flush_page(&t->cpu, LOCAL);
	expect_branches(t, false, true, true);
	/* Those that were left are still found. */
	x86_tlb_flush_page(&t->cpu, GLOBAL);
	expect_branches(t, false, false, true);
	load_cr3(t, 2, KEEP);
	expect_branches(t, false, false, true);
	branch(t, GLOBAL + 0x20);
	load_cr3(t, 1, KEEP);
	branch(t, GLOBAL + 0x20);
	load_cr3(t, 2, KEEP);
	/* A large page, though the entry that was used has long made room for another one's. */
	for (unsigned access = 0; access < 3; access++)
		t->cpu.tlb_now->entry[access][x86_tlb_index(LARGE)].page = 0x777777000;
	x86_tlb_flush_page(&t->cpu, 0x3ff000);
	expect_branches(t, false, true, false);
	/* What is not global, of this PCID. */
	branch_all(t);
	load_cr3(t, 2, 0);
	expect_branches(t, false, true, false);
	load_cr3(t, 1, KEEP);
	expect_branches(t, false, true, false);
	branch_all(t);
	load_cr3(t, 2, KEEP);
	expect_branches(t, false, true, false);
	x86_branch_clear(&t->cpu);
	expect_branches(t, false, false, false);
	load_cr3(t, 1, KEEP);
	expect_branches(t, false, false, false);
	branch_all(t);
	x86_tlb_flush(&t->cpu);
	expect_branches(t, false, false, false);
	/* The tables of a PCID that made room. */
	branch_all(t);
	for (unsigned pcid = 0x10; pcid < 0x10 + X86_TLB_CONTEXTS; pcid++) {
		load_cr3(t, pcid, KEEP);
		expect_branches(t, false, false, false);
	}
}

/* An entry of a large page that nothing was told of: it is still there if nobody has searched for it. */
static bool left_alone(struct test_cpu *t, gva_t linear, gva_t flushed)
{
	struct x86_tlb *tlb = t->cpu.tlb_now;
	const unsigned index = x86_tlb_index(linear);

	tlb->entry[X86_READ][index] = (struct x86_tlb_entry){
		.page = linear, .host = (uintptr_t)test_host(t, linear), .gpa = linear, .shift = 21};
	tlb->used[X86_READ][index / 64] |= BIT(index % 64);
	x86_tlb_flush_page(&t->cpu, flushed);
	return has(t, linear, X86_READ);
}

/*
 * A program's pages are not taken for the kernel's whose numbers are the same modulo 4096, or each of its faults would
 * search whole tables.
 */
static void test_halves(void **state)
{
	struct test_cpu *t = *state;

	x86_branch_set_miss(&t->cpu, miss);
	touch(t, HIGH(LARGE), X86_READ);
	assert_true(left_alone(t, LARGE + 0x4000, LARGE));
	assert_false(left_alone(t, LARGE + 0x4000, LARGE + 0x4000));
	touch(t, LARGE, X86_READ);
	assert_false(left_alone(t, LARGE + 0x4000, LARGE));
	/* Those of a program that is gone do not count any more, though something global stays. */
	touch(t, GLOBAL, X86_READ);
	load_cr3(t, 0, 0);
	t->cpu.tlb_global_low = false; /* as if it were in the upper half */
	load_cr3(t, 0, 0);
	assert_true(has(t, GLOBAL, X86_READ));
	assert_true(left_alone(t, LARGE + 0x4000, LARGE));
	branch(t, HIGH(LOCAL) + 0x10);
	t->cpu.tlb_now->branch_tag[x86_branch_index(LOCAL + 0x10)] = LOCAL + 0x10;
	x86_tlb_flush_page(&t->cpu, LOCAL);
	assert_true(branches_to(t, LOCAL + 0x10));
}

/* At both ends of what is dropped, and beside them. */
static void test_branches_near(void **state)
{
	struct test_cpu *t = *state;
	static const gva_t at[] = {0x1ffff0, 0x200000, 0x2fffe0, 0x300010, 0x3fffd0};

	x86_branch_set_miss(&t->cpu, miss);
	for (gva_t page = 0; page < 0x20000; page += 0x1000) {
		branch(t, page);
		branch(t, page + 0xfff);
		branch(t, page + 0x1000);
		branch(t, HIGH(page + 0x7f0));
		x86_tlb_flush_page(&t->cpu, page + 0x123);
		assert_true(!branches_to(t, page) && !branches_to(t, page + 0xfff));
		assert_true(branches_to(t, page + 0x1000) && branches_to(t, HIGH(page + 0x7f0)));
	}
	for (gva_t flushed = 0x200000; flushed < 0x400000; flushed += 0x55000) {
		for (unsigned i = 0; i < ARRAY_SIZE(at); i++)
			branch(t, at[i]);
		branch(t, HIGH(0x355550ull));
		x86_tlb_flush_page(&t->cpu, flushed);
		assert_true(branches_to(t, at[0]) && branches_to(t, HIGH(0x355550ull)));
		for (unsigned i = 1; i < ARRAY_SIZE(at); i++)
			assert_false(branches_to(t, at[i]));
	}
}

static void test_branches_of_privileges(void **state)
{
	struct test_cpu *t = *state;

	x86_branch_set_miss(&t->cpu, miss);
	branch_all(t);
	test_protected(t, 64, 3);
	expect_branches(t, false, false, false);
	branch(t, LOCAL + 0x10);
	/* While alignment is checked there are none, and none can be made. */
	t->cpu.s.cr0 |= X86_CR0_AM;
	t->cpu.s.rflags |= X86_AC;
	x86_cpu_refresh(&t->cpu);
	expect_branches(t, false, false, false);
	x86_branch_fill(&t->cpu, LOCAL + 0x10, code);
	expect_branches(t, false, false, false);
	load_cr3(t, 0, KEEP);
	assert_ptr_equal(t->cpu.tlb_now, t->cpu.tlb_nothing);
	t->cpu.s.rflags &= ~(uint64_t)X86_AC;
	x86_cpu_refresh(&t->cpu);
	expect_branches(t, true, false, false);
	x86_tlb_flush_page(&t->cpu, LOCAL);
	expect_branches(t, false, false, false);
	test_protected(t, 64, 0);
	expect_branches(t, false, true, true);
}

static void test_no_branches(void **state)
{
	struct test_cpu *t = *state;

	touch(t, LOCAL, X86_EXEC);
	x86_branch_fill(&t->cpu, LOCAL, code);
	assert_null(t->cpu.tlb_now->branch_code[x86_branch_index(LOCAL)]);
	x86_branch_set_miss(&t->cpu, miss);
	branch_all(t);
	x86_branch_set_miss(&t->cpu, NULL);
	for (unsigned i = 0; i < X86_BRANCH_SIZE; i++)
		assert_null(t->cpu.tlb_now->branch_code[i]);
}

/* ---- writes where translated code is ---- */

#define CODE 0x7000ull /* a page whose bytes 0x40 to 0x7f are marked */

static void expect_written(
	struct test_cpu *t, enum x86_status status, unsigned writes, gpa_t gpa, unsigned size)
{
	assert_int_equal(status, X86_OK);
	assert_int_equal(t->code_writes, writes);
	if (writes) {
		assert_true(t->code_gpa == gpa);
		assert_int_equal(t->code_size, size);
	}
	t->code_writes = 0;
}

static void test_code_stores(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = &t->cpu;
	uint8_t bytes[64] = {0};

	memory_code_mark(t->memory, CODE + 0x40, 64);
	expect_written(t, x86_store(cpu, X86_DS, CODE + 0x40, 1, 0x12), 1, CODE + 0x40, 1);
	assert_int_equal(*(uint8_t *)test_host(t, CODE + 0x40), 0x12);
	assert_false(has(t, CODE, X86_WRITE)); /* each time the slow way */
	expect_written(t, x86_store(cpu, X86_DS, CODE + 0x7f, 1, 1), 1, CODE + 0x7f, 1);
	expect_written(t, x86_store(cpu, X86_DS, CODE + 0x3c, 8, 1), 1, CODE + 0x3c, 8);
	expect_written(t, x86_store(cpu, X86_DS, CODE + 0x38, 8, 1), 0, 0, 0);
	expect_written(t, x86_store(cpu, X86_DS, CODE + 0x80, 8, 1), 0, 0, 0);
	expect_written(t, x86_store_bytes(cpu, X86_DS, CODE + 0x20, 64, bytes), 1, CODE + 0x20, 64);
	expect_written(t, x86_store_element(cpu, X86_DS, CODE + 0x44, 4, 5), 1, CODE + 0x44, 4);
	expect_written(t, x86_write_linear(cpu, CODE + 0x50, bytes, 3, false), 1, CODE + 0x50, 3);
	/* Across pages each has its own part. */
	memory_code_mark(t->memory, CODE, 1);
	expect_written(t, x86_store(cpu, X86_DS, CODE - 3, 8, 1), 1, CODE, 5);
	expect_written(t, x86_check_store(cpu, X86_DS, CODE, 8), 0, 0, 0);
	memory_code_clear(t->memory, CODE, ~0ull);
	expect_written(t, x86_store(cpu, X86_DS, CODE + 0x40, 1, 0x12), 0, 0, 0);
	assert_true(has(t, CODE, X86_WRITE));
}

static void test_code_locked(void **state)
{
	struct test_cpu *t = *state;
	struct x86_cpu *cpu = &t->cpu;
	uint64_t old = 0, pair[2] = {0}, value[2] = {1, 2};
	bool done;

	memory_code_mark(t->memory, CODE + 0x40, 64);
	expect_written(
		t, x86_cmpxchg(cpu, X86_DS, CODE + 0x40, 4, &old, 7, &done), 1, CODE + 0x40, 4);
	assert_true(done);
	old = 0;
	expect_written(t, x86_cmpxchg(cpu, X86_DS, CODE + 0x80, 4, &old, 7, &done), 0, 0, 0);
	expect_written(
		t, x86_cmpxchg16(cpu, X86_DS, CODE + 0x50, pair, value, &done), 1, CODE + 0x50, 16);
	assert_true(done);
	/* Across a page: what no host instruction does at once. */
	memory_code_mark(t->memory, CODE, 1);
	old = 0;
	expect_written(t, x86_cmpxchg(cpu, X86_DS, CODE - 2, 4, &old, ~0ull, &done), 1, CODE, 2);
	assert_true(done);
}

/* Accessed and dirty bits are writes too. */
static void test_code_in_tables(void **state)
{
	struct test_cpu *t = *state;
	const gpa_t entry = PT + (LOCAL >> 12) * 8;

	memory_code_mark(t->memory, PT, 64);
	touch(t, LOCAL, X86_READ);
	assert_int_equal(t->code_writes, 0);
	table(t, PT)[LOCAL >> 12] &= ~(A | D);
	x86_tlb_flush(&t->cpu);
	gpa_t gpa;
	expect_written(t, x86_translate(&t->cpu, LOCAL, X86_READ, false, &gpa), 1, entry, 8);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_pcid_keep),
		T(test_no_pcid),
		T(test_replacement),
		T(test_flush_all),
		T(test_load),
		T(test_invlpg),
		T(test_invpcid),
		T(test_full_tables),
		T(test_large),
		T(test_drop_writes),
		T(test_branches),
		T(test_halves),
		T(test_branches_near),
		T(test_branches_of_privileges),
		T(test_no_branches),
		T(test_code_stores),
		T(test_code_locked),
		T(test_code_in_tables),
	};
	return cmocka_run_group_tests_name("tlb", tests, NULL, NULL);
}
