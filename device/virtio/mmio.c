/*
 * Virtio over MMIO: see mmio.h. Registers are 32 bits wide; the device's configuration begins at 0x100.
 *
 * A reset that takes its time keeps the vCPU that asked for it waiting: drivers look no second time here.
 *
 * Left out on purpose: version 1, shared memory regions (they read as absent), queue reset.
 */
#include "device/virtio/mmio.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "device/virtio/transport.h"

#define MAGIC	  0x74726976u /* "virt" */
#define VERSION	  2u
#define VENDOR	  0x45474f4cu /* ours: "LOGE" */
#define CONFIG_AT 0x100u

enum reg {
	REG_MAGIC = 0x00,
	REG_VERSION = 0x04,
	REG_DEVICE_ID = 0x08,
	REG_VENDOR_ID = 0x0c,
	REG_DEVICE_FEATURES = 0x10,
	REG_DEVICE_FEATURES_SEL = 0x14,
	REG_DRIVER_FEATURES = 0x20,
	REG_DRIVER_FEATURES_SEL = 0x24,
	REG_QUEUE_SEL = 0x30,
	REG_QUEUE_NUM_MAX = 0x34,
	REG_QUEUE_NUM = 0x38,
	REG_QUEUE_READY = 0x44,
	REG_QUEUE_NOTIFY = 0x50,
	REG_INTERRUPT_STATUS = 0x60,
	REG_INTERRUPT_ACK = 0x64,
	REG_STATUS = 0x70,
	REG_QUEUE_DESC = 0x80, /* and the upper half behind each */
	REG_QUEUE_DRIVER = 0x90,
	REG_QUEUE_DEVICE = 0xa0,
	REG_SHM_FIRST = 0xb0, /* length and base */
	REG_SHM_LAST = 0xbc,
	REG_CONFIG_GENERATION = 0xfc,
};

struct virtio_mmio {
	struct virtio_mmio_config config;
	struct virtio_device *virtio;
	uint32_t device_half, driver_half, selected;
	uint8_t isr;
	bool belled[VIRTIO_QUEUES_MAX];
};

/* ---- interrupts ---- */

static void set_isr(struct virtio_mmio *m, uint8_t isr)
{
	if (!!isr != !!m->isr)
		irq_line_set(&m->config.irq, isr);
	m->isr = isr;
}

static void queue_interrupt(void *opaque, unsigned queue)
{
	struct virtio_mmio *m = opaque;

	set_isr(m, m->isr | VIRTIO_ISR_QUEUE);
}

static void config_interrupt(void *opaque)
{
	struct virtio_mmio *m = opaque;

	set_isr(m, m->isr | VIRTIO_ISR_CONFIG);
}

/* ---- doorbells ---- */

static void set_bell(struct virtio_mmio *m, unsigned queue, bool on)
{
	const struct bus_doorbell bell = {.space = BUS_MMIO,
		.addr = m->config.base + REG_QUEUE_NOTIFY,
		.size_bytes = 4,
		.value = queue,
		.eventfd = virtio_queue_eventfd(m->virtio, queue),
		.ring = virtq_ring,
		.opaque = virtio_queue(m->virtio, queue)};

	if (on == m->belled[queue] || !m->config.doorbell)
		return;
	const int status = m->config.doorbell(m->config.opaque, &bell, on);
	m->belled[queue] = on && status == 0;
}

static void place_bells(struct virtio_mmio *m)
{
	for (unsigned i = 0; i < virtio_queue_count(m->virtio); i++) {
		const struct virtq_setup *setup = virtio_queue_setup(m->virtio, i);

		set_bell(m, i, setup && setup->enabled);
	}
}

static void was_reset(void *opaque)
{
	struct virtio_mmio *m = opaque;

	m->device_half = m->driver_half = m->selected = 0;
	set_isr(m, 0);
	place_bells(m);
}

/* ---- registers ---- */

static uint32_t reg_read(struct virtio_mmio *m, uint64_t reg)
{
	struct virtio_device *v = m->virtio;
	const struct virtq_setup *setup = virtio_queue_setup(v, m->selected);

	switch (reg) {
	case REG_MAGIC: return MAGIC;
	case REG_VERSION: return VERSION;
	case REG_DEVICE_ID: return virtio_ops_of(v)->id;
	case REG_VENDOR_ID: return VENDOR;
	case REG_DEVICE_FEATURES:
		return m->device_half > 1
			       ? 0
			       : (uint32_t)(virtio_features_offered(v) >> 32 * m->device_half);
	case REG_QUEUE_NUM_MAX: return setup ? setup->size_max : 0;
	case REG_QUEUE_READY: return setup ? setup->enabled : 0;
	case REG_INTERRUPT_STATUS: return m->isr;
	case REG_STATUS: return virtio_status(v);
	case REG_CONFIG_GENERATION: return virtio_config_generation(v);
	default: return reg >= REG_SHM_FIRST && reg <= REG_SHM_LAST ? UINT32_MAX : 0;
	}
}

static void set_half(gpa_t *gpa, bool high, uint64_t value)
{
	*gpa = high ? (uint32_t)*gpa | value << 32 : (*gpa & ~(uint64_t)UINT32_MAX) | value;
}

static void set_ready(struct virtio_mmio *m, uint32_t value)
{
	if (value == 1)
		virtio_queue_enable(m->virtio, m->selected);
	else if (value == 0)
		virtio_queue_disable(m->virtio, m->selected);
	place_bells(m);
}

static void queue_write(struct virtio_mmio *m, uint64_t reg, uint32_t value)
{
	struct virtq_setup *setup = virtio_queue_setup(m->virtio, m->selected);

	if (!setup)
		return;
	if (reg == REG_QUEUE_READY)
		set_ready(m, value);
	if (setup->enabled)
		return;
	switch (reg) {
	case REG_QUEUE_NUM: setup->size = (uint16_t)MIN(value, (uint32_t)UINT16_MAX); break;
	case REG_QUEUE_DESC:
	case REG_QUEUE_DESC + 4: set_half(&setup->desc, reg & 4, value); break;
	case REG_QUEUE_DRIVER:
	case REG_QUEUE_DRIVER + 4: set_half(&setup->driver, reg & 4, value); break;
	case REG_QUEUE_DEVICE:
	case REG_QUEUE_DEVICE + 4: set_half(&setup->device, reg & 4, value); break;
	default: break;
	}
}

static void reg_write(struct virtio_mmio *m, uint64_t reg, uint32_t value)
{
	struct virtio_device *v = m->virtio;

	switch (reg) {
	case REG_DEVICE_FEATURES_SEL: m->device_half = value; break;
	case REG_DRIVER_FEATURES_SEL: m->driver_half = value; break;
	case REG_DRIVER_FEATURES: virtio_set_features_driver(v, m->driver_half, value); break;
	case REG_QUEUE_SEL: m->selected = value; break;
	case REG_QUEUE_NOTIFY: virtio_kick(v, value); break;
	case REG_INTERRUPT_ACK: set_isr(m, m->isr & (uint8_t)~value); break;
	case REG_STATUS:
		virtio_set_status(v, (uint8_t)value);
		virtio_wait_for_reset(v);
		break;
	default: queue_write(m, reg, value); break;
	}
}

static uint64_t page_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct virtio_mmio *m = opaque;

	if (offset >= CONFIG_AT)
		return virtio_config_read(m->virtio, offset - CONFIG_AT, size_bytes);
	return size_bytes == 4 && offset % 4 == 0 ? reg_read(m, offset) : 0;
}

static void page_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct virtio_mmio *m = opaque;

	if (offset >= CONFIG_AT)
		virtio_config_write(m->virtio, offset - CONFIG_AT, size_bytes, value);
	else if (size_bytes == 4 && offset % 4 == 0)
		reg_write(m, offset, (uint32_t)value);
}

/* ---- life ---- */

int virtio_mmio_create(const struct virtio_mmio_config *config, struct virtio_mmio **ret_mmio)
{
	static const struct virtio_transport_ops ops = {.queue_interrupt = queue_interrupt,
		.config_interrupt = config_interrupt,
		.was_reset = was_reset};
	static const struct bus_ops page_ops = {
		.read = page_read, .write = page_write, .access_max_bytes = 4};

	if (virtio_ops_of(config->virtio)->config_bytes > VIRTIO_MMIO_BYTES - CONFIG_AT)
		return -EINVAL;
	struct virtio_mmio *m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->config = *config;
	m->virtio = config->virtio;
	int status = bus_add(config->bus, BUS_MMIO, config->base, VIRTIO_MMIO_BYTES,
		virtio_name(m->virtio), &page_ops, m, virtio_lock(m->virtio));
	if (status < 0) {
		free(m);
		return status;
	}
	AUTO_LOCK(virtio_lock(m->virtio));
	virtio_attach(m->virtio, &ops, m);
	*ret_mmio = m;
	return 0;
}

void virtio_mmio_free(struct virtio_mmio *m)
{
	if (!m)
		return;
	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
		set_bell(m, i, false);
	set_isr(m, 0);
	bus_remove(m->config.bus, BUS_MMIO, m->config.base);
	free(m);
}
