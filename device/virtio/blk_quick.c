/*
 * Doorbells of virtio block on the threads of vCPUs: what the block device can do past the loop (device/block.h) is served
 * here, all else is left in the queue for the loop.
 *
 * Invariants: a doorbell takes at most QUICK_MAX requests, reads at most QUICK_READ_BYTES for each, and nothing here waits
 * for the host, so that a vCPU is back soon, whatever is in the queue. `here` and the timer are the loop's and not touched.
 */
#include "device/virtio/blk_private.h"

#include <errno.h>

#define QUICK_MAX	 16 /* requests that one doorbell serves at once */
#define QUICK_READ_BYTES KIB(64)

static bool may_be_quick(const struct blk_request *r)
{
	if (r->range_count != 1 || r->flush)
		return false;
	return r->op == BLOCK_WRITE ||
	       (r->op == BLOCK_READ && r->ranges[0].bytes <= QUICK_READ_BYTES);
}

/* Carry it out, or have it carried out, past the loop. */
static bool begin_quick(struct blk_request *r)
{
	struct virtio_blk *blk = r->blk;

	if (!may_be_quick(r) || blk_request_prepare(r) < 0)
		return false;
	if (r->op == BLOCK_READ) {
		if (block_read_now(blk->block, &r->block) < 0)
			return false;
		blk_give_back(r, 0);
		return true;
	}
	r->block.done = blk_handed_done;
	blk->under_way++;
	if (block_hand_over(blk->block, &r->block))
		return true;
	blk->under_way--;
	return false;
}

static bool serve_quick(struct blk_request *r)
{
	int status = r->buffer.in_bytes ? blk_request_read(r) : -EINVAL;

	if (status == 1 && begin_quick(r))
		return true;
	/* The rest is the loop's, mistakes too. */
	virtq_unpop(virtio_queue(r->blk->device, r->queue), &r->buffer);
	blk_put_free(r);
	return false;
}

/* 1: one was served; 0: none is there; negative: the loop has to look. */
static int take_quick(struct virtio_blk *blk, unsigned queue)
{
	struct blk_request *r;
	int status = blk_pop(blk, queue, &r);

	if (status != 1)
		return status;
	return serve_quick(r) ? 1 : -EAGAIN;
}

bool blk_doorbell(void *device, unsigned queue)
{
	struct virtio_blk *blk = device;
	struct virtq *q = virtio_queue(blk->device, queue);
	int status = 1;

	if (blk->stall_status || blk->waiting & 1u << queue)
		return false;
	for (unsigned i = 0; i < QUICK_MAX && status == 1; i++)
		status = take_quick(blk, queue);
	blk_signal_queues(blk);
	return status == 0 && !virtq_want_kicks(q, true);
}
