/*
 * fw_cfg: how firmware (SeaBIOS, OVMF) learns of its machine: numbered items and named files, read through ports or by
 * DMA (QEMU's docs/specs/fw_cfg, which is what both programs are written to).
 *
 *	0x510	selector (16 bits, little-endian)
 *	0x511	data, a byte at a time
 *	0x514	address of a DMA request (64 bits, big-endian; its low half starts it)
 *
 * Left out: writing to items (all are read-only: a DMA write ends in an error).
 *
 * Threads: items are added before the first vCPU runs, or by `make`. Handlers run with the lock held.
 */
#ifndef LODGE_DEVICE_FW_CFG_H
#define LODGE_DEVICE_FW_CFG_H

#include "base/util.h"
#include "device/bus.h"

#define FW_CFG_PORT	  0x510
#define FW_CFG_FILES_MAX  64
#define FW_CFG_NAME_BYTES 56 /* of a file, with its end */

enum fw_cfg_key {
	FW_CFG_SIGNATURE = 0,
	FW_CFG_ID = 1,
	FW_CFG_RAM_SIZE = 3,
	FW_CFG_NOGRAPHIC = 4,
	FW_CFG_CPUS = 5,
	FW_CFG_BOOT_MENU = 0xe,
	FW_CFG_CPUS_MAX = 0xf,
	FW_CFG_DIRECTORY = 0x19,
	FW_CFG_FILE = 0x20, /* the first one */
};

struct fw_cfg;
struct guest_memory;

struct fw_cfg_config {
	pthread_mutex_t *lock;
	struct guest_memory *memory; /* for DMA */
	/* Called when a file that was added without bytes is first selected: fw_cfg_set() all of them. On a vCPU's thread, with the lock held. May be NULL. */
	void (*make)(void *opaque);
	void *opaque;
};

/* Errors: -ENOMEM. */
MUST_CHECK int fw_cfg_create(const struct fw_cfg_config *config, struct fw_cfg **ret_fw_cfg);
void fw_cfg_free(struct fw_cfg *fw_cfg); /* NULL is allowed */
/* Errors: as bus_add(). */
MUST_CHECK int fw_cfg_attach(struct fw_cfg *fw_cfg, struct bus *bus);

/* A number by its key, which is below FW_CFG_DIRECTORY. */
void fw_cfg_add_number(struct fw_cfg *fw_cfg, enum fw_cfg_key key, unsigned size_bytes, uint64_t value);
/* A file; bytes are copied. `bytes` NULL: made later, when asked for; size_bytes is then the most it can have, and
 * its size in the directory. Errors: -ENOMEM, -ENOSPC, -EINVAL (the name's length), -EEXIST. */
MUST_CHECK int fw_cfg_add_file(
	struct fw_cfg *fw_cfg, const char *name, const void *bytes, uint32_t size_bytes);
/* The bytes of such a file; the rest of it is zeros. Errors: -ENOENT, -ENOSPC. */
int fw_cfg_set(struct fw_cfg *fw_cfg, const char *name, const void *bytes, uint32_t size_bytes);

#endif
