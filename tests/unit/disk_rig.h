/*
 * A host file in memory that outlives the disks that are opened on it, and can keep a log of what was done to it, for
 * the tests of disk images.
 */
#ifndef LODGE_TESTS_UNIT_DISK_RIG_H
#define LODGE_TESTS_UNIT_DISK_RIG_H

#include "backend/disk/file.h"
#include "backend/disk/format.h"
#include "backend/disk/image.h"
#include "backend/disk/qcow2.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef MUST
#define MUST(condition)                                                                 \
	do {                                                                            \
		if (!(condition)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                        \
		}                                                                       \
	} while (0)
#endif

enum log_kind {
	LOG_WRITE,
	LOG_ZERO,
	LOG_TRUNCATE,
	LOG_FLUSH,
};

struct log_entry {
	enum log_kind kind;
	uint64_t offset, bytes;
	uint8_t *data;
};

/* What lies below a disk in a test. */
struct rig_store {
	struct disk_file *memory;
	bool logging;
	struct log_entry *log;
	size_t count, room;
	/* Fail the n-th write, zero or truncation from now on, and all after it while it is set; 0: none. */
	unsigned fail_at;
	int fail_error;
	unsigned short_of_room; /* failures so far */
};

struct rig_file {
	struct disk_file file;
	struct rig_store *store;
};

static inline struct rig_store *rig_store_of(struct disk_file *file)
{
	return container_of(file, struct rig_file, file)->store;
}

static inline void rig_log(struct rig_store *store, enum log_kind kind, uint64_t offset,
	uint64_t bytes, const uint8_t *data)
{
	struct log_entry *entry;

	if (!store->logging)
		return;
	if (store->count == store->room) {
		store->room = store->room ? store->room * 2 : 256;
		store->log = realloc(store->log, store->room * sizeof(*store->log));
		MUST(store->log);
	}
	entry = &store->log[store->count++];
	*entry = (struct log_entry){kind, offset, bytes, NULL};
	if (data) {
		entry->data = malloc(bytes);
		MUST(entry->data);
		memcpy(entry->data, data, bytes);
	}
}

static inline int rig_fails(struct rig_store *store)
{
	if (!store->fail_at)
		return 0;
	if (store->fail_at > 1) {
		store->fail_at--;
		return 0;
	}
	store->short_of_room++;
	return store->fail_error;
}

static inline int rig_readv(
	struct disk_file *file, const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct disk_file *memory = rig_store_of(file)->memory;

	return memory->ops->readv(memory, iov, count, offset);
}

static inline int rig_writev(
	struct disk_file *file, const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct rig_store *store = rig_store_of(file);
	uint64_t at = offset;
	int r = rig_fails(store);

	if (r < 0)
		return r;
	for (unsigned i = 0; i < count; i++) {
		rig_log(store, LOG_WRITE, at, iov[i].iov_len, iov[i].iov_base);
		at += iov[i].iov_len;
	}
	return store->memory->ops->writev(store->memory, iov, count, offset);
}

static inline int rig_flush(struct disk_file *file)
{
	rig_log(rig_store_of(file), LOG_FLUSH, 0, 0, NULL);
	return 0;
}

static inline int rig_zero(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	struct rig_store *store = rig_store_of(file);
	int r = rig_fails(store);

	if (r < 0)
		return r;
	rig_log(store, LOG_ZERO, offset, bytes, NULL);
	return store->memory->ops->zero(store->memory, offset, bytes);
}

static inline int rig_punch(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	struct rig_store *store = rig_store_of(file);

	rig_log(store, LOG_ZERO, offset, bytes, NULL);
	return store->memory->ops->punch(store->memory, offset, bytes);
}

static inline int rig_size(struct disk_file *file, uint64_t *ret_bytes)
{
	struct disk_file *memory = rig_store_of(file)->memory;

	return memory->ops->size(memory, ret_bytes);
}

static inline int rig_truncate(struct disk_file *file, uint64_t bytes)
{
	struct rig_store *store = rig_store_of(file);
	uint64_t old;
	int r = rig_size(file, &old);

	if (r == 0 && bytes > old)
		r = rig_fails(store);
	if (r < 0)
		return r;
	rig_log(store, LOG_TRUNCATE, bytes, 0, NULL);
	return store->memory->ops->truncate(store->memory, bytes);
}

static inline int rig_extent(
	struct disk_file *file, uint64_t offset, uint64_t bytes, uint64_t *ret_run, bool *ret_data)
{
	*ret_run = bytes;
	*ret_data = true;
	return 0;
}

static inline void rig_close(struct disk_file *file)
{
	free(file->name);
	free(container_of(file, struct rig_file, file));
}

static const struct disk_file_ops rig_file_ops = {
	.readv = rig_readv,
	.writev = rig_writev,
	.flush = rig_flush,
	.punch = rig_punch,
	.zero = rig_zero,
	.discard = rig_punch,
	.size = rig_size,
	.truncate = rig_truncate,
	.extent = rig_extent,
	.close = rig_close,
};

static inline void rig_store_init(struct rig_store *store, uint64_t max_bytes)
{
	*store = (struct rig_store){0};
	MUST(disk_file_memory(max_bytes, &store->memory) == 0);
}

static inline void rig_log_clear(struct rig_store *store)
{
	for (size_t i = 0; i < store->count; i++)
		free(store->log[i].data);
	store->count = 0;
}

static inline void rig_store_done(struct rig_store *store)
{
	rig_log_clear(store);
	free(store->log);
	disk_file_close(store->memory);
}

static inline struct disk_file *rig_open_file(struct rig_store *store)
{
	struct rig_file *file = calloc(1, sizeof(*file));

	MUST(file);
	file->file = (struct disk_file){.ops = &rig_file_ops,
		.fd = -1,
		.direct_fd = -1,
		.align_bytes = 1,
		.growable = true,
		.can_punch = true,
		.name = strdup("store")};
	file->store = store;
	return &file->file;
}

/* The shape of a qcow2 image in a test. */
struct rig_shape {
	uint32_t cluster_bits, refcount_order, version;
	bool lazy, zstd;
};

/* An empty image of the given size in the store. */
static inline void rig_format(
	struct rig_store *store, const struct rig_shape *shape, uint64_t size_bytes)
{
	uint64_t cluster = 1ull << shape->cluster_bits;
	struct qcow2_header header = {.version = shape->version,
		.cluster_bits = shape->cluster_bits,
		.refcount_order = shape->refcount_order,
		.header_bytes = shape->version == 3 ? 112 : 72,
		.compatible = shape->lazy ? QCOW2_LAZY : 0,
		.incompatible = shape->zstd ? QCOW2_COMPRESSION : 0,
		.compression = shape->zstd ? QCOW2_ZSTD : QCOW2_DEFLATE,
		.reftable_offset = cluster,
		.reftable_clusters = 1};
	struct disk_options options = {.format = "qcow2"};
	uint8_t *bytes = calloc(3, cluster);
	struct error err = {0};
	struct disk *disk;

	MUST(bytes);
	qcow2_header_encode(&header, bytes);
	store_be64(bytes + cluster, 2 * cluster);
	for (unsigned i = 0; i < 3; i++)
		qcow2_refcount_store(bytes + 2 * cluster, shape->refcount_order, i, 1);
	MUST(disk_file_write(store->memory, bytes, 3 * cluster, 0) == 0);
	free(bytes);
	if (disk_open_file(rig_open_file(store), &options, &disk, &err) < 0 ||
		disk_resize(disk, size_bytes, &err) < 0 || disk_close(disk) < 0) {
		fprintf(stderr, "%s\n", err.text);
		abort();
	}
}

static inline uint64_t disk_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static inline void rig_print(void *opaque, const char *text)
{
	fprintf(stderr, "check: %s\n", text);
}

#endif
