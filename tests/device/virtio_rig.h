/*
 * A fake driver for virtio devices: guest memory, a loop, and the driver's half of split and packed queues, with no
 * transport between it and the device. One thread: the test is driver and loop in turn.
 *
 *	struct virtio_rig rig;
 *	virtio_rig_init(&rig);				// memory, loop, lock
 *	... make the device with rig.memory, rig.loop, &rig.lock and get its struct virtio_device ...
 *	rig.packed = true;				// before the start: which rings, what features
 *	rig.event_index = rig.indirect = true;
 *	virtio_rig_start(&rig, vdev, VIRTIO_F_MINE);	// reset, features, all queues, DRIVER_OK
 *
 *	written = virtio_rig_request(&rig, 0, out, out_size, in, in_size);  // one chain there and back
 *
 *	id = virtio_rig_add(&rig, 0, parts, count);	// or step by step: parts of guest memory,
 *	virtio_rig_kick(&rig, 0);			// a kick if the device wants one,
 *	virtio_rig_run(&rig);				// the loop, until nothing is left to do,
 *	id = virtio_rig_used(&rig, 0, &written);	// what came back, -1: nothing
 *	virtio_rig_wait(&rig, 0)			// as run, until a chain was used (a back end of another thread)
 *
 *	virtio_rig_done(&rig);				// after the device was freed
 *
 * Guest memory for buffers: virtio_rig_alloc(), virtio_rig_at(). Interrupts are counted in rig.interrupts[queue] and
 * rig.config_interrupts. The driver's tables are open: a hostile test writes to rig.queue[n] and to memory.
 */
#ifndef LODGE_TESTS_DEVICE_VIRTIO_RIG_H
#define LODGE_TESTS_DEVICE_VIRTIO_RIG_H

#include "tests/device/fake.h"

#include "base/clock.h"
#include "base/loop.h"
#include "base/types.h"
#include "device/virtio/transport.h"
#include "memory/memory.h"

#define RIG_MEMORY_BYTES MIB(16)
#define RIG_RINGS_GPA	 0x10000ull /* 64 KiB for each queue */
#define RIG_RING_BYTES	 0x10000ull
#define RIG_DATA_GPA	 MIB(5)
#define RIG_PARTS_MAX	 64
#define RIG_WAIT_NS	 (10 * NS_PER_SEC)

struct rig_part {
	gpa_t gpa;
	uint32_t bytes;
	bool in; /* the device writes */
};

struct rig_queue {
	uint16_t size;
	gpa_t desc, driver, device;
	uint16_t free_head, free_count; /* split: a list by `next`; packed: only the count */
	uint16_t next_avail, next_used; /* as in the rings */
	bool avail_wrap, used_wrap;
	uint16_t added;				/* since the last kick */
	uint16_t length[VIRTIO_QUEUE_SIZE_MAX]; /* descriptors of the chain, by id */
	bool id_used[VIRTIO_QUEUE_SIZE_MAX];
	bool no_interrupts;
};

struct virtio_rig {
	bool packed, event_index, indirect; /* set before the start */
	bool ring;     /* kicks are those of a vCPU: the device may serve them at once */
	uint16_t size; /* of queues; 0: the largest */
	struct guest_memory *memory;
	struct loop *loop;
	pthread_mutex_t lock;
	struct virtio_device *device;
	uint64_t features; /* agreed on */
	struct rig_queue queue[VIRTIO_QUEUES_MAX];
	unsigned queue_count;
	gpa_t next_data;
	unsigned interrupts[VIRTIO_QUEUES_MAX], config_interrupts, resets, kicks;
	struct loop_call stop;
	struct loop_timer *timer;
};

/* ---- the rig ---- */

static void rig_queue_interrupt(void *opaque, unsigned queue)
{
	((struct virtio_rig *)opaque)->interrupts[queue]++;
}

static void rig_config_interrupt(void *opaque)
{
	((struct virtio_rig *)opaque)->config_interrupts++;
}

static void rig_was_reset(void *opaque)
{
	((struct virtio_rig *)opaque)->resets++;
}

static void rig_stop(void *opaque)
{
	loop_stop(((struct virtio_rig *)opaque)->loop);
}

static inline void virtio_rig_init(struct virtio_rig *rig)
{
	memset(rig, 0, sizeof(*rig));
	assert_int_equal(memory_create(&rig->memory), 0);
	assert_int_equal(memory_add_ram(rig->memory, 0, RIG_MEMORY_BYTES, 0, "ram", NULL), 0);
	assert_int_equal(loop_create(&rig->loop), 0);
	pthread_mutex_init(&rig->lock, NULL);
	rig->stop.fn = rig_stop;
	rig->stop.opaque = rig;
	rig->timer = loop_timer_create(rig->loop, rig_stop, rig);
	assert_non_null(rig->timer);
	rig->next_data = RIG_DATA_GPA;
}

static inline void virtio_rig_done(struct virtio_rig *rig)
{
	loop_free(rig->loop);
	memory_free(rig->memory);
	pthread_mutex_destroy(&rig->lock);
}

/* The loop, for as long as something is ready. */
static inline void virtio_rig_run(struct virtio_rig *rig)
{
	for (unsigned i = 0; i < 8; i++) {
		loop_post(rig->loop, &rig->stop);
		loop_run(rig->loop);
	}
}

/* ---- guest memory ---- */

static inline void *virtio_rig_at(struct virtio_rig *rig, gpa_t gpa)
{
	void *host = memory_host(rig->memory, gpa, 1, false);

	assert_non_null(host);
	return host;
}

/* Memory for a buffer. It goes round: what was given long ago is given again. */
static inline gpa_t virtio_rig_alloc(struct virtio_rig *rig, uint64_t bytes)
{
	gpa_t gpa = rig->next_data;

	if (gpa + bytes > RIG_MEMORY_BYTES)
		gpa = RIG_DATA_GPA;
	assert_true(gpa + bytes <= RIG_MEMORY_BYTES);
	rig->next_data = ALIGN_UP(gpa + bytes, 16);
	return gpa;
}

static inline uint16_t *rig_u16(struct virtio_rig *rig, gpa_t gpa)
{
	return virtio_rig_at(rig, gpa);
}

static inline void rig_set_descriptor(struct virtio_rig *rig, gpa_t table, unsigned at, gpa_t addr,
	uint32_t bytes, uint16_t word2, uint16_t word3)
{
	uint8_t *d = virtio_rig_at(rig, table + 16 * at);

	memcpy(d, &addr, 8);
	memcpy(d + 8, &bytes, 4);
	memcpy(d + 12, &word2, 2);
	memcpy(d + 14, &word3, 2);
}

/* ---- start ---- */

static inline uint8_t virtio_rig_status(struct virtio_rig *rig)
{
	pthread_mutex_lock(&rig->lock);
	uint8_t status = virtio_status(rig->device);
	pthread_mutex_unlock(&rig->lock);
	return status;
}

static inline void virtio_rig_set_status(struct virtio_rig *rig, uint8_t status)
{
	pthread_mutex_lock(&rig->lock);
	virtio_set_status(rig->device, status);
	pthread_mutex_unlock(&rig->lock);
}

static inline void rig_start_queue(struct virtio_rig *rig, unsigned index)
{
	struct rig_queue *q = &rig->queue[index];
	struct virtq_setup *setup = virtio_queue_setup(rig->device, index);

	memset(q, 0, sizeof(*q));
	if (!setup)
		return;
	q->size = rig->size ? MIN(rig->size, setup->size_max) : setup->size_max;
	q->desc = RIG_RINGS_GPA + index * RIG_RING_BYTES;
	q->driver = q->desc + 0x8000;
	q->device = q->desc + 0xa000;
	q->avail_wrap = q->used_wrap = true;
	q->free_count = q->size;
	memset(virtio_rig_at(rig, q->desc), 0, RIG_RING_BYTES);
	for (unsigned i = 0; !rig->packed && i < q->size; i++)
		rig_set_descriptor(rig, q->desc, i, 0, 0, 0, (uint16_t)(i + 1));
	setup->size = q->size;
	setup->desc = q->desc;
	setup->driver = q->driver;
	setup->device = q->device;
	virtio_queue_enable(rig->device, index);
}

/* Everything up to FEATURES_OK. `wanted`: the device's own features, which it must offer. */
static inline void virtio_rig_agree(
	struct virtio_rig *rig, struct virtio_device *device, uint64_t wanted)
{
	static const struct virtio_transport_ops ops = {.queue_interrupt = rig_queue_interrupt,
		.config_interrupt = rig_config_interrupt,
		.was_reset = rig_was_reset};

	rig->device = device;
	pthread_mutex_lock(&rig->lock);
	virtio_attach(device, &ops, rig);
	virtio_set_status(device, 0);
	while (virtio_status(device)) { /* a reset that takes its time */
		pthread_mutex_unlock(&rig->lock);
		virtio_rig_run(rig);
		pthread_mutex_lock(&rig->lock);
	}
	rig->features = wanted | VIRTIO_F_VERSION_1 | (rig->packed ? VIRTIO_F_RING_PACKED : 0) |
			(rig->event_index ? VIRTIO_F_EVENT_IDX : 0) |
			(rig->indirect ? VIRTIO_F_INDIRECT_DESC : 0);
	virtio_set_status(device, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	assert_true((virtio_features_offered(device) & rig->features) == rig->features);
	for (unsigned half = 0; half < 2; half++)
		virtio_set_features_driver(device, half, (uint32_t)(rig->features >> 32 * half));
	virtio_set_status(device, virtio_status(device) | VIRTIO_STATUS_FEATURES_OK);
	assert_true(virtio_status(device) & VIRTIO_STATUS_FEATURES_OK);
	pthread_mutex_unlock(&rig->lock);
}

static inline void virtio_rig_start(
	struct virtio_rig *rig, struct virtio_device *device, uint64_t wanted)
{
	virtio_rig_agree(rig, device, wanted);
	pthread_mutex_lock(&rig->lock);
	rig->queue_count = virtio_queue_count(device);
	for (unsigned i = 0; i < rig->queue_count; i++)
		rig_start_queue(rig, i);
	virtio_set_status(device, virtio_status(device) | VIRTIO_STATUS_DRIVER_OK);
	assert_int_equal(virtio_status(device), VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
							VIRTIO_STATUS_FEATURES_OK |
							VIRTIO_STATUS_DRIVER_OK);
	pthread_mutex_unlock(&rig->lock);
	virtio_rig_run(rig);
}

/* ---- adding ---- */

/* An indirect table of the parts. */
static inline gpa_t rig_table(struct virtio_rig *rig, const struct rig_part *part, unsigned count)
{
	gpa_t table = virtio_rig_alloc(rig, 16 * count);

	for (unsigned i = 0; i < count; i++) {
		uint16_t flags = (part[i].in ? 2 : 0);

		if (rig->packed)
			rig_set_descriptor(rig, table, i, part[i].gpa, part[i].bytes, 0, flags);
		else
			rig_set_descriptor(rig, table, i, part[i].gpa, part[i].bytes,
				flags | (i + 1 < count ? 1 : 0), (uint16_t)(i + 1));
	}
	return table;
}

static inline int rig_add_split(struct virtio_rig *rig, struct rig_queue *q,
	const struct rig_part *part, unsigned count, bool table)
{
	const uint16_t head = q->free_head;
	uint16_t at = head, next = head;

	for (unsigned i = 0; i < count; i++) {
		const uint16_t flags =
			(part[i].in ? 2 : 0) | (i + 1 < count ? 1 : 0) | (table ? 4 : 0);

		at = next;
		next = *rig_u16(rig, q->desc + 16ull * at + 14);
		rig_set_descriptor(rig, q->desc, at, part[i].gpa, part[i].bytes, flags, next);
	}
	q->free_head = next;
	q->length[head] = (uint16_t)count;
	*rig_u16(rig, q->driver + 4 + 2 * (q->next_avail % q->size)) = head;
	__atomic_store_n(rig_u16(rig, q->driver + 2), ++q->next_avail, __ATOMIC_RELEASE);
	q->added++;
	return head;
}

static inline int rig_free_id(struct rig_queue *q)
{
	for (unsigned id = 0; id < q->size; id++)
		if (!q->id_used[id])
			return (int)id;
	return -1;
}

/* The head's flags are written last. */
static inline int rig_add_packed(struct virtio_rig *rig, struct rig_queue *q,
	const struct rig_part *part, unsigned count, bool table)
{
	const int id = rig_free_id(q);
	const unsigned head = q->next_avail;
	uint16_t head_flags = 0;

	assert_true(id >= 0);
	for (unsigned i = 0; i < count; i++) {
		const uint16_t flags = (part[i].in ? 2 : 0) | (i + 1 < count ? 1 : 0) |
				       (table ? 4 : 0) | (q->avail_wrap ? 0x80 : 0x8000);
		const uint16_t now = *rig_u16(rig, q->desc + 16ull * q->next_avail + 14);

		rig_set_descriptor(rig, q->desc, q->next_avail, part[i].gpa, part[i].bytes,
			(uint16_t)id, i ? flags : now);
		if (!i)
			head_flags = flags;
		if (++q->next_avail == q->size) {
			q->next_avail = 0;
			q->avail_wrap = !q->avail_wrap;
		}
	}
	__atomic_store_n(rig_u16(rig, q->desc + 16ull * head + 14), head_flags, __ATOMIC_RELEASE);
	q->id_used[id] = true;
	q->length[id] = (uint16_t)count;
	q->added = (uint16_t)(q->added + count);
	return id;
}

/* Makes a chain available; returns its id, or -1: the queue is full. */
static inline int virtio_rig_add(
	struct virtio_rig *rig, unsigned queue, const struct rig_part *part, unsigned count)
{
	struct rig_queue *q = &rig->queue[queue];
	struct rig_part table;
	const bool indirect = rig->indirect && count > 1;

	if (indirect) {
		table = (struct rig_part){.gpa = rig_table(rig, part, count), .bytes = 16 * count};
		part = &table;
		count = 1;
	}
	if (count > q->free_count)
		return -1;
	q->free_count = (uint16_t)(q->free_count - count);
	return rig->packed ? rig_add_packed(rig, q, part, count, indirect)
			   : rig_add_split(rig, q, part, count, indirect);
}

/* ---- kicks ---- */

static inline bool rig_wants_kick(struct virtio_rig *rig, struct rig_queue *q)
{
	const uint16_t added = q->added;
	uint16_t event, wish = 0;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	q->added = 0;
	if (!rig->packed && !rig->event_index)
		return !(*rig_u16(rig, q->device) & 1);
	if (!rig->packed) {
		event = *rig_u16(rig, q->device + 4 + 8ull * q->size);
	} else {
		wish = *rig_u16(rig, q->device + 2) & 3;
		event = *rig_u16(rig, q->device);
		if (wish != 2)
			return wish == 0;
		wish = event >> 15;
		event &= 0x7fff;
		if (wish != q->avail_wrap)
			event = (uint16_t)(event - q->size);
	}
	return (uint16_t)(q->next_avail - event - 1) < added;
}

/* True: it was rung. */
static inline bool virtio_rig_kick(struct virtio_rig *rig, unsigned queue)
{
	if (!rig_wants_kick(rig, &rig->queue[queue]))
		return false;
	rig->kicks++;
	if (rig->ring)
		virtq_ring(virtio_queue(rig->device, queue));
	else
		virtio_kick(rig->device, queue);
	return true;
}

/* ---- what was used ---- */

static inline int rig_used_split(struct virtio_rig *rig, struct rig_queue *q, uint32_t *ret_written)
{
	const uint16_t index = __atomic_load_n(rig_u16(rig, q->device + 2), __ATOMIC_ACQUIRE);
	uint32_t element[2];
	uint16_t last;

	if (index == q->next_used)
		return -1;
	memcpy(element, virtio_rig_at(rig, q->device + 4 + 8ull * (q->next_used % q->size)), 8);
	q->next_used++;
	assert_true(element[0] < q->size && q->length[element[0]]);
	last = (uint16_t)element[0];
	for (unsigned i = 1; i < q->length[element[0]]; i++)
		last = *rig_u16(rig, q->desc + 16ull * last + 14);
	*rig_u16(rig, q->desc + 16ull * last + 14) = q->free_head;
	q->free_head = (uint16_t)element[0];
	*ret_written = element[1];
	return (int)element[0];
}

static inline int rig_used_packed(
	struct virtio_rig *rig, struct rig_queue *q, uint32_t *ret_written)
{
	const gpa_t at = q->desc + 16ull * q->next_used;
	const uint16_t flags = __atomic_load_n(rig_u16(rig, at + 14), __ATOMIC_ACQUIRE);
	uint16_t id;

	if (!!(flags & 0x80) != q->used_wrap || !!(flags & 0x8000) != q->used_wrap)
		return -1;
	id = *rig_u16(rig, at + 12);
	assert_true(id < q->size && q->id_used[id]);
	memcpy(ret_written, virtio_rig_at(rig, at + 8), 4);
	q->id_used[id] = false;
	if (q->next_used + q->length[id] >= q->size)
		q->used_wrap = !q->used_wrap;
	q->next_used = (uint16_t)((q->next_used + q->length[id]) % q->size);
	return id;
}

/* The device may be reading it, on another thread. */
static inline void rig_tell(struct virtio_rig *rig, gpa_t gpa, int value)
{
	__atomic_store_n(rig_u16(rig, gpa), (uint16_t)value, __ATOMIC_RELEASE);
}

/* Ask for interrupts from the next used chain on, or for none. */
static inline void virtio_rig_want_interrupts(struct virtio_rig *rig, unsigned queue, bool want)
{
	struct rig_queue *q = &rig->queue[queue];

	q->no_interrupts = !want;
	if (!rig->packed) {
		rig_tell(rig, q->driver, !want && !rig->event_index);
		rig_tell(rig, q->driver + 4 + 2ull * q->size, q->next_used - (want ? 0 : 1));
		return;
	}
	rig_tell(rig, q->driver, q->next_used | q->used_wrap << 15);
	rig_tell(rig, q->driver + 2, !want ? 1 : rig->event_index ? 2 : 0);
}

/* The id of the next chain that came back; -1: none. */
static inline int virtio_rig_used(struct virtio_rig *rig, unsigned queue, uint32_t *ret_written)
{
	struct rig_queue *q = &rig->queue[queue];
	int id = rig->packed ? rig_used_packed(rig, q, ret_written)
			     : rig_used_split(rig, q, ret_written);

	if (id < 0)
		return -1;
	q->free_count = (uint16_t)(q->free_count + q->length[id]);
	q->length[id] = 0;
	virtio_rig_want_interrupts(rig, queue, !q->no_interrupts);
	return id;
}

static inline bool rig_has_used(struct virtio_rig *rig, const struct rig_queue *q)
{
	uint16_t flags;

	if (!rig->packed)
		return __atomic_load_n(rig_u16(rig, q->device + 2), __ATOMIC_ACQUIRE) !=
		       q->next_used;
	flags = __atomic_load_n(
		rig_u16(rig, q->desc + 16ull * q->next_used + 14), __ATOMIC_ACQUIRE);
	return !!(flags & 0x80) == q->used_wrap && !!(flags & 0x8000) == q->used_wrap;
}

/* Runs the loop until a chain of the queue was used. False: none was in ten seconds. */
static inline bool virtio_rig_wait(struct virtio_rig *rig, unsigned queue)
{
	const uint64_t end_ns = clock_monotonic_ns() + RIG_WAIT_NS;

	virtio_rig_run(rig);
	while (!rig_has_used(rig, &rig->queue[queue])) {
		if (clock_monotonic_ns() > end_ns)
			return false;
		loop_timer_arm(rig->timer, clock_monotonic_ns() + NS_PER_MS);
		loop_run(rig->loop);
	}
	return true;
}

/* One chain of two parts there and back, nothing else being under way in the queue; the result of virtq_push(). */
static inline uint32_t virtio_rig_request(struct virtio_rig *rig, unsigned queue, const void *out,
	uint32_t out_size, void *in, uint32_t in_size)
{
	struct rig_part part[2];
	unsigned count = 0;
	uint32_t written = 0;
	gpa_t to = 0;

	if (out_size) {
		part[count] = (struct rig_part){
			.gpa = virtio_rig_alloc(rig, out_size), .bytes = out_size};
		memcpy(virtio_rig_at(rig, part[count++].gpa), out, out_size);
	}
	if (in_size) {
		to = virtio_rig_alloc(rig, in_size);
		part[count++] = (struct rig_part){.gpa = to, .bytes = in_size, .in = true};
	}
	int id = virtio_rig_add(rig, queue, part, count);
	assert_true(id >= 0);
	virtio_rig_kick(rig, queue);
	assert_true(virtio_rig_wait(rig, queue));
	assert_int_equal(virtio_rig_used(rig, queue, &written), id);
	if (in_size)
		memcpy(in, virtio_rig_at(rig, to), in_size);
	return written;
}

#endif
