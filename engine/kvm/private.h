/*
 * What the files of the KVM engine share. Linux's Documentation/virt/kvm/api.rst.
 */
#ifndef LODGE_ENGINE_KVM_PRIVATE_H
#define LODGE_ENGINE_KVM_PRIVATE_H

#include "base/error.h"
#include "base/log.h"
#include "engine/engine.h"
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

struct x86_cpu;

struct engine_vm {
	struct engine_vm_config config;
	int kvm_fd, fd;
	size_t run_bytes;
	bool has_xcrs, has_debugregs, has_tsc_deadline;
	struct kvm_msr_list *msrs; /* that this KVM saves */
};

struct engine_vcpu {
	struct engine_vm *vm;
	struct engine_vcpu_config config;
	int fd;
	struct kvm_run *run;
	_Atomic bool kicked;
	_Atomic bool in_run; /* `thread` runs KVM_RUN, or is about to */
	pthread_t thread;
	struct engine_counters counters;
	struct x86_cpu *emulator; /* made when KVM first fails an instruction */
	struct log_limit emulation_limit;
};

/* ioctl that retries EINTR; returns its result or negative errno. */
int kvm_ioctl(int fd, unsigned long request, void *arg);

int kvm_state_get(struct engine_vcpu *vcpu, struct x86_state *ret_state);
int kvm_state_set(struct engine_vcpu *vcpu, const struct x86_state *state);
/* The same without time (TSC, timers) and the local APIC, which have run on meanwhile. */
int kvm_state_set_core(struct engine_vcpu *vcpu, const struct x86_state *state);

/* Give the vCPU the model's CPUID, less what this KVM lacks. */
int kvm_cpuid_set(struct engine_vcpu *vcpu, struct error *err);

/* Execute the instruction that KVM could not, with isa/x86's semantics, on the vCPU's own state. */
int kvm_emulate(struct engine_vcpu *vcpu, struct error *err);
void kvm_emulator_free(struct engine_vcpu *vcpu);

void kvm_probe(struct engine_probe *ret_probe);

#endif
