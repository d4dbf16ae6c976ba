/*
 * Frames that wait for room: for the guest's receive buffers, or for a socket. A bounded list of copies, first in, first
 * out; what does not fit is dropped, as a full switch would.
 */
#ifndef LODGE_BACKEND_NET_QUEUE_H
#define LODGE_BACKEND_NET_QUEUE_H

#include "device/net.h"

#include <stddef.h>

struct queued_frame {
	struct queued_frame *next;
	struct net_offload offload;
	size_t bytes;
	uint8_t frame[];
};

struct frame_queue {
	struct queued_frame *first, **last;
	size_t bytes, limit_bytes;
	uint64_t dropped;
};

void frame_queue_init(struct frame_queue *queue, size_t limit_bytes);
void frame_queue_done(struct frame_queue *queue); /* may be used again */

/* False: dropped. */
bool frame_queue_put(struct frame_queue *queue, const struct net_offload *offload,
	const struct iovec *iov, unsigned iov_count);
void frame_queue_drop_first(struct frame_queue *queue);

/* Give a frame to the peer, behind those that wait; it waits too if the peer has no room. */
void frame_queue_receive(struct frame_queue *queue, const struct net_peer *peer,
	const struct net_offload *offload, const struct iovec *iov, unsigned iov_count);
/* The peer has room again. */
void frame_queue_flush(struct frame_queue *queue, const struct net_peer *peer);

#endif
