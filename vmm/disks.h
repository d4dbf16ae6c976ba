/*
 * The disks of a machine: its images are opened on the I/O loop and stay open while the machine is made anew.
 *
 * A disk whose requests have to wait (its host's file system is full) holds the machine until they succeed.
 *
 * Threads: the caller's, which is not the loop's; the loop runs.
 */
#ifndef LODGE_VMM_DISKS_H
#define LODGE_VMM_DISKS_H

#include "backend/disk/block.h"
#include "machine/machine.h"

/* One --disk. */
struct vmm_disk {
	char *path; /* or an NBD URI */
	struct disk_block_options options;
	enum machine_disk_kind kind;
	char *serial;		       /* NULL: none */
	enum virtio_blk_errors errors; /* what a request that fails does */
	unsigned queues;	       /* 0: as many as vCPUs */
};

struct vmm_disks;

struct vmm_disks_config {
	struct loop *io;
	const struct vmm_disk *disks;
	unsigned count, cpus;
	/* Hold the machine, or let it go on. On the loop's thread. */
	void (*hold)(void *opaque, bool hold);
	void *opaque;
};

/* Errors: with a line for people; all is closed again. */
MUST_CHECK int vmm_disks_open(
	const struct vmm_disks_config *config, struct vmm_disks **ret_disks, struct error *err);
/* NULL is allowed. No machine has them. */
void vmm_disks_close(struct vmm_disks *disks);

/* For machine_config, valid until they are closed. */
const struct machine_disk *vmm_disks_list(const struct vmm_disks *disks);

#endif
