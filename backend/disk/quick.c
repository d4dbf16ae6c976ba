/*
 * Ways past the loop (device/block.h: read_now, hand_over), for requests whose way to the loop's thread and back would
 * take longer than they do: reads of what the host's page cache has, and writes into it.
 *
 * Linux can say of a read that it would have to wait (preadv2(2), RWF_NOWAIT), but most of its file systems not of a
 * write. So a write is carried out on a worker thread, which tells its end by itself. Those file systems let one writer at
 * a time into a file: more threads would only wait for each other.
 *
 * Left out on purpose: O_DIRECT, storage that is no file of the host's, and writes that end with a flush.
 *
 * Invariant: any thread may be in here, also while the loop's serves other requests. What is read here is not written.
 */
#include "backend/disk/block_private.h"

#include "backend/disk/iov.h"

#include <errno.h>
#include <limits.h>

/* In the request's `private` while it is handed over. */
struct handed {
	struct worker_job job;
	struct disk_block *b;
	struct block_request *request;
	struct disk_extent extent;
	int status;
};

/* ---- reads ---- */

static int read_file(
	struct disk_block *b, const struct disk_extent *extent, const struct block_request *request)
{
	ssize_t result;

	if (extent->file->fd < 0 || extent->file->direct_fd >= 0 || request->iov_count > IOV_MAX)
		return -EAGAIN;
	result = preadv2(extent->file->fd, request->iov, (int)request->iov_count,
		(off_t)extent->file_offset, RWF_NOWAIT);
	if (result < 0 && errno == EOPNOTSUPP)
		b->no_nowait = true;
	/* A part of it, an error: whoever can wait reads all of it again. */
	return result >= 0 && (uint64_t)result == request->bytes ? 0 : -EAGAIN;
}

int quick_read_now(struct block *block, struct block_request *request)
{
	struct disk_block *b = container_of(block, struct disk_block, block);
	struct disk_extent extent;
	int status = -EAGAIN;

	if (request->op != BLOCK_READ || !request->bytes || b->no_nowait ||
		block_check(b, request) < 0)
		return -EAGAIN;
	disk_begin(b->disk, DISK_READ, request->offset, request->bytes, &extent);
	if (extent.bytes == request->bytes && extent.kind == DISK_EXTENT_DATA)
		status = read_file(b, &extent, request);
	if (extent.bytes == request->bytes && extent.kind == DISK_EXTENT_ZERO) {
		struct iov_place place = iov_start(request->iov, request->iov_count);

		iov_fill_zero(&place, request->bytes);
		status = 0;
	}
	disk_end(&extent);
	return status;
}

/* ---- writes ---- */

static bool written(struct handed *h, int status)
{
	h->status = status;
	if (status < 0)
		return false;
	h->request->done(h->request, 0);
	return true;
}

/* Where the image has its place already. */
static bool write_file_work(struct worker_job *job)
{
	struct handed *h = container_of(job, struct handed, job);
	const struct block_request *request = h->request;
	struct disk_file *file = h->extent.file;
	int status = file->ops->writev(
		file, request->iov, request->iov_count, h->extent.file_offset);

	disk_end(&h->extent);
	return written(h, status);
}

static bool write_work(struct worker_job *job)
{
	struct handed *h = container_of(job, struct handed, job);
	const struct block_request *request = h->request;

	return written(h, disk_writev(h->b->disk, request->iov, request->iov_count, request->offset,
				  request->bytes));
}

static void write_failed(struct worker_job *job)
{
	struct handed *h = container_of(job, struct handed, job);

	block_failed(h->b, h->request, h->status);
}

bool quick_hand_over(struct block *block, struct block_request *request)
{
	struct disk_block *b = container_of(block, struct disk_block, block);
	struct handed *h = (void *)request->private;

	_Static_assert(sizeof(*h) <= sizeof(request->private), "it fits");
	if (request->op != BLOCK_WRITE || !request->bytes || b->cache == DISK_CACHE_WRITETHROUGH ||
		disk_file(b->disk)->fd < 0 || disk_file(b->disk)->direct_fd >= 0 ||
		block_check(b, request) < 0)
		return false;
	*h = (struct handed){.job = {.done = write_failed}, .b = b, .request = request};
	disk_begin(b->disk, DISK_WRITE, request->offset, request->bytes, &h->extent);
	if (h->extent.kind == DISK_EXTENT_DATA && h->extent.bytes == request->bytes) {
		h->job.work = write_file_work;
		workers_submit_serial(b->workers, &h->job);
	} else {
		disk_end(&h->extent);
		h->job.work = write_work;
		workers_submit(b->workers, &h->job);
	}
	return true;
}
