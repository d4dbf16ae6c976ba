/*
 * Discarding and zeroing on a qcow2 disk: changes of L2 entries, cluster by cluster.
 *
 * What becomes of discarded clusters: they are unallocated; if a backing file would show through there, they are zeros
 * (version 3) or stay as they are (version 2, which cannot say "zeros").
 */
#include "backend/disk/qcow2.h"

enum wipe {
	WIPE_DISCARD,
	WIPE_UNMAP, /* zeros, and give the space back */
	WIPE_ZERO,  /* zeros, in the space that there is */
	WIPE_DROP,  /* unallocated, whatever is behind */
};

#define FREED_MAX 4096u /* runs of clusters that wait for a flush */
#define ZEROS_IOV 4

/* What the entry becomes. *ret_zero: zeros have to be written instead. */
static uint64_t wiped(
	const struct qcow2 *q, uint64_t entry, uint64_t offset, enum wipe how, bool *ret_zero)
{
	bool v3 = q->header.version >= 3;
	bool plain =
		!(entry & QCOW2_COMPRESSED) && entry & QCOW2_OFFSET && !(v3 && entry & QCOW2_ZERO);

	if (how == WIPE_DROP)
		return 0;
	if (how == WIPE_ZERO && plain && entry & QCOW2_COPIED) {
		*ret_zero = true;
		return entry;
	}
	if (!qcow2_backed(q, offset))
		return 0;
	if (v3)
		return QCOW2_ZERO;
	*ret_zero = how != WIPE_DISCARD;
	return entry;
}

/* One cluster. 1: zeros have to be written. */
static int wipe_cluster(struct qcow2 *q, struct qcow2_table *table, uint64_t offset, enum wipe how)
{
	uint64_t old, new, first, clusters;
	bool zero = false;

	{
		AUTO_LOCK(&q->lock);
		old = qcow2_l2_entry(q, table, offset);
		new = wiped(q, old, offset, how, &zero);
		if (new == old)
			return zero;
		qcow2_l2_set(q, table, offset, new);
	}
	clusters = qcow2_entry_clusters(q, old, &first);
	if (clusters)
		qcow2_free_later(q, first, clusters);
	return zero;
}

static int write_zeros(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
	int r = 0;

	while (bytes && r == 0) {
		struct iovec part[ZEROS_IOV];
		unsigned n;
		uint64_t got = iov_zeros(bytes, part, ZEROS_IOV, &n);

		r = qcow2_writev(q->disk, part, n, offset, got);
		offset += got;
		bytes -= got;
	}
	return r;
}

/* As many clusters as are mapped by one L2 table; *ret_zero are left for which zeros are to be written. `meta` */
static int wipe_table(
	struct qcow2 *q, uint64_t offset, uint64_t bytes, enum wipe how, struct qcow2_runs *zeros)
{
	uint64_t l1 = q->l1[offset >> qcow2_l1_shift(q)];
	bool nothing = !(l1 & QCOW2_OFFSET);
	struct qcow2_table *table;
	int r = qcow2_touch(q);

	if (r < 0)
		return r;
	if (nothing && (how == WIPE_DROP || !qcow2_backed(q, offset) ||
			       (how == WIPE_DISCARD && q->header.version < 3)))
		return 0;
	if (q->freed.count > FREED_MAX)
		r = qcow2_flush_meta(q);
	if (r == 0)
		r = qcow2_l2_for_write(q, offset, &table);
	for (uint64_t done = 0; r >= 0 && done < bytes; done += q->cluster_bytes) {
		r = wipe_cluster(q, table, offset + done, how);
		if (r == 1)
			r = qcow2_runs_add(zeros, (offset + done) >> q->header.cluster_bits, 1);
	}
	return MIN(r, 0);
}

/* Where an entry says that the cluster is ours it is zeroed in place. */
static int zero_run(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
	int r = 0;

	bytes = offset < q->disk->size_bytes ? MIN(bytes, q->disk->size_bytes - offset) : 0;
	while (bytes && r == 0) {
		struct disk_extent extent = {.kind = DISK_EXTENT_SLOW, .bytes = bytes};

		qcow2_begin(q->disk, DISK_WRITE, offset, bytes, &extent);
		if (extent.kind == DISK_EXTENT_DATA) {
			r = q->file->ops->zero(q->file, extent.file_offset, extent.bytes);
			disk_end(&extent);
		} else {
			extent.bytes = MIN(extent.bytes, q->cluster_bytes);
			r = write_zeros(q, offset, extent.bytes);
		}
		offset += extent.bytes;
		bytes -= extent.bytes;
	}
	return r;
}

/* Whole clusters. */
static int wipe(struct qcow2 *q, uint64_t offset, uint64_t end, enum wipe how)
{
	uint64_t span = BIT(qcow2_l1_shift(q));
	struct qcow2_runs zeros = {0};
	int r = 0;

	while (offset < end && r == 0) {
		uint64_t bytes = MIN(end - offset, span - (offset & (span - 1)));

		{
			AUTO_LOCK(&q->meta);
			r = wipe_table(q, offset, bytes, how, &zeros);
		}
		for (size_t i = 0; r == 0 && i < zeros.count; i++)
			r = zero_run(q, zeros.run[i].start << q->header.cluster_bits,
				zeros.run[i].count << q->header.cluster_bits);
		zeros.count = 0;
		offset += bytes;
	}
	free(zeros.run);
	return r;
}

/* The last cluster is whole even if the disk ends inside it. */
static void whole_clusters(const struct qcow2 *q, uint64_t offset, uint64_t bytes,
	uint64_t *ret_from, uint64_t *ret_to)
{
	uint64_t end = offset + bytes;

	*ret_from = ALIGN_UP(offset, q->cluster_bytes);
	*ret_to = end == q->disk->size_bytes ? ALIGN_UP(end, q->cluster_bytes)
					     : ALIGN_DOWN(end, q->cluster_bytes);
}

int qcow2_discard(struct disk *disk, uint64_t offset, uint64_t bytes)
{
	struct qcow2 *q = qcow2_of(disk);
	uint64_t from, to;

	whole_clusters(q, offset, bytes, &from, &to);
	return from < to ? wipe(q, from, to, WIPE_DISCARD) : 0;
}

/* Part of one cluster: nothing to do if it reads as zeros. */
static int zero_part(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
	struct disk_map_run run = {.bytes = bytes};
	int r;

	if (!bytes)
		return 0;
	r = qcow2_map(q->disk, offset, bytes, &run);
	return r < 0 || (!run.data && run.bytes == bytes) ? r : write_zeros(q, offset, bytes);
}

int qcow2_zero(struct disk *disk, uint64_t offset, uint64_t bytes, bool unmap)
{
	struct qcow2 *q = qcow2_of(disk);
	uint64_t from, to, end = offset + bytes;
	int r;

	whole_clusters(q, offset, bytes, &from, &to);
	if (from >= to) {
		uint64_t head = MIN(end, from) - offset;

		r = zero_part(q, offset, head);
		return r < 0 ? r : zero_part(q, offset + head, bytes - head);
	}
	r = zero_part(q, offset, from - offset);
	if (r == 0)
		r = wipe(q, from, to, unmap ? WIPE_UNMAP : WIPE_ZERO);
	if (r == 0 && to < end)
		r = zero_part(q, to, end - to);
	return r;
}

/* The table maps nothing any more: L1 forgets it. */
static void drop_table(struct qcow2 *q, uint32_t index)
{
	uint64_t offset = q->l1[index] & QCOW2_OFFSET;

	if (!offset)
		return;
	qcow2_free_later(q, offset >> q->header.cluster_bits, 1);
	qcow2_cache_drop(q, &q->l2, index);
	AUTO_LOCK(&q->lock);
	qcow2_l1_set(q, index, 0);
}

int qcow2_drop(struct qcow2 *q, uint64_t from, uint64_t to)
{
	uint32_t shift = qcow2_l1_shift(q);
	int r = wipe(q, from, to, WIPE_DROP);

	AUTO_LOCK(&q->meta);
	for (uint64_t i = (from + BIT(shift) - 1) >> shift; r == 0 && i < q->header.l1_entries; i++)
		drop_table(q, (uint32_t)i);
	return r;
}
