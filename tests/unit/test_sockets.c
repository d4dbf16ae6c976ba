/*
 * backend/: listening sockets, the port at a Unix socket, the sockets of a vsock.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/listener.h"
#include "backend/port.h"
#include "backend/vsock.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/loop.h"
#include "device/stream.h"
#include "device/vsock.h"
#include "tests/turns.h"

struct fixture {
	struct loop *loop;
	char dir[64], path[80];
	struct port_socket *port;
	struct vsock_sockets *sockets;
	struct vsock_host *host;
	/* the device's side */
	bool connected;
	unsigned connections, rooms;
	size_t room, count;
	uint8_t bytes[300000];
	int fd;
	uint32_t wanted;
};

static void stop(void *opaque)
{
	loop_stop(((struct fixture *)opaque)->loop);
}

static void run(struct fixture *f)
{
	run_turns(f->loop, 8);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->dir, "/tmp/lodge-sockets-XXXXXX");
	if (!mkdtemp(f->dir) || loop_create(&f->loop) < 0)
		return -1;
	snprintf(f->path, sizeof(f->path), "%s/s", f->dir);
	f->fd = -1;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	port_socket_close(f->port);
	vsock_sockets_close(f->sockets);
	loop_free(f->loop);
	assert_int_equal(rmdir(f->dir), 0); /* the sockets are gone */
	free(f);
	return 0;
}

static int caller(struct fixture *f)
{
	int fd = listener_connect(f->path);

	assert_true(fd >= 0);
	return fd;
}

static bool is_closed(int fd)
{
	char byte;

	return read(fd, &byte, 1) == 0;
}

/* ---- listening ---- */

static void ignore(void *opaque, int fd)
{
	close(fd);
}

static void test_listener(void **state)
{
	struct fixture *f = *state;
	struct listener *listener, *other = NULL;
	struct error err;
	struct stat st;
	char name[200];

	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = 0;
	assert_int_equal(listener_open(f->loop, name, ignore, NULL, &other, &err), -ENAMETOOLONG);
	assert_int_equal(listener_open(f->loop, "", ignore, NULL, &other, &err), -ENAMETOOLONG);
	assert_int_equal(listener_open(f->loop, "/nowhere/s", ignore, NULL, &other, &err), -ENOENT);
	assert_int_equal(listener_open(f->loop, f->path, ignore, NULL, &listener, &err), 0);
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	/* Somebody's. */
	assert_int_equal(listener_open(f->loop, f->path, ignore, NULL, &other, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, f->path));
	run(f);
	listener_close(listener);
	assert_int_equal(stat(f->path, &st), -1);
	/* Nobody's any more: a process that died leaves one behind. */
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	struct sockaddr sa = {.sa_family = AF_UNIX};
	char address[sizeof(sa.sa_family) + 108] = {0};
	memcpy(address, &sa.sa_family, sizeof(sa.sa_family));
	strcpy(address + sizeof(sa.sa_family), f->path);
	assert_int_equal(bind(fd, (struct sockaddr *)address, sizeof(address)), 0);
	close(fd);
	assert_int_equal(listener_open(f->loop, f->path, ignore, NULL, &listener, &err), 0);
	listener_close(listener);
	/* A file that is no socket is nobody's to remove. */
	fd = open(f->path, O_CREAT | O_WRONLY, 0600);
	close(fd);
	assert_int_equal(listener_open(f->loop, f->path, ignore, NULL, &other, &err), -EADDRINUSE);
	assert_int_equal(unlink(f->path), 0);
	assert_null(other);
}

/* ---- the port ---- */

static size_t device_receive(void *opaque, const uint8_t *bytes, size_t count)
{
	struct fixture *f = opaque;
	size_t part = MIN(count, f->room);

	memcpy(f->bytes + f->count, bytes, part);
	f->count += part;
	f->room -= part;
	return part;
}

static void device_room(void *opaque)
{
	((struct fixture *)opaque)->rooms++;
}

static void device_connected(void *opaque, bool connected)
{
	struct fixture *f = opaque;

	f->connected = connected;
	f->connections += connected;
}

static const struct stream_ops *port_ops(struct fixture *f)
{
	return port_socket_stream(f->port)->ops;
}

static void attach(struct fixture *f, bool on)
{
	const struct stream_peer peer = {.receive = device_receive,
		.room = device_room,
		.connected = device_connected,
		.opaque = f};

	port_ops(f)->attach(port_socket_stream(f->port), on ? &peer : NULL);
}

static void open_port(struct fixture *f)
{
	assert_int_equal(port_socket_open(f->loop, f->path, &f->port, NULL), 0);
	attach(f, true);
	f->room = SIZE_MAX;
}

static void assert_got(struct fixture *f, const char *text)
{
	assert_int_equal(f->count, strlen(text));
	assert_memory_equal(f->bytes, text, strlen(text));
	f->count = 0;
}

static void test_port(void **state)
{
	struct fixture *f = *state;
	char text[10] = {0};

	open_port(f);
	assert_false(f->connected);
	int first = caller(f), second = caller(f);
	run(f);
	assert_true(f->connected && f->connections == 1);
	assert_int_equal(write(first, "one", 3), 3);
	assert_int_equal(write(second, "two", 3), 3);
	run(f);
	assert_got(f, "one");
	assert_int_equal(
		port_ops(f)->send(port_socket_stream(f->port), (const uint8_t *)"out", 3), 3);
	assert_int_equal(read(first, text, sizeof(text)), 3);
	assert_string_equal(text, "out");
	/* The next one's turn, when all of the first's has been read. */
	f->room = 2;
	assert_int_equal(write(first, "last", 4), 4);
	close(first);
	run(f);
	run(f);
	assert_got(f, "la");
	assert_int_equal(f->connections, 1);
	f->room = SIZE_MAX;
	port_ops(f)->ready(port_socket_stream(f->port));
	run(f);
	assert_memory_equal(f->bytes, "sttwo", 5);
	assert_int_equal(f->connections, 2);
	/* Half closed, he still listens. */
	shutdown(second, SHUT_WR);
	run(f);
	assert_true(f->connected);
	assert_int_equal(
		port_ops(f)->send(port_socket_stream(f->port), (const uint8_t *)"out", 3), 3);
	assert_int_equal(read(second, text, sizeof(text)), 3);
	close(second);
	run(f);
	assert_false(f->connected);
	assert_int_equal(
		port_ops(f)->send(port_socket_stream(f->port), (const uint8_t *)"out", 3), 3);
}

static void test_port_full(void **state)
{
	struct fixture *f = *state;
	static uint8_t block[100000], back[1000000];
	size_t sent = 0, got = 0;

	open_port(f);
	int fd = caller(f);
	run(f);
	for (unsigned i = 0; i < sizeof(block); i++)
		block[i] = (uint8_t)(i % 251);
	while (f->rooms < 5) {
		size_t part =
			port_ops(f)->send(port_socket_stream(f->port), block + sent % 251, 50000);
		sent += part;
		if (part == 50000)
			continue;
		const unsigned before = f->rooms;
		run(f);
		assert_int_equal(f->rooms, before);
		ssize_t n;
		while ((n = read(fd, back, sizeof(back))) > 0)
			for (ssize_t i = 0; i < n; i++)
				assert_int_equal(back[i], got++ % 251);
		run(f);
		assert_int_equal(f->rooms, before + 1);
	}
	assert_int_equal(got, sent);
	/* And the other way. */
	f->room = 0;
	for (sent = 0; sent < sizeof(f->bytes) - sizeof(block);) {
		ssize_t n = write(fd, block + sent % 251, 10000);
		run(f);
		f->room = 9999;
		port_ops(f)->ready(port_socket_stream(f->port));
		sent += n > 0 ? (size_t)n : 0;
	}
	f->room = SIZE_MAX;
	port_ops(f)->ready(port_socket_stream(f->port));
	run(f);
	assert_int_equal(f->count, sent);
	for (size_t i = 0; i < sent; i++)
		assert_int_equal(f->bytes[i], i % 251);
	close(fd);
}

/* The guest resets: the machine goes, and another comes; nobody notices. */
static void test_port_attach(void **state)
{
	struct fixture *f = *state;

	open_port(f);
	int fd = caller(f);
	run(f);
	attach(f, false);
	assert_int_equal(write(fd, "meanwhile", 9), 9);
	run(f);
	assert_int_equal(f->count, 0);
	f->connected = false;
	attach(f, true);
	assert_true(f->connected);
	run(f);
	assert_got(f, "meanwhile");
	close(fd);
}

/* ---- vsock ---- */

static void device_connect(void *opaque, int fd, uint32_t port)
{
	struct fixture *f = opaque;

	f->fd = fd;
	f->wanted = port;
}

static void open_sockets(struct fixture *f)
{
	const struct vsock_peer peer = {.connect = device_connect, .opaque = f};

	assert_int_equal(vsock_sockets_open(f->loop, f->path, &f->sockets, NULL), 0);
	f->host = vsock_sockets_host(f->sockets);
	f->host->ops->attach(f->host, &peer);
}

static void test_connect(void **state)
{
	struct fixture *f = *state;
	char text[40] = {0};

	open_sockets(f);
	int fd = caller(f);
	assert_int_equal(write(fd, "CONN", 4), 4);
	run(f);
	assert_int_equal(f->fd, -1);
	/* What comes behind the line is the connection's. */
	assert_int_equal(write(fd, "ECT 4294967295\nbytes", 20), 20);
	run(f);
	assert_true(f->fd >= 0);
	assert_true(f->wanted == UINT32_MAX);
	assert_int_equal(read(f->fd, text, sizeof(text)), 5);
	assert_string_equal(text, "bytes");
	f->host->ops->accepted(f->host, f->fd, 1073741824);
	assert_int_equal(read(fd, text, sizeof(text)), 14);
	assert_memory_equal(text, "OK 1073741824\n", 14);
	close(f->fd);
	assert_true(is_closed(fd));
	close(fd);
}

static void test_connect_refuses(void **state)
{
	struct fixture *f = *state;
	static const char *const lines[] = {"CONNECT \n", "CONNECT 4294967296\n", "CONNECT -1\n",
		"CONNECT 1 \n", "connect 1\n", "CONNECT 1\r\n", "\n",
		"CONNECT 99999999999999999999999\n",
		"GET / HTTP/1.1 and so on for a long line without end"};

	open_sockets(f);
	for (unsigned i = 0; i < ARRAY_SIZE(lines); i++) {
		int fd = caller(f);
		assert_true(write(fd, lines[i], strlen(lines[i])) > 0);
		run(f);
		struct pollfd hung_up = {.fd = fd};
		assert_int_equal(poll(&hung_up, 1, 0), 1);
		close(fd);
	}
	assert_int_equal(f->fd, -1);
	int fd = caller(f);
	shutdown(fd, SHUT_WR);
	run(f);
	assert_true(is_closed(fd));
	close(fd);
	/* Nobody is there to connect to. */
	f->host->ops->attach(f->host, NULL);
	fd = caller(f);
	assert_int_equal(write(fd, "CONNECT 1\n", 10), 10);
	run(f);
	assert_true(is_closed(fd));
	close(fd);
}

/* Half a line is no reason to look again and again. */
static void test_half_a_line(void **state)
{
	struct fixture *f = *state;
	struct timespec before, after;

	open_sockets(f);
	int fd = caller(f);
	assert_int_equal(write(fd, "CONN", 4), 4);
	run(f);
	struct loop_timer *timer = loop_timer_create(f->loop, stop, f);
	loop_timer_arm(timer, clock_monotonic_ns() + 300000000);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
	loop_run(f->loop);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
	const int64_t spent_ns =
		(after.tv_sec - before.tv_sec) * 1000000000ll + after.tv_nsec - before.tv_nsec;
	assert_true(spent_ns < 10000000);
	loop_timer_free(timer);
	for (const char *rest = "ECT 80\n"; *rest; rest++) {
		assert_int_equal(write(fd, rest, 1), 1);
		run(f);
	}
	assert_true(f->fd >= 0 && f->wanted == 80);
	close(f->fd);
	close(fd);
}

/* Those who say nothing keep nobody out for long. */
static void test_silent_callers(void **state)
{
	struct fixture *f = *state;
	int fd[VSOCK_WAITING_MAX + 2];

	open_sockets(f);
	for (unsigned i = 0; i < ARRAY_SIZE(fd); i++) {
		fd[i] = caller(f);
		run(f);
	}
	int last = fd[ARRAY_SIZE(fd) - 1];
	assert_int_equal(write(last, "CONNECT 7\n", 10), 10);
	run(f);
	assert_int_equal(f->fd, -1);
	close(fd[0]);
	close(fd[1]);
	run(f);
	assert_true(f->fd >= 0 && f->wanted == 7);
	close(f->fd);
	for (unsigned i = 2; i < ARRAY_SIZE(fd); i++)
		close(fd[i]);
	run(f);
}

static void test_open(void **state)
{
	struct fixture *f = *state;
	struct listener *listener;
	char path[100];

	open_sockets(f);
	assert_int_equal(f->host->ops->open(f->host, 77), -ENOENT);
	snprintf(path, sizeof(path), "%s_4294967295", f->path);
	assert_int_equal(listener_open(f->loop, path, ignore, NULL, &listener, NULL), 0);
	int fd = f->host->ops->open(f->host, UINT32_MAX);
	assert_true(fd >= 0);
	run(f);
	assert_true(is_closed(fd));
	close(fd);
	listener_close(listener);
	struct error err;
	char name[VSOCK_PATH_MAX + 2];
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = 0;
	struct vsock_sockets *none = NULL;
	assert_int_equal(vsock_sockets_open(f->loop, name, &none, &err), -ENAMETOOLONG);
	assert_null(none);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_listener, setup, teardown),
		cmocka_unit_test_setup_teardown(test_port, setup, teardown),
		cmocka_unit_test_setup_teardown(test_port_full, setup, teardown),
		cmocka_unit_test_setup_teardown(test_port_attach, setup, teardown),
		cmocka_unit_test_setup_teardown(test_connect, setup, teardown),
		cmocka_unit_test_setup_teardown(test_connect_refuses, setup, teardown),
		cmocka_unit_test_setup_teardown(test_half_a_line, setup, teardown),
		cmocka_unit_test_setup_teardown(test_silent_callers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_open, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
