/*
 * virtio fs: see fs.h. (Virtual I/O Device 1.2, 5.11)
 *
 * Queue 0 is the high-priority queue, the others are for requests; all are served alike, since what comes on the first
 * (FORGET) ends at once. A buffer goes to the server as it is and comes back with the reply's length.
 *
 * Left out on purpose: the notification queue and the DAX window (shared memory 0), which need a server that speaks
 * first, and a guest that maps the host's page cache.
 *
 * Invariants: no more requests are under way than the queues have entries (virtq_pop() sees to it). Guest RAM is
 * touched by the server between submit and done only, and the device is not reset before all have ended.
 */
#include "device/virtio/fs.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "device/fs.h"
#include "device/virtio/transport.h"

#include <errno.h>
#include <string.h>

#define PRIORITY_QUEUE_SIZE 128u
/* A Linux guest makes its requests as large as fit the queue, up to 256 pages. */
#define REQUEST_QUEUE_SIZE 1024u

#define TURN_MAX 512 /* requests from one queue before others have their turn on the loop */

#define CONFIG_QUEUES VIRTIO_FS_TAG_BYTES
#define CONFIG_BYTES  (CONFIG_QUEUES + 4)

struct request {
	struct virtio_fs *fs;
	struct request *next; /* free */
	unsigned queue;
	struct virtq_buffer buffer;
	struct fs_request server;
};

struct virtio_fs {
	unsigned queues;
	pthread_mutex_t *lock;
	struct virtio_device *device;
	struct fs *server;
	char tag[VIRTIO_FS_TAG_BYTES];
	struct request *free;
	unsigned under_way;
	bool resetting;
	pthread_cond_t idle; /* nothing is under way */
};

/* ---- the end of a request; with the lock held ---- */

static void release(struct request *r)
{
	r->next = r->fs->free;
	r->fs->free = r;
}

static void finish(struct request *r, uint32_t written)
{
	struct virtio_fs *fs = r->fs;

	virtq_push(virtio_queue(fs->device, r->queue), &r->buffer, written);
	fs->under_way--;
	release(r);
}

static void reset_if_idle(struct virtio_fs *fs)
{
	if (fs->under_way)
		return;
	pthread_cond_broadcast(&fs->idle);
	if (fs->resetting) {
		fs->resetting = false;
		virtio_reset_done(fs->device);
	}
}

/* On a thread of the server's. */
static void served(struct fs_request *server, uint32_t written)
{
	struct request *r = server->opaque;
	struct virtio_fs *fs = r->fs;
	const unsigned queue = r->queue;

	AUTO_LOCK(fs->lock);
	finish(r, written);
	virtq_signal(virtio_queue(fs->device, queue));
	reset_if_idle(fs);
}

/* ---- taking requests; with the lock held ---- */

static struct request *take_free(struct virtio_fs *fs)
{
	struct request *r = fs->free;

	if (!r)
		return calloc(1, sizeof(*r));
	fs->free = r->next;
	return r;
}

static void submit(struct request *r)
{
	struct virtio_fs *fs = r->fs;
	const struct virtq_buffer *b = &r->buffer;
	uint32_t written;

	r->server = (struct fs_request){.out = b->out,
		.out_count = b->out_count,
		.in = b->in,
		.in_count = b->in_count,
		.out_bytes = b->out_bytes,
		.in_bytes = b->in_bytes,
		.done = served,
		.opaque = r};
	fs->under_way++;
	if (fs_submit(fs->server, &r->server, &written))
		finish(r, written);
}

/* 1: one was taken; 0: none is there; or virtq_pop()'s. */
static int take_request(struct virtio_fs *fs, unsigned queue)
{
	struct request *r = take_free(fs);

	/* Without memory it waits for the next kick. */
	if (!r)
		return 0;
	r->fs = fs;
	r->queue = queue;
	int status = virtq_pop(virtio_queue(fs->device, queue), &r->buffer);
	if (status == 1)
		submit(r);
	else
		release(r);
	return status;
}

/* ---- virtio_ops ---- */

static uint64_t fs_features(void *device)
{
	return 0;
}

static unsigned fs_queue_size(void *device, unsigned index)
{
	const struct virtio_fs *fs = device;

	if (index > fs->queues)
		return 0;
	return index ? REQUEST_QUEUE_SIZE : PRIORITY_QUEUE_SIZE;
}

static void fs_config_read(void *device, unsigned offset, void *bytes, unsigned size)
{
	const struct virtio_fs *fs = device;
	uint8_t config[CONFIG_BYTES];

	memcpy(config, fs->tag, sizeof(fs->tag));
	store_le32(config + CONFIG_QUEUES, fs->queues);
	memcpy(bytes, config + offset, size);
}

static void fs_notify(void *device, unsigned queue)
{
	struct virtio_fs *fs = device;
	struct virtq *q = virtio_queue(fs->device, queue);

	if (fs->resetting)
		return;
	unsigned turn = 0;
	while (turn < TURN_MAX && take_request(fs, queue) == 1)
		turn++;
	/* Others on the loop have their turn first. */
	if (turn == TURN_MAX)
		virtio_kick(fs->device, queue);
	/* Some have ended at once. */
	virtq_signal(q);
}

static bool fs_reset(void *device)
{
	struct virtio_fs *fs = device;

	fs_abandon(fs->server);
	fs->resetting = fs->under_way;
	return !fs->resetting;
}

static const struct virtio_ops virtio_fs_ops = {
	.id = VIRTIO_ID_FS,
	.name = "virtio-fs",
	.features = fs_features,
	.queue_size = fs_queue_size,
	.config_bytes = CONFIG_BYTES,
	.config_read = fs_config_read,
	.notify = fs_notify,
	.reset = fs_reset,
};

/* ---- life ---- */

struct virtio_device *virtio_fs_device(struct virtio_fs *fs)
{
	return fs->device;
}

static void drain(struct virtio_fs *fs)
{
	AUTO_LOCK(fs->lock);
	fs_abandon(fs->server);
	while (fs->under_way)
		pthread_cond_wait(&fs->idle, fs->lock);
}

void virtio_fs_free(struct virtio_fs *fs)
{
	if (!fs)
		return;
	if (fs->device)
		drain(fs);
	virtio_free(fs->device);
	for (struct request *r = fs->free, *next; r; r = next) {
		next = r->next;
		virtq_buffer_free(&r->buffer);
		free(r);
	}
	pthread_cond_destroy(&fs->idle);
	free(fs);
}

int virtio_fs_create(const struct virtio_fs_config *config, struct virtio_fs **ret_fs)
{
	const size_t tag_bytes = strlen(config->tag);

	if (config->queues < 1 || config->queues > VIRTIO_FS_QUEUES_MAX || tag_bytes < 1 ||
		tag_bytes > VIRTIO_FS_TAG_BYTES)
		return -EINVAL;
	struct virtio_fs *fs = calloc(1, sizeof(*fs));
	if (!fs)
		return -ENOMEM;
	fs->queues = config->queues;
	fs->lock = config->wiring->lock;
	fs->server = config->fs;
	memcpy(fs->tag, config->tag, tag_bytes);
	pthread_cond_init(&fs->idle, NULL);
	struct virtio_config wiring = *config->wiring;
	wiring.ops = &virtio_fs_ops;
	wiring.device = fs;
	int status = virtio_create(&wiring, &fs->device);
	if (status < 0) {
		virtio_fs_free(fs);
		return status;
	}
	*ret_fs = fs;
	return 0;
}
