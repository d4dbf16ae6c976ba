/*
 * Asynchronous reads, writes and fdatasyncs on the host's files by an io_uring, served on an event loop.
 *
 * What is submitted starts together, when the loop's present callback has returned; what the host has in its page
 * cache has then ended already.
 *
 * Threads: the loop's, or before it runs.
 */
#ifndef LODGE_BACKEND_DISK_RING_H
#define LODGE_BACKEND_DISK_RING_H

#include "base/util.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct loop;
struct ring;

enum ring_kind { RING_READ, RING_WRITE, RING_FDATASYNC };

/* The submitter's memory, and so what it points to, until `done`. */
struct ring_op {
	enum ring_kind kind;
	int fd;
	struct iovec *iov; /* at most IOV_MAX */
	unsigned iov_count;
	uint64_t offset;
	/* Bytes, perhaps fewer than asked for, or negative errno. Never comes inside ring_submit(). */
	void (*done)(struct ring_op *op, int result);
	struct ring_op *next; /* the ring's */
};

/* Errors: -ENOSYS, -EPERM (not permitted here, as in many containers), -ENOMEM. */
MUST_CHECK int ring_create(struct loop *loop, struct ring **ret_ring);
/* NULL is allowed. All operations have ended. */
void ring_free(struct ring *ring);
void ring_submit(struct ring *ring, struct ring_op *op);

#endif
