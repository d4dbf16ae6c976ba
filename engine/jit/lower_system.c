/*
 * Lowering of system instructions that kernels execute all the time.
 */
#include "engine/jit/lower.h"

void jit_lower_direction(struct translation *t, unsigned i, bool set)
{
	jit_clobber_flags(t, jit_live_before(t, i));
	emit_ctx(&t->e, 0x81, set ? 1 : 4, CTX(soft.cpu.s.rflags)); /* or, and: the low half */
	emit32(&t->e, set ? X86_DF : ~X86_DF);
}

#define RFLAGS CTX(soft.cpu.s.rflags)

/* Go the slow path unless CPL is 0. */
static struct slow *privileged(struct translation *t, unsigned i)
{
	jit_clobber_flags(t, jit_live_before(t, i));
	struct slow *slow = jit_slow_begin(t, i);
	emit_ctx(&t->e, 0x80, 7, CTX(soft.cpu.cpl));
	emit8(&t->e, 0);
	jit_slow_jump(t, slow, CC_NE);
	return slow;
}

void jit_lower_cli(struct translation *t, unsigned i)
{
	struct slow *slow = privileged(t, i);

	emit_ctx(&t->e, 0x81, 4, RFLAGS);
	emit32(&t->e, ~X86_IF);
	jit_slow_end(t, slow);
}

/*
 * The next instruction is in the block, so nothing interrupts before it. An interrupt that was put aside takes
 * the slow path, which leaves.
 */
bool jit_lower_sti(struct translation *t, unsigned i)
{
	if (i + 1 == t->count || t->v->options.count)
		return false;
	struct slow *slow = privileged(t, i);
	emit_ctx(&t->e, 0x80, 7, CTX(interrupt_aside));
	emit8(&t->e, 0);
	jit_slow_jump(t, slow, CC_NE);
	emit_ctx(&t->e, 0x81, 1, RFLAGS);
	emit32(&t->e, X86_IF);
	jit_slow_end(t, slow);
	return true;
}

void jit_lower_swapgs(struct translation *t, unsigned i)
{
	struct slow *slow = privileged(t, i);

	emit_ctx(&t->e, MOV_LOAD, HR_10, CTX(soft.cpu.s.seg[X86_GS].base));
	emit_ctx(&t->e, MOV_LOAD, HR_11, CTX(soft.cpu.s.msr.kernel_gs_base));
	emit_ctx(&t->e, MOV_STORE, HR_11, CTX(soft.cpu.s.seg[X86_GS].base));
	emit_ctx(&t->e, MOV_STORE, HR_10, CTX(soft.cpu.s.msr.kernel_gs_base));
	jit_slow_end(t, slow);
}

bool jit_lower_pushf(struct translation *t, unsigned i)
{
	struct emit *e = &t->e;

	if (t->insn[i].osize != stack_bytes(t))
		return false;
	jit_clobber_flags(t, X86_FLAGS_ARITH);
	emit_ctx(e, 0xb6 | EM_0F, HR_10, CTX(flags_kept) + 1); /* AH of LAHF */
	emit_rr(e, 0x81, 4, HR_10);
	emit32(e, X86_FLAGS_ARITH & 0xff);
	emit_ctx(e, 0xb6 | EM_0F, HR_11, CTX(flags_kept)); /* OF */
	emit_rr(e, 0xc1, 4, HR_11);
	emit8(e, 11);
	emit_rr(e, 0x09, HR_11, HR_10);
	emit_ctx(e, 0x8b, HR_11, RFLAGS);
	emit_rr(e, 0x81, 4, HR_11);
	emit32(e, ~(uint32_t)(X86_FLAGS_ARITH | X86_RF | X86_VM));
	emit_rr(e, 0x09, HR_11, HR_10);
	emit_ctx(e, MOV_STORE, HR_10, CTX(scratch));
	struct place place;
	struct slow *slow = jit_push_begin(t, i, &place);
	jit_push_scratch(t, &place);
	jit_slow_end(t, slow);
	return true;
}

/*
 * The slow path gets the line that the host's TSC is on, or does all. It cannot fault any more when RAX and RDX
 * are written, and writes both.
 */
void jit_lower_rdtsc(struct translation *t, unsigned i, bool with_aux)
{
	struct emit *e = &t->e;

	jit_clobber_flags(t, jit_live_before(t, i));
	struct slow *slow = jit_slow_begin(t, i);
	emit_ctx(e, 0xf7, 0, CTX(soft.cpu.s.cr4)); /* test */
	emit32(e, X86_CR4_TSD);
	jit_slow_jump(t, slow, CC_NE);
	if (with_aux)
		EMIT_LITERAL(e, "\x0f\xae\xe8"); /* lfence: it waits for what is before */
	EMIT_LITERAL(e, "\x0f\x31");
	emit_rr(e, 0xc1 | EM_W, 4, HR_DX); /* shl */
	emit8(e, 32);
	emit_rr(e, 0x09 | EM_W, HR_DX, HR_AX);
	emit_ctx(e, 0x2b | EM_W, HR_AX, CTX(tsc.host));
	emit_ctx(e, 0x3b | EM_W, HR_AX, CTX(tsc.span));
	jit_slow_jump(t, slow, CC_AE);
	emit_ctx(e, 0xaf | EM_0F | EM_W, HR_AX, CTX(tsc.scale)); /* imul */
	emit_rr(e, 0xc1 | EM_W, 5, HR_AX); /* shr */
	emit8(e, 32);
	emit_ctx(e, 0x03 | EM_W, HR_AX, CTX(tsc.guest));
	emit_mov_rr(e, HR_DX, HR_AX);
	emit_rr(e, 0xc1 | EM_W, 5, HR_DX);
	emit8(e, 32);
	emit_rr(e, 0x89, HR_AX, HR_AX);
	if (with_aux)
		emit_ctx(e, 0x8b, HR_CX, CTX(soft.cpu.s.msr.tsc_aux));
	jit_slow_end(t, slow);
}
