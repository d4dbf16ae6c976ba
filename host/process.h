/*
 * Programs that Lodge calls: found in PATH (and in the sbin directories, which users lack), never through a shell.
 */
#ifndef LODGE_HOST_PROCESS_H
#define LODGE_HOST_PROCESS_H

#include "base/util.h"

#include <stdbool.h>
#include <sys/types.h>

struct error;

/* The file of that program. Errors: -ENOENT, whose text names the package that brings it. */
MUST_CHECK int process_find(char **ret_path, const char *name, const char *package, struct error *err);

struct process {
	pid_t pid;
	int output; /* its stdout, or -1 */
	int errors; /* its stderr */
};

/* Start argv[0] with no stdin. keep_fd: stays open in it (-1: none). want_output: ret->output reads its stdout, which
 * is else thrown away. */
MUST_CHECK int process_start(struct process *ret_process, const char *const *argv, int keep_fd, bool want_output,
	const char *package, struct error *err);
/* Wait for its end. Closes the pipes. Errors: -EIO when it failed; `tail`, its last words, go into the text. */
MUST_CHECK int process_wait(struct process *process, const char *name, const char *tail, struct error *err);

/* Start, wait; what it prints is only told if it fails. */
MUST_CHECK int process_run(const char *const *argv, int keep_fd, const char *package, struct error *err);

#endif
