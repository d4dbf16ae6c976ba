/*
 * The PCI host bridge. See the header.
 */
#include "device/pci/host.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"

#define ADDRESS_ENABLE	 0x80000000u
#define ADDRESS_WRITABLE 0x80fffffcu

#define RESET_CPU   0x04 /* its rising edge resets */
#define RESET_KINDS 0x0e /* soft or hard, CPU, full */

#define CONFIG_BYTES 4096u
#define HEADER_BYTES 64u

#define COMMAND_OFFSET	 4u
#define COMMAND_WRITABLE 0x0146u /* memory, bus master, parity, SERR# */

struct pci_slot {
	const struct pci_function_ops *ops;
	void *function;
};

struct pci_host {
	struct pci_host_config config;
	struct pci_host_state s;
	struct pci_slot slot[PCI_FUNCTIONS];
	struct pci_link *links;
};

static uint32_t ones(unsigned size_bytes)
{
	return size_bytes >= 4 ? ~0u : (1u << 8 * size_bytes) - 1;
}

/* The bridge's own function: an Intel 82441FX, which every system knows how to leave alone. */
static uint32_t bridge_read(void *function, unsigned offset, unsigned size_bytes)
{
	struct pci_host *host = function;
	uint8_t header[HEADER_BYTES + 4] = {
		0x86, 0x80, 0x37, 0x12, /* vendor, device */
		0, 0, 0, 0,		/* command, status */
		0x02, 0x00, 0x00, 0x06, /* revision, class: host bridge */
	};

	if (offset >= HEADER_BYTES)
		return 0;
	store_le16(header + COMMAND_OFFSET, host->s.command);
	return load_le32(header + offset) & ones(size_bytes);
}

static void bridge_write(void *function, unsigned offset, unsigned size_bytes, uint32_t value)
{
	struct pci_host *host = function;

	for (unsigned i = 0; i < size_bytes; i++) {
		unsigned at =
			offset + i - COMMAND_OFFSET; /* wraps below it, to a number too large */
		uint16_t mask;

		if (at > 1)
			continue;
		mask = (uint16_t)(0xff << 8 * at);
		host->s.command &= (uint16_t)~mask;
		host->s.command |= (uint16_t)((value >> 8 * i & 0xff) << 8 * at) & COMMAND_WRITABLE;
	}
}

static const struct pci_function_ops bridge_ops = {
	.config_read = bridge_read,
	.config_write = bridge_write,
};

static struct pci_slot slot_of(const struct pci_host *host, unsigned bus_number, unsigned devfn)
{
	if (!bus_number)
		return host->slot[devfn & 0xff];
	for (const struct pci_link *link = host->links; link && !devfn; link = link->next)
		if (link->number == bus_number)
			return (struct pci_slot){.ops = link->ops, .function = link->function};
	return (struct pci_slot){0};
}

/* The function at a bus and devfn if the access fits into its configuration space. */
static bool find(const struct pci_host *host, unsigned bus_number, unsigned devfn, unsigned offset,
	unsigned size_bytes, struct pci_slot *ret_slot)
{
	*ret_slot = slot_of(host, bus_number, devfn);
	return ret_slot->ops && offset + size_bytes <= CONFIG_BYTES;
}

static uint32_t config_read(const struct pci_host *host, unsigned bus_number, unsigned devfn,
	unsigned offset, unsigned size_bytes)
{
	struct pci_slot slot;

	if (!find(host, bus_number, devfn, offset, size_bytes, &slot))
		return ones(size_bytes);
	return slot.ops->config_read(slot.function, offset, size_bytes);
}

static void config_write(struct pci_host *host, unsigned bus_number, unsigned devfn,
	unsigned offset, unsigned size_bytes, uint32_t value)
{
	struct pci_slot slot;

	if (find(host, bus_number, devfn, offset, size_bytes, &slot))
		slot.ops->config_write(slot.function, offset, size_bytes, value);
}

/* Ports 0xcf8-0xcfb: the address takes whole accesses only, the reset register hides behind it. */
static uint64_t address_read(void *device, uint64_t offset, unsigned size_bytes)
{
	struct pci_host *host = device;

	if (offset == 0 && size_bytes == 4)
		return host->s.address;
	if (offset == 1 && size_bytes == 1)
		return host->s.reset_control;
	return ~0ull;
}

static void address_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct pci_host *host = device;

	if (offset == 0 && size_bytes == 4) {
		host->s.address = (uint32_t)value & ADDRESS_WRITABLE;
	} else if (offset == 1 && size_bytes == 1) {
		bool rose = (value & RESET_CPU) && !(host->s.reset_control & RESET_CPU);

		host->s.reset_control = value & RESET_KINDS;
		if (rose && host->config.reset)
			host->config.reset(host->config.opaque);
	}
}

/* Ports 0xcfc-0xcff: the window onto the addressed register. */
static uint64_t data_read(void *device, uint64_t offset, unsigned size_bytes)
{
	struct pci_host *host = device;
	uint32_t address = host->s.address;

	if (!(address & ADDRESS_ENABLE))
		return ~0ull;
	return config_read(host, address >> 16 & 0xff, address >> 8 & 0xff,
		(address & 0xfc) + (unsigned)offset, size_bytes);
}

static void data_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct pci_host *host = device;
	uint32_t address = host->s.address;

	if (address & ADDRESS_ENABLE)
		config_write(host, address >> 16 & 0xff, address >> 8 & 0xff,
			(address & 0xfc) + (unsigned)offset, size_bytes, (uint32_t)value);
}

static uint64_t ecam_read(void *device, uint64_t offset, unsigned size_bytes)
{
	return config_read(
		device, (unsigned)(offset >> 20), offset >> 12 & 0xff, offset & 0xfff, size_bytes);
}

static void ecam_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	config_write(device, (unsigned)(offset >> 20), offset >> 12 & 0xff, offset & 0xfff,
		size_bytes, (uint32_t)value);
}

int pci_host_create(const struct pci_host_config *config, struct pci_host **ret_host)
{
	struct pci_host *host = calloc(1, sizeof(*host));

	if (!host)
		return -ENOMEM;
	host->config = *config;
	host->slot[0] = (struct pci_slot){.ops = &bridge_ops, .function = host};
	if (config->bridge)
		host->slot[0] =
			(struct pci_slot){.ops = config->bridge, .function = config->bridge_opaque};
	*ret_host = host;
	return 0;
}

void pci_host_free(struct pci_host *host)
{
	free(host);
}

int pci_host_attach(struct pci_host *host, struct bus *bus)
{
	static const struct bus_ops address_ops = {.read = address_read, .write = address_write};
	static const struct bus_ops data_ops = {
		.read = data_read, .write = data_write, .access_max_bytes = 4};
	pthread_mutex_t *lock = host->config.lock;
	int rc;

	rc = bus_add(bus, BUS_PIO, PCI_HOST_PORT, 4, "pci-address", &address_ops, host, lock);
	if (rc < 0)
		return rc;
	return bus_add(bus, BUS_PIO, PCI_HOST_PORT + 4, 4, "pci-data", &data_ops, host, lock);
}

int pci_host_attach_ecam(struct pci_host *host, struct bus *bus, gpa_t base)
{
	static const struct bus_ops ecam_ops = {
		.read = ecam_read, .write = ecam_write, .access_max_bytes = 4};

	return bus_add(bus, BUS_MMIO, base,
		(uint64_t)PCI_ECAM_BUS_BYTES * MAX(host->config.buses, 1u), "pci-ecam", &ecam_ops,
		host, host->config.lock);
}

int pci_host_add(
	struct pci_host *host, unsigned devfn, const struct pci_function_ops *ops, void *function)
{
	if (devfn >= PCI_FUNCTIONS)
		return -EINVAL;
	if (host->slot[devfn].ops)
		return -EEXIST;
	host->slot[devfn] = (struct pci_slot){.ops = ops, .function = function};
	return 0;
}

void pci_host_remove(struct pci_host *host, unsigned devfn)
{
	if (devfn < PCI_FUNCTIONS)
		host->slot[devfn] = (struct pci_slot){0};
}

void pci_host_add_link(struct pci_host *host, struct pci_link *link)
{
	AUTO_LOCK(host->config.lock);
	link->next = host->links;
	host->links = link;
}

void pci_host_remove_link(struct pci_host *host, struct pci_link *link)
{
	AUTO_LOCK(host->config.lock);
	for (struct pci_link **at = &host->links; *at; at = &(*at)->next)
		if (*at == link) {
			*at = link->next;
			return;
		}
}

pthread_mutex_t *pci_host_lock(const struct pci_host *host)
{
	return host->config.lock;
}

void pci_host_save(struct pci_host *host, struct pci_host_state *ret_state)
{
	AUTO_LOCK(host->config.lock);

	*ret_state = host->s;
}

int pci_host_load(struct pci_host *host, const struct pci_host_state *state)
{
	if ((state->address & ~ADDRESS_WRITABLE) || (state->command & ~COMMAND_WRITABLE) ||
		(state->reset_control & ~RESET_KINDS))
		return -EINVAL;
	AUTO_LOCK(host->config.lock);
	host->s = *state;
	return 0;
}
