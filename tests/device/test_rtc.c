/*
 * device/timer/rtc: reading and setting the clock as Linux does, formats, the three interrupts, NVRAM.
 */
#include "tests/device/fake.h"

#include "base/clock.h"
#include "device/timer/rtc.h"

#include <errno.h>

/* 2024-02-28 23:59:50 UTC, a Wednesday. */
#define START_S 1709164790ull

struct fixture {
	struct bus *bus;
	struct fake_time time;
	struct rtc *rtc;
	struct fake_irq irq;
	pthread_mutex_t lock;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct rtc_config config = {
		.lock = &f->lock, .irq = fake_irq_line(&f->irq), .time = &f->time.source};

	pthread_mutex_init(&f->lock, NULL);
	fake_time_init(&f->time);
	f->time.realtime_base_ns = START_S * NS_PER_SEC - f->time.now_ns;
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(rtc_create(&config, &f->rtc), 0);
	assert_int_equal(rtc_attach(f->rtc, f->bus), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	rtc_free(f->rtc);
	bus_free(f->bus);
	free(f);
	return 0;
}

static uint8_t rd(struct fixture *f, uint8_t index)
{
	outb(f->bus, 0x70, index);
	return inb(f->bus, 0x71);
}

static void wr(struct fixture *f, uint8_t index, uint8_t value)
{
	outb(f->bus, 0x70, index);
	outb(f->bus, 0x71, value);
}

static void assert_clock(struct fixture *f, const uint8_t expect[8])
{
	static const uint8_t index[8] = {0x32, 9, 8, 7, 6, 4, 2, 0};

	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(rd(f, index[i]), expect[i]);
}

#define ASSERT_CLOCK(f, ...) assert_clock(f, (const uint8_t[8]){__VA_ARGS__})

static void test_read(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(rd(f, 0x0b), 0x02);
	assert_int_equal(rd(f, 0x0d), 0x80);
	ASSERT_CLOCK(f, 0x20, 0x24, 0x02, 0x28, 4, 0x23, 0x59, 0x50);
	fake_time_run(&f->time, 10 * NS_PER_SEC);
	ASSERT_CLOCK(f, 0x20, 0x24, 0x02, 0x29, 5, 0x00, 0x00, 0x00);
	/* Bit 7 of the index masks NMIs on a PC, no more. */
	assert_int_equal(rd(f, 0x80 | 7), 0x29);
}

static void test_formats(void **state)
{
	struct fixture *f = *state;

	wr(f, 0x0b, 0x06);
	ASSERT_CLOCK(f, 20, 24, 2, 28, 4, 23, 59, 50);
	wr(f, 0x0b, 0x04);
	assert_int_equal(rd(f, 4), 0x80 | 11);
	wr(f, 0x0b, 0x00);
	assert_int_equal(rd(f, 4), 0x91);
	fake_time_run(&f->time, 10 * NS_PER_SEC);
	assert_int_equal(rd(f, 4), 0x12); /* midnight */
	fake_time_run(&f->time, 12 * 3600 * NS_PER_SEC);
	assert_int_equal(rd(f, 4), 0x92); /* noon */
}

/* mc146818_get_time(): wait while an update is announced, 244 us before it happens. */
static void test_update_in_progress(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(rd(f, 0x0a) & 0x80, 0);
	fake_time_run(&f->time, NS_PER_SEC - 300000);
	assert_int_equal(rd(f, 0x0a) & 0x80, 0);
	fake_time_run(&f->time, 100000);
	assert_int_equal(rd(f, 0x0a) & 0x80, 0x80);
	assert_int_equal(rd(f, 0), 0x50);
	fake_time_run(&f->time, 200000);
	assert_int_equal(rd(f, 0x0a) & 0x80, 0);
	assert_int_equal(rd(f, 0), 0x51);
}

/* mc146818_set_time(). */
static void test_set(void **state)
{
	struct fixture *f = *state;
	uint8_t control = rd(f, 0x0b), select = rd(f, 0x0a);

	wr(f, 0x0b, control | 0x80);
	wr(f, 0x0a, select | 0x70);
	wr(f, 9, 0x99);
	wr(f, 8, 0x12);
	wr(f, 7, 0x31);
	wr(f, 4, 0x23);
	wr(f, 2, 0x59);
	wr(f, 0, 0x58);
	wr(f, 0x32, 0x19);
	fake_time_run(&f->time, NS_PER_SEC); /* held meanwhile */
	assert_int_equal(rd(f, 0), 0x58);
	assert_int_equal(rd(f, 0x0a) & 0x80, 0);
	wr(f, 0x0b, control);
	wr(f, 0x0a, select);
	ASSERT_CLOCK(f, 0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58);
	fake_time_run(&f->time, 2 * NS_PER_SEC);
	ASSERT_CLOCK(f, 0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00);
	/* Without SET a single register moves the clock too; nonsense does no harm. */
	wr(f, 4, 0x05);
	ASSERT_CLOCK(f, 0x20, 0x00, 0x01, 0x01, 7, 0x05, 0x00, 0x00);
	for (unsigned i = 0; i < 10; i++)
		wr(f, (uint8_t)i, 0xff);
	rd(f, 0);
}

static void test_update_interrupt(void **state)
{
	struct fixture *f = *state;

	wr(f, 0x0b, 0x12);
	fake_time_run(&f->time, NS_PER_SEC - 1);
	assert_int_equal(f->irq.rises, 0);
	fake_time_run(&f->time, 2);
	assert_true(f->irq.level);
	assert_int_equal(rd(f, 0x0c), 0x90);
	assert_false(f->irq.level);
	assert_int_equal(rd(f, 0x0c), 0x00);
	fake_time_run(&f->time, NS_PER_SEC);
	assert_int_equal(f->irq.rises, 2);
	/* Not acknowledged: no second edge. Disabled: the line falls. */
	fake_time_run(&f->time, NS_PER_SEC);
	assert_int_equal(f->irq.rises, 2);
	assert_int_equal(rd(f, 0x0b), 0x12);
	wr(f, 0x0b, 0x92); /* setting the clock disables it */
	assert_int_equal(rd(f, 0x0b), 0x82);
	wr(f, 0x0b, 0x02);
	assert_false(f->irq.level);
	assert_null(fake_time_next(&f->time));
}

static void test_alarm(void **state)
{
	struct fixture *f = *state;

	wr(f, 1, 0x05);
	wr(f, 3, 0x00);
	wr(f, 5, 0x00);
	rd(f, 0x0c);
	wr(f, 0x0b, 0x22);
	fake_time_run(&f->time, 14 * NS_PER_SEC);
	assert_int_equal(f->irq.rises, 0);
	fake_time_run(&f->time, NS_PER_SEC + 1);
	assert_int_equal(f->irq.rises, 1);
	assert_int_equal(rd(f, 0x0c), 0xb0);
	/* "Any" in minutes and hours: once a minute. */
	wr(f, 3, 0xff);
	wr(f, 5, 0xc0);
	fake_time_run(&f->time, 60 * NS_PER_SEC);
	assert_int_equal(rd(f, 0x0c) & 0xa0, 0xa0);
	assert_int_equal(f->irq.rises, 2);
}

static void test_periodic(void **state)
{
	struct fixture *f = *state;
	unsigned ticks = 0;

	wr(f, 0x0a, 0x26); /* 1024 Hz */
	wr(f, 0x0b, 0x42);
	for (unsigned i = 0; i < 10000; i++) {
		fake_time_run(&f->time, 100000);
		if (f->irq.level) {
			assert_int_equal(rd(f, 0x0c) & 0xc0, 0xc0);
			ticks++;
		}
		/* Writing the register again and again must not starve it. */
		wr(f, 0x0b, 0x42);
	}
	assert_in_range(ticks, 1022, 1026);
	wr(f, 0x0a, 0x20);
	assert_null(fake_time_next(&f->time));
	wr(f, 0x0a, 0x21); /* 256 Hz */
	f->time.fired = 0;
	fake_time_run(&f->time, NS_PER_SEC);
	assert_in_range(f->time.fired, 255, 257);
	/* The event thread was late: one tick, not a thousand. */
	f->time.now_ns += NS_PER_SEC;
	f->time.fired = 0;
	fake_time_run(&f->time, 0);
	assert_int_equal(f->time.fired, 1);
}

static void test_nvram(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0x0e; i < 0x80; i++) {
		if (i != 0x32)
			wr(f, (uint8_t)i, (uint8_t)(i ^ 0x55));
	}
	for (unsigned i = 0x0e; i < 0x80; i++) {
		if (i != 0x32)
			assert_int_equal(rd(f, (uint8_t)i), i ^ 0x55);
	}
	rtc_set_cmos(f->rtc, 0x34, 0x77);
	assert_int_equal(rd(f, 0x34), 0x77);
	rtc_set_cmos(f->rtc, 0x0b, 0xff);
	rtc_set_cmos(f->rtc, 0x80, 0xff);
	assert_int_equal(rd(f, 0x0b), 0x02);
	/* Index and data in one word. */
	bus_write(f->bus, BUS_PIO, 0x70, 2, 0x9940);
	assert_int_equal(rd(f, 0x40), 0x99);
}

static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct rtc_state saved, bad;

	wr(f, 4, 0x05);
	wr(f, 0x40, 0x12);
	wr(f, 0x0b, 0x12);
	fake_time_run(&f->time, NS_PER_SEC);
	assert_true(f->irq.level);
	rtc_save(f->rtc, &saved);
	rd(f, 0x0c);
	wr(f, 0x0b, 0x02);
	wr(f, 4, 0x07);
	wr(f, 0x40, 0x00);
	assert_int_equal(rtc_load(f->rtc, &saved), 0);
	assert_true(f->irq.level);
	assert_int_equal(rd(f, 0x40), 0x12);
	assert_int_equal(rd(f, 4), 0x05);
	assert_int_equal(rd(f, 0x0c) & 0x90, 0x90);
	fake_time_run(&f->time, NS_PER_SEC);
	assert_true(f->irq.level);
	bad = saved, bad.index = 128;
	assert_int_equal(rtc_load(f->rtc, &bad), -EINVAL);
	bad = saved, bad.offset_s = INT64_MIN;
	assert_int_equal(rtc_load(f->rtc, &bad), -EINVAL);
}

static void test_hammer(void **state)
{
	struct fixture *f = *state;
	struct rtc_state s;

	for (unsigned i = 0; i < 300; i++) {
		fake_hammer(f->bus, BUS_PIO, 0x6f, 4, 100);
		fake_time_run(&f->time, 100000000);
		rtc_save(f->rtc, &s);
		assert_int_equal(rtc_load(f->rtc, &s), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_read, setup, teardown),
		cmocka_unit_test_setup_teardown(test_formats, setup, teardown),
		cmocka_unit_test_setup_teardown(test_update_in_progress, setup, teardown),
		cmocka_unit_test_setup_teardown(test_set, setup, teardown),
		cmocka_unit_test_setup_teardown(test_update_interrupt, setup, teardown),
		cmocka_unit_test_setup_teardown(test_alarm, setup, teardown),
		cmocka_unit_test_setup_teardown(test_periodic, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nvram, setup, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hammer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
