/*
 * Boot loaders' configuration, as far as it says which Linux to start: GRUB's script (the entry `default` names by a
 * number, else the first with a kernel; variables that were set, no conditions), Boot Loader Specification entries
 * (version 1), extlinux and syslinux. See disk_private.h.
 *
 * The text is hostile; all of it goes through fixed buffers, and what does not fit makes the entry unusable.
 */
#include "boot/disk_private.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define WORDS_MAX     256
#define VARIABLES_MAX 32

/* ---- lines of words ---- */

struct line {
	char text[BOOT_MENU_TEXT];
	const char *word[WORDS_MAX];
	unsigned count;
	bool cut; /* it had more */
};

/* Append words from `from` on, with blanks between; false if there is no room. */
static bool join(char to[BOOT_MENU_TEXT], const struct line *line, unsigned from)
{
	size_t have = strlen(to);

	for (unsigned i = from; i < line->count; i++) {
		const int n = snprintf(to + have, BOOT_MENU_TEXT - have, "%s%s", have ? " " : "", line->word[i]);
		if (n < 0 || (size_t)n >= BOOT_MENU_TEXT - have)
			return false;
		have += (size_t)n;
	}
	return !line->cut;
}

static bool copy(char to[BOOT_MENU_TEXT], const char *from)
{
	return (size_t)snprintf(to, BOOT_MENU_TEXT, "%s", from) < BOOT_MENU_TEXT;
}

static void add_initrds(struct boot_entry *entry, const struct line *line)
{
	for (unsigned i = 1; i < line->count && entry->initrd_count < BOOT_MENU_INITRDS; i++)
		if (copy(entry->initrd[entry->initrd_count], line->word[i]))
			entry->initrd_count++;
}

/* ---- GRUB ---- */

struct variable {
	char name[32], value[256];
};

struct grub {
	const char *at;
	struct variable variable[VARIABLES_MAX];
	unsigned variables;
	struct line line;
	struct boot_entry entry; /* the one that is read */
	bool in_entry, have, have_wanted; /* have: the result holds an entry */
	unsigned depth, entry_depth;
	unsigned index, wanted; /* of entries at depth 0 */
	struct boot_entry *result;
};

static const char *value_of(const struct grub *g, const char *name, size_t length)
{
	for (unsigned i = 0; i < g->variables; i++)
		if (strlen(g->variable[i].name) == length && memcmp(g->variable[i].name, name, length) == 0)
			return g->variable[i].value;
	return "";
}

static void set_variable(struct grub *g, const char *assignment)
{
	const char *equals = strchr(assignment, '=');
	const size_t length = equals ? (size_t)(equals - assignment) : 0;
	unsigned i;

	if (!length || length >= sizeof(g->variable->name))
		return;
	for (i = 0; i < g->variables; i++)
		if (strlen(g->variable[i].name) == length && memcmp(g->variable[i].name, assignment, length) == 0)
			break;
	if (i == VARIABLES_MAX)
		return;
	g->variables = MAX(g->variables, i + 1);
	struct variable *v = &g->variable[i];
	memcpy(v->name, assignment, length);
	v->name[length] = '\0';
	snprintf(v->value, sizeof(v->value), "%s", equals + 1);
	if (strcmp(v->name, "default") == 0 && isdigit((unsigned char)v->value[0]))
		g->wanted = (unsigned)strtoul(v->value, NULL, 10);
}

struct words {
	struct line *line;
	size_t have;
	bool open; /* in a word */
};

static void put(struct words *w, char c)
{
	struct line *line = w->line;

	if (!w->open && line->count < WORDS_MAX && w->have < sizeof(line->text) - 1) {
		line->word[line->count++] = line->text + w->have;
		w->open = true;
	}
	if (w->open && w->have < sizeof(line->text) - 1)
		line->text[w->have++] = c;
	else
		line->cut = true;
}

static void end_word(struct words *w)
{
	if (w->open)
		w->line->text[w->have++] = '\0';
	w->open = false;
}

static const char *expand(struct grub *g, struct words *w, const char *at)
{
	const bool braces = *at == '{';
	const char *name = at + braces;
	size_t length = 0;

	while (isalnum((unsigned char)name[length]) || name[length] == '_')
		length++;
	for (const char *value = value_of(g, name, length); *value; value++)
		put(w, *value);
	at = name + length;
	return braces && *at == '}' ? at + 1 : at;
}

/* The next command: up to a line's end or a semicolon outside quotes. False at the end of the text. */
static bool next_command(struct grub *g)
{
	struct words w = { .line = &g->line };
	char quote = 0;

	g->line.count = 0;
	g->line.cut = false;
	if (!*g->at)
		return false;
	for (; *g->at; g->at++) {
		const char c = *g->at;
		if (c == '\\' && quote != '\'' && g->at[1]) {
			if (*++g->at != '\n')
				put(&w, *g->at);
		} else if (quote ? c == quote : c == '\'' || c == '"') {
			quote = quote ? 0 : c;
		} else if (c == '$' && quote != '\'') {
			g->at = expand(g, &w, g->at + 1) - 1;
		} else if (quote) {
			put(&w, c);
		} else if (c == '\n' || c == ';') {
			g->at++;
			break;
		} else if (c == '#' && !w.open) {
			g->at += strcspn(g->at, "\n");
			g->at--;
		} else if (isspace((unsigned char)c)) {
			end_word(&w);
		} else {
			put(&w, c);
		}
	}
	end_word(&w);
	return true;
}

static void close_entry(struct grub *g)
{
	g->in_entry = false;
	if (!*g->entry.kernel || g->have_wanted || (g->have && g->index != g->wanted))
		return;
	*g->result = g->entry;
	g->have = true;
	g->have_wanted = g->index == g->wanted;
}

/* An opening brace ends a line: of a menu entry, a submenu or a function. */
static void open_block(struct grub *g)
{
	const char *first = g->line.word[0];

	if (strcmp(first, "menuentry") == 0 && !g->in_entry) {
		g->in_entry = true;
		g->entry_depth = g->depth;
		memset(&g->entry, 0, sizeof(g->entry));
	}
	g->depth++;
}

static void close_block(struct grub *g)
{
	if (!g->depth)
		return;
	g->depth--;
	if (g->in_entry && g->depth == g->entry_depth)
		close_entry(g);
	if (!g->depth)
		g->index++;
}

static bool is_one_of(const char *word, const char *base)
{
	static const char *const tails[] = { "", "efi", "16" };
	const size_t length = strlen(base);

	for (unsigned i = 0; i < ARRAY_SIZE(tails); i++)
		if (strncmp(word, base, length) == 0 && strcmp(word + length, tails[i]) == 0)
			return true;
	return false;
}

static void command(struct grub *g)
{
	const struct line *line = &g->line;
	const char *first = line->word[0];

	if (strcmp(first, "}") == 0) {
		close_block(g);
	} else if (strcmp(line->word[line->count - 1], "{") == 0) {
		/* functions do not count as entries */
		const bool counts = strcmp(first, "menuentry") == 0 || strcmp(first, "submenu") == 0;
		if (!counts && !g->depth)
			g->index--;
		open_block(g);
	} else if (strcmp(first, "set") == 0 && line->count > 1) {
		set_variable(g, line->word[1]);
	} else if (g->in_entry && is_one_of(first, "linux") && line->count > 1) {
		if (!copy(g->entry.kernel, line->word[1]) || !join(g->entry.cmdline, line, 2))
			*g->entry.kernel = '\0';
	} else if (g->in_entry && is_one_of(first, "initrd")) {
		add_initrds(&g->entry, line);
	}
}

bool boot_menu_grub(const char *text, struct boot_entry *ret_entry)
{
	struct grub *g = calloc(1, sizeof(*g));
	bool have;

	if (!g)
		return false;
	g->at = text;
	g->result = ret_entry;
	while (next_command(g))
		if (g->line.count)
			command(g);
	have = g->have;
	free(g);
	return have;
}

/* ---- plain lines of a keyword and words ---- */

/* Takes one line of text; false at the end. */
static bool next_line(const char **text, struct line *line)
{
	struct words w = { .line = line };
	const char *at = *text;

	line->count = 0;
	line->cut = false;
	if (!*at)
		return false;
	for (; *at && *at != '\n'; at++) {
		if (*at == '#' && !line->count && !w.open) {
			at += strcspn(at, "\n");
			break;
		}
		if (isspace((unsigned char)*at))
			end_word(&w);
		else
			put(&w, *at);
	}
	end_word(&w);
	*text = *at ? at + 1 : at;
	return true;
}

/* Without words that are variables of the loader's. */
static bool add_options(struct boot_entry *entry, struct line *line)
{
	unsigned kept = 1;

	for (unsigned i = 1; i < line->count; i++)
		if (line->word[i][0] != '$')
			line->word[kept++] = line->word[i];
	line->count = kept;
	return join(entry->cmdline, line, 1);
}

bool boot_menu_bls(const char *text, struct boot_entry *ret_entry)
{
	struct line line;

	memset(ret_entry, 0, sizeof(*ret_entry));
	while (next_line(&text, &line)) {
		if (line.count < 2)
			continue;
		if (strcmp(line.word[0], "linux") == 0) {
			if (!copy(ret_entry->kernel, line.word[1]))
				return false;
		} else if (strcmp(line.word[0], "initrd") == 0) {
			add_initrds(ret_entry, &line);
		} else if (strcmp(line.word[0], "options") == 0) {
			if (!add_options(ret_entry, &line))
				return false;
		}
	}
	return *ret_entry->kernel;
}

/* Names between commas. */
static void add_comma_list(struct boot_entry *entry, const char *list)
{
	while (*list && entry->initrd_count < BOOT_MENU_INITRDS) {
		const size_t length = strcspn(list, ",");
		if (length && length < BOOT_MENU_TEXT)
			snprintf(entry->initrd[entry->initrd_count++], BOOT_MENU_TEXT, "%.*s", (int)length, list);
		list += length + (list[length] == ',');
	}
}

static bool extlinux_append(struct boot_entry *entry, struct line *line)
{
	unsigned kept = 1;

	*entry->cmdline = '\0';
	for (unsigned i = 1; i < line->count; i++) {
		if (strncmp(line->word[i], "initrd=", 7) == 0)
			add_comma_list(entry, line->word[i] + 7);
		else
			line->word[kept++] = line->word[i];
	}
	line->count = kept;
	return join(entry->cmdline, line, 1);
}

bool boot_menu_extlinux(const char *text, struct boot_entry *ret_entry)
{
	char wanted[128] = "";
	bool here = false, done = false;
	struct line line;

	memset(ret_entry, 0, sizeof(*ret_entry));
	while (next_line(&text, &line)) {
		const char *key = line.count ? line.word[0] : "", *value = line.count > 1 ? line.word[1] : "";
		if (strcasecmp(key, "default") == 0) {
			snprintf(wanted, sizeof(wanted), "%s", value);
		} else if (strcasecmp(key, "label") == 0) {
			done = done || (here && *ret_entry->kernel);
			here = !done && (!*wanted || strcmp(wanted, value) == 0);
		} else if (!here) {
			continue;
		} else if (strcasecmp(key, "kernel") == 0 || strcasecmp(key, "linux") == 0) {
			if (!copy(ret_entry->kernel, value))
				return false;
		} else if (strcasecmp(key, "initrd") == 0) {
			add_comma_list(ret_entry, value);
		} else if (strcasecmp(key, "append") == 0) {
			if (!extlinux_append(ret_entry, &line))
				return false;
		}
	}
	return *ret_entry->kernel;
}
