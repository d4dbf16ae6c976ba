/*
 * Holds the machine and lets it go on, for callers that must not wait: a pause waits for the vCPUs, and one of them may
 * wait for the caller (the reset of a device over MMIO waits for the I/O loop). A thread of its own does it.
 *
 * Threads: vmm_hold_set() any; the others one at a time.
 */
#ifndef LODGE_VMM_HOLD_H
#define LODGE_VMM_HOLD_H

#include "base/types.h"
#include "base/util.h"

struct vmm_hold;

/* apply: pause that machine, or resume it; on the thread, and may take its time. Errors: -errno. */
MUST_CHECK int vmm_hold_create(struct vmm_hold **ret_hold, void (*apply)(void *machine, bool hold));
void vmm_hold_free(struct vmm_hold *hold); /* NULL is allowed. No machine is there any more */

/* Returns at once. The last word counts. */
void vmm_hold_set(struct vmm_hold *hold, bool on);

/* The machine that it is about from now on, which runs; NULL: none. Returns when the one before is not touched any more:
 * that one has been asked to stop. */
void vmm_hold_machine(struct vmm_hold *hold, void *machine);

#endif
