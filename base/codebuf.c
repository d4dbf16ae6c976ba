/*
 * Memory for machine code. See codebuf.h.
 */
#include "base/codebuf.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"

/*
 * Shared memory without a name, mapped a second time: so it needs no file that a host may refuse to execute,
 * and profilers take it for what it is, code made at run time (perf looks such up in its map file).
 */
static int codebuf_map_dual(struct codebuf *buf, size_t size_bytes)
{
	void *rw, *rx;

	rw = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (rw == MAP_FAILED)
		return -errno;
	rx = mremap(rw, 0, size_bytes, MREMAP_MAYMOVE);
	if (rx == MAP_FAILED || mprotect(rx, size_bytes, PROT_READ | PROT_EXEC) < 0) {
		int code = errno;

		munmap(rw, size_bytes);
		if (rx != MAP_FAILED)
			munmap(rx, size_bytes);
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

static int codebuf_make(struct codebuf *buf, size_t size_bytes, bool dual, struct error *err)
{
	int ret = -ENOTSUP;

	*buf = (struct codebuf){0};
	if (size_bytes == 0 || size_bytes > SIZE_MAX / 2)
		return error_set(err, EINVAL, "code buffer of %zu bytes", size_bytes);
	size_bytes = ALIGN_UP(size_bytes, (size_t)sysconf(_SC_PAGESIZE));
	if (dual)
		ret = codebuf_map_dual(buf, size_bytes);
	if (ret < 0 && ret != -ENOMEM)
		ret = codebuf_map_single(buf, size_bytes);
	if (ret < 0)
		return error_set_errno(err, -ret, "no memory for machine code");
	return 0;
}

int codebuf_init(struct codebuf *buf, size_t size_bytes, struct error *err)
{
	return codebuf_make(buf, size_bytes, true, err);
}

int codebuf_init_single(struct codebuf *buf, size_t size_bytes, struct error *err)
{
	return codebuf_make(buf, size_bytes, false, err);
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
