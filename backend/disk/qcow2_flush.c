/*
 * Writing a qcow2 image's metadata in the order that survives a crash (see qcow2.h), and the header's bits that say
 * in which state the image is.
 */
#include "backend/disk/qcow2.h"
#include "base/log.h"

#include <string.h>

/* A dirty part of an L2 table, as it was when the flush began. */
struct part {
	uint64_t offset;
	uint32_t bytes, index;
	uint32_t from;
	uint8_t *data;
};

struct snapshot {
	struct part *l2;
	uint32_t l2_count;
	uint64_t *l1; /* big-endian */
	uint32_t l1_from, l1_to;
	uint64_t pool_end; /* up to here the L2 tables may point to what was taken from the pool */
	struct qcow2_runs freed;
};

int qcow2_barrier(struct qcow2 *q)
{
	int r = q->file->ops->flush(q->file);

	/* What was to become lasting may be lost by now, and the host tells only once. */
	if (r == -EIO)
		q->flush_error = r;
	return q->flush_error ? q->flush_error : r;
}

static void snapshot_done(struct snapshot *s)
{
	for (uint32_t i = 0; i < s->l2_count; i++)
		free(s->l2[i].data);
	free(s->l2);
	free(s->l1);
	free(s->freed.run);
}

static int copy_l2(struct qcow2 *q, struct snapshot *s)
{
	if (!q->l2.dirty)
		return 0;
	s->l2 = calloc(q->l2.dirty, sizeof(*s->l2));
	if (!s->l2)
		return -ENOMEM;
	for (uint32_t i = 0; i < q->l2.count; i++) {
		const struct qcow2_table *table = q->l2.loaded[i];
		struct part *part = &s->l2[s->l2_count];
		uint32_t bytes = table->dirty_to - table->dirty_from;

		if (!bytes)
			continue;
		part->data = malloc(bytes);
		if (!part->data)
			return -ENOMEM;
		memcpy(part->data, table->data + table->dirty_from, bytes);
		part->offset = table->offset + table->dirty_from;
		part->bytes = bytes;
		part->from = table->dirty_from;
		part->index = table->index;
		s->l2_count++;
	}
	return 0;
}

static int copy_l1(struct qcow2 *q, struct snapshot *s)
{
	uint32_t count = q->l1_dirty_to - q->l1_dirty_from;

	if (!count)
		return 0;
	s->l1 = malloc(count * 8ull);
	if (!s->l1)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++)
		s->l1[i] = htobe64(q->l1[q->l1_dirty_from + i]);
	s->l1_from = q->l1_dirty_from;
	s->l1_to = q->l1_dirty_to;
	return 0;
}

/* Take copies of what is dirty, at one moment, and call it clean. `lock` is held. */
static int snapshot_take(struct qcow2 *q, struct snapshot *s)
{
	int r = copy_l2(q, s);

	if (r == 0)
		r = copy_l1(q, s);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < q->l2.count; i++)
		q->l2.loaded[i]->dirty_from = q->l2.loaded[i]->dirty_to = 0;
	q->l2.dirty = 0;
	q->l1_dirty_from = q->l1_dirty_to = 0;
	s->pool_end = q->pool.start;
	s->freed = q->freed;
	q->freed = (struct qcow2_runs){0};
	q->flushing = true;
	return 0;
}

/* Nothing of it can be relied on to be in the file: it is dirty again. `lock` is held. */
static void snapshot_undo(struct qcow2 *q, struct snapshot *s)
{
	for (uint32_t i = 0; i < s->l2_count; i++) {
		struct qcow2_table *table = q->l2.by_index[s->l2[i].index];

		if (table)
			qcow2_table_dirty(&q->l2, table, s->l2[i].from, s->l2[i].bytes);
	}
	if (s->l1) {
		bool clean = q->l1_dirty_from == q->l1_dirty_to;

		q->l1_dirty_from = clean ? s->l1_from : MIN(q->l1_dirty_from, s->l1_from);
		q->l1_dirty_to = MAX(q->l1_dirty_to, s->l1_to);
	}
	for (size_t i = 0; i < s->freed.count; i++)
		qcow2_free_later(q, s->freed.run[i].start, s->freed.run[i].count);
}

static int write_reftable(struct qcow2 *q)
{
	uint32_t from = q->reftable_dirty_from, count = q->reftable_dirty_to - from;
	AUTO_FREE uint64_t *raw = NULL;
	int r;

	if (!count)
		return 0;
	raw = malloc(count * 8ull);
	if (!raw)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++)
		raw[i] = htobe64(q->reftable[from + i]);
	r = qcow2_barrier(q);
	if (r == 0)
		r = disk_file_write(
			q->file, raw, count * 8ull, q->header.reftable_offset + from * 8ull);
	if (r < 0)
		return r;
	AUTO_LOCK(&q->lock);
	q->reftable_dirty_from = q->reftable_dirty_to = 0;
	return 0;
}

static int write_counts(struct qcow2 *q)
{
	int r = qcow2_refs_write(q);

	return r == 0 ? write_reftable(q) : r;
}

static int write_tables(struct qcow2 *q, const struct snapshot *s)
{
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < s->l2_count; i++)
		r = disk_file_write(q->file, s->l2[i].data, s->l2[i].bytes, s->l2[i].offset);
	if (r == 0 && s->l1 && s->l2_count)
		r = qcow2_barrier(q);
	if (r == 0 && s->l1)
		r = disk_file_write(q->file, s->l1, (s->l1_to - s->l1_from) * 8ull,
			q->header.l1_offset + s->l1_from * 8ull);
	return r;
}

static int snapshot_write(struct qcow2 *q, struct snapshot *s)
{
	bool tables = s->l2_count || s->l1;
	int r = qcow2_pool_count(q, s->pool_end);

	if (r == 0 && q->guarded && tables)
		r = qcow2_barrier(q);
	if (r == 0)
		r = write_counts(q);
	if (r == 0 && !q->guarded && tables)
		r = qcow2_barrier(q);
	if (r == 0)
		r = write_tables(q, s);
	if (r == 0 && !q->guarded && s->freed.count)
		r = qcow2_barrier(q);
	if (r < 0)
		return r;
	qcow2_lower(q, &s->freed);
	r = qcow2_refs_write(q);
	return r == 0 ? qcow2_barrier(q) : r;
}

int qcow2_flush_meta(struct qcow2 *q)
{
	struct snapshot s = {0};
	int r;

	if (q->flush_error)
		return q->flush_error;
	{
		AUTO_LOCK(&q->lock);
		r = snapshot_take(q, &s);
	}
	if (r == 0) {
		r = snapshot_write(q, &s);
		AUTO_LOCK(&q->lock);
		q->flushing = false;
		if (r < 0)
			snapshot_undo(q, &s);
	}
	snapshot_done(&s);
	if (r == 0) {
		qcow2_settle(q);
		qcow2_reap(q);
	}
	return r;
}

int qcow2_set_incompatible(struct qcow2 *q, uint64_t bits, bool on)
{
	uint64_t old = q->header.incompatible;
	int r;

	if (q->header.version < 3 || (on ? (old & bits) == bits : !(old & bits)))
		return 0;
	q->header.incompatible = on ? old | bits : old & ~bits;
	r = on ? 0 : qcow2_barrier(q); /* what the bit is about is lasting before it goes */
	if (r == 0)
		r = qcow2_header_write(q);
	if (r == 0)
		r = qcow2_barrier(q);
	if (r < 0)
		q->header.incompatible = old;
	return r;
}

/* Can the counts be made anew whenever the image is opened? Else the dirty bit would make it useless. */
static bool can_guard(struct qcow2 *q)
{
	uint64_t bytes;

	return q->header.version >= 3 && !qcow2_header_bitmaps(q) &&
	       q->file->ops->size(q->file, &bytes) == 0 &&
	       bytes >> q->header.cluster_bits <= QCOW2_CHECK_MAX / 2;
}

/* Before the first change: what the header has to say while the image is written to. */
int qcow2_touch(struct qcow2 *q)
{
	int r = 0;

	if (q->corrupt)
		return -EIO;
	if (q->touched)
		return 0;
	if (q->header.autoclear) {
		uint64_t old = q->header.autoclear;

		q->header.autoclear = 0;
		r = qcow2_header_write(q);
		if (r == 0)
			r = qcow2_barrier(q);
		if (r < 0)
			q->header.autoclear = old;
	}
	if (r == 0 && can_guard(q)) {
		r = qcow2_set_incompatible(q, QCOW2_DIRTY, true);
		q->guarded = r == 0;
	}
	if (r < 0)
		return r;
	AUTO_LOCK(&q->lock);
	q->touched = true;
	return 0;
}

int qcow2_corrupted(struct qcow2 *q, const char *what, uint64_t at)
{
	log_debug(
		"disk", "%s is corrupt: %s at %#llx", q->file->name, what, (unsigned long long)at);
	if (q->disk->readonly || q->corrupt)
		return -EIO;
	{
		AUTO_LOCK(&q->lock);
		q->corrupt = true;
	}
	if (q->header.version >= 3) {
		q->header.incompatible |= QCOW2_CORRUPT;
		if (qcow2_header_write(q) < 0)
			log_debug("disk", "%s: can't mark it", q->file->name);
	}
	return -EIO;
}
