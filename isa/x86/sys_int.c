/*
 * Software interrupts, and the instructions that decide when an external one is taken: INT n, INT3, INTO,
 * INT1, CLI, STI, HLT (SDM 2; SDM 3A 6.8.1 for the shadow of STI; SDM 3A 20.2.7 and 20.4 for IOPL, PVI).
 */
#include "isa/x86/semantics.h"

#include "isa/x86/descriptor.h"

static enum x86_status software(struct x86_cpu *cpu, enum x86_event_type type, unsigned vector)
{
	struct x86_event event = {.type = (uint8_t)type, .vector = (uint8_t)vector};

	return x86_deliver_software(cpu, &event);
}

enum x86_status x86_int(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return software(cpu, X86_EVENT_SOFT_INT, insn->imm & 0xff);
}

enum x86_status x86_int3(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return software(cpu, X86_EVENT_SOFT_EXC, X86_BP);
}

enum x86_status x86_into(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (!(cpu->s.rflags & X86_OF))
		return X86_OK;
	return software(cpu, X86_EVENT_SOFT_EXC, X86_OF_EXC);
}

enum x86_status x86_int1(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return software(cpu, X86_EVENT_ICEBP, X86_DB);
}

/* Which flag CLI and STI change: IF, VIF (protected-mode virtual interrupts), or none: #GP. */
static uint32_t interrupt_flag(const struct x86_cpu *cpu)
{
	unsigned iopl = (cpu->s.rflags & X86_IOPL) >> X86_IOPL_SHIFT;

	if (cpu->cpl <= iopl)
		return X86_IF;
	if (cpu->cpl == 3 && !cpu->real && (cpu->s.cr4 & X86_CR4_PVI))
		return X86_VIF;
	return 0;
}

enum x86_status x86_cli(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint32_t flag = interrupt_flag(cpu);

	if (!flag)
		return x86_gp(cpu, 0);
	cpu->s.rflags &= ~(uint64_t)flag;
	return X86_OK;
}

enum x86_status x86_sti(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint32_t flag = interrupt_flag(cpu);

	if (!flag || (flag == X86_VIF && (cpu->s.rflags & X86_VIP)))
		return x86_gp(cpu, 0);
	if (flag == X86_IF && !(cpu->s.rflags & X86_IF))
		cpu->s.interrupt_shadow = true;
	cpu->s.rflags |= flag;
	return X86_BOUNDARY;
}

enum x86_status x86_hlt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	cpu->s.activity = X86_HALTED;
	return X86_HLT;
}
