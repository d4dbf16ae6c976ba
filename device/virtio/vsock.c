/*
 * virtio socket device: see vsock.h. (Virtual I/O Device 1.2, 5.10) The connections are in vsock_connection.c.
 *
 * What the guest is to be told is never a list of packets: a connection has bits, and takes its turn in the list of
 * those that are ready. Only the RSTs for what is no connection are kept as such; when there is no room for more,
 * the guest's packets wait until it takes some.
 *
 * Left out on purpose: SEQPACKET (no socket of the host's has it over a stream), and events: the address of a guest
 * does not change while it runs.
 */
#include "device/virtio/vsock.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "device/virtio/vsock_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define QUEUE_SIZE   256
#define TURN_MAX     512 /* packets before others have their turn on the loop */
#define CONFIG_BYTES 8
#define PORT_FIRST   (1u << 30) /* of the host's side of its own connections */
#define PORTS	     (1u << 30)
#define TIMER_NS     NS_PER_SEC

enum queue { QUEUE_RX, QUEUE_TX, QUEUE_EVENTS, QUEUES };

#define F_STREAM (1ull << 0)

/* ---- packets to the guest ---- */

static void header_write(const struct virtio_vsock *vsock, uint32_t host_port, uint32_t guest_port,
	const struct vsock_header *header)
{
	uint8_t bytes[VSOCK_HEADER_BYTES];

	store_le64(bytes, VSOCK_CID_HOST);
	store_le64(bytes + 8, vsock->config.cid);
	store_le32(bytes + 16, host_port);
	store_le32(bytes + 20, guest_port);
	store_le32(bytes + 24, header->bytes);
	store_le16(bytes + 28, VSOCK_TYPE_STREAM);
	store_le16(bytes + 30, header->op);
	store_le32(bytes + 32, header->flags);
	store_le32(bytes + 36, header->buffer_bytes);
	store_le32(bytes + 40, header->forwarded);
	virtq_write(&vsock->rx, 0, bytes, sizeof(bytes));
}

static void push_packet(
	struct vsock_connection *c, enum vsock_op op, uint32_t flags, uint32_t bytes)
{
	struct virtio_vsock *vsock = c->vsock;
	const struct vsock_header header = {.op = (uint16_t)op,
		.flags = flags,
		.bytes = bytes,
		.buffer_bytes = VSOCK_BUFFER_BYTES,
		.forwarded = c->forwarded};

	c->forwarded_told = c->forwarded;
	c->tell &= ~(unsigned)VSOCK_TELL_CREDIT;
	header_write(vsock, c->host_port, c->guest_port, &header);
	virtq_push(virtio_queue(vsock->device, QUEUE_RX), &vsock->rx, VSOCK_HEADER_BYTES + bytes);
}

static void push_refusal(struct virtio_vsock *vsock)
{
	const unsigned at = vsock->refusal_head;

	header_write(vsock, vsock->refusal[at].host_port, vsock->refusal[at].guest_port,
		&(struct vsock_header){.op = VSOCK_OP_RST});
	virtq_push(virtio_queue(vsock->device, QUEUE_RX), &vsock->rx, VSOCK_HEADER_BYTES);
	vsock->refusal_head = (at + 1) % VSOCK_REFUSALS_MAX;
	vsock->refusal_count--;
}

/* The first of what it has to tell. May free it. */
static void push_tell(struct vsock_connection *c)
{
	const unsigned what = c->tell & -c->tell;

	c->tell &= ~what;
	switch (what) {
	case VSOCK_TELL_RST:
		push_packet(c, VSOCK_OP_RST, 0, 0);
		vsock_connection_forget(c);
		return;
	case VSOCK_TELL_REQUEST: push_packet(c, VSOCK_OP_REQUEST, 0, 0); return;
	case VSOCK_TELL_RESPONSE: push_packet(c, VSOCK_OP_RESPONSE, 0, 0); return;
	case VSOCK_TELL_WANT_CREDIT: push_packet(c, VSOCK_OP_CREDIT_REQUEST, 0, 0); return;
	case VSOCK_TELL_SHUTDOWN: push_packet(c, VSOCK_OP_SHUTDOWN, c->host_shut, 0); return;
	default: push_packet(c, VSOCK_OP_CREDIT_UPDATE, 0, 0); return;
	}
}

/* One packet of a connection's into vsock->rx. False: it had nothing after all. */
static bool push_one(struct vsock_connection *c)
{
	if (!c->tell) {
		const uint32_t bytes = vsock_connection_fill(c);

		if (bytes) {
			push_packet(c, VSOCK_OP_RW, 0, bytes);
			vsock_connection_ready(c);
			return true;
		}
	}
	if (!c->tell)
		return false;
	/* It may be gone after this, unless it is put in the list first. */
	const bool last = c->tell & VSOCK_TELL_RST;
	push_tell(c);
	if (!last)
		vsock_connection_ready(c);
	return true;
}

/* Fill vsock->rx with what is next. False: nothing is. */
static bool push_next(struct virtio_vsock *vsock)
{
	if (vsock->refusal_count) {
		push_refusal(vsock);
		return true;
	}
	while (vsock->ready_first) {
		struct vsock_connection *c = vsock->ready_first;

		vsock->ready_first = c->ready_next;
		if (!vsock->ready_first)
			vsock->ready_last = &vsock->ready_first;
		c->ready = false;
		if (vsock_connection_has(c) && push_one(c))
			return true;
	}
	return false;
}

void vsock_pump(struct virtio_vsock *vsock)
{
	struct virtq *queue = virtio_queue(vsock->device, QUEUE_RX);
	unsigned turn = 0;

	for (; turn < TURN_MAX && (vsock->refusal_count || vsock->ready_first); turn++) {
		if (virtq_pop(queue, &vsock->rx) != 1)
			break;
		if (vsock->rx.in_bytes <= VSOCK_HEADER_BYTES) {
			virtio_fail(vsock->device, "a receive buffer of %llu bytes",
				(unsigned long long)vsock->rx.in_bytes);
			return;
		}
		if (!push_next(vsock)) {
			virtq_unpop(queue, &vsock->rx);
			break;
		}
	}
	if (turn)
		virtq_signal(queue);
	if (turn == TURN_MAX)
		loop_post(vsock->loop, &vsock->later);
}

/* ---- packets from the guest ---- */

static void refuse(struct virtio_vsock *vsock, const struct vsock_header *header)
{
	const unsigned at = (vsock->refusal_head + vsock->refusal_count) % VSOCK_REFUSALS_MAX;

	/* A RST is never answered, or two sides could go on for ever. */
	if (header->op == VSOCK_OP_RST || vsock->refusal_count == VSOCK_REFUSALS_MAX)
		return;
	vsock->refusal[at].guest_port = header->src_port;
	vsock->refusal[at].host_port = header->dst_port;
	vsock->refusal_count++;
}

static void handle_request(struct virtio_vsock *vsock, const struct vsock_header *header)
{
	struct vsock_host *host = vsock->config.host;
	const int fd = vsock->count < VSOCK_CONNECTIONS_MAX
			       ? host->ops->open(host, header->dst_port)
			       : -EMFILE;
	struct vsock_connection *c = fd < 0 ? NULL
					    : vsock_connection_create(vsock, fd, header->dst_port,
						      header->src_port, VSOCK_OPEN);

	if (!c) {
		refuse(vsock, header);
		return;
	}
	c->tell = VSOCK_TELL_RESPONSE;
	vsock_connection_credit(c, header);
}

static void handle_open(struct vsock_connection *c, const struct vsock_header *header)
{
	switch (header->op) {
	case VSOCK_OP_RW:
		if (c->guest_shut & VSOCK_SHUTDOWN_SEND)
			break;
		vsock_connection_take(c, header->bytes);
		return;
	case VSOCK_OP_SHUTDOWN: vsock_connection_shut(c, header->flags); return;
	case VSOCK_OP_CREDIT_UPDATE: return;
	case VSOCK_OP_CREDIT_REQUEST:
		c->tell |= VSOCK_TELL_CREDIT;
		vsock_connection_ready(c);
		return;
	default: break;
	}
	vsock_connection_kill(c, true);
}

static void handle_known(struct vsock_connection *c, const struct vsock_header *header)
{
	/* It is owed a RST, and has it coming. */
	if (c->state == VSOCK_DEAD || c->state == VSOCK_DRAINING)
		return;
	if (header->op == VSOCK_OP_RST) {
		vsock_connection_kill(c, false);
		return;
	}
	if (c->state == VSOCK_CONNECTING) {
		if (header->op != VSOCK_OP_RESPONSE) {
			vsock_connection_kill(c, true);
			return;
		}
		vsock_connection_credit(c, header);
		vsock_connection_opened(c);
		return;
	}
	vsock_connection_credit(c, header);
	handle_open(c, header);
}

static bool header_read(const struct virtq_buffer *buffer, struct vsock_header *ret)
{
	uint8_t bytes[VSOCK_HEADER_BYTES];

	if (virtq_read(buffer, 0, bytes, sizeof(bytes)) < sizeof(bytes))
		return false;
	*ret = (struct vsock_header){
		.src_cid = load_le64(bytes),
		.dst_cid = load_le64(bytes + 8),
		.src_port = load_le32(bytes + 16),
		.dst_port = load_le32(bytes + 20),
		.bytes = load_le32(bytes + 24),
		.type = load_le16(bytes + 28),
		.op = load_le16(bytes + 30),
		.flags = load_le32(bytes + 32),
		.buffer_bytes = load_le32(bytes + 36),
		.forwarded = load_le32(bytes + 40),
	};
	return ret->bytes <= buffer->out_bytes - VSOCK_HEADER_BYTES;
}

static void handle(struct virtio_vsock *vsock)
{
	struct vsock_header header;

	/* Nobody else is reached through here, and who lies about himself gets no answer. */
	if (!header_read(&vsock->tx, &header) || header.src_cid != vsock->config.cid ||
		header.dst_cid != VSOCK_CID_HOST)
		return;
	struct vsock_connection *c = vsock_find(vsock, header.dst_port, header.src_port);
	if (header.type != VSOCK_TYPE_STREAM)
		refuse(vsock, &header);
	else if (c)
		handle_known(c, &header);
	else if (header.op == VSOCK_OP_REQUEST)
		handle_request(vsock, &header);
	else
		refuse(vsock, &header);
}

static void serve_tx(struct virtio_vsock *vsock)
{
	struct virtq *queue = virtio_queue(vsock->device, QUEUE_TX);
	unsigned turn = 0;

	while (turn < TURN_MAX && vsock->refusal_count < VSOCK_REFUSALS_MAX &&
		virtq_pop(queue, &vsock->tx) == 1) {
		turn++;
		handle(vsock);
		virtq_push(queue, &vsock->tx, 0);
	}
	if (turn)
		virtq_signal(queue);
	if (turn == TURN_MAX)
		loop_post(vsock->loop, &vsock->later);
}

static void serve(struct virtio_vsock *vsock)
{
	serve_tx(vsock);
	const bool full = vsock->refusal_count == VSOCK_REFUSALS_MAX;
	vsock_pump(vsock);
	/* The guest's packets waited for that. */
	if (full && vsock->refusal_count < VSOCK_REFUSALS_MAX)
		loop_post(vsock->loop, &vsock->later);
}

static void later(void *opaque)
{
	struct virtio_vsock *vsock = opaque;
	AUTO_LOCK(vsock->lock);

	if (virtio_live(vsock->device))
		serve(vsock);
}

/* ---- from the host ---- */

static void timer_arm(struct virtio_vsock *vsock)
{
	if (vsock->timer_armed)
		return;
	vsock->timer_armed = true;
	loop_timer_arm(vsock->timer, clock_monotonic_ns() + TIMER_NS);
}

/* Connections that the guest does not answer. */
static void timer_fired(void *opaque)
{
	struct virtio_vsock *vsock = opaque;
	AUTO_LOCK(vsock->lock);
	const uint64_t now_ns = clock_monotonic_ns();
	bool waiting = false;

	for (struct vsock_connection *c = vsock->all, *next; c; c = next) {
		next = c->next;
		if (c->state != VSOCK_CONNECTING)
			continue;
		if (now_ns >= c->deadline_ns)
			vsock_connection_kill(c, true);
		else
			waiting = true;
	}
	vsock->timer_armed = false;
	if (waiting)
		timer_arm(vsock);
	vsock_pump(vsock);
}

static uint32_t free_port(struct virtio_vsock *vsock, uint32_t guest_port)
{
	uint32_t port;

	do
		port = PORT_FIRST + vsock->next_port++ % PORTS;
	while (vsock_find(vsock, port, guest_port));
	return port;
}

static void peer_connect(void *opaque, int fd, uint32_t port)
{
	struct virtio_vsock *vsock = opaque;
	AUTO_LOCK(vsock->lock);

	if (!virtio_live(vsock->device)) {
		close(fd);
		return;
	}
	struct vsock_connection *c =
		vsock_connection_create(vsock, fd, free_port(vsock, port), port, VSOCK_CONNECTING);
	if (!c)
		return;
	c->tell = VSOCK_TELL_REQUEST;
	vsock_connection_ready(c);
	timer_arm(vsock);
	vsock_pump(vsock);
}

/* ---- the core's side ---- */

static uint64_t vsock_features(void *device)
{
	return F_STREAM;
}

static unsigned vsock_queue_size(void *device, unsigned index)
{
	return index < QUEUES ? QUEUE_SIZE : 0;
}

static void vsock_config_read(void *device, unsigned offset, void *bytes, unsigned size)
{
	const struct virtio_vsock *vsock = device;
	uint8_t config[CONFIG_BYTES];

	store_le64(config, vsock->config.cid);
	memcpy(bytes, config + offset, size);
}

static void vsock_notify(void *device, unsigned index)
{
	/* Buffers to receive into may be what its packets wait for, too. */
	if (index != QUEUE_EVENTS)
		serve(device);
}

static void close_all(struct virtio_vsock *vsock)
{
	while (vsock->all) {
		vsock->all->tell = 0; /* nothing is owed any more */
		vsock_connection_kill(vsock->all, false);
	}
	vsock->ready_first = NULL;
	vsock->ready_last = &vsock->ready_first;
	vsock->refusal_count = 0;
}

static void reset_now(void *opaque)
{
	struct virtio_vsock *vsock = opaque;
	AUTO_LOCK(vsock->lock);

	close_all(vsock);
	virtio_reset_done(vsock->device);
}

/* The sockets are the loop's. */
static bool vsock_reset(void *device)
{
	struct virtio_vsock *vsock = device;

	loop_post(vsock->loop, &vsock->reset_call);
	return false;
}

static const struct virtio_ops vsock_ops = {
	.id = VIRTIO_ID_VSOCK,
	.name = "virtio-vsock",
	.features = vsock_features,
	.queue_size = vsock_queue_size,
	.config_bytes = CONFIG_BYTES,
	.config_read = vsock_config_read,
	.notify = vsock_notify,
	.reset = vsock_reset,
};

/* ---- life ---- */

struct virtio_device *virtio_vsock_device(struct virtio_vsock *vsock)
{
	return vsock->device;
}

unsigned virtio_vsock_connections(struct virtio_vsock *vsock)
{
	AUTO_LOCK(vsock->lock);
	return vsock->count;
}

void virtio_vsock_free(struct virtio_vsock *vsock)
{
	struct vsock_host *host;

	if (!vsock)
		return;
	host = vsock->config.host;
	host->ops->attach(host, NULL);
	loop_cancel(vsock->loop, &vsock->later);
	loop_cancel(vsock->loop, &vsock->reset_call);
	close_all(vsock);
	virtio_free(vsock->device);
	loop_timer_free(vsock->timer);
	virtq_buffer_free(&vsock->tx);
	virtq_buffer_free(&vsock->rx);
	free(vsock);
}

static int start(struct virtio_vsock *vsock)
{
	const struct vsock_peer peer = {.connect = peer_connect, .opaque = vsock};
	struct vsock_host *host = vsock->config.host;

	vsock->timer = loop_timer_create(vsock->loop, timer_fired, vsock);
	if (!vsock->timer)
		return -ENOMEM;
	struct virtio_config wiring = vsock->config.wiring;
	wiring.ops = &vsock_ops;
	wiring.device = vsock;
	int status = virtio_create(&wiring, &vsock->device);
	if (status == 0)
		host->ops->attach(host, &peer);
	return status;
}

int virtio_vsock_create(const struct virtio_vsock_config *config, struct virtio_vsock **ret_vsock)
{
	if (config->cid < VSOCK_CID_FIRST || config->cid > VSOCK_CID_LAST)
		return -EINVAL;
	struct virtio_vsock *vsock = calloc(1, sizeof(*vsock));
	if (!vsock)
		return -ENOMEM;
	vsock->config = *config;
	vsock->lock = config->wiring.lock;
	vsock->loop = config->wiring.loop;
	vsock->ready_last = &vsock->ready_first;
	vsock->later = (struct loop_call){.fn = later, .opaque = vsock};
	vsock->reset_call = (struct loop_call){.fn = reset_now, .opaque = vsock};
	int status = start(vsock);
	if (status < 0) {
		virtio_vsock_free(vsock);
		return status;
	}
	*ret_vsock = vsock;
	return 0;
}
