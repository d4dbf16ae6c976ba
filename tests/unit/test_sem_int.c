/*
 * Integer instructions and memory access: the rules that comparing with the processor in ring 3 cannot show
 * (faults that must change nothing, modes, segment limits, devices, locks), and edges of flags and counts.
 */
#include "tests/unit/x86_cpu.h"

#include "isa/x86/insn.h"

#include <pthread.h>

#define DATA  0x20000ull
#define STACK 0x80000ull
#define HERE  0x1000ull /* RIP of the instruction under test */

static unsigned exclusive_count, mmio_writes;
static uint64_t mmio_value;

static void count_exclusive(struct x86_cpu *cpu)
{
	exclusive_count++;
}

static uint64_t device_read(struct x86_cpu *cpu, gpa_t gpa, unsigned size)
{
	return mmio_value >> (gpa & 7) * 8;
}

static void device_write(struct x86_cpu *cpu, gpa_t gpa, unsigned size, uint64_t value)
{
	mmio_writes++;
	mmio_value = value;
}

static struct x86_env_ops counting_env;

static int setup(void **state)
{
	struct test_cpu *t = test_cpu_new();
	counting_env = test_env;
	counting_env.exclusive_begin = count_exclusive;
	counting_env.mmio_read = device_read;
	counting_env.mmio_write = device_write;
	t->cpu.env = &counting_env;
	exclusive_count = mmio_writes = 0;
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	test_cpu_free(*state);
	return 0;
}

/* Flat code of this width at this privilege, with a stack. */
static struct x86_cpu *mode(void **state, unsigned bits, unsigned cpl)
{
	struct test_cpu *t = *state;
	if (bits == 64)
		t->cpu.s.msr.efer |= X86_EFER_LME | X86_EFER_LMA;
	test_protected(t, bits, cpl);
	memset(t->cpu.s.reg, 0, sizeof(t->cpu.s.reg));
	t->cpu.s.reg[X86_RSP] = STACK;
	t->cpu.s.rflags = X86_FLAGS_FIXED;
	return &t->cpu;
}

static enum x86_status run(struct x86_cpu *cpu, const char *bytes, unsigned size)
{
	struct x86_insn insn;
	enum x86_decode_result r =
		x86_decode(&insn, (const uint8_t *)bytes, size, cpu->mode, cpu->real, NULL);
	assert_int_equal(r, X86_DECODE_OK);
	assert_int_equal(insn.len, size);
	cpu->s.reg[X86_RIP] = HERE + insn.len;
	return insn.fn(cpu, &insn);
}
#define RUN(bytes) run(cpu, bytes, sizeof(bytes) - 1)

/* The instruction must fault with this vector and leave registers and flags alone. */
static void run_faults(struct x86_cpu *cpu, const char *bytes, unsigned size, unsigned vector)
{
	struct x86_state before = cpu->s;
	assert_int_equal(run(cpu, bytes, size), X86_FAULT);
	assert_int_equal(cpu->fault.vector, vector);
	before.reg[X86_RIP] = cpu->s.reg[X86_RIP];
	assert_memory_equal(before.reg, cpu->s.reg, sizeof(before.reg));
	assert_int_equal(before.rflags, cpu->s.rflags);
}
#define FAULTS(bytes, vector) run_faults(cpu, bytes, sizeof(bytes) - 1, vector)

static uint64_t arith(const struct x86_cpu *cpu)
{
	return cpu->s.rflags & X86_FLAGS_ARITH;
}

static void *at(struct x86_cpu *cpu, gpa_t gpa)
{
	return test_host(test_of(cpu), gpa);
}

static uint64_t get64(struct x86_cpu *cpu, gpa_t gpa)
{
	uint64_t value;
	memcpy(&value, at(cpu, gpa), 8);
	return value;
}

static void put64(struct x86_cpu *cpu, gpa_t gpa, uint64_t value)
{
	memcpy(at(cpu, gpa), &value, 8);
}

/* ---- flags ---- */

static void test_shift_counts(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	static const struct {
		unsigned count;
		uint64_t in, out;
		bool cf;
	} shl32[] = {
		{ 1, 0x80000001, 2, true }, { 31, 3, 0x80000000, true },
		{ 33, 0x80000001, 2, true }, /* 33 is 1 */
	};
	for (unsigned i = 0; i < ARRAY_SIZE(shl32); i++) {
		cpu->s.reg[X86_RAX] = 0xffffffff00000000 | shl32[i].in;
		cpu->s.reg[X86_RCX] = shl32[i].count;
		assert_int_equal(RUN("\xd3\xe0"), X86_OK); /* shl eax, cl */
		assert_int_equal(cpu->s.reg[X86_RAX], shl32[i].out);
		assert_int_equal(!!(cpu->s.rflags & X86_CF), shl32[i].cf);
	}
	/* A count of 0 (32 for 32 bits) keeps all flags, and still clears the upper half. */
	cpu->s.rflags |= X86_FLAGS_ARITH;
	cpu->s.reg[X86_RAX] = 0xffffffff00000005;
	cpu->s.reg[X86_RCX] = 32;
	RUN("\xd3\xe8"); /* shr eax, cl */
	assert_int_equal(cpu->s.reg[X86_RAX], 5);
	assert_int_equal(arith(cpu), X86_FLAGS_ARITH);
	/* 8 bits by 9: everything is gone, CF too. */
	cpu->s.reg[X86_RAX] = 0xff;
	cpu->s.reg[X86_RCX] = 9;
	RUN("\xd2\xe0"); /* shl al, cl */
	assert_int_equal(cpu->s.reg[X86_RAX], 0);
	assert_int_equal(cpu->s.rflags & (X86_CF | X86_ZF), X86_ZF);
	/* 64 bits by 63. */
	cpu->s.reg[X86_RAX] = 1ull << 63;
	cpu->s.reg[X86_RCX] = 63;
	RUN("\x48\xd3\xf8"); /* sar rax, cl */
	assert_int_equal(cpu->s.reg[X86_RAX], ~0ull);
}

static void test_rotates(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	/* ROL of 8 bits by 8: value the same, CF = bit 0, SF and its kin kept. */
	cpu->s.rflags |= X86_SF | X86_ZF;
	cpu->s.reg[X86_RAX] = 0x81;
	RUN("\xc0\xc0\x08"); /* rol al, 8 */
	assert_int_equal(cpu->s.reg[X86_RAX], 0x81);
	assert_int_equal(arith(cpu), X86_SF | X86_ZF | X86_CF);
	/* ROR by 1: OF = the two top bits differ. */
	cpu->s.reg[X86_RAX] = 0x01;
	RUN("\xd0\xc8"); /* ror al, 1 */
	assert_int_equal(cpu->s.reg[X86_RAX], 0x80);
	assert_int_equal(cpu->s.rflags & (X86_OF | X86_CF), X86_OF | X86_CF);
	/* RCL of 8 bits by 9 is the identity, but OF is what a last step would have made it. */
	cpu->s.rflags = X86_FLAGS_FIXED | X86_CF;
	cpu->s.reg[X86_RAX] = 0x5a;
	RUN("\xc0\xd0\x09"); /* rcl al, 9 */
	assert_int_equal(cpu->s.reg[X86_RAX], 0x5a);
	assert_int_equal(arith(cpu), X86_CF | X86_OF);
	/* RCR of 64 bits by 1 and by 63. */
	cpu->s.reg[X86_RAX] = 2;
	RUN("\x48\xd1\xd8"); /* rcr rax, 1 */
	assert_int_equal(cpu->s.reg[X86_RAX], 0x8000000000000001);
	assert_int_equal(cpu->s.rflags & X86_CF, 0);
	RUN("\x48\xc1\xd8\x3f"); /* rcr rax, 63: is rcl by 2 */
	assert_int_equal(cpu->s.reg[X86_RAX], 5);
}

static void test_carry_chain(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	uint64_t seed = 88172645463325252ull;
	for (unsigned i = 0; i < 2000; i++) {
		unsigned __int128 v[2];
		for (unsigned k = 0; k < 4; k++) {
			seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
			((uint64_t *)v)[k] = i & 1 ? seed : (seed & 1 ? ~0ull : seed & 2);
		}
		cpu->s.reg[X86_RAX] = (uint64_t)v[0];
		cpu->s.reg[X86_RDX] = (uint64_t)(v[0] >> 64);
		cpu->s.reg[X86_RBX] = (uint64_t)v[1];
		cpu->s.reg[X86_RCX] = (uint64_t)(v[1] >> 64);
		RUN("\x48\x01\xd8"); /* add rax, rbx */
		RUN("\x48\x11\xca"); /* adc rdx, rcx */
		unsigned __int128 sum = v[0] + v[1];
		assert_int_equal(cpu->s.reg[X86_RAX], (uint64_t)sum);
		assert_int_equal(cpu->s.reg[X86_RDX], (uint64_t)(sum >> 64));
		assert_int_equal(cpu->s.rflags & X86_CF, sum < v[0]);
		RUN("\x48\x29\xd8"); /* sub rax, rbx */
		RUN("\x48\x19\xca"); /* sbb rdx, rcx */
		assert_int_equal(cpu->s.reg[X86_RAX], (uint64_t)v[0]);
		assert_int_equal(cpu->s.reg[X86_RDX], (uint64_t)(v[0] >> 64));
		assert_int_equal(cpu->s.rflags & X86_CF, sum < v[1]);
	}
}

static void test_inc_keeps_cf(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	cpu->s.rflags |= X86_CF;
	cpu->s.reg[X86_RAX] = 0xff;
	RUN("\xfe\xc0"); /* inc al */
	assert_int_equal(arith(cpu), X86_CF | X86_ZF | X86_AF | X86_PF);
	cpu->s.rflags &= ~(uint64_t)X86_CF;
	RUN("\xfe\xc8"); /* dec al */
	assert_int_equal(arith(cpu), X86_SF | X86_AF | X86_PF);
	cpu->s.reg[X86_RAX] = 0x7fffffff;
	RUN("\xff\xc0"); /* inc eax */
	assert_true(cpu->s.rflags & X86_OF);
	/* NEG: CF = operand was not 0. */
	cpu->s.reg[X86_RAX] = 0;
	RUN("\x48\xf7\xd8"); /* neg rax */
	assert_int_equal(arith(cpu), X86_ZF | X86_PF);
}

static void test_high_bytes(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	cpu->s.reg[X86_RAX] = 0x1122334455667788;
	cpu->s.reg[X86_RBX] = 0x0000000000000100;
	RUN("\x00\xfc"); /* add ah, bh */
	assert_int_equal(cpu->s.reg[X86_RAX], 0x1122334455667888);
	RUN("\x40\x00\xc4"); /* add spl, al */
	assert_int_equal(cpu->s.reg[X86_RSP], STACK + 0x88);
}

/* ---- division ---- */

static void test_division_faults(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	FAULTS("\x48\xf7\xf3", X86_DE); /* div rbx: 0 */
	cpu->s.reg[X86_RBX] = 5;
	cpu->s.reg[X86_RDX] = 5;
	FAULTS("\x48\xf7\xf3", X86_DE); /* quotient of 2^64 */
	FAULTS("\xf7\xf3", X86_DE);
	cpu->s.reg[X86_RDX] = 4;
	assert_int_equal(RUN("\x48\xf7\xf3"), X86_OK);
	assert_int_equal(cpu->s.reg[X86_RAX], 0xcccccccccccccccc);
	assert_int_equal(cpu->s.reg[X86_RDX], 4);
	/* INT_MIN / -1, in every size. */
	cpu->s.reg[X86_RBX] = ~0ull;
	cpu->s.reg[X86_RAX] = 1ull << 63;
	cpu->s.reg[X86_RDX] = ~0ull;
	FAULTS("\x48\xf7\xfb", X86_DE); /* idiv rbx */
	cpu->s.reg[X86_RAX] = 0x80000000;
	FAULTS("\xf7\xfb", X86_DE);
	cpu->s.reg[X86_RAX] = 0x8000;
	FAULTS("\x66\xf7\xfb", X86_DE);
	cpu->s.reg[X86_RAX] = 0xff80;
	FAULTS("\xf6\xfb", X86_DE);
	/* The most negative dividend of 128 bits. */
	cpu->s.reg[X86_RAX] = 0;
	cpu->s.reg[X86_RDX] = 1ull << 63;
	FAULTS("\x48\xf7\xfb", X86_DE);
	/* -7 / 2 = -3 rest -1; the largest quotient that fits. */
	cpu->s.reg[X86_RAX] = (uint64_t)-7;
	cpu->s.reg[X86_RDX] = ~0ull;
	cpu->s.reg[X86_RBX] = 2;
	assert_int_equal(RUN("\x48\xf7\xfb"), X86_OK);
	assert_int_equal(cpu->s.reg[X86_RAX], (uint64_t)-3);
	assert_int_equal(cpu->s.reg[X86_RDX], (uint64_t)-1);
	cpu->s.reg[X86_RAX] = 0;
	cpu->s.reg[X86_RDX] = ~0ull; /* -2^64 / 2 = INT64_MIN */
	assert_int_equal(RUN("\x48\xf7\xfb"), X86_OK);
	assert_int_equal(cpu->s.reg[X86_RAX], 1ull << 63);
}

/* ---- locked and exchange instructions ---- */

static void test_cmpxchg(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	cpu->s.reg[X86_RDI] = DATA;
	put64(cpu, DATA, 0x1111111122222222);
	cpu->s.reg[X86_RAX] = 0xdeadbeef22222222;
	cpu->s.reg[X86_RBX] = 0x33333333;
	assert_int_equal(RUN("\xf0\x0f\xb1\x1f"), X86_OK); /* lock cmpxchg [rdi], ebx */
	assert_int_equal(get64(cpu, DATA), 0x1111111133333333);
	assert_int_equal(cpu->s.reg[X86_RAX], 0xdeadbeef22222222); /* equal: not written */
	assert_true(cpu->s.rflags & X86_ZF);
	assert_int_equal(RUN("\xf0\x0f\xb1\x1f"), X86_OK);
	assert_int_equal(cpu->s.reg[X86_RAX], 0x33333333);
	assert_false(cpu->s.rflags & X86_ZF);
	/* Over the end of a page: all other processors are held. */
	cpu->s.reg[X86_RDI] = DATA + 0xffe;
	cpu->s.reg[X86_RAX] = 0;
	assert_int_equal(RUN("\xf0\x0f\xb1\x1f"), X86_OK);
	assert_int_equal(exclusive_count, 1);
	assert_int_equal((uint32_t)get64(cpu, DATA + 0xffe), 0x33333333);
	assert_int_equal(RUN("\xf0\x01\x1f"), X86_OK); /* lock add [rdi], ebx */
	assert_int_equal((uint32_t)get64(cpu, DATA + 0xffe), 0x66666666);
}

static void test_cmpxchg_wide(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	cpu->s.reg[X86_RDI] = DATA;
	cpu->s.reg[X86_RBX] = 1;
	cpu->s.reg[X86_RCX] = 2;
	cpu->s.rflags |= X86_CF | X86_SF;
	assert_int_equal(RUN("\xf0\x48\x0f\xc7\x0f"), X86_OK); /* lock cmpxchg16b [rdi] */
	assert_int_equal(arith(cpu), X86_CF | X86_SF | X86_ZF);
	assert_int_equal(get64(cpu, DATA), 1);
	assert_int_equal(get64(cpu, DATA + 8), 2);
	assert_int_equal(RUN("\x48\x0f\xc7\x0f"), X86_OK);
	assert_int_equal(arith(cpu), X86_CF | X86_SF);
	assert_int_equal(cpu->s.reg[X86_RAX], 1);
	assert_int_equal(cpu->s.reg[X86_RDX], 2);
	cpu->s.reg[X86_RDI] = DATA + 8;
	FAULTS("\x48\x0f\xc7\x0f", X86_GP);
	/* CMPXCHG8B needs no alignment. */
	put64(cpu, DATA + 3, 0x0000000200000001);
	cpu->s.reg[X86_RDI] = DATA + 3;
	assert_int_equal(RUN("\x0f\xc7\x0f"), X86_OK);
	assert_int_equal(get64(cpu, DATA + 3), 0x0000000200000001);
	assert_true(cpu->s.rflags & X86_ZF);
}

static void test_xchg_xadd(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	cpu->s.reg[X86_RDI] = DATA;
	put64(cpu, DATA, 7);
	cpu->s.reg[X86_RAX] = 5;
	RUN("\x48\x87\x07"); /* xchg [rdi], rax */
	assert_int_equal(get64(cpu, DATA), 5);
	assert_int_equal(cpu->s.reg[X86_RAX], 7);
	RUN("\xf0\x48\x0f\xc1\x07"); /* lock xadd [rdi], rax */
	assert_int_equal(get64(cpu, DATA), 12);
	assert_int_equal(cpu->s.reg[X86_RAX], 5);
	cpu->s.reg[X86_RAX] = 3;
	RUN("\x48\x0f\xc1\xc0"); /* xadd rax, rax */
	assert_int_equal(cpu->s.reg[X86_RAX], 6);
}

#define TURNS 400000

static pthread_barrier_t both_ready;

/* LOCK INC of three counters: aligned, not aligned, over the end of a cache line. */
static void *increment(void *arg)
{
	struct x86_cpu *cpu = arg;
	pthread_barrier_wait(&both_ready);
	for (unsigned i = 0; i < TURNS; i++) {
		RUN("\xf0\x48\xff\x07");		 /* lock inc qword [rdi] */
		RUN("\xf0\xff\x47\x0b");		 /* lock inc dword [rdi + 11] */
		RUN("\xf0\x66\xff\x47\x3f"); /* lock inc word [rdi + 63] */
	}
	return NULL;
}

static void test_locked_from_two_threads(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	struct x86_cpu *other = malloc(sizeof(*other));
	pthread_t thread;

	cpu->s.reg[X86_RDI] = DATA;
	assert_non_null(other);
	assert_int_equal(x86_cpu_init(other, cpu->memory, cpu->cpuid, cpu->env, cpu->env_opaque), 0);
	x86_cpu_load(other, &cpu->s);
	assert_int_equal(pthread_barrier_init(&both_ready, NULL, 2), 0);
	assert_int_equal(pthread_create(&thread, NULL, increment, other), 0);
	increment(cpu);
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&both_ready);
	assert_int_equal(get64(cpu, DATA), 2 * TURNS);
	assert_int_equal((uint32_t)get64(cpu, DATA + 11), 2 * TURNS);
	assert_int_equal((uint16_t)get64(cpu, DATA + 63), (uint16_t)(2 * TURNS));
	x86_cpu_done(other);
	free(other);
}

/* ---- memory that is not plain RAM ---- */

static void test_rom_and_device(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	const gpa_t device = GIB(1);
	memset(at(cpu, TEST_ROM_BASE), 0x11, 16);
	cpu->s.reg[X86_RDI] = TEST_ROM_BASE;
	cpu->s.reg[X86_RBX] = 1;
	assert_int_equal(RUN("\x48\x01\x1f"), X86_OK); /* add [rdi], rbx */
	assert_int_equal(RUN("\xf0\x48\x01\x1f"), X86_OK);
	assert_int_equal(get64(cpu, TEST_ROM_BASE), 0x1111111111111111);
	cpu->s.reg[X86_RAX] = 0;
	RUN("\x48\x03\x07"); /* add rax, [rdi] */
	assert_int_equal(cpu->s.reg[X86_RAX], 0x1111111111111111);
	/* What was written went to the bus: a flash lies there. */
	assert_int_equal(mmio_writes, 2);
	mmio_writes = 0;
	/* A device: read, then write, in its own sizes. */
	mmio_value = 40;
	cpu->s.reg[X86_RDI] = device;
	assert_int_equal(RUN("\xf0\x01\x1f"), X86_OK); /* lock add [rdi], ebx */
	assert_int_equal(mmio_value, 41);
	assert_int_equal(mmio_writes, 1);
	assert_int_equal(RUN("\x01\x1f"), X86_OK);
	assert_int_equal(mmio_value, 42);
	mmio_writes = 0;
	cpu->s.reg[X86_RDI] = device + 3;
	RUN("\x48\x89\x1f"); /* mov [rdi], rbx: 1 + 4 + 2 + 1 bytes */
	assert_int_equal(mmio_writes, 4);
}

static void test_addresses(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	cpu->s.reg[X86_RDI] = 0x0000800000000000;
	cpu->s.reg[X86_RBP] = 0x00007ffffffffffc;
	FAULTS("\x48\x8b\x07", X86_GP);		/* mov rax, [rdi] */
	FAULTS("\x48\x8b\x45\x00", X86_SS_EXC); /* mov rax, [rbp]: its end is not canonical */
	cpu->s.reg[X86_RSP] = 0x0000800000000004;
	FAULTS("\x50", X86_SS_EXC); /* push rax */
}

static void test_alignment_check(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 3);
	cpu->s.reg[X86_RDI] = DATA + 1;
	assert_int_equal(RUN("\x8b\x07"), X86_OK); /* mov eax, [rdi] */
	cpu->s.cr0 |= X86_CR0_AM;
	cpu->s.rflags |= X86_AC;
	x86_cpu_refresh(cpu);
	FAULTS("\x8b\x07", X86_AC_EXC);
	assert_int_equal(RUN("\x8a\x07"), X86_OK); /* mov al, [rdi] */
	FAULTS("\xf0\x01\x07", X86_AC_EXC);	   /* lock add [rdi], eax */
	/* POPF clears AC: the check is off at once. */
	put64(cpu, STACK, X86_FLAGS_FIXED);
	assert_int_equal(RUN("\x9d"), X86_BOUNDARY);
	assert_int_equal(RUN("\x8b\x07"), X86_OK);
}

/* ---- stack ---- */

static void test_push_pop(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	RUN("\x54"); /* push rsp */
	assert_int_equal(get64(cpu, STACK - 8), STACK);
	RUN("\x5c"); /* pop rsp */
	assert_int_equal(cpu->s.reg[X86_RSP], STACK);
	put64(cpu, STACK, 0x77);
	RUN("\x8f\x04\x24"); /* pop [rsp]: address after the increment */
	assert_int_equal(get64(cpu, STACK + 8), 0x77);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK + 8);
	cpu->s.reg[X86_RDI] = 1ull << 50;
	FAULTS("\x8f\x07", X86_GP); /* pop [rdi]: rSP must not move */
	RUN("\x6a\xff");	    /* push -1 */
	assert_int_equal(get64(cpu, STACK), ~0ull);
	RUN("\x66\x6a\xff");
	assert_int_equal(cpu->s.reg[X86_RSP], STACK - 2);
}

static void test_stack16(void **state)
{
	struct x86_cpu *cpu = mode(state, 16, 0);
	cpu->s.reg[X86_RSP] = 0xabcd0000;
	cpu->s.reg[X86_RAX] = 0x1234;
	assert_int_equal(RUN("\x50"), X86_OK); /* push ax: SP wraps, the upper half stays */
	assert_int_equal(cpu->s.reg[X86_RSP], 0xabcdfffe);
	assert_int_equal(*(uint16_t *)at(cpu, 0xfffe), 0x1234);
	RUN("\x5b"); /* pop bx */
	assert_int_equal(cpu->s.reg[X86_RSP], 0xabcd0000);
	assert_int_equal(cpu->s.reg[X86_RBX], 0x1234);
}

static void test_pusha(void **state)
{
	struct x86_cpu *cpu = mode(state, 32, 0);
	for (unsigned i = 0; i < 8; i++)
		if (i != X86_RSP)
			cpu->s.reg[i] = 0x100 + i;
	struct x86_state before = cpu->s;
	RUN("\x60");
	assert_int_equal(*(uint32_t *)at(cpu, STACK - 4), 0x100);
	assert_int_equal(*(uint32_t *)at(cpu, STACK - 20), STACK);
	memset(cpu->s.reg, 0x5a, X86_RSP * 8);
	RUN("\x61");
	assert_memory_equal(before.reg, cpu->s.reg, 8 * 8);
	/* Past the segment's limit in the middle: nothing. */
	cpu->s.seg[X86_SS].limit = STACK + 100;
	x86_cpu_refresh(cpu);
	cpu->s.reg[X86_RSP] = STACK + 120;
	FAULTS("\x60", X86_SS_EXC);
}

static void test_enter_leave(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	const uint64_t outer = STACK + 0x100;
	cpu->s.reg[X86_RBP] = outer;
	put64(cpu, outer - 8, 0xaaaa);
	put64(cpu, outer - 16, 0xbbbb);
	RUN("\xc8\x20\x00\x03"); /* enter 32, 3 */
	assert_int_equal(cpu->s.reg[X86_RBP], STACK - 8);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK - 8 - 3 * 8 - 32);
	assert_int_equal(get64(cpu, STACK - 8), outer);
	assert_int_equal(get64(cpu, STACK - 16), 0xaaaa);
	assert_int_equal(get64(cpu, STACK - 24), 0xbbbb);
	assert_int_equal(get64(cpu, STACK - 32), STACK - 8);
	RUN("\xc9");
	assert_int_equal(cpu->s.reg[X86_RSP], STACK);
	assert_int_equal(cpu->s.reg[X86_RBP], outer);
}

/* ---- PUSHF, POPF ---- */

static void test_popf_privilege(void **state)
{
	const uint64_t all = 0x003f7fd7; /* every flag bit set */
	struct x86_cpu *cpu = mode(state, 64, 0);
	cpu->s.rflags |= X86_RF;
	put64(cpu, STACK, all & ~(uint64_t)X86_TF);
	assert_int_equal(RUN("\x9d"), X86_BOUNDARY);
	assert_int_equal(cpu->s.rflags,
		all & ~(uint64_t)(X86_TF | X86_RF | X86_VM | X86_VIF | X86_VIP));
	/* CPL 3, IOPL 0: IF and IOPL stay. */
	cpu = mode(state, 64, 3);
	put64(cpu, STACK, all & ~(uint64_t)X86_TF);
	RUN("\x9d");
	assert_int_equal(cpu->s.rflags & (X86_IF | X86_IOPL | X86_VM | X86_ID), X86_ID);
	/* CPL 3, IOPL 3: IF changes. */
	cpu = mode(state, 64, 3);
	cpu->s.rflags |= X86_IOPL;
	put64(cpu, STACK, X86_IF);
	RUN("\x9d");
	assert_int_equal(cpu->s.rflags, X86_IF | X86_IOPL | X86_FLAGS_FIXED);
	/* 16 bits leave the upper flags. */
	cpu = mode(state, 64, 0);
	cpu->s.rflags |= X86_ID;
	put64(cpu, STACK, X86_CF);
	RUN("\x66\x9d");
	assert_int_equal(cpu->s.rflags, X86_ID | X86_CF | X86_FLAGS_FIXED);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK + 2);
	/* Setting TF takes the engine off the fast path. */
	cpu->s.reg[X86_RSP] = STACK;
	put64(cpu, STACK, X86_TF);
	RUN("\x9d");
	assert_true(cpu->slow_path);
}

static struct x86_cpu *v86(void **state)
{
	struct x86_cpu *cpu = mode(state, 16, 3);
	for (unsigned i = 0; i < 6; i++)
		cpu->s.seg[i] = (struct x86_segment){ .limit = 0xffff,
			.attr = X86_SEG_P | X86_SEG_S | X86_SEG_WRITE | X86_SEG_ACCESSED | X86_SEG_DPL };
	cpu->s.rflags = X86_FLAGS_FIXED | X86_VM;
	cpu->s.reg[X86_RSP] = 0x8000;
	x86_cpu_refresh(cpu);
	return cpu;
}

static void test_flags_in_v86(void **state)
{
	struct x86_cpu *cpu = v86(state);
	FAULTS("\x9c", X86_GP);
	FAULTS("\x9d", X86_GP);
	cpu->s.cr4 |= X86_CR4_VME;
	FAULTS("\x66\x9c", X86_GP); /* 32 bits are never virtualized */
	FAULTS("\x66\x9d", X86_GP);
	cpu->s.rflags |= X86_VIF;
	assert_int_equal(RUN("\x9c"), X86_OK);
	assert_int_equal(*(uint16_t *)at(cpu, 0x7ffe), X86_FLAGS_FIXED | X86_IF | X86_IOPL);
	*(uint16_t *)at(cpu, 0x7ffe) = X86_CF;
	assert_int_equal(RUN("\x9d"), X86_BOUNDARY);
	assert_int_equal(cpu->s.rflags, X86_FLAGS_FIXED | X86_VM | X86_CF);
	/* Enabling interrupts while one is pending, or single-stepping: to the monitor. */
	cpu->s.rflags |= X86_VIP;
	*(uint16_t *)at(cpu, 0x8000) = X86_IF;
	FAULTS("\x9d", X86_GP);
	cpu->s.rflags &= ~(uint64_t)X86_VIP;
	assert_int_equal(RUN("\x9d"), X86_BOUNDARY);
	assert_true(cpu->s.rflags & X86_VIF);
	assert_false(cpu->s.rflags & X86_IF);
}

/* ---- branches ---- */

static void test_branch_targets(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	cpu->s.reg[X86_RAX] = 0x0000800000000000;
	FAULTS("\xff\xe0", X86_GP); /* jmp rax */
	FAULTS("\xff\xd0", X86_GP); /* call rax: nothing pushed */
	put64(cpu, STACK, 0x0000800000000000);
	FAULTS("\xc3", X86_GP);
	put64(cpu, STACK, 0xffff800000001234);
	assert_int_equal(RUN("\xc2\x10\x00"), X86_JUMP); /* ret 16 */
	assert_int_equal(cpu->s.reg[X86_RIP], 0xffff800000001234);
	assert_int_equal(cpu->s.reg[X86_RSP], STACK + 24);
	/* Protected mode: CS's limit; the counter of LOOP survives. */
	cpu = mode(state, 32, 0);
	cpu->s.msr.efer = 0;
	cpu->s.seg[X86_CS].limit = 0x1fff;
	x86_cpu_refresh(cpu);
	cpu->s.reg[X86_RCX] = 5;
	FAULTS("\xe9\x00\x10\x00\x00", X86_GP); /* jmp 0x2005 */
	cpu->s.seg[X86_CS].limit = HERE - 1;
	FAULTS("\xe2\x00", X86_GP); /* loop: target over the limit */
	/* 16-bit operand size cuts the target. */
	cpu->s.seg[X86_CS].limit = 0xffffffff;
	cpu->s.reg[X86_RAX] = 0x12345678;
	assert_int_equal(RUN("\x66\xff\xe0"), X86_JUMP); /* jmp ax */
	assert_int_equal(cpu->s.reg[X86_RIP], 0x5678);
}

static void test_loop_counter_width(void **state)
{
	struct x86_cpu *cpu = mode(state, 32, 0);
	cpu->s.msr.efer = 0;
	x86_cpu_refresh(cpu);
	cpu->s.reg[X86_RCX] = 0x00010001;
	assert_int_equal(RUN("\x67\xe2\xfe"), X86_OK); /* loop by CX */
	assert_int_equal(cpu->s.reg[X86_RCX], 0x00010000);
	assert_int_equal(RUN("\x67\xe3\x10"), X86_JUMP); /* jcxz */
	assert_int_equal(RUN("\xe3\x10"), X86_OK);	 /* jecxz */
}

/* ---- bit strings ---- */

static void test_bit_strings(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	cpu->s.reg[X86_RDI] = DATA + 64;
	cpu->s.reg[X86_RAX] = (uint64_t)-1;
	assert_int_equal(RUN("\x48\x0f\xab\x07"), X86_OK); /* bts [rdi], rax */
	assert_int_equal(get64(cpu, DATA + 56), 1ull << 63);
	cpu->s.reg[X86_RAX] = (uint32_t)-33; /* a 32-bit index is signed too */
	RUN("\x0f\xab\x07");
	assert_int_equal(get64(cpu, DATA + 56), 1ull << 63 | 1ull << 31);
	cpu->s.reg[X86_RAX] = 1000;
	RUN("\xf0\x0f\xbb\x07"); /* lock btc */
	assert_int_equal(get64(cpu, DATA + 64 + 1000 / 64 * 8), 1ull << 1000 % 64);
	RUN("\x0f\xa3\x07"); /* bt */
	assert_true(cpu->s.rflags & X86_CF);
	RUN("\x0f\xba\x37\x3f"); /* btr dword [rdi], 63: bit 31 of the same word */
	assert_false(cpu->s.rflags & X86_CF);
	cpu->s.reg[X86_RAX] = 0x8000000000000000; /* far below: not canonical */
	FAULTS("\x48\x0f\xab\x07", X86_GP);
}

/* ---- strings ---- */

static enum x86_status run_all(struct x86_cpu *cpu, const char *bytes, unsigned size, unsigned *ret_calls)
{
	enum x86_status status;
	*ret_calls = 0;
	do {
		status = run(cpu, bytes, size);
		++*ret_calls;
		assert_true(*ret_calls < 100000);
	} while (status == X86_REPEAT);
	return status;
}
#define RUN_ALL(bytes) run_all(cpu, bytes, sizeof(bytes) - 1, &calls)

static void fill_pattern(struct x86_cpu *cpu, gpa_t gpa, unsigned size)
{
	for (unsigned i = 0; i < size; i++)
		((uint8_t *)at(cpu, gpa))[i] = (uint8_t)(i * 7 + (i >> 8));
}

/* Copies by every element size, over page ends, in both directions, at every overlap. */
static void test_movs(void **state)
{
	static const char *const forms[] = { "\xf3\xa4", "\xf3\x66\xa5", "\xf3\xa5", "\xf3\x48\xa5" };
	static const int distances[] = { 1, 3, 8, -1, -3, -8, 5000, -5000, 4096 };
	struct x86_cpu *cpu = mode(state, 64, 0);
	static uint8_t expect[0x10000];
	unsigned calls;

	for (unsigned i = 0; i < ARRAY_SIZE(distances) * 8; i++) {
		unsigned shift = i & 3, size = 1 << shift, count = 9000 / size;
		bool down = i & 4;
		int distance = distances[i / 8];
		unsigned from = 0x5ff1, start = down ? from + (count - 1) * size : from;

		fill_pattern(cpu, DATA, sizeof(expect));
		memcpy(expect, at(cpu, DATA), sizeof(expect));
		for (unsigned k = 0; k < count; k++) {
			unsigned p = down ? start - k * size : start + k * size;
			uint8_t element[8];
			memcpy(element, expect + p, size);
			memcpy(expect + (int)p + distance, element, size);
		}
		cpu->s.reg[X86_RSI] = DATA + start;
		cpu->s.reg[X86_RDI] = DATA + start + (uint64_t)(int64_t)distance;
		cpu->s.reg[X86_RCX] = count;
		cpu->s.rflags = X86_FLAGS_FIXED | (down ? X86_DF : 0);
		assert_int_equal(run_all(cpu, forms[shift], (unsigned)strlen(forms[shift]), &calls), X86_OK);
		assert_memory_equal(expect, at(cpu, DATA), sizeof(expect));
		assert_int_equal(cpu->s.reg[X86_RCX], 0);
		uint64_t moved = (uint64_t)count * size;
		assert_int_equal(cpu->s.reg[X86_RSI], DATA + start + (down ? -moved : moved));
	}
}

static void test_string_interrupts(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	unsigned calls;
	cpu->s.reg[X86_RSI] = MIB(1);
	cpu->s.reg[X86_RDI] = MIB(2);
	cpu->s.reg[X86_RCX] = MIB(1);
	assert_int_equal(RUN_ALL("\xf3\xa4"), X86_OK);
	assert_in_range(calls, 256, 300); /* about one poll a page */
	/* Single step: one element a call. */
	cpu->s.rflags |= X86_TF;
	x86_cpu_refresh(cpu);
	cpu->s.reg[X86_RCX] = 5;
	assert_int_equal(RUN_ALL("\xf3\xaa"), X86_OK);
	assert_int_equal(calls, 5);
	cpu->s.reg[X86_RCX] = 0;
	assert_int_equal(RUN_ALL("\xf3\xaa"), X86_OK);
	assert_int_equal(calls, 1);
}

/* A fault in the middle keeps what is done. */
static void test_string_fault(void **state)
{
	struct x86_cpu *cpu = mode(state, 32, 0);
	unsigned calls;
	cpu->s.msr.efer = 0;
	cpu->s.seg[X86_ES].limit = DATA + 0x1fff;
	x86_cpu_refresh(cpu);
	cpu->s.reg[X86_RDI] = DATA + 1;
	cpu->s.reg[X86_RCX] = 0x1000;
	cpu->s.reg[X86_RAX] = 0x01020304;
	assert_int_equal(RUN_ALL("\xf3\xab"), X86_FAULT); /* rep stosd */
	assert_int_equal(cpu->fault.vector, X86_GP);
	assert_int_equal(cpu->s.reg[X86_RDI], DATA + 0x1ffd);
	assert_int_equal(cpu->s.reg[X86_RCX], 0x1000 - 0x7ff);
	assert_int_equal((uint32_t)get64(cpu, DATA + 0x1ff9), 0x01020304);
	assert_int_equal(*(uint8_t *)at(cpu, DATA + 0x1ffd), 0);
}

/* 16-bit addresses wrap inside the segment; the upper halves of the registers stay. */
static void test_string_wrap(void **state)
{
	struct x86_cpu *cpu = mode(state, 32, 0);
	unsigned calls;
	cpu->s.msr.efer = 0;
	x86_cpu_refresh(cpu);
	cpu->s.reg[X86_RDI] = 0xabcdfff0;
	cpu->s.reg[X86_RCX] = 0x12340020;
	cpu->s.reg[X86_RAX] = 0x77;
	assert_int_equal(RUN_ALL("\x67\xf3\xaa"), X86_OK);
	assert_int_equal(cpu->s.reg[X86_RDI], 0xabcd0010);
	assert_int_equal(cpu->s.reg[X86_RCX], 0x12340000);
	assert_int_equal(*(uint8_t *)at(cpu, 0xffff), 0x77);
	assert_int_equal(*(uint8_t *)at(cpu, 0), 0x77);
	assert_int_equal(*(uint8_t *)at(cpu, 0xf), 0x77);
	assert_int_equal(*(uint8_t *)at(cpu, 0x10000), 0);
}

static void test_scan_and_compare(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	unsigned calls;
	char *text = at(cpu, DATA);
	memset(text, 'a', 10000);
	text[9000] = 0;
	cpu->s.reg[X86_RDI] = DATA;
	cpu->s.reg[X86_RCX] = ~0ull;
	assert_int_equal(RUN_ALL("\xf2\xae"), X86_OK); /* strlen */
	assert_int_equal(~cpu->s.reg[X86_RCX] - 1, 9000);
	assert_true(cpu->s.rflags & X86_ZF);
	memset(at(cpu, DATA + 0x8000), 'a', 10000);
	cpu->s.reg[X86_RSI] = DATA;
	cpu->s.reg[X86_RDI] = DATA + 0x8000;
	cpu->s.reg[X86_RCX] = 10000;
	assert_int_equal(RUN_ALL("\xf3\xa6"), X86_OK); /* memcmp: 0 - 'a' */
	assert_int_equal(cpu->s.reg[X86_RSI], DATA + 9001);
	assert_int_equal(cpu->s.rflags & (X86_CF | X86_ZF | X86_SF), X86_CF | X86_SF);
	/* All equal: ends with the count. Count 0: flags stay. */
	cpu->s.reg[X86_RSI] = DATA;
	cpu->s.reg[X86_RDI] = DATA + 0x8000;
	cpu->s.reg[X86_RCX] = 9000;
	assert_int_equal(RUN_ALL("\xf3\xa6"), X86_OK);
	assert_int_equal(arith(cpu), X86_ZF | X86_PF);
	assert_int_equal(RUN_ALL("\xf2\xa6"), X86_OK);
	assert_int_equal(arith(cpu), X86_ZF | X86_PF);
	/* Backwards. */
	cpu->s.rflags |= X86_DF;
	cpu->s.reg[X86_RDI] = DATA + 9999;
	cpu->s.reg[X86_RCX] = 10000;
	assert_int_equal(RUN_ALL("\xf2\xae"), X86_OK);
	assert_int_equal(cpu->s.reg[X86_RDI], DATA + 8999);
}

static void test_stos_sizes(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	static const char *const forms[] = { "\xf3\xaa", "\xf3\x66\xab", "\xf3\xab", "\xf3\x48\xab" };
	unsigned calls;
	for (unsigned i = 0; i < 8; i++) {
		unsigned size = 1u << (i & 3), count = 5001;
		uint64_t value = i & 4 ? 0x2323232323232323 : 0x0102030405060708;
		memset(at(cpu, DATA), 0, 0x10000);
		cpu->s.reg[X86_RAX] = value;
		cpu->s.reg[X86_RDI] = DATA + 5;
		cpu->s.reg[X86_RCX] = count;
		run_all(cpu, forms[i & 3], (unsigned)strlen(forms[i & 3]), &calls);
		for (unsigned k = 0; k < count; k++)
			assert_memory_equal(at(cpu, DATA + 5 + k * size), &value, size);
		assert_int_equal(*(uint8_t *)at(cpu, DATA + 5 + count * size), 0);
		assert_int_equal(*(uint8_t *)at(cpu, DATA + 4), 0);
	}
}

/* ---- decimal, BOUND ---- */

static void test_decimal(void **state)
{
	struct x86_cpu *cpu = mode(state, 32, 0);
	for (unsigned a = 0; a < 100; a++) {
		for (unsigned b = 0; b < 100; b++) {
			uint64_t bcd_a = a / 10 << 4 | a % 10, bcd_b = b / 10 << 4 | b % 10;
			unsigned sum = (a + b) % 100, difference = (a + 100 - b) % 100;
			cpu->s.reg[X86_RAX] = bcd_a;
			cpu->s.reg[X86_RBX] = bcd_b;
			RUN("\x00\xd8"); /* add al, bl */
			RUN("\x27");	 /* daa */
			assert_int_equal(cpu->s.reg[X86_RAX], sum / 10 << 4 | sum % 10);
			assert_int_equal(cpu->s.rflags & X86_CF, a + b >= 100);
			cpu->s.reg[X86_RAX] = bcd_a;
			RUN("\x28\xd8"); /* sub al, bl */
			RUN("\x2f");	 /* das */
			assert_int_equal(cpu->s.reg[X86_RAX], difference / 10 << 4 | difference % 10);
			assert_int_equal(cpu->s.rflags & X86_CF, a < b);
		}
	}
	cpu->s.reg[X86_RAX] = 0x0009 + 0x0008;
	cpu->s.rflags |= X86_AF;
	RUN("\x37"); /* aaa */
	assert_int_equal(cpu->s.reg[X86_RAX], 0x0107);
	cpu->s.reg[X86_RAX] = 99;
	RUN("\xd4\x0a"); /* aam */
	assert_int_equal(cpu->s.reg[X86_RAX], 0x0909);
	RUN("\xd5\x0a"); /* aad */
	assert_int_equal(cpu->s.reg[X86_RAX], 99);
	FAULTS("\xd4\x00", X86_DE);
}

static void test_bound(void **state)
{
	struct x86_cpu *cpu = mode(state, 32, 0);
	const int32_t limits[2] = { -5, 10 };
	memcpy(at(cpu, DATA), limits, 8);
	cpu->s.reg[X86_RDI] = DATA;
	cpu->s.reg[X86_RAX] = (uint32_t)-5;
	assert_int_equal(RUN("\x62\x07"), X86_OK);
	cpu->s.reg[X86_RAX] = 10;
	assert_int_equal(RUN("\x62\x07"), X86_OK);
	cpu->s.reg[X86_RAX] = 11;
	FAULTS("\x62\x07", X86_BR);
	cpu->s.reg[X86_RAX] = (uint32_t)-6;
	FAULTS("\x62\x07", X86_BR);
}

/* ---- odds ---- */

static void test_odds(void **state)
{
	struct x86_cpu *cpu = mode(state, 64, 0);
	put64(cpu, DATA, 0x1122334455667788);
	/* An absolute offset of 64 bits. */
	assert_int_equal(RUN("\x48\xa1\x00\x00\x02\x00\x00\x00\x00\x00"), X86_OK);
	assert_int_equal(cpu->s.reg[X86_RAX], 0x1122334455667788);
	FAULTS("\x48\xa1\x00\x00\x00\x00\x00\x80\x00\x00", X86_GP);
	/* CMOV that does not move clears the upper half. */
	RUN("\x0f\x44\xc3"); /* cmovz eax, ebx */
	assert_int_equal(cpu->s.reg[X86_RAX], 0x55667788);
	/* BSF of 0 leaves the destination. */
	cpu->s.reg[X86_RAX] = ~0ull;
	RUN("\x0f\xbc\xc3"); /* bsf eax, ebx */
	assert_int_equal(cpu->s.reg[X86_RAX], ~0ull);
	/* CRC32C of "123456789" is the published check value. */
	memcpy(at(cpu, DATA), "123456789", 9);
	cpu->s.reg[X86_RAX] = 0xffffffff;
	cpu->s.reg[X86_RDI] = DATA;
	RUN("\xf2\x48\x0f\x38\xf1\x07");     /* crc32 rax, qword [rdi] */
	RUN("\xf2\x0f\x38\xf0\x47\x08");     /* crc32 eax, byte [rdi + 8] */
	assert_int_equal(cpu->s.reg[X86_RAX] ^ 0xffffffff, 0xe3069283);
	/* XLAT wraps with the address size; LEA truncates to it. */
	cpu->s.reg[X86_RBX] = DATA;
	cpu->s.reg[X86_RAX] = 0xffffff02;
	RUN("\xd7");
	assert_int_equal(cpu->s.reg[X86_RAX], 0xffffff00 | '3');
	assert_int_equal(RUN("\x0f\x0b"), X86_FAULT);
	assert_int_equal(cpu->fault.vector, X86_UD);
	assert_int_equal(RUN("\xf3\x90"), X86_BOUNDARY);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(shift_counts), TEST(rotates), TEST(carry_chain), TEST(inc_keeps_cf),
		TEST(high_bytes), TEST(division_faults), TEST(cmpxchg), TEST(cmpxchg_wide),
		TEST(xchg_xadd),
		TEST(locked_from_two_threads), TEST(rom_and_device), TEST(addresses), TEST(alignment_check),
		TEST(push_pop), TEST(stack16), TEST(pusha), TEST(enter_leave), TEST(popf_privilege),
		TEST(flags_in_v86), TEST(branch_targets), TEST(loop_counter_width), TEST(bit_strings),
		TEST(movs), TEST(string_interrupts), TEST(string_fault), TEST(string_wrap),
		TEST(scan_and_compare), TEST(stos_sizes), TEST(decimal), TEST(bound), TEST(odds),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
