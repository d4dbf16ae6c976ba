/*
 * An EFI system partition with one file: see image_disk.h.
 *
 * FAT16 as in Microsoft's "FAT: General Overview of On-Disk Format" 1.03: the boot sector, two tables, a root of 512
 * entries, then clusters. Directories and the file lie one after the other, so every chain is a run.
 */
#include "host/image_disk.h"
#include "base/bytes.h"
#include "base/error.h"

#include <errno.h>
#include <string.h>

#define SECTOR		512
#define CLUSTER_SECTORS 4
#define CLUSTER_BYTES	(SECTOR * CLUSTER_SECTORS)
#define RESERVED	4
#define ROOT_ENTRIES	512
#define ROOT_SECTORS	(ROOT_ENTRIES * 32 / SECTOR)
#define FAT16_CLUSTERS_MIN 4085
#define FAT16_CLUSTERS_MAX 65524

enum { CLUSTER_EFI = 2, CLUSTER_BOOT, CLUSTER_FILE };

#define ATTRIBUTE_DIR	  0x10
#define ATTRIBUTE_ARCHIVE 0x20
#define ATTRIBUTE_LABEL	  0x08
#define DATE		  ((2020 - 1980) << 9 | 1 << 5 | 1) /* no tool needs a true one */

struct esp {
	int fd;
	uint64_t offset;
	uint32_t sectors, fat_sectors, clusters;
};

static void geometry(struct esp *esp, int fd, uint64_t offset, uint64_t size_bytes)
{
	*esp = (struct esp){ .fd = fd, .offset = offset, .sectors = (uint32_t)(size_bytes / SECTOR) };
	const uint32_t most = esp->sectors / CLUSTER_SECTORS;

	esp->fat_sectors = (2 * (most + 2) + SECTOR - 1) / SECTOR;
	esp->clusters = (esp->sectors - RESERVED - 2 * esp->fat_sectors - ROOT_SECTORS) / CLUSTER_SECTORS;
}

static uint64_t root_at(const struct esp *esp)
{
	return esp->offset + (RESERVED + 2ull * esp->fat_sectors) * SECTOR;
}

static uint64_t cluster_at(const struct esp *esp, uint32_t cluster)
{
	return root_at(esp) + ROOT_SECTORS * SECTOR + (cluster - 2ull) * CLUSTER_BYTES;
}

static int write_boot_sector(const struct esp *esp, struct error *err)
{
	uint8_t b[SECTOR] = { 0xeb, 0x3c, 0x90, 'L', 'O', 'D', 'G', 'E', ' ', ' ', ' ' };

	store_le16(b + 11, SECTOR);
	b[13] = CLUSTER_SECTORS;
	store_le16(b + 14, RESERVED);
	b[16] = 2; /* tables */
	store_le16(b + 17, ROOT_ENTRIES);
	if (esp->sectors < 0x10000)
		store_le16(b + 19, (uint16_t)esp->sectors);
	else
		store_le32(b + 32, esp->sectors);
	b[21] = 0xf8; /* fixed disk */
	store_le16(b + 22, (uint16_t)esp->fat_sectors);
	store_le16(b + 24, 63);
	store_le16(b + 26, 255);
	store_le32(b + 28, (uint32_t)(esp->offset / SECTOR));
	b[36] = 0x80;
	b[38] = 0x29;
	store_le32(b + 39, 0x4c4f4447);
	memcpy(b + 43, "LODGE ESP  FAT16   ", 19);
	b[510] = 0x55;
	b[511] = 0xaa;
	return image_pwrite(esp->fd, b, SECTOR, esp->offset, err);
}

static void put_file(uint8_t *to, const char name[static 11], uint8_t attributes, uint32_t cluster, uint32_t bytes)
{
	memcpy(to, name, 11);
	to[11] = attributes;
	store_le16(to + 16, DATE);
	store_le16(to + 18, DATE);
	store_le16(to + 24, DATE);
	store_le16(to + 26, (uint16_t)cluster);
	store_le32(to + 28, bytes);
}

static int write_tables(const struct esp *esp, uint32_t file_clusters, struct error *err)
{
	uint8_t fat[SECTOR * 256] = { 0 };
	int status = 0;

	if (esp->fat_sectors * SECTOR > sizeof(fat))
		return error_set(err, EFBIG, "the EFI system partition is too large");
	store_le16(fat, 0xfff8);
	store_le16(fat + 2, 0xffff);
	store_le16(fat + 2 * CLUSTER_EFI, 0xffff);
	store_le16(fat + 2 * CLUSTER_BOOT, 0xffff);
	for (uint32_t i = 0; i < file_clusters; i++)
		store_le16(fat + 2 * (CLUSTER_FILE + i),
			i + 1 == file_clusters ? 0xffff : (uint16_t)(CLUSTER_FILE + i + 1));
	for (unsigned copy = 0; copy < 2 && status == 0; copy++)
		status = image_pwrite(esp->fd, fat, esp->fat_sectors * SECTOR,
			esp->offset + (RESERVED + copy * esp->fat_sectors) * (uint64_t)SECTOR, err);
	return status;
}

static int write_directories(const struct esp *esp, uint32_t file_bytes, struct error *err)
{
	uint8_t root[64] = { 0 }, efi[96] = { 0 }, boot[96] = { 0 };

	put_file(root, "LODGE ESP  ", ATTRIBUTE_LABEL, 0, 0);
	put_file(root + 32, "EFI        ", ATTRIBUTE_DIR, CLUSTER_EFI, 0);
	put_file(efi, ".          ", ATTRIBUTE_DIR, CLUSTER_EFI, 0);
	put_file(efi + 32, "..         ", ATTRIBUTE_DIR, 0, 0);
	put_file(efi + 64, "BOOT       ", ATTRIBUTE_DIR, CLUSTER_BOOT, 0);
	put_file(boot, ".          ", ATTRIBUTE_DIR, CLUSTER_BOOT, 0);
	put_file(boot + 32, "..         ", ATTRIBUTE_DIR, CLUSTER_EFI, 0);
	if (file_bytes)
		put_file(boot + 64, "BOOTX64 EFI", ATTRIBUTE_ARCHIVE, CLUSTER_FILE, file_bytes);
	int status = image_pwrite(esp->fd, root, sizeof(root), root_at(esp), err);
	if (status == 0)
		status = image_pwrite(esp->fd, efi, sizeof(efi), cluster_at(esp, CLUSTER_EFI), err);
	return status < 0 ? status : image_pwrite(esp->fd, boot, sizeof(boot), cluster_at(esp, CLUSTER_BOOT), err);
}

int image_esp_write(int fd, uint64_t offset, uint64_t size_bytes, const uint8_t *efi, size_t efi_bytes,
	struct error *err)
{
	struct esp esp;
	const uint64_t file_clusters = (efi_bytes + CLUSTER_BYTES - 1) / CLUSTER_BYTES;

	geometry(&esp, fd, offset, size_bytes);
	if (esp.clusters < FAT16_CLUSTERS_MIN || esp.clusters > FAT16_CLUSTERS_MAX || file_clusters > esp.clusters - 2)
		return error_set(err, EFBIG, "the boot loader has %zu bytes, too many for its partition", efi_bytes);
	int status = write_boot_sector(&esp, err);
	if (status == 0)
		status = write_tables(&esp, (uint32_t)file_clusters, err);
	if (status == 0)
		status = write_directories(&esp, (uint32_t)efi_bytes, err);
	return status < 0 ? status : image_pwrite(fd, efi, efi_bytes, cluster_at(&esp, CLUSTER_FILE), err);
}
