/*
 * What the files of images share among themselves.
 */
#ifndef LODGE_HOST_IMAGE_PRIVATE_H
#define LODGE_HOST_IMAGE_PRIVATE_H

#include "host/image.h"
#include "host/image_fs.h"

#include <stdio.h>

/* ---- image_store.c ---- */

/* An image that is being made: a hidden directory, and the lock of its name. */
struct image_draft {
	char name[IMAGE_NAME_MAX + 1];
	char *folder; /* of all images */
	char *path;   /* of this one until it is done */
	int lock, disk; /* the disk, open for writing */
};

/* Takes the name's lock: waits for whoever has it. `say` is told if it has to (may be NULL). */
MUST_CHECK int image_draft_begin(struct image_draft *draft, const char *name,
	void (*say)(void *opaque, const char *line), void *opaque, struct error *err);
/* Put the record beside the disk, make both lasting, and give them their name. */
MUST_CHECK int image_draft_commit(struct image_draft *draft, const struct image_record *info, struct error *err);
/* Removes what was not committed, and lets the lock go. */
void image_draft_done(struct image_draft *draft);

/* ---- sources: each fills a file system ---- */

struct image_limits {
	uint64_t bytes;	  /* unpacked, of all an archive holds */
	uint64_t entries;
	bool (*stop)(void *opaque); /* give up now? NULL: never */
	void *opaque;
};

static inline bool image_stop(const struct image_limits *limits)
{
	return limits->stop && limits->stop(limits->opaque);
}

/* Unpack an archive (tar; gzip, zstd, xz, bzip2 or nothing around it) that fd reads. layer: with the marks of
 * OCI layers, which then have been carried out already. name: for messages. */
MUST_CHECK int image_archive_unpack(struct image_fs *fs, int fd, bool layer, const struct image_limits *limits,
	const char *name, struct error *err);
/* Carry out the marks for removal (whiteouts) of an OCI layer. */
MUST_CHECK int image_archive_whiteouts(struct image_fs *fs, int fd, const struct image_limits *limits, const char *name,
	struct error *err);

/* A Debian by mmdebstrap. fs_uuid: of the file system, for its boot loader. log_path: where all that is printed goes. */
MUST_CHECK int image_debian_fill(struct image_fs *fs, const struct image_build *build, const char *fs_uuid,
	const char *log_path, const struct image_limits *limits, struct error *err);
/* Unpack the layers of an image of an OCI layout. scratch: a directory that can be made meanwhile. */
MUST_CHECK int image_oci_fill(struct image_fs *fs, const struct image_build *build, const char *scratch,
	const struct image_limits *limits, struct error *err);

static inline void image_progress(const struct image_build *build, const char *line)
{
	if (build->progress)
		build->progress(build->opaque, line);
}

#endif
