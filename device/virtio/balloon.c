/*
 * virtio memory balloon: see balloon.h. (Virtual I/O Device 1.2, 5.5)
 *
 * What the guest gives goes to memory_discard(): the pages read as zeros afterwards, so taking them again costs
 * nothing but the fault, and the guest need not ask before it does (MUST_TELL_HOST is not offered).
 *
 * A guest that fills its free pages with a pattern other than zeros (page poisoning) would find the wrong bytes in
 * pages that were discarded: what it reports is left alone then.
 *
 * Left out on purpose: legacy layouts; MUST_TELL_HOST.
 *
 * Invariants: `stats_held` says that `stats` is the driver's one statistics chain, popped; giving it back asks for
 * new ones. Hints are taken between the driver's start with the command that was last asked for, and its stop.
 */
#include "device/virtio/balloon.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/loop.h"
#include "device/virtio/virtio.h"
#include "memory/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE    128
#define TURN_MAX      256	 /* chains of one queue before others have their turn on the loop */
#define TURN_PAGES    (1u << 16) /* or pages, at the end of a chain */
#define PFN_BYTES     4
#define PFNS_MAX      (1u << 18) /* in one chain: 1 GiB */
#define PFNS_AT_ONCE  256
#define STAT_BYTES    10
#define STATS_AT_ONCE 32

enum queue { QUEUE_INFLATE, QUEUE_DEFLATE, QUEUE_STATS, QUEUE_HINTS, QUEUE_REPORTS, QUEUES };

#define F_STATS		 (1ull << 1)
#define F_DEFLATE_ON_OOM (1ull << 2)
#define F_HINTS		 (1ull << 3)
#define F_POISON	 (1ull << 4)
#define F_REPORTS	 (1ull << 5)

enum config_offset { /* 5.5.4 */
	CONFIG_TARGET = 0,
	CONFIG_ACTUAL = 4,
	CONFIG_HINT_COMMAND = 8,
	CONFIG_POISON = 12,
	CONFIG_BYTES = 16,
};

enum hint_command { HINT_STOP = 0, HINT_DONE = 1, HINT_FIRST = 2 /* and all above */ };

struct virtio_balloon {
	pthread_mutex_t *lock;
	struct guest_memory *memory;
	struct loop *loop;
	struct virtio_device *device;
	struct loop_call later; /* serve all queues, set the timer */
	struct loop_timer *timer;
	struct virtq_buffer buffer;

	uint32_t target_pages, actual_pages;
	uint32_t poison;
	uint64_t inflated_bytes, deflated_bytes, reported_bytes;

	bool stats_held;
	struct virtq_buffer stats;
	uint64_t period_ns;
	uint64_t told_ns;
	unsigned told;
	uint64_t told_value[BALLOON_STATISTICS];

	uint32_t hint_command; /* what the driver reads */
	uint32_t last_hint;    /* the last that was asked for */
	bool hinting;	       /* asked for, and no end yet */
	bool hint_started;     /* by the driver */
	struct balloon_hints hints;
};

/* ---- giving and taking ---- */

/* Pages one behind the other are given back in one go. */
struct run {
	gpa_t gpa;
	uint64_t bytes;
};

static void run_discard(struct virtio_balloon *balloon, struct run *run)
{
	/* What is not RAM, the guest can't give. */
	if (run->bytes && memory_discard(balloon->memory, run->gpa, run->bytes) == 0)
		balloon->inflated_bytes += run->bytes;
	run->bytes = 0;
}

static void run_add(struct virtio_balloon *balloon, struct run *run, gpa_t page)
{
	if (page != run->gpa + run->bytes)
		run_discard(balloon, run);
	if (!run->bytes)
		run->gpa = page;
	run->bytes += GUEST_PAGE_SIZE;
}

static void inflate(struct virtio_balloon *balloon, const struct virtq_buffer *buffer)
{
	uint8_t pfns[PFNS_AT_ONCE * PFN_BYTES];
	struct run run = {0};
	uint64_t at = 0, got;

	while ((got = virtq_read(buffer, at, pfns, sizeof(pfns))) >= PFN_BYTES) {
		for (unsigned i = 0; i < got / PFN_BYTES; i++)
			run_add(balloon, &run,
				(gpa_t)load_le32(pfns + i * PFN_BYTES) << GUEST_PAGE_SHIFT);
		at += got;
	}
	run_discard(balloon, &run);
}

static void serve_pages(struct virtio_balloon *balloon, enum queue which)
{
	if (balloon->buffer.out_bytes > PFNS_MAX * PFN_BYTES) {
		virtio_fail(balloon->device, "more than %u pages at once", PFNS_MAX);
		return;
	}
	if (which == QUEUE_INFLATE)
		inflate(balloon, &balloon->buffer);
	else
		balloon->deflated_bytes += balloon->buffer.out_bytes / PFN_BYTES * GUEST_PAGE_SIZE;
}

static void serve_report(struct virtio_balloon *balloon)
{
	const struct virtq_buffer *buffer = &balloon->buffer;

	if (balloon->poison)
		return;
	for (unsigned i = 0; i < buffer->in_count; i++)
		if (memory_discard(
			    balloon->memory, buffer->extents[i].gpa, buffer->extents[i].bytes) == 0)
			balloon->reported_bytes += buffer->extents[i].bytes;
}

/* ---- hints ---- */

static void hints_end(struct virtio_balloon *balloon, int status)
{
	if (!balloon->hinting)
		return;
	balloon->hinting = balloon->hint_started = false;
	balloon->hints.end(balloon->hints.opaque, status);
}

static void serve_hint(struct virtio_balloon *balloon)
{
	const struct virtq_buffer *buffer = &balloon->buffer;
	uint8_t command[4];

	if (virtq_read(buffer, 0, command, sizeof(command)) == sizeof(command)) {
		const uint32_t id = load_le32(command);

		if (id == HINT_STOP && balloon->hint_started)
			hints_end(balloon, 0);
		balloon->hint_started = balloon->hinting && id == balloon->last_hint;
	}
	if (!balloon->hint_started)
		return;
	for (unsigned i = 0; i < buffer->in_count; i++)
		balloon->hints.pages(
			balloon->hints.opaque, buffer->extents[i].gpa, buffer->extents[i].bytes);
}

int virtio_balloon_hint(struct virtio_balloon *balloon, const struct balloon_hints *hints)
{
	AUTO_LOCK(balloon->lock);
	if (balloon->hinting)
		return -EBUSY;
	if (!virtio_live(balloon->device) || !(virtio_features(balloon->device) & F_HINTS) ||
		balloon->poison)
		return -ENOTSUP;
	balloon->hints = *hints;
	balloon->hinting = true;
	balloon->hint_started = false;
	balloon->last_hint = MAX(balloon->last_hint + 1, (uint32_t)HINT_FIRST);
	balloon->hint_command = balloon->last_hint;
	virtio_config_changed(balloon->device);
	return 0;
}

void virtio_balloon_hint_done(struct virtio_balloon *balloon)
{
	AUTO_LOCK(balloon->lock);
	hints_end(balloon, -ECANCELED);
	balloon->hint_command = HINT_DONE;
	if (virtio_has_driver(balloon->device))
		virtio_config_changed(balloon->device);
}

/* ---- statistics ---- */

static void take_statistics(struct virtio_balloon *balloon)
{
	uint8_t bytes[STATS_AT_ONCE * STAT_BYTES];
	const uint64_t got = virtq_read(&balloon->stats, 0, bytes, sizeof(bytes));

	/* What the driver puts in before anybody asked is as good. */
	balloon->told_ns = clock_monotonic_ns();
	balloon->told = 0;
	for (unsigned i = 0; i < got / STAT_BYTES; i++) {
		const unsigned tag = load_le16(bytes + i * STAT_BYTES);

		if (tag >= BALLOON_STATISTICS)
			continue;
		balloon->told |= 1u << tag;
		balloon->told_value[tag] = load_le64(bytes + i * STAT_BYTES + 2);
	}
}

static void ask_statistics(struct virtio_balloon *balloon)
{
	struct virtq *queue = virtio_queue(balloon->device, QUEUE_STATS);

	if (!balloon->stats_held)
		return;
	balloon->stats_held = false;
	virtq_push(queue, &balloon->stats, 0);
	virtq_signal(queue);
}

/* There is one chain; of a driver that gives more, the last is kept. */
static bool serve_stats(struct virtio_balloon *balloon)
{
	struct virtq *queue = virtio_queue(balloon->device, QUEUE_STATS);

	for (unsigned turn = 0; turn < TURN_MAX; turn++) {
		const int got = virtq_pop(queue, &balloon->buffer);

		if (got != 1)
			return true;
		ask_statistics(balloon);
		const struct virtq_buffer spare = balloon->stats;
		balloon->stats = balloon->buffer;
		balloon->buffer = spare;
		balloon->stats_held = true;
		take_statistics(balloon);
	}
	return false;
}

static void timer_fired(void *opaque)
{
	struct virtio_balloon *balloon = opaque;
	AUTO_LOCK(balloon->lock);

	ask_statistics(balloon);
	if (balloon->period_ns)
		loop_timer_arm(balloon->timer, clock_monotonic_ns() + balloon->period_ns);
}

void virtio_balloon_poll(struct virtio_balloon *balloon, uint64_t period_ns)
{
	AUTO_LOCK(balloon->lock);
	balloon->period_ns = period_ns;
	ask_statistics(balloon);
	loop_post(balloon->loop, &balloon->later);
}

void virtio_balloon_statistics(struct virtio_balloon *balloon, struct balloon_statistics *ret)
{
	AUTO_LOCK(balloon->lock);
	*ret = (struct balloon_statistics){
		.live = virtio_live(balloon->device),
		.target_bytes = (uint64_t)balloon->target_pages << GUEST_PAGE_SHIFT,
		.actual_bytes = (uint64_t)balloon->actual_pages << GUEST_PAGE_SHIFT,
		.inflated_bytes = balloon->inflated_bytes,
		.deflated_bytes = balloon->deflated_bytes,
		.reported_bytes = balloon->reported_bytes,
		.told_ns = balloon->told_ns,
		.told = balloon->told,
	};
	memcpy(ret->value, balloon->told_value, sizeof(ret->value));
}

void virtio_balloon_set(struct virtio_balloon *balloon, uint64_t bytes)
{
	AUTO_LOCK(balloon->lock);
	balloon->target_pages = (uint32_t)MIN(bytes >> GUEST_PAGE_SHIFT, (uint64_t)UINT32_MAX);
	if (virtio_has_driver(balloon->device))
		virtio_config_changed(balloon->device);
}

/* ---- the core's side ---- */

static void serve_chain(struct virtio_balloon *balloon, enum queue which)
{
	if (which == QUEUE_REPORTS)
		serve_report(balloon);
	else if (which == QUEUE_HINTS)
		serve_hint(balloon);
	else
		serve_pages(balloon, which);
}

/* False: there is more, for later. */
static bool serve_queue(struct virtio_balloon *balloon, unsigned index, enum queue which)
{
	struct virtq *queue = virtio_queue(balloon->device, index);
	uint64_t pages = 0;
	unsigned turn = 0;

	for (; turn < TURN_MAX && pages < TURN_PAGES && virtq_pop(queue, &balloon->buffer) == 1;
		turn++) {
		serve_chain(balloon, which);
		if (!virtio_has_driver(balloon->device))
			return true;
		pages += balloon->buffer.out_bytes / PFN_BYTES + balloon->buffer.in_count;
		virtq_push(queue, &balloon->buffer, 0);
	}
	if (turn)
		virtq_signal(queue);
	return turn < TURN_MAX && pages < TURN_PAGES;
}

static void balloon_notify(void *device, unsigned index)
{
	struct virtio_balloon *balloon = device;
	enum queue which = (enum queue)index;

	/* Linux numbers its queues without those that it does not use; there is no queue of hints then. */
	if (index == QUEUE_HINTS && !(virtio_features(balloon->device) & F_HINTS))
		which = QUEUE_REPORTS;
	if (!(which == QUEUE_STATS ? serve_stats(balloon) : serve_queue(balloon, index, which)))
		loop_post(balloon->loop, &balloon->later);
}

static void later(void *opaque)
{
	struct virtio_balloon *balloon = opaque;
	AUTO_LOCK(balloon->lock);

	if (balloon->period_ns)
		loop_timer_arm(balloon->timer, clock_monotonic_ns() + balloon->period_ns);
	else
		loop_timer_cancel(balloon->timer);
	for (unsigned i = 0; i < QUEUES && virtio_live(balloon->device); i++)
		balloon_notify(balloon, i);
}

static uint64_t balloon_features(void *device)
{
	return F_STATS | F_DEFLATE_ON_OOM | F_HINTS | F_POISON | F_REPORTS;
}

static unsigned balloon_queue_size(void *device, unsigned index)
{
	return index < QUEUES ? QUEUE_SIZE : 0;
}

static void balloon_config_read(void *device, unsigned offset, void *bytes, unsigned size)
{
	const struct virtio_balloon *balloon = device;
	uint8_t config[CONFIG_BYTES];

	store_le32(config + CONFIG_TARGET, balloon->target_pages);
	store_le32(config + CONFIG_ACTUAL, balloon->actual_pages);
	store_le32(config + CONFIG_HINT_COMMAND, balloon->hint_command);
	store_le32(config + CONFIG_POISON, balloon->poison);
	memcpy(bytes, config + offset, size);
}

static void balloon_config_write(void *device, unsigned offset, const void *bytes, unsigned size)
{
	struct virtio_balloon *balloon = device;
	uint8_t config[CONFIG_BYTES];

	balloon_config_read(device, 0, config, sizeof(config));
	memcpy(config + offset, bytes, size);
	balloon->actual_pages = load_le32(config + CONFIG_ACTUAL);
	balloon->poison = load_le32(config + CONFIG_POISON);
}

static bool balloon_reset(void *device)
{
	struct virtio_balloon *balloon = device;

	hints_end(balloon, -ECANCELED);
	balloon->hint_command = HINT_STOP;
	balloon->stats_held = false;
	balloon->actual_pages = balloon->poison = 0;
	balloon->told = 0;
	balloon->told_ns = 0;
	return true;
}

static const struct virtio_ops balloon_ops = {
	.id = VIRTIO_ID_BALLOON,
	.name = "virtio-balloon",
	.features = balloon_features,
	.queue_size = balloon_queue_size,
	.config_bytes = CONFIG_BYTES,
	.config_read = balloon_config_read,
	.config_write = balloon_config_write,
	.notify = balloon_notify,
	.reset = balloon_reset,
};

/* ---- life ---- */

struct virtio_device *virtio_balloon_device(struct virtio_balloon *balloon)
{
	return balloon->device;
}

void virtio_balloon_free(struct virtio_balloon *balloon)
{
	if (!balloon)
		return;
	loop_cancel(balloon->loop, &balloon->later);
	if (balloon->device)
		hints_end(balloon, -ECANCELED);
	virtio_free(balloon->device);
	loop_timer_free(balloon->timer);
	virtq_buffer_free(&balloon->buffer);
	virtq_buffer_free(&balloon->stats);
	free(balloon);
}

int virtio_balloon_create(
	const struct virtio_balloon_config *config, struct virtio_balloon **ret_balloon)
{
	struct virtio_balloon *balloon = calloc(1, sizeof(*balloon));

	if (!balloon)
		return -ENOMEM;
	balloon->lock = config->wiring.lock;
	balloon->memory = config->wiring.memory;
	balloon->loop = config->wiring.loop;
	balloon->later = (struct loop_call){.fn = later, .opaque = balloon};
	balloon->target_pages =
		(uint32_t)MIN(config->target_bytes >> GUEST_PAGE_SHIFT, (uint64_t)UINT32_MAX);
	balloon->timer = loop_timer_create(balloon->loop, timer_fired, balloon);
	struct virtio_config wiring = config->wiring;
	wiring.ops = &balloon_ops;
	wiring.device = balloon;
	int status = balloon->timer ? virtio_create(&wiring, &balloon->device) : -ENOMEM;
	if (status < 0) {
		virtio_balloon_free(balloon);
		return status;
	}
	*ret_balloon = balloon;
	return 0;
}
