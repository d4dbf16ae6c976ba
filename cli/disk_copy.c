/*
 * lodge disk: the verbs that move a disk's content.
 */
#include "cli/disk.h"
#include "cli/cli.h"
#include "base/cleanup.h"
#include "base/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool show_progress(void *opaque, uint64_t done, uint64_t all)
{
	struct disk_progress *progress = opaque;
	unsigned percent = all ? (unsigned)((double)done / (double)all * 100) : 100;

	if (progress->shown && percent != progress->percent) {
		fprintf(stderr, "\r%s: %u %%", progress->what, percent);
		progress->percent = percent;
	}
	return cli_stop_asked();
}

void disk_progress_init(struct disk_progress *progress, const struct disk_args *args,
	const char *what, struct image_progress *ret_progress)
{
	cli_catch_stop();
	*progress = (struct disk_progress){
		.shown = !args->quiet && isatty(STDERR_FILENO), .what = what, .percent = 101};
	*ret_progress = (struct image_progress){show_progress, progress};
}

void disk_progress_done(struct disk_progress *progress)
{
	if (progress->shown && progress->percent <= 100)
		fprintf(stderr, "\r\033[K");
}

static int copy_into(struct disk_args *args, struct disk *from, const char *path)
{
	struct image_copy copy = {.compress = args->compress, .target_zero = true};
	struct disk_args target = {0};
	struct disk_progress progress;
	struct error err = {0};
	struct disk *to;
	int status = disk_open_arg(&target, path, args->to ? args->to : "qcow2", false, &to);

	if (status)
		return status;
	copy.target_zero = to->file->growable;
	disk_progress_init(&progress, args, "copying", &copy.progress);
	if (image_copy(from, to, &copy, &err) < 0)
		status = cli_complain(&err);
	else if (disk_flush(to) < 0) {
		error_set(&err, EIO, "can't write %s", path);
		status = cli_complain(&err);
	}
	disk_progress_done(&progress);
	return disk_close_arg(to, status);
}

/* Half an image is of no use, and looks like a whole one. What it replaced was gone when it was made. */
static void remove_half(const char *path)
{
	AUTO_FREE char *file = realpath(path, NULL);
	struct stat st;

	if (file && stat(file, &st) == 0 && S_ISREG(st.st_mode))
		unlink(file);
}

int disk_verb_convert(struct disk_args *args)
{
	const char *path = args->word[1];
	struct image_create create;
	struct disk *from;
	int status = disk_open_arg(args, args->word[0], args->format, true, &from);

	if (status)
		return status;
	cli_catch_stop(); /* from here on there is something to remove */
	disk_create_options(args, &create);
	create.format = args->to ? args->to : "qcow2";
	create.size_bytes = disk_size_bytes(from);
	if (args->compress && strcmp(create.format, "qcow2"))
		status = cli_misuse("only qcow2 images can be compressed");
	else
		status = disk_create_arg(path, &create);
	if (!status) {
		status = copy_into(args, from, path);
		if (status)
			remove_half(path);
	}
	return disk_close_arg(from, status);
}

/* offset: of the first difference. */
static void print_comparison(const struct disk_args *args, bool same, uint64_t offset)
{
	if (args->json)
		printf(same ? "{\"same\": true}\n" : "{\"same\": false, \"offset_bytes\": %" PRIu64 "}\n", offset);
	else if (!same)
		printf("different at byte %" PRIu64 "\n", offset);
	else if (!args->quiet)
		printf("the same\n");
}

int disk_verb_compare(struct disk_args *args)
{
	struct image_progress report;
	struct disk_progress progress;
	struct disk *a, *b;
	struct error err = {0};
	uint64_t offset;
	bool same;
	int status = disk_open_arg(args, args->word[0], args->format, true, &a);

	if (status)
		return status;
	status = disk_open_arg(args, args->word[1], args->to, true, &b);
	if (status)
		return disk_close_arg(a, status);
	disk_progress_init(&progress, args, "comparing", &report);
	if (image_compare(a, b, &report, &same, &offset, &err) < 0) {
		status = cli_complain(&err);
	} else {
		print_comparison(args, same, offset);
		status = same ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	disk_progress_done(&progress);
	return disk_close_arg(b, disk_close_arg(a, status));
}

/* Copy what the old backing chain shows and the new one would not. */
static int rebase_copy(struct disk_args *args, struct disk *disk, const char *backing)
{
	AUTO_FREE char *path = NULL;
	struct image_progress report;
	struct disk_progress progress;
	struct disk *behind = NULL;
	struct error err = {0};
	int status = 0;

	if (backing) {
		const char *slash = strrchr(args->word[0], '/');

		if (backing[0] == '/' || !slash)
			path = strdup(backing);
		else if (asprintf(&path, "%.*s/%s", (int)(slash - args->word[0]), args->word[0],
				 backing) < 0)
			path = NULL;
		if (!path)
			return EXIT_FAILURE;
		status = disk_open_arg(args, path, args->backing_format, true, &behind);
		if (status)
			return status;
		if (!args->backing_format)
			args->backing_format = disk_format_name(behind);
	}
	disk_progress_init(&progress, args, "copying", &report);
	if (image_rebase_copy(disk, behind, &report, &err) < 0)
		status = cli_complain(&err);
	disk_progress_done(&progress);
	disk_close(behind);
	return status;
}

int disk_verb_rebase(struct disk_args *args)
{
	const char *backing = args->count > 1 ? args->word[1] : NULL;
	struct disk_options options = {.format = args->format,
		.backing = args->metadata_only ? DISK_BACKING_IGNORE : args->rule,
		.lock = args->unlocked ? DISK_LOCK_NONE : DISK_LOCK_AUTO};
	struct error err = {0};
	struct disk *disk;
	int status = 0;

	if (backing && !*backing)
		backing = NULL;
	if (disk_open(args->word[0], &options, &disk, &err) < 0)
		return cli_complain(&err);
	if (!args->metadata_only)
		status = rebase_copy(args, disk, backing);
	if (!status && image_set_backing(disk, backing, args->backing_format, &err) < 0)
		status = cli_complain(&err);
	return disk_close_arg(disk, status);
}

/* The image alone, since what is behind it is written to, and its backing file. */
static int open_pair(const struct disk_args *args, struct disk **ret_disk, struct disk **ret_base)
{
	struct disk_options options = {.format = args->format,
		.lock = args->unlocked ? DISK_LOCK_NONE : DISK_LOCK_AUTO,
		.backing = DISK_BACKING_IGNORE};
	AUTO_FREE char *path = NULL, *format = NULL;
	struct error err = {0};
	struct disk *chain;
	int status;

	/* Is the chain as it should be, and allowed? */
	status = disk_open_arg(args, args->word[0], args->format, true, &chain);
	if (status)
		return status;
	if (!disk_backing(chain))
		return disk_close_arg(
			chain, cli_misuse("%s has no backing file to commit to", args->word[0]));
	path = strdup(disk_backing(chain)->file->name);
	format = strdup(disk_format_name(disk_backing(chain)));
	disk_close(chain);
	if (!path || !format)
		return EXIT_FAILURE;
	if (disk_open(args->word[0], &options, ret_disk, &err) < 0)
		return cli_complain(&err);
	status = disk_open_arg(args, path, format, false, ret_base);
	return status ? disk_close_arg(*ret_disk, status) : 0;
}

int disk_verb_commit(struct disk_args *args)
{
	struct image_copy copy = {.depth = 1, .keep_zeros = true};
	struct disk_progress progress;
	struct disk *disk, *base;
	struct error err = {0};
	int status = open_pair(args, &disk, &base), r = 0;

	if (status)
		return status;
	disk_progress_init(&progress, args, "committing", &copy.progress);
	if (disk_size_bytes(base) < disk_size_bytes(disk))
		r = disk_resize(base, disk_size_bytes(disk), &err);
	if (r == 0)
		r = image_copy(disk, base, &copy, &err);
	disk_progress_done(&progress);
	if (r < 0)
		status = cli_complain(&err);
	/* Only once it is lasting there may it go here. */
	status = disk_close_arg(base, status);
	if (!status && !args->keep && image_empty(disk, &err) < 0)
		status = cli_complain(&err);
	return disk_close_arg(disk, status);
}
