/*
 * A machine's time: the guest clock (monotonic, stops while the machine is paused), the guest TSC that
 * runs with it, and the timers of its devices, which fire on one event thread.
 *
 * The TSC is the host's with an offset where the host's is invariant, else one of 1 GHz made from the
 * monotonic clock. All vCPUs see one TSC (each may add its own TSC_ADJUST).
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
uint64_t machine_clock_tsc(struct machine_clock *clock);
/* Guest time at which the TSC will be (or was) `tsc`. */
uint64_t machine_clock_tsc_to_ns(struct machine_clock *clock, uint64_t tsc);

/* Wall clock: guest time 0 in ns since 1970 UTC. */
uint64_t machine_clock_boot_realtime_ns(struct machine_clock *clock);

#endif
