/*
 * A disk image as a device's disk (device/block.h): the request layer on top of the formats. Requests are cut where
 * the image's runs end; each piece is read or written in the host's file by io_uring, or on a worker thread where
 * the format wants that, or where io_uring is not to be had.
 */
#ifndef LODGE_BACKEND_DISK_BLOCK_H
#define LODGE_BACKEND_DISK_BLOCK_H

#include "backend/disk/format.h"
#include "device/block.h"

struct loop;

enum disk_cache {
	DISK_CACHE_WRITEBACK,	 /* the host's page cache; lasting after a flush */
	DISK_CACHE_NONE,	 /* past the host's page cache (O_DIRECT); lasting after a flush */
	DISK_CACHE_WRITETHROUGH, /* a write ends when it is lasting */
	DISK_CACHE_UNSAFE,	 /* flushes do nothing: for disks that are thrown away */
};

enum disk_aio {
	DISK_AIO_AUTO, /* io_uring if it is permitted here */
	DISK_AIO_URING,
	DISK_AIO_THREADS,
};

struct disk_block_options {
	const char *format; /* NULL: look (disk_options.format) */
	bool readonly;
	enum disk_cache cache;
	enum disk_aio aio;
	bool ignore_discard; /* do not give discarded space back to the host */
	enum disk_backing_rule backing;
	uint64_t nbd_timeout_ns; /* nbd_file_options.timeout_ns */
};

/* Open the image at path, or the export at an nbd:// or nbd+unix:// URI (nbd.h), which may take its time; for
 * disk_block_create(). Any thread. Errors: with a line for people. */
MUST_CHECK int disk_block_image(
	const char *path, const struct disk_block_options *options, struct disk **ret_disk, struct error *err);

/* Both, on the loop. Errors: with a line for people. Before the loop runs, or on its thread. */
MUST_CHECK int disk_block_open(struct loop *loop, const char *path,
	const struct disk_block_options *options, struct block **ret_block, struct error *err);

/* A block device of an open disk, which is its own then (also if this fails). Errors and threads as above. */
MUST_CHECK int disk_block_create(struct loop *loop, struct disk *disk,
	const struct disk_block_options *options, struct block **ret_block, struct error *err);

#endif
