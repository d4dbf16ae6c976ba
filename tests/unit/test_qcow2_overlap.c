/*
 * Requests that are under way together on a qcow2 disk (backend/disk/qcow2_*.c): writes of different sectors that allocate
 * the same clusters, and discards, zeros, flushes and snapshots before those have ended. Each request is begun, and
 * its data are written to the file and the extents given back at some later time, in any order.
 *
 * No request touches the sectors of another write that is under way. A wipe may: what is in these sectors then is either's,
 * but every other sector has to hold what was written to it last.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/disk_rig.h"

#include <stdbool.h>

#define SECTOR	   512u
#define DISK_BYTES KIB(256)
#define BASE_BYTES KIB(150)
#define FILE_MAX   MIB(64)
#define REQUESTS   8u
#define PIECES	   64u

struct request {
	bool busy;
	uint64_t offset, bytes;
	struct {
		struct disk_extent extent;
		uint64_t offset;
	} piece[PIECES];
	unsigned pieces;
};

struct trial {
	struct rig_store store, base;
	struct disk *disk;
	uint64_t seed, cluster;
	uint8_t *model, *base_bytes, *buf;
	bool under_way[DISK_BYTES / SECTOR], vague[DISK_BYTES / SECTOR];
	struct request request[REQUESTS];
	bool backed, snapshot;
};

static void open_disk(struct trial *t)
{
	struct disk_options options = {.format = "qcow2", .cache_bytes = 4096};
	struct error err = {0};

	MUST(disk_open_file(rig_open_file(&t->store), &options, &t->disk, &err) == 0);
	options = (struct disk_options){.format = "raw", .readonly = true};
	if (t->backed)
		MUST(disk_open_file(rig_open_file(&t->base), &options, &t->disk->backing, &err) ==
			0);
}

/* Mostly inside few clusters, so that requests meet. */
static void pick(struct trial *t, uint64_t most, uint64_t *ret_offset, uint64_t *ret_bytes)
{
	uint64_t area = disk_random(&t->seed) % 4 ? MIN(4 * t->cluster, KIB(128)) : DISK_BYTES;
	uint64_t offset = ALIGN_DOWN(disk_random(&t->seed) % area, SECTOR);
	uint64_t bytes = ALIGN_DOWN(disk_random(&t->seed) % most, SECTOR) + SECTOR;

	*ret_offset = offset;
	*ret_bytes = MIN(bytes, DISK_BYTES - offset);
}

static bool meets_others(const struct trial *t, uint64_t offset, uint64_t bytes)
{
	for (uint64_t s = offset / SECTOR; s < (offset + bytes) / SECTOR; s++) {
		if (t->under_way[s])
			return true;
	}
	return false;
}

static void mark(bool *sectors, uint64_t offset, uint64_t bytes, bool as)
{
	for (uint64_t s = offset / SECTOR; s < (offset + bytes) / SECTOR; s++)
		sectors[s] = as;
}

static void write_begin(struct trial *t, struct request *req)
{
	uint64_t offset, bytes;

	pick(t, MIN(t->cluster * 3, KIB(32)), &offset, &bytes);
	if (meets_others(t, offset, bytes))
		return;
	*req = (struct request){.busy = true, .offset = offset, .bytes = bytes};
	mark(t->under_way, offset, bytes, true);
	mark(t->vague, offset, bytes, false);
	for (uint64_t i = 0; i < bytes; i++)
		t->model[offset + i] = (uint8_t)disk_random(&t->seed);
	while (bytes) {
		struct disk_extent extent;

		disk_begin(t->disk, DISK_WRITE, offset, bytes, &extent);
		if (extent.kind == DISK_EXTENT_DATA) {
			MUST(req->pieces < PIECES);
			req->piece[req->pieces].extent = extent;
			req->piece[req->pieces++].offset = offset;
		} else {
			MUST(disk_write(t->disk, t->model + offset, extent.bytes, offset) == 0);
		}
		offset += extent.bytes;
		bytes -= extent.bytes;
	}
}

static void write_end(struct trial *t, struct request *req)
{
	for (unsigned i = 0; i < req->pieces; i++) {
		struct disk_extent *extent = &req->piece[i].extent;

		MUST(disk_file_write(extent->file, t->model + req->piece[i].offset, extent->bytes,
			     extent->file_offset) == 0);
		disk_end(extent);
	}
	mark(t->under_way, req->offset, req->bytes, false);
	req->busy = false;
}

static void drain(struct trial *t)
{
	for (unsigned i = 0; i < REQUESTS; i++) {
		if (t->request[i].busy)
			write_end(t, &t->request[i]);
	}
}

/* The model of a request under way stays what it will write. */
static void wipe(struct trial *t)
{
	bool discard = disk_random(&t->seed) & 1;
	uint64_t offset, bytes;

	pick(t, MIN(t->cluster * 4, KIB(128)), &offset, &bytes);
	if (discard)
		MUST(disk_discard(t->disk, offset, bytes) == 0);
	else
		MUST(disk_zero(t->disk, offset, bytes, disk_random(&t->seed) & 1) == 0);
	MUST(disk_read(t->disk, t->buf, bytes, offset) == 0);
	for (uint64_t i = 0; i < bytes; i++) {
		uint8_t old = t->model[offset + i], new = t->buf[i];
		uint64_t s = (offset + i) / SECTOR;

		if (t->under_way[s] || t->vague[s]) {
			t->vague[s] = true;
			continue;
		}
		MUST(new == 0 || (discard && (new == old || new == t->base_bytes[offset + i])));
		t->model[offset + i] = new;
	}
}

static void compare(struct trial *t)
{
	MUST(disk_read(t->disk, t->buf, DISK_BYTES, 0) == 0);
	for (uint64_t i = 0; i < DISK_BYTES; i++) {
		if (t->under_way[i / SECTOR] || t->vague[i / SECTOR] || t->buf[i] == t->model[i])
			continue;
		fprintf(stderr, "cluster %llu, byte %llu: %#x, not %#x\n",
			(unsigned long long)t->cluster, (unsigned long long)i, t->buf[i],
			t->model[i]);
		abort();
	}
}

/* These need the disk alone. */
static void alone(struct trial *t)
{
	struct image_check check = {.report = rig_print};
	struct error err = {0};

	drain(t);
	if (disk_random(&t->seed) % 2 == 0) {
		MUST((t->snapshot ? image_snapshot_delete(t->disk, "s", &err)
				  : image_snapshot_create(t->disk, "s", &err)) == 0);
		t->snapshot = !t->snapshot;
		return;
	}
	MUST(disk_close(t->disk) == 0);
	open_disk(t);
	MUST(image_check(t->disk, &check, &err) == 0);
	MUST(!check.errors && !check.leaks);
}

static void step(struct trial *t)
{
	struct request *req = &t->request[disk_random(&t->seed) % REQUESTS];
	unsigned what = disk_random(&t->seed) % 100;

	if (what < 70)
		(req->busy ? write_end : write_begin)(t, req);
	else if (what < 82)
		wipe(t);
	else if (what < 94)
		MUST(disk_flush(t->disk) == 0);
	else if (what < 99)
		compare(t);
	else
		alone(t);
}

static void run(const struct rig_shape *shape, bool backed, uint64_t seed, unsigned steps)
{
	struct trial *t = calloc(1, sizeof(*t));

	MUST(t);
	*t = (struct trial){.seed = seed, .cluster = 1ull << shape->cluster_bits, .backed = backed};
	t->model = calloc(1, DISK_BYTES);
	t->base_bytes = calloc(1, DISK_BYTES);
	t->buf = calloc(1, DISK_BYTES);
	MUST(t->model && t->base_bytes && t->buf);
	rig_store_init(&t->store, FILE_MAX);
	rig_store_init(&t->base, FILE_MAX);
	if (backed) {
		memset(t->base_bytes, 0x77, BASE_BYTES);
		MUST(disk_file_write(t->base.memory, t->base_bytes, BASE_BYTES, 0) == 0);
		memcpy(t->model, t->base_bytes, DISK_BYTES);
	}
	rig_format(&t->store, shape, DISK_BYTES);
	open_disk(t);
	for (unsigned i = 0; i < steps; i++)
		step(t);
	alone(t);
	compare(t);
	MUST(disk_close(t->disk) == 0);
	rig_store_done(&t->store);
	rig_store_done(&t->base);
	free(t->model);
	free(t->base_bytes);
	free(t->buf);
	free(t);
}

static void test_overlap(void **state)
{
	static const struct rig_shape shapes[] = {
		{9, 4, 3, false, false},
		{12, 4, 3, false, false},
		{12, 4, 2, false, false},
		{14, 3, 3, false, false},
		{16, 4, 3, false, false},
	};
	const char *text = getenv("QCOW2_SEED"), *steps = getenv("QCOW2_ROUNDS");
	uint64_t base = text ? strtoull(text, NULL, 10) : 1;

	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		for (unsigned backed = 0; backed < 2; backed++)
			run(&shapes[i], backed,
				(base * 100 + i * 2 + backed) * 0x9e3779b97f4a7c15ull | 1,
				steps ? (unsigned)strtoul(steps, NULL, 10) : 4000);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_overlap)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
