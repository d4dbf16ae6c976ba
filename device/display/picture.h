/*
 * What is on a screen: rows of pixels 00RRGGBB in host order, without gaps. The one who shows it (VNC, a screenshot) asks a
 * display for it when it wants one.
 */
#ifndef LODGE_DEVICE_DISPLAY_PICTURE_H
#define LODGE_DEVICE_DISPLAY_PICTURE_H

#include <stdbool.h>
#include <stdint.h>

#define PICTURE_SIDE_MAX 4096u

struct picture {
	unsigned width, height; /* up to PICTURE_SIDE_MAX each */
	uint32_t *pixels;	/* owned; grows as needed */
	uint64_t room;		/* of pixels */
};

/* Errors: -ENOMEM, -EINVAL (a side of 0 or too large); the picture is as it was. */
int picture_resize(struct picture *picture, unsigned width, unsigned height);
void picture_done(struct picture *picture);

struct display {
	/* Draw what is shown now; any thread. false: nothing to be had (out of memory). */
	bool (*draw)(void *opaque, struct picture *to);
	/* The user's hands. A key: code of set 1, | PS2_EXTENDED (device/char/ps2.h). NULL: no such hands. */
	void (*key)(void *opaque, uint8_t code, bool down);
	void (*move)(void *opaque, int dx, int dy, int dz, uint8_t buttons);
	void *opaque;
};

#endif
