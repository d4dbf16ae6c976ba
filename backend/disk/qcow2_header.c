/*
 * The header of a qcow2 image: reading with every check that later code relies on, and writing.
 */
#include "backend/disk/qcow2_snapshot.h"

#include <stdio.h>
#include <string.h>

#define V2_BYTES       72u
#define V3_BYTES       104u
#define OWN_V3_BYTES   112u
#define EXT_END	       0u
#define EXT_BACKING    0xe2792acau
#define EXT_FEATURES   0x6803f857u
#define EXT_BITMAPS    0x23852875u
#define FEATURE_BYTES  48u
#define FEATURE_TYPE   0u  /* incompatible */
#define BACKING_FORMAT 32u /* longest name of a backing format */

static void header_decode(const uint8_t *b, struct qcow2_header *h)
{
	h->version = load_be32(b + 4);
	h->backing_offset = load_be64(b + 8);
	h->backing_bytes = load_be32(b + 16);
	h->cluster_bits = load_be32(b + 20);
	h->size_bytes = load_be64(b + 24);
	h->crypt = load_be32(b + 32);
	h->l1_entries = load_be32(b + 36);
	h->l1_offset = load_be64(b + 40);
	h->reftable_offset = load_be64(b + 48);
	h->reftable_clusters = load_be32(b + 56);
	h->snapshots = load_be32(b + 60);
	h->snapshots_offset = load_be64(b + 64);
	h->refcount_order = 4;
	h->header_bytes = V2_BYTES;
	if (h->version < 3)
		return;
	h->incompatible = load_be64(b + 72);
	h->compatible = load_be64(b + 80);
	h->autoclear = load_be64(b + 88);
	h->refcount_order = load_be32(b + 96);
	h->header_bytes = load_be32(b + 100);
	if (h->header_bytes > V3_BYTES)
		h->compression = b[104];
}

void qcow2_header_encode(const struct qcow2_header *h, uint8_t *b)
{
	store_be32(b, QCOW2_MAGIC);
	store_be32(b + 4, h->version);
	store_be64(b + 8, h->backing_offset);
	store_be32(b + 16, h->backing_bytes);
	store_be32(b + 20, h->cluster_bits);
	store_be64(b + 24, h->size_bytes);
	store_be32(b + 32, h->crypt);
	store_be32(b + 36, h->l1_entries);
	store_be64(b + 40, h->l1_offset);
	store_be64(b + 48, h->reftable_offset);
	store_be32(b + 56, h->reftable_clusters);
	store_be32(b + 60, h->snapshots);
	store_be64(b + 64, h->snapshots_offset);
	if (h->version < 3)
		return;
	store_be64(b + 72, h->incompatible);
	store_be64(b + 80, h->compatible);
	store_be64(b + 88, h->autoclear);
	store_be32(b + 96, h->refcount_order);
	store_be32(b + 100, h->header_bytes);
	if (h->header_bytes > V3_BYTES)
		b[104] = h->compression;
}

int qcow2_header_write(struct qcow2 *q)
{
	uint8_t bytes[OWN_V3_BYTES] = {0};

	qcow2_header_encode(&q->header, bytes);
	return disk_file_write(q->file, bytes,
		q->header.version < 3		    ? V2_BYTES
		: q->header.header_bytes > V3_BYTES ? V3_BYTES + 1
						    : V3_BYTES,
		0);
}

/* The next extension at *at in the first `bytes` bytes. 0: there is none left; -EINVAL: it does not fit. */
static int extension_next(
	const uint8_t *head, uint64_t bytes, uint64_t *at, uint32_t *ret_type, uint32_t *ret_bytes)
{
	uint64_t start = *at, length;

	if (start > bytes || bytes - start < 8)
		return 0;
	*ret_type = load_be32(head + start);
	*ret_bytes = load_be32(head + start + 4);
	if (*ret_type == EXT_END)
		return 0;
	length = ALIGN_UP((uint64_t)*ret_bytes, 8);
	if (*ret_bytes > bytes - start - 8)
		return -EINVAL;
	*at = start + 8 + length;
	return 1;
}

/* Where extensions can be: from the header's end to the backing file's name, or the end of the cluster. */
static uint64_t extensions_end(const struct qcow2 *q)
{
	const struct qcow2_header *h = &q->header;

	return h->backing_offset ? MIN(h->backing_offset, q->cluster_bytes) : q->cluster_bytes;
}

/* What the image itself calls this incompatible feature. */
static void feature_name(const uint8_t *table, uint32_t bytes, unsigned bit, char *name)
{
	static const char *const known[] = {"dirty", "corrupt", "external data file",
		"compression type", "extended L2 entries"};

	for (uint32_t at = 0; table && at + FEATURE_BYTES <= bytes; at += FEATURE_BYTES) {
		if (table[at] != FEATURE_TYPE || table[at + 1] != bit)
			continue;
		memcpy(name, table + at + 2, FEATURE_BYTES - 2);
		name[FEATURE_BYTES - 2] = '\0';
		return;
	}
	if (bit < ARRAY_SIZE(known))
		snprintf(name, FEATURE_BYTES, "%s", known[bit]);
	else
		snprintf(name, FEATURE_BYTES, "bit %u", bit);
}

static int check_features(
	struct qcow2 *q, const uint8_t *names, uint32_t names_bytes, struct error *err)
{
	uint64_t unknown = q->header.incompatible & ~(uint64_t)QCOW2_KNOWN;
	char name[FEATURE_BYTES], list[512] = "";

	for (unsigned bit = 0; bit < 64; bit++) {
		size_t used = strlen(list);

		if (!(unknown & BIT(bit)))
			continue;
		feature_name(names, names_bytes, bit, name);
		snprintf(list + used, sizeof(list) - used, "%s'%s'", used ? ", " : "", name);
	}
	if (unknown)
		return error_set(err, ENOTSUP,
			"%s uses a qcow2 feature that is not supported here: %s", q->file->name,
			list);
	return 0;
}

static int read_extensions(struct qcow2 *q, const uint8_t *head, struct error *err)
{
	uint64_t at = q->header.header_bytes, end = extensions_end(q);
	const uint8_t *names = NULL;
	uint32_t type, bytes, names_bytes = 0;
	uint64_t start = at;
	int r;

	while ((r = extension_next(head, end, &at, &type, &bytes)) > 0) {
		const uint8_t *data = head + start + 8;

		if (type == EXT_BACKING && bytes && bytes <= BACKING_FORMAT &&
			!q->disk->backing_format) {
			q->disk->backing_format = strndup((const char *)data, bytes);
			if (!q->disk->backing_format)
				return error_set(err, ENOMEM, "out of memory");
		}
		if (type == EXT_FEATURES) {
			names = data;
			names_bytes = bytes;
		}
		start = at;
	}
	if (r < 0)
		return error_set(err, EINVAL,
			"%s: a qcow2 header extension is longer than the header's cluster",
			q->file->name);
	return check_features(q, names, names_bytes, err);
}

bool qcow2_header_bitmaps(struct qcow2 *q)
{
	AUTO_FREE uint8_t *head = malloc(q->cluster_bytes);
	uint64_t at = q->header.header_bytes;
	uint32_t type, bytes;

	if (!head || disk_file_read(q->file, head, q->cluster_bytes, 0) < 0)
		return true; /* nobody knows */
	while (extension_next(head, extensions_end(q), &at, &type, &bytes) > 0) {
		if (type == EXT_BITMAPS)
			return true;
	}
	return false;
}

static int read_backing_name(struct qcow2 *q, const uint8_t *head, struct error *err)
{
	const struct qcow2_header *h = &q->header;

	if (!h->backing_offset || !h->backing_bytes)
		return 0;
	if (h->backing_bytes > QCOW2_NAME_MAX || h->backing_offset > q->cluster_bytes ||
		h->backing_bytes > q->cluster_bytes - h->backing_offset)
		return error_set(err, EINVAL, "%s: the name of the backing file is out of bounds",
			q->file->name);
	q->disk->backing_name = strndup((const char *)head + h->backing_offset, h->backing_bytes);
	return q->disk->backing_name ? 0 : error_set(err, ENOMEM, "out of memory");
}

uint64_t qcow2_l1_entries_for(const struct qcow2 *q, uint64_t size_bytes)
{
	uint32_t shift = qcow2_l1_shift(q);

	return (size_bytes >> shift) + !!(size_bytes & (BIT(shift) - 1));
}

/* Is there a table of so many bytes at offset, behind the header and inside the file? */
static bool table_fits(const struct qcow2 *q, uint64_t offset, uint64_t bytes, uint64_t file_bytes)
{
	uint64_t end = ALIGN_UP(file_bytes, q->cluster_bytes);

	return IS_ALIGNED(offset, q->cluster_bytes) && offset >= q->cluster_bytes &&
	       offset <= end && bytes <= end - offset;
}

static int check_shape(struct qcow2 *q, struct error *err)
{
	const struct qcow2_header *h = &q->header;
	const char *name = q->file->name;

	if (h->version != 2 && h->version != 3)
		return error_set(
			err, ENOTSUP, "%s: qcow2 version %u is not supported", name, h->version);
	if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		return error_set(err, EINVAL, "%s: qcow2 cluster size 2^%u is out of range", name,
			h->cluster_bits);
	if (h->version == 3 && (h->header_bytes < V3_BYTES || h->header_bytes % 8 ||
				       h->header_bytes > BIT(h->cluster_bits)))
		return error_set(
			err, EINVAL, "%s: qcow2 header length %u is wrong", name, h->header_bytes);
	if (h->crypt)
		return error_set(err, ENOTSUP, "%s is encrypted, which is not supported", name);
	if (h->refcount_order > 6)
		return error_set(err, EINVAL, "%s: qcow2 reference count width 2^%u is wrong", name,
			h->refcount_order);
	return 0;
}

static int check_compression(struct qcow2 *q, struct error *err)
{
	const struct qcow2_header *h = &q->header;
	bool other = h->incompatible & QCOW2_COMPRESSION;

	if (h->compression > QCOW2_ZSTD)
		return error_set(err, ENOTSUP, "%s: qcow2 compression type %u is not supported",
			q->file->name, h->compression);
	if (other != (h->compression != QCOW2_DEFLATE))
		return error_set(err, EINVAL,
			"%s: the qcow2 compression type and its feature bit contradict",
			q->file->name);
	return 0;
}

static int check_tables(struct qcow2 *q, struct error *err)
{
	const struct qcow2_header *h = &q->header;
	const char *name = q->file->name;
	uint64_t file_bytes;
	int r = q->file->ops->size(q->file, &file_bytes);

	if (r < 0)
		return error_set_errno(err, -r, "can't find the size of %s", name);
	if (file_bytes > INT64_MAX - MIB(4))
		return error_set(err, EFBIG, "%s is too large", name);
	if (h->size_bytes > INT64_MAX - MIB(4))
		return error_set(err, EFBIG, "%s: the disk is too large", name);
	if (h->l1_entries > QCOW2_L1_BYTES_MAX / 8)
		return error_set(err, EFBIG, "%s: the L1 table is too large", name);
	if (qcow2_l1_entries_for(q, h->size_bytes) > h->l1_entries)
		return error_set(err, EINVAL, "%s: the L1 table is too small for the disk", name);
	if (h->l1_entries && !table_fits(q, h->l1_offset, h->l1_entries * 8ull, file_bytes))
		return error_set(err, EINVAL, "%s: the L1 table is not inside the file", name);
	if (!h->reftable_clusters || h->reftable_clusters > QCOW2_REFTABLE_MAX >> h->cluster_bits)
		return error_set(err, EFBIG,
			"%s: the size of the reference count table is out of range", name);
	if (!table_fits(q, h->reftable_offset, (uint64_t)h->reftable_clusters << h->cluster_bits,
		    file_bytes))
		return error_set(
			err, EINVAL, "%s: the reference count table is not inside the file", name);
	if (h->snapshots > QCOW2_SNAPSHOTS_MAX)
		return error_set(err, EFBIG, "%s: too many snapshots", name);
	if (h->snapshots && !table_fits(q, h->snapshots_offset, 0, file_bytes))
		return error_set(
			err, EINVAL, "%s: the snapshot table is not inside the file", name);
	return 0;
}

int qcow2_header_read(struct qcow2 *q, struct error *err)
{
	uint8_t fields[OWN_V3_BYTES];
	AUTO_FREE uint8_t *head = NULL;
	int r = disk_file_read(q->file, fields, sizeof(fields), 0);

	if (r < 0)
		return error_set_errno(err, -r, "can't read %s", q->file->name);
	if (load_be32(fields) != QCOW2_MAGIC)
		return error_set(err, EINVAL, "%s is not a qcow2 image", q->file->name);
	header_decode(fields, &q->header);
	r = check_shape(q, err);
	if (r < 0)
		return r;
	q->cluster_bytes = BIT(q->header.cluster_bits);
	head = malloc(q->cluster_bytes);
	if (!head)
		return error_set(err, ENOMEM, "out of memory");
	r = disk_file_read(q->file, head, q->cluster_bytes, 0);
	if (r < 0)
		return error_set_errno(err, -r, "can't read %s", q->file->name);
	r = read_extensions(q, head, err);
	if (r == 0)
		r = read_backing_name(q, head, err);
	if (r == 0)
		r = check_compression(q, err);
	if (r < 0)
		return r;
	if (q->header.incompatible & QCOW2_EXTENDED && q->header.cluster_bits < 14)
		return error_set(err, EINVAL, "%s: clusters are too small for extended L2 entries",
			q->file->name);
	q->entry_bytes = q->header.incompatible & QCOW2_EXTENDED ? 16 : 8;
	q->unit_bits = q->header.cluster_bits - (q->entry_bytes == 16 ? 5 : 0);
	q->l2_bits = q->header.cluster_bits - (q->entry_bytes == 16 ? 4 : 3);
	q->refblock_bits = q->header.cluster_bits + 3 - q->header.refcount_order;
	return check_tables(q, err);
}

/* A header being put together: what does not fit is noticed at the end. */
struct writer {
	uint8_t *bytes;
	uint64_t at, room;
	bool full;
};

static void put(struct writer *w, const void *data, uint64_t bytes)
{
	if (w->full || bytes > w->room - w->at) {
		w->full = true;
		return;
	}
	memcpy(w->bytes + w->at, data, bytes);
	w->at += bytes;
}

static void put_extension(struct writer *w, uint32_t type, const void *data, uint32_t bytes)
{
	static const uint8_t zeros[8];
	uint8_t head[8];

	store_be32(head, type);
	store_be32(head + 4, bytes);
	put(w, head, sizeof(head));
	put(w, data, bytes);
	put(w, zeros, -bytes & 7);
}

/* Extensions of the old header that are not ours are kept as they are. */
static int keep_extensions(struct qcow2 *q, struct writer *w, const uint8_t *old)
{
	uint64_t at = q->header.header_bytes, start = at;
	uint32_t type, bytes;
	int r;

	if (load_be32(old) != QCOW2_MAGIC)
		return 0;
	while ((r = extension_next(old, extensions_end(q), &at, &type, &bytes)) > 0) {
		if (type != EXT_BACKING)
			put_extension(w, type, old + start + 8, bytes);
		start = at;
	}
	return r;
}

int qcow2_header_rewrite(struct qcow2 *q, struct error *err)
{
	const struct disk *disk = q->disk;
	AUTO_FREE uint8_t *old = malloc(q->cluster_bytes), *bytes = calloc(1, q->cluster_bytes);
	struct writer w = {bytes, q->header.header_bytes, q->cluster_bytes, false};
	struct qcow2_header header = q->header;
	int r;

	if (!old || !bytes)
		return error_set(err, ENOMEM, "out of memory");
	r = disk_file_read(q->file, old, q->cluster_bytes, 0);
	if (r < 0)
		return error_set_errno(err, -r, "can't read %s", q->file->name);
	if (load_be32(old) == QCOW2_MAGIC) /* fields that came after our time */
		memcpy(bytes, old, q->header.header_bytes);
	if (disk->backing_name && disk->backing_format)
		put_extension(&w, EXT_BACKING, disk->backing_format,
			(uint32_t)strlen(disk->backing_format));
	if (keep_extensions(q, &w, old) < 0)
		return error_set(err, EINVAL, "%s: its header is damaged", q->file->name);
	put_extension(&w, EXT_END, "", 0);
	header.backing_offset = disk->backing_name ? w.at : 0;
	header.backing_bytes = disk->backing_name ? (uint32_t)strlen(disk->backing_name) : 0;
	if (disk->backing_name)
		put(&w, disk->backing_name, header.backing_bytes);
	if (w.full || header.backing_bytes > QCOW2_NAME_MAX)
		return error_set(err, ENAMETOOLONG,
			"the name of the backing file does not fit into the header of %s",
			q->file->name);
	qcow2_header_encode(&header, bytes);
	r = disk_file_write(q->file, bytes, q->cluster_bytes, 0);
	if (r < 0)
		return error_set_errno(err, -r, "can't write the header of %s", q->file->name);
	q->header = header;
	return 0;
}
