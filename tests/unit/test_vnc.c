/*
 * backend/vnc: a client over a Unix socket: versions, formats, encodings, what changes, keys and pointer, and clients that
 * do not keep to the protocol.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zlib.h>

#include "backend/vnc.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/loop.h"

#define WIDTH  100
#define HEIGHT 70
#define WAIT_MS 10000

struct fixture {
	struct loop *loop;
	struct vnc *vnc;
	pthread_t thread;
	char path[64];
	pthread_mutex_t lock;
	unsigned width, height, draws;
	uint32_t pixels[200 * 200];
	unsigned keys, moves;
	uint8_t code, buttons;
	bool down;
	int dx, dy, dz;
};

/* ---- the display ---- */

static bool draw(void *opaque, struct picture *to)
{
	struct fixture *f = opaque;

	pthread_mutex_lock(&f->lock);
	f->draws++;
	bool ok = picture_resize(to, f->width, f->height) == 0;
	if (ok)
		memcpy(to->pixels, f->pixels, sizeof(uint32_t) * f->width * f->height);
	pthread_mutex_unlock(&f->lock);
	return ok;
}

static void key(void *opaque, uint8_t code, bool down)
{
	struct fixture *f = opaque;

	pthread_mutex_lock(&f->lock);
	f->keys++;
	f->code = code;
	f->down = down;
	pthread_mutex_unlock(&f->lock);
}

static void move(void *opaque, int dx, int dy, int dz, uint8_t buttons)
{
	struct fixture *f = opaque;

	pthread_mutex_lock(&f->lock);
	f->moves++;
	f->dx = dx;
	f->dy = dy;
	f->dz = dz;
	f->buttons = buttons;
	pthread_mutex_unlock(&f->lock);
}

static void set_pixel(struct fixture *f, unsigned x, unsigned y, uint32_t colour)
{
	pthread_mutex_lock(&f->lock);
	f->pixels[y * f->width + x] = colour;
	pthread_mutex_unlock(&f->lock);
}

/* ---- the rig ---- */

static void *run(void *opaque)
{
	loop_run(opaque);
	return NULL;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	const struct display display = {draw, key, move, f};
	char where[80];
	struct error err = {0};

	pthread_mutex_init(&f->lock, NULL);
	f->width = WIDTH;
	f->height = HEIGHT;
	for (unsigned i = 0; i < WIDTH * HEIGHT; i++)
		f->pixels[i] = i * 0x123;
	snprintf(f->path, sizeof(f->path), "/tmp/lodge-test-vnc-%d", (int)getpid());
	snprintf(where, sizeof(where), "unix:%s", f->path);
	assert_int_equal(loop_create(&f->loop), 0);
	assert_int_equal(vnc_open(&f->vnc, f->loop, where, "name", &display, &err), 0);
	assert_int_equal(pthread_create(&f->thread, NULL, run, f->loop), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	loop_stop(f->loop);
	pthread_join(f->thread, NULL);
	vnc_close(f->vnc);
	loop_free(f->loop);
	assert_int_equal(access(f->path, F_OK), -1);
	free(f);
	return 0;
}

static int connect_to(struct fixture *f)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(address.sun_path, f->path);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static void get(int fd, void *to, size_t count)
{
	for (size_t done = 0; done < count;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};

		assert_int_equal(poll(&p, 1, WAIT_MS), 1);
		ssize_t got = read(fd, (uint8_t *)to + done, count - done);
		assert_true(got > 0);
		done += (size_t)got;
	}
}

static void put(int fd, const void *bytes, size_t count)
{
	assert_int_equal(send(fd, bytes, count, MSG_NOSIGNAL), count);
}

static uint32_t get32(int fd)
{
	uint8_t bytes[4];

	get(fd, bytes, 4);
	return load_be32(bytes);
}

static uint16_t get16(int fd)
{
	uint8_t bytes[2];

	get(fd, bytes, 2);
	return load_be16(bytes);
}

static int start(struct fixture *f, const char *version)
{
	uint8_t bytes[64];
	int fd = connect_to(f);

	get(fd, bytes, 12);
	assert_memory_equal(bytes, "RFB 003.008\n", 12);
	put(fd, version, 12);
	if (version[10] == '3') {
		assert_int_equal(get32(fd), 1);
	} else {
		get(fd, bytes, 2);
		assert_memory_equal(bytes, "\1\1", 2);
		put(fd, "\1", 1);
		if (version[10] == '8')
			assert_int_equal(get32(fd), 0);
	}
	put(fd, "\1", 1);
	assert_int_equal(get16(fd), WIDTH);
	assert_int_equal(get16(fd), HEIGHT);
	get(fd, bytes, 16);
	assert_memory_equal(bytes, "\x20\x18\0\1\0\xff\0\xff\0\xff\x10\x08\0\0\0\0", 16);
	assert_int_equal(get32(fd), 4);
	get(fd, bytes, 4);
	assert_memory_equal(bytes, "name", 4);
	return fd;
}

static void ask(int fd, bool incremental)
{
	const uint8_t request[10] = {3, incremental, 0, 0, 0, 0, 1, 0, 1, 0};

	put(fd, request, sizeof(request));
}

static unsigned update(int fd)
{
	assert_int_equal(get16(fd), 0);
	return get16(fd);
}

static void set_encodings(int fd, unsigned count, const int32_t *list)
{
	uint8_t bytes[4] = {2, 0, 0, (uint8_t)count};

	put(fd, bytes, 4);
	for (unsigned i = 0; i < count; i++) {
		store_be32(bytes, (uint32_t)list[i]);
		put(fd, bytes, 4);
	}
}

/* ---- tests ---- */

static void read_raw(int fd, uint32_t *pixels, unsigned rectangles, unsigned width)
{
	while (rectangles--) {
		const unsigned x = get16(fd), y = get16(fd), w = get16(fd), h = get16(fd);

		assert_int_equal(get32(fd), 0);
		for (unsigned line = 0; line < h; line++)
			get(fd, pixels + (y + line) * width + x, 4 * w);
	}
}

static void test_raw(void **state)
{
	static const char *const versions[] = {"RFB 003.003\n", "RFB 003.007\n", "RFB 003.008\n"};
	static uint32_t pixels[WIDTH * HEIGHT];
	struct fixture *f = *state;

	for (unsigned i = 0; i < 3; i++) {
		int fd = start(f, versions[i]);

		ask(fd, false);
		unsigned count = update(fd);
		assert_int_equal(count, 4);
		read_raw(fd, pixels, count, WIDTH);
		assert_memory_equal(pixels, f->pixels, sizeof(pixels));
		/* Only what changed. */
		set_pixel(f, 99, 69, 0xabcdef + i);
		ask(fd, true);
		count = update(fd);
		assert_int_equal(count, 1);
		read_raw(fd, pixels, count, WIDTH);
		assert_int_equal(pixels[WIDTH * HEIGHT - 1], 0xabcdef + i);
		close(fd);
	}
}

static void test_formats(void **state)
{
	struct fixture *f = *state;
	/* 16 bits, big-endian, 5-6-5 */
	static const uint8_t format[20] = {0, 0, 0, 0, 16, 16, 1, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0};
	int fd = start(f, "RFB 003.008\n");
	uint8_t bytes[64 * 64 * 2];

	set_pixel(f, 0, 0, 0xff00ff);
	set_pixel(f, 1, 0, 0x00ff00);
	put(fd, format, sizeof(format));
	ask(fd, false);
	assert_int_equal(update(fd), 4);
	get(fd, bytes, 12); /* the first rectangle's head */
	get(fd, bytes, sizeof(bytes));
	assert_int_equal(load_be16(bytes), 0xf81f);
	assert_int_equal(load_be16(bytes + 2), 0x07e0);
	close(fd);
}

/* An independent reader of ZRLE, for pixels of 32 bits with the colour in the low three bytes. */
struct zrle {
	z_stream stream;
	uint8_t packed[100000], bytes[70000];
	const uint8_t *at;
};

static uint32_t cpixel(struct zrle *z)
{
	z->at += 3;
	return z->at[-3] | z->at[-2] << 8 | z->at[-1] << 16;
}

static void read_zrle(int fd, struct zrle *z, uint32_t *pixels, unsigned rectangles)
{
	uint32_t palette[16];

	while (rectangles--) {
		const unsigned x = get16(fd), y = get16(fd), w = get16(fd), h = get16(fd);

		assert_int_equal(get32(fd), 16);
		z->stream.avail_in = get32(fd);
		assert_true(z->stream.avail_in <= sizeof(z->packed));
		get(fd, z->packed, z->stream.avail_in);
		z->stream.next_in = z->packed;
		z->stream.next_out = z->bytes;
		z->stream.avail_out = sizeof(z->bytes);
		assert_int_equal(inflate(&z->stream, Z_SYNC_FLUSH), Z_OK);
		assert_int_equal(z->stream.avail_in, 0);
		z->at = z->bytes;
		const unsigned colours = *z->at++, bits = colours <= 2 ? 1 : colours <= 4 ? 2 : 4;
		assert_true(colours <= 16);
		for (unsigned i = 0; i < colours; i++)
			palette[i] = cpixel(z);
		for (unsigned n = 0; n < w * h; n++) {
			uint32_t *to = &pixels[(y + n / w) * WIDTH + x + n % w];
			const unsigned column = n % w;

			if (!colours)
				*to = cpixel(z);
			else if (colours == 1)
				*to = palette[0];
			else
				*to = palette[z->at[n / w * ((w * bits + 7) / 8) + column * bits / 8] >>
						      (8 - bits - column * bits % 8) &
					      ((1u << bits) - 1)];
		}
	}
}

static void test_zrle(void **state)
{
	static const int32_t encodings[] = {16, 0};
	static uint32_t pixels[WIDTH * HEIGHT];
	static const unsigned colours[] = {1, 2, 3, 4, 5, 16, 17, 5000};
	struct fixture *f = *state;
	struct zrle z = {0};
	int fd = start(f, "RFB 003.008\n");

	assert_int_equal(inflateInit(&z.stream), Z_OK);
	set_encodings(fd, 2, encodings);
	for (unsigned i = 0; i < sizeof(colours) / sizeof(*colours); i++) {
		for (unsigned n = 0; n < WIDTH * HEIGHT; n++)
			set_pixel(f, n % WIDTH, n / WIDTH, (n * 7 % colours[i]) * 0x010305 & 0xffffff);
		ask(fd, false);
		read_zrle(fd, &z, pixels, update(fd));
		assert_memory_equal(pixels, f->pixels, sizeof(pixels));
	}
	inflateEnd(&z.stream);
	close(fd);
}

static void test_resize(void **state)
{
	static const int32_t encodings[] = {-223, -258, 0};
	static uint32_t pixels[200 * 120];
	struct fixture *f = *state;
	int fd = start(f, "RFB 003.008\n");

	set_encodings(fd, 3, encodings);
	ask(fd, false);
	assert_int_equal(update(fd), 5); /* and that it takes key codes */
	assert_int_equal(get32(fd), 0);
	assert_int_equal(get32(fd), 0);
	assert_int_equal((int32_t)get32(fd), -258);
	read_raw(fd, pixels, 4, WIDTH);
	pthread_mutex_lock(&f->lock);
	f->width = 200;
	f->height = 120;
	pthread_mutex_unlock(&f->lock);
	ask(fd, true);
	assert_int_equal(update(fd), 1);
	assert_int_equal(get32(fd), 0);
	assert_int_equal(get16(fd), 200);
	assert_int_equal(get16(fd), 120);
	assert_int_equal((int32_t)get32(fd), -223);
	ask(fd, true);
	read_raw(fd, pixels, update(fd), 200);
	assert_memory_equal(pixels, f->pixels, sizeof(pixels));
	close(fd);
}

static bool wait_for(struct fixture *f, const unsigned *counter, unsigned value)
{
	for (unsigned i = 0; i < WAIT_MS; i++) {
		pthread_mutex_lock(&f->lock);
		bool there = *counter >= value;
		pthread_mutex_unlock(&f->lock);
		if (there)
			return true;
		usleep(1000);
	}
	return false;
}

static void test_input(void **state)
{
	static const struct {
		uint32_t keysym;
		uint8_t code;
	} keys[] = {{'a', 0x1e}, {'A', 0x1e}, {'1', 0x02}, {'!', 0x02}, {'/', 0x35}, {'?', 0x35}, {'~', 0x29}, {' ', 0x39},
		{0xff0d, 0x1c}, {0xff52, 0xc8}, {0xffbe, 0x3b}, {0xffc9, 0x58}, {0xffff, 0xd3}, {'|', 0x2b}, {'Z', 0x2c}};
	struct fixture *f = *state;
	int fd = start(f, "RFB 003.008\n");
	uint8_t bytes[12] = {4, 1};
	unsigned count = 0;

	for (unsigned i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
		store_be32(bytes + 4, keys[i].keysym);
		put(fd, bytes, 8);
		assert_true(wait_for(f, &f->keys, ++count));
		assert_int_equal(f->code, keys[i].code);
		assert_true(f->down);
	}
	/* A code of the keyboard's own: E0 1D, the right control key, up. */
	const uint8_t coded[12] = {255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0x1d};
	put(fd, coded, 12);
	assert_true(wait_for(f, &f->keys, ++count));
	assert_int_equal(f->code, 0x9d);
	assert_false(f->down);
	/* The pointer: first where it is, then a move with the right button and the wheel. */
	put(fd, "\5\0\0\12\0\24", 6);
	assert_true(wait_for(f, &f->moves, 1));
	assert_int_equal(f->dx, 0);
	put(fd, "\5\14\0\15\0\22", 6);
	assert_true(wait_for(f, &f->moves, 2));
	assert_int_equal(f->dx, 3);
	assert_int_equal(f->dy, -2);
	assert_int_equal(f->dz, -1);
	assert_int_equal(f->buttons, 2);
	/* A long text for a clipboard is passed over. */
	bytes[0] = 6;
	store_be32(bytes + 4, 50000);
	put(fd, bytes, 8);
	for (unsigned i = 0; i < 5000; i++)
		put(fd, "0123456789", 10);
	memset(bytes, 0, 8);
	bytes[0] = 4;
	store_be32(bytes + 4, 'b');
	put(fd, bytes, 8);
	assert_true(wait_for(f, &f->keys, ++count));
	assert_int_equal(f->code, 0x30);
	close(fd);
}

static bool is_cut_off(int fd)
{
	uint8_t bytes[4096];
	struct pollfd p = {.fd = fd, .events = POLLIN};

	while (poll(&p, 1, WAIT_MS) == 1)
		if (read(fd, bytes, sizeof(bytes)) <= 0)
			return true;
	return false;
}

static void test_hostile(void **state)
{
	static const struct {
		size_t count;
		const char *bytes;
	} wrong[] = {{12, "RFB 004.000\n"}, {12, "GET / HTTP/1"}, {13, "RFB 003.008\n\2"},
		{15, "RFB 003.008\n\1\1\7"}, {16, "RFB 003.008\n\1\1\377\1"},
		{34, "RFB 003.008\n\1\1\0\0\0\0\44\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0"}};
	struct fixture *f = *state;
	uint32_t random = 1;

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		int fd = connect_to(f);

		put(fd, wrong[i].bytes, wrong[i].count);
		assert_true(is_cut_off(fd));
		close(fd);
	}
	for (unsigned i = 0; i < 300; i++) {
		uint8_t bytes[2000];
		int fd = start(f, "RFB 003.008\n");

		for (unsigned n = 0; n < sizeof(bytes); n++) {
			random = random * 1664525 + 1013904223;
			bytes[n] = (uint8_t)(n % 10 == 0 ? (random >> 24) % 8 : random >> 30 ? 0 : random >> 22);
		}
		(void)!send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL);
		close(fd);
	}
	/* More of them than there may be: the others go on. */
	int many[20], fd = start(f, "RFB 003.008\n");
	for (unsigned i = 0; i < 20; i++)
		many[i] = connect_to(f);
	ask(fd, false);
	assert_int_equal(update(fd), 4);
	for (unsigned i = 0; i < 20; i++)
		close(many[i]);
	close(fd);
}

/* One that asks and never reads gets one update, not one after another. */
static void test_slow(void **state)
{
	struct fixture *f = *state;
	int fd = start(f, "RFB 003.008\n");

	pthread_mutex_lock(&f->lock);
	f->draws = 0;
	pthread_mutex_unlock(&f->lock);
	for (unsigned i = 0; i < 100; i++)
		ask(fd, false);
	usleep(300000);
	pthread_mutex_lock(&f->lock);
	assert_in_range(f->draws, 1, 15);
	pthread_mutex_unlock(&f->lock);
	close(fd);
}

static void test_places(void **state)
{
	static const struct {
		const char *where, *why;
	} wrong[] = {{"0.0.0.0:5901", "open to everybody"}, {"192.168.1.1:5901", "open to everybody"},
		{"nonsense", "no place for VNC"}, {"127.0.0.1:0", "no place"}, {"127.0.0.1:99999", "no place"},
		{":-5901", "no place"}, {"unix:", "no name for a socket"}, {"unix:/none/there", "can't listen"}};
	const struct display display = {.draw = draw};
	struct loop *loop;
	struct vnc *vnc;

	assert_int_equal(loop_create(&loop), 0);
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		struct error err = {0};

		assert_true(vnc_open(&vnc, loop, wrong[i].where, "name", &display, &err) < 0);
		if (!strstr(err.text, wrong[i].why))
			fail_msg("%s: %s", wrong[i].where, err.text);
	}
	loop_free(loop);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_raw),
		TEST(test_formats),
		TEST(test_zrle),
		TEST(test_resize),
		TEST(test_input),
		TEST(test_hostile),
		TEST(test_slow),
		cmocka_unit_test(test_places),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
