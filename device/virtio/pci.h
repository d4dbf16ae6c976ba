/*
 * A virtio device as a PCI function (virtio 1.2, 4.1): for the guest behind memory BAR 0, with MSI-X or INTx.
 *
 * Threads: create and free by the owner (free: no vCPU runs; before the virtio device is freed); all else comes from
 * the guest and from the core, with the device's lock held.
 */
#ifndef LODGE_DEVICE_VIRTIO_PCI_H
#define LODGE_DEVICE_VIRTIO_PCI_H

#include "device/pci/device.h"
#include "device/virtio/virtio.h"

struct virtio_pci;

struct virtio_pci_config {
	struct virtio_device *virtio; /* outlives the function */
	struct bus *bus;
	struct irq_line intx;
	struct msi_sink msi;
	/* Put a doorbell up, or take it down; may be NULL, and may fail: then kicks come through the bus. With the
	 * device's lock held. */
	int (*doorbell)(void *opaque, const struct bus_doorbell *bell, bool on);
	void *opaque;
	enum pci_express express;
};

/* Errors: -ENOMEM, -EINVAL (the device's configuration space is too large). */
MUST_CHECK int virtio_pci_create(
	const struct virtio_pci_config *config, struct virtio_pci **ret_pci);
void virtio_pci_free(struct virtio_pci *pci); /* NULL is allowed */

/* The function and the device as they were at first: a reset of the bus. With the lock held. */
void virtio_pci_reset(struct virtio_pci *pci);

/* To plug it in and give its BARs addresses. */
struct pci_device *virtio_pci_function(struct virtio_pci *pci);

#endif
