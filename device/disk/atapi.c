/*
 * The CD-ROM drive behind a port: packet commands (MMC-3, SPC-3) on a disc that is always there. See ahci.h.
 */
#include "device/disk/ahci_private.h"

#include <string.h>

#include "base/bytes.h"

enum ata_command { ATAPI_RESET = 0x08, ATAPI_PACKET = 0xa0, ATAPI_IDENTIFY = 0xa1,
	ATAPI_SET_FEATURES = 0xef };

enum packet {
	TEST_UNIT_READY = 0x00,
	REQUEST_SENSE = 0x03,
	INQUIRY = 0x12,
	START_STOP = 0x1b,
	PREVENT_REMOVAL = 0x1e,
	READ_CAPACITY = 0x25,
	READ_10 = 0x28,
	SEEK_10 = 0x2b,
	READ_TOC = 0x43,
	GET_CONFIGURATION = 0x46,
	GET_EVENT_STATUS = 0x4a,
	READ_DISC_INFORMATION = 0x51,
	MODE_SENSE_10 = 0x5a,
	READ_12 = 0xa8,
	MECHANISM_STATUS = 0xbd,
	SET_SPEED = 0xbb,
};

#define SENSE_MEDIUM	     3
#define SENSE_ILLEGAL	     5
#define CODE_UNREADABLE	     0x11
#define CODE_COMMAND	     0x20
#define CODE_OUT_OF_RANGE    0x21
#define CODE_FIELD	     0x24
#define PROFILE_CDROM	     0x0008
#define PROFILE_DVDROM	     0x0010
#define CD_BLOCKS_MAX	     405000u /* 90 minutes: larger discs are DVDs */

static uint32_t blocks(const struct ahci_port *port)
{
	return (uint32_t)MIN(port->limits.size_bytes / CD_SECTOR, 0xffffffffull);
}

void atapi_identify(const struct ahci_port *port, uint8_t data[512])
{
	memset(data, 0, 512);
	store_le16(data, 0x8580); /* a CD-ROM drive, removable, packets of 12 bytes */
	ata_text(data + 20, port->serial, 20);
	ata_text(data + 46, "1.0", 8);
	ata_text(data + 54, "LODGE CD-ROM", 40);
	store_le16(data + 98, 0x0f00);
	store_le16(data + 106, 0x0006);
	store_le16(data + 126, 0x0407);
	store_le16(data + 128, 0x0003);
	for (unsigned i = 65; i <= 68; i++)
		store_le16(data + 2 * i, 120);
	store_le16(data + 152, 0x0006);
	store_le16(data + 160, 0x01f0);
	store_le16(data + 164, 0x4010);
	store_le16(data + 166, 0x4000);
	store_le16(data + 168, 0x4000);
	store_le16(data + 170, 0x4010);
	store_le16(data + 174, 0x4000);
	store_le16(data + 176, 0x407f);
}

/* ---- ends ---- */

static void check_condition(struct ahci_command *command, uint8_t key, uint8_t code)
{
	command->port->sense_key = key;
	command->port->sense_code = code;
	command->port->sense_qualifier = 0;
	ahci_end(command, (uint8_t)(key << 4 | ATA_ABORTED));
}

/* No more than the packet allows. */
static void give(struct ahci_command *command, const uint8_t *bytes, unsigned count, unsigned allowed)
{
	ahci_give(command, bytes, MIN(count, allowed));
}

/* ---- the packets ---- */

static void request_sense(struct ahci_command *command)
{
	struct ahci_port *port = command->port;
	const uint8_t data[18] = {0x70, 0, port->sense_key, 0, 0, 0, 0, 10, 0, 0, 0, 0, port->sense_code,
		port->sense_qualifier};

	port->sense_key = port->sense_code = port->sense_qualifier = 0;
	give(command, data, sizeof(data), command->packet[4]);
}

static void inquiry(struct ahci_command *command)
{
	uint8_t data[36] = {0x05, 0x80, 0x00, 0x21, 31};

	if (command->packet[1] & 1) {
		check_condition(command, SENSE_ILLEGAL, CODE_FIELD);
		return;
	}
	memcpy(data + 8, "LODGE   CD-ROM          1.0 ", 28);
	give(command, data, sizeof(data), load_be16(command->packet + 3));
}

static void read_capacity(struct ahci_command *command)
{
	uint8_t data[8];

	store_be32(data, blocks(command->port) ? blocks(command->port) - 1 : 0);
	store_be32(data + 4, CD_SECTOR);
	give(command, data, sizeof(data), sizeof(data));
}

static void read_blocks(struct ahci_command *command, uint32_t first, uint32_t count)
{
	const uint32_t all = blocks(command->port);

	if (first > all || count > all - first) {
		check_condition(command, SENSE_ILLEGAL, CODE_OUT_OF_RANGE);
		return;
	}
	if (!count) {
		ahci_end(command, 0);
		return;
	}
	command->port->sense_key = SENSE_MEDIUM; /* if it fails; else nobody asks */
	command->port->sense_code = CODE_UNREADABLE;
	ahci_transfer(command, BLOCK_READ, (uint64_t)first * CD_SECTOR, (uint64_t)count * CD_SECTOR,
		SENSE_MEDIUM << 4 | ATA_ABORTED);
}

/* An address, in minutes, seconds and frames if the packet says so. */
static void store_address(const struct ahci_command *command, uint8_t *to, uint32_t block)
{
	const uint32_t frame = block + 150;

	if (!(command->packet[1] & 2)) {
		store_be32(to, block);
		return;
	}
	to[0] = 0;
	to[1] = (uint8_t)MIN(frame / (75 * 60), 255u);
	to[2] = (uint8_t)(frame / 75 % 60);
	to[3] = (uint8_t)(frame % 75);
}

static void put_track(const struct ahci_command *command, uint8_t *to, uint8_t track, uint32_t block)
{
	to[1] = 0x14; /* data */
	to[2] = track;
	store_address(command, to + 4, block);
}

static void read_toc(struct ahci_command *command)
{
	const unsigned format = command->packet[2] & 15 ? command->packet[2] & 15 : command->packet[9] >> 6;
	uint8_t data[20] = {0, 18, 1, 1};
	unsigned count = sizeof(data);

	if (format > 1) {
		check_condition(command, SENSE_ILLEGAL, CODE_FIELD);
		return;
	}
	put_track(command, data + 4, 1, 0);
	put_track(command, data + 12, 0xaa, blocks(command->port));
	if (format == 1) {
		count = 12;
		data[1] = 10;
	}
	give(command, data, count, load_be16(command->packet + 7));
}

static void get_configuration(struct ahci_command *command)
{
	const uint16_t profile = blocks(command->port) > CD_BLOCKS_MAX ? PROFILE_DVDROM : PROFILE_CDROM;
	uint8_t data[8 + 12 + 8] = {0};

	store_be32(data, sizeof(data) - 4);
	store_be16(data + 6, profile);
	data[10] = 0x03; /* the list of profiles, current */
	data[11] = 8;
	store_be16(data + 12, PROFILE_DVDROM);
	data[14] = profile == PROFILE_DVDROM;
	store_be16(data + 16, PROFILE_CDROM);
	data[18] = profile == PROFILE_CDROM;
	store_be16(data + 20, 0x0001); /* core */
	data[22] = 0x03;
	data[23] = 4;
	store_be32(data + 24, 8); /* SATA */
	give(command, data, sizeof(data), load_be16(command->packet + 7));
}

static void get_event_status(struct ahci_command *command)
{
	const uint8_t data[8] = {0, 6, 4, 0x10, 0, 2, 0, 0}; /* a medium is there, nothing new */

	if (!(command->packet[1] & 1))
		check_condition(command, SENSE_ILLEGAL, CODE_FIELD);
	else
		give(command, data, sizeof(data), load_be16(command->packet + 7));
}

static void mode_sense(struct ahci_command *command)
{
	uint8_t data[8 + 20] = {0};

	store_be16(data, sizeof(data) - 2);
	data[2] = 1;	/* a data CD */
	data[8] = 0x2a; /* capabilities */
	data[9] = 18;
	data[12] = 0x71;
	data[14] = 0x29 | (command->port->locked ? 2 : 0);
	give(command, data, sizeof(data), load_be16(command->packet + 7));
}

static void read_disc_information(struct ahci_command *command)
{
	const uint8_t data[34] = {0, 32, 0x0e, 1, 1, 1, 1, 0x20};

	give(command, data, sizeof(data), load_be16(command->packet + 7));
}

static void packet(struct ahci_command *command)
{
	static const uint8_t mechanism[8] = {0};
	const uint8_t *p = command->packet;

	switch (p[0]) {
	case TEST_UNIT_READY:
	case START_STOP:
	case SEEK_10:
	case SET_SPEED: ahci_end(command, 0); break;
	case PREVENT_REMOVAL:
		command->port->locked = p[4] & 1;
		ahci_end(command, 0);
		break;
	case REQUEST_SENSE: request_sense(command); break;
	case INQUIRY: inquiry(command); break;
	case READ_CAPACITY: read_capacity(command); break;
	case READ_10: read_blocks(command, load_be32(p + 2), load_be16(p + 7)); break;
	case READ_12: read_blocks(command, load_be32(p + 2), load_be32(p + 6)); break;
	case READ_TOC: read_toc(command); break;
	case GET_CONFIGURATION: get_configuration(command); break;
	case GET_EVENT_STATUS: get_event_status(command); break;
	case MODE_SENSE_10: mode_sense(command); break;
	case READ_DISC_INFORMATION: read_disc_information(command); break;
	case MECHANISM_STATUS: give(command, mechanism, sizeof(mechanism), load_be16(p + 8)); break;
	default: check_condition(command, SENSE_ILLEGAL, CODE_COMMAND); break;
	}
}

void atapi_execute(struct ahci_command *command)
{
	uint8_t data[512];

	switch (command->fis[2]) {
	case ATAPI_PACKET: packet(command); break;
	case ATAPI_IDENTIFY:
		atapi_identify(command->port, data);
		ahci_give(command, data, sizeof(data));
		break;
	case ATAPI_SET_FEATURES:
	case ATAPI_RESET: ahci_end(command, 0); break;
	default: ahci_end(command, ATA_ABORTED); break; /* by which IDENTIFY DEVICE knows what it is */
	}
}
