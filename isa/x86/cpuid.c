/*
 * The CPUID model of engines that run guest code through our own semantics, and the CPUID instruction's
 * answers from a model. SDM 2A "CPUID"; AMD APM 3 appendix E; KVM's paravirtual leaves.
 *
 * A feature is shown if the table `features` has it, every row it needs is in the instruction table, and,
 * where the instruction is executed by the host's own, the host has it. Everything that would make a guest
 * turn on a mitigation is answered "not affected": this processor does not speculate across privileges.
 *
 * Left out on purpose (hidden): SMAP, SMEP, UMIP, protection keys, 5-level paging, CET, TSX, nested
 * virtualization, MONITOR, performance counters, AMX, AVX-512, XSAVES, virtual-8086 extensions.
 */
#include "isa/x86/cpuid.h"

#include "base/util.h"

#include <cpuid.h>
#include <string.h>

enum cpuid_reg { EAX, EBX, ECX, EDX };

#define PHYS_BITS    46
#define LINEAR_BITS  48
#define MAX_BASIC    0x16u
#define MAX_AMD	     0x80000021u
#define MAX_INTEL    0x80000008u
#define MAX_KVM	     0x40000010u
#define XSAVE_LEGACY 576u /* FXSAVE area and header */
#define XSAVE_AVX    256u

/* KVM paravirtual features: extend this as the machine learns more of them. */
#define KVM_CLOCKSOURCE	       BIT(0)
#define KVM_NOP_IO_DELAY       BIT(1)
#define KVM_CLOCKSOURCE2       BIT(3)
#define KVM_CLOCKSOURCE_STABLE BIT(24)
#define KVM_FEATURES \
	(KVM_CLOCKSOURCE | KVM_NOP_IO_DELAY | KVM_CLOCKSOURCE2 | KVM_CLOCKSOURCE_STABLE)

/* IA32_ARCH_CAPABILITIES: each says that an attack does not work here. */
#define ARCH_CAPABILITIES                                                                   \
	(BIT(0) /* RDCL_NO */ | BIT(1) /* IBRS_ALL */ | BIT(3) /* SKIP_L1DFL_VMENTRY */ |   \
		BIT(4) /* SSB_NO */ | BIT(5) /* MDS_NO */ | BIT(6) /* PSCHANGE_MC_NO */ |   \
		BIT(8) /* TAA_NO */ | BIT(13) /* SBDR_SSDP_NO */ | BIT(14) /* FBSDP_NO */ | \
		BIT(15) /* PSDP_NO */ | BIT(20) /* BHI_NO */ | BIT(24) /* PBRSB_NO */ |     \
		BIT(26) /* GDS_NO */ | BIT(27) /* RFDS_NO */ | BIT(62) /* ITS_NO */)

/* ---- features ---- */

enum feature_need {
	ALWAYS = 0,
	ROWS = 1,    /* shown if the instruction table has a row of it */
	HOST = 2,    /* shown if the host has it */
	HIDDEN = 4,  /* not shown, but understood in a model made elsewhere */
	DERIVED = 8, /* second place of a bit: shown if the first one is */
	AMD = 16,    /* AMD hosts only */
	INTEL = 32,  /* all others */
};

static const struct feature {
	uint16_t feature; /* enum x86_feature; X86_F_BASE: a bit the decoder does not care for */
	uint8_t need;	  /* enum feature_need */
	uint8_t reg, bit;
	uint32_t leaf;
} features[] = {
	{X86_F_FPU, ROWS, EDX, 0, 1}, {X86_F_BASE, ALWAYS, EDX, 2, 1}, /* DE */
	{X86_F_PSE, ALWAYS, EDX, 3, 1}, {X86_F_TSC, ROWS, EDX, 4, 1}, {X86_F_MSR, ROWS, EDX, 5, 1},
	{X86_F_PAE, ALWAYS, EDX, 6, 1}, {X86_F_MCE, ALWAYS, EDX, 7, 1},
	{X86_F_CX8, ROWS, EDX, 8, 1}, {X86_F_APIC, ALWAYS, EDX, 9, 1},
	{X86_F_SEP, ROWS, EDX, 11, 1}, {X86_F_MTRR, ALWAYS, EDX, 12, 1},
	{X86_F_PGE, ALWAYS, EDX, 13, 1}, {X86_F_BASE, ALWAYS, EDX, 14, 1}, /* MCA */
	{X86_F_CMOV, ROWS, EDX, 15, 1}, {X86_F_PAT, ALWAYS, EDX, 16, 1},
	{X86_F_PSE36, ALWAYS, EDX, 17, 1}, {X86_F_CLFLUSH, ROWS, EDX, 19, 1},
	{X86_F_MMX, ROWS | HOST, EDX, 23, 1}, {X86_F_FXSR, ROWS, EDX, 24, 1},
	{X86_F_SSE, ROWS | HOST, EDX, 25, 1}, {X86_F_SSE2, ROWS | HOST, EDX, 26, 1},

	{X86_F_SSE3, ROWS | HOST, ECX, 0, 1}, {X86_F_PCLMULQDQ, ROWS | HOST, ECX, 1, 1},
	{X86_F_MONITOR, HIDDEN, ECX, 3, 1}, {X86_F_SSSE3, ROWS | HOST, ECX, 9, 1},
	{X86_F_FMA, ROWS | HOST, ECX, 12, 1}, {X86_F_CX16, ROWS, ECX, 13, 1},
	{X86_F_PCID, ALWAYS, ECX, 17, 1}, {X86_F_SSE41, ROWS | HOST, ECX, 19, 1},
	{X86_F_SSE42, ROWS | HOST, ECX, 20, 1}, {X86_F_X2APIC, ALWAYS, ECX, 21, 1},
	{X86_F_MOVBE, ROWS, ECX, 22, 1}, {X86_F_POPCNT, ROWS, ECX, 23, 1},
	{X86_F_TSC_DEADLINE, ALWAYS, ECX, 24, 1}, {X86_F_AES, ROWS | HOST, ECX, 25, 1},
	{X86_F_XSAVE, ROWS | HOST, ECX, 26, 1}, {X86_F_AVX, ROWS | HOST, ECX, 28, 1},
	{X86_F_F16C, ROWS | HOST, ECX, 29, 1}, {X86_F_RDRAND, ROWS, ECX, 30, 1},
	{X86_F_BASE, ALWAYS, ECX, 31, 1}, /* hypervisor */

	{X86_F_FSGSBASE, ROWS, EBX, 0, 7}, {X86_F_BASE, ALWAYS, EBX, 1, 7}, /* TSC_ADJUST */
	{X86_F_BMI1, ROWS, EBX, 3, 7}, {X86_F_AVX2, ROWS | HOST, EBX, 5, 7},
	{X86_F_BASE, HOST, EBX, 6, 7}, /* x87 data pointer updated on exceptions only */
	{X86_F_SMEP, HIDDEN, EBX, 7, 7}, {X86_F_BMI2, ROWS, EBX, 8, 7},
	{X86_F_ERMS, ALWAYS, EBX, 9, 7}, {X86_F_INVPCID, ROWS, EBX, 10, 7},
	{X86_F_BASE, HOST, EBX, 13, 7}, /* x87 CS and DS deprecated */
	{X86_F_RDSEED, ROWS, EBX, 18, 7}, {X86_F_ADX, ROWS, EBX, 19, 7},
	{X86_F_SMAP, HIDDEN, EBX, 20, 7}, {X86_F_CLFLUSHOPT, ROWS, EBX, 23, 7},
	{X86_F_CLWB, ROWS, EBX, 24, 7}, {X86_F_SHA, ROWS | HOST, EBX, 29, 7},
	{X86_F_UMIP, HIDDEN, ECX, 2, 7}, {X86_F_GFNI, ROWS | HOST, ECX, 8, 7},
	{X86_F_VAES, ROWS | HOST, ECX, 9, 7}, {X86_F_VPCLMULQDQ, ROWS | HOST, ECX, 10, 7},
	{X86_F_RDPID, ROWS, ECX, 22, 7}, {X86_F_MOVDIRI, ROWS, ECX, 27, 7},
	{X86_F_MOVDIR64B, ROWS, ECX, 28, 7}, {X86_F_BASE, ALWAYS, EDX, 4, 7}, /* FSRM */
	{X86_F_SERIALIZE, ROWS, EDX, 14, 7},
	{X86_F_BASE, ALWAYS | INTEL, EDX, 26, 7}, /* SPEC_CTRL: IBRS_ALL means to set it once */
	{X86_F_BASE, ALWAYS, EDX, 29, 7},	  /* ARCH_CAPABILITIES */

	{X86_F_LAHF64, ROWS, ECX, 0, 0x80000001}, {X86_F_ABM, ROWS, ECX, 5, 0x80000001},
	{X86_F_SSE4A, ROWS | HOST, ECX, 6, 0x80000001},
	{X86_F_3DNOWPREFETCH, ALWAYS, ECX, 8, 0x80000001},
	{X86_F_BASE, ALWAYS | AMD, ECX, 22, 0x80000001}, /* topology extensions */
	{X86_F_SYSCALL, ROWS, EDX, 11, 0x80000001}, {X86_F_NX, ALWAYS, EDX, 20, 0x80000001},
	{X86_F_SSE, DERIVED | AMD, EDX, 22, 0x80000001}, /* MMX extensions */
	{X86_F_PDPE1GB, ALWAYS, EDX, 26, 0x80000001}, {X86_F_RDTSCP, ROWS, EDX, 27, 0x80000001},
	{X86_F_LM, ALWAYS, EDX, 29, 0x80000001},

	{X86_F_BASE, ALWAYS, EDX, 8, 0x80000007},	 /* invariant TSC */
	{X86_F_BASE, ALWAYS | AMD, EBX, 2, 0x80000008},	 /* FXRSTOR restores error pointers */
	{X86_F_BASE, ALWAYS, EBX, 26, 0x80000008},	 /* SSB_NO */
	{X86_F_BASE, ALWAYS, EBX, 29, 0x80000008},	 /* BTC_NO */
	{X86_F_BASE, ALWAYS | AMD, EAX, 0, 0x80000021},	 /* no nested data breakpoints */
	{X86_F_BASE, ALWAYS | AMD, EAX, 2, 0x80000021},	 /* LFENCE serializes */
	{X86_F_BASE, ALWAYS | AMD, EAX, 6, 0x80000021},	 /* null selectors clear the base */
	{X86_F_BASE, ALWAYS | AMD, EAX, 8, 0x80000021},	 /* automatic IBRS */
	{X86_F_BASE, ALWAYS | AMD, EAX, 29, 0x80000021}, /* SRSO_NO */
	{X86_F_BASE, ALWAYS | AMD, ECX, 1, 0x80000021},	 /* TSA_SQ_NO */
	{X86_F_BASE, ALWAYS | AMD, ECX, 2, 0x80000021},	 /* TSA_L1_NO */
};

/* Features with a subleaf: these alone have one. */
static const struct feature subfeatures[] = {
	{X86_F_XSAVEOPT, ROWS, EAX, 0, 0xd},
	{X86_F_XSAVEC, ROWS, EAX, 1, 0xd},
	{X86_F_XGETBV1, ALWAYS, EAX, 2, 0xd},
	{X86_F_XSAVES, HIDDEN, EAX, 3, 0xd},
	{X86_F_AVX_VNNI, ROWS | HOST, EAX, 4, 7},
};

static void feature_add(struct x86_feature_set *set, unsigned feature)
{
	set->bits[feature / 64] |= BIT(feature % 64);
}

static struct x86_feature_set rows_features(void)
{
	struct x86_feature_set set = {0};
	for (unsigned i = 0; i < x86_row_count; i++)
		feature_add(&set, x86_rows[i].feature);
	return set;
}

/* ---- building a model ---- */

struct builder {
	struct x86_cpuid_model *model;
	struct x86_feature_set rows;
	x86_cpuid_host *host;
	bool amd;
	unsigned cpus;
	unsigned core_bits; /* APIC id bits of the core within the package */
};

static void host_cpuid(const struct builder *b, uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	b->host(leaf & 0x80000000, 0, regs);
	if (leaf > regs[EAX])
		memset(regs, 0, 4 * sizeof(regs[0]));
	else
		b->host(leaf, subleaf, regs);
}

static const struct x86_cpuid_leaf *model_find(
	const struct x86_cpuid_model *model, uint32_t leaf, uint32_t subleaf)
{
	for (unsigned i = 0; i < model->count; i++) {
		const struct x86_cpuid_leaf *l = &model->leaf[i];
		if (l->leaf == leaf && (!l->indexed || l->subleaf == subleaf))
			return l;
	}
	return NULL;
}

/* The leaf, added as zeros if it is not there yet. The models made here never fill the array. */
static struct x86_cpuid_leaf *leaf_get(
	struct builder *b, uint32_t leaf, uint32_t subleaf, bool indexed)
{
	struct x86_cpuid_model *model = b->model;
	const struct x86_cpuid_leaf *old = model_find(model, leaf, subleaf);
	struct x86_cpuid_leaf *l;
	if (old)
		return &model->leaf[old - model->leaf];
	if (model->count == X86_CPUID_LEAVES_MAX)
		return &model->leaf[model->count - 1];
	l = &model->leaf[model->count++];
	*l = (struct x86_cpuid_leaf){.leaf = leaf, .subleaf = subleaf, .indexed = indexed};
	return l;
}

static uint32_t *leaf_reg(struct x86_cpuid_leaf *l, unsigned reg)
{
	switch (reg) {
	case EAX: return &l->eax;
	case EBX: return &l->ebx;
	case ECX: return &l->ecx;
	default: return &l->edx;
	}
}

static void leaf_set(struct x86_cpuid_leaf *l, const uint32_t regs[4])
{
	l->eax = regs[EAX];
	l->ebx = regs[EBX];
	l->ecx = regs[ECX];
	l->edx = regs[EDX];
}

static void add_from_host(struct builder *b, uint32_t leaf)
{
	uint32_t regs[4];
	host_cpuid(b, leaf, 0, regs);
	leaf_set(leaf_get(b, leaf, 0, false), regs);
}

static bool feature_shown(const struct builder *b, const struct feature *f, uint32_t subleaf)
{
	if ((f->need & HIDDEN) || (f->need & (b->amd ? INTEL : AMD)))
		return false;
	if ((f->need & (ROWS | DERIVED)) && !x86_has(&b->rows, f->feature))
		return false;
	if (f->need & HOST) {
		uint32_t regs[4];
		host_cpuid(b, f->leaf, subleaf, regs);
		return regs[f->reg] >> f->bit & 1;
	}
	return true;
}

static void add_features(struct builder *b)
{
	for (unsigned i = 0; i < ARRAY_SIZE(features); i++) {
		const struct feature *f = &features[i];
		if (feature_shown(b, f, 0))
			*leaf_reg(leaf_get(b, f->leaf, 0, f->leaf == 7), f->reg) |= 1u << f->bit;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(subfeatures); i++) {
		const struct feature *f = &subfeatures[i];
		struct x86_cpuid_leaf *l = leaf_get(b, f->leaf, 1, true);
		if (feature_shown(b, f, 1))
			*leaf_reg(l, f->reg) |= 1u << f->bit;
	}
	leaf_get(b, 7, 0, true)->eax = 1; /* last subleaf */
}

/* AVX and what builds on it need XSAVE to be there: drop what lost its ground. */
static void drop_orphans(struct builder *b)
{
	struct x86_cpuid_leaf *one = leaf_get(b, 1, 0, false);
	struct x86_cpuid_leaf *seven = leaf_get(b, 7, 0, true);

	if (!(one->ecx & BIT(26))) {
		one->ecx &= ~(uint32_t)BIT(28);
		leaf_get(b, 0xd, 1, true)->eax = 0;
	}
	if (!(one->ecx & BIT(28))) {
		one->ecx &= ~(uint32_t)(BIT(12) | BIT(29));
		seven->ebx &= ~(uint32_t)BIT(5);
		seven->ecx &= ~(uint32_t)(BIT(9) | BIT(10));
		leaf_get(b, 7, 1, true)->eax = 0;
	}
}

static void add_identity(struct builder *b)
{
	uint32_t regs[4];
	struct x86_cpuid_leaf *l;

	host_cpuid(b, 0, 0, regs);
	b->amd = regs[ECX] == 0x444d4163; /* "cAMD" */
	regs[EAX] = MAX_BASIC;
	leaf_set(leaf_get(b, 0, 0, false), regs);
	host_cpuid(b, 1, 0, regs);
	l = leaf_get(b, 1, 0, false);
	l->eax = regs[EAX];
	l->ebx = 8u << 8 | (b->cpus & 0xff) << 16; /* CLFLUSH of 64 bytes */
	l->edx = b->cpus > 1 ? 1u << 28 : 0;
	host_cpuid(b, 0x80000000, 0, regs);
	regs[EAX] = b->amd ? MAX_AMD : MAX_INTEL;
	leaf_set(leaf_get(b, 0x80000000, 0, false), regs);
	leaf_get(b, 0x80000001, 0, false)->eax = b->amd ? l->eax : 0;
	for (uint32_t leaf = 0x80000002; leaf <= 0x80000006; leaf++)
		add_from_host(b, leaf);
	l = leaf_get(b, 0x80000008, 0, false);
	l->eax = PHYS_BITS | LINEAR_BITS << 8;
}

/* Legacy AMD places of topology and of leaf 1's features. */
static void add_amd(struct builder *b)
{
	const uint32_t mirrored = 0x0183f3ff;
	struct x86_cpuid_leaf *ext = leaf_get(b, 0x80000001, 0, false);

	ext->edx |= leaf_get(b, 1, 0, false)->edx & mirrored;
	if (b->cpus > 1)
		ext->ecx |= 1u << 1; /* CMP_LEGACY */
	leaf_get(b, 0x80000008, 0, false)->ecx = (b->cpus - 1) | b->core_bits << 12;
	add_from_host(b, 0x8000001a);
	leaf_get(b, 0x8000001e, 0, false); /* filled when asked: one thread a core, one node */
}

/* Caches: the host's, shared among our processors: the last level by all of them. */
static void add_caches(struct builder *b)
{
	const uint32_t leaf = b->amd ? 0x8000001d : 4;
	const uint32_t cores = (1u << b->core_bits) - 1;

	for (uint32_t i = 0; i < 5; i++) {
		uint32_t regs[4];
		host_cpuid(b, leaf, i, regs);
		if (!(regs[EAX] & 0x1f))
			break;
		const bool shared = (regs[EAX] >> 5 & 7) >= 3;
		regs[EAX] &= 0x3fff;
		if (shared)
			regs[EAX] |= (b->amd ? b->cpus - 1 : cores) << 14;
		if (!b->amd)
			regs[EAX] |= MIN(cores, 63u) << 26;
		leaf_set(leaf_get(b, leaf, i, true), regs);
	}
	if (!b->amd)
		add_from_host(b, 2);
}

static void add_topology(struct builder *b)
{
	struct x86_cpuid_leaf *thread = leaf_get(b, 0xb, 0, true);
	struct x86_cpuid_leaf *core = leaf_get(b, 0xb, 1, true);

	thread->ebx = 1;
	thread->ecx = 1u << 8;
	core->eax = b->core_bits;
	core->ebx = b->cpus;
	core->ecx = 1 | 2u << 8;
	leaf_get(b, 6, 0, false)->eax = 1u << 2; /* the APIC timer never stops */
}

static void add_xsave(struct builder *b)
{
	const struct x86_cpuid_leaf *one = leaf_get(b, 1, 0, false);
	struct x86_cpuid_leaf *main_leaf, *avx;

	if (!(one->ecx & BIT(26)))
		return;
	main_leaf = leaf_get(b, 0xd, 0, true);
	main_leaf->eax = X86_XCR0_X87 | X86_XCR0_SSE;
	main_leaf->ecx = XSAVE_LEGACY;
	if (!(one->ecx & BIT(28)))
		return;
	main_leaf->eax |= X86_XCR0_AVX;
	main_leaf->ecx += XSAVE_AVX;
	avx = leaf_get(b, 0xd, 2, true);
	avx->eax = XSAVE_AVX;
	avx->ebx = XSAVE_LEGACY;
}

/*
 * A fraction near tsc_hz / crystal_hz whose numerator times the crystal's kHz fits 32 bits, as Linux
 * multiplies them. By continued fractions: most often right to a millionth, but to a few thousandths of
 * one per cent at worst; who needs it exactly has KVM's leaf or its clock.
 */
static void tsc_ratio(uint64_t tsc_hz, uint64_t crystal_hz, uint32_t *ret_num, uint32_t *ret_den)
{
	const uint64_t num_max = 0xffffffffull / (crystal_hz / 1000);
	uint64_t a = tsc_hz, b = crystal_hz;
	uint64_t num = 1, den = 0, old_num = 0, old_den = 1;

	while (b) {
		const uint64_t q = a / b, rest = a % b;
		const uint64_t new_num = q * num + old_num, new_den = q * den + old_den;
		if (new_num > num_max || new_den > 0xffffffff) {
			const uint64_t t = num ? (num_max - old_num) / num : 0;
			if (2 * t > q) { /* a semiconvergent that is nearer */
				num = t * num + old_num;
				den = t * den + old_den;
			}
			break;
		}
		old_num = num;
		old_den = den;
		num = new_num;
		den = new_den;
		a = b;
		b = rest;
	}
	*ret_num = (uint32_t)num;
	*ret_den = (uint32_t)den;
}

static void add_frequencies(struct builder *b)
{
	const uint64_t hz = b->model->tsc_hz;
	struct x86_cpuid_leaf *l;

	if (hz >= X86_CPUID_APIC_HZ / 1000 && hz < X86_CPUID_APIC_HZ * 1000) {
		l = leaf_get(b, 0x15, 0, false);
		tsc_ratio(hz, X86_CPUID_APIC_HZ, &l->ebx, &l->eax);
		l->ecx = l->eax ? X86_CPUID_APIC_HZ : 0;
		l = leaf_get(b, 0x16, 0, false);
		l->eax = l->ebx = (uint32_t)MIN(hz / 1000000, UINT64_C(0xffff));
		l->ecx = 100;
	}
	l = leaf_get(b, 0x40000010, 0, false);
	l->eax = (uint32_t)(hz / 1000);
	l->ebx = (uint32_t)(X86_CPUID_APIC_HZ / 1000);
}

static void add_kvm(struct builder *b)
{
	struct x86_cpuid_leaf *l = leaf_get(b, 0x40000000, 0, false);

	l->eax = MAX_KVM;
	l->ebx = 0x4b4d564b; /* "KVMKVMKVM" */
	l->ecx = 0x564b4d56;
	l->edx = 0x0000004d;
	leaf_get(b, 0x40000001, 0, false)->eax = KVM_FEATURES;
}

void x86_cpuid_from_host(
	struct x86_cpuid_model *model, unsigned cpus, uint64_t tsc_hz, x86_cpuid_host *host)
{
	struct builder b = {
		.model = model, .rows = rows_features(), .host = host, .cpus = MAX(cpus, 1u)};

	while (1u << b.core_bits < b.cpus)
		b.core_bits++;
	memset(model, 0, sizeof(*model));
	model->tsc_hz = tsc_hz;
	add_identity(&b);
	add_features(&b);
	drop_orphans(&b);
	if (b.amd)
		add_amd(&b);
	add_caches(&b);
	add_topology(&b);
	add_xsave(&b);
	add_frequencies(&b);
	add_kvm(&b);
	x86_cpuid_derive(model);
}

/* Which vector state the host's system lets programs use. */
static uint32_t host_xcr0(uint32_t leaf1_ecx)
{
	uint32_t eax = 0, edx;

	if (leaf1_ecx & BIT(27)) /* OSXSAVE */
		__asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
	return eax;
}

static void this_host(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	const uint32_t avx = X86_XCR0_SSE | X86_XCR0_AVX;

	__cpuid_count(leaf, subleaf, regs[EAX], regs[EBX], regs[ECX], regs[EDX]);
	if (leaf != 1)
		return;
	if (!(regs[ECX] & BIT(27)))
		regs[ECX] &= ~(uint32_t)BIT(26); /* XSAVE */
	if ((host_xcr0(regs[ECX]) & avx) != avx)
		regs[ECX] &= ~(uint32_t)BIT(28); /* AVX, and with it what builds on it */
}

void x86_cpuid_default(struct x86_cpuid_model *model, unsigned cpus, uint64_t tsc_hz)
{
	x86_cpuid_from_host(model, cpus, tsc_hz, this_host);
}

/* ---- using a model ---- */

static void derive_from(struct x86_cpuid_model *model, const struct feature *f, uint32_t subleaf)
{
	const struct x86_cpuid_leaf *l = model_find(model, f->leaf, subleaf);
	if (!l || (f->need & DERIVED))
		return;
	const uint32_t regs[] = {l->eax, l->ebx, l->ecx, l->edx};
	if (regs[f->reg] >> f->bit & 1)
		feature_add(&model->features, f->feature);
}

void x86_cpuid_derive(struct x86_cpuid_model *model)
{
	const struct x86_cpuid_leaf *sizes = model_find(model, 0x80000008, 0);

	memset(&model->features, 0, sizeof(model->features));
	for (unsigned i = 0; i < ARRAY_SIZE(features); i++)
		derive_from(model, &features[i], 0);
	for (unsigned i = 0; i < ARRAY_SIZE(subfeatures); i++)
		derive_from(model, &subfeatures[i], 1);
	feature_add(&model->features, X86_F_BASE);
	feature_add(&model->features, X86_F_VMCALL);
	model->phys_bits = sizes ? sizes->eax & 0xff : 36;
	if (model->phys_bits < 32 || model->phys_bits > 52)
		model->phys_bits = 36;
}

uint64_t x86_cpuid_arch_capabilities(const struct x86_cpuid_model *model)
{
	return ARCH_CAPABILITIES;
}

/* Bytes of an XSAVE area with these components, standard or compacted: with ours they are the same. */
static uint32_t xsave_bytes(uint64_t components)
{
	return XSAVE_LEGACY + (components & X86_XCR0_AVX ? XSAVE_AVX : 0);
}

void x86_cpuid_query(const struct x86_cpuid_model *model, uint32_t apic_id, uint64_t cr4,
	uint64_t xcr0, uint64_t xss, uint32_t leaf, uint32_t subleaf, uint32_t ret_regs[4])
{
	const struct x86_cpuid_leaf *l = model_find(model, leaf, subleaf);

	memset(ret_regs, 0, 4 * sizeof(ret_regs[0]));
	if (l) {
		ret_regs[EAX] = l->eax;
		ret_regs[EBX] = l->ebx;
		ret_regs[ECX] = l->ecx;
		ret_regs[EDX] = l->edx;
	}
	switch (leaf) {
	case 1:
		ret_regs[EBX] = (ret_regs[EBX] & 0x00ffffff) | apic_id << 24;
		if (cr4 & X86_CR4_OSXSAVE)
			ret_regs[ECX] |= 1u << 27;
		break;
	case 0xb:
		ret_regs[ECX] |= subleaf & 0xff;
		ret_regs[EDX] = apic_id;
		break;
	case 0xd:
		if (l && subleaf == 0)
			ret_regs[EBX] = xsave_bytes(xcr0);
		else if (l && subleaf == 1 && ret_regs[EAX])
			ret_regs[EBX] = xsave_bytes(xcr0 | xss);
		break;
	case 0x8000001e:
		if (l) {
			ret_regs[EAX] = apic_id;
			ret_regs[EBX] = apic_id & 0xff;
		}
		break;
	default: break;
	}
}
