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
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "backend/vnc.h"
#include "backend/vnc_private.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/loop.h"

#define WIDTH  100
#define HEIGHT 70
#define WAIT_MS 10000
#define LARGE	2048u

struct fixture {
	struct loop *loop;
	struct vnc *vnc;
	pthread_t thread;
	char path[64];
	pthread_mutex_t lock;
	unsigned width, height, draws;
	uint32_t pixels[200 * 200];
	bool large; /* noise, LARGE pixels each way */
	unsigned keys, moves;
	uint8_t code, buttons;
	bool down;
	int dx, dy, dz;
};

/* ---- the display ---- */

static uint32_t noise(unsigned i)
{
	return (i * 2654435761u ^ i >> 7) & 0xffffff;
}

static bool draw(void *opaque, struct picture *to)
{
	struct fixture *f = opaque;

	pthread_mutex_lock(&f->lock);
	f->draws++;
	const unsigned width = f->large ? LARGE : f->width, height = f->large ? LARGE : f->height;
	bool ok = picture_resize(to, width, height) == 0;
	if (ok && f->large)
		for (unsigned i = 0; i < LARGE * LARGE; i++)
			to->pixels[i] = noise(i);
	else if (ok)
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

static void set_large(struct fixture *f, bool large)
{
	pthread_mutex_lock(&f->lock);
	f->large = large;
	pthread_mutex_unlock(&f->lock);
}

static uint64_t heap_bytes(void)
{
	const struct mallinfo2 info = mallinfo2();

	return info.uordblks + info.hblkhd;
}

/* A client of a large screen, that has asked for all of it. */
static int start_large(struct fixture *f)
{
	static const int32_t encodings[] = {-223};
	int fd = start(f, "RFB 003.008\n");

	set_encodings(fd, 1, encodings);
	ask(fd, false);
	assert_int_equal(update(fd), 4);
	for (unsigned i = 0; i < WIDTH * HEIGHT + 4 * 3; i++)
		get32(fd);
	set_large(f, true);
	ask(fd, true);
	assert_int_equal(update(fd), 1);
	get32(fd);
	assert_int_equal(get16(fd), LARGE);
	assert_int_equal(get16(fd), LARGE);
	assert_int_equal((int32_t)get32(fd), -223);
	return fd;
}

static void wait_bytes(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	assert_int_equal(poll(&p, 1, WAIT_MS), 1);
}

/* What waits for a client that does not read is bounded, and then it gets all of it. */
static void test_unread(void **state)
{
	static uint32_t pixels[64 * 64];
	struct fixture *f = *state;
	int fd = start_large(f);
	const uint64_t before = heap_bytes();

	ask(fd, false);
	wait_bytes(fd);
	usleep(200000);
	assert_in_range(heap_bytes() - before, 0, 2u << 20);
	assert_int_equal(update(fd), LARGE / 64 * LARGE / 64);
	for (unsigned i = 0; i < LARGE / 64 * LARGE / 64; i++) {
		const unsigned x = get16(fd), y = get16(fd);

		assert_int_equal(get16(fd), 64);
		assert_int_equal(get16(fd), 64);
		assert_int_equal(get32(fd), 0);
		get(fd, pixels, sizeof(pixels));
		for (unsigned n = 0; n < 64 * 64; n++)
			assert_int_equal(pixels[n], noise((y + n / 64) * LARGE + x + n % 64));
	}
	close(fd);
}

/* The screen gets smaller in the middle of an update, which still has as many rectangles as it said. */
static void test_resize_meanwhile(void **state)
{
	static uint32_t pixels[64 * 64];
	struct fixture *f = *state;
	int fd = start_large(f);

	ask(fd, false);
	wait_bytes(fd);
	pthread_mutex_lock(&f->lock);
	f->large = false;
	const unsigned draws = f->draws;
	pthread_mutex_unlock(&f->lock);
	int other = connect_to(f); /* who has it drawn */
	put(other, "RFB 003.003\n\1\3\0\0\0\0\0\1\0\1\0", 23);
	assert_true(wait_for(f, &f->draws, draws + 1));
	assert_int_equal(update(fd), LARGE / 64 * LARGE / 64);
	for (unsigned i = 0; i < LARGE / 64 * LARGE / 64; i++) {
		for (unsigned n = 0; n < 3; n++)
			get32(fd);
		get(fd, pixels, sizeof(pixels));
	}
	assert_int_equal(pixels[7], 0);
	ask(fd, true);
	assert_int_equal(update(fd), 1);
	get32(fd);
	assert_int_equal(get16(fd), WIDTH);
	close(fd);
	close(other);
}

/* Keys and buttons that a client held down go up when it goes. */
static void test_vanishing(void **state)
{
	struct fixture *f = *state;
	int fd = start(f, "RFB 003.008\n");

	put(fd, "\4\1\0\0\0\0\0a\4\1\0\0\0\0\0b\4\0\0\0\0\0\0a\5\4\0\1\0\1", 30);
	assert_true(wait_for(f, &f->moves, 1));
	assert_int_equal(f->buttons, 2);
	close(fd);
	assert_true(wait_for(f, &f->moves, 2));
	assert_int_equal(f->keys, 4);
	assert_int_equal(f->code, 0x30);
	assert_false(f->down);
	assert_int_equal(f->buttons, 0);
	assert_int_equal(f->dx | f->dy, 0);
}

static void be_impatient(void *opaque)
{
	vnc_set_pace(opaque, 1000000, 50000000);
}

static void be_patient(void *opaque)
{
	vnc_set_pace(opaque, 1000000, 10000000000);
}

/* Who says nothing does not keep others out. */
static void test_silent(void **state)
{
	struct fixture *f = *state;
	int silent[8];

	int fd = start(f, "RFB 003.008\n");
	loop_invoke(f->loop, be_impatient, f->vnc);
	for (unsigned i = 0; i < 7; i++)
		silent[i] = connect_to(f);
	(void)!send(silent[1], "RFB 003.008\n\1", 13, MSG_NOSIGNAL);
	for (unsigned i = 0; i < 7; i++) {
		assert_true(is_cut_off(silent[i]));
		close(silent[i]);
	}
	loop_invoke(f->loop, be_patient, f->vnc);
	usleep(60000); /* who runs may be silent */
	ask(fd, false);
	assert_int_equal(update(fd), 4);
	int next = start(f, "RFB 003.008\n");
	close(next);
	close(fd);
}

static uint64_t cpu_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* With no descriptor left the loop does not turn for nothing, and who waits is served when there is one. */
static void test_no_descriptors(void **state)
{
	struct fixture *f = *state;
	struct rlimit before, none;
	uint8_t bytes[12];

	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	strcpy(address.sun_path, f->path);
	getrlimit(RLIMIT_NOFILE, &before);
	none = (struct rlimit){(rlim_t)fd + 1, before.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	const uint64_t used = cpu_ms();
	usleep(300000);
	const uint64_t spent = cpu_ms() - used;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_in_range(spent, 0, 30);
	get(fd, bytes, 12);
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
		TEST(test_unread),
		TEST(test_resize_meanwhile),
		TEST(test_vanishing),
		TEST(test_silent),
		TEST(test_no_descriptors),
		cmocka_unit_test(test_places),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
