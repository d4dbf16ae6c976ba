/*
 * The KVM paravirtual clock: the guest reads its time from a page of its own memory that says how the
 * TSC maps to nanoseconds. Linux's Documentation/virt/kvm/x86/msr.rst (MSR_KVM_SYSTEM_TIME_NEW,
 * MSR_KVM_WALL_CLOCK_NEW) and the pvclock ABI.
 *
 * The TSC of a Lodge machine is stable over all vCPUs, so a page is written once, when the guest asks
 * for it, and again only after guest time was held.
 */
#ifndef LODGE_DEVICE_KVMCLOCK_H
#define LODGE_DEVICE_KVMCLOCK_H

#include "base/util.h"
#include "memory/memory.h"

#define KVMCLOCK_MSR_WALL	0x4b564d00u
#define KVMCLOCK_MSR_SYSTEM	0x4b564d01u
#define KVMCLOCK_MSR_WALL_OLD	0x11u
#define KVMCLOCK_MSR_SYSTEM_OLD 0x12u
#define KVMCLOCK_ENABLE		1u

struct kvmclock_time {
	uint64_t tsc; /* guest TSC at the moment of system_ns */
	uint64_t system_ns;
	uint64_t tsc_hz;
	bool paused; /* guest time was held since the last write: the watchdog is told */
};

/*
 * Write a vCPU's time page as the MSR value says (bit 0: enabled; the rest: gpa, 4-byte aligned).
 * Disabled: nothing is done. Errors: -EFAULT (not RAM), -EINVAL (reserved bits).
 */
MUST_CHECK int kvmclock_write_system(
	struct guest_memory *memory, uint64_t msr, const struct kvmclock_time *time);
/* Write the wall clock at the time system_ns was 0. Errors: -EFAULT. */
MUST_CHECK int kvmclock_write_wall(
	struct guest_memory *memory, gpa_t gpa, uint64_t boot_realtime_ns);

/* ns = ((shift < 0 ? ticks >> -shift : ticks << shift) * mul) >> 32 */
void kvmclock_scale(uint64_t tsc_hz, uint32_t *ret_mul, int8_t *ret_shift);

#endif
