/*
 * Options, timing and the life of the guest's first process; see bench.h.
 *
 * Output is one line a workload, "bench NAME NANOSECONDS-PER-OPERATION", "bench NAME error WHY" or
 * "bench NAME skip WHY", between "bench begin CLOCK" and "bench end CLOCK", whose clock readings let
 * the reader on the host check the guest's clock.
 *
 * The time is the best of three slices: what a busy host adds only ever makes one longer.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "bench/engines/bench.h"

#define SLICES	     3
#define TIME_LIMIT_S 120
/* The name under which this program runs as one of its own workloads. */
#define PROGRAM_NAME "bench-program"

struct options {
	struct bench_env env;
	const char *only;
	unsigned int cpus;
	int idle, boot, list, tsc;
};

static const struct {
	const char *group;
	const struct bench_work *work;
} all_work[] = {
	{"compute", bench_compute},
	{"memory", bench_memory},
	{"vector", bench_vector},
	{"kernel", bench_kernel},
	{"program", bench_programs},
	{"threads", bench_threads},
};

/* The running workload's name; each process has one. */
static const char *work_name = "main";

/* A line in one write, so that nothing comes between. */
__attribute__((format(printf, 1, 2))) static void report(const char *format, ...)
{
	char line[256] = "bench ";
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(line + 6, sizeof(line) - 8, format, args);
	va_end(args);
	if (length > (int)sizeof(line) - 9)
		length = (int)sizeof(line) - 9;
	line[6 + length] = '\n';
	if (write(1, line, (size_t)length + 7) < 0)
		_exit(3);
}

void bench_fail(const char *what)
{
	report("%s error %s", work_name, what);
	_exit(0);
}

uint64_t bench_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void *bench_pages(size_t bytes)
{
	void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (map == MAP_FAILED)
		bench_fail("no memory");
	/* Kernels differ in when they give huge pages. An old one may not know them. */
	(void)madvise(map, bytes, MADV_NOHUGEPAGE);
	return map;
}

uint64_t bench_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

void bench_pin(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	(void)sched_setaffinity(0, sizeof(set), &set);
}

int bench_run_self(const char *option, const char *argument, const char *other)
{
	char *const args[] = {
		(char *)PROGRAM_NAME, (char *)option, (char *)argument, (char *)other, NULL};
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return -errno;
	if (pid == 0) {
		execv("/proc/self/exe", args);
		_exit(127);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -ECHILD;
	return WEXITSTATUS(status);
}

/* Nanoseconds that this many turns take; their answers are checked. */
static uint64_t time_turns(const struct bench_work *work, void *state, uint64_t turns)
{
	uint64_t begun = bench_now_ns();

	for (uint64_t i = 0; i < turns; i++) {
		uint64_t answer = work->turn(state);

		if (answer != work->answer) {
			report("%s error the answer is %#llx and not %#llx", work->name,
				(unsigned long long)answer, (unsigned long long)work->answer);
			_exit(0);
		}
	}
	return bench_now_ns() - begun;
}

static double measure(const struct bench_work *work, void *state, uint64_t target_ns)
{
	uint64_t turns = 1, took, slice = target_ns / SLICES;
	double best;

	(void)time_turns(work, state, 1);
	/* A clock of few ticks a second must not matter, so a slice is some tens of milliseconds. */
	for (took = time_turns(work, state, turns); took < slice / 4 && turns < UINT64_MAX / 8;
		took = time_turns(work, state, turns))
		turns *= took < slice / 64 ? 8 : 2;
	best = (double)took / (double)turns;
	if (took < slice)
		turns = (uint64_t)((double)slice / best) + 1;
	for (int i = 0; i < SLICES && took < target_ns; i++) {
		double each = (double)time_turns(work, state, turns) / (double)turns;

		if (i == 0 || each < best)
			best = each;
	}
	return best / (double)work->ops;
}

static void work_main(const struct bench_work *work, const struct options *options)
{
	void *state;

	work_name = work->name;
	alarm(TIME_LIMIT_S);
	if (options->cpus == 1)
		bench_pin(0);
	state = work->start ? work->start(&options->env) : NULL;
	report("%s %.4f", work->name, measure(work, state, options->env.target_ns));
}

static void run_work(const struct bench_work *work, const struct options *options)
{
	int status;
	pid_t pid;

	if (work->able && !work->able()) {
		report("%s skip this processor lacks the instructions", work->name);
		return;
	}
	pid = fork();
	if (pid == 0) {
		/* A group of its own: its children are found when it is gone. */
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		work_main(work, options);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		report("%s error no process for it: %s", work->name, strerror(errno));
		return;
	}
	kill(-pid, SIGKILL);
	if (WIFSIGNALED(status))
		report("%s error ended by signal %d%s", work->name, WTERMSIG(status),
			WTERMSIG(status) == SIGALRM ? " (too slow)" : "");
	else if (WEXITSTATUS(status))
		report("%s error ended with status %d", work->name, WEXITSTATUS(status));
}

/* Is the name one of the list, or the list empty? */
static int is_wanted(const char *only, const char *name)
{
	size_t length = strlen(name);

	if (!only)
		return 1;
	for (const char *at = only; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == 0))
			return 1;
	}
	return 0;
}

static void run_all(const struct options *options)
{
	for (size_t i = 0; i < sizeof(all_work) / sizeof(all_work[0]); i++) {
		for (const struct bench_work *work = all_work[i].work; work->name; work++) {
			if (options->list)
				printf("%s %s %u\n", work->name, all_work[i].group, work->cpus);
			else if (work->cpus == options->cpus &&
				 is_wanted(options->only, work->name))
				run_work(work, options);
		}
	}
}

/* What a first process finds missing. */
static void become_init(void)
{
	static const char *const mounts[][2] = {
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}};

	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		mkdir(mounts[i][1], 0755);
		if (mount(mounts[i][0], mounts[i][1], mounts[i][0], 0, NULL) && errno != EBUSY)
			report("main error cannot mount %s: %s", mounts[i][1], strerror(errno));
	}
}

static _Noreturn void power_off(void)
{
	tcdrain(1);
	reboot(RB_POWER_OFF);
	/* No way to switch off: a reset ends it too, by the options of the monitor. */
	reboot(RB_AUTOBOOT);
	_exit(1);
}

/* Counts of the time stamp counter in a millisecond, over half a second. */
static uint64_t tsc_khz(void)
{
	struct timespec half = {.tv_nsec = 500000000};
	uint64_t ns = bench_now_ns(), tsc = __builtin_ia32_rdtsc();

	nanosleep(&half, NULL);
	ns = bench_now_ns() - ns;
	tsc = __builtin_ia32_rdtsc() - tsc;
	return tsc * 1000 / (ns / 1000);
}

static const char *value_of(const char *arg, const char *name)
{
	size_t length = strlen(name);

	return strncmp(arg, name, length) == 0 && arg[length] == '=' ? arg + length + 1 : NULL;
}

/* The kernel adds words of its own to a first process's arguments: what is unknown is passed over. */
static void parse(struct options *options, char **args)
{
	const char *value;

	for (; *args; args++) {
		if ((value = value_of(*args, "--only")))
			options->only = value;
		else if ((value = value_of(*args, "--folder")))
			options->env.folder = value;
		else if ((value = value_of(*args, "--text")))
			options->env.text = value;
		else if ((value = value_of(*args, "--cpus")))
			options->cpus = (unsigned int)atoi(value);
		else if ((value = value_of(*args, "--target-ms")))
			options->env.target_ns = (uint64_t)atoi(value) * 1000000;
		options->idle |= strcmp(*args, "--idle") == 0;
		options->boot |= strcmp(*args, "--boot") == 0;
		options->list |= strcmp(*args, "--list") == 0;
		options->tsc |= strcmp(*args, "--tsc-khz") == 0;
	}
}

int main(int argc, char **argv)
{
	struct options options = {
		.env = {.folder = "/tmp", .text = "/bench/text", .target_ns = 300000000},
		.cpus = 1};
	int is_init = getpid() == 1;

	if (argc == 4 && strcmp(argv[0], PROGRAM_NAME) == 0)
		return bench_program_main(argv[1], argv[2], argv[3]);
	parse(&options, argv + 1);
	if (options.list) {
		run_all(&options);
		return 0;
	}
	if (options.tsc)
		return printf("%llu\n", (unsigned long long)tsc_khz()) < 0;
	report("begin %llu", (unsigned long long)bench_now_ns());
	if (is_init)
		become_init();
	if (options.idle)
		for (;;)
			pause();
	if (!options.boot)
		run_all(&options);
	report("end %llu", (unsigned long long)bench_now_ns());
	if (is_init)
		power_off();
	return 0;
}
