/*
 * A 16550A serial port: eight byte-wide registers (National Semiconductor PC16550D data sheet,
 * section 8), as a PC has it at 0x3f8 with interrupt 4.
 *
 * Characters leave at once, whatever the divisor says, so the transmitter is always empty. Received
 * characters come in bursts with a pause after them: a FIFO below its trigger level therefore shows
 * the time-out indication at once. Left out: parity, framing and break on the receive side.
 */
#ifndef LODGE_DEVICE_CHAR_UART16550_H
#define LODGE_DEVICE_CHAR_UART16550_H

#include "base/util.h"
#include "device/bus.h"
#include "device/irq_line.h"

#define UART_PORTS     8
#define UART_FIFO_SIZE 16

struct uart;

struct uart_config {
	struct irq_line irq;
	pthread_mutex_t *lock; /* the device's lock; may be shared with other devices */
	/* What the guest sends. Called with the lock held; must not call back. */
	void (*output)(void *opaque, const uint8_t *bytes, size_t count);
	/* uart_receive() took less than it was given and would now take more. Called with the lock
	 * held; must not call back, only wake whoever feeds the port. May be NULL. */
	void (*room)(void *opaque);
	void *opaque;
	/* Take no input until the guest enables the receive interrupt and OUT2, and drop none when
	 * the FIFOs go on or off (as a real one does; Linux does that with interrupts enabled). A
	 * driver clears the FIFO when it opens the port; what was typed or piped in before is then
	 * kept, not lost. Not for guests that poll, such as boot loaders. */
	bool hold_input;
};

struct uart_state {
	uint8_t ier, fcr, lcr, mcr, scratch;
	uint8_t divisor_low, divisor_high;
	uint8_t lsr_errors; /* the sticky error bits of LSR */
	uint8_t msr_delta;  /* the low four bits of MSR */
	bool thr_pending;   /* transmitter-empty interrupt not yet acknowledged */
	uint8_t fifo_count;
	uint8_t fifo[UART_FIFO_SIZE]; /* oldest first */
};

/* Errors: -ENOMEM. The port is off the bus until attached. */
int uart_create(const struct uart_config *config, struct uart **ret_uart);
void uart_free(struct uart *uart);
/* Registers UART_PORTS ports at base. Errors: as bus_add(). */
int uart_attach(struct uart *uart, struct bus *bus, uint16_t base);
void uart_reset(struct uart *uart);

/* Offers input; returns how many bytes were taken, 0..count. The rest is the caller's to keep until
 * room() is called. Any thread; takes the lock. */
size_t uart_receive(struct uart *uart, const uint8_t *bytes, size_t count);

void uart_save(struct uart *uart, struct uart_state *ret_state);
/* Errors: -EINVAL, and nothing was changed. */
MUST_CHECK int uart_load(struct uart *uart, const struct uart_state *state);

#endif
