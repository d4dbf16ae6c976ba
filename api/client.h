/*
 * Asks a running machine: one call (call.h) at a time, on a connected socket.
 *
 * Threads: one at a time for each socket.
 */
#ifndef LODGE_API_CLIENT_H
#define LODGE_API_CLIENT_H

#include "base/util.h"

#include <jansson.h>

#define API_REPLY_MAX MIB(128) /* the picture of a large screen */

struct error;

/* Send the request, and wait for its reply: {"ok":true, ...}, for json_decref(). fd may be non-blocking. Errors: with a
 * line for people; -EREMOTEIO: the call failed, and err is what the machine says of it; -ETIMEDOUT, -ECONNRESET, -EPROTO. */
MUST_CHECK int api_ask(
	int fd, const json_t *request, unsigned timeout_ms, json_t **ret_reply, struct error *err);

/* Wait until the machine hangs up, at its end. -ETIMEDOUT: it has not. */
MUST_CHECK int api_wait_end(int fd, unsigned timeout_ms);

#endif
