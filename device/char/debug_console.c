/*
 * The debug port: see the header. Lines are written whole.
 */
#include "device/char/debug_console.h"

#include <unistd.h>

static uint64_t console_read(void *device, uint64_t offset, unsigned size_bytes)
{
	return 0xe9;
}

static void console_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct debug_console *console = device;

	console->line[console->used++] = (uint8_t)value;
	if ((uint8_t)value != '\n' && console->used < sizeof(console->line))
		return;
	(void)!write(console->fd, console->line, console->used);
	console->used = 0;
}

int debug_console_attach(struct debug_console *console, struct bus *bus)
{
	static const struct bus_ops ops = {.read = console_read, .write = console_write, .access_max_bytes = 1};

	return bus_add(bus, BUS_PIO, DEBUG_CONSOLE_PORT, 1, "debug-console", &ops, console, console->lock);
}
