/*
 * The MSRs of a KVM vCPU that the canonical state carries. Linux's Documentation/virt/kvm/api.rst
 * (KVM_GET_MSRS, KVM_SET_MSRS): KVM takes a list and stops at the first it does not like.
 *
 * Left out: MSRs of KVM features that the CPU model does not offer (asynchronous page faults, steal time,
 * PV EOI, poll control: kvm_vm_create() has KVM refuse them to the guest), performance counters, machine
 * check banks.
 */
#include "base/util.h"
#include "engine/kvm/private.h"
#include "isa/x86/msr.h"
#include <string.h>

#define MSR_KVM_WALL_CLOCK  0x4b564d00u
#define MSR_KVM_SYSTEM_TIME 0x4b564d01u

struct msr_field {
	uint32_t index;
	uint32_t offset; /* of the uint64_t in struct x86_state */
};

#define FIELD(index_, field_)                              \
	{                                                  \
		index_, offsetof(struct x86_state, field_) \
	}
#define MTRR_PAIR(n)                                           \
	FIELD(X86_MSR_MTRR_BASE0 + 2 * (n), msr.mtrr_base[n]), \
		FIELD(X86_MSR_MTRR_BASE0 + 2 * (n) + 1, msr.mtrr_mask[n])

/* In the order in which they are set: the TSC before what is measured against it. */
static const struct msr_field msr_fields[] = {
	FIELD(X86_MSR_TSC, tsc),
	FIELD(X86_MSR_TSC_ADJUST, msr.tsc_adjust),
	FIELD(X86_MSR_STAR, msr.star),
	FIELD(X86_MSR_LSTAR, msr.lstar),
	FIELD(X86_MSR_CSTAR, msr.cstar),
	FIELD(X86_MSR_SFMASK, msr.sfmask),
	FIELD(X86_MSR_KERNEL_GS_BASE, msr.kernel_gs_base),
	FIELD(X86_MSR_SYSENTER_CS, msr.sysenter_cs),
	FIELD(X86_MSR_SYSENTER_ESP, msr.sysenter_esp),
	FIELD(X86_MSR_SYSENTER_EIP, msr.sysenter_eip),
	FIELD(X86_MSR_PAT, msr.pat),
	FIELD(X86_MSR_MISC_ENABLE, msr.misc_enable),
	FIELD(X86_MSR_TSC_AUX, msr.tsc_aux),
	FIELD(X86_MSR_SPEC_CTRL, msr.spec_ctrl),
	FIELD(X86_MSR_DEBUGCTL, msr.debugctl),
	FIELD(X86_MSR_XSS, msr.xss),
	FIELD(X86_MSR_MCG_STATUS, msr.mcg_status),
	FIELD(X86_MSR_MCG_CTL, msr.mcg_ctl),
	FIELD(X86_MSR_MTRR_DEF_TYPE, msr.mtrr_def_type),
	FIELD(X86_MSR_MTRR_FIX64K, msr.mtrr_fixed[0]),
	FIELD(X86_MSR_MTRR_FIX16K, msr.mtrr_fixed[1]),
	FIELD(X86_MSR_MTRR_FIX16K + 1, msr.mtrr_fixed[2]),
	FIELD(X86_MSR_MTRR_FIX4K, msr.mtrr_fixed[3]),
	FIELD(X86_MSR_MTRR_FIX4K + 1, msr.mtrr_fixed[4]),
	FIELD(X86_MSR_MTRR_FIX4K + 2, msr.mtrr_fixed[5]),
	FIELD(X86_MSR_MTRR_FIX4K + 3, msr.mtrr_fixed[6]),
	FIELD(X86_MSR_MTRR_FIX4K + 4, msr.mtrr_fixed[7]),
	FIELD(X86_MSR_MTRR_FIX4K + 5, msr.mtrr_fixed[8]),
	FIELD(X86_MSR_MTRR_FIX4K + 6, msr.mtrr_fixed[9]),
	FIELD(X86_MSR_MTRR_FIX4K + 7, msr.mtrr_fixed[10]),
	MTRR_PAIR(0),
	MTRR_PAIR(1),
	MTRR_PAIR(2),
	MTRR_PAIR(3),
	MTRR_PAIR(4),
	MTRR_PAIR(5),
	MTRR_PAIR(6),
	MTRR_PAIR(7),
	FIELD(MSR_KVM_SYSTEM_TIME, msr.kvm_system_time),
	FIELD(MSR_KVM_WALL_CLOCK, msr.kvm_wall_clock),
	FIELD(X86_MSR_TSC_DEADLINE, lapic.tsc_deadline),
};

_Static_assert(ARRAY_SIZE(msr_fields) <= 64, "engine_vm.msrs has a bit for each");

/* A list as KVM takes it, with room for its entries. */
union msr_list {
	struct kvm_msrs list;
	uint8_t room[sizeof(struct kvm_msrs) +
		     ARRAY_SIZE(msr_fields) * sizeof(struct kvm_msr_entry)];
};

struct msr_batch {
	uint8_t field[ARRAY_SIZE(msr_fields)]; /* which one each entry is */
	union msr_list msrs;
};

/* MSRs whose value moves by itself, or whose write does more than store. */
static bool is_time(uint32_t index)
{
	return index == X86_MSR_TSC || index == X86_MSR_TSC_ADJUST ||
	       index == X86_MSR_TSC_DEADLINE || index == MSR_KVM_SYSTEM_TIME ||
	       index == MSR_KVM_WALL_CLOCK;
}

static bool is_mtrr(uint32_t index)
{
	return (index >= X86_MSR_MTRR_BASE0 &&
		       index < X86_MSR_MTRR_BASE0 + 2 * X86_MTRR_VARIABLE) ||
	       (index >= X86_MSR_MTRR_FIX64K && index <= X86_MSR_MTRR_FIX4K + 7) ||
	       index == X86_MSR_MTRR_DEF_TYPE;
}

static bool listed(const struct kvm_msr_list *list, uint32_t index)
{
	for (unsigned i = 0; i < list->nmsrs; i++)
		if (list->indices[i] == index)
			return true;
	return false;
}

void kvm_msrs_find(struct engine_vm *vm, const struct kvm_msr_list *list)
{
	for (unsigned i = 0; i < ARRAY_SIZE(msr_fields); i++) {
		uint32_t index = msr_fields[i].index;
		/* These KVM does not always list, though it has them. */
		bool known = index == X86_MSR_TSC_DEADLINE ? vm->has_tsc_deadline
			     : is_mtrr(index)		   ? true
							   : listed(list, index);
		if (known)
			vm->msrs |= BIT(i);
	}
}

static uint64_t *field_at(struct x86_state *s, unsigned field)
{
	return (uint64_t *)((char *)s + msr_fields[field].offset);
}

static void fill(struct msr_batch *batch, const struct engine_vm *vm, const struct x86_state *s,
	bool time_too)
{
	batch->msrs.list.nmsrs = batch->msrs.list.pad = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(msr_fields); i++) {
		if (!(vm->msrs >> i & 1) || (!time_too && is_time(msr_fields[i].index)))
			continue;
		unsigned at = batch->msrs.list.nmsrs++;
		batch->msrs.list.entries[at] = (struct kvm_msr_entry){.index = msr_fields[i].index,
			.data = *field_at((struct x86_state *)(uintptr_t)s, i)};
		batch->field[at] = (uint8_t)i;
	}
}

/* Take the first `count` entries off the list. */
static void drop(struct msr_batch *batch, unsigned count)
{
	batch->msrs.list.nmsrs -= count;
	memmove(batch->msrs.list.entries, batch->msrs.list.entries + count,
		batch->msrs.list.nmsrs * sizeof(batch->msrs.list.entries[0]));
	memmove(batch->field, batch->field + count, batch->msrs.list.nmsrs);
}

/* One that KVM does not give after all (the CPU model lacks it) is left as it is. */
int kvm_msrs_get(struct engine_vcpu *vcpu, struct x86_state *s)
{
	struct msr_batch batch;

	fill(&batch, vcpu->vm, s, true);
	while (batch.msrs.list.nmsrs) {
		int done = kvm_ioctl(vcpu->fd, KVM_GET_MSRS, &batch.msrs);
		if (done < 0)
			return done;
		for (int i = 0; i < done; i++)
			*field_at(s, batch.field[i]) = batch.msrs.list.entries[i].data;
		drop(&batch, MIN((unsigned)done + 1, batch.msrs.list.nmsrs));
	}
	return 0;
}

/* One that KVM refuses must hold zero, or something the guest relied on is lost. */
int kvm_msrs_set(struct engine_vcpu *vcpu, const struct x86_state *s, bool time_too)
{
	struct msr_batch batch;

	fill(&batch, vcpu->vm, s, time_too);
	while (batch.msrs.list.nmsrs) {
		int done = kvm_ioctl(vcpu->fd, KVM_SET_MSRS, &batch.msrs);
		if (done < 0)
			return done;
		if ((unsigned)done < batch.msrs.list.nmsrs && batch.msrs.list.entries[done].data)
			log_debug("kvm", "vCPU %u: MSR %#x does not take %#llx", vcpu->config.index,
				batch.msrs.list.entries[done].index,
				(unsigned long long)batch.msrs.list.entries[done].data);
		drop(&batch, MIN((unsigned)done + 1, batch.msrs.list.nmsrs));
	}
	return 0;
}

bool kvm_msr_get(struct engine_vcpu *vcpu, uint32_t index, uint64_t *ret_value)
{
	union msr_list one = {.list.nmsrs = 1};

	one.list.entries[0] = (struct kvm_msr_entry){.index = index};
	if (kvm_ioctl(vcpu->fd, KVM_GET_MSRS, &one) != 1)
		return false;
	*ret_value = one.list.entries[0].data;
	return true;
}

bool kvm_msr_set(struct engine_vcpu *vcpu, uint32_t index, uint64_t value)
{
	union msr_list one = {.list.nmsrs = 1};

	one.list.entries[0] = (struct kvm_msr_entry){.index = index, .data = value};
	return kvm_ioctl(vcpu->fd, KVM_SET_MSRS, &one) == 1;
}
