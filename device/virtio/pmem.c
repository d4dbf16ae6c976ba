/*
 * virtio persistent memory: see pmem.h. (Virtual I/O Device 1.2, 5.19)
 *
 * The one request is a flush. A thread of the device's own carries flushes out, as they take as long as the disk
 * does; all that came while one was under way are answered by the next.
 *
 * Left out on purpose: the shared memory region feature: the address is in the configuration, where every driver
 * looks.
 *
 * Invariants: the first `running` requests are those that the flush under way answers; the rest wait for the next.
 * Requests that are here when the driver resets the device are forgotten, by making both counts zero: a flush that
 * ends then has nothing to answer.
 */
#include "device/virtio/pmem.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/loop.h"
#include "device/virtio/virtio.h"
#include "memory/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE   64
#define CONFIG_BYTES 16
#define REPLY_BYTES  4

enum request_type { REQUEST_FLUSH = 0 };

struct virtio_pmem {
	pthread_mutex_t *lock;
	struct loop *loop;
	struct virtio_device *device;
	struct virtio_pmem_config config;
	struct loop_call later; /* the queue again */
	struct log_limit limit;

	struct virtq_buffer requests[QUEUE_SIZE];
	unsigned waiting, running;

	pthread_t thread;
	bool has_thread, ending;
	pthread_cond_t work;
};

static void reply(struct virtio_pmem *pmem, struct virtq_buffer *request, bool good)
{
	uint8_t bytes[REPLY_BYTES];

	store_le32(bytes, good ? 0 : UINT32_MAX);
	virtq_push(virtio_queue(pmem->device, 0), request,
		(uint32_t)virtq_write(request, 0, bytes, sizeof(bytes)));
}

/* ---- the thread ---- */

/* Those that were running are answered; the others move up. */
static void answer(struct virtio_pmem *pmem, bool good)
{
	struct virtq_buffer moved[QUEUE_SIZE];
	const unsigned count = pmem->running;

	for (unsigned i = 0; i < count; i++)
		reply(pmem, &pmem->requests[i], good);
	/* A chain's memory is used again: it only changes places. */
	memcpy(moved, pmem->requests, sizeof(moved));
	for (unsigned i = 0; i < QUEUE_SIZE; i++)
		pmem->requests[i] = moved[(i + count) % QUEUE_SIZE];
	pmem->waiting -= count;
	pmem->running = 0;
	virtq_signal(virtio_queue(pmem->device, 0));
	/* There may have been no room for all. */
	loop_post(pmem->loop, &pmem->later);
}

/* With the lock held, which it drops to flush. */
static void flush(struct virtio_pmem *pmem)
{
	pmem->running = pmem->waiting;
	pthread_mutex_unlock(pmem->lock);
	const int status = memory_file_flush(pmem->config.file);
	pthread_mutex_lock(pmem->lock);
	if (status < 0)
		log_limited(&pmem->limit, LOG_LEVEL_WARN, "pmem",
			"%s: can't make lasting what the guest wrote: %s", pmem->config.wiring.name,
			strerror(-status));
	if (virtio_has_driver(pmem->device))
		answer(pmem, status == 0);
	else
		pmem->waiting = pmem->running = 0;
}

static void *flush_thread(void *opaque)
{
	struct virtio_pmem *pmem = opaque;

	pthread_setname_np(pthread_self(), "pmem");
	pthread_mutex_lock(pmem->lock);
	while (!pmem->ending) {
		if (pmem->waiting)
			flush(pmem);
		else
			pthread_cond_wait(&pmem->work, pmem->lock);
	}
	pthread_mutex_unlock(pmem->lock);
	return NULL;
}

/* ---- the core's side ---- */

static bool is_flush(const struct virtq_buffer *request)
{
	uint8_t type[4];

	return virtq_read(request, 0, type, sizeof(type)) == sizeof(type) &&
	       load_le32(type) == REQUEST_FLUSH;
}

static void pmem_notify(void *device, unsigned index)
{
	struct virtio_pmem *pmem = device;
	struct virtq *queue = virtio_queue(pmem->device, 0);
	bool refused = false;

	/* A queue is no longer than the list, so one turn has an end unless the driver's requests are refused. */
	for (unsigned turn = 0; turn < QUEUE_SIZE && pmem->waiting < QUEUE_SIZE; turn++) {
		struct virtq_buffer *request = &pmem->requests[pmem->waiting];

		if (virtq_pop(queue, request) != 1)
			goto out;
		if (is_flush(request)) {
			pmem->waiting++;
			continue;
		}
		reply(pmem, request, false);
		refused = true;
	}
	if (pmem->waiting < QUEUE_SIZE)
		loop_post(pmem->loop, &pmem->later);
out:
	if (refused)
		virtq_signal(queue);
	if (pmem->waiting)
		pthread_cond_signal(&pmem->work);
}

static void later(void *opaque)
{
	struct virtio_pmem *pmem = opaque;
	AUTO_LOCK(pmem->lock);

	if (virtio_live(pmem->device))
		pmem_notify(pmem, 0);
}

static uint64_t pmem_features(void *device)
{
	return 0;
}

static unsigned pmem_queue_size(void *device, unsigned index)
{
	return index == 0 ? QUEUE_SIZE : 0;
}

static void pmem_config_read(void *device, unsigned offset, void *bytes, unsigned size)
{
	const struct virtio_pmem *pmem = device;
	uint8_t config[CONFIG_BYTES];

	store_le64(config, pmem->config.gpa);
	store_le64(config + 8, memory_file_bytes(pmem->config.file));
	memcpy(bytes, config + offset, size);
}

static bool pmem_reset(void *device)
{
	struct virtio_pmem *pmem = device;

	pmem->waiting = pmem->running = 0;
	return true;
}

static const struct virtio_ops pmem_ops = {
	.id = VIRTIO_ID_PMEM,
	.name = "virtio-pmem",
	.features = pmem_features,
	.queue_size = pmem_queue_size,
	.config_bytes = CONFIG_BYTES,
	.config_read = pmem_config_read,
	.notify = pmem_notify,
	.reset = pmem_reset,
};

/* ---- life ---- */

struct virtio_device *virtio_pmem_device(struct virtio_pmem *pmem)
{
	return pmem->device;
}

static void thread_end(struct virtio_pmem *pmem)
{
	pthread_mutex_lock(pmem->lock);
	pmem->ending = true;
	pthread_cond_signal(&pmem->work);
	pthread_mutex_unlock(pmem->lock);
	pthread_join(pmem->thread, NULL);
}

void virtio_pmem_free(struct virtio_pmem *pmem)
{
	if (!pmem)
		return;
	if (pmem->has_thread)
		thread_end(pmem);
	loop_cancel(pmem->loop, &pmem->later);
	virtio_free(pmem->device);
	for (unsigned i = 0; i < QUEUE_SIZE; i++)
		virtq_buffer_free(&pmem->requests[i]);
	pthread_cond_destroy(&pmem->work);
	free(pmem);
}

static int start(struct virtio_pmem *pmem)
{
	struct virtio_config wiring = pmem->config.wiring;

	wiring.ops = &pmem_ops;
	wiring.device = pmem;
	int status = virtio_create(&wiring, &pmem->device);
	if (status < 0)
		return status;
	status = -pthread_create(&pmem->thread, NULL, flush_thread, pmem);
	pmem->has_thread = status == 0;
	return status;
}

int virtio_pmem_create(const struct virtio_pmem_config *config, struct virtio_pmem **ret_pmem)
{
	struct virtio_pmem *pmem = calloc(1, sizeof(*pmem));

	if (!pmem)
		return -ENOMEM;
	pthread_cond_init(&pmem->work, NULL);
	pmem->config = *config;
	pmem->lock = config->wiring.lock;
	pmem->loop = config->wiring.loop;
	pmem->later = (struct loop_call){.fn = later, .opaque = pmem};
	int status = start(pmem);
	if (status < 0) {
		virtio_pmem_free(pmem);
		return status;
	}
	*ret_pmem = pmem;
	return 0;
}
