/*
 * virtio console (Virtual I/O Device 1.2, 5.3): ports, each on a struct stream. Port 0 is the guest's console (hvc0
 * in Linux), the others have names (/dev/virtio-ports/NAME).
 *
 * Threads: as virtio.h says; streams as stream.h says.
 */
#ifndef LODGE_DEVICE_VIRTIO_CONSOLE_H
#define LODGE_DEVICE_VIRTIO_CONSOLE_H

#include "base/util.h"
#include "device/virtio/virtio.h"

struct stream;
struct virtio_console;

#define VIRTIO_CONSOLE_PORTS_MAX 16
#define VIRTIO_CONSOLE_NAME_MAX	 64

struct virtio_console_config {
	struct virtio_config wiring; /* all but ops and device */
	unsigned ports; /* 1 to VIRTIO_CONSOLE_PORTS_MAX; 1: a console and nothing else */
	struct {
		struct stream *stream; /* the caller's; NULL: the guest is not told of this port */
		const char *name;      /* NULL: a console; outlives the device */
	} port[VIRTIO_CONSOLE_PORTS_MAX];
};

/* Attaches to the streams. Errors: -ENOMEM, -EINVAL (ports, a name's length), those of virtio_create(). Before the
 * loop runs, or on its thread. */
MUST_CHECK int virtio_console_create(
	const struct virtio_console_config *config, struct virtio_console **ret_console);
/* NULL is allowed. The loop does not run, nor does a vCPU. */
void virtio_console_free(struct virtio_console *console);

/* For a transport. */
struct virtio_device *virtio_console_device(struct virtio_console *console);

#endif
