/*
 * virtio block (Virtual I/O Device 1.2, 5.2): a disk for the guest, with several queues, on any struct block.
 *
 * Threads: as virtio.h says; the block device lives on the same loop.
 */
#ifndef LODGE_DEVICE_VIRTIO_BLK_H
#define LODGE_DEVICE_VIRTIO_BLK_H

#include "device/virtio/virtio.h"

struct block;
struct virtio_blk;

#define VIRTIO_BLK_QUEUES_MAX	16
#define VIRTIO_BLK_SERIAL_BYTES 20

/* What a request that fails on the host does. A guest's own mistakes (out of range, write to a read-only disk) are
 * always reported. */
enum virtio_blk_errors {
	VIRTIO_BLK_PAUSE_FULL, /* -ENOSPC waits until there is room, all else is reported */
	VIRTIO_BLK_PAUSE,      /* any waits until it succeeds */
	VIRTIO_BLK_REPORT,     /* the guest sees it */
};

struct virtio_blk_config {
	struct block
		*block; /* the caller's, opened on the loop, open until after virtio_blk_free() */
	const char *serial; /* NULL: none; cut after VIRTIO_BLK_SERIAL_BYTES; copied */
	unsigned queues;    /* 1 to VIRTIO_BLK_QUEUES_MAX */
	enum virtio_blk_errors errors;
	/*
	 * Requests fail with `status` and are kept, or (0) none is any more: hold the machine meanwhile. They are tried
	 * again every VIRTIO_BLK_RETRY_NS. On the loop's thread, the device's lock not held. NULL: nobody holds it; they
	 * are kept and tried again all the same.
	 */
	void (*stalled)(void *opaque, int status);
	void *opaque;
};

#define VIRTIO_BLK_RETRY_NS 1000000000ull

/* `wiring`: all but ops and device. Errors: -ENOMEM, -EINVAL (queues), those of virtio_create(). Before the loop runs, or
 * on its thread. */
MUST_CHECK int virtio_blk_create(const struct virtio_config *wiring,
	const struct virtio_blk_config *config, struct virtio_blk **ret_blk);
/* NULL is allowed. As virtio_free(): after virtio_quiesce(), which waits for requests that are under way and drops those
 * that are kept. */
void virtio_blk_free(struct virtio_blk *blk);
struct virtio_device *virtio_blk_virtio(struct virtio_blk *blk);

/* The block device has another size now: tell the driver. On the loop's thread. */
void virtio_blk_resized(struct virtio_blk *blk);

#endif
