/*
 * A 16550A serial port. See the header for what is left out.
 *
 * Invariant: the interrupt line follows from the state alone (uart_update); every handler that
 * changes state ends there.
 */
#include "device/char/uart16550.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

enum uart_register {
	UART_DATA, /* RBR, THR; divisor low with DLAB */
	UART_IER,  /* divisor high with DLAB */
	UART_IIR,  /* FCR when written */
	UART_LCR,
	UART_MCR,
	UART_LSR,
	UART_MSR,
	UART_SCRATCH,
};

#define IER_RECEIVE  0x01
#define IER_TRANSMIT 0x02
#define IER_LINE     0x04
#define IER_MODEM    0x08
#define IER_ALL	     0x0f

#define IIR_MODEM    0x00
#define IIR_NONE     0x01
#define IIR_TRANSMIT 0x02
#define IIR_RECEIVE  0x04
#define IIR_LINE     0x06
#define IIR_TIMEOUT  0x0c
#define IIR_FIFO_ON  0xc0

#define FCR_ENABLE	  0x01
#define FCR_CLEAR_RECEIVE 0x02
#define FCR_KEPT	  0xc9 /* trigger level, DMA mode, enable */

#define LCR_DLAB 0x80

#define MCR_DTR	 0x01
#define MCR_RTS	 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define MCR_ALL	 0x1f

#define LSR_DATA    0x01
#define LSR_OVERRUN 0x02
#define LSR_EMPTY   0x60 /* holding and shift register */

#define MSR_CTS	 0x10
#define MSR_DSR	 0x20
#define MSR_RI	 0x40
#define MSR_DCD	 0x80
#define MSR_TERI 0x04 /* trailing edge of the ring indicator */

struct uart {
	struct uart_config config;
	struct uart_state s;
	bool wants_room; /* the feeder was refused bytes and waits for room() */
};

int uart_create(const struct uart_config *config, struct uart **ret_uart)
{
	struct uart *uart = calloc(1, sizeof(*uart));

	if (!uart)
		return -ENOMEM;
	uart->config = *config;
	uart->s.divisor_low = 12; /* 9600 baud, as firmware leaves it */
	*ret_uart = uart;
	return 0;
}

void uart_free(struct uart *uart)
{
	free(uart);
}

static unsigned uart_trigger(const struct uart *uart)
{
	static const uint8_t level[4] = {1, 4, 8, 14};

	return uart->s.fcr & FCR_ENABLE ? level[uart->s.fcr >> 6] : 1;
}

/* The interrupt of highest priority, as the low nibble of IIR (data sheet table IV). */
static uint8_t uart_interrupt(const struct uart *uart)
{
	const struct uart_state *s = &uart->s;

	if ((s->ier & IER_LINE) && s->lsr_errors)
		return IIR_LINE;
	if ((s->ier & IER_RECEIVE) && s->fifo_count)
		return s->fifo_count >= uart_trigger(uart) ? IIR_RECEIVE : IIR_TIMEOUT;
	if ((s->ier & IER_TRANSMIT) && s->thr_pending)
		return IIR_TRANSMIT;
	if ((s->ier & IER_MODEM) && s->msr_delta)
		return IIR_MODEM;
	return IIR_NONE;
}

static void uart_update(struct uart *uart)
{
	/* On a PC the OUT2 pin gates the interrupt line. */
	bool level = (uart->s.mcr & MCR_OUT2) && uart_interrupt(uart) != IIR_NONE;

	irq_line_set(&uart->config.irq, level);
}

/* Whether a character from outside would be taken now. */
static bool uart_has_room(const struct uart *uart)
{
	const struct uart_state *s = &uart->s;

	if (s->mcr & MCR_LOOP)
		return false;
	/* OUT2 too: while a driver probes, it sets every bit of IER for a moment. */
	if (uart->config.hold_input && !((s->ier & IER_RECEIVE) && (s->mcr & MCR_OUT2)))
		return false;
	return s->fifo_count < (s->fcr & FCR_ENABLE ? UART_FIFO_SIZE : 1);
}

static void uart_tell_room(struct uart *uart)
{
	if (!uart->wants_room || !uart_has_room(uart))
		return;
	uart->wants_room = false;
	if (uart->config.room)
		uart->config.room(uart->config.opaque);
}

static void uart_push(struct uart *uart, uint8_t byte)
{
	struct uart_state *s = &uart->s;

	if (s->fifo_count == UART_FIFO_SIZE || (s->fifo_count && !(s->fcr & FCR_ENABLE)))
		s->lsr_errors |= LSR_OVERRUN;
	else
		s->fifo[s->fifo_count++] = byte;
}

static uint8_t uart_pop(struct uart *uart)
{
	struct uart_state *s = &uart->s;
	uint8_t byte = s->fifo[0];

	if (!s->fifo_count)
		return 0;
	s->fifo_count--;
	memmove(&s->fifo[0], &s->fifo[1], s->fifo_count);
	return byte;
}

/* The high nibble of MSR: what the modem says, or in loop-back our own outputs. */
static uint8_t uart_modem(const struct uart *uart)
{
	uint8_t mcr = uart->s.mcr;

	if (!(mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	return (mcr & MCR_RTS ? MSR_CTS : 0) | (mcr & MCR_DTR ? MSR_DSR : 0) |
	       (mcr & MCR_OUT1 ? MSR_RI : 0) | (mcr & MCR_OUT2 ? MSR_DCD : 0);
}

static uint64_t uart_read(void *device, uint64_t offset, unsigned size_bytes)
{
	struct uart *uart = device;
	struct uart_state *s = &uart->s;
	uint8_t value = 0;

	switch ((enum uart_register)offset) {
	case UART_DATA:
		if (s->lcr & LCR_DLAB)
			return s->divisor_low;
		value = uart_pop(uart);
		uart_tell_room(uart);
		break;
	case UART_IER: return s->lcr & LCR_DLAB ? s->divisor_high : s->ier;
	case UART_IIR:
		value = uart_interrupt(uart);
		/* Reading it acknowledges this one source. */
		if (value == IIR_TRANSMIT)
			s->thr_pending = false;
		value |= s->fcr & FCR_ENABLE ? IIR_FIFO_ON : 0;
		break;
	case UART_LCR: return s->lcr;
	case UART_MCR: return s->mcr;
	case UART_LSR:
		value = LSR_EMPTY | s->lsr_errors | (s->fifo_count ? LSR_DATA : 0);
		s->lsr_errors = 0;
		break;
	case UART_MSR:
		value = uart_modem(uart) | s->msr_delta;
		s->msr_delta = 0;
		break;
	case UART_SCRATCH: return s->scratch;
	}
	uart_update(uart);
	return value;
}

static void uart_transmit(struct uart *uart, uint8_t byte)
{
	if (uart->s.mcr & MCR_LOOP)
		uart_push(uart, byte);
	else if (uart->config.output)
		uart->config.output(uart->config.opaque, &byte, 1);
	uart->s.thr_pending = true;
}

static void uart_write_ier(struct uart *uart, uint8_t value)
{
	struct uart_state *s = &uart->s;

	/* Enabling the interrupt while the transmitter is empty raises it. */
	if ((value & IER_TRANSMIT) && !(s->ier & IER_TRANSMIT))
		s->thr_pending = true;
	s->ier = value & IER_ALL;
	uart_tell_room(uart);
}

static void uart_write_fcr(struct uart *uart, uint8_t value)
{
	struct uart_state *s = &uart->s;
	bool toggled = (value ^ s->fcr) & FCR_ENABLE;

	if ((toggled && !uart->config.hold_input) || (value & FCR_CLEAR_RECEIVE))
		s->fifo_count = 0;
	/* The other bits stick only together with the enable bit. */
	s->fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0;
	uart_tell_room(uart);
}

static void uart_write_mcr(struct uart *uart, uint8_t value)
{
	struct uart_state *s = &uart->s;
	uint8_t before = uart_modem(uart), changed;

	s->mcr = value & MCR_ALL;
	changed = before ^ uart_modem(uart);
	s->msr_delta |= (changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4;
	if ((changed & MSR_RI) && (before & MSR_RI))
		s->msr_delta |= MSR_TERI;
	uart_tell_room(uart);
}

static void uart_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct uart *uart = device;
	struct uart_state *s = &uart->s;
	uint8_t byte = (uint8_t)value;

	switch ((enum uart_register)offset) {
	case UART_DATA:
		if (s->lcr & LCR_DLAB)
			s->divisor_low = byte;
		else
			uart_transmit(uart, byte);
		break;
	case UART_IER:
		if (s->lcr & LCR_DLAB)
			s->divisor_high = byte;
		else
			uart_write_ier(uart, byte);
		break;
	case UART_IIR: uart_write_fcr(uart, byte); break;
	case UART_LCR: s->lcr = byte; break;
	case UART_MCR: uart_write_mcr(uart, byte); break;
	case UART_LSR:
	case UART_MSR: break; /* read-only, but for factory tests */
	case UART_SCRATCH: s->scratch = byte; break;
	}
	uart_update(uart);
}

static const struct bus_ops uart_ops = {
	.read = uart_read,
	.write = uart_write,
	.access_max_bytes = 1,
};

int uart_attach(struct uart *uart, struct bus *bus, uint16_t base)
{
	return bus_add(bus, BUS_PIO, base, UART_PORTS, "uart", &uart_ops, uart, uart->config.lock);
}

void uart_reset(struct uart *uart)
{
	AUTO_LOCK(uart->config.lock);

	uart->s = (struct uart_state){.divisor_low = 12};
	uart_tell_room(uart);
	uart_update(uart);
}

size_t uart_receive(struct uart *uart, const uint8_t *bytes, size_t count)
{
	size_t taken = 0;
	AUTO_LOCK(uart->config.lock);

	while (taken < count && uart_has_room(uart))
		uart_push(uart, bytes[taken++]);
	if (taken < count)
		uart->wants_room = true;
	uart_update(uart);
	return taken;
}

void uart_save(struct uart *uart, struct uart_state *ret_state)
{
	AUTO_LOCK(uart->config.lock);

	*ret_state = uart->s;
}

int uart_load(struct uart *uart, const struct uart_state *state)
{
	if (state->fifo_count > UART_FIFO_SIZE || (state->ier & ~IER_ALL) ||
		(state->mcr & ~MCR_ALL) || (state->fcr & ~FCR_KEPT) ||
		(state->lsr_errors & ~LSR_OVERRUN) || (state->msr_delta & ~0x0f))
		return -EINVAL;
	AUTO_LOCK(uart->config.lock);
	uart->s = *state;
	uart_update(uart);
	return 0;
}
