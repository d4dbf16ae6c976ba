/*
 * The server of calls: see server.h.
 *
 * Invariants: a client reads only while it has neither a call under way (`busy`) nor an answer on its way (`output`). One
 * that is gone (its descriptor is closed) stays until its call has been answered. It is freed at the end of go_on() only,
 * or for another's sake while it is idle.
 */
#include "api/server.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define TURN_MAX 16 /* requests of one client before others have their turn on the loop */

struct api_client {
	struct api_server *server;
	int fd; /* -1: gone */
	struct loop_source *source;
	struct loop_call later;	    /* go on */
	struct api_request request; /* while busy */
	bool busy, working;	    /* working: in go_on() */
	bool ended;		    /* sends no more */
	bool closing;		    /* goes when its answer has gone */
	uint64_t heard_ns;
	char *output;
	size_t sent, length; /* of output */
	size_t at, count;    /* of input: what was not looked at yet */
	char input[API_REQUEST_MAX];
};

struct api_server {
	struct loop *loop;
	api_handler handler;
	void *opaque;
	bool deaf;
	struct api_client *client[API_CLIENTS_MAX];
};

static void go_on(struct api_client *client);

/* ---- clients come and go ---- */

static void hang_up(struct api_client *client)
{
	loop_remove(client->source);
	client->source = NULL;
	if (client->fd >= 0)
		close(client->fd);
	client->fd = -1;
}

static void client_free(struct api_client *client)
{
	struct api_server *server = client->server;

	for (unsigned i = 0; i < API_CLIENTS_MAX; i++)
		if (server->client[i] == client)
			server->client[i] = NULL;
	hang_up(client);
	loop_cancel(server->loop, &client->later);
	api_request_done(&client->request);
	free(client->output);
	free(client);
}

static bool is_mine(int fd)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

/* A free place, if need be that of the client that has been silent for longest. NULL: all have calls under way. */
static struct api_client **find_place(struct api_server *server)
{
	struct api_client **silent = NULL;

	for (unsigned i = 0; i < API_CLIENTS_MAX; i++) {
		struct api_client **place = &server->client[i];

		if (!*place)
			return place;
		if (!(*place)->busy && (!silent || (*place)->heard_ns < (*silent)->heard_ns))
			silent = place;
	}
	if (silent)
		client_free(*silent);
	return silent;
}

static void client_ready(void *opaque, uint32_t events);

static void later(void *opaque)
{
	go_on(opaque);
}

void api_server_add(struct api_server *server, int accepted)
{
	AUTO_CLOSE int fd = accepted;

	if (server->deaf || !is_mine(fd))
		return;
	struct api_client **place = find_place(server);
	struct api_client *client = place ? calloc(1, sizeof(*client)) : NULL;
	if (!client)
		return;
	client->server = server;
	client->fd = -1;
	client->later = (struct loop_call){.fn = later, .opaque = client};
	client->heard_ns = clock_monotonic_ns();
	if (loop_add(server->loop, fd, EPOLLIN, client_ready, client, &client->source) < 0) {
		client_free(client);
		return;
	}
	client->fd = take_fd(&fd);
	*place = client;
}

/* ---- what they say ---- */

static void answer(struct api_client *client, json_t *reply)
{
	client->output = reply ? json_dumps(reply, JSON_COMPACT) : NULL;
	json_decref(reply);
	if (!client->output) {
		hang_up(client); /* no memory */
		return;
	}
	client->sent = 0;
	client->length = strlen(client->output) + 1;
	client->output[client->length - 1] = '\n'; /* in place of its end */
}

static bool is_blank(const char *line, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		if (!strchr(" \t\r", line[i]) || !line[i])
			return false;
	return true;
}

static void obey(struct api_client *client, const char *line, size_t bytes)
{
	struct api_server *server = client->server;
	struct error err;

	if (is_blank(line, bytes))
		return;
	if (api_request_parse(line, bytes, &client->request, &err) < 0) {
		answer(client, api_reply_error(err.text));
		return;
	}
	client->busy = true;
	server->handler(server->opaque, client, &client->request);
}

/* False: there is no whole one. */
static bool take_line(struct api_client *client)
{
	char *line = client->input + client->at, *end = memchr(line, '\n', client->count);

	if (client->server->deaf || (!end && !(client->ended && client->count)))
		return false;
	const size_t bytes = end ? (size_t)(end - line) : client->count,
		     took = bytes + (end != NULL);
	client->at += took;
	client->count -= took;
	obey(client, line, bytes);
	return true;
}

static void complain_of_length(struct api_client *client)
{
	struct error err;

	error_set(&err, EINVAL, "a request is a line of at most %u bytes", API_REQUEST_MAX);
	client->count = 0;
	client->closing = true;
	answer(client, api_reply_error(err.text));
}

static void hear(struct api_client *client)
{
	memmove(client->input, client->input + client->at, client->count);
	client->at = 0;
	const ssize_t got = read(
		client->fd, client->input + client->count, sizeof(client->input) - client->count);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	client->heard_ns = clock_monotonic_ns();
	client->ended |= got <= 0;
	client->count += got > 0 ? (size_t)got : 0;
	if (client->count == sizeof(client->input) && !memchr(client->input, '\n', client->count))
		complain_of_length(client);
}

/* False: the rest waits. */
static bool flush(struct api_client *client)
{
	if (!client->output || client->fd < 0)
		return true;
	const ssize_t put = send(client->fd, client->output + client->sent,
		client->length - client->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (put < 0 && errno != EAGAIN && errno != EINTR) {
		hang_up(client);
		return true;
	}
	client->sent += put > 0 ? (size_t)put : 0;
	if (client->sent < client->length)
		return false;
	free(take_ptr(&client->output));
	return true;
}

static uint32_t wanted(const struct api_client *client)
{
	if (client->output)
		return EPOLLOUT;
	return client->busy || client->ended ? 0 : EPOLLIN;
}

/* What is to be waited for next, or the end. */
static void settle(struct api_client *client)
{
	const bool silent = client->ended && !client->count && !client->output;

	if (!client->busy && (client->fd < 0 || silent || (client->closing && !client->output))) {
		client_free(client);
		return;
	}
	if (client->fd >= 0 && loop_change(client->source, wanted(client)) < 0)
		hang_up(client);
	if (client->fd < 0 && !client->busy)
		loop_post(client->server->loop, &client->later);
}

static void go_on(struct api_client *client)
{
	unsigned turn = 0;

	client->working = true;
	while (turn < TURN_MAX && flush(client) && client->fd >= 0 && !client->busy &&
		take_line(client))
		turn++;
	client->working = false;
	if (turn == TURN_MAX)
		loop_post(client->server->loop, &client->later);
	settle(client);
}

static void client_ready(void *opaque, uint32_t events)
{
	struct api_client *client = opaque;

	if (events & EPOLLIN && !client->busy && !client->output)
		hear(client);
	else if (events & (EPOLLHUP | EPOLLERR))
		hang_up(client);
	go_on(client);
}

void api_server_reply(struct api_client *client, json_t *reply)
{
	client->busy = false;
	api_request_done(&client->request);
	if (client->fd >= 0)
		answer(client, reply);
	else
		json_decref(reply);
	if (!client->working)
		go_on(client);
}

/* ---- life ---- */

int api_server_create(
	struct loop *loop, api_handler handler, void *opaque, struct api_server **ret_server)
{
	struct api_server *server = calloc(1, sizeof(*server));

	if (!server)
		return -ENOMEM;
	*server = (struct api_server){.loop = loop, .handler = handler, .opaque = opaque};
	*ret_server = server;
	return 0;
}

void api_server_deafen(struct api_server *server)
{
	server->deaf = true;
}

void api_server_free(struct api_server *server)
{
	for (unsigned i = 0; server && i < API_CLIENTS_MAX; i++)
		if (server->client[i])
			client_free(server->client[i]);
	free(server);
}
