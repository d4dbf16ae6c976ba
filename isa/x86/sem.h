/*
 * What the integer semantic functions (sem_*.c) share: read-modify-write of an operand, plain or
 * locked, and near branches.
 *
 * A computation is a function of the old value, an argument and the flags; it is inlined into each
 * instruction. It may run several times for a locked one, so it must have no other effect.
 */
#ifndef LODGE_ISA_X86_SEM_H
#define LODGE_ISA_X86_SEM_H

#include "isa/x86/access.h"
#include "isa/x86/flags.h"
#include "isa/x86/semantics.h"
#include "base/util.h"

/* *flags: RFLAGS before, to be changed into RFLAGS after. Returns the new value, junk above size. */
typedef uint64_t x86_compute(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags);

#define X86_WITH_FLAGS(flags, arith) (((flags) & ~(uint64_t)X86_FLAGS_ARITH) | (arith))

#define X86_LOCK_TRIES 64

/*
 * Locked, or where the TLB does not help. ret_old may be NULL. A device's register may be another at each look
 * (a counter): when the exchange fails too often, all other vCPUs are held and it is a read and a write.
 */
static inline enum x86_status x86_rmw_slow(struct x86_cpu *cpu, const struct x86_insn *insn,
	uint64_t offset, unsigned size, bool lock, x86_compute *compute, uint64_t arg, uint64_t *ret_old)
{
	uint64_t old, now, flags, value;
	unsigned tries = 0;
	bool done = false;

	X86_TRY(x86_load_for_write(cpu, insn->seg, offset, size, &now));
	do {
		if (unlikely(tries++ == X86_LOCK_TRIES)) {
			x86_exclusive_begin(cpu);
			enum x86_status status = x86_rmw_slow(cpu, insn, offset, size, false, compute, arg, ret_old);
			x86_exclusive_end(cpu);
			return status;
		}
		old = now;
		flags = cpu->s.rflags;
		value = compute(old, arg, size, &flags);
		if (!lock) {
			X86_TRY(x86_store(cpu, insn->seg, offset, size, value));
			break;
		}
		X86_TRY(x86_cmpxchg(cpu, insn->seg, offset, size, &now, value, &done));
	} while (!done);
	cpu->s.rflags = flags;
	if (ret_old)
		*ret_old = old;
	return X86_OK;
}

X86_INLINE enum x86_status x86_rmw_mem(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t offset,
	unsigned size, bool lock, x86_compute *compute, uint64_t arg, uint64_t *ret_old)
{
	gva_t linear;

	if (unlikely(lock))
		return x86_rmw_slow(cpu, insn, offset, size, lock, compute, arg, ret_old);
	X86_TRY(x86_linear(cpu, insn->seg, offset, size, X86_WRITE, &linear));
	void *host = x86_tlb_host(cpu, linear, size, X86_WRITE);
	if (unlikely(!host))
		return x86_rmw_slow(cpu, insn, offset, size, lock, compute, arg, ret_old);
	uint64_t old = x86_host_load(host, size);
	x86_host_store(host, size, compute(old, arg, size, &cpu->s.rflags));
	if (ret_old)
		*ret_old = old;
	return X86_OK;
}

/* Host address of the memory operand if that takes no call: a flat segment and a TLB hit. Else NULL. */
X86_INLINE void *x86_fast_host(const struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
	enum x86_access access)
{
	uint64_t offset = x86_ea(cpu, insn);

	if (likely(cpu->mode == 64))
		offset += insn->seg >= X86_FS ? cpu->s.seg[insn->seg].base : 0;
	else if (!(cpu->flat >> insn->seg & 1) || offset + size > 0x100000000ull)
		return NULL;
	return x86_tlb_host(cpu, offset, size, access);
}

/* Is operand 0 a register and operand 1 one too, or an immediate? */
X86_INLINE bool x86_simple_operands(const struct x86_insn *insn)
{
	return insn->op[0].kind == X86_O_GPR &&
	       (insn->op[1].kind == X86_O_GPR || insn->op[1].kind == X86_O_IMM);
}

/* Operand 1 of those, with junk above its size. */
X86_INLINE uint64_t x86_simple_arg(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return insn->op[1].kind == X86_O_GPR ? cpu->s.reg[insn->op[1].reg] : insn->imm;
}

/* Operand 0 := compute(operand 0, arg). */
X86_INLINE enum x86_status x86_rmw(struct x86_cpu *cpu, const struct x86_insn *insn, x86_compute *compute,
	uint64_t arg)
{
	const struct x86_operand *op = &insn->op[0];

	if (likely(op->kind == X86_O_GPR)) {
		uint64_t value = compute(cpu->s.reg[op->reg], arg, op->size, &cpu->s.rflags);
		x86_gpr_write(cpu, op->reg, op->size, value);
		return X86_OK;
	}
	if (likely(op->kind == X86_O_MEM))
		return x86_rmw_mem(cpu, insn, x86_ea(cpu, insn), op->size, insn->prefix & X86_P_LOCK,
			compute, arg, NULL);
	uint64_t old;
	X86_TRY(x86_op_read(cpu, insn, 0, &old));
	return x86_op_write(cpu, insn, 0, compute(old, arg, 1, &cpu->s.rflags));
}

/* A near branch's target, truncated to the operand size; #GP(0) if RIP cannot hold it. */
X86_INLINE enum x86_status x86_branch_target(struct x86_cpu *cpu, const struct x86_insn *insn,
	uint64_t target, uint64_t *ret_target)
{
	bool valid;

	if (likely(cpu->mode == 64)) {
		valid = (uint64_t)((int64_t)(target << 16) >> 16) == target;
	} else {
		target &= x86_size_mask(insn->osize);
		valid = target <= cpu->s.seg[X86_CS].limit;
	}
	if (unlikely(!valid) && !x86_rip_valid(cpu, target))
		return x86_gp(cpu, 0);
	*ret_target = target;
	return X86_OK;
}

X86_INLINE enum x86_status x86_branch(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t target)
{
	X86_TRY(x86_branch_target(cpu, insn, target, &target));
	cpu->s.reg[X86_RIP] = target;
	return X86_JUMP;
}

#endif
