/*
 * What a driver asks of virtio block: requests as they are in the queue (Virtual I/O Device 1.2, 5.2.6), their checks, and
 * the block device's requests that they become.
 *
 * Invariant: all that decides anything is read from guest memory once, in blk_request_read().
 */
#include "device/virtio/blk_private.h"

#include "base/bytes.h"

#include <errno.h>
#include <stdlib.h>

#define HEADER_BYTES	 16
#define RANGE_BYTES	 16
#define RANGE_FLAG_UNMAP 1u

enum request_type {
	TYPE_IN = 0,
	TYPE_OUT = 1,
	TYPE_FLUSH = 4,
	TYPE_GET_ID = 8,
	TYPE_DISCARD = 11,
	TYPE_WRITE_ZEROES = 13,
};

/* ---- from a request's parts to the block device's requests ---- */

/* The part [skip, skip + bytes) of a list of buffers, as r->iov. The list holds at least that. */
static int slice(struct blk_request *r, const struct iovec *from, unsigned count, uint64_t skip,
	uint64_t bytes)
{
	unsigned n = 0;

	if (count > r->iov_capacity) {
		struct iovec *grown = reallocarray(r->iov, count, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		r->iov = grown;
		r->iov_capacity = count;
	}
	for (unsigned i = 0; i < count && bytes; i++) {
		uint64_t length = from[i].iov_len;

		if (skip >= length) {
			skip -= length;
			continue;
		}
		length = MIN(length - skip, bytes);
		r->iov[n++] = (struct iovec){(char *)from[i].iov_base + skip, length};
		bytes -= length;
		skip = 0;
	}
	r->block.iov = r->iov;
	r->block.iov_count = n;
	return 0;
}

int blk_request_prepare(struct blk_request *r)
{
	const struct blk_range *range = &r->ranges[r->step];
	const struct virtq_buffer *b = &r->buffer;

	r->block = (struct block_request){.op = BLOCK_FLUSH, .opaque = r};
	if (r->step == r->range_count)
		return 0;
	r->block.op = r->op;
	r->block.offset = range->offset;
	r->block.bytes = range->bytes;
	r->block.unmap = range->unmap;
	if (r->op == BLOCK_READ)
		return slice(r, b->in, b->in_count, 0, range->bytes);
	if (r->op == BLOCK_WRITE)
		return slice(r, b->out, b->out_count, HEADER_BYTES, range->bytes);
	return 0;
}

/* ---- checking what the driver asks for ---- */

/* Is it within the disk, in whole sectors? */
static int check_range(
	const struct virtio_blk *blk, uint64_t sector, uint64_t bytes, struct blk_range *ret)
{
	const struct block_limits *limits = &blk->limits;

	if (sector > limits->size_bytes >> BLK_SECTOR_SHIFT)
		return -EINVAL;
	*ret = (struct blk_range){.offset = sector << BLK_SECTOR_SHIFT, .bytes = bytes};
	if (bytes > limits->size_bytes - ret->offset || ret->offset % limits->sector_bytes ||
		bytes % limits->sector_bytes)
		return -EINVAL;
	return 0;
}

static int begin_transfer(struct blk_request *r, enum block_op op, uint64_t sector)
{
	bool write = op == BLOCK_WRITE;
	uint64_t bytes = write ? r->buffer.out_bytes - HEADER_BYTES : r->buffer.in_bytes - 1;
	int status = check_range(r->blk, sector, bytes, &r->ranges[0]);

	if (status < 0)
		return status;
	if (write && r->blk->limits.readonly)
		return -EROFS;
	r->op = op;
	r->range_count = bytes ? 1 : 0;
	return 0;
}

/* 5.2.6.2: unknown flags and unmap of a discard are not supported; sizes beyond the limits are errors. */
static int read_range(struct blk_request *r, enum block_op op, unsigned index)
{
	uint8_t bytes[RANGE_BYTES];

	virtq_read(&r->buffer, HEADER_BYTES + index * RANGE_BYTES, bytes, RANGE_BYTES);
	uint64_t sector = load_le64(bytes);
	uint32_t sectors = load_le32(bytes + 8);
	uint32_t flags = load_le32(bytes + 12);

	if (flags & ~(op == BLOCK_WRITE_ZEROES ? RANGE_FLAG_UNMAP : 0))
		return -EOPNOTSUPP;
	if (sectors > BLK_RANGE_SECTORS)
		return -EINVAL;
	int status = check_range(
		r->blk, sector, (uint64_t)sectors << BLK_SECTOR_SHIFT, &r->ranges[index]);
	r->ranges[index].unmap = flags & RANGE_FLAG_UNMAP;
	return status;
}

static int begin_ranges(struct blk_request *r, enum block_op op)
{
	const struct block_limits *limits = &r->blk->limits;
	uint64_t bytes = r->buffer.out_bytes - HEADER_BYTES;

	if (!(op == BLOCK_DISCARD ? limits->discard : limits->write_zeroes))
		return -EOPNOTSUPP;
	if (limits->readonly)
		return -EROFS;
	if (bytes % RANGE_BYTES || bytes > BLK_RANGES_MAX * RANGE_BYTES)
		return -EINVAL;
	r->op = op;
	for (unsigned i = 0; i < bytes / RANGE_BYTES; i++) {
		int status = read_range(r, op, i);

		if (status < 0)
			return status;
		r->range_count++;
	}
	return 0;
}

static int give_serial(struct blk_request *r)
{
	virtq_write(&r->buffer, 0, r->blk->serial,
		MIN(r->buffer.in_bytes - 1, (uint64_t)sizeof(r->blk->serial)));
	return 0;
}

int blk_request_read(struct blk_request *r)
{
	uint8_t header[HEADER_BYTES];
	int status;

	r->step = r->range_count = 0;
	r->flush = false;
	if (virtq_read(&r->buffer, 0, header, sizeof(header)) < sizeof(header))
		return -EINVAL;
	uint64_t sector = load_le64(header + 8);
	switch (load_le32(header)) {
	case TYPE_IN: status = begin_transfer(r, BLOCK_READ, sector); break;
	case TYPE_OUT: status = begin_transfer(r, BLOCK_WRITE, sector); break;
	case TYPE_DISCARD: status = begin_ranges(r, BLOCK_DISCARD); break;
	case TYPE_WRITE_ZEROES: status = begin_ranges(r, BLOCK_WRITE_ZEROES); break;
	case TYPE_FLUSH: r->flush = true; return 1;
	case TYPE_GET_ID: return give_serial(r);
	default: return -EOPNOTSUPP;
	}
	r->flush = r->op != BLOCK_READ && r->op != BLOCK_DISCARD && !r->blk->writeback &&
		   r->blk->limits.volatile_cache;
	return status < 0 ? status : 1;
}
