/*
 * The host's side of a vsock device: where connections from the guest go, and where connections to it come from.
 * backend/vsock.c implements it with Unix sockets; a test has one of its own.
 *
 * Threads: all on the thread of the loop that both are on. open() and accepted() are called with the device's lock
 * held, and must not call back.
 */
#ifndef LODGE_DEVICE_VSOCK_H
#define LODGE_DEVICE_VSOCK_H

#include <stdint.h>

/* The device's side. */
struct vsock_peer {
	/* Somebody on the host wants to reach this port of the guest's by a connected, non-blocking stream socket. It is
	 * the device's from now on, and closed when the guest does not want it. */
	void (*connect)(void *opaque, int fd, uint32_t port);
	void *opaque;
};

struct vsock_host {
	const struct vsock_host_ops *ops;
};

struct vsock_host_ops {
	/* NULL: nobody takes connections. The peer is copied. */
	void (*attach)(struct vsock_host *host, const struct vsock_peer *peer);
	/* The guest connects to this port of the host's: a connected, non-blocking stream socket, which is the device's,
	 * or negative errno. */
	int (*open)(struct vsock_host *host, uint32_t port);
	/* The guest took the connection, which has this port on the host's side: before any of its bytes. */
	void (*accepted)(struct vsock_host *host, int fd, uint32_t host_port);
};

#endif
