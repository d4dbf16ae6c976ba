/*
 * A disk image's file in memory, for tests and fuzzers.
 */
#include "backend/disk/file.h"
#include "backend/disk/iov.h"
#include "base/cleanup.h"

#include <string.h>

struct memory_file {
	struct disk_file file;
	pthread_mutex_t lock;
	uint8_t *bytes;
	uint64_t size, room, max;
};

static struct memory_file *memory_of(struct disk_file *file)
{
	return container_of(file, struct memory_file, file);
}

static uint64_t iov_bytes(const struct iovec *iov, unsigned count)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < count; i++)
		bytes += iov[i].iov_len;
	return bytes;
}

/* Everything beyond `size` is zero. */
static int memory_grow(struct memory_file *memory, uint64_t size)
{
	if (size > memory->max)
		return -ENOSPC;
	if (size > memory->room) {
		uint64_t room = MIN(memory->max, MAX(size, memory->room * 2));
		uint8_t *bytes = realloc(memory->bytes, room);

		if (!bytes)
			return -ENOMEM;
		memset(bytes + memory->room, 0, room - memory->room);
		memory->bytes = bytes;
		memory->room = room;
	}
	memory->size = MAX(memory->size, size);
	return 0;
}

static int memory_readv(
	struct disk_file *file, const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct memory_file *memory = memory_of(file);
	struct iov_place place = iov_start(iov, count);
	uint64_t bytes = iov_bytes(iov, count), there;
	AUTO_LOCK(&memory->lock);

	there = offset < memory->size ? MIN(bytes, memory->size - offset) : 0;
	if (there)
		iov_from_buffer(&place, memory->bytes + offset, there);
	iov_fill_zero(&place, bytes - there);
	return 0;
}

static int memory_writev(
	struct disk_file *file, const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct memory_file *memory = memory_of(file);
	struct iov_place place = iov_start(iov, count);
	uint64_t bytes = iov_bytes(iov, count);
	AUTO_LOCK(&memory->lock);

	if (offset > memory->max || bytes > memory->max - offset)
		return -ENOSPC;
	if (!bytes)
		return 0;
	if (memory_grow(memory, offset + bytes) < 0)
		return -ENOSPC;
	iov_to_buffer(&place, memory->bytes + offset, bytes);
	return 0;
}

static int memory_flush(struct disk_file *file)
{
	return 0;
}

static int memory_punch(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	struct memory_file *memory = memory_of(file);
	AUTO_LOCK(&memory->lock);

	if (offset < memory->size)
		memset(memory->bytes + offset, 0, MIN(bytes, memory->size - offset));
	return 0;
}

static int memory_zero(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	struct memory_file *memory = memory_of(file);

	if (offset > memory->max || bytes > memory->max - offset)
		return -ENOSPC;
	memory_punch(file, offset, bytes);
	AUTO_LOCK(&memory->lock);
	return memory_grow(memory, offset + bytes);
}

static int memory_size(struct disk_file *file, uint64_t *ret_bytes)
{
	struct memory_file *memory = memory_of(file);
	AUTO_LOCK(&memory->lock);

	*ret_bytes = memory->size;
	return 0;
}

static int memory_truncate(struct disk_file *file, uint64_t bytes)
{
	struct memory_file *memory = memory_of(file);
	AUTO_LOCK(&memory->lock);

	if (bytes >= memory->size)
		return memory_grow(memory, bytes);
	memset(memory->bytes + bytes, 0, memory->size - bytes);
	memory->size = bytes;
	return 0;
}

static int memory_extent(
	struct disk_file *file, uint64_t offset, uint64_t bytes, uint64_t *ret_run, bool *ret_data)
{
	*ret_run = bytes;
	*ret_data = true;
	return 0;
}

static void memory_close(struct disk_file *file)
{
	struct memory_file *memory = memory_of(file);

	pthread_mutex_destroy(&memory->lock);
	free(memory->bytes);
	free(file->name);
	free(memory);
}

static const struct disk_file_ops memory_ops = {
	.readv = memory_readv,
	.writev = memory_writev,
	.flush = memory_flush,
	.punch = memory_punch,
	.zero = memory_zero,
	.discard = memory_punch,
	.size = memory_size,
	.truncate = memory_truncate,
	.extent = memory_extent,
	.close = memory_close,
};

int disk_file_memory(uint64_t max_bytes, struct disk_file **ret_file)
{
	struct memory_file *memory = calloc(1, sizeof(*memory));
	char *name = strdup("memory");

	if (!memory || !name) {
		free(memory);
		free(name);
		return -ENOMEM;
	}
	memory->file = (struct disk_file){.ops = &memory_ops,
		.fd = -1,
		.direct_fd = -1,
		.align_bytes = 1,
		.growable = true,
		.can_punch = true,
		.name = name};
	memory->max = max_bytes;
	pthread_mutex_init(&memory->lock, NULL);
	*ret_file = &memory->file;
	return 0;
}
