/*
 * Parts of I/O vectors.
 */
#include "backend/disk/iov.h"

#include <string.h>

/* The next piece that is in one place in memory; 0 at the vector's end. */
static size_t iov_piece(struct iov_place *place, uint64_t bytes, uint8_t **ret_start)
{
	size_t length;

	while (place->count && place->inside == place->iov->iov_len) {
		place->iov++;
		place->count--;
		place->inside = 0;
	}
	if (!place->count || !bytes)
		return 0;
	length = MIN(bytes, place->iov->iov_len - place->inside);
	*ret_start = (uint8_t *)place->iov->iov_base + place->inside;
	place->inside += length;
	return length;
}

uint64_t iov_take(struct iov_place *place, uint64_t bytes, struct iovec *out, unsigned max,
	unsigned *ret_count)
{
	uint64_t taken = 0;
	uint8_t *start;
	unsigned n;
	size_t length;

	for (n = 0; n < max && (length = iov_piece(place, bytes - taken, &start)); n++) {
		out[n] = (struct iovec){.iov_base = start, .iov_len = length};
		taken += length;
	}
	*ret_count = n;
	return taken;
}

void iov_skip(struct iov_place *place, uint64_t bytes)
{
	uint8_t *start;
	size_t length;

	while ((length = iov_piece(place, bytes, &start)))
		bytes -= length;
}

void iov_to_buffer(struct iov_place *place, void *buf, uint64_t bytes)
{
	uint8_t *to = buf, *start;
	size_t length;

	while ((length = iov_piece(place, bytes, &start))) {
		memcpy(to, start, length);
		to += length;
		bytes -= length;
	}
}

void iov_from_buffer(struct iov_place *place, const void *buf, uint64_t bytes)
{
	const uint8_t *from = buf;
	uint8_t *start;
	size_t length;

	while ((length = iov_piece(place, bytes, &start))) {
		memcpy(start, from, length);
		from += length;
		bytes -= length;
	}
}

void iov_fill_zero(struct iov_place *place, uint64_t bytes)
{
	uint8_t *start;
	size_t length;

	while ((length = iov_piece(place, bytes, &start))) {
		memset(start, 0, length);
		bytes -= length;
	}
}

uint64_t iov_zeros(uint64_t bytes, struct iovec *out, unsigned max, unsigned *ret_count)
{
	static const uint8_t zeros[KIB(64)];
	uint64_t taken = 0;
	unsigned n;

	for (n = 0; n < max && taken < bytes; n++) {
		out[n] = (struct iovec){.iov_base = (void *)(uintptr_t)zeros,
			.iov_len = MIN(bytes - taken, sizeof(zeros))};
		taken += out[n].iov_len;
	}
	*ret_count = n;
	return taken;
}
