/*
 * The user's directories: see paths.h.
 */
#include "host/paths.h"
#include "base/cleanup.h"
#include "base/error.h"

#include <errno.h>
#include <ftw.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OPEN_DIRECTORIES 16

static int make_all(char *path, struct error *err)
{
	for (char *at = path + 1;; at++) {
		const char c = *at;
		if (c && c != '/')
			continue;
		*at = '\0';
		if (mkdir(path, 0777) < 0 && errno != EEXIST)
			return error_set_errno(err, errno, "can't make the directory %s", path);
		*at = c;
		if (!c)
			return 0;
	}
}

int paths_data(char **ret_path, const char *sub, bool make, struct error *err)
{
	AUTO_FREE char *path = NULL;
	const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
	const struct passwd *user;
	int length;

	if (!home || *home != '/') {
		user = getpwuid(getuid());
		home = user ? user->pw_dir : NULL;
	}
	if (data && *data == '/') /* the specification: ignore relative ones */
		length = asprintf(&path, "%s/lodge/%s", data, sub);
	else if (home)
		length = asprintf(&path, "%s/.local/share/lodge/%s", home, sub);
	else
		return error_set(err, ENOENT, "no home directory is known: set HOME or XDG_DATA_HOME");
	if (length < 0) {
		path = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	int status = make ? make_all(path, err) : 0;
	if (status == 0)
		*ret_path = take_ptr(&path);
	return status;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *where)
{
	return remove(path);
}

int paths_remove(const char *path, struct error *err)
{
	if (nftw(path, remove_one, OPEN_DIRECTORIES, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) == 0)
		return 0;
	return error_set_errno(err, errno, "can't remove %s", path);
}
