/*
 * A virtio entropy device (virtio 1.2, 5.4): the host's random numbers for the guest.
 */
#ifndef LODGE_DEVICE_VIRTIO_RNG_H
#define LODGE_DEVICE_VIRTIO_RNG_H

#include "device/virtio/virtio.h"

struct virtio_rng;

/* `wiring`: all but ops and device. Errors: virtio_create()'s. */
MUST_CHECK int virtio_rng_create(const struct virtio_config *wiring, struct virtio_rng **ret_rng);
void virtio_rng_free(struct virtio_rng *rng); /* NULL is allowed; as virtio_free() */
struct virtio_device *virtio_rng_virtio(struct virtio_rng *rng);

#endif
