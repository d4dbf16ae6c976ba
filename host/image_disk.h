/*
 * The disk around a root file system: a partition table (GPT), and what firmware starts from it.
 *
 *	partition 1	BIOS boot: GRUB's core image, started by the code in the first sector
 *	partition 2	EFI system partition (FAT16): /EFI/BOOT/BOOTX64.EFI
 *	partition 3	the root file system, last so that it can grow with the disk
 */
#ifndef LODGE_HOST_IMAGE_DISK_H
#define LODGE_HOST_IMAGE_DISK_H

#include "base/util.h"

#include <stddef.h>
#include <stdint.h>

struct error;

#define IMAGE_ROOT_OFFSET  MIB(34)  /* of partition 3 */
#define IMAGE_DISK_TAIL	   MIB(1)   /* behind it: the table's copy */
#define IMAGE_DISK_MIN	   MIB(128)
#define IMAGE_GUID_TEXT	   37

struct image_disk {
	uint64_t size_bytes; /* a multiple of 1 MiB */
	char disk_guid[IMAGE_GUID_TEXT], bios_guid[IMAGE_GUID_TEXT], esp_guid[IMAGE_GUID_TEXT];
	char root_guid[IMAGE_GUID_TEXT];
};

/* What GRUB is installed from; NULL or 0: not. */
struct image_loader {
	const uint8_t *boot, *core, *efi;
	size_t boot_bytes, core_bytes, efi_bytes;
};

/* A random GUID (RFC 9562, version 4). Errors: what getrandom() says. */
MUST_CHECK int image_guid(char text[IMAGE_GUID_TEXT], struct error *err);

/* Size, and GUIDs of its own. */
MUST_CHECK int image_disk_init(struct image_disk *disk, uint64_t size_bytes, struct error *err);
/* Write tables and loaders to the file, which has that size already. */
MUST_CHECK int image_disk_write(int fd, const struct image_disk *disk, const struct image_loader *loader,
	struct error *err);

/* image_esp.c: a FAT16 file system with \EFI\BOOT\BOOTX64.EFI, in bytes offset..offset+size, which are zero. */
MUST_CHECK int image_esp_write(int fd, uint64_t offset, uint64_t size_bytes, const uint8_t *efi, size_t efi_bytes,
	struct error *err);

/* All of it, at that place. */
MUST_CHECK int image_pwrite(int fd, const void *bytes, size_t size, uint64_t offset, struct error *err);

#endif
