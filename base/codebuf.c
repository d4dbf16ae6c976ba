/*
 * Memory for machine code. See codebuf.h.
 */
#include "base/codebuf.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/error.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

/* A kernel older than MFD_EXEC refuses the flag; its memory files may be executed anyway. */
static int codebuf_file(size_t size_bytes)
{
	AUTO_CLOSE int fd = memfd_create("lodge-code", MFD_CLOEXEC | MFD_EXEC);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create("lodge-code", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
		return -errno;
	return take_fd(&fd);
}

static int codebuf_map_dual(struct codebuf *buf, size_t size_bytes)
{
	AUTO_CLOSE int fd = codebuf_file(size_bytes);
	void *rw, *rx;

	if (fd < 0)
		return fd;
	rw = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (rw == MAP_FAILED)
		return -errno;
	rx = mmap(NULL, size_bytes, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	if (rx == MAP_FAILED) {
		int code = errno;

		munmap(rw, size_bytes);
		return -code;
	}
	*buf = (struct codebuf){.rw = rw, .rx = rx, .size_bytes = size_bytes, .dual = true};
	return 0;
}

static int codebuf_map_single(struct codebuf *buf, size_t size_bytes)
{
	void *rw =
		mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (rw == MAP_FAILED)
		return -errno;
	*buf = (struct codebuf){.rw = rw, .rx = rw, .size_bytes = size_bytes};
	if (codebuf_close(buf) < 0) {
		codebuf_done(buf);
		return -EPERM;
	}
	return 0;
}

int codebuf_init(struct codebuf *buf, size_t size_bytes, struct error *err)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int ret;

	*buf = (struct codebuf){0};
	if (size_bytes == 0 || size_bytes > SIZE_MAX / 2)
		return error_set(err, EINVAL, "code buffer of %zu bytes", size_bytes);
	size_bytes = ALIGN_UP(size_bytes, page);
	ret = codebuf_map_dual(buf, size_bytes);
	if (ret < 0 && ret != -ENOMEM)
		ret = codebuf_map_single(buf, size_bytes);
	if (ret < 0)
		return error_set_errno(err, -ret, "no memory for machine code");
	return 0;
}

void codebuf_done(struct codebuf *buf)
{
	if (buf->dual)
		munmap((void *)(uintptr_t)buf->rx, buf->size_bytes);
	if (buf->rw)
		munmap(buf->rw, buf->size_bytes);
	*buf = (struct codebuf){0};
}

static int codebuf_protect(struct codebuf *buf, int protection)
{
	if (buf->dual)
		return 0;
	return mprotect(buf->rw, buf->size_bytes, protection) < 0 ? -errno : 0;
}

int codebuf_open(struct codebuf *buf)
{
	return codebuf_protect(buf, PROT_READ | PROT_WRITE);
}

int codebuf_close(struct codebuf *buf)
{
	return codebuf_protect(buf, PROT_READ | PROT_EXEC);
}
