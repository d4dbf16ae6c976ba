/*
 * Disk images that machines are made from: built, imported, listed, removed. They are kept in
 * ${XDG_DATA_HOME:-~/.local/share}/lodge/images, a directory for each: NAME/disk.img (raw, sparse, read-only: machines
 * write to a copy-on-write clone) and NAME/image.json, which says what it is.
 *
 * An image comes into being by one rename of its finished directory, so there is never half of one, and a machine's
 * clone keeps the disk by a hard link of its own, so that it may be removed or replaced at any time.
 *
 * Any thread; processes keep out of each other's way by a lock for each name.
 */
#ifndef LODGE_HOST_IMAGE_H
#define LODGE_HOST_IMAGE_H

#include "base/util.h"

#include <stdbool.h>
#include <stdint.h>

struct error;

#define IMAGE_NAME_MAX 63 /* host/names.h */

struct image_record {
	char name[IMAGE_NAME_MAX + 1];
	char kind[32];	  /* debian, tar, oci, import */
	char source[256]; /* suite, file ... */
	char created[32]; /* 2026-01-31T12:00:00Z */
	char root[64];	  /* root=... of the kernel's command line, or empty */
	uint64_t size_bytes, used_bytes; /* of the disk; of the host's */
};

struct image_build {
	const char *name;
	uint64_t size_bytes;
	bool replace; /* build anew what is there */
	/* One of three sources. */
	const char *debian_suite;
	const char *tar;	/* a root file system */
	const char *oci;	/* a layout's directory or archive, and :TAG */
	/* Of Debian. */
	const char *mirror;	/* NULL: Debian's */
	const char *include;	/* more packages, by commas; NULL: none */
	bool cloud_init, autologin;
	/* What it does now; a line without newline. NULL: nobody wants to know. */
	void (*progress)(void *opaque, const char *line);
	bool (*stop)(void *opaque); /* asked now and then, on any thread: give up? NULL: never */
	void *opaque;
};

#define IMAGE_SIZE_DEFAULT GIB(8)

/* Files of an image, whether or not it is there. Caller frees. */
MUST_CHECK int image_disk_path(char **ret_path, const char *name, struct error *err);

/* Errors: -ENOENT (no such image), -EINVAL (what is there is none), with a line for people. */
MUST_CHECK int image_find(struct image_record *ret_info, const char *name, struct error *err);
/* All there are, by name. Caller frees the array. */
MUST_CHECK int image_list(struct image_record **ret_list, unsigned *ret_count, struct error *err);
MUST_CHECK int image_remove(const char *name, struct error *err);

/* Build from nothing. 0 also if it is there already and not to be replaced: *ret_built says. */
MUST_CHECK int image_build(const struct image_build *build, bool *ret_built, struct error *err);
/* Copy a disk image, raw or qcow2. Of `build`: name, replace and the functions. */
MUST_CHECK int image_import(const struct image_build *build, const char *path, struct error *err);

#endif
