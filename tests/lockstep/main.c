/*
 * lockstep: runs a kernel on two engines at once, in virtual time, and compares them as they go:
 * docs/lockstep.md.
 *
 * A difference is looked into by running it all again: first with RAM compared in every slice, which tells the
 * slice, then that slice in the shortest steps there are. Exit status: 0 the same, 1 different, 2 could not be
 * run.
 */
#include "pair.h"

#include "base/clock.h"
#include "engine/engine.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NEVER UINT64_MAX

struct options {
	struct pair_config pair;
	struct boot_file initrd;
	uint64_t limit, from, ram_every;
	bool coarse; /* do not look into a difference */
};

/* How to go, and how far it went. */
struct way {
	uint64_t from, fine_from, ram_every, limit;
	uint64_t good;	   /* the last count at which the processors were compared and the same */
	uint64_t ram_good; /* and RAM */
	enum pair_result result;
	struct error why;
	bool in_ram;
	gpa_t gpa;
};

/* ---- going ---- */

static void check_ram(struct pair *pair, struct way *way, bool whole)
{
	if (pair_check_ram(pair, whole, &way->gpa, &way->why) == PAIR_SAME) {
		way->ram_good = pair->count;
		return;
	}
	way->result = PAIR_DIFFERENT;
	way->in_ram = true;
}

static void go(struct pair *pair, struct way *way)
{
	uint64_t slices = 0;

	way->result = PAIR_SAME;
	way->good = way->ram_good = way->from; /* what nobody asks about */
	while (way->result == PAIR_SAME && pair->count < way->limit) {
		bool fine = pair->count >= way->fine_from, compare = pair->count >= way->from;

		way->result = pair_step(pair, fine ? PAIR_FINE : PAIR_SLICE, compare, &way->why);
		if (way->result != PAIR_SAME || !compare)
			continue;
		if (fine || ++slices % way->ram_every == 0)
			check_ram(pair, way, false);
		if (way->result == PAIR_SAME)
			way->good = pair->count;
	}
	if (way->result != PAIR_DIFFERENT)
		check_ram(pair, way, true);
}

/* ---- reports ---- */

static void print_insn(const struct pair_insn *at)
{
	struct x86_insn insn;
	char text[128] = "(no instruction)";

	if (x86_decode(&insn, at->bytes, sizeof(at->bytes), at->mode, at->real, NULL) ==
		X86_DECODE_OK)
		x86_format(&insn, at->rip, text, sizeof(text));
	printf("  %c %12" PRIu64 "  %016" PRIx64 "  %s\n", at->starts_step ? '>' : ' ', at->count,
		at->rip, text);
}

static void print_trace(const struct pair *pair)
{
	uint64_t first = pair->traced > PAIR_TRACE ? pair->traced - PAIR_TRACE : 0;

	if (!pair->traced)
		return;
	printf("Before it %s executed (count, address; '>' begins a step of %s):\n",
		pair->config->name[1], pair->config->name[0]);
	for (uint64_t i = first; i < pair->traced; i++)
		print_insn(&pair->trace[i % PAIR_TRACE]);
}

static void report(struct pair *pair, const struct way *way, const char *what)
{
	const char *const *name = pair->config->name;

	printf("lockstep: %s: %s and %s differ between instruction %" PRIu64 " and %" PRIu64
	       ": %s\n",
		what, name[0], name[1], way->in_ram ? way->ram_good : way->good, pair->count,
		way->why.text);
	print_trace(pair);
	printf("What differs:\n");
	compare_print_states(stdout, &pair->side[0].state, &pair->side[1].state,
		pair_dead_flags(pair), name[0], name[1]);
	if (way->in_ram)
		compare_print_ram(stdout, &pair->ram, way->gpa, name[0], name[1]);
}

/* ---- looking into a difference ---- */

/* All again in another way. Returns NULL if that cannot be done. */
static struct pair *again(const struct options *o, struct way *way)
{
	struct pair *pair;
	struct error err = {0};

	if (pair_create(&pair, &o->pair, &err) < 0) {
		fprintf(stderr, "lockstep: %s\n", err.text);
		return NULL;
	}
	go(pair, way);
	return pair;
}

static void look_into(struct options *o, const struct way *first)
{
	uint64_t limit = first->good + 64 * o->pair.slice;
	struct way slice = {
		.from = first->ram_good, .fine_from = NEVER, .ram_every = 1, .limit = limit};

	o->pair.console = false;
	struct pair *pair = again(o, &slice);
	if (!pair)
		return;
	if (slice.result != PAIR_DIFFERENT) {
		printf("lockstep: a second run did not show it: something is not repeatable\n");
		pair_free(pair);
		return;
	}
	pair_free(pair);
	struct way fine = {
		.from = slice.good, .fine_from = slice.good, .ram_every = 1, .limit = limit};
	pair = again(o, &fine);
	if (!pair)
		return;
	if (fine.result == PAIR_DIFFERENT)
		report(pair, &fine, "step by step");
	else
		printf("lockstep: in short steps it does not happen: it depends on longer blocks, or on "
		       "the comparison\n");
	pair_free(pair);
}

/* ---- the program ---- */

static int run(struct options *o)
{
	struct way way = {
		.from = o->from, .fine_from = NEVER, .ram_every = o->ram_every, .limit = o->limit};
	uint64_t begun_ns = clock_monotonic_ns();
	struct pair *pair = again(o, &way);

	if (!pair)
		return 2;
	if (way.result == PAIR_DIFFERENT) {
		report(pair, &way, "slice by slice");
		pair_free(pair);
		if (!o->coarse)
			look_into(o, &way);
		return 1;
	}
	printf("lockstep: %s and %s are the same for %" PRIu64 " instructions (%.1f s): %s\n",
		o->pair.name[0], o->pair.name[1], pair->count,
		(double)(clock_monotonic_ns() - begun_ns) / NS_PER_SEC,
		way.result == PAIR_OVER ? pair_end_text(pair) : "the limit");
	pair_free(pair);
	return 0;
}

static const char usage_text[] =
	"usage: lockstep --kernel FILE [OPTION]...\n"
	"\n"
	"  --initrd FILE, --cmdline TEXT, --memory MIB (256)\n"
	"  --a ENGINE, --b ENGINE   jit (or interp) and interp. ENGINE:block=N limits blocks to N\n"
	"                    instructions, ENGINE:lazy lets it leave flags that nobody will\n"
	"                    read: RAM and arithmetic flags are not compared then\n"
	"  --slice N         instructions between two ticks of the clock (1000)\n"
	"  --limit N         stop after so many instructions\n"
	"  --from N          compare from there on\n"
	"  --ram-every N     compare RAM every N slices (1000)\n"
	"  --coarse          do not look into a difference\n"
	"  --console         show the first machine's console\n"
	"  --damage N        turn CF over in the second machine behind instruction N\n"
	"  --damage N:GPA    the lowest bit of that byte of RAM\n";

/* Exits: there is nothing to undo. */
static uint64_t number(const char *text)
{
	char *end;
	uint64_t value = strtoull(text, &end, 0);

	if (*end || end == text) {
		fprintf(stderr, "lockstep: '%s' is no number\n", text);
		exit(2);
	}
	return value;
}

/* NAME[:block=N][:lazy] */
static void set_engine(struct options *o, unsigned side, const char *text)
{
	char *copy = strdup(text), *rest = copy, *word = strsep(&rest, ":");

	o->pair.name[side] = text;
	o->pair.engine[side] = engine_find(word);
	o->pair.tuning[side] = (struct engine_tuning){.random_seed = 1, .precise = true};
	if (!o->pair.engine[side]) {
		fprintf(stderr, "lockstep: no engine '%s'\n", word);
		exit(2);
	}
	while ((word = strsep(&rest, ":"))) {
		if (strncmp(word, "block=", 6) == 0)
			o->pair.tuning[side].block_instructions = (unsigned)number(word + 6);
		else if (strcmp(word, "lazy") == 0)
			o->pair.tuning[side].precise = false;
		else
			number(word); /* which complains */
	}
	free(copy);
}

static void set_damage(struct options *o, char *text)
{
	char *colon = strchr(text, ':');

	if (colon)
		*colon = 0;
	o->pair.damage = (struct pair_damage){
		.count = number(text), .gpa = colon ? (int64_t)number(colon + 1) : -1};
}

static const struct option long_options[] = {{"kernel", required_argument, NULL, 'k'},
	{"initrd", required_argument, NULL, 'i'}, {"cmdline", required_argument, NULL, 'c'},
	{"memory", required_argument, NULL, 'm'}, {"a", required_argument, NULL, 'a'},
	{"b", required_argument, NULL, 'b'}, {"slice", required_argument, NULL, 's'},
	{"limit", required_argument, NULL, 'l'}, {"from", required_argument, NULL, 'f'},
	{"ram-every", required_argument, NULL, 'r'}, {"coarse", no_argument, NULL, 'C'},
	{"console", no_argument, NULL, 'o'}, {"damage", required_argument, NULL, 'd'}, {0}};

static bool set_option(struct options *o, int option)
{
	struct machine_config *m = &o->pair.machine;

	switch (option) {
	case 'k': m->boot.kernel.path = optarg; return true;
	case 'i':
		o->initrd.path = optarg;
		m->boot.initrd = &o->initrd;
		m->boot.initrd_count = 1;
		return true;
	case 'c': m->boot.cmdline = optarg; return true;
	case 'm': m->memory_bytes = MIB(number(optarg)); return true;
	case 'a': set_engine(o, 0, optarg); return true;
	case 'b': set_engine(o, 1, optarg); return true;
	case 's': o->pair.slice = MAX(number(optarg), UINT64_C(1)); return true;
	case 'l': o->limit = number(optarg); return true;
	case 'f': o->from = number(optarg); return true;
	case 'r': o->ram_every = MAX(number(optarg), UINT64_C(1)); return true;
	case 'C': o->coarse = true; return true;
	case 'o': o->pair.console = true; return true;
	case 'd': set_damage(o, optarg); return true;
	default: return false;
	}
}

int main(int argc, char **argv)
{
	static struct options o = {.limit = NEVER, .ram_every = 1000, .pair.slice = 1000};

	o.pair.machine = (struct machine_config){.cpus = 1,
		.memory_bytes = MIB(256),
		/* 2025-01-01 */
		.virtual_time = {.on = true, .start_realtime_ns = 1735689600 * NS_PER_SEC}};
	set_engine(&o, 0, engine_find("jit") ? "jit" : "interp");
	set_engine(&o, 1, engine_find("jit") ? "interp" : "interp:block=1");
	for (int option; (option = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
		if (!set_option(&o, option)) {
			fputs(usage_text, stderr);
			return 2;
		}
	if (optind != argc || !o.pair.machine.boot.kernel.path) {
		fputs(usage_text, stderr);
		return 2;
	}
	return run(&o);
}
