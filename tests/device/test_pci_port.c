/*
 * device/pci/port: a root port whose slot takes a device and gives it back, as a guest's hot-plug driver sees it.
 */
#include "tests/device/fake.h"

#include "device/pci/port.h"

#define ECAM	   0xe0000000ull
#define PORT	   (ECAM + (PCI_DEVFN(28, 0) << 12))
#define CHILD(bus) (ECAM + ((uint64_t)(bus) << 20))
#define CHILD_ID   0x56781234u
#define EVENTS	   0x0109u

struct fixture {
	struct bus *bus;
	struct pci_host *host;
	struct pci_port *port;
	struct pci_device *child;
	pthread_mutex_t host_lock, child_lock;
	struct fake_irq irq;
	unsigned messages, resets, ejects, cap;
};

static void take_message(void *opaque, uint64_t address, uint32_t data)
{
	((struct fixture *)opaque)->messages++;
}

static void reset(void *opaque)
{
	((struct fixture *)opaque)->resets++;
}

static void eject(void *opaque)
{
	struct fixture *f = opaque;

	f->ejects++;
	pci_port_pull(f->port, f->child);
}

static uint32_t get(struct fixture *f, uint64_t addr, unsigned size)
{
	return (uint32_t)bus_read(f->bus, BUS_MMIO, addr, size);
}

static void put(struct fixture *f, uint64_t addr, unsigned size, uint32_t value)
{
	bus_write(f->bus, BUS_MMIO, addr, size, value);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	const struct pci_host_config host = {.lock = &f->host_lock, .buses = 8};

	assert_non_null(f);
	pthread_mutex_init(&f->host_lock, NULL);
	pthread_mutex_init(&f->child_lock, NULL);
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(pci_host_create(&host, &f->host), 0);
	assert_int_equal(pci_host_attach_ecam(f->host, f->bus, ECAM), 0);
	const struct pci_port_config config = {.name = "port",
		.slot = 3,
		.host = f->host,
		.devfn = PCI_DEVFN(28, 0),
		.bus = f->bus,
		.intx = fake_irq_line(&f->irq),
		.msi = {take_message, f},
		.reset = reset,
		.eject = eject,
		.opaque = f};
	const struct pci_device_config child = {.name = "child",
		.vendor = 0x1234,
		.device = 0x5678,
		.bus = f->bus,
		.lock = &f->child_lock,
		.express = PCI_EXPRESS_ENDPOINT};
	assert_int_equal(pci_port_create(&config, &f->port), 0);
	assert_int_equal(pci_device_create(&child, &f->child), 0);
	f->cap = get(f, PORT + 0x34, 1);
	assert_int_equal(get(f, PORT + f->cap, 1), 0x10);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	pci_device_free(f->child);
	pci_port_free(f->port);
	assert_int_equal(get(f, PORT, 4), 0xffffffff);
	assert_false(f->irq.level);
	pci_host_free(f->host);
	bus_free(f->bus);
	free(f);
	return 0;
}

static void test_header(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(get(f, PORT + 0x0a, 2), 0x0604);
	assert_int_equal(get(f, PORT + 0x0e, 1), 1);
	assert_int_equal(get(f, PORT + 0x3d, 1), 2);
	assert_int_equal(get(f, PORT + f->cap + 2, 2), 0x142);
	assert_int_equal(get(f, PORT + f->cap + 0x14, 4) >> 19, 3);
	assert_true(get(f, PORT + f->cap + 0x14, 4) & 0x40);
	/* No I/O window; the others end before they begin, and can be set. */
	put(f, PORT + 0x1c, 2, 0xe0f0);
	assert_int_equal(get(f, PORT + 0x1c, 2), 0);
	assert_int_equal(get(f, PORT + 0x20, 4), 0x0000fff0);
	assert_int_equal(get(f, PORT + 0x24, 4), 0x0001fff1);
	put(f, PORT + 0x24, 4, 0xffffffff);
	assert_int_equal(get(f, PORT + 0x24, 4), 0xfff1fff1);
	/* Nothing is plugged in, nor pressed. */
	assert_true(pci_port_is_empty(f->port));
	pci_port_press(f->port);
	assert_int_equal(get(f, PORT + f->cap + 0x1a, 2), 0);
	put(f, PORT + 0x3e, 2, 0x40);
	put(f, PORT + f->cap + 0x18, 2, 0x400);
	assert_int_equal(f->resets + f->ejects, 0);
}

/* The device is where the bus number says, and nowhere else. */
static void test_bus_number(void **state)
{
	struct fixture *f = *state;

	pci_port_plug(f->port, f->child);
	for (unsigned bus = 1; bus < 8; bus++)
		assert_int_equal(get(f, CHILD(bus), 4), 0xffffffff);
	put(f, PORT + 0x18, 4, 0x050500);
	assert_int_equal(get(f, CHILD(5), 4), CHILD_ID);
	assert_int_equal(get(f, CHILD(5) + (1 << 12), 4), 0xffffffff);
	assert_int_equal(get(f, CHILD(5) + (1 << 15), 4), 0xffffffff);
	put(f, PORT + 0x19, 1, 7);
	assert_int_equal(get(f, CHILD(5), 4), 0xffffffff);
	assert_int_equal(get(f, CHILD(7), 4), CHILD_ID);
	put(f, PORT + 0x3e, 2, 0x40);
	put(f, PORT + 0x3e, 2, 0x40);
	assert_int_equal(f->resets, 1);
}

/* Plugged, asked for, switched off. `control`: which interrupts are on. */
static void go_round(struct fixture *f)
{
	const uint64_t status = PORT + f->cap + 0x1a, control = PORT + f->cap + 0x18;

	put(f, control, 2, 0x1029); /* button, presence, link, interrupt */
	pci_port_plug(f->port, f->child);
	assert_false(pci_port_is_empty(f->port));
	assert_int_equal(get(f, status, 2), 0x0148);
	assert_true(get(f, PORT + f->cap + 0x12, 2) & 0x2000);
	put(f, status + 1, 1, 1);
	assert_int_equal(get(f, status, 2), 0x0048);
	put(f, status, 2, EVENTS);
	assert_int_equal(get(f, status, 2), 0x0040);
	pci_port_press(f->port);
	assert_int_equal(get(f, status, 2), 0x0041);
	put(f, control, 4, EVENTS << 16 | 0x1029);
	assert_int_equal(get(f, status, 2), 0x0040);
	put(f, control, 2, 0x1429);
	assert_true(pci_port_is_empty(f->port));
	assert_int_equal(get(f, status, 2), 0x0108);
	assert_false(get(f, PORT + f->cap + 0x12, 2) & 0x2000);
	put(f, status, 2, EVENTS);
}

static void test_lines(void **state)
{
	struct fixture *f = *state;

	go_round(f);
	assert_int_equal(f->irq.rises, 3);
	assert_false(f->irq.level);
	assert_int_equal(f->ejects, 1);
	go_round(f);
	assert_int_equal(f->irq.rises, 6);
}

static void test_messages(void **state)
{
	struct fixture *f = *state;
	unsigned at = f->cap;

	while (get(f, PORT + at, 1) != 0x11)
		at = get(f, PORT + at + 1, 1);
	pci_device_assign(pci_port_function(f->port), 0, 0xc0000000);
	put(f, PORT + 4, 2, 6);
	put(f, 0xc000000c, 4, 0);
	put(f, PORT + at + 2, 2, 0x8000);
	go_round(f);
	go_round(f);
	assert_int_equal(f->messages, 6);
	assert_int_equal(f->irq.rises, 0);
	fake_hammer(f->bus, BUS_MMIO, PORT, 0x100, 20000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_header, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bus_number, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lines, setup, teardown),
		cmocka_unit_test_setup_teardown(test_messages, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
