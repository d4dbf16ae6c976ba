/*
 * Split virtqueues (virtio 1.2, 2.7): a table of descriptors, a ring of chains that are available, which the driver
 * writes, and one of those that were used, which the device writes.
 *
 * Invariant: next_avail and next_used run freely, as the rings' indexes do; sizes are powers of 2.
 */
#include <stddef.h>

#include "device/virtio/queue.h"

#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY	   1u

/* Places in the areas. */
#define AVAIL_FLAGS   0u
#define AVAIL_INDEX   2u
#define AVAIL_RING(i) (4u + 2u * (i))
#define USED_FLAGS    0u
#define USED_INDEX    2u
#define USED_RING(i)  (4u + 8u * (i))

static uint16_t load16(const uint8_t *area, unsigned at, int order)
{
	return __atomic_load_n((const uint16_t *)(const void *)(area + at), order);
}

static void store16(struct virtq *q, unsigned at, uint16_t value, int order)
{
	__atomic_store_n((uint16_t *)(void *)(q->used + at), value, order);
	virtq_ring_written(q, q->setup.device + at, sizeof(value));
}

static void split_areas(unsigned size, uint64_t ret_bytes[3], unsigned ret_align[3])
{
	ret_bytes[0] = sizeof(struct virtq_descriptor) * (uint64_t)size;
	ret_bytes[1] = AVAIL_RING((uint64_t)size) + 2; /* with used_event */
	ret_bytes[2] = USED_RING((uint64_t)size) + 2;  /* with avail_event */
	ret_align[0] = 16;
	ret_align[1] = 2;
	ret_align[2] = 4;
}

static void split_start(struct virtq *q) {}

static int split_available(struct virtq *q)
{
	const uint16_t index = load16(q->driver, AVAIL_INDEX, __ATOMIC_ACQUIRE);
	const uint16_t count = (uint16_t)(index - q->next_avail);

	if (count > q->size)
		return virtq_fail(q, "%u chains in a ring of %u", count, q->size);
	return count > 0;
}

/* Direct descriptors, of which the last one may refer to a table. A chain has no more of them than the queue, so a
 * loop ends. */
static int walk(struct virtq *q, struct virtq_buffer *buffer, unsigned at)
{
	for (unsigned count = 0; count < q->size; count++) {
		const struct virtq_descriptor d = virtq_descriptor_load(q->desc + sizeof(d) * at);
		const unsigned flags = d.flags_or_id;
		int status;

		if ((flags & DESC_INDIRECT) && (flags & DESC_NEXT))
			return virtq_fail(q, "descriptor %u goes on behind a table", at);
		if (flags & DESC_INDIRECT)
			return virtq_chain_add_table(q, buffer, d.addr, d.bytes, true);
		status = virtq_chain_add(q, buffer, d.addr, d.bytes, flags & DESC_WRITE);
		if (status < 0 || !(flags & DESC_NEXT))
			return status;
		at = d.next_or_flags;
		if (at >= q->size)
			return virtq_fail(q, "descriptor %u of %u", at, q->size);
	}
	return virtq_fail(q, "a chain of descriptors has a loop");
}

static int split_take(struct virtq *q, struct virtq_buffer *buffer)
{
	const unsigned place = q->next_avail & (q->size - 1u);
	const uint16_t head = load16(q->driver, AVAIL_RING(place), __ATOMIC_RELAXED);

	if (head >= q->size)
		return virtq_fail(q, "descriptor %u of %u", head, q->size);
	buffer->id = head;
	int status = walk(q, buffer, head);
	if (status == 0)
		q->next_avail++;
	return status;
}

static void split_put_back(struct virtq *q, const struct virtq_buffer *buffer)
{
	q->next_avail--;
}

static void split_use(struct virtq *q, struct virtq_buffer *const *buffers, const uint32_t *written,
	unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		const unsigned at = USED_RING(q->next_used & (q->size - 1u));
		uint32_t *element = (uint32_t *)(void *)(q->used + at);

		__atomic_store_n(&element[0], buffers[i]->id, __ATOMIC_RELAXED);
		__atomic_store_n(&element[1], written[i], __ATOMIC_RELAXED);
		virtq_ring_written(q, q->setup.device + at, 8);
		q->next_used++;
	}
	q->unsignalled += count;
	store16(q, USED_INDEX, q->next_used, __ATOMIC_RELEASE);
}

static bool split_wants_signal(struct virtq *q)
{
	/* The used index is seen before the driver's wish is read: it does these the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!q->event_index)
		return !(load16(q->driver, AVAIL_FLAGS, __ATOMIC_RELAXED) & AVAIL_NO_INTERRUPT);
	const uint16_t event = load16(q->driver, AVAIL_RING(q->size), __ATOMIC_RELAXED);
	return q->unsignalled > UINT16_MAX ||
	       virtq_passed(event, q->next_used, (uint16_t)(q->next_used - q->unsignalled));
}

/* With event indexes, a kick is due when next_avail is passed; that of the past is no wish. */
static void split_publish(struct virtq *q)
{
	if (!q->event_index)
		store16(q, USED_FLAGS, q->kicks ? 0 : USED_NO_NOTIFY, __ATOMIC_RELAXED);
	else if (q->kicks)
		store16(q, USED_RING(q->size), q->next_avail, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

const struct virtq_ring_ops virtq_split_ops = {
	.areas = split_areas,
	.start = split_start,
	.available = split_available,
	.take = split_take,
	.put_back = split_put_back,
	.use = split_use,
	.wants_signal = split_wants_signal,
	.publish = split_publish,
};
