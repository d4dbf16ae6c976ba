/*
 * What comes between instructions: single steps, breakpoints, interrupts at the first boundary that is open for
 * them, and kicks; in code that has been translated and is hot by then.
 */
#include "jit_rig.h"

#define HITS  0x5200u /* how often the handler ran */
#define WHERE 0x5208u /* where: RIPs, a qword each */

/* The handler of #DB and of interrupts: notes RIP of the frame, 400 of them at most. */
#define NOTE                                                                          \
	"push %rax\npush %rbx\nmov 0x5200, %rax\ncmp $400, %rax\njae 1f\n"            \
	"mov 16(%rsp), %rbx\nmov %rbx, 0x5208(,%rax,8)\n1: incq 0x5200\n"
#define NOTED "pop %rbx\npop %rax\niretq\n"
GUEST(note, NOTE NOTED);
/* The same, and let the instruction that has a breakpoint go: RF. */
GUEST(note_resume, NOTE "btsl $16, 32(%rsp)\n" NOTED);

static void start(struct rig *r, struct x86_state *s, unsigned vector, const uint8_t *handler,
	size_t bytes)
{
	jit_state(r, s);
	rig_put64(r, HITS, 0);
	rig_gate(r, vector, 0, handler, bytes);
	s->reg[X86_RSP] = 0x280000;
	s->reg[X86_RSI] = 0;
}
#define START(r, s, vector, handler) start(r, s, vector, code_##handler, GUEST_SIZE(handler))

/* ---- single steps ---- */

/* Hot at first, then stepped: two turns of four instructions (5, 6, 7, 8 are their RIPs), then POPF ends it. */
GUEST(steps,
	"mov $500, %ecx\n1: inc %esi\nadd $3, %rdx\ndec %ecx\njnz 1b\n"
	"test %ebp, %ebp\njnz 2f\ninc %ebp\nmov $2, %ecx\npushfq\norl $0x100, (%rsp)\npopfq\njmp 1b\n"
	"2: pushfq\nandl $-0x101, (%rsp)\npopfq\nnop\nout %al, $0xf4\nhlt\n");

static void test_single_step(void **state)
{
	/* jmp's target; twice the loop; test; jnz's target; pushf; and; popf, which still traps. */
	static const uint8_t at[] = {5, 7, 11, 13, 5, 7, 11, 13, 15};
	struct rig *r = *state;
	struct x86_state s;
	uint64_t rip;

	START(r, &s, X86_DB, note);
	s.reg[X86_RBP] = 0;
	JIT_LOAD(r, &s, steps);
	jit_run_plainly(r, &s);
	assert_int_equal(s.reg[X86_RSI], 502);
	for (unsigned i = 0; i < ARRAY_SIZE(at); i++) {
		assert_int_equal(memory_read(r->memory, WHERE + 8 * i, &rip, 8), 0);
		assert_int_equal(rip, CODE + at[i]);
	}
	assert_int_equal(rig_get64(r, HITS), ARRAY_SIZE(at) + 5);
	rip = rig_get64(r, WHERE + 8 * (ARRAY_SIZE(at) + 4));
	assert_int_equal(rip, CODE + GUEST_SIZE(steps) - 4); /* NOP: the trap of POPF is the last */
}

/* ---- breakpoints ---- */

/* Hot; then DR0 at 2, with DR7 from EBX; 10 turns; then DR7 = 0, and 10 more. */
GUEST(breakpoints,
	"mov $0x205000, %edi\nmov $1000, %ecx\n"
	"1: inc %esi\n2: mov %esi, (%rdi)\n3: mov (%rdi), %eax\nadd $1, %edx\ndec %ecx\njnz 1b\n"
	"inc %ebp\ncmp $1, %ebp\njne 4f\n"
	"mov %r14, %dr0\nmov %rbx, %dr7\nmov $10, %ecx\njmp 1b\n"
	"4: cmp $2, %ebp\njne 5f\nxor %eax, %eax\nmov %rax, %dr7\nmov $10, %ecx\njmp 1b\n"
	"5: out %al, $0xf4\nhlt\n");

#define AT_STORE (CODE + 12)
#define AT_LOAD	 (CODE + 14)

static void breakpoint(struct rig *r, uint64_t dr0, uint64_t dr7, unsigned hits, uint64_t rip,
	uint64_t other)
{
	struct x86_state s;

	START(r, &s, X86_DB, note_resume);
	s.reg[X86_RBP] = 0;
	s.reg[X86_RBX] = dr7;
	s.reg[X86_R14] = dr0;
	JIT_LOAD(r, &s, breakpoints);
	jit_run_plainly(r, &s);
	assert_int_equal(s.reg[X86_RSI], 1020);
	assert_int_equal(rig_get64(r, HITS), hits);
	assert_int_equal(rig_get64(r, WHERE), rip);
	assert_int_equal(rig_get64(r, WHERE + 72), other);
	assert_int_equal(s.dr[6] & 15, 1);
}

static void test_breakpoints(void **state)
{
	struct rig *r = *state;

	breakpoint(r, AT_STORE, 0x402, 10, AT_STORE, AT_STORE); /* execution */
	breakpoint(r, 0x205000, 0x402 | 0xd0000, 10, AT_LOAD, AT_LOAD); /* writes of 4 bytes: behind the store */
	breakpoint(r, 0x205002, 0x402 | 0x10000, 10, AT_LOAD, AT_LOAD); /* of its third byte */
	breakpoint(r, 0x205000, 0x402 | 0xf0000, 20, AT_LOAD, AT_LOAD + 2); /* reads and writes */
}

/* An execution breakpoint on a block's every instruction, by turns; RF lets each go once. */
GUEST(breakpoint_anywhere,
	"mov $100, %ecx\n1: inc %esi\nlea 1(%rdx), %rdx\npush %rdx\npop %rax\ncall 2f\ndec %ecx\njnz 1b\n"
	"mov %rdi, %dr0\nmov $0x402, %eax\nmov %rax, %dr7\nmov $3, %ecx\nxor $1, %ebp\njnz 1b\n"
	"xor %eax, %eax\nmov %rax, %dr7\nout %al, $0xf4\nhlt\n2: nop\nret\n");

static void test_breakpoint_anywhere(void **state)
{
	static const uint8_t at[] = {5, 7, 11, 12, 13, 18, 20};
	struct rig *r = *state;
	struct x86_state s;

	for (unsigned i = 0; i < ARRAY_SIZE(at); i++) {
		START(r, &s, X86_DB, note_resume);
		s.reg[X86_RBP] = 0;
		s.reg[X86_RDI] = CODE + at[i];
		JIT_LOAD(r, &s, breakpoint_anywhere);
		jit_run_plainly(r, &s);
		assert_int_equal(s.reg[X86_RSI], 103);
		assert_int_equal(rig_get64(r, HITS), 3);
		assert_int_equal(rig_get64(r, WHERE + 16), CODE + at[i]);
	}
}

/* ---- interrupts ---- */

static bool own_interrupts(struct rig *r)
{
	if (!(r->ops->caps & ENGINE_CAP_IRQCHIP))
		return true;
	print_message("NOT CHECKED: when interrupts come (%s has its own controller)\n", r->ops->name);
	return false;
}

/* One is pending before the guest starts; where does it come? */
static void arrives_at(struct rig *r, const char *name, const uint8_t *code, size_t bytes, uint64_t at)
{
	struct x86_state s;

	START(r, &s, 0x40, note);
	rig_put(r, CODE, code, bytes);
	r->vector = 0x40;
	r->ops->interrupt(r->vcpu);
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	jit_run_plainly(r, &s);
	if (rig_get64(r, HITS) != (at != 0) || (at && rig_get64(r, WHERE) != CODE + at))
		fail_msg("%s: %llu interrupts, at %#llx", name, (unsigned long long)rig_get64(r, HITS),
			(unsigned long long)rig_get64(r, WHERE));
	r->vector = -1;
}

/* Each in hot code: `cold` is what goes before in a loop with IF = 0. */
#define COLD "cli\nmov $1000, %ecx\n1: inc %edx\ndec %ecx\njnz 1b\nmov %ss, %eax\n"
#define COLD_BYTES 14
#define OPENS(X)                                                                    \
	X(sti, "sti\ninc %esi\ninc %esi\n", COLD_BYTES + 3)                         \
	X(sti_sti, "sti\nsti\ninc %esi\ninc %esi\n", COLD_BYTES + 2)                \
	X(sti_cli, "sti\ncli\ninc %esi\n", 0)                                       \
	X(sti_ss, "sti\nmov %eax, %ss\ninc %esi\ninc %esi\n", COLD_BYTES + 5)       \
	X(sti_load, "sti\nmov 0x5000, %edx\ninc %esi\n", COLD_BYTES + 8)            \
	X(sti_jmp, "sti\njmp 2f\nnop\n2: inc %esi\n", COLD_BYTES + 4)               \
	X(sti_call, "sti\ncall 2f\n2: inc %esi\n", COLD_BYTES + 6)                  \
	X(popf, "pushfq\norl $0x200, (%rsp)\npopfq\ninc %esi\ninc %esi\n", COLD_BYTES + 9) \
	X(iret, "mov %rsp, %rdi\npush %rax\npush %rdi\npushfq\norl $0x200, (%rsp)\npush $8\n" \
		"lea 2f(%rip), %rdi\npush %rdi\niretq\nnop\n2: inc %esi\n", COLD_BYTES + 26)  \
	X(never, "inc %esi\n", 0)

#define DEFINE_OPEN(name, code, at) GUEST(open_##name, COLD code "cli\nout %al, $0xf4\nhlt\n");
OPENS(DEFINE_OPEN)
#define RUN_OPEN(name, code, at) \
	arrives_at(r, #name, code_open_##name, GUEST_SIZE(open_##name), at);

static void test_windows(void **state)
{
	struct rig *r = *state;

	if (own_interrupts(r)) {
		OPENS(RUN_OPEN)
	}
}

/* A window in a hot loop: one instruction wide, in every turn; the interrupt comes there and nowhere else. */
GUEST(narrow,
	"out %al, $0xf5\n1: cli\ninc %edx\nadd $1, %edi\nsti\nnop\ncli\ninc %edx\ncmpq $40, 0x5200\njb 1b\n"
	"out %al, $0xf4\nhlt\n");
#define NARROW 10 /* behind NOP */

static void *pester_thread(void *opaque)
{
	struct rig *r = opaque;

	while (!r->ready)
		usleep(100);
	while (!r->done) {
		r->vector = 0x40;
		r->ops->interrupt(r->vcpu);
		usleep(100);
	}
	return NULL;
}

static void test_narrow_window(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	pthread_t thread;

	if (!own_interrupts(r))
		return;
	START(r, &s, 0x40, note);
	JIT_LOAD(r, &s, narrow);
	assert_int_equal(pthread_create(&thread, NULL, pester_thread, r), 0);
	jit_run_plainly(r, &s);
	pthread_join(thread, NULL);
	for (unsigned i = 0; i < 40; i++)
		assert_int_equal(rig_get64(r, WHERE + 8 * i), CODE + NARROW);
}

/* ---- flags over what comes between ---- */

/*
 * Interrupts at any time over code in which every flag counts: the sum is what it is without them. Blocks in two pages,
 * conditional jumps backwards and across, calls and returns between setting a flag and using it.
 */
GUEST(flags,
	"out %al, $0xf5\nsti\nmov $150000, %ebp\nxor %esi, %esi\nxor %edi, %edi\n"
	"1: mov %ebp, %eax\nimul $0x9e3779b1, %eax, %eax\n"
	"add %eax, %edi\nadc $0, %rsi\n"
	"cmp %eax, %edi\ncall 3f\nadc $0, %rsi\n"
	"shl $1, %eax\njc 2f\nadd $7, %rsi\n2: setp %bl\nmovzx %bl, %ebx\nadd %rbx, %rsi\n"
	"sub %edi, %eax\njmp 4f\n.balign 4096\n4: jo 5f\nadd $11, %rsi\n5: jg 6f\nadd $13, %rsi\n"
	"6: dec %ebp\njnz 1b\ncli\nout %al, $0xf4\nhlt\n"
	"3: mov 0x5000, %rdx\nlea 1(%rdx), %rdx\nret\n");

static void start_flags(struct rig *r)
{
	struct x86_state s;

	START(r, &s, 0x40, note);
	r->ready = false;
	rig_put(r, 0x5000, "\0\0\0\0\0\0\0", 8);
	/* Not over the handlers: at 0x210000. */
	rig_put(r, 0x210000, code_flags, GUEST_SIZE(flags));
	s.reg[X86_RIP] = 0x210000;
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
}

static uint64_t run_flags(struct rig *r, bool pester)
{
	struct x86_state s;
	pthread_t thread;

	start_flags(r);
	if (pester)
		assert_int_equal(pthread_create(&thread, NULL, pester_thread, r), 0);
	jit_run_plainly(r, &s);
	if (pester)
		pthread_join(thread, NULL);
	r->vector = -1;
	return s.reg[X86_RSI];
}

/* The same in C. */
static uint64_t flags_expected(void)
{
	uint32_t edi = 0;
	uint64_t rsi = 0;

	for (uint32_t ebp = 150000; ebp; ebp--) {
		uint32_t eax = ebp * 0x9e3779b1u;
		rsi += __builtin_add_overflow(edi, eax, &edi);
		rsi += edi < eax;
		uint32_t shifted = eax << 1;
		bool carry = eax >> 31;
		unsigned parity_of = carry ? shifted : 0;
		if (!carry) {
			rsi += 7;
			parity_of = (unsigned)(rsi & 0xff);
		}
		rsi += !(__builtin_popcount(parity_of & 0xff) & 1);
		int32_t difference;
		bool overflow = __builtin_sub_overflow((int32_t)shifted, (int32_t)edi, &difference);
		bool greater = (int32_t)shifted > (int32_t)edi;
		if (!overflow) {
			rsi += 11;
			greater = (int64_t)rsi > 0;
		}
		if (!greater)
			rsi += 13;
	}
	return rsi;
}

static void test_flags(void **state)
{
	struct rig *r = *state;
	uint64_t hits = 0;

	assert_int_equal(run_flags(r, false), flags_expected());
	if (!own_interrupts(r))
		return;
	for (unsigned i = 0; i < 5 || (!hits && i < 100); i++) {
		assert_int_equal(run_flags(r, true), flags_expected());
		hits += rig_get64(r, HITS);
	}
	assert_true(hits > 0);
}

/* Kicks at any time: what get_state() gives is a boundary, and putting it back changes nothing. */
static void *kick_thread(void *opaque)
{
	struct rig *r = opaque;

	while (!r->ready)
		usleep(50);
	while (!r->done) {
		r->ops->kick(r->vcpu);
		usleep(50);
	}
	return NULL;
}

/* Returns how often run came back. */
static unsigned run_kicked(struct rig *r)
{
	unsigned kicks = 0;
	struct error err = {0};
	struct x86_state s;
	pthread_t thread;

	start_flags(r);
	assert_int_equal(pthread_create(&thread, NULL, kick_thread, r), 0);
	while (!r->done) {
		assert_int_equal(r->ops->run(r->vcpu, &err), ENGINE_EXIT_KICKED);
		rig_state(r, &s);
		assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
		kicks++;
	}
	pthread_join(thread, NULL);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RSI], flags_expected());
	return kicks;
}

static void test_kicks(void **state)
{
	unsigned kicks = 0;

	/* On a busy host the kicking thread may come too late, and again. */
	for (unsigned i = 0; i < 5 || (kicks < 20 && i < 3000); i++)
		kicks += run_kicked(*state) - 1;
	assert_in_range(kicks, 20, UINT32_MAX);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(test_single_step),
		RIG_TEST(test_breakpoints),
		RIG_TEST(test_breakpoint_anywhere),
		RIG_TEST(test_windows),
		RIG_TEST(test_narrow_window),
		RIG_TEST(test_flags),
		RIG_TEST(test_kicks),
	};
	int status = rig_main(argc, argv, "ENGINE");

	return status ? status : cmocka_run_group_tests_name(rig_ops->name, tests, NULL, NULL);
}
