/*
 * A CPUID model of which an engine has taken something away, made consistent again: flags need what they stand on
 * (cpuid_flags.c), and leaf 0xd describes the XSAVE area of exactly what XCR0 can have (SDM 1, 13.2; SDM 2A "CPUID").
 */
#include "isa/x86/cpuid.h"

#include "isa/x86/cpuid_flags.h"

#define XCR0_ALWAYS (X86_XCR0_X87 | X86_XCR0_SSE) /* where there is XSAVE */

static bool shows(const struct x86_cpuid_model *model, unsigned feature)
{
	const int flag = x86_cpuid_flag_of(feature);

	return flag < 0 || x86_cpuid_shows(model, (unsigned)flag);
}

static void hide(struct x86_cpuid_model *model, unsigned flag)
{
	const struct x86_cpuid_flag *f = &x86_cpuid_flags[flag];

	for (unsigned i = 0; i < model->count; i++) {
		struct x86_cpuid_leaf *l = &model->leaf[i];
		uint32_t *regs[] = {&l->eax, &l->ebx, &l->ecx, &l->edx};

		if (l->leaf == f->leaf && (!l->indexed || l->subleaf == f->subleaf))
			*regs[f->reg] &= ~(1u << f->bit);
	}
}

/* XCR0's mask has the last word on what it has components for. */
static void obey_xcr0(struct x86_cpuid_model *model)
{
	const struct x86_cpuid_leaf *l = x86_cpuid_leaf_find(model, 0xd, 0);
	const uint32_t mask = l ? l->eax : 0;

	if ((mask & XCR0_ALWAYS) != XCR0_ALWAYS)
		hide(model, (unsigned)x86_cpuid_flag_of(X86_F_XSAVE));
	if (!(mask & X86_XCR0_AVX))
		hide(model, (unsigned)x86_cpuid_flag_of(X86_F_AVX));
}

static void drop_orphans(struct x86_cpuid_model *model)
{
	bool again;

	do {
		again = false;
		for (unsigned i = 0; i < x86_cpuid_flag_count; i++) {
			if (!x86_cpuid_shows(model, i) || shows(model, x86_cpuid_flags[i].base))
				continue;
			hide(model, i);
			again = true;
		}
	} while (again);
}

/* What there is not has no sub-leaf: some KVMs fill in sizes wherever there is one. */
static void describe_xsave(struct x86_cpuid_model *model)
{
	const bool xsave = shows(model, X86_F_XSAVE), avx = shows(model, X86_F_AVX);
	unsigned count = 0;

	for (unsigned i = 0; i < model->count; i++) {
		struct x86_cpuid_leaf l = model->leaf[i];

		if (l.leaf == 0xd && (!xsave || (l.subleaf == 2 && !avx)))
			continue;
		if (l.leaf == 0xd && l.subleaf == 0) {
			l.eax = XCR0_ALWAYS | (avx ? X86_XCR0_AVX : 0);
			l.ecx = XSAVE_LEGACY + (avx ? XSAVE_AVX : 0);
		}
		model->leaf[count++] = l;
	}
	model->count = count;
}

void x86_cpuid_settle(struct x86_cpuid_model *model)
{
	obey_xcr0(model);
	drop_orphans(model);
	describe_xsave(model);
	x86_cpuid_derive(model);
}
