/*
 * The keyboard controller (8042) with nothing plugged in: commands that software uses to probe it are
 * answered, and the pulse of output line 0 (command 0xfe), which resets the processor, is passed on.
 * IBM PC/AT Technical Reference, "Keyboard Controller".
 *
 * Left out: a keyboard and a mouse (their interfaces answer a test with "clock stuck low", the line of
 * an empty socket), A20 (always on).
 */
#ifndef LODGE_DEVICE_CHAR_I8042_H
#define LODGE_DEVICE_CHAR_I8042_H

#include "base/util.h"
#include "device/bus.h"

#define I8042_DATA_PORT	   0x60
#define I8042_COMMAND_PORT 0x64

struct i8042_state {
	uint8_t command; /* the command byte ("configuration") */
	uint8_t pending; /* command that waits for its data byte; 0 = none */
	uint8_t output;
	bool output_full;
};

struct i8042 {
	pthread_mutex_t *lock;
	/* Called on the writing vCPU's thread, with the lock held: only note it. */
	void (*reset)(void *opaque);
	void *opaque;
	struct i8042_state s;
};

/* Registers ports 0x60 and 0x64. Fill in lock, reset and opaque first. The struct is the caller's and
 * outlives the bus. Errors: as bus_add(). */
int i8042_attach(struct i8042 *device, struct bus *bus);
void i8042_save(struct i8042 *device, struct i8042_state *ret_state);
/* Errors: -EINVAL, and nothing was changed. */
MUST_CHECK int i8042_load(struct i8042 *device, const struct i8042_state *state);

#endif
