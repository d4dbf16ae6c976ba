/*
 * Q35's host and LPC bridges: see the header.
 */
#include "device/pci/q35.h"

#include "base/bytes.h"

#define COMMAND	  0x04
#define SUBSYSTEM 0x2c
#define HEADER_TYPE 0x0e

#define PCIEXBAR	0x60
#define PCIEXBAR_ENABLE 1u
#define PAM0		0x90
#define SMRAM		0x9d
#define SMRAM_WRITABLE	0x48 /* open, enable: D_LCK stays clear */

#define PMBASE	      0x40
#define ACPI_CNTL     0x44
#define PIRQ_A	      0x60 /* to D */
#define PIRQ_E	      0x68 /* to H */
#define PIRQ_NOWHERE  0x80
#define RCBA	      0xf0

/* What the guest may change: offset, length, and the bits of each byte. */
struct writable {
	uint8_t offset, bytes, mask[8];
};

static const struct writable bridge_writable[] = {
	{COMMAND, 2, {0x46, 0x01}},
	{PCIEXBAR, 8, {0x07, 0x00, 0x00, 0xfc, 0x0f}},
	{PAM0, 7, {0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33}},
	{SMRAM, 2, {SMRAM_WRITABLE, 0x08}},
};

static const struct writable lpc_writable[] = {
	{COMMAND, 2, {0x46, 0x01}},
	{PMBASE, 4, {0x80, 0xff}},
	{ACPI_CNTL, 1, {0x87}},
	{PIRQ_A, 4, {0x8f, 0x8f, 0x8f, 0x8f}},
	{PIRQ_E, 4, {0x8f, 0x8f, 0x8f, 0x8f}},
	{0x80, 8, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}, /* decoding of legacy ports: all is there */
	{0xdc, 1, {0xff}}, /* BIOS control */
	{RCBA, 4, {0x01, 0xc0, 0xff, 0xff}},
};

static uint8_t mask_of(const struct writable *list, unsigned count, unsigned offset)
{
	for (unsigned i = 0; i < count; i++)
		if (offset >= list[i].offset && offset < (unsigned)list[i].offset + list[i].bytes)
			return list[i].mask[offset - list[i].offset];
	return 0;
}

static void space_write(uint8_t space[256], const struct writable *list, unsigned count, unsigned offset,
	unsigned size_bytes, uint32_t value)
{
	for (unsigned i = 0; i < size_bytes && offset + i < 256; i++) {
		const uint8_t mask = mask_of(list, count, offset + i);
		const uint8_t byte = (uint8_t)(value >> 8 * i);

		space[offset + i] = (uint8_t)((space[offset + i] & ~mask) | (byte & mask));
	}
}

static uint32_t space_read(const uint8_t space[256], unsigned offset, unsigned size_bytes)
{
	uint32_t value = 0;

	for (unsigned i = 0; i < size_bytes && offset + i < 256; i++)
		value |= (uint32_t)space[offset + i] << 8 * i;
	return value;
}

static bool touches(unsigned offset, unsigned size_bytes, unsigned at, unsigned bytes)
{
	return offset < at + bytes && at < offset + size_bytes;
}

gpa_t q35_ecam(const struct q35 *q35, uint64_t *ret_bytes)
{
	static const uint64_t bytes[4] = {MIB(256), MIB(128), MIB(64), 0};
	const uint64_t bar = load_le64(q35->bridge + PCIEXBAR);
	const uint64_t length = bytes[bar >> 1 & 3];

	*ret_bytes = bar & PCIEXBAR_ENABLE ? length : 0;
	return bar & ~(MIB(64) - 1) & ~(length - 1);
}

int q35_pirq(const struct q35 *q35, unsigned pirq)
{
	const uint8_t route = q35->lpc[(pirq < 4 ? PIRQ_A : PIRQ_E - 4) + pirq];

	return route & PIRQ_NOWHERE ? -1 : route & 15;
}

static uint32_t bridge_read(void *function, unsigned offset, unsigned size_bytes)
{
	const struct q35 *q35 = function;

	return space_read(q35->bridge, offset, size_bytes);
}

static void bridge_write(void *function, unsigned offset, unsigned size_bytes, uint32_t value)
{
	struct q35 *q35 = function;
	uint64_t before_bytes, bytes;
	const gpa_t before = q35_ecam(q35, &before_bytes);

	space_write(q35->bridge, bridge_writable, ARRAY_SIZE(bridge_writable), offset, size_bytes, value);
	const gpa_t base = q35_ecam(q35, &bytes);
	if (q35->ecam && (bytes != before_bytes || (bytes && base != before)))
		q35->ecam(q35->opaque, base, bytes);
}

static uint32_t lpc_read(void *function, unsigned offset, unsigned size_bytes)
{
	const struct q35 *q35 = function;

	return space_read(q35->lpc, offset, size_bytes);
}

static void lpc_write(void *function, unsigned offset, unsigned size_bytes, uint32_t value)
{
	struct q35 *q35 = function;

	space_write(q35->lpc, lpc_writable, ARRAY_SIZE(lpc_writable), offset, size_bytes, value);
	if (q35->routes && touches(offset, size_bytes, PIRQ_A, PIRQ_E + 4 - PIRQ_A))
		q35->routes(q35->opaque);
}

const struct pci_function_ops q35_bridge_ops = {.config_read = bridge_read, .config_write = bridge_write};
const struct pci_function_ops q35_lpc_ops = {.config_read = lpc_read, .config_write = lpc_write};

void q35_reset(struct q35 *q35)
{
	static const uint8_t bridge[] = {0x86, 0x80, 0xc0, 0x29, 0, 0, 0, 0, 0x02, 0x00, 0x00, 0x06};
	static const uint8_t lpc[] = {0x86, 0x80, 0x18, 0x29, 0x07, 0, 0, 0, 0x02, 0x00, 0x01, 0x06};
	/* The subsystem by which firmware tells a virtual machine from a board of Intel's. */
	static const uint8_t subsystem[] = {0xf4, 0x1a, 0x00, 0x11};

	memset(q35->bridge, 0, sizeof(q35->bridge));
	memset(q35->lpc, 0, sizeof(q35->lpc));
	memcpy(q35->bridge, bridge, sizeof(bridge));
	memcpy(q35->lpc, lpc, sizeof(lpc));
	memcpy(q35->bridge + SUBSYSTEM, subsystem, sizeof(subsystem));
	memcpy(q35->lpc + SUBSYSTEM, subsystem, sizeof(subsystem));
	q35->lpc[HEADER_TYPE] = 0x80; /* there may be more functions: the SATA controller */
	q35->bridge[SMRAM] = 0x02;
	q35->lpc[PMBASE] = 1; /* I/O space */
	memset(q35->lpc + PIRQ_A, PIRQ_NOWHERE, 4);
	memset(q35->lpc + PIRQ_E, PIRQ_NOWHERE, 4);
}
