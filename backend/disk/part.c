/*
 * Parts of requests: runs of an image that are alike. Data in a file are read and written by io_uring or on a worker
 * thread; zeros are filled in; what only the format can do is done by it, on a worker thread.
 *
 * With O_DIRECT, buffers that are not aligned are copied (bounce), BOUNCE_BYTES at a time. What can't be aligned at
 * all (a run that begins or ends in the middle of a sector of the host) goes through the host's page cache by way
 * of the format.
 *
 * Invariants: parts live on the loop's thread; one on a worker thread is that worker's until its end comes back.
 * Every DATA extent is given back by disk_end() exactly once, before its request ends.
 */
#include "backend/disk/block_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BOUNCE_BYTES KIB(256)
#define BOUNCE_ALIGN 4096u

struct part {
	struct transfer *transfer;
	struct part *next; /* free */
	union {
		struct ring_op ring;
		struct worker_job job;
	};
	enum block_op op;
	bool unmap;
	uint64_t offset, bytes; /* of the disk */
	struct disk_extent extent;
	int result;
	/* The guest's buffers: `own`, or the request's. */
	struct iovec *buffers, *own;
	unsigned buffer_count, own_capacity;
	char *bounce;
	struct iovec bounce_iov;
	/* DATA: what is left to do. */
	int fd;
	struct iovec *iov;
	unsigned iov_count;
	uint64_t left, file_offset;
};

/* ---- lists of buffers ---- */

static void iov_advance(struct iovec **iov, unsigned *count, uint64_t bytes)
{
	for (; bytes && *count; (*iov)++, (*count)--) {
		if (bytes < (*iov)->iov_len) {
			(*iov)->iov_base = (char *)(*iov)->iov_base + bytes;
			(*iov)->iov_len -= bytes;
			return;
		}
		bytes -= (*iov)->iov_len;
	}
}

static void iov_zero(const struct iovec *iov, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		memset(iov[i].iov_base, 0, iov[i].iov_len);
}

static void iov_copy(const struct iovec *iov, unsigned count, char *row, bool to_row)
{
	for (unsigned i = 0; i < count; row += iov[i++].iov_len)
		if (to_row)
			memcpy(row, iov[i].iov_base, iov[i].iov_len);
		else
			memcpy(iov[i].iov_base, row, iov[i].iov_len);
}

/* How many entries the next `bytes` of the transfer's buffers are in. */
static unsigned count_iov(const struct transfer *t, uint64_t bytes)
{
	const struct iovec *iov = t->request->iov + t->iov_at;
	uint64_t sum = iov->iov_len - t->iov_skip;
	unsigned n = 1;

	for (; sum < bytes; n++)
		sum += (++iov)->iov_len;
	return n;
}

/* Those entries; the transfer moves on. */
static void take_iov(struct transfer *t, uint64_t bytes, struct iovec *out)
{
	while (bytes) {
		const struct iovec *iov = &t->request->iov[t->iov_at];
		size_t room = iov->iov_len - t->iov_skip;
		size_t length = MIN(room, bytes);

		*out++ = (struct iovec){(char *)iov->iov_base + t->iov_skip, length};
		bytes -= length;
		t->iov_skip += length;
		if (length == room) {
			t->iov_at++;
			t->iov_skip = 0;
		}
	}
}

/* ---- parts are kept for the next request ---- */

static struct part *part_take(struct transfer *t)
{
	struct part *p = t->b->free_parts;

	if (p)
		t->b->free_parts = p->next;
	else if (!(p = calloc(1, sizeof(*p))))
		return NULL;
	p->transfer = t;
	p->op = t->request->op;
	p->unmap = t->request->unmap;
	p->offset = t->offset;
	p->bytes = 0;
	p->result = 0;
	p->extent.kind = DISK_EXTENT_SLOW;
	return p;
}

static void part_put(struct part *p)
{
	struct disk_block *b = p->transfer->b;

	free(p->bounce);
	p->bounce = NULL;
	p->next = b->free_parts;
	b->free_parts = p;
}

void part_free_kept(struct disk_block *b)
{
	while (b->free_parts) {
		struct part *p = b->free_parts;

		b->free_parts = p->next;
		free(p->own);
		free(p);
	}
}

static void part_ended(struct part *p)
{
	struct transfer *t = p->transfer;
	int result = p->result;

	if (p->bounce && p->op == BLOCK_READ && result == 0)
		iov_copy(p->buffers, p->buffer_count, p->bounce, false);
	if (p->extent.kind == DISK_EXTENT_DATA)
		disk_end(&p->extent);
	part_put(p);
	transfer_part_ended(t, result);
}

static void job_ended(struct worker_job *job)
{
	part_ended(container_of(job, struct part, job));
}

static void run_on_thread(struct part *p, bool (*work)(struct worker_job *job))
{
	p->job = (struct worker_job){.work = work, .done = job_ended};
	workers_submit(p->transfer->b->workers, &p->job);
}

/* ---- data in a file ---- */

static bool is_direct(const struct part *p)
{
	return p->fd == p->extent.file->direct_fd;
}

/* Take in the result of one read or write of it. true: there is more to do. */
static bool data_went_on(struct part *p, ssize_t result)
{
	if (result < 0) {
		p->result = (int)result;
		return false;
	}
	iov_advance(&p->iov, &p->iov_count, (uint64_t)result);
	p->left -= MIN((uint64_t)result, p->left);
	p->file_offset += (uint64_t)result;
	if (!p->left)
		return false;
	/* A direct transfer ends in the middle of a sector only where the file does. */
	if (result > 0 && !(is_direct(p) && (size_t)result % p->extent.file->align_bytes))
		return true;
	if (p->op == BLOCK_READ)
		iov_zero(p->iov, p->iov_count);
	else
		p->result = -EIO;
	return false;
}

static void ring_done(struct ring_op *op, int result)
{
	struct part *p = container_of(op, struct part, ring);

	if (!data_went_on(p, result)) {
		part_ended(p);
		return;
	}
	op->iov = p->iov;
	op->iov_count = p->iov_count;
	op->offset = p->file_offset;
	ring_submit(p->transfer->b->ring, op);
}

static ssize_t transfer_once(const struct part *p)
{
	const int count = (int)p->iov_count;
	const off_t offset = (off_t)p->file_offset;
	ssize_t result;

	do
		result = p->op == BLOCK_READ ? preadv(p->fd, p->iov, count, offset)
					     : pwritev(p->fd, p->iov, count, offset);
	while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : result;
}

static bool data_work(struct worker_job *job)
{
	struct part *p = container_of(job, struct part, job);

	while (data_went_on(p, transfer_once(p)))
		continue;
	return false;
}

static void data_start(struct part *p)
{
	struct disk_block *b = p->transfer->b;

	p->left = p->bytes;
	p->file_offset = p->extent.file_offset;
	if (!b->ring) {
		run_on_thread(p, data_work);
		return;
	}
	p->ring = (struct ring_op){.kind = p->op == BLOCK_READ ? RING_READ : RING_WRITE,
		.fd = p->fd,
		.iov = p->iov,
		.iov_count = p->iov_count,
		.offset = p->file_offset,
		.done = ring_done};
	ring_submit(b->ring, &p->ring);
}

/* ---- what the format does by itself ---- */

static bool slow_work(struct worker_job *job)
{
	struct part *p = container_of(job, struct part, job);
	struct disk *disk = p->transfer->b->disk;

	switch (p->op) {
	case BLOCK_READ:
		p->result = disk_readv(disk, p->buffers, p->buffer_count, p->offset, p->bytes);
		break;
	case BLOCK_WRITE:
		p->result = disk_writev(disk, p->buffers, p->buffer_count, p->offset, p->bytes);
		break;
	case BLOCK_DISCARD: p->result = disk_discard(disk, p->offset, p->bytes); break;
	case BLOCK_WRITE_ZEROES: p->result = disk_zero(disk, p->offset, p->bytes, p->unmap); break;
	case BLOCK_FLUSH: break;
	}
	return false;
}

/* ---- making a part ---- */

/* Which descriptor serves it; -1: none, the format has to. */
static int choose_fd(const struct part *p)
{
	const struct disk_file *file = p->extent.file;

	if (file->direct_fd < 0)
		return file->fd;
	return IS_ALIGNED(p->extent.file_offset | p->bytes, (uint64_t)file->align_bytes)
		       ? file->direct_fd
		       : -1;
}

static int take_buffers(struct part *p)
{
	struct transfer *t = p->transfer;

	p->buffers = t->request->iov;
	p->buffer_count = t->request->iov_count;
	if (p->bytes == t->request->bytes)
		return 0;
	unsigned count = count_iov(t, p->bytes);
	if (count > p->own_capacity) {
		struct iovec *grown = reallocarray(p->own, count, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		p->own = grown;
		p->own_capacity = count;
	}
	take_iov(t, p->bytes, p->own);
	p->buffers = p->own;
	p->buffer_count = count;
	return 0;
}

static int bounce(struct part *p)
{
	p->iov = p->buffers;
	p->iov_count = p->buffer_count;
	if (!is_direct(p) || !p->transfer->misaligned)
		return 0;
	p->bounce = aligned_alloc(BOUNCE_ALIGN, ALIGN_UP(p->bytes, BOUNCE_ALIGN));
	if (!p->bounce)
		return -ENOMEM;
	if (p->op == BLOCK_WRITE)
		iov_copy(p->buffers, p->buffer_count, p->bounce, true);
	p->bounce_iov = (struct iovec){p->bounce, p->bytes};
	p->iov = &p->bounce_iov;
	p->iov_count = 1;
	return 0;
}

static int start_transfer(struct part *p)
{
	if (p->extent.kind == DISK_EXTENT_DATA && (p->fd = choose_fd(p)) < 0) {
		disk_end(&p->extent);
		p->extent.kind = DISK_EXTENT_SLOW;
	}
	switch (p->extent.kind) {
	case DISK_EXTENT_ZERO:
		iov_zero(p->buffers, p->buffer_count);
		part_ended(p);
		return 0;
	case DISK_EXTENT_SLOW: run_on_thread(p, slow_work); return 0;
	case DISK_EXTENT_DATA: break;
	}
	int status = bounce(p);
	if (status == 0)
		data_start(p);
	return status;
}

/* A read or a write of what the image has next. */
static int begin_transfer(struct part *p)
{
	struct transfer *t = p->transfer;
	uint64_t most = t->misaligned ? MIN(t->left, BOUNCE_BYTES) : t->left;

	disk_begin(t->b->disk, p->op == BLOCK_READ ? DISK_READ : DISK_WRITE, t->offset, most,
		&p->extent);
	p->bytes = p->extent.bytes;
	int status = take_buffers(p);
	t->offset += p->bytes;
	t->left -= p->bytes;
	return status < 0 ? status : start_transfer(p);
}

static void begin_range(struct part *p)
{
	struct transfer *t = p->transfer;

	p->bytes = t->left;
	t->offset += t->left;
	t->left = 0;
	run_on_thread(p, slow_work);
}

int part_begin(struct transfer *t)
{
	struct part *p = part_take(t);

	if (!p)
		return -ENOMEM;
	t->under_way++;
	if (p->op != BLOCK_READ && p->op != BLOCK_WRITE) {
		begin_range(p);
		return 0;
	}
	/* Once it has started it is no longer ours. */
	int status = begin_transfer(p);
	if (status < 0) {
		p->result = status;
		part_ended(p);
	}
	return 0;
}
