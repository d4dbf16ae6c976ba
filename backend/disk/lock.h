/*
 * Locks on image files, so that two programs can't write one image, nor one read what another writes.
 */
#ifndef LODGE_BACKEND_DISK_LOCK_H
#define LODGE_BACKEND_DISK_LOCK_H

#include "base/error.h"

#include <stdbool.h>

/* Held until the open file is closed. -EAGAIN: somebody else has it; the text says who, if that can be known. 0
 * too where the file system knows no locks. */
MUST_CHECK int disk_lock_take(int fd, bool readonly, const char *name, struct error *err);

#endif
