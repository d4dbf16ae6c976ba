/*
 * A stream (device/stream.h) at a Unix socket: whoever connects, one at a time, is at the other end of a virtio
 * console's port. More who connect wait for their turn.
 *
 * Who has closed his half (shutdown) still gets what the guest sends; all that he sent before he went is delivered.
 *
 * Threads: all on the loop's thread, or while the loop does not run.
 */
#ifndef LODGE_BACKEND_PORT_H
#define LODGE_BACKEND_PORT_H

#include "base/util.h"

struct error;
struct loop;
struct port_socket;
struct stream;

/* Errors: with a line for people; listener_open()'s. */
MUST_CHECK int port_socket_open(
	struct loop *loop, const char *path, struct port_socket **ret_port, struct error *err);
/* NULL is allowed. Nobody is attached. */
void port_socket_close(struct port_socket *port);
struct stream *port_socket_stream(struct port_socket *port);

#endif
