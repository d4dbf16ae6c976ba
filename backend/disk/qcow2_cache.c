/*
 * Tables of a qcow2 image in memory: L2 tables, and blocks of reference counts.
 *
 * Eviction is by second chance. A dirty block of counts may be written at any time; a dirty L2 table only by a flush of
 * all metadata, since what it points to has to be lasting before.
 */
#include "backend/disk/qcow2.h"

int qcow2_cache_init(struct qcow2_cache *cache, uint32_t entries, uint32_t max)
{
	cache->by_index = calloc(MAX(entries, 1u), sizeof(struct qcow2_table *));
	cache->loaded = calloc(max, sizeof(struct qcow2_table *));
	cache->entries = entries;
	cache->max = max;
	return cache->by_index && cache->loaded ? 0 : -ENOMEM;
}

static void table_free(struct qcow2_table *table)
{
	free(table->data);
	free(table);
}

void qcow2_cache_done(struct qcow2_cache *cache)
{
	for (uint32_t i = 0; i < cache->count; i++)
		table_free(cache->loaded[i]);
	free(cache->by_index);
	free(cache->loaded);
	*cache = (struct qcow2_cache){0};
}

int qcow2_cache_resize(struct qcow2_cache *cache, uint32_t entries)
{
	struct qcow2_table **by_index;

	if (entries <= cache->entries)
		return 0;
	by_index = realloc(cache->by_index, entries * sizeof(*by_index));
	if (!by_index)
		return -ENOMEM;
	cache->by_index = by_index;
	for (uint32_t i = cache->entries; i < entries; i++)
		by_index[i] = NULL;
	cache->entries = entries;
	return 0;
}

struct qcow2_table *qcow2_cache_find(struct qcow2_cache *cache, uint32_t index)
{
	struct qcow2_table *table = cache->by_index[index];

	if (table)
		table->used = true;
	return table;
}

void qcow2_table_dirty(
	struct qcow2_cache *cache, struct qcow2_table *table, uint32_t from, uint32_t bytes)
{
	if (table->dirty_from == table->dirty_to) {
		cache->dirty++;
		table->dirty_from = from;
		table->dirty_to = from + bytes;
	} else {
		table->dirty_from = MIN(table->dirty_from, from);
		table->dirty_to = MAX(table->dirty_to, from + bytes);
	}
}

static void cache_remove(struct qcow2_cache *cache, struct qcow2_table *table)
{
	struct qcow2_table *last = cache->loaded[--cache->count];

	if (table->dirty_from != table->dirty_to)
		cache->dirty--;
	cache->by_index[table->index] = NULL;
	cache->loaded[table->slot] = last;
	last->slot = table->slot;
	table_free(table);
}

/* One that was not used since the hand came by last, clean if possible. */
static struct qcow2_table *cache_victim(struct qcow2_cache *cache)
{
	struct qcow2_table *dirty = NULL;

	for (uint32_t i = 0; i < 2 * cache->count; i++) {
		struct qcow2_table *table;

		cache->hand = cache->hand + 1 < cache->count ? cache->hand + 1 : 0;
		table = cache->loaded[cache->hand];
		if (table->used)
			table->used = false;
		else if (table->dirty_from == table->dirty_to)
			return table;
		else if (!dirty)
			dirty = table;
	}
	return dirty ? dirty : cache->loaded[cache->hand];
}

/* While a dirty L2 table is written, the fast way must not make it dirty again. */
static int evict(struct qcow2 *q, struct qcow2_cache *cache, struct qcow2_table *table)
{
	uint64_t from = q->busy_from, to = q->busy_to;
	int r;

	{
		AUTO_LOCK(&q->lock);
		q->busy_from = 0;
		q->busy_to = UINT64_MAX;
	}
	r = cache == &q->refs ? qcow2_refs_write(q) : qcow2_flush_meta(q);
	AUTO_LOCK(&q->lock);
	q->busy_from = from;
	q->busy_to = to;
	if (r == 0)
		cache_remove(cache, table);
	return r;
}

static int cache_make_room(struct qcow2 *q, struct qcow2_cache *cache)
{
	struct qcow2_table *table;

	while (cache->count >= cache->max) {
		int r = 0;

		{
			AUTO_LOCK(&q->lock);
			table = cache_victim(cache);
			if (table->dirty_from == table->dirty_to) {
				cache_remove(cache, table);
				return 0;
			}
		}
		r = evict(q, cache, table);
		if (r < 0)
			return r;
	}
	return 0;
}

int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *cache, uint32_t index, uint64_t offset,
	bool load, struct qcow2_table **ret_table)
{
	struct qcow2_table *table;
	int r = 0;

	{
		AUTO_LOCK(&q->lock);
		table = qcow2_cache_find(cache, index);
	}
	if (table) {
		*ret_table = table;
		return 0;
	}
	r = cache_make_room(q, cache);
	if (r < 0)
		return r;
	table = calloc(1, sizeof(*table));
	if (table)
		table->data = calloc(1, q->cluster_bytes);
	if (!table || !table->data) {
		free(table);
		return -ENOMEM;
	}
	if (load)
		r = disk_file_read(q->file, table->data, q->cluster_bytes, offset);
	if (r < 0) {
		table_free(table);
		return r;
	}
	table->offset = offset;
	table->index = index;
	table->used = true;
	AUTO_LOCK(&q->lock);
	table->slot = cache->count;
	cache->loaded[cache->count++] = table;
	cache->by_index[index] = table;
	*ret_table = table;
	return 0;
}

void qcow2_cache_drop(struct qcow2 *q, struct qcow2_cache *cache, uint32_t index)
{
	AUTO_LOCK(&q->lock);

	if (index < cache->entries && cache->by_index[index])
		cache_remove(cache, cache->by_index[index]);
}

void qcow2_cache_forget(struct qcow2 *q, struct qcow2_cache *cache)
{
	AUTO_LOCK(&q->lock);

	while (cache->count)
		cache_remove(cache, cache->loaded[cache->count - 1]);
}
