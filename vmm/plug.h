/*
 * Devices that a user attaches to a running machine, and detaches: disks and networks, in the words of --disk and --net.
 * What is attached stays so when the guest resets, which makes a new machine.
 *
 * Threads: vmm_plug_each() any; the others any but the loop's, which runs, and the vCPUs'.
 */
#ifndef LODGE_VMM_PLUG_H
#define LODGE_VMM_PLUG_H

#include "base/util.h"

#include <stdbool.h>

#define VMM_PLUG_NAME_BYTES 16 /* with its end */

struct error;
struct loop;
struct machine;
struct vmm_current;
struct vmm_plug;

struct vmm_plug_config {
	struct loop *io;
	unsigned cpus;
	/* vmm_disks_config's */
	void (*hold)(void *opaque, bool hold);
	void *opaque;
};

/* NULL: no memory. */
struct vmm_plug *vmm_plug_create(const struct vmm_plug_config *config);
/* No machine has anything of it. NULL is allowed. */
void vmm_plug_free(struct vmm_plug *plug);

/* One of disk and net is what --disk or --net say, the other NULL. name: NULL: one is chosen; ret_name gets it. The guest may
 * take a while to find the device. Opening the disk or network may take its time, too, in which the machine may end and
 * another begin. Errors: with a line for people; -ECANCELED: there is no machine any more. */
MUST_CHECK int vmm_plug_attach(struct vmm_plug *plug, struct vmm_current *current, const char *disk,
	const char *net, const char *name, char ret_name[static VMM_PLUG_NAME_BYTES],
	struct error *err);
/* Asks the guest to let go of it, and waits. Errors: with a line for people; -ETIMEDOUT, when it is still attached. */
MUST_CHECK int vmm_plug_detach(struct vmm_plug *plug, struct machine *machine, const char *name,
	unsigned timeout_ms, struct error *err);

/* A new machine, not started yet, gets what is attached. What it does not take is said, and stays away. */
void vmm_plug_again(struct vmm_plug *plug, struct machine *machine);

/* All that is attached, as it was asked for. fn must not call back. */
void vmm_plug_each(struct vmm_plug *plug,
	void (*fn)(void *opaque, const char *name, bool is_net, const char *text), void *opaque);

#endif
