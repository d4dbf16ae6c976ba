/*
 * The native half of the differential harness, a program of its own: runs cases on the host's
 * processor and says what became of them. Started by diff with the shared memory as descriptor 3.
 *
 * It lives in a signal handler. Every case ends in an exception; the handler takes the state out of
 * the signal's frame, writes the next case's state over it, and its return starts that one: Linux
 * loads general, segment (CS and SS), x87 and vector registers from there. FS and GS, their bases, DS
 * and ES it leaves alone: the handler does those. System calls by the code under test come back as
 * SIGSYS, and a timer ends what loops for ever.
 *
 * Invariants: no thread-local data while a case's FS is loaded; system calls only by sys() below, in
 * this program's text, which is where the kernel lets them through.
 */
#include "diff.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/ucontext.h>
#include <unistd.h>
#include <linux/futex.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON	     1
#endif
#define UC_SS		 6 /* UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS */
#define SA_RESTORER_FLAG 0x04000000
#define ALARM_US	 20000 /* of processor time */
#define ALARMS_MAX	 5

extern char __executable_start, etext;

static struct diff_shared *shared;
static uint8_t *code_alias, *data_alias;
static uint32_t batch;
static unsigned alarms;
static int pattern_now = -1;
static bool running;
static volatile char dispatch_selector;

static long sys(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return ret;
}

static uint64_t fs_base(void)
{
	uint64_t base;
	__asm__ volatile("rdfsbase %0" : "=r"(base));
	return base;
}

static uint64_t gs_base(void)
{
	uint64_t base;
	__asm__ volatile("rdgsbase %0" : "=r"(base));
	return base;
}

static void set_segments(const uint16_t seg[6], uint64_t fs, uint64_t gs)
{
	__asm__ volatile("movw %w0, %%es" : : "r"(seg[0]));
	__asm__ volatile("movw %w0, %%ds" : : "r"(seg[3]));
	__asm__ volatile("movw %w0, %%fs" : : "r"(seg[4]));
	__asm__ volatile("movw %w0, %%gs" : : "r"(seg[5]));
	__asm__ volatile("wrfsbase %0" : : "r"(fs));
	__asm__ volatile("wrgsbase %0" : : "r"(gs));
}

static void get_segments(uint16_t seg[6])
{
	__asm__ volatile("movw %%es, %w0" : "=r"(seg[0]));
	__asm__ volatile("movw %%ds, %w0" : "=r"(seg[3]));
	__asm__ volatile("movw %%fs, %w0" : "=r"(seg[4]));
	__asm__ volatile("movw %%gs, %w0" : "=r"(seg[5]));
}

/* ---- a signal's frame ---- */

static const uint8_t greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI,
	REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

/* The XSAVE area: FXSAVE's, header at 512, upper halves of the vectors at 576. */
static void load_fpu(uint8_t *area, const struct diff_state *s)
{
	const uint64_t present = 7;
	const uint16_t head[4] = {s->fcw, s->fsw, s->ftw, s->fop};

	memcpy(area, head, 8);
	memcpy(area + 8, &s->fip, 8);
	memcpy(area + 16, &s->fdp, 8);
	memcpy(area + 24, &s->mxcsr, 4);
	memcpy(area + 32, s->st, 128);
	for (unsigned i = 0; i < 16; i++) {
		memcpy(area + 160 + 16 * i, s->vec[i], 16);
		memcpy(area + 576 + 16 * i, s->vec[i] + 16, 16);
	}
	memcpy(area + 512, &present, 8);
}

static void save_fpu(const uint8_t *area, struct diff_state *s)
{
	uint64_t present;

	memcpy(&present, area + 512, 8);
	memcpy(&s->fcw, area, 2);
	memcpy(&s->fsw, area + 2, 2);
	s->ftw = area[4];
	memcpy(&s->fop, area + 6, 2);
	memcpy(&s->fip, area + 8, 8);
	memcpy(&s->fdp, area + 16, 8);
	memcpy(&s->mxcsr, area + 24, 4);
	memcpy(s->st, area + 32, 128);
	if (!(present & 1)) {
		s->fcw = 0x37f;
		s->fsw = s->fop = s->ftw = 0;
		s->fip = s->fdp = 0;
		memset(s->st, 0, sizeof(s->st));
	}
	for (unsigned i = 0; i < 16; i++) {
		memset(s->vec[i], 0, 32);
		if (present & 2)
			memcpy(s->vec[i], area + 160 + 16 * i, 16);
		if (present & 4)
			memcpy(s->vec[i] + 16, area + 576 + 16 * i, 16);
	}
}

static void load_case(ucontext_t *uc, const struct diff_case *c)
{
	greg_t *g = uc->uc_mcontext.gregs;
	const struct diff_state *s = &c->in;

	if (pattern_now != c->pattern)
		memcpy(data_alias, shared->pattern[c->pattern], DIFF_DATA_BYTES);
	pattern_now = c->pattern;
	diff_place(c, code_alias, data_alias);
	for (unsigned i = 0; i < 16; i++)
		g[greg_of[i]] = (greg_t)s->reg[i];
	g[REG_RIP] = (greg_t)s->rip;
	g[REG_EFL] = (greg_t)s->rflags;
	g[REG_CSGSFS] = (greg_t)(s->seg[1] | (uint64_t)s->seg[2] << 48);
	uc->uc_flags |= UC_SS;
	load_fpu((uint8_t *)uc->uc_mcontext.fpregs, s);
}

static void save_case(
	const ucontext_t *uc, int signal, const struct diff_case *c, struct diff_result *r)
{
	const greg_t *g = uc->uc_mcontext.gregs;

	for (unsigned i = 0; i < 16; i++)
		r->out.reg[i] = (uint64_t)g[greg_of[i]];
	r->out.rip = (uint64_t)g[REG_RIP];
	r->out.rflags = (uint64_t)g[REG_EFL];
	r->out.seg[1] = (uint16_t)g[REG_CSGSFS];
	r->out.seg[2] = (uint16_t)((uint64_t)g[REG_CSGSFS] >> 48);
	save_fpu((const uint8_t *)uc->uc_mcontext.fpregs, &r->out);
	r->vector = (uint32_t)g[REG_TRAPNO];
	if (signal == SIGSYS)
		r->vector = DIFF_SYSCALL;
	if (signal == SIGPROF)
		r->vector = DIFF_RUNAWAY;
	r->error = (uint32_t)g[REG_ERR];
	r->cr2 = (uint64_t)g[REG_CR2];
	diff_remove_code(c, code_alias);
	diff_collect_data(shared->pattern[c->pattern], data_alias, r);
}

/* ---- batches ---- */

static void next_batch(void)
{
	__atomic_store_n(&shared->done, batch, __ATOMIC_RELEASE);
	sys(SYS_futex, (long)&shared->done, FUTEX_WAKE, 1, 0, 0);
	while (__atomic_load_n(&shared->go, __ATOMIC_ACQUIRE) == batch)
		sys(SYS_futex, (long)&shared->go, FUTEX_WAIT, batch, 0, 0);
	batch++;
	shared->current = 0;
}

/* The handler in C. What it leaves in the frame is what runs next. */
__attribute__((used)) static void native_signal(int signal, siginfo_t *info, void *context)
{
	uint16_t seg[6];
	const uint64_t fs = fs_base(), gs = gs_base();
	ucontext_t *uc = context;

	get_segments(seg);
	if (signal == SIGPROF && (!running || ++alarms < ALARMS_MAX)) {
		set_segments(seg, fs, gs);
		return;
	}
	if (running) {
		struct diff_result *r = &shared->results[shared->current];
		memcpy(r->out.seg, seg, sizeof(seg));
		r->out.fs_base = fs;
		r->out.gs_base = gs;
		save_case(uc, signal, &shared->cases[shared->current], r);
		shared->current++;
	}
	while (!running || shared->current == shared->count) {
		running = true;
		next_batch();
	}
	const struct diff_case *c = &shared->cases[shared->current];
	alarms = 0;
	load_case(uc, c);
	set_segments(c->in.seg, c->in.fs_base, c->in.gs_base);
}

/* Clears what a case leaves in the flags (AC, NT, ID), then goes on in C. The restorer is ours too. */
void native_entry(int signal, siginfo_t *info, void *context);
void native_restorer(void);
__asm__(".text\n"
	"native_entry:\n"
	"	pushq	$0x202\n"
	"	popfq\n"
	"	jmp	native_signal\n"
	"native_restorer:\n"
	"	movl	$15, %eax\n"
	"	syscall\n");

/* ---- set-up ---- */

static void die(const char *what)
{
	perror(what);
	exit(2);
}

/* Pages at their place for the code under test, and again for us to write. */
static uint8_t *map_pages(uintptr_t address, size_t bytes, int protection)
{
	int fd = memfd_create("diff", MFD_CLOEXEC);
	uint8_t *alias;

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		die("memfd");
	alias = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (alias == MAP_FAILED)
		die("mmap");
	memset(alias, 0xcc, bytes);
	void *at = mmap((void *)address, bytes, protection,
		MAP_SHARED | MAP_POPULATE | MAP_FIXED_NOREPLACE, fd, 0);
	if (at != (void *)address)
		die("mmap at the cases' address");
	return alias;
}

static void map_all(void)
{
	const uintptr_t page = 0x1000;

	code_alias = map_pages(DIFF_CODE, DIFF_CODE_BYTES, PROT_READ | PROT_EXEC);
	data_alias = map_pages(DIFF_DATA, DIFF_DATA_BYTES, PROT_READ | PROT_WRITE);
	if (munmap((void *)(DIFF_DATA + DIFF_HOLE * page), page) < 0 ||
		mprotect((void *)(DIFF_DATA + DIFF_READONLY * page), page, PROT_READ) < 0)
		die("mprotect");
}

static void catch_signals(void)
{
	static const int signals[] = {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS, SIGPROF};
	struct {
		void (*handler)(int, siginfo_t *, void *);
		unsigned long flags;
		void (*restorer)(void);
		unsigned long mask;
	} action = {
		native_entry, SA_SIGINFO | SA_ONSTACK | SA_RESTORER_FLAG, native_restorer, ~0ul};
	const size_t bytes = 1 << 16;
	stack_t stack = {.ss_sp = malloc(bytes), .ss_size = bytes};

	if (!stack.ss_sp || sigaltstack(&stack, NULL) < 0)
		die("sigaltstack");
	for (unsigned i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		if (sys(SYS_rt_sigaction, signals[i], (long)&action, 0, 8, 0) < 0)
			die("sigaction");
}

static void guard_syscalls(void)
{
	long start = (long)&__executable_start, length = (long)&etext - start;

	dispatch_selector = 0; /* let through, for now */
	if (prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, start, length,
		    &dispatch_selector) < 0)
		perror("diff-native: system calls by the code under test are NOT caught");
	dispatch_selector = 1;
}

int main(void)
{
	const struct itimerval tick = {{0, ALARM_US}, {0, ALARM_US}};

	shared = mmap(
		NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, 3, 0);
	if (shared == MAP_FAILED)
		die("mmap of descriptor 3");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != (pid_t)shared->parent)
		return 0;
	__asm__ volatile("lsll %1, %0" : "=r"(shared->cpu_node_limit) : "r"(DIFF_CPU_NODE));
	batch = shared->go;
	map_all();
	catch_signals();
	if (setitimer(ITIMER_PROF, &tick, NULL) < 0)
		die("setitimer");
	guard_syscalls();
	__asm__ volatile("int3");
	return 2;
}
