/*
 * The connection to an NBD server: see nbd.h. (The NBD protocol: doc/proto.md of the NBD project; libnbd(3))
 *
 * Callers block: each hands an operation to the file's own thread and waits. That thread runs a loop with the
 * connection's descriptor in it; any number of operations are on their way to the server at once.
 *
 * Left out on purpose: several connections to one export, block status (all is data).
 *
 * Invariants: everything about the connection and the journal is the thread's. An operation is its caller's memory, and
 * in `ops` from its begin to its end; libnbd has it while it is `sent`. While changes of the journal are on their way
 * again, nothing else is.
 */
#include "backend/disk/nbd_private.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define REQUEST_BYTES_MAX MIB(32) /* what every server takes, if it does not say */
#define RETRY_NS	  500000000ull
#define POLL_MS		  100

/* A change that has ended at the server and may be lost there until a flush. */
struct change {
	struct change *next;
	struct nbd_op op;
	uint64_t number;
	char bytes[];
};

static void check_connection(struct nbd_file *nbd);
static void lose_connection(struct nbd_file *nbd);
static void check_time(struct nbd_file *nbd);

/* ---- connecting ---- */

static uint64_t connect_limit_ns(const struct nbd_file *nbd)
{
	return MIN(nbd->timeout_ns, (uint64_t)NBD_CONNECT_NS);
}

/* Until it is ready; from the thread, or before there is one. */
static int wait_ready(struct nbd_file *nbd, struct nbd_handle *handle)
{
	const uint64_t end_ns = clock_monotonic_ns() + connect_limit_ns(nbd);

	while (!nbd_aio_is_ready(handle)) {
		if (nbd_aio_is_dead(handle) || nbd_aio_is_closed(handle) || nbd->stopping)
			return -ECONNREFUSED;
		if (clock_monotonic_ns() > end_ns)
			return -ETIMEDOUT;
		if (nbd_poll(handle, POLL_MS) < 0)
			return nbd_get_errno() ? -nbd_get_errno() : -ECONNREFUSED;
		check_time(nbd);
	}
	return 0;
}

static int connect_failed(struct nbd_file *nbd, int status, struct error *err)
{
	const char *why = nbd_get_error();

	if (status == -ETIMEDOUT)
		return error_set(err, ETIMEDOUT, "can't connect to %s: no answer for %llu s", nbd->file.name,
			(unsigned long long)(connect_limit_ns(nbd) / NS_PER_SEC));
	return error_set(err, -status, "can't connect to %s: %s", nbd->file.name, why ? why : strerror(-status));
}

static int connect_once(struct nbd_file *nbd, struct nbd_handle **ret_handle, struct error *err)
{
	struct nbd_handle *handle = nbd_create();
	int status;

	if (!handle)
		return error_set(err, ENOMEM, "can't connect: %s", nbd_get_error());
	if (nbd_aio_connect_uri(handle, nbd->file.name) < 0)
		status = nbd_get_errno() ? -nbd_get_errno() : -EINVAL;
	else
		status = wait_ready(nbd, handle);
	if (status < 0) {
		status = connect_failed(nbd, status, err);
		nbd_close(handle);
		return status;
	}
	*ret_handle = handle;
	return 0;
}

static uint32_t block_size(struct nbd_handle *handle, int which, uint32_t otherwise)
{
	int64_t bytes = nbd_get_block_size(handle, which);

	return bytes > 0 && bytes <= (int64_t)REQUEST_BYTES_MAX ? (uint32_t)bytes : otherwise;
}

/* What the export is. After a new connection it has to be the same one. */
static int look(struct nbd_file *nbd, struct nbd_handle *handle, struct error *err)
{
	int64_t size_bytes = nbd_get_size(handle);

	if (size_bytes < 0)
		return error_set(err, EIO, "%s: %s", nbd->file.name, nbd_get_error());
	if (nbd->known)
		return (uint64_t)size_bytes == nbd->size_bytes
			       ? 0
			       : error_set(err, EIO, "%s has another size than before",
					 nbd->file.name);
	nbd->size_bytes = (uint64_t)size_bytes;
	nbd->min_bytes = block_size(handle, LIBNBD_SIZE_MINIMUM, 1);
	nbd->max_bytes = block_size(handle, LIBNBD_SIZE_MAXIMUM, (uint32_t)REQUEST_BYTES_MAX);
	nbd->can_flush = nbd_can_flush(handle) > 0;
	nbd->can_trim = nbd_can_trim(handle) > 0;
	nbd->can_zero = nbd_can_zero(handle) > 0;
	nbd->readonly = nbd_is_read_only(handle) > 0;
	nbd->known = true;
	return 0;
}

/* ---- the journal ---- */

static void journal_put(struct nbd_file *nbd, const struct nbd_op *op)
{
	const uint64_t data_bytes = op->kind == OP_WRITE ? op->size_bytes : 0;
	struct change *change = malloc(sizeof(*change) + data_bytes);

	if (!change) {
		nbd->gap_number = ++nbd->journal_number;
		return;
	}
	change->op = (struct nbd_op){.nbd = nbd,
		.kind = op->kind,
		.bytes = change->bytes,
		.offset = op->offset,
		.size_bytes = op->size_bytes,
		.replay = true};
	change->number = ++nbd->journal_number;
	change->next = NULL;
	if (data_bytes)
		memcpy(change->bytes, op->bytes, data_bytes);
	*nbd->journal_end = change;
	nbd->journal_end = &change->next;
	nbd->journal_bytes += sizeof(*change) + data_bytes;
}

static void journal_drop(struct nbd_file *nbd, uint64_t up_to)
{
	while (nbd->journal && nbd->journal->number <= up_to) {
		struct change *change = nbd->journal;

		nbd->journal_bytes -=
			sizeof(*change) + (change->op.kind == OP_WRITE ? change->op.size_bytes : 0);
		nbd->journal = change->next;
		free(change);
	}
	if (!nbd->journal)
		nbd->journal_end = &nbd->journal;
	if (nbd->gap_number <= up_to)
		nbd->gap_number = 0;
}

/* What the server acknowledged is not there any more: the guest learns of it by its next flush. */
static void lose_change(struct nbd_file *nbd, const char *why)
{
	nbd->change_lost = true;
	log_error("nbd", "%s: a write can't be sent again, flushes fail from now on: %s",
		nbd->file.name, why);
}

/* ---- operations, on the thread ---- */

static void ops_put(struct nbd_op *op)
{
	struct nbd_op **at = &op->nbd->ops;

	while (*at)
		at = &(*at)->next;
	op->next = NULL;
	*at = op;
}

/* If it is there: some end at their begin. */
static void ops_remove(struct nbd_op *op)
{
	struct nbd_op **at = &op->nbd->ops;

	while (*at && *at != op)
		at = &(*at)->next;
	if (*at)
		*at = op->next;
}

static void tell_end(struct nbd_op *op, int result)
{
	struct nbd_file *nbd = op->nbd;

	ops_remove(op);
	AUTO_LOCK(&nbd->lock);
	op->result = result;
	op->ended = true;
	pthread_cond_broadcast(&nbd->ended);
}

static void op_succeeded(struct nbd_op *op)
{
	struct nbd_file *nbd = op->nbd;

	if (nbd_is_change(op->kind) && nbd->can_flush)
		journal_put(nbd, op);
	else if (op->kind == OP_FLUSH)
		journal_drop(nbd, op->after);
}

static void answered(struct nbd_file *nbd)
{
	if (nbd->given_up)
		log_warn("nbd", "%s: the server answers again", nbd->file.name);
	nbd->given_up = false;
}

/* libnbd's: the server has answered, or the connection has ended. On the thread, in libnbd. */
static int op_done(void *opaque, int *error)
{
	struct nbd_op *op = opaque;
	struct nbd_file *nbd = op->nbd;
	bool lost = *error == ENOTCONN || *error == ESHUTDOWN || *error == EPIPE ||
		    *error == ECONNRESET || (*error && nbd_aio_is_dead(nbd->handle));

	if (!lost)
		answered(nbd);
	if (op->replay) {
		/* A connection that is lost again takes all of the journal up again. */
		nbd->replay = lost ? NULL : container_of(op, struct change, op)->next;
		nbd->replay_under_way = false;
		if (*error && !lost)
			lose_change(nbd, strerror(*error));
	} else if (lost)
		op->sent = false;
	else {
		if (!*error)
			op_succeeded(op);
		/* Whatever the server says of a flush: what it had may be gone (file.h). */
		tell_end(op, op->kind == OP_FLUSH && (*error || nbd->change_lost) ? -EIO : -*error);
	}
	return 1;
}

static int64_t send_op(struct nbd_file *nbd, struct nbd_op *op)
{
	const nbd_completion_callback done = {.callback = op_done, .user_data = op};

	op->after = nbd->journal_number;
	switch (op->kind) {
	case OP_READ:
		return nbd_aio_pread(nbd->handle, op->bytes, op->size_bytes, op->offset, done, 0);
	case OP_WRITE:
		return nbd_aio_pwrite(nbd->handle, op->bytes, op->size_bytes, op->offset, done, 0);
	case OP_FLUSH: return nbd_aio_flush(nbd->handle, done, 0);
	case OP_TRIM: return nbd_aio_trim(nbd->handle, op->size_bytes, op->offset, done, 0);
	case OP_ZERO:
		return nbd_aio_zero(
			nbd->handle, op->size_bytes, op->offset, done, LIBNBD_CMD_FLAG_NO_HOLE);
	case OP_PUNCH: return nbd_aio_zero(nbd->handle, op->size_bytes, op->offset, done, 0);
	}
	return -1;
}

static bool is_ready(const struct nbd_file *nbd)
{
	return nbd->handle && !nbd->replay;
}

/* False: there is no connection any more. What libnbd itself refuses ends here: op_done() is not called for it. */
static bool send_or_end(struct nbd_op *op)
{
	struct nbd_file *nbd = op->nbd;

	op->sent = true;
	if (send_op(nbd, op) >= 0)
		return true;
	int code = nbd_get_errno();
	op->sent = false;
	if (nbd_aio_is_dead(nbd->handle) || nbd_aio_is_closed(nbd->handle))
		return false;
	tell_end(op, code ? -code : -EIO);
	return true;
}

static struct nbd_op *next_to_send(const struct nbd_file *nbd)
{
	struct nbd_op *op = is_ready(nbd) ? nbd->ops : NULL;

	while (op && op->sent)
		op = op->next;
	return op;
}

static void send_waiting(struct nbd_file *nbd)
{
	struct nbd_op *op;

	while ((op = next_to_send(nbd)) && send_or_end(op))
		;
}

/* ---- time limits ---- */

/* When its time is up; UINT64_MAX: never. NULL is allowed. */
static uint64_t op_end_ns(const struct nbd_file *nbd, const struct nbd_op *op)
{
	return op && nbd->timeout_ns < UINT64_MAX - op->begun_ns ? op->begun_ns + nbd->timeout_ns : UINT64_MAX;
}

static uint64_t replay_end_ns(const struct nbd_file *nbd)
{
	return op_end_ns(nbd, nbd->replay_under_way ? &nbd->replay->op : NULL);
}

static uint64_t end_of_patience_ns(const struct nbd_file *nbd)
{
	return MIN(op_end_ns(nbd, nbd->ops), replay_end_ns(nbd));
}

static void watch_time(struct nbd_file *nbd)
{
	const uint64_t end_ns = end_of_patience_ns(nbd);

	if (end_ns != UINT64_MAX)
		loop_timer_arm(nbd->limit, end_ns);
}

/* The connection goes, and with it all that was sent; an answer that comes after all is for nobody. But a server that
 * takes long for the journal, and answers, is not to begin anew. */
static void give_up(struct nbd_file *nbd, uint64_t now_ns)
{
	const bool silent = !nbd->replay_under_way || now_ns >= replay_end_ns(nbd);

	if (!nbd->given_up)
		log_error("nbd", "%s: no answer for %llu s, requests fail until there is one%s%s", nbd->file.name,
			(unsigned long long)(nbd->timeout_ns / NS_PER_SEC), *nbd->trouble.text ? ": " : "",
			nbd->trouble.text);
	nbd->given_up = true;
	if (nbd->handle && silent)
		lose_connection(nbd);
	while (nbd->ops)
		tell_end(nbd->ops, -ETIMEDOUT);
}

/* Outside of libnbd. */
static void check_time(struct nbd_file *nbd)
{
	const uint64_t now_ns = clock_monotonic_ns();

	if (now_ns >= end_of_patience_ns(nbd))
		give_up(nbd, now_ns);
}

static void time_is_up(void *opaque)
{
	struct nbd_file *nbd = opaque;

	check_time(nbd);
	watch_time(nbd);
}

static void op_begin(void *opaque)
{
	struct nbd_op *op = opaque;
	struct nbd_file *nbd = op->nbd;

	/* A server that has been given up gets one at a time, to be seen to answer; the others don't wait for that. */
	if (nbd->given_up && (!is_ready(nbd) || nbd->ops)) {
		tell_end(op, -ETIMEDOUT);
		return;
	}
	op->begun_ns = clock_monotonic_ns();
	ops_put(op);
	send_waiting(nbd);
	check_connection(nbd);
	watch_time(nbd);
}

/* ---- the connection ---- */

static uint32_t wanted_events(const struct nbd_file *nbd)
{
	unsigned direction = nbd_aio_get_direction(nbd->handle);

	return (direction & LIBNBD_AIO_DIRECTION_READ ? EPOLLIN : 0) |
	       (direction & LIBNBD_AIO_DIRECTION_WRITE ? EPOLLOUT : 0);
}

static void stop_watching(struct nbd_file *nbd)
{
	if (!nbd->source)
		return;
	loop_remove(nbd->source);
	nbd->source = NULL;
	close(nbd->watched_fd);
}

static void lose_connection(struct nbd_file *nbd)
{
	stop_watching(nbd);
	/* When a connection ends op_done() is called for what was sent; when it is closed here, it is not. */
	nbd_close(nbd->handle);
	nbd->handle = NULL;
	nbd->replay = NULL;
	nbd->replay_under_way = false;
	if (nbd->stopping)
		return;
	if (!nbd->given_up)
		log_warn("nbd", "%s: the connection is lost; trying to get it back", nbd->file.name);
	loop_timer_arm(nbd->retry, clock_monotonic_ns());
}

/* Behind every call into libnbd. */
static void check_connection(struct nbd_file *nbd)
{
	if (!nbd->handle)
		return;
	if (nbd_aio_is_dead(nbd->handle) || nbd_aio_is_closed(nbd->handle))
		lose_connection(nbd);
	else if (loop_change(nbd->source, wanted_events(nbd)) < 0)
		log_debug("nbd", "can't wait for %s", nbd->file.name);
}

/* One after the other: they may overlap. A call into libnbd, so not from op_done(). */
static void go_on_replaying(struct nbd_file *nbd)
{
	while (nbd->handle && nbd->replay && !nbd->replay_under_way) {
		nbd->replay_under_way = true;
		nbd->replay->op.begun_ns = clock_monotonic_ns();
		if (send_op(nbd, &nbd->replay->op) >= 0)
			continue;
		nbd->replay_under_way = false;
		if (nbd_aio_is_dead(nbd->handle) || nbd_aio_is_closed(nbd->handle))
			break;
		lose_change(nbd, nbd_get_error());
		nbd->replay = nbd->replay->next;
	}
	send_waiting(nbd);
	watch_time(nbd);
}

static void connection_ready(void *opaque, uint32_t events)
{
	struct nbd_file *nbd = opaque;
	unsigned direction = nbd_aio_get_direction(nbd->handle);

	if (direction & LIBNBD_AIO_DIRECTION_READ && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		(void)nbd_aio_notify_read(nbd->handle);
	else if (direction & LIBNBD_AIO_DIRECTION_WRITE &&
		 events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		(void)nbd_aio_notify_write(nbd->handle);
	go_on_replaying(nbd);
	check_connection(nbd);
}

static int watch(struct nbd_file *nbd, struct nbd_handle *handle)
{
	/* A descriptor of our own: libnbd closes its when the connection dies, while the loop still has it; and where another
	 * process holds a copy, the loop would go on hearing of it. */
	AUTO_CLOSE int fd = fcntl(nbd_aio_get_fd(handle), F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	int status = loop_add(nbd->loop, fd, EPOLLIN, connection_ready, nbd, &nbd->source);

	if (status == 0) {
		nbd->handle = handle;
		nbd->watched_fd = take_fd(&fd);
	}
	return status;
}

static void reconnect(void *opaque)
{
	struct nbd_file *nbd = opaque;
	struct nbd_handle *handle;
	int status = connect_once(nbd, &handle, &nbd->trouble);

	if (status == 0) {
		status = look(nbd, handle, &nbd->trouble);
		if (status == 0 && (status = watch(nbd, handle)) < 0)
			error_set_errno(&nbd->trouble, -status, "can't wait for the server");
		if (status < 0)
			nbd_close(handle);
	}
	if (status < 0) {
		log_debug("nbd", "%s", nbd->trouble.text);
		loop_timer_arm(nbd->retry, clock_monotonic_ns() + RETRY_NS);
		return;
	}
	*nbd->trouble.text = '\0';
	if (!nbd->given_up)
		log_warn("nbd", "%s: connected again", nbd->file.name);
	if (nbd->gap_number)
		lose_change(nbd, strerror(ENOMEM));
	nbd->gap_number = 0;
	nbd->replay = nbd->journal;
	go_on_replaying(nbd);
	check_connection(nbd);
}

static void *nbd_thread(void *opaque)
{
	loop_run(((struct nbd_file *)opaque)->loop);
	return NULL;
}

/* ---- for nbd_file.c ---- */

int nbd_perform(
	struct nbd_file *nbd, enum op_kind kind, void *bytes, uint64_t offset, uint64_t size_bytes)
{
	struct nbd_op op = {.nbd = nbd,
		.kind = kind,
		.bytes = bytes,
		.offset = offset,
		.size_bytes = size_bytes};

	op.call = (struct loop_call){.fn = op_begin, .opaque = &op};
	loop_post(nbd->loop, &op.call);
	AUTO_LOCK(&nbd->lock);
	while (!op.ended)
		pthread_cond_wait(&nbd->ended, &nbd->lock);
	return op.result;
}

static void say_goodbye(void *opaque)
{
	struct nbd_file *nbd = opaque;

	if (nbd->handle)
		(void)nbd_aio_disconnect(nbd->handle, 0);
	loop_stop(nbd->loop);
}

static void release(struct nbd_file *nbd)
{
	if (nbd->handle)
		nbd_close(nbd->handle);
	stop_watching(nbd);
	loop_free(nbd->loop);
	journal_drop(nbd, UINT64_MAX);
	pthread_mutex_destroy(&nbd->lock);
	pthread_cond_destroy(&nbd->ended);
}

void nbd_connection_close(struct nbd_file *nbd)
{
	struct loop_call end = {.fn = say_goodbye, .opaque = nbd};

	nbd->stopping = true;
	loop_post(nbd->loop, &end);
	pthread_join(nbd->thread, NULL);
	release(nbd);
}

static int start(struct nbd_file *nbd, struct error *err)
{
	struct nbd_handle *handle;
	int status = connect_once(nbd, &handle, err);

	if (status < 0)
		return status;
	status = look(nbd, handle, err);
	if (status < 0) {
		nbd_close(handle);
		return status;
	}
	status = watch(nbd, handle);
	if (status < 0) {
		nbd_close(handle);
		return error_set_errno(err, -status, "can't wait for the NBD server");
	}
	status = -pthread_create(&nbd->thread, NULL, nbd_thread, nbd);
	return status < 0 ? error_set_errno(err, -status, "can't start a thread for NBD") : 0;
}

int nbd_connection_open(struct nbd_file *nbd, struct error *err)
{
	int status = loop_create(&nbd->loop);

	if (status < 0)
		return error_set_errno(err, -status, "can't open %s", nbd->file.name);
	pthread_mutex_init(&nbd->lock, NULL);
	pthread_cond_init(&nbd->ended, NULL);
	nbd->journal_end = &nbd->journal;
	nbd->retry = loop_timer_create(nbd->loop, reconnect, nbd);
	nbd->limit = loop_timer_create(nbd->loop, time_is_up, nbd);
	status = nbd->retry && nbd->limit ? start(nbd, err)
					  : error_set_errno(err, ENOMEM, "can't open %s", nbd->file.name);
	if (status < 0)
		release(nbd);
	return status;
}
