/*
 * Semantics of the instructions on control registers and translations: MOV CR, LMSW, SMSW, CLTS, CLAC, STAC,
 * XGETBV, XSETBV, INVLPG, INVPCID, cache control, MONITOR and MWAIT, hypercalls. SDM 2A-2D under each name.
 *
 * Left out on purpose: caches (INVD and WBINVD do nothing); a wait for MWAIT (it may end at any time, and
 * does so at once); the XINUSE of XGETBV(1) says "all enabled".
 */
#include "isa/x86/access.h"
#include "isa/x86/semantics.h"

#include "base/util.h"

#include <string.h>

/* ---- control registers ---- */

enum x86_status sem_mov_from_cr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value = 0;
	switch (insn->op[1].reg) {
	case 0: value = cpu->s.cr0; break;
	case 2: value = cpu->s.cr2; break;
	case 3: value = cpu->s.cr3; break;
	case 4: value = cpu->s.cr4; break;
	case 8: value = cpu->env->cr8_read(cpu); break;
	default: return x86_ud(cpu);
	}
	x86_gpr_write(cpu, insn->op[0].reg, insn->mode == 64 ? 8 : 4, value);
	return X86_OK;
}

enum x86_status sem_mov_to_cr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const unsigned size = insn->mode == 64 ? 8 : 4;
	return x86_write_cr(cpu, insn->op[0].reg, x86_gpr_read(cpu, insn->op[1].reg, size));
}

enum x86_status sem_smsw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if ((cpu->s.cr4 & X86_CR4_UMIP) && cpu->cpl)
		return x86_gp(cpu, 0);
	return x86_op_write(cpu, insn, 0, cpu->s.cr0);
}

enum x86_status sem_lmsw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const uint64_t bits = X86_CR0_MP | X86_CR0_EM | X86_CR0_TS;
	uint64_t value = 0;

	X86_TRY(x86_op_read(cpu, insn, 0, &value));
	value &= bits | X86_CR0_PE; /* PE can be set, not cleared */
	return x86_write_cr(cpu, 0, (cpu->s.cr0 & ~bits) | value);
}

enum x86_status sem_clts(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	cpu->s.cr0 &= ~(uint64_t)X86_CR0_TS;
	return X86_BOUNDARY;
}

static enum x86_status set_ac(struct x86_cpu *cpu, bool on)
{
	if (cpu->cpl)
		return x86_ud(cpu);
	cpu->s.rflags &= ~(uint64_t)X86_AC;
	if (on)
		cpu->s.rflags |= X86_AC;
	x86_cpu_refresh(cpu);
	return X86_BOUNDARY;
}

enum x86_status sem_clac(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return set_ac(cpu, false);
}

enum x86_status sem_stac(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return set_ac(cpu, true);
}

/* ---- extended control registers ---- */

static void write_edx_eax(struct x86_cpu *cpu, uint64_t value)
{
	cpu->s.reg[X86_RAX] = (uint32_t)value;
	cpu->s.reg[X86_RDX] = value >> 32;
}

enum x86_status sem_xgetbv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const uint32_t index = (uint32_t)cpu->s.reg[X86_RCX];

	if (!(cpu->s.cr4 & X86_CR4_OSXSAVE))
		return x86_ud(cpu);
	if (index > 1 || (index == 1 && !x86_has(&cpu->features, X86_F_XGETBV1)))
		return x86_gp(cpu, 0);
	write_edx_eax(cpu, cpu->s.xcr0);
	return X86_OK;
}

enum x86_status sem_xsetbv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (!(cpu->s.cr4 & X86_CR4_OSXSAVE))
		return x86_ud(cpu);
	if (cpu->cpl || (uint32_t)cpu->s.reg[X86_RCX] != 0)
		return x86_gp(cpu, 0);
	return x86_write_xcr0(cpu, (uint32_t)cpu->s.reg[X86_RAX] | cpu->s.reg[X86_RDX] << 32);
}

/* ---- translations ---- */

enum x86_status sem_invlpg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	gva_t linear = x86_ea(cpu, insn);

	if (insn->mode != 64)
		linear = (uint32_t)(linear + cpu->s.seg[insn->seg].base);
	else if (insn->seg == X86_FS || insn->seg == X86_GS)
		linear += cpu->s.seg[insn->seg].base;
	x86_tlb_flush_page(cpu, linear);
	return X86_BOUNDARY;
}

enum invpcid_type { INVPCID_ADDRESS, INVPCID_CONTEXT, INVPCID_ALL, INVPCID_ALL_LOCAL };

enum x86_status sem_invpcid(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const uint64_t type = x86_gpr_read(cpu, insn->op[0].reg, insn->mode == 64 ? 8 : 4);
	uint64_t descriptor[2] = {0};

	X86_TRY(x86_load_bytes(cpu, insn->seg, x86_ea(cpu, insn), 16, descriptor));
	const uint64_t pcid = descriptor[0];
	const gva_t linear = descriptor[1];
	if (type > INVPCID_ALL_LOCAL || pcid >> 12)
		return x86_gp(cpu, 0);
	if (type <= INVPCID_CONTEXT && pcid && !(cpu->s.cr4 & X86_CR4_PCIDE))
		return x86_gp(cpu, 0);
	if (type == INVPCID_ADDRESS && (gva_t)((int64_t)(linear << 16) >> 16) != linear)
		return x86_gp(cpu, 0);
	switch (type) {
	case INVPCID_ADDRESS: x86_tlb_flush_page_all(cpu, linear); break;
	case INVPCID_CONTEXT: x86_tlb_flush_pcid(cpu, (unsigned)pcid); break;
	case INVPCID_ALL: x86_tlb_flush(cpu); break;
	default: x86_tlb_flush_local_all(cpu); break;
	}
	return X86_BOUNDARY;
}

/* ---- the rest ---- */

/* Cache and pipeline control with nothing to control; privilege was checked. */
enum x86_status sem_ctl_nothing(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return X86_OK;
}

enum x86_status sem_monitor(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t ignored = 0;

	if (cpu->cpl)
		return x86_ud(cpu);
	if ((uint32_t)cpu->s.reg[X86_RCX])
		return x86_gp(cpu, 0);
	return x86_load(cpu, insn->seg == X86_SEG_NONE ? X86_DS : insn->seg,
		cpu->s.reg[X86_RAX] & x86_size_mask(insn->asize), 1, &ignored);
}

enum x86_status sem_mwait(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (cpu->cpl)
		return x86_ud(cpu);
	if ((uint32_t)cpu->s.reg[X86_RCX] & ~1u)
		return x86_gp(cpu, 0);
	return X86_BOUNDARY;
}

enum x86_status sem_vmcall(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (!cpu->env->hypercall)
		return x86_ud(cpu);
	cpu->env->hypercall(cpu);
	return X86_BOUNDARY;
}
