/*
 * See irqfd.h. The epoll set is the only state: each entry carries its eventfd and its line.
 */
#include "machine/irqfd.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#define BATCH	  16
#define STOP_MARK UINT64_MAX

struct irqfds {
	void (*pulse)(void *opaque, unsigned gsi);
	void *opaque;
	int epoll_fd, stop_fd;
	bool started;
	pthread_t thread;
};

static uint64_t pack(unsigned gsi, int eventfd)
{
	return (uint64_t)gsi << 32 | (uint32_t)eventfd;
}

static int change(struct irqfds *fds, int operation, int eventfd, uint64_t mark)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = mark};

	return epoll_ctl(fds->epoll_fd, operation, eventfd, &event) < 0 ? -errno : 0;
}

/* False: stop. The counter is taken first, so that a signal during the pulse makes another one; without
 * waiting, as it may have been removed and read since. */
static bool serve(struct irqfds *fds, uint64_t mark)
{
	eventfd_t count;
	const struct iovec to = {.iov_base = &count, .iov_len = sizeof(count)};

	if (mark == STOP_MARK)
		return false;
	if (preadv2((int)(uint32_t)mark, &to, 1, -1, RWF_NOWAIT) == sizeof(count))
		fds->pulse(fds->opaque, (unsigned)(mark >> 32));
	return true;
}

static void *irqfds_thread(void *opaque)
{
	struct irqfds *fds = opaque;
	struct epoll_event events[BATCH];

	pthread_setname_np(pthread_self(), "irqfd");
	for (;;) {
		int count = epoll_wait(fds->epoll_fd, events, BATCH, -1);

		for (int i = 0; i < count; i++)
			if (!serve(fds, events[i].data.u64))
				return NULL;
	}
}

static int start(struct irqfds *fds)
{
	fds->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	fds->stop_fd = eventfd(0, EFD_CLOEXEC);
	if (fds->epoll_fd < 0 || fds->stop_fd < 0)
		return -errno;
	int status = change(fds, EPOLL_CTL_ADD, fds->stop_fd, STOP_MARK);
	if (status == 0)
		status = -pthread_create(&fds->thread, NULL, irqfds_thread, fds);
	fds->started = status == 0;
	return status;
}

int irqfds_create(struct irqfds **ret_fds, void (*pulse)(void *opaque, unsigned gsi), void *opaque)
{
	struct irqfds *fds = calloc(1, sizeof(*fds));

	if (!fds)
		return -ENOMEM;
	fds->pulse = pulse;
	fds->opaque = opaque;
	fds->epoll_fd = fds->stop_fd = -1;
	int status = start(fds);
	if (status < 0) {
		irqfds_free(fds);
		return status;
	}
	*ret_fds = fds;
	return 0;
}

void irqfds_free(struct irqfds *fds)
{
	if (!fds)
		return;
	if (fds->started) {
		eventfd_write(fds->stop_fd, 1);
		pthread_join(fds->thread, NULL);
	}
	if (fds->epoll_fd >= 0)
		close(fds->epoll_fd);
	if (fds->stop_fd >= 0)
		close(fds->stop_fd);
	free(fds);
}

int irqfds_add(struct irqfds *fds, unsigned gsi, int eventfd)
{
	return change(fds, EPOLL_CTL_ADD, eventfd, pack(gsi, eventfd));
}

int irqfds_remove(struct irqfds *fds, int eventfd)
{
	return change(fds, EPOLL_CTL_DEL, eventfd, 0);
}
