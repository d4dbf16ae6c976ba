/*
 * An open disk image: a format (raw, qcow2) on a host file, and the image behind it (backing file) if it is a
 * difference. What the request layer, `lodge disk` and the tests work with.
 *
 * There are two ways to a disk's bytes.
 *
 * The fast one never blocks: disk_begin() says where the bytes of a range are, the caller reads or writes them there
 * by itself (io_uring on extent.file->fd or ->direct_fd), and calls disk_end(). For a write that needs a new cluster
 * disk_begin() allocates it where that takes no I/O: the extent is then as good as any other.
 *
 * Whatever needs more than that (metadata not in memory, copy on write, compressed clusters, discards) is
 * DISK_EXTENT_SLOW: do that part of the request by disk_readv() and the like, which block and so belong on
 * a worker thread. They can do everything, the fast way's work too, with no regard to what else is under way.
 *
 * So a request is served like this:
 *
 *	while (bytes) {
 *		disk_begin(disk, DISK_WRITE, offset, bytes, &extent);
 *		switch (extent.kind) {
 *		case DISK_EXTENT_DATA: write extent.bytes to extent.file at extent.file_offset; disk_end() when done
 *		case DISK_EXTENT_ZERO: (reads only) zeros
 *		case DISK_EXTENT_SLOW: disk_writev() of extent.bytes on a worker
 *		}
 *		offset += extent.bytes; ...
 *	}
 *
 * Ordering: as in device/block.h. Requests may overlap and end in any order; a flush covers what ended before it
 * began, which for the fast way means: before its disk_end(). Metadata are written such that a crash at any moment
 * leaves an image that opens and has, at worst, leaked clusters (see qcow2.h).
 *
 * Threads: everything by any number of threads at once, but disk_close(), disk_resize() and the verbs of
 * snapshot.h, which need the disk alone.
 * Ranges are the caller's to check: offset + bytes <= size_bytes. Any byte granularity is allowed; requests in whole
 * 4 KiB blocks are served best.
 */
#ifndef LODGE_BACKEND_DISK_FORMAT_H
#define LODGE_BACKEND_DISK_FORMAT_H

#include "backend/disk/file.h"

struct disk;

enum disk_access {
	DISK_READ,
	DISK_WRITE,
};

enum disk_extent_kind {
	DISK_EXTENT_SLOW,
	DISK_EXTENT_DATA,
	DISK_EXTENT_ZERO,
};

struct disk_extent {
	enum disk_extent_kind kind;
	uint64_t bytes; /* 1 to what was asked for: the rest has to be asked for again */
	/* DATA: may be another image's file (a backing file), for reads. */
	struct disk_file *file;
	uint64_t file_offset;
	/* The format's: whose disk_end(), and in which epoch. NULL: disk_end() has nothing to do. */
	struct disk *holder;
	unsigned epoch;
};

/* bytes > 0. Never blocks for I/O, never fails. */
void disk_begin(struct disk *disk, enum disk_access access, uint64_t offset, uint64_t bytes,
	struct disk_extent *ret_extent);
/* The I/O on a DATA extent has ended, however it ended; for other kinds it does nothing. Until then the place in the
 * file belongs to this range, even if others discard the range meanwhile. Never blocks. */
void disk_end(const struct disk_extent *extent);

/* Blocking. The iovecs are not changed; their lengths sum up to `bytes`. */
MUST_CHECK int disk_readv(struct disk *disk, const struct iovec *iov, unsigned count,
	uint64_t offset, uint64_t bytes);
MUST_CHECK int disk_writev(struct disk *disk, const struct iovec *iov, unsigned count,
	uint64_t offset, uint64_t bytes);
MUST_CHECK int disk_read(struct disk *disk, void *buf, uint64_t bytes, uint64_t offset);
MUST_CHECK int disk_write(struct disk *disk, const void *buf, uint64_t bytes, uint64_t offset);
/* What is read there later is zeros, the old bytes or the backing file's: whatever is cheap. */
MUST_CHECK int disk_discard(struct disk *disk, uint64_t offset, uint64_t bytes);
/* Zeros from now on. unmap: give the space back if possible; else keep what space there is. */
MUST_CHECK int disk_zero(struct disk *disk, uint64_t offset, uint64_t bytes, bool unmap);
MUST_CHECK int disk_flush(struct disk *disk);

/* If all that a flush would do now is one fdatasync of one file, that file: the caller may do it by itself, by
 * io_uring. NULL: it takes disk_flush(). Never blocks. */
struct disk_file *disk_flush_file(struct disk *disk);

/* Is there data, or does the range read as zeros, and in which image of the chain (0: this one)? For copying with
 * holes, and `lodge disk map`. Blocks. */
struct disk_map_run {
	uint64_t bytes;
	bool data;    /* false: reads as zeros */
	bool present; /* some image of the chain says what is here; false: none does (zeros) */
	bool compressed;
	unsigned depth;
	bool has_offset;
	uint64_t file_offset; /* in the file of image `depth` */
};
MUST_CHECK int disk_map(
	struct disk *disk, uint64_t offset, uint64_t bytes, struct disk_map_run *ret_run);

enum disk_backing_rule {
	DISK_BACKING_ANY,    /* whatever the image names, opened read-only */
	DISK_BACKING_BESIDE, /* only files in the image's own directory (no '/' in the name) */
	DISK_BACKING_REFUSE, /* an image with a backing file is not opened */
	DISK_BACKING_IGNORE, /* not opened: for what looks at this one's metadata only. Reads of it fail with -EIO */
};

struct disk_options {
	const char *format; /* "raw", "qcow2"; NULL: look at the first bytes */
	bool readonly;
	bool direct; /* also open O_DIRECT descriptors */
	enum disk_lock lock;
	enum disk_backing_rule backing;
	bool inspect; /* open a dirty or corrupt image as it is: for checking it; not for writing to the disk */
	bool keep_discarded; /* do not give discarded space back to the host */
	uint64_t
		cache_bytes; /* of metadata in memory, 0: as much as is good for the image's size, at most 32 MiB */
};

/* A chain of at most DISK_CHAIN_MAX images, with no file in it twice. */
#define DISK_CHAIN_MAX 64

/* Open path and what it is backed by. If the format is guessed to be raw, the disk refuses writes that would make it
 * look like another format (-EPERM), since the guest could so name a file of the host to be opened as backing file. */
MUST_CHECK int disk_open(const char *path, const struct disk_options *options,
	struct disk **ret_disk, struct error *err);
/* The same for an open file, which is the disk's then (also if this fails). */
MUST_CHECK int disk_open_file(struct disk_file *file, const struct disk_options *options,
	struct disk **ret_disk, struct error *err);
/* NULL is allowed. All requests have ended. Flushes; an error then is the return value, and the disk is closed. */
int disk_close(struct disk *disk);

uint64_t disk_size_bytes(const struct disk *disk);
bool disk_readonly(const struct disk *disk);
const char *disk_format_name(const struct disk *disk);
struct disk *disk_backing(struct disk *disk); /* NULL if none */
struct disk_file *disk_file(struct disk *disk);
uint32_t disk_cluster_bytes(
	const struct disk *disk); /* unit of allocation: preferred alignment; raw: 0 */
bool disk_can_discard(const struct disk *disk);

/* Shrinking loses what lies beyond. */
MUST_CHECK int disk_resize(struct disk *disk, uint64_t size_bytes, struct error *err);

/*
 * What a format implements. ops get what their namesakes above do.
 */
struct disk_format {
	const char *name;
	bool (*probe)(const uint8_t *head, size_t bytes); /* NULL: matches nothing by its looks */
	int (*open)(struct disk *disk, const struct disk_options *options, struct error *err);
	int (*close)(struct disk *disk);
	void (*begin)(struct disk *disk, enum disk_access access, uint64_t offset, uint64_t bytes,
		struct disk_extent *ret_extent);
	void (*end)(struct disk *disk, unsigned epoch);
	int (*readv)(struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset,
		uint64_t bytes);
	int (*writev)(struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset,
		uint64_t bytes);
	int (*discard)(struct disk *disk, uint64_t offset, uint64_t bytes);
	int (*zero)(struct disk *disk, uint64_t offset, uint64_t bytes, bool unmap);
	int (*flush)(struct disk *disk);
	struct disk_file *(*flush_file)(struct disk *disk);
	int (*map)(
		struct disk *disk, uint64_t offset, uint64_t bytes, struct disk_map_run *ret_run);
	int (*resize)(struct disk *disk, uint64_t size_bytes, struct error *err);
};

struct disk {
	const struct disk_format *format;
	struct disk_file *file; /* owned */
	struct disk *backing;	/* owned; read-only */
	uint64_t size_bytes;
	uint32_t cluster_bytes;
	bool readonly;
	bool guessed;	      /* the format, by its looks */
	char *backing_name;   /* as the image says it; NULL: it has none */
	char *backing_format; /* NULL: the image does not say */
	bool backing_ignored; /* it has one, which is not open */
	void *private;	      /* the format's */
};

extern const struct disk_format disk_format_raw, disk_format_qcow2;

#endif
