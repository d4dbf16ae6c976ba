/*
 * lodge disk: the verbs that make and examine images.
 */
#include "cli/disk.h"
#include "cli/cli.h"
#include "base/cleanup.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXIT_DAMAGED 3
#define EXIT_LEAKS   4

int disk_open_arg(const struct disk_args *args, const char *path, const char *format, bool readonly,
	struct disk **ret_disk)
{
	struct disk_options options = {.format = format,
		.readonly = readonly,
		.lock = args->unlocked ? DISK_LOCK_NONE : DISK_LOCK_AUTO,
		.backing = args->rule};
	struct error err = {0};

	return disk_open(path, &options, ret_disk, &err) < 0 ? cli_complain(&err) : 0;
}

int disk_close_arg(struct disk *disk, int status)
{
	AUTO_FREE char *name = strdup(disk->file->name);
	struct error err = {0};
	int r = disk_close(disk);

	if (r == 0)
		return status;
	error_set_errno(&err, -r, "can't finish writing %s", name ? name : "the image");
	return cli_complain(&err);
}

void disk_create_options(const struct disk_args *args, struct image_create *ret_create)
{
	*ret_create = (struct image_create){.format = args->format ? args->format : "qcow2",
		.replace = args->replace,
		.cluster_bytes = (uint32_t)MIN(args->cluster_bytes, UINT32_MAX),
		.refcount_bits = (uint32_t)args->refcount_bits,
		.version = (uint32_t)args->version,
		.compression = args->compression,
		.lazy_refcounts = args->lazy};
}

/* What to call the backing file: as the user does, if that is found from the new image's directory too. */
static char *name_from(const char *image, const char *backing)
{
	if (backing[0] == '/' || !strchr(image, '/'))
		return strdup(backing);
	return realpath(backing, NULL);
}

int disk_create_arg(const char *path, const struct image_create *create)
{
	struct error err = {0};

	if (image_create(path, create, &err) == 0)
		return EXIT_SUCCESS;
	if (err.code == EEXIST)
		error_set(&err, EEXIST, "%s (--replace replaces it)", err.text);
	return cli_complain(&err);
}

static int create(
	const struct disk_args *args, const char *path, const char *backing, const char *size)
{
	struct image_create options;
	AUTO_FREE char *name = NULL;
	struct error err = {0};

	disk_create_options(args, &options);
	if (size && (disk_parse_size(size, &options.size_bytes) < 0 || !options.size_bytes))
		return cli_misuse("'%s' is not the size of a disk: such as 10G", size);
	if (!size && !backing)
		return cli_misuse("the size of the disk is missing: such as 10G");
	if (backing) {
		name = name_from(path, backing);
		if (!name) {
			error_set_errno(&err, errno, "can't find %s", backing);
			return cli_complain(&err);
		}
		options.backing = name;
		options.backing_format = args->backing_format;
	}
	return disk_create_arg(path, &options);
}

/* The format of a backing file is always stored: guessing it later would let a guest choose it. */
static int find_backing_format(struct disk_args *args, const char *backing)
{
	struct disk *disk;
	int status;

	if (args->backing_format)
		return 0;
	status = disk_open_arg(args, backing, NULL, true, &disk);
	if (status)
		return status;
	args->backing_format = disk_format_name(disk);
	return disk_close_arg(disk, 0);
}

int disk_verb_create(struct disk_args *args)
{
	int status = args->backing ? find_backing_format(args, args->backing) : 0;

	return status ? status
		      : create(args, args->word[0], args->backing,
				args->count > 1 ? args->word[1] : NULL);
}

int disk_verb_clone(struct disk_args *args)
{
	int status = find_backing_format(args, args->word[0]);

	return status ? status
		      : create(args, args->word[1], args->word[0],
				args->count > 2 ? args->word[2] : NULL);
}

/* Sizes for people. */
static void print_size(const char *what, uint64_t bytes)
{
	static const char units[] = "KMGTPE";
	double value = (double)bytes / 1024;
	unsigned i = 0;

	for (; value >= 1024 && i + 2 < sizeof(units); i++)
		value /= 1024;
	printf("%-14s%.4g %ciB (%" PRIu64 " bytes)\n", what, value, units[i], bytes);
}

static void print_info(struct disk *disk, const struct image_info *info)
{
	printf("%-14s%s\n", "image:", disk->file->name);
	printf("%-14s%s", "format:", disk_format_name(disk));
	if (info->version)
		printf(", version %u%s%s%s", info->version,
			info->lazy_refcounts ? ", lazy refcounts" : "",
			info->extended ? ", extended L2 entries" : "",
			info->dirty ? ", in use or not closed" : "");
	printf("%s\n", info->corrupt ? ", marked as corrupt" : "");
	print_size("disk size:", info->size_bytes);
	print_size("space used:", info->allocated_bytes);
	if (info->version) {
		print_size("cluster:", info->cluster_bytes);
		printf("%-14s%s\n", "compression:", info->compression);
		printf("%-14s%u bits\n", "refcounts:", info->refcount_bits);
		printf("%-14s%u\n", "snapshots:", info->snapshots);
	}
	if (disk->backing_name) {
		struct error line; /* both may hold control characters, which become '?' there */

		error_set(&line, EINVAL, "%-14s%s%s%s", "backing file:", disk->backing_name,
			disk->backing_format ? ", format " : "",
			disk->backing_format ? disk->backing_format : "");
		puts(line.text);
	}
}

static void json_text(const char *name, const char *text)
{
	printf(", \"%s\": ", name);
	if (text)
		cli_print_json_string(text);
	else
		printf("null");
}

static void json_info(struct disk *disk, const struct image_info *info)
{
	printf("{\"image\": ");
	cli_print_json_string(disk->file->name);
	json_text("format", disk_format_name(disk));
	printf(", \"size_bytes\": %" PRIu64 ", \"file_size_bytes\": %" PRIu64 ", \"used_bytes\": %" PRIu64,
		info->size_bytes, info->file_bytes, info->allocated_bytes);
	if (info->version) {
		printf(", \"version\": %u, \"cluster_bytes\": %u, \"refcount_bits\": %u, \"snapshots\": %u",
			info->version, info->cluster_bytes, info->refcount_bits, info->snapshots);
		printf(", \"lazy_refcounts\": %s, \"dirty\": %s, \"corrupt\": %s, \"extended_l2\": %s",
			info->lazy_refcounts ? "true" : "false", info->dirty ? "true" : "false",
			info->corrupt ? "true" : "false", info->extended ? "true" : "false");
		json_text("compression", info->compression);
	}
	json_text("backing", disk->backing_name);
	json_text("backing_format", disk->backing_format);
	printf("}\n");
}

/* An image alone, as it is: what looks at its metadata only. */
static int open_alone(const struct disk_args *args, bool write, struct disk **ret_disk)
{
	struct disk_options options = {.format = args->format,
		.readonly = !write,
		.inspect = true,
		.backing = DISK_BACKING_IGNORE,
		.lock = args->unlocked ? DISK_LOCK_NONE : DISK_LOCK_AUTO};
	struct error err = {0};

	return disk_open(args->word[0], &options, ret_disk, &err) < 0 ? cli_complain(&err) : 0;
}

int disk_verb_info(struct disk_args *args)
{
	struct image_info info;
	struct error err = {0};
	struct disk *disk;
	int status = open_alone(args, false, &disk), r;

	if (status)
		return status;
	r = image_info(disk, &info);
	if (r < 0) {
		error_set_errno(&err, -r, "can't examine %s", args->word[0]);
		status = cli_complain(&err);
	} else if (args->json) {
		json_info(disk, &info);
	} else {
		print_info(disk, &info);
	}
	return disk_close_arg(disk, status);
}

struct check_report {
	FILE *to;
	struct disk_progress progress;
};

static void print_problem(void *opaque, const char *text)
{
	struct check_report *report = opaque;

	disk_progress_done(&report->progress); /* its line makes room */
	fprintf(report->to, "%s\n", text);
}

static void print_check(const struct disk_args *args, const struct image_check *check)
{
	const char *verdict = check->errors ? "damaged" : check->leaks ? "space is lost" : "good";

	if (args->json) {
		printf("{\"errors\": %" PRIu64 ", \"leaks\": %" PRIu64
		       ", \"errors_mended\": %" PRIu64 ", \"leaks_mended\": %" PRIu64
		       ", \"clusters\": %" PRIu64 ", \"allocated_clusters\": %" PRIu64
		       ", \"compressed_clusters\": %" PRIu64 ", \"end_bytes\": %" PRIu64 "}\n",
			check->errors, check->leaks, check->errors_mended, check->leaks_mended,
			check->clusters, check->allocated, check->compressed, check->end_bytes);
		return;
	}
	printf("%s: %" PRIu64 " errors, %" PRIu64 " lost clusters", verdict, check->errors,
		check->leaks);
	if (args->repair && (check->errors || check->leaks))
		printf("; mended %" PRIu64 " and %" PRIu64, check->errors_mended,
			check->leaks_mended);
	printf("\n%" PRIu64 " of %" PRIu64 " clusters in use, %" PRIu64 " of them compressed\n",
		check->allocated, check->clusters, check->compressed);
}

int disk_verb_check(struct disk_args *args)
{
	struct check_report report = {.to = args->json ? stderr : stdout};
	struct image_check check = {.repair = args->repair, .report = print_problem, .opaque = &report};
	struct error err = {0};
	struct disk *disk;
	int status = open_alone(args, args->repair, &disk);

	if (status)
		return status;
	disk_progress_init(&report.progress, args, "checking", &check.progress);
	const int r = image_check(disk, &check, &err);
	disk_progress_done(&report.progress);
	if (r < 0) {
		status = cli_complain(&err);
	} else {
		print_check(args, &check);
		if (check.errors > check.errors_mended)
			status = EXIT_DAMAGED;
		else if (check.leaks > check.leaks_mended)
			status = EXIT_LEAKS;
	}
	return disk_close_arg(disk, status);
}

static int new_size(struct disk *disk, const char *text, uint64_t *ret_bytes)
{
	uint64_t old = disk_size_bytes(disk), bytes;
	char sign = text[0] == '+' || text[0] == '-' ? *text++ : 0;

	if (disk_parse_size(text, &bytes) < 0 || !bytes)
		return -EINVAL;
	bytes = ALIGN_UP(bytes, 512);
	if ((sign == '+' && bytes > INT64_MAX - old) || (sign == '-' && bytes >= old))
		return -ERANGE;
	*ret_bytes = sign == '+' ? old + bytes : sign == '-' ? old - bytes : bytes;
	return 0;
}

int disk_verb_resize(struct disk_args *args)
{
	struct error err = {0};
	struct disk *disk;
	uint64_t size;
	int status = disk_open_arg(args, args->word[0], args->format, false, &disk);

	if (status)
		return status;
	if (new_size(disk, args->word[1], &size) < 0)
		status = cli_misuse("'%s' is not a size that the disk can have", args->word[1]);
	else if (size < disk_size_bytes(disk) && !args->shrink)
		status = cli_misuse(
			"a smaller disk loses what is behind its new end: say --shrink if that is meant");
	else if (disk_resize(disk, size, &err) < 0)
		status = cli_complain(&err);
	return disk_close_arg(disk, status);
}

static void print_snapshots(
	const struct disk_args *args, const struct image_snapshot *list, unsigned count)
{
	printf(args->json ? "[" : "%-5s %-24s %-20s %s\n", "ID", "NAME", "TAKEN", "DISK SIZE");
	for (unsigned i = 0; i < count; i++) {
		time_t seconds = (time_t)list[i].seconds;
		char when[32] = "?";
		struct error name = {0};
		struct tm tm;

		if (gmtime_r(&seconds, &tm))
			strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
		if (args->json) {
			printf("%s{\"id\": ", i ? ", " : "");
			cli_print_json_string(list[i].id);
			json_text("name", list[i].name);
			json_text("taken", when);
			printf(", \"size_bytes\": %" PRIu64 ", \"vm_state_bytes\": %" PRIu64 "}",
				list[i].size_bytes, list[i].vm_state_bytes);
			continue;
		}
		error_set(&name, EINVAL, "%-5s %-24s", list[i].id, list[i].name);
		printf("%s %-20s %" PRIu64 "\n", name.text, when, list[i].size_bytes);
	}
	if (args->json)
		printf("]\n");
}

static int list_snapshots(struct disk_args *args)
{
	struct image_snapshot *list;
	struct error err = {0};
	struct disk *disk;
	unsigned count;
	int status;

	args->word[0] = args->word[1];
	status = open_alone(args, false, &disk);
	if (status)
		return status;
	if (image_snapshots(disk, &list, &count, &err) < 0)
		return disk_close_arg(disk, cli_complain(&err));
	print_snapshots(args, list, count);
	image_snapshots_free(list, count);
	return disk_close_arg(disk, EXIT_SUCCESS);
}

int disk_verb_snapshot(struct disk_args *args)
{
	static const struct {
		const char *name;
		int (*run)(struct disk *disk, const char *name, struct error *err);
	} actions[] = {
		{"create", image_snapshot_create},
		{"apply", image_snapshot_apply},
		{"delete", image_snapshot_delete},
	};
	struct error err = {0};
	struct disk *disk;

	if (strcmp(args->word[0], "list") == 0)
		return args->count == 2 ? list_snapshots(args)
					: cli_misuse("disk snapshot list takes one file");
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
		int status;

		if (strcmp(args->word[0], actions[i].name))
			continue;
		if (args->count != 3)
			return cli_misuse(
				"disk snapshot %s wants a file and a name", actions[i].name);
		status = disk_open_arg(args, args->word[1], args->format, false, &disk);
		if (status)
			return status;
		if (actions[i].run(disk, args->word[2], &err) < 0)
			status = cli_complain(&err);
		return disk_close_arg(disk, status);
	}
	return cli_misuse(
		"disk snapshot can list, create, apply and delete, not '%s'", args->word[0]);
}

static void print_run(bool json, bool first, uint64_t offset, const struct disk_map_run *run)
{
	if (json) {
		printf("%s\n{\"start_bytes\": %" PRIu64 ", \"length_bytes\": %" PRIu64
		       ", \"depth\": %u, \"present\": %s, \"data\": %s, \"compressed\": %s",
			first ? "" : ",", offset, run->bytes, run->depth,
			run->present ? "true" : "false", run->data ? "true" : "false",
			run->compressed ? "true" : "false");
		if (run->has_offset)
			printf(", \"offset_bytes\": %" PRIu64, run->file_offset);
		printf("}");
		return;
	}
	printf("%#14" PRIx64 " %#14" PRIx64 " %5u  ", offset, run->bytes, run->depth);
	if (run->data && run->has_offset)
		printf("data at %#" PRIx64 "\n", run->file_offset);
	else
		printf("%s\n", run->compressed ? "compressed" : run->present ? "zeros" : "nothing");
}

static bool same_run(const struct disk_map_run *a, const struct disk_map_run *b)
{
	return a->data == b->data && a->present == b->present && a->compressed == b->compressed &&
	       a->depth == b->depth && a->has_offset == b->has_offset &&
	       (!a->has_offset || a->file_offset + a->bytes == b->file_offset);
}

int disk_verb_map(struct disk_args *args)
{
	struct disk_map_run last = {0}, run;
	struct error err = {0};
	uint64_t start = 0;
	bool first = true;
	struct disk *disk;
	int status = disk_open_arg(args, args->word[0], args->format, true, &disk), r = 0;

	if (status)
		return status;
	printf(args->json ? "[" : "%14s %14s %5s  %s\n", "START", "LENGTH", "DEPTH", "WHAT");
	for (uint64_t at = 0; at < disk_size_bytes(disk); at += run.bytes) {
		r = disk_map(disk, at, disk_size_bytes(disk) - at, &run);
		if (r < 0)
			break;
		if (last.bytes && same_run(&last, &run)) {
			last.bytes += run.bytes;
			continue;
		}
		if (last.bytes) {
			print_run(args->json, first, start, &last);
			first = false;
		}
		last = run;
		start = at;
	}
	if (last.bytes)
		print_run(args->json, first, start, &last);
	if (args->json)
		printf("\n]\n");
	if (r < 0) {
		error_set_errno(&err, -r, "can't read %s", args->word[0]);
		status = cli_complain(&err);
	}
	return disk_close_arg(disk, status);
}
