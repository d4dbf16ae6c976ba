/*
 * The virtio core as a transport sees it (virtio over PCI, over MMIO): what the guest reads and writes through it, and
 * how the core interrupts through it.
 *
 * Threads: every call with the device's lock held, unless it says otherwise.
 */
#ifndef LODGE_DEVICE_VIRTIO_TRANSPORT_H
#define LODGE_DEVICE_VIRTIO_TRANSPORT_H

#include "device/virtio/virtio.h"

enum virtio_status { /* virtio 1.2, 2.1 */
	VIRTIO_STATUS_ACKNOWLEDGE = 1,
	VIRTIO_STATUS_DRIVER = 2,
	VIRTIO_STATUS_DRIVER_OK = 4,
	VIRTIO_STATUS_FEATURES_OK = 8,
	VIRTIO_STATUS_NEEDS_RESET = 64,
	VIRTIO_STATUS_FAILED = 128,
};

/* The interrupt status register of either transport. */
#define VIRTIO_ISR_QUEUE  1u
#define VIRTIO_ISR_CONFIG 2u

/* With the device's lock held; none of them calls back, but for reading. */
struct virtio_transport_ops {
	/* Buffers of the queue were used. */
	void (*queue_interrupt)(void *opaque, unsigned queue);
	/* The configuration changed, or the device needs a reset. */
	void (*config_interrupt)(void *opaque);
	/* The reset is complete: status is 0, no queue is enabled. */
	void (*was_reset)(void *opaque);
};

/* Before the guest sees it. */
void virtio_attach(
	struct virtio_device *device, const struct virtio_transport_ops *ops, void *opaque);

pthread_mutex_t *virtio_lock(const struct virtio_device *device);
const struct virtio_ops *virtio_ops_of(const struct virtio_device *device);
const char *virtio_name(const struct virtio_device *device);

/* Never 0 while a reset is under way: it is as it was, or ACKNOWLEDGE where it was 0. */
uint8_t virtio_status(const struct virtio_device *device);
void virtio_set_status(struct virtio_device *device, uint8_t status);
/* Waits until a reset that is under way has ended: on no loop's thread. The lock is released meanwhile. */
void virtio_wait_for_reset(struct virtio_device *device);
/* May it access memory (PCI's bus mastering)? At first it may; while it may not, the queues rest: nothing is taken, and
 * what is given back is kept until it may. (What a device had begun still ends up in its buffers.) */
void virtio_set_master(struct virtio_device *device, bool master);
/* A reset by the machine, which frees the device next: returns when it touches guest memory no more. Takes the lock;
 * on no loop's thread. */
void virtio_quiesce(struct virtio_device *device);

uint64_t virtio_features_offered(const struct virtio_device *device);
/* half: 0 or 1, the bits 31-0 or 63-32; others read 0 and are ignored. */
uint32_t virtio_features_driver(const struct virtio_device *device, uint32_t half);
void virtio_set_features_driver(struct virtio_device *device, uint32_t half, uint32_t bits);

uint32_t virtio_config_generation(const struct virtio_device *device);
/* size_bytes 1, 2, 4 or 8. What lies outside of the space reads 0 and is not written. */
uint64_t virtio_config_read(struct virtio_device *device, uint64_t offset, unsigned size_bytes);
void virtio_config_write(
	struct virtio_device *device, uint64_t offset, unsigned size_bytes, uint64_t value);

/* The highest queue's index + 1. */
unsigned virtio_queue_count(const struct virtio_device *device);

/* What the driver says of a queue before it enables it. NULL: there is no such queue. */
struct virtq_setup {
	uint16_t size_max, size;
	bool enabled; /* set by virtio_queue_enable() only; nothing may be changed then */
	gpa_t desc, driver, device; /* split: descriptor table, available ring, used ring */
};
struct virtq_setup *virtio_queue_setup(struct virtio_device *device, unsigned index);
/* What the driver said is checked here, and ends in virtio_fail() if it is wrong. */
void virtio_queue_enable(struct virtio_device *device, unsigned index);

/* Takes no more from it, and gives nothing back to it; its setup starts afresh. */
void virtio_queue_disable(struct virtio_device *device, unsigned index);

/* The queue's doorbell; -1: no such queue. It lives as long as the device. Any thread, without the lock. */
int virtio_queue_eventfd(const struct virtio_device *device, unsigned index);
/* Ring it. Any thread. */
void virtio_kick(struct virtio_device *device, unsigned index);
/* Ring that of a struct virtq (virtio_queue()), on a vCPU's thread, the lock not held: the device may serve it in here.
 * For struct bus_doorbell. */
void virtq_ring(void *queue);

#endif
