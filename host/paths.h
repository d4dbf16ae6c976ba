/*
 * Where Lodge keeps what belongs to a user: ${XDG_DATA_HOME:-~/.local/share}/lodge.
 */
#ifndef LODGE_HOST_PATHS_H
#define LODGE_HOST_PATHS_H

#include "base/util.h"

#include <stdbool.h>

struct error;

/* The directory `sub` in it; made if need be (make). Caller frees. Errors: no home is known, or mkdir()'s. */
MUST_CHECK int paths_data(char **ret_path, const char *sub, bool make, struct error *err);

/* Remove a directory and what is in it; no link is followed. err may be NULL. */
int paths_remove(const char *path, struct error *err);

#endif
