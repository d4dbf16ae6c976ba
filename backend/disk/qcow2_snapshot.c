/*
 * Internal snapshots of qcow2 images: a snapshot is another L1 table, and every cluster that it leads to counts one
 * more. Section "Snapshots" of the format's description.
 *
 * While counts and flags do not agree, the dirty bit is set (version 3), so that a crash leads to a repair at the
 * next opening. The disk has no other user meanwhile.
 */
#include "backend/disk/qcow2_snapshot.h"
#include "backend/disk/image.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define RECORD_BYTES   40u
#define EXTRA_BYTES    16u /* of what we write: long size of the VM state, disk size */
#define EXTRA_MAX      1024u
#define NAME_MAX_BYTES 255u

/* The table. */

static int record_check(struct qcow2 *q, const struct qcow2_record *rec)
{
	uint64_t bytes = rec->l1_entries * 8ull;

	if (rec->l1_entries > QCOW2_L1_BYTES_MAX / 8 ||
		!IS_ALIGNED(rec->l1_offset, q->cluster_bytes) || rec->l1_offset >= BIT(56) ||
		(bytes && !rec->l1_offset))
		return -EINVAL;
	if (rec->size_bytes > INT64_MAX - MIB(4) ||
		qcow2_l1_entries_for(q, rec->size_bytes) > rec->l1_entries)
		return -EINVAL;
	return 0;
}

static int record_parse(struct qcow2 *q, struct qcow2_record *rec, uint32_t id_bytes,
	uint32_t name_bytes, uint32_t extra)
{
	const uint8_t *raw = rec->raw;

	rec->l1_offset = load_be64(raw);
	rec->l1_entries = load_be32(raw + 8);
	rec->vm_state_bytes = extra >= 8 ? load_be64(raw + RECORD_BYTES) : load_be32(raw + 32);
	rec->size_bytes = extra >= 16 ? load_be64(raw + RECORD_BYTES + 8) : q->header.size_bytes;
	rec->id = strndup((const char *)raw + RECORD_BYTES + extra, id_bytes);
	rec->name = strndup((const char *)raw + RECORD_BYTES + extra + id_bytes, name_bytes);
	if (!rec->id || !rec->name)
		return -ENOMEM;
	return record_check(q, rec);
}

static int record_load(struct qcow2 *q, struct qcow2_record *rec, uint64_t offset)
{
	uint8_t head[RECORD_BYTES];
	uint32_t id_bytes, name_bytes, extra;
	int r = disk_file_read(q->file, head, sizeof(head), offset);

	if (r < 0)
		return r;
	id_bytes = load_be16(head + 12);
	name_bytes = load_be16(head + 14);
	extra = load_be32(head + 36);
	if (extra > EXTRA_MAX)
		return -EINVAL;
	rec->bytes = ALIGN_UP(RECORD_BYTES + extra + id_bytes + name_bytes, 8u);
	rec->raw = malloc(rec->bytes);
	if (!rec->raw)
		return -ENOMEM;
	r = disk_file_read(q->file, rec->raw, rec->bytes, offset);
	/* Read twice: what counts is the first. */
	memcpy(rec->raw, head, sizeof(head));
	return r < 0 ? r : record_parse(q, rec, id_bytes, name_bytes, extra);
}

int qcow2_snapshots_load(struct qcow2 *q, struct qcow2_snapshots *list, struct error *err)
{
	uint64_t offset = q->header.snapshots_offset, file_bytes, l1_bytes = 0;
	int r = q->file->ops->size(q->file, &file_bytes);

	if (r < 0)
		return error_set_errno(err, -r, "can't find the size of %s", q->file->name);
	list->record =
		calloc(q->header.snapshots + 1, sizeof(*list->record)); /* room for a new one */
	if (!list->record)
		return error_set(err, ENOMEM, "out of memory");
	while (r == 0 && list->count < q->header.snapshots) {
		struct qcow2_record *rec = &list->record[list->count++];

		r = record_load(q, rec, offset + list->bytes);
		list->bytes += rec->bytes;
		l1_bytes += rec->l1_entries * 8ull;
		if (r == 0 && rec->l1_entries && rec->l1_offset >= file_bytes)
			r = -EINVAL;
		if (list->bytes > QCOW2_SNAPSHOT_BYTES || l1_bytes > QCOW2_SNAPSHOT_L1_MAX)
			r = r < 0 ? r : -EFBIG;
	}
	if (r == -EINVAL || r == -EFBIG)
		return error_set(err, -r, "%s: snapshot %u is damaged", q->file->name, list->count);
	return r < 0 ? error_set_errno(err, -r, "can't read the snapshots of %s", q->file->name)
		     : 0;
}

static void record_done(struct qcow2_record *rec)
{
	free(rec->raw);
	free(rec->id);
	free(rec->name);
}

void qcow2_snapshots_done(struct qcow2_snapshots *list)
{
	for (unsigned i = 0; i < list->count; i++)
		record_done(&list->record[i]);
	free(list->record);
	*list = (struct qcow2_snapshots){0};
}

/* Put another table into force. Lasting when it returns. */
static int table_store(struct qcow2 *q, const struct qcow2_snapshots *list)
{
	struct qcow2_header before = q->header;
	uint64_t bytes = 0, offset = 0, old_bytes = list->bytes;
	int r = 0;

	for (unsigned i = 0; i < list->count; i++)
		bytes += list->record[i].bytes;
	if (bytes > QCOW2_SNAPSHOT_BYTES || list->count > QCOW2_SNAPSHOTS_MAX)
		return -EFBIG;
	if (bytes)
		r = qcow2_alloc_table(q, qcow2_clusters(q, bytes), &offset);
	if (r < 0)
		return r;
	for (uint64_t i = 0, at = offset; r == 0 && i < list->count; i++) {
		r = disk_file_write(q->file, list->record[i].raw, list->record[i].bytes, at);
		at += list->record[i].bytes;
	}
	if (r == 0)
		r = qcow2_flush_meta(q);
	if (r < 0)
		return r;
	q->header.snapshots = list->count;
	q->header.snapshots_offset = offset;
	r = qcow2_header_write(q);
	if (r == 0)
		r = qcow2_barrier(q);
	if (r < 0) {
		q->header = before;
		q->leaky = true;
		return r;
	}
	if (before.snapshots)
		qcow2_free_later(q, before.snapshots_offset >> before.cluster_bits,
			qcow2_clusters(q, old_bytes));
	return 0;
}

static struct qcow2_record *record_find(struct qcow2_snapshots *list, const char *name)
{
	for (unsigned i = 0; i < list->count; i++) {
		if (strcmp(list->record[i].name, name) == 0)
			return &list->record[i];
	}
	for (unsigned i = 0; i < list->count; i++) {
		if (strcmp(list->record[i].id, name) == 0)
			return &list->record[i];
	}
	return NULL;
}

/* Counts. */

struct tree {
	const uint64_t *l1; /* host order */
	uint32_t entries;
	uint64_t steps, limit; /* of changes that were, and may be made */
};

static int tree_step(
	struct qcow2 *q, struct tree *tree, uint64_t cluster, uint64_t count, int delta)
{
	int r;

	if (tree->steps == tree->limit)
		return 1;
	r = qcow2_refcount_add(q, cluster, count, delta);
	if (r == 0)
		tree->steps++;
	return r;
}

static int table_add(struct qcow2 *q, struct tree *tree, uint64_t offset, uint8_t *buf, int delta)
{
	int r;

	if (!IS_ALIGNED(offset, q->cluster_bytes))
		return qcow2_corrupted(q, "L2 table", offset);
	r = disk_file_read(q->file, buf, q->cluster_bytes, offset);
	for (uint64_t i = 0; r == 0 && i < BIT(q->l2_bits); i++) {
		uint64_t entry = load_be64(buf + i * q->entry_bytes), first;
		uint64_t clusters = qcow2_entry_clusters(q, entry, &first);

		if (clusters)
			r = tree_step(q, tree, first, clusters, delta);
	}
	return r == 0 ? tree_step(q, tree, offset >> q->header.cluster_bits, 1, delta) : r;
}

/* Add to the counts of everything that the L1 table leads to. Stops with 1 at the limit. */
static int tree_add(struct qcow2 *q, struct tree *tree, int delta)
{
	AUTO_FREE uint8_t *buf = malloc(q->cluster_bytes);
	int r = 0;

	if (!buf)
		return -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < tree->entries; i++) {
		if (tree->l1[i] & QCOW2_OFFSET)
			r = table_add(q, tree, tree->l1[i] & QCOW2_OFFSET, buf, delta);
	}
	return r;
}

/* All or nothing, as far as the host lets us. */
static int tree_raise(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
{
	struct tree tree = {l1, entries, 0, UINT64_MAX};
	int r = tree_add(q, &tree, 1);

	if (r < 0) {
		struct tree undo = {l1, entries, 0, tree.steps};

		(void)!tree_add(q, &undo, -1);
	}
	return r;
}

static int tree_lower(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
{
	struct tree tree = {l1, entries, 0, UINT64_MAX};
	int r = tree_add(q, &tree, -1);

	qcow2_unpack_forget(q, 0, UINT64_MAX);
	return r;
}

/* Flags. */

static int flag_of(struct qcow2 *q, uint64_t offset, uint64_t *ret_flag)
{
	uint64_t count;
	int r = qcow2_refcount_get(q, offset >> q->header.cluster_bits, &count);

	*ret_flag = count == 1 ? QCOW2_COPIED : 0;
	return r;
}

static int table_flags(struct qcow2 *q, uint64_t offset, uint8_t *buf)
{
	bool changed = false;
	int r = disk_file_read(q->file, buf, q->cluster_bytes, offset);

	for (uint64_t i = 0; r == 0 && i < BIT(q->l2_bits); i++) {
		uint64_t entry = load_be64(buf + i * q->entry_bytes), flag;

		if (entry & QCOW2_COMPRESSED || !(entry & QCOW2_OFFSET))
			continue;
		r = flag_of(q, entry & QCOW2_OFFSET, &flag);
		if (flag == (entry & QCOW2_COPIED))
			continue;
		store_be64(buf + i * q->entry_bytes, (entry & ~QCOW2_COPIED) | flag);
		changed = true;
	}
	return r == 0 && changed ? disk_file_write(q->file, buf, q->cluster_bytes, offset) : r;
}

/* Make the flags of the disk's tables agree with the counts. Nothing is dirty in the L2 cache, and it is emptied. */
static int flags_update(struct qcow2 *q)
{
	AUTO_FREE uint8_t *buf = malloc(q->cluster_bytes);
	int r = 0;

	if (!buf)
		return -ENOMEM;
	qcow2_cache_forget(q, &q->l2);
	for (uint32_t i = 0; r == 0 && i < q->header.l1_entries; i++) {
		uint64_t offset = q->l1[i] & QCOW2_OFFSET, flag;

		if (!offset)
			continue;
		r = flag_of(q, offset, &flag);
		if (r == 0)
			r = table_flags(q, offset, buf);
		AUTO_LOCK(&q->lock);
		if (r == 0 && flag != (q->l1[i] & QCOW2_COPIED))
			qcow2_l1_set(q, i, offset | flag);
	}
	return r == 0 ? qcow2_flush_meta(q) : r;
}

/* Everything in memory is in the file; counts and flags may disagree from now on. */
static int begin_change(struct qcow2 *q)
{
	int r = qcow2_touch(q);

	if (r == 0)
		r = qcow2_flush_meta(q);
	return r == 0 ? qcow2_set_incompatible(q, QCOW2_DIRTY, true) : r;
}

/* They agree again. If the work failed the bit stays: the next opening repairs. */
static int end_change(struct qcow2 *q)
{
	int r = qcow2_flush_meta(q);

	return r == 0 && !q->guarded ? qcow2_set_incompatible(q, QCOW2_DIRTY, false) : r;
}

/* The counts are as they were: end all the same. */
static int give_up(struct qcow2 *q, int r)
{
	if (flags_update(q) == 0)
		(void)!end_change(q);
	return r;
}

/* Create. */

static uint64_t next_id(const struct qcow2_snapshots *list)
{
	uint64_t highest = 0;

	for (unsigned i = 0; i < list->count; i++)
		highest = MAX(highest, (uint64_t)strtoul(list->record[i].id, NULL, 10));
	return highest + 1;
}

static int record_make(struct qcow2 *q, struct qcow2_record *rec, uint64_t id, const char *name,
	uint64_t l1_offset)
{
	size_t name_bytes = strlen(name), id_bytes;
	struct timespec now;
	char text[24];

	id_bytes = (size_t)snprintf(text, sizeof(text), "%llu", (unsigned long long)id);
	rec->bytes = (uint32_t)ALIGN_UP(RECORD_BYTES + EXTRA_BYTES + id_bytes + name_bytes, 8);
	rec->raw = calloc(1, rec->bytes);
	if (!rec->raw)
		return -ENOMEM;
	clock_gettime(CLOCK_REALTIME, &now);
	store_be64(rec->raw, l1_offset);
	store_be32(rec->raw + 8, q->header.l1_entries);
	store_be16(rec->raw + 12, (uint16_t)id_bytes);
	store_be16(rec->raw + 14, (uint16_t)name_bytes);
	store_be32(rec->raw + 16, (uint32_t)now.tv_sec);
	store_be32(rec->raw + 20, (uint32_t)now.tv_nsec);
	store_be32(rec->raw + 36, EXTRA_BYTES);
	store_be64(rec->raw + RECORD_BYTES + 8, q->header.size_bytes);
	memcpy(rec->raw + RECORD_BYTES + EXTRA_BYTES, text, id_bytes);
	memcpy(rec->raw + RECORD_BYTES + EXTRA_BYTES + id_bytes, name, name_bytes);
	return 0;
}

static int l1_copy(struct qcow2 *q, uint64_t *ret_offset)
{
	uint64_t bytes = q->header.l1_entries * 8ull;
	AUTO_FREE uint64_t *raw = calloc(MAX(q->header.l1_entries, 1u), 8);
	int r;

	if (!raw)
		return -ENOMEM;
	for (uint32_t i = 0; i < q->header.l1_entries; i++)
		raw[i] = htobe64(q->l1[i] & ~QCOW2_COPIED);
	r = qcow2_alloc_table(q, MAX(qcow2_clusters(q, bytes), 1ull), ret_offset);
	return r == 0 ? disk_file_write(q->file, raw, bytes, *ret_offset) : r;
}

static int create_record(struct qcow2 *q, struct qcow2_snapshots *list, const char *name)
{
	uint64_t l1_offset, id = next_id(list);
	int r = l1_copy(q, &l1_offset);

	if (r < 0)
		return r;
	r = record_make(q, &list->record[list->count++], id, name, l1_offset);
	return r == 0 ? table_store(q, list) : r;
}

static int create(struct qcow2 *q, struct qcow2_snapshots *list, const char *name)
{
	int r = begin_change(q);

	if (r < 0)
		return r;
	r = tree_raise(q, q->l1, q->header.l1_entries);
	if (r < 0)
		return give_up(q, r);
	r = qcow2_flush_meta(q);
	if (r == 0)
		r = flags_update(q);
	if (r == 0)
		r = create_record(q, list, name);
	if (r == 0)
		return end_change(q);
	(void)!tree_lower(q, q->l1, q->header.l1_entries);
	return give_up(q, r);
}

static int words_load(struct qcow2 *q, const struct qcow2_record *rec, uint64_t **ret_l1)
{
	uint64_t *l1 = calloc(MAX(rec->l1_entries, 1u), 8);
	int r;

	if (!l1)
		return -ENOMEM;
	r = disk_file_read(q->file, l1, rec->l1_entries * 8ull, rec->l1_offset);
	if (r < 0) {
		free(l1);
		return r;
	}
	for (uint32_t i = 0; i < rec->l1_entries; i++)
		l1[i] = be64toh(l1[i]) & QCOW2_OFFSET;
	*ret_l1 = l1;
	return 0;
}

/* The disk gets the snapshot's tree, which counts once more for it; then its own old one counts once less. */
static int apply(struct qcow2 *q, const struct qcow2_record *rec)
{
	AUTO_FREE uint64_t *l1 = NULL, *old = NULL;
	uint32_t old_entries = q->header.l1_entries;
	int r = words_load(q, rec, &l1);

	if (r == 0)
		r = begin_change(q);
	if (r < 0)
		return r;
	old = calloc(MAX(old_entries, 1u), 8);
	if (!old)
		return -ENOMEM;
	memcpy(old, q->l1, old_entries * 8ull);
	qcow2_cache_forget(q, &q->l2);
	r = tree_raise(q, l1, rec->l1_entries);
	if (r == 0)
		r = qcow2_flush_meta(q);
	if (r == 0) {
		r = qcow2_l1_move(q, l1, rec->l1_entries, rec->size_bytes);
		if (r < 0)
			(void)!tree_lower(q, l1, rec->l1_entries);
	}
	if (r < 0)
		return give_up(q, r);
	q->disk->size_bytes = ALIGN_UP(q->header.size_bytes, 512);
	r = tree_lower(q, old, old_entries);
	if (r == 0)
		r = qcow2_flush_meta(q);
	if (r == 0)
		r = flags_update(q);
	return r == 0 ? end_change(q) : r;
}

static int delete (struct qcow2 *q, struct qcow2_snapshots *list, struct qcow2_record *rec)
{
	struct qcow2_record gone = *rec;
	AUTO_FREE uint64_t *l1 = NULL;
	int r = words_load(q, rec, &l1);

	if (r == 0)
		r = begin_change(q);
	if (r < 0)
		return r;
	memmove(rec, rec + 1, (size_t)(list->record + --list->count - rec) * sizeof(*rec));
	r = table_store(q, list);
	if (r == 0)
		r = tree_lower(q, l1, gone.l1_entries);
	if (r == 0 && gone.l1_offset)
		qcow2_free_later(q, gone.l1_offset >> q->header.cluster_bits,
			MAX(qcow2_clusters(q, gone.l1_entries * 8ull), 1ull));
	if (r == 0)
		r = qcow2_flush_meta(q);
	if (r == 0)
		r = flags_update(q);
	record_done(&gone);
	return r == 0 ? end_change(q) : r;
}

/* For others. */

static int need_qcow2(struct disk *disk, bool write, struct error *err)
{
	if (disk->format != &disk_format_qcow2)
		return error_set(err, ENOTSUP, "%s: a %s image can't have snapshots",
			disk->file->name, disk->format->name);
	if (write && disk->readonly)
		return error_set(err, EROFS, "%s is open for reading only", disk->file->name);
	return 0;
}

int image_snapshots(
	struct disk *disk, struct image_snapshot **ret_list, unsigned *ret_count, struct error *err)
{
	struct qcow2_snapshots table = {0};
	struct image_snapshot *list;
	int r = need_qcow2(disk, false, err);

	if (r < 0)
		return r;
	AUTO_LOCK(&qcow2_of(disk)->meta);
	r = qcow2_snapshots_load(qcow2_of(disk), &table, err);
	list = r == 0 ? calloc(MAX(table.count, 1u), sizeof(*list)) : NULL;
	if (r == 0 && !list)
		r = error_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; r == 0 && i < table.count; i++) {
		struct qcow2_record *rec = &table.record[i];

		list[i] = (struct image_snapshot){.id = take_ptr(&rec->id),
			.name = take_ptr(&rec->name),
			.size_bytes = rec->size_bytes,
			.vm_state_bytes = rec->vm_state_bytes,
			.seconds = load_be32(rec->raw + 16),
			.nanoseconds = load_be32(rec->raw + 20)};
	}
	*ret_list = list;
	*ret_count = r == 0 ? table.count : 0;
	qcow2_snapshots_done(&table);
	return r;
}

void image_snapshots_free(struct image_snapshot *list, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		free(list[i].id);
		free(list[i].name);
	}
	free(list);
}

/* Part of it may have been done. */
static int failed(struct error *err, struct qcow2 *q, int r, const char *what, const char *name)
{
	q->leaky = true;
	if (r == -ERANGE)
		return error_set(err, ERANGE,
			"can't %s snapshot '%s' of %s: its %u-bit reference counts are too small",
			what, name, q->file->name, 1u << q->header.refcount_order);
	return error_set_errno(err, -r, "can't %s snapshot '%s' of %s", what, name, q->file->name);
}

int image_snapshot_create(struct disk *disk, const char *name, struct error *err)
{
	struct qcow2 *q = qcow2_of(disk);
	struct qcow2_snapshots list = {0};
	int r = need_qcow2(disk, true, err);

	if (r < 0)
		return r;
	if (!*name || strlen(name) > NAME_MAX_BYTES)
		return error_set(
			err, EINVAL, "a snapshot's name has 1 to %u bytes", NAME_MAX_BYTES);
	AUTO_LOCK(&q->meta);
	r = qcow2_snapshots_load(q, &list, err);
	if (r == 0 && record_find(&list, name))
		r = error_set(err, EEXIST, "%s has a snapshot '%s' already", q->file->name, name);
	else if (r == 0) {
		r = create(q, &list, name);
		if (r < 0)
			failed(err, q, r, "create", name);
	}
	qcow2_snapshots_done(&list);
	return r;
}

static int with_snapshot(struct disk *disk, const char *name, bool applying, struct error *err)
{
	struct qcow2 *q = qcow2_of(disk);
	struct qcow2_snapshots list = {0};
	struct qcow2_record *rec = NULL;
	int r = need_qcow2(disk, true, err);

	if (r < 0)
		return r;
	AUTO_LOCK(&q->meta);
	r = qcow2_snapshots_load(q, &list, err);
	if (r == 0) {
		rec = record_find(&list, name);
		if (!rec)
			r = error_set(err, ENOENT, "%s has no snapshot '%s'", q->file->name, name);
	}
	if (rec) {
		r = applying ? apply(q, rec) : delete (q, &list, rec);
		if (r < 0)
			failed(err, q, r, applying ? "apply" : "delete", name);
	}
	qcow2_snapshots_done(&list);
	return r;
}

int image_snapshot_apply(struct disk *disk, const char *name, struct error *err)
{
	return with_snapshot(disk, name, true, err);
}

int image_snapshot_delete(struct disk *disk, const char *name, struct error *err)
{
	return with_snapshot(disk, name, false, err);
}
