/*
 * The host's side of a vsock device: see vsock.h.
 *
 * Invariant: at most VSOCK_WAITING_MAX callers have yet to say which port they want; at the limit the others wait in
 * the listening socket's queue.
 */
#include "backend/vsock.h"

#include "backend/listener.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/loop.h"
#include "device/vsock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_MAX_BYTES 32

struct caller { /* who has yet to say which port he wants */
	struct vsock_sockets *sockets;
	int fd; /* -1: free */
	struct loop_source *source;
	uint64_t deadline_ns;
	unsigned length; /* of what has come of the line */
	char line[LINE_MAX_BYTES];
};

struct vsock_sockets {
	struct vsock_host host; /* first: the ops cast it back */
	struct loop *loop;
	struct listener *listener;
	struct loop_timer *timer;
	struct vsock_peer peer;
	bool has_peer;
	unsigned waiting;
	struct caller caller[VSOCK_WAITING_MAX];
	char path[VSOCK_PATH_MAX + 1];
};

/* Returns his descriptor. */
static int let_go(struct caller *caller)
{
	const int fd = caller->fd;

	loop_remove(caller->source);
	caller->source = NULL;
	caller->fd = -1;
	if (caller->sockets->waiting-- == VSOCK_WAITING_MAX)
		listener_hold(caller->sockets->listener, false);
	return fd;
}

/* "CONNECT 1234\n"; UINT64_MAX: something else. */
static uint64_t parse(const char *line, size_t bytes)
{
	static const char word[] = "CONNECT ";
	uint64_t port = 0;
	size_t at = sizeof(word) - 1;

	if (bytes < at + 2 || memcmp(line, word, at))
		return UINT64_MAX;
	for (; at < bytes - 1; at++) {
		if (line[at] < '0' || line[at] > '9')
			return UINT64_MAX;
		port = port * 10 + (uint64_t)(line[at] - '0');
		if (port > UINT32_MAX)
			return UINT64_MAX;
	}
	return port;
}

/* Takes what there is of the line off the socket, and nothing behind it. Returns its length; 0: not all of it is there;
 * negative: he does not speak like that, or went. */
static ssize_t take_line(struct caller *caller)
{
	char *at = caller->line + caller->length;
	const size_t room = LINE_MAX_BYTES - caller->length;
	ssize_t got = recv(caller->fd, at, room, MSG_PEEK | MSG_DONTWAIT);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (got <= 0)
		return -EPIPE;
	const char *end = memchr(at, '\n', (size_t)got);
	got = recv(caller->fd, at, end ? (size_t)(end + 1 - at) : (size_t)got, MSG_DONTWAIT);
	if (got <= 0)
		return -EPIPE;
	caller->length += (unsigned)got;
	if (end)
		return (ssize_t)caller->length;
	return caller->length == LINE_MAX_BYTES ? -EINVAL : 0;
}

static void caller_ready(void *opaque, uint32_t events)
{
	struct caller *caller = opaque;
	struct vsock_sockets *sockets = caller->sockets;
	const ssize_t bytes = take_line(caller);

	if (bytes == 0 && !(events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)))
		return;
	const uint64_t port = bytes > 0 ? parse(caller->line, (size_t)bytes) : UINT64_MAX;
	const int fd = let_go(caller);
	if (port <= UINT32_MAX && sockets->has_peer)
		sockets->peer.connect(sockets->peer.opaque, fd, (uint32_t)port);
	else
		close(fd);
}

/* The callers who said nothing are given up; the timer is set for the others. */
static void timer_fired(void *opaque)
{
	struct vsock_sockets *sockets = opaque;
	const uint64_t now_ns = clock_monotonic_ns();
	uint64_t next_ns = UINT64_MAX;

	for (unsigned i = 0; i < VSOCK_WAITING_MAX; i++) {
		struct caller *caller = &sockets->caller[i];

		if (caller->fd >= 0 && caller->deadline_ns <= now_ns)
			close(let_go(caller));
		else if (caller->fd >= 0)
			next_ns = MIN(next_ns, caller->deadline_ns);
	}
	if (next_ns != UINT64_MAX)
		loop_timer_arm(sockets->timer, next_ns);
}

static struct caller *free_caller(struct vsock_sockets *sockets)
{
	for (unsigned i = 0; i < VSOCK_WAITING_MAX; i++)
		if (sockets->caller[i].fd < 0)
			return &sockets->caller[i];
	return NULL;
}

static void accepted(void *opaque, int fd)
{
	struct vsock_sockets *sockets = opaque;
	struct caller *caller = free_caller(sockets);

	if (!caller || loop_add(sockets->loop, fd, EPOLLIN | EPOLLRDHUP, caller_ready, caller,
			       &caller->source) < 0) {
		close(fd);
		return;
	}
	caller->fd = fd;
	caller->length = 0;
	caller->deadline_ns = clock_monotonic_ns() + VSOCK_WAITING_NS;
	if (sockets->waiting++ == 0)
		loop_timer_arm(sockets->timer, caller->deadline_ns);
	if (sockets->waiting == VSOCK_WAITING_MAX)
		listener_hold(sockets->listener, true);
}

/* ---- for the device ---- */

static void sockets_attach(struct vsock_host *host, const struct vsock_peer *peer)
{
	struct vsock_sockets *sockets = (struct vsock_sockets *)host;

	sockets->has_peer = peer;
	if (peer)
		sockets->peer = *peer;
}

static int sockets_open(struct vsock_host *host, uint32_t port)
{
	const struct vsock_sockets *sockets = (struct vsock_sockets *)host;
	char path[VSOCK_PATH_MAX + 12];

	snprintf(path, sizeof(path), "%s_%u", sockets->path, port);
	return listener_connect(path);
}

static void sockets_accepted(struct vsock_host *host, int fd, uint32_t host_port)
{
	char line[LINE_MAX_BYTES];
	const int bytes = snprintf(line, sizeof(line), "OK %u\n", host_port);

	/* Nothing was written to it yet, so there is room. If he went away, the device finds out. */
	(void)!send(fd, line, (size_t)bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static const struct vsock_host_ops sockets_ops = {
	.attach = sockets_attach,
	.open = sockets_open,
	.accepted = sockets_accepted,
};

/* ---- life ---- */

struct vsock_host *vsock_sockets_host(struct vsock_sockets *sockets)
{
	return &sockets->host;
}

int vsock_sockets_open(
	struct loop *loop, const char *path, struct vsock_sockets **ret_sockets, struct error *err)
{
	if (strlen(path) > VSOCK_PATH_MAX || !*path)
		return error_set(err, ENAMETOOLONG,
			"'%s' is no name for the sockets of a vsock: 1 to %d bytes", path,
			VSOCK_PATH_MAX);
	struct vsock_sockets *sockets = calloc(1, sizeof(*sockets));
	if (!sockets)
		return error_set(err, ENOMEM, "no memory for the socket %s", path);
	sockets->host.ops = &sockets_ops;
	sockets->loop = loop;
	strcpy(sockets->path, path);
	for (unsigned i = 0; i < VSOCK_WAITING_MAX; i++)
		sockets->caller[i] = (struct caller){.sockets = sockets, .fd = -1};
	sockets->timer = loop_timer_create(loop, timer_fired, sockets);
	int status = sockets->timer
			     ? listener_open(loop, path, accepted, sockets, &sockets->listener, err)
			     : error_set(err, ENOMEM, "no memory for the socket %s", path);
	if (status < 0) {
		vsock_sockets_close(sockets);
		return status;
	}
	*ret_sockets = sockets;
	return 0;
}

void vsock_sockets_close(struct vsock_sockets *sockets)
{
	if (!sockets)
		return;
	for (unsigned i = 0; i < VSOCK_WAITING_MAX; i++)
		if (sockets->caller[i].fd >= 0)
			close(let_go(&sockets->caller[i]));
	listener_close(sockets->listener);
	loop_timer_free(sockets->timer);
	free(sockets);
}
