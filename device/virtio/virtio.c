/*
 * The virtio core: status, features and the life of a device (virtio 1.2, chapters 2 and 3). See virtio.h and
 * transport.h; the queues are in queue.c.
 *
 * Left out on purpose: the legacy interface, queue reset, notification data, in-order use, shared memory regions.
 *
 * Invariants: the device is live from DRIVER_OK until a reset begins or something fails; queues are enabled between
 * FEATURES_OK and the end of a reset.
 */
#include "device/virtio/virtio.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/loop.h"
#include "device/virtio/queue.h"

#define CORE_FEATURES \
	(VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1 | VIRTIO_F_RING_PACKED)
#define DEVICE_FEATURES (BIT_MASK(23, 0) | BIT_MASK(63, 50))

struct virtio_device {
	struct virtio_config config;
	const struct virtio_transport_ops *transport;
	void *opaque;

	uint8_t status;
	uint64_t driver_features;
	uint32_t generation;
	bool live, resetting, no_master;
	pthread_cond_t reset_ended;
	struct log_limit limit;

	unsigned queue_count;
	struct virtq *queue; /* queue_count of them */
};

/* ---- what it is ---- */

pthread_mutex_t *virtio_lock(const struct virtio_device *device)
{
	return device->config.lock;
}

const struct virtio_ops *virtio_ops_of(const struct virtio_device *device)
{
	return device->config.ops;
}

const char *virtio_name(const struct virtio_device *device)
{
	return device->config.name;
}

struct guest_memory *virtio_memory(const struct virtio_device *device)
{
	return device->config.memory;
}

bool virtio_live(const struct virtio_device *device)
{
	return device->live && !device->no_master;
}

bool virtio_has_driver(const struct virtio_device *device)
{
	return device->live;
}

bool virtio_is_master(const struct virtio_device *device)
{
	return !device->no_master;
}

/* ---- interrupts and errors ---- */

void virtio_config_changed(struct virtio_device *device)
{
	device->generation++;
	if ((device->status & VIRTIO_STATUS_DRIVER_OK) && device->transport)
		device->transport->config_interrupt(device->opaque);
}

void virtio_fail(struct virtio_device *device, const char *why, ...)
{
	char text[200];
	va_list args;

	device->live = false;
	if (device->status & VIRTIO_STATUS_NEEDS_RESET)
		return;
	device->status |= VIRTIO_STATUS_NEEDS_RESET;
	va_start(args, why);
	vsnprintf(text, sizeof(text), why, args);
	va_end(args);
	log_limited(&device->limit, LOG_LEVEL_WARN, "virtio",
		"%s: the guest's driver erred, and must reset the device: %s", device->config.name,
		text);
	virtio_config_changed(device);
}

void virtq_signal(struct virtq *q)
{
	struct virtio_device *device = q->device;

	if (!virtio_live(device) || !q->setup.enabled || !q->unsignalled)
		return;
	const bool wanted = q->ring->wants_signal(q);
	q->unsignalled = 0;
	if (wanted && device->transport)
		device->transport->queue_interrupt(device->opaque, q->index);
}

/* ---- features ---- */

uint64_t virtio_features_offered(const struct virtio_device *device)
{
	const struct virtio_config *config = &device->config;
	const uint64_t own =
		config->ops->features ? config->ops->features(config->device) & DEVICE_FEATURES : 0;

	return own | (CORE_FEATURES & ~(config->features_off & ~VIRTIO_F_VERSION_1));
}

uint64_t virtio_features(const struct virtio_device *device)
{
	return device->status & VIRTIO_STATUS_FEATURES_OK ? device->driver_features : 0;
}

uint32_t virtio_features_driver(const struct virtio_device *device, uint32_t half)
{
	return half > 1 ? 0 : (uint32_t)(device->driver_features >> 32 * half);
}

void virtio_set_features_driver(struct virtio_device *device, uint32_t half, uint32_t bits)
{
	if (half > 1 || (device->status & VIRTIO_STATUS_FEATURES_OK))
		return;
	device->driver_features &= ~((uint64_t)UINT32_MAX << 32 * half);
	device->driver_features |= (uint64_t)bits << 32 * half;
}

static bool features_are_fine(const struct virtio_device *device)
{
	return (device->driver_features & VIRTIO_F_VERSION_1) &&
	       !(device->driver_features & ~virtio_features_offered(device));
}

/* ---- reset ---- */

static void finish_reset(struct virtio_device *device)
{
	device->resetting = false;
	device->status = 0;
	device->driver_features = 0;
	for (unsigned i = 0; i < device->queue_count; i++)
		virtq_stop(&device->queue[i]);
	pthread_cond_broadcast(&device->reset_ended);
	if (device->transport)
		device->transport->was_reset(device->opaque);
}

static void begin_reset(struct virtio_device *device)
{
	const struct virtio_ops *ops = device->config.ops;

	if (device->resetting)
		return;
	device->live = false;
	device->resetting = true;
	if (!ops->reset || ops->reset(device->config.device)) {
		finish_reset(device);
		return;
	}
	/* A driver that read 0 would take the reset for complete, and go on unheard. */
	if (!device->status)
		device->status = VIRTIO_STATUS_ACKNOWLEDGE;
}

void virtio_reset_done(struct virtio_device *device)
{
	if (device->resetting)
		finish_reset(device);
}

void virtio_wait_for_reset(struct virtio_device *device)
{
	while (device->resetting)
		pthread_cond_wait(&device->reset_ended, device->config.lock);
}

void virtio_quiesce(struct virtio_device *device)
{
	AUTO_LOCK(device->config.lock);
	begin_reset(device);
	virtio_wait_for_reset(device);
}

/* ---- status ---- */

uint8_t virtio_status(const struct virtio_device *device)
{
	return device->status;
}

/* What the driver made available before is found: it may have kicked too early. */
static void kick_all(struct virtio_device *device)
{
	for (unsigned i = 0; i < device->queue_count; i++)
		if (device->queue[i].setup.enabled)
			virtio_kick(device, i);
}

void virtio_set_master(struct virtio_device *device, bool master)
{
	const bool again = master && device->no_master;

	device->no_master = !master;
	if (!again)
		return;
	for (unsigned i = 0; i < device->queue_count; i++)
		virtq_release(&device->queue[i]);
	kick_all(device);
}

static void go_live(struct virtio_device *device)
{
	const struct virtio_ops *ops = device->config.ops;

	if (!(device->status & VIRTIO_STATUS_FEATURES_OK)) {
		virtio_fail(device, "it started without having agreed on features");
		return;
	}
	device->live = true;
	if (ops->start)
		ops->start(device->config.device, device->driver_features);
	kick_all(device);
}

/* Bits are only added: what takes one away is a reset. */
void virtio_set_status(struct virtio_device *device, uint8_t status)
{
	uint8_t added = status & ~device->status & ~VIRTIO_STATUS_NEEDS_RESET;

	if (!status) {
		begin_reset(device);
		return;
	}
	if (device->resetting)
		return;
	if ((added & VIRTIO_STATUS_FEATURES_OK) && !features_are_fine(device))
		added &= ~VIRTIO_STATUS_FEATURES_OK;
	device->status |= added;
	if (added & VIRTIO_STATUS_FAILED)
		device->live = false;
	else if (added & VIRTIO_STATUS_DRIVER_OK &&
		 !(device->status & (VIRTIO_STATUS_FAILED | VIRTIO_STATUS_NEEDS_RESET)))
		go_live(device);
}

/* ---- the device's own configuration ---- */

uint32_t virtio_config_generation(const struct virtio_device *device)
{
	return device->generation;
}

static bool in_config(const struct virtio_device *device, uint64_t offset, unsigned size_bytes)
{
	const unsigned bytes = device->config.ops->config_bytes;

	return size_bytes <= bytes && offset <= bytes - size_bytes;
}

/* The last bytes of an odd space are within reach of a wide read. */
uint64_t virtio_config_read(struct virtio_device *device, uint64_t offset, unsigned size_bytes)
{
	const unsigned total = device->config.ops->config_bytes;
	uint8_t bytes[8] = {0};

	if (offset < total && size_bytes <= sizeof(bytes))
		device->config.ops->config_read(device->config.device, (unsigned)offset, bytes,
			MIN(size_bytes, total - (unsigned)offset));
	return load_le64(bytes);
}

void virtio_config_write(
	struct virtio_device *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	const struct virtio_ops *ops = device->config.ops;
	uint8_t bytes[8];

	if (!ops->config_write || size_bytes > sizeof(bytes) ||
		!in_config(device, offset, size_bytes))
		return;
	store_le64(bytes, value);
	ops->config_write(device->config.device, (unsigned)offset, bytes, size_bytes);
}

/* ---- queues ---- */

unsigned virtio_queue_count(const struct virtio_device *device)
{
	return device->queue_count;
}

/* NULL: a hole. */
static struct virtq *queue_at(const struct virtio_device *device, unsigned index)
{
	if (index >= device->queue_count || !device->queue[index].setup.size_max)
		return NULL;
	return &device->queue[index];
}

struct virtq *virtio_queue(struct virtio_device *device, unsigned index)
{
	return queue_at(device, index);
}

struct virtq_setup *virtio_queue_setup(struct virtio_device *device, unsigned index)
{
	struct virtq *q = queue_at(device, index);

	return q ? &q->setup : NULL;
}

void virtio_queue_enable(struct virtio_device *device, unsigned index)
{
	struct virtq *q = queue_at(device, index);

	if (!q || q->setup.enabled || device->resetting)
		return;
	if (!(device->status & VIRTIO_STATUS_FEATURES_OK)) {
		virtio_fail(device, "queue %u: it is enabled before there are features", index);
		return;
	}
	if (virtq_start(q, device->driver_features) == 0 && device->live)
		virtio_kick(device, index);
}

void virtio_queue_disable(struct virtio_device *device, unsigned index)
{
	struct virtq *q = queue_at(device, index);

	if (q && q->setup.enabled && !device->resetting)
		virtq_stop(q);
}

int virtio_queue_eventfd(const struct virtio_device *device, unsigned index)
{
	const struct virtq *q = queue_at(device, index);

	return q ? q->eventfd : -1;
}

void virtio_kick(struct virtio_device *device, unsigned index)
{
	const struct virtq *q = queue_at(device, index);

	if (q)
		eventfd_write(q->eventfd, 1); /* a full counter is a kick that nobody heard yet */
}

void virtq_kick(struct virtq *q)
{
	virtio_kick(q->device, q->index);
}

/* A lock that is held is held by who serves the device, on another processor: that one goes on. */
static bool ring_here(struct virtq *q)
{
	struct virtio_device *device = q->device;
	const struct virtio_ops *ops = device->config.ops;
	bool served;

	if (!ops->doorbell || pthread_mutex_trylock(device->config.lock))
		return false;
	served = virtio_live(device) && q->setup.enabled &&
		 ops->doorbell(device->config.device, q->index);
	pthread_mutex_unlock(device->config.lock);
	return served;
}

void virtq_ring(void *queue)
{
	struct virtq *q = queue;

	if (!ring_here(q))
		virtq_kick(q);
}

static void kicked(void *opaque, uint32_t events)
{
	struct virtq *q = opaque;
	struct virtio_device *device = q->device;
	eventfd_t count;

	AUTO_LOCK(device->config.lock);
	eventfd_read(q->eventfd, &count);
	if (virtio_live(device) && q->setup.enabled)
		device->config.ops->notify(device->config.device, q->index);
}

/* ---- life ---- */

void virtio_attach(
	struct virtio_device *device, const struct virtio_transport_ops *ops, void *opaque)
{
	device->transport = ops;
	device->opaque = opaque;
}

static unsigned size_of_queue(const struct virtio_config *config, unsigned index)
{
	return MIN(config->ops->queue_size(config->device, index), VIRTIO_QUEUE_SIZE_MAX);
}

static int open_queue(struct virtio_device *device, unsigned index)
{
	struct virtq *q = &device->queue[index];

	q->device = device;
	q->index = index;
	q->setup.size_max = (uint16_t)size_of_queue(&device->config, index);
	virtq_stop(q);
	if (!q->setup.size_max)
		return 0;
	q->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->eventfd < 0)
		return -errno;
	return loop_add(device->config.loop, q->eventfd, EPOLLIN, kicked, q, &q->source);
}

static int open_queues(struct virtio_device *device)
{
	int status = 0;

	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
		if (size_of_queue(&device->config, i))
			device->queue_count = i + 1;
	device->queue = calloc(MAX(device->queue_count, 1u), sizeof(*device->queue));
	if (!device->queue)
		return -ENOMEM;
	for (unsigned i = 0; i < device->queue_count; i++)
		device->queue[i].eventfd = -1;
	for (unsigned i = 0; status == 0 && i < device->queue_count; i++)
		status = open_queue(device, i);
	return status;
}

int virtio_create(const struct virtio_config *config, struct virtio_device **ret_device)
{
	struct virtio_device *device = calloc(1, sizeof(*device));

	if (!device)
		return -ENOMEM;
	device->config = *config;
	pthread_cond_init(&device->reset_ended, NULL);
	int status = open_queues(device);
	if (status < 0) {
		virtio_free(device);
		return status;
	}
	*ret_device = device;
	return 0;
}

void virtio_free(struct virtio_device *device)
{
	if (!device)
		return;
	for (unsigned i = 0; device->queue && i < device->queue_count; i++) {
		struct virtq *q = &device->queue[i];

		virtq_stop(q);
		loop_remove(q->source);
		if (q->eventfd >= 0)
			close(q->eventfd);
	}
	free(device->queue);
	pthread_cond_destroy(&device->reset_ended);
	free(device);
}
