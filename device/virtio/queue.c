/*
 * Virtqueues: what both kinds of rings have in common. See virtio.h and queue.h.
 */
#include "device/virtio/queue.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory/memory.h"

int virtq_fail(struct virtq *q, const char *why, ...)
{
	char text[160];
	va_list args;

	va_start(args, why);
	vsnprintf(text, sizeof(text), why, args);
	va_end(args);
	virtio_fail(q->device, "queue %u: %s", q->index, text);
	return -EINVAL;
}

static void written(struct guest_memory *memory, gpa_t gpa, uint64_t bytes)
{
	const struct memory_region *region = memory_find(memory, gpa);

	if (region)
		memory_mark_dirty(region, gpa, bytes);
	memory_written(memory, gpa, bytes);
}

void virtq_ring_written(struct virtq *q, gpa_t gpa, uint64_t bytes)
{
	written(virtio_memory(q->device), gpa, bytes);
}

/* ---- life ---- */

static int find_areas(struct virtq *q)
{
	static const char *const name[3] = {"descriptors", "driver's area", "device's area"};
	const gpa_t gpa[3] = {q->setup.desc, q->setup.driver, q->setup.device};
	uint8_t **const host[3] = {&q->desc, &q->driver, &q->used};
	uint64_t bytes[3];
	unsigned align[3];

	q->ring->areas(q->size, bytes, align);
	for (unsigned i = 0; i < 3; i++) {
		/* The device writes to a packed ring's descriptors too. */
		const bool write = i == 2 || (i == 0 && q->ring == &virtq_packed_ops);

		if (!IS_ALIGNED(gpa[i], align[i]))
			return virtq_fail(q, "its %s at %#llx are not aligned", name[i],
				(unsigned long long)gpa[i]);
		*host[i] = memory_host(virtio_memory(q->device), gpa[i], bytes[i], write);
		if (!*host[i])
			return virtq_fail(q, "its %s at %#llx are not in memory", name[i],
				(unsigned long long)gpa[i]);
	}
	return 0;
}

int virtq_start(struct virtq *q, uint64_t features)
{
	const bool packed = features & VIRTIO_F_RING_PACKED;
	const unsigned size = q->setup.size;

	if (!size || size > q->setup.size_max || (!packed && (size & (size - 1))))
		return virtq_fail(q, "it cannot have %u entries", size);
	q->ring = packed ? &virtq_packed_ops : &virtq_split_ops;
	q->event_index = features & VIRTIO_F_EVENT_IDX;
	q->indirect = features & VIRTIO_F_INDIRECT_DESC;
	q->size = (uint16_t)size;
	int status = find_areas(q);
	if (status < 0)
		return status;
	q->next_avail = q->next_used = 0;
	q->avail_wrap = q->used_wrap = true;
	q->kicks = true;
	q->in_flight = q->unsignalled = 0;
	q->ring->start(q);
	q->setup.enabled = true;
	return 0;
}

void virtq_stop(struct virtq *q)
{
	q->setup = (struct virtq_setup){.size_max = q->setup.size_max, .size = q->setup.size_max};
	q->life++;
	free(q->held.buffer);
	free(q->held.at);
	free(q->held.written);
	memset(&q->held, 0, sizeof(q->held));
}

bool virtq_is_enabled(const struct virtq *q)
{
	return q->setup.enabled;
}

static bool runs(const struct virtq *q)
{
	return q->setup.enabled && virtio_live(q->device);
}

/* ---- chains ---- */

/* Room for one more element. Sizes double: capacity is a power of 2. */
static int grow(struct virtq *q, struct virtq_buffer *buffer)
{
	const unsigned count = buffer->out_count + buffer->in_count;

	if (count >= VIRTIO_IOV_MAX)
		return virtq_fail(q, "a chain has more than %d elements", VIRTIO_IOV_MAX);
	if (count < buffer->capacity)
		return 0;
	const unsigned capacity = buffer->capacity ? buffer->capacity * 2 : 16;
	struct iovec *iov = reallocarray(buffer->out, capacity, sizeof(*iov));
	if (iov)
		buffer->out = iov;
	struct virtq_extent *extents = reallocarray(buffer->extents, capacity, sizeof(*extents));
	if (extents)
		buffer->extents = extents;
	if (!iov || !extents) {
		virtq_fail(q, "no memory on the host");
		return -ENOMEM;
	}
	buffer->capacity = capacity;
	return 0;
}

static int add_part(
	struct virtq *q, struct virtq_buffer *buffer, gpa_t gpa, uint64_t bytes, bool in)
{
	int status = grow(q, buffer);

	if (status < 0)
		return status;
	void *host = memory_host(virtio_memory(q->device), gpa, bytes, in);
	if (!host)
		return virtq_fail(
			q, "a buffer at %#llx cannot be written", (unsigned long long)gpa);
	buffer->out[buffer->out_count + buffer->in_count] =
		(struct iovec){.iov_base = host, .iov_len = bytes};
	if (in) {
		buffer->extents[buffer->in_count++] = (struct virtq_extent){gpa, bytes};
		buffer->in_bytes += bytes;
	} else {
		buffer->out_count++;
		buffer->out_bytes += bytes;
	}
	return 0;
}

int virtq_chain_add(
	struct virtq *q, struct virtq_buffer *buffer, gpa_t gpa, uint64_t bytes, bool in)
{
	if (!bytes)
		return virtq_fail(q, "a buffer is empty");
	if (!in && buffer->in_count)
		return virtq_fail(q, "a buffer to read comes after one to write");
	/* One buffer may lie in two regions that meet. */
	while (bytes) {
		const struct memory_region *region = memory_find(virtio_memory(q->device), gpa);
		if (!region)
			return virtq_fail(
				q, "a buffer at %#llx is not in memory", (unsigned long long)gpa);
		const uint64_t room = region->size_bytes - (gpa - region->base);
		const uint64_t part = MIN(bytes, room);
		int status = add_part(q, buffer, gpa, part, in);
		if (status < 0)
			return status;
		gpa += part;
		bytes -= part;
	}
	return 0;
}

/* Each entry is copied once. A table has no more links than entries, so a loop in it ends. */
int virtq_chain_add_table(
	struct virtq *q, struct virtq_buffer *buffer, gpa_t gpa, uint64_t bytes, bool linked)
{
	const uint64_t entries = bytes / sizeof(struct virtq_descriptor);
	uint64_t at = 0;

	if (!q->indirect)
		return virtq_fail(q, "an indirect table was not agreed on");
	if (!entries || bytes % sizeof(struct virtq_descriptor))
		return virtq_fail(q, "an indirect table has %llu bytes", (unsigned long long)bytes);
	for (uint64_t count = 0; count < entries; count++) {
		struct virtq_descriptor d;

		if (memory_read(virtio_memory(q->device), gpa + at * sizeof(d), &d, sizeof(d)) < 0)
			return virtq_fail(q, "an indirect table at %#llx is not in memory",
				(unsigned long long)gpa);
		const unsigned flags = linked ? d.flags_or_id : d.next_or_flags;
		if (flags & DESC_INDIRECT)
			return virtq_fail(q, "an indirect table refers to another");
		int status = virtq_chain_add(q, buffer, d.addr, d.bytes, flags & DESC_WRITE);
		if (status < 0 || (linked && !(flags & DESC_NEXT)))
			return status;
		at = linked ? d.next_or_flags : at + 1;
		if (linked && at >= entries)
			return virtq_fail(q, "an indirect table's link leaves it");
	}
	return linked ? virtq_fail(q, "an indirect table has a loop") : 0;
}

/* ---- for devices ---- */

int virtq_pop(struct virtq *q, struct virtq_buffer *buffer)
{
	if (!runs(q))
		return 0;
	int status = q->ring->available(q);
	if (status == 0 && q->kicks) {
		/* From here on the driver kicks; what it did before that shows now. */
		q->ring->publish(q);
		status = q->ring->available(q);
	}
	if (status <= 0)
		return status;
	if (q->in_flight >= q->size)
		return virtq_fail(q, "it has more chains than entries");
	buffer->out_count = buffer->in_count = 0;
	buffer->out_bytes = buffer->in_bytes = 0;
	buffer->life = q->life;
	status = q->ring->take(q, buffer);
	if (status < 0)
		return status;
	buffer->in = buffer->out + buffer->out_count;
	q->in_flight++;
	return 1;
}

/* Was it popped from this queue, in the life that it has? */
static bool is_ours(const struct virtq *q, const struct virtq_buffer *buffer)
{
	return q->setup.enabled && virtio_has_driver(q->device) && buffer->life == q->life;
}

static bool can_hold(struct virtq *q)
{
	if (!q->held.buffer)
		q->held.buffer = calloc(q->size, sizeof(*q->held.buffer));
	if (!q->held.at)
		q->held.at = calloc(q->size, sizeof(*q->held.at));
	if (!q->held.written)
		q->held.written = calloc(q->size, sizeof(*q->held.written));
	return q->held.buffer && q->held.at && q->held.written;
}

/* Of a buffer the rings want no more than this. */
static void hold(struct virtq *q, const struct virtq_buffer *buffer, uint32_t written)
{
	const unsigned n = q->held.count++;

	q->held.buffer[n] = (struct virtq_buffer){.id = buffer->id, .descriptors = buffer->descriptors};
	q->held.at[n] = &q->held.buffer[n];
	q->held.written[n] = written;
}

static void give_back(
	struct virtq *q, struct virtq_buffer *const *buffers, const uint32_t *written, unsigned count)
{
	if (virtio_is_master(q->device)) {
		q->ring->use(q, buffers, written, count);
		q->in_flight -= count;
		return;
	}
	if (count > q->in_flight - q->held.count || !can_hold(q)) {
		virtq_fail(q, "no memory on the host");
		return;
	}
	for (unsigned i = 0; i < count; i++)
		hold(q, buffers[i], written[i]);
}

void virtq_unpop(struct virtq *q, struct virtq_buffer *buffer)
{
	if (!is_ours(q, buffer))
		return;
	q->ring->put_back(q, buffer);
	q->in_flight--;
}

/* Tells memory of what the device wrote; returns how much that can have been. */
static uint32_t buffer_written(struct virtq *q, const struct virtq_buffer *buffer, uint32_t bytes)
{
	uint64_t left = bytes = (uint32_t)MIN((uint64_t)bytes, buffer->in_bytes);

	for (unsigned i = 0; left; i++) {
		const uint64_t part = MIN(left, buffer->extents[i].bytes);

		written(virtio_memory(q->device), buffer->extents[i].gpa, part);
		left -= part;
	}
	return bytes;
}

void virtq_push(struct virtq *q, struct virtq_buffer *buffer, uint32_t bytes)
{
	bytes = buffer_written(q, buffer, bytes);
	if (is_ours(q, buffer))
		give_back(q, &buffer, &bytes, 1);
}

void virtq_push_all(
	struct virtq *q, struct virtq_buffer *const *buffers, const uint32_t *bytes, unsigned count)
{
	bool mine = count;

	for (unsigned i = 0; i < count; i++) {
		buffer_written(q, buffers[i], bytes[i]);
		mine = mine && is_ours(q, buffers[i]) && bytes[i] <= buffers[i]->in_bytes;
	}
	if (mine)
		give_back(q, buffers, bytes, count);
}

void virtq_release(struct virtq *q)
{
	const unsigned count = q->held.count;

	q->held.count = 0;
	if (count)
		give_back(q, q->held.at, q->held.written, count);
	virtq_signal(q);
}

void virtq_buffer_free(struct virtq_buffer *buffer)
{
	free(buffer->out);
	free(buffer->extents);
	*buffer = (struct virtq_buffer){0};
}

bool virtq_want_kicks(struct virtq *q, bool want)
{
	if (!runs(q))
		return false;
	q->kicks = want;
	q->ring->publish(q);
	return want && q->ring->available(q) > 0;
}

/* `write` says which way. */
static uint64_t copy(const struct iovec *iov, unsigned count, uint64_t offset, void *bytes,
	uint64_t size, bool write)
{
	uint8_t *local = bytes;
	uint64_t done = 0;

	for (unsigned i = 0; i < count && done < size; i++) {
		if (offset >= iov[i].iov_len) {
			offset -= iov[i].iov_len;
			continue;
		}
		const uint64_t part = MIN(size - done, iov[i].iov_len - offset);
		uint8_t *guest = (uint8_t *)iov[i].iov_base + offset;
		memcpy(write ? guest : local + done, write ? local + done : guest, part);
		done += part;
		offset = 0;
	}
	return done;
}

uint64_t virtq_read(const struct virtq_buffer *buffer, uint64_t offset, void *bytes, uint64_t size)
{
	return copy(buffer->out, buffer->out_count, offset, bytes, size, false);
}

uint64_t virtq_write(
	const struct virtq_buffer *buffer, uint64_t offset, const void *bytes, uint64_t size)
{
	return copy(buffer->in, buffer->in_count, offset, (void *)bytes, size, true);
}
