/*
 * Opening disk images with what they are backed by, and the way of every call to the format.
 */
#include "backend/disk/disk.h"
#include "backend/disk/format.h"
#include "base/cleanup.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const struct disk_format *const formats[] = {&disk_format_qcow2, &disk_format_raw};

#define PROBE_BYTES 512

/* The images that are open on the way from the top one to the one that is being opened. */
struct chain {
	const struct chain *above;
	struct disk *disk;
	unsigned depth;
};

static int open_in_chain(struct disk_file *file, const struct disk_options *options,
	const struct chain *above, struct disk **ret_disk, struct error *err);

bool disk_format_known(const uint8_t *head, size_t bytes)
{
	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		if (formats[i]->probe && formats[i]->probe(head, bytes))
			return true;
	}
	return false;
}

static int find_format(struct disk *disk, const char *name, struct error *err)
{
	uint8_t head[PROBE_BYTES];
	int r;

	for (size_t i = 0; name && i < ARRAY_SIZE(formats); i++) {
		if (strcmp(formats[i]->name, name) == 0)
			disk->format = formats[i];
	}
	if (name)
		return disk->format ? 0
				    : error_set(err, EINVAL, "%s: no image format '%s'",
					      disk->file->name, name);
	r = disk_file_read(disk->file, head, sizeof(head), 0);
	if (r < 0)
		return error_set_errno(err, -r, "can't read %s", disk->file->name);
	disk->format = &disk_format_raw;
	disk->guessed = true;
	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		if (formats[i]->probe && formats[i]->probe(head, sizeof(head)))
			disk->format = formats[i];
	}
	return 0;
}

char *disk_backing_path(const char *image, const char *name)
{
	const char *slash = strrchr(image, '/');
	char *path;

	if (strncmp(name, "file:", 5) == 0)
		name += 5;
	if (name[0] == '/' || !slash)
		return strdup(name);
	if (asprintf(&path, "%.*s/%s", (int)(slash - image), image, name) < 0)
		return NULL;
	return path;
}

/* A colon before the first slash makes it the name of something that is not a file (nbd:, json:). */
static bool is_file_name(const char *name)
{
	const char *colon;

	if (strncmp(name, "file:", 5) == 0)
		name += 5;
	colon = strchr(name, ':');
	return name[0] && (!colon || strcspn(name, "/") < (size_t)(colon - name));
}

static int backing_allowed(const struct disk *disk, enum disk_backing_rule rule, struct error *err)
{
	const char *image = disk->file->name, *name = disk->backing_name;

	if (rule == DISK_BACKING_REFUSE)
		return error_set(err, EPERM,
			"%s wants the backing file '%s', and backing files are refused here", image,
			name);
	if (!is_file_name(name))
		return error_set(err, ENOTSUP,
			"%s wants the backing file '%s', which is not a file's name", image, name);
	if (rule == DISK_BACKING_BESIDE && strchr(name, '/'))
		return error_set(err, EPERM,
			"%s wants the backing file '%s', and only files in its own directory are "
			"allowed",
			image, name);
	return 0;
}

/* Is the file already open in the chain? */
static int check_cycle(const struct chain *chain, const struct disk_file *file, struct error *err)
{
	struct stat st, other;

	if (chain->depth >= DISK_CHAIN_MAX)
		return error_set(err, ELOOP, "%s: more than %d images behind each other",
			file->name, DISK_CHAIN_MAX);
	if (file->fd < 0 || fstat(file->fd, &st) < 0)
		return 0;
	for (; chain; chain = chain->above) {
		int fd = chain->disk->file->fd;

		if (fd >= 0 && fstat(fd, &other) == 0 && st.st_dev == other.st_dev &&
			st.st_ino == other.st_ino)
			return error_set(err, ELOOP, "%s is its own backing file", file->name);
	}
	return 0;
}

static int open_backing(struct disk *disk, const struct disk_options *options,
	const struct chain *above, struct error *err)
{
	struct chain chain = {above, disk, above ? above->depth + 1 : 1};
	struct disk_options below = {.format = disk->backing_format,
		.readonly = true,
		.direct = options->direct,
		.lock = options->lock,
		.backing = options->backing,
		.cache_bytes = options->cache_bytes};
	/* Not locked until it is known not to be in the chain: that would be a misleading message. */
	struct disk_file_options look = {.readonly = true,
		.lock = DISK_LOCK_NONE,
		.no_follow = options->backing == DISK_BACKING_BESIDE};
	struct disk_file_options use = look;
	AUTO_FREE char *path = disk_backing_path(disk->file->name, disk->backing_name);
	struct disk_file *file;
	int r = backing_allowed(disk, options->backing, err);

	if (r < 0)
		return r;
	if (!path)
		return error_set(err, ENOMEM, "out of memory");
	r = disk_file_open(path, &look, &file, err);
	if (r == 0) {
		r = check_cycle(&chain, file, err);
		disk_file_close(file);
	}
	use.lock = options->lock;
	use.direct = options->direct;
	if (r == 0)
		r = disk_file_open(path, &use, &file, err);
	if (r == 0)
		r = open_in_chain(file, &below, &chain, &disk->backing, err);
	if (r < 0)
		error_prefix(err, "backing file of %s", disk->file->name);
	return r;
}

static void disk_free(struct disk *disk)
{
	if (disk->backing)
		disk_close(disk->backing);
	disk_file_close(disk->file);
	free(disk->backing_name);
	free(disk->backing_format);
	free(disk);
}

static int open_in_chain(struct disk_file *file, const struct disk_options *options,
	const struct chain *above, struct disk **ret_disk, struct error *err)
{
	struct disk *disk = calloc(1, sizeof(*disk));
	int r;

	if (!disk) {
		disk_file_close(file);
		return error_set(err, ENOMEM, "out of memory");
	}
	disk->file = file;
	disk->readonly = options->readonly || file->readonly;
	r = find_format(disk, options->format, err);
	if (r == 0)
		r = disk->format->open(disk, options, err);
	if (r < 0) {
		disk_free(disk);
		return r;
	}
	if (disk->backing_name && options->backing == DISK_BACKING_IGNORE)
		disk->backing_ignored = true;
	else if (disk->backing_name)
		r = open_backing(disk, options, above, err);
	if (r < 0) {
		disk_close(disk);
		return r;
	}
	*ret_disk = disk;
	return 0;
}

int disk_open_file(struct disk_file *file, const struct disk_options *options,
	struct disk **ret_disk, struct error *err)
{
	return open_in_chain(file, options, NULL, ret_disk, err);
}

int disk_open(const char *path, const struct disk_options *options, struct disk **ret_disk,
	struct error *err)
{
	struct disk_file_options how = {
		.readonly = options->readonly, .direct = options->direct, .lock = options->lock};
	struct disk_file *file;
	int r = disk_file_open(path, &how, &file, err);

	return r < 0 ? r : disk_open_file(file, options, ret_disk, err);
}

int disk_close(struct disk *disk)
{
	int r = 0;

	if (!disk)
		return 0;
	r = disk->format->close(disk);
	disk_free(disk);
	return r;
}

void disk_begin(struct disk *disk, enum disk_access access, uint64_t offset, uint64_t bytes,
	struct disk_extent *ret_extent)
{
	*ret_extent = (struct disk_extent){.kind = DISK_EXTENT_SLOW, .bytes = bytes};
	disk->format->begin(disk, access, offset, bytes, ret_extent);
}

void disk_end(const struct disk_extent *extent)
{
	if (extent->holder)
		extent->holder->format->end(extent->holder, extent->epoch);
}

int disk_readv(
	struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes)
{
	return bytes ? disk->format->readv(disk, iov, count, offset, bytes) : 0;
}

int disk_writev(
	struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes)
{
	if (disk->readonly)
		return -EROFS;
	return bytes ? disk->format->writev(disk, iov, count, offset, bytes) : 0;
}

int disk_read(struct disk *disk, void *buf, uint64_t bytes, uint64_t offset)
{
	struct iovec iov = {.iov_base = buf, .iov_len = bytes};

	return disk_readv(disk, &iov, 1, offset, bytes);
}

int disk_write(struct disk *disk, const void *buf, uint64_t bytes, uint64_t offset)
{
	struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = bytes};

	return disk_writev(disk, &iov, 1, offset, bytes);
}

int disk_discard(struct disk *disk, uint64_t offset, uint64_t bytes)
{
	if (disk->readonly)
		return -EROFS;
	return bytes ? disk->format->discard(disk, offset, bytes) : 0;
}

int disk_zero(struct disk *disk, uint64_t offset, uint64_t bytes, bool unmap)
{
	if (disk->readonly)
		return -EROFS;
	return bytes ? disk->format->zero(disk, offset, bytes, unmap) : 0;
}

int disk_flush(struct disk *disk)
{
	return disk->readonly ? 0 : disk->format->flush(disk);
}

struct disk_file *disk_flush_file(struct disk *disk)
{
	return disk->readonly ? NULL : disk->format->flush_file(disk);
}

int disk_map(struct disk *disk, uint64_t offset, uint64_t bytes, struct disk_map_run *ret_run)
{
	*ret_run = (struct disk_map_run){.bytes = bytes};
	return disk->format->map(disk, offset, bytes, ret_run);
}

int disk_map_backing(
	struct disk *disk, uint64_t offset, uint64_t bytes, struct disk_map_run *ret_run)
{
	int r;

	*ret_run = (struct disk_map_run){.bytes = bytes};
	if (!disk->backing || offset >= disk->backing->size_bytes)
		return 0;
	bytes = MIN(bytes, disk->backing->size_bytes - offset);
	r = disk_map(disk->backing, offset, bytes, ret_run);
	ret_run->depth++;
	return r;
}

int disk_read_backing(
	struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes)
{
	struct iov_place place = iov_start(iov, count);
	uint64_t there = 0;
	int r = 0;

	if (disk->backing_ignored)
		return -EIO;
	if (disk->backing && offset < disk->backing->size_bytes)
		there = MIN(bytes, disk->backing->size_bytes - offset);
	for (uint64_t done = 0; done < there && r == 0;) {
		struct iovec part[32];
		unsigned n;
		uint64_t got = iov_take(&place, there - done, part, ARRAY_SIZE(part), &n);

		r = disk_readv(disk->backing, part, n, offset + done, got);
		done += got;
	}
	iov_fill_zero(&place, bytes - there);
	return r;
}

uint64_t disk_size_bytes(const struct disk *disk)
{
	return disk->size_bytes;
}

bool disk_readonly(const struct disk *disk)
{
	return disk->readonly;
}

const char *disk_format_name(const struct disk *disk)
{
	return disk->format->name;
}

struct disk *disk_backing(struct disk *disk)
{
	return disk->backing;
}

struct disk_file *disk_file(struct disk *disk)
{
	return disk->file;
}

uint32_t disk_cluster_bytes(const struct disk *disk)
{
	return disk->cluster_bytes;
}

bool disk_can_discard(const struct disk *disk)
{
	return !disk->readonly && (disk->format != &disk_format_raw || disk->file->can_punch);
}

int disk_resize(struct disk *disk, uint64_t size_bytes, struct error *err)
{
	if (disk->readonly)
		return error_set(err, EROFS, "%s is read-only", disk->file->name);
	if (!size_bytes || !IS_ALIGNED(size_bytes, 512) || size_bytes > INT64_MAX)
		return error_set(err, EINVAL, "a disk's size is a multiple of 512 bytes");
	return disk->format->resize(disk, size_bytes, err);
}
