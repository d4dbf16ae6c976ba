/*
 * What is in a parallel flash (device/flash.h): bytes that outlive the machine. A file (backend/flash_file.h) implements it;
 * a test has one of its own.
 *
 * Threads: one machine at a time has it, whose flash writes under its lock.
 */
#ifndef LODGE_DEVICE_FLASH_STORE_H
#define LODGE_DEVICE_FLASH_STORE_H

#include "base/util.h"

#include <stdint.h>

#define FLASH_BLOCK_BYTES 4096u /* what is erased at a time */
#define FLASH_BYTES_MAX	  MIB(1)

struct flash_store {
	uint8_t *bytes;	     /* changed by write() only */
	uint32_t size_bytes; /* a multiple of FLASH_BLOCK_BYTES, at most FLASH_BYTES_MAX */
	/* These are bytes [at, +count) from now on, here and where they are kept; they lie within size_bytes. On an error
	 * (negative errno) `bytes` stays as it was. May wait for the host's disk. */
	int (*write)(struct flash_store *store, uint32_t at, const uint8_t *bytes, uint32_t count);
};

#endif
