/*
 * The watchdog timer of Intel's 6300ESB I/O controller hub (data sheet, chapter "Watchdog Timer"), as a PCI function.
 * Two stages: when the first has run out an interrupt would tell the guest, when the second has, the watchdog
 * barks.
 *
 * Left out: the interrupt of the first stage (Linux turns it off), the lock of the GPIO that the output is on; after a
 * reset the guest is not told that the watchdog caused it, for a reset makes a new machine.
 *
 * Threads: as device/pci/device.h says.
 */
#ifndef LODGE_DEVICE_PCI_I6300ESB_H
#define LODGE_DEVICE_PCI_I6300ESB_H

#include "device/pci/device.h"

struct i6300esb;
struct timer_source;

struct i6300esb_config {
	struct bus *bus;
	pthread_mutex_t *lock;
	struct timer_source *time;
	/* Nobody patted it. On the timers' thread, with the lock held: only note it. */
	void (*bark)(void *opaque);
	void *opaque;
};

/* Errors: -ENOMEM. */
MUST_CHECK int i6300esb_create(const struct i6300esb_config *config, struct i6300esb **ret_dog);
void i6300esb_free(struct i6300esb *dog); /* NULL is allowed */
struct pci_device *i6300esb_function(struct i6300esb *dog);

#endif
