/*
 * lodge machine: the machines that lodge run --name keeps, and those that run.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "cli/cli.h"
#include "cli/machine.h"
#include "host/clone.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage_text[] =
	"usage: lodge machine list [--json]\n"
	"       lodge machine remove NAME...\n"
	"       lodge machine VERB NAME [ARGUMENT...] [--json]\n"
	"\n"
	"The machines that `lodge run IMAGE --name NAME` keeps: their disks, and what is on them. Those that run are told\n"
	"things by these verbs (docs/control.md):\n"
	"\n"
	"  status NAME              whether it runs, its engine, memory, time\n"
	"  pause NAME, resume NAME  hold its processors and clocks; let them go on\n"
	"  balloon NAME [SIZE]      what the guest tells of its memory; or have it give that much away\n"
	"  attach NAME --disk FILE[,...] | --net NETWORK[,...] [--device DEVICE]\n"
	"                           plug in a disk or a network card; prints what the device is called\n"
	"  detach NAME DEVICE       ask the guest to let go of it\n"
	"  screenshot NAME FILE     its screen as a PNG file\n"
	"  poweroff NAME            press the power button\n"
	"  reset NAME               press the reset button\n"
	"  stop NAME                end it at once, as Ctrl-A x does\n"
	"\n"
	"NAME may be the path of a socket of `lodge run --control PATH`: with a '/' in it.\n";

static void print_json(const struct clone_record *record, const char *state)
{
	printf("{\"name\":");
	cli_print_json_string(record->name);
	printf(",\"image\":");
	cli_print_json_string(record->image);
	printf(",\"state\":");
	cli_print_json_string(state);
	printf(",\"used_bytes\":%llu}", record->used_bytes);
}

static int list(const struct machine_args *args)
{
	AUTO_FREE struct clone_record *all = NULL;
	struct error err;
	unsigned count;

	if (clone_list(&all, &count, &err) < 0)
		return cli_complain(&err);
	if (args->json)
		putchar('[');
	else if (count)
		printf("%-20s %-20s %-9s %s\n", "NAME", "IMAGE", "STATE", "USED");
	for (unsigned i = 0; i < count; i++) {
		char state[16];

		machine_state(all[i].name, state);
		if (args->json) {
			fputs(i ? "," : "", stdout);
			print_json(&all[i], state);
		} else {
			printf("%-20s %-20s %-9s %llu MiB\n", all[i].name, all[i].image, state,
				all[i].used_bytes >> 20);
		}
	}
	if (args->json)
		puts("]");
	return 0;
}

static int remove_all(const struct machine_args *args)
{
	struct error err;
	int status = 0;

	for (int i = 0; i < args->count; i++)
		if (clone_remove(args->word[i], &err) < 0)
			status = cli_complain(&err);
	return status;
}

static const struct {
	const char *name;
	int (*run)(const struct machine_args *args);
	int min, max; /* words behind it */
	bool json;
	const char *wants;
} verbs[] = {
	{"list", list, 0, 0, true, "no names"},
	{"remove", remove_all, 1, INT_MAX, false, "names of machines"},
	{"status", machine_status, 1, 1, true, "the name of a machine"},
	{"pause", machine_pause_verb, 1, 1, true, "the name of a machine"},
	{"resume", machine_resume_verb, 1, 1, true, "the name of a machine"},
	{"balloon", machine_balloon, 1, 2, true, "the name of a machine, and a size or nothing"},
	{"attach", machine_attach, 1, 1, true, "the name of a machine, and --disk or --net"},
	{"detach", machine_detach, 2, 2, true,
		"the names of a machine and of what is attached to it"},
	{"screenshot", machine_screenshot, 2, 2, false, "the names of a machine and of a file"},
	{"poweroff", machine_poweroff, 1, 1, true, "the name of a machine"},
	{"reset", machine_reset_verb, 1, 1, true, "the name of a machine"},
	{"stop", machine_stop_verb, 1, 1, true, "the name of a machine"},
};

static int run_verb(const char *name, const struct machine_args *args)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (strcmp(name, verbs[i].name))
			continue;
		if (args->count < verbs[i].min || args->count > verbs[i].max)
			return cli_misuse("machine %s wants %s", name, verbs[i].wants);
		if (args->json && !verbs[i].json)
			return cli_misuse("machine %s knows no --json", name);
		if ((args->disk || args->net || args->device) && verbs[i].run != machine_attach)
			return cli_misuse("machine %s knows no --disk, --net and --device", name);
		return verbs[i].run(args);
	}
	return cli_misuse("no verb 'machine %s' (lodge machine --help lists them)", name);
}

/* Options of attach: `--name value` or `--name=value`. Returns how many arguments it took; 0: it is none; or negative. */
static int set_option(struct machine_args *args, const char *arg, const char *next)
{
	const struct {
		const char *name;
		const char **value;
	} options[] = {{"--disk", &args->disk}, {"--net", &args->net}, {"--device", &args->device}};

	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		const size_t length = strlen(options[i].name);

		if (strncmp(arg, options[i].name, length) || (arg[length] && arg[length] != '='))
			continue;
		*options[i].value = arg[length] ? arg + length + 1 : next;
		if (!*options[i].value || !**options[i].value)
			return cli_refuse(
				"%s wants a value (lodge machine --help)", options[i].name);
		return arg[length] ? 1 : 2;
	}
	return 0;
}

int verb_machine(int argc, char **argv)
{
	struct machine_args args = {.word = argv + 1};
	int words = 0;

	/* The words that are no options move to the front. */
	for (int i = 1, took; i < argc; i += took) {
		if (cli_is_help(argv[i])) {
			fputs(usage_text, stdout);
			return 0;
		}
		took = set_option(&args, argv[i], i + 1 < argc ? argv[i + 1] : NULL);
		if (took < 0)
			return EXIT_USAGE;
		if (took)
			continue;
		took = 1;
		if (strcmp(argv[i], "--json") == 0)
			args.json = true;
		else if (argv[i][0] == '-')
			return cli_misuse(
				"no option '%s' (lodge machine --help lists them)", argv[i]);
		else
			argv[words++] = argv[i];
	}
	if (!words) {
		fputs(usage_text, stderr);
		return EXIT_USAGE;
	}
	args.count = words - 1;
	return run_verb(argv[0], &args);
}
