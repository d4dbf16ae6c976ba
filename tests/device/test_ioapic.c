/*
 * device/irq/ioapic, with real LAPICs behind it: edges, levels and the EOI cycle, masks, registers.
 */
#include "tests/device/fake.h"

#include "device/irq/ioapic.h"
#include "device/irq/lapic.h"

#include <errno.h>

#define BASE 0xfec00000

struct fixture {
	struct fake_time time;
	struct bus *bus;
	struct lapic_bus *lapics;
	struct lapic *lapic[2];
	struct ioapic *ioapic;
	unsigned nmis;
};

static void note_signal(void *opaque, enum lapic_signal signal, uint8_t vector)
{
	struct fixture *f = opaque;

	f->nmis += signal == LAPIC_SIGNAL_NMI;
}

static void pass_eoi(void *opaque, uint8_t vector)
{
	ioapic_eoi(((struct fixture *)opaque)->ioapic, vector);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct lapic_bus_config lapics = {.time = &f->time.source, .eoi = pass_eoi, .opaque = f};
	struct ioapic_config config = {0};

	fake_time_init(&f->time);
	assert_int_equal(lapic_bus_create(&lapics, &f->lapics), 0);
	for (unsigned i = 0; i < 2; i++) {
		struct lapic_config lapic = {.id = i, .notify = note_signal, .opaque = f};

		assert_int_equal(lapic_create(f->lapics, &lapic, &f->lapic[i]), 0);
		lapic_mmio_write(f->lapic[i], 0xf0, 4, 0x1ff);
	}
	config.lapics = f->lapics;
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(ioapic_create(&config, &f->ioapic), 0);
	assert_int_equal(ioapic_attach(f->ioapic, f->bus, BASE), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	ioapic_free(f->ioapic);
	for (unsigned i = 0; i < 2; i++)
		lapic_free(f->lapic[i]);
	lapic_bus_free(f->lapics);
	bus_free(f->bus);
	free(f);
	return 0;
}

static uint32_t rd(struct fixture *f, uint8_t reg)
{
	bus_write(f->bus, BUS_MMIO, BASE, 4, reg);
	return (uint32_t)bus_read(f->bus, BUS_MMIO, BASE + 0x10, 4);
}

static void wr(struct fixture *f, uint8_t reg, uint32_t value)
{
	bus_write(f->bus, BUS_MMIO, BASE, 4, reg);
	bus_write(f->bus, BUS_MMIO, BASE + 0x10, 4, value);
}

static void program(struct fixture *f, unsigned pin, uint8_t cpu, uint32_t low)
{
	wr(f, (uint8_t)(0x11 + 2 * pin), (uint32_t)cpu << 24);
	wr(f, (uint8_t)(0x10 + 2 * pin), low);
}

static void eoi(struct lapic *lapic)
{
	lapic_mmio_write(lapic, 0xb0, 4, 0);
}

static void test_registers(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(rd(f, 0), 0);
	wr(f, 0, 0xff000000);
	assert_int_equal(rd(f, 0), 0x0f000000);
	assert_int_equal(rd(f, 1), 0x00170020);
	wr(f, 1, 0);
	assert_int_equal(rd(f, 1), 0x00170020);
	for (unsigned pin = 0; pin < 24; pin++)
		assert_int_equal(rd(f, (uint8_t)(0x10 + 2 * pin)), 0x10000);
	wr(f, 0x12, 0xffffffff);
	assert_int_equal(rd(f, 0x12), 0x1afff);
	wr(f, 0x13, 0xffffffff);
	assert_int_equal(rd(f, 0x13), 0xfffe0000);
	/* Past the last entry. */
	wr(f, 0x40, 0xffffffff);
	assert_int_equal(rd(f, 0x40), 0);
	assert_int_equal(rd(f, 0xff), 0);
}

static void test_edge(void **state)
{
	struct fixture *f = *state;

	ioapic_set_irq(f->ioapic, 4, true); /* masked: lost */
	program(f, 4, 1, 0x34);
	assert_int_equal(lapic_ack(f->lapic[1]), -1);
	ioapic_set_irq(f->ioapic, 4, true); /* no edge */
	assert_int_equal(lapic_ack(f->lapic[1]), -1);
	ioapic_set_irq(f->ioapic, 4, false);
	ioapic_set_irq(f->ioapic, 4, true);
	assert_int_equal(lapic_ack(f->lapic[1]), 0x34);
	assert_int_equal(rd(f, 0x18) & 0x4000, 0);
	eoi(f->lapic[1]);
	assert_int_equal(lapic_ack(f->lapic[1]), -1);
	ioapic_set_irq(f->ioapic, 24, true);
	ioapic_set_irq(f->ioapic, ~0u, true);
}

static void test_level(void **state)
{
	struct fixture *f = *state;

	program(f, 9, 0, 0x8059);
	ioapic_set_irq(f->ioapic, 9, true);
	assert_int_equal(rd(f, 0x22), 0xc059);
	assert_int_equal(lapic_ack(f->lapic[0]), 0x59);
	/* While it is in service nothing else comes. */
	ioapic_set_irq(f->ioapic, 9, false);
	ioapic_set_irq(f->ioapic, 9, true);
	assert_int_equal(lapic_mmio_read(f->lapic[0], 0x220, 4), 0);
	/* Still asserted at the EOI: again. */
	eoi(f->lapic[0]);
	assert_int_equal(lapic_ack(f->lapic[0]), 0x59);
	ioapic_set_irq(f->ioapic, 9, false);
	eoi(f->lapic[0]);
	assert_int_equal(lapic_ack(f->lapic[0]), -1);
	assert_int_equal(rd(f, 0x22), 0x8059);
}

static void test_level_mask(void **state)
{
	struct fixture *f = *state;

	program(f, 9, 0, 0x18059);
	ioapic_set_irq(f->ioapic, 9, true);
	assert_int_equal(lapic_ack(f->lapic[0]), -1);
	program(f, 9, 0, 0x8059); /* unmasked while asserted */
	assert_int_equal(lapic_ack(f->lapic[0]), 0x59);
	/* Linux masks in the handler, EOIs, and unmasks once the device is quiet. */
	program(f, 9, 0, 0x18059);
	eoi(f->lapic[0]);
	assert_int_equal(lapic_ack(f->lapic[0]), -1);
	assert_int_equal(rd(f, 0x22) & 0x4000, 0);
	ioapic_set_irq(f->ioapic, 9, false);
	program(f, 9, 0, 0x8059);
	assert_int_equal(lapic_ack(f->lapic[0]), -1);
}

static void test_directed_eoi(void **state)
{
	struct fixture *f = *state;

	lapic_mmio_write(f->lapic[0], 0xf0, 4, 0x11ff);
	program(f, 9, 0, 0x8059);
	ioapic_set_irq(f->ioapic, 9, true);
	assert_int_equal(lapic_ack(f->lapic[0]), 0x59);
	eoi(f->lapic[0]);
	assert_int_equal(rd(f, 0x22), 0xc059);
	ioapic_set_irq(f->ioapic, 9, false);
	bus_write(f->bus, BUS_MMIO, BASE + 0x40, 4, 0x58);
	assert_int_equal(rd(f, 0x22), 0xc059);
	bus_write(f->bus, BUS_MMIO, BASE + 0x40, 4, 0x59);
	assert_int_equal(rd(f, 0x22), 0x8059);
	/* The way of drivers for chips without that register. */
	ioapic_set_irq(f->ioapic, 9, true);
	assert_int_equal(rd(f, 0x22), 0xc059);
	wr(f, 0x22, 0x10059);
	assert_int_equal(rd(f, 0x22), 0x10059);
}

static void test_destinations(void **state)
{
	struct fixture *f = *state;
	unsigned hits[2] = {0};

	lapic_mmio_write(f->lapic[0], 0xd0, 4, 1u << 24);
	lapic_mmio_write(f->lapic[1], 0xd0, 4, 2u << 24);
	program(f, 1, 3, 0x931); /* logical, lowest priority */
	for (unsigned i = 0; i < 4; i++) {
		ioapic_set_irq(f->ioapic, 1, true);
		ioapic_set_irq(f->ioapic, 1, false);
		for (unsigned cpu = 0; cpu < 2; cpu++) {
			if (lapic_ack(f->lapic[cpu]) == 0x31) {
				hits[cpu]++;
				eoi(f->lapic[cpu]);
			}
		}
	}
	assert_int_equal(hits[0], 2);
	assert_int_equal(hits[1], 2);
	program(f, 2, 0xff, 0x400); /* NMI to all */
	ioapic_set_irq(f->ioapic, 2, true);
	assert_int_equal(f->nmis, 2);
	/* Nobody there: the level stays due and is sent once somebody is. */
	program(f, 9, 7, 0x8059);
	ioapic_set_irq(f->ioapic, 9, true);
	assert_int_equal(rd(f, 0x22), 0x8059);
	program(f, 9, 1, 0x8059);
	assert_int_equal(lapic_ack(f->lapic[1]), 0x59);
}

static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct ioapic_state saved, bad;

	program(f, 9, 0, 0x8059);
	program(f, 10, 1, 0x1805a);
	ioapic_set_irq(f->ioapic, 9, true);
	ioapic_set_irq(f->ioapic, 10, true);
	ioapic_save(f->ioapic, &saved);
	assert_int_equal(ioapic_load(f->ioapic, &saved), 0);
	assert_int_equal(rd(f, 0x22), 0xc059);
	assert_int_equal(lapic_ack(f->lapic[0]), 0x59);
	ioapic_set_irq(f->ioapic, 9, false);
	eoi(f->lapic[0]);
	assert_int_equal(rd(f, 0x22), 0x8059);

	bad = saved, bad.id = 16;
	assert_int_equal(ioapic_load(f->ioapic, &bad), -EINVAL);
	bad = saved, bad.lines = 1u << 24;
	assert_int_equal(ioapic_load(f->ioapic, &bad), -EINVAL);
	bad = saved, bad.entry[3] = 0x1000;
	assert_int_equal(ioapic_load(f->ioapic, &bad), -EINVAL);
	bad = saved, bad.entry[3] = 0x4000;
	assert_int_equal(ioapic_load(f->ioapic, &bad), -EINVAL);
}

static void test_hammer(void **state)
{
	struct fixture *f = *state;
	struct ioapic_state s;

	for (unsigned i = 0; i < 200; i++) {
		fake_hammer(f->bus, BUS_MMIO, BASE, 0x44, 200);
		ioapic_set_irq(f->ioapic, i % 30, i & 32);
		ioapic_eoi(f->ioapic, (uint8_t)i);
		ioapic_save(f->ioapic, &s);
		assert_int_equal(ioapic_load(f->ioapic, &s), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_registers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_edge, setup, teardown),
		cmocka_unit_test_setup_teardown(test_level, setup, teardown),
		cmocka_unit_test_setup_teardown(test_level_mask, setup, teardown),
		cmocka_unit_test_setup_teardown(test_directed_eoi, setup, teardown),
		cmocka_unit_test_setup_teardown(test_destinations, setup, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hammer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
