/*
 * One processor: set-up, and what is derived from its state.
 *
 * x86_cpu_refresh() is on the path of every system call: it computes a few bytes and a pointer.
 */
#include "isa/x86/cpu.h"
#include "isa/x86/cpuid.h"
#include "isa/x86/fpu.h"
#include "isa/x86/native.h"

#include <string.h>

int x86_cpu_init(struct x86_cpu *cpu, struct guest_memory *memory,
	const struct x86_cpuid_model *cpuid, const struct x86_env_ops *env, void *env_opaque)
{
	uint32_t signature[4];

	memset(cpu, 0, sizeof(*cpu));
	cpu->memory = memory;
	cpu->cpuid = cpuid;
	cpu->env = env;
	cpu->env_opaque = env_opaque;
	cpu->features = cpuid->features;
	cpu->phys_bits = cpuid->phys_bits;
	x86_state_reset(&cpu->s);
	int rc = x86_tlb_init(cpu);
	if (rc < 0)
		return rc;
	rc = x86_native_create(&cpu->native);
	if (rc < 0) {
		x86_tlb_done(cpu);
		return rc;
	}
	x86_cpuid_query(cpuid, 0, 0, 0, 0, 1, 0, signature);
	cpu->s.reg[X86_RDX] = signature[0];
	x86_cpu_refresh(cpu);
	return 0;
}

void x86_cpu_done(struct x86_cpu *cpu)
{
	x86_native_free(cpu->native);
	cpu->native = NULL;
	x86_tlb_done(cpu);
}

/* Segments through which any offset below 4 GiB may be read and written unchecked. */
static uint8_t flat_segments(const struct x86_cpu *cpu)
{
	const uint16_t want = X86_SEG_P | X86_SEG_S | X86_SEG_WRITE;
	const uint16_t mask = want | X86_SEG_CODE | X86_SEG_EXPAND;
	uint8_t flat = 0;

	for (unsigned i = 0; i < 6; i++) {
		const struct x86_segment *seg = &cpu->s.seg[i];
		if (!seg->base && seg->limit == 0xffffffff && (seg->attr & mask) == want)
			flat |= (uint8_t)(1u << i);
	}
	return flat;
}

void x86_cpu_refresh(struct x86_cpu *cpu)
{
	const struct x86_state *s = &cpu->s;
	const bool v86 = s->rflags & X86_VM;
	const bool protected = s->cr0 & X86_CR0_PE;

	cpu->long_mode = s->msr.efer & X86_EFER_LMA;
	cpu->real = !protected || v86;
	if (!protected)
		cpu->cpl = 0;
	else
		cpu->cpl = v86 ? 3 : (s->seg[X86_SS].attr & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT;
	if (cpu->long_mode && (s->seg[X86_CS].attr & X86_SEG_L)) {
		cpu->mode = 64;
		cpu->stack_bytes = 8;
		cpu->flat = 0; /* not looked at */
	} else {
		cpu->mode = (s->seg[X86_CS].attr & X86_SEG_DB) && !v86 ? 32 : 16;
		cpu->stack_bytes = (s->seg[X86_SS].attr & X86_SEG_DB) && !v86 ? 4 : 2;
		cpu->flat = flat_segments(cpu);
	}
	cpu->slow_path = (s->rflags & X86_TF) || x86_debug_armed(cpu);
	cpu->watched = x86_debug_armed(cpu) && x86_debug_watches(cpu);
	cpu->tlb_bypass = cpu->watched ||
			  (cpu->cpl == 3 && (s->rflags & X86_AC) && (s->cr0 & X86_CR0_AM));
	x86_tlb_select(cpu);
}

#define XCR0_BITS (X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX)
#define DR6_FIXED 0xffff0ff0ull
#define DR7_FIXED 0x400ull

/*
 * Drop what no processor can hold, and what would break this one: a state may come from a stream that
 * somebody made up. What remains may be nonsense to a guest, but not to the semantic functions.
 */
static void drop_impossible(struct x86_state *s)
{
	const uint64_t flags = X86_FLAGS_WRITABLE | X86_RF | X86_VM | X86_VIF | X86_VIP;

	s->reg[X86_ZERO] = 0;
	s->cr0 = (uint32_t)s->cr0 | X86_CR0_ET;
	if (!(s->cr0 & X86_CR0_PE))
		s->cr0 &= ~(uint64_t)X86_CR0_PG;
	s->rflags = (s->rflags & flags) | X86_FLAGS_FIXED;
	if (!(s->cr0 & X86_CR0_PE) || (s->msr.efer & X86_EFER_LMA))
		s->rflags &= ~(uint64_t)X86_VM;
	s->cr8 &= 15;
	s->xcr0 = (s->xcr0 & XCR0_BITS) | X86_XCR0_X87;
	s->dr[6] = (uint32_t)s->dr[6] | DR6_FIXED;
	s->dr[7] = (uint32_t)s->dr[7] | DR7_FIXED;
	/* The host runs with these two: a reserved bit would be its fault. */
	s->fpu.fcw = x86_fcw_fix(s->fpu.fcw);
	s->fpu.mxcsr &= X86_MXCSR_VALID;
	if (s->activity > X86_SHUTDOWN)
		s->activity = X86_SHUTDOWN;
	if (s->event.type > X86_EVENT_ICEBP)
		s->event.type = X86_EVENT_NONE;
}

void x86_cpu_load(struct x86_cpu *cpu, const struct x86_state *state)
{
	cpu->s = *state;
	drop_impossible(&cpu->s);
	x86_cpu_refresh(cpu);
	x86_tlb_flush(cpu);
}

enum x86_status x86_fault(struct x86_cpu *cpu, unsigned vector)
{
	cpu->fault.vector = (uint8_t)vector;
	cpu->fault.has_error = false;
	cpu->fault.error = 0;
	cpu->fault.dr6 = 0;
	return X86_FAULT;
}

enum x86_status x86_fault_code(struct x86_cpu *cpu, unsigned vector, uint32_t error)
{
	x86_fault(cpu, vector);
	cpu->fault.has_error = true;
	cpu->fault.error = error;
	return X86_FAULT;
}
