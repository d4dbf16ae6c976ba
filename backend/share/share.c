/*
 * A shared directory: see share.h. Here it is opened and closed.
 */
#include "backend/share/internal.h"
#include "base/error.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/vfs.h>

#define DESCRIPTORS_SPARE 128u	/* for the rest of the process */
#define DESCRIPTORS_MOST  65536 /* more are no use: what was not used lately is opened again */
#define DESCRIPTORS_LEAST 64u
#define ZFS_SUPER_MAGIC	  0x2fc12fc1

/* ---- struct fs ---- */

static bool fs_op_submit(struct fs *fs, struct fs_request *request, uint32_t *ret_written)
{
	struct share *share = container_of(fs, struct share, fs);

	if (!share_is_quick(request)) {
		pool_submit(share->pool, request);
		return false;
	}
	*ret_written = share_serve_quick(share, request);
	if (nodes_have_dead(&share->nodes))
		pool_bury(share->pool);
	return true;
}

static void fs_op_abandon(struct fs *fs)
{
	pool_abandon(container_of(fs, struct share, fs)->pool);
}

static void fs_op_close(struct fs *fs)
{
	share_free(container_of(fs, struct share, fs));
}

static const struct fs_ops share_fs_ops = {
	.submit = fs_op_submit,
	.abandon = fs_op_abandon,
	.close = fs_op_close,
};

/* ---- opening ---- */

/* File systems of this machine, whose close() has nothing to say. */
static bool is_local(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return false;
	switch ((unsigned long)fs.f_type) {
	case EXT4_SUPER_MAGIC:
	case XFS_SUPER_MAGIC:
	case BTRFS_SUPER_MAGIC:
	case F2FS_SUPER_MAGIC:
	case ZFS_SUPER_MAGIC:
	case TMPFS_MAGIC: return true;
	default: return false;
	}
}

static unsigned descriptors(const struct share_config *config)
{
	struct rlimit limit;
	unsigned most = config->max_descriptors;

	if (!most && getrlimit(RLIMIT_NOFILE, &limit) == 0)
		most = (unsigned)MIN(limit.rlim_cur - MIN(limit.rlim_cur, DESCRIPTORS_SPARE),
			(rlim_t)DESCRIPTORS_MOST);
	return MAX(most, DESCRIPTORS_LEAST);
}

/* The tables. root_fd is taken over on success. */
static int fill(struct share *share, const struct share_config *config, int root_fd)
{
	const unsigned fds = descriptors(config);
	const unsigned nodes = config->max_nodes ? config->max_nodes : SHARE_NODES_MAX;

	int status = identity_init(&share->identity, config);
	if (status < 0)
		return status;
	/* An open file has its own and its node's. */
	status = handles_init(&share->handles, fds / 4);
	if (status < 0)
		return status;
	status = nodes_init(&share->nodes, root_fd, nodes, fds / 2);
	if (status < 0)
		handles_done(&share->handles);
	return status;
}

static int open_directory(const char *path, struct error *err)
{
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return error_set_errno(err, errno, "can't share '%s'", path);
	/* Searching it is what everything here begins with. */
	if (faccessat(fd, ".", R_OK | X_OK, AT_EACCESS) < 0) {
		close(fd);
		return error_set_errno(err, errno, "can't share '%s'", path);
	}
	return fd;
}

int share_create(struct share **ret_share, const struct share_config *config, struct error *err)
{
	AUTO_CLOSE int root_fd = open_directory(config->path, err);
	AUTO_FREE struct share *share = calloc(1, sizeof(*share));
	struct statx stat;

	if (root_fd < 0)
		return root_fd;
	if (!share)
		return error_set_errno(err, ENOMEM, "can't share '%s'", config->path);
	AUTO_CLOSE int proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (proc_fd < 0)
		return error_set(
			err, ENOTSUP, "can't share '%s': there is no /proc here", config->path);
	*share = (struct share){.fs.ops = &share_fs_ops,
		.readonly = config->readonly,
		.skip_flush = is_local(root_fd),
		.cache = config->cache,
		.proc_fd = proc_fd};
	int status = share_statx(root_fd, "", &stat);
	if (status == 0)
		status = fill(share, config, root_fd);
	if (status < 0) {
		identity_done(&share->identity);
		return error_set_errno(err, -status, "can't share '%s'", config->path);
	}
	pthread_mutex_init(&share->device_lock, NULL);
	/* The root's device is the first, number 0. */
	(void)share_inode_number(share, &stat);
	(void)take_fd(&root_fd);
	(void)take_fd(&proc_fd);
	*ret_share = take_ptr(&share);
	return 0;
}

void share_free(struct share *share)
{
	pool_free(share->pool);
	handles_done(&share->handles);
	nodes_done(&share->nodes);
	identity_done(&share->identity);
	pthread_mutex_destroy(&share->device_lock);
	close(share->proc_fd);
	free(share);
}

void share_end_session(struct share *share)
{
	__atomic_store_n(&share->begun, false, __ATOMIC_RELEASE);
	handles_close_all(&share->handles);
	nodes_forget_all(&share->nodes);
}

int share_open(struct fs **ret_fs, const struct share_config *config, struct error *err)
{
	struct share *share;
	int status = share_create(&share, config, err);

	if (status < 0)
		return status;
	status = pool_create(&share->pool, share);
	if (status < 0) {
		share_free(share);
		return error_set_errno(err, -status, "can't share '%s'", config->path);
	}
	*ret_fs = &share->fs;
	return 0;
}
