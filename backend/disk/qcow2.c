/*
 * Opening and closing qcow2 images.
 */
#include "backend/disk/qcow2.h"
#include "backend/disk/image.h"
#include "base/log.h"

#include <string.h>

#define CACHE_BYTES   MIB(32)
#define CACHE_TABLES  8u /* at least */
#define TRIM_SCAN_MAX BIT(28)
#define REFS_SHARE    4u /* of the cache, as much again for counts */

static bool qcow2_probe(const uint8_t *head, size_t bytes)
{
	return bytes >= 8 && load_be32(head) == QCOW2_MAGIC;
}

static int words_read(struct qcow2 *q, uint64_t offset, uint64_t count, uint64_t **ret_words)
{
	uint64_t *words = calloc(MAX(count, 1ull), 8);
	int r;

	if (!words)
		return -ENOMEM;
	r = disk_file_read(q->file, words, count * 8, offset);
	if (r < 0) {
		free(words);
		return r;
	}
	for (uint64_t i = 0; i < count; i++)
		words[i] = be64toh(words[i]);
	*ret_words = words;
	return 0;
}

int qcow2_tables_load(struct qcow2 *q, struct error *err)
{
	const struct qcow2_header *h = &q->header;
	uint64_t *l1, *reftable;
	int r;

	qcow2_cache_forget(q, &q->l2);
	qcow2_cache_forget(q, &q->refs);
	r = words_read(q, h->l1_offset, h->l1_entries, &l1);
	if (r < 0)
		return error_set_errno(err, -r, "can't read the L1 table of %s", q->file->name);
	free(q->l1);
	q->l1 = l1;
	q->reftable_entries = (uint32_t)((uint64_t)h->reftable_clusters << h->cluster_bits >> 3);
	r = words_read(q, h->reftable_offset, q->reftable_entries, &reftable);
	if (r < 0)
		return error_set_errno(
			err, -r, "can't read the reference count table of %s", q->file->name);
	free(q->reftable);
	q->reftable = reftable;
	q->l1_dirty_from = q->l1_dirty_to = 0;
	q->reftable_dirty_from = q->reftable_dirty_to = 0;
	q->scan = 0;
	r = qcow2_cache_resize(&q->l2, MAX(h->l1_entries, q->l2.entries));
	if (r == 0)
		r = qcow2_cache_resize(&q->refs, MAX(q->reftable_entries, q->refs.entries));
	return r < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

static int caches_init(struct qcow2 *q, const struct disk_options *options, struct error *err)
{
	uint64_t tables = (options->cache_bytes ? options->cache_bytes : CACHE_BYTES) >>
			  q->header.cluster_bits;
	uint32_t l2 =
		(uint32_t)MIN(MAX(tables, CACHE_TABLES), MAX(q->header.l1_entries, CACHE_TABLES));
	uint32_t refs = (uint32_t)MAX(tables / REFS_SHARE, CACHE_TABLES);

	if (qcow2_cache_init(&q->l2, q->header.l1_entries, l2) < 0 ||
		qcow2_cache_init(&q->refs, 1, refs) < 0)
		return error_set(err, ENOMEM, "out of memory");
	return 0;
}

static void qcow2_free(struct qcow2 *q)
{
	qcow2_cache_done(&q->l2);
	qcow2_cache_done(&q->refs);
	qcow2_unpack_done(q);
	free(q->l1);
	free(q->reftable);
	free(q->freed.run);
	free(q->held);
	pthread_mutex_destroy(&q->meta);
	pthread_mutex_destroy(&q->lock);
	pthread_mutex_destroy(&q->unpack_lock);
	free(q);
}

/* May it be opened as it is? */
static int check_state(struct qcow2 *q, const struct disk_options *options, struct error *err)
{
	q->corrupt = q->header.incompatible & QCOW2_CORRUPT;
	if (q->disk->readonly)
		return 0;
	if (q->corrupt && !options->inspect)
		return error_set(err, EUCLEAN,
			"%s is marked as corrupt; 'lodge disk check --repair' may mend it, and it "
			"can be read as it is",
			q->file->name);
	if (q->header.incompatible & QCOW2_EXTENDED)
		return error_set(err, ENOTSUP,
			"%s has extended L2 entries, which can be read here but not written",
			q->file->name);
	return 0;
}

/* The counts of an image that was not closed can be wrong; count anew. */
static int repair_dirty(struct qcow2 *q, struct error *err)
{
	struct image_check check = {.repair = true};
	int r = image_check(q->disk, &check, err);

	if (r < 0)
		return error_prefix(err, "%s was not closed properly", q->file->name);
	if (check.errors > check.errors_mended)
		return error_set(err, EUCLEAN,
			"%s was not closed properly, and is damaged; 'lodge disk check' says more",
			q->file->name);
	log_debug("disk", "%s was not closed properly: %llu errors and %llu leaks mended",
		q->file->name, (unsigned long long)check.errors_mended,
		(unsigned long long)check.leaks_mended);
	return 0;
}

static int qcow2_setup(struct qcow2 *q, const struct disk_options *options, struct error *err)
{
	int r = qcow2_header_read(q, err);

	if (r == 0)
		r = check_state(q, options, err);
	if (r == 0)
		r = caches_init(q, options, err);
	if (r == 0)
		r = qcow2_tables_load(q, err);
	if (r < 0)
		return r;
	r = q->file->ops->size(q->file, &q->opened_bytes);
	if (r < 0)
		return error_set_errno(err, -r, "can't find the size of %s", q->file->name);
	q->grown_bytes = q->opened_bytes;
	q->keep_discarded = options->keep_discarded;
	q->disk->size_bytes = ALIGN_UP(q->header.size_bytes, 512);
	q->disk->cluster_bytes = (uint32_t)q->cluster_bytes;
	if (q->header.incompatible & QCOW2_DIRTY && !q->disk->readonly && !options->inspect)
		r = repair_dirty(q, err);
	return r;
}

static int qcow2_open(struct disk *disk, const struct disk_options *options, struct error *err)
{
	struct qcow2 *q = calloc(1, sizeof(*q));
	int r;

	if (!q)
		return error_set(err, ENOMEM, "out of memory");
	q->disk = disk;
	q->file = disk->file;
	pthread_mutex_init(&q->meta, NULL);
	pthread_mutex_init(&q->lock, NULL);
	pthread_mutex_init(&q->unpack_lock, NULL);
	disk->private = q;
	r = qcow2_setup(q, options, err);
	if (r < 0)
		qcow2_free(q);
	return r;
}

/* The end of the last cluster that is used, by the counts. */
static int used_end(struct qcow2 *q, uint64_t *ret_end)
{
	uint64_t budget = TRIM_SCAN_MAX;

	for (uint64_t i = q->reftable_entries; i-- > 0;) {
		uint64_t first = i << q->refblock_bits;

		if (!q->reftable[i])
			continue;
		for (uint64_t c = BIT(q->refblock_bits); c-- > 0;) {
			uint64_t count;
			int r = qcow2_refcount_get(q, first + c, &count);

			if (r < 0 || !--budget)
				return r < 0 ? r : -EFBIG;
			if (count) {
				*ret_end = (first + c + 1) << q->header.cluster_bits;
				return 0;
			}
		}
	}
	*ret_end = 0;
	return 0;
}

/* The file was made longer than is needed; never shorter than it was, whatever the counts say. */
static void trim_file(struct qcow2 *q)
{
	uint64_t end;

	if (!q->file->growable || q->grown_bytes <= q->opened_bytes || used_end(q, &end) < 0)
		return;
	end = MAX(end, q->opened_bytes);
	if (end < q->grown_bytes && q->file->ops->truncate(q->file, end) < 0)
		log_debug("disk", "can't trim %s", q->file->name);
}

static int finish(struct qcow2 *q)
{
	int r = qcow2_pool_return(q);

	if (r == 0)
		r = qcow2_flush_meta(q);
	if (r == 0 && q->touched && !q->leaky)
		r = qcow2_set_incompatible(q, QCOW2_DIRTY, false);
	if (r == 0)
		trim_file(q);
	return r;
}

static int qcow2_close(struct disk *disk)
{
	struct qcow2 *q = qcow2_of(disk);
	int r = 0;

	if (!disk->readonly && (q->touched || !q->corrupt))
		r = finish(q);
	qcow2_free(q);
	return r;
}

static void qcow2_end(struct disk *disk, unsigned epoch)
{
	qcow2_release(qcow2_of(disk), epoch);
}

static int qcow2_flush(struct disk *disk)
{
	struct qcow2 *q = qcow2_of(disk);
	AUTO_LOCK(&q->meta);

	return qcow2_flush_meta(q);
}

static struct disk_file *qcow2_flush_file(struct disk *disk)
{
	struct qcow2 *q = qcow2_of(disk);
	AUTO_LOCK(&q->lock);

	if (q->l2.dirty || q->l1_dirty_to || q->flushing || q->flush_error || q->refs.dirty ||
		q->reftable_dirty_to)
		return NULL;
	return q->file;
}

const struct disk_format disk_format_qcow2 = {
	.name = "qcow2",
	.probe = qcow2_probe,
	.open = qcow2_open,
	.close = qcow2_close,
	.begin = qcow2_begin,
	.end = qcow2_end,
	.readv = qcow2_readv,
	.writev = qcow2_writev,
	.discard = qcow2_discard,
	.zero = qcow2_zero,
	.flush = qcow2_flush,
	.flush_file = qcow2_flush_file,
	.map = qcow2_map,
	.resize = qcow2_resize,
};
