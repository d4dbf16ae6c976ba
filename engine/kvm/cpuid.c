/*
 * The CPUID of KVM's vCPUs: the machine's model, less the features that this KVM cannot give, and with the
 * rate at which its TSC really runs. Linux's Documentation/virt/kvm/api.rst (KVM_GET_SUPPORTED_CPUID).
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "engine/kvm/private.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUPPORTED_MAX 256

/* A list as KVM takes and gives it, with room for its entries. */
union supported {
	struct kvm_cpuid2 list;
	uint8_t room[sizeof(struct kvm_cpuid2) + SUPPORTED_MAX * sizeof(struct kvm_cpuid_entry2)];
};

/* Which registers of a leaf are sets of features (SDM 2A, AMD APM 3 appendix E, KVM's own). */
struct feature_leaf {
	uint32_t leaf, subleaf;
	uint32_t mask_eax, mask_ebx, mask_ecx, mask_edx; /* bits that are features */
};

#define LEAF1_ECX_DEADLINE (1u << 24)
/* Bits that KVM gives though its list may lack them: they follow from the irqchip or from CR4. */
#define LEAF1_ECX_KEPT (1u << 21 | 1u << 27 | 1u << 31) /* x2APIC, OSXSAVE, hypervisor */

static const struct feature_leaf feature_leaves[] = {
	{0x00000001, 0, 0, 0, ~LEAF1_ECX_KEPT, ~0u},
	{0x00000007, 0, 0, ~0u, ~0u, ~0u},
	{0x00000007, 1, ~0u, 0, 0, 0},
	{0x00000007, 2, 0, 0, 0, ~0u},
	{0x0000000d, 0, ~0u, 0, 0, 0},
	{0x0000000d, 1, ~0u, 0, 0, 0},
	{0x80000001, 0, 0, 0, ~0u, ~0u},
	{0x80000007, 0, 0, 0, 0, ~0u},
	{0x80000008, 0, 0, ~0u, 0, 0},
	{0x80000021, 0, ~0u, 0, ~0u, 0},
	{0x40000001, 0, ~0u, 0, 0, 0},
};

static const struct kvm_cpuid_entry2 *find(
	const struct kvm_cpuid2 *list, uint32_t leaf, uint32_t subleaf)
{
	for (unsigned i = 0; i < list->nent; i++)
		if (list->entries[i].function == leaf && list->entries[i].index == subleaf)
			return &list->entries[i];
	return NULL;
}

static void remove_unsupported(
	const struct kvm_cpuid2 *supported, uint32_t deadline, struct x86_cpuid_leaf *l)
{
	for (unsigned i = 0; i < ARRAY_SIZE(feature_leaves); i++) {
		const struct feature_leaf *f = &feature_leaves[i];
		const struct kvm_cpuid_entry2 none = {0};
		const struct kvm_cpuid_entry2 *k = find(supported, f->leaf, f->subleaf);

		if (f->leaf != l->leaf || f->subleaf != l->subleaf)
			continue;
		if (!k)
			k = &none;
		l->eax &= k->eax | ~f->mask_eax;
		l->ebx &= k->ebx | ~f->mask_ebx;
		l->ecx &= k->ecx | ~f->mask_ecx | (f->leaf == 1 ? deadline : 0);
		l->edx &= k->edx | ~f->mask_edx;
	}
}

/* Widths of addresses: not more than KVM's. */
static void limit_addresses(const struct kvm_cpuid2 *supported, struct x86_cpuid_leaf *l)
{
	const struct kvm_cpuid_entry2 *k = find(supported, 0x80000008, 0);

	if (l->leaf != 0x80000008 || !k)
		return;
	for (unsigned shift = 0; shift < 16; shift += 8) {
		uint32_t mask = 0xffu << shift;
		l->eax = (l->eax & ~mask) | MIN(l->eax & mask, k->eax & mask);
	}
}

void kvm_cpuid_reduce(
	struct x86_cpuid_model *model, const struct kvm_cpuid2 *supported, bool has_deadline)
{
	for (unsigned i = 0; i < model->count; i++) {
		remove_unsupported(
			supported, has_deadline ? LEAF1_ECX_DEADLINE : 0, &model->leaf[i]);
		limit_addresses(supported, &model->leaf[i]);
	}
	x86_cpuid_settle(model);
}

static int limit(int kvm_fd, struct x86_cpuid_model *model, struct error *err)
{
	const long cap = KVM_CAP_TSC_DEADLINE_TIMER;
	const bool has_deadline = kvm_ioctl(kvm_fd, KVM_CHECK_EXTENSION, (void *)cap) > 0;
	AUTO_FREE union supported *supported = calloc(1, sizeof(*supported));

	if (!supported)
		return error_set(err, ENOMEM, "no memory for KVM's CPU model");
	supported->list.nent = SUPPORTED_MAX;
	int status = kvm_ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, supported);
	if (status < 0)
		return error_set_errno(err, -status, "KVM does not say which CPUID it supports");
	kvm_cpuid_reduce(model, &supported->list, has_deadline);
	return 0;
}

int kvm_cpuid_limit(struct x86_cpuid_model *model, struct error *err)
{
	AUTO_CLOSE int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return error_set_errno(err, errno, "can't open /dev/kvm (see: lodge doctor)");
	return limit(fd, model, err);
}

int kvm_cpuid_filter(struct engine_vm *vm, struct error *err)
{
	vm->cpuid = *vm->config.cpuid;
	int status = limit(vm->kvm_fd, &vm->cpuid, err);
	return status < 0 ? status : x86_cpuid_check(&vm->cpuid, "this host's KVM", err);
}

/* ---- the TSC's rate ---- */

static bool near(uint64_t a, uint64_t b)
{
	return (a > b ? a - b : b - a) <= b / 1000;
}

/* Have the guest's TSC run at the model's rate, if the processor can; returns its rate in kHz, 0 if
 * that is not known. */
static uint64_t tune_tsc(struct engine_vcpu *vcpu)
{
	uint64_t want_khz = vcpu->vm->config.cpuid->tsc_hz / 1000;
	int have_khz = kvm_ioctl(vcpu->fd, KVM_GET_TSC_KHZ, NULL);

	if (have_khz <= 0)
		return 0;
	if (!near((uint64_t)have_khz, want_khz) && vcpu->vm->has_tsc_control &&
		kvm_ioctl(vcpu->fd, KVM_SET_TSC_KHZ, (void *)(uintptr_t)want_khz) == 0)
		return want_khz;
	return (uint64_t)have_khz;
}

/* Say no rate but the true one: leaf 0x15's fraction is left out, KVM's own leaf is exact. */
static void tell_tsc_rate(struct kvm_cpuid_entry2 *e, uint64_t khz)
{
	if (e->function == 0x15)
		e->eax = e->ebx = e->ecx = 0;
	else if (e->function == 0x16)
		e->eax = e->ebx = (uint32_t)MIN(khz / 1000, (uint64_t)0xffff);
	else if (e->function == 0x40000010)
		e->eax = (uint32_t)khz;
}

static void note_entry(struct x86_cpuid_model *model, const struct kvm_cpuid_entry2 *k)
{
	struct x86_cpuid_leaf *l = NULL;

	for (unsigned i = 0; i < model->count && !l; i++)
		if (model->leaf[i].leaf == k->function && model->leaf[i].subleaf == k->index)
			l = &model->leaf[i];
	if (!l && model->count == ARRAY_SIZE(model->leaf))
		return;
	if (!l)
		l = &model->leaf[model->count++];
	*l = (struct x86_cpuid_leaf){.leaf = k->function,
		.subleaf = k->index,
		.indexed = k->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
		.eax = k->eax,
		.ebx = k->ebx,
		.ecx = k->ecx,
		.edx = k->edx};
}

/* Some KVMs show guests more than they were told, as they cannot hide it: note what the guest sees. */
static void note_cpuid(struct engine_vcpu *vcpu)
{
	AUTO_FREE union supported *seen = calloc(1, sizeof(*seen));

	vcpu->cpuid = vcpu->vm->cpuid;
	if (!seen)
		return;
	seen->list.nent = SUPPORTED_MAX;
	if (kvm_ioctl(vcpu->fd, KVM_GET_CPUID2, seen) < 0)
		return;
	for (unsigned i = 0; i < seen->list.nent; i++)
		note_entry(&vcpu->cpuid, &seen->list.entries[i]);
	x86_cpuid_derive(&vcpu->cpuid);
}

int kvm_cpuid_set(struct engine_vcpu *vcpu, struct error *err)
{
	const struct x86_cpuid_model *model = &vcpu->vm->cpuid;
	AUTO_FREE union supported *cpuid = calloc(1, sizeof(*cpuid));
	uint64_t khz = tune_tsc(vcpu);

	if (!cpuid)
		return error_set(err, ENOMEM, "no memory for vCPU %u", vcpu->config.index);
	for (unsigned i = 0; i < model->count && i < SUPPORTED_MAX; i++) {
		const struct x86_cpuid_leaf *leaf = &model->leaf[i];
		struct kvm_cpuid_entry2 *e = &cpuid->list.entries[cpuid->list.nent++];
		uint32_t regs[4];

		x86_cpuid_query(
			model, vcpu->config.apic_id, 0, 1, 0, leaf->leaf, leaf->subleaf, regs);
		*e = (struct kvm_cpuid_entry2){.function = leaf->leaf,
			.index = leaf->subleaf,
			.flags = leaf->indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
			.eax = regs[0],
			.ebx = regs[1],
			.ecx = regs[2],
			.edx = regs[3]};
		if (khz && !near(khz, model->tsc_hz / 1000))
			tell_tsc_rate(e, khz);
	}
	int status = kvm_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);
	if (status < 0)
		return error_set_errno(err, -status, "KVM refuses the CPU model");
	note_cpuid(vcpu);
	return 0;
}
