/*
 * lodge: one program, many verbs. This file finds the verb; each verb has its own file.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"

struct verb {
	const char *name;
	const char *help;
	/* argv[0] is the verb's name. Returns the exit status. */
	int (*run)(int argc, char **argv);
};

static int verb_version(int argc, char **argv)
{
	if (argc > 1) {
		fprintf(stderr, "lodge: version takes no arguments, but got '%s'\n", argv[1]);
		return EXIT_USAGE;
	}
	printf("lodge %s\n", LODGE_VERSION);
	return EXIT_SUCCESS;
}

static const struct verb verbs[] = {
	{"run", "boot a disk image or a kernel in a new machine, on this terminal", verb_run},
	{"image", "build and keep the disk images that machines are made from", verb_image},
	{"machine", "list and remove the machines that run --name keeps", verb_machine},
	{"disk", "make, examine, check and copy disk images", verb_disk},
	{"doctor", "say what this host offers, and what to do about what it lacks", verb_doctor},
	{"version", "print the version", verb_version},
};

static void print_usage(FILE *to)
{
	fprintf(to, "usage: lodge VERB [OPTION...]\n\nverbs:\n");
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(to, "  %-10s %s\n", verbs[i].name, verbs[i].help);
}

static const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (strcmp(verbs[i].name, name) == 0)
			return &verbs[i];
	}
	return NULL;
}

static int log_init(void)
{
	const char *name = getenv("LODGE_LOG");
	enum log_level level;

	if (!name || !*name)
		return 0;
	if (log_level_parse(name, &level) < 0) {
		fprintf(stderr, "lodge: LODGE_LOG is '%s'; it can be error, warn, info or debug\n",
			name);
		return -1;
	}
	log_level_set(level);
	return 0;
}

/* A standard descriptor that the caller closed must not become some other file's number. */
static int streams_open(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd < 0)
		return -1;
	return close(fd);
}

/* What a verb printed may be found lost only when it is flushed. */
static int finish(int status)
{
	bool lost = ferror(stdout);

	if (fflush(stdout) == 0 && !lost)
		return status;
	fprintf(stderr, "lodge: can't write to standard output: %s\n", strerror(errno));
	return status ? status : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
	const struct verb *verb;

	if (streams_open() < 0)
		return EXIT_FAILURE;
	if (log_init() < 0)
		return EXIT_USAGE;
	if (argc < 2) {
		print_usage(stderr);
		return EXIT_USAGE;
	}
	if (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0) {
		print_usage(stdout);
		return finish(EXIT_SUCCESS);
	}
	verb = verb_find(argv[1]);
	if (!verb) {
		fprintf(stderr, "lodge: no verb '%s' (lodge help lists them)\n", argv[1]);
		return EXIT_USAGE;
	}
	return finish(verb->run(argc - 1, argv + 1));
}
