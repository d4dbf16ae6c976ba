/*
 * Where things lie in the guest's physical address space, in one place.
 *
 *	00000000  real-mode interrupt vectors, all of them to 500
 *	00000400  BIOS data area: two words of it, for kernels that look
 *	00000500  what answers calls of the BIOS: there is none
 *	00001000  GDT
 *	00002000  boot records: start_info or multiboot information, with their lists and strings
 *	00007000  zero page (Linux boot_params)
 *	00008000  stack of the first instructions
 *	00009000  page tables: identity map of the first 4 GiB in 2 MiB pages
 *	00020000  command line
 *	0009fc00  EBDA (reserved); 000a0000 the VGA hole
 *	000e0000  ACPI tables (reserved), up to 1 MiB
 *	00100000  kernel (1 MiB or where it asks to be), initrds as high as the kernel allows
 *	c0000000  no RAM from here to 4 GiB: PCI windows, ECAM, I/O APIC, HPET, local APIC
 *	1'00000000  the rest of RAM
 *
 * The machine backs [0, min(RAM, 3 GiB)) with one region of RAM, the hole at a0000 included: what lies
 * there is RAM that the memory map calls reserved. With firmware (boot/firmware.h) all this is the firmware's
 * business: RAM below 4 GiB ends at 80000000, there is none from a0000 to c0000, and the firmware's image ends at 4 GiB.
 */
#ifndef LODGE_BOOT_LAYOUT_H
#define LODGE_BOOT_LAYOUT_H

#include "base/types.h"
#include "base/util.h"

#define BOOT_IVT_BYTES	      0x400u
#define BOOT_BDA_GPA	      0x400ull
#define BOOT_NO_BIOS_GPA      0x500ull
#define BOOT_GDT_GPA	      0x1000ull
#define BOOT_RECORDS_GPA      0x2000ull
#define BOOT_RECORDS_BYTES    0x5000ull
#define BOOT_ZERO_PAGE_GPA    0x7000ull
#define BOOT_STACK_TOP_GPA    0x9000ull
#define BOOT_PAGE_TABLES_GPA  0x9000ull
#define BOOT_CMDLINE_GPA      0x20000ull
#define BOOT_CMDLINE_BYTES    0x10000ull
#define BOOT_LOW_END_GPA      (BOOT_CMDLINE_GPA + BOOT_CMDLINE_BYTES) /* all above is the loader's */
#define BOOT_EBDA_GPA	      0x9fc00ull
#define BOOT_VGA_GPA	      0xa0000ull
#define BOOT_VGA_END_GPA      0xc0000ull
#define BOOT_ACPI_GPA	      0xe0000ull
#define BOOT_ACPI_BYTES	      0x20000ull
#define BOOT_HIGH_GPA	      0x100000ull /* 1 MiB */
#define BOOT_KERNEL_GPA	      0x1000000ull /* 16 MiB: where Linux asks to be */
#define BOOT_HOLE_GPA	      0xc0000000ull
#define BOOT_HOLE_END_GPA     0x100000000ull
#define BOOT_PCI_WINDOW_GPA   0xc0000000ull
#define BOOT_PCI_WINDOW_BYTES 0x20000000ull
#define BOOT_ECAM_GPA	      0xe0000000ull
#define BOOT_ECAM_BYTES	      0x10000000ull
#define BOOT_VIRTIO_MMIO_GPA  0xf0000000ull
#define BOOT_VGA_MEMORY_GPA   0xde000000ull /* the window's top; firmware chooses by itself */
#define BOOT_VGA_REGISTERS_GPA 0xdf000000ull
#define BOOT_WATCHDOG_GPA     0xdffff000ull
#define BOOT_IOAPIC_GPA	      0xfec00000ull
#define BOOT_HPET_GPA	      0xfed00000ull
#define BOOT_LAPIC_GPA	      0xfee00000ull

/* How much of ram_bytes lies below the hole, and how much from 4 GiB on. */
static inline uint64_t boot_ram_low_bytes(uint64_t ram_bytes)
{
	return MIN(ram_bytes, BOOT_HOLE_GPA);
}

/*
 * Which of four lines pin (0 = A) of a PCI device on bus 0 is wired to. Slots rotate, so that devices share little; the
 * chip set's own, from 25 on, do not (ICH9 data sheet, 10.1.45: the defaults of D25IR to D31IR), which firmware knows.
 */
static inline unsigned boot_pci_line(unsigned slot, unsigned pin)
{
	return (slot < 25 ? slot + pin : pin) & 3;
}

static inline uint64_t boot_ram_high_bytes(uint64_t ram_bytes)
{
	return ram_bytes - boot_ram_low_bytes(ram_bytes);
}

#endif
