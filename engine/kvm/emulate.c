/*
 * When KVM fails to emulate an instruction (KVM_INTERNAL_ERROR_EMULATION), isa/x86 executes that one on
 * the vCPU's own state, and KVM goes on behind it.
 */
#include "base/util.h"
#include "engine/kvm/private.h"
#include "engine/soft/soft.h"
#include "isa/x86/msr.h"
#include <errno.h>
#include <stdlib.h>

/* A software processor in a VM of its own: other vCPUs go on meanwhile, so a locked access across pages is not
 * atomic here. */
struct kvm_emulator {
	struct soft_vm vm;
	struct soft_vcpu vcpu;
};

/* ---- its hooks: what the machine has in other engines is the kernel's here ---- */

static bool hook_msr_read(void *vcpu, uint32_t index, uint64_t *ret_value)
{
	return kvm_msr_get(vcpu, index, ret_value);
}

static bool hook_msr_write(void *vcpu, uint32_t index, uint64_t value)
{
	return kvm_msr_set(vcpu, index, value);
}

static uint64_t hook_tsc(void *vcpu)
{
	uint64_t value = 0;

	kvm_msr_get(vcpu, X86_MSR_TSC, &value);
	return value;
}

static void hook_adjust_tsc(void *vcpu, uint64_t delta)
{
	kvm_msr_set(vcpu, X86_MSR_TSC, hook_tsc(vcpu) + delta);
}

static uint8_t hook_cr8_read(void *opaque)
{
	const struct engine_vcpu *vcpu = opaque;

	return (uint8_t)vcpu->emulator->vcpu.cpu.s.cr8;
}

static void hook_cr8_write(void *opaque, uint8_t value)
{
	const struct engine_vcpu *vcpu = opaque;

	vcpu->emulator->vcpu.cpu.s.cr8 = value;
}

static uint64_t hook_hypercall(void *vcpu, uint64_t number, const uint64_t args[4])
{
	return (uint64_t)-1000; /* KVM's ENOSYS; KVM never fails its own hypercalls */
}

static const struct engine_hooks emulator_hooks = {
	.msr_read = hook_msr_read,
	.msr_write = hook_msr_write,
	.tsc = hook_tsc,
	.adjust_tsc = hook_adjust_tsc,
	.cr8_read = hook_cr8_read,
	.cr8_write = hook_cr8_write,
	.hypercall = hook_hypercall,
};

/* ---- emulation ---- */

static int emulator_create(struct engine_vcpu *vcpu)
{
	struct engine_vm_config vm_config = vcpu->vm->config;
	struct engine_vcpu_config config = vcpu->config;
	struct kvm_emulator *emulator = calloc(1, sizeof(*emulator));

	if (!emulator)
		return -ENOMEM;
	vm_config.hooks = &emulator_hooks;
	vm_config.cpuid = &vcpu->cpuid;
	vm_config.cpus_max = 1;
	config.opaque = vcpu;
	int status = soft_vm_init(&emulator->vm, &vm_config, "emulator", NULL);
	if (status < 0) {
		free(emulator);
		return status;
	}
	status = soft_vcpu_init(&emulator->vcpu, &emulator->vm, &config, &soft_env, NULL);
	if (status < 0) {
		soft_vm_done(&emulator->vm);
		free(emulator);
		return status;
	}
	vcpu->emulator = emulator;
	return 0;
}

void kvm_emulator_free(struct engine_vcpu *vcpu)
{
	if (!vcpu->emulator)
		return;
	soft_vcpu_done(&vcpu->emulator->vcpu);
	soft_vm_done(&vcpu->emulator->vm);
	free(vcpu->emulator);
}

#define STRING_PIECES_MAX 16

/* An event that was on its way comes first: what KVM failed at may have been its delivery. But for #UD: that
 * is KVM's own, for an instruction that it does not know; if it was the guest's, stepping raises it again. */
static enum x86_status emulate_one(struct x86_cpu *cpu)
{
	const struct x86_event event = cpu->s.event;
	enum x86_status done;
	unsigned pieces = 0;

	cpu->s.event = (struct x86_event){.type = X86_EVENT_NONE};
	if (event.type != X86_EVENT_NONE &&
		!(event.type == X86_EVENT_EXCEPTION && event.vector == X86_UD))
		return x86_deliver(cpu, &event);
	/* Of a long string only so much: KVM comes back for the rest, and sees kicks in between. */
	do
		done = x86_step(cpu);
	while (done == X86_REPEAT && ++pieces < STRING_PIECES_MAX);
	return done;
}

int kvm_emulate(struct engine_vcpu *vcpu, struct error *err)
{
	struct x86_state state;
	int status = vcpu->emulator ? 0 : emulator_create(vcpu);

	if (status == 0)
		status = kvm_state_get(vcpu, &state);
	if (status < 0)
		return error_set_errno(err, -status, "can't take over from KVM's emulator");
	if (state.activity != X86_RUNNING)
		return 0; /* INIT came meanwhile: the instruction is no more */
	log_limited(&vcpu->emulation_limit, LOG_LEVEL_DEBUG, "kvm",
		"vCPU %u: KVM fails an instruction at %04x:%llx, the interpreter executes it",
		vcpu->config.index, state.seg[X86_CS].selector,
		(unsigned long long)state.reg[X86_RIP]);
	struct x86_cpu *cpu = &vcpu->emulator->vcpu.cpu;
	x86_cpu_load(cpu, &state);
	enum x86_status done = emulate_one(cpu);
	vcpu->counters.emulated++;
	vcpu->shutdown = done == X86_TRIPLE;
	status = kvm_state_set_core(vcpu, &cpu->s);
	if (status == 0 && done == X86_HLT) {
		struct kvm_mp_state halted = {.mp_state = KVM_MP_STATE_HALTED};
		status = kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &halted);
	}
	if (status < 0)
		return error_set_errno(err, -status, "can't give the state back to KVM");
	return 0;
}
