/*
 * Pictures: see the header.
 */
#include "device/display/picture.h"

#include <errno.h>
#include <stdlib.h>

int picture_resize(struct picture *picture, unsigned width, unsigned height)
{
	const uint64_t wanted = (uint64_t)width * height;

	if (!width || !height || width > PICTURE_SIDE_MAX || height > PICTURE_SIDE_MAX)
		return -EINVAL;
	if (wanted > picture->room) {
		uint32_t *pixels = realloc(picture->pixels, wanted * sizeof(*pixels));

		if (!pixels)
			return -ENOMEM;
		picture->pixels = pixels;
		picture->room = wanted;
	}
	picture->width = width;
	picture->height = height;
	return 0;
}

void picture_done(struct picture *picture)
{
	free(picture->pixels);
	*picture = (struct picture){0};
}
