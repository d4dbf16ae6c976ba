/*
 * Threads for what blocks: a job is carried out on one of them, and its end comes back on the loop's thread.
 *
 * Threads: workers_submit() on the loop's, or before it runs.
 */
#ifndef LODGE_BACKEND_DISK_WORKERS_H
#define LODGE_BACKEND_DISK_WORKERS_H

#include "base/util.h"

struct loop;
struct workers;

/* The submitter's memory until `done`. */
struct worker_job {
	void (*work)(struct worker_job *job); /* on one of them */
	void (*done)(struct worker_job *job); /* on the loop's */
	struct worker_job *next;	      /* theirs */
};

/* Errors: -ENOMEM, -EAGAIN (no thread to be had: the first is started here). */
MUST_CHECK int workers_create(
	struct loop *loop, unsigned threads_max, struct workers **ret_workers);
/* NULL is allowed. All jobs have ended. */
void workers_free(struct workers *workers);
/* Jobs start in the order in which they were submitted. */
void workers_submit(struct workers *workers, struct worker_job *job);

#endif
