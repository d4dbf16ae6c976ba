/*
 * One translation in progress: what translate.c and lower.c share.
 */
#ifndef LODGE_ENGINE_JIT_TRANSLATE_H
#define LODGE_ENGINE_JIT_TRANSLATE_H

#include "engine/jit/jit.h"

#define CTX(member) offsetof(struct engine_vcpu, member)
#define CTX_REG(i)  CTX(soft.cpu.s.reg[i])
#define MOV_STORE   (0x89 | EM_W)
#define MOV_LOAD    (0x8b | EM_W)

#define JIT_SLOWS_MAX (JIT_BLOCK_INSNS * 2)
#define JIT_EXITS_MAX (JIT_BLOCK_INSNS * 2 + 2)

/* A jump to the slow path of an instruction, whose stub is made when the block's code is done. */
struct slow {
	uint8_t *rel[5]; /* the jumps' rel32; NULL: none */
	uint8_t *resume; /* behind the instruction */
	struct leaving *out; /* where to go on instead; NULL: there */
	unsigned i; /* the instruction */
	struct jit_site *site;
};

struct leaving {
	struct jit_exit *exit;
	uint8_t *branch_rel;  /* else: the rel32 of a jump to a stub that takes a branch out of the page */
	struct jit_site *site; /* of that branch */
	uint8_t *poll_rel[2]; /* the rel32 of jumps to a stub that goes to the dispatcher */
	int64_t target;	      /* page offset, may be outside */
	uint16_t done;
	uint8_t *step_rel[2]; /* the rel32 of jumps to a stub that steps over the instruction at `target` */
	bool plain;	      /* to a block without spans, */
	uint8_t *plain_rel[2]; /* by jumps with these rel32, flags kept, if not from a slow path */
	uint16_t live;	      /* flags that somebody may want where it leads */
};

/* Accesses that are looked up together: span.c. Places count from where the value `base` would lead. */
struct span {
	uint32_t base, index; /* numbers of the values that addresses are made of */
	uint8_t scale, slot;  /* index of engine_vcpu.span, or JIT_NO_SLOT */
	uint8_t align, align_left; /* a place p is to be aligned if p % align == align_left */
	bool write;
	uint16_t members, first, last; /* accesses; instructions */
	unsigned branches;    /* conditional ones before it in the block */
	int64_t low, high, leader; /* places: first byte, behind the last; the first access */
};
#define JIT_NO_SLOT 255

/* A memory operand in the host: [base + index + disp]. */
struct place {
	uint8_t base, index;
	int32_t disp;
};

struct translation {
	struct engine_vcpu *v;
	struct emit e;
	struct jit_block *block;
	gpa_t gpa;
	unsigned mode; /* enum jit_mode */
	bool mode64;

	uint8_t bytes[GUEST_PAGE_SIZE + X86_INSN_BYTES_MAX]; /* the page, as it was */
	const uint8_t *host; /* the page */
	/* Where its one instruction ends, if that crosses the page's end; else JIT_NO_PAGE, NULL. */
	gpa_t second;
	const uint8_t *second_host;
	unsigned seen[8][2]; /* ranges of it that were looked at: start, end */
	unsigned seen_count;

	uint8_t *code_end; /* writable mapping */
	struct x86_insn insn[JIT_BLOCK_INSNS];
	uint16_t offset[JIT_BLOCK_INSNS + 1]; /* in the page; that behind the last */
	/* Arithmetic flags that somebody may read: behind each instruction, where its branch leads, behind all. */
	uint16_t live_after[JIT_BLOCK_INSNS], live_target[JIT_BLOCK_INSNS], live_end;
	unsigned count;

	struct span span[JIT_BLOCK_INSNS];
	unsigned span_count, span_first; /* may still grow from span_first on */
	int16_t span_of[JIT_BLOCK_INSNS]; /* of each instruction; -1: none */
	int64_t span_place[JIT_BLOCK_INSNS]; /* where in it */
	int16_t r11_span; /* whose address R11 holds; -1: nobody's */
	uint8_t fits[JIT_BLOCK_INSNS]; /* jit_native_fits(): 0 not asked yet, 1 yes, 2 no */

	bool kept;      /* the flags that are live are in flags_kept, the host's are junk */
	bool vec_ready; /* vectors are live */

	struct slow slow[JIT_SLOWS_MAX];
	unsigned slow_count;
	struct leaving leaving[JIT_EXITS_MAX];
	unsigned leaving_count;
	bool failed; /* out of one of the rooms; then what has no place goes here: */
	struct {
		struct jit_site site;
		struct slow slow;
		struct leaving leaving;
		struct jit_exit exit;
	} nowhere;
};

/* Flags whose old values nobody sees behind the instruction. Where engines are compared those that are left
 * undefined must be the processor's, which may keep them. */
static inline uint16_t jit_flags_killed(const struct translation *t, const struct jit_row *row)
{
	return t->v->options.count ? row->flags_kill & ~row->flags_undef : row->flags_kill;
}

/* Emit instruction i. Returns true if the block ends with it. */
bool jit_lower(struct translation *t, unsigned i);
/* Before an instruction that crosses the page's end: is the next page still where it was? */
void jit_lower_second_page(struct translation *t);
/* Go on behind the block, all of which was executed. */
void jit_lower_end(struct translation *t);
/* The stubs of slow paths and exits. */
void jit_lower_cold(struct translation *t);

#endif
