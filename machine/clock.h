/*
 * A machine's time: the guest clock (monotonic, stops while the machine is paused), the guest TSC that
 * runs with it, and the timers of its devices, which fire on one event thread.
 *
 * The TSC is guest time in other units and not the host's TSC with an offset: so all clocks of a guest
 * agree, on all vCPUs and across pauses, and none drifts against the host's, whose kernel keeps
 * CLOCK_MONOTONIC right while a rate measured once is always a little wrong. Engines that run guest code
 * on hardware have a TSC of their own.
 *
 * Threads: everything but create and free may be called on any thread.
 */
#ifndef LODGE_MACHINE_CLOCK_H
#define LODGE_MACHINE_CLOCK_H

#include "device/timer_source.h"
#include "base/types.h"

struct machine_clock;
struct error;

/* Starts stopped, at guest time 0. Starts the event thread. */
int machine_clock_create(struct machine_clock **ret_clock, struct error *err);
/* Stops the event thread; all timers must have been freed. */
void machine_clock_free(struct machine_clock *clock);

/* Let guest time run, or hold it. Callbacks under way may still finish. */
void machine_clock_run(struct machine_clock *clock);
void machine_clock_hold(struct machine_clock *clock);

/* What devices are given. */
struct timer_source *machine_clock_source(struct machine_clock *clock);

uint64_t machine_clock_tsc_hz(const struct machine_clock *clock);
/* At guest time 0 it is 0. */
uint64_t machine_clock_tsc(struct machine_clock *clock);
/* The first guest time at which the TSC is `tsc`; UINT64_MAX: later than time can say. */
uint64_t machine_clock_tsc_to_ns(const struct machine_clock *clock, uint64_t tsc);

/* Wall clock: guest time 0 in ns since 1970 UTC. */
uint64_t machine_clock_boot_realtime_ns(struct machine_clock *clock);

#endif
