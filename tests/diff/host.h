/*
 * The native process as its user sees it: started, given batches, replaced when it dies.
 */
#ifndef LODGE_TESTS_DIFF_HOST_H
#define LODGE_TESTS_DIFF_HOST_H

#include "diff.h"

#include <sys/types.h>

struct diff_host {
	struct diff_shared *shared;
	int fd;
	pid_t pid;
	const char *program;
	unsigned deaths;
};

/* Start `program` on shared memory filled for this seed. Errors: -errno. */
int diff_host_start(struct diff_host *host, const char *program, uint64_t seed);
/* Run the first `count` cases of shared->cases. What killed the process says so in its result. */
int diff_host_run(struct diff_host *host, unsigned count);
void diff_host_stop(struct diff_host *host);

#endif
