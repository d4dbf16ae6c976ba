/*
 * Programs: cases that run on. Where the sequences of gen.c seldom get past a second memory access, these aim
 * each one anew, by a MOV to its base register, and go on: over branches to and fro, calls and returns, with
 * flags carried from one instruction to another over what lies between them. What a translator does with
 * blocks, with flags that nobody reads and with registers that it moved is seen only here.
 *
 * Some still fault, and some never end; those are left out. Some change their own code ahead of them or behind, through
 * its second mapping.
 */
#include "case.h"

#include "base/util.h"
#include "isa/x86/index.h"
#include "isa/x86/semantics.h"

#define GROUPS_MAX  28 /* an instruction with what prepares it is a group */
#define ROOM	    64 /* bytes that a group may take */
#define TRIES	    30
#define FORWARD_MAX 24

/* A branch to a group that is not there yet. */
struct forward {
	unsigned fix, group;
	uint32_t offset; /* from where the group begins */
};

struct program {
	struct gen *g;
	const struct diff_rows *rows;
	uint16_t start[GROUPS_MAX + 1];
	unsigned count;
	struct forward forward[FORWARD_MAX];
	unsigned forward_count;
};

/* ---- bytes ---- */

static void put(struct gen *g, const void *bytes, unsigned count)
{
	memcpy(g->c->code + g->c->code_bytes, bytes, count);
	g->c->code_bytes = (uint16_t)(g->c->code_bytes + count);
}

static void put8(struct gen *g, unsigned byte)
{
	const uint8_t b = (uint8_t)byte;

	put(g, &b, 1);
}

static bool mode64(const struct gen *g)
{
	return g->c->mode == 64;
}

/* MOV reg, value; changes no flags. */
static void set(struct gen *g, unsigned reg, uint64_t value)
{
	const bool wide = mode64(g) && value >> 32;

	if (wide || reg >= 8)
		put8(g, 0x40 | (wide ? 8 : 0) | reg >> 3);
	put8(g, 0xb8 | (reg & 7));
	put(g, &value, wide ? 8 : 4);
}

static unsigned any_register(struct gen *g)
{
	return diff_pick(&g->rng, mode64(g) ? 16 : 8);
}

/* ---- operands ---- */

/* Mostly where nothing goes wrong. */
static uint64_t good_address(struct gen *g, unsigned size, bool aligned)
{
	static const uint8_t pages[] = {0, 1, 4};
	const unsigned die = diff_pick(&g->rng, 100);
	uint64_t at = pages[diff_pick(&g->rng, 3)] * 0x1000u + diff_pick(&g->rng, 0x1001 - size);

	if (die < 3)
		return gen_address(g, size, aligned);
	if (die < 10 && !aligned)
		at = 0x1000 - diff_pick(&g->rng, size); /* across two pages */
	else if (die < 16)
		at = 0x2000 - size;
	if (aligned)
		at &= ~63ull;
	return DIFF_DATA + at;
}

/* Prepare the memory operand of the instruction that comes next. False: it cannot be aimed. */
static bool aim(struct gen *g, const struct x86_insn *insn, unsigned size)
{
	const bool aligned = (insn->row->attr & X86_A_ALIGN || size >= 512) && gen_percent(g, 95);
	const uint64_t address = good_address(g, size, aligned);
	uint64_t value = address - gen_segment_base(g, insn), index = 0;

	if (insn->asize == 2 || (insn->base == insn->index && insn->base < 16))
		return false;
	if (gen_is_bit_string(insn))
		set(g, insn->op[1].reg, (uint64_t)(int64_t)((int)diff_pick(&g->rng, 512) - 256));
	if (insn->row->attr & X86_A_VSIB) {
		gen_indices(g, insn->index);
	} else if (insn->index < 16) {
		index = gen_percent(g, 80) ? diff_pick(&g->rng, 64)
					   : (uint64_t)0 - diff_pick(&g->rng, 64);
		set(g, insn->index, index);
	}
	value -= index << insn->scale;
	if (insn->base < 16) {
		value -= (uint64_t)(int64_t)insn->disp;
		if (insn->asize == 4 && mode64(g))
			value = (uint32_t)value | diff_random(&g->rng) << 32;
		set(g, insn->base, value);
	} else if (insn->base == X86_RIP) {
		gen_fix(g, FIX_RELATIVE, g->c->code_bytes + g->e.disp_at, 4,
			g->c->code_bytes + insn->len, value);
	} else if (g->e.disp_bytes) {
		gen_fix(g, FIX_ABSOLUTE, g->c->code_bytes + g->e.disp_at,
			g->e.disp_bytes == 8 ? insn->asize : 4, 0, value);
	}
	gen_patch_operand(g, insn, address, size);
	return true;
}

static void aim_string(struct gen *g, const struct x86_insn *insn, const struct x86_operand *op)
{
	const uint64_t address = good_address(g, 8 * op->size, false);

	set(g, op->reg, op->reg == X86_RSI ? address - gen_segment_base(g, insn) : address);
	if (insn->prefix & (X86_P_REP | X86_P_REPNE))
		set(g, X86_RCX,
			gen_percent(g, 90) ? diff_pick(&g->rng, 40) : diff_pick(&g->rng, 900));
}

static bool uses_stack(const struct x86_insn *insn)
{
	x86_semantic *fn = insn->fn;

	return fn == x86_sem_push || fn == x86_sem_pop || fn == x86_sem_leave ||
	       fn == x86_sem_enter || fn == x86_sem_pushf || fn == x86_sem_popf ||
	       fn == x86_sem_pusha || fn == x86_sem_popa;
}

/* What comes before the instruction. */
static bool prepare(struct gen *g, const struct x86_insn *insn, const struct x86_form *form)
{
	if (uses_stack(insn) && gen_percent(g, 60))
		set(g, insn->fn == x86_sem_leave ? X86_RBP : X86_RSP, good_address(g, 64, true));
	for (unsigned i = 0; i < insn->operand_count; i++) {
		if (insn->op[i].kind != X86_O_MEM || insn->fn == x86_sem_lea)
			continue;
		if (form->op[i].where == X86_W_X || form->op[i].where == X86_W_Y)
			aim_string(g, insn, &insn->op[i]);
		else if (!aim(g, insn, gen_memory_size(insn, insn->op[i].size)))
			return false;
	}
	return true;
}

/* ---- instructions ---- */

enum kind { KIND_INTEGER, KIND_VECTOR, KIND_STRING, KIND_ANY };

static enum kind choose_kind(struct gen *g)
{
	const unsigned die = diff_pick(&g->rng, 100);

	return die < 64 ? KIND_INTEGER : die < 80 ? KIND_VECTOR : die < 86 ? KIND_STRING : KIND_ANY;
}

static bool is_kind(const struct x86_row *row, enum kind kind)
{
	const uint32_t vector = X86_A_SSE | X86_A_AVX, other = X86_A_X87 | X86_A_MMX;

	if (row->attr & (X86_A_CPL0 | X86_A_IO | X86_A_END))
		return false;
	switch (kind) {
	case KIND_INTEGER: return row->attr & X86_A_NATIVE && !(row->attr & (vector | other));
	case KIND_VECTOR: return row->attr & vector;
	case KIND_STRING: return row->attr & X86_A_REP;
	default: return !(row->attr & vector);
	}
}

/* Flags left undefined make most of what follows incomparable. */
static bool is_clear(const struct x86_row *row)
{
	return !(x86_flags_mask(row->flags_undef) & X86_FLAGS_ARITH & ~X86_AF);
}

static int choose_row(struct program *p)
{
	const enum kind kind = choose_kind(p->g);

	for (unsigned i = 0; i < 20 * TRIES; i++) {
		const unsigned row = p->rows->row[diff_pick(&p->g->rng, p->rows->count)];
		if (!is_clear(&x86_rows[row]) && !gen_percent(p->g, 15))
			continue;
		if (is_kind(&x86_rows[row], kind) &&
			gen_row_has_mode(&x86_rows[row], p->g->c->mode))
			return (int)row;
	}
	return -1;
}

/* Add an instruction of the row and what prepares it. */
static void add_row(struct gen *g, unsigned number)
{
	const struct x86_form *form = &x86_index_get()->forms[number];
	const struct x86_row *row = &x86_rows[number];
	const uint16_t begun = g->c->code_bytes;
	const unsigned fixes = g->fix_count;
	struct x86_insn insn;

	g->e.rng = &g->rng;
	g->e.mode = g->c->mode;
	for (unsigned i = 0; i < TRIES; i++) {
		diff_emit_row(&g->e, row, form);
		if (x86_decode(&insn, g->e.bytes, g->e.count, g->c->mode, false,
			    &g->interp->cpu.features) != X86_DECODE_OK ||
			insn.row != row)
			continue;
		if (prepare(g, &insn, form)) {
			put(g, g->e.bytes, insn.len);
			return;
		}
		g->c->code_bytes = begun;
		g->fix_count = fixes;
	}
}

/* ---- branches ---- */

/* The last `bytes` of the code are to lead to a group: one that is there, or one of the next. */
static void lead(struct program *p, enum fix_kind kind, unsigned bytes, bool back)
{
	struct gen *g = p->g;
	const unsigned end = g->c->code_bytes, fix = g->fix_count;
	const unsigned group = back && p->count ? diff_pick(&g->rng, p->count)
						: p->count + 1 + diff_pick(&g->rng, 4);

	if (gen_percent(g, 3)) {
		gen_fix(g, kind == FIX_LABEL_RELATIVE ? FIX_RELATIVE : FIX_ABSOLUTE, end - bytes,
			bytes, end, gen_code_address(g));
		return;
	}
	gen_fix(g, kind, end - bytes, bytes, end, group < p->count ? p->start[group] : end);
	if (group >= p->count && p->forward_count < FORWARD_MAX && fix < g->fix_count)
		p->forward[p->forward_count++] = (struct forward){fix, group, 0};
}

static void put_relative(struct program *p, unsigned bytes, bool back)
{
	put(p->g, "\0\0\0\0", bytes);
	lead(p, FIX_LABEL_RELATIVE, bytes, back);
}

static void add_jcc(struct program *p)
{
	struct gen *g = p->g;
	const unsigned condition = diff_pick(&g->rng, 16);
	const bool back = gen_percent(g, 12);

	if (gen_percent(g, 50)) {
		put8(g, 0x70 | condition);
		put_relative(p, 1, back);
	} else {
		put8(g, 0x0f);
		put8(g, 0x80 | condition);
		put_relative(p, 4, back);
	}
}

static void add_loop(struct program *p)
{
	struct gen *g = p->g;

	/* A count whose halves disagree about being zero. */
	if (gen_percent(g, 40))
		set(g, X86_RCX, diff_pick(&g->rng, 3) | (uint64_t)diff_pick(&g->rng, 2) << 32);
	if (gen_percent(g, 25))
		put8(g, 0x67);
	put8(g, 0xe0 | diff_pick(&g->rng, 4));
	put_relative(p, 1, gen_percent(g, 35));
}

static void add_jump(struct program *p)
{
	struct gen *g = p->g;
	const bool call = gen_percent(g, 40);

	if (call && gen_percent(g, 70))
		set(g, X86_RSP, good_address(g, 64, true));
	if (call || gen_percent(g, 50)) {
		put8(g, call ? 0xe8 : 0xe9);
		put_relative(p, 4, gen_percent(g, 5));
	} else {
		put8(g, 0xeb);
		put_relative(p, 1, gen_percent(g, 5));
	}
}

/* PUSH of a group's address, for RET or a branch by way of memory. */
static void push_target(struct program *p)
{
	set(p->g, X86_RSP, good_address(p->g, 64, true));
	put8(p->g, 0x68);
	put(p->g, "\0\0\0\0", 4);
	lead(p, FIX_LABEL_ABSOLUTE, 4, gen_percent(p->g, 5));
}

static void add_return(struct program *p)
{
	struct gen *g = p->g;

	push_target(p);
	if (gen_percent(g, 30)) {
		put(g, "\xc2\x08\x00", 3); /* ret 8 */
		return;
	}
	put8(g, 0xc3);
}

/* JMP or CALL of a register, or of memory. */
static void add_indirect(struct program *p)
{
	struct gen *g = p->g;
	const unsigned digit = gen_percent(g, 50) ? 2 : 4, reg = any_register(g);

	if (gen_percent(g, 40)) {
		push_target(p);
		put8(g, 0xff);
		put8(g, digit << 3 | 4);
		put8(g, 0x24); /* [rsp] */
		return;
	}
	if (digit == 2)
		set(g, X86_RSP, good_address(g, 64, true));
	set(g, reg, 0);
	lead(p, FIX_LABEL_ABSOLUTE, 4, gen_percent(g, 5));
	if (reg >= 8)
		put8(g, 0x41);
	put8(g, 0xff);
	put8(g, 0xc0 | digit << 3 | (reg & 7));
}

static void add_branch(struct program *p)
{
	const unsigned die = diff_pick(&p->g->rng, 100);

	if (die < 60)
		add_jcc(p);
	else if (die < 68)
		add_loop(p);
	else if (die < 82)
		add_jump(p);
	else if (die < 91)
		add_return(p);
	else
		add_indirect(p);
}

/* ---- code that changes ---- */

/* MOV of a byte, word or dword into a group, at its beginning or a few bytes behind. */
static void add_change(struct program *p)
{
	struct gen *g = p->g;
	const unsigned wide = gen_percent(g, 50),
		       skip = gen_percent(g, 50) ? 0 : diff_pick(&g->rng, 8);
	const uint32_t value = gen_percent(g, 60) ? 0x90909090 : (uint32_t)diff_random(&g->rng);
	const bool back = gen_percent(g, 40);
	const unsigned group =
		back ? diff_pick(&g->rng, p->count) : p->count + diff_pick(&g->rng, 3);
	const unsigned fix = g->fix_count;

	put8(g, wide ? 0xc7 : 0xc6);
	put8(g, mode64(g) ? 0x04 : 0x05);
	if (mode64(g))
		put8(g, 0x25);
	put(g, "\0\0\0\0", 4);
	gen_fix(g, FIX_LABEL_ABSOLUTE, g->c->code_bytes - 4u, 4, 0,
		DIFF_ALIAS - DIFF_CODE + skip + (back ? p->start[group] : g->c->code_bytes));
	if (!back && p->forward_count < FORWARD_MAX && fix < g->fix_count)
		p->forward[p->forward_count++] =
			(struct forward){fix, group, DIFF_ALIAS - DIFF_CODE + skip};
	put(g, &value, wide ? 4 : 1);
}

/* ---- a program ---- */

static void begin_group(struct program *p)
{
	p->start[p->count++] = p->g->c->code_bytes;
}

/* Branches forward, when all groups are there; beyond them is the end. */
static void resolve(struct program *p)
{
	for (unsigned i = 0; i < p->forward_count; i++) {
		const struct forward *f = &p->forward[i];
		p->g->fix[f->fix].target = f->offset + (f->group < p->count ? p->start[f->group]
									    : p->g->c->code_bytes);
	}
}

void gen_program(struct gen *g, const struct diff_rows *rows, unsigned number)
{
	struct program p = {.g = g, .rows = rows};
	const unsigned groups = 3 + diff_pick(&g->rng, GROUPS_MAX - 3);
	const unsigned about = diff_pick(&g->rng, MIN(groups, 6u)); /* where the row stands */

	g->c->in.rflags &= ~(uint64_t)X86_AC;
	if (gen_percent(g, 80))
		g->c->in.mxcsr = 0x1f80 | (g->c->in.mxcsr & 0x603f);
	g->c->changes_code = rows->change_code && gen_percent(g, 20);
	while (p.count < groups && g->c->code_bytes + ROOM <= DIFF_CODE_MAX) {
		const bool row_now = p.count == about;
		const int row = row_now ? (int)number : choose_row(&p);
		begin_group(&p);
		if (g->c->changes_code && gen_percent(g, 15))
			add_change(&p);
		if (!row_now && (row < 0 || gen_percent(g, 28)))
			add_branch(&p);
		else
			add_row(g, (unsigned)row);
	}
	resolve(&p);
}
