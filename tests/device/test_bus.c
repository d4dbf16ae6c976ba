/*
 * device/bus: registration, routing by width and straddle, unclaimed addresses, locking.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "device/bus.h"

/* Remembers what it is asked; reads give tag + offset in every byte. */
struct fake {
	uint8_t tag;
	unsigned calls;
	uint64_t offset[16], value[16];
	unsigned size[16];
	pthread_mutex_t *expect_locked;
};

static void fake_note(struct fake *fake, uint64_t offset, unsigned size, uint64_t value)
{
	unsigned at = fake->calls++ % ARRAY_SIZE(fake->offset);

	fake->offset[at] = offset;
	fake->size[at] = size;
	fake->value[at] = value;
	if (fake->expect_locked)
		assert_int_equal(pthread_mutex_trylock(fake->expect_locked), EBUSY);
}

static uint64_t fake_read(void *device, uint64_t offset, unsigned size_bytes)
{
	struct fake *fake = device;

	fake_note(fake, offset, size_bytes, 0);
	/* Garbage above the access must not get through. */
	return (fake->tag + offset) * 0x0101010101010101ull;
}

static void fake_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	fake_note(device, offset, size_bytes, value);
}

static const struct bus_ops fake_ops = {.read = fake_read, .write = fake_write};
static const struct bus_ops byte_ops = {
	.read = fake_read, .write = fake_write, .access_max_bytes = 1};

static int setup(void **state)
{
	return bus_create((struct bus **)state);
}

static int teardown(void **state)
{
	bus_free(*state);
	return 0;
}

static void test_add(void **state)
{
	struct bus *bus = *state;
	struct fake fake = {0};

	assert_int_equal(bus_add(bus, BUS_PIO, 0x100, 0, "x", &fake_ops, &fake, NULL), -EINVAL);
	assert_int_equal(bus_add(bus, BUS_PIO, 0xfffe, 3, "x", &fake_ops, &fake, NULL), -EINVAL);
	assert_int_equal(bus_add(bus, BUS_MMIO, ~0ull, 2, "x", &fake_ops, &fake, NULL), -EINVAL);
	assert_int_equal(bus_add(bus, BUS_PIO, 0xfffe, 2, "x", &fake_ops, &fake, NULL), 0);
	assert_int_equal(bus_add(bus, BUS_PIO, 0x100, 8, "x", &fake_ops, &fake, NULL), 0);
	assert_int_equal(bus_add(bus, BUS_PIO, 0xf9, 8, "x", &fake_ops, &fake, NULL), -EEXIST);
	assert_int_equal(bus_add(bus, BUS_PIO, 0x107, 1, "x", &fake_ops, &fake, NULL), -EEXIST);
	assert_int_equal(bus_add(bus, BUS_PIO, 0x80, 0x200, "x", &fake_ops, &fake, NULL), -EEXIST);
	assert_int_equal(bus_add(bus, BUS_PIO, 0x108, 1, "x", &fake_ops, &fake, NULL), 0);
	assert_int_equal(bus_add(bus, BUS_PIO, 0xf8, 8, "x", &fake_ops, &fake, NULL), 0);
	/* The spaces are apart. */
	assert_int_equal(bus_add(bus, BUS_MMIO, 0x100, 8, "x", &fake_ops, &fake, NULL), 0);
	bus_remove(bus, BUS_PIO, 0x101);
	assert_true(bus_read(bus, BUS_PIO, 0x100, 1) != 0xff);
	bus_remove(bus, BUS_PIO, 0x100);
	assert_true(bus_read(bus, BUS_PIO, 0x100, 1) == 0xff);
	assert_int_equal(bus_add(bus, BUS_PIO, 0x100, 8, "x", &fake_ops, &fake, NULL), 0);
}

static void test_many(void **state)
{
	struct bus *bus = *state;
	struct fake fake[100] = {0};

	for (unsigned n = 0; n < 100; n++) {
		unsigned i = n * 37 % 100;

		fake[i].tag = (uint8_t)i;
		assert_int_equal(bus_add(bus, BUS_MMIO, GIB(1) + i * 0x2000ull, 0x1000, "x",
					 &fake_ops, &fake[i], NULL),
			0);
	}
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(bus_read(bus, BUS_MMIO, GIB(1) + i * 0x2000ull, 1), i);
		assert_int_equal(bus_read(bus, BUS_MMIO, GIB(1) + i * 0x2000ull + 0x1000, 1), 0xff);
	}
}

static void test_widths(void **state)
{
	struct bus *bus = *state;
	struct fake fake = {.tag = 0x10};

	bus_add(bus, BUS_MMIO, 0x1000, 0x10, "x", &fake_ops, &fake, NULL);
	assert_true(bus_read(bus, BUS_MMIO, 0x1002, 2) == 0x1212);
	assert_true(bus_read(bus, BUS_MMIO, 0x1008, 8) == 0x1818181818181818ull);
	bus_write(bus, BUS_MMIO, 0x1003, 2, 0x12345678);
	assert_int_equal(fake.calls, 3);
	assert_int_equal(fake.offset[2], 3);
	assert_int_equal(fake.size[2], 2);
	assert_int_equal(fake.value[2], 0x5678);
}

static void test_pieces(void **state)
{
	struct bus *bus = *state;
	struct fake fake = {.tag = 0x10};

	bus_add(bus, BUS_PIO, 0x70, 8, "x", &byte_ops, &fake, NULL);
	assert_true(bus_read(bus, BUS_PIO, 0x70, 4) == 0x13121110);
	bus_write(bus, BUS_PIO, 0x70, 2, 0xabcd);
	assert_int_equal(fake.calls, 6);
	assert_int_equal(fake.offset[4], 0);
	assert_int_equal(fake.value[4], 0xcd);
	assert_int_equal(fake.offset[5], 1);
	assert_int_equal(fake.value[5], 0xab);
}

static void test_unclaimed(void **state)
{
	struct bus *bus = *state;

	assert_true(bus_read(bus, BUS_PIO, 0x80, 1) == 0xff);
	assert_true(bus_read(bus, BUS_PIO, 0x80, 4) == 0xffffffff);
	assert_true(bus_read(bus, BUS_MMIO, ~0ull - 3, 8) == ~0ull);
	bus_write(bus, BUS_MMIO, ~0ull - 3, 8, 1);
	bus_write(bus, BUS_PIO, 0xffff, 4, 1);
}

static void test_straddle(void **state)
{
	struct bus *bus = *state;
	struct fake a = {.tag = 0x10}, b = {.tag = 0x20};

	bus_add(bus, BUS_PIO, 0x100, 2, "a", &fake_ops, &a, NULL);
	bus_add(bus, BUS_PIO, 0x103, 1, "b", &fake_ops, &b, NULL);
	assert_true(bus_read(bus, BUS_PIO, 0x101, 4) == 0xff20ff11);
	assert_true(bus_read(bus, BUS_PIO, 0xff, 2) == 0x10ff);
	bus_write(bus, BUS_PIO, 0x100, 4, 0x44332211);
	assert_int_equal(a.calls, 4);
	assert_int_equal(a.value[3], 0x22);
	assert_int_equal(b.calls, 2);
	assert_int_equal(b.value[1], 0x44);
	/* The last port: nothing wraps round to port 0. */
	bus_add(bus, BUS_PIO, 0xffff, 1, "c", &fake_ops, &a, NULL);
	bus_add(bus, BUS_PIO, 0, 1, "d", &fake_ops, &b, NULL);
	assert_true(bus_read(bus, BUS_PIO, 0xffff, 2) == 0xff10);
}

static void test_lock(void **state)
{
	struct bus *bus = *state;
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	struct fake fake = {.expect_locked = &lock};

	bus_add(bus, BUS_PIO, 0x70, 8, "x", &byte_ops, &fake, &lock);
	bus_read(bus, BUS_PIO, 0x70, 4);
	bus_write(bus, BUS_PIO, 0x76, 4, 0);
	assert_int_equal(fake.calls, 6);
	assert_int_equal(pthread_mutex_trylock(&lock), 0);
}

/* A device that moves itself when it is written, as a PCI BAR does. */
static void mover_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct bus *bus = device;

	bus_remove(bus, BUS_PIO, 0x200);
	assert_int_equal(bus_add(bus, BUS_PIO, value, 4, "m", &byte_ops, device, NULL), 0);
}

static void test_move(void **state)
{
	static const struct bus_ops mover_ops = {.read = fake_read, .write = mover_write};
	struct bus *bus = *state;

	bus_add(bus, BUS_PIO, 0x200, 4, "m", &mover_ops, bus, NULL);
	bus_write(bus, BUS_PIO, 0x200, 2, 0x300);
	assert_true(bus_read(bus, BUS_PIO, 0x200, 1) == 0xff);
}

/* A doorbell that is rung on the spot may take itself off the bus, as a handler may. */
struct bell {
	struct bus *bus;
	struct bus_doorbell doorbell;
	unsigned rung;
	bool remove;
};

static void ring(void *opaque)
{
	struct bell *bell = opaque;

	bell->rung++;
	if (bell->remove)
		assert_int_equal(bus_remove_doorbell(bell->bus, &bell->doorbell), 0);
}

static void test_ring(void **state)
{
	struct bus *bus = *state;
	struct fake fake = {0};
	struct bell bell = {.bus = bus};

	assert_int_equal(bus_add(bus, BUS_MMIO, 0x1000, 0x10, "fake", &fake_ops, &fake, NULL), 0);
	bell.doorbell = (struct bus_doorbell){.space = BUS_MMIO,
		.addr = 0x1004,
		.size_bytes = 4,
		.value = 7,
		.eventfd = -1,
		.ring = ring,
		.opaque = &bell};
	assert_int_equal(bus_add_doorbell(bus, &bell.doorbell), 0);
	bus_write(bus, BUS_MMIO, 0x1004, 4, 7);
	assert_int_equal(bell.rung, 1);
	bus_write(bus, BUS_MMIO, 0x1004, 4, 8);
	bus_write(bus, BUS_MMIO, 0x1004, 2, 7);
	assert_int_equal(bell.rung, 1);
	assert_int_equal(fake.calls, 2);
	bell.remove = true;
	bus_write(bus, BUS_MMIO, 0x1004, 4, 7);
	bus_write(bus, BUS_MMIO, 0x1004, 4, 7);
	assert_int_equal(bell.rung, 2);
	assert_int_equal(fake.calls, 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_add, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_widths, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pieces, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unclaimed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_straddle, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lock, setup, teardown),
		cmocka_unit_test_setup_teardown(test_move, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ring, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
