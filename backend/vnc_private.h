/*
 * What the files of the VNC server share.
 */
#ifndef LODGE_BACKEND_VNC_PRIVATE_H
#define LODGE_BACKEND_VNC_PRIVATE_H

#include "device/display/picture.h"

#include <stddef.h>
#include <zlib.h>

#define VNC_TILE 64u

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

/* The key that makes this X keysym on a US keyboard, as device/char/ps2.h has them; 0: none. */
uint8_t vnc_key(uint32_t keysym);

#endif
