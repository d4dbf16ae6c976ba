/*
 * Vector instructions whose memory accesses depend on a mask, element by element: MASKMOVQ,
 * MASKMOVDQU, V(P)MASKMOV*, gathers. SDM 2. Elements that are masked off are not accessed and
 * cannot fault, and alignment is not checked. (Except by MASKMOVQ and MASKMOVDQU.)
 *
 * A gather that faults has completed the elements below: they are loaded and their mask is clear, so
 * that it goes on from there. The others succeed with all elements or change nothing.
 */
#include "isa/x86/fpu.h"
#include "isa/x86/native_stub.h"
#include "isa/x86/semantics.h"

static uint64_t address_mask(const struct x86_insn *insn)
{
	return x86_size_mask(insn->asize);
}

/* Store the elements of `from` whose mask element has its top bit set. */
static enum x86_status masked_store(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t ea,
	const uint8_t *from, const uint8_t *mask, unsigned element, unsigned size)
{
	for (unsigned i = 0; i < size; i += element)
		if (mask[i + element - 1] & 0x80)
			X86_TRY(x86_check_element(cpu, insn->seg, ea + i, element));
	for (unsigned i = 0; i < size; i += element) {
		uint64_t value = 0;

		if (!(mask[i + element - 1] & 0x80))
			continue;
		memcpy(&value, from + i, element);
		X86_TRY(x86_store_element(cpu, insn->seg, ea + i, element, value));
	}
	return X86_OK;
}

/*
 * MASKMOVQ, (V)MASKMOVDQU: bytes of operand 0 by the mask in operand 1 to DS:rDI (override
 * allowed).
 */
enum x86_status x86_vec_maskmov(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t ea = cpu->s.reg[X86_RDI] & address_mask(insn);
	struct x86_fpu *fpu = &cpu->s.fpu;

	/* AMD's processors check the whole operand whatever the mask, after the change to MMX state. */
	if (insn->op[0].kind == X86_O_MMX)
		x86_fpu_enter_mmx(fpu);
	X86_TRY(x86_check_store(cpu, insn->seg, ea, 8));
	if (insn->op[0].kind == X86_O_VEC)
		X86_TRY(x86_check_store(cpu, insn->seg, ea + 8, 8));
	if (insn->op[0].kind == X86_O_VEC)
		return masked_store(cpu, insn, ea, fpu->vec[insn->op[0].reg].b,
			fpu->vec[insn->op[1].reg].b, 1, 16);
	return masked_store(cpu, insn, ea, x86_fpu_mmx(fpu, insn->op[0].reg),
		x86_fpu_mmx(fpu, insn->op[1].reg), 1, 8);
}

/* VMASKMOVPS 2C 2E, VMASKMOVPD 2D 2F, VPMASKMOVD/Q 8C 8E (by W): operand 0, mask, operand 2. */
enum x86_status x86_vec_vmaskmov(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	bool wide = insn->opcode < 0x80 ? insn->opcode & 1 : insn->rex & 8;
	const union x86_vector *mask = &cpu->s.fpu.vec[insn->op[1].reg];
	uint64_t ea = x86_ea(cpu, insn);
	unsigned element = wide ? 8 : 4;
	union x86_vector value = {0};

	if (insn->op[0].kind == X86_O_MEM)
		return masked_store(cpu, insn, ea, cpu->s.fpu.vec[insn->op[2].reg].b, mask->b,
			element, insn->vl);
	for (unsigned i = 0; i < insn->vl; i += element) {
		uint64_t loaded = 0;

		if (!(mask->b[i + element - 1] & 0x80))
			continue;
		X86_TRY(x86_load_element(cpu, insn->seg, ea + i, element, &loaded));
		memcpy(value.b + i, &loaded, element);
	}
	x86_vec_write(cpu, insn, insn->op[0].reg, &value);
	return X86_OK;
}

/*
 * VPGATHERDD/DQ 90, QD/QQ 91, VGATHERDPS/PD 92, QPS/QPD 93: destination, memory (vector index),
 * mask. Bit 0 of the opcode: indexes are quadwords; VEX.W: data are.
 */
enum x86_status x86_vec_gather(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned data = insn->rex & 8 ? 8 : 4, index = insn->opcode & 1 ? 8 : 4;
	unsigned count = insn->vl / (data > index ? data : index);
	const union x86_vector *indexes = &cpu->s.fpu.vec[insn->index];
	union x86_vector *mask = &cpu->s.fpu.vec[insn->op[2].reg];
	union x86_vector value = {0}, zero = {0};
	uint64_t base = cpu->s.reg[insn->base] + (uint64_t)(int64_t)insn->disp;

	memcpy(&value, &cpu->s.fpu.vec[insn->op[0].reg], (size_t)count * data);
	for (unsigned i = 0; i < count; i++) {
		int64_t at = index == 8 ? (int64_t)indexes->q[i] : (int32_t)indexes->d[i];
		uint64_t ea = (base + ((uint64_t)at << insn->scale)) & address_mask(insn), loaded;

		if (!(mask->b[(i + 1) * data - 1] & 0x80))
			continue;
		if (x86_load_element(cpu, insn->seg, ea, data, &loaded) != X86_OK) {
			memcpy(&cpu->s.fpu.vec[insn->op[0].reg], &value, (size_t)i * data);
			memset(mask, 0, (size_t)i * data);
			return X86_FAULT;
		}
		memcpy(value.b + (size_t)i * data, &loaded, data);
	}
	x86_vec_write(cpu, insn, insn->op[0].reg, &value);
	x86_vec_write(cpu, insn, insn->op[2].reg, &zero);
	return X86_OK;
}
