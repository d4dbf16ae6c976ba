/*
 * What a VNC client is told of the screen (RFC 6143, 7.6.1): which tiles are others than those it has seen, and these tiles
 * one after the other, no faster than it reads.
 *
 * Nobody keeps a picture for each client: tiles are told apart by a hash. A guest that makes two of them alike makes its
 * own screen wrong.
 *
 * Invariant: an update that was begun is sent to its end, whatever happens to the picture: as many rectangles as its head
 * says, of the size that the client knows. What is not there any more is black.
 */
#include "backend/vnc_private.h"

#include "base/util.h"

#include <string.h>

#define ENOUGH_BYTES (256u << 10) /* on their way to one client */
#define ENOUGH_TILES 256u	  /* at one go: others wait */
#define HASH_FACTOR  0x9e3779b97f4a7c15ull

/* ---- tiles ---- */

static unsigned tiles_across(unsigned width)
{
	return (width + VNC_TILE - 1) / VNC_TILE;
}

static struct vnc_tile tile_at(unsigned index, unsigned width, unsigned height)
{
	const unsigned x = index % tiles_across(width) * VNC_TILE, y = index / tiles_across(width) * VNC_TILE;

	return (struct vnc_tile){x, y, MIN(VNC_TILE, width - x), MIN(VNC_TILE, height - y)};
}

static unsigned tile_count(unsigned width, unsigned height)
{
	return tiles_across(width) * tiles_across(height);
}

static uint64_t hash_tile(const struct picture *picture, const struct vnc_tile *tile)
{
	uint64_t hash = tile->width, two;

	for (unsigned y = tile->y; y < tile->y + tile->height; y++) {
		const uint32_t *row = picture->pixels + (uint64_t)y * picture->width + tile->x;

		for (unsigned x = 0; x < tile->width; x += 2) {
			two = row[x];
			if (x + 1 < tile->width)
				two |= (uint64_t)row[x + 1] << 32;
			hash = (hash ^ two) * HASH_FACTOR;
			hash ^= hash >> 29;
		}
	}
	return hash ? hash : 1;
}

void vnc_screen_drawn(struct vnc_screen *screen)
{
	const struct picture *picture = &screen->picture;
	const unsigned count = tile_count(picture->width, picture->height);

	for (unsigned i = 0; i < count; i++) {
		const struct vnc_tile tile = tile_at(i, picture->width, picture->height);

		screen->tile[i] = hash_tile(picture, &tile);
	}
}

/* ---- updates ---- */

static void put_rectangle(
	struct vnc_output *output, unsigned x, unsigned y, unsigned width, unsigned height, int32_t encoding)
{
	vnc_put16(output, (uint16_t)x);
	vnc_put16(output, (uint16_t)y);
	vnc_put16(output, (uint16_t)width);
	vnc_put16(output, (uint16_t)height);
	vnc_put32(output, (uint32_t)encoding);
}

static void put_head(struct vnc_view *view, struct vnc_output *output, unsigned rectangles)
{
	vnc_put16(output, 0); /* type, padding */
	vnc_put16(output, (uint16_t)rectangles);
	view->wants = view->wants_all = false;
}

void vnc_view_resized(struct vnc_view *view, unsigned width, unsigned height)
{
	view->width = width;
	view->height = height;
	memset(view->seen, 0, sizeof(view->seen));
}

/* A new size is told first, alone; the client then asks anew. One that does not know of sizes is cut off. */
static bool put_size(struct vnc_view *view, const struct picture *now, struct vnc_output *output)
{
	if (view->width == now->width && view->height == now->height)
		return false;
	if (!view->can_resize) {
		output->failed = true;
		return true;
	}
	vnc_view_resized(view, now->width, now->height);
	put_head(view, output, 1);
	put_rectangle(output, 0, 0, now->width, now->height, VNC_SIZE);
	return true;
}

static unsigned choose_tiles(struct vnc_view *view, const struct vnc_screen *screen)
{
	const unsigned all = tile_count(view->width, view->height);
	unsigned count = 0;

	for (unsigned i = 0; i < all; i++) {
		view->left[i] = view->wants_all || view->seen[i] != screen->tile[i];
		count += view->left[i];
	}
	return count;
}

void vnc_update_begin(struct vnc_view *view, const struct vnc_screen *screen, struct vnc_output *output)
{
	if (!screen->picture.width || put_size(view, &screen->picture, output))
		return;
	const bool tell_keys = view->key_codes && !view->key_codes_told;
	const unsigned count = choose_tiles(view, screen) + tell_keys;

	if (!count)
		return;
	put_head(view, output, count);
	if (tell_keys)
		put_rectangle(output, 0, 0, 0, 0, VNC_KEY);
	view->key_codes_told |= tell_keys;
	view->updating = true;
	view->next = 0;
	vnc_update_go_on(view, screen, output);
}

static void put_tile(
	struct vnc_view *view, const struct vnc_screen *screen, struct vnc_output *output, unsigned index)
{
	static const uint32_t black[VNC_TILE * VNC_TILE];
	const struct vnc_tile tile = tile_at(index, view->width, view->height), corner = {0, 0, tile.width, tile.height};
	const struct picture blank = {VNC_TILE, VNC_TILE, (uint32_t *)black, 0};
	const bool there = view->width == screen->picture.width && view->height == screen->picture.height;
	const struct picture *from = there ? &screen->picture : &blank;
	const struct vnc_tile *part = there ? &tile : &corner;

	put_rectangle(output, tile.x, tile.y, tile.width, tile.height, view->zrle ? VNC_ZRLE : VNC_RAW);
	if (view->zrle)
		vnc_encode_zrle(output, &view->stream, &view->format, from, part);
	else
		vnc_encode_raw(output, &view->format, from, part);
	view->seen[index] = there ? screen->tile[index] : 0;
}

void vnc_update_go_on(struct vnc_view *view, const struct vnc_screen *screen, struct vnc_output *output)
{
	const unsigned all = tile_count(view->width, view->height);
	unsigned tiles = 0;

	for (; view->next < all; view->next++) {
		if (!view->left[view->next])
			continue;
		if (tiles++ == ENOUGH_TILES || output->count - output->sent >= ENOUGH_BYTES)
			return;
		put_tile(view, screen, output, view->next);
	}
	view->updating = false;
}
