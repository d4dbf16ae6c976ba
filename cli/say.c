/*
 * What the verbs say: one line on stderr, and JSON on stdout.
 */
#include "base/error.h"
#include "cli/cli.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool cli_is_help(const char *word)
{
	return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

int cli_complain(const struct error *err)
{
	fprintf(stderr, "lodge: %s\n", err->text);
	return EXIT_FAILURE;
}

int cli_refuse(const char *fmt, ...)
{
	/* error_set makes names that hold control characters fit to print. */
	struct error err;
	char text[sizeof(err.text)];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	error_set(&err, EINVAL, "%s", text);
	cli_complain(&err);
	return -EINVAL;
}

/* Bytes of the well-formed character that the text begins with (Unicode, table 3-7); 0: there is none. */
static size_t utf8_length(const unsigned char *c)
{
	const size_t length = c[0] < 0x80 ? 1 : c[0] < 0xc2 ? 0 : c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : c[0] < 0xf5 ? 4 : 0;

	for (size_t i = 1; i < length; i++) /* a NUL ends it, too */
		if ((c[i] & 0xc0) != 0x80)
			return 0;
	const bool too_long = (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xf0 && c[1] < 0x90);
	const bool surrogate = c[0] == 0xed && c[1] >= 0xa0, too_large = c[0] == 0xf4 && c[1] >= 0x90;
	return too_long || surrogate || too_large ? 0 : length;
}

void cli_print_json_string(const char *text)
{
	putchar('"');
	while (*text) {
		const size_t length = utf8_length((const unsigned char *)text);

		if (!length)
			fputs("\\ufffd", stdout);
		else if (*text == '"' || *text == '\\')
			printf("\\%c", *text);
		else if ((unsigned char)*text < 0x20)
			printf("\\u%04x", *text);
		else
			fwrite(text, length, 1, stdout);
		text += length ? length : 1;
	}
	putchar('"');
}
