/*
 * Lowering of arithmetic that cannot be copied: division, which may fault, and bits of far operands.
 */
#include "engine/jit/lower.h"

#include "isa/x86/semantics.h"

/* ---- division ---- */

/* The divisor's register: its own, R10, or R11 with memory's. */
static unsigned divisor(struct translation *t, unsigned i, struct slow *slow, unsigned size_bits)
{
	const struct x86_operand *op = &t->insn[i].op[0];

	if (op->kind == X86_O_GPR)
		return jit_loaded(t, op->reg, HR_10);
	jit_emit_linear(t, i, slow);
	jit_emit_lookup(t, slow, op->size, X86_READ, 1);
	emit_rm(&t->e, 0x8b | size_bits, HR_11, HR_11, HR_10, 0, 0);
	return HR_11;
}

/*
 * The processor faults on the host as well, so only what cannot fault runs natively. Unsigned: the high half
 * is below the divisor (which so is not 0). Signed: the dividend is the low half's sign extension, and the
 * divisor neither 0 nor -1.
 */
bool jit_lower_divide(struct translation *t, unsigned i, bool is_signed)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned size = insn->op[0].size, bits = size == 8 ? EM_W : size == 2 ? EM_66 : 0;
	struct emit *e = &t->e;

	if (size == 1 || (insn->op[0].kind == X86_O_MEM && !jit_simple_address(t, i)))
		return false;
	jit_clobber_flags(t, jit_live_before(t, i));
	struct slow *slow = jit_slow_begin(t, i);
	unsigned by = divisor(t, i, slow, bits), temp = by == HR_10 ? HR_11 : HR_10;
	if (is_signed) {
		emit_rr(e, 0x89 | bits, HR_AX, temp);
		emit_rr(e, 0xc1 | bits, 7, temp); /* sar */
		emit8(e, size * 8 - 1);
		emit_rr(e, 0x39 | bits, HR_DX, temp);
		jit_slow_jump(t, slow, CC_NE);
		emit_rm(e, 0x8d | bits, temp, by, HR_NONE, 0, 1);
		emit_rr(e, 0x83 | bits, 7, temp);
		emit8(e, 1);
		jit_slow_jump(t, slow, CC_BE);
	} else {
		emit_rr(e, 0x39 | bits, by, HR_DX);
		jit_slow_jump(t, slow, CC_AE);
	}
	if (jit_live_before(t, i)) /* only where engines are compared: some processors keep some */
		jit_flags_restore_slowly(e);
	emit_rr(e, 0xf7 | bits, is_signed ? 7 : 6, by);
	t->kept = false; /* all flags are undefined */
	jit_slow_end(t, slow);
	return true;
}

/* ---- BT, BTS, BTR, BTC with the bit's number in a register ---- */

/* R10 = linear address of the word that holds the bit: the number is signed and reaches far. */
static void emit_bit_linear(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned size = insn->op[0].size, shift = size == 8 ? 6 : 5;
	struct emit *e = &t->e;

	jit_emit_linear(t, i, NULL); /* 64-bit mode */
	unsigned number = jit_loaded(t, insn->op[1].reg, HR_11);
	if (size == 4)
		emit_rr(e, 0x63 | EM_W, HR_11, number); /* movsxd */
	else if (number != HR_11)
		emit_mov_rr(e, HR_11, number);
	emit_rr(e, 0xc1 | EM_W, 7, HR_11); /* sar */
	emit8(e, shift);
	emit_rm(e, 0x8d | EM_W, HR_10, HR_10, HR_11, size == 8 ? 3 : 2, 0);
}

bool jit_lower_bit(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned size = insn->op[0].size, bits = size == 8 ? EM_W : 0;
	const unsigned op = (insn->opcode & 0x38) | 0x83; /* a3 ab b3 bb */
	struct emit *e = &t->e;

	if (insn->op[0].kind == X86_O_GPR) {
		if (!jit_copy_fits(t, i))
			return false;
		jit_copy_with_registers(t, i);
		return true;
	}
	if (size == 2 || insn->asize != 8 || !jit_simple_address(t, i))
		return false;
	jit_clobber_flags(t, jit_live_before(t, i));
	struct slow *slow = jit_slow_begin(t, i);
	emit_bit_linear(t, i);
	jit_emit_lookup(t, slow, size, insn->fn == x86_sem_bt ? X86_READ : X86_WRITE, 1);
	emit_rm(e, 0x8d | EM_W, HR_11, HR_11, HR_10, 0, 0);
	if (spilled(insn->op[1].reg))
		emit_ctx(e, 0x8b, HR_10, CTX_REG(insn->op[1].reg));
	else
		emit_rr(e, 0x89, host_of(insn->op[1].reg), HR_10);
	emit_rr(e, 0x83, 4, HR_10); /* and: within the word */
	emit8(e, size * 8 - 1);
	if (jit_needs_flags(t, i))
		jit_flags_restore_slowly(e);
	emit_rm(e, op | EM_0F | bits | (insn->prefix & X86_P_LOCK ? EM_LOCK : 0), HR_10, HR_11, HR_NONE, 0, 0);
	t->kept = false;
	jit_slow_end(t, slow);
	return true;
}
