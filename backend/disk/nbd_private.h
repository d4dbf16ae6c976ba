/*
 * What nbd.c (the connection) and nbd_file.c (who uses it) share.
 */
#ifndef LODGE_BACKEND_DISK_NBD_PRIVATE_H
#define LODGE_BACKEND_DISK_NBD_PRIVATE_H

#include "backend/disk/nbd.h"
#include "base/loop.h"

#include <pthread.h>
#include <stdatomic.h>

struct change;
struct nbd_file;
struct nbd_handle;

enum op_kind { OP_READ, OP_WRITE, OP_FLUSH, OP_TRIM, OP_ZERO, OP_PUNCH };

/* Of those that the journal keeps. */
static inline bool nbd_is_change(enum op_kind kind)
{
	return kind == OP_WRITE || kind == OP_ZERO || kind == OP_PUNCH;
}

struct nbd_op {
	struct nbd_file *nbd;
	enum op_kind kind;
	void *bytes;
	uint64_t offset, size_bytes;
	uint64_t after; /* FLUSH: the last change of the journal that it covers */
	uint64_t begun_ns;
	bool replay; /* of the journal: not kept again, and not in `ops` */
	bool sent;   /* libnbd has it; else it waits for a connection */
	int result;
	struct nbd_op *next; /* in `ops` */
	struct loop_call call;
	bool ended; /* under nbd_file.lock */
};

struct nbd_file {
	struct disk_file file;
	uint64_t timeout_ns; /* UINT64_MAX: none */
	struct loop *loop;
	pthread_t thread;
	pthread_mutex_t lock; /* ends of operations */
	pthread_cond_t ended;
	pthread_rwlock_t sectors; /* written: by who reads, changes and writes whole sectors */
	atomic_bool stopping;
	/* What the server says of the export. */
	uint64_t size_bytes;
	uint32_t min_bytes, max_bytes;
	bool can_flush, can_trim, can_zero, readonly;
	bool known; /* all that */
	/* The thread's. */
	struct nbd_handle *handle; /* NULL: no connection */
	struct loop_source *source;
	int watched_fd; /* of `source`: a copy of the connection's */
	struct loop_timer *retry;
	struct loop_timer *limit;
	bool given_up;	      /* it did not answer in time, and has not since */
	struct error trouble; /* why there is no connection, if that is known */
	struct nbd_op *ops;   /* oldest first */
	struct change *journal, **journal_end;
	uint64_t journal_number;
	uint64_t gap_number; /* this change was not kept, for want of memory; 0: none */
	bool change_lost;    /* an acknowledged one: no flush succeeds ever after */
	struct change *replay; /* what is to be sent again; NULL: nothing */
	bool replay_under_way; /* that is at the server */
	atomic_uint_least64_t journal_bytes;
};

/* Connect, for the first time, and start the thread. Errors: with a line for people; all is released but *nbd. */
MUST_CHECK int nbd_connection_open(struct nbd_file *nbd, struct error *err);
/* No operation is under way. */
void nbd_connection_close(struct nbd_file *nbd);

/* Hand it to the thread, wait for its end and return its result. At most max_bytes in whole min_bytes. */
MUST_CHECK int nbd_perform(
	struct nbd_file *nbd, enum op_kind kind, void *bytes, uint64_t offset, uint64_t size_bytes);

#endif
