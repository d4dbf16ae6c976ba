/*
 * pvpanic: see pvpanic.h.
 */
#include "device/char/pvpanic.h"

#define SUPPORTED (PVPANIC_PANICKED | PVPANIC_CRASHLOADED)

static uint64_t pvpanic_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	return SUPPORTED;
}

static void pvpanic_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct pvpanic *device = opaque;
	uint8_t events = value & SUPPORTED;

	if (events)
		device->event(device->opaque, events);
}

int pvpanic_attach(struct pvpanic *device, struct bus *bus, uint16_t base)
{
	static const struct bus_ops ops = {.read = pvpanic_read, .write = pvpanic_write};

	return bus_add(bus, BUS_PIO, base, 1, "pvpanic", &ops, device, NULL);
}
