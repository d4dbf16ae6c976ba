/*
 * Fuzz target: clients of the VNC server: handshakes, formats, encodings, requests, keys, pointers and clipboards that make
 * sense and that do not; clients that read slowly, or not, and that vanish; while the picture changes, its size, too.
 *
 * What must hold: nothing crashes, no descriptor is left; a client that keeps to the protocol is given nothing but it: as many
 * rectangles as were said, within the picture, in the encodings that it asked for, in one stream of zlib's; it gets an
 * update when it asks for all; keys and buttons that are down go up at the latest when their client goes.
 */
#include "tests/fuzz/rig.h"

#include "backend/vnc.h"
#include "backend/vnc_private.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"
#include "tests/turns.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define OPS_MAX	     200
#define CLIENTS	     10 /* more than there may be */
#define SIDE_MAX     150u
#define WAITING_MAX  40000u /* a rectangle and its head, however it is encoded */
#define INIT_BYTES   (12 + 2 + 4 + 24 + 4)
#define PATIENCE_NS  3600000000000ull

/* The far end of a connection, and what it has been given. */
struct far {
	int fd; /* -1: none */
	bool good; /* it has kept to the protocol: what it is given is looked at */
	bool zrle, can_resize, key_codes, settled; /* settled: asked for something, so that its format stays */
	unsigned pixel_bytes;
	uint8_t waiting[WAITING_MAX];
	size_t count;
	bool introduced;
	unsigned width, height, rectangles; /* still to come of an update */
	unsigned updates;
	z_stream stream;
};

struct target {
	struct loop *loop;
	struct vnc *vnc;
	char path[64];
	unsigned width, height;
	uint32_t seed;
	bool shown;
	uint8_t keys[256], buttons; /* as the display was told */
	struct far far[CLIENTS];
};

/* ---- the display ---- */

static bool draw(void *opaque, struct picture *to)
{
	struct target *t = opaque;

	if (picture_resize(to, t->width, t->height) < 0)
		return false;
	for (unsigned i = 0; i < t->width * t->height; i++)
		to->pixels[i] = (t->seed & 1 ? i * t->seed : i / 700 * t->seed) & 0xffffff;
	return true;
}

static void key(void *opaque, uint8_t code, bool down)
{
	MUST(code);
	((struct target *)opaque)->keys[code] = down;
}

static void move(void *opaque, int dx, int dy, int dz, uint8_t buttons)
{
	MUST(buttons <= 7 && dx > -65536 && dx < 65536 && dy > -65536 && dy < 65536 && dz >= -1 && dz <= 1);
	((struct target *)opaque)->buttons = buttons;
}

static void show(struct target *t, bool on)
{
	const struct display display = {draw, key, move, t};

	t->shown = on;
	vnc_show(t->vnc, on ? &display : NULL);
	if (on)
		return;
	/* The next one is another machine's. */
	memset(t->keys, 0, sizeof(t->keys));
	t->buttons = 0;
}

/* ---- what a client is given ---- */

/* A rectangle at the front of what waits: its bytes, or 0 if it is not all there. */
static size_t take_rectangle(struct far *far)
{
	static uint8_t bytes[1 + 4 * VNC_TILE * VNC_TILE];
	const uint8_t *in = far->waiting;

	if (far->count < 12)
		return 0;
	const unsigned x = load_be16(in), y = load_be16(in + 2), w = load_be16(in + 4), h = load_be16(in + 6);
	const int32_t encoding = (int32_t)load_be32(in + 8);
	switch (encoding) {
	case VNC_KEY: MUST(far->key_codes && !x && !y && !w && !h); return 12;
	case VNC_SIZE:
		MUST(far->can_resize && far->rectangles == 1 && w && h);
		far->width = w;
		far->height = h;
		return 12;
	case VNC_RAW:
	case VNC_ZRLE: break;
	default: MUST(!"an encoding");
	}
	MUST(w && h && w <= VNC_TILE && h <= VNC_TILE && x + w <= far->width && y + h <= far->height);
	MUST(far->zrle == (encoding == VNC_ZRLE));
	if (!far->zrle)
		return far->count < 12 + w * h * far->pixel_bytes ? 0 : 12 + w * h * far->pixel_bytes;
	const size_t packed = far->count < 16 ? 0 : load_be32(in + 12);
	MUST(packed + 16 <= WAITING_MAX);
	if (!packed || far->count < 16 + packed)
		return 0;
	far->stream.next_in = (uint8_t *)in + 16;
	far->stream.avail_in = (unsigned)packed;
	far->stream.next_out = bytes;
	far->stream.avail_out = sizeof(bytes);
	MUST(inflate(&far->stream, Z_SYNC_FLUSH) == Z_OK && !far->stream.avail_in);
	const size_t made = sizeof(bytes) - far->stream.avail_out;
	MUST(made >= 2 && bytes[0] <= 16 && made <= 1 + w * h * far->pixel_bytes + 16 * 4);
	return 16 + packed;
}

static size_t take_message(struct far *far)
{
	const uint8_t *in = far->waiting;

	if (!far->introduced) {
		if (far->count < INIT_BYTES)
			return 0;
		MUST(memcmp(in, "RFB 003.008\n\1\1\0\0\0\0", 18) == 0 && memcmp(in + INIT_BYTES - 4, "fuzz", 4) == 0);
		far->introduced = true;
		far->width = load_be16(in + 18);
		far->height = load_be16(in + 20);
		return INIT_BYTES;
	}
	if (far->rectangles) {
		const size_t bytes = take_rectangle(far);

		far->rectangles -= bytes != 0;
		far->updates += bytes && !far->rectangles;
		return bytes;
	}
	if (far->count < 4)
		return 0;
	MUST(in[0] == 0 && in[1] == 0 && far->settled);
	far->rectangles = load_be16(in + 2);
	MUST(far->rectangles && far->rectangles <= VNC_TILES_MAX + 1);
	return 4;
}

static void close_far(struct far *far)
{
	if (far->fd < 0)
		return;
	close(far->fd);
	inflateEnd(&far->stream);
	far->fd = -1;
}

static bool read_far(struct far *far, size_t most)
{
	size_t bytes;

	if (far->fd < 0)
		return false;
	if (!far->good)
		far->count = 0;
	const ssize_t got = read(far->fd, far->waiting + far->count, MIN(most, WAITING_MAX - far->count));
	if (got <= 0) {
		if (got == 0 || errno != EAGAIN)
			close_far(far); /* it was cut off */
		return false;
	}
	far->count += (size_t)got;
	while (far->good && (bytes = take_message(far))) {
		far->count -= bytes;
		memmove(far->waiting, far->waiting + bytes, far->count);
	}
	return true;
}

/* ---- what a client does ---- */

static void say(struct far *far, const void *bytes, size_t count)
{
	if (far->fd >= 0 && send(far->fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)count)
		far->good = false; /* cut off, or a message was cut */
}

static void open_far(struct target *t, struct far *far, bool good)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	close_far(far);
	memset(far, 0, sizeof(*far));
	far->good = good;
	far->pixel_bytes = 4;
	MUST(inflateInit(&far->stream) == Z_OK);
	far->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	MUST(far->fd >= 0);
	strcpy(address.sun_path, t->path);
	if (connect(far->fd, (struct sockaddr *)&address, sizeof(address)) < 0) { /* too many wait */
		close_far(far);
		return;
	}
	if (good)
		say(far, "RFB 003.008\n\1\1", 14);
}

static void ask(struct far *far, uint8_t how)
{
	const uint8_t bytes[10] = {3, how & 1};

	far->settled = true;
	say(far, bytes, sizeof(bytes));
}

static void choose(struct far *far, uint8_t how)
{
	static const uint8_t formats[][16] = {
		{32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0}, {32, 24, 1, 1, 0, 255, 0, 255, 0, 255, 24, 16, 8},
		{16, 16, 0, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0}, {8, 8, 0, 1, 0, 7, 0, 7, 0, 3, 5, 2, 0},
		{32, 30, 0, 1, 3, 255, 3, 255, 3, 255, 20, 10, 0}, {32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 31, 30, 0}};
	static const int32_t names[] = {VNC_ZRLE, VNC_SIZE, VNC_KEY, 7, VNC_RAW};
	uint8_t bytes[4 + 16] = {0}, list[4 + 4 * ARRAY_SIZE(names)] = {2};
	unsigned count = 0;

	if (far->settled)
		return;
	const uint8_t *format = formats[how % ARRAY_SIZE(formats)];
	memcpy(bytes + 4, format, 16);
	far->pixel_bytes = format[0] / 8;
	say(far, bytes, sizeof(bytes));
	far->zrle = how & 8;
	far->can_resize = how & 16;
	far->key_codes = how & 32;
	for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
		if (i > 2 || how >> (3 + i) & 1)
			store_be32(list + 4 + 4 * count++, (uint32_t)names[i]);
	store_be16(list + 2, (uint16_t)count);
	say(far, list, 4 + 4 * count);
}

static void use_hands(struct far *far, struct rig_input *in)
{
	uint8_t bytes[12] = {0};
	const uint8_t how = (uint8_t)rig_take(in, 1);

	if (how & 1) {
		bytes[0] = 5;
		rig_take_bytes(in, bytes + 1, 5);
		say(far, bytes, 6);
	} else if (how & 2) {
		bytes[0] = 4;
		bytes[1] = how >> 7;
		store_be32(bytes + 4, (uint32_t)rig_take(in, 1) | (how & 4 ? 0xff00 : 0));
		say(far, bytes, 8);
	} else {
		bytes[0] = 255;
		bytes[3] = how >> 7;
		store_be32(bytes + 8, (uint32_t)rig_take(in, how & 4 ? 2 : 1) | (how & 8 ? 0xe000 : 0));
		say(far, bytes, 12);
	}
}

static void paste(struct far *far, struct rig_input *in)
{
	static const uint8_t text[4096];
	uint8_t bytes[8] = {6};
	const uint32_t length = (uint32_t)rig_take(in, 2) % sizeof(text);

	store_be32(bytes + 4, length);
	say(far, bytes, sizeof(bytes));
	if (length)
		say(far, text, length);
}

/* Anything: from here on it may be given anything, too. */
static void babble(struct far *far, struct rig_input *in)
{
	uint8_t bytes[64];
	const size_t count = 1 + rig_take(in, 1) % sizeof(bytes);

	far->good = false;
	rig_take_bytes(in, bytes, count);
	say(far, bytes, count);
}

/* ---- one input ---- */

static void run(struct target *t)
{
	run_turns(t->loop, 3);
}

static void change(struct target *t, struct rig_input *in, uint8_t how)
{
	if (how & 1)
		t->seed = (uint32_t)rig_take(in, 3);
	if (how & 2) {
		t->width = 1 + (unsigned)rig_take(in, 1) % SIDE_MAX;
		t->height = 1 + (unsigned)rig_take(in, 1) % SIDE_MAX;
	}
	if ((how & 15) == 15)
		show(t, !t->shown);
}

static void one_op(struct target *t, struct rig_input *in)
{
	const uint8_t op = (uint8_t)rig_take(in, 1), how = (uint8_t)rig_take(in, 1);
	struct far *far = &t->far[op / 16 % CLIENTS];

	switch (op % 16) {
	case 0:
	case 1: open_far(t, far, op % 16); break;
	case 2:
	case 3: choose(far, how); break;
	case 4:
	case 5: ask(far, how); break;
	case 6: use_hands(far, in); break;
	case 7: paste(far, in); break;
	case 8: babble(far, in); break;
	case 9: change(t, in, how); break;
	case 10:
		if (how & 128)
			close_far(far);
		else if (far->fd >= 0 && how & 64)
			shutdown(far->fd, how & 1 ? SHUT_RD : SHUT_WR);
		else
			read_far(far, 1 + how);
		far->good &= !(how & 64);
		break;
	case 11:
	case 12: read_far(far, 256u * (how + 1)); break;
	default: run(t);
	}
}

/* A client that reads gets what it asks for, or is cut off, which only one is that does not know of sizes. */
static void finish(struct target *t, struct far *far)
{
	unsigned turns = 0;

	if (far->fd < 0 || !far->good)
		return;
	while (turns++ < 1000 && far->fd >= 0 && !far->introduced)
		run(t), read_far(far, WAITING_MAX);
	const unsigned updates = far->updates;
	ask(far, 0);
	for (turns = 0; turns < 2000 && far->fd >= 0 && far->updates == updates; turns++) {
		run(t);
		read_far(far, WAITING_MAX);
	}
	MUST(far->fd < 0 || far->updates > updates || !far->good);
}

static void set_up(struct target *t)
{
	log_level_set(LOG_LEVEL_ERROR);
	MUST(loop_create(&t->loop) == 0);
	snprintf(t->path, sizeof(t->path), "/tmp/lodge-fuzz-vnc-%d", (int)getpid());
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	static struct target t;
	char where[80];
	struct error err;

	if (!t.loop)
		set_up(&t);
	const int before = rig_lowest_fd();
	t.width = 70;
	t.height = 50;
	t.seed = 1;
	snprintf(where, sizeof(where), "unix:%s", t.path);
	MUST(vnc_open(&t.vnc, t.loop, where, "fuzz", NULL, &err) == 0);
	vnc_set_pace(t.vnc, 0, PATIENCE_NS);
	show(&t, true);
	for (unsigned i = 0; i < CLIENTS; i++)
		t.far[i].fd = -1;
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&t, &in);
	if (!t.shown)
		show(&t, true);
	for (unsigned i = 0; i < CLIENTS; i++)
		if (!t.far[i].good)
			close_far(&t.far[i]);
	run(&t);
	run(&t);
	for (unsigned i = 0; i < CLIENTS; i++)
		finish(&t, &t.far[i]);
	for (unsigned i = 0; i < CLIENTS; i++)
		close_far(&t.far[i]);
	vnc_close(t.vnc);
	MUST(!t.buttons);
	for (unsigned i = 0; i < 256; i++)
		MUST(!t.keys[i]);
	MUST(rig_lowest_fd() == before);
	return 0;
}
