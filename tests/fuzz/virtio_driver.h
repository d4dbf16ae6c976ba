/*
 * A driver of any virtio device that does anything: chains of any shape with bytes of the input, bytes poked into rings
 * and buffers, features, resets. One thread.
 */
#ifndef LODGE_TESTS_FUZZ_VIRTIO_DRIVER_H
#define LODGE_TESTS_FUZZ_VIRTIO_DRIVER_H

#include "tests/fuzz/rig.h"

#include "base/bytes.h"
#include "base/log.h"
#include "base/loop.h"
#include "device/virtio/transport.h"

#define DRIVER_QUEUES 8
#define DRIVER_RINGS  0x10000u /* 64 KiB for each queue */
#define DRIVER_DATA   0x100000u
#define DRIVER_RAM    MIB(4)

struct driver {
	struct guest_memory *memory;
	struct loop *loop;
	struct loop_call stop;
	pthread_mutex_t lock;
	struct virtio_device *device;
	unsigned queues;
	struct {
		uint16_t avail, desc, size, used;
	} queue[DRIVER_QUEUES];
	bool packed;
};

static void driver_ignore_queue(void *opaque, unsigned queue) {}

static void driver_ignore(void *opaque) {}

static void driver_stop(void *opaque)
{
	loop_stop(((struct driver *)opaque)->loop);
}

static inline void driver_run(struct driver *d)
{
	for (unsigned i = 0; i < 3; i++) {
		loop_post(d->loop, &d->stop);
		loop_run(d->loop);
	}
}

static inline uint8_t *driver_at(struct driver *d, gpa_t gpa)
{
	uint8_t *host = memory_host(d->memory, gpa, 1, false);

	MUST(host);
	return host;
}

static inline void driver_init(struct driver *d)
{
	log_level_set(LOG_LEVEL_ERROR);
	MUST(memory_create(&d->memory) == 0);
	MUST(memory_add_ram(d->memory, 0, DRIVER_RAM, 0, "ram", NULL) == 0);
	MUST(loop_create(&d->loop) == 0);
	pthread_mutex_init(&d->lock, NULL);
	d->stop = (struct loop_call){.fn = driver_stop, .opaque = d};
}

static inline struct virtio_config driver_wiring(struct driver *d)
{
	return (struct virtio_config){
		.memory = d->memory, .lock = &d->lock, .loop = d->loop, .name = "fuzz"};
}

static inline void driver_attach(struct driver *d, struct virtio_device *device)
{
	static const struct virtio_transport_ops transport = {
		.queue_interrupt = driver_ignore_queue,
		.config_interrupt = driver_ignore,
		.was_reset = driver_ignore};

	d->device = device;
	d->queues = MIN(virtio_queue_count(device), (unsigned)DRIVER_QUEUES);
	virtio_attach(device, &transport, d);
}

/* After the device was freed. */
static inline void driver_wipe(struct driver *d)
{
	driver_run(d);
	memset(driver_at(d, 0), 0, DRIVER_RAM);
}

static inline void driver_reset(struct driver *d)
{
	pthread_mutex_lock(&d->lock);
	virtio_set_status(d->device, 0);
	pthread_mutex_unlock(&d->lock);
	driver_run(d);
}

static inline void driver_start(struct driver *d, struct rig_input *in)
{
	uint64_t wanted = rig_take(in, 1);
	uint8_t how = (uint8_t)rig_take(in, 1);

	driver_reset(d);
	pthread_mutex_lock(&d->lock);
	memset(d->queue, 0, sizeof(d->queue));
	wanted |= (how & 1 ? VIRTIO_F_EVENT_IDX : 0) | (how & 2 ? VIRTIO_F_INDIRECT_DESC : 0) |
		  (how & 4 ? VIRTIO_F_RING_PACKED : 0) | VIRTIO_F_VERSION_1;
	wanted &= virtio_features_offered(d->device);
	d->packed = how & 4;
	virtio_set_features_driver(d->device, 0, (uint32_t)wanted);
	virtio_set_features_driver(d->device, 1, (uint32_t)(wanted >> 32));
	virtio_set_status(d->device, 11);
	for (unsigned i = 0; i < d->queues; i++) {
		struct virtq_setup *setup = virtio_queue_setup(d->device, i);
		gpa_t base = DRIVER_RINGS + i * 0x10000u;

		memset(driver_at(d, base), 0, 0x10000);
		d->queue[i].size = setup->size = how & 16 ? 8 : setup->size_max;
		setup->desc = base;
		setup->driver = base + 0x8000;
		setup->device = base + 0xa000;
		if (!(how & 32) || i != rig_take(in, 1) % d->queues)
			virtio_queue_enable(d->device, i);
	}
	virtio_set_status(d->device, 15);
	pthread_mutex_unlock(&d->lock);
	driver_run(d);
}

/* One element of a chain. */
struct driver_part {
	uint32_t gpa, bytes;
	bool in;
};

static inline void driver_put(
	struct driver *d, unsigned q, unsigned index, const struct driver_part *part, bool more)
{
	uint8_t *to = driver_at(d, DRIVER_RINGS + q * 0x10000u + 16 * index);
	uint16_t flags = (part->in ? 2 : 0) | (more ? 1 : 0);

	store_le64(to, part->gpa);
	store_le32(to + 8, part->bytes);
	if (d->packed) {
		bool wrap = !(d->queue[q].desc / d->queue[q].size & 1);
		store_le16(to + 12, (uint16_t)index);
		store_le16(to + 14, flags | (wrap ? 0x80 : 0x8000));
	} else {
		store_le16(to + 12, flags);
		store_le16(to + 14, (uint16_t)((index + 1) % d->queue[q].size));
	}
}

static inline void driver_add(
	struct driver *d, unsigned q, const struct driver_part *part, unsigned count)
{
	unsigned size = d->queue[q].size;
	unsigned head = size ? d->queue[q].desc % size : 0;

	if (!size)
		return;
	for (unsigned i = 0; i < count; i++) {
		driver_put(d, q, d->queue[q].desc % size, &part[i], i + 1 < count);
		d->queue[q].desc++;
	}
	if (d->packed)
		return;
	uint8_t *avail = driver_at(d, DRIVER_RINGS + q * 0x10000u + 0x8000);
	store_le16(avail + 4 + 2 * (d->queue[q].avail % size), (uint16_t)head);
	store_le16(avail + 2, ++d->queue[q].avail);
}

/* A chain of a few parts, the front of which is bytes of the input. */
static inline void driver_add_any(
	struct driver *d, unsigned q, struct rig_input *in, unsigned front)
{
	struct driver_part part[6];
	uint8_t how = (uint8_t)rig_take(in, 1);
	unsigned count = 1 + how % 6;
	uint32_t gpa = DRIVER_DATA + (uint32_t)rig_take(in, 2) * 16;

	rig_take_bytes(in, driver_at(d, gpa), front);
	for (unsigned i = 0; i < count; i++) {
		uint32_t bytes = (uint32_t)rig_take(in, 1) << (how & 0x20 ? 4 : 0) << (i % 3 * 3);

		bytes += !i && how & 0x10 ? front : 0;
		part[i] = (struct driver_part){
			gpa, bytes, how & 0x80 || (i + 1 == count && how & 0x40)};
		gpa += bytes;
	}
	driver_add(d, q, part, count);
}

static inline void driver_poke(struct driver *d, struct rig_input *in)
{
	gpa_t gpa = (rig_take(in, 3) + DRIVER_RINGS) % (DRIVER_RAM - 16);

	rig_take_bytes(in, driver_at(d, gpa), rig_take(in, 1) % 16);
}

static inline void driver_config(struct driver *d, struct rig_input *in)
{
	uint8_t how = (uint8_t)rig_take(in, 1);
	unsigned size = 1u << how % 4;

	pthread_mutex_lock(&d->lock);
	(void)virtio_config_read(d->device, rig_take(in, 1) % 20, size);
	if (how & 0x20)
		virtio_config_write(d->device, rig_take(in, 1) % 20, size, rig_take(in, size));
	pthread_mutex_unlock(&d->lock);
}

#endif
