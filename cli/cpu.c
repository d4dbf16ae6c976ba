/*
 * lodge run --cpu help: the CPU models, what each gives on this host with this engine, and which flags
 * can't be had.
 */
#include "base/error.h"
#include "base/util.h"
#include "cli/cli.h"
#include "engine/engine.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define COLUMNS 98
#define INDENT	6
#define TSC_HZ	1000000000 /* no flag depends on it */

/* From the poorest to the richest, so that each can be told by what it adds. */
static const enum x86_cpu_base order[] = {
	X86_CPU_LEVEL1, X86_CPU_LEVEL2, X86_CPU_LEVEL3, X86_CPU_HOST, X86_CPU_MAX};

struct offer {
	struct x86_cpuid_model model;
	struct error err; /* code 0: can be given */
};

struct offers {
	const struct engine_ops *engine;
	struct offer offer[ARRAY_SIZE(order)];
};

static int resolve(const struct engine_ops *engine, const struct x86_cpu_choice *choice,
	struct x86_cpuid_model *model, struct error *err)
{
	int status = x86_cpuid_choose(model, choice, 1, TSC_HZ, err);

	if (status == 0 && engine->cpuid_limit)
		status = engine->cpuid_limit(model, err);
	return status < 0 ? status : x86_cpuid_check(model, engine->name, err);
}

static void collect(struct offers *ret_offers, const struct engine_ops *engine)
{
	ret_offers->engine = engine;
	for (unsigned i = 0; i < ARRAY_SIZE(order); i++) {
		const struct x86_cpu_choice choice = {.base = order[i]};
		struct offer *o = &ret_offers->offer[i];
		if (resolve(engine, &choice, &o->model, &o->err) == 0)
			o->err.code = 0;
	}
}

/* Why the flag is in no model, or NULL if max has it. */
static const char *refusal(const struct offers *offers, unsigned flag)
{
	const struct offer *max = &offers->offer[ARRAY_SIZE(order) - 1];
	const char *why = x86_cpuid_refusal(flag);

	if (!why && !max->err.code && !x86_cpuid_shows(&max->model, flag))
		return "the engine lacks it";
	return why;
}

/* ---- for people ---- */

/* A word after the ones before it, on a new line if need be. column: where the line is now. */
static void put_word(const char *word, unsigned *column)
{
	const unsigned length = (unsigned)strlen(word);

	if (*column + 1 + length > COLUMNS) {
		printf("\n%*s", INDENT, "");
		*column = INDENT;
	}
	*column += 1 + length;
	printf(" %s", word);
}

/* The words of a line. */
static void put_line(const char *line, unsigned *column)
{
	struct error copy;
	char *rest = copy.text;

	snprintf(copy.text, sizeof(copy.text), "%s", line);
	for (char *word = strsep(&rest, " "); word; word = strsep(&rest, " "))
		put_word(word, column);
}

/* The flags that `has` shows and `lacks` does not; returns how many. */
static unsigned put_flags(const struct x86_cpuid_model *has, const struct x86_cpuid_model *lacks,
	const char *title, unsigned *column)
{
	const char *name;
	unsigned count = 0;

	for (unsigned i = 0; x86_cpuid_flag_name(i, &name); i++) {
		if (!name || !x86_cpuid_shows(has, i) || (lacks && x86_cpuid_shows(lacks, i)))
			continue;
		if (!count++ && *title)
			put_word(title, column);
		put_word(name, column);
	}
	return count;
}

static void print_model(const struct offers *offers, unsigned i, const struct offer *before)
{
	const struct offer *o = &offers->offer[i];
	const char *base = before ? x86_cpu_base_name(order[before - offers->offer]) : "";
	unsigned column = INDENT;
	char title[40];

	printf("\n  %s%s\n%*s", x86_cpu_base_name(order[i]),
		order[i] == X86_CPU_MAX ? " (default)" : "", INDENT, "");
	if (o->err.code) {
		put_line(o->err.text, &column);
		putchar('\n');
		return;
	}
	snprintf(title, sizeof(title), "%s%s", base, before ? " and" : "");
	unsigned count = put_flags(&o->model, before ? &before->model : NULL, title, &column);
	snprintf(title, sizeof(title), "%s%s", count ? "" : base, count ? "without" : " without");
	if (before)
		count += put_flags(&before->model, &o->model, title, &column);
	if (!count)
		put_word(base, &column);
	putchar('\n');
}

/* The flags that can't be had for this reason, if a flag before `first` has not had it already. */
static void print_reason(const struct offers *offers, unsigned first, const char *reason)
{
	unsigned column = INDENT;
	const char *name, *why;

	for (unsigned i = 0; x86_cpuid_flag_name(i, &name); i++) {
		why = name ? refusal(offers, i) : NULL;
		if (!why || strcmp(why, reason))
			continue;
		if (i < first)
			return;
		if (i == first)
			printf("\n  not to be had: %s\n%*s", reason, INDENT, "");
		put_word(name, &column);
	}
	putchar('\n');
}

static void print_text(const struct offers *offers)
{
	const struct offer *before = NULL;
	const char *name;

	printf("--cpu MODEL[,+FLAG][,-FLAG]...\n\n"
	       "From left to right: the last one counts. A flag brings what it stands on, and takes what stands\n"
	       "on it away. With engine %s the models show on this host:\n",
		offers->engine->name);
	for (unsigned i = 0; i < ARRAY_SIZE(order); i++) {
		print_model(offers, i, before);
		if (!offers->offer[i].err.code)
			before = &offers->offer[i];
	}
	for (unsigned i = 0; x86_cpuid_flag_name(i, &name); i++)
		if (name && refusal(offers, i))
			print_reason(offers, i, refusal(offers, i));
	printf("\nFor software engines also vendor=amd|intel, family=N, model=N, stepping=N.\n");
}

/* ---- for programs ---- */

static void print_json_model(const struct offers *offers, unsigned i)
{
	const struct offer *o = &offers->offer[i];
	const char *name, *comma = "";

	printf("%s{\"name\":", i ? "," : "");
	cli_print_json_string(x86_cpu_base_name(order[i]));
	printf(",\"error\":");
	if (o->err.code)
		cli_print_json_string(o->err.text);
	else
		printf("null");
	printf(",\"flags\":[");
	for (unsigned k = 0; !o->err.code && x86_cpuid_flag_name(k, &name); k++) {
		if (!name || !x86_cpuid_shows(&o->model, k))
			continue;
		fputs(comma, stdout);
		cli_print_json_string(name);
		comma = ",";
	}
	printf("]}");
}

static void print_json(const struct offers *offers)
{
	const char *name, *comma = "";

	printf("{\"engine\":");
	cli_print_json_string(offers->engine->name);
	printf(",\"default\":");
	cli_print_json_string(x86_cpu_base_name(X86_CPU_MAX));
	printf(",\"models\":[");
	for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
		print_json_model(offers, i);
	printf("],\"refused\":[");
	for (unsigned i = 0; x86_cpuid_flag_name(i, &name); i++) {
		const char *why = name ? refusal(offers, i) : NULL;
		if (!why)
			continue;
		printf("%s{\"flag\":", comma);
		cli_print_json_string(name);
		printf(",\"why\":");
		cli_print_json_string(why);
		putchar('}');
		comma = ",";
	}
	printf("]}\n");
}

int cli_cpu_check(const struct engine_ops *engine, const struct x86_cpu_choice *choice)
{
	struct x86_cpuid_model model;
	struct error err;

	if (choice->base == X86_CPU_MAX && !choice->change_count) /* asks for nothing by name */
		return 0;
	if (resolve(engine, choice, &model, &err) == 0)
		return 0;
	fprintf(stderr, "lodge: %s (lodge run --cpu help says what can be given)\n", err.text);
	return -ENOTSUP;
}

int cli_cpu_help(const struct engine_ops *engine, bool json)
{
	struct offers offers = {0};

	collect(&offers, engine);
	if (json)
		print_json(&offers);
	else
		print_text(&offers);
	return 0;
}
