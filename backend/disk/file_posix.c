/*
 * Host files and block devices as storage of disk images.
 *
 * Every call works on the buffered descriptor. The one with O_DIRECT, if asked for, is for asynchronous engines;
 * Linux keeps the two coherent, and fdatasync() of either covers both.
 */
#include "backend/disk/file.h"
#include "backend/disk/iov.h"
#include "backend/disk/lock.h"
#include "base/cleanup.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define POSIX_IOV_MAX 64
#define ZEROS_IOV     16 /* 1 MiB at once */

struct posix_file {
	struct disk_file file;
	bool block_device;
};

static int posix_readv(
	struct disk_file *file, const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct iov_place place = iov_start(iov, count);
	struct iovec part[POSIX_IOV_MAX];
	unsigned n;

	for (;;) {
		struct iov_place before = place;
		uint64_t want = iov_take(&place, SSIZE_MAX & ~4095, part, POSIX_IOV_MAX, &n);
		ssize_t got;

		if (!want)
			return 0;
		if (offset > INT64_MAX - want)
			return -EFBIG;
		got = preadv(file->fd, part, (int)n, (off_t)offset);
		if (got < 0 && errno == EINTR) {
			place = before;
			continue;
		}
		if (got < 0)
			return -errno;
		if (!got) {
			iov_fill_zero(&before, UINT64_MAX);
			return 0;
		}
		place = before;
		iov_skip(&place, (uint64_t)got);
		offset += (uint64_t)got;
	}
}

static int posix_writev(
	struct disk_file *file, const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct iov_place place = iov_start(iov, count);
	struct iovec part[POSIX_IOV_MAX];
	unsigned n;

	if (file->readonly)
		return -EROFS;
	for (;;) {
		struct iov_place before = place;
		uint64_t want = iov_take(&place, SSIZE_MAX & ~4095, part, POSIX_IOV_MAX, &n);
		ssize_t put;

		if (!want)
			return 0;
		if (offset > INT64_MAX - want)
			return -EFBIG;
		put = pwritev(file->fd, part, (int)n, (off_t)offset);
		if (put < 0 && errno != EINTR)
			return -errno;
		if (!put)
			return -ENOSPC;
		place = before;
		if (put > 0) {
			iov_skip(&place, (uint64_t)put);
			offset += (uint64_t)put;
		}
	}
}

/* The host has dropped what it could not write, whatever the reason: no error that says "try again". */
static int posix_flush(struct disk_file *file)
{
	return fdatasync(file->fd) < 0 ? -EIO : 0;
}

static int posix_space(struct disk_file *file, int mode, uint64_t offset, uint64_t bytes)
{
	int r;

	if (file->readonly)
		return -EROFS;
	if (!bytes)
		return 0;
	if (offset > INT64_MAX - bytes)
		return -EFBIG;
	do
		r = fallocate(file->fd, mode, (off_t)offset, (off_t)bytes);
	while (r < 0 && errno == EINTR);
	if (r == 0)
		return 0;
	/* Block devices say EINVAL to what is not in whole sectors, file systems EOPNOTSUPP, ENOSYS ... */
	return errno == EINVAL || errno == ENOSYS || errno == ENODEV ? -EOPNOTSUPP : -errno;
}

static int posix_punch(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	return posix_space(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
}

static int posix_discard(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	int r = posix_punch(file, offset, bytes);

	return r == -EOPNOTSUPP ? 0 : r;
}

int disk_file_write_zeros(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	int r = 0;

	while (bytes && r == 0) {
		struct iovec part[ZEROS_IOV];
		unsigned n;
		uint64_t got = iov_zeros(bytes, part, ZEROS_IOV, &n);

		r = file->ops->writev(file, part, n, offset);
		offset += got;
		bytes -= got;
	}
	return r;
}

static int posix_zero(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	int r = posix_space(file, FALLOC_FL_ZERO_RANGE, offset, bytes);

	return r == -EOPNOTSUPP ? disk_file_write_zeros(file, offset, bytes) : r;
}

static int posix_size(struct disk_file *file, uint64_t *ret_bytes)
{
	struct stat st;
	uint64_t bytes;

	if (fstat(file->fd, &st) < 0)
		return -errno;
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(file->fd, BLKGETSIZE64, &bytes) < 0)
			return -errno;
	} else {
		bytes = (uint64_t)st.st_size;
	}
	*ret_bytes = bytes;
	return 0;
}

static int posix_truncate(struct disk_file *file, uint64_t bytes)
{
	if (file->readonly)
		return -EROFS;
	if (!file->growable)
		return -EOPNOTSUPP;
	if (bytes > INT64_MAX)
		return -EFBIG;
	return ftruncate(file->fd, (off_t)bytes) < 0 ? -errno : 0;
}

static int posix_extent(
	struct disk_file *file, uint64_t offset, uint64_t bytes, uint64_t *ret_run, bool *ret_data)
{
	off_t data = -1, end;

	*ret_run = bytes;
	*ret_data = true;
	if (container_of(file, struct posix_file, file)->block_device || offset > INT64_MAX)
		return 0;
	data = lseek(file->fd, (off_t)offset, SEEK_DATA);
	if (data < 0 && errno == ENXIO) { /* a hole up to the end, or beyond it */
		*ret_data = false;
		return 0;
	}
	if (data < 0) /* a file system that knows no holes */
		return 0;
	if ((uint64_t)data > offset) {
		*ret_data = false;
		*ret_run = MIN(bytes, (uint64_t)data - offset);
		return 0;
	}
	end = lseek(file->fd, (off_t)offset, SEEK_HOLE);
	if (end > (off_t)offset)
		*ret_run = MIN(bytes, (uint64_t)end - offset);
	return 0;
}

static void posix_close(struct disk_file *file)
{
	if (file->direct_fd >= 0)
		close(file->direct_fd);
	if (file->fd >= 0)
		close(file->fd); /* and with it the locks */
	free(file->name);
	free(container_of(file, struct posix_file, file));
}

static const struct disk_file_ops posix_ops = {
	.readv = posix_readv,
	.writev = posix_writev,
	.flush = posix_flush,
	.punch = posix_punch,
	.zero = posix_zero,
	.discard = posix_discard,
	.size = posix_size,
	.truncate = posix_truncate,
	.extent = posix_extent,
	.close = posix_close,
};

DEFINE_AUTO(file, struct disk_file *, disk_file_close)

/* O_DIRECT is asked of the same open file again, so that a path that was exchanged meanwhile does not matter. */
static int posix_open_direct(struct disk_file *file, struct error *err)
{
	char link[64];
	int flags = O_DIRECT | O_CLOEXEC | (file->readonly ? O_RDONLY : O_RDWR);
	int sector = 4096;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", file->fd);
	file->direct_fd = open(link, flags);
	if (file->direct_fd < 0)
		return error_set_errno(
			err, errno, "can't open %s past the host's cache (O_DIRECT)", file->name);
	if (container_of(file, struct posix_file, file)->block_device &&
		ioctl(file->fd, BLKSSZGET, &sector) < 0)
		sector = 4096;
	file->align_bytes = (uint32_t)sector;
	return 0;
}

static int posix_open_flags(const struct disk_file_options *options)
{
	int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (options->readonly ? O_RDONLY : O_RDWR);

	if (options->no_follow)
		flags |= O_NOFOLLOW;
	if (options->create)
		flags |= O_CREAT | (options->replace ? 0 : O_EXCL);
	return flags;
}

/* Is it a thing that has bytes at offsets? Opened without blocking, so that a FIFO can't hold us up. */
static int posix_check_kind(struct posix_file *posix, struct error *err)
{
	struct stat st;

	if (fstat(posix->file.fd, &st) < 0)
		return error_set_errno(err, errno, "can't examine %s", posix->file.name);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_set(err, S_ISDIR(st.st_mode) ? EISDIR : EINVAL,
			"%s is neither a regular file nor a block device", posix->file.name);
	posix->block_device = S_ISBLK(st.st_mode);
	posix->file.growable = S_ISREG(st.st_mode);
	posix->file.can_punch = S_ISREG(st.st_mode); /* until it turns out otherwise */
	return 0;
}

int disk_file_open(const char *path, const struct disk_file_options *options,
	struct disk_file **ret_file, struct error *err)
{
	CLEANUP(cleanup_file) struct disk_file *file = NULL;
	struct posix_file *posix = calloc(1, sizeof(*posix));
	int r;

	if (!posix)
		return error_set(err, ENOMEM, "out of memory");
	file = &posix->file;
	file->ops = &posix_ops;
	file->direct_fd = -1;
	file->readonly = options->readonly;
	file->align_bytes = 1;
	file->fd = open(path, posix_open_flags(options), 0666);
	if (file->fd < 0)
		return error_set_errno(
			err, errno, "can't %s %s", options->create ? "create" : "open", path);
	file->name = strdup(path);
	if (!file->name)
		return error_set(err, ENOMEM, "out of memory");
	r = posix_check_kind(posix, err);
	if (r == 0 && options->lock != DISK_LOCK_NONE)
		r = disk_lock_take(file->fd, options->readonly, file->name, err);
	/* Emptied only once nobody else can be using it. */
	if (r == 0 && options->create && options->replace && file->growable &&
		ftruncate(file->fd, 0) < 0)
		r = error_set_errno(err, errno, "can't empty %s", path);
	if (r == 0 && options->direct)
		r = posix_open_direct(file, err);
	if (r < 0)
		return r;
	*ret_file = take_ptr(&file);
	return 0;
}
