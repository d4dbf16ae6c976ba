/*
 * Partition tables: GPT (UEFI specification 2.10, section 5.3) and the PC's own, with logical partitions. See
 * disk_private.h. Sectors of 512 bytes only. Checksums are not compared: what is read is checked for itself.
 */
#include "base/bytes.h"
#include "boot/disk_private.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SECTOR	    512u
#define GPT_ENTRIES 128u /* more are not looked at */
#define LOGICAL_MAX 32u

struct table {
	struct boot_reader *reader;
	struct boot_partition *list;
	unsigned count;
	uint64_t sectors;
	uint32_t signature;
};

static void add(struct table *t, unsigned number, uint64_t first, uint64_t sectors, const char *root)
{
	if (t->count == BOOT_PARTITIONS_MAX || !sectors || first >= t->sectors || sectors > t->sectors - first)
		return;
	struct boot_partition *p = &t->list[t->count++];
	*p = (struct boot_partition){ .offset = first * SECTOR, .bytes = sectors * SECTOR, .number = number };
	snprintf(p->root, sizeof(p->root), "%s", root);
}

static bool is_extended(uint8_t type)
{
	return type == 0x05 || type == 0x0f || type == 0x85;
}

static void add_old(struct table *t, unsigned number, const uint8_t *entry, uint64_t base)
{
	char root[64];

	snprintf(root, sizeof(root), "PARTUUID=%08x-%02x", t->signature, number);
	add(t, number, base + load_le32(entry + 8), load_le32(entry + 12), root);
}

/* The chain of logical partitions; bounded, since it may be a ring. */
static int add_logical(struct table *t, uint64_t extended)
{
	uint64_t here = extended;
	uint8_t sector[SECTOR];

	for (unsigned i = 0; i < LOGICAL_MAX && here < t->sectors; i++) {
		const uint8_t *entry = sector + 446;
		int status = boot_read(t->reader, sector, SECTOR, here * SECTOR);
		if (status < 0)
			return status;
		if (load_le16(sector + 510) != 0xaa55)
			return 0;
		add_old(t, 5 + i, entry, here);
		if (!is_extended(entry[16 + 4]) || !load_le32(entry + 16 + 8))
			return 0;
		here = extended + load_le32(entry + 16 + 8);
	}
	return 0;
}

static void guid_text(char text[static 40], const uint8_t *g)
{
	snprintf(text, 40, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", load_le32(g), load_le16(g + 4),
		load_le16(g + 6), g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}

static int add_gpt_entries(struct table *t, const uint8_t *header)
{
	static const uint8_t unused[16];
	const uint64_t table = load_le64(header + 72);
	const uint32_t count = MIN(load_le32(header + 80), GPT_ENTRIES), size = load_le32(header + 84);
	uint8_t e[128];

	if (size < sizeof(e) || size > 4096 || table >= t->sectors)
		return 0;
	for (uint32_t i = 0; i < count; i++) {
		char guid[40], root[64];
		int status = boot_read(t->reader, e, sizeof(e), table * SECTOR + (uint64_t)i * size);
		if (status < 0)
			return status;
		const uint64_t first = load_le64(e + 32), last = load_le64(e + 40);
		if (memcmp(e, unused, sizeof(unused)) == 0 || last < first || last >= t->sectors)
			continue;
		guid_text(guid, e + 16);
		snprintf(root, sizeof(root), "PARTUUID=%s", guid);
		add(t, i + 1, first, last - first + 1, root);
	}
	return 0;
}

static int add_gpt(struct table *t)
{
	const uint64_t places[] = { 1, t->sectors - 1 };
	uint8_t header[SECTOR];

	for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
		int status = boot_read(t->reader, header, SECTOR, places[i] * SECTOR);
		if (status < 0)
			return status;
		if (memcmp(header, "EFI PART", 8) == 0)
			return add_gpt_entries(t, header);
	}
	return 0;
}

static int add_table(struct table *t, const uint8_t *mbr)
{
	int status = 0;

	t->signature = load_le32(mbr + 440);
	for (unsigned i = 0; i < 4 && status == 0; i++) {
		const uint8_t *entry = mbr + 446 + 16 * i;
		if (entry[4] == 0xee)
			return add_gpt(t);
		if (is_extended(entry[4]))
			status = add_logical(t, load_le32(entry + 8));
		else if (entry[4])
			add_old(t, i + 1, entry, 0);
	}
	return status;
}

int boot_partitions(struct boot_reader *reader, struct boot_partition *list)
{
	struct table t = { .reader = reader, .list = list, .sectors = reader->source->size_bytes / SECTOR };
	uint8_t mbr[SECTOR];

	if (t.sectors < 2)
		return 0;
	int status = boot_read(reader, mbr, SECTOR, 0);
	if (status == 0 && load_le16(mbr + 510) == 0xaa55)
		status = add_table(&t, mbr);
	if (status < 0)
		return status;
	if (!t.count)
		add(&t, 0, 0, t.sectors, "");
	return (int)t.count;
}
