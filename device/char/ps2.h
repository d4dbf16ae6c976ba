/*
 * A PS/2 keyboard (101 keys) and a mouse with a wheel, as the keyboard controller (i8042.h) sees them: bytes to a device
 * and bytes from it (IBM PS/2 Technical Reference, "Keyboard" and "Mouse"; the wheel: Microsoft's IntelliMouse).
 *
 * Keys are named by their codes of set 1, extended ones (E0) with PS2_EXTENDED; the keyboard sends set 2, which the
 * controller translates back if the guest wants that, as on a PC. Left out: sets 1 and 3 as the keyboard's own,
 * typematic repeat (the host's keyboard repeats), the LEDs.
 *
 * Threads: the controller's lock is held in all calls.
 */
#ifndef LODGE_DEVICE_CHAR_PS2_H
#define LODGE_DEVICE_CHAR_PS2_H

#include <stdbool.h>
#include <stdint.h>

#define PS2_EXTENDED	0x80u /* in a key code, whose low seven bits are set 1's */
#define PS2_QUEUE_BYTES 64

struct ps2_queue {
	uint8_t bytes[PS2_QUEUE_BYTES];
	uint8_t first, count;
};

struct ps2_keyboard {
	struct ps2_queue queue;
	uint8_t pending; /* command that waits for its argument; 0: none */
	bool enabled;
};

struct ps2_mouse {
	struct ps2_queue queue;
	uint8_t pending;
	bool enabled, remote, wrap, double_scale;
	uint8_t rate, resolution;
	uint8_t rates[3]; /* the last three, oldest first: 200 100 80 turns the wheel on */
	bool wheel;
	int dx, dy, dz; /* not yet reported */
	uint8_t buttons, reported_buttons;
};

void ps2_keyboard_reset(struct ps2_keyboard *keyboard);
void ps2_keyboard_write(struct ps2_keyboard *keyboard, uint8_t byte);
/* A key went down or up. Dropped if the keyboard is disabled or the guest does not read. */
void ps2_keyboard_key(struct ps2_keyboard *keyboard, uint8_t code, bool down);

void ps2_mouse_reset(struct ps2_mouse *mouse);
void ps2_mouse_write(struct ps2_mouse *mouse, uint8_t byte);
/* It moved: right, down, and the wheel towards the user are positive; bit 0 left, 1 right, 2 middle button. */
void ps2_mouse_move(struct ps2_mouse *mouse, int dx, int dy, int dz, uint8_t buttons);

/* The next byte from the device; false: none. */
bool ps2_take(struct ps2_queue *queue, uint8_t *ret_byte);
/* A byte of set 2 as set 1 (what the controller translates with); F0 and E0 are the controller's business. */
uint8_t ps2_translate(uint8_t byte);

#endif
