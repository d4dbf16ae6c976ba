/*
 * Vector instructions in general: MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, AVX, AVX2, FMA, F16C,
 * run by the host's own instruction (isa/x86/native_stub.h). SDM 2; SIMD exceptions as SDM 1 11.5.
 *
 * Operand 0 is the destination (of rows with flags_out it is only read). SSE keeps the bytes of the
 * destination above 15; VEX zeroes everything above the vector length.
 *
 * Inexact: the PE flag beside an unmasked underflow is also set for a result that only its denormal form
 * cannot hold, and beside an unmasked overflow always.
 */
#include "isa/x86/access.h"
#include "isa/x86/fpu.h"
#include "isa/x86/native_stub.h"
#include "isa/x86/semantics.h"

/*
 * Raised exceptions against the guest's masks: #XM, or #UD if the OS does not want to hear of them.
 */
static enum x86_status vec_exceptions(struct x86_cpu *cpu, uint32_t raised)
{
	uint32_t unmasked = raised & ~(cpu->s.fpu.mxcsr >> X86_MXCSR_MASK_SHIFT) & X86_MXCSR_FLAGS;

	if (likely(!unmasked)) {
		cpu->s.fpu.mxcsr |= raised;
		return X86_OK;
	}
	/* Invalid, denormal and divide-by-zero are found before anything is computed. */
	if (unmasked & 7)
		raised &= 7;
	cpu->s.fpu.mxcsr |= raised;
	return x86_fault(cpu, cpu->s.cr4 & X86_CR4_OSXMMEXCPT ? X86_XM : X86_UD);
}

/*
 * What the stub runs with: the guest's controls, all exceptions masked, no flags. A masked
 * underflow is flagged only if the result is inexact too, an unmasked one is raised for any tiny
 * result: with flushing to zero every tiny result is flagged, and none is stored.
 */
static uint32_t vec_stub_mxcsr(uint32_t guest)
{
	uint32_t mxcsr = (guest & ~X86_MXCSR_FLAGS) | X86_MXCSR_MASKS;

	return guest & X86_MXCSR_UM ? mxcsr : mxcsr | X86_MXCSR_FTZ;
}

/* VCVTPS2PH never flushes to zero: its tiny results are there to be seen. */
static void vec_check_half(
	const struct x86_cpu *cpu, const struct x86_insn *insn, struct native_ctx *ctx)
{
	const bool to_memory = insn->op[0].kind == X86_O_MEM;
	const uint16_t *half = to_memory ? (const uint16_t *)ctx->mem : ctx->out.w;

	if (likely(cpu->s.fpu.mxcsr & X86_MXCSR_UM) || insn->operand_count != 3)
		return;
	for (unsigned i = 0; i < insn->vl / 4; i++)
		if (!(half[i] & 0x7c00) && (half[i] & 0x3ff))
			ctx->mxcsr |= X86_MXCSR_UE;
}

/*
 * Flushing to zero flags every tiny result as inexact too: run again without, to learn whether one was.
 */
static void vec_check_inexact(struct x86_cpu *cpu, native_fn *fn, struct native_ctx *ctx)
{
	const uint32_t guest = cpu->s.fpu.mxcsr, flags = ctx->mxcsr & X86_MXCSR_FLAGS;

	if (likely(guest & X86_MXCSR_UM) || !(flags & X86_MXCSR_UE))
		return;
	ctx->mxcsr = (guest & ~(X86_MXCSR_FLAGS | X86_MXCSR_FTZ)) | X86_MXCSR_MASKS;
	fn(ctx);
	ctx->mxcsr = (ctx->mxcsr & ~X86_MXCSR_FLAGS) | (flags & ~X86_MXCSR_PE) |
		     (ctx->mxcsr & X86_MXCSR_PE);
}

/* Points the stub's operands at the registers and loads the memory operand. */
static enum x86_status vec_bind(
	struct x86_cpu *cpu, const struct x86_insn *insn, struct native_ctx *ctx)
{
	for (unsigned i = 0; i < insn->operand_count; i++) {
		const struct x86_operand *op = &insn->op[i];

		switch (op->kind) {
		case X86_O_VEC: ctx->operand[i] = &cpu->s.fpu.vec[op->reg]; break;
		case X86_O_MMX: ctx->operand[i] = x86_fpu_mmx(&cpu->s.fpu, op->reg); break;
		case X86_O_GPR: ctx->operand[i] = &cpu->s.reg[op->reg]; break;
		case X86_O_MEM:
			if (op->size == 0 || op->size > sizeof(ctx->mem))
				return x86_ud(cpu);
			if (i > 0 || (insn->row->attr & X86_A_RMW))
				X86_TRY(x86_native_load(cpu, insn, ctx->mem, op->size));
			break;
		default: break;
		}
	}
	return X86_OK;
}

void x86_vec_write(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned reg,
	const union x86_vector *value)
{
	union x86_vector *to = &cpu->s.fpu.vec[reg];

	if (!(insn->prefix & X86_P_VEX)) {
		memcpy(to, value, 16);
		return;
	}
	memcpy(to, value, 32);
	memset(to->b + 32, 0, 32);
}

/* Operand 0's new value into the guest; memory comes first as it may fault. */
static enum x86_status vec_commit(
	struct x86_cpu *cpu, const struct x86_insn *insn, const struct native_ctx *ctx)
{
	const struct x86_operand *op = &insn->op[0];

	switch (op->kind) {
	case X86_O_MEM:
		if (insn->row->flags_out[0])
			return X86_OK;
		return x86_native_store(cpu, insn, ctx->mem, op->size);
	case X86_O_VEC:
		if (!insn->row->flags_out[0])
			x86_vec_write(cpu, insn, op->reg, &ctx->out);
		return X86_OK;
	case X86_O_GPR: cpu->s.reg[op->reg] = ctx->out_gpr; return X86_OK;
	default: return X86_OK; /* MMX: after the transition */
	}
}

static bool uses_mmx(const struct x86_insn *insn)
{
	return insn->op[0].kind == X86_O_MMX || insn->op[1].kind == X86_O_MMX;
}

/*
 * The MMX transition of instructions with an operand in an MMX register. CVTPI2PS and CVTPI2PD from
 * memory make none: so says SDM 2 of the latter, and AMD processors do the same for both.
 */
static void vec_mmx_commit(
	struct x86_cpu *cpu, const struct x86_insn *insn, const struct native_ctx *ctx)
{
	if (!uses_mmx(insn))
		return;
	x86_fpu_enter_mmx(&cpu->s.fpu);
	if (insn->op[0].kind == X86_O_MMX)
		x86_fpu_mmx_write(&cpu->s.fpu, insn->op[0].reg, ctx->out.q[0]);
}

static void vec_flags_commit(struct x86_cpu *cpu, uint64_t host)
{
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)X86_FLAGS_ARITH) | (host & X86_FLAGS_ARITH);
}

enum x86_status x86_vec_run(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	native_fn *fn = x86_native_stub(cpu, insn, NATIVE_VEC);
	uint32_t attr = insn->row->attr, mxcsr = cpu->s.fpu.mxcsr;
	enum x86_status status;
	struct native_ctx *ctx;

	if (unlikely(!fn))
		return x86_ud(cpu);
	ctx = &cpu->native->ctx;
	X86_TRY(vec_bind(cpu, insn, ctx));
	if (attr & X86_A_MXCSR)
		ctx->mxcsr = vec_stub_mxcsr(cpu->s.fpu.mxcsr);
	fn(ctx);
	if (attr & X86_A_MXCSR) {
		if (insn->row->feature == X86_F_F16C)
			vec_check_half(cpu, insn, ctx);
		vec_check_inexact(cpu, fn, ctx);
		if ((attr & X86_A_WRITES_MEM) && insn->op[0].kind == X86_O_MEM)
			X86_TRY(x86_check_store(cpu, insn->seg, x86_ea(cpu, insn), insn->op[0].size));
		status = vec_exceptions(cpu, ctx->mxcsr & X86_MXCSR_FLAGS);
		if (unlikely(status != X86_OK)) {
			if (uses_mmx(insn)) /* the transition comes first on AMD's processors */
				x86_fpu_enter_mmx(&cpu->s.fpu);
			return status;
		}
	}
	status = vec_commit(cpu, insn, ctx);
	if (unlikely(status != X86_OK)) {
		cpu->s.fpu.mxcsr = mxcsr;
		return status;
	}
	if (insn->row->flags_out[0])
		vec_flags_commit(cpu, ctx->rflags);
	if (attr & X86_A_MMX)
		vec_mmx_commit(cpu, insn, ctx);
	return X86_OK;
}

/*
 * PCMPESTRM 60, PCMPESTRI 61, PCMPISTRM 62, PCMPISTRI 63 of 0F3A: lengths from EAX and EDX; the
 * result goes to ECX (odd opcodes) or XMM0.
 */
enum x86_status x86_vec_pcmpstr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	native_fn *fn = x86_native_stub(cpu, insn, NATIVE_PCMPSTR);
	struct native_ctx *ctx;

	if (unlikely(!fn))
		return x86_ud(cpu);
	ctx = &cpu->native->ctx;
	X86_TRY(vec_bind(cpu, insn, ctx));
	ctx->rax = cpu->s.reg[X86_RAX];
	ctx->rdx = cpu->s.reg[X86_RDX];
	fn(ctx);
	if (insn->opcode & 1)
		cpu->s.reg[X86_RCX] = (uint32_t)ctx->out_gpr;
	else
		x86_vec_write(cpu, insn, 0, &ctx->out);
	vec_flags_commit(cpu, ctx->rflags);
	return X86_OK;
}
