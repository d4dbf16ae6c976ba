/*
 * The devices of a port or two: device/char/i8042, debug_exit and pvpanic.
 */
#include "tests/device/fake.h"

#include "device/char/debug_exit.h"
#include "device/char/i8042.h"
#include "device/char/pvpanic.h"

#include <errno.h>

struct fixture {
	struct bus *bus;
	struct i8042 i8042;
	struct debug_exit debug_exit;
	struct pvpanic pvpanic;
	pthread_mutex_t lock;
	unsigned resets, exits, panics;
	uint8_t status, events;
};

static void note_reset(void *opaque)
{
	((struct fixture *)opaque)->resets++;
}

static void note_exit(void *opaque, uint8_t status)
{
	struct fixture *f = opaque;

	f->exits++;
	f->status = status;
}

static void note_panic(void *opaque, uint8_t events)
{
	struct fixture *f = opaque;

	f->panics++;
	f->events = events;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	pthread_mutex_init(&f->lock, NULL);
	f->i8042 = (struct i8042){.lock = &f->lock, .reset = note_reset, .opaque = f};
	f->debug_exit = (struct debug_exit){.exit = note_exit, .opaque = f};
	f->pvpanic = (struct pvpanic){.event = note_panic, .opaque = f};
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(i8042_attach(&f->i8042, f->bus), 0);
	assert_int_equal(debug_exit_attach(&f->debug_exit, f->bus, DEBUG_EXIT_PORT), 0);
	assert_int_equal(pvpanic_attach(&f->pvpanic, f->bus, PVPANIC_PORT), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	bus_free(f->bus);
	free(f);
	return 0;
}

static uint8_t command(struct fixture *f, uint8_t byte)
{
	assert_int_equal(inb(f->bus, 0x64) & 0x02, 0); /* never busy: drivers poll this */
	outb(f->bus, 0x64, byte);
	if (!(inb(f->bus, 0x64) & 1))
		return 0;
	byte = inb(f->bus, 0x60);
	assert_int_equal(inb(f->bus, 0x64) & 1, 0);
	return byte;
}

static void test_i8042_probe(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(inb(f->bus, 0x64) & 1, 0); /* nothing to flush */
	assert_int_equal(command(f, 0xaa), 0x55);
	assert_int_equal(command(f, 0x20), 0x30);
	outb(f->bus, 0x64, 0x60);
	outb(f->bus, 0x60, 0x47);
	assert_int_equal(command(f, 0x20), 0x47);
	command(f, 0xad);
	command(f, 0xa7);
	assert_int_equal(command(f, 0x20), 0x77);
	command(f, 0xae);
	command(f, 0xa8);
	assert_int_equal(command(f, 0x20), 0x47);
	assert_int_equal(command(f, 0xab), 0x01); /* nothing plugged in */
	assert_int_equal(command(f, 0xd0) & 3, 3);
	outb(f->bus, 0x60, 0xff); /* to the absent keyboard: no answer */
	assert_int_equal(inb(f->bus, 0x64) & 1, 0);
	outb(f->bus, 0x64, 0xd3);
	outb(f->bus, 0x60, 0x5a);
	assert_int_equal(inb(f->bus, 0x60), 0x5a);
	assert_int_equal(f->resets, 0);
}

static void test_i8042_reset(void **state)
{
	struct fixture *f = *state;

	outb(f->bus, 0x64, 0xfe);
	assert_int_equal(f->resets, 1);
	outb(f->bus, 0x64, 0xd1);
	outb(f->bus, 0x60, 0xdf);
	assert_int_equal(f->resets, 1);
	outb(f->bus, 0x64, 0xd1);
	outb(f->bus, 0x60, 0xde);
	assert_int_equal(f->resets, 2);
}

static void test_i8042_save_load(void **state)
{
	struct fixture *f = *state;
	struct i8042_state saved;

	outb(f->bus, 0x64, 0x60);
	i8042_save(&f->i8042, &saved);
	outb(f->bus, 0x60, 0x11);
	command(f, 0xaa);
	assert_int_equal(i8042_load(&f->i8042, &saved), 0);
	outb(f->bus, 0x60, 0x22);
	assert_int_equal(command(f, 0x20), 0x22);
	saved.output_full = 2;
	assert_int_equal(i8042_load(&f->i8042, &saved), -EINVAL);
	assert_int_equal(command(f, 0x20), 0x22);
}

static void test_debug_exit(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(inb(f->bus, 0xf4), 0xff);
	assert_int_equal(f->exits, 0);
	outb(f->bus, 0xf4, 0x2a);
	assert_int_equal(f->exits, 1);
	assert_int_equal(f->status, 0x2a);
	bus_write(f->bus, BUS_PIO, 0xf4, 4, 0x12345678);
	assert_int_equal(f->exits, 2);
	assert_int_equal(f->status, 0x78);
	outb(f->bus, 0xf5, 1);
	assert_int_equal(f->exits, 2);
}

static void test_pvpanic(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(inb(f->bus, 0x505), 3);
	outb(f->bus, 0x505, 0);
	outb(f->bus, 0x505, 0x80);
	assert_int_equal(f->panics, 0);
	outb(f->bus, 0x505, 1);
	assert_int_equal(f->panics, 1);
	assert_int_equal(f->events, PVPANIC_PANICKED);
}

static void test_hammer(void **state)
{
	struct fixture *f = *state;

	fake_hammer(f->bus, BUS_PIO, 0x5f, 8, 20000);
	fake_hammer(f->bus, BUS_PIO, 0xf0, 12, 2000);
	fake_hammer(f->bus, BUS_PIO, 0x502, 6, 2000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_i8042_probe, setup, teardown),
		cmocka_unit_test_setup_teardown(test_i8042_reset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_i8042_save_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_debug_exit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pvpanic, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hammer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
