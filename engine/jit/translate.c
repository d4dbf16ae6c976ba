/*
 * Blocks: which instructions they hold, which flags are live in them, and their way into the cache.
 *
 * A block starts at one address and goes on until an instruction leaves it for good; conditional branches
 * leave it on the side. It never crosses a page, but an instruction that does is a block of its own.
 *
 * Liveness of flags is worked out backwards, and ahead into code that a branch or the block's end leads to as
 * far as it lies in the page. What was looked at ahead is marked as code like the block itself, so that a
 * change of it forgets the block too.
 *
 * Code is marked before it is compared with the copy that was translated: who writes it later looks at the
 * marks after the write (memory/memory.h), so no write is missed.
 */
#include "engine/jit/lower.h"

#include "isa/x86/access.h"
#include "memory/memory.h"

#include "base/cleanup.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define AHEAD_INSNS 12 /* how far to look for the fate of flags */
#define AHEAD_DEPTH 3  /* and through how many conditional branches */

static bool decode_at(struct translation *t, unsigned offset, struct x86_insn *insn)
{
	unsigned mode = t->mode64 ? 64 : 32;

	return x86_decode(insn, t->bytes + offset, GUEST_PAGE_SIZE - offset, mode, false,
		       &t->v->soft.cpu.features) == X86_DECODE_OK;
}

static void seen(struct translation *t, unsigned start, unsigned end)
{
	if (start == end)
		return;
	if (t->seen_count == ARRAY_SIZE(t->seen)) {
		/* Too many to tell apart: widen the last. */
		unsigned *last = t->seen[t->seen_count - 1];
		last[0] = MIN(last[0], start);
		last[1] = MAX(last[1], end);
		return;
	}
	t->seen[t->seen_count][0] = start;
	t->seen[t->seen_count++][1] = end;
}

/* May the block go on behind it? */
static bool goes_on(const struct jit_row *row)
{
	return !row->leaves || row->kind == JIT_JCC || row->kind == JIT_JRCXZ || row->kind == JIT_STI;
}

/* ---- flags ---- */

static uint16_t live_ahead(struct translation *t, int64_t offset, uint16_t wanted, unsigned insns,
	unsigned depth);

/* What `row` and all behind it read of `wanted`. */
static uint16_t live_branch(struct translation *t, const struct x86_insn *insn, unsigned kind,
	unsigned next, uint16_t wanted, unsigned insns, unsigned depth)
{
	int64_t target = (int64_t)(next + insn->imm);
	uint16_t live;

	if ((kind != JIT_JMP && kind != JIT_JCC && kind != JIT_CALL) || insn->osize == 2)
		return wanted;
	if (kind == JIT_JCC && !depth)
		return wanted;
	live = live_ahead(t, target, wanted, insns, depth - (kind == JIT_JCC));
	if (kind == JIT_JCC && live != wanted)
		live |= live_ahead(t, next, wanted, insns, depth - 1);
	return live;
}

static uint16_t live_ahead(struct translation *t, int64_t offset, uint16_t wanted, unsigned insns,
	unsigned depth)
{
	unsigned start = (unsigned)offset, at = start;
	uint16_t live = 0;

	if (offset < 0 || offset >= (int64_t)GUEST_PAGE_SIZE || t->second != JIT_NO_PAGE)
		return wanted;
	while (wanted && insns--) {
		struct x86_insn insn;

		if (!decode_at(t, at, &insn))
			break;
		const struct jit_row *row = jit_row_of(t->v->rows, &insn);
		live |= wanted & row->flags_in;
		wanted &= (uint16_t)~(jit_flags_killed(t, row) | row->flags_in);
		at += insn.len;
		if (wanted && row->leaves) {
			live |= live_branch(t, &insn, row->kind, at, wanted, insns, depth);
			wanted = 0;
		}
	}
	seen(t, start, at);
	return live | wanted;
}

/* Flags that code at a page offset reads before it writes them; all if it cannot be seen. */
static uint16_t live_at(struct translation *t, int64_t offset)
{
	if (t->v->options.precise)
		return X86_FLAGS_ARITH;
	return live_ahead(t, offset, X86_FLAGS_ARITH, AHEAD_INSNS, AHEAD_DEPTH);
}

/* Live behind the instruction, of which `next` is what follows it in the block. */
static uint16_t live_behind(struct translation *t, unsigned i, uint16_t next)
{
	const struct jit_row *row = row_of(t, i);
	const bool branches = row->kind == JIT_JCC || row->kind == JIT_JRCXZ;

	t->live_target[i] = X86_FLAGS_ARITH;
	if (t->v->options.precise || jit_cuts_rip(&t->insn[i], row))
		return X86_FLAGS_ARITH;
	if (branches || row->kind == JIT_JMP || row->kind == JIT_CALL) {
		t->live_target[i] = live_at(t, target_of(t, i));
		return t->live_target[i] | (branches ? next : 0);
	}
	return row->leaves ? X86_FLAGS_ARITH : next;
}

static void find_live(struct translation *t)
{
	uint16_t live = goes_on(row_of(t, t->count - 1)) ? live_at(t, t->offset[t->count]) : X86_FLAGS_ARITH;

	t->live_end = live;
	for (unsigned i = t->count; i-- > 0;) {
		const struct jit_row *row = row_of(t, i);
		t->live_after[i] = live = live_behind(t, i, live);
		live = (uint16_t)((live & ~jit_flags_killed(t, row)) | row->flags_in);
		if (t->v->options.precise)
			live = X86_FLAGS_ARITH;
	}
}

/* ---- instructions ---- */

static void decode_block(struct translation *t)
{
	unsigned at = t->gpa & ~GUEST_PAGE_MASK;

	t->count = 0;
	t->offset[0] = (uint16_t)at;
	while (t->count < t->v->options.insns_max && at < GUEST_PAGE_SIZE) {
		struct x86_insn *insn = &t->insn[t->count];

		if (!decode_at(t, at, insn))
			break;
		at += insn->len;
		t->offset[++t->count] = (uint16_t)at;
		if (!goes_on(jit_row_of(t->v->rows, insn)))
			break;
	}
	seen(t, t->offset[0], MIN(at, (unsigned)GUEST_PAGE_SIZE));
}

/* The block is one instruction that ends in the next page, if that can be read. */
static void decode_crossing(struct translation *t)
{
	struct x86_cpu *cpu = &t->v->soft.cpu;
	const unsigned at = t->gpa & ~GUEST_PAGE_MASK;
	const gva_t next = (soft_linear_rip(cpu) & GUEST_PAGE_MASK) + GUEST_PAGE_SIZE;

	if (at + X86_INSN_BYTES_MAX <= GUEST_PAGE_SIZE || (!t->mode64 && next >> 32))
		return;
	gpa_t gpa;
	const uint8_t *host = soft_code_host(cpu, next, &gpa);
	if (!host)
		return;
	memcpy(t->bytes + GUEST_PAGE_SIZE, host, X86_INSN_BYTES_MAX);
	if (x86_decode(&t->insn[0], t->bytes + at, X86_INSN_BYTES_MAX, t->mode64 ? 64 : 32, false,
		    &cpu->features) != X86_DECODE_OK || at + t->insn[0].len <= GUEST_PAGE_SIZE)
		return;
	t->second = gpa;
	t->second_host = host;
	t->offset[1] = (uint16_t)(at + t->insn[0].len);
	t->count = 1;
	seen(t, at, GUEST_PAGE_SIZE);
}

/* ---- marking what was looked at ---- */

static bool unmarked(const struct translation *t, gpa_t page)
{
	return page != JIT_NO_PAGE && !memory_code_page(t->v->soft.cpu.memory, page);
}

static void drop_writes(const struct soft_vm *vm, gpa_t page)
{
	for (unsigned i = 0; page != JIT_NO_PAGE && i < vm->vcpu_count; i++)
		x86_tlb_drop_writes(&vm->vcpu[i]->cpu, page);
}

static void mark(const struct translation *t, gpa_t page, unsigned behind)
{
	struct guest_memory *memory = t->v->soft.cpu.memory;

	for (unsigned i = 0; i < t->seen_count; i++) {
		const gpa_t gpa = page + t->seen[i][0];
		const unsigned size = t->seen[i][1] - t->seen[i][0];

		memory_code_mark(memory, gpa, size);
		t->block->lines |= memory_code_mask(gpa, size);
	}
	if (t->second == JIT_NO_PAGE)
		return;
	memory_code_mark(memory, t->second, behind);
	t->block->second_lines = memory_code_mask(t->second, behind);
}

/*
 * The first marks of a page are made while all other vCPUs are held, so that never is there a mark and an entry
 * for writing, of whichever vCPU. Nothing parks this one between the marks and the block's coming into the
 * cache, so nobody takes them off in between.
 * Returns false if the code is not any more what was translated.
 */
static bool mark_seen(struct translation *t)
{
	struct soft_vm *vm = t->v->soft.vm;
	const gpa_t page = t->gpa & GUEST_PAGE_MASK;
	const unsigned behind = t->offset[1] - (unsigned)GUEST_PAGE_SIZE; /* bytes in the second page */
	const bool first = unmarked(t, page) || unmarked(t, t->second), held = first && vm->vcpu_count > 1;
	bool same = true;

	if (held)
		soft_exclusive_begin(vm, &t->v->soft);
	mark(t, page, behind);
	if (first) {
		drop_writes(vm, page);
		drop_writes(vm, t->second);
	}
	if (held)
		soft_exclusive_end(vm, &t->v->soft);
	atomic_thread_fence(memory_order_seq_cst);
	if (t->second != JIT_NO_PAGE)
		same = !memcmp(t->bytes + GUEST_PAGE_SIZE, t->second_host, behind);
	for (unsigned i = 0; i < t->seen_count; i++) {
		unsigned start = t->seen[i][0], size = t->seen[i][1] - start;

		same &= !memcmp(t->bytes + start, t->host + start, size);
	}
	return same;
}

/* ---- a block ---- */

/*
 * The branch entry: R10 = the target's RIP, R11 = its place in the branch cache, flags kept. Falls through to
 * the entry.
 */
static void emit_branch_entry(struct translation *t)
{
	struct emit *e = &t->e;
	unsigned in_page = t->gpa & ~GUEST_PAGE_MASK;
	const uint16_t live = jit_live_before(t, 0);

	t->block->branch_entry = e->p;
	emit_rm(e, 0x3b | EM_W | EM_GS, HR_10, HR_NONE, HR_11, 3,
		jit_tables(t->mode) + (int32_t)offsetof(struct x86_tlb, branch_tag));
	emit_jump(e, EM_JCC(CC_NE), t->v->stub.branch_miss);
	emit_ctx(e, 0x83, 7, CTX(soft.attention));
	emit8(e, 0);
	emit_jump(e, EM_JCC(CC_NE), t->v->stub.branch_miss);
	if (t->v->options.count) {
		emit_ctx(e, MOV_LOAD, HR_11, CTX(soft.cpu.instructions));
		emit_ctx(e, 0x3b | EM_W, HR_11, CTX(soft.stop_at));
		emit_jump(e, EM_JCC(CC_AE), t->v->stub.branch_miss);
	}
	emit_lea(e, HR_10, HR_10, -(int32_t)in_page);
	emit_ctx(e, MOV_STORE, HR_10, CTX(rip_page));
	if (live)
		jit_flags_restore(e);
}

static void note_for_perf(const struct translation *t)
{
	char name[64];
	const struct engine_vcpu *v = t->v;

	snprintf(name, sizeof(name), "/tmp/perf-%d.map", (int)getpid());
	/* The name is for anybody to guess: no links, and no file of another's. */
	AUTO_CLOSE int fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
	struct stat stat;
	if (fd < 0 || fstat(fd, &stat) < 0 || stat.st_uid != geteuid())
		return;
	dprintf(fd, "%lx %lx guest_%llx_rip_%llx\n", (unsigned long)(uintptr_t)jit_rx(v, t->block->branch_entry),
		(unsigned long)(t->code_end - t->block->branch_entry),
		(unsigned long long)t->gpa, (unsigned long long)v->soft.cpu.s.reg[X86_RIP]);
}

/* Vectors are made live where a block begins, so that a loop of such blocks does it once. */
static bool has_vectors(const struct translation *t)
{
	for (unsigned i = 0; i < t->count; i++) {
		const struct jit_row *row = row_of(t, i);
		if (row->vector && jit_native_now(t, i) &&
			(row->kind == JIT_NATIVE || (row->kind == JIT_RAW_VECTOR && t->mode64)))
			return true;
	}
	return false;
}

static bool emit_block(struct translation *t)
{
	struct jit_segment *segment = &t->v->cache.segment[t->v->cache.now];
	bool ended = false;

	t->e = (struct emit){ .p = segment->hot, .end = segment->cold };
	emit_branch_entry(t);
	t->block->entry = t->e.p;
	if (has_vectors(t)) {
		emit_ctx(&t->e, 0xff, 2, CTX(vec_entry)); /* call */
		t->vec_ready = true;
	}
	t->block->vec_entry = t->e.p;
	if (t->second != JIT_NO_PAGE)
		jit_lower_second_page(t);
	for (unsigned i = 0; i < t->count && !ended; i++)
		ended = jit_lower(t, i);
	if (!ended)
		jit_lower_end(t);
	t->code_end = t->e.p;
	jit_lower_cold(t);
	if (t->e.full || t->failed)
		return false;
	segment->hot = (uint8_t *)ALIGN_UP((uintptr_t)t->code_end, (uintptr_t)16);
	return true;
}

static bool make_block(struct translation *t)
{
	struct jit_block *block = jit_cache_alloc(t->v, sizeof(*block));

	if (!block)
		return false;
	t->block = block;
	*block = (struct jit_block){ .key = jit_key(t->gpa, t->mode), .second = t->second };
	if (!emit_block(t))
		return false;
	block->exit = jit_cache_alloc(t->v, t->leaving_count * sizeof(*block->exit));
	if (!block->exit)
		return false;
	for (unsigned i = 0; i < t->leaving_count; i++)
		if (t->leaving[i].exit)
			block->exit[block->exit_count++] = t->leaving[i].exit;
	return true;
}

struct jit_block *jit_translate(struct engine_vcpu *v, gpa_t gpa, const uint8_t *page, unsigned mode)
{
	struct translation *t = v->translation;

	jit_cache_make_room(v);
	/* Not the arrays: their counts say what is in them. */
	t->v = v;
	t->gpa = gpa;
	t->mode = mode;
	t->mode64 = mode & JIT_MODE_64;
	t->host = page;
	t->second = JIT_NO_PAGE;
	t->seen_count = t->slow_count = t->leaving_count = 0;
	t->kept = t->vec_ready = t->failed = false;
	memcpy(t->bytes, page, GUEST_PAGE_SIZE);
	decode_block(t);
	if (!t->count)
		decode_crossing(t);
	if (!t->count)
		return NULL;
	find_live(t);
	memset(t->fits, 0, t->count);
	jit_plan_spans(t);
	if (!make_block(t) || !mark_seen(t))
		return NULL;
	jit_cache_add(v, t->block);
	v->soft.counters.blocks_decoded++;
	v->soft.counters.translated += t->count;
	if (v->options.perf)
		note_for_perf(t);
	return t->block;
}
