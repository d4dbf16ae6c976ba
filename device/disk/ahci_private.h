/*
 * What the controller (ahci.c) and its drives (ata.c, atapi.c) share.
 *
 * A command runs from ahci.c's start_command() to ahci_end(). In between it belongs to the drive, which answers with bytes
 * (ahci_give()), has the block device transfer (ahci_transfer()), or ends it.
 */
#ifndef LODGE_DEVICE_DISK_AHCI_PRIVATE_H
#define LODGE_DEVICE_DISK_AHCI_PRIVATE_H

#include "base/loop.h"
#include "device/block.h"
#include "device/disk/ahci.h"

#include <pthread.h>

#define AHCI_SLOTS     32
#define AHCI_IOV_MAX   1024 /* of a command's list of buffers, how many are read: 65535 would be 4 GiB each */
#define ATA_SECTOR     512u
#define CD_SECTOR      2048u
#define ATA_LBA_28_MAX 0x0fffffffull

/* Status and error registers */
#define ATA_BUSY     0x80u
#define ATA_READY    0x40u
#define ATA_FAULT    0x20u
#define ATA_SEEK     0x10u
#define ATA_REQUEST  0x08u
#define ATA_ERROR    0x01u
#define ATA_ABORTED  0x04u
#define ATA_NO_ID    0x10u /* no such sector */
#define ATA_BAD_DATA 0x40u /* cannot be read */

struct ahci_port;

struct ahci_command {
	struct ahci_port *port;
	unsigned slot;
	bool running, queued; /* queued: NCQ */
	bool aborted;	      /* the guest has given it up: its end is told to nobody */
	bool end_waits;	      /* it has ended, with end_error, while the function was no bus master */
	uint8_t end_error;
	uint8_t fis[64], packet[16];
	gpa_t header; /* of the command, for the count of bytes */
	struct iovec iov[AHCI_IOV_MAX];
	gpa_t iov_gpa[AHCI_IOV_MAX];
	unsigned iov_count;
	uint64_t room;	/* bytes of iov */
	uint64_t moved; /* bytes transferred, told in the header */
	struct block_request request;
	struct iovec request_iov[AHCI_IOV_MAX];
	uint8_t status_on_error; /* of the error register */
};

struct ahci_port {
	struct ahci *ahci;
	unsigned index;
	struct ahci_drive drive;
	struct block_limits limits;
	char serial[AHCI_SERIAL_BYTES + 1];
	/* Registers (AHCI 3.3) */
	uint64_t command_list, fis;
	uint32_t is, ie, cmd, tfd, sig, sctl, serr, sact, ci;
	bool resetting; /* COMRESET: the drive answers when nothing runs any more */
	unsigned running;
	struct ahci_command *command; /* AHCI_SLOTS of them */
	/* A CD-ROM drive's */
	uint8_t sense_key, sense_code, sense_qualifier;
	bool locked;
};

/* ---- ahci.c, for drives; the lock is held ---- */

/* The end of a command: 0, or bits of the error register. */
void ahci_end(struct ahci_command *command, uint8_t error);
/* Answer with bytes, cut at the room that there is, and end it well. */
void ahci_give(struct ahci_command *command, const void *bytes, uint64_t count);
/* Bytes that the guest gives; returns how many there were. */
uint64_t ahci_take(const struct ahci_command *command, void *bytes, uint64_t count);
/* The block device moves `bytes` at `offset`, then the command ends: with `error` if that fails. No bytes to be moved
 * with BLOCK_FLUSH and the like. */
void ahci_transfer(
	struct ahci_command *command, enum block_op op, uint64_t offset, uint64_t bytes, uint8_t error);

/* ---- the drives; the lock is held, on the loop ---- */

void ata_execute(struct ahci_command *command);
void atapi_execute(struct ahci_command *command);
/* The 512 bytes of IDENTIFY (PACKET) DEVICE. */
void ata_identify(const struct ahci_port *port, uint8_t data[512]);
void atapi_identify(const struct ahci_port *port, uint8_t data[512]);
/* Text in words, as IDENTIFY has it. */
void ata_text(uint8_t *to, const char *text, unsigned bytes);

#endif
