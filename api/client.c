/*
 * The client's side of calls: see client.h.
 */
#include "api/client.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define ROOM_FIRST 4096u

struct reply {
	char *text;
	size_t count, room;
};

static int wait_for(int fd, short events, uint64_t deadline_ns)
{
	const uint64_t now_ns = clock_monotonic_ns();
	struct pollfd wait = {.fd = fd, .events = events};

	if (now_ns >= deadline_ns)
		return -ETIMEDOUT;
	/* Rounded up, so that it does not turn in circles. */
	const int got = poll(&wait, 1, (int)((deadline_ns - now_ns) / NS_PER_MS + 1));
	return got < 0 && errno != EINTR ? -errno : 0;
}

static int send_all(int fd, const char *text, size_t length, uint64_t deadline_ns)
{
	int status = 0;

	while (length && status == 0) {
		const ssize_t put = send(fd, text, length, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (put < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		text += put > 0 ? put : 0;
		length -= put > 0 ? (size_t)put : 0;
		if (length)
			status = wait_for(fd, POLLOUT, deadline_ns);
	}
	return status;
}

static int make_room(struct reply *reply)
{
	if (reply->count < reply->room)
		return 0;
	if (reply->room >= API_REPLY_MAX)
		return -EPROTO;
	const size_t room = reply->room ? reply->room * 2 : ROOM_FIRST;
	char *more = realloc(reply->text, room);
	if (!more)
		return -ENOMEM;
	reply->text = more;
	reply->room = room;
	return 0;
}

/* Up to the newline, which is its end. */
static int receive(int fd, struct reply *reply, uint64_t deadline_ns)
{
	for (;;) {
		int status = make_room(reply);

		if (status < 0)
			return status;
		const ssize_t got = recv(
			fd, reply->text + reply->count, reply->room - reply->count, MSG_DONTWAIT);
		if (got == 0)
			return -ECONNRESET;
		if (got < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		reply->count += got > 0 ? (size_t)got : 0;
		if (got > 0 && reply->text[reply->count - 1] == '\n')
			return 0;
		if (got < 0)
			status = wait_for(fd, POLLIN, deadline_ns);
		if (status < 0)
			return status;
	}
}

static int look(const struct reply *reply, json_t **ret_reply, struct error *err)
{
	json_t *object = json_loadb(reply->text, reply->count, JSON_REJECT_DUPLICATES, NULL);
	const char *why = json_string_value(json_object_get(object, "error"));
	int status = 0;

	if (!json_is_true(json_object_get(object, "ok")))
		status = why ? error_set(err, EREMOTEIO, "%s", why)
			     : error_set(err, EPROTO, "the machine's answer makes no sense");
	if (status < 0)
		json_decref(object);
	else
		*ret_reply = object;
	return status;
}

int api_wait_end(int fd, unsigned timeout_ms)
{
	const uint64_t deadline_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
	char bytes[256];
	ssize_t got;

	while ((got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT))) {
		if (got < 0 && errno != EAGAIN && errno != EINTR)
			return 0;
		const int status = got < 0 ? wait_for(fd, POLLIN, deadline_ns) : 0;
		if (status < 0)
			return status;
	}
	return 0;
}

int api_ask(
	int fd, const json_t *request, unsigned timeout_ms, json_t **ret_reply, struct error *err)
{
	const uint64_t deadline_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
	AUTO_FREE char *text = json_dumps(request, JSON_COMPACT);
	struct reply reply = {0};

	if (!text)
		return error_set(err, ENOMEM, "no memory");
	const size_t length = strlen(text);
	text[length] = '\n'; /* in place of its end */
	int status = send_all(fd, text, length + 1, deadline_ns);
	if (status == 0)
		status = receive(fd, &reply, deadline_ns);
	if (status == -ETIMEDOUT)
		error_set(err, ETIMEDOUT, "the machine does not answer");
	else if (status < 0)
		error_set_errno(err, -status, "no answer from the machine");
	else
		status = look(&reply, ret_reply, err);
	free(reply.text);
	return status;
}
