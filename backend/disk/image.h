/*
 * What one does with disk images besides reading and writing: make, examine, check, snapshot, copy. `lodge disk` is made
 * of these.
 *
 * Threads: the disks here have no other user meanwhile, image_write_packed() excepted.
 */
#ifndef LODGE_BACKEND_DISK_IMAGE_H
#define LODGE_BACKEND_DISK_IMAGE_H

#include "backend/disk/format.h"

struct image_create {
	const char *format;  /* "raw" or "qcow2" */
	uint64_t size_bytes; /* 0 with a backing file: as large as that */
	bool replace;	     /* an existing file */
	/* qcow2; 0 or NULL: 64 KiB clusters, 16-bit counts, version 3, deflate */
	uint32_t cluster_bytes, refcount_bits, version;
	const char *compression; /* "deflate", "zstd" */
	bool lazy_refcounts;
	const char *backing,
		*backing_format; /* the name as it is to be stored, and what is there */
};

/* Makes the file. An error leaves none behind, unless it was there before. */
MUST_CHECK int image_create(const char *path, const struct image_create *create, struct error *err);

struct image_info {
	uint64_t size_bytes, file_bytes,
		allocated_bytes; /* of the disk, its file, the file on the host */
	/* qcow2 */
	uint32_t version, cluster_bytes, refcount_bits, snapshots;
	const char *compression;
	bool lazy_refcounts, dirty, corrupt, extended;
};
MUST_CHECK int image_info(struct disk *disk, struct image_info *ret_info);

struct image_progress {
	/* May be NULL. Called now and then; true: stop (-EINTR). */
	bool (*report)(void *opaque, uint64_t done_bytes, uint64_t all_bytes);
	void *opaque;
};

struct image_check {
	bool repair; /* mend what can be mended */
	struct image_progress progress; /* in tables' entries. One that is stopped while it repairs is marked dirty */
	/* Told of each problem, the first IMAGE_CHECK_REPORTS of them; may be NULL. */
	void (*report)(void *opaque, const char *text);
	void *opaque;
	/* Results. A leak is space that nothing uses; an error is data that are or will be damaged. */
	uint64_t errors, leaks, errors_mended, leaks_mended;
	uint64_t clusters, allocated, compressed; /* of the disk */
	uint64_t end_bytes;			  /* of what is used of the file */
	unsigned reports;
};
#define IMAGE_CHECK_REPORTS 100

/* -ENOTSUP: the format cannot be checked (raw). Nothing is changed unless `repair`, for which the disk must be open for
 * writing. Problems are results, not errors of this function. */
MUST_CHECK int image_check(struct disk *disk, struct image_check *check, struct error *err);

struct image_snapshot {
	char *id, *name;
	uint64_t size_bytes;	 /* of the disk then */
	uint64_t vm_state_bytes; /* of a saved machine; QEMU's only */
	uint64_t seconds;	 /* since 1970 */
	uint32_t nanoseconds;
};
/* On the heap; free with image_snapshots_free(). */
MUST_CHECK int image_snapshots(struct disk *disk, struct image_snapshot **ret_list,
	unsigned *ret_count, struct error *err);
void image_snapshots_free(struct image_snapshot *list, unsigned count);
/* Snapshots are named by name or, if none has that name, by ID. -EEXIST, -ENOENT, -ENOTSUP (raw). */
MUST_CHECK int image_snapshot_create(struct disk *disk, const char *name, struct error *err);
MUST_CHECK int image_snapshot_apply(struct disk *disk, const char *name, struct error *err);
MUST_CHECK int image_snapshot_delete(struct disk *disk, const char *name, struct error *err);

/* One whole cluster of qcow2, zeros behind the disk's end, is written compressed, or plainly if it does not get
 * smaller. May be called by several threads at once, for different clusters. */
MUST_CHECK int image_write_packed(struct disk *disk, const void *data, uint64_t offset);

/* Name another backing file (NULL: none) in the header. The disk's content is what shows through then. */
MUST_CHECK int image_set_backing(
	struct disk *disk, const char *name, const char *format, struct error *err);
/* Everything in this image is forgotten: it reads as its backing file. */
MUST_CHECK int image_empty(struct disk *disk, struct error *err);

struct image_copy {
	bool compress;	  /* the target is qcow2 */
	bool target_zero; /* a new image, which reads as zeros: zeros need not be written */
	bool keep_zeros;  /* do not look for zeros in what is said to be data */
	unsigned depth;	  /* copy only what is in the first so many images of the chain; 0: all */
	unsigned threads; /* for compressing, 0: one for each processor */
	struct image_progress progress;
};
/* The target is at least as large. Does not flush. */
MUST_CHECK int image_copy(
	struct disk *from, struct disk *to, const struct image_copy *copy, struct error *err);
/* Make the disk independent of what differs between its backing and the new one (NULL: zeros). */
MUST_CHECK int image_rebase_copy(struct disk *disk, struct disk *backing,
	const struct image_progress *progress, struct error *err);
/* *ret_same, or the first byte that differs. What the longer disk has behind the other must be zeros. */
MUST_CHECK int image_compare(struct disk *a, struct disk *b, const struct image_progress *progress,
	bool *ret_same, uint64_t *ret_offset, struct error *err);

#endif
