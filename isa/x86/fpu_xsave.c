/*
 * FXSAVE, FXRSTOR (SDM 1 10.5) and the XSAVE family (SDM 1 chapter 13): standard and compacted
 * formats, and the images of isa/x86/xsave.h.
 *
 * An image is built or taken in a local copy; only the pieces that the instruction touches are
 * accessed in guest memory, each once, all writes probed before the first. So a fault changes
 * nothing. As on AMD's processors the first and the last byte of the area must be accessible too, whatever
 * is saved or restored; the area reaches to the last component asked for (SDM 1 13.13 leaves that open).
 *
 * A component is in use when its contents differ from the initial configuration (no modified
 * optimisation: XSAVEOPT writes every component in use). Outside 64-bit mode only XMM0-7 and YMM0-7
 * exist. Supervisor components: none (IA32_XSS is zero), so XSAVES is XSAVEC for CPL 0.
 */
#include "isa/x86/xsave.h"

#include <errno.h>

#include "base/util.h"
#include "isa/x86/access.h"
#include "isa/x86/fpu.h"
#include "isa/x86/semantics.h"

#define XCOMP_COMPACTED BIT(63)

/* Offsets in the legacy area and the header. */
enum {
	FX_MXCSR = 24,
	FX_ST = 32,
	FX_XMM = 160,
	XS_BV = 512,
	XS_COMP = 520,
	XS_RESERVED = 528,
	XS_EXTENDED = 576,
};

/* ---- images ---- */

static void image_put_x87(const struct x86_fpu *fpu, bool wide, uint8_t *area)
{
	memcpy(area, &fpu->fcw, 2);
	memcpy(area + 2, &fpu->fsw, 2);
	area[4] = fpu->ftw;
	area[5] = 0;
	memcpy(area + 6, &fpu->fop, 2);
	memcpy(area + 8, &fpu->fip, 8);
	memcpy(area + 16, &fpu->fdp, 8);
	if (!wide) {
		memset(area + 12, 0, 4);
		memcpy(area + 12, &fpu->fcs, 2);
		memset(area + 20, 0, 4);
		memcpy(area + 20, &fpu->fds, 2);
	}
	for (unsigned i = 0; i < 8; i++) {
		memcpy(area + FX_ST + i * 16, fpu->st[i], 10);
		memset(area + FX_ST + i * 16 + 10, 0, 6);
	}
}

static void image_put_mxcsr(const struct x86_fpu *fpu, uint8_t *area)
{
	uint32_t mask = X86_MXCSR_VALID;

	memcpy(area + FX_MXCSR, &fpu->mxcsr, 4);
	memcpy(area + FX_MXCSR + 4, &mask, 4);
}

/* 16 bytes of each vector register from `from` on. */
static void image_put_vec(const struct x86_fpu *fpu, unsigned from, unsigned count, uint8_t *to)
{
	for (unsigned i = 0; i < count; i++)
		memcpy(to + i * 16, fpu->vec[i].b + from, 16);
}

static void image_take_x87(struct x86_fpu *fpu, bool wide, const uint8_t *area)
{
	memcpy(&fpu->fcw, area, 2);
	fpu->fcw = x86_fcw_fix(fpu->fcw);
	memcpy(&fpu->fsw, area + 2, 2);
	fpu->ftw = area[4];
	memcpy(&fpu->fop, area + 6, 2);
	fpu->fop &= 0x7ff;
	memcpy(&fpu->fip, area + 8, 8);
	memcpy(&fpu->fdp, area + 16, 8);
	fpu->fcs = fpu->fds = 0;
	if (!wide) {
		fpu->fip &= 0xffffffff;
		fpu->fdp &= 0xffffffff;
		memcpy(&fpu->fcs, area + 12, 2);
		memcpy(&fpu->fds, area + 20, 2);
	}
	for (unsigned i = 0; i < 8; i++) {
		memcpy(fpu->st[i], area + FX_ST + i * 16, 10);
		memset(fpu->st[i] + 10, 0, 6);
	}
	x86_fpu_summarize(fpu);
}

static void image_init_x87(struct x86_fpu *fpu)
{
	memset(fpu->st, 0, sizeof(fpu->st));
	fpu->fcw = X86_FCW_RESET;
	fpu->fsw = fpu->fop = fpu->fcs = fpu->fds = 0;
	fpu->ftw = 0;
	fpu->fip = fpu->fdp = 0;
}

/* `from` NULL: zeroes. */
static void image_take_vec(struct x86_fpu *fpu, unsigned at, unsigned count, const uint8_t *from)
{
	for (unsigned i = 0; i < count; i++) {
		if (from)
			memcpy(fpu->vec[i].b + at, from + i * 16, 16);
		else
			memset(fpu->vec[i].b + at, 0, 16);
	}
}

static uint32_t image_mxcsr(const uint8_t *area)
{
	uint32_t mxcsr;

	memcpy(&mxcsr, area + FX_MXCSR, 4);
	return mxcsr;
}

static uint64_t image_u64(const uint8_t *area, unsigned offset)
{
	uint64_t value;

	memcpy(&value, area + offset, 8);
	return value;
}

static bool image_is_zero(const uint8_t *area, unsigned offset, unsigned size)
{
	for (unsigned i = 0; i < size; i++)
		if (area[offset + i])
			return false;
	return true;
}

/* ---- which components are in use ---- */

static bool vec_in_use(const struct x86_fpu *fpu, unsigned from, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (fpu->vec[i].q[from / 8] | fpu->vec[i].q[from / 8 + 1])
			return true;
	return false;
}

static bool x87_in_use(const struct x86_fpu *fpu)
{
	if (fpu->fcw != X86_FCW_RESET || fpu->fsw || fpu->ftw || fpu->fop || fpu->fip || fpu->fdp ||
		fpu->fcs || fpu->fds)
		return true;
	return !image_is_zero(fpu->st[0], 0, sizeof(fpu->st));
}

static uint64_t components_in_use(const struct x86_fpu *fpu, unsigned count)
{
	return (x87_in_use(fpu) ? X86_XCR0_X87 : 0) |
	       (vec_in_use(fpu, 0, count) ? X86_XCR0_SSE : 0) |
	       (vec_in_use(fpu, 16, count) ? X86_XCR0_AVX : 0);
}

/* ---- the guest's area ---- */

struct area {
	const struct x86_insn *insn;
	uint64_t ea;
	gva_t linear;
	bool wide;	/* REX.W: 64-bit FIP and FDP */
	unsigned count; /* vector registers of the mode */
	uint8_t image[X86_XSAVE_BYTES];
	struct {
		uint16_t offset, size;
	} piece[8];
	unsigned pieces;
};

static enum x86_status area_open(
	struct x86_cpu *cpu, const struct x86_insn *insn, unsigned align, struct area *area)
{
	area->insn = insn;
	area->ea = x86_ea(cpu, insn);
	area->wide = insn->rex & 8;
	area->count = cpu->mode == 64 ? 16 : 8;
	area->pieces = 0;
	X86_TRY(x86_linear(cpu, insn->seg, area->ea, 1, X86_READ, &area->linear));
	/* XSAVE's alignment comes before all else; FXSAVE's last, #AC before #GP where it is on. */
	if (align == 64 && !IS_ALIGNED(area->linear, (gva_t)align))
		return x86_gp(cpu, 0);
	if (cpu->mode == 64 && !x86_canonical(cpu, area->linear))
		return x86_fault_code(cpu, insn->seg == X86_SS ? X86_SS_EXC : X86_GP, 0);
	if (!IS_ALIGNED(area->linear, (gva_t)align)) {
		X86_TRY(x86_check_alignment(cpu, area->linear, X86_XSAVE_LEGACY_BYTES));
		return x86_gp(cpu, 0);
	}
	return X86_OK;
}

static void area_piece(struct area *area, unsigned offset, unsigned size)
{
	area->piece[area->pieces].offset = (uint16_t)offset;
	area->piece[area->pieces].size = (uint16_t)size;
	area->pieces++;
}

/* Areas are aligned, so a piece that wraps around the address space was already refused. */
static enum x86_status area_read(
	struct x86_cpu *cpu, struct area *area, unsigned offset, unsigned size)
{
	return x86_load_bytes(cpu, area->insn->seg, area->ea + offset, size, area->image + offset);
}

static enum x86_status area_flush(struct x86_cpu *cpu, const struct area *area)
{
	for (unsigned i = 0; i < area->pieces; i++) {
		gva_t linear;

		X86_TRY(x86_linear(cpu, area->insn->seg, area->ea + area->piece[i].offset,
			area->piece[i].size, X86_WRITE, &linear));
		X86_TRY(x86_probe_write(cpu, linear, area->piece[i].size, cpu->cpl == 3));
	}
	for (unsigned i = 0; i < area->pieces; i++)
		X86_TRY(x86_store_bytes(cpu, area->insn->seg, area->ea + area->piece[i].offset,
			area->piece[i].size, area->image + area->piece[i].offset));
	return X86_OK;
}

/* ---- FXSAVE, FXRSTOR ---- */

enum x86_status x86_fpu_fxsave(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const struct x86_fpu *fpu = &cpu->s.fpu;
	struct area area;

	X86_TRY(area_open(cpu, insn, 16, &area));
	/* All of the area must be writable, its end being looked at first on AMD's processors. */
	X86_TRY(x86_check_store(cpu, insn->seg, area.ea + X86_XSAVE_LEGACY_BYTES - 1, 1));
	image_put_x87(fpu, area.wide, area.image);
	image_put_mxcsr(fpu, area.image);
	image_put_vec(fpu, 0, area.count, area.image + FX_XMM);
	area_piece(&area, 0, FX_XMM + area.count * 16);
	return area_flush(cpu, &area);
}

enum x86_status x86_fpu_fxrstor(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct x86_fpu *fpu = &cpu->s.fpu;
	struct area area;

	X86_TRY(area_open(cpu, insn, 16, &area));
	X86_TRY(area_read(cpu, &area, 0, X86_XSAVE_LEGACY_BYTES));
	if (image_mxcsr(area.image) & ~X86_MXCSR_VALID)
		return x86_gp(cpu, 0);
	image_take_x87(fpu, area.wide, area.image);
	fpu->mxcsr = image_mxcsr(area.image);
	image_take_vec(fpu, 0, area.count, area.image + FX_XMM);
	return X86_OK;
}

/* ---- XSAVE and its variants ---- */

static enum x86_status xsave_check(struct x86_cpu *cpu)
{
	if (!(cpu->s.cr4 & X86_CR4_OSXSAVE))
		return x86_ud(cpu);
	return cpu->s.cr0 & X86_CR0_TS ? x86_fault(cpu, X86_NM) : X86_OK;
}

/* Requested-feature bitmap: EDX:EAX & XCR0. */
static uint64_t requested(const struct x86_cpu *cpu)
{
	uint64_t mask = (uint32_t)cpu->s.reg[X86_RAX] | cpu->s.reg[X86_RDX] << 32;

	return mask & cpu->s.xcr0 & X86_XSAVE_COMPONENTS;
}

/* Bytes of an area for these components; AVX is the last one. */
static unsigned area_bytes(uint64_t components)
{
	return components & X86_XCR0_AVX ? X86_XSAVE_AVX_OFFSET + X86_XSAVE_AVX_BYTES : XS_EXTENDED;
}

static enum x86_status xsave_probe(struct x86_cpu *cpu, const struct area *area, uint64_t rfbm)
{
	const unsigned seg = area->insn->seg;

	X86_TRY(x86_check_store(cpu, seg, area->ea, 1));
	return x86_check_store(cpu, seg, area->ea + area_bytes(rfbm) - 1, 1);
}

/*
 * Put the chosen components into the image and note them as pieces. AVX state goes to offset avx.
 */
static void xsave_components(
	const struct x86_cpu *cpu, struct area *area, uint64_t chosen, unsigned avx)
{
	const struct x86_fpu *fpu = &cpu->s.fpu;

	if (chosen & X86_XCR0_X87) {
		image_put_x87(fpu, area->wide, area->image);
		area_piece(area, 0, FX_MXCSR);
		area_piece(area, FX_ST, 128);
	}
	if (chosen & X86_XCR0_SSE) {
		image_put_vec(fpu, 0, area->count, area->image + FX_XMM);
		area_piece(area, FX_XMM, area->count * 16);
	}
	if (chosen & X86_XCR0_AVX) {
		image_put_vec(fpu, 16, area->count, area->image + avx);
		area_piece(area, avx, area->count * 16);
	}
}

static enum x86_status xsave_standard(
	struct x86_cpu *cpu, const struct x86_insn *insn, bool optimize)
{
	uint64_t rfbm = requested(cpu), in_use, bv;
	struct area area;

	X86_TRY(xsave_check(cpu));
	X86_TRY(area_open(cpu, insn, 64, &area));
	X86_TRY(xsave_probe(cpu, &area, rfbm));
	X86_TRY(area_read(cpu, &area, XS_BV, 8));
	in_use = components_in_use(&cpu->s.fpu, area.count);
	bv = (image_u64(area.image, XS_BV) & ~rfbm) | (in_use & rfbm);
	memcpy(area.image + XS_BV, &bv, 8);
	area_piece(&area, XS_BV, 8);
	if (rfbm & (X86_XCR0_SSE | X86_XCR0_AVX)) {
		image_put_mxcsr(&cpu->s.fpu, area.image);
		area_piece(&area, FX_MXCSR, 8);
	}
	xsave_components(cpu, &area, optimize ? rfbm & in_use : rfbm, X86_XSAVE_AVX_OFFSET);
	return area_flush(cpu, &area);
}

enum x86_status x86_fpu_xsave(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return xsave_standard(cpu, insn, false);
}

enum x86_status x86_fpu_xsaveopt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return xsave_standard(cpu, insn, true);
}

/* AVX is the first extended component known here, so compacting never moves it. */
enum x86_status x86_fpu_xsavec(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t rfbm = requested(cpu), comp = rfbm | XCOMP_COMPACTED, in_use;
	const struct x86_fpu *fpu = &cpu->s.fpu;
	struct area area;

	X86_TRY(xsave_check(cpu));
	X86_TRY(area_open(cpu, insn, 64, &area));
	X86_TRY(xsave_probe(cpu, &area, rfbm));
	in_use = components_in_use(fpu, area.count);
	if (fpu->mxcsr != X86_MXCSR_RESET)
		in_use |= X86_XCR0_SSE;
	in_use &= rfbm;
	memcpy(area.image + XS_BV, &in_use, 8);
	memcpy(area.image + XS_COMP, &comp, 8);
	area_piece(&area, XS_BV, 16);
	if (in_use & X86_XCR0_SSE) {
		image_put_mxcsr(fpu, area.image);
		area_piece(&area, FX_MXCSR, 8);
	}
	xsave_components(cpu, &area, in_use, XS_EXTENDED);
	return area_flush(cpu, &area);
}

enum x86_status x86_fpu_xsaves(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return x86_fpu_xsavec(cpu, insn);
}

/* ---- XRSTOR ---- */

/* Is the header one that XRSTOR takes? SDM 1 13.8.1, 13.8.2. */
static bool header_valid(const uint8_t *image, uint64_t xcr0, bool compact_allowed)
{
	uint64_t bv = image_u64(image, XS_BV), comp = image_u64(image, XS_COMP);

	if (!(comp & XCOMP_COMPACTED))
		return !(bv & ~xcr0) && !comp && image_is_zero(image, XS_RESERVED, 8);
	if (!compact_allowed || ((comp & ~XCOMP_COMPACTED) & ~xcr0) ||
		(bv & ~(comp & ~XCOMP_COMPACTED)))
		return false;
	return image_is_zero(image, XS_RESERVED, 48);
}

static enum x86_status xrstor_read(
	struct x86_cpu *cpu, struct area *area, uint64_t load, bool mxcsr)
{
	if (load & X86_XCR0_X87) {
		X86_TRY(area_read(cpu, area, 0, FX_MXCSR));
		X86_TRY(area_read(cpu, area, FX_ST, 128));
	}
	if (mxcsr)
		X86_TRY(area_read(cpu, area, FX_MXCSR, 4));
	if (load & X86_XCR0_SSE)
		X86_TRY(area_read(cpu, area, FX_XMM, area->count * 16));
	if (load & X86_XCR0_AVX)
		X86_TRY(area_read(cpu, area, XS_EXTENDED, area->count * 16));
	return X86_OK;
}

/* Components of rfbm: taken from the image if in `load`, else initialised. */
static void xrstor_components(
	struct x86_fpu *fpu, const struct area *area, uint64_t rfbm, uint64_t load)
{
	const uint8_t *image = area->image;

	if (load & X86_XCR0_X87)
		image_take_x87(fpu, area->wide, image);
	else if (rfbm & X86_XCR0_X87)
		image_init_x87(fpu);
	if (rfbm & X86_XCR0_SSE)
		image_take_vec(fpu, 0, area->count, load & X86_XCR0_SSE ? image + FX_XMM : NULL);
	if (rfbm & X86_XCR0_AVX)
		image_take_vec(
			fpu, 16, area->count, load & X86_XCR0_AVX ? image + XS_EXTENDED : NULL);
}

static enum x86_status xrstor_any(struct x86_cpu *cpu, const struct x86_insn *insn, bool supervisor)
{
	uint64_t rfbm = requested(cpu), load;
	bool compacted, mxcsr;
	struct area area;

	X86_TRY(xsave_check(cpu));
	X86_TRY(area_open(cpu, insn, 64, &area));
	X86_TRY(area_read(cpu, &area, 0, 1));
	X86_TRY(area_read(cpu, &area, XS_BV, X86_XSAVE_HEADER_BYTES));
	compacted = image_u64(area.image, XS_COMP) & XCOMP_COMPACTED;
	if (!header_valid(area.image, cpu->s.xcr0, x86_has(&cpu->features, X86_F_XSAVEC)) ||
		(supervisor && !compacted))
		return x86_gp(cpu, 0);
	if (!compacted)
		X86_TRY(area_read(cpu, &area, area_bytes(rfbm) - 1, 1));
	load = rfbm & image_u64(area.image, XS_BV);
	mxcsr = compacted ? load & X86_XCR0_SSE : rfbm & (X86_XCR0_SSE | X86_XCR0_AVX);
	X86_TRY(xrstor_read(cpu, &area, load, mxcsr));
	if (mxcsr && (image_mxcsr(area.image) & ~X86_MXCSR_VALID))
		return x86_gp(cpu, 0);
	if (mxcsr)
		cpu->s.fpu.mxcsr = image_mxcsr(area.image);
	else if (rfbm & X86_XCR0_SSE)
		cpu->s.fpu.mxcsr = X86_MXCSR_RESET;
	xrstor_components(&cpu->s.fpu, &area, rfbm, load);
	return X86_OK;
}

enum x86_status x86_fpu_xrstor(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return xrstor_any(cpu, insn, false);
}

enum x86_status x86_fpu_xrstors(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return xrstor_any(cpu, insn, true);
}

/* ---- images for others ---- */

void x86_fpu_to_xsave(const struct x86_state *state, void *area, size_t size_bytes)
{
	const struct x86_fpu *fpu = &state->fpu;
	uint64_t bv = components_in_use(fpu, 16);
	uint8_t *image = area;

	memset(area, 0, size_bytes);
	if (size_bytes < X86_XSAVE_BYTES)
		return;
	/* So that a reader which ties MXCSR to the component takes it. */
	if (fpu->mxcsr != X86_MXCSR_RESET)
		bv |= X86_XCR0_SSE;
	memcpy(image + XS_BV, &bv, 8);
	image_put_x87(fpu, true, image);
	image_put_mxcsr(fpu, image);
	image_put_vec(fpu, 0, 16, image + FX_XMM);
	image_put_vec(fpu, 16, 16, image + XS_EXTENDED);
}

int x86_fpu_from_xsave(struct x86_state *state, const void *area, size_t size_bytes)
{
	struct area from = {.wide = true, .count = 16};
	bool mxcsr;
	uint64_t bv;

	if (size_bytes < X86_XSAVE_BYTES)
		return -EINVAL;
	memcpy(from.image, area, X86_XSAVE_BYTES);
	if (!header_valid(from.image, X86_XSAVE_COMPONENTS, false))
		return -EINVAL;
	bv = image_u64(from.image, XS_BV);
	mxcsr = bv & (X86_XCR0_SSE | X86_XCR0_AVX);
	if (mxcsr && (image_mxcsr(from.image) & ~X86_MXCSR_VALID))
		return -EINVAL;
	state->fpu.mxcsr = mxcsr ? image_mxcsr(from.image) : X86_MXCSR_RESET;
	xrstor_components(&state->fpu, &from, X86_XSAVE_COMPONENTS, bv);
	return 0;
}
