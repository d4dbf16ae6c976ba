/*
 * What the software engines have in common: see soft.h.
 */
#include "engine/soft/soft.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "device/bus.h"
#include <errno.h>
#include <sched.h>

_Static_assert(offsetof(struct soft_vcpu, cpu) == 0, "an x86_cpu is its soft_vcpu");

/* ---- exclusive sections ---- */

/* Stay out of guest code while another is exclusive. Called with vm->lock held. */
static void park(struct soft_vcpu *v)
{
	const bool in_guest = v->in_guest;

	v->in_guest = false;
	pthread_cond_broadcast(&v->vm->parked);
	while (atomic_load(&v->attention) & SOFT_HOLD)
		pthread_cond_wait(&v->vm->released, &v->vm->lock);
	v->in_guest = in_guest;
}

static void guest_enter(struct soft_vcpu *v)
{
	AUTO_LOCK(&v->vm->lock);
	v->in_guest = v->entered = true;
	v->thread = pthread_self();
	if (atomic_load(&v->attention) & SOFT_HOLD)
		park(v);
}

static void guest_leave(struct soft_vcpu *v)
{
	AUTO_LOCK(&v->vm->lock);
	v->in_guest = v->entered = false;
	pthread_cond_broadcast(&v->vm->parked);
}

struct soft_vcpu *soft_running_here(struct soft_vm *vm)
{
	AUTO_LOCK(&vm->lock);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpu[i]->entered && pthread_equal(vm->vcpu[i]->thread, pthread_self()))
			return vm->vcpu[i];
	return NULL;
}

/* Tell all vCPUs but `self` to stay out of guest code, or that they may go on. */
static void hold_others(struct soft_vm *vm, const struct soft_vcpu *self, bool on)
{
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		if (vm->vcpu[i] == self)
			continue;
		if (on)
			atomic_fetch_or(&vm->vcpu[i]->attention, SOFT_HOLD);
		else
			atomic_fetch_and(&vm->vcpu[i]->attention, ~(uint32_t)SOFT_HOLD);
	}
}

static bool others_in_guest(const struct soft_vm *vm, const struct soft_vcpu *self)
{
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpu[i] != self && vm->vcpu[i]->in_guest)
			return true;
	return false;
}

/* With vm->lock held, as the following. */
static void enter_section(struct soft_vm *vm, struct soft_vcpu *self, unsigned depth)
{
	/* Two at once: this one has changed nothing yet, so it may park here as well. */
	while (vm->exclusive_depth) {
		if (self)
			park(self);
		else
			pthread_cond_wait(&vm->released, &vm->lock);
	}
	vm->exclusive_by = self;
	vm->exclusive_depth = depth;
	hold_others(vm, self, true);
	while (others_in_guest(vm, self))
		pthread_cond_wait(&vm->parked, &vm->lock);
}

/* Returns its depth. */
static unsigned leave_section(struct soft_vm *vm, struct soft_vcpu *self)
{
	const unsigned depth = vm->exclusive_depth;

	vm->exclusive_depth = 0;
	vm->exclusive_by = NULL;
	hold_others(vm, self, false);
	pthread_cond_broadcast(&vm->released);
	return depth;
}

void soft_exclusive_begin(struct soft_vm *vm, struct soft_vcpu *self)
{
	AUTO_LOCK(&vm->lock);
	if (self && vm->exclusive_by == self)
		vm->exclusive_depth++;
	else
		enter_section(vm, self, 1);
}

void soft_exclusive_end(struct soft_vm *vm, struct soft_vcpu *self)
{
	AUTO_LOCK(&vm->lock);
	if (vm->exclusive_depth == 1)
		leave_section(vm, self);
	else
		vm->exclusive_depth--;
}

/* ---- ports and device memory ---- */

/*
 * In a device a vCPU is outside guest code: it may wait there for a lock whose holder wants all vCPUs out (it writes
 * RAM that holds code). So it lets go of a section of its own as well, and is held on the way back if need be.
 */
struct left_for_device {
	bool in_guest;	/* what it was; who only steps instructions never is */
	unsigned depth; /* of its section */
};

static struct left_for_device device_enter(struct soft_vcpu *v)
{
	struct soft_vm *vm = v->vm;
	struct left_for_device left;

	AUTO_LOCK(&vm->lock);
	left = (struct left_for_device){.in_guest = v->in_guest};
	v->in_guest = false;
	if (likely(!vm->exclusive_depth))
		return left;
	pthread_cond_broadcast(&vm->parked);
	if (vm->exclusive_by == v)
		left.depth = leave_section(vm, v);
	return left;
}

static void device_leave(struct soft_vcpu *v, struct left_for_device left)
{
	AUTO_LOCK(&v->vm->lock);
	v->in_guest = left.in_guest;
	if (unlikely(left.in_guest && (atomic_load(&v->attention) & SOFT_HOLD)))
		park(v);
	if (unlikely(left.depth))
		enter_section(v->vm, v, left.depth);
}

static uint64_t device_read(struct soft_vcpu *v, enum bus_space space, uint64_t at, unsigned size_bytes)
{
	const struct left_for_device left = device_enter(v);
	const uint64_t value = bus_read(v->vm->config.bus, space, at, size_bytes);

	device_leave(v, left);
	return value;
}

static void device_write(
	struct soft_vcpu *v, enum bus_space space, uint64_t at, unsigned size_bytes, uint64_t value)
{
	const struct left_for_device left = device_enter(v);

	bus_write(v->vm->config.bus, space, at, size_bytes, value);
	device_leave(v, left);
}

/* ---- the processor's environment: forwards to the bus and the machine ---- */

static uint64_t env_mmio_read(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes)
{
	soft_of(cpu)->counters.mmio++;
	return device_read(soft_of(cpu), BUS_MMIO, gpa, size_bytes);
}

static void env_mmio_write(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes, uint64_t value)
{
	soft_of(cpu)->counters.mmio++;
	device_write(soft_of(cpu), BUS_MMIO, gpa, size_bytes, value);
}

static uint32_t env_pio_read(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes)
{
	soft_of(cpu)->counters.pio++;
	return (uint32_t)device_read(soft_of(cpu), BUS_PIO, port, size_bytes);
}

static void env_pio_write(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes, uint32_t value)
{
	soft_of(cpu)->counters.pio++;
	device_write(soft_of(cpu), BUS_PIO, port, size_bytes, value);
}

#define HOOK(cpu, name, ...) \
	(soft_of(cpu)->vm->config.hooks->name(soft_of(cpu)->config.opaque, ##__VA_ARGS__))

static bool env_msr_read(struct x86_cpu *cpu, uint32_t index, uint64_t *ret_value)
{
	return HOOK(cpu, msr_read, index, ret_value);
}

static bool env_msr_write(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
	return HOOK(cpu, msr_write, index, value);
}

static uint64_t env_tsc(struct x86_cpu *cpu)
{
	return HOOK(cpu, tsc);
}

static void env_adjust_tsc(struct x86_cpu *cpu, uint64_t delta)
{
	HOOK(cpu, adjust_tsc, delta);
}

static uint8_t env_cr8_read(struct x86_cpu *cpu)
{
	return HOOK(cpu, cr8_read);
}

static void env_cr8_write(struct x86_cpu *cpu, uint8_t value)
{
	HOOK(cpu, cr8_write, value);
}

static void env_hypercall(struct x86_cpu *cpu)
{
	uint64_t *reg = cpu->s.reg, mask = cpu->mode == 64 ? ~0ull : 0xffffffffull;
	const uint64_t args[4] = {
		reg[X86_RBX] & mask, reg[X86_RCX] & mask, reg[X86_RDX] & mask, reg[X86_RSI] & mask};

	reg[X86_RAX] = HOOK(cpu, hypercall, reg[X86_RAX] & mask, args) & mask;
}

static void env_pause(struct x86_cpu *cpu)
{
	/* A spinning vCPU waits for another, which may need this host CPU. */
	if (soft_of(cpu)->vm->vcpu_count > 1)
		sched_yield();
}

static void env_exclusive_begin(struct x86_cpu *cpu)
{
	soft_exclusive_begin(soft_of(cpu)->vm, soft_of(cpu));
}

static void env_exclusive_end(struct x86_cpu *cpu)
{
	soft_exclusive_end(soft_of(cpu)->vm, soft_of(cpu));
}

const struct x86_env_ops soft_env = {
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
	.exclusive_begin = env_exclusive_begin,
	.exclusive_end = env_exclusive_end,
	.pause = env_pause,
};

/* ---- events ---- */

static enum x86_status deliver(struct soft_vcpu *v, uint8_t type, uint8_t vector)
{
	const struct x86_event event = {.type = type, .vector = vector};

	v->cpu.s.activity = X86_RUNNING;
	v->counters.interrupts++;
	return x86_deliver(&v->cpu, &event);
}

static enum x86_status take_interrupt(struct soft_vcpu *v)
{
	/* Clear first: an interrupt that arrives after the question sets it again. */
	atomic_fetch_and(&v->attention, ~(uint32_t)SOFT_INTR);
	int vector = v->vm->config.hooks->interrupt_ack(v->config.opaque);
	if (vector < 0)
		return X86_OK;
	atomic_fetch_or(&v->attention, SOFT_INTR); /* there may be another one */
	return deliver(v, X86_EVENT_INTR, (uint8_t)vector);
}

enum x86_status soft_attend(struct soft_vcpu *v, uint32_t attention)
{
	struct x86_cpu *cpu = &v->cpu;

	if (attention & SOFT_HOLD) {
		AUTO_LOCK(&v->vm->lock);
		park(v);
	}
	if ((attention & SOFT_NMI) && !cpu->s.nmi_blocked && !cpu->s.mov_ss_shadow) {
		atomic_fetch_and(&v->attention, ~(uint32_t)SOFT_NMI);
		return deliver(v, X86_EVENT_NMI, X86_NMI);
	}
	if ((attention & SOFT_INTR) && x86_interruptible(cpu))
		return take_interrupt(v);
	return X86_OK;
}

/* ---- execution ---- */

/* A halted vCPU wakes for an NMI or an interrupt it can take. */
static bool still_halted(struct soft_vcpu *v)
{
	if (v->cpu.s.activity == X86_HALTED)
		soft_attend(v, atomic_load(&v->attention));
	return v->cpu.s.activity != X86_RUNNING;
}

/* An event whose delivery another engine was interrupted in. */
static void resume_event(struct soft_vcpu *v)
{
	const struct x86_event event = v->cpu.s.event;

	if (likely(event.type == X86_EVENT_NONE) || v->cpu.s.activity > X86_HALTED)
		return;
	v->cpu.s.activity = X86_RUNNING;
	x86_deliver(&v->cpu, &event); /* a triple fault shows in the activity */
}

enum engine_exit soft_run(struct soft_vcpu *v, soft_loop *loop)
{
	enum engine_exit exit = ENGINE_EXIT_KICKED;

	guest_enter(v);
	resume_event(v);
	/* HLT returns to the machine only if nothing woke the vCPU at once. */
	for (;;) {
		if (atomic_load(&v->attention) & SOFT_KICK)
			break;
		if (v->cpu.instructions >= v->stop_at && v->cpu.s.activity != X86_SHUTDOWN) {
			exit = ENGINE_EXIT_BUDGET;
			break;
		}
		if (still_halted(v)) {
			exit = v->cpu.s.activity == X86_SHUTDOWN ? ENGINE_EXIT_SHUTDOWN
								 : ENGINE_EXIT_HALTED;
			break;
		}
		loop(v); /* why it came back shows in what is asked above */
	}
	atomic_fetch_and(&v->attention, ~(uint32_t)SOFT_KICK);
	guest_leave(v);
	v->counters.exits++;
	return exit;
}

/* ---- life ---- */

int soft_vm_init(struct soft_vm *vm, const struct engine_vm_config *config, const char *what,
	struct error *err)
{
	if (config->cpus_max > SOFT_CPUS_MAX)
		return error_set(err, EINVAL, "the %s runs at most %d vCPUs, not %u", what,
			SOFT_CPUS_MAX, config->cpus_max);
	*vm = (struct soft_vm){.config = *config};
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->parked, NULL);
	pthread_cond_init(&vm->released, NULL);
	return 0;
}

void soft_vm_done(struct soft_vm *vm)
{
	pthread_mutex_destroy(&vm->lock);
	pthread_cond_destroy(&vm->parked);
	pthread_cond_destroy(&vm->released);
}

int soft_vcpu_init(struct soft_vcpu *v, struct soft_vm *vm, const struct engine_vcpu_config *config,
	const struct x86_env_ops *env, struct error *err)
{
	if (vm->vcpu_count == SOFT_CPUS_MAX)
		return error_set(err, EINVAL, "no vCPU more than %d", SOFT_CPUS_MAX);
	v->vm = vm;
	v->config = *config;
	if (x86_cpu_init(&v->cpu, vm->config.memory, vm->config.cpuid, env, v) < 0) {
		x86_cpu_done(&v->cpu);
		return error_set(err, ENOMEM, "no memory for vCPU %u", config->index);
	}
	v->cpu.apic_id = config->apic_id;
	v->cpu.random = vm->config.tuning.random_seed;
	v->stop_at = UINT64_MAX;
	AUTO_LOCK(&vm->lock);
	if (vm->exclusive_depth)
		atomic_fetch_or(&v->attention, SOFT_HOLD);
	vm->vcpu[vm->vcpu_count++] = v;
	return 0;
}

static void forget(struct soft_vm *vm, const struct soft_vcpu *v)
{
	AUTO_LOCK(&vm->lock);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpu[i] == v)
			vm->vcpu[i] = vm->vcpu[--vm->vcpu_count];
}

void soft_vcpu_done(struct soft_vcpu *v)
{
	forget(v->vm, v);
	x86_cpu_done(&v->cpu);
}

/* ---- slots of engine_ops ---- */

static struct soft_vm *vm_of(struct engine_vm *vm)
{
	return (struct soft_vm *)vm;
}

static struct soft_vcpu *vcpu_of(struct engine_vcpu *vcpu)
{
	return (struct soft_vcpu *)vcpu;
}

void soft_kick(struct engine_vcpu *vcpu)
{
	atomic_fetch_or(&vcpu_of(vcpu)->attention, SOFT_KICK);
}

void soft_interrupt(struct engine_vcpu *vcpu)
{
	atomic_fetch_or(&vcpu_of(vcpu)->attention, SOFT_INTR);
}

void soft_nmi(struct engine_vcpu *vcpu)
{
	atomic_fetch_or(&vcpu_of(vcpu)->attention, SOFT_NMI);
}

int soft_set_budget(struct engine_vcpu *vcpu, uint64_t instructions)
{
	struct soft_vcpu *v = vcpu_of(vcpu);

	if (__builtin_add_overflow(v->cpu.instructions, instructions, &v->stop_at))
		v->stop_at = UINT64_MAX;
	return 0;
}

int soft_get_state(struct engine_vcpu *vcpu, struct x86_state *ret_state)
{
	struct soft_vcpu *v = vcpu_of(vcpu);
	const struct engine_hooks *hooks = v->vm->config.hooks;

	*ret_state = v->cpu.s;
	ret_state->tsc = hooks->tsc(v->config.opaque);
	ret_state->cr8 = hooks->cr8_read(v->config.opaque);
	ret_state->nmi_pending = atomic_load(&v->attention) & SOFT_NMI;
	return 0;
}

int soft_set_state(struct engine_vcpu *vcpu, const struct x86_state *state)
{
	struct soft_vcpu *v = vcpu_of(vcpu);

	x86_cpu_load(&v->cpu, state);
	v->cpu.s.reg[X86_ZERO] = 0;
	if (state->nmi_pending)
		soft_nmi(vcpu);
	else
		atomic_fetch_and(&v->attention, ~(uint32_t)SOFT_NMI);
	soft_interrupt(vcpu); /* ask the interrupt controllers again */
	return 0;
}

void soft_counters(const struct soft_vcpu *v, struct engine_counters *ret_counters)
{
	*ret_counters = v->counters;
	ret_counters->instructions = v->cpu.instructions;
	ret_counters->tlb_fills = v->cpu.tlb_fills;
}

/* The log is kept by the TLB's write entries, which are made one by one and mark the page. */
int soft_drop_writes(struct engine_vm *vm)
{
	AUTO_LOCK(&vm_of(vm)->lock);
	for (unsigned i = 0; i < vm_of(vm)->vcpu_count; i++)
		x86_tlb_flush_writes(&vm_of(vm)->vcpu[i]->cpu);
	return 0;
}

int soft_dirty_stop(struct engine_vm *vm)
{
	return 0;
}

int soft_irq_line(struct engine_vm *vm, unsigned gsi, bool level)
{
	return -ENOTSUP;
}

int soft_msi(struct engine_vm *vm, uint64_t address, uint32_t data)
{
	return -ENOTSUP;
}

/* Time is the machine's. */
int soft_hold(struct engine_vm *vm)
{
	return 0;
}

int soft_irqfd(struct engine_vm *vm, unsigned gsi, int eventfd, bool on)
{
	return -ENOTSUP;
}

int soft_ioeventfd(struct engine_vm *vm, const struct bus_doorbell *bell, bool on)
{
	struct bus *bus = vm_of(vm)->config.bus;

	return on ? bus_add_doorbell(bus, bell) : bus_remove_doorbell(bus, bell);
}
