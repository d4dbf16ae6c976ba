/*
 * Makes cases out of the instruction table: encode.c bytes, gen.c states, values.c the numbers in them.
 */
#ifndef LODGE_TESTS_DIFF_GEN_H
#define LODGE_TESTS_DIFF_GEN_H

#include "diff.h"

struct diff_interp;

/* Pseudo-random numbers (splitmix64); the sequence is the case. */
struct diff_rng {
	uint64_t state;
};

static inline uint64_t diff_random(struct diff_rng *rng)
{
	uint64_t z = rng->state += 0x9e3779b97f4a7c15ull;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/* 0..n-1. */
static inline unsigned diff_pick(struct diff_rng *rng, unsigned n)
{
	return (unsigned)((diff_random(rng) >> 32) * n >> 32);
}

static inline bool diff_percent(struct diff_rng *rng, unsigned percent)
{
	return diff_pick(rng, 100) < percent;
}

/* One instruction being encoded. */
struct diff_encoder {
	struct diff_rng *rng;
	unsigned mode; /* 64 or 32: of the code segment */
	uint8_t bytes[64];
	unsigned count;
	unsigned disp_at, disp_bytes; /* of a displacement without a base, or none */
};

struct x86_row;
struct x86_form;

/* Encode an instruction of the row; immediates and a tail of random bytes follow it. */
void diff_emit_row(struct diff_encoder *e, const struct x86_row *row, const struct x86_form *form);

/* An integer that is often near an edge. */
uint64_t diff_integer(struct diff_rng *rng);
/* Fill with integers, floats, doubles or bytes, special ones among them; size_bytes a power of two, or 10
 * for an extended real. */
void diff_values(struct diff_rng *rng, uint8_t *to, unsigned size_bytes);
void diff_extended(struct diff_rng *rng, uint8_t to[10]);
void diff_pattern(uint64_t seed, unsigned number, uint8_t *to);

/* The rows that are compared, in table order. */
struct diff_rows {
	unsigned count;
	uint16_t *row;
	unsigned programs_percent; /* of the cases are programs: program.c */
	bool change_code;	   /* some of them change their code */
};

/* Make case `index`. *ret_row: the row it is about, or -1 for mutated bytes. */
void diff_generate(const struct diff_interp *interp, const struct diff_rows *rows, uint64_t seed,
	uint64_t index, struct diff_case *ret_case, int *ret_row);

#endif
