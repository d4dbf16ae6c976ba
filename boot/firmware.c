/*
 * Firmware: see the header.
 */
#include "boot/firmware.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "memory/memory.h"

#define COPY_BYTES KIB(128)
#define COPY_END   0x100000u

#define SCRIPT_ALLOCATE 1
#define SCRIPT_POINTER	2
#define SCRIPT_CHECKSUM 3
#define SCRIPT_NAME	56
#define ZONE_HIGH	1
#define ZONE_FSEG	2 /* 0xf0000 to 1 MiB, where an RSDP is looked for */

const char *firmware_path(const char *name)
{
	if (strcmp(name, "bios") == 0)
		return "/usr/share/seabios/bios-256k.bin";
	return strcmp(name, "uefi") == 0 ? "/usr/share/OVMF/OVMF_CODE_4M.fd" : name;
}

const char *firmware_variables(const char *name)
{
	return strcmp(name, "uefi") == 0 ? "/usr/share/OVMF/OVMF_VARS_4M.fd" : NULL;
}

static int place(struct guest_memory *memory, const struct boot_image *image, gpa_t *ret_base,
	struct error *err)
{
	const uint64_t copy = MIN(image->size_bytes, (uint64_t)COPY_BYTES);
	const gpa_t base = BOOT_HOLE_END_GPA - image->size_bytes;
	int status;

	if (image->size_bytes % GUEST_PAGE_SIZE)
		return error_set(err, EINVAL, "%s is no firmware image: its %" PRIu64 " bytes are no multiple of 4 KiB",
			image->name, image->size_bytes);
	status = memory_add_ram(memory, base, image->size_bytes, MEMORY_READONLY, "firmware", err);
	if (status < 0)
		return status;
	/* Read-only is what it is to the guest. */
	const struct memory_region *region = memory_find(memory, base);
	memcpy(region->host, image->bytes, image->size_bytes);
	*ret_base = base;
	status = memory_write(
		memory, COPY_END - copy, image->bytes + image->size_bytes - copy, copy);
	return status < 0 ? error_set(err, -status, "no RAM for firmware below 1 MiB") : 0;
}

int firmware_load(struct guest_memory *memory, const struct boot_file *file, gpa_t *ret_base,
	struct error *err)
{
	struct boot_image image;
	int status = boot_image_read(&image, file, FIRMWARE_MAX_BYTES, err);

	if (status < 0)
		return status;
	status = place(memory, &image, ret_base, err);
	boot_image_done(&image);
	return status;
}

uint32_t firmware_map(const struct guest_memory *memory, uint8_t *bytes, uint32_t room_bytes)
{
	uint32_t used = 0;

	for (unsigned i = 0; i < memory->region_count; i++) {
		const struct memory_region *region = &memory->region[i];
		uint64_t base = region->base, size = region->size_bytes;

		if (region->flags & MEMORY_READONLY)
			continue;
		if (room_bytes - used < FIRMWARE_MAP_ENTRY)
			return 0;
		/* All below 1 MiB is one entry: firmware takes out what it knows to be none. */
		if (i == 0 && memory->region_count > 1 && memory->region[1].base == 0xc0000) {
			size = memory->region[1].base + memory->region[1].size_bytes;
			i++;
		}
		store_le64(bytes + used, base);
		store_le64(bytes + used + 8, size);
		store_le32(bytes + used + 16, 1);
		used += FIRMWARE_MAP_ENTRY;
	}
	return used;
}

static uint8_t *script_entry(uint8_t *bytes, uint32_t *used, uint32_t command, const char *file)
{
	uint8_t *entry = bytes + *used;

	*used += FIRMWARE_SCRIPT_ENTRY;
	memset(entry, 0, FIRMWARE_SCRIPT_ENTRY);
	store_le32(entry, command);
	strncpy((char *)entry + 4, file, SCRIPT_NAME - 1);
	return entry + 4 + SCRIPT_NAME;
}

static void script_allocate(uint8_t *bytes, uint32_t *used, const char *file, uint32_t align, uint8_t zone)
{
	uint8_t *rest = script_entry(bytes, used, SCRIPT_ALLOCATE, file);

	store_le32(rest, align);
	rest[4] = zone;
}

static void script_pointer(
	uint8_t *bytes, uint32_t *used, const char *file, uint32_t offset, uint8_t size_bytes)
{
	uint8_t *rest = script_entry(bytes, used, SCRIPT_POINTER, file);

	strncpy((char *)rest, FIRMWARE_FILE_TABLES, SCRIPT_NAME - 1);
	store_le32(rest + SCRIPT_NAME, offset);
	rest[SCRIPT_NAME + 4] = size_bytes;
}

static void script_sum(uint8_t *bytes, uint32_t *used, const char *file, uint32_t at, uint32_t start, uint32_t count)
{
	uint8_t *rest = script_entry(bytes, used, SCRIPT_CHECKSUM, file);

	store_le32(rest, at);
	store_le32(rest + 4, start);
	store_le32(rest + 8, count);
}

uint32_t firmware_script(const struct acpi_relocations *r, uint8_t bytes[FIRMWARE_SCRIPT_BYTES])
{
	uint32_t used = 0;

	script_allocate(bytes, &used, FIRMWARE_FILE_TABLES, 64, ZONE_HIGH);
	script_allocate(bytes, &used, FIRMWARE_FILE_RSDP, 16, ZONE_FSEG);
	for (unsigned i = 0; i < r->pointer_count; i++)
		script_pointer(bytes, &used, FIRMWARE_FILE_TABLES, r->pointer[i].offset, r->pointer[i].size_bytes);
	for (unsigned i = 0; i < r->sum_count; i++)
		script_sum(bytes, &used, FIRMWARE_FILE_TABLES, r->sum[i].offset + 9, r->sum[i].offset,
			r->sum[i].size_bytes);
	script_pointer(bytes, &used, FIRMWARE_FILE_RSDP, 24, 8);
	script_sum(bytes, &used, FIRMWARE_FILE_RSDP, 8, 0, 20);
	script_sum(bytes, &used, FIRMWARE_FILE_RSDP, 32, 0, ACPI_RSDP_BYTES);
	return used;
}
