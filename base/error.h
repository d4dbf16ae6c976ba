/*
 * An error: an errno for the program and a sentence for a person.
 *
 * Functions return 0 or a negative errno and, where a person will want to know more, take a
 * `struct error *` that may be NULL. Whoever handles the error prints the text, once.
 */
#ifndef LODGE_BASE_ERROR_H
#define LODGE_BASE_ERROR_H

#include "base/util.h"

struct error {
	int code;	 /* positive errno, 0 when nothing went wrong */
	char text[1024]; /* one line with no full stop and no newline; cut if longer */
};

/*
 * Stores code (a positive errno) and the formatted text in err, and returns -code. An earlier error
 * in err is overwritten; arguments may point into err->text. Control characters in the result, which
 * may stem from a file or a guest, become '?'.
 */
int error_set(struct error *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* As error_set(), and appends ": " and the system's words for code. */
int error_set_errno(struct error *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Puts the formatted words and ": " before err's text. Returns -err->code (0 if err is NULL). */
int error_prefix(struct error *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

#endif
