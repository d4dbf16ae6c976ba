/*
 * Fuzz target: clients of the server of calls: requests that make sense and that do not, in pieces; clients that read
 * slowly, or not, that vanish, that are too many; calls that are answered at once and later, in any order.
 *
 * What must hold: nothing crashes, no descriptor is left; a request that comes through has arguments of its call's types
 * only; a client that keeps reading gets one answer to each line, each an object with "ok", in order.
 */
#include "tests/fuzz/rig.h"

#include "api/server.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "tests/turns.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define OPS_MAX	   300
#define CLIENTS	   (API_CLIENTS_MAX + 2)
#define LINE_BYTES 512 /* of a line that is kept count of */
#define HEARD_MAX  4096

struct far {
	int fd; /* -1: none */
	bool good; /* it was never cut off by itself, and sent whole lines only: its answers are counted */
	unsigned asked, answered;
	size_t count;
	char heard[HEARD_MAX];
};

struct target {
	struct loop *loop;
	struct api_server *server;
	struct api_client *kept[API_CLIENTS_MAX];
	struct far far[CLIENTS];
};

/* ---- the machine's side ---- */

static void check_request(const struct api_request *request)
{
	const struct api_argument *a = api_calls[request->call].argument;
	size_t known = 1;

	for (; a->name; a++) {
		const char *text = api_request_text(request, a->name);
		uint64_t number;
		const bool given = api_request_number(request, a->name, &number);

		known += given;
		MUST(a->type == API_TEXT ? !given || (text && *text)
					 : !text && number <= INT64_MAX);
	}
	MUST(json_object_size(request->object) == known);
}

static void handle(void *opaque, struct api_client *client, const struct api_request *request)
{
	struct target *t = opaque;

	check_request(request);
	if (request->call != API_PAUSE) {
		api_server_reply(client, api_reply_ok());
		return;
	}
	for (unsigned i = 0; i < API_CLIENTS_MAX; i++) {
		if (t->kept[i])
			continue;
		t->kept[i] = client;
		return;
	}
	MUST(false); /* more than there are clients */
}

static void answer(struct target *t, unsigned which)
{
	if (t->kept[which])
		api_server_reply(take_ptr(&t->kept[which]), api_reply_error("later"));
}

/* ---- the clients' ---- */

static void close_far(struct far *far)
{
	if (far->fd >= 0)
		close(far->fd);
	far->fd = -1;
}

static void open_far(struct target *t, struct far *far)
{
	int fds[2];

	close_far(far);
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
	*far = (struct far){.fd = fds[1], .good = true};
	api_server_add(t->server, fds[0]);
}

static void check_answer(const char *line, size_t bytes)
{
	json_t *reply = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, NULL);
	const json_t *ok = json_object_get(reply, "ok");

	MUST(json_is_boolean(ok) &&
		(json_is_true(ok) || json_string_length(json_object_get(reply, "error"))));
	json_decref(reply);
}

/* False: there is nothing now. */
static bool read_far(struct far *far, size_t most)
{
	char *end;

	if (far->fd < 0)
		return false;
	const ssize_t got =
		read(far->fd, far->heard + far->count, MIN(most, HEARD_MAX - far->count));
	if (got <= 0) {
		if (got == 0 || errno != EAGAIN)
			close_far(
				far); /* it was cut off: a line was too long, or others had to come in */
		return false;
	}
	far->count += (size_t)got;
	while ((end = memchr(far->heard, '\n', far->count))) {
		const size_t bytes = (size_t)(end + 1 - far->heard);

		check_answer(far->heard, bytes - 1);
		far->answered++;
		far->count -= bytes;
		memmove(far->heard, end + 1, far->count);
	}
	MUST(far->count < HEARD_MAX);
	return true;
}

static bool say(struct far *far, const void *bytes, size_t count)
{
	const bool whole = far->fd >= 0 && send(far->fd, bytes, count,
						   MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)count;

	far->good &= whole;
	return whole;
}

/* A line of pieces of requests, and of anything. */
static void say_line(struct far *far, struct rig_input *in, unsigned pieces)
{
	static const char *const words[] = {"{\"do\":\"status\"}", "{\"do\":\"pause\"}",
		"{\"do\":\"balloon\",\"target_bytes\":", "1048576", "}", "{", "\"do\"", ":",
		"\"balloon\"", ",", "\"target_bytes\"", "[", "]", "\"stop\"", "-1", "1e9",
		"\"\\u0000\"", "\"\\ud800\"", "null", " ", "\r", "\xff", "99999999999999999999",
		"\"resume\"", "\"x\""};
	char line[LINE_BYTES];
	size_t count = 0;
	bool blank = true;

	for (unsigned i = 0; i < pieces; i++) {
		const unsigned which = (unsigned)rig_take(in, 1);
		const char raw[2] = {(char)rig_take(in, which >= 200 ? 1 : 0), 0};
		const char *word = which < 200 ? words[which % ARRAY_SIZE(words)] : raw;

		if (*word == '\n' || count + strlen(word) + 2 > sizeof(line))
			continue;
		memcpy(line + count, word, strlen(word));
		count += strlen(word);
	}
	for (size_t i = 0; i < count; i++)
		blank &= line[i] == ' ' || line[i] == '\t' || line[i] == '\r';
	line[count++] = '\n';
	if (say(far, line, count))
		far->asked += !blank;
}

/* From here on nobody counts. */
static void babble(struct far *far, struct rig_input *in, uint8_t how)
{
	uint8_t bytes[64];
	static const uint8_t open[8192];

	far->good = false;
	rig_take_bytes(in, bytes, sizeof(bytes));
	say(far, bytes, 1 + how % sizeof(bytes));
	for (unsigned i = 0; how & 128 && i < 9; i++)
		say(far, open, sizeof(open));
}

/* ---- one input ---- */

static void run(struct target *t)
{
	run_turns(t->loop, 3);
}

static void one_op(struct target *t, struct rig_input *in)
{
	const uint8_t op = (uint8_t)rig_take(in, 1), how = (uint8_t)rig_take(in, 1);
	struct far *far = &t->far[op / 8 % CLIENTS];

	switch (op % 8) {
	case 0: open_far(t, far); break;
	case 1:
	case 2:
	case 3: say_line(far, in, 1 + how % 12); break;
	case 4:
		if (how >= 192)
			babble(far, in, how);
		else if (how >= 160)
			close_far(far);
		else if (how >= 128 && far->fd >= 0)
			far->good = false, shutdown(far->fd, SHUT_RD);
		break;
	case 5: answer(t, how % API_CLIENTS_MAX); break;
	case 6: read_far(far, 1 + how); break;
	default: run(t);
	}
}

static void finish(struct target *t)
{
	bool more = true;

	for (unsigned i = 0; i < API_CLIENTS_MAX; i++)
		answer(t, i);
	for (unsigned turn = 0; more && turn < 1000; turn++) {
		run(t);
		for (unsigned i = 0; i < API_CLIENTS_MAX; i++)
			answer(t, i);
		more = false;
		for (unsigned i = 0; i < CLIENTS; i++)
			more |= read_far(&t->far[i], HEARD_MAX);
	}
	for (unsigned i = 0; i < CLIENTS; i++) {
		struct far *far = &t->far[i];

		MUST(!far->good || far->fd < 0 || far->answered == far->asked);
		close_far(far);
	}
	run(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	static struct target t;

	log_level_set(LOG_LEVEL_ERROR);
	if (!t.loop)
		MUST(loop_create(&t.loop) == 0);
	const int before = rig_lowest_fd();
	MUST(api_server_create(t.loop, handle, &t, &t.server) == 0);
	for (unsigned i = 0; i < CLIENTS; i++)
		t.far[i] = (struct far){.fd = -1};
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&t, &in);
	finish(&t);
	api_server_free(t.server);
	MUST(rig_lowest_fd() == before);
	return 0;
}
