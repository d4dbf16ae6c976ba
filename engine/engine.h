/*
 * A way to run virtual processors: what kvm, jit and interp have in common. The machine drives an
 * engine through engine_ops and is driven by it through engine_hooks; neither knows more of the other.
 *
 * Every engine fills every slot, and all of them speak the canonical struct x86_state, so that a vCPU
 * can leave one engine and enter another.
 *
 * Threads: vcpu_create, run, get_state and set_state of one vCPU run on that vCPU's thread (get and set
 * also on another while the vCPU is outside run). kick, interrupt and nmi may be called on any thread.
 * Hooks are called on the vCPU's thread, from inside run.
 */
#ifndef LODGE_ENGINE_ENGINE_H
#define LODGE_ENGINE_ENGINE_H

#include "base/types.h"
#include "isa/x86/cpuid.h"
#include "isa/x86/state.h"

struct bus;
struct bus_doorbell;
struct error;
struct guest_memory;
struct engine_vm;   /* each engine's own */
struct engine_vcpu; /* each engine's own */

/*
 * The guest's TSC as a line through the host's: while the host's is in [host, host + span) the guest's is
 * guest + ((host's - host) * scale >> 32), TSC_ADJUST included. The product fits 64 bits.
 */
struct engine_tsc_line {
	uint64_t host, span, scale, guest;
};

/* What an engine asks of the machine. `vcpu` is engine_vcpu_config.opaque. */
struct engine_hooks {
	/* Accesses that are not RAM go to engine_vm_config.bus directly. */

	/* The next external interrupt's vector, taken (moved to in-service); -1: none deliverable now.
	 * Not called by engines with their own irqchip. */
	int (*interrupt_ack)(void *vcpu);
	/* MSRs of the machine (APIC, kvm-clock ...): false = #GP(0). */
	bool (*msr_read)(void *vcpu, uint32_t index, uint64_t *ret_value);
	bool (*msr_write)(void *vcpu, uint32_t index, uint64_t value);
	/* CR8 = bits 7:4 of the local APIC's TPR. */
	uint8_t (*cr8_read)(void *vcpu);
	void (*cr8_write)(void *vcpu, uint8_t value);
	/* The guest's TSC, TSC_ADJUST included; the guest adds to both (by a write of either). */
	uint64_t (*tsc)(void *vcpu);
	void (*adjust_tsc)(void *vcpu, uint64_t delta);
	/* The line that the host's TSC is on now, for engines that read it themselves: good until run returns or
	 * adjust_tsc is called. Lines go on where the one before ended or later, and all vCPUs are on the same
	 * one. False: there is none, as time is not the host's or its TSC is not good for it. May be NULL. */
	bool (*tsc_line)(void *vcpu, struct engine_tsc_line *ret_line);
	/* KVM-ABI hypercall: number and four arguments; returns what goes to RAX. */
	uint64_t (*hypercall)(void *vcpu, uint64_t number, const uint64_t args[4]);
};

enum engine_caps {
	ENGINE_CAP_IRQCHIP = 1u << 0,  /* PIC, I/O APIC and local APICs are the engine's (irq_line, msi) */
	ENGINE_CAP_HARDWARE = 1u << 1, /* guest code runs on virtualization hardware */
};

/* For runs that must be repeatable or comparable; all zero: none of it. Not for KVM. */
struct engine_tuning {
	bool count;	      /* set_budget() will be called: engines to which counting is a cost do it */
	uint64_t random_seed; /* RDRAND and RDSEED are a sequence that begins with it; 0: the host's */
	unsigned block_instructions; /* at most, in one block; 0: as many as the engine likes */
	const char *jit; /* switches of the translator (engine/jit/options.h); NULL: its defaults */
	bool precise; /* whenever run returns the state is exact, with the flags that nobody will read */
};

struct engine_vm_config {
	struct guest_memory *memory; /* complete before the first run; outlives the VM */
	struct bus *bus;
	const struct engine_hooks *hooks;
	const struct x86_cpuid_model *cpuid; /* the model guests see; engines may only remove from it */
	unsigned cpus_max;
	struct engine_tuning tuning;
};

struct engine_vcpu_config {
	unsigned index;
	uint32_t apic_id;
	void *opaque; /* passed to the hooks */
};

enum engine_exit {
	ENGINE_EXIT_KICKED,   /* kick() was called */
	ENGINE_EXIT_BUDGET,   /* what set_budget() allowed is used up */
	ENGINE_EXIT_HALTED,   /* HLT with nothing to deliver: run again after interrupt(), nmi() */
	ENGINE_EXIT_SHUTDOWN, /* triple fault */
	ENGINE_EXIT_RESET,    /* the guest or the engine asks for a machine reset */
	ENGINE_EXIT_ERROR,    /* the engine cannot go on: the text says why */
};

struct engine_probe {
	bool usable;
	bool hardware;		/* as ENGINE_CAP_HARDWARE */
	bool ring0_emulated;	/* KVM whose guest ring 0 is emulated in software */
	double ring0_ns;	/* time of one simple ring-0 instruction, 0 if not measured */
	char reason[256];	/* why not usable, and the remedy */
};

/* Counters of one vCPU, monotonic, read racily. `instructions` is exact whenever run has returned: those
 * completed, by retiring or by a fault that was delivered. */
struct engine_counters {
	uint64_t instructions; /* jit: only where it counts them (docs/jit.md) */
	uint64_t blocks_decoded, block_flushes, exits, interrupts, exceptions, mmio, pio;
	uint64_t emulated; /* instructions KVM could not run and the interpreter did */
	uint64_t tlb_fills; /* page-table walks of a software engine that filled its TLB */
	/* The translator's: instructions translated; jumps patched to their target; branch targets entered
	 * into their cache, and looked up in vain; entries into translated code; instructions run one at a
	 * time outside of it; slow paths of memory accesses; calls of semantic functions; returns to see to
	 * an interrupt or a kick; blocks dropped because their code changed; parts of the cache evicted;
	 * branches to what is no address. */
	uint64_t translated, links, branch_fills, branch_misses, enters, steps, slow_paths, helper_calls,
		polls, invalidations, evictions, bad_branches;
};

/* The name of each counter and its place in the structure; ends with a NULL name. */
struct engine_counter_name {
	const char *name;
	size_t offset;
};
extern const struct engine_counter_name engine_counter_names[];

static inline uint64_t engine_counter(const struct engine_counters *counters, size_t offset)
{
	return *(const uint64_t *)((const uint8_t *)counters + offset);
}

struct engine_ops {
	const char *name;
	uint32_t caps; /* enum engine_caps */

	/* What this host offers; never fails, says so in ret_probe. */
	void (*probe)(struct engine_probe *ret_probe);
	/* Remove from a model of isa/x86/cpuid.h what vm_create would. NULL: nothing. vm_create refuses a model
	 * that loses a flag its user asked for. */
	int (*cpuid_limit)(struct x86_cpuid_model *model, struct error *err);

	int (*vm_create)(struct engine_vm **ret_vm, const struct engine_vm_config *config,
		struct error *err);
	void (*vm_free)(struct engine_vm *vm);
	int (*vcpu_create)(struct engine_vcpu **ret_vcpu, struct engine_vm *vm,
		const struct engine_vcpu_config *config, struct error *err);
	void (*vcpu_free)(struct engine_vcpu *vcpu);

	/* Run guest code until something needs the machine. */
	enum engine_exit (*run)(struct engine_vcpu *vcpu, struct error *err);
	void (*kick)(struct engine_vcpu *vcpu);	     /* run returns ENGINE_EXIT_KICKED soon */
	void (*interrupt)(struct engine_vcpu *vcpu); /* interrupt_ack may have a vector now */
	void (*nmi)(struct engine_vcpu *vcpu);

	/* The next runs return ENGINE_EXIT_BUDGET at the first block's end at which `instructions` have been
	 * completed since now, without delivering anything after them; UINT64_MAX: never. interp, and any
	 * engine whose blocks have one instruction, stops exactly there. A run that starts with an
	 * interrupt announced asks for it before it executes anything. On the vCPU's thread, outside
	 * run. Errors: -ENOTSUP, the engine does not count. */
	int (*set_budget)(struct engine_vcpu *vcpu, uint64_t instructions);

	/* The TSC is as RDTSC has it. Without ENGINE_CAP_IRQCHIP the local APIC and the TSC are the machine's:
	 * get_state copies the TSC, set_state leaves both alone. With it, lapic.apic_base 0 leaves the APIC. */
	int (*get_state)(struct engine_vcpu *vcpu, struct x86_state *ret_state);
	int (*set_state)(struct engine_vcpu *vcpu, const struct x86_state *state);
	void (*counters)(struct engine_vcpu *vcpu, struct engine_counters *ret_counters);

	/* The machine is paused (all vCPUs outside run): guest time that is the engine's stands still, until it is
	 * released. get_state gives the held time; the time of a set_state in between is not kept. */
	int (*hold)(struct engine_vm *vm);
	int (*release)(struct engine_vm *vm);

	/* Dirty log: after memory_dirty_start and after every fetch, with all vCPUs outside run. sync
	 * moves what the engine knows into memory's log. */
	int (*dirty_start)(struct engine_vm *vm);
	int (*dirty_sync)(struct engine_vm *vm);
	int (*dirty_stop)(struct engine_vm *vm);

	/* With ENGINE_CAP_IRQCHIP only; others return -ENOTSUP. */
	int (*irq_line)(struct engine_vm *vm, unsigned gsi, bool level);
	int (*msi)(struct engine_vm *vm, uint64_t address, uint32_t data);
	/* Every signal of the eventfd is an edge on the line, until it is turned off. For every engine:
	 * machine_irqfd(). */
	int (*irqfd)(struct engine_vm *vm, unsigned gsi, int eventfd, bool on);

	/* A doorbell (device/bus.h), rung without leaving the engine where it can. */
	int (*ioeventfd)(struct engine_vm *vm, const struct bus_doorbell *bell, bool on);
};

extern const struct engine_ops engine_interp_ops;
extern const struct engine_ops engine_jit_ops;
extern const struct engine_ops engine_kvm_ops;

/* All engines, best first; NULL-terminated. */
extern const struct engine_ops *const engine_list[];

/* Find by name; NULL if there is none. */
const struct engine_ops *engine_find(const char *name);

/*
 * Choose for "auto": KVM where it is present, permitted and runs ring 0 natively, else the fastest
 * software engine. ret_why (static text or probe's) says why, for `lodge doctor` and the log.
 */
const struct engine_ops *engine_choose(struct engine_probe *ret_kvm);

#endif
