/*
 * Makes the CPUID model that the user chose, as engines that run guest code through our own semantics can
 * give it. SDM 2A "CPUID"; AMD APM 3 appendix E; KVM's paravirtual leaves.
 *
 * A flag of the table in cpuid_flags.c can be given if every row it needs is in the instruction table, and,
 * where the instruction is executed by the host's own, the host has it; which of them a model shows is the
 * user's choice (docs/cpu.md). Everything that would make a guest turn on a mitigation is answered "not
 * affected": this processor does not speculate across privileges.
 */
#include "isa/x86/cpuid.h"

#include "base/error.h"
#include "base/util.h"
#include "isa/x86/cpuid_flags.h"

#include <cpuid.h>
#include <errno.h>
#include <string.h>

#define PHYS_BITS   46
#define LINEAR_BITS 48
#define MAX_BASIC   0x16u
#define MAX_AMD	    0x80000021u
#define MAX_INTEL   0x80000008u
#define MAX_KVM	    0x40000010u

/* KVM paravirtual features: extend this as the machine learns more of them. */
#define KVM_CLOCKSOURCE	       BIT(0)
#define KVM_NOP_IO_DELAY       BIT(1)
#define KVM_CLOCKSOURCE2       BIT(3)
#define KVM_CLOCKSOURCE_STABLE BIT(24)
#define KVM_FEATURES \
	(KVM_CLOCKSOURCE | KVM_NOP_IO_DELAY | KVM_CLOCKSOURCE2 | KVM_CLOCKSOURCE_STABLE)

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

struct builder {
	struct x86_cpuid_model *model;
	const struct x86_cpu_choice *choice;
	struct x86_feature_set rows;	  /* what the instruction table has */
	struct x86_cpuid_flag_set chosen; /* what the model shows */
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

/* The leaf, added as zeros if it is not there yet. The models made here never fill the array. */
static struct x86_cpuid_leaf *leaf_get(
	struct builder *b, uint32_t leaf, uint32_t subleaf, bool indexed)
{
	struct x86_cpuid_model *model = b->model;
	const struct x86_cpuid_leaf *old = x86_cpuid_leaf_find(model, leaf, subleaf);
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

/* ---- which flags ---- */

static bool host_has(const struct builder *b, const struct x86_cpuid_flag *f)
{
	uint32_t regs[4];

	host_cpuid(b, f->leaf, f->subleaf, regs);
	return regs[f->reg] >> f->bit & 1;
}

/* Why this flag can't be shown, or NULL. */
static const char *flag_refusal(const struct builder *b, const struct x86_cpuid_flag *f)
{
	const bool has_row = x86_has(&b->rows, f->feature);

	if ((f->need & NEED_HIDDEN) || ((f->need & (NEED_ROWS | NEED_DERIVED)) && !has_row))
		return "Lodge does not do it";
	if (f->need & (b->amd ? NEED_INTEL : NEED_AMD))
		return "processors of this vendor never have it";
	if ((f->need & NEED_HOST) && !host_has(b, f))
		return "this host's processor lacks it";
	return NULL;
}

static bool in_base(const struct builder *b, const struct x86_cpuid_flag *f)
{
	const unsigned base = b->choice->base;

	if (base == X86_CPU_MAX || (f->need & NEED_MACHINE))
		return true;
	if (base == X86_CPU_HOST)
		return host_has(b, f);
	return f->level && f->level <= base - X86_CPU_LEVEL1 + 1;
}

/* Does this flag stand on one that is not chosen? */
static bool is_orphan(const struct builder *b, unsigned flag)
{
	const int base = x86_cpuid_flag_of(x86_cpuid_flags[flag].base);

	return base >= 0 && !x86_cpuid_set_has(&b->chosen, (unsigned)base);
}

/* AVX and what builds on it need XSAVE to be there: drop what lost its ground. */
static void drop_orphans(struct builder *b)
{
	bool again;

	do {
		again = false;
		for (unsigned i = 0; i < x86_cpuid_flag_count; i++) {
			if (!x86_cpuid_set_has(&b->chosen, i) || !is_orphan(b, i))
				continue;
			x86_cpuid_set_put(&b->chosen, i, false);
			x86_cpuid_set_put(&b->model->wanted, i, false);
			again = true;
		}
	} while (again);
}

static int refuse_flag(struct error *err, const char *name, const char *why)
{
	return error_set(err, ENOTSUP, "CPU flag '%s' can't be given: %s", name, why);
}

static int choose_base(struct builder *b, struct error *err)
{
	for (unsigned i = 0; i < x86_cpuid_flag_count; i++) {
		const struct x86_cpuid_flag *f = &x86_cpuid_flags[i];
		const char *why = flag_refusal(b, f);
		const bool by_level = b->choice->base >= X86_CPU_LEVEL1 && f->level;

		if (!in_base(b, f))
			continue;
		if (why && by_level)
			return error_set(err, ENOTSUP,
				"CPU model %s can't be given: it has '%s', and %s",
				x86_cpu_base_name(b->choice->base), f->name, why);
		x86_cpuid_set_put(&b->chosen, i, !why);
		x86_cpuid_set_put(&b->model->wanted, i, by_level);
	}
	drop_orphans(b);
	return 0;
}

/* A flag brings what it stands on. */
static int add_flag(struct builder *b, unsigned flag, struct error *err)
{
	for (int i = (int)flag; i >= 0; i = x86_cpuid_flag_of(x86_cpuid_flags[i].base)) {
		const struct x86_cpuid_flag *f = &x86_cpuid_flags[i];
		const char *why = flag_refusal(b, f);

		if (why)
			return refuse_flag(err, f->name, why);
		x86_cpuid_set_put(&b->chosen, (unsigned)i, true);
		x86_cpuid_set_put(&b->model->wanted, (unsigned)i, true);
	}
	return 0;
}

static int choose_flags(struct builder *b, struct error *err)
{
	int status = choose_base(b, err);

	for (unsigned i = 0; status == 0 && i < b->choice->change_count; i++) {
		const struct x86_cpu_change *c = &b->choice->change[i];
		if (c->on) {
			status = add_flag(b, c->flag, err);
			continue;
		}
		x86_cpuid_set_put(&b->chosen, c->flag, false);
		x86_cpuid_set_put(&b->model->wanted, c->flag, false);
		drop_orphans(b);
	}
	return status;
}

static void add_flags(struct builder *b)
{
	for (unsigned i = 0; i < x86_cpuid_flag_count; i++) {
		const struct x86_cpuid_flag *f = &x86_cpuid_flags[i];
		const bool indexed = f->leaf == 7 || f->leaf == 0xd;
		struct x86_cpuid_leaf *l = leaf_get(b, f->leaf, f->subleaf, indexed);

		if (x86_cpuid_set_has(&b->chosen, i))
			*leaf_reg(l, f->reg) |= 1u << f->bit;
	}
	leaf_get(b, 7, 0, true)->eax = b->amd ? 1 : 2; /* last subleaf */
}

/* ---- who it is ---- */

static void vendor_set(uint32_t regs[4], enum x86_cpu_vendor vendor)
{
	const bool amd = vendor == X86_CPU_VENDOR_AMD;

	if (vendor == X86_CPU_VENDOR_HOST)
		return;
	regs[EBX] = amd ? 0x68747541 : 0x756e6547; /* "AuthenticAMD", "GenuineIntel" */
	regs[EDX] = amd ? 0x69746e65 : 0x49656e69;
	regs[ECX] = amd ? 0x444d4163 : 0x6c65746e;
}

/* Leaf 1's EAX with what the choice says of it (SDM 2A "CPUID", figure 3-6). */
static uint32_t signature(uint32_t host, const struct x86_cpu_choice *c)
{
	unsigned stepping = c->has_stepping ? c->stepping : host & 0xf;
	unsigned model = c->has_model ? c->model : (host >> 4 & 0xf) | (host >> 12 & 0xf0);
	unsigned family = host >> 8 & 0xf;

	family = c->has_family ? c->family : family + (family == 0xf ? host >> 20 & 0xff : 0);
	return stepping | (model & 0xf) << 4 | MIN(family, 0xfu) << 8 | (model >> 4) << 16 |
	       (family > 0xf ? family - 0xf : 0) << 20;
}

/* The host's name and its caches of AMD's making, or a name of our own for a processor that is none of
 * this host's. */
static void add_name(struct builder *b)
{
	static const char name[48] = "Lodge virtual processor";

	for (uint32_t leaf = 0x80000002; leaf <= 0x80000006; leaf++)
		add_from_host(b, leaf);
	if (x86_cpu_choice_is_native(b->choice))
		return;
	for (uint32_t i = 0; i < 3; i++) {
		uint32_t regs[4];
		memcpy(regs, name + 16 * i, sizeof(regs));
		leaf_set(leaf_get(b, 0x80000002 + i, 0, false), regs);
	}
	if (!b->amd)
		memset(&leaf_get(b, 0x80000005, 0, false)->eax, 0, 4 * sizeof(uint32_t));
}

static void add_identity(struct builder *b)
{
	uint32_t regs[4];
	struct x86_cpuid_leaf *l;

	host_cpuid(b, 0, 0, regs);
	vendor_set(regs, b->choice->vendor);
	b->amd = regs[ECX] == 0x444d4163; /* "cAMD" */
	regs[EAX] = MAX_BASIC;
	leaf_set(leaf_get(b, 0, 0, false), regs);
	host_cpuid(b, 1, 0, regs);
	l = leaf_get(b, 1, 0, false);
	l->eax = signature(regs[EAX], b->choice);
	l->ebx = 8u << 8 | (b->cpus & 0xff) << 16; /* CLFLUSH of 64 bytes */
	l->edx = b->cpus > 1 ? 1u << 28 : 0;
	host_cpuid(b, 0x80000000, 0, regs);
	regs[EAX] = b->amd ? MAX_AMD : MAX_INTEL;
	vendor_set(regs, b->choice->vendor);
	if (!b->amd) /* only AMD's say it twice */
		regs[EBX] = regs[ECX] = regs[EDX] = 0;
	leaf_set(leaf_get(b, 0x80000000, 0, false), regs);
	leaf_get(b, 0x80000001, 0, false)->eax = b->amd ? l->eax : 0;
	add_name(b);
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

/* What all models have but flags. */
static void add_rest(struct builder *b)
{
	if (b->amd)
		add_amd(b);
	add_caches(b);
	add_topology(b);
	add_xsave(b);
	add_frequencies(b);
	add_kvm(b);
}

int x86_cpuid_choose_on(struct x86_cpuid_model *model, const struct x86_cpu_choice *choice,
	unsigned cpus, uint64_t tsc_hz, x86_cpuid_host *host, struct error *err)
{
	struct builder b = {.model = model,
		.choice = choice,
		.rows = rows_features(),
		.host = host,
		.cpus = MAX(cpus, 1u)};

	while (1u << b.core_bits < b.cpus)
		b.core_bits++;
	memset(model, 0, sizeof(*model));
	model->tsc_hz = tsc_hz;
	add_identity(&b);
	int status = choose_flags(&b, err);
	if (status < 0)
		return status;
	add_flags(&b);
	add_rest(&b);
	x86_cpuid_derive(model);
	return 0;
}

void x86_cpuid_from_host(
	struct x86_cpuid_model *model, unsigned cpus, uint64_t tsc_hz, x86_cpuid_host *host)
{
	const struct x86_cpu_choice max = {.base = X86_CPU_MAX};

	/* Nothing was asked for by name: there is nothing to refuse. */
	(void)x86_cpuid_choose_on(model, &max, cpus, tsc_hz, host, NULL);
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

int x86_cpuid_choose(struct x86_cpuid_model *model, const struct x86_cpu_choice *choice,
	unsigned cpus, uint64_t tsc_hz, struct error *err)
{
	return x86_cpuid_choose_on(model, choice, cpus, tsc_hz, this_host, err);
}

void x86_cpuid_default(struct x86_cpuid_model *model, unsigned cpus, uint64_t tsc_hz)
{
	x86_cpuid_from_host(model, cpus, tsc_hz, this_host);
}

const char *x86_cpuid_refusal(unsigned flag)
{
	struct builder b = {.model = NULL, .rows = rows_features(), .host = this_host};
	uint32_t regs[4];

	this_host(0, 0, regs);
	b.amd = regs[ECX] == 0x444d4163;
	return flag < x86_cpuid_flag_count ? flag_refusal(&b, &x86_cpuid_flags[flag]) : NULL;
}
