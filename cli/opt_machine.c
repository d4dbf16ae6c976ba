/*
 * lodge run WHAT, --name and --cloud-init: see opt_machine.h and docs/images.md.
 */
#include "cli/opt_machine.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cli/cli.h"
#include "host/image.h"
#include "host/names.h"
#include "host/seed.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define BUILT_BY_ITSELF "debian"

bool opt_machine_named(const struct opt_machine *o)
{
	return o->what || o->name;
}

static bool is_path(const char *what)
{
	return strchr(what, '/') || (!name_ok(what) && access(what, F_OK) == 0);
}

int opt_machine_check(const struct opt_machine *o, struct error *err)
{
	if (o->name && !name_ok(o->name))
		return error_set(err, EINVAL, "--name '%s': letters, digits, '.', '_' and '-', the first a letter or digit",
			o->name);
	if (o->name && o->what && is_path(o->what))
		return error_set(err, EINVAL, "--name goes with an image's name; '%s' is a file, which keeps its own state",
			o->what);
	if ((o->meta_data || o->network_config) && !o->cloud_init)
		return error_set(err, EINVAL, "--meta-data and --network-config go with --cloud-init");
	return 0;
}

/* The one image that everybody may expect to be there. */
static int build_if_missing(const char *image)
{
	struct image_build build = { .name = image, .size_bytes = IMAGE_SIZE_DEFAULT, .debian_suite = "bookworm",
		.cloud_init = true, .autologin = true };
	struct image_record record;

	if (strcmp(image, BUILT_BY_ITSELF) || image_find(&record, image, NULL) != -ENOENT)
		return 0;
	fprintf(stderr, "lodge: there is no image '%s' yet: building it (once; lodge image build)\n", image);
	return cli_image_build(&build);
}

static bool is_machine(const char *name)
{
	AUTO_FREE struct clone_record *all = NULL;
	unsigned count;

	if (clone_list(&all, &count, NULL) < 0)
		return false;
	for (unsigned i = 0; i < count; i++)
		if (strcmp(all[i].name, name) == 0)
			return true;
	return false;
}

/* A word that is no image may be meant as something else. */
static int explain_missing(const struct opt_machine *o, const struct error *err)
{
	cli_complain(err);
	if (o->what && !o->name && is_machine(o->what))
		fprintf(stderr, "lodge: there is a machine of that name: say --name %s\n", o->what);
	if (o->what && access(o->what, F_OK) == 0)
		fprintf(stderr, "lodge: there is a file of that name: say ./%s\n", o->what);
	return EXIT_FAILURE;
}

static int write_seed(struct opt_machine *o, struct error *err)
{
	const struct seed seed = { .user_data = o->cloud_init, .meta_data = o->meta_data,
		.network_config = o->network_config, .hostname = o->name };

	return o->cloud_init ? seed_write(&seed, o->clone.seed, err) : 0;
}

static int append_hostname(struct opt_machine *o)
{
	AUTO_FREE char *word = NULL;

	if (!o->name || o->seed) /* then cloud-init decides */
		return 0;
	if (asprintf(&word, "systemd.hostname=%s", o->name) < 0) {
		word = NULL;
		return -ENOMEM;
	}
	return opt_machine_append(o, word);
}

/* The image's profile sets the guest's terminal by it. */
static int append_terminal(struct opt_machine *o)
{
	const char *term = getenv("TERM");
	AUTO_FREE char *word = NULL;
	struct winsize size;

	if (!isatty(STDIN_FILENO) || ioctl(STDIN_FILENO, TIOCGWINSZ, &size) < 0 || !size.ws_row)
		return 0;
	const bool plain = term && *term && strlen(term) < 40 &&
			   !term[strspn(term, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-+._")];
	if (asprintf(&word, "lodge.tty=%ux%u%s%s", size.ws_row, size.ws_col, plain ? "," : "", plain ? term : "") < 0) {
		word = NULL;
		return -ENOMEM;
	}
	return opt_machine_append(o, word);
}

static int open_clone(struct opt_machine *o)
{
	struct error err;
	const bool file = o->what && is_path(o->what);
	const char *image = file ? NULL : o->what;

	if (image) {
		int status = build_if_missing(image);
		if (status)
			return status;
	}
	if (image || o->name || o->cloud_init) {
		int status = clone_open(&o->clone, image, o->name, &err);
		if (status == -ENOENT)
			return explain_missing(o, &err);
		if (status < 0 || write_seed(o, &err) < 0)
			return cli_complain(&err);
	}
	o->disk = file ? o->what : o->clone.disk;
	if (o->clone.seed && access(o->clone.seed, F_OK) == 0)
		o->seed = o->clone.seed;
	return 0;
}

int opt_machine_open(struct opt_machine *o)
{
	int status = 0;

	if (!opt_machine_named(o) && !o->cloud_init)
		return 0;
	status = open_clone(o);
	if (status)
		return status;
	if (append_hostname(o) < 0 || append_terminal(o) < 0) {
		fprintf(stderr, "lodge: no memory\n");
		return EXIT_FAILURE;
	}
	return 0;
}

int opt_machine_append(struct opt_machine *o, const char *word)
{
	char *more;

	if (asprintf(&more, "%s%s%s", o->append ? o->append : "", o->append ? " " : "", word) < 0)
		return -ENOMEM;
	free(o->append);
	o->append = more;
	return 0;
}

void opt_machine_close(struct opt_machine *o)
{
	clone_close(&o->clone);
	free(o->append);
	o->append = NULL;
}
