/*
 * device/pci/host: both ways into configuration space, absent functions, the reset register.
 */
#include "tests/device/fake.h"

#include "device/pci/host.h"

#include <errno.h>

#define ECAM 0xe0000000ull

struct fixture {
	struct bus *bus;
	struct pci_host *host;
	pthread_mutex_t lock;
	unsigned resets;
	uint8_t space[4096]; /* of a function at 00:03.1 */
};

static void note_reset(void *opaque)
{
	((struct fixture *)opaque)->resets++;
}

static uint32_t space_read(void *function, unsigned offset, unsigned size_bytes)
{
	struct fixture *f = function;
	uint32_t value = 0;

	assert_true(offset + size_bytes <= sizeof(f->space));
	memcpy(&value, f->space + offset, size_bytes);
	return value;
}

static void space_write(void *function, unsigned offset, unsigned size_bytes, uint32_t value)
{
	struct fixture *f = function;

	assert_true(offset + size_bytes <= sizeof(f->space));
	memcpy(f->space + offset, &value, size_bytes);
}

static const struct pci_function_ops space_ops = {
	.config_read = space_read, .config_write = space_write};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct pci_host_config config = {.lock = &f->lock, .reset = note_reset, .opaque = f};

	pthread_mutex_init(&f->lock, NULL);
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(pci_host_create(&config, &f->host), 0);
	assert_int_equal(pci_host_attach(f->host, f->bus), 0);
	assert_int_equal(pci_host_attach_ecam(f->host, f->bus, ECAM), 0);
	assert_int_equal(pci_host_add(f->host, PCI_DEVFN(3, 1), &space_ops, f), 0);
	for (unsigned i = 0; i < sizeof(f->space); i++)
		f->space[i] = (uint8_t)(i * 7 + (i >> 8));
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	pci_host_free(f->host);
	bus_free(f->bus);
	free(f);
	return 0;
}

static uint32_t cfg(struct fixture *f, uint32_t address, unsigned size)
{
	bus_write(f->bus, BUS_PIO, 0xcf8, 4, 0x80000000 | (address & ~3u));
	return (uint32_t)bus_read(f->bus, BUS_PIO, 0xcfc + (address & 3), size);
}

/* Linux's pci_check_type1() and the search for a host bridge. */
static void test_probe(void **state)
{
	struct fixture *f = *state;

	outb(f->bus, 0xcfb, 0x01);
	bus_write(f->bus, BUS_PIO, 0xcf8, 4, 0x80000000);
	assert_int_equal(bus_read(f->bus, BUS_PIO, 0xcf8, 4), 0x80000000);
	assert_int_equal(cfg(f, 0x0000, 4), 0x12378086);
	assert_int_equal(cfg(f, 0x000a, 2), 0x0600);
	assert_int_equal(cfg(f, 0x000e, 1), 0x00);
	assert_int_equal(cfg(f, 0x0034, 1), 0x00);
	assert_int_equal(cfg(f, 0x00f0, 4), 0);
}

static void test_absent(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(cfg(f, 0x0800, 4), 0xffffffff);
	assert_int_equal(cfg(f, 0x0802, 2), 0xffff);
	assert_int_equal(cfg(f, 0x10000, 4), 0xffffffff); /* bus 1 */
	bus_write(f->bus, BUS_PIO, 0xcf8, 4, 0);	  /* not enabled */
	assert_int_equal(bus_read(f->bus, BUS_PIO, 0xcfc, 4), 0xffffffff);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, ECAM + 0x8000, 4), 0xffffffff);
	assert_true(bus_read(f->bus, BUS_MMIO, ECAM + 0x8000, 8) == ~0ull);
	bus_write(f->bus, BUS_MMIO, ECAM + 0x8000, 4, 0);
	pci_host_remove(f->host, PCI_DEVFN(3, 1));
	assert_int_equal(cfg(f, 0x1900, 4), 0xffffffff);
	assert_int_equal(pci_host_add(f->host, 256, &space_ops, f), -EINVAL);
	assert_int_equal(pci_host_add(f->host, 0, &space_ops, f), -EEXIST);
}

static void test_function(void **state)
{
	struct fixture *f = *state;
	uint64_t base = ECAM + (PCI_DEVFN(3, 1) << 12);

	assert_int_equal(cfg(f, 0x1910, 4), space_read(f, 0x10, 4));
	assert_int_equal(cfg(f, 0x1912, 2), space_read(f, 0x12, 2));
	assert_int_equal(cfg(f, 0x1913, 1), space_read(f, 0x13, 1));
	outb(f->bus, 0xcfd, 0x99);
	assert_int_equal(f->space[0x11], 0x99);
	/* The window reaches all 4 KiB, and no access leaves them. */
	assert_int_equal(bus_read(f->bus, BUS_MMIO, base + 0x104, 4), space_read(f, 0x104, 4));
	bus_write(f->bus, BUS_MMIO, base + 0xffe, 2, 0xabcd);
	assert_int_equal(space_read(f, 0xffe, 2), 0xabcd);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, base + 0xffe, 4), 0xffffffff);
	bus_write(f->bus, BUS_MMIO, base + 0xffe, 4, 0);
	assert_int_equal(space_read(f, 0xffe, 2), 0xabcd);
}

static void test_bridge_command(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(cfg(f, 4, 4), 0);
	bus_write(f->bus, BUS_PIO, 0xcfc, 4, 0xffffffff);
	assert_int_equal(cfg(f, 4, 4), 0x0146);
	bus_write(f->bus, BUS_PIO, 0xcfd, 1, 0);
	assert_int_equal(cfg(f, 4, 4), 0x0046);
	cfg(f, 0, 4);
	bus_write(f->bus, BUS_PIO, 0xcfc, 4, 0);
	assert_int_equal(cfg(f, 0, 4), 0x12378086);
}

static void test_reset(void **state)
{
	struct fixture *f = *state;

	/* Linux: select a hard reset, then raise the CPU bit. */
	outb(f->bus, 0xcf9, 0x02);
	assert_int_equal(f->resets, 0);
	assert_int_equal(inb(f->bus, 0xcf9), 0x02);
	outb(f->bus, 0xcf9, 0x06);
	assert_int_equal(f->resets, 1);
	outb(f->bus, 0xcf9, 0x06);
	assert_int_equal(f->resets, 1);
	bus_write(f->bus, BUS_PIO, 0xcf8, 4, 0x80000404); /* an address, not a reset */
	assert_int_equal(f->resets, 1);
	assert_int_equal(inb(f->bus, 0xcf8), 0xff);
}

static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct pci_host_state saved, bad;

	cfg(f, 0x1910, 4);
	pci_host_save(f->host, &saved);
	cfg(f, 0, 4);
	assert_int_equal(pci_host_load(f->host, &saved), 0);
	assert_int_equal(bus_read(f->bus, BUS_PIO, 0xcfc, 4), space_read(f, 0x10, 4));
	bad = saved, bad.address |= 1;
	assert_int_equal(pci_host_load(f->host, &bad), -EINVAL);
	bad = saved, bad.command = 1;
	assert_int_equal(pci_host_load(f->host, &bad), -EINVAL);
	bad = saved, bad.reset_control = 1;
	assert_int_equal(pci_host_load(f->host, &bad), -EINVAL);
}

static void test_hammer(void **state)
{
	struct fixture *f = *state;
	struct pci_host_state s;

	for (unsigned i = 0; i < 300; i++) {
		fake_hammer(f->bus, BUS_PIO, 0xcf7, 10, 100);
		cfg(f, i & 1 ? 0x19fc : 0xfc, 4);
		fake_hammer(f->bus, BUS_PIO, 0xcfc, 5, 100);
		fake_hammer(f->bus, BUS_MMIO, ECAM + 0x18ff0, 0x1020, 100);
		pci_host_save(f->host, &s);
		assert_int_equal(pci_host_load(f->host, &s), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_probe, setup, teardown),
		cmocka_unit_test_setup_teardown(test_absent, setup, teardown),
		cmocka_unit_test_setup_teardown(test_function, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bridge_command, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hammer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
