/*
 * An event loop: file descriptors, timers and calls from other threads, all served by the one thread that is in
 * loop_run(). Back ends and devices that wait for the host live on it.
 *
 * Callbacks run on the loop's thread, one at a time, and must not block. Level-triggered (epoll): what a callback
 * leaves unread makes it run again.
 *
 * Threads: create and free by the owner, free after loop_run() has returned; loop_post() and loop_stop() by
 * anyone; everything else on the loop's thread, or before loop_run().
 */
#ifndef LODGE_BASE_LOOP_H
#define LODGE_BASE_LOOP_H

#include "base/util.h"

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct loop_source; /* a file descriptor that is waited for */
struct loop_timer;  /* one-shot */

/* Errors: -ENOMEM, or what the system says of epoll, timers and eventfds. */
MUST_CHECK int loop_create(struct loop **ret_loop);
/* NULL is allowed. Frees its sources and timers too. */
void loop_free(struct loop *loop);

/* Serve until loop_stop(). Calls posted before the stop are made first. It may be run again, by any thread. */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);
bool loop_is_here(const struct loop *loop); /* is this the thread that is in loop_run()? */

/* events: EPOLLIN, EPOLLOUT, 0 (only errors and hang-ups), which the call gets as they came. The descriptor stays
 * the caller's and open until the source is removed. Errors: -ENOMEM, or epoll's (-EPERM: a regular file). */
MUST_CHECK int loop_add(struct loop *loop, int fd, uint32_t events,
	void (*ready)(void *opaque, uint32_t events), void *opaque, struct loop_source **ret_source);
MUST_CHECK int loop_change(struct loop_source *source, uint32_t events);
/* NULL is allowed. No callback of it comes after this, not even one that was due. */
void loop_remove(struct loop_source *source);

/* NULL: out of memory. Times are CLOCK_MONOTONIC. */
struct loop_timer *loop_timer_create(
	struct loop *loop, void (*fire)(void *opaque), void *opaque);
void loop_timer_free(struct loop_timer *timer); /* NULL is allowed */
void loop_timer_arm(struct loop_timer *timer, uint64_t deadline_ns); /* again: the new one counts */
void loop_timer_cancel(struct loop_timer *timer);

/* Have fn(opaque) called on the loop's thread, in the order of the posts. `call` is the caller's memory, and free
 * again when fn runs. To post what is posted already does nothing. Never fails. Posted after the stop: not called,
 * unless the loop runs again. */
struct loop_call {
	void (*fn)(void *opaque);
	void *opaque;
	struct loop_call *next; /* the loop's */
	bool posted;		/* the loop's */
};
void loop_post(struct loop *loop, struct loop_call *call);
/* Take it back, if it is posted. On the loop's thread, or while the loop does not run. */
void loop_cancel(struct loop *loop, struct loop_call *call);
/* Have it called and wait for its end; at once if this is the loop's thread. Waits for as long as the loop does not
 * run. With no lock held that the loop's callbacks take. */
void loop_invoke(struct loop *loop, void (*fn)(void *opaque), void *opaque);

#endif
