/*
 * lodge disk: make, examine, check and copy disk images.
 *
 * This file finds the verb and reads its options; disk_verbs.c and disk_copy.c do the work.
 */
#include "cli/disk.h"
#include "cli/cli.h"
#include "base/number.h"
#include "base/util.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char usage_text[] =
	"usage: lodge disk VERB [OPTION...] ARGUMENT...\n"
	"\n"
	"  create FILE [SIZE]          a new image (SIZE may be left out with --backing)\n"
	"  clone BASE NEW [SIZE]       a new image that holds only what differs from BASE\n"
	"  info FILE                   what the image is\n"
	"  check FILE                  look for damage and lost space; --repair mends it\n"
	"  convert FROM TO             copy a disk into a new image, without holes' and zeros' space\n"
	"  compare A B                 do the two disks hold the same? (exit status 1: no)\n"
	"  resize FILE [+|-]SIZE       make the disk larger, or with --shrink smaller\n"
	"  snapshot list FILE          the snapshots inside a qcow2 image\n"
	"  snapshot create|apply|delete FILE NAME\n"
	"  rebase FILE [BACKING]       give the image another backing file, or none: its content stays\n"
	"  commit FILE                 write what differs into the backing file\n"
	"  map FILE                    where the disk's bytes are\n"
	"\n"
	"options:\n"
	"  --format NAME       of the image: raw or qcow2 (default: by its looks; create, clone: qcow2)\n"
	"  --to NAME           convert: format of the new image (default: qcow2); compare: of B\n"
	"  -c, --compress      convert: compressed clusters\n"
	"  --backing FILE      create: the image holds what differs from FILE\n"
	"  --backing-format N  of the backing file\n"
	"  --cluster SIZE      512B to 2M (default: 64K); --refcount-bits N: 1 to 64 (16)\n"
	"  --compression NAME  deflate (default) or zstd; --lazy-refcounts; --qcow2-version 2|3\n"
	"  --replace           create, clone, convert: replace a file that is there\n"
	"  --backings RULE     which backing files may be opened: any (default), beside (in the image's own\n"
	"                      directory), refuse: for images that you don't trust\n"
	"  --unlocked          look at an image that others are using\n"
	"  --repair            check: mend it\n"
	"  --shrink            resize: to what is smaller\n"
	"  --metadata-only     rebase: the new backing file holds the same as the old one\n"
	"  --keep              commit: do not empty the image afterwards\n"
	"  --json              info, check, compare, map, snapshot list: for programs; --quiet: no progress\n"
	"\n"
	"A size has a suffix B, K, M, G or T; a number alone is in MiB. Exit status: 0; 1 failed or different;\n"
	"2 bad usage; check: 3 damaged, 4 lost space only.\n";

enum kind {
	FLAG,
	TEXT,
	SIZE,
	NUMBER,
	RULE,
};

struct option {
	const char *name;
	enum kind kind;
	size_t offset;
	const char *verbs; /* that take it, with blanks around each; NULL: all */
};

#define OPTION(name, kind, field, verbs)                             \
	{                                                            \
		name, kind, offsetof(struct disk_args, field), verbs \
	}
#define NEW " create clone convert " /* verbs that make an image */

static const struct option options[] = {
	OPTION("--format", TEXT, format, NULL),
	OPTION("--to", TEXT, to, " convert compare "),
	OPTION("-c", FLAG, compress, " convert "),
	OPTION("--compress", FLAG, compress, " convert "),
	OPTION("--backing", TEXT, backing, " create "),
	OPTION("--backing-format", TEXT, backing_format, " create clone rebase "),
	OPTION("--cluster", SIZE, cluster_bytes, NEW),
	OPTION("--refcount-bits", NUMBER, refcount_bits, NEW),
	OPTION("--compression", TEXT, compression, NEW),
	OPTION("--lazy-refcounts", FLAG, lazy, NEW),
	OPTION("--qcow2-version", NUMBER, version, NEW),
	OPTION("--replace", FLAG, replace, NEW),
	OPTION("--backings", RULE, rule, NULL),
	OPTION("--unlocked", FLAG, unlocked, NULL),
	OPTION("--metadata-only", FLAG, metadata_only, " rebase "),
	OPTION("--keep", FLAG, keep, " commit "),
	OPTION("--repair", FLAG, repair, " check "),
	OPTION("--shrink", FLAG, shrink, " resize "),
	OPTION("--json", FLAG, json, " info check compare snapshot map "),
	OPTION("--quiet", FLAG, quiet, NULL),
};

struct verb {
	const char *name;
	int (*run)(struct disk_args *args);
	unsigned fewest, most; /* arguments */
};

static const struct verb verbs[] = {
	{"create", disk_verb_create, 1, 2},
	{"clone", disk_verb_clone, 2, 3},
	{"info", disk_verb_info, 1, 1},
	{"check", disk_verb_check, 1, 1},
	{"convert", disk_verb_convert, 2, 2},
	{"compare", disk_verb_compare, 2, 2},
	{"resize", disk_verb_resize, 2, 2},
	{"snapshot", disk_verb_snapshot, 2, 3},
	{"rebase", disk_verb_rebase, 1, 2},
	{"commit", disk_verb_commit, 1, 1},
	{"map", disk_verb_map, 1, 1},
};

/* As size_parse(), and with the suffix B. */
int disk_parse_size(const char *text, uint64_t *ret_bytes)
{
	size_t length = strlen(text);
	char digits[32];

	if (!length || strcasecmp(text + length - 1, "b") ||
		strspn(text, "0123456789") != length - 1 || length > sizeof(digits))
		return size_parse(text, ret_bytes);
	snprintf(digits, sizeof(digits), "%.*s", (int)length - 1, text);
	return number_parse(digits, 0, UINT64_MAX, ret_bytes);
}

static int parse_rule(const char *value, enum disk_backing_rule *ret_rule)
{
	static const char *const names[] = {
		[DISK_BACKING_ANY] = "any",
		[DISK_BACKING_BESIDE] = "beside",
		[DISK_BACKING_REFUSE] = "refuse",
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(value, names[i]) == 0) {
			*ret_rule = (enum disk_backing_rule)i;
			return 0;
		}
	}
	return cli_misuse("--backings is any, beside or refuse, not '%s'", value);
}

static int set_option(struct disk_args *args, const struct option *option, const char *value)
{
	void *field = (char *)args + option->offset;

	switch (option->kind) {
	case FLAG: *(bool *)field = true; return 0;
	case TEXT: *(const char **)field = value; return 0;
	case RULE: return parse_rule(value, field);
	case SIZE:
		return disk_parse_size(value, field) < 0
			       ? cli_misuse("%s '%s' is not a size", option->name, value)
			       : 0;
	case NUMBER:
		return number_parse(value, 1, 64, field) < 0
			       ? cli_misuse("%s '%s' is not a number from 1 to 64", option->name,
					 value)
			       : 0;
	}
	return 0;
}

/* The option that the word names. *ret_value: what follows a '=' in it, or NULL. */
static const struct option *find_option(const char *word, const char **ret_value)
{
	size_t length = strcspn(word, "=");

	*ret_value = word[length] ? word + length + 1 : NULL;
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		if (strlen(options[i].name) == length &&
			strncmp(options[i].name, word, length) == 0)
			return &options[i];
	}
	return NULL;
}

static bool verb_takes(const struct verb *verb, const struct option *option)
{
	char word[16];

	snprintf(word, sizeof(word), " %s ", verb->name);
	return !option->verbs || strstr(option->verbs, word);
}

static int parse_option(struct disk_args *args, const struct verb *verb, int argc, char **argv, int *at)
{
	const char *word = argv[*at], *value;
	const struct option *option = find_option(word, &value);

	if (!option || (option->kind == FLAG && value))
		return cli_misuse("no option '%s' (lodge disk --help lists them)", word);
	if (!verb_takes(verb, option))
		return cli_misuse("disk %s takes no %s (lodge disk --help)", verb->name, option->name);
	if (option->kind != FLAG && !value) {
		if (++*at == argc)
			return cli_misuse("%s wants a value", word);
		value = argv[*at];
	}
	return set_option(args, option, value);
}

static int parse(struct disk_args *args, const struct verb *verb, int argc, char **argv)
{
	bool only_words = false;

	for (int i = 0; i < argc; i++) {
		int status = 0;

		if (!only_words && strcmp(argv[i], "--") == 0)
			only_words = true;
		else if (!only_words && argv[i][0] == '-' && argv[i][1] &&
			 (argv[i][1] < '0' || argv[i][1] > '9'))
			status = parse_option(args, verb, argc, argv, &i);
		else if (args->count == ARRAY_SIZE(args->word))
			status = cli_misuse("too many arguments: '%s'", argv[i]);
		else
			args->word[args->count++] = argv[i];
		if (status)
			return status;
	}
	return 0;
}

static const struct verb *find_verb(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (strcmp(verbs[i].name, name) == 0)
			return &verbs[i];
	return NULL;
}

static int refuse_count(const struct verb *verb, unsigned count)
{
	char wanted[24];

	if (verb->fewest == verb->most)
		snprintf(wanted, sizeof(wanted), "%u argument%s", verb->most, verb->most == 1 ? "" : "s");
	else
		snprintf(wanted, sizeof(wanted), "%u to %u arguments", verb->fewest, verb->most);
	return cli_misuse("disk %s takes %s, but got %u (lodge disk --help)", verb->name, wanted, count);
}

int verb_disk(int argc, char **argv)
{
	struct disk_args args = {0};
	const struct verb *verb;
	int status;

	for (int i = 1; i < argc; i++) {
		if (cli_is_help(argv[i]) || (i == 1 && strcmp(argv[i], "help") == 0)) {
			fputs(usage_text, stdout);
			return EXIT_SUCCESS;
		}
	}
	if (argc < 2) {
		fputs(usage_text, stderr);
		return EXIT_USAGE;
	}
	verb = find_verb(argv[1]);
	if (!verb)
		return cli_misuse("no verb 'disk %s' (lodge disk --help lists them)", argv[1]);
	status = parse(&args, verb, argc - 2, argv + 2);
	if (status)
		return status;
	if (args.count < verb->fewest || args.count > verb->most)
		return refuse_count(verb, args.count);
	return verb->run(&args);
}
