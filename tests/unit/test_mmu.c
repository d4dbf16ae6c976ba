/*
 * Page walks, page-fault error codes, accessed and dirty bits, and the software TLB.
 *
 * The permission test tries every combination of rights, control bits and accesses against a second
 * statement of the rules.
 */
#include "tests/unit/x86_cpu.h"

#define P  BIT(0)
#define W  BIT(1)
#define U  BIT(2)
#define A  BIT(5)
#define D  BIT(6)
#define PS BIT(7)
#define G  BIT(8)
#define NX BIT(63)

#define ROOT 0x10000ull /* tables: one page each, upwards */

enum paging { PAGING_32, PAGING_PAE, PAGING_4LEVEL };

/* One way to map an address: paging mode and the size of the page. */
static const struct shape {
	enum paging paging;
	unsigned shift;
	const char *name;
} shapes[] = {
	{PAGING_32, 12, "32-bit 4K"},
	{PAGING_32, 22, "32-bit 4M"},
	{PAGING_PAE, 12, "PAE 4K"},
	{PAGING_PAE, 21, "PAE 2M"},
	{PAGING_4LEVEL, 12, "4-level 4K"},
	{PAGING_4LEVEL, 21, "4-level 2M"},
	{PAGING_4LEVEL, 30, "4-level 1G"},
};

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

/* ---- making page tables ---- */

static unsigned top_shift(enum paging paging)
{
	return paging == PAGING_32 ? 22 : paging == PAGING_PAE ? 30 : 39;
}

static unsigned entry_bytes(enum paging paging)
{
	return paging == PAGING_32 ? 4 : 8;
}

/* Where the entry of the table that covers 1 << shift bytes an entry lies. Tables are stacked from ROOT. */
static gpa_t entry_gpa(const struct shape *shape, gva_t linear, unsigned shift)
{
	const unsigned step = shape->paging == PAGING_32 ? 10 : 9;
	const gpa_t table = ROOT + (top_shift(shape->paging) - shift) / step * 0x1000;
	const uint64_t mask = shape->paging == PAGING_PAE && shift == 30 ? 3 : BIT(step) - 1;
	return table + (linear >> shift & mask) * entry_bytes(shape->paging);
}

static uint64_t entry_get(struct test_cpu *t, const struct shape *shape, gpa_t gpa)
{
	uint64_t value = 0;
	memcpy(&value, test_host(t, gpa), entry_bytes(shape->paging));
	return value;
}

static void entry_put(struct test_cpu *t, const struct shape *shape, gpa_t gpa, uint64_t value)
{
	memcpy(test_host(t, gpa), &value, entry_bytes(shape->paging));
}

/* The next level's entry for `linear`; 0 below the leaf. */
static unsigned next_shift(const struct shape *shape, unsigned shift)
{
	return shift <= shape->shift ? 0 : shift - (shape->paging == PAGING_32 ? 10 : 9);
}

/* Map linear to gpa: `upper` in all upper entries (PAE's top ones have no rights), `leaf` in the last. */
static void map(struct test_cpu *t, const struct shape *shape, gva_t linear, gpa_t gpa,
	uint64_t upper, uint64_t leaf)
{
	for (unsigned s = top_shift(shape->paging); s; s = next_shift(shape, s)) {
		const gpa_t at = entry_gpa(shape, linear, s);
		uint64_t value = (at & GUEST_PAGE_MASK) + 0x1000;
		if (s == shape->shift)
			value = (gpa & ~(BIT(s) - 1)) | leaf | (s > 12 ? PS : 0);
		else
			value |= shape->paging == PAGING_PAE && s == 30 ? P : upper;
		if (s == 22)
			value = (value & 0xffffffff) | (gpa >> 32 & 0xff) << 13;
		entry_put(t, shape, at, value);
	}
}

static void paging_on(struct test_cpu *t, const struct shape *shape)
{
	struct x86_state *s = &t->cpu.s;

	test_protected(t, shape->paging == PAGING_4LEVEL ? 64 : 32, 0);
	memset(test_host(t, ROOT), 0, 0x8000);
	s->cr0 |= X86_CR0_PG | X86_CR0_PE;
	s->cr3 = ROOT;
	s->cr4 = X86_CR4_PSE | (shape->paging != PAGING_32 ? X86_CR4_PAE : 0);
	s->msr.efer = shape->paging == PAGING_4LEVEL ? X86_EFER_LME | X86_EFER_LMA : 0;
	x86_cpu_refresh(&t->cpu);
	x86_tlb_flush(&t->cpu);
}

/* After a change of the tables: what a guest would do with CR3. */
static void reload(struct test_cpu *t, const struct shape *shape)
{
	if (shape->paging == PAGING_PAE)
		assert_true(x86_load_pdptes(&t->cpu, t->cpu.s.cr3));
	x86_tlb_flush(&t->cpu);
}

static bool in_tlb(struct test_cpu *t, gva_t linear, enum x86_access access, bool user)
{
	const struct x86_tlb_entry *e =
		&t->cpu.context_now->tlb[user].entry[access][x86_tlb_index(linear)];
	return linear - e->page < GUEST_PAGE_SIZE;
}

static void touch(struct test_cpu *t, gva_t linear, enum x86_access access, bool user)
{
	gpa_t gpa;
	assert_int_equal(x86_translate(&t->cpu, linear, access, user, &gpa), X86_OK);
}

static void expect_fault(
	struct test_cpu *t, gva_t linear, enum x86_access access, bool user, uint32_t error)
{
	gpa_t gpa;
	assert_int_equal(x86_translate(&t->cpu, linear, access, user, &gpa), X86_FAULT);
	assert_int_equal(t->cpu.fault.vector, X86_PF_EXC);
	assert_true(t->cpu.fault.has_error);
	assert_int_equal(t->cpu.fault.error, error);
	assert_true(t->cpu.fault.address == linear);
	assert_false(in_tlb(t, linear, access, user));
}

/* ---- translation ---- */

static void test_addresses(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		const struct shape *shape = &shapes[i];
		const gva_t linear =
			shape->paging == PAGING_4LEVEL ? 0xffff923456789abcull : 0xb4567abc;
		const gpa_t page = shape->shift > 22 ? 0 : 0x1400000;
		gpa_t gpa = 0;

		paging_on(t, shape);
		map(t, shape, linear, page, P | W | U, P | W | U);
		reload(t, shape);
		assert_int_equal(x86_translate(&t->cpu, linear, X86_READ, false, &gpa), X86_OK);
		assert_true(gpa == page + (linear & (BIT(shape->shift) - 1)));
		if (gpa < TEST_RAM_BYTES) {
			assert_true(in_tlb(t, linear, X86_READ, false));
			assert_ptr_equal(
				x86_tlb_host(&t->cpu, linear, 4, X86_READ), test_host(t, gpa));
		}
		gpa = 0;
		assert_true(x86_translate_debug(&t->cpu, linear, &gpa));
		assert_true(gpa == page + (linear & (BIT(shape->shift) - 1)));
	}
}

static void test_paging_off(void **state)
{
	struct test_cpu *t = *state;
	gpa_t gpa;

	assert_int_equal(x86_translate(&t->cpu, 0x12345, X86_WRITE, false, &gpa), X86_OK);
	assert_true(gpa == 0x12345);
	assert_ptr_equal(x86_tlb_host(&t->cpu, 0x12345, 1, X86_WRITE), test_host(t, 0x12345));
	assert_int_equal(x86_translate(&t->cpu, 0x100012345, X86_READ, false, &gpa), X86_OK);
	assert_true(gpa == 0x12345);
}

static void test_pse36(void **state)
{
	struct test_cpu *t = *state;
	const struct shape *shape = &shapes[1];
	gpa_t gpa;

	paging_on(t, shape);
	map(t, shape, 0x800000, TEST_HIGH_BASE + 0x400000, 0, P | W);
	assert_int_equal(x86_translate(&t->cpu, 0x812345, X86_WRITE, false, &gpa), X86_OK);
	assert_true(gpa == TEST_HIGH_BASE + 0x412345);
	/* Without PSE-36 those address bits are reserved; with fewer physical bits some of them. */
	x86_tlb_flush(&t->cpu);
	test_feature(t, X86_F_PSE36, false);
	expect_fault(t, 0x812345, X86_READ, false, X86_PFEC_P | X86_PFEC_RSVD);
	test_feature(t, X86_F_PSE36, true);
	t->cpu.phys_bits = 32;
	expect_fault(t, 0x812345, X86_READ, false, X86_PFEC_P | X86_PFEC_RSVD);
	/* Without CR4.PSE it is a pointer to a table. */
	t->cpu.s.cr4 = 0;
	entry_put(t, shape, ROOT + 8, 0x20000 | PS | P | W);
	entry_put(t, shape, 0x20000 + 0x12 * 4, 0x30000 | P);
	assert_int_equal(x86_translate(&t->cpu, 0x812345, X86_READ, false, &gpa), X86_OK);
	assert_true(gpa == 0x30345);
}

static void test_not_present(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		const struct shape *shape = &shapes[i];
		paging_on(t, shape);
		for (unsigned s = top_shift(shape->paging); s; s = next_shift(shape, s)) {
			map(t, shape, 0x40000000, 0x1400000, P | W | U, P | W | U);
			/* All else may be set: reserved bits of an absent entry do not matter. */
			entry_put(t, shape, entry_gpa(shape, 0x40000000, s), ~P);
			reload(t, shape);
			expect_fault(t, 0x40000123, X86_READ, false, 0);
			expect_fault(t, 0x40000123, X86_WRITE, false, X86_PFEC_W);
			expect_fault(t, 0x40000123, X86_READ, true, X86_PFEC_U);
			expect_fault(t, 0x40000123, X86_EXEC, true, X86_PFEC_U);
		}
	}
}

static void test_reserved_bits(void **state)
{
	static const struct {
		unsigned shape, shift, low, high;
		bool nxe;
	} rows[] = {
		/* shape, level, first and last bit that are reserved there */
		{1, 22, 21, 21, true},
		{2, 21, TEST_PHYS_BITS, 62, true},
		{2, 12, TEST_PHYS_BITS, 63, false},
		{3, 21, 13, 20, true},
		{3, 21, TEST_PHYS_BITS, 63, false},
		{4, 39, 7, 7, true},
		{4, 39, TEST_PHYS_BITS, 51, true},
		{4, 30, TEST_PHYS_BITS, 51, true},
		{4, 21, TEST_PHYS_BITS, 51, true},
		{4, 12, TEST_PHYS_BITS, 51, true},
		{4, 39, 63, 63, false},
		{4, 12, 63, 63, false},
		{5, 21, 13, 20, true},
		{6, 30, 13, 29, true},
		{6, 30, 63, 63, false},
	};
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct shape *shape = &shapes[rows[i].shape];
		const gva_t linear = 0x40000000;
		for (unsigned bit = rows[i].low; bit <= rows[i].high; bit++) {
			paging_on(t, shape);
			if (rows[i].nxe)
				t->cpu.s.msr.efer |= X86_EFER_NXE;
			map(t, shape, linear, 0x1400000, P | W | U, P | W | U);
			reload(t, shape);
			const gpa_t at = entry_gpa(shape, linear, rows[i].shift);
			touch(t, linear, X86_READ, false);
			x86_tlb_flush(&t->cpu);
			entry_put(t, shape, at, entry_get(t, shape, at) | BIT(bit));
			expect_fault(
				t, linear, X86_READ, true, X86_PFEC_P | X86_PFEC_RSVD | X86_PFEC_U);
			expect_fault(t, linear, X86_WRITE, false,
				X86_PFEC_P | X86_PFEC_RSVD | X86_PFEC_W);
		}
	}
	/* Bits 52 to 62 are the system's own in 4-level paging. */
	paging_on(t, &shapes[4]);
	map(t, &shapes[4], 0, 0x1400000, P | BIT_MASK(62, 52), P | BIT_MASK(62, 52));
	touch(t, 0, X86_READ, false);
	/* No 1G pages: PS there is reserved. */
	paging_on(t, &shapes[6]);
	map(t, &shapes[6], 0, 0, P, P);
	test_feature(t, X86_F_PDPE1GB, false);
	expect_fault(t, 0, X86_READ, false, X86_PFEC_P | X86_PFEC_RSVD);
}

/* ---- rights ---- */

struct rights {
	uint64_t upper, leaf;			    /* P | W | U | NX */
	bool wp, smep, smap, ac, nxe, user, system; /* system: by the processor, at CPL 3 */
	enum x86_access access;
};

/* SDM 3A 5.6.1, said once more. Returns the error code, or -1 if the access is allowed. */
static int rights_oracle(const struct rights *r)
{
	const bool user_page = (r->upper & r->leaf) & U;
	const bool writable = (r->upper & r->leaf) & W;
	const bool no_exec = r->nxe && ((r->upper | r->leaf) & NX);
	bool bad = false;

	if (r->user) {
		bad |= !user_page;
		bad |= r->access == X86_WRITE && !writable;
		bad |= r->access == X86_EXEC && no_exec;
	} else if (r->access == X86_EXEC) {
		bad = no_exec || (user_page && r->smep);
	} else {
		bad |= r->access == X86_WRITE && r->wp && !writable;
		bad |= user_page && r->smap && (!r->ac || r->system);
	}
	if (!bad)
		return -1;
	return (int)(X86_PFEC_P | (r->access == X86_WRITE ? X86_PFEC_W : 0) |
		     (r->user ? X86_PFEC_U : 0) |
		     (r->access == X86_EXEC && (r->nxe || r->smep) ? X86_PFEC_I : 0));
}

static struct rights rights_make(unsigned n, bool has_nx)
{
	struct rights r = {.upper = P, .leaf = P};
	r.upper |= (n & 1 ? W : 0) | (n & 2 ? U : 0);
	r.leaf |= (n & 4 ? W : 0) | (n & 8 ? U : 0);
	r.wp = n & 16;
	r.smep = n & 32;
	r.smap = n & 64;
	r.ac = n & 128;
	r.user = n & 256;
	r.system = !r.user && (n & 512);
	r.nxe = has_nx && (n & 1024);
	if (r.nxe) {
		r.upper |= n & 2048 ? NX : 0;
		r.leaf |= n & 4096 ? NX : 0;
	}
	r.access = (enum x86_access)(n >> 13);
	return r;
}

static void rights_try(struct test_cpu *t, const struct shape *shape, const struct rights *r)
{
	const gva_t linear = 0x40000000;
	struct x86_state *s = &t->cpu.s;

	paging_on(t, shape);
	test_protected(t, shape->paging == PAGING_4LEVEL ? 64 : 32, r->user || r->system ? 3 : 0);
	s->cr0 = (s->cr0 & ~(uint64_t)X86_CR0_WP) | (r->wp ? X86_CR0_WP : 0);
	s->cr4 |= (r->smep ? X86_CR4_SMEP : 0) | (r->smap ? X86_CR4_SMAP : 0);
	s->msr.efer |= r->nxe ? X86_EFER_NXE : 0;
	s->rflags = X86_FLAGS_FIXED | (r->ac ? X86_AC : 0);
	map(t, shape, linear, 0x1400000, r->upper, r->leaf);
	reload(t, shape);

	const int error = rights_oracle(r);
	if (error >= 0) {
		expect_fault(t, linear, r->access, r->user, (uint32_t)error);
		/* A refused access sets no bits. */
		const uint64_t leaf = entry_get(t, shape, entry_gpa(shape, linear, shape->shift));
		assert_true(!(leaf & (A | D)));
		return;
	}
	touch(t, linear, r->access, r->user);
	const bool user_page = (r->upper & r->leaf) & U;
	if (shape->shift != 30) { /* 1G: not RAM there */
		const bool keep = r->user || r->access == X86_EXEC || !r->smap || !user_page;
		assert_int_equal(in_tlb(t, linear, r->access, r->user), keep);
	}
}

static void test_rights(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		const struct shape *shape = &shapes[i];
		const bool flat = shape->paging == PAGING_32 && shape->shift == 22;
		const bool pae_flat = shape->paging == PAGING_PAE && shape->shift == 21;
		for (unsigned n = 0; n < 3u << 13; n++) {
			struct rights r = rights_make(n, shape->paging != PAGING_32);
			if (flat || pae_flat) /* no upper entry that has rights */
				r.upper = P | W | U;
			rights_try(t, shape, &r);
		}
	}
}

/* ---- accessed and dirty bits ---- */

static void test_accessed_dirty(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		const struct shape *shape = &shapes[i];
		const gva_t linear = 0x40000000;
		const gpa_t leaf = entry_gpa(shape, linear, shape->shift);

		paging_on(t, shape);
		map(t, shape, linear, 0, P | W | U, P | W | U);
		reload(t, shape);
		gpa_t gpa;
		assert_true(x86_translate_debug(&t->cpu, linear, &gpa));
		assert_true(!(entry_get(t, shape, leaf) & (A | D)));
		touch(t, linear, X86_READ, false);
		for (unsigned s = top_shift(shape->paging); s; s = next_shift(shape, s)) {
			const uint64_t entry = entry_get(t, shape, entry_gpa(shape, linear, s));
			const bool pdpte = shape->paging == PAGING_PAE && s == 30;
			assert_int_equal(!!(entry & A), !pdpte);
			assert_true(!(entry & D));
		}
		assert_false(in_tlb(t, linear, X86_WRITE, false));
		touch(t, linear, X86_WRITE, false);
		for (unsigned s = top_shift(shape->paging); s; s = next_shift(shape, s)) {
			const uint64_t entry = entry_get(t, shape, entry_gpa(shape, linear, s));
			assert_int_equal(!!(entry & D), s == shape->shift);
		}
		assert_true(in_tlb(t, linear, X86_WRITE, false));
	}
}

/* Is the page of gpa (low RAM) marked in the dirty log? Clears the log. */
static bool dirty(struct test_cpu *t, gpa_t gpa)
{
	static uint64_t words[TEST_RAM_BYTES / GUEST_PAGE_SIZE / 64];
	memory_dirty_fetch(t->memory, 0, words);
	return words[gpa >> 18] >> (gpa >> 12 & 63) & 1;
}

static void test_dirty_log(void **state)
{
	struct test_cpu *t = *state;
	const struct shape *shape = &shapes[4];

	paging_on(t, shape);
	map(t, shape, 0x5000, 0x200000, P | W, P | W | A | D);
	assert_int_equal(memory_dirty_start(t->memory), 0);
	dirty(t, 0);
	touch(t, 0x5000, X86_READ, false);
	assert_false(dirty(t, 0x200000));
	touch(t, 0x5000, X86_WRITE, false);
	assert_true(dirty(t, 0x200000));
	/* The entry lives on until the engine drops the write tables. */
	assert_true(in_tlb(t, 0x5000, X86_WRITE, false));
	x86_tlb_flush_writes(&t->cpu);
	assert_false(in_tlb(t, 0x5000, X86_WRITE, false));
	assert_true(in_tlb(t, 0x5000, X86_READ, false));
	/* Setting A and D marks the page of the table; finding them set does not. */
	map(t, shape, 0x6000, 0x201000, P | W | A, P | W);
	x86_tlb_flush(&t->cpu);
	dirty(t, 0);
	touch(t, 0x6000, X86_READ, false);
	assert_true(dirty(t, entry_gpa(shape, 0x6000, 12)));
	x86_tlb_flush(&t->cpu);
	touch(t, 0x6000, X86_READ, false);
	assert_false(dirty(t, entry_gpa(shape, 0x6000, 12)));
}

/* ---- what is not RAM ---- */

static void test_not_ram(void **state)
{
	struct test_cpu *t = *state;
	const struct shape *shape = &shapes[4];
	gpa_t gpa;

	paging_on(t, shape);
	map(t, shape, 0x5000, 0xfee00000, P | W, P | W);
	assert_int_equal(x86_translate(&t->cpu, 0x5123, X86_READ, false, &gpa), X86_OK);
	assert_true(gpa == 0xfee00123);
	assert_false(in_tlb(t, 0x5000, X86_READ, false));

	map(t, shape, 0x6000, TEST_ROM_BASE, P | W, P | W);
	touch(t, 0x6000, X86_READ, false);
	touch(t, 0x6000, X86_EXEC, false);
	touch(t, 0x6000, X86_WRITE, false);
	assert_true(in_tlb(t, 0x6000, X86_READ, false));
	assert_true(in_tlb(t, 0x6000, X86_EXEC, false));
	assert_false(in_tlb(t, 0x6000, X86_WRITE, false));

	/* A table outside RAM: nothing is mapped. */
	entry_put(t, shape, entry_gpa(shape, 0, 39), 0x3000000000 | P | W);
	x86_tlb_flush(&t->cpu);
	expect_fault(t, 0x5000, X86_READ, false, 0);
	t->cpu.s.cr3 = 0x2000000000;
	expect_fault(t, 0x5000, X86_READ, false, 0);
}

static void test_tables_in_rom(void **state)
{
	struct test_cpu *t = *state;
	const struct shape *shape = &shapes[4];
	gpa_t gpa;

	paging_on(t, shape);
	map(t, shape, 0x5000, 0x200000, P | W, P | W);
	memcpy(test_host(t, TEST_ROM_BASE), test_host(t, entry_gpa(shape, 0, 12) & GUEST_PAGE_MASK),
		4096);
	entry_put(t, shape, entry_gpa(shape, 0, 21), TEST_ROM_BASE | P | W);
	assert_int_equal(x86_translate(&t->cpu, 0x5000, X86_WRITE, false, &gpa), X86_OK);
	assert_true(gpa == 0x200000);
	assert_true(!(entry_get(t, shape, TEST_ROM_BASE + 5 * 8) & (A | D)));
}

static void test_not_canonical(void **state)
{
	struct test_cpu *t = *state;
	gpa_t gpa;

	paging_on(t, &shapes[4]);
	map(t, &shapes[4], 0, 0x200000, P | W, P | W);
	assert_int_equal(x86_translate(&t->cpu, BIT(48), X86_READ, false, &gpa), X86_FAULT);
	assert_int_equal(t->cpu.fault.vector, X86_GP);
	assert_int_equal(t->cpu.fault.error, 0);
	assert_false(in_tlb(t, BIT(48), X86_READ, false));
	assert_false(x86_translate_debug(&t->cpu, BIT(48), &gpa));
}

/* ---- invalidation ---- */

static void test_tables_apart(void **state)
{
	struct test_cpu *t = *state;

	paging_on(t, &shapes[4]);
	map(t, &shapes[4], 0x5000, 0x200000, P | W | U, P | W | U);
	for (unsigned n = 0; n < 6; n++) {
		x86_tlb_flush(&t->cpu);
		touch(t, 0x5000, (enum x86_access)(n % 3), n / 3);
		for (unsigned m = 0; m < 6; m++)
			assert_int_equal(
				in_tlb(t, 0x5000, (enum x86_access)(m % 3), m / 3), m == n);
	}
}

static void test_flush_page(void **state)
{
	struct test_cpu *t = *state;
	const struct shape *shape = &shapes[4];

	paging_on(t, shape);
	map(t, shape, 0x5000, 0x200000, P | W | U, P | W | U);
	map(t, shape, 0x6000, 0x201000, P | W | U, P | W | U);
	for (unsigned n = 0; n < 6; n++) {
		touch(t, 0x5000, (enum x86_access)(n % 3), n / 3);
		touch(t, 0x6000, (enum x86_access)(n % 3), n / 3);
	}
	/* Same index, another address: nothing happens. */
	x86_tlb_flush_page(&t->cpu, 0x5000 + X86_TLB_SIZE * GUEST_PAGE_SIZE);
	assert_true(in_tlb(t, 0x5000, X86_READ, true));
	x86_tlb_flush_page(&t->cpu, 0x5abc);
	for (unsigned n = 0; n < 6; n++) {
		assert_false(in_tlb(t, 0x5000, (enum x86_access)(n % 3), n / 3));
		assert_true(in_tlb(t, 0x6000, (enum x86_access)(n % 3), n / 3));
	}
}

/* INVLPG anywhere in a large page drops all that was made from it, and nothing else. */
static void test_flush_large(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		const struct shape *shape = &shapes[i];
		if (shape->shift == 12)
			continue;
		const gva_t a = 0x40000000, b = a + BIT(shape->shift);
		const gva_t last = a + MIN(BIT(shape->shift), TEST_RAM_BYTES) - 0x1000;
		paging_on(t, shape);
		map(t, shape, a, 0, P | W, P | W | G);
		map(t, shape, b, 0, P | W, P | W);
		t->cpu.s.cr4 |= X86_CR4_PGE;
		reload(t, shape);
		touch(t, a + 0x3000, X86_READ, false);
		touch(t, last, X86_WRITE, false);
		touch(t, b + 0x5000, X86_READ, false);
		x86_tlb_flush_page(&t->cpu, a + 0x8000);
		assert_false(in_tlb(t, a + 0x3000, X86_READ, false));
		assert_false(in_tlb(t, last, X86_WRITE, false));
		assert_true(in_tlb(t, b + 0x5000, X86_READ, false));
	}
}

static void test_global(void **state)
{
	struct test_cpu *t = *state;
	const struct shape *shape = &shapes[4];

	paging_on(t, shape);
	map(t, shape, 0x5000, 0x200000, P | W | G, P | W | G);
	map(t, shape, 0x6000, 0x201000, P | W | G, P | W); /* G counts in the leaf only */
	/* CR4.PGE off: no page is global. */
	touch(t, 0x5000, X86_READ, false);
	x86_tlb_flush_local(&t->cpu);
	assert_false(in_tlb(t, 0x5000, X86_READ, false));

	t->cpu.s.cr4 |= X86_CR4_PGE;
	touch(t, 0x5000, X86_READ, false);
	touch(t, 0x6000, X86_READ, false);
	x86_tlb_flush_local(&t->cpu);
	assert_true(in_tlb(t, 0x5000, X86_READ, false));
	assert_false(in_tlb(t, 0x6000, X86_READ, false));
	x86_tlb_flush_page(&t->cpu, 0x5000);
	assert_false(in_tlb(t, 0x5000, X86_READ, false));
	touch(t, 0x5000, X86_READ, false);
	x86_tlb_flush(&t->cpu);
	assert_false(in_tlb(t, 0x5000, X86_READ, false));
}

/* A cleared table matches no address at all. */
static void test_empty_tlb(void **state)
{
	struct test_cpu *t = *state;

	x86_tlb_flush(&t->cpu);
	for (gva_t linear = 0; linear < 2 * X86_TLB_SIZE * GUEST_PAGE_SIZE; linear += 0x800)
		for (unsigned access = 0; access < 3; access++)
			assert_null(x86_tlb_host(&t->cpu, linear, 1, (enum x86_access)access));
	/* Alignment checks send every access the slow way. */
	test_protected(t, 32, 3);
	touch(t, 0x5000, X86_READ, true);
	assert_non_null(x86_tlb_host(&t->cpu, 0x5000, 4, X86_READ));
	t->cpu.s.cr0 |= X86_CR0_AM;
	t->cpu.s.rflags |= X86_AC;
	x86_cpu_refresh(&t->cpu);
	for (gva_t linear = 0; linear < 2 * X86_TLB_SIZE * GUEST_PAGE_SIZE; linear += 0x800)
		for (unsigned access = 0; access < 3; access++)
			assert_null(x86_tlb_host(&t->cpu, linear, 1, (enum x86_access)access));
}

static void test_pdptes(void **state)
{
	struct test_cpu *t = *state;
	const struct shape *shape = &shapes[2];
	const uint64_t reserved[] = {BIT(1), BIT(2), BIT(5), BIT(8), BIT(TEST_PHYS_BITS), BIT(63)};
	uint64_t *table = test_host(t, ROOT + 0x20);

	paging_on(t, shape);
	for (unsigned i = 0; i < 4; i++)
		table[i] = 0x20000 + i * 0x1000 + P;
	assert_true(x86_load_pdptes(&t->cpu, ROOT + 0x20 + 0x1f));
	for (unsigned i = 0; i < 4; i++)
		assert_true(t->cpu.s.pdpte[i] == table[i]);
	for (unsigned i = 0; i < ARRAY_SIZE(reserved); i++) {
		table[2] = 0x30000 | P | reserved[i];
		assert_false(x86_load_pdptes(&t->cpu, ROOT + 0x20));
		assert_true(t->cpu.s.pdpte[2] == 0x22000 + P);
		table[2] &= ~P;
		assert_true(x86_load_pdptes(&t->cpu, ROOT + 0x20));
		table[2] = 0x22000 | P;
		assert_true(x86_load_pdptes(&t->cpu, ROOT + 0x20));
	}
	/* They are a copy: later changes in memory do not count. */
	map(t, shape, 0, 0x200000, P | W, P | W);
	assert_true(x86_load_pdptes(&t->cpu, ROOT));
	memset(test_host(t, ROOT), 0, 32);
	touch(t, 0, X86_READ, false);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_addresses),
		T(test_paging_off),
		T(test_pse36),
		T(test_not_present),
		T(test_reserved_bits),
		T(test_rights),
		T(test_accessed_dirty),
		T(test_dirty_log),
		T(test_not_ram),
		T(test_tables_in_rom),
		T(test_not_canonical),
		T(test_tables_apart),
		T(test_flush_page),
		T(test_flush_large),
		T(test_global),
		T(test_empty_tlb),
		T(test_pdptes),
	};
	return cmocka_run_group_tests_name("mmu", tests, NULL, NULL);
}
