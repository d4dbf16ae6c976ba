/*
 * A flash's bytes in a file: see the header.
 *
 * Invariant: of a file that is made from the template either all is there or nothing.
 */
#include "backend/flash_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/disk/lock.h"
#include "base/cleanup.h"
#include "base/error.h"

#define SIGNATURE_AT 40u /* of a firmware volume */

struct flash_file {
	struct flash_store store;
	int fd; /* -1: in memory only */
};

static int write_bytes(int fd, uint32_t at, const uint8_t *bytes, uint32_t count)
{
	while (count) {
		ssize_t n = pwrite(fd, bytes, count, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		bytes += n;
		at += (uint32_t)n;
		count -= (uint32_t)n;
	}
	return 0;
}

static int store_write(struct flash_store *store, uint32_t at, const uint8_t *bytes, uint32_t count)
{
	struct flash_file *file = container_of(store, struct flash_file, store);
	int status = file->fd < 0 ? 0 : write_bytes(file->fd, at, bytes, count);

	if (status == 0)
		memcpy(store->bytes + at, bytes, count);
	return status;
}

/* ---- reading ---- */

static int find_size(int fd, const char *path, uint32_t *ret_bytes, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return error_set_errno(err, errno, "%s", path);
	if (!S_ISREG(st.st_mode))
		return error_set(err, EINVAL, "%s is no regular file", path);
	if (st.st_size <= 0 || st.st_size % FLASH_BLOCK_BYTES ||
		st.st_size > (off_t)FLASH_BYTES_MAX)
		return error_set(err, EINVAL,
			"%s has no UEFI variables: its %lld bytes are no multiple of %u KiB, or more than %u KiB",
			path, (long long)st.st_size, FLASH_BLOCK_BYTES >> 10,
			(unsigned)(FLASH_BYTES_MAX >> 10));
	*ret_bytes = (uint32_t)st.st_size;
	return 0;
}

/* A guest may have erased what says so; firmware then makes it anew. */
static bool is_volume(const uint8_t *bytes)
{
	const uint8_t *signature = bytes + SIGNATURE_AT;

	return memcmp(signature, "_FVH", 4) == 0 || memcmp(signature, "\xff\xff\xff\xff", 4) == 0;
}

/* Caller frees *ret_bytes, after an error too. */
static int read_volume(
	int fd, const char *path, uint8_t **ret_bytes, uint32_t *ret_count, struct error *err)
{
	uint32_t count = 0, done = 0;
	int status = find_size(fd, path, &count, err);

	if (status < 0)
		return status;
	uint8_t *bytes = *ret_bytes = malloc(count);
	if (!bytes)
		return error_set(err, ENOMEM, "no memory for %s", path);
	while (done < count) {
		ssize_t n = pread(fd, bytes + done, count - done, done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set_errno(err, n < 0 ? errno : EIO, "can't read %s", path);
		done += (uint32_t)n;
	}
	if (!is_volume(bytes))
		return error_set(
			err, EINVAL, "%s has no UEFI variables: it is no firmware volume", path);
	*ret_count = count;
	return 0;
}

static int read_template(
	const char *path, uint8_t **ret_bytes, uint32_t *ret_count, struct error *err)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return error_set_errno(
			err, errno, "can't open the UEFI variables to begin with, %s", path);
	return read_volume(fd, path, ret_bytes, ret_count, err);
}

/* ---- making ---- */

static int fill_new(int fd, const uint8_t *bytes, uint32_t count)
{
	int status = write_bytes(fd, 0, bytes, count);

	return status == 0 && fsync(fd) < 0 ? -errno : status;
}

/* Under another name first. Somebody else's that is there by then is as good. */
static int make_file(const char *path, const uint8_t *bytes, uint32_t count, struct error *err)
{
	AUTO_FREE char *new = NULL;

	if (asprintf(&new, "%s.XXXXXX", path) < 0) {
		new = NULL;
		return error_set(err, ENOMEM, "no memory for %s", path);
	}
	AUTO_CLOSE int fd = mkostemp(new, O_CLOEXEC);
	if (fd < 0)
		return error_set_errno(err, errno, "can't make %s", path);
	int status = fill_new(fd, bytes, count);
	if (status == 0 && link(new, path) < 0 && errno != EEXIST)
		status = -errno;
	unlink(new);
	return status < 0 ? error_set_errno(err, -status, "can't make %s", path) : 0;
}

/* ---- opening ---- */

/* Not for ever in the open of a pipe. */
static int open_path(const char *path)
{
	return open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
}

static int open_file(
	struct flash_file *file, const char *path, const char *template_path, struct error *err)
{
	struct flash_store *store = &file->store;
	AUTO_FREE uint8_t *first = NULL;
	uint32_t first_count = 0;
	int status = template_path ? read_template(template_path, &first, &first_count, err) : 0;

	if (status < 0)
		return status;
	file->fd = open_path(path);
	if (file->fd < 0 && errno == ENOENT && first) {
		status = make_file(path, first, first_count, err);
		if (status < 0)
			return status;
		file->fd = open_path(path);
	}
	if (file->fd < 0)
		return error_set_errno(err, errno, "can't open the UEFI variables %s", path);
	status = disk_lock_take(file->fd, false, path, err);
	if (status == 0)
		status = read_volume(file->fd, path, &store->bytes, &store->size_bytes, err);
	if (status == 0 && first && store->size_bytes != first_count)
		status = error_set(err, EINVAL,
			"%s has %u KiB of UEFI variables, and the firmware wants the %u KiB of %s",
			path, store->size_bytes >> 10, first_count >> 10, template_path);
	return status;
}

int flash_file_open(const char *path, const char *template_path, struct flash_file **ret_file,
	struct error *err)
{
	struct flash_file *file = calloc(1, sizeof(*file));
	int status;

	if (!file)
		return error_set(err, ENOMEM, "no memory for UEFI variables");
	*file = (struct flash_file){.store.write = store_write, .fd = -1};
	if (path)
		status = open_file(file, path, template_path, err);
	else
		status = read_template(
			template_path, &file->store.bytes, &file->store.size_bytes, err);
	if (status < 0) {
		flash_file_close(file);
		return status;
	}
	*ret_file = file;
	return 0;
}

void flash_file_close(struct flash_file *file)
{
	if (!file)
		return;
	if (file->fd >= 0)
		close(file->fd);
	free(file->store.bytes);
	free(file);
}

struct flash_store *flash_file_store(struct flash_file *file)
{
	return file ? &file->store : NULL;
}
