/*
 * The io_uring of a disk: see ring.h, and io_uring(7).
 *
 * The ring's descriptor itself is in the loop: it is readable while completions are there. Those that come with the
 * submission (the page cache's) are taken at once and never get that far.
 *
 * Invariants: as many operations are with the kernel as its completion queue holds, so that none can overflow; others
 * wait in `waiting`, in order.
 */
#include "backend/disk/ring.h"

#include "base/cleanup.h"
#include "base/loop.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define ENTRIES	    128
#define WITH_KERNEL 256 /* the completion queue has twice the entries */

struct ring {
	struct loop *loop;
	struct io_uring uring;
	struct loop_source *source;
	struct loop_call commit;
	struct ring_op *waiting, **waiting_end;
	unsigned with_kernel; /* or prepared for it */
	bool reaping;
};

static void want_commit(struct ring *ring)
{
	if (!ring->commit.posted)
		loop_post(ring->loop, &ring->commit);
}

static void wait_in_line(struct ring *ring, struct ring_op *op)
{
	op->next = NULL;
	*ring->waiting_end = op;
	ring->waiting_end = &op->next;
}

static void fill(struct io_uring_sqe *sqe, struct ring_op *op)
{
	switch (op->kind) {
	case RING_READ: io_uring_prep_readv(sqe, op->fd, op->iov, op->iov_count, op->offset); break;
	case RING_WRITE:
		io_uring_prep_writev(sqe, op->fd, op->iov, op->iov_count, op->offset);
		break;
	case RING_FDATASYNC: io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC); break;
	}
	io_uring_sqe_set_data(sqe, op);
}

/* false: no room now. */
static bool prepare(struct ring *ring, struct ring_op *op)
{
	struct io_uring_sqe *sqe =
		ring->with_kernel < WITH_KERNEL ? io_uring_get_sqe(&ring->uring) : NULL;

	if (!sqe)
		return false;
	fill(sqe, op);
	ring->with_kernel++;
	return true;
}

static void prepare_waiting(struct ring *ring)
{
	while (ring->waiting) {
		struct ring_op *op = ring->waiting, *next = op->next;

		if (!prepare(ring, op))
			return;
		ring->waiting = next;
		if (!next)
			ring->waiting_end = &ring->waiting;
	}
}

/* The end of the thread that submitted it, and a lack of memory for the moment, are no end of the operation. */
static bool is_to_be_repeated(int result)
{
	return result == -ECANCELED || result == -EINTR || result == -EAGAIN;
}

static void reap(struct ring *ring)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&ring->uring, &cqe) == 0) {
		struct ring_op *op = io_uring_cqe_get_data(cqe);
		int result = cqe->res;

		io_uring_cqe_seen(&ring->uring, cqe);
		ring->with_kernel--;
		if (is_to_be_repeated(result))
			ring_submit(ring, op);
		else
			op->done(op, result);
	}
	if (ring->waiting)
		want_commit(ring);
}

static void commit(void *opaque)
{
	struct ring *ring = opaque;

	prepare_waiting(ring);
	while (io_uring_sq_ready(&ring->uring)) {
		/* Negative: the kernel is out of memory or busy; what is there is tried again. */
		if (io_uring_submit(&ring->uring) < 0) {
			want_commit(ring);
			break;
		}
		prepare_waiting(ring);
	}
	reap(ring);
}

static void ring_ready(void *opaque, uint32_t events)
{
	reap(opaque);
}

void ring_submit(struct ring *ring, struct ring_op *op)
{
	if (ring->waiting || !prepare(ring, op))
		wait_in_line(ring, op);
	want_commit(ring);
}

void ring_free(struct ring *ring)
{
	if (!ring)
		return;
	loop_remove(ring->source);
	io_uring_queue_exit(&ring->uring);
	free(ring);
}

/* Interrupting the thread for a completion gains nothing: it comes back to the loop by itself. Kernels before 5.19
 * know no such flag. */
static int open_uring(struct io_uring *uring)
{
	int status = io_uring_queue_init(ENTRIES, uring, IORING_SETUP_COOP_TASKRUN);

	if (status == -EINVAL)
		status = io_uring_queue_init(ENTRIES, uring, 0);
	return status;
}

int ring_create(struct loop *loop, struct ring **ret_ring)
{
	AUTO_FREE struct ring *ring = calloc(1, sizeof(*ring));

	if (!ring)
		return -ENOMEM;
	ring->loop = loop;
	ring->waiting_end = &ring->waiting;
	ring->commit = (struct loop_call){.fn = commit, .opaque = ring};
	int status = open_uring(&ring->uring);
	if (status < 0)
		return status;
	status = loop_add(loop, ring->uring.ring_fd, EPOLLIN, ring_ready, ring, &ring->source);
	if (status < 0) {
		io_uring_queue_exit(&ring->uring);
		return status;
	}
	*ret_ring = take_ptr(&ring);
	return 0;
}
