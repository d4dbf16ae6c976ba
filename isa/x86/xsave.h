/*
 * The x87, SSE and AVX state as memory images: the FXSAVE area and the standard XSAVE format (SDM 1
 * 10.5.1, 13.4). For KVM, debuggers and tests; the instructions themselves are in fpu_xsave.c.
 *
 * Left out: AVX-512 and every later component.
 */
#ifndef LODGE_ISA_X86_XSAVE_H
#define LODGE_ISA_X86_XSAVE_H

#include "isa/x86/state.h"

#define X86_XSAVE_LEGACY_BYTES 512
#define X86_XSAVE_HEADER_BYTES 64
#define X86_XSAVE_AVX_OFFSET   576
#define X86_XSAVE_AVX_BYTES    256
#define X86_XSAVE_BYTES	       832     /* standard format with all components known here */
#define X86_MXCSR_VALID	       0xffffu /* what FXSAVE reports as MXCSR_MASK */
#define X86_XSAVE_COMPONENTS   (X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX)

/*
 * Fill area[size_bytes] with the state in standard format (64-bit FIP and FDP): XSTATE_BV says what
 * is not in its initial configuration; bytes past X86_XSAVE_BYTES become zero. size_bytes is at
 * least X86_XSAVE_BYTES.
 */
void x86_fpu_to_xsave(const struct x86_state *state, void *area, size_t size_bytes);

/*
 * Take the state from a standard-format area, which is checked first; on an error nothing is
 * changed. Components not in XSTATE_BV get their initial configuration (MXCSR too if neither SSE
 * nor AVX is there). Errors: -EINVAL (too small, compacted, reserved bits, components not known
 * here).
 */
int x86_fpu_from_xsave(struct x86_state *state, const void *area, size_t size_bytes);

#endif
