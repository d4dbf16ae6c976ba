/*
 * Code that changes: by itself, through another address, by a device, at the end of a page; and code that is where
 * none is expected: in the middle of instructions, in a device.
 */
#include "jit_rig.h"

#define TIMES 200

static uint64_t run_rsi(struct rig *r, const struct x86_state *s)
{
	struct x86_state end;

	assert_int_equal(r->ops->set_state(r->vcpu, s), 0);
	jit_run_plainly(r, &end);
	return end.reg[X86_RSI];
}

/* ---- a store into the next instruction ---- */

/* RDI = where the constant of `mov $0, %eax` is; EBP counts down and is what each way of storing writes there. */
#define STORE(name, before, store)                                                               \
	GUEST(store_##name,                                                                      \
		"mov $200, %ebp\nxor %esi, %esi\nlea 2f+1(%rip), %rdi\nadd %r15, %rdi\n" before "\n" \
		"1: " store "\n2: mov $0, %eax\nadd %rax, %rsi\ndec %ebp\njnz 1b\n"              \
		"out %al, $0xf4\nhlt\n")
#define STORES(X)                                                                                \
	X(mov, "", "mov %ebp, (%rdi)")                                                           \
	X(byte, "", "mov %bpl, (%rdi)")                                                          \
	X(add, "movl $201, (%rdi)", "addl $-1, (%rdi)")                                          \
	X(dec, "movl $201, (%rdi)", "lock decl (%rdi)")                                          \
	X(xchg, "", "mov %ebp, %ecx\nxchg %ecx, (%rdi)")                                         \
	X(cmpxchg, "", "mov (%rdi), %eax\nlock cmpxchg %ebp, (%rdi)")                            \
	X(push, "mov %rsp, %rbx", "mov 4(%rdi), %eax\nmov %ebp, %ecx\nshl $32, %rax\nor %rax, %rcx\n" \
		"lea 8(%rdi), %rsp\npush %rcx\nmov %rbx, %rsp")                                  \
	X(stos, "mov %rdi, %rbx", "mov %ebp, %eax\nmov %rbx, %rdi\nstosl")                       \
	X(rep_stos, "mov %rdi, %rbx", "mov %ebp, %eax\nmov %rbx, %rdi\nmov $1, %ecx\nrep stosb") \
	X(rep_movs, "mov %rdi, %rbx\nmov %rsi, %rdx", "mov %rsi, %rdx\nmov %ebp, 0x5300\nmov $0x5300, %esi\n" \
		"mov %rbx, %rdi\nmov $4, %ecx\nrep movsb\nmov %rdx, %rsi")                       \
	X(movd, "", "movd %ebp, %xmm0\nmovd %xmm0, (%rdi)")                                      \
	X(movups, "mov %rdi, %rbx", "movups (%rdi), %xmm1\nmovd %ebp, %xmm0\nmovss %xmm0, %xmm1\n" \
		"movups %xmm1, (%rdi)")                                                          \
	X(fist, "", "mov %ebp, 0x5300\nfildl 0x5300\nfistpl (%rdi)")                             \
	X(setcc, "mov $1, %ebp\nmov $200, %ebp", "cmp $100, %ebp\nmovl $0, (%rdi)\nsetb (%rdi)")
#define DEFINE_STORE(name, before, store) STORE(name, before, store);
STORES(DEFINE_STORE)

static void next_instruction(struct rig *r, const char *name, const uint8_t *code, size_t bytes,
	uint64_t away)
{
	const uint64_t wanted = strcmp(name, "setcc") == 0 ? 99 : TIMES * (TIMES + 1) / 2;
	struct x86_state s;

	jit_state(r, &s);
	s.reg[X86_R15] = away;
	s.fpu.ftw = 0;
	jit_map(r, ALIAS, CODE, P | W | U);
	rig_put(r, CODE, code, bytes);
	uint64_t sum = run_rsi(r, &s);
	if (sum != wanted)
		fail_msg("%s: %llu, not %llu", name, (unsigned long long)sum,
			(unsigned long long)wanted);
}

#define RUN_STORE(name, before, store) \
	next_instruction(r, #name, code_store_##name, GUEST_SIZE(store_##name), away);

static void test_next_instruction(void **state)
{
	struct rig *r = *state;
	const uint64_t away = 0;

	STORES(RUN_STORE)
}

static void test_next_instruction_by_alias(void **state)
{
	struct rig *r = *state;
	const uint64_t away = ALIAS - CODE;

	STORES(RUN_STORE)
}

/* The same, while the code itself runs at the other address. */
GUEST(run_at_alias,
	"lea 1f(%rip), %rax\nadd $0x3ffff000, %rax\njmp *%rax\n"
	"1: mov $200, %ebp\nxor %esi, %esi\nlea 2f+1(%rip), %rdi\nsub $0x3ffff000, %rdi\n"
	"1: mov %ebp, (%rdi)\n2: mov $0, %eax\nadd %rax, %rsi\ndec %ebp\njnz 1b\nout %al, $0xf4\nhlt\n");

static void test_run_at_alias(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	jit_state(r, &s);
	jit_map(r, ALIAS, CODE, P | W | U);
	rig_put(r, CODE, code_run_at_alias, GUEST_SIZE(run_at_alias));
	assert_int_equal(run_rsi(r, &s), TIMES * (TIMES + 1) / 2);
}

/* ---- data beside code ---- */

/* Counters in the line of the loop itself, and in another line of the page; other code in between. */
GUEST(data_beside,
	"jmp 1f\n.balign 64\n"
	"1: incq 3f(%rip)\nincq 4f(%rip)\ncall 2f\ndec %ecx\njnz 1b\n"
	"mov 3f(%rip), %rsi\nadd 4f(%rip), %rsi\nadd 5f(%rip), %rsi\nout %al, $0xf4\nhlt\n"
	".balign 8\n3: .quad 0\n.balign 64\n4: .quad 0\n.balign 64\n"
	"2: addq $3, 5f(%rip)\nret\n.balign 64\n5: .quad 0\n");
GUEST(data_apart,
	"1: incq 4f(%rip)\ndec %ecx\njnz 1b\nmov 4f(%rip), %rsi\nout %al, $0xf4\nhlt\n"
	".balign 64\n.skip 64\n4: .quad 0\n");

static uint64_t invalidations(struct rig *r)
{
	struct engine_counters counters;

	r->ops->counters(r->vcpu, &counters);
	return counters.invalidations;
}

static void test_data_beside(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	jit_state(r, &s);
	s.reg[X86_RCX] = 3000;
	rig_put(r, CODE, code_data_beside, GUEST_SIZE(data_beside));
	assert_int_equal(run_rsi(r, &s), 5 * 3000);
	assert_int_equal(run_rsi(r, &s), 10 * 3000);
	/* A line of its own costs no translation. */
	s.reg[X86_RCX] = 30000;
	rig_put(r, CODE, code_data_apart, GUEST_SIZE(data_apart));
	uint64_t before = invalidations(r);
	assert_int_equal(run_rsi(r, &s), 30000);
	assert_in_range(invalidations(r) - before, 0, 20);
}

/* ---- the end of a page ---- */

#define EDGE 0x201000u

/* Calls what is in front of EDGE, RCX times; RBP: what is between calls. */
GUEST(call_edge,
	"xor %esi, %esi\n"
	"1: mov %rcx, %r8\ncall *%rbp\nmov %r8, %rcx\ncall *%rbx\nadd %rax, %rsi\ndec %ecx\njnz 1b\n"
	"out %al, $0xf4\nhlt\n");
GUEST(nothing, "ret\n");
/* The number of the turn into the constant of MOV: its upper half is behind the edge. */
GUEST(write_behind, "mov %cx, 0x201000\nret\n");
GUEST(write_before, "mov %cl, 0x200fff\nret\n");
GUEST(write_across, "mov %ecx, 0x200ffe\nret\n");
GUEST(write_alias, "mov %cx, 0x40000000\nret\n");
/* Let EDGE be one frame or the other, by the turn. */
GUEST(remap, "mov %ecx, %eax\nand $1, %eax\nshl $12, %eax\nadd $0x203007, %eax\nmov %rax, 0x19008\n"
	     "invlpg 0x201000\nret\n");
GUEST(remap_cr3, "mov %ecx, %eax\nand $1, %eax\nshl $12, %eax\nadd $0x203007, %eax\nmov %rax, 0x19008\n"
	     "mov %cr3, %rax\nmov %rax, %cr3\nret\n");

#define BETWEEN 0x206000u

/* MOV of a constant at EDGE - 3: two bytes of it before EDGE, two and RET behind. */
static void put_edge(struct rig *r, gpa_t second, uint32_t value)
{
	uint8_t code[6] = {0xb8, 0, 0, 0, 0, 0xc3};

	memcpy(code + 1, &value, 4);
	rig_put(r, EDGE - 3, code, 3);
	rig_put(r, second, code + 3, 3);
}

static uint64_t run_edge(struct rig *r, struct x86_state *s, const uint8_t *between, size_t bytes)
{
	jit_map(r, ALIAS, EDGE, P | W | U);
	s->reg[X86_RCX] = TIMES;
	s->reg[X86_RBX] = EDGE - 3;
	s->reg[X86_RBP] = BETWEEN;
	rig_put(r, BETWEEN, between, bytes);
	rig_put(r, CODE, code_call_edge, GUEST_SIZE(call_edge));
	return run_rsi(r, s);
}
#define RUN_EDGE(r, s, name) run_edge(r, s, code_##name, GUEST_SIZE(name))

static void test_edge(void **state)
{
	const uint64_t sum = TIMES * (TIMES + 1) / 2;
	struct rig *r = *state;
	struct x86_state s;

	jit_state(r, &s);
	put_edge(r, EDGE, 0x12345678);
	assert_int_equal(RUN_EDGE(r, &s, nothing), TIMES * 0x12345678ull);
	assert_int_equal(RUN_EDGE(r, &s, write_behind), TIMES * 0x5678ull + (sum << 16));
	put_edge(r, EDGE, 0x12345678);
	assert_int_equal(RUN_EDGE(r, &s, write_before), TIMES * 0x12340078ull + (sum << 8));
	assert_int_equal(RUN_EDGE(r, &s, write_across), sum);
	put_edge(r, EDGE, 0x12345678);
	assert_int_equal(RUN_EDGE(r, &s, write_alias), TIMES * 0x5678ull + (sum << 16));
}

static void test_edge_remapped(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	jit_state(r, &s);
	put_edge(r, 0x203000, 0x11115678);
	put_edge(r, 0x204000, 0x22225678);
	assert_int_equal(RUN_EDGE(r, &s, remap), TIMES / 2 * 0x33335678ull + TIMES / 2 * 0x5678ull);
	assert_int_equal(RUN_EDGE(r, &s, remap_cr3), TIMES / 2 * 0x33335678ull + TIMES / 2 * 0x5678ull);
}

/* The second page goes after a hundred turns. */
GUEST(unmap, "cmp $100, %ecx\nja 1f\nmovq $0, 0x19008\ninvlpg 0x201000\n1: ret\n");

static void test_edge_unmapped(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	struct trap trap;

	jit_state(r, &s);
	put_edge(r, EDGE, 0x12345678);
	s.reg[X86_RCX] = TIMES;
	s.reg[X86_RBX] = EDGE - 3;
	s.reg[X86_RBP] = BETWEEN;
	rig_put(r, BETWEEN, code_unmap, GUEST_SIZE(unmap));
	JIT_LOAD(r, &s, call_edge);
	jit_run(r, &trap);
	assert_int_equal(trap.vector, X86_PF_EXC);
	assert_int_equal(trap.error, 0); /* no EFER.NXE: the fetch does not show */
	assert_int_equal(trap.s.cr2, EDGE);
	assert_int_equal(trap.rip, EDGE - 3);
	assert_int_equal(trap.s.reg[X86_RCX], 100);
	assert_int_equal(trap.s.reg[X86_RSI], 100 * 0x12345678ull);
}

/* What ends a page: a block that goes on in the next one, a jump across, a fault across. */
GUEST(edge_jcc, /* at EDGE - 1: jnz .+2+3 */ ".byte 0x75, 0x03\nadd $1, %eax\nadd $2, %eax\nret\n");
GUEST(edge_rmw, /* at EDGE - 4: incq (%rdx), 3 bytes, then 48 ff / 02 across */
	"nop\n.byte 0x48, 0xff, 0x02, 0xb8, 1, 0, 0, 0, 0xc3\n");

static void put_at(struct rig *r, gpa_t at, const uint8_t *code, size_t bytes)
{
	rig_put(r, at, code, bytes);
}

static void test_edge_shapes(void **state)
{
	struct rig *r = *state;
	struct x86_state s;
	struct trap trap;

	jit_state(r, &s);
	s.reg[X86_RAX] = 0;
	put_at(r, EDGE - 1, code_edge_jcc, GUEST_SIZE(edge_jcc));
	/* Nothing changes flags between CALL and JNZ but ADD: RSI is not 0 from the second turn on. */
	s.reg[X86_RCX] = 10;
	s.reg[X86_RBX] = EDGE - 1;
	s.reg[X86_RBP] = BETWEEN;
	rig_put(r, BETWEEN, code_nothing, GUEST_SIZE(nothing));
	rig_put(r, CODE, code_call_edge, GUEST_SIZE(call_edge));
	uint64_t wanted = 0, rax = 0, flags_zero = 1; /* of `xor esi, esi` at first, then of DEC: not 0 */
	for (unsigned i = 0; i < 10; i++) {
		rax += flags_zero ? 3 : 2;
		flags_zero = 0;
		wanted += rax;
	}
	assert_int_equal(run_rsi(r, &s), wanted);
	/* A fault of an instruction across the edge: RIP is where it begins. */
	for (unsigned back = 1; back < 3; back++) {
		put_at(r, EDGE - back - 1, code_edge_rmw, GUEST_SIZE(edge_rmw));
		s.reg[X86_RBX] = EDGE - back - 1;
		s.reg[X86_RDX] = 0x300000;
		rig_put64(r, 0x300000, 0);
		assert_int_equal(run_rsi(r, &s), 10);
		assert_int_equal(rig_get64(r, 0x300000), 10);
		jit_map(r, 0x300000, 0, 0);
		assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
		jit_run(r, &trap);
		assert_int_equal(trap.vector, X86_PF_EXC);
		assert_int_equal(trap.rip, EDGE - back);
		assert_int_equal(trap.s.cr2, 0x300000);
		assert_int_equal(trap.error, 2);
		rig_put(r, TRAP_VECTOR, "\xff", 1);
		jit_map(r, 0x300000, 0x300000, P | W | U);
	}
}

/* ---- jumps into the middle of instructions ---- */

/* mov $0x00ebc2ff, %eax, or inside of it: inc edx; jmp +0. */
GUEST(middle,
	"xor %esi, %esi\nxor %edx, %edx\n"
	"1: test $1, %ecx\njnz 3f\n2: .byte 0xb8, 0xff, 0xc2, 0xeb, 0x00\nadd $1, %esi\ndec %ecx\njnz 1b\n"
	"shl $32, %rdx\nadd %rdx, %rsi\nout %al, $0xf4\nhlt\n"
	"3: lea 2b+1(%rip), %rax\ncmp $100, %ecx\nja 4f\njmp *%rax\n4: jmp 2b+1\n");
/* Then a store changes the inner one only in the upper half of the loop's turns. */
GUEST(middle_modified,
	"xor %esi, %esi\nxor %edx, %edx\n"
	"1: mov $0xc2, %al\ncmp $100, %ecx\nja 2f\nmov $0xca, %al\n" /* inc, dec edx */
	"2: mov %al, 4f+2(%rip)\ntest $1, %ecx\njnz 5f\n4: .byte 0xb8, 0xff, 0xc2, 0xeb, 0x00\n"
	"6: add $1, %esi\ndec %ecx\njnz 1b\n"
	"shl $32, %rdx\nadd %rdx, %rsi\nout %al, $0xf4\nhlt\n5: jmp 4b+1\n");

static void test_middle(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	jit_state(r, &s);
	s.reg[X86_RCX] = TIMES;
	rig_put(r, CODE, code_middle, GUEST_SIZE(middle));
	assert_int_equal(run_rsi(r, &s), TIMES | (uint64_t)(TIMES / 2) << 32);
	rig_put(r, CODE, code_middle_modified, GUEST_SIZE(middle_modified));
	assert_int_equal(run_rsi(r, &s), TIMES);
}

/* ---- code in a device ---- */

#define ROM_GPA 0xe0000000u

/* inc edx; nop...; ret: what each address gives is fixed. */
static const uint8_t device_code[16] = {0xff, 0xc2, 0x48, 0x8d, 0x44, 0x08, 0x05, 0xc3};

static uint64_t device_read(void *device, uint64_t offset, unsigned size)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)device_code[(offset + i) & 15] << 8 * i;
	return value;
}

static void device_write(void *device, uint64_t offset, unsigned size, uint64_t value) {}

static const struct bus_ops device_ops = {.read = device_read, .write = device_write};

GUEST(call_device, "mov $50, %ecx\nxor %esi, %esi\nxor %edx, %edx\n"
		   "1: mov $7, %eax\ncall *%rbx\nadd %rax, %rsi\ndec %ecx\njnz 1b\n"
		   "shl $32, %rdx\nadd %rdx, %rsi\nout %al, $0xf4\nhlt\n");

static void test_device_code(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	assert_int_equal(
		bus_add(r->bus, BUS_MMIO, ROM_GPA, 0x1000, "rom", &device_ops, r, NULL), 0);
	jit_state(r, &s);
	s.reg[X86_RBX] = ROM_GPA;
	rig_put(r, CODE, code_call_device, GUEST_SIZE(call_device));
	uint64_t wanted = 0;
	for (unsigned i = 1; i <= 50; i++)
		wanted += 7 + 5 + i; /* lea 5(%rax,%rcx) */
	assert_int_equal(run_rsi(r, &s), wanted | 50ull << 32);
	/* From RAM into the device: an instruction in both. */
	jit_map(r, ALIAS, 0x203000, P | W | U);
	jit_map(r, ALIAS + 0x1000, ROM_GPA, P | W | U);
	rig_put(r, 0x203ffe, "\x83\xc0", 2); /* add $-1, %eax; then what follows 0xff: c2 48 8d: ret $0x8d48 */
	s.reg[X86_RBX] = ALIAS + 0xffe;
	rig_put(r, CODE + 0x100, "\x81\xec\x48\x8d\x00\x00\xff\xd3\xe6\xf4\xf4", 11);
	s.reg[X86_RSP] = 0x280000;
	s.reg[X86_RAX] = 7;
	s.reg[X86_RIP] = CODE + 0x104; /* past the SUB, whose end is two harmless bytes */
	rig_put(r, CODE + 0x104, "\x90\x90", 2);
	struct x86_state end;
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	jit_run_plainly(r, &end);
	assert_int_equal(end.reg[X86_RAX], 6);
	assert_int_equal(end.reg[X86_RSP], 0x280000 + 0x8d48);
}

/* ---- devices that write code ---- */

/* mov $0, %eax; mov %eax, [0x5200]; until it is 500. Its code is in the middle of RAM. */
GUEST(follow, "1: mov $0, %eax\nmov %eax, 0x5200\ncmp $500, %eax\njb 1b\nout %al, $0xf4\nhlt\n");

struct writer {
	struct rig *rig;
	bool failed;
};

static void *writer_thread(void *opaque)
{
	struct writer *w = opaque;
	uint64_t until = clock_monotonic_ns() + 20000000000ull;

	for (uint32_t i = 1; i <= 500 && !w->failed; i++) {
		memory_write(w->rig->memory, CODE + 1, &i, sizeof(i));
		while ((uint32_t)rig_get64(w->rig, 0x5200) != i && !w->failed) {
			w->failed = clock_monotonic_ns() > until;
			sched_yield();
		}
	}
	if (w->failed) { /* so that it ends */
		memory_write(w->rig->memory, CODE, "\xe6\xf4\xf4", 3);
		w->rig->done = true;
		w->rig->ops->kick(w->rig->vcpu);
	}
	return NULL;
}

static void test_device_writes(void **state)
{
	struct rig *r = *state;
	struct writer w = {.rig = r};
	struct x86_state s;
	pthread_t thread;

	jit_state(r, &s);
	JIT_LOAD(r, &s, follow);
	assert_int_equal(pthread_create(&thread, NULL, writer_thread, &w), 0);
	jit_run_plainly(r, &s);
	pthread_join(thread, NULL);
	assert_false(w.failed);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(test_next_instruction),
		RIG_TEST(test_next_instruction_by_alias),
		RIG_TEST(test_run_at_alias),
		RIG_TEST(test_data_beside),
		RIG_TEST(test_edge),
		RIG_TEST(test_edge_remapped),
		RIG_TEST(test_edge_unmapped),
		RIG_TEST(test_edge_shapes),
		RIG_TEST(test_middle),
		RIG_TEST(test_device_code),
		RIG_TEST(test_device_writes),
	};
	int status = rig_main(argc, argv, "ENGINE");

	return status ? status : cmocka_run_group_tests_name(rig_ops->name, tests, NULL, NULL);
}
