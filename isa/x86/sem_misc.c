/*
 * Flags and the rest: CLC STC CMC CLD STD LAHF SAHF SALC, NOP and hints, fences, CLFLUSH, UD0-2, RDRAND,
 * RDSEED, RDPID (SDM 2). CLI and STI are elsewhere.
 */
#include "isa/x86/sem.h"

enum x86_status x86_sem_clc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	cpu->s.rflags &= ~(uint64_t)X86_CF;
	return X86_OK;
}

enum x86_status x86_sem_stc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	cpu->s.rflags |= X86_CF;
	return X86_OK;
}

enum x86_status x86_sem_cmc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	cpu->s.rflags ^= X86_CF;
	return X86_OK;
}

enum x86_status x86_sem_cld(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	cpu->s.rflags &= ~(uint64_t)X86_DF;
	return X86_OK;
}

enum x86_status x86_sem_std(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	cpu->s.rflags |= X86_DF;
	return X86_OK;
}

#define LAHF_FLAGS (X86_SF | X86_ZF | X86_AF | X86_PF | X86_CF)

enum x86_status x86_sem_lahf(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t ah = (cpu->s.rflags & LAHF_FLAGS) | X86_FLAGS_FIXED;
	cpu->s.reg[X86_RAX] = (cpu->s.reg[X86_RAX] & ~0xff00ull) | ah << 8;
	return X86_OK;
}

enum x86_status x86_sem_sahf(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t ah = cpu->s.reg[X86_RAX] >> 8 & LAHF_FLAGS;
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)LAHF_FLAGS) | ah;
	return X86_OK;
}

/* AL := CF ? ff : 0; undocumented, but everywhere. */
enum x86_status x86_sem_salc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	x86_gpr_write(cpu, X86_RAX, 1, cpu->s.rflags & X86_CF ? 0xff : 0);
	return X86_OK;
}

/* NOP, multi-byte NOP, ENDBR, prefetches: operands are not touched. */
enum x86_status x86_sem_nop(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return X86_OK;
}

enum x86_status x86_sem_pause(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (cpu->env->pause)
		cpu->env->pause(cpu);
	return X86_BOUNDARY;
}

/* Guest memory accesses are host ones in program order, so the host's fence is the guest's. */
enum x86_status x86_sem_fence(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return X86_OK;
}

/* CLFLUSH, CLFLUSHOPT, CLWB, CLDEMOTE: caches are coherent; only the access check is left. */
enum x86_status x86_sem_clflush(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t ignored;
	return x86_load(cpu, insn->seg, x86_ea(cpu, insn), 1, &ignored);
}

enum x86_status x86_sem_ud(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return x86_ud(cpu);
}

/* A number, or 0 with CF clear if the host has none ready. */
static enum x86_status random_result(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t value,
	bool ready)
{
	x86_set_flags(cpu, ready ? X86_CF : 0);
	x86_gpr_write(cpu, insn->op[0].reg, insn->op[0].size, ready ? value : 0);
	return X86_OK;
}

/* The next number of a repeatable run: a step of xorshift64 (Marsaglia 2003), which 0 never leaves nor
 * enters, and a multiplication that spreads it. */
static uint64_t random_next(struct x86_cpu *cpu)
{
	cpu->random ^= cpu->random << 13;
	cpu->random ^= cpu->random >> 7;
	cpu->random ^= cpu->random << 17;
	return cpu->random * 0x9e3779b97f4a7c15ull;
}

/* The guest's CPUID has these features only if the host's does. */
enum x86_status x86_sem_rdrand(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	bool ready;
	if (unlikely(cpu->random))
		return random_result(cpu, insn, random_next(cpu), true);
	__asm__ volatile("rdrand %0" : "=r"(value), "=@ccc"(ready));
	return random_result(cpu, insn, value, ready);
}

enum x86_status x86_sem_rdseed(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	bool ready;
	if (unlikely(cpu->random))
		return random_result(cpu, insn, random_next(cpu), true);
	__asm__ volatile("rdseed %0" : "=r"(value), "=@ccc"(ready));
	return random_result(cpu, insn, value, ready);
}

enum x86_status x86_sem_rdpid(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	x86_gpr_write(cpu, insn->op[0].reg, insn->mode == 64 ? 8 : 4, cpu->s.msr.tsc_aux);
	return X86_OK;
}
