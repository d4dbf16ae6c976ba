/*
 * device/timer/pit: Linux's TSC calibrations and clock event, counter reads, read-back, the gate.
 */
#include "tests/device/fake.h"

#include "base/clock.h"
#include "device/timer/pit.h"

#include <errno.h>

#define TICK_NS (NS_PER_SEC / PIT_HZ)

struct fixture {
	struct bus *bus;
	struct fake_time time;
	struct pit *pit;
	struct fake_irq irq;
	pthread_mutex_t lock;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct pit_config config = {
		.lock = &f->lock, .irq = fake_irq_line(&f->irq), .time = &f->time.source};

	pthread_mutex_init(&f->lock, NULL);
	fake_time_init(&f->time);
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(pit_create(&config, &f->pit), 0);
	assert_int_equal(pit_attach(f->pit, f->bus), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	pit_free(f->pit);
	bus_free(f->bus);
	free(f);
	return 0;
}

static void program(struct fixture *f, unsigned channel, unsigned mode, uint16_t count)
{
	outb(f->bus, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
	outb(f->bus, (uint16_t)(0x40 + channel), (uint8_t)count);
	outb(f->bus, (uint16_t)(0x40 + channel), (uint8_t)(count >> 8));
}

/* Two reads in a fixed order, which `a | b << 8` would not have. */
static int read_word(struct fixture *f, uint16_t port)
{
	int low = inb(f->bus, port);

	return low | inb(f->bus, port) << 8;
}

static uint16_t count_of(struct fixture *f, unsigned channel)
{
	outb(f->bus, 0x43, (uint8_t)(channel << 6));
	return (uint16_t)read_word(f, (uint16_t)(0x40 + channel));
}

/* pit_calibrate_tsc(): a mode 0 count of 50 ms on channel 2, watched in port 0x61. */
static void test_calibrate_output(void **state)
{
	struct fixture *f = *state;
	uint64_t start;

	outb(f->bus, 0x61, (uint8_t)((inb(f->bus, 0x61) & ~0x02) | 0x01));
	program(f, 2, 0, PIT_HZ / 20);
	start = f->time.now_ns;
	while (!(inb(f->bus, 0x61) & 0x20)) {
		assert_true(f->time.now_ns - start < 60 * NS_PER_MS);
		fake_time_run(&f->time, 1000);
	}
	assert_in_range(f->time.now_ns - start, 49990000, 50010000);
	assert_int_equal(f->irq.rises, 0);
}

/* quick_pit_calibrate(): the high byte of channel 2 counts down from 0xff, unlatched reads. */
static void test_calibrate_quick(void **state)
{
	struct fixture *f = *state;
	uint8_t high, last = 0xff;
	unsigned steps = 0;

	outb(f->bus, 0x61, 0x01);
	outb(f->bus, 0x43, 0xb0);
	outb(f->bus, 0x42, 0xff);
	outb(f->bus, 0x42, 0xff);
	for (unsigned i = 0; i < 5000; i++) {
		inb(f->bus, 0x42);
		high = inb(f->bus, 0x42);
		if (high != last) {
			assert_int_equal(high, last - 1);
			last = high;
			steps++;
		}
		fake_time_run(&f->time, 2000);
	}
	assert_in_range(steps, 45, 47); /* 10 ms at 214 us each */
}

static void test_periodic(void **state)
{
	struct fixture *f = *state;

	program(f, 0, 2, 4772); /* HZ=250 */
	fake_time_run(&f->time, NS_PER_SEC);
	assert_in_range(f->irq.rises, 249, 251);
	f->irq.rises = 0;
	program(f, 0, 3, 0); /* 18.2 Hz */
	fake_time_run(&f->time, NS_PER_SEC);
	assert_int_equal(f->irq.rises, 18);
	/* A late event thread skips, and the phase stays. */
	f->irq.rises = 0;
	f->time.now_ns += NS_PER_SEC;
	fake_time_run(&f->time, 0);
	assert_int_equal(f->irq.rises, 1);
}

static void test_oneshot(void **state)
{
	struct fixture *f = *state;

	program(f, 0, 4, 1193);
	fake_time_run(&f->time, 990000);
	assert_int_equal(f->irq.rises, 0);
	fake_time_run(&f->time, 20000);
	assert_int_equal(f->irq.rises, 1);
	fake_time_run(&f->time, NS_PER_SEC);
	assert_int_equal(f->irq.rises, 1);
	/* Set anew before the end: only the new one counts. Then switched off. */
	program(f, 0, 0, 1193);
	assert_false(f->irq.level);
	fake_time_run(&f->time, 500000);
	program(f, 0, 0, 1193);
	fake_time_run(&f->time, 900000);
	assert_int_equal(f->irq.rises, 1);
	fake_time_run(&f->time, 200000);
	assert_int_equal(f->irq.rises, 2);
	/* A callback that was under way when the guest re-armed does not count. */
	program(f, 0, 2, 1193);
	f->irq.rises = 0;
	f->time.timer[0].fire(f->time.timer[0].opaque);
	assert_int_equal(f->irq.rises, 0);
	outb(f->bus, 0x43, 0x30);
	assert_null(fake_time_next(&f->time));
}

static void test_no_storm(void **state)
{
	struct fixture *f = *state;

	program(f, 0, 2, 1);
	f->time.fired = 0;
	fake_time_run(&f->time, NS_PER_MS);
	assert_in_range(f->time.fired, 10, 25);
	program(f, 0, 2, 59);
	f->time.fired = 0;
	fake_time_run(&f->time, NS_PER_MS);
	assert_in_range(f->time.fired, 10, 25);
}

static void test_counts(void **state)
{
	struct fixture *f = *state;

	program(f, 0, 2, 1000);
	fake_time_run(&f->time, 100 * TICK_NS + 500);
	assert_int_equal(count_of(f, 0), 900);
	fake_time_run(&f->time, 1000 * TICK_NS + 500);
	assert_in_range(count_of(f, 0), 899, 901);
	/* A latch holds until both bytes are read, also against a second latch. */
	outb(f->bus, 0x43, 0x00);
	fake_time_run(&f->time, 100 * TICK_NS);
	outb(f->bus, 0x43, 0x00);
	assert_int_equal(read_word(f, 0x40), 899);
	assert_in_range(count_of(f, 0), 798, 801);
	program(f, 0, 3, 1000);
	fake_time_run(&f->time, 100 * TICK_NS + 500);
	assert_int_equal(count_of(f, 0), 800);
	/* One byte only. */
	outb(f->bus, 0x43, 0x94); /* channel 2, low byte, mode 2 */
	outb(f->bus, 0x61, 1);
	outb(f->bus, 0x42, 200);
	fake_time_run(&f->time, 50 * TICK_NS + 500);
	assert_int_equal(inb(f->bus, 0x42), 150);
	assert_int_equal(inb(f->bus, 0x42), 150);
	/* BCD. */
	outb(f->bus, 0x43, 0x35);
	outb(f->bus, 0x40, 0x00);
	outb(f->bus, 0x40, 0x10);
	fake_time_run(&f->time, 1 * TICK_NS + 500);
	assert_int_equal(count_of(f, 0), 0x0999);
}

static void test_read_back(void **state)
{
	struct fixture *f = *state;

	outb(f->bus, 0x43, 0x34);
	outb(f->bus, 0x43, 0xe2);		   /* status of channel 0 */
	assert_int_equal(inb(f->bus, 0x40), 0xf4); /* output high, null count */
	program(f, 0, 2, 1000);
	program(f, 2, 0, 1000);
	outb(f->bus, 0x61, 1);
	fake_time_run(&f->time, 100 * TICK_NS + 500);
	outb(f->bus, 0x43, 0xca); /* count and status of 0 and 2 */
	assert_int_equal(inb(f->bus, 0x40), 0xb4);
	assert_int_equal(read_word(f, 0x40), 900);
	assert_int_equal(inb(f->bus, 0x42), 0x30);
	assert_int_equal(read_word(f, 0x42), 900);
}

static void test_gate(void **state)
{
	struct fixture *f = *state;

	outb(f->bus, 0x61, 0);
	program(f, 2, 0, 1000);
	fake_time_run(&f->time, NS_PER_SEC);
	assert_int_equal(inb(f->bus, 0x61) & 0x20, 0);
	assert_int_equal(count_of(f, 2), 1000);
	outb(f->bus, 0x61, 3);
	assert_int_equal(inb(f->bus, 0x61) & 3, 3);
	fake_time_run(&f->time, 400 * TICK_NS + 500);
	outb(f->bus, 0x61, 0);
	fake_time_run(&f->time, NS_PER_SEC);
	assert_int_equal(count_of(f, 2), 600);
	outb(f->bus, 0x61, 1);
	fake_time_run(&f->time, 601 * TICK_NS);
	assert_int_equal(inb(f->bus, 0x61) & 0x20, 0x20);
	/* Mode 2 starts anew when the gate rises. */
	program(f, 2, 2, 1000);
	fake_time_run(&f->time, 400 * TICK_NS);
	outb(f->bus, 0x61, 0);
	outb(f->bus, 0x61, 1);
	assert_int_equal(count_of(f, 2), 1000);
}

static void test_refresh(void **state)
{
	struct fixture *f = *state;
	unsigned toggles = 0;
	uint8_t last = inb(f->bus, 0x61) & 0x10;

	for (unsigned i = 0; i < 1000; i++) {
		uint8_t now;

		fake_time_run(&f->time, 1000);
		now = inb(f->bus, 0x61) & 0x10;
		toggles += now != last;
		last = now;
	}
	assert_in_range(toggles, 65, 67);
}

static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct pit_state saved, bad;

	program(f, 0, 2, 11932); /* 10 ms */
	fake_time_run(&f->time, 5 * NS_PER_MS);
	pit_save(f->pit, &saved);
	program(f, 0, 0, 0);
	assert_int_equal(pit_load(f->pit, &saved), 0);
	f->irq.rises = 0;
	fake_time_run(&f->time, 4900000);
	assert_int_equal(f->irq.rises, 0);
	fake_time_run(&f->time, 200000);
	assert_int_equal(f->irq.rises, 1);
	bad = saved, bad.channel[0].count = 0;
	assert_int_equal(pit_load(f->pit, &bad), -EINVAL);
	bad = saved, bad.channel[0].count = 65537;
	assert_int_equal(pit_load(f->pit, &bad), -EINVAL);
	bad = saved, bad.channel[1].mode = 6;
	assert_int_equal(pit_load(f->pit, &bad), -EINVAL);
	bad = saved, bad.channel[2].access = 0;
	assert_int_equal(pit_load(f->pit, &bad), -EINVAL);
	bad = saved, bad.channel[0].start_ns = ~0ull;
	assert_int_equal(pit_load(f->pit, &bad), -EINVAL);
	bad = saved, bad.channel[0].gate = false;
	assert_int_equal(pit_load(f->pit, &bad), -EINVAL);
	bad = saved, bad.channel[2].held_ns = ~0ull;
	assert_int_equal(pit_load(f->pit, &bad), -EINVAL);
}

static void test_hammer(void **state)
{
	struct fixture *f = *state;
	struct pit_state s;

	for (unsigned i = 0; i < 300; i++) {
		fake_hammer(f->bus, BUS_PIO, 0x3f, 6, 100);
		fake_hammer(f->bus, BUS_PIO, 0x61, 1, 5);
		fake_time_run(&f->time, 100000);
		pit_save(f->pit, &s);
		assert_int_equal(pit_load(f->pit, &s), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_calibrate_output, setup, teardown),
		cmocka_unit_test_setup_teardown(test_calibrate_quick, setup, teardown),
		cmocka_unit_test_setup_teardown(test_periodic, setup, teardown),
		cmocka_unit_test_setup_teardown(test_oneshot, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_storm, setup, teardown),
		cmocka_unit_test_setup_teardown(test_counts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_read_back, setup, teardown),
		cmocka_unit_test_setup_teardown(test_gate, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refresh, setup, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hammer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
