/*
 * What the files of the virtio core share: a virtqueue, and what its two kinds of rings (virtio 1.2, 2.7 and 2.8) must
 * be able to do.
 *
 * The rings are guest RAM at host addresses that were looked up when the queue was enabled: RAM does not move while a
 * machine lives. Everything in it is read once, by an atomic load or a copy.
 */
#ifndef LODGE_DEVICE_VIRTIO_QUEUE_H
#define LODGE_DEVICE_VIRTIO_QUEUE_H

#include "base/util.h"
#include "device/virtio/transport.h"

/* Both kinds of rings have it, indirect tables too; little-endian as we are. */
struct virtq_descriptor {
	uint64_t addr;
	uint32_t bytes;
	uint16_t flags_or_id; /* split: flags; packed: id */
	uint16_t next_or_flags;
};

#define DESC_NEXT     1u
#define DESC_WRITE    2u
#define DESC_INDIRECT 4u

struct virtq_ring_ops {
	/* Bytes of the three areas for a queue of this size, and their alignments: desc, driver, device. */
	void (*areas)(unsigned size, uint64_t ret_bytes[3], unsigned ret_align[3]);
	void (*start)(struct virtq *q);
	/* Is there a chain to take? Negative: virtq_fail() was called. */
	int (*available)(struct virtq *q);
	/* Takes the one that is. 0, or virtq_fail()'s. */
	int (*take)(struct virtq *q, struct virtq_buffer *buffer);
	void (*put_back)(struct virtq *q, const struct virtq_buffer *buffer);
	/* The driver sees all of them or none yet; count > 0. */
	void (*use)(struct virtq *q, struct virtq_buffer *const *buffers, const uint32_t *written,
		unsigned count);
	/* Does the driver want to hear of q->unsignalled that were used? */
	bool (*wants_signal)(struct virtq *q);
	/* Tell the driver whether kicks are wanted for what it makes available from now on (q->kicks). */
	void (*publish)(struct virtq *q);
};
extern const struct virtq_ring_ops virtq_split_ops, virtq_packed_ops;

struct virtq {
	struct virtio_device *device;
	unsigned index;
	int eventfd;
	struct loop_source *source;
	struct virtq_setup setup;

	/* From here on valid while it is enabled. */
	const struct virtq_ring_ops *ring;
	bool event_index, indirect;
	uint8_t *desc, *driver, *used; /* the three areas */
	uint16_t size;
	uint16_t next_avail, next_used; /* split: free-running; packed: places in the ring */
	bool avail_wrap, used_wrap;	/* packed */
	bool kicks;			/* wanted */
	unsigned in_flight;		/* chains that were popped and not pushed */
	unsigned
		unsignalled; /* descriptors (packed) or chains (split) used since the last signal */
	uint32_t life;
	/* Given back while the device may not write to memory, oldest first; counted in in_flight. NULL or `size` each. */
	struct {
		struct virtq_buffer *buffer, **at;
		uint32_t *written;
		unsigned count;
	} held;
};

bool virtio_is_master(const struct virtio_device *device);
struct guest_memory *virtio_memory(const struct virtio_device *device);

/* virtio_fail() with the queue's number. Returns -EINVAL. */
PRINTF_LIKE(2, 3) int virtq_fail(struct virtq *q, const char *why, ...);
/* The core wrote these bytes of a ring. */
void virtq_ring_written(struct virtq *q, gpa_t gpa, uint64_t bytes);

/* queue.c, for transport and core. Errors: virtq_fail()'s. */
int virtq_start(struct virtq *q, uint64_t features);
void virtq_stop(struct virtq *q);
/* The device may write again: the driver gets what was held, and its interrupt. */
void virtq_release(struct virtq *q);

/* A chain is put together of descriptors: one buffer, or a table of them (`linked`: split, by `next`). 0, or
 * virtq_fail()'s. */
int virtq_chain_add(
	struct virtq *q, struct virtq_buffer *buffer, gpa_t gpa, uint64_t bytes, bool in);
int virtq_chain_add_table(
	struct virtq *q, struct virtq_buffer *buffer, gpa_t gpa, uint64_t bytes, bool linked);

/* A descriptor of a ring, whose words are aligned, read once. */
static inline struct virtq_descriptor virtq_descriptor_load(const void *at)
{
	const uint64_t *word = at;
	const uint64_t low = __atomic_load_n(&word[0], __ATOMIC_RELAXED);
	const uint64_t high = __atomic_load_n(&word[1], __ATOMIC_RELAXED);

	return (struct virtq_descriptor){.addr = low,
		.bytes = (uint32_t)high,
		.flags_or_id = (uint16_t)(high >> 32),
		.next_or_flags = (uint16_t)(high >> 48)};
}

/* Has `event` been passed by going from old to next? (virtio 1.2, 2.7.10) */
static inline bool virtq_passed(uint16_t event, uint16_t next, uint16_t old)
{
	return (uint16_t)(next - event - 1) < (uint16_t)(next - old);
}

#endif
