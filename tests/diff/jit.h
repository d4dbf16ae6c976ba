/*
 * The harness's third side: the same cases in the jit engine. A VM with one vCPU whose exceptions lead to
 * handlers that halt; what the processor then is, and what is on the handler's stack, is the result.
 *
 * Each case runs twice: translated anew, and again with what was translated then, its blocks chained.
 */
#ifndef LODGE_TESTS_DIFF_JIT_H
#define LODGE_TESTS_DIFF_JIT_H

#include "interp.h"

#define DIFF_JIT_PASSES 2

struct diff_jit;

/* options: the engine's switches as text, "" for none. The engine tells on stderr what it lacks. */
int diff_jit_create(
	const struct diff_shared *shared, const char *options, struct diff_jit **ret_jit);
void diff_jit_free(struct diff_jit *jit);

/* Run a case; `name` is for the message should the translator crash. */
void diff_jit_run(struct diff_jit *jit, const struct diff_case *c, const char *name,
	struct diff_result ret_result[DIFF_JIT_PASSES]);

/* Is it what `expected` is? notes: of the interpreter's run of the case. */
bool diff_jit_agrees(const struct diff_jit *jit, const struct diff_case *c,
	const struct diff_result *result, const struct diff_result *expected,
	const struct diff_notes *notes);

#endif
