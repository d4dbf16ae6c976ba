/*
 * FUSE operations on extended attributes: those of users ("user.*") of regular files and directories. The others mean
 * something to the host's kernel, and are not the guest's to read or change.
 */
#include "backend/share/internal.h"

#include <string.h>
#include <sys/xattr.h>

static bool is_users(const char *name)
{
	return strncmp(name, "user.", 5) == 0;
}

/* The node's path for the calls below. Errors: `otherwise` for what has no attributes. */
static int use_path(
	struct call *call, int otherwise, struct node_use *ret_use, struct fd_path *ret_path)
{
	int status = node_use(&call->share->nodes, call->header.nodeid, ret_use);

	if (status < 0)
		return status;
	/* On a symbolic link they would be its target's. */
	if (!S_ISREG(ret_use->node->key.type) && !S_ISDIR(ret_use->node->key.type))
		return otherwise;
	*ret_path = share_fd_path(ret_use->fd);
	return 0;
}

/* What both changes begin with. */
static int use_for_change(
	struct call *call, const char **ret_name, struct node_use *ret_use, struct fd_path *ret_path)
{
	*ret_name = call_string(call);
	if (!*ret_name)
		return -EINVAL;
	if (!is_users(*ret_name))
		return -EOPNOTSUPP;
	return use_path(call, -EPERM, ret_use, ret_path);
}

int op_setxattr(struct call *call)
{
	const struct fuse_setxattr_in *in = call->argument; /* its first 8 bytes */
	AUTO_NODE struct node_use use = {0};
	struct fd_path path;
	const char *name;
	int status = use_for_change(call, &name, &use, &path);

	if (status < 0)
		return status;
	if (in->size > call->argument_bytes - call->next_string)
		return -EINVAL;
	const uint8_t *value = (const uint8_t *)call->argument + call->next_string;
	return setxattr(path.text, name, value, in->size, (int)in->flags) < 0 ? -errno : 0;
}

int op_removexattr(struct call *call)
{
	AUTO_NODE struct node_use use = {0};
	struct fd_path path;
	const char *name;
	int status = use_for_change(call, &name, &use, &path);

	if (status < 0)
		return status;
	return removexattr(path.text, name) < 0 ? -errno : 0;
}

/* size 0 asks how long it is. */
static int size_reply(struct call *call, size_t bytes)
{
	struct fuse_getxattr_out *out = call->reply;

	if (call->reply_room < sizeof(*out))
		return -EINVAL;
	*out = (struct fuse_getxattr_out){.size = (uint32_t)bytes};
	return sizeof(*out);
}

int op_getxattr(struct call *call)
{
	const struct fuse_getxattr_in *in = call->argument;
	AUTO_NODE struct node_use use = {0};
	struct fd_path path;
	const char *name = call_string(call);

	if (!name)
		return -EINVAL;
	if (!is_users(name))
		return strncmp(name, "system.", 7) ? -ENODATA : -EOPNOTSUPP;
	int status = use_path(call, -ENODATA, &use, &path);
	if (status < 0)
		return status;
	const size_t room = MIN((size_t)in->size, call->reply_room);
	const ssize_t bytes = getxattr(path.text, name, room ? call->reply : NULL, room);
	if (bytes < 0)
		return -errno;
	if (in->size && !room)
		return -ERANGE;
	return in->size ? (int)bytes : size_reply(call, (size_t)bytes);
}

/* Keeps the users' names, in place; returns how many bytes they have. */
static size_t keep_users(char *names, size_t bytes)
{
	size_t kept = 0;

	for (size_t at = 0, length; at < bytes; at += length) {
		length = strnlen(names + at, bytes - at) + 1;
		if (!is_users(names + at))
			continue;
		memmove(names + kept, names + at, length);
		kept += length;
	}
	return kept;
}

int op_listxattr(struct call *call)
{
	const struct fuse_getxattr_in *in = call->argument;
	char *names = call->reply;
	AUTO_NODE struct node_use use = {0};
	struct fd_path path;
	int status = use_path(call, -ENODATA, &use, &path);

	if (status == -ENODATA)
		return in->size ? 0 : size_reply(call, 0);
	if (status < 0)
		return status;
	const ssize_t bytes = listxattr(path.text, names, SHARE_REPLY_MAX);
	if (bytes < 0)
		return -errno;
	const size_t kept = keep_users(names, (size_t)bytes);
	if (!in->size)
		return size_reply(call, kept);
	return kept > MIN((size_t)in->size, call->reply_room) ? -ERANGE : (int)kept;
}
