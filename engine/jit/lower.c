/*
 * Lowering: the host code of one instruction. jit.h says what registers and flags are where.
 *
 * The parts of an instruction that touches memory, in this order: flags that are live are kept; the address
 * goes to R10; the TLB is looked up (R11 = the page's host address, R10 = the offset in it), which on any
 * doubt goes to the slow path; the instruction itself, with R11 + R10 as its operand; then, and only then,
 * what else it changes. Nothing before the last check changes anything of the guest.
 */
#include "engine/jit/translate.h"
#include "isa/x86/access.h"
#include "isa/x86/index.h"
#include "isa/x86/semantics.h"

#define ENTRY_SHIFT 5 /* log2 of sizeof(struct x86_tlb_entry) */
_Static_assert(sizeof(struct x86_tlb_entry) == 1 << ENTRY_SHIFT, "the look-up scales by it");

static unsigned host_of(unsigned guest)
{
	return guest == X86_RSP ? HR_9 : guest;
}

/* Does it live in cpu.s.reg[] only? */
static bool spilled(unsigned guest)
{
	return guest >= X86_R9 && guest <= X86_R11;
}

static unsigned wide(const struct translation *t)
{
	return t->mode64 ? EM_W : 0;
}

/* ---- flags ---- */

/* The host's flags are about to become junk. */
static void clobber_flags(struct translation *t, uint16_t live)
{
	if (t->kept)
		return;
	if (live)
		jit_flags_keep(&t->e);
	t->kept = true;
}

static void want_flags(struct translation *t)
{
	if (t->kept)
		jit_flags_restore(&t->e);
	t->kept = false;
}

static const struct jit_row *row_of(const struct translation *t, unsigned i)
{
	return jit_row_of(t->v->rows, &t->insn[i]);
}

/* Flags that are live before instruction i is done and not only because of what it writes. */
static uint16_t live_before(const struct translation *t, unsigned i)
{
	const struct jit_row *row = row_of(t, i);

	if (t->v->options.precise)
		return X86_FLAGS_ARITH;
	return (uint16_t)((t->live_after[i] & ~jit_flags_killed(t, row)) | row->flags_in);
}

static uint16_t written_of(const struct translation *t, unsigned i)
{
	return row_of(t, i)->flags_kill;
}

/* Must the host's flags be good when the instruction itself runs? Also if it changes but some of them. */
static bool needs_flags(const struct translation *t, unsigned i)
{
	const struct jit_row *row = row_of(t, i);

	return row->flags_in || (written_of(t, i) && live_before(t, i));
}

/* ---- sites and slow paths ---- */

static struct jit_site *make_site(struct translation *t, unsigned i)
{
	struct jit_site *site = jit_cache_alloc(t->v, sizeof(*site));
	static struct jit_site nowhere;

	if (!site) {
		t->failed = true;
		return &nowhere;
	}
	*site = (struct jit_site){ .len = t->insn[i].len, .page_offset = t->offset[i], .done = (uint16_t)i,
		.checked = row_of(t, i)->checked, .leaves = row_of(t, i)->leaves,
		.segment = (uint8_t)t->v->cache.now };
	memcpy(site->bytes, t->bytes + t->offset[i], t->insn[i].len);
	return site;
}

static struct slow *slow_begin(struct translation *t, unsigned i)
{
	static struct slow nowhere;

	if (t->slow_count == JIT_SLOWS_MAX) {
		t->failed = true;
		return &nowhere;
	}
	struct slow *slow = &t->slow[t->slow_count++];
	*slow = (struct slow){ .site = make_site(t, i) };
	return slow;
}

static void slow_jump(struct translation *t, struct slow *slow, unsigned condition)
{
	uint8_t *rel = emit_jump(&t->e, EM_JCC(condition), NULL);

	for (unsigned i = 0; i < ARRAY_SIZE(slow->rel); i++)
		if (!slow->rel[i]) {
			slow->rel[i] = rel;
			return;
		}
	t->failed = true;
}

static void slow_end(struct translation *t, struct slow *slow)
{
	slow->resume = t->e.p;
}

static void emit_count(struct translation *t, unsigned done)
{
	if (!t->v->options.count)
		return;
	emit_ctx(&t->e, MOV_LOAD, HR_10, CTX(soft.cpu.instructions));
	emit_lea(&t->e, HR_10, HR_10, (int32_t)done);
	emit_ctx(&t->e, MOV_STORE, HR_10, CTX(soft.cpu.instructions));
}

static void lower_helper(struct translation *t, unsigned i)
{
	struct jit_site *site = make_site(t, i);
	bool keep = !t->kept;

	site->helper = true;
	emit_mov_imm32(&t->e, HR_10, jit_cache_name(t->v, site));
	emit_jump(&t->e, EM_CALL, keep ? t->v->stub.slow_native : t->v->stub.slow_kept);
	t->kept = false;
}

/* ---- memory ---- */

static unsigned loaded(struct translation *t, unsigned guest, unsigned temp)
{
	if (!spilled(guest))
		return host_of(guest);
	emit_ctx(&t->e, MOV_LOAD, temp, CTX_REG(guest));
	return temp;
}

/* Is it an address that emit_ea() can make? */
static bool simple_address(const struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];

	if (insn->asize == 2 || (insn->row->attr & X86_A_VSIB))
		return false;
	if (!t->mode64 && insn->seg == X86_CS)
		return false; /* may be execute-only */
	return insn->base != X86_RIP || insn->asize == 8;
}

/* R10 = the linear address of the memory operand. Flags are not touched. */
static void emit_ea(struct translation *t, unsigned i, unsigned to)
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
		base = loaded(t, insn->base, HR_10);
	}
	if (insn->index != X86_ZERO)
		index = loaded(t, insn->index, HR_11);
	emit_rm(&t->e, 0x8d | size, to, base, index, insn->scale, disp);
}

/* Outside 64-bit mode FS and GS have limits and types; go on only where those forbid nothing. */
static void check_segment(struct translation *t, struct slow *slow, unsigned seg)
{
	const uint32_t want = X86_SEG_P | X86_SEG_S | X86_SEG_WRITE;
	struct emit *e = &t->e;

	emit_ctx(e, 0x83, 7, CTX(soft.cpu.s.seg[seg].limit));
	emit8(e, 0xff);
	slow_jump(t, slow, CC_NE);
	emit_ctx(e, 0xb7 | EM_0F, HR_11, CTX(soft.cpu.s.seg[seg].attr));
	emit_rr(e, 0x81, 4, HR_11);
	emit32(e, want | X86_SEG_CODE | X86_SEG_EXPAND);
	emit_rr(e, 0x81, 7, HR_11);
	emit32(e, want);
	slow_jump(t, slow, CC_NE);
}

/* Clobbers flags outside 64-bit mode. */
static void emit_linear(struct translation *t, unsigned i, struct slow *slow)
{
	const struct x86_insn *insn = &t->insn[i];

	if (insn->seg != X86_FS && insn->seg != X86_GS) {
		emit_ea(t, i, HR_10);
		return;
	}
	if (!t->mode64)
		check_segment(t, slow, insn->seg);
	emit_ea(t, i, HR_10);
	emit_ctx(&t->e, MOV_LOAD, HR_11, CTX(soft.cpu.s.seg[insn->seg].base));
	emit_rm(&t->e, 0x8d | wide(t), HR_10, HR_10, HR_11, 0, 0);
}

/* R10 = linear address -> R11 = offset of its entry in each table. */
static void emit_index(struct emit *e)
{
	EMIT_LITERAL(e, "\xc4\x43\xfb\xf0\xda"); /* rorx r11, r10, imm */
	emit8(e, GUEST_PAGE_SHIFT - ENTRY_SHIFT);
	emit_rr(e, 0x81, 4, HR_11); /* and r11d */
	emit32(e, (X86_TLB_SIZE - 1) << ENTRY_SHIFT);
}

/* R10 = linear address -> R11 = host address of its page, R10 = offset in it; or the slow path. */
static void emit_lookup(struct translation *t, struct slow *slow, unsigned size, enum x86_access access,
	unsigned align)
{
	const size_t table = offsetof(struct x86_tlb, entry) +
			     access * sizeof(((struct x86_tlb *)NULL)->entry[0]);
	struct emit *e = &t->e;

	emit_index(e);
	emit_rm(e, 0x2b | EM_W | EM_GS, HR_10, HR_11, HR_NONE, 0,
		(int32_t)(table + offsetof(struct x86_tlb_entry, page)));
	emit_rr(e, 0x81 | EM_W, 7, HR_10); /* cmp r10 */
	emit32(e, (uint32_t)GUEST_PAGE_SIZE - size);
	slow_jump(t, slow, CC_A);
	if (align > 1) {
		emit_rr(e, 0xf6 | EM_BYTE, 0, HR_10); /* test r10b */
		emit8(e, align - 1);
		slow_jump(t, slow, CC_NE);
	}
	if (t->v->options.slow)
		slow_jump(t, slow, CC_BE); /* both ways: never further */
	emit_rm(e, MOV_LOAD | EM_GS, HR_11, HR_11, HR_NONE, 0,
		(int32_t)(table + offsetof(struct x86_tlb_entry, host)));
}

/* ---- copies ---- */

static int memory_operand(const struct x86_insn *insn)
{
	for (unsigned k = 0; k < insn->operand_count; k++)
		if (insn->op[k].kind == X86_O_MEM)
			return (int)k;
	return -1;
}

static bool writes_memory(const struct x86_insn *insn, int k)
{
	return k == 0 && (insn->row->attr & (X86_A_RMW | X86_A_WRITES_MEM));
}

/* Registers of an instruction that live in memory, and where they are meanwhile. */
struct temps {
	unsigned count;
	uint8_t guest[2], host[2];
};

/* Gives each general-purpose operand its host register; false: too many that live in memory. */
static bool assign(const struct x86_insn *insn, bool memory, struct jit_operands *operands,
	struct temps *temps)
{
	static const uint8_t free_host[2] = { HR_10, HR_11 };
	const unsigned room = memory ? 1 : 2;

	temps->count = 0;
	for (unsigned k = 0; k < insn->operand_count; k++) {
		const struct x86_operand *op = &insn->op[k];
		unsigned n;

		if (op->kind != X86_O_GPR)
			continue;
		operands->reg[k] = (uint8_t)host_of(op->reg);
		if (!spilled(op->reg))
			continue;
		for (n = 0; n < temps->count && temps->guest[n] != op->reg; n++)
			;
		if (n == room)
			return false;
		if (n == temps->count) {
			temps->guest[n] = op->reg;
			temps->host[n] = free_host[n];
			temps->count++;
		}
		operands->reg[k] = temps->host[n];
	}
	return true;
}

static void temps_load(struct translation *t, const struct temps *temps)
{
	for (unsigned n = 0; n < temps->count; n++)
		emit_ctx(&t->e, MOV_LOAD, temps->host[n], CTX_REG(temps->guest[n]));
}

/* Storing one that did not change does no harm. */
static void temps_store(struct translation *t, const struct temps *temps)
{
	for (unsigned n = 0; n < temps->count; n++)
		emit_ctx(&t->e, MOV_STORE, temps->host[n], CTX_REG(temps->guest[n]));
}

/* Does it end in a register that is written as an operand but 0? */
static bool only_reads(const struct x86_insn *insn)
{
	x86_semantic *fn = insn->fn;

	return fn == x86_sem_cmp || fn == x86_sem_test ||
	       (insn->op[0].kind == X86_O_MEM && fn != x86_sem_xchg && fn != x86_sem_xadd);
}

static unsigned required_alignment(const struct x86_insn *insn, unsigned size)
{
	/* CMPXCHG16B asks for it by itself; SHA on some processors. */
	if (insn->fn == x86_sem_cmpxchg16b || insn->row->feature == X86_F_SHA)
		return size;
	return insn->row->attr & X86_A_ALIGN ? size : 1;
}

static bool native_now(const struct translation *t, unsigned i)
{
	const uint32_t attr = t->insn[i].row->attr;

	if ((attr & X86_A_SSE) && !(t->mode & JIT_MODE_SSE))
		return false;
	if ((attr & X86_A_AVX) && !(t->mode & JIT_MODE_AVX))
		return false;
	return !(attr & X86_A_MXCSR) || (t->mode & JIT_MODE_MASKED);
}

static void make_vec_ready(struct translation *t)
{
	if (!t->vec_ready)
		emit_ctx(&t->e, 0xff, 2, CTX(vec_entry)); /* call */
	t->vec_ready = true;
}

/* Copies that the processor would take otherwise than the original. */
static bool copy_fits(const struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const uint8_t *bytes = t->bytes + t->offset[i];
	struct emit probe;
	uint8_t space[32];
	struct temps temps;
	struct jit_operands operands = { .base = HR_11, .index = HR_10 };
	int k = memory_operand(insn);

	if (!assign(insn, k >= 0, &operands, &temps))
		return false;
	probe = (struct emit){ .p = space, .end = space + sizeof(space) };
	return jit_rewrite(&probe, row_of(t, i), insn, bytes, &operands);
}

static void copy_with_memory(struct translation *t, unsigned i, int k)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned size = insn->op[k].size;
	struct jit_operands operands = { .base = HR_11, .index = HR_10 };
	struct temps temps;
	bool flags = needs_flags(t, i);

	assign(insn, true, &operands, &temps);
	if (row_of(t, i)->vector)
		make_vec_ready(t);
	clobber_flags(t, live_before(t, i));
	struct slow *slow = slow_begin(t, i);
	emit_linear(t, i, slow);
	emit_lookup(t, slow, size, writes_memory(insn, k) ? X86_WRITE : X86_READ,
		required_alignment(insn, size));
	if (temps.count) {
		emit_rm(&t->e, 0x8d | EM_W, HR_11, HR_11, HR_10, 0, 0);
		operands.index = HR_NONE;
		temps_load(t, &temps);
	}
	if (flags)
		jit_flags_restore_slowly(&t->e);
	jit_rewrite(&t->e, row_of(t, i), insn, t->bytes + t->offset[i], &operands);
	if (!only_reads(insn))
		temps_store(t, &temps);
	if (flags || written_of(t, i))
		t->kept = false;
	slow_end(t, slow);
}

static void copy_with_registers(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	struct jit_operands operands = { 0 };
	struct temps temps;

	assign(insn, false, &operands, &temps);
	if (row_of(t, i)->vector)
		make_vec_ready(t);
	if (needs_flags(t, i))
		want_flags(t);
	temps_load(t, &temps);
	jit_rewrite(&t->e, row_of(t, i), insn, t->bytes + t->offset[i], &operands);
	if (!only_reads(insn))
		temps_store(t, &temps);
	if (written_of(t, i))
		t->kept = false;
}

/* INC and DEC by the one-byte opcodes that became REX. */
static void lower_short_inc(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];

	if (needs_flags(t, i))
		want_flags(t);
	emit_rr(&t->e, 0xff | (insn->osize == 2 ? EM_66 : 0), insn->opcode >> 3 & 1,
		host_of(insn->op[0].reg));
	t->kept = false;
}

static bool lower_native(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	int k = memory_operand(insn);

	if ((insn->row->attr & X86_A_NO64) && row_of(t, i)->plus_reg) {
		lower_short_inc(t, i);
		return true;
	}
	if (!native_now(t, i) || !copy_fits(t, i))
		return false;
	if (k < 0) {
		copy_with_registers(t, i);
		return true;
	}
	if (!simple_address(t, i) || !insn->op[k].size || insn->op[k].size > 64)
		return false;
	copy_with_memory(t, i, k);
	return true;
}

/* ---- addresses, stack ---- */

static bool lower_lea(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned to = insn->op[0].reg, size = insn->op[0].size;

	if (insn->asize == 2 || (insn->base == X86_RIP && insn->asize != 8))
		return false;
	if (size >= 4 && insn->asize >= size && !spilled(to)) {
		struct x86_insn *same = &t->insn[i];
		uint8_t asize = same->asize;

		same->asize = (uint8_t)size; /* the high half falls away */
		if (insn->base == X86_RIP)
			same->asize = 8;
		emit_ea(t, i, host_of(to));
		if (insn->base == X86_RIP && size == 4)
			emit_rr(&t->e, 0x89, host_of(to), host_of(to));
		same->asize = asize;
		return true;
	}
	emit_ea(t, i, HR_10);
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

static unsigned stack_bytes(const struct translation *t)
{
	return t->mode64 ? 8 : 4;
}

/* R11 + R10 = the new top of the stack, checked for writing. */
static struct slow *push_begin(struct translation *t, unsigned i)
{
	clobber_flags(t, live_before(t, i));
	struct slow *slow = slow_begin(t, i);
	emit_rm(&t->e, 0x8d | wide(t), HR_10, HR_9, HR_NONE, 0, -(int32_t)stack_bytes(t));
	emit_lookup(t, slow, stack_bytes(t), X86_WRITE, 1);
	return slow;
}

static void push_end(struct translation *t)
{
	emit_rm(&t->e, 0x8d | wide(t), HR_9, HR_9, HR_NONE, 0, -(int32_t)stack_bytes(t));
}

static struct slow *pop_begin(struct translation *t, unsigned i, unsigned from)
{
	clobber_flags(t, live_before(t, i));
	struct slow *slow = slow_begin(t, i);
	emit_rr(&t->e, 0x89 | wide(t), from, HR_10);
	emit_lookup(t, slow, stack_bytes(t), X86_READ, 1);
	return slow;
}

static void pop_end(struct translation *t, unsigned more)
{
	emit_rm(&t->e, 0x8d | wide(t), HR_9, HR_9, HR_NONE, 0, (int32_t)(stack_bytes(t) + more));
}

/* Push what is in `scratch`. */
static void push_scratch(struct translation *t)
{
	emit_rm(&t->e, 0x8d | EM_W, HR_11, HR_11, HR_10, 0, 0);
	emit_ctx(&t->e, MOV_LOAD, HR_10, CTX(scratch));
	emit_rm(&t->e, 0x89 | wide(t), HR_10, HR_11, HR_NONE, 0, 0);
	push_end(t);
}

static bool lower_push_memory(struct translation *t, unsigned i)
{
	if (!simple_address(t, i))
		return false;
	clobber_flags(t, live_before(t, i));
	struct slow *load = slow_begin(t, i);
	emit_linear(t, i, load);
	emit_lookup(t, load, stack_bytes(t), X86_READ, 1);
	emit_rm(&t->e, 0x8b | wide(t), HR_10, HR_11, HR_10, 0, 0);
	emit_ctx(&t->e, MOV_STORE, HR_10, CTX(scratch));
	struct slow *push = push_begin(t, i);
	push_scratch(t);
	slow_end(t, load);
	slow_end(t, push);
	return true;
}

static bool lower_push(struct translation *t, unsigned i)
{
	const struct x86_operand *op = &t->insn[i].op[0];

	if (t->insn[i].osize != stack_bytes(t))
		return false;
	if (op->kind == X86_O_MEM)
		return lower_push_memory(t, i);
	if (op->kind != X86_O_GPR && op->kind != X86_O_IMM)
		return false;
	struct slow *slow = push_begin(t, i);
	if (op->kind == X86_O_IMM) {
		emit_rm(&t->e, 0xc7 | wide(t), 0, HR_11, HR_10, 0, 0);
		emit32(&t->e, (uint32_t)t->insn[i].imm);
	} else if (spilled(op->reg)) {
		emit_rm(&t->e, 0x8d | EM_W, HR_11, HR_11, HR_10, 0, 0);
		emit_ctx(&t->e, MOV_LOAD, HR_10, CTX_REG(op->reg));
		emit_rm(&t->e, 0x89 | wide(t), HR_10, HR_11, HR_NONE, 0, 0);
	} else {
		emit_rm(&t->e, 0x89 | wide(t), host_of(op->reg), HR_11, HR_10, 0, 0);
	}
	push_end(t);
	slow_end(t, slow);
	return true;
}

static bool lower_pop(struct translation *t, unsigned i)
{
	const struct x86_operand *op = &t->insn[i].op[0];

	if (t->insn[i].osize != stack_bytes(t) || op->kind != X86_O_GPR)
		return false;
	struct slow *slow = pop_begin(t, i, HR_9);
	unsigned to = spilled(op->reg) ? HR_10 : host_of(op->reg);
	emit_rm(&t->e, 0x8b | wide(t), to, HR_11, HR_10, 0, 0);
	if (spilled(op->reg))
		emit_ctx(&t->e, MOV_STORE, HR_10, CTX_REG(op->reg));
	if (op->reg != X86_RSP)
		pop_end(t, 0);
	slow_end(t, slow);
	return true;
}

static bool lower_leave(struct translation *t, unsigned i)
{
	if (t->insn[i].osize != stack_bytes(t))
		return false;
	struct slow *slow = pop_begin(t, i, HR_BP);
	emit_rm(&t->e, 0x8b | wide(t), HR_11, HR_11, HR_10, 0, 0);
	emit_rm(&t->e, 0x8d | wide(t), HR_9, HR_BP, HR_NONE, 0, (int32_t)stack_bytes(t));
	emit_rr(&t->e, 0x89 | wide(t), HR_11, HR_BP);
	slow_end(t, slow);
	return true;
}

/* ---- ways out ---- */

static struct leaving *leaving(struct translation *t, int64_t target, unsigned done)
{
	static struct leaving nowhere;

	if (t->leaving_count == JIT_EXITS_MAX) {
		t->failed = true;
		return &nowhere;
	}
	struct leaving *l = &t->leaving[t->leaving_count++];
	*l = (struct leaving){ .target = target, .done = (uint16_t)done };
	return l;
}

static bool in_page(int64_t target)
{
	return target >= 0 && target < (int64_t)GUEST_PAGE_SIZE;
}

static struct jit_exit *make_exit(struct translation *t, int64_t target, unsigned done)
{
	struct jit_exit *exit = jit_cache_alloc(t->v, sizeof(*exit));
	static struct jit_exit nowhere;

	if (!exit) {
		t->failed = true;
		return &nowhere;
	}
	*exit = (struct jit_exit){ .from = t->block, .target = (uint16_t)target, .done = (uint16_t)done };
	return exit;
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
	EMIT_LITERAL(e, "\xc4\x62\xaa\xf5"); /* pext r11, r10, [context] */
	emit_address(e, HR_11, HR_SP, HR_NONE, 0, (int32_t)CTX(branch_mask));
	emit_rm(e, 0xff | EM_GS, 4, HR_NONE, HR_11, 3,
		(int32_t)offsetof(struct x86_tlb, branch_code));
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

/*
 * Flags are native in the blocks of a page, so that is how they leave, and kept across pages. A poll
 * needs them out of the way.
 */
static void lower_goto(struct translation *t, int64_t target, unsigned done, bool jumps)
{
	uint16_t live = jit_live_at(t, target);

	emit_count(t, done);
	if (!in_page(target)) {
		clobber_flags(t, live);
		jump_out(t, &t->e, target, jumps ? make_site(t, done - 1) : NULL);
		return;
	}
	struct leaving *l = leaving(t, target, done);
	l->exit = make_exit(t, target, done);
	/* Blocks of one instruction keep a budget exactly. */
	if (target <= t->offset[done ? done - 1 : 0] ||
		(t->v->options.count && t->v->options.insns_max == 1)) {
		clobber_flags(t, live);
		emit_poll(t, l);
	}
	if (live && t->kept)
		jit_flags_restore(&t->e);
	l->exit->rel = emit_jump(&t->e, EM_JMP, NULL);
}

void jit_lower_goto(struct translation *t, int64_t target, unsigned done)
{
	lower_goto(t, target, done, false);
}

void jit_lower_second_page(struct translation *t)
{
	const size_t table = offsetof(struct x86_tlb, entry) +
			     X86_EXEC * sizeof(((struct x86_tlb *)NULL)->entry[0]);
	struct emit *e = &t->e;
	struct leaving *l = leaving(t, t->offset[0], 0);

	l->exit = make_exit(t, t->offset[0], 0);
	clobber_flags(t, live_before(t, 0));
	emit_far_target(e, t, GUEST_PAGE_SIZE);
	emit_index(e);
	emit_rm(e, 0x3b | EM_W | EM_GS, HR_10, HR_11, HR_NONE, 0,
		(int32_t)(table + offsetof(struct x86_tlb_entry, page)));
	l->step_rel[0] = emit_jump(e, EM_JCC(CC_NE), NULL);
	emit_mov_imm64(e, HR_10, t->second);
	emit_rm(e, 0x3b | EM_W | EM_GS, HR_10, HR_11, HR_NONE, 0,
		(int32_t)(table + offsetof(struct x86_tlb_entry, gpa)));
	l->step_rel[1] = emit_jump(e, EM_JCC(CC_NE), NULL);
}

static void lower_jcc(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned condition = insn->opcode & 15, done = i + 1;
	int64_t target = (int64_t)t->offset[i + 1] + (int64_t)insn->imm;

	want_flags(t);
	if (in_page(target) && target > t->offset[i] && !t->v->options.count) {
		struct leaving *l = leaving(t, target, done);
		l->exit = make_exit(t, target, done);
		l->exit->rel = emit_jump(&t->e, EM_JCC(condition), NULL);
		return;
	}
	if (!in_page(target) && !t->v->options.count) {
		struct leaving *l = leaving(t, target, done);
		l->keep_flags = true;
		l->site = make_site(t, i);
		l->branch_rel = emit_jump(&t->e, EM_JCC(condition), NULL);
		return;
	}
	/* Over the jump back. */
	uint8_t *over = emit_jump(&t->e, EM_JCC(condition ^ 1), NULL);
	lower_goto(t, target, done, true);
	if (!t->e.full)
		emit_patch(over, t->e.p);
	t->kept = false;
}

static void lower_jrcxz(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	int64_t target = (int64_t)t->offset[i + 1] + (int64_t)insn->imm;
	bool kept = t->kept;

	/* To the jump, or over it. */
	if (insn->asize == 4)
		emit8(&t->e, 0x67);
	EMIT_LITERAL(&t->e, "\xe3\x05");
	uint8_t *over = emit_jump(&t->e, EM_JMP, NULL);
	lower_goto(t, target, i + 1, true);
	if (!t->e.full)
		emit_patch(over, t->e.p);
	t->kept = kept;
}

/* Push the address of what follows. */
static struct slow *push_return(struct translation *t, unsigned i)
{
	struct slow *slow = push_begin(t, i);

	emit_rm(&t->e, 0x8d | EM_W, HR_11, HR_11, HR_10, 0, 0);
	emit_far_target(&t->e, t, t->offset[i + 1]);
	emit_rm(&t->e, 0x89 | wide(t), HR_10, HR_11, HR_NONE, 0, 0);
	push_end(t);
	return slow;
}

static bool lower_call(struct translation *t, unsigned i)
{
	int64_t target = (int64_t)t->offset[i + 1] + (int64_t)t->insn[i].imm;

	if (t->insn[i].osize != stack_bytes(t) || target != (int32_t)target)
		return false;
	struct slow *slow = push_return(t, i);
	slow_end(t, slow);
	lower_goto(t, target, i + 1, true);
	return true;
}

static bool lower_ret(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];

	if (insn->osize != stack_bytes(t))
		return false;
	struct slow *slow = pop_begin(t, i, HR_9);
	emit_rm(&t->e, 0x8b | wide(t), HR_10, HR_11, HR_10, 0, 0);
	pop_end(t, insn->operand_count ? (uint16_t)insn->imm : 0);
	slow_end(t, slow);
	if (t->v->options.count) {
		emit_mov_rr(&t->e, HR_11, HR_10);
		emit_count(t, i + 1);
		emit_mov_rr(&t->e, HR_10, HR_11);
	}
	note_branch(t, &t->e, slow->site);
	take_branch(t, &t->e);
	return true;
}

/* R10 = the target that a register or memory holds. NULL: it was in a register. */
static struct slow *indirect_target(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const struct x86_operand *op = &insn->op[0];

	clobber_flags(t, live_before(t, i));
	struct slow *slow = slow_begin(t, i);
	if (op->kind == X86_O_GPR) {
		if (spilled(op->reg))
			emit_ctx(&t->e, 0x8b | wide(t), HR_10, CTX_REG(op->reg));
		else
			emit_rr(&t->e, 0x89 | wide(t), host_of(op->reg), HR_10);
		return slow;
	}
	emit_linear(t, i, slow);
	emit_lookup(t, slow, stack_bytes(t), X86_READ, 1);
	emit_rm(&t->e, 0x8b | wide(t), HR_10, HR_11, HR_10, 0, 0);
	return slow;
}

static bool indirect_fits(const struct translation *t, unsigned i)
{
	const struct x86_operand *op = &t->insn[i].op[0];

	if (t->insn[i].osize != stack_bytes(t))
		return false;
	return op->kind == X86_O_GPR || (op->kind == X86_O_MEM && simple_address(t, i));
}

static bool lower_jmp_rm(struct translation *t, unsigned i)
{
	if (!indirect_fits(t, i))
		return false;
	struct slow *slow = indirect_target(t, i);
	slow_end(t, slow);
	if (t->v->options.count) {
		emit_mov_rr(&t->e, HR_11, HR_10);
		emit_count(t, i + 1);
		emit_mov_rr(&t->e, HR_10, HR_11);
	}
	note_branch(t, &t->e, slow->site);
	take_branch(t, &t->e);
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
	slow_jump(t, slow, CC_NE);
}

static bool lower_call_rm(struct translation *t, unsigned i)
{
	if (!indirect_fits(t, i))
		return false;
	struct slow *load = indirect_target(t, i);
	check_target(t, load);
	emit_ctx(&t->e, MOV_STORE, HR_10, CTX(scratch));
	struct slow *push = push_return(t, i);
	slow_end(t, load);
	slow_end(t, push);
	emit_count(t, i + 1);
	emit_ctx(&t->e, MOV_LOAD, HR_10, CTX(scratch));
	note_branch(t, &t->e, push->site);
	take_branch(t, &t->e);
	return true;
}

static void lower_direction(struct translation *t, unsigned i, bool set)
{
	clobber_flags(t, live_before(t, i));
	emit_ctx(&t->e, 0x81, set ? 1 : 4, CTX(soft.cpu.s.rflags)); /* or, and: the low half */
	emit32(&t->e, set ? X86_DF : ~X86_DF);
}

/* ---- system instructions that kernels use all the time ---- */

#define RFLAGS CTX(soft.cpu.s.rflags)

/* Go the slow path unless CPL is 0. */
static struct slow *privileged(struct translation *t, unsigned i)
{
	clobber_flags(t, live_before(t, i));
	struct slow *slow = slow_begin(t, i);
	emit_ctx(&t->e, 0x80, 7, CTX(soft.cpu.cpl));
	emit8(&t->e, 0);
	slow_jump(t, slow, CC_NE);
	return slow;
}

static void lower_cli(struct translation *t, unsigned i)
{
	struct slow *slow = privileged(t, i);

	emit_ctx(&t->e, 0x81, 4, RFLAGS);
	emit32(&t->e, ~X86_IF);
	slow_end(t, slow);
}

/*
 * The next instruction is in the block, so nothing interrupts before it. An interrupt that was put aside takes
 * the slow path, which leaves.
 */
static bool lower_sti(struct translation *t, unsigned i)
{
	if (i + 1 == t->count || t->v->options.count)
		return false;
	struct slow *slow = privileged(t, i);
	emit_ctx(&t->e, 0x80, 7, CTX(interrupt_aside));
	emit8(&t->e, 0);
	slow_jump(t, slow, CC_NE);
	emit_ctx(&t->e, 0x81, 1, RFLAGS);
	emit32(&t->e, X86_IF);
	slow_end(t, slow);
	return true;
}

static void lower_swapgs(struct translation *t, unsigned i)
{
	struct slow *slow = privileged(t, i);

	emit_ctx(&t->e, MOV_LOAD, HR_10, CTX(soft.cpu.s.seg[X86_GS].base));
	emit_ctx(&t->e, MOV_LOAD, HR_11, CTX(soft.cpu.s.msr.kernel_gs_base));
	emit_ctx(&t->e, MOV_STORE, HR_11, CTX(soft.cpu.s.seg[X86_GS].base));
	emit_ctx(&t->e, MOV_STORE, HR_10, CTX(soft.cpu.s.msr.kernel_gs_base));
	slow_end(t, slow);
}

static bool lower_pushf(struct translation *t, unsigned i)
{
	struct emit *e = &t->e;

	if (t->insn[i].osize != stack_bytes(t))
		return false;
	clobber_flags(t, X86_FLAGS_ARITH);
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
	struct slow *slow = push_begin(t, i);
	push_scratch(t);
	slow_end(t, slow);
	return true;
}

/* ---- division ---- */

/* The divisor's register: its own, R10, or R11 with memory's. */
static unsigned divisor(struct translation *t, unsigned i, struct slow *slow, unsigned size_bits)
{
	const struct x86_operand *op = &t->insn[i].op[0];

	if (op->kind == X86_O_GPR)
		return loaded(t, op->reg, HR_10);
	emit_linear(t, i, slow);
	emit_lookup(t, slow, op->size, X86_READ, 1);
	emit_rm(&t->e, 0x8b | size_bits, HR_11, HR_11, HR_10, 0, 0);
	return HR_11;
}

/*
 * The processor faults on the host as well, so only what cannot fault runs natively. Unsigned: the high half
 * is below the divisor (which so is not 0). Signed: the dividend is the low half's sign extension, and the
 * divisor neither 0 nor -1.
 */
static bool lower_divide(struct translation *t, unsigned i, bool is_signed)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned size = insn->op[0].size, bits = size == 8 ? EM_W : size == 2 ? EM_66 : 0;
	struct emit *e = &t->e;

	if (size == 1 || (insn->op[0].kind == X86_O_MEM && !simple_address(t, i)))
		return false;
	clobber_flags(t, live_before(t, i));
	struct slow *slow = slow_begin(t, i);
	unsigned by = divisor(t, i, slow, bits), temp = by == HR_10 ? HR_11 : HR_10;
	if (is_signed) {
		emit_rr(e, 0x89 | bits, HR_AX, temp);
		emit_rr(e, 0xc1 | bits, 7, temp); /* sar */
		emit8(e, size * 8 - 1);
		emit_rr(e, 0x39 | bits, HR_DX, temp);
		slow_jump(t, slow, CC_NE);
		emit_rm(e, 0x8d | bits, temp, by, HR_NONE, 0, 1);
		emit_rr(e, 0x83 | bits, 7, temp);
		emit8(e, 1);
		slow_jump(t, slow, CC_BE);
	} else {
		emit_rr(e, 0x39 | bits, by, HR_DX);
		slow_jump(t, slow, CC_AE);
	}
	if (live_before(t, i)) /* only where engines are compared: some processors keep some */
		jit_flags_restore_slowly(e);
	emit_rr(e, 0xf7 | bits, is_signed ? 7 : 6, by);
	t->kept = false; /* all flags are undefined */
	slow_end(t, slow);
	return true;
}

/* ---- BT, BTS, BTR, BTC with the bit's number in a register ---- */

/* R10 = linear address of the word that holds the bit: the number is signed and reaches far. */
static void emit_bit_linear(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned size = insn->op[0].size, shift = size == 8 ? 6 : 5;
	struct emit *e = &t->e;

	emit_linear(t, i, NULL); /* 64-bit mode */
	unsigned number = loaded(t, insn->op[1].reg, HR_11);
	if (size == 4)
		emit_rr(e, 0x63 | EM_W, HR_11, number); /* movsxd */
	else if (number != HR_11)
		emit_mov_rr(e, HR_11, number);
	emit_rr(e, 0xc1 | EM_W, 7, HR_11); /* sar */
	emit8(e, shift);
	emit_rm(e, 0x8d | EM_W, HR_10, HR_10, HR_11, size == 8 ? 3 : 2, 0);
}

static bool lower_bit(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned size = insn->op[0].size, bits = size == 8 ? EM_W : 0;
	const unsigned op = (insn->opcode & 0x38) | 0x83; /* a3 ab b3 bb */
	struct emit *e = &t->e;

	if (insn->op[0].kind == X86_O_GPR) {
		if (!copy_fits(t, i))
			return false;
		copy_with_registers(t, i);
		return true;
	}
	if (size == 2 || insn->asize != 8 || !simple_address(t, i))
		return false;
	clobber_flags(t, live_before(t, i));
	struct slow *slow = slow_begin(t, i);
	emit_bit_linear(t, i);
	emit_lookup(t, slow, size, insn->fn == x86_sem_bt ? X86_READ : X86_WRITE, 1);
	emit_rm(e, 0x8d | EM_W, HR_11, HR_11, HR_10, 0, 0);
	if (spilled(insn->op[1].reg))
		emit_ctx(e, 0x8b, HR_10, CTX_REG(insn->op[1].reg));
	else
		emit_rr(e, 0x89, host_of(insn->op[1].reg), HR_10);
	emit_rr(e, 0x83, 4, HR_10); /* and: within the word */
	emit8(e, size * 8 - 1);
	if (needs_flags(t, i))
		jit_flags_restore_slowly(e);
	emit_rm(e, op | EM_0F | bits | (insn->prefix & X86_P_LOCK ? EM_LOCK : 0), HR_10, HR_11, HR_NONE, 0, 0);
	t->kept = false;
	slow_end(t, slow);
	return true;
}

/* ---- all of them ---- */

/* RDRAND and RDSEED: from the host, or from a sequence that their semantic functions know. */
static bool may_be_native(const struct translation *t, unsigned i)
{
	return !(t->insn[i].row->attr & X86_A_NOTEST) || !t->v->soft.cpu.random;
}

/* Returns false if it has to be a call of its semantic function. */
static bool lower_specially(struct translation *t, unsigned i, bool *ret_ended)
{
	if (jit_cuts_rip(&t->insn[i], row_of(t, i)))
		return false;
	switch (row_of(t, i)->kind) {
	case JIT_NATIVE: return may_be_native(t, i) && lower_native(t, i);
	case JIT_NOP: return true;
	case JIT_RAW: emit_bytes(&t->e, t->bytes + t->offset[i], t->insn[i].len); return true;
	case JIT_RAW_VECTOR:
		/* In 32-bit code VZEROALL and VZEROUPPER leave the upper eight registers alone. */
		if (!native_now(t, i) || !t->mode64)
			return false;
		make_vec_ready(t);
		emit_bytes(&t->e, t->bytes + t->offset[i], t->insn[i].len);
		return true;
	case JIT_LEA: return lower_lea(t, i);
	case JIT_PUSH: return lower_push(t, i);
	case JIT_POP: return lower_pop(t, i);
	case JIT_LEAVE: return lower_leave(t, i);
	case JIT_CLD: lower_direction(t, i, false); return true;
	case JIT_STD: lower_direction(t, i, true); return true;
	case JIT_CLI: lower_cli(t, i); return true;
	case JIT_STI: return lower_sti(t, i);
	case JIT_SWAPGS: lower_swapgs(t, i); return true;
	case JIT_PUSHF: return lower_pushf(t, i);
	case JIT_DIV: return lower_divide(t, i, false);
	case JIT_IDIV: return lower_divide(t, i, true);
	case JIT_BIT: return lower_bit(t, i);
	case JIT_JCC: lower_jcc(t, i); return true;
	case JIT_JRCXZ:
		if (t->insn[i].asize == 2)
			return false;
		lower_jrcxz(t, i);
		return true;
	default: *ret_ended = true; break;
	}
	switch (row_of(t, i)->kind) {
	case JIT_JMP:
		lower_goto(t, (int64_t)t->offset[i + 1] + (int64_t)t->insn[i].imm, i + 1, true);
		return true;
	case JIT_CALL: return lower_call(t, i);
	case JIT_JMP_RM: return lower_jmp_rm(t, i);
	case JIT_CALL_RM: return lower_call_rm(t, i);
	case JIT_RET: return lower_ret(t, i);
	default: return false;
	}
}

bool jit_lower(struct translation *t, unsigned i)
{
	bool ended = false;

	if (lower_specially(t, i, &ended))
		return ended;
	lower_helper(t, i);
	return row_of(t, i)->leaves;
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
	emit_jump(e, EM_JMP, slow->resume);
}

static void emit_leaving_stub(struct translation *t, struct emit *e, const struct leaving *l)
{
	if (l->branch_rel) {
		emit_patch(l->branch_rel, e->p);
		if (l->keep_flags && jit_live_at(t, l->target))
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
	size_t room = t->slow_count * 16u + t->leaving_count * 80u;

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
