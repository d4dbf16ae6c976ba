/*
 * qcow2 images (backend/disk/qcow2_*.c): random operations by both ways, compared with a plain buffer, over
 * reopening, snapshots and changes of size; and what a full host file does to them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/disk_rig.h"

#include <stdbool.h>

#define SNAPSHOTS 4
#define SIZE_MAX_ KIB(1536)
#define FILE_MAX  MIB(64)

struct saved {
	bool there;
	char name[16];
	uint64_t size;
	uint8_t *bytes;
};

struct trial {
	struct rig_shape shape;
	struct rig_store store, base_store;
	bool backed;
	struct disk *disk;
	uint64_t seed, size, base_size;
	uint8_t *model, *base, *buf;
	struct saved saved[SNAPSHOTS];
	unsigned names;
};

static struct disk_options trial_options(void)
{
	return (struct disk_options){.format = "qcow2", .cache_bytes = 4096};
}

static void trial_open(struct trial *t)
{
	struct disk_options options = trial_options();
	struct error err = {0};

	if (disk_open_file(rig_open_file(&t->store), &options, &t->disk, &err) < 0) {
		fprintf(stderr, "%s\n", err.text);
		abort();
	}
	MUST(t->disk->size_bytes == t->size);
	if (!t->backed)
		return;
	options.format = "raw";
	options.readonly = true;
	MUST(disk_open_file(rig_open_file(&t->base_store), &options, &t->disk->backing, &err) == 0);
}

static void trial_check(struct trial *t)
{
	struct image_check check = {.report = rig_print};
	struct error err = {0};

	if (image_check(t->disk, &check, &err) < 0)
		fprintf(stderr, "%s\n", err.text), abort();
	MUST(check.errors == 0);
	MUST(check.leaks == 0);
}

static void trial_reopen(struct trial *t)
{
	MUST(disk_close(t->disk) == 0);
	trial_open(t);
	trial_check(t);
}

/* Where to do something: anywhere, or at multiples of a sector or cluster. */
static void pick(struct trial *t, uint64_t *ret_offset, uint64_t *ret_bytes)
{
	uint64_t unit =
		(uint64_t[]){1, 512, 1ull << t->shape.cluster_bits}[disk_random(&t->seed) % 3];
	uint64_t most = disk_random(&t->seed) % 4 ? KIB(8) : KIB(256);
	uint64_t offset = ALIGN_DOWN(disk_random(&t->seed) % t->size, unit);
	uint64_t bytes = MAX(ALIGN_DOWN(disk_random(&t->seed) % most, unit), unit);

	*ret_offset = offset;
	*ret_bytes = MIN(bytes, t->size - offset);
}

static uint8_t old_byte(const struct trial *t, uint64_t offset)
{
	return t->backed && offset < t->base_size ? t->base[offset] : 0;
}

static void fill(struct trial *t, uint8_t *to, uint64_t bytes)
{
	bool random = disk_random(&t->seed) & 1;

	for (uint64_t i = 0; i < bytes; i++)
		to[i] = (uint8_t)(random ? disk_random(&t->seed) : t->seed + i / 64);
}

/* As the request layer does it. */
static void write_fast(struct trial *t, uint64_t offset, uint64_t bytes)
{
	while (bytes) {
		struct disk_extent extent;

		disk_begin(t->disk, DISK_WRITE, offset, bytes, &extent);
		MUST(extent.bytes && extent.bytes <= bytes);
		if (extent.kind == DISK_EXTENT_DATA) {
			MUST(disk_file_write(extent.file, t->model + offset, extent.bytes,
				     extent.file_offset) == 0);
			disk_end(&extent);
		} else {
			MUST(extent.kind == DISK_EXTENT_SLOW);
			MUST(disk_write(t->disk, t->model + offset, extent.bytes, offset) == 0);
		}
		offset += extent.bytes;
		bytes -= extent.bytes;
	}
}

static void do_write(struct trial *t)
{
	uint64_t offset, bytes;

	pick(t, &offset, &bytes);
	fill(t, t->model + offset, bytes);
	if (disk_random(&t->seed) & 1)
		write_fast(t, offset, bytes);
	else
		MUST(disk_write(t->disk, t->model + offset, bytes, offset) == 0);
}

static void read_fast(struct trial *t, uint64_t offset, uint64_t bytes, uint8_t *to)
{
	while (bytes) {
		struct disk_extent extent;

		disk_begin(t->disk, DISK_READ, offset, bytes, &extent);
		MUST(extent.bytes && extent.bytes <= bytes);
		if (extent.kind == DISK_EXTENT_DATA) {
			MUST(disk_file_read(extent.file, to, extent.bytes, extent.file_offset) ==
				0);
			disk_end(&extent);
		} else if (extent.kind == DISK_EXTENT_ZERO) {
			memset(to, 0, extent.bytes);
		} else {
			MUST(disk_read(t->disk, to, extent.bytes, offset) == 0);
		}
		offset += extent.bytes;
		bytes -= extent.bytes;
		to += extent.bytes;
	}
}

static void compare(struct trial *t, uint64_t offset, uint64_t bytes)
{
	if (disk_random(&t->seed) & 1)
		read_fast(t, offset, bytes, t->buf);
	else
		MUST(disk_read(t->disk, t->buf, bytes, offset) == 0);
	for (uint64_t i = 0; i < bytes; i++) {
		if (t->buf[i] != t->model[offset + i]) {
			fprintf(stderr, "byte %#llx is %02x, should be %02x\n",
				(unsigned long long)(offset + i), t->buf[i], t->model[offset + i]);
			abort();
		}
	}
}

static void do_read(struct trial *t)
{
	uint64_t offset, bytes;

	pick(t, &offset, &bytes);
	compare(t, offset, bytes);
}

static void do_zero(struct trial *t)
{
	uint64_t offset, bytes;

	pick(t, &offset, &bytes);
	memset(t->model + offset, 0, bytes);
	MUST(disk_zero(t->disk, offset, bytes, disk_random(&t->seed) & 1) == 0);
}

/* What is there afterwards is zeros, the old bytes or those behind, and stays so. */
static void do_discard(struct trial *t)
{
	uint64_t offset, bytes;

	pick(t, &offset, &bytes);
	MUST(disk_discard(t->disk, offset, bytes) == 0);
	MUST(disk_read(t->disk, t->buf, bytes, offset) == 0);
	for (uint64_t i = 0; i < bytes; i++)
		MUST(!t->buf[i] || t->buf[i] == t->model[offset + i] ||
			t->buf[i] == old_byte(t, offset + i));
	memcpy(t->model + offset, t->buf, bytes);
}

static void do_pack(struct trial *t)
{
	uint64_t cluster = 1ull << t->shape.cluster_bits;
	uint64_t offset = ALIGN_DOWN(disk_random(&t->seed) % t->size, cluster);
	uint64_t bytes = MIN(cluster, t->size - offset);

	fill(t, t->model + offset, bytes);
	memset(t->buf, 0, cluster);
	memcpy(t->buf, t->model + offset, bytes);
	MUST(image_write_packed(t->disk, t->buf, offset) == 0);
}

static void do_flush(struct trial *t)
{
	if (!disk_flush_file(t->disk) || disk_random(&t->seed) & 1)
		MUST(disk_flush(t->disk) == 0);
}

static void do_resize(struct trial *t)
{
	uint64_t size = MAX(ALIGN_UP(disk_random(&t->seed) % SIZE_MAX_, 512), 512ull);
	struct error err = {0};

	if (t->shape.version == 2) {
		for (unsigned i = 0; i < SNAPSHOTS; i++) {
			if (t->saved[i].there)
				return;
		}
	}
	if (disk_resize(t->disk, size, &err) < 0)
		fprintf(stderr, "%s\n", err.text), abort();
	if (size > t->size)
		memset(t->model + t->size, 0, size - t->size);
	t->size = size;
}

static void snapshot_take(struct trial *t, struct saved *saved)
{
	struct error err = {0};
	int r;

	snprintf(saved->name, sizeof(saved->name), "s%u", t->names++);
	r = image_snapshot_create(t->disk, saved->name, &err);
	if (r == -ERANGE) { /* counts of one or two bits */
		MUST(t->shape.refcount_order < 3);
		trial_check(t);
		return;
	}
	if (r < 0)
		fprintf(stderr, "%s\n", err.text), abort();
	saved->there = true;
	saved->size = t->size;
	memcpy(saved->bytes, t->model, t->size);
}

static void do_snapshot(struct trial *t)
{
	struct saved *saved = &t->saved[disk_random(&t->seed) % SNAPSHOTS];
	struct error err = {0};

	if (!saved->there) {
		snapshot_take(t, saved);
	} else if (disk_random(&t->seed) & 1) {
		int r = image_snapshot_apply(t->disk, saved->name, &err);

		if (r == -ERANGE && t->shape.refcount_order < 3)
			return;
		if (r < 0)
			fprintf(stderr, "%s\n", err.text), abort();
		t->size = saved->size;
		memcpy(t->model, saved->bytes, t->size);
	} else {
		if (image_snapshot_delete(t->disk, saved->name, &err) < 0)
			fprintf(stderr, "%s\n", err.text), abort();
		saved->there = false;
	}
	MUST(t->disk->size_bytes == t->size);
}

static void step(struct trial *t)
{
	unsigned what = disk_random(&t->seed) % 100;

	if (what < 45)
		do_write(t);
	else if (what < 65)
		do_read(t);
	else if (what < 73)
		do_zero(t);
	else if (what < 80)
		do_discard(t);
	else if (what < 84)
		do_pack(t);
	else if (what < 92)
		do_flush(t);
	else if (what < 94)
		do_resize(t);
	else if (what < 97)
		do_snapshot(t);
	else if (what < 98)
		trial_check(t);
	else
		trial_reopen(t);
}

static void trial_init(struct trial *t, struct rig_shape shape, bool backed, uint64_t seed)
{
	*t = (struct trial){.shape = shape, .backed = backed, .seed = seed};
	t->size = KIB(512);
	t->base_size = KIB(300);
	t->model = calloc(1, SIZE_MAX_ + MIB(2));
	t->buf = calloc(1, SIZE_MAX_ + MIB(2));
	t->base = calloc(1, t->base_size);
	MUST(t->model && t->buf && t->base);
	for (unsigned i = 0; i < SNAPSHOTS; i++)
		MUST((t->saved[i].bytes = malloc(SIZE_MAX_)));
	rig_store_init(&t->store, FILE_MAX);
	rig_store_init(&t->base_store, FILE_MAX);
	for (uint64_t i = 0; backed && i < t->base_size; i++)
		t->base[i] = t->model[i] = (uint8_t)(1 + i / 512 % 255);
	MUST(disk_file_write(t->base_store.memory, t->base, t->base_size, 0) == 0);
	rig_format(&t->store, &shape, t->size);
	trial_open(t);
}

static void trial_done(struct trial *t)
{
	compare(t, 0, t->size);
	trial_reopen(t);
	compare(t, 0, t->size);
	MUST(disk_close(t->disk) == 0);
	rig_store_done(&t->store);
	rig_store_done(&t->base_store);
	for (unsigned i = 0; i < SNAPSHOTS; i++)
		free(t->saved[i].bytes);
	free(t->model);
	free(t->buf);
	free(t->base);
}

static const struct rig_shape shapes[] = {
	{9, 4, 3, false, false},
	{9, 6, 3, false, true},
	{9, 0, 3, false, false},
	{9, 4, 2, false, false},
	{12, 4, 3, true, false},
	{12, 1, 3, false, true},
	{12, 3, 3, false, false},
	{16, 4, 3, false, false},
	{16, 5, 3, true, true},
	{21, 2, 3, false, false},
};

static unsigned rounds(unsigned usual)
{
	const char *text = getenv("QCOW2_ROUNDS");

	return text ? (unsigned)strtoul(text, NULL, 10) : usual;
}

static void test_random(void **state)
{
	const char *start = getenv("QCOW2_SEED");
	uint64_t base = start ? strtoull(start, NULL, 10) : 1;

	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		for (unsigned backed = 0; backed < 2; backed++) {
			struct trial t;

			trial_init(&t, shapes[i], backed,
				(base * 100 + i * 2 + backed) * 0x9e3779b97f4a7c15ull | 1);
			for (unsigned n = 0; n < rounds(1500); n++)
				step(&t);
			trial_done(&t);
		}
	}
}

/* With no room any more a write fails, what is there stays right, and once there is room all goes on. */
static void test_full(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		for (unsigned at = 1; at < rounds(40); at++) {
			struct trial t;
			int r = 0;

			trial_init(&t, shapes[i], at & 1, at * 77 + i);
			for (unsigned n = 0; n < 30; n++)
				do_write(&t);
			t.store.fail_at = at;
			t.store.fail_error = -ENOSPC;
			for (unsigned n = 0; n < 60 && r == 0; n++) {
				uint64_t offset, bytes;

				pick(&t, &offset, &bytes);
				fill(&t, t.model + offset, bytes);
				r = disk_write(t.disk, t.model + offset, bytes, offset);
				if (r == 0 && n % 8 == 0)
					r = disk_flush(t.disk);
				if (r == 0)
					continue;
				MUST(r == -ENOSPC);
				t.store.fail_at = 0;
				/* Some of it may have been done. */
				MUST(disk_write(t.disk, t.model + offset, bytes, offset) == 0);
			}
			MUST(disk_flush(t.disk) == 0);
			compare(&t, 0, t.size);
			trial_done(&t);
		}
	}
}

/* The machine that waits for room tries again and again: no try leaves anything behind, wherever it fails. */
static void test_full_again(void **state)
{
	static const struct rig_shape small[] = {{9, 6, 3, false, false}, {9, 4, 2, false, false}};

	for (size_t i = 0; i < ARRAY_SIZE(small); i++) {
		for (unsigned at = 1; at < 100; at++) {
			struct trial t;

			trial_init(&t, small[i], false, at * 77 + i);
			memset(t.model, 0x5a, t.size);
			t.store.fail_at = at;
			t.store.fail_error = -ENOSPC;
			for (uint64_t offset = 0; offset < t.size; offset += KIB(10)) {
				uint64_t bytes = MIN(KIB(10), t.size - offset);

				for (unsigned tries = 0; tries < 20; tries++) {
					if (!disk_write(t.disk, t.model + offset, bytes, offset))
						break;
				}
				if (t.store.short_of_room) {
					t.store.fail_at = 0;
					MUST(disk_write(t.disk, t.model + offset, bytes, offset) ==
						0);
				}
			}
			trial_done(&t);
		}
	}
}

/* Snapshots and other sizes, too: done, or as if never begun. */
static void test_full_verbs(void **state)
{
	for (unsigned at = 1; at < 160; at++) {
		struct rig_shape shape = {9, at & 1 ? 6 : 4, 3, false, false};
		struct error err = {0};
		struct trial t;

		trial_init(&t, shape, at & 2, at);
		for (unsigned n = 0; n < 20; n++)
			do_write(&t);
		MUST(image_snapshot_create(t.disk, "first", &err) == 0);
		for (unsigned n = 0; n < 10; n++)
			do_write(&t);
		t.store.fail_at = at / 4;
		t.store.fail_error = -ENOSPC;
		if (at % 4 == 0)
			(void)!image_snapshot_create(t.disk, "second", &err);
		else if (at % 4 == 1)
			(void)!image_snapshot_delete(t.disk, "first", &err);
		else if (disk_resize(t.disk, t.size + MIB(2), &err) == 0)
			t.size += MIB(2);
		t.store.fail_at = 0;
		compare(&t, 0, t.size);
		trial_done(&t);
	}
}

static uint64_t load_word(struct trial *t, uint64_t offset)
{
	uint8_t word[8];

	MUST(disk_file_read(t->store.memory, word, 8, offset) == 0);
	return load_be64(word);
}

static void store_word(struct trial *t, uint64_t offset, uint64_t value)
{
	uint8_t word[8];

	store_be64(word, value);
	MUST(disk_file_write(t->store.memory, word, 8, offset) == 0);
}

static void note_impossible(void *opaque, const char *text)
{
	*(bool *)opaque = *(bool *)opaque || strstr(text, "impossible");
}

/* Tables that lie behind the end of the file are errors: as zeros, they would take forever to read. */
static void test_tables_outside(void **state)
{
	static const uint64_t tables[] = {40 /* L1 */, 48 /* reference counts */};
	static const struct rig_shape shape = {16, 4, 3, false, false};

	for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
		bool impossible = false;
		struct image_check check = {.report = note_impossible, .opaque = &impossible};
		struct disk_options options = trial_options();
		struct error err = {0};
		struct trial t;

		trial_init(&t, shape, false, i + 1);
		MUST(disk_close(t.disk) == 0);
		store_word(&t, load_word(&t, tables[i]) + (i ? 8 : 0), GIB(1));
		options.inspect = true;
		MUST(disk_open_file(rig_open_file(&t.store), &options, &t.disk, &err) == 0);
		MUST(image_check(t.disk, &check, &err) == 0);
		MUST(check.errors > 0 && impossible);
		check = (struct image_check){.repair = true};
		MUST(image_check(t.disk, &check, &err) == 0);
		MUST(check.errors == check.errors_mended);
		memset(t.model, 0, t.size);
		trial_done(&t);
	}
}

/* An entry that leads into the middle of a table is an error, and the table is read from its start all the same. */
static void test_table_middle(void **state)
{
	static const struct rig_shape shape = {10, 4, 3, false, false};
	struct disk_options options = trial_options();
	struct image_check check = {.repair = false};
	struct error err = {0};
	struct trial t;

	trial_init(&t, shape, false, 1);
	memset(t.model + KIB(128), 0x5a, KIB(128));
	MUST(disk_write(t.disk, t.model + KIB(128), KIB(128), KIB(128)) == 0);
	MUST(disk_close(t.disk) == 0);
	const uint64_t l1 = load_word(&t, 40);
	MUST(!load_word(&t, l1) && load_word(&t, l1 + 8));
	store_word(&t, l1, load_word(&t, l1 + 8) + 512);
	options.inspect = true;
	MUST(disk_open_file(rig_open_file(&t.store), &options, &t.disk, &err) == 0);
	MUST(image_check(t.disk, &check, &err) == 0);
	MUST(check.errors == 1 && check.leaks == 0 && check.allocated == 128);
	check = (struct image_check){.repair = true};
	MUST(image_check(t.disk, &check, &err) == 0);
	MUST(check.errors == 1 && check.errors_mended == 1);
	trial_done(&t);
}

static void test_snapshot_outside(void **state)
{
	static const struct rig_shape shape = {16, 4, 3, false, false};
	struct image_snapshot *list;
	struct error err = {0};
	unsigned count;
	struct trial t;

	trial_init(&t, shape, false, 1);
	MUST(image_snapshot_create(t.disk, "s", &err) == 0);
	MUST(image_snapshots(t.disk, &list, &count, &err) == 0 && count == 1);
	image_snapshots_free(list, count);
	store_word(&t, load_word(&t, 64), GIB(1));
	MUST(image_snapshots(t.disk, &list, &count, &err) == -EINVAL);
	MUST(strstr(err.text, "snapshot 1 is damaged"));
	MUST(image_snapshot_delete(t.disk, "s", &err) == -EINVAL);
	MUST(disk_close(t.disk) == 0);
	rig_store_done(&t.store);
	rig_store_done(&t.base_store);
	free(t.model);
	free(t.buf);
	free(t.base);
	for (unsigned i = 0; i < SNAPSHOTS; i++)
		free(t.saved[i].bytes);
}

#define WORKERS	    4u
#define WORKER_STEP 1200u

/* Several threads, each in sectors of its own, which lie in clusters that all share. */
struct worker {
	struct trial *trial;
	pthread_t thread;
	unsigned index;
	uint64_t seed;
};

static uint64_t worker_place(struct worker *w, uint64_t *ret_bytes)
{
	uint64_t slot = KIB(2), slots = w->trial->size / slot / WORKERS;

	*ret_bytes = slot;
	return (disk_random(&w->seed) % slots * WORKERS + w->index) * slot;
}

static void worker_write(struct worker *w, uint64_t offset, uint64_t bytes)
{
	uint8_t *model = w->trial->model + offset;

	for (uint64_t i = 0; i < bytes; i++)
		model[i] = (uint8_t)disk_random(&w->seed);
	write_fast(w->trial, offset, bytes);
}

static void worker_read(struct worker *w, uint64_t offset, uint64_t bytes)
{
	uint8_t buf[KIB(2)];

	read_fast(w->trial, offset, bytes, buf);
	MUST(memcmp(buf, w->trial->model + offset, bytes) == 0);
}

static void *worker_run(void *opaque)
{
	struct worker *w = opaque;

	for (unsigned i = 0; i < WORKER_STEP; i++) {
		uint64_t bytes, offset = worker_place(w, &bytes);

		switch (disk_random(&w->seed) % 16) {
		case 0:
			memset(w->trial->model + offset, 0, bytes);
			MUST(disk_zero(w->trial->disk, offset, bytes, disk_random(&w->seed) & 1) ==
				0);
			break;
		case 1: do_flush(&(struct trial){.disk = w->trial->disk, .seed = w->seed}); break;
		case 2: /* where nothing is: makes clusters free under others' I/O */
			offset = w->trial->size + (w->index << w->trial->shape.cluster_bits);
			bytes = 1ull << w->trial->shape.cluster_bits;
			MUST(disk_write(w->trial->disk, w->trial->base, MIN(bytes, KIB(300)),
				     offset) == 0);
			MUST(disk_discard(w->trial->disk, offset, bytes) == 0);
			break;
		case 3:
		case 4:
		case 5:
		case 6:
		case 7: worker_read(w, offset, bytes); break;
		default: worker_write(w, offset, bytes); break;
		}
	}
	return NULL;
}

static void test_threads(void **state)
{
	static const struct rig_shape few[] = {{9, 4, 3, false, false}, {12, 4, 3, true, false},
		{14, 4, 2, false, false}, {16, 4, 3, false, false}};

	for (size_t i = 0; i < ARRAY_SIZE(few); i++) {
		struct worker worker[WORKERS];
		struct error err = {0};
		struct trial t;

		trial_init(&t, few[i], i & 1, i + 99);
		MUST(disk_resize(t.disk, t.size + MIB(1), &err) == 0);
		for (unsigned n = 0; n < WORKERS; n++) {
			worker[n] = (struct worker){&t, .index = n, .seed = 77 * n + i + 1};
			MUST(pthread_create(&worker[n].thread, NULL, worker_run, &worker[n]) == 0);
		}
		for (unsigned n = 0; n < WORKERS; n++)
			pthread_join(worker[n].thread, NULL);
		MUST(disk_resize(t.disk, t.size, &err) == 0);
		trial_done(&t);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_full_again),
		cmocka_unit_test(test_full_verbs),
		cmocka_unit_test(test_tables_outside),
		cmocka_unit_test(test_table_middle),
		cmocka_unit_test(test_snapshot_outside),
		cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
