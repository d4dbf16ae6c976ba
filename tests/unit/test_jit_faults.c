/*
 * Precise exceptions: an instruction that faults has changed nothing, and the handler sees the right error code,
 * CR2, and return address. Every kind of memory instruction, with an address that is not mapped, read-only, in two
 * pages of which the second is missing, or none at all; then the faults that need no memory.
 *
 * Arithmetic flags that the instruction overwrites are looked at only where the engine promises them
 * (LODGE_JIT=precise, the interpreter): docs/jit.md says what they are otherwise.
 */
#include "jit_rig.h"

#define FLAGS (X86_CF | X86_PF | X86_AF | X86_ZF | X86_SF | X86_OF)
#define BAD   0x301000u /* the pages around it, by where */

enum kind {
	R = 1,
	WR = 2, /* the fault is a write's */
	FL = 4, /* writes arithmetic flags */
	SP = 8, /* the address is in RSP */
	BP = 16, /* in RBP */
	ALIGNED = 32, /* misaligned: #GP */
	AVX = 64,
	DOWN = 128, /* below the address */
	SKIP_GP = 256, /* has other ideas of bad addresses */
};

struct access_case {
	const char *name;
	const uint8_t *code, *at, *end;
	unsigned kind, size;
};

/* What is readable and writable is in the TLB by then; flags are set natively before, and read behind. */
#define CASE(name, insn)                                                                   \
	extern const uint8_t case_##name[], case_##name##_at[], case_##name##_end[];       \
	__asm__(".pushsection .rodata\n.balign 16\ncase_" #name ":\n"           \
		"testb $0, (%r14)\nmovb $0, (%r15)\ncmp %r12, %r13\n"      \
		"case_" #name "_at:\n" insn "\npushfq\nud2\ncase_" #name "_end:\n.popsection\n")
#define CASES(X)                                                                           \
	X(load, "mov (%rbx), %rax", R, 8)                                                  \
	X(load_r9, "mov (%rbx), %r9", R, 8)                                                \
	X(load8, "mov (%rbx), %cl", R, 1)                                                  \
	X(load_index, "mov (%rbx,%rdi,8), %r10d", R, 4)                                    \
	X(zx, "movzbl (%rbx), %eax", R, 1)                                                 \
	X(sx, "movslq (%rbx), %rax", R, 4)                                                 \
	X(store, "mov %rax, (%rbx)", WR, 8)                                                \
	X(store_r11, "mov %r11, (%rbx)", WR, 8)                                            \
	X(store8, "mov %ah, (%rbx)", WR, 1)                                                \
	X(store_imm, "movl $7, (%rbx)", WR, 4)                                             \
	X(add_r, "add (%rbx), %rax", R | FL, 8)                                            \
	X(adc_r, "adc (%rbx), %r11", R | FL, 8)                                            \
	X(cmp_r, "cmp (%rbx), %eax", R | FL, 4)                                            \
	X(cmp_i, "cmpl $5, (%rbx)", R | FL, 4)                                             \
	X(test_i, "testb $5, (%rbx)", R | FL, 1)                                           \
	X(add_w, "add %rax, (%rbx)", WR | FL, 8)                                           \
	X(sbb_w, "sbb %eax, (%rbx)", WR | FL, 4)                                           \
	X(inc_w, "incq (%rbx)", WR | FL, 8)                                                \
	X(neg_w, "negl (%rbx)", WR | FL, 4)                                                \
	X(not_w, "notl (%rbx)", WR, 4)                                                     \
	X(lock_add, "lock addl $3, (%rbx)", WR | FL, 4)                                    \
	X(xchg, "xchg %rax, (%rbx)", WR, 8)                                                \
	X(xchg_r10, "xchg %r10d, (%rbx)", WR, 4)                                           \
	X(xadd, "lock xadd %rax, (%rbx)", WR | FL, 8)                                      \
	X(cmpxchg, "lock cmpxchg %rcx, (%rbx)", WR | FL, 8)                                \
	X(cmpxchg8b, "lock cmpxchg8b (%rdi,%rbx)", WR | FL, 8)                             \
	X(cmpxchg16b, "lock cmpxchg16b (%rdi,%rbx)", WR | FL | ALIGNED, 16)                \
	X(shl_w, "shll $3, (%rbx)", WR | FL, 4)                                            \
	X(rcr_w, "rcrq $3, (%rbx)", WR | FL, 8)                                            \
	X(shld_w, "shld $3, %eax, (%rbx)", WR | FL, 4)                                     \
	X(bts_i, "btsl $5, (%rbx)", WR | FL, 4)                                            \
	X(bt_r, "bt %rdi, (%rbx)", R | FL, 8)                                              \
	X(bsf, "bsf (%rbx), %rax", R | FL, 8)                                              \
	X(popcnt, "popcnt (%rbx), %rax", R | FL, 8)                                        \
	X(imul, "imul (%rbx), %rax", R | FL, 8)                                            \
	X(mul, "mulq (%rbx)", R | FL, 8)                                                   \
	X(idiv, "idivl (%rbx)", R | FL, 4)                                                 \
	X(cmov, "cmovb (%rbx), %rax", R, 8)                                                \
	X(setcc, "setb (%rbx)", WR, 1)                                                     \
	X(movbe, "movbe (%rbx), %eax", R, 4)                                               \
	X(movnti, "movnti %rax, (%rbx)", WR, 8)                                            \
	X(crc32, "crc32b (%rbx), %eax", R, 1)                                              \
	X(andn, "andn (%rbx), %rax, %rcx", R | FL, 8)                                      \
	X(push_m, "pushq (%rbx)", R, 8)                                                    \
	X(pop_m, "popq (%rbx)", WR, 8)                                                     \
	X(call_m, "call *(%rbx)", R, 8)                                                    \
	X(jmp_m, "jmp *(%rbx)", R, 8)                                                      \
	X(push, "push %rax", WR | SP | DOWN, 8)                                            \
	X(push_r9, "push %r9", WR | SP | DOWN, 8)                                          \
	X(push_i, "push $0x12345", WR | SP | DOWN, 8)                                      \
	X(pushf, "pushfq", WR | SP | DOWN, 8)                                              \
	X(pop, "pop %rax", R | SP, 8)                                                      \
	X(pop_r10, "pop %r10", R | SP, 8)                                                  \
	X(popf, "popfq", R | SP | FL, 8)                                                   \
	X(call, "call .+5", WR | SP | DOWN, 8)                                          \
	X(call_far, "call .+0x4000", WR | SP | DOWN, 8)                                    \
	X(call_r, "call *%rsi", WR | SP | DOWN, 8)                                         \
	X(ret, "ret", R | SP, 8)                                                           \
	X(ret_i, "ret $24", R | SP, 8)                                                     \
	X(leave, "leave", R | BP, 8)                                                       \
	X(enter, "enter $16, $0", WR | SP | DOWN, 8)                                       \
	X(load_bp, "mov (%rbp), %rax", R | BP, 8)                                          \
	X(store_sp, "mov %eax, (%rsp)", WR | SP, 4)                                        \
	X(movups_r, "movups (%rbx), %xmm1", R, 16)                                         \
	X(movups_w, "movups %xmm1, (%rbx)", WR, 16)                                        \
	X(movaps_w, "movaps %xmm1, (%rbx)", WR | ALIGNED, 16)                              \
	X(paddd, "paddd (%rbx), %xmm1", R | ALIGNED, 16)                                   \
	X(addsd, "addsd (%rbx), %xmm1", R, 8)                                              \
	X(cvtsi2sd, "cvtsi2sdl (%rbx), %xmm2", R, 4)                                       \
	X(ucomisd, "ucomisd (%rbx), %xmm1", R | FL, 8)                                     \
	X(movhps_w, "movhps %xmm1, (%rbx)", WR, 8)                                         \
	X(movd_w, "movd %xmm1, (%rbx)", WR, 4)                                             \
	X(ldmxcsr, "ldmxcsr (%rbx)", R, 4)                                                 \
	X(stmxcsr, "stmxcsr (%rbx)", WR, 4)                                                \
	X(vmovups_r, "vmovups (%rbx), %ymm1", R | AVX, 32)                                 \
	X(vmovups_w, "vmovups %ymm1, (%rbx)", WR | AVX, 32)                                \
	X(vaddpd, "vaddpd (%rbx), %ymm1, %ymm2", R | AVX, 32)                              \
	X(fld, "fldl (%rbx)", R, 8)                                                        \
	X(fst, "fstl (%rbx)", WR, 8)                                                       \
	X(fistp, "fistpll (%rbx)", WR, 8)                                                  \
	X(fstpt, "fstpt (%rbx)", WR, 10)                                                   \
	X(stos, "xchg %rdi, %rbx\nstosq", WR, 8)                                           \
	X(lods, "xchg %rsi, %rbx\nlodsl", R, 4)                                            \
	X(scas, "xchg %rdi, %rbx\nscasb", R | FL, 1)                                       \
	X(movs, "xchg %rdi, %rbx\nmovsq", WR, 8)                                           \
	X(rep_stos, "xchg %rdi, %rbx\nrep stosb", WR, 1)                                   \
	X(rep_movs, "xchg %rdi, %rbx\nrep movsb", WR, 1)                                   \
	X(xlat, "xlatb", R | SKIP_GP, 1)

#define DEFINE_CASE(name, insn, kind, size) CASE(name, insn);
CASES(DEFINE_CASE)
#define LIST_CASE(name, insn, kind, size) \
	{#name, case_##name, case_##name##_at, case_##name##_end, kind, size},
static const struct access_case cases[] = {CASES(LIST_CASE)};

enum where { MISSING, CROSSING, READ_ONLY, NO_ADDRESS, WHERES };

/* xchg in front of string instructions: the two bytes before what faults. */
static unsigned lead_of(const struct access_case *c)
{
	return c->at[0] == 0x48 && c->at[1] == 0x87 && (c->at[2] & 0xc0) == 0xc0 ? 3 : 0;
}

static bool applies(const struct rig *r, const struct access_case *c, enum where where)
{
	if ((c->kind & AVX) && !r->has_avx)
		return false;
	switch (where) {
	case CROSSING: return c->size > 1 && !(c->kind & ALIGNED);
	case READ_ONLY: return c->kind & WR;
	case NO_ADDRESS: return !(c->kind & SKIP_GP);
	default: return true;
	}
}

/* The first byte of the operand. */
static uint64_t operand_at(const struct access_case *c, enum where where)
{
	switch (where) {
	case CROSSING: return BAD - c->size / 2;
	case READ_ONLY: return BAD - 0x800;
	case NO_ADDRESS: return 0x8000000000000040ull;
	default: return BAD + 0x40;
	}
}

static void fill_registers(struct x86_state *s)
{
	for (unsigned i = 0; i < 16; i++)
		s->reg[i] = 0x1122334455667700ull + i;
	s->reg[X86_RDI] = 0;
	s->reg[X86_RAX] &= ~0xffull;
	s->reg[X86_RSI] = 0x202000;
	s->reg[X86_RCX] = 5;
	s->reg[X86_RSP] = 0x203000;
	s->reg[X86_RBP] = 0x203800;
	for (unsigned i = 0; i < 16; i++)
		for (unsigned j = 0; j < 32; j++)
			s->fpu.vec[i].b[j] = (uint8_t)(i * 16 + j);
	s->fpu.ftw = 0xff;
	s->reg[X86_R14] = s->reg[X86_R15] = BAD - 0x1000;
}

static void compare(const char *name, enum where where, unsigned cpl, const struct x86_state *a,
	const struct trap *trap)
{
	struct x86_state b = trap->s;

	b.reg[X86_RSP] = trap->rsp;
	for (unsigned i = 0; i < 16; i++)
		if (a->reg[i] != b.reg[i])
			fail_msg("%s, %d, CPL %u: register %u is %#llx, not %#llx", name, where, cpl, i,
				(unsigned long long)b.reg[i], (unsigned long long)a->reg[i]);
	for (unsigned i = 0; i < 16; i++)
		if (memcmp(&a->fpu.vec[i], &b.fpu.vec[i], 32) != 0)
			fail_msg("%s, %d, CPL %u: vector register %u", name, where, cpl, i);
	if (a->fpu.mxcsr != b.fpu.mxcsr || a->fpu.fsw != b.fpu.fsw || a->fpu.ftw != b.fpu.ftw ||
		memcmp(a->fpu.st, b.fpu.st, sizeof(a->fpu.st)) != 0)
		fail_msg("%s, %d, CPL %u: FPU", name, where, cpl);
}

static void check_access(const struct access_case *c, enum where where, unsigned cpl,
	const struct x86_state *s, const struct trap *trap)
{
	const uint64_t at = operand_at(c, where);
	const unsigned vector = where != NO_ADDRESS ? X86_PF_EXC : c->kind & (SP | BP) ? X86_SS_EXC : X86_GP;
	const uint64_t cr2 = where == CROSSING ? BAD : at;
	uint32_t error = 0;

	if (vector == X86_PF_EXC)
		error = (where == READ_ONLY) | (c->kind & WR ? 2 : 0) | (cpl ? 4 : 0);
	if (trap->vector != vector || trap->error != error || (vector == X86_PF_EXC && trap->s.cr2 != cr2))
		fail_msg("%s, %d, CPL %u: exception %u, error %#x, CR2 %#llx, RIP %#llx", c->name, where,
			cpl, trap->vector, trap->error, (unsigned long long)trap->s.cr2,
			(unsigned long long)trap->rip);
	assert_int_equal(trap->rip, CODE + (c->at - c->code) + lead_of(c));
	/* Of `cmp %r12, %r13`: R13 is one more. */
	if ((trap->rflags & FLAGS) && (!(c->kind & FL) || jit_has_option("precise")))
		fail_msg("%s, %d, CPL %u: flags %#llx", c->name, where, cpl,
			(unsigned long long)trap->rflags);
	compare(c->name, where, cpl, s, trap);
}

static void prepare(struct rig *r, struct x86_state *s, unsigned cpl)
{
	static const uint8_t pattern[64] = "what is here must stay as it is, whatever the fault";

	jit_state(r, s);
	if (cpl)
		jit_user(s);
	fill_registers(s);
	jit_map(r, BAD, 0, 0);
	jit_map(r, BAD - 0x1000, BAD - 0x1000, P | W | U);
	rig_put(r, BAD - 64, pattern, 64);
}

static void check_pattern(struct rig *r)
{
	uint8_t bytes[64];

	assert_int_equal(memory_read(r->memory, BAD - 64, bytes, sizeof(bytes)), 0);
	assert_memory_equal(bytes, "what is here must stay as it is, whatever the fault", 52);
}

static void access_fault(struct rig *r, const struct access_case *c, enum where where, unsigned cpl)
{
	struct x86_state s;
	struct trap trap;

	prepare(r, &s, cpl);
	if (where == READ_ONLY) {
		jit_map(r, BAD - 0x1000, BAD - 0x1000, P | U);
		s.reg[X86_R15] = 0x202000;
	}
	unsigned reg = c->kind & SP ? X86_RSP : c->kind & BP ? X86_RBP : X86_RBX;
	s.reg[reg] = operand_at(c, where) + (c->kind & DOWN ? 8 : 0);
	rig_load(r, &s, c->code, (size_t)(c->end - c->code));
	jit_run(r, &trap);
	if (lead_of(c)) {
		unsigned other = c->at[2] & 7 ? c->at[2] >> 3 & 7 : 0;
		unsigned pair = other == X86_RBX ? c->at[2] & 7 : other;
		uint64_t value = s.reg[X86_RBX];
		s.reg[X86_RBX] = s.reg[pair];
		s.reg[pair] = value;
	}
	check_access(c, where, cpl, &s, &trap);
	check_pattern(r);
}

static void each_case(struct rig *r, enum where where)
{
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
		for (unsigned cpl = 0; cpl < 4; cpl += 3)
			if (applies(r, &cases[i], where))
				access_fault(r, &cases[i], where, cpl);
}

static void test_missing(void **state)
{
	each_case(*state, MISSING);
}

static void test_crossing(void **state)
{
	each_case(*state, CROSSING);
}

static void test_read_only(void **state)
{
	each_case(*state, READ_ONLY);
}

static void test_no_address(void **state)
{
	each_case(*state, NO_ADDRESS);
}

/* ---- faults that need no memory ---- */

struct plain_case {
	const char *name;
	const uint8_t *code, *at, *end;
	unsigned vector;
	bool flags; /* overwritten */
};

#define PLAIN_CASES(X)                                                        \
	X(div0, "div %rdi", X86_DE, true)                                     \
	X(idiv32, "idivl %ecx", X86_DE, true)                                 \
	X(div8, "div %dil", X86_DE, true)                                     \
	X(ud2, "ud2", X86_UD, false)                                          \
	X(lock_nop, ".byte 0xf0, 0x90", X86_UD, false)                        \
	X(lock_mov, ".byte 0xf0, 0x48, 0x89, 0xd8", X86_UD, false)            \
	X(jmp_reg, "jmp *%r11", X86_GP, false)                                \
	X(jmp_r10, "jmp *%r10", X86_GP, false)                                \
	X(call_r10, "call *%r10", X86_GP, false)                              \
	X(call_reg, "call *%r11", X86_GP, false)                              \
	X(call_mem, "call *0x20(%rsi)", X86_GP, false)                        \
	X(jmp_mem, "jmp *0x20(%rsi)", X86_GP, false)                          \
	X(ret_bad, "ret", X86_GP, false)                                      \
	X(ret_i_bad, "ret $8", X86_GP, false)                                 \
	X(int3, "int3", X86_BP, false)                                        \
	X(fp, "fdivp\nfwait", X86_MF, false)                                  \
	X(misaligned, "movaps %xmm1, 8(%rsi)", X86_GP, false)                 \
	X(misaligned_r, "paddd 8(%rsi), %xmm1", X86_GP, false)                \
	X(misaligned_16, "lock cmpxchg16b 8(%rsi)", X86_GP, true)

#define DEFINE_PLAIN(name, insn, vector, flags) CASE(name, insn);
PLAIN_CASES(DEFINE_PLAIN)
#define LIST_PLAIN(name, insn, vector, flags) \
	{#name, case_##name, case_##name##_at, case_##name##_end, vector, flags},
static const struct plain_case plain_cases[] = {PLAIN_CASES(LIST_PLAIN)};

#define NOWHERE 0x0000900000000000ull /* not canonical */

static void plain_fault(struct rig *r, const struct plain_case *c, unsigned cpl)
{
	struct x86_state s;
	struct trap trap;

	prepare(r, &s, cpl);
	s.reg[X86_RDI] = 0;
	s.reg[X86_RAX] = 0x100000; /* IDIV: EDX:EAX is too much for ECX */
	s.reg[X86_RDX] = 0x100000;
	s.reg[X86_R10] = s.reg[X86_R11] = NOWHERE;
	s.reg[X86_RSP] = 0x202f00; /* all in one page, which the TLB then has */
	s.reg[X86_R14] = s.reg[X86_R15] = 0x202800;
	rig_put64(r, 0x202020, NOWHERE);
	rig_put64(r, 0x202f00, NOWHERE);
	s.cr0 |= X86_CR0_NE;
	rig_load(r, &s, c->code, (size_t)(c->end - c->code));
	if (c->vector == X86_MF) { /* 0 / 0, unmasked */
		s.fpu.fcw = 0x37e;
		memset(s.fpu.st, 0, sizeof(s.fpu.st));
		assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	}
	if (c->vector == X86_BP) /* INT3 wants DPL 3 */
		rig_put(r, IDT + 16 * X86_BP + 5, "\xee", 1);
	jit_run(r, &trap);
	if (trap.vector != c->vector || trap.error)
		fail_msg("%s, CPL %u: exception %u, error %#x, at %#llx", c->name, cpl, trap.vector,
			trap.error, (unsigned long long)trap.rip);
	unsigned after = c->vector == X86_BP ? 1 : c->vector == X86_MF ? 2 : 0;
	assert_int_equal(trap.rip, CODE + (c->at - c->code) + after);
	if (!c->flags || jit_has_option("precise"))
		assert_int_equal(trap.rflags & FLAGS, 0);
	if (c->vector == X86_MF)
		s.fpu = trap.s.fpu;
	compare(c->name, 0, cpl, &s, &trap);
}

static void test_plain(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(plain_cases); i++)
		for (unsigned cpl = 0; cpl < 4; cpl += 3)
			plain_fault(*state, &plain_cases[i], cpl);
}

/* A target that has been good many times: the branch cache knows it, and its slot is that of the bad one. */
GUEST(good_then_bad,
	"mov $100, %ecx\n"
	"1: lea 2f(%rip), %rax\ntest %ecx, %ecx\njnz 3f\nbts $47, %rax\n3: call *%rax\ndec %ecx\njmp 1b\n"
	".balign 64\n2: ret\n");

static void test_good_then_bad(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	struct trap trap;

	prepare(r, &s, 0);
	JIT_LOAD(r, &s, good_then_bad);
	jit_run(r, &trap);
	assert_int_equal(trap.vector, X86_GP);
	assert_int_equal(trap.s.reg[X86_RCX], 0);
	assert_int_equal(trap.rsp, 0x203000);
	assert_int_equal(trap.s.reg[X86_RAX] >> 47, 1);
}

/* SSE: divide by zero, unmasked, in a block that ran masked before; MXCSR goes to and fro. */
GUEST(unmask,
	"mov $0x1f80, %r15d\nmov $3, %ecx\n"
	"1: mov %r15d, (%rsi)\nldmxcsr (%rsi)\nmovaps %xmm3, %xmm4\n"
	"divps %xmm5, %xmm4\nstmxcsr 4(%rsi)\ndec %ecx\njnz 1b\n"
	"mov $0x1d80, %r15d\nmov $2, %ecx\njmp 1b\n");

static void test_simd_exception(void **state)
{
	struct rig *r = *state;
	static const float one[4] = {1, 1, 1, 1};
	struct x86_state s;
	struct trap trap;

	prepare(r, &s, 0);
	memcpy(&s.fpu.vec[3], one, sizeof(one));
	memset(&s.fpu.vec[5], 0, 16);
	memset(&s.fpu.vec[4], 0x55, 16);
	JIT_LOAD(r, &s, unmask);
	jit_run(r, &trap);
	assert_int_equal(trap.vector, X86_XM);
	assert_int_equal(trap.s.reg[X86_RCX], 2);
	assert_memory_equal(&trap.s.fpu.vec[4], one, sizeof(one)); /* not written */
	assert_int_equal(trap.s.fpu.mxcsr, 0x1d84);
	assert_int_equal(rig_get64(r, 0x202004) & 0xffffffff, 0x1f84);
}

/* The handler mends the mapping and returns: the instruction runs once, and the flags before it still hold. */
GUEST(mended,
	"mov $1000, %ecx\nxor %r8d, %r8d\n"
	"1: cmp $500, %ecx\n" /* below at the end */
	"mov (%rbx), %rax\n"
	"adc $0, %r8d\naddq $1, (%rbx)\nadd $8, %rbx\ndec %ecx\njnz 1b\n"
	"out %al, $0xf4\nhlt\n");
/* push rax; push rbx; mov rax, cr2; shr 12; mov rbx, rax; shl 12; or rax, 7; table[rbx & 511] = rax */
GUEST(mender,
	"push %rax\npush %rbx\nincl 0x5200\nmov %cr2, %rbx\nmov %rbx, %rax\nshr $12, %rbx\nand $511, %ebx\n"
	"and $-4096, %rax\nor $7, %eax\nmov %rax, 0x19000(,%rbx,8)\npop %rbx\npop %rax\n"
	"add $8, %rsp\niretq\n");

static void test_mended(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	for (unsigned cpl = 0; cpl < 4; cpl += 3) {
		prepare(r, &s, cpl);
		jit_map(r, 0x300000, 0, 0);
		rig_put64(r, 0x5200, 0);
		for (unsigned i = 0; i < 1024; i++)
			rig_put64(r, 0x300000 + 8 * i, i);
		rig_gate(r, X86_PF_EXC, 0, code_mender, GUEST_SIZE(mender));
		rig_put(r, IDT + 16 * X86_PF_EXC + 4, "", 1);
		if (cpl)
			s.rflags |= 3 << 12; /* IOPL, for the end */
		s.reg[X86_RBX] = 0x300000;
		JIT_LOAD(r, &s, mended);
		jit_run_plainly(r, &s);
		assert_int_equal(s.reg[X86_R8], 499);
		assert_int_equal(rig_get64(r, 0x5200), 2);
		for (unsigned i = 0; i < 1000; i++)
			assert_int_equal(rig_get64(r, 0x300000 + 8 * i), i + 1);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(test_missing),
		RIG_TEST(test_crossing),
		RIG_TEST(test_read_only),
		RIG_TEST(test_no_address),
		RIG_TEST(test_plain),
		RIG_TEST(test_good_then_bad),
		RIG_TEST(test_simd_exception),
		RIG_TEST(test_mended),
	};
	int status = rig_main(argc, argv, "ENGINE");

	return status ? status : cmocka_run_group_tests_name(rig_ops->name, tests, NULL, NULL);
}
