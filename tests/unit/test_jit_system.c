/*
 * System instructions that the translator runs itself, or goes on behind without its dispatcher: system calls and
 * returns from them, and the time stamp counter.
 */
#include "jit_rig.h"

#include <x86intrin.h>

#define VALUE 0x1122334455667788u

/* ---- the time stamp counter ---- */

/* Reads it 1000 times, by both instructions; CF and ZF live through it, the upper halves are cleared. */
GUEST(tsc,
	"mov $1000, %esi\n1: mov $-1, %rax\nmov $-1, %rdx\nxor %edi, %edi\nstc\nrdtsc\nsetc %r8b\nsetz %r9b\n"
	"mov %rax, %r10\nmov %rdx, %r11\nmov $-1, %rax\nmov $-1, %rcx\nrdtscp\n"
	"add %r8, %r12\nadd %r9, %r13\ndec %esi\njnz 1b\nout %al, $0xf4\nhlt\n");

/* The line of one value. */
static void flat_line(struct rig *r, uint64_t host, uint64_t span)
{
	r->line = (struct engine_tsc_line){.host = host, .span = span, .guest = VALUE};
	r->lines = 0;
	r->tsc_offset = 0;
}

/* Does this engine read the host's counter? */
static bool has_lines(void)
{
	return rig_ops == &engine_jit_ops && !jit_has_option("count");
}

static void run_tsc(struct rig *r, struct x86_state *s)
{
	jit_state(r, s);
	s->reg[X86_R8] = s->reg[X86_R9] = s->reg[X86_R12] = s->reg[X86_R13] = 0;
	s->msr.tsc_aux = 0x87654321;
	JIT_LOAD(r, s, tsc);
	jit_run_plainly(r, s);
	assert_int_equal(s->reg[X86_R12], 1000);
	assert_int_equal(s->reg[X86_R13], 1000);
	assert_int_equal(s->reg[X86_RCX], 0x87654321);
	assert_int_equal(s->reg[X86_RAX] >> 32 | s->reg[X86_R10] >> 32, 0);
	assert_int_equal(s->reg[X86_RDX] >> 32 | s->reg[X86_R11] >> 32, 0);
}

static void test_tsc_on_a_line(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	flat_line(r, __rdtsc() - 1, 1ull << 40);
	run_tsc(r, &s);
	if (!has_lines()) {
		assert_int_equal(r->lines, 0);
		return;
	}
	assert_int_equal(s.reg[X86_RDX] << 32 | s.reg[X86_RAX], VALUE);
	assert_int_equal(s.reg[X86_R11] << 32 | s.reg[X86_R10], VALUE);
	assert_int_equal(r->lines, 1);
	/* Not any more after run has returned. */
	r->line.guest += 5;
	run_tsc(r, &s);
	assert_int_equal(s.reg[X86_RDX] << 32 | s.reg[X86_RAX], VALUE + 5);
	assert_int_equal(r->lines, 2);
}

/* Twice the host's rate: no less than that has passed since the line began. */
static void test_tsc_goes_by_the_rate(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	uint64_t first, passed;

	flat_line(r, __rdtsc(), 1ull << 30);
	r->line.guest = 0;
	r->line.scale = 2ull << 32;
	first = r->line.host;
	run_tsc(r, &s);
	passed = __rdtsc() - first;
	if (!has_lines() || passed >> 30)
		return;
	assert_in_range(s.reg[X86_RDX] << 32 | s.reg[X86_RAX],
		(s.reg[X86_R11] << 32 | s.reg[X86_R10]) + 1, 2 * passed);
	assert_true(s.reg[X86_R10] >= 1000);
}

/* A line that has ended when it comes: its last value. One that has not begun: its first. */
static void test_tsc_off_the_line(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	for (unsigned later = 0; later < 2; later++) {
		flat_line(r, later ? __rdtsc() + (1ull << 40) : __rdtsc() - 100, 7);
		r->line.scale = 3ull << 32;
		run_tsc(r, &s);
		if (!has_lines())
			continue;
		assert_int_equal(s.reg[X86_RDX] << 32 | s.reg[X86_RAX], VALUE + (later ? 0 : 21));
		assert_int_equal(r->lines, 2000);
	}
	flat_line(r, 0, 0);
	run_tsc(r, &s);
	assert_true((s.reg[X86_RDX] << 32 | s.reg[X86_RAX]) != VALUE);
	assert_int_equal(r->lines, has_lines() ? 2000 : 0);
}

/* Reads, writes TSC_ADJUST, reads. */
GUEST(adjust,
	"mov $100, %edi\n1: rdtsc\nmov %rax, %rsi\ndec %edi\njnz 1b\n"
	"mov $0x3b, %ecx\nxor %edx, %edx\nmov $0x1000, %eax\nwrmsr\nrdtsc\nsub %rsi, %rax\nout %al, $0xf4\nhlt\n");

static void test_tsc_adjusted(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	flat_line(r, __rdtsc() - 1, 1ull << 40);
	jit_state(r, &s);
	JIT_LOAD(r, &s, adjust);
	jit_run_plainly(r, &s);
	if (has_lines())
		assert_int_equal(s.reg[X86_RAX], 0x1000);
	assert_int_equal(r->tsc_offset, 0x1000);
}

/* Hot, then denied to user code. */
GUEST(denied,
	"mov $100, %edi\n1: rdtsc\ndec %edi\njnz 1b\n"
	"mov %cr4, %rax\nor $4, %eax\nmov %rax, %cr4\nrdtsc\n" /* the kernel may */
	"lea 2f(%rip), %rcx\nxor %r11d, %r11d\nmov $-3, %rax\nmov $-7, %rdx\nsysretq\n2: rdtsc\nhlt\n");

static void test_tsc_denied(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	struct trap trap;

	flat_line(r, __rdtsc() - 1, 1ull << 40);
	jit_state(r, &s);
	s.msr.star = (uint64_t)0x13 << 48 | 8ull << 32;
	JIT_LOAD(r, &s, denied);
	jit_run(r, &trap);
	assert_int_equal(trap.vector, X86_GP);
	assert_int_equal(trap.cs, USER_CS);
	assert_int_equal(trap.rip, CODE + GUEST_SIZE(denied) - 3);
	assert_int_equal(trap.s.reg[X86_RAX], (uint64_t)-3);
	assert_int_equal(trap.s.reg[X86_RDX], (uint64_t)-7);
}

/* ---- system calls ---- */

/* At CODE: the kernel, then (by SYSRET) user code 64 bytes on, which calls the kernel 1000 times at 192. */
GUEST(calls,
	"lea 1f(%rip), %rcx\nmov $0x202, %r11d\nxor %ebx, %ebx\nxor %esi, %esi\nsysretq\n"
	".skip 64 - (. - code_calls)\n1: mov $0xad7, %edi\n2: push %rdi\npopfq\nsyscall\npushfq\npop %rax\nxor %rdi, %rax\nor %rax, %rsi\n"
	"inc %ebx\ncmp $1000, %ebx\njne 2b\nmov $0x7fffffff0000, %rax\nmov %rax, %r8\nmov $-1, %ebx\nsyscall\nhlt\n"
	".skip 192 - (. - code_calls)\n3: pushfq\npop %rax\nand $0x8d5, %eax\njnz 4f\ninc %rbp\nmov %cs, %eax\ncmp $8, %eax\njne 4f\n"
	"test %ebx, %ebx\njs 5f\nsysretq\n4: ud2\n"
	/* To what is no address, and to where nothing is mapped. */
	"5: mov %r15, %rcx\nsysretq\n");

static void run_calls(struct rig *r, struct trap *ret, uint64_t to)
{
	struct x86_state s;

	jit_state(r, &s);
	s.reg[X86_RSP] = 0x280000;
	s.reg[X86_RBP] = 0;
	s.reg[X86_R15] = to;
	s.msr.star = (uint64_t)0x13 << 48 | 8ull << 32;
	s.msr.lstar = CODE + 192;
	s.msr.sfmask = 0x8d5; /* the arithmetic flags */
	JIT_LOAD(r, &s, calls);
	jit_run(r, ret);
	assert_int_equal(ret->s.reg[X86_RBP], 1001);
	assert_int_equal(ret->s.reg[X86_RSI], 0); /* all flags came back each time */
}

static void test_calls_and_returns(void **state)
{
	struct trap trap;

	run_calls(*state, &trap, 0x40000000);
	assert_int_equal(trap.vector, 14);
	assert_int_equal(trap.error, 4);
	assert_int_equal(trap.cs, USER_CS);
	assert_int_equal(trap.rip, 0x40000000);
	assert_int_equal(trap.s.cr2, 0x40000000);
}

static void test_returns_to_no_address(void **state)
{
	struct trap trap;

	run_calls(*state, &trap, 0x8000000000000000);
	assert_int_equal(trap.vector, X86_GP);
	assert_int_equal(trap.error, 0);
	/* Intel's faults in the kernel, AMD's in user code. */
	if (trap.cs == USER_CS)
		assert_int_equal(trap.rip, 0x8000000000000000);
	else
		assert_int_equal(trap.rip, CODE + GUEST_SIZE(calls) - 3);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(test_tsc_on_a_line),
		RIG_TEST(test_tsc_goes_by_the_rate),
		RIG_TEST(test_tsc_off_the_line),
		RIG_TEST(test_tsc_adjusted),
		RIG_TEST(test_tsc_denied),
		RIG_TEST(test_calls_and_returns),
		RIG_TEST(test_returns_to_no_address),
	};
	int status = rig_main(argc, argv, "ENGINE");

	return status ? status : cmocka_run_group_tests_name(rig_ops->name, tests, NULL, NULL);
}
