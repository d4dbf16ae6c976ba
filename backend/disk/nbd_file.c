/*
 * An NBD export as a file: see nbd.h. Calls are cut into what the server takes, and made of whole sectors of its.
 *
 * Left out on purpose: growing. What lies beyond the export's end reads as zeros and has no room.
 */
#include "backend/disk/nbd_private.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BOUNCE_BYTES MIB(2)

bool nbd_file_is_uri(const char *path)
{
	static const char *const schemes[] = {"nbd://", "nbd+unix://", "nbds://", "nbds+unix://"};

	for (size_t i = 0; i < ARRAY_SIZE(schemes); i++)
		if (strncmp(path, schemes[i], strlen(schemes[i])) == 0)
			return true;
	return false;
}

static struct nbd_file *nbd_of(struct disk_file *file)
{
	return container_of(file, struct nbd_file, file);
}

static int flush_file(struct disk_file *file)
{
	struct nbd_file *nbd = nbd_of(file);

	return nbd->can_flush ? nbd_perform(nbd, OP_FLUSH, NULL, 0, 0) : 0;
}

/* Before a change: a server that does not flush gets no more of them. */
static int bound_journal(struct nbd_file *nbd, enum op_kind kind)
{
	return nbd_is_change(kind) && nbd->journal_bytes > NBD_JOURNAL_BYTES ? flush_file(&nbd->file) : 0;
}

/* In pieces that the server takes; all aligned if the whole is. */
static int perform_all(
	struct nbd_file *nbd, enum op_kind kind, char *bytes, uint64_t offset, uint64_t size_bytes)
{
	const uint64_t most = ALIGN_DOWN((uint64_t)nbd->max_bytes, (uint64_t)nbd->min_bytes);

	while (size_bytes) {
		uint64_t length = MIN(size_bytes, most);
		int status = bound_journal(nbd, kind);

		if (status == 0)
			status = nbd_perform(nbd, kind, bytes, offset, length);
		if (status < 0)
			return status;
		bytes = bytes ? bytes + length : NULL;
		offset += length;
		size_bytes -= length;
	}
	return 0;
}

/* One buffer at the server's granularity. */
static int read_row(struct nbd_file *nbd, char *bytes, uint64_t offset, uint64_t size_bytes)
{
	const uint64_t start = ALIGN_DOWN(offset, (uint64_t)nbd->min_bytes);
	const uint64_t end = ALIGN_UP(offset + size_bytes, (uint64_t)nbd->min_bytes);

	if (end - start == size_bytes)
		return perform_all(nbd, OP_READ, bytes, offset, size_bytes);
	AUTO_FREE char *whole = malloc(end - start);
	if (!whole)
		return -ENOMEM;
	int status = perform_all(nbd, OP_READ, whole, start, end - start);
	if (status == 0)
		memcpy(bytes, whole + (offset - start), size_bytes);
	return status;
}

/* Whole sectors are read, changed and written, while nobody else writes. */
static int write_part_sectors(
	struct nbd_file *nbd, const char *bytes, uint64_t offset, uint64_t size_bytes)
{
	const uint64_t start = ALIGN_DOWN(offset, (uint64_t)nbd->min_bytes);
	const uint64_t end = ALIGN_UP(offset + size_bytes, (uint64_t)nbd->min_bytes);
	AUTO_FREE char *whole = malloc(end - start);

	if (!whole)
		return -ENOMEM;
	pthread_rwlock_wrlock(&nbd->sectors);
	int status = perform_all(nbd, OP_READ, whole, start, end - start);
	if (status == 0) {
		memcpy(whole + (offset - start), bytes, size_bytes);
		status = perform_all(nbd, OP_WRITE, whole, start, end - start);
	}
	pthread_rwlock_unlock(&nbd->sectors);
	return status;
}

static int write_row(struct nbd_file *nbd, char *bytes, uint64_t offset, uint64_t size_bytes)
{
	int status;

	if (!IS_ALIGNED(offset | size_bytes, (uint64_t)nbd->min_bytes))
		return write_part_sectors(nbd, bytes, offset, size_bytes);
	pthread_rwlock_rdlock(&nbd->sectors);
	status = perform_all(nbd, OP_WRITE, bytes, offset, size_bytes);
	pthread_rwlock_unlock(&nbd->sectors);
	return status;
}

/* How many whole buffers from here on go into one bounce buffer; at least one. */
static unsigned gather(const struct iovec *iov, unsigned count, uint64_t *ret_bytes)
{
	unsigned n = 1;

	for (*ret_bytes = iov[0].iov_len; n < count && *ret_bytes + iov[n].iov_len <= BOUNCE_BYTES;
		n++)
		*ret_bytes += iov[n].iov_len;
	return n;
}

static void copy_iov(const struct iovec *iov, unsigned count, char *row, bool to_row)
{
	for (unsigned i = 0; i < count; row += iov[i++].iov_len)
		if (to_row)
			memcpy(row, iov[i].iov_base, iov[i].iov_len);
		else
			memcpy(iov[i].iov_base, row, iov[i].iov_len);
}

static int transfer_rows(struct nbd_file *nbd, const struct iovec *iov, unsigned count,
	uint64_t offset,
	int (*row)(struct nbd_file *nbd, char *bytes, uint64_t offset, uint64_t size))
{
	while (count) {
		uint64_t bytes;
		unsigned n = gather(iov, count, &bytes);
		AUTO_FREE char *bounce = n > 1 ? malloc(bytes) : NULL;
		int status;

		if (n > 1 && !bounce)
			return -ENOMEM;
		if (bounce && row == write_row)
			copy_iov(iov, n, bounce, true);
		status = row(nbd, bounce ? bounce : iov->iov_base, offset, bytes);
		if (status < 0)
			return status;
		if (bounce && row == read_row)
			copy_iov(iov, n, bounce, false);
		iov += n;
		count -= n;
		offset += bytes;
	}
	return 0;
}

static uint64_t iov_bytes(const struct iovec *iov, unsigned count)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < count; i++)
		bytes += iov[i].iov_len;
	return bytes;
}

/* What lies beyond the export's end reads as zeros. */
static int nbd_readv(
	struct disk_file *file, const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct nbd_file *nbd = nbd_of(file);

	for (unsigned i = 0; i < count; i++) {
		const uint64_t left = nbd->size_bytes - MIN(offset, nbd->size_bytes);
		const uint64_t length = MIN((uint64_t)iov[i].iov_len, left);

		if (length == iov[i].iov_len && iov_bytes(iov + i, count - i) <= left)
			return transfer_rows(nbd, iov + i, count - i, offset, read_row);
		int status = length ? read_row(nbd, iov[i].iov_base, offset, length) : 0;
		if (status < 0)
			return status;
		memset((char *)iov[i].iov_base + length, 0, iov[i].iov_len - length);
		offset += iov[i].iov_len;
	}
	return 0;
}

static int check_change(const struct nbd_file *nbd, uint64_t offset, uint64_t bytes)
{
	if (nbd->file.readonly)
		return -EROFS;
	return offset > nbd->size_bytes || bytes > nbd->size_bytes - offset ? -ENOSPC : 0;
}

static int nbd_writev(
	struct disk_file *file, const struct iovec *iov, unsigned count, uint64_t offset)
{
	struct nbd_file *nbd = nbd_of(file);
	int status = check_change(nbd, offset, iov_bytes(iov, count));

	return status < 0 ? status : transfer_rows(nbd, iov, count, offset, write_row);
}

static int zero_range(struct nbd_file *nbd, enum op_kind kind, uint64_t offset, uint64_t bytes)
{
	int status = check_change(nbd, offset, bytes);

	if (status < 0)
		return status;
	if (!nbd->can_zero || !IS_ALIGNED(offset | bytes, (uint64_t)nbd->min_bytes))
		return kind == OP_ZERO ? disk_file_write_zeros(&nbd->file, offset, bytes)
				       : -EOPNOTSUPP;
	pthread_rwlock_rdlock(&nbd->sectors);
	status = perform_all(nbd, kind, NULL, offset, bytes);
	pthread_rwlock_unlock(&nbd->sectors);
	return status;
}

static int nbd_punch(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	return zero_range(nbd_of(file), OP_PUNCH, offset, bytes);
}

static int nbd_zero_file(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	return zero_range(nbd_of(file), OP_ZERO, offset, bytes);
}

static int nbd_discard(struct disk_file *file, uint64_t offset, uint64_t bytes)
{
	struct nbd_file *nbd = nbd_of(file);
	const uint64_t start = ALIGN_UP(offset, (uint64_t)nbd->min_bytes);
	const uint64_t end = ALIGN_DOWN(offset + bytes, (uint64_t)nbd->min_bytes);
	int status = check_change(nbd, offset, bytes);

	if (status < 0 || !nbd->can_trim || start >= end)
		return status;
	return perform_all(nbd, OP_TRIM, NULL, start, end - start);
}

static int nbd_size(struct disk_file *file, uint64_t *ret_bytes)
{
	*ret_bytes = nbd_of(file)->size_bytes;
	return 0;
}

static int nbd_truncate(struct disk_file *file, uint64_t bytes)
{
	return -EOPNOTSUPP;
}

static int nbd_extent(
	struct disk_file *file, uint64_t offset, uint64_t bytes, uint64_t *ret_run, bool *ret_data)
{
	*ret_run = bytes;
	*ret_data = true;
	return 0;
}

/* ---- life ---- */

static void close_file(struct disk_file *file)
{
	struct nbd_file *nbd = nbd_of(file);

	nbd_connection_close(nbd);
	pthread_rwlock_destroy(&nbd->sectors);
	free(nbd->file.name);
	free(nbd);
}

static const struct disk_file_ops nbd_ops = {
	.readv = nbd_readv,
	.writev = nbd_writev,
	.flush = flush_file,
	.punch = nbd_punch,
	.zero = nbd_zero_file,
	.discard = nbd_discard,
	.size = nbd_size,
	.truncate = nbd_truncate,
	.extent = nbd_extent,
	.close = close_file,
};

int nbd_file_open(const char *uri, const struct nbd_file_options *options,
	struct disk_file **ret_file, struct error *err)
{
	AUTO_FREE char *name = strdup(uri);
	AUTO_FREE struct nbd_file *nbd = calloc(1, sizeof(*nbd));

	if (!nbd || !name)
		return error_set_errno(err, ENOMEM, "can't open %s", uri);
	nbd->file = (struct disk_file){
		.ops = &nbd_ops, .fd = -1, .direct_fd = -1, .align_bytes = 1, .name = name};
	nbd->timeout_ns = options->timeout_ns ? options->timeout_ns : NBD_TIMEOUT_NS;
	int status = nbd_connection_open(nbd, err);
	if (status < 0)
		return status;
	pthread_rwlock_init(&nbd->sectors, NULL);
	nbd->file.name = take_ptr(&name);
	nbd->file.readonly = options->readonly || nbd->readonly;
	nbd->file.can_punch = nbd->can_zero;
	struct nbd_file *opened = take_ptr(&nbd);
	if (opened->readonly && !options->readonly) {
		close_file(&opened->file);
		return error_set(err, EROFS, "%s is read-only at its server: say readonly", uri);
	}
	*ret_file = &opened->file;
	return 0;
}
