/*
 * The calls to a running machine, one entry each, and their text: a JSON object (RFC 8259) a line, as docs/control.md
 * says. {"do":"NAME", and the call's arguments} asks; {"ok":true, ...} or {"ok":false,"error":"TEXT"} answers.
 *
 * What is not in the entry is refused, so that nobody believes in an argument that a version does not know.
 */
#ifndef LODGE_API_CALL_H
#define LODGE_API_CALL_H

#include "base/util.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define API_ARGUMENTS_MAX 3
#define API_REQUEST_MAX	  65536u /* bytes of a request, its newline too */

struct error;

enum api_call_id {
	API_STATUS,
	API_PAUSE,
	API_RESUME,
	API_BALLOON,
	API_ATTACH,
	API_DETACH,
	API_SCREENSHOT,
	API_POWEROFF,
	API_RESET,
	API_STOP,
	API_CALLS,
};

enum api_type {
	API_TEXT,   /* not empty */
	API_NUMBER, /* whole, from 0 on */
};

struct api_argument {
	const char *name; /* NULL: there are no more */
	enum api_type type;
	bool required;
};

struct api_call {
	const char *name;
	struct api_argument argument[API_ARGUMENTS_MAX + 1];
};

extern const struct api_call api_calls[API_CALLS];

/* One call that was asked for: checked. */
struct api_request {
	enum api_call_id call;
	json_t *object; /* owned */
};

/* Any bytes. Errors: -EINVAL with a line for whoever sent it, -ENOMEM; there is nothing to be done then. */
MUST_CHECK int api_request_parse(
	const char *text, size_t bytes, struct api_request *ret_request, struct error *err);
/* A zeroed one may be done too. */
void api_request_done(struct api_request *request);

/* An argument of the call; NULL, false: not given. The text is the request's. */
const char *api_request_text(const struct api_request *request, const char *name);
bool api_request_number(const struct api_request *request, const char *name, uint64_t *ret_number);

/* Replies, for json_decref(). NULL: no memory. */
json_t *api_reply_ok(void);
json_t *api_reply_error(const char *text); /* any text */

#endif
