/*
 * The 6300ESB's watchdog, driven as Linux's i6300esb does, on a clock that the test moves.
 */
#include "tests/device/fake.h"

#include "device/pci/host.h"
#include "device/pci/i6300esb.h"

#define ECAM   0xe0000000ull
#define SLOT   PCI_DEVFN(7, 0)
#define BAR    0xc0000000u
#define CONFIG 0x60
#define LOCK   0x68
#define RELOAD (BAR + 12)
#define NS     1000000ull
#define NEVER  (100000 * NS)

struct fixture {
	struct bus *bus;
	struct pci_host *host;
	struct fake_time time;
	pthread_mutex_t host_lock, lock;
	struct i6300esb *dog;
	unsigned barks;
};

static void bark(void *opaque)
{
	((struct fixture *)opaque)->barks++;
}

static uint64_t config_read(struct fixture *f, unsigned offset, unsigned size)
{
	return bus_read(f->bus, BUS_MMIO, ECAM + SLOT * 4096 + offset, size);
}

static void config_write(struct fixture *f, unsigned offset, unsigned size, uint64_t value)
{
	bus_write(f->bus, BUS_MMIO, ECAM + SLOT * 4096 + offset, size, value);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	fake_time_init(&f->time);
	pthread_mutex_init(&f->host_lock, NULL);
	pthread_mutex_init(&f->lock, NULL);
	const struct pci_host_config host = {.lock = &f->host_lock};
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(pci_host_create(&host, &f->host), 0);
	assert_int_equal(pci_host_attach_ecam(f->host, f->bus, ECAM), 0);
	const struct i6300esb_config config = {.bus = f->bus,
		.lock = &f->lock,
		.time = &f->time.source,
		.bark = bark,
		.opaque = f};
	assert_int_equal(i6300esb_create(&config, &f->dog), 0);
	assert_int_equal(pci_device_plug(i6300esb_function(f->dog), f->host, SLOT), 0);
	config_write(f, 0x10, 4, BAR);
	config_write(f, 4, 2, 2);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	i6300esb_free(f->dog);
	pci_host_free(f->host);
	bus_free(f->bus);
	free(f);
	return 0;
}

static void unlocked_write(struct fixture *f, uint32_t address, unsigned size, uint32_t value)
{
	bus_write(f->bus, BUS_MMIO, RELOAD, 2, 0x80);
	bus_write(f->bus, BUS_MMIO, RELOAD, 2, 0x86);
	bus_write(f->bus, BUS_MMIO, address, size, value);
}

/* Both stages, in the driver's units of seconds. */
static void set_heartbeat(struct fixture *f, uint32_t seconds)
{
	unlocked_write(f, BAR, 4, seconds << 9);
	unlocked_write(f, BAR + 4, 4, seconds << 9);
	unlocked_write(f, RELOAD, 2, 0x100);
}

static void start(struct fixture *f, uint32_t seconds)
{
	config_write(f, CONFIG, 2, 3);
	config_write(f, LOCK, 1, 0);
	set_heartbeat(f, seconds);
	config_write(f, LOCK, 1, 2);
}

static bool timed_out(struct fixture *f)
{
	return bus_read(f->bus, BUS_MMIO, RELOAD, 2) & 0x200;
}

static void test_probe(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(config_read(f, 0, 4), 0x25ab8086);
	assert_int_equal(config_read(f, 8, 4) >> 8, 0x088000);
	assert_int_equal(config_read(f, 0x34, 1),
		0); /* no capabilities: the registers are where they would be */
	config_write(f, CONFIG, 2, 0xffff);
	assert_int_equal(config_read(f, CONFIG, 2), 0x27);
	fake_time_run(&f->time, NEVER);
	assert_int_equal(f->barks, 0);
	assert_false(timed_out(f));
}

static void test_barks_once(void **state)
{
	struct fixture *f = *state;

	start(f, 30);
	fake_time_run(&f->time, 30400 * NS);
	assert_int_equal(f->barks, 0);
	fake_time_run(&f->time, 200 * NS);
	assert_int_equal(f->barks, 1);
	assert_true(timed_out(f));
	fake_time_run(&f->time, NEVER);
	assert_int_equal(f->barks, 1);
	unlocked_write(f, RELOAD, 2, 0x200);
	assert_false(timed_out(f));
}

static void test_patted(void **state)
{
	struct fixture *f = *state;

	start(f, 10);
	for (unsigned i = 0; i < 100; i++) {
		fake_time_run(&f->time, 9000 * NS);
		unlocked_write(f, RELOAD, 2, 0x100);
	}
	assert_int_equal(f->barks, 0);
	/* Without the sequence, or with half of it, nothing is written. */
	bus_write(f->bus, BUS_MMIO, RELOAD, 2, 0x100);
	bus_write(f->bus, BUS_MMIO, RELOAD, 2, 0x86);
	bus_write(f->bus, BUS_MMIO, RELOAD, 2, 0x100);
	bus_write(f->bus, BUS_MMIO, BAR + 4, 4, 0xfffff);
	fake_time_run(&f->time, 11000 * NS);
	assert_int_equal(f->barks, 1);
}

static void test_stopped_and_locked(void **state)
{
	struct fixture *f = *state;

	start(f, 1);
	config_write(f, LOCK, 1, 0);
	fake_time_run(&f->time, NEVER);
	assert_int_equal(f->barks, 0);
	config_write(f, LOCK, 1, 3);
	config_write(f, LOCK, 1, 0);
	config_write(f, LOCK - 4, 4, 0);
	config_write(f, LOCK, 4, 0);
	assert_int_equal(config_read(f, LOCK, 1), 3);
	fake_time_run(&f->time, 2000 * NS);
	assert_int_equal(f->barks, 1);
}

static void test_modes(void **state)
{
	struct fixture *f = *state;

	/* The fine prescaler: a thousandth. */
	config_write(f, CONFIG, 2, 7);
	set_heartbeat(f, 100);
	config_write(f, LOCK, 1, 2);
	fake_time_run(&f->time, 150 * NS);
	assert_int_equal(f->barks, 1);
	/* Silent. */
	config_write(f, LOCK, 1, 0);
	config_write(f, CONFIG, 2, 0x23);
	set_heartbeat(f, 1);
	config_write(f, LOCK, 1, 2);
	fake_time_run(&f->time, 2000 * NS);
	assert_int_equal(f->barks, 1);
	assert_true(timed_out(f));
	/* Free-running: again and again. */
	config_write(f, LOCK, 1, 0);
	config_write(f, CONFIG, 2, 3);
	config_write(f, LOCK, 1, 6);
	fake_time_run(&f->time, 5300 * NS);
	assert_int_equal(f->barks, 11);
}

/* Any access: nothing but a bark comes of it, and time costs a bounded number of callbacks. */
static void test_hammer(void **state)
{
	struct fixture *f = *state;
	uint32_t seed = 7;

	for (unsigned i = 0; i < 200; i++) {
		fake_hammer(f->bus, BUS_MMIO, BAR, 16, 50);
		fake_hammer(f->bus, BUS_MMIO, ECAM + SLOT * 4096 + 0x50, 0x30, 50);
		unlocked_write(f, BAR + fake_random(&seed) % 16, 1u << fake_random(&seed) % 3,
			fake_random(&seed));
		const unsigned before = f->time.fired;
		fake_time_run(&f->time, NS);
		assert_true(f->time.fired - before < 25);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_probe, setup, teardown),
		cmocka_unit_test_setup_teardown(test_barks_once, setup, teardown),
		cmocka_unit_test_setup_teardown(test_patted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stopped_and_locked, setup, teardown),
		cmocka_unit_test_setup_teardown(test_modes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hammer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
