/*
 * The translator's switches as text.
 */
#ifndef LODGE_ENGINE_JIT_OPTIONS_H
#define LODGE_ENGINE_JIT_OPTIONS_H

#include "engine/jit/jit.h"

/* Words separated by commas; NULL: the defaults. Errors: -EINVAL, the word is named. */
int jit_options_parse(struct jit_options *ret_options, const char *text, struct error *err);

#endif
