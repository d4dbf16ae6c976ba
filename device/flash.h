/*
 * Parallel NOR flash: a chip of Intel's command set, 8 bits wide, in which firmware keeps its variables (Intel's
 * StrataFlash J3 datasheet: command set, status register; JEDEC JESD68.01: the query that tells of it, with Intel's
 * primary table, JEP137 1). What a chip leaves open is as OVMF expects it of QEMU's: blocks of 4 KiB, and a status register
 * that is 0 after it was cleared, by which OVMF tells flash from ROM and RAM.
 *
 *	ff, 00, f0	read the array
 *	70, 50		read the status register; clear it, and read the array
 *	90, 98		read identifiers; read the query's answer
 *	10 or 40, byte	program it
 *	e8, n - 1, n bytes, d0	program up to 256 bytes of a block
 *	20, d0		erase the block
 *
 * The guest reads plain memory, with no exit: a read-only region that shows the array, or while another is asked for the
 * status register, identifiers or query at every address. So a change of what is read fills it anew. Writes come by
 * the bus; a wide one is that many cycles of the chip, lowest address first.
 *
 * Programming only makes 0s of 1s. Operations are done when their last cycle is; one that the store fails is an error in the
 * status register and changes nothing.
 *
 * Left out: locks of blocks, suspending (nothing is under way), protection registers, DMA as a way to write.
 *
 * Invariant: what is kept changes only while the status register is shown, so the array that is shown is the one that is kept.
 */
#ifndef LODGE_DEVICE_FLASH_H
#define LODGE_DEVICE_FLASH_H

#include "base/types.h"
#include "device/flash_store.h"

struct bus;
struct error;
struct flash;
struct guest_memory;

enum flash_status {
	FLASH_READY = 0x80,
	FLASH_ERASE_FAILED = 0x20,
	FLASH_PROGRAM_FAILED = 0x10, /* both: a sequence of commands that makes no sense */
};

struct flash_config {
	struct guest_memory *memory;
	struct bus *bus;
	gpa_t base;
	struct flash_store *store; /* outlives it */
};

/* Adds the region and the range on the bus; before the first vCPU runs. It reads the array, as after power-on.
 * Errors: with a line for people; as memory_add_ram() and bus_add(). */
MUST_CHECK int flash_create(
	const struct flash_config *config, struct flash **ret_flash, struct error *err);
/* NULL is allowed. No vCPU runs any more; region and range go with the memory and the bus. */
void flash_free(struct flash *flash);

#endif
