/*
 * Parallel NOR flash: see the header.
 *
 * Threads: a lock of its own, held around each write cycle.
 */
#include "device/flash.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "device/bus.h"
#include "memory/memory.h"

#define BUFFER_SHIFT 8
#define BUFFER_BYTES (1u << BUFFER_SHIFT)
#define ANSWER_BYTES 256u /* identifiers and query repeat after so many */

/* What a write cycle means: a command, or what belongs to the last one. */
enum cycle { CYCLE_COMMAND, CYCLE_PROGRAM, CYCLE_ERASE, CYCLE_COUNT, CYCLE_DATA, CYCLE_CONFIRM };

enum view { VIEW_ARRAY, VIEW_STATUS, VIEW_IDENTIFIERS, VIEW_QUERY };

struct flash {
	pthread_mutex_t lock;
	struct guest_memory *memory;
	gpa_t base;
	struct flash_store *store;
	enum cycle cycle;
	enum view view, shown;
	uint8_t status, shown_status;
	/* A buffered program. */
	uint8_t buffer[BUFFER_BYTES];
	uint32_t start, count, left; /* bytes */
	bool senseless;
	struct log_limit limit;
};

/* ---- what is read ---- */

static void make_identifiers(uint8_t answer[ANSWER_BYTES])
{
	memset(answer, 0, ANSWER_BYTES);
	answer[0] = 0x89; /* Intel; its chips have larger blocks, so it is none that has a code */
}

/* JESD68.01, 4.3; the offsets are its own. Voltages and times are a chip's; nothing here takes time. */
static void make_query(const struct flash *flash, uint8_t answer[ANSWER_BYTES])
{
	const uint32_t blocks = flash->store->size_bytes / FLASH_BLOCK_BYTES;
	uint8_t size_shift = 0;

	/* Rounded up: the number of blocks is exact. */
	while (1u << size_shift < flash->store->size_bytes)
		size_shift++;
	memset(answer, 0, ANSWER_BYTES);
	memcpy(answer + 0x10, "QRY", 3);
	store_le16(answer + 0x13, 0x0001); /* Intel's command set */
	store_le16(answer + 0x15, 0x0031); /* its table */
	answer[0x1b] = 0x27;		   /* 2.7 V */
	answer[0x1c] = 0x36;
	answer[0x1f] =
		1; /* typical: 2 us a byte, 16 us a buffer, 2 ms an erasure; at most 16 times that */
	answer[0x20] = 4;
	answer[0x21] = 1;
	memset(answer + 0x23, 4, 3);
	answer[0x27] = size_shift;
	store_le16(answer + 0x2a, BUFFER_SHIFT);
	answer[0x2c] = 1; /* region of equal blocks */
	store_le16(answer + 0x2d, (uint16_t)(blocks - 1));
	store_le16(answer + 0x2f, FLASH_BLOCK_BYTES / 256);
	memcpy(answer + 0x31, "PRI10", 5); /* no feature is optional here */
	answer[0x3d] = 0x33;
}

static void repeat(uint8_t *to, const uint8_t answer[ANSWER_BYTES], uint32_t size_bytes)
{
	for (uint32_t at = 0; at < size_bytes; at += ANSWER_BYTES)
		memcpy(to + at, answer, ANSWER_BYTES);
}

/* Guests may read it meanwhile; they get the old bytes or the new. */
static void fill(const struct flash *flash, uint8_t *to)
{
	const uint32_t size = flash->store->size_bytes;
	uint8_t answer[ANSWER_BYTES];

	switch (flash->view) {
	case VIEW_ARRAY: memcpy(to, flash->store->bytes, size); return;
	case VIEW_STATUS: memset(to, flash->status, size); return;
	case VIEW_IDENTIFIERS: make_identifiers(answer); break;
	case VIEW_QUERY: make_query(flash, answer); break;
	}
	repeat(to, answer, size);
}

static void show(struct flash *flash)
{
	const struct memory_region *region = memory_find(flash->memory, flash->base);

	/* Read-only is what it is to the guest. */
	fill(flash, region->host);
	memory_mark_dirty(region, flash->base, flash->store->size_bytes);
	memory_written(flash->memory, flash->base, flash->store->size_bytes);
	flash->shown = flash->view;
	flash->shown_status = flash->status;
}

/* Nothing is programmed or erased while the array is shown. */
static bool is_shown(const struct flash *flash)
{
	return flash->view == flash->shown &&
	       (flash->view != VIEW_STATUS || flash->status == flash->shown_status);
}

/* ---- operations ---- */

static void store(
	struct flash *flash, uint32_t at, const uint8_t *bytes, uint32_t count, uint8_t failure)
{
	int status = flash->store->write(flash->store, at, bytes, count);

	if (status == 0)
		return;
	flash->status |= failure;
	/* Firmware may not look. */
	log_limited(&flash->limit, LOG_LEVEL_WARN, "flash",
		"what the guest's firmware keeps is not written: %s", strerror(-status));
}

static void program(struct flash *flash, uint32_t at, const uint8_t *bytes, uint32_t count)
{
	uint8_t merged[BUFFER_BYTES];

	for (uint32_t i = 0; i < count; i++)
		merged[i] = flash->store->bytes[at + i] & bytes[i];
	store(flash, at, merged, count, FLASH_PROGRAM_FAILED);
}

static void erase(struct flash *flash, uint32_t at)
{
	uint8_t blank[FLASH_BLOCK_BYTES];

	memset(blank, 0xff, sizeof(blank));
	store(flash, at - at % FLASH_BLOCK_BYTES, blank, sizeof(blank), FLASH_ERASE_FAILED);
}

static void refuse(struct flash *flash)
{
	flash->status |= FLASH_PROGRAM_FAILED | FLASH_ERASE_FAILED;
}

/* ---- buffered programs ---- */

static void begin_buffer(struct flash *flash, uint8_t count)
{
	flash->count = flash->left = count + 1u;
	flash->senseless = false;
	memset(flash->buffer, 0xff, sizeof(flash->buffer));
	flash->cycle = CYCLE_DATA;
}

/* The first byte says where; all lie within one block. What does not is told at the end, so that data are no commands. */
static void take_data(struct flash *flash, uint32_t at, uint8_t byte)
{
	if (flash->left == flash->count) {
		flash->start = at;
		flash->senseless = at % FLASH_BLOCK_BYTES + flash->count > FLASH_BLOCK_BYTES;
	}
	if (at - flash->start < flash->count)
		flash->buffer[at - flash->start] = byte;
	else
		flash->senseless = true;
	if (--flash->left == 0)
		flash->cycle = CYCLE_CONFIRM;
}

static void end_buffer(struct flash *flash, uint8_t byte)
{
	if (byte != 0xd0 || flash->senseless)
		refuse(flash);
	else
		program(flash, flash->start, flash->buffer, flash->count);
}

/* ---- cycles ---- */

static void begin(struct flash *flash, enum cycle next)
{
	flash->cycle = next;
	flash->view = VIEW_STATUS;
	flash->status |= FLASH_READY;
}

static void take_command(struct flash *flash, uint8_t command)
{
	switch (command) {
	case 0x10:
	case 0x40: begin(flash, CYCLE_PROGRAM); break;
	case 0x20: begin(flash, CYCLE_ERASE); break;
	case 0xe8: begin(flash, CYCLE_COUNT); break;
	case 0x70: flash->view = VIEW_STATUS; break;
	case 0x90: flash->view = VIEW_IDENTIFIERS; break;
	case 0x98: flash->view = VIEW_QUERY; break;
	case 0x50:
		flash->status = 0;
		flash->view = VIEW_ARRAY;
		break;
	default: flash->view = VIEW_ARRAY; break; /* also what is no command */
	}
}

static void take_cycle(struct flash *flash, uint32_t at, uint8_t byte)
{
	const enum cycle cycle = flash->cycle;

	flash->cycle = CYCLE_COMMAND;
	switch (cycle) {
	case CYCLE_COMMAND: take_command(flash, byte); break;
	case CYCLE_PROGRAM: program(flash, at, &byte, 1); break;
	case CYCLE_ERASE:
		if (byte == 0xd0)
			erase(flash, at);
		else
			refuse(flash);
		break;
	case CYCLE_COUNT: begin_buffer(flash, byte); break;
	case CYCLE_DATA:
		flash->cycle = CYCLE_DATA;
		take_data(flash, at, byte);
		break;
	case CYCLE_CONFIRM: end_buffer(flash, byte); break;
	}
}

static void flash_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct flash *flash = device;

	take_cycle(flash, (uint32_t)offset, (uint8_t)value);
	if (!is_shown(flash))
		show(flash);
}

/* Engines read it as memory. */
static uint64_t flash_read(void *device, uint64_t offset, unsigned size_bytes)
{
	const struct flash *flash = device;
	uint8_t byte = 0xff;

	(void)memory_read(flash->memory, flash->base + offset, &byte, 1);
	return byte;
}

/* ---- life ---- */

int flash_create(const struct flash_config *config, struct flash **ret_flash, struct error *err)
{
	static const struct bus_ops ops = {
		.read = flash_read, .write = flash_write, .access_max_bytes = 1};
	const uint32_t size = config->store->size_bytes;
	struct flash *flash = calloc(1, sizeof(*flash));

	if (!flash)
		return error_set(err, ENOMEM, "no memory for the flash");
	*flash = (struct flash){.memory = config->memory,
		.base = config->base,
		.store = config->store,
		.status = FLASH_READY};
	pthread_mutex_init(&flash->lock, NULL);
	int status =
		memory_add_ram(config->memory, config->base, size, MEMORY_READONLY, "flash", err);
	if (status == 0) {
		show(flash);
		status = bus_add(config->bus, BUS_MMIO, config->base, size, "flash", &ops, flash,
			&flash->lock);
		if (status < 0)
			error_set_errno(err, -status, "no place for the flash");
	}
	if (status < 0) {
		flash_free(flash);
		return status;
	}
	*ret_flash = flash;
	return 0;
}

void flash_free(struct flash *flash)
{
	if (!flash)
		return;
	pthread_mutex_destroy(&flash->lock);
	free(flash);
}
