/*
 * device/pci/device: a function with an I/O BAR, two of memory (one of 64 bits), MSI-X and INTx, behind a host bridge.
 */
#include "tests/device/fake.h"

#include "base/bytes.h"
#include "device/pci/device.h"
#include "device/pci/host.h"

#include <errno.h>

#define ECAM	0xe0000000ull
#define SLOT	PCI_DEVFN(5, 0)
#define WINDOW	0xc0000000u
#define VECTORS 70u
#define NOWHERE UINT64_MAX

struct memory_bar {
	uint8_t bytes[8192];
	unsigned reads, writes;
};

struct fixture {
	struct bus *bus;
	struct pci_host *host;
	struct pci_device *device;
	pthread_mutex_t host_lock, lock;
	struct fake_irq irq;
	struct memory_bar bar[3];
	unsigned messages;
	uint64_t address;
	uint32_t data;
	unsigned written, reading;
	unsigned written_at;
};

static void take_message(void *opaque, uint64_t address, uint32_t data)
{
	struct fixture *f = opaque;

	f->messages++;
	f->address = address;
	f->data = data;
}

static void config_written(void *opaque, unsigned offset, unsigned size_bytes)
{
	struct fixture *f = opaque;

	f->written++;
	f->written_at = offset;
}

static void config_reading(void *opaque, unsigned offset, unsigned size_bytes)
{
	((struct fixture *)opaque)->reading++;
}

static uint64_t memory_bar_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct memory_bar *bar = opaque;
	uint64_t value = 0;

	bar->reads++;
	memcpy(&value, bar->bytes + offset % sizeof(bar->bytes), size_bytes);
	return value;
}

static void memory_bar_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct memory_bar *bar = opaque;

	bar->writes++;
	memcpy(bar->bytes + offset % sizeof(bar->bytes), &value, size_bytes);
}

static const struct bus_ops bar_ops = {
	.read = memory_bar_read, .write = memory_bar_write, .access_max_bytes = 4};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct pci_host_config host_config = {.lock = &f->host_lock};

	assert_non_null(f);
	pthread_mutex_init(&f->lock, NULL);
	pthread_mutex_init(&f->host_lock, NULL);
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(pci_host_create(&host_config, &f->host), 0);
	assert_int_equal(pci_host_attach(f->host, f->bus), 0);
	assert_int_equal(pci_host_attach_ecam(f->host, f->bus, ECAM), 0);
	const struct pci_device_config config = {.name = "test",
		.vendor = 0x1af4,
		.device = 0x1044,
		.subsystem_vendor = 0x1234,
		.subsystem = 0x5678,
		.class_code = 0x0c0330,
		.revision = 7,
		.bus = f->bus,
		.lock = &f->lock,
		.intx = fake_irq_line(&f->irq),
		.msi = {take_message, f},
		.config_written = config_written,
		.config_reading = config_reading,
		.opaque = f};
	assert_int_equal(pci_device_create(&config, &f->device), 0);
	assert_int_equal(
		pci_device_add_bar(f->device, 0, PCI_BAR_IO, false, 64, &bar_ops, &f->bar[0]), 0);
	assert_int_equal(
		pci_device_add_bar(f->device, 1, PCI_BAR_MEM32, false, 4096, NULL, NULL), 0);
	assert_int_equal(
		pci_device_add_bar(f->device, 4, PCI_BAR_MEM64, true, 8192, &bar_ops, &f->bar[2]),
		0);
	assert_int_equal(pci_device_add_msix(f->device, 1, 2048 - 16, VECTORS), 0);
	assert_int_equal(pci_device_plug(f->device, f->host, SLOT), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	pci_device_free(f->device);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, ECAM + (SLOT << 12), 4), 0xffffffff);
	assert_false(f->irq.level);
	pci_host_free(f->host);
	bus_free(f->bus);
	free(f);
	return 0;
}

static uint32_t get(struct fixture *f, unsigned offset, unsigned size)
{
	return (uint32_t)bus_read(f->bus, BUS_MMIO, ECAM + (SLOT << 12) + offset, size);
}

static void put(struct fixture *f, unsigned offset, unsigned size, uint32_t value)
{
	bus_write(f->bus, BUS_MMIO, ECAM + (SLOT << 12) + offset, size, value);
}

static void test_header(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(get(f, 0, 4), 0x10441af4);
	assert_int_equal(get(f, 8, 4), 0x0c033007);
	assert_int_equal(get(f, 0x0e, 1), 0);
	assert_int_equal(get(f, 0x2c, 4), 0x56781234);
	assert_int_equal(get(f, 0x3d, 1), 1);
	assert_int_equal(get(f, 0x06, 2), 0x0010);
	assert_int_equal(get(f, 0x30, 4), 0); /* no ROM */
	put(f, 0x3c, 4, ~0u);
	assert_int_equal(get(f, 0x3c, 4), 0x1ff);
	put(f, 0, 4, 0);
	put(f, 6, 2, ~0u);
	put(f, 0x2c, 4, 0);
	put(f, 0x30, 4, ~0u);
	put(f, 0x34, 4, ~0u);
	put(f, 0x100, 4, ~0u);
	assert_int_equal(get(f, 0, 4), 0x10441af4);
	assert_int_equal(get(f, 6, 2), 0x0010);
	assert_int_equal(get(f, 0x2c, 4), 0x56781234);
	assert_int_equal(get(f, 0x30, 4), 0);
	assert_int_equal(get(f, 0x34, 4), 0x40);
	assert_int_equal(get(f, 0x100, 4), 0);
	put(f, 4, 2, 0xffff);
	assert_int_equal(get(f, 4, 2), 0x0547);
	assert_int_equal(f->written, 8);
	assert_int_equal(f->written_at, 4);
	assert_true(f->reading > 8);
}

/* Express first, then MSI-X, then nothing. */
static void test_capabilities(void **state)
{
	struct fixture *f = *state;
	const uint8_t own[9] = {0xff, 0xff, 9, 1, 2, 3, 4, 5, 6}, mask[9] = {0xff, 0xff, 0, 0xf0};
	unsigned at = get(f, 0x34, 1);

	assert_int_equal(get(f, at, 1), 0x10);
	assert_int_equal(get(f, at + 2, 2), 0x0092); /* version 2, in the root complex */
	at = get(f, at + 1, 1);
	assert_int_equal(get(f, at, 1), 0x11);
	assert_int_equal(get(f, at + 2, 2), VECTORS - 1);
	assert_int_equal(get(f, at + 4, 4), (2048 - 16) | 1);
	assert_int_equal(get(f, at + 8, 4), (2048 - 16 + 16 * VECTORS) | 1);
	put(f, at + 2, 2, 0xffff);
	assert_int_equal(get(f, at + 2, 2), 0xc000 | (VECTORS - 1));
	put(f, at + 4, 4, 0);
	assert_int_equal(get(f, at + 4, 4), (2048 - 16) | 1);
	assert_int_equal(get(f, at + 1, 1), 0);

	const int mine = pci_device_add_capability(f->device, 9, own, mask, sizeof(own));
	assert_true(mine > 0 && mine % 4 == 0);
	assert_int_equal(get(f, at + 1, 1), mine);
	put(f, (unsigned)mine, 4, 0xffffffff);
	assert_int_equal(get(f, (unsigned)mine, 4), 0xf1090009);
	while (pci_device_add_capability(f->device, 9, own, NULL, sizeof(own)) > 0)
		;
	assert_int_equal(pci_device_add_capability(f->device, 9, own, NULL, 1), -ENOSPC);
	unsigned count = 0;
	for (at = get(f, 0x34, 1); at; at = get(f, at + 1, 1), count++)
		assert_true(at >= 0x40 && at <= 0x100 - sizeof(own));
	assert_true(count > 8);
}

static void test_sizing(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < 6; i++)
		put(f, 0x10 + 4 * i, 4, 0xffffffff);
	assert_int_equal(get(f, 0x10, 4), 0xffffffc1);
	assert_int_equal(get(f, 0x14, 4), 0xfffff000);
	assert_int_equal(get(f, 0x18, 4), 0);
	assert_int_equal(get(f, 0x1c, 4), 0);
	assert_int_equal(get(f, 0x20, 4), 0xffffe00c);
	assert_int_equal(get(f, 0x24, 4), 0xffffffff);
	/* With decoding on while it lasts: nothing comes of it but silence. */
	put(f, 4, 2, 3);
	assert_true(pci_device_bar(f->device, 4) == NOWHERE);
	assert_true(bus_read(f->bus, BUS_MMIO, 0xffffffffffffe000, 4) == 0xffffffff);
	put(f, 0x10, 4, 0);
}

static void test_decode(void **state)
{
	struct fixture *f = *state;

	put(f, 0x10, 4, 0xc000);
	put(f, 0x20, 4, WINDOW);
	put(f, 0x24, 4, 1);
	assert_true(pci_device_bar(f->device, 0) == NOWHERE);
	assert_int_equal(bus_read(f->bus, BUS_PIO, 0xc000, 1), 0xff);
	put(f, 4, 2, 1);
	bus_write(f->bus, BUS_PIO, 0xc004, 4, 0x11223344);
	assert_int_equal(bus_read(f->bus, BUS_PIO, 0xc005, 1), 0x33);
	assert_true(bus_read(f->bus, BUS_MMIO, 0x100000000ull + WINDOW, 8) == ~0ull);
	put(f, 4, 2, 2);
	assert_int_equal(bus_read(f->bus, BUS_PIO, 0xc005, 1), 0xff);
	bus_write(f->bus, BUS_MMIO, 0x100000000ull + WINDOW + 16, 8, 0x1122334455667788);
	assert_int_equal(f->bar[2].writes, 2); /* in pieces of 4 */
	assert_true(
		bus_read(f->bus, BUS_MMIO, 0x100000000ull + WINDOW + 16, 8) == 0x1122334455667788);
	/* It moves at once, to where it is told in halves. */
	put(f, 0x24, 4, 2);
	assert_true(pci_device_bar(f->device, 4) == 0x200000000ull + WINDOW);
	assert_true(bus_read(f->bus, BUS_MMIO, 0x100000000ull + WINDOW + 16, 8) == ~0ull);
	assert_true(
		bus_read(f->bus, BUS_MMIO, 0x200000000ull + WINDOW + 16, 8) == 0x1122334455667788);
	assert_true(pci_device_bar(f->device, 5) == NOWHERE);
}

/* A BAR that lies on something else is not there; two of one function may change places. */
static void test_overlap(void **state)
{
	struct fixture *f = *state;

	put(f, 4, 2, 2);
	put(f, 0x20, 4, (uint32_t)ECAM);
	assert_int_equal(get(f, 0, 4), 0x10441af4);
	put(f, 0x14, 4, WINDOW);
	put(f, 0x20, 4, WINDOW + 0x2000);
	bus_write(f->bus, BUS_MMIO, WINDOW + 0x2000, 4, 0x12345678);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, WINDOW + 2048 - 16 + 12, 4), 1);
	put(f, 0x14, 4, WINDOW + 0x2000);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, WINDOW + 0x2000, 4), 0x12345678);
	put(f, 0x20, 4, WINDOW);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, WINDOW, 4), 0x12345678);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, WINDOW + 0x2000 + 2048 - 16 + 12, 4), 1);
}

static void test_assign(void **state)
{
	struct fixture *f = *state;
	enum pci_bar_kind kind;
	bool prefetchable;

	assert_int_equal(pci_device_bar_bytes(f->device, 4, &kind, &prefetchable), 8192);
	assert_int_equal(kind, PCI_BAR_MEM64);
	assert_true(prefetchable);
	assert_int_equal(pci_device_bar_bytes(f->device, 5, &kind, &prefetchable), 0);
	pci_device_assign(f->device, 0, 0xd000);
	pci_device_assign(f->device, 1, WINDOW);
	pci_device_assign(f->device, 4, 0x8000000000ull);
	assert_int_equal(get(f, 0x10, 4), 0xd001);
	assert_int_equal(get(f, 0x14, 4), WINDOW);
	assert_int_equal(get(f, 0x20, 4), 0x0c);
	assert_int_equal(get(f, 0x24, 4), 0x80);
	assert_int_equal(get(f, 4, 2), 3);
	bus_write(f->bus, BUS_MMIO, 0x8000000000ull, 4, 5);
	assert_int_equal(f->bar[2].writes, 1);
}

/* ---- MSI-X ---- */

#define TABLE	(WINDOW + 2048 - 16)
#define PENDING (TABLE + 16 * VECTORS)

static void msix_on(struct fixture *f, uint16_t control)
{
	const unsigned at = get(f, get(f, 0x34, 1) + 1, 1);

	put(f, at + 2, 2, control);
}

static void raise(struct fixture *f, unsigned vector)
{
	pthread_mutex_lock(&f->lock);
	pci_device_msix(f->device, vector);
	pthread_mutex_unlock(&f->lock);
}

static void test_msix(void **state)
{
	struct fixture *f = *state;

	put(f, 0x14, 4, WINDOW);
	put(f, 4, 2, 6);
	raise(f, 3);
	assert_false(pci_device_msix_enabled(f->device));
	msix_on(f, 0x8000);
	assert_true(pci_device_msix_enabled(f->device));
	assert_int_equal(f->messages, 0); /* it was off: dropped */
	for (unsigned i = 0; i < VECTORS; i++) {
		assert_int_equal(bus_read(f->bus, BUS_MMIO, TABLE + 16 * i + 12, 4), 1);
		bus_write(f->bus, BUS_MMIO, TABLE + 16 * i, 4, 0xfee00003 + (i << 12));
		bus_write(f->bus, BUS_MMIO, TABLE + 16 * i + 4, 8, (uint64_t)(100 + i) << 32);
		bus_write(f->bus, BUS_MMIO, TABLE + 16 * i + 12, 4, 0xfffffffe);
	}
	assert_int_equal(f->messages, 0);
	assert_true(bus_read(f->bus, BUS_MMIO, TABLE + 16, 8) == 0xfee01000);
	assert_true(bus_read(f->bus, BUS_MMIO, TABLE + 24, 8) == 101);
	raise(f, 69);
	assert_int_equal(f->messages, 1);
	assert_true(f->address == 0xfee00000ull + (69 << 12));
	assert_int_equal(f->data, 169);
	raise(f, 70); /* there is none */
	assert_int_equal(f->messages, 1);
	/* Masked: pending, twice is once. */
	bus_write(f->bus, BUS_MMIO, TABLE + 16 * 65 + 12, 4, 1);
	raise(f, 65);
	raise(f, 65);
	assert_int_equal(f->messages, 1);
	assert_true(bus_read(f->bus, BUS_MMIO, PENDING, 8) == 0);
	assert_true(bus_read(f->bus, BUS_MMIO, PENDING + 8, 8) == 2);
	bus_write(f->bus, BUS_MMIO, PENDING + 8, 8, ~0ull); /* read-only */
	bus_write(f->bus, BUS_MMIO, TABLE + 16 * 65 + 8, 4, 77);
	bus_write(f->bus, BUS_MMIO, TABLE + 16 * 65 + 12, 4, 0);
	assert_int_equal(f->messages, 2);
	assert_int_equal(f->data, 77);
	assert_true(bus_read(f->bus, BUS_MMIO, PENDING + 8, 8) == 0);
	/* All masked. */
	msix_on(f, 0xc000);
	raise(f, 1);
	raise(f, 2);
	assert_int_equal(f->messages, 2);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, PENDING, 1), 6);
	msix_on(f, 0x8000);
	assert_int_equal(f->messages, 4);
	/* Not a bus master: it waits. */
	put(f, 4, 2, 2);
	raise(f, 1);
	assert_int_equal(f->messages, 4);
	put(f, 4, 2, 6);
	assert_int_equal(f->messages, 5);
	/* Beside the table there is nothing behind this BAR. */
	assert_true(bus_read(f->bus, BUS_MMIO, WINDOW, 8) == 0);
	bus_write(f->bus, BUS_MMIO, WINDOW, 8, ~0ull);
	assert_true(bus_read(f->bus, BUS_MMIO, PENDING + 16, 8) == 0);
	fake_hammer(f->bus, BUS_MMIO, WINDOW, 4096, 20000);
}

static void intx(struct fixture *f, bool level)
{
	pthread_mutex_lock(&f->lock);
	pci_device_intx(f->device, level);
	pthread_mutex_unlock(&f->lock);
}

static void test_intx(void **state)
{
	struct fixture *f = *state;

	intx(f, true);
	assert_true(f->irq.level);
	assert_int_equal(get(f, 6, 2), 0x18);
	put(f, 4, 2, 0x400);
	assert_false(f->irq.level);
	assert_int_equal(get(f, 6, 2), 0x18);
	put(f, 4, 2, 0);
	assert_true(f->irq.level);
	msix_on(f, 0x8000);
	assert_false(f->irq.level);
	intx(f, false);
	msix_on(f, 0);
	assert_false(f->irq.level);
	assert_int_equal(get(f, 6, 2), 0x10);
	intx(f, true);
	assert_int_equal(f->irq.rises, 3);
}

static void test_reset(void **state)
{
	struct fixture *f = *state;

	put(f, 0x14, 4, WINDOW);
	put(f, 4, 2, 6);
	msix_on(f, 0xc000);
	bus_write(f->bus, BUS_MMIO, TABLE, 8, ~0ull);
	raise(f, 0);
	intx(f, true);
	pthread_mutex_lock(&f->lock);
	pci_device_reset(f->device);
	pthread_mutex_unlock(&f->lock);
	assert_int_equal(get(f, 4, 4), 0x00100000);
	assert_int_equal(get(f, 0x14, 4), 0);
	assert_int_equal(get(f, 0x20, 4), 0x0c);
	assert_int_equal(get(f, 0, 4), 0x10441af4);
	assert_false(pci_device_msix_enabled(f->device));
	assert_true(bus_read(f->bus, BUS_MMIO, TABLE, 8) == ~0ull); /* off the bus */
	put(f, 0x14, 4, WINDOW);
	put(f, 4, 2, 6);
	assert_true(bus_read(f->bus, BUS_MMIO, TABLE, 8) == 0);
	assert_true(bus_read(f->bus, BUS_MMIO, PENDING, 8) == 0);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, TABLE + 12, 4), 1);
}

static void test_errors(void **state)
{
	struct fixture *f = *state;
	struct pci_device *d = f->device;

	assert_int_equal(pci_device_add_bar(d, 0, PCI_BAR_IO, false, 64, NULL, NULL), -EINVAL);
	assert_int_equal(pci_device_add_bar(d, 5, PCI_BAR_IO, false, 64, NULL, NULL), -EINVAL);
	assert_int_equal(pci_device_add_bar(d, 6, PCI_BAR_IO, false, 64, NULL, NULL), -EINVAL);
	assert_int_equal(pci_device_add_bar(d, 3, PCI_BAR_MEM64, false, 64, NULL, NULL), -EINVAL);
	assert_int_equal(pci_device_add_bar(d, 2, PCI_BAR_MEM32, false, 8, NULL, NULL), -EINVAL);
	assert_int_equal(pci_device_add_bar(d, 2, PCI_BAR_MEM32, false, 48, NULL, NULL), -EINVAL);
	assert_int_equal(pci_device_add_bar(d, 2, PCI_BAR_IO, false, 512, NULL, NULL), -EINVAL);
	assert_int_equal(
		pci_device_add_bar(d, 2, PCI_BAR_MEM32, false, GIB(4), NULL, NULL), -EINVAL);
	assert_int_equal(pci_device_add_bar(d, 2, PCI_BAR_NONE, false, 64, NULL, NULL), -EINVAL);
	assert_int_equal(pci_device_add_msix(d, 1, 0, 1), -EINVAL); /* it has it */
	assert_int_equal(pci_device_plug(d, f->host, SLOT), -EEXIST);

	const struct pci_device_config config = {.name = "other", .bus = f->bus, .lock = &f->lock};
	struct pci_device *other;
	assert_int_equal(pci_device_create(&config, &other), 0);
	assert_int_equal(pci_device_add_bar(other, 0, PCI_BAR_MEM32, false, 64, NULL, NULL), 0);
	assert_int_equal(pci_device_add_bar(other, 1, PCI_BAR_IO, false, 64, NULL, NULL), 0);
	assert_int_equal(pci_device_add_msix(other, 0, 0, 4), -EINVAL); /* too small */
	assert_int_equal(pci_device_add_msix(other, 1, 0, 1), -EINVAL);
	assert_int_equal(pci_device_add_msix(other, 2, 0, 1), -EINVAL);
	assert_int_equal(pci_device_add_msix(other, 0, 4, 1), -EINVAL);
	assert_int_equal(pci_device_add_msix(other, 0, 0, 0), -EINVAL);
	assert_int_equal(pci_device_add_msix(other, 0, UINT64_MAX - 7, 1), -EINVAL);
	pci_device_msix(other, 0);
	pci_device_intx(other, true);
	pci_device_free(other);
	pci_device_free(NULL);
}

/* Any access, anywhere. */
static void test_nonsense(void **state)
{
	struct fixture *f = *state;
	uint32_t seed = 3;

	for (unsigned i = 0; i < 50; i++) {
		fake_hammer(f->bus, BUS_MMIO, ECAM + (SLOT << 12), 4096, 500);
		fake_hammer(f->bus, BUS_MMIO, ECAM + (SLOT << 12), 0x100, 500);
		for (unsigned bar = 0; bar < PCI_BARS; bar++)
			if (pci_device_bar(f->device, bar) < ECAM - 8192)
				fake_hammer(f->bus, bar ? BUS_MMIO : BUS_PIO,
					pci_device_bar(f->device, bar), bar ? 4096 : 64, 100);
		raise(f, fake_random(&seed) % 80);
		intx(f, fake_random(&seed) & 1);
	}
	assert_int_equal(get(f, 0, 4), 0x10441af4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_header, setup, teardown),
		cmocka_unit_test_setup_teardown(test_capabilities, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sizing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_decode, setup, teardown),
		cmocka_unit_test_setup_teardown(test_overlap, setup, teardown),
		cmocka_unit_test_setup_teardown(test_assign, setup, teardown),
		cmocka_unit_test_setup_teardown(test_msix, setup, teardown),
		cmocka_unit_test_setup_teardown(test_intx, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nonsense, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
