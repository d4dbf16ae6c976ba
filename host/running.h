/*
 * Machines that run, as their control sockets (docs/control.md): that of a machine with a name is `control` in its
 * directory (clone.h), so that it is found by whoever finds the machine, and goes with it.
 */
#ifndef LODGE_HOST_RUNNING_H
#define LODGE_HOST_RUNNING_H

#include "backend/listener.h"

struct error;

/* Where a socket is, as the system's calls can have it: a directory with a long name is open, and the path goes
 * through it. */
struct running_socket {
	int folder; /* -1: none */
	char path[LISTENER_PATH_MAX + 1];
};

/* Errors: with a line for people. */
MUST_CHECK int running_socket_in(
	const char *folder, struct running_socket *ret_socket, struct error *err);
void running_socket_done(struct running_socket *socket);

/* Connect to the machine of that name, or at that socket, whose path has a slash in it. A non-blocking descriptor.
 * Errors: with a line for people; -ESRCH: it does not run. */
MUST_CHECK int running_connect(const char *machine, struct error *err);

#endif
