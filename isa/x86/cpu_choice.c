/*
 * The words in which a user chooses a CPU model: "MODEL[,+FLAG][,-FLAG][,KEY=VALUE]" (docs/cpu.md).
 * Nothing here looks at the host: what it can give is cpuid_build.c's to say.
 */
#include "isa/x86/cpuid.h"

#include "base/error.h"
#include "base/util.h"
#include "isa/x86/cpuid_flags.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const base_names[X86_CPU_BASES] = {
	[X86_CPU_MAX] = "max",
	[X86_CPU_HOST] = "host",
	[X86_CPU_LEVEL1] = "x86-64-v1",
	[X86_CPU_LEVEL2] = "x86-64-v2",
	[X86_CPU_LEVEL3] = "x86-64-v3",
};

/* A piece of the text, not terminated. */
struct word {
	const char *text;
	size_t length;
};

static bool word_is(struct word w, const char *text)
{
	return strlen(text) == w.length && memcmp(text, w.text, w.length) == 0;
}

/* The part of a word that an error shows. */
#define WORD(w) (int)MIN((w).length, (size_t)80), (w).text

static int parse_base(struct x86_cpu_choice *c, struct word w, struct error *err)
{
	for (unsigned i = 0; i < X86_CPU_BASES; i++) {
		if (!word_is(w, base_names[i]))
			continue;
		c->base = i;
		return 0;
	}
	if (!word_is(w, "x86-64"))
		return error_set(err, EINVAL,
			"no CPU model '%.*s': there are max, host, x86-64-v1, x86-64-v2 and x86-64-v3 "
			"(lodge run --cpu help)",
			WORD(w));
	c->base = X86_CPU_LEVEL1;
	return 0;
}

static int unknown_flag(struct word w, struct error *err)
{
	char names[800] = "";
	size_t length = 0;

	for (unsigned i = 0; i < x86_cpuid_flag_count; i++) {
		const struct x86_cpuid_flag *f = &x86_cpuid_flags[i];
		if (!f->name || (f->need & (NEED_HIDDEN | NEED_FIXED)) || length >= sizeof(names))
			continue;
		length += (size_t)snprintf(names + length, sizeof(names) - length, " %s", f->name);
	}
	return error_set(err, EINVAL, "no CPU flag '%.*s': there are%s", WORD(w), names);
}

static int parse_change(struct x86_cpu_choice *c, struct word w, struct error *err)
{
	const bool on = *w.text == '+';
	const struct word name = {w.text + 1, w.length - 1};
	const int flag = x86_cpuid_flag_find(name.text, name.length);

	if (flag < 0)
		return unknown_flag(name, err);
	if (!on && (x86_cpuid_flags[flag].need & NEED_FIXED))
		return error_set(err, EINVAL,
			"CPU flag '%.*s' can't be taken away: every 64-bit machine has it",
			WORD(name));
	if (c->change_count == X86_CPU_CHANGES_MAX)
		return error_set(err, EINVAL, "more than %d CPU flags", X86_CPU_CHANGES_MAX);
	c->change[c->change_count++] = (struct x86_cpu_change){.flag = (uint8_t)flag, .on = on};
	return 0;
}

static int parse_vendor(struct x86_cpu_choice *c, struct word w, struct error *err)
{
	if (word_is(w, "amd"))
		c->vendor = X86_CPU_VENDOR_AMD;
	else if (word_is(w, "intel"))
		c->vendor = X86_CPU_VENDOR_INTEL;
	else
		return error_set(
			err, EINVAL, "no CPU vendor '%.*s': there are amd and intel", WORD(w));
	return 0;
}

/* Up to four digits. */
static int parse_number(struct word w, unsigned max, unsigned *ret_number)
{
	unsigned number = 0;

	if (!w.length || w.length > 4)
		return -EINVAL;
	for (size_t i = 0; i < w.length; i++) {
		if (!isdigit((unsigned char)w.text[i]))
			return -EINVAL;
		number = number * 10 + (unsigned)(w.text[i] - '0');
	}
	*ret_number = number;
	return number <= max ? 0 : -ERANGE;
}

static int parse_key(
	struct x86_cpu_choice *c, struct word key, struct word value, struct error *err)
{
	const struct {
		const char *name;
		unsigned max, *number;
		bool *has;
	} numbers[] = {
		{"family", 0xf + 0xff, &c->family, &c->has_family},
		{"model", 0xff, &c->model, &c->has_model},
		{"stepping", 0xf, &c->stepping, &c->has_stepping},
	};

	if (word_is(key, "vendor"))
		return parse_vendor(c, value, err);
	for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++) {
		if (!word_is(key, numbers[i].name))
			continue;
		if (parse_number(value, numbers[i].max, numbers[i].number) < 0)
			return error_set(err, EINVAL, "CPU %s '%.*s' is no number from 0 to %u",
				numbers[i].name, WORD(value), numbers[i].max);
		*numbers[i].has = true;
		return 0;
	}
	return error_set(err, EINVAL,
		"no CPU property '%.*s': there are vendor, family, model and stepping", WORD(key));
}

/* All but the first of the words. */
static int parse_word(struct x86_cpu_choice *c, struct word w, struct error *err)
{
	const char *equals = memchr(w.text, '=', w.length);

	if (w.length && (*w.text == '+' || *w.text == '-'))
		return parse_change(c, w, err);
	if (equals) {
		const size_t key = (size_t)(equals - w.text);
		return parse_key(c, (struct word){w.text, key},
			(struct word){equals + 1, w.length - key - 1}, err);
	}
	return error_set(err, EINVAL,
		"'%.*s' in a CPU model: give +FLAG, -FLAG or vendor=, family=, model=, stepping=",
		WORD(w));
}

int x86_cpu_choice_parse(struct x86_cpu_choice *ret_choice, const char *text, struct error *err)
{
	struct x86_cpu_choice choice = {.base = X86_CPU_MAX};
	struct word w = {text, strcspn(text, ",")};
	int status = parse_base(&choice, w, err);

	while (status == 0 && w.text[w.length]) {
		w.text += w.length + 1;
		w.length = strcspn(w.text, ",");
		status = parse_word(&choice, w, err);
	}
	if (status == 0)
		*ret_choice = choice;
	return status;
}

bool x86_cpu_choice_is_native(const struct x86_cpu_choice *choice)
{
	return choice->vendor == X86_CPU_VENDOR_HOST && !choice->has_family && !choice->has_model &&
	       !choice->has_stepping;
}

const char *x86_cpu_base_name(enum x86_cpu_base base)
{
	return base_names[base];
}
