/*
 * A machine's time: the guest clock (monotonic, stops while the machine is paused), the guest TSC that
 * runs with it, and the timers of its devices, which fire on one event thread.
 *
 * The TSC is guest time in other units and not the host's TSC with an offset: so all clocks of a guest
 * agree, on all vCPUs and across pauses, and none drifts against the host's, whose kernel keeps
 * CLOCK_MONOTONIC right while a rate measured once is always a little wrong. Where reading it must be fast
 * it follows the host's TSC for a millisecond at a time (machine_clock_line()). Engines that run guest code
 * on hardware have a TSC of their own.
 *
 * A virtual clock moves only when it is told to, and starts no thread: see machine/virtual.h.
 *
 * Threads: everything but create, free and advance may be called on any thread.
 */
#ifndef LODGE_MACHINE_CLOCK_H
#define LODGE_MACHINE_CLOCK_H

#include "device/timer_source.h"
#include "base/types.h"

struct machine_clock;
struct engine_tsc_line;
struct error;

/* Starts stopped, at guest time 0. Starts the event thread. */
int machine_clock_create(struct machine_clock **ret_clock, struct error *err);
/* A virtual one: at guest time 0 it is start_realtime_ns since 1970 UTC. Its TSC runs at 1 GHz; run and hold do
 * nothing. Errors: -ENOMEM. */
int machine_clock_create_virtual(struct machine_clock **ret_clock, uint64_t start_realtime_ns,
	struct error *err);
/* Stops the event thread; all timers must have been freed. */
void machine_clock_free(struct machine_clock *clock);

/* Let guest time run, or hold it. Callbacks under way may still finish. */
void machine_clock_run(struct machine_clock *clock);
void machine_clock_hold(struct machine_clock *clock);

/* Virtual clocks only. Set the time, never back, and fire on this thread what is due, in the order of the
 * deadlines; callbacks read the new time. One thread at a time. */
void machine_clock_advance(struct machine_clock *clock, uint64_t now_ns);
/* The earliest deadline of all timers; UINT64_MAX: none is armed. */
uint64_t machine_clock_next(struct machine_clock *clock);

/* What devices are given. */
struct timer_source *machine_clock_source(struct machine_clock *clock);

uint64_t machine_clock_tsc_hz(const struct machine_clock *clock);
/* At guest time 0 it is 0. */
uint64_t machine_clock_tsc(struct machine_clock *clock);
/*
 * The line that the TSC follows now: some nanoseconds off the above. Whoever reads the TSC by lines sees one that
 * never goes back, on all threads, as a line begins where the one before ended or later; who has a line must
 * not use it any more once the clock was held. False: the clock is virtual or held, or the host's TSC is not
 * what its kernel's clock goes by.
 */
bool machine_clock_line(struct machine_clock *clock, struct engine_tsc_line *ret_line);
/* The first guest time at which the TSC is `tsc`; UINT64_MAX: later than time can say. */
uint64_t machine_clock_tsc_to_ns(const struct machine_clock *clock, uint64_t tsc);

/* Wall clock: guest time 0 in ns since 1970 UTC. */
uint64_t machine_clock_boot_realtime_ns(struct machine_clock *clock);

#endif
