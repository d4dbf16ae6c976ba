/*
 * The host's side of a vsock device by Unix sockets, as Firecracker has it:
 *
 *	who wants port N of the guest connects to the socket PATH and says "CONNECT N\n"; he is answered "OK M\n", M
 *	being the port on the host's side, or is hung up on. What follows is the connection;
 *	what the guest connects to at port N of the host goes to whoever listens at the socket PATH_N.
 *
 * Threads: all on the loop's thread, or while the loop does not run.
 */
#ifndef LODGE_BACKEND_VSOCK_H
#define LODGE_BACKEND_VSOCK_H

#include "base/util.h"

struct error;
struct loop;
struct vsock_host;
struct vsock_sockets;

#define VSOCK_PATH_MAX	  96 /* so that there is room for the port's number */
#define VSOCK_WAITING_MAX 64 /* who have connected and not said to what, at a time */
#define VSOCK_WAITING_NS  5000000000ull

/* Errors: with a line for people; listener_open()'s. */
MUST_CHECK int vsock_sockets_open(
	struct loop *loop, const char *path, struct vsock_sockets **ret_sockets, struct error *err);
/* NULL is allowed. Nobody is attached. */
void vsock_sockets_close(struct vsock_sockets *sockets);
struct vsock_host *vsock_sockets_host(struct vsock_sockets *sockets);

#endif
