/*
 * The CPUID flags that Lodge knows: where each bit is (SDM 2A "CPUID"; AMD APM 3 appendix E), what it needs,
 * and which of the x86-64 psABI's microarchitecture levels (chapter 3.1.1) has it first.
 *
 * Left out on purpose (or hidden): SMAP, SMEP, UMIP, protection keys, 5-level paging, CET, TSX, nested
 * virtualization, MONITOR, performance counters, AMX, AVX-512, XSAVES, virtual-8086 extensions.
 *
 * Invariant: a name occurs once.
 */
#include "isa/x86/cpuid_flags.h"

#include "base/util.h"

#include <string.h>

#define ALWAYS (NEED_MACHINE | NEED_FIXED)

/* clang-format off */
const struct x86_cpuid_flag x86_cpuid_flags[] = {
	/* leaf 1 */
	{"fpu", X86_F_FPU, X86_F_BASE, NEED_ROWS | ALWAYS, 1, EDX, 0, 1, 0},
	{"de", X86_F_BASE, X86_F_BASE, NEED_MACHINE, 0, EDX, 2, 1, 0},
	{"pse", X86_F_PSE, X86_F_BASE, ALWAYS, 0, EDX, 3, 1, 0},
	{"tsc", X86_F_TSC, X86_F_BASE, NEED_ROWS | ALWAYS, 0, EDX, 4, 1, 0},
	{"msr", X86_F_MSR, X86_F_BASE, NEED_ROWS | ALWAYS, 0, EDX, 5, 1, 0},
	{"pae", X86_F_PAE, X86_F_BASE, ALWAYS, 0, EDX, 6, 1, 0},
	{"mce", X86_F_MCE, X86_F_BASE, NEED_MACHINE, 0, EDX, 7, 1, 0},
	{"cx8", X86_F_CX8, X86_F_BASE, NEED_ROWS | ALWAYS, 1, EDX, 8, 1, 0},
	{"apic", X86_F_APIC, X86_F_BASE, ALWAYS, 0, EDX, 9, 1, 0},
	{"sep", X86_F_SEP, X86_F_BASE, NEED_ROWS | NEED_MACHINE, 0, EDX, 11, 1, 0},
	{"mtrr", X86_F_MTRR, X86_F_BASE, NEED_MACHINE, 0, EDX, 12, 1, 0},
	{"pge", X86_F_PGE, X86_F_BASE, ALWAYS, 0, EDX, 13, 1, 0},
	{"mca", X86_F_BASE, X86_F_BASE, NEED_MACHINE, 0, EDX, 14, 1, 0},
	{"cmov", X86_F_CMOV, X86_F_BASE, NEED_ROWS | ALWAYS, 1, EDX, 15, 1, 0},
	{"pat", X86_F_PAT, X86_F_BASE, NEED_MACHINE, 0, EDX, 16, 1, 0},
	{"pse36", X86_F_PSE36, X86_F_BASE, NEED_MACHINE, 0, EDX, 17, 1, 0},
	{"clflush", X86_F_CLFLUSH, X86_F_BASE, NEED_ROWS | NEED_MACHINE, 0, EDX, 19, 1, 0},
	{"mmx", X86_F_MMX, X86_F_BASE, NEED_ROWS | NEED_HOST | ALWAYS, 1, EDX, 23, 1, 0},
	{"fxsr", X86_F_FXSR, X86_F_BASE, NEED_ROWS | ALWAYS, 1, EDX, 24, 1, 0},
	{"sse", X86_F_SSE, X86_F_BASE, NEED_ROWS | NEED_HOST | ALWAYS, 1, EDX, 25, 1, 0},
	{"sse2", X86_F_SSE2, X86_F_BASE, NEED_ROWS | NEED_HOST | ALWAYS, 1, EDX, 26, 1, 0},
	{"pni", X86_F_SSE3, X86_F_BASE, NEED_ROWS | NEED_HOST, 2, ECX, 0, 1, 0},
	{"pclmulqdq", X86_F_PCLMULQDQ, X86_F_BASE, NEED_ROWS | NEED_HOST, 0, ECX, 1, 1, 0},
	{"monitor", X86_F_MONITOR, X86_F_BASE, NEED_HIDDEN, 0, ECX, 3, 1, 0},
	{"ssse3", X86_F_SSSE3, X86_F_SSE3, NEED_ROWS | NEED_HOST, 2, ECX, 9, 1, 0},
	{"fma", X86_F_FMA, X86_F_AVX, NEED_ROWS | NEED_HOST, 3, ECX, 12, 1, 0},
	{"cx16", X86_F_CX16, X86_F_BASE, NEED_ROWS | NEED_HOST, 2, ECX, 13, 1, 0},
	{"pcid", X86_F_PCID, X86_F_BASE, NEED_NOTHING, 0, ECX, 17, 1, 0},
	{"sse4_1", X86_F_SSE41, X86_F_SSSE3, NEED_ROWS | NEED_HOST, 2, ECX, 19, 1, 0},
	{"sse4_2", X86_F_SSE42, X86_F_SSE41, NEED_ROWS | NEED_HOST, 2, ECX, 20, 1, 0},
	{"x2apic", X86_F_X2APIC, X86_F_BASE, NEED_MACHINE, 0, ECX, 21, 1, 0},
	{"movbe", X86_F_MOVBE, X86_F_BASE, NEED_ROWS, 3, ECX, 22, 1, 0},
	{"popcnt", X86_F_POPCNT, X86_F_BASE, NEED_ROWS, 2, ECX, 23, 1, 0},
	{"tsc_deadline_timer", X86_F_TSC_DEADLINE, X86_F_BASE, NEED_MACHINE, 0, ECX, 24, 1, 0},
	{"aes", X86_F_AES, X86_F_BASE, NEED_ROWS | NEED_HOST, 0, ECX, 25, 1, 0},
	{"xsave", X86_F_XSAVE, X86_F_BASE, NEED_ROWS | NEED_HOST, 3, ECX, 26, 1, 0},
	{"avx", X86_F_AVX, X86_F_XSAVE, NEED_ROWS | NEED_HOST, 3, ECX, 28, 1, 0},
	{"f16c", X86_F_F16C, X86_F_AVX, NEED_ROWS | NEED_HOST, 3, ECX, 29, 1, 0},
	{"rdrand", X86_F_RDRAND, X86_F_BASE, NEED_ROWS | NEED_HOST, 0, ECX, 30, 1, 0},
	{"hypervisor", X86_F_BASE, X86_F_BASE, NEED_MACHINE, 0, ECX, 31, 1, 0},

	/* leaf 7 */
	{"fsgsbase", X86_F_FSGSBASE, X86_F_BASE, NEED_ROWS, 0, EBX, 0, 7, 0},
	{"tsc_adjust", X86_F_BASE, X86_F_BASE, NEED_MACHINE, 0, EBX, 1, 7, 0},
	{"bmi1", X86_F_BMI1, X86_F_BASE, NEED_ROWS, 3, EBX, 3, 7, 0},
	{"avx2", X86_F_AVX2, X86_F_AVX, NEED_ROWS | NEED_HOST, 3, EBX, 5, 7, 0},
	/* x87 data pointer updated on exceptions only */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_HOST | NEED_MACHINE, 0, EBX, 6, 7, 0},
	{"smep", X86_F_SMEP, X86_F_BASE, NEED_HIDDEN, 0, EBX, 7, 7, 0},
	{"bmi2", X86_F_BMI2, X86_F_BASE, NEED_ROWS, 3, EBX, 8, 7, 0},
	{"erms", X86_F_ERMS, X86_F_BASE, NEED_NOTHING, 0, EBX, 9, 7, 0},
	{"invpcid", X86_F_INVPCID, X86_F_BASE, NEED_ROWS, 0, EBX, 10, 7, 0},
	/* x87 CS and DS deprecated */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_HOST | NEED_MACHINE, 0, EBX, 13, 7, 0},
	{"rdseed", X86_F_RDSEED, X86_F_BASE, NEED_ROWS | NEED_HOST, 0, EBX, 18, 7, 0},
	{"adx", X86_F_ADX, X86_F_BASE, NEED_ROWS, 0, EBX, 19, 7, 0},
	{"smap", X86_F_SMAP, X86_F_BASE, NEED_HIDDEN, 0, EBX, 20, 7, 0},
	{"clflushopt", X86_F_CLFLUSHOPT, X86_F_BASE, NEED_ROWS, 0, EBX, 23, 7, 0},
	{"clwb", X86_F_CLWB, X86_F_BASE, NEED_ROWS, 0, EBX, 24, 7, 0},
	{"sha_ni", X86_F_SHA, X86_F_BASE, NEED_ROWS | NEED_HOST, 0, EBX, 29, 7, 0},
	{"umip", X86_F_UMIP, X86_F_BASE, NEED_HIDDEN, 0, ECX, 2, 7, 0},
	{"gfni", X86_F_GFNI, X86_F_BASE, NEED_ROWS | NEED_HOST, 0, ECX, 8, 7, 0},
	{"vaes", X86_F_VAES, X86_F_AVX, NEED_ROWS | NEED_HOST, 0, ECX, 9, 7, 0},
	{"vpclmulqdq", X86_F_VPCLMULQDQ, X86_F_AVX, NEED_ROWS | NEED_HOST, 0, ECX, 10, 7, 0},
	{"rdpid", X86_F_RDPID, X86_F_BASE, NEED_ROWS, 0, ECX, 22, 7, 0},
	{"movdiri", X86_F_MOVDIRI, X86_F_BASE, NEED_ROWS, 0, ECX, 27, 7, 0},
	{"movdir64b", X86_F_MOVDIR64B, X86_F_BASE, NEED_ROWS, 0, ECX, 28, 7, 0},
	{"fsrm", X86_F_BASE, X86_F_BASE, NEED_NOTHING, 0, EDX, 4, 7, 0},
	{"serialize", X86_F_SERIALIZE, X86_F_BASE, NEED_ROWS, 0, EDX, 14, 7, 0},
	/* SPEC_CTRL: IBRS_ALL means to set it once */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_INTEL, 0, EDX, 26, 7, 0},
	{"arch_capabilities", X86_F_BASE, X86_F_BASE, NEED_MACHINE, 0, EDX, 29, 7, 0},
	{"avx_vnni", X86_F_AVX_VNNI, X86_F_AVX, NEED_ROWS | NEED_HOST, 0, EAX, 4, 7, 1},

	/* BHI_DIS_S, set once and for all; without it Linux clears the branch history by hand */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_INTEL, 0, EDX, 4, 7, 2},

	/* leaf 0xd */
	{"xsaveopt", X86_F_XSAVEOPT, X86_F_XSAVE, NEED_ROWS, 0, EAX, 0, 0xd, 1},
	{"xsavec", X86_F_XSAVEC, X86_F_XSAVE, NEED_ROWS, 0, EAX, 1, 0xd, 1},
	{"xgetbv1", X86_F_XGETBV1, X86_F_XSAVE, NEED_NOTHING, 0, EAX, 2, 0xd, 1},
	{"xsaves", X86_F_XSAVES, X86_F_XSAVE, NEED_HIDDEN, 0, EAX, 3, 0xd, 1},

	/* AMD's leaves */
	{"lahf_lm", X86_F_LAHF64, X86_F_BASE, NEED_ROWS, 2, ECX, 0, 0x80000001, 0},
	{"abm", X86_F_ABM, X86_F_BASE, NEED_ROWS, 3, ECX, 5, 0x80000001, 0},
	{"sse4a", X86_F_SSE4A, X86_F_BASE, NEED_ROWS | NEED_HOST, 0, ECX, 6, 0x80000001, 0},
	{"3dnowprefetch", X86_F_3DNOWPREFETCH, X86_F_BASE, NEED_NOTHING, 0, ECX, 8, 0x80000001, 0},
	{"topoext", X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_AMD, 0, ECX, 22, 0x80000001, 0},
	{"syscall", X86_F_SYSCALL, X86_F_BASE, NEED_ROWS | ALWAYS, 1, EDX, 11, 0x80000001, 0},
	{"nx", X86_F_NX, X86_F_BASE, NEED_MACHINE, 0, EDX, 20, 0x80000001, 0},
	{"mmxext", X86_F_SSE, X86_F_BASE, NEED_DERIVED | ALWAYS | NEED_AMD, 0, EDX, 22, 0x80000001, 0},
	{"pdpe1gb", X86_F_PDPE1GB, X86_F_BASE, NEED_NOTHING, 0, EDX, 26, 0x80000001, 0},
	{"rdtscp", X86_F_RDTSCP, X86_F_BASE, NEED_ROWS, 0, EDX, 27, 0x80000001, 0},
	{"lm", X86_F_LM, X86_F_BASE, ALWAYS, 0, EDX, 29, 0x80000001, 0},
	/* and constant_tsc: the invariant TSC */
	{"nonstop_tsc", X86_F_BASE, X86_F_BASE, NEED_MACHINE, 0, EDX, 8, 0x80000007, 0},
	{"xsaveerptr", X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_AMD, 0, EBX, 2, 0x80000008, 0},
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE, 0, EBX, 26, 0x80000008, 0}, /* SSB_NO */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE, 0, EBX, 29, 0x80000008, 0}, /* BTC_NO */
	/* no nested data breakpoints */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_AMD, 0, EAX, 0, 0x80000021, 0},
	/* LFENCE serializes */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_AMD, 0, EAX, 2, 0x80000021, 0},
	/* null selectors clear the base */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_AMD, 0, EAX, 6, 0x80000021, 0},
	/* automatic IBRS */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_AMD, 0, EAX, 8, 0x80000021, 0},
	/* SRSO_NO */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_AMD, 0, EAX, 29, 0x80000021, 0},
	/* TSA_SQ_NO */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_AMD, 0, ECX, 1, 0x80000021, 0},
	/* TSA_L1_NO */
	{NULL, X86_F_BASE, X86_F_BASE, NEED_MACHINE | NEED_AMD, 0, ECX, 2, 0x80000021, 0},
};
/* clang-format on */

const unsigned x86_cpuid_flag_count = ARRAY_SIZE(x86_cpuid_flags);

_Static_assert(ARRAY_SIZE(x86_cpuid_flags) <= X86_CPUID_FLAGS_MAX, "the sets are too small");

/* Other names that people know them by. */
static const struct {
	const char *other, *name;
} aliases[] = {
	{"constant_tsc", "nonstop_tsc"},
	{"invtsc", "nonstop_tsc"},
	{"lzcnt", "abm"},
	{"sse3", "pni"},
};

static bool same(const char *name, const char *text, size_t length)
{
	return strlen(name) == length && memcmp(name, text, length) == 0;
}

int x86_cpuid_flag_find(const char *name, size_t length)
{
	for (unsigned i = 0; i < ARRAY_SIZE(aliases); i++)
		if (same(aliases[i].other, name, length))
			return x86_cpuid_flag_find(aliases[i].name, strlen(aliases[i].name));
	for (unsigned i = 0; i < ARRAY_SIZE(x86_cpuid_flags); i++)
		if (x86_cpuid_flags[i].name && same(x86_cpuid_flags[i].name, name, length))
			return (int)i;
	return -1;
}

int x86_cpuid_flag_of(unsigned feature)
{
	for (unsigned i = 0; feature != X86_F_BASE && i < ARRAY_SIZE(x86_cpuid_flags); i++)
		if (x86_cpuid_flags[i].feature == feature &&
			!(x86_cpuid_flags[i].need & NEED_DERIVED))
			return (int)i;
	return -1;
}
