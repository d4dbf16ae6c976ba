/*
 * lodge image: build, list, show, remove and import the disk images that machines are made from.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "base/number.h"
#include "base/util.h"
#include "cli/cli.h"
#include "host/image.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char usage_text[] =
	"usage: lodge image VERB [OPTION...]\n"
	"\n"
	"  build debian        build a Debian with mmdebstrap; no root needed where user namespaces are\n"
	"                      permitted\n"
	"  build --from-tar F  build from a tar archive of a root file system\n"
	"  build --from-oci L  build from an OCI image layout, a directory or an archive; L may end in :TAG\n"
	"  list                the images there are\n"
	"  show NAME           what is known of one\n"
	"  remove NAME...      remove them; machines made from them keep what they need\n"
	"  import NAME FILE    copy a disk image here, raw or qcow2\n"
	"\n"
	"options of build:\n"
	"  --name NAME         its name (default: debian; must be given with --from-...)\n"
	"  --size SIZE         of its disk (default: 8G); the file holds only what is written\n"
	"  --replace           build it anew if it is there (import has this too)\n"
	"options of build debian:\n"
	"  --suite SUITE       bookworm (default) or another\n"
	"  --include PKG,...   more packages\n"
	"  --mirror ADDRESS    instead of Debian's own\n"
	"  --no-cloud-init     without cloud-init, which --cloud-init of lodge run needs\n"
	"  --no-autologin      let the console ask for a name and password (root has none, so by then there\n"
	"                      must be a user: see --cloud-init)\n"
	"\n"
	"  --json              for programs: what list, show and build print\n";

struct image_options {
	struct image_build build;
	const char *words[16]; /* what is no option */
	unsigned word_count;
	bool json, help;
};

/* ---- options ---- */

static int set_size(struct image_options *o, const char *value)
{
	if (size_parse(value, &o->build.size_bytes) < 0 || o->build.size_bytes < MIB(128) ||
		o->build.size_bytes > GIB(16384))
		return cli_refuse("--size '%s' is no size of a disk: give 128M to 16T, such as 8G", value);
	return 0;
}

/* 1: taken; 0: no such option. */
static int set_valued(struct image_options *o, const char *name, const char *value)
{
	const struct {
		const char *name;
		const char **to;
	} texts[] = { { "--name", &o->build.name }, { "--suite", &o->build.debian_suite }, { "--include", &o->build.include },
		{ "--mirror", &o->build.mirror }, { "--from-tar", &o->build.tar }, { "--from-oci", &o->build.oci } };

	if (strcmp(name, "--size") == 0)
		return set_size(o, value) < 0 ? -EINVAL : 1;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		if (strcmp(name, texts[i].name) == 0) {
			if (!*value)
				return cli_refuse("%s wants a value", name);
			*texts[i].to = value;
			return 1;
		}
	return 0;
}

static bool is_valued(const char *name)
{
	struct image_options none = { 0 };

	return set_valued(&none, name, "1G") == 1;
}

static bool set_flag(struct image_options *o, const char *name)
{
	if (strcmp(name, "--replace") == 0)
		o->build.replace = true;
	else if (strcmp(name, "--no-cloud-init") == 0)
		o->build.cloud_init = false;
	else if (strcmp(name, "--no-autologin") == 0)
		o->build.autologin = false;
	else if (strcmp(name, "--json") == 0)
		o->json = true;
	else if (cli_is_help(name))
		o->help = true;
	else
		return false;
	return true;
}

/* How many arguments it took, or negative. */
static int set_option(struct image_options *o, char *arg, const char *next)
{
	char *equals = strchr(arg, '=');

	if (arg[0] != '-') {
		if (o->word_count == ARRAY_SIZE(o->words))
			return cli_refuse("too many words");
		o->words[o->word_count++] = arg;
		return 1;
	}
	if (set_flag(o, arg))
		return 1;
	if (equals)
		*equals = '\0';
	if (!is_valued(arg))
		return cli_refuse("no option '%s' (lodge image --help lists them)", arg);
	if (!equals && !next)
		return cli_refuse("%s wants a value", arg);
	int status = set_valued(o, arg, equals ? equals + 1 : next);
	return status < 0 ? status : equals ? 1 : 2;
}

/* ---- printing ---- */

static void print_size(char text[static 16], uint64_t bytes)
{
	if (bytes >= GIB(1))
		snprintf(text, 16, "%.1f GiB", (double)bytes / (double)GIB(1));
	else
		snprintf(text, 16, "%" PRIu64 " MiB", bytes >> 20);
}

static void print_json(const struct image_record *info)
{
	const char *const fields[][2] = { { "name", info->name }, { "kind", info->kind }, { "source", info->source },
		{ "created", info->created }, { "root", info->root } };
	AUTO_FREE char *path = NULL;

	putchar('{');
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		printf("%s\"%s\":", i ? "," : "", fields[i][0]);
		cli_print_json_string(fields[i][1]);
	}
	printf(",\"disk\":");
	cli_print_json_string(image_disk_path(&path, info->name, NULL) == 0 ? path : "");
	printf(",\"size_bytes\":%" PRIu64 ",\"used_bytes\":%" PRIu64 "}", info->size_bytes, info->used_bytes);
}

static void print_row(const struct image_record *info)
{
	char size[16], used[16];

	print_size(size, info->size_bytes);
	print_size(used, info->used_bytes);
	printf("%-20s %-8s %-10s %-10s %-20s %s\n", info->name, info->kind, size, used, info->created, info->source);
}

/* ---- what takes its time ---- */

static void say(void *opaque, const char *line)
{
	const struct timespec *begun = opaque;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	fprintf(stderr, "lodge: [%3lds] %s\n", (long)(now.tv_sec - begun->tv_sec), line);
}

static bool stop(void *opaque)
{
	return cli_stop_asked();
}

/* From here on a signal stops it. *ret_begun outlives it. */
static void listen_to(struct image_build *build, struct timespec *ret_begun)
{
	clock_gettime(CLOCK_MONOTONIC, ret_begun);
	cli_catch_stop();
	signal(SIGPIPE, SIG_IGN);
	build->progress = say;
	build->stop = stop;
	build->opaque = ret_begun;
}

/* ---- verbs ---- */

static int list(const struct image_options *o)
{
	AUTO_FREE struct image_record *all = NULL;
	struct error err;
	unsigned count;

	if (o->word_count > 1)
		return cli_misuse("list takes no names");
	if (image_list(&all, &count, &err) < 0)
		return cli_complain(&err);
	if (o->json)
		putchar('[');
	else if (count)
		printf("%-20s %-8s %-10s %-10s %-20s %s\n", "NAME", "KIND", "SIZE", "USED", "CREATED", "SOURCE");
	for (unsigned i = 0; i < count; i++) {
		if (o->json) {
			fputs(i ? "," : "", stdout);
			print_json(&all[i]);
		} else {
			print_row(&all[i]);
		}
	}
	if (o->json)
		puts("]");
	return 0;
}

static int show_one(const char *name, bool json)
{
	AUTO_FREE char *path = NULL;
	struct image_record info;
	struct error err;
	char size[16], used[16];

	if (image_find(&info, name, &err) < 0 || image_disk_path(&path, name, &err) < 0)
		return cli_complain(&err);
	if (json) {
		print_json(&info);
		putchar('\n');
		return 0;
	}
	print_size(size, info.size_bytes);
	print_size(used, info.used_bytes);
	printf("name     %s\nkind     %s\nsource   %s\ncreated  %s\nsize     %s, of which the host holds %s\ndisk     %s\n",
		info.name, info.kind, info.source, info.created, size, used, path);
	if (*info.root)
		printf("root     %s\n", info.root);
	return 0;
}

static int show(const struct image_options *o)
{
	if (o->word_count != 2)
		return cli_misuse("show wants the name of one image");
	return show_one(o->words[1], o->json);
}

static int remove_all(const struct image_options *o)
{
	struct error err;
	int status = 0;

	if (o->word_count < 2)
		return cli_misuse("remove wants names of images");
	for (unsigned i = 1; i < o->word_count; i++)
		if (image_remove(o->words[i], &err) < 0)
			status = cli_complain(&err);
	return status;
}

static int import(struct image_options *o)
{
	struct timespec begun;
	struct error err;

	if (o->word_count != 3)
		return cli_misuse("import wants a name and a file");
	o->build.name = o->words[1];
	listen_to(&o->build, &begun);
	if (image_import(&o->build, o->words[2], &err) < 0)
		return cli_complain(&err);
	return o->json ? show_one(o->words[1], true) : 0;
}

/* ---- build ---- */

static int check_build(struct image_options *o)
{
	struct image_build *b = &o->build;
	const bool debian = o->word_count == 2 && strcmp(o->words[1], "debian") == 0;
	const int sources = debian + !!b->tar + !!b->oci;

	if (o->word_count > 2 || (o->word_count == 2 && !debian))
		return cli_refuse("can't build '%s': there is debian, --from-tar and --from-oci", o->words[o->word_count - 1]);
	if (sources != 1)
		return cli_refuse("build wants one source: debian, --from-tar FILE or --from-oci LAYOUT");
	if (!debian && (b->debian_suite || b->include || b->mirror))
		return cli_refuse("--suite, --include and --mirror go with build debian");
	if (!debian && !b->name)
		return cli_refuse("give the image a name: --name NAME");
	if (debian && !b->debian_suite)
		b->debian_suite = "bookworm";
	if (!b->name)
		b->name = "debian";
	return 0;
}

int cli_image_build(struct image_build *build)
{
	struct timespec begun;
	struct error err;
	bool built;

	listen_to(build, &begun);
	if (image_build(build, &built, &err) < 0)
		return cli_complain(&err);
	if (!built)
		fprintf(stderr, "lodge: the image '%s' is there already; --replace builds it anew\n", build->name);
	else
		say(&begun, "done");
	return 0;
}

static int build_image(struct image_options *o)
{
	if (check_build(o) < 0)
		return EXIT_USAGE;
	int status = cli_image_build(&o->build);
	return status || !o->json ? status : show_one(o->build.name, true);
}

int verb_image(int argc, char **argv)
{
	struct image_options o = { .build = { .size_bytes = IMAGE_SIZE_DEFAULT, .cloud_init = true, .autologin = true } };

	for (int i = 1; i < argc;) {
		int took = set_option(&o, argv[i], i + 1 < argc ? argv[i + 1] : NULL);
		if (took < 0)
			return EXIT_USAGE;
		i += took;
	}
	if (o.help) {
		fputs(usage_text, stdout);
		return 0;
	}
	if (!o.word_count)
		return fputs(usage_text, stderr), EXIT_USAGE;
	if (strcmp(o.words[0], "build") == 0)
		return build_image(&o);
	if (strcmp(o.words[0], "list") == 0)
		return list(&o);
	if (strcmp(o.words[0], "show") == 0)
		return show(&o);
	if (strcmp(o.words[0], "remove") == 0)
		return remove_all(&o);
	if (strcmp(o.words[0], "import") == 0)
		return import(&o);
	return cli_misuse("no verb 'image %s' (lodge image --help lists them)", o.words[0]);
}
