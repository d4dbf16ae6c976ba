/*
 * Threads for what blocks: a job is carried out on one of them, and its end comes back on the loop's thread.
 *
 * Threads: workers_submit() on any.
 */
#ifndef LODGE_BACKEND_DISK_WORKERS_H
#define LODGE_BACKEND_DISK_WORKERS_H

#include "base/util.h"

#include <stdbool.h>

struct loop;
struct workers;

/* The submitter's memory until its end. */
struct worker_job {
	/* On one of them. true: that was its end, and its memory may be gone; false: `done` comes. */
	bool (*work)(struct worker_job *job);
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
/* For what the host does one after the other anyway: of these jobs one is under way at a time, beside the others. */
void workers_submit_serial(struct workers *workers, struct worker_job *job);

#endif
