/*
 * Starts and drives the native process, see host.h and native.c.
 */
#include "host.h"
#include "gen.h"

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WAIT_ROUNDS 400 /* of 50 ms */

static int spawn(struct diff_host *host)
{
	host->shared->parent = (uint32_t)getpid();
	host->pid = fork();
	if (host->pid < 0)
		return -errno;
	if (host->pid == 0) {
		if (dup2(host->fd, 3) == 3)
			execl(host->program, host->program, (char *)NULL);
		perror(host->program);
		_exit(2);
	}
	return 0;
}

/* Until the batch is done. Returns -EPIPE if the process died over it. */
static int wait_done(struct diff_host *host)
{
	const struct timespec round = {0, 50000000};
	uint32_t done;

	for (unsigned i = 0; i < WAIT_ROUNDS; i++) {
		while ((done = __atomic_load_n(&host->shared->done, __ATOMIC_ACQUIRE)) !=
			host->shared->go) {
			if (syscall(SYS_futex, &host->shared->done, FUTEX_WAIT, done, &round, NULL,
				    0) < 0 &&
				errno == ETIMEDOUT)
				break;
		}
		if (done == host->shared->go)
			return 0;
		if (waitpid(host->pid, NULL, WNOHANG) == host->pid) {
			host->pid = 0;
			return -EPIPE;
		}
	}
	kill(host->pid, SIGKILL);
	waitpid(host->pid, NULL, 0);
	host->pid = 0;
	return -EPIPE;
}

static int run_from(struct diff_host *host)
{
	__atomic_add_fetch(&host->shared->go, 1, __ATOMIC_RELEASE);
	syscall(SYS_futex, &host->shared->go, FUTEX_WAKE, 1, NULL, NULL, 0);
	return wait_done(host);
}

/* A new process; ready when it has said so. */
static int restart(struct diff_host *host)
{
	host->shared->done = host->shared->go - 1;
	int rc = spawn(host);
	return rc < 0 ? rc : wait_done(host);
}

int diff_host_start(struct diff_host *host, const char *program, uint64_t seed)
{
	*host = (struct diff_host){.program = program};
	host->fd = memfd_create("diff", 0);
	if (host->fd < 0 || ftruncate(host->fd, sizeof(struct diff_shared)) < 0)
		return -errno;
	host->shared = mmap(
		NULL, sizeof(struct diff_shared), PROT_READ | PROT_WRITE, MAP_SHARED, host->fd, 0);
	if (host->shared == MAP_FAILED)
		return -errno;
	for (unsigned i = 0; i < DIFF_PATTERNS; i++)
		diff_pattern(seed, i, host->shared->pattern[i]);
	host->shared->go = 1;
	return restart(host);
}

int diff_host_run(struct diff_host *host, unsigned count)
{
	struct diff_shared *shared = host->shared;

	shared->count = count;
	int rc = run_from(host);
	while (rc == -EPIPE) {
		/* The cases before the one that killed it are done; go on after it, one by one. */
		unsigned next = shared->current;
		shared->results[next].vector = DIFF_DIED;
		if (++host->deaths > 20)
			return -EPIPE;
		rc = restart(host);
		if (rc < 0)
			return rc;
		struct diff_case first = shared->cases[0];
		struct diff_result result = shared->results[0];
		for (next++; next < count && rc == 0; next++) {
			shared->cases[0] = shared->cases[next];
			shared->count = 1;
			rc = run_from(host);
			shared->results[next] = shared->results[0];
			shared->current = next;
		}
		shared->cases[0] = first;
		shared->results[0] = result;
		shared->count = count;
	}
	return rc;
}

void diff_host_stop(struct diff_host *host)
{
	if (host->pid > 0) {
		kill(host->pid, SIGKILL);
		waitpid(host->pid, NULL, 0);
	}
	if (host->shared && host->shared != MAP_FAILED)
		munmap(host->shared, sizeof(*host->shared));
	if (host->fd >= 0)
		close(host->fd);
}
