/*
 * FUSE operations on regular files that are open, or are being opened.
 *
 * Only regular files are ever opened, through the name in /proc of a descriptor that is known to be one: a FIFO or
 * device in the directory can't be put in its place. The bytes of READ and WRITE go between the file and the guest's
 * memory with no copy in between.
 */
#include "backend/share/internal.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>

/* ---- opening ---- */

/* What of the guest's flags the host's descriptor gets. O_APPEND is done write by write, O_DIRECT is between the
 * guest and its own cache. */
static int host_flags(const struct share *share, uint32_t asked, int *ret_flags)
{
	int flags = (int)(asked & (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC)) | O_CLOEXEC | O_NOCTTY;

	if ((flags & O_ACCMODE) == O_ACCMODE)
		return -EINVAL;
	/* A cache of the guest's that writes later reads the rest of a page before. */
	if ((flags & O_ACCMODE) == O_WRONLY && __atomic_load_n(&share->writeback, __ATOMIC_RELAXED))
		flags = (flags & ~O_ACCMODE) | O_RDWR;
	*ret_flags = flags;
	return 0;
}

static uint32_t open_flags(struct share *share, struct node *node, int fd)
{
	struct statx stat;

	switch (share->cache) {
	case SHARE_CACHE_NONE: return FOPEN_DIRECT_IO;
	case SHARE_CACHE_ALWAYS: return FOPEN_KEEP_CACHE;
	case SHARE_CACHE_AUTO: break;
	}
	if (share_statx(fd, "", &stat) < 0)
		return 0;
	return node_unchanged(&share->nodes, node, &stat) ? FOPEN_KEEP_CACHE : 0;
}

/* Open the node, whose descriptor is pinned, for the guest. Takes the use over on success. */
static int open_node(struct share *share, struct node_use *use, uint32_t asked, bool kill_suid,
	struct fuse_open_out *ret_out)
{
	const struct fd_path path = share_fd_path(use->fd);
	int flags;
	int status = host_flags(share, asked, &flags);

	if (status < 0)
		return status;
	if (!S_ISREG(use->node->key.type))
		return S_ISDIR(use->node->key.type) ? -EISDIR : -ENXIO;
	if (share->readonly && flags & (O_ACCMODE | O_TRUNC))
		return -EROFS;
	if (kill_suid)
		share_drop_suid(share, use->fd);
	AUTO_CLOSE int fd = openat(share->proc_fd, share_fd_name(&path), flags);
	if (fd < 0)
		return -errno;
	*ret_out = (struct fuse_open_out){.open_flags = open_flags(share, use->node, fd)};
	status = handle_open(&share->handles, use, fd, false, &ret_out->fh);
	if (status == 0)
		(void)take_fd(&fd);
	return status;
}

int op_open(struct call *call)
{
	const struct fuse_open_in *in = call->argument;
	AUTO_NODE struct node_use use = {0};
	int status = node_use(&call->share->nodes, call->header.nodeid, &use);

	if (status == 0)
		status = open_node(call->share, &use, in->flags,
			in->open_flags & FUSE_OPEN_KILL_SUIDGID, call->reply);
	return status < 0 ? status : (int)sizeof(struct fuse_open_out);
}

struct created {
	struct fuse_entry_out entry;
	struct fuse_open_out open;
};

/* The file that this has just made. */
static int adopt_new(struct share *share, struct node_use *dir, const char *name, int *fd,
	struct created *ret_created)
{
	AUTO_NODE struct node_use use = {0};
	const struct fd_path path = share_fd_path(*fd);
	struct statx stat;
	int status = share_statx(*fd, "", &stat);

	if (status < 0)
		return status;
	AUTO_CLOSE int path_fd = openat(share->proc_fd, share_fd_name(&path), O_PATH | O_CLOEXEC);
	if (path_fd < 0)
		return -errno;
	status = share_enter_stat(share, dir, name, &stat, &ret_created->entry, &use);
	if (status < 0)
		return status;
	struct node *node = use.node;
	node_adopt_fd(&use, take_fd(&path_fd));
	ret_created->open = (struct fuse_open_out){.open_flags = open_flags(share, node, *fd)};
	status = handle_open(&share->handles, &use, *fd, false, &ret_created->open.fh);
	if (status < 0)
		nodes_forget(&share->nodes, ret_created->entry.nodeid, 1);
	else
		(void)take_fd(fd);
	return status;
}

/* Somebody else made the file first. */
static int open_existing(struct share *share, struct node_use *dir, const char *name,
	uint32_t asked, struct created *ret_created)
{
	AUTO_NODE struct node_use entered = {0};
	AUTO_NODE struct node_use use = {0};
	int status = share_enter(share, dir, name, &ret_created->entry, &entered);

	if (status < 0)
		return status;
	/* Not a file of its own: the guest had better look again. */
	status = S_ISREG(entered.node->key.type) ? 0 : -ESTALE;
	if (status == 0)
		status = node_use(&share->nodes, ret_created->entry.nodeid, &use);
	if (status == 0)
		status = open_node(share, &use, asked, false, &ret_created->open);
	if (status < 0)
		nodes_forget(&share->nodes, ret_created->entry.nodeid, 1);
	return status;
}

static int create(struct share *share, struct node_use *dir, const char *name,
	const struct fuse_create_in *in, struct created *ret_created)
{
	const mode_t mode = share_mode(in->mode, false);
	int flags;
	int status = host_flags(share, in->flags, &flags);

	if (status < 0)
		return status;
	/* Always exclusive, so that what is opened is a new file and no link, FIFO or device. */
	AUTO_CLOSE int fd = openat(dir->fd, name, flags | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
	if (fd >= 0)
		return adopt_new(share, dir, name, &fd, ret_created);
	if (errno != EEXIST || in->flags & O_EXCL)
		return -errno;
	return open_existing(share, dir, name, in->flags, ret_created);
}

int op_create(struct call *call)
{
	const struct fuse_create_in *in = call->argument;
	AUTO_NODE struct node_use dir = {0};
	const char *name;
	int status = call_name(call, &name);

	if (status == 0)
		status = node_use(&call->share->nodes, call->header.nodeid, &dir);
	if (status < 0)
		return status;
	for (int tries = 0; tries < 8; tries++) {
		status = create(call->share, &dir, name, in, call->reply);
		/* Made and removed again by somebody in between: once more. */
		if (status != -ENOENT)
			break;
	}
	return status < 0 ? status : (int)sizeof(struct created);
}

/* ---- what is open ---- */

static int use_handle(struct call *call, uint64_t id, struct handle_use *ret_use)
{
	return handle_use(&call->share->handles, id, call->header.nodeid, false, ret_use);
}

int op_release(struct call *call)
{
	const struct fuse_release_in *in = call->argument;

	return handle_close(&call->share->handles, in->fh, false);
}

/* Network file systems report on close what earlier writes had come to. */
int op_flush(struct call *call)
{
	const struct fuse_flush_in *in = call->argument;
	AUTO_HANDLE struct handle_use use = {0};

	if (call->share->skip_flush)
		return -ENOSYS; /* the guest doesn't ask again */
	int status = use_handle(call, in->fh, &use);
	if (status < 0)
		return status;
	int fd = fcntl(use.handle->fd, F_DUPFD_CLOEXEC, 0);
	return fd < 0 || close(fd) < 0 ? -errno : 0;
}

static int sync_fd(int fd, uint32_t flags)
{
	const int failed = flags & FUSE_FSYNC_FDATASYNC ? fdatasync(fd) : fsync(fd);

	return failed ? -errno : 0;
}

int op_fsync(struct call *call)
{
	const struct fuse_fsync_in *in = call->argument;
	AUTO_HANDLE struct handle_use use = {0};
	int status = use_handle(call, in->fh, &use);

	return status < 0 ? status : sync_fd(use.handle->fd, in->fsync_flags);
}

int op_fsyncdir(struct call *call)
{
	const struct fuse_fsync_in *in = call->argument;
	AUTO_HANDLE struct handle_use use = {0};
	int status = handle_use(&call->share->handles, in->fh, call->header.nodeid, true, &use);

	return status < 0 ? status : sync_fd(use.handle->fd, in->fsync_flags);
}

int op_read(struct call *call)
{
	const struct fuse_read_in *in = call->argument;
	const struct fs_request *request = call->request;
	const uint64_t header_bytes = sizeof(struct fuse_out_header);
	const uint64_t room = request->in_bytes - header_bytes;
	const uint64_t want = MIN(MIN((uint64_t)in->size, room), SHARE_WRITE_MAX);
	AUTO_HANDLE struct handle_use use = {0};
	uint64_t done = 0;
	int status = use_handle(call, in->fh, &use);

	if (status < 0)
		return status;
	if (in->offset > INT64_MAX - SHARE_WRITE_MAX)
		return -EINVAL;
	call->direct = true;
	while (done < want) {
		unsigned count = call_vector(request->in, request->in_count, header_bytes + done,
			want - done, call->scratch->vector, SHARE_VECTOR_MAX);
		ssize_t got = preadv(use.handle->fd, call->scratch->vector, (int)count,
			(off_t)(in->offset + done));
		if (got < 0 && !done)
			return -errno;
		if (got <= 0)
			break;
		done += (uint64_t)got;
	}
	return (int)done;
}

int op_write(struct call *call)
{
	const struct fuse_write_in *in = call->argument;
	const struct fs_request *request = call->request;
	const uint64_t skip = sizeof(call->header) + sizeof(*in);
	struct fuse_write_out *out = call->reply;
	AUTO_HANDLE struct handle_use use = {0};
	uint64_t done = 0;
	int status = use_handle(call, in->fh, &use);

	if (status < 0)
		return status;
	if (in->size > SHARE_WRITE_MAX || in->size > call->argument_bytes - sizeof(*in) ||
		in->offset > INT64_MAX - SHARE_WRITE_MAX)
		return -EINVAL;
	if (in->write_flags & FUSE_WRITE_KILL_SUIDGID)
		share_drop_suid(call->share, use.handle->use.fd);
	const int flags =
		in->flags & O_APPEND && !(in->write_flags & FUSE_WRITE_CACHE) ? RWF_APPEND : 0;
	while (done < in->size) {
		unsigned count = call_vector(request->out, request->out_count, skip + done,
			in->size - done, call->scratch->vector, SHARE_VECTOR_MAX);
		ssize_t put = pwritev2(use.handle->fd, call->scratch->vector, (int)count,
			(off_t)(in->offset + done), flags);
		if (put < 0 && !done)
			return -errno;
		if (put <= 0)
			break;
		done += (uint64_t)put;
	}
	*out = (struct fuse_write_out){.size = (uint32_t)done};
	return sizeof(*out);
}

int op_fallocate(struct call *call)
{
	const struct fuse_fallocate_in *in = call->argument;
	AUTO_HANDLE struct handle_use use = {0};
	const uint32_t known = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
	int status = use_handle(call, in->fh, &use);

	if (status < 0)
		return status;
	if (in->mode & ~known)
		return -EOPNOTSUPP;
	if (in->offset > INT64_MAX || in->length > INT64_MAX)
		return -EFBIG;
	return fallocate(use.handle->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) < 0
		       ? -errno
		       : 0;
}

int op_lseek(struct call *call)
{
	const struct fuse_lseek_in *in = call->argument;
	struct fuse_lseek_out *out = call->reply;
	AUTO_HANDLE struct handle_use use = {0};
	/* The guest has bytes that the file has not, and takes all for data then. */
	if (__atomic_load_n(&call->share->writeback, __ATOMIC_RELAXED))
		return -ENOSYS;
	int status = use_handle(call, in->fh, &use);
	if (status < 0)
		return status;
	if ((in->whence != SEEK_DATA && in->whence != SEEK_HOLE) || in->offset > INT64_MAX)
		return -EINVAL;
	/* It moves the host's position, which nothing here depends on. */
	const off_t found = lseek(use.handle->fd, (off_t)in->offset, (int)in->whence);
	if (found < 0)
		return -errno;
	*out = (struct fuse_lseek_out){.offset = (uint64_t)found};
	return sizeof(*out);
}

int op_copy_range(struct call *call)
{
	const struct fuse_copy_file_range_in *in = call->argument;
	struct fuse_write_out *out = call->reply;
	AUTO_HANDLE struct handle_use from = {0};
	AUTO_HANDLE struct handle_use to = {0};
	off_t from_offset = (off_t)in->off_in, to_offset = (off_t)in->off_out;
	int status = use_handle(call, in->fh_in, &from);

	if (status == 0)
		status = handle_use(&call->share->handles, in->fh_out, in->nodeid_out, false, &to);
	if (status < 0)
		return status;
	if (in->flags || from_offset < 0 || to_offset < 0)
		return -EINVAL;
	/* Not all at once: a guest that wants to be killed in the middle can be. */
	const size_t bytes = MIN(in->len, MIB(64));
	const ssize_t copied =
		copy_file_range(from.handle->fd, &from_offset, to.handle->fd, &to_offset, bytes, 0);
	if (copied < 0)
		return -errno;
	*out = (struct fuse_write_out){.size = (uint32_t)copied};
	return sizeof(*out);
}
