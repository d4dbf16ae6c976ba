/*
 * The keyboard controller: see i8042.h.
 */
#include "device/char/i8042.h"
#include "base/cleanup.h"
#include <errno.h>

enum status {
	STATUS_OUTPUT_FULL = 0x01,
	STATUS_SYSTEM = 0x04,
	STATUS_NO_LOCK = 0x10,
	STATUS_AUX = 0x20
};

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

#define CONFIG_KEYBOARD_IRQ 0x01
#define CONFIG_AUX_IRQ	    0x02
#define CONFIG_KEYBOARD_OFF 0x10
#define CONFIG_AUX_OFF	    0x20
#define CONFIG_TRANSLATE    0x40
#define CLOCK_STUCK_LOW	    0x01
#define OUTPUT_PORT	    0x03 /* not resetting, A20 on */
#define BREAK		    0xf0 /* of set 2 */

/* ---- what the guest reads ---- */

static void update_lines(struct i8042 *device)
{
	const struct i8042_state *s = &device->s;
	const bool aux = s->output_full && s->output_aux, keyboard = s->output_full && !s->output_aux;

	irq_line_set(&device->irq[0], keyboard && (s->command & CONFIG_KEYBOARD_IRQ));
	irq_line_set(&device->irq[1], aux && (s->command & CONFIG_AUX_IRQ));
}

static void answer_from(struct i8042 *device, uint8_t byte, bool aux)
{
	device->s.output = byte;
	device->s.output_full = true;
	device->s.output_aux = aux;
	update_lines(device);
}

static void answer(struct i8042 *device, uint8_t byte)
{
	answer_from(device, byte, false);
}

/* The keyboard's next byte as the guest is to see it. */
static bool keyboard_byte(struct i8042 *device, uint8_t *ret_byte)
{
	struct i8042_state *s = &device->s;

	while (ps2_take(&device->keyboard.queue, ret_byte)) {
		if (!(s->command & CONFIG_TRANSLATE))
			return true;
		if (*ret_byte == BREAK) {
			s->breaking = true;
			continue;
		}
		*ret_byte = ps2_translate(*ret_byte) | (s->breaking ? 0x80 : 0);
		s->breaking = false;
		return true;
	}
	return false;
}

/* Move the next byte of a device to where the guest reads it, if that is free. */
static void refill(struct i8042 *device)
{
	struct i8042_state *s = &device->s;
	uint8_t byte;

	if (!device->plugged || s->output_full)
		return;
	if (!(s->command & CONFIG_KEYBOARD_OFF) && keyboard_byte(device, &byte))
		answer_from(device, byte, false);
	else if (!(s->command & CONFIG_AUX_OFF) && ps2_take(&device->mouse.queue, &byte))
		answer_from(device, byte, true);
}

/* ---- what the guest writes ---- */

static void set_config(struct i8042 *device, uint8_t config)
{
	device->s.command = config;
	update_lines(device);
}

static void command_write(struct i8042 *device, uint8_t command)
{
	struct i8042_state *s = &device->s;
	const uint8_t test = device->plugged ? 0 : CLOCK_STUCK_LOW;

	s->pending = 0;
	switch (command) {
	case CMD_READ_CONFIG: answer(device, s->command); break;
	case CMD_DISABLE_AUX: set_config(device, s->command | CONFIG_AUX_OFF); break;
	case CMD_ENABLE_AUX: set_config(device, s->command & (uint8_t)~CONFIG_AUX_OFF); break;
	case CMD_DISABLE_KEYBOARD: set_config(device, s->command | CONFIG_KEYBOARD_OFF); break;
	case CMD_ENABLE_KEYBOARD: set_config(device, s->command & (uint8_t)~CONFIG_KEYBOARD_OFF); break;
	case CMD_SELF_TEST: answer(device, 0x55); break;
	case CMD_TEST_AUX:
	case CMD_TEST_KEYBOARD: answer(device, test); break;
	case CMD_READ_OUTPUT_PORT: answer(device, OUTPUT_PORT); break;
	case CMD_WRITE_CONFIG:
	case CMD_WRITE_OUTPUT_PORT:
	case CMD_WRITE_KEYBOARD_OUTPUT:
	case CMD_WRITE_AUX_OUTPUT:
	case CMD_WRITE_AUX: s->pending = command; break;
	case CMD_PULSE_RESET: device->reset(device->opaque); break;
	default: break;
	}
	refill(device);
}

static void to_keyboard(struct i8042 *device, uint8_t byte)
{
	if (!device->plugged)
		return;
	device->s.command &= (uint8_t)~CONFIG_KEYBOARD_OFF;
	ps2_keyboard_write(&device->keyboard, byte);
}

static void data_write(struct i8042 *device, uint8_t byte)
{
	uint8_t pending = device->s.pending;

	device->s.pending = 0;
	switch (pending) {
	case CMD_WRITE_CONFIG: set_config(device, byte); break;
	case CMD_WRITE_OUTPUT_PORT:
		if (!(byte & 1))
			device->reset(device->opaque);
		break;
	case CMD_WRITE_KEYBOARD_OUTPUT: answer(device, byte); break;
	case CMD_WRITE_AUX_OUTPUT: answer_from(device, byte, device->plugged); break;
	case CMD_WRITE_AUX:
		if (device->plugged)
			ps2_mouse_write(&device->mouse, byte);
		break;
	default: to_keyboard(device, byte); break;
	}
	refill(device);
}

static uint64_t data_port_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct i8042 *device = opaque;
	const uint8_t byte = device->s.output;

	device->s.output_full = false;
	update_lines(device);
	refill(device);
	return byte;
}

static void data_port_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	data_write(opaque, (uint8_t)value);
}

static uint64_t command_port_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct i8042 *device = opaque;
	const struct i8042_state *s = &device->s;

	return STATUS_NO_LOCK | STATUS_SYSTEM | (s->output_full ? STATUS_OUTPUT_FULL : 0) |
	       (s->output_full && s->output_aux ? STATUS_AUX : 0);
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
	ps2_keyboard_reset(&device->keyboard);
	ps2_mouse_reset(&device->mouse);
	if (status < 0)
		return status;
	return bus_add(bus, BUS_PIO, I8042_COMMAND_PORT, 1, "i8042-command", &command_ops, device,
		device->lock);
}

void i8042_key(struct i8042 *device, uint8_t code, bool down)
{
	AUTO_LOCK(device->lock);
	ps2_keyboard_key(&device->keyboard, code, down);
	refill(device);
}

void i8042_move(struct i8042 *device, int dx, int dy, int dz, uint8_t buttons)
{
	AUTO_LOCK(device->lock);
	ps2_mouse_move(&device->mouse, dx, dy, dz, buttons);
	refill(device);
}

void i8042_save(struct i8042 *device, struct i8042_state *ret_state)
{
	AUTO_LOCK(device->lock);
	*ret_state = device->s;
}

int i8042_load(struct i8042 *device, const struct i8042_state *state)
{
	if (state->output_full > 1 || state->output_aux > 1 || state->breaking > 1)
		return -EINVAL;
	AUTO_LOCK(device->lock);
	device->s = *state;
	update_lines(device);
	return 0;
}
