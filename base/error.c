/*
 * Errors for people. See error.h.
 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A name out of a hostile file must not be able to drive the terminal. */
static void error_clean(char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c < 0x20 || c == 0x7f)
			*text = '?';
	}
}

/* The text is made apart first, as the arguments may point into err->text. */
static void error_store(struct error *err, int code, const char *text, const char *tail)
{
	char joined[sizeof(err->text)];
	size_t room = sizeof(joined) - 1;
	size_t len = strnlen(text, room);
	size_t tail_len = tail ? strlen(tail) : 0;

	memcpy(joined, text, len);
	if (tail && len + 2 + tail_len <= room) {
		memcpy(joined + len, ": ", 2);
		memcpy(joined + len + 2, tail, tail_len);
		len += 2 + tail_len;
	}
	joined[len] = '\0';
	error_clean(joined);
	err->code = code;
	memcpy(err->text, joined, len + 1);
}

int error_set(struct error *err, int code, const char *fmt, ...)
{
	char text[sizeof(err->text)];
	va_list args;

	if (!err)
		return -code;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	error_store(err, code, text, NULL);
	return -code;
}

int error_set_errno(struct error *err, int code, const char *fmt, ...)
{
	char text[sizeof(err->text)];
	char words_buffer[128];
	va_list args;

	if (!err)
		return -code;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	error_store(err, code, text, strerror_r(code, words_buffer, sizeof(words_buffer)));
	return -code;
}

int error_prefix(struct error *err, const char *fmt, ...)
{
	char text[sizeof(err->text)];
	char joined[2 * sizeof(err->text) + 2];
	va_list args;

	if (!err)
		return 0;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	snprintf(joined, sizeof(joined), "%s: %s", text, err->text);
	error_store(err, err->code, joined, NULL);
	return -err->code;
}
