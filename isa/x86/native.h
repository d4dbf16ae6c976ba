/*
 * Executes x87, MMX, SSE and AVX instructions by running the host's own instruction on the guest's
 * operands: small stubs are made from the instruction with its register and memory operands replaced,
 * kept in a cache, and called with the operands copied in and out.
 *
 * One executor per vCPU (no locks). Host exceptions never happen: they are masked, and found afterwards
 * in the status flags.
 */
#ifndef LODGE_ISA_X86_NATIVE_H
#define LODGE_ISA_X86_NATIVE_H

#include "isa/x86/insn.h"

struct x86_native;

int x86_native_create(struct x86_native **ret_native);
void x86_native_free(struct x86_native *native);

#endif
