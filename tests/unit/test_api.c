/*
 * api/: what a request may be, and who may be a client of the server.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/client.h"
#include "api/server.h"
#include "base/error.h"
#include "tests/turns.h"

#define KEPT 64

struct fixture {
	struct loop *loop;
	struct api_server *server;
	/* What was asked for: pauses are answered when the test says so, all else at once. */
	unsigned asked;
	struct api_client *kept[KEPT];
	unsigned keeps;
};

static void run(struct fixture *f)
{
	run_turns(f->loop, 20);
}

static void handle(void *opaque, struct api_client *client, const struct api_request *request)
{
	struct fixture *f = opaque;

	f->asked++;
	if (request->call != API_PAUSE) {
		json_t *reply = api_reply_ok();

		json_object_set_new(reply, "call", json_string(api_calls[request->call].name));
		api_server_reply(client, reply);
		return;
	}
	assert_true(f->keeps < KEPT);
	f->kept[f->keeps++] = client;
}

static void answer_all(struct fixture *f)
{
	while (f->keeps)
		api_server_reply(f->kept[--f->keeps], api_reply_error("no"));
	run(f);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	if (loop_create(&f->loop) < 0 || api_server_create(f->loop, handle, f, &f->server) < 0)
		return -1;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	answer_all(f);
	api_server_free(f->server);
	loop_free(f->loop);
	free(f);
	return 0;
}

/* The far end of a new client's connection. */
static int caller(struct fixture *f)
{
	int fds[2];

	assert_int_equal(
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
	api_server_add(f->server, fds[0]);
	return fds[1];
}

static void say(int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* All that is there to read; false: and then the end. */
static bool hear(struct fixture *f, int fd, char text[static 4096])
{
	size_t count = 0;
	ssize_t got;

	run(f);
	while (count < 4095 && (got = read(fd, text + count, 4095 - count)) > 0)
		count += (size_t)got;
	text[count] = 0;
	return got > 0 || (got < 0 && errno == EAGAIN);
}

static void expect(struct fixture *f, int fd, const char *wanted)
{
	char text[4096];

	assert_true(hear(f, fd, text));
	assert_string_equal(text, wanted);
}

static bool is_closed(struct fixture *f, int fd)
{
	char text[4096];

	return !hear(f, fd, text);
}

/* ---- requests ---- */

static void test_requests(void **state)
{
	static const struct {
		const char *text, *error; /* NULL: it is one */
	} cases[] = {
		{"{\"do\":\"status\"}", NULL},
		{" { \"do\" : \"stop\" } \r", NULL},
		{"{\"do\":\"balloon\",\"target_bytes\":1048576}", NULL},
		{"{\"do\":\"balloon\",\"target_bytes\":0}", NULL},
		{"{\"do\":\"attach\",\"disk\":\"/x\",\"device\":\"d\"}", NULL},
		{"{\"do\":\"detach\",\"device\":\"d\"}", NULL},
		{"{\"do\":\"detach\",\"device\":\"\"}", "a text"},
		{"{\"do\":\"detach\",\"device\":1}", "a text"},
		{"{\"do\":\"detach\",\"device\":[]}", "a text"},
		{"{\"do\":\"detach\"}", "wants device"},
		{"{\"do\":\"attach\",\"file\":\"/x\"}", "no argument 'file'"},
		{"", "no JSON"},
		{"{", "no JSON"},
		{"status", "no JSON"},
		{"{\"do\":\"status\"} x", "no JSON"},
		{"{\"do\":\"status\",\"do\":\"stop\"}", "no JSON"},
		{"{\"do\":\"sta\\u0000tus\"}", "no JSON"},
		{"{\"do\":\"\xff\"}", "no JSON"},
		{"[\"do\"]", "a request is"},
		{"{}", "a request is"},
		{"{\"do\":1}", "a request is"},
		{"{\"DO\":\"status\"}", "a request is"},
		{"{\"do\":\"Status\"}", "no call 'Status'"},
		{"{\"do\":\"\"}", "no call ''"},
		{"{\"do\":\"status\",\"x\":1}", "no argument 'x'"},
		{"{\"do\":\"balloon\",\"target_bytes\":-1}", "whole number"},
		{"{\"do\":\"balloon\",\"target_bytes\":1.0}", "whole number"},
		{"{\"do\":\"balloon\",\"target_bytes\":\"1\"}", "whole number"},
		{"{\"do\":\"balloon\",\"target_bytes\":null}", "whole number"},
		{"{\"do\":\"balloon\",\"target_bytes\":99999999999999999999}", "no JSON"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct api_request request = {0};
		struct error err;

		const int status =
			api_request_parse(cases[i].text, strlen(cases[i].text), &request, &err);
		if (status != (cases[i].error ? -EINVAL : 0))
			fail_msg("%s: %d", cases[i].text, status);
		if (cases[i].error && !strstr(err.text, cases[i].error))
			fail_msg("%s: %s", cases[i].text, err.text);
		api_request_done(&request);
	}
}

static void test_arguments(void **state)
{
	static const char text[] = "{\"do\":\"balloon\",\"target_bytes\":9223372036854775807}";
	struct api_request request;
	struct error err;
	uint64_t number;

	assert_int_equal(api_request_parse(text, sizeof(text) - 1, &request, &err), 0);
	assert_int_equal(request.call, API_BALLOON);
	assert_true(api_request_number(&request, "target_bytes", &number));
	assert_int_equal(number, INT64_MAX);
	assert_false(api_request_number(&request, "other", &number));
	assert_null(api_request_text(&request, "target_bytes"));
	api_request_done(&request);
}

static void test_error_of_any_text(void **state)
{
	json_t *reply = api_reply_error("a\xff\xc3 \"b\"");

	assert_string_equal(json_string_value(json_object_get(reply, "error")), "a?? \"b\"");
	json_decref(reply);
}

/* ---- the server ---- */

static void test_lines(void **state)
{
	struct fixture *f = *state;
	int fd = caller(f);

	say(fd, "{\"do\":\"sta");
	expect(f, fd, "");
	say(fd, "tus\"}\n\n \r\n{\"do\":\"stop\"}\nrubbish\n{\"do\":\"resume\"}\n");
	char text[4096];
	assert_true(hear(f, fd, text));
	assert_non_null(
		strstr(text, "{\"ok\":true,\"call\":\"status\"}\n{\"ok\":true,\"call\":\"stop\"}\n"
			     "{\"ok\":false,\"error\":\"that is no JSON"));
	assert_non_null(strstr(text, "\n{\"ok\":true,\"call\":\"resume\"}\n"));
	/* No newline at the end is as good. */
	say(fd, "{\"do\":\"status\"}");
	assert_int_equal(shutdown(fd, SHUT_WR), 0);
	assert_false(hear(f, fd, text));
	assert_string_equal(text, "{\"ok\":true,\"call\":\"status\"}\n");
	close(fd);
}

/* One call at a time of a client; others do not wait. */
static void test_slow_call(void **state)
{
	struct fixture *f = *state;
	int slow = caller(f), other = caller(f);

	say(slow, "{\"do\":\"pause\"}\n{\"do\":\"status\"}\n");
	expect(f, slow, "");
	assert_int_equal(f->asked, 1);
	say(other, "{\"do\":\"status\"}\n");
	expect(f, other, "{\"ok\":true,\"call\":\"status\"}\n");
	answer_all(f);
	expect(f, slow, "{\"ok\":false,\"error\":\"no\"}\n{\"ok\":true,\"call\":\"status\"}\n");
	/* Who goes meanwhile. */
	say(slow, "{\"do\":\"pause\"}\n{\"do\":\"status\"}\n");
	run(f);
	close(slow);
	run(f);
	answer_all(f);
	assert_int_equal(f->asked, 4);
	close(other);
}

static void test_long_line(void **state)
{
	struct fixture *f = *state;
	char block[4096], text[4096];
	int fd = caller(f);

	memset(block, 'x', sizeof(block) - 1);
	block[sizeof(block) - 1] = 0;
	for (unsigned i = 0; i < 20; i++) {
		(void)!send(fd, block, sizeof(block) - 1, MSG_NOSIGNAL);
		run(f);
	}
	assert_false(hear(f, fd, text));
	assert_non_null(strstr(text, "a line of at most 65536 bytes"));
	assert_int_equal(f->asked, 0);
	close(fd);
}

/* It is not listened to until it has read its answers. */
static void test_never_reads(void **state)
{
	struct fixture *f = *state;
	static const char ask[] = "{\"do\":\"status\"}\n";
	int deaf = caller(f), other = caller(f);
	const int small = 1;
	unsigned before;

	assert_int_equal(setsockopt(deaf, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), 0);
	do {
		before = f->asked;
		for (unsigned i = 0; i < 100; i++)
			(void)!send(deaf, ask, sizeof(ask) - 1, MSG_NOSIGNAL);
		run(f);
		assert_true(f->asked < 100000);
	} while (f->asked != before);
	say(other, ask);
	expect(f, other, "{\"ok\":true,\"call\":\"status\"}\n");
	char text[4096];
	for (unsigned i = 0; i < 100; i++)
		assert_true(hear(f, deaf, text));
	assert_true(f->asked > before + 1); /* it goes on */
	close(deaf);
	close(other);
}

/* A new client takes the place of who has said nothing for longest, but of nobody whose call is under way. */
static void test_many(void **state)
{
	struct fixture *f = *state;
	int fd[API_CLIENTS_MAX + 2];
	unsigned i;

	for (i = 0; i < API_CLIENTS_MAX; i++)
		fd[i] = caller(f);
	say(fd[0], "{\"do\":\"status\"}\n");
	expect(f, fd[0], "{\"ok\":true,\"call\":\"status\"}\n");
	fd[i] = caller(f);
	assert_true(is_closed(f, fd[1]));
	say(fd[i], "{\"do\":\"status\"}\n");
	expect(f, fd[i], "{\"ok\":true,\"call\":\"status\"}\n");
	for (i = 0; i <= API_CLIENTS_MAX; i++)
		if (i != 1)
			say(fd[i], "{\"do\":\"pause\"}\n");
	run(f);
	assert_int_equal(f->keeps, API_CLIENTS_MAX);
	fd[i] = caller(f);
	assert_true(is_closed(f, fd[i]));
	answer_all(f);
	expect(f, fd[0], "{\"ok\":false,\"error\":\"no\"}\n");
	for (i = 0; i < ARRAY_SIZE(fd); i++)
		close(fd[i]);
	run(f);
}

static void test_other_user(void **state)
{
	struct fixture *f = *state;
	int fds[2];

	if (geteuid() != 0) {
		print_message("NOT CHECKED: a client of another user (not root)\n");
		skip();
	}
	assert_int_equal(seteuid(65534), 0);
	const int status = socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds);
	assert_int_equal(seteuid(0), 0);
	assert_int_equal(status, 0);
	api_server_add(f->server, fds[0]);
	assert_true(is_closed(f, fds[1]));
	close(fds[1]);
}

static void test_deaf(void **state)
{
	struct fixture *f = *state;
	int fd = caller(f);

	api_server_deafen(f->server);
	say(fd, "{\"do\":\"status\"}\n");
	expect(f, fd, "");
	assert_int_equal(f->asked, 0);
	assert_true(is_closed(f, caller(f)));
	close(fd);
}

/* ---- the client ---- */

static void *serve(void *opaque)
{
	loop_run(((struct fixture *)opaque)->loop);
	return NULL;
}

static void test_client(void **state)
{
	struct fixture *f = *state;
	json_t *status = json_pack("{s:s}", "do", "status"),
	       *none = json_pack("{s:s}", "do", "none"), *reply,
	       *pause = json_pack("{s:s}", "do", "pause");
	int fd = caller(f);
	struct error err;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, serve, f), 0);
	assert_int_equal(api_ask(fd, status, 10000, &reply, &err), 0);
	assert_string_equal(json_string_value(json_object_get(reply, "call")), "status");
	json_decref(reply);
	assert_int_equal(api_ask(fd, none, 10000, &reply, &err), -EREMOTEIO);
	assert_string_equal(err.text, "there is no call 'none'");
	assert_int_equal(api_ask(fd, pause, 50, &reply, &err), -ETIMEDOUT);
	assert_int_equal(api_wait_end(fd, 50), -ETIMEDOUT);
	loop_stop(f->loop);
	pthread_join(thread, NULL);
	answer_all(f);
	api_server_free(f->server);
	f->server = NULL;
	assert_int_equal(api_wait_end(fd, 1000), 0);
	assert_true(api_ask(fd, status, 1000, &reply, &err) < 0);
	close(fd);
	json_decref(status);
	json_decref(none);
	json_decref(pause);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_requests),
		cmocka_unit_test(test_arguments),
		cmocka_unit_test(test_error_of_any_text),
		cmocka_unit_test_setup_teardown(test_lines, setup, teardown),
		cmocka_unit_test_setup_teardown(test_slow_call, setup, teardown),
		cmocka_unit_test_setup_teardown(test_long_line, setup, teardown),
		cmocka_unit_test_setup_teardown(test_never_reads, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_user, setup, teardown),
		cmocka_unit_test_setup_teardown(test_deaf, setup, teardown),
		cmocka_unit_test_setup_teardown(test_client, setup, teardown),
	};

	return cmocka_run_group_tests_name("api", tests, NULL, NULL);
}
