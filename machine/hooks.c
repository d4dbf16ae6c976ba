/*
 * What engines ask of the machine: interrupts from the board's controllers, the MSRs that belong to
 * devices, the TSC, hypercalls (Linux's Documentation/virt/kvm/x86/hypercalls.rst).
 */
#include "device/irq/lapic.h"
#include "device/kvmclock.h"
#include "machine/private.h"
#include "machine/virtual.h"

#define MSR_APIC_BASE	     0x1bu
#define HYPERCALL_ENOSYS     (-1000)
#define HYPERCALL_VAPIC_POLL 1

static int hook_interrupt_ack(void *opaque)
{
	struct machine_vcpu *vcpu = opaque;
	if (vcpu->machine->config.virtual_time.on && !virtual_take_offer(vcpu))
		return -1;
	int vector = lapic_ack(vcpu->lapic);

	if (vector < 0 && lapic_accepts_pic(vcpu->lapic))
		vector = board_pic_ack(vcpu->machine->board);
	return vector;
}

static uint64_t hook_tsc(void *opaque)
{
	struct machine_vcpu *vcpu = opaque;

	return machine_clock_tsc(vcpu->machine->clock) + vcpu->tsc_offset;
}

static bool hook_tsc_line(void *opaque, struct engine_tsc_line *ret_line)
{
	struct machine_vcpu *vcpu = opaque;

	if (!machine_clock_line(vcpu->machine->clock, ret_line))
		return false;
	ret_line->guest += vcpu->tsc_offset;
	return true;
}

/* The line through guest time 0, the same for all: so the clocks of all vCPUs agree to the nanosecond,
 * which the page promises, and stay right over a pause, in which the TSC stands still as well. */
static bool write_system_time(struct machine_vcpu *vcpu, uint64_t value)
{
	struct machine *m = vcpu->machine;
	const struct kvmclock_time time = {
		.tsc = vcpu->tsc_offset,
		.system_ns = 0,
		.tsc_hz = machine_clock_tsc_hz(m->clock),
	};

	if (kvmclock_write_system(m->memory, value, &time) < 0)
		return false;
	vcpu->kvm_system_time = value;
	return true;
}

static void hook_adjust_tsc(void *opaque, uint64_t delta)
{
	struct machine_vcpu *vcpu = opaque;

	vcpu->tsc_offset += delta;
	write_system_time(vcpu, vcpu->kvm_system_time);
}

static bool write_wall_clock(struct machine_vcpu *vcpu, uint64_t value)
{
	struct machine *m = vcpu->machine;

	if (kvmclock_write_wall(m->memory, value, machine_clock_boot_realtime_ns(m->clock)) < 0)
		return false;
	vcpu->kvm_wall_clock = value;
	return true;
}

static bool is_lapic_msr(uint32_t index)
{
	return (index >= LAPIC_MSR_FIRST && index <= LAPIC_MSR_LAST) ||
	       index == LAPIC_MSR_TSC_DEADLINE;
}

/* For who looks into a guest that does not come up. */
static bool no_such_msr(struct machine_vcpu *vcpu, const char *what, uint32_t index)
{
	log_limited(&vcpu->msr_limit, LOG_LEVEL_DEBUG, "machine",
		"vCPU %u: %s of MSR %#x, which is not there: #GP", vcpu->index, what, index);
	return false;
}

static bool hook_msr_read(void *opaque, uint32_t index, uint64_t *ret_value)
{
	struct machine_vcpu *vcpu = opaque;

	if (is_lapic_msr(index))
		return lapic_msr_read(vcpu->lapic, index, ret_value);
	switch (index) {
	case MSR_APIC_BASE: *ret_value = lapic_base_read(vcpu->lapic); return true;
	case KVMCLOCK_MSR_SYSTEM:
	case KVMCLOCK_MSR_SYSTEM_OLD: *ret_value = vcpu->kvm_system_time; return true;
	case KVMCLOCK_MSR_WALL:
	case KVMCLOCK_MSR_WALL_OLD: *ret_value = vcpu->kvm_wall_clock; return true;
	default: return no_such_msr(vcpu, "read", index);
	}
}

static bool hook_msr_write(void *opaque, uint32_t index, uint64_t value)
{
	struct machine_vcpu *vcpu = opaque;

	if (is_lapic_msr(index))
		return lapic_msr_write(vcpu->lapic, index, value);
	switch (index) {
	case MSR_APIC_BASE: return lapic_base_write(vcpu->lapic, value);
	case KVMCLOCK_MSR_SYSTEM:
	case KVMCLOCK_MSR_SYSTEM_OLD: return write_system_time(vcpu, value);
	case KVMCLOCK_MSR_WALL:
	case KVMCLOCK_MSR_WALL_OLD: return write_wall_clock(vcpu, value);
	default: return no_such_msr(vcpu, "write", index);
	}
}

static uint8_t hook_cr8_read(void *opaque)
{
	struct machine_vcpu *vcpu = opaque;

	return vcpu->lapic ? lapic_read_cr8(vcpu->lapic) : 0;
}

static void hook_cr8_write(void *opaque, uint8_t value)
{
	struct machine_vcpu *vcpu = opaque;

	lapic_write_cr8(vcpu->lapic, value);
}

/* No kick of halted processors (KVM_FEATURE_PV_UNHALT): without it Linux spins on a plain word, with a PAUSE at
 * which engines yield; with it every release of a spinlock is a call and a locked exchange. */
static uint64_t hook_hypercall(void *opaque, uint64_t number, const uint64_t args[4])
{
	return number == HYPERCALL_VAPIC_POLL ? 0 : (uint64_t)HYPERCALL_ENOSYS;
}

const struct engine_hooks machine_hooks = {
	.interrupt_ack = hook_interrupt_ack,
	.msr_read = hook_msr_read,
	.msr_write = hook_msr_write,
	.cr8_read = hook_cr8_read,
	.cr8_write = hook_cr8_write,
	.tsc = hook_tsc,
	.adjust_tsc = hook_adjust_tsc,
	.tsc_line = hook_tsc_line,
	.hypercall = hook_hypercall,
};
