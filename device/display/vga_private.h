/*
 * The VGA's registers and memory, for vga.c and vga_draw.c.
 */
#ifndef LODGE_DEVICE_DISPLAY_VGA_PRIVATE_H
#define LODGE_DEVICE_DISPLAY_VGA_PRIVATE_H

#include "device/display/vga.h"
#include "device/pci/device.h"

#define SEQ_COUNT   5
#define GFX_COUNT   9
#define CRTC_COUNT  25
#define ATTR_COUNT  21
#define DISPI_COUNT 11

enum dispi {
	DISPI_ID,
	DISPI_XRES,
	DISPI_YRES,
	DISPI_BPP,
	DISPI_ENABLE,
	DISPI_BANK,
	DISPI_VIRT_WIDTH,
	DISPI_VIRT_HEIGHT,
	DISPI_X_OFFSET,
	DISPI_Y_OFFSET,
	DISPI_MEMORY_64K,
};

#define DISPI_ENABLED	0x01
#define DISPI_GET_MOST	0x02
#define DISPI_DAC_8BIT	0x20
#define DISPI_KEEP	0x80
#define DISPI_X_MOST	4096u
#define DISPI_Y_MOST	4096u

/*
 * memory: planes are interleaved, byte p of each four is plane p's; so the byte of a plane at offset o is
 * memory[4 * o + p], and a linear frame buffer is just the bytes.
 */
struct vga {
	pthread_mutex_t lock;
	struct bus *bus;
	struct pci_device *pci;
	uint8_t *memory;
	unsigned ranges; /* of the legacy ranges, how many are on the bus */
	uint8_t misc, feature;
	uint8_t seq_index, seq[SEQ_COUNT];
	uint8_t gfx_index, gfx[GFX_COUNT];
	uint8_t crtc_index, crtc[CRTC_COUNT];
	uint8_t attr_index, attr[ATTR_COUNT];
	bool attr_data; /* the next write to 0x3c0 is data */
	uint8_t latch[4];
	uint8_t dac[768], dac_mask;
	unsigned dac_read, dac_write; /* positions in dac */
	bool dac_reading;
	uint16_t dispi_index, dispi[DISPI_COUNT];
	uint32_t looks; /* at the retrace */
};

static inline bool vga_is_linear(const struct vga *vga)
{
	return vga->dispi[DISPI_ENABLE] & DISPI_ENABLED;
}

/* Bytes of a line of the linear frame buffer, and its bits a pixel as they lie in memory. */
unsigned vga_pixel_bits(const struct vga *vga);

#endif
