/*
 * Waiting briefly without going to sleep. To wake a thread that sleeps takes the host some 10 to 20 us if its processor
 * sleeps too, which is longer than much of what is waited for takes. So a thread that has lately been woken soon looks
 * for a while before it sleeps; one whose waits are long sleeps at once, and so does one whose processor others want.
 *
 *	start = clock_monotonic_ns();
 *	if (!brief_wait(&wait, is_due, opaque)) {
 *		... sleep ...
 *		brief_learn(&wait, clock_monotonic_ns() - start);
 *	}
 *
 * Threads: one at a time in brief_wait(); brief_learn() any.
 */
#ifndef LODGE_BASE_BRIEF_H
#define LODGE_BASE_BRIEF_H

#include <stdbool.h>
#include <stdint.h>

/* The longest that is waited without sleep; what took longer is not worth it. */
#define BRIEF_MAX_NS 128000u

/* Zeroed: sleeps at once. */
struct brief_wait {
	_Atomic uint32_t window_ns;
};

/* Look for as long as it pays. is_due is called often, on this thread. true: it is. */
bool brief_wait(struct brief_wait *wait, bool (*is_due)(void *opaque), void *opaque);
/* It took so long, with a sleep. */
void brief_learn(struct brief_wait *wait, uint64_t waited_ns);

#endif
