/*
 * A VGA with the Bochs extension (VBE DISPI): text, planar and 256-colour modes at the legacy addresses, and linear frame
 * buffers of 8 to 32 bits a pixel, as a PCI function 1234:1111. Sources: IBM VGA Technical Reference (registers), QEMU's
 * docs/specs/standard-vga (function and BARs), Bochs's VBE_DISPI interface.
 *
 *	ports 0x3b0-0x3df	VGA; 0x1ce, 0x1cf (0x1d0) the DISPI's index and data
 *	0xa0000-0xbffff		window, through the VGA's write and read modes
 *	BAR 0			video memory, linear
 *	BAR 2			0x400: ports 0x3c0-0x3df; 0x500: DISPI registers, 16 bits each
 *
 * Left out: timing (a retrace is seen at every second look), panning by less than a character, split screen, CGA's modes
 * of 4 colours, EDID.
 *
 * The guest's accesses go through the bus one by one; nothing of video memory is mapped into the guest.
 */
#ifndef LODGE_DEVICE_DISPLAY_VGA_H
#define LODGE_DEVICE_DISPLAY_VGA_H

#include "device/bus.h"
#include "device/display/picture.h"
#include "device/pci/host.h"

#define VGA_MEMORY_BYTES MIB(16)

struct vga;

/* Plugs it into the host bridge. Errors: -ENOMEM, as bus_add() and pci_device_plug(). */
MUST_CHECK int vga_create(
	struct bus *bus, struct pci_host *host, unsigned devfn, struct vga **ret_vga);
/* As firmware does: where its memory and its registers are. Before the guest runs. */
void vga_assign(struct vga *vga, gpa_t memory, gpa_t registers);
/* NULL is allowed. */
void vga_free(struct vga *vga);
/* What it shows now. Any thread. Errors: -ENOMEM. */
MUST_CHECK int vga_draw(struct vga *vga, struct picture *to);

#endif
