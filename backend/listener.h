/*
 * A socket that waits for connections, on a loop: a Unix socket (unix(7)), or one that its owner has bound.
 *
 * Threads: all on the loop's thread, or while the loop does not run.
 */
#ifndef LODGE_BACKEND_LISTENER_H
#define LODGE_BACKEND_LISTENER_H

#include "base/util.h"

#include <stdbool.h>

struct error;
struct listener;
struct loop;

#define LISTENER_PATH_MAX 107

/*
 * A stream socket at path, which only this user may connect to. A socket that is there already and that nobody
 * serves any more is replaced; anything else is left alone, and an error. accepted: its descriptor, non-blocking, is
 * the callee's. Errors: with a line for people; -ENAMETOOLONG, -EADDRINUSE, what the system says.
 */
MUST_CHECK int listener_open(struct loop *loop, const char *path,
	void (*accepted)(void *opaque, int fd), void *opaque, struct listener **ret_listener,
	struct error *err);
/* The same of a socket that is bound already. It is the listener's from then on, at an error too. */
MUST_CHECK int listener_serve(struct loop *loop, int fd, void (*accepted)(void *opaque, int fd),
	void *opaque, struct listener **ret_listener, struct error *err);
/* NULL is allowed. Removes the socket's file. */
void listener_close(struct listener *listener);
/* Let who connects wait; or no more. */
void listener_hold(struct listener *listener, bool hold);

/* Connect to the socket at path: a non-blocking descriptor, or negative errno (-ECONNREFUSED, -ENOENT, -EAGAIN: it
 * has more to do than it can). Never waits. */
int listener_connect(const char *path);

#endif
