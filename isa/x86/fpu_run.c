/*
 * x87 arithmetic, loads, stores and compares (SDM 1 chapter 8, SDM 2 "F..."): the host's own
 * instruction on the guest's whole x87 state, which goes in and out as an FXSAVE image.
 *
 * The host runs with the guest's control word, so that unmasked exceptions behave exactly (result
 * kept back, stack not popped, exponent wrapped): an x87 exception is only raised by the next
 * waiting instruction, and the stub executes none. The guest sees ES set and takes #MF at its next
 * waiting one.
 *
 * FIP, FDP and FOP are set by every non-control instruction, as Intel processors do; AMD's only
 * show them while an exception is pending. Left out: FERR# and IRQ 13 for CR0.NE = 0 (#MF is raised
 * instead).
 */
#include "isa/x86/access.h"
#include "isa/x86/fpu.h"
#include "isa/x86/native_stub.h"
#include "isa/x86/semantics.h"
#include "isa/x86/xsave.h"

#define FSW_PE 0x20u

static void fpu_image_in(const struct x86_fpu *fpu, uint8_t image[512])
{
	memcpy(image, &fpu->fcw, 2);
	memcpy(image + 2, &fpu->fsw, 2);
	image[4] = fpu->ftw;
	memset(image + 5, 0, 19);
	memcpy(image + 32, fpu->st, sizeof(fpu->st));
}

static void fpu_image_out(struct x86_fpu *fpu, const uint8_t image[512])
{
	memcpy(&fpu->fsw, image + 2, 2);
	fpu->ftw = image[4];
	memcpy(fpu->st, image + 32, sizeof(fpu->st));
}

static const struct x86_operand *memory_operand(const struct x86_insn *insn)
{
	return insn->op[0].kind == X86_O_MEM ? &insn->op[0] : NULL;
}

/* Remember the instruction and its operand for a later exception. */
static void fpu_pointers(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct x86_fpu *fpu = &cpu->s.fpu;

	fpu->fop = (uint16_t)((insn->opcode & 7) << 8 | insn->modrm);
	fpu->fip = cpu->s.reg[X86_RIP] - insn->len;
	fpu->fcs = cpu->s.seg[X86_CS].selector;
	if (!memory_operand(insn))
		return;
	fpu->fdp = x86_ea(cpu, insn);
	fpu->fds = insn->seg < 6 ? cpu->s.seg[insn->seg].selector : 0;
}

/* Was the result of a store held back by an unmasked exception (other than inexact)? */
static bool fpu_store_suppressed(const uint8_t image[512])
{
	uint16_t fcw, fsw;

	memcpy(&fcw, image, 2);
	memcpy(&fsw, image + 2, 2);
	return fsw & ~fcw & X86_FSW_FLAGS & ~FSW_PE;
}

enum x86_status x86_fpu_run(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const struct x86_operand *mem = memory_operand(insn);
	bool store = insn->row->attr & X86_A_WRITES_MEM;
	struct x86_fpu *fpu = &cpu->s.fpu;
	native_fn *fn;
	struct native_ctx *ctx;
	enum x86_status status;

	if (x86_fpu_pending(fpu))
		return x86_fault(cpu, X86_MF);
	if (x86_fpu_fast(cpu, insn, &status)) {
		if (status == X86_OK)
			fpu_pointers(cpu, insn);
		return status;
	}
	fn = x86_native_stub(cpu, insn, NATIVE_X87);
	if (!fn)
		return x86_ud(cpu);
	ctx = &cpu->native->ctx;
	if (mem && !store)
		X86_TRY(x86_native_load(cpu, insn, ctx->mem, mem->size));
	fpu_image_in(fpu, ctx->fx);
	ctx->rflags = (cpu->s.rflags & X86_FLAGS_ARITH) | X86_FLAGS_FIXED;
	fn(ctx);
	if (store && fpu_store_suppressed(ctx->fx))
		X86_TRY(x86_check_store(cpu, insn->seg, x86_ea(cpu, insn), mem->size));
	else if (store)
		X86_TRY(x86_native_store(cpu, insn, ctx->mem, mem->size));
	fpu_image_out(fpu, ctx->fx);
	fpu_pointers(cpu, insn);
	if (insn->row->flags_out[0])
		cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)X86_FLAGS_ARITH) |
				(ctx->rflags & X86_FLAGS_ARITH);
	return X86_OK;
}
