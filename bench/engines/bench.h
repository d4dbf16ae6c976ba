/*
 * The benchmark program of `./dev bench engines`: the same static program runs on the host and as the
 * first process of a guest.
 *
 * A workload is one row: it does its work in turns, and every turn must give the row's answer, or an
 * error is reported instead of a time. Each workload runs in a process of its own, so that what
 * crashes, hangs or leaves memory behind concerns no other.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct bench_env {
	/* a folder on tmpfs, and the text that is compressed */
	const char *folder;
	const char *text;
	uint64_t target_ns;
};

struct bench_work {
	const char *name;
	/* operations in one turn; times are printed for one of them */
	uint64_t ops;
	/* what turn() must return, each time */
	uint64_t answer;
	/* makes the state that turn() gets; may be NULL. It is never freed: the process ends */
	void *(*start)(const struct bench_env *env);
	uint64_t (*turn)(void *state);
	/* virtual processors that it is for: 1, or 2 */
	unsigned int cpus;
	/* NULL, or says whether this processor has the instructions */
	int (*able)(void);
};

/* Each ends with a row that has no name. */
extern const struct bench_work bench_compute[], bench_memory[], bench_vector[], bench_kernel[],
	bench_threads[], bench_programs[];

/* Reports why there is no result, and ends the workload's process. */
_Noreturn void bench_fail(const char *what);
uint64_t bench_now_ns(void);
/* Memory from mmap(), on small pages. */
void *bench_pages(size_t bytes);
/* The next number of a fixed sequence (Marsaglia's xorshift, 64 bits). */
uint64_t bench_random(uint64_t *state);
/* The calling thread runs on that processor only, if there is one of that number. */
void bench_pin(unsigned int cpu);
/* Runs this same program with two arguments; its exit status, or negative. */
int bench_run_self(const char *option, const char *argument, const char *other);
/* What a child of bench_run_self() does for options of programs.c: an exit status. */
int bench_program_main(const char *option, const char *argument, const char *other);
