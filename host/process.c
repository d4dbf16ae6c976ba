/*
 * Calling other programs: see process.h.
 */
#include "host/process.h"
#include "base/cleanup.h"
#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define TAIL_BYTES 600

int process_find(char **ret_path, const char *name, const char *package, struct error *err)
{
	const char *path = getenv("PATH");
	AUTO_FREE char *all = NULL;

	if (asprintf(&all, "%s:/usr/local/sbin:/usr/sbin:/sbin", path ? path : "/usr/bin:/bin") < 0) {
		all = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	char *rest = all;
	for (char *dir = strsep(&rest, ":"); dir; dir = strsep(&rest, ":")) {
		AUTO_FREE char *file = NULL;
		if (!*dir || asprintf(&file, "%s/%s", dir, name) < 0)
			continue;
		if (access(file, X_OK) == 0) {
			*ret_path = take_ptr(&file);
			return 0;
		}
	}
	return error_set(err, ENOENT, "no program '%s' here: apt-get install %s", name, package);
}

static void child(const char *file, const char *const *argv, int keep_fd, int output, int errors)
{
	sigset_t none;
	int null = open("/dev/null", O_RDWR);

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(output < 0 ? null : output, STDOUT_FILENO) < 0 ||
		dup2(errors, STDERR_FILENO) < 0)
		_exit(127);
	if (keep_fd >= 0)
		fcntl(keep_fd, F_SETFD, 0);
	execv(file, (char *const *)(uintptr_t)argv);
	_exit(127);
}

int process_start(struct process *ret_process, const char *const *argv, int keep_fd, bool want_output,
	const char *package, struct error *err)
{
	AUTO_FREE char *file = NULL;
	int output[2] = { -1, -1 }, errors[2];
	int status = process_find(&file, argv[0], package, err);

	if (status < 0)
		return status;
	if (pipe2(errors, O_CLOEXEC) < 0)
		return error_set_errno(err, errno, "can't make a pipe");
	if (want_output && pipe2(output, O_CLOEXEC) < 0)
		output[0] = output[1] = -1;
	pid_t pid = want_output && output[0] < 0 ? -1 : fork();
	const int code = errno;
	if (pid == 0)
		child(file, argv, keep_fd, output[1], errors[1]);
	close(errors[1]);
	if (output[1] >= 0)
		close(output[1]);
	*ret_process = (struct process){ .pid = pid, .output = output[0], .errors = errors[0] };
	if (pid > 0)
		return 0;
	close(errors[0]);
	if (output[0] >= 0)
		close(output[0]);
	return error_set_errno(err, code, "can't start %s", argv[0]);
}

int process_wait(struct process *p, const char *name, const char *tail, struct error *err)
{
	int status;

	if (p->output >= 0)
		close(p->output);
	if (p->errors >= 0)
		close(p->errors);
	p->output = p->errors = -1;
	while (waitpid(p->pid, &status, 0) < 0)
		if (errno != EINTR)
			return error_set_errno(err, errno, "can't wait for %s", name);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	if (WIFSIGNALED(status))
		return error_set(err, EIO, "%s was ended by signal %d", name, WTERMSIG(status));
	return error_set(err, EIO, "%s failed (status %d): %s", name, WEXITSTATUS(status), tail);
}

/* Keep the end of all that comes. */
static void read_tail(int fd, char *tail, size_t room)
{
	size_t have = 0;
	char buf[256];
	ssize_t got;

	while ((got = read(fd, buf, sizeof(buf))) != 0) {
		if (got < 0 && errno != EINTR)
			break;
		if (got <= 0)
			continue;
		if (have + (size_t)got > room - 1) {
			const size_t drop = have + (size_t)got - (room - 1);
			memmove(tail, tail + drop, have - drop);
			have -= drop;
		}
		memcpy(tail + have, buf, (size_t)got);
		have += (size_t)got;
	}
	tail[have] = '\0';
	while (have && tail[have - 1] == '\n')
		tail[--have] = '\0';
}

int process_run(const char *const *argv, int keep_fd, const char *package, struct error *err)
{
	struct process process;
	char tail[TAIL_BYTES];
	int status = process_start(&process, argv, keep_fd, false, package, err);

	if (status < 0)
		return status;
	read_tail(process.errors, tail, sizeof(tail));
	return process_wait(&process, argv[0], tail, err);
}
