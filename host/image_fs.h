/*
 * Filling an ext4 file system that lies in an image file, without mounting it: libext2fs writes it. Nothing of what
 * is added ever touches the host's own file system, so an archive's names, links, owners and device files need no
 * privilege and can reach nothing.
 *
 * Names are walked inside the new file system. A `..` is refused; a symbolic link on the way to a name is followed
 * as the guest would follow it, with the file system's own root as root.
 *
 * One thread.
 */
#ifndef LODGE_HOST_IMAGE_FS_H
#define LODGE_HOST_IMAGE_FS_H

#include "base/util.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct error;
struct image_fs;

#define IMAGE_PATH_MAX 4096

/* What is added. Pointers are the caller's and read during the call only. */
struct image_entry {
	const char *path;   /* from the root; leading slashes and dots do not matter */
	mode_t mode;	    /* kind and permissions */
	uint32_t uid, gid;
	int64_t mtime_s;
	const char *target; /* symbolic link */
	uint32_t dev_major, dev_minor;
	/* Regular files: fill buf with at most `size` bytes, 0 at the end, or negative errno with text in err. */
	ssize_t (*read)(void *opaque, void *buf, size_t size, struct error *err);
	void *opaque;
};

/* Make the file system with mke2fs in bytes offset..offset+size of the file, and open it. uuid: 36 characters.
 * Errors: -ENOENT (no mke2fs), what it or the library says. */
MUST_CHECK int image_fs_create(struct image_fs **ret_fs, int fd, uint64_t offset, uint64_t size_bytes,
	const char *label, const char *uuid, struct error *err);
/* Write what is still in memory. The file system is closed and freed even after an error. */
MUST_CHECK int image_fs_finish(struct image_fs *fs, struct error *err);
/* NULL is allowed. What was added is not complete in the file. */
void image_fs_free(struct image_fs *fs);

/* Add, or replace what has that name; directories on the way are made. A directory that is there already keeps what
 * is in it. Errors: -EINVAL (a name that can't be), -ENOSPC, -ELOOP, those of `read`. */
MUST_CHECK int image_fs_add(struct image_fs *fs, const struct image_entry *entry, struct error *err);
/* Another name for a file that is there. */
MUST_CHECK int image_fs_link(struct image_fs *fs, const char *path, const char *existing, struct error *err);
/* An extended attribute of the entry, links not followed. */
MUST_CHECK int image_fs_attribute(struct image_fs *fs, const char *path, const char *name, const void *value,
	size_t size, struct error *err);
/* Remove a name and all below it; fine if there is none. children_only: leave the directory itself. */
MUST_CHECK int image_fs_remove(struct image_fs *fs, const char *path, bool children_only, struct error *err);

/* A small file with these bytes, owned by root. */
MUST_CHECK int image_fs_put(struct image_fs *fs, const char *path, mode_t permissions, const void *bytes,
	size_t size, struct error *err);
/* Read a whole file, links followed. Caller frees *ret_bytes, which ends in an extra zero. Errors: -ENOENT, -EFBIG. */
MUST_CHECK int image_fs_get(struct image_fs *fs, const char *path, size_t max_bytes, uint8_t **ret_bytes,
	size_t *ret_size, struct error *err);
bool image_fs_exists(struct image_fs *fs, const char *path); /* links followed */

uint64_t image_fs_used_bytes(const struct image_fs *fs);

#endif
