/*
 * A host directory shared with a guest: a server of the FUSE protocol (docs/share.md), with no privileges.
 *
 * It reaches nothing but the directory and what is below it, as the user who runs it: names that the guest gives are
 * single components, no symbolic link is ever followed, and only regular files and directories are opened.
 */
#ifndef LODGE_BACKEND_SHARE_SHARE_H
#define LODGE_BACKEND_SHARE_SHARE_H

#include "device/fs.h"

struct error;

enum share_cache {
	SHARE_CACHE_AUTO,   /* the guest asks again after a second, and when it opens a file */
	SHARE_CACHE_NONE,   /* the guest keeps nothing: every access is a request */
	SHARE_CACHE_ALWAYS, /* only the guest changes the directory: it keeps all, and writes later */
};

struct share_config {
	const char *path; /* of the directory */
	bool readonly;
	enum share_cache cache;
	/* Files of the user who runs this are shown as uid, and of that user's groups as gid; all others are
	 * nobody's (65534). host_ids: owners are shown as they are instead. */
	bool host_ids;
	uint32_t uid, gid;
	unsigned max_descriptors; /* that it may have open; 0: what RLIMIT_NOFILE leaves */
	unsigned max_nodes;	  /* files that the guest may know of at a time; 0: 2 million */
};

/* Errors: what opening the directory says, -ENOTDIR, -ENOMEM, -ENOTSUP (no /proc). fs_close() ends it. */
MUST_CHECK int share_open(struct fs **ret_fs, const struct share_config *config, struct error *err);

#endif
