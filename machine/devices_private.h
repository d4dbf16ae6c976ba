/*
 * What devices.c and hotplug.c share.
 */
#ifndef LODGE_MACHINE_DEVICES_PRIVATE_H
#define LODGE_MACHINE_DEVICES_PRIVATE_H

#include "device/virtio/virtio.h"
#include "machine/kinds.h"
#include "machine/private.h"

#define DEVICES_MAX 28 /* the slots behind them are the watchdog's, the screen's and the chip set's */

#define E1000_MAX   8

struct machine_device {
	struct devices *all;
	const struct device_kind *kind;
	char name[16];
	pthread_mutex_t lock;
	void *device;
	struct virtio_device *virtio;
	unsigned gsi;		  /* of its line */
	struct virtio_pci *pci;	  /* or: */
	struct virtio_mmio *mmio;
};

struct devices {
	struct machine *machine;
	unsigned count;
	struct machine_device *device[DEVICES_MAX];
	struct hotplug *hotplug;      /* or NULL */
	struct ahci *ahci;	      /* or NULL */
	unsigned e1000_count;	      /* in the slots behind those of `device` */
	struct e1000 *e1000[E1000_MAX];
	uint64_t next_low, next_high; /* addresses for BARs */
	int status;
	struct error *err;
};

/* On the I/O loop's thread. A device with no transport yet, of the kind of `config`, named `name`. */
int device_create(struct devices *all, const struct device_kind *kind,
	const struct machine_config *config, unsigned index, const char *name,
	struct machine_device **ret_device, struct error *err);
void device_free(struct machine_device *d);
/* The kind of the only device that a configuration asks for; NULL: there are none or several, or it is one that must be
 * there from the start. */
const struct device_kind *device_only_kind(const struct machine_config *config);
/* virtio_pci_config.doorbell; opaque is the machine. */
int device_set_doorbell(void *opaque, const struct bus_doorbell *bell, bool on);
/* Give a function's BARs addresses, as firmware would. */
void device_assign_bars(struct devices *all, struct pci_device *function);

/* hotplug.c: machine_config.hotplug_ports root ports. Errors: with a line for people. */
int hotplug_create(struct hotplug **ret_hotplug, struct devices *all, struct error *err);
/* In two steps: quiesce on the owner's thread, then free on the I/O loop's. NULL is allowed. */
void hotplug_quiesce(struct hotplug *hotplug);
void hotplug_end(struct hotplug *hotplug); /* devices_ended() */
void hotplug_free(struct hotplug *hotplug);

#endif
