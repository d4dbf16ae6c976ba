/*
 * virtio memory balloon (Virtual I/O Device 1.2, 5.5): memory that the guest does not need goes back to the host,
 * because the host asks for it (a target), or as the guest finds it free (free-page reporting).
 *
 * Threads: as virtio.h says; the functions below are for any thread.
 */
#ifndef LODGE_DEVICE_VIRTIO_BALLOON_H
#define LODGE_DEVICE_VIRTIO_BALLOON_H

#include "base/types.h"
#include "base/util.h"
#include "device/virtio/virtio.h"

struct virtio_balloon;

struct virtio_balloon_config {
	struct virtio_config wiring; /* all but ops and device */
	uint64_t target_bytes; /* at the start */
};

/* What a guest may tell of itself (5.5.6.4), in that order. */
enum balloon_statistic {
	BALLOON_SWAP_IN,
	BALLOON_SWAP_OUT,
	BALLOON_MAJOR_FAULTS,
	BALLOON_MINOR_FAULTS,
	BALLOON_FREE,	   /* bytes that nothing uses */
	BALLOON_TOTAL,	   /* bytes of the guest's memory */
	BALLOON_AVAILABLE, /* bytes to be had without swapping */
	BALLOON_CACHES,	   /* bytes of caches that can be dropped */
	BALLOON_HUGE_PAGES,
	BALLOON_HUGE_FAILURES,
	BALLOON_STATISTICS,
};

struct balloon_statistics {
	bool live;		 /* the guest has a driver */
	uint64_t target_bytes;	 /* what the host wants */
	uint64_t actual_bytes;	 /* what the guest says it gave */
	uint64_t inflated_bytes; /* given back by it, in all */
	uint64_t deflated_bytes; /* taken again, in all */
	uint64_t reported_bytes; /* given back by free-page reporting, in all */
	/* What the guest told last, and when (CLOCK_MONOTONIC; 0: never). */
	uint64_t told_ns;
	unsigned told; /* one bit for each enum balloon_statistic */
	uint64_t value[BALLOON_STATISTICS];
};

/* Free pages that the guest hinted at: it does not use them before the hints end. */
struct balloon_hints {
	/* On the loop's thread, with the device's lock held; must not call back. */
	void (*pages)(void *opaque, gpa_t gpa, uint64_t bytes);
	/* That was all (0), or the guest will not say (-ECANCELED): none of these is asked for any more. */
	void (*end)(void *opaque, int status);
	void *opaque;
};

/* Errors: -ENOMEM, those of virtio_create(). Before the loop runs, or on its thread. */
MUST_CHECK int virtio_balloon_create(
	const struct virtio_balloon_config *config, struct virtio_balloon **ret_balloon);
/* NULL is allowed. The loop does not run, nor does a vCPU. */
void virtio_balloon_free(struct virtio_balloon *balloon);

/* For a transport. */
struct virtio_device *virtio_balloon_device(struct virtio_balloon *balloon);

/* How much of its memory the guest should give away; rounded down to pages. It takes its time, and takes memory
 * again if it would have to kill programs for the lack of it. */
void virtio_balloon_set(struct virtio_balloon *balloon, uint64_t bytes);
/* What is known now. */
void virtio_balloon_statistics(
	struct virtio_balloon *balloon, struct balloon_statistics *ret_statistics);
/* Have the guest tell its statistics every period_ns (0: no more), and once now. */
void virtio_balloon_poll(struct virtio_balloon *balloon, uint64_t period_ns);
/* Ask for hints. The guest may use the pages again after virtio_balloon_hint_done(). Errors: -EBUSY (they are asked
 * for), -ENOTSUP (the guest gives none). */
MUST_CHECK int virtio_balloon_hint(
	struct virtio_balloon *balloon, const struct balloon_hints *hints);
void virtio_balloon_hint_done(struct virtio_balloon *balloon);

#endif
