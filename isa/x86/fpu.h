/*
 * The x87 and SIMD register file as semantic functions see it. Private to isa/x86.
 *
 * fpu.st[] is in stack order: st[i] is ST(i), physical register (TOP + i) & 7. MMX register n is
 * physical register n, so it is st[(n - TOP) & 7]. fpu.ftw is in physical order. Whatever changes
 * TOP and leaves the physical registers alone therefore rotates st[].
 */
#ifndef LODGE_ISA_X86_FPU_H
#define LODGE_ISA_X86_FPU_H

#include "isa/x86/cpu.h"
#include "isa/x86/xsave.h"
#include <string.h>

#define X86_MXCSR_FLAGS	     0x3fu
#define X86_MXCSR_MASKS	     0x1f80u
#define X86_MXCSR_UE	     0x10u
#define X86_MXCSR_PE	     0x20u
#define X86_MXCSR_UM	     0x800u
#define X86_MXCSR_FTZ	     0x8000u
#define X86_MXCSR_MASK_SHIFT 7
#define X86_MXCSR_RESET	     0x1f80u

#define X86_FCW_RESET 0x037fu
#define X86_FCW_MASKS 0x3fu

#define X86_FSW_FLAGS	  0x3fu /* IE DE ZE OE UE PE */
#define X86_FSW_SF	  0x40u
#define X86_FSW_ES	  0x80u
#define X86_FSW_C1	  0x200u
#define X86_FSW_TOP_SHIFT 11
#define X86_FSW_TOP	  (7u << X86_FSW_TOP_SHIFT)
#define X86_FSW_B	  0x8000u

static inline unsigned x86_fpu_top(const struct x86_fpu *fpu)
{
	return fpu->fsw >> X86_FSW_TOP_SHIFT & 7;
}

/* Where MMX register n is kept; 8 bytes. */
static inline void *x86_fpu_mmx(struct x86_fpu *fpu, unsigned n)
{
	return fpu->st[(n - x86_fpu_top(fpu)) & 7];
}

/* Set TOP, leaving the physical registers as they are. */
static inline void x86_fpu_set_top(struct x86_fpu *fpu, unsigned top)
{
	unsigned old = x86_fpu_top(fpu);
	uint8_t st[8][16];

	if (old == top)
		return;
	memcpy(st, fpu->st, sizeof(st));
	for (unsigned i = 0; i < 8; i++)
		memcpy(fpu->st[i], st[(i + top - old) & 7], 16);
	fpu->fsw = (uint16_t)((fpu->fsw & ~X86_FSW_TOP) | top << X86_FSW_TOP_SHIFT);
}

/* What every use of an MMX register does (SDM 1 9.5.1): TOP = 0, all registers valid. */
static inline void x86_fpu_enter_mmx(struct x86_fpu *fpu)
{
	x86_fpu_set_top(fpu, 0);
	fpu->ftw = 0xff;
}

/* Write an MMX register after x86_fpu_enter_mmx(): sign and exponent become ones. */
static inline void x86_fpu_mmx_write(struct x86_fpu *fpu, unsigned n, uint64_t value)
{
	memcpy(fpu->st[n], &value, 8);
	fpu->st[n][8] = fpu->st[n][9] = 0xff;
}

/* FCW as the processor keeps it: reserved bits are fixed, bit 6 reads as one. */
static inline uint16_t x86_fcw_fix(uint16_t fcw)
{
	return (uint16_t)((fcw & 0x1f3f) | 0x40);
}

/* ES and B follow from the flags and masks. Call after any change of FCW or FSW. */
static inline void x86_fpu_summarize(struct x86_fpu *fpu)
{
	fpu->fsw &= (uint16_t) ~(X86_FSW_ES | X86_FSW_B);
	if (fpu->fsw & ~fpu->fcw & X86_FSW_FLAGS)
		fpu->fsw |= X86_FSW_ES | X86_FSW_B;
}

static inline bool x86_fpu_pending(const struct x86_fpu *fpu)
{
	return fpu->fsw & ~fpu->fcw & X86_FSW_FLAGS;
}

/*
 * Destination register of a vector instruction: SSE keeps bytes 16 and up, VEX zeroes what it does
 * not write; value holds 32 bytes, those above the vector length zero.
 */
void x86_vec_write(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned reg,
	const union x86_vector *value);

/*
 * Do an instruction of x86_fpu_run() the short way if it is a common one with ordinary operands:
 * true, and ret_status says how it went. False: nothing has changed.
 */
bool x86_fpu_fast(struct x86_cpu *cpu, const struct x86_insn *insn, enum x86_status *ret_status);

#endif
