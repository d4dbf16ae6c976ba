/*
 * What the files of virtio block share: blk.c (the device, and its work on the loop), blk_request.c (what a driver asks
 * for), blk_quick.c (doorbells on vCPUs' threads).
 */
#ifndef LODGE_DEVICE_VIRTIO_BLK_PRIVATE_H
#define LODGE_DEVICE_VIRTIO_BLK_PRIVATE_H

#include "base/loop.h"
#include "device/block.h"
#include "device/virtio/blk.h"
#include "device/virtio/virtio.h"

#define BLK_REQUESTS_MAX  256
#define BLK_SECTOR_SHIFT  9
#define BLK_RANGES_MAX	  16
#define BLK_RANGE_SECTORS (1u << 21) /* the largest range that may be discarded at a time: 1 GiB */

struct blk_range {
	uint64_t offset, bytes;
	bool unmap;
};

struct blk_request {
	struct virtio_blk *blk;
	struct blk_request *next; /* free, or stalled */
	unsigned queue;
	struct virtq_buffer buffer;
	struct block_request block;
	struct iovec *iov; /* of the data alone; its own copy, which the block device may change */
	unsigned iov_capacity;
	enum block_op op;
	struct blk_range ranges[BLK_RANGES_MAX]; /* reads and writes have one; a flush has none */
	unsigned range_count;
	bool flush;    /* when the ranges are done */
	unsigned step; /* how many ranges, and the flush, have been done */
};

struct virtio_blk {
	struct virtio_blk_config config;
	struct loop *loop;
	pthread_mutex_t *lock;
	struct virtio_device *device;
	struct block *block;
	struct block_limits limits;
	char serial[VIRTIO_BLK_SERIAL_BYTES];
	bool wce, writeback;

	struct blk_request requests[BLK_REQUESTS_MAX];
	struct blk_request *free;
	struct blk_request *stalled;
	unsigned under_way;
	int stall_status;	     /* of the last that was kept; 0: none is kept */
	int stall_told;		     /* what config.stalled was told */
	uint32_t to_signal, waiting; /* bits of queues: to be signalled; not emptied yet */
	bool resetting;
	bool here; /* the loop's thread only */
	bool later_wanted;
	struct loop_call later;
	struct loop_timer *retry;
};

/* ---- blk_request.c; all of it with the lock held ---- */

/* Read what the driver wants into the request, and check it. 1: it has steps to be submitted; 0: it is done already; or
 * what is wrong with it. */
int blk_request_read(struct blk_request *r);
/* Its next step as r->block, `done` excepted. Errors: -ENOMEM. */
int blk_request_prepare(struct blk_request *r);

/* ---- blk.c; with the lock held, unless it says otherwise ---- */

/* Take a request from the queue. 1: it is there; 0: none is; -EBUSY: all of ours are in use; or virtq_pop()'s. */
int blk_pop(struct virtio_blk *blk, unsigned queue, struct blk_request **ret_request);
/* Give the buffer back. Whoever calls has the driver told. */
void blk_give_back(struct blk_request *r, int status);
void blk_signal_queues(struct virtio_blk *blk);
/* The end of a write that was handed over: its only step. On a thread of the block device's, or on the loop's if it
 * failed; the lock not held. */
void blk_handed_done(struct block_request *block, int status);

static inline void blk_put_free(struct blk_request *r)
{
	r->next = r->blk->free;
	r->blk->free = r;
}

/* ---- blk_quick.c ---- */

/* For struct virtio_ops. */
bool blk_doorbell(void *device, unsigned queue);

#endif
