/*
 * Decimal adjustment: AAA AAS AAM AAD DAA DAS, and BOUND: none of them in 64-bit mode (SDM 2). Flags left
 * undefined are those of the result for AAM, AAD, and cleared or kept for the others.
 */
#include "isa/x86/sem.h"

/* AAA and AAS: step is +1 or -1 for AH, and +6 or -6 for AL, carried over into AH. */
static enum x86_status ascii_adjust(struct x86_cpu *cpu, int step)
{
	uint64_t flags = cpu->s.rflags;
	unsigned ax = cpu->s.reg[X86_RAX] & 0xffff;
	bool adjust = (ax & 15) > 9 || flags & X86_AF;

	if (adjust)
		ax = (unsigned)((int)ax + step * 0x106);
	x86_gpr_write(cpu, X86_RAX, 2, ax & 0xff0f);
	x86_set_flags(cpu, x86_flags_logic(ax & 15, 1) | (adjust ? X86_AF | X86_CF : 0));
	return X86_OK;
}

enum x86_status x86_sem_aaa(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return ascii_adjust(cpu, 1);
}

enum x86_status x86_sem_aas(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return ascii_adjust(cpu, -1);
}

enum x86_status x86_sem_aam(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned base = insn->imm & 0xff, al = cpu->s.reg[X86_RAX] & 0xff;
	if (!base)
		return x86_fault(cpu, X86_DE);
	x86_gpr_write(cpu, X86_RAX, 2, al / base << 8 | al % base);
	x86_set_flags(cpu, x86_flags_logic(al % base, 1));
	return X86_OK;
}

enum x86_status x86_sem_aad(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned ax = cpu->s.reg[X86_RAX] & 0xffff;
	unsigned al = ((ax & 0xff) + (ax >> 8) * (insn->imm & 0xff)) & 0xff;
	x86_gpr_write(cpu, X86_RAX, 2, al);
	x86_set_flags(cpu, x86_flags_logic(al, 1));
	return X86_OK;
}

static enum x86_status decimal_adjust(struct x86_cpu *cpu, int sign)
{
	uint64_t flags = cpu->s.rflags, out = 0;
	int al = (int)(cpu->s.reg[X86_RAX] & 0xff), old = al;

	if ((al & 15) > 9 || flags & X86_AF) {
		al += sign * 6;
		out |= X86_AF;
		if (flags & X86_CF || al < 0 || (sign > 0 && al > 0xff))
			out |= X86_CF;
	}
	if (old > 0x99 || flags & X86_CF) {
		al += sign * 0x60;
		out |= X86_CF;
	} else if (sign > 0) {
		out &= ~(uint64_t)X86_CF;
	}
	x86_gpr_write(cpu, X86_RAX, 1, (uint64_t)al);
	x86_set_flags(cpu, x86_flags_logic((uint64_t)al, 1) | out);
	return X86_OK;
}

enum x86_status x86_sem_daa(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return decimal_adjust(cpu, 1);
}

enum x86_status x86_sem_das(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return decimal_adjust(cpu, -1);
}

/* BOUND: signed index against two signed limits in memory, both inclusive. */
enum x86_status x86_sem_bound(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->osize, sh = x86_size_shift(size);
	uint64_t offset = x86_ea(cpu, insn), low, high;

	X86_TRY(x86_load(cpu, insn->seg, offset, size, &low));
	offset = (offset + size) & x86_size_mask(insn->asize);
	X86_TRY(x86_load(cpu, insn->seg, offset, size, &high));
	int64_t index = (int64_t)(cpu->s.reg[insn->op[0].reg] << sh);
	if (index < (int64_t)(low << sh) || index > (int64_t)(high << sh))
		return x86_fault(cpu, X86_BR);
	return X86_OK;
}
