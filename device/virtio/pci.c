/*
 * Virtio over PCI: see pci.h. What the capabilities (4.1.4) point to lies in one BAR:
 *
 *	0000  common configuration	2000  the device's configuration
 *	1000  interrupt status		3000  doorbells, 4 bytes for each queue
 *	4000  MSI-X table and pending bits
 *
 * Left out on purpose: the legacy interface, shared memory regions, notification data, queue reset.
 *
 * Invariant: a doorbell is up for each queue that is enabled, while the BAR is on the bus and there was room for it. A
 * BAR that overlaps something else is not, and takes no writes from what is there.
 */
#include "device/virtio/pci.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "device/virtio/transport.h"

#define BAR	   0u
#define BAR_BYTES  0x8000u
#define AREA_BYTES 0x1000u
#define COMMON_AT  0x0000u
#define ISR_AT	   0x1000u
#define DEVICE_AT  0x2000u
#define NOTIFY_AT  0x3000u
#define MSIX_AT	   0x4000u

#define NOTIFY_STEP 4u
#define NO_VECTOR   0xffffu

#define VENDOR	     0x1af4
#define DEVICE_BASE  0x1040
#define CAP_VENDOR   0x09
#define CAP_BYTES    16u
#define ACCESS_DATA  16u /* of the capability for accesses through configuration space */
#define ACCESS_BYTES 20u
#define COMMON_BYTES 56u

enum cap_type { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_ACCESS = 5 };

struct virtio_pci {
	struct virtio_pci_config config;
	struct virtio_device *virtio;
	struct pci_device *function;
	unsigned vectors;
	unsigned access_cap; /* where it is */

	uint32_t device_half, driver_half;
	uint16_t selected;
	uint16_t config_vector, queue_vector[VIRTIO_QUEUES_MAX];
	uint8_t isr;

	bool belled[VIRTIO_QUEUES_MAX];
	uint64_t bell_base; /* where they are */
};

/* ---- interrupts ---- */

static void interrupt(struct virtio_pci *p, uint16_t vector, uint8_t cause)
{
	if (pci_device_msix_enabled(p->function)) {
		if (vector != NO_VECTOR)
			pci_device_msix(p->function, vector);
		return;
	}
	p->isr |= cause;
	pci_device_intx(p->function, true);
}

static void queue_interrupt(void *opaque, unsigned queue)
{
	struct virtio_pci *p = opaque;

	interrupt(p, p->queue_vector[queue], VIRTIO_ISR_QUEUE);
}

static void config_interrupt(void *opaque)
{
	struct virtio_pci *p = opaque;

	interrupt(p, p->config_vector, VIRTIO_ISR_CONFIG);
}

static uint8_t take_isr(struct virtio_pci *p)
{
	const uint8_t isr = p->isr;

	p->isr = 0;
	pci_device_intx(p->function, false);
	return isr;
}

/* ---- doorbells ---- */

static struct bus_doorbell bell_of(const struct virtio_pci *p, unsigned queue)
{
	return (struct bus_doorbell){.space = BUS_MMIO,
		.addr = p->bell_base + NOTIFY_AT + NOTIFY_STEP * queue,
		.size_bytes = 2,
		.any_value = true,
		.eventfd = virtio_queue_eventfd(p->virtio, queue),
		.ring = virtq_ring,
		.opaque = virtio_queue(p->virtio, queue)};
}

static void set_bell(struct virtio_pci *p, unsigned queue, bool on)
{
	const struct bus_doorbell bell = bell_of(p, queue);

	if (on == p->belled[queue] || !p->config.doorbell)
		return;
	const int status = p->config.doorbell(p->config.opaque, &bell, on);
	p->belled[queue] = on && status == 0;
}

static void all_bells_off(struct virtio_pci *p)
{
	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
		set_bell(p, i, false);
}

/* Has the doorbells follow the BAR and the queues. */
static void place_bells(struct virtio_pci *p)
{
	const uint64_t base = pci_device_bar(p->function, BAR);

	if (base != p->bell_base)
		all_bells_off(p);
	p->bell_base = base;
	if (base == UINT64_MAX)
		return;
	for (unsigned i = 0; i < virtio_queue_count(p->virtio); i++) {
		const struct virtq_setup *setup = virtio_queue_setup(p->virtio, i);

		set_bell(p, i, setup && setup->enabled);
	}
}

static void forget(struct virtio_pci *p)
{
	p->device_half = p->driver_half = p->selected = 0;
	p->config_vector = NO_VECTOR;
	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
		p->queue_vector[i] = NO_VECTOR;
}

static void was_reset(void *opaque)
{
	struct virtio_pci *p = opaque;

	forget(p);
	take_isr(p);
	place_bells(p);
}

/* ---- the common configuration (4.1.4.3) ---- */

enum common {
	DEVICE_FEATURE_SELECT = 0,
	DEVICE_FEATURE = 4,
	DRIVER_FEATURE_SELECT = 8,
	DRIVER_FEATURE = 12,
	CONFIG_VECTOR = 16,
	NUM_QUEUES = 18,
	DEVICE_STATUS = 20,
	CONFIG_GENERATION = 21,
	QUEUE_SELECT = 22,
	QUEUE_SIZE = 24,
	QUEUE_VECTOR = 26,
	QUEUE_ENABLE = 28,
	QUEUE_NOTIFY_OFF = 30,
	QUEUE_DESC = 32,
	QUEUE_DRIVER = 40,
	QUEUE_DEVICE = 48,
};

/* The field that `offset` is in, and its size; addresses are fields of two halves. */
static unsigned common_field(uint64_t offset, unsigned *ret_size)
{
	*ret_size = offset < CONFIG_VECTOR || offset >= QUEUE_DESC ? 4 : 2;
	if (offset == DEVICE_STATUS || offset == CONFIG_GENERATION)
		*ret_size = 1;
	return (unsigned)offset & ~(*ret_size - 1);
}

static uint64_t queue_read(struct virtio_pci *p, unsigned field)
{
	const struct virtq_setup *setup = virtio_queue_setup(p->virtio, p->selected);

	if (!setup)
		return field == QUEUE_VECTOR ? NO_VECTOR : 0;
	switch (field) {
	case QUEUE_SIZE: return setup->size;
	case QUEUE_VECTOR: return p->queue_vector[p->selected];
	case QUEUE_ENABLE: return setup->enabled;
	case QUEUE_NOTIFY_OFF: return p->selected;
	case QUEUE_DESC: return (uint32_t)setup->desc;
	case QUEUE_DESC + 4: return setup->desc >> 32;
	case QUEUE_DRIVER: return (uint32_t)setup->driver;
	case QUEUE_DRIVER + 4: return setup->driver >> 32;
	case QUEUE_DEVICE: return (uint32_t)setup->device;
	case QUEUE_DEVICE + 4: return setup->device >> 32;
	default: return 0;
	}
}

static uint64_t field_read(struct virtio_pci *p, unsigned field)
{
	struct virtio_device *v = p->virtio;

	switch (field) {
	case DEVICE_FEATURE_SELECT: return p->device_half;
	case DEVICE_FEATURE:
		return p->device_half > 1 ? 0 : virtio_features_offered(v) >> 32 * p->device_half;
	case DRIVER_FEATURE_SELECT: return p->driver_half;
	case DRIVER_FEATURE: return virtio_features_driver(v, p->driver_half);
	case CONFIG_VECTOR: return p->config_vector;
	case NUM_QUEUES: return virtio_queue_count(v);
	case DEVICE_STATUS: return virtio_status(v);
	case CONFIG_GENERATION: return virtio_config_generation(v);
	case QUEUE_SELECT: return p->selected;
	default: return queue_read(p, field);
	}
}

static uint64_t common_read(struct virtio_pci *p, uint64_t offset)
{
	unsigned size;

	if (offset >= COMMON_BYTES)
		return 0;
	const unsigned field = common_field(offset, &size);
	return field_read(p, field) >> 8 * (offset - field);
}

static uint16_t vector_of(const struct virtio_pci *p, uint64_t value)
{
	return value < p->vectors ? (uint16_t)value : NO_VECTOR;
}

static void set_half(gpa_t *gpa, unsigned half, uint64_t value)
{
	*gpa &= ~((uint64_t)UINT32_MAX << 32 * half);
	*gpa |= value << 32 * half;
}

static void queue_write(struct virtio_pci *p, unsigned field, uint64_t value)
{
	struct virtq_setup *setup = virtio_queue_setup(p->virtio, p->selected);

	if (setup && field == QUEUE_VECTOR)
		p->queue_vector[p->selected] = vector_of(p, value);
	if (!setup || setup->enabled)
		return;
	switch (field) {
	case QUEUE_SIZE: setup->size = (uint16_t)value; break;
	case QUEUE_DESC:
	case QUEUE_DESC + 4: set_half(&setup->desc, field / 4 % 2, value); break;
	case QUEUE_DRIVER:
	case QUEUE_DRIVER + 4: set_half(&setup->driver, field / 4 % 2, value); break;
	case QUEUE_DEVICE:
	case QUEUE_DEVICE + 4: set_half(&setup->device, field / 4 % 2, value); break;
	case QUEUE_ENABLE:
		if (value == 1)
			virtio_queue_enable(p->virtio, p->selected);
		place_bells(p);
		break;
	default: break;
	}
}

/* Fields are written whole, as drivers must. */
static void common_write(struct virtio_pci *p, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct virtio_device *v = p->virtio;
	unsigned size;

	if (offset >= COMMON_BYTES || common_field(offset, &size) != offset || size != size_bytes)
		return;
	switch (offset) {
	case DEVICE_FEATURE_SELECT: p->device_half = (uint32_t)value; break;
	case DRIVER_FEATURE_SELECT: p->driver_half = (uint32_t)value; break;
	case DRIVER_FEATURE: virtio_set_features_driver(v, p->driver_half, (uint32_t)value); break;
	case CONFIG_VECTOR: p->config_vector = vector_of(p, value); break;
	case DEVICE_STATUS: virtio_set_status(v, (uint8_t)value); break;
	case QUEUE_SELECT: p->selected = (uint16_t)value; break;
	default: queue_write(p, (unsigned)offset, value); break;
	}
}

/* ---- the BAR ---- */

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct virtio_pci *p = opaque;

	switch (offset & ~(uint64_t)(AREA_BYTES - 1)) {
	case COMMON_AT: return common_read(p, offset);
	case ISR_AT: return offset == ISR_AT ? take_isr(p) : 0;
	case DEVICE_AT: return virtio_config_read(p->virtio, offset - DEVICE_AT, size_bytes);
	default: return 0;
	}
}

static void bar_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct virtio_pci *p = opaque;

	switch (offset & ~(uint64_t)(AREA_BYTES - 1)) {
	case COMMON_AT: common_write(p, offset, size_bytes, value); break;
	case DEVICE_AT:
		virtio_config_write(p->virtio, offset - DEVICE_AT, size_bytes, value);
		break;
	case NOTIFY_AT: virtio_kick(p->virtio, (unsigned)(offset - NOTIFY_AT) / NOTIFY_STEP); break;
	default: break;
	}
}

/* ---- the capability for accesses through configuration space (4.1.4.9) ---- */

/* What the driver asked for, if it may. */
static bool asked_access(struct virtio_pci *p, unsigned offset, unsigned size_bytes,
	uint32_t *ret_at, uint32_t *ret_bytes)
{
	const uint8_t *cap = pci_device_config_space(p->function) + p->access_cap;
	const uint32_t at = load_le32(cap + 8), bytes = load_le32(cap + 12);
	const unsigned data = p->access_cap + ACCESS_DATA;

	if (offset + size_bytes <= data || offset >= data + 4)
		return false;
	if (cap[4] != BAR || (bytes != 1 && bytes != 2 && bytes != 4) || at % bytes ||
		at > BAR_BYTES - bytes)
		return false;
	*ret_at = at;
	*ret_bytes = bytes;
	return true;
}

static void config_reading(void *opaque, unsigned offset, unsigned size_bytes)
{
	struct virtio_pci *p = opaque;
	uint32_t at, bytes;

	if (asked_access(p, offset, size_bytes, &at, &bytes))
		store_le32(pci_device_config_space(p->function) + p->access_cap + ACCESS_DATA,
			(uint32_t)pci_device_bar_read(p->function, BAR, at, bytes));
}

static void config_written(void *opaque, unsigned offset, unsigned size_bytes)
{
	struct virtio_pci *p = opaque;
	uint32_t at, bytes;

	virtio_set_master(p->virtio, pci_device_is_master(p->function));
	place_bells(p);
	if (!asked_access(p, offset, size_bytes, &at, &bytes))
		return;
	const uint32_t value =
		load_le32(pci_device_config_space(p->function) + p->access_cap + ACCESS_DATA);
	pci_device_bar_write(
		p->function, BAR, at, bytes, bytes == 4 ? value : value & ((1u << 8 * bytes) - 1));
}

/* ---- life ---- */

static int add_cap(struct virtio_pci *p, enum cap_type type, uint32_t at, uint32_t bytes)
{
	uint8_t cap[ACCESS_BYTES] = {0}, writable[ACCESS_BYTES] = {0};
	const unsigned size = type == CAP_NOTIFY || type == CAP_ACCESS ? ACCESS_BYTES : CAP_BYTES;

	cap[2] = (uint8_t)size;
	cap[3] = (uint8_t)type;
	cap[4] = BAR;
	store_le32(cap + 8, at);
	store_le32(cap + 12, bytes);
	if (type == CAP_NOTIFY)
		store_le32(cap + 16, NOTIFY_STEP);
	if (type == CAP_ACCESS) {
		writable[4] = 0xff;
		memset(writable + 8, 0xff, ACCESS_BYTES - 8);
	}
	return pci_device_add_capability(p->function, CAP_VENDOR, cap, writable, size);
}

static int add_caps(struct virtio_pci *p)
{
	const uint32_t device_bytes = virtio_ops_of(p->virtio)->config_bytes;
	int at = add_cap(p, CAP_COMMON, COMMON_AT, COMMON_BYTES);

	if (at >= 0)
		at = add_cap(p, CAP_NOTIFY, NOTIFY_AT,
			NOTIFY_STEP * MAX(virtio_queue_count(p->virtio), 1u));
	if (at >= 0)
		at = add_cap(p, CAP_ISR, ISR_AT, 1);
	if (at >= 0 && device_bytes)
		at = add_cap(p, CAP_DEVICE, DEVICE_AT, ALIGN_UP(device_bytes, 4));
	if (at >= 0)
		at = add_cap(p, CAP_ACCESS, 0, 0);
	if (at >= 0)
		p->access_cap = (unsigned)at;
	return at < 0 ? at : 0;
}

/* What the function is to systems that have no driver for it (PCI Code and ID Assignment). */
static uint32_t class_of(uint32_t id)
{
	switch (id) {
	case VIRTIO_ID_NET: return 0x020000;
	case VIRTIO_ID_BLOCK: return 0x010000;
	case VIRTIO_ID_CONSOLE: return 0x078000;
	case VIRTIO_ID_VSOCK: return 0x078000;
	case VIRTIO_ID_FS: return 0x018000;
	case VIRTIO_ID_PMEM: return 0x058000;
	default: return 0x00ff00;
	}
}

static int create_function(struct virtio_pci *p)
{
	static const struct bus_ops bar_ops = {
		.read = bar_read, .write = bar_write, .access_max_bytes = 4};
	const uint16_t id = (uint16_t)(DEVICE_BASE + virtio_ops_of(p->virtio)->id);
	const struct pci_device_config config = {
		.name = virtio_name(p->virtio),
		.vendor = VENDOR,
		.device = id,
		.subsystem_vendor = VENDOR,
		.subsystem = id,
		.class_code = class_of(virtio_ops_of(p->virtio)->id),
		.revision = 1,
		.bus = p->config.bus,
		.lock = virtio_lock(p->virtio),
		.intx = p->config.intx,
		.msi = p->config.msi,
		.express = p->config.express,
		.config_written = config_written,
		.config_reading = config_reading,
		.opaque = p,
	};
	int status = pci_device_create(&config, &p->function);

	if (status == 0)
		status = pci_device_add_bar(
			p->function, BAR, PCI_BAR_MEM64, false, BAR_BYTES, &bar_ops, p);
	if (status == 0)
		status = pci_device_add_msix(p->function, BAR, MSIX_AT, p->vectors);
	return status == 0 ? add_caps(p) : status;
}

int virtio_pci_create(const struct virtio_pci_config *config, struct virtio_pci **ret_pci)
{
	static const struct virtio_transport_ops ops = {.queue_interrupt = queue_interrupt,
		.config_interrupt = config_interrupt,
		.was_reset = was_reset};

	if (virtio_ops_of(config->virtio)->config_bytes > AREA_BYTES)
		return -EINVAL;
	struct virtio_pci *p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->config = *config;
	p->virtio = config->virtio;
	p->vectors = virtio_queue_count(p->virtio) + 1;
	p->bell_base = UINT64_MAX;
	forget(p);
	int status = create_function(p);
	if (status < 0) {
		virtio_pci_free(p);
		return status;
	}
	AUTO_LOCK(virtio_lock(p->virtio));
	virtio_attach(p->virtio, &ops, p);
	virtio_set_master(p->virtio, false);
	*ret_pci = p;
	return 0;
}

struct pci_device *virtio_pci_function(struct virtio_pci *p)
{
	return p->function;
}

void virtio_pci_reset(struct virtio_pci *p)
{
	pci_device_reset(p->function);
	virtio_set_master(p->virtio, false);
	virtio_set_status(p->virtio, 0);
	place_bells(p);
}

void virtio_pci_free(struct virtio_pci *p)
{
	if (!p)
		return;
	all_bells_off(p);
	pci_device_free(p->function);
	free(p);
}
