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
	const bool json = argc == 3 && strcmp(argv[2], "--json") == 0;

	if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
		fputs(usage_text, stdout);
		return 0;
	}
	if (argc >= 2 && strcmp(argv[1], "list") == 0 && (argc == 2 || json))
		return list(json);
	if (argc >= 3 && strcmp(argv[1], "remove") == 0)
		return remove_all(argc - 2, argv + 2);
	fputs(usage_text, stderr);
	return EXIT_USAGE;
}
