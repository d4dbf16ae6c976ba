/*
 * What the files of the KVM engine share. Linux's Documentation/virt/kvm/api.rst.
 */
#ifndef LODGE_ENGINE_KVM_PRIVATE_H
#define LODGE_ENGINE_KVM_PRIVATE_H

#include "base/error.h"
#include "base/log.h"
#include "engine/engine.h"
#include <linux/kvm.h>
#include <stdatomic.h>
#include <sys/types.h>

struct kvm_emulator;

struct engine_vm {
	struct engine_vm_config config;
	int kvm_fd, fd;
	size_t run_bytes;
	bool has_xcrs, has_debugregs, has_tsc_deadline, has_sregs2, has_tsc_control;
	uint64_t msrs;		      /* a bit for each row of msr.c's table that this KVM knows */
	struct x86_cpuid_model cpuid; /* config.cpuid less what this KVM lacks */
	struct engine_vcpu *vcpus;    /* a list, by `next` */
	bool held;		      /* time stands still: clock.c */
	struct kvm_clock_data held_clock;
};

struct engine_vcpu {
	struct engine_vm *vm;
	struct engine_vcpu *next;
	struct engine_vcpu_config config;
	int fd;
	struct kvm_run *run;
	struct x86_cpuid_model cpuid;	/* what the guest sees */
	_Atomic bool kicked;		/* run() shall return */
	_Atomic bool nmi;		/* one to inject before the next KVM_RUN */
	_Atomic pid_t thread;		/* that is in run(); 0: none */
	bool shutdown;			/* after a triple fault, until a state is set */
	uint64_t held_tsc, held_offset; /* while vm->held */
	bool has_offset;
	struct engine_counters counters;
	struct kvm_emulator *emulator; /* made when KVM first fails an instruction */
	struct log_limit emulation_limit;
};

/* ioctl that retries EINTR; returns its result or negative errno. */
int kvm_ioctl(int fd, unsigned long request, void *arg);

/* ---- state.c, msr.c ---- */

int kvm_state_get(struct engine_vcpu *vcpu, struct x86_state *ret_state);
int kvm_state_set(struct engine_vcpu *vcpu, const struct x86_state *state);
/* The same without time (TSC, timers), the local APIC and pending NMIs, which have gone on meanwhile. */
int kvm_state_set_core(struct engine_vcpu *vcpu, const struct x86_state *state);

/* Note which MSRs of the state this KVM has. */
void kvm_msrs_find(struct engine_vm *vm, const struct kvm_msr_list *list);
int kvm_msrs_get(struct engine_vcpu *vcpu, struct x86_state *s);
int kvm_msrs_set(struct engine_vcpu *vcpu, const struct x86_state *s, bool time_too);
/* Any one MSR; false: KVM does not know it, or not that value. */
bool kvm_msr_get(struct engine_vcpu *vcpu, uint32_t index, uint64_t *ret_value);
bool kvm_msr_set(struct engine_vcpu *vcpu, uint32_t index, uint64_t value);

/* ---- cpuid.c ---- */

/* Take from the model what is not in KVM's list, and what stands on that. */
void kvm_cpuid_reduce(
	struct x86_cpuid_model *model, const struct kvm_cpuid2 *supported, bool has_deadline);
/* Make vm->cpuid. */
int kvm_cpuid_limit(struct x86_cpuid_model *model, struct error *err);
int kvm_cpuid_filter(struct engine_vm *vm, struct error *err);
/* Give it to the vCPU. */
int kvm_cpuid_set(struct engine_vcpu *vcpu, struct error *err);

/* ---- run.c ---- */

enum engine_exit kvm_run(struct engine_vcpu *vcpu, struct error *err);
void kvm_kick_init(void);
void kvm_kick(struct engine_vcpu *vcpu);
void kvm_nmi(struct engine_vcpu *vcpu);
/* Hand an NMI that another thread asked for to KVM. On the vCPU's thread, or while it is outside run. */
void kvm_take_nmi(struct engine_vcpu *vcpu);

/* ---- irq.c ---- */

int kvm_irq_routes(struct engine_vm *vm);
int kvm_irq_line(struct engine_vm *vm, unsigned gsi, bool level);
int kvm_msi(struct engine_vm *vm, uint64_t address, uint32_t data);
int kvm_irqfd(struct engine_vm *vm, unsigned gsi, int eventfd, bool on);
int kvm_ioeventfd(struct engine_vm *vm, const struct bus_doorbell *bell, bool on);

/* ---- clock.c ---- */

int kvm_hold(struct engine_vm *vm);
int kvm_release(struct engine_vm *vm);

/* ---- emulate.c ---- */

/* Execute the instruction that KVM could not, with isa/x86's semantics, on the vCPU's own state. A triple
 * fault in it sets vcpu->shutdown. */
int kvm_emulate(struct engine_vcpu *vcpu, struct error *err);
void kvm_emulator_free(struct engine_vcpu *vcpu);

/* ---- probe.c ---- */

void kvm_probe(struct engine_probe *ret_probe);

#endif
