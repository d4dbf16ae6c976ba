/*
 * Packed virtqueues (virtio 1.2, 2.8): one ring of descriptors, which the driver makes available in order and the
 * device overwrites, in order too, with what it used. Whose turn a descriptor is says a pair of bits that change their
 * meaning each time round.
 *
 * Invariant: next_avail and next_used are less than the size.
 */
#include "device/virtio/queue.h"

#define FLAG_AVAIL 0x0080u
#define FLAG_USED  0x8000u

/* An area of event suppression: where (offset, wrap counter in bit 15), and how. */
#define EVENT_ENABLE  0u
#define EVENT_DISABLE 1u
#define EVENT_AT      2u

static void packed_areas(unsigned size, uint64_t ret_bytes[3], unsigned ret_align[3])
{
	ret_bytes[0] = sizeof(struct virtq_descriptor) * (uint64_t)size;
	ret_bytes[1] = ret_bytes[2] = 4;
	ret_align[0] = 16;
	ret_align[1] = ret_align[2] = 4;
}

static uint8_t *descriptor(const struct virtq *q, unsigned at)
{
	return q->desc + sizeof(struct virtq_descriptor) * at;
}

static uint16_t *flags_of(const struct virtq *q, unsigned at)
{
	return (uint16_t *)(void *)(descriptor(q, at) + 14);
}

/* Goes `count` places on, which is at most the size. */
static void advance(const struct virtq *q, uint16_t *at, bool *wrap, unsigned count)
{
	unsigned to = *at + count;

	if (to >= q->size) {
		to -= q->size;
		*wrap = !*wrap;
	}
	*at = (uint16_t)to;
}

static int packed_available(struct virtq *q)
{
	const uint16_t flags = __atomic_load_n(flags_of(q, q->next_avail), __ATOMIC_ACQUIRE);

	return !!(flags & FLAG_AVAIL) == q->avail_wrap && !!(flags & FLAG_USED) != q->avail_wrap;
}

static int packed_take(struct virtq *q, struct virtq_buffer *buffer)
{
	uint16_t at = q->next_avail;
	bool wrap = q->avail_wrap;

	for (unsigned count = 1; count <= q->size; count++) {
		const struct virtq_descriptor d = virtq_descriptor_load(descriptor(q, at));
		const unsigned flags = d.next_or_flags;
		int status;

		if ((flags & DESC_INDIRECT) && (count > 1 || (flags & DESC_NEXT)))
			return virtq_fail(q, "a chain has a table and more");
		status = flags & DESC_INDIRECT
				 ? virtq_chain_add_table(q, buffer, d.addr, d.bytes, false)
				 : virtq_chain_add(q, buffer, d.addr, d.bytes, flags & DESC_WRITE);
		if (status < 0)
			return status;
		advance(q, &at, &wrap, 1);
		if (flags & DESC_NEXT)
			continue;
		buffer->id = d.flags_or_id; /* the last one's counts */
		buffer->descriptors = (uint16_t)count;
		q->next_avail = at;
		q->avail_wrap = wrap;
		return 0;
	}
	return virtq_fail(q, "a chain of descriptors does not end");
}

static void packed_put_back(struct virtq *q, const struct virtq_buffer *buffer)
{
	if (q->next_avail < buffer->descriptors)
		q->avail_wrap = !q->avail_wrap;
	q->next_avail = (uint16_t)((q->next_avail + q->size - buffer->descriptors) % q->size);
}

/* All but the flags; returns them. */
static uint16_t fill_used(
	struct virtq *q, unsigned at, const struct virtq_buffer *buffer, uint32_t written)
{
	uint8_t *d = descriptor(q, at);

	__atomic_store_n((uint32_t *)(void *)(d + 8), written, __ATOMIC_RELAXED);
	__atomic_store_n((uint16_t *)(void *)(d + 12), buffer->id, __ATOMIC_RELAXED);
	virtq_ring_written(q, q->setup.desc + 16ull * at, 16);
	return (q->used_wrap ? FLAG_AVAIL | FLAG_USED : 0) | (written ? DESC_WRITE : 0);
}

/* The first one's flags come last: the driver looks no further than there. */
static void packed_use(struct virtq *q, struct virtq_buffer *const *buffers,
	const uint32_t *written, unsigned count)
{
	const unsigned first = q->next_used;
	uint16_t first_flags = 0;

	for (unsigned i = 0; i < count; i++) {
		const uint16_t flags = fill_used(q, q->next_used, buffers[i], written[i]);

		if (i == 0)
			first_flags = flags;
		else
			__atomic_store_n(flags_of(q, q->next_used), flags, __ATOMIC_RELAXED);
		advance(q, &q->next_used, &q->used_wrap, buffers[i]->descriptors);
		q->unsignalled += buffers[i]->descriptors;
	}
	__atomic_store_n(flags_of(q, first), first_flags, __ATOMIC_RELEASE);
	virtq_ring_written(q, q->setup.desc + 16ull * first, 16);
}

static bool packed_wants_signal(struct virtq *q)
{
	/* What was used is seen before the driver's wish is read: it does these the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	const uint32_t wish = __atomic_load_n((uint32_t *)(void *)q->driver, __ATOMIC_RELAXED);
	const unsigned how = wish >> 16 & 3;

	if (how != EVENT_AT || !q->event_index)
		return how != EVENT_DISABLE;
	uint16_t event = wish & 0x7fff;
	if (!!(wish & 0x8000) != q->used_wrap)
		event = (uint16_t)(event - q->size);
	return q->unsignalled > q->size ||
	       virtq_passed(event, q->next_used, (uint16_t)(q->next_used - q->unsignalled));
}

static void packed_publish(struct virtq *q)
{
	uint32_t wish = EVENT_DISABLE << 16;

	if (q->kicks)
		wish = q->event_index
			       ? (EVENT_AT << 16 | (uint32_t)q->avail_wrap << 15 | q->next_avail)
			       : EVENT_ENABLE << 16;
	__atomic_store_n((uint32_t *)(void *)q->used, wish, __ATOMIC_RELAXED);
	virtq_ring_written(q, q->setup.device, 4);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

const struct virtq_ring_ops virtq_packed_ops = {
	.areas = packed_areas,
	.start = packed_publish,
	.available = packed_available,
	.take = packed_take,
	.put_back = packed_put_back,
	.use = packed_use,
	.wants_signal = packed_wants_signal,
	.publish = packed_publish,
};
