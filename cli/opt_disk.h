/*
 * --disk, into what vmm_config wants.
 */
#ifndef LODGE_CLI_OPT_DISK_H
#define LODGE_CLI_OPT_DISK_H

#include "vmm/disks.h"

#define OPT_DISKS_MAX 24

/* Those given so far; starts zeroed. */
struct opt_disk {
	struct vmm_disk disks[OPT_DISKS_MAX];
	unsigned count;
};

/* Errors: -EINVAL, -ENOMEM, with a line for people. */
MUST_CHECK int opt_disk_add(struct opt_disk *opt, const char *value, struct error *err);
void opt_disk_done(struct opt_disk *opt);

#endif
