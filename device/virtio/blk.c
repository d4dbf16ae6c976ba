/*
 * virtio block: see blk.h. (Virtual I/O Device 1.2, 5.2)
 *
 * A request comes from a queue, is checked, becomes one or several requests to the block device one after the other
 * (ranges to discard; a flush behind a write if the driver wants write-through), and its buffer goes back with a
 * status. Requests are carried out in any order and at the same time; nothing is merged.
 *
 * Left out on purpose: legacy layouts, geometry, lifetime, secure erase and zones (no image has any), SIZE_MAX (a
 * segment may be of any length).
 *
 * Invariants: BLK_REQUESTS_MAX requests are there, each either free, kept (stalled) or under way, which is counted.
 * `here` is the loop thread's own: it says that this thread holds the lock, because the block device may end a
 * request while it is submitted. Guest RAM is touched by the block device between submit and done only, and the
 * device is not reset before all have ended.
 */
#include "device/virtio/blk_private.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/loop.h"
#include "device/block.h"
#include "device/virtio/virtio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE 256u
#define SEG_MAX	   (QUEUE_SIZE - 2) /* a queue without indirect descriptors holds one such request */
#define TURN_MAX   512 /* requests from one queue before others have their turn on the loop */

/* Feature bits: 5.2.3. */
#define F_SEG_MAX      (1ull << 2)
#define F_RO	       (1ull << 5)
#define F_BLK_SIZE     (1ull << 6)
#define F_FLUSH	       (1ull << 9)
#define F_TOPOLOGY     (1ull << 10)
#define F_CONFIG_WCE   (1ull << 11)
#define F_MQ	       (1ull << 12)
#define F_DISCARD      (1ull << 13)
#define F_WRITE_ZEROES (1ull << 14)

/* The configuration space: 5.2.4. */
enum config_offset {
	CONFIG_CAPACITY = 0,
	CONFIG_SEG_MAX = 12,
	CONFIG_BLK_SIZE = 20,
	CONFIG_PHYSICAL_EXP = 24,
	CONFIG_OPT_IO_SIZE = 28,
	CONFIG_WCE = 32,
	CONFIG_NUM_QUEUES = 34,
	CONFIG_DISCARD_SECTORS = 36,
	CONFIG_DISCARD_SEG = 40,
	CONFIG_DISCARD_ALIGNMENT = 44,
	CONFIG_ZEROES_SECTORS = 48,
	CONFIG_ZEROES_SEG = 52,
	CONFIG_ZEROES_UNMAP = 56,
	CONFIG_BYTES = 60,
};

enum request_status { STATUS_OK, STATUS_IOERR, STATUS_UNSUPP }; /* 5.2.6 */

static void take_requests(struct virtio_blk *blk, unsigned queue);
static void submit_next(struct blk_request *r);

/* ---- what is done behind a batch: interrupts, queues that had to wait, holding the machine ---- */

static void want_later(struct virtio_blk *blk)
{
	if (blk->later_wanted)
		return;
	blk->later_wanted = true;
	loop_post(blk->loop, &blk->later);
}

static void enter(struct virtio_blk *blk)
{
	pthread_mutex_lock(blk->lock);
	blk->here = true;
}

static void leave(struct virtio_blk *blk)
{
	blk->here = false;
	pthread_mutex_unlock(blk->lock);
}

void blk_signal_queues(struct virtio_blk *blk)
{
	uint32_t queues = blk->to_signal;

	blk->to_signal = 0;
	for (; queues; queues &= queues - 1)
		virtq_signal(virtio_queue(blk->device, (unsigned)__builtin_ctz(queues)));
}

static void take_waiting(struct virtio_blk *blk)
{
	uint32_t queues = blk->waiting;

	blk->waiting = 0;
	for (; queues; queues &= queues - 1)
		take_requests(blk, (unsigned)__builtin_ctz(queues));
}

static void serve_later(void *opaque)
{
	struct virtio_blk *blk = opaque;

	enter(blk);
	blk->later_wanted = false;
	take_waiting(blk);
	blk_signal_queues(blk);
	int status = blk->stall_status;
	bool tell = status != blk->stall_told;
	blk->stall_told = status;
	leave(blk);
	if (tell && blk->config.stalled)
		blk->config.stalled(blk->config.opaque, status);
}

/* ---- the end of a request ---- */

static void release(struct blk_request *r)
{
	blk_put_free(r);
	if (r->blk->waiting)
		want_later(r->blk);
}

static uint8_t status_byte(int status)
{
	if (status == 0)
		return STATUS_OK;
	return status == -EOPNOTSUPP ? STATUS_UNSUPP : STATUS_IOERR;
}

/* Give the buffer back; whoever calls has the driver told. The status is the last byte that the device may write. */
void blk_give_back(struct blk_request *r, int status)
{
	struct virtio_blk *blk = r->blk;
	uint8_t byte = status_byte(status);

	if (virtio_has_driver(blk->device)) {
		uint64_t in_bytes = r->buffer.in_bytes;

		virtq_write(&r->buffer, in_bytes - 1, &byte, 1);
		virtq_push(virtio_queue(blk->device, r->queue), &r->buffer,
			(uint32_t)MIN(in_bytes, (uint64_t)UINT32_MAX));
		blk->to_signal |= 1u << r->queue;
	}
	release(r);
}

static void finish(struct blk_request *r, int status)
{
	blk_give_back(r, status);
	if (r->blk->to_signal)
		want_later(r->blk);
}

static bool is_kept(const struct virtio_blk *blk, int status)
{
	switch (blk->config.errors) {
	case VIRTIO_BLK_PAUSE_FULL: return status == -ENOSPC;
	case VIRTIO_BLK_PAUSE:
		return status != -EINVAL && status != -EROFS && status != -EOPNOTSUPP;
	default: return false;
	}
}

static void keep(struct blk_request *r, int status)
{
	struct virtio_blk *blk = r->blk;

	r->next = blk->stalled;
	blk->stalled = r;
	blk->stall_status = status;
	loop_timer_arm(blk->retry, clock_monotonic_ns() + VIRTIO_BLK_RETRY_NS);
	want_later(blk);
}

static void drop_stalled(struct virtio_blk *blk)
{
	struct blk_request *next;

	for (struct blk_request *r = blk->stalled; r; r = next) {
		next = r->next;
		release(r);
	}
	blk->stalled = NULL;
}

/* Nothing that failed is left: the machine may go on. */
static void check_stall(struct virtio_blk *blk)
{
	if (blk->stall_status && !blk->stalled && !blk->under_way) {
		blk->stall_status = 0;
		want_later(blk);
	}
}

/* One step of it has ended. */
static void step_ended(struct blk_request *r, int status)
{
	struct virtio_blk *blk = r->blk;

	if (blk->resetting)
		release(r);
	else if (status < 0 && is_kept(blk, status))
		keep(r, status);
	else if (status < 0)
		finish(r, status);
	else {
		r->step++;
		submit_next(r);
	}
}

static void check_reset(struct virtio_blk *blk)
{
	if (blk->under_way || !blk->resetting)
		return;
	blk->resetting = false;
	virtio_reset_done(blk->device);
}

static void block_done(struct block_request *block, int status)
{
	struct blk_request *r = block->opaque;
	struct virtio_blk *blk = r->blk;
	bool was_here = blk->here;

	if (!was_here)
		enter(blk);
	blk->under_way--;
	step_ended(r, status);
	check_stall(blk);
	check_reset(blk);
	if (!was_here)
		leave(blk);
}

/* One that was handed over: its only step. On a thread of the block device's, or if it failed on the loop's. */
void blk_handed_done(struct block_request *block, int status)
{
	struct blk_request *r = block->opaque;
	struct virtio_blk *blk = r->blk;

	if (status < 0) {
		block_done(block, status);
		return;
	}
	AUTO_LOCK(blk->lock);
	blk->under_way--;
	if (blk->resetting)
		release(r);
	else
		blk_give_back(r, 0);
	blk_signal_queues(blk);
	check_stall(blk);
	check_reset(blk);
}

/* ---- beginning ---- */

/* Submit what comes next of it (again, if it was kept), or end it. */
static void submit_next(struct blk_request *r)
{
	if (r->step >= r->range_count + r->flush) {
		finish(r, 0);
		return;
	}
	int status = blk_request_prepare(r);
	if (status < 0) {
		finish(r, status);
		return;
	}
	r->block.done = block_done;
	r->blk->under_way++;
	block_submit(r->blk->block, &r->block);
}

static void begin_request(struct blk_request *r)
{
	if (!r->buffer.in_bytes) {
		virtio_fail(r->blk->device, "a request has no room for its status");
		release(r);
		return;
	}
	int status = blk_request_read(r);
	if (status == 1)
		submit_next(r);
	else
		finish(r, status);
}

int blk_pop(struct virtio_blk *blk, unsigned queue, struct blk_request **ret_request)
{
	struct blk_request *r = blk->free;

	if (!r)
		return -EBUSY;
	int status = virtq_pop(virtio_queue(blk->device, queue), &r->buffer);
	if (status != 1)
		return status;
	blk->free = r->next;
	r->queue = queue;
	*ret_request = r;
	return 1;
}

/* As blk_pop(). */
static int take_request(struct virtio_blk *blk, unsigned queue)
{
	struct blk_request *r;
	int status = blk_pop(blk, queue, &r);

	if (status != 1)
		return status;
	begin_request(r);
	return 1;
}

/* With kicks off while there is something to take, and until a queue that had to wait is served again. */
static void take_requests(struct virtio_blk *blk, unsigned queue)
{
	struct virtq *q = virtio_queue(blk->device, queue);
	int status = 1;

	if (!virtio_live(blk->device))
		return;
	virtq_want_kicks(q, false);
	for (unsigned i = 0; i < TURN_MAX; i++) {
		status = take_request(blk, queue);
		if (status < 0 || (status == 0 && !virtq_want_kicks(q, true)))
			break;
	}
	if (status == 0 || (status < 0 && status != -EBUSY))
		return;
	blk->waiting |= 1u << queue;
	/* Those under way come back and see that somebody waits; those that are kept do not. */
	if (status == 1)
		want_later(blk);
}

/* ---- trying again ---- */

static void retry_stalled(void *opaque)
{
	struct virtio_blk *blk = opaque;

	enter(blk);
	struct blk_request *r = blk->stalled, *next;
	blk->stalled = NULL;
	for (; r; r = next) {
		next = r->next;
		submit_next(r);
	}
	check_stall(blk);
	leave(blk);
}

/* ---- virtio_ops ---- */

static uint64_t blk_features(void *device)
{
	const struct virtio_blk *blk = device;
	const struct block_limits *l = &blk->limits;

	return F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | (l->readonly ? F_RO : 0) |
	       (l->volatile_cache ? F_FLUSH | F_CONFIG_WCE : 0) |
	       (blk->config.queues > 1 ? F_MQ : 0) | (l->discard && !l->readonly ? F_DISCARD : 0) |
	       (l->write_zeroes && !l->readonly ? F_WRITE_ZEROES : 0);
}

static unsigned blk_queue_size(void *device, unsigned index)
{
	const struct virtio_blk *blk = device;

	return index < blk->config.queues ? QUEUE_SIZE : 0;
}

static void fill_config(const struct virtio_blk *blk, uint8_t *config)
{
	const struct block_limits *l = &blk->limits;
	uint32_t optimal = MAX(l->optimal_bytes, l->sector_bytes);

	store_le64(config + CONFIG_CAPACITY, l->size_bytes >> BLK_SECTOR_SHIFT);
	store_le32(config + CONFIG_SEG_MAX, SEG_MAX);
	store_le32(config + CONFIG_BLK_SIZE, l->sector_bytes);
	/* The host's files are made of pages: what is smaller costs a read too. */
	config[CONFIG_PHYSICAL_EXP] = l->sector_bytes < 4096 ? 3 : 0;
	store_le32(config + CONFIG_OPT_IO_SIZE, l->optimal_bytes / l->sector_bytes);
	config[CONFIG_WCE] = blk->wce;
	store_le16(config + CONFIG_NUM_QUEUES, (uint16_t)blk->config.queues);
	store_le32(config + CONFIG_DISCARD_SECTORS, BLK_RANGE_SECTORS);
	store_le32(config + CONFIG_DISCARD_SEG, BLK_RANGES_MAX);
	store_le32(config + CONFIG_DISCARD_ALIGNMENT, optimal >> BLK_SECTOR_SHIFT);
	store_le32(config + CONFIG_ZEROES_SECTORS, BLK_RANGE_SECTORS);
	store_le32(config + CONFIG_ZEROES_SEG, BLK_RANGES_MAX);
	config[CONFIG_ZEROES_UNMAP] = 1;
}

static void blk_config_read(void *device, unsigned offset, void *bytes, unsigned size)
{
	uint8_t config[CONFIG_BYTES] = {0};

	fill_config(device, config);
	memcpy(bytes, config + offset, size);
}

static bool is_writeback(const struct virtio_blk *blk, uint64_t features)
{
	/* 5.2.5.1: without FLUSH the driver relies on write-through. */
	return features & F_FLUSH && (blk->wce || !(features & F_CONFIG_WCE));
}

static void blk_config_write(void *device, unsigned offset, const void *bytes, unsigned size)
{
	struct virtio_blk *blk = device;
	uint64_t features = virtio_features(blk->device);

	if (offset > CONFIG_WCE || CONFIG_WCE - offset >= size || !(features & F_CONFIG_WCE))
		return;
	blk->wce = ((const uint8_t *)bytes)[CONFIG_WCE - offset] & 1;
	blk->writeback = is_writeback(blk, features);
}

static void blk_start(void *device, uint64_t features)
{
	struct virtio_blk *blk = device;

	blk->writeback = is_writeback(blk, features);
}

static void blk_notify(void *device, unsigned queue)
{
	struct virtio_blk *blk = device;

	blk->here = true;
	take_requests(blk, queue);
	blk->here = false;
}

static bool blk_reset(void *device)
{
	struct virtio_blk *blk = device;

	drop_stalled(blk);
	blk->waiting = blk->to_signal = 0;
	blk->wce = true;
	blk->writeback = false;
	blk->resetting = blk->under_way;
	check_stall(blk);
	return !blk->resetting;
}

static const struct virtio_ops blk_ops = {
	.id = VIRTIO_ID_BLOCK,
	.name = "virtio-blk",
	.features = blk_features,
	.queue_size = blk_queue_size,
	.config_bytes = CONFIG_BYTES,
	.config_read = blk_config_read,
	.config_write = blk_config_write,
	.start = blk_start,
	.notify = blk_notify,
	.doorbell = blk_doorbell,
	.reset = blk_reset,
};

/* ---- life ---- */

struct virtio_device *virtio_blk_virtio(struct virtio_blk *blk)
{
	return blk->device;
}

void virtio_blk_resized(struct virtio_blk *blk)
{
	AUTO_LOCK(blk->lock);
	block_limits(blk->block, &blk->limits);
	virtio_config_changed(blk->device);
}

void virtio_blk_free(struct virtio_blk *blk)
{
	if (!blk)
		return;
	loop_cancel(blk->loop, &blk->later);
	virtio_free(blk->device);
	loop_timer_free(blk->retry);
	for (unsigned i = 0; i < BLK_REQUESTS_MAX; i++) {
		virtq_buffer_free(&blk->requests[i].buffer);
		free(blk->requests[i].iov);
	}
	free(blk);
}

static void init(struct virtio_blk *blk, const struct virtio_config *wiring,
	const struct virtio_blk_config *config)
{
	blk->config = *config;
	blk->config.serial = NULL;
	blk->loop = wiring->loop;
	blk->lock = wiring->lock;
	blk->block = config->block;
	blk->wce = true;
	blk->later = (struct loop_call){.fn = serve_later, .opaque = blk};
	block_limits(config->block, &blk->limits);
	if (config->serial)
		memcpy(blk->serial, config->serial,
			strnlen(config->serial, VIRTIO_BLK_SERIAL_BYTES));
	for (unsigned i = 0; i < BLK_REQUESTS_MAX; i++) {
		blk->requests[i].blk = blk;
		blk_put_free(&blk->requests[i]);
	}
}

int virtio_blk_create(const struct virtio_config *wiring, const struct virtio_blk_config *config,
	struct virtio_blk **ret_blk)
{
	struct virtio_config whole = *wiring;
	int status = -ENOMEM;

	if (config->queues < 1 || config->queues > VIRTIO_BLK_QUEUES_MAX)
		return -EINVAL;
	struct virtio_blk *blk = calloc(1, sizeof(*blk));
	if (!blk)
		return -ENOMEM;
	init(blk, wiring, config);
	whole.ops = &blk_ops;
	whole.device = blk;
	blk->retry = loop_timer_create(blk->loop, retry_stalled, blk);
	if (blk->retry)
		status = virtio_create(&whole, &blk->device);
	if (status < 0) {
		virtio_blk_free(blk);
		return status;
	}
	*ret_blk = blk;
	return 0;
}
