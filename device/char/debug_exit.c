/*
 * The debug exit port: see debug_exit.h.
 */
#include "device/char/debug_exit.h"

static uint64_t exit_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	return UINT64_MAX;
}

static void exit_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct debug_exit *device = opaque;

	if (offset == 0)
		device->exit(device->opaque, (uint8_t)value);
}

int debug_exit_attach(struct debug_exit *device, struct bus *bus, uint16_t base)
{
	static const struct bus_ops ops = {.read = exit_read, .write = exit_write};

	return bus_add(bus, BUS_PIO, base, 4, "debug-exit", &ops, device, NULL);
}
