/*
 * A display's picture as a PNG file (ISO/IEC 15948).
 */
#ifndef LODGE_BACKEND_SCREENSHOT_H
#define LODGE_BACKEND_SCREENSHOT_H

#include "base/util.h"
#include "device/display/picture.h"

#include <stdbool.h>
#include <stdio.h>

struct error;

/* Any thread. False: no memory, or the file takes no more. */
MUST_CHECK bool screenshot_put(FILE *file, const struct display *display);
/* Any thread. Errors: with a line for people. */
MUST_CHECK int screenshot_write(const char *path, const struct display *display, struct error *err);

#endif
