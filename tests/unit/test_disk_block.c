/*
 * backend/disk/block: requests against a model, over each engine and cache mode, and over a format of our own whose
 * runs are of all kinds and any length; flushes, errors.
 */
#include "backend/disk/block.h"
#include "base/clock.h"
#include "base/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define DISK_BYTES MIB(4)
#define SLOTS	   24
#define SLOT_BYTES (DISK_BYTES / SLOTS / 4096 * 4096)
#define IOVS_MAX   20

struct fixture {
	struct loop *loop;
	struct block *block;
	char path[64];
	uint8_t *model;
	uint64_t seed;
	unsigned under_way, ended;
	struct slot *slots;
	bool quick; /* requests take the ways past the loop that there are */
	atomic_uint read_at_once, handed_over;
};

static uint64_t next_random(struct fixture *f)
{
	f->seed = f->seed * 6364136223846793005ull + 1442695040888963407ull;
	return f->seed >> 33;
}

/* ---- fixture ---- */

static void make_file(struct fixture *f)
{
	strcpy(f->path, "/var/tmp/lodge-block-XXXXXX");
	int fd = mkstemp(f->path);

	assert_true(fd >= 0);
	f->model = malloc(DISK_BYTES);
	for (uint64_t i = 0; i < DISK_BYTES; i++)
		f->model[i] = (uint8_t)next_random(f);
	assert_int_equal(write(fd, f->model, DISK_BYTES), DISK_BYTES);
	close(fd);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->seed = 20261121;
	assert_int_equal(loop_create(&f->loop), 0);
	make_file(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	block_close(f->block);
	loop_free(f->loop);
	unlink(f->path);
	free(f->model);
	free(f);
	return 0;
}

static int open_block(struct fixture *f, struct disk_block_options options)
{
	struct error err = {0};
	int status = disk_block_open(f->loop, f->path, &options, &f->block, &err);

	if (status < 0)
		print_message("%s\n", err.text);
	return status;
}

/* ---- one request, waited for ---- */

struct single {
	struct block_request request;
	struct loop *loop;
	int status;
};

static void single_done(struct block_request *request, int status)
{
	struct single *s = request->opaque;

	s->status = status;
	loop_stop(s->loop);
}

static void single_submit(void *opaque);

static int perform(struct fixture *f, enum block_op op, void *bytes, uint64_t offset, uint64_t size)
{
	struct iovec iov = {bytes, size};
	struct single s = {.loop = f->loop,
		.status = 1,
		.request = {.op = op,
			.offset = offset,
			.bytes = size,
			.iov = &iov,
			.iov_count = 1,
			.done = single_done}};
	struct {
		struct block *block;
		struct block_request *request;
	} arg = {f->block, &s.request};
	struct loop_call call = {.fn = single_submit, .opaque = &arg};

	s.request.opaque = &s;
	loop_post(f->loop, &call);
	loop_run(f->loop);
	assert_true(s.status <= 0);
	return s.status;
}

static void single_submit(void *opaque)
{
	struct {
		struct block *block;
		struct block_request *request;
	} *arg = opaque;

	block_submit(arg->block, arg->request);
}

/* ---- many requests at once, each slot in a region of its own ---- */

struct slot {
	struct fixture *f;
	struct block_request request;
	struct iovec iov[IOVS_MAX];
	uint8_t *memory; /* SLOT_BYTES and a bit, so that it can be odd */
	uint64_t base, at, bytes;
	uint32_t grain;
	bool odd;
	unsigned left;
	struct loop_call handed;
	atomic_int handed_status;
};

static void slot_next(struct slot *s);

/* Cuts [memory, + bytes) into buffers with gaps between them. */
static void cut_buffers(struct slot *s)
{
	uint8_t *at = s->memory + (s->odd ? next_random(s->f) % 64 : 0);
	uint64_t left = s->bytes;
	unsigned n = 0;

	while (left) {
		uint64_t length = n + 1 == IOVS_MAX ? left : 1 + next_random(s->f) % left;

		if (!s->odd)
			length = MIN(ALIGN_UP(length, s->grain), left);
		s->iov[n++] = (struct iovec){at, length};
		at += length;
		left -= length;
	}
	s->request.iov = s->iov;
	s->request.iov_count = n;
}

static void slot_check(struct slot *s)
{
	/* request.iov may have been changed; the buffers are in a row. */
	const uint8_t *from = s->memory;

	if (s->odd)
		from = s->request.private[7];
	assert_memory_equal(from, s->f->model + s->base + s->at, s->bytes);
}

static void slot_done(struct block_request *request, int status)
{
	struct slot *s = request->opaque;

	assert_int_equal(status, 0);
	s->f->under_way--;
	s->f->ended++;
	if (request->op == BLOCK_READ)
		slot_check(s);
	else if (request->op == BLOCK_WRITE_ZEROES)
		memset(s->f->model + s->base + s->at, 0, s->bytes);
	slot_next(s);
	if (!s->f->under_way)
		loop_stop(s->f->loop);
}

static void handed_back(void *opaque)
{
	struct slot *s = opaque;

	slot_done(&s->request, s->handed_status);
}

/* On a thread of the block device's. */
static void handed_done(struct block_request *request, int status)
{
	struct slot *s = request->opaque;

	s->handed_status = status;
	loop_post(s->f->loop, &s->handed);
}

static void submit(struct slot *s)
{
	struct fixture *f = s->f;

	if (f->quick && s->request.op == BLOCK_READ && block_read_now(f->block, &s->request) == 0) {
		f->read_at_once++;
		s->handed_status = 0;
		loop_post(f->loop, &s->handed);
		return;
	}
	s->request.done = handed_done;
	if (f->quick && s->request.op == BLOCK_WRITE && block_hand_over(f->block, &s->request)) {
		f->handed_over++;
		return;
	}
	s->request.done = slot_done;
	block_submit(f->block, &s->request);
}

static enum block_op pick_op(struct fixture *f)
{
	static const enum block_op ops[] = {BLOCK_READ, BLOCK_READ, BLOCK_READ, BLOCK_WRITE,
		BLOCK_WRITE, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_WRITE_ZEROES};

	return ops[next_random(f) % ARRAY_SIZE(ops)];
}

static void slot_next(struct slot *s)
{
	struct fixture *f = s->f;

	if (!s->left--)
		return;
	s->at = ALIGN_DOWN(next_random(f) % SLOT_BYTES, (uint64_t)s->grain);
	s->bytes = MIN(ALIGN_UP(1 + next_random(f) % (next_random(f) & 1 ? 4096 : SLOT_BYTES),
			       (uint64_t)s->grain),
		SLOT_BYTES - s->at);
	s->request = (struct block_request){.op = pick_op(f),
		.offset = s->base + s->at,
		.bytes = s->bytes,
		.unmap = next_random(f) & 1,
		.done = slot_done,
		.opaque = s};
	cut_buffers(s);
	uint8_t *row = s->iov[0].iov_base;
	s->request.private[7] = row;
	if (s->request.op == BLOCK_WRITE)
		for (uint64_t i = 0; i < s->bytes; i++)
			row[i] = f->model[s->base + s->at + i] = (uint8_t)next_random(f);
	else if (s->request.op == BLOCK_READ)
		memset(row, 0xee, s->bytes);
	f->under_way++;
	submit(s);
}

static void start_slots(void *opaque)
{
	struct fixture *f = opaque;

	/* Held above 0 while they start: requests may end within. */
	f->under_way++;
	for (unsigned i = 0; i < SLOTS; i++)
		slot_next(&f->slots[i]);
	if (!--f->under_way)
		loop_stop(f->loop);
}

static void storm(struct fixture *f, unsigned requests, uint32_t grain, bool odd)
{
	struct slot *slots = calloc(SLOTS, sizeof(*slots));
	struct loop_call call = {.fn = start_slots, .opaque = f};

	f->slots = slots;
	f->ended = 0;
	for (unsigned i = 0; i < SLOTS; i++) {
		slots[i] = (struct slot){.f = f,
			.base = i * SLOT_BYTES,
			.grain = grain,
			.odd = odd,
			.left = requests,
			.handed = {.fn = handed_back, .opaque = &slots[i]},
			.memory = aligned_alloc(4096, SLOT_BYTES + 4096)};
		assert_non_null(slots[i].memory);
	}
	loop_post(f->loop, &call);
	loop_run(f->loop);
	assert_int_equal(f->ended, SLOTS * requests);
	for (unsigned i = 0; i < SLOTS; i++)
		free(slots[i].memory);
	free(slots);
}

static void check_file(struct fixture *f)
{
	uint8_t *bytes = malloc(DISK_BYTES);
	int fd = open(f->path, O_RDONLY);

	assert_int_equal(read(fd, bytes, DISK_BYTES), DISK_BYTES);
	assert_memory_equal(bytes, f->model, DISK_BYTES);
	close(fd);
	free(bytes);
}

/* ---- raw images ---- */

static void storm_raw(
	struct fixture *f, struct disk_block_options options, uint32_t grain, bool odd)
{
	options.format = "raw";
	int status = open_block(f, options);
	if (options.aio == DISK_AIO_URING && (status == -EPERM || status == -ENOSYS)) {
		print_message("NOT CHECKED: io_uring (not permitted here)\n");
		skip();
	}
	assert_int_equal(status, 0);
	storm(f, 60, grain, odd);
	block_close(f->block);
	f->block = NULL;
	check_file(f);
}

static void test_uring(void **state)
{
	storm_raw(*state, (struct disk_block_options){.aio = DISK_AIO_URING}, 512, true);
}

static void test_threads(void **state)
{
	storm_raw(*state, (struct disk_block_options){.aio = DISK_AIO_THREADS}, 512, true);
}

static void test_write_through(void **state)
{
	storm_raw(*state, (struct disk_block_options){.cache = DISK_CACHE_WRITETHROUGH}, 512, true);
}

static void test_unsafe(void **state)
{
	storm_raw(*state, (struct disk_block_options){.cache = DISK_CACHE_UNSAFE}, 512, true);
}

static void test_direct_aligned(void **state)
{
	storm_raw(*state, (struct disk_block_options){.cache = DISK_CACHE_NONE}, 4096, false);
}

static void test_direct_odd(void **state)
{
	storm_raw(*state, (struct disk_block_options){.cache = DISK_CACHE_NONE}, 4096, true);
}

static void test_direct_threads(void **state)
{
	storm_raw(*state,
		(struct disk_block_options){.cache = DISK_CACHE_NONE, .aio = DISK_AIO_THREADS},
		4096, true);
}

/* ---- ways past the loop ---- */

/* Behind the slots nobody writes. */
#define QUIET_BYTES (DISK_BYTES - SLOTS * SLOT_BYTES)

struct reader {
	struct fixture *f;
	atomic_bool stop;
	unsigned reads;
	bool wrong;
};

static void *read_quiet(void *opaque)
{
	struct reader *reader = opaque;
	struct fixture *f = reader->f;
	uint8_t bytes[8192];

	for (uint64_t at = 0; !reader->stop; at = (at + 512) % (QUIET_BYTES - sizeof(bytes))) {
		struct iovec iov[2] = {{bytes, 512}, {bytes + 512, sizeof(bytes) - 512}};
		struct block_request request = {.op = BLOCK_READ,
			.offset = SLOTS * SLOT_BYTES + at,
			.bytes = sizeof(bytes),
			.iov = iov,
			.iov_count = 2};

		memset(bytes, 0xee, sizeof(bytes));
		if (block_read_now(f->block, &request) < 0)
			continue;
		reader->reads++;
		reader->wrong |= memcmp(bytes, f->model + request.offset, sizeof(bytes)) ||
				 iov[0].iov_len != 512 || iov[0].iov_base != bytes;
	}
	return NULL;
}

/* Reads and writes on the quick ways, with others on the loop and a thread that only reads. */
static void storm_quick(struct fixture *f, struct disk_block_options options)
{
	struct reader reader = {.f = f};
	pthread_t thread;

	assert_int_equal(open_block(f, options), 0);
	f->quick = true;
	assert_int_equal(pthread_create(&thread, NULL, read_quiet, &reader), 0);
	storm(f, 60, 512, true);
	reader.stop = true;
	pthread_join(thread, NULL);
	assert_false(reader.wrong);
	if (!f->read_at_once)
		print_message(
			"NOT CHECKED: reads at once (the file system of /var/tmp has none)\n");
	else
		assert_true(reader.reads > 0);
	assert_true(f->handed_over > 0);
	block_close(f->block);
	f->block = NULL;
	check_file(f);
}

static void test_quick(void **state)
{
	storm_quick(*state, (struct disk_block_options){.format = "raw"});
}

static void test_quick_threads(void **state)
{
	storm_quick(*state, (struct disk_block_options){.format = "raw", .aio = DISK_AIO_THREADS});
}

static int read_at(struct fixture *f, uint64_t offset, uint8_t *bytes, uint64_t size)
{
	struct iovec iov = {bytes, size};
	struct block_request request = {
		.op = BLOCK_READ, .offset = offset, .bytes = size, .iov = &iov, .iov_count = 1};

	return block_read_now(f->block, &request);
}

/* What must not, or can't, take a quick way. */
static void test_quick_refused(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = aligned_alloc(4096, 8192);
	struct iovec iov = {bytes, 4096};
	struct block_request write = {
		.op = BLOCK_WRITE, .bytes = 4096, .iov = &iov, .iov_count = 1, .done = handed_done};

	assert_int_equal(open_block(f, (struct disk_block_options){.cache = DISK_CACHE_WRITETHROUGH,
					       .format = "raw"}),
		0);
	assert_false(block_hand_over(f->block, &write));
	assert_int_equal(read_at(f, DISK_BYTES - 512, bytes, 1024), -EAGAIN);
	assert_int_equal(read_at(f, UINT64_MAX - 511, bytes, 512), -EAGAIN);
	block_close(f->block);
	assert_int_equal(open_block(f, (struct disk_block_options){.readonly = true}), 0);
	assert_false(block_hand_over(f->block, &write));
	block_close(f->block);
	assert_int_equal(open_block(f, (struct disk_block_options){.cache = DISK_CACHE_NONE,
					       .format = "raw"}),
		0);
	assert_false(block_hand_over(f->block, &write));
	assert_int_equal(read_at(f, 0, bytes, 4096), -EAGAIN);
	block_close(f->block);
	/* The last sector ends behind the file: what is missing reads as zeros, which is the loop's to do. */
	assert_int_equal(truncate(f->path, 4096 + 700), 0);
	assert_int_equal(open_block(f, (struct disk_block_options){.format = "raw"}), 0);
	assert_int_equal(read_at(f, 4096, bytes, 1024), -EAGAIN);
	assert_int_equal(perform(f, BLOCK_READ, bytes, 4096, 1024), 0);
	assert_int_equal(bytes[1023], 0);
	free(bytes);
}

/* A file that ends in the middle of a sector, read and written with and without O_DIRECT. */
static void odd_end(struct fixture *f, enum disk_cache cache)
{
	struct disk_block_options options = {.format = "raw", .cache = cache};
	struct block_limits limits;
	uint8_t *bytes = aligned_alloc(4096, 8192);

	assert_int_equal(truncate(f->path, 4096 * 2 + 700), 0);
	assert_int_equal(open_block(f, options), 0);
	block_limits(f->block, &limits);
	assert_int_equal(
		limits.size_bytes, ALIGN_DOWN(4096 * 2 + 1024, (uint64_t)limits.sector_bytes));
	uint64_t at = limits.size_bytes - 1024;
	memset(bytes, 0xee, 8192);
	if (limits.sector_bytes == 512) {
		assert_int_equal(perform(f, BLOCK_READ, bytes, at, 1024), 0);
		assert_memory_equal(bytes, f->model + 8192, 700);
		for (unsigned i = 700; i < 1024; i++)
			assert_int_equal(bytes[i], 0);
	}
	free(bytes);
}

static void test_odd_end(void **state)
{
	odd_end(*state, DISK_CACHE_WRITEBACK);
}

static void test_odd_end_direct(void **state)
{
	odd_end(*state, DISK_CACHE_NONE);
}

static void test_limits(void **state)
{
	struct fixture *f = *state;
	struct disk_block_options options = {.format = "raw", .readonly = true};
	struct block_limits limits;
	uint8_t bytes[1024] = {0};

	assert_int_equal(open_block(f, options), 0);
	block_limits(f->block, &limits);
	assert_true(limits.readonly);
	assert_false(limits.discard || limits.write_zeroes || limits.volatile_cache);
	assert_int_equal(perform(f, BLOCK_WRITE, bytes, 0, 512), -EROFS);
	assert_int_equal(perform(f, BLOCK_WRITE_ZEROES, NULL, 0, 512), -EROFS);
	assert_int_equal(perform(f, BLOCK_READ, bytes, DISK_BYTES, 512), -EINVAL);
	assert_int_equal(perform(f, BLOCK_READ, bytes, DISK_BYTES - 512, 1024), -EINVAL);
	assert_int_equal(perform(f, BLOCK_READ, bytes, UINT64_MAX - 511, 512), -EINVAL);
	assert_int_equal(perform(f, BLOCK_READ, bytes, DISK_BYTES - 512, 512), 0);
	assert_memory_equal(bytes, f->model + DISK_BYTES - 512, 512);
	assert_int_equal(perform(f, BLOCK_FLUSH, NULL, 0, 0), 0);
	check_file(f);
}

/* The rule for formats that were guessed: a raw image can't be made to look like another. */
static void test_guessed_raw(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[4096] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3};

	memset(f->model, 0, 512);
	int fd = open(f->path, O_WRONLY);
	assert_int_equal(write(fd, f->model, 512), 512);
	close(fd);
	assert_int_equal(open_block(f, (struct disk_block_options){0}), 0);
	assert_int_equal(perform(f, BLOCK_WRITE, bytes, 0, 512), -EPERM);
	assert_int_equal(perform(f, BLOCK_WRITE, bytes, 0, 4096), -EPERM);
	check_file(f);
	bytes[0] = 'R';
	assert_int_equal(perform(f, BLOCK_WRITE, bytes, 0, 4096), 0);
	memcpy(f->model, bytes, 4096);
	check_file(f);
	/* Said to be raw, it may hold anything. */
	block_close(f->block);
	f->block = NULL;
	assert_int_equal(open_block(f, (struct disk_block_options){.format = "raw"}), 0);
	bytes[0] = 'Q';
	assert_int_equal(perform(f, BLOCK_WRITE, bytes, 0, 512), 0);
}

/* ---- a format of our own ---- */

/*
 * Bytes are where the file has them, but every run is cut at random. Some runs are slow ones; those that the map says
 * are zero are so without the file. In between, extents are counted.
 */
struct fake_format {
	pthread_mutex_t lock;
	uint64_t seed;
	bool zero[DISK_BYTES / 512];
	atomic_int extents, in_flush, flushes, writes_ended;
	atomic_bool overlap;
	int flush_status;
	bool slow_flush;
};

static uint64_t fake_random(struct fake_format *fake)
{
	pthread_mutex_lock(&fake->lock);
	fake->seed = fake->seed * 6364136223846793005ull + 1442695040888963407ull;
	uint64_t value = fake->seed >> 33;
	pthread_mutex_unlock(&fake->lock);
	return value;
}

static void fake_begin(struct disk *disk, enum disk_access access, uint64_t offset, uint64_t bytes,
	struct disk_extent *ret_extent)
{
	struct fake_format *fake = disk->private;
	uint64_t run = MIN(bytes, 512 * (1 + fake_random(fake) % 40));
	bool zero = fake->zero[offset / 512];

	for (uint64_t i = 512; i < run; i += 512)
		if (fake->zero[(offset + i) / 512] != zero)
			run = i;
	*ret_extent = (struct disk_extent){.kind = DISK_EXTENT_SLOW, .bytes = run};
	if (zero && access == DISK_READ)
		ret_extent->kind = DISK_EXTENT_ZERO;
	else if (!zero && fake_random(fake) % 4) {
		ret_extent->kind = DISK_EXTENT_DATA;
		ret_extent->file = disk->file;
		ret_extent->file_offset = offset;
		ret_extent->holder = disk;
		fake->extents++;
	}
}

static void fake_end(struct disk *disk, unsigned epoch)
{
	struct fake_format *fake = disk->private;

	assert_true(fake->extents > 0);
	fake->extents--;
}

static int fake_readv(
	struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes)
{
	return disk->file->ops->readv(disk->file, iov, count, offset);
}

static int fake_writev(
	struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes)
{
	struct fake_format *fake = disk->private;
	int status = disk->file->ops->writev(disk->file, iov, count, offset);

	for (uint64_t i = 0; i < bytes; i += 512)
		fake->zero[(offset + i) / 512] = false;
	return status;
}

static int fake_zero(struct disk *disk, uint64_t offset, uint64_t bytes, bool unmap)
{
	struct fake_format *fake = disk->private;

	for (uint64_t i = 0; i < bytes; i += 512)
		fake->zero[(offset + i) / 512] = true;
	/* Junk in the file must not be seen. */
	return 0;
}

static int fake_discard(struct disk *disk, uint64_t offset, uint64_t bytes)
{
	return 0;
}

static int fake_flush(struct disk *disk)
{
	struct fake_format *fake = disk->private;

	if (fake->in_flush++)
		fake->overlap = true;
	if (fake->slow_flush)
		usleep(50000);
	fake->flushes++;
	fake->in_flush--;
	return fake->flush_status;
}

static struct disk_file *fake_flush_file(struct disk *disk)
{
	return NULL;
}

static int fake_close(struct disk *disk)
{
	struct fake_format *fake = disk->private;

	assert_int_equal(fake->extents, 0);
	return 0;
}

static const struct disk_format fake_ops = {
	.name = "fake",
	.close = fake_close,
	.begin = fake_begin,
	.end = fake_end,
	.readv = fake_readv,
	.writev = fake_writev,
	.discard = fake_discard,
	.zero = fake_zero,
	.flush = fake_flush,
	.flush_file = fake_flush_file,
};

static void open_fake(
	struct fixture *f, struct fake_format *fake, struct disk_block_options options)
{
	struct disk_file_options file_options = {.direct = options.cache == DISK_CACHE_NONE};
	struct disk *disk = calloc(1, sizeof(*disk));
	struct error err = {0};

	memset(fake, 0, sizeof(*fake));
	pthread_mutex_init(&fake->lock, NULL);
	fake->seed = 7;
	*disk = (struct disk){.format = &fake_ops, .size_bytes = DISK_BYTES, .private = fake};
	assert_int_equal(disk_file_open(f->path, &file_options, &disk->file, &err), 0);
	assert_int_equal(disk_block_create(f->loop, disk, &options, &f->block, &err), 0);
}

static void storm_fake(struct fixture *f, struct disk_block_options options)
{
	struct fake_format *fake = malloc(sizeof(*fake));

	open_fake(f, fake, options);
	storm(f, 60, options.cache == DISK_CACHE_NONE ? 4096 : 512, true);
	assert_int_equal(fake->extents, 0);
	assert_false(fake->overlap);
	block_close(f->block);
	f->block = NULL;
	free(fake);
}

static void test_runs_quick(void **state)
{
	struct fixture *f = *state;

	f->quick = true;
	storm_fake(f, (struct disk_block_options){0});
	assert_true(f->handed_over > 0);
}

static void test_runs_uring(void **state)
{
	storm_fake(*state, (struct disk_block_options){0});
}

static void test_runs_threads(void **state)
{
	storm_fake(*state, (struct disk_block_options){.aio = DISK_AIO_THREADS});
}

static void test_runs_direct(void **state)
{
	storm_fake(*state, (struct disk_block_options){.cache = DISK_CACHE_NONE});
}

static void test_runs_write_through(void **state)
{
	storm_fake(*state, (struct disk_block_options){.cache = DISK_CACHE_WRITETHROUGH});
}

/* ---- flushes ---- */

struct flush_test {
	struct fixture *f;
	struct block_request requests[10];
	unsigned ended;
	int status[10];
	struct loop_call call;
};

static void flush_done(struct block_request *request, int status)
{
	struct flush_test *t = request->opaque;

	t->status[request - t->requests] = status;
	if (++t->ended == ARRAY_SIZE(t->requests))
		loop_stop(t->f->loop);
}

static void submit_flushes(void *opaque)
{
	struct flush_test *t = opaque;

	for (unsigned i = 0; i < ARRAY_SIZE(t->requests); i++) {
		t->requests[i] =
			(struct block_request){.op = BLOCK_FLUSH, .done = flush_done, .opaque = t};
		block_submit(t->f->block, &t->requests[i]);
	}
}

/* The first starts one; the others, which came while it was under way, ride on one other. */
static void test_flushes_ride(void **state)
{
	struct flush_test t = {.f = *state};
	struct fake_format *fake = malloc(sizeof(*fake));

	open_fake(t.f, fake, (struct disk_block_options){0});
	fake->slow_flush = true;
	t.call = (struct loop_call){.fn = submit_flushes, .opaque = &t};
	loop_post(t.f->loop, &t.call);
	loop_run(t.f->loop);
	assert_int_equal(t.ended, 10);
	assert_int_equal(fake->flushes, 2);
	block_close(t.f->block);
	t.f->block = NULL;
	free(fake);
}

static void test_flush_fails(void **state)
{
	struct fixture *f = *state;
	struct fake_format *fake = malloc(sizeof(*fake));
	uint8_t bytes[512] = {0};

	open_fake(f, fake, (struct disk_block_options){0});
	fake->flush_status = -ENOSPC;
	assert_int_equal(perform(f, BLOCK_FLUSH, NULL, 0, 0), -ENOSPC);
	fake->flush_status = 0;
	assert_int_equal(perform(f, BLOCK_FLUSH, NULL, 0, 0), 0);
	fake->flush_status = -EIO;
	assert_int_equal(perform(f, BLOCK_FLUSH, NULL, 0, 0), -EIO);
	/* What the host has dropped does not come back. */
	fake->flush_status = 0;
	assert_int_equal(perform(f, BLOCK_FLUSH, NULL, 0, 0), -EIO);
	assert_int_equal(fake->flushes, 3);
	assert_int_equal(perform(f, BLOCK_WRITE, bytes, 0, 512), 0);
	block_close(f->block);
	f->block = NULL;
	/* With write-through it is the write that fails. */
	open_fake(f, fake, (struct disk_block_options){.cache = DISK_CACHE_WRITETHROUGH});
	fake->flush_status = -EIO;
	assert_int_equal(perform(f, BLOCK_WRITE, bytes, 0, 512), -EIO);
	block_close(f->block);
	f->block = NULL;
	free(fake);
}

/* ---- a host that is full, and one that can't be reached by descriptor ---- */

static void test_full(void **state)
{
	struct fixture *f = *state;
	struct disk_block_options options = {.format = "raw"};
	struct disk_options disk_options = {.format = "raw"};
	struct disk_file *file;
	struct disk *disk;
	struct error err;
	uint8_t *bytes = calloc(1, MIB(1));

	assert_int_equal(disk_file_memory(MIB(2), &file), 0);
	assert_int_equal(file->ops->truncate(file, MIB(2)), 0);
	assert_int_equal(disk_open_file(file, &disk_options, &disk, &err), 0);
	disk->size_bytes = MIB(4);
	assert_int_equal(disk_block_create(f->loop, disk, &options, &f->block, &err), 0);
	bytes[7] = 7;
	assert_int_equal(perform(f, BLOCK_WRITE, bytes, MIB(1), MIB(1)), 0);
	assert_int_equal(perform(f, BLOCK_WRITE, bytes, MIB(3), MIB(1)), -ENOSPC);
	memset(bytes, 1, MIB(1));
	assert_int_equal(perform(f, BLOCK_READ, bytes, MIB(1), MIB(1)), 0);
	assert_int_equal(bytes[7], 7);
	assert_int_equal(bytes[8], 0);
	free(bytes);
}

struct handed_test {
	struct fixture *f;
	struct block_request request;
	int status;
	bool told_here;
};

static void handed_failed(struct block_request *request, int status)
{
	struct handed_test *t = request->opaque;

	t->status = status;
	t->told_here = loop_is_here(t->f->loop);
	loop_stop(t->f->loop);
}

/* A write that fails when it is handed over is told on the loop. */
static void test_quick_fails(void **state)
{
	struct fixture *f = *state;
	struct handed_test t = {.f = f};
	uint8_t bytes[4096] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3};
	struct iovec iov = {bytes, sizeof(bytes)};

	assert_int_equal(truncate(f->path, 0), 0);
	assert_int_equal(truncate(f->path, DISK_BYTES), 0);
	assert_int_equal(open_block(f, (struct disk_block_options){0}), 0);
	t.request = (struct block_request){.op = BLOCK_WRITE,
		.bytes = sizeof(bytes),
		.iov = &iov,
		.iov_count = 1,
		.done = handed_failed,
		.opaque = &t};
	assert_true(block_hand_over(f->block, &t.request));
	loop_run(f->loop);
	assert_int_equal(t.status, -EPERM);
	assert_true(t.told_here);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_uring),
		TEST(test_threads),
		TEST(test_write_through),
		TEST(test_unsafe),
		TEST(test_direct_aligned),
		TEST(test_direct_odd),
		TEST(test_direct_threads),
		TEST(test_odd_end),
		TEST(test_odd_end_direct),
		TEST(test_limits),
		TEST(test_guessed_raw),
		TEST(test_runs_uring),
		TEST(test_runs_threads),
		TEST(test_runs_direct),
		TEST(test_runs_write_through),
		TEST(test_flushes_ride),
		TEST(test_flush_fails),
		TEST(test_full),
		TEST(test_quick),
		TEST(test_quick_threads),
		TEST(test_quick_refused),
		TEST(test_quick_fails),
		TEST(test_runs_quick),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
