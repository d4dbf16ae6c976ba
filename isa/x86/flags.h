/*
 * Results and arithmetic flags of the integer instructions (SDM 1 3.4.3.1 and the pages of SDM 2),
 * computed eagerly and without branches.
 *
 * Operands may have junk above their size: it is shifted out. Results have junk there too; writers of
 * registers and memory truncate. The functions return only X86_FLAGS_ARITH bits.
 */
#ifndef LODGE_ISA_X86_FLAGS_H
#define LODGE_ISA_X86_FLAGS_H

#include "isa/x86/cpu.h"

#define X86_INLINE static inline __attribute__((always_inline))

/* Distance from an operand's sign bit to bit 63. */
X86_INLINE unsigned x86_size_shift(unsigned size)
{
	return 64 - 8 * size;
}

/* ZF, SF, PF of a result; AF, CF, OF clear: what the logical instructions leave. */
X86_INLINE uint64_t x86_flags_logic(uint64_t r, unsigned size)
{
	uint64_t high = r << x86_size_shift(size);
	return (uint64_t)(high == 0) << 6 | (high >> 63) << 7 |
	       (uint64_t)!__builtin_parity((uint8_t)r) << 2;
}

X86_INLINE uint64_t x86_flags_adc(uint64_t a, uint64_t b, unsigned carry, unsigned size, uint64_t *ret_r)
{
	unsigned sh = x86_size_shift(size);
	uint64_t r = a + b + carry, sum;
	uint64_t cf = __builtin_add_overflow(a << sh, b << sh, &sum);
	cf |= __builtin_add_overflow(sum, (uint64_t)carry << sh, &sum);
	uint64_t of = ((a ^ r) & (b ^ r)) << sh >> 63;
	*ret_r = r;
	return x86_flags_logic(r, size) | cf | ((a ^ b ^ r) & X86_AF) | of << 11;
}

X86_INLINE uint64_t x86_flags_sbb(uint64_t a, uint64_t b, unsigned borrow, unsigned size, uint64_t *ret_r)
{
	unsigned sh = x86_size_shift(size);
	uint64_t r = a - b - borrow, difference;
	uint64_t cf = __builtin_sub_overflow(a << sh, b << sh, &difference);
	cf |= __builtin_sub_overflow(difference, (uint64_t)borrow << sh, &difference);
	uint64_t of = ((a ^ b) & (a ^ r)) << sh >> 63;
	*ret_r = r;
	return x86_flags_logic(r, size) | cf | ((a ^ b ^ r) & X86_AF) | of << 11;
}

X86_INLINE uint64_t x86_flags_add(uint64_t a, uint64_t b, unsigned size, uint64_t *ret_r)
{
	return x86_flags_adc(a, b, 0, size, ret_r);
}

X86_INLINE uint64_t x86_flags_sub(uint64_t a, uint64_t b, unsigned size, uint64_t *ret_r)
{
	return x86_flags_sbb(a, b, 0, size, ret_r);
}

/* Replace the arithmetic flags. */
X86_INLINE void x86_set_flags(struct x86_cpu *cpu, uint64_t flags)
{
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)X86_FLAGS_ARITH) | flags;
}

/* Is condition `cc` (SDM 2 appendix B.1.4.7: low four bits of Jcc) true? */
X86_INLINE bool x86_condition(uint64_t f, unsigned cc)
{
	bool yes = false;
	switch (cc >> 1) {
	case 0: yes = f & X86_OF; break;
	case 1: yes = f & X86_CF; break;
	case 2: yes = f & X86_ZF; break;
	case 3: yes = f & (X86_CF | X86_ZF); break;
	case 4: yes = f & X86_SF; break;
	case 5: yes = f & X86_PF; break;
	case 6: yes = ((f >> 7) ^ (f >> 11)) & 1; break;
	case 7: yes = (((f >> 7) ^ (f >> 11)) & 1) || (f & X86_ZF); break;
	}
	return yes ^ (cc & 1);
}

#endif
