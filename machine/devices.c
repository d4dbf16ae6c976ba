/*
 * See devices.h. Each device has a lock of its own, lives on the machine's I/O loop and has a transport: a PCI function
 * on bus 0, in the order of the table from 00:01.0 on, or a page of memory from BOOT_VIRTIO_MMIO_GPA on.
 */
#include "machine/devices.h"
#include "base/loop.h"
#include "boot/acpi.h"
#include "boot/layout.h"
#include "device/bus.h"
#include "device/disk/ahci.h"
#include "device/net_e1000.h"
#include "device/virtio/mmio.h"
#include "device/virtio/pci.h"
#include "device/virtio/transport.h"
#include "machine/devices_private.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AHCI_SLOT	31 /* where Q35 has it */
#define AHCI_FUNCTION	2
#define LARGE_BAR_BYTES MIB(16) /* from here on BARs go above 4 GiB, if they can */

/* In the order of their slots. */
static const struct device_kind *const kinds[] = {
	&net_kind,
	&rng_kind,
	&fs_kind,
	&disk_kind,
	&console_kind,
	&balloon_kind,
	&vsock_kind,
	&pmem_kind,
};

/* ---- where they are ---- */

static gpa_t mmio_base(unsigned place)
{
	return BOOT_VIRTIO_MMIO_GPA + (gpa_t)VIRTIO_MMIO_BYTES * place;
}

int device_set_doorbell(void *opaque, const struct bus_doorbell *bell, bool on)
{
	struct machine *m = opaque;

	return m->config.engine->ioeventfd(m->vm, bell, on);
}

/* Naturally aligned, from the bottom of a window; 0: it is full. */
static uint64_t take_address(uint64_t *next, uint64_t bytes, uint64_t end)
{
	const uint64_t at = ALIGN_UP(*next, bytes);

	if (at > end || bytes > end - at)
		return 0;
	*next = at + bytes;
	return at;
}

/* As firmware would. What finds no place is left to the guest. */
void device_assign_bars(struct devices *all, struct pci_device *function)
{
	uint64_t high_base, high_bytes;

	board_pci_high_window(all->machine->board, &high_base, &high_bytes);
	for (unsigned i = 0; i < PCI_BARS; i++) {
		enum pci_bar_kind kind;
		bool prefetchable;
		const uint64_t bytes = pci_device_bar_bytes(function, i, &kind, &prefetchable);
		const bool high = kind == PCI_BAR_MEM64 && bytes >= LARGE_BAR_BYTES;

		if (kind != PCI_BAR_MEM32 && kind != PCI_BAR_MEM64)
			continue;
		const uint64_t at =
			high ? take_address(&all->next_high, bytes, high_base + high_bytes) :
			       take_address(&all->next_low, bytes,
				       BOOT_PCI_WINDOW_GPA + BOOT_PCI_WINDOW_BYTES);
		if (at)
			pci_device_assign(function, i, at);
	}
}

static int plug_into_pci(struct machine_device *d, unsigned place, struct error *err)
{
	struct machine *m = d->all->machine;
	const unsigned slot = place + 1;
	const struct virtio_pci_config config = {
		.virtio = d->virtio,
		.bus = m->bus,
		.intx = board_shared_line(m->board, slot, 0, &d->gsi),
		.msi = board_msi(m->board),
		.doorbell = device_set_doorbell,
		.opaque = m,
	};
	int status = virtio_pci_create(&config, &d->pci);
	if (status == 0)
		status = pci_device_plug(virtio_pci_function(d->pci), board_pci(m->board),
			PCI_DEVFN(slot, 0));
	if (status < 0)
		return error_set_errno(err, -status, "can't put %s on the PCI bus", d->name);
	if (!m->config.boot.firmware.path)
		device_assign_bars(d->all, virtio_pci_function(d->pci));
	return 0;
}

/* ---- MMIO ---- */

static int plug_into_memory(struct machine_device *d, unsigned place, struct error *err)
{
	struct machine *m = d->all->machine;
	const struct virtio_mmio_config config = {
		.virtio = d->virtio,
		.bus = m->bus,
		.base = mmio_base(place),
		.irq = board_shared_line(m->board, place, 0, &d->gsi),
		.doorbell = device_set_doorbell,
		.opaque = m,
	};
	int status = virtio_mmio_create(&config, &d->mmio);

	return status < 0 ? error_set_errno(err, -status, "can't give %s a place in memory", d->name) : 0;
}

void devices_describe(const struct devices *all, struct acpi_config *acpi)
{
	if (!all || !all->machine->config.virtio_mmio)
		return;
	acpi->virtio_mmio_count = all->count;
	for (unsigned i = 0; i < all->count; i++)
		acpi->virtio_mmio[i] = (struct acpi_virtio_mmio){ .base = (uint32_t)mmio_base(i),
			.size_bytes = VIRTIO_MMIO_BYTES, .gsi = all->device[i]->gsi };
}

/* ---- life ---- */

void device_free(struct machine_device *d)
{
	virtio_pci_free(d->pci);
	virtio_mmio_free(d->mmio);
	if (d->device)
		d->kind->free(d->device);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

int device_create(struct devices *all, const struct device_kind *kind,
	const struct machine_config *config, unsigned index, const char *name,
	struct machine_device **ret_device, struct error *err)
{
	struct machine *m = all->machine;
	struct machine_device *d = calloc(1, sizeof(*d));

	if (!d)
		return error_set(err, ENOMEM, "no memory for devices");
	d->all = all;
	d->kind = kind;
	pthread_mutex_init(&d->lock, NULL);
	snprintf(d->name, sizeof(d->name), "%s", name);
	const struct virtio_config wiring = { .memory = m->memory, .lock = &d->lock,
		.loop = m->config.io, .name = d->name,
		.features_off = m->config.virtio_features_off };
	int status = kind->create(config, index, &wiring, &d->device, &d->virtio, err);
	if (status < 0) {
		device_free(d);
		return status;
	}
	*ret_device = d;
	return 0;
}

const struct device_kind *device_only_kind(const struct machine_config *config)
{
	const struct device_kind *only = NULL;
	unsigned count = 0;

	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		if (kinds[k]->count(config))
			only = kinds[k];
		count += kinds[k]->count(config);
	}
	return count == 1 && only->pluggable ? only : NULL;
}

/* One that is there from the start. */
static int add_device(struct devices *all, const struct device_kind *kind, unsigned index)
{
	const struct machine_config *config = &all->machine->config;
	struct machine_device *d;
	char name[sizeof(d->name)];

	if (all->count + config->hotplug_ports >= DEVICES_MAX)
		return error_set(all->err, ENOSPC, "a machine has at most %d devices and ports", DEVICES_MAX);
	snprintf(name, sizeof(name), "%s%u", kind->name, index);
	int status = device_create(all, kind, config, index, name, &d, all->err);
	if (status < 0)
		return status;
	const unsigned place = all->count++;
	all->device[place] = d;
	return config->virtio_mmio ? plug_into_memory(d, place, all->err) :
				     plug_into_pci(d, place, all->err);
}

static int create_e1000(struct devices *all, const struct machine_nic *nic)
{
	struct machine *m = all->machine;
	const unsigned slot = all->count + all->e1000_count + 1;
	struct e1000_config config = {
		.memory = m->memory, .loop = m->config.io, .bus = m->bus, .net = nic->net };
	unsigned gsi;

	if (!board_pci(m->board))
		return error_set(all->err, ENOTSUP, "an e1000 needs PCI, which --virtio mmio leaves out");
	if (slot + m->config.hotplug_ports > DEVICES_MAX || all->e1000_count == E1000_MAX)
		return error_set(all->err, ENOSPC, "no slot for one more network card");
	memcpy(config.mac, nic->mac, sizeof(config.mac));
	config.intx = board_shared_line(m->board, slot, 0, &gsi);
	int status = e1000_create(
		&config, board_pci(m->board), PCI_DEVFN(slot, 0), &all->e1000[all->e1000_count]);
	if (status < 0)
		return error_set_errno(all->err, -status, "can't make an e1000 network card");
	if (!m->config.boot.firmware.path)
		e1000_assign(all->e1000[all->e1000_count],
			take_address(&all->next_low, KIB(128), BOOT_PCI_WINDOW_GPA + BOOT_PCI_WINDOW_BYTES));
	all->e1000_count++;
	return 0;
}

static void create_e1000s(struct devices *all)
{
	const struct machine_config *config = &all->machine->config;

	for (unsigned i = 0; all->status == 0 && i < config->nic_count; i++)
		if (config->nics[i].e1000)
			all->status = create_e1000(all, &config->nics[i]);
}

/* The SATA controller, with what hangs on it. */
static int create_ahci(struct devices *all)
{
	struct machine *m = all->machine;
	struct ahci_config config = { .memory = m->memory, .loop = m->config.io, .bus = m->bus };
	unsigned gsi;

	for (unsigned i = 0; i < m->config.disk_count; i++) {
		const struct machine_disk *disk = &m->config.disks[i];

		if (disk->kind == MACHINE_DISK_VIRTIO)
			continue;
		if (config.count == AHCI_PORTS_MAX)
			return error_set(all->err, ENOSPC, "at most %d SATA disks and CD-ROMs", AHCI_PORTS_MAX);
		config.drive[config.count++] = (struct ahci_drive){ .block = disk->block,
			.cdrom = disk->kind == MACHINE_DISK_CDROM, .serial = disk->serial };
	}
	if (!config.count)
		return 0;
	if (!board_pci(m->board))
		return error_set(all->err, ENOTSUP, "SATA disks and CD-ROMs need PCI, which --virtio mmio leaves out");
	config.intx = board_shared_line(m->board, AHCI_SLOT, 0, &gsi);
	/* Behind the LPC bridge, where there is one: without function 0 nobody looks for others. */
	const unsigned function = m->config.boot.firmware.path ? AHCI_FUNCTION : 0;
	int status = ahci_create(&config, board_pci(m->board), PCI_DEVFN(AHCI_SLOT, function), &all->ahci);
	if (status == -EINVAL)
		return error_set(all->err, EINVAL, "SATA disks and CD-ROMs have sectors of 512 bytes on the host");
	if (status < 0)
		return error_set_errno(all->err, -status, "can't make the SATA controller");
	if (!m->config.boot.firmware.path)
		ahci_assign(all->ahci, take_address(&all->next_low, KIB(4),
						BOOT_PCI_WINDOW_GPA + BOOT_PCI_WINDOW_BYTES));
	return 0;
}

static void create_kind(struct devices *all, const struct device_kind *kind)
{
	const unsigned count = kind->count(&all->machine->config);

	for (unsigned i = 0; all->status == 0 && i < count; i++)
		all->status = add_device(all, kind, i);
}

static void create_all(void *opaque)
{
	struct devices *all = opaque;

	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++)
		create_kind(all, kinds[k]);
	create_e1000s(all);
	if (all->status == 0)
		all->status = create_ahci(all);
	if (all->status == 0 && all->machine->config.hotplug_ports)
		all->status = hotplug_create(&all->hotplug, all, all->err);
}

void *devices_find(const struct devices *all, const char *kind)
{
	for (unsigned i = 0; all && i < all->count; i++)
		if (strcmp(all->device[i]->kind->name, kind) == 0)
			return all->device[i]->device;
	return NULL;
}

static void free_all(void *opaque)
{
	struct devices *all = opaque;

	for (unsigned i = 0; i < all->e1000_count; i++)
		e1000_free(all->e1000[i]);
	for (unsigned i = 0; i < all->count; i++)
		device_free(all->device[i]);
	hotplug_free(all->hotplug);
}

int devices_create(struct devices **ret_devices, struct machine *m, struct error *err)
{
	uint64_t high_bytes;

	if (!m->config.io)
		return 0;
	struct devices *all = calloc(1, sizeof(*all));
	if (!all)
		return error_set(err, ENOMEM, "no memory for devices");
	all->machine = m;
	all->err = err;
	all->next_low = BOOT_PCI_WINDOW_GPA;
	board_pci_high_window(m->board, &all->next_high, &high_bytes);
	loop_invoke(m->config.io, create_all, all);
	if (all->status < 0) {
		const int status = all->status;

		devices_free(all);
		return status;
	}
	*ret_devices = all;
	return 0;
}

void devices_ended(struct devices *all)
{
	if (all)
		hotplug_end(all->hotplug);
}

void devices_free(struct devices *all)
{
	if (!all)
		return;
	for (unsigned i = 0; i < all->count; i++)
		if (all->device[i]->virtio)
			virtio_quiesce(all->device[i]->virtio);
	ahci_free(all->ahci);
	hotplug_quiesce(all->hotplug);
	loop_invoke(all->machine->config.io, free_all, all);
	free(all);
}
