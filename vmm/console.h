/*
 * The console of the machine in this process: its first serial port, or a virtio console, on stdin and stdout.
 *
 * Two threads. One feeds the guest from the terminal, no faster than the guest takes it; what is typed
 * between two lives of the machine waits for the next. One writes the guest's output, so that a vCPU
 * never sits in a write that nobody reads; it waits when CONSOLE_BUFFER bytes are on their way.
 *
 * Lock order: a device's lock, then the console's. The machine is never called with the console's held.
 */
#ifndef LODGE_VMM_CONSOLE_H
#define LODGE_VMM_CONSOLE_H

#include "base/util.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONSOLE_BUFFER KIB(64)

struct console;
struct error;
struct machine;
struct stream;

/* Takes over the terminal. virtio: what is typed goes to whoever attaches to the stream, not to the serial port. quit: the user asks for the end; on a thread of the console. Errors: with a
 * line for people. */
MUST_CHECK int console_open(
	struct console **ret_console, bool virtio, void (*quit)(void *opaque), void *opaque,
	struct error *err);
/* Write all that was printed (unless abandoned) and give the terminal back. Detached. */
void console_close(struct console *console);

/* From now on input goes to this machine. */
void console_attach(struct console *console, struct machine *machine);
/* Returns when the console is out of the machine, which may then be freed. */
void console_detach(struct console *console);

/* machine_config's callbacks; opaque is the console. */
void console_output(void *opaque, const uint8_t *bytes, size_t count);
void console_room(void *opaque);

/* For a virtio console: what it prints is mixed with what the serial port prints, and never waits in the device. */
struct stream *console_stream(struct console *console);
/* The terminal has another size. Any thread. */
void console_resized(struct console *console);

/* Wait until all that was printed is written. */
void console_flush(struct console *console);
/* The end is asked for: output that its reader does not take at once is dropped. Any thread. */
void console_abandon(struct console *console);

#endif
