/*
 * Choosing a CPU model: the words, the baselines against the x86-64 psABI's table (3.1.1), and what can't be
 * given.
 */
#include "cpuid_rows.h"
#include "base/error.h"
#include "tests/unit/x86_cpu.h"

#include <errno.h>

#define TSC_HZ 2000000000ull

enum reg { EAX, EBX, ECX, EDX };

/* A host of Intel's with all that baselines ask for: Skylake's feature bits. */
static void skylake(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	static const struct cpuid_row rows[] = {
		{0, 0, {0x16, 0x756e6547, 0x6c65746e, 0x49656e69}},
		{1, 0, {0x50654, 0, 0x7ffefbff, 0xbfebfbff}},
		{7, 0, {0, 0xd39ffffb, 0x8, 0xbc000000}},
		{0xd, 1, {0xf, 0, 0, 0}},
		{0x80000000, 0, {0x80000008, 0, 0, 0}},
		{0x80000001, 0, {0, 0, 0x121, 0x2c100800}},
	};

	cpuid_rows_find(rows, ARRAY_SIZE(rows), leaf, subleaf, regs);
}

/* Zen 5 of AMD's, as far as the model looks: it has much that Skylake lacks. */
static void zen5(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	static const struct cpuid_row rows[] = {
		{0, 0, {0x10, 0x68747541, 0x444d4163, 0x69746e65}},
		{1, 0, {0xb00f21, 0, 0x7efa320b, 0x178bfbff}},
		{7, 0, {1, 0xf1bf97a9, 0x19405fde, 0x10000010}},
		{7, 1, {0x30, 0, 0, 0}},
		{0xd, 1, {0xf, 0, 0, 0}},
		{0x80000000, 0, {0x80000028, 0x68747541, 0x444d4163, 0x69746e65}},
		{0x80000001, 0, {0xb00f21, 0, 0x75c237ff, 0x2fd3fbff}},
	};

	cpuid_rows_find(rows, ARRAY_SIZE(rows), leaf, subleaf, regs);
}

/* A host of the first level's next: SSE4.2 but no AVX (Nehalem). */
static void nehalem(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	skylake(leaf, subleaf, regs);
	if (leaf == 1)
		regs[ECX] = 0x009ce3bd;
	else if (leaf == 7 || leaf == 0xd)
		memset(regs, 0, 16);
	else if (leaf == 0x80000001)
		regs[ECX] = 1;
}

/* ---- helpers ---- */

static bool shows(const struct x86_cpuid_model *m, const char *flag)
{
	const char *name;

	for (unsigned i = 0; x86_cpuid_flag_name(i, &name); i++)
		if (name && !strcmp(name, flag))
			return x86_cpuid_shows(m, i);
	fail_msg("no flag %s", flag);
	return false;
}

static int choose(
	struct x86_cpuid_model *m, const char *text, x86_cpuid_host *host, struct error *err)
{
	struct x86_cpu_choice choice;

	*err = (struct error){0};
	if (x86_cpu_choice_parse(&choice, text, err) < 0)
		fail_msg("'%s' is refused: %s", text, err->text);
	return x86_cpuid_choose_on(m, &choice, 1, TSC_HZ, host, err);
}

static void must_choose(struct x86_cpuid_model *m, const char *text, x86_cpuid_host *host)
{
	struct error err;

	if (choose(m, text, host, &err) < 0)
		fail_msg("'%s' can't be given: %s", text, err.text);
}

static void must_refuse(const char *text, x86_cpuid_host *host, const char *word)
{
	struct x86_cpuid_model m;
	struct error err;

	assert_int_equal(choose(&m, text, host, &err), -ENOTSUP);
	if (!strstr(err.text, word))
		fail_msg("'%s': no '%s' in: %s", text, word, err.text);
}

/* ---- the words ---- */

static void test_words(void **state)
{
	static const struct {
		const char *text;
		unsigned base, changes;
	} good[] = {
		{"max", X86_CPU_MAX, 0},
		{"host", X86_CPU_HOST, 0},
		{"x86-64", X86_CPU_LEVEL1, 0},
		{"x86-64-v1", X86_CPU_LEVEL1, 0},
		{"x86-64-v2", X86_CPU_LEVEL2, 0},
		{"x86-64-v3,+pcid,-avx,+lzcnt", X86_CPU_LEVEL3, 3},
		{"host,vendor=amd,family=270,model=255,stepping=15", X86_CPU_HOST, 0},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(good); i++) {
		struct x86_cpu_choice c;
		struct error err = {0};
		if (x86_cpu_choice_parse(&c, good[i].text, &err) < 0)
			fail_msg("'%s' is refused: %s", good[i].text, err.text);
		assert_int_equal(c.base, good[i].base);
		assert_int_equal(c.change_count, good[i].changes);
		assert_int_equal(x86_cpu_choice_is_native(&c), !strstr(good[i].text, "vendor"));
	}
}

static void test_bad_words(void **state)
{
	/* Each error names what is wrong, and something of what there is. */
	static const struct {
		const char *text, *name, *there_is;
	} bad[] = {
		{"", "''", "x86-64-v3"},
		{"486", "'486'", "x86-64-v3"},
		{"x86-64-v4", "'x86-64-v4'", "x86-64-v3"},
		{"MAX", "'MAX'", "max"},
		{"max,", "''", "+FLAG"},
		{"max,,+avx", "''", "+FLAG"},
		{"max,avx", "'avx'", "+FLAG"},
		{"max,+", "''", "avx2"},
		{"max,-", "''", "avx2"},
		{"max,+avx9", "'avx9'", "avx2"},
		{"max,+avx2 ", "'avx2 '", "avx2"},
		{"max,+AVX", "'AVX'", "avx2"},
		{"max,-lm", "'lm'", "every"},
		{"max,-sse2", "'sse2'", "every"},
		{"max,vendor=via", "'via'", "intel"},
		{"max,colour=red", "'colour'", "family"},
		{"max,=", "''", "family"},
		{"max,family=", "''", "270"},
		{"max,family=271", "'271'", "270"},
		{"max,family=-1", "'-1'", "270"},
		{"max,model=256", "'256'", "255"},
		{"max,stepping=16", "'16'", "15"},
		{"max,stepping=99999999999999999999", "'99999999999999999999'", "15"},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		struct x86_cpu_choice c;
		struct error err = {0};
		if (x86_cpu_choice_parse(&c, bad[i].text, &err) != -EINVAL)
			fail_msg("'%s' is taken", bad[i].text);
		if (!strstr(err.text, bad[i].name) || !strstr(err.text, bad[i].there_is))
			fail_msg("'%s': %s", bad[i].text, err.text);
	}
}

static void test_too_many_words(void **state)
{
	struct x86_cpu_choice c;
	struct error err = {0};
	char text[8 + 5 * (X86_CPU_CHANGES_MAX + 1)] = "max";

	for (unsigned i = 0; i < X86_CPU_CHANGES_MAX; i++)
		strcat(text, ",+nx");
	assert_int_equal(x86_cpu_choice_parse(&c, text, &err), 0);
	assert_int_equal(c.change_count, X86_CPU_CHANGES_MAX);
	strcat(text, ",+nx");
	assert_int_equal(x86_cpu_choice_parse(&c, text, &err), -EINVAL);
}

static void test_names_occur_once(void **state)
{
	const char *one, *other;

	for (unsigned i = 0; x86_cpuid_flag_name(i, &one); i++)
		for (unsigned k = 0; one && k < i && x86_cpuid_flag_name(k, &other); k++)
			if (other && !strcmp(one, other))
				fail_msg("%s occurs twice", one);
}

/* ---- the baselines ---- */

/* The psABI's table, in the kernel's names. */
static const struct {
	const char *flag;
	unsigned level;
} psabi[] = {
	{"cmov", 1},
	{"cx8", 1},
	{"fpu", 1},
	{"fxsr", 1},
	{"mmx", 1},
	{"syscall", 1},
	{"sse", 1},
	{"sse2", 1},
	{"cx16", 2},
	{"lahf_lm", 2},
	{"popcnt", 2},
	{"pni", 2},
	{"sse4_1", 2},
	{"sse4_2", 2},
	{"ssse3", 2},
	{"avx", 3},
	{"avx2", 3},
	{"bmi1", 3},
	{"bmi2", 3},
	{"f16c", 3},
	{"fma", 3},
	{"abm", 3},
	{"movbe", 3},
	{"xsave", 3},
};

static void test_baselines(void **state)
{
	static const char *const text[] = {"x86-64-v1", "x86-64-v2", "x86-64-v3"};
	static const char *const more[] = {
		"aes", "pclmulqdq", "rdrand", "adx", "fsgsbase", "pcid", "invpcid", "rdtscp"};
	x86_cpuid_host *const hosts[] = {skylake, zen5};

	for (unsigned h = 0; h < ARRAY_SIZE(hosts); h++) {
		for (unsigned level = 1; level <= 3; level++) {
			struct x86_cpuid_model m;
			must_choose(&m, text[level - 1], hosts[h]);
			for (unsigned i = 0; i < ARRAY_SIZE(psabi); i++)
				if (shows(&m, psabi[i].flag) != (psabi[i].level <= level))
					fail_msg("%s: %s", text[level - 1], psabi[i].flag);
			for (unsigned i = 0; i < ARRAY_SIZE(more); i++)
				if (shows(&m, more[i]))
					fail_msg("%s has %s", text[level - 1], more[i]);
			assert_true(shows(&m, "lm") && shows(&m, "nx") && shows(&m, "x2apic"));
			assert_int_equal(x86_has(&m.features, X86_F_AVX2), level == 3);
		}
	}
}

/* The same on every host that has it, but for what only one vendor's processors have. */
static void test_baselines_are_the_same_everywhere(void **state)
{
	struct x86_cpuid_model a, b;
	const char *name;

	must_choose(&a, "x86-64-v3", skylake);
	must_choose(&b, "x86-64-v3", zen5);
	for (unsigned i = 0; x86_cpuid_flag_name(i, &name); i++) {
		if (!name || !strcmp(name, "topoext") || !strcmp(name, "mmxext") ||
			!strcmp(name, "xsaveerptr"))
			continue;
		if (x86_cpuid_shows(&a, i) != x86_cpuid_shows(&b, i))
			fail_msg("%s", name);
	}
}

static void test_baseline_that_the_host_lacks(void **state)
{
	struct x86_cpuid_model m;

	must_choose(&m, "x86-64-v2", nehalem);
	must_refuse("x86-64-v3", nehalem, "x86-64-v3");
	must_refuse("x86-64-v3", nehalem, "this host's processor lacks it");
	must_choose(&m, "max", nehalem);
	assert_false(shows(&m, "avx") || shows(&m, "avx2") || shows(&m, "xsaveopt"));
}

static void test_host_model(void **state)
{
	struct x86_cpuid_model m;

	must_choose(&m, "host", skylake);
	assert_true(shows(&m, "avx2") && shows(&m, "invpcid") && shows(&m, "erms"));
	assert_true(shows(&m, "arch_capabilities") && shows(&m, "tsc_deadline_timer"));
	assert_false(shows(&m, "fsrm") || shows(&m, "rdpid") || shows(&m, "sha_ni"));
	must_choose(&m, "max", skylake);
	assert_true(shows(&m, "fsrm") && shows(&m, "rdpid") && shows(&m, "pcid"));
	assert_false(shows(&m, "sha_ni")); /* it would run on the host's own */
	must_choose(&m, "host", zen5);
	assert_true(shows(&m, "fsrm") && shows(&m, "rdpid") && shows(&m, "sha_ni"));
}

/* ---- plus and minus ---- */

static void test_flags(void **state)
{
	struct x86_cpuid_model m;

	must_choose(&m, "x86-64-v1,+avx2,+pcid", skylake);
	assert_true(
		shows(&m, "avx2") && shows(&m, "avx") && shows(&m, "xsave") && shows(&m, "pcid"));
	assert_false(shows(&m, "fma") || shows(&m, "sse4_2"));
	must_choose(&m, "max,-avx", skylake);
	assert_true(shows(&m, "xsave"));
	assert_false(
		shows(&m, "avx") || shows(&m, "avx2") || shows(&m, "fma") || shows(&m, "f16c"));
	assert_false(x86_has(&m.features, X86_F_AVX2));
	must_choose(&m, "max,-sse3", skylake);
	assert_false(shows(&m, "pni") || shows(&m, "ssse3") || shows(&m, "sse4_2"));
	/* The last one counts. */
	must_choose(&m, "max,-avx2,+avx2", skylake);
	assert_true(shows(&m, "avx2"));
	must_choose(&m, "max,+avx2,-xsave", skylake);
	assert_false(shows(&m, "avx2") || shows(&m, "xsave"));
	must_choose(&m, "max,-pcid,-arch_capabilities,-invtsc", skylake);
	assert_false(
		shows(&m, "pcid") || shows(&m, "arch_capabilities") || shows(&m, "nonstop_tsc"));
}

static void test_flags_that_cannot_be_given(void **state)
{
	must_refuse(
		"max,+sha_ni", skylake, "'sha_ni' can't be given: this host's processor lacks it");
	must_refuse("max,+smap", zen5, "'smap' can't be given: Lodge does not do it");
	must_refuse("max,+topoext", skylake, "'topoext' can't be given: processors of this vendor");
	must_refuse("x86-64-v1,+fma", nehalem, "this host's processor lacks it");
}

/* An engine that removes a flag: only those that were asked for are missed. */
static void test_check(void **state)
{
	static const struct {
		const char *text;
		bool missed;
	} cases[] = {
		{"max", false},
		{"host", false},
		{"x86-64-v2", false},
		{"x86-64-v3", true},
		{"x86-64-v3,-avx2", false},
		{"x86-64-v3,-avx", false},
		{"max,+avx2", true},
		{"max,+avx2,-avx", false},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct x86_cpuid_model m;
		struct error err = {0};
		must_choose(&m, cases[i].text, skylake);
		for (unsigned k = 0; k < m.count; k++)
			if (m.leaf[k].leaf == 7 && m.leaf[k].subleaf == 0)
				m.leaf[k].ebx &= ~(uint32_t)BIT(5);
		assert_int_equal(x86_cpuid_check(&m, "kvm", &err), cases[i].missed ? -ENOTSUP : 0);
		assert_true(!cases[i].missed || strstr(err.text, "kvm can't give"));
		assert_true(!cases[i].missed || strstr(err.text, " avx2"));
	}
}

/* ---- who it is ---- */

static void test_identity(void **state)
{
	struct x86_cpuid_model m;
	uint32_t r[4];

	must_choose(&m, "max,vendor=intel,family=6,model=85,stepping=4", zen5);
	x86_cpuid_query(&m, 0, 0, 1, 0, 0, 0, r);
	assert_int_equal(r[EBX], 0x756e6547);
	x86_cpuid_query(&m, 0, 0, 1, 0, 1, 0, r);
	assert_int_equal(r[EAX], 0x50654);
	x86_cpuid_query(&m, 0, 0, 1, 0, 0x80000000, 0, r);
	assert_true(r[EAX] == 0x80000008 && !(r[EBX] | r[ECX] | r[EDX]));
	x86_cpuid_query(&m, 0, 0, 1, 0, 0x80000021, 0, r);
	assert_int_equal(r[EAX] | r[ECX], 0);
	assert_false(shows(&m, "topoext"));
	x86_cpuid_query(&m, 0, 0, 1, 0, 0x80000002, 0, r);
	assert_memory_equal(r, "Lodge virtual pr", 16);
	must_choose(&m, "max,vendor=amd,family=25,model=17,stepping=1", skylake);
	x86_cpuid_query(&m, 0, 0, 1, 0, 1, 0, r);
	assert_int_equal(r[EAX], 0xa10f11);
	x86_cpuid_query(&m, 0, 0, 1, 0, 0x80000000, 0, r);
	assert_true(r[EAX] == 0x80000021 && r[EBX] == 0x68747541);
	assert_true(shows(&m, "topoext"));
	/* What is not named is the host's. */
	must_choose(&m, "x86-64-v1,stepping=2", zen5);
	x86_cpuid_query(&m, 0, 0, 1, 0, 1, 0, r);
	assert_int_equal(r[EAX], 0xb00f22);
	must_choose(&m, "x86-64-v1", zen5);
	x86_cpuid_query(&m, 0, 0, 1, 0, 1, 0, r);
	assert_int_equal(r[EAX], 0xb00f21);
}

/* Linux takes no promise of Intel's for branch history, but a switch in hardware. */
static void test_branch_history(void **state)
{
	struct x86_cpuid_model m;
	uint32_t r[4];

	must_choose(&m, "max", skylake);
	x86_cpuid_query(&m, 0, 0, 1, 0, 7, 0, r);
	assert_true(r[EAX] == 2 && (r[EDX] & BIT(26)));
	x86_cpuid_query(&m, 0, 0, 1, 0, 7, 2, r);
	assert_int_equal(r[EDX], BIT(4));
	must_choose(&m, "max", zen5);
	x86_cpuid_query(&m, 0, 0, 1, 0, 7, 2, r);
	assert_int_equal(r[EDX], 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_words),
		cmocka_unit_test(test_bad_words),
		cmocka_unit_test(test_too_many_words),
		cmocka_unit_test(test_names_occur_once),
		cmocka_unit_test(test_baselines),
		cmocka_unit_test(test_baselines_are_the_same_everywhere),
		cmocka_unit_test(test_baseline_that_the_host_lacks),
		cmocka_unit_test(test_host_model),
		cmocka_unit_test(test_flags),
		cmocka_unit_test(test_flags_that_cannot_be_given),
		cmocka_unit_test(test_check),
		cmocka_unit_test(test_identity),
		cmocka_unit_test(test_branch_history),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
