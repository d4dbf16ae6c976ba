/*
 * lodge machine: the machines that lodge run --name keeps.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "cli/cli.h"
#include "host/clone.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage_text[] =
	"usage: lodge machine list [--json]\n"
	"       lodge machine remove NAME...\n"
	"\n"
	"The machines that `lodge run IMAGE --name NAME` keeps: their disks, and what is on them.\n";

static int list(bool json)
{
	AUTO_FREE struct clone_record *all = NULL;
	struct error err;
	unsigned count;

	if (clone_list(&all, &count, &err) < 0)
		return cli_complain(&err);
	if (json)
		putchar('[');
	else if (count)
		printf("%-20s %-20s %s\n", "NAME", "IMAGE", "USED");
	for (unsigned i = 0; i < count; i++) {
		if (!json) {
			printf("%-20s %-20s %llu MiB\n", all[i].name, all[i].image, all[i].used_bytes >> 20);
			continue;
		}
		printf("%s{\"name\":", i ? "," : "");
		cli_print_json_string(all[i].name);
		printf(",\"image\":");
		cli_print_json_string(all[i].image);
		printf(",\"used_bytes\":%llu}", all[i].used_bytes);
	}
	if (json)
		puts("]");
	return 0;
}

static int remove_all(int count, char **names)
{
	struct error err;
	int status = 0;

	for (int i = 0; i < count; i++)
		if (clone_remove(names[i], &err) < 0)
			status = cli_complain(&err);
	return status;
}

int verb_machine(int argc, char **argv)
{
	int words = 0;
	bool json = false;

	/* The words that are no options move to the front. */
	for (int i = 1; i < argc; i++) {
		if (cli_is_help(argv[i])) {
			fputs(usage_text, stdout);
			return 0;
		}
		if (strcmp(argv[i], "--json") == 0)
			json = true;
		else if (argv[i][0] == '-')
			return cli_misuse("no option '%s' (lodge machine --help lists them)", argv[i]);
		else
			argv[words++] = argv[i];
	}
	if (!words) {
		fputs(usage_text, stderr);
		return EXIT_USAGE;
	}
	if (strcmp(argv[0], "list") == 0)
		return words == 1 ? list(json) : cli_misuse("machine list takes no names");
	if (strcmp(argv[0], "remove"))
		return cli_misuse("no verb 'machine %s' (lodge machine --help lists them)", argv[0]);
	if (json || words == 1)
		return cli_misuse(json ? "--json goes with machine list" : "machine remove wants names of machines");
	return remove_all(words - 1, argv + 1);
}
