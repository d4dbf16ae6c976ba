/*
 * What the verbs say: one line on stderr, and JSON on stdout.
 */
#include "base/error.h"
#include "cli/cli.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

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

void cli_print_json_string(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;
		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 0x20)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}
