/*
 * diff: random instructions, and sequences of them, on the host's processor, in the interpreter and in the
 * translator; the whole state, memory and exception compared. docs/differential.md says how to use it
 * and what it does not reach.
 *
 * Every row of the instruction table that can be compared gets an equal share of the cases. A case is
 * named SEED:INDEX and can be run again alone.
 */
#include "compare.h"
#include "gen.h"
#include "host.h"
#include "jit.h"

#include "base/util.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROWS_MAX    4096
#define THREADS_MAX 64
#define DIFFER_MAX  1000 /* enough is enough */

struct options {
	uint64_t seed, count, replay;
	unsigned threads, reports, programs;
	const char *rows, *native;
	const char *jit; /* the translator's switches; NULL: it takes no part */
	bool is_replay, seed_given, programs_given, by_row, brief;
};

/* What the workers add up, in memory they share. */
struct totals {
	uint64_t ran, differ, deaths, jit_ran, jit_changed, jit_differ;
	uint64_t skipped[DIFF_SKIPS];
	uint64_t by_vector[33];
	uint32_t row_ran[ROWS_MAX + 1], row_differ[ROWS_MAX + 1]; /* the last: mutated bytes */
	uint32_t reports;
};

struct worker {
	const struct options *options;
	struct totals *totals;
	struct diff_interp *interp;
	struct diff_jit *jit; /* NULL: takes no part */
	struct diff_rows rows;
	struct diff_host host;
	/* the batch */
	uint64_t index[DIFF_BATCH];
	int row[DIFF_BATCH];
	struct diff_notes notes[DIFF_BATCH];
	struct diff_result result[DIFF_BATCH];
	struct diff_result jit_result[DIFF_JIT_PASSES];
};

static uint64_t add(uint64_t *counter, uint64_t n)
{
	return __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* ---- set-up ---- */

/* Does the host's kernel run 32-bit code? One INT3 of it. */
static bool probe_mode32(struct diff_host *host)
{
	struct diff_case *c = &host->shared->cases[0];
	const struct diff_result *r = &host->shared->results[0];
	const uint16_t seg[6] = {DIFF_DS, DIFF_CS32, DIFF_DS, DIFF_DS, 0, 0};

	memset(c, 0, sizeof(*c));
	c->mode = 32;
	c->code[0] = 0xcc;
	c->code_bytes = 1;
	c->in.rip = DIFF_CODE;
	c->in.rflags = 0x202;
	c->in.fcw = 0x37f;
	c->in.mxcsr = 0x1f80;
	memcpy(c->in.seg, seg, sizeof(seg));
	return diff_host_run(host, 1) == 0 && r->vector == X86_BP &&
	       r->out.seg[X86_CS] == DIFF_CS32;
}

static bool wanted(const struct options *o, const struct x86_row *row)
{
	return !o->rows || strcasecmp(row->name, o->rows) == 0 ||
	       strncmp(row->encoding, o->rows, strlen(o->rows)) == 0;
}

static int choose_rows(struct worker *w)
{
	w->rows.programs_percent = w->options->programs;
	/* Flags that were dead when they were dropped may be wanted by the code when it has changed. */
	w->rows.change_code = w->options->jit && strstr(w->options->jit, "precise");
	w->rows.row = calloc(x86_row_count, sizeof(*w->rows.row));
	if (!w->rows.row || x86_row_count > ROWS_MAX)
		return -ENOMEM;
	for (unsigned i = 0; i < x86_row_count; i++)
		if (wanted(w->options, &x86_rows[i]) && !diff_row_skip(w->interp, &x86_rows[i]))
			w->rows.row[w->rows.count++] = (uint16_t)i;
	return w->rows.count ? 0 : -ENOENT;
}

static int worker_init(struct worker *w, unsigned number)
{
	cpu_set_t set;
	unsigned cpu = 0, seen = 0;

	if (sched_getaffinity(0, sizeof(set), &set) == 0) {
		const unsigned n = (unsigned)CPU_COUNT(&set);
		for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
			if (CPU_ISSET(cpu, &set) && seen++ == number % n)
				break;
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		sched_setaffinity(0, sizeof(set), &set);
	}
	int rc = diff_host_start(&w->host, w->options->native, w->options->seed);
	if (rc == 0)
		rc = diff_interp_create(w->host.shared, &w->interp);
	if (rc == 0 && w->options->jit)
		rc = diff_jit_create(w->host.shared, w->options->jit, &w->jit);
	if (rc < 0)
		return rc;
	w->interp->mode32 = probe_mode32(&w->host);
	return choose_rows(w);
}

/* ---- running ---- */

/* What one side made of the case, beside what is right. */
struct finding {
	const char *who[2];
	const struct diff_result *is, *right;
};

static void report(struct worker *w, unsigned slot, const struct diff_case *c,
	const struct finding *found, bool all)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	if (!out)
		return;
	fprintf(out, "%s %llu:%llu", all ? "case" : "DIFFERENCE",
		(unsigned long long)w->options->seed, (unsigned long long)w->index[slot]);
	if (w->row[slot] >= 0)
		fprintf(out, "  row \"%s\" %s %s", x86_rows[w->row[slot]].encoding,
			x86_rows[w->row[slot]].name, x86_rows[w->row[slot]].operands);
	fprintf(out, "\n");
	diff_print_case(out, c, w->interp, !w->options->brief);
	diff_print_results(out, c, found->who, found->is, found->right, &w->notes[slot], all);
	if (w->jit && found->is >= w->jit_result && found->is < w->jit_result + DIFF_JIT_PASSES)
		fprintf(out, "  instructions: %llu, interpreter %llu; pass %u\n",
			(unsigned long long)found->is->instructions,
			(unsigned long long)w->notes[slot].instructions,
			(unsigned)(found->is - w->jit_result) + 1);
	fclose(out);
	fwrite(text, 1, size, stdout);
	fflush(stdout);
	free(text);
}

static unsigned row_of(const struct worker *w, unsigned slot)
{
	return w->row[slot] < 0 ? ROWS_MAX : (unsigned)w->row[slot];
}

/* The first difference of each row, and as many of mutated bytes as may be. */
static void count_difference(struct worker *w, unsigned slot, const struct finding *found)
{
	struct totals *t = w->totals;
	const unsigned row = row_of(w, slot);
	const uint32_t before = __atomic_fetch_add(&t->row_differ[row], 1, __ATOMIC_RELAXED);

	if ((before == 0 || row == ROWS_MAX) &&
		__atomic_fetch_add(&t->reports, 1, __ATOMIC_RELAXED) < w->options->reports)
		report(w, slot, &w->host.shared->cases[slot], found, false);
}

/* The translator's turn. Returns the pass that differs from `right`, or -1. */
static int run_jit(struct worker *w, unsigned slot, struct diff_result *right)
{
	const struct diff_case *c = &w->host.shared->cases[slot];
	struct diff_notes *notes = &w->notes[slot];
	char name[64];

	snprintf(name, sizeof(name), "%llu:%llu", (unsigned long long)w->options->seed,
		(unsigned long long)w->index[slot]);
	if (notes->mended) {
		w->interp->unmended = true;
		diff_interp_run(w->interp, c, right, notes);
		w->interp->unmended = false;
	}
	diff_jit_run(w->jit, c, name, w->jit_result);
	for (int i = 0; i < DIFF_JIT_PASSES; i++)
		if (!diff_jit_agrees(w->jit, c, &w->jit_result[i], right, notes))
			return i;
	return -1;
}

static void judge_jit(struct worker *w, unsigned slot, const struct diff_result *right)
{
	struct diff_result copy = *right;

	if (!w->jit)
		return;
	if (w->host.shared->cases[slot].changes_code)
		add(&w->totals->jit_changed, 1);
	const int pass = run_jit(w, slot, &copy);
	add(&w->totals->jit_ran, 1);
	if (pass < 0)
		return;
	const struct finding found = {
		{"translator", right == &w->result[slot] ? "interpreter" : "processor"},
		&w->jit_result[pass], &copy};
	add(&w->totals->jit_differ, 1);
	count_difference(w, slot, &found);
}

static void judge(struct worker *w, unsigned slot)
{
	struct totals *t = w->totals;
	const struct diff_case *c = &w->host.shared->cases[slot];
	const struct diff_result *native = &w->host.shared->results[slot];
	const unsigned row = row_of(w, slot);
	const struct finding found = {{"interpreter", "processor"}, &w->result[slot], native};

	if (diff_agree(&w->result[slot], native, &w->notes[slot])) {
		add(&t->ran, 1);
		add(&t->by_vector[MIN(native->vector, 32u)], 1);
		__atomic_fetch_add(&t->row_ran[row], 1, __ATOMIC_RELAXED);
		judge_jit(w, slot, native);
		return;
	}
	if (native->vector == DIFF_RUNAWAY && native->out.rip == w->result[slot].out.rip) {
		add(&t->skipped[DIFF_SKIP_HOST_LOOP], 1);
		return;
	}
	if (diff_is_extra(c, &w->result[slot], native)) {
		add(&t->skipped[DIFF_SKIP_EXTRA], 1);
		judge_jit(w, slot, &w->result[slot]);
		return;
	}
	add(&t->ran, 1);
	add(&t->differ, 1);
	__atomic_fetch_add(&t->row_ran[row], 1, __ATOMIC_RELAXED);
	count_difference(w, slot, &found);
}

/* Generate and interpret up to a batch, beginning at *index; then run it natively and compare. */
static int run_batch(struct worker *w, uint64_t *index, uint64_t end, unsigned stride)
{
	unsigned count = 0;

	for (; *index < end && count < DIFF_BATCH; *index += stride) {
		struct diff_case *c = &w->host.shared->cases[count];
		w->index[count] = *index;
		diff_generate(w->interp, &w->rows, w->options->seed, *index, c, &w->row[count]);
		const enum diff_skip skip =
			diff_interp_run(w->interp, c, &w->result[count], &w->notes[count]);
		if (skip)
			add(&w->totals->skipped[skip], 1);
		else if (c->changes_code)
			judge_jit(w, count, &w->result[count]);
		else
			count++;
	}
	if (!count)
		return 0;
	int rc = diff_host_run(&w->host, count);
	if (rc < 0)
		return rc;
	for (unsigned i = 0; i < count; i++)
		judge(w, i);
	return 0;
}

static int work(struct worker *w, unsigned number)
{
	uint64_t index = number;
	int rc = 0;

	while (rc == 0 && index < w->options->count &&
		w->totals->differ + w->totals->jit_differ < DIFFER_MAX)
		rc = run_batch(w, &index, w->options->count, w->options->threads);
	add(&w->totals->deaths, w->host.deaths);
	return rc;
}

static int worker_main(const struct options *o, struct totals *totals, unsigned number)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w)
		return 2;
	w->options = o;
	w->totals = totals;
	int rc = worker_init(w, number);
	if (rc == 0)
		rc = work(w, number);
	if (rc < 0)
		fprintf(stderr, "diff: worker %u stopped: %s\n", number, strerror(-rc));
	diff_host_stop(&w->host);
	if (w->jit)
		diff_jit_free(w->jit);
	if (w->interp)
		diff_interp_free(w->interp);
	free(w->rows.row);
	free(w);
	return rc < 0 ? 2 : 0;
}

static void replay_sides(struct worker *w, const struct diff_case *c)
{
	struct diff_result right = w->host.shared->results[0];
	const struct finding interp = {{"interpreter", "processor"}, &w->result[0], &right};

	report(w, 0, c, &interp, true);
	w->totals->differ = !diff_agree(&w->result[0], &right, &w->notes[0]);
	printf("%s\n", w->totals->differ ? "DIFFERENCE" : "they agree");
	if (!w->jit)
		return;
	if (w->totals->differ && diff_is_extra(c, &w->result[0], &right))
		right = w->result[0];
	const int pass = run_jit(w, 0, &right);
	const struct finding jit = {{"translator", "processor"}, &w->jit_result[pass > 0], &right};
	report(w, 0, c, &jit, true);
	w->totals->differ = pass >= 0;
	printf("%s\n", pass >= 0 ? "DIFFERENCE" : "they agree");
}

static int replay(const struct options *o, struct totals *totals)
{
	struct worker *w = calloc(1, sizeof(*w));
	int rc = w ? 0 : -ENOMEM;

	if (rc == 0) {
		w->options = o;
		w->totals = totals;
		rc = worker_init(w, 0);
	}
	if (rc < 0) {
		fprintf(stderr, "diff: %s\n", strerror(-rc));
		return 2;
	}
	struct diff_case *c = &w->host.shared->cases[0];
	w->index[0] = o->replay;
	diff_generate(w->interp, &w->rows, o->seed, o->replay, c, &w->row[0]);
	const enum diff_skip skip = diff_interp_run(w->interp, c, &w->result[0], &w->notes[0]);
	if (skip) {
		diff_print_case(stdout, c, w->interp, true);
		printf("not compared: %s\n", diff_skip_names[skip]);
	} else if (c->changes_code) {
		w->host.shared->results[0] = w->result[0];
		replay_sides(w, c);
	} else if (diff_host_run(&w->host, 1) == 0) {
		replay_sides(w, c);
	}
	diff_host_stop(&w->host);
	return totals->differ ? 1 : 0;
}

/* ---- summary ---- */

/* What is never compared, by reason, with names. */
static void print_excluded(const struct options *o, struct diff_interp *interp)
{
	for (unsigned skip = 1; skip < DIFF_SKIPS; skip++) {
		unsigned count = 0;
		for (unsigned i = 0; i < x86_row_count; i++) {
			if (diff_row_skip(interp, &x86_rows[i]) != skip || !wanted(o, &x86_rows[i]))
				continue;
			const bool again =
				i > 0 && strcmp(x86_rows[i].name, x86_rows[i - 1].name) == 0;
			if (count++ == 0)
				printf("NOT COMPARED, %s:", diff_skip_names[skip]);
			if (!again)
				printf(" %s", x86_rows[i].name);
		}
		if (count)
			printf(" (%u rows)\n", count);
	}
}

static void print_rows(
	const struct options *o, const struct totals *t, const struct diff_interp *interp)
{
	uint32_t least = ~0u, most = 0;
	unsigned rows = 0, differ = 0;

	for (unsigned i = 0; i < x86_row_count; i++) {
		if (!wanted(o, &x86_rows[i]) || diff_row_skip(interp, &x86_rows[i]))
			continue;
		rows++;
		least = MIN(least, t->row_ran[i]);
		most = MAX(most, t->row_ran[i]);
		differ += t->row_differ[i] > 0;
		if (t->row_differ[i] || o->by_row || !t->row_ran[i])
			printf("  %-32s %-14s %-12s ran %u, differ %u\n", x86_rows[i].encoding,
				x86_rows[i].name, x86_rows[i].operands, t->row_ran[i],
				t->row_differ[i]);
	}
	printf("%u of %u rows compared, each %u to %u times; %u rows differ\n", rows, x86_row_count,
		least, most, differ);
	printf("mutated bytes: %u cases, %u differ\n", t->row_ran[ROWS_MAX],
		t->row_differ[ROWS_MAX]);
}

static void print_summary(const struct options *o, const struct totals *t, double seconds)
{
	static struct diff_shared nothing;
	struct diff_interp *interp;

	if (diff_interp_create(&nothing, &interp) < 0)
		return;
	interp->mode32 = !t->skipped[DIFF_SKIP_MODE32];
	print_excluded(o, interp);
	for (unsigned i = 1; i < DIFF_SKIPS; i++)
		if (t->skipped[i])
			printf("left out: %llu cases: %s\n", (unsigned long long)t->skipped[i],
				diff_skip_names[i]);
	print_rows(o, t, interp);
	printf("ended by: %llu #BP (ran through), %llu #PF, %llu #GP, %llu #UD, %llu #DE, %llu #SS, "
	       "%llu #MF, %llu #XM, %llu #AC, %llu #DB\n",
		(unsigned long long)t->by_vector[X86_BP],
		(unsigned long long)t->by_vector[X86_PF_EXC],
		(unsigned long long)t->by_vector[X86_GP], (unsigned long long)t->by_vector[X86_UD],
		(unsigned long long)t->by_vector[X86_DE],
		(unsigned long long)t->by_vector[X86_SS_EXC],
		(unsigned long long)t->by_vector[X86_MF], (unsigned long long)t->by_vector[X86_XM],
		(unsigned long long)t->by_vector[X86_AC_EXC],
		(unsigned long long)t->by_vector[X86_DB]);
	if (t->deaths)
		printf("the native process died %llu times\n", (unsigned long long)t->deaths);
	printf("seed %llu: %llu cases compared in %.1f s (%.0f a second), %llu differ\n",
		(unsigned long long)o->seed, (unsigned long long)t->ran, seconds,
		(double)t->ran / (seconds > 0 ? seconds : 1), (unsigned long long)t->differ);
	if (o->jit)
		printf("translator (%s): %llu cases (%llu that change their code, against the interpreter), "
		       "%llu differ\n",
			*o->jit ? o->jit : "no switches", (unsigned long long)t->jit_ran,
			(unsigned long long)t->jit_changed, (unsigned long long)t->jit_differ);
	diff_interp_free(interp);
}

/* ---- program ---- */

static void usage(void)
{
	printf("diff [--seed N] [--count N] [--threads N] [--rows NAME|ENCODING] [--reports N] [--by-row]\n"
	       "     [--brief] [--native PROGRAM] [--programs PERCENT]\n"
	       "     [--engine jit [--jit SWITCHES]]\n"
	       "diff --replay SEED:INDEX [--rows ...]\n");
}

/* diff-native lies beside this program. */
static const char *native_beside(const char *self)
{
	static char path[4096];
	const char *slash = strrchr(self, '/');

	snprintf(path, sizeof(path), "%.*sdiff-native", slash ? (int)(slash + 1 - self) : 0, self);
	return path;
}

static bool parse(int argc, char **argv, struct options *o)
{
	static const struct option list[] = {{"seed", 1, NULL, 's'}, {"count", 1, NULL, 'c'},
		{"threads", 1, NULL, 't'}, {"rows", 1, NULL, 'r'}, {"reports", 1, NULL, 'n'},
		{"replay", 1, NULL, 'p'}, {"native", 1, NULL, 'x'}, {"by-row", 0, NULL, 'b'},
		{"brief", 0, NULL, 'B'}, {"engine", 1, NULL, 'e'}, {"jit", 1, NULL, 'j'},
		{"programs", 1, NULL, 'P'}, {0}};
	int opt;
	char *end;

	while ((opt = getopt_long(argc, argv, "", list, NULL)) >= 0) {
		switch (opt) {
		case 's':
			o->seed = strtoull(optarg, NULL, 0);
			o->seed_given = true;
			break;
		case 'c': o->count = strtoull(optarg, NULL, 0); break;
		case 't': o->threads = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'r': o->rows = optarg; break;
		case 'n': o->reports = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'x': o->native = optarg; break;
		case 'b': o->by_row = true; break;
		case 'B': o->brief = true; break;
		case 'j': o->jit = optarg; break;
		case 'P':
			o->programs = (unsigned)strtoul(optarg, NULL, 0);
			o->programs_given = true;
			break;
		case 'e':
			if (strcmp(optarg, "jit") != 0)
				return false;
			o->jit = o->jit ? o->jit : "";
			break;
		case 'p':
			o->seed = strtoull(optarg, &end, 0);
			o->replay = *end == ':' ? strtoull(end + 1, NULL, 0) : 0;
			o->is_replay = o->seed_given = true;
			break;
		default: return false;
		}
	}
	return optind == argc && o->threads >= 1 && o->threads <= THREADS_MAX;
}

static double now_s(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int run_workers(const struct options *o, struct totals *totals)
{
	int failed = 0;

	fflush(stdout);
	for (unsigned i = 0; i < o->threads; i++) {
		const pid_t pid = fork();
		if (pid == 0)
			_exit(worker_main(o, totals, i));
		failed |= pid < 0;
	}
	for (int status; wait(&status) > 0;)
		failed |= status != 0;
	return failed;
}

int main(int argc, char **argv)
{
	struct options o = {
		.count = 100000, .threads = 1, .reports = 1, .native = native_beside(argv[0])};

	if (!parse(argc, argv, &o)) {
		usage();
		return 2;
	}
	if (o.jit && !o.programs_given)
		o.programs = 40;
	if (!o.seed_given)
		o.seed = (uint64_t)time(NULL) ^ (uint64_t)getpid() << 32;
	struct totals *totals = mmap(
		NULL, sizeof(*totals), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (totals == MAP_FAILED)
		return 2;
	if (o.is_replay)
		return replay(&o, totals);
	printf("seed %llu, %llu cases, %u workers\n", (unsigned long long)o.seed,
		(unsigned long long)o.count, o.threads);
	const double begun = now_s();
	const int failed = run_workers(&o, totals);
	print_summary(&o, totals, now_s() - begun);
	return failed ? 2 : totals->differ || totals->jit_differ ? 1 : 0;
}
