/*
 * A loop that a test runs by itself, for as long as something is ready.
 */
#ifndef LODGE_TESTS_TURNS_H
#define LODGE_TESTS_TURNS_H

#include "base/loop.h"

static inline void turns_end(void *opaque)
{
	loop_stop(opaque);
}

/* So many turns: what a turn makes ready is served in the next. */
static inline void run_turns(struct loop *loop, unsigned turns)
{
	struct loop_call end = {.fn = turns_end, .opaque = loop};

	for (unsigned i = 0; i < turns; i++) {
		loop_post(loop, &end);
		loop_run(loop);
	}
}

#endif
