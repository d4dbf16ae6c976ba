/*
 * Fuzz target: what a guest can do to the flash that holds its firmware's variables: cycles of any bytes and widths at any
 * address, commands that make sense and that do not, while the host at times takes nothing.
 *
 * What must hold: what is read at any time and what is kept is what a model says, which knows of the chip and nothing of
 * our device: it takes the cycles one by one and has no memory to show.
 */
#include "tests/fuzz/rig.h"

#include "base/log.h"
#include "device/flash.h"

#include <errno.h>

#define OPS_MAX 400
#define SIZE	(2 * FLASH_BLOCK_BYTES)
#define BASE	0xfffe0000u

enum reads { ARRAY, STATUS, OTHER };

struct target {
	struct flash_store store;
	uint8_t bytes[SIZE];
	bool full;
	struct guest_memory *memory;
	struct bus *bus;
	struct flash *flash;
	/* The model: the cycles of the command that is under way, of which the first is the command. */
	uint8_t kept[SIZE];
	struct cycle {
		uint32_t at;
		uint8_t byte;
	} cycle[260];
	unsigned cycles;
	enum reads reads;
	uint8_t status;
};

static int store_write(struct flash_store *store, uint32_t at, const uint8_t *bytes, uint32_t count)
{
	struct target *t = container_of(store, struct target, store);

	MUST(count && at < SIZE && count <= SIZE - at);
	if (t->full)
		return -ENOSPC;
	memcpy(t->bytes + at, bytes, count);
	return 0;
}

/* ---- the model ---- */

static void model_program(struct target *t, unsigned first, unsigned count)
{
	uint8_t last[256];
	bool named[256] = {false};
	const uint32_t base = t->cycle[first].at;

	for (unsigned i = 0; i < count; i++) {
		last[t->cycle[first + i].at - base] = t->cycle[first + i].byte;
		named[t->cycle[first + i].at - base] = true;
	}
	for (unsigned i = 0; i < count; i++)
		if (named[i])
			t->kept[base + i] &= last[i];
}

static bool makes_sense(const struct target *t, unsigned count)
{
	const uint32_t base = t->cycle[2].at;

	for (unsigned i = 0; i < count; i++)
		if (t->cycle[2 + i].at < base || t->cycle[2 + i].at >= base + count)
			return false;
	return t->cycle[2 + count].byte == 0xd0 &&
	       base / FLASH_BLOCK_BYTES == (base + count - 1) / FLASH_BLOCK_BYTES;
}

/* All cycles of it are there. */
static void model_end(struct target *t)
{
	const uint8_t command = t->cycle[0].byte;
	const uint32_t block = t->cycle[1].at / FLASH_BLOCK_BYTES * FLASH_BLOCK_BYTES;

	if (command == 0xe8 ? !makes_sense(t, t->cycle[1].byte + 1u) : command == 0x20 && t->cycle[1].byte != 0xd0)
		t->status |= 0x30;
	else if (t->full)
		t->status |= command == 0x20 ? 0x20 : 0x10;
	else if (command == 0x20)
		memset(t->kept + block, 0xff, FLASH_BLOCK_BYTES);
	else if (command == 0xe8)
		model_program(t, 2, t->cycle[1].byte + 1u);
	else
		model_program(t, 1, 1);
}

static unsigned cycles_of(const struct target *t)
{
	switch (t->cycle[0].byte) {
	case 0x10:
	case 0x40:
	case 0x20: return 2;
	case 0xe8: return t->cycles < 2 ? 2 : t->cycle[1].byte + 4u;
	default: return 1;
	}
}

static void model_cycle(struct target *t, uint32_t at, uint8_t byte)
{
	t->cycle[t->cycles++] = (struct cycle){at, byte};
	if (cycles_of(t) > 1) {
		t->reads = STATUS;
		t->status |= 0x80;
		if (t->cycles < cycles_of(t))
			return;
		model_end(t);
	} else if (byte == 0x70) {
		t->reads = STATUS;
	} else if (byte == 0x90 || byte == 0x98) {
		t->reads = OTHER;
	} else {
		t->reads = ARRAY;
		t->status &= byte == 0x50 ? 0 : 0xff;
	}
	t->cycles = 0;
}

/* ---- what is there ---- */

static void check(struct target *t)
{
	const uint8_t *shown = memory_host(t->memory, BASE, SIZE, false);

	MUST(memcmp(t->bytes, t->kept, SIZE) == 0);
	if (t->reads == ARRAY)
		MUST(memcmp(shown, t->kept, SIZE) == 0);
	if (t->reads == STATUS)
		MUST(shown[0] == t->status && memcmp(shown, shown + 1, SIZE - 1) == 0);
}

static void put(struct target *t, uint64_t at, unsigned size, uint64_t value)
{
	for (unsigned i = 0; i < size; i++)
		if (at + i < SIZE)
			model_cycle(t, (uint32_t)(at + i), (uint8_t)(value >> 8 * i));
	bus_write(t->bus, BUS_MMIO, BASE + at, size, value);
}

static uint32_t any_place(struct rig_input *in)
{
	static const uint32_t edges[] = {0, FLASH_BLOCK_BYTES - 256, FLASH_BLOCK_BYTES - 4, FLASH_BLOCK_BYTES, SIZE - 256,
		SIZE - 4};
	const uint8_t how = (uint8_t)rig_take(in, 1);

	if (how & 0x80)
		return (uint32_t)rig_take(in, 2) % SIZE;
	return MIN(edges[how % ARRAY_SIZE(edges)] + (how >> 4), SIZE - 1u);
}

/* What makes sense, mostly. */
static void put_buffer(struct target *t, struct rig_input *in)
{
	const uint32_t at = any_place(in);
	const uint8_t count = (uint8_t)rig_take(in, 1), how = (uint8_t)rig_take(in, 1);

	put(t, at, 1, 0xe8);
	put(t, at, 1, count);
	for (unsigned i = 0; i <= count; i++)
		put(t, (at + (how & 1 ? i : i / 2)) % SIZE, 1, how & 2 ? rig_take(in, 1) : i * how);
	put(t, at, 1, how & 12 ? 0xd0 : how);
}

static void one_op(struct target *t, struct rig_input *in)
{
	static const uint8_t commands[] = {0x10, 0x40, 0x20, 0xd0, 0xe8, 0x50, 0x70, 0x90, 0x98, 0xff, 0, 0xf0};
	const uint8_t op = (uint8_t)rig_take(in, 1);

	switch (op & 7) {
	case 0: put(t, any_place(in), 1u << (op >> 4 & 3), rig_take(in, 8)); break;
	case 1: put_buffer(t, in); break;
	case 2:
		put(t, any_place(in), 1, 0x20);
		put(t, any_place(in), 1, op & 0x80 ? rig_take(in, 1) : 0xd0);
		break;
	case 3:
		put(t, any_place(in), 1, op & 0x80 ? 0x10 : 0x40);
		put(t, any_place(in), 1, rig_take(in, 1));
		break;
	case 4: t->full = op & 0x80; break;
	default: put(t, any_place(in), 1, commands[rig_take(in, 1) % ARRAY_SIZE(commands)]);
	}
	check(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	struct target t = {.store = {.size_bytes = SIZE, .write = store_write}, .status = 0x80};

	log_level_set(LOG_LEVEL_ERROR);
	t.store.bytes = t.bytes;
	memset(t.bytes, 0xff, SIZE / 2);
	memcpy(t.kept, t.bytes, SIZE);
	MUST(memory_create(&t.memory) == 0 && bus_create(&t.bus) == 0);
	const struct flash_config config = {.memory = t.memory, .bus = t.bus, .base = BASE, .store = &t.store};
	MUST(flash_create(&config, &t.flash, NULL) == 0);
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&t, &in);
	flash_free(t.flash);
	bus_free(t.bus);
	memory_free(t.memory);
	return 0;
}
