/*
 * device/char/uart16550: what a driver does to find, open and use a serial port.
 */
#include "tests/device/fake.h"

#include "device/char/uart16550.h"

#include <errno.h>

#define COM1 0x3f8

struct fixture {
	struct bus *bus;
	struct uart *uart;
	struct fake_irq irq;
	pthread_mutex_t lock;
	char output[64];
	size_t output_count;
	unsigned rooms;
};

static void note_output(void *opaque, const uint8_t *bytes, size_t count)
{
	struct fixture *f = opaque;

	assert_true(f->output_count + count < sizeof(f->output));
	memcpy(f->output + f->output_count, bytes, count);
	f->output_count += count;
}

static void note_room(void *opaque)
{
	((struct fixture *)opaque)->rooms++;
}

static int setup_with(void **state, bool hold_input)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct uart_config config = {
		.irq = fake_irq_line(&f->irq),
		.lock = &f->lock,
		.output = note_output,
		.room = note_room,
		.opaque = f,
		.hold_input = hold_input,
	};

	pthread_mutex_init(&f->lock, NULL);
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(uart_create(&config, &f->uart), 0);
	assert_int_equal(uart_attach(f->uart, f->bus, COM1), 0);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	return setup_with(state, false);
}

static int setup_hold(void **state)
{
	return setup_with(state, true);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	uart_free(f->uart);
	bus_free(f->bus);
	free(f);
	return 0;
}

/* The steps of Linux's autoconfig() that tell a 16550A from its relatives. */
static void test_detect(void **state)
{
	struct bus *bus = ((struct fixture *)*state)->bus;

	outb(bus, COM1 + 1, 0);
	assert_int_equal(inb(bus, COM1 + 1), 0);
	outb(bus, COM1 + 1, 0xff);
	assert_int_equal(inb(bus, COM1 + 1), 0x0f);
	outb(bus, COM1 + 1, 0);
	outb(bus, COM1 + 4, 0x1a);
	assert_int_equal(inb(bus, COM1 + 6) & 0xf0, 0x90);
	outb(bus, COM1 + 4, 0);
	assert_int_equal(inb(bus, COM1 + 2) >> 6, 0);
	outb(bus, COM1 + 2, 1);
	assert_int_equal(inb(bus, COM1 + 2) >> 6, 3);
	outb(bus, COM1 + 2, 0x21); /* no 64-byte mode */
	assert_int_equal(inb(bus, COM1 + 2), 0xc1);
	outb(bus, COM1 + 7, 0x5a);
	assert_int_equal(inb(bus, COM1 + 7), 0x5a);
}

static void test_divisor(void **state)
{
	struct bus *bus = ((struct fixture *)*state)->bus;

	outb(bus, COM1 + 3, 0x83);
	outb(bus, COM1, 1);
	outb(bus, COM1 + 1, 2);
	assert_int_equal(bus_read(bus, BUS_PIO, COM1, 2), 0x0201);
	outb(bus, COM1 + 3, 0x03);
	assert_int_equal(inb(bus, COM1 + 1), 0);
	assert_int_equal(inb(bus, COM1 + 3), 0x03);
	assert_int_equal(((struct fixture *)*state)->output_count, 0);
}

static void test_transmit(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	assert_int_equal(inb(bus, COM1 + 5), 0x60);
	outb(bus, COM1, 'h');
	outb(bus, COM1, 'i');
	assert_string_equal(f->output, "hi");
	assert_false(f->irq.level);

	/* Enabling the interrupt with OUT2 off reaches nobody. */
	outb(bus, COM1 + 1, 0x02);
	assert_false(f->irq.level);
	outb(bus, COM1 + 4, 0x08);
	assert_true(f->irq.level);
	assert_int_equal(inb(bus, COM1 + 2), 0x02);
	assert_false(f->irq.level);
	assert_int_equal(inb(bus, COM1 + 2), 0x01);
	outb(bus, COM1, '!');
	assert_true(f->irq.level);
	outb(bus, COM1 + 1, 0);
	assert_false(f->irq.level);
	outb(bus, COM1 + 1, 2);
	assert_true(f->irq.level);
}

static void test_receive_plain(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	outb(bus, COM1 + 4, 0x0b);
	outb(bus, COM1 + 1, 0x01);
	assert_int_equal(uart_receive(f->uart, (const uint8_t *)"ab", 2), 1);
	assert_true(f->irq.level);
	assert_int_equal(inb(bus, COM1 + 2), 0x04);
	assert_int_equal(inb(bus, COM1 + 5), 0x61);
	assert_int_equal(f->rooms, 0);
	assert_int_equal(inb(bus, COM1), 'a');
	assert_int_equal(f->rooms, 1);
	assert_false(f->irq.level);
	assert_int_equal(inb(bus, COM1), 0);
	assert_int_equal(f->rooms, 1);
}

static void test_receive_fifo(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;
	const uint8_t text[] = "abcdefghijklmnopqrst";

	outb(bus, COM1 + 2, 0x81); /* trigger at 8 */
	outb(bus, COM1 + 4, 0x08);
	outb(bus, COM1 + 1, 0x01);
	assert_int_equal(uart_receive(f->uart, text, 7), 7);
	assert_int_equal(inb(bus, COM1 + 2), 0xcc);
	assert_int_equal(uart_receive(f->uart, text + 7, 13), 9);
	assert_int_equal(inb(bus, COM1 + 2), 0xc4);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(inb(bus, COM1), text[i]);
	assert_int_equal(f->rooms, 1);
	assert_int_equal(uart_receive(f->uart, text + 16, 4), 4);
	for (unsigned i = 8; i < 20; i++)
		assert_int_equal(inb(bus, COM1), text[i]);
	assert_int_equal(inb(bus, COM1 + 5), 0x60); /* no overrun */
	assert_false(f->irq.level);
	/* Clearing empties it; so does switching it off. */
	uart_receive(f->uart, text, 3);
	outb(bus, COM1 + 2, 0x03);
	assert_int_equal(inb(bus, COM1 + 5) & 1, 0);
	uart_receive(f->uart, text, 3);
	outb(bus, COM1 + 2, 0x00);
	assert_int_equal(inb(bus, COM1 + 5) & 1, 0);
}

static void test_loopback(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	outb(bus, COM1 + 2, 0x01);
	outb(bus, COM1 + 4, 0x10);
	assert_int_equal(inb(bus, COM1 + 6), 0x0b); /* the modem's lines fell */
	assert_int_equal(inb(bus, COM1 + 6), 0x00);
	for (unsigned i = 0; i < 17; i++)
		outb(bus, COM1, (uint8_t)(0x40 + i));
	assert_int_equal(f->output_count, 0);
	assert_int_equal(uart_receive(f->uart, (const uint8_t *)"x", 1), 0);
	assert_int_equal(inb(bus, COM1 + 5), 0x63);
	assert_int_equal(inb(bus, COM1 + 5), 0x61); /* reading clears the overrun */
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(inb(bus, COM1), 0x40 + i);
	assert_int_equal(f->rooms, 0);
	outb(bus, COM1 + 4, 0x1f);
	assert_int_equal(inb(bus, COM1 + 6), 0xfb);
	outb(bus, COM1 + 4, 0x1b);
	assert_int_equal(inb(bus, COM1 + 6), 0xb4); /* ring: only its trailing edge */
	outb(bus, COM1 + 4, 0x00);
	assert_int_equal(f->rooms, 1);
}

static void test_priorities(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	outb(bus, COM1 + 4, 0x18); /* loop, OUT2: DCD stays up, CTS and DSR fall */
	outb(bus, COM1, 1);
	outb(bus, COM1, 2); /* overrun */
	outb(bus, COM1 + 1, 0x0f);
	assert_int_equal(inb(bus, COM1 + 2), 0x06);
	inb(bus, COM1 + 5);
	assert_int_equal(inb(bus, COM1 + 2), 0x04);
	assert_int_equal(inb(bus, COM1), 1);
	assert_int_equal(inb(bus, COM1 + 2), 0x02);
	assert_int_equal(inb(bus, COM1 + 2), 0x00);
	assert_true(f->irq.level);
	inb(bus, COM1 + 6);
	assert_int_equal(inb(bus, COM1 + 2), 0x01);
	assert_false(f->irq.level);
}

static void test_hold(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(uart_receive(f->uart, (const uint8_t *)"ls\n", 3), 0);
	outb(f->bus, COM1 + 2, 0x07);
	outb(f->bus, COM1 + 1, 0x0f); /* a probe */
	assert_int_equal(uart_receive(f->uart, (const uint8_t *)"ls\n", 3), 0);
	outb(f->bus, COM1 + 1, 0x00);
	outb(f->bus, COM1 + 2, 0x00);
	outb(f->bus, COM1 + 4, 0x0b);
	assert_int_equal(f->rooms, 0);
	/* Linux enables the interrupt, then the FIFOs: what comes in between is not lost. */
	outb(f->bus, COM1 + 1, 0x05);
	assert_int_equal(f->rooms, 1);
	assert_int_equal(uart_receive(f->uart, (const uint8_t *)"#", 1), 1);
	outb(f->bus, COM1 + 2, 0x81);
	assert_int_equal(inb(f->bus, COM1), '#');
	assert_int_equal(uart_receive(f->uart, (const uint8_t *)"ls\n", 3), 3);
	assert_int_equal(inb(f->bus, COM1), 'l');
}

static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct uart_state saved, bad;

	outb(f->bus, COM1 + 2, 0x41);
	outb(f->bus, COM1 + 4, 0x08);
	outb(f->bus, COM1 + 1, 0x01);
	uart_receive(f->uart, (const uint8_t *)"abc", 3);
	uart_save(f->uart, &saved);
	uart_reset(f->uart);
	assert_false(f->irq.level);
	assert_int_equal(uart_load(f->uart, &saved), 0);
	assert_true(f->irq.level);
	assert_int_equal(inb(f->bus, COM1), 'a');

	bad = saved, bad.fifo_count = 17;
	assert_int_equal(uart_load(f->uart, &bad), -EINVAL);
	bad = saved, bad.ier = 0x10;
	assert_int_equal(uart_load(f->uart, &bad), -EINVAL);
	bad = saved, bad.mcr = 0x20;
	assert_int_equal(uart_load(f->uart, &bad), -EINVAL);
	bad = saved, bad.fcr = 0x02;
	assert_int_equal(uart_load(f->uart, &bad), -EINVAL);
	assert_int_equal(inb(f->bus, COM1), 'b');
}

static void drop_output(void *opaque, const uint8_t *bytes, size_t count) {}

static void test_hammer(void **state)
{
	struct fixture *f = *state;
	struct uart_config config = {.lock = &f->lock, .output = drop_output};
	struct uart *uart;

	assert_int_equal(uart_create(&config, &uart), 0);
	assert_int_equal(uart_attach(uart, f->bus, 0x2f8), 0);
	for (unsigned i = 0; i < 200; i++) {
		struct uart_state s;

		fake_hammer(f->bus, BUS_PIO, 0x2f8, 10, 200);
		uart_receive(uart, (const uint8_t *)"0123456789abcdefghij", 20);
		uart_save(uart, &s);
		assert_int_equal(uart_load(uart, &s), 0);
	}
	uart_free(uart);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_detect, setup, teardown),
		cmocka_unit_test_setup_teardown(test_divisor, setup, teardown),
		cmocka_unit_test_setup_teardown(test_transmit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_receive_plain, setup, teardown),
		cmocka_unit_test_setup_teardown(test_receive_fifo, setup, teardown),
		cmocka_unit_test_setup_teardown(test_loopback, setup, teardown),
		cmocka_unit_test_setup_teardown(test_priorities, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hold, setup_hold, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hammer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
