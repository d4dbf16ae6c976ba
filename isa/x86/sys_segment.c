/*
 * Instructions on segment registers, descriptors and descriptor tables (SDM 2: MOV, PUSH, POP, LDS and
 * kin, LAR, LSL, VERR, VERW, ARPL, SGDT, SIDT, LGDT, LIDT, SLDT, STR, LLDT, LTR, SWAPGS, RDFSBASE and kin).
 */
#include "isa/x86/semantics.h"

#include "isa/x86/descriptor.h"

/* ---- segment registers ---- */

enum x86_status x86_mov_from_seg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (insn->op[1].reg > X86_GS)
		return x86_ud(cpu);
	return x86_op_write(cpu, insn, 0, cpu->s.seg[insn->op[1].reg].selector);
}

/* Load it; interrupts and debug traps wait for the instruction after a load of SS by MOV or POP. */
static enum x86_status load_shadowed(struct x86_cpu *cpu, unsigned seg, uint16_t selector)
{
	if (seg > X86_GS || seg == X86_CS)
		return x86_ud(cpu);
	X86_TRY(x86_load_segment(cpu, (enum x86_seg_index)seg, selector));
	if (seg == X86_SS)
		cpu->s.mov_ss_shadow = true;
	return X86_BOUNDARY;
}

enum x86_status x86_mov_to_seg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t selector;

	X86_TRY(x86_op_read(cpu, insn, 1, &selector));
	return load_shadowed(cpu, insn->op[0].reg, (uint16_t)selector);
}

/* Zero-extended; SDM 2 "PUSH" would also let the slot's upper part keep what it held. */
enum x86_status x86_push_seg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return x86_push(cpu, insn->osize, cpu->s.seg[insn->op[0].reg].selector);
}

enum x86_status x86_pop_seg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t rsp = cpu->s.reg[X86_RSP];
	uint64_t sp = rsp & x86_stack_mask(cpu), selector;

	/* POP SS moves the stack pointer in the width of the stack it came from. */
	X86_TRY(x86_load(cpu, X86_SS, sp, insn->osize, &selector));
	x86_set_sp(cpu, sp + insn->osize);
	enum x86_status status = load_shadowed(cpu, insn->op[0].reg, (uint16_t)selector);
	if (status == X86_FAULT)
		cpu->s.reg[X86_RSP] = rsp;
	return status;
}

/* LES LDS LSS LFS LGS: op[0] the register, op[1] the far pointer. */
static enum x86_status load_far_pointer(
	struct x86_cpu *cpu, const struct x86_insn *insn, enum x86_seg_index seg)
{
	const uint64_t ea = x86_ea(cpu, insn);
	uint64_t offset, selector;

	X86_TRY(x86_load(cpu, insn->seg, ea, insn->osize, &offset));
	X86_TRY(x86_load(cpu, insn->seg, ea + insn->osize, 2, &selector));
	X86_TRY(x86_load_segment(cpu, seg, (uint16_t)selector));
	x86_gpr_write(cpu, insn->op[0].reg, insn->osize, offset);
	return X86_BOUNDARY;
}

enum x86_status x86_les(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_far_pointer(cpu, insn, X86_ES);
}

enum x86_status x86_lds(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_far_pointer(cpu, insn, X86_DS);
}

enum x86_status x86_lss(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_far_pointer(cpu, insn, X86_SS);
}

enum x86_status x86_lfs(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_far_pointer(cpu, insn, X86_FS);
}

enum x86_status x86_lgs(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_far_pointer(cpu, insn, X86_GS);
}

/* ---- questions about descriptors: they answer in ZF ---- */

static enum x86_status answer(struct x86_cpu *cpu, bool yes)
{
	cpu->s.rflags = yes ? cpu->s.rflags | X86_ZF : cpu->s.rflags & ~(uint64_t)X86_ZF;
	return X86_OK;
}

/* Read the descriptor that op[i] names; *ret_visible: there is one that the program may know of. */
static enum x86_status look_up(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned i,
	struct x86_descriptor *desc, bool *ret_visible)
{
	uint64_t selector;

	X86_TRY(x86_op_read(cpu, insn, i, &selector));
	X86_TRY(x86_descriptor_read(cpu, (uint16_t)selector, desc, ret_visible));
	if (*ret_visible && !x86_attr_conforming(desc->attr)) {
		unsigned dpl = x86_attr_dpl(desc->attr);
		*ret_visible = cpu->cpl <= dpl && (selector & 3) <= dpl;
	}
	return X86_OK;
}

/* Bit masks of the system types that LAR and LSL know (SDM 2, their tables). */
#define LAR_LEGACY 0x1a3eu /* TSS, LDT, call and task gates */
#define LAR_LONG   0x1a04u
#define LSL_LEGACY 0x0a0eu /* those that have a limit */
#define LSL_LONG   0x0a04u

static bool type_among(uint16_t attr, unsigned types)
{
	return (attr & X86_SEG_S) || (types >> (attr & X86_SEG_TYPE) & 1);
}

enum x86_status x86_lar(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct x86_descriptor desc;
	bool visible;

	X86_TRY(look_up(cpu, insn, 1, &desc, &visible));
	if (!visible || !type_among(desc.attr, cpu->long_mode ? LAR_LONG : LAR_LEGACY))
		return answer(cpu, false);
	x86_gpr_write(cpu, insn->op[0].reg, insn->osize,
		/* Limit bits 19-16 among them, which SDM 2 leaves open. */
		desc.raw[0] >> 32 & (insn->osize == 2 ? 0xff00 : 0xffff00));
	return answer(cpu, true);
}

enum x86_status x86_lsl(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct x86_descriptor desc;
	bool visible;

	X86_TRY(look_up(cpu, insn, 1, &desc, &visible));
	if (!visible || !type_among(desc.attr, cpu->long_mode ? LSL_LONG : LSL_LEGACY))
		return answer(cpu, false);
	x86_gpr_write(cpu, insn->op[0].reg, insn->osize, x86_descriptor_limit(&desc));
	return answer(cpu, true);
}

enum x86_status x86_verr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct x86_descriptor desc;
	bool visible;

	X86_TRY(look_up(cpu, insn, 0, &desc, &visible));
	return answer(cpu, visible && x86_attr_readable(desc.attr));
}

enum x86_status x86_verw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct x86_descriptor desc;
	bool visible;

	X86_TRY(look_up(cpu, insn, 0, &desc, &visible));
	return answer(cpu, visible && x86_attr_writable(desc.attr));
}

enum x86_status x86_arpl(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t dest, src;

	X86_TRY(x86_op_read(cpu, insn, 1, &src));
	X86_TRY(x86_op_read(cpu, insn, 0, &dest));
	if ((dest & 3) >= (src & 3))
		return answer(cpu, false);
	X86_TRY(x86_op_write(cpu, insn, 0, (dest & ~3ull) | (src & 3)));
	return answer(cpu, true);
}

/* ---- descriptor table registers ---- */

/* Reading them is privileged if the system says so (CR4.UMIP). */
static bool umip_forbids(const struct x86_cpu *cpu)
{
	return (cpu->s.cr4 & X86_CR4_UMIP) && cpu->cpl;
}

static enum x86_status store_table(
	struct x86_cpu *cpu, const struct x86_insn *insn, const struct x86_table_register *table)
{
	uint8_t bytes[10];

	if (umip_forbids(cpu))
		return x86_gp(cpu, 0);
	memcpy(bytes, &table->limit, 2);
	memcpy(bytes + 2, &table->base, 8);
	return x86_store_bytes(cpu, insn->seg, x86_ea(cpu, insn), cpu->mode == 64 ? 10 : 6, bytes);
}

static enum x86_status load_table(
	struct x86_cpu *cpu, const struct x86_insn *insn, struct x86_table_register *table)
{
	uint8_t bytes[10] = {0};
	struct x86_table_register loaded = {0};

	X86_TRY(x86_load_bytes(cpu, insn->seg, x86_ea(cpu, insn), cpu->mode == 64 ? 10 : 6, bytes));
	memcpy(&loaded.limit, bytes, 2);
	memcpy(&loaded.base, bytes + 2, 8);
	if (cpu->mode != 64 && insn->osize == 2)
		loaded.base &= 0xffffff;
	if (cpu->mode == 64 && !x86_canonical(cpu, loaded.base))
		return x86_gp(cpu, 0);
	*table = loaded;
	return X86_OK;
}

enum x86_status x86_sgdt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return store_table(cpu, insn, &cpu->s.gdtr);
}

enum x86_status x86_sidt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return store_table(cpu, insn, &cpu->s.idtr);
}

enum x86_status x86_lgdt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_table(cpu, insn, &cpu->s.gdtr);
}

enum x86_status x86_lidt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_table(cpu, insn, &cpu->s.idtr);
}

enum x86_status x86_sldt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (umip_forbids(cpu))
		return x86_gp(cpu, 0);
	return x86_op_write(cpu, insn, 0, cpu->s.ldtr.selector);
}

enum x86_status x86_str(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (umip_forbids(cpu))
		return x86_gp(cpu, 0);
	return x86_op_write(cpu, insn, 0, cpu->s.tr.selector);
}

/* The descriptor of an LDT or TSS to be loaded: in the GDT, present, 16 bytes in long mode. */
static enum x86_status fetch_system(
	struct x86_cpu *cpu, uint16_t selector, bool tss, struct x86_descriptor *desc)
{
	uint32_t error = x86_selector_error(selector, 0);

	if (selector & 4)
		return x86_gp(cpu, error);
	X86_TRY(x86_descriptor_fetch(cpu, selector, X86_GP, 0, desc));
	if (tss ? !x86_attr_tss(cpu, desc->attr, false)
		: x86_attr_system(desc->attr) != X86_SYS_LDT)
		return x86_gp(cpu, error);
	if (!(desc->attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, error);
	X86_TRY(x86_descriptor_extend(cpu, desc, X86_GP, 0));
	if (!x86_canonical(cpu, x86_descriptor_base(desc)))
		return x86_gp(cpu, error);
	return X86_OK;
}

enum x86_status x86_lldt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct x86_descriptor desc;
	uint64_t selector;

	X86_TRY(x86_op_read(cpu, insn, 0, &selector));
	if (x86_selector_null((uint16_t)selector)) {
		cpu->s.ldtr = x86_segment_null((uint16_t)selector, 0);
		return X86_OK;
	}
	X86_TRY(fetch_system(cpu, (uint16_t)selector, false, &desc));
	cpu->s.ldtr = x86_descriptor_segment(&desc, (uint16_t)selector);
	return X86_OK;
}

enum x86_status x86_ltr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct x86_descriptor desc;
	uint64_t selector;

	X86_TRY(x86_op_read(cpu, insn, 0, &selector));
	if (x86_selector_null((uint16_t)selector))
		return x86_gp(cpu, 0);
	X86_TRY(fetch_system(cpu, (uint16_t)selector, true, &desc));
	X86_TRY(x86_descriptor_type(cpu, &desc, X86_TSS_BUSY_BIT, 0));
	cpu->s.tr = x86_descriptor_segment(&desc, (uint16_t)selector);
	return X86_OK;
}

/* ---- FS and GS bases ---- */

enum x86_status x86_swapgs(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t base = cpu->s.seg[X86_GS].base;

	cpu->s.seg[X86_GS].base = cpu->s.msr.kernel_gs_base;
	cpu->s.msr.kernel_gs_base = base;
	return X86_OK;
}

static enum x86_status read_base(
	struct x86_cpu *cpu, const struct x86_insn *insn, enum x86_seg_index seg)
{
	if (!(cpu->s.cr4 & X86_CR4_FSGSBASE))
		return x86_ud(cpu);
	x86_gpr_write(cpu, insn->op[0].reg, insn->op[0].size, cpu->s.seg[seg].base);
	return X86_OK;
}

static enum x86_status write_base(
	struct x86_cpu *cpu, const struct x86_insn *insn, enum x86_seg_index seg)
{
	uint64_t base = x86_gpr_read(cpu, insn->op[0].reg, insn->op[0].size);

	if (!(cpu->s.cr4 & X86_CR4_FSGSBASE))
		return x86_ud(cpu);
	if (!x86_canonical(cpu, base))
		return x86_gp(cpu, 0);
	cpu->s.seg[seg].base = base;
	return X86_OK;
}

enum x86_status x86_rdfsbase(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return read_base(cpu, insn, X86_FS);
}

enum x86_status x86_rdgsbase(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return read_base(cpu, insn, X86_GS);
}

enum x86_status x86_wrfsbase(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return write_base(cpu, insn, X86_FS);
}

enum x86_status x86_wrgsbase(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return write_base(cpu, insn, X86_GS);
}
