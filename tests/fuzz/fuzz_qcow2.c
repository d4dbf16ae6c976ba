/*
 * Fuzzing of qcow2 images: the input is first a seed of what is done, then the image. Whatever it holds, nothing may crash,
 * take forever, or write outside the file; and an image that the check calls good stays good under everything that
 * is done to it.
 */
#include "tests/fuzz/rig.h"
#include "tests/unit/disk_rig.h"

#include <stddef.h>
#include <stdint.h>

#define FILE_BYTES MIB(8)
#define STEPS	   24
#define SEED_BYTES 4

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes);

struct run {
	struct rig_store store;
	struct disk *disk;
	uint64_t seed;
	bool good; /* the check found nothing */
	uint8_t *buf;
};

static uint64_t pick(struct run *f, uint64_t below)
{
	return below ? rig_random(&f->seed) % below : 0;
}

static int reopen(struct run *f, bool inspect)
{
	struct disk_options options = {.format = "qcow2",
		.backing = DISK_BACKING_IGNORE,
		.inspect = inspect,
		.cache_bytes = 4096};
	struct error err = {0};

	return disk_open_file(rig_open_file(&f->store), &options, &f->disk, &err);
}

static bool clean(struct run *f, bool repair)
{
	struct image_check check = {.repair = repair};
	struct error err = {0};
	int r = image_check(f->disk, &check, &err);

	if (r < 0)
		return false;
	return repair ? check.errors == check.errors_mended : !check.errors;
}

static void snapshots(struct run *f)
{
	struct image_snapshot *list;
	struct error err = {0};
	unsigned count;

	if (image_snapshots(f->disk, &list, &count, &err) < 0)
		return;
	switch (pick(f, 3)) {
	case 0: (void)!image_snapshot_create(f->disk, "fuzz", &err); break;
	case 1:
		if (count)
			(void)!image_snapshot_apply(f->disk, list[pick(f, count)].name, &err);
		break;
	case 2:
		if (count)
			(void)!image_snapshot_delete(f->disk, list[pick(f, count)].name, &err);
		break;
	}
	image_snapshots_free(list, count);
}

static void fast(struct run *f, uint64_t offset, uint64_t bytes)
{
	struct disk_extent extent;

	disk_begin(f->disk, pick(f, 2) ? DISK_WRITE : DISK_READ, offset, bytes, &extent);
	MUST(extent.bytes && extent.bytes <= bytes);
	disk_end(&extent);
}

static void step(struct run *f)
{
	uint64_t size = f->disk->size_bytes, offset = pick(f, size);
	uint64_t bytes = MIN(1 + pick(f, KIB(128)), size - offset);
	struct disk_map_run map;
	struct error err = {0};

	if (!size)
		return;
	switch (pick(f, 11)) {
	case 0:
	case 1: (void)!disk_write(f->disk, f->buf, bytes, offset); break;
	case 2: (void)!disk_read(f->disk, f->buf, bytes, offset); break;
	case 3: (void)!disk_discard(f->disk, offset, bytes); break;
	case 4: (void)!disk_zero(f->disk, offset, bytes, pick(f, 2)); break;
	case 5: (void)!disk_flush(f->disk); break;
	case 6: (void)!disk_map(f->disk, offset, bytes, &map); break;
	case 7: snapshots(f); break;
	case 8:
		if (pick(f, 4) == 0 && size < MIB(64))
			(void)!disk_resize(f->disk, ALIGN_UP(1 + pick(f, size * 2), 512), &err);
		break;
	case 9: fast(f, offset, bytes); break;
	case 10:
		if (pick(f, 2))
			(void)!image_write_packed(
				f->disk, f->buf, ALIGN_DOWN(offset, f->disk->cluster_bytes));
		else
			(void)!image_set_backing(f->disk, "base", "raw", &err);
		break;
	}
}

static void work(struct run *f)
{
	f->good = clean(f, false);
	for (unsigned i = 0; i < STEPS; i++)
		step(f);
	if (f->good)
		MUST(clean(f, false));
	(void)!disk_close(f->disk);
	if (reopen(f, true) < 0) {
		MUST(!f->good);
		return;
	}
	if (f->good)
		MUST(clean(f, false));
	if (clean(f, true)) { /* what was mended is good now */
		MUST(clean(f, false));
	}
	(void)!disk_close(f->disk);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes)
{
	struct run f = {.seed = 1};

	if (size_bytes < SEED_BYTES)
		return 0;
	f.seed += load_le32(data);
	f.buf = calloc(1, MIB(2));
	MUST(f.buf);
	rig_store_init(&f.store, FILE_BYTES);
	if (size_bytes - SEED_BYTES <= FILE_BYTES)
		MUST(disk_file_write(
			     f.store.memory, data + SEED_BYTES, size_bytes - SEED_BYTES, 0) == 0);
	if (reopen(&f, false) == 0 || reopen(&f, true) == 0)
		work(&f);
	rig_store_done(&f.store);
	free(f.buf);
	return 0;
}

/* A small image that is well made, with a few bytes changed. */
size_t rig_make(uint8_t *buf, size_t size, uint64_t *seed)
{
	struct rig_shape shape = {9 + rig_random(seed) % 2, rig_random(seed) % 7, 3,
		rig_random(seed) & 1, rig_random(seed) & 1};
	struct run f = {.seed = rig_random(seed)};
	uint64_t bytes;

	f.buf = calloc(1, MIB(2));
	MUST(f.buf);
	rig_store_init(&f.store, FILE_BYTES);
	rig_format(&f.store, &shape, KIB(16) << rig_random(seed) % 4);
	MUST(reopen(&f, false) == 0);
	for (unsigned i = 0; i < STEPS; i++)
		step(&f);
	MUST(disk_close(f.disk) == 0);
	MUST(f.store.memory->ops->size(f.store.memory, &bytes) == 0);
	bytes = MIN(bytes, size - SEED_BYTES);
	store_le32(buf, (uint32_t)rig_random(seed));
	MUST(disk_file_read(f.store.memory, buf + SEED_BYTES, bytes, 0) == 0);
	for (unsigned i = rig_random(seed) % 6; i > 0; i--) {
		uint64_t near = rig_random(seed) % 2 ? bytes : MIN(bytes, 112ull);

		buf[SEED_BYTES + rig_random(seed) % near] ^= 1u << rig_random(seed) % 8;
	}
	rig_store_done(&f.store);
	free(f.buf);
	return SEED_BYTES + bytes;
}
