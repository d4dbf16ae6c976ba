/*
 * PS/2 keyboard and mouse: see the header.
 */
#include "device/char/ps2.h"

#include <string.h>

#include "base/util.h"

#define ACK    0xfa
#define RESEND 0xfe
#define OK     0xaa /* the self-test passed */

/* By code of set 1: the code of set 2, 0 for none. */
static const uint8_t set2[128] = {
	[0x01] = 0x76, [0x02] = 0x16, [0x03] = 0x1e, [0x04] = 0x26, [0x05] = 0x25, [0x06] = 0x2e,
	[0x07] = 0x36, [0x08] = 0x3d, [0x09] = 0x3e, [0x0a] = 0x46, [0x0b] = 0x45, [0x0c] = 0x4e,
	[0x0d] = 0x55, [0x0e] = 0x66, [0x0f] = 0x0d, [0x10] = 0x15, [0x11] = 0x1d, [0x12] = 0x24,
	[0x13] = 0x2d, [0x14] = 0x2c, [0x15] = 0x35, [0x16] = 0x3c, [0x17] = 0x43, [0x18] = 0x44,
	[0x19] = 0x4d, [0x1a] = 0x54, [0x1b] = 0x5b, [0x1c] = 0x5a, [0x1d] = 0x14, [0x1e] = 0x1c,
	[0x1f] = 0x1b, [0x20] = 0x23, [0x21] = 0x2b, [0x22] = 0x34, [0x23] = 0x33, [0x24] = 0x3b,
	[0x25] = 0x42, [0x26] = 0x4b, [0x27] = 0x4c, [0x28] = 0x52, [0x29] = 0x0e, [0x2a] = 0x12,
	[0x2b] = 0x5d, [0x2c] = 0x1a, [0x2d] = 0x22, [0x2e] = 0x21, [0x2f] = 0x2a, [0x30] = 0x32,
	[0x31] = 0x31, [0x32] = 0x3a, [0x33] = 0x41, [0x34] = 0x49, [0x35] = 0x4a, [0x36] = 0x59,
	[0x37] = 0x7c, [0x38] = 0x11, [0x39] = 0x29, [0x3a] = 0x58, [0x3b] = 0x05, [0x3c] = 0x06,
	[0x3d] = 0x04, [0x3e] = 0x0c, [0x3f] = 0x03, [0x40] = 0x0b, [0x41] = 0x83, [0x42] = 0x0a,
	[0x43] = 0x01, [0x44] = 0x09, [0x45] = 0x77, [0x46] = 0x7e, [0x47] = 0x6c, [0x48] = 0x75,
	[0x49] = 0x7d, [0x4a] = 0x7b, [0x4b] = 0x6b, [0x4c] = 0x73, [0x4d] = 0x74, [0x4e] = 0x79,
	[0x4f] = 0x69, [0x50] = 0x72, [0x51] = 0x7a, [0x52] = 0x70, [0x53] = 0x71, [0x54] = 0x7f,
	[0x56] = 0x61, [0x57] = 0x78, [0x58] = 0x07, [0x5b] = 0x1f, [0x5c] = 0x27, [0x5d] = 0x2f,
};

/* ---- the queue ---- */

static bool put(struct ps2_queue *queue, const uint8_t *bytes, unsigned count)
{
	if (count > (unsigned)PS2_QUEUE_BYTES - queue->count)
		return false;
	for (unsigned i = 0; i < count; i++)
		queue->bytes[(queue->first + queue->count++) % PS2_QUEUE_BYTES] = bytes[i];
	return true;
}

static void put_byte(struct ps2_queue *queue, uint8_t byte)
{
	put(queue, &byte, 1);
}

bool ps2_take(struct ps2_queue *queue, uint8_t *ret_byte)
{
	if (!queue->count)
		return false;
	*ret_byte = queue->bytes[queue->first];
	queue->first = (uint8_t)((queue->first + 1) % PS2_QUEUE_BYTES);
	queue->count--;
	return true;
}

uint8_t ps2_translate(uint8_t byte)
{
	for (unsigned i = 0; byte && i < ARRAY_SIZE(set2); i++)
		if (set2[i] == byte)
			return (uint8_t)i;
	return byte;
}

/* ---- the keyboard ---- */

enum keyboard_command {
	KEYBOARD_LEDS = 0xed,
	KEYBOARD_ECHO = 0xee,
	KEYBOARD_SET = 0xf0,
	KEYBOARD_ID = 0xf2,
	KEYBOARD_TYPEMATIC = 0xf3,
	KEYBOARD_ENABLE = 0xf4,
	KEYBOARD_DISABLE = 0xf5,
	KEYBOARD_DEFAULT = 0xf6,
	KEYBOARD_RESET = 0xff,
};

void ps2_keyboard_reset(struct ps2_keyboard *keyboard)
{
	*keyboard = (struct ps2_keyboard){.enabled = true};
}

static void keyboard_argument(struct ps2_keyboard *keyboard, uint8_t command, uint8_t byte)
{
	put_byte(&keyboard->queue, ACK);
	if (command == KEYBOARD_SET && byte == 0)
		put_byte(&keyboard->queue, 2); /* which set it is */
}

void ps2_keyboard_write(struct ps2_keyboard *keyboard, uint8_t byte)
{
	static const uint8_t id[] = {ACK, 0xab, 0x83}, ready[] = {ACK, OK};
	struct ps2_queue *queue = &keyboard->queue;
	const uint8_t pending = keyboard->pending;

	keyboard->pending = 0;
	if (pending && byte < KEYBOARD_LEDS) {
		keyboard_argument(keyboard, pending, byte);
		return;
	}
	switch (byte) {
	case KEYBOARD_LEDS:
	case KEYBOARD_SET:
	case KEYBOARD_TYPEMATIC:
		keyboard->pending = byte;
		put_byte(queue, ACK);
		break;
	case KEYBOARD_ECHO: put_byte(queue, KEYBOARD_ECHO); break;
	case KEYBOARD_ID: put(queue, id, sizeof(id)); break;
	case KEYBOARD_ENABLE:
	case KEYBOARD_DISABLE:
		queue->count = 0;
		keyboard->enabled = byte == KEYBOARD_ENABLE;
		put_byte(queue, ACK);
		break;
	case KEYBOARD_DEFAULT:
	case KEYBOARD_RESET:
		ps2_keyboard_reset(keyboard);
		put(queue, ready, byte == KEYBOARD_RESET ? 2 : 1);
		break;
	default: put_byte(queue, byte >= KEYBOARD_LEDS ? ACK : RESEND); break;
	}
}

/* Pause is a sequence of its own, which comes when it goes down. */
static bool put_pause(struct ps2_keyboard *keyboard, bool down)
{
	static const uint8_t pause[] = {0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77};

	return !down || put(&keyboard->queue, pause, sizeof(pause));
}

void ps2_keyboard_key(struct ps2_keyboard *keyboard, uint8_t code, bool down)
{
	uint8_t bytes[3];
	unsigned count = 0;

	if (!keyboard->enabled || !set2[code & 0x7f])
		return;
	if (code == (PS2_EXTENDED | 0x46)) {
		put_pause(keyboard, down);
		return;
	}
	if (code & PS2_EXTENDED)
		bytes[count++] = 0xe0;
	if (!down)
		bytes[count++] = 0xf0;
	bytes[count++] = set2[code & 0x7f];
	put(&keyboard->queue, bytes, count);
}

/* ---- the mouse ---- */

enum mouse_command {
	MOUSE_SCALE_1 = 0xe6,
	MOUSE_SCALE_2 = 0xe7,
	MOUSE_RESOLUTION = 0xe8,
	MOUSE_STATUS = 0xe9,
	MOUSE_STREAM = 0xea,
	MOUSE_READ = 0xeb,
	MOUSE_WRAP_OFF = 0xec,
	MOUSE_WRAP = 0xee,
	MOUSE_REMOTE = 0xf0,
	MOUSE_ID = 0xf2,
	MOUSE_RATE = 0xf3,
	MOUSE_ENABLE = 0xf4,
	MOUSE_DISABLE = 0xf5,
	MOUSE_DEFAULT = 0xf6,
	MOUSE_RESET = 0xff,
};

void ps2_mouse_reset(struct ps2_mouse *mouse)
{
	*mouse = (struct ps2_mouse){.rate = 100, .resolution = 2, .buttons = mouse->buttons};
}

static int limit(int value, int least, int most)
{
	return value < least ? least : value > most ? most : value;
}

/* One report of what has not been reported: Y counts up there. */
static void report(struct ps2_mouse *mouse)
{
	const int dx = limit(mouse->dx, -255, 255), dy = limit(-mouse->dy, -255, 255);
	const int dz = limit(mouse->dz, -8, 7);
	const uint8_t bytes[4] = {
		(uint8_t)(8 | (mouse->buttons & 7) | (dx < 0) << 4 | (dy < 0) << 5),
		(uint8_t)dx, (uint8_t)dy, (uint8_t)dz};

	if (!put(&mouse->queue, bytes, mouse->wheel ? 4 : 3))
		return;
	mouse->dx -= dx;
	mouse->dy += dy;
	mouse->dz = mouse->wheel ? mouse->dz - dz : 0;
	mouse->reported_buttons = mouse->buttons;
}

void ps2_mouse_move(struct ps2_mouse *mouse, int dx, int dy, int dz, uint8_t buttons)
{
	mouse->dx = limit(mouse->dx + limit(dx, -4096, 4096), -4096, 4096);
	mouse->dy = limit(mouse->dy + limit(dy, -4096, 4096), -4096, 4096);
	mouse->dz = limit(mouse->dz + limit(dz, -64, 64), -64, 64);
	mouse->buttons = buttons;
	if (!mouse->enabled || mouse->remote || mouse->wrap)
		return;
	/* What a slow reader has not taken grows into the next report. */
	while ((mouse->dx || mouse->dy || (mouse->dz && mouse->wheel) ||
		       mouse->buttons != mouse->reported_buttons) &&
		mouse->queue.count <= PS2_QUEUE_BYTES / 2)
		report(mouse);
}

static void set_rate(struct ps2_mouse *mouse, uint8_t rate)
{
	static const uint8_t knock[3] = {200, 100, 80};

	mouse->rate = rate;
	mouse->rates[0] = mouse->rates[1];
	mouse->rates[1] = mouse->rates[2];
	mouse->rates[2] = rate;
	if (memcmp(mouse->rates, knock, sizeof(knock)) == 0)
		mouse->wheel = true;
}

static void mouse_status(struct ps2_mouse *mouse)
{
	const uint8_t b = mouse->buttons;
	const uint8_t bytes[] = {ACK,
		(uint8_t)((b & 1) << 2 | (b >> 1 & 1) | (b >> 2 & 1) << 1 | mouse->double_scale << 4 |
			  mouse->enabled << 5 | mouse->remote << 6),
		mouse->resolution, mouse->rate};

	put(&mouse->queue, bytes, sizeof(bytes));
}

static void mouse_argument(struct ps2_mouse *mouse, uint8_t command, uint8_t byte)
{
	if (command == MOUSE_RATE)
		set_rate(mouse, byte);
	else
		mouse->resolution = byte & 3;
	put_byte(&mouse->queue, ACK);
}

static void mouse_command(struct ps2_mouse *mouse, uint8_t byte)
{
	const uint8_t ready[] = {ACK, OK, 0};
	struct ps2_queue *queue = &mouse->queue;

	switch (byte) {
	case MOUSE_RESET:
		ps2_mouse_reset(mouse);
		put(queue, ready, sizeof(ready));
		return;
	case MOUSE_DEFAULT: ps2_mouse_reset(mouse); break;
	case MOUSE_STATUS: mouse_status(mouse); return;
	case MOUSE_ID:
		put_byte(queue, ACK);
		put_byte(queue, mouse->wheel ? 3 : 0);
		return;
	case MOUSE_READ:
		put_byte(queue, ACK);
		report(mouse);
		return;
	case MOUSE_RATE:
	case MOUSE_RESOLUTION: mouse->pending = byte; break;
	case MOUSE_SCALE_1:
	case MOUSE_SCALE_2: mouse->double_scale = byte == MOUSE_SCALE_2; break;
	case MOUSE_STREAM:
	case MOUSE_REMOTE: mouse->remote = byte == MOUSE_REMOTE; break;
	case MOUSE_WRAP: mouse->wrap = true; break;
	case MOUSE_ENABLE:
	case MOUSE_DISABLE: mouse->enabled = byte == MOUSE_ENABLE; break;
	case MOUSE_WRAP_OFF: break;
	default: put_byte(queue, RESEND); return;
	}
	put_byte(queue, ACK);
}

void ps2_mouse_write(struct ps2_mouse *mouse, uint8_t byte)
{
	const uint8_t pending = mouse->pending;

	mouse->pending = 0;
	mouse->queue.count = 0; /* a command makes it forget what it was to send */
	if (mouse->wrap && byte != MOUSE_RESET && byte != MOUSE_WRAP_OFF) {
		put_byte(&mouse->queue, byte);
		return;
	}
	mouse->wrap = false;
	if (pending)
		mouse_argument(mouse, pending, byte);
	else
		mouse_command(mouse, byte);
}
