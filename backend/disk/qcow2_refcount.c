/*
 * Reference counts of a qcow2 image, and finding free clusters by them.
 *
 * All of it under `meta`. The layout of the counts: section "Host cluster management" of the format's description.
 */
#include "backend/disk/qcow2.h"
#include "base/log.h"

#include <string.h>

#define SCAN_MAX BIT(32) /* counts looked at for a free cluster: no honest file has more */

uint64_t qcow2_refcount_max(const struct qcow2 *q)
{
	return q->header.refcount_order == 6 ? UINT64_MAX : BIT(BIT(q->header.refcount_order)) - 1;
}

uint64_t qcow2_refcount_load(const uint8_t *block, uint32_t order, uint64_t index)
{
	unsigned bits = 1u << order;

	switch (order) {
	case 3: return block[index];
	case 4: return load_be16(block + index * 2);
	case 5: return load_be32(block + index * 4);
	case 6: return load_be64(block + index * 8);
	default: /* several in a byte, the first in the lowest bits */
		return block[index * bits / 8] >> index * bits % 8 & (BIT(bits) - 1);
	}
}

void qcow2_refcount_store(uint8_t *block, uint32_t order, uint64_t index, uint64_t count)
{
	unsigned bits = 1u << order, shift = (unsigned)(index * bits % 8);
	uint8_t *byte = block + index * bits / 8;

	switch (order) {
	case 3: block[index] = (uint8_t)count; break;
	case 4: store_be16(block + index * 2, (uint16_t)count); break;
	case 5: store_be32(block + index * 4, (uint32_t)count); break;
	case 6: store_be64(block + index * 8, count); break;
	default: *byte = (uint8_t)((*byte & ~((BIT(bits) - 1) << shift)) | count << shift); break;
	}
}

/* The block with this index; NULL if there is none: all of its counts are 0. */
static int block_get(struct qcow2 *q, uint64_t index, struct qcow2_table **ret_block)
{
	uint64_t offset;

	*ret_block = NULL;
	if (index >= q->reftable_entries)
		return 0;
	offset = q->reftable[index] & QCOW2_REF_OFFSET;
	if (!offset)
		return 0;
	if (!IS_ALIGNED(offset, q->cluster_bytes) || offset > INT64_MAX - q->cluster_bytes)
		return qcow2_corrupted(q, "reference count block", offset);
	return qcow2_cache_get(q, &q->refs, (uint32_t)index, offset, true, ret_block);
}

static void count_set(struct qcow2 *q, struct qcow2_table *block, uint64_t index, uint64_t count)
{
	uint32_t order = q->header.refcount_order;

	qcow2_refcount_store(block->data, order, index, count);
	AUTO_LOCK(&q->lock);
	qcow2_table_dirty(&q->refs, block, (uint32_t)((index << order) / 8),
		order > 3 ? 1u << (order - 3) : 1);
}

int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count)
{
	uint64_t mask = BIT(q->refblock_bits) - 1;
	struct qcow2_table *block;
	int r = block_get(q, cluster >> q->refblock_bits, &block);

	*ret_count = 0;
	if (r == 0 && block)
		*ret_count =
			qcow2_refcount_load(block->data, q->header.refcount_order, cluster & mask);
	return r;
}

int qcow2_refs_write(struct qcow2 *q)
{
	for (uint32_t i = 0; i < q->refs.count; i++) {
		struct qcow2_table *table = q->refs.loaded[i];
		uint32_t from = table->dirty_from, to = table->dirty_to;
		int r;

		if (from == to)
			continue;
		r = disk_file_write(q->file, table->data + from, to - from, table->offset + from);
		if (r < 0)
			return r;
		AUTO_LOCK(&q->lock);
		table->dirty_from = table->dirty_to = 0;
		q->refs.dirty--;
	}
	return 0;
}

static uint64_t clusters_max(const struct qcow2 *q)
{
	return BIT(56 - q->header.cluster_bits);
}

/* Is the cluster part of what the header points to? Then a count of 0 for it is wrong. */
static bool is_fixed(const struct qcow2 *q, uint64_t cluster)
{
	const struct qcow2_header *h = &q->header;
	uint64_t offset = cluster << h->cluster_bits;

	return offset == 0 ||
	       offset - h->l1_offset < ALIGN_UP(h->l1_entries * 8ull, q->cluster_bytes) ||
	       offset - h->reftable_offset < (uint64_t)h->reftable_clusters << h->cluster_bits ||
	       (h->snapshots && offset == h->snapshots_offset);
}

/* The first run of free clusters from *at on, of at least `fewest` and at most `most`. Sets *ret_count. */
static int find_free(struct qcow2 *q, uint64_t at, uint64_t fewest, uint64_t most,
	uint64_t *ret_start, uint64_t *ret_count)
{
	uint64_t mask = BIT(q->refblock_bits) - 1, start = at, count = 0;
	uint64_t limit = MIN(clusters_max(q), at + SCAN_MAX);

	while (at < limit) {
		struct qcow2_table *block;
		uint64_t end = (at | mask) + 1;
		int r = block_get(q, at >> q->refblock_bits, &block);

		if (r < 0)
			return r;
		while (at < end) {
			bool used = block && qcow2_refcount_load(block->data,
						     q->header.refcount_order, at & mask);
			uint64_t next = used ? at + 1 : qcow2_kept_end(q, at);

			if (next > at) {
				if (count >= fewest)
					goto found;
				count = 0;
				at = next;
				continue;
			}
			if (is_fixed(q, at))
				return qcow2_corrupted(q, "count of 0 for used cluster", at);
			if (!count++)
				start = at;
			if (count == most)
				goto found;
			at++;
		}
	}
	return -EFBIG;
found:
	*ret_start = start;
	*ret_count = count;
	return 0;
}

/* Make the file reach to the end of these clusters: they read as zeros there. */
static int grow_file(struct qcow2 *q, uint64_t end_cluster)
{
	uint64_t end = end_cluster << q->header.cluster_bits;
	int r;

	if (!q->file->growable || end <= q->grown_bytes)
		return 0;
	r = q->file->ops->truncate(q->file, end);
	if (r == 0)
		q->grown_bytes = end;
	return r;
}

static void reftable_set(struct qcow2 *q, uint32_t index, uint64_t offset)
{
	AUTO_LOCK(&q->lock);

	q->reftable[index] = offset;
	if (q->reftable_dirty_from == q->reftable_dirty_to) {
		q->reftable_dirty_from = index;
		q->reftable_dirty_to = index + 1;
	} else {
		q->reftable_dirty_from = MIN(q->reftable_dirty_from, index);
		q->reftable_dirty_to = MAX(q->reftable_dirty_to, index + 1);
	}
}

/* A new block at this cluster, where its own count is known to be (`self`) or is 1 already. */
static int block_place(struct qcow2 *q, uint64_t index, uint64_t cluster, bool self)
{
	uint64_t offset = cluster << q->header.cluster_bits;
	struct qcow2_table *block;
	int r = q->file->ops->zero(q->file, offset, q->cluster_bytes);

	if (r == 0)
		r = grow_file(q, cluster + 1);
	if (r == 0)
		r = qcow2_cache_get(q, &q->refs, (uint32_t)index, offset, false, &block);
	if (r < 0)
		return r;
	{
		AUTO_LOCK(&q->lock);
		qcow2_table_dirty(&q->refs, block, 0, (uint32_t)q->cluster_bytes);
	}
	if (self)
		count_set(q, block, cluster & (BIT(q->refblock_bits) - 1), 1);
	reftable_set(q, (uint32_t)index, offset);
	return 0;
}

/* A larger reference count table that is being made: `blocks` blocks at cluster `start`, the table behind them. */
struct growth {
	uint64_t start, blocks, clusters, entries;
	uint64_t *table; /* host order */
};

static void growth_plan(struct qcow2 *q, uint64_t index, struct growth *g)
{
	uint64_t old = q->reftable_entries, per_cluster = q->cluster_bytes / 8;
	uint64_t entries = MAX(index + 1, old) + old / 2 + per_cluster;

	g->start = old << q->refblock_bits;
	g->blocks = 0;
	do {
		g->blocks++;
		g->clusters = (entries + g->blocks) / per_cluster + 1;
	} while (g->blocks << q->refblock_bits < g->blocks + g->clusters);
	g->entries = g->clusters * per_cluster;
}

/* The blocks that count themselves and the table, in memory. */
static int growth_blocks(struct qcow2 *q, const struct growth *g)
{
	uint64_t old = q->reftable_entries, left = g->blocks + g->clusters;
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < g->blocks; i++) {
		struct qcow2_table *block;

		r = qcow2_cache_get(q, &q->refs, (uint32_t)(old + i),
			(g->start + i) << q->header.cluster_bits, false, &block);
		for (uint64_t c = 0; r == 0 && left && c < BIT(q->refblock_bits); c++, left--)
			count_set(q, block, c, 1);
	}
	return r;
}

static int growth_write(struct qcow2 *q, const struct growth *g)
{
	uint64_t at = (g->start + g->blocks) << q->header.cluster_bits;
	AUTO_FREE uint64_t *raw = malloc(g->entries * 8);
	struct qcow2_header before = q->header;
	int r;

	if (!raw)
		return -ENOMEM;
	for (uint64_t i = 0; i < g->entries; i++)
		raw[i] = htobe64(g->table[i]);
	r = disk_file_write(q->file, raw, g->entries * 8, at);
	if (r == 0)
		r = qcow2_refs_write(q);
	if (r == 0)
		r = qcow2_barrier(q);
	if (r < 0)
		return r;
	q->header.reftable_offset = at;
	q->header.reftable_clusters = (uint32_t)g->clusters;
	r = qcow2_header_write(q);
	if (r < 0)
		q->header = before;
	else
		qcow2_free_later(
			q, before.reftable_offset >> before.cluster_bits, before.reftable_clusters);
	return r;
}

static int growth_do(struct qcow2 *q, const struct growth *g)
{
	uint64_t count = g->blocks + g->clusters, bits = q->header.cluster_bits;
	int r = 0;

	for (uint64_t i = 0; i < count; i++) {
		if (is_fixed(q, g->start + i))
			return qcow2_corrupted(q, "count of 0 for used cluster", g->start + i);
	}
	memcpy(g->table, q->reftable, q->reftable_entries * 8ull);
	for (uint64_t i = 0; i < g->blocks; i++)
		g->table[q->reftable_entries + i] = (g->start + i) << bits;
	r = q->file->ops->zero(q->file, g->start << bits, count << bits);
	if (r == 0)
		r = grow_file(q, g->start + count);
	if (r == 0) {
		AUTO_LOCK(&q->lock);
		r = qcow2_cache_resize(&q->refs, (uint32_t)g->entries);
	}
	if (r == 0)
		r = growth_blocks(q, g);
	return r == 0 ? growth_write(q, g) : r;
}

/*
 * A larger reference count table. It lies in the range of the first block that the old one has no room for, behind
 * the blocks that count it: all of that is free, since nothing beyond could be counted.
 */
static int reftable_grow(struct qcow2 *q, uint64_t index)
{
	struct growth g;
	int r;

	growth_plan(q, index, &g);
	if (g.entries * 8 > QCOW2_REFTABLE_MAX)
		return -EFBIG;
	g.table = calloc(g.entries, 8);
	if (!g.table)
		return -ENOMEM;
	r = growth_do(q, &g);
	if (r < 0) {
		for (uint64_t i = 0; i < g.blocks; i++)
			qcow2_cache_drop(q, &q->refs, (uint32_t)(q->reftable_entries + i));
		free(g.table);
		return r;
	}
	AUTO_LOCK(&q->lock);
	free(q->reftable);
	q->reftable = g.table;
	q->reftable_entries = (uint32_t)g.entries;
	q->reftable_dirty_from = q->reftable_dirty_to = 0;
	return 0;
}

/*
 * The block that counts this cluster, made if there is none. A new one is put into the first free cluster; if that
 * one is not counted by any block either, then into it goes the block that counts it. *ret_made: look for free
 * clusters again.
 */
static int block_make(
	struct qcow2 *q, uint64_t cluster, struct qcow2_table **ret_block, bool *ret_made)
{
	uint64_t index = cluster >> q->refblock_bits, mask = BIT(q->refblock_bits) - 1;

	for (;;) {
		struct qcow2_table *block;
		uint64_t at, count;
		int r = block_get(q, index, &block);

		if (r < 0 || block) {
			*ret_block = block;
			return r;
		}
		*ret_made = true;
		if (index >= q->reftable_entries) {
			r = reftable_grow(q, index);
			if (r < 0)
				return r;
			continue;
		}
		r = find_free(q, q->scan, 1, 1, &at, &count);
		if (r < 0)
			return r;
		if (at >> q->refblock_bits >= q->reftable_entries) {
			r = reftable_grow(q, at >> q->refblock_bits);
			if (r < 0)
				return r;
			continue;
		}
		r = block_get(q, at >> q->refblock_bits, &block);
		if (r == 0 && !block)
			r = block_place(q, at >> q->refblock_bits, at, true);
		else if (r == 0) {
			count_set(q, block, at & mask, 1);
			r = block_place(q, index, at, false);
			if (r < 0)
				qcow2_untake_table(q, 1, at << q->header.cluster_bits);
		}
		if (r < 0)
			return r;
	}
}

/* The blocks that count a free run. -EAGAIN: some were made, and part of it may not be free any more. */
static int make_blocks(struct qcow2 *q, uint64_t start, uint64_t count)
{
	uint64_t mask = BIT(q->refblock_bits) - 1;
	struct qcow2_table *block;
	bool made = false;
	int r = 0;

	for (uint64_t at = start; at < start + count && r == 0; at = (at | mask) + 1)
		r = block_make(q, at, &block, &made);
	return r == 0 && made ? -EAGAIN : r;
}

int qcow2_count_new(struct qcow2 *q, uint64_t start, uint64_t count)
{
	uint64_t mask = BIT(q->refblock_bits) - 1, at = start;
	struct qcow2_table *block = NULL;

	for (; at < start + count; at++) {
		int r = 0;

		if (at == start || !(at & mask))
			r = block_get(q, at >> q->refblock_bits, &block);
		if (r == 0 && !block)
			r = qcow2_corrupted(q, "no count of cluster", at);
		if (r < 0) {
			if (at > start)
				qcow2_untake_table(q, at - start, start << q->header.cluster_bits);
			return r;
		}
		count_set(q, block, at & mask, 1);
	}
	return 0;
}

int qcow2_find_run(struct qcow2 *q, uint64_t fewest, uint64_t most, struct qcow2_run *ret_run)
{
	int r;

	do {
		r = find_free(q, q->scan, fewest, most, &ret_run->start, &ret_run->count);
		if (r == 0)
			r = make_blocks(q, ret_run->start, ret_run->count);
	} while (r == -EAGAIN);
	if (r == 0)
		r = grow_file(q, ret_run->start + ret_run->count);
	if (r == 0 && fewest == 1)
		q->scan = ret_run->start + ret_run->count;
	return r;
}

int qcow2_alloc(struct qcow2 *q, uint64_t count, uint64_t *ret_cluster)
{
	struct qcow2_run run;
	int r = qcow2_find_run(q, count, count, &run);

	if (r == 0)
		r = qcow2_count_new(q, run.start, run.count);
	if (r == 0)
		*ret_cluster = run.start;
	return r;
}

int qcow2_alloc_table(struct qcow2 *q, uint64_t clusters, uint64_t *ret_offset)
{
	uint64_t cluster;
	int r = qcow2_alloc(q, clusters, &cluster);

	if (r < 0)
		return r;
	r = q->file->ops->zero(
		q->file, cluster << q->header.cluster_bits, clusters << q->header.cluster_bits);
	*ret_offset = cluster << q->header.cluster_bits;
	if (r < 0)
		qcow2_untake_table(q, clusters, *ret_offset);
	return r;
}

void qcow2_untake_table(struct qcow2 *q, uint64_t clusters, uint64_t offset)
{
	if (qcow2_refcount_add(q, offset >> q->header.cluster_bits, clusters, -1) < 0)
		q->leaky = true;
}

static void cluster_is_free(struct qcow2 *q, uint64_t cluster)
{
	q->scan = MIN(q->scan, cluster);
	if (cluster == (q->pack_end >> q->header.cluster_bits) - 1)
		q->pack_offset = q->pack_end = 0;
}

int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, uint64_t count, int delta)
{
	uint64_t mask = BIT(q->refblock_bits) - 1, old;

	/* First look, then do. */
	for (uint64_t i = 0; i < count; i++) {
		int r = qcow2_refcount_get(q, cluster + i, &old);

		if (r < 0)
			return r;
		if (delta < 0 ? old < (uint64_t)-delta
			      : qcow2_refcount_max(q) - old < (uint64_t)delta || !old)
			return delta < 0 || !old ? qcow2_corrupted(q, "reference count of cluster",
							   cluster + i)
						 : -ERANGE;
	}
	for (uint64_t i = 0; i < count; i++) {
		struct qcow2_table *block;
		int r = block_get(q, (cluster + i) >> q->refblock_bits, &block);

		if (r < 0 || !block)
			return r < 0 ? r : -EIO;
		old = qcow2_refcount_load(
			block->data, q->header.refcount_order, (cluster + i) & mask);
		count_set(q, block, (cluster + i) & mask, old + (uint64_t)(int64_t)delta);
		if (delta < 0 && old == (uint64_t)-delta)
			cluster_is_free(q, cluster + i);
	}
	return 0;
}
