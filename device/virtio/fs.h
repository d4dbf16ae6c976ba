/*
 * virtio fs (Virtual I/O Device 1.2, 5.11): a file system for the guest, which any struct fs serves.
 *
 * Threads: as virtio.h says; the server ends requests on threads of its own, where buffers are given back.
 */
#ifndef LODGE_DEVICE_VIRTIO_FS_H
#define LODGE_DEVICE_VIRTIO_FS_H

#include "base/util.h"

struct fs;
struct virtio_config;
struct virtio_device;
struct virtio_fs;

#define VIRTIO_FS_TAG_BYTES  36
#define VIRTIO_FS_QUEUES_MAX 8

struct virtio_fs_config {
	const struct virtio_config *wiring; /* all but ops and device */
	struct fs *fs;	 /* the caller's, open until after virtio_fs_free(); of this device only */
	const char *tag; /* what the guest mounts, 1 to VIRTIO_FS_TAG_BYTES bytes; copied */
	unsigned queues; /* for requests, 1 to VIRTIO_FS_QUEUES_MAX */
};

/* Errors: -ENOMEM, -EINVAL (queues, tag), those of virtio_create(). */
MUST_CHECK int virtio_fs_create(const struct virtio_fs_config *config, struct virtio_fs **ret_fs);
/* NULL is allowed. No vCPU runs. Waits for requests that are under way; the guest has nothing open any more then. */
void virtio_fs_free(struct virtio_fs *fs);

/* For a transport. */
struct virtio_device *virtio_fs_device(struct virtio_fs *fs);

#endif
