/*
 * The translator's switches. docs/jit.md says what they are for.
 */
#ifndef LODGE_ENGINE_JIT_OPTIONS_H
#define LODGE_ENGINE_JIT_OPTIONS_H

#include "base/types.h"

struct error;

#define JIT_BLOCK_INSNS 64 /* at most, in one block */

/* How to translate: see docs/jit.md for the switches that tests and users may set. */
struct jit_options {
	size_t code_bytes, meta_bytes; /* of the whole cache, per vCPU */
	unsigned insns_max;	       /* in one block, 1 to JIT_BLOCK_INSNS */
	bool chain;		       /* jump from block to block within a page */
	bool branches;		       /* use the branch cache */
	bool spans;		       /* look neighbouring accesses up together */
	bool precise;		       /* keep even flags that nobody can see */
	bool count;		       /* cpu.instructions is exact at block boundaries */
	bool slow;		       /* every memory access takes the slow path */
	unsigned evict;		       /* forget a random block each so many translations; 0 = never */
	bool perf;		       /* name translated code in /tmp/perf-PID.map */
};


/* Words separated by commas; NULL: the defaults. Errors: -EINVAL, the word is named. */
int jit_options_parse(struct jit_options *ret_options, const char *text, struct error *err);

#endif
