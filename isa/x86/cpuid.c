/*
 * The CPUID instruction's answers from a model, and what else is read from it. SDM 2A "CPUID"; AMD APM 3
 * appendix E.
 */
#include "isa/x86/cpuid.h"

#include "base/error.h"
#include "base/util.h"
#include "isa/x86/cpuid_flags.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Leaf 0xd, 1, EAX: XSAVEC, XSAVES. Without either nothing is compacted, and the size of it is 0. */
#define XSAVE_COMPACTS (BIT(1) | BIT(3))

/* IA32_ARCH_CAPABILITIES: each says that an attack does not work here. */
#define ARCH_CAPABILITIES                                                                   \
	(BIT(0) /* RDCL_NO */ | BIT(1) /* IBRS_ALL */ | BIT(3) /* SKIP_L1DFL_VMENTRY */ |   \
		BIT(4) /* SSB_NO */ | BIT(5) /* MDS_NO */ | BIT(6) /* PSCHANGE_MC_NO */ |   \
		BIT(8) /* TAA_NO */ | BIT(13) /* SBDR_SSDP_NO */ | BIT(14) /* FBSDP_NO */ | \
		BIT(15) /* PSDP_NO */ | BIT(20) /* BHI_NO */ | BIT(24) /* PBRSB_NO */ |     \
		BIT(26) /* GDS_NO */ | BIT(27) /* RFDS_NO */ | BIT(62) /* ITS_NO */)

const struct x86_cpuid_leaf *x86_cpuid_leaf_find(
	const struct x86_cpuid_model *model, uint32_t leaf, uint32_t subleaf)
{
	for (unsigned i = 0; i < model->count; i++) {
		const struct x86_cpuid_leaf *l = &model->leaf[i];
		if (l->leaf == leaf && (!l->indexed || l->subleaf == subleaf))
			return l;
	}
	return NULL;
}

bool x86_cpuid_flag_name(unsigned flag, const char **ret_name)
{
	if (flag >= x86_cpuid_flag_count)
		return false;
	*ret_name = x86_cpuid_flags[flag].name;
	return true;
}

bool x86_cpuid_shows(const struct x86_cpuid_model *model, unsigned flag)
{
	if (flag >= x86_cpuid_flag_count)
		return false;
	const struct x86_cpuid_flag *f = &x86_cpuid_flags[flag];
	const struct x86_cpuid_leaf *l = x86_cpuid_leaf_find(model, f->leaf, f->subleaf);
	if (!l)
		return false;
	const uint32_t regs[] = {l->eax, l->ebx, l->ecx, l->edx};
	return regs[f->reg] >> f->bit & 1;
}

int x86_cpuid_check(const struct x86_cpuid_model *model, const char *who, struct error *err)
{
	char names[512] = "";
	size_t length = 0;

	for (unsigned i = 0; i < x86_cpuid_flag_count; i++) {
		if (!x86_cpuid_set_has(&model->wanted, i) || x86_cpuid_shows(model, i))
			continue;
		if (length < sizeof(names))
			length += (size_t)snprintf(names + length, sizeof(names) - length, " %s",
				x86_cpuid_flags[i].name);
	}
	if (!length)
		return 0;
	return error_set(err, ENOTSUP, "%s can't give these flags of the CPU model:%s", who, names);
}

static void feature_add(struct x86_feature_set *set, unsigned feature)
{
	set->bits[feature / 64] |= BIT(feature % 64);
}

void x86_cpuid_derive(struct x86_cpuid_model *model)
{
	const struct x86_cpuid_leaf *sizes = x86_cpuid_leaf_find(model, 0x80000008, 0);

	memset(&model->features, 0, sizeof(model->features));
	for (unsigned i = 0; i < x86_cpuid_flag_count; i++)
		if (!(x86_cpuid_flags[i].need & NEED_DERIVED) && x86_cpuid_shows(model, i))
			feature_add(&model->features, x86_cpuid_flags[i].feature);
	feature_add(&model->features, X86_F_BASE);
	feature_add(&model->features, X86_F_VMCALL);
	model->phys_bits = sizes ? sizes->eax & 0xff : 36;
	if (model->phys_bits < 32 || model->phys_bits > 52)
		model->phys_bits = 36;
}

void x86_cpuid_limit_phys_bits(struct x86_cpuid_model *model, unsigned bits)
{
	for (unsigned i = 0; i < model->count; i++)
		if (model->leaf[i].leaf == 0x80000008)
			model->leaf[i].eax =
				(model->leaf[i].eax & ~0xffu) | MIN(model->phys_bits, bits);
	x86_cpuid_derive(model);
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
	const struct x86_cpuid_leaf *l = x86_cpuid_leaf_find(model, leaf, subleaf);

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
		else if (l && subleaf == 1 && (ret_regs[EAX] & XSAVE_COMPACTS))
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
