/*
 * When KVM fails to emulate an instruction (KVM_INTERNAL_ERROR_EMULATION), isa/x86 executes that one on
 * the vCPU's own state, and KVM goes on behind it.
 */
#include "base/util.h"
#include "device/bus.h"
#include "engine/kvm/private.h"
#include "isa/x86/cpu.h"
#include "isa/x86/msr.h"
#include <errno.h>
#include <stdlib.h>

static struct engine_vcpu *vcpu_of(struct x86_cpu *cpu)
{
	return cpu->env_opaque;
}

static uint64_t env_mmio_read(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes)
{
	return bus_read(vcpu_of(cpu)->vm->config.bus, BUS_MMIO, gpa, size_bytes);
}

static void env_mmio_write(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes, uint64_t value)
{
	bus_write(vcpu_of(cpu)->vm->config.bus, BUS_MMIO, gpa, size_bytes, value);
}

static uint32_t env_pio_read(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes)
{
	return (uint32_t)bus_read(vcpu_of(cpu)->vm->config.bus, BUS_PIO, port, size_bytes);
}

static void env_pio_write(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes, uint32_t value)
{
	bus_write(vcpu_of(cpu)->vm->config.bus, BUS_PIO, port, size_bytes, value);
}

/* MSRs of devices are the kernel's here. */
static bool env_msr_read(struct x86_cpu *cpu, uint32_t index, uint64_t *ret_value)
{
	return kvm_msr_get(vcpu_of(cpu), index, ret_value);
}

static bool env_msr_write(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
	return kvm_msr_set(vcpu_of(cpu), index, value);
}

static uint64_t env_tsc(struct x86_cpu *cpu)
{
	uint64_t value = 0;

	kvm_msr_get(vcpu_of(cpu), X86_MSR_TSC, &value);
	return value;
}

static void env_adjust_tsc(struct x86_cpu *cpu, uint64_t delta)
{
	kvm_msr_set(vcpu_of(cpu), X86_MSR_TSC, env_tsc(cpu) + delta);
}

static uint8_t env_cr8_read(struct x86_cpu *cpu)
{
	return (uint8_t)cpu->s.cr8;
}

static void env_cr8_write(struct x86_cpu *cpu, uint8_t value)
{
	cpu->s.cr8 = value;
}

static void env_hypercall(struct x86_cpu *cpu)
{
	cpu->s.reg[X86_RAX] =
		(uint64_t)-1000; /* KVM's ENOSYS; KVM never fails its own hypercalls */
}

/* Other vCPUs go on meanwhile: a locked access across pages is not atomic here. */
static void env_exclusive(struct x86_cpu *cpu) {}

static const struct x86_env_ops emulator_env = {
	.mmio_read = env_mmio_read,
	.mmio_write = env_mmio_write,
	.pio_read = env_pio_read,
	.pio_write = env_pio_write,
	.msr_read = env_msr_read,
	.msr_write = env_msr_write,
	.tsc = env_tsc,
	.adjust_tsc = env_adjust_tsc,
	.cr8_read = env_cr8_read,
	.cr8_write = env_cr8_write,
	.hypercall = env_hypercall,
	.exclusive_begin = env_exclusive,
	.exclusive_end = env_exclusive,
};

static int emulator_create(struct engine_vcpu *vcpu)
{
	struct x86_cpu *cpu = calloc(1, sizeof(*cpu));

	if (!cpu)
		return -ENOMEM;
	int status = x86_cpu_init(cpu, vcpu->vm->config.memory, &vcpu->cpuid, &emulator_env, vcpu);
	if (status < 0) {
		free(cpu);
		return status;
	}
	cpu->apic_id = vcpu->config.apic_id;
	vcpu->emulator = cpu;
	return 0;
}

void kvm_emulator_free(struct engine_vcpu *vcpu)
{
	if (!vcpu->emulator)
		return;
	x86_cpu_done(vcpu->emulator);
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
	log_limited(&vcpu->emulation_limit, LOG_LEVEL_DEBUG, "kvm",
		"vCPU %u: KVM fails an instruction at %04x:%llx, the interpreter executes it",
		vcpu->config.index, state.seg[X86_CS].selector,
		(unsigned long long)state.reg[X86_RIP]);
	x86_cpu_load(vcpu->emulator, &state);
	enum x86_status done = emulate_one(vcpu->emulator);
	vcpu->counters.emulated++;
	vcpu->shutdown = done == X86_TRIPLE;
	status = kvm_state_set_core(vcpu, &vcpu->emulator->s);
	if (status == 0 && done == X86_HLT) {
		struct kvm_mp_state halted = {.mp_state = KVM_MP_STATE_HALTED};
		status = kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &halted);
	}
	if (status < 0)
		return error_set_errno(err, -status, "can't give the state back to KVM");
	return 0;
}
