/*
 * A PCI Express root port with a slot for one device that comes and goes while the guest runs (PCI Express Base:
 * 7.5.1.3 type 1 header, 7.5.3 capability, 6.7 native hot-plug). To the guest it is a bridge with a bus of its own
 * behind it, an attention button, a power controller and a power indicator.
 *
 * A device is plugged in at once, and told of by presence detect. It is taken out by the guest: the button is pressed,
 * the guest lets go of the device and switches the slot's power off, which is when the device goes.
 *
 * Left out: the windows of the bridge decide nothing (what is behind it is where its BARs say), I/O windows cannot be
 * set, no errors, no power management events.
 *
 * Threads: create and free by the owner; press and plug on any thread, without locks. Lock order: the host bridge's,
 * the port's, the plugged device's.
 */
#ifndef LODGE_DEVICE_PCI_PORT_H
#define LODGE_DEVICE_PCI_PORT_H

#include "device/pci/device.h"

struct pci_port;

struct pci_port_config {
	const char *name;
	unsigned slot; /* the number by which people know it */
	struct pci_host *host;
	unsigned devfn;
	struct bus *bus;
	struct irq_line intx; /* its own, of pin B: pin A's is for what is plugged in */
	struct msi_sink msi;
	/* The guest resets the bus behind it: whatever is plugged in. With the host's and the port's lock held. */
	void (*reset)(void *opaque);
	/* The guest has switched the slot off: what is plugged in is to leave it (pci_port_pull()). With the same
	 * locks held. */
	void (*eject)(void *opaque);
	void *opaque;
};

/* Errors: -ENOMEM, pci_host_add()'s. */
MUST_CHECK int pci_port_create(const struct pci_port_config *config, struct pci_port **ret_port);
void pci_port_free(struct pci_port *port); /* NULL is allowed; nothing is plugged in */
struct pci_device *pci_port_function(struct pci_port *port);

bool pci_port_is_empty(struct pci_port *port);
void pci_port_plug(struct pci_port *port, struct pci_device *device);
/* Ask the guest to let go of what is plugged in. */
void pci_port_press(struct pci_port *port);
/* Take it out: in config.eject. */
void pci_port_pull(struct pci_port *port, struct pci_device *device);

#endif
