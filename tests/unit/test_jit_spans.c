/*
 * Accesses that share one look-up (engine/jit/span.c), where that must not be seen: at a page's end, where only some
 * of them fault, at devices, in code, and with registers that change in all the ways that are followed.
 */
#include "jit_rig.h"

#include "engine/soft/soft.h"

#define AT     0x205000u /* a page that tests use, with one on each side */
#define STEPS  600u
#define START  (AT + 0x1000 - 300)
#define RAM_OF(page) (0x260000u - 0x4000u * (page))

/* ---- across pages ---- */

/*
 * RDI goes on by one each turn, so that every place of every access is at the page's end once. The pages are
 * no neighbours in RAM.
 */
GUEST(sweep,
	"1: mov %rsi, (%rdi)\nmov %esi, 8(%rdi)\naddl $5, 12(%rdi)\nmov 3(%rdi), %eax\nadd %rax, %rbx\nxor 8(%rdi), %rbx\n"
	"mov %rdi, %rdx\nlea 16(%rdx), %rdx\nmov %bx, 1(%rdx)\nsub $-8, %rdx\nsbb %cl, -9(%rdx)\nrol $7, %rsi\n"
	"inc %rdi\nxor %rcx, 22(%rdi)\ndec %rdi\nadd %cl, 30(%rdi)\ninc %rdi\ndec %ecx\njnz 1b\nout %al, $0xf4\nhlt\n");

static uint64_t load(const uint8_t *at, unsigned size)
{
	uint64_t value = 0;

	memcpy(&value, at, size);
	return value;
}

static void xor64(uint8_t *at, uint64_t with)
{
	with ^= load(at, 8);
	memcpy(at, &with, 8);
}

/* What `sweep` does. */
static uint64_t sweep(uint8_t *at, uint64_t rsi, uint64_t rbx)
{
	for (uint32_t ecx = STEPS; ecx; ecx--) {
		memcpy(at, &rsi, 8);
		memcpy(at + 8, &rsi, 4);
		uint32_t sum = (uint32_t)load(at + 12, 4) + 5;
		memcpy(at + 12, &sum, 4);
		rbx += load(at + 3, 4);
		rbx ^= load(at + 8, 8);
		memcpy(at + 17, &rbx, 2);
		/* SUB of -8 from less than 2^64 - 8 borrows. */
		at[15] = (uint8_t)(at[15] - (uint8_t)ecx - 1);
		rsi = rsi << 7 | rsi >> 57;
		at++;
		xor64(at + 22, ecx);
		at[29] = (uint8_t)(at[29] + ecx);
	}
	return rbx;
}

static void test_across_a_page(void **state)
{
	static uint8_t expected[0x3000], found[0x3000];
	struct rig *r = *state;
	struct x86_state s;

	jit_state(r, &s);
	for (unsigned i = 0; i < sizeof(expected); i++)
		expected[i] = (uint8_t)(i * 7 + i / 256);
	for (unsigned i = 0; i < 3; i++) {
		jit_map(r, AT - 0x1000 + 0x1000 * i, RAM_OF(i), P | W);
		rig_put(r, RAM_OF(i), expected + 0x1000 * i, 0x1000);
	}
	s.reg[X86_RDI] = START;
	s.reg[X86_RCX] = STEPS;
	s.reg[X86_RSI] = 0x123456789abcdef0;
	s.reg[X86_RBX] = 3;
	JIT_LOAD(r, &s, sweep);
	jit_run_plainly(r, &s);
	assert_int_equal(s.reg[X86_RBX], sweep(expected + START - (AT - 0x1000), 0x123456789abcdef0, 3));
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(memory_read(r->memory, RAM_OF(i), found + 0x1000 * i, 0x1000), 0);
	assert_memory_equal(found, expected, sizeof(found));
}

/* The stack, at every place of a page: recursion, with all that pushes and pops. */
GUEST(stack,
	"mov %rsp, %r15\nmov $600, %r14d\nxor %r13d, %r13d\n"
	"1: mov %r15, %rsp\nsub %r14, %rsp\nmov $6, %edi\ncall 2f\njnc 9f\nadd %rax, %r13\nmov %r15, %rax\nsub %r14, %rax\ncmp %rax, %rsp\n"
	"jne 9f\ndec %r14d\njnz 1b\nout %al, $0xf4\nhlt\n9: ud2\n"
	"2: push %rbp\nmov %rsp, %rbp\npush %rbx\npush %r10\nsub $24, %rsp\nmov %rdi, %rbx\nlea 77(%rdi), %r10\nmov %rdi, -24(%rbp)\n"
	"cmp $2, %edi\njb 3f\ndec %rdi\ncall 2b\nmov %rax, 8(%rsp)\nmov -24(%rbp), %rdi\nsub $2, %rdi\ncall 2b\nadd 8(%rsp), %rax\n"
	"jmp 4f\n3: mov $1, %eax\n4: lea 77(%rbx), %rcx\ncmp %rcx, %r10\njne 9b\nadd $24, %rsp\npushq $-5\npop %rcx\n"
	"cmp $-5, %rcx\njne 9b\npush %rsp\npop %rcx\ncmp %rsp, %rcx\njne 9b\npop %r10\npop %rbx\npush %rax\npush 16(%rsp)\npop %rcx\n"
	"pop %rax\nleave\ncmp %rcx, (%rsp)\njne 9b\nstc\nret\n");

static void test_stack(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	jit_state(r, &s);
	s.reg[X86_RSP] = AT + 0x1000 + 300;
	JIT_LOAD(r, &s, stack);
	jit_run_plainly(r, &s);
	assert_int_equal(s.reg[X86_R13], 600 * 13);
}

static uint64_t enters(struct rig *r)
{
	struct engine_counters counters;

	r->ops->counters(r->vcpu, &counters);
	return counters.enters;
}

/* The two are in different pages in every turn: the way around their span is linked as any other. */
GUEST(frame, "mov $5000, %ecx\n1: mov (%rdi), %rax\nmov %rax, 8(%rdi)\ndec %ecx\njnz 1b\nout %al, $0xf4\nhlt\n");

static void test_a_frame_across_a_page(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	const uint64_t before = enters(r);

	jit_state(r, &s);
	rig_put64(r, AT + 0xff8, 0x55);
	s.reg[X86_RDI] = AT + 0xff8;
	JIT_LOAD(r, &s, frame);
	jit_run_plainly(r, &s);
	assert_int_equal(rig_get64(r, AT + 0x1000), 0x55);
	if (!jit_has_option("nochain") && !jit_has_option("evict"))
		assert_in_range(enters(r) - before, 1, 500);
}

/* ---- faults ---- */

/* Hot at RSI, then RDI. What RBP points at has been read before. */
GUEST(faults,
	"mov (%rbp), %rax\nmov %rdi, %r8\nmov %rsi, %rdi\nmov $200, %ecx\n"
	"1: mov (%rdi), %rax\nmov %rcx, 8(%rdi)\nmov 16(%rdi), %rbx\nmov %rcx, 24(%rdi)\nmov %rax, %rdx\ndec %ecx\njnz 1b\n"
	"mov %r8, %rdi\nmov $1, %ecx\njmp 1b\n");
#define FAULTS_LOAD 15u /* its first four accesses */
static const uint8_t faults_at[4] = {FAULTS_LOAD, FAULTS_LOAD + 3, FAULTS_LOAD + 7, FAULTS_LOAD + 11};

static void run_faults(struct rig *r, struct trap *ret, uint64_t rdi)
{
	struct x86_state s;

	jit_state(r, &s);
	rig_put64(r, AT + 0xff0, 0x1111);
	rig_put64(r, AT + 0xff8, 0x2222);
	s.reg[X86_RSI] = AT + 0x100;
	s.reg[X86_RDI] = rdi;
	s.reg[X86_RBP] = AT;
	JIT_LOAD(r, &s, faults);
	jit_run(r, ret);
}

/* The first `good` accesses are in a page that is there. */
static void test_fault_in_the_middle(void **state)
{
	struct rig *r = *state;
	struct trap trap;

	for (unsigned good = 0; good < 4; good++) {
		struct x86_state s;

		jit_state(r, &s);
		jit_map(r, AT + 0x1000, 0, 0);
		rig_put64(r, AT + 0xff8, 0);
		s.reg[X86_RSI] = AT + 0x100;
		s.reg[X86_RDI] = AT + 0x1000 - 8 * good;
		s.reg[X86_RBP] = AT;
		for (unsigned i = 0; i < good; i++)
			rig_put64(r, s.reg[X86_RDI] + 8 * i, 0x1111 * (i + 1));
		JIT_LOAD(r, &s, faults);
		jit_run(r, &trap);
		assert_int_equal(trap.vector, 14);
		assert_int_equal(trap.rip, CODE + faults_at[good]);
		assert_int_equal(trap.s.cr2, AT + 0x1000);
		assert_int_equal(trap.error, good & 1 ? 2 : 0);
		assert_int_equal(trap.s.reg[X86_RAX], good > 0 ? 0x1111 : 0);
		if (good > 1)
			assert_int_equal(rig_get64(r, AT + 0x1000 - 8 * good + 8), 1);
		if (good > 2)
			assert_int_equal(trap.s.reg[X86_RBX], 0x3333);
	}
}

/* Reads are fine, the first write is not. */
static void test_read_only(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	struct trap trap;

	jit_state(r, &s);
	jit_map(r, AT + 0x1000, AT + 0x1000, P);
	rig_put64(r, AT + 0x1000, 0x1111);
	s.reg[X86_RSI] = AT + 0x100;
	s.reg[X86_RDI] = s.reg[X86_RBP] = AT + 0x1000;
	JIT_LOAD(r, &s, faults);
	jit_run(r, &trap);
	assert_int_equal(trap.vector, 14);
	assert_int_equal(trap.error, 3);
	assert_int_equal(trap.rip, CODE + faults_at[1]);
	assert_int_equal(trap.s.reg[X86_RAX], 0x1111);
	assert_int_equal(trap.s.cr2, AT + 0x1008);
}

static void test_no_address(void **state)
{
	struct trap trap;

	run_faults(*state, &trap, 0x8000000000000000);
	assert_int_equal(trap.vector, X86_GP);
	assert_int_equal(trap.rip, CODE + faults_at[0]);
	/* The last that is one, and wraps. */
	run_faults(*state, &trap, 0x7fffffffffe8);
	assert_int_equal(trap.vector, 14);
	assert_int_equal(trap.s.cr2, 0x7fffffffffe8);
}

static void test_a_device(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	struct trap trap;

	jit_state(r, &s);
	jit_map(r, ALIAS, MMIO_GPA, P | W);
	jit_map(r, ALIAS + 0x1000, 0, 0);
	s.reg[X86_RSI] = AT + 0x100;
	s.reg[X86_RDI] = ALIAS + 0xff0;
	s.reg[X86_RBP] = AT;
	r->access_count = 0;
	JIT_LOAD(r, &s, faults);
	jit_run(r, &trap);
	assert_int_equal(trap.rip, CODE + faults_at[2]);
	assert_int_equal(r->access_count, 2);
	assert_false(r->access[0].write);
	assert_int_equal(r->access[0].addr, 0xff0);
	assert_true(r->access[1].write);
	assert_int_equal(r->access[1].addr, 0xff8);
	assert_int_equal(r->access[1].value, 1);
}

/* ---- alignment ---- */

/* 8 and 24 behind RDI, where it is 8 behind a multiple of 16; then by one more. */
GUEST(aligned,
	"mov $200, %ecx\n1: mov (%rdi), %rax\nmovaps 8(%rdi), %xmm0\nmovaps %xmm0, 24(%rdi)\nmov %rax, 40(%rdi)\ndec %ecx\njnz 1b\n"
	"inc %rdi\nmov $-1, %rax\njmp 1b\n");
GUEST(aligned_one, "mov $200, %ecx\n1: movaps (%rdi), %xmm0\ndec %ecx\njnz 1b\nadd %rsi, %rdi\njmp 1b\n");

static void test_alignment(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	struct trap trap;

	jit_state(r, &s);
	rig_put64(r, AT + 0x10, 0x55);
	s.reg[X86_RDI] = AT + 8;
	JIT_LOAD(r, &s, aligned);
	jit_run(r, &trap);
	assert_int_equal(trap.vector, X86_GP);
	assert_int_equal(trap.rip, CODE + 8);
	assert_true(trap.s.reg[X86_RAX] != UINT64_MAX);
	assert_int_equal(rig_get64(r, AT + 0x20), 0x55);
	for (unsigned more = 1; more < 16; more++) {
		jit_state(r, &s);
		s.reg[X86_RDI] = AT + 0xff0;
		s.reg[X86_RSI] = more;
		JIT_LOAD(r, &s, aligned_one);
		jit_run(r, &trap);
		assert_int_equal(trap.vector, X86_GP);
		assert_int_equal(trap.rip, CODE + 5);
	}
}

/* ---- code ---- */

/* Each turn changes the operand of the MOV behind it, and the one of the last turn is looked at. */
GUEST(changes,
	"mov $200, %ecx\nxor %ebx, %ebx\nlea 2f(%rip), %rdi\n"
	"1: mov %ecx, 1(%rdi)\nmov %cl, 7(%rdi)\njmp 2f\n2: mov $0, %eax\n.byte 0x83, 0xc3, 0\nadd %rax, %rbx\n"
	"mov 1(%rdi), %edx\ncmp %edx, %ecx\njne 9f\ndec %ecx\njnz 1b\nout %al, $0xf4\nhlt\n9: ud2\n");

static void test_code_changes(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	int64_t sum = 0;

	jit_state(r, &s);
	JIT_LOAD(r, &s, changes);
	jit_run_plainly(r, &s);
	/* The ADD of 32 bits clears the upper half, its operand has a sign. */
	for (int i = 200; i; i--)
		sum = (uint32_t)(sum + (int8_t)i) + i;
	assert_int_equal(s.reg[X86_RBX], sum);
}

/* A slow path between two accesses: what it writes makes code of their page, as if another vCPU had found some there. */
GUEST(slow_path,
	"mov $200, %ecx\n1: mov (%rdi), %rax\nmov %ecx, (%rsi)\nmov %rcx, 8(%rdi)\ndec %ecx\njnz 1b\n"
	"cmp %rbx, %rsi\nje 2f\nmov %rbx, %rsi\nmov $1, %ecx\njmp 1b\n2: out %al, $0xf4\nhlt\n");
#define CODE_DEVICE 0xd1000000u

static void make_code(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct rig *r = device;

	memory_code_mark(r->memory, AT, 64);
	x86_tlb_drop_writes(&((struct soft_vcpu *)r->vcpu)->cpu, AT);
}

static void test_slow_path_between(void **state)
{
	static const struct bus_ops device = {.read = rig_read, .write = make_code};
	struct rig *r = *state;
	struct x86_state s;

	assert_int_equal(bus_add(r->bus, BUS_MMIO, CODE_DEVICE, 0x1000, "code", &device, r, NULL), 0);
	jit_state(r, &s);
	jit_map(r, ALIAS, CODE_DEVICE, P | W);
	s.reg[X86_RDI] = AT;
	s.reg[X86_RSI] = AT + 0x1000;
	s.reg[X86_RBX] = ALIAS;
	JIT_LOAD(r, &s, slow_path);
	jit_run_plainly(r, &s);
	/* The write was seen, or the marks would be there still. */
	assert_int_equal(rig_get64(r, AT + 8), 1);
	if (rig_ops == &engine_jit_ops)
		assert_false(memory_code_page(r->memory, AT));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(test_across_a_page),
		RIG_TEST(test_stack),
		RIG_TEST(test_a_frame_across_a_page),
		RIG_TEST(test_fault_in_the_middle),
		RIG_TEST(test_read_only),
		RIG_TEST(test_no_address),
		RIG_TEST(test_a_device),
		RIG_TEST(test_alignment),
		RIG_TEST(test_code_changes),
		RIG_TEST(test_slow_path_between),
	};
	int status = rig_main(argc, argv, "ENGINE");

	return status ? status : cmocka_run_group_tests_name(rig_ops->name, tests, NULL, NULL);
}
