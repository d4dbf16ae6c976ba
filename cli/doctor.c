/*
 * lodge doctor: say what this host offers, and what to do about what it lacks.
 */
#include "base/util.h"
#include "cli/cli.h"
#include "host/doctor.h"
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const char usage_text[] =
	"usage: lodge doctor [--json]\n"
	"\n"
	"What this host offers to machines, and what to do about what it lacks.\n";

static const char *const verdicts[] = {
	[DOCTOR_OK] = "ok",
	[DOCTOR_LIMITED] = "limited",
	[DOCTOR_MISSING] = "missing",
};

static void print_text(const struct doctor_report *report)
{
	for (unsigned i = 0; i < report->count; i++) {
		const struct doctor_finding *f = &report->finding[i];

		printf("%-8s %-12s %s\n", verdicts[f->verdict], f->name, f->text);
		if (*f->remedy)
			printf("%-8s %-12s remedy: %s\n", "", "", f->remedy);
	}
	printf("\n--engine auto takes: %s\n", report->engine);
}

static void print_json(const struct doctor_report *report)
{
	printf("{\"engine\":");
	cli_print_json_string(report->engine);
	printf(",\"findings\":[");
	for (unsigned i = 0; i < report->count; i++) {
		const struct doctor_finding *f = &report->finding[i];
		const char *const fields[][2] = { { "name", f->name },
			{ "verdict", verdicts[f->verdict] }, { "text", f->text },
			{ "remedy", f->remedy } };

		printf("%s{", i ? "," : "");
		for (unsigned k = 0; k < ARRAY_SIZE(fields); k++) {
			printf("%s\"%s\":", k ? "," : "", fields[k][0]);
			cli_print_json_string(fields[k][1]);
		}
		putchar('}');
	}
	printf("]}\n");
}

int verb_doctor(int argc, char **argv)
{
	struct doctor_report report;
	bool json = false;

	for (int i = 1; i < argc; i++) {
		if (cli_is_help(argv[i])) {
			fputs(usage_text, stdout);
			return 0;
		}
		if (strcmp(argv[i], "--json"))
			return cli_misuse("doctor takes only --json, not '%s'", argv[i]);
		json = true;
	}
	doctor_examine(&report);
	if (json)
		print_json(&report);
	else
		print_text(&report);
	return 0;
}
