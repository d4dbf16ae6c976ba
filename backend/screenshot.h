/*
 * A display's picture as a PNG file (ISO/IEC 15948).
 */
#ifndef LODGE_BACKEND_SCREENSHOT_H
#define LODGE_BACKEND_SCREENSHOT_H

#include "base/util.h"
#include "device/display/picture.h"

struct error;

/* Any thread. Errors: with a line for people. */
MUST_CHECK int screenshot_write(const char *path, const struct display *display, struct error *err);

#endif
