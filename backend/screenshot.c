/*
 * Screenshots: see the header.
 */
#include "backend/screenshot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

static bool put_chunk(FILE *file, const char *type, const uint8_t *bytes, uint32_t count)
{
	uint8_t number[4];
	uLong crc = crc32(crc32(0, NULL, 0), (const uint8_t *)type, 4);

	store_be32(number, count);
	if (fwrite(number, 4, 1, file) != 1 || fwrite(type, 4, 1, file) != 1)
		return false;
	if (count && fwrite(bytes, count, 1, file) != 1)
		return false;
	store_be32(number, (uint32_t)(count ? crc32(crc, bytes, count) : crc));
	return fwrite(number, 4, 1, file) == 1;
}

/* Lines of red, green, blue, each behind a byte that says: no filter. */
static uint8_t *lines_of(const struct picture *picture, uLong *ret_count)
{
	const uLong line = 1 + 3ul * picture->width;
	uint8_t *bytes = malloc(line * picture->height), *to = bytes;

	for (unsigned y = 0; bytes && y < picture->height; y++) {
		*to++ = 0;
		for (unsigned x = 0; x < picture->width; x++) {
			const uint32_t pixel = picture->pixels[(uint64_t)y * picture->width + x];

			*to++ = (uint8_t)(pixel >> 16);
			*to++ = (uint8_t)(pixel >> 8);
			*to++ = (uint8_t)pixel;
		}
	}
	*ret_count = line * picture->height;
	return bytes;
}

static bool put_picture(FILE *file, const struct picture *picture)
{
	uint8_t header[13] = {[8] = 8, [9] = 2}; /* 8 bits of each of three colours */
	uLong count, packed_count;
	AUTO_FREE uint8_t *lines = lines_of(picture, &count);

	packed_count = compressBound(count);
	AUTO_FREE uint8_t *packed = lines ? malloc(packed_count) : NULL;
	if (!packed || compress2(packed, &packed_count, lines, count, 6) != Z_OK)
		return false;
	store_be32(header, picture->width);
	store_be32(header + 4, picture->height);
	return fwrite("\x89PNG\r\n\x1a\n", 8, 1, file) == 1 && put_chunk(file, "IHDR", header, sizeof(header)) &&
	       put_chunk(file, "IDAT", packed, (uint32_t)packed_count) && put_chunk(file, "IEND", NULL, 0);
}

bool screenshot_put(FILE *file, const struct display *display)
{
	struct picture picture = {0};
	const bool ok = display->draw(display->opaque, &picture) && put_picture(file, &picture) && fflush(file) == 0;

	picture_done(&picture);
	return ok;
}

int screenshot_write(const char *path, const struct display *display, struct error *err)
{
	AUTO_FCLOSE FILE *file = fopen(path, "wbe");

	if (!file)
		return error_set_errno(err, errno, "can't write the screenshot %s", path);
	return screenshot_put(file, display) ? 0 : error_set(err, EIO, "the screenshot %s could not be written", path);
}
