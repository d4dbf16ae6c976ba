/*
 * Far returns: RETF and IRET in every mode (SDM 2 "RET", "IRET"; SDM 3A 20.2.5 for returns to
 * virtual-8086 mode).
 *
 * NMIs are unblocked by an IRET that succeeds.
 */
#include "isa/x86/semantics.h"

#include "isa/x86/descriptor.h"

/* What a return pops; later fields only as far as it goes. */
struct return_frame {
	uint64_t rip, flags, rsp;
	uint16_t cs, ss;
};

/* Read the i-th slot of the stack. */
static enum x86_status peek(struct x86_cpu *cpu, unsigned bytes, unsigned slot, uint64_t *ret_value)
{
	uint64_t sp = (cpu->s.reg[X86_RSP] + bytes) & x86_stack_mask(cpu);

	return x86_load(cpu, X86_SS, sp, slot, ret_value);
}

static enum x86_status peek_selector(
	struct x86_cpu *cpu, unsigned bytes, unsigned slot, uint16_t *ret_selector)
{
	uint64_t value;

	X86_TRY(peek(cpu, bytes, slot, &value));
	*ret_selector = (uint16_t)value;
	return X86_OK;
}

/* ---- checks shared by RETF and IRET ---- */

static enum x86_status return_code(
	struct x86_cpu *cpu, const struct return_frame *frame, struct x86_segment *ret_cs)
{
	struct x86_descriptor desc;
	uint32_t error = x86_selector_error(frame->cs, 0);
	unsigned rpl = frame->cs & 3;

	X86_TRY(x86_descriptor_fetch(cpu, frame->cs, X86_GP, 0, &desc));
	unsigned dpl = x86_attr_dpl(desc.attr);
	if (!x86_attr_code(desc.attr) || rpl < cpu->cpl)
		return x86_gp(cpu, error);
	if (x86_attr_conforming(desc.attr) ? dpl > rpl : dpl != rpl)
		return x86_gp(cpu, error);
	if (cpu->long_mode && (desc.attr & X86_SEG_L) && (desc.attr & X86_SEG_DB))
		return x86_gp(cpu, error);
	if (!(desc.attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, error);
	X86_TRY(x86_descriptor_accessed(cpu, &desc));
	*ret_cs = x86_descriptor_segment(&desc, frame->cs);
	if (!x86_rip_within(cpu, ret_cs, frame->rip))
		return x86_gp(cpu, 0);
	return X86_OK;
}

static enum x86_status return_stack(struct x86_cpu *cpu, const struct return_frame *frame,
	const struct x86_segment *cs, struct x86_segment *ret_ss)
{
	unsigned cpl = frame->cs & 3;

	if (!x86_selector_null(frame->ss))
		return x86_stack_segment(cpu, frame->ss, cpl, X86_GP, 0, ret_ss);
	/* 64-bit mode runs without a stack segment, except at privilege 3. */
	if (!cpu->long_mode || !(cs->attr & X86_SEG_L) || cpl == 3 || (frame->ss & 3) != cpl)
		return x86_gp(cpu, 0);
	*ret_ss = x86_segment_null(frame->ss, cpl);
	return X86_OK;
}

/* Nothing faults any more. The stack pointer is set in the width of the new stack. */
static void commit(struct x86_cpu *cpu, const struct return_frame *frame,
	const struct x86_segment *cs, const struct x86_segment *ss, uint64_t rsp)
{
	unsigned old_cpl = cpu->cpl;

	cpu->s.seg[X86_CS] = *cs;
	cpu->s.reg[X86_RIP] = frame->rip;
	if (ss)
		cpu->s.seg[X86_SS] = *ss;
	x86_cpu_refresh(cpu);
	x86_set_sp(cpu, rsp);
	if (cpu->cpl == old_cpl)
		return;
	x86_segment_drop_privileged(cpu);
	x86_cpu_refresh(cpu);
}

/* A return in real or virtual-8086 mode. */
static enum x86_status return_real(
	struct x86_cpu *cpu, const struct return_frame *frame, uint64_t rsp)
{
	struct x86_segment cs = cpu->s.rflags & X86_VM
					? x86_segment_v86(frame->cs)
					: x86_segment_real(&cpu->s.seg[X86_CS], frame->cs);

	if (!x86_rip_within(cpu, &cs, frame->rip))
		return x86_gp(cpu, 0);
	commit(cpu, frame, &cs, NULL, rsp);
	return X86_BOUNDARY;
}

/* ---- RETF ---- */

static enum x86_status retf_outer(struct x86_cpu *cpu, const struct x86_insn *insn,
	unsigned release, struct return_frame *frame, const struct x86_segment *cs)
{
	unsigned slot = insn->osize;
	struct x86_segment ss;

	X86_TRY(peek(cpu, 2 * slot + release, slot, &frame->rsp));
	X86_TRY(peek_selector(cpu, 3 * slot + release, slot, &frame->ss));
	X86_TRY(return_stack(cpu, frame, cs, &ss));
	commit(cpu, frame, cs, &ss, frame->rsp + release);
	return X86_BOUNDARY;
}

enum x86_status x86_retf(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned slot = insn->osize;
	unsigned release = insn->operand_count ? insn->imm & 0xffff : 0;
	uint64_t rsp = cpu->s.reg[X86_RSP] + 2 * slot + release;
	struct return_frame frame;
	struct x86_segment cs;

	X86_TRY(peek(cpu, 0, slot, &frame.rip));
	X86_TRY(peek_selector(cpu, slot, slot, &frame.cs));
	if (cpu->real)
		return return_real(cpu, &frame, rsp);
	X86_TRY(return_code(cpu, &frame, &cs));
	if ((frame.cs & 3) > cpu->cpl)
		return retf_outer(cpu, insn, release, &frame, &cs);
	commit(cpu, &frame, &cs, NULL, rsp);
	return X86_BOUNDARY;
}

/* ---- IRET ---- */

/* The flags that IRET may change, at the privilege it starts from. */
static uint64_t iret_mask(const struct x86_cpu *cpu, unsigned slot)
{
	unsigned iopl = (cpu->s.rflags & X86_IOPL) >> X86_IOPL_SHIFT;
	uint64_t mask = X86_FLAGS_ARITH | X86_TF | X86_DF | X86_NT;

	if (slot > 2)
		mask |= X86_RF | X86_AC | X86_ID;
	if (cpu->cpl <= iopl)
		mask |= X86_IF;
	if (cpu->cpl == 0)
		mask |= X86_IOPL;
	if (cpu->cpl == 0 && slot > 2 && !cpu->real)
		mask |= X86_VIF | X86_VIP;
	return mask;
}

static void set_flags(struct x86_cpu *cpu, uint64_t flags, uint64_t mask)
{
	cpu->s.rflags = (cpu->s.rflags & ~mask) | (flags & mask) | X86_FLAGS_FIXED;
}

static enum x86_status iret_real(
	struct x86_cpu *cpu, unsigned slot, const struct return_frame *frame)
{
	uint64_t mask = iret_mask(cpu, slot);

	if ((cpu->s.rflags & X86_VM) && (cpu->s.rflags & X86_IOPL) != X86_IOPL)
		return x86_gp(cpu, 0);
	enum x86_status status = return_real(cpu, frame, cpu->s.reg[X86_RSP] + 3 * slot);
	if (status != X86_FAULT)
		set_flags(cpu, frame->flags, mask);
	return status;
}

/* Back to virtual-8086 mode: four more slots with ES, DS, FS, GS. */
static enum x86_status iret_to_v86(struct x86_cpu *cpu, struct return_frame *frame)
{
	static const uint8_t order[] = {X86_SS, X86_ES, X86_DS, X86_FS, X86_GS};
	uint16_t selector[5];

	X86_TRY(peek(cpu, 12, 4, &frame->rsp));
	for (unsigned i = 0; i < 5; i++)
		X86_TRY(peek_selector(cpu, 16 + 4 * i, 4, &selector[i]));
	if (frame->rip > 0xffff)
		return x86_gp(cpu, 0);
	cpu->s.rflags =
		(frame->flags & (X86_FLAGS_WRITABLE | X86_RF | X86_VM | X86_VIF | X86_VIP)) |
		X86_FLAGS_FIXED;
	cpu->s.seg[X86_CS] = x86_segment_v86(frame->cs);
	for (unsigned i = 0; i < 5; i++)
		cpu->s.seg[order[i]] = x86_segment_v86(selector[i]);
	cpu->s.reg[X86_RSP] = frame->rsp;
	cpu->s.reg[X86_RIP] = frame->rip;
	return X86_BOUNDARY;
}

static enum x86_status iret_protected(
	struct x86_cpu *cpu, unsigned slot, struct return_frame *frame)
{
	uint64_t mask = iret_mask(cpu, slot);
	struct x86_segment cs, ss;

	X86_TRY(return_code(cpu, frame, &cs));
	if (cpu->mode == 64 || (frame->cs & 3) > cpu->cpl) {
		X86_TRY(peek(cpu, 3 * slot, slot, &frame->rsp));
		X86_TRY(peek_selector(cpu, 4 * slot, slot, &frame->ss));
		X86_TRY(return_stack(cpu, frame, &cs, &ss));
		commit(cpu, frame, &cs, &ss, frame->rsp);
	} else {
		commit(cpu, frame, &cs, NULL, cpu->s.reg[X86_RSP] + 3 * slot);
	}
	set_flags(cpu, frame->flags, mask);
	return X86_BOUNDARY;
}

static enum x86_status iret(struct x86_cpu *cpu, unsigned slot)
{
	struct return_frame frame;

	if (!cpu->real && (cpu->s.rflags & X86_NT))
		return cpu->long_mode ? x86_gp(cpu, 0) : x86_task_return(cpu);
	X86_TRY(peek(cpu, 0, slot, &frame.rip));
	X86_TRY(peek_selector(cpu, slot, slot, &frame.cs));
	X86_TRY(peek(cpu, 2 * slot, slot, &frame.flags));
	if (cpu->real)
		return iret_real(cpu, slot, &frame);
	if ((frame.flags & X86_VM) && slot == 4 && !cpu->cpl && !cpu->long_mode)
		return iret_to_v86(cpu, &frame);
	return iret_protected(cpu, slot, &frame);
}

enum x86_status x86_iret(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	enum x86_status status = iret(cpu, insn->osize);

	if (status == X86_FAULT)
		return status;
	cpu->s.nmi_blocked = false;
	x86_cpu_refresh(cpu); /* TF, AC, VM */
	return status;
}
