/*
 * x87: arithmetic on the host, exceptions kept back and raised late, control instructions,
 * environments.
 */
#include "x86_run.h"

#include "isa/x86/fpu.h"

static void put_double(struct test_cpu *t, double value)
{
	memcpy(test_host(t, DATA), &value, 8);
}

static double get_double(struct test_cpu *t)
{
	double value;

	memcpy(&value, test_host(t, DATA), 8);
	return value;
}

static void push(struct test_cpu *t, double value)
{
	put_double(t, value);
	RUN_OK(t, "\xdd\x03"); /* fld qword [rbx] */
}

static double pop(struct test_cpu *t)
{
	RUN_OK(t, "\xdd\x1b"); /* fstp qword [rbx] */
	return get_double(t);
}

static void test_arithmetic(void **state)
{
	struct test_cpu *t = *state;

	push(t, 10);
	push(t, 4);
	assert_int_equal(x86_fpu_top(&t->cpu.s.fpu), 6);
	assert_int_equal(t->cpu.s.fpu.ftw, 0xc0);
	RUN_OK(t, "\xd8\xf1"); /* fdiv st, st1 */
	assert_true(pop(t) == 0.4);
	push(t, 4);
	RUN_OK(t, "\xde\xe9"); /* fsubp st1, st: 10 - 4 */
	assert_true(pop(t) == 6);
	assert_int_equal(t->cpu.s.fpu.ftw, 0);
	RUN_OK(t, "\xd9\xeb"); /* fldpi */
	assert_true(pop(t) == 3.14159265358979323846);
}

static void test_memory_forms(void **state)
{
	struct test_cpu *t = *state;
	float f = 1.5f;
	int16_t w = -7;
	int64_t q = 0x123456789abcdef;
	static const uint8_t bcd[10] = {0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0, 0x80};

	memcpy(test_host(t, DATA), &f, 4);
	RUN_OK(t, "\xd9\x03"); /* fld dword */
	memcpy(test_host(t, DATA), &w, 2);
	RUN_OK(t, "\xde\x0b"); /* fimul word */
	RUN_OK(t, "\xd9\x1b"); /* fstp dword */
	memcpy(&f, test_host(t, DATA), 4);
	assert_true(f == -10.5f);
	memcpy(test_host(t, DATA), &q, 8);
	RUN_OK(t, "\xdf\x2b");	   /* fild qword */
	RUN_OK(t, "\xdb\x7b\x10"); /* fstp tword [rbx+16] */
	RUN_OK(t, "\xdb\x6b\x10"); /* fld tword */
	RUN_OK(t, "\xdf\x7b\x20"); /* fistp qword [rbx+32] */
	assert_memory_equal(test_host(t, DATA + 32), &q, 8);
	memcpy(test_host(t, DATA), bcd, 10);
	RUN_OK(t, "\xdf\x23");	   /* fbld */
	RUN_OK(t, "\xdb\x53\x10"); /* fist dword [rbx+16] */
	assert_int_equal(*(int32_t *)test_host(t, DATA + 16), -12345678);
	RUN_OK(t, "\xdf\x73\x20"); /* fbstp [rbx+32] */
	assert_memory_equal(test_host(t, DATA + 32), bcd, 10);
}

static void test_compare_and_move(void **state)
{
	struct test_cpu *t = *state;

	push(t, 1);
	push(t, 2);
	t->cpu.s.rflags |= X86_OF | X86_ZF | X86_IF;
	RUN_OK(t, "\xdb\xf1"); /* fcomi st, st1 */
	assert_int_equal(t->cpu.s.rflags & X86_FLAGS_ARITH, 0);
	assert_true(t->cpu.s.rflags & X86_IF);
	t->cpu.s.rflags |= X86_CF;
	RUN_OK(t, "\xda\xc1"); /* fcmovb st, st1 */
	assert_true(pop(t) == 1);
	push(t, 5);
	t->cpu.s.rflags &= ~(uint64_t)X86_CF;
	RUN_OK(t, "\xda\xc1");
	assert_true(pop(t) == 5);
	RUN_OK(t, "\xd9\xe5"); /* fxam: positive normal */
	RUN_OK(t, "\xdf\xe0"); /* fnstsw ax */
	assert_int_equal(t->cpu.s.reg[X86_RAX] & 0x4700, 0x0400);
}

/* An unmasked divide by zero keeps the operands, and #MF comes at the next waiting instruction. */
static void test_unmasked(void **state)
{
	struct test_cpu *t = *state;
	uint16_t fcw = 0x37b;

	push(t, 0);
	push(t, 1);
	memcpy(test_host(t, DATA), &fcw, 2);
	RUN_OK(t, "\xd9\x2b"); /* fldcw */
	t->cpu.s.reg[X86_RIP] = 0x4000;
	RUN_OK(t, "\xd8\xf1"); /* fdiv st, st1 */
	assert_int_equal(t->cpu.s.fpu.fsw & 0x80ff, 0x8084);
	assert_int_equal(t->cpu.s.fpu.fip, 0x4000);
	assert_int_equal(t->cpu.s.fpu.fop, 0x0f1);
	RUN_FAULT(t, "\xd9\xe8", X86_MF); /* fld1 */
	RUN_FAULT(t, "\x9b", X86_MF);
	RUN_FAULT(t, "\x0f\x6f\xc1", X86_MF); /* movq mm0, mm1 */
	RUN_OK(t, "\xdf\xe0");
	RUN_OK(t, "\xdb\xe2"); /* fnclex */
	assert_true(pop(t) == 1);
	RUN_OK(t, "\x9b");
}

/*
 * A store whose exception is unmasked writes nothing and pops nothing; inexact stores all the same.
 */
static void test_unmasked_store(void **state)
{
	struct test_cpu *t = *state;

	push(t, 1e300);
	t->cpu.s.fpu.fcw = 0x377; /* overflow */
	memset(test_host(t, DATA), 0xaa, 8);
	RUN_OK(t, "\xd9\x1b"); /* fstp dword */
	assert_int_equal(*(uint32_t *)test_host(t, DATA), 0xaaaaaaaa);
	assert_int_equal(x86_fpu_top(&t->cpu.s.fpu), 7);
	assert_true(x86_fpu_pending(&t->cpu.s.fpu));
	RUN_OK(t, "\xdb\xe2");
	t->cpu.s.fpu.fcw = 0x37f;
	assert_true(pop(t) == 1e300);
	push(t, 0.1);
	t->cpu.s.fpu.fcw = 0x35f; /* inexact */
	RUN_OK(t, "\xd9\x1b");
	assert_true(*(float *)test_host(t, DATA) == 0.1f);
	assert_true(x86_fpu_pending(&t->cpu.s.fpu));
	assert_int_equal(t->cpu.s.fpu.ftw, 0);
}

static void test_stack_fault(void **state)
{
	struct test_cpu *t = *state;

	RUN_OK(t, "\xd9\xfa"); /* fsqrt of an empty register, masked: indefinite */
	assert_int_equal(t->cpu.s.fpu.fsw & 0x41, 0x41);
	RUN_OK(t, "\xdb\xe3");
	t->cpu.s.fpu.fcw = 0x37e;
	RUN_OK(t, "\xd9\xfa");
	assert_int_equal(t->cpu.s.fpu.ftw, 0);
	assert_int_equal(t->cpu.s.fpu.fsw & 0x80c1, 0x80c1);
}

static void test_control(void **state)
{
	struct test_cpu *t = *state;
	struct x86_fpu *fpu = &t->cpu.s.fpu;

	push(t, 3);
	RUN_OK(t, "\xd9\x3b"); /* fnstcw */
	assert_int_equal(*(uint16_t *)test_host(t, DATA), 0x37f);
	*(uint16_t *)test_host(t, DATA) = 0;
	RUN_OK(t, "\xd9\x2b");
	assert_int_equal(fpu->fcw, 0x40);
	RUN_OK(t, "\xdb\xe3");
	assert_int_equal(fpu->fcw, 0x37f);
	assert_int_equal(fpu->fsw, 0);
	assert_int_equal(fpu->ftw, 0);
	assert_int_equal(fpu->st[7][9], 0x40); /* 3.0 is still in R7 */
	fpu->fsw = 1;
	*(uint16_t *)test_host(t, DATA) = 0x37e;
	RUN_OK(t, "\xd9\x2b"); /* unmasking makes an old flag pending */
	assert_int_equal(fpu->fsw, 0x8081);
	t->cpu.s.cr0 |= X86_CR0_TS;
	RUN_FAULT(t, "\x9b", X86_NM);
	RUN_FAULT(t, "\xdb\xe3", X86_NM);
	t->cpu.s.cr0 &= ~(uint64_t)(X86_CR0_TS | X86_CR0_MP);
	RUN_FAULT(t, "\x9b", X86_MF);
}

/* The same on the host: environment and save area of a processor with this state. */
static void test_environment(void **state)
{
	struct test_cpu *t = *state;
	struct x86_fpu before;
	uint8_t *env = test_host(t, DATA);

	push(t, 1);
	push(t, 0);
	push(t, __builtin_inf());
	before = t->cpu.s.fpu;
	RUN_OK(t, "\xd9\x33"); /* fnstenv */
	assert_int_equal(*(uint16_t *)env, 0x37f);
	assert_int_equal(*(uint16_t *)(env + 4), 5 << 11);
	assert_int_equal(*(uint16_t *)(env + 8), 0x1bff); /* R7 valid, R6 zero, R5 special */
	RUN_OK(t, "\xdd\x73\x40");			  /* fnsave [rbx+64] */
	assert_int_equal(t->cpu.s.fpu.ftw, 0);
	assert_memory_equal(env + 64 + 28, before.st[0], 10);
	assert_memory_equal(env + 64 + 28 + 70, before.st[7], 10);
	push(t, 42);
	memcpy(env, env + 64, 28);
	RUN_OK(t, "\xdd\x63\x40"); /* frstor */
	assert_memory_equal(t->cpu.s.fpu.st, before.st, sizeof(before.st));
	assert_int_equal(t->cpu.s.fpu.ftw, 0xe0);
	assert_int_equal(t->cpu.s.fpu.fsw, 5 << 11);
	RUN_OK(t, "\x66\xd9\x73\x40"); /* 16-bit fnstenv */
	assert_int_equal(*(uint16_t *)(env + 64 + 4), 0x1bff);
	assert_int_equal(*(uint16_t *)(env + 64 + 6), (uint16_t)before.fip);
}

/* FLDENV moves TOP under the registers, which stay where they are. */
static void test_top_moves(void **state)
{
	struct test_cpu *t = *state;
	uint8_t *env = test_host(t, DATA);

	push(t, 1);
	push(t, 2); /* R6 */
	RUN_OK(t, "\xd9\x33");
	*(uint16_t *)(env + 4) = 7 << 11;
	RUN_OK(t, "\xd9\x23");
	RUN_OK(t, "\xdd\x13"); /* fst: R7 */
	assert_true(get_double(t) == 1);
}

/* The host's results, on the host's own stack: transcendental functions and rounding modes. */
static void test_host_agrees(void **state)
{
	struct test_cpu *t = *state;
	double host, x = 0.7;

	__asm__ volatile("fsin" : "=t"(host) : "0"((long double)x));
	push(t, x);
	RUN_OK(t, "\xd9\xfe");
	assert_true(pop(t) == host);
	for (unsigned rc = 0; rc < 4; rc++) {
		static const double want[] = {2, 2, 3, 2};

		t->cpu.s.fpu.fcw = (uint16_t)(0x37f | rc << 10);
		push(t, 2.5);
		RUN_OK(t, "\xd9\xfc"); /* frndint */
		assert_true(pop(t) == want[rc]);
	}
	__asm__ volatile("fnstcw %0" : "=m"(*(uint16_t *)test_host(t, DATA)));
	assert_int_equal(*(uint16_t *)test_host(t, DATA), 0x37f); /* the host's own is back */
}

/* The tags of the host's own registers: all empty, as the calling convention wants them. */
static void assert_host_stack_empty(void)
{
	uint16_t environment[14];

	__asm__ volatile("fnstenv %0; fldenv %0" : "=m"(environment));
	assert_int_equal(environment[4], 0xffff);
}

/*
 * Register arithmetic over and over, with nothing else in between: an operation that left a value on
 * the host's own stack would give NaNs once that is full.
 */
static void test_long_runs(void **state)
{
	static const uint8_t operation[] = {0xc1, 0xc9, 0xe1, 0xe9, 0xf1, 0xf9};
	static const double want[] = {5, 6, -1, 1, 2.0 / 3, 1.5};
	struct test_cpu *t = *state;

	for (unsigned n = 0; n < ARRAY_SIZE(operation) * 20; n++) {
		char to_st0[] = {(char)0xd8, (char)operation[n / 20]};
		char to_st1[] = {(char)0xdc, (char)operation[n / 20]};

		push(t, 3);
		push(t, 2);
		assert_int_equal(run_bytes(t, to_st0, 2), X86_OK);
		assert_host_stack_empty();
		assert_true(pop(t) == want[n / 20]);
		push(t, 2);
		assert_int_equal(run_bytes(t, to_st1, 2), X86_OK);
		assert_host_stack_empty();
		assert_true(pop(t) == 2);
		assert_true(pop(t) == want[n / 20]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_arithmetic),
		TEST(test_memory_forms),
		TEST(test_compare_and_move),
		TEST(test_unmasked),
		TEST(test_unmasked_store),
		TEST(test_stack_fault),
		TEST(test_control),
		TEST(test_environment),
		TEST(test_top_moves),
		TEST(test_host_agrees),
		TEST(test_long_runs),
	};

	return cmocka_run_group_tests_name("x87", tests, NULL, NULL);
}
