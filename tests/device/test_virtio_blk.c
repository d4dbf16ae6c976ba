/*
 * device/virtio/blk: what drivers ask of a disk, and what hostile ones do. The block device is memory; it can keep
 * its requests under way, and fail. Everything is tried twice: with kicks that go to the loop, and with those that are
 * served on the thread of a vCPU, where the block device has a thread for writes.
 */
#include "tests/device/virtio_rig.h"

#include "base/bytes.h"
#include "device/block.h"
#include "device/virtio/blk.h"
#include "device/virtio/virtio.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define DISK_BYTES MIB(1)
#define HELD_MAX   512
#define LOG_MAX	   64

#define T_IN	       0u
#define T_OUT	       1u
#define T_FLUSH	       4u
#define T_GET_ID       8u
#define T_DISCARD      11u
#define T_WRITE_ZEROES 13u

#define F_RO	       (1ull << 5)
#define F_FLUSH	       (1ull << 9)
#define F_CONFIG_WCE   (1ull << 11)
#define F_MQ	       (1ull << 12)
#define F_DISCARD      (1ull << 13)
#define F_WRITE_ZEROES (1ull << 14)

struct fake_block {
	struct block block;
	struct block_limits limits;
	uint8_t bytes[DISK_BYTES];
	bool hold;	     /* requests stay under way until let_go() */
	struct block_request *held[HELD_MAX];
	unsigned held_count, most_held;
	int fail_status; /* of the next fail_count requests that are no reads, after `skip` of them */
	unsigned skip, fail_count;
	char log[LOG_MAX]; /* R W F D Z */
	unsigned logged;
	bool last_unmap;
	/* The quick ways. */
	bool quick;
	unsigned read_at_once;
	struct block_request *handed;
	atomic_bool hold_handed;
	pthread_t thread;
	bool has_thread;
	unsigned handed_over;
	int handed_status;
	struct loop *loop;
	struct loop_call failed;
};

struct fixture {
	struct virtio_rig rig;
	struct fake_block disk;
	struct virtio_blk *blk;
	struct virtio_blk_config config;
	int stalled[8];
	unsigned stall_count;
};

/* ---- the block device ---- */

static void transfer(struct fake_block *disk, struct block_request *r, bool write)
{
	uint64_t offset = r->offset, sum = 0;

	for (unsigned i = 0; i < r->iov_count; i++) {
		assert_true(offset + r->iov[i].iov_len <= DISK_BYTES);
		if (write)
			memcpy(disk->bytes + offset, r->iov[i].iov_base, r->iov[i].iov_len);
		else
			memcpy(r->iov[i].iov_base, disk->bytes + offset, r->iov[i].iov_len);
		offset += r->iov[i].iov_len;
		sum += r->iov[i].iov_len;
		/* "may be changed by the block device" */
		r->iov[i] = (struct iovec){0};
	}
	assert_int_equal(sum, r->bytes);
}

static int carry_out(struct fake_block *disk, struct block_request *r)
{
	int status = 0;

	if (disk->logged < LOG_MAX - 1)
		disk->log[disk->logged++] = "RWFDZ"[r->op];
	bool fails = disk->fail_count && r->op != BLOCK_READ;
	if (fails && disk->skip) {
		disk->skip--;
		fails = false;
	}
	if (fails) {
		disk->fail_count--;
		status = disk->fail_status;
	} else if (r->op == BLOCK_READ || r->op == BLOCK_WRITE)
		transfer(disk, r, r->op == BLOCK_WRITE);
	else if (r->op == BLOCK_WRITE_ZEROES) {
		assert_true(r->offset + r->bytes <= DISK_BYTES);
		memset(disk->bytes + r->offset, 0, r->bytes);
		disk->last_unmap = r->unmap;
	} else if (r->op == BLOCK_DISCARD) {
		assert_true(r->offset + r->bytes <= DISK_BYTES);
		memset(disk->bytes + r->offset, 0xdd, r->bytes);
	}
	return status;
}

static void perform(struct fake_block *disk, struct block_request *r)
{
	int status = carry_out(disk, r);

	r->done(r, status);
}

static void fake_submit(struct block *block, struct block_request *r)
{
	struct fake_block *disk = container_of(block, struct fake_block, block);

	if (!disk->hold) {
		perform(disk, r);
		return;
	}
	assert_true(disk->held_count < HELD_MAX);
	disk->held[disk->held_count++] = r;
	disk->most_held = MAX(disk->most_held, disk->held_count);
}

/* The last comes first: requests end in any order. */
static void let_go(struct fake_block *disk)
{
	while (disk->held_count) {
		struct block_request *r = disk->held[--disk->held_count];

		perform(disk, r);
	}
}

static int fake_read_now(struct block *block, struct block_request *r)
{
	struct fake_block *disk = container_of(block, struct fake_block, block);
	struct iovec iov[RIG_PARTS_MAX];

	assert_int_equal(r->op, BLOCK_READ);
	assert_true(r->iov_count <= RIG_PARTS_MAX);
	if (!disk->quick || disk->hold)
		return -EAGAIN;
	/* "the iovecs are not changed" */
	memcpy(iov, r->iov, r->iov_count * sizeof(iov[0]));
	carry_out(disk, r);
	memcpy(r->iov, iov, r->iov_count * sizeof(iov[0]));
	disk->read_at_once++;
	return 0;
}

static void tell_failed(void *opaque)
{
	struct fake_block *disk = opaque;

	disk->handed->done(disk->handed, disk->handed_status);
}

static void *handed_thread(void *opaque)
{
	struct fake_block *disk = opaque;

	while (disk->hold_handed)
		usleep(1000);
	disk->handed_status = carry_out(disk, disk->handed);
	if (disk->handed_status < 0)
		loop_post(disk->loop, &disk->failed);
	else
		disk->handed->done(disk->handed, 0);
	return NULL;
}

static void join(struct fake_block *disk)
{
	if (disk->has_thread)
		pthread_join(disk->thread, NULL);
	disk->has_thread = false;
}

static bool fake_hand_over(struct block *block, struct block_request *r)
{
	struct fake_block *disk = container_of(block, struct fake_block, block);

	assert_int_equal(r->op, BLOCK_WRITE);
	if (!disk->quick || disk->hold || (disk->hold_handed && disk->has_thread))
		return false;
	join(disk);
	disk->handed = r;
	disk->handed_over++;
	disk->has_thread = true;
	assert_int_equal(pthread_create(&disk->thread, NULL, handed_thread, disk), 0);
	return true;
}

static void fake_limits(struct block *block, struct block_limits *ret_limits)
{
	*ret_limits = container_of(block, struct fake_block, block)->limits;
}

static const struct block_ops fake_ops = {.submit = fake_submit,
	.read_now = fake_read_now,
	.hand_over = fake_hand_over,
	.limits = fake_limits};

/* ---- fixture ---- */

static void note_stall(void *opaque, int status)
{
	struct fixture *f = opaque;

	/* The device's lock is not held: whoever holds the machine waits for its vCPUs. */
	assert_int_equal(pthread_mutex_trylock(&f->rig.lock), 0);
	pthread_mutex_unlock(&f->rig.lock);
	assert_true(f->stall_count < ARRAY_SIZE(f->stalled));
	f->stalled[f->stall_count++] = status;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	virtio_rig_init(&f->rig);
	f->disk.block.ops = &fake_ops;
	f->disk.limits = (struct block_limits){.size_bytes = DISK_BYTES,
		.sector_bytes = 512,
		.optimal_bytes = 65536,
		.memory_align = 1,
		.discard = true,
		.write_zeroes = true,
		.volatile_cache = true};
	for (unsigned i = 0; i < DISK_BYTES; i++)
		f->disk.bytes[i] = (uint8_t)(i / 512 * 7 + i);
	f->config = (struct virtio_blk_config){.block = &f->disk.block,
		.serial = "serial-of-20-bytes-and-more",
		.queues = 1,
		.stalled = note_stall,
		.opaque = f};
	f->disk.loop = f->rig.loop;
	f->disk.failed = (struct loop_call){.fn = tell_failed, .opaque = &f->disk};
	*state = f;
	return 0;
}

static int setup_quick(void **state)
{
	struct fixture *f;
	int status = setup(state);

	f = *state;
	f->rig.ring = f->disk.quick = true;
	return status;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	f->disk.hold_handed = false;
	join(&f->disk);
	virtio_blk_free(f->blk);
	virtio_rig_done(&f->rig);
	free(f);
	return 0;
}

static void begin(struct fixture *f, uint64_t features)
{
	const struct virtio_config wiring = {.memory = f->rig.memory,
		.loop = f->rig.loop,
		.lock = &f->rig.lock,
		.name = "disk0"};

	if (!f->blk)
		assert_int_equal(virtio_blk_create(&wiring, &f->config, &f->blk), 0);
	virtio_rig_start(&f->rig, virtio_blk_virtio(f->blk), features);
}

/* ---- requests ---- */

struct ask {
	uint32_t type;
	uint64_t sector;
	const void *out;
	uint32_t out_bytes, in_bytes;
};

/* Two parts with everything in them; returns the status. What is read goes to `in`. */
static uint8_t ask(struct fixture *f, struct ask a, void *in)
{
	uint32_t out_bytes = 16 + a.out_bytes;
	uint8_t *out = calloc(1, out_bytes), *answer = malloc(a.in_bytes + 1);

	store_le32(out, a.type);
	store_le64(out + 8, a.sector);
	if (a.out_bytes)
		memcpy(out + 16, a.out, a.out_bytes);
	answer[a.in_bytes] = 0xaa;
	uint32_t written = virtio_rig_request(&f->rig, 0, out, out_bytes, answer, a.in_bytes + 1);
	assert_int_equal(written, a.in_bytes + 1);
	if (in)
		memcpy(in, answer, a.in_bytes);
	uint8_t status = answer[a.in_bytes];
	free(out);
	free(answer);
	return status;
}

/* A read that is not waited for. */
static int add_read(
	struct fixture *f, unsigned queue, uint64_t sector, uint32_t bytes, gpa_t *ret_in)
{
	gpa_t header = virtio_rig_alloc(&f->rig, 16);
	gpa_t in = virtio_rig_alloc(&f->rig, bytes + 1);
	struct rig_part parts[] = {{header, 16, false}, {in, bytes + 1, true}};

	store_le64(virtio_rig_at(&f->rig, header), T_IN);
	store_le64(virtio_rig_at(&f->rig, header + 8), sector);
	memset(virtio_rig_at(&f->rig, in), 0x55, bytes + 1);
	*ret_in = in;
	return virtio_rig_add(&f->rig, queue, parts, 2);
}

static uint64_t config(struct fixture *f, unsigned offset, unsigned size)
{
	pthread_mutex_lock(&f->rig.lock);
	uint64_t value = virtio_config_read(f->rig.device, offset, size);
	pthread_mutex_unlock(&f->rig.lock);
	return value;
}

static void set_config(struct fixture *f, unsigned offset, uint8_t byte)
{
	pthread_mutex_lock(&f->rig.lock);
	virtio_config_write(f->rig.device, offset, 1, byte);
	pthread_mutex_unlock(&f->rig.lock);
}

/* ---- tests ---- */

static void test_config(void **state)
{
	struct fixture *f = *state;

	f->config.queues = 4;
	begin(f, F_FLUSH | F_CONFIG_WCE | F_MQ | F_DISCARD | F_WRITE_ZEROES);
	assert_int_equal(f->rig.queue_count, 4);
	assert_int_equal(config(f, 0, 8), DISK_BYTES / 512);
	assert_int_equal(config(f, 12, 4), 254);
	assert_int_equal(config(f, 20, 4), 512);
	assert_int_equal(config(f, 24, 1), 3);
	assert_int_equal(config(f, 28, 4), 128);
	assert_int_equal(config(f, 32, 1), 1);
	assert_int_equal(config(f, 34, 2), 4);
	assert_int_equal(config(f, 40, 4), 16);
	assert_int_equal(config(f, 44, 4), 128);
	assert_int_equal(config(f, 56, 1), 1);
	f->disk.limits.size_bytes = DISK_BYTES / 2;
	virtio_blk_resized(f->blk);
	assert_int_equal(config(f, 0, 8), DISK_BYTES / 1024);
	assert_int_equal(f->rig.config_interrupts, 1);
}

static void test_features(void **state)
{
	struct fixture *f = *state;

	f->disk.limits.readonly = true;
	f->disk.limits.volatile_cache = false;
	begin(f, F_RO);
	uint64_t offered = virtio_features_offered(f->rig.device);
	assert_false(offered & (F_FLUSH | F_CONFIG_WCE | F_MQ | F_DISCARD | F_WRITE_ZEROES));
	uint8_t bytes[512] = {1};
	assert_int_equal(ask(f, (struct ask){T_OUT, 0, bytes, 512, 0}, NULL), 1);
	assert_int_equal(f->disk.bytes[0], 0);
	assert_int_equal(f->disk.logged, 0);
}

static void round_trip(struct fixture *f)
{
	uint8_t out[4096], in[4096];

	for (unsigned i = 0; i < sizeof(out); i++)
		out[i] = (uint8_t)(i * 13);
	begin(f, F_FLUSH);
	assert_int_equal(ask(f, (struct ask){T_OUT, 8, out, sizeof(out), 0}, NULL), 0);
	assert_memory_equal(f->disk.bytes + 4096, out, sizeof(out));
	assert_int_equal(ask(f, (struct ask){T_IN, 8, NULL, 0, sizeof(in)}, in), 0);
	assert_memory_equal(in, out, sizeof(in));
	assert_int_equal(ask(f, (struct ask){T_IN, 0, NULL, 0, 0}, NULL), 0);
	assert_int_equal(ask(f, (struct ask){T_FLUSH}, NULL), 0);
	assert_string_equal(f->disk.log, "WRF");
	assert_true(f->rig.interrupts[0] > 0);
	memset(in, 0xee, 32);
	assert_int_equal(ask(f, (struct ask){T_GET_ID, 0, NULL, 0, 32}, in), 0);
	assert_memory_equal(in, "serial-of-20-bytes-a", 20);
}

static void test_split(void **state)
{
	round_trip(*state);
}

static void test_packed(void **state)
{
	struct fixture *f = *state;

	f->rig.packed = f->rig.event_index = f->rig.indirect = true;
	round_trip(f);
}

/* 2.7.4.3: no assumption on how a message is laid out over descriptors. */
static void test_scattered(void **state)
{
	struct fixture *f = *state;
	struct rig_part parts[40];
	uint8_t header[16] = {0};
	gpa_t at = virtio_rig_alloc(&f->rig, 8192), data = at + 64, in = at + 4096;
	uint32_t written;
	unsigned n = 0;

	begin(f, F_FLUSH);
	store_le32(header, T_OUT);
	store_le64(header + 8, 3);
	memcpy(virtio_rig_at(&f->rig, at), header, 16);
	for (unsigned i = 0; i < 1024; i++)
		((uint8_t *)virtio_rig_at(&f->rig, data))[i] = (uint8_t)(i ^ 0x5a);
	parts[n++] = (struct rig_part){at, 5, false};
	parts[n++] = (struct rig_part){at + 5, 10, false};
	/* The header's last byte comes with no data, then data in odd pieces. */
	parts[n++] = (struct rig_part){at + 15, 1, false};
	for (unsigned offset = 0; offset < 1024;) {
		unsigned length = MIN(1024 - offset, 33u);

		parts[n++] = (struct rig_part){data + offset, length, false};
		offset += length;
	}
	parts[n++] = (struct rig_part){in, 1, true};
	assert_true(virtio_rig_add(&f->rig, 0, parts, n) >= 0);
	virtio_rig_kick(&f->rig, 0);
	assert_true(virtio_rig_wait(&f->rig, 0));
	assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, in), 0);
	assert_memory_equal(f->disk.bytes + 3 * 512, virtio_rig_at(&f->rig, data), 1024);
}

static void test_bad_requests(void **state)
{
	struct fixture *f = *state;
	const uint64_t sectors = DISK_BYTES / 512;
	uint8_t bytes[1024] = {0};

	begin(f, F_FLUSH);
	assert_int_equal(ask(f, (struct ask){T_IN, sectors - 1, NULL, 0, 1024}, NULL), 1);
	assert_int_equal(ask(f, (struct ask){T_IN, sectors, NULL, 0, 512}, NULL), 1);
	assert_int_equal(ask(f, (struct ask){T_IN, UINT64_MAX, NULL, 0, 512}, NULL), 1);
	assert_int_equal(ask(f, (struct ask){T_IN, 1ull << 55, NULL, 0, 512}, NULL), 1);
	assert_int_equal(ask(f, (struct ask){T_OUT, sectors - 1, bytes, 1024, 0}, NULL), 1);
	assert_int_equal(ask(f, (struct ask){T_OUT, 0, bytes, 100, 0}, NULL), 1);
	assert_int_equal(ask(f, (struct ask){T_IN, 0, NULL, 0, 100}, NULL), 1);
	assert_int_equal(ask(f, (struct ask){2, 0, NULL, 0, 0}, NULL), 2);
	assert_int_equal(ask(f, (struct ask){0x80000000u, 0, NULL, 0, 0}, NULL), 2);
	assert_int_equal(f->disk.logged, 0);
	assert_int_equal(ask(f, (struct ask){T_IN, sectors - 1, NULL, 0, 512}, bytes), 0);

	/* A header that is too short. */
	uint8_t status = 0xaa;
	assert_int_equal(virtio_rig_request(&f->rig, 0, bytes, 15, &status, 1), 1);
	assert_int_equal(status, 1);
	assert_int_equal(virtio_rig_status(&f->rig) & 0x40, 0);
}

static void test_no_status(void **state)
{
	struct fixture *f = *state;
	struct rig_part part = {virtio_rig_alloc(&f->rig, 16), 16, false};

	begin(f, F_FLUSH);
	assert_true(virtio_rig_add(&f->rig, 0, &part, 1) >= 0);
	virtio_rig_kick(&f->rig, 0);
	virtio_rig_run(&f->rig);
	assert_int_equal(virtio_rig_status(&f->rig) & 0x40, 0x40); /* DEVICE_NEEDS_RESET */
	begin(f, F_FLUSH);
	assert_int_equal(ask(f, (struct ask){T_FLUSH}, NULL), 0);
}

static void put_range(uint8_t *at, uint64_t sector, uint32_t sectors, uint32_t flags)
{
	store_le64(at, sector);
	store_le32(at + 8, sectors);
	store_le32(at + 12, flags);
}

static void test_ranges(void **state)
{
	struct fixture *f = *state;
	uint8_t ranges[17 * 16];

	begin(f, F_FLUSH | F_DISCARD | F_WRITE_ZEROES);
	put_range(ranges, 2, 1, 0);
	put_range(ranges + 16, 10, 2, 0);
	assert_int_equal(ask(f, (struct ask){T_DISCARD, 0, ranges, 32, 0}, NULL), 0);
	assert_int_equal(f->disk.bytes[1024], 0xdd);
	assert_int_equal(f->disk.bytes[1536], 3 * 7);
	assert_int_equal(f->disk.bytes[6143], 0xdd);
	put_range(ranges, 4, 4, 1);
	assert_int_equal(ask(f, (struct ask){T_WRITE_ZEROES, 0, ranges, 16, 0}, NULL), 0);
	assert_int_equal(f->disk.bytes[2049], 0);
	assert_true(f->disk.last_unmap);
	assert_string_equal(f->disk.log, "DDZ");

	/* The first would do, the second is wrong: nothing happens. */
	put_range(ranges, 20, 1, 0);
	put_range(ranges + 16, DISK_BYTES / 512, 1, 0);
	assert_int_equal(ask(f, (struct ask){T_DISCARD, 0, ranges, 32, 0}, NULL), 1);
	put_range(ranges + 16, 0, UINT32_MAX, 0);
	assert_int_equal(ask(f, (struct ask){T_WRITE_ZEROES, 0, ranges, 32, 0}, NULL), 1);
	put_range(ranges + 16, 0, 1, 1); /* a discard does not know unmap */
	assert_int_equal(ask(f, (struct ask){T_DISCARD, 0, ranges, 32, 0}, NULL), 2);
	put_range(ranges + 16, 0, 1, 2);
	assert_int_equal(ask(f, (struct ask){T_WRITE_ZEROES, 0, ranges, 32, 0}, NULL), 2);
	assert_int_equal(ask(f, (struct ask){T_DISCARD, 0, ranges, 17, 0}, NULL), 1);
	assert_int_equal(ask(f, (struct ask){T_DISCARD, 0, ranges, sizeof(ranges), 0}, NULL), 1);
	assert_string_equal(f->disk.log, "DDZ");
	assert_int_equal(ask(f, (struct ask){T_DISCARD}, NULL), 0);
}

/* 5.2.6.2: a driver that can't flush relies on writes being lasting. */
static void test_write_through(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[512] = {0};

	begin(f, 0);
	assert_int_equal(ask(f, (struct ask){T_OUT, 0, bytes, 512, 0}, NULL), 0);
	assert_int_equal(ask(f, (struct ask){T_IN, 0, NULL, 0, 512}, NULL), 0);
	assert_string_equal(f->disk.log, "WFR");
	begin(f, F_FLUSH | F_CONFIG_WCE);
	assert_int_equal(ask(f, (struct ask){T_OUT, 0, bytes, 512, 0}, NULL), 0);
	assert_string_equal(f->disk.log, "WFRW");
	set_config(f, 32, 0);
	assert_int_equal(ask(f, (struct ask){T_OUT, 0, bytes, 512, 0}, NULL), 0);
	assert_string_equal(f->disk.log, "WFRWWF");
	/* The flush's failure is the write's; and a reset forgets what was set. */
	f->disk.skip = 1;
	f->disk.fail_status = -EIO;
	f->disk.fail_count = 1;
	assert_int_equal(ask(f, (struct ask){T_OUT, 0, bytes, 512, 0}, NULL), 1);
	begin(f, F_FLUSH | F_CONFIG_WCE);
	assert_int_equal(config(f, 32, 1), 1);
}

static void test_reset_under_way(void **state)
{
	struct fixture *f = *state;
	gpa_t in;

	begin(f, F_FLUSH);
	f->disk.hold = true;
	assert_true(add_read(f, 0, 1, 512, &in) >= 0);
	virtio_rig_kick(&f->rig, 0);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->disk.held_count, 1);
	virtio_rig_set_status(&f->rig, 0);
	assert_int_not_equal(virtio_rig_status(&f->rig), 0);
	virtio_rig_run(&f->rig);
	assert_int_not_equal(virtio_rig_status(&f->rig), 0);
	let_go(&f->disk);
	virtio_rig_run(&f->rig);
	assert_int_equal(virtio_rig_status(&f->rig), 0);
	/* No status for a buffer that is the driver's again. */
	assert_int_equal(((uint8_t *)virtio_rig_at(&f->rig, in))[512], 0x55);
	f->disk.hold = false;
	begin(f, F_FLUSH);
	uint8_t bytes[512];
	assert_int_equal(ask(f, (struct ask){T_IN, 1, NULL, 0, 512}, bytes), 0);
	assert_memory_equal(bytes, f->disk.bytes + 512, 512);
}

/* Freed with an interrupt still to be sent: nothing of it is called later. */
static void test_free_at_once(void **state)
{
	struct fixture *f = *state;
	gpa_t in;

	begin(f, F_FLUSH);
	f->disk.hold = true;
	assert_true(add_read(f, 0, 1, 512, &in) >= 0);
	virtio_rig_kick(&f->rig, 0);
	virtio_rig_run(&f->rig);
	let_go(&f->disk);
	virtio_blk_free(f->blk);
	f->blk = NULL;
	virtio_rig_run(&f->rig);
}

/* All queues full: more than may be under way at a time. All come back, in whatever order. */
static void test_many(void **state)
{
	struct fixture *f = *state;
	unsigned added = 0, used = 0;
	gpa_t in;

	f->config.queues = 4;
	f->rig.indirect = true;
	begin(f, F_MQ);
	f->disk.hold = true;
	for (unsigned queue = 0; queue < 4; queue++) {
		while (add_read(f, queue, added % 2048, 512, &in) >= 0)
			added++;
		virtio_rig_kick(&f->rig, queue);
	}
	assert_int_equal(added, 1024);
	virtio_rig_run(&f->rig);
	assert_in_range(f->disk.held_count, 16, 300);
	for (unsigned turn = 0; turn < 200 && used < added; turn++) {
		uint32_t written;

		let_go(&f->disk);
		virtio_rig_run(&f->rig);
		for (unsigned queue = 0; queue < 4; queue++)
			while (virtio_rig_used(&f->rig, queue, &written) >= 0)
				used += written == 513;
	}
	assert_int_equal(used, added);
	assert_in_range(f->disk.most_held, 16, 300);
}

static void expect_used(struct fixture *f, bool wanted)
{
	for (unsigned i = 0; i < 300 && !rig_has_used(&f->rig, &f->rig.queue[0]); i++) {
		loop_timer_arm(f->rig.timer, clock_monotonic_ns() + 10 * NS_PER_MS);
		loop_run(f->rig.loop);
		if (!wanted && i > 5)
			break;
	}
	assert_int_equal(rig_has_used(&f->rig, &f->rig.queue[0]), wanted);
}

static void add_write_of(
	struct fixture *f, uint64_t sector, uint8_t byte, uint32_t bytes, gpa_t *ret_status)
{
	gpa_t out = virtio_rig_alloc(&f->rig, 16 + bytes), status = virtio_rig_alloc(&f->rig, 1);
	struct rig_part parts[] = {{out, 16 + bytes, false}, {status, 1, true}};

	store_le64(virtio_rig_at(&f->rig, out), T_OUT);
	store_le64(virtio_rig_at(&f->rig, out + 8), sector);
	memset(virtio_rig_at(&f->rig, out + 16), byte, bytes);
	*(uint8_t *)virtio_rig_at(&f->rig, status) = 0x55;
	*ret_status = status;
	assert_true(virtio_rig_add(&f->rig, 0, parts, 2) >= 0);
	virtio_rig_kick(&f->rig, 0);
}

static void add_write(struct fixture *f, uint64_t sector, uint8_t byte, gpa_t *ret_status)
{
	add_write_of(f, sector, byte, 512, ret_status);
}

static void test_full_pauses(void **state)
{
	struct fixture *f = *state;
	gpa_t status;
	uint32_t written;

	begin(f, F_FLUSH);
	f->disk.fail_status = -ENOSPC;
	f->disk.fail_count = 2; /* the retry fails too */
	add_write(f, 5, 0x77, &status);
	expect_used(f, false);
	assert_int_equal(f->stall_count, 1);
	assert_int_equal(f->stalled[0], -ENOSPC);
	expect_used(f, true);
	assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, status), 0);
	assert_int_equal(f->disk.bytes[5 * 512], 0x77);
	assert_int_equal(f->disk.bytes[5 * 512 + 511], 0x77);
	virtio_rig_run(&f->rig); /* that it is over is told behind it */
	assert_int_equal(f->stall_count, 2);
	assert_int_equal(f->stalled[1], 0);
	assert_string_equal(f->disk.log, "WWW");
	/* Other errors are told. */
	f->disk.fail_status = -EIO;
	f->disk.fail_count = 1;
	assert_int_equal(ask(f, (struct ask){T_FLUSH}, NULL), 1);
	assert_int_equal(f->stall_count, 2);
}

static void test_full_reports(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[512] = {0};

	f->config.errors = VIRTIO_BLK_REPORT;
	begin(f, F_FLUSH);
	f->disk.fail_status = -ENOSPC;
	f->disk.fail_count = 1;
	assert_int_equal(ask(f, (struct ask){T_OUT, 5, bytes, 512, 0}, NULL), 1);
	assert_int_equal(f->stall_count, 0);
}

static void test_reset_while_kept(void **state)
{
	struct fixture *f = *state;
	gpa_t status;

	f->config.errors = VIRTIO_BLK_PAUSE;
	begin(f, F_FLUSH);
	f->disk.fail_status = -EIO;
	f->disk.fail_count = UINT32_MAX;
	add_write(f, 5, 0x77, &status);
	expect_used(f, false);
	assert_int_equal(f->stalled[0], -EIO);
	virtio_rig_set_status(&f->rig, 0);
	assert_int_equal(virtio_rig_status(&f->rig), 0);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->stall_count, 2);
	assert_int_equal(f->stalled[1], 0);
	f->disk.fail_count = 0;
	begin(f, F_FLUSH);
	assert_int_equal(ask(f, (struct ask){T_FLUSH}, NULL), 0);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, status), 0x55);
	/* What is kept when the machine ends is dropped. */
	f->disk.fail_count = UINT32_MAX;
	add_write(f, 5, 0x77, &status);
	expect_used(f, false);
}

/* ---- doorbells ---- */

/* The loop does not run: what comes back is the vCPU's doing, and the other thread's. */
static bool comes_back(struct fixture *f)
{
	const uint64_t end_ns = clock_monotonic_ns() + RIG_WAIT_NS;

	while (!rig_has_used(&f->rig, &f->rig.queue[0]) && clock_monotonic_ns() < end_ns)
		usleep(1000);
	return rig_has_used(&f->rig, &f->rig.queue[0]);
}

static void take_used(struct fixture *f, uint32_t expected)
{
	uint32_t written = 0;

	assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
	assert_int_equal(written, expected);
}

static void read_in_doorbell(struct fixture *f)
{
	gpa_t in;

	begin(f, F_FLUSH);
	for (unsigned i = 0; i < 600; i++) {
		assert_true(add_read(f, 0, i, 512, &in) >= 0);
		assert_true(virtio_rig_kick(&f->rig, 0));
		assert_int_equal(f->rig.interrupts[0], i + 1);
		take_used(f, 513);
		assert_memory_equal(virtio_rig_at(&f->rig, in), f->disk.bytes + 512 * i, 512);
		assert_int_equal(((uint8_t *)virtio_rig_at(&f->rig, in))[512], 0);
	}
	assert_int_equal(f->disk.read_at_once, 600);
	/* What the block device can't do at once comes all the same. */
	f->disk.quick = false;
	assert_true(add_read(f, 0, 7, 512, &in) >= 0);
	virtio_rig_kick(&f->rig, 0);
	assert_false(rig_has_used(&f->rig, &f->rig.queue[0]));
	assert_true(virtio_rig_wait(&f->rig, 0));
	take_used(f, 513);
	assert_memory_equal(virtio_rig_at(&f->rig, in), f->disk.bytes + 512 * 7, 512);
}

static void test_doorbell_read(void **state)
{
	read_in_doorbell(*state);
}

static void test_doorbell_read_event_index(void **state)
{
	struct fixture *f = *state;

	f->rig.event_index = true;
	read_in_doorbell(f);
}

static void test_doorbell_read_packed(void **state)
{
	struct fixture *f = *state;

	f->rig.packed = f->rig.event_index = f->rig.indirect = true;
	read_in_doorbell(f);
}

/* However much is there, a vCPU comes out of its doorbell soon: the rest is the loop's. */
static void test_doorbell_bounded(void **state)
{
	struct fixture *f = *state;
	unsigned added = 0, used = 0;
	uint32_t written;
	gpa_t in;

	f->rig.indirect = true;
	begin(f, F_FLUSH);
	while (add_read(f, 0, added, 512, &in) >= 0)
		added++;
	assert_int_equal(added, 256);
	virtio_rig_kick(&f->rig, 0);
	assert_in_range(f->disk.read_at_once, 1, 32);
	virtio_rig_run(&f->rig);
	while (virtio_rig_used(&f->rig, 0, &written) >= 0)
		used++;
	assert_int_equal(used, added);
	/* One that is large is the loop's too. */
	f->disk.read_at_once = 0;
	assert_true(add_read(f, 0, 0, KIB(512), &in) >= 0);
	virtio_rig_kick(&f->rig, 0);
	assert_int_equal(f->disk.read_at_once, 0);
	assert_true(virtio_rig_wait(&f->rig, 0));
	take_used(f, KIB(512) + 1);
	assert_memory_equal(virtio_rig_at(&f->rig, in), f->disk.bytes, KIB(512));
}

static void test_doorbell_write(void **state)
{
	struct fixture *f = *state;
	gpa_t first, second, third;

	begin(f, F_FLUSH);
	add_write(f, 3, 0x33, &first);
	assert_true(comes_back(f));
	take_used(f, 1);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, first), 0);
	assert_int_equal(f->disk.bytes[3 * 512 + 511], 0x33);
	join(&f->disk);
	assert_int_equal(f->rig.interrupts[0], 1);
	/* What is not taken goes to the loop and overtakes it. */
	f->disk.hold_handed = true;
	add_write(f, 4, 0x44, &first);
	add_write(f, 5, 0x55, &second);
	assert_true(virtio_rig_wait(&f->rig, 0));
	take_used(f, 1);
	assert_int_equal(f->disk.handed_over, 2);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, second), 0);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, first), 0x55);
	f->disk.hold_handed = false;
	assert_true(comes_back(f));
	take_used(f, 1);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, first), 0);
	assert_int_equal(f->disk.bytes[4 * 512], 0x44);
	assert_int_equal(f->disk.bytes[5 * 512], 0x55);
	/* However large. */
	add_write_of(f, 8, 0x88, KIB(256), &third);
	assert_true(comes_back(f));
	assert_int_equal(f->disk.handed_over, 3);
	take_used(f, 1);
	assert_int_equal(f->disk.bytes[8 * 512 + KIB(256) - 1], 0x88);
}

/* The driver has its buffers back only when nobody writes them any more, and hears nothing of those. */
static void test_doorbell_reset(void **state)
{
	struct fixture *f = *state;
	const uint64_t end_ns = clock_monotonic_ns() + RIG_WAIT_NS;
	gpa_t status;

	begin(f, F_FLUSH);
	f->disk.hold_handed = true;
	add_write(f, 3, 0x33, &status);
	assert_int_equal(f->disk.handed_over, 1);
	virtio_rig_set_status(&f->rig, 0);
	virtio_rig_run(&f->rig);
	assert_int_not_equal(virtio_rig_status(&f->rig), 0);
	f->disk.hold_handed = false;
	while (virtio_rig_status(&f->rig) && clock_monotonic_ns() < end_ns)
		usleep(1000);
	assert_int_equal(virtio_rig_status(&f->rig), 0);
	virtio_rig_run(&f->rig);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, status), 0x55);
	assert_int_equal(f->rig.interrupts[0], 0);
	begin(f, F_FLUSH);
	assert_int_equal(ask(f, (struct ask){T_FLUSH}, NULL), 0);
	/* And a doorbell that rings after a reset, as a late access may. */
	virtio_rig_set_status(&f->rig, 0);
	virtq_ring(virtio_queue(f->rig.device, 0));
	virtio_rig_run(&f->rig);
}

/* Who holds the lock is the one that serves: the vCPU does not wait for it. */
static void test_doorbell_busy(void **state)
{
	struct fixture *f = *state;
	gpa_t in;

	begin(f, F_FLUSH);
	assert_true(add_read(f, 0, 9, 512, &in) >= 0);
	pthread_mutex_lock(&f->rig.lock);
	virtio_rig_kick(&f->rig, 0);
	pthread_mutex_unlock(&f->rig.lock);
	assert_int_equal(f->disk.read_at_once, 0);
	assert_true(virtio_rig_wait(&f->rig, 0));
	take_used(f, 513);
	assert_memory_equal(virtio_rig_at(&f->rig, in), f->disk.bytes + 9 * 512, 512);
}

/* While the machine is held for want of room, all is the loop's. */
static void test_doorbell_full(void **state)
{
	struct fixture *f = *state;
	gpa_t status, in;
	uint32_t written;
	unsigned used = 0;

	begin(f, F_FLUSH);
	f->disk.fail_status = -ENOSPC;
	f->disk.fail_count = 1;
	add_write(f, 5, 0x77, &status);
	assert_int_equal(f->disk.handed_over, 1);
	expect_used(f, false);
	assert_int_equal(f->stall_count, 1);
	assert_true(add_read(f, 0, 5, 512, &in) >= 0);
	virtio_rig_kick(&f->rig, 0);
	assert_int_equal(f->disk.read_at_once, 0);
	for (unsigned i = 0; i < 300 && f->stall_count < 2; i++) {
		loop_timer_arm(f->rig.timer, clock_monotonic_ns() + 10 * NS_PER_MS);
		loop_run(f->rig.loop);
	}
	while (virtio_rig_used(&f->rig, 0, &written) >= 0)
		used++;
	assert_int_equal(used, 2);
	assert_int_equal(f->stalled[1], 0);
	assert_int_equal(f->disk.bytes[5 * 512], 0x77);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, status), 0);
}

/* A driver that flushes by write-through: its writes end lasting, whichever way they go. */
static void test_doorbell_write_through(void **state)
{
	struct fixture *f = *state;
	gpa_t status;

	begin(f, 0);
	add_write(f, 3, 0x33, &status);
	assert_true(virtio_rig_wait(&f->rig, 0));
	take_used(f, 1);
	assert_string_equal(f->disk.log, "WF");
	assert_int_equal(f->disk.handed_over, 0);
}

int main(void)
{
#define TEST_BY(name, by) cmocka_unit_test_setup_teardown(name, by, teardown)
#define TEST(name)                                                        \
	cmocka_unit_test_setup_teardown(name, setup, teardown),           \
	{                                                                 \
#name ", by doorbells", name, setup_quick, teardown, NULL \
	}
	const struct CMUnitTest tests[] = {
		TEST(test_config),
		TEST(test_features),
		TEST(test_split),
		TEST(test_packed),
		TEST(test_scattered),
		TEST(test_bad_requests),
		TEST(test_no_status),
		TEST(test_ranges),
		TEST(test_write_through),
		TEST(test_reset_under_way),
		TEST(test_free_at_once),
		TEST(test_many),
		TEST(test_full_pauses),
		TEST(test_full_reports),
		TEST(test_reset_while_kept),
		TEST_BY(test_doorbell_read, setup_quick),
		TEST_BY(test_doorbell_read_event_index, setup_quick),
		TEST_BY(test_doorbell_read_packed, setup_quick),
		TEST_BY(test_doorbell_bounded, setup_quick),
		TEST_BY(test_doorbell_write, setup_quick),
		TEST_BY(test_doorbell_reset, setup_quick),
		TEST_BY(test_doorbell_busy, setup_quick),
		TEST_BY(test_doorbell_full, setup_quick),
		TEST_BY(test_doorbell_write_through, setup_quick),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
