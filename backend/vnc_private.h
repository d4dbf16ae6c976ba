/*
 * What the files of the VNC server share.
 */
#ifndef LODGE_BACKEND_VNC_PRIVATE_H
#define LODGE_BACKEND_VNC_PRIVATE_H

#include "device/display/picture.h"

#include <stddef.h>
#include <zlib.h>

#define VNC_TILE      64u
#define VNC_TILES_MAX ((PICTURE_SIDE_MAX / VNC_TILE) * (PICTURE_SIDE_MAX / VNC_TILE))

enum vnc_encoding { VNC_RAW = 0, VNC_ZRLE = 16, VNC_SIZE = -223, VNC_KEY = -258 };

/* Bytes on their way out. */
struct vnc_output {
	uint8_t *bytes;
	size_t count, room, sent;
	bool failed; /* out of memory: the client is to be cut off */
};

void vnc_put(struct vnc_output *output, const void *bytes, size_t count);
void vnc_put8(struct vnc_output *output, uint8_t value);
void vnc_put16(struct vnc_output *output, uint16_t value);
void vnc_put32(struct vnc_output *output, uint32_t value);

/* RFC 6143, 7.4. True colour only. */
struct vnc_format {
	uint8_t bits; /* 8, 16 or 32 */
	bool big_endian;
	uint16_t max[3]; /* red, green, blue */
	uint8_t shift[3];
};

extern const struct vnc_format vnc_format_own;
/* 16 bytes. */
void vnc_format_put(struct vnc_output *output, const struct vnc_format *format);
/* false: none that can be served. */
bool vnc_format_parse(struct vnc_format *format, const uint8_t bytes[16]);

struct vnc_tile {
	unsigned x, y, width, height; /* in the picture; at most VNC_TILE each way */
};

/* The rectangle's contents (7.7.1, 7.7.6). `stream` is the connection's. */
void vnc_encode_raw(struct vnc_output *output, const struct vnc_format *format, const struct picture *picture,
	const struct vnc_tile *tile);
void vnc_encode_zrle(struct vnc_output *output, z_stream *stream, const struct vnc_format *format,
	const struct picture *picture, const struct vnc_tile *tile);

/* ---- vnc_update.c ---- */

/* What the display shows. */
struct vnc_screen {
	struct picture picture;
	uint64_t tile[VNC_TILES_MAX]; /* hashes, none is 0 */
};

/* The picture was drawn anew. */
void vnc_screen_drawn(struct vnc_screen *screen);

/* How a client wants to see it, and what it has seen. */
struct vnc_view {
	struct vnc_format format;
	bool zrle, can_resize, key_codes, key_codes_told;
	bool wants, wants_all; /* an update; of all, whether it changed or not */
	unsigned width, height; /* as it was told */
	uint64_t seen[VNC_TILES_MAX]; /* hashes; 0: nothing yet */
	z_stream stream;
	/* The update that is on its way, the tiles left[next] and on. */
	bool updating, left[VNC_TILES_MAX];
	unsigned next;
};

/* The client was told this size. */
void vnc_view_resized(struct vnc_view *view, unsigned width, unsigned height);
/* Tell what is new, if anything is; `wants` is cleared then. Nothing is on its way. */
void vnc_update_begin(struct vnc_view *view, const struct vnc_screen *screen, struct vnc_output *output);
/* Some more of it. It ends when `updating` is false; until then there is always more. */
void vnc_update_go_on(struct vnc_view *view, const struct vnc_screen *screen, struct vnc_output *output);

/* ---- vnc.c, for tests ---- */

/* How often the display is drawn, and how long a client may take to introduce itself. */
struct vnc;
void vnc_set_pace(struct vnc *vnc, uint64_t period_ns, uint64_t patience_ns);

/* The key that makes this X keysym on a US keyboard, as device/char/ps2.h has them; 0: none. */
uint8_t vnc_key(uint32_t keysym);

#endif
