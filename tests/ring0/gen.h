/*
 * What gen.c and state.c share while a case is made.
 */
#ifndef LODGE_TESTS_RING0_GEN_H
#define LODGE_TESTS_RING0_GEN_H

#include "ring0.h"

struct r0_gen {
	struct diff_rng rng;
	const struct r0_source *source;
	struct r0_case *c;
	struct diff_encoder e; /* the instruction being made */
	uint32_t claimed;      /* registers with a purpose */
	bool only_mode;	       /* rows were chosen by name: take those that the mode lacks, too */
};

static inline unsigned r0_pick(struct r0_gen *g, unsigned n)
{
	return diff_pick(&g->rng, n);
}

static inline bool r0_percent(struct r0_gen *g, unsigned n)
{
	return diff_percent(&g->rng, n);
}

uint64_t r0_code_address(struct r0_gen *g, unsigned rpl);
uint16_t r0_code_selector(struct r0_gen *g);
uint16_t r0_data_selector(struct r0_gen *g);
uint64_t r0_address(struct r0_gen *g, unsigned size, bool aligned);
void r0_patch(struct r0_gen *g, uint64_t linear, const void *bytes, unsigned size);
/* Give a register a purpose; false: it has one. */
bool r0_claim(struct r0_gen *g, unsigned reg);
void r0_set_reg(struct r0_gen *g, unsigned reg, uint64_t value);

/* state.c: the state a case starts from, and what a system instruction is to find in registers and MSRs. */
void r0_choose_state(struct r0_gen *g);
void r0_choose_control(struct r0_gen *g, const struct x86_insn *insn);

#endif
