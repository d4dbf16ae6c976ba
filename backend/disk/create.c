/*
 * Making disk images, and saying what they are.
 *
 * A new qcow2 image is first one with no bytes (header, one block of counts and its table), which is then resized.
 */
#include "backend/disk/image.h"
#include "backend/disk/qcow2.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define V2_BYTES 72u
#define V3_BYTES 112u

static int power_of_two(uint32_t value)
{
	return value && !(value & (value - 1)) ? __builtin_ctz(value) : -1;
}

static int header_make(const struct image_create *create, struct qcow2_header *h, struct error *err)
{
	int cluster_bits = power_of_two(create->cluster_bytes ? create->cluster_bytes : 65536);
	int order = power_of_two(create->refcount_bits ? create->refcount_bits : 16);
	const char *compression = create->compression ? create->compression : "deflate";
	bool zstd = strcmp(compression, "zstd") == 0;

	*h = (struct qcow2_header){.version = create->version ? create->version : 3};
	if (h->version != 2 && h->version != 3)
		return error_set(err, EINVAL, "qcow2 has versions 2 and 3");
	if (cluster_bits < QCOW2_CLUSTER_BITS_MIN || cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		return error_set(err, EINVAL, "a cluster is a power of two from 512 to 2M");
	if (order < 0 || order > 6)
		return error_set(
			err, EINVAL, "reference counts have 1, 2, 4, 8, 16, 32 or 64 bits");
	if (!zstd && strcmp(compression, "deflate") && strcmp(compression, "zlib"))
		return error_set(
			err, EINVAL, "compression is 'deflate' or 'zstd', not '%s'", compression);
	if (h->version == 2 && (order != 4 || zstd || create->lazy_refcounts))
		return error_set(err, EINVAL,
			"version 2 of qcow2 has 16-bit counts, none of them lazy, and deflate");
	h->cluster_bits = (uint32_t)cluster_bits;
	h->refcount_order = (uint32_t)order;
	h->header_bytes = h->version == 2 ? V2_BYTES : V3_BYTES;
	h->incompatible = zstd ? QCOW2_COMPRESSION : 0;
	h->compression = zstd ? QCOW2_ZSTD : QCOW2_DEFLATE;
	h->compatible = create->lazy_refcounts ? QCOW2_LAZY : 0;
	h->reftable_offset = BIT(cluster_bits);
	h->reftable_clusters = 1;
	return 0;
}

/* Three clusters: header, table of counts, counts. */
static int bootstrap(struct disk_file *file, const struct qcow2_header *h)
{
	uint64_t cluster = BIT(h->cluster_bits);
	AUTO_FREE uint8_t *bytes = calloc(3, cluster);

	if (!bytes)
		return -ENOMEM;
	qcow2_header_encode(h, bytes);
	store_be64(bytes + cluster, 2 * cluster);
	for (unsigned i = 0; i < 3; i++)
		qcow2_refcount_store(bytes + 2 * cluster, h->refcount_order, i, 1);
	return disk_file_write(file, bytes, 3 * cluster, 0);
}

/* How large is what the image will be backed by? Its own backing files have to be there, too. */
static int backing_size(
	const char *path, const struct image_create *create, uint64_t *ret_bytes, struct error *err)
{
	struct disk_options options = {.format = create->backing_format, .readonly = true};
	AUTO_FREE char *name = disk_backing_path(path, create->backing);
	struct disk *disk;
	int r;

	if (!name)
		return error_set(err, ENOMEM, "out of memory");
	r = disk_open(name, &options, &disk, err);
	if (r < 0)
		return r;
	*ret_bytes = disk->size_bytes;
	return disk_close(disk);
}

/* The file is the disk's from the start, whatever happens. */
static int create_qcow2(
	struct disk_file *file, const struct image_create *create, uint64_t size, struct error *err)
{
	struct disk_options options = {.format = "qcow2"};
	struct qcow2_header header;
	struct disk *disk = NULL;
	int r = header_make(create, &header, err);

	if (r == 0) {
		r = bootstrap(file, &header);
		if (r < 0)
			error_set_errno(err, -r, "can't write %s", file->name);
	}
	if (r < 0) {
		disk_file_close(file);
		return r;
	}
	r = disk_open_file(file, &options, &disk, err);
	if (r < 0)
		return r;
	if (size)
		r = disk_resize(disk, size, err);
	if (r == 0 && create->backing)
		r = image_set_backing(disk, create->backing, create->backing_format, err);
	if (r < 0) {
		disk_close(disk);
		return r;
	}
	r = disk_close(disk);
	return r < 0 ? error_set_errno(err, -r, "can't write the new image") : 0;
}

static int create_raw(struct disk_file *file, uint64_t size, struct error *err)
{
	int r = file->growable ? file->ops->truncate(file, size) : 0;

	if (r < 0)
		error_set_errno(err, -r, "can't make %s so large", file->name);
	disk_file_close(file);
	return r;
}

static int check_request(
	const char *path, const struct image_create *create, uint64_t *size, struct error *err)
{
	struct qcow2_header header;
	bool raw = strcmp(create->format, "raw") == 0;
	int r;

	if (!raw && strcmp(create->format, "qcow2"))
		return error_set(err, EINVAL, "no image format '%s'", create->format);
	if (raw && create->backing)
		return error_set(err, EINVAL, "a raw image can't have a backing file");
	if (!raw) {
		r = header_make(create, &header, err);
		if (r < 0)
			return r;
	}
	if (create->backing) {
		uint64_t backing_bytes = 0;

		r = backing_size(path, create, &backing_bytes, err);
		if (r < 0)
			return r;
		*size = *size ? *size : backing_bytes;
	}
	*size = ALIGN_UP(*size, 512);
	if (*size > INT64_MAX)
		return error_set(err, EFBIG, "the disk would be too large");
	return 0;
}

int image_create(const char *path, const struct image_create *create, struct error *err)
{
	struct disk_file_options options = {.create = true, .replace = create->replace};
	uint64_t size = create->size_bytes;
	struct disk_file *file;
	bool existed;
	int r = check_request(path, create, &size, err);

	if (r < 0)
		return r;
	existed = access(path, F_OK) == 0;
	r = disk_file_open(path, &options, &file, err);
	if (r < 0)
		return r;
	r = strcmp(create->format, "raw") == 0 ? create_raw(file, size, err)
					       : create_qcow2(file, create, size, err);
	if (r < 0 && !existed)
		unlink(path);
	return r;
}

int image_info(struct disk *disk, struct image_info *ret_info)
{
	struct image_info *info = ret_info;
	struct stat st;
	int r;

	*info = (struct image_info){.size_bytes = disk->size_bytes};
	r = disk->file->ops->size(disk->file, &info->file_bytes);
	if (r < 0)
		return r;
	if (disk->file->fd >= 0 && fstat(disk->file->fd, &st) == 0)
		info->allocated_bytes = (uint64_t)st.st_blocks * 512;
	if (disk->format == &disk_format_qcow2) {
		const struct qcow2_header *h = &qcow2_of(disk)->header;

		info->version = h->version;
		info->cluster_bytes = 1u << h->cluster_bits;
		info->refcount_bits = 1u << h->refcount_order;
		info->snapshots = h->snapshots;
		info->compression = h->compression == QCOW2_ZSTD ? "zstd" : "deflate";
		info->lazy_refcounts = h->compatible & QCOW2_LAZY;
		info->dirty = h->incompatible & QCOW2_DIRTY;
		info->corrupt = h->incompatible & QCOW2_CORRUPT;
		info->extended = h->incompatible & QCOW2_EXTENDED;
	}
	return 0;
}

int image_set_backing(struct disk *disk, const char *name, const char *format, struct error *err)
{
	char *old_name = disk->backing_name, *old_format = disk->backing_format;
	char *new_name = name ? strdup(name) : NULL;
	char *new_format = name && format ? strdup(format) : NULL;
	struct qcow2 *q = qcow2_of(disk);
	int r;

	if (disk->format != &disk_format_qcow2) {
		free(new_name);
		free(new_format);
		return error_set(err, ENOTSUP, "%s: a %s image can't have a backing file",
			disk->file->name, disk->format->name);
	}
	disk->backing_name = new_name;
	disk->backing_format = new_format;
	{
		AUTO_LOCK(&q->meta);
		r = (name && !new_name) || (name && format && !new_format) ? -ENOMEM : 0;
		if (r == 0)
			r = qcow2_touch(q);
		if (r == 0)
			r = qcow2_flush_meta(q);
		if (r == 0)
			r = qcow2_header_rewrite(q, err);
		else
			error_set_errno(err, -r, "can't write %s", disk->file->name);
		if (r == 0)
			r = qcow2_barrier(q);
	}
	if (r < 0) {
		disk->backing_name = old_name;
		disk->backing_format = old_format;
		free(new_name);
		free(new_format);
		return r;
	}
	free(old_name);
	free(old_format);
	return 0;
}

int image_empty(struct disk *disk, struct error *err)
{
	struct qcow2 *q = qcow2_of(disk);
	int r;

	if (disk->format != &disk_format_qcow2)
		return error_set(err, ENOTSUP, "%s is not a qcow2 image", disk->file->name);
	r = qcow2_drop(q, 0, ALIGN_UP(disk->size_bytes, q->cluster_bytes));
	if (r == 0)
		r = disk_flush(disk);
	return r < 0 ? error_set_errno(err, -r, "can't empty %s", disk->file->name) : 0;
}
