/*
 * What engines that run guest code in software (interp, jit) have in common: everything but how they run a
 * block. Such an engine's structures begin with these,
 *
 *	struct engine_vm { struct soft_vm soft; ... };
 *	struct engine_vcpu { struct soft_vcpu soft; ... };
 *
 * because the slots below, which go into its engine_ops as they are (SOFT_ENGINE_SLOTS), take one for the
 * other, and soft_of() takes the x86_cpu for its soft_vcpu. Who only steps single instructions (KVM's fallback,
 * tests) takes the structures and soft_env as well, with none of the slots.
 *
 * Threads: a thread per vCPU, no shared translation state. What is in soft_vcpu belongs to that thread but
 * for `attention`, the one word through which any thread talks to a vCPU and which the engine reads often
 * (before every block, or on every way back), and for what says that it is under vm->lock.
 *
 * Exclusive sections: who needs all vCPUs out of guest code (a locked access across pages, code that others
 * run is gone) sets SOFT_HOLD on each and waits until none is in_guest. A held vCPU parks where it notices,
 * or inside its own soft_exclusive_begin(), thus also in the midst of an instruction. One that is in a device
 * (ports, device memory) is outside guest code too, and no section is held there: so whoever holds a device's lock
 * may write RAM, or begin a section, while vCPUs wait for that lock. The locks of the machine's hooks (interrupt
 * controllers, clocks) are not such locks.
 *
 * Invariants:
 * - vm->exclusive_depth != 0 <=> all vCPUs of the VM but the section's owner have SOFT_HOLD.
 * - vm->lock is a leaf: nothing is called and no other lock is taken under it.
 * - Outside the loop of soft_run() RIP is the address of the next instruction and nothing is pending in
 *   cpu->fault.
 */
#ifndef LODGE_ENGINE_SOFT_SOFT_H
#define LODGE_ENGINE_SOFT_SOFT_H

#include "base/util.h"
#include "engine/engine.h"
#include "isa/x86/access.h"
#include "isa/x86/cpu.h"
#include <pthread.h>
#include <stdatomic.h>

#define SOFT_CPUS_MAX 64

enum soft_attention {
	SOFT_KICK = 1, /* leave run */
	SOFT_INTR = 2, /* interrupt_ack may have a vector */
	SOFT_NMI = 4,
	SOFT_HOLD = 8, /* park: another runs exclusively */
	SOFT_ENGINE =
		16, /* this bit and those above are the engine's own: nothing here touches them */
};

struct soft_vcpu;

struct soft_vm {
	struct engine_vm_config config;
	pthread_mutex_t lock; /* for all that follows */
	pthread_cond_t parked, released;
	struct soft_vcpu *exclusive_by; /* NULL: nobody, or a thread that is no vCPU */
	unsigned exclusive_depth;
	unsigned vcpu_count;
	struct soft_vcpu *vcpu[SOFT_CPUS_MAX]; /* in no order */
};

struct soft_vcpu {
	struct x86_cpu cpu; /* first: translated code addresses the vCPU by it */
	struct soft_vm *vm;
	struct engine_vcpu_config config;
	_Atomic uint32_t attention; /* enum soft_attention */
	uint64_t stop_at; /* leave run when cpu.instructions is there; UINT64_MAX: never */
	bool in_guest;		    /* executes guest code or may; under vm->lock */
	bool entered;		    /* is in soft_run(); under vm->lock, as: */
	pthread_t thread;	    /* on which */
	struct engine_counters counters;
};

/* ---- life ---- */

/* `what` names the engine in the message. config is copied; what it points at outlives the VM.
 * Errors: -EINVAL for too many vCPUs. */
int soft_vm_init(struct soft_vm *vm, const struct engine_vm_config *config, const char *what,
	struct error *err);
/* All vCPUs are gone. */
void soft_vm_done(struct soft_vm *vm);

/* A vCPU in its RESET state, known to the VM from here on. env is soft_env or a copy with additions, and
 * outlives the vCPU. v is zeroed memory. Errors: -ENOMEM; then there is nothing to undo. */
int soft_vcpu_init(struct soft_vcpu *v, struct soft_vm *vm, const struct engine_vcpu_config *config,
	const struct x86_env_ops *env, struct error *err);
/* Outside run. */
void soft_vcpu_done(struct soft_vcpu *v);

/* The world as a processor of soft_vcpu sees it: the VM's bus and the machine's hooks. */
extern const struct x86_env_ops soft_env;

static inline struct soft_vcpu *soft_of(struct x86_cpu *cpu)
{
	return container_of(cpu, struct soft_vcpu, cpu);
}

/* ---- for an engine's loop, on the vCPU's thread ---- */

/*
 * Executes guest code until something is for soft_run(): X86_STOP when it sees SOFT_KICK or is at a block's end
 * with cpu.instructions >= stop_at (and has attended to nothing since it got there), X86_HLT, X86_TRIPLE.
 * Other attention it hands to soft_attend(). It is entered with the vCPU running.
 */
typedef enum x86_status soft_loop(struct soft_vcpu *v);

/* engine_ops.run around the loop: enters guest code, resumes an event that another engine was interrupted
 * in, sleeps in no HLT, and leaves. */
enum engine_exit soft_run(struct soft_vcpu *v, soft_loop *loop);

/* Does `attention`, read before, ask for something that can be done now? */
static inline bool soft_must_attend(const struct soft_vcpu *v, uint32_t attention)
{
	return unlikely(attention && (attention != SOFT_INTR || (v->cpu.s.rflags & X86_IF)));
}

/* What `attention` asks for, but for a kick: park, deliver an NMI or an interrupt. At an instruction
 * boundary. X86_OK: nothing was delivered; X86_BOUNDARY: RIP, mode and more have changed; X86_TRIPLE. */
enum x86_status soft_attend(struct soft_vcpu *v, uint32_t attention);

/* Must the next instruction go through x86_step? */
static inline bool soft_needs_step(const struct x86_cpu *cpu)
{
	return cpu->slow_path || cpu->s.interrupt_shadow || cpu->s.mov_ss_shadow ||
	       (cpu->s.rflags & (X86_TF | X86_RF));
}

static inline gva_t soft_linear_rip(const struct x86_cpu *cpu)
{
	uint64_t rip = cpu->s.reg[X86_RIP];

	return cpu->mode == 64 ? rip : (uint32_t)(cpu->s.seg[X86_CS].base + rip);
}

/* Host and guest-physical address of the code at `linear`, through the TLB, which then holds the page; NULL: not
 * RAM, or a fault that x86_step will find and raise. */
static inline const uint8_t *soft_code_host(struct x86_cpu *cpu, gva_t linear, gpa_t *ret_gpa)
{
	const uint8_t *host = x86_tlb_host(cpu, linear, 1, X86_EXEC);

	if (unlikely(!host)) {
		if (!x86_canonical(cpu, linear) ||
			x86_translate(cpu, linear, X86_EXEC, cpu->cpl == 3, ret_gpa) != X86_OK)
			return NULL;
		host = x86_tlb_host(cpu, linear, 1, X86_EXEC);
	}
	*ret_gpa = cpu->tlb_now->entry[X86_EXEC][x86_tlb_index(linear)].gpa + (linear & ~GUEST_PAGE_MASK);
	return host;
}

/* ---- exclusive sections ---- */

/*
 * Hold all other vCPUs outside guest code until soft_exclusive_end(); waits for other sections to end first,
 * in which a vCPU lets itself be held, so call it where nothing is half done. `self` is the vCPU whose thread
 * this is, which may nest sections, or NULL for any other thread, which may not.
 *
 * Locks that are taken in a device's bus handlers may be held; no others for which a vCPU may wait.
 */
void soft_exclusive_begin(struct soft_vm *vm, struct soft_vcpu *self);
void soft_exclusive_end(struct soft_vm *vm, struct soft_vcpu *self);
/* The vCPU that the calling thread is running, or NULL: `self` for who cannot know (a device that a vCPU called). */
struct soft_vcpu *soft_running_here(struct soft_vm *vm);

/* ---- slots of engine_ops ---- */

void soft_kick(struct engine_vcpu *vcpu);
void soft_interrupt(struct engine_vcpu *vcpu);
void soft_nmi(struct engine_vcpu *vcpu);
int soft_set_budget(struct engine_vcpu *vcpu, uint64_t instructions);
int soft_get_state(struct engine_vcpu *vcpu, struct x86_state *ret_state);
int soft_set_state(struct engine_vcpu *vcpu, const struct x86_state *state);
int soft_hold(struct engine_vm *vm);
int soft_drop_writes(struct engine_vm *vm);
int soft_dirty_stop(struct engine_vm *vm);
int soft_irq_line(struct engine_vm *vm, unsigned gsi, bool level);
int soft_msi(struct engine_vm *vm, uint64_t address, uint32_t data);
int soft_irqfd(struct engine_vm *vm, unsigned gsi, int eventfd, bool on);
int soft_ioeventfd(struct engine_vm *vm, const struct bus_doorbell *bell, bool on);

/* All but name, probe, life, run, counters and set_budget. An engine that needs more in one of them has its
 * own, which calls this one. */
#define SOFT_ENGINE_SLOTS                                                                      \
	.kick = soft_kick, .interrupt = soft_interrupt, .nmi = soft_nmi,                       \
	.get_state = soft_get_state, .set_state = soft_set_state, .hold = soft_hold,           \
	.release = soft_hold, .dirty_start = soft_drop_writes, .dirty_sync = soft_drop_writes, \
	.dirty_stop = soft_dirty_stop, .irq_line = soft_irq_line, .msi = soft_msi,             \
	.irqfd = soft_irqfd, .ioeventfd = soft_ioeventfd

/* engine_ops.counters but for the counters of blocks. Any thread. */
void soft_counters(const struct soft_vcpu *v, struct engine_counters *ret_counters);

#endif
