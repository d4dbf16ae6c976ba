/*
 * See brief.h. The window doubles with each sleep that turns out to have been short, and is gone with the first that was
 * not. So an idle thread looks for BRIEF_MAX_NS once, after it was busy, and then no more.
 *
 * The processor is offered to others all the time (sched_yield(2), which is nothing where nobody wants it). If it was
 * taken, the host has more to do than processors, and sleeping is right.
 */
#include "base/brief.h"

#include <sched.h>

#include "base/clock.h"
#include "base/util.h"

#define FIRST_NS 8000u
#define TAKEN_NS 8000u /* away for longer: others had the processor */
#define LOOKS	 16    /* between two looks at the clock */

static bool look(bool (*is_due)(void *opaque), void *opaque)
{
	for (unsigned i = 0; i < LOOKS; i++) {
		if (is_due(opaque))
			return true;
		__builtin_ia32_pause();
	}
	return false;
}

bool brief_wait(struct brief_wait *wait, bool (*is_due)(void *opaque), void *opaque)
{
	const uint32_t window_ns = wait->window_ns;
	uint64_t start_ns, now_ns, before_ns;

	if (!window_ns)
		return false;
	start_ns = now_ns = clock_monotonic_ns();
	do {
		if (look(is_due, opaque))
			return true;
		before_ns = now_ns;
		sched_yield();
		now_ns = clock_monotonic_ns();
		if (now_ns - before_ns > TAKEN_NS) {
			wait->window_ns = 0;
			break;
		}
	} while (now_ns - start_ns < window_ns);
	return is_due(opaque);
}

void brief_learn(struct brief_wait *wait, uint64_t waited_ns)
{
	const uint32_t window_ns = wait->window_ns;

	if (waited_ns > BRIEF_MAX_NS)
		wait->window_ns = 0;
	else
		wait->window_ns = MIN(MAX(window_ns * 2, FIRST_NS), BRIEF_MAX_NS);
}
