/*
 * Semantics of port I/O: IN, OUT, INS, OUTS and their repetition. SDM 1 chapter 19, SDM 2 under each name.
 *
 * Invariant: everything that can fault is checked before a device sees an access.
 */
#include "isa/x86/access.h"
#include "isa/x86/semantics.h"

#include "base/util.h"

#define REP_BYTES_MAX 4096 /* of one REP INS or OUTS, before events are looked at again */

static enum x86_status port_in(struct x86_cpu *cpu, uint16_t port, unsigned size)
{
	X86_TRY(x86_check_io(cpu, port, size));
	x86_watch_io(cpu, port, size);
	x86_gpr_write(cpu, X86_RAX, size, cpu->env->pio_read(cpu, port, size));
	return X86_BOUNDARY;
}

static enum x86_status port_out(struct x86_cpu *cpu, uint16_t port, unsigned size)
{
	X86_TRY(x86_check_io(cpu, port, size));
	x86_watch_io(cpu, port, size);
	cpu->env->pio_write(cpu, port, size, (uint32_t)x86_gpr_read(cpu, X86_RAX, size));
	return X86_BOUNDARY;
}

enum x86_status sem_in_imm(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return port_in(cpu, (uint8_t)insn->imm, insn->op[0].size);
}

enum x86_status sem_in_dx(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return port_in(cpu, (uint16_t)cpu->s.reg[X86_RDX], insn->op[0].size);
}

enum x86_status sem_out_imm(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return port_out(cpu, (uint8_t)insn->imm, insn->op[1].size);
}

enum x86_status sem_out_dx(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return port_out(cpu, (uint16_t)cpu->s.reg[X86_RDX], insn->op[1].size);
}

/* ---- strings ---- */

static void advance(
	struct x86_cpu *cpu, const struct x86_insn *insn, enum x86_reg reg, unsigned size)
{
	const uint64_t by = cpu->s.rflags & X86_DF ? -(uint64_t)size : size;
	x86_gpr_write(cpu, reg, insn->asize, cpu->s.reg[reg] + by);
}

static enum x86_status ins_once(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const unsigned size = insn->op[0].size;
	const uint16_t port = (uint16_t)cpu->s.reg[X86_RDX];
	const uint64_t offset = x86_gpr_read(cpu, X86_RDI, insn->asize);
	gva_t linear = 0;

	X86_TRY(x86_check_io(cpu, port, size));
	X86_TRY(x86_linear(cpu, X86_ES, offset, size, X86_WRITE, &linear));
	X86_TRY(x86_probe_write(cpu, linear, size, cpu->cpl == 3));
	x86_watch_io(cpu, port, size);
	X86_TRY(x86_store(cpu, X86_ES, offset, size, cpu->env->pio_read(cpu, port, size)));
	advance(cpu, insn, X86_RDI, size);
	return X86_OK;
}

static enum x86_status outs_once(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const unsigned size = insn->op[1].size;
	const uint16_t port = (uint16_t)cpu->s.reg[X86_RDX];
	uint64_t value = 0;

	X86_TRY(x86_check_io(cpu, port, size));
	X86_TRY(x86_load(cpu, insn->seg, x86_gpr_read(cpu, X86_RSI, insn->asize), size, &value));
	x86_watch_io(cpu, port, size);
	cpu->env->pio_write(cpu, port, size, (uint32_t)value);
	advance(cpu, insn, X86_RSI, size);
	return X86_OK;
}

static enum x86_status repeat(
	struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size, x86_semantic *once)
{
	/* In the one-at-a-time path each iteration is a place to trap. */
	unsigned budget = cpu->slow_path ? 1 : REP_BYTES_MAX / size;

	if (!(insn->prefix & (X86_P_REP | X86_P_REPNE))) {
		X86_TRY(once(cpu, insn));
		return X86_BOUNDARY;
	}
	/* The port is checked even if the count is 0. */
	X86_TRY(x86_check_io(cpu, (uint16_t)cpu->s.reg[X86_RDX], size));
	for (;;) {
		const uint64_t count = x86_gpr_read(cpu, X86_RCX, insn->asize);
		if (!count)
			return X86_BOUNDARY;
		if (!budget--)
			return X86_REPEAT;
		X86_TRY(once(cpu, insn));
		x86_gpr_write(cpu, X86_RCX, insn->asize, count - 1);
	}
}

enum x86_status sem_ins(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return repeat(cpu, insn, insn->op[0].size, ins_once);
}

enum x86_status sem_outs(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return repeat(cpu, insn, insn->op[1].size, outs_once);
}
