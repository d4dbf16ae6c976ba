/*
 * A PCI Express function: see device.h.
 *
 * The configuration space is a page of bytes beside a page of masks that say which bits the guest may change; what
 * follows from a change (BARs move, MSI-X is switched on) is worked out after the bytes have changed.
 *
 * Invariants: a BAR is on the bus exactly while `mapped` says so, at `base`. The bytes of the MSI-X table hold nothing
 * in reserved bits. INTx is asserted on the line while it is raised, not disabled, and MSI-X is off.
 */
#include "device/pci/device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"

#define CONFIG_BYTES 4096u
#define CAP_FIRST    0x40u
#define CAP_END	     0x100u

/* The standard header */
#define REG_COMMAND	     0x04u
#define REG_STATUS	     0x06u
#define REG_REVISION	     0x08u
#define REG_CACHE_LINE	     0x0cu
#define REG_BAR(n)	     (0x10u + 4 * (n))
#define REG_SUBSYSTEM_VENDOR 0x2cu
#define REG_CAPABILITIES     0x34u
#define REG_INTERRUPT_LINE   0x3cu
#define REG_INTERRUPT_PIN    0x3du
#define COMMAND_IO	     0x0001u
#define COMMAND_MEMORY	     0x0002u
#define COMMAND_MASTER	     0x0004u
#define COMMAND_PARITY	     0x0040u
#define COMMAND_SERR	     0x0100u
#define COMMAND_INTX_DISABLE 0x0400u
#define STATUS_INTX	     0x0008u
#define STATUS_CAPABILITIES  0x0010u

#define CAP_ID_EXPRESS 0x10u
#define CAP_ID_MSIX    0x11u

#define MSIX_ENTRY_BYTES 16u
#define MSIX_ENABLE	 0x8000u
#define MSIX_MASK_ALL	 0x4000u
#define MSIX_VECTORS_MAX 2048u
#define MSIX_CONTROL	 12u /* of an entry: bit 0 masks it */

struct pci_bar {
	struct pci_device *device;
	enum pci_bar_kind kind;
	bool prefetchable, mapped;
	uint64_t bytes, base; /* base: on the bus while mapped */
	const struct bus_ops *ops;
	void *opaque;
	struct bus_ops own; /* what the bus calls */
};

struct pci_device {
	struct pci_device_config config;
	uint8_t space[CONFIG_BYTES], writable[CONFIG_BYTES];
	unsigned cap_next, cap_last; /* where the next one goes; where the last one is, 0: none */
	struct pci_bar bar[PCI_BARS];
	struct pci_host *host;
	unsigned devfn;
	struct pci_link *link; /* or that */
	unsigned express;      /* where the capability is */

	bool intx;	 /* raised by the device */
	bool intx_shown; /* on the line */

	unsigned vectors, msix_cap, msix_bar;
	uint64_t msix_offset;
	uint8_t *msix_table;	/* vectors entries */
	uint64_t *msix_pending; /* a bit each */
};

static uint16_t command(const struct pci_device *d)
{
	return load_le16(d->space + REG_COMMAND);
}

bool pci_device_is_master(const struct pci_device *d)
{
	return command(d) & COMMAND_MASTER;
}

uint8_t *pci_device_config_space(struct pci_device *d)
{
	return d->space;
}

/* ---- MSI-X ---- */

static uint16_t msix_control(const struct pci_device *d)
{
	return d->vectors ? load_le16(d->space + d->msix_cap + 2) : 0;
}

bool pci_device_msix_enabled(const struct pci_device *d)
{
	return msix_control(d) & MSIX_ENABLE;
}

static void msix_send(struct pci_device *d, unsigned index)
{
	const uint8_t *entry = d->msix_table + MSIX_ENTRY_BYTES * index;

	d->msix_pending[index / 64] &= ~BIT(index % 64);
	msi_send(&d->config.msi, load_le64(entry), load_le32(entry + 8));
}

static bool msix_may_send(const struct pci_device *d, unsigned index)
{
	return (msix_control(d) & (MSIX_ENABLE | MSIX_MASK_ALL)) == MSIX_ENABLE &&
	       pci_device_is_master(d) &&
	       !(d->msix_table[MSIX_ENTRY_BYTES * index + MSIX_CONTROL] & 1);
}

void pci_device_msix(struct pci_device *d, unsigned index)
{
	if (index >= d->vectors || !pci_device_msix_enabled(d))
		return;
	if (msix_may_send(d, index))
		msix_send(d, index);
	else
		d->msix_pending[index / 64] |= BIT(index % 64);
}

/* Something was unmasked. */
static void msix_send_pending(struct pci_device *d)
{
	for (unsigned i = 0; i < d->vectors; i++)
		if ((d->msix_pending[i / 64] >> i % 64 & 1) && msix_may_send(d, i))
			msix_send(d, i);
}

static uint64_t msix_table_bytes(const struct pci_device *d)
{
	return (uint64_t)d->vectors * MSIX_ENTRY_BYTES;
}

static uint64_t msix_bytes(const struct pci_device *d)
{
	return msix_table_bytes(d) + (d->vectors + 63) / 64 * 8;
}

static uint8_t msix_byte(const struct pci_device *d, uint64_t at)
{
	const uint64_t table = msix_table_bytes(d);

	if (at < table)
		return d->msix_table[at];
	at -= table;
	return (uint8_t)(d->msix_pending[at / 8] >> 8 * (at % 8));
}

static uint64_t msix_read(const struct pci_device *d, uint64_t at, unsigned size_bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size_bytes && at + i < msix_bytes(d); i++)
		value |= (uint64_t)msix_byte(d, at + i) << 8 * i;
	return value;
}

/* Pending bits are read-only; of the control word only the mask can be written, of the address not the lowest two. */
static void msix_write(struct pci_device *d, uint64_t at, unsigned size_bytes, uint64_t value)
{
	for (unsigned i = 0; i < size_bytes && at + i < msix_table_bytes(d); i++) {
		static const uint8_t mask[MSIX_ENTRY_BYTES] = {0xfc, 0xff, 0xff, 0xff, 0xff, 0xff,
			0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0, 0, 0};

		d->msix_table[at + i] =
			(uint8_t)(value >> 8 * i) & mask[(at + i) % MSIX_ENTRY_BYTES];
	}
	msix_send_pending(d);
}

static bool in_msix(const struct pci_device *d, unsigned bar, uint64_t offset)
{
	return d->vectors && bar == d->msix_bar && offset - d->msix_offset < msix_bytes(d);
}

/* ---- INTx ---- */

static void show_intx(struct pci_device *d)
{
	const bool show =
		d->intx && !(command(d) & COMMAND_INTX_DISABLE) && !pci_device_msix_enabled(d);

	d->space[REG_STATUS] &= (uint8_t)~STATUS_INTX;
	if (d->intx)
		d->space[REG_STATUS] |= STATUS_INTX;
	if (show != d->intx_shown)
		irq_line_set(&d->config.intx, show);
	d->intx_shown = show;
}

void pci_device_intx(struct pci_device *d, bool level)
{
	d->intx = level;
	show_intx(d);
}

/* ---- BARs ---- */

static bool is_memory(enum pci_bar_kind kind)
{
	return kind == PCI_BAR_MEM32 || kind == PCI_BAR_MEM64;
}

uint64_t pci_device_bar_read(
	struct pci_device *d, unsigned index, uint64_t offset, unsigned size_bytes)
{
	const struct pci_bar *bar = &d->bar[index];

	if (in_msix(d, index, offset))
		return msix_read(d, offset - d->msix_offset, size_bytes);
	return bar->ops ? bar->ops->read(bar->opaque, offset, size_bytes) : 0;
}

void pci_device_bar_write(
	struct pci_device *d, unsigned index, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	const struct pci_bar *bar = &d->bar[index];

	if (in_msix(d, index, offset))
		msix_write(d, offset - d->msix_offset, size_bytes, value);
	else if (bar->ops)
		bar->ops->write(bar->opaque, offset, size_bytes, value);
}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct pci_bar *bar = opaque;

	return pci_device_bar_read(
		bar->device, (unsigned)(bar - bar->device->bar), offset, size_bytes);
}

static void bar_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct pci_bar *bar = opaque;

	pci_device_bar_write(
		bar->device, (unsigned)(bar - bar->device->bar), offset, size_bytes, value);
}

/* What the register says, whether it is decoded or not. */
static uint64_t bar_address(const struct pci_device *d, unsigned index)
{
	const uint8_t *reg = d->space + REG_BAR(index);

	switch (d->bar[index].kind) {
	case PCI_BAR_IO: return load_le32(reg) & ~3u;
	case PCI_BAR_MEM32: return load_le32(reg) & ~15u;
	case PCI_BAR_MEM64: return load_le64(reg) & ~15ull;
	default: return UINT64_MAX;
	}
}

/* Where the registers would have it; UINT64_MAX: nowhere. */
static uint64_t bar_wanted(const struct pci_device *d, unsigned index)
{
	const struct pci_bar *bar = &d->bar[index];
	const uint16_t decode = bar->kind == PCI_BAR_IO ? COMMAND_IO : COMMAND_MEMORY;

	if (bar->kind == PCI_BAR_NONE || !(command(d) & decode))
		return UINT64_MAX;
	return bar_address(d, index);
}

/* Is it ours to put on the bus? */
static bool bar_answers(const struct pci_device *d, unsigned index)
{
	return d->bar[index].ops || (d->vectors && d->msix_bar == index);
}

uint64_t pci_device_bar(const struct pci_device *d, unsigned index)
{
	const struct pci_bar *bar = &d->bar[index];

	return bar_answers(d, index) && !bar->mapped ? UINT64_MAX : bar_wanted(d, index);
}

static void unmap_bar(struct pci_device *d, struct pci_bar *bar)
{
	if (bar->mapped)
		bus_remove(d->config.bus, bar->kind == PCI_BAR_IO ? BUS_PIO : BUS_MMIO, bar->base);
	bar->mapped = false;
}

/* A failure leaves it off the bus: it overlaps something, or lies outside of the space. */
static void map_bar(struct pci_device *d, struct pci_bar *bar, uint64_t base)
{
	bar->base = base;
	bar->mapped = bus_add(d->config.bus, bar->kind == PCI_BAR_IO ? BUS_PIO : BUS_MMIO, base,
			      bar->bytes, d->config.name, &bar->own, bar, d->config.lock) == 0;
}

/* Has the bus follow the registers; all leave before one comes, as two may change places. */
static void place_bars(struct pci_device *d)
{
	for (unsigned i = 0; i < PCI_BARS; i++)
		if (d->bar[i].mapped && d->bar[i].base != bar_wanted(d, i))
			unmap_bar(d, &d->bar[i]);
	for (unsigned i = 0; i < PCI_BARS; i++) {
		struct pci_bar *bar = &d->bar[i];
		const uint64_t base = bar_wanted(d, i);

		if (!bar->mapped && base != UINT64_MAX && bar_answers(d, i))
			map_bar(d, bar, base);
	}
}

uint64_t pci_device_bar_bytes(const struct pci_device *d, unsigned index,
	enum pci_bar_kind *ret_kind, bool *ret_prefetchable)
{
	*ret_kind = d->bar[index].kind;
	*ret_prefetchable = d->bar[index].prefetchable;
	return d->bar[index].bytes;
}

void pci_device_assign(struct pci_device *d, unsigned index, uint64_t address)
{
	const struct pci_bar *bar = &d->bar[index];
	uint8_t *reg = d->space + REG_BAR(index);

	AUTO_LOCK(d->config.lock);
	store_le32(reg,
		(load_le32(reg) & ~load_le32(d->writable + REG_BAR(index))) | (uint32_t)address);
	if (bar->kind == PCI_BAR_MEM64)
		store_le32(reg + 4, (uint32_t)(address >> 32));
	store_le16(d->space + REG_COMMAND,
		command(d) | (bar->kind == PCI_BAR_IO ? COMMAND_IO : COMMAND_MEMORY));
	place_bars(d);
}

static bool bar_is_free(const struct pci_device *d, unsigned index)
{
	return index < PCI_BARS && d->bar[index].kind == PCI_BAR_NONE &&
	       !(index && d->bar[index - 1].kind == PCI_BAR_MEM64);
}

int pci_device_add_bar(struct pci_device *d, unsigned index, enum pci_bar_kind kind,
	bool prefetchable, uint64_t size_bytes, const struct bus_ops *ops, void *opaque)
{
	const uint64_t least = kind == PCI_BAR_IO ? 4 : 16;
	const uint64_t most = kind == PCI_BAR_IO ? 256 : kind == PCI_BAR_MEM32 ? GIB(2) : BIT(46);

	if (kind == PCI_BAR_NONE || !bar_is_free(d, index) || size_bytes < least ||
		size_bytes > most || (size_bytes & (size_bytes - 1)))
		return -EINVAL;
	if (kind == PCI_BAR_MEM64 && !bar_is_free(d, index + 1))
		return -EINVAL;
	struct pci_bar *bar = &d->bar[index];
	*bar = (struct pci_bar){.device = d,
		.kind = kind,
		.prefetchable = prefetchable,
		.bytes = size_bytes,
		.ops = ops,
		.opaque = opaque,
		.own = {.read = bar_read, .write = bar_write}};
	if (ops)
		bar->own.access_max_bytes = ops->access_max_bytes;
	d->space[REG_BAR(index)] = (kind == PCI_BAR_IO		   ? 1
					   : kind == PCI_BAR_MEM64 ? 4
								   : 0) |
				   (is_memory(kind) && prefetchable ? 8 : 0);
	store_le32(d->writable + REG_BAR(index), (uint32_t) ~(size_bytes - 1));
	if (kind == PCI_BAR_MEM64)
		store_le32(d->writable + REG_BAR(index + 1), (uint32_t)(~(size_bytes - 1) >> 32));
	d->writable[REG_COMMAND] |= kind == PCI_BAR_IO ? COMMAND_IO : COMMAND_MEMORY;
	return 0;
}

/* ---- configuration space ---- */

static uint32_t space_read(void *function, unsigned offset, unsigned size_bytes)
{
	struct pci_device *d = function;
	uint32_t value = 0;

	AUTO_LOCK(d->config.lock);
	if (d->config.config_reading)
		d->config.config_reading(d->config.opaque, offset, size_bytes);
	for (unsigned i = 0; i < size_bytes; i++)
		value |= (uint32_t)d->space[offset + i] << 8 * i;
	return value;
}

static void space_write(void *function, unsigned offset, unsigned size_bytes, uint32_t value)
{
	struct pci_device *d = function;

	AUTO_LOCK(d->config.lock);
	for (unsigned i = 0; i < size_bytes; i++) {
		uint8_t *byte = &d->space[offset + i];
		const uint8_t mask = d->writable[offset + i];

		*byte = (uint8_t)((*byte & ~mask) | (value >> 8 * i & mask));
	}
	place_bars(d);
	show_intx(d);
	msix_send_pending(d);
	if (d->config.config_written)
		d->config.config_written(d->config.opaque, offset, size_bytes);
}

static const struct pci_function_ops space_ops = {
	.config_read = space_read, .config_write = space_write};

int pci_device_add_capability(struct pci_device *d, uint8_t id, const uint8_t *bytes,
	const uint8_t *writable, unsigned size)
{
	const unsigned at = d->cap_next;

	if (size < 2 || size > CAP_END - CAP_FIRST || at + size > CAP_END)
		return -ENOSPC;
	memcpy(d->space + at, bytes, size);
	if (writable)
		memcpy(d->writable + at, writable, size);
	d->space[at] = id;
	d->space[at + 1] = 0;
	d->writable[at] = d->writable[at + 1] = 0;
	d->space[d->cap_last ? d->cap_last + 1 : REG_CAPABILITIES] = (uint8_t)at;
	d->space[REG_STATUS] |= STATUS_CAPABILITIES;
	d->cap_last = at;
	d->cap_next = ALIGN_UP(at + size, 4);
	return (int)at;
}

int pci_device_add_msix(struct pci_device *d, unsigned index, uint64_t offset, unsigned vectors)
{
	uint8_t cap[12] = {0};
	const uint8_t writable[12] = {[3] = (MSIX_ENABLE | MSIX_MASK_ALL) >> 8};

	if (d->vectors || !vectors || vectors > MSIX_VECTORS_MAX || index >= PCI_BARS ||
		!is_memory(d->bar[index].kind) || offset % 8 || offset > UINT32_MAX)
		return -EINVAL;
	const uint64_t table = (uint64_t)vectors * MSIX_ENTRY_BYTES;
	const uint64_t bytes = table + (vectors + 63) / 64 * 8;
	if (bytes > d->bar[index].bytes || offset > d->bar[index].bytes - bytes)
		return -EINVAL;
	store_le16(cap + 2, (uint16_t)(vectors - 1));
	store_le32(cap + 4, (uint32_t)offset | index);
	store_le32(cap + 8, (uint32_t)(offset + table) | index);
	d->msix_table = calloc(vectors, MSIX_ENTRY_BYTES);
	d->msix_pending = calloc((vectors + 63) / 64, sizeof(uint64_t));
	if (!d->msix_table || !d->msix_pending)
		return -ENOMEM;
	const int at = pci_device_add_capability(d, CAP_ID_MSIX, cap, writable, sizeof(cap));
	if (at < 0)
		return at;
	d->vectors = vectors;
	d->msix_cap = (unsigned)at;
	d->msix_bar = index;
	d->msix_offset = offset;
	for (unsigned i = 0; i < vectors; i++)
		d->msix_table[MSIX_ENTRY_BYTES * i + MSIX_CONTROL] = 1;
	return 0;
}

void pci_device_set_writable(struct pci_device *d, unsigned offset, uint8_t bits)
{
	d->writable[offset] = bits;
}

/* Version 2, with a link only for what is on one: 2.5 GT/s, one lane. */
static int add_express(struct pci_device *d)
{
	static const uint16_t type[] = {[PCI_EXPRESS_INTEGRATED] = 0x90,
		[PCI_EXPRESS_ENDPOINT] = 0x00,
		[PCI_EXPRESS_ROOT_PORT] = 0x140};
	uint8_t cap[0x3c] = {0}, writable[0x3c] = {0};

	store_le16(cap + 0x02, (uint16_t)(2 | type[d->config.express]));
	store_le32(cap + 0x04, 0x8000); /* role-based error reporting; payloads of 128 bytes */
	store_le16(writable + 0x08,
		0x7fff); /* device control: no effect, as there is no link to see it */
	if (d->config.express != PCI_EXPRESS_INTEGRATED) {
		store_le32(cap + 0x0c, 0x11); /* link: x1, 2.5 GT/s */
		store_le16(cap + 0x12, 0x11);
		store_le16(writable + 0x10, 0x00c3);
	}
	store_le16(writable + 0x28, 0x001f); /* completion timeout */
	const int at = pci_device_add_capability(d, CAP_ID_EXPRESS, cap, writable, sizeof(cap));
	d->express = (unsigned)at;
	return at;
}

/* ---- life ---- */

static void fill_header(struct pci_device *d)
{
	const struct pci_device_config *config = &d->config;

	store_le16(d->space, config->vendor);
	store_le16(d->space + 2, config->device);
	store_le32(d->space + REG_REVISION, config->class_code << 8 | config->revision);
	store_le16(d->space + REG_SUBSYSTEM_VENDOR, config->subsystem_vendor);
	store_le16(d->space + REG_SUBSYSTEM_VENDOR + 2, config->subsystem);
	store_le16(
		d->writable + REG_COMMAND, COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR |
						   (config->intx.set ? COMMAND_INTX_DISABLE : 0));
	d->writable[REG_CACHE_LINE] = 0xff;
	d->writable[REG_INTERRUPT_LINE] = 0xff;
	d->space[REG_INTERRUPT_PIN] = config->intx.set ? 1 : 0;
}

int pci_device_create(const struct pci_device_config *config, struct pci_device **ret_device)
{
	struct pci_device *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	d->config = *config;
	d->cap_next = CAP_FIRST;
	fill_header(d);
	int status = config->conventional ? 0 : add_express(d);
	if (status < 0) {
		pci_device_free(d);
		return status;
	}
	*ret_device = d;
	return 0;
}

int pci_device_plug(struct pci_device *d, struct pci_host *host, unsigned devfn)
{
	int status = pci_host_add(host, devfn, &space_ops, d);

	if (status < 0)
		return status;
	d->host = host;
	d->devfn = devfn;
	return 0;
}

void pci_device_plug_link(struct pci_device *d, struct pci_link *link)
{
	link->ops = &space_ops;
	link->function = d;
	d->link = link;
}

void pci_device_unplug_link(struct pci_device *d)
{
	if (d->link)
		d->link->ops = NULL;
	d->link = NULL;
}

unsigned pci_device_express_at(const struct pci_device *d)
{
	return d->express;
}

uint8_t *pci_device_config_mask(struct pci_device *d)
{
	return d->writable;
}

/* What the guest could change is as it was at first; capabilities have no other initial values than 0 there. */
void pci_device_reset(struct pci_device *d)
{
	for (unsigned i = 0; i < CONFIG_BYTES; i++)
		d->space[i] &= (uint8_t)~d->writable[i];
	memset(d->msix_pending, 0, d->msix_pending ? (d->vectors + 63) / 64 * 8 : 0);
	for (unsigned i = 0; i < d->vectors; i++) {
		memset(d->msix_table + MSIX_ENTRY_BYTES * i, 0, MSIX_ENTRY_BYTES);
		d->msix_table[MSIX_ENTRY_BYTES * i + MSIX_CONTROL] = 1;
	}
	d->intx = false;
	place_bars(d);
	show_intx(d);
}

void pci_device_free(struct pci_device *d)
{
	if (!d)
		return;
	for (unsigned i = 0; i < PCI_BARS; i++)
		unmap_bar(d, &d->bar[i]);
	if (d->intx_shown)
		irq_line_set(&d->config.intx, false);
	if (d->host)
		pci_host_remove(d->host, d->devfn);
	pci_device_unplug_link(d);
	free(d->msix_table);
	free(d->msix_pending);
	free(d);
}
