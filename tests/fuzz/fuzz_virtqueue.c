/*
 * Fuzz target: a virtio device whose driver does with its queues, of either kind, what the input says: descriptors,
 * rings and tables anywhere in a small memory, statuses and features in any order; while the device pops, puts back,
 * pushes one or several, signals and polls.
 *
 * With FUZZ_RACE=1 in the environment another thread writes to all of the memory meanwhile: what the core has checked
 * must be what it uses.
 *
 * What must hold: a buffer lies in memory, is no longer than it may be and adds up; a device that failed gives nothing;
 * nothing crashes.
 */
#include "tests/fuzz/rig.h"

#include "base/log.h"
#include "base/loop.h"
#include "device/virtio/transport.h"
#include "tests/turns.h"

#define OPS_MAX	  500
#define RAM_BYTES 0x20000u
#define GAP_GPA	  0x40000u /* a second region, beyond a gap, and a third right behind it */
#define GAP_BYTES 0x4000u
#define QUEUES	  3u
#define HELD	  24u

struct fuzz {
	struct guest_memory *memory;
	struct loop *loop;
	pthread_mutex_t lock;
	struct virtio_device *virtio;
	struct virtq_buffer held[HELD];
	unsigned held_queue[HELD];
	bool is_held[HELD];
	bool defer;
	_Atomic bool racing;
	uint8_t config[5];
};

/* ---- the device ---- */

static uint64_t features(void *device)
{
	return 0xff;
}

static unsigned queue_size(void *device, unsigned index)
{
	static const unsigned sizes[QUEUES] = {8, 256, 1};

	return index < QUEUES ? sizes[index] : 0;
}

static void config_read(void *device, unsigned offset, void *bytes, unsigned size)
{
	struct fuzz *f = device;

	MUST(size <= sizeof(f->config) && offset <= sizeof(f->config) - size);
	memcpy(bytes, f->config + offset, size);
}

static void config_write(void *device, unsigned offset, const void *bytes, unsigned size)
{
	struct fuzz *f = device;

	MUST(size <= sizeof(f->config) && offset <= sizeof(f->config) - size);
	memcpy(f->config + offset, bytes, size);
}

static bool in_region(const struct guest_memory *memory, const struct iovec *iov)
{
	const uint8_t *at = iov->iov_base;

	for (unsigned i = 0; i < memory->region_count; i++) {
		const struct memory_region *region = &memory->region[i];

		if (at >= region->host && iov->iov_len <= region->size_bytes &&
			at - region->host <= (ptrdiff_t)(region->size_bytes - iov->iov_len))
			return true;
	}
	return false;
}

static void check_half(
	const struct fuzz *f, const struct iovec *iov, unsigned count, uint64_t bytes)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < count; i++) {
		MUST(iov[i].iov_len && in_region(f->memory, &iov[i]));
		sum += iov[i].iov_len;
	}
	MUST(sum == bytes);
}

static void check_buffer(const struct fuzz *f, const struct virtq_buffer *buffer)
{
	MUST(buffer->out_count + buffer->in_count <= VIRTIO_IOV_MAX);
	MUST(buffer->out_count + buffer->in_count > 0);
	check_half(f, buffer->out, buffer->out_count, buffer->out_bytes);
	check_half(f, buffer->in, buffer->in_count, buffer->in_bytes);
}

/* The bytes of the chain themselves: read, and written over. */
static uint32_t use_buffer(const struct virtq_buffer *buffer, uint8_t how)
{
	uint8_t bytes[64];
	const uint64_t offset = how % 40;
	const uint64_t got = virtq_read(buffer, offset, bytes, sizeof(bytes));
	const uint64_t there = buffer->out_bytes > offset ? buffer->out_bytes - offset : 0;

	MUST(got == MIN(there, sizeof(bytes)));
	memset(bytes, how, sizeof(bytes));
	MUST(virtq_write(buffer, 0, bytes, sizeof(bytes)) == MIN(buffer->in_bytes, sizeof(bytes)));
	return how & 1 ? how : (uint32_t)buffer->in_bytes;
}

static bool pop(struct fuzz *f, unsigned index, unsigned slot)
{
	struct virtq *q = virtio_queue(f->virtio, index);

	if (f->is_held[slot])
		return false;
	const int status = virtq_pop(q, &f->held[slot]);
	MUST(status == 0 || status == 1 || !virtio_live(f->virtio));
	if (status <= 0)
		return false;
	MUST(virtio_live(f->virtio) && virtq_is_enabled(q));
	check_buffer(f, &f->held[slot]);
	f->is_held[slot] = true;
	f->held_queue[slot] = index;
	return true;
}

/* As a simple device does: takes, uses, gives back all there is; not for ever, as the race may make more. */
static void notify(void *device, unsigned index)
{
	struct fuzz *f = device;
	struct virtq *q = virtio_queue(f->virtio, index);
	struct virtq_buffer buffer = {0};

	for (unsigned i = 0; i < 300 && virtq_pop(q, &buffer) > 0; i++) {
		check_buffer(f, &buffer);
		virtq_push(q, &buffer, use_buffer(&buffer, (uint8_t)i));
	}
	virtq_signal(q);
	virtq_buffer_free(&buffer);
}

static bool reset(void *device)
{
	struct fuzz *f = device;

	memset(f->is_held, 0, sizeof(f->is_held));
	return !f->defer;
}

static const struct virtio_ops ops = {.id = 60,
	.name = "fuzz",
	.features = features,
	.queue_size = queue_size,
	.config_bytes = 5,
	.config_read = config_read,
	.config_write = config_write,
	.notify = notify,
	.reset = reset};

static void queue_interrupt(void *opaque, unsigned queue)
{
	MUST(queue < QUEUES);
}

static void no_interrupt(void *opaque) {}

static const struct virtio_transport_ops transport = {.queue_interrupt = queue_interrupt,
	.config_interrupt = no_interrupt,
	.was_reset = no_interrupt};

/* ---- the driver ---- */

/* Mostly within memory, sometimes at its ends or beyond. */
static gpa_t take_gpa(struct rig_input *in)
{
	const uint16_t place = (uint16_t)rig_take(in, 2);

	switch (place >> 12) {
	case 15: return GAP_GPA + (place & 0xfff) * 8ull;
	case 14: return RAM_BYTES - (place & 0xff);
	case 13: return rig_take(in, 8);
	default: return place * 2ull;
	}
}

static uint32_t take_bytes(struct rig_input *in)
{
	const uint8_t bytes = (uint8_t)rig_take(in, 1);

	return bytes < 0xf0   ? bytes
	       : bytes < 0xf8 ? (bytes & 7u) * 4096
			      : (uint32_t)rig_take(in, 4);
}

static void write_descriptor(struct fuzz *f, gpa_t at, struct rig_input *in, bool packed)
{
	uint8_t d[16];
	const gpa_t addr = take_gpa(in);
	const uint32_t bytes = take_bytes(in);
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const uint16_t flags = how & 7, link = (uint16_t)rig_take(in, how & 8 ? 2 : 1);
	/* A packed descriptor's turn: bits 7 and 15. */
	const uint16_t turn = (how & 16 ? 0x80 : 0) | (how & 32 ? 0x8000 : 0);

	memcpy(d, &addr, 8);
	memcpy(d + 8, &bytes, 4);
	memcpy(d + 12, packed ? &link : &flags, 2);
	const uint16_t last = packed ? flags | turn : link;
	memcpy(d + 14, &last, 2);
	(void)!memory_write(f->memory, at, d, sizeof(d));
}

static const struct virtq_setup *setup_of(struct fuzz *f, struct rig_input *in, unsigned *ret_index)
{
	*ret_index = (unsigned)rig_take(in, 1) % QUEUES;
	return virtio_queue_setup(f->virtio, *ret_index);
}

static bool is_packed(const struct fuzz *f)
{
	return virtio_features(f->virtio) & VIRTIO_F_RING_PACKED;
}

/* A run of descriptors in a queue's table, or in a table somewhere. */
static void write_descriptors(struct fuzz *f, struct rig_input *in, bool table)
{
	unsigned index;
	const struct virtq_setup *setup = setup_of(f, in, &index);
	const gpa_t base = table ? take_gpa(in) : setup->desc;
	const unsigned first = (unsigned)rig_take(in, 1), count = 1 + (unsigned)rig_take(in, 1) % 6;

	for (unsigned i = 0; i < count && in->left; i++)
		write_descriptor(f, base + 16 * ((first + i) % MAX(setup->size, (uint16_t)1)), in,
			is_packed(f));
}

/* Makes heads available in a split queue, in a row. */
static void make_available(struct fuzz *f, struct rig_input *in)
{
	unsigned index;
	const struct virtq_setup *setup = setup_of(f, in, &index);
	const unsigned size = MAX(setup->size, (uint16_t)1), count = (unsigned)rig_take(in, 1) % 9;
	uint16_t at = 0;

	(void)!memory_read(f->memory, setup->driver + 2, &at, 2);
	for (unsigned i = 0; i < count; i++, at++) {
		const uint16_t head = (uint16_t)rig_take(in, 1);
		(void)!memory_write(f->memory, setup->driver + 4 + 2 * (at % size), &head, 2);
	}
	(void)!memory_write(f->memory, setup->driver + 2, &at, 2);
}

static void poke(struct fuzz *f, struct rig_input *in)
{
	unsigned index;
	const struct virtq_setup *setup = setup_of(f, in, &index);
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const gpa_t areas[4] = {setup->desc, setup->driver, setup->device, take_gpa(in)};
	uint8_t bytes[32];
	const size_t count = 1 + rig_take(in, 1) % sizeof(bytes);

	rig_take_bytes(in, bytes, count);
	(void)!memory_write(f->memory, areas[how & 3] + how / 4, bytes, count);
}

static void agree(struct fuzz *f, struct rig_input *in)
{
	static const uint64_t core[3] = {
		VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX, VIRTIO_F_RING_PACKED};
	const uint8_t which = (uint8_t)rig_take(in, 1);
	uint64_t wanted = which & 128 ? rig_take(in, 8) : VIRTIO_F_VERSION_1;

	for (unsigned i = 0; i < 3; i++)
		wanted |= which >> i & 1 ? core[i] : 0;
	virtio_set_status(f->virtio, 0);
	if (f->defer)
		virtio_reset_done(f->virtio);
	virtio_set_status(f->virtio, 3);
	for (unsigned half = 0; half < 3; half++)
		virtio_set_features_driver(f->virtio, half, (uint32_t)(wanted >> 32 * (half & 1)));
	virtio_set_status(f->virtio, 11);
}

static void enable(struct fuzz *f, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const unsigned index = how % QUEUES;
	struct virtq_setup *setup = virtio_queue_setup(f->virtio, index);

	if (how & 64)
		virtio_queue_disable(f->virtio, index);
	if (!setup->enabled) {
		setup->desc = ALIGN_DOWN(take_gpa(in), 16);
		setup->driver = ALIGN_DOWN(take_gpa(in), 4);
		setup->device = ALIGN_DOWN(take_gpa(in), 4);
		if (how & 128)
			setup->size = (uint16_t)rig_take(in, 1);
		if (how & 32)
			setup->desc++;
	}
	virtio_queue_enable(f->virtio, index);
	MUST(!setup->enabled || (setup->size && setup->size <= setup->size_max));
	if (how & 16)
		virtio_set_status(f->virtio, virtio_status(f->virtio) | 4);
}

/* ---- what is done ---- */

static void give_back(struct fuzz *f, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	struct virtq_buffer *all[HELD];
	uint32_t written[HELD];
	unsigned count = 0;

	for (unsigned i = 0; i < HELD; i++) {
		const unsigned slot = (i + how) % HELD;

		if (!f->is_held[slot] || f->held_queue[slot] != how % QUEUES)
			continue;
		all[count] = &f->held[slot];
		written[count++] = use_buffer(&f->held[slot], how);
		f->is_held[slot] = false;
		if (!(how & 128))
			break;
	}
	struct virtq *q = virtio_queue(f->virtio, how % QUEUES);
	if (count == 1 && how & 64)
		virtq_push(q, all[0], (uint32_t)rig_take(in, 4));
	else if (count)
		virtq_push_all(q, all, written, count);
	if (how & 32)
		virtq_signal(q);
}

static void take(struct fuzz *f, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const unsigned slot = how / 4 % HELD, index = how % 4 % QUEUES;
	struct virtq *q = virtio_queue(f->virtio, index);

	if (!pop(f, index, slot) || how < 200)
		return;
	virtq_unpop(q, &f->held[slot]);
	f->is_held[slot] = false;
	/* Nobody has changed it since: it comes again. */
	if (!f->racing && virtio_live(f->virtio))
		MUST(pop(f, index, slot) && f->is_held[slot]);
}

static void run_loop(struct fuzz *f)
{
	pthread_mutex_unlock(&f->lock);
	run_turns(f->loop, 2);
	pthread_mutex_lock(&f->lock);
}

static void one_op(struct fuzz *f, struct rig_input *in)
{
	const uint8_t op = (uint8_t)rig_take(in, 1);

	switch (op % 16) {
	case 0: agree(f, in); break;
	case 1:
	case 2: enable(f, in); break;
	case 3: write_descriptors(f, in, true); break;
	case 4:
	case 5: write_descriptors(f, in, false); break;
	case 6:
	case 7: make_available(f, in); break;
	case 8:
	case 9: take(f, in); break;
	case 10:
	case 11: give_back(f, in); break;
	case 12: poke(f, in); break;
	case 13:
		virtio_kick(f->virtio, op / 16 % 4);
		run_loop(f);
		break;
	case 14: (void)virtq_want_kicks(virtio_queue(f->virtio, op / 16 % QUEUES), op & 128); break;
	default:
		f->defer = op & 16;
		if (op & 32)
			virtio_set_status(f->virtio, (uint8_t)rig_take(in, 1));
		if (op & 64)
			virtio_set_master(f->virtio, op & 128);
		virtio_config_write(
			f->virtio, rig_take(in, 1) % 9, 1u << op / 16 % 4, rig_take(in, 4));
		virtio_config_read(f->virtio, rig_take(in, 1) % 9, 1u << op / 16 % 4);
	}
}

/* ---- one input ---- */

/* Single words all over memory, mostly small, until the input has ended. */
static void *race(void *opaque)
{
	struct fuzz *f = opaque;
	uint64_t seed = 88172645463325252ull;

	while (f->racing) {
		const uint64_t random = rig_random(&seed);
		uint16_t *word =
			memory_host(f->memory, (random >> 40) % (RAM_BYTES / 2) * 2, 2, false);
		uint16_t value = (uint16_t)(random >> 8);

		if (random & 1)
			value &= 0x80f7;
		if (word)
			__atomic_store_n(word, value, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void make_machine(struct fuzz *f)
{
	MUST(memory_create(&f->memory) == 0 && loop_create(&f->loop) == 0);
	MUST(memory_add_ram(f->memory, 0, RAM_BYTES, 0, "low", NULL) == 0);
	MUST(memory_add_ram(f->memory, GAP_GPA, GAP_BYTES, 0, "middle", NULL) == 0);
	MUST(memory_add_ram(
		     f->memory, GAP_GPA + GAP_BYTES, GAP_BYTES, MEMORY_READONLY, "rom", NULL) == 0);
	pthread_mutex_init(&f->lock, NULL);
	const struct virtio_config config = {.ops = &ops,
		.device = f,
		.memory = f->memory,
		.lock = &f->lock,
		.loop = f->loop,
		.name = "fuzz0"};
	MUST(virtio_create(&config, &f->virtio) == 0);
	virtio_attach(f->virtio, &transport, f);
}

static void free_machine(struct fuzz *f)
{
	virtio_free(f->virtio);
	for (unsigned i = 0; i < HELD; i++)
		virtq_buffer_free(&f->held[i]);
	loop_free(f->loop);
	memory_free(f->memory);
	pthread_mutex_destroy(&f->lock);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	struct fuzz f = {0};
	pthread_t thread;

	log_level_now = LOG_LEVEL_ERROR;
	make_machine(&f);
	f.racing = getenv("FUZZ_RACE");
	const bool racing = f.racing && pthread_create(&thread, NULL, race, &f) == 0;
	pthread_mutex_lock(&f.lock);
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&f, &in);
	f.racing = false;
	pthread_mutex_unlock(&f.lock);
	if (racing)
		pthread_join(thread, NULL);
	free_machine(&f);
	return 0;
}

/* Random bytes behind a start that works, so that queues are met that run. */
size_t rig_make(uint8_t *buf, size_t size, uint64_t *seed)
{
	const uint8_t kind = rig_random(seed) & 7;
	const uint8_t start[] = {0, kind, /* features */
		1, 16, 0, 0, 0, 1, 0, 2,  /* queue 0 at 0, 200, 400 (in two bytes each, halved) */
		2, 17, 0, 3, 0, 14, 0, 16};
	const size_t length = 128 + rig_random(seed) % 2048;

	memcpy(buf, start, sizeof(start));
	for (size_t i = sizeof(start); i < length; i++)
		buf[i] = (uint8_t)(rig_random(seed) >> 16);
	return length;
}
