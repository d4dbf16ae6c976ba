/*
 * The VGA's registers and memory: see vga.h. vga_draw.c shows it.
 */
#include "device/display/vga_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"

#define WINDOW_BASE  0xa0000u
#define WINDOW_BYTES 0x20000u
#define PORT_BASE    0x3b0u
#define PORTS	     0x30u
#define DISPI_PORT   0x1ceu
#define DISPI_PORTS  3 /* data is at 0x1cf, and at 0x1d0 for who wants it aligned */
#define DISPI_VERSION 0xb0c5u
#define BAR_MEMORY   0
#define BAR_REGISTERS 2
#define REGISTERS_BYTES 0x1000u
#define REGISTERS_VGA	0x400u
#define REGISTERS_DISPI 0x500u

/* ---- the window's write and read modes (IBM VGA, "Graphics Controller") ---- */

/* Offset into the planes' 64 KiB for an address in the window, or -1. */
static int64_t window_offset(const struct vga *vga, uint32_t at)
{
	static const struct {
		uint32_t base, bytes;
	} maps[4] = {{0, 0x20000}, {0, 0x10000}, {0x10000, 0x8000}, {0x18000, 0x8000}};
	const unsigned map = vga->gfx[6] >> 2 & 3;

	if (at < maps[map].base || at - maps[map].base >= maps[map].bytes)
		return -1;
	return at - maps[map].base;
}

static uint64_t bank(const struct vga *vga)
{
	return vga_is_linear(vga) ? (uint64_t)vga->dispi[DISPI_BANK] << 16 : 0;
}

static uint8_t *byte_at(const struct vga *vga, uint64_t offset)
{
	return &vga->memory[offset & (VGA_MEMORY_BYTES - 1)];
}

static uint8_t rotate(uint8_t value, unsigned count)
{
	return (uint8_t)(value >> count | value << (8 - count));
}

static uint8_t combine(const struct vga *vga, uint8_t value, uint8_t latch)
{
	switch (vga->gfx[3] >> 3 & 3) {
	case 1: return value & latch;
	case 2: return value | latch;
	case 3: return value ^ latch;
	default: return value;
	}
}

/* What write mode `mode` puts into a plane. */
static uint8_t plane_value(const struct vga *vga, unsigned mode, unsigned plane, uint8_t value)
{
	const bool set = vga->gfx[0] >> plane & 1, enable = vga->gfx[1] >> plane & 1;
	const uint8_t turned = rotate(value, vga->gfx[3] & 7), latch = vga->latch[plane];
	uint8_t mask = vga->gfx[8], data;

	switch (mode) {
	case 1: return latch;
	case 2: data = combine(vga, value >> plane & 1 ? 0xff : 0, latch); break;
	case 3:
		mask &= turned;
		data = set ? 0xff : 0;
		break;
	default: data = combine(vga, enable ? (set ? 0xff : 0) : turned, latch); break;
	}
	return (uint8_t)((data & mask) | (latch & ~mask));
}

static void window_write_byte(struct vga *vga, uint32_t at, uint8_t value)
{
	const int64_t offset = window_offset(vga, at);
	const uint8_t planes = vga->seq[2];

	if (offset < 0)
		return;
	if ((vga->seq[4] & 8) || vga_is_linear(vga)) { /* chain 4: the address's low bits choose the plane */
		if (vga_is_linear(vga) || (planes >> (offset & 3) & 1))
			*byte_at(vga, bank(vga) + (uint64_t)offset) = value;
		return;
	}
	if (!(vga->seq[4] & 4)) { /* odd/even: bit 0 does */
		if (planes >> (offset & 1) & 1)
			*byte_at(vga, ((uint64_t)offset & ~1ull) << 1 | (offset & 1)) = value;
		return;
	}
	for (unsigned plane = 0; plane < 4; plane++)
		if (planes >> plane & 1)
			*byte_at(vga, 4 * (uint64_t)offset + plane) =
				plane_value(vga, vga->gfx[5] & 3, plane, value);
}

/* Read mode 1: which pixels have the colour, in the planes that count. */
static uint8_t compare(const struct vga *vga)
{
	uint8_t differs = 0;

	for (unsigned plane = 0; plane < 4; plane++)
		if (vga->gfx[7] >> plane & 1)
			differs |= vga->latch[plane] ^ (vga->gfx[2] >> plane & 1 ? 0xff : 0);
	return (uint8_t)~differs;
}

static uint8_t window_read_byte(struct vga *vga, uint32_t at)
{
	const int64_t offset = window_offset(vga, at);

	if (offset < 0)
		return 0xff;
	if ((vga->seq[4] & 8) || vga_is_linear(vga))
		return *byte_at(vga, bank(vga) + (uint64_t)offset);
	if (vga->gfx[5] & 0x10) /* odd/even */
		return *byte_at(vga, ((uint64_t)offset & ~1ull) << 1 | (offset & 1));
	for (unsigned plane = 0; plane < 4; plane++)
		vga->latch[plane] = *byte_at(vga, 4 * (uint64_t)offset + plane);
	return vga->gfx[5] & 8 ? compare(vga) : vga->latch[vga->gfx[4] & 3];
}

static uint64_t window_read(void *device, uint64_t offset, unsigned size_bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size_bytes; i++)
		value |= (uint64_t)window_read_byte(device, (uint32_t)offset + i) << 8 * i;
	return value;
}

static void window_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	for (unsigned i = 0; i < size_bytes; i++)
		window_write_byte(device, (uint32_t)offset + i, (uint8_t)(value >> 8 * i));
}

static uint64_t linear_read(void *device, uint64_t offset, unsigned size_bytes)
{
	const struct vga *vga = device;
	uint64_t value = 0;

	if (offset + size_bytes <= VGA_MEMORY_BYTES)
		memcpy(&value, vga->memory + offset, size_bytes);
	return le64toh(value);
}

static void linear_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	const struct vga *vga = device;

	value = htole64(value);
	if (offset + size_bytes <= VGA_MEMORY_BYTES)
		memcpy(vga->memory + offset, &value, size_bytes);
}

/* ---- DISPI ---- */

unsigned vga_pixel_bits(const struct vga *vga)
{
	return vga->dispi[DISPI_BPP] == 15 ? 16 : vga->dispi[DISPI_BPP];
}

static uint16_t dispi_read(const struct vga *vga, unsigned index)
{
	if (index == DISPI_MEMORY_64K)
		return VGA_MEMORY_BYTES >> 16;
	if (!(vga->dispi[DISPI_ENABLE] & DISPI_GET_MOST))
		return index < DISPI_COUNT ? vga->dispi[index] : 0;
	switch (index) {
	case DISPI_XRES: return DISPI_X_MOST;
	case DISPI_YRES: return DISPI_Y_MOST;
	case DISPI_BPP: return 32;
	default: return index < DISPI_COUNT ? vga->dispi[index] : 0;
	}
}

/* Keep within the memory what the guest may have asked for beyond it. */
static void dispi_fit(struct vga *vga)
{
	uint16_t *r = vga->dispi;
	const unsigned bits = vga_pixel_bits(vga) ? vga_pixel_bits(vga) : 8;
	uint64_t line;

	if (r[DISPI_VIRT_WIDTH] < r[DISPI_XRES])
		r[DISPI_VIRT_WIDTH] = r[DISPI_XRES];
	line = (uint64_t)r[DISPI_VIRT_WIDTH] * bits / 8;
	r[DISPI_VIRT_HEIGHT] = line ? (uint16_t)MIN(VGA_MEMORY_BYTES / line, (uint64_t)UINT16_MAX) : 0;
}

static void dispi_enable(struct vga *vga, uint16_t value)
{
	uint16_t *r = vga->dispi;
	const bool on = value & DISPI_ENABLED, was_on = vga_is_linear(vga);

	r[DISPI_ENABLE] = value;
	r[DISPI_BANK] = 0;
	if (!on || was_on)
		return;
	r[DISPI_VIRT_WIDTH] = r[DISPI_XRES];
	r[DISPI_X_OFFSET] = r[DISPI_Y_OFFSET] = 0;
	dispi_fit(vga);
	if (!(value & DISPI_KEEP))
		memset(vga->memory, 0, MIN((uint64_t)r[DISPI_VIRT_WIDTH] * vga_pixel_bits(vga) / 8 * r[DISPI_YRES],
					       VGA_MEMORY_BYTES));
}

static bool dispi_allows(const struct vga *vga, unsigned index, uint16_t value)
{
	switch (index) {
	case DISPI_ID: return value >= 0xb0c0 && value <= DISPI_VERSION;
	case DISPI_XRES: return value && value <= DISPI_X_MOST && value % 8 == 0 && !vga_is_linear(vga);
	case DISPI_YRES: return value && value <= DISPI_Y_MOST && !vga_is_linear(vga);
	case DISPI_BPP:
		return !vga_is_linear(vga) && (value == 8 || value == 15 || value == 16 || value == 24 || value == 32);
	case DISPI_BANK: return value < VGA_MEMORY_BYTES >> 16;
	case DISPI_VIRT_WIDTH: return value <= 2 * DISPI_X_MOST;
	case DISPI_X_OFFSET:
	case DISPI_Y_OFFSET: return true;
	default: return false;
	}
}

static void dispi_write(struct vga *vga, unsigned index, uint16_t value)
{
	if (index == DISPI_ENABLE) {
		dispi_enable(vga, value);
		return;
	}
	if (index >= DISPI_COUNT || !dispi_allows(vga, index, value))
		return;
	vga->dispi[index] = value;
	if (index == DISPI_VIRT_WIDTH)
		dispi_fit(vga);
}

static uint64_t dispi_port_read(void *device, uint64_t offset, unsigned size_bytes)
{
	struct vga *vga = device;

	return offset == 0 ? vga->dispi_index : dispi_read(vga, vga->dispi_index);
}

static void dispi_port_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct vga *vga = device;

	if (size_bytes == 1)
		return;
	if (offset == 0)
		vga->dispi_index = (uint16_t)value;
	else
		dispi_write(vga, vga->dispi_index, (uint16_t)value);
}

/* ---- the VGA's ports ---- */

static bool is_colour(const struct vga *vga)
{
	return vga->misc & 1;
}

/* Alternates between drawing and retrace, so that who waits for either sees it. */
static uint8_t input_status(struct vga *vga)
{
	vga->attr_data = false;
	return vga->looks++ & 1 ? 0x09 : 0x00;
}

static void dac_write_byte(struct vga *vga, uint8_t value)
{
	vga->dac[vga->dac_write] = value;
	vga->dac_write = (vga->dac_write + 1) % sizeof(vga->dac);
}

static uint8_t dac_read_byte(struct vga *vga)
{
	const uint8_t value = vga->dac[vga->dac_read];

	vga->dac_read = (vga->dac_read + 1) % sizeof(vga->dac);
	return value;
}

static void attr_write(struct vga *vga, uint8_t value)
{
	const unsigned index = vga->attr_index & 0x1f;

	vga->attr_data = !vga->attr_data;
	if (vga->attr_data)
		vga->attr_index = value & 0x3f;
	else if (index < ATTR_COUNT)
		vga->attr[index] = index < 16 ? value & 0x3f : value;
}

static void crtc_write(struct vga *vga, uint8_t value)
{
	const unsigned index = vga->crtc_index;

	if (index >= CRTC_COUNT)
		return;
	if (index <= 7 && (vga->crtc[17] & 0x80)) { /* protected, but for one bit */
		if (index == 7)
			vga->crtc[7] = (uint8_t)((vga->crtc[7] & ~0x10) | (value & 0x10));
		return;
	}
	vga->crtc[index] = value;
}

static uint8_t port_read_byte(struct vga *vga, unsigned port)
{
	if ((port >= 0x3b0 && port <= 0x3bb && is_colour(vga)) || (port >= 0x3d0 && !is_colour(vga)))
		return 0xff;
	switch (port) {
	case 0x3c0: return vga->attr_index;
	case 0x3c1: return (vga->attr_index & 0x1f) < ATTR_COUNT ? vga->attr[vga->attr_index & 0x1f] : 0;
	case 0x3c2: return 0x10; /* a colour monitor */
	case 0x3c4: return vga->seq_index;
	case 0x3c5: return vga->seq_index < SEQ_COUNT ? vga->seq[vga->seq_index] : 0;
	case 0x3c6: return vga->dac_mask;
	case 0x3c7: return vga->dac_reading ? 3 : 0;
	case 0x3c8: return (uint8_t)(vga->dac_write / 3);
	case 0x3c9: return dac_read_byte(vga);
	case 0x3ca: return vga->feature;
	case 0x3cc: return vga->misc;
	case 0x3ce: return vga->gfx_index;
	case 0x3cf: return vga->gfx_index < GFX_COUNT ? vga->gfx[vga->gfx_index] : 0;
	case 0x3b4:
	case 0x3d4: return vga->crtc_index;
	case 0x3b5:
	case 0x3d5: return vga->crtc_index < CRTC_COUNT ? vga->crtc[vga->crtc_index] : 0;
	case 0x3ba:
	case 0x3da: return input_status(vga);
	default: return 0xff;
	}
}

static void port_write_byte(struct vga *vga, unsigned port, uint8_t value)
{
	static const uint8_t seq_mask[SEQ_COUNT] = {0x03, 0x3d, 0x0f, 0x3f, 0x0e};
	static const uint8_t gfx_mask[GFX_COUNT] = {0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff};

	if ((port >= 0x3b0 && port <= 0x3bb && is_colour(vga)) || (port >= 0x3d0 && !is_colour(vga)))
		return;
	switch (port) {
	case 0x3c0: attr_write(vga, value); break;
	case 0x3c2: vga->misc = value & (uint8_t)~0x10; break;
	case 0x3c4: vga->seq_index = value & 7; break;
	case 0x3c5:
		if (vga->seq_index < SEQ_COUNT)
			vga->seq[vga->seq_index] = value & seq_mask[vga->seq_index];
		break;
	case 0x3c6: vga->dac_mask = value; break;
	case 0x3c7:
		vga->dac_read = 3u * value;
		vga->dac_reading = true;
		break;
	case 0x3c8:
		vga->dac_write = 3u * value;
		vga->dac_reading = false;
		break;
	case 0x3c9: dac_write_byte(vga, value); break;
	case 0x3ce: vga->gfx_index = value & 15; break;
	case 0x3cf:
		if (vga->gfx_index < GFX_COUNT)
			vga->gfx[vga->gfx_index] = value & gfx_mask[vga->gfx_index];
		break;
	case 0x3b4:
	case 0x3d4: vga->crtc_index = value; break;
	case 0x3b5:
	case 0x3d5: crtc_write(vga, value); break;
	case 0x3ba:
	case 0x3da: vga->feature = value & 0x10; break;
	default: break;
	}
}

static uint64_t port_read(void *device, uint64_t offset, unsigned size_bytes)
{
	return port_read_byte(device, PORT_BASE + (unsigned)offset);
}

static void port_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	port_write_byte(device, PORT_BASE + (unsigned)offset, (uint8_t)value);
}

/* ---- BAR 2 ---- */

static uint64_t registers_read(void *device, uint64_t offset, unsigned size_bytes)
{
	struct vga *vga = device;

	if (offset >= REGISTERS_DISPI && offset < REGISTERS_DISPI + 2 * DISPI_COUNT)
		return dispi_read(vga, (unsigned)(offset - REGISTERS_DISPI) / 2);
	if (offset >= REGISTERS_VGA && offset < REGISTERS_VGA + 0x20) {
		uint64_t value = port_read_byte(vga, 0x3c0 + (unsigned)(offset - REGISTERS_VGA));

		return size_bytes == 1 ? value
				       : value | (uint64_t)port_read_byte(vga, 0x3c1 + (unsigned)(offset - REGISTERS_VGA))
							 << 8;
	}
	return 0;
}

static void registers_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct vga *vga = device;

	if (offset >= REGISTERS_DISPI && offset < REGISTERS_DISPI + 2 * DISPI_COUNT) {
		if (size_bytes == 2)
			dispi_write(vga, (unsigned)(offset - REGISTERS_DISPI) / 2, (uint16_t)value);
	} else if (offset >= REGISTERS_VGA && offset < REGISTERS_VGA + 0x20) {
		for (unsigned i = 0; i < size_bytes; i++)
			port_write_byte(vga, 0x3c0 + (unsigned)(offset - REGISTERS_VGA) + i, (uint8_t)(value >> 8 * i));
	}
}

/* ---- life ---- */

static const struct bus_ops window_ops = {.read = window_read, .write = window_write};
static const struct bus_ops port_ops = {.read = port_read, .write = port_write, .access_max_bytes = 1};
static const struct bus_ops dispi_ops = {.read = dispi_port_read, .write = dispi_port_write};
static const struct bus_ops linear_ops = {.read = linear_read, .write = linear_write};
static const struct bus_ops registers_ops = {
	.read = registers_read, .write = registers_write, .access_max_bytes = 2};

/* The ranges at legacy addresses, which are always there. */
static const struct {
	enum bus_space space;
	uint32_t base, bytes;
	const struct bus_ops *ops;
} legacy[] = {
	{BUS_MMIO, WINDOW_BASE, WINDOW_BYTES, &window_ops},
	{BUS_PIO, PORT_BASE, PORTS, &port_ops},
	{BUS_PIO, DISPI_PORT, DISPI_PORTS, &dispi_ops},
};

static int attach(struct vga *vga)
{
	for (; vga->ranges < ARRAY_SIZE(legacy); vga->ranges++) {
		int status = bus_add(vga->bus, legacy[vga->ranges].space, legacy[vga->ranges].base,
			legacy[vga->ranges].bytes, "vga", legacy[vga->ranges].ops, vga, &vga->lock);

		if (status < 0)
			return status;
	}
	return 0;
}

static int add_function(struct vga *vga, struct pci_host *host, unsigned devfn)
{
	const struct pci_device_config config = {.name = "vga",
		.vendor = 0x1234,
		.device = 0x1111,
		.subsystem_vendor = 0x1af4,
		.subsystem = 0x1100,
		.class_code = 0x030000,
		.revision = 2,
		.bus = vga->bus,
		.lock = &vga->lock};
	int status = pci_device_create(&config, &vga->pci);

	if (status == 0)
		status = pci_device_add_bar(
			vga->pci, BAR_MEMORY, PCI_BAR_MEM32, true, VGA_MEMORY_BYTES, &linear_ops, vga);
	if (status == 0)
		status = pci_device_add_bar(
			vga->pci, BAR_REGISTERS, PCI_BAR_MEM32, false, REGISTERS_BYTES, &registers_ops, vga);
	return status < 0 ? status : pci_device_plug(vga->pci, host, devfn);
}

int vga_create(struct bus *bus, struct pci_host *host, unsigned devfn, struct vga **ret_vga)
{
	struct vga *vga = calloc(1, sizeof(*vga));
	int status;

	if (!vga)
		return -ENOMEM;
	pthread_mutex_init(&vga->lock, NULL);
	vga->bus = bus;
	vga->dac_mask = 0xff;
	vga->dispi[DISPI_ID] = DISPI_VERSION;
	vga->dispi[DISPI_BPP] = 8;
	vga->memory = calloc(1, VGA_MEMORY_BYTES);
	status = vga->memory ? attach(vga) : -ENOMEM;
	if (status == 0)
		status = add_function(vga, host, devfn);
	if (status < 0) {
		vga_free(vga);
		return status;
	}
	*ret_vga = vga;
	return 0;
}

void vga_assign(struct vga *vga, gpa_t memory, gpa_t registers)
{
	pci_device_assign(vga->pci, BAR_MEMORY, memory);
	pci_device_assign(vga->pci, BAR_REGISTERS, registers);
}

void vga_free(struct vga *vga)
{
	if (!vga)
		return;
	pci_device_free(vga->pci);
	for (unsigned i = 0; i < vga->ranges; i++)
		bus_remove(vga->bus, legacy[i].space, legacy[i].base);
	pthread_mutex_destroy(&vga->lock);
	free(vga->memory);
	free(vga);
}
