/*
 * The debug port of firmware (0x402, as QEMU's isa-debugcon): each byte written goes to a file descriptor; reading gives
 * 0xe9, by which SeaBIOS and debug builds of OVMF know that somebody listens.
 */
#ifndef LODGE_DEVICE_CHAR_DEBUG_CONSOLE_H
#define LODGE_DEVICE_CHAR_DEBUG_CONSOLE_H

#include "device/bus.h"

#define DEBUG_CONSOLE_PORT 0x402

struct debug_console {
	pthread_mutex_t *lock;
	int fd; /* the caller's; what it does not take at once is lost */
	uint8_t line[256];
	unsigned used;
};

/* Fill in lock and fd first. The struct outlives the bus. Errors: as bus_add(). */
int debug_console_attach(struct debug_console *console, struct bus *bus);

#endif
