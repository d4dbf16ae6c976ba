/*
 * Integer arithmetic and logic: ADD OR ADC SBB AND SUB XOR CMP TEST INC DEC NEG NOT ADCX ADOX (SDM 2).
 * AF is undefined after the logical instructions; it is cleared, as processors do.
 */
#include "isa/x86/sem.h"

X86_INLINE uint64_t compute_add(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	uint64_t r, arith = x86_flags_add(old, arg, size, &r);
	*flags = X86_WITH_FLAGS(*flags, arith);
	return r;
}

X86_INLINE uint64_t compute_adc(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	uint64_t r, arith = x86_flags_adc(old, arg, *flags & X86_CF, size, &r);
	*flags = X86_WITH_FLAGS(*flags, arith);
	return r;
}

X86_INLINE uint64_t compute_sub(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	uint64_t r, arith = x86_flags_sub(old, arg, size, &r);
	*flags = X86_WITH_FLAGS(*flags, arith);
	return r;
}

X86_INLINE uint64_t compute_sbb(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	uint64_t r, arith = x86_flags_sbb(old, arg, *flags & X86_CF, size, &r);
	*flags = X86_WITH_FLAGS(*flags, arith);
	return r;
}

X86_INLINE uint64_t compute_or(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	*flags = X86_WITH_FLAGS(*flags, x86_flags_logic(old | arg, size));
	return old | arg;
}

X86_INLINE uint64_t compute_and(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	*flags = X86_WITH_FLAGS(*flags, x86_flags_logic(old & arg, size));
	return old & arg;
}

X86_INLINE uint64_t compute_xor(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	*flags = X86_WITH_FLAGS(*flags, x86_flags_logic(old ^ arg, size));
	return old ^ arg;
}

/* INC and DEC keep CF. */
X86_INLINE uint64_t compute_inc(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	uint64_t r, arith = x86_flags_add(old, 1, size, &r);
	*flags = X86_WITH_FLAGS(*flags, (arith & ~(uint64_t)X86_CF) | (*flags & X86_CF));
	return r;
}

X86_INLINE uint64_t compute_dec(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	uint64_t r, arith = x86_flags_sub(old, 1, size, &r);
	*flags = X86_WITH_FLAGS(*flags, (arith & ~(uint64_t)X86_CF) | (*flags & X86_CF));
	return r;
}

X86_INLINE uint64_t compute_neg(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	uint64_t r, arith = x86_flags_sub(0, old, size, &r);
	*flags = X86_WITH_FLAGS(*flags, arith);
	return r;
}

X86_INLINE uint64_t compute_not(uint64_t old, uint64_t arg, unsigned size, uint64_t *flags)
{
	return ~old;
}

/* Register forms by themselves: without calls they need no stack frame. */
#define BINARY(name)                                                                               \
	static __attribute__((noinline)) enum x86_status name##_other(struct x86_cpu *cpu,         \
		const struct x86_insn *insn)                                                       \
	{                                                                                          \
		uint64_t arg;                                                                      \
		X86_TRY(x86_op_read(cpu, insn, 1, &arg));                                          \
		return x86_rmw(cpu, insn, compute_##name, arg);                                    \
	}                                                                                          \
	enum x86_status x86_sem_##name(struct x86_cpu *cpu, const struct x86_insn *insn)           \
	{                                                                                          \
		const struct x86_operand *op = &insn->op[0];                                       \
		if (unlikely(!x86_simple_operands(insn)))                                          \
			return name##_other(cpu, insn);                                            \
		uint64_t value = compute_##name(cpu->s.reg[op->reg], x86_simple_arg(cpu, insn),    \
			op->size, &cpu->s.rflags);                                                 \
		x86_gpr_write(cpu, op->reg, op->size, value);                                      \
		return X86_OK;                                                                     \
	}
#define UNARY(name)                                                                                \
	static __attribute__((noinline)) enum x86_status name##_other(struct x86_cpu *cpu,         \
		const struct x86_insn *insn)                                                       \
	{                                                                                          \
		return x86_rmw(cpu, insn, compute_##name, 0);                                      \
	}                                                                                          \
	enum x86_status x86_sem_##name(struct x86_cpu *cpu, const struct x86_insn *insn)           \
	{                                                                                          \
		const struct x86_operand *op = &insn->op[0];                                       \
		if (unlikely(op->kind != X86_O_GPR))                                               \
			return name##_other(cpu, insn);                                            \
		uint64_t value = compute_##name(cpu->s.reg[op->reg], 0, op->size, &cpu->s.rflags); \
		x86_gpr_write(cpu, op->reg, op->size, value);                                      \
		return X86_OK;                                                                     \
	}

BINARY(add)
BINARY(adc)
BINARY(sub)
BINARY(sbb)
BINARY(or)
BINARY(and)
BINARY(xor)
UNARY(inc)
UNARY(dec)
UNARY(neg)
UNARY(not)

static __attribute__((noinline)) enum x86_status cmp_other(struct x86_cpu *cpu,
	const struct x86_insn *insn)
{
	uint64_t a, b, r;
	X86_TRY(x86_op_read(cpu, insn, 0, &a));
	X86_TRY(x86_op_read(cpu, insn, 1, &b));
	x86_set_flags(cpu, x86_flags_sub(a, b, insn->op[0].size, &r));
	return X86_OK;
}

enum x86_status x86_sem_cmp(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t r;
	if (unlikely(!x86_simple_operands(insn)))
		return cmp_other(cpu, insn);
	x86_set_flags(cpu, x86_flags_sub(cpu->s.reg[insn->op[0].reg], x86_simple_arg(cpu, insn),
				   insn->op[0].size, &r));
	return X86_OK;
}

static __attribute__((noinline)) enum x86_status test_other(struct x86_cpu *cpu,
	const struct x86_insn *insn)
{
	uint64_t a, b;
	X86_TRY(x86_op_read(cpu, insn, 0, &a));
	X86_TRY(x86_op_read(cpu, insn, 1, &b));
	x86_set_flags(cpu, x86_flags_logic(a & b, insn->op[0].size));
	return X86_OK;
}

enum x86_status x86_sem_test(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (unlikely(!x86_simple_operands(insn)))
		return test_other(cpu, insn);
	x86_set_flags(cpu, x86_flags_logic(cpu->s.reg[insn->op[0].reg] & x86_simple_arg(cpu, insn),
				   insn->op[0].size));
	return X86_OK;
}

/* ADCX and ADOX: an addition whose only flag is CF, or OF used as one. */
static enum x86_status add_through(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t flag)
{
	uint64_t a, b, r, flags;
	X86_TRY(x86_op_read(cpu, insn, 0, &a));
	X86_TRY(x86_op_read(cpu, insn, 1, &b));
	flags = x86_flags_adc(a, b, (cpu->s.rflags & flag) != 0, insn->op[0].size, &r);
	cpu->s.rflags = (cpu->s.rflags & ~flag) | (flags & X86_CF ? flag : 0);
	return x86_op_write(cpu, insn, 0, r);
}

enum x86_status x86_sem_adcx(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return add_through(cpu, insn, X86_CF);
}

enum x86_status x86_sem_adox(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return add_through(cpu, insn, X86_OF);
}
