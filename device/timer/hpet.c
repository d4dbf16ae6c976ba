/*
 * The high precision event timer. See the header.
 *
 * Invariants: while the HPET runs its counter follows from the clock (base_counter at base_ns); while it
 * stands base_counter is the value. A comparator's timer is armed only if it could interrupt.
 */
#include "device/timer/hpet.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"

#define REGISTER_CAPABILITIES 0x000
#define REGISTER_CONFIG	      0x010
#define REGISTER_STATUS	      0x020
#define REGISTER_COUNTER      0x0f0
#define REGISTER_TIMERS	      0x100 /* 0x20 bytes each */
#define TIMER_CONFIG	      0x00
#define TIMER_COMPARATOR      0x08

/* Revision 1, three 64-bit timers, legacy replacement, Intel. */
#define CAPABILITIES ((uint64_t)HPET_PERIOD_FS << 32 | 0x8086a001u | (HPET_TIMERS - 1) << 8)

#define CONFIG_ENABLE 0x01u
#define CONFIG_LEGACY 0x02u
#define CONFIG_ALL    0x03u

#define TIMER_LEVEL	   BIT(1)
#define TIMER_ENABLE	   BIT(2)
#define TIMER_PERIODIC	   BIT(3)
#define TIMER_CAPABILITIES (BIT(4) | BIT(5)) /* periodic, 64 bits */
#define TIMER_SET_VALUE	   BIT(6)
#define TIMER_32BIT	   BIT(8)
#define TIMER_ROUTE_SHIFT  9
#define TIMER_WRITABLE                                                                 \
	(TIMER_LEVEL | TIMER_ENABLE | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32BIT | \
		0x1full << TIMER_ROUTE_SHIFT)

#define PERIOD_MIN_TICKS 5000u /* 50 us */

struct hpet_timer {
	struct hpet *hpet;
	struct device_timer *timer;
	uint64_t deadline_ns;
	bool armed;
};

struct hpet {
	struct hpet_config config;
	struct hpet_state s; /* counter: unused, see base_counter */
	uint64_t base_ns, base_counter;
	struct hpet_timer timer[HPET_TIMERS];
};

static bool is_running(const struct hpet *hpet)
{
	return hpet->s.config & CONFIG_ENABLE;
}

static uint64_t counter_now(const struct hpet *hpet)
{
	if (!is_running(hpet))
		return hpet->base_counter;
	return hpet->base_counter +
	       (timer_now_ns(hpet->config.time) - hpet->base_ns) / HPET_TICK_NS;
}

static void counter_set(struct hpet *hpet, uint64_t value)
{
	hpet->base_counter = value;
	hpet->base_ns = timer_now_ns(hpet->config.time);
}

static uint64_t timer_mask(const struct hpet_timer_state *t)
{
	return t->config & TIMER_32BIT ? 0xffffffffull : ~0ull;
}

static bool is_periodic(const struct hpet_timer_state *t)
{
	return (t->config & TIMER_PERIODIC) && t->period;
}

/* ---- interrupts ---- */

static void drive(struct hpet *hpet, unsigned n, bool level)
{
	struct irq_line irq = hpet->config.irq;

	if ((hpet->s.config & CONFIG_LEGACY) && n < 2)
		irq.line = n ? 8 : 0;
	else
		irq.line = hpet->s.timer[n].config >> TIMER_ROUTE_SHIFT & 0x1f;
	irq_line_set(&irq, level);
}

static void interrupt(struct hpet *hpet, unsigned n)
{
	const struct hpet_timer_state *t = &hpet->s.timer[n];

	if (t->config & TIMER_LEVEL)
		hpet->s.status |= BIT(n);
	if (!(t->config & TIMER_ENABLE))
		return;
	if (!(t->config & TIMER_LEVEL))
		drive(hpet, n, false); /* so that there is an edge */
	drive(hpet, n, true);
}

/* ---- comparators ---- */

static void arm(struct hpet *hpet, unsigned n)
{
	const struct hpet_timer_state *t = &hpet->s.timer[n];
	struct hpet_timer *timer = &hpet->timer[n];
	uint64_t left, now_ns = timer_now_ns(hpet->config.time);

	timer->armed = is_running(hpet) && (t->config & TIMER_ENABLE);
	if (!timer->armed) {
		timer_cancel_in(hpet->config.time, timer->timer);
		return;
	}
	left = (t->comparator - counter_now(hpet)) & timer_mask(t);
	/* A periodic comparator just passed is due; any other one waits for the counter to wrap. */
	if (is_periodic(t) && left > timer_mask(t) / 2)
		left = 0;
	if (__builtin_mul_overflow(left, HPET_TICK_NS, &left) ||
		__builtin_add_overflow(now_ns, left, &timer->deadline_ns))
		timer->deadline_ns = UINT64_MAX;
	timer_arm_in(hpet->config.time, timer->timer, timer->deadline_ns);
}

static void arm_all(struct hpet *hpet)
{
	for (unsigned n = 0; n < HPET_TIMERS; n++)
		arm(hpet, n);
}

/* Moves a periodic comparator to its first period after now, and not too near. */
static void advance(struct hpet *hpet, unsigned n)
{
	struct hpet_timer_state *t = &hpet->s.timer[n];
	uint64_t late = (counter_now(hpet) - t->comparator) & timer_mask(t);
	uint64_t least = MAX(PERIOD_MIN_TICKS / t->period, (uint64_t)1);

	t->comparator = (t->comparator + (late / t->period + least) * t->period) & timer_mask(t);
}

static void expire_if_due(struct hpet *hpet, unsigned n)
{
	struct hpet_timer *timer = &hpet->timer[n];

	if (!timer->armed || timer_now_ns(hpet->config.time) < timer->deadline_ns)
		return; /* re-armed meanwhile */
	timer->armed = false;
	interrupt(hpet, n);
	if (is_periodic(&hpet->s.timer[n])) {
		advance(hpet, n);
		arm(hpet, n);
	}
}

static void timer_fired(void *opaque)
{
	struct hpet_timer *timer = opaque;
	struct hpet *hpet = timer->hpet;
	AUTO_LOCK(hpet->config.lock);

	expire_if_due(hpet, (unsigned)(timer - hpet->timer));
}

/* ---- registers ---- */

static uint64_t timer_read(const struct hpet *hpet, unsigned n, unsigned offset)
{
	const struct hpet_timer_state *t = &hpet->s.timer[n];

	switch (offset) {
	case TIMER_CONFIG:
		return t->config | TIMER_CAPABILITIES | (uint64_t)hpet->config.routes << 32;
	case TIMER_COMPARATOR: return t->comparator;
	default: return 0;
	}
}

/* The 64-bit register at an offset that is a multiple of eight. */
static uint64_t register_read(const struct hpet *hpet, unsigned offset)
{
	unsigned n = (offset - REGISTER_TIMERS) / 0x20;

	switch (offset) {
	case REGISTER_CAPABILITIES: return CAPABILITIES;
	case REGISTER_CONFIG: return hpet->s.config;
	case REGISTER_STATUS: return hpet->s.status;
	case REGISTER_COUNTER: return counter_now(hpet);
	default:
		if (offset < REGISTER_TIMERS || n >= HPET_TIMERS)
			return 0;
		return timer_read(hpet, n, offset & 0x1f);
	}
}

static void config_write(struct hpet *hpet, uint64_t value)
{
	uint64_t before = hpet->s.config, counter = counter_now(hpet);

	value &= CONFIG_ALL;
	hpet->s.config = value;
	if ((before ^ value) & CONFIG_ENABLE)
		counter_set(hpet, counter);
	if (((before ^ value) & CONFIG_LEGACY) && hpet->config.legacy)
		hpet->config.legacy(hpet->config.opaque, value & CONFIG_LEGACY);
	arm_all(hpet);
}

static void status_clear(struct hpet *hpet, uint64_t bits)
{
	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		if (!(hpet->s.status & bits & BIT(n)))
			continue;
		hpet->s.status &= ~BIT(n);
		drive(hpet, n, false);
	}
}

static void timer_config_write(struct hpet *hpet, unsigned n, uint64_t value)
{
	struct hpet_timer_state *t = &hpet->s.timer[n];
	unsigned route = value >> TIMER_ROUTE_SHIFT & 0x1f;

	/* A route that is not offered does not stick; the old one stays. */
	if (!(hpet->config.routes >> route & 1))
		value = (value & ~(0x1full << TIMER_ROUTE_SHIFT)) |
			(t->config & 0x1full << TIMER_ROUTE_SHIFT);
	/* The line it leaves, or no longer drives, must not stay up. */
	if ((t->config ^ value) & (TIMER_ENABLE | TIMER_LEVEL | 0x1full << TIMER_ROUTE_SHIFT)) {
		if (t->config & TIMER_ENABLE)
			drive(hpet, n, false);
		hpet->s.status &= ~BIT(n);
	}
	t->config = value & TIMER_WRITABLE;
	t->comparator &= timer_mask(t);
	t->period &= timer_mask(t);
	arm(hpet, n);
}

static void comparator_write(struct hpet *hpet, unsigned n, uint64_t value)
{
	struct hpet_timer_state *t = &hpet->s.timer[n];

	value &= timer_mask(t);
	/* A periodic timer takes the period, and its first moment only when told so. */
	if (!(t->config & TIMER_PERIODIC) || (t->config & TIMER_SET_VALUE))
		t->comparator = value;
	if (t->config & TIMER_PERIODIC)
		t->period = value;
	t->config &= ~TIMER_SET_VALUE;
	arm(hpet, n);
}

static void register_write(struct hpet *hpet, unsigned offset, uint64_t value)
{
	unsigned n = (offset - REGISTER_TIMERS) / 0x20;

	switch (offset) {
	case REGISTER_CONFIG: config_write(hpet, value); break;
	case REGISTER_COUNTER:
		counter_set(hpet, value);
		arm_all(hpet);
		break;
	default:
		if (offset < REGISTER_TIMERS || n >= HPET_TIMERS)
			break;
		if ((offset & 0x1f) == TIMER_CONFIG)
			timer_config_write(hpet, n, value);
		else if ((offset & 0x1f) == TIMER_COMPARATOR)
			comparator_write(hpet, n, value);
	}
}

static uint64_t hpet_read(void *device, uint64_t offset, unsigned size_bytes)
{
	return register_read(device, (unsigned)offset & ~7u) >> 8 * (offset & 7);
}

/* The part of a register that a comparator written in halves has already. */
static uint64_t written_so_far(const struct hpet *hpet, unsigned offset)
{
	unsigned n = (offset - REGISTER_TIMERS) / 0x20;

	if (offset >= REGISTER_TIMERS && n < HPET_TIMERS && (offset & 0x1f) == TIMER_COMPARATOR &&
		(hpet->s.timer[n].config & TIMER_PERIODIC) &&
		!(hpet->s.timer[n].config & TIMER_SET_VALUE))
		return hpet->s.timer[n].period;
	return register_read(hpet, offset);
}

static void hpet_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct hpet *hpet = device;
	unsigned reg = (unsigned)offset & ~7u, shift = 8 * (offset & 7);

	if (size_bytes < 4 || offset % size_bytes)
		return;
	if (reg == REGISTER_STATUS) {
		status_clear(hpet, value << shift);
		return;
	}
	if (size_bytes == 4)
		value = (written_so_far(hpet, reg) & ~(0xffffffffull << shift)) |
			(value & 0xffffffff) << shift;
	register_write(hpet, reg, value);
}

/* ---- life ---- */

static void reset_state(struct hpet *hpet)
{
	unsigned route = (unsigned)__builtin_ctz(hpet->config.routes);

	hpet->s = (struct hpet_state){0};
	for (unsigned n = 0; n < HPET_TIMERS; n++)
		hpet->s.timer[n] = (struct hpet_timer_state){
			.config = (uint64_t)route << TIMER_ROUTE_SHIFT, .comparator = ~0ull};
}

int hpet_create(const struct hpet_config *config, struct hpet **ret_hpet)
{
	struct hpet *hpet = calloc(1, sizeof(*hpet));

	if (!hpet)
		return -ENOMEM;
	hpet->config = *config;
	if (!hpet->config.routes)
		hpet->config.routes = 1;
	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		hpet->timer[n].hpet = hpet;
		hpet->timer[n].timer = timer_create_in(config->time, timer_fired, &hpet->timer[n]);
		if (!hpet->timer[n].timer) {
			hpet_free(hpet);
			return -ENOMEM;
		}
	}
	reset_state(hpet);
	*ret_hpet = hpet;
	return 0;
}

void hpet_free(struct hpet *hpet)
{
	if (!hpet)
		return;
	for (unsigned n = 0; n < HPET_TIMERS; n++)
		timer_free_in(hpet->config.time, hpet->timer[n].timer);
	free(hpet);
}

int hpet_attach(struct hpet *hpet, struct bus *bus, gpa_t base)
{
	static const struct bus_ops ops = {.read = hpet_read, .write = hpet_write};

	return bus_add(bus, BUS_MMIO, base, HPET_BYTES, "hpet", &ops, hpet, hpet->config.lock);
}

void hpet_save(struct hpet *hpet, struct hpet_state *ret_state)
{
	AUTO_LOCK(hpet->config.lock);

	/* What is due but whose callback is still on its way would be lost with it. */
	for (unsigned n = 0; n < HPET_TIMERS; n++)
		expire_if_due(hpet, n);
	*ret_state = hpet->s;
	ret_state->counter = counter_now(hpet);
}

int hpet_load(struct hpet *hpet, const struct hpet_state *state)
{
	if ((state->config & ~(uint64_t)CONFIG_ALL) || state->status >> HPET_TIMERS)
		return -EINVAL;
	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		const struct hpet_timer_state *t = &state->timer[n];

		if ((t->config & ~TIMER_WRITABLE) || (t->comparator & ~timer_mask(t)) ||
			(t->period & ~timer_mask(t)) ||
			!(hpet->config.routes >> (t->config >> TIMER_ROUTE_SHIFT & 0x1f) & 1))
			return -EINVAL;
	}
	AUTO_LOCK(hpet->config.lock);
	hpet->s = *state;
	counter_set(hpet, state->counter);
	if (hpet->config.legacy)
		hpet->config.legacy(hpet->config.opaque, state->config & CONFIG_LEGACY);
	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		if ((hpet->s.status & BIT(n)) && (hpet->s.timer[n].config & TIMER_ENABLE))
			drive(hpet, n, true);
	}
	arm_all(hpet);
	return 0;
}
