/*
 * device/timer/hpet: the counter, one-shot and periodic comparators as Linux sets them, levels, legacy
 * replacement.
 */
#include "tests/device/fake.h"

#include "base/clock.h"
#include "device/timer/hpet.h"

#include <errno.h>

#define BASE	 HPET_BASE
#define TIMER(n) (0x100 + 0x20 * (n))

struct fixture {
	struct bus *bus;
	struct fake_time time;
	struct hpet *hpet;
	struct fake_irq irq[32];
	pthread_mutex_t lock;
	unsigned legacy_calls;
	bool legacy;
};

static void note_legacy(void *opaque, bool on)
{
	struct fixture *f = opaque;

	f->legacy_calls++;
	f->legacy = on;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct hpet_config config = {
		.lock = &f->lock,
		.irq = fake_irq_line(f->irq),
		.routes = 0x00f00000, /* pins 20-23 */
		.time = &f->time.source,
		.legacy = note_legacy,
		.opaque = f,
	};

	pthread_mutex_init(&f->lock, NULL);
	fake_time_init(&f->time);
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(hpet_create(&config, &f->hpet), 0);
	assert_int_equal(hpet_attach(f->hpet, f->bus, BASE), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	hpet_free(f->hpet);
	bus_free(f->bus);
	free(f);
	return 0;
}

static uint64_t rd(struct fixture *f, unsigned offset)
{
	return bus_read(f->bus, BUS_MMIO, BASE + offset, 8);
}

static uint32_t rdl(struct fixture *f, unsigned offset)
{
	return (uint32_t)bus_read(f->bus, BUS_MMIO, BASE + offset, 4);
}

static void wr(struct fixture *f, unsigned offset, uint64_t value)
{
	bus_write(f->bus, BUS_MMIO, BASE + offset, 8, value);
}

static void wrl(struct fixture *f, unsigned offset, uint32_t value)
{
	bus_write(f->bus, BUS_MMIO, BASE + offset, 4, value);
}

static void test_counter(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(rdl(f, 0), 0x8086a201);
	assert_int_equal(rdl(f, 4), HPET_PERIOD_FS);
	fake_time_run(&f->time, 1000);
	assert_int_equal(rd(f, 0xf0), 0); /* stands */
	wrl(f, 0x10, 1);
	fake_time_run(&f->time, 1000);
	assert_int_equal(rd(f, 0xf0), 100);
	wrl(f, 0x10, 0);
	fake_time_run(&f->time, 1000);
	assert_int_equal(rd(f, 0xf0), 100);
	wrl(f, 0xf0, 0xfffffff0);
	wrl(f, 0xf4, 0x12);
	wrl(f, 0x10, 1);
	fake_time_run(&f->time, 200);
	assert_true(rd(f, 0xf0) == 0x1300000004ull);
	assert_int_equal(rdl(f, 0xf4), 0x13);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, BASE + 0xf0, 1), 4);
	bus_write(f->bus, BUS_MMIO, BASE + 0x10, 1, 0); /* no such width */
	assert_int_equal(rdl(f, 0x10), 1);
}

static void test_oneshot(void **state)
{
	struct fixture *f = *state;

	wrl(f, 0x10, 1);
	assert_int_equal(rdl(f, TIMER(1) + 4), 0x00f00000);
	wrl(f, TIMER(1), 21 << 9 | 4 | 0x100);
	assert_int_equal(rdl(f, TIMER(1)), 21 << 9 | 4 | 0x100 | 0x30);
	wrl(f, TIMER(1) + 8, rdl(f, 0xf0) + 1000);
	fake_time_run(&f->time, 9990);
	assert_int_equal(f->irq[21].rises, 0);
	fake_time_run(&f->time, 10);
	assert_int_equal(f->irq[21].rises, 1);
	fake_time_run(&f->time, NS_PER_SEC);
	assert_int_equal(f->irq[21].rises, 1);
	/* A moment that has passed comes with the wrap of 32 bits, 43 s later. */
	wrl(f, TIMER(1) + 8, rdl(f, 0xf0) - 1);
	fake_time_run(&f->time, 42 * NS_PER_SEC);
	assert_int_equal(f->irq[21].rises, 1);
	fake_time_run(&f->time, NS_PER_SEC);
	assert_int_equal(f->irq[21].rises, 2);
	/* A route that is not offered does not stick. */
	wrl(f, TIMER(1), 5 << 9);
	assert_int_equal(rdl(f, TIMER(1)) >> 9 & 0x1f, 21);
	assert_false(f->irq[21].level);
	/* Disabled meanwhile. */
	wrl(f, TIMER(1), 21 << 9 | 4);
	wr(f, TIMER(1) + 8, rd(f, 0xf0) + 1000);
	wrl(f, 0x10, 0);
	assert_null(fake_time_next(&f->time));
}

/* hpet_set_periodic(): first moment with the value-set bit, then the period. */
static void test_periodic(void **state)
{
	struct fixture *f = *state;

	wrl(f, 0x10, 1);
	wrl(f, TIMER(0), 20 << 9 | 4 | 8 | 0x40 | 0x100);
	wrl(f, TIMER(0) + 8, 400000);
	wrl(f, TIMER(0) + 8, 400000);
	assert_int_equal(rdl(f, TIMER(0)) & 0x40, 0);
	fake_time_run(&f->time, NS_PER_SEC);
	assert_int_equal(f->irq[20].rises, 250);
	/* The event thread was late: once, in phase. */
	f->irq[20].rises = 0;
	f->time.now_ns += NS_PER_SEC + 1000000;
	fake_time_run(&f->time, 0);
	assert_int_equal(f->irq[20].rises, 1);
	fake_time_run(&f->time, 3000000 - 10);
	assert_int_equal(f->irq[20].rises, 1);
	fake_time_run(&f->time, 10);
	assert_int_equal(f->irq[20].rises, 2);
	/* The first moment is its own: 4 ms from now, and then every 1 ms. */
	wrl(f, TIMER(0), 20 << 9 | 4 | 8 | 0x40 | 0x100);
	wrl(f, TIMER(0) + 8, rdl(f, 0xf0) + 400000);
	wrl(f, TIMER(0) + 8, 100000);
	f->irq[20].rises = 0;
	fake_time_run(&f->time, 3900000);
	assert_int_equal(f->irq[20].rises, 0);
	fake_time_run(&f->time, 1200000);
	assert_int_equal(f->irq[20].rises, 2);
	/* No storm. */
	wrl(f, TIMER(0) + 8, 1);
	fake_time_run(&f->time, 5000000);
	f->time.fired = 0;
	fake_time_run(&f->time, NS_PER_MS);
	assert_in_range(f->time.fired, 10, 21);
	wrl(f, TIMER(0) + 8, 0);
	fake_time_run(&f->time, NS_PER_MS);
}

static void test_level(void **state)
{
	struct fixture *f = *state;

	wrl(f, 0x10, 1);
	wrl(f, TIMER(2), 22 << 9 | 4 | 2);
	wr(f, TIMER(2) + 8, rd(f, 0xf0) + 100);
	fake_time_run(&f->time, 1000);
	assert_true(f->irq[22].level);
	assert_int_equal(rdl(f, 0x20), 4);
	wrl(f, 0x20, 3);
	assert_true(f->irq[22].level);
	wrl(f, 0x20, 4);
	assert_false(f->irq[22].level);
	assert_int_equal(rdl(f, 0x20), 0);
	/* Moved away while it stands: the line does not stay up. */
	wr(f, TIMER(2) + 8, rd(f, 0xf0) + 100);
	fake_time_run(&f->time, 1000);
	assert_true(f->irq[22].level);
	wrl(f, TIMER(2), 23 << 9 | 4 | 2);
	assert_false(f->irq[22].level);
}

static void test_legacy(void **state)
{
	struct fixture *f = *state;

	wrl(f, 0x10, 3);
	assert_true(f->legacy);
	wrl(f, TIMER(0), 4);
	wrl(f, TIMER(1), 4);
	wr(f, TIMER(0) + 8, rd(f, 0xf0) + 100);
	wr(f, TIMER(1) + 8, rd(f, 0xf0) + 200);
	fake_time_run(&f->time, 2000);
	assert_int_equal(f->irq[0].rises, 1);
	assert_int_equal(f->irq[8].rises, 1);
	assert_int_equal(f->irq[20].rises, 0);
	wrl(f, 0x10, 1);
	assert_false(f->legacy);
	assert_int_equal(f->legacy_calls, 2);
}

static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct hpet_state saved, bad;

	wrl(f, 0x10, 1);
	wrl(f, TIMER(0), 20 << 9 | 4 | 8 | 0x40);
	wr(f, TIMER(0) + 8, 100000);
	wrl(f, TIMER(1), 21 << 9 | 4);
	wr(f, TIMER(1) + 8, 50000);
	/* One is due, its callback late: the save has it done. */
	f->time.now_ns += 600000;
	hpet_save(f->hpet, &saved);
	assert_int_equal(f->irq[21].rises, 1);
	assert_int_equal(saved.counter, 60000);
	wrl(f, 0x10, 0);
	wrl(f, TIMER(0), 0);
	f->time.now_ns += NS_PER_SEC;
	assert_int_equal(hpet_load(f->hpet, &saved), 0);
	assert_int_equal(rd(f, 0xf0), 60000);
	fake_time_run(&f->time, 400000);
	assert_int_equal(f->irq[20].rises, 1);
	fake_time_run(&f->time, 1000000);
	assert_int_equal(f->irq[20].rises, 2);

	bad = saved, bad.config = 4;
	assert_int_equal(hpet_load(f->hpet, &bad), -EINVAL);
	bad = saved, bad.status = 8;
	assert_int_equal(hpet_load(f->hpet, &bad), -EINVAL);
	bad = saved, bad.timer[2].config |= 1;
	assert_int_equal(hpet_load(f->hpet, &bad), -EINVAL);
	bad = saved, bad.timer[2].config = 5 << 9;
	assert_int_equal(hpet_load(f->hpet, &bad), -EINVAL);
	bad = saved, bad.timer[0].config |= 0x100, bad.timer[0].period = 1ull << 32;
	assert_int_equal(hpet_load(f->hpet, &bad), -EINVAL);
}

static void test_hammer(void **state)
{
	struct fixture *f = *state;
	struct hpet_state s;

	for (unsigned i = 0; i < 300; i++) {
		fake_hammer(f->bus, BUS_MMIO, BASE, i & 1 ? 0x170 : HPET_BYTES + 4, 100);
		fake_time_run(&f->time, 1000000);
		hpet_save(f->hpet, &s);
		assert_int_equal(hpet_load(f->hpet, &s), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_counter, setup, teardown),
		cmocka_unit_test_setup_teardown(test_oneshot, setup, teardown),
		cmocka_unit_test_setup_teardown(test_periodic, setup, teardown),
		cmocka_unit_test_setup_teardown(test_level, setup, teardown),
		cmocka_unit_test_setup_teardown(test_legacy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hammer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
