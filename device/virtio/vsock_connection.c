/*
 * The connections of a vsock device: see vsock_private.h. (Virtual I/O Device 1.2, 5.10.6)
 *
 * From the host: a socket is watched until it has bytes, which are read straight into the guest's buffers. When
 * there is no buffer, or no credit, the socket is not watched and its sender is held up.
 * From the guest: bytes go straight to the socket; what that does not take is kept, never more than
 * VSOCK_BUFFER_BYTES, which is the credit that the guest has. A guest that sends more is cut off.
 *
 * Invariants: fd >= 0 in all states but DEAD. A connection is in the hash while the guest may name it. One with
 * `hung_up` is watched only while it is read or written, as its socket is ready for ever.
 */
#include "device/virtio/vsock_private.h"

#include "base/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static void socket_ready(void *opaque, uint32_t events);

/* ---- lists ---- */

static unsigned bucket_of(uint32_t host_port, uint32_t guest_port)
{
	return (host_port * 31 + guest_port) * 0x9e3779b1u >> 24;
}

struct vsock_connection *vsock_find(
	struct virtio_vsock *vsock, uint32_t host_port, uint32_t guest_port)
{
	struct vsock_connection *c = vsock->bucket[bucket_of(host_port, guest_port)];

	while (c && (c->host_port != host_port || c->guest_port != guest_port))
		c = c->hash_next;
	return c;
}

static void hash_insert(struct vsock_connection *c)
{
	struct vsock_connection **head = &c->vsock->bucket[bucket_of(c->host_port, c->guest_port)];

	c->hash_next = *head;
	c->hash_link = head;
	if (c->hash_next)
		c->hash_next->hash_link = &c->hash_next;
	*head = c;
}

static void hash_remove(struct vsock_connection *c)
{
	if (!c->hash_link)
		return;
	*c->hash_link = c->hash_next;
	if (c->hash_next)
		c->hash_next->hash_link = c->hash_link;
	c->hash_link = NULL;
}

bool vsock_connection_has(const struct vsock_connection *c)
{
	const bool credit = c->guest_buffer > c->sent - c->guest_forwarded;

	return c->tell || (c->state == VSOCK_OPEN && c->readable && !c->ended && credit &&
				  !(c->guest_shut & VSOCK_SHUTDOWN_RCV));
}

void vsock_connection_ready(struct vsock_connection *c)
{
	struct virtio_vsock *vsock = c->vsock;

	if (c->ready || !vsock_connection_has(c))
		return;
	c->ready = true;
	c->ready_next = NULL;
	*vsock->ready_last = c;
	vsock->ready_last = &c->ready_next;
}

static void ready_remove(struct vsock_connection *c)
{
	struct virtio_vsock *vsock = c->vsock;

	if (!c->ready)
		return;
	for (struct vsock_connection **at = &vsock->ready_first; *at; at = &(*at)->ready_next)
		if (*at == c) {
			*at = c->ready_next;
			if (vsock->ready_last == &c->ready_next)
				vsock->ready_last = at;
			break;
		}
	c->ready = false;
}

/* ---- the socket ---- */

/* Errors leave it unwatched: it then stays as it is until the guest gives up. */
static void watch(struct vsock_connection *c)
{
	uint32_t events = 0;

	if (c->fd < 0)
		return;
	if (c->state == VSOCK_OPEN && !c->readable && !c->ended &&
		!(c->guest_shut & VSOCK_SHUTDOWN_RCV))
		events |= EPOLLIN;
	if (c->ring_count)
		events |= EPOLLOUT;
	if (!events && c->hung_up) {
		loop_remove(c->source);
		c->source = NULL;
		return;
	}
	if (!c->source) {
		if (loop_add(c->vsock->loop, c->fd, events, socket_ready, c, &c->source) < 0)
			c->source = NULL;
	} else if (events != c->watched) {
		(void)!loop_change(c->source, events);
	}
	c->watched = events;
}

static void close_socket(struct vsock_connection *c)
{
	loop_remove(c->source);
	c->source = NULL;
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	c->ring_count = 0;
	free(c->ring);
	c->ring = NULL;
}

/* ---- life ---- */

struct vsock_connection *vsock_connection_create(struct virtio_vsock *vsock, int fd,
	uint32_t host_port, uint32_t guest_port, enum vsock_state state)
{
	struct vsock_connection *c =
		vsock->count < VSOCK_CONNECTIONS_MAX ? calloc(1, sizeof(*c)) : NULL;

	if (!c) {
		close(fd);
		return NULL;
	}
	*c = (struct vsock_connection){.vsock = vsock,
		.fd = fd,
		.host_port = host_port,
		.guest_port = guest_port,
		.state = state,
		.deadline_ns = clock_monotonic_ns() + VSOCK_CONNECT_NS};
	c->next = vsock->all;
	c->link = &vsock->all;
	if (c->next)
		c->next->link = &c->next;
	vsock->all = c;
	vsock->count++;
	hash_insert(c);
	watch(c);
	return c;
}

void vsock_connection_forget(struct vsock_connection *c)
{
	hash_remove(c);
	c->tell = 0;
	if (c->state == VSOCK_DRAINING)
		return;
	close_socket(c);
	ready_remove(c);
	if (c->kept) {
		c->gone = true;
		return;
	}
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
	c->vsock->count--;
	free(c);
}

void vsock_connection_kill(struct vsock_connection *c, bool tell)
{
	/* Of one that drains, the guest has forgotten all, or is being told. */
	const bool owed = c->state == VSOCK_DRAINING ? c->tell : tell;

	c->state = VSOCK_DEAD;
	close_socket(c);
	if (!owed) {
		vsock_connection_forget(c);
		return;
	}
	c->tell = VSOCK_TELL_RST;
	vsock_connection_ready(c);
}

/* ---- from the guest ---- */

void vsock_connection_credit(struct vsock_connection *c, const struct vsock_header *header)
{
	c->guest_buffer = header->buffer_bytes;
	c->guest_forwarded = header->forwarded;
	c->credit_wanted = false;
	vsock_connection_ready(c);
}

void vsock_connection_opened(struct vsock_connection *c)
{
	c->state = VSOCK_OPEN;
	c->readable |= c->hung_up;
	c->vsock->config.host->ops->accepted(c->vsock->config.host, c->fd, c->host_port);
	watch(c);
	vsock_connection_ready(c);
}

static int keep(struct vsock_connection *c, const struct iovec *iov, unsigned count, size_t skip)
{
	if (!c->ring)
		c->ring = malloc(VSOCK_BUFFER_BYTES);
	if (!c->ring)
		return -ENOMEM;
	for (unsigned i = 0; i < count; i++) {
		const uint8_t *from = iov[i].iov_base;
		size_t left = iov[i].iov_len, dropped = MIN(skip, left);

		skip -= dropped;
		from += dropped;
		left -= dropped;
		while (left) {
			const uint32_t at =
				(c->ring_head + c->ring_count) % (uint32_t)VSOCK_BUFFER_BYTES;
			const size_t part = MIN(left, (size_t)(VSOCK_BUFFER_BYTES - at));

			memcpy(c->ring + at, from, part);
			c->ring_count += (uint32_t)part;
			from += part;
			left -= part;
		}
	}
	return 0;
}

/* Returns what the socket took; negative: it is broken. */
static ssize_t send_now(const struct vsock_connection *c, struct iovec *iov, unsigned count)
{
	const struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
	const ssize_t put = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);

	if (put < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	return put;
}

static void count_forwarded(struct vsock_connection *c, uint32_t bytes)
{
	c->forwarded += bytes;
	if (c->state == VSOCK_OPEN && c->forwarded - c->forwarded_told >= VSOCK_BUFFER_BYTES / 4) {
		c->tell |= VSOCK_TELL_CREDIT;
		vsock_connection_ready(c);
	}
}

/* All that the guest sent is out: what it wanted after that. May free it. */
static void ring_is_empty(struct vsock_connection *c)
{
	if (c->state == VSOCK_DRAINING)
		vsock_connection_kill(c, false);
	else if ((c->guest_shut & VSOCK_SHUTDOWN_SEND) && !c->write_shut) {
		c->write_shut = true;
		shutdown(c->fd, SHUT_WR);
	}
}

/* May free it. */
static void flush(struct vsock_connection *c)
{
	while (c->ring_count) {
		const uint32_t straight =
			MIN(c->ring_count, (uint32_t)VSOCK_BUFFER_BYTES - c->ring_head);
		struct iovec iov = {.iov_base = c->ring + c->ring_head, .iov_len = straight};
		const ssize_t put = send_now(c, &iov, 1);

		if (put < 0) {
			vsock_connection_kill(c, true);
			return;
		}
		if (put == 0)
			return;
		c->ring_head = (c->ring_head + (uint32_t)put) % (uint32_t)VSOCK_BUFFER_BYTES;
		c->ring_count -= (uint32_t)put;
		count_forwarded(c, (uint32_t)put);
	}
	ring_is_empty(c);
}

/* The parts of iov between `skip` and skip + bytes, into to. Returns how many. */
static unsigned slice(
	const struct iovec *iov, unsigned count, size_t skip, size_t bytes, struct iovec *to)
{
	unsigned parts = 0;

	for (unsigned i = 0; i < count && bytes; i++) {
		const size_t dropped = MIN(skip, iov[i].iov_len);
		const size_t part = MIN(iov[i].iov_len - dropped, bytes);

		skip -= dropped;
		if (part)
			to[parts++] = (struct iovec){
				.iov_base = (uint8_t *)iov[i].iov_base + dropped, .iov_len = part};
		bytes -= part;
	}
	return parts;
}

void vsock_connection_take(struct vsock_connection *c, uint32_t bytes)
{
	struct virtio_vsock *vsock = c->vsock;
	const uint32_t held = c->received - c->forwarded;

	if (bytes > VSOCK_BUFFER_BYTES - held) {
		vsock_connection_kill(c, true);
		return;
	}
	c->received += bytes;
	const unsigned parts =
		slice(vsock->tx.out, vsock->tx.out_count, VSOCK_HEADER_BYTES, bytes, vsock->iov);
	const ssize_t put = c->ring_count || !parts ? 0 : send_now(c, vsock->iov, parts);
	if (put < 0) {
		vsock_connection_kill(c, true);
		return;
	}
	if ((size_t)put < bytes && keep(c, vsock->iov, parts, (size_t)put) < 0) {
		vsock_connection_kill(c, true);
		return;
	}
	count_forwarded(c, (uint32_t)put);
	watch(c);
}

void vsock_connection_shut(struct vsock_connection *c, unsigned flags)
{
	c->guest_shut |= flags & VSOCK_SHUTDOWN_BOTH;
	if (c->guest_shut == VSOCK_SHUTDOWN_BOTH) {
		/* All is said: it is over for the guest, but not its bytes. */
		if (!c->ring_count) {
			vsock_connection_kill(c, true);
			return;
		}
		c->state = VSOCK_DRAINING;
		c->tell = VSOCK_TELL_RST;
		vsock_connection_ready(c);
	} else if (c->guest_shut & VSOCK_SHUTDOWN_RCV) {
		shutdown(c->fd, SHUT_RD);
	} else if (!c->ring_count) {
		ring_is_empty(c);
	}
	watch(c);
}

/* ---- from the host ---- */

/* There will be no more from the socket; the guest is told, and more if nobody listens there either. */
static void end_of_socket(struct vsock_connection *c)
{
	struct pollfd fd = {.fd = c->fd};
	unsigned shut = VSOCK_SHUTDOWN_SEND;

	c->ended = true;
	c->readable = false;
	if (c->hung_up || (poll(&fd, 1, 0) == 1 && fd.revents & (POLLHUP | POLLERR))) {
		c->hung_up = true;
		shut = VSOCK_SHUTDOWN_BOTH;
	}
	if (shut & ~c->host_shut) {
		c->host_shut |= shut;
		c->tell |= VSOCK_TELL_SHUTDOWN;
	}
	watch(c);
}

uint32_t vsock_connection_fill(struct vsock_connection *c)
{
	struct virtio_vsock *vsock = c->vsock;
	const uint32_t credit = c->guest_buffer - (c->sent - c->guest_forwarded);
	const uint64_t room = vsock->rx.in_bytes - VSOCK_HEADER_BYTES;
	const uint64_t most = MIN(MIN((uint64_t)credit, room), VSOCK_PACKET_MAX);
	const unsigned parts =
		slice(vsock->rx.in, vsock->rx.in_count, VSOCK_HEADER_BYTES, most, vsock->iov);

	if (!parts) /* no room in the guest's buffer, which is its own doing */
		return 0;
	const ssize_t got = readv(c->fd, vsock->iov, (int)parts);
	if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
		c->readable = false;
		watch(c);
		return 0;
	}
	if (got <= 0) {
		/* A reset by the other end is an end like another: what came before it has been read. */
		c->hung_up |= got < 0;
		end_of_socket(c);
		return 0;
	}
	c->sent += (uint32_t)got;
	if (c->sent - c->guest_forwarded >= c->guest_buffer && !c->credit_wanted) {
		c->credit_wanted = true;
		c->tell |= VSOCK_TELL_WANT_CREDIT;
	}
	return (uint32_t)got;
}

/* Nobody at the other end; what is there to read still is. */
static void hang_up(struct vsock_connection *c)
{
	c->hung_up = true;
	if (c->state != VSOCK_OPEN)
		return;
	if (c->ended)
		end_of_socket(c);
	else
		c->readable = true;
}

static void socket_ready(void *opaque, uint32_t events)
{
	struct vsock_connection *c = opaque;
	struct virtio_vsock *vsock = c->vsock;

	pthread_mutex_lock(vsock->lock);
	c->kept = true;
	if (events & (EPOLLHUP | EPOLLERR))
		hang_up(c);
	if (events & EPOLLIN)
		c->readable = true;
	if (c->ring_count && events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		flush(c);
	if (!c->gone)
		vsock_connection_ready(c);
	vsock_pump(vsock);
	c->kept = false;
	if (c->gone)
		vsock_connection_forget(c);
	else
		watch(c);
	pthread_mutex_unlock(vsock->lock);
}
