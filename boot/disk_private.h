/*
 * What the parts of booting from a disk share. Not for other rooms: see disk.h.
 */
#ifndef LODGE_BOOT_DISK_PRIVATE_H
#define LODGE_BOOT_DISK_PRIVATE_H

#include "boot/disk.h"

#include <stdbool.h>
#include <stddef.h>

/* A disk, and how much of it may still be read: what bounds every loop that follows a hostile structure. */
struct boot_reader {
	const struct boot_source *source;
	uint64_t bytes_left;
	unsigned reads_left;
};

/* Errors: the source's; -EFBIG (enough was read); -EIO (beyond the end). */
MUST_CHECK int boot_read(struct boot_reader *reader, void *buf, uint64_t bytes, uint64_t offset);

/* ---- partition.c ---- */

#define BOOT_PARTITIONS_MAX 128

struct boot_partition {
	uint64_t offset, bytes;
	unsigned number; /* 0: the whole disk */
	char root[64];	 /* PARTUUID=..., or "" */
};

/* Fills `list`, of BOOT_PARTITIONS_MAX, and returns how many; a disk without partitions is one. */
MUST_CHECK int boot_partitions(struct boot_reader *reader, struct boot_partition *list);

/* ---- ext.c ---- */

struct ext {
	struct boot_reader *reader;
	uint64_t offset, bytes;
	uint32_t block_bytes, inodes, inodes_per_group, groups, first_block;
	uint16_t inode_bytes, desc_bytes;
	char uuid[37];
};

struct ext_file {
	uint32_t inode;
	uint16_t mode;
	uint32_t flags;
	uint64_t bytes;
	uint8_t map[60];
};

/* Errors: -EINVAL (no such file system, or with features that are not read here), those of boot_read(). */
MUST_CHECK int ext_open(struct ext *fs, struct boot_reader *reader, uint64_t offset, uint64_t bytes);
/* Links are followed. Errors: -ENOENT, -ENOTDIR, -ELOOP, -EBADMSG (damaged) ... */
MUST_CHECK int ext_find(struct ext *fs, const char *path, struct ext_file *ret_file);
/* All of it; offset + bytes <= file->bytes. */
MUST_CHECK int ext_read(struct ext *fs, const struct ext_file *file, void *buf, uint64_t bytes, uint64_t offset);
/* Each name in a directory; stops when `each` returns true. */
MUST_CHECK int ext_list(struct ext *fs, const struct ext_file *dir,
	bool (*each)(void *opaque, const char *name, uint32_t inode), void *opaque);

/* ---- menu.c ---- */

#define BOOT_MENU_TEXT 4096
#define BOOT_MENU_INITRDS 4

/* What a boot loader's entry says. */
struct boot_entry {
	char kernel[BOOT_MENU_TEXT];
	char initrd[BOOT_MENU_INITRDS][BOOT_MENU_TEXT];
	unsigned initrd_count;
	char cmdline[BOOT_MENU_TEXT];
};

/* text ends in a zero. False: it holds no entry with a kernel. */
bool boot_menu_grub(const char *text, struct boot_entry *ret_entry);
bool boot_menu_bls(const char *text, struct boot_entry *ret_entry);
bool boot_menu_extlinux(const char *text, struct boot_entry *ret_entry);

#endif
