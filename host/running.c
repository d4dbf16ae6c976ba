/*
 * See running.h.
 */
#include "host/running.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "host/names.h"
#include "host/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define SOCKET_NAME "control"

int running_socket_in(const char *folder, struct running_socket *ret_socket, struct error *err)
{
	struct running_socket *s = ret_socket;

	s->folder = -1;
	if ((size_t)snprintf(s->path, sizeof(s->path), "%s/" SOCKET_NAME, folder) < sizeof(s->path))
		return 0;
	s->folder = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (s->folder < 0)
		return error_set_errno(err, errno, "can't open %s", folder);
	snprintf(s->path, sizeof(s->path), "/proc/self/fd/%d/" SOCKET_NAME, s->folder);
	return 0;
}

void running_socket_done(struct running_socket *s)
{
	if (s->folder >= 0)
		close(s->folder);
	s->folder = -1;
}

static int find_named(const char *name, struct running_socket *ret_socket, struct error *err)
{
	AUTO_FREE char *machines = NULL, *folder = NULL;

	if (!name_ok(name))
		return error_set(err, EINVAL,
			"'%s' is no name of a machine, and no path of a socket, which has a '/'",
			name);
	int status = paths_data(&machines, "machines", false, err);
	if (status < 0)
		return status;
	if (asprintf(&folder, "%s/%s", machines, name) < 0) {
		folder = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	return running_socket_in(folder, ret_socket, err);
}

static int find(const char *machine, struct running_socket *ret_socket, struct error *err)
{
	if (!strchr(machine, '/'))
		return find_named(machine, ret_socket, err);
	ret_socket->folder = -1;
	if (strlen(machine) >= sizeof(ret_socket->path))
		return error_set(err, ENAMETOOLONG, "no socket's name is as long as '%s'", machine);
	strcpy(ret_socket->path, machine);
	return 0;
}

int running_connect(const char *machine, struct error *err)
{
	struct running_socket socket;
	int status = find(machine, &socket, err);

	if (status < 0 && status != -ENOENT)
		return status;
	const int fd = status < 0 ? status : listener_connect(socket.path);
	if (status == 0)
		running_socket_done(&socket);
	if (fd == -ENOENT || fd == -ECONNREFUSED || fd == -ENOTDIR)
		return error_set(err, ESRCH,
			"no machine '%s' runs (`lodge machine list` shows those that do)", machine);
	return fd < 0 ? error_set_errno(err, -fd, "can't reach the machine '%s'", machine) : fd;
}
