/*
 * A KVM guest's time while its machine is paused: the TSC and kvm-clock stand still. Linux's
 * Documentation/virt/kvm/api.rst (KVM_GET_CLOCK, KVM_SET_CLOCK), devices/vcpu.rst (KVM_VCPU_TSC_OFFSET).
 *
 * All vCPUs' TSCs go back by one amount, so that they agree afterwards as they did before. Where KVM has no
 * offsets (before Linux 5.16) the TSC is written, which KVM takes for an attempt to synchronize when the
 * pause was under a second: then the TSC has run on, and only kvm-clock stood still.
 *
 * Left out: local APIC timers run on meanwhile and may fire early by the length of the pause, which guests
 * see as a timer that was not due yet.
 */
#include "base/util.h"
#include "engine/kvm/private.h"
#include "isa/x86/msr.h"

static int offset_access(struct engine_vcpu *vcpu, unsigned long request, uint64_t *offset)
{
	struct kvm_device_attr attr = {
		.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)offset};

	return kvm_ioctl(vcpu->fd, request, &attr);
}

/* What the others' TSCs read at the moment when the first one's read first_tsc. */
static void hold_tsc(struct engine_vcpu *vcpu, uint64_t first_tsc, uint64_t first_offset)
{
	vcpu->has_offset = offset_access(vcpu, KVM_GET_DEVICE_ATTR, &vcpu->held_offset) == 0;
	if (vcpu->has_offset)
		vcpu->held_tsc = first_tsc + vcpu->held_offset - first_offset;
	else if (!kvm_msr_get(vcpu, X86_MSR_TSC, &vcpu->held_tsc))
		vcpu->held_tsc = first_tsc;
}

int kvm_hold(struct engine_vm *vm)
{
	struct engine_vcpu *first = vm->vcpus;
	uint64_t tsc = 0, offset = 0;
	int status = kvm_ioctl(vm->fd, KVM_GET_CLOCK, &vm->held_clock);

	if (status < 0)
		return status;
	if (first && kvm_msr_get(first, X86_MSR_TSC, &tsc))
		offset_access(first, KVM_GET_DEVICE_ATTR, &offset);
	for (struct engine_vcpu *vcpu = first; vcpu; vcpu = vcpu->next)
		hold_tsc(vcpu, tsc, offset);
	vm->held = true;
	return 0;
}

static void release_tsc(struct engine_vcpu *vcpu, uint64_t passed)
{
	uint64_t offset = vcpu->held_offset - passed;

	if (!vcpu->has_offset || offset_access(vcpu, KVM_SET_DEVICE_ATTR, &offset) < 0)
		kvm_msr_set(vcpu, X86_MSR_TSC, vcpu->held_tsc);
}

int kvm_release(struct engine_vm *vm)
{
	struct kvm_clock_data clock = {.clock = vm->held_clock.clock};
	uint64_t now;

	if (!vm->held)
		return 0;
	vm->held = false;
	if (vm->vcpus && kvm_msr_get(vm->vcpus, X86_MSR_TSC, &now)) {
		const uint64_t passed = now - vm->vcpus->held_tsc;
		for (struct engine_vcpu *vcpu = vm->vcpus; vcpu; vcpu = vcpu->next)
			release_tsc(vcpu, passed);
	}
	return kvm_ioctl(vm->fd, KVM_SET_CLOCK, &clock);
}
