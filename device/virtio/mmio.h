/*
 * A virtio device in a page of memory (virtio 1.2, 4.2; version 2): for machines without PCI.
 *
 * Threads: as device/virtio/pci.h.
 */
#ifndef LODGE_DEVICE_VIRTIO_MMIO_H
#define LODGE_DEVICE_VIRTIO_MMIO_H

#include "device/bus.h"
#include "device/irq_line.h"
#include "device/virtio/virtio.h"

#define VIRTIO_MMIO_BYTES 0x1000u

struct virtio_mmio;

struct virtio_mmio_config {
	struct virtio_device *virtio; /* outlives it */
	struct bus *bus;
	gpa_t base; /* of VIRTIO_MMIO_BYTES */
	struct irq_line irq;
	/* As virtio_pci_config's. */
	int (*doorbell)(void *opaque, const struct bus_doorbell *bell, bool on);
	void *opaque;
};

/* Errors: -ENOMEM, -EINVAL (the device's configuration space is too large), bus_add()'s. */
MUST_CHECK int virtio_mmio_create(
	const struct virtio_mmio_config *config, struct virtio_mmio **ret_mmio);
void virtio_mmio_free(struct virtio_mmio *mmio); /* NULL is allowed */

#endif
