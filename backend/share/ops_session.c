/*
 * FUSE operations on the whole: the session's begin and end, and the file system.
 */
#include "backend/share/internal.h"

#include <fcntl.h>
#include <sys/statvfs.h>

#define WANTED                                                                           \
	(FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS | \
		FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |          \
		FUSE_HANDLE_KILLPRIV_V2 | FUSE_MAX_PAGES)

/* Protocol 7.39, for files that bypass the cache: shared mappings of them. */
#define DIRECT_IO_ALLOW_MMAP (1u << (36 - 32))

static uint32_t wanted_flags(const struct share *share)
{
	uint32_t flags = WANTED;

	flags |= share->cache == SHARE_CACHE_NONE ? FUSE_INIT_EXT : FUSE_CACHE_SYMLINKS;
	if (share->cache == SHARE_CACHE_AUTO)
		flags |= FUSE_AUTO_INVAL_DATA;
	if (share->cache == SHARE_CACHE_ALWAYS && !share->readonly)
		flags |= FUSE_WRITEBACK_CACHE;
	return flags;
}

int op_init(struct call *call)
{
	const struct fuse_init_in *in = call->argument; /* its first 16 bytes, or more */
	struct fuse_init_out *out = call->reply;
	struct share *share = call->share;

	*out = (struct fuse_init_out){
		.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION};
	/* A newer major is told ours, and asks again. */
	if (in->major > FUSE_KERNEL_VERSION)
		return sizeof(*out);
	if (in->major < FUSE_KERNEL_VERSION || in->minor < 31)
		return -EPROTO;
	share_end_session(share);
	out->max_readahead = in->max_readahead;
	out->flags = in->flags & wanted_flags(share);
	if (out->flags & FUSE_INIT_EXT && call->argument_bytes >= sizeof(*in))
		out->flags2 = in->flags2 & DIRECT_IO_ALLOW_MMAP;
	out->max_background = 128;
	out->congestion_threshold = 96;
	out->max_write = out->flags & FUSE_MAX_PAGES ? SHARE_WRITE_MAX : 32 * 4096;
	out->max_pages = SHARE_WRITE_MAX / 4096;
	out->time_gran = 1;
	__atomic_store_n(&share->writeback, out->flags & FUSE_WRITEBACK_CACHE, __ATOMIC_RELAXED);
	__atomic_store_n(&share->begun, true, __ATOMIC_RELEASE);
	return sizeof(*out);
}

int op_destroy(struct call *call)
{
	share_end_session(call->share);
	return 0;
}

int op_statfs(struct call *call)
{
	struct fuse_statfs_out *out = call->reply;
	AUTO_NODE struct node_use use = {0};
	struct statvfs fs;
	int status = node_use(&call->share->nodes, call->header.nodeid, &use);

	if (status < 0)
		return status;
	if (fstatvfs(use.fd, &fs) < 0)
		return -errno;
	*out = (struct fuse_statfs_out){.st = {.blocks = fs.f_blocks,
						.bfree = fs.f_bfree,
						.bavail = fs.f_bavail,
						.files = fs.f_files,
						.ffree = fs.f_ffree,
						.bsize = (uint32_t)fs.f_bsize,
						.namelen = SHARE_NAME_MAX,
						.frsize = (uint32_t)fs.f_frsize}};
	return sizeof(*out);
}

int op_syncfs(struct call *call)
{
	AUTO_NODE struct node_use use = {0};

	if (call->share->readonly)
		return 0;
	int status = node_use(&call->share->nodes, FUSE_ROOT_ID, &use);
	if (status < 0)
		return status;
	const struct fd_path path = share_fd_path(use.fd);
	AUTO_CLOSE int fd = openat(
		call->share->proc_fd, share_fd_name(&path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return syncfs(fd) < 0 ? -errno : 0;
}
