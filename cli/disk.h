/*
 * What the files of `lodge disk` share.
 */
#ifndef LODGE_CLI_DISK_H
#define LODGE_CLI_DISK_H

#include "backend/disk/image.h"

struct disk_args {
	const char *word[3];
	unsigned count;
	const char *format, *to, *backing, *backing_format, *compression;
	uint64_t cluster_bytes, refcount_bits, version;
	enum disk_backing_rule rule;
	bool compress, lazy, replace, unlocked, metadata_only, keep, repair, shrink, json, quiet;
};

int disk_parse_size(const char *text, uint64_t *ret_bytes);

/* Open an image as the options say. 0, or an exit status after a line on stderr. */
int disk_open_arg(const struct disk_args *args, const char *path, const char *format, bool readonly,
	struct disk **ret_disk);
/* Close it; what only then turned out to have failed makes a success a failure. */
int disk_close_arg(struct disk *disk, int status);
/* Make an image. An exit status, after a line on stderr if it failed. */
int disk_create_arg(const char *path, const struct image_create *create);
void disk_create_options(const struct disk_args *args, struct image_create *ret_create);

/* Progress on a terminal's stderr. Ctrl-C stops what is under way. */
struct disk_progress {
	bool shown;
	const char *what;
	unsigned percent;
};
void disk_progress_init(struct disk_progress *progress, const struct disk_args *args,
	const char *what, struct image_progress *ret_progress);
void disk_progress_done(struct disk_progress *progress);

int disk_verb_create(struct disk_args *args);
int disk_verb_clone(struct disk_args *args);
int disk_verb_info(struct disk_args *args);
int disk_verb_check(struct disk_args *args);
int disk_verb_convert(struct disk_args *args);
int disk_verb_compare(struct disk_args *args);
int disk_verb_resize(struct disk_args *args);
int disk_verb_snapshot(struct disk_args *args);
int disk_verb_rebase(struct disk_args *args);
int disk_verb_commit(struct disk_args *args);
int disk_verb_map(struct disk_args *args);

#endif
