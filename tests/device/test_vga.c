/*
 * device/display/vga: its registers, the window's modes, DISPI, and what it draws of them.
 */
#include "tests/device/fake.h"

#include <errno.h>

#include "device/display/vga.h"
#include "device/pci/device.h"

#define SLOT   PCI_DEVFN(2, 0)
#define MEMORY 0xe0000000u
#define REGS   0xe1000000u

struct fixture {
	struct bus *bus;
	struct pci_host *host;
	struct vga *vga;
	struct picture picture;
	pthread_mutex_t lock;
};

static void outw(struct fixture *f, uint16_t port, uint16_t value)
{
	bus_write(f->bus, BUS_PIO, port, 2, value);
}

static void indexed(struct fixture *f, uint16_t port, uint8_t index, uint8_t value)
{
	outb(f->bus, port, index);
	outb(f->bus, port + 1, value);
}

static void dispi(struct fixture *f, uint16_t index, uint16_t value)
{
	outw(f, 0x1ce, index);
	outw(f, 0x1cf, value);
}

static uint16_t get_dispi(struct fixture *f, uint16_t index)
{
	outw(f, 0x1ce, index);
	return (uint16_t)bus_read(f->bus, BUS_PIO, 0x1cf, 2);
}

static void attribute(struct fixture *f, uint8_t index, uint8_t value)
{
	inb(f->bus, 0x3da);
	outb(f->bus, 0x3c0, index);
	outb(f->bus, 0x3c0, value);
	outb(f->bus, 0x3c0, 0x20); /* the screen is on */
}

static void put(struct fixture *f, uint32_t at, uint8_t value)
{
	bus_write(f->bus, BUS_MMIO, 0xa0000 + at, 1, value);
}

static uint8_t get(struct fixture *f, uint32_t at)
{
	return (uint8_t)bus_read(f->bus, BUS_MMIO, 0xa0000 + at, 1);
}

static uint32_t pixel(struct fixture *f, unsigned x, unsigned y)
{
	assert_true(x < f->picture.width && y < f->picture.height);
	return f->picture.pixels[y * f->picture.width + x];
}

static void draw(struct fixture *f, unsigned width, unsigned height)
{
	assert_int_equal(vga_draw(f->vga, &f->picture), 0);
	assert_int_equal(f->picture.width, width);
	assert_int_equal(f->picture.height, height);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	const struct pci_host_config config = {.lock = &f->lock};

	pthread_mutex_init(&f->lock, NULL);
	assert_int_equal(bus_create(&f->bus), 0);
	assert_int_equal(pci_host_create(&config, &f->host), 0);
	assert_int_equal(vga_create(f->bus, f->host, SLOT, &f->vga), 0);
	vga_assign(f->vga, MEMORY, REGS);
	outb(f->bus, 0x3c2, 0x67); /* colour */
	for (unsigned i = 0; i < 16; i++)
		attribute(f, (uint8_t)i, (uint8_t)i);
	attribute(f, 18, 0x0f);
	outb(f->bus, 0x3c8, 0);
	for (unsigned i = 0; i < 256; i++) {
		outb(f->bus, 0x3c9, i & 0x3f);
		outb(f->bus, 0x3c9, 0);
		outb(f->bus, 0x3c9, 63 - (i & 0x3f));
	}
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	picture_done(&f->picture);
	vga_free(f->vga);
	pci_host_free(f->host);
	bus_free(f->bus);
	free(f);
	return 0;
}

static uint32_t colour(unsigned index)
{
	const unsigned red = index & 0x3f, blue = 63 - red;

	return (red << 2 | red >> 4) << 16 | (blue << 2 | blue >> 4);
}

static void test_text(void **state)
{
	struct fixture *f = *state;

	indexed(f, 0x3d4, 17, 0);
	indexed(f, 0x3d4, 1, 9);   /* 10 characters */
	indexed(f, 0x3d4, 9, 15);  /* of 16 lines */
	indexed(f, 0x3d4, 18, 31); /* two rows */
	indexed(f, 0x3d4, 19, 5);
	indexed(f, 0x3d4, 10, 14);
	indexed(f, 0x3d4, 11, 15);
	indexed(f, 0x3d4, 15, 11); /* the cursor: second character of the second row */
	indexed(f, 0x3c4, 1, 1);   /* 8 dots */
	/* A font: character 1 has a dot at the left of its third line. */
	indexed(f, 0x3c4, 2, 4);
	indexed(f, 0x3c4, 4, 6);
	indexed(f, 0x3ce, 6, 4);
	indexed(f, 0x3ce, 8, 0xff);
	put(f, 32 * 1 + 2, 0x80);
	/* Text: at 0xb8000, odd and even. */
	indexed(f, 0x3c4, 2, 3);
	indexed(f, 0x3c4, 4, 2);
	indexed(f, 0x3ce, 5, 0x10);
	indexed(f, 0x3ce, 6, 0x0e);
	bus_write(f->bus, BUS_MMIO, 0xb8000, 2, 0x1e01); /* character 1, colours 14 on 1 */
	bus_write(f->bus, BUS_MMIO, 0xb8000 + 22, 2, 0x0700);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, 0xb8000, 2), 0x1e01);
	draw(f, 80, 32);
	assert_int_equal(pixel(f, 0, 2), colour(14));
	assert_int_equal(pixel(f, 1, 2), colour(1));
	assert_int_equal(pixel(f, 0, 1), colour(1));
	assert_int_equal(pixel(f, 8, 2), colour(0));
	assert_int_equal(pixel(f, 8, 29), colour(0));
	assert_int_equal(pixel(f, 8, 30), colour(7)); /* the cursor */
	assert_int_equal(pixel(f, 15, 31), colour(7));
	assert_int_equal(pixel(f, 16, 31), colour(0));
	indexed(f, 0x3d4, 10, 0x20); /* off */
	draw(f, 80, 32);
	assert_int_equal(pixel(f, 8, 30), colour(0));
	/* The screen off. */
	inb(f->bus, 0x3da);
	outb(f->bus, 0x3c0, 0);
	draw(f, 640, 400);
	assert_int_equal(pixel(f, 0, 2), 0);
}

static void planar(struct fixture *f)
{
	indexed(f, 0x3d4, 17, 0);
	indexed(f, 0x3d4, 1, 3); /* 32 pixels */
	indexed(f, 0x3d4, 18, 7);
	indexed(f, 0x3d4, 19, 2);
	indexed(f, 0x3c4, 2, 15);
	indexed(f, 0x3c4, 4, 6);
	indexed(f, 0x3ce, 5, 0);
	indexed(f, 0x3ce, 6, 5);
	indexed(f, 0x3ce, 8, 0xff);
}

static void test_planar(void **state)
{
	struct fixture *f = *state;

	planar(f);
	put(f, 0, 0xff);
	put(f, 0x10000, 0xff); /* outside the map */
	assert_int_equal(get(f, 0x10000), 0xff);
	draw(f, 32, 8);
	assert_int_equal(pixel(f, 7, 0), colour(15));
	assert_int_equal(pixel(f, 8, 0), colour(0));
	/* Write mode 2: a colour, where the mask lets it. */
	indexed(f, 0x3ce, 5, 2);
	indexed(f, 0x3ce, 8, 0x0f);
	get(f, 0); /* latches */
	put(f, 0, 5);
	draw(f, 32, 8);
	assert_int_equal(pixel(f, 3, 0), colour(15));
	assert_int_equal(pixel(f, 4, 0), colour(5));
	/* Mode 1 copies; set/reset; mode 3. */
	indexed(f, 0x3ce, 5, 1);
	get(f, 0);
	put(f, 4, 0);
	indexed(f, 0x3ce, 5, 0);
	indexed(f, 0x3ce, 0, 9);
	indexed(f, 0x3ce, 1, 15);
	indexed(f, 0x3ce, 8, 0xff);
	put(f, 1, 0);
	indexed(f, 0x3ce, 5, 3);
	indexed(f, 0x3ce, 0, 3);
	get(f, 2);
	put(f, 2, 0xf0);
	draw(f, 32, 8);
	assert_int_equal(pixel(f, 3, 1), colour(15));
	assert_int_equal(pixel(f, 4, 1), colour(5));
	assert_int_equal(pixel(f, 8, 0), colour(9));
	assert_int_equal(pixel(f, 19, 0), colour(3));
	assert_int_equal(pixel(f, 20, 0), colour(0));
	/* Read modes. */
	indexed(f, 0x3ce, 5, 0);
	indexed(f, 0x3ce, 4, 1);
	assert_int_equal(get(f, 0), 0xf0);
	indexed(f, 0x3ce, 5, 8);
	indexed(f, 0x3ce, 2, 5);
	indexed(f, 0x3ce, 7, 15);
	assert_int_equal(get(f, 0), 0x0f);
	/* The functions: xor with what is there, turned. */
	indexed(f, 0x3ce, 5, 0);
	indexed(f, 0x3ce, 1, 0);
	indexed(f, 0x3ce, 3, 0x18 | 4);
	get(f, 0);
	put(f, 0, 0x0f);
	indexed(f, 0x3ce, 4, 1);
	assert_int_equal(get(f, 0), 0x00);
}

static void test_256(void **state)
{
	struct fixture *f = *state;

	planar(f);
	indexed(f, 0x3d4, 1, 7);
	indexed(f, 0x3d4, 9, 0x41); /* each line twice */
	indexed(f, 0x3d4, 19, 4);
	indexed(f, 0x3c4, 4, 14); /* chain 4 */
	indexed(f, 0x3ce, 5, 0x40);
	put(f, 0, 200);
	put(f, 33, 77);
	draw(f, 32, 4);
	assert_int_equal(pixel(f, 0, 0), colour(200));
	assert_int_equal(pixel(f, 1, 1), colour(77));
}

static void test_linear(void **state)
{
	struct fixture *f = *state;
	static const uint16_t depths[] = {8, 15, 16, 24, 32};
	static const uint32_t white[] = {0x3f, 0x7fff, 0xffff, 0xffffff, 0xffffff};

	assert_int_equal(get_dispi(f, 0), 0xb0c5);
	assert_int_equal(get_dispi(f, 10), 256);
	for (unsigned i = 0; i < ARRAY_SIZE(depths); i++) {
		const unsigned bytes = (depths[i] + 7u) / 8;

		dispi(f, 4, 0);
		dispi(f, 1, 64);
		dispi(f, 2, 16);
		dispi(f, 3, depths[i]);
		dispi(f, 4, 1);
		bus_write(f->bus, BUS_MMIO, MEMORY + 65ull * bytes, bytes == 3 ? 1 : bytes, white[i]);
		if (bytes == 3)
			bus_write(f->bus, BUS_MMIO, MEMORY + 65ull * bytes + 1, 2, 0xffff);
		draw(f, 64, 16);
		assert_int_equal(pixel(f, 1, 1) & 0xf80000, 0xf80000);
		assert_int_equal(pixel(f, 2, 1) & 0xf80000, 0);
		/* Moved by an offset; a wider line; a bank. */
		dispi(f, 6, 128);
		assert_int_equal(get_dispi(f, 7), MIN((16u << 20) / (128 * bytes), 0xffffu));
		dispi(f, 8, 65);
		draw(f, 64, 16);
		assert_int_equal(pixel(f, 0, 0) & 0xf80000, 0xf80000);
	}
	/* Registers in memory. */
	assert_int_equal(bus_read(f->bus, BUS_MMIO, REGS + 0x502, 2), 64);
	bus_write(f->bus, BUS_MMIO, REGS + 0x508, 2, 0);
	dispi(f, 1, 7); /* no width */
	dispi(f, 3, 9);
	assert_int_equal(get_dispi(f, 1), 64);
	assert_int_equal(get_dispi(f, 3), 32);
	dispi(f, 4, 2); /* the most there is */
	assert_int_equal(get_dispi(f, 1), 4096);
}

/* Whatever is in the registers, drawing ends and stays inside. */
static void test_hostile(void **state)
{
	struct fixture *f = *state;
	uint32_t random = 1;

	for (unsigned i = 0; i < 400; i++) {
		for (unsigned n = 0; n < 60; n++) {
			random = random * 1664525 + 1013904223;
			const uint16_t port = random >> 28 ? 0x3b0 + (random >> 16) % 0x30 : 0x1ce + (random >> 16) % 3;
			bus_write(f->bus, BUS_PIO, port, random >> 30 ? 1 : 2, random >> 8 & 0xffff);
			bus_read(f->bus, BUS_PIO, port, 1);
			bus_write(f->bus, BUS_MMIO, 0xa0000 + (random >> 8 & 0x1ffff), 1, random >> 3 & 0xff);
			bus_read(f->bus, BUS_MMIO, 0xa0000 + (random >> 7 & 0x1ffff), 4);
			bus_write(f->bus, BUS_MMIO, MEMORY + (random >> 4), 8, random);
		}
		assert_int_equal(vga_draw(f->vga, &f->picture), 0);
	}
	fake_hammer(f->bus, BUS_PIO, 0x1cc, 6, 2000);
	fake_hammer(f->bus, BUS_PIO, 0x3ae, 52, 5000);
	fake_hammer(f->bus, BUS_MMIO, 0x9fff8, 0x20010, 3000);
	fake_hammer(f->bus, BUS_MMIO, REGS, 0x1000, 3000);
	fake_hammer(f->bus, BUS_MMIO, MEMORY, 0x1000000, 3000);
	assert_int_equal(vga_draw(f->vga, &f->picture), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_text),
		TEST(test_planar),
		TEST(test_256),
		TEST(test_linear),
		TEST(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
