/*
 * The keyboard controller with nothing plugged in: see i8042.h.
 */
#include "device/char/i8042.h"
#include "base/cleanup.h"
#include <errno.h>

enum status { STATUS_OUTPUT_FULL = 0x01, STATUS_SYSTEM = 0x04, STATUS_NO_LOCK = 0x10 };

enum command {
	CMD_READ_CONFIG = 0x20,
	CMD_WRITE_CONFIG = 0x60,
	CMD_DISABLE_AUX = 0xa7,
	CMD_ENABLE_AUX = 0xa8,
	CMD_TEST_AUX = 0xa9,
	CMD_SELF_TEST = 0xaa,
	CMD_TEST_KEYBOARD = 0xab,
	CMD_DISABLE_KEYBOARD = 0xad,
	CMD_ENABLE_KEYBOARD = 0xae,
	CMD_READ_OUTPUT_PORT = 0xd0,
	CMD_WRITE_OUTPUT_PORT = 0xd1,
	CMD_WRITE_KEYBOARD_OUTPUT = 0xd2,
	CMD_WRITE_AUX_OUTPUT = 0xd3,
	CMD_WRITE_AUX = 0xd4,
	CMD_PULSE_RESET = 0xfe,
};

#define CONFIG_KEYBOARD_OFF 0x10
#define CONFIG_AUX_OFF	    0x20
#define CLOCK_STUCK_LOW	    0x01
#define OUTPUT_PORT	    0x03 /* not resetting, A20 on */

static void answer(struct i8042 *device, uint8_t byte)
{
	device->s.output = byte;
	device->s.output_full = true;
}

static void command_write(struct i8042 *device, uint8_t command)
{
	struct i8042_state *s = &device->s;

	s->pending = 0;
	switch (command) {
	case CMD_READ_CONFIG: answer(device, s->command); break;
	case CMD_DISABLE_AUX: s->command |= CONFIG_AUX_OFF; break;
	case CMD_ENABLE_AUX: s->command &= (uint8_t)~CONFIG_AUX_OFF; break;
	case CMD_DISABLE_KEYBOARD: s->command |= CONFIG_KEYBOARD_OFF; break;
	case CMD_ENABLE_KEYBOARD: s->command &= (uint8_t)~CONFIG_KEYBOARD_OFF; break;
	case CMD_SELF_TEST: answer(device, 0x55); break;
	case CMD_TEST_AUX:
	case CMD_TEST_KEYBOARD: answer(device, CLOCK_STUCK_LOW); break;
	case CMD_READ_OUTPUT_PORT: answer(device, OUTPUT_PORT); break;
	case CMD_WRITE_CONFIG:
	case CMD_WRITE_OUTPUT_PORT:
	case CMD_WRITE_KEYBOARD_OUTPUT:
	case CMD_WRITE_AUX_OUTPUT:
	case CMD_WRITE_AUX: s->pending = command; break;
	case CMD_PULSE_RESET: device->reset(device->opaque); break;
	default: break;
	}
}

static void data_write(struct i8042 *device, uint8_t byte)
{
	uint8_t pending = device->s.pending;

	device->s.pending = 0;
	switch (pending) {
	case CMD_WRITE_CONFIG: device->s.command = byte; break;
	case CMD_WRITE_OUTPUT_PORT:
		if (!(byte & 1))
			device->reset(device->opaque);
		break;
	case CMD_WRITE_KEYBOARD_OUTPUT:
	case CMD_WRITE_AUX_OUTPUT: answer(device, byte); break;
	default: break; /* to a keyboard or mouse that is not there */
	}
}

static uint64_t data_port_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct i8042 *device = opaque;

	device->s.output_full = false;
	return device->s.output;
}

static void data_port_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	data_write(opaque, (uint8_t)value);
}

static uint64_t command_port_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct i8042 *device = opaque;

	return STATUS_NO_LOCK | STATUS_SYSTEM | (device->s.output_full ? STATUS_OUTPUT_FULL : 0);
}

static void command_port_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	command_write(opaque, (uint8_t)value);
}

int i8042_attach(struct i8042 *device, struct bus *bus)
{
	static const struct bus_ops data_ops = {.read = data_port_read, .write = data_port_write};
	static const struct bus_ops command_ops = {
		.read = command_port_read, .write = command_port_write};
	int status = bus_add(
		bus, BUS_PIO, I8042_DATA_PORT, 1, "i8042-data", &data_ops, device, device->lock);

	device->s = (struct i8042_state){.command = CONFIG_KEYBOARD_OFF | CONFIG_AUX_OFF};
	if (status < 0)
		return status;
	return bus_add(bus, BUS_PIO, I8042_COMMAND_PORT, 1, "i8042-command", &command_ops, device,
		device->lock);
}

void i8042_save(struct i8042 *device, struct i8042_state *ret_state)
{
	AUTO_LOCK(device->lock);
	*ret_state = device->s;
}

int i8042_load(struct i8042 *device, const struct i8042_state *state)
{
	AUTO_LOCK(device->lock);
	device->s = *state;
	return 0;
}
