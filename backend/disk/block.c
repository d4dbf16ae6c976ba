/*
 * The request layer: see block.h.
 *
 * A request (struct transfer) is cut into parts (part.c), each for a run of the image that is alike. Parts are under
 * way at the same time; when the last has ended the request ends, with the first error that came.
 *
 * Flushes ride together: all that come while one is under way are served by the next, which begins after that one.
 * Once the host has failed to make data lasting, no later flush succeeds: it has dropped what it could not
 * write, so a second try would succeed without it (fsync(2), "EIO"). Only these are no such failures: -ENOSPC, the
 * format had no room for its metadata, and still has them; -ETIMEDOUT, an NBD server did not answer (nbd.h).
 *
 * Invariants: everything here is on the loop's thread, block_check() excepted.
 */
#include "backend/disk/block_private.h"

#include "backend/disk/nbd.h"
#include "base/cleanup.h"
#include "base/loop.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define THREADS_MAX  8
#define PARTS_MAX    32 /* of one request at a time */
#define SECTOR_BYTES 512u

/* ---- ends ---- */

static int map_error(int status)
{
	return status == -EDQUOT ? -ENOSPC : status;
}

static void tell_error(struct disk_block *b, const struct block_request *request, int status)
{
	static const char *const names[] = {[BLOCK_READ] = "a read",
		[BLOCK_WRITE] = "a write",
		[BLOCK_FLUSH] = "a flush",
		[BLOCK_DISCARD] = "a discard",
		[BLOCK_WRITE_ZEROES] = "a write of zeros"};
	const char *name = disk_file(b->disk)->name;

	if (status == -EPERM && request->op == BLOCK_WRITE)
		log_limited(&b->log_limit, LOG_LEVEL_WARN, "disk",
			"%s: refused a write that would make a raw image look like another format; "
			"open it with format=raw if the guest may",
			name);
	else
		log_limited(&b->log_limit, LOG_LEVEL_WARN, "disk",
			"%s: %s at byte %" PRIu64 " failed: %s", name, names[request->op],
			request->offset, strerror(-status));
}

void block_failed(struct disk_block *b, struct block_request *request, int status)
{
	status = map_error(status);
	tell_error(b, request, status);
	request->done(request, status);
}

static void transfer_done(struct transfer *t, int status)
{
	struct disk_block *b = t->b;
	struct block_request *request = t->request;

	if (status < 0)
		tell_error(b, request, status);
	t->next = b->free_transfers;
	b->free_transfers = t;
	request->done(request, status);
}

/* ---- flushes ---- */

static void start_flush(struct disk_block *b);

static void flush_ended(struct disk_block *b, int status)
{
	struct transfer *t = b->flush_riding, *next;

	status = map_error(status);
	b->flush_riding = NULL;
	b->flushing = false;
	if (status < 0 && status != -ENOSPC && status != -ETIMEDOUT)
		b->flush_broken = status;
	/* Before the ends are told: they may bring new ones. */
	if (b->flush_waiting)
		start_flush(b);
	for (; t; t = next) {
		next = t->next;
		transfer_done(t, status);
	}
}

static void flush_op_done(struct ring_op *op, int result)
{
	/* The host's data are gone, even if there was no room for them only. */
	flush_ended(container_of(op, struct disk_block, flush_op), result < 0 ? -EIO : 0);
}

static bool flush_work(struct worker_job *job)
{
	struct disk_block *b = container_of(job, struct disk_block, flush_job);

	b->flush_result = disk_flush(b->disk);
	return false;
}

static void flush_job_done(struct worker_job *job)
{
	struct disk_block *b = container_of(job, struct disk_block, flush_job);

	flush_ended(b, b->flush_result);
}

static void start_flush(struct disk_block *b)
{
	struct disk_file *file = b->ring ? disk_flush_file(b->disk) : NULL;

	b->flushing = true;
	b->flush_riding = b->flush_waiting;
	b->flush_waiting = NULL;
	if (file && file->fd >= 0) {
		b->flush_op = (struct ring_op){
			.kind = RING_FDATASYNC, .fd = file->fd, .done = flush_op_done};
		ring_submit(b->ring, &b->flush_op);
	} else {
		b->flush_job = (struct worker_job){.work = flush_work, .done = flush_job_done};
		workers_submit(b->workers, &b->flush_job);
	}
}

static void join_flush(struct transfer *t)
{
	struct disk_block *b = t->b;

	if (b->flush_broken || b->cache == DISK_CACHE_UNSAFE || disk_readonly(b->disk)) {
		transfer_done(t, b->flush_broken);
		return;
	}
	t->next = b->flush_waiting;
	b->flush_waiting = t;
	if (!b->flushing)
		start_flush(b);
}

/* ---- requests ---- */

static void transfer_ended(struct transfer *t)
{
	bool changes = t->request->op == BLOCK_WRITE || t->request->op == BLOCK_WRITE_ZEROES;

	if (t->status == 0 && changes && t->b->cache == DISK_CACHE_WRITETHROUGH)
		join_flush(t);
	else
		transfer_done(t, t->status);
}

/* Begin parts until there is nothing left of it, or enough is under way. Parts may end in here. */
static void advance(struct transfer *t)
{
	if (t->advancing)
		return;
	t->advancing = true;
	while (t->left && t->under_way < PARTS_MAX && !t->status)
		t->status = part_begin(t);
	t->advancing = false;
	if (!t->under_way)
		transfer_ended(t);
}

void transfer_part_ended(struct transfer *t, int status)
{
	t->under_way--;
	if (status < 0 && !t->status)
		t->status = map_error(status);
	advance(t);
}

static bool is_misaligned(const struct disk_block *b, const struct block_request *request)
{
	uintptr_t bits = 0;

	if (b->align == 1)
		return false;
	for (unsigned i = 0; i < request->iov_count; i++)
		bits |= (uintptr_t)request->iov[i].iov_base | request->iov[i].iov_len;
	return !IS_ALIGNED(bits, b->align);
}

int block_check(const struct disk_block *b, const struct block_request *request)
{
	uint64_t size_bytes = disk_size_bytes(b->disk);

	if (request->op == BLOCK_FLUSH)
		return 0;
	if (request->offset > size_bytes || request->bytes > size_bytes - request->offset ||
		request->iov_count > IOV_MAX)
		return -EINVAL;
	if (request->op != BLOCK_READ && disk_readonly(b->disk))
		return -EROFS;
	return 0;
}

static struct transfer *transfer_take(struct disk_block *b, struct block_request *request)
{
	struct transfer *t = b->free_transfers;

	if (t)
		b->free_transfers = t->next;
	else if (!(t = malloc(sizeof(*t))))
		return NULL;
	*t = (struct transfer){
		.b = b, .request = request, .offset = request->offset, .left = request->bytes};
	return t;
}

static void disk_block_submit(struct block *block, struct block_request *request)
{
	struct disk_block *b = container_of(block, struct disk_block, block);
	int status = block_check(b, request);
	struct transfer *t = status < 0 ? NULL : transfer_take(b, request);

	if (!t) {
		request->done(request, status < 0 ? status : -ENOMEM);
		return;
	}
	if (request->op == BLOCK_FLUSH) {
		join_flush(t);
		return;
	}
	if (request->op == BLOCK_DISCARD && !b->discard)
		t->left = 0;
	if (request->op == BLOCK_READ || request->op == BLOCK_WRITE)
		t->misaligned = is_misaligned(b, request);
	advance(t);
}

static void disk_block_limits(struct block *block, struct block_limits *ret_limits)
{
	const struct disk_block *b = container_of(block, struct disk_block, block);
	uint32_t sector_bytes = MAX(b->align, SECTOR_BYTES);

	*ret_limits = (struct block_limits){
		.size_bytes = ALIGN_DOWN(disk_size_bytes(b->disk), (uint64_t)sector_bytes),
		.sector_bytes = sector_bytes,
		.optimal_bytes = disk_cluster_bytes(b->disk),
		.memory_align = b->align,
		.readonly = disk_readonly(b->disk),
		.discard = b->discard,
		.write_zeroes = !disk_readonly(b->disk),
		.volatile_cache = b->cache != DISK_CACHE_WRITETHROUGH && !disk_readonly(b->disk),
	};
}

/* ---- life ---- */

static void disk_block_free(struct disk_block *b)
{
	ring_free(b->ring);
	workers_free(b->workers);
	part_free_kept(b);
	while (b->free_transfers) {
		struct transfer *t = b->free_transfers;

		b->free_transfers = t->next;
		free(t);
	}
	free(b);
}

static void disk_block_close(struct block *block)
{
	struct disk_block *b = container_of(block, struct disk_block, block);
	int status = disk_close(b->disk);

	if (status < 0)
		log_error("disk", "closing an image failed, what was written last may be lost: %s",
			strerror(-status));
	disk_block_free(b);
}

static const struct block_ops disk_block_ops = {
	.submit = disk_block_submit,
	.read_now = quick_read_now,
	.hand_over = quick_hand_over,
	.limits = disk_block_limits,
	.close = disk_block_close,
};

/* io_uring, or threads for all. */
static int open_engine(struct disk_block *b, enum disk_aio aio, struct error *err)
{
	int status = workers_create(b->loop, THREADS_MAX, &b->workers);

	if (status < 0)
		return error_set_errno(err, -status, "can't start a thread for disk I/O");
	if (aio == DISK_AIO_THREADS)
		return 0;
	status = ring_create(b->loop, &b->ring);
	if (status < 0 && aio == DISK_AIO_URING)
		return error_set_errno(
			err, -status, "io_uring is not to be had here (aio=threads does without)");
	if (status < 0)
		log_debug("disk", "no io_uring (%s): threads instead", strerror(-status));
	return 0;
}

int disk_block_create(struct loop *loop, struct disk *disk,
	const struct disk_block_options *options, struct block **ret_block, struct error *err)
{
	struct disk_block *b = calloc(1, sizeof(*b));
	int status;

	if (!b) {
		(void)disk_close(disk);
		return error_set_errno(err, ENOMEM, "can't open a disk");
	}
	b->block.ops = &disk_block_ops;
	b->loop = loop;
	b->disk = disk;
	b->cache = options->cache;
	b->discard = !options->ignore_discard && disk_can_discard(disk) && !disk_readonly(disk);
	b->align = disk_file(disk)->direct_fd >= 0 ? disk_file(disk)->align_bytes : 1;
	status = open_engine(b, options->aio, err);
	if (status < 0) {
		(void)disk_close(disk);
		disk_block_free(b);
		return status;
	}
	*ret_block = &b->block;
	return 0;
}

int disk_block_image(
	const char *path, const struct disk_block_options *options, struct disk **ret_disk, struct error *err)
{
	const struct disk_options disk_options = {
		.format = options->format,
		.readonly = options->readonly,
		.direct = options->cache == DISK_CACHE_NONE,
		.backing = options->backing,
		.keep_discarded = options->ignore_discard,
	};
	struct disk_file *file = NULL;
	int status = 0;

	if (nbd_file_is_uri(path))
		status = nbd_file_open(path,
			&(struct nbd_file_options){.readonly = options->readonly,
				.timeout_ns = options->nbd_timeout_ns},
			&file, err);
	if (status < 0)
		return status;
	return file ? disk_open_file(file, &disk_options, ret_disk, err) : disk_open(path, &disk_options, ret_disk, err);
}

int disk_block_open(struct loop *loop, const char *path, const struct disk_block_options *options,
	struct block **ret_block, struct error *err)
{
	struct disk *disk;
	int status = disk_block_image(path, options, &disk, err);

	return status < 0 ? status : disk_block_create(loop, disk, options, ret_block, err);
}
