/*
 * Listening sockets: see listener.h.
 */
#include "backend/listener.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG	 64
#define PAUSE_NS (100 * NS_PER_MS) /* when there are no descriptors to be had */

struct listener {
	struct loop *loop;
	struct loop_source *source;
	struct loop_timer *timer;
	int fd;
	bool held;
	void (*accepted)(void *opaque, int fd);
	void *opaque;
	dev_t device; /* the file that is ours; inode 0: none */
	ino_t inode;
	char path[LISTENER_PATH_MAX + 1];
};

static int address_of(const char *path, struct sockaddr_un *ret_address)
{
	if (strlen(path) > LISTENER_PATH_MAX)
		return -ENAMETOOLONG;
	*ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
	memcpy(ret_address->sun_path, path, strlen(path));
	return 0;
}

int listener_connect(const char *path)
{
	struct sockaddr_un address;

	if (address_of(path, &address) < 0)
		return -ENAMETOOLONG;
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	return take_fd(&fd);
}

static void watch(struct listener *listener)
{
	/* What fails here is tried again by the timer. */
	if (loop_change(listener->source, listener->held ? 0 : EPOLLIN) < 0)
		loop_timer_arm(listener->timer, clock_monotonic_ns() + PAUSE_NS);
}

static void resume(void *opaque)
{
	watch(opaque);
}

void listener_hold(struct listener *listener, bool hold)
{
	listener->held = hold;
	watch(listener);
}

static void ready(void *opaque, uint32_t events)
{
	struct listener *listener = opaque;
	const int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd >= 0) {
		listener->accepted(listener->opaque, fd);
		return;
	}
	if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
		return;
	(void)!loop_change(listener->source, 0);
	loop_timer_arm(listener->timer, clock_monotonic_ns() + PAUSE_NS);
}

/* A socket that its server left behind is in nobody's way. */
static void remove_stale(const char *path)
{
	struct stat st;

	if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return;
	AUTO_CLOSE int fd = listener_connect(path);
	if (fd == -ECONNREFUSED)
		unlink(path);
}

static int bind_path(struct listener *listener, struct error *err)
{
	struct sockaddr_un address;
	struct stat st;

	if (address_of(listener->path, &address) < 0)
		return error_set(
			err, ENAMETOOLONG, "no socket's name is as long as '%s'", listener->path);
	listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (listener->fd < 0)
		return error_set_errno(err, errno, "can't make a socket");
	/* Linux gives the file the socket's mode. */
	fchmod(listener->fd, 0600);
	remove_stale(listener->path);
	if (bind(listener->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return error_set_errno(err, errno, "can't make the socket %s", listener->path);
	if (stat(listener->path, &st) == 0) {
		listener->device = st.st_dev;
		listener->inode = st.st_ino;
	}
	return 0;
}

/* With its descriptor bound. */
static int serve(struct listener *listener, struct error *err)
{
	if (listen(listener->fd, BACKLOG) < 0)
		return error_set_errno(err, errno, "can't listen at %s", listener->path);
	listener->timer = loop_timer_create(listener->loop, resume, listener);
	if (!listener->timer)
		return error_set(err, ENOMEM, "no memory for the socket %s", listener->path);
	int status =
		loop_add(listener->loop, listener->fd, EPOLLIN, ready, listener, &listener->source);
	return status < 0 ? error_set_errno(err, -status, "can't wait for %s", listener->path) : 0;
}

/* bind: NULL: that is done. */
static int open_as(const struct listener *as, const char *path,
	int (*bind)(struct listener *listener, struct error *err), struct listener **ret_listener,
	struct error *err)
{
	struct listener *listener = malloc(sizeof(*listener));
	int status = 0;

	if (!listener) {
		if (as->fd >= 0)
			close(as->fd);
		return error_set(err, ENOMEM, "no memory for the socket %s", path);
	}
	*listener = *as;
	strcpy(listener->path, path);
	if (bind)
		status = bind(listener, err);
	if (status == 0)
		status = serve(listener, err);
	if (status < 0) {
		listener_close(listener);
		return status;
	}
	*ret_listener = listener;
	return 0;
}

int listener_open(struct loop *loop, const char *path, void (*accepted)(void *opaque, int fd),
	void *opaque, struct listener **ret_listener, struct error *err)
{
	if (strlen(path) > LISTENER_PATH_MAX || !*path)
		return error_set(err, ENAMETOOLONG, "'%s' is no name for a socket: 1 to %d bytes",
			path, LISTENER_PATH_MAX);
	return open_as(&(struct listener){.loop = loop, .fd = -1, .accepted = accepted, .opaque = opaque},
		path, bind_path, ret_listener, err);
}

int listener_serve(struct loop *loop, int fd, void (*accepted)(void *opaque, int fd), void *opaque,
	struct listener **ret_listener, struct error *err)
{
	return open_as(&(struct listener){.loop = loop, .fd = fd, .accepted = accepted, .opaque = opaque},
		"its port", NULL, ret_listener, err);
}

void listener_close(struct listener *listener)
{
	struct stat st;

	if (!listener)
		return;
	loop_remove(listener->source);
	loop_timer_free(listener->timer);
	if (listener->fd >= 0)
		close(listener->fd);
	/* Not what another has put in its place. */
	if (listener->inode && lstat(listener->path, &st) == 0 && st.st_dev == listener->device &&
		st.st_ino == listener->inode)
		unlink(listener->path);
	free(listener);
}
