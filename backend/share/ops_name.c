/*
 * FUSE operations on names: what makes, removes and moves directory entries.
 *
 * Each is one system call on the directory's descriptor and a single component, none of which follows a symbolic
 * link in the last component.
 */
#include "backend/share/internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

/* The directory of the request, and the next name in it. */
static int take_place(struct call *call, struct node_use *ret_dir, const char **ret_name)
{
	int status = call_name(call, ret_name);

	return status < 0 ? status : node_use(&call->share->nodes, call->header.nodeid, ret_dir);
}

/* The reply of what has made `name`. */
static int entry_reply(struct call *call, struct node_use *dir, const char *name)
{
	int status = share_enter(call->share, dir, name, call->reply, NULL);

	return status < 0 ? status : (int)sizeof(struct fuse_entry_out);
}

int op_symlink(struct call *call)
{
	AUTO_NODE struct node_use dir = {0};
	const char *name, *target;
	int status = take_place(call, &dir, &name);

	if (status < 0)
		return status;
	target = call_string(call);
	if (!target)
		return -EINVAL;
	if (symlinkat(target, dir.fd, name) < 0)
		return -errno;
	return entry_reply(call, &dir, name);
}

/* mknod() makes no regular files for all file systems, and devices are not for guests to make. */
static int make_node(int dir_fd, const char *name, mode_t type, mode_t mode)
{
	switch (type) {
	case 0:
	case S_IFREG: {
		int fd = openat(
			dir_fd, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, mode);
		if (fd < 0)
			return -errno;
		close(fd);
		return 0;
	}
	case S_IFIFO:
	case S_IFSOCK: return mknodat(dir_fd, name, type | mode, 0) < 0 ? -errno : 0;
	case S_IFCHR:
	case S_IFBLK: return -EPERM;
	default: return -EINVAL;
	}
}

int op_mknod(struct call *call)
{
	const struct fuse_mknod_in *in = call->argument;
	AUTO_NODE struct node_use dir = {0};
	const char *name;
	int status = take_place(call, &dir, &name);

	if (status == 0)
		status = make_node(dir.fd, name, in->mode & S_IFMT, share_mode(in->mode, false));
	return status < 0 ? status : entry_reply(call, &dir, name);
}

int op_mkdir(struct call *call)
{
	const struct fuse_mkdir_in *in = call->argument;
	AUTO_NODE struct node_use dir = {0};
	const char *name;
	int status = take_place(call, &dir, &name);

	if (status < 0)
		return status;
	if (mkdirat(dir.fd, name, share_mode(in->mode, true)) < 0)
		return -errno;
	return entry_reply(call, &dir, name);
}

static int remove_name(struct call *call, int flags)
{
	AUTO_NODE struct node_use dir = {0};
	const char *name;
	int status = take_place(call, &dir, &name);

	if (status < 0)
		return status;
	return unlinkat(dir.fd, name, flags) < 0 ? -errno : 0;
}

int op_unlink(struct call *call)
{
	return remove_name(call, 0);
}

int op_rmdir(struct call *call)
{
	return remove_name(call, AT_REMOVEDIR);
}

/* What the guest knows is known by its new name. */
static void follow_rename(struct share *share, struct node_use *dir, const char *name)
{
	struct statx stat;

	if (share_statx(dir->fd, name, &stat) == 0)
		node_moved(&share->nodes, dir->node, name, &stat);
}

static int rename_names(struct call *call, uint64_t new_dir_id, unsigned flags)
{
	struct share *share = call->share;
	AUTO_NODE struct node_use dir = {0};
	AUTO_NODE struct node_use new_dir = {0};
	const char *name, *new_name;
	int status = take_place(call, &dir, &name);

	if (status == 0)
		status = call_name(call, &new_name);
	if (status == 0)
		status = node_use(&share->nodes, new_dir_id, &new_dir);
	if (status < 0)
		return status;
	if (renameat2(dir.fd, name, new_dir.fd, new_name, flags) < 0)
		return -errno;
	follow_rename(share, &new_dir, new_name);
	if (flags & RENAME_EXCHANGE)
		follow_rename(share, &dir, name);
	return 0;
}

int op_rename(struct call *call)
{
	const struct fuse_rename_in *in = call->argument;

	return rename_names(call, in->newdir, 0);
}

int op_rename2(struct call *call)
{
	const struct fuse_rename2_in *in = call->argument;

	/* Not RENAME_WHITEOUT: that makes a device. */
	if (in->flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE))
		return -EINVAL;
	return rename_names(call, in->newdir, in->flags);
}

int op_link(struct call *call)
{
	const struct fuse_link_in *in = call->argument;
	struct share *share = call->share;
	AUTO_NODE struct node_use dir = {0};
	AUTO_NODE struct node_use old = {0};
	const char *name;
	int status = take_place(call, &dir, &name);

	if (status == 0)
		status = node_use(&share->nodes, in->oldnodeid, &old);
	if (status < 0)
		return status;
	/* AT_SYMLINK_FOLLOW: the descriptor's name is what is followed, and leads to the file itself. */
	const struct fd_path path = share_fd_path(old.fd);
	if (linkat(share->proc_fd, share_fd_name(&path), dir.fd, name, AT_SYMLINK_FOLLOW) < 0)
		return -errno;
	return entry_reply(call, &dir, name);
}
