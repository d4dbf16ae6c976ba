/*
 * Model-specific registers, the time-stamp counter and CPUID. SDM volume 4 (IA-32 architectural MSRs),
 * SDM 3A 12.11 (MTRRs), 12.12 (PAT), 18.17 (TSC), AMD APM 2 appendix A.
 *
 * Three kinds: registers with a rule (the table `kept`), registers that only have to be there (the table
 * `constant`: a value to read, and writes that are dropped), and the few with a meaning of their own. What
 * is none of these goes to the machine through env_ops, and to #GP(0) if it does not know it either.
 *
 * Left out on purpose: machine-check banks (there are none), performance counters, branch records, the
 * effect of memory types.
 */
#include "isa/x86/access.h"
#include "isa/x86/cpuid.h"
#include "isa/x86/msr.h"
#include "isa/x86/semantics.h"

#include "base/util.h"

#include <string.h>

#define EFER_AIBRSE	 BIT(21)
#define SPEC_CTRL_MASK	 0x487ull				/* IBRS, STIBP, SSBD, PSFD, BHI_DIS_S */
#define DEBUGCTL_MASK	 0x3ull					/* LBR, BTF: stored only */
#define MTRRCAP		 (X86_MTRR_VARIABLE | BIT(8) | BIT(10)) /* fixed ranges, write-combining */
#define MTRR_TYPES	 0x73u					/* valid types: 0, 1, 4, 5, 6 */
#define PAT_TYPES	 0xf3u					/* and 7 */
#define UCODE_REVISION	 0xffffffffull /* no erratum is worked around for lack of an update */
#define K7_COUNTERS	 8
#define LASTBRANCH_COUNT 4

static uint32_t model_leaf(const struct x86_cpu *cpu, uint32_t leaf, unsigned reg)
{
	uint32_t regs[4];
	x86_cpuid_query(cpu->cpuid, 0, 0, 0, 0, leaf, 0, regs);
	return regs[reg];
}

/* Linux before 6.3 takes ARCH_CAPABILITIES' IBRS_ALL for a promise of the register, on AMD's too. */
static bool has_spec_ctrl(const struct x86_cpu *cpu)
{
	return (model_leaf(cpu, 7, 3) & (BIT(26) | BIT(29))) ||
	       (model_leaf(cpu, 0x80000008, 1) & BIT(14));
}

/* ---- registers that are stored ---- */

enum msr_rule {
	RULE_ANY,
	RULE_CANONICAL,
	RULE_TSC_AUX, /* 32 bits, and there with RDTSCP or RDPID only */
	RULE_PAT,	 /* each byte a memory type of the PAT */
	RULE_MTRR_FIXED, /* each byte a memory type of the MTRRs */
	RULE_MTRR_DEFAULT,
	RULE_SPEC_CTRL,
	RULE_DEBUGCTL,
	RULE_SEGMENT, /* a segment's base: canonical, and something derived from it */
};

#define KEPT(index, field, rule)                               \
	{                                                      \
		index, rule, offsetof(struct x86_state, field) \
	}

static const struct kept_msr {
	uint32_t index;
	uint16_t rule;
	uint16_t offset;
} kept[] = {
	KEPT(X86_MSR_SPEC_CTRL, msr.spec_ctrl, RULE_SPEC_CTRL),
	KEPT(X86_MSR_SYSENTER_CS, msr.sysenter_cs, RULE_ANY),
	KEPT(X86_MSR_SYSENTER_ESP, msr.sysenter_esp, RULE_CANONICAL),
	KEPT(X86_MSR_SYSENTER_EIP, msr.sysenter_eip, RULE_CANONICAL),
	KEPT(X86_MSR_MCG_STATUS, msr.mcg_status, RULE_ANY),
	KEPT(X86_MSR_MCG_CTL, msr.mcg_ctl, RULE_ANY),
	KEPT(X86_MSR_MISC_ENABLE, msr.misc_enable, RULE_ANY),
	KEPT(X86_MSR_DEBUGCTL, msr.debugctl, RULE_DEBUGCTL),
	KEPT(X86_MSR_MTRR_FIX64K, msr.mtrr_fixed[0], RULE_MTRR_FIXED),
	KEPT(X86_MSR_MTRR_FIX16K, msr.mtrr_fixed[1], RULE_MTRR_FIXED),
	KEPT(X86_MSR_MTRR_FIX16K + 1, msr.mtrr_fixed[2], RULE_MTRR_FIXED),
	KEPT(X86_MSR_MTRR_FIX4K, msr.mtrr_fixed[3], RULE_MTRR_FIXED),
	KEPT(X86_MSR_MTRR_FIX4K + 1, msr.mtrr_fixed[4], RULE_MTRR_FIXED),
	KEPT(X86_MSR_MTRR_FIX4K + 2, msr.mtrr_fixed[5], RULE_MTRR_FIXED),
	KEPT(X86_MSR_MTRR_FIX4K + 3, msr.mtrr_fixed[6], RULE_MTRR_FIXED),
	KEPT(X86_MSR_MTRR_FIX4K + 4, msr.mtrr_fixed[7], RULE_MTRR_FIXED),
	KEPT(X86_MSR_MTRR_FIX4K + 5, msr.mtrr_fixed[8], RULE_MTRR_FIXED),
	KEPT(X86_MSR_MTRR_FIX4K + 6, msr.mtrr_fixed[9], RULE_MTRR_FIXED),
	KEPT(X86_MSR_MTRR_FIX4K + 7, msr.mtrr_fixed[10], RULE_MTRR_FIXED),
	KEPT(X86_MSR_PAT, msr.pat, RULE_PAT),
	KEPT(X86_MSR_MTRR_DEF_TYPE, msr.mtrr_def_type, RULE_MTRR_DEFAULT),
	KEPT(X86_MSR_STAR, msr.star, RULE_ANY),
	KEPT(X86_MSR_LSTAR, msr.lstar, RULE_CANONICAL),
	KEPT(X86_MSR_CSTAR, msr.cstar, RULE_CANONICAL),
	KEPT(X86_MSR_SFMASK, msr.sfmask, RULE_ANY),
	KEPT(X86_MSR_FS_BASE, seg[X86_FS].base, RULE_SEGMENT),
	KEPT(X86_MSR_GS_BASE, seg[X86_GS].base, RULE_SEGMENT),
	KEPT(X86_MSR_KERNEL_GS_BASE, msr.kernel_gs_base, RULE_CANONICAL),
	KEPT(X86_MSR_TSC_AUX, msr.tsc_aux, RULE_TSC_AUX),
};

static bool kept_exists(const struct x86_cpu *cpu, const struct kept_msr *msr)
{
	if (msr->rule == RULE_SPEC_CTRL)
		return has_spec_ctrl(cpu);
	return msr->rule != RULE_TSC_AUX || x86_has(&cpu->features, X86_F_RDTSCP) ||
	       x86_has(&cpu->features, X86_F_RDPID);
}

static const struct kept_msr *kept_find(const struct x86_cpu *cpu, uint32_t index)
{
	for (unsigned i = 0; i < ARRAY_SIZE(kept); i++)
		if (kept[i].index == index)
			return kept_exists(cpu, &kept[i]) ? &kept[i] : NULL;
	return NULL;
}

static uint64_t *kept_value(struct x86_cpu *cpu, const struct kept_msr *msr)
{
	return (uint64_t *)(void *)((char *)&cpu->s + msr->offset);
}

/* Is each of the eight bytes a type whose bit is set in `types`? */
static bool types_valid(uint64_t value, unsigned types)
{
	for (unsigned i = 0; i < 8; i++) {
		uint8_t type = (uint8_t)(value >> 8 * i);
		if (type > 7 || !(types >> type & 1))
			return false;
	}
	return true;
}

static bool mtrr_type_valid(uint64_t value)
{
	const unsigned type = value & 0xff;
	return type < 7 && (MTRR_TYPES >> type & 1);
}

static bool kept_accepts(const struct x86_cpu *cpu, const struct kept_msr *msr, uint64_t value)
{
	switch ((enum msr_rule)msr->rule) {
	case RULE_CANONICAL:
	case RULE_SEGMENT: return x86_canonical(cpu, value);
	case RULE_TSC_AUX: return !(value >> 32);
	case RULE_PAT: return types_valid(value, PAT_TYPES);
	case RULE_MTRR_FIXED: return types_valid(value, MTRR_TYPES);
	case RULE_MTRR_DEFAULT: return mtrr_type_valid(value) && !(value & ~0xcffull);
	case RULE_SPEC_CTRL: return !(value & ~SPEC_CTRL_MASK);
	case RULE_DEBUGCTL: return !(value & ~DEBUGCTL_MASK);
	default: return true;
	}
}

static enum x86_status kept_write(struct x86_cpu *cpu, const struct kept_msr *msr, uint64_t value)
{
	if (!kept_accepts(cpu, msr, value))
		return x86_gp(cpu, 0);
	*kept_value(cpu, msr) = value;
	if (msr->rule == RULE_SEGMENT)
		x86_cpu_refresh(cpu);
	return X86_OK;
}

/* ---- registers that are there, and no more ---- */

enum constant_vendor { ON_ANY, ON_AMD };

static const struct constant_msr {
	uint32_t index;
	uint32_t vendor; /* enum constant_vendor */
	uint64_t value;
} constant[] = {
	{X86_MSR_PLATFORM_ID, ON_ANY, 0},
	{X86_MSR_EBL_CR_POWERON, ON_ANY, 0},
	{X86_MSR_UCODE_WRITE, ON_ANY, 0},
	{X86_MSR_UCODE_REV, ON_ANY, UCODE_REVISION << 32 | UCODE_REVISION},
	{X86_MSR_MISC_FEATURES_ENABLES, ON_ANY, 0},
	{X86_MSR_PERF_STATUS, ON_ANY, 0},
	{X86_MSR_PERF_CTL, ON_ANY, 0},
	{X86_MSR_AMD_SYSCFG, ON_AMD, 0},
	{X86_MSR_AMD_HWCR, ON_AMD, BIT(24)}, /* the TSC counts at the P0 frequency */
	{X86_MSR_AMD_TOP_MEM, ON_AMD, 0},
	{X86_MSR_AMD_TOP_MEM2, ON_AMD, 0},
	{X86_MSR_AMD_NB_CFG, ON_AMD, 0},
	{X86_MSR_AMD_PATCH_LOADER, ON_AMD, 0},
	{X86_MSR_AMD_INT_PENDING, ON_AMD, 0},
	{X86_MSR_AMD_MMIO_CONF_BASE, ON_AMD, 0},
	{X86_MSR_AMD_PSTATE_LIMIT, ON_AMD, 0},
	{X86_MSR_AMD_PSTATE_CTL, ON_AMD, 0},
	{X86_MSR_AMD_PSTATE_STATUS, ON_AMD, 0},
	{X86_MSR_AMD_PSTATE0, ON_AMD, 0},
	{X86_MSR_AMD_VM_CR, ON_AMD, BIT(4) | BIT(3)}, /* SVM disabled, and locked so */
	{X86_MSR_AMD_OSVW_LENGTH, ON_AMD, 0},
	{X86_MSR_AMD_OSVW_STATUS, ON_AMD, 0},
	{X86_MSR_AMD_CPUID_7, ON_AMD, 0},
	{X86_MSR_AMD_CPUID_1, ON_AMD, 0},
	{X86_MSR_AMD_CPUID_EXT, ON_AMD, 0},
	{X86_MSR_AMD_LS_CFG, ON_AMD, 0},
	{X86_MSR_AMD_IC_CFG, ON_AMD, 0},
	{X86_MSR_AMD_DC_CFG, ON_AMD, 0},
	{X86_MSR_AMD_BU_CFG, ON_AMD, 0},
	{X86_MSR_AMD_FP_CFG, ON_AMD, 0},
	{X86_MSR_AMD_DE_CFG, ON_AMD, BIT(1)}, /* LFENCE is serializing */
	{X86_MSR_AMD_BU_CFG2, ON_AMD, 0},
	{X86_MSR_AMD_CU_CFG3, ON_AMD, 0},
	{X86_MSR_AMD_EX_CFG, ON_AMD, 0},
	{X86_MSR_AMD_LS_CFG2, ON_AMD, 0},
};

static bool is_amd(const struct x86_cpu *cpu)
{
	return model_leaf(cpu, 0, 2) == 0x444d4163; /* "cAMD" of AuthenticAMD */
}

static bool constant_find(const struct x86_cpu *cpu, uint32_t index, uint64_t *ret_value)
{
	*ret_value = 0;
	if (index - X86_MSR_LASTBRANCH_FROM < LASTBRANCH_COUNT)
		return true;
	if (index - X86_MSR_K7_EVNTSEL0 < K7_COUNTERS)
		return is_amd(cpu);
	for (unsigned i = 0; i < ARRAY_SIZE(constant); i++) {
		if (constant[i].index != index)
			continue;
		*ret_value = constant[i].value;
		return constant[i].vendor == ON_ANY || is_amd(cpu);
	}
	return false;
}

/* ---- registers with a meaning ---- */

/* A write of the TSC shows in TSC_ADJUST, and the other way round (SDM 3B 17.17.3). */
static void tsc_adjust(struct x86_cpu *cpu, uint64_t delta)
{
	cpu->s.msr.tsc_adjust += delta;
	cpu->env->adjust_tsc(cpu, delta);
}

static uint64_t efer_allowed(const struct x86_cpu *cpu)
{
	uint64_t allowed = 0;

	if (x86_has(&cpu->features, X86_F_SYSCALL))
		allowed |= X86_EFER_SCE;
	if (x86_has(&cpu->features, X86_F_LM))
		allowed |= X86_EFER_LME | X86_EFER_LMA;
	if (x86_has(&cpu->features, X86_F_NX))
		allowed |= X86_EFER_NXE;
	if (model_leaf(cpu, 0x80000021, 0) & BIT(8))
		allowed |= EFER_AIBRSE;
	return allowed;
}

static enum x86_status efer_write(struct x86_cpu *cpu, uint64_t value)
{
	const uint64_t old = cpu->s.msr.efer;

	if (value & ~efer_allowed(cpu))
		return x86_gp(cpu, 0);
	if (((value ^ old) & X86_EFER_LME) && (cpu->s.cr0 & X86_CR0_PG))
		return x86_gp(cpu, 0);
	/* LMA follows LME and CR0.PG; what is written to it does not matter. */
	cpu->s.msr.efer = (value & ~(uint64_t)X86_EFER_LMA) | (old & X86_EFER_LMA);
	if ((value ^ old) & X86_EFER_NXE)
		x86_tlb_flush(cpu);
	x86_cpu_refresh(cpu);
	return X86_OK;
}

/* The variable MTRR that an index names, or NULL. */
static uint64_t *mtrr_variable(struct x86_cpu *cpu, uint32_t index)
{
	const uint32_t i = index - X86_MSR_MTRR_BASE0;
	if (i >= 2 * X86_MTRR_VARIABLE)
		return NULL;
	return i & 1 ? &cpu->s.msr.mtrr_mask[i / 2] : &cpu->s.msr.mtrr_base[i / 2];
}

static bool mtrr_variable_accepts(const struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
	if (value >> cpu->phys_bits)
		return false;
	if (index & 1)
		return !(value & BIT_MASK(10, 0));
	return mtrr_type_valid(value) && !(value & BIT_MASK(11, 8));
}

enum x86_status x86_read_msr(struct x86_cpu *cpu, uint32_t index, uint64_t *ret_value)
{
	const struct kept_msr *msr = kept_find(cpu, index);
	const uint64_t *mtrr = mtrr_variable(cpu, index);

	*ret_value = 0;
	if (msr || mtrr) {
		*ret_value = msr ? *kept_value(cpu, msr) : *mtrr;
		return X86_OK;
	}
	switch (index) {
	case X86_MSR_TSC: *ret_value = cpu->env->tsc(cpu); return X86_OK;
	case X86_MSR_TSC_ADJUST: *ret_value = cpu->s.msr.tsc_adjust; return X86_OK;
	case X86_MSR_EFER: *ret_value = cpu->s.msr.efer; return X86_OK;
	case X86_MSR_FEATURE_CONTROL: *ret_value = 1; return X86_OK; /* locked, no VMX */
	case X86_MSR_MTRRCAP: *ret_value = MTRRCAP; return X86_OK;
	case X86_MSR_MCG_CAP: return X86_OK;
	case X86_MSR_PLATFORM_INFO:
		*ret_value = (cpu->cpuid->tsc_hz / 100000000 & 0xff) << 8;
		return X86_OK;
	case X86_MSR_ARCH_CAPABILITIES:
		if (!(model_leaf(cpu, 7, 3) & BIT(29)))
			return x86_gp(cpu, 0);
		*ret_value = x86_cpuid_arch_capabilities(cpu->cpuid);
		return X86_OK;
	case X86_MSR_XSS:
		if (!x86_has(&cpu->features, X86_F_XSAVES))
			return x86_gp(cpu, 0);
		*ret_value = cpu->s.msr.xss;
		return X86_OK;
	default:
		if (constant_find(cpu, index, ret_value) ||
			cpu->env->msr_read(cpu, index, ret_value))
			return X86_OK;
		return x86_gp(cpu, 0);
	}
}

enum x86_status x86_write_msr(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
	const struct kept_msr *msr = kept_find(cpu, index);
	uint64_t *mtrr = mtrr_variable(cpu, index);
	uint64_t ignored;

	if (msr)
		return kept_write(cpu, msr, value);
	if (mtrr) {
		if (!mtrr_variable_accepts(cpu, index, value))
			return x86_gp(cpu, 0);
		*mtrr = value;
		return X86_OK;
	}
	switch (index) {
	case X86_MSR_TSC: tsc_adjust(cpu, value - cpu->env->tsc(cpu)); return X86_OK;
	case X86_MSR_TSC_ADJUST: tsc_adjust(cpu, value - cpu->s.msr.tsc_adjust); return X86_OK;
	case X86_MSR_EFER: return efer_write(cpu, value);
	case X86_MSR_PRED_CMD:
	case X86_MSR_FLUSH_CMD:
		return (value & ~1ull) || !has_spec_ctrl(cpu) ? x86_gp(cpu, 0) : X86_OK;
	case X86_MSR_XSS:
		return value || !x86_has(&cpu->features, X86_F_XSAVES) ? x86_gp(cpu, 0) : X86_OK;
	case X86_MSR_FEATURE_CONTROL:
	case X86_MSR_MTRRCAP:
	case X86_MSR_MCG_CAP:
	case X86_MSR_PLATFORM_INFO:
	case X86_MSR_ARCH_CAPABILITIES: return x86_gp(cpu, 0);
	default:
		if (constant_find(cpu, index, &ignored) || cpu->env->msr_write(cpu, index, value))
			return X86_OK;
		return x86_gp(cpu, 0);
	}
}

/* ---- instructions ---- */

static void write_edx_eax(struct x86_cpu *cpu, uint64_t value)
{
	cpu->s.reg[X86_RAX] = (uint32_t)value;
	cpu->s.reg[X86_RDX] = value >> 32;
}

enum x86_status sem_rdmsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value = 0;

	X86_TRY(x86_read_msr(cpu, (uint32_t)cpu->s.reg[X86_RCX], &value));
	write_edx_eax(cpu, value);
	return X86_OK;
}

enum x86_status sem_wrmsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const uint64_t value = (uint32_t)cpu->s.reg[X86_RAX] | cpu->s.reg[X86_RDX] << 32;

	X86_TRY(x86_write_msr(cpu, (uint32_t)cpu->s.reg[X86_RCX], value));
	return X86_BOUNDARY;
}

static bool tsc_denied(const struct x86_cpu *cpu)
{
	return (cpu->s.cr4 & X86_CR4_TSD) && cpu->cpl;
}

enum x86_status sem_rdtsc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (tsc_denied(cpu))
		return x86_gp(cpu, 0);
	write_edx_eax(cpu, cpu->env->tsc(cpu));
	return X86_OK;
}

enum x86_status sem_rdtscp(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (tsc_denied(cpu))
		return x86_gp(cpu, 0);
	write_edx_eax(cpu, cpu->env->tsc(cpu));
	cpu->s.reg[X86_RCX] = (uint32_t)cpu->s.msr.tsc_aux;
	return X86_OK;
}

/* There are no performance counters. */
enum x86_status sem_rdpmc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return x86_gp(cpu, 0);
}

enum x86_status sem_cpuid(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint32_t regs[4];

	x86_cpuid_query(cpu->cpuid, cpu->apic_id, cpu->s.cr4, cpu->s.xcr0, cpu->s.msr.xss,
		(uint32_t)cpu->s.reg[X86_RAX], (uint32_t)cpu->s.reg[X86_RCX], regs);
	cpu->s.reg[X86_RAX] = regs[0];
	cpu->s.reg[X86_RBX] = regs[1];
	cpu->s.reg[X86_RCX] = regs[2];
	cpu->s.reg[X86_RDX] = regs[3];
	return X86_OK;
}
