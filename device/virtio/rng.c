/*
 * The entropy device: see rng.h. One queue of buffers to fill. The kernel's generator does not block once the host has
 * booted, and its system call is worth a few microseconds for what guests ask at a time; longer buffers are filled in
 * part, which the driver is told.
 */
#include "device/virtio/rng.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#define QUEUE_SIZE    64
#define CHUNK_BYTES   4096u /* into one buffer */
#define BUFFERS_A_RUN 64    /* then others on the loop come first */

struct virtio_rng {
	struct virtio_device *virtio;
	struct virtq_buffer buffer;
};

static unsigned rng_queue_size(void *device, unsigned index)
{
	return index ? 0 : QUEUE_SIZE;
}

/* Returns how many bytes it wrote: none if the host has none to give. */
static uint32_t fill(const struct virtq_buffer *buffer)
{
	uint8_t bytes[CHUNK_BYTES];
	const ssize_t count = getrandom(bytes, MIN(buffer->in_bytes, sizeof(bytes)), GRND_NONBLOCK);

	return count > 0 ? (uint32_t)virtq_write(buffer, 0, bytes, (uint64_t)count) : 0;
}

static void rng_notify(void *device, unsigned index)
{
	struct virtio_rng *rng = device;
	struct virtq *q = virtio_queue(rng->virtio, index);
	unsigned count = 0;

	while (count < BUFFERS_A_RUN && virtq_pop(q, &rng->buffer) > 0) {
		virtq_push(q, &rng->buffer, fill(&rng->buffer));
		count++;
	}
	virtq_signal(q);
	if (count == BUFFERS_A_RUN)
		virtq_kick(q);
}

static const struct virtio_ops rng_ops = {
	.id = VIRTIO_ID_RNG,
	.name = "rng",
	.queue_size = rng_queue_size,
	.notify = rng_notify,
};

int virtio_rng_create(const struct virtio_config *wiring, struct virtio_rng **ret_rng)
{
	struct virtio_rng *rng = calloc(1, sizeof(*rng));
	struct virtio_config config = *wiring;

	if (!rng)
		return -ENOMEM;
	config.ops = &rng_ops;
	config.device = rng;
	int status = virtio_create(&config, &rng->virtio);
	if (status < 0) {
		free(rng);
		return status;
	}
	*ret_rng = rng;
	return 0;
}

void virtio_rng_free(struct virtio_rng *rng)
{
	if (!rng)
		return;
	virtio_free(rng->virtio);
	virtq_buffer_free(&rng->buffer);
	free(rng);
}

struct virtio_device *virtio_rng_virtio(struct virtio_rng *rng)
{
	return rng->virtio;
}
