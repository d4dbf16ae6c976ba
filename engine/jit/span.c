/*
 * Spans: accesses of one block that share a look-up in the TLB.
 *
 * Two accesses whose addresses differ by a constant, as far as the block itself can tell, belong to one span if
 * all its bytes lie close together. The first of them, the leader, looks up the whole span at once, for writing
 * if any access writes, and leaves its host address in R11 (and, if R11 will not last, in a slot of the context).
 * The others take the address from there and check nothing.
 *
 * If the leader's look-up fails, for whatever reason, nothing has happened yet, and translated code goes on in a
 * block without spans that begins at the leader: each access is on its own there. What else has a slow path
 * while a span is in use goes on in such a block behind itself, because the slow path may have changed what is
 * mapped, or who may write where. A call of a semantic function ends all spans. So between a span's look-up
 * and its last use nothing happens but this vCPU's own plain instructions.
 *
 * What addresses differ by is found by numbering values: two registers with the same number hold values whose
 * difference is the difference of their offsets. Only instructions that are known to write no other registers
 * than their operands keep any numbers (row.c).
 *
 * Only in 64-bit code, where an address is base + index + displacement and nothing else; accesses through FS and GS
 * are left out.
 */
#include "engine/jit/lower.h"

#include "isa/x86/semantics.h"

#include <string.h>

#define SPAN_BYTES 512 /* at most: one that is longer fits a page less often */

/* A value that a register holds: `number` stands for something unknown. */
struct value {
	uint32_t number;
	int64_t offset;
};

enum { NUMBER_ZERO = 1, NUMBER_RIP, NUMBER_FIRST };

/* The walk over a block's instructions. */
struct walk {
	struct translation *t;
	struct value reg[16];
	uint32_t next_number;
	unsigned branches; /* so far */
};

struct access {
	struct value base, index;
	uint8_t scale, size, align;
	bool write;
};

/* ---- values ---- */

static struct value unknown(struct walk *w)
{
	return (struct value){.number = w->next_number++};
}

static void forget(struct walk *w, unsigned reg)
{
	w->reg[reg & 15] = unknown(w);
}

static void forget_all(struct walk *w)
{
	for (unsigned i = 0; i < 16; i++)
		forget(w, i);
}

static struct value value_of(const struct walk *w, unsigned reg)
{
	return reg == X86_ZERO ? (struct value){.number = NUMBER_ZERO} : w->reg[reg];
}

static void move(struct walk *w, unsigned to, struct value value, int64_t more)
{
	value.offset += more;
	w->reg[to] = value;
}

static void write_operand(struct walk *w, const struct x86_operand *op)
{
	if (op->kind == X86_O_GPR || op->kind == X86_O_GPR8H)
		forget(w, op->reg);
}

/* MOV, ADD, SUB, INC and DEC of whole registers keep what is known. */
static bool write_known(struct walk *w, const struct x86_insn *insn)
{
	const struct x86_operand *to = &insn->op[0], *from = &insn->op[1];
	const bool imm = insn->operand_count == 2 && from->kind == X86_O_IMM;

	if (to->kind != X86_O_GPR || to->size != 8)
		return false;
	if (insn->fn == x86_sem_mov && from->kind == X86_O_GPR && from->size == 8)
		move(w, to->reg, w->reg[from->reg], 0);
	else if (insn->fn == x86_sem_add && imm)
		move(w, to->reg, w->reg[to->reg], (int64_t)insn->imm);
	else if (insn->fn == x86_sem_sub && imm)
		move(w, to->reg, w->reg[to->reg], -(int64_t)insn->imm);
	else if (insn->fn == x86_sem_inc || insn->fn == x86_sem_dec)
		move(w, to->reg, w->reg[to->reg], insn->fn == x86_sem_inc ? 1 : -1);
	else
		return false;
	return true;
}

static void write_registers(struct walk *w, const struct x86_insn *insn, const struct jit_row *row)
{
	if (row->writes & JIT_WRITES_ALL) {
		forget_all(w);
		return;
	}
	if ((row->writes & JIT_WRITES_FIRST) && !write_known(w, insn))
		write_operand(w, &insn->op[0]);
	if (row->writes & JIT_WRITES_SECOND)
		write_operand(w, &insn->op[1]);
	if (row->writes & JIT_WRITES_AX_DX) {
		forget(w, X86_RAX);
		forget(w, X86_RDX);
	}
}

static void write_lea(struct walk *w, unsigned i)
{
	const struct x86_insn *insn = &w->t->insn[i];
	const unsigned to = insn->op[0].reg;

	if (insn->asize != 8 || insn->op[0].size != 8 || insn->index != X86_ZERO || insn->base == X86_RIP)
		forget(w, to);
	else
		move(w, to, value_of(w, insn->base), insn->disp);
}

/* ---- accesses ---- */

static bool operand_access(struct walk *w, unsigned i, struct access *a)
{
	const struct x86_insn *insn = &w->t->insn[i];
	const int k = jit_memory_operand(insn);

	if (k < 0 || insn->asize != 8 || insn->seg == X86_FS || insn->seg == X86_GS)
		return false;
	*a = (struct access){.size = insn->op[k].size,
		.write = jit_writes_memory(insn, k),
		.align = (uint8_t)jit_required_alignment(insn, insn->op[k].size),
		.index = value_of(w, insn->index),
		.scale = insn->scale};
	if (insn->base == X86_RIP)
		a->base = (struct value){NUMBER_RIP, w->t->offset[i + 1]};
	else
		a->base = value_of(w, insn->base);
	a->base.offset += insn->disp + a->index.offset * (1 << a->scale);
	return true;
}

static struct access stack_access(const struct walk *w, unsigned reg, int64_t offset, bool write)
{
	struct access a = {.base = w->reg[reg], .index.number = NUMBER_ZERO, .size = 8, .align = 1, .write = write};

	a.base.offset += offset;
	return a;
}

/* ---- spans ---- */

static bool same_key(const struct span *s, const struct access *a)
{
	return s->base == a->base.number && s->index == a->index.number &&
	       (a->index.number == NUMBER_ZERO || s->scale == a->scale);
}

/* Places that must be aligned have to be so together: their common alignment and what it leaves. */
static bool join_alignment(struct span *s, const struct access *a)
{
	const unsigned left = (uint64_t)a->base.offset & (a->align - 1u);

	if (a->align <= s->align)
		return left == (s->align_left & (a->align - 1u));
	if ((left & (s->align - 1u)) != s->align_left)
		return false;
	s->align = a->align;
	s->align_left = (uint8_t)left;
	return true;
}

static bool join(struct span *s, const struct access *a, unsigned i, unsigned branches)
{
	const int64_t low = MIN(s->low, a->base.offset), high = MAX(s->high, a->base.offset + a->size);

	/* A write that may not come is no reason to ask for more than reading. */
	if (!same_key(s, a) || high - low > SPAN_BYTES || (a->write && !s->write && branches != s->branches) ||
		!join_alignment(s, a))
		return false;
	s->low = low;
	s->high = high;
	s->write |= a->write;
	s->last = (uint16_t)i;
	s->members++;
	return true;
}

static void add_access(struct walk *w, unsigned i, const struct access *a)
{
	struct translation *t = w->t;
	unsigned n;

	for (n = t->span_first; n < t->span_count; n++)
		if (join(&t->span[n], a, i, w->branches))
			break;
	if (n == t->span_count) {
		t->span_count++;
		t->span[n] = (struct span){.base = a->base.number, .index = a->index.number, .scale = a->scale,
			.low = a->base.offset, .high = a->base.offset + a->size, .leader = a->base.offset,
			.write = a->write, .align = a->align, .members = 1, .branches = w->branches,
			.align_left = (uint8_t)((uint64_t)a->base.offset & (a->align - 1u)),
			.first = (uint16_t)i, .last = (uint16_t)i};
	}
	t->span_of[i] = (int16_t)n;
	t->span_place[i] = a->base.offset;
}

/* No span goes on behind this one. */
static void end_all(struct walk *w)
{
	forget_all(w);
	w->t->span_first = w->t->span_count;
}

/* ---- the walk ---- */

static void walk_stack(struct walk *w, unsigned i, unsigned kind)
{
	const struct x86_insn *insn = &w->t->insn[i];
	const struct x86_operand *op = &insn->op[0];
	const bool pushes = kind == JIT_PUSH || kind == JIT_CALL;
	struct access a = pushes ? stack_access(w, X86_RSP, -8, true) :
		stack_access(w, kind == JIT_LEAVE ? X86_RBP : X86_RSP, 0, false);

	if (!jit_stack_fits(w->t, i)) {
		end_all(w);
		return;
	}
	if (kind != JIT_PUSH || op->kind != X86_O_MEM)
		add_access(w, i, &a);
	if (kind == JIT_LEAVE)
		move(w, X86_RSP, w->reg[X86_RBP], 8);
	else
		move(w, X86_RSP, w->reg[X86_RSP], pushes ? -8 : 8);
	if (kind == JIT_LEAVE)
		forget(w, X86_RBP);
	else if (kind == JIT_POP)
		forget(w, op->reg);
}

static void walk_one(struct walk *w, unsigned i)
{
	struct translation *t = w->t;
	const struct jit_row *row = row_of(t, i);
	struct access a;

	switch (jit_cuts_rip(&t->insn[i], row) ? JIT_HELPER : row->kind) {
	case JIT_NATIVE:
		if (!jit_native_fits(t, i)) {
			end_all(w);
			return;
		}
		if (operand_access(w, i, &a))
			add_access(w, i, &a);
		write_registers(w, &t->insn[i], row);
		return;
	case JIT_LEA:
		if (jit_lea_fits(&t->insn[i]))
			write_lea(w, i);
		else
			end_all(w);
		return;
	case JIT_PUSH:
	case JIT_POP:
	case JIT_LEAVE:
	case JIT_CALL:
	case JIT_RET: walk_stack(w, i, row->kind); return;
	case JIT_JCC: w->branches++; return;
	case JIT_NOP:
	case JIT_RAW: return;
	default: end_all(w); return;
	}
}

/* Does R11 stay as it is over this instruction, which is in no span? */
static bool keeps_r11(const struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	unsigned in_memory = 0;

	switch (row_of(t, i)->kind) {
	case JIT_NOP:
	case JIT_RAW:
	case JIT_JCC: return true;
	case JIT_LEA: return !spilled(insn->index) && insn->op[0].size != 2;
	case JIT_NATIVE: break;
	default: return false;
	}
	for (unsigned k = 0; k < insn->operand_count; k++) {
		if (insn->op[k].kind == X86_O_MEM)
			return false;
		in_memory += insn->op[k].kind == X86_O_GPR && spilled(insn->op[k].reg);
	}
	return in_memory <= 1;
}

/* Does R11 last from a span's first access to its last? */
static bool r11_lasts(const struct translation *t, unsigned n)
{
	for (unsigned i = t->span[n].first; i < t->span[n].last; i++)
		if (t->span_of[i] != (int)n && (t->span_of[i] >= 0 || !keeps_r11(t, i)))
			return false;
	return true;
}

static void drop(struct translation *t, unsigned n)
{
	for (unsigned i = t->span[n].first; i <= t->span[n].last; i++)
		if (t->span_of[i] == (int)n)
			t->span_of[i] = -1;
	t->span[n].members = 0;
}

/* Spans of one access are none. Those that R11 does not last for get a slot. */
static void settle(struct translation *t)
{
	unsigned slots = 0;

	for (unsigned n = 0; n < t->span_count; n++)
		if (t->span[n].members < 2)
			drop(t, n);
	for (unsigned n = 0; n < t->span_count; n++) {
		struct span *s = &t->span[n];

		s->slot = JIT_NO_SLOT;
		if (!s->members || r11_lasts(t, n))
			continue;
		if (slots == JIT_SPAN_SLOTS)
			drop(t, n);
		else
			s->slot = (uint8_t)slots++;
	}
}

void jit_plan_spans(struct translation *t)
{
	struct walk w = {.t = t, .next_number = NUMBER_FIRST};

	t->span_count = t->span_first = 0;
	t->r11_span = -1;
	memset(t->span_of, -1, t->count * sizeof(t->span_of[0]));
	if (!t->mode64 || t->count < 2 || (t->mode & JIT_MODE_PLAIN) || !t->v->options.spans)
		return;
	forget_all(&w);
	for (unsigned i = 0; i < t->count; i++)
		walk_one(&w, i);
	settle(t);
}

/* ---- code ---- */

static size_t slot_of(const struct span *s)
{
	return CTX(span) + s->slot * sizeof(uint64_t);
}

struct leaving *jit_span_resume(struct translation *t, unsigned i)
{
	for (unsigned n = 0; n < t->span_count; n++)
		if (t->span[n].members && t->span[n].first <= i && t->span[n].last > i)
			return jit_leave_plainly(t, t->offset[i + 1], i + 1);
	return NULL;
}

/* R10 = linear address of the span's first byte, which is `more` from that of its leader. */
static void emit_address_of(struct translation *t, unsigned i, int64_t more)
{
	struct x86_insn *insn = &t->insn[i];
	const int32_t disp = insn->disp;

	switch (row_of(t, i)->kind) {
	case JIT_PUSH:
	case JIT_CALL: emit_lea(&t->e, HR_10, HR_9, (int32_t)more - 8); return;
	case JIT_POP:
	case JIT_RET: emit_lea(&t->e, HR_10, HR_9, (int32_t)more); return;
	case JIT_LEAVE: emit_lea(&t->e, HR_10, HR_BP, (int32_t)more); return;
	default: break;
	}
	t->failed |= __builtin_add_overflow(disp, (int32_t)more, &insn->disp);
	jit_emit_ea(t, i, HR_10);
	insn->disp = disp;
}

/* R10 is where the span's first byte is in its page, and free afterwards. */
static void check_alignment(struct translation *t, const struct span *s, struct leaving *out)
{
	const unsigned more = (unsigned)(s->align_left - (uint64_t)s->low) & (s->align - 1u);

	if (s->align == 1)
		return;
	if (more)
		emit_lea(&t->e, HR_10, HR_10, (int32_t)more);
	emit_rr(&t->e, 0xf6 | EM_BYTE, 0, HR_10); /* test */
	emit8(&t->e, s->align - 1u);
	out->plain_rel[1] = emit_jump(&t->e, EM_JCC(CC_NE), NULL);
}

static void look_up(struct translation *t, unsigned i, const struct span *s)
{
	const int32_t table = jit_table(t, s->write ? X86_WRITE : X86_READ);
	struct emit *e = &t->e;

	jit_clobber_flags(t, jit_live_before(t, i));
	struct leaving *out = jit_leave_plainly(t, t->offset[i], i);
	out->live = jit_live_before(t, i);
	emit_address_of(t, i, s->low - s->leader);
	jit_emit_index(e);
	emit_rm(e, 0x2b | EM_W | EM_GS, HR_10, HR_11, HR_NONE, 0,
		table + (int32_t)offsetof(struct x86_tlb_entry, page));
	emit_rr(e, 0x81 | EM_W, 7, HR_10); /* cmp */
	emit32(e, (uint32_t)(GUEST_PAGE_SIZE - (uint64_t)(s->high - s->low)));
	out->plain_rel[0] = emit_jump(e, EM_JCC(CC_A), NULL);
	emit_rm(e, MOV_LOAD | EM_GS, HR_11, HR_11, HR_NONE, 0,
		table + (int32_t)offsetof(struct x86_tlb_entry, host));
	emit_rm(e, 0x8d | EM_W, HR_11, HR_11, HR_10, 0, 0);
	check_alignment(t, s, out);
	if (s->slot != JIT_NO_SLOT)
		emit_ctx(e, MOV_STORE, HR_11, slot_of(s));
}

bool jit_span_place(struct translation *t, unsigned i, struct place *ret_place)
{
	const int n = t->span_of[i];

	if (n < 0)
		return false;
	const struct span *s = &t->span[n];
	if (i == s->first)
		look_up(t, i, s);
	else if (t->r11_span != n)
		emit_ctx(&t->e, MOV_LOAD, HR_11, slot_of(s));
	t->r11_span = (int16_t)n;
	*ret_place = (struct place){.base = HR_11, .index = HR_NONE, .disp = (int32_t)(t->span_place[i] - s->low)};
	return true;
}

void jit_span_behind(struct translation *t, unsigned i)
{
	if (t->span_of[i] < 0 && !keeps_r11(t, i))
		t->r11_span = -1;
}
