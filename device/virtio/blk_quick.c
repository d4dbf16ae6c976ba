/*
 * Doorbells of virtio block on the threads of vCPUs: what the block device can do past the loop (device/block.h) is served
 * here, all else is left in the queue for the loop.
 *
 * That pays if the driver waits for each request before it makes the next. If it does not, the loop's thread is faster:
 * it works while the vCPU makes more requests, and gives several back with one interrupt. Only with the loop can one
 * see which it is, as nothing is under way behind a doorbell. So a queue's first requests are the loop's, and a few
 * now and then later.
 *
 * Invariants: a doorbell takes at most QUICK_MAX requests of QUICK_BYTES, and nothing here waits for the host, so that a
 * vCPU is back soon, whatever is in the queue. `here` and the timer are the loop's and not touched.
 */
#include "device/virtio/blk_private.h"

#include <errno.h>

#define QUICK_MAX   16 /* requests that one doorbell serves at once */
#define QUICK_BYTES KIB(64)
/* So many that nothing was under way with, on the loop: the driver waits for each. */
#define ALONE_MIN   32
/* Requests that are then served in doorbells, before ALONE_AGAIN are looked at again. */
#define QUICK_RUN   1024
#define ALONE_AGAIN 8

/* ---- the driver's habits ---- */

void blk_note_taken(struct virtio_blk *blk, unsigned queue)
{
	struct blk_queue *bq = &blk->queues[queue];

	bq->alone = bq->under_way++ ? 0 : bq->alone + 1;
	if (bq->alone < ALONE_MIN)
		return;
	bq->alone = ALONE_MIN - ALONE_AGAIN;
	bq->quick_left = QUICK_RUN;
}

static bool may_be_quick(struct virtio_blk *blk, unsigned queue)
{
	struct blk_queue *bq = &blk->queues[queue];

	if (blk->stall_status || blk->waiting & 1u << queue)
		return false;
	if (blk->config.eager)
		return true;
	if (bq->under_way) /* and it kicks for another */
		bq->quick_left = bq->alone = 0;
	return bq->quick_left;
}

static void note_quick(struct virtio_blk *blk, unsigned queue)
{
	struct blk_queue *bq = &blk->queues[queue];

	bq->under_way++;
	if (bq->quick_left)
		bq->quick_left--;
}

/* ---- serving ---- */

/* Carry it out, or have it carried out, past the loop. */
static bool begin_quick(struct blk_request *r)
{
	struct virtio_blk *blk = r->blk;

	if (r->range_count != 1 || r->flush || r->ranges[0].bytes > QUICK_BYTES ||
		blk_request_prepare(r) < 0)
		return false;
	if (r->op == BLOCK_READ && block_read_now(blk->block, &r->block) == 0) {
		note_quick(blk, r->queue);
		blk_give_back(r, 0);
		return true;
	}
	/* One at a time: several at once are quicker together. */
	if (r->op != BLOCK_WRITE || blk->under_way)
		return false;
	r->block.done = blk_handed_done;
	blk->under_way++;
	if (!block_hand_over(blk->block, &r->block)) {
		blk->under_way--;
		return false;
	}
	note_quick(blk, r->queue);
	return true;
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

	if (!may_be_quick(blk, queue))
		return false;
	for (unsigned i = 0; i < QUICK_MAX && status == 1; i++)
		status = take_quick(blk, queue);
	blk_signal_queues(blk);
	return status == 0 && !virtq_want_kicks(q, true);
}
