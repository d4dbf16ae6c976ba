/*
 * virtio console: see console.h. (Virtual I/O Device 1.2, 5.3)
 *
 * Each port has a queue each way; with MULTIPORT there is a pair of control queues too. What the driver is to be
 * told is kept as bits of a port, not as messages: it can't grow, and what is out of date is never told.
 *
 * A port's output waits in the queue, and a chain of which the stream took only the beginning waits here: so a guest
 * that writes faster than its reader reads is held up, and loses nothing. While nobody is at the other end of a
 * named port, what is written to it is dropped, as on a serial line; Linux does not write then.
 *
 * A device that is nothing but a console does not offer MULTIPORT, so that the driver reads its size in the
 * configuration: in which order a RESIZE message has columns and rows, versions of Linux do not agree (here: the
 * specification's).
 *
 * Invariants: `held` says that `tx` is a popped chain of which `sent` bytes were taken; then nothing else of the
 * port's output queue is popped. A port is `told` of to the driver after it said that it is ready (DEVICE_READY).
 */
#include "device/virtio/console.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/loop.h"
#include "device/stream.h"
#include "device/virtio/virtio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE 128
#define TURN_MAX \
	(2 * QUEUE_SIZE) /* chains of one queue before others have their turn on the loop */
#define CONTROL_IN	2
#define CONTROL_OUT	3
#define EMERGENCY_BYTES 256

#define F_SIZE	      (1ull << 0)
#define F_MULTIPORT   (1ull << 1)
#define F_EMERG_WRITE (1ull << 2)

enum config_offset { /* 5.3.4 */
	CONFIG_COLUMNS = 0,
	CONFIG_ROWS = 2,
	CONFIG_PORTS = 4,
	CONFIG_EMERGENCY = 8,
	CONFIG_BYTES = 12,
};

enum control_event { /* 5.3.6.2 */
	EVENT_DEVICE_READY,
	EVENT_DEVICE_ADD,
	EVENT_DEVICE_REMOVE,
	EVENT_PORT_READY,
	EVENT_CONSOLE_PORT,
	EVENT_RESIZE,
	EVENT_PORT_OPEN,
	EVENT_PORT_NAME,
};

#define CONTROL_BYTES 8 /* port (4), event (2), value (2) */

/* What the driver is to be told of a port, in this order. */
enum tell {
	TELL_ADD = 1,
	TELL_CONSOLE = 2,
	TELL_NAME = 4,
	TELL_SIZE = 8,
	TELL_OPEN = 16,
};

struct port {
	struct virtio_console *console;
	unsigned index;
	struct stream *stream; /* NULL: there is no such port */
	const char *name;      /* NULL: a console */
	bool connected;	       /* somebody is at the other end */
	uint16_t columns, rows;
	/* of the driver: */
	unsigned tell; /* enum tell */
	bool ready;    /* it knows the port */
	bool open;     /* it takes input */
	bool refused;  /* the stream waits for ready() */
	bool held;
	struct virtq_buffer tx, rx;
	uint64_t sent;
};

struct virtio_console {
	pthread_mutex_t *lock;
	struct loop *loop;
	struct virtio_device *device;
	bool multiport; /* agreed on */
	unsigned size_told; /* bits of the queues whose first kick was answered with the size */
	struct virtq_buffer control;
	struct loop_call later; /* serve all queues */
	unsigned emergency_count;
	uint8_t emergency[EMERGENCY_BYTES];
	unsigned port_count;
	struct port port[VIRTIO_CONSOLE_PORTS_MAX];
};

static struct virtq *port_queue(const struct port *port, bool output)
{
	const unsigned first = port->index ? 2 + 2 * port->index : 0;

	return virtio_queue(port->console->device, first + output);
}

/* ---- control ---- */

static unsigned message(const struct port *port, enum tell what, uint8_t *bytes)
{
	enum control_event event;
	unsigned value = 1, size = CONTROL_BYTES;

	switch (what) {
	case TELL_ADD: event = EVENT_DEVICE_ADD; break;
	case TELL_CONSOLE: event = EVENT_CONSOLE_PORT; break;
	case TELL_NAME:
		event = EVENT_PORT_NAME;
		size += (unsigned)strlen(port->name);
		memcpy(bytes + CONTROL_BYTES, port->name, strlen(port->name));
		break;
	case TELL_SIZE:
		event = EVENT_RESIZE;
		store_le16(bytes + CONTROL_BYTES, port->columns);
		store_le16(bytes + CONTROL_BYTES + 2, port->rows);
		size += 4;
		break;
	default:
		event = EVENT_PORT_OPEN;
		value = port->connected;
		break;
	}
	store_le32(bytes, port->index);
	store_le16(bytes + 4, (uint16_t)event);
	store_le16(bytes + 6, (uint16_t)value);
	return size;
}

/* As far as there are buffers. */
static void tell_driver(struct virtio_console *console)
{
	struct virtq *queue = virtio_queue(console->device, CONTROL_IN);
	uint8_t bytes[CONTROL_BYTES + VIRTIO_CONSOLE_NAME_MAX];
	bool any = false;

	if (!console->multiport || !virtio_live(console->device))
		return;
	for (unsigned i = 0; i < console->port_count; i++) {
		struct port *port = &console->port[i];

		while (port->tell) {
			const unsigned what = port->tell & -port->tell;

			if (virtq_pop(queue, &console->control) != 1)
				goto out;
			const unsigned size = message(port, what, bytes);
			/* A buffer too small for it gets its beginning: the driver's loss. */
			virtq_push(queue, &console->control,
				(uint32_t)virtq_write(&console->control, 0, bytes, size));
			port->tell &= ~what;
			any = true;
		}
	}
out:
	if (any)
		virtq_signal(queue);
}

static void driver_is_ready(struct virtio_console *console)
{
	for (unsigned i = 0; i < console->port_count; i++)
		if (console->port[i].stream)
			console->port[i].tell |= TELL_ADD;
}

static void port_is_ready(struct port *port)
{
	port->ready = true;
	port->tell |= port->name ? TELL_NAME : TELL_CONSOLE;
	if (!port->name && port->columns)
		port->tell |= TELL_SIZE;
	if (port->connected)
		port->tell |= TELL_OPEN;
}

static void ask_for_input(struct port *port)
{
	if (!port->refused)
		return;
	port->refused = false;
	port->stream->ops->ready(port->stream);
}

static void obey(struct virtio_console *console, const uint8_t *bytes)
{
	const uint32_t index = load_le32(bytes);
	const unsigned event = load_le16(bytes + 4), value = load_le16(bytes + 6);

	if (event == EVENT_DEVICE_READY && value == 1)
		driver_is_ready(console);
	if (index >= console->port_count || !console->port[index].stream)
		return;
	struct port *port = &console->port[index];
	if (event == EVENT_PORT_READY && value == 1)
		port_is_ready(port);
	if (event == EVENT_PORT_OPEN) {
		port->open = value;
		if (port->open)
			ask_for_input(port);
	}
}

/* False: there is more, for later. */
static bool serve_control(struct virtio_console *console)
{
	struct virtq *queue = virtio_queue(console->device, CONTROL_OUT);
	unsigned turn = 0;

	for (; turn < TURN_MAX && virtq_pop(queue, &console->control) == 1; turn++) {
		uint8_t bytes[CONTROL_BYTES];
		const bool whole =
			virtq_read(&console->control, 0, bytes, sizeof(bytes)) == sizeof(bytes);

		virtq_push(queue, &console->control, 0);
		if (whole)
			obey(console, bytes);
	}
	if (turn)
		virtq_signal(queue);
	tell_driver(console);
	return turn < TURN_MAX;
}

/* ---- output ---- */

static size_t send_piece(const struct port *port, const struct iovec *iov, size_t from)
{
	const uint8_t *bytes = iov->iov_base;

	return port->stream->ops->send(port->stream, bytes + from, iov->iov_len - from);
}

/* Of the chain in hand, what the stream takes. True: all of it, or nobody is there. */
static bool send_chain(struct port *port)
{
	uint64_t start = 0;

	if (!port->stream || !port->connected)
		return true;
	for (unsigned i = 0; i < port->tx.out_count; i++) {
		const struct iovec *iov = &port->tx.out[i];

		if (port->sent < start + iov->iov_len) {
			port->sent += send_piece(port, iov, port->sent - start);
			if (port->sent < start + iov->iov_len)
				return false;
		}
		start += iov->iov_len;
	}
	return true;
}

/* False: there is more, for later. */
static bool serve_output(struct port *port)
{
	struct virtq *queue = port_queue(port, true);
	unsigned turn = 0;

	for (; turn < TURN_MAX; turn++) {
		if (!port->held && virtq_pop(queue, &port->tx) != 1)
			break;
		if (!port->held)
			port->sent = 0;
		port->held = !send_chain(port);
		if (port->held)
			break;
		virtq_push(queue, &port->tx, 0);
	}
	if (turn)
		virtq_signal(queue);
	return turn < TURN_MAX;
}

/* What was written so on a vCPU's thread, on the loop's. What the stream does not take is lost: it is not for
 * waiting. */
static void send_emergency(struct virtio_console *console)
{
	struct port *port = &console->port[0];

	if (console->emergency_count && port->stream)
		port->stream->ops->send(port->stream, console->emergency, console->emergency_count);
	console->emergency_count = 0;
}

static void serve_all(void *opaque)
{
	struct virtio_console *console = opaque;
	AUTO_LOCK(console->lock);
	bool done = true;

	send_emergency(console);
	if (!virtio_live(console->device))
		return;
	if (console->multiport)
		done &= serve_control(console);
	else
		ask_for_input(&console->port[0]);
	for (unsigned i = 0; i < (console->multiport ? console->port_count : 1); i++)
		done &= serve_output(&console->port[i]);
	if (!done)
		loop_post(console->loop, &console->later);
}

/* ---- the stream's side ---- */

static bool takes_input(const struct port *port)
{
	return virtio_live(port->console->device) && (port->open || !port->console->multiport);
}

static size_t peer_receive(void *opaque, const uint8_t *bytes, size_t count)
{
	struct port *port = opaque;
	AUTO_LOCK(port->console->lock);
	struct virtq *queue = port_queue(port, false);
	size_t taken = 0;

	while (taken < count && takes_input(port) && virtq_pop(queue, &port->rx) == 1) {
		const uint64_t part = virtq_write(&port->rx, 0, bytes + taken, count - taken);

		virtq_push(queue, &port->rx, (uint32_t)part);
		taken += part;
		/* No room in a buffer: the next one may have some, but there may be no end of them. */
		if (!part)
			break;
	}
	if (taken)
		virtq_signal(queue);
	port->refused = taken < count;
	return taken;
}

static void peer_room(void *opaque)
{
	struct port *port = opaque;

	loop_post(port->console->loop, &port->console->later);
}

static void peer_connected(void *opaque, bool connected)
{
	struct port *port = opaque;
	AUTO_LOCK(port->console->lock);

	if (port->connected == connected)
		return;
	port->connected = connected;
	if (port->ready)
		port->tell |= TELL_OPEN;
	/* Tells the driver, and drops what nobody reads. */
	loop_post(port->console->loop, &port->console->later);
}

static void peer_resized(void *opaque, uint16_t columns, uint16_t rows)
{
	struct port *port = opaque;
	AUTO_LOCK(port->console->lock);

	if (port->columns == columns && port->rows == rows)
		return;
	port->columns = columns;
	port->rows = rows;
	if (port->ready && !port->name)
		port->tell |= TELL_SIZE;
	if (!port->index && virtio_has_driver(port->console->device))
		virtio_config_changed(port->console->device);
	loop_post(port->console->loop, &port->console->later);
}

/* ---- the core's side ---- */

static uint64_t console_features(void *device)
{
	const struct virtio_console *console = device;

	return F_SIZE | F_EMERG_WRITE | (console->port_count > 1 ? F_MULTIPORT : 0);
}

static unsigned console_queue_size(void *device, unsigned index)
{
	const struct virtio_console *console = device;

	const unsigned queues = console->port_count > 1 ? 2 * (console->port_count + 1) : 2;

	return index < queues ? QUEUE_SIZE : 0;
}

static void console_config_read(void *device, unsigned offset, void *bytes, unsigned size)
{
	const struct virtio_console *console = device;
	uint8_t config[CONFIG_BYTES] = {0};

	store_le16(config + CONFIG_COLUMNS, console->port[0].columns);
	store_le16(config + CONFIG_ROWS, console->port[0].rows);
	store_le32(config + CONFIG_PORTS, console->port_count);
	memcpy(bytes, config + offset, size);
}

static void console_config_write(void *device, unsigned offset, const void *bytes, unsigned size)
{
	struct virtio_console *console = device;

	if (offset != CONFIG_EMERGENCY || console->emergency_count == EMERGENCY_BYTES)
		return;
	console->emergency[console->emergency_count++] = *(const uint8_t *)bytes;
	loop_post(console->loop, &console->later);
}

static void console_start(void *device, uint64_t features)
{
	struct virtio_console *console = device;

	console->multiport = features & F_MULTIPORT;
	loop_post(console->loop, &console->later);
}

/* Linux reads the size only when the configuration changes, and only when its port is complete: that is some time
 * after it gave buffers for input, and before it prints. */
static void tell_size(struct virtio_console *console, unsigned queue)
{
	if (console->multiport || !console->port[0].columns || console->size_told & 1u << queue)
		return;
	console->size_told |= 1u << queue;
	virtio_config_changed(console->device);
}

static void console_notify(void *device, unsigned queue)
{
	struct virtio_console *console = device;
	const unsigned index = queue < 2 ? 0 : queue / 2 - 1;
	bool done = true;

	if (queue == CONTROL_IN)
		tell_driver(console);
	else if (queue == CONTROL_OUT)
		done = serve_control(console);
	else if (queue & 1)
		done = serve_output(&console->port[index]);
	else
		ask_for_input(&console->port[index]);
	if (queue < 2)
		tell_size(console, queue);
	if (!done)
		loop_post(console->loop, &console->later);
}

static bool console_reset(void *device)
{
	struct virtio_console *console = device;

	console->multiport = false;
	console->size_told = 0;
	for (unsigned i = 0; i < console->port_count; i++) {
		struct port *port = &console->port[i];

		port->tell = 0;
		port->ready = port->open = port->held = false;
	}
	return true;
}

static const struct virtio_ops console_ops = {
	.id = VIRTIO_ID_CONSOLE,
	.name = "virtio-console",
	.features = console_features,
	.queue_size = console_queue_size,
	.config_bytes = CONFIG_BYTES,
	.config_read = console_config_read,
	.config_write = console_config_write,
	.start = console_start,
	.notify = console_notify,
	.reset = console_reset,
};

/* ---- life ---- */

struct virtio_device *virtio_console_device(struct virtio_console *console)
{
	return console->device;
}

void virtio_console_free(struct virtio_console *console)
{
	if (!console)
		return;
	for (unsigned i = 0; i < console->port_count; i++) {
		struct port *port = &console->port[i];

		if (port->stream)
			port->stream->ops->attach(port->stream, NULL);
		virtq_buffer_free(&port->tx);
		virtq_buffer_free(&port->rx);
	}
	loop_cancel(console->loop, &console->later);
	virtio_free(console->device);
	virtq_buffer_free(&console->control);
	free(console);
}

static void attach_all(struct virtio_console *console)
{
	for (unsigned i = 0; i < console->port_count; i++) {
		struct port *port = &console->port[i];
		const struct stream_peer peer = {.receive = peer_receive,
			.room = peer_room,
			.connected = peer_connected,
			.resized = peer_resized,
			.opaque = port};

		if (port->stream)
			port->stream->ops->attach(port->stream, &peer);
	}
}

static bool is_valid(const struct virtio_console_config *config)
{
	if (config->ports < 1 || config->ports > VIRTIO_CONSOLE_PORTS_MAX)
		return false;
	for (unsigned i = 0; i < config->ports; i++)
		if (config->port[i].name && strlen(config->port[i].name) > VIRTIO_CONSOLE_NAME_MAX)
			return false;
	return true;
}

int virtio_console_create(
	const struct virtio_console_config *config, struct virtio_console **ret_console)
{
	if (!is_valid(config))
		return -EINVAL;
	struct virtio_console *console = calloc(1, sizeof(*console));
	if (!console)
		return -ENOMEM;
	console->lock = config->wiring.lock;
	console->loop = config->wiring.loop;
	console->port_count = config->ports; /* says how many queues there are */
	console->later = (struct loop_call){.fn = serve_all, .opaque = console};
	struct virtio_config wiring = config->wiring;
	wiring.ops = &console_ops;
	wiring.device = console;
	int status = virtio_create(&wiring, &console->device);
	if (status < 0) {
		virtio_console_free(console);
		return status;
	}
	for (unsigned i = 0; i < config->ports; i++)
		console->port[i] = (struct port){.console = console,
			.index = i,
			.stream = config->port[i].stream,
			.name = config->port[i].name};
	attach_all(console);
	*ret_console = console;
	return 0;
}
