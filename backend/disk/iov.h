/*
 * Parts of I/O vectors. Nothing here changes the vector it is given.
 */
#ifndef LODGE_BACKEND_DISK_IOV_H
#define LODGE_BACKEND_DISK_IOV_H

#include "base/util.h"

#include <stdint.h>
#include <sys/uio.h>

/* Where in a vector one is. */
struct iov_place {
	const struct iovec *iov;
	unsigned count;
	size_t inside; /* bytes of iov[0] that are behind us */
};

static inline struct iov_place iov_start(const struct iovec *iov, unsigned count)
{
	return (struct iov_place){.iov = iov, .count = count};
}

/* Takes up to `bytes` and max entries from the place, which moves on. Returns the bytes taken. */
uint64_t iov_take(struct iov_place *place, uint64_t bytes, struct iovec *out, unsigned max,
	unsigned *ret_count);
void iov_skip(struct iov_place *place, uint64_t bytes);

/* Copies between the place, which moves on, and a buffer. The vector has that many bytes. */
void iov_to_buffer(struct iov_place *place, void *buf, uint64_t bytes);
void iov_from_buffer(struct iov_place *place, const void *buf, uint64_t bytes);
void iov_fill_zero(struct iov_place *place, uint64_t bytes);

/* A vector to write zeros from: at most `bytes`, and max entries. Returns its bytes. */
uint64_t iov_zeros(uint64_t bytes, struct iovec *out, unsigned max, unsigned *ret_count);

#endif
