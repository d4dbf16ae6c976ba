/*
 * Crashes of qcow2 images: everything that a random workload does to the file is logged, and for every moment of it the
 * file is made as a crash there could have left it: what came before the last flush of the file is there, of what came
 * after it any part. Such an image has to open, every byte that was there at the last flush of the disk and not
 * touched since must be as it was, and the disk must go on working.
 *
 * What is said of its metadata before anything repairs them: killed at any moment, at most clusters have leaked; killed
 * while no operation is under way, not even that, if memory holds all counts and their table has not grown since the
 * last flush. Power cuts, and kills while a snapshot is made or used, may leave
 * errors where the dirty bit is set (version 3).
 * Once opened for writing a version 3 image has neither errors nor leaks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/disk_rig.h"

#include <stdbool.h>

#define DISK_BYTES KIB(192)
#define MORE_BYTES KIB(320) /* after a change of size */
#define BASE_BYTES KIB(100)
#define FILE_MAX   MIB(64)
#define SECTOR	   512u
#define SECTORS	   (MORE_BYTES / SECTOR)
#define CUTS_MAX   1200u

/* At this place of the log the disk was flushed, and held this. */
struct mark {
	size_t at;
	uint64_t size;
	uint8_t *bytes;
};

/* From this place of the log on, these sectors may be anything until the next mark. */
struct touch {
	size_t at;
	uint32_t first, count;
};

/* An operation ended at this place of the log. */
struct ending {
	size_t at;
	bool snapshot, quiet;
};

struct workload {
	struct rig_shape shape;
	struct rig_store store, base;
	bool backed, roomy; /* metadata have all the memory that they want */
	struct disk *disk;
	uint64_t seed, size;
	uint8_t *model, *buf;
	struct mark *mark;
	size_t marks;
	struct touch *touch;
	size_t touches;
	struct ending *ending;
	size_t endings;
	bool snapshots; /* the last operation was with snapshots */
	bool grown;	/* the reference count table, since the last flush */
	uint64_t reftable_offset;
	bool snapshot; /* there is one */
	uint8_t *saved;
	uint64_t saved_size;
};

static struct disk *open_on(struct rig_store *store, struct rig_store *base, bool roomy)
{
	struct disk_options options = {.format = "qcow2", .cache_bytes = roomy ? MIB(2) : KIB(4)};
	struct error err = {0};
	struct disk *disk;

	if (disk_open_file(rig_open_file(store), &options, &disk, &err) < 0) {
		fprintf(stderr, "does not open: %s\n", err.text);
		abort();
	}
	options = (struct disk_options){.format = "raw", .readonly = true};
	if (base)
		MUST(disk_open_file(rig_open_file(base), &options, &disk->backing, &err) == 0);
	return disk;
}

static void touched(struct workload *w, uint64_t offset, uint64_t bytes)
{
	w->touch = realloc(w->touch, (w->touches + 1) * sizeof(*w->touch));
	MUST(w->touch);
	w->touch[w->touches++] = (struct touch){w->store.count, (uint32_t)(offset / SECTOR),
		(uint32_t)((offset + bytes + SECTOR - 1) / SECTOR - offset / SECTOR)};
}

static void marked(struct workload *w)
{
	struct mark mark = {w->store.count, w->size, malloc(MORE_BYTES)};

	MUST(mark.bytes);
	memcpy(mark.bytes, w->model, MORE_BYTES);
	w->mark = realloc(w->mark, (w->marks + 1) * sizeof(*w->mark));
	MUST(w->mark);
	w->mark[w->marks++] = mark;
	w->grown = false;
}

static void ended(struct workload *w)
{
	uint64_t reftable_offset = qcow2_of(w->disk)->header.reftable_offset;

	w->grown = w->grown || reftable_offset != w->reftable_offset;
	w->reftable_offset = reftable_offset;
	w->ending = realloc(w->ending, (w->endings + 1) * sizeof(*w->ending));
	MUST(w->ending);
	w->ending[w->endings++] =
		(struct ending){w->store.count, w->snapshots, w->roomy && !w->grown};
	w->snapshots = false;
}

/* The end of the operation that the cut is in. */
static struct ending ending_of(const struct workload *w, size_t cut)
{
	for (size_t i = 0; i < w->endings; i++) {
		if (w->ending[i].at >= cut)
			return w->ending[i];
	}
	return (struct ending){SIZE_MAX, false, false};
}

static void pick(struct workload *w, uint64_t *ret_offset, uint64_t *ret_bytes)
{
	uint64_t unit = disk_random(&w->seed) & 1 ? SECTOR : 1ull << w->shape.cluster_bits;
	uint64_t offset = ALIGN_DOWN(disk_random(&w->seed) % w->size, unit);
	uint64_t bytes = MAX(ALIGN_DOWN(disk_random(&w->seed) % KIB(10), unit), unit);

	*ret_offset = offset;
	*ret_bytes = MIN(bytes, w->size - offset);
	touched(w, *ret_offset, *ret_bytes);
}

static void do_write(struct workload *w)
{
	uint64_t offset, bytes;

	pick(w, &offset, &bytes);
	for (uint64_t i = 0; i < bytes; i++)
		w->model[offset + i] = (uint8_t)(disk_random(&w->seed) | 1);
	while (bytes) {
		struct disk_extent extent;

		disk_begin(w->disk, DISK_WRITE, offset, bytes, &extent);
		if (extent.kind == DISK_EXTENT_DATA)
			MUST(disk_file_write(extent.file, w->model + offset, extent.bytes,
				     extent.file_offset) == 0);
		else
			MUST(disk_write(w->disk, w->model + offset, extent.bytes, offset) == 0);
		disk_end(&extent);
		offset += extent.bytes;
		bytes -= extent.bytes;
	}
}

static void do_wipe(struct workload *w)
{
	uint64_t offset, bytes;

	pick(w, &offset, &bytes);
	if (disk_random(&w->seed) & 1)
		MUST(disk_zero(w->disk, offset, bytes, disk_random(&w->seed) & 1) == 0);
	else
		MUST(disk_discard(w->disk, offset, bytes) == 0);
	MUST(disk_read(w->disk, w->model + offset, bytes, offset) == 0);
}

static void do_pack(struct workload *w)
{
	uint64_t cluster = 1ull << w->shape.cluster_bits;
	uint64_t offset = ALIGN_DOWN(disk_random(&w->seed) % w->size, cluster);
	uint64_t bytes = MIN(cluster, w->size - offset);

	touched(w, offset, bytes);
	for (uint64_t i = 0; i < bytes; i++)
		w->model[offset + i] = (uint8_t)(1 + i / 50);
	memset(w->buf, 0, cluster);
	memcpy(w->buf, w->model + offset, bytes);
	MUST(image_write_packed(w->disk, w->buf, offset) == 0);
}

static void do_resize(struct workload *w)
{
	uint64_t size = ALIGN_UP(KIB(64) + disk_random(&w->seed) % (MORE_BYTES - KIB(64)), SECTOR);
	struct error err = {0};

	touched(w, MIN(size, w->size), MORE_BYTES - MIN(size, w->size));
	MUST(disk_resize(w->disk, size, &err) == 0);
	if (size > w->size)
		memset(w->model + w->size, 0, size - w->size);
	w->size = size;
	marked(w);
}

static void do_snapshot(struct workload *w)
{
	struct error err = {0};

	w->snapshots = true;
	if (!w->snapshot) {
		MUST(image_snapshot_create(w->disk, "s", &err) == 0);
		memcpy(w->saved, w->model, MORE_BYTES);
		w->saved_size = w->size;
		w->snapshot = true;
	} else if (disk_random(&w->seed) & 1) {
		touched(w, 0, MORE_BYTES);
		MUST(image_snapshot_apply(w->disk, "s", &err) == 0);
		memcpy(w->model, w->saved, MORE_BYTES);
		w->size = w->saved_size;
	} else {
		MUST(image_snapshot_delete(w->disk, "s", &err) == 0);
		w->snapshot = false;
	}
	marked(w);
}

static void do_flush(struct workload *w)
{
	struct disk_file *file = disk_flush_file(w->disk);

	MUST((file ? file->ops->flush(file) : disk_flush(w->disk)) == 0);
	marked(w);
}

static void do_reopen(struct workload *w)
{
	MUST(disk_close(w->disk) == 0);
	w->disk = open_on(&w->store, w->backed ? &w->base : NULL, w->roomy);
	marked(w);
}

static void step(struct workload *w)
{
	unsigned what = disk_random(&w->seed) % 100;

	if (what < 60)
		do_write(w);
	else if (what < 72)
		do_wipe(w);
	else if (what < 77)
		do_pack(w);
	else if (what < 92)
		do_flush(w);
	else if (what < 95)
		do_reopen(w);
	else if (w->shape.version < 3 || w->shape.refcount_order < 2)
		return;
	else if (what < 97)
		do_resize(w);
	else
		do_snapshot(w);
}

/* What happened to the file since its last flush; which of it is lost is chance. Sectors of a write can be lost by
 * themselves; `all`: nothing is lost, the process was killed. */
static void apply(struct disk_file *file, const struct log_entry *entry, uint64_t *seed, bool all)
{
	bool lose = !all && disk_random(seed) % 3 == 0, tear = !all && disk_random(seed) % 3 == 0;

	if (lose)
		return;
	switch (entry->kind) {
	case LOG_WRITE:
		for (uint64_t done = 0; done < entry->bytes;) {
			uint64_t at = entry->offset + done;
			uint64_t part = MIN(entry->bytes - done, SECTOR - at % SECTOR);

			if (!tear || disk_random(seed) & 1)
				MUST(disk_file_write(file, entry->data + done, part, at) == 0);
			done += part;
		}
		break;
	case LOG_ZERO: MUST(file->ops->zero(file, entry->offset, entry->bytes) == 0); break;
	case LOG_TRUNCATE: MUST(file->ops->truncate(file, entry->offset) == 0); break;
	case LOG_FLUSH: break;
	}
}

static void complain(const struct workload *w, size_t cut, bool all, const char *what, uint64_t at)
{
	fprintf(stderr, "cut at %zu of %zu (%s), 2^%u clusters, version %u: %s %llu\n", cut,
		w->store.count, all ? "killed" : "power cut", w->shape.cluster_bits,
		w->shape.version, what, (unsigned long long)at);
	abort();
}

/* Does the disk still hold what was flushed? */
static void verify_data(struct workload *w, struct disk *disk, size_t cut, bool all)
{
	static bool may_differ[SECTORS];
	const struct mark *mark = NULL;

	for (size_t i = 0; i < w->marks && w->mark[i].at <= cut; i++)
		mark = &w->mark[i];
	if (!mark)
		return;
	memset(may_differ, 0, sizeof(may_differ));
	for (size_t i = 0; i < w->touches && w->touch[i].at <= cut; i++) {
		if (w->touch[i].at < mark->at)
			continue;
		for (uint32_t s = 0; s < w->touch[i].count && w->touch[i].first + s < SECTORS; s++)
			may_differ[w->touch[i].first + s] = true;
	}
	memset(w->buf, 0, MORE_BYTES);
	MUST(disk_read(disk, w->buf, MIN(disk->size_bytes, MORE_BYTES), 0) == 0);
	for (uint64_t i = 0; i < MIN(mark->size, disk->size_bytes); i++) {
		if (!may_differ[i / SECTOR] && w->buf[i] != mark->bytes[i])
			complain(w, cut, all, "wrong byte", i);
	}
}

/* The metadata as the crash left them. */
static void verify_untouched(struct workload *w, struct rig_store *crashed, size_t cut, bool all)
{
	struct disk_options options = {.format = "qcow2",
		.readonly = true,
		.inspect = true,
		.backing = DISK_BACKING_IGNORE};
	struct ending ending = ending_of(w, cut);
	struct image_check check = {0};
	struct error err = {0};
	struct disk *disk;

	MUST(disk_open_file(rig_open_file(crashed), &options, &disk, &err) == 0);
	MUST(image_check(disk, &check, &err) == 0);
	MUST(disk_close(disk) == 0);
	if (check.errors && (all ? !ending.snapshot || cut == ending.at : w->shape.version < 3))
		complain(w, cut, all, "errors before the repair:", check.errors);
	if (check.leaks && all && cut == ending.at && ending.quiet)
		complain(w, cut, all, "leaks before the repair:", check.leaks);
}

static void verify(struct workload *w, struct rig_store *crashed, size_t cut, bool all)
{
	struct image_check check = {0};
	struct error err = {0};
	struct disk *disk;

	verify_untouched(w, crashed, cut, all);
	disk = open_on(crashed, w->backed ? &w->base : NULL, w->roomy);
	MUST(image_check(disk, &check, &err) == 0);
	if (check.errors)
		complain(w, cut, all, "errors:", check.errors);
	if (check.leaks && w->shape.version >= 3)
		complain(w, cut, all, "leaks:", check.leaks);
	verify_data(w, disk, cut, all);
	/* And on it goes. */
	memset(w->buf, 0x5a, KIB(8));
	MUST(disk_write(disk, w->buf, KIB(8), KIB(32)) == 0);
	MUST(disk_close(disk) == 0);
	disk = open_on(crashed, w->backed ? &w->base : NULL, w->roomy);
	check = (struct image_check){.repair = true};
	MUST(image_check(disk, &check, &err) == 0);
	if (check.errors)
		complain(w, cut, all, "errors later:", check.errors);
	MUST(disk_close(disk) == 0);
}

static void copy_file(struct disk_file *to, struct disk_file *from)
{
	uint64_t bytes;
	uint8_t *buf;

	MUST(from->ops->size(from, &bytes) == 0);
	buf = malloc(bytes + 1);
	MUST(buf);
	MUST(disk_file_read(from, buf, bytes, 0) == 0);
	MUST(to->ops->truncate(to, 0) == 0);
	MUST(disk_file_write(to, buf, bytes, 0) == 0);
	free(buf);
}

static void crash_everywhere(struct workload *w, struct disk_file *start)
{
	struct rig_store crashed;
	size_t flushed = 0, every = w->store.count / CUTS_MAX + 1;
	uint64_t seed = w->seed | 1;

	rig_store_init(&crashed, FILE_MAX);
	for (size_t cut = 0; cut <= w->store.count; cut++) {
		bool last = cut == w->store.count;

		if (!last && w->store.log[cut].kind == LOG_FLUSH) {
			for (; flushed < cut; flushed++)
				apply(start, &w->store.log[flushed], &seed, true);
		}
		if (cut % every && !last)
			continue;
		for (unsigned variant = 0; variant < 3; variant++) {
			copy_file(crashed.memory, start);
			for (size_t i = flushed; i < cut; i++)
				apply(crashed.memory, &w->store.log[i], &seed, !variant);
			verify(w, &crashed, cut, !variant);
		}
	}
	rig_store_done(&crashed);
}

static void run(struct rig_shape shape, bool backed, bool roomy, uint64_t seed, unsigned steps)
{
	struct workload w = {
		.shape = shape, .backed = backed, .roomy = roomy, .seed = seed, .size = DISK_BYTES};
	struct disk_file *start;

	w.model = calloc(1, MORE_BYTES + MIB(1));
	w.buf = calloc(1, MORE_BYTES + MIB(1));
	w.saved = calloc(1, MORE_BYTES);
	MUST(w.model && w.buf && w.saved);
	rig_store_init(&w.store, FILE_MAX);
	rig_store_init(&w.base, FILE_MAX);
	memset(w.model, 0x77, backed ? BASE_BYTES : 0);
	MUST(disk_file_write(w.base.memory, w.model, BASE_BYTES, 0) == 0);
	rig_format(&w.store, &shape, w.size);
	MUST(disk_file_memory(FILE_MAX, &start) == 0);
	copy_file(start, w.store.memory);
	w.store.logging = true;
	w.disk = open_on(&w.store, backed ? &w.base : NULL, roomy);
	for (unsigned i = 0; i < steps; i++) {
		step(&w);
		ended(&w);
	}
	MUST(disk_close(w.disk) == 0);
	marked(&w);
	crash_everywhere(&w, start);
	disk_file_close(start);
	rig_store_done(&w.store);
	rig_store_done(&w.base);
	for (size_t i = 0; i < w.marks; i++)
		free(w.mark[i].bytes);
	free(w.mark);
	free(w.touch);
	free(w.ending);
	free(w.model);
	free(w.buf);
	free(w.saved);
}

static void test_crash(void **state)
{
	static const struct rig_shape shapes[] = {
		{9, 4, 3, false, false},
		{9, 6, 3, true, false},
		{9, 0, 3, false, false},
		{9, 4, 2, false, false},
		{12, 4, 3, false, true},
		{12, 3, 3, true, false},
		{16, 4, 3, false, false},
	};
	const char *text = getenv("QCOW2_SEED"), *steps = getenv("QCOW2_ROUNDS");
	uint64_t base = text ? strtoull(text, NULL, 10) : 1;

	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		for (unsigned backed = 0; backed < 2; backed++)
			run(shapes[i], backed, (base + i + backed) & 1,
				(base * 100 + i * 2 + backed) * 0x9e3779b97f4a7c15ull | 1,
				steps ? (unsigned)strtoul(steps, NULL, 10) : 80);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_crash)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
