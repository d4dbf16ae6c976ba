/*
 * Checking a qcow2 image: every reference to a cluster is counted, and the counts compared with those of the image.
 *
 * Nothing here trusts the image: tables are read one at a time, and memory is bounded (CHUNKS_MAX). So is time: however many
 * snapshots lead to an L2 table, it is read once, and what it leads to is counted that often. Repair makes the
 * counts what was counted: in their blocks if those are sound, else in a new set of blocks behind everything else.
 */
#include "backend/disk/image.h"
#include "backend/disk/qcow2.h"
#include "backend/disk/qcow2_snapshot.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CHUNK_BITS 10u
#define CHUNKS_MAX (QCOW2_CHECK_MAX >> CHUNK_BITS) /* of 4 KiB each */
#define BUCKETS	   BIT(16)
#define TURN	   4096 /* L1 entries before whoever waits is asked whether to go on */

/* The counts of 1024 clusters. */
struct chunk {
	struct chunk *next; /* in the hash's bucket */
	uint64_t index;
	uint32_t count[BIT(CHUNK_BITS)];
};

/* A count for each cluster. */
struct counts {
	struct chunk **bucket;
	struct chunk *last; /* that was looked at */
};

struct checker {
	struct qcow2 *q;
	struct image_check *check;
	struct counts all;    /* users of a cluster */
	struct counts tables; /* L1 entries that lead to it, until it was read */
	uint32_t chunks;      /* of both */
	uint64_t done, todo;  /* L1 entries, of which each is looked at twice */
	uint64_t end; /* the first cluster behind all that is referred to */
	uint64_t file_bytes;
	bool rebuild; /* the blocks of counts are not sound */
	uint64_t
		unmendable; /* errors that a rebuilt set of counts leaves: too many users for a count, say */
	bool flags;	    /* some flag is wrong */
	uint8_t *buf;	    /* a cluster */
};

static void report(struct checker *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void report(struct checker *c, const char *fmt, ...)
{
	char text[256];
	va_list args;

	if (!c->check->report || c->check->reports++ >= IMAGE_CHECK_REPORTS)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	c->check->report(c->check->opaque, text);
}

/* -EINTR: nobody waits any more. */
static int go_on(struct checker *c)
{
	const struct image_progress *progress = &c->check->progress;

	return progress->report && progress->report(progress->opaque, c->done, c->todo) ? -EINTR : 0;
}

static struct chunk **chunk_slot(const struct counts *counts, uint64_t index)
{
	struct chunk **slot = &counts->bucket[index * 0x9e3779b97f4a7c15ull >> 40 & (BUCKETS - 1)];

	while (*slot && (*slot)->index != index)
		slot = &(*slot)->next;
	return slot;
}

/* NULL: nothing of it was counted. */
static struct chunk *chunk_find(struct counts *counts, uint64_t index)
{
	if (!counts->last || counts->last->index != index)
		counts->last = *chunk_slot(counts, index);
	return counts->last;
}

/* NULL: as chunk_find(). */
static uint32_t *count_of(struct counts *counts, uint64_t cluster)
{
	struct chunk *chunk = chunk_find(counts, cluster >> CHUNK_BITS);

	return chunk ? &chunk->count[cluster & (BIT(CHUNK_BITS) - 1)] : NULL;
}

static uint32_t counted(struct checker *c, uint64_t cluster)
{
	const uint32_t *n = count_of(&c->all, cluster);

	return n ? *n : 0;
}

static int chunk_make(struct checker *c, struct counts *counts, uint64_t index)
{
	struct chunk **slot = chunk_slot(counts, index);

	if (c->chunks >= CHUNKS_MAX)
		return -ENOMEM;
	*slot = calloc(1, sizeof(**slot));
	if (!*slot)
		return -ENOMEM;
	(*slot)->index = index;
	c->chunks++;
	return 0;
}

static int count_one(struct checker *c, struct counts *counts, uint64_t cluster, uint32_t times)
{
	uint32_t *n = count_of(counts, cluster);

	if (!n) {
		int r = chunk_make(c, counts, cluster >> CHUNK_BITS);

		if (r < 0)
			return r;
		n = count_of(counts, cluster);
	}
	*n = times > UINT32_MAX - *n ? UINT32_MAX : *n + times;
	return 0;
}

static int count_clusters(struct checker *c, uint64_t cluster, uint64_t count, uint32_t times)
{
	int r = 0;

	for (; count && r == 0; cluster++, count--) {
		r = count_one(c, &c->all, cluster, times);
		c->end = MAX(c->end, cluster + 1);
	}
	return r;
}

static int count_bytes(struct checker *c, uint64_t offset, uint64_t bytes)
{
	return count_clusters(c, offset >> c->q->header.cluster_bits, qcow2_clusters(c->q, bytes), 1);
}

/* Can a table or cluster be there? */
static bool place_ok(const struct qcow2 *q, uint64_t offset)
{
	return IS_ALIGNED(offset, q->cluster_bytes) && offset && offset < BIT(56);
}

/* A table outside the file would read as zeros: no image has that, and a few bytes could ask for terabytes of it. */
static bool table_ok(const struct checker *c, uint64_t offset)
{
	return place_ok(c->q, offset) && offset < c->file_bytes;
}

/* An L2 entry that leads nowhere is an error; repaired, the cluster is unallocated. 1: it was changed. */
static int count_entry(struct checker *c, uint64_t *entry, uint32_t times, bool active, uint64_t offset)
{
	struct qcow2 *q = c->q;
	bool packed = *entry & QCOW2_COMPRESSED;
	uint64_t first, clusters = qcow2_entry_clusters(q, *entry, &first);

	if (clusters && (packed ? !first || first + clusters > BIT(56 - q->header.cluster_bits)
				: !place_ok(q, *entry & QCOW2_OFFSET))) {
		c->check->errors++;
		report(c, "the disk's bytes at %#llx are at an impossible place (entry %#llx)",
			(unsigned long long)offset, (unsigned long long)*entry);
		if (!c->check->repair)
			return 0;
		*entry = 0;
		c->check->errors_mended++;
		return 1;
	}
	if (active && clusters) {
		c->check->allocated += times;
		c->check->compressed += packed ? times : 0;
	}
	return count_clusters(c, first, clusters, times);
}

static int count_l2(struct checker *c, uint64_t offset, uint32_t times, uint64_t guest, bool active)
{
	struct qcow2 *q = c->q;
	bool changed = false;
	int r = disk_file_read(q->file, c->buf, q->cluster_bytes, offset);

	for (uint64_t i = 0; r >= 0 && i < BIT(q->l2_bits); i++) {
		uint8_t *at = c->buf + i * q->entry_bytes;
		uint64_t entry = load_be64(at);

		if (!entry)
			continue;
		r = count_entry(c, &entry, times, active, guest + (i << q->header.cluster_bits));
		if (r == 1) {
			store_be64(at, entry);
			changed = true;
		}
	}
	if (r >= 0 && changed)
		r = disk_file_write(q->file, c->buf, q->cluster_bytes, offset);
	return MIN(r, 0);
}

/* The L2 tables themselves. l1: big-endian. Entries that are repaired are changed there; *ret_changed then. */
static int count_tables(struct checker *c, uint64_t *l1, uint32_t entries, bool *ret_changed)
{
	struct qcow2 *q = c->q;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < entries; i++) {
		uint64_t entry = be64toh(l1[i]), offset = entry & QCOW2_OFFSET;

		if (++c->done % TURN == 0 && (r = go_on(c)) < 0)
			break;
		if (!offset)
			continue;
		if (!table_ok(c, offset)) {
			c->check->errors++;
			report(c, "L1 entry %u is impossible (%#llx)", i,
				(unsigned long long)entry);
			if (c->check->repair) {
				l1[i] = 0;
				*ret_changed = true;
				c->check->errors_mended++;
			}
			continue;
		}
		r = count_bytes(c, offset, q->cluster_bytes);
		/* Each tree can lead to it once: more is nonsense. */
		if (counted(c, offset >> q->header.cluster_bits) > q->header.snapshots + 1) {
			c->check->errors++;
			c->unmendable++;
			report(c, "L1 entry %u leads to a table of others", i);
			continue;
		}
		if (r == 0)
			r = count_one(c, &c->tables, offset >> q->header.cluster_bits, 1);
	}
	return r;
}

/* What they lead to: at the first entry that leads to a table, for all. */
static int count_data(struct checker *c, const uint64_t *l1, uint32_t entries, bool active)
{
	struct qcow2 *q = c->q;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < entries; i++) {
		uint64_t offset = be64toh(l1[i]) & QCOW2_OFFSET;
		uint32_t *n = count_of(&c->tables, offset >> q->header.cluster_bits), times = n ? *n : 0;

		if (++c->done % TURN == 0)
			r = go_on(c);
		/* One that is wrong may lead into the middle of one that was counted. */
		if (!times || !table_ok(c, offset) || r < 0)
			continue;
		*n = 0;
		r = go_on(c);
		if (r == 0)
			r = count_l2(c, offset, times, (uint64_t)i << qcow2_l1_shift(q), active);
	}
	return r;
}

/* Of one tree its L2 tables are counted, or what is in those that were not read yet. */
static int count_l1(struct checker *c, uint64_t offset, uint32_t entries, bool active, bool data)
{
	AUTO_FREE uint64_t *l1 = calloc(MAX(entries, 1u), 8);
	bool changed = false;
	int r;

	if (!l1)
		return -ENOMEM;
	if (!entries)
		return 0;
	r = disk_file_read(c->q->file, l1, entries * 8ull, offset);
	if (r == 0 && data)
		return count_data(c, l1, entries, active);
	if (r == 0)
		r = count_bytes(c, offset, entries * 8ull);
	if (r == 0)
		r = count_tables(c, l1, entries, &changed);
	if (r == 0 && changed)
		r = disk_file_write(c->q->file, l1, entries * 8ull, offset);
	return r;
}

static int count_active(struct checker *c)
{
	const struct qcow2_header *h = &c->q->header;
	int r = count_l1(c, h->l1_offset, h->l1_entries, true, false);

	return r == 0 ? count_l1(c, h->l1_offset, h->l1_entries, true, true) : r;
}

static int count_snapshots(struct checker *c, const struct qcow2_snapshots *list)
{
	int r = 0;

	if (list->count)
		r = count_bytes(c, c->q->header.snapshots_offset, list->bytes);
	for (unsigned i = 0; r == 0 && i < list->count * 2; i++) {
		const struct qcow2_record *rec = &list->record[i % list->count];

		r = count_l1(c, rec->l1_offset, rec->l1_entries, false, i >= list->count);
	}
	return r;
}

static int count_blocks(struct checker *c)
{
	struct qcow2 *q = c->q;
	int r = count_bytes(c, q->header.reftable_offset,
		(uint64_t)q->header.reftable_clusters << q->header.cluster_bits);

	for (uint32_t i = 0; r == 0 && i < q->reftable_entries; i++) {
		uint64_t offset = q->reftable[i];

		if (!offset)
			continue;
		if (!table_ok(c, offset)) {
			c->check->errors++;
			c->rebuild = true;
			report(c, "reference count block %u is at an impossible place (%#llx)", i,
				(unsigned long long)offset);
			continue;
		}
		if (counted(c, offset >> q->header.cluster_bits)) {
			c->check->errors++;
			c->rebuild = true;
			report(c, "reference count block %u is used for something else too", i);
		}
		r = count_bytes(c, offset, q->cluster_bytes);
	}
	return r;
}

static int count_trees(struct checker *c, const struct qcow2_snapshots *list)
{
	int r;

	c->todo = 2ull * c->q->header.l1_entries;
	for (unsigned i = 0; i < list->count; i++)
		c->todo += 2ull * list->record[i].l1_entries;
	r = count_active(c);
	return r == 0 ? count_snapshots(c, list) : r;
}

static int count_all(struct checker *c, struct error *err)
{
	struct qcow2_snapshots list = {0};
	int r = count_clusters(c, 0, 1, 1);

	if (r == 0)
		r = qcow2_snapshots_load(c->q, &list, err);
	if (r == 0)
		r = count_trees(c, &list);
	qcow2_snapshots_done(&list);
	return r == 0 ? count_blocks(c) : r;
}

/* Does a whole chunk begin here of which nothing was counted, and nothing is counted in the block? */
static bool nothing_there(struct checker *c, uint64_t cluster, uint64_t at, const uint8_t *block)
{
	const unsigned order = c->q->header.refcount_order;
	const uint64_t bytes = (BIT(CHUNK_BITS) << order) / 8;

	if (cluster & (BIT(CHUNK_BITS) - 1) || at + BIT(CHUNK_BITS) > BIT(c->q->refblock_bits) ||
		chunk_find(&c->all, cluster >> CHUNK_BITS))
		return false;
	block += (at << order) / 8;
	return !*block && memcmp(block, block + 1, bytes - 1) == 0;
}

/* Compare one block with what was counted; repaired: make it so. Was it changed? */
static bool compare_block(struct checker *c, uint64_t index, uint8_t *block)
{
	struct qcow2 *q = c->q;
	uint64_t first = index << q->refblock_bits, max = qcow2_refcount_max(q);
	bool changed = false;

	for (uint64_t i = 0; i < BIT(q->refblock_bits); i++) {
		if (nothing_there(c, first + i, i, block)) {
			i += BIT(CHUNK_BITS) - 1;
			continue;
		}
		uint64_t is = qcow2_refcount_load(block, q->header.refcount_order, i);
		uint64_t want = counted(c, first + i);
		bool leak = is > want;

		if (is == want)
			continue;
		*(leak ? &c->check->leaks : &c->check->errors) += 1;
		report(c, "cluster %llu is used %llu times, but counted as %llu",
			(unsigned long long)(first + i), (unsigned long long)want,
			(unsigned long long)is);
		if (!c->check->repair || want > max)
			continue;
		qcow2_refcount_store(block, q->header.refcount_order, i, want);
		*(leak ? &c->check->leaks_mended : &c->check->errors_mended) += 1;
		changed = true;
	}
	return changed;
}

/* Clusters that are used, but counted by no block. */
static void find_uncounted(struct checker *c)
{
	struct qcow2 *q = c->q;

	for (uint32_t b = 0; b < BUCKETS; b++) {
		for (struct chunk *chunk = c->all.bucket[b]; chunk; chunk = chunk->next) {
			for (uint64_t i = 0; i < BIT(CHUNK_BITS); i++) {
				uint64_t cluster = (chunk->index << CHUNK_BITS) + i;
				uint64_t index = cluster >> q->refblock_bits;

				if (!chunk->count[i] || (index < q->reftable_entries &&
								table_ok(c, q->reftable[index])))
					continue;
				c->check->errors++;
				c->rebuild = true;
				report(c, "cluster %llu is used %u times, but not counted",
					(unsigned long long)cluster, chunk->count[i]);
			}
		}
	}
}

static int compare_counts(struct checker *c)
{
	struct qcow2 *q = c->q;
	int r = 0;

	find_uncounted(c);
	for (uint64_t i = 0; r == 0 && i < q->reftable_entries; i++) {
		uint64_t offset = q->reftable[i];
		bool changed = false;

		/* One that is used for something else, too, says nothing: all are made anew. */
		if (!table_ok(c, offset) || counted(c, offset >> q->header.cluster_bits) > 1)
			continue;
		r = go_on(c);
		if (r == 0)
			r = disk_file_read(q->file, c->buf, q->cluster_bytes, offset);
		if (r == 0)
			changed = compare_block(c, i, c->buf);
		if (r == 0 && changed && !c->rebuild)
			r = disk_file_write(q->file, c->buf, q->cluster_bytes, offset);
	}
	return r;
}

/* The flag that says that a cluster has one user only. *changed: the word is another now. Missing where the count is too
 * high, it agrees with the count, and does no harm; repair, which mends the count, sets it. */
static void check_flag(
	struct checker *c, uint64_t *word, uint64_t cluster, const char *what, bool *changed)
{
	bool alone = counted(c, cluster) == 1;
	uint64_t count = 1;

	if (alone == !!(*word & QCOW2_COPIED))
		return;
	if (alone && !c->check->repair && qcow2_refcount_get(c->q, cluster, &count) == 0 &&
		count != 1)
		return;
	c->check->errors++;
	report(c, "%s at cluster %llu has a wrong 'copied' flag", what,
		(unsigned long long)cluster);
	if (!c->check->repair)
		return;
	*word ^= QCOW2_COPIED;
	*changed = true;
	c->check->errors_mended++;
}

static int check_l2_flags(struct checker *c, uint64_t offset)
{
	struct qcow2 *q = c->q;
	bool changed = false;
	int r = disk_file_read(q->file, c->buf, q->cluster_bytes, offset);

	for (uint64_t i = 0; r == 0 && i < BIT(q->l2_bits); i++) {
		uint8_t *at = c->buf + i * q->entry_bytes;
		uint64_t entry = load_be64(at);

		if (entry & QCOW2_COMPRESSED || !place_ok(q, entry & QCOW2_OFFSET))
			continue;
		check_flag(c, &entry, (entry & QCOW2_OFFSET) >> q->header.cluster_bits, "data",
			&changed);
		store_be64(at, entry);
	}
	return r == 0 && changed ? disk_file_write(q->file, c->buf, q->cluster_bytes, offset) : r;
}

/* However many entries lead to it: what was read is marked in `tables`, where nothing is left. */
static int check_l2_once(struct checker *c, uint64_t offset)
{
	const uint64_t cluster = offset >> c->q->header.cluster_bits;
	const uint32_t *n = count_of(&c->tables, cluster);
	int r = n && *n ? 1 : count_one(c, &c->tables, cluster, 1);

	if (r == 0)
		r = go_on(c);
	return r == 0 ? check_l2_flags(c, offset) : MIN(r, 0);
}

static int check_flags(struct checker *c)
{
	const struct qcow2_header *h = &c->q->header;
	AUTO_FREE uint64_t *l1 = calloc(MAX(h->l1_entries, 1u), 8);
	bool changed = false;
	int r;

	if (!l1)
		return -ENOMEM;
	r = disk_file_read(c->q->file, l1, h->l1_entries * 8ull, h->l1_offset);
	for (uint32_t i = 0; r == 0 && i < h->l1_entries; i++) {
		uint64_t entry = be64toh(l1[i]);

		if (!table_ok(c, entry & QCOW2_OFFSET))
			continue;
		check_flag(c, &entry, (entry & QCOW2_OFFSET) >> h->cluster_bits, "an L2 table",
			&changed);
		l1[i] = htobe64(entry);
		r = check_l2_once(c, entry & QCOW2_OFFSET);
	}
	return r == 0 && changed
		       ? disk_file_write(c->q->file, l1, h->l1_entries * 8ull, h->l1_offset)
		       : r;
}

/* Take back what the old table and blocks of counts were counted for. */
static void uncount(struct checker *c, uint64_t offset, uint64_t bytes)
{
	uint64_t first = offset >> c->q->header.cluster_bits;

	for (uint64_t i = 0; i < qcow2_clusters(c->q, bytes); i++) {
		uint32_t *n = count_of(&c->all, first + i);

		if (n && *n)
			--*n;
	}
}

static int write_new_blocks(struct checker *c, uint64_t start, uint64_t blocks)
{
	struct qcow2 *q = c->q;
	uint64_t max = qcow2_refcount_max(q);
	int r = 0;

	for (uint64_t i = 0; r == 0 && (r = go_on(c)) == 0 && i < blocks; i++) {
		memset(c->buf, 0, q->cluster_bytes);
		for (uint64_t n = 0; n < BIT(q->refblock_bits); n++) {
			uint64_t want = counted(c, (i << q->refblock_bits) + n);

			c->unmendable += want > max;
			qcow2_refcount_store(c->buf, q->header.refcount_order, n, MIN(want, max));
		}
		r = disk_file_write(
			q->file, c->buf, q->cluster_bytes, (start + i) << q->header.cluster_bits);
	}
	return r;
}

/* All blocks and their table anew, behind all that is used; the header's change puts them into force. */
static int rebuild_counts(struct checker *c)
{
	struct qcow2 *q = c->q;
	uint32_t bits = q->header.cluster_bits;
	uint64_t start, blocks = 0, clusters = 0, per = BIT(bits) / 8, before;
	AUTO_FREE uint64_t *table = NULL;
	int r;

	start = MAX(c->end, qcow2_clusters(q, c->file_bytes));
	do {
		before = blocks;
		clusters = blocks / per + 1;
		blocks = ((start + blocks + clusters) >> q->refblock_bits) + 1;
	} while (blocks != before);
	if (clusters << bits > QCOW2_REFTABLE_MAX)
		return -EFBIG;
	table = calloc(clusters, BIT(bits));
	if (!table)
		return -ENOMEM;
	for (uint64_t i = 0; i < blocks; i++)
		table[i] = htobe64((start + i) << bits);
	uncount(c, q->header.reftable_offset, (uint64_t)q->header.reftable_clusters << bits);
	for (uint32_t i = 0; i < q->reftable_entries; i++) {
		if (q->reftable[i] && table_ok(c, q->reftable[i]))
			uncount(c, q->reftable[i], q->cluster_bytes);
	}
	r = count_clusters(c, start, blocks + clusters, 1);
	if (r == 0)
		r = write_new_blocks(c, start, blocks);
	if (r == 0)
		r = disk_file_write(q->file, table, clusters << bits, (start + blocks) << bits);
	if (r == 0)
		r = qcow2_barrier(q);
	if (r < 0)
		return r;
	q->header.reftable_offset = (start + blocks) << bits;
	q->header.reftable_clusters = (uint32_t)clusters;
	c->check->errors_mended = c->check->errors - MIN(c->check->errors, c->unmendable);
	c->check->leaks_mended = c->check->leaks;
	r = qcow2_header_write(q);
	q->grown_bytes = MAX(q->grown_bytes, (start + blocks + clusters) << bits);
	return r == 0 ? qcow2_barrier(q) : r;
}

static int check_all(struct checker *c, struct error *err)
{
	struct qcow2 *q = c->q;
	bool repair = c->check->repair;
	int r = q->file->ops->size(q->file, &c->file_bytes);

	if (r == 0 && repair)
		r = qcow2_set_incompatible(q, QCOW2_DIRTY, true);
	if (r == 0)
		r = count_all(c, err);
	if (r == 0)
		r = compare_counts(c);
	c->check->end_bytes = c->end << q->header.cluster_bits;
	if (r == 0 && repair && c->rebuild)
		r = rebuild_counts(c);
	if (r == 0)
		r = check_flags(c);
	if (r < 0 || !repair)
		return r;
	r = qcow2_barrier(q);
	if (r == 0 && c->check->errors == c->check->errors_mended) {
		r = qcow2_set_incompatible(q, QCOW2_DIRTY | QCOW2_CORRUPT, false);
		AUTO_LOCK(&q->lock);
		q->corrupt = q->corrupt && r < 0;
		q->touched = q->guarded = false;
	}
	return r == 0 ? qcow2_tables_load(q, err) : r;
}

static void counts_done(struct counts *counts)
{
	for (uint32_t i = 0; counts->bucket && i < BUCKETS; i++) {
		struct chunk *next;

		for (struct chunk *chunk = counts->bucket[i]; chunk; chunk = next) {
			next = chunk->next;
			free(chunk);
		}
	}
	free(counts->bucket);
}

static void checker_done(struct checker *c)
{
	counts_done(&c->all);
	counts_done(&c->tables);
	free(c->buf);
}

static int check_qcow2(struct qcow2 *q, struct image_check *check, struct error *err)
{
	struct checker c = {.q = q, .check = check};
	int r = 0;

	c.all.bucket = calloc(BUCKETS, sizeof(struct chunk *));
	c.tables.bucket = calloc(BUCKETS, sizeof(struct chunk *));
	c.buf = malloc(q->cluster_bytes);
	check->clusters = qcow2_clusters(q, q->disk->size_bytes);
	if (!c.all.bucket || !c.tables.bucket || !c.buf)
		r = -ENOMEM;
	if (r == 0)
		r = check_all(&c, err);
	checker_done(&c);
	return r;
}

int image_check(struct disk *disk, struct image_check *check, struct error *err)
{
	struct error why = {0};
	struct qcow2 *q = qcow2_of(disk);
	int r;

	if (disk->format != &disk_format_qcow2)
		return error_set(err, ENOTSUP, "%s: a %s image has nothing that can be checked",
			disk->file->name, disk->format->name);
	if (check->repair && disk->readonly)
		return error_set(err, EROFS, "%s is open for reading only", disk->file->name);
	AUTO_LOCK(&q->meta);
	r = qcow2_header_bitmaps(q)
		    ? error_set(&why, ENOTSUP,
			      "it has persistent bitmaps, which are not supported here")
		    : 0;
	if (r == 0 && !disk->readonly && !q->corrupt) {
		r = qcow2_flush_meta(q);
		if (r == 0)
			r = qcow2_pool_return(q);
		if (r == 0)
			r = qcow2_refs_write(q);
	}
	if (r == 0)
		r = check_qcow2(q, check, &why);
	if (r == 0)
		return 0;
	if (r == -EINTR)
		return error_set(err, EINTR, "interrupted");
	return why.code ? error_set(err, -r, "can't check %s: %s", disk->file->name, why.text)
			: error_set_errno(err, -r, "can't check %s", disk->file->name);
}
