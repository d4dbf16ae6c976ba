/*
 * Lowering of branches, and of a block's ways out: jumps within the page that are linked later, branches through
 * the branch cache, and the stubs behind both and behind slow paths.
 */
#include "engine/jit/lower.h"

/* ---- ways out ---- */

static struct leaving *leaving(struct translation *t, int64_t target, unsigned done)
{
	if (t->leaving_count == JIT_EXITS_MAX) {
		t->failed = true;
		return &t->nowhere.leaving;
	}
	struct leaving *l = &t->leaving[t->leaving_count++];
	*l = (struct leaving){ .target = target, .done = (uint16_t)done };
	return l;
}

static struct jit_exit *make_exit(struct translation *t, int64_t target)
{
	struct jit_exit *exit = jit_cache_alloc(t->v, sizeof(*exit));

	if (!exit) {
		t->failed = true;
		return &t->nowhere.exit;
	}
	*exit = (struct jit_exit){ .from = t->block, .vec = t->vec_ready, .target = (uint16_t)target };
	return exit;
}

struct leaving *jit_leave_plainly(struct translation *t, int64_t target, unsigned done)
{
	struct leaving *l = leaving(t, target, done);

	l->plain = true;
	l->exit = make_exit(t, target);
	l->exit->plain = true;
	return l;
}

/* R10 = RIP of a place outside the page; to be followed by take_branch(). */
static void emit_far_target(struct emit *e, const struct translation *t, int64_t target)
{
	emit_ctx(e, MOV_LOAD, HR_10, CTX(rip_page));
	emit_rm(e, 0x8d | wide(t), HR_10, HR_10, HR_NONE, 0, (int32_t)target);
}

/* Jump to R10. Flags are kept. */
static void take_branch(const struct translation *t, struct emit *e)
{
	if (!t->v->options.branches) {
		emit_jump(e, EM_JMP, t->v->stub.branch_miss);
		return;
	}
	jit_branch(e, t->mode);
}

/* Where the branch came from, in case its target is no address; NULL: from no branch. */
static void note_branch(const struct translation *t, struct emit *e, const struct jit_site *site)
{
	emit_ctx(e, 0xc7, 0, CTX(branch_site));
	emit32(e, site ? jit_cache_name(t->v, site) : JIT_NO_SITE);
}

static void jump_out(struct translation *t, struct emit *e, int64_t target, const struct jit_site *site)
{
	t->failed |= target != (int32_t)target;
	emit_far_target(e, t, target);
	note_branch(t, e, site);
	take_branch(t, e);
}

/* A jump back may be a loop's: look whether somebody wants the vCPU. */
static void emit_poll(struct translation *t, struct leaving *l)
{
	emit_ctx(&t->e, 0x83, 7, CTX(soft.attention));
	emit8(&t->e, 0);
	l->poll_rel[0] = emit_jump(&t->e, EM_JCC(CC_NE), NULL);
	if (!t->v->options.count)
		return;
	emit_ctx(&t->e, MOV_LOAD, HR_10, CTX(soft.cpu.instructions));
	emit_ctx(&t->e, 0x3b | EM_W, HR_10, CTX(soft.stop_at));
	l->poll_rel[1] = emit_jump(&t->e, EM_JCC(CC_AE), NULL);
}

/* A jump back to where no flags are live, with the poll: one jump less. */
static void lower_loop(struct translation *t, struct leaving *l)
{
	emit_ctx(&t->e, 0x83, 7, CTX(soft.attention));
	emit8(&t->e, 0);
	l->exit->rel = emit_jump(&t->e, EM_JCC(CC_E), NULL);
	l->poll_rel[0] = emit_jump(&t->e, EM_JMP, NULL);
}

/*
 * Flags are native in the blocks of a page, so that is how they leave, and kept across pages. A poll
 * needs them out of the way.
 */
static void jump(struct translation *t, int64_t target, uint16_t live, unsigned done, bool jumps)
{
	jit_emit_count(t, done);
	if (!in_page(target)) {
		jit_clobber_flags(t, live);
		jump_out(t, &t->e, target, jumps ? jit_make_site(t, done - 1) : NULL);
		return;
	}
	struct leaving *l = leaving(t, target, done);
	l->exit = make_exit(t, target);
	/* Blocks of one instruction keep a budget exactly. */
	if (target <= t->offset[done ? done - 1 : 0] ||
		(t->v->options.count && t->v->options.insns_max == 1)) {
		jit_clobber_flags(t, live);
		if (!live && !t->v->options.count) {
			lower_loop(t, l);
			return;
		}
		emit_poll(t, l);
	}
	if (live && t->kept)
		jit_flags_restore(&t->e);
	l->exit->rel = emit_jump(&t->e, EM_JMP, NULL);
}

void jit_lower_end(struct translation *t)
{
	jump(t, t->offset[t->count], t->live_end, t->count, false);
}

void jit_lower_branch(struct translation *t, unsigned i)
{
	jump(t, target_of(t, i), t->live_target[i], i + 1, true);
}

void jit_lower_second_page(struct translation *t)
{
	const int32_t table = jit_table(t, X86_EXEC);
	struct emit *e = &t->e;
	struct leaving *l = leaving(t, t->offset[0], 0);

	l->exit = make_exit(t, t->offset[0]);
	jit_clobber_flags(t, jit_live_before(t, 0));
	emit_far_target(e, t, GUEST_PAGE_SIZE);
	jit_emit_index(e);
	emit_rm(e, 0x3b | EM_W | EM_GS, HR_10, HR_11, HR_NONE, 0,
		table + (int32_t)offsetof(struct x86_tlb_entry, page));
	l->step_rel[0] = emit_jump(e, EM_JCC(CC_NE), NULL);
	emit_mov_imm64(e, HR_10, t->second);
	emit_rm(e, 0x3b | EM_W | EM_GS, HR_10, HR_11, HR_NONE, 0,
		table + (int32_t)offsetof(struct x86_tlb_entry, gpa));
	l->step_rel[1] = emit_jump(e, EM_JCC(CC_NE), NULL);
}

void jit_lower_jcc(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned condition = insn->opcode & 15, done = i + 1;
	const int64_t target = target_of(t, i);

	jit_want_flags(t);
	if (in_page(target) && target > t->offset[i] && !t->v->options.count) {
		struct leaving *l = leaving(t, target, done);
		l->exit = make_exit(t, target);
		l->exit->rel = emit_jump(&t->e, EM_JCC(condition), NULL);
		return;
	}
	if (!in_page(target) && !t->v->options.count) {
		struct leaving *l = leaving(t, target, done);
		l->live = t->live_target[i];
		l->site = jit_make_site(t, i);
		l->branch_rel = emit_jump(&t->e, EM_JCC(condition), NULL);
		return;
	}
	/* Over the jump back. */
	uint8_t *over = emit_jump(&t->e, EM_JCC(condition ^ 1), NULL);
	jit_lower_branch(t, i);
	if (!t->e.full)
		emit_patch(over, t->e.p);
	t->kept = false;
}

void jit_lower_jrcxz(struct translation *t, unsigned i)
{
	bool kept = t->kept;

	/* To the jump, or over it. */
	if (t->insn[i].asize == 4)
		emit8(&t->e, 0x67);
	EMIT_LITERAL(&t->e, "\xe3\x05");
	uint8_t *over = emit_jump(&t->e, EM_JMP, NULL);
	jit_lower_branch(t, i);
	if (!t->e.full)
		emit_patch(over, t->e.p);
	t->kept = kept;
}

/* Push the address of what follows. */
static struct slow *push_return(struct translation *t, unsigned i)
{
	struct place place;
	struct slow *slow = jit_push_begin(t, i, &place);

	jit_free_r10(t, &place);
	emit_far_target(&t->e, t, t->offset[i + 1]);
	jit_emit_place(t, 0x89 | wide(t), HR_10, &place);
	jit_push_end(t);
	return slow;
}

bool jit_lower_call(struct translation *t, unsigned i)
{
	if (!jit_stack_fits(t, i))
		return false;
	struct slow *slow = push_return(t, i);
	jit_slow_end(t, slow);
	jit_lower_branch(t, i);
	return true;
}

/* The end of a block whose target is R10. Flags are kept. */
static void branch_to_r10(struct translation *t, unsigned i, const struct jit_site *site)
{
	if (t->v->options.count) {
		emit_mov_rr(&t->e, HR_11, HR_10);
		jit_emit_count(t, i + 1);
		emit_mov_rr(&t->e, HR_10, HR_11);
	}
	note_branch(t, &t->e, site);
	take_branch(t, &t->e);
}

bool jit_lower_ret(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	struct place place;

	if (!jit_stack_fits(t, i))
		return false;
	struct slow *slow = jit_pop_begin(t, i, HR_9, &place);
	jit_clobber_flags(t, jit_live_before(t, i)); /* in a span they may be native still */
	jit_emit_place(t, 0x8b | wide(t), HR_10, &place);
	jit_pop_end(t, insn->operand_count ? (uint16_t)insn->imm : 0);
	jit_slow_end(t, slow);
	branch_to_r10(t, i, slow ? slow->site : jit_make_site(t, i));
	return true;
}

/* R10 = the target that a register or memory holds. NULL: it was in a register. */
static struct slow *indirect_target(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const struct x86_operand *op = &insn->op[0];

	jit_clobber_flags(t, jit_live_before(t, i));
	struct slow *slow = jit_slow_begin(t, i);
	if (op->kind == X86_O_GPR) {
		if (spilled(op->reg))
			emit_ctx(&t->e, 0x8b | wide(t), HR_10, CTX_REG(op->reg));
		else
			emit_rr(&t->e, 0x89 | wide(t), host_of(op->reg), HR_10);
		return slow;
	}
	jit_emit_linear(t, i, slow);
	jit_emit_lookup(t, slow, stack_bytes(t), X86_READ, 1);
	emit_rm(&t->e, 0x8b | wide(t), HR_10, HR_11, HR_10, 0, 0);
	return slow;
}

static bool indirect_fits(const struct translation *t, unsigned i)
{
	const struct x86_operand *op = &t->insn[i].op[0];

	if (t->insn[i].osize != stack_bytes(t))
		return false;
	return op->kind == X86_O_GPR || (op->kind == X86_O_MEM && jit_simple_address(t, i));
}

bool jit_lower_jmp_rm(struct translation *t, unsigned i)
{
	if (!indirect_fits(t, i))
		return false;
	struct slow *slow = indirect_target(t, i);
	jit_slow_end(t, slow);
	branch_to_r10(t, i, slow->site);
	return true;
}

/* R10 as a target: one that is no address faults before anything is pushed. */
static void check_target(struct translation *t, struct slow *slow)
{
	if (!t->mode64)
		return;
	emit_mov_rr(&t->e, HR_11, HR_10);
	emit_rr(&t->e, 0xc1 | EM_W, 4, HR_11); /* shl, sar: sign-extend bit 47 */
	emit8(&t->e, 16);
	emit_rr(&t->e, 0xc1 | EM_W, 7, HR_11);
	emit8(&t->e, 16);
	emit_rr(&t->e, 0x39 | EM_W, HR_10, HR_11);
	jit_slow_jump(t, slow, CC_NE);
}

bool jit_lower_call_rm(struct translation *t, unsigned i)
{
	if (!indirect_fits(t, i))
		return false;
	struct slow *load = indirect_target(t, i);
	check_target(t, load);
	emit_ctx(&t->e, MOV_STORE, HR_10, CTX(scratch));
	struct slow *push = push_return(t, i);
	jit_slow_end(t, load);
	jit_slow_end(t, push);
	jit_emit_count(t, i + 1);
	emit_ctx(&t->e, MOV_LOAD, HR_10, CTX(scratch));
	note_branch(t, &t->e, push->site);
	take_branch(t, &t->e);
	return true;
}

/* ---- stubs ---- */

static void emit_slow_stub(struct translation *t, struct emit *e, const struct slow *slow)
{
	if (!slow->rel[0])
		return;
	for (unsigned k = 0; k < ARRAY_SIZE(slow->rel); k++)
		if (slow->rel[k])
			emit_patch(slow->rel[k], e->p);
	emit_mov_imm32(e, HR_10, jit_cache_name(t->v, slow->site));
	emit_jump(e, EM_CALL, t->v->stub.slow_kept);
	if (slow->out) {
		jit_emit_count_to(t, e, slow->out->done);
		slow->out->exit->rel = emit_jump(e, EM_JMP, NULL);
	} else {
		emit_jump(e, EM_JMP, slow->resume);
	}
}

/* From a span's look-up that failed. */
static void emit_plain_stub(struct translation *t, struct emit *e, const struct leaving *l)
{
	for (unsigned k = 0; k < ARRAY_SIZE(l->plain_rel); k++)
		if (l->plain_rel[k])
			emit_patch(l->plain_rel[k], e->p);
	if (l->live)
		jit_flags_restore(e);
	jit_emit_count_to(t, e, l->done);
	l->exit->rel = emit_jump(e, EM_JMP, NULL);
}

static void emit_leaving_stub(struct translation *t, struct emit *e, const struct leaving *l)
{
	if (l->branch_rel) {
		emit_patch(l->branch_rel, e->p);
		if (l->live)
			jit_flags_keep(e);
		jump_out(t, e, l->target, l->site);
		return;
	}
	if (l->step_rel[0]) {
		for (unsigned k = 0; k < ARRAY_SIZE(l->step_rel); k++)
			emit_patch(l->step_rel[k], e->p);
		emit_mov_imm32(e, HR_10, jit_cache_name(t->v, l->exit));
		emit_jump(e, EM_JMP, t->v->stub.exit_step);
		return;
	}
	if (l->poll_rel[0]) {
		emit_patch(l->poll_rel[0], e->p);
		if (l->poll_rel[1])
			emit_patch(l->poll_rel[1], e->p);
		emit_mov_imm32(e, HR_10, jit_cache_name(t->v, l->exit));
		emit_jump(e, EM_JMP, t->v->stub.exit_poll);
	}
	if (l->plain_rel[0])
		emit_plain_stub(t, e, l);
	else if (l->plain && !l->exit->rel)
		return; /* there was no slow path */
	l->exit->stub = e->p;
	emit_patch(l->exit->rel, e->p);
	emit_mov_imm32(e, HR_10, jit_cache_name(t->v, l->exit));
	emit_jump(e, EM_JMP, t->v->stub.exit_link);
}

/* At the end of the segment: made in a space of their own, as their size is not known before. */
void jit_lower_cold(struct translation *t)
{
	struct jit_segment *segment = &t->v->cache.segment[t->v->cache.now];
	/* What a slow path, and a way out, may take at most. */
	size_t room = t->slow_count * (t->v->options.count ? 48u : 16u) + t->leaving_count * 80u;

	if (t->e.full || t->failed || (size_t)(segment->cold - t->e.p) < room) {
		t->failed = true;
		return;
	}
	struct emit e = { .p = segment->cold - room, .end = segment->cold };
	segment->cold = e.p;
	for (unsigned k = 0; k < t->slow_count; k++)
		emit_slow_stub(t, &e, &t->slow[k]);
	for (unsigned k = 0; k < t->leaving_count; k++)
		emit_leaving_stub(t, &e, &t->leaving[k]);
	t->failed |= e.full;
}
