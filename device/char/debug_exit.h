/*
 * The debug exit port: a guest that writes v to it ends the machine with exit status v & 0xff. For
 * tests and scripted runs; the same idea as QEMU's isa-debug-exit, with the status unchanged.
 */
#ifndef LODGE_DEVICE_CHAR_DEBUG_EXIT_H
#define LODGE_DEVICE_CHAR_DEBUG_EXIT_H

#include "device/bus.h"

#define DEBUG_EXIT_PORT 0xf4

struct debug_exit {
	/* Called on the writing vCPU's thread, with no lock held. */
	void (*exit)(void *opaque, uint8_t status);
	void *opaque;
};

/* Registers four ports at base; reads give all ones. The struct is the caller's and outlives the bus.
 * Errors: as bus_add(). */
int debug_exit_attach(struct debug_exit *device, struct bus *bus, uint16_t base);

#endif
