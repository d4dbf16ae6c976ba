/*
 * What block.c (requests), part.c (their parts) and quick.c (ways past the loop) share.
 */
#ifndef LODGE_BACKEND_DISK_BLOCK_PRIVATE_H
#define LODGE_BACKEND_DISK_BLOCK_PRIVATE_H

#include "backend/disk/block.h"
#include "backend/disk/workers.h"
#include "backend/disk/ring.h"
#include "base/log.h"

struct part;

/* A request that is under way. */
struct transfer {
	struct disk_block *b;
	struct block_request *request;
	struct transfer *next; /* free, or in a list of flushes */
	uint64_t offset, left; /* what no part has been made of yet */
	unsigned iov_at;       /* where `offset` is in the request's buffers */
	size_t iov_skip;
	unsigned under_way; /* parts */
	int status;
	bool advancing;
	bool misaligned; /* its buffers are no good for O_DIRECT */
};

struct disk_block {
	struct block block;
	struct loop *loop;
	struct disk *disk;
	struct ring *ring; /* NULL: all on threads */
	struct workers *workers;
	enum disk_cache cache;
	bool discard;
	_Atomic bool no_nowait; /* there is a file that knows no RWF_NOWAIT */
	uint32_t align;		/* of O_DIRECT; 1: it is not used */
	struct transfer *free_transfers;
	struct part *free_parts;
	/* Flushes: those that wait for the next, those that ride on the present one. */
	struct transfer *flush_waiting, *flush_riding;
	bool flushing;
	int flush_broken; /* what the host said when it failed; 0: it never has */
	struct ring_op flush_op;
	struct worker_job flush_job;
	int flush_result;
	struct log_limit log_limit;
};

/* Make a part of what comes next, and start it; moves on. Errors: -ENOMEM. */
MUST_CHECK int part_begin(struct transfer *t);
/* Frees what is kept for later parts. */
void part_free_kept(struct disk_block *b);

/* A part has ended: block.c goes on. */
void transfer_part_ended(struct transfer *t, int status);

/* Is it within the disk, and may it be? 0, -EINVAL, -EROFS. Any thread. */
MUST_CHECK int block_check(const struct disk_block *b, const struct block_request *request);
/* Tell of a failure, and end the request with it. */
void block_failed(struct disk_block *b, struct block_request *request, int status);

/* For struct block_ops. */
int quick_read_now(struct block *block, struct block_request *request);
bool quick_hand_over(struct block *block, struct block_request *request);

#endif
