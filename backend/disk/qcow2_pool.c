/*
 * Clusters of a qcow2 image between free and used: those kept for the fast way, those that the slow way is writing to,
 * and those that are no longer pointed to but may not be used again yet.
 *
 * The counts of all of them are 0, in memory too, so that none leaks if the process is killed; qcow2_kept_end() keeps
 * them from being allocated. All of it under `meta`.
 */
#include "backend/disk/qcow2.h"
#include "base/log.h"

#include <stdlib.h>

#define POOL_BYTES  MIB(8)
#define POOL_FEWEST 8u

/* Make new clusters read as zeros: what lies beyond `file_bytes`, the file's old end, does so. */
static bool make_zeros(struct qcow2 *q, const struct qcow2_run *run, uint64_t file_bytes)
{
	uint64_t from = run->start << q->header.cluster_bits;
	uint64_t to = from + (run->count << q->header.cluster_bits);

	if (!q->file->growable)
		return false;
	if (from >= file_bytes)
		return true;
	return q->file->can_punch &&
	       q->file->ops->punch(q->file, from, MIN(to, file_bytes) - from) == 0;
}

static int pool_fill(struct qcow2 *q, uint64_t want)
{
	uint64_t most = MAX(POOL_BYTES >> q->header.cluster_bits, POOL_FEWEST);
	uint64_t file_bytes = q->grown_bytes;
	struct qcow2_run run;
	bool zero;
	int r;

	if (q->pool.count)
		return 0;
	qcow2_reap(q);
	q->pool_next = MIN(MAX(q->pool_next * 2, POOL_FEWEST), most);
	r = qcow2_find_run(q, 1, MAX(q->pool_next, MIN(want, most)), &run);
	if (r < 0)
		return r;
	zero = make_zeros(q, &run, file_bytes);
	AUTO_LOCK(&q->lock);
	q->pool = run;
	q->pool_zero = zero;
	q->pool_counted = run.start;
	return 0;
}

/* Not if the fast way took some since they were counted: the slow way's would be counted with them. */
static bool pool_take(struct qcow2 *q, uint64_t want, struct qcow2_run *ret_run, bool *ret_zero)
{
	AUTO_LOCK(&q->lock);

	if (!q->pool.count || q->pool.start != q->pool_counted)
		return false;
	*ret_run = (struct qcow2_run){q->pool.start, MIN(want, q->pool.count)};
	*ret_zero = q->pool_zero;
	q->pool.start += ret_run->count;
	q->pool.count -= ret_run->count;
	q->pool_counted = q->pool.start;
	q->unlinked = *ret_run;
	return true;
}

int qcow2_pool_take(struct qcow2 *q, uint64_t want, struct qcow2_run *ret_run, bool *ret_zero)
{
	while (!pool_take(q, want, ret_run, ret_zero)) {
		int r = qcow2_pool_count(q, UINT64_MAX);

		if (r == 0)
			r = pool_fill(q, want);
		if (r < 0)
			return r;
	}
	return 0;
}

void qcow2_pool_untake(struct qcow2 *q)
{
	q->scan = MIN(q->scan, q->unlinked.start);
	q->unlinked = (struct qcow2_run){0};
}

int qcow2_pool_count(struct qcow2 *q, uint64_t end)
{
	int r;

	{
		AUTO_LOCK(&q->lock);
		end = MIN(end, q->pool.start);
	}
	if (end <= q->pool_counted)
		return 0;
	r = qcow2_count_new(q, q->pool_counted, end - q->pool_counted);
	if (r == 0)
		q->pool_counted = end;
	return r;
}

int qcow2_pool_return(struct qcow2 *q)
{
	struct qcow2_run run;

	{
		AUTO_LOCK(&q->lock);
		run = q->pool;
		q->pool.count = 0;
	}
	if (run.count)
		q->scan = MIN(q->scan, run.start);
	return qcow2_pool_count(q, UINT64_MAX);
}

/* The run that holds the cluster, if any. */
static const struct qcow2_held *find_held(const struct qcow2 *q, uint64_t cluster)
{
	size_t low = 0, high = q->held_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const struct qcow2_held *held = &q->held[middle];

		if (cluster < held->start)
			high = middle;
		else if (cluster - held->start >= held->count)
			low = middle + 1;
		else
			return held;
	}
	return NULL;
}

static uint64_t run_end(uint64_t cluster, uint64_t start, uint64_t end)
{
	return cluster >= start && cluster < end ? end : cluster;
}

uint64_t qcow2_kept_end(struct qcow2 *q, uint64_t cluster)
{
	const struct qcow2_held *held = find_held(q, cluster);
	uint64_t pool_end, end;

	if (held)
		return held->start + held->count;
	{
		AUTO_LOCK(&q->lock);
		pool_end = q->pool.start + q->pool.count;
	}
	end = run_end(cluster, q->pool_counted, pool_end);
	return end > cluster
		       ? end
		       : run_end(cluster, q->unlinked.start, q->unlinked.start + q->unlinked.count);
}

int qcow2_runs_add(struct qcow2_runs *runs, uint64_t start, uint64_t count)
{
	struct qcow2_run *last = runs->count ? &runs->run[runs->count - 1] : NULL;

	if (last && last->start + last->count == start) {
		last->count += count;
		return 0;
	}
	if (runs->count == runs->room) {
		size_t room = MAX(runs->room * 2, (size_t)16);
		struct qcow2_run *run = realloc(runs->run, room * sizeof(*run));

		if (!run)
			return -ENOMEM;
		runs->run = run;
		runs->room = room;
	}
	runs->run[runs->count++] = (struct qcow2_run){start, count};
	return 0;
}

static void leak(struct qcow2 *q, uint64_t count)
{
	q->leaky = true;
	log_debug("disk", "%s: out of memory: %llu clusters leak", q->file->name,
		(unsigned long long)count);
}

void qcow2_free_later(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
	if (qcow2_runs_add(&q->freed, cluster, count) < 0)
		leak(q, count);
}

/* Room for one more run. */
static bool held_room(struct qcow2 *q)
{
	size_t room = MAX(q->held_room * 2, (size_t)16);
	struct qcow2_held *held;

	if (q->held_count < q->held_room)
		return true;
	held = realloc(q->held, room * sizeof(*held));
	if (!held)
		return false;
	q->held = held;
	q->held_room = room;
	return true;
}

/* One cluster has lost a user. If it was the last, the cluster is held from now on. */
static void lower_cluster(struct qcow2 *q, uint64_t cluster, size_t first)
{
	struct qcow2_held *last;
	uint64_t count;

	if (!held_room(q)) {
		leak(q, 1);
		return;
	}
	if (qcow2_refcount_add(q, cluster, 1, -1) < 0 ||
		qcow2_refcount_get(q, cluster, &count) < 0 || count)
		return;
	last = q->held_count > first ? &q->held[q->held_count - 1] : NULL;
	if (last && last->start + last->count == cluster)
		last->count++;
	else
		q->held[q->held_count++] = (struct qcow2_held){cluster, 1, QCOW2_LOWERED};
}

static int compare_held(const void *a, const void *b)
{
	const struct qcow2_held *one = a, *other = b;

	return one->start < other->start ? -1 : one->start > other->start;
}

void qcow2_lower(struct qcow2 *q, struct qcow2_runs *freed)
{
	size_t first = q->held_count;

	for (size_t i = 0; i < freed->count; i++) {
		for (uint64_t c = 0; c < freed->run[i].count; c++)
			lower_cluster(q, freed->run[i].start + c, first);
	}
	freed->count = 0;
	if (q->held_count > first)
		qsort(q->held, q->held_count, sizeof(*q->held), compare_held);
}

void qcow2_settle(struct qcow2 *q)
{
	for (size_t i = 0; i < q->held_count; i++) {
		if (q->held[i].stage == QCOW2_LOWERED)
			q->held[i].stage = QCOW2_SETTLED;
	}
}

/* Has the I/O of the epoch before this one ended? */
static bool epoch_over(struct qcow2 *q)
{
	AUTO_LOCK(&q->lock);

	return !q->in_flight[!q->epoch];
}

/* These clusters are free: their space goes back to the host. */
static void release(struct qcow2 *q, const struct qcow2_held *held)
{
	uint32_t bits = q->header.cluster_bits;

	qcow2_unpack_forget(q, held->start, held->count);
	q->scan = MIN(q->scan, held->start);
	if (!q->keep_discarded)
		q->file->ops->discard(q->file, held->start << bits, held->count << bits);
}

/* Those whose grace has ended are released; that of the settled ones begins. Did any begin? */
static bool next_stage(struct qcow2 *q)
{
	bool begun = false;
	size_t kept = 0;

	for (size_t i = 0; i < q->held_count; i++) {
		struct qcow2_held held = q->held[i];

		if (held.stage == QCOW2_GRACE) {
			release(q, &held);
			continue;
		}
		if (held.stage == QCOW2_SETTLED) {
			held.stage = QCOW2_GRACE;
			begun = true;
		}
		q->held[kept++] = held;
	}
	q->held_count = kept;
	return begun;
}

void qcow2_reap(struct qcow2 *q)
{
	for (unsigned round = 0; round < 2 && q->held_count && epoch_over(q); round++) {
		if (!next_stage(q))
			return;
		AUTO_LOCK(&q->lock);
		q->epoch = !q->epoch;
	}
}
