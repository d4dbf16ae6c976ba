/*
 * The root port: see port.h. Its function is a struct pci_device whose bytes this file arranges.
 *
 * Invariants: the bits of slot status that are cleared by writing 1 are writable in the mask; `status` has what they
 * were before the guest's write. The interrupt is asserted while an event is shown that is enabled.
 */
#include "device/pci/port.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"

#define BAR_BYTES 4096u /* for MSI-X */

/* The type 1 header */
#define REG_HEADER_TYPE	   0x0eu
#define REG_SECONDARY	   0x19u
#define REG_BUS_NUMBERS	   0x18u
#define REG_MEMORY_WINDOW  0x20u
#define REG_PREFETCH	   0x24u
#define REG_PREFETCH_UPPER 0x28u
#define REG_INTERRUPT_PIN  0x3du
#define REG_BRIDGE_CONTROL 0x3eu
#define BRIDGE_BUS_RESET   0x0040u

/* Offsets into the capability */
#define LINK_CAP     0x0cu
#define LINK_STATUS  0x12u
#define SLOT_CAP     0x14u
#define SLOT_CONTROL 0x18u
#define SLOT_STATUS  0x1au
#define ROOT_CONTROL 0x1cu

#define LINK_CAP_REPORTS_ACTIVE 0x00100000u
#define LINK_ACTIVE		0x2000u

#define SLOT_BUTTON		  0x00000001u
#define SLOT_POWER_CONTROLLER	  0x00000002u
#define SLOT_POWER_INDICATOR	  0x00000010u
#define SLOT_HOT_PLUG		  0x00000040u
#define SLOT_NUMBER_SHIFT	  19
#define SLOT_NO_COMMAND_COMPLETED 0x00040000u

#define EVENT_BUTTON   0x0001u
#define EVENT_PRESENCE 0x0008u
#define EVENT_LINK     0x0100u
#define EVENTS	       (EVENT_BUTTON | EVENT_PRESENCE | EVENT_LINK)
#define PRESENT	       0x0040u

#define CONTROL_EVENTS	  0x0009u /* as the events' bits */
#define CONTROL_INTERRUPT 0x0020u
#define CONTROL_POWER_OFF 0x0400u
#define CONTROL_LINK	  0x1000u
#define CONTROL_WRITABLE  0x17ffu

struct pci_port {
	struct pci_port_config config;
	pthread_mutex_t lock;
	struct pci_device *function;
	uint8_t *space, *cap; /* the function's bytes, and those of its capability */
	struct pci_link link;
	uint16_t status, control; /* of the slot */
	uint16_t bridge_control;
	bool asserted;
};

/* ---- events ---- */

static void show_status(struct pci_port *p)
{
	store_le16(p->cap + SLOT_STATUS, p->status);
	store_le16(
		p->cap + LINK_STATUS, (uint16_t)((load_le16(p->cap + LINK_STATUS) & ~LINK_ACTIVE) |
						 (p->status & PRESENT ? LINK_ACTIVE : 0)));
}

/* An edge as a message, a level on the line. */
static void update_interrupt(struct pci_port *p)
{
	const uint16_t enabled =
		(p->control & CONTROL_EVENTS) | (p->control & CONTROL_LINK ? EVENT_LINK : 0);
	const bool assert = (p->control & CONTROL_INTERRUPT) && (p->status & enabled & EVENTS);

	if (assert != p->asserted) {
		p->asserted = assert;
		pci_device_intx(p->function, assert);
		if (assert)
			pci_device_msix(p->function, 0);
	}
}

static void raise(struct pci_port *p, uint16_t events)
{
	p->status |= events;
	show_status(p);
	update_interrupt(p);
}

/* ---- the guest's writes ---- */

static bool was_written(unsigned reg, unsigned offset, unsigned size_bytes)
{
	return offset < reg + 2 && offset + size_bytes > reg;
}

static void slot_status_written(
	struct pci_port *p, unsigned reg, unsigned offset, unsigned size_bytes)
{
	uint16_t ones = 0;

	/* Only the bytes that were written: others hold what was shown. */
	for (unsigned i = 0; i < 2; i++)
		if (reg + i >= offset && reg + i < offset + size_bytes)
			ones |= (uint16_t)(p->cap[SLOT_STATUS + i] << 8 * i);
	p->status &= (uint16_t) ~(ones & EVENTS);
	show_status(p);
}

static void slot_control_written(struct pci_port *p)
{
	const uint16_t before = p->control;

	p->control = load_le16(p->cap + SLOT_CONTROL);
	if (!(before & CONTROL_POWER_OFF) && (p->control & CONTROL_POWER_OFF) &&
		(p->status & PRESENT))
		p->config.eject(p->config.opaque);
}

static void bridge_control_written(struct pci_port *p)
{
	const uint16_t before = p->bridge_control;

	p->bridge_control = load_le16(p->space + REG_BRIDGE_CONTROL);
	if (!(before & BRIDGE_BUS_RESET) && (p->bridge_control & BRIDGE_BUS_RESET) &&
		(p->status & PRESENT))
		p->config.reset(p->config.opaque);
}

static void config_written(void *opaque, unsigned offset, unsigned size_bytes)
{
	struct pci_port *p = opaque;
	const unsigned cap = pci_device_express_at(p->function);

	p->link.number = p->space[REG_SECONDARY];
	if (was_written(cap + SLOT_STATUS, offset, size_bytes))
		slot_status_written(p, cap + SLOT_STATUS, offset, size_bytes);
	if (was_written(cap + SLOT_CONTROL, offset, size_bytes))
		slot_control_written(p);
	if (was_written(REG_BRIDGE_CONTROL, offset, size_bytes))
		bridge_control_written(p);
	update_interrupt(p);
}

/* ---- for the machine ---- */

bool pci_port_is_empty(struct pci_port *p)
{
	AUTO_LOCK(&p->lock);
	return !(p->status & PRESENT);
}

void pci_port_plug(struct pci_port *p, struct pci_device *device)
{
	pthread_mutex_t *host = pci_host_lock(p->config.host);

	pthread_mutex_lock(host);
	pthread_mutex_lock(&p->lock);
	pci_device_plug_link(device, &p->link);
	p->status |= PRESENT;
	raise(p, EVENT_PRESENCE | EVENT_LINK);
	pthread_mutex_unlock(&p->lock);
	pthread_mutex_unlock(host);
}

void pci_port_press(struct pci_port *p)
{
	AUTO_LOCK(&p->lock);
	if (p->status & PRESENT)
		raise(p, EVENT_BUTTON);
}

void pci_port_pull(struct pci_port *p, struct pci_device *device)
{
	pci_device_unplug_link(device);
	p->status &= (uint16_t)~PRESENT;
	raise(p, EVENT_PRESENCE | EVENT_LINK);
}

/* ---- life ---- */

static void fill_header(struct pci_port *p)
{
	uint8_t *mask = pci_device_config_mask(p->function);

	p->space[REG_HEADER_TYPE] = 1;
	/* With one line for both, Linux's hot-plug thread waits for itself when it removes a device. */
	p->space[REG_INTERRUPT_PIN] = 2;
	memset(mask + REG_BUS_NUMBERS, 0xff, 3);
	/* Windows end before they begin; that of I/O ports is not there. */
	store_le16(p->space + REG_MEMORY_WINDOW, 0xfff0);
	store_le16(mask + REG_MEMORY_WINDOW, 0xfff0);
	store_le16(mask + REG_MEMORY_WINDOW + 2, 0xfff0);
	store_le16(p->space + REG_PREFETCH, 0xfff1); /* of 64 bits */
	store_le16(p->space + REG_PREFETCH + 2, 1);
	store_le16(mask + REG_PREFETCH, 0xfff0);
	store_le16(mask + REG_PREFETCH + 2, 0xfff0);
	memset(mask + REG_PREFETCH_UPPER, 0xff, 8);
	mask[REG_BRIDGE_CONTROL] = 0x7f;
	mask[4] |= 3; /* decoding, of whatever is behind it */
}

static void fill_capability(struct pci_port *p)
{
	const unsigned at = pci_device_express_at(p->function);
	uint8_t *mask = pci_device_config_mask(p->function) + at;

	store_le32(p->cap + LINK_CAP, load_le32(p->cap + LINK_CAP) | LINK_CAP_REPORTS_ACTIVE);
	store_le32(p->cap + SLOT_CAP, SLOT_BUTTON | SLOT_POWER_CONTROLLER | SLOT_POWER_INDICATOR |
					      SLOT_HOT_PLUG | SLOT_NO_COMMAND_COMPLETED |
					      p->config.slot << SLOT_NUMBER_SHIFT);
	store_le16(mask + SLOT_CONTROL, CONTROL_WRITABLE);
	store_le16(mask + SLOT_STATUS, EVENTS);
	store_le16(mask + ROOT_CONTROL, 0x001f);
}

static int create_function(struct pci_port *p)
{
	const struct pci_device_config config = {.name = p->config.name,
		.vendor = 0x1b36, /* a generic root port */
		.device = 0x000c,
		.class_code = 0x060400,
		.bus = p->config.bus,
		.lock = &p->lock,
		.intx = p->config.intx,
		.msi = p->config.msi,
		.express = PCI_EXPRESS_ROOT_PORT,
		.config_written = config_written,
		.opaque = p};
	int status = pci_device_create(&config, &p->function);

	if (status == 0)
		status = pci_device_add_bar(
			p->function, 0, PCI_BAR_MEM32, false, BAR_BYTES, NULL, NULL);
	if (status == 0)
		status = pci_device_add_msix(p->function, 0, 0, 1);
	if (status < 0)
		return status;
	p->space = pci_device_config_space(p->function);
	p->cap = p->space + pci_device_express_at(p->function);
	fill_header(p);
	fill_capability(p);
	return pci_device_plug(p->function, p->config.host, p->config.devfn);
}

int pci_port_create(const struct pci_port_config *config, struct pci_port **ret_port)
{
	struct pci_port *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->config = *config;
	pthread_mutex_init(&p->lock, NULL);
	pci_host_add_link(config->host, &p->link);
	int status = create_function(p);
	if (status < 0) {
		pci_port_free(p);
		return status;
	}
	*ret_port = p;
	return 0;
}

struct pci_device *pci_port_function(struct pci_port *p)
{
	return p->function;
}

void pci_port_free(struct pci_port *p)
{
	if (!p)
		return;
	pci_device_free(p->function);
	pci_host_remove_link(p->config.host, &p->link);
	pthread_mutex_destroy(&p->lock);
	free(p);
}
