/*
 * The software TLB: translations that are known to be good, and the branch targets that an engine may
 * keep beside them (isa/x86/tlb.c). SDM 3A 5.10 says what must be dropped when.
 *
 * A context holds what was translated under one PCID (CR4.PCIDE = 0: under PCID 0), apart for supervisor and
 * user. Translated code reaches the present one through a base register: the layout of struct x86_tlb is
 * part of an engine's code. Global translations are made anew in each context, and dropped from all.
 *
 * Owned by the vCPU's thread, as all of struct x86_cpu.
 */
#ifndef LODGE_ISA_X86_TLB_H
#define LODGE_ISA_X86_TLB_H

#include "base/types.h"

#define X86_TLB_SIZE	 4096 /* entries of each table; a power of two */
#define X86_TLB_CONTEXTS 8    /* PCIDs whose translations are kept */
#define X86_BRANCH_SIZE	 16384 /* branch targets, by the bits of the address above the lowest */
#define X86_BRANCH_SHIFT 2     /* so many: hot targets are seldom as near as that, and 64 KiB of code fit in */

enum x86_access { X86_READ, X86_WRITE, X86_EXEC };

struct x86_tlb_entry {
	gva_t page;	/* linear page address; X86_TLB_INVALID(index) never compares equal */
	uintptr_t host; /* host address of the page's first byte */
	gpa_t gpa;	/* guest-physical page address */
	uint32_t global;
	uint32_t shift; /* log2 of the size of the guest's mapping: 12, 21, 22, 30 */
};
_Static_assert(sizeof(struct x86_tlb_entry) == 32, "an index becomes an offset by one shift");

/* A page whose index is another one: no address that maps to this entry can match it. */
#define X86_TLB_INVALID(index) ((gva_t)((index) ^ 1) << GUEST_PAGE_SHIFT)

/* What one privilege of one context looks up. */
struct x86_tlb {
	struct x86_tlb_entry entry[3][X86_TLB_SIZE]; /* [x86_access] */
	/* Cached branch targets, by x86_branch_index(). code == cpu->branch_miss: none, whatever the tag says. */
	const void *branch_code[X86_BRANCH_SIZE];
	gva_t branch_tag[X86_BRANCH_SIZE];

	/* Entries that may be valid: flushes look at these alone. */
	uint64_t used[3][X86_TLB_SIZE / 64];
	/* Branches that may be set; those among them whose page is global. */
	uint64_t branch_used[X86_BRANCH_SIZE / 64];
	uint64_t branch_global[X86_BRANCH_SIZE / 64];
	/* By half of the address space, so that a program's pages are not taken for the kernel's: */
	uint64_t branch_pages[2][64]; /* bit (page number mod 4096): the page may have branches */
	uint64_t large[2][3][64]; /* the same of large pages (2M, 4M, 1G) that may have entries */
	bool has_large[2];
	unsigned branch_mode; /* the engine's: what its targets were filled for */
	bool has_global, has_branches;
} __attribute__((aligned(64)));

/* The translations of one PCID. */
struct x86_tlb_context {
	struct x86_tlb *tlb; /* two, [user]; all zero until `ready` */
	uint64_t age;	     /* when it was last switched to: the least recent is replaced */
	uint16_t pcid;
	bool valid; /* holds translations of `pcid`; else they are leftovers */
	bool ready; /* was set up once */
};

struct x86_cpu;

static inline unsigned x86_tlb_index(gva_t linear)
{
	return (unsigned)(linear >> GUEST_PAGE_SHIFT) & (X86_TLB_SIZE - 1);
}

static inline unsigned x86_branch_index(gva_t target)
{
	return (unsigned)(target >> X86_BRANCH_SHIFT) & (X86_BRANCH_SIZE - 1);
}

/* Give a processor its tables, with one empty context; x86_tlb_done() also after a failure. Errors: -ENOMEM. */
int x86_tlb_init(struct x86_cpu *cpu);
void x86_tlb_done(struct x86_cpu *cpu);

/*
 * Note a translation. Makes no entry if gpa is not RAM, and for writes none if it is ROM or its page holds
 * translated code; else marks the page dirty for them. gpa: with or without the offset in the page.
 */
void x86_tlb_fill(struct x86_cpu *cpu, gva_t linear, gpa_t gpa, unsigned shift, bool global,
	enum x86_access access, bool user);
/* Point tlb_now at what CPL and context say, or at tables that hold nothing (cpu->tlb_bypass). */
void x86_tlb_select(struct x86_cpu *cpu);

/*
 * CR3 was loaded: go to the context of its PCID. Without `keep` (bit 63 of what was loaded) translations of
 * that PCID go, unless they are global.
 */
void x86_tlb_switch(struct x86_cpu *cpu, bool keep);

/* Drop everything, and start a context for what CR3 and CR4 say now. */
void x86_tlb_flush(struct x86_cpu *cpu);
/* Drop what is not global: of the present context, of one PCID, of all. */
void x86_tlb_flush_local(struct x86_cpu *cpu);
void x86_tlb_flush_pcid(struct x86_cpu *cpu, unsigned pcid);
void x86_tlb_flush_local_all(struct x86_cpu *cpu);
/* Drop one page, of all contexts, with all of a large page around it. */
void x86_tlb_flush_page(struct x86_cpu *cpu, gva_t linear);
/* The same in every PCID. */
void x86_tlb_flush_page_all(struct x86_cpu *cpu, gva_t linear);
/* Only entries for writing: all, after the dirty log was started or harvested; or those that map this
 * guest-physical page. */
void x86_tlb_flush_writes(struct x86_cpu *cpu);
void x86_tlb_drop_writes(struct x86_cpu *cpu, gpa_t page);

/* ---- branch targets ---- */

/*
 * The code that an unknown target leads to, which fills all tables; NULL (as at first): the engine keeps no
 * branches, and the arrays are not touched.
 */
void x86_branch_set_miss(struct x86_cpu *cpu, const void *code);
/*
 * Remember the code for a target, in tlb_now, for as long as the translation of the target's page is good.
 * That translation must have been looked up for execution just before. Does nothing while tlb_now is bypassed.
 */
void x86_branch_fill(struct x86_cpu *cpu, gva_t target, const void *code);
/* Forget every target, of every context. */
void x86_branch_clear(struct x86_cpu *cpu);
/* Those of the tables that are in use. */
void x86_branch_clear_now(struct x86_cpu *cpu);

#endif
