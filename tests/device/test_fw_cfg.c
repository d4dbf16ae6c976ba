/*
 * device/fw_cfg and device/char/debug_console: by ports and by DMA, and what a hostile guest asks of them.
 */
#include "tests/device/fake.h"

#include "base/bytes.h"
#include "base/error.h"
#include "device/char/debug_console.h"
#include "device/fw_cfg.h"
#include "memory/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define RAM_BYTES MIB(1)
#define REQUEST	  0x1000u
#define BUFFER	  0x2000u

#define CONTROL_READ   2u
#define CONTROL_SKIP   4u
#define CONTROL_SELECT 8u
#define CONTROL_WRITE  16u

struct fixture {
	struct bus *bus;
	struct guest_memory *memory;
	struct fw_cfg *fw_cfg;
	pthread_mutex_t lock;
	unsigned makes;
};

static void make(void *opaque)
{
	struct fixture *f = opaque;

	f->makes++;
	assert_int_equal(fw_cfg_set(f->fw_cfg, "etc/late", "made", 4), 0);
	assert_int_equal(fw_cfg_set(f->fw_cfg, "etc/late", "too long", 9), -ENOSPC);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct error err;

	pthread_mutex_init(&f->lock, NULL);
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(memory_create(&f->memory), 0);
	assert_int_equal(memory_add_ram(f->memory, 0, RAM_BYTES, 0, "ram", &err), 0);
	const struct fw_cfg_config config = {.lock = &f->lock, .memory = f->memory, .make = make, .opaque = f};
	assert_int_equal(fw_cfg_create(&config, &f->fw_cfg), 0);
	fw_cfg_add_number(f->fw_cfg, FW_CFG_CPUS, 2, 3);
	assert_int_equal(fw_cfg_add_file(f->fw_cfg, "z", "zz", 2), 0);
	assert_int_equal(fw_cfg_add_file(f->fw_cfg, "etc/late", NULL, 8), 0);
	assert_int_equal(fw_cfg_add_file(f->fw_cfg, "abc", "0123456789", 10), 0);
	assert_int_equal(fw_cfg_attach(f->fw_cfg, f->bus), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	fw_cfg_free(f->fw_cfg);
	memory_free(f->memory);
	bus_free(f->bus);
	free(f);
	return 0;
}

static void select_key(struct fixture *f, unsigned key)
{
	bus_write(f->bus, BUS_PIO, FW_CFG_PORT, 2, key);
}

static void read_bytes(struct fixture *f, void *to, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		((uint8_t *)to)[i] = (uint8_t)bus_read(f->bus, BUS_PIO, FW_CFG_PORT + 1, 1);
}

static uint32_t run_dma(struct fixture *f, uint32_t control, uint32_t count, uint64_t to)
{
	uint8_t request[16];

	store_be32(request, control);
	store_be32(request + 4, count);
	store_be64(request + 8, to);
	assert_int_equal(memory_write(f->memory, REQUEST, request, 16), 0);
	bus_write(f->bus, BUS_PIO, FW_CFG_PORT + 4, 4, htobe32(0));
	bus_write(f->bus, BUS_PIO, FW_CFG_PORT + 8, 4, htobe32(REQUEST));
	assert_int_equal(memory_read(f->memory, REQUEST, request, 4), 0);
	return load_be32(request);
}

static void test_ports(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[16];

	select_key(f, FW_CFG_SIGNATURE);
	read_bytes(f, bytes, 6);
	assert_memory_equal(bytes, "QEMU\0\0", 6);
	select_key(f, FW_CFG_ID);
	read_bytes(f, bytes, 4);
	assert_int_equal(load_le32(bytes), 3);
	select_key(f, FW_CFG_CPUS);
	read_bytes(f, bytes, 4);
	assert_int_equal(load_le32(bytes), 3);
	/* No such item, and none at all: zeros. */
	select_key(f, 0x7fff);
	read_bytes(f, bytes, 2);
	assert_int_equal(load_le16(bytes), 0);
	select_key(f, 0xffff);
	read_bytes(f, bytes, 2);
	assert_int_equal(load_le16(bytes), 0);
	/* Other widths are nothing. */
	assert_int_equal(bus_read(f->bus, BUS_PIO, FW_CFG_PORT, 2) & 0xffff, 0xffff);
}

static void test_directory(void **state)
{
	static const struct {
		const char *name;
		unsigned bytes;
	} wanted[] = {{"abc", 10}, {"etc/late", 8}, {"z", 2}};
	struct fixture *f = *state;
	uint8_t bytes[64];

	select_key(f, FW_CFG_DIRECTORY);
	read_bytes(f, bytes, 4);
	assert_int_equal(load_be32(bytes), ARRAY_SIZE(wanted));
	for (unsigned i = 0; i < ARRAY_SIZE(wanted); i++) {
		read_bytes(f, bytes, 64);
		assert_int_equal(load_be32(bytes), wanted[i].bytes);
		assert_int_equal(load_be16(bytes + 4), FW_CFG_FILE + i);
		assert_string_equal((char *)bytes + 8, wanted[i].name);
	}
	assert_int_equal(fw_cfg_add_file(f->fw_cfg, "abc", "", 0), -EEXIST);
	assert_int_equal(fw_cfg_set(f->fw_cfg, "none", "", 0), -ENOENT);
}

static void test_late(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[9];

	assert_int_equal(f->makes, 0);
	for (unsigned i = 0; i < 2; i++) {
		select_key(f, FW_CFG_FILE + 1);
		read_bytes(f, bytes, 9);
		assert_memory_equal(bytes, "made\0\0\0\0\0", 9);
		assert_int_equal(f->makes, 1);
	}
}

static void test_dma(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[16];

	assert_int_equal(bus_read(f->bus, BUS_PIO, FW_CFG_PORT + 4, 4), load_le32("QEMU"));
	assert_int_equal(bus_read(f->bus, BUS_PIO, FW_CFG_PORT + 8, 4), load_le32(" CFG"));
	assert_int_equal(run_dma(f, FW_CFG_FILE << 16 | CONTROL_SELECT | CONTROL_READ, 4, BUFFER), 0);
	assert_int_equal(run_dma(f, CONTROL_SKIP, 2, 0), 0);
	assert_int_equal(run_dma(f, CONTROL_READ, 8, BUFFER + 4), 0);
	assert_int_equal(memory_read(f->memory, BUFFER, bytes, 12), 0);
	assert_memory_equal(bytes, "01236789\0\0\0\0", 12);
	/* Nothing can be written. */
	assert_int_equal(run_dma(f, FW_CFG_FILE << 16 | CONTROL_SELECT | CONTROL_WRITE, 4, BUFFER), 1);
}

static void test_hostile_dma(void **state)
{
	struct fixture *f = *state;

	/* To where no RAM is, past its end, around the end of the space; too much; a skip without end. */
	assert_int_equal(run_dma(f, CONTROL_READ, 16, RAM_BYTES), 1);
	assert_int_equal(run_dma(f, CONTROL_READ, 16, RAM_BYTES - 8), 1);
	assert_int_equal(run_dma(f, CONTROL_READ, 16, ~0ull - 7), 1);
	assert_int_equal(run_dma(f, CONTROL_READ, ~0u, 0x3000), 1);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(run_dma(f, CONTROL_SKIP, ~0u, 0), 0);
	assert_int_equal(run_dma(f, CONTROL_READ, 16, BUFFER), 0);
	/* A request where no RAM is: nothing happens. */
	bus_write(f->bus, BUS_PIO, FW_CFG_PORT + 4, 4, ~0u);
	bus_write(f->bus, BUS_PIO, FW_CFG_PORT + 8, 4, ~0u);
	/* A request that is its own buffer. */
	assert_int_equal(run_dma(f, FW_CFG_FILE << 16 | CONTROL_SELECT | CONTROL_READ, 16, REQUEST), 0);
}

static void test_debug_console(void **state)
{
	struct fixture *f = *state;
	struct debug_console console = {.lock = &f->lock};
	char text[400] = "";
	int pipe[2];

	assert_int_equal(pipe2(pipe, O_NONBLOCK), 0);
	console.fd = pipe[1];
	assert_int_equal(debug_console_attach(&console, f->bus), 0);
	assert_int_equal(bus_read(f->bus, BUS_PIO, DEBUG_CONSOLE_PORT, 1), 0xe9);
	bus_write(f->bus, BUS_PIO, DEBUG_CONSOLE_PORT, 1, 'h');
	assert_int_equal(read(pipe[0], text, sizeof(text)), -1);
	bus_write(f->bus, BUS_PIO, DEBUG_CONSOLE_PORT, 1, '\n');
	assert_int_equal(read(pipe[0], text, sizeof(text)), 2);
	assert_memory_equal(text, "h\n", 2);
	for (unsigned i = 0; i < 300; i++)
		bus_write(f->bus, BUS_PIO, DEBUG_CONSOLE_PORT, 1, 'x');
	assert_int_equal(read(pipe[0], text, sizeof(text)), 256);
	bus_remove(f->bus, BUS_PIO, DEBUG_CONSOLE_PORT);
	close(pipe[0]);
	close(pipe[1]);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_ports),
		TEST(test_directory),
		TEST(test_late),
		TEST(test_dma),
		TEST(test_hostile_dma),
		TEST(test_debug_console),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
