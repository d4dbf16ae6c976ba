/*
 * Time as a device sees it: a clock to read and one-shot timers to arm. The machine passes in the real
 * one (CLOCK_MONOTONIC and its event loop), a test a fake one, a lockstep run a virtual one.
 *
 * Threads: the callback runs on the machine's event thread, with no lock held; it takes the device's
 * lock itself. arm/cancel may be called on any thread, with the device's lock held. After cancel or a
 * re-arm a callback already under way may still arrive: compare the clock with your own deadline.
 */
#ifndef LODGE_DEVICE_TIMER_SOURCE_H
#define LODGE_DEVICE_TIMER_SOURCE_H

#include <stdint.h>

struct timer_source;
struct device_timer; /* owned by the source; made by create */

struct timer_source_ops {
	uint64_t (*now_ns)(struct timer_source *source);      /* monotonic guest time */
	uint64_t (*realtime_ns)(struct timer_source *source); /* wall clock, ns since 1970 UTC */
	struct device_timer *(*create)(struct timer_source *source, void (*fire)(void *opaque),
		void *opaque); /* NULL: out of memory */
	void (*free)(struct device_timer *timer);
	void (*arm)(
		struct device_timer *timer, uint64_t deadline_ns); /* absolute, now_ns's clock */
	void (*cancel)(struct device_timer *timer);
};

struct timer_source {
	const struct timer_source_ops *ops;
};

static inline uint64_t timer_now_ns(struct timer_source *source)
{
	return source->ops->now_ns(source);
}

static inline uint64_t timer_realtime_ns(struct timer_source *source)
{
	return source->ops->realtime_ns(source);
}

static inline struct device_timer *timer_create_in(
	struct timer_source *source, void (*fire)(void *opaque), void *opaque)
{
	return source->ops->create(source, fire, opaque);
}

/* NULL is allowed. */
static inline void timer_free_in(struct timer_source *source, struct device_timer *timer)
{
	if (timer)
		source->ops->free(timer);
}

static inline void timer_arm_in(
	struct timer_source *source, struct device_timer *timer, uint64_t deadline_ns)
{
	source->ops->arm(timer, deadline_ns);
}

static inline void timer_cancel_in(struct timer_source *source, struct device_timer *timer)
{
	source->ops->cancel(timer);
}

#endif
