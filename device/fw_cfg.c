/*
 * fw_cfg: see the header.
 */
#include "device/fw_cfg.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "memory/memory.h"

#define ID_TRADITIONAL 1
#define ID_DMA	       2

#define DMA_ERROR   1u
#define DMA_READ    2u
#define DMA_SKIP    4u
#define DMA_SELECT  8u
#define DMA_WRITE   16u
#define DMA_BYTES   16 /* of a request: control, length, address */
#define DMA_PIECE   4096u
#define DMA_MAX	    (64u << 20) /* more than any item: zeros without end would hold everybody up */

#define ENTRY_BYTES 64u /* of the directory */
#define NUMBERS	    FW_CFG_DIRECTORY

struct item {
	char name[FW_CFG_NAME_BYTES];
	uint8_t *bytes;
	uint32_t size_bytes;
	bool late; /* made when it is asked for */
};

struct fw_cfg {
	struct fw_cfg_config config;
	struct item number[NUMBERS];
	struct item file[FW_CFG_FILES_MAX]; /* sorted by name before the first vCPU runs: see add */
	unsigned file_count;
	uint8_t directory[4 + FW_CFG_FILES_MAX * ENTRY_BYTES];
	bool made;
	uint16_t key;
	uint32_t offset;
	uint64_t dma_address;
};

/* ---- items ---- */

static int item_init(struct item *item, const void *bytes, uint32_t size_bytes)
{
	item->bytes = calloc(1, size_bytes ? size_bytes : 1);
	if (!item->bytes)
		return -ENOMEM;
	item->size_bytes = size_bytes;
	if (bytes)
		memcpy(item->bytes, bytes, size_bytes);
	return 0;
}

void fw_cfg_add_number(struct fw_cfg *fw_cfg, enum fw_cfg_key key, unsigned size_bytes, uint64_t value)
{
	struct item *item = &fw_cfg->number[key];
	uint8_t bytes[8];

	store_le64(bytes, value);
	memcpy(item->bytes, bytes, MIN(size_bytes, 8u));
	item->size_bytes = MIN(size_bytes, 8u);
}

static void write_directory(struct fw_cfg *fw_cfg)
{
	store_be32(fw_cfg->directory, fw_cfg->file_count);
	for (unsigned i = 0; i < fw_cfg->file_count; i++) {
		uint8_t *entry = fw_cfg->directory + 4 + i * ENTRY_BYTES;

		memset(entry, 0, ENTRY_BYTES);
		store_be32(entry, fw_cfg->file[i].size_bytes);
		store_be16(entry + 4, (uint16_t)(FW_CFG_FILE + i));
		memcpy(entry + 8, fw_cfg->file[i].name, FW_CFG_NAME_BYTES);
	}
}

static struct item *find_file(struct fw_cfg *fw_cfg, const char *name)
{
	for (unsigned i = 0; i < fw_cfg->file_count; i++)
		if (strcmp(fw_cfg->file[i].name, name) == 0)
			return &fw_cfg->file[i];
	return NULL;
}

int fw_cfg_add_file(struct fw_cfg *fw_cfg, const char *name, const void *bytes, uint32_t size_bytes)
{
	struct item item = {.late = !bytes};
	unsigned at = fw_cfg->file_count;

	if (strlen(name) >= sizeof(item.name))
		return -EINVAL;
	if (at == FW_CFG_FILES_MAX)
		return -ENOSPC;
	if (find_file(fw_cfg, name))
		return -EEXIST;
	int status = item_init(&item, bytes, size_bytes);
	if (status < 0)
		return status;
	strcpy(item.name, name);
	for (; at > 0 && strcmp(fw_cfg->file[at - 1].name, name) > 0; at--)
		fw_cfg->file[at] = fw_cfg->file[at - 1];
	fw_cfg->file[at] = item;
	fw_cfg->file_count++;
	write_directory(fw_cfg);
	return 0;
}

int fw_cfg_set(struct fw_cfg *fw_cfg, const char *name, const void *bytes, uint32_t size_bytes)
{
	struct item *item = find_file(fw_cfg, name);

	if (!item)
		return -ENOENT;
	if (size_bytes > item->size_bytes)
		return -ENOSPC;
	memcpy(item->bytes, bytes, size_bytes);
	memset(item->bytes + size_bytes, 0, item->size_bytes - size_bytes);
	return 0;
}

/* ---- what the guest does ---- */

static void select_item(struct fw_cfg *fw_cfg, uint16_t key)
{
	unsigned file = (unsigned)key - FW_CFG_FILE;

	fw_cfg->key = key;
	fw_cfg->offset = 0;
	if (key >= FW_CFG_FILE && file < fw_cfg->file_count && fw_cfg->file[file].late && !fw_cfg->made &&
		fw_cfg->config.make) {
		fw_cfg->made = true;
		fw_cfg->config.make(fw_cfg->config.opaque);
	}
}

/* The selected item's bytes; zeros follow its end, as for one that is not there. */
static const uint8_t *selected(const struct fw_cfg *fw_cfg, uint32_t *ret_size_bytes)
{
	const unsigned key = fw_cfg->key;
	const struct item *item = NULL;

	if (key == FW_CFG_DIRECTORY) {
		*ret_size_bytes = 4 + fw_cfg->file_count * ENTRY_BYTES;
		return fw_cfg->directory;
	}
	if (key < NUMBERS)
		item = &fw_cfg->number[key];
	else if (key >= FW_CFG_FILE && key - FW_CFG_FILE < fw_cfg->file_count)
		item = &fw_cfg->file[key - FW_CFG_FILE];
	*ret_size_bytes = item ? item->size_bytes : 0;
	return item ? item->bytes : NULL;
}

static void skip(struct fw_cfg *fw_cfg, uint32_t count)
{
	fw_cfg->offset = count > UINT32_MAX - fw_cfg->offset ? UINT32_MAX : fw_cfg->offset + count;
}

static void take(struct fw_cfg *fw_cfg, uint8_t *to, uint32_t count)
{
	uint32_t size, left, part;
	const uint8_t *bytes = selected(fw_cfg, &size);

	left = fw_cfg->offset < size ? size - fw_cfg->offset : 0;
	part = MIN(count, left);
	if (part)
		memcpy(to, bytes + fw_cfg->offset, part);
	memset(to + part, 0, count - part);
	skip(fw_cfg, count);
}

static bool dma_read(struct fw_cfg *fw_cfg, gpa_t to, uint32_t count)
{
	uint8_t piece[DMA_PIECE];

	if (count > DMA_MAX)
		return false;
	for (uint32_t done = 0, part; done < count; done += part) {
		part = MIN(count - done, DMA_PIECE);
		take(fw_cfg, piece, part);
		if (memory_write(fw_cfg->config.memory, to + done, piece, part) < 0)
			return false;
	}
	return true;
}

static void dma(struct fw_cfg *fw_cfg, gpa_t request)
{
	uint8_t bytes[DMA_BYTES], result[4];
	uint32_t control, count;
	bool ok = true;

	if (memory_read(fw_cfg->config.memory, request, bytes, sizeof(bytes)) < 0)
		return;
	control = load_be32(bytes);
	count = load_be32(bytes + 4);
	if (control & DMA_SELECT)
		select_item(fw_cfg, (uint16_t)(control >> 16));
	if (control & DMA_READ)
		ok = dma_read(fw_cfg, load_be64(bytes + 8), count);
	else if (control & DMA_WRITE)
		ok = false;
	else if (control & DMA_SKIP)
		skip(fw_cfg, count);
	store_be32(result, ok ? 0 : DMA_ERROR);
	(void)!memory_write(fw_cfg->config.memory, request, result, sizeof(result));
}

static uint64_t port_read(void *device, uint64_t offset, unsigned size_bytes)
{
	struct fw_cfg *fw_cfg = device;
	uint8_t byte;

	if (offset != 1 || size_bytes != 1)
		return ~0ull;
	take(fw_cfg, &byte, 1);
	return byte;
}

static void port_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	if (offset == 0 && size_bytes == 2)
		select_item(device, (uint16_t)value);
}

/* Reading says that it is there. */
static uint64_t dma_port_read(void *device, uint64_t offset, unsigned size_bytes)
{
	static const uint8_t here[8] = "QEMU CFG";
	uint64_t value = 0;

	for (unsigned i = 0; i < size_bytes; i++)
		value |= (uint64_t)here[(offset + i) & 7] << 8 * i;
	return value;
}

static void dma_port_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct fw_cfg *fw_cfg = device;
	uint32_t half = be32toh((uint32_t)value);

	if (size_bytes != 4)
		return;
	if (offset == 0) {
		fw_cfg->dma_address = (uint64_t)half << 32;
	} else if (offset == 4) {
		dma(fw_cfg, fw_cfg->dma_address | half);
		fw_cfg->dma_address = 0;
	}
}

/* ---- life ---- */

int fw_cfg_create(const struct fw_cfg_config *config, struct fw_cfg **ret_fw_cfg)
{
	struct fw_cfg *fw_cfg = calloc(1, sizeof(*fw_cfg));
	int status = fw_cfg ? 0 : -ENOMEM;

	for (unsigned i = 0; status == 0 && i < NUMBERS; i++)
		status = item_init(&fw_cfg->number[i], NULL, 8);
	if (status < 0) {
		fw_cfg_free(fw_cfg);
		return status;
	}
	fw_cfg->config = *config;
	memcpy(fw_cfg->number[FW_CFG_SIGNATURE].bytes, "QEMU", 4);
	fw_cfg_add_number(fw_cfg, FW_CFG_ID, 4, ID_TRADITIONAL | ID_DMA);
	fw_cfg->number[FW_CFG_SIGNATURE].size_bytes = 4;
	write_directory(fw_cfg);
	*ret_fw_cfg = fw_cfg;
	return 0;
}

void fw_cfg_free(struct fw_cfg *fw_cfg)
{
	if (!fw_cfg)
		return;
	for (unsigned i = 0; i < NUMBERS; i++)
		free(fw_cfg->number[i].bytes);
	for (unsigned i = 0; i < fw_cfg->file_count; i++)
		free(fw_cfg->file[i].bytes);
	free(fw_cfg);
}

int fw_cfg_attach(struct fw_cfg *fw_cfg, struct bus *bus)
{
	static const struct bus_ops ops = {.read = port_read, .write = port_write};
	static const struct bus_ops dma_ops = {.read = dma_port_read, .write = dma_port_write, .access_max_bytes = 4};
	int status = bus_add(bus, BUS_PIO, FW_CFG_PORT, 2, "fw_cfg", &ops, fw_cfg, fw_cfg->config.lock);

	return status < 0 ? status
			  : bus_add(bus, BUS_PIO, FW_CFG_PORT + 4, 8, "fw_cfg-dma", &dma_ops, fw_cfg,
				    fw_cfg->config.lock);
}
