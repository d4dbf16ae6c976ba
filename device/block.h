/*
 * A disk as a device (virtio block, AHCI, IDE) sees it: something that takes requests and ends them later. Disk
 * images and network storage (backend/disk) implement it; a test has one of its own.
 *
 * Requests that are under way at one time may end in any order, and overlap as they like: the guest orders what
 * it wants ordered. A flush that succeeds has made lasting every write that had ended before the flush was
 * submitted. A request that fails may have been carried out in part.
 *
 * Threads: submit on the thread of the loop that the block device was opened with; `done` comes on it too, and
 * may come inside submit. read_now and hand_over on any thread. The buffers and the request belong to the block
 * device until `done`.
 */
#ifndef LODGE_DEVICE_BLOCK_H
#define LODGE_DEVICE_BLOCK_H

#include "base/util.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum block_op {
	BLOCK_READ,
	BLOCK_WRITE,
	BLOCK_FLUSH,
	BLOCK_DISCARD,	    /* what is read there later is undefined (zeros or the old bytes) */
	BLOCK_WRITE_ZEROES, /* may free the space if `unmap` */
};

struct block_request {
	enum block_op op;
	uint64_t offset, bytes; /* multiples of the device's sector; not used by a flush */
	struct iovec *iov;	/* READ, WRITE: `bytes` in all; may be changed by the block device */
	unsigned iov_count;
	bool unmap;
	/* status: 0 or negative errno (-ENOSPC: no room on the host; -EIO; -EROFS; -EINVAL: out of range). */
	void (*done)(struct block_request *request, int status);
	void *opaque;	  /* the submitter's */
	void *private[16]; /* the block device's while it is under way */
};

struct block_limits {
	uint64_t size_bytes;	/* a multiple of sector_bytes */
	uint32_t sector_bytes;	/* 512 or 4096: what offsets and lengths must be multiples of */
	uint32_t optimal_bytes; /* preferred length and alignment of requests; 0: none */
	uint32_t memory_align;	/* what buffers should be aligned to (others are copied); at least 1 */
	bool readonly, discard, write_zeroes;
	bool volatile_cache; /* writes that have ended may be lost until a flush */
};

struct block {
	const struct block_ops *ops;
};

struct block_ops {
	void (*submit)(struct block *block, struct block_request *request);
	/* Ways past the loop for what is quick; may be NULL. Not for flushes. */
	/* Carry a read out on this thread if that takes no waiting for the host: 0; -EAGAIN: it does, submit it. `done`
	 * is not called, and the iovecs are not changed. */
	int (*read_now)(struct block *block, struct block_request *request);
	/* As submit, but `done` comes on a thread of the block device's own if it succeeds, on the loop's if it fails,
	 * and never in here. false: not this one, submit it. */
	bool (*hand_over)(struct block *block, struct block_request *request);
	void (*limits)(struct block *block, struct block_limits *ret_limits);
	/* All requests have ended. Flushes, and lets go of the file. */
	void (*close)(struct block *block);
};

static inline void block_submit(struct block *block, struct block_request *request)
{
	block->ops->submit(block, request);
}

static inline int block_read_now(struct block *block, struct block_request *request)
{
	return block->ops->read_now ? block->ops->read_now(block, request) : -EAGAIN;
}

static inline bool block_hand_over(struct block *block, struct block_request *request)
{
	return block->ops->hand_over && block->ops->hand_over(block, request);
}

static inline void block_limits(struct block *block, struct block_limits *ret_limits)
{
	block->ops->limits(block, ret_limits);
}

/* NULL is allowed. */
static inline void block_close(struct block *block)
{
	if (block)
		block->ops->close(block);
}

#endif
