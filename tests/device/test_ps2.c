/*
 * device/char/ps2 behind device/char/i8042: what drivers ask at the start, keys with and without translation, the mouse,
 * interrupts, and readers that do not read.
 */
#include "tests/device/fake.h"

#include "device/char/i8042.h"

struct fixture {
	struct bus *bus;
	struct i8042 i8042;
	pthread_mutex_t lock;
	struct fake_irq irq[2];
};

static void note_reset(void *opaque)
{
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	pthread_mutex_init(&f->lock, NULL);
	f->i8042 = (struct i8042){.lock = &f->lock,
		.reset = note_reset,
		.irq = {{fake_irq_set, f->irq, 0}, {fake_irq_set, f->irq, 1}},
		.plugged = true};
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(i8042_attach(&f->i8042, f->bus), 0);
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

static void config(struct fixture *f, uint8_t byte)
{
	outb(f->bus, 0x64, 0x60);
	outb(f->bus, 0x60, byte);
}

/* All that waits must be these bytes, of this device. */
static void expect(struct fixture *f, bool aux, unsigned count, const uint8_t *bytes)
{
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal(inb(f->bus, 0x64) & 0x21, aux ? 0x21 : 0x01);
		assert_int_equal(inb(f->bus, 0x60), bytes[i]);
	}
	assert_int_equal(inb(f->bus, 0x64) & 1, 0);
}

#define EXPECT(f, aux, ...)                                                \
	do {                                                               \
		const uint8_t bytes_[] = {__VA_ARGS__};                    \
		expect(f, aux, sizeof(bytes_), bytes_);                    \
	} while (0)

static void to_mouse(struct fixture *f, uint8_t byte)
{
	outb(f->bus, 0x64, 0xd4);
	outb(f->bus, 0x60, byte);
}

static void test_keyboard(void **state)
{
	struct fixture *f = *state;

	outb(f->bus, 0x64, 0xab);
	EXPECT(f, false, 0x00);
	config(f, 0x00);
	outb(f->bus, 0x60, 0xff);
	EXPECT(f, false, 0xfa, 0xaa);
	outb(f->bus, 0x60, 0xf2);
	EXPECT(f, false, 0xfa, 0xab, 0x83);
	outb(f->bus, 0x60, 0xed);
	EXPECT(f, false, 0xfa);
	outb(f->bus, 0x60, 0x07);
	EXPECT(f, false, 0xfa);
	outb(f->bus, 0x60, 0xf0);
	outb(f->bus, 0x60, 0x00);
	EXPECT(f, false, 0xfa, 0xfa, 0x02);
	outb(f->bus, 0x60, 0xee);
	EXPECT(f, false, 0xee);
	outb(f->bus, 0x60, 0x00); /* no command */
	EXPECT(f, false, 0xfe);
}

static void test_keys(void **state)
{
	struct fixture *f = *state;

	config(f, 0x01);
	i8042_key(&f->i8042, 0x1e, true); /* A */
	i8042_key(&f->i8042, 0x1e, false);
	i8042_key(&f->i8042, PS2_EXTENDED | 0x48, true); /* up */
	i8042_key(&f->i8042, PS2_EXTENDED | 0x48, false);
	assert_true(f->irq[0].level);
	EXPECT(f, false, 0x1c, 0xf0, 0x1c, 0xe0, 0x75, 0xe0, 0xf0, 0x75);
	assert_false(f->irq[0].level);
	assert_int_equal(f->irq[0].rises, 8); /* one for each byte */
	config(f, 0x41); /* translated */
	i8042_key(&f->i8042, 0x1e, true);
	i8042_key(&f->i8042, 0x1e, false);
	i8042_key(&f->i8042, PS2_EXTENDED | 0x48, true);
	i8042_key(&f->i8042, PS2_EXTENDED | 0x48, false);
	i8042_key(&f->i8042, 0x41, true); /* F7, whose code of set 2 is the only one above 0x7f */
	EXPECT(f, false, 0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8, 0x41);
	i8042_key(&f->i8042, 0x7f, true); /* no such key */
	i8042_key(&f->i8042, PS2_EXTENDED | 0x46, true); /* Pause */
	i8042_key(&f->i8042, PS2_EXTENDED | 0x46, false);
	EXPECT(f, false, 0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5);
}

/* Every key goes there and back. */
static void test_translation(void **state)
{
	struct fixture *f = *state;

	for (unsigned code = 1; code < 128; code++) {
		uint8_t set2[2] = {0, 0};

		config(f, 0x00);
		i8042_key(&f->i8042, (uint8_t)code, true);
		if (!(inb(f->bus, 0x64) & 1))
			continue;
		set2[0] = (uint8_t)inb(f->bus, 0x60);
		assert_int_equal(ps2_translate(set2[0]), code);
		config(f, 0x40);
		i8042_key(&f->i8042, (uint8_t)code, false);
		EXPECT(f, false, (uint8_t)(code | 0x80));
	}
}

static void test_mouse(void **state)
{
	struct fixture *f = *state;

	config(f, 0x02);
	outb(f->bus, 0x64, 0xa9);
	EXPECT(f, false, 0x00);
	to_mouse(f, 0xff);
	EXPECT(f, true, 0xfa, 0xaa, 0x00);
	i8042_move(&f->i8042, 5, 5, 0, 0); /* not enabled; kept for the next report */
	assert_int_equal(inb(f->bus, 0x64) & 1, 0);
	to_mouse(f, 0xf4);
	EXPECT(f, true, 0xfa);
	i8042_move(&f->i8042, 1, 2, 0, 1);
	assert_true(f->irq[1].level);
	EXPECT(f, true, 0x29, 6, 0xf9); /* Y counts up there */
	i8042_move(&f->i8042, -300, 0, 3, 1);
	EXPECT(f, true, 0x19, 0x01, 0x00, 0x19, 0xd3, 0x00);
	to_mouse(f, 0xe9);
	EXPECT(f, true, 0xfa, 0x24, 0x02, 100);
}

static void test_wheel(void **state)
{
	struct fixture *f = *state;
	static const uint8_t knock[] = {200, 100, 80};

	config(f, 0x00);
	to_mouse(f, 0xf2);
	EXPECT(f, true, 0xfa, 0x00);
	for (unsigned i = 0; i < 3; i++) {
		to_mouse(f, 0xf3);
		EXPECT(f, true, 0xfa);
		to_mouse(f, knock[i]);
		EXPECT(f, true, 0xfa);
	}
	to_mouse(f, 0xf2);
	EXPECT(f, true, 0xfa, 0x03);
	to_mouse(f, 0xf4);
	EXPECT(f, true, 0xfa);
	i8042_move(&f->i8042, 0, 0, -1, 4);
	EXPECT(f, true, 0x0c, 0, 0, 0xff);
}

/* A guest that reads nothing: what it gets later is whole keys and whole reports. */
static void test_slow_reader(void **state)
{
	struct fixture *f = *state;
	unsigned bytes = 0;

	config(f, 0x00);
	for (unsigned i = 0; i < 1000; i++) {
		i8042_key(&f->i8042, PS2_EXTENDED | 0x48, true);
		i8042_key(&f->i8042, PS2_EXTENDED | 0x48, false);
	}
	while (inb(f->bus, 0x64) & 1) {
		assert_int_equal(inb(f->bus, 0x60), 0xe0);
		if (inb(f->bus, 0x60) == 0xf0)
			assert_int_equal(inb(f->bus, 0x60), 0x75);
		bytes++;
	}
	assert_in_range(bytes, 20, 40);
	to_mouse(f, 0xf4);
	EXPECT(f, true, 0xfa);
	for (unsigned i = 0; i < 1000; i++)
		i8042_move(&f->i8042, 1, 0, 0, 0);
	int x = 0;
	while (inb(f->bus, 0x64) & 1) {
		assert_int_equal(inb(f->bus, 0x60), 0x08);
		x += (int)inb(f->bus, 0x60);
		assert_int_equal(inb(f->bus, 0x60), 0);
	}
	i8042_move(&f->i8042, 0, 0, 0, 0);
	while (inb(f->bus, 0x64) & 1) {
		inb(f->bus, 0x60);
		x += (int)inb(f->bus, 0x60);
		inb(f->bus, 0x60);
	}
	assert_int_equal(x, 1000); /* nothing of the way is lost */
}

static void test_hammer(void **state)
{
	struct fixture *f = *state;

	fake_hammer(f->bus, BUS_PIO, 0x5f, 8, 50000);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_keyboard),
		TEST(test_keys),
		TEST(test_translation),
		TEST(test_mouse),
		TEST(test_wheel),
		TEST(test_slow_reader),
		TEST(test_hammer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
