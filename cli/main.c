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
	if (argc == 2 && cli_is_help(argv[1])) {
		puts("usage: lodge version");
		return EXIT_SUCCESS;
	}
	if (argc > 1)
		return cli_misuse("version takes no arguments, but got '%s'", argv[1]);
	printf("lodge %s\n", LODGE_VERSION);
	return EXIT_SUCCESS;
}

static const struct verb verbs[] = {
	{"run", "boot a disk image or a kernel in a new machine, on this terminal", verb_run},
	{"image", "build and keep the disk images that machines are made from", verb_image},
	{"machine", "list, control and remove the machines that run --name keeps", verb_machine},
	{"disk", "make, examine, check and copy disk images", verb_disk},
	{"doctor", "say what this host offers, and what to do about what it lacks", verb_doctor},
	{"version", "print the version", verb_version},
};

static void print_usage(FILE *to)
{
	fprintf(to, "usage: lodge VERB [OPTION...]\n\nverbs:\n");
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(to, "  %-10s %s\n", verbs[i].name, verbs[i].help);
	fprintf(to, "\n`lodge VERB --help` tells more of one.\n");
}

static const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (strcmp(verbs[i].name, name) == 0)
			return &verbs[i];
	}
	return NULL;
}

/* How others' programs spell a verb. */
static const char *spelling(const char *word)
{
	if (cli_is_help(word))
		return "help";
	return strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0 ? "version" : word;
}

static int run_verb(int argc, char **argv)
{
	const struct verb *verb = verb_find(argv[0]);

	return verb ? verb->run(argc, argv) : cli_misuse("no verb '%s' (lodge help lists them)", argv[0]);
}

/* lodge help [VERB] */
static int help(int argc, char **argv)
{
	if (argc > 2)
		return cli_misuse("help takes one verb, but got '%s' too", argv[2]);
	if (argc == 2)
		return run_verb(2, (char *[]){ argv[1], (char[]){ "--help" }, NULL });
	print_usage(stdout);
	return EXIT_SUCCESS;
}

static int log_init(void)
{
	const char *name = getenv("LODGE_LOG");
	enum log_level level;

	if (!name || !*name)
		return 0;
	if (log_level_parse(name, &level) < 0)
		return cli_refuse("LODGE_LOG is '%s'; it can be error, warn, info or debug", name);
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
	if (streams_open() < 0)
		return EXIT_FAILURE;
	if (log_init() < 0)
		return EXIT_USAGE;
	if (argc < 2) {
		print_usage(stderr);
		return EXIT_USAGE;
	}
	argv[1] = (char *)spelling(argv[1]);
	return finish(strcmp(argv[1], "help") ? run_verb(argc - 1, argv + 1) : help(argc - 1, argv + 1));
}
