/*
 * Two machines of one configuration in virtual time, on two engines, going the same way in step: the first runs
 * to a place of its choice, the second to the same count of instructions, and they are compared.
 *
 * Their ticks (machine/virtual.h) come at the same counts, so both see the same time and the same interrupts.
 * A place of comparison is never in the midst of a string instruction, which has no count of its own there: the
 * first goes on to its end.
 *
 * Everything is a function of the configuration: a new pair repeats what an old one did. That is how a
 * difference is looked into (search.c).
 */
#ifndef LODGE_TESTS_LOCKSTEP_PAIR_H
#define LODGE_TESTS_LOCKSTEP_PAIR_H

#include "compare.h"

#include "base/error.h"
#include "isa/x86/cpu.h"
#include "machine/machine.h"

#define PAIR_TRACE 64 /* instructions kept before a difference */

/* A change of the second machine that makes it differ: for the test of all this. */
struct pair_damage {
	uint64_t count; /* done when it has completed so many; 0: none */
	int64_t gpa;	/* of a byte whose lowest bit turns over; < 0: rflags' CF does */
};

struct pair_config {
	struct machine_config machine; /* but engine and tuning; one vCPU, virtual time */
	const struct engine_ops *engine[2];
	struct engine_tuning tuning[2];
	const char *name[2];
	uint64_t slice; /* instructions between two ticks, at least */
	bool console;	/* the first machine's goes to stdout */
	struct pair_damage damage;
};

/* One instruction that the second machine completed, in fine steps. */
struct pair_insn {
	uint64_t count; /* before it */
	uint64_t rip;
	uint8_t bytes[X86_INSN_BYTES_MAX];
	uint8_t mode;
	bool real, starts_step; /* the first machine's step begins here */
};

struct pair_side {
	struct machine *machine;
	struct x86_state state; /* at the last comparison, local APIC included */
	struct x86_cpu *viewer; /* to look at memory as the processor does */
	uint64_t console_bytes, console_hash;
	bool echo;
};

struct pair {
	const struct pair_config *config;
	struct pair_side side[2];
	struct compare_ram ram;
	uint64_t count;	    /* completed by both */
	uint64_t slice_end; /* the present slice is over at this count or behind it; 0: no slice */
	struct pair_damage damage;
	struct pair_insn trace[PAIR_TRACE];
	uint64_t traced;
};

/* How steps go: of a slice each, or as short as the first engine can; then the second goes one by one and
 * leaves a trace. */
enum pair_step { PAIR_SLICE, PAIR_FINE };

enum pair_result {
	PAIR_SAME,	/* as far as compared */
	PAIR_OVER,	/* both have ended, in the same way; pair_end_text() */
	PAIR_DIFFERENT, /* ret_why says in which respect */
};

/* Errors: with a line for people. */
int pair_create(struct pair **ret_pair, const struct pair_config *config, struct error *err);
void pair_free(struct pair *pair);

/* One step of both. compare: their states, else only what could not go on. */
enum pair_result pair_step(
	struct pair *pair, enum pair_step step, bool compare, struct error *ret_why);
/* Compare RAM: what was written since the last time, or all. */
enum pair_result pair_check_ram(
	struct pair *pair, bool whole, gpa_t *ret_gpa, struct error *ret_why);

/* How the machines ended. */
const char *pair_end_text(struct pair *pair);

/* Does one of the engines leave flags out that nobody will read? Then none is compared, and neither is RAM, which
 * has images of them in the frames of interrupts. */
bool pair_is_lazy(const struct pair *pair);
uint64_t pair_dead_flags(const struct pair *pair);

#endif
