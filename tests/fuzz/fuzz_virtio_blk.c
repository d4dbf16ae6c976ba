/*
 * Fuzz target: a driver of virtio block that does anything: chains of any shape with headers and ranges from the input,
 * bytes poked into rings and buffers, features, resets, kicks to the loop and on the vCPU's thread; on a block device
 * that ends requests at once or later, well or not.
 *
 * What must hold: nothing crashes; every request to the block device is within the disk, in whole sectors, with buffers
 * of just its length in guest memory, and of a kind that was offered; none is under way behind a reset that is complete.
 */
#include "tests/fuzz/rig.h"

#include "base/bytes.h"
#include "base/log.h"
#include "base/loop.h"
#include "device/block.h"
#include "device/virtio/blk.h"
#include "device/virtio/transport.h"
#include "tests/turns.h"

#include <errno.h>

#define OPS_MAX	   300
#define QUEUES	   2
#define RINGS	   0x10000u /* 64 KiB for each queue */
#define DATA	   0x100000u
#define RAM_BYTES  MIB(4)
#define PARTS_MAX  6
#define HELD_MAX   512
#define DISK_BYTES MIB(1)

struct fake {
	struct block block;
	struct block_limits limits;
	struct block_request *held[HELD_MAX];
	unsigned held_count;
	uint8_t mood; /* hold, fail; read at once, take writes over */
};

struct target {
	struct guest_memory *memory;
	struct loop *loop;
	struct loop_call let_go;
	pthread_mutex_t lock;
	struct fake fake;
	struct virtio_blk *blk;
	struct virtio_device *device;
	struct {
		uint16_t avail, desc, size;
	} queue[QUEUES];
	bool packed;
	uint8_t *ram;
};

static struct target target;

/* ---- the block device ---- */

static void check_buffers(const struct block_request *r)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < r->iov_count; i++) {
		uint8_t *from = r->iov[i].iov_base;

		MUST(from >= target.ram && from + r->iov[i].iov_len <= target.ram + RAM_BYTES);
		bytes += r->iov[i].iov_len;
	}
	MUST(bytes == r->bytes);
}

static void check(const struct fake *fake, const struct block_request *r)
{
	const struct block_limits *l = &fake->limits;

	if (r->op == BLOCK_FLUSH)
		return;
	/* One that waited may be of before a change of size: the block device looks again. */
	MUST(r->offset <= DISK_BYTES && r->bytes <= DISK_BYTES - r->offset);
	MUST(r->offset % l->sector_bytes == 0 && r->bytes % l->sector_bytes == 0);
	MUST(r->op == BLOCK_READ || !l->readonly);
	MUST(r->op != BLOCK_DISCARD || l->discard);
	MUST(r->op != BLOCK_WRITE_ZEROES || l->write_zeroes);
	if (r->op == BLOCK_READ || r->op == BLOCK_WRITE)
		check_buffers(r);
}

static void end(struct fake *fake, struct block_request *r)
{
	static const int status[] = {0, 0, 0, -EIO, -ENOSPC, -EOPNOTSUPP, 0, 0};

	if (r->op == BLOCK_READ)
		for (unsigned i = 0; i < r->iov_count; i++)
			memset(r->iov[i].iov_base, 0x5a, r->iov[i].iov_len);
	if (r->iov_count)
		r->iov[0] = (struct iovec){0};
	r->done(r, status[fake->mood >> 1 & 7]);
}

static void fake_submit(struct block *block, struct block_request *r)
{
	struct fake *fake = container_of(block, struct fake, block);

	check(fake, r);
	if (fake->mood & 1 && fake->held_count < HELD_MAX)
		fake->held[fake->held_count++] = r;
	else
		end(fake, r);
}

static int fake_read_now(struct block *block, struct block_request *r)
{
	struct fake *fake = container_of(block, struct fake, block);

	check(fake, r);
	MUST(r->op == BLOCK_READ);
	if (!(fake->mood & 0x10))
		return -EAGAIN;
	for (unsigned i = 0; i < r->iov_count; i++)
		memset(r->iov[i].iov_base, 0x5a, r->iov[i].iov_len);
	return 0;
}

static bool fake_hand_over(struct block *block, struct block_request *r)
{
	struct fake *fake = container_of(block, struct fake, block);

	check(fake, r);
	MUST(r->op == BLOCK_WRITE);
	if (!(fake->mood & 0x20) || fake->held_count == HELD_MAX)
		return false;
	fake->held[fake->held_count++] = r;
	return true;
}

static void fake_limits(struct block *block, struct block_limits *ret_limits)
{
	*ret_limits = container_of(block, struct fake, block)->limits;
}

static const struct block_ops fake_ops = {.submit = fake_submit,
	.read_now = fake_read_now,
	.hand_over = fake_hand_over,
	.limits = fake_limits};

/* On the loop: all that are held now. */
static void let_go(void *opaque)
{
	struct fake *fake = &((struct target *)opaque)->fake;
	unsigned count = fake->held_count;

	while (count--) {
		struct block_request *r = fake->held[0];

		fake->held[0] = fake->held[--fake->held_count];
		end(fake, r);
	}
}

static void ignore_queue(void *opaque, unsigned queue) {}

static void ignore(void *opaque) {}

/* The reset is complete. */
static void was_reset(void *opaque)
{
	MUST(((struct target *)opaque)->fake.held_count == 0);
}

static const struct virtio_transport_ops transport = {
	.queue_interrupt = ignore_queue, .config_interrupt = ignore, .was_reset = was_reset};

static void run(struct target *t)
{
	run_turns(t->loop, 3);
}

static void run_let_go(struct target *t)
{
	loop_post(t->loop, &t->let_go);
	run(t);
}

/* ---- what a driver does ---- */

static void reset(struct target *t)
{
	pthread_mutex_lock(&t->lock);
	virtio_set_status(t->device, 0);
	bool done = virtio_status(t->device) == 0;
	pthread_mutex_unlock(&t->lock);
	if (!done) {
		t->fake.mood &= 0xfe;
		run_let_go(t);
	}
}

static void start(struct target *t, struct rig_input *in)
{
	uint64_t wanted = rig_take(in, 3);
	uint8_t how = (uint8_t)rig_take(in, 1);

	reset(t);
	pthread_mutex_lock(&t->lock);
	MUST(virtio_status(t->device) == 0 && t->fake.held_count == 0);
	memset(t->queue, 0, sizeof(t->queue));
	wanted |= (how & 1 ? VIRTIO_F_EVENT_IDX : 0) | (how & 2 ? VIRTIO_F_INDIRECT_DESC : 0) |
		  (how & 4 ? VIRTIO_F_RING_PACKED : 0) | VIRTIO_F_VERSION_1;
	wanted &= virtio_features_offered(t->device);
	t->packed = how & 4;
	virtio_set_features_driver(t->device, 0, (uint32_t)wanted);
	virtio_set_features_driver(t->device, 1, (uint32_t)(wanted >> 32));
	virtio_set_status(t->device, 11);
	for (unsigned i = 0; i < QUEUES; i++) {
		struct virtq_setup *setup = virtio_queue_setup(t->device, i);
		gpa_t base = RINGS + i * 0x10000u;

		memset(t->ram + base, 0, 0x10000);
		t->queue[i].size = setup->size = how & 16 ? 8 : 256;
		setup->desc = base;
		setup->driver = base + 0x8000;
		setup->device = base + 0xa000;
		virtio_queue_enable(t->device, i);
	}
	virtio_set_status(t->device, 15);
	pthread_mutex_unlock(&t->lock);
	run(t);
}

static void put_descriptor(
	struct target *t, unsigned q, uint32_t gpa, uint32_t bytes, bool in, bool more)
{
	const unsigned index = t->queue[q].desc % t->queue[q].size;
	const uint16_t flags = (in ? 2 : 0) | (more ? 1 : 0);
	uint8_t *d = t->ram + RINGS + q * 0x10000u + 16 * index;

	store_le64(d, gpa);
	store_le32(d + 8, bytes);
	if (t->packed) {
		bool wrap = !(t->queue[q].desc / t->queue[q].size & 1);

		store_le16(d + 12, (uint16_t)index);
		store_le16(d + 14, flags | (wrap ? 0x80 : 0x8000));
	} else {
		store_le16(d + 12, flags);
		store_le16(d + 14, (uint16_t)((index + 1) % t->queue[q].size));
	}
	t->queue[q].desc++;
}

static void publish(struct target *t, unsigned q, unsigned head)
{
	uint8_t *avail = t->ram + RINGS + q * 0x10000u + 0x8000;

	if (t->packed)
		return;
	store_le16(avail + 4 + 2 * (t->queue[q].avail % t->queue[q].size), (uint16_t)head);
	store_le16(avail + 2, ++t->queue[q].avail);
}

/* A request that is nearly right: type, place and length from the input, its header perhaps in two parts. */
static void add_request(struct target *t, unsigned q, struct rig_input *in)
{
	static const uint8_t types[] = {0, 1, 1, 4, 8, 11, 13, 0};
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const uint32_t gpa = DATA + (uint32_t)rig_take(in, 2) * 16, type = types[how & 7];
	const unsigned head = t->queue[q].desc % t->queue[q].size;
	uint64_t sector = rig_take(in, how & 8 ? 8 : 1) * (how & 0x10 ? 1 : 8);
	uint32_t bytes = (uint32_t)rig_take(in, 1) * (how & 0x20 ? 1 : 512);

	store_le32(t->ram + gpa, type);
	store_le64(t->ram + gpa + 8, sector);
	if (type == 11 || type == 13) {
		bytes = (how >> 4) * 16;
		for (unsigned i = 0; i < bytes; i += 16) {
			store_le64(t->ram + gpa + 16 + i, rig_take(in, 2));
			store_le32(t->ram + gpa + 24 + i, (uint32_t)rig_take(in, 1) * 8);
			store_le32(t->ram + gpa + 28 + i, (uint32_t)rig_take(in, 1) & 3);
		}
	}
	if (how & 0x40) {
		put_descriptor(t, q, gpa, 7, false, true);
		put_descriptor(t, q, gpa + 7, 9, false, true);
	} else {
		put_descriptor(t, q, gpa, 16, false, true);
	}
	if (bytes)
		put_descriptor(t, q, gpa + 16, bytes, type == 0 || type == 8, true);
	put_descriptor(t, q, DATA - 64, 1, true, false);
	publish(t, q, head);
}

/* Anything. */
static void add_chain(struct target *t, unsigned q, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const unsigned parts = 1 + how % PARTS_MAX, head = t->queue[q].desc % t->queue[q].size;
	uint32_t gpa = DATA + (uint32_t)rig_take(in, 2) * 16;

	rig_take_bytes(in, t->ram + gpa, how & 0x20 ? 16 : 0);
	for (unsigned i = 0; i < parts; i++) {
		uint32_t bytes = (uint32_t)rig_take(in, 1) << (i % 3 * 3);

		put_descriptor(t, q, gpa, bytes, i * 3 > (how >> 6) * parts, i + 1 < parts);
		gpa += bytes;
	}
	publish(t, q, head);
}

static void poke(struct target *t, struct rig_input *in)
{
	gpa_t gpa = (rig_take(in, 3) + RINGS) % (RAM_BYTES - 16);

	rig_take_bytes(in, t->ram + gpa, rig_take(in, 1) % 16);
}

static void other(struct target *t, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);

	if (how & 0x40) {
		/* It shrinks and grows; requests that are under way are of before. */
		t->fake.limits.size_bytes = DISK_BYTES >> (how & 3);
		virtio_blk_resized(t->blk);
	}
	pthread_mutex_lock(&t->lock);
	(void)virtio_config_read(t->device, rig_take(in, 1) % 72, 1u << how % 4);
	virtio_config_write(t->device, rig_take(in, 1) % 72, 1u << how % 4, how);
	pthread_mutex_unlock(&t->lock);
	if (how & 0x20)
		reset(t);
}

static void one_op(struct target *t, struct rig_input *in)
{
	const uint8_t op = (uint8_t)rig_take(in, 1);
	const unsigned q = op / 16 % QUEUES;

	switch (op % 16) {
	case 0: start(t, in); break;
	case 1:
	case 2:
	case 3:
	case 4: add_request(t, q, in); break;
	case 5: add_chain(t, q, in); break;
	case 6: poke(t, in); break;
	case 7: other(t, in); break;
	case 8: t->fake.mood = (uint8_t)rig_take(in, 1); break;
	case 9: run_let_go(t); break;
	case 10: run(t); break;
	default:
		if (op & 0x80)
			virtq_ring(virtio_queue(t->device, q));
		else
			virtio_kick(t->device, q);
		run(t);
	}
}

static void init(struct target *t, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const struct virtio_config wiring = {
		.memory = t->memory, .lock = &t->lock, .loop = t->loop, .name = "fuzz"};
	const struct virtio_blk_config config = {.block = &t->fake.block,
		.serial = "fuzz",
		.queues = QUEUES,
		.errors = (enum virtio_blk_errors)(how >> 6) % 3};

	t->fake = (struct fake){.block.ops = &fake_ops};
	t->fake.limits = (struct block_limits){.size_bytes = DISK_BYTES,
		.sector_bytes = how & 1 ? 4096 : 512,
		.optimal_bytes = how & 2 ? 65536 : 0,
		.memory_align = 1,
		.readonly = (how & 0x1c) == 0x1c,
		.discard = how & 8,
		.write_zeroes = how & 16,
		.volatile_cache = how & 32};
	MUST(virtio_blk_create(&wiring, &config, &t->blk) == 0);
	t->device = virtio_blk_virtio(t->blk);
	virtio_attach(t->device, &transport, t);
}

static void set_up(struct target *t)
{
	log_level_set(LOG_LEVEL_ERROR);
	MUST(memory_create(&t->memory) == 0);
	MUST(memory_add_ram(t->memory, 0, RAM_BYTES, 0, "ram", NULL) == 0);
	MUST(loop_create(&t->loop) == 0);
	pthread_mutex_init(&t->lock, NULL);
	t->let_go = (struct loop_call){.fn = let_go, .opaque = t};
	t->ram = memory_host(t->memory, 0, RAM_BYTES, true);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	struct target *t = &target;

	if (!t->memory)
		set_up(t);
	init(t, &in);
	start(t, &in);
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(t, &in);
	reset(t);
	MUST(t->fake.held_count == 0);
	virtio_blk_free(t->blk);
	run(t);
	memset(t->ram, 0, RAM_BYTES);
	return 0;
}
