/*
 * Far JMP and CALL: to code segments, through call gates, and to tasks (SDM 2 "JMP", "CALL"; SDM 3A 5.8, 8.3).
 *
 * REX.W with a far pointer in memory reads a 64-bit offset, as on Intel's processors.
 *
 * In long mode a call that changes between 64-bit and compatibility mode pushes as its target would: the
 * target's mode decides how wide the stack pointer is. The SDM does not say so, AMD's processors do it.
 */
#include "isa/x86/semantics.h"

#include "isa/x86/descriptor.h"

struct far_pointer {
	uint64_t offset;
	uint16_t selector;
};

/* A call gate that passed its checks. */
struct call_gate {
	uint64_t offset;
	uint16_t selector;
	uint8_t params; /* to copy to the new stack */
	uint8_t slot;	/* bytes of a push */
};

static enum x86_status read_pointer(
	struct x86_cpu *cpu, const struct x86_insn *insn, struct far_pointer *ret)
{
	uint64_t ea, selector;

	if (insn->op[0].kind != X86_O_MEM) {
		*ret = (struct far_pointer){insn->imm & x86_size_mask(insn->osize), insn->imm2};
		return X86_OK;
	}
	ea = x86_ea(cpu, insn);
	X86_TRY(x86_load(cpu, insn->seg, ea, insn->osize, &ret->offset));
	X86_TRY(x86_load(cpu, insn->seg, ea + insn->osize, 2, &selector));
	ret->selector = (uint16_t)selector;
	return X86_OK;
}

/* The last step of all: nothing faults any more. */
static enum x86_status enter(struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t rip,
	const struct x86_frame *frame)
{
	if (frame)
		x86_frame_commit(frame, cpu);
	cpu->s.seg[X86_CS] = *cs;
	cpu->s.reg[X86_RIP] = rip;
	x86_cpu_refresh(cpu);
	return X86_BOUNDARY;
}

/* Where CALL comes back to. */
static void push_return(struct x86_frame *frame, const struct x86_cpu *cpu)
{
	x86_frame_push(frame, cpu->s.seg[X86_CS].selector);
	x86_frame_push(frame, cpu->s.reg[X86_RIP]);
}

/* The present stack as code of segment `cs` uses it. */
static void frame_for(struct x86_frame *frame, const struct x86_cpu *cpu,
	const struct x86_segment *cs, unsigned slot)
{
	x86_frame_current(frame, cpu, slot, 0);
	if (!cpu->long_mode)
		return;
	frame->width = cs->attr & X86_SEG_L ? 8 : frame->ss.attr & X86_SEG_DB ? 4 : 2;
}

/* Jump or call within the present privilege. */
static enum x86_status transfer(
	struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t rip, bool call, unsigned slot)
{
	struct x86_frame frame;

	if (!x86_rip_within(cpu, cs, rip))
		return x86_gp(cpu, 0);
	if (!call)
		return enter(cpu, cs, rip, NULL);
	frame_for(&frame, cpu, cs, slot);
	X86_TRY(x86_check_alignment(cpu, frame.sp + (frame.width == 8 ? 0 : frame.ss.base), slot));
	push_return(&frame, cpu);
	X86_TRY(x86_frame_write(&frame, cpu));
	return enter(cpu, cs, rip, &frame);
}

static enum x86_status transfer_real(
	struct x86_cpu *cpu, const struct far_pointer *to, bool call, unsigned slot)
{
	struct x86_segment cs = cpu->s.rflags & X86_VM
					? x86_segment_v86(to->selector)
					: x86_segment_real(&cpu->s.seg[X86_CS], to->selector);

	return transfer(cpu, &cs, to->offset, call, slot);
}

/* ---- code segments ---- */

static enum x86_status transfer_code(
	struct x86_cpu *cpu, struct x86_descriptor *desc, uint64_t offset, bool call, unsigned slot)
{
	uint32_t error = x86_selector_error(desc->selector, 0);
	unsigned dpl = x86_attr_dpl(desc->attr), rpl = desc->selector & 3;

	if (!x86_attr_code(desc->attr))
		return x86_gp(cpu, error);
	if (x86_attr_conforming(desc->attr) ? dpl > cpu->cpl : rpl > cpu->cpl || dpl != cpu->cpl)
		return x86_gp(cpu, error);
	if (cpu->long_mode && (desc->attr & X86_SEG_L) && (desc->attr & X86_SEG_DB))
		return x86_gp(cpu, error);
	if (!(desc->attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, error);
	X86_TRY(x86_descriptor_accessed(cpu, desc));
	struct x86_segment cs = x86_descriptor_segment(desc, (desc->selector & 0xfffc) | cpu->cpl);
	return transfer(cpu, &cs, offset, call, slot);
}

/* ---- call gates ---- */

/* A gate or TSS may be used by those at least as privileged as its DPL, in CPL and RPL. */
static enum x86_status check_use(struct x86_cpu *cpu, const struct x86_descriptor *desc)
{
	unsigned dpl = x86_attr_dpl(desc->attr);

	if (dpl < cpu->cpl || dpl < (desc->selector & 3u))
		return x86_gp(cpu, x86_selector_error(desc->selector, 0));
	return X86_OK;
}

static enum x86_status read_gate(
	struct x86_cpu *cpu, struct x86_descriptor *desc, struct call_gate *gate)
{
	X86_TRY(check_use(cpu, desc));
	if (!(desc->attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, x86_selector_error(desc->selector, 0));
	X86_TRY(x86_descriptor_extend(cpu, desc, X86_GP, 0));
	gate->selector = (uint16_t)(desc->raw[0] >> 16);
	gate->offset =
		(desc->raw[0] & 0xffff) | (desc->raw[0] >> 32 & 0xffff0000) | desc->raw[1] << 32;
	gate->params = desc->raw[0] >> 32 & 31;
	gate->slot = 4;
	if (cpu->long_mode) {
		gate->slot = 8;
		gate->params = 0;
	} else if (x86_attr_system(desc->attr) == X86_SYS_CALL16) {
		gate->slot = 2;
		gate->offset &= 0xffff;
	}
	return X86_OK;
}

/* The code segment that a gate leads to. */
static enum x86_status fetch_gate_code(
	struct x86_cpu *cpu, const struct call_gate *gate, bool call, struct x86_descriptor *desc)
{
	uint32_t error = x86_selector_error(gate->selector, 0);

	X86_TRY(x86_descriptor_fetch(cpu, gate->selector, X86_GP, 0, desc));
	unsigned dpl = x86_attr_dpl(desc->attr);
	if (!x86_attr_code(desc->attr) || dpl > cpu->cpl)
		return x86_gp(cpu, error);
	if (!call && !x86_attr_conforming(desc->attr) && dpl != cpu->cpl)
		return x86_gp(cpu, error);
	if (cpu->long_mode && (desc->attr & (X86_SEG_L | X86_SEG_DB)) != X86_SEG_L)
		return x86_gp(cpu, error);
	if (!(desc->attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, error);
	return x86_descriptor_accessed(cpu, desc);
}

/* The old stack, the parameters on it, and the return address. */
static enum x86_status push_inner(
	struct x86_frame *frame, struct x86_cpu *cpu, const struct call_gate *gate)
{
	uint64_t sp = cpu->s.reg[X86_RSP], value;

	x86_frame_push(frame, cpu->s.seg[X86_SS].selector);
	x86_frame_push(frame, sp);
	for (unsigned i = gate->params; i-- > 0;) {
		X86_TRY(x86_load(cpu, X86_SS, (sp + i * gate->slot) & x86_stack_mask(cpu),
			gate->slot, &value));
		x86_frame_push(frame, value);
	}
	push_return(frame, cpu);
	return X86_OK;
}

static enum x86_status call_inner(
	struct x86_cpu *cpu, const struct call_gate *gate, const struct x86_descriptor *desc)
{
	unsigned cpl = x86_attr_dpl(desc->attr);
	struct x86_segment cs =
		x86_descriptor_segment(desc, (gate->selector & 0xfffc) | (uint16_t)cpl);
	struct x86_frame frame;

	X86_TRY(x86_frame_from_tss(&frame, cpu, cpl, 0, gate->slot, 0));
	X86_TRY(push_inner(&frame, cpu, gate));
	if (!x86_rip_within(cpu, &cs, gate->offset))
		return x86_gp(cpu, 0);
	X86_TRY(x86_frame_write(&frame, cpu));
	return enter(cpu, &cs, gate->offset, &frame);
}

static enum x86_status transfer_gate(struct x86_cpu *cpu, struct x86_descriptor *desc, bool call)
{
	struct call_gate gate = {0};
	struct x86_descriptor code;

	X86_TRY(read_gate(cpu, desc, &gate));
	X86_TRY(fetch_gate_code(cpu, &gate, call, &code));
	if (call && !x86_attr_conforming(code.attr) && x86_attr_dpl(code.attr) < cpu->cpl)
		return call_inner(cpu, &gate, &code);
	struct x86_segment cs = x86_descriptor_segment(&code, (gate.selector & 0xfffc) | cpu->cpl);
	return transfer(cpu, &cs, gate.offset, call, gate.slot);
}

/* ---- tasks ---- */

static enum x86_status transfer_task(
	struct x86_cpu *cpu, const struct x86_descriptor *desc, bool call)
{
	uint16_t tss = desc->selector;

	X86_TRY(check_use(cpu, desc));
	if (x86_attr_system(desc->attr) == X86_SYS_TASK_GATE) {
		if (!(desc->attr & X86_SEG_P))
			return x86_fault_code(cpu, X86_NP, x86_selector_error(tss, 0));
		tss = (uint16_t)(desc->raw[0] >> 16);
	}
	return x86_task_transfer(cpu, tss, call ? X86_TASK_CALL : X86_TASK_JMP);
}

static enum x86_status transfer_system(struct x86_cpu *cpu, struct x86_descriptor *desc, bool call)
{
	switch (x86_attr_system(desc->attr)) {
	case X86_SYS_CALL32: return transfer_gate(cpu, desc, call);
	case X86_SYS_CALL16:
		if (!cpu->long_mode)
			return transfer_gate(cpu, desc, call);
		break;
	case X86_SYS_TASK_GATE:
	case X86_SYS_TSS16:
	case X86_SYS_TSS16_BUSY:
	case X86_SYS_TSS32:
	case X86_SYS_TSS32_BUSY:
		if (!cpu->long_mode)
			return transfer_task(cpu, desc, call);
		break;
	default: break;
	}
	return x86_gp(cpu, x86_selector_error(desc->selector, 0));
}

static enum x86_status far_transfer(struct x86_cpu *cpu, const struct x86_insn *insn, bool call)
{
	struct far_pointer to;
	struct x86_descriptor desc;

	X86_TRY(read_pointer(cpu, insn, &to));
	if (cpu->real)
		return transfer_real(cpu, &to, call, insn->osize);
	X86_TRY(x86_descriptor_fetch(cpu, to.selector, X86_GP, 0, &desc));
	if (desc.attr & X86_SEG_S)
		return transfer_code(cpu, &desc, to.offset, call, insn->osize);
	return transfer_system(cpu, &desc, call);
}

enum x86_status x86_jmp_far(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return far_transfer(cpu, insn, false);
}

enum x86_status x86_call_far(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return far_transfer(cpu, insn, true);
}
