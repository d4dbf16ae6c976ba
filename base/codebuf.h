/*
 * Memory for machine code made at run time, never writable and executable through one address.
 *
 * Normally the same pages are mapped twice, read-write at `rw` and read-execute at `rx`, so that
 * code is written while other threads run it. Where the host refuses to execute shared memory there
 * is one mapping (rw == rx) whose protection is switched by codebuf_open() and codebuf_close():
 * then nobody may run code of this buffer between the two, which a buffer owned by one thread gets
 * for free. `dual` tells which; whoever shares a buffer between threads must refuse to work without
 * it.
 *
 * Addresses: write at codebuf_write(offset), call codebuf_code(offset).
 */
#ifndef LODGE_BASE_CODEBUF_H
#define LODGE_BASE_CODEBUF_H

#include "base/types.h"
#include "base/util.h"

struct error;

struct codebuf {
	uint8_t *rw;
	const uint8_t *rx;
	size_t size_bytes;
	bool dual;
};

/* Map size_bytes (rounded up to pages) of code memory, which reads as zero at first.
 * Errors: -EINVAL (size 0), -ENOMEM, -EPERM (the host lets no memory be executable). */
int codebuf_init(struct codebuf *buf, size_t size_bytes, struct error *err) MUST_CHECK;
/* The same as on a host that refuses the second mapping. */
int codebuf_init_single(struct codebuf *buf, size_t size_bytes, struct error *err) MUST_CHECK;
/* Unmap. A zeroed buffer may be done too. */
void codebuf_done(struct codebuf *buf);

/* Around every burst of writes. Open buffers must be closed before their code is called. Errors:
 * what mprotect() says, never with dual mapping. */
int codebuf_open(struct codebuf *buf) MUST_CHECK;
int codebuf_close(struct codebuf *buf) MUST_CHECK;

static inline uint8_t *codebuf_write(const struct codebuf *buf, size_t offset)
{
	return buf->rw + offset;
}

static inline const void *codebuf_code(const struct codebuf *buf, size_t offset)
{
	return buf->rx + offset;
}

/* Distance to add to a writable address to get the one that executes. */
static inline ptrdiff_t codebuf_delta(const struct codebuf *buf)
{
	return (ptrdiff_t)((uintptr_t)buf->rx - (uintptr_t)buf->rw);
}

#endif
