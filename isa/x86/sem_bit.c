/*
 * Bits: BT BTS BTR BTC BSF BSR TZCNT LZCNT POPCNT CRC32, BMI1 and the rest of BMI2 (SDM 2).
 * Flags that the SDM leaves undefined are kept, but for BMI1's (AF, PF: cleared).
 */
#include "isa/x86/sem.h"

/* ---- bit tests; the bit's value goes to CF, all other flags stay ---- */

X86_INLINE uint64_t bit_to_cf(uint64_t old, uint64_t bit, uint64_t *flags)
{
	*flags = (*flags & ~(uint64_t)X86_CF) | (old >> bit & 1);
	return 1ull << bit;
}

X86_INLINE uint64_t compute_bts(uint64_t old, uint64_t bit, unsigned size, uint64_t *flags)
{
	return old | bit_to_cf(old, bit, flags);
}

X86_INLINE uint64_t compute_btr(uint64_t old, uint64_t bit, unsigned size, uint64_t *flags)
{
	return old & ~bit_to_cf(old, bit, flags);
}

X86_INLINE uint64_t compute_btc(uint64_t old, uint64_t bit, unsigned size, uint64_t *flags)
{
	return old ^ bit_to_cf(old, bit, flags);
}

/*
 * Which bit of which memory operand: a register index is signed and reaches beyond the operand, an
 * immediate one is taken modulo its size.
 */
static uint64_t bit_address(const struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t index)
{
	unsigned size = insn->op[0].size, sh = x86_size_shift(size);
	uint64_t offset = x86_ea(cpu, insn);

	if (insn->op[1].kind == X86_O_IMM)
		return offset;
	int64_t words = ((int64_t)(index << sh) >> sh) >> __builtin_ctz(8 * size);
	return (offset + (uint64_t)words * size) & x86_size_mask(insn->asize);
}

enum x86_status x86_sem_bt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->op[0].size;
	uint64_t index, value;

	X86_TRY(x86_op_read(cpu, insn, 1, &index));
	if (insn->op[0].kind == X86_O_MEM)
		X86_TRY(x86_load(cpu, insn->seg, bit_address(cpu, insn, index), size, &value));
	else
		value = cpu->s.reg[insn->op[0].reg];
	bit_to_cf(value, index & (8 * size - 1), &cpu->s.rflags);
	return X86_OK;
}

X86_INLINE enum x86_status bit_change(struct x86_cpu *cpu, const struct x86_insn *insn,
	x86_compute *compute)
{
	unsigned size = insn->op[0].size;
	uint64_t index;

	X86_TRY(x86_op_read(cpu, insn, 1, &index));
	uint64_t bit = index & (8 * size - 1);
	if (insn->op[0].kind != X86_O_MEM)
		return x86_rmw(cpu, insn, compute, bit);
	return x86_rmw_mem(cpu, insn, bit_address(cpu, insn, index), size, insn->prefix & X86_P_LOCK,
		compute, bit, NULL);
}

enum x86_status x86_sem_bts(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return bit_change(cpu, insn, compute_bts);
}

enum x86_status x86_sem_btr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return bit_change(cpu, insn, compute_btr);
}

enum x86_status x86_sem_btc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return bit_change(cpu, insn, compute_btc);
}

/* ---- scans and counts ---- */

/* What the SDM leaves undefined is as AMD's processors have it (isa.md). */
static void set_bits(struct x86_cpu *cpu, uint64_t which, uint64_t value)
{
	cpu->s.rflags = (cpu->s.rflags & ~which) | value;
}

/* A source of 0 leaves the whole destination register alone. PF, undefined, is of the index, and of 0 if there is
 * none; the others are clear. */
static enum x86_status scan_result(struct x86_cpu *cpu, const struct x86_insn *insn, bool found,
	unsigned index)
{
	x86_set_flags(cpu, found ? x86_flags_logic(index, 1) & X86_PF : X86_ZF | X86_PF);
	return found ? x86_op_write(cpu, insn, 0, index) : X86_OK;
}

enum x86_status x86_sem_bsf(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return scan_result(cpu, insn, value, value ? (unsigned)__builtin_ctzll(value) : 0);
}

enum x86_status x86_sem_bsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return scan_result(cpu, insn, value, value ? 63 - (unsigned)__builtin_clzll(value) : 0);
}

/* TZCNT and LZCNT: CF = source was 0, ZF = result is 0; of the undefined ones OF is kept, the others are clear. */
static enum x86_status count_result(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned count)
{
	unsigned bits = 8 * insn->op[0].size;
	set_bits(cpu, X86_FLAGS_ARITH & ~X86_OF, (count == bits ? X86_CF : 0) | (count == 0 ? X86_ZF : 0));
	return x86_op_write(cpu, insn, 0, count);
}

enum x86_status x86_sem_tzcnt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return count_result(cpu, insn,
		value ? (unsigned)__builtin_ctzll(value) : 8u * insn->op[0].size);
}

enum x86_status x86_sem_lzcnt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->op[0].size;
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return count_result(cpu, insn,
		value ? (unsigned)__builtin_clzll(value) - x86_size_shift(size) : 8 * size);
}

enum x86_status x86_sem_popcnt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	x86_set_flags(cpu, value ? 0 : X86_ZF);
	return x86_op_write(cpu, insn, 0, (unsigned)__builtin_popcountll(value));
}

/* The Castagnoli polynomial, bit-reflected; the operand's size is that of the source. */
enum x86_status x86_sem_crc32(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	uint32_t crc = (uint32_t)cpu->s.reg[insn->op[0].reg];
	for (unsigned i = 0; i < insn->op[1].size; i++, value >>= 8) {
		crc ^= (uint8_t)value;
		for (unsigned bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (0x82f63b78u & -(crc & 1));
	}
	return x86_op_write(cpu, insn, 0, crc);
}

/* ---- BMI1 ---- */

/* SF and ZF of the result, and PF, which is undefined; CF as said; OF and AF cleared. */
static enum x86_status bmi_result(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t r, bool cf)
{
	x86_set_flags(cpu, x86_flags_logic(r, insn->op[0].size) | (cf ? X86_CF : 0));
	return x86_op_write(cpu, insn, 0, r);
}

enum x86_status x86_sem_andn(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t a, b;
	X86_TRY(x86_op_read(cpu, insn, 1, &a));
	X86_TRY(x86_op_read(cpu, insn, 2, &b));
	return bmi_result(cpu, insn, ~a & b, false);
}

enum x86_status x86_sem_bextr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value, control, r = 0;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	X86_TRY(x86_op_read(cpu, insn, 2, &control));
	unsigned start = control & 0xff, length = control >> 8 & 0xff;
	if (start < 64)
		r = value >> start;
	if (length < 64)
		r &= (1ull << length) - 1;
	/* SF is clear even where the result's highest bit is not; AF, undefined, is set. */
	x86_set_flags(cpu, (x86_flags_logic(r, insn->op[0].size) & (X86_ZF | X86_PF)) | X86_AF);
	return x86_op_write(cpu, insn, 0, r);
}

enum x86_status x86_sem_blsi(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return bmi_result(cpu, insn, value & -value, value != 0);
}

/* ZF is always clear: the result has at least one bit. */
enum x86_status x86_sem_blsmsk(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return bmi_result(cpu, insn, value ^ (value - 1), value == 0);
}

enum x86_status x86_sem_blsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return bmi_result(cpu, insn, value & (value - 1), value == 0);
}

/* ---- BMI2 ---- */

enum x86_status x86_sem_bzhi(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned bits = 8 * insn->op[0].size;
	uint64_t value, index;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	X86_TRY(x86_op_read(cpu, insn, 2, &index));
	index &= 0xff;
	if (index < bits)
		value &= (1ull << index) - 1;
	return bmi_result(cpu, insn, value, index >= bits);
}

enum x86_status x86_sem_pdep(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value, mask, r = 0;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	X86_TRY(x86_op_read(cpu, insn, 2, &mask));
	for (; mask; mask &= mask - 1, value >>= 1)
		if (value & 1)
			r |= mask & -mask;
	return x86_op_write(cpu, insn, 0, r);
}

enum x86_status x86_sem_pext(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value, mask, r = 0;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	X86_TRY(x86_op_read(cpu, insn, 2, &mask));
	for (unsigned i = 0; mask; mask &= mask - 1, i++)
		if (value & (mask & -mask))
			r |= 1ull << i;
	return x86_op_write(cpu, insn, 0, r);
}
