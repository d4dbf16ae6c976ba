/*
 * Unpacking kernels: LZ4 in its legacy frame (what `lz4 -l` writes: a magic number, then blocks of up to
 * 8 MiB, each behind its packed size), gzip, XZ and Zstandard, each by its Debian library. Kernels packed
 * with bzip2, LZMA or LZO unpack themselves.
 *
 * The input is hostile. Output goes into one buffer of max_bytes whose unused pages are never touched,
 * then is trimmed; the libraries' own memory is bounded too (XZ by a limit, Zstandard by a window).
 */
#include "boot/unpack.h"

#include <errno.h>
#include <lz4.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/cleanup.h"

#define LZ4_LEGACY_MAGIC     0x184c2102u
#define LZ4_LEGACY_BLOCK_MAX MIB(8)
#define XZ_MEMORY_MAX	     MIB(256) /* the kernel packs with a dictionary of 32 MiB */
#define ZSTD_WINDOW_LOG_MAX  27	      /* 128 MiB: what zstd -22 uses */

/* What a format's function fills. */
struct sink {
	uint8_t *bytes;
	uint64_t max_bytes;
	uint64_t size_bytes; /* the result */
};

/* A block size too large to be one is what follows the data: the kernel's build appends the size. */
static int unpack_lz4(const uint8_t *in, uint64_t left, struct sink *out)
{
	in += 4;
	left -= 4;
	while (left >= 4) {
		uint64_t packed = load_le32(in);
		uint64_t room = MIN(out->max_bytes - out->size_bytes, LZ4_LEGACY_BLOCK_MAX);
		int n;

		if (packed == LZ4_LEGACY_MAGIC) {
			packed = 0; /* another frame follows this one */
		} else if (!packed || packed > left - 4) {
			/* Only the 4 bytes of the size may be left over. */
			return left < 8 ? 0 : -EBADMSG;
		} else {
			n = LZ4_decompress_safe((const char *)in + 4,
				(char *)out->bytes + out->size_bytes, (int)packed, (int)room);
			if (n < 0)
				return room < LZ4_LEGACY_BLOCK_MAX ? -EFBIG : -EBADMSG;
			out->size_bytes += (uint64_t)n;
		}
		in += 4 + packed;
		left -= 4 + packed;
	}
	return 0;
}

static int unpack_gzip(const uint8_t *in, uint64_t left, struct sink *out)
{
	z_stream z = {.next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)left};
	int r;

	if (inflateInit2(&z, 16 + MAX_WBITS) != Z_OK)
		return -ENOMEM;
	z.next_out = out->bytes;
	z.avail_out = (uInt)out->max_bytes;
	r = inflate(&z, Z_FINISH);
	out->size_bytes = z.total_out;
	inflateEnd(&z);
	if (r == Z_STREAM_END)
		return 0;
	if (r == Z_MEM_ERROR)
		return -ENOMEM;
	return (r == Z_BUF_ERROR || r == Z_OK) && !z.avail_out ? -EFBIG : -EBADMSG;
}

static int unpack_xz(const uint8_t *in, uint64_t left, struct sink *out)
{
	lzma_stream xz = LZMA_STREAM_INIT;
	lzma_ret r;

	if (lzma_stream_decoder(&xz, XZ_MEMORY_MAX, 0) != LZMA_OK)
		return -ENOMEM;
	xz.next_in = in;
	xz.avail_in = left;
	xz.next_out = out->bytes;
	xz.avail_out = out->max_bytes;
	do {
		r = lzma_code(&xz, LZMA_RUN);
	} while (r == LZMA_OK && xz.avail_in && xz.avail_out);
	out->size_bytes = xz.total_out;
	lzma_end(&xz);
	if (r == LZMA_STREAM_END)
		return 0;
	if (r == LZMA_MEM_ERROR || r == LZMA_MEMLIMIT_ERROR)
		return -ENOMEM;
	return r == LZMA_OK && !xz.avail_out ? -EFBIG : -EBADMSG;
}

static int unpack_zstd(const uint8_t *in, uint64_t left, struct sink *out)
{
	ZSTD_DCtx *ctx = ZSTD_createDCtx();
	ZSTD_inBuffer from = {in, left, 0};
	ZSTD_outBuffer to = {out->bytes, out->max_bytes, 0};
	size_t r;

	if (!ctx)
		return -ENOMEM;
	ZSTD_DCtx_setParameter(ctx, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX);
	do {
		r = ZSTD_decompressStream(ctx, &to, &from);
	} while (r && !ZSTD_isError(r) && from.pos < from.size && to.pos < to.size);
	ZSTD_freeDCtx(ctx);
	out->size_bytes = to.pos;
	if (!r)
		return 0;
	return !ZSTD_isError(r) && to.pos == to.size ? -EFBIG : -EBADMSG;
}

static const struct unpack_format {
	const char *name;
	uint8_t magic[6];
	uint8_t magic_bytes;
	int (*unpack)(const uint8_t *in, uint64_t left, struct sink *out);
} unpack_formats[] = {
	{"LZ4", {0x02, 0x21, 0x4c, 0x18}, 4, unpack_lz4},
	{"gzip", {0x1f, 0x8b}, 2, unpack_gzip},
	{"XZ", {0xfd, '7', 'z', 'X', 'Z', 0}, 6, unpack_xz},
	{"Zstandard", {0x28, 0xb5, 0x2f, 0xfd}, 4, unpack_zstd},
};

static const struct unpack_format *unpack_find(const uint8_t *bytes, uint64_t size_bytes)
{
	for (unsigned i = 0; i < ARRAY_SIZE(unpack_formats); i++) {
		const struct unpack_format *format = &unpack_formats[i];

		if (size_bytes >= format->magic_bytes &&
			!memcmp(bytes, format->magic, format->magic_bytes))
			return format;
	}
	return NULL;
}

const char *boot_unpack_format(const uint8_t *bytes, uint64_t size_bytes)
{
	const struct unpack_format *format = unpack_find(bytes, size_bytes);

	return format ? format->name : NULL;
}

int boot_unpack(const uint8_t *bytes, uint64_t size_bytes, uint64_t max_bytes, uint8_t **ret_bytes,
	uint64_t *ret_size_bytes)
{
	const struct unpack_format *format = unpack_find(bytes, size_bytes);
	AUTO_FREE uint8_t *buffer = NULL;
	struct sink out;
	uint8_t *trimmed;
	int r;

	if (!format)
		return -EOPNOTSUPP;
	/* The libraries count in int or uInt. */
	if (size_bytes > INT32_MAX || !max_bytes || max_bytes > INT32_MAX)
		return -EFBIG;
	buffer = malloc(max_bytes);
	if (!buffer)
		return -ENOMEM;
	out = (struct sink){buffer, max_bytes, 0};
	r = format->unpack(bytes, size_bytes, &out);
	if (r < 0)
		return r;
	if (!out.size_bytes)
		return -EBADMSG;
	trimmed = realloc(buffer, out.size_bytes);
	*ret_bytes = trimmed ? trimmed : buffer;
	*ret_size_bytes = out.size_bytes;
	buffer = NULL;
	return 0;
}
