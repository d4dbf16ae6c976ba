/*
 * Near branches: CALL RET JMP Jcc LOOPcc JrCXZ (SDM 2). Targets are checked before anything changes.
 * In 64-bit mode a 66 prefix is ignored, as on Intel processors.
 */
#include "isa/x86/sem.h"

enum x86_status x86_sem_jmp(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return x86_branch(cpu, insn, cpu->s.reg[X86_RIP] + insn->imm);
}

enum x86_status x86_sem_jmp_rm(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t target;
	X86_TRY(x86_op_read(cpu, insn, 0, &target));
	return x86_branch(cpu, insn, target);
}

/* The stack is looked at before the target, as AMD's processors do. */
static enum x86_status call(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t target)
{
	const uint64_t sp = (cpu->s.reg[X86_RSP] - insn->osize) & x86_stack_mask(cpu);

	X86_TRY(x86_check_store(cpu, X86_SS, sp, insn->osize));
	X86_TRY(x86_branch_target(cpu, insn, target, &target));
	X86_TRY(x86_push(cpu, insn->osize, cpu->s.reg[X86_RIP]));
	cpu->s.reg[X86_RIP] = target;
	return X86_JUMP;
}

enum x86_status x86_sem_call(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return call(cpu, insn, cpu->s.reg[X86_RIP] + insn->imm);
}

enum x86_status x86_sem_call_rm(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t target;
	X86_TRY(x86_op_read(cpu, insn, 0, &target));
	return call(cpu, insn, target);
}

/* RET and RET imm16 (imm is 0 without one). */
enum x86_status x86_sem_ret(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t sp = cpu->s.reg[X86_RSP] & x86_stack_mask(cpu), target;
	X86_TRY(x86_load(cpu, X86_SS, sp, insn->osize, &target));
	X86_TRY(x86_branch_target(cpu, insn, target, &target));
	cpu->s.reg[X86_RIP] = target;
	x86_set_sp(cpu, sp + insn->osize + insn->imm);
	return X86_JUMP;
}

/* One function for each condition: its test is then a constant. */
#define JCC(name, cc)                                                                              \
	enum x86_status x86_sem_j##name(struct x86_cpu *cpu, const struct x86_insn *insn)          \
	{                                                                                          \
		if (!x86_condition(cpu->s.rflags, cc))                                             \
			return X86_OK;                                                             \
		return x86_branch(cpu, insn, cpu->s.reg[X86_RIP] + insn->imm);                     \
	}

JCC(o, 0)
JCC(no, 1)
JCC(b, 2)
JCC(nb, 3)
JCC(z, 4)
JCC(nz, 5)
JCC(be, 6)
JCC(nbe, 7)
JCC(s, 8)
JCC(ns, 9)
JCC(p, 10)
JCC(np, 11)
JCC(l, 12)
JCC(nl, 13)
JCC(le, 14)
JCC(nle, 15)

/* The counter is CX, ECX or RCX by address size. A target that faults leaves it as it was. */
static enum x86_status loop(struct x86_cpu *cpu, const struct x86_insn *insn, bool condition)
{
	uint64_t count = (cpu->s.reg[X86_RCX] - 1) & x86_size_mask(insn->asize);
	enum x86_status status = X86_OK;

	if (count && condition)
		status = x86_branch(cpu, insn, cpu->s.reg[X86_RIP] + insn->imm);
	if (status != X86_FAULT)
		x86_gpr_write(cpu, X86_RCX, insn->asize, count);
	return status;
}

enum x86_status x86_sem_loop(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return loop(cpu, insn, true);
}

enum x86_status x86_sem_loope(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return loop(cpu, insn, cpu->s.rflags & X86_ZF);
}

enum x86_status x86_sem_loopne(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return loop(cpu, insn, !(cpu->s.rflags & X86_ZF));
}

enum x86_status x86_sem_jrcxz(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (x86_gpr_read(cpu, X86_RCX, insn->asize))
		return X86_OK;
	return x86_branch(cpu, insn, cpu->s.reg[X86_RIP] + insn->imm);
}
