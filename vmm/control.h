/*
 * The control socket: a running machine is told things by its user's programs (docs/control.md, api/call.h).
 *
 * A call that takes its time (a pause waits for the vCPUs, which may wait for the I/O loop) has a thread while it lasts;
 * the others are answered on the loop.
 *
 * Threads: the functions here on the machine owner's, which is not the loop's; the loop runs.
 */
#ifndef LODGE_VMM_CONTROL_H
#define LODGE_VMM_CONTROL_H

#include "base/util.h"

#include <stdbool.h>

struct error;
struct loop;
struct machine;
struct vmm_config;
struct vmm_control;
struct vmm_current;

struct vmm_control_config {
	struct loop *io;
	const struct vmm_config *config;
	struct vmm_current *current;
	/* The user wants the end: on the loop's thread. */
	void (*quit)(void *opaque);
	/* vmm_disks_config's, of disks that are attached. */
	void (*hold)(void *opaque, bool hold);
	void *opaque;
};

/* At config->config->control. Errors: with a line for people. */
MUST_CHECK int vmm_control_open(const struct vmm_control_config *config,
	struct vmm_control **ret_control, struct error *err);
/* A new machine, which is not started yet: it gets what earlier ones were told. NULL is allowed. */
void vmm_control_renew(struct vmm_control *control, struct machine *machine);
/* No machine is there any more, nor will be (vmm_current_end()). Closes the socket and what was attached, when no call is
 * under way any more; clients stay connected. NULL is allowed. */
void vmm_control_end(struct vmm_control *control);
/* Hang up: all is over. NULL is allowed. */
void vmm_control_free(struct vmm_control *control);

#endif
