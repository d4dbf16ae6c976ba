/*
 * The disk around a root file system: see image_disk.h.
 *
 * UEFI specification 2.10, section 5 (GPT). The code in the first sector and GRUB's core image are told where the
 * rest of them is by the fields that grub-bios-setup would fill: boot.img at 0x5c has the sector of the core image,
 * whose first sector ends in a list of the sectors that follow (start, length, segment), at 0x1f4.
 */
#include "host/image_disk.h"
#include "base/bytes.h"
#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <zlib.h>

#define SECTOR	     512
#define ENTRIES	     128
#define ENTRY_BYTES  128
#define TABLE_SECTORS (ENTRIES * ENTRY_BYTES / SECTOR)

#define BIOS_OFFSET MIB(1)
#define BIOS_BYTES  MIB(1)
#define ESP_OFFSET  MIB(2)
#define ESP_BYTES   MIB(32)

/* GRUB's own fields. */
#define BOOT_KERNEL_SECTOR 0x5c
#define BOOT_CODE_BYTES	   440 /* then the disk's signature and the old partition table */
#define CORE_BLOCKLIST	   0x1f4
#define CORE_SEGMENT	   0x820 /* where the second sector of the core image belongs */

static const char type_bios[] = "21686148-6449-6e6f-744e-656564454649";
static const char type_esp[] = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
static const char type_root[] = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"; /* Linux root, x86-64 */

int image_pwrite(int fd, const void *bytes, size_t size, uint64_t offset, struct error *err)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = pwrite(fd, (const uint8_t *)bytes + done, size - done, (off_t)(offset + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set_errno(err, errno, "can't write the image");
		done += (size_t)n;
	}
	return 0;
}

int image_guid(char text[IMAGE_GUID_TEXT], struct error *err)
{
	uint8_t b[16];

	if (getrandom(b, sizeof(b), 0) != sizeof(b))
		return error_set_errno(err, errno, "no random numbers to be had");
	b[6] = (b[6] & 0x0f) | 0x40;
	b[8] = (b[8] & 0x3f) | 0x80;
	snprintf(text, IMAGE_GUID_TEXT, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
		b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
	return 0;
}

/* The first three fields of a GUID are little-endian, the others in the order of the text. */
static void put_guid(uint8_t *to, const char *text)
{
	static const uint8_t order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
	unsigned digit = 0, byte = 0;

	for (; *text && digit < 32; text++) {
		if (*text == '-')
			continue;
		const unsigned c = (unsigned)*text | 0x20;
		byte = byte << 4 | (c >= 'a' ? c - 'a' + 10 : c & 0xf);
		if (digit++ & 1)
			to[order[digit / 2 - 1]] = (uint8_t)byte;
	}
}

static void put_entry(uint8_t *to, const char *type, const char *guid, uint64_t offset, uint64_t bytes, const char *name)
{
	put_guid(to, type);
	put_guid(to + 16, guid);
	store_le64(to + 32, offset / SECTOR);
	store_le64(to + 40, (offset + bytes) / SECTOR - 1);
	for (unsigned i = 0; name[i]; i++)
		store_le16(to + 56 + 2 * i, (uint16_t)name[i]);
}

static void put_header(uint8_t *to, const struct image_disk *disk, uint64_t here, uint64_t other, uint64_t table,
	uint32_t table_crc)
{
	const uint64_t sectors = disk->size_bytes / SECTOR;

	memset(to, 0, SECTOR);
	memcpy(to, "EFI PART", 8);
	store_le32(to + 8, 0x00010000);
	store_le32(to + 12, 92);
	store_le64(to + 24, here);
	store_le64(to + 32, other);
	store_le64(to + 40, 2 + TABLE_SECTORS);
	store_le64(to + 48, sectors - 2 - TABLE_SECTORS);
	put_guid(to + 56, disk->disk_guid);
	store_le64(to + 72, table);
	store_le32(to + 80, ENTRIES);
	store_le32(to + 84, ENTRY_BYTES);
	store_le32(to + 88, table_crc);
	store_le32(to + 16, (uint32_t)crc32(0, to, 92));
}

static int write_gpt(int fd, const struct image_disk *disk, struct error *err)
{
	const uint64_t last = disk->size_bytes / SECTOR - 1;
	uint8_t table[ENTRIES * ENTRY_BYTES] = { 0 }, first[SECTOR], second[SECTOR];

	put_entry(table, type_bios, disk->bios_guid, BIOS_OFFSET, BIOS_BYTES, "bios");
	put_entry(table + ENTRY_BYTES, type_esp, disk->esp_guid, ESP_OFFSET, ESP_BYTES, "esp");
	put_entry(table + 2 * ENTRY_BYTES, type_root, disk->root_guid, IMAGE_ROOT_OFFSET,
		disk->size_bytes - IMAGE_ROOT_OFFSET - IMAGE_DISK_TAIL, "root");
	const uint32_t crc = (uint32_t)crc32(0, table, sizeof(table));
	put_header(first, disk, 1, last, 2, crc);
	put_header(second, disk, last, 1, last - TABLE_SECTORS, crc);
	int status = image_pwrite(fd, first, SECTOR, SECTOR, err);
	if (status == 0)
		status = image_pwrite(fd, table, sizeof(table), 2 * SECTOR, err);
	if (status == 0)
		status = image_pwrite(fd, table, sizeof(table), (last - TABLE_SECTORS) * SECTOR, err);
	return status < 0 ? status : image_pwrite(fd, second, SECTOR, last * SECTOR, err);
}

/* The first sector: GRUB's code, and an old table that says all is taken (UEFI 5.2.3). */
static int write_mbr(int fd, const struct image_disk *disk, const struct image_loader *loader, struct error *err)
{
	const uint64_t sectors = disk->size_bytes / SECTOR - 1;
	uint8_t mbr[SECTOR] = { 0 };

	if (loader->boot && loader->boot_bytes >= BOOT_CODE_BYTES) {
		memcpy(mbr, loader->boot, BOOT_CODE_BYTES);
		store_le64(mbr + BOOT_KERNEL_SECTOR, BIOS_OFFSET / SECTOR);
		/* boot.img: skip the jump that tests for a wrong drive number, as grub-bios-setup does for hard disks */
		mbr[0x66] = mbr[0x67] = 0x90;
	}
	uint8_t *entry = mbr + 446;
	entry[2] = 2; /* CHS 0/0/2 */
	entry[4] = 0xee;
	memset(entry + 5, 0xff, 3);
	store_le32(entry + 8, 1);
	store_le32(entry + 12, (uint32_t)MIN(sectors, 0xffffffffull));
	mbr[510] = 0x55;
	mbr[511] = 0xaa;
	return image_pwrite(fd, mbr, SECTOR, 0, err);
}

static int write_core(int fd, const struct image_loader *loader, struct error *err)
{
	uint8_t first[SECTOR];

	if (!loader->core || loader->core_bytes < 2 * SECTOR)
		return 0;
	if (loader->core_bytes > BIOS_BYTES)
		return error_set(err, EFBIG, "GRUB's core image has %zu bytes, too many for its partition", loader->core_bytes);
	memcpy(first, loader->core, SECTOR);
	store_le64(first + CORE_BLOCKLIST, BIOS_OFFSET / SECTOR + 1);
	store_le16(first + CORE_BLOCKLIST + 8, (uint16_t)((loader->core_bytes + SECTOR - 1) / SECTOR - 1));
	store_le16(first + CORE_BLOCKLIST + 10, CORE_SEGMENT);
	int status = image_pwrite(fd, first, SECTOR, BIOS_OFFSET, err);
	return status < 0 ? status : image_pwrite(fd, loader->core + SECTOR, loader->core_bytes - SECTOR,
		BIOS_OFFSET + SECTOR, err);
}

int image_disk_init(struct image_disk *disk, uint64_t size_bytes, struct error *err)
{
	char *const guids[] = { disk->disk_guid, disk->bios_guid, disk->esp_guid, disk->root_guid };

	if (size_bytes < IMAGE_DISK_MIN)
		return error_set(err, EINVAL, "an image of %llu MiB is too small: 128M is the least",
			(unsigned long long)(size_bytes >> 20));
	disk->size_bytes = ALIGN_UP(size_bytes, MIB(1));
	for (size_t i = 0; i < ARRAY_SIZE(guids); i++) {
		int status = image_guid(guids[i], err);
		if (status < 0)
			return status;
	}
	return 0;
}

int image_disk_write(int fd, const struct image_disk *disk, const struct image_loader *loader, struct error *err)
{
	int status = write_mbr(fd, disk, loader, err);

	if (status == 0)
		status = write_gpt(fd, disk, err);
	if (status == 0)
		status = write_core(fd, loader, err);
	if (status == 0)
		status = image_esp_write(fd, ESP_OFFSET, ESP_BYTES, loader->efi, loader->efi_bytes, err);
	return status;
}
