/*
 * A case being made: what gen.c and program.c share.
 */
#ifndef LODGE_TESTS_DIFF_CASE_H
#define LODGE_TESTS_DIFF_CASE_H

#include "gen.h"
#include "interp.h"

#define GEN_FIXES 96

enum fix_kind {
	FIX_RELATIVE,	    /* value: target - where the instruction ends */
	FIX_ABSOLUTE,	    /* value: target */
	FIX_LABEL_RELATIVE, /* the same, of targets that are offsets in the code */
	FIX_LABEL_ABSOLUTE,
};

/* Bytes of the code that depend on where it will lie. */
struct fix {
	uint16_t at, size_bytes, end; /* in the code; `end` = of its instruction */
	uint8_t kind;		      /* enum fix_kind */
	uint64_t target;
};

struct gen {
	struct diff_rng rng;
	const struct diff_interp *interp;
	struct diff_case *c;
	uint32_t claimed; /* registers with a purpose */
	bool vec_claimed;
	struct fix fix[GEN_FIXES];
	unsigned fix_count;
	struct diff_encoder e; /* the instruction being made */
};

static inline bool gen_percent(struct gen *g, unsigned n)
{
	return diff_percent(&g->rng, n);
}

/* An address for a memory operand of this size. */
uint64_t gen_address(struct gen *g, unsigned size, bool aligned);
uint64_t gen_code_address(struct gen *g);
/* What the instruction is to find at its memory operand. */
void gen_patch_operand(struct gen *g, const struct x86_insn *insn, uint64_t at, unsigned size);
/* Bytes of a memory operand that the decoder says has `size`. */
unsigned gen_memory_size(const struct x86_insn *insn, unsigned size);
uint64_t gen_segment_base(const struct gen *g, const struct x86_insn *insn);
bool gen_is_bit_string(const struct x86_insn *insn);
/* Indices of a gather, in a vector register. */
void gen_indices(struct gen *g, unsigned reg);
bool gen_row_has_mode(const struct x86_row *row, unsigned mode);

static inline void gen_fix(struct gen *g, enum fix_kind kind, unsigned at, unsigned bytes,
	unsigned end, uint64_t target)
{
	if (g->fix_count < GEN_FIXES)
		g->fix[g->fix_count++] = (struct fix){.at = (uint16_t)at,
			.size_bytes = (uint16_t)bytes,
			.end = (uint16_t)end,
			.kind = (uint8_t)kind,
			.target = target};
}

/* Make the code of a case a program around an instruction of the row `number`: program.c. */
void gen_program(struct gen *g, const struct diff_rows *rows, unsigned number);

#endif
