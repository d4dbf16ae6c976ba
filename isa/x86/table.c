/*
 * The instruction table: all rows of rows_*.inc, in one array. See isa/x86/insn.h for the notation.
 */
#include "isa/x86/semantics.h"

const struct x86_row x86_rows[] = {
#define ROW(encoding_, name_, operands_, in_, out_, undef_, attr_, feature_, fn_)                   \
	{ .encoding = encoding_, .name = name_, .operands = operands_, .flags_in = in_,            \
		.flags_out = out_, .flags_undef = undef_, .attr = attr_, .feature = feature_,      \
		.fn = fn_ },
#include "isa/x86/rows_all.inc"
#undef ROW
};

const unsigned x86_row_count = sizeof(x86_rows) / sizeof(x86_rows[0]);
