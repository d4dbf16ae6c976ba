/*
 * Boot from inside a disk that is open on the I/O loop: boot/disk.h on a struct block.
 */
#ifndef LODGE_VMM_DISK_BOOT_H
#define LODGE_VMM_DISK_BOOT_H

#include "boot/disk.h"
#include "device/block.h"

struct loop;

/* What lodge run was told about the command line of what is found. */
struct vmm_disk_boot {
	bool on;
	const char *cmdline; /* in place of the disk's own; NULL: that */
	const char *append;  /* behind it; NULL: nothing */
};

struct vmm_disk_booted {
	struct boot_found found;
	char *cmdline;
};

/* Blocks; not on the loop's thread, which runs. No machine uses the disk. Errors: with a line for people. */
MUST_CHECK int vmm_disk_boot(const struct vmm_disk_boot *boot, struct loop *io, struct block *block,
	struct vmm_disk_booted *ret_booted, struct error *err);
/* A zeroed one may be done too. */
void vmm_disk_booted_done(struct vmm_disk_booted *booted);

#endif
