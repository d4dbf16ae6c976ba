/*
 * Holds the interpreter's result against the processor's, and prints both.
 */
#ifndef LODGE_TESTS_DIFF_COMPARE_H
#define LODGE_TESTS_DIFF_COMPARE_H

#include "interp.h"

#include <stdio.h>

bool diff_agree(const struct diff_result *interp, const struct diff_result *native,
	const struct diff_notes *notes);

/* Is the instruction that the interpreter refused one that this host has beyond the table? */
bool diff_is_extra(const struct diff_case *c, const struct diff_result *interp,
	const struct diff_result *native);

/* The case: bytes and instructions; with `state`, what they begin with. */
void diff_print_case(
	FILE *out, const struct diff_case *c, const struct diff_interp *interp, bool state);
/* What differs, by the names of the two; with `all`, everything else too. */
void diff_print_results(FILE *out, const struct diff_case *c, const char *const who[2],
	const struct diff_result *interp, const struct diff_result *native,
	const struct diff_notes *notes, bool all);

#endif
