/*
 * Copying and comparing disks, sparsely: what is known to be zeros is not read, and what turns out to be is not written.
 */
#include "backend/disk/image.h"
#include "backend/disk/disk.h"
#include "base/cleanup.h"

#include <string.h>

#define CHUNK_BYTES MIB(1)
#define BLOCK_BYTES KIB(4)
#define THREADS_MAX 16u

static bool all_zeros(const uint8_t *bytes, uint64_t count)
{
	return !count || (!bytes[0] && memcmp(bytes, bytes + 1, count - 1) == 0);
}

static int tell(const struct image_progress *progress, uint64_t done, uint64_t all)
{
	return progress->report && progress->report(progress->opaque, done, all) ? -EINTR : 0;
}

static int explain(struct error *err, int r, const char *what, const struct disk *disk)
{
	if (r == -EINTR)
		return error_set(err, EINTR, "interrupted");
	return error_set_errno(err, -r, "can't %s %s", what, disk->file->name);
}

/* Bytes from the start that are all zeros, or all not, in blocks. */
static uint64_t alike(const uint8_t *bytes, uint64_t count, bool *ret_zero)
{
	uint64_t n = MIN(count, BLOCK_BYTES);

	*ret_zero = all_zeros(bytes, n);
	while (n < count && all_zeros(bytes + n, MIN(count - n, BLOCK_BYTES)) == *ret_zero)
		n += MIN(count - n, BLOCK_BYTES);
	return n;
}

static int put_zeros(
	struct disk *to, const struct image_copy *copy, uint64_t offset, uint64_t bytes)
{
	return copy->target_zero ? 0 : disk_zero(to, offset, bytes, true);
}

static int put_data(struct disk *to, const struct image_copy *copy, const uint8_t *data,
	uint64_t offset, uint64_t bytes)
{
	int r = 0;

	if (copy->keep_zeros)
		return disk_write(to, data, bytes, offset);
	while (bytes && r == 0) {
		bool zero;
		uint64_t n = alike(data, bytes, &zero);

		r = zero ? put_zeros(to, copy, offset, n) : disk_write(to, data, n, offset);
		data += n;
		offset += n;
		bytes -= n;
	}
	return r;
}

/* One run of the source, or the first part of it. */
static int copy_run(struct disk *from, struct disk *to, const struct image_copy *copy, uint8_t *buf,
	uint64_t offset, struct disk_map_run *run, struct error *err)
{
	int r;

	if (copy->depth && (!run->present || run->depth >= copy->depth))
		return 0;
	if (!run->data) {
		r = put_zeros(to, copy, offset, run->bytes);
		return r < 0 ? explain(err, r, "write", to) : 0;
	}
	run->bytes = MIN(run->bytes, CHUNK_BYTES - (offset & (CHUNK_BYTES - 1)));
	r = disk_read(from, buf, run->bytes, offset);
	if (r < 0)
		return explain(err, r, "read", from);
	r = put_data(to, copy, buf, offset, run->bytes);
	return r < 0 ? explain(err, r, "write", to) : 0;
}

static int copy_plain(
	struct disk *from, struct disk *to, const struct image_copy *copy, struct error *err)
{
	AUTO_FREE uint8_t *buf = malloc(CHUNK_BYTES);
	uint64_t all = from->size_bytes;
	int r = 0;

	if (!buf)
		return error_set(err, ENOMEM, "out of memory");
	for (uint64_t offset = 0; offset < all && r == 0;) {
		struct disk_map_run run;

		r = tell(&copy->progress, offset, all);
		if (r == 0)
			r = disk_map(from, offset, all - offset, &run);
		if (r < 0)
			return explain(err, r, "read", from);
		r = copy_run(from, to, copy, buf, offset, &run, err);
		offset += run.bytes;
	}
	return r;
}

/* Compressing keeps several processors busy: each takes the next cluster. */
struct packing {
	struct disk *from, *to;
	const struct image_copy *copy;
	pthread_mutex_t lock;
	uint64_t next;
	int status;
	struct error *err;
};

static int pack_cluster(struct packing *p, uint8_t *buf, uint64_t offset)
{
	uint64_t cluster = p->to->cluster_bytes;
	uint64_t bytes = MIN(cluster, p->from->size_bytes - offset);
	int r = disk_read(p->from, buf, bytes, offset);

	if (r < 0)
		return r;
	memset(buf + bytes, 0, cluster - bytes);
	if (all_zeros(buf, bytes))
		return put_zeros(p->to, p->copy, offset, bytes);
	return image_write_packed(p->to, buf, offset);
}

/* The next cluster with data in it. 0: there is none any more. */
static int pack_next(struct packing *p, uint64_t *ret_offset)
{
	uint64_t cluster = p->to->cluster_bytes, all = p->from->size_bytes;
	AUTO_LOCK(&p->lock);

	while (!p->status && p->next < all) {
		struct disk_map_run run;
		int r = tell(&p->copy->progress, p->next, all);

		if (r == 0)
			r = disk_map(p->from, p->next, all - p->next, &run);
		if (r < 0) {
			p->status = explain(p->err, r, "read", p->from);
		} else if (!run.data && run.bytes >= cluster) {
			uint64_t skip = ALIGN_DOWN(run.bytes, cluster);

			r = put_zeros(p->to, p->copy, p->next, skip);
			if (r < 0)
				p->status = explain(p->err, r, "write", p->to);
			p->next += skip;
		} else {
			*ret_offset = p->next;
			p->next += cluster;
			return 1;
		}
	}
	return 0;
}

static void *pack_thread(void *opaque)
{
	struct packing *p = opaque;
	AUTO_FREE uint8_t *buf = malloc(p->to->cluster_bytes);
	uint64_t offset;

	while (pack_next(p, &offset)) {
		int r = buf ? pack_cluster(p, buf, offset) : -ENOMEM;

		if (r == 0)
			continue;
		AUTO_LOCK(&p->lock);
		if (!p->status)
			p->status = explain(p->err, r, "copy to", p->to);
	}
	return NULL;
}

static int copy_packed(
	struct disk *from, struct disk *to, const struct image_copy *copy, struct error *err)
{
	struct packing p = {.from = from, .to = to, .copy = copy, .err = err};
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned count = copy->threads ? copy->threads : (unsigned)MAX(processors, 1L);
	pthread_t thread[THREADS_MAX];
	unsigned started = 0;

	count = MIN(count, THREADS_MAX);
	pthread_mutex_init(&p.lock, NULL);
	while (started + 1 < count && pthread_create(&thread[started], NULL, pack_thread, &p) == 0)
		started++;
	pack_thread(&p);
	for (unsigned i = 0; i < started; i++)
		pthread_join(thread[i], NULL);
	pthread_mutex_destroy(&p.lock);
	return p.status;
}

int image_copy(struct disk *from, struct disk *to, const struct image_copy *copy, struct error *err)
{
	int r;

	if (to->size_bytes < from->size_bytes)
		return error_set(
			err, ENOSPC, "%s is smaller than %s", to->file->name, from->file->name);
	if (copy->compress && to->format != &disk_format_qcow2)
		return error_set(err, ENOTSUP, "a %s image can't be compressed", to->format->name);
	r = copy->compress ? copy_packed(from, to, copy, err) : copy_plain(from, to, copy, err);
	return r < 0 ? r : MIN(tell(&copy->progress, from->size_bytes, from->size_bytes), 0);
}

/* What is at offset of a disk that may end before. */
static int read_padded(struct disk *disk, uint8_t *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t there = 0;

	if (disk && offset < disk->size_bytes)
		there = MIN(bytes, disk->size_bytes - offset);
	memset(buf + there, 0, bytes - there);
	return there ? disk_read(disk, buf, there, offset) : 0;
}

int image_rebase_copy(struct disk *disk, struct disk *backing,
	const struct image_progress *progress, struct error *err)
{
	uint64_t all = disk->size_bytes, step = MAX(disk->cluster_bytes, BLOCK_BYTES);
	AUTO_FREE uint8_t *old = malloc(step), *new = malloc(step);
	int r = old && new ? 0 : -ENOMEM;

	for (uint64_t offset = 0; offset < all && r == 0;) {
		struct disk_map_run run;

		r = tell(progress, offset, all);
		if (r == 0)
			r = disk_map(disk, offset, all - offset, &run);
		if (r < 0)
			break;
		if (!run.present || run.depth) { /* it shows through */
			run.bytes = MIN(run.bytes, step - (offset & (step - 1)));
			r = disk_read(disk, old, run.bytes, offset);
			if (r == 0)
				r = read_padded(backing, new, run.bytes, offset);
			if (r == 0 && memcmp(old, new, run.bytes))
				r = disk_write(disk, old, run.bytes, offset);
		}
		offset += run.bytes;
	}
	return r < 0 ? explain(err, r, "rebase", disk) : 0;
}

/* Alike from offset on, zeros in both: skip so far. */
static int both_zero(
	struct disk *a, struct disk *b, uint64_t offset, uint64_t bytes, uint64_t *skip)
{
	struct disk *const disks[] = {a, b};

	*skip = bytes;
	for (unsigned i = 0; i < 2; i++) {
		struct disk_map_run run;
		int r;

		if (offset >= disks[i]->size_bytes)
			continue;
		r = disk_map(disks[i], offset, MIN(*skip, disks[i]->size_bytes - offset), &run);
		if (r < 0)
			return r;
		*skip = run.data ? 0 : run.bytes;
		if (!*skip)
			return 0;
	}
	return 0;
}

int image_compare(struct disk *a, struct disk *b, const struct image_progress *progress,
	bool *ret_same, uint64_t *ret_offset, struct error *err)
{
	uint64_t all = MAX(a->size_bytes, b->size_bytes);
	AUTO_FREE uint8_t *left = malloc(CHUNK_BYTES), *right = malloc(CHUNK_BYTES);
	int r = left && right ? 0 : -ENOMEM;

	*ret_same = true;
	for (uint64_t offset = 0; offset < all && r == 0;) {
		uint64_t bytes = MIN(all - offset, CHUNK_BYTES), skip;

		r = tell(progress, offset, all);
		if (r == 0)
			r = both_zero(a, b, offset, all - offset, &skip);
		if (r == 0 && skip) {
			offset += skip;
			continue;
		}
		if (r == 0)
			r = read_padded(a, left, bytes, offset);
		if (r == 0)
			r = read_padded(b, right, bytes, offset);
		if (r == 0 && memcmp(left, right, bytes)) {
			uint64_t at = 0;

			while (left[at] == right[at])
				at++;
			*ret_same = false;
			*ret_offset = offset + at;
			return 0;
		}
		offset += bytes;
	}
	return r < 0 ? explain(err, r, "compare", a) : 0;
}
