/*
 * Reading and writing a qcow2 disk.
 */
#include "backend/disk/qcow2.h"

#include <string.h>

#define IOV_PART 64

/* The fast way. */

static void extent_data(struct qcow2 *q, uint64_t host, uint64_t bytes, struct disk_extent *extent)
{
	extent->kind = DISK_EXTENT_DATA;
	extent->bytes = bytes;
	extent->file = q->file;
	extent->file_offset = host;
	if (q->disk->readonly)
		return;
	extent->holder = q->disk;
	extent->epoch = qcow2_hold(q);
}

static void begin_read(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct disk_extent *extent)
{
	struct qcow2_place place;
	struct disk *backing = q->disk->backing;

	{
		AUTO_LOCK(&q->lock);
		qcow2_lookup(q, offset, bytes, &place);
		extent->bytes = place.bytes;
		if (place.kind == QCOW2_DATA)
			extent_data(q, place.host, place.bytes, extent);
	}
	if (place.kind == QCOW2_ZEROS || (place.kind == QCOW2_NOTHING && !qcow2_backed(q, offset)))
		extent->kind = DISK_EXTENT_ZERO;
	else if (place.kind == QCOW2_NOTHING && backing)
		disk_begin(backing, DISK_READ, offset,
			MIN(place.bytes, backing->size_bytes - offset), extent);
}

/* Zeros that can be written to without I/O for metadata: give them clusters of the pool. `lock` is held. */
static void begin_allocate(struct qcow2 *q, uint64_t offset, const struct qcow2_place *place,
	struct disk_extent *extent)
{
	uint64_t inside = offset & (q->cluster_bytes - 1), bytes = place->bytes;
	uint64_t l1 = q->l1[offset >> qcow2_l1_shift(q)], count, host;
	struct qcow2_table *table;

	if (!(l1 & QCOW2_OFFSET) || !(l1 & QCOW2_COPIED) || !q->pool.count || !q->pool_zero ||
		place->host || q->entry_bytes != 8)
		return;
	count = MIN(qcow2_clusters(q, inside + bytes), q->pool.count);
	host = q->pool.start << q->header.cluster_bits;
	table = qcow2_cache_find(&q->l2, (uint32_t)(offset >> qcow2_l1_shift(q)));
	for (uint64_t i = 0; i < count; i++)
		qcow2_l2_set(q, table, offset + i * q->cluster_bytes,
			(host + i * q->cluster_bytes) | QCOW2_COPIED);
	q->pool.start += count;
	q->pool.count -= count;
	extent_data(q, host + inside, MIN(bytes, count * q->cluster_bytes - inside), extent);
}

static void begin_write(
	struct qcow2 *q, uint64_t offset, uint64_t bytes, struct disk_extent *extent)
{
	struct qcow2_place place;
	AUTO_LOCK(&q->lock);

	if (q->disk->readonly || !q->touched || q->corrupt)
		return;
	qcow2_lookup(q, offset, bytes, &place);
	extent->bytes = place.bytes;
	if (place.kind == QCOW2_DATA && place.copied)
		extent_data(q, place.host, place.bytes, extent);
	else if (offset < q->busy_to && offset + place.bytes > q->busy_from)
		return;
	else if (place.kind == QCOW2_ZEROS ||
		 (place.kind == QCOW2_NOTHING &&
			 !qcow2_backed(q, ALIGN_DOWN(offset, q->cluster_bytes))))
		begin_allocate(q, offset, &place, extent);
}

void qcow2_begin(struct disk *disk, enum disk_access access, uint64_t offset, uint64_t bytes,
	struct disk_extent *ret_extent)
{
	if (access == DISK_READ)
		begin_read(qcow2_of(disk), offset, bytes, ret_extent);
	else
		begin_write(qcow2_of(disk), offset, bytes, ret_extent);
}

/* The slow way. */

/* Transfer between the vector's next bytes and one place in a file. */
static int file_transfer(struct disk_file *file, enum disk_access access, struct iov_place *place,
	uint64_t bytes, uint64_t offset)
{
	struct iovec part[IOV_PART];
	int r = 0;

	while (bytes && r == 0) {
		unsigned n;
		uint64_t got = iov_take(place, bytes, part, IOV_PART, &n);

		if (!got)
			return -EINVAL;
		r = access == DISK_READ ? file->ops->readv(file, part, n, offset)
					: file->ops->writev(file, part, n, offset);
		offset += got;
		bytes -= got;
	}
	return r;
}

static int read_behind(struct qcow2 *q, uint64_t offset, struct iov_place *place, uint64_t bytes)
{
	struct iovec part[IOV_PART];
	int r = 0;

	while (bytes && r == 0) {
		unsigned n;
		uint64_t got = iov_take(place, bytes, part, IOV_PART, &n);

		if (!got)
			return -EINVAL;
		r = disk_read_backing(q->disk, part, n, offset, got);
		offset += got;
		bytes -= got;
	}
	return r;
}

static int read_place(
	struct qcow2 *q, const struct qcow2_place *where, uint64_t offset, struct iov_place *place)
{
	switch (where->kind) {
	case QCOW2_NOTHING: return read_behind(q, offset, place, where->bytes);
	case QCOW2_ZEROS: iov_fill_zero(place, where->bytes); return 0;
	case QCOW2_DATA: return file_transfer(q->file, DISK_READ, place, where->bytes, where->host);
	case QCOW2_PACKED:
		return qcow2_unpack(
			q, where->entry, offset & (q->cluster_bytes - 1), place, where->bytes);
	default: return -EIO;
	}
}

/* Find out where something is and hold it there, so that it can be read with no lock. */
static int place_hold(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct qcow2_place *where,
	unsigned *ret_epoch)
{
	{
		AUTO_LOCK(&q->lock);
		qcow2_lookup(q, offset, bytes, where);
		*ret_epoch = qcow2_hold(q);
	}
	if (where->kind != QCOW2_MISS && where->kind != QCOW2_INVALID)
		return 0;
	qcow2_release(q, *ret_epoch);
	AUTO_LOCK(&q->meta);
	int r = qcow2_lookup_load(q, offset, bytes, where);
	pthread_mutex_lock(&q->lock);
	*ret_epoch = qcow2_hold(q);
	pthread_mutex_unlock(&q->lock);
	if (r < 0)
		qcow2_release(q, *ret_epoch);
	return r;
}

int qcow2_readv(
	struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes)
{
	struct qcow2 *q = qcow2_of(disk);
	struct iov_place place = iov_start(iov, count);
	int r = 0;

	while (bytes && r == 0) {
		struct qcow2_place where;
		unsigned epoch;

		r = place_hold(q, offset, bytes, &where, &epoch);
		if (r < 0)
			break;
		r = read_place(q, &where, offset, &place);
		qcow2_release(q, epoch);
		offset += where.bytes;
		bytes -= where.bytes;
	}
	return r;
}

/* What is at these bytes of the disk now, into a buffer. `meta` is held. */
static int read_old(struct qcow2 *q, uint64_t offset, uint8_t *buf, uint64_t bytes)
{
	int r = 0;

	while (bytes && r == 0) {
		struct iovec iov = {.iov_base = buf, .iov_len = bytes};
		struct iov_place place = iov_start(&iov, 1);
		struct qcow2_place where;

		r = qcow2_lookup_load(q, offset, bytes, &where);
		if (r == 0)
			r = read_place(q, &where, offset, &place);
		offset += where.bytes;
		buf += where.bytes;
		bytes -= where.bytes;
	}
	return r;
}

/* Writing to clusters that have to be allocated first: so many from `cluster` (guest offset) on, the data begin
 * `head` bytes into them and leave `tail` bytes at their end. */
struct allocation {
	uint64_t cluster, count, host;
	uint64_t head, tail, bytes;
	bool zero; /* the new clusters read as zeros */
};

/* The part of the first or last cluster that is not written to keeps its old content. */
static int fill_rest(struct qcow2 *q, const struct allocation *a, uint64_t from, uint64_t bytes)
{
	uint64_t there = from < q->disk->size_bytes ? MIN(bytes, q->disk->size_bytes - from) : 0;
	AUTO_FREE uint8_t *buf = NULL;
	struct qcow2_place where;
	int r;

	if (!bytes)
		return 0;
	r = qcow2_lookup_load(q, from, bytes, &where);
	if (r < 0)
		return r;
	if (a->zero && (where.kind == QCOW2_ZEROS ||
			       (where.kind == QCOW2_NOTHING && !qcow2_backed(q, from))))
		return 0;
	buf = calloc(1, bytes);
	if (!buf)
		return -ENOMEM;
	r = read_old(q, from, buf, there);
	return r < 0 ? r : disk_file_write(q->file, buf, bytes, a->host + (from - a->cluster));
}

/* All data are in the file: from now on the clusters are found, and the old ones are not. */
static int link_clusters(struct qcow2 *q, const struct allocation *a)
{
	struct qcow2_table *table;
	int r = qcow2_l2_for_write(q, a->cluster, &table);

	if (r == 0)
		r = qcow2_count_new(q, a->host >> q->header.cluster_bits, a->count);
	for (uint64_t i = 0; r == 0 && i < a->count; i++) {
		uint64_t at = a->cluster + i * q->cluster_bytes, first;
		uint64_t old = qcow2_l2_entry(q, table, at);
		uint64_t clusters = qcow2_entry_clusters(q, old, &first);

		if (clusters)
			qcow2_free_later(q, first, clusters);
		AUTO_LOCK(&q->lock);
		qcow2_l2_set(q, table, at, (a->host + i * q->cluster_bytes) | QCOW2_COPIED);
	}
	return r;
}

/* Up to `bytes` from the vector's place, at offset, where nothing can be written in place. */
static int write_allocate(struct qcow2 *q, struct iov_place *place, uint64_t offset, uint64_t bytes,
	uint64_t *ret_done)
{
	struct allocation a = {.cluster = ALIGN_DOWN(offset, q->cluster_bytes)};
	struct qcow2_table *table;
	struct qcow2_run run;
	int r;

	a.head = offset - a.cluster;
	/* An error that the metadata are to blame for comes before the data are written. */
	r = qcow2_l2_for_write(q, a.cluster, &table);
	if (r == 0)
		r = qcow2_pool_take(q, qcow2_clusters(q, a.head + bytes), &run, &a.zero);
	if (r < 0)
		return r;
	a.count = run.count;
	a.host = run.start << q->header.cluster_bits;
	a.bytes = MIN(bytes, a.count * q->cluster_bytes - a.head);
	a.tail = a.count * q->cluster_bytes - a.head - a.bytes;
	r = fill_rest(q, &a, a.cluster, a.head);
	if (r == 0)
		r = fill_rest(q, &a, offset + a.bytes, a.tail);
	if (r == 0)
		r = file_transfer(q->file, DISK_WRITE, place, a.bytes, a.host + a.head);
	if (r == 0)
		r = link_clusters(q, &a);
	if (r < 0)
		qcow2_pool_untake(q);
	else
		q->unlinked = (struct qcow2_run){0};
	*ret_done = a.bytes;
	return r;
}

/* As much of the range as is of one sort. It is marked busy before it is looked at, so that the fast way does not
 * allocate it in between. */
static int write_slow(struct qcow2 *q, struct iov_place *place, uint64_t offset, uint64_t bytes,
	uint64_t *ret_done)
{
	struct qcow2_place where;
	int r = qcow2_touch(q);

	qcow2_busy(q, ALIGN_DOWN(offset, q->cluster_bytes),
		ALIGN_UP(offset + bytes, q->cluster_bytes));
	if (r == 0)
		r = qcow2_lookup_load(q, offset, bytes, &where);
	if (r == 0) {
		*ret_done = where.bytes;
		if (where.kind == QCOW2_DATA && where.copied)
			r = file_transfer(q->file, DISK_WRITE, place, where.bytes, where.host);
		else
			r = write_allocate(q, place, offset, where.bytes, ret_done);
	}
	qcow2_busy(q, 0, 0);
	return r;
}

int qcow2_writev(
	struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes)
{
	struct qcow2 *q = qcow2_of(disk);
	struct iov_place place = iov_start(iov, count);
	int r = 0;

	while (bytes && r == 0) {
		struct disk_extent extent = {.kind = DISK_EXTENT_SLOW};
		uint64_t done = 0;

		begin_write(q, offset, bytes, &extent);
		if (extent.kind == DISK_EXTENT_DATA) {
			done = extent.bytes;
			r = file_transfer(q->file, DISK_WRITE, &place, done, extent.file_offset);
			disk_end(&extent);
		} else {
			AUTO_LOCK(&q->meta);
			r = write_slow(q, &place, offset, bytes, &done);
		}
		offset += done;
		bytes -= done;
	}
	return r;
}

int qcow2_map(struct disk *disk, uint64_t offset, uint64_t bytes, struct disk_map_run *ret_run)
{
	struct qcow2 *q = qcow2_of(disk);
	struct qcow2_place where;
	unsigned epoch;
	int r = place_hold(q, offset, bytes, &where, &epoch);

	if (r < 0)
		return r;
	qcow2_release(q, epoch);
	if (where.kind == QCOW2_NOTHING && qcow2_backed(q, offset))
		return disk_map_backing(disk, offset, where.bytes, ret_run);
	ret_run->bytes = where.bytes;
	ret_run->data = where.kind == QCOW2_DATA || where.kind == QCOW2_PACKED;
	ret_run->present = where.kind != QCOW2_NOTHING;
	ret_run->compressed = where.kind == QCOW2_PACKED;
	ret_run->has_offset = where.kind == QCOW2_DATA;
	ret_run->file_offset = where.host;
	return 0;
}
