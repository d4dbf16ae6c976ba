/*
 * MUL IMUL DIV IDIV MULX (SDM 2). After a multiplication SF, ZF, AF and PF are undefined and kept; after
 * a division all arithmetic flags are: CF and OF are kept, AF is set, the others are clear, as on AMD's processors.
 */
#include "isa/x86/sem.h"

typedef unsigned __int128 u128;
typedef __int128 s128;

/* rDX:rAX (AX for bytes) := value. */
static void write_wide(struct x86_cpu *cpu, unsigned size, uint64_t low, uint64_t high)
{
	if (size == 1) {
		x86_gpr_write(cpu, X86_RAX, 2, (low & 0xff) | high << 8);
		return;
	}
	x86_gpr_write(cpu, X86_RAX, size, low);
	x86_gpr_write(cpu, X86_RDX, size, high);
}

static void set_overflow(struct x86_cpu *cpu, bool overflow)
{
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)(X86_CF | X86_OF)) |
			(overflow ? X86_CF | X86_OF : 0);
}

/* What a division leaves. */
static void set_divided(struct x86_cpu *cpu)
{
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)(X86_SF | X86_ZF | X86_PF)) | X86_AF;
}

static int64_t sign_extend(uint64_t value, unsigned size)
{
	unsigned sh = x86_size_shift(size);
	return (int64_t)(value << sh) >> sh;
}

enum x86_status x86_sem_mul(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->op[0].size;
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 0, &value));
	u128 product = (u128)value * x86_gpr_read(cpu, X86_RAX, size);
	uint64_t high = (uint64_t)(product >> 8 * size);
	write_wide(cpu, size, (uint64_t)product, high);
	set_overflow(cpu, high != 0);
	return X86_OK;
}

/* One operand: rDX:rAX := rAX * operand. */
enum x86_status x86_sem_imul1(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->op[0].size;
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 0, &value));
	s128 product = (s128)sign_extend(value, size) * sign_extend(cpu->s.reg[X86_RAX], size);
	write_wide(cpu, size, (uint64_t)product, (uint64_t)(product >> 8 * size));
	set_overflow(cpu, product != sign_extend((uint64_t)product, size));
	return X86_OK;
}

static enum x86_status imul_into(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t a, uint64_t b)
{
	unsigned size = insn->op[0].size;
	s128 product = (s128)sign_extend(a, size) * sign_extend(b, size);
	set_overflow(cpu, product != sign_extend((uint64_t)product, size));
	return x86_op_write(cpu, insn, 0, (uint64_t)product);
}

enum x86_status x86_sem_imul2(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return imul_into(cpu, insn, cpu->s.reg[insn->op[0].reg], value);
}

enum x86_status x86_sem_imul3(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 1, &value));
	return imul_into(cpu, insn, value, insn->imm);
}

/* The dividend, zero-extended. */
static u128 read_wide(const struct x86_cpu *cpu, unsigned size)
{
	if (size == 1)
		return x86_gpr_read(cpu, X86_RAX, 2);
	return (u128)x86_gpr_read(cpu, X86_RDX, size) << 8 * size | x86_gpr_read(cpu, X86_RAX, size);
}

enum x86_status x86_sem_div(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->op[0].size;
	uint64_t divisor, quotient, rest;

	X86_TRY(x86_op_read(cpu, insn, 0, &divisor));
	u128 dividend = read_wide(cpu, size);
	/* The high half must be less than the divisor: also catches division by zero. */
	if ((uint64_t)(dividend >> 8 * size) >= divisor)
		return x86_fault(cpu, X86_DE);
	if (dividend >> 64) {
		/* a quotient that fits is just what the host's division does without faulting */
		__asm__("divq %[divisor]"
			: "=a"(quotient), "=d"(rest)
			: [divisor] "r"(divisor), "0"((uint64_t)dividend), "1"((uint64_t)(dividend >> 64))
			: "cc");
	} else {
		quotient = (uint64_t)dividend / divisor;
		rest = (uint64_t)dividend % divisor;
	}
	write_wide(cpu, size, quotient, rest);
	set_divided(cpu);
	return X86_OK;
}

enum x86_status x86_sem_idiv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->op[0].size;
	uint64_t raw;

	X86_TRY(x86_op_read(cpu, insn, 0, &raw));
	int64_t divisor = sign_extend(raw, size);
	unsigned unused_bits = 128 - 16 * size;
	s128 dividend = (s128)(read_wide(cpu, size) << unused_bits) >> unused_bits;
	if (divisor == 0)
		return x86_fault(cpu, X86_DE);
	/* The one quotient that does not fit 128 bits does not fit 64 either. */
	if (divisor == -1 && dividend == (s128)((u128)1 << 127))
		return x86_fault(cpu, X86_DE);
	s128 quotient, rest;
	if (dividend == (int64_t)dividend && (int64_t)dividend != INT64_MIN) {
		quotient = (int64_t)dividend / divisor;
		rest = (int64_t)dividend % divisor;
	} else {
		quotient = dividend / divisor;
		rest = dividend % divisor;
	}
	if (quotient != sign_extend((uint64_t)quotient, size))
		return x86_fault(cpu, X86_DE);
	write_wide(cpu, size, (uint64_t)quotient, (uint64_t)rest);
	set_divided(cpu);
	return X86_OK;
}

/* Operands: high, low, source; if both destinations are one register it gets the high half. */
enum x86_status x86_sem_mulx(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->op[0].size;
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 2, &value));
	u128 product = (u128)value * x86_gpr_read(cpu, X86_RDX, size);
	X86_TRY(x86_op_write(cpu, insn, 1, (uint64_t)product));
	return x86_op_write(cpu, insn, 0, (uint64_t)(product >> 8 * size));
}
