/*
 * Shifts and rotates: SHL SHR SAR ROL ROR RCL RCR SHLD SHRD, and the flagless RORX SARX SHLX SHRX (SDM 2).
 *
 * The count is masked to 5 bits (6 for 64-bit operands); a masked count of 0 changes neither flags nor
 * a register's value. Where the SDM leaves OF undefined (counts other than 1) it is computed as for the last
 * single-bit step, and AF is set where it is undefined: what AMD's processors do (isa.md).
 */
#include "isa/x86/sem.h"

X86_INLINE unsigned count_mask(unsigned size)
{
	return size == 8 ? 63 : 31;
}

X86_INLINE uint64_t set_co(uint64_t flags, uint64_t cf, uint64_t of)
{
	return (flags & ~(uint64_t)(X86_CF | X86_OF)) | cf | of << 11;
}

X86_INLINE uint64_t compute_shl(uint64_t old, uint64_t count, unsigned size, uint64_t *flags)
{
	unsigned bits = 8 * size;
	count &= count_mask(size);
	if (!count)
		return old;
	uint64_t r = old << count;
	uint64_t cf = count <= bits ? old >> (bits - count) & 1 : 0;
	uint64_t of = (r >> (bits - 1) & 1) ^ cf;
	*flags = X86_WITH_FLAGS(*flags, x86_flags_logic(r, size) | X86_AF | cf | of << 11);
	return r;
}

X86_INLINE uint64_t compute_shr(uint64_t old, uint64_t count, unsigned size, uint64_t *flags)
{
	count &= count_mask(size);
	if (!count)
		return old;
	old &= x86_size_mask(size);
	uint64_t r = old >> count;
	uint64_t cf = old >> (count - 1) & 1;
	uint64_t of = ((r << 1 ^ r) >> (8 * size - 1)) & 1;
	*flags = X86_WITH_FLAGS(*flags, x86_flags_logic(r, size) | X86_AF | cf | of << 11);
	return r;
}

X86_INLINE uint64_t compute_sar(uint64_t old, uint64_t count, unsigned size, uint64_t *flags)
{
	unsigned sh = x86_size_shift(size);
	count &= count_mask(size);
	if (!count)
		return old;
	int64_t value = (int64_t)(old << sh) >> sh;
	int64_t r = value >> count;
	*flags = X86_WITH_FLAGS(*flags,
		x86_flags_logic((uint64_t)r, size) | X86_AF |
			((uint64_t)(value >> (count - 1)) & 1));
	return (uint64_t)r;
}

/* ROL and ROR touch only CF and OF, and do so for any count that is not 0 before reduction. */
X86_INLINE uint64_t compute_rol(uint64_t old, uint64_t count, unsigned size, uint64_t *flags)
{
	unsigned bits = 8 * size;
	count &= count_mask(size);
	if (!count)
		return old;
	unsigned n = (unsigned)count & (bits - 1);
	old &= x86_size_mask(size);
	uint64_t r = n ? old << n | old >> (bits - n) : old;
	*flags = set_co(*flags, r & 1, (r ^ r >> (bits - 1)) & 1);
	return r;
}

X86_INLINE uint64_t compute_ror(uint64_t old, uint64_t count, unsigned size, uint64_t *flags)
{
	unsigned bits = 8 * size;
	count &= count_mask(size);
	if (!count)
		return old;
	unsigned n = (unsigned)count & (bits - 1);
	old &= x86_size_mask(size);
	uint64_t r = n ? old >> n | old << (bits - n) : old;
	uint64_t top = r >> (bits - 1) & 1;
	*flags = set_co(*flags, top, top ^ (r >> (bits - 2) & 1));
	return r;
}

/* RCL and RCR rotate bits + 1 bits: a count reduced to 0 leaves value and CF alone. */
X86_INLINE uint64_t compute_rcl(uint64_t old, uint64_t count, unsigned size, uint64_t *flags)
{
	count &= count_mask(size);
	unsigned bits = 8 * size, n = (unsigned)count % (bits + 1);
	uint64_t cf = *flags & X86_CF, r;
	if (!count)
		return old;
	old &= x86_size_mask(size);
	if (!n) {
		*flags = set_co(*flags, cf, (old >> (bits - 1)) ^ cf);
		return old;
	}
	r = (n < 64 ? old << n : 0) | cf << (n - 1);
	if (n > 1)
		r |= old >> (bits + 1 - n);
	cf = old >> (bits - n) & 1;
	*flags = set_co(*flags, cf, (r >> (bits - 1) & 1) ^ cf);
	return r;
}

X86_INLINE uint64_t compute_rcr(uint64_t old, uint64_t count, unsigned size, uint64_t *flags)
{
	count &= count_mask(size);
	unsigned bits = 8 * size, n = (unsigned)count % (bits + 1);
	uint64_t cf = *flags & X86_CF, r;
	if (!count)
		return old;
	old &= x86_size_mask(size);
	if (!n) {
		*flags = set_co(*flags, cf, ((old >> (bits - 1)) ^ (old >> (bits - 2))) & 1);
		return old;
	}
	r = (n < 64 ? old >> n : 0) | cf << (bits - n);
	if (n > 1)
		r |= old << (bits + 1 - n);
	cf = old >> (n - 1) & 1;
	*flags = set_co(*flags, cf, ((r >> (bits - 1)) ^ (r >> (bits - 2))) & 1);
	return r;
}

#define SHIFT(name)                                                                                \
	enum x86_status x86_sem_##name(struct x86_cpu *cpu, const struct x86_insn *insn)           \
	{                                                                                          \
		uint64_t count;                                                                    \
		X86_TRY(x86_op_read(cpu, insn, 1, &count));                                        \
		return x86_rmw(cpu, insn, compute_##name, count);                                  \
	}

SHIFT(shl)
SHIFT(shr)
SHIFT(sar)
SHIFT(rol)
SHIFT(ror)
SHIFT(rcl)
SHIFT(rcr)

/*
 * Double shifts. A 16-bit operand shifted by more than 16 is undefined; AMD takes the source again, as if
 * dst:src:src were shifted, and clears CF (Intel dst:src:dst).
 */
static uint64_t shld(uint64_t dst, uint64_t src, unsigned count, unsigned size, uint64_t *ret_cf,
	uint64_t *ret_last)
{
	unsigned bits = 8 * size;
	if (size == 2) {
		uint64_t all = dst << 32 | src << 16 | src;
		*ret_cf = count <= 16 ? all >> (48 - count) & 1 : 0;
		*ret_last = count <= 16 ? *ret_cf : all >> (47 - count) & 1; /* OF is clear then */
		return all << count >> 32;
	}
	*ret_last = *ret_cf = dst >> (bits - count) & 1;
	return dst << count | src >> (bits - count);
}

static uint64_t shrd(uint64_t dst, uint64_t src, unsigned count, unsigned size, uint64_t *ret_cf)
{
	unsigned bits = 8 * size;
	*ret_cf = dst >> (count - 1) & 1;
	if (size == 2) {
		uint64_t all = src << 32 | src << 16 | dst;
		*ret_cf = count <= 16 ? all >> (count - 1) & 1 : 0;
		return all >> count;
	}
	return dst >> count | src << (bits - count);
}

static enum x86_status double_shift(struct x86_cpu *cpu, const struct x86_insn *insn, bool left)
{
	unsigned size = insn->op[0].size;
	uint64_t dst, src, count, r, cf, last = 0;

	X86_TRY(x86_op_read(cpu, insn, 1, &src));
	X86_TRY(x86_op_read(cpu, insn, 2, &count));
	count &= count_mask(size);
	if (insn->op[0].kind == X86_O_MEM)
		X86_TRY(x86_load_for_write(cpu, insn->seg, x86_ea(cpu, insn), size, &dst));
	else
		X86_TRY(x86_op_read(cpu, insn, 0, &dst));
	if (!count)
		return insn->op[0].kind == X86_O_MEM ? X86_OK : x86_op_write(cpu, insn, 0, dst);
	r = left ? shld(dst, src, (unsigned)count, size, &cf, &last) :
		   shrd(dst, src, (unsigned)count, size, &cf);
	uint64_t of = ((left ? last << (8 * size - 1) ^ r : r << 1 ^ r) >> (8 * size - 1)) & 1;
	X86_TRY(x86_op_write(cpu, insn, 0, r));
	x86_set_flags(cpu, x86_flags_logic(r, size) | X86_AF | cf | of << 11);
	return X86_OK;
}

enum x86_status x86_sem_shld(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return double_shift(cpu, insn, true);
}

enum x86_status x86_sem_shrd(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return double_shift(cpu, insn, false);
}

/* ---- BMI2: no flags; operands: destination, source, count ---- */

static enum x86_status flagless(struct x86_cpu *cpu, const struct x86_insn *insn, x86_compute *compute)
{
	uint64_t value, count, flags = 0;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	X86_TRY(x86_op_read(cpu, insn, 2, &count));
	return x86_op_write(cpu, insn, 0, compute(value, count, insn->op[0].size, &flags));
}

enum x86_status x86_sem_rorx(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return flagless(cpu, insn, compute_ror);
}

enum x86_status x86_sem_sarx(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return flagless(cpu, insn, compute_sar);
}

enum x86_status x86_sem_shlx(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return flagless(cpu, insn, compute_shl);
}

enum x86_status x86_sem_shrx(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return flagless(cpu, insn, compute_shr);
}
