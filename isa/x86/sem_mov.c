/*
 * Data movement: MOV MOVZX MOVSX MOVSXD MOVBE MOVNTI XCHG XADD CMPXCHG CMPXCHG8B/16B BSWAP LEA CMOVcc
 * SETcc XLAT and the CBW and CWD families (SDM 2). Segment, control and debug registers are elsewhere.
 */
#include "isa/x86/sem.h"

static __attribute__((noinline)) enum x86_status mov_other(struct x86_cpu *cpu,
	const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return x86_op_write(cpu, insn, 0, value);
}

/* The common forms by themselves: without calls they need no stack frame. Also MOVZX, MOVNTI, MOVDIRI. */
enum x86_status x86_sem_mov(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const struct x86_operand *to = &insn->op[0], *from = &insn->op[1];
	void *host;

	if (to->kind == X86_O_GPR) {
		if (from->kind == X86_O_MEM) {
			host = x86_fast_host(cpu, insn, from->size, X86_READ);
			if (unlikely(!host))
				return mov_other(cpu, insn);
			x86_gpr_write(cpu, to->reg, to->size, x86_host_load(host, from->size));
			return X86_OK;
		}
		if (from->kind == X86_O_GPR8H)
			return mov_other(cpu, insn);
		x86_gpr_write(cpu, to->reg, to->size,
			x86_simple_arg(cpu, insn) & x86_size_mask(from->size));
		return X86_OK;
	}
	if (to->kind == X86_O_MEM && from->kind != X86_O_GPR8H) {
		host = x86_fast_host(cpu, insn, to->size, X86_WRITE);
		if (likely(host)) {
			x86_host_store(host, to->size, x86_simple_arg(cpu, insn));
			return X86_OK;
		}
	}
	return mov_other(cpu, insn);
}

/* Accumulator from or to an absolute offset, which may have 64 bits. */
enum x86_status x86_sem_mov_load_moffs(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_load(cpu, insn->seg, insn->imm, insn->op[1].size, &value));
	return x86_op_write(cpu, insn, 0, value);
}

enum x86_status x86_sem_mov_store_moffs(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return x86_store(cpu, insn->seg, insn->imm, insn->op[0].size, cpu->s.reg[X86_RAX]);
}

enum x86_status x86_sem_movsx(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned sh = x86_size_shift(insn->op[1].size);
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return x86_op_write(cpu, insn, 0, (uint64_t)((int64_t)(value << sh) >> sh));
}

enum x86_status x86_sem_movbe(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return x86_op_write(cpu, insn, 0, __builtin_bswap64(value) >> x86_size_shift(insn->op[0].size));
}

/* BSWAP of a 16-bit register is undefined; processors clear it. */
enum x86_status x86_sem_bswap(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const struct x86_operand *op = &insn->op[0];
	uint64_t value = cpu->s.reg[op->reg];
	switch (op->size) {
	case 2: value = 0; break;
	case 4: value = __builtin_bswap32((uint32_t)value); break;
	default: value = __builtin_bswap64(value); break;
	}
	x86_gpr_write(cpu, op->reg, op->size, value);
	return X86_OK;
}

enum x86_status x86_sem_lea(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	x86_gpr_write(cpu, insn->op[0].reg, insn->op[0].size, x86_ea(cpu, insn));
	return X86_OK;
}

/* A 32-bit destination is zero-extended even if nothing is moved; memory is read always. */
enum x86_status x86_sem_cmov(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const struct x86_operand *op = &insn->op[0];
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	if (!x86_condition(cpu->s.rflags, insn->opcode & 15))
		value = cpu->s.reg[op->reg];
	x86_gpr_write(cpu, op->reg, op->size, value);
	return X86_OK;
}

enum x86_status x86_sem_setcc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return x86_op_write(cpu, insn, 0, x86_condition(cpu->s.rflags, insn->opcode & 15));
}

enum x86_status x86_sem_xlat(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t offset = cpu->s.reg[X86_RBX] + (uint8_t)cpu->s.reg[X86_RAX], value;
	X86_TRY(x86_load(cpu, insn->seg, offset & x86_size_mask(insn->asize), 1, &value));
	x86_gpr_write(cpu, X86_RAX, 1, value);
	return X86_OK;
}

/* CBW, CWDE, CDQE: sign-extend the lower half of rAX. */
enum x86_status x86_sem_cbw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned sh = x86_size_shift(insn->osize / 2);
	x86_gpr_write(cpu, X86_RAX, insn->osize, (uint64_t)((int64_t)(cpu->s.reg[X86_RAX] << sh) >> sh));
	return X86_OK;
}

/* CWD, CDQ, CQO: rDX := sign of rAX. */
enum x86_status x86_sem_cwd(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned sh = x86_size_shift(insn->osize);
	x86_gpr_write(cpu, X86_RDX, insn->osize, (uint64_t)((int64_t)(cpu->s.reg[X86_RAX] << sh) >> 63));
	return X86_OK;
}

/* ---- exchanges ---- */

X86_INLINE uint64_t compute_replace(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	return arg;
}

/* With memory XCHG is locked, prefix or not. */
enum x86_status x86_sem_xchg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t a, b;
	X86_TRY(x86_op_read(cpu, insn, 1, &b));
	if (insn->op[0].kind == X86_O_MEM) {
		X86_TRY(x86_rmw_slow(cpu, insn, x86_ea(cpu, insn), insn->op[0].size, true,
			compute_replace, b, &a));
		return x86_op_write(cpu, insn, 1, a);
	}
	X86_TRY(x86_op_read(cpu, insn, 0, &a));
	X86_TRY(x86_op_write(cpu, insn, 0, b));
	return x86_op_write(cpu, insn, 1, a);
}

X86_INLINE uint64_t compute_add(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	uint64_t r, arith = x86_flags_add(old, arg, size, &r);
	*flags = X86_WITH_FLAGS(*flags, arith);
	return r;
}

enum x86_status x86_sem_xadd(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->op[0].size;
	uint64_t a, b;
	X86_TRY(x86_op_read(cpu, insn, 1, &b));
	if (insn->op[0].kind == X86_O_MEM) {
		X86_TRY(x86_rmw_mem(cpu, insn, x86_ea(cpu, insn), size, insn->prefix & X86_P_LOCK,
			compute_add, b, &a));
		return x86_op_write(cpu, insn, 1, a);
	}
	X86_TRY(x86_op_read(cpu, insn, 0, &a));
	X86_TRY(x86_op_write(cpu, insn, 1, a));
	return x86_op_write(cpu, insn, 0, compute_add(a, b, size, &cpu->s.rflags));
}

/* Memory is written in any case, so that it faults like a write; a register only if they were equal (its
 * upper half stays otherwise). */
enum x86_status x86_sem_cmpxchg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->op[0].size;
	uint64_t accumulator = x86_gpr_read(cpu, X86_RAX, size), value, old = accumulator, r;
	bool done;

	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	if (insn->op[0].kind != X86_O_MEM) {
		X86_TRY(x86_op_read(cpu, insn, 0, &old));
		if (old == accumulator)
			X86_TRY(x86_op_write(cpu, insn, 0, value));
	} else if (insn->prefix & X86_P_LOCK) {
		X86_TRY(x86_cmpxchg(cpu, insn->seg, x86_ea(cpu, insn), size, &old, value, &done));
	} else {
		X86_TRY(x86_load_for_write(cpu, insn->seg, x86_ea(cpu, insn), size, &old));
		X86_TRY(x86_op_write(cpu, insn, 0, old == accumulator ? value : old));
	}
	if (old != accumulator)
		x86_gpr_write(cpu, X86_RAX, size, old);
	x86_set_flags(cpu, x86_flags_sub(accumulator, old, size, &r));
	return X86_OK;
}

static void set_zf(struct x86_cpu *cpu, bool zf)
{
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)X86_ZF) | (zf ? X86_ZF : 0);
}

/* Always atomic: cheaper than telling the cases apart. */
enum x86_status x86_sem_cmpxchg8b(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t expected = (uint32_t)cpu->s.reg[X86_RAX] | cpu->s.reg[X86_RDX] << 32;
	uint64_t desired = (uint32_t)cpu->s.reg[X86_RBX] | cpu->s.reg[X86_RCX] << 32;
	bool done;

	X86_TRY(x86_cmpxchg(cpu, insn->seg, x86_ea(cpu, insn), 8, &expected, desired, &done));
	if (!done) {
		x86_gpr_write(cpu, X86_RAX, 4, expected);
		x86_gpr_write(cpu, X86_RDX, 4, expected >> 32);
	}
	set_zf(cpu, done);
	return X86_OK;
}

enum x86_status x86_sem_cmpxchg16b(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t expected[2] = { cpu->s.reg[X86_RAX], cpu->s.reg[X86_RDX] };
	uint64_t desired[2] = { cpu->s.reg[X86_RBX], cpu->s.reg[X86_RCX] };
	uint64_t offset = x86_ea(cpu, insn);
	gva_t linear;
	bool done;

	X86_TRY(x86_linear(cpu, insn->seg, offset, 16, X86_WRITE, &linear));
	if (linear & 15)
		return x86_gp(cpu, 0);
	X86_TRY(x86_cmpxchg16(cpu, insn->seg, offset, expected, desired, &done));
	if (!done) {
		cpu->s.reg[X86_RAX] = expected[0];
		cpu->s.reg[X86_RDX] = expected[1];
	}
	set_zf(cpu, done);
	return X86_OK;
}
