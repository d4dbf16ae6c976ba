/*
 * Fast system calls: SYSCALL, SYSRET (AMD APM 3, SDM 2), SYSENTER, SYSEXIT (SDM 2).
 *
 * The vendors differ, and the CPUID vendor of the guest's processor decides, as system software does:
 *  - Intel: SYSCALL and SYSRET exist in 64-bit mode only; SYSENTER and SYSEXIT in every protected mode.
 *    SYSRET to a non-canonical RCX is #GP(0) with privilege 0.
 *  - AMD: SYSCALL and SYSRET exist in every protected mode; SYSENTER and SYSEXIT not in long mode. SYSRET
 *    does not look at RCX: the fetch faults, with privilege 3.
 * SYSRET loads SS's hidden part as Intel does; AMD's keeps the old one, which system software
 * must be able to do without.
 */
#include "isa/x86/semantics.h"

#include "base/util.h"
#include "isa/x86/cpuid.h"
#include "isa/x86/descriptor.h"

static bool vendor_amd(const struct x86_cpu *cpu)
{
	const struct x86_cpuid_model *model = cpu->cpuid;

	for (unsigned i = 0; model && i < model->count; i++)
		if (model->leaf[i].leaf == 0)
			return model->leaf[i].ebx == 0x68747541 || /* "Auth" */
			       model->leaf[i].ebx == 0x6f677948;   /* "Hygo" */
	return false;
}

/* CS and SS of a fast transfer: nothing is read from the GDT. */
static void load_flat(
	struct x86_cpu *cpu, uint16_t cs, uint16_t ss, unsigned cpl, uint16_t code_flags)
{
	cpu->s.seg[X86_CS] = x86_segment_flat((cs & 0xfffc) | (uint16_t)cpl, true, cpl, code_flags);
	cpu->s.seg[X86_SS] =
		x86_segment_flat((ss & 0xfffc) | (uint16_t)cpl, false, cpl, X86_SEG_DB);
}

static bool syscall_exists(const struct x86_cpu *cpu)
{
	return (cpu->s.msr.efer & X86_EFER_SCE) && (cpu->s.cr0 & X86_CR0_PE) &&
	       !(cpu->s.rflags & X86_VM) && (cpu->mode == 64 || vendor_amd(cpu));
}

enum x86_status x86_syscall(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const struct x86_msrs *msr = &cpu->s.msr;
	uint16_t cs = (uint16_t)(msr->star >> 32);
	uint64_t *reg = cpu->s.reg;

	if (!syscall_exists(cpu))
		return x86_ud(cpu);
	reg[X86_RCX] = reg[X86_RIP];
	if (cpu->long_mode) {
		reg[X86_R11] = cpu->s.rflags & ~(uint64_t)X86_RF;
		reg[X86_RIP] = cpu->mode == 64 ? msr->lstar : msr->cstar;
		cpu->s.rflags &= ~(msr->sfmask & 0xffffffff);
		load_flat(cpu, cs, cs + 8, 0, X86_SEG_L);
	} else {
		reg[X86_RIP] = (uint32_t)msr->star;
		cpu->s.rflags &= ~(uint64_t)(X86_IF | X86_VM);
		load_flat(cpu, cs, cs + 8, 0, X86_SEG_DB);
	}
	cpu->s.seg[X86_SS].selector = cs + 8; /* low bits and all; CS's are masked */
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)X86_RF) | X86_FLAGS_FIXED;
	x86_cpu_refresh(cpu);
	return X86_BOUNDARY;
}

/* Flags that SYSRET takes from R11 (SDM 2): all defined ones but RF and VM. */
#define SYSRET_FLAGS 0x3c7fd7ull
#define DR6_BS	     BIT(14)

enum x86_status x86_sysret(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint16_t base = (uint16_t)(cpu->s.msr.star >> 48);
	uint64_t rip = cpu->s.reg[X86_RCX];

	if (!syscall_exists(cpu))
		return x86_ud(cpu);
	if (cpu->cpl)
		return x86_gp(cpu, 0);
	if (insn->osize == 8) {
		if (!x86_canonical(cpu, rip) && !vendor_amd(cpu))
			return x86_gp(cpu, 0);
		load_flat(cpu, base + 16, base + 8, 3, X86_SEG_L);
	} else {
		rip = (uint32_t)rip;
		load_flat(cpu, base, base + 8, 3, X86_SEG_DB);
	}
	cpu->s.reg[X86_RIP] = rip;
	if (cpu->long_mode)
		cpu->s.rflags = (cpu->s.reg[X86_R11] & SYSRET_FLAGS) | X86_FLAGS_FIXED;
	else
		cpu->s.rflags |= X86_IF;
	x86_cpu_refresh(cpu);
	if (!(cpu->s.rflags & X86_TF))
		return X86_BOUNDARY;
	/* Unlike IRET and POPF it is followed by the trap at once. */
	x86_fault(cpu, X86_DB);
	cpu->fault.dr6 = DR6_BS;
	return x86_deliver_fault(cpu);
}

static bool sysenter_exists(const struct x86_cpu *cpu)
{
	return !cpu->long_mode || !vendor_amd(cpu);
}

enum x86_status x86_sysenter(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const struct x86_msrs *msr = &cpu->s.msr;
	uint16_t cs = (uint16_t)msr->sysenter_cs;
	uint64_t mask = cpu->long_mode ? ~0ull : 0xffffffffull;

	if (!sysenter_exists(cpu))
		return x86_ud(cpu);
	if (!(cpu->s.cr0 & X86_CR0_PE) || !(cs & 0xfffc))
		return x86_gp(cpu, 0);
	cpu->s.rflags &= ~(uint64_t)(X86_VM | X86_IF | X86_RF);
	cpu->s.reg[X86_RSP] = msr->sysenter_esp & mask;
	cpu->s.reg[X86_RIP] = msr->sysenter_eip & mask;
	load_flat(cpu, cs, (cs & 0xfffc) + 8, 0, cpu->long_mode ? X86_SEG_L : X86_SEG_DB);
	x86_cpu_refresh(cpu);
	return X86_BOUNDARY;
}

enum x86_status x86_sysexit(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint16_t cs = (uint16_t)cpu->s.msr.sysenter_cs & 0xfffc;
	uint64_t rip = cpu->s.reg[X86_RDX], rsp = cpu->s.reg[X86_RCX];
	bool wide = insn->osize == 8;

	if (!sysenter_exists(cpu))
		return x86_ud(cpu);
	if (!(cpu->s.cr0 & X86_CR0_PE) || !cs)
		return x86_gp(cpu, 0);
	if (wide && (!x86_canonical(cpu, rip) || !x86_canonical(cpu, rsp)))
		return x86_gp(cpu, 0);
	cpu->s.reg[X86_RIP] = wide ? rip : (uint32_t)rip;
	cpu->s.reg[X86_RSP] = wide ? rsp : (uint32_t)rsp;
	if (wide)
		load_flat(cpu, cs + 32, cs + 40, 3, X86_SEG_L);
	else
		load_flat(cpu, cs + 16, cs + 24, 3, X86_SEG_DB);
	x86_cpu_refresh(cpu);
	return X86_BOUNDARY;
}
