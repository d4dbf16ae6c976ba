/*
 * Files as guest memory: see memory.h.
 *
 * The file's pages are mapped over an anonymous reservation, which stays where the file ends before the region
 * does. The reservation is aligned as RAM is, and a page longer, as a guard.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "memory/private.h"

struct memory_file {
	int fd;
	enum memory_file_mode mode;
	uint64_t size_bytes; /* of the region */
	uint8_t *map;	     /* the reservation */
	uint64_t map_bytes;
	uint8_t *host;
};

uint8_t *memory_file_host(const struct memory_file *file)
{
	return file->host;
}

bool memory_file_is_readonly(const struct memory_file *file)
{
	return file->mode == MEMORY_FILE_READONLY;
}

uint64_t memory_file_bytes(const struct memory_file *file)
{
	return file->size_bytes;
}

static int find_size(struct memory_file *file, const char *path, uint64_t align_bytes,
	uint64_t *ret_file_bytes, struct error *err)
{
	struct stat st;

	if (fstat(file->fd, &st) < 0)
		return error_set_errno(err, errno, "%s", path);
	if (!S_ISREG(st.st_mode))
		return error_set(err, EINVAL, "%s is no regular file", path);
	if (st.st_size == 0)
		return error_set(err, EINVAL, "%s is empty", path);
	if (st.st_size > INT64_MAX - (int64_t)align_bytes)
		return error_set(err, EFBIG, "%s is too large to be memory", path);
	*ret_file_bytes = (uint64_t)st.st_size;
	file->size_bytes = ALIGN_UP(*ret_file_bytes, align_bytes);
	if (file->mode == MEMORY_FILE_SHARED && file->size_bytes != *ret_file_bytes)
		return error_set(err, EINVAL,
			"%s is no multiple of %llu KiB long, so nothing would keep what is written behind its "
			"end: make it longer with truncate --size=%%%lluK",
			path, (unsigned long long)(align_bytes >> 10),
			(unsigned long long)(align_bytes >> 10));
	return 0;
}

static int map(struct memory_file *file, const char *path, uint64_t file_bytes, struct error *err)
{
	const bool writable = file->mode != MEMORY_FILE_READONLY;
	const int protection = PROT_READ | (writable ? PROT_WRITE : 0);
	const int kind = file->mode == MEMORY_FILE_PRIVATE ? MAP_PRIVATE : MAP_SHARED;

	file->map_bytes = file->size_bytes + GUEST_PAGE_SIZE + HUGE_PAGE_SIZE;
	file->map = mmap(NULL, file->map_bytes, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (file->map == MAP_FAILED) {
		file->map = NULL;
		return error_set(err, ENOMEM, "no address space for %s", path);
	}
	file->host = (uint8_t *)ALIGN_UP((uintptr_t)file->map, HUGE_PAGE_SIZE);
	if (mprotect(file->host, file->size_bytes, protection) < 0 ||
		mmap(file->host, file_bytes, protection, kind | MAP_FIXED | MAP_NORESERVE, file->fd,
			0) == MAP_FAILED)
		return error_set_errno(err, errno, "can't map %s", path);
	madvise(file->host, file->size_bytes, MADV_DONTDUMP);
	madvise(file->host, file->size_bytes, MADV_DONTFORK);
	return 0;
}

int memory_file_open(const char *path, enum memory_file_mode mode, uint64_t align_bytes,
	struct memory_file **ret_file, struct error *err)
{
	struct memory_file *file = calloc(1, sizeof(*file));
	uint64_t file_bytes = 0;

	if (!file)
		return error_set(err, ENOMEM, "no memory for %s", path);
	file->mode = mode;
	/* Not for ever in the open of a pipe. */
	file->fd = open(
		path, (mode == MEMORY_FILE_SHARED ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
	int status = file->fd < 0 ? error_set_errno(err, errno, "can't open %s", path) : 0;
	if (status == 0)
		status = find_size(file, path, align_bytes, &file_bytes, err);
	if (status == 0)
		status = map(file, path, file_bytes, err);
	if (status < 0) {
		memory_file_close(file);
		return status;
	}
	*ret_file = file;
	return 0;
}

void memory_file_close(struct memory_file *file)
{
	if (!file)
		return;
	if (file->map)
		munmap(file->map, file->map_bytes);
	if (file->fd >= 0)
		close(file->fd);
	free(file);
}

int memory_file_flush(struct memory_file *file)
{
	if (file->mode != MEMORY_FILE_SHARED)
		return 0;
	/* What was written through a mapping counts as written. */
	return fdatasync(file->fd) < 0 ? -errno : 0;
}
