/*
 * Boot of a disk with no kernel given: read kernel, initial RAM disk and command line from inside it, as its boot
 * loader would, and hand them to the loaders of this room. No firmware runs.
 *
 * Looked at, in this order, are the partitions (GPT, MBR) of the disk or the disk as a whole; in each, if it is ext2,
 * ext3 or ext4: GRUB's configuration, Boot Loader Specification entries, extlinux's configuration, and the links
 * /vmlinuz and /boot/vmlinuz.
 *
 * The disk is hostile. All that is read of it is bounded (bytes, reads, depth), checked after it was read, and only
 * becomes a kernel that boot_load() looks at as at any other.
 */
#ifndef LODGE_BOOT_DISK_H
#define LODGE_BOOT_DISK_H

#include "base/util.h"

#include <stdint.h>

struct error;

/* Where the disk's bytes are. read: everything or a negative errno; ranges are within size_bytes. */
struct boot_source {
	int (*read)(void *opaque, void *buf, uint64_t bytes, uint64_t offset);
	void *opaque;
	uint64_t size_bytes;
};

struct boot_found {
	int kernel, initrd;   /* memory files; initrd -1: none */
	char *cmdline;	      /* the disk's own; "" if it has none */
	char from[128];	      /* for people: partition and file */
	char partition[80];   /* root=... that names this partition, or "" */
};

/* Errors: -ENOENT (nothing there can be booted), the source's, with a line for people. */
MUST_CHECK int boot_disk_find(const struct boot_source *source, struct boot_found *ret_found, struct error *err);
/* Closes and frees. A zeroed one may be done too. */
void boot_found_done(struct boot_found *found);

#endif
