/*
 * Runs single instructions, given as bytes, on the processor of x86_cpu.h: 64-bit mode, paging off.
 */
#ifndef LODGE_TESTS_X86_RUN_H
#define LODGE_TESTS_X86_RUN_H

#include "x86_cpu.h"

#define DATA 0x20000u /* where tests keep memory operands; RBX points there */

static int run_setup(void **state)
{
	struct test_cpu *t = test_cpu_new();
	struct x86_state *s = &t->cpu.s;

	s->msr.efer |= X86_EFER_LMA | X86_EFER_LME;
	test_protected(t, 64, 0);
	s->cr0 = (s->cr0 & ~(uint64_t)(X86_CR0_EM | X86_CR0_TS)) | X86_CR0_NE | X86_CR0_MP;
	s->cr4 |= X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE;
	s->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
	s->fpu = (struct x86_fpu){.fcw = 0x37f, .mxcsr = 0x1f80};
	s->reg[X86_RBX] = DATA;
	s->reg[X86_RIP] = 0x1000;
	*state = t;
	return 0;
}

static int run_teardown(void **state)
{
	test_cpu_free(*state);
	return 0;
}

static enum x86_status run_bytes(struct test_cpu *t, const char *bytes, unsigned count)
{
	struct x86_cpu *cpu = &t->cpu;
	uint64_t rip = cpu->s.reg[X86_RIP];
	struct x86_insn insn;
	enum x86_status status;

	if (x86_decode(&insn, (const uint8_t *)bytes, count, cpu->mode, cpu->real, NULL) !=
		X86_DECODE_OK)
		fail_msg("not decoded: %02x %02x", (uint8_t)bytes[0], (uint8_t)bytes[1]);
	assert_int_equal(insn.len, count);
	cpu->s.reg[X86_RIP] += insn.len;
	status = x86_check_row(cpu, &insn);
	if (status == X86_OK)
		status = insn.fn(cpu, &insn);
	if (status == X86_FAULT)
		cpu->s.reg[X86_RIP] = rip;
	return status;
}
#define RUN(t, bytes)	 run_bytes(t, bytes, sizeof(bytes) - 1)
#define RUN_OK(t, bytes) assert_int_equal(RUN(t, bytes), X86_OK)
#define RUN_FAULT(t, bytes, number)                                \
	do {                                                       \
		assert_int_equal(RUN(t, bytes), X86_FAULT);        \
		assert_int_equal((t)->cpu.fault.vector, (number)); \
	} while (0)

#define TEST(name) cmocka_unit_test_setup_teardown(name, run_setup, run_teardown)

#endif
