/*
 * For guests that have no program for AF_VSOCK: `vsock connect CID PORT` or `vsock listen PORT` copies its standard
 * input to the connection, closes that half at the end, and copies what comes to the standard output.
 * `vsock many CID PORT COUNT` opens that many connections at once, and sends a line on each.
 */
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int vsock_socket(void)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	return fd;
}

static int connect_to(unsigned cid, unsigned port)
{
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
	int fd = vsock_socket();

	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		die("connect");
	return fd;
}

static int listen_at(unsigned port)
{
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
	int fd = vsock_socket();

	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1) < 0)
		die("listen");
	fprintf(stderr, "listening\n");
	int connection = accept(fd, NULL, NULL);
	if (connection < 0)
		die("accept");
	close(fd);
	return connection;
}

static void write_all(int fd, const char *bytes, ssize_t count)
{
	while (count > 0) {
		ssize_t put = write(fd, bytes, (size_t)count);

		if (put < 0)
			die("write");
		bytes += put;
		count -= put;
	}
}

/* The bytes of one read; false: there are no more. */
static int copy(int from, int to)
{
	static char buffer[262144];
	ssize_t got = read(from, buffer, sizeof(buffer));

	if (got < 0)
		die("read");
	write_all(to, buffer, got);
	return got > 0;
}

static void relay(int fd)
{
	struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};

	while (fds[0].fd >= 0) {
		if (poll(fds, 2, -1) < 0)
			die("poll");
		if (fds[1].revents && !copy(0, fd)) {
			shutdown(fd, SHUT_WR);
			fds[1].fd = -1;
		}
		if (fds[0].revents && !copy(fd, 1))
			fds[0].fd = -1;
	}
}

static void many(unsigned cid, unsigned port, unsigned count)
{
	int *fd = calloc(count, sizeof(*fd));
	char line[64];

	for (unsigned i = 0; i < count; i++)
		fd[i] = connect_to(cid, port);
	for (unsigned i = 0; i < count; i++)
		write_all(fd[i], line, snprintf(line, sizeof(line), "line %u\n", i));
	for (unsigned i = 0; i < count; i++) {
		if (read(fd[i], line, sizeof(line)) <= 0 || atoi(line) != (int)i)
			die("answer");
		close(fd[i]);
	}
	printf("%u answered\n", count);
}

int main(int argc, char **argv)
{
	if (argc == 4 && strcmp(argv[1], "connect") == 0)
		relay(connect_to((unsigned)atoi(argv[2]), (unsigned)atoi(argv[3])));
	else if (argc == 3 && strcmp(argv[1], "listen") == 0)
		relay(listen_at((unsigned)atoi(argv[2])));
	else if (argc == 5 && strcmp(argv[1], "many") == 0)
		many((unsigned)atoi(argv[2]), (unsigned)atoi(argv[3]), (unsigned)atoi(argv[4]));
	else
		return 2;
	return 0;
}
