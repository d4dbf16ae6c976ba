/*
 * Where a qcow2 disk's bytes are: L1 and L2 tables.
 */
#include "backend/disk/qcow2.h"

#include <string.h>

uint64_t qcow2_l2_entry(const struct qcow2 *q, const struct qcow2_table *table, uint64_t offset)
{
	uint64_t index = offset >> q->header.cluster_bits & (BIT(q->l2_bits) - 1);

	return load_be64(table->data + index * q->entry_bytes);
}

static uint32_t l2_subclusters(
	const struct qcow2 *q, const struct qcow2_table *table, uint64_t offset, bool zeros)
{
	uint64_t index = offset >> q->header.cluster_bits & (BIT(q->l2_bits) - 1);
	uint64_t bits = load_be64(table->data + index * q->entry_bytes + 8);

	return (uint32_t)(zeros ? bits >> 32 : bits);
}

/* With extended entries, a cluster's parts have a kind each. */
static enum qcow2_kind part_kind(
	const struct qcow2 *q, const struct qcow2_table *table, uint64_t offset, uint64_t host)
{
	unsigned part = (unsigned)(offset >> q->unit_bits & 31);
	bool data = l2_subclusters(q, table, offset, false) & BIT(part);
	bool zeros = l2_subclusters(q, table, offset, true) & BIT(part);

	if (data && (zeros || !host))
		return QCOW2_INVALID;
	return data ? QCOW2_DATA : zeros ? QCOW2_ZEROS : QCOW2_NOTHING;
}

/* What one unit (cluster or subcluster) is; place->bytes is not set. */
static void lookup_unit(const struct qcow2 *q, const struct qcow2_table *table, uint64_t offset,
	struct qcow2_place *place)
{
	uint64_t entry = qcow2_l2_entry(q, table, offset), host = entry & QCOW2_OFFSET;

	*place = (struct qcow2_place){.entry = entry, .copied = entry & QCOW2_COPIED};
	if (entry & QCOW2_COMPRESSED) {
		place->kind = QCOW2_PACKED;
		return;
	}
	if (!IS_ALIGNED(host, q->cluster_bytes)) {
		place->kind = QCOW2_INVALID;
		return;
	}
	place->host = host;
	if (q->entry_bytes == 16)
		place->kind = part_kind(q, table, offset, host);
	else if (q->header.version >= 3 && entry & QCOW2_ZERO)
		place->kind = QCOW2_ZEROS;
	else
		place->kind = host ? QCOW2_DATA : QCOW2_NOTHING;
	if (place->kind == QCOW2_DATA)
		place->host += offset & (q->cluster_bytes - 1);
}

/* Does `next`, `bytes` further on, go on with `place`? */
static bool goes_on(const struct qcow2_place *place, const struct qcow2_place *next, uint64_t bytes)
{
	if (place->kind != next->kind || place->copied != next->copied)
		return false;
	if (place->kind == QCOW2_DATA)
		return next->host == place->host + bytes;
	return (place->kind == QCOW2_NOTHING || place->kind == QCOW2_ZEROS) && !place->host &&
	       !next->host;
}

void qcow2_lookup(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct qcow2_place *ret_place)
{
	uint32_t shift = qcow2_l1_shift(q);
	uint64_t unit = BIT(q->unit_bits), l1 = q->l1[offset >> shift], done;
	const struct qcow2_table *table;

	bytes = MIN(bytes, BIT(shift) - (offset & (BIT(shift) - 1)));
	*ret_place = (struct qcow2_place){.kind = QCOW2_NOTHING, .bytes = bytes};
	if (!(l1 & QCOW2_OFFSET))
		return;
	table = qcow2_cache_find(&q->l2, (uint32_t)(offset >> shift));
	if (!table) {
		ret_place->kind = QCOW2_MISS;
		return;
	}
	lookup_unit(q, table, offset, ret_place);
	if (ret_place->kind == QCOW2_PACKED) /* one at a time */
		unit = q->cluster_bytes;
	done = MIN(bytes, unit - (offset & (unit - 1)));
	while (done < bytes) {
		struct qcow2_place next;

		lookup_unit(q, table, offset + done, &next);
		if (!goes_on(ret_place, &next, done))
			break;
		done += MIN(bytes - done, unit);
	}
	ret_place->bytes = done;
}

static int l2_load(struct qcow2 *q, uint64_t offset, struct qcow2_table **ret_table)
{
	uint32_t index = (uint32_t)(offset >> qcow2_l1_shift(q));
	uint64_t at = q->l1[index] & QCOW2_OFFSET;

	if (!IS_ALIGNED(at, q->cluster_bytes))
		return qcow2_corrupted(q, "L2 table", at);
	return qcow2_cache_get(q, &q->l2, index, at, true, ret_table);
}

int qcow2_lookup_load(
	struct qcow2 *q, uint64_t offset, uint64_t bytes, struct qcow2_place *ret_place)
{
	for (;;) {
		struct qcow2_table *table;
		int r;

		{
			AUTO_LOCK(&q->lock);
			qcow2_lookup(q, offset, bytes, ret_place);
		}
		if (ret_place->kind == QCOW2_INVALID)
			return qcow2_corrupted(q, "L2 entry", ret_place->entry);
		if (ret_place->kind != QCOW2_MISS)
			return 0;
		r = l2_load(q, offset, &table);
		if (r < 0)
			return r;
	}
}

void qcow2_l1_set(struct qcow2 *q, uint32_t index, uint64_t entry)
{
	bool clean = q->l1_dirty_from == q->l1_dirty_to;

	q->l1[index] = entry;
	q->l1_dirty_from = clean ? index : MIN(q->l1_dirty_from, index);
	q->l1_dirty_to = clean ? index + 1 : MAX(q->l1_dirty_to, index + 1);
}

/* The table moves to a place of its own: it was shared with a snapshot, or there was none. */
static int l2_move(struct qcow2 *q, uint32_t index, struct qcow2_table **table)
{
	uint64_t old = q->l1[index] & QCOW2_OFFSET, at;
	int r = qcow2_alloc_table(q, 1, &at);

	if (r < 0)
		return r;
	if (!*table)
		r = qcow2_cache_get(q, &q->l2, index, at, false, table);
	if (r < 0) {
		qcow2_untake_table(q, 1, at);
		return r;
	}
	if (old)
		qcow2_free_later(q, old >> q->header.cluster_bits, 1);
	AUTO_LOCK(&q->lock);
	(*table)->offset = at;
	qcow2_table_dirty(&q->l2, *table, 0, (uint32_t)q->cluster_bytes);
	qcow2_l1_set(q, index, at | QCOW2_COPIED);
	return 0;
}

int qcow2_l2_for_write(struct qcow2 *q, uint64_t offset, struct qcow2_table **ret_table)
{
	uint32_t index = (uint32_t)(offset >> qcow2_l1_shift(q));
	int r = 0;

	*ret_table = NULL;
	if (q->l1[index] & QCOW2_OFFSET)
		r = l2_load(q, offset, ret_table);
	if (r < 0 || (*ret_table && q->l1[index] & QCOW2_COPIED))
		return r;
	return l2_move(q, index, ret_table);
}

void qcow2_l2_set(struct qcow2 *q, struct qcow2_table *table, uint64_t offset, uint64_t entry)
{
	uint32_t at = (uint32_t)((offset >> q->header.cluster_bits & (BIT(q->l2_bits) - 1)) *
				 q->entry_bytes);

	store_be64(table->data + at, entry);
	qcow2_table_dirty(&q->l2, table, at, 8);
}

void qcow2_packed_place(
	const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_bytes)
{
	uint32_t shift = 62 - (q->header.cluster_bits - 8);
	uint64_t offset = entry & (BIT(shift) - 1);
	uint64_t sectors = (entry >> shift & (BIT(q->header.cluster_bits - 8) - 1)) + 1;

	*ret_offset = offset;
	*ret_bytes = sectors * 512 - (offset & 511);
}

uint64_t qcow2_entry_clusters(const struct qcow2 *q, uint64_t entry, uint64_t *ret_first)
{
	uint64_t offset, bytes;

	if (entry & QCOW2_COMPRESSED) {
		qcow2_packed_place(q, entry, &offset, &bytes);
		*ret_first = offset >> q->header.cluster_bits;
		return ((offset + bytes - 1) >> q->header.cluster_bits) - *ret_first + 1;
	}
	*ret_first = (entry & QCOW2_OFFSET) >> q->header.cluster_bits;
	return entry & QCOW2_OFFSET ? 1 : 0;
}

unsigned qcow2_hold(struct qcow2 *q)
{
	q->in_flight[q->epoch]++;
	return q->epoch;
}

void qcow2_release(struct qcow2 *q, unsigned epoch)
{
	AUTO_LOCK(&q->lock);

	q->in_flight[epoch]--;
}

void qcow2_busy(struct qcow2 *q, uint64_t from, uint64_t to)
{
	AUTO_LOCK(&q->lock);

	q->busy_from = from;
	q->busy_to = to;
}
