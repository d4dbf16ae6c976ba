/*
 * A stream at a Unix socket: see port.h.
 *
 * Invariants: `blocked` says that the guest takes no input now, so that the socket is not read until ready() (or that
 * there is no guest). fd is -1 while nobody is connected, and only then others may connect. A socket that was hung
 * up is watched only while it is read or written, as it is ready for ever.
 */
#include "backend/port.h"

#include "backend/listener.h"
#include "base/error.h"
#include "base/loop.h"
#include "device/stream.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER_BYTES 4096
#define TURN_MAX     64 /* reads before others have their turn on the loop */

struct port_socket {
	struct stream stream; /* first: the ops cast it back */
	struct loop *loop;
	struct listener *listener;
	struct stream_peer peer;
	bool has_peer;
	struct loop_call later; /* read on */

	int fd;
	struct loop_source *source;
	bool blocked, ended, hung_up;
	bool full;	  /* it took less than it was given */
	size_t at, count; /* of the buffer: read, but not taken */
	uint8_t buffer[BUFFER_BYTES];
};

static void socket_ready(void *opaque, uint32_t events);

static void watch(struct port_socket *port)
{
	const uint32_t events =
		(!port->blocked && !port->ended ? EPOLLIN : 0) | (port->full ? EPOLLOUT : 0);

	if (!events && port->hung_up) {
		loop_remove(port->source);
		port->source = NULL;
	} else if (port->source) {
		(void)!loop_change(port->source, events);
	} else if (loop_add(port->loop, port->fd, events, socket_ready, port, &port->source) < 0) {
		port->source = NULL;
	}
}

static void disconnect(struct port_socket *port)
{
	loop_remove(port->source);
	port->source = NULL;
	close(port->fd);
	port->fd = -1;
	port->count = 0;
	port->full = false;
	if (port->has_peer)
		port->peer.connected(port->peer.opaque, false);
	listener_hold(port->listener, false);
}

/* What it does not take waits in the buffer. */
static void offer(struct port_socket *port)
{
	/* Before the offer: ready() may come while it is under way. */
	port->blocked = true;
	const size_t took =
		port->peer.receive(port->peer.opaque, port->buffer + port->at, port->count);
	port->at += took;
	port->count -= took;
	if (!port->count)
		port->blocked = false;
}

static void fill(struct port_socket *port)
{
	const ssize_t got = read(port->fd, port->buffer, sizeof(port->buffer));

	port->at = 0;
	port->count = got > 0 ? (size_t)got : 0;
	if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
		port->ended = true;
}

static void read_on(struct port_socket *port)
{
	for (unsigned turn = 0; turn < TURN_MAX && !port->blocked; turn++) {
		if (!port->count && !port->ended)
			fill(port);
		if (!port->count)
			break;
		offer(port);
	}
	if (port->hung_up && port->ended && !port->count)
		disconnect(port);
	else
		watch(port);
}

static void socket_ready(void *opaque, uint32_t events)
{
	struct port_socket *port = opaque;

	port->hung_up |= (events & (EPOLLHUP | EPOLLERR)) != 0;
	if (port->full && events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
		port->full = false;
		if (port->has_peer)
			port->peer.room(port->peer.opaque);
	}
	read_on(port);
}

static void later(void *opaque)
{
	struct port_socket *port = opaque;

	if (port->fd >= 0 && port->has_peer) {
		port->blocked = false;
		read_on(port);
	}
}

static void accepted(void *opaque, int fd)
{
	struct port_socket *port = opaque;

	listener_hold(port->listener, true);
	port->fd = fd;
	port->ended = port->hung_up = port->full = false;
	port->blocked = !port->has_peer;
	watch(port);
	if (port->has_peer)
		port->peer.connected(port->peer.opaque, true);
}

/* ---- the stream ---- */

static void port_attach(struct stream *stream, const struct stream_peer *peer)
{
	struct port_socket *port = (struct port_socket *)stream;

	port->has_peer = peer;
	if (!peer) {
		port->blocked = true;
		if (port->fd >= 0)
			watch(port);
		return;
	}
	port->peer = *peer;
	peer->connected(peer->opaque, port->fd >= 0);
	loop_post(port->loop, &port->later);
}

static size_t port_send(struct stream *stream, const uint8_t *bytes, size_t count)
{
	struct port_socket *port = (struct port_socket *)stream;

	if (port->fd < 0)
		return count;
	const ssize_t put = send(port->fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);
	/* Of one who went away, the loop will say so. */
	if (put < 0 && errno != EAGAIN && errno != EINTR)
		return count;
	if (put < 0 || (size_t)put < count) {
		port->full = true;
		watch(port);
	}
	return put < 0 ? 0 : (size_t)put;
}

static void port_ready(struct stream *stream)
{
	struct port_socket *port = (struct port_socket *)stream;

	/* With the device's lock held, nothing can be offered. */
	loop_post(port->loop, &port->later);
}

static const struct stream_ops port_ops = {
	.attach = port_attach,
	.send = port_send,
	.ready = port_ready,
};

/* ---- life ---- */

struct stream *port_socket_stream(struct port_socket *port)
{
	return &port->stream;
}

int port_socket_open(
	struct loop *loop, const char *path, struct port_socket **ret_port, struct error *err)
{
	struct port_socket *port = calloc(1, sizeof(*port));

	if (!port)
		return error_set(err, ENOMEM, "no memory for the socket %s", path);
	port->stream.ops = &port_ops;
	port->loop = loop;
	port->fd = -1;
	port->later = (struct loop_call){.fn = later, .opaque = port};
	int status = listener_open(loop, path, accepted, port, &port->listener, err);
	if (status < 0) {
		free(port);
		return status;
	}
	*ret_port = port;
	return 0;
}

void port_socket_close(struct port_socket *port)
{
	if (!port)
		return;
	loop_cancel(port->loop, &port->later);
	loop_remove(port->source);
	if (port->fd >= 0)
		close(port->fd);
	listener_close(port->listener);
	free(port);
}
