/*
 * Pixels on their way to a VNC client: formats, Raw and ZRLE (RFC 6143, 7.4, 7.7.1, 7.7.6).
 *
 * Of ZRLE's kinds of tiles: solid, packed palette of up to 16 colours, raw. Run-length ones are left out: zlib does most
 * of what they would.
 */
#include "backend/vnc_private.h"

#include "base/bytes.h"
#include "base/util.h"

#include <stdlib.h>
#include <string.h>

#define PALETTE_MAX 16u
#define GROW_BYTES  65536u

const struct vnc_format vnc_format_own = {.bits = 32, .max = {255, 255, 255}, .shift = {16, 8, 0}};

/* ---- output ---- */

static uint8_t *reserve(struct vnc_output *output, size_t count)
{
	if (output->failed)
		return NULL;
	if (count > output->room - output->count) {
		const size_t room = output->count + count + GROW_BYTES;
		uint8_t *bytes = realloc(output->bytes, room);

		output->failed = !bytes;
		if (!bytes)
			return NULL;
		output->bytes = bytes;
		output->room = room;
	}
	return output->bytes + output->count;
}

void vnc_put(struct vnc_output *output, const void *bytes, size_t count)
{
	uint8_t *to = reserve(output, count);

	if (!to)
		return;
	memcpy(to, bytes, count);
	output->count += count;
}

void vnc_put8(struct vnc_output *output, uint8_t value)
{
	vnc_put(output, &value, 1);
}

void vnc_put16(struct vnc_output *output, uint16_t value)
{
	value = htobe16(value);
	vnc_put(output, &value, 2);
}

void vnc_put32(struct vnc_output *output, uint32_t value)
{
	value = htobe32(value);
	vnc_put(output, &value, 4);
}

/* ---- formats ---- */

void vnc_format_put(struct vnc_output *output, const struct vnc_format *format)
{
	vnc_put8(output, format->bits);
	vnc_put8(output, format->bits == 32 ? 24 : format->bits);
	vnc_put8(output, format->big_endian);
	vnc_put8(output, 1);
	for (unsigned i = 0; i < 3; i++)
		vnc_put16(output, format->max[i]);
	vnc_put(output, format->shift, 3);
	vnc_put(output, "\0\0\0", 3);
}

bool vnc_format_parse(struct vnc_format *format, const uint8_t bytes[16])
{
	format->bits = bytes[0];
	format->big_endian = bytes[2];
	for (unsigned i = 0; i < 3; i++) {
		format->max[i] = load_be16(bytes + 4 + 2 * i);
		format->shift[i] = bytes[10 + i];
		if (format->shift[i] >= bytes[0])
			return false;
	}
	return bytes[3] && (bytes[0] == 8 || bytes[0] == 16 || bytes[0] == 32);
}

static uint32_t convert(const struct vnc_format *format, uint32_t pixel)
{
	uint32_t value = 0;

	for (unsigned i = 0; i < 3; i++) {
		const uint32_t c = pixel >> (16 - 8 * i) & 0xff;

		value |= (c * format->max[i] + 127) / 255 << format->shift[i];
	}
	return value;
}

static void store_pixel(const struct vnc_format *format, uint32_t pixel, uint8_t to[4])
{
	const uint32_t value = convert(format, pixel);

	if (format->bits == 8)
		to[0] = (uint8_t)value;
	else if (format->bits == 16)
		format->big_endian ? store_be16(to, (uint16_t)value) : store_le16(to, (uint16_t)value);
	else
		format->big_endian ? store_be32(to, value) : store_le32(to, value);
}

static uint32_t pixel_at(const struct picture *picture, const struct vnc_tile *tile, unsigned x, unsigned y)
{
	return picture->pixels[(uint64_t)(tile->y + y) * picture->width + tile->x + x];
}

void vnc_encode_raw(struct vnc_output *output, const struct vnc_format *format, const struct picture *picture,
	const struct vnc_tile *tile)
{
	const unsigned size = format->bits / 8;
	uint8_t *to = reserve(output, (size_t)tile->width * tile->height * size);

	for (unsigned y = 0; to && y < tile->height; y++) {
		for (unsigned x = 0; x < tile->width; x++) {
			uint8_t pixel[4];

			store_pixel(format, pixel_at(picture, tile, x, y), pixel);
			memcpy(to, pixel, size);
			to += size;
		}
	}
	if (to)
		output->count += (size_t)tile->width * tile->height * size;
}

/* ---- ZRLE ---- */

/* A CPIXEL leaves out the byte that holds no colour (7.7.5). Returns its bytes. */
static unsigned store_cpixel(const struct vnc_format *format, uint32_t pixel, uint8_t to[4])
{
	uint32_t mask = 0;

	store_pixel(format, pixel, to);
	if (format->bits != 32)
		return format->bits / 8;
	for (unsigned i = 0; i < 3; i++)
		mask |= (uint32_t)format->max[i] << format->shift[i];
	if (mask & 0xff000000 && mask & 0xff)
		return 4;
	/* The colour is in the low three bytes of the value, or in the high three. */
	const bool low = !(mask & 0xff000000), first = low != format->big_endian;
	if (!first)
		memmove(to, to + 1, 3);
	return 3;
}

/* The tile's colours, up to PALETTE_MAX of them; PALETTE_MAX + 1: there are more. */
static unsigned find_palette(
	const struct picture *picture, const struct vnc_tile *tile, uint32_t palette[PALETTE_MAX])
{
	unsigned count = 0, i;

	for (unsigned y = 0; y < tile->height; y++) {
		for (unsigned x = 0; x < tile->width; x++) {
			const uint32_t pixel = pixel_at(picture, tile, x, y);

			for (i = 0; i < count && palette[i] != pixel; i++)
				;
			if (i < count)
				continue;
			if (count == PALETTE_MAX)
				return PALETTE_MAX + 1;
			palette[count++] = pixel;
		}
	}
	return count;
}

static unsigned put_packed(uint8_t *to, const struct picture *picture, const struct vnc_tile *tile,
	const uint32_t palette[PALETTE_MAX], unsigned count)
{
	const unsigned bits = count <= 2 ? 1 : count <= 4 ? 2 : 4;
	unsigned used = 0;

	for (unsigned y = 0; y < tile->height; y++) {
		unsigned free_bits = 0;

		for (unsigned x = 0; x < tile->width; x++) {
			const uint32_t pixel = pixel_at(picture, tile, x, y);
			unsigned index = 0;

			while (palette[index] != pixel)
				index++;
			if (!free_bits) {
				to[used++] = 0;
				free_bits = 8;
			}
			free_bits -= bits;
			to[used - 1] |= (uint8_t)(index << free_bits);
		}
	}
	return used;
}

/* The tile's bytes before compression, at most 1 + 4 * VNC_TILE^2 of them. */
static unsigned tile_bytes(
	uint8_t *to, const struct vnc_format *format, const struct picture *picture, const struct vnc_tile *tile)
{
	uint32_t palette[PALETTE_MAX];
	const unsigned colours = find_palette(picture, tile, palette);
	unsigned used = 1;

	to[0] = (uint8_t)(colours > PALETTE_MAX ? 0 : colours);
	if (colours > PALETTE_MAX) {
		for (unsigned y = 0; y < tile->height; y++)
			for (unsigned x = 0; x < tile->width; x++)
				used += store_cpixel(format, pixel_at(picture, tile, x, y), to + used);
		return used;
	}
	for (unsigned i = 0; i < colours; i++)
		used += store_cpixel(format, palette[i], to + used);
	return colours == 1 ? used : used + put_packed(to + used, picture, tile, palette, colours);
}

void vnc_encode_zrle(struct vnc_output *output, z_stream *stream, const struct vnc_format *format,
	const struct picture *picture, const struct vnc_tile *tile)
{
	uint8_t bytes[1 + 4 * VNC_TILE * VNC_TILE + 4]; /* store_cpixel writes up to 4 */
	const unsigned count = tile_bytes(bytes, format, picture, tile);
	const size_t most = deflateBound(stream, count) + 64, length_at = output->count;
	uint8_t *to = reserve(output, 4 + most);

	if (!to)
		return;
	stream->next_in = bytes;
	stream->avail_in = count;
	stream->next_out = to + 4;
	stream->avail_out = (unsigned)most;
	if (deflate(stream, Z_SYNC_FLUSH) != Z_OK || stream->avail_in) {
		output->failed = true;
		return;
	}
	const size_t made = most - stream->avail_out;
	store_be32(output->bytes + length_at, (uint32_t)made);
	output->count += 4 + made;
}
