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
#include "engine/engine.h"
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define NEVER UINT64_MAX

struct device_timer {
	struct machine_clock *clock;
	struct device_timer *next;
	uint64_t deadline_ns; /* guest time; NEVER when not armed */
	void (*fire)(void *opaque);
	void *opaque;
};

/* Two clocks at one moment. */
struct sample {
	uint64_t host, guest; /* TSCs */
	uint64_t ticks; /* it took */
};

struct machine_clock {
	struct timer_source source; /* first: the source is the clock */
	pthread_mutex_t lock;
	pthread_cond_t changed, idle;
	pthread_t thread;
	struct device_timer *timers;
	struct device_timer *firing; /* its callback runs now */
	uint64_t sleeps_until_ns; /* guest time the event thread waits for; 0: no need to wake it */
	bool quit;
	bool is_virtual; /* `base` never runs, and `thread` is who advanced it last */
	uint64_t start_realtime_ns; /* virtual: wall clock at guest time 0 */

	/* One word, so that readers need no lock: host time at guest time 0, times 2, + 1 while running;
	 * the guest time, times 2, while held. */
	_Atomic uint64_t base;
	uint64_t tsc_hz;

	/* machine_clock_line(); under lock. */
	bool has_lines;
	struct engine_tsc_line line;
	uint64_t rate; /* guest's ticks for one of the host's, << 32 */
	struct sample since; /* what it was measured from; host 0: nothing yet */
};

#define BASE_RUNNING 1u

static struct machine_clock *clock_of(struct timer_source *source)
{
	return container_of(source, struct machine_clock, source);
}

/* ---- the host's TSC ---- */

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
	return (uint64_t)((unsigned __int128)(c1 - c0) * NS_PER_SEC / (t1 - t0));
}

/* ---- guest time ---- */

static uint64_t guest_now_ns(struct timer_source *source)
{
	/* Before the host's clock: a thread that is slow between the two reads a later time, never one
	 * before a timer that was found due. */
	uint64_t base = clock_of(source)->base;

	return base & BASE_RUNNING ? clock_monotonic_ns() - (uint64_t)((int64_t)base >> 1)
				   : base >> 1;
}

static uint64_t guest_realtime_ns(struct timer_source *source)
{
	const struct machine_clock *clock = clock_of(source);

	return clock->is_virtual ? clock->start_realtime_ns + guest_now_ns(source) :
				   clock_realtime_ns();
}

/* Whole seconds apart, so that nothing overflows 64 bits. */
uint64_t machine_clock_tsc(struct machine_clock *clock)
{
	uint64_t ns = guest_now_ns(&clock->source);

	return ns / NS_PER_SEC * clock->tsc_hz + ns % NS_PER_SEC * clock->tsc_hz / NS_PER_SEC;
}

/* ---- lines: the guest's TSC by the host's ---- */

#define LINES_PER_SEC	 1000
/* Host's ticks: that the rate is first measured over; after which the measurement begins anew. */
#define RATE_TICKS_MIN	 (1u << 22)
#define RATE_TICKS_MAX	 (1u << 27)
#define SAMPLE_TICKS_MAX 256 /* that a good sample takes */
#define SAMPLE_TICKS_BAD 8192 /* no rate is measured with it */
#define SAMPLE_TRIES	 4
#define SKEW_TICKS	 65536 /* a processor's TSC may be behind another's by less */

/* A host whose kernel does not trust its TSC has another clock. */
static bool host_tsc_is_clock(void)
{
	AUTO_CLOSE int fd = open("/sys/devices/system/clocksource/clocksource0/current_clocksource",
		O_RDONLY | O_CLOEXEC);
	char name[8];

	return fd >= 0 && read(fd, name, sizeof(name)) == 4 && !memcmp(name, "tsc\n", 4);
}

/* The thread may lose its processor between the two clocks: the best of some. */
static struct sample line_sample(struct machine_clock *clock)
{
	struct sample best = {.ticks = UINT64_MAX};

	for (unsigned i = 0; i < SAMPLE_TRIES && best.ticks > SAMPLE_TICKS_MAX; i++) {
		uint64_t before = __rdtsc(), guest = machine_clock_tsc(clock), ticks = __rdtsc() - before;
		if (ticks < best.ticks)
			best = (struct sample){before + ticks / 2, guest, ticks};
	}
	return best;
}

static uint64_t line_at(const struct engine_tsc_line *line, uint64_t ticks)
{
	return line->guest + (ticks * line->scale >> 32);
}

/* Nobody reads this line any more. */
static void line_end(struct machine_clock *clock)
{
	uint64_t ticks = __rdtsc() - clock->line.host;

	clock->line.span = MIN(clock->line.span, ticks);
	clock->since.host = 0;
}

static void measure_rate(struct machine_clock *clock, const struct sample *now)
{
	const uint64_t ticks = now->host - clock->since.host;

	if (now->ticks > SAMPLE_TICKS_BAD || (clock->since.host && ticks < RATE_TICKS_MIN))
		return;
	if (!clock->since.host || ticks >> 40) {
		clock->since = *now;
		return;
	}
	clock->rate = (uint64_t)((unsigned __int128)(now->guest - clock->since.guest) << 32) / ticks;
	if (ticks > RATE_TICKS_MAX)
		clock->since = *now;
}

/*
 * A line that begins now. It never begins before the end of the last one: if that went too far, because the
 * rate changed or was not measured well, this one is flatter by as much.
 */
static void line_begin(struct machine_clock *clock, struct engine_tsc_line *line)
{
	const struct sample now = line_sample(clock);
	const uint64_t floor = line_at(line, line->span), guest = MAX(now.guest, floor);

	measure_rate(clock, &now);
	line->span = clock->tsc_hz / LINES_PER_SEC;
	line->host = now.host;
	line->guest = guest;
	line->scale = clock->rate -
		      MIN(((guest - now.guest) << 32) / line->span, clock->rate / 256);
}

bool machine_clock_line(struct machine_clock *clock, struct engine_tsc_line *ret_line)
{
	AUTO_LOCK(&clock->lock);
	if (!clock->has_lines || !(clock->base & BASE_RUNNING))
		return false;
	/* An absurd rate: the host's clock does not go by its TSC at all. */
	if (clock->rate >> 33 || !(clock->rate >> 31))
		return clock->has_lines = false;
	if (__rdtsc() + SKEW_TICKS - clock->line.host >= clock->line.span + SKEW_TICKS)
		line_begin(clock, &clock->line);
	*ret_line = clock->line;
	return true;
}

uint64_t machine_clock_tsc_to_ns(const struct machine_clock *clock, uint64_t tsc)
{
	uint64_t seconds_ns, hz = clock->tsc_hz;

	/* Rounded up: at that time the TSC has the value. */
	if (__builtin_mul_overflow(tsc / hz, NS_PER_SEC, &seconds_ns) ||
		__builtin_add_overflow(
			seconds_ns, (tsc % hz * NS_PER_SEC + hz - 1) / hz, &seconds_ns))
		return NEVER;
	return seconds_ns;
}

uint64_t machine_clock_tsc_hz(const struct machine_clock *clock)
{
	return clock->tsc_hz;
}

uint64_t machine_clock_boot_realtime_ns(struct machine_clock *clock)
{
	return clock->is_virtual ? clock->start_realtime_ns :
				   clock_realtime_ns() - guest_now_ns(&clock->source);
}

void machine_clock_run(struct machine_clock *clock)
{
	AUTO_LOCK(&clock->lock);
	if (clock->is_virtual || clock->base & BASE_RUNNING)
		return;
	clock->base = (clock_monotonic_ns() - (clock->base >> 1)) << 1 | BASE_RUNNING;
	pthread_cond_signal(&clock->changed);
}

void machine_clock_hold(struct machine_clock *clock)
{
	AUTO_LOCK(&clock->lock);
	if (!(clock->base & BASE_RUNNING))
		return;
	line_end(clock);
	clock->base = guest_now_ns(&clock->source) << 1;
	pthread_cond_signal(&clock->changed);
}

/* ---- timers ---- */

static struct device_timer *timer_new(
	struct timer_source *source, void (*fire)(void *opaque), void *opaque)
{
	struct machine_clock *clock = clock_of(source);
	struct device_timer *timer = calloc(1, sizeof(*timer));

	if (!timer)
		return NULL;
	*timer = (struct device_timer){
		.clock = clock, .deadline_ns = NEVER, .fire = fire, .opaque = opaque};
	AUTO_LOCK(&clock->lock);
	timer->next = clock->timers;
	clock->timers = timer;
	return timer;
}

static void timer_arm(struct device_timer *timer, uint64_t deadline_ns)
{
	AUTO_LOCK(&timer->clock->lock);
	timer->deadline_ns = deadline_ns;
	if (deadline_ns < timer->clock->sleeps_until_ns)
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

/* Wait for the earliest timer, or for a change. */
static void sleep_until(struct machine_clock *clock, const struct device_timer *timer)
{
	/* Further ahead than any machine lives, and no host time overflows. */
	const uint64_t forever_ns = INT64_MAX / 4;
	uint64_t host_ns = (uint64_t)((int64_t)clock->base >> 1);

	clock->sleeps_until_ns = timer ? timer->deadline_ns : NEVER;
	if (clock->sleeps_until_ns >= forever_ns) {
		pthread_cond_wait(&clock->changed, &clock->lock);
	} else {
		host_ns += clock->sleeps_until_ns;
		const struct timespec ts = clock_timespec(host_ns);
		pthread_cond_timedwait(&clock->changed, &clock->lock, &ts);
	}
	clock->sleeps_until_ns = 0;
}

/* Call the timer back, without the lock. */
static void fire(struct machine_clock *clock, struct device_timer *timer)
{
	timer->deadline_ns = NEVER;
	clock->firing = timer;
	pthread_mutex_unlock(&clock->lock);
	timer->fire(timer->opaque);
	pthread_mutex_lock(&clock->lock);
	clock->firing = NULL;
	pthread_cond_broadcast(&clock->idle);
}

static void *event_thread(void *opaque)
{
	struct machine_clock *clock = opaque;

	pthread_setname_np(pthread_self(), "clock");
	/* The kernel may round wake-ups by 50 us: as much as a disk takes. */
	prctl(PR_SET_TIMERSLACK, 1);
	pthread_mutex_lock(&clock->lock);
	while (!clock->quit) {
		struct device_timer *timer = earliest(clock);

		if (!(clock->base & BASE_RUNNING)) /* run() wakes it */
			pthread_cond_wait(&clock->changed, &clock->lock);
		else if (timer && timer->deadline_ns <= guest_now_ns(&clock->source))
			fire(clock, timer);
		else
			sleep_until(clock, timer);
	}
	pthread_mutex_unlock(&clock->lock);
	return NULL;
}

/* What the guest is told: the host's rate, which KVM gives its guests, or a round one. */
static uint64_t choose_tsc_hz(void)
{
	if (!host_tsc_invariant())
		return NS_PER_SEC;
	uint64_t told = host_tsc_hz_told();
	return told ? told : host_tsc_hz_measured();
}

static struct machine_clock *clock_new(struct error *err)
{
	struct machine_clock *clock = calloc(1, sizeof(*clock));
	pthread_condattr_t attr;

	if (!clock) {
		error_set(err, ENOMEM, "no memory for the machine's clock");
		return NULL;
	}
	clock->source.ops = &clock_timer_ops;
	pthread_mutex_init(&clock->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&clock->changed, &attr);
	pthread_cond_init(&clock->idle, NULL);
	pthread_condattr_destroy(&attr);
	return clock;
}

static void clock_delete(struct machine_clock *clock)
{
	pthread_mutex_destroy(&clock->lock);
	pthread_cond_destroy(&clock->changed);
	pthread_cond_destroy(&clock->idle);
	free(clock);
}

int machine_clock_create(struct machine_clock **ret_clock, struct error *err)
{
	struct machine_clock *clock = clock_new(err);

	if (!clock)
		return -ENOMEM;
	clock->tsc_hz = choose_tsc_hz();
	clock->has_lines = host_tsc_invariant() && host_tsc_is_clock();
	clock->rate = 1ull << 32;
	int status = pthread_create(&clock->thread, NULL, event_thread, clock);
	if (status) {
		clock_delete(clock);
		return error_set_errno(err, status, "can't start the machine's clock thread");
	}
	*ret_clock = clock;
	return 0;
}

int machine_clock_create_virtual(struct machine_clock **ret_clock, uint64_t start_realtime_ns,
	struct error *err)
{
	struct machine_clock *clock = clock_new(err);

	if (!clock)
		return -ENOMEM;
	clock->is_virtual = true;
	clock->start_realtime_ns = start_realtime_ns;
	clock->tsc_hz = NS_PER_SEC;
	clock->thread = pthread_self();
	*ret_clock = clock;
	return 0;
}

static void stop_thread(struct machine_clock *clock)
{
	pthread_mutex_lock(&clock->lock);
	clock->quit = true;
	pthread_cond_signal(&clock->changed);
	pthread_mutex_unlock(&clock->lock);
	pthread_join(clock->thread, NULL);
}

void machine_clock_free(struct machine_clock *clock)
{
	if (!clock)
		return;
	if (!clock->is_virtual)
		stop_thread(clock);
	clock_delete(clock);
}

void machine_clock_advance(struct machine_clock *clock, uint64_t now_ns)
{
	struct device_timer *timer;

	AUTO_LOCK(&clock->lock);
	clock->thread = pthread_self();
	clock->base = MAX(now_ns, clock->base >> 1) << 1;
	while ((timer = earliest(clock)) && timer->deadline_ns <= clock->base >> 1)
		fire(clock, timer);
}

uint64_t machine_clock_next(struct machine_clock *clock)
{
	AUTO_LOCK(&clock->lock);
	const struct device_timer *timer = earliest(clock);

	return timer ? timer->deadline_ns : NEVER;
}

struct timer_source *machine_clock_source(struct machine_clock *clock)
{
	return &clock->source;
}
