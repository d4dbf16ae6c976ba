/*
 * ring0: random ring-0 snippets in two engines, interp and another one; the whole state and all memory
 * compared. docs/differential.md says how to use it and what it does not reach.
 *
 * Exit status: 0 all agree, 1 a difference, 2 it could not run, 77 there is no such engine here.
 */
#include "ring0.h"

#include "base/error.h"
#include "base/util.h"
#include "base/clock.h"

#include <cpuid.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#define INTERP_MS   60
#define OTHER_MS    1500
#define REASONS_MAX 64

struct options {
	uint64_t seed, count, only;
	unsigned reports;
	const char *rows, *modes, *against;
	bool one, brief;
};

struct reason {
	char text[160];
	uint64_t count;
};

struct test {
	struct options options;
	struct r0_machine *interp, *other;
	const struct engine_ops *ops;
	struct r0_source source;
	uint8_t *image[R0_MODES];
	bool avx;
	/* counted */
	uint64_t compared, differ, emulated, by_mode[R0_MODES], by_end[8];
	uint64_t by_vector[257]; /* of the handler it ended in; the last: no handler */
	struct reason reason[REASONS_MAX];
};

/* What runs, for a report if it brings the test itself down. */
static struct {
	uint64_t index;
	struct r0_case c;
} current;
static const char *const hosts[] = {
	"", " (which emulates ring 0 in software)", " (inside QEMU's emulation)"};
static const char *const mode_names[R0_MODES] = {"long", "compat", "flat", "pse", "pae"};

/* ---- set-up ---- */

static int choose_modes(struct test *t)
{
	t->source.modes = BIT(R0_MODES) - 1;
	if (!t->options.modes)
		return 0;
	t->source.modes = 0;
	for (unsigned i = 0; i < R0_MODES; i++)
		if (strstr(t->options.modes, mode_names[i]))
			t->source.modes |= 1u << i;
	return t->source.modes ? 0 : -1;
}

static enum r0_host find_host(const struct engine_probe *probe)
{
	unsigned eax, ebx = 0, ecx, edx;

	__cpuid(0x40000000, eax, ebx, ecx, edx);
	if (ebx == 0x54474354) /* "TCGT" of TCGTCGTCGTCG */
		return R0_HOST_TCG;
	return probe->ring0_emulated ? R0_HOST_SOFTWARE : R0_HOST_REAL;
}

static int setup(struct test *t, struct error *err)
{
	struct x86_cpuid_model model;
	struct engine_probe probe;

	t->ops = engine_find(t->options.against);
	if (!t->ops)
		return error_set(err, ENOENT, "no engine %s", t->options.against);
	t->ops->probe(&probe);
	if (!probe.usable) {
		printf("NOT CHECKED: ring-0 code under %s: %s\n", t->ops->name, probe.reason);
		exit(77);
	}
	t->source.host = find_host(&probe);
	x86_cpuid_default(&model, 1, 1000000000ull);
	int status = r0_machine_create(&t->other, t->ops, &model, err);
	if (status == 0)
		status = r0_machine_create(
			&t->interp, &engine_interp_ops, r0_machine_model(t->other), err);
	if (status < 0)
		return status;
	const struct x86_cpuid_model *seen = r0_machine_model(t->other);
	t->source.features = seen->features;
	t->avx = x86_has(&seen->features, X86_F_AVX);
	for (unsigned i = 0; i < R0_MODES; i++) {
		t->source.image[i] = t->image[i] = malloc(R0_RAM_BYTES);
		if (!t->image[i])
			return error_set(err, ENOMEM, "no memory");
		r0_image(i, t->image[i]);
	}
	if (choose_modes(t) < 0 || r0_rows_choose(&t->source, t->options.rows) < 0)
		return error_set(err, EINVAL, "no such rows or modes on this processor");
	return 0;
}

/* ---- running ---- */

static void leave_out(struct test *t, const char *text)
{
	for (unsigned i = 0; i < REASONS_MAX; i++) {
		struct reason *r = &t->reason[i];

		if (r->count && strncmp(r->text, text, sizeof(r->text) - 1) != 0)
			continue;
		if (!r->count)
			snprintf(r->text, sizeof(r->text), "%s", text);
		r->count++;
		return;
	}
}

static void count(struct test *t, const struct r0_case *c, const struct r0_result *r)
{
	const uint64_t handler = (r->out.reg[X86_RIP] - R0_HANDLERS) / 16;

	t->compared++;
	t->by_mode[c->mode]++;
	t->by_end[r->end]++;
	if (r->end == R0_END_OUT)
		t->by_vector[MIN(handler, (uint64_t)256)]++;
}

static void report(
	const struct test *t, uint64_t index, const struct r0_verdict *v, const char *what)
{
	printf("%s seed %llu case %llu  (%s%s) ", what, (unsigned long long)t->options.seed,
		(unsigned long long)index, x86_rows[v->c->row[0]].name,
		v->c->insn_count > 1 ? " ..." : "");
	r0_print(stdout, v, !t->options.brief);
	fflush(stdout);
}

static void judge(struct test *t, uint64_t index, const struct r0_verdict *v)
{
	const bool agree = r0_agree(v);
	const char *excuse = agree ? NULL : r0_excuse(v);

	if (t->options.one)
		report(t, index, v, agree ? "agree:" : excuse ? excuse : "DIFFERENCE");
	if (excuse) {
		leave_out(t, excuse);
		return;
	}
	count(t, v->c, v->interp);
	t->emulated += v->other->emulated;
	if (!agree && t->differ++ < t->options.reports && !t->options.one)
		report(t, index, v, "DIFFERENCE");
}

/* Returns 0, or negative errno if an engine cannot go on. */
static int run_case(struct test *t, uint64_t index)
{
	struct r0_result interp = {0}, other = {0};
	struct r0_case *c = &current.c;
	const struct r0_verdict v = {&t->source, c, &interp, &other, t->ops->name, t->avx};

	current.index = index;
	r0_generate(&t->source, t->options.seed, index, c);
	if (!c->insn_count) {
		leave_out(t, "no encoding of the row was found");
		return 0;
	}
	int status = r0_machine_run(t->interp, t->image[c->mode], c, INTERP_MS, &interp);
	if (status < 0)
		return status;
	if (interp.end != R0_END_OUT && interp.end != R0_END_SHUTDOWN) {
		leave_out(
			t, interp.end == R0_END_HALTED ? "HLT was reached" : "a loop without end");
		return 0;
	}
	const char *excuse = r0_excuse_before(&t->source, c, &interp);
	if (excuse && !t->options.one) {
		leave_out(t, excuse);
		return 0;
	}
	status = r0_machine_run(t->other, t->image[c->mode], c, OTHER_MS, &other);
	if (status < 0) {
		leave_out(t, "the engine does not take the state");
		if (t->options.one)
			printf("%s\n", strerror(-status));
		return 0;
	}
	judge(t, index, &v);
	return 0;
}

static void summary(const struct test *t, uint64_t ns)
{
	printf("ring0: interp against %s%s, seed %llu: %llu of %llu cases compared in %.1f s, "
	       "%llu differ\n",
		t->ops->name, hosts[t->source.host], (unsigned long long)t->options.seed,
		(unsigned long long)t->compared, (unsigned long long)t->options.count,
		(double)ns / 1e9, (unsigned long long)t->differ);
	printf("  by mode:");
	for (unsigned i = 0; i < R0_MODES; i++)
		printf(" %s %llu", mode_names[i], (unsigned long long)t->by_mode[i]);
	printf("\n  ended: triple fault %llu, no exception or code of its own %llu, in handlers:",
		(unsigned long long)t->by_end[R0_END_SHUTDOWN],
		(unsigned long long)t->by_vector[256]);
	for (unsigned i = 0; i < 256; i++)
		if (t->by_vector[i])
			printf(" %u: %llu", i, (unsigned long long)t->by_vector[i]);
	printf("\n  done by the interpreter for %s in part: %llu\n", t->ops->name,
		(unsigned long long)t->emulated);
	for (unsigned i = 0; i < REASONS_MAX && t->reason[i].count; i++)
		printf("  left out: %llu: %s\n", (unsigned long long)t->reason[i].count,
			t->reason[i].text);
}

static void on_crash(int number, siginfo_t *info, void *context)
{
	const ucontext_t *u = context;
	char text[64 + 2 * R0_CODE_MAX];
	int length =
		snprintf(text, sizeof(text), "ring0: signal %d at %#llx in case %llu: ", number,
			(unsigned long long)u->uc_mcontext.gregs[REG_RIP],
			(unsigned long long)current.index);

	for (unsigned i = 0; i < current.c.code_bytes; i++)
		length += snprintf(
			text + length, sizeof(text) - (size_t)length, "%02x", current.c.code[i]);
	text[length++] = '\n';
	if (write(STDERR_FILENO, text, (size_t)length) < 0)
		_exit(3);
	_exit(2);
}

static void catch_crashes(void)
{
	const struct sigaction action = {.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO};
	static const int numbers[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGABRT};

	for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++)
		sigaction(numbers[i], &action, NULL);
}

/* ---- the command line ---- */

static int parse(struct options *o, int argc, char **argv)
{
	static const struct option known[] = {{"seed", 1, NULL, 's'}, {"count", 1, NULL, 'n'},
		{"case", 1, NULL, 'c'}, {"rows", 1, NULL, 'r'}, {"modes", 1, NULL, 'm'},
		{"brief", 0, NULL, 'b'}, {"against", 1, NULL, 'a'}, {"reports", 1, NULL, 'p'},
		{NULL, 0, NULL, 0}};
	int opt;

	while ((opt = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (opt) {
		case 's': o->seed = strtoull(optarg, NULL, 0); break;
		case 'n': o->count = strtoull(optarg, NULL, 0); break;
		case 'c':
			o->only = strtoull(optarg, NULL, 0);
			o->one = true;
			break;
		case 'r': o->rows = optarg; break;
		case 'm': o->modes = optarg; break;
		case 'b': o->brief = true; break;
		case 'a': o->against = optarg; break;
		case 'p': o->reports = (unsigned)strtoul(optarg, NULL, 0); break;
		default: return -1;
		}
	}
	return optind == argc ? 0 : -1;
}

int main(int argc, char **argv)
{
	static struct test t = {
		.options = {.seed = 1, .count = 5000, .reports = 1, .against = "kvm"}};
	struct error err = {0};
	int status = 0;

	if (parse(&t.options, argc, argv) < 0) {
		fprintf(stderr,
			"usage: ring0 [--seed N] [--count N] [--case N] [--rows NAME] "
			"[--modes long,compat,flat,pse,pae] [--against ENGINE] [--reports N] [--brief]\n");
		return 2;
	}
	if (setup(&t, &err) < 0) {
		fprintf(stderr, "ring0: %s\n", err.text);
		return 2;
	}
	catch_crashes();
	const uint64_t start = clock_monotonic_ns();
	if (t.options.one)
		status = run_case(&t, t.options.only);
	for (uint64_t i = 0; status == 0 && !t.options.one && i < t.options.count; i++)
		status = run_case(&t, i);
	summary(&t, clock_monotonic_ns() - start);
	r0_machine_free(t.interp);
	r0_machine_free(t.other);
	for (unsigned i = 0; i < R0_MODES; i++)
		free(t.image[i]);
	free(t.source.rows.system);
	free(t.source.rows.any);
	return status < 0 ? 2 : t.differ ? 1 : 0;
}
