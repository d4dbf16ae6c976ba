/*
 * Lowering of memory operands: their address, and the look-up of the software TLB.
 */
#include "engine/jit/lower.h"

#define ENTRY_SHIFT 5 /* log2 of sizeof(struct x86_tlb_entry) */
_Static_assert(sizeof(struct x86_tlb_entry) == 1 << ENTRY_SHIFT, "the look-up scales by it");

unsigned jit_loaded(struct translation *t, unsigned guest, unsigned temp)
{
	if (!spilled(guest))
		return host_of(guest);
	emit_ctx(&t->e, MOV_LOAD, temp, CTX_REG(guest));
	return temp;
}

/* Is it an address that jit_emit_ea() can make? */
bool jit_simple_address(const struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];

	if (insn->asize == 2 || (insn->row->attr & X86_A_VSIB))
		return false;
	if (!t->mode64 && insn->seg == X86_CS)
		return false; /* may be execute-only */
	return insn->base != X86_RIP || insn->asize == 8;
}

/* R10 = the linear address of the memory operand. Flags are not touched. */
void jit_emit_ea(struct translation *t, unsigned i, unsigned to)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned size = insn->asize == 8 ? EM_W : 0;
	unsigned base = HR_NONE, index = HR_NONE;
	int32_t disp = insn->disp;

	if (insn->base == X86_RIP) {
		emit_ctx(&t->e, MOV_LOAD, HR_10, CTX(rip_page));
		base = HR_10;
		t->failed |= __builtin_add_overflow(insn->disp, (int32_t)t->offset[i + 1], &disp);
	} else if (insn->base != X86_ZERO) {
		base = jit_loaded(t, insn->base, HR_10);
	}
	if (insn->index != X86_ZERO)
		index = jit_loaded(t, insn->index, HR_11);
	if (base == HR_NONE || index != HR_NONE || disp)
		emit_rm(&t->e, 0x8d | size, to, base, index, insn->scale, disp);
	else if (base != to || size != EM_W)
		emit_rr(&t->e, 0x89 | size, base, to);
}

/* Outside 64-bit mode FS and GS have limits and types; go on only where those forbid nothing. */
static void check_segment(struct translation *t, struct slow *slow, unsigned seg)
{
	const uint32_t want = X86_SEG_P | X86_SEG_S | X86_SEG_WRITE;
	struct emit *e = &t->e;

	emit_ctx(e, 0x83, 7, CTX(soft.cpu.s.seg[seg].limit));
	emit8(e, 0xff);
	jit_slow_jump(t, slow, CC_NE);
	emit_ctx(e, 0xb7 | EM_0F, HR_11, CTX(soft.cpu.s.seg[seg].attr));
	emit_rr(e, 0x81, 4, HR_11);
	emit32(e, want | X86_SEG_CODE | X86_SEG_EXPAND);
	emit_rr(e, 0x81, 7, HR_11);
	emit32(e, want);
	jit_slow_jump(t, slow, CC_NE);
}

/* Clobbers flags outside 64-bit mode. */
void jit_emit_linear(struct translation *t, unsigned i, struct slow *slow)
{
	const struct x86_insn *insn = &t->insn[i];

	if (insn->seg != X86_FS && insn->seg != X86_GS) {
		jit_emit_ea(t, i, HR_10);
		return;
	}
	if (!t->mode64)
		check_segment(t, slow, insn->seg);
	jit_emit_ea(t, i, HR_10);
	emit_ctx(&t->e, MOV_LOAD, HR_11, CTX(soft.cpu.s.seg[insn->seg].base));
	emit_rm(&t->e, 0x8d | wide(t), HR_10, HR_10, HR_11, 0, 0);
}

/* R10 = linear address -> R11 = offset of its entry in each table. */
void jit_emit_index(struct emit *e)
{
	EMIT_LITERAL(e, "\xc4\x43\xfb\xf0\xda"); /* rorx r11, r10, imm */
	emit8(e, GUEST_PAGE_SHIFT - ENTRY_SHIFT);
	emit_rr(e, 0x81, 4, HR_11); /* and r11d */
	emit32(e, (X86_TLB_SIZE - 1) << ENTRY_SHIFT);
}

int32_t jit_table(const struct translation *t, enum x86_access access)
{
	return jit_tables(t->mode) + (int32_t)(offsetof(struct x86_tlb, entry) +
					       access * sizeof(((struct x86_tlb *)NULL)->entry[0]));
}

/* R10 = linear address -> R11 = host address of its page, R10 = offset in it; or the slow path. */
void jit_emit_lookup(struct translation *t, struct slow *slow, unsigned size, enum x86_access access,
	unsigned align)
{
	const int32_t table = jit_table(t, access);
	struct emit *e = &t->e;

	jit_emit_index(e);
	emit_rm(e, 0x2b | EM_W | EM_GS, HR_10, HR_11, HR_NONE, 0,
		table + (int32_t)offsetof(struct x86_tlb_entry, page));
	if (align > 1 && align == size) {
		/* Within the page and aligned at once. */
		emit_rr(e, 0xf7 | EM_W, 0, HR_10); /* test r10 */
		emit32(e, (uint32_t)GUEST_PAGE_MASK | (align - 1));
		jit_slow_jump(t, slow, CC_NE);
	} else {
		emit_rr(e, 0x81 | EM_W, 7, HR_10); /* cmp r10 */
		emit32(e, (uint32_t)GUEST_PAGE_SIZE - size);
		jit_slow_jump(t, slow, CC_A);
	}
	if (t->v->options.slow)
		jit_slow_jump(t, slow, CC_BE); /* both ways: never further */
	emit_rm(e, MOV_LOAD | EM_GS, HR_11, HR_11, HR_NONE, 0,
		table + (int32_t)offsetof(struct x86_tlb_entry, host));
}
