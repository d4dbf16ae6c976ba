/*
 * The virtio core, as a device implementation sees it (Virtual I/O Device 1.2, chapter 2): status and features, queues
 * (split and packed, indirect descriptors, event index), and the device's own configuration. What the guest reads and
 * writes to get at it is a transport's (pci.c, mmio.c; transport.h).
 *
 * A device fills in a struct virtio_ops, and takes buffers with virtq_pop(), gives them back with virtq_push() and
 * tells the driver with virtq_signal(). A driver's error (a descriptor outside RAM, a loop) ends in virtio_fail():
 * the device needs a reset, and its queues give nothing until then. So a device checks what is in the buffers and
 * nothing about how they are linked.
 *
 * Guest memory is hostile and changes under us: the core copies each descriptor once. The bytes behind iov are guest
 * RAM: read once into a local what decides anything.
 *
 * Threads: a device has one lock, held around all of virtio_ops and wanted for all virtq_ and virtio_ calls. notify
 * comes on the device's loop, and what a back end calls where its header says; the rest on vCPUs' threads. Guest RAM may be written
 * with the lock held.
 */
#ifndef LODGE_DEVICE_VIRTIO_VIRTIO_H
#define LODGE_DEVICE_VIRTIO_VIRTIO_H

#include "base/types.h"
#include "base/util.h"

#include <pthread.h>
#include <sys/uio.h>

struct guest_memory;
struct loop;

#define VIRTIO_QUEUES_MAX     64
#define VIRTIO_QUEUE_SIZE_MAX 1024u
#define VIRTIO_IOV_MAX	      1024 /* descriptors in a chain */

enum virtio_id { /* virtio 1.2, chapter 5 */
	VIRTIO_ID_NET = 1,
	VIRTIO_ID_BLOCK = 2,
	VIRTIO_ID_CONSOLE = 3,
	VIRTIO_ID_RNG = 4,
	VIRTIO_ID_BALLOON = 5,
	VIRTIO_ID_VSOCK = 19,
	VIRTIO_ID_FS = 26,
	VIRTIO_ID_PMEM = 27,
};

/* Feature bits of the core; it offers and handles them for every device. */
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX     (1ull << 29)
#define VIRTIO_F_VERSION_1     (1ull << 32)
#define VIRTIO_F_RING_PACKED   (1ull << 34)

struct virtio_device;
struct virtq;

struct virtq_extent {
	gpa_t gpa;
	uint64_t bytes;
};

/* A chain of buffers that the driver made available. Valid until it is pushed. */
struct virtq_buffer {
	struct iovec *out; /* device-readable, in order; host addresses of guest RAM */
	unsigned out_count;
	struct iovec *in; /* device-writable */
	unsigned in_count;
	uint64_t out_bytes, in_bytes;
	struct virtq_extent
		*extents; /* where each `in` is in the guest: to tell memory what was written */
	/* the core's: */
	uint16_t id, descriptors;
	unsigned capacity;
	uint32_t life; /* of the queue, from one reset to the next */
};

struct virtio_ops {
	uint32_t id; /* enum virtio_id */
	const char *name;
	/* Bits of the device's own (0-23, 50-63); the core adds its. */
	uint64_t (*features)(void *device);
	/* Largest size of queue `index`, a power of 2; 0: there is no such queue. */
	unsigned (*queue_size)(void *device, unsigned index);
	/* The configuration space, config_bytes long; offset + size <= config_bytes. write may be NULL. */
	unsigned config_bytes;
	void (*config_read)(void *device, unsigned offset, void *bytes, unsigned size);
	void (*config_write)(void *device, unsigned offset, const void *bytes, unsigned size);
	/* DRIVER_OK: `features` are those both sides know. May be NULL. */
	void (*start)(void *device, uint64_t features);
	/* The driver kicked this queue. On the device's loop. */
	void (*notify)(void *device, unsigned queue);
	/* The same on the thread of the vCPU that kicked, which gets no further meanwhile: serve what takes no
	 * waiting, and a bounded amount of it. false: have notify called too. Comes only if nobody holds the lock and
	 * the engine leaves doorbells to us, otherwise it is notify at once. May be NULL. */
	bool (*doorbell)(void *device, unsigned queue);
	/* The driver resets (or failed) the device, also one that has not started: buffers that were popped are gone; a request that is under way
	 * elsewhere must not touch its buffer when it ends. The queues are reset by the core afterwards. If work in
	 * guest RAM is still under way, return false and call virtio_reset_done() when it has ended: the transport shows
	 * the driver that the reset takes its time. */
	bool (*reset)(void *device);
};

struct virtio_config {
	const struct virtio_ops *ops;
	void *device; /* ops' */
	struct guest_memory *memory;
	pthread_mutex_t *lock; /* the device's */
	struct loop *loop;
	const char *name;      /* of this one, for messages; static or outlives it */
	uint64_t features_off; /* of the core's, those not to be offered: for tests */
};

/* Errors: -ENOMEM, and what loops and eventfds say. */
MUST_CHECK int virtio_create(const struct virtio_config *config, struct virtio_device **ret_device);
/* NULL is allowed. No vCPU runs; on the loop's thread, or while the loop does not run. */
void virtio_free(struct virtio_device *device);

/* ---- for devices ---- */

struct virtq *virtio_queue(struct virtio_device *device, unsigned index);
/* Features that both sides agreed on; 0 before. */
uint64_t virtio_features(const struct virtio_device *device);
/* Is it live: DRIVER_OK, neither reset nor failed, and may it access memory? */
bool virtio_live(const struct virtio_device *device);
/* The same, whether or not it may access memory just now: what was popped can be given back. */
bool virtio_has_driver(const struct virtio_device *device);
/* The configuration changed: new generation, and an interrupt. */
void virtio_config_changed(struct virtio_device *device);
/* The driver broke the rules: NEEDS_RESET, an interrupt, one log line (rate-limited) with the reason. */
PRINTF_LIKE(2, 3)
void virtio_fail(struct virtio_device *device, const char *why, ...);
/* A reset that ops->reset had put off is complete. */
void virtio_reset_done(struct virtio_device *device);

/* Take the next chain. 1: *buffer is filled; 0: none; -EINVAL: the driver erred, and virtio_fail() was called.
 * A struct virtq_buffer is zeroed before its first use, may be used again and again, and is freed in the end.
 * -ENOMEM is an error of the host that ends as the driver's do. A kick comes for what is made available after 0. */
MUST_CHECK int virtq_pop(struct virtq *queue, struct virtq_buffer *buffer);
/* Put the chain last popped back, as if it had not been popped. May be repeated, for those popped before it. */
void virtq_unpop(struct virtq *queue, struct virtq_buffer *buffer);
/* Give it back with `written` bytes written in its `in`, from its start; tells memory of them. If the queue was reset
 * since it was popped, the driver hears nothing of it; if the device may not access memory now, it does when it may. */
void virtq_push(struct virtq *queue, struct virtq_buffer *buffer, uint32_t written);
/* Give `count` chains back at once, in this order, with written[i] bytes in the i-th: the driver sees all of them or
 * none yet (a frame over several receive buffers). They need not be popped in one go. written[i] <= in_bytes. */
void virtq_push_all(struct virtq *queue, struct virtq_buffer *const *buffers,
	const uint32_t *written, unsigned count);
void virtq_buffer_free(struct virtq_buffer *buffer);
/* Interrupt the driver if it wants to know of what was pushed since the last time. */
void virtq_signal(struct virtq *queue);
/* Say that no kick is wanted while the device polls, or that one is; true: there is something to pop already. */
bool virtq_want_kicks(struct virtq *queue, bool want);
/* Have notify called again, as if the driver had kicked: a device that has done enough for once. */
void virtq_kick(struct virtq *queue);
bool virtq_is_enabled(const struct virtq *queue);

/* Copy between a chain and bytes, at an offset from its start. Returns how many: less at the chain's end. */
uint64_t virtq_read(const struct virtq_buffer *buffer, uint64_t offset, void *bytes, uint64_t size);
uint64_t virtq_write(
	const struct virtq_buffer *buffer, uint64_t offset, const void *bytes, uint64_t size);

#endif
