/*
 * Vector instructions worth doing in C: whole-register moves, MOVD/MOVQ and the bitwise operations,
 * which kernels and C libraries execute most; and the few with no operands for the host to work on:
 * EMMS, VZEROALL, VZEROUPPER, LDMXCSR, STMXCSR. SDM 2.
 */
#include "isa/x86/fpu.h"
#include "isa/x86/native_stub.h"
#include "isa/x86/semantics.h"

/* Apart, so that both copies have a constant size. */
static enum x86_status mov_16(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	union x86_vector value;

	if (insn->op[1].kind == X86_O_MEM)
		X86_TRY(x86_native_load(cpu, insn, &value, 16));
	else
		memcpy(&value, &cpu->s.fpu.vec[insn->op[1].reg], 16);
	memcpy(&cpu->s.fpu.vec[insn->op[0].reg], &value, 16);
	if (insn->prefix & X86_P_VEX)
		memset(cpu->s.fpu.vec[insn->op[0].reg].b + 16, 0, 48);
	return X86_OK;
}

/* Aligned and unaligned moves of 16 or 32 bytes: operand 0 := operand 1. */
enum x86_status x86_vec_mov(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->op[0].size == 32 ? 32 : 16;
	union x86_vector value;

	if (insn->op[0].kind == X86_O_MEM)
		return x86_native_store(cpu, insn, &cpu->s.fpu.vec[insn->op[1].reg], size);
	if (size == 16)
		return mov_16(cpu, insn);
	if (insn->op[1].kind == X86_O_MEM)
		X86_TRY(x86_native_load(cpu, insn, &value, 32));
	else
		memcpy(&value, &cpu->s.fpu.vec[insn->op[1].reg], 32);
	x86_vec_write(cpu, insn, insn->op[0].reg, &value);
	return X86_OK;
}

/*
 * MOVD, MOVQ between an XMM register and another one, a general register or memory, zero-extending.
 */
enum x86_status x86_vec_movd(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const struct x86_operand *to = &insn->op[0], *from = &insn->op[1];
	unsigned size = from->kind == X86_O_VEC ? to->size : from->size;
	union x86_vector value = {0};

	if (to->kind == X86_O_VEC && from->kind == X86_O_VEC)
		size = 8; /* MOVQ */
	if (from->kind == X86_O_VEC)
		value.q[0] = cpu->s.fpu.vec[from->reg].q[0];
	else
		X86_TRY(x86_op_read(cpu, insn, 1, &value.q[0]));
	if (size == 4)
		value.q[0] = value.d[0];
	if (to->kind != X86_O_VEC)
		return x86_op_write(cpu, insn, 0, value.q[0]);
	x86_vec_write(cpu, insn, to->reg, &value);
	return X86_OK;
}

enum vec_logic { VEC_AND, VEC_ANDN, VEC_OR, VEC_XOR };

/* PAND.. (DB DF EB EF) and ANDPS.. (54 55 56 57), by opcode. */
static enum vec_logic vec_logic_of(unsigned opcode)
{
	switch (opcode) {
	case 0x54:
	case 0xdb: return VEC_AND;
	case 0x55:
	case 0xdf: return VEC_ANDN;
	case 0x56:
	case 0xeb: return VEC_OR;
	default: return VEC_XOR;
	}
}

/* Bitwise operations on XMM and YMM registers (the MMX forms go through x86_vec_run). */
enum x86_status x86_vec_logic(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned last = insn->operand_count - 1u, size = insn->prefix & X86_P_VEX ? insn->vl : 16;
	const union x86_vector *a = &cpu->s.fpu.vec[insn->op[last == 2 ? 1 : 0].reg];
	const union x86_vector *b = &cpu->s.fpu.vec[insn->op[last].reg];
	union x86_vector value = {0}, loaded;

	if (insn->op[last].kind == X86_O_MEM) {
		X86_TRY(x86_native_load(cpu, insn, &loaded, size));
		b = &loaded;
	}
	for (unsigned i = 0; i < size / 8; i++) {
		switch (vec_logic_of(insn->opcode)) {
		case VEC_AND: value.q[i] = a->q[i] & b->q[i]; break;
		case VEC_ANDN: value.q[i] = ~a->q[i] & b->q[i]; break;
		case VEC_OR: value.q[i] = a->q[i] | b->q[i]; break;
		case VEC_XOR: value.q[i] = a->q[i] ^ b->q[i]; break;
		}
	}
	x86_vec_write(cpu, insn, insn->op[0].reg, &value);
	return X86_OK;
}

enum x86_status x86_vec_emms(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	x86_fpu_set_top(&cpu->s.fpu, 0);
	cpu->s.fpu.ftw = 0;
	return X86_OK;
}

/* VZEROUPPER (VEX.128), VZEROALL (VEX.256): the registers that the mode can name. */
enum x86_status x86_vec_zero(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned keep = insn->vl == 32 ? 0 : 16, count = insn->mode == 64 ? 16 : 8;

	for (unsigned i = 0; i < count; i++)
		memset(cpu->s.fpu.vec[i].b + keep, 0, sizeof(cpu->s.fpu.vec[i]) - keep);
	return X86_OK;
}

/* LDMXCSR (0F AE /2), STMXCSR (/3). */
enum x86_status x86_vec_mxcsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value, ea = x86_ea(cpu, insn);

	if ((insn->modrm >> 3 & 7) == 3)
		return x86_store(cpu, insn->seg, ea, 4, cpu->s.fpu.mxcsr);
	X86_TRY(x86_load(cpu, insn->seg, ea, 4, &value));
	if (value & ~(uint64_t)X86_MXCSR_VALID)
		return x86_gp(cpu, 0);
	cpu->s.fpu.mxcsr = (uint32_t)value;
	return X86_OK;
}
