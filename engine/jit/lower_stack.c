/*
 * Lowering of LEA and of the stack. Guest RSP is in R9.
 */
#include "engine/jit/lower.h"

bool jit_lea_fits(const struct x86_insn *insn)
{
	return insn->asize != 2 && (insn->base != X86_RIP || insn->asize == 8);
}

bool jit_lower_lea(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned to = insn->op[0].reg, size = insn->op[0].size;

	if (!jit_lea_fits(insn))
		return false;
	if (size >= 4 && insn->asize >= size && !spilled(to)) {
		struct x86_insn *same = &t->insn[i];
		uint8_t asize = same->asize;

		same->asize = (uint8_t)size; /* the high half falls away */
		if (insn->base == X86_RIP)
			same->asize = 8;
		jit_emit_ea(t, i, host_of(to));
		if (insn->base == X86_RIP && size == 4)
			emit_rr(&t->e, 0x89, host_of(to), host_of(to));
		same->asize = asize;
		return true;
	}
	jit_emit_ea(t, i, HR_10);
	if (size == 2) {
		unsigned host = spilled(to) ? HR_11 : host_of(to);

		if (spilled(to))
			emit_ctx(&t->e, MOV_LOAD, HR_11, CTX_REG(to));
		emit_rr(&t->e, 0x89 | EM_66, HR_10, host);
		if (spilled(to))
			emit_ctx(&t->e, MOV_STORE, HR_11, CTX_REG(to));
		return true;
	}
	if (size == 4)
		emit_rr(&t->e, 0x89, HR_10, HR_10);
	if (spilled(to))
		emit_ctx(&t->e, MOV_STORE, HR_10, CTX_REG(to));
	else
		emit_mov_rr(&t->e, host_of(to), HR_10);
	return true;
}

bool jit_stack_fits(const struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const struct x86_operand *op = &insn->op[0];
	const int64_t target = target_of(t, i);

	if (insn->osize != stack_bytes(t))
		return false;
	switch (row_of(t, i)->kind) {
	case JIT_PUSH:
		return op->kind == X86_O_GPR || op->kind == X86_O_IMM ||
		       (op->kind == X86_O_MEM && jit_simple_address(t, i));
	case JIT_POP: return op->kind == X86_O_GPR;
	case JIT_CALL: return target == (int32_t)target;
	default: return true;
	}
}

void jit_emit_place(struct translation *t, unsigned op, unsigned reg, const struct place *place)
{
	emit_rm(&t->e, op, reg, place->base, place->index, 0, place->disp);
}

void jit_free_r10(struct translation *t, struct place *place)
{
	if (place->index != HR_10)
		return;
	jit_emit_place(t, 0x8d | EM_W, HR_11, place);
	*place = (struct place){ .base = HR_11, .index = HR_NONE };
}

/* The slot at R10. */
static struct slow *slot(struct translation *t, unsigned i, enum x86_access access, unsigned from, int32_t disp,
	struct place *ret_place)
{
	if (jit_span_place(t, i, ret_place))
		return NULL;
	jit_clobber_flags(t, jit_live_before(t, i));
	struct slow *slow = jit_slow_begin(t, i);
	if (disp)
		emit_rm(&t->e, 0x8d | wide(t), HR_10, from, HR_NONE, 0, disp);
	else
		emit_rr(&t->e, 0x89 | wide(t), from, HR_10);
	jit_emit_lookup(t, slow, stack_bytes(t), access, 1);
	*ret_place = (struct place){ .base = HR_11, .index = HR_10 };
	return slow;
}

struct slow *jit_push_begin(struct translation *t, unsigned i, struct place *ret_place)
{
	return slot(t, i, X86_WRITE, HR_9, -(int32_t)stack_bytes(t), ret_place);
}

void jit_push_end(struct translation *t)
{
	emit_rm(&t->e, 0x8d | wide(t), HR_9, HR_9, HR_NONE, 0, -(int32_t)stack_bytes(t));
}

struct slow *jit_pop_begin(struct translation *t, unsigned i, unsigned from, struct place *ret_place)
{
	return slot(t, i, X86_READ, from, 0, ret_place);
}

void jit_pop_end(struct translation *t, unsigned more)
{
	emit_rm(&t->e, 0x8d | wide(t), HR_9, HR_9, HR_NONE, 0, (int32_t)(stack_bytes(t) + more));
}

/* Push what is in `scratch`. */
void jit_push_scratch(struct translation *t, struct place *place)
{
	jit_free_r10(t, place);
	emit_ctx(&t->e, MOV_LOAD, HR_10, CTX(scratch));
	jit_emit_place(t, 0x89 | wide(t), HR_10, place);
	jit_push_end(t);
}

static void lower_push_memory(struct translation *t, unsigned i)
{
	struct place place;

	jit_clobber_flags(t, jit_live_before(t, i));
	struct slow *load = jit_slow_begin(t, i);
	jit_emit_linear(t, i, load);
	jit_emit_lookup(t, load, stack_bytes(t), X86_READ, 1);
	emit_rm(&t->e, 0x8b | wide(t), HR_10, HR_11, HR_10, 0, 0);
	emit_ctx(&t->e, MOV_STORE, HR_10, CTX(scratch));
	struct slow *push = jit_push_begin(t, i, &place);
	jit_push_scratch(t, &place);
	jit_slow_end(t, load);
	jit_slow_end(t, push);
}

bool jit_lower_push(struct translation *t, unsigned i)
{
	const struct x86_operand *op = &t->insn[i].op[0];
	struct place place;

	if (!jit_stack_fits(t, i))
		return false;
	if (op->kind == X86_O_MEM) {
		lower_push_memory(t, i);
		return true;
	}
	struct slow *slow = jit_push_begin(t, i, &place);
	if (op->kind == X86_O_IMM) {
		jit_emit_place(t, 0xc7 | wide(t), 0, &place);
		emit32(&t->e, (uint32_t)t->insn[i].imm);
	} else if (spilled(op->reg)) {
		jit_free_r10(t, &place);
		emit_ctx(&t->e, MOV_LOAD, HR_10, CTX_REG(op->reg));
		jit_emit_place(t, 0x89 | wide(t), HR_10, &place);
	} else {
		jit_emit_place(t, 0x89 | wide(t), host_of(op->reg), &place);
	}
	jit_push_end(t);
	jit_slow_end(t, slow);
	return true;
}

bool jit_lower_pop(struct translation *t, unsigned i)
{
	const struct x86_operand *op = &t->insn[i].op[0];
	struct place place;

	if (!jit_stack_fits(t, i))
		return false;
	struct slow *slow = jit_pop_begin(t, i, HR_9, &place);
	unsigned to = spilled(op->reg) ? HR_10 : host_of(op->reg);
	jit_emit_place(t, 0x8b | wide(t), to, &place);
	if (spilled(op->reg))
		emit_ctx(&t->e, MOV_STORE, HR_10, CTX_REG(op->reg));
	if (op->reg != X86_RSP)
		jit_pop_end(t, 0);
	jit_slow_end(t, slow);
	return true;
}

bool jit_lower_leave(struct translation *t, unsigned i)
{
	struct place place;

	if (!jit_stack_fits(t, i))
		return false;
	struct slow *slow = jit_pop_begin(t, i, HR_BP, &place);
	jit_emit_place(t, 0x8b | wide(t), HR_10, &place);
	emit_rm(&t->e, 0x8d | wide(t), HR_9, HR_BP, HR_NONE, 0, (int32_t)stack_bytes(t));
	emit_rr(&t->e, 0x89 | wide(t), HR_10, HR_BP);
	jit_slow_end(t, slow);
	return true;
}
