/*
 * The keyboard controller (8042) at ports 0x60 and 0x64, interrupts 1 and 12, with a keyboard and a mouse or with nothing
 * plugged in; the pulse of output line 0 (command 0xfe), which resets the processor, is passed on. IBM PC/AT Technical
 * Reference, "Keyboard Controller"; PS/2 Technical Reference for the second port.
 *
 * Left out: A20 (always on), passwords, the input port. Without devices their interfaces answer a test with "clock
 * stuck low", the line of an empty socket.
 *
 * Invariant: output_full says that `output` waits for the guest; what the devices have to say waits in their queues until
 * it was read.
 */
#ifndef LODGE_DEVICE_CHAR_I8042_H
#define LODGE_DEVICE_CHAR_I8042_H

#include "base/util.h"
#include "device/bus.h"
#include "device/char/ps2.h"
#include "device/irq_line.h"

#define I8042_DATA_PORT	   0x60
#define I8042_COMMAND_PORT 0x64

struct i8042_state {
	uint8_t command; /* the command byte ("configuration") */
	uint8_t pending; /* command that waits for its data byte; 0 = none */
	uint8_t output;
	/* 0 or 1: */
	uint8_t output_full, output_aux; /* aux: it is the mouse's */
	uint8_t breaking;		 /* an F0 of set 2 came and is held back for the translation of the next byte */
};

struct i8042 {
	pthread_mutex_t *lock;
	/* Called on the writing vCPU's thread, with the lock held: only note it. */
	void (*reset)(void *opaque);
	void *opaque;
	struct irq_line irq[2]; /* keyboard, mouse */
	bool plugged;		/* there are a keyboard and a mouse */
	struct i8042_state s;
	struct ps2_keyboard keyboard;
	struct ps2_mouse mouse;
};

/* Registers ports 0x60 and 0x64. Fill in what stands above `s` first. The struct is the caller's and outlives the bus.
 * Errors: as bus_add(). */
int i8042_attach(struct i8042 *device, struct bus *bus);
/* The user's hands; any thread. No effect with nothing plugged in. Arguments as in ps2.h. */
void i8042_key(struct i8042 *device, uint8_t code, bool down);
void i8042_move(struct i8042 *device, int dx, int dy, int dz, uint8_t buttons);
void i8042_save(struct i8042 *device, struct i8042_state *ret_state);
/* Errors: -EINVAL, and nothing was changed. */
MUST_CHECK int i8042_load(struct i8042 *device, const struct i8042_state *state);

#endif
