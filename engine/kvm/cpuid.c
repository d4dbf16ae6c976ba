/*
 * The CPUID of a KVM vCPU: the machine's model, less the features that this KVM cannot give.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "engine/kvm/private.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SUPPORTED_MAX 256

struct supported {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entry[SUPPORTED_MAX];
};

/* Which registers of a leaf are sets of features (SDM 2A, AMD APM 3 appendix E, KVM's own). */
struct feature_leaf {
	uint32_t leaf, subleaf;
	uint32_t mask_eax, mask_ebx, mask_ecx, mask_edx; /* bits that are features */
};

/* Bits that KVM gives though its list may lack them: they follow from the irqchip or from CR4. */
#define LEAF1_ECX_KEPT (1u << 21 | 1u << 27 | 1u << 31) /* x2APIC, OSXSAVE, hypervisor */
#define LEAF1_ECX_DEADLINE (1u << 24)

static const struct feature_leaf feature_leaves[] = {
	{ 0x00000001, 0, 0, 0, ~LEAF1_ECX_KEPT, ~0u },
	{ 0x00000007, 0, 0, ~0u, ~0u, ~0u },
	{ 0x00000007, 1, ~0u, 0, 0, 0 },
	{ 0x0000000d, 1, ~0u, 0, 0, 0 },
	{ 0x80000001, 0, 0, 0, ~0u, ~0u },
	{ 0x80000007, 0, 0, 0, 0, ~0u },
	{ 0x80000008, 0, 0, ~0u, 0, 0 },
	{ 0x80000021, 0, ~0u, 0, 0, 0 },
	{ 0x40000001, 0, ~0u, 0, 0, 0 },
};

static const struct kvm_cpuid_entry2 *find(const struct supported *s, uint32_t leaf, uint32_t subleaf)
{
	for (unsigned i = 0; i < s->head.nent; i++)
		if (s->entry[i].function == leaf && s->entry[i].index == subleaf)
			return &s->entry[i];
	return NULL;
}

static void remove_unsupported(const struct engine_vm *vm, const struct supported *s,
	struct kvm_cpuid_entry2 *e)
{
	for (unsigned i = 0; i < ARRAY_SIZE(feature_leaves); i++) {
		const struct feature_leaf *f = &feature_leaves[i];
		const struct kvm_cpuid_entry2 none = { 0 };
		const struct kvm_cpuid_entry2 *k = find(s, f->leaf, f->subleaf);
		uint32_t deadline = e->ecx & LEAF1_ECX_DEADLINE;

		if (f->leaf != e->function || f->subleaf != e->index)
			continue;
		if (!k)
			k = &none;
		e->eax &= k->eax | ~f->mask_eax;
		e->ebx &= k->ebx | ~f->mask_ebx;
		e->ecx &= k->ecx | ~f->mask_ecx;
		e->edx &= k->edx | ~f->mask_edx;
		if (f->leaf == 1 && vm->has_tsc_deadline)
			e->ecx |= deadline;
	}
}

int kvm_cpuid_set(struct engine_vcpu *vcpu, struct error *err)
{
	const struct x86_cpuid_model *model = vcpu->vm->config.cpuid;
	AUTO_FREE struct supported *supported = calloc(1, sizeof(*supported));
	AUTO_FREE struct supported *cpuid = calloc(1, sizeof(*cpuid));

	if (!supported || !cpuid)
		return error_set(err, ENOMEM, "no memory for vCPU %u", vcpu->config.index);
	supported->head.nent = SUPPORTED_MAX;
	int status = kvm_ioctl(vcpu->vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, supported);
	if (status < 0)
		return error_set_errno(err, -status, "KVM does not say which CPUID it supports");
	for (unsigned i = 0; i < model->count && i < SUPPORTED_MAX; i++) {
		const struct x86_cpuid_leaf *leaf = &model->leaf[i];
		struct kvm_cpuid_entry2 *e = &cpuid->entry[cpuid->head.nent++];
		uint32_t regs[4];

		x86_cpuid_query(model, vcpu->config.apic_id, 0, 1, 0, leaf->leaf, leaf->subleaf, regs);
		*e = (struct kvm_cpuid_entry2){ .function = leaf->leaf, .index = leaf->subleaf,
			.flags = leaf->indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0, .eax = regs[0],
			.ebx = regs[1], .ecx = regs[2], .edx = regs[3] };
		remove_unsupported(vcpu->vm, supported, e);
	}
	status = kvm_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);
	if (status < 0)
		return error_set_errno(err, -status, "KVM refuses the CPU model");
	return 0;
}
