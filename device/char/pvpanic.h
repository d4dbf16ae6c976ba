/*
 * pvpanic: a guest kernel says that it panicked (bit 0) or is about to load its crash kernel (bit 1).
 * One byte-wide port, as QEMU's documentation of the device (docs/specs/pvpanic) has it; ACPI announces
 * it as QEMU0001.
 */
#ifndef LODGE_DEVICE_CHAR_PVPANIC_H
#define LODGE_DEVICE_CHAR_PVPANIC_H

#include "device/bus.h"

#define PVPANIC_PORT	    0x505
#define PVPANIC_PANICKED    0x01
#define PVPANIC_CRASHLOADED 0x02

struct pvpanic {
	/* Called on the writing vCPU's thread, with no lock held; events: PVPANIC_*. */
	void (*event)(void *opaque, uint8_t events);
	void *opaque;
};

/* The struct is the caller's and outlives the bus. Errors: as bus_add(). */
int pvpanic_attach(struct pvpanic *device, struct bus *bus, uint16_t base);

#endif
