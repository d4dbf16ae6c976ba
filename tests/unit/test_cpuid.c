/*
 * The default CPUID model: what a guest must find, what it must not, and that it is consistent.
 */
#include "cpuid_rows.h"
#include "isa/x86/msr.h"
#include "tests/unit/x86_cpu.h"

#include <cpuid.h>

#define TSC_HZ 2595123456ull

enum reg { EAX, EBX, ECX, EDX };

static void query(
	const struct x86_cpuid_model *m, uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	x86_cpuid_query(m, 0, 0, X86_XCR0_X87, 0, leaf, subleaf, regs);
}

/*
 * Not inlined: gcc 12.2 turns `(x >> n & 1) != (y >> m & 1)`, once it sees both sides, into a wrong branch
 * (its combine pass loses the second operand beside BT).
 */
static __attribute__((noinline)) bool bit(
	const struct x86_cpuid_model *m, uint32_t leaf, uint32_t subleaf, unsigned reg, unsigned n)
{
	uint32_t regs[4];
	query(m, leaf, subleaf, regs);
	return regs[reg] >> n & 1;
}

static __attribute__((noinline)) bool host_bit(
	uint32_t leaf, uint32_t subleaf, unsigned reg, unsigned n)
{
	uint32_t regs[4] = {0};
	__get_cpuid_count(leaf, subleaf, &regs[0], &regs[1], &regs[2], &regs[3]);
	return regs[reg] >> n & 1;
}

static bool is_amd(const struct x86_cpuid_model *m)
{
	uint32_t regs[4];
	query(m, 0, 0, regs);
	return regs[ECX] == 0x444d4163;
}

struct expected {
	const char *name;
	uint32_t leaf, subleaf;
	unsigned reg, bit;
	bool vector; /* only if the host has it */
};

/* Without these a stock 64-bit kernel and its programs are slow or do not start. */
static const struct expected shown[] = {
	{"fpu", 1, 0, EDX, 0, false},
	{"pse", 1, 0, EDX, 3, false},
	{"tsc", 1, 0, EDX, 4, false},
	{"msr", 1, 0, EDX, 5, false},
	{"pae", 1, 0, EDX, 6, false},
	{"cx8", 1, 0, EDX, 8, false},
	{"apic", 1, 0, EDX, 9, false},
	{"sep", 1, 0, EDX, 11, false},
	{"mtrr", 1, 0, EDX, 12, false},
	{"pge", 1, 0, EDX, 13, false},
	{"cmov", 1, 0, EDX, 15, false},
	{"pat", 1, 0, EDX, 16, false},
	{"clflush", 1, 0, EDX, 19, false},
	{"mmx", 1, 0, EDX, 23, true},
	{"fxsr", 1, 0, EDX, 24, false},
	{"sse", 1, 0, EDX, 25, true},
	{"sse2", 1, 0, EDX, 26, true},
	{"sse3", 1, 0, ECX, 0, true},
	{"pclmulqdq", 1, 0, ECX, 1, true},
	{"ssse3", 1, 0, ECX, 9, true},
	{"fma", 1, 0, ECX, 12, true},
	{"cx16", 1, 0, ECX, 13, true},
	{"pcid", 1, 0, ECX, 17, false},
	{"sse4.1", 1, 0, ECX, 19, true},
	{"sse4.2", 1, 0, ECX, 20, true},
	{"x2apic", 1, 0, ECX, 21, false},
	{"movbe", 1, 0, ECX, 22, false},
	{"popcnt", 1, 0, ECX, 23, false},
	{"tsc_deadline", 1, 0, ECX, 24, false},
	{"aes", 1, 0, ECX, 25, true},
	{"xsave", 1, 0, ECX, 26, true},
	{"avx", 1, 0, ECX, 28, true},
	{"f16c", 1, 0, ECX, 29, true},
	{"rdrand", 1, 0, ECX, 30, true},
	{"hypervisor", 1, 0, ECX, 31, false},
	{"arat", 6, 0, EAX, 2, false},
	{"fsgsbase", 7, 0, EBX, 0, false},
	{"tsc_adjust", 7, 0, EBX, 1, false},
	{"bmi1", 7, 0, EBX, 3, false},
	{"avx2", 7, 0, EBX, 5, true},
	{"bmi2", 7, 0, EBX, 8, false},
	{"erms", 7, 0, EBX, 9, false},
	{"invpcid", 7, 0, EBX, 10, false},
	{"rdseed", 7, 0, EBX, 18, true},
	{"adx", 7, 0, EBX, 19, false},
	{"clflushopt", 7, 0, EBX, 23, false},
	{"sha", 7, 0, EBX, 29, true},
	{"fsrm", 7, 0, EDX, 4, false},
	{"arch_capabilities", 7, 0, EDX, 29, false},
	{"xsaveopt", 0xd, 1, EAX, 0, false},
	{"xsavec", 0xd, 1, EAX, 1, false},
	{"xgetbv1", 0xd, 1, EAX, 2, false},
	{"lahf", 0x80000001, 0, ECX, 0, false},
	{"lzcnt", 0x80000001, 0, ECX, 5, false},
	{"prefetchw", 0x80000001, 0, ECX, 8, false},
	{"syscall", 0x80000001, 0, EDX, 11, false},
	{"nx", 0x80000001, 0, EDX, 20, false},
	{"1g pages", 0x80000001, 0, EDX, 26, false},
	{"rdtscp", 0x80000001, 0, EDX, 27, false},
	{"lm", 0x80000001, 0, EDX, 29, false},
	{"invariant tsc", 0x80000007, 0, EDX, 8, false},
};

static const struct expected hidden[] = {
	{"vme", 1, 0, EDX, 1, false},
	{"monitor", 1, 0, ECX, 3, false},
	{"vmx", 1, 0, ECX, 5, false},
	{"osxsave", 1, 0, ECX, 27, false},
	{"hle", 7, 0, EBX, 4, false},
	{"smep", 7, 0, EBX, 7, false},
	{"rtm", 7, 0, EBX, 11, false},
	{"avx512f", 7, 0, EBX, 16, false},
	{"smap", 7, 0, EBX, 20, false},
	{"umip", 7, 0, ECX, 2, false},
	{"pku", 7, 0, ECX, 3, false},
	{"cet-ss", 7, 0, ECX, 7, false},
	{"la57", 7, 0, ECX, 16, false},
	{"cet-ibt", 7, 0, EDX, 20, false},
	{"amx", 7, 0, EDX, 24, false},
	{"xsaves", 0xd, 1, EAX, 3, false},
	{"svm", 0x80000001, 0, ECX, 2, false},
	{"amd perfctr", 0x80000001, 0, ECX, 23, false},
	{"mwaitx", 0x80000001, 0, ECX, 29, false},
	{"sme", 0x8000001f, 0, EAX, 0, false},
};

static void test_shown_and_hidden(void **state)
{
	struct x86_cpuid_model m;
	unsigned wrong = 0;

	x86_cpuid_default(&m, 2, TSC_HZ);
	for (unsigned i = 0; i < ARRAY_SIZE(shown); i++) {
		const struct expected *e = &shown[i];
		const bool want = !e->vector || host_bit(e->leaf, e->subleaf, e->reg, e->bit);
		if (bit(&m, e->leaf, e->subleaf, e->reg, e->bit) != want) {
			print_error(
				"%s is %s\n", e->name, want ? "missing" : "shown, unlike the host");
			wrong++;
		}
	}
	for (unsigned i = 0; i < ARRAY_SIZE(hidden); i++) {
		const struct expected *e = &hidden[i];
		if (bit(&m, e->leaf, e->subleaf, e->reg, e->bit)) {
			print_error("%s is shown\n", e->name);
			wrong++;
		}
	}
	assert_int_equal(wrong, 0);
}

/* Whatever of ours is shown, the decoder accepts; and nothing more. */
static void test_features_follow(void **state)
{
	struct x86_cpuid_model m;

	x86_cpuid_default(&m, 1, TSC_HZ);
	assert_true(x86_has(&m.features, X86_F_BASE));
	assert_true(x86_has(&m.features, X86_F_VMCALL));
	assert_true(x86_has(&m.features, X86_F_LM));
	assert_true(x86_has(&m.features, X86_F_INVPCID));
	assert_false(x86_has(&m.features, X86_F_SMAP));
	assert_false(x86_has(&m.features, X86_F_MONITOR));
	assert_int_equal(x86_has(&m.features, X86_F_AVX2), bit(&m, 7, 0, EBX, 5));
	/* A model made elsewhere. */
	for (unsigned i = 0; i < m.count; i++)
		if (m.leaf[i].leaf == 7 && m.leaf[i].subleaf == 0)
			m.leaf[i].ebx |= 1u << 20;
	x86_cpuid_derive(&m);
	assert_true(x86_has(&m.features, X86_F_SMAP));
}

/* A server of Intel's, as far as the model looks; of a family that needs every mitigation. */
static void skylake(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	static const struct cpuid_row rows[] = {
		{0, 0, {0x16, 0x756e6547, 0x6c65746e, 0x49656e69}},
		{1, 0, {0x50654, 0, 0x7ffefbff, 0xbfebfbff}},
		{2, 0, {0x76036301, 0xf0b5ff, 0, 0xc30000}},
		{4, 0, {0x7c004121, 0x1c0003f, 0x3f, 0}},
		{4, 1, {0x7c004122, 0x1c0003f, 0x3f, 0}},
		{4, 2, {0x7c004143, 0x3c0003f, 0x3ff, 0}},
		{4, 3, {0x7c0fc163, 0x280003f, 0x87ff, 4}},
		{7, 0, {0, 0xd39ffffb, 0x8, 0xbc000000}},
		{0x80000000, 0, {0x80000008, 0, 0, 0}},
		{0x80000001, 0, {0, 0, 0x121, 0x2c100800}},
	};

	cpuid_rows_find(rows, ARRAY_SIZE(rows), leaf, subleaf, regs);
}

static void test_intel_host(void **state)
{
	struct x86_cpuid_model m;
	uint32_t r[4];

	x86_cpuid_from_host(&m, 4, TSC_HZ, skylake);
	assert_false(is_amd(&m));
	query(&m, 0x80000000, 0, r);
	assert_int_equal(r[EAX], 0x80000008);
	query(&m, 0x80000021, 0, r);
	assert_int_equal(r[EAX] | r[ECX], 0);
	assert_true(bit(&m, 7, 0, EDX, 26)); /* the guest sets IBRS once and for all */
	assert_true(bit(&m, 0x80000008, 0, EBX, 29));
	assert_false(bit(&m, 0x80000001, 0, EDX, 0)); /* AMD mirrors leaf 1 there */
	assert_false(bit(&m, 0x80000001, 0, ECX, 22));
	assert_true(bit(&m, 1, 0, ECX, 28));
	assert_false(bit(&m, 7, 0, EBX, 29)); /* it has no SHA */
	assert_false(bit(&m, 7, 0, EBX, 16)); /* and we no AVX-512 */
	/* Caches: four cores in the package, the last level shared by all. */
	query(&m, 4, 1, r);
	assert_true(r[EAX] >> 26 == 3 && (r[EAX] >> 14 & 0xfff) == 0);
	query(&m, 4, 3, r);
	assert_true(r[EAX] >> 26 == 3 && (r[EAX] >> 14 & 0xfff) == 3);
	query(&m, 4, 4, r);
	assert_int_equal(r[EAX], 0);
}

/* A host with no AVX, or whose system has not switched it on in CPUID's eyes. */
static void old_host(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	skylake(leaf, subleaf, regs);
	if (leaf == 1)
		regs[ECX] &= ~(uint32_t)BIT(26); /* no XSAVE */
}

static void test_no_xsave(void **state)
{
	static const struct expected gone[] = {
		{"xsave", 1, 0, ECX, 26, false},
		{"avx", 1, 0, ECX, 28, false},
		{"fma", 1, 0, ECX, 12, false},
		{"f16c", 1, 0, ECX, 29, false},
		{"avx2", 7, 0, EBX, 5, false},
		{"vaes", 7, 0, ECX, 9, false},
		{"xsavec", 0xd, 1, EAX, 1, false},
		{"xcr0", 0xd, 0, EAX, 0, false},
	};
	struct x86_cpuid_model m;

	x86_cpuid_from_host(&m, 1, TSC_HZ, old_host);
	for (unsigned i = 0; i < ARRAY_SIZE(gone); i++)
		if (bit(&m, gone[i].leaf, gone[i].subleaf, gone[i].reg, gone[i].bit))
			fail_msg("%s is shown", gone[i].name);
	assert_true(bit(&m, 1, 0, EDX, 26));
}

/* What Linux 6.1 looks at to decide on mitigations: none is left to turn on. */
static void test_no_mitigations(void **state)
{
	struct x86_cpuid_model m;

	x86_cpuid_default(&m, 1, TSC_HZ);
	const uint64_t caps = x86_cpuid_arch_capabilities(&m);
	const unsigned no[] = {0, 1, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62};
	for (unsigned i = 0; i < ARRAY_SIZE(no); i++)
		assert_true(caps >> no[i] & 1);
	/* RSBA, TSX_CTRL, RRSBA, FB_CLEAR and GDS_CTRL would ask for more work. */
	assert_true(!(caps & (BIT(2) | BIT(7) | BIT(17) | BIT(19) | BIT(25))));
	assert_true(bit(&m, 0x80000008, 0, EBX, 26)); /* SSB_NO */
	assert_true(bit(&m, 0x80000008, 0, EBX, 29)); /* BTC_NO */
	if (is_amd(&m)) {
		assert_true(bit(&m, 0x80000021, 0, EAX, 2));
		assert_true(bit(&m, 0x80000021, 0, EAX, 8));
		assert_true(bit(&m, 0x80000021, 0, EAX, 29));
		assert_true(bit(&m, 0x80000021, 0, ECX, 1));
	}
}

/* What an engine takes from a model, and what goes with it. */
struct taken {
	uint32_t leaf, subleaf;
	enum reg reg;
	uint32_t bits;
	uint32_t mask, bytes; /* then leaf 0xd's EAX and ECX */
	bool avx;
};

static uint32_t *reg_of(struct x86_cpuid_model *m, uint32_t leaf, uint32_t subleaf, enum reg reg)
{
	for (unsigned i = 0; i < m->count; i++) {
		struct x86_cpuid_leaf *l = &m->leaf[i];
		uint32_t *regs[] = {&l->eax, &l->ebx, &l->ecx, &l->edx};

		if (l->leaf == leaf && l->subleaf == subleaf)
			return regs[reg];
	}
	fail_msg("no leaf %x, %u", leaf, subleaf);
	return NULL;
}

/* SDM 2A "CPUID", leaf 0xd: each sub-leaf is about what XCR0 can have, and nothing else. */
static void check_xsave_leaves(const struct x86_cpuid_model *m, uint32_t mask, uint32_t bytes)
{
	uint32_t r[4], sub_bytes = 0;

	x86_cpuid_query(m, 0, X86_CR4_OSXSAVE, mask, 0, 0xd, 0, r);
	assert_true(r[EAX] == mask && r[EBX] == bytes && r[ECX] == bytes && r[EDX] == 0);
	x86_cpuid_query(m, 0, X86_CR4_OSXSAVE, mask, 0, 0xd, 1, r);
	assert_int_equal(r[EBX], r[EAX] & 0xa ? bytes : 0);
	assert_true((mask || !r[EAX]) && !r[ECX] && !r[EDX]);
	for (uint32_t sub = 2; sub < 64; sub++) {
		x86_cpuid_query(m, 0, X86_CR4_OSXSAVE, mask, 0, 0xd, sub, r);
		assert_int_equal(r[EAX] | r[EBX] ? 1 : 0, sub < 32 ? mask >> sub & 1 : 0);
		sub_bytes += r[EAX];
	}
	assert_int_equal(sub_bytes + (mask ? 576 : 0), bytes);
}

static void test_taken(void **state)
{
	static const struct taken taken[] = {
		{1, 0, ECX, 0, 7, 832, true},
		{0xd, 0, EAX, 4, 3, 576, false},
		{0xd, 0, EAX, 2, 0, 0, false},
		{0xd, 0, EAX, ~0u, 0, 0, false},
		{1, 0, ECX, 1u << 26, 0, 0, false},
		{1, 0, ECX, 1u << 28, 3, 576, false},
		{0xd, 1, EAX, 2, 7, 832, true},
	};
	struct x86_cpuid_model m;

	for (unsigned i = 0; i < ARRAY_SIZE(taken); i++) {
		const struct taken *t = &taken[i];

		x86_cpuid_from_host(&m, 1, TSC_HZ, skylake);
		*reg_of(&m, 0xd, 1, EAX) |= 2 | 4; /* XSAVEC, XGETBV1 */
		*reg_of(&m, t->leaf, t->subleaf, t->reg) &= ~t->bits;
		x86_cpuid_settle(&m);
		check_xsave_leaves(&m, t->mask, t->bytes);
		assert_int_equal(bit(&m, 1, 0, ECX, 26), t->mask != 0);
		assert_int_equal(x86_has(&m.features, X86_F_XSAVE), t->mask != 0);
		assert_int_equal(bit(&m, 1, 0, ECX, 28), t->avx);
		assert_int_equal(bit(&m, 1, 0, ECX, 12), t->avx); /* FMA */
		assert_int_equal(bit(&m, 7, 0, EBX, 5), t->avx);  /* AVX2 */
		assert_int_equal(x86_has(&m.features, X86_F_AVX2), t->avx);
		assert_true(bit(&m, 1, 0, ECX, 20)); /* SSE4.2 stands on nothing of it */
	}
}

static void test_topology(void **state)
{
	static const unsigned cpus[] = {1, 2, 3, 4, 16, 17, 64};

	for (unsigned i = 0; i < ARRAY_SIZE(cpus); i++) {
		struct x86_cpuid_model m;
		uint32_t r[4];
		unsigned bits = 0;
		while (1u << bits < cpus[i])
			bits++;
		x86_cpuid_default(&m, cpus[i], TSC_HZ);
		const uint32_t id = cpus[i] - 1;
		x86_cpuid_query(&m, id, 0, 1, 0, 1, 0, r);
		assert_int_equal(r[EBX] >> 24, id);
		assert_int_equal(r[EBX] >> 16 & 0xff, cpus[i]);
		assert_int_equal(r[EDX] >> 28 & 1, cpus[i] > 1);
		x86_cpuid_query(&m, id, 0, 1, 0, 0xb, 0, r);
		assert_true(r[EAX] == 0 && r[EBX] == 1 && r[ECX] == 0x100 && r[EDX] == id);
		x86_cpuid_query(&m, id, 0, 1, 0, 0xb, 1, r);
		assert_true(r[EAX] == bits && r[EBX] == cpus[i] && r[ECX] == 0x201 && r[EDX] == id);
		x86_cpuid_query(&m, id, 0, 1, 0, 0xb, 7, r);
		assert_true(r[EAX] == 0 && r[EBX] == 0 && r[ECX] == 7 && r[EDX] == id);
		if (!is_amd(&m))
			continue;
		x86_cpuid_query(&m, id, 0, 1, 0, 0x80000008, 0, r);
		assert_int_equal(r[ECX] & 0xff, cpus[i] - 1);
		assert_int_equal(r[ECX] >> 12 & 15, bits);
		x86_cpuid_query(&m, id, 0, 1, 0, 0x8000001e, 0, r);
		assert_true(r[EAX] == id && r[EBX] == id && r[ECX] == 0);
	}
}

static void test_xsave_sizes(void **state)
{
	struct x86_cpuid_model m;
	uint32_t r[4];

	x86_cpuid_default(&m, 1, TSC_HZ);
	if (!bit(&m, 1, 0, ECX, 28)) {
		print_message("NOT CHECKED: XSAVE sizes (this host has no AVX)\n");
		skip();
	}
	x86_cpuid_query(&m, 0, X86_CR4_OSXSAVE, 1, 0, 0xd, 0, r);
	assert_true(r[EAX] == 7 && r[EBX] == 576 && r[ECX] == 832 && r[EDX] == 0);
	x86_cpuid_query(&m, 0, X86_CR4_OSXSAVE, 7, 0, 0xd, 0, r);
	assert_true(r[EBX] == 832);
	x86_cpuid_query(&m, 0, X86_CR4_OSXSAVE, 7, 0, 0xd, 1, r);
	assert_true(r[EBX] == 832 && r[ECX] == 0);
	x86_cpuid_query(&m, 0, X86_CR4_OSXSAVE, 7, 0, 0xd, 2, r);
	assert_true(r[EAX] == 256 && r[EBX] == 576);
	for (uint32_t sub = 3; sub < 64; sub++) {
		x86_cpuid_query(&m, 0, X86_CR4_OSXSAVE, 7, 0, 0xd, sub, r);
		assert_true(!(r[EAX] | r[EBX] | r[ECX] | r[EDX]));
	}
	x86_cpuid_query(&m, 0, X86_CR4_OSXSAVE, 7, 0, 1, 0, r);
	assert_true(r[ECX] >> 27 & 1);
}

/* Leaf 0x15 gives back the rate it was made from, in the 32-bit arithmetic that Linux uses. */
static void test_frequencies(void **state)
{
	static const uint64_t rates[] = {1000000000, 1999999000, 2000000000, 2000200000, 2595123456,
		3000000000, 3693061000, 4200000000, 5700000000, 900000000, 1900000};

	for (unsigned i = 0; i < ARRAY_SIZE(rates); i++) {
		struct x86_cpuid_model m;
		uint32_t r[4];
		x86_cpuid_default(&m, 1, rates[i]);
		query(&m, 0x15, 0, r);
		assert_true(r[EAX] && r[EBX] && r[ECX] == X86_CPUID_APIC_HZ);
		assert_true((uint64_t)r[EBX] * (r[ECX] / 1000) <= 0xffffffff);
		const double hz = (double)r[ECX] * r[EBX] / r[EAX];
		const double error = hz / (double)rates[i] - 1;
		if (error > 1.5e-4 || error < -1.5e-4)
			fail_msg("%llu Hz became %f", (unsigned long long)rates[i], hz);
		query(&m, 0x40000010, 0, r);
		assert_true(r[EAX] == rates[i] / 1000 && r[EBX] == 1000000);
	}
	struct x86_cpuid_model m;
	uint32_t r[4];
	x86_cpuid_default(&m, 1, 0);
	query(&m, 0x15, 0, r);
	assert_true(!(r[EAX] | r[EBX] | r[ECX]));
}

static void test_identity(void **state)
{
	struct x86_cpuid_model m;
	uint32_t r[4], host[4];

	x86_cpuid_default(&m, 1, TSC_HZ);
	assert_true(m.count <= X86_CPUID_LEAVES_MAX);
	query(&m, 0, 0, r);
	__cpuid(0, host[0], host[1], host[2], host[3]);
	assert_int_equal(r[EAX], 0x16);
	assert_memory_equal(&r[1], &host[1], 12);
	for (uint32_t leaf = 0x80000002; leaf <= 0x80000004; leaf++) {
		query(&m, leaf, 0, r);
		__cpuid(leaf, host[0], host[1], host[2], host[3]);
		assert_memory_equal(r, host, 16);
	}
	query(&m, 0x40000000, 0, r);
	assert_memory_equal(&r[1], "KVMKVMKVM\0\0", 12);
	assert_true(r[EAX] == 0x40000010);
	query(&m, 0x40000001, 0, r);
	assert_true((r[EAX] & 0x0100000b) == 0x0100000b);
	query(&m, 0x80000008, 0, r);
	assert_true((r[EAX] & 0xff) == m.phys_bits && (r[EAX] >> 8 & 0xff) == 48);
	/* It has less than it might, but never more. */
	const unsigned bits = m.phys_bits;
	x86_cpuid_limit_phys_bits(&m, 52);
	assert_int_equal(m.phys_bits, bits);
	x86_cpuid_limit_phys_bits(&m, 33);
	assert_int_equal(m.phys_bits, 33);
	query(&m, 0x80000008, 0, r);
	assert_int_equal(r[EAX] & 0xffff, 48 << 8 | 33);
	/* Unknown and out of range. */
	const uint32_t nothing[] = {
		3, 0xa, 0x17, 0x20, 0x40000002, 0x80000020, 0x80000022, 0xc0000000, 0xffffffff};
	for (unsigned i = 0; i < ARRAY_SIZE(nothing); i++) {
		query(&m, nothing[i], 0, r);
		assert_true(!(r[EAX] | r[EBX] | r[ECX] | r[EDX]));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shown_and_hidden),
		cmocka_unit_test(test_features_follow),
		cmocka_unit_test(test_no_mitigations),
		cmocka_unit_test(test_intel_host),
		cmocka_unit_test(test_no_xsave),
		cmocka_unit_test(test_taken),
		cmocka_unit_test(test_topology),
		cmocka_unit_test(test_xsave_sizes),
		cmocka_unit_test(test_frequencies),
		cmocka_unit_test(test_identity),
	};
	return cmocka_run_group_tests_name("cpuid", tests, NULL, NULL);
}
