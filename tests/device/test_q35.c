/*
 * device/pci/q35: what firmware reads and sets in the chip set's two functions.
 */
#include "tests/device/fake.h"

#include "boot/layout.h"
#include "device/pci/pirq.h"
#include "device/pci/q35.h"

struct fixture {
	struct q35 q35;
	gpa_t base;
	uint64_t bytes;
	unsigned moves, routings;
};

static void note_ecam(void *opaque, gpa_t base, uint64_t bytes)
{
	struct fixture *f = opaque;

	f->base = base;
	f->bytes = bytes;
	f->moves++;
}

static void note_routes(void *opaque)
{
	((struct fixture *)opaque)->routings++;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->q35.ecam = note_ecam;
	f->q35.routes = note_routes;
	f->q35.opaque = f;
	q35_reset(&f->q35);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	free(*state);
	return 0;
}

static uint32_t bridge(struct fixture *f, unsigned offset, unsigned size)
{
	return q35_bridge_ops.config_read(&f->q35, offset, size);
}

static void set_bridge(struct fixture *f, unsigned offset, unsigned size, uint32_t value)
{
	q35_bridge_ops.config_write(&f->q35, offset, size, value);
}

static void test_identity(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(bridge(f, 0, 4), 0x29c08086);
	assert_int_equal(bridge(f, 0x2c, 4), 0x11001af4);
	assert_int_equal(q35_lpc_ops.config_read(&f->q35, 0, 4), 0x29188086);
	assert_int_equal(q35_lpc_ops.config_read(&f->q35, 0xa, 2), 0x0601);
	set_bridge(f, 0, 4, ~0u);
	assert_int_equal(bridge(f, 0, 4), 0x29c08086);
	/* Behind the first 256 bytes there is nothing. */
	set_bridge(f, 0x100, 4, ~0u);
	assert_int_equal(bridge(f, 0x100, 4), 0);
	set_bridge(f, 0xfe, 4, ~0u);
	assert_int_equal(bridge(f, 0xfe, 4), 0);
}

static void test_ecam(void **state)
{
	struct fixture *f = *state;
	uint64_t bytes;

	set_bridge(f, 0x64, 4, 0);
	assert_int_equal(f->moves, 0);
	set_bridge(f, 0x60, 4, 0xb0000001);
	assert_int_equal(f->moves, 1);
	assert_int_equal(f->base, 0xb0000000);
	assert_int_equal(f->bytes, MIB(256));
	set_bridge(f, 0x60, 4, 0xb0000001);
	assert_int_equal(f->moves, 1);
	/* 64 MiB, above 4 GiB; a byte at a time. */
	set_bridge(f, 0x64, 1, 0x3f);
	assert_int_equal(f->base, 0xfb0000000ull);
	set_bridge(f, 0x60, 1, 5);
	assert_int_equal(f->bytes, MIB(64));
	set_bridge(f, 0x60, 1, 7); /* a length that there is not */
	assert_int_equal(f->bytes, 0);
	set_bridge(f, 0x60, 1, 0);
	assert_int_equal(q35_ecam(&f->q35, &bytes), 0xfb0000000ull);
	assert_int_equal(bytes, 0);
}

static void test_pam(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < 7; i++) {
		set_bridge(f, 0x90 + i, 1, 0xff);
		assert_int_equal(bridge(f, 0x90 + i, 1), i ? 0x33 : 0x30);
	}
	set_bridge(f, 0x9d, 1, 0xff);
	assert_int_equal(bridge(f, 0x9d, 1), 0x4a); /* not locked */
}

static void test_routes(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < Q35_PIRQS; i++)
		assert_int_equal(q35_pirq(&f->q35, i), -1);
	q35_lpc_ops.config_write(&f->q35, 0x60, 4, 0x0b0a0b0a);
	assert_int_equal(f->routings, 1);
	q35_lpc_ops.config_write(&f->q35, 0x6b, 1, 5);
	assert_int_equal(f->routings, 2);
	q35_lpc_ops.config_write(&f->q35, 0x70, 1, 5);
	assert_int_equal(f->routings, 2);
	assert_int_equal(q35_pirq(&f->q35, 0), 10);
	assert_int_equal(q35_pirq(&f->q35, 3), 11);
	assert_int_equal(q35_pirq(&f->q35, 4), -1);
	assert_int_equal(q35_pirq(&f->q35, 7), 5);
}

/* ---- what the PICs see of PCI's lines ---- */

struct inputs {
	uint16_t high;
	unsigned changes;
};

static void input_set(void *opaque, unsigned input, bool level)
{
	struct inputs *inputs = opaque;

	assert_true(input < 16);
	assert_int_not_equal(inputs->high >> input & 1, level); /* only changes are told */
	inputs->high ^= (uint16_t)(1u << input);
	inputs->changes++;
}

static void test_pirq_lines(void **state)
{
	static const int seabios[] = {10, 10, 11, 11}, others[] = {5, -1, 16, 4};
	struct inputs inputs = {0};
	struct pirq pirq;

	pirq_init(&pirq, (struct irq_line){.set = input_set, .opaque = &inputs});
	pirq_line_set(&pirq, 0, true); /* nowhere yet */
	assert_int_equal(inputs.high, 0);
	pirq_route_set(&pirq, seabios);
	assert_int_equal(inputs.high, 1 << 10);
	pirq_line_set(&pirq, 1, true);
	pirq_line_set(&pirq, 3, true);
	assert_int_equal(inputs.high, 1 << 10 | 1 << 11);
	pirq_line_set(&pirq, 0, false); /* the other is still there */
	assert_int_equal(inputs.high, 1 << 10 | 1 << 11);
	assert_int_equal(inputs.changes, 2);
	pirq_line_set(&pirq, 1, false);
	assert_int_equal(inputs.high, 1 << 11);
	/* An input's own device, and a line that is routed to it. */
	pirq_own_set(&pirq, 4, true);
	pirq_route_set(&pirq, others);
	assert_int_equal(inputs.high, 1 << 4);
	pirq_own_set(&pirq, 4, false);
	assert_int_equal(inputs.high, 1 << 4);
	pirq_line_set(&pirq, 3, false);
	assert_int_equal(inputs.high, 0);
	pirq_line_set(&pirq, 2, true);
	pirq_line_set(&pirq, 1, true);
	assert_int_equal(inputs.high, 0);
}

/* As SeaBIOS and OVMF reckon, and as the ACPI tables say. */
static void test_pirq_of_slots(void **state)
{
	assert_int_equal(boot_pci_line(1, 0), 1);
	assert_int_equal(boot_pci_line(6, 1), 3);
	assert_int_equal(boot_pci_line(24, 3), 3);
	assert_int_equal(boot_pci_line(25, 0), 0);
	assert_int_equal(boot_pci_line(31, 0), 0);
	assert_int_equal(boot_pci_line(31, 3), 3);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_identity),
		TEST(test_ecam),
		TEST(test_pam),
		TEST(test_routes),
		TEST(test_pirq_lines),
		TEST(test_pirq_of_slots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
