/*
 * The far end of a connection of a guest's, for hosts that have no programs of their own:
 *
 *	peer echo tcp:PORT | unix:PATH | to:PATH    sends back what comes; on this host's loopback, at a Unix socket, or
 *	                                            to one that another program listens at
 *	peer clock PORT                             for each byte that comes the monotonic clock, 32 characters of ns
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int listen_tcp(const char *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
		die(port);
	return fd;
}

static int open_unix(const char *path, int connects)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0)
		die(path);
	if (connects) {
		for (int i = 0; connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0; i++) {
			if (i == 600)
				die(path);
			usleep(100000);
		}
		return fd;
	}
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
		die(path);
	return fd;
}

static void echo(int fd)
{
	static char buffer[65536];
	ssize_t got;

	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		for (ssize_t at = 0, put; at < got; at += put) {
			put = write(fd, buffer + at, (size_t)(got - at));
			if (put < 0)
				return;
		}
}

static void tell_time(int fd)
{
	char line[33], byte;
	const int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	while (read(fd, &byte, 1) == 1) {
		struct timespec now;

		clock_gettime(CLOCK_MONOTONIC, &now);
		snprintf(line, sizeof(line), "%32lld", now.tv_sec * 1000000000ll + now.tv_nsec);
		if (write(fd, line, 32) != 32)
			return;
	}
}

static void serve(int listener, void (*handle)(int fd))
{
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			die("accept");
		if (fork() == 0) {
			handle(fd);
			exit(0);
		}
		close(fd);
	}
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(argv[1], "clock"))
		serve(listen_tcp(argv[2]), tell_time);
	if (!strncmp(argv[2], "tcp:", 4))
		serve(listen_tcp(argv[2] + 4), echo);
	if (!strncmp(argv[2], "unix:", 5))
		serve(open_unix(argv[2] + 5, 0), echo);
	if (strncmp(argv[2], "to:", 3))
		return 2;
	echo(open_unix(argv[2] + 3, 1));
	return 0;
}
