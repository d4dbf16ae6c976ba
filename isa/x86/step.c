/*
 * One instruction at a time: fetch, decode, check, execute, and everything that may happen around it:
 * breakpoints, single-step, shadows, delivery of what it raised. SDM 3A 6.9 (priorities), 6.7-6.8,
 * 3B 18.3 (debug exceptions; 18.3.1.1: how RF behaves).
 *
 * Invariant: each byte of an instruction is fetched once, into a local copy that is then decoded.
 *
 * Left out on purpose: the FERR# interrupt of CR0.NE = 0 (#MF is raised instead).
 */
#include "isa/x86/access.h"
#include "isa/x86/semantics.h"

#include "base/util.h"

#include <string.h>

#define DR6_BS BIT(14)
#define FSW_ES 0x80u

/* ---- fetch ---- */

static gva_t code_linear(const struct x86_cpu *cpu, uint64_t rip)
{
	if (cpu->mode == 64)
		return rip;
	return (uint32_t)(cpu->s.seg[X86_CS].base + rip);
}

/* Instruction bytes within one page. Past RAM they come from the bus, one by one. */
static enum x86_status fetch_bytes(struct x86_cpu *cpu, gva_t linear, uint8_t *buf, unsigned count)
{
	const bool user = cpu->cpl == 3;
	const struct x86_tlb_entry *e =
		&cpu->context_now->tlb[user].entry[X86_EXEC][x86_tlb_index(linear)];
	gpa_t gpa;

	if (linear - e->page >= GUEST_PAGE_SIZE) {
		X86_TRY(x86_translate(cpu, linear, X86_EXEC, user, &gpa));
		if (linear - e->page >= GUEST_PAGE_SIZE) {
			for (unsigned i = 0; i < count; i++)
				buf[i] = (uint8_t)cpu->env->mmio_read(cpu, gpa + i, 1);
			return X86_OK;
		}
	}
	memcpy(buf, (const void *)(e->host + (linear - e->page)), count);
	return X86_OK;
}

/* How many bytes from rip on the code segment has, up to an instruction's most. */
static unsigned code_left(const struct x86_cpu *cpu, uint64_t rip)
{
	const uint64_t limit = cpu->s.seg[X86_CS].limit;
	if (cpu->mode == 64)
		return X86_INSN_BYTES_MAX;
	if (rip > limit)
		return 0;
	return (unsigned)MIN(limit - rip + 1, (uint64_t)X86_INSN_BYTES_MAX);
}

enum x86_status x86_fetch(struct x86_cpu *cpu, struct x86_insn *insn)
{
	uint8_t bytes[X86_INSN_BYTES_MAX];
	const uint64_t rip = cpu->s.reg[X86_RIP];
	const gva_t linear = code_linear(cpu, rip);
	const unsigned left = code_left(cpu, rip);
	if (!left)
		return x86_gp(cpu, 0);
	unsigned have = MIN(left, (unsigned)(GUEST_PAGE_SIZE - (linear & ~GUEST_PAGE_MASK)));

	X86_TRY(fetch_bytes(cpu, linear, bytes, have));
	enum x86_decode_result result =
		x86_decode(insn, bytes, have, cpu->mode, cpu->real, &cpu->features);
	if (result == X86_DECODE_TRUNCATED && have < left) {
		X86_TRY(fetch_bytes(cpu, code_linear(cpu, rip + have), bytes + have, left - have));
		have = left;
		result = x86_decode(insn, bytes, have, cpu->mode, cpu->real, &cpu->features);
	}
	switch (result) {
	case X86_DECODE_OK: return X86_OK;
	case X86_DECODE_UD: return x86_ud(cpu);
	default: return x86_gp(cpu, 0); /* over 15 bytes, or past the segment's limit */
	}
}

/* ---- checks before execution ---- */

enum x86_status x86_check_row(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const uint32_t attr = insn->row->attr;
	const uint32_t fp = X86_A_X87 | X86_A_MMX | X86_A_SSE | X86_A_AVX;

	if (attr & fp) {
		if (x86_vectors_off(cpu, attr))
			return x86_ud(cpu);
		if (cpu->s.cr0 & X86_CR0_TS)
			return x86_fault(cpu, X86_NM);
		if ((attr & X86_A_X87) && (cpu->s.cr0 & X86_CR0_EM))
			return x86_fault(cpu, X86_NM);
		if ((attr & (X86_A_X87 | X86_A_MMX)) && !(attr & X86_A_NOWAIT) &&
			(cpu->s.fpu.fsw & FSW_ES))
			return x86_fault(cpu, X86_MF);
	}
	if ((attr & X86_A_CPL0) && cpu->cpl)
		return x86_gp(cpu, 0);
	return X86_OK;
}

/* ---- step ---- */

static enum x86_status fault_debug(struct x86_cpu *cpu, uint64_t dr6)
{
	x86_fault(cpu, X86_DB);
	cpu->fault.dr6 = dr6;
	return X86_FAULT;
}

static enum x86_status execute(struct x86_cpu *cpu, struct x86_insn *insn, bool mov_ss_shadow)
{
	const uint64_t rip = cpu->s.reg[X86_RIP];

	if (x86_debug_armed(cpu) && !(cpu->s.rflags & X86_RF) && !mov_ss_shadow) {
		uint64_t hit = x86_watch_fetch(cpu, code_linear(cpu, rip));
		if (hit)
			return fault_debug(cpu, hit);
	}
	X86_TRY(x86_fetch(cpu, insn));
	X86_TRY(x86_check_row(cpu, insn));
	cpu->s.rflags &= ~(uint64_t)X86_RF;
	cpu->s.reg[X86_RIP] = rip + insn->len;
	if (cpu->mode != 64)
		cpu->s.reg[X86_RIP] = (uint32_t)cpu->s.reg[X86_RIP];
	return insn->fn(cpu, insn);
}

/* INT n and its kin, and SYSCALL, go by the TF that they leave behind, and so does SYSRET, which raises the trap
 * itself; all others by the one before. */
static bool steps_into_handler(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (insn->fn == x86_sysret)
		return true;
	return !(cpu->s.rflags & X86_TF) &&
	       (insn->fn == x86_int || insn->fn == x86_int3 || insn->fn == x86_into ||
		       insn->fn == x86_int1 || insn->fn == x86_syscall);
}

static enum x86_status deliver(struct x86_cpu *cpu)
{
	enum x86_status status = x86_deliver_fault(cpu);
	if (status == X86_TRIPLE)
		cpu->s.activity = X86_SHUTDOWN;
	return status;
}

/* The traps that follow a finished instruction, or a finished iteration of one. */
static enum x86_status debug_trap(
	struct x86_cpu *cpu, const struct x86_insn *insn, bool single_step, enum x86_status status)
{
	uint64_t dr6 = cpu->watch_hit;

	if (status == X86_TRIPLE || status == X86_STOP || cpu->s.mov_ss_shadow)
		return status; /* after MOV SS data breakpoints wait for the next instruction */
	if (single_step && !steps_into_handler(cpu, insn))
		dr6 |= DR6_BS;
	if (!dr6)
		return status;
	cpu->watch_hit = 0;
	if (cpu->s.activity == X86_HALTED)
		cpu->s.activity = X86_RUNNING;
	fault_debug(cpu, dr6);
	return deliver(cpu);
}

enum x86_status x86_step(struct x86_cpu *cpu)
{
	struct x86_insn insn;
	const uint64_t rip = cpu->s.reg[X86_RIP];
	const bool single_step = cpu->s.rflags & X86_TF;
	const bool mov_ss_shadow = cpu->s.mov_ss_shadow;

	cpu->s.interrupt_shadow = cpu->s.mov_ss_shadow = false;
	if (!mov_ss_shadow)
		cpu->watch_hit = 0;
	enum x86_status status = execute(cpu, &insn, mov_ss_shadow);
	if (status == X86_FAULT) {
		cpu->s.reg[X86_RIP] = rip;
		cpu->watch_hit = 0;
		return deliver(cpu);
	}
	if (status == X86_REPEAT) {
		cpu->s.reg[X86_RIP] = rip;
		if (cpu->slow_path)
			cpu->s.rflags |= X86_RF;
	} else {
		cpu->instructions++;
	}
	if (single_step || cpu->watch_hit)
		return debug_trap(cpu, &insn, single_step, status);
	return status;
}
