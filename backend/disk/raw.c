/*
 * Raw images: the disk's bytes are the file's, at the same places. The size is rounded up to whole sectors; what is
 * missing from the last one reads as zeros.
 *
 * If nobody said that an image is raw, and it only looks like none of the others, then a guest could write another
 * format's header into its first sector, with some file of the host as backing file, and be given that
 * file when the disk is opened next. So such a write is refused.
 */
#include "backend/disk/disk.h"
#include "base/cleanup.h"

#include <string.h>

#define SECTOR_BYTES 512

static int raw_open(struct disk *disk, const struct disk_options *options, struct error *err)
{
	int r = disk->file->ops->size(disk->file, &disk->size_bytes);

	if (r < 0)
		return error_set_errno(err, -r, "can't find the size of %s", disk->file->name);
	disk->size_bytes = ALIGN_UP(disk->size_bytes, SECTOR_BYTES);
	return 0;
}

static int raw_close(struct disk *disk)
{
	return disk->readonly ? 0 : disk->file->ops->flush(disk->file);
}

static bool raw_guarded(const struct disk *disk, uint64_t offset)
{
	return disk->guessed && offset < SECTOR_BYTES;
}

static void raw_begin(struct disk *disk, enum disk_access access, uint64_t offset, uint64_t bytes,
	struct disk_extent *ret_extent)
{
	if (access == DISK_WRITE && (disk->readonly || raw_guarded(disk, offset)))
		return;
	ret_extent->kind = DISK_EXTENT_DATA;
	ret_extent->file = disk->file;
	ret_extent->file_offset = offset;
}

static void raw_end(struct disk *disk, unsigned epoch) {}

static int raw_readv(
	struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes)
{
	return disk->file->ops->readv(disk->file, iov, count, offset);
}

/* The first sector as it will be, in a copy of our own: the guest may be changing what it gave us. */
static int raw_write_guarded(
	struct disk *disk, struct iov_place *place, uint64_t offset, uint64_t bytes)
{
	uint8_t head[SECTOR_BYTES];
	int r = disk_file_read(disk->file, head, sizeof(head), 0);

	if (r < 0)
		return r;
	iov_to_buffer(place, head + offset, bytes);
	if (disk_format_known(head, sizeof(head)))
		return -EPERM;
	return disk_file_write(disk->file, head + offset, bytes, offset);
}

static int raw_writev(
	struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes)
{
	struct iov_place place = iov_start(iov, count);
	int r = 0;

	if (!raw_guarded(disk, offset))
		return disk->file->ops->writev(disk->file, iov, count, offset);
	r = raw_write_guarded(disk, &place, offset, MIN(bytes, SECTOR_BYTES - offset));
	offset = SECTOR_BYTES;
	while (r == 0) {
		struct iovec part[32];
		unsigned n;
		uint64_t got = iov_take(&place, UINT64_MAX, part, ARRAY_SIZE(part), &n);

		if (!got)
			break;
		r = disk->file->ops->writev(disk->file, part, n, offset);
		offset += got;
	}
	return r;
}

static int raw_discard(struct disk *disk, uint64_t offset, uint64_t bytes)
{
	return disk->file->ops->discard(disk->file, offset, bytes);
}

static int raw_zero(struct disk *disk, uint64_t offset, uint64_t bytes, bool unmap)
{
	int r = unmap ? disk->file->ops->punch(disk->file, offset, bytes) : -EOPNOTSUPP;

	return r == -EOPNOTSUPP ? disk->file->ops->zero(disk->file, offset, bytes) : r;
}

static int raw_flush(struct disk *disk)
{
	return disk->file->ops->flush(disk->file);
}

static struct disk_file *raw_flush_file(struct disk *disk)
{
	return disk->file;
}

static int raw_map(struct disk *disk, uint64_t offset, uint64_t bytes, struct disk_map_run *ret_run)
{
	ret_run->present = true;
	ret_run->has_offset = true;
	ret_run->file_offset = offset;
	return disk->file->ops->extent(disk->file, offset, bytes, &ret_run->bytes, &ret_run->data);
}

static int raw_resize(struct disk *disk, uint64_t size_bytes, struct error *err)
{
	int r = disk->file->ops->truncate(disk->file, size_bytes);

	if (r < 0)
		return error_set_errno(err, -r, "can't resize %s", disk->file->name);
	disk->size_bytes = size_bytes;
	return 0;
}

const struct disk_format disk_format_raw = {
	.name = "raw",
	.open = raw_open,
	.close = raw_close,
	.begin = raw_begin,
	.end = raw_end,
	.readv = raw_readv,
	.writev = raw_writev,
	.discard = raw_discard,
	.zero = raw_zero,
	.flush = raw_flush,
	.flush_file = raw_flush_file,
	.map = raw_map,
	.resize = raw_resize,
};
