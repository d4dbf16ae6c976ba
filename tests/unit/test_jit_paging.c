/*
 * One piece of code under several mappings, privileges and modes: nothing that leads to translated code (branch
 * cache, jumps from block to block) may outlive the mapping it was made for, and what was translated for one mode is
 * not run in another.
 */
#include "jit_rig.h"

#define TIMES	200
#define SECOND	0x1c000u /* a second tree of page tables: PML4, PDPT, PD, tables of LOW and ALIAS */
#define ONE	0x203000u /* two frames */
#define TWO	0x204000u

/* mov $value, %eax; ret */
static void put_function(struct rig *r, gpa_t at, uint32_t value)
{
	uint8_t code[6] = {0xb8, 0, 0, 0, 0, 0xc3};

	memcpy(code + 1, &value, 4);
	rig_put(r, at, code, sizeof(code));
}

/* A second tree in which ALIAS leads to TWO; the rest is shared. */
static void second_tree(struct rig *r)
{
	uint8_t page[GUEST_PAGE_SIZE];

	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(memory_read(r->memory, PAGING + (i == 2 ? 0x3000 : i * 0x1000), page,
					 sizeof(page)), 0);
		rig_put(r, SECOND + i * 0x1000, page, sizeof(page));
	}
	assert_int_equal(memory_read(r->memory, ALIAS_TABLE, page, sizeof(page)), 0);
	rig_put(r, SECOND + 0x3000, page, sizeof(page));
	rig_put64(r, SECOND, (SECOND + 0x1000) | P | W | U);
	rig_put64(r, SECOND + 0x1008, (SECOND + 0x2000) | P | W | U);
	rig_put64(r, SECOND + 0x2000, (SECOND + 0x3000) | P | W | U);
	rig_put64(r, SECOND + 0x3000, TWO | P | W | U);
}

/* ---- remapping ---- */

/*
 * Calls ALIAS, directly and through RBX, RCX times; in between EBP leads to what changes the mapping: the function
 * at ALIAS gives 1 or 2.
 */
GUEST(calls,
	"xor %esi, %esi\n1: mov $0x40000000, %ebx\ncall *%rbx\nadd %rax, %rsi\n"
	"mov $4, %edx\n2: call *%rbx\nadd %rax, %rsi\ncall 3f\nadd %rax, %rsi\ndec %edx\njnz 2b\n"
	"mov %rcx, %r10\ncall *%rbp\nmov %r10, %rcx\ndec %ecx\njnz 1b\nout %al, $0xf4\nhlt\n"
	/* jmp ALIAS, as seen from CODE */
	"3: .byte 0xe9\n.long 0x3ffff000 - (4f - code_calls)\n4:\n");

/* With CR4.PGE and global pages; all leave the other frame mapped. */
#define CHANGE "mov %ecx, %eax\nand $1, %eax\nshl $12, %eax\nadd $0x203007, %eax\nor %r15, %rax\nmov %rax, 0x1a000\n"
GUEST(by_invlpg, CHANGE "invlpg 0x40000123\nret\n");
GUEST(by_cr3, CHANGE "mov %cr3, %rax\nmov %rax, %cr3\nret\n");
GUEST(by_pge, CHANGE "mov %cr4, %rax\nbtc $7, %rax\nmov %rax, %cr4\nbtc $7, %rax\nmov %rax, %cr4\nret\n");
GUEST(by_cr0, CHANGE "mov %cr0, %rax\nbtc $16, %rax\nmov %rax, %cr0\nmov %cr3, %rax\nmov %rax, %cr3\n"
	      "mov %cr0, %rax\nbtc $16, %rax\nmov %rax, %cr0\nret\n");
GUEST(by_tree, "mov %ecx, %eax\nand $1, %eax\nimul $0xc000, %eax\nadd $0x10000, %eax\nmov %rax, %cr3\nret\n");
/* PCID 1 is of the second tree; neither is flushed. */
GUEST(by_pcid, "mov %ecx, %eax\nand $1, %eax\nimul $0xc001, %eax\nadd $0x10000, %eax\nbts $63, %rax\n"
	       "mov %rax, %cr3\nret\n");
GUEST(by_invpcid, CHANGE "movq $0, 0x5300\nmovq $0x40000000, 0x5308\nxor %eax, %eax\ninvpcid 0x5300, %rax\nret\n");

#define BETWEEN 0x206000u

static uint64_t run_calls(struct rig *r, const uint8_t *between, size_t bytes, bool pge, bool pcid)
{
	struct x86_state s;

	jit_state(r, &s);
	put_function(r, ONE, 1);
	put_function(r, TWO, 2);
	second_tree(r);
	jit_map(r, ALIAS, ONE, P | W | U | (pge ? G : 0));
	s.cr4 |= (pge ? X86_CR4_PGE : 0) | (pcid ? X86_CR4_PCIDE : 0);
	s.reg[X86_R15] = pge ? G : 0;
	s.reg[X86_RCX] = TIMES;
	s.reg[X86_RBP] = BETWEEN;
	s.reg[X86_RSP] = 0x280000;
	rig_put(r, BETWEEN, between, bytes);
	JIT_LOAD(r, &s, calls);
	jit_run_plainly(r, &s);
	return s.reg[X86_RSI];
}
#define RUN_CALLS(r, name, pge, pcid) \
	run_calls(r, code_##name, GUEST_SIZE(name), pge, pcid)

/* Nine calls a turn: the first turn, and every other one from then on, finds ONE. */
#define HALF_AND_HALF (9 * (TIMES / 2 + 1 + 2 * (TIMES / 2 - 1)))

static void test_remap(void **state)
{
	struct rig *r = *state;

	assert_int_equal(RUN_CALLS(r, by_invlpg, false, false), HALF_AND_HALF);
	assert_int_equal(RUN_CALLS(r, by_cr3, false, false), HALF_AND_HALF);
	assert_int_equal(RUN_CALLS(r, by_cr0, false, false), HALF_AND_HALF);
	assert_int_equal(RUN_CALLS(r, by_tree, false, false), HALF_AND_HALF);
}

static void test_remap_global(void **state)
{
	struct rig *r = *state;

	assert_int_equal(RUN_CALLS(r, by_invlpg, true, false), HALF_AND_HALF);
	assert_int_equal(RUN_CALLS(r, by_pge, true, false), HALF_AND_HALF);
}

static bool has_pcid(struct rig *r)
{
	if (r->ops != &engine_kvm_ops)
		return true;
	print_message("NOT CHECKED: PCIDs (what %s has is the host's)\n", r->ops->name);
	return false;
}

static void test_remap_pcid(void **state)
{
	struct rig *r = *state;

	if (!has_pcid(r))
		return;
	assert_int_equal(RUN_CALLS(r, by_pcid, false, true), HALF_AND_HALF);
	assert_int_equal(RUN_CALLS(r, by_invlpg, false, true), HALF_AND_HALF);
}

/* The code itself is what is remapped: after INVLPG (or MOV to CR3) the other frame's next instruction runs. */
GUEST(under_feet, "mov %rdi, 0x1a000\ninvlpg 0x40000000\nmov $0x1111, %eax\nret\n");
GUEST(under_feet_cr3, "mov %rdi, 0x1a000\nmov %rdx, %cr3\nmov $0x1111, %eax\nret\n");
GUEST(call_under_feet,
	"xor %esi, %esi\nmov $0x40000000, %ebx\n"
	"1: mov $0x204007, %edi\ncall *%rbx\nadd %rax, %rsi\nmov $0x203007, %edi\ncall *%rbx\nadd %rax, %rsi\n"
	"dec %ecx\njnz 1b\nout %al, $0xf4\nhlt\n");

static void under_feet(struct rig *r, const uint8_t *code, size_t bytes)
{
	struct x86_state s;

	jit_state(r, &s);
	rig_put(r, ONE, code, bytes);
	rig_put(r, TWO, code, bytes);
	rig_put(r, TWO + bytes - 5, "\x22\x22", 2);
	jit_map(r, ALIAS, ONE, P | W | U);
	s.reg[X86_RCX] = 100;
	s.reg[X86_RDX] = PAGING;
	JIT_LOAD(r, &s, call_under_feet);
	jit_run_plainly(r, &s);
	/* Into TWO and back, so the first call gives TWO's, the second ONE's. */
	assert_int_equal(s.reg[X86_RSI], 100 * 0x3333);
}

static void test_under_feet(void **state)
{
	under_feet(*state, code_under_feet, GUEST_SIZE(under_feet));
	under_feet(*state, code_under_feet_cr3, GUEST_SIZE(under_feet_cr3));
}

/* A loop within one page that an interrupt handler remaps: chained blocks must not go on in the old frame. */
GUEST(loop_page, "1: test %eax, %eax\njz 1b\nret\n");		      /* ONE */
GUEST(loop_page_left, "1: inc %eax\nnop\ncmp $1000, %eax\njb 1b\nret\n"); /* TWO: same length up to the end */
GUEST(loop_start, "xor %eax, %eax\nmov $0x40000000, %ebx\nout %al, $0xf5\nsti\ncall *%rbx\nmov %rax, %rsi\ncli\n"
		  "out %al, $0xf4\nhlt\n");
GUEST(loop_remap, "movq $0x204007, 0x1a000\ninvlpg 0x40000000\niretq\n");

static void *interrupt_thread(void *opaque)
{
	struct rig *r = opaque;

	while (!r->ready)
		usleep(100);
	usleep(3000);
	r->vector = 0x40;
	r->ops->interrupt(r->vcpu);
	return NULL;
}

static void test_remap_by_interrupt(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	pthread_t thread;

	if (r->ops->caps & ENGINE_CAP_IRQCHIP) {
		print_message("NOT CHECKED: interrupts that remap code (%s has its own controller)\n",
			r->ops->name);
		return;
	}
	jit_state(r, &s);
	rig_put(r, ONE, code_loop_page, GUEST_SIZE(loop_page));
	rig_put(r, TWO, code_loop_page_left, GUEST_SIZE(loop_page_left));
	jit_map(r, ALIAS, ONE, P | W | U);
	rig_gate(r, 0x40, 0, code_loop_remap, GUEST_SIZE(loop_remap));
	s.reg[X86_RSP] = 0x280000;
	JIT_LOAD(r, &s, loop_start);
	assert_int_equal(pthread_create(&thread, NULL, interrupt_thread, r), 0);
	jit_run_plainly(r, &s);
	pthread_join(thread, NULL);
	assert_int_equal(s.reg[X86_RSI], 1000);
}

/* ---- privilege ---- */

/* Reads what only the supervisor may, often at CPL 0 and then once at CPL 3: the same code. */
GUEST(privilege,
	"mov $100, %ecx\n1: call 2f\ndec %ecx\njnz 1b\n"
	"push $0x1b\npush $0x280000\npush $0x3002\npush $0x23\nlea 3f(%rip), %rax\npush %rax\niretq\n"
	"2: mov 0x205000, %rbx\nret\n3: call 2b\nud2\n");

static void test_privilege(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	struct trap trap;

	jit_state(r, &s);
	jit_map(r, 0x205000, 0x205000, P | W);
	rig_put64(r, 0x205000, 0x77);
	s.reg[X86_RSP] = 0x280000;
	JIT_LOAD(r, &s, privilege);
	jit_run(r, &trap);
	assert_int_equal(trap.vector, X86_PF_EXC);
	assert_int_equal(trap.error, X86_PFEC_P | X86_PFEC_U);
	assert_int_equal(trap.s.cr2, 0x205000);
	assert_int_equal(trap.s.reg[X86_RBX], 0x77);
	assert_int_equal(trap.cs, USER_CS);
}

/* Calls a page that is the supervisor's: good at CPL 0, a fault at CPL 3. The return goes nowhere. */
GUEST(privilege_code,
	"mov $0x40000000, %ebx\nmov $100, %ecx\n1: call *%rbx\ndec %ecx\njnz 1b\n"
	"push $0x1b\npush $0x280000\npush $0x3002\npush $0x23\nlea 3f(%rip), %rax\npush %rax\niretq\n"
	"3: call *%rbx\nud2\n");

static void test_privilege_code(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	struct trap trap;

	jit_state(r, &s);
	jit_map(r, ALIAS, ONE, P | W);
	put_function(r, ONE, 1);
	s.reg[X86_RSP] = 0x280000;
	JIT_LOAD(r, &s, privilege_code);
	jit_run(r, &trap);
	assert_int_equal(trap.vector, X86_PF_EXC);
	assert_int_equal(trap.error, X86_PFEC_P | X86_PFEC_U);
	assert_int_equal(trap.s.cr2, ALIAS);
	assert_int_equal(trap.rip, ALIAS);
	assert_int_equal(trap.rsp, 0x280000 - 8);
}

/* System calls to and fro, many: user code and kernel code each keep their own view of 0x205000. */
GUEST(syscalls,
	"push $0x1b\npush $0x280000\npush $0x3002\npush $0x23\nlea 3f(%rip), %rax\npush %rax\nxor %esi, %esi\niretq\n"
	"3: mov $300, %ebp\n4: syscall\nadd 0x208000, %rsi\ndec %ebp\njnz 4b\nout %al, $0xf4\nhlt\n"
	".balign 64\nmov 0x205000, %rax\nadd %rax, 0x208000\nsysretq\n");

static void test_syscalls(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	jit_state(r, &s);
	jit_map(r, 0x205000, 0x205000, P | W);
	rig_put64(r, 0x205000, 1);
	rig_put64(r, 0x208000, 0);
	s.msr.star = (uint64_t)0x13 << 48 | 8ull << 32; /* SYSRET: CS 0x23, SS 0x1b */
	s.msr.lstar = CODE + 64;
	s.msr.sfmask = 0;
	s.reg[X86_RSP] = 0x280000;
	JIT_LOAD(r, &s, syscalls);
	jit_run_plainly(r, &s);
	assert_int_equal(s.reg[X86_RSI], 300 * 301 / 2);
}

/* ---- modes ---- */

/*
 * 48 83 c0 05 48 cb at 0x1800 is `add $5, %rax; lretq` in 64-bit code, `dec %eax; add $5, %eax; dec %eax; lret` in 32-bit
 * code. Called by turns through far pointers at 0x5300 and 0x5310.
 */
GUEST(two_modes,
	"xor %eax, %eax\nmov $300, %ecx\n1: .byte 0x48\nlcall *0x5300\nlcall *0x5310\ndec %ecx\njnz 1b\n"
	"mov %rax, %rsi\nout %al, $0xf4\nhlt\n");

static void test_two_modes(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	jit_state(r, &s);
	rig_put(r, 0x1800, "\x48\x83\xc0\x05\x48\xcb", 6); /* lretq */
	rig_put64(r, 0x5300, 0x1800);
	rig_put64(r, 0x5308, CS64);
	rig_put64(r, 0x5310, 0x1c00 | (uint64_t)CS32 << 32);
	/* In 32-bit code: call the very bytes at 0x1800, of which the end is `dec %eax; lret`. */
	rig_put(r, 0x1c00, "\xea\x00\x18\x00\x00\x28\x00", 7); /* ljmp $0x28, $0x1800 */
	s.reg[X86_RSP] = 0x280000;
	JIT_LOAD(r, &s, two_modes);
	jit_run_plainly(r, &s);
	/* 64: +5; 32: dec, add 5, dec, lret: +3 */
	assert_int_equal(s.reg[X86_RSI], 300 * 8);
}

/* MXCSR: rounding modes by turns, flush to zero, denormals, through FXRSTOR as well. */
GUEST(rounding,
	"xor %esi, %esi\nmov $400, %ecx\n"
	"1: mov %ecx, %eax\nand $3, %eax\nshl $13, %eax\nor $0x1f80, %eax\nmov %eax, 0x5300\nldmxcsr 0x5300\n"
	"cvtsd2si %xmm0, %rax\nadd %rax, %rsi\ndec %ecx\njnz 1b\nout %al, $0xf4\nhlt\n");
GUEST(rounding_fxrstor,
	"fxsave 0x208000\nxor %esi, %esi\nmov $400, %ecx\n"
	"1: mov %ecx, %eax\nand $3, %eax\nshl $13, %eax\nor $0x1f80, %eax\nmov %eax, 0x208018\nfxrstor 0x208000\n"
	"cvtsd2si %xmm0, %rax\nadd %rax, %rsi\ndec %ecx\njnz 1b\nout %al, $0xf4\nhlt\n");

static void test_rounding(void **state)
{
	static const double value = 10.5;
	struct rig *r = *state;
	struct x86_state s, end;

	for (unsigned i = 0; i < 2; i++) {
		jit_state(r, &s);
		memcpy(&s.fpu.vec[0], &value, sizeof(value));
		if (i)
			JIT_LOAD(r, &s, rounding_fxrstor);
		else
			JIT_LOAD(r, &s, rounding);
		jit_run_plainly(r, &end);
		/* nearest even 10, down 10, up 11, to zero 10 */
		assert_int_equal(end.reg[X86_RSI], 4100);
		assert_int_equal(end.fpu.mxcsr, 0x3fa0);
	}
}

/* CR0.TS: SSE faults with #NM from the next instruction on, in code that ran with it many times. */
GUEST(task_switched,
	"mov $100, %ecx\n1: addps %xmm1, %xmm0\nvzeroupper\ndec %ecx\njnz 1b\n"
	"mov %cr0, %rax\nor $8, %eax\nmov %rax, %cr0\nmov $1, %ecx\njmp 1b\n");
GUEST(task_switched_sse,
	"mov $100, %ecx\n1: addps %xmm1, %xmm0\ndec %ecx\njnz 1b\n"
	"mov %cr0, %rax\nor $8, %eax\nmov %rax, %cr0\nmov $1, %ecx\njmp 1b\n");

static void test_task_switched(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	struct trap trap;

	jit_state(r, &s);
	if (r->has_avx)
		JIT_LOAD(r, &s, task_switched);
	else
		JIT_LOAD(r, &s, task_switched_sse);
	jit_run(r, &trap);
	assert_int_equal(trap.vector, X86_NM);
	assert_int_equal(trap.rip, CODE + 5);
	assert_int_equal(trap.s.reg[X86_RCX], 1);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(test_remap),
		RIG_TEST(test_remap_global),
		RIG_TEST(test_remap_pcid),
		RIG_TEST(test_under_feet),
		RIG_TEST(test_remap_by_interrupt),
		RIG_TEST(test_privilege),
		RIG_TEST(test_privilege_code),
		RIG_TEST(test_syscalls),
		RIG_TEST(test_two_modes),
		RIG_TEST(test_rounding),
		RIG_TEST(test_task_switched),
	};
	int status = rig_main(argc, argv, "ENGINE");

	return status ? status : cmocka_run_group_tests_name(rig_ops->name, tests, NULL, NULL);
}
