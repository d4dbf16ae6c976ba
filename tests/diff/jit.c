/*
 * Cases in the jit engine: see jit.h.
 *
 * The TLB is kept from case to case, as the page tables never change, so that memory is reached by
 * translated code itself. The code of a case is written as a device writes it, which makes the engine forget
 * what it translated before at the same place.
 *
 * Flags: without "precise" the engine need not know, at a fault, flags that nobody can read. So those are
 * not compared that the code behind the faulting instruction writes, on all its ways, before it reads them.
 */
#include "jit.h"
#include "compare.h"

#include "base/error.h"
#include "base/util.h"
#include "device/bus.h"
#include "engine/engine.h"
#include "engine/soft/soft.h"
#include "isa/x86/semantics.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

#define TICK_US	   20000 /* of processor time */
#define TICKS_KICK 3	 /* that a case may take */
#define TICKS_DIE  50

struct diff_jit {
	struct diff_guest guest;
	struct bus *bus;
	struct engine_vm *vm;
	struct engine_vcpu *vcpu;
	bool precise, count;
};

/* ---- what signals see: there is one in a process ---- */

static struct engine_vcpu *volatile running;
static const char *volatile running_name;
static volatile sig_atomic_t ticks;

static void complain(const char *what)
{
	char text[256];
	const int n = snprintf(text, sizeof(text), "DIFFERENCE: the translator %s in case %s\n",
		what, running_name);

	if (write(STDOUT_FILENO, text, (size_t)n) < 0)
		_exit(3);
	_exit(1);
}

static void on_tick(int signal)
{
	if (!running)
		return;
	ticks++;
	if (ticks == TICKS_KICK)
		engine_jit_ops.kick(running);
	if (ticks == TICKS_DIE)
		complain("could not be stopped");
}

static void on_crash(int signal)
{
	if (running)
		complain(signal == SIGSEGV  ? "crashed (SIGSEGV)"
			 : signal == SIGILL ? "crashed (SIGILL)"
			 : signal == SIGFPE ? "crashed (SIGFPE)"
					    : "crashed");
	_exit(3);
}

static int catch_signals(void)
{
	static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT};
	const struct itimerval tick = {{0, TICK_US}, {0, TICK_US}};
	const size_t bytes = 1 << 16;
	stack_t stack = {.ss_sp = malloc(bytes), .ss_size = bytes};
	struct sigaction action = {.sa_handler = on_crash, .sa_flags = SA_ONSTACK};

	if (!stack.ss_sp || sigaltstack(&stack, NULL) < 0)
		return -ENOMEM;
	for (unsigned i = 0; i < ARRAY_SIZE(crashes); i++)
		sigaction(crashes[i], &action, NULL);
	action.sa_handler = on_tick;
	action.sa_flags |= SA_RESTART;
	sigaction(SIGPROF, &action, NULL);
	return setitimer(ITIMER_PROF, &tick, NULL) < 0 ? -errno : 0;
}

/* ---- a machine with nothing in it ---- */

static int no_interrupt(void *vcpu)
{
	return -1;
}
static bool no_msr_read(void *vcpu, uint32_t index, uint64_t *ret_value)
{
	return false;
}
static bool no_msr_write(void *vcpu, uint32_t index, uint64_t value)
{
	return false;
}
static uint8_t no_cr8_read(void *vcpu)
{
	return 0;
}
static void no_cr8_write(void *vcpu, uint8_t value) {}
static uint64_t no_tsc(void *vcpu)
{
	return 0;
}
static void no_adjust_tsc(void *vcpu, uint64_t delta) {}
static uint64_t no_hypercall(void *vcpu, uint64_t number, const uint64_t args[4])
{
	return 0;
}

static const struct engine_hooks hooks = {
	.interrupt_ack = no_interrupt,
	.msr_read = no_msr_read,
	.msr_write = no_msr_write,
	.cr8_read = no_cr8_read,
	.cr8_write = no_cr8_write,
	.tsc = no_tsc,
	.adjust_tsc = no_adjust_tsc,
	.hypercall = no_hypercall,
};

/* The engine's structures begin with those that software engines share (engine/soft/soft.h). */
static struct x86_cpu *cpu_of(const struct diff_jit *jit)
{
	return &((struct soft_vcpu *)jit->vcpu)->cpu;
}

static int make_machine(struct diff_jit *jit, const char *options)
{
	const struct engine_vm_config vm = {.memory = jit->guest.memory,
		.bus = jit->bus,
		.hooks = &hooks,
		.cpuid = &jit->guest.model,
		.cpus_max = 1,
		.tuning.jit = options};
	const struct engine_vcpu_config vcpu = {.opaque = jit};
	struct error err = {0};
	int rc = engine_jit_ops.vm_create(&jit->vm, &vm, &err);

	if (rc == 0)
		rc = engine_jit_ops.vcpu_create(&jit->vcpu, jit->vm, &vcpu, &err);
	if (rc < 0)
		fprintf(stderr, "diff: %s\n", err.text);
	return rc;
}

int diff_jit_create(
	const struct diff_shared *shared, const char *options, struct diff_jit **ret_jit)
{
	struct diff_jit *jit = calloc(1, sizeof(*jit));

	if (!jit)
		return -ENOMEM;
	jit->precise = strstr(options, "precise");
	jit->count = strstr(options, "count");
	int rc = diff_guest_init(&jit->guest, shared);
	if (rc == 0)
		rc = bus_create(&jit->bus);
	if (rc == 0)
		rc = make_machine(jit, options);
	if (rc == 0)
		rc = catch_signals();
	if (rc < 0) {
		diff_jit_free(jit);
		return rc;
	}
	diff_guest_processor(cpu_of(jit));
	*ret_jit = jit;
	return 0;
}

void diff_jit_free(struct diff_jit *jit)
{
	if (jit->vcpu)
		engine_jit_ops.vcpu_free(jit->vcpu);
	engine_jit_ops.vm_free(jit->vm);
	bus_free(jit->bus);
	diff_guest_done(&jit->guest);
	free(jit);
}

/* ---- running ---- */

static void place_data(struct diff_jit *jit, const struct diff_case *c)
{
	diff_guest_begin(&jit->guest, cpu_of(jit), c);
	for (unsigned i = 0; i < c->patch_count; i++)
		memcpy(jit->guest.data + c->patch[i].offset, c->patch[i].bytes,
			c->patch[i].size_bytes);
}

static void run_pass(struct diff_jit *jit, const struct diff_case *c, struct diff_result *r)
{
	struct x86_cpu *cpu = cpu_of(jit);
	const uint64_t before = cpu->instructions;
	struct error err = {0};

	place_data(jit, c);
	diff_guest_load(cpu, &c->in);
	ticks = 0;
	running = jit->vcpu;
	const enum engine_exit exit = engine_jit_ops.run(jit->vcpu, &err);
	running = NULL;
	r->error = 0;
	r->cr2 = 0;
	diff_guest_save(cpu, &r->out);
	if (exit == ENGINE_EXIT_KICKED)
		r->vector = DIFF_RUNAWAY;
	else if (exit != ENGINE_EXIT_HALTED)
		r->vector = DIFF_DIED;
	else
		r->vector = diff_guest_delivered(&jit->guest, cpu, r);
	r->instructions = cpu->instructions - before - 1; /* the handler's HLT is not the case's */
	diff_collect_data(jit->guest.shared->pattern[c->pattern], jit->guest.data, r);
	if (c->changes_code)
		diff_collect_code(jit->guest.code, r);
}

static void remove_code(struct diff_jit *jit, const struct diff_case *c)
{
	static const uint8_t int3[DIFF_CODE_BYTES] = {[0 ... DIFF_CODE_BYTES - 1] = 0xcc};
	uint32_t offset, size_bytes;

	diff_code_used(c, &offset, &size_bytes);
	memory_write(jit->guest.memory, DIFF_GUEST_CODE + offset, int3, size_bytes);
}

void diff_jit_run(struct diff_jit *jit, const struct diff_case *c, const char *name,
	struct diff_result ret_result[DIFF_JIT_PASSES])
{
	const uint32_t bytes = MIN((uint32_t)c->code_bytes, DIFF_CODE_BYTES - c->code_offset);

	running_name = name;
	for (unsigned i = 0; i < DIFF_JIT_PASSES; i++) {
		if (i > 0 && c->changes_code)
			remove_code(jit, c);
		if (i == 0 || c->changes_code)
			memory_write(jit->guest.memory, DIFF_GUEST_CODE + c->code_offset, c->code,
				bytes);
		run_pass(jit, c, &ret_result[i]);
	}
	remove_code(jit, c);
}

/* ---- flags ---- */

/* Where control goes from an instruction at an offset in the code. */
struct step {
	bool branches, falls, ends; /* ends: goes who knows where */
	uint32_t reads, writes;
	unsigned next;
	int64_t target;
};

struct flow {
	const struct diff_jit *jit;
	const struct diff_case *c;
	unsigned mode;
	uint8_t code[DIFF_CODE_MAX + X86_INSN_BYTES_MAX]; /* as it lies in memory */
	struct step step[DIFF_CODE_MAX];
	uint32_t live[DIFF_CODE_MAX];
	bool seen[DIFF_CODE_MAX];
};

static void look_at(struct flow *f, unsigned at)
{
	struct step *s = &f->step[at];
	struct x86_insn insn;

	*s = (struct step){.ends = true};
	if (x86_decode(&insn, f->code + at, X86_INSN_BYTES_MAX, f->mode, false,
		    &cpu_of(f->jit)->features) != X86_DECODE_OK)
		return;
	s->ends = false;
	s->reads = x86_flags_mask(insn.row->flags_in) & X86_FLAGS_ARITH;
	s->writes = (x86_flags_mask(insn.row->flags_out) | x86_flags_mask(insn.row->flags_undef)) &
		    X86_FLAGS_ARITH;
	s->next = at + insn.len;
	if (insn.operand_count && insn.op[0].kind == X86_O_REL) {
		s->branches = true;
		s->target = (int64_t)s->next + (int64_t)insn.imm;
		s->falls = insn.fn != x86_sem_jmp && insn.fn != x86_sem_call;
	} else if (insn.row->attr & X86_A_END) {
		s->ends = true;
	} else {
		s->falls = true;
	}
}

static uint32_t live_at(struct flow *f, int64_t at)
{
	if (at < 0 || at >= f->c->code_bytes)
		return X86_FLAGS_ARITH; /* INT3, or who knows */
	if (!f->seen[at])
		look_at(f, (unsigned)at);
	f->seen[at] = true;
	return f->live[at];
}

/* One round; false: nothing new. */
static bool flow_round(struct flow *f)
{
	bool changed = false;

	for (unsigned at = f->c->code_bytes; at-- > 0;) {
		const struct step *s = &f->step[at];
		uint32_t live = s->ends ? X86_FLAGS_ARITH : 0;

		if (!f->seen[at])
			continue;
		if (s->branches)
			live |= live_at(f, s->target);
		if (s->falls)
			live |= live_at(f, s->next);
		live = (live & ~s->writes) | s->reads;
		changed |= live != f->live[at];
		f->live[at] = live;
	}
	return changed;
}

/* The flags that code at `rip` cannot see. */
static uint32_t dead_flags(
	const struct diff_jit *jit, const struct diff_case *c, const struct diff_result *r)
{
	struct flow f = {.jit = jit, .c = c, .mode = r->out.seg[X86_CS] == DIFF_CS64 ? 64 : 32};
	const int64_t at = (int64_t)(r->out.rip - c->in.rip);

	if (at < 0 || at >= c->code_bytes)
		return 0;
	memset(f.code, 0xcc, sizeof(f.code));
	memcpy(f.code, c->code, c->code_bytes);
	live_at(&f, at);
	for (unsigned i = 0; i < DIFF_CODE_MAX; i++)
		if (!flow_round(&f) && i > 1)
			break;
	return X86_FLAGS_ARITH & ~f.live[at];
}

bool diff_jit_agrees(const struct diff_jit *jit, const struct diff_case *c,
	const struct diff_result *result, const struct diff_result *expected,
	const struct diff_notes *notes)
{
	struct diff_notes here = *notes;

	if (!jit->precise && result->vector != X86_BP)
		here.undefined |= dead_flags(jit, c, result);
	if (jit->count && result->vector < DIFF_SYSCALL &&
		result->instructions != notes->instructions)
		return false;
	return diff_agree(result, expected, &here);
}
