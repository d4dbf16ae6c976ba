/*
 * Compressed clusters of qcow2 images: raw deflate, or Zstandard. What was decompressed last is kept, since it is
 * read in small pieces. A compressed cluster is never changed; writing to it makes a plain one of it.
 */
#include "backend/disk/qcow2.h"
#include "backend/disk/image.h"

#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define DEFLATE_WINDOW_IN  (-15) /* raw; any window */
#define DEFLATE_WINDOW_OUT (-12) /* what QEMU reads */
#define ZSTD_WINDOW_MAX	   24	 /* bounds the memory that a hostile image can ask for */
#define ZSTD_LEVEL	   3

static int inflate_cluster(const uint8_t *in, uint64_t in_bytes, uint8_t *out, uint64_t out_bytes)
{
	z_stream z = {.next_in = (uint8_t *)(uintptr_t)in,
		.avail_in = (uInt)in_bytes,
		.next_out = out,
		.avail_out = (uInt)out_bytes};
	int r = inflateInit2(&z, DEFLATE_WINDOW_IN);

	if (r != Z_OK)
		return -ENOMEM;
	r = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	/* Z_BUF_ERROR: there was more than a cluster, or padding behind it. */
	return (r == Z_STREAM_END || r == Z_BUF_ERROR) && !z.avail_out ? 0 : -EIO;
}

static int unzstd_cluster(const uint8_t *in, uint64_t in_bytes, uint8_t *out, uint64_t out_bytes)
{
	ZSTD_inBuffer from = {.src = in, .size = in_bytes};
	ZSTD_outBuffer to = {.dst = out, .size = out_bytes};
	ZSTD_DCtx *context = ZSTD_createDCtx();
	int r = 0;

	if (!context)
		return -ENOMEM;
	if (ZSTD_isError(ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, ZSTD_WINDOW_MAX)))
		r = -EIO;
	while (r == 0 && to.pos < to.size) {
		size_t in_before = from.pos, out_before = to.pos;
		size_t left = ZSTD_decompressStream(context, &to, &from);

		if (ZSTD_isError(left) || (from.pos == in_before && to.pos == out_before))
			r = -EIO;
	}
	ZSTD_freeDCtx(context);
	return r;
}

/* The whole cluster, on the heap. */
static int unpack_cluster(struct qcow2 *q, uint64_t entry, uint8_t **ret_data)
{
	AUTO_FREE uint8_t *packed = NULL, *data = NULL;
	uint64_t offset, bytes;
	int r;

	qcow2_packed_place(q, entry, &offset, &bytes);
	packed = malloc(bytes);
	data = malloc(q->cluster_bytes);
	if (!packed || !data)
		return -ENOMEM;
	r = disk_file_read(q->file, packed, bytes, offset);
	if (r == 0)
		r = q->header.compression == QCOW2_ZSTD
			    ? unzstd_cluster(packed, bytes, data, q->cluster_bytes)
			    : inflate_cluster(packed, bytes, data, q->cluster_bytes);
	if (r == 0)
		*ret_data = take_ptr(&data);
	return r;
}

/* Keep it in place of what was not used for longest. */
static void keep_unpacked(struct qcow2 *q, uint64_t entry, uint8_t *data)
{
	struct qcow2_unpacked *oldest = &q->unpacked[0];
	AUTO_LOCK(&q->unpack_lock);

	for (unsigned i = 0; i < QCOW2_UNPACKED; i++) {
		if (q->unpacked[i].used < oldest->used)
			oldest = &q->unpacked[i];
	}
	free(oldest->data);
	*oldest = (struct qcow2_unpacked){entry, data, ++q->unpack_tick};
}

static bool find_unpacked(
	struct qcow2 *q, uint64_t entry, uint64_t from, struct iov_place *place, uint64_t bytes)
{
	AUTO_LOCK(&q->unpack_lock);

	for (unsigned i = 0; i < QCOW2_UNPACKED; i++) {
		struct qcow2_unpacked *kept = &q->unpacked[i];

		if (kept->entry != entry)
			continue;
		kept->used = ++q->unpack_tick;
		iov_from_buffer(place, kept->data + from, bytes);
		return true;
	}
	return false;
}

int qcow2_unpack(
	struct qcow2 *q, uint64_t entry, uint64_t from, struct iov_place *place, uint64_t bytes)
{
	uint8_t *data = NULL;
	int r;

	if (find_unpacked(q, entry, from, place, bytes))
		return 0;
	r = unpack_cluster(q, entry, &data);
	if (r < 0)
		return r;
	iov_from_buffer(place, data + from, bytes);
	keep_unpacked(q, entry, data);
	return 0;
}

void qcow2_unpack_forget(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
	AUTO_LOCK(&q->unpack_lock);

	for (unsigned i = 0; i < QCOW2_UNPACKED; i++) {
		uint64_t first, clusters;

		if (!q->unpacked[i].entry)
			continue;
		clusters = qcow2_entry_clusters(q, q->unpacked[i].entry, &first);
		if (first >= cluster + count || cluster >= first + clusters)
			continue;
		free(q->unpacked[i].data);
		q->unpacked[i] = (struct qcow2_unpacked){0};
	}
}

void qcow2_unpack_done(struct qcow2 *q)
{
	for (unsigned i = 0; i < QCOW2_UNPACKED; i++)
		free(q->unpacked[i].data);
}

/* Fewer bytes than a cluster, or 0: it does not get smaller. */
static uint64_t pack(const struct qcow2 *q, const uint8_t *in, uint8_t *out)
{
	z_stream z = {.next_in = (uint8_t *)(uintptr_t)in,
		.avail_in = (uInt)q->cluster_bytes,
		.next_out = out,
		.avail_out = (uInt)q->cluster_bytes - 1};
	int r;

	if (q->header.compression == QCOW2_ZSTD) {
		size_t bytes =
			ZSTD_compress(out, q->cluster_bytes - 1, in, q->cluster_bytes, ZSTD_LEVEL);

		return ZSTD_isError(bytes) ? 0 : bytes;
	}
	if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, DEFLATE_WINDOW_OUT, 9,
		    Z_DEFAULT_STRATEGY) != Z_OK)
		return 0;
	r = deflate(&z, Z_FINISH);
	deflateEnd(&z);
	return r == Z_STREAM_END ? z.total_out : 0;
}

/* Room for so many bytes, right behind the last compressed cluster if possible. Counts are raised. */
static int pack_room(struct qcow2 *q, uint64_t bytes, uint64_t *ret_offset)
{
	uint32_t bits = q->header.cluster_bits;
	uint64_t cluster, left = q->pack_end - q->pack_offset;
	int r = -ERANGE;

	/* Another user of the cluster that the last one ended in. */
	if (left)
		r = qcow2_refcount_add(q, q->pack_offset >> bits, 1, 1);
	if (r < 0 && r != -ERANGE)
		return r;
	if (r == 0 && left >= bytes) {
		*ret_offset = q->pack_offset;
		return 0;
	}
	if (r == 0) {
		int undo;

		r = qcow2_alloc(q, 1, &cluster);
		if (r == 0 && cluster << bits == q->pack_end) {
			q->pack_end += q->cluster_bytes;
			*ret_offset = q->pack_offset;
			return 0;
		}
		undo = qcow2_refcount_add(q, q->pack_offset >> bits, 1, -1);
		r = r < 0 ? r : undo;
	} else {
		r = qcow2_alloc(q, 1, &cluster);
	}
	if (r < 0)
		return r;
	q->pack_offset = cluster << bits;
	q->pack_end = q->pack_offset + q->cluster_bytes;
	*ret_offset = q->pack_offset;
	return 0;
}

static int write_packed(struct qcow2 *q, const uint8_t *packed, uint64_t bytes, uint64_t offset)
{
	uint32_t shift = 62 - (q->header.cluster_bits - 8);
	struct qcow2_table *table;
	uint64_t at, sectors;
	int r = qcow2_l2_for_write(q, offset, &table);

	if (r < 0)
		return r;
	if (qcow2_l2_entry(q, table, offset) & ~QCOW2_ZERO)
		return -EEXIST;
	r = pack_room(q, bytes, &at);
	if (r < 0)
		return r;
	r = at + bytes > BIT(MIN(shift, 56u)) ? -EFBIG
					      : disk_file_write(q->file, packed, bytes, at);
	if (r < 0) {
		uint64_t first = at >> q->header.cluster_bits;

		(void)!qcow2_refcount_add(
			q, first, ((at + bytes - 1) >> q->header.cluster_bits) - first + 1, -1);
		q->pack_offset = q->pack_end = 0;
		return r;
	}
	q->pack_offset = at + bytes;
	sectors = ((at + bytes - 1) >> 9) - (at >> 9);
	AUTO_LOCK(&q->lock);
	qcow2_l2_set(q, table, offset, QCOW2_COMPRESSED | sectors << shift | at);
	return 0;
}

int image_write_packed(struct disk *disk, const void *data, uint64_t offset)
{
	struct qcow2 *q = qcow2_of(disk);
	AUTO_FREE uint8_t *packed = malloc(q->cluster_bytes);
	uint64_t bytes;
	int r = -EEXIST;

	if (!packed)
		return -ENOMEM;
	bytes = pack(q, data, packed);
	if (bytes) {
		AUTO_LOCK(&q->meta);
		r = qcow2_touch(q);
		if (r == 0)
			r = write_packed(q, packed, bytes, offset);
	}
	if (r == -EEXIST) /* there is something already, or it gets no smaller */
		r = disk_write(
			disk, data, MIN(q->cluster_bytes, disk->size_bytes - offset), offset);
	return r;
}
