/*
 * The software TLB: contexts by PCID, filling, and invalidation. SDM 3A 5.10.1 (PCIDs), 5.10.4
 * (invalidation: what an instruction must drop; more may always go).
 *
 * Invariants:
 * - An entry stands for one 4K page of RAM and one kind of access that is permitted to that privilege.
 *   It is for writing only if the page is writable RAM without translated code, its dirty bit is set in the
 *   guest's page table (or cannot be, in ROM), and its page is marked in the dirty log.
 * - An entry that may be valid has its bit in `used`, a branch that is not the miss its bit in `branch_used`
 *   and its page's bit in `branch_pages`.
 * - A branch goes when the translation of its page might. One that was evicted for another page's stays
 *   good: nothing has changed in the guest, so branches stay as well. Whether its page was large is
 *   remembered in `large` until all is dropped.
 * - Contexts that are not valid may hold anything; they are cleared when they are taken.
 *
 * Left out on purpose: global entries are not shared by contexts, and a context that is replaced loses
 * all.
 */
#include "isa/x86/cpu.h"
#include "isa/x86/flags.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define CR3_PCID BIT_MASK(11, 0)
/* The contexts' tables, then those that hold nothing. */
#define TABLES	 (2 * X86_TLB_CONTEXTS + 1)
#define MISALIGN 64

#define PAGE_BITS 4096 /* of struct x86_tlb's bitmaps of pages */
_Static_assert(PAGE_BITS == X86_TLB_SIZE, "words_of() is of both");
/* Words of `branch_used` that a page's branches are in. */
#define BRANCH_WORDS (((unsigned)GUEST_PAGE_SIZE >> X86_BRANCH_SHIFT) / 64)

/* ---- entries ---- */

/* Which entries, or branches, to drop; inlined into each loop. */
typedef bool drop_entry(const struct x86_tlb_entry *e, uint64_t arg);
typedef bool drop_branch(const struct x86_tlb *tlb, unsigned index, uint64_t arg, unsigned shift);

static bool entry_any(const struct x86_tlb_entry *e, uint64_t arg)
{
	return true;
}

static bool entry_local(const struct x86_tlb_entry *e, uint64_t arg)
{
	return !e->global;
}

/* Made from a large page around this linear address? */
static bool entry_large(const struct x86_tlb_entry *e, uint64_t linear)
{
	return e->shift > GUEST_PAGE_SHIFT && !((e->page ^ linear) >> e->shift);
}

static bool entry_maps(const struct x86_tlb_entry *e, uint64_t gpa)
{
	return e->gpa == gpa;
}

X86_INLINE void entries_drop_words(struct x86_tlb *tlb, enum x86_access access, unsigned first, unsigned count,
	drop_entry *drop, uint64_t arg)
{
	struct x86_tlb_entry *table = tlb->entry[access];

	for (unsigned w = first; w < first + count; w++) {
		uint64_t left = tlb->used[access][w];
		for (uint64_t bits = left; bits; bits &= bits - 1) {
			const unsigned index = w * 64 + (unsigned)__builtin_ctzll(bits);
			if (!drop(&table[index], arg))
				continue;
			table[index].page = X86_TLB_INVALID(index);
			left &= ~BIT(index % 64);
		}
		tlb->used[access][w] = left;
	}
}

X86_INLINE void entries_drop(
	struct x86_tlb *tlb, enum x86_access access, drop_entry *drop, uint64_t arg)
{
	entries_drop_words(tlb, access, 0, ARRAY_SIZE(tlb->used[access]), drop, arg);
}

/* ---- branches ---- */

static bool branch_any(const struct x86_tlb *tlb, unsigned index, uint64_t arg, unsigned shift)
{
	return true;
}

static bool branch_local(const struct x86_tlb *tlb, unsigned index, uint64_t arg, unsigned shift)
{
	return !(tlb->branch_global[index / 64] >> index % 64 & 1);
}

static bool branch_near(const struct x86_tlb *tlb, unsigned index, uint64_t linear, unsigned shift)
{
	return !((tlb->branch_tag[index] ^ linear) >> shift);
}

/* The place of a page of any size in a bitmap of 64 words. */
static unsigned page_bit(uint64_t number)
{
	return number & (PAGE_BITS - 1);
}

static unsigned half_of(gva_t linear)
{
	return linear >> 63;
}

static void branch_note_page(struct x86_tlb *tlb, gva_t target)
{
	const unsigned bit = page_bit(target >> GUEST_PAGE_SHIFT);
	tlb->branch_pages[half_of(target)][bit / 64] |= BIT(bit % 64);
}

/* Notes the pages of those that are left. */
X86_INLINE void branch_word_drop(struct x86_cpu *cpu, struct x86_tlb *tlb, unsigned w, drop_branch *drop, uint64_t arg,
	unsigned shift)
{
	uint64_t left = tlb->branch_used[w];

	for (uint64_t bits = left; bits; bits &= bits - 1) {
		const unsigned index = w * 64 + (unsigned)__builtin_ctzll(bits);
		if (drop(tlb, index, arg, shift)) {
			tlb->branch_code[index] = cpu->branch_miss;
			left &= ~BIT(index % 64);
		} else {
			branch_note_page(tlb, tlb->branch_tag[index]);
		}
	}
	tlb->branch_used[w] = left;
}

X86_INLINE void branches_drop(
	struct x86_cpu *cpu, struct x86_tlb *tlb, drop_branch *drop, uint64_t arg, unsigned shift)
{
	if (!tlb->has_branches)
		return;
	tlb->has_branches = false;
	memset(tlb->branch_pages, 0, sizeof(tlb->branch_pages));
	for (unsigned w = 0; w < ARRAY_SIZE(tlb->branch_used); w++) {
		branch_word_drop(cpu, tlb, w, drop, arg, shift);
		tlb->has_branches |= tlb->branch_used[w] != 0;
	}
}

/* Those of one page. Its bit in `branch_pages` stays: another page's may be the same. */
static void branches_drop_page(struct x86_cpu *cpu, struct x86_tlb *tlb, gva_t page)
{
	const unsigned first = x86_branch_index(page) / 64;

	for (unsigned n = 0; n < BRANCH_WORDS; n++)
		branch_word_drop(cpu, tlb, first + n, branch_near, page, GUEST_PAGE_SHIFT);
}

/* ---- one table set ---- */

static void large_forget(struct x86_tlb *tlb, unsigned half)
{
	if (tlb->has_large[half])
		memset(tlb->large[half], 0, sizeof(tlb->large[half]));
	tlb->has_large[half] = false;
}

static void tlb_clear(struct x86_cpu *cpu, struct x86_tlb *tlb)
{
	for (unsigned access = 0; access < 3; access++)
		entries_drop(tlb, (enum x86_access)access, entry_any, 0);
	branches_drop(cpu, tlb, branch_any, 0, 0);
	large_forget(tlb, 0);
	large_forget(tlb, 1);
	tlb->has_global = false;
}

static void tlb_clear_local(struct x86_cpu *cpu, struct x86_tlb *tlb)
{
	if (!tlb->has_global) {
		tlb_clear(cpu, tlb);
		return;
	}
	for (unsigned access = 0; access < 3; access++)
		entries_drop(tlb, (enum x86_access)access, entry_local, 0);
	branches_drop(cpu, tlb, branch_local, 0, 0);
	if (!cpu->tlb_global_low)
		large_forget(tlb, 0);
}

static void branches_fill(struct x86_tlb *tlb, const void *code)
{
	for (unsigned i = 0; i < X86_BRANCH_SIZE; i++)
		tlb->branch_code[i] = code;
	memset(tlb->branch_used, 0, sizeof(tlb->branch_used));
	memset(tlb->branch_pages, 0, sizeof(tlb->branch_pages));
	tlb->has_branches = false;
}

/* From all zeroes to all invalid: a zero entry matches page 0 only, which only index 0 is looked up for. */
static void tlb_set_up(struct x86_cpu *cpu, struct x86_tlb *tlb)
{
	for (unsigned access = 0; access < 3; access++)
		tlb->entry[access][0].page = X86_TLB_INVALID(0);
	if (cpu->branch_miss)
		branches_fill(tlb, cpu->branch_miss);
}

/* Sizes of large pages, by their place in `large`. */
static const uint8_t large_shift[] = {21, 22, 30};

/* May there be entries, or branches, of a large page of this size around linear? */
static bool large_noted(const struct x86_tlb *tlb, unsigned size, gva_t linear)
{
	const unsigned bit = page_bit(linear >> large_shift[size]);
	return tlb->large[half_of(linear)][size][bit / 64] >> bit % 64 & 1;
}

/* A large page in `used` or `branch_pages`: so many words. */
static unsigned words_of(unsigned shift)
{
	return (unsigned)(MIN(BIT(shift - GUEST_PAGE_SHIFT), (uint64_t)PAGE_BITS) / 64);
}

static bool any_branch_page(const struct x86_tlb *tlb, gva_t start, unsigned count)
{
	const uint64_t *pages = tlb->branch_pages[half_of(start)] + page_bit(start >> GUEST_PAGE_SHIFT) / 64;
	uint64_t any = 0;

	for (unsigned w = 0; w < count; w++)
		any |= pages[w];
	return any;
}

/* Drop what was made from a large page of this size around linear. */
static void tlb_clear_large(struct x86_cpu *cpu, struct x86_tlb *tlb, gva_t linear, unsigned shift)
{
	const gva_t start = linear >> shift << shift;
	const unsigned words = words_of(shift);

	if (any_branch_page(tlb, start, words))
		branches_drop(cpu, tlb, branch_near, linear, shift);
	for (unsigned access = 0; access < 3; access++)
		entries_drop_words(tlb, (enum x86_access)access, x86_tlb_index(start) / 64, words, entry_large, linear);
}

static void tlb_clear_page(struct x86_cpu *cpu, struct x86_tlb *tlb, gva_t linear)
{
	const gva_t page = linear & GUEST_PAGE_MASK;
	const unsigned index = x86_tlb_index(linear), bit = page_bit(page >> GUEST_PAGE_SHIFT);

	/* The bitmaps are small and hot, the tables are neither. */
	for (unsigned access = 0; access < 3; access++)
		if ((tlb->used[access][index / 64] >> index % 64 & 1) &&
			tlb->entry[access][index].page == page)
			tlb->entry[access][index].page = X86_TLB_INVALID(index);
	if (tlb->branch_pages[half_of(page)][bit / 64] >> bit % 64 & 1)
		branches_drop_page(cpu, tlb, page);
	for (unsigned size = 0; tlb->has_large[half_of(page)] && size < ARRAY_SIZE(large_shift); size++)
		if (large_noted(tlb, size, linear))
			tlb_clear_large(cpu, tlb, linear, large_shift[size]);
}

/* ---- contexts ---- */

int x86_tlb_init(struct x86_cpu *cpu)
{
	cpu->tlb_memory = calloc(1, TABLES * sizeof(struct x86_tlb) + MISALIGN);
	if (!cpu->tlb_memory)
		return -ENOMEM;
	struct x86_tlb *tables =
		(struct x86_tlb *)ALIGN_UP((uintptr_t)cpu->tlb_memory, (uintptr_t)MISALIGN);
	for (unsigned i = 0; i < X86_TLB_CONTEXTS; i++)
		cpu->context[i] = (struct x86_tlb_context){.tlb = &tables[2 * i]};
	cpu->tlb_nothing = &tables[TABLES - 1];
	tlb_set_up(cpu, cpu->tlb_nothing);
	cpu->context_now = NULL;
	x86_tlb_switch(cpu, false);
	return 0;
}

void x86_tlb_done(struct x86_cpu *cpu)
{
	free(cpu->tlb_memory);
	cpu->tlb_memory = NULL;
}

static uint16_t pcid_now(const struct x86_cpu *cpu)
{
	return cpu->s.cr4 & X86_CR4_PCIDE ? (uint16_t)(cpu->s.cr3 & CR3_PCID) : 0;
}

static struct x86_tlb_context *context_find(struct x86_cpu *cpu, unsigned pcid)
{
	for (unsigned i = 0; i < X86_TLB_CONTEXTS; i++)
		if (cpu->context[i].valid && cpu->context[i].pcid == pcid)
			return &cpu->context[i];
	return NULL;
}

/* One without translations that matter, or the one least recently used. */
static struct x86_tlb_context *context_victim(struct x86_cpu *cpu)
{
	struct x86_tlb_context *victim = &cpu->context[0];

	for (unsigned i = 0; i < X86_TLB_CONTEXTS; i++) {
		struct x86_tlb_context *c = &cpu->context[i];
		if (!c->valid)
			return c;
		if (c->age < victim->age)
			victim = c;
	}
	return victim;
}

/* An empty context for this PCID. */
static struct x86_tlb_context *context_take(struct x86_cpu *cpu, uint16_t pcid)
{
	struct x86_tlb_context *c = context_victim(cpu);

	for (unsigned user = 0; user < 2; user++) {
		if (c->ready)
			tlb_clear(cpu, &c->tlb[user]);
		else
			tlb_set_up(cpu, &c->tlb[user]);
	}
	c->ready = c->valid = true;
	c->pcid = pcid;
	return c;
}

static void context_clear_local(struct x86_cpu *cpu, struct x86_tlb_context *c)
{
	tlb_clear_local(cpu, &c->tlb[0]);
	tlb_clear_local(cpu, &c->tlb[1]);
}

void x86_tlb_select(struct x86_cpu *cpu)
{
	cpu->tlb_now = cpu->tlb_bypass ? cpu->tlb_nothing : &cpu->context_now->tlb[cpu->cpl == 3];
}

void x86_tlb_switch(struct x86_cpu *cpu, bool keep)
{
	const uint16_t pcid = pcid_now(cpu);
	struct x86_tlb_context *c = context_find(cpu, pcid);

	if (!c)
		c = context_take(cpu, pcid);
	else if (!keep)
		context_clear_local(cpu, c);
	c->age = ++cpu->context_clock;
	cpu->context_now = c;
	x86_tlb_select(cpu);
}

/* ---- filling ---- */

static void note_large(struct x86_tlb *tlb, gva_t linear, unsigned shift)
{
	const unsigned bit = page_bit(linear >> shift);

	for (unsigned size = 0; size < ARRAY_SIZE(large_shift); size++)
		if (shift == large_shift[size])
			tlb->large[half_of(linear)][size][bit / 64] |= BIT(bit % 64);
	tlb->has_large[half_of(linear)] = true;
}

void x86_tlb_fill(struct x86_cpu *cpu, gva_t linear, gpa_t gpa, unsigned shift, bool global,
	enum x86_access access, bool user)
{
	const struct memory_region *region = memory_find(cpu->memory, gpa);
	struct x86_tlb *tlb = &cpu->context_now->tlb[user];
	const unsigned index = x86_tlb_index(linear);

	if (!region)
		return;
	gpa &= GUEST_PAGE_MASK;
	if (access == X86_WRITE) {
		if ((region->flags & MEMORY_READONLY) || memory_code_page(cpu->memory, gpa))
			return;
		memory_mark_dirty(region, gpa, GUEST_PAGE_SIZE);
	}
	tlb->entry[access][index] = (struct x86_tlb_entry){
		.page = linear & GUEST_PAGE_MASK,
		.host = (uintptr_t)(region->host + (gpa - region->base)),
		.gpa = gpa,
		.global = global,
		.shift = shift,
	};
	tlb->used[access][index / 64] |= BIT(index % 64);
	tlb->has_global |= global;
	cpu->tlb_global_low |= global && !(linear >> 63);
	if (shift > GUEST_PAGE_SHIFT)
		note_large(tlb, linear, shift);
}

/* ---- invalidation ---- */

void x86_tlb_flush(struct x86_cpu *cpu)
{
	struct x86_tlb_context *now = cpu->context_now;

	for (unsigned i = 0; i < X86_TLB_CONTEXTS; i++)
		cpu->context[i].valid = false;
	tlb_clear(cpu, &now->tlb[0]);
	tlb_clear(cpu, &now->tlb[1]);
	now->valid = true;
	now->pcid = pcid_now(cpu);
}

void x86_tlb_flush_local(struct x86_cpu *cpu)
{
	context_clear_local(cpu, cpu->context_now);
}

void x86_tlb_flush_pcid(struct x86_cpu *cpu, unsigned pcid)
{
	struct x86_tlb_context *c = context_find(cpu, pcid);
	if (c)
		context_clear_local(cpu, c);
}

void x86_tlb_flush_local_all(struct x86_cpu *cpu)
{
	for (unsigned i = 0; i < X86_TLB_CONTEXTS; i++)
		if (cpu->context[i].valid)
			context_clear_local(cpu, &cpu->context[i]);
}

static void flush_page(struct x86_cpu *cpu, gva_t linear, bool all)
{
	for (unsigned n = 0; n < 2 * X86_TLB_CONTEXTS; n++) {
		struct x86_tlb_context *c = &cpu->context[n / 2];
		if (c->valid && (all || c == cpu->context_now))
			tlb_clear_page(cpu, &c->tlb[n % 2], linear);
	}
}

/* Other contexts are concerned only if the page may be global, which is rare in the lower half. */
void x86_tlb_flush_page(struct x86_cpu *cpu, gva_t linear)
{
	flush_page(cpu, linear, linear >> 63 || cpu->tlb_global_low);
}

void x86_tlb_flush_page_all(struct x86_cpu *cpu, gva_t linear)
{
	flush_page(cpu, linear, true);
}

void x86_tlb_flush_writes(struct x86_cpu *cpu)
{
	for (unsigned n = 0; n < 2 * X86_TLB_CONTEXTS; n++)
		if (cpu->context[n / 2].valid)
			entries_drop(&cpu->context[n / 2].tlb[n % 2], X86_WRITE, entry_any, 0);
}

void x86_tlb_drop_writes(struct x86_cpu *cpu, gpa_t page)
{
	page &= GUEST_PAGE_MASK;
	for (unsigned n = 0; n < 2 * X86_TLB_CONTEXTS; n++)
		if (cpu->context[n / 2].valid)
			entries_drop(&cpu->context[n / 2].tlb[n % 2], X86_WRITE, entry_maps, page);
}

/* ---- branch targets ---- */

void x86_branch_set_miss(struct x86_cpu *cpu, const void *code)
{
	if (code == cpu->branch_miss)
		return;
	cpu->branch_miss = code;
	branches_fill(cpu->tlb_nothing, code);
	for (unsigned n = 0; n < 2 * X86_TLB_CONTEXTS; n++)
		if (cpu->context[n / 2].ready)
			branches_fill(&cpu->context[n / 2].tlb[n % 2], code);
}

void x86_branch_fill(struct x86_cpu *cpu, gva_t target, const void *code)
{
	struct x86_tlb *tlb = cpu->tlb_now;
	const struct x86_tlb_entry *e = &tlb->entry[X86_EXEC][x86_tlb_index(target)];
	const unsigned index = x86_branch_index(target);
	const uint64_t bit = BIT(index % 64);

	if (!cpu->branch_miss || tlb == cpu->tlb_nothing)
		return;
	tlb->branch_code[index] = code;
	tlb->branch_tag[index] = target;
	tlb->branch_used[index / 64] |= bit;
	tlb->branch_global[index / 64] &= ~bit;
	if (e->page == (target & GUEST_PAGE_MASK) && e->global)
		tlb->branch_global[index / 64] |= bit;
	branch_note_page(tlb, target);
	tlb->has_branches = true;
}

void x86_branch_clear_now(struct x86_cpu *cpu)
{
	if (cpu->tlb_now != cpu->tlb_nothing)
		branches_drop(cpu, cpu->tlb_now, branch_any, 0, 0);
}

void x86_branch_clear(struct x86_cpu *cpu)
{
	for (unsigned n = 0; n < 2 * X86_TLB_CONTEXTS; n++)
		if (cpu->context[n / 2].ready)
			branches_drop(cpu, &cpu->context[n / 2].tlb[n % 2], branch_any, 0, 0);
}
