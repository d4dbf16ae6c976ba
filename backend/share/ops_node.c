/*
 * FUSE operations on a file that the guest knows by its node: look-up, attributes, links' targets, access.
 */
#include "backend/share/internal.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>

int op_lookup(struct call *call)
{
	struct share *share = call->share;
	struct fuse_entry_out *out = call->reply;
	AUTO_NODE struct node_use dir = {0};
	const char *name;
	int status = call_name(call, &name);

	if (status == 0)
		status = node_use(&share->nodes, call->header.nodeid, &dir);
	if (status == 0)
		status = share_enter(share, &dir, name, out, NULL);
	if (status == -ENOENT && share->cache == SHARE_CACHE_ALWAYS) {
		/* Node 0: there is none, and the guest may remember that. */
		*out = (struct fuse_entry_out){.entry_valid = share_valid_seconds(share)};
		status = 0;
	}
	return status < 0 ? status : (int)sizeof(*out);
}

static int fill_attr_out(struct call *call, const struct statx *stat)
{
	struct fuse_attr_out *out = call->reply;

	*out = (struct fuse_attr_out){.attr_valid = share_valid_seconds(call->share)};
	share_fill_attr(call->share, stat, &out->attr);
	return sizeof(*out);
}

int op_getattr(struct call *call)
{
	const struct fuse_getattr_in *in = call->argument;
	struct share *share = call->share;
	AUTO_HANDLE struct handle_use use = {0};
	struct statx stat;
	int status;

	if (in->getattr_flags & FUSE_GETATTR_FH &&
		handle_use(&share->handles, in->fh, call->header.nodeid, false, &use) == 0)
		status = share_statx(use.handle->fd, "", &stat);
	else
		status = node_stat(&share->nodes, call->header.nodeid, &stat);
	return status < 0 ? status : fill_attr_out(call, &stat);
}

/* ---- SETATTR ---- */

static int set_mode(
	struct share *share, const struct node_use *use, const struct fuse_setattr_in *in)
{
	const struct fd_path path = share_fd_path(use->fd);

	if (S_ISLNK(use->node->key.type))
		return -EOPNOTSUPP;
	const mode_t mode = share_mode(in->mode, S_ISDIR(use->node->key.type));
	return fchmodat(share->proc_fd, share_fd_name(&path), mode, 0) < 0 ? -errno : 0;
}

static int set_owner(
	struct share *share, const struct node_use *use, const struct fuse_setattr_in *in)
{
	struct statx now;
	uid_t uid = (uid_t)-1;
	gid_t gid = (gid_t)-1;
	int status = share_statx(use->fd, "", &now);

	if (status == 0 && in->valid & FATTR_UID)
		status = identity_take_uid(&share->identity, in->uid, now.stx_uid, &uid);
	if (status == 0 && in->valid & FATTR_GID)
		status = identity_take_gid(&share->identity, in->gid, now.stx_gid, &gid);
	if (status < 0 || (uid == (uid_t)-1 && gid == (gid_t)-1))
		return status;
	const int flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW;
	return fchownat(use->fd, "", uid, gid, flags) < 0 ? -errno : 0;
}

static int set_size(
	struct share *share, const struct node_use *use, const struct fuse_setattr_in *in)
{
	AUTO_HANDLE struct handle_use handle = {0};
	const struct fd_path path = share_fd_path(use->fd);

	if (in->size > INT64_MAX)
		return -EFBIG;
	if (!S_ISREG(use->node->key.type))
		return S_ISDIR(use->node->key.type) ? -EISDIR : -EINVAL;
	if (in->valid & FATTR_FH &&
		handle_use(&share->handles, in->fh, use->node->id, false, &handle) == 0)
		return ftruncate(handle.handle->fd, (off_t)in->size) < 0 ? -errno : 0;
	return truncate(path.text, (off_t)in->size) < 0 ? -errno : 0;
}

static struct timespec time_of(
	uint32_t valid, uint32_t set, uint32_t set_now, uint64_t sec, uint32_t nsec)
{
	if (!(valid & set))
		return (struct timespec){.tv_nsec = UTIME_OMIT};
	if (valid & set_now)
		return (struct timespec){.tv_nsec = UTIME_NOW};
	return (struct timespec){.tv_sec = (time_t)sec, .tv_nsec = nsec};
}

static int set_times(
	struct share *share, const struct node_use *use, const struct fuse_setattr_in *in)
{
	const struct fd_path path = share_fd_path(use->fd);
	const struct timespec times[2] = {
		time_of(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
		time_of(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec)};

	/* The descriptor's own name leads to the file itself, even if that is a symbolic link. */
	return utimensat(share->proc_fd, share_fd_name(&path), times, 0) < 0 ? -errno : 0;
}

static int set_all(
	struct share *share, const struct node_use *use, const struct fuse_setattr_in *in)
{
	int status = 0;

	if (in->valid & FATTR_MODE)
		status = set_mode(share, use, in);
	if (status == 0 && in->valid & (FATTR_UID | FATTR_GID))
		status = set_owner(share, use, in);
	if (status == 0 && in->valid & FATTR_KILL_SUIDGID)
		share_drop_suid(share, use->fd);
	if (status == 0 && in->valid & FATTR_SIZE)
		status = set_size(share, use, in);
	if (status == 0 && in->valid & (FATTR_ATIME | FATTR_MTIME))
		status = set_times(share, use, in);
	return status;
}

int op_setattr(struct call *call)
{
	const struct fuse_setattr_in *in = call->argument;
	AUTO_NODE struct node_use use = {0};
	struct statx stat;
	int status = node_use(&call->share->nodes, call->header.nodeid, &use);

	if (status == 0)
		status = set_all(call->share, &use, in);
	if (status == 0)
		status = share_statx(use.fd, "", &stat);
	return status < 0 ? status : fill_attr_out(call, &stat);
}

int op_readlink(struct call *call)
{
	AUTO_NODE struct node_use use = {0};
	char target[PATH_MAX];
	int status = node_use(&call->share->nodes, call->header.nodeid, &use);

	if (status < 0)
		return status;
	if (!S_ISLNK(use.node->key.type))
		return -EINVAL;
	const ssize_t bytes = readlinkat(use.fd, "", target, sizeof(target));
	if (bytes < 0)
		return -errno;
	if ((size_t)bytes > call->reply_room)
		return -ENAMETOOLONG;
	memcpy(call->reply, target, (size_t)bytes);
	return (int)bytes;
}

int op_access(struct call *call)
{
	const struct fuse_access_in *in = call->argument;
	AUTO_NODE struct node_use use = {0};
	int status = node_use(&call->share->nodes, call->header.nodeid, &use);

	if (status < 0)
		return status;
	if (in->mask & ~(uint32_t)(R_OK | W_OK | X_OK))
		return -EINVAL;
	if (in->mask & W_OK && call->share->readonly)
		return -EROFS;
	const int flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_EACCESS;
	return faccessat(use.fd, "", (int)in->mask, flags) < 0 ? -errno : 0;
}
