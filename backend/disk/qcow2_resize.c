/*
 * Changing the size of a qcow2 disk. The disk has no other user meanwhile.
 */
#include "backend/disk/qcow2.h"

#include <string.h>

/* Write a table of host-order words in a new place, whose counts are raised; both are lasting. */
static int write_words(struct qcow2 *q, const uint64_t *words, uint64_t count, uint64_t *ret_offset)
{
	uint64_t clusters = MAX(qcow2_clusters(q, count * 8), 1ull);
	AUTO_FREE uint64_t *raw = calloc(MAX(count, 1ull), 8);
	int r;

	if (!raw)
		return -ENOMEM;
	for (uint64_t i = 0; i < count; i++)
		raw[i] = htobe64(words[i]);
	r = qcow2_alloc_table(q, clusters, ret_offset);
	if (r < 0)
		return r;
	r = disk_file_write(q->file, raw, count * 8, *ret_offset);
	if (r == 0)
		r = qcow2_flush_meta(q); /* the counts, and a barrier */
	if (r < 0)
		qcow2_untake_table(q, clusters, *ret_offset);
	return r;
}

int qcow2_l1_move(struct qcow2 *q, const uint64_t *l1, uint32_t entries, uint64_t size_bytes)
{
	struct qcow2_header before = q->header;
	uint64_t *copy = calloc(MAX(entries, 1u), 8), offset;
	int r;

	if (!copy)
		return -ENOMEM;
	memcpy(copy, l1, entries * 8ull);
	r = write_words(q, l1, entries, &offset);
	if (r == 0) {
		q->header.l1_offset = offset;
		q->header.l1_entries = entries;
		q->header.size_bytes = size_bytes;
		r = qcow2_header_write(q);
	}
	if (r == 0)
		r = qcow2_barrier(q);
	if (r == 0)
		r = qcow2_cache_resize(&q->l2, entries);
	if (r < 0) {
		q->header = before;
		q->leaky = true;
		free(copy);
		return r;
	}
	if (before.l1_entries)
		qcow2_free_later(q, before.l1_offset >> before.cluster_bits,
			qcow2_clusters(q, before.l1_entries * 8ull));
	free(q->l1);
	q->l1 = copy;
	return 0;
}

static int l1_enlarge(struct qcow2 *q, uint64_t size_bytes, struct error *err)
{
	uint64_t entries = qcow2_l1_entries_for(q, size_bytes);
	AUTO_FREE uint64_t *l1 = NULL;
	AUTO_LOCK(&q->meta);
	int r = qcow2_touch(q);

	if (r == 0)
		r = qcow2_flush_meta(q);
	if (r < 0 || entries <= q->header.l1_entries)
		return r < 0 ? error_set_errno(err, -r, "can't write %s", q->file->name) : 0;
	if (entries > QCOW2_L1_BYTES_MAX / 8)
		return error_set(
			err, EFBIG, "%s: so large a disk needs larger clusters", q->file->name);
	l1 = calloc(entries, 8);
	if (!l1)
		return error_set(err, ENOMEM, "out of memory");
	memcpy(l1, q->l1, q->header.l1_entries * 8ull);
	r = qcow2_l1_move(q, l1, (uint32_t)entries, q->header.size_bytes);
	return r < 0 ? error_set_errno(err, -r, "can't enlarge the L1 table of %s", q->file->name)
		     : 0;
}

static int size_write(struct qcow2 *q, uint64_t size_bytes)
{
	uint64_t old = q->header.size_bytes;
	AUTO_LOCK(&q->meta);
	int r = qcow2_flush_meta(q);

	if (r < 0)
		return r;
	q->header.size_bytes = size_bytes;
	r = qcow2_header_write(q);
	if (r == 0)
		r = qcow2_barrier(q);
	if (r < 0)
		q->header.size_bytes = old;
	return r;
}

/* What was beyond the end, of the last cluster or of a longer backing file, must not come to light. */
static int grow(struct qcow2 *q, uint64_t old, uint64_t new, struct error *err)
{
	struct disk *disk = q->disk;
	uint64_t hidden = ALIGN_UP(old, q->cluster_bytes);
	int r = l1_enlarge(q, new, err);

	if (r < 0)
		return r;
	if (disk->backing_ignored)
		hidden = new;
	else if (disk->backing)
		hidden = MAX(hidden, disk->backing->size_bytes);
	disk->size_bytes = new;
	r = qcow2_zero(disk, old, MIN(hidden, new) - old, true);
	if (r == 0)
		r = size_write(q, new);
	if (r < 0) {
		disk->size_bytes = old;
		return error_set_errno(err, -r, "can't enlarge %s", q->file->name);
	}
	return 0;
}

static int shrink(struct qcow2 *q, uint64_t old, uint64_t new, struct error *err)
{
	int r;

	r = qcow2_drop(q, ALIGN_UP(new, q->cluster_bytes), ALIGN_UP(old, q->cluster_bytes));
	if (r == 0)
		r = size_write(q, new);
	if (r < 0)
		return error_set_errno(err, -r, "can't shrink %s", q->file->name);
	q->disk->size_bytes = new;
	return 0;
}

int qcow2_resize(struct disk *disk, uint64_t size_bytes, struct error *err)
{
	struct qcow2 *q = qcow2_of(disk);
	uint64_t old = disk->size_bytes;

	if (q->header.snapshots && q->header.version < 3)
		return error_set(err, ENOTSUP,
			"%s: with version 2 of the format a disk that has snapshots can't change "
			"its size",
			q->file->name);
	if (size_bytes > INT64_MAX - MIB(4))
		return error_set(err, EFBIG, "%s: the disk would be too large", q->file->name);
	if (size_bytes == old)
		return 0;
	return size_bytes > old ? grow(q, old, size_bytes, err) : shrink(q, old, size_bytes, err);
}
