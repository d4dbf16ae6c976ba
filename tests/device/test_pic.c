/*
 * device/irq/pic: priorities, the cascade, end of interrupt in all its forms, spurious interrupts, polling,
 * level-triggered inputs.
 */
#include "tests/device/fake.h"

#include "device/irq/pic.h"

#include <errno.h>

struct fixture {
	struct bus *bus;
	struct pic *pic;
	struct fake_irq intr;
	pthread_mutex_t lock;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct pic_config config = {.lock = &f->lock, .intr = fake_irq_line(&f->intr)};

	pthread_mutex_init(&f->lock, NULL);
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(pic_create(&config, &f->pic), 0);
	assert_int_equal(pic_attach(f->pic, f->bus), 0);
	*state = f;
	return 0;
}

/* As an operating system does it: vectors 0x30 and 0x38, nothing masked. */
static void program(struct fixture *f, uint8_t icw4)
{
	struct bus *bus = f->bus;

	outb(bus, 0x20, 0x11);
	outb(bus, 0x21, 0x30);
	outb(bus, 0x21, 0x04);
	outb(bus, 0x21, icw4);
	outb(bus, 0xa0, 0x11);
	outb(bus, 0xa1, 0x38);
	outb(bus, 0xa1, 0x02);
	outb(bus, 0xa1, icw4);
	outb(bus, 0x21, 0);
	outb(bus, 0xa1, 0);
}

static int setup_programmed(void **state)
{
	int rc = setup(state);

	program(*state, 0x01);
	return rc;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	pic_free(f->pic);
	bus_free(f->bus);
	free(f);
	return 0;
}

static void test_init(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	pic_set_irq(f->pic, 1, true);
	assert_false(f->intr.level); /* masked from power-up on */
	/* Linux's probe_8259A(). */
	outb(bus, 0xa1, 0xff);
	outb(bus, 0x21, 0xfb);
	assert_int_equal(inb(bus, 0x21), 0xfb);
	pic_set_irq(f->pic, 1, false);
	/* An edge before the initialisation is forgotten; none is delivered in its midst. */
	outb(bus, 0x20, 0x11);
	pic_set_irq(f->pic, 3, true);
	outb(bus, 0x21, 0x30);
	outb(bus, 0x21, 0x04);
	assert_false(pic_pending(f->pic));
	outb(bus, 0x21, 0x01);
	assert_int_equal(inb(bus, 0x21), 0);
	assert_true(pic_pending(f->pic));
	assert_int_equal(pic_ack(f->pic), 0x33);
	/* One chip, no ICW4: two words do. */
	outb(bus, 0x20, 0x12);
	outb(bus, 0x21, 0x47);
	outb(bus, 0x21, 0xaa);
	assert_int_equal(inb(bus, 0x21), 0xaa);
}

static void test_priority(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	pic_set_irq(f->pic, 4, true);
	pic_set_irq(f->pic, 1, true);
	assert_int_equal(inb(bus, 0x20), 0x12);
	assert_int_equal(pic_ack(f->pic), 0x31);
	outb(bus, 0x20, 0x0b);
	assert_int_equal(inb(bus, 0x20), 0x02);
	outb(bus, 0x20, 0x0a);
	assert_int_equal(inb(bus, 0x20), 0x10);
	assert_false(f->intr.level); /* 4 waits for 1 */
	pic_set_irq(f->pic, 0, true);
	assert_true(f->intr.level);
	assert_int_equal(pic_ack(f->pic), 0x30);
	outb(bus, 0x20, 0x20);
	assert_false(f->intr.level);
	outb(bus, 0x20, 0x20);
	assert_true(f->intr.level);
	assert_int_equal(pic_ack(f->pic), 0x34);
	outb(bus, 0x20, 0x64); /* specific */
	outb(bus, 0x20, 0x0b);
	assert_int_equal(inb(bus, 0x20), 0);
}

static void test_mask(void **state)
{
	struct fixture *f = *state;

	outb(f->bus, 0x21, 0x10);
	pic_set_irq(f->pic, 4, true);
	assert_false(f->intr.level);
	outb(f->bus, 0x21, 0x00);
	assert_true(f->intr.level);
	outb(f->bus, 0x21, 0x10);
	assert_false(f->intr.level);
}

static void test_cascade(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	pic_set_irq(f->pic, 12, true);
	assert_int_equal(pic_ack(f->pic), 0x3c);
	assert_false(f->intr.level);
	/* Higher on the slave, but the master has its input 2 in service. */
	pic_set_irq(f->pic, 8, true);
	assert_false(f->intr.level);
	pic_set_irq(f->pic, 3, true);
	outb(bus, 0xa0, 0x20);
	outb(bus, 0x20, 0x20);
	assert_int_equal(pic_ack(f->pic), 0x38); /* before 3 */
	outb(bus, 0xa0, 0x20);
	outb(bus, 0x20, 0x20);
	assert_int_equal(pic_ack(f->pic), 0x33);
	outb(bus, 0x20, 0x20);
	/* The slave ends its own by itself: its second request needs no edge to reach the master. */
	outb(bus, 0xa0, 0x11);
	outb(bus, 0xa1, 0x38);
	outb(bus, 0xa1, 0x02);
	outb(bus, 0xa1, 0x03);
	pic_set_irq(f->pic, 14, true);
	pic_set_irq(f->pic, 15, true);
	assert_int_equal(pic_ack(f->pic), 0x3e);
	assert_false(f->intr.level);
	outb(bus, 0x20, 0x20);
	assert_true(f->intr.level);
	assert_int_equal(pic_ack(f->pic), 0x3f);
}

static void test_edge_and_level(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	pic_set_irq(f->pic, 5, true);
	assert_int_equal(pic_ack(f->pic), 0x35);
	outb(bus, 0x20, 0x20);
	assert_false(f->intr.level); /* no new edge */
	outb(bus, 0x4d0, 0xff);
	assert_int_equal(inb(bus, 0x4d0), 0xf8);
	assert_true(f->intr.level); /* level-triggered now, and still up */
	assert_int_equal(pic_ack(f->pic), 0x35);
	outb(bus, 0x20, 0x20);
	assert_true(f->intr.level);
	pic_set_irq(f->pic, 5, false);
	assert_false(f->intr.level);
	bus_write(bus, BUS_PIO, 0x4d0, 2, 0xffff);
	assert_int_equal(bus_read(bus, BUS_PIO, 0x4d0, 2), 0xdef8);
}

static void test_spurious(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	pic_set_irq(f->pic, 3, true);
	pic_set_irq(f->pic, 3, false); /* gone before it was acknowledged */
	assert_int_equal(pic_ack(f->pic), 0x37);
	outb(bus, 0x20, 0x0b);
	assert_int_equal(inb(bus, 0x20), 0); /* which is how a driver knows */
	/* On the slave: the master has it in service, the slave does not. */
	pic_set_irq(f->pic, 10, true);
	bus_write(bus, BUS_PIO, 0xa1, 1, 0);
	outb(bus, 0xa0, 0x0b);
	assert_int_equal(inb(bus, 0xa0), 0);
	assert_int_equal(pic_ack(f->pic), 0x3a);
	outb(bus, 0xa0, 0x20);
	outb(bus, 0x20, 0x20);
	pic_set_irq(f->pic, 10, false);
}

static void test_auto_eoi_and_rotation(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	program(f, 0x03);
	pic_set_irq(f->pic, 2, true); /* nobody's */
	pic_set_irq(f->pic, 6, true);
	pic_set_irq(f->pic, 7, true);
	assert_int_equal(pic_ack(f->pic), 0x36);
	assert_int_equal(pic_ack(f->pic), 0x37);
	assert_false(f->intr.level);
	program(f, 0x01);
	outb(bus, 0x20, 0xc3); /* 3 is lowest: 4 is highest */
	pic_set_irq(f->pic, 1, true);
	pic_set_irq(f->pic, 4, true);
	assert_int_equal(pic_ack(f->pic), 0x34);
	outb(bus, 0x20, 0xa0); /* EOI, and 4 becomes lowest */
	pic_set_irq(f->pic, 4, false);
	pic_set_irq(f->pic, 4, true);
	assert_int_equal(pic_ack(f->pic), 0x31);
	outb(bus, 0x20, 0x20);
	assert_int_equal(pic_ack(f->pic), 0x34);
}

static void test_special_mask_and_poll(void **state)
{
	struct fixture *f = *state;
	struct bus *bus = f->bus;

	pic_set_irq(f->pic, 1, true);
	assert_int_equal(pic_ack(f->pic), 0x31);
	outb(bus, 0x21, 0x02);
	pic_set_irq(f->pic, 5, true);
	assert_false(f->intr.level);
	outb(bus, 0x20, 0x68); /* special mask: 1 is masked, so it holds nobody up */
	assert_true(f->intr.level);
	outb(bus, 0x20, 0x0c); /* poll */
	assert_int_equal(inb(bus, 0x20), 0x85);
	outb(bus, 0x20, 0x0c);
	assert_int_equal(inb(bus, 0x20), 0x00);
	outb(bus, 0x20, 0x0b);
	assert_int_equal(inb(bus, 0x20), 0x22);
}

static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct pic_state saved, bad;

	pic_set_irq(f->pic, 9, true);
	pic_save(f->pic, &saved);
	program(f, 1);
	assert_false(f->intr.level);
	assert_int_equal(pic_load(f->pic, &saved), 0);
	assert_true(f->intr.level);
	assert_int_equal(pic_ack(f->pic), 0x39);
	bad = saved, bad.chip[1].lowest = 8;
	assert_int_equal(pic_load(f->pic, &bad), -EINVAL);
	bad = saved, bad.chip[0].init_step = 5;
	assert_int_equal(pic_load(f->pic, &bad), -EINVAL);
	bad = saved, bad.chip[0].vector_base = 1;
	assert_int_equal(pic_load(f->pic, &bad), -EINVAL);
}

static void test_hammer(void **state)
{
	struct fixture *f = *state;
	struct pic_state s;

	for (unsigned i = 0; i < 300; i++) {
		fake_hammer(f->bus, BUS_PIO, 0x1f, 4, 100);
		fake_hammer(f->bus, BUS_PIO, 0x9f, 4, 100);
		fake_hammer(f->bus, BUS_PIO, 0x4d0, 2, 10);
		pic_set_irq(f->pic, i % 20, i & 16);
		pic_ack(f->pic);
		pic_save(f->pic, &s);
		assert_int_equal(pic_load(f->pic, &s), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_init, setup, teardown),
		cmocka_unit_test_setup_teardown(test_priority, setup_programmed, teardown),
		cmocka_unit_test_setup_teardown(test_mask, setup_programmed, teardown),
		cmocka_unit_test_setup_teardown(test_cascade, setup_programmed, teardown),
		cmocka_unit_test_setup_teardown(test_edge_and_level, setup_programmed, teardown),
		cmocka_unit_test_setup_teardown(test_spurious, setup_programmed, teardown),
		cmocka_unit_test_setup_teardown(test_auto_eoi_and_rotation, setup, teardown),
		cmocka_unit_test_setup_teardown(
			test_special_mask_and_poll, setup_programmed, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup_programmed, teardown),
		cmocka_unit_test_setup_teardown(test_hammer, setup_programmed, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
