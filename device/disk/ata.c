/*
 * The disk behind a port: ATA8-ACS (T13/1699-D), section 7. See ahci.h.
 */
#include "device/disk/ahci_private.h"

#include <string.h>

#include "base/bytes.h"

enum ata {
	ATA_TRIM = 0x06, /* DATA SET MANAGEMENT */
	ATA_READ_PIO = 0x20,
	ATA_READ_PIO_EXT = 0x24,
	ATA_READ_DMA_EXT = 0x25,
	ATA_READ_MULTIPLE_EXT = 0x29,
	ATA_WRITE_PIO = 0x30,
	ATA_WRITE_PIO_EXT = 0x34,
	ATA_WRITE_DMA_EXT = 0x35,
	ATA_WRITE_MULTIPLE_EXT = 0x39,
	ATA_VERIFY = 0x40,
	ATA_VERIFY_EXT = 0x42,
	ATA_READ_QUEUED = 0x60,
	ATA_WRITE_QUEUED = 0x61,
	ATA_READ_MULTIPLE = 0xc4,
	ATA_WRITE_MULTIPLE = 0xc5,
	ATA_SET_MULTIPLE = 0xc6,
	ATA_READ_DMA = 0xc8,
	ATA_WRITE_DMA = 0xca,
	ATA_STANDBY_NOW = 0xe0,
	ATA_IDLE_NOW = 0xe1,
	ATA_STANDBY = 0xe2,
	ATA_IDLE = 0xe3,
	ATA_CHECK_POWER = 0xe5,
	ATA_FLUSH = 0xe7,
	ATA_FLUSH_EXT = 0xea,
	ATA_IDENTIFY = 0xec,
	ATA_SET_FEATURES = 0xef,
};

#define TRIM_MAX	 8u /* blocks of ranges in one command */
#define TRIM_RANGES	 64u /* in a block */

/* ---- IDENTIFY DEVICE (7.16) ---- */

void ata_text(uint8_t *to, const char *text, unsigned bytes)
{
	const size_t length = strlen(text);

	for (unsigned i = 0; i < bytes; i++)
		to[i ^ 1] = i < length ? (uint8_t)text[i] : ' ';
}

static void word(uint8_t data[512], unsigned index, unsigned value)
{
	store_le16(data + 2 * index, (uint16_t)value);
}

void ata_identify(const struct ahci_port *port, uint8_t data[512])
{
	const uint64_t sectors = port->limits.size_bytes / ATA_SECTOR;
	const uint64_t cylinders = MIN(sectors / (16 * 63), 16383ull);
	uint8_t sum = 0;

	memset(data, 0, 512);
	word(data, 0, 0x0040); /* a fixed disk */
	word(data, 1, (unsigned)cylinders);
	word(data, 3, 16);
	word(data, 6, 63);
	ata_text(data + 20, port->serial, 20);
	ata_text(data + 46, "1.0", 8);
	ata_text(data + 54, "LODGE DISK", 40);
	word(data, 47, 0x8010);
	word(data, 49, 0x0f00); /* DMA, LBA, IORDY */
	word(data, 50, 0x4000);
	word(data, 53, 0x0006);
	word(data, 59, 0x0110);
	store_le32(data + 120, (uint32_t)MIN(sectors, ATA_LBA_28_MAX));
	word(data, 63, 0x0407);
	word(data, 64, 0x0003);
	for (unsigned i = 65; i <= 68; i++)
		word(data, i, 120);
	word(data, 69, port->limits.discard ? 0x4000 : 0); /* reads after TRIM may differ: no promise but this */
	word(data, 75, AHCI_SLOTS - 1);
	word(data, 76, 0x0106); /* NCQ, generations 1 and 2 */
	word(data, 80, 0x01f0);
	word(data, 81, 0x0028);
	word(data, 82, 0x4020); /* NOP, write cache */
	word(data, 83, 0x7400); /* 48 bits, FLUSH CACHE (EXT) */
	word(data, 84, 0x4000);
	word(data, 85, port->limits.volatile_cache ? 0x4020 : 0x4000);
	word(data, 86, 0x3400);
	word(data, 87, 0x4000);
	word(data, 88, 0x407f); /* UDMA 6 */
	word(data, 93, 0x0000);
	store_le64(data + 200, sectors);
	word(data, 106, 0x4000 | (port->limits.optimal_bytes >= 4096 ? 0x2003 : 0)); /* 8 sectors each, if so */
	word(data, 169, port->limits.discard && !port->limits.readonly);
	word(data, 105, TRIM_MAX);
	word(data, 217, 1); /* does not turn */
	word(data, 222, 0x1020);
	data[510] = 0xa5;
	for (unsigned i = 0; i < 511; i++)
		sum = (uint8_t)(sum + data[i]);
	data[511] = (uint8_t)-sum;
}

/* ---- reading and writing ---- */

static uint64_t lba28(const uint8_t *fis)
{
	return fis[4] | fis[5] << 8 | (uint32_t)fis[6] << 16 | (uint32_t)(fis[7] & 15) << 24;
}

static uint64_t lba48(const uint8_t *fis)
{
	return fis[4] | fis[5] << 8 | (uint64_t)fis[6] << 16 | (uint64_t)fis[8] << 24 | (uint64_t)fis[9] << 32 |
	       (uint64_t)fis[10] << 40;
}

static void move(struct ahci_command *command, enum block_op op, uint64_t lba, uint64_t sectors)
{
	const struct ahci_port *port = command->port;
	const uint64_t all = port->limits.size_bytes / ATA_SECTOR;

	if (!(command->fis[7] & 0x40)) /* cylinders, heads: nobody does that any more */
		ahci_end(command, ATA_ABORTED);
	else if (lba > all || sectors > all - lba)
		ahci_end(command, ATA_NO_ID);
	else if (op == BLOCK_WRITE && port->limits.readonly)
		ahci_end(command, ATA_ABORTED);
	else
		ahci_transfer(command, op, lba * ATA_SECTOR, sectors * ATA_SECTOR,
			op == BLOCK_READ ? ATA_BAD_DATA : ATA_ABORTED);
}

static void move28(struct ahci_command *command, enum block_op op)
{
	move(command, op, lba28(command->fis), command->fis[12] ? command->fis[12] : 256);
}

static void move48(struct ahci_command *command, enum block_op op)
{
	const unsigned count = load_le16(command->fis + 12);

	move(command, op, lba48(command->fis), count ? count : 65536);
}

/* The count is where others have features, and the tag, which is the slot, where they have the count. */
static void move_queued(struct ahci_command *command, enum block_op op)
{
	const unsigned count = command->fis[3] | command->fis[11] << 8;

	if (command->fis[12] >> 3 != command->slot)
		ahci_end(command, ATA_ABORTED);
	else
		move(command, op, lba48(command->fis), count ? count : 65536);
}

/* Only that the sectors are there. */
static void verify(struct ahci_command *command, uint64_t lba, uint64_t sectors)
{
	const uint64_t all = command->port->limits.size_bytes / ATA_SECTOR;

	ahci_end(command, lba > all || sectors > all - lba ? ATA_NO_ID : 0);
}

static void flush(struct ahci_command *command)
{
	ahci_transfer(command, BLOCK_FLUSH, 0, 0, ATA_ABORTED);
}

/* ---- the rest ---- */

/* TRIM is advice: of all ranges in the command the first is passed on if it is the only one, else none; so nothing
 * waits for several requests. */
static void trim(struct ahci_command *command)
{
	const struct ahci_port *port = command->port;
	uint8_t ranges[TRIM_RANGES * 8];
	uint64_t entry, next, lba, sectors;

	if (!(command->fis[3] & 1) || !port->limits.discard || port->limits.readonly ||
		ahci_take(command, ranges, sizeof(ranges)) < 16) {
		ahci_end(command, ATA_ABORTED);
		return;
	}
	entry = load_le64(ranges);
	next = load_le64(ranges + 8);
	lba = entry & BIT_MASK(47, 0);
	sectors = entry >> 48;
	if (!sectors || next >> 48)
		ahci_end(command, 0);
	else if (lba > port->limits.size_bytes / ATA_SECTOR || sectors > port->limits.size_bytes / ATA_SECTOR - lba)
		ahci_end(command, ATA_NO_ID);
	else
		ahci_transfer(command, BLOCK_DISCARD, lba * ATA_SECTOR, sectors * ATA_SECTOR, ATA_ABORTED);
}

static void set_features(struct ahci_command *command)
{
	switch (command->fis[3]) {
	case 0x02: /* write cache on */
	case 0x03: /* transfer mode */
	case 0x05: /* power management */
	case 0x10: /* SATA's */
	case 0x55: /* read ahead off */
	case 0x66:
	case 0x85:
	case 0x90:
	case 0xaa:
	case 0xcc: ahci_end(command, 0); break;
	default: ahci_end(command, ATA_ABORTED); break; /* a write cache is as the host has it */
	}
}

static void identify(struct ahci_command *command)
{
	uint8_t data[512];

	ata_identify(command->port, data);
	ahci_give(command, data, sizeof(data));
}

static void other(struct ahci_command *command)
{
	switch (command->fis[2]) {
	case ATA_IDENTIFY: identify(command); break;
	case ATA_TRIM: trim(command); break;
	case ATA_SET_FEATURES: set_features(command); break;
	case ATA_CHECK_POWER:
		command->fis[12] = 0xff; /* active */
		ahci_end(command, 0);
		break;
	case ATA_SET_MULTIPLE:
	case ATA_STANDBY_NOW:
	case ATA_IDLE_NOW:
	case ATA_STANDBY:
	case ATA_IDLE: ahci_end(command, 0); break;
	default: ahci_end(command, ATA_ABORTED); break;
	}
}

void ata_execute(struct ahci_command *command)
{
	switch (command->fis[2]) {
	case ATA_READ_DMA:
	case ATA_READ_PIO:
	case ATA_READ_MULTIPLE: move28(command, BLOCK_READ); break;
	case ATA_WRITE_DMA:
	case ATA_WRITE_PIO:
	case ATA_WRITE_MULTIPLE: move28(command, BLOCK_WRITE); break;
	case ATA_READ_DMA_EXT:
	case ATA_READ_PIO_EXT:
	case ATA_READ_MULTIPLE_EXT: move48(command, BLOCK_READ); break;
	case ATA_WRITE_DMA_EXT:
	case ATA_WRITE_PIO_EXT:
	case ATA_WRITE_MULTIPLE_EXT: move48(command, BLOCK_WRITE); break;
	case ATA_READ_QUEUED: move_queued(command, BLOCK_READ); break;
	case ATA_WRITE_QUEUED: move_queued(command, BLOCK_WRITE); break;
	case ATA_VERIFY: verify(command, lba28(command->fis), command->fis[12] ? command->fis[12] : 256); break;
	case ATA_VERIFY_EXT:
		verify(command, lba48(command->fis),
			load_le16(command->fis + 12) ? load_le16(command->fis + 12) : 65536);
		break;
	case ATA_FLUSH:
	case ATA_FLUSH_EXT: flush(command); break;
	default: other(command); break;
	}
}
