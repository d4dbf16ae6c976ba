/*
 * A PCI Express function: its configuration space with BARs, capabilities, INTx and MSI-X, so that a device only says
 * what it is and what answers behind its BARs. (PCI Local Bus 3.0, chapter 6; PCI Express Base, chapter 7; MSI-X: 6.1.4)
 *
 * BARs are on the bus while the command register decodes them, at whatever address the guest gives them; one that
 * overlaps something else is not there (as on a PC, where it would be undefined).
 *
 * Left out: expansion ROMs, MSI (MSI-X has it all), power management, function-level reset; messages and the status
 * bit of INTx are all that bus mastering and errors do here.
 *
 * Threads: configuration and BAR handlers run with the device's lock held (below the host bridge's). Interrupts are
 * raised with it held.
 */
#ifndef LODGE_DEVICE_PCI_DEVICE_H
#define LODGE_DEVICE_PCI_DEVICE_H

#include "base/types.h"
#include "base/util.h"
#include "device/bus.h"
#include "device/irq_line.h"
#include "device/msi.h"
#include "device/pci/host.h"

#define PCI_BARS 6

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 /* takes two */ };

enum pci_express {
	PCI_EXPRESS_INTEGRATED, /* into the root complex: on bus 0 */
	PCI_EXPRESS_ENDPOINT,	/* on a link below a port */
	PCI_EXPRESS_ROOT_PORT, /* with a slot that devices are plugged into: port.c fills in the rest */
};

struct pci_device;

struct pci_device_config {
	const char *name; /* outlives the device */
	uint16_t vendor, device, subsystem_vendor, subsystem;
	uint32_t class_code; /* class << 16 | subclass << 8 | programming interface */
	uint8_t revision;
	struct bus *bus;
	pthread_mutex_t *lock; /* around all handlers */
	struct irq_line intx;  /* .set NULL: no INTx; else pin A */
	struct msi_sink msi;
	bool conventional; /* from before PCI Express: without that capability */
	enum pci_express express;
	/* After the guest's write to any part of the configuration space, and before its read, with the lock held. Both
	 * may be NULL. */
	void (*config_written)(void *opaque, unsigned offset, unsigned size_bytes);
	void (*config_reading)(void *opaque, unsigned offset, unsigned size_bytes);
	void *opaque;
};

/* Errors: -ENOMEM. */
MUST_CHECK int pci_device_create(
	const struct pci_device_config *config, struct pci_device **ret_device);
void pci_device_free(struct pci_device *device); /* NULL is allowed; its BARs leave the bus */

/* Plug it into the host bridge. The interrupt pin's wiring is the board's (config.intx). Errors: pci_host_add()'s. */
MUST_CHECK int pci_device_plug(struct pci_device *device, struct pci_host *host, unsigned devfn);

/* Or onto a link, with the host bridge's lock held. It is taken off when the device is freed, or by this. */
void pci_device_plug_link(struct pci_device *device, struct pci_link *link);
void pci_device_unplug_link(struct pci_device *device);
unsigned pci_device_express_at(const struct pci_device *device); /* its PCI Express capability */
uint8_t *pci_device_config_mask(
	struct pci_device *device); /* what the guest may change, 4096 bytes */

/* size_bytes: a power of 2, at least 16 (I/O: 4). Errors: -EINVAL. `ops` may be NULL for memory that the caller maps
 * otherwise (pci_device_bar()). */
MUST_CHECK int pci_device_add_bar(struct pci_device *device, unsigned bar, enum pci_bar_kind kind,
	bool prefetchable, uint64_t size_bytes, const struct bus_ops *ops, void *opaque);
/* A capability of `size` bytes, of which the first two are its id and the link; returns its offset, or -ENOSPC.
 * `writable` (may be NULL) has a 1 for each bit that the guest may change. */
MUST_CHECK int pci_device_add_capability(struct pci_device *device, uint8_t id,
	const uint8_t *bytes, const uint8_t *writable, unsigned size);
/* MSI-X with its table, and behind it the pending bits, at `offset` (a multiple of 8) of a memory BAR that was added with ops NULL or whose handlers
 * leave that range alone. Errors: -EINVAL, -ENOSPC. */
MUST_CHECK int pci_device_add_msix(
	struct pci_device *device, unsigned bar, uint64_t offset, unsigned vectors);

uint8_t *pci_device_config_space(struct pci_device *device); /* 4096 bytes */
/* A register of the device's own: bits of config space that the guest may change (config_written() hears of it), cleared
 * by a reset. Between 0x40 and 0xff, where no capability is. */
void pci_device_set_writable(struct pci_device *device, unsigned offset, uint8_t bits);
/* As firmware does before the guest starts: give the BAR an address, and have the function decode it. */
void pci_device_assign(struct pci_device *device, unsigned bar, uint64_t address);
/* 0: there is no such BAR, or it is the upper half of one. */
uint64_t pci_device_bar_bytes(const struct pci_device *device, unsigned bar,
	enum pci_bar_kind *ret_kind, bool *ret_prefetchable);
/* An access through the BAR, as the guest's; with the lock held. offset + size_bytes are within the BAR. */
uint64_t pci_device_bar_read(
	struct pci_device *device, unsigned bar, uint64_t offset, unsigned size_bytes);
void pci_device_bar_write(struct pci_device *device, unsigned bar, uint64_t offset,
	unsigned size_bytes, uint64_t value);
/* Where the BAR is now; UINT64_MAX: nowhere, as it is not decoded, or overlaps something else on the bus. */
uint64_t pci_device_bar(const struct pci_device *device, unsigned bar);
bool pci_device_is_master(const struct pci_device *device); /* may it access memory? */
bool pci_device_msix_enabled(const struct pci_device *device);
/* Raise vector `index`, or mark it pending while it is masked. Dropped if MSI-X is off. */
void pci_device_msix(struct pci_device *device, unsigned index);
void pci_device_intx(
	struct pci_device *device, bool level); /* not while MSI-X is on, or INTx is disabled */
void pci_device_reset(struct pci_device *device);

#endif
