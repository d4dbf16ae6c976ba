/*
 * virtio socket device (Virtual I/O Device 1.2, 5.10): stream connections between programs in the guest (AF_VSOCK)
 * and on the host (struct vsock_host).
 *
 * Threads: as virtio.h says; the host's side lives on the same loop.
 */
#ifndef LODGE_DEVICE_VIRTIO_VSOCK_H
#define LODGE_DEVICE_VIRTIO_VSOCK_H

#include "base/util.h"
#include "device/virtio/virtio.h"

#include <stdint.h>

struct virtio_vsock;
struct vsock_host;

#define VSOCK_CID_HOST	2
#define VSOCK_CID_FIRST 3 /* of guests */
#define VSOCK_CID_LAST \
	0xfffffffe /* 32 bits are all that guests' programs have; the last means "any" */
#define VSOCK_CONNECTIONS_MAX 1024
#define VSOCK_BUFFER_BYTES    KIB(128) /* of the guest's bytes that a connection holds at the most */
#define VSOCK_CONNECT_NS      5000000000ull /* what the guest has to answer a connection from the host */

struct virtio_vsock_config {
	struct virtio_config wiring; /* all but ops and device */
	uint32_t cid;		 /* the guest's address: VSOCK_CID_FIRST to VSOCK_CID_LAST */
	struct vsock_host *host; /* the caller's, open until after virtio_vsock_free() */
};

/* Errors: -ENOMEM, -EINVAL (cid), those of virtio_create(). Before the loop runs, or on its thread. */
MUST_CHECK int virtio_vsock_create(
	const struct virtio_vsock_config *config, struct virtio_vsock **ret_vsock);
/* NULL is allowed. The loop does not run, nor does a vCPU. Closes all connections. */
void virtio_vsock_free(struct virtio_vsock *vsock);

/* For a transport. */
struct virtio_device *virtio_vsock_device(struct virtio_vsock *vsock);

/* How many connections there are. */
unsigned virtio_vsock_connections(struct virtio_vsock *vsock);

#endif
