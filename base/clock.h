/*
 * The host's clocks, in nanoseconds.
 */
#ifndef LODGE_BASE_CLOCK_H
#define LODGE_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_US  1000ULL
#define NS_PER_MS  1000000ULL
#define NS_PER_SEC 1000000000ULL

/* Never goes back; stands still while the host sleeps. */
uint64_t clock_monotonic_ns(void);
/* Since 1970, UTC; may jump when somebody sets the host's clock. */
uint64_t clock_realtime_ns(void);
/* The same time as the host's calls want it. */
struct timespec clock_timespec(uint64_t ns);

#endif
