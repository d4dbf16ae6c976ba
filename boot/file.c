/*
 * Reading kernels and initrds. See file.h. pread, not mmap: a mapped file that somebody truncates
 * would kill the monitor.
 */
#include "boot/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "memory/memory.h"

static const char *file_name(const struct boot_file *file)
{
	return file->path ? file->path : "(unnamed file)";
}

int boot_file_open(
	const struct boot_file *file, int *ret_fd, uint64_t *ret_size_bytes, struct error *err)
{
	AUTO_CLOSE int fd = -1;
	struct stat st;

	/* Non-blocking: opening a FIFO must not hang. It means nothing to a regular file. */
	fd = file->fd > 0 ? fcntl(file->fd, F_DUPFD_CLOEXEC, 3)
			  : open(file_name(file), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_set_errno(err, errno, "cannot open %s", file_name(file));
	if (fstat(fd, &st) < 0)
		return error_set_errno(err, errno, "cannot examine %s", file_name(file));
	if (!S_ISREG(st.st_mode))
		return error_set(err, EINVAL, "%s is not a regular file: give a file's name",
			file_name(file));
	if (!st.st_size)
		return error_set(err, EINVAL, "%s is empty: get it again", file_name(file));
	*ret_size_bytes = (uint64_t)st.st_size;
	*ret_fd = take_fd(&fd);
	return 0;
}

static int file_read_all(
	int fd, const char *name, uint8_t *bytes, uint64_t size_bytes, struct error *err)
{
	uint64_t done = 0;

	while (done < size_bytes) {
		ssize_t n = pread(fd, bytes + done, size_bytes - done, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set_errno(err, errno, "cannot read %s", name);
		if (!n)
			return error_set(err, EIO, "%s became shorter while it was read: start again "
				"when nobody writes to it", name);
		done += (uint64_t)n;
	}
	return 0;
}

int boot_image_read(struct boot_image *ret_image, const struct boot_file *file, uint64_t max_bytes,
	struct error *err)
{
	AUTO_CLOSE int fd = -1;
	AUTO_FREE uint8_t *bytes = NULL;
	uint64_t size_bytes;
	int r;

	r = boot_file_open(file, &fd, &size_bytes, err);
	if (r < 0)
		return r;
	if (size_bytes > max_bytes)
		return error_set(err, EFBIG,
			"%s has %llu MiB, more than the %llu MiB a kernel may have: is it a kernel?",
			file_name(file), (unsigned long long)(size_bytes >> 20),
			(unsigned long long)(max_bytes >> 20));
	bytes = malloc(size_bytes);
	if (!bytes)
		return error_set(err, ENOMEM, "no memory on the host to read %s", file_name(file));
	r = file_read_all(fd, file_name(file), bytes, size_bytes, err);
	if (r < 0)
		return r;
	*ret_image = (struct boot_image){file_name(file), take_ptr(&bytes), size_bytes};
	return 0;
}

void boot_image_done(struct boot_image *image)
{
	free(image->bytes);
	*image = (struct boot_image){0};
}

int boot_file_load(struct guest_memory *memory, int fd, const char *name, gpa_t base,
	uint64_t size_bytes, struct error *err)
{
	uint8_t *host = memory_host(memory, base, size_bytes, true);

	if (!host)
		return error_set(err, EFAULT, "%s: no RAM at 0x%llx for it", name,
			(unsigned long long)base);
	int r = file_read_all(fd, name, host, size_bytes, err);
	memory_written(memory, base, size_bytes);
	return r;
}
