/*
 * A machine's clock and timers: see clock.h.
 *
 * Timers are few (a handful a vCPU), so the event thread scans a list for the earliest deadline.
 */
#include "machine/clock.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/util.h"
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#define NEVER UINT64_MAX

struct device_timer {
	struct machine_clock *clock;
	struct device_timer *next;
	uint64_t deadline_ns; /* guest time; NEVER when not armed */
	void (*fire)(void *opaque);
	void *opaque;
};

struct machine_clock {
	struct timer_source source; /* first: the source is the clock */
	pthread_mutex_t lock;
	pthread_cond_t changed, idle;
	pthread_t thread;
	struct device_timer *timers;
	struct device_timer *firing; /* its callback runs now */
	bool quit;

	/* Guest time = host monotonic - origin while running, `held` while not. */
	_Atomic bool running;
	_Atomic uint64_t origin_ns, held_ns;
	uint64_t tsc_hz;
	bool tsc_native;
	_Atomic uint64_t tsc_offset; /* guest TSC = host TSC + offset, while running */
};

static struct machine_clock *clock_of(struct timer_source *source)
{
	return container_of(source, struct machine_clock, source);
}

/* ---- the TSC ---- */

static bool host_tsc_invariant(void)
{
	unsigned a, b, c, d;

	return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & 1u << 8);
}

/* What a hypervisor above us (KVM's timing leaf) or the processor itself says; 0: neither. */
static uint64_t host_tsc_hz_told(void)
{
	unsigned a, b, c, d;

	__cpuid(1, a, b, c, d);
	if (c & 1u << 31) {
		__cpuid(0x40000000, a, b, c, d);
		if (a >= 0x40000010 && b == 0x4b4d564b) {
			__cpuid(0x40000010, a, b, c, d);
			if (a)
				return (uint64_t)a * 1000;
		}
	}
	if (__get_cpuid(0x15, &a, &b, &c, &d) && a && b && c)
		return (uint64_t)c * b / a;
	return 0;
}

static uint64_t host_tsc_hz_measured(void)
{
	const uint64_t span_ns = 20000000;
	uint64_t t0 = clock_monotonic_ns(), c0 = __rdtsc(), t1, c1;

	do {
		t1 = clock_monotonic_ns();
		c1 = __rdtsc();
	} while (t1 - t0 < span_ns);
	return (uint64_t)((unsigned __int128)(c1 - c0) * 1000000000u / (t1 - t0));
}

static uint64_t host_tsc(const struct machine_clock *clock)
{
	return clock->tsc_native ? __rdtsc() : clock_monotonic_ns();
}

static uint64_t ns_to_tsc(const struct machine_clock *clock, uint64_t ns)
{
	return (uint64_t)((unsigned __int128)ns * clock->tsc_hz / 1000000000u);
}

/* ---- guest time ---- */

static uint64_t guest_now_ns(struct timer_source *source)
{
	struct machine_clock *clock = clock_of(source);

	return clock->running ? clock_monotonic_ns() - clock->origin_ns : clock->held_ns;
}

static uint64_t guest_realtime_ns(struct timer_source *source)
{
	return clock_realtime_ns();
}

uint64_t machine_clock_tsc(struct machine_clock *clock)
{
	if (clock->running)
		return host_tsc(clock) + clock->tsc_offset;
	return ns_to_tsc(clock, clock->held_ns);
}

uint64_t machine_clock_tsc_to_ns(struct machine_clock *clock, uint64_t tsc)
{
	int64_t ahead = (int64_t)(tsc - machine_clock_tsc(clock));
	int64_t ns = (int64_t)((__int128)ahead * 1000000000 / (int64_t)clock->tsc_hz);
	int64_t at = (int64_t)guest_now_ns(&clock->source) + ns;

	return at > 0 ? (uint64_t)at : 0;
}

uint64_t machine_clock_tsc_hz(const struct machine_clock *clock)
{
	return clock->tsc_hz;
}

uint64_t machine_clock_boot_realtime_ns(struct machine_clock *clock)
{
	return clock_realtime_ns() - guest_now_ns(&clock->source);
}

void machine_clock_run(struct machine_clock *clock)
{
	AUTO_LOCK(&clock->lock);
	if (clock->running)
		return;
	clock->origin_ns = clock_monotonic_ns() - clock->held_ns;
	clock->tsc_offset = ns_to_tsc(clock, clock->held_ns) - host_tsc(clock);
	clock->running = true;
	pthread_cond_signal(&clock->changed);
}

void machine_clock_hold(struct machine_clock *clock)
{
	AUTO_LOCK(&clock->lock);
	if (!clock->running)
		return;
	clock->held_ns = clock_monotonic_ns() - clock->origin_ns;
	clock->running = false;
	pthread_cond_signal(&clock->changed);
}

/* ---- timers ---- */

static struct device_timer *timer_new(struct timer_source *source, void (*fire)(void *opaque),
	void *opaque)
{
	struct machine_clock *clock = clock_of(source);
	struct device_timer *timer = calloc(1, sizeof(*timer));

	if (!timer)
		return NULL;
	*timer = (struct device_timer){ .clock = clock, .deadline_ns = NEVER, .fire = fire,
		.opaque = opaque };
	AUTO_LOCK(&clock->lock);
	timer->next = clock->timers;
	clock->timers = timer;
	return timer;
}

static void timer_arm(struct device_timer *timer, uint64_t deadline_ns)
{
	AUTO_LOCK(&timer->clock->lock);
	timer->deadline_ns = deadline_ns;
	pthread_cond_signal(&timer->clock->changed);
}

static void timer_cancel(struct device_timer *timer)
{
	AUTO_LOCK(&timer->clock->lock);
	timer->deadline_ns = NEVER;
}

/* Waits for a callback under way, so the device may be freed next. */
static void timer_free(struct device_timer *timer)
{
	struct machine_clock *clock = timer->clock;

	pthread_mutex_lock(&clock->lock);
	while (clock->firing == timer && !pthread_equal(pthread_self(), clock->thread))
		pthread_cond_wait(&clock->idle, &clock->lock);
	for (struct device_timer **at = &clock->timers; *at; at = &(*at)->next) {
		if (*at == timer) {
			*at = timer->next;
			break;
		}
	}
	pthread_mutex_unlock(&clock->lock);
	free(timer);
}

static const struct timer_source_ops clock_timer_ops = {
	.now_ns = guest_now_ns,
	.realtime_ns = guest_realtime_ns,
	.create = timer_new,
	.free = timer_free,
	.arm = timer_arm,
	.cancel = timer_cancel,
};

static struct device_timer *earliest(struct machine_clock *clock)
{
	struct device_timer *found = NULL;

	for (struct device_timer *t = clock->timers; t; t = t->next)
		if (t->deadline_ns != NEVER && (!found || t->deadline_ns < found->deadline_ns))
			found = t;
	return found;
}

static void wait_until(struct machine_clock *clock, uint64_t host_ns)
{
	struct timespec ts = { .tv_sec = (time_t)(host_ns / 1000000000u),
		.tv_nsec = (long)(host_ns % 1000000000u) };

	pthread_cond_timedwait(&clock->changed, &clock->lock, &ts);
}

static void *event_thread(void *opaque)
{
	struct machine_clock *clock = opaque;

	pthread_mutex_lock(&clock->lock);
	while (!clock->quit) {
		struct device_timer *timer = clock->running ? earliest(clock) : NULL;

		if (!timer) {
			pthread_cond_wait(&clock->changed, &clock->lock);
			continue;
		}
		if (timer->deadline_ns > guest_now_ns(&clock->source)) {
			uint64_t at = timer->deadline_ns + clock->origin_ns;
			wait_until(clock, at < timer->deadline_ns ? (uint64_t)INT64_MAX : at);
			continue;
		}
		timer->deadline_ns = NEVER;
		clock->firing = timer;
		pthread_mutex_unlock(&clock->lock);
		timer->fire(timer->opaque);
		pthread_mutex_lock(&clock->lock);
		clock->firing = NULL;
		pthread_cond_broadcast(&clock->idle);
	}
	pthread_mutex_unlock(&clock->lock);
	return NULL;
}

int machine_clock_create(struct machine_clock **ret_clock, struct error *err)
{
	struct machine_clock *clock = calloc(1, sizeof(*clock));
	pthread_condattr_t attr;

	if (!clock)
		return error_set(err, ENOMEM, "no memory for the machine's clock");
	clock->source.ops = &clock_timer_ops;
	clock->tsc_native = host_tsc_invariant();
	if (clock->tsc_native) {
		clock->tsc_hz = host_tsc_hz_told();
		if (!clock->tsc_hz)
			clock->tsc_hz = host_tsc_hz_measured();
	} else {
		clock->tsc_hz = 1000000000u;
	}
	pthread_mutex_init(&clock->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&clock->changed, &attr);
	pthread_cond_init(&clock->idle, NULL);
	pthread_condattr_destroy(&attr);
	int status = pthread_create(&clock->thread, NULL, event_thread, clock);
	if (status) {
		free(clock);
		return error_set_errno(err, status, "can't start the machine's clock thread");
	}
	*ret_clock = clock;
	return 0;
}

void machine_clock_free(struct machine_clock *clock)
{
	if (!clock)
		return;
	pthread_mutex_lock(&clock->lock);
	clock->quit = true;
	pthread_cond_signal(&clock->changed);
	pthread_mutex_unlock(&clock->lock);
	pthread_join(clock->thread, NULL);
	pthread_mutex_destroy(&clock->lock);
	pthread_cond_destroy(&clock->changed);
	pthread_cond_destroy(&clock->idle);
	free(clock);
}

struct timer_source *machine_clock_source(struct machine_clock *clock)
{
	return &clock->source;
}
