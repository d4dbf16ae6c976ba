/*
 * Segments: limit and type checks of accesses, descriptors, and loads of DS, ES, FS, GS and SS
 * (SDM 3A chapters 3.4 and 5; SDM 2 "MOV", "LDS/LES/LFS/LGS/LSS"; AMD APM 2 chapter 4).
 *
 * Null selectors clear the hidden part, base included, as Intel's processors do. A 4 GiB segment does
 * not wrap: an access that runs past its end faults (SDM 3A 5.3 leaves it to the implementation).
 */
#include "isa/x86/descriptor.h"

/* ---- checks of accesses ---- */

bool x86_segment_within(const struct x86_segment *seg, uint64_t offset, unsigned size)
{
	uint64_t last = offset + size - 1;
	bool expand_down = (seg->attr & (X86_SEG_S | X86_SEG_CODE | X86_SEG_EXPAND)) ==
			   (X86_SEG_S | X86_SEG_EXPAND);

	if (last < offset)
		return false;
	if (!expand_down)
		return last <= seg->limit;
	return offset > seg->limit && last <= (seg->attr & X86_SEG_DB ? 0xffffffffu : 0xffffu);
}

/* Does the segment's type allow the access? In real mode the type is never looked at. */
static bool type_allows(
	const struct x86_cpu *cpu, const struct x86_segment *seg, enum x86_access access)
{
	if (cpu->real)
		return true;
	if (!(seg->attr & X86_SEG_P))
		return false;
	if (access == X86_WRITE)
		return x86_attr_writable(seg->attr);
	return access == X86_EXEC || x86_attr_readable(seg->attr);
}

static enum x86_status segment_fault(struct x86_cpu *cpu, enum x86_seg_index index)
{
	return x86_fault_code(cpu, index == X86_SS ? X86_SS_EXC : X86_GP, 0);
}

static enum x86_status check_canonical(
	struct x86_cpu *cpu, enum x86_seg_index index, gva_t linear, unsigned size)
{
	if (!x86_canonical(cpu, linear) || !x86_canonical(cpu, linear + size - 1))
		return segment_fault(cpu, index);
	return X86_OK;
}

enum x86_status x86_segment_check(struct x86_cpu *cpu, enum x86_seg_index index, uint64_t offset,
	unsigned size, enum x86_access access, gva_t *ret_linear)
{
	if (index == X86_SEG_NONE) {
		*ret_linear = offset;
		return cpu->long_mode ? check_canonical(cpu, index, offset, size) : X86_OK;
	}
	const struct x86_segment *seg = &cpu->s.seg[index];
	if (cpu->mode == 64) {
		*ret_linear = offset + (index >= X86_FS ? seg->base : 0);
		return check_canonical(cpu, index, *ret_linear, size);
	}
	if (!type_allows(cpu, seg, access) || !x86_segment_within(seg, offset, size))
		return segment_fault(cpu, index);
	*ret_linear = (uint32_t)(seg->base + offset);
	return X86_OK;
}

bool x86_rip_within(const struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t rip)
{
	if (cpu->long_mode && (cs->attr & X86_SEG_L))
		return x86_canonical(cpu, rip);
	return rip <= cs->limit;
}

bool x86_rip_valid(const struct x86_cpu *cpu, uint64_t offset)
{
	return x86_rip_within(cpu, &cpu->s.seg[X86_CS], offset);
}

/* ---- descriptors ---- */

uint64_t x86_descriptor_base(const struct x86_descriptor *desc)
{
	uint64_t low = (desc->raw[0] >> 16 & 0xffffff) | (desc->raw[0] >> 56 & 0xff) << 24;
	return low | desc->raw[1] << 32;
}

uint32_t x86_descriptor_limit(const struct x86_descriptor *desc)
{
	uint32_t limit = (desc->raw[0] & 0xffff) | (desc->raw[0] >> 48 & 0xf) << 16;
	return desc->attr & X86_SEG_G ? limit << 12 | 0xfff : limit;
}

static uint16_t raw_attr(uint64_t raw)
{
	return raw >> 40 & (X86_SEG_G | X86_SEG_DB | X86_SEG_L | X86_SEG_AVL | 0xff);
}

struct x86_segment x86_descriptor_segment(const struct x86_descriptor *desc, uint16_t selector)
{
	return (struct x86_segment){
		.base = x86_descriptor_base(desc),
		.limit = x86_descriptor_limit(desc),
		.selector = selector,
		.attr = desc->attr,
	};
}

enum x86_status x86_descriptor_read(
	struct x86_cpu *cpu, uint16_t selector, struct x86_descriptor *ret_desc, bool *ret_found)
{
	bool local = selector & 4;
	uint64_t base = local ? cpu->s.ldtr.base : cpu->s.gdtr.base;
	uint32_t limit = local ? cpu->s.ldtr.limit : cpu->s.gdtr.limit;
	uint32_t offset = selector & 0xfff8;

	*ret_desc = (struct x86_descriptor){.selector = selector, .linear = base + offset};
	if (!cpu->long_mode)
		ret_desc->linear = (uint32_t)ret_desc->linear;
	*ret_found = !x86_selector_null(selector) && offset + 7 <= limit &&
		     (!local || (cpu->s.ldtr.attr & X86_SEG_P));
	if (!*ret_found)
		return X86_OK;
	X86_TRY(x86_read_linear(cpu, ret_desc->linear, &ret_desc->raw[0], 8, false));
	ret_desc->attr = raw_attr(ret_desc->raw[0]);
	return X86_OK;
}

enum x86_status x86_descriptor_fetch(struct x86_cpu *cpu, uint16_t selector, unsigned vector,
	uint32_t ext, struct x86_descriptor *ret_desc)
{
	bool found;

	X86_TRY(x86_descriptor_read(cpu, selector, ret_desc, &found));
	if (!found)
		return x86_fault_code(cpu, vector, x86_selector_error(selector, ext));
	return X86_OK;
}

enum x86_status x86_descriptor_extend(
	struct x86_cpu *cpu, struct x86_descriptor *desc, unsigned vector, uint32_t ext)
{
	uint32_t limit = desc->selector & 4 ? cpu->s.ldtr.limit : cpu->s.gdtr.limit;
	uint64_t upper = 0;

	if (!cpu->long_mode)
		return X86_OK;
	if ((desc->selector & 0xfff8u) + 15 > limit)
		return x86_fault_code(cpu, vector, x86_selector_error(desc->selector, ext));
	X86_TRY(x86_read_linear(cpu, desc->linear + 8, &upper, 8, false));
	if (upper >> 40 & 0x1f)
		return x86_fault_code(cpu, vector, x86_selector_error(desc->selector, ext));
	desc->raw[1] = upper & 0xffffffff;
	return X86_OK;
}

enum x86_status x86_descriptor_type(
	struct x86_cpu *cpu, struct x86_descriptor *desc, unsigned set, unsigned clear)
{
	/* Tables are accessed with supervisor privilege whatever the CPL. */
	struct x86_tlb *tlb = cpu->tlb_now;
	uint8_t cpl = cpu->cpl;
	uint64_t old = desc->raw[0];
	enum x86_status status;
	bool done = false;

	cpu->cpl = 0;
	cpu->tlb_now = &cpu->context_now->tlb[0];
	do {
		desc->raw[0] = (old | (uint64_t)set << 40) & ~((uint64_t)clear << 40);
		status = x86_cmpxchg(cpu, X86_SEG_NONE, desc->linear, 8, &old, desc->raw[0], &done);
	} while (status == X86_OK && !done);
	cpu->cpl = cpl;
	cpu->tlb_now = tlb;
	if (status == X86_OK)
		desc->attr = raw_attr(desc->raw[0]);
	return status;
}

/* ---- segment registers ---- */

struct x86_segment x86_segment_null(uint16_t selector, unsigned dpl)
{
	return (struct x86_segment){
		.selector = selector, .attr = (uint16_t)(dpl << X86_SEG_DPL_SHIFT)};
}

#define ATTR_DATA (X86_SEG_P | X86_SEG_S | X86_SEG_WRITE | X86_SEG_ACCESSED)

struct x86_segment x86_segment_v86(uint16_t selector)
{
	return (struct x86_segment){.base = (uint32_t)selector << 4,
		.limit = 0xffff,
		.selector = selector,
		.attr = ATTR_DATA | X86_SEG_DPL};
}

/* Limit and type stay as protected mode left them: programs count on "unreal" mode. */
struct x86_segment x86_segment_real(const struct x86_segment *old, uint16_t selector)
{
	struct x86_segment seg = *old;

	if (!(seg.attr & X86_SEG_P)) {
		seg.attr = ATTR_DATA;
		seg.limit = 0xffff;
	}
	seg.base = (uint32_t)selector << 4;
	seg.selector = selector;
	return seg;
}

struct x86_segment x86_segment_flat(uint16_t selector, bool code, unsigned dpl, uint16_t flags)
{
	return (struct x86_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.attr = (uint16_t)(ATTR_DATA | X86_SEG_G | (code ? X86_SEG_CODE : 0) |
				   dpl << X86_SEG_DPL_SHIFT | flags),
	};
}

enum x86_status x86_stack_segment(struct x86_cpu *cpu, uint16_t selector, unsigned cpl,
	unsigned bad, uint32_t ext, struct x86_segment *ret_ss)
{
	struct x86_descriptor desc;

	X86_TRY(x86_descriptor_fetch(cpu, selector, bad, ext, &desc));
	if ((selector & 3u) != cpl || x86_attr_dpl(desc.attr) != cpl ||
		!x86_attr_writable(desc.attr))
		return x86_fault_code(cpu, bad, x86_selector_error(selector, ext));
	if (!(desc.attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_SS_EXC, x86_selector_error(selector, ext));
	X86_TRY(x86_descriptor_accessed(cpu, &desc));
	*ret_ss = x86_descriptor_segment(&desc, selector);
	return X86_OK;
}

static enum x86_status protected_stack(
	struct x86_cpu *cpu, uint16_t selector, struct x86_segment *ret_seg)
{
	if (x86_selector_null(selector)) {
		if (cpu->mode != 64 || cpu->cpl == 3 || (selector & 3) != cpu->cpl)
			return x86_gp(cpu, 0);
		*ret_seg = x86_segment_null(selector, cpu->cpl);
		return X86_OK;
	}
	return x86_stack_segment(cpu, selector, cpu->cpl, X86_GP, 0, ret_seg);
}

static enum x86_status protected_data(
	struct x86_cpu *cpu, uint16_t selector, struct x86_segment *ret_seg)
{
	struct x86_descriptor desc;

	if (x86_selector_null(selector)) {
		*ret_seg = x86_segment_null(selector, 0);
		return X86_OK;
	}
	X86_TRY(x86_descriptor_fetch(cpu, selector, X86_GP, 0, &desc));
	unsigned dpl = x86_attr_dpl(desc.attr);
	if (!x86_attr_readable(desc.attr) ||
		(!x86_attr_conforming(desc.attr) && ((selector & 3u) > dpl || cpu->cpl > dpl)))
		return x86_gp(cpu, x86_selector_error(selector, 0));
	if (!(desc.attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, x86_selector_error(selector, 0));
	X86_TRY(x86_descriptor_accessed(cpu, &desc));
	*ret_seg = x86_descriptor_segment(&desc, selector);
	return X86_OK;
}

enum x86_status x86_load_segment(struct x86_cpu *cpu, enum x86_seg_index index, uint16_t selector)
{
	struct x86_segment *seg = &cpu->s.seg[index];

	if (!(cpu->s.cr0 & X86_CR0_PE))
		*seg = x86_segment_real(seg, selector);
	else if (cpu->s.rflags & X86_VM)
		*seg = x86_segment_v86(selector);
	else if (index == X86_SS)
		X86_TRY(protected_stack(cpu, selector, seg));
	else
		X86_TRY(protected_data(cpu, selector, seg));
	if (cpu->mode != 64) /* where bases and limits of these do not count */
		x86_cpu_refresh(cpu);
	return X86_OK;
}

void x86_segment_drop_privileged(struct x86_cpu *cpu)
{
	static const uint8_t data[] = {X86_ES, X86_DS, X86_FS, X86_GS};

	for (unsigned i = 0; i < sizeof(data); i++) {
		struct x86_segment *seg = &cpu->s.seg[data[i]];
		/* A null selector has no privilege to lose; its base (FS, GS of 64-bit code) stays. */
		if (!x86_selector_null(seg->selector) && !x86_attr_conforming(seg->attr) &&
			x86_attr_dpl(seg->attr) < cpu->cpl)
			*seg = x86_segment_null(0, 0);
	}
}
