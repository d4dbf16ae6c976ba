/*
 * Lowering: the host code of one instruction. jit.h says what registers and flags are where.
 *
 * The parts of an instruction that touches memory, in this order: flags that are live are kept; the address
 * goes to R10; the TLB is looked up (R11 = the page's host address, R10 = the offset in it), which on any
 * doubt goes to the slow path; the instruction itself, with R11 + R10 as its operand; then, and only then,
 * what else it changes. Nothing before the last check changes anything of the guest.
 *
 * Here: what all lowerings share, flags and slow paths, and the choice of one.
 */
#include "engine/jit/lower.h"

/* ---- flags ---- */

/* The host's flags are about to become junk. */
void jit_clobber_flags(struct translation *t, uint16_t live)
{
	if (t->kept)
		return;
	if (live)
		jit_flags_keep(&t->e);
	t->kept = true;
}

void jit_want_flags(struct translation *t)
{
	if (t->kept)
		jit_flags_restore(&t->e);
	t->kept = false;
}

/* Flags that are live before instruction i is done and not only because of what it writes. */
uint16_t jit_live_before(const struct translation *t, unsigned i)
{
	const struct jit_row *row = row_of(t, i);

	if (t->v->options.precise)
		return X86_FLAGS_ARITH;
	return (uint16_t)((t->live_after[i] & ~jit_flags_killed(t, row)) | row->flags_in);
}

uint16_t jit_written_of(const struct translation *t, unsigned i)
{
	return row_of(t, i)->flags_kill;
}

/* Must the host's flags be good when the instruction itself runs? Also if it changes but some of them. */
bool jit_needs_flags(const struct translation *t, unsigned i)
{
	const struct jit_row *row = row_of(t, i);

	return row->flags_in || (jit_written_of(t, i) && jit_live_before(t, i));
}

/* ---- sites and slow paths ---- */

struct jit_site *jit_make_site(struct translation *t, unsigned i)
{
	struct jit_site *site = jit_cache_alloc(t->v, sizeof(*site));

	if (!site) {
		t->failed = true;
		return &t->nowhere.site;
	}
	*site = (struct jit_site){ .len = t->insn[i].len, .page_offset = t->offset[i], .done = (uint16_t)i,
		.checked = row_of(t, i)->checked, .leaves = row_of(t, i)->leaves,
		.segment = (uint8_t)t->v->cache.now };
	memcpy(site->bytes, t->bytes + t->offset[i], t->insn[i].len);
	return site;
}

struct slow *jit_slow_begin(struct translation *t, unsigned i)
{
	if (t->slow_count == JIT_SLOWS_MAX) {
		t->failed = true;
		t->nowhere.slow = (struct slow){ .site = &t->nowhere.site };
		return &t->nowhere.slow;
	}
	struct slow *slow = &t->slow[t->slow_count++];
	*slow = (struct slow){ .site = jit_make_site(t, i), .i = i };
	return slow;
}

void jit_slow_jump(struct translation *t, struct slow *slow, unsigned condition)
{
	uint8_t *rel = emit_jump(&t->e, EM_JCC(condition), NULL);

	for (unsigned i = 0; i < ARRAY_SIZE(slow->rel); i++)
		if (!slow->rel[i]) {
			slow->rel[i] = rel;
			return;
		}
	t->failed = true;
}

/* NULL: there is no slow path. */
void jit_slow_end(struct translation *t, struct slow *slow)
{
	if (!slow)
		return;
	slow->resume = t->e.p;
	slow->out = jit_span_resume(t, slow->i);
}

void jit_emit_count_to(struct translation *t, struct emit *e, unsigned done)
{
	if (!t->v->options.count)
		return;
	emit_ctx(e, MOV_LOAD, HR_10, CTX(soft.cpu.instructions));
	emit_lea(e, HR_10, HR_10, (int32_t)done);
	emit_ctx(e, MOV_STORE, HR_10, CTX(soft.cpu.instructions));
}

void jit_emit_count(struct translation *t, unsigned done)
{
	jit_emit_count_to(t, &t->e, done);
}

static void lower_helper(struct translation *t, unsigned i)
{
	struct jit_site *site = jit_make_site(t, i);
	bool keep = !t->kept;

	site->helper = true;
	emit_mov_imm32(&t->e, HR_10, jit_cache_name(t->v, site));
	emit_jump(&t->e, EM_CALL, keep ? t->v->stub.slow_native : t->v->stub.slow_kept);
	t->kept = false;
}

/* ---- all of them ---- */

/* Returns false if it has to be a call of its semantic function. */
static bool lower_specially(struct translation *t, unsigned i, bool *ret_ended)
{
	if (jit_cuts_rip(&t->insn[i], row_of(t, i)))
		return false;
	switch (row_of(t, i)->kind) {
	case JIT_NATIVE: return jit_lower_native(t, i);
	case JIT_NOP: return true;
	case JIT_RAW: emit_bytes(&t->e, t->bytes + t->offset[i], t->insn[i].len); return true;
	case JIT_RAW_VECTOR:
		/* In 32-bit code VZEROALL and VZEROUPPER leave the upper eight registers alone. */
		if (!jit_native_now(t, i) || !t->mode64)
			return false;
		emit_bytes(&t->e, t->bytes + t->offset[i], t->insn[i].len);
		return true;
	case JIT_LEA: return jit_lower_lea(t, i);
	case JIT_PUSH: return jit_lower_push(t, i);
	case JIT_POP: return jit_lower_pop(t, i);
	case JIT_LEAVE: return jit_lower_leave(t, i);
	case JIT_CLD: jit_lower_direction(t, i, false); return true;
	case JIT_STD: jit_lower_direction(t, i, true); return true;
	case JIT_CLI: jit_lower_cli(t, i); return true;
	case JIT_STI: return jit_lower_sti(t, i);
	case JIT_SWAPGS: jit_lower_swapgs(t, i); return true;
	case JIT_PUSHF: return jit_lower_pushf(t, i);
	case JIT_RDTSC: jit_lower_rdtsc(t, i, false); return true;
	case JIT_RDTSCP: jit_lower_rdtsc(t, i, true); return true;
	case JIT_DIV: return jit_lower_divide(t, i, false);
	case JIT_IDIV: return jit_lower_divide(t, i, true);
	case JIT_BIT: return jit_lower_bit(t, i);
	case JIT_JCC: jit_lower_jcc(t, i); return true;
	case JIT_JRCXZ:
		if (t->insn[i].asize == 2)
			return false;
		jit_lower_jrcxz(t, i);
		return true;
	default: *ret_ended = true; break;
	}
	switch (row_of(t, i)->kind) {
	case JIT_JMP:
		jit_lower_branch(t, i);
		return true;
	case JIT_CALL: return jit_lower_call(t, i);
	case JIT_JMP_RM: return jit_lower_jmp_rm(t, i);
	case JIT_CALL_RM: return jit_lower_call_rm(t, i);
	case JIT_RET: return jit_lower_ret(t, i);
	default: return false;
	}
}

bool jit_lower(struct translation *t, unsigned i)
{
	bool ended = false;

	if (!lower_specially(t, i, &ended)) {
		lower_helper(t, i);
		ended = row_of(t, i)->leaves;
	}
	jit_span_behind(t, i);
	return ended;
}
