/*
 * The machine's watchdog, and what is done when it barks.
 */
#ifndef LODGE_MACHINE_WATCHDOG_H
#define LODGE_MACHINE_WATCHDOG_H

#include "base/util.h"

struct error;
struct machine;
struct watchdog;

/* The machine's board exists; it has a PCI bus. NULL is given where the configuration wants none. Errors: with a line
 * for people. */
MUST_CHECK int watchdog_create(
	struct watchdog **ret_watchdog, struct machine *machine, struct error *err);
/* NULL is allowed. No vCPU runs. Before the board. */
void watchdog_free(struct watchdog *watchdog);

#endif
