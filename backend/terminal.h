/*
 * The caller's terminal as a guest's console: raw mode, always given back.
 *
 * While raw mode is on, a small guardian process waits for this one to end, however it ends (kill -9
 * and crashes too), and then restores the terminal. termios(3), section "Raw mode".
 */
#ifndef LODGE_BACKEND_TERMINAL_H
#define LODGE_BACKEND_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct terminal;
struct error;

/* What a typed escape sequence (Ctrl-A and a letter) asks for. */
enum terminal_command { TERMINAL_NONE, TERMINAL_QUIT, TERMINAL_HELP };

/*
 * Take over stdin. If it is a terminal (and this process is in its foreground) it goes raw; else its
 * bytes are passed on as they are, with no escapes. Blocks SIGCONT in the calling thread, for
 * terminal_read to see, so no other threads must have been started. Errors: -ENOMEM, -EAGAIN (no process for the guardian).
 */
int terminal_open(struct terminal **ret_terminal, struct error *err);
/* Restore and free. NULL is allowed. */
void terminal_close(struct terminal *terminal);

/*
 * Wait for input or terminal_wake(). Returns the number of bytes stored (escape sequences removed, an
 * escape's command in *ret_command), 0 after a wake, a command or SIGCONT (which makes the terminal raw again), -EPIPE at the end of input, or
 * another negative errno. One reader.
 */
int terminal_read(struct terminal *terminal, uint8_t *buf, size_t size,
	enum terminal_command *ret_command);
/* Make a terminal_read under way (or the next one) return. Any thread, any signal handler. */
void terminal_wake(struct terminal *terminal);

#endif
