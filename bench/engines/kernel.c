/*
 * What goes through the kernel: system calls, faults, mappings, processes, pipes, signals, files. Every
 * turn's answer counts what went right.
 */
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/engines/bench.h"

#define PAGE 4096

static uint64_t system_calls(void *state)
{
	uint64_t right = 0;
	pid_t pid = getpid();

	(void)state;
	for (int i = 0; i < 1000; i++)
		right += syscall(SYS_getpid) == pid;
	return right;
}

struct zero {
	int fd;
};

static void *read_start(const struct bench_env *env)
{
	struct zero *zero = bench_pages(sizeof(*zero));

	(void)env;
	zero->fd = open("/dev/zero", O_RDONLY);
	if (zero->fd < 0)
		bench_fail("no /dev/zero");
	return zero;
}

static uint64_t read_byte(void *state)
{
	const struct zero *zero = state;
	uint64_t right = 0;

	for (int i = 0; i < 200; i++) {
		char byte = 1;

		right += read(zero->fd, &byte, 1) == 1 && byte == 0;
	}
	return right;
}

#define FAULTS 256

static uint64_t page_faults(void *state)
{
	volatile uint8_t *pages = bench_pages(FAULTS * PAGE);
	uint64_t right = 0;

	(void)state;
	for (size_t i = 0; i < FAULTS; i++) {
		right += pages[i * PAGE + 8 * i % PAGE] == 0;
		pages[i * PAGE] = 1;
	}
	munmap((void *)pages, FAULTS * PAGE);
	return right;
}

static uint64_t map_unmap(void *state)
{
	uint64_t right = 0;

	(void)state;
	for (int i = 0; i < 64; i++) {
		void *map = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		right += map != MAP_FAILED && munmap(map, 16 * PAGE) == 0;
	}
	return right;
}

static uint64_t fork_wait(void *state)
{
	int status = -1;
	pid_t pid = fork();

	(void)state;
	if (pid == 0)
		_exit(5);
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
	       WEXITSTATUS(status) == 5;
}

static uint64_t fork_exec(void *state)
{
	(void)state;
	return bench_run_self("--nothing", "-", "-") == 0;
}

struct pipes {
	int there[2], back[2];
};

static void answer_pipe(const struct pipes *pipes)
{
	char byte;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(pipes->there[0], &byte, 1) == 1) {
		byte++;
		if (write(pipes->back[1], &byte, 1) != 1)
			break;
	}
	_exit(0);
}

static void *pipe_start(const struct bench_env *env)
{
	struct pipes *pipes = bench_pages(sizeof(*pipes));
	pid_t pid;

	(void)env;
	if (pipe(pipes->there) || pipe(pipes->back))
		bench_fail("no pipes");
	pid = fork();
	if (pid < 0)
		bench_fail("no process");
	if (pid == 0)
		answer_pipe(pipes);
	return pipes;
}

static uint64_t pipe_ping(void *state)
{
	const struct pipes *pipes = state;
	uint64_t right = 0;

	for (int i = 0; i < 50; i++) {
		char byte = (char)i;

		if (write(pipes->there[1], &byte, 1) == 1 && read(pipes->back[0], &byte, 1) == 1)
			right += byte == (char)(i + 1);
	}
	return right;
}

static volatile sig_atomic_t signals_seen;

static void count_signal(int number)
{
	(void)number;
	signals_seen++;
}

static void *signal_start(const struct bench_env *env)
{
	struct sigaction action = {.sa_handler = count_signal};

	(void)env;
	sigaction(SIGUSR1, &action, NULL);
	return NULL;
}

static uint64_t signals(void *state)
{
	(void)state;
	signals_seen = 0;
	for (int i = 0; i < 100; i++)
		raise(SIGUSR1);
	return (uint64_t)signals_seen;
}

struct files {
	char path[PATH_MAX];
	uint8_t block[PAGE];
};

static void *files_start(const struct bench_env *env)
{
	struct files *files = bench_pages(sizeof(*files));

	snprintf(files->path, sizeof(files->path), "%s/bench-file-%d", env->folder, (int)getpid());
	for (size_t i = 0; i < PAGE; i++)
		files->block[i] = (uint8_t)(i * 3);
	return files;
}

/* Makes a file, writes and reads four pages, removes it. */
static uint64_t one_file(const struct files *files)
{
	uint8_t block[PAGE];
	uint64_t right = 0;
	int fd = open(files->path, O_CREAT | O_RDWR | O_EXCL, 0600);

	if (fd < 0)
		return 0;
	for (int i = 0; i < 4; i++)
		right += write(fd, files->block, PAGE) == PAGE;
	for (int i = 0; i < 4; i++)
		right += pread(fd, block, PAGE, i * PAGE) == PAGE &&
			 memcmp(block, files->block, PAGE) == 0;
	close(fd);
	return right == 8 && unlink(files->path) == 0;
}

static uint64_t tmpfs_files(void *state)
{
	uint64_t right = 0;

	for (int i = 0; i < 10; i++)
		right += one_file(state);
	return right;
}

const struct bench_work bench_kernel[] = {
	{"syscall_getpid", 1000, 1000, NULL, system_calls, 1, NULL},
	{"syscall_read", 200, 200, read_start, read_byte, 1, NULL},
	{"page_faults", FAULTS, FAULTS, NULL, page_faults, 1, NULL},
	{"mmap_munmap", 64, 64, NULL, map_unmap, 1, NULL},
	{"fork", 1, 1, NULL, fork_wait, 1, NULL},
	{"fork_exec", 1, 1, NULL, fork_exec, 1, NULL},
	{"pipe_pingpong", 50, 50, pipe_start, pipe_ping, 1, NULL},
	{"signals", 100, 100, signal_start, signals, 1, NULL},
	{"tmpfs_files", 10, 10, files_start, tmpfs_files, 1, NULL},
	{0},
};
