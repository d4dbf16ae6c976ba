/*
 * Frames that wait for room: see queue.h.
 */
#include "backend/net/queue.h"

#include "backend/net/offload.h"

#include <stdlib.h>

void frame_queue_init(struct frame_queue *queue, size_t limit_bytes)
{
	*queue = (struct frame_queue){.last = &queue->first, .limit_bytes = limit_bytes};
}

void frame_queue_drop_first(struct frame_queue *queue)
{
	struct queued_frame *frame = queue->first;

	queue->first = frame->next;
	if (!queue->first)
		queue->last = &queue->first;
	queue->bytes -= frame->bytes;
	free(frame);
}

void frame_queue_done(struct frame_queue *queue)
{
	while (queue->first)
		frame_queue_drop_first(queue);
}

bool frame_queue_put(struct frame_queue *queue, const struct net_offload *offload,
	const struct iovec *iov, unsigned iov_count)
{
	struct queued_frame *frame = NULL;
	size_t bytes = 0;

	for (unsigned i = 0; i < iov_count; i++)
		bytes += iov[i].iov_len;
	if (queue->bytes + bytes <= queue->limit_bytes)
		frame = malloc(sizeof(*frame) + bytes);
	if (!frame) {
		queue->dropped++;
		return false;
	}
	frame->next = NULL;
	frame->offload = *offload;
	frame->bytes = offload_gather(frame->frame, bytes, iov, iov_count, 0);
	*queue->last = frame;
	queue->last = &frame->next;
	queue->bytes += bytes;
	return true;
}

void frame_queue_receive(struct frame_queue *queue, const struct net_peer *peer,
	const struct net_offload *offload, const struct iovec *iov, unsigned iov_count)
{
	if (!peer->receive)
		return;
	if (queue->first || !peer->receive(peer->opaque, offload, iov, iov_count))
		(void)frame_queue_put(queue, offload, iov, iov_count);
}

void frame_queue_flush(struct frame_queue *queue, const struct net_peer *peer)
{
	while (queue->first && peer->receive) {
		struct iovec iov = {queue->first->frame, queue->first->bytes};
		if (!peer->receive(peer->opaque, &queue->first->offload, &iov, 1))
			return;
		frame_queue_drop_first(queue);
	}
}
