/*
 * What a device is tested with instead of a machine: time that a test moves by hand, interrupt lines
 * that remember, and short names for bus accesses.
 */
#ifndef LODGE_TESTS_DEVICE_FAKE_H
#define LODGE_TESTS_DEVICE_FAKE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "device/bus.h"
#include "device/irq_line.h"
#include "device/timer_source.h"

#define FAKE_TIMERS 16

struct fake_time;

struct device_timer {
	struct fake_time *time;
	void (*fire)(void *opaque);
	void *opaque;
	bool used, armed;
	uint64_t deadline_ns;
};

struct fake_time {
	struct timer_source source; /* first: the ops cast it back */
	uint64_t now_ns, realtime_base_ns;
	struct device_timer timer[FAKE_TIMERS];
	unsigned fired;
};

static uint64_t fake_now(struct timer_source *source)
{
	return ((struct fake_time *)source)->now_ns;
}

static uint64_t fake_realtime(struct timer_source *source)
{
	struct fake_time *time = (struct fake_time *)source;

	return time->realtime_base_ns + time->now_ns;
}

static struct device_timer *fake_create(
	struct timer_source *source, void (*fire)(void *opaque), void *opaque)
{
	struct fake_time *time = (struct fake_time *)source;

	for (unsigned i = 0; i < FAKE_TIMERS; i++) {
		struct device_timer *timer = &time->timer[i];

		if (timer->used)
			continue;
		*timer = (struct device_timer){
			.time = time, .fire = fire, .opaque = opaque, .used = true};
		return timer;
	}
	return NULL;
}

static void fake_free(struct device_timer *timer)
{
	timer->used = timer->armed = false;
}

static void fake_arm(struct device_timer *timer, uint64_t deadline_ns)
{
	timer->deadline_ns = deadline_ns;
	timer->armed = true;
}

static void fake_cancel(struct device_timer *timer)
{
	timer->armed = false;
}

static const struct timer_source_ops fake_time_ops = {
	.now_ns = fake_now,
	.realtime_ns = fake_realtime,
	.create = fake_create,
	.free = fake_free,
	.arm = fake_arm,
	.cancel = fake_cancel,
};

static inline void fake_time_init(struct fake_time *time)
{
	memset(time, 0, sizeof(*time));
	time->source.ops = &fake_time_ops;
	time->now_ns = 1000000;
}

/* The armed timer that is due first, or NULL. */
static inline struct device_timer *fake_time_next(struct fake_time *time)
{
	struct device_timer *next = NULL;

	for (unsigned i = 0; i < FAKE_TIMERS; i++) {
		struct device_timer *timer = &time->timer[i];

		if (timer->used && timer->armed &&
			(!next || timer->deadline_ns < next->deadline_ns))
			next = timer;
	}
	return next;
}

/* Moves time on, firing what falls due at its own moment. */
static inline void fake_time_run(struct fake_time *time, uint64_t ns)
{
	uint64_t end = time->now_ns + ns;
	struct device_timer *next;

	while ((next = fake_time_next(time)) && next->deadline_ns <= end) {
		time->now_ns = MAX(time->now_ns, next->deadline_ns);
		next->armed = false;
		time->fired++;
		next->fire(next->opaque);
	}
	time->now_ns = end;
}

/* A line that remembers its level and how often it rose. */
struct fake_irq {
	bool level;
	unsigned rises;
};

static void fake_irq_set(void *opaque, unsigned line, bool level)
{
	struct fake_irq *irq = opaque;

	irq += line;
	if (level && !irq->level)
		irq->rises++;
	irq->level = level;
}

static inline struct irq_line fake_irq_line(struct fake_irq *irq)
{
	return (struct irq_line){.set = fake_irq_set, .opaque = irq};
}

static inline void outb(struct bus *bus, uint16_t port, uint8_t value)
{
	bus_write(bus, BUS_PIO, port, 1, value);
}

static inline uint8_t inb(struct bus *bus, uint16_t port)
{
	return (uint8_t)bus_read(bus, BUS_PIO, port, 1);
}

/* A cheap repeatable source of nonsense for the "any access" tests. */
static inline uint32_t fake_random(uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return *seed >> 8 | *seed << 24;
}

/* Hammers a range with accesses of all widths at all offsets, some of them past its end. */
static inline void fake_hammer(
	struct bus *bus, enum bus_space space, uint64_t base, uint64_t length, unsigned rounds)
{
	uint32_t seed = 12345;

	for (unsigned i = 0; i < rounds; i++) {
		uint64_t addr = base + fake_random(&seed) % length;
		unsigned size = 1u << fake_random(&seed) % (space == BUS_PIO ? 3 : 4);
		uint64_t value = fake_random(&seed);

		value |= (uint64_t)fake_random(&seed) << 32;
		if (fake_random(&seed) & 1)
			bus_write(bus, space, addr, size, value);
		else
			bus_read(bus, space, addr, size);
	}
}

#endif
