/*
 * Firmware in place of a kernel: its image is read-only memory that ends at 4 GiB, with a copy of its last 128 KiB below
 * 1 MiB, and the boot processor starts at its reset vector, as after power-on (SDM 3, 10.1.4).
 *
 * Also what it is told through fw_cfg: the memory map, and the ACPI tables with the script by which it moves them
 * (QEMU's docs/specs/fw_cfg; SeaBIOS's romfile_loader).
 */
#ifndef LODGE_BOOT_FIRMWARE_H
#define LODGE_BOOT_FIRMWARE_H

#include "boot/acpi.h"
#include "boot/file.h"

#define FIRMWARE_MAX_BYTES MIB(16)
#define FIRMWARE_RAM_LOW   0x80000000ull /* RAM below 4 GiB ends here: what both programs expect */
#define FIRMWARE_PHYS_BITS 39u		  /* of address, unless memory needs more */
#define FIRMWARE_MAP_ENTRY 20u		  /* bytes of an entry of the memory map */
#define FIRMWARE_SCRIPT_ENTRY 128u

/* Debian's package seabios */
#define FIRMWARE_VGA_ROM "/usr/share/seabios/vgabios-stdvga.bin"

#define FIRMWARE_FILE_RSDP   "etc/acpi/rsdp"
#define FIRMWARE_FILE_TABLES "etc/acpi/tables"
#define FIRMWARE_FILE_SCRIPT "etc/table-loader"
#define FIRMWARE_FILE_MAP    "etc/e820"

struct error;
struct guest_memory;

/* "bios" and "uefi" are where Debian's packages seabios and ovmf put them; anything else is a file's name. */
const char *firmware_path(const char *name);

/* The variables that "uefi" starts with, in Debian's package ovmf; NULL: what this firmware keeps is not known. */
const char *firmware_variables(const char *name);

/* Adds the read-only region and fills the copy. *ret_base is where the image begins. Errors: with a line for people. */
MUST_CHECK int firmware_load(struct guest_memory *memory, const struct boot_file *file,
	gpa_t *ret_base, struct error *err);

/* The entries of the memory map: RAM only. Returns its bytes, 0 if there is no room. */
uint32_t firmware_map(const struct guest_memory *memory, uint8_t *bytes, uint32_t room_bytes);

/* Enough for any script of acpi_relocations. */
#define FIRMWARE_SCRIPT_BYTES (FIRMWARE_SCRIPT_ENTRY * (2 + 1 + ACPI_POINTERS_MAX + ACPI_SUMS_MAX + 2))
/* The script for tables as acpi_build_movable() made them; the RSDP is a file of its own. Returns its bytes. */
uint32_t firmware_script(const struct acpi_relocations *relocations, uint8_t bytes[FIRMWARE_SCRIPT_BYTES]);

#endif
