/*
 * device/acpi_pm: events and the SCI, the PM timer, sleeping and reset.
 */
#include "tests/device/fake.h"

#include "base/clock.h"
#include "device/acpi_pm.h"

#include <errno.h>

#define BASE ACPI_PM_PORT

struct fixture {
	struct bus *bus;
	struct fake_time time;
	struct acpi_pm pm;
	struct fake_irq sci;
	pthread_mutex_t lock;
	unsigned sleeps, resets, sleep_type;
};

static void note_sleep(void *opaque, unsigned type)
{
	struct fixture *f = opaque;

	f->sleeps++;
	f->sleep_type = type;
}

static void note_reset(void *opaque)
{
	((struct fixture *)opaque)->resets++;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	pthread_mutex_init(&f->lock, NULL);
	fake_time_init(&f->time);
	f->pm = (struct acpi_pm){
		.lock = &f->lock,
		.sci = fake_irq_line(&f->sci),
		.time = &f->time.source,
		.sleep = note_sleep,
		.reset = note_reset,
		.opaque = f,
	};
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(acpi_pm_attach(&f->pm, f->bus, BASE), 0);
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

static uint16_t inw(struct fixture *f, unsigned offset)
{
	return (uint16_t)bus_read(f->bus, BUS_PIO, BASE + offset, 2);
}

static void outw(struct fixture *f, unsigned offset, uint16_t value)
{
	bus_write(f->bus, BUS_PIO, BASE + offset, 2, value);
}

static void test_buttons(void **state)
{
	struct fixture *f = *state;

	acpi_pm_press_power(&f->pm);
	assert_false(f->sci.level); /* not enabled, but remembered */
	assert_int_equal(inw(f, 0), 0x0100);
	outw(f, 0, 0x0100);
	outw(f, 2, 0x0320);
	acpi_pm_press_power(&f->pm);
	assert_true(f->sci.level);
	acpi_pm_press_sleep(&f->pm);
	assert_int_equal(inw(f, 0), 0x0300);
	outw(f, 0, 0x0100); /* ones clear, the others stay */
	assert_int_equal(inw(f, 0), 0x0200);
	assert_true(f->sci.level);
	outw(f, 0, 0x0200);
	assert_false(f->sci.level);
	/* Waking is a status without an enable bit. */
	acpi_pm_wake(&f->pm);
	assert_int_equal(inw(f, 0), 0x8000);
	assert_false(f->sci.level);
	outw(f, 2, 0xffff);
	assert_int_equal(inw(f, 2), 0x0721);
}

static void test_sleep(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(inw(f, 4) & 1, 1);
	/* As ACPICA does: the type first, then type and enable. */
	outw(f, 4, ACPI_PM_SLEEP_S5 << 10 | 1);
	assert_int_equal(f->sleeps, 0);
	outw(f, 4, ACPI_PM_SLEEP_S5 << 10 | 0x2001);
	assert_int_equal(f->sleeps, 1);
	assert_int_equal(f->sleep_type, ACPI_PM_SLEEP_S5);
	assert_int_equal(inw(f, 4), ACPI_PM_SLEEP_S5 << 10 | 1); /* SLP_EN reads 0 */
	/* In bytes it is the same. */
	bus_write(f->bus, BUS_PIO, BASE + 5, 1, ACPI_PM_SLEEP_S3 << 2 | 0x20);
	assert_int_equal(f->sleeps, 2);
	assert_int_equal(f->sleep_type, ACPI_PM_SLEEP_S3);
}

static void test_timer(void **state)
{
	struct fixture *f = *state;
	uint32_t start = (uint32_t)bus_read(f->bus, BUS_PIO, BASE + 8, 4), now;

	fake_time_run(&f->time, NS_PER_SEC);
	now = (uint32_t)bus_read(f->bus, BUS_PIO, BASE + 8, 4);
	assert_in_range(now - start, ACPI_PM_TIMER_HZ - 1, ACPI_PM_TIMER_HZ + 1);
	/* Wraps after 20 minutes, and so on for years. */
	f->time.now_ns += 50ull * 365 * 86400 * NS_PER_SEC;
	start = (uint32_t)bus_read(f->bus, BUS_PIO, BASE + 8, 4);
	fake_time_run(&f->time, NS_PER_MS);
	now = (uint32_t)bus_read(f->bus, BUS_PIO, BASE + 8, 4);
	assert_in_range(now - start, 3579, 3580);
	bus_write(f->bus, BUS_PIO, BASE + 8, 4, 0);
	assert_int_equal(bus_read(f->bus, BUS_PIO, BASE + 8, 4), now);
}

static void test_reset(void **state)
{
	struct fixture *f = *state;

	bus_write(f->bus, BUS_PIO, BASE + ACPI_PM_RESET, 1, 0);
	assert_int_equal(f->resets, 0);
	bus_write(f->bus, BUS_PIO, BASE + ACPI_PM_RESET, 1, ACPI_PM_RESET_VALUE);
	assert_int_equal(f->resets, 1);
	bus_write(f->bus, BUS_PIO, BASE + ACPI_PM_RESET + 1, 1, ACPI_PM_RESET_VALUE);
	assert_int_equal(f->resets, 1);
}

static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct acpi_pm_state saved, bad;

	outw(f, 2, 0x0100);
	acpi_pm_press_power(&f->pm);
	acpi_pm_save(&f->pm, &saved);
	outw(f, 0, 0x0100);
	assert_false(f->sci.level);
	assert_int_equal(acpi_pm_load(&f->pm, &saved), 0);
	assert_true(f->sci.level);
	bad = saved, bad.status = 2;
	assert_int_equal(acpi_pm_load(&f->pm, &bad), -EINVAL);
	bad = saved, bad.enable = 0x8000;
	assert_int_equal(acpi_pm_load(&f->pm, &bad), -EINVAL);
	bad = saved, bad.control = 0x2000;
	assert_int_equal(acpi_pm_load(&f->pm, &bad), -EINVAL);
}

static void test_hammer(void **state)
{
	struct fixture *f = *state;
	struct acpi_pm_state s;

	for (unsigned i = 0; i < 200; i++) {
		fake_hammer(f->bus, BUS_PIO, BASE - 1, ACPI_PM_PORTS + 2, 100);
		acpi_pm_press_power(&f->pm);
		acpi_pm_save(&f->pm, &s);
		assert_int_equal(acpi_pm_load(&f->pm, &s), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_buttons, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sleep, setup, teardown),
		cmocka_unit_test_setup_teardown(test_timer, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hammer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
