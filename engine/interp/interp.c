/*
 * The interpreter engine: runs guest code through the semantic functions of isa/x86, block by block.
 * It is the semantic reference of the other engines: whatever is unusual (single step, breakpoints,
 * page-crossing instructions, interrupt shadows) goes through x86_step, one instruction at a time.
 *
 * A thread per vCPU, no shared translation state: each vCPU has its own TLB and block cache. Others talk
 * to a vCPU through one atomic word, `attention`, which is read before every block. A vCPU that needs
 * the others out of guest code (a locked access across pages) asks each to park there.
 *
 * Invariant: between blocks RIP is the address of the next instruction and nothing is pending in
 * cpu->fault.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "base/util.h"
#include "device/bus.h"
#include "engine/engine.h"
#include "engine/interp/block.h"
#include "isa/x86/access.h"
#include "isa/x86/cpu.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#define ARENA_BYTES MIB(24)
#define CPUS_MAX    64

enum attention {
	ATTEND_KICK = 1,
	ATTEND_INTR = 2, /* interrupt_ack may have a vector */
	ATTEND_NMI = 4,
	ATTEND_HOLD = 8, /* park: another vCPU runs exclusively */
};

struct engine_vm {
	struct engine_vm_config config;
	pthread_mutex_t lock; /* exclusive sections, and the list of vCPUs */
	pthread_cond_t parked, released;
	unsigned vcpu_count;
	struct engine_vcpu *vcpu[CPUS_MAX];
};

struct engine_vcpu {
	struct x86_cpu cpu;
	struct engine_vm *vm;
	struct engine_vcpu_config config;
	struct interp_cache *cache;
	struct interp_block *last; /* that ran before; NULL: none, or the arena was flushed since */
	_Atomic uint32_t attention; /* enum attention */
	bool in_guest;		    /* under vm->lock */
	struct engine_counters counters;
};

/* ---- the processor's environment: forwards to the bus and the machine ---- */

static struct engine_vcpu *vcpu_of(struct x86_cpu *cpu)
{
	return cpu->env_opaque;
}

static uint64_t env_mmio_read(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes)
{
	vcpu_of(cpu)->counters.mmio++;
	return bus_read(vcpu_of(cpu)->vm->config.bus, BUS_MMIO, gpa, size_bytes);
}

static void env_mmio_write(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes, uint64_t value)
{
	vcpu_of(cpu)->counters.mmio++;
	bus_write(vcpu_of(cpu)->vm->config.bus, BUS_MMIO, gpa, size_bytes, value);
}

static uint32_t env_pio_read(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes)
{
	vcpu_of(cpu)->counters.pio++;
	return (uint32_t)bus_read(vcpu_of(cpu)->vm->config.bus, BUS_PIO, port, size_bytes);
}

static void env_pio_write(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes, uint32_t value)
{
	vcpu_of(cpu)->counters.pio++;
	bus_write(vcpu_of(cpu)->vm->config.bus, BUS_PIO, port, size_bytes, value);
}

#define HOOK(cpu, name, ...)                                                                       \
	(vcpu_of(cpu)->vm->config.hooks->name(vcpu_of(cpu)->config.opaque, ##__VA_ARGS__))

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
	const uint64_t args[4] = { reg[X86_RBX] & mask, reg[X86_RCX] & mask, reg[X86_RDX] & mask,
		reg[X86_RSI] & mask };

	reg[X86_RAX] = HOOK(cpu, hypercall, reg[X86_RAX] & mask, args) & mask;
}

static void env_pause(struct x86_cpu *cpu)
{
	/* A spinning vCPU waits for another, which may need this host CPU. */
	if (vcpu_of(cpu)->vm->vcpu_count > 1)
		sched_yield();
}

/* ---- exclusive sections ---- */

/* Stay out of guest code while another vCPU is exclusive. Called with vm->lock held. */
static void park(struct engine_vcpu *v)
{
	v->in_guest = false;
	pthread_cond_broadcast(&v->vm->parked);
	while (atomic_load(&v->attention) & ATTEND_HOLD)
		pthread_cond_wait(&v->vm->released, &v->vm->lock);
	v->in_guest = true;
}

static void guest_enter(struct engine_vcpu *v)
{
	AUTO_LOCK(&v->vm->lock);
	v->in_guest = true;
	if (atomic_load(&v->attention) & ATTEND_HOLD)
		park(v);
}

static void guest_leave(struct engine_vcpu *v)
{
	AUTO_LOCK(&v->vm->lock);
	v->in_guest = false;
	pthread_cond_broadcast(&v->vm->parked);
}

static void env_exclusive_begin(struct x86_cpu *cpu)
{
	struct engine_vcpu *self = vcpu_of(cpu);
	struct engine_vm *vm = self->vm;

	pthread_mutex_lock(&vm->lock);
	/* Two at once: this one has changed nothing yet, so it may park here as well. */
	while (atomic_load(&self->attention) & ATTEND_HOLD)
		park(self);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpu[i] != self)
			atomic_fetch_or(&vm->vcpu[i]->attention, ATTEND_HOLD);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		while (vm->vcpu[i] != self && vm->vcpu[i]->in_guest)
			pthread_cond_wait(&vm->parked, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

static void env_exclusive_end(struct x86_cpu *cpu)
{
	struct engine_vcpu *self = vcpu_of(cpu);
	struct engine_vm *vm = self->vm;
	AUTO_LOCK(&vm->lock);

	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpu[i] != self)
			atomic_fetch_and(&vm->vcpu[i]->attention, ~(uint32_t)ATTEND_HOLD);
	pthread_cond_broadcast(&vm->released);
}

static const struct x86_env_ops interp_env = {
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

static enum x86_status deliver(struct engine_vcpu *v, uint8_t type, uint8_t vector)
{
	const struct x86_event event = { .type = type, .vector = vector };

	v->cpu.s.activity = X86_RUNNING;
	v->counters.interrupts++;
	return x86_deliver(&v->cpu, &event);
}

static enum x86_status take_interrupt(struct engine_vcpu *v)
{
	/* Clear first: an interrupt that arrives after the question sets it again. */
	atomic_fetch_and(&v->attention, ~(uint32_t)ATTEND_INTR);
	int vector = v->vm->config.hooks->interrupt_ack(v->config.opaque);
	if (vector < 0)
		return X86_OK;
	atomic_fetch_or(&v->attention, ATTEND_INTR); /* there may be another one */
	return deliver(v, X86_EVENT_INTR, (uint8_t)vector);
}

/* What is left to do for `attention`, but for a kick. X86_OK: nothing was delivered. */
static enum x86_status attend(struct engine_vcpu *v, uint32_t attention)
{
	struct x86_cpu *cpu = &v->cpu;

	if (attention & ATTEND_HOLD) {
		AUTO_LOCK(&v->vm->lock);
		park(v);
	}
	if ((attention & ATTEND_NMI) && !cpu->s.nmi_blocked && !cpu->s.mov_ss_shadow) {
		atomic_fetch_and(&v->attention, ~(uint32_t)ATTEND_NMI);
		return deliver(v, X86_EVENT_NMI, X86_NMI);
	}
	if ((attention & ATTEND_INTR) && x86_interruptible(cpu))
		return take_interrupt(v);
	return X86_OK;
}

/* ---- execution ---- */

static inline bool needs_step(const struct x86_cpu *cpu)
{
	return cpu->slow_path || cpu->s.interrupt_shadow || cpu->s.mov_ss_shadow ||
	       (cpu->s.rflags & (X86_TF | X86_RF));
}

static inline gva_t linear_rip(const struct x86_cpu *cpu)
{
	uint64_t rip = cpu->s.reg[X86_RIP];

	return cpu->mode == 64 ? rip : (uint32_t)(cpu->s.seg[X86_CS].base + rip);
}

/* Host address of the code at `linear`, through the TLB; NULL: not RAM, or a fault that x86_step will
 * find and raise. */
static const uint8_t *code_host(struct x86_cpu *cpu, gva_t linear)
{
	const uint8_t *host = x86_tlb_host(cpu, linear, 1, X86_EXEC);
	gpa_t gpa;

	if (likely(host))
		return host;
	if ((int64_t)(linear << 16) >> 16 != (int64_t)linear ||
		x86_translate(cpu, linear, X86_EXEC, cpu->cpl == 3, &gpa) != X86_OK)
		return NULL;
	return x86_tlb_host(cpu, linear, 1, X86_EXEC);
}

/* In 16 and 32-bit code the whole block lies within CS's limit. */
static inline bool within_limit(const struct x86_cpu *cpu, const struct interp_block *block)
{
	return cpu->mode == 64 ||
	       cpu->s.reg[X86_RIP] + block->size_bytes - 1 <= cpu->s.seg[X86_CS].limit;
}

/* Not among the successors of the last block: look it up or decode it, and make it one. */
static struct interp_block *find_slowly(struct engine_vcpu *v, uint64_t key, const uint8_t *host,
	unsigned room)
{
	struct x86_cpu *cpu = &v->cpu;
	struct interp_block *block = interp_cache_find(v->cache, key, host, room);

	if (!block) {
		uint64_t decoded, before, after;

		interp_cache_counters(v->cache, &decoded, &before);
		block = interp_cache_decode(v->cache, key, host, room, cpu->mode, cpu->real,
			&cpu->features);
		interp_cache_counters(v->cache, &decoded, &after);
		if (before != after)
			v->last = NULL;
	}
	if (block && v->last)
		v->last->successor[v->last->turn++ & 1] = block;
	return block;
}

static inline struct interp_block *find_block(struct engine_vcpu *v, const uint8_t **ret_host)
{
	struct x86_cpu *cpu = &v->cpu;
	gva_t linear = linear_rip(cpu);
	unsigned in_page = linear & ~GUEST_PAGE_MASK, room = GUEST_PAGE_SIZE - in_page;
	const uint8_t *host = code_host(cpu, linear);
	struct interp_block *block, *last = v->last;

	if (unlikely(!host))
		return NULL;
	gpa_t gpa = cpu->tlb_now[X86_EXEC][linear >> GUEST_PAGE_SHIFT & (X86_TLB_SIZE - 1)].gpa + in_page;
	uint64_t key = interp_block_key(gpa, cpu->mode, cpu->real);
	if (likely(last && interp_block_good(last->successor[0], key, host, room)))
		block = last->successor[0];
	else if (last && interp_block_good(last->successor[1], key, host, room))
		block = last->successor[1];
	else
		block = find_slowly(v, key, host, room);
	if (unlikely(!block || !within_limit(cpu, block)))
		return NULL;
	v->last = block;
	*ret_host = host;
	return block;
}

static enum x86_status run_block(struct engine_vcpu *v, const struct interp_block *block,
	const uint8_t *host)
{
	struct x86_cpu *cpu = &v->cpu;
	const struct x86_insn *insn = block->insn, *end = insn + block->insn_count;
	const uint64_t start = cpu->s.reg[X86_RIP];
	enum x86_status status = X86_OK;
	unsigned done = 0;

	do {
		cpu->s.reg[X86_RIP] = start + done + insn->len;
		if (unlikely(insn->engine & INTERP_CHECKED))
			status = x86_check_row(cpu, insn);
		if (likely(status == X86_OK))
			status = insn->fn(cpu, insn);
		if (unlikely(status != X86_OK)) {
			if (status == X86_FAULT || status == X86_REPEAT)
				cpu->s.reg[X86_RIP] = start + done;
			else
				insn++;
			break;
		}
		done += insn->len;
		if ((insn->engine & INTERP_STORES) && unlikely(!interp_block_intact(block, host, done))) {
			insn++;
			break;
		}
	} while (++insn < end);
	cpu->instructions += (uint64_t)(insn - block->insn);
	return status;
}

/* One turn of the loop: a block, or one instruction where that does not do. */
static enum x86_status run_some(struct engine_vcpu *v)
{
	const uint8_t *host = NULL;
	struct interp_block *block = find_block(v, &host);

	if (unlikely(!block))
		return x86_step(&v->cpu);
	enum x86_status status = run_block(v, block, host);
	if (unlikely(status == X86_FAULT)) {
		v->counters.exceptions++;
		status = x86_deliver_fault(&v->cpu);
	}
	return status;
}

static enum x86_status run_loop(struct engine_vcpu *v)
{
	struct x86_cpu *cpu = &v->cpu;
	bool step = needs_step(cpu);

	for (;;) {
		uint32_t attention = atomic_load_explicit(&v->attention, memory_order_relaxed);
		enum x86_status status = X86_OK;

		if (unlikely(attention & ATTEND_KICK))
			return X86_STOP;
		if (unlikely(attention && (attention != ATTEND_INTR || (cpu->s.rflags & X86_IF)))) {
			status = attend(v, attention);
			if (status == X86_TRIPLE)
				return status;
			step = needs_step(cpu);
		}
		status = unlikely(step) ? x86_step(cpu) : run_some(v);
		if (likely(!step && (status == X86_OK || status == X86_JUMP)))
			continue;
		if (status == X86_HLT || status == X86_TRIPLE || status == X86_STOP)
			return status;
		step = needs_step(cpu);
	}
}

/* A halted vCPU wakes for an NMI or an interrupt it can take. */
static bool still_halted(struct engine_vcpu *v)
{
	if (v->cpu.s.activity == X86_HALTED)
		attend(v, atomic_load(&v->attention));
	return v->cpu.s.activity != X86_RUNNING;
}

/* An event whose delivery another engine was interrupted in. */
static void resume_event(struct engine_vcpu *v)
{
	const struct x86_event event = v->cpu.s.event;

	if (likely(event.type == X86_EVENT_NONE) || v->cpu.s.activity > X86_HALTED)
		return;
	v->cpu.s.activity = X86_RUNNING;
	x86_deliver(&v->cpu, &event); /* a triple fault shows in the activity */
}

static enum engine_exit interp_run(struct engine_vcpu *v, struct error *err)
{
	enum engine_exit exit = ENGINE_EXIT_KICKED;

	guest_enter(v);
	resume_event(v);
	/* HLT returns to the machine only if nothing woke the vCPU at once. */
	for (;;) {
		if (atomic_load(&v->attention) & ATTEND_KICK)
			break;
		if (still_halted(v)) {
			exit = v->cpu.s.activity == X86_SHUTDOWN ? ENGINE_EXIT_SHUTDOWN :
								   ENGINE_EXIT_HALTED;
			break;
		}
		enum x86_status status = run_loop(v);
		if (status == X86_STOP)
			break;
	}
	atomic_fetch_and(&v->attention, ~(uint32_t)ATTEND_KICK);
	guest_leave(v);
	v->counters.exits++;
	return exit;
}

/* ---- the engine's slots ---- */

static void interp_probe(struct engine_probe *ret_probe)
{
	*ret_probe = (struct engine_probe){ .usable = true };
}

static void interp_vm_free(struct engine_vm *vm)
{
	if (!vm)
		return;
	pthread_mutex_destroy(&vm->lock);
	pthread_cond_destroy(&vm->parked);
	pthread_cond_destroy(&vm->released);
	free(vm);
}

static int interp_vm_create(struct engine_vm **ret_vm, const struct engine_vm_config *config,
	struct error *err)
{
	if (config->cpus_max > CPUS_MAX)
		return error_set(err, EINVAL, "the interpreter runs at most %d vCPUs, not %u", CPUS_MAX,
			config->cpus_max);
	struct engine_vm *vm = calloc(1, sizeof(*vm));
	if (!vm)
		return error_set(err, ENOMEM, "no memory for the virtual machine");
	vm->config = *config;
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->parked, NULL);
	pthread_cond_init(&vm->released, NULL);
	*ret_vm = vm;
	return 0;
}

static void interp_vcpu_free(struct engine_vcpu *v)
{
	if (!v)
		return;
	interp_cache_free(v->cache);
	x86_cpu_done(&v->cpu);
	free(v);
}

static int interp_vcpu_create(struct engine_vcpu **ret_vcpu, struct engine_vm *vm,
	const struct engine_vcpu_config *config, struct error *err)
{
	struct engine_vcpu *v = calloc(1, sizeof(*v));

	if (!v)
		return error_set(err, ENOMEM, "no memory for vCPU %u", config->index);
	v->vm = vm;
	v->config = *config;
	if (x86_cpu_init(&v->cpu, vm->config.memory, vm->config.cpuid, &interp_env, v) < 0 ||
		interp_cache_create(&v->cache, ARENA_BYTES) < 0) {
		interp_vcpu_free(v);
		return error_set(err, ENOMEM, "no memory for vCPU %u", config->index);
	}
	v->cpu.apic_id = config->apic_id;
	AUTO_LOCK(&vm->lock);
	vm->vcpu[vm->vcpu_count++] = v;
	*ret_vcpu = v;
	return 0;
}

static void interp_kick(struct engine_vcpu *v)
{
	atomic_fetch_or(&v->attention, ATTEND_KICK);
}

static void interp_interrupt(struct engine_vcpu *v)
{
	atomic_fetch_or(&v->attention, ATTEND_INTR);
}

static void interp_nmi(struct engine_vcpu *v)
{
	atomic_fetch_or(&v->attention, ATTEND_NMI);
}

static int interp_get_state(struct engine_vcpu *v, struct x86_state *ret_state)
{
	*ret_state = v->cpu.s;
	ret_state->tsc = v->vm->config.hooks->tsc(v->config.opaque);
	ret_state->cr8 = v->vm->config.hooks->cr8_read(v->config.opaque);
	ret_state->nmi_pending = atomic_load(&v->attention) & ATTEND_NMI;
	return 0;
}

static int interp_set_state(struct engine_vcpu *v, const struct x86_state *state)
{
	x86_cpu_load(&v->cpu, state);
	v->cpu.s.reg[X86_ZERO] = 0;
	if (state->nmi_pending)
		interp_nmi(v);
	else
		atomic_fetch_and(&v->attention, ~(uint32_t)ATTEND_NMI);
	interp_interrupt(v); /* ask the interrupt controllers again */
	return 0;
}

static void interp_counters(struct engine_vcpu *v, struct engine_counters *ret_counters)
{
	*ret_counters = v->counters;
	ret_counters->instructions = v->cpu.instructions;
	interp_cache_counters(v->cache, &ret_counters->blocks_decoded, &ret_counters->block_flushes);
}

/* The log is kept by the TLB's write entries, which are made one by one and mark the page. */
static int interp_drop_writes(struct engine_vm *vm)
{
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		x86_tlb_flush_writes(&vm->vcpu[i]->cpu);
	return 0;
}

static int interp_dirty_stop(struct engine_vm *vm)
{
	return 0;
}

static int interp_irq_line(struct engine_vm *vm, unsigned gsi, bool level)
{
	return -ENOTSUP;
}

static int interp_msi(struct engine_vm *vm, uint64_t address, uint32_t data)
{
	return -ENOTSUP;
}

/* Time is the machine's. */
static int interp_hold(struct engine_vm *vm)
{
	return 0;
}

static int interp_irqfd(struct engine_vm *vm, unsigned gsi, int eventfd, bool on)
{
	return -ENOTSUP;
}

static int interp_ioeventfd(struct engine_vm *vm, const struct bus_doorbell *bell, bool on)
{
	return on ? bus_add_doorbell(vm->config.bus, bell) : bus_remove_doorbell(vm->config.bus, bell);
}

const struct engine_ops engine_interp_ops = {
	.name = "interp",
	.probe = interp_probe,
	.vm_create = interp_vm_create,
	.vm_free = interp_vm_free,
	.vcpu_create = interp_vcpu_create,
	.vcpu_free = interp_vcpu_free,
	.run = interp_run,
	.kick = interp_kick,
	.interrupt = interp_interrupt,
	.nmi = interp_nmi,
	.get_state = interp_get_state,
	.set_state = interp_set_state,
	.hold = interp_hold,
	.release = interp_hold,
	.counters = interp_counters,
	.dirty_start = interp_drop_writes,
	.dirty_sync = interp_drop_writes,
	.dirty_stop = interp_dirty_stop,
	.irq_line = interp_irq_line,
	.msi = interp_msi,
	.irqfd = interp_irqfd,
	.ioeventfd = interp_ioeventfd,
};
