/*
 * Declares every semantic function that a row of the instruction table names.
 */
#ifndef LODGE_ISA_X86_SEMANTICS_H
#define LODGE_ISA_X86_SEMANTICS_H

#include "isa/x86/insn.h"

#define ROW(encoding, name, operands, in, out, undef, attr, feature, fn) x86_semantic fn;
#include "isa/x86/rows_all.inc"
#undef ROW

#endif
