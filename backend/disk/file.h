/*
 * A host file as a disk image format uses it: bytes at offsets, with no position and no end of file. Regular files
 * and block devices (file_posix.c) implement it, memory (tests, fuzzers), and network storage may.
 *
 * Calls block until they are done, and transfer everything or fail. Reading past the end gives zeros; writing there
 * makes the file longer. Nothing is lasting until a flush that was called after the write had returned.
 *
 * Threads: any number at once, close excepted. Writes that overlap while both are under way leave either's bytes.
 * Errors: negative errno (-ENOSPC, -EIO, -EROFS, -EFBIG ...).
 */
#ifndef LODGE_BACKEND_DISK_FILE_H
#define LODGE_BACKEND_DISK_FILE_H

#include "base/error.h"
#include "base/util.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct disk_file;

struct disk_file_ops {
	/* The iovecs are not changed. count can be any number. */
	int (*readv)(
		struct disk_file *file, const struct iovec *iov, unsigned count, uint64_t offset);
	int (*writev)(
		struct disk_file *file, const struct iovec *iov, unsigned count, uint64_t offset);
	/* All writes, zeroes, discards and truncations that have returned become lasting. -ETIMEDOUT, -ENOSPC: not
	 * yet, but nothing is lost, and it may be tried again; any other error: some may be lost. */
	int (*flush)(struct disk_file *file);
	/* The bytes read as zeros from now on, and the host may take their space back (-EOPNOTSUPP: it can't, nothing
	 * has changed). */
	int (*punch)(struct disk_file *file, uint64_t offset, uint64_t bytes);
	/* The bytes read as zeros from now on, and have their space: writing there will not fail with -ENOSPC as
	 * far as the host can promise that. Always works, if slowly. */
	int (*zero)(struct disk_file *file, uint64_t offset, uint64_t bytes);
	/* The bytes there may read as anything from now on. A hint; 0 if the host can't. */
	int (*discard)(struct disk_file *file, uint64_t offset, uint64_t bytes);
	int (*size)(struct disk_file *file, uint64_t *ret_bytes);
	/* A longer file reads as zeros beyond the old end. -EOPNOTSUPP: a block device. */
	int (*truncate)(struct disk_file *file, uint64_t bytes);
	/* Is there data at offset? How many bytes from there on are alike (1 to bytes)? Holes read as zeros. */
	int (*extent)(struct disk_file *file, uint64_t offset, uint64_t bytes, uint64_t *ret_run,
		bool *ret_data);
	/* Does not flush. */
	void (*close)(struct disk_file *file);
};

struct disk_file {
	const struct disk_file_ops *ops;
	/* What an asynchronous engine may do its reads, writes and fdatasyncs on instead, -1 if there is none. They
	 * stay this file's. direct_fd is open with O_DIRECT (-1: was not asked for), `align_bytes` is what it wants of
	 * buffers, offsets and lengths. Reads there can be short at the end of the file: the rest is zeros. */
	int fd, direct_fd;
	uint32_t align_bytes;
	bool readonly;
	bool growable; /* a truncate beyond the end works, and reads as zeros there */
	bool can_punch;
	char *name; /* for messages; the path as it was given */
};

enum disk_lock {
	DISK_LOCK_AUTO, /* writer: nobody else; reader: other readers. By `readonly` */
	DISK_LOCK_NONE, /* look at it whatever others do */
};

struct disk_file_options {
	bool readonly;
	bool direct; /* open direct_fd too */
	enum disk_lock lock;
	bool no_follow; /* a symbolic link is refused */
	/* Create it (must not be there, or is made empty if `replace`) */
	bool create, replace;
};

/* A regular file or a block device; anything else is refused. -EAGAIN: others have it locked; the text says who.
 * Directory descriptors: paths are relative to the process's working directory. */
MUST_CHECK int disk_file_open(const char *path, const struct disk_file_options *options,
	struct disk_file **ret_file, struct error *err);

/* Zeros by writev, for implementations of `zero` whose host has nothing quicker. */
MUST_CHECK int disk_file_write_zeros(struct disk_file *file, uint64_t offset, uint64_t bytes);

/* A file of zeros in memory, for tests and fuzzers; it grows up to max_bytes (then -ENOSPC). */
MUST_CHECK int disk_file_memory(uint64_t max_bytes, struct disk_file **ret_file);

/* NULL is allowed. */
static inline void disk_file_close(struct disk_file *file)
{
	if (file)
		file->ops->close(file);
}

static inline int disk_file_read(struct disk_file *file, void *buf, uint64_t bytes, uint64_t offset)
{
	struct iovec iov = {.iov_base = buf, .iov_len = bytes};

	return file->ops->readv(file, &iov, 1, offset);
}

static inline int disk_file_write(
	struct disk_file *file, const void *buf, uint64_t bytes, uint64_t offset)
{
	struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = bytes};

	return file->ops->writev(file, &iov, 1, offset);
}

#endif
