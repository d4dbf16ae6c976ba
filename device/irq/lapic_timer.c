/*
 * The local APIC's timer (SDM 3A 11.5.4): one-shot, periodic and TSC-deadline.
 *
 * The current count is not kept: it follows from the moment at which it reaches zero.
 *
 * Invariants: a periodic timer fires at most once in PERIOD_MIN_NS, so that a guest cannot keep the
 * event thread busy; periods that passed unseen are skipped, not made up for.
 */
#include "device/irq/lapic_internal.h"

#include <errno.h>

#include "base/cleanup.h"

#define PERIOD_MIN_NS 50000ull

/* Ticks are nanoseconds, so the divider is the length of a count. */
static uint64_t timer_divider(const struct lapic *lapic)
{
	uint32_t value = lapic->reg[LAPIC_TIMER_DIVIDE];
	unsigned code = (value & 3) | ((value >> 1) & 4);

	return 1ull << ((code + 1) & 7);
}

static uint32_t timer_mode(const struct lapic *lapic)
{
	return lapic->reg[LAPIC_LVT_TIMER] & LVT_TIMER_MODE;
}

static uint64_t timer_period_ns(const struct lapic *lapic)
{
	uint64_t period = lapic->reg[LAPIC_TIMER_INITIAL] * timer_divider(lapic);

	if (timer_mode(lapic) == LVT_TIMER_PERIODIC)
		period = MAX(period, PERIOD_MIN_NS);
	return period;
}

void lapic_timer_stop(struct lapic *lapic)
{
	if (lapic->timer_on)
		timer_cancel_in(lapic->bus->config.time, lapic->timer);
	lapic->timer_on = false;
}

static void timer_start(struct lapic *lapic, uint64_t deadline_ns)
{
	lapic->timer_on = true;
	lapic->timer_deadline_ns = deadline_ns;
	timer_arm_in(lapic->bus->config.time, lapic->timer, deadline_ns);
}

/* Moves a periodic timer's deadline to its first period after now. */
static void timer_advance(struct lapic *lapic, uint64_t now_ns)
{
	uint64_t period = timer_period_ns(lapic);
	uint64_t late = now_ns - lapic->timer_deadline_ns;

	timer_start(lapic, lapic->timer_deadline_ns + (late / period + 1) * period);
}

static void timer_expire(struct lapic *lapic, uint64_t now_ns)
{
	if (timer_mode(lapic) == LVT_TIMER_PERIODIC && lapic->reg[LAPIC_TIMER_INITIAL])
		timer_advance(lapic, now_ns);
	else
		lapic->timer_on = false;
	lapic->tsc_deadline = 0;
	lapic_fire_lvt(lapic, LAPIC_LVT_TIMER);
}

static void timer_fire(void *opaque)
{
	struct lapic *lapic = opaque;
	uint64_t now_ns;
	AUTO_LOCK(&lapic->bus->lock);

	now_ns = timer_now_ns(lapic->bus->config.time);
	/* A callback of an arming that was replaced meanwhile finds the deadline ahead. */
	if (lapic->timer_on && now_ns >= lapic->timer_deadline_ns)
		timer_expire(lapic, now_ns);
}

int lapic_timer_create(struct lapic *lapic)
{
	lapic->timer = timer_create_in(lapic->bus->config.time, timer_fire, lapic);
	return lapic->timer ? 0 : -ENOMEM;
}

void lapic_timer_write_initial(struct lapic *lapic, uint32_t count)
{
	if (timer_mode(lapic) & LVT_TIMER_DEADLINE)
		return;
	lapic_timer_stop(lapic);
	lapic->reg[LAPIC_TIMER_INITIAL] = count;
	if (count)
		timer_start(lapic, timer_now_ns(lapic->bus->config.time) + timer_period_ns(lapic));
}

uint64_t lapic_timer_left_ns(struct lapic *lapic)
{
	uint64_t now_ns = timer_now_ns(lapic->bus->config.time);
	uint64_t period;

	if (!lapic->timer_on)
		return 0;
	if (now_ns < lapic->timer_deadline_ns)
		return lapic->timer_deadline_ns - now_ns;
	/* Due, but the callback is still on its way. */
	if (timer_mode(lapic) != LVT_TIMER_PERIODIC || !lapic->reg[LAPIC_TIMER_INITIAL])
		return 0;
	period = timer_period_ns(lapic);
	return period - (now_ns - lapic->timer_deadline_ns) % period;
}

uint32_t lapic_timer_current(struct lapic *lapic)
{
	uint64_t divider = timer_divider(lapic);
	uint64_t count;

	if (timer_mode(lapic) & LVT_TIMER_DEADLINE)
		return 0;
	count = (lapic_timer_left_ns(lapic) + divider - 1) / divider;
	return (uint32_t)MIN(count, (uint64_t)lapic->reg[LAPIC_TIMER_INITIAL]);
}

void lapic_timer_write_divide(struct lapic *lapic, uint32_t value)
{
	uint32_t count = lapic_timer_current(lapic);
	bool running = lapic->timer_on && !(timer_mode(lapic) & LVT_TIMER_DEADLINE);

	lapic->reg[LAPIC_TIMER_DIVIDE] = value & 0xb;
	if (running && count)
		timer_start(lapic,
			timer_now_ns(lapic->bus->config.time) + count * timer_divider(lapic));
}

/* Going to or from TSC-deadline disarms; between one-shot and periodic the count goes on. */
void lapic_timer_write_lvt(struct lapic *lapic, uint32_t value)
{
	uint32_t before = timer_mode(lapic);

	lapic->reg[LAPIC_LVT_TIMER] = value;
	if ((before ^ timer_mode(lapic)) & LVT_TIMER_DEADLINE) {
		lapic_timer_stop(lapic);
		lapic->reg[LAPIC_TIMER_INITIAL] = 0;
		lapic->tsc_deadline = 0;
	}
}

void lapic_timer_write_deadline(struct lapic *lapic, uint64_t tsc)
{
	uint64_t now_ns, deadline_ns;

	if (timer_mode(lapic) != LVT_TIMER_DEADLINE)
		return;
	lapic_timer_stop(lapic);
	lapic->tsc_deadline = tsc;
	if (!tsc)
		return;
	deadline_ns = lapic->config.tsc_to_ns(lapic->config.opaque, tsc);
	now_ns = timer_now_ns(lapic->bus->config.time);
	if (deadline_ns <= now_ns)
		timer_expire(lapic, now_ns);
	else
		timer_start(lapic, deadline_ns);
}

void lapic_timer_restore(struct lapic *lapic, uint64_t left_ns, uint64_t tsc_deadline)
{
	/* The longest count there is: 2^32 - 1 at the greatest divider. */
	const uint64_t longest = 0xffffffffull * 128;

	lapic_timer_stop(lapic);
	lapic->tsc_deadline = 0;
	if (timer_mode(lapic) == LVT_TIMER_DEADLINE)
		lapic_timer_write_deadline(lapic, tsc_deadline);
	else if (left_ns && lapic->reg[LAPIC_TIMER_INITIAL])
		timer_start(lapic, timer_now_ns(lapic->bus->config.time) + MIN(left_ns, longest));
}
