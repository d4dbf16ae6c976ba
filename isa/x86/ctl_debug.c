/*
 * Debug registers: MOV to and from them, and the matching of breakpoints. SDM 3B 18.2 and 18.3.
 *
 * Data breakpoints are found by the slow path of memory accesses, which every access takes while
 * cpu->watched (x86_cpu_refresh()); x86_step() then raises the trap.
 *
 * Left out on purpose: general detect inside a task switch, bus-lock and RTM debugging, branch tracing.
 */
#include "isa/x86/access.h"
#include "isa/x86/semantics.h"

#include "base/util.h"

#define DR6_WRITABLE 0xe00full
#define DR6_FIXED    0xffff0ff0ull
#define DR6_BD	     BIT(13)
#define DR7_WRITABLE 0xffff23ffull
#define DR7_FIXED    0x400ull
#define DR7_GD	     BIT(13)

enum breakpoint_kind { BP_EXEC, BP_WRITE, BP_IO, BP_ACCESS };

static bool bp_enabled(const struct x86_cpu *cpu, unsigned i)
{
	return cpu->s.dr[7] >> (2 * i) & 3;
}

static enum breakpoint_kind bp_kind(const struct x86_cpu *cpu, unsigned i)
{
	return (enum breakpoint_kind)(cpu->s.dr[7] >> (16 + 4 * i) & 3);
}

static unsigned bp_bytes(const struct x86_cpu *cpu, unsigned i)
{
	static const uint8_t bytes[] = {1, 2, 8, 4};
	return bytes[cpu->s.dr[7] >> (18 + 4 * i) & 3];
}

bool x86_debug_watches(const struct x86_cpu *cpu)
{
	for (unsigned i = 0; i < 4; i++) {
		enum breakpoint_kind kind = bp_kind(cpu, i);
		if (bp_enabled(cpu, i) && (kind == BP_WRITE || kind == BP_ACCESS))
			return true;
	}
	return false;
}

/* Does [start, +size) touch breakpoint i, whose address is aligned to its length? */
static bool bp_overlaps(const struct x86_cpu *cpu, unsigned i, uint64_t start, unsigned size)
{
	const unsigned bytes = bp_bytes(cpu, i);
	const uint64_t at = cpu->s.dr[i] & ~(uint64_t)(bytes - 1);
	return at - start < size || start - at < bytes;
}

void x86_watch(struct x86_cpu *cpu, gva_t linear, unsigned size, enum x86_access access)
{
	if (access == X86_EXEC)
		return;
	for (unsigned i = 0; i < 4; i++) {
		enum breakpoint_kind kind = bp_kind(cpu, i);
		if (!bp_enabled(cpu, i) || !bp_overlaps(cpu, i, linear, size))
			continue;
		if (kind == BP_ACCESS || (kind == BP_WRITE && access == X86_WRITE))
			cpu->watch_hit |= (uint8_t)(1u << i);
	}
}

void x86_watch_io(struct x86_cpu *cpu, uint16_t port, unsigned size)
{
	if (!x86_debug_armed(cpu) || !(cpu->s.cr4 & X86_CR4_DE))
		return;
	for (unsigned i = 0; i < 4; i++)
		if (bp_enabled(cpu, i) && bp_kind(cpu, i) == BP_IO &&
			bp_overlaps(cpu, i, port, size))
			cpu->watch_hit |= (uint8_t)(1u << i);
}

uint64_t x86_watch_fetch(const struct x86_cpu *cpu, gva_t linear)
{
	uint64_t hit = 0;
	for (unsigned i = 0; i < 4; i++)
		if (bp_enabled(cpu, i) && bp_kind(cpu, i) == BP_EXEC && cpu->s.dr[i] == linear)
			hit |= BIT(i);
	return hit;
}

/* ---- MOV DR ---- */

/* The register a MOV names, with DR4 and DR5 as the aliases they are; and the checks before access. */
static enum x86_status dr_select(struct x86_cpu *cpu, unsigned reg, unsigned *ret_dr)
{
	if (reg > 7)
		return x86_ud(cpu);
	if (reg == 4 || reg == 5) {
		if (cpu->s.cr4 & X86_CR4_DE)
			return x86_ud(cpu);
		reg += 2;
	}
	if (cpu->s.dr[7] & DR7_GD) {
		x86_fault(cpu, X86_DB);
		cpu->fault.dr6 = DR6_BD;
		return X86_FAULT;
	}
	*ret_dr = reg;
	return X86_OK;
}

enum x86_status sem_mov_from_dr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned dr = 0;
	X86_TRY(dr_select(cpu, insn->op[1].reg, &dr));
	x86_gpr_write(cpu, insn->op[0].reg, insn->mode == 64 ? 8 : 4, cpu->s.dr[dr]);
	return X86_OK;
}

enum x86_status sem_mov_to_dr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned dr = 0;
	const uint64_t value = x86_gpr_read(cpu, insn->op[1].reg, insn->mode == 64 ? 8 : 4);

	X86_TRY(dr_select(cpu, insn->op[0].reg, &dr));
	if (dr >= 6 && value >> 32)
		return x86_gp(cpu, 0);
	if (dr == 6)
		cpu->s.dr[6] = (value & DR6_WRITABLE) | DR6_FIXED;
	else if (dr == 7)
		cpu->s.dr[7] = (value & DR7_WRITABLE) | DR7_FIXED;
	else
		cpu->s.dr[dr] = value;
	x86_cpu_refresh(cpu);
	return X86_BOUNDARY;
}
