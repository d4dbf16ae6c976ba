/*
 * device/flash: the command set, as a driver uses it and as nobody should; what the guest reads as memory, and what is kept.
 */
#include "tests/device/fake.h"

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "device/flash.h"
#include "memory/memory.h"

#include <errno.h>

#define BLOCKS 3u
#define SIZE   (BLOCKS * FLASH_BLOCK_BYTES)
#define BASE   (0x100000000ull - 0x10000)

struct fixture {
	struct flash_store store;
	uint8_t bytes[SIZE];
	unsigned writes;
	int failure;
	struct guest_memory *memory;
	struct bus *bus;
	struct flash *flash;
	unsigned heard; /* by the code listener */
};

static int store_write(struct flash_store *store, uint32_t at, const uint8_t *bytes, uint32_t count)
{
	struct fixture *f = container_of(store, struct fixture, store);

	assert_true(count && at < SIZE && count <= SIZE - at);
	if (f->failure)
		return f->failure;
	f->writes++;
	memcpy(f->bytes + at, bytes, count);
	return 0;
}

static void hear(void *opaque, gpa_t gpa, uint64_t size_bytes)
{
	((struct fixture *)opaque)->heard++;
}

static void make_flash(struct fixture *f)
{
	assert_int_equal(memory_create(&f->memory), 0);
	assert_int_equal(bus_create(&f->bus), 0);
	memory_set_code_listener(f->memory, hear, f);
	const struct flash_config config = {
		.memory = f->memory, .bus = f->bus, .base = BASE, .store = &f->store};
	assert_int_equal(flash_create(&config, &f->flash, NULL), 0);
}

static void free_flash(struct fixture *f)
{
	flash_free(f->flash);
	bus_free(f->bus);
	memory_free(f->memory);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	log_level_set(LOG_LEVEL_ERROR);
	f->store =
		(struct flash_store){.bytes = f->bytes, .size_bytes = SIZE, .write = store_write};
	for (unsigned i = 0; i < SIZE; i++)
		f->bytes[i] = (uint8_t)(i * 7 + i / 256 + 1);
	make_flash(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	free_flash(*state);
	free(*state);
	return 0;
}

/* As a guest does: reads are memory, writes go to the bus. */
static uint8_t get(struct fixture *f, uint32_t at)
{
	uint8_t byte;

	assert_int_equal(memory_read(f->memory, BASE + at, &byte, 1), 0);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, BASE + at, 1), byte);
	return byte;
}

static void put(struct fixture *f, uint32_t at, uint8_t byte)
{
	bus_write(f->bus, BUS_MMIO, BASE + at, 1, byte);
}

static bool reads_array(struct fixture *f)
{
	return memcmp(memory_host(f->memory, BASE, SIZE, false), f->bytes, SIZE) == 0;
}

/* At every address. */
static void assert_status(struct fixture *f, uint8_t status)
{
	for (uint32_t at = 0; at < SIZE; at++)
		assert_int_equal(
			*((uint8_t *)memory_host(f->memory, BASE, SIZE, false) + at), status);
}

static void test_memory(void **state)
{
	struct fixture *f = *state;
	uint8_t byte = 0;

	assert_true(reads_array(f));
	assert_null(memory_host(f->memory, BASE, 1, true));
	/* DMA does not get in. */
	assert_int_equal(memory_write(f->memory, BASE + 5, &byte, 1), 0);
	assert_true(reads_array(f));
	assert_int_equal(f->writes, 0);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, BASE, 8), load_le64(f->bytes));
}

/* How OVMF tells flash from ROM and RAM. */
static void test_detection(void **state)
{
	struct fixture *f = *state;
	const uint8_t first = get(f, 0);

	put(f, 0, 0x50);
	assert_int_equal(get(f, 0), first);
	assert_true(reads_array(f));
	put(f, 0, 0x70);
	assert_status(f, 0);
	put(f, 0, 0xff);
	assert_true(reads_array(f));
	put(f, 0, 0x70);
	put(f, 0, 0xf0);
	assert_true(reads_array(f));
	put(f, 0, 0x70);
	put(f, 0, 0x33); /* no command */
	assert_true(reads_array(f));
	assert_int_equal(f->writes, 0);
}

static void test_program(void **state)
{
	struct fixture *f = *state;

	f->bytes[100] = 0xf0;
	put(f, 5, 0x70);
	assert_status(f, FLASH_READY);
	put(f, 100, 0x10);
	assert_status(f, FLASH_READY);
	put(f, 100, 0x3c); /* only from 1 to 0 */
	assert_status(f, FLASH_READY);
	put(f, 101, 0x40);
	put(f, 101, 0x00);
	assert_int_equal(f->bytes[100], 0x30);
	assert_int_equal(f->bytes[101], 0);
	assert_int_equal(f->writes, 2);
	put(f, 0, 0xff);
	assert_true(reads_array(f));
	/* The last byte there is; a command's bits are data here. */
	put(f, SIZE - 1, 0x10);
	put(f, SIZE - 1, 0x20);
	put(f, SIZE - 1, 0xff);
	assert_int_equal(f->bytes[SIZE - 1] & ~0x20, 0);
	assert_true(reads_array(f));
}

static void test_erase(void **state)
{
	struct fixture *f = *state;
	uint8_t before[SIZE];

	memcpy(before, f->bytes, SIZE);
	put(f, 2 * FLASH_BLOCK_BYTES - 1, 0x20);
	assert_int_equal(f->writes, 0);
	put(f, 2 * FLASH_BLOCK_BYTES - 1, 0xd0);
	assert_status(f, FLASH_READY);
	memset(before + FLASH_BLOCK_BYTES, 0xff, FLASH_BLOCK_BYTES);
	assert_memory_equal(f->bytes, before, SIZE);
	/* Not confirmed: nothing happens, and it is told until it is cleared. */
	put(f, 0, 0x20);
	put(f, 0, 0xff);
	assert_status(f, FLASH_READY | FLASH_ERASE_FAILED | FLASH_PROGRAM_FAILED);
	assert_memory_equal(f->bytes, before, SIZE);
	put(f, 0, 0xff);
	assert_true(reads_array(f));
	put(f, 0, 0x70);
	assert_status(f, FLASH_READY | FLASH_ERASE_FAILED | FLASH_PROGRAM_FAILED);
	put(f, 0, 0x50);
	put(f, 0, 0x70);
	assert_status(f, 0);
}

/* e8, the count, bytes at `at` each in turn, and what confirms it. */
static void buffered(struct fixture *f, uint32_t at, unsigned count, uint8_t confirm)
{
	put(f, at, 0xe8);
	assert_int_equal(get(f, at) & FLASH_READY, FLASH_READY);
	put(f, at, (uint8_t)(count - 1));
	for (unsigned i = 0; i < count; i++)
		put(f, at + i, (uint8_t)(i & 0xd0));
	put(f, at, confirm);
}

static void test_buffer(void **state)
{
	struct fixture *f = *state;
	uint8_t want[256];

	memset(f->bytes, 0xff, SIZE);
	for (unsigned i = 0; i < sizeof(want); i++)
		want[i] = (uint8_t)(i & 0xd0);
	buffered(f, FLASH_BLOCK_BYTES - 256, 256, 0xd0);
	assert_int_equal(f->writes, 1);
	assert_memory_equal(f->bytes + FLASH_BLOCK_BYTES - 256, want, 256);
	assert_int_equal(f->bytes[FLASH_BLOCK_BYTES], 0xff);
	assert_int_equal(f->bytes[FLASH_BLOCK_BYTES - 257], 0xff);
	assert_status(f, FLASH_READY);
	/* One byte; the same address twice leaves the other as it was. */
	buffered(f, 0, 1, 0xd0);
	assert_int_equal(f->bytes[0], 0);
	assert_int_equal(f->bytes[1], 0xff);
	put(f, 8, 0xe8);
	put(f, 8, 1);
	put(f, 8, 1);
	put(f, 8, 2);
	put(f, 8, 0xd0);
	assert_int_equal(f->bytes[8], 2);
	assert_int_equal(f->bytes[9], 0xff);
	assert_status(f, FLASH_READY);
}

static void assert_refused(struct fixture *f, unsigned writes)
{
	assert_status(f, FLASH_READY | FLASH_ERASE_FAILED | FLASH_PROGRAM_FAILED);
	assert_int_equal(f->writes, writes);
	put(f, 0, 0x50);
	assert_true(reads_array(f));
}

static void test_buffer_refused(void **state)
{
	struct fixture *f = *state;

	buffered(f, 16, 4, 0xd1); /* not confirmed */
	assert_refused(f, 0);
	buffered(f, FLASH_BLOCK_BYTES - 255, 256, 0xd0); /* into the next block */
	assert_refused(f, 0);
	put(f, SIZE - 4, 0xe8); /* past the end, round to the start */
	put(f, SIZE - 4, 7);
	for (unsigned i = 0; i < 4; i++)
		put(f, SIZE - 4 + i, 0);
	for (unsigned i = 0; i < 4; i++)
		put(f, i, 0);
	put(f, SIZE - 4, 0xd0);
	assert_refused(f, 0);
	put(f, 16, 0xe8); /* below the first */
	put(f, 16, 1);
	put(f, 16, 0);
	put(f, 15, 0);
	put(f, 16, 0xd0);
	assert_refused(f, 0);
	/* Data that look like commands are none, in whatever has gone wrong. */
	put(f, SIZE - 1, 0xe8);
	put(f, SIZE - 1, 3);
	put(f, SIZE - 1, 0x20);
	put(f, 0, 0xd0);
	put(f, 0, 0x20);
	put(f, 0, 0xd0);
	put(f, 0, 0xd0);
	assert_refused(f, 0);
	assert_true(reads_array(f));
}

static void test_query(void **state)
{
	struct fixture *f = *state;
	const uint8_t *from = memory_host(f->memory, BASE, SIZE, false);

	put(f, 0x55, 0x98);
	for (unsigned block = 0; block < BLOCKS; block++) {
		const uint8_t *q = from + block * FLASH_BLOCK_BYTES;

		assert_memory_equal(q + 0x10, "QRY\1\0", 5);
		assert_memory_equal(q + load_le16(q + 0x15), "PRI", 3);
		assert_true(1u << q[0x27] >= SIZE);
		assert_int_equal(1u << load_le16(q + 0x2a), 256);
		assert_int_equal(q[0x2c], 1);
		assert_int_equal((load_le16(q + 0x2d) + 1) * load_le16(q + 0x2f) * 256, SIZE);
	}
	put(f, 0, 0x90);
	assert_int_equal(get(f, 0), 0x89);
	assert_int_equal(get(f, 2), 0); /* no block is locked */
	put(f, 0, 0xff);
	assert_true(reads_array(f));
}

static void test_host_fails(void **state)
{
	struct fixture *f = *state;
	uint8_t before[SIZE];

	memcpy(before, f->bytes, SIZE);
	f->failure = -ENOSPC;
	put(f, 0, 0x10);
	put(f, 0, 0);
	assert_status(f, FLASH_READY | FLASH_PROGRAM_FAILED);
	put(f, 0, 0x50);
	put(f, 0, 0x20);
	put(f, 0, 0xd0);
	assert_status(f, FLASH_READY | FLASH_ERASE_FAILED);
	buffered(f, 0, 16, 0xd0);
	assert_status(f, FLASH_READY | FLASH_ERASE_FAILED | FLASH_PROGRAM_FAILED);
	assert_memory_equal(f->bytes, before, SIZE);
	f->failure = 0;
	put(f, 0, 0xff);
	assert_true(reads_array(f));
}

/* Cycle by cycle, and what is past the end is nobody's. */
static void test_wide(void **state)
{
	struct fixture *f = *state;

	bus_write(f->bus, BUS_MMIO, BASE + 8, 2, 0x0010); /* 10 at 8; 00 at 9 */
	assert_int_equal(f->bytes[9], 0);
	assert_int_equal(f->writes, 1);
	bus_write(f->bus, BUS_MMIO, BASE + SIZE - 2, 4, 0xd0200010);
	assert_int_equal(f->bytes[SIZE - 1], 0);
	assert_int_equal(f->writes, 2);
	put(f, 0, 0xff);
	assert_true(reads_array(f));
}

/* Who runs code there or copies memory hears that it is other bytes now. */
static void test_marks(void **state)
{
	struct fixture *f = *state;
	uint64_t dirty = 0;

	assert_int_equal(memory_dirty_start(f->memory), 0);
	memory_code_mark(f->memory, BASE + FLASH_BLOCK_BYTES, 1);
	put(f, 0, 0x70);
	assert_int_equal(f->heard, 1);
	memory_dirty_fetch(f->memory, 0, &dirty);
	assert_int_equal(dirty, 7);
	put(f, 0, 0x70); /* nothing changes */
	assert_int_equal(f->heard, 1);
	memory_dirty_fetch(f->memory, 0, &dirty);
	assert_int_equal(dirty, 0);
}

/* A machine that is made anew reads the array, whatever the last one was left in, with what was kept. */
static void test_reset(void **state)
{
	struct fixture *f = *state;

	put(f, 7, 0x10);
	put(f, 7, 0);
	put(f, 7, 0x10);
	free_flash(f);
	make_flash(f);
	assert_true(reads_array(f));
	assert_int_equal(get(f, 7), 0);
	put(f, 0, 0x70);
	assert_status(f, FLASH_READY);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(test_detection, setup, teardown),
		cmocka_unit_test_setup_teardown(test_program, setup, teardown),
		cmocka_unit_test_setup_teardown(test_erase, setup, teardown),
		cmocka_unit_test_setup_teardown(test_buffer, setup, teardown),
		cmocka_unit_test_setup_teardown(test_buffer_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(test_query, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wide, setup, teardown),
		cmocka_unit_test_setup_teardown(test_marks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
