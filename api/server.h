/*
 * Serves calls (call.h) on connected stream sockets, on a loop. Whoever has the other end may be anybody's program: a line
 * that is too long or no request is answered so; who does not read its answers is not listened to meanwhile; who does not
 * hang up makes room for others when they are API_CLIENTS_MAX, the longest silent one first.
 *
 * A client has one call under way at a time. What it sent meanwhile waits.
 *
 * Threads: all on the loop's thread, or while the loop does not run.
 */
#ifndef LODGE_API_SERVER_H
#define LODGE_API_SERVER_H

#include "api/call.h"

#define API_CLIENTS_MAX 16

struct api_client;
struct api_server;
struct loop;

/* A request: to be answered once by api_server_reply(), now or later; it is good until then. */
typedef void (*api_handler)(
	void *opaque, struct api_client *client, const struct api_request *request);

MUST_CHECK int api_server_create(struct loop *loop, api_handler handler, void *opaque,
	struct api_server **ret_server); /* errors: -ENOMEM */
/* Hangs up on all. No call is under way. NULL is allowed. */
void api_server_free(struct api_server *server);

/* A client's socket, non-blocking, which is the server's from then on. One of another user is hung up on. */
void api_server_add(struct api_server *server, int fd);
/* Take no more requests. */
void api_server_deafen(struct api_server *server);

/* Takes the reply over; NULL: there was no memory for one. The client may be gone by now. */
void api_server_reply(struct api_client *client, json_t *reply);

#endif
