/*
 * The x87 instructions that compilers emit most, without the round trip of the whole state through
 * FXRSTOR and FXSAVE that fpu_run.c makes: loads, exact stores, register moves and sign changes in
 * C; the four operations by a stub that loads just their operands.
 *
 * Invariant: everything unusual (stack faults, empty registers, denormal, NaN or rounded operands
 * of a conversion, any unmasked exception) is refused and left to fpu_run.c, before anything has
 * changed.
 */
#include "isa/x86/fpu.h"
#include "isa/x86/native_stub.h"

#define EXT_BIAS 0x3fff
#define EXT_SIGN 0x8000

enum x86_fpu_fast { REFUSED, DONE, FAULTED };

/* An 80-bit register taken apart. */
struct ext {
	uint64_t mantissa;
	uint16_t exponent; /* and the sign */
};

static struct ext ext_get(const uint8_t st[16])
{
	struct ext e;

	memcpy(&e.mantissa, st, 8);
	memcpy(&e.exponent, st + 8, 2);
	return e;
}

static void ext_put(uint8_t st[16], struct ext e)
{
	memcpy(st, &e.mantissa, 8);
	memcpy(st + 8, &e.exponent, 2);
	memset(st + 10, 0, 6);
}

/* ---- the register stack ---- */

static bool st_used(const struct x86_fpu *fpu, unsigned i)
{
	return fpu->ftw >> ((x86_fpu_top(fpu) + i) & 7) & 1;
}

static void st_clear_c1(struct x86_fpu *fpu)
{
	fpu->fsw &= (uint16_t)~X86_FSW_C1;
}

static bool st_can_push(const struct x86_fpu *fpu)
{
	return !st_used(fpu, 7);
}

static void st_push(struct x86_fpu *fpu, struct ext value)
{
	unsigned top = (x86_fpu_top(fpu) - 1) & 7;

	memmove(fpu->st[1], fpu->st[0], 7 * sizeof(fpu->st[0]));
	ext_put(fpu->st[0], value);
	fpu->fsw = (uint16_t)((fpu->fsw & ~(X86_FSW_TOP | X86_FSW_C1)) | top << X86_FSW_TOP_SHIFT);
	fpu->ftw |= (uint8_t)(1u << top);
}

static void st_pop(struct x86_fpu *fpu)
{
	unsigned top = x86_fpu_top(fpu);
	uint8_t popped[16];

	memcpy(popped, fpu->st[0], 16);
	memmove(fpu->st[0], fpu->st[1], 7 * sizeof(fpu->st[0]));
	memcpy(fpu->st[7], popped, 16);
	fpu->ftw &= (uint8_t) ~(1u << top);
	fpu->fsw = (uint16_t)((fpu->fsw & ~X86_FSW_TOP) | ((top + 1) & 7) << X86_FSW_TOP_SHIFT);
}

/* ---- conversions: false = not an exact or not an ordinary one ---- */

/* A binary number of the given field widths; zero or normal. */
static bool ext_from_float(
	uint64_t bits, unsigned exponent_bits, unsigned fraction_bits, struct ext *ret_ext)
{
	unsigned special = (1u << exponent_bits) - 1, bias = special >> 1;
	unsigned exponent = (unsigned)(bits >> fraction_bits) & special;
	uint64_t fraction = bits & (BIT(fraction_bits) - 1);
	uint16_t sign = bits >> (exponent_bits + fraction_bits) & 1 ? EXT_SIGN : 0;

	if (exponent == special || (exponent == 0 && fraction))
		return false;
	if (exponent == 0) {
		*ret_ext = (struct ext){0, sign};
		return true;
	}
	ret_ext->mantissa = BIT(63) | fraction << (63 - fraction_bits);
	ret_ext->exponent = (uint16_t)(exponent - bias + EXT_BIAS) | sign;
	return true;
}

static bool ext_to_float(
	struct ext e, unsigned exponent_bits, unsigned fraction_bits, uint64_t *ret_bits)
{
	int special = (1 << exponent_bits) - 1, bias = special >> 1;
	int exponent = (e.exponent & 0x7fff) - EXT_BIAS + bias;
	uint64_t sign = (uint64_t)(e.exponent >> 15) << (exponent_bits + fraction_bits);

	if (!(e.exponent & 0x7fff) && !e.mantissa) {
		*ret_bits = sign;
		return true;
	}
	if (exponent < 1 || exponent >= special || !(e.mantissa >> 63) ||
		(e.mantissa & (BIT(63 - fraction_bits) - 1)))
		return false;
	*ret_bits = sign | (uint64_t)exponent << fraction_bits |
		    (e.mantissa << 1 >> (64 - fraction_bits));
	return true;
}

static struct ext ext_from_int(int64_t value)
{
	uint64_t magnitude = value < 0 ? -(uint64_t)value : (uint64_t)value;
	unsigned shift;

	if (!value)
		return (struct ext){0, 0};
	shift = (unsigned)__builtin_clzll(magnitude);
	return (struct ext){magnitude << shift,
		(uint16_t)((EXT_BIAS + 63 - shift) | (value < 0 ? EXT_SIGN : 0))};
}

/* ---- memory forms ---- */

/* What a memory row loads or stores, by opcode (its low bits) and ModRM.reg. */
enum format { F_NONE, F_SINGLE, F_DOUBLE, F_EXTENDED, F_INT16, F_INT32, F_INT64 };

static enum format load_format(unsigned opcode, unsigned reg)
{
	switch (opcode << 4 | reg) {
	case 0xd90: return F_SINGLE;
	case 0xdd0: return F_DOUBLE;
	case 0xdb5: return F_EXTENDED;
	case 0xdf0: return F_INT16;
	case 0xdb0: return F_INT32;
	case 0xdf5: return F_INT64;
	default: return F_NONE;
	}
}

static bool ext_from_memory(enum format format, const uint8_t bytes[16], struct ext *ret_ext)
{
	uint64_t bits;

	memcpy(&bits, bytes, 8);
	switch (format) {
	case F_SINGLE: return ext_from_float((uint32_t)bits, 8, 23, ret_ext);
	case F_DOUBLE: return ext_from_float(bits, 11, 52, ret_ext);
	case F_EXTENDED: *ret_ext = ext_get(bytes); return true;
	case F_INT16: *ret_ext = ext_from_int((int16_t)bits); return true;
	case F_INT32: *ret_ext = ext_from_int((int32_t)bits); return true;
	case F_INT64: *ret_ext = ext_from_int((int64_t)bits); return true;
	default: return false;
	}
}

static enum x86_fpu_fast fast_load(
	struct x86_cpu *cpu, const struct x86_insn *insn, enum format format)
{
	uint8_t bytes[16] = {0};
	struct ext value;

	if (!st_can_push(&cpu->s.fpu))
		return REFUSED;
	if (x86_native_load(cpu, insn, bytes, insn->op[0].size) != X86_OK)
		return FAULTED;
	if (!ext_from_memory(format, bytes, &value))
		return REFUSED;
	st_push(&cpu->s.fpu, value);
	return DONE;
}

/* FST and FSTP to single and double, FSTP to extended precision. */
static enum x86_fpu_fast fast_store(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct x86_fpu *fpu = &cpu->s.fpu;
	unsigned size = insn->op[0].size;
	uint64_t bits = 0;
	bool exact = size == 10;

	if (!st_used(fpu, 0))
		return REFUSED;
	if (size == 4)
		exact = ext_to_float(ext_get(fpu->st[0]), 8, 23, &bits);
	else if (size == 8)
		exact = ext_to_float(ext_get(fpu->st[0]), 11, 52, &bits);
	if (!exact)
		return REFUSED;
	if (x86_native_store(cpu, insn, size == 10 ? (void *)fpu->st[0] : &bits, size) != X86_OK)
		return FAULTED;
	st_clear_c1(fpu);
	if ((insn->modrm >> 3 & 7) != 2)
		st_pop(fpu);
	return DONE;
}

static bool is_store(unsigned opcode, unsigned reg)
{
	if (opcode == 0xdb)
		return reg == 7;
	return (opcode == 0xd9 || opcode == 0xdd) && (reg == 2 || reg == 3);
}

/* ---- register forms ---- */

static void st_swap(struct x86_fpu *fpu, unsigned i)
{
	uint8_t st[16];

	memcpy(st, fpu->st[0], 16);
	memcpy(fpu->st[0], fpu->st[i], 16);
	memcpy(fpu->st[i], st, 16);
	st_clear_c1(fpu);
}

/* FCHS, FABS, FLD1, FLDZ. */
static enum x86_fpu_fast fast_simple(struct x86_fpu *fpu, unsigned modrm)
{
	bool push = modrm >= 0xe8;

	if (push ? !st_can_push(fpu) : !st_used(fpu, 0))
		return REFUSED;
	switch (modrm) {
	case 0xe0: fpu->st[0][9] ^= 0x80; break;
	case 0xe1: fpu->st[0][9] &= 0x7f; break;
	case 0xe8: st_push(fpu, (struct ext){BIT(63), EXT_BIAS}); return DONE;
	case 0xee: st_push(fpu, (struct ext){0, 0}); return DONE;
	default: return REFUSED;
	}
	st_clear_c1(fpu);
	return DONE;
}

/* FLD ST(i), FXCH. */
static enum x86_fpu_fast fast_d9(struct x86_fpu *fpu, unsigned modrm)
{
	unsigned i = modrm & 7;

	if (modrm >= 0xd0)
		return fast_simple(fpu, modrm);
	if (!st_used(fpu, i))
		return REFUSED;
	if (modrm < 0xc8) {
		if (!st_can_push(fpu))
			return REFUSED;
		st_push(fpu, ext_get(fpu->st[i]));
		return DONE;
	}
	if (!st_used(fpu, 0))
		return REFUSED;
	st_swap(fpu, i);
	return DONE;
}

/* FST ST(i), FSTP ST(i). */
static enum x86_fpu_fast fast_dd(struct x86_fpu *fpu, unsigned modrm)
{
	unsigned i = modrm & 7;

	if (modrm < 0xd0 || modrm >= 0xe0 || !st_used(fpu, 0))
		return REFUSED;
	memcpy(fpu->st[i], fpu->st[0], 16);
	fpu->ftw |= (uint8_t)(1u << ((x86_fpu_top(fpu) + i) & 7));
	st_clear_c1(fpu);
	if (modrm >= 0xd8)
		st_pop(fpu);
	return DONE;
}

/* ---- arithmetic ---- */

/* FADD, FMUL, FSUB(R), FDIV(R): D8 and DC with memory or registers, DA and DE likewise. */
static bool is_arithmetic(const struct x86_insn *insn)
{
	unsigned reg = insn->modrm >> 3 & 7;

	if (reg == 2 || reg == 3 || insn->opcode & 1)
		return false;
	return insn->modrm < 0xc0 || insn->opcode != 0xda;
}

static enum x86_fpu_fast fast_arithmetic(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct x86_fpu *fpu = &cpu->s.fpu;
	bool mem = insn->modrm < 0xc0;
	unsigned i = mem ? 0 : insn->modrm & 7, to = insn->opcode == 0xd8 ? 0 : i;
	native_fn *fn;
	struct native_ctx *ctx;

	if ((fpu->fcw & X86_FCW_MASKS) != X86_FCW_MASKS || !st_used(fpu, 0) || !st_used(fpu, i))
		return REFUSED;
	fn = x86_native_stub(cpu, insn, NATIVE_X87_LIGHT);
	if (!fn)
		return REFUSED;
	ctx = &cpu->native->ctx;
	if (mem && x86_native_load(cpu, insn, ctx->mem, insn->op[0].size) != X86_OK)
		return FAULTED;
	ctx->fcw = fpu->fcw;
	memcpy(ctx->st[0], fpu->st[0], 16);
	memcpy(ctx->st[1], fpu->st[i], 16);
	fn(ctx);
	memcpy(fpu->st[to], ctx->st[0], 10);
	fpu->fsw = (uint16_t)((fpu->fsw & ~X86_FSW_C1) | (ctx->fsw & (X86_FSW_C1 | X86_FSW_FLAGS)));
	if (!mem && insn->opcode == 0xde)
		st_pop(fpu);
	return DONE;
}

/* ---- */

static enum x86_fpu_fast fast_any(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned opcode = insn->opcode, reg = insn->modrm >> 3 & 7;
	enum format format;

	if (is_arithmetic(insn))
		return fast_arithmetic(cpu, insn);
	if (insn->modrm >= 0xc0) {
		if (opcode == 0xd9)
			return fast_d9(&cpu->s.fpu, insn->modrm);
		return opcode == 0xdd ? fast_dd(&cpu->s.fpu, insn->modrm) : REFUSED;
	}
	if (is_store(opcode, reg))
		return fast_store(cpu, insn);
	format = load_format(opcode, reg);
	return format ? fast_load(cpu, insn, format) : REFUSED;
}

bool x86_fpu_fast(struct x86_cpu *cpu, const struct x86_insn *insn, enum x86_status *ret_status)
{
	switch (fast_any(cpu, insn)) {
	case DONE: *ret_status = X86_OK; return true;
	case FAULTED: *ret_status = X86_FAULT; return true;
	default: return false;
	}
}
