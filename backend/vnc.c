/*
 * The VNC server: see vnc.h.
 */
#include "backend/vnc.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/listener.h"
#include "backend/vnc_private.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"

#define CLIENTS_MAX   8
#define INPUT_BYTES   1024u /* more than the longest message that is kept whole */
#define ENCODINGS_MAX 200u  /* of those a client names, how many are read */
#define PERIOD_NS     33000000ull
#define PATIENCE_NS   10000000000ull /* until a client has introduced itself */
#define PORT_FIRST    5900

enum phase { PHASE_VERSION, PHASE_SECURITY, PHASE_INIT, PHASE_RUNNING };

struct client {
	struct vnc *vnc;
	int fd;
	struct loop_source *source;
	enum phase phase;
	uint8_t input[INPUT_BYTES];
	size_t count;
	uint64_t skip; /* bytes of the input that nobody wants */
	bool tell_result; /* of the security handshake: from 3.8 on */
	struct vnc_output output;
	struct vnc_view view;
	bool has_stream, has_position;
	uint64_t deadline_ns; /* until it runs */
	unsigned x, y;	      /* the pointer */
	uint8_t buttons;      /* that it holds down, as the display knows them */
	uint8_t down[256 / 8]; /* keys that it does */
};

struct vnc {
	struct loop *loop;
	char name[64];
	struct listener *listener;
	struct loop_timer *timer, *patience;
	bool armed;
	uint64_t watch_ns; /* where `patience` stands; 0: nowhere */
	uint64_t period_ns, patience_ns;
	pthread_mutex_t lock; /* for `display`, held while it is used */
	bool has_display;
	struct display display;
	struct vnc_screen screen;
	struct client *client[CLIENTS_MAX];
};

static void client_ready(void *opaque, uint32_t events);

/* ---- clients come and go ---- */

static void press(struct client *client, uint8_t code, bool down)
{
	struct vnc *vnc = client->vnc;
	const uint8_t bit = (uint8_t)(1u << code % 8);

	client->down[code / 8] = (uint8_t)((client->down[code / 8] & ~bit) | (down ? bit : 0));
	AUTO_LOCK(&vnc->lock);
	if (code && vnc->has_display && vnc->display.key)
		vnc->display.key(vnc->display.opaque, code, down);
}

static void move(struct client *client, int dx, int dy, int dz, uint8_t buttons)
{
	struct vnc *vnc = client->vnc;

	client->buttons = buttons;
	AUTO_LOCK(&vnc->lock);
	if (vnc->has_display && vnc->display.move)
		vnc->display.move(vnc->display.opaque, dx, dy, dz, buttons);
}

/* Who goes takes his hands off. */
static void let_go(struct client *client)
{
	for (unsigned code = 0; code < 256; code++)
		if (client->down[code / 8] >> code % 8 & 1)
			press(client, (uint8_t)code, false);
	if (client->buttons)
		move(client, 0, 0, 0, 0);
}

static void client_free(struct client *client)
{
	if (!client)
		return;
	let_go(client);
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		if (client->vnc->client[i] == client)
			client->vnc->client[i] = NULL;
	loop_remove(client->source);
	if (client->fd >= 0)
		close(client->fd);
	if (client->has_stream)
		deflateEnd(&client->view.stream);
	free(client->output.bytes);
	free(client);
}

static struct client *client_new(struct vnc *vnc, int fd)
{
	struct client *client = calloc(1, sizeof(*client));

	if (!client)
		return NULL;
	client->vnc = vnc;
	client->fd = -1;
	client->view.format = vnc_format_own;
	client->deadline_ns = clock_monotonic_ns() + vnc->patience_ns;
	client->has_stream = deflateInit(&client->view.stream, 1) == Z_OK;
	if (!client->has_stream || loop_add(vnc->loop, fd, EPOLLIN, client_ready, client, &client->source) < 0) {
		client_free(client);
		return NULL;
	}
	client->fd = fd;
	return client;
}

static void watch(struct vnc *vnc, uint64_t deadline_ns)
{
	if (vnc->watch_ns && vnc->watch_ns <= deadline_ns)
		return;
	vnc->watch_ns = deadline_ns;
	loop_timer_arm(vnc->patience, deadline_ns);
}

/* Who has not introduced himself in time would keep others out. */
static void lose_patience(void *opaque)
{
	struct vnc *vnc = opaque;
	const uint64_t now_ns = clock_monotonic_ns();
	uint64_t next_ns = UINT64_MAX;

	vnc->watch_ns = 0;
	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		struct client *client = vnc->client[i];

		if (!client || client->phase == PHASE_RUNNING)
			continue;
		if (client->deadline_ns <= now_ns)
			client_free(client);
		else
			next_ns = MIN(next_ns, client->deadline_ns);
	}
	if (next_ns != UINT64_MAX)
		watch(vnc, next_ns);
}

static void accept_client(void *opaque, int accepted)
{
	struct vnc *vnc = opaque;
	AUTO_CLOSE int fd = accepted;

	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		if (vnc->client[i])
			continue;
		vnc->client[i] = client_new(vnc, fd);
		if (vnc->client[i]) {
			vnc_put(&vnc->client[i]->output, "RFB 003.008\n", 12);
			fd = -1;
			watch(vnc, vnc->client[i]->deadline_ns);
			client_ready(vnc->client[i], EPOLLOUT);
		}
		return;
	}
}

/* ---- pictures ---- */

static void draw(struct vnc *vnc)
{
	AUTO_LOCK(&vnc->lock);
	if (vnc->has_display && vnc->display.draw(vnc->display.opaque, &vnc->screen.picture))
		vnc_screen_drawn(&vnc->screen);
}

static void arm(struct vnc *vnc)
{
	if (vnc->armed)
		return;
	vnc->armed = true;
	loop_timer_arm(vnc->timer, clock_monotonic_ns() + vnc->period_ns);
}

static void tick(void *opaque)
{
	struct vnc *vnc = opaque;
	bool drawn = false, waiting = false;

	vnc->armed = false;
	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		struct client *client = vnc->client[i];

		if (!client || !client->view.wants || client->output.count)
			continue;
		if (!drawn)
			draw(vnc);
		drawn = true;
		vnc_update_begin(&client->view, &vnc->screen, &client->output);
		waiting |= client->view.wants;
		client_ready(client, EPOLLOUT);
	}
	if (waiting)
		arm(vnc);
}

/* ---- what clients say ---- */

static void point(struct client *client, uint8_t mask, unsigned x, unsigned y)
{
	/* Left, middle, right there; left, right, middle here. */
	const uint8_t buttons = (uint8_t)((mask & 1) | (mask >> 1 & 2) | (mask << 1 & 4));
	const int wheel = (mask >> 4 & 1) - (mask >> 3 & 1);
	const int dx = client->has_position ? (int)x - (int)client->x : 0;
	const int dy = client->has_position ? (int)y - (int)client->y : 0;

	client->x = x;
	client->y = y;
	client->has_position = true;
	move(client, dx, dy, wheel, buttons);
}

static void set_encodings(struct vnc_view *view, const uint8_t *bytes, unsigned count)
{
	view->zrle = view->can_resize = view->key_codes = false;
	for (unsigned i = 0; i < count; i++) {
		const int32_t encoding = (int32_t)load_be32(bytes + 4 * i);

		view->zrle |= encoding == VNC_ZRLE;
		view->can_resize |= encoding == VNC_SIZE;
		view->key_codes |= encoding == VNC_KEY;
	}
}

static void want_update(struct client *client, bool all)
{
	client->view.wants = true;
	client->view.wants_all |= all;
	arm(client->vnc);
}

/* Of the message that starts the input: how long it is, 0 if that cannot be said yet, -1 if it is none. */
static int64_t message_bytes(const uint8_t *in, size_t count)
{
	switch (in[0]) {
	case 0: return 20;
	case 2: return count < 4 ? 0 : 4 + 4ll * load_be16(in + 2);
	case 3: return 10;
	case 4: return 8;
	case 5: return 6;
	case 6: return count < 8 ? 0 : 8 + (int64_t)load_be32(in + 4);
	case 255: return count < 2 ? 0 : in[1] == 0 ? 12 : -1;
	default: return -1;
	}
}

/* XT codes, as QEMU's extension has them: the same as ours. */
static void key_code(struct client *client, const uint8_t *in)
{
	const uint32_t code = load_be32(in + 8);

	if (code && code < 0x100)
		press(client, (uint8_t)code, load_be16(in + 2));
	else if (code >> 8 == 0xe0)
		press(client, (uint8_t)(code | 0x80), load_be16(in + 2));
	else
		press(client, vnc_key(load_be32(in + 4)), load_be16(in + 2));
}

/* `have` bytes of the message are there, which are all but for long ones. */
static bool take_message(struct client *client, size_t have)
{
	const uint8_t *in = client->input;

	switch (in[0]) {
	case 0: return vnc_format_parse(&client->view.format, in + 4);
	case 2: set_encodings(&client->view, in + 4, (unsigned)(have - 4) / 4); break;
	case 3: want_update(client, !in[1]); break;
	case 4: press(client, vnc_key(load_be32(in + 4)), in[1]); break;
	case 5: point(client, in[1], load_be16(in + 2), load_be16(in + 4)); break;
	case 255: key_code(client, in); break;
	default: break; /* a clipboard that nobody has */
	}
	return true;
}

static void put_init(struct client *client)
{
	struct vnc *vnc = client->vnc;
	const struct picture *picture = &vnc->screen.picture;

	if (!picture->width)
		draw(vnc);
	vnc_view_resized(&client->view, picture->width ? picture->width : 640, picture->width ? picture->height : 400);
	vnc_put16(&client->output, (uint16_t)client->view.width);
	vnc_put16(&client->output, (uint16_t)client->view.height);
	vnc_format_put(&client->output, &client->view.format);
	vnc_put32(&client->output, (uint32_t)strlen(vnc->name));
	vnc_put(&client->output, vnc->name, strlen(vnc->name));
}

/* Returns how many bytes were taken: 0 not enough, -1 not this protocol. */
static int64_t take_version(struct client *client)
{
	unsigned minor;

	if (client->count < 12)
		return 0;
	if (memcmp(client->input, "RFB 003.", 8) || client->input[11] != '\n')
		return -1;
	minor = client->input[10] - '0';
	client->phase = minor >= 7 ? PHASE_SECURITY : PHASE_INIT;
	client->tell_result = minor >= 8;
	if (minor >= 7)
		vnc_put(&client->output, "\1\1", 2);
	else
		vnc_put32(&client->output, 1);
	return 12;
}

static int64_t take_step(struct client *client)
{
	switch (client->phase) {
	case PHASE_VERSION: return take_version(client);
	case PHASE_SECURITY:
		if (client->input[0] != 1)
			return -1;
		if (client->tell_result)
			vnc_put32(&client->output, 0);
		client->phase = PHASE_INIT;
		return 1;
	case PHASE_INIT:
		put_init(client);
		client->phase = PHASE_RUNNING;
		return 1;
	default: break;
	}
	const int64_t bytes = message_bytes(client->input, client->count);
	/* Of a long one the start is taken, and the rest passed over. */
	const size_t have = (size_t)MIN(bytes, (int64_t)(4 + 4 * ENCODINGS_MAX));
	if (bytes <= 0 || client->count < have)
		return MIN(bytes, (int64_t)0);
	return take_message(client, have) ? bytes : -1;
}

static bool take_input(struct client *client)
{
	for (;;) {
		int64_t took = (int64_t)MIN(client->skip, (uint64_t)client->count);

		client->skip -= (uint64_t)took;
		if (!took && client->count)
			took = take_step(client);
		if (took < 0)
			return false;
		if (took == 0)
			return true;
		if ((size_t)took > client->count) {
			client->skip = (uint64_t)took - client->count;
			took = (int64_t)client->count;
		}
		client->count -= (size_t)took;
		memmove(client->input, client->input + took, client->count);
	}
}

/* ---- bytes in and out ---- */

static bool receive(struct client *client)
{
	ssize_t got = read(client->fd, client->input + client->count, INPUT_BYTES - client->count);

	if (got < 0)
		return errno == EAGAIN || errno == EINTR;
	client->count += (size_t)got;
	return got > 0 && take_input(client);
}

static bool transmit(struct client *client)
{
	struct vnc_output *output = &client->output;

	while (output->sent < output->count) {
		ssize_t sent = send(
			client->fd, output->bytes + output->sent, output->count - output->sent, MSG_NOSIGNAL);

		if (sent < 0)
			return errno == EAGAIN || errno == EINTR;
		output->sent += (size_t)sent;
	}
	output->count = output->sent = 0;
	return true;
}

/* While much waits to be sent nothing more is read: what a client asks for costs memory. */
static void client_ready(void *opaque, uint32_t events)
{
	struct client *client = opaque;
	bool alive = !(events & (EPOLLERR | EPOLLHUP));

	if (alive && (events & EPOLLIN))
		alive = receive(client);
	if (alive && !client->output.failed)
		alive = transmit(client);
	if (alive && client->view.updating && !client->output.count)
		vnc_update_go_on(&client->view, &client->vnc->screen, &client->output);
	if (!alive || client->output.failed) {
		client_free(client);
		return;
	}
	if (client->view.wants && !client->output.count)
		arm(client->vnc);
	if (loop_change(client->source, client->output.count ? EPOLLOUT : EPOLLIN) < 0)
		client_free(client);
}

/* ---- life ---- */

static int listen_tcp(struct vnc *vnc, const char *where, struct error *err)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	const char *colon = strrchr(where, ':'), *number = colon ? colon + 1 : where;
	char host[64] = "127.0.0.1", *end;
	long port = strtol(number, &end, 10);
	const int on = 1;

	if (colon && colon != where)
		snprintf(host, sizeof(host), "%.*s", (int)(colon - where), where);
	else
		port += PORT_FIRST;
	if (!*number || *end || port < 1 || port > 65535 || inet_pton(AF_INET, host, &address.sin_addr) != 1)
		return error_set(err, EINVAL,
			"'%s' is no place for VNC: give unix:PATH, ADDRESS:PORT or a display number such as :1", where);
	if (ntohl(address.sin_addr.s_addr) >> 24 != 127)
		return error_set(err, EPERM,
			"VNC at %s would be open to everybody on the network, with no password: give 127.0.0.1 or a Unix "
			"socket, and reach it through ssh", host);
	address.sin_port = htons((uint16_t)port);
	AUTO_CLOSE int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_set_errno(err, errno, "can't make a socket for VNC");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return error_set_errno(err, errno, "can't listen for VNC on %s port %ld", host, port);
	return listener_serve(vnc->loop, take_fd(&fd), accept_client, vnc, &vnc->listener, err);
}

static int open_socket(struct vnc *vnc, const char *where, struct error *err)
{
	if (strncmp(where, "unix:", 5))
		return listen_tcp(vnc, where, err);
	int status = listener_open(vnc->loop, where + 5, accept_client, vnc, &vnc->listener, err);
	return status < 0 ? error_prefix(err, "can't listen for VNC") : 0;
}

void vnc_set_pace(struct vnc *vnc, uint64_t period_ns, uint64_t patience_ns)
{
	vnc->period_ns = period_ns;
	vnc->patience_ns = patience_ns;
}

int vnc_open(struct vnc **ret_vnc, struct loop *loop, const char *where, const char *name,
	const struct display *display, struct error *err)
{
	struct vnc *vnc = calloc(1, sizeof(*vnc));
	int status;

	if (!vnc)
		return error_set(err, ENOMEM, "no memory for VNC");
	vnc->loop = loop;
	vnc_set_pace(vnc, PERIOD_NS, PATIENCE_NS);
	pthread_mutex_init(&vnc->lock, NULL);
	snprintf(vnc->name, sizeof(vnc->name), "%s", name);
	vnc_show(vnc, display);
	vnc->timer = loop_timer_create(loop, tick, vnc);
	vnc->patience = loop_timer_create(loop, lose_patience, vnc);
	status = vnc->timer && vnc->patience ? open_socket(vnc, where, err) : error_set(err, ENOMEM, "no memory for VNC");
	if (status < 0) {
		vnc_close(vnc);
		return status;
	}
	*ret_vnc = vnc;
	return 0;
}

void vnc_close(struct vnc *vnc)
{
	if (!vnc)
		return;
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		client_free(vnc->client[i]);
	listener_close(vnc->listener);
	loop_timer_free(vnc->timer);
	loop_timer_free(vnc->patience);
	picture_done(&vnc->screen.picture);
	pthread_mutex_destroy(&vnc->lock);
	free(vnc);
}

void vnc_show(struct vnc *vnc, const struct display *display)
{
	AUTO_LOCK(&vnc->lock);
	vnc->has_display = display;
	if (display)
		vnc->display = *display;
}
