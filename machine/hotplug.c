/*
 * Devices that come and go while the guest runs: root ports with slots on bus 0, from the highest device number down,
 * and machine_device_plug() and _unplug().
 *
 * A device that the guest has let go of (or thrown out) is off its link, off the bus and reset at once. Its memory goes
 * later: with all vCPUs paused, as one of them may be on its way into a handler.
 *
 * Lock order: hotplug.calls (the two functions, one at a time) -> the host bridge's -> the port's -> the device's ->
 * hotplug.lock.
 */
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/loop.h"
#include "device/pci/port.h"
#include "device/virtio/pci.h"
#include "device/virtio/transport.h"
#include "machine/devices_private.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct hot_slot {
	struct hotplug *hotplug;
	char name[16];
	struct pci_port *port;
	struct irq_line intx; /* of pin A of what is plugged in */
	/* Changed by calls only, which have no device in the guest's hands then. */
	struct machine_device *device;
	bool gone; /* the guest has let go of it; under `lock` */
};

struct hotplug {
	struct devices *all;
	pthread_mutex_t calls, lock;
	pthread_cond_t changed;
	bool ended; /* the machine has; under `lock` */
	unsigned count;
	struct hot_slot slot[MACHINE_HOTPLUG_PORTS_MAX];
	/* Of the call that is under way. */
	const struct machine_config *with;
	const char *name;
	struct hot_slot *chosen;
	int status;
	struct error *err;
};

/* ---- the ports ---- */

static void reset_slot(void *opaque)
{
	struct hot_slot *slot = opaque;

	AUTO_LOCK(&slot->device->lock);
	virtio_pci_reset(slot->device->pci);
}

static void eject(void *opaque)
{
	struct hot_slot *slot = opaque;
	struct hotplug *h = slot->hotplug;

	reset_slot(slot);
	pci_port_pull(slot->port, virtio_pci_function(slot->device->pci));
	AUTO_LOCK(&h->lock);
	slot->gone = true;
	pthread_cond_broadcast(&h->changed);
}

static int add_port(struct hotplug *h, unsigned index, struct error *err)
{
	struct machine *m = h->all->machine;
	struct hot_slot *slot = &h->slot[index];
	const unsigned device = DEVICES_MAX - index;
	unsigned gsi;

	slot->hotplug = h;
	snprintf(slot->name, sizeof(slot->name), "port%u", index);
	slot->intx = board_shared_line(m->board, device, 0, &gsi);
	const struct irq_line pin_b = board_shared_line(m->board, device, 1, &gsi);
	const struct pci_port_config config = {
		.name = slot->name,
		.slot = index + 1,
		.host = board_pci(m->board),
		.devfn = PCI_DEVFN(device, 0),
		.bus = m->bus,
		.intx = pin_b,
		.msi = board_msi(m->board),
		.reset = reset_slot,
		.eject = eject,
		.opaque = slot,
	};
	int status = pci_port_create(&config, &slot->port);
	if (status < 0)
		return error_set_errno(err, -status, "can't make a port to plug devices into");
	if (!m->config.boot.firmware.path)
		device_assign_bars(h->all, pci_port_function(slot->port));
	return 0;
}

int hotplug_create(struct hotplug **ret_hotplug, struct devices *all, struct error *err)
{
	const unsigned count = all->machine->config.hotplug_ports;
	struct hotplug *h = calloc(1, sizeof(*h));

	if (!h)
		return error_set(err, ENOMEM, "no memory for devices");
	h->all = all;
	pthread_mutex_init(&h->calls, NULL);
	pthread_mutex_init(&h->lock, NULL);
	pthread_cond_init(&h->changed, NULL);
	*ret_hotplug = h;
	int status = 0;
	for (unsigned i = 0; status == 0 && i < count; i++) {
		status = add_port(h, i, err);
		h->count += status == 0;
	}
	return status;
}

void hotplug_quiesce(struct hotplug *h)
{
	for (unsigned i = 0; h && i < h->count; i++)
		if (h->slot[i].device)
			virtio_quiesce(h->slot[i].device->virtio);
}

void hotplug_free(struct hotplug *h)
{
	if (!h)
		return;
	for (unsigned i = 0; i < h->count; i++) {
		if (h->slot[i].device)
			device_free(h->slot[i].device);
		pci_port_free(h->slot[i].port);
	}
	pthread_mutex_destroy(&h->calls);
	pthread_mutex_destroy(&h->lock);
	pthread_cond_destroy(&h->changed);
	free(h);
}

/* ---- what is gone is freed ---- */

static void free_chosen(void *opaque)
{
	struct hotplug *h = opaque;

	device_free(h->chosen->device);
	h->chosen->device = NULL;
}

static bool is_gone(struct hot_slot *slot)
{
	AUTO_LOCK(&slot->hotplug->lock);
	return slot->device && slot->gone;
}

static void collect(struct hot_slot *slot)
{
	struct hotplug *h = slot->hotplug;
	struct machine *m = h->all->machine;

	if (!is_gone(slot))
		return;
	machine_pause_for(m, MACHINE_PAUSE_PLUG);
	virtio_quiesce(slot->device->virtio);
	h->chosen = slot;
	loop_invoke(m->config.io, free_chosen, h);
	machine_resume_for(m, MACHINE_PAUSE_PLUG);
}

/* ---- plug ---- */

static void make_device(void *opaque)
{
	struct hotplug *h = opaque;
	struct machine *m = h->all->machine;
	struct hot_slot *slot = h->chosen;
	struct machine_device *d;
	const struct device_kind *kind = device_only_kind(h->with);

	h->status = device_create(h->all, kind, h->with, 0, h->name, &d, h->err);
	if (h->status < 0)
		return;
	const struct virtio_pci_config config = {
		.virtio = d->virtio,
		.bus = m->bus,
		.intx = slot->intx, /* device 0 has its port's lines */
		.msi = board_msi(m->board),
		.doorbell = device_set_doorbell,
		.opaque = m,
		.express = PCI_EXPRESS_ENDPOINT,
	};
	h->status = virtio_pci_create(&config, &d->pci);
	if (h->status < 0) {
		error_set_errno(h->err, -h->status, "can't make a PCI function of %s", d->name);
		device_free(d);
		return;
	}
	slot->device = d;
}

static struct hot_slot *slot_named(struct hotplug *h, const char *name)
{
	for (unsigned i = 0; i < h->count; i++)
		if (h->slot[i].device && strcmp(h->slot[i].device->name, name) == 0)
			return &h->slot[i];
	return NULL;
}

static struct hot_slot *free_slot(struct hotplug *h)
{
	for (unsigned i = 0; i < h->count; i++)
		if (!h->slot[i].device)
			return &h->slot[i];
	return NULL;
}

static int plug(struct hotplug *h, const char *name, const struct machine_config *with,
	struct error *err)
{
	for (unsigned i = 0; i < h->count; i++)
		collect(&h->slot[i]);
	if (!device_only_kind(with) || strlen(name) >= sizeof(h->slot[0].device->name))
		return error_set(err, EINVAL, "one device at a time is plugged in, by a short name");
	if (slot_named(h, name))
		return error_set(err, EEXIST, "a device '%s' is plugged in already", name);
	h->chosen = free_slot(h);
	if (!h->chosen)
		return error_set(err, EBUSY, "all %u ports are taken", h->count);
	h->with = with;
	h->name = name;
	h->err = err;
	h->chosen->gone = false;
	loop_invoke(h->all->machine->config.io, make_device, h);
	if (h->status == 0)
		pci_port_plug(h->chosen->port, virtio_pci_function(h->chosen->device->pci));
	return h->status;
}

static struct hotplug *hotplug_of(struct machine *m)
{
	return m->devices ? m->devices->hotplug : NULL;
}

int machine_device_plug(struct machine *m, const char *name, const struct machine_config *with,
	struct error *err)
{
	struct hotplug *h = hotplug_of(m);

	if (!h)
		return error_set(err, ENODEV, "the machine has no ports to plug devices into");
	AUTO_LOCK(&h->calls);
	return plug(h, name, with, err);
}

/* ---- unplug ---- */

void hotplug_end(struct hotplug *h)
{
	if (!h)
		return;
	AUTO_LOCK(&h->lock);
	h->ended = true;
	pthread_cond_broadcast(&h->changed);
}

/* Errors: -ETIMEDOUT, -ECANCELED (not any more). */
static int wait_until_gone(struct hot_slot *slot, unsigned timeout_ms)
{
	struct hotplug *h = slot->hotplug;
	const struct timespec end = clock_timespec(clock_monotonic_ns() + timeout_ms * NS_PER_MS);
	int code = 0;

	AUTO_LOCK(&h->lock);
	while (!slot->gone && !h->ended && code == 0)
		code = pthread_cond_clockwait(&h->changed, &h->lock, CLOCK_MONOTONIC, &end);
	return slot->gone ? 0 : h->ended ? -ECANCELED : -ETIMEDOUT;
}

int machine_device_unplug(struct machine *m, const char *name, unsigned timeout_ms, struct error *err)
{
	struct hotplug *h = hotplug_of(m);
	struct hot_slot *slot;

	if (!h)
		return error_set(err, ENODEV, "the machine has no ports to plug devices into");
	AUTO_LOCK(&h->calls);
	slot = slot_named(h, name);
	if (!slot)
		return error_set(err, ENOENT, "no device '%s' is plugged in", name);
	if (!is_gone(slot))
		pci_port_press(slot->port);
	switch (wait_until_gone(slot, timeout_ms)) {
	case -ETIMEDOUT: return error_set(err, ETIMEDOUT, "the guest has not let go of '%s'", name);
	case -ECANCELED: return error_set(err, ECANCELED, "the machine has ended");
	}
	collect(slot);
	return 0;
}
