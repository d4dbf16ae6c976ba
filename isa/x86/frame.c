/*
 * Stack frames of interrupts, gates and far calls: collected first, then written to the stack at once,
 * so that a fault in the middle leaves nothing half done (SDM 3A 5.8.5, 6.12, 6.14).
 */
#include "isa/x86/descriptor.h"

static uint64_t frame_mask(const struct x86_frame *frame)
{
	return x86_size_mask(frame->width);
}

void x86_frame_current(
	struct x86_frame *frame, const struct x86_cpu *cpu, unsigned slot, uint32_t ext)
{
	frame->ss = cpu->s.seg[X86_SS];
	frame->sp = cpu->s.reg[X86_RSP];
	frame->width = cpu->stack_bytes;
	frame->slot = (uint8_t)slot;
	frame->cpl = cpu->cpl;
	frame->error = ext;
	frame->count = 0;
}

/* Read a field of the TSS; one that lies outside it is #TS(TR). */
static enum x86_status tss_read(
	struct x86_cpu *cpu, unsigned offset, void *buf, unsigned size, uint32_t ext)
{
	if (offset + size - 1 > cpu->s.tr.limit)
		return x86_fault_code(cpu, X86_TS, x86_selector_error(cpu->s.tr.selector, ext));
	gva_t linear = cpu->s.tr.base + offset;
	return x86_read_linear(cpu, cpu->long_mode ? linear : (uint32_t)linear, buf, size, false);
}

static enum x86_status stack_from_tss64(
	struct x86_frame *frame, struct x86_cpu *cpu, unsigned cpl, unsigned ist, uint32_t ext)
{
	/* SDM 3A figure 8-11: RSP0-2 from 4, IST1-7 from 36. */
	unsigned offset = ist ? 36 + 8 * (ist - 1) : 4 + 8 * cpl;

	frame->ss = x86_segment_null((uint16_t)cpl, cpl);
	frame->width = 8;
	frame->error = ext;
	return tss_read(cpu, offset, &frame->sp, 8, ext);
}

static enum x86_status stack_from_tss32(
	struct x86_frame *frame, struct x86_cpu *cpu, unsigned cpl, uint32_t ext)
{
	uint8_t stack[6] = {0};
	uint16_t selector;
	bool wide = x86_attr_system(cpu->s.tr.attr) & 8;

	/* The 32-bit TSS holds ESP and SS in 8 bytes a level, the 16-bit one SP and SS in 4. */
	X86_TRY(tss_read(cpu, wide ? 4 + 8 * cpl : 2 + 4 * cpl, stack, wide ? 6 : 4, ext));
	frame->sp = 0;
	memcpy(&frame->sp, stack, wide ? 4 : 2);
	memcpy(&selector, stack + (wide ? 4 : 2), 2);
	X86_TRY(x86_stack_segment(cpu, selector, cpl, X86_TS, ext, &frame->ss));
	frame->width = frame->ss.attr & X86_SEG_DB ? 4 : 2;
	frame->error = x86_selector_error(selector, ext);
	return X86_OK;
}

enum x86_status x86_frame_from_tss(struct x86_frame *frame, struct x86_cpu *cpu, unsigned cpl,
	unsigned ist, unsigned slot, uint32_t ext)
{
	frame->slot = (uint8_t)slot;
	frame->cpl = (uint8_t)cpl;
	frame->count = 0;
	frame->sp = 0;
	if (cpu->long_mode)
		return stack_from_tss64(frame, cpu, cpl, ist, ext);
	return stack_from_tss32(frame, cpu, cpl, ext);
}

/* The linear address of [offset, +size) on the frame's stack. */
static enum x86_status frame_linear(const struct x86_frame *frame, struct x86_cpu *cpu,
	uint64_t offset, unsigned size, gva_t *ret_linear)
{
	bool good;

	if (frame->width == 8) {
		*ret_linear = offset;
		good = x86_canonical(cpu, offset) && x86_canonical(cpu, offset + size - 1);
	} else {
		*ret_linear = (uint32_t)(frame->ss.base + offset);
		good = (cpu->real || x86_attr_writable(frame->ss.attr)) &&
		       x86_segment_within(&frame->ss, offset, size);
	}
	return good ? X86_OK : x86_fault_code(cpu, X86_SS_EXC, frame->error);
}

/* Check each push, then write each: where the stack pointer wraps inside the frame; and for a frame that
 * faults, as the first push that does, from the top, is the one that CR2 tells. */
static enum x86_status write_one_by_one(struct x86_frame *frame, struct x86_cpu *cpu)
{
	gva_t linear[X86_FRAME_MAX];
	uint64_t sp = frame->sp;

	for (unsigned i = 0; i < frame->count; i++) {
		sp = (sp - frame->slot) & frame_mask(frame);
		X86_TRY(frame_linear(frame, cpu, sp, frame->slot, &linear[i]));
		X86_TRY(x86_probe_write(cpu, linear[i], frame->slot, frame->cpl == 3));
	}
	for (unsigned i = 0; i < frame->count; i++)
		X86_TRY(x86_write_linear(
			cpu, linear[i], &frame->value[i], frame->slot, frame->cpl == 3));
	frame->sp = sp;
	return X86_OK;
}

enum x86_status x86_frame_write(struct x86_frame *frame, struct x86_cpu *cpu)
{
	uint8_t bytes[X86_FRAME_MAX * 8];
	unsigned size = frame->count * frame->slot;
	uint64_t mask = frame_mask(frame);
	uint64_t low = (frame->sp - size) & mask;
	gva_t linear;

	if (low > mask - (size - 1) || frame_linear(frame, cpu, low, size, &linear) != X86_OK)
		return write_one_by_one(frame, cpu);
	for (unsigned i = 0; i < frame->count; i++)
		memcpy(bytes + size - (i + 1) * frame->slot, &frame->value[i], frame->slot);
	if (x86_write_linear(cpu, linear, bytes, size, frame->cpl == 3) != X86_OK)
		return write_one_by_one(frame, cpu);
	frame->sp = low;
	return X86_OK;
}

void x86_frame_commit(const struct x86_frame *frame, struct x86_cpu *cpu)
{
	uint64_t *rsp = &cpu->s.reg[X86_RSP];
	uint64_t mask = frame_mask(frame);

	cpu->s.seg[X86_SS] = frame->ss;
	*rsp = frame->width == 2 ? (*rsp & ~mask) | (frame->sp & mask) : frame->sp & mask;
}
