/*
 * One processor being executed by semantic functions: the canonical state, what is derived from it,
 * and the environment it runs in. Owned by one vCPU thread; nothing here is shared.
 *
 * The room is pure: everything outside the processor and its RAM is reached through env_ops.
 */
#ifndef LODGE_ISA_X86_CPU_H
#define LODGE_ISA_X86_CPU_H

#include "isa/x86/insn.h"
#include "isa/x86/state.h"
#include "isa/x86/tlb.h"
#include "memory/memory.h"

struct x86_cpu;

/* What the processor needs of the world. Called on the vCPU's thread. */
struct x86_env_ops {
	/* Physical accesses that are not RAM; size_bytes 1, 2, 4 or 8. */
	uint64_t (*mmio_read)(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes);
	void (*mmio_write)(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes, uint64_t value);
	uint32_t (*pio_read)(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes);
	void (*pio_write)(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes, uint32_t value);
	/* MSRs that the processor core does not keep itself (APIC base, x2APIC, TSC deadline, kvm-clock,
	 * ...). Return false: no such MSR, or a value it does not take -> #GP(0). */
	bool (*msr_read)(struct x86_cpu *cpu, uint32_t index, uint64_t *ret_value);
	bool (*msr_write)(struct x86_cpu *cpu, uint32_t index, uint64_t value);
	uint64_t (*tsc)(struct x86_cpu *cpu);		/* the guest's TSC now, TSC_ADJUST included */
	void (*adjust_tsc)(struct x86_cpu *cpu, uint64_t delta); /* delta was added to TSC_ADJUST */
	uint8_t (*cr8_read)(struct x86_cpu *cpu);
	void (*cr8_write)(struct x86_cpu *cpu, uint8_t value);
	/* VMCALL/VMMCALL: registers as the KVM ABI has them; result goes to RAX. */
	void (*hypercall)(struct x86_cpu *cpu);
	/* Hold all other vCPUs outside guest code, for a locked access that crosses a page. */
	void (*exclusive_begin)(struct x86_cpu *cpu);
	void (*exclusive_end)(struct x86_cpu *cpu);
	/* PAUSE executed: another vCPU may want this host CPU. May be NULL. */
	void (*pause)(struct x86_cpu *cpu);
	/* This vCPU wrote [gpa, +size_bytes), within a page, where memory_code_bits() said that translated code
	 * is. May come in the middle of an instruction. May be NULL. */
	void (*code_written)(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes);
};

/* The CPUID model: what CPUID returns, and the features decoded from it (isa/x86/cpuid.h). */
struct x86_cpuid_model;

struct x86_native; /* executor of host instructions, isa/x86/native.h */

struct x86_cpu {
	struct x86_state s;

	/* Derived; x86_cpu_refresh() computes them after any change of CR0, CR4, EFER, CS, SS, RFLAGS.VM */
	uint8_t mode;	     /* 16, 32 or 64: default code size */
	uint8_t cpl;
	bool real;	     /* CR0.PE = 0 or virtual-8086 */
	bool long_mode;	     /* EFER.LMA */
	uint8_t stack_bytes; /* width of the stack pointer: 2, 4, 8 */
	uint8_t flat;	     /* bit x86_seg_index: base 0, limit 4G, readable and writable: no checks */
	bool tlb_global_low; /* some global page of the lower half was ever in the TLB */
	bool tlb_bypass;     /* alignment checks (#AC) or data breakpoints: every access takes the slow path */
	/* The tables for this CPL and context, to look up only; tlb_nothing while bypassed. Never NULL. */
	struct x86_tlb *tlb_now;

	struct {
		uint8_t vector;
		bool has_error;
		uint32_t error;
		gva_t address; /* #PF: goes to CR2 */
		uint64_t dr6;  /* #DB: bits to set in DR6 */
	} fault;

	/* isa/x86/tlb.h */
	struct x86_tlb_context context[X86_TLB_CONTEXTS];
	struct x86_tlb_context *context_now; /* never NULL */
	uint64_t context_clock;
	struct x86_tlb *tlb_nothing; /* holds no entry and no branch */
	const void *branch_miss;
	void *tlb_memory;

	/* Single-step and breakpoints need the one-at-a-time path (x86_step). */
	bool slow_path;
	bool watched;	   /* data breakpoints are armed: tlb_now holds nothing, see x86_watch() */
	uint8_t watch_hit; /* DR6 bits of data and I/O breakpoints that this instruction met */
	/* Completed, for counters and virtual time: retired, or ended by a fault that was delivered. So two
	 * engines that have the same count are at the same place; a string instruction that has not come to
	 * its end is the exception. */
	uint64_t instructions;
	uint64_t tlb_fills; /* for counters */
	uint64_t random; /* what RDRAND and RDSEED give comes from here; 0: from the host */

	struct guest_memory *memory;
	const struct x86_env_ops *env;
	void *env_opaque;
	const struct x86_cpuid_model *cpuid;
	struct x86_feature_set features;
	unsigned phys_bits;
	struct x86_native *native;
	uint32_t apic_id;
};

/* Set up a processor in its RESET state. cpuid and memory must outlive it. Errors: -ENOMEM. */
int x86_cpu_init(struct x86_cpu *cpu, struct guest_memory *memory, const struct x86_cpuid_model *cpuid,
	const struct x86_env_ops *env, void *env_opaque);
void x86_cpu_done(struct x86_cpu *cpu);

/* Recompute what is derived from the state: also after a change of RFLAGS.TF or AC, or of DR7. Cheap;
 * flushes nothing. */
void x86_cpu_refresh(struct x86_cpu *cpu);
/* Take on a whole state, of which any byte may be wrong: what no processor can hold is dropped. Flushes the
 * TLB. */
void x86_cpu_load(struct x86_cpu *cpu, const struct x86_state *state);

/* Raise an exception: records it and returns X86_FAULT. */
enum x86_status x86_fault(struct x86_cpu *cpu, unsigned vector);
enum x86_status x86_fault_code(struct x86_cpu *cpu, unsigned vector, uint32_t error);
#define x86_ud(cpu)	 x86_fault(cpu, X86_UD)
#define x86_gp(cpu, err) x86_fault_code(cpu, X86_GP, err)

/* ---- events (isa/x86/event.c) ---- */

/* Deliver an event through the IVT or IDT in the present mode; contributory faults become #DF, and a
 * fault in that X86_TRIPLE. Return address is RIP (faults: of the instruction; software: of the next).
 * Returns X86_BOUNDARY, X86_TRIPLE. */
enum x86_status x86_deliver(struct x86_cpu *cpu, const struct x86_event *event);
/* Deliver cpu->fault (sets CR2 / DR6 first). */
enum x86_status x86_deliver_fault(struct x86_cpu *cpu);
/* May an external interrupt (or NMI) be delivered at this instruction boundary? */
static inline bool x86_interruptible(const struct x86_cpu *cpu)
{
	return (cpu->s.rflags & X86_IF) && !cpu->s.interrupt_shadow && !cpu->s.mov_ss_shadow;
}

/*
 * Execute exactly one instruction at CS:RIP (isa/x86/step.c): fetch, decode, execute, deliver what it
 * raised, single-step and breakpoint traps included. The slow, complete path; engines use it for
 * everything unusual. A REP string runs one bounded piece. Never returns X86_FAULT.
 */
enum x86_status x86_step(struct x86_cpu *cpu);
/* Fetch and decode the instruction at CS:RIP; a fetch fault, #UD, #GP come back as X86_FAULT. */
enum x86_status x86_fetch(struct x86_cpu *cpu, struct x86_insn *insn);
/* Mode and availability checks of a row's attributes (X87, MMX, SSE, AVX, CPL0, ...) against the present
 * state, before its semantic function runs. */
enum x86_status x86_check_row(struct x86_cpu *cpu, const struct x86_insn *insn);
/* Do control registers forbid instructions with these attributes, X86_A_MMX, SSE or AVX, by #UD? */
static inline bool x86_vectors_off(const struct x86_cpu *cpu, uint32_t attr)
{
	const struct x86_state *s = &cpu->s;
	const uint64_t avx = X86_XCR0_SSE | X86_XCR0_AVX;

	if ((attr & (X86_A_MMX | X86_A_SSE)) && (s->cr0 & X86_CR0_EM))
		return true;
	if ((attr & X86_A_SSE) && !(s->cr4 & X86_CR4_OSFXSR))
		return true;
	return (attr & X86_A_AVX) && (!(s->cr4 & X86_CR4_OSXSAVE) || (s->xcr0 & avx) != avx);
}

/* ---- debug registers (isa/x86/ctl_debug.c) ---- */

/* The slow path of memory accesses calls this while cpu->watched: notes the data breakpoints met. */
void x86_watch(struct x86_cpu *cpu, gva_t linear, unsigned size, enum x86_access access);
/* The same for I/O breakpoints (CR4.DE). */
void x86_watch_io(struct x86_cpu *cpu, uint16_t port, unsigned size);
/* DR6 bits of the instruction breakpoints at this linear address; 0 = none. */
uint64_t x86_watch_fetch(const struct x86_cpu *cpu, gva_t linear);
/* Does DR7 arm any breakpoint; any on data? */
static inline bool x86_debug_armed(const struct x86_cpu *cpu)
{
	return cpu->s.dr[7] & 0xff;
}
bool x86_debug_watches(const struct x86_cpu *cpu);

/* ---- memory management (isa/x86/mmu.c; the TLB is in isa/x86/tlb.h) ---- */

static inline bool x86_canonical(const struct x86_cpu *cpu, uint64_t address)
{
	unsigned shift = cpu->s.cr4 & X86_CR4_LA57 ? 64 - 57 : 64 - 48;
	return (uint64_t)((int64_t)(address << shift) >> shift) == address;
}

/*
 * Translate a linear address for one access within a page, setting accessed and dirty bits. user =
 * with user privilege. On success fills the TLB if the page is RAM; *ret_gpa includes the offset in the
 * page. X86_FAULT: #PF recorded (or #GP(0) for an address that is not canonical).
 */
enum x86_status x86_translate(struct x86_cpu *cpu, gva_t linear, enum x86_access access, bool user,
	gpa_t *ret_gpa);
/* The same without faulting, without setting A/D and without filling the TLB: for debuggers.
 * Returns false if not mapped. */
bool x86_translate_debug(const struct x86_cpu *cpu, gva_t linear, gpa_t *ret_gpa);
/* Load the PDPTEs (PAE paging); false: a reserved bit is set -> #GP(0). */
bool x86_load_pdptes(struct x86_cpu *cpu, uint64_t cr3);

/* ---- segmentation (isa/x86/segment.c) ---- */

/* MOV/POP/LxS to a segment register other than CS: all checks of SDM 2 "MOV" (also real and V86). */
enum x86_status x86_load_segment(struct x86_cpu *cpu, enum x86_seg_index seg, uint16_t selector);
/* The slow half of forming a linear address: limit, type and canonical checks. */
enum x86_status x86_segment_check(struct x86_cpu *cpu, enum x86_seg_index seg, uint64_t offset,
	unsigned size, enum x86_access access, gva_t *ret_linear);
/* Is [offset] a valid instruction pointer for CS now? (limit or canonical) */
bool x86_rip_valid(const struct x86_cpu *cpu, uint64_t offset);

/* ---- register and MSR writes with side effects (isa/x86/control.c) ---- */

enum x86_status x86_write_cr(struct x86_cpu *cpu, unsigned number, uint64_t value);
enum x86_status x86_write_msr(struct x86_cpu *cpu, uint32_t index, uint64_t value);
enum x86_status x86_read_msr(struct x86_cpu *cpu, uint32_t index, uint64_t *ret_value);
enum x86_status x86_write_xcr0(struct x86_cpu *cpu, uint64_t value);
/* May CPL access this I/O port range (IOPL, TSS bitmap)? */
enum x86_status x86_check_io(struct x86_cpu *cpu, uint16_t port, unsigned size);

#endif
