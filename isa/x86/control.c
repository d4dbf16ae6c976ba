/*
 * Writes to control registers, with the checks and side effects they have: SDM 3A 2.5 (control
 * registers), 4.1.2 / 5.1.2 (paging-mode enabling), 10.8.5 (IA-32e mode), 13.3 (XCR0), and SDM 1 19.5 (I/O
 * permission).
 *
 * Invariant: a write that faults has changed nothing. Every write that may change a translation has
 * flushed the TLB of it.
 *
 * Left out on purpose: CR4.VME, PVI, LA57, CET, VMXE (reserved here), and cache disabling.
 */
#include "isa/x86/access.h"
#include "isa/x86/cpuid.h"

#include "base/util.h"

#define CR0_DEFINED                                                                    \
	(X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_NE | X86_CR0_WP | \
		X86_CR0_AM | X86_CR0_NW | X86_CR0_CD | X86_CR0_PG)
#define CR3_NOFLUSH BIT(63)
#define CR3_PCID    BIT_MASK(11, 0)

static bool pae_tables(uint64_t cr0, uint64_t cr4, bool long_mode)
{
	return (cr0 & X86_CR0_PG) && (cr4 & X86_CR4_PAE) && !long_mode;
}

/* ---- CR0 ---- */

static bool cr0_consistent(uint64_t value)
{
	if (value >> 32)
		return false;
	if ((value & X86_CR0_NW) && !(value & X86_CR0_CD))
		return false;
	return !(value & X86_CR0_PG) || (value & X86_CR0_PE);
}

/* May paging be switched as this write would? */
static bool paging_switch_allowed(const struct x86_cpu *cpu, bool on)
{
	const bool code64 = cpu->s.seg[X86_CS].attr & X86_SEG_L;

	if (!on)
		return cpu->mode != 64 && !(cpu->s.cr4 & X86_CR4_PCIDE);
	if (!(cpu->s.msr.efer & X86_EFER_LME))
		return true;
	return (cpu->s.cr4 & X86_CR4_PAE) && !code64;
}

static enum x86_status write_cr0(struct x86_cpu *cpu, uint64_t value)
{
	const uint64_t old = cpu->s.cr0;

	if (!cr0_consistent(value))
		return x86_gp(cpu, 0);
	value = (value & CR0_DEFINED) | X86_CR0_ET;
	const uint64_t changed = value ^ old;
	const bool on = value & X86_CR0_PG;
	if ((changed & X86_CR0_PG) && !paging_switch_allowed(cpu, on))
		return x86_gp(cpu, 0);
	const bool lma = on && (cpu->s.msr.efer & X86_EFER_LME);
	if ((changed & (X86_CR0_PG | X86_CR0_CD | X86_CR0_NW)) &&
		pae_tables(value, cpu->s.cr4, lma) && !x86_load_pdptes(cpu, cpu->s.cr3))
		return x86_gp(cpu, 0);

	cpu->s.cr0 = value;
	cpu->s.msr.efer &= ~(uint64_t)X86_EFER_LMA;
	if (lma)
		cpu->s.msr.efer |= X86_EFER_LMA;
	if (changed & (X86_CR0_PG | X86_CR0_WP | X86_CR0_PE))
		x86_tlb_flush(cpu);
	x86_cpu_refresh(cpu);
	return X86_BOUNDARY;
}

/* ---- CR3 ---- */

static enum x86_status write_cr3(struct x86_cpu *cpu, uint64_t value)
{
	const bool keep = (cpu->s.cr4 & X86_CR4_PCIDE) && (value & CR3_NOFLUSH);

	if (keep)
		value &= ~CR3_NOFLUSH;
	if (cpu->long_mode && value >> cpu->phys_bits)
		return x86_gp(cpu, 0);
	if (!cpu->long_mode)
		value = (uint32_t)value;
	if (pae_tables(cpu->s.cr0, cpu->s.cr4, cpu->long_mode) && !x86_load_pdptes(cpu, value))
		return x86_gp(cpu, 0);
	cpu->s.cr3 = value;
	x86_tlb_switch(cpu, keep);
	return X86_BOUNDARY;
}

/* ---- CR4 ---- */

static uint64_t cr4_allowed(const struct x86_cpu *cpu)
{
	static const struct {
		uint32_t bit;
		uint16_t feature;
	} bits[] = {
		{X86_CR4_TSD, X86_F_TSC},
		{X86_CR4_DE, X86_F_BASE},
		{X86_CR4_PSE, X86_F_PSE},
		{X86_CR4_PAE, X86_F_PAE},
		{X86_CR4_MCE, X86_F_MCE},
		{X86_CR4_PGE, X86_F_PGE},
		{X86_CR4_PCE, X86_F_BASE},
		{X86_CR4_OSFXSR, X86_F_FXSR},
		{X86_CR4_OSXMMEXCPT, X86_F_SSE},
		{X86_CR4_UMIP, X86_F_UMIP},
		{X86_CR4_FSGSBASE, X86_F_FSGSBASE},
		{X86_CR4_PCIDE, X86_F_PCID},
		{X86_CR4_OSXSAVE, X86_F_XSAVE},
		{X86_CR4_SMEP, X86_F_SMEP},
		{X86_CR4_SMAP, X86_F_SMAP},
	};
	uint64_t allowed = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(bits); i++)
		if (x86_has(&cpu->features, bits[i].feature))
			allowed |= bits[i].bit;
	return allowed;
}

static enum x86_status write_cr4(struct x86_cpu *cpu, uint64_t value)
{
	const uint64_t changed = value ^ cpu->s.cr4;
	const uint64_t paging = X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_SMEP;

	if (value & ~cr4_allowed(cpu))
		return x86_gp(cpu, 0);
	if (cpu->long_mode && !(value & X86_CR4_PAE))
		return x86_gp(cpu, 0);
	if ((changed & value & X86_CR4_PCIDE) && (!cpu->long_mode || (cpu->s.cr3 & CR3_PCID)))
		return x86_gp(cpu, 0);
	if ((changed & paging) && pae_tables(cpu->s.cr0, value, cpu->long_mode) &&
		!x86_load_pdptes(cpu, cpu->s.cr3))
		return x86_gp(cpu, 0);

	cpu->s.cr4 = value;
	if (changed & (paging | X86_CR4_SMAP | X86_CR4_PCIDE))
		x86_tlb_flush(cpu);
	x86_cpu_refresh(cpu);
	return X86_BOUNDARY;
}

enum x86_status x86_write_cr(struct x86_cpu *cpu, unsigned number, uint64_t value)
{
	switch (number) {
	case 0: return write_cr0(cpu, value);
	case 2: cpu->s.cr2 = value; return X86_BOUNDARY;
	case 3: return write_cr3(cpu, value);
	case 4: return write_cr4(cpu, value);
	case 8:
		if (value > 15)
			return x86_gp(cpu, 0);
		cpu->s.cr8 = value;
		cpu->env->cr8_write(cpu, (uint8_t)value);
		return X86_BOUNDARY;
	default: return x86_ud(cpu);
	}
}

enum x86_status x86_write_xcr0(struct x86_cpu *cpu, uint64_t value)
{
	uint32_t regs[4];

	x86_cpuid_query(cpu->cpuid, 0, 0, 0, 0, 0xd, 0, regs);
	if (value & ~(regs[0] | (uint64_t)regs[3] << 32))
		return x86_gp(cpu, 0);
	if (!(value & X86_XCR0_X87))
		return x86_gp(cpu, 0);
	if ((value & X86_XCR0_AVX) && !(value & X86_XCR0_SSE))
		return x86_gp(cpu, 0);
	cpu->s.xcr0 = value;
	return X86_BOUNDARY;
}

/* ---- I/O permission ---- */

#define TSS32_AVAILABLE 9
#define TSS32_BUSY	11
#define TSS_IO_BASE	0x66

/* The 16 bits of the TSS's I/O map that hold the port's; all ones if they lie past its limit. */
static enum x86_status read_io_map(struct x86_cpu *cpu, uint16_t port, uint16_t *ret_bits)
{
	const struct x86_segment *tr = &cpu->s.tr;
	const unsigned type = tr->attr & (X86_SEG_TYPE | X86_SEG_S);
	uint16_t base = 0;

	*ret_bits = 0xffff;
	if (!(tr->attr & X86_SEG_P) || (type != TSS32_AVAILABLE && type != TSS32_BUSY) ||
		tr->limit < TSS_IO_BASE + 1)
		return X86_OK;
	X86_TRY(x86_read_linear(cpu, tr->base + TSS_IO_BASE, &base, 2, false));
	const uint32_t offset = base + port / 8u;
	if (offset + 1 > tr->limit)
		return X86_OK;
	return x86_read_linear(cpu, tr->base + offset, ret_bits, 2, false);
}

enum x86_status x86_check_io(struct x86_cpu *cpu, uint16_t port, unsigned size)
{
	const unsigned iopl = (cpu->s.rflags & X86_IOPL) >> X86_IOPL_SHIFT;
	const bool v86 = cpu->real && (cpu->s.rflags & X86_VM);
	uint16_t bits = 0;

	if (!(cpu->s.cr0 & X86_CR0_PE) || (!v86 && cpu->cpl <= iopl))
		return X86_OK;
	X86_TRY(read_io_map(cpu, port, &bits));
	if (bits >> (port & 7) & ((1u << size) - 1))
		return x86_gp(cpu, 0);
	return X86_OK;
}
