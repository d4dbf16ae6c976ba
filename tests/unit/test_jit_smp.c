/*
 * Two processors: one changes the code that the other runs, with and without the protocol of SDM 3A 8.1.3; locked
 * operations within a line, across lines and across pages; each needs the other to make headway.
 */
#include "jit_rig.h"

#define FLAG  0x205000u /* each in a line of its own */
#define ACK   0x205040u
#define STOP  0x205080u
#define COUNT 0x300ffcu /* across pages */
#define CODE2 0x211000u /* of the second processor */
#define FUNC  0x212000u /* mov $0, %eax; ret */
#define TURNS 300 /* on a busy host each hands over to the other in milliseconds */
#define LOCKS 20000 /* fewer do not meet */

struct second {
	struct rig *rig;
	struct engine_vcpu *vcpu;
	_Atomic bool stop;
	pthread_t thread;
};

static void *second_thread(void *opaque)
{
	struct second *second = opaque;
	struct error err = {0};

	while (!second->stop)
		if (second->rig->ops->run(second->vcpu, &err) != ENGINE_EXIT_KICKED)
			break;
	return NULL;
}

static void second_start(struct second *second, struct rig *r, const struct x86_state *first, gpa_t at,
	const uint8_t *code, size_t bytes)
{
	const struct engine_vcpu_config config = {.index = 1, .apic_id = 1, .opaque = r};
	struct x86_state s = *first;
	struct error err = {0};

	*second = (struct second){.rig = r};
	if (r->ops->vcpu_create(&second->vcpu, r->vm, &config, &err) < 0)
		fail_msg("%s", err.text);
	rig_put(r, at, code, bytes);
	s.reg[X86_RIP] = at;
	s.reg[X86_RSP] = 0x290000;
	s.reg[X86_R13] = 1; /* leaves the end to the first one */
	assert_int_equal(r->ops->set_state(second->vcpu, &s), 0);
	assert_int_equal(pthread_create(&second->thread, NULL, second_thread, second), 0);
}

static void second_stop(struct second *second)
{
	struct rig *r = second->rig;

	second->stop = true;
	r->ops->kick(second->vcpu);
	pthread_join(second->thread, NULL);
	r->ops->vcpu_free(second->vcpu);
}

static void start(struct rig *r, struct x86_state *s)
{
	jit_state(r, s);
	s->reg[X86_RSP] = 0x280000;
	s->reg[X86_R12] = TURNS;
	s->reg[X86_R13] = 0;
	rig_put64(r, FLAG, 0);
	rig_put64(r, ACK, 0);
	rig_put64(r, STOP, 0);
	rig_put64(r, COUNT, 0);
	rig_put64(r, FUNC, 0xc300000000b8ull);
	jit_map(r, ALIAS, FUNC, P | W | U);
}

/* ---- code changed by the other ---- */

/* Writes the number of the turn into the function, then says so; waits until it has been run. */
GUEST(modifier,
	"xor %esi, %esi\n1: inc %esi\nmov %esi, %eax\nmov %eax, 1(%rbx)\nmfence\nmov %esi, 0x205000\n"
	"2: cmpq $0, 0x205080\njne 3f\npause\ncmp %esi, 0x205040\njne 2b\n"
	"cmp %r12d, %esi\njb 1b\nmovq $1, 0x205080\n3: out %al, $0xf4\nhlt\n");
/* Runs it when told, behind CPUID; RDI: turns in which it was not what was told. */
GUEST(runner,
	"xor %esi, %esi\nxor %edi, %edi\nmov $0x212000, %ebp\n"
	"1: pause\ncmp %esi, 0x205000\nje 1b\nmov 0x205000, %esi\nxor %eax, %eax\ncpuid\n"
	"call *%rbp\ncmp %esi, %eax\nje 2f\nlock incq 0x205008\n2: mov %esi, 0x205040\njmp 1b\n");

static void cross_modify(struct rig *r, uint64_t at)
{
	struct second second;
	struct x86_state s;

	start(r, &s);
	rig_put64(r, FLAG + 8, 0);
	s.reg[X86_RBX] = at;
	rig_put(r, CODE, code_modifier, GUEST_SIZE(modifier));
	second_start(&second, r, &s, CODE2, code_runner, GUEST_SIZE(runner));
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	jit_run_plainly(r, &s);
	second_stop(&second);
	assert_int_equal(s.reg[X86_RSI], TURNS);
	assert_int_equal(rig_get64(r, FLAG + 8), 0);
}

static void test_cross_modify(void **state)
{
	cross_modify(*state, FUNC);
}

static void test_cross_modify_by_alias(void **state)
{
	cross_modify(*state, ALIAS);
}

/*
 * No protocol: the other runs it all the time. It sees old or new code, whole, never older than before, and the last in
 * the end: it says so in ACK.
 */
GUEST(free_modifier,
	"xor %esi, %esi\n1: inc %esi\nmov %esi, (%rbx)\nmov $500, %ecx\n2: dec %ecx\njnz 2b\n"
	"cmp %r12d, %esi\njb 1b\n"
	"3: pause\ncmp %r12d, 0x205040\njne 3b\nout %al, $0xf4\nhlt\n");
GUEST(free_runner,
	"xor %esi, %esi\nmov $0x212003, %ebp\n1: call *%rbp\ncmp %esi, %eax\njae 2f\nlock incq 0x205008\n"
	"2: mov %eax, %esi\nmov %esi, 0x205040\njmp 1b\n");

static void test_modify_freely(void **state)
{
	struct rig *r = *state;
	struct second second;
	struct x86_state s;

	start(r, &s);
	rig_put64(r, FLAG + 8, 0);
	/* The constant is aligned. */
	rig_put(r, FUNC + 3, "\xb8\0\0\0\0\xc3", 6);
	s.reg[X86_RBX] = FUNC + 4;
	rig_put(r, CODE, code_free_modifier, GUEST_SIZE(free_modifier));
	second_start(&second, r, &s, CODE2, code_free_runner, GUEST_SIZE(free_runner));
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	jit_run_plainly(r, &s);
	second_stop(&second);
	assert_int_equal(rig_get64(r, FLAG + 8), 0);
}

/* Both write into the page that both run, each its own line. */
GUEST(same_page,
	"xor %esi, %esi\n1: incq 2f(%rip)\nlock incq 0x205000\ninc %esi\ncmp %r12d, %esi\njb 1b\n"
	"lock incq 0x205040\n3: pause\ncmpq $2, 0x205040\njb 3b\ntest %r13d, %r13d\njnz 4f\nout %al, $0xf4\n4: pause\njmp 4b\n"
	".skip 64\n2: .quad 0\n");

static void test_same_page(void **state)
{
	struct rig *r = *state;
	struct second second;
	struct x86_state s;

	start(r, &s);
	rig_put(r, CODE, code_same_page, GUEST_SIZE(same_page));
	second_start(&second, r, &s, CODE + 0x800, code_same_page, GUEST_SIZE(same_page));
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	jit_run_plainly(r, &s);
	second_stop(&second);
	assert_int_equal(rig_get64(r, FLAG), 2 * TURNS);
	const uint64_t at = CODE + GUEST_SIZE(same_page) - 8;
	assert_int_equal(rig_get64(r, at), TURNS);
	assert_int_equal(rig_get64(r, at + 0x800), TURNS);
}

/* ---- locked operations ---- */

#define MEET "lock incq 0x205000\n9: pause\ncmpq $2, 0x205000\njb 9b\n"

/* R12 turns at RBX by six kinds of instruction that add up; then wait for the other. */
GUEST(locked,
	MEET "xor %esi, %esi\n1: lock incl (%rbx)\nlock addl $2, (%rbx)\nmov $3, %ecx\nlock xadd %ecx, (%rbx)\n"
	"lock subl $1, (%rbx)\nlock decl (%rbx)\n"
	"mov (%rbx), %eax\n2: lea 1(%rax), %ecx\nlock cmpxchg %ecx, (%rbx)\njnz 2b\n"
	"inc %esi\ncmp %r12d, %esi\njb 1b\nlock incq 0x205040\n"
	"3: pause\ncmpq $2, 0x205040\njb 3b\ntest %r13d, %r13d\njnz 4f\nout %al, $0xf4\n4: pause\njmp 4b\n");

static void locked_at(struct rig *r, uint64_t at, unsigned turns)
{
	struct second second;
	struct x86_state s;

	start(r, &s);
	rig_put64(r, at, 0);
	s.reg[X86_RBX] = at;
	s.reg[X86_R12] = turns;
	rig_put(r, CODE, code_locked, GUEST_SIZE(locked));
	second_start(&second, r, &s, CODE2, code_locked, GUEST_SIZE(locked));
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	jit_run_plainly(r, &s);
	second_stop(&second);
	uint32_t sum = (uint32_t)rig_get64(r, at);
	if (sum != 2 * turns * 5)
		fail_msg("at %#llx: %u, not %u", (unsigned long long)at, sum, 2 * turns * 5);
}

static void test_locked(void **state)
{
	locked_at(*state, 0x300000, LOCKS);
	locked_at(*state, 0x300006, LOCKS); /* across 8 bytes */
	locked_at(*state, 0x30003e, LOCKS); /* across lines */
	locked_at(*state, 0x300ffe, LOCKS); /* across pages */
}

/* CMPXCHG16B on both: two counters that stay equal. */
GUEST(locked16,
	MEET "xor %esi, %esi\nmov $0x300000, %edi\n"
	"1: mov (%rdi), %rax\nmov 8(%rdi), %rdx\n"
	"2: lea 1(%rax), %rbx\nlea 1(%rdx), %rcx\nlock cmpxchg16b (%rdi)\njnz 2b\n"
	"inc %esi\ncmp %r12d, %esi\njb 1b\nlock incq 0x205040\n"
	"3: pause\ncmpq $2, 0x205040\njb 3b\ntest %r13d, %r13d\njnz 4f\nout %al, $0xf4\n4: pause\njmp 4b\n");

static void test_locked16(void **state)
{
	struct rig *r = *state;
	struct second second;
	struct x86_state s;

	start(r, &s);
	rig_put64(r, 0x300000, 0);
	rig_put64(r, 0x300008, 0);
	rig_put(r, CODE, code_locked16, GUEST_SIZE(locked16));
	second_start(&second, r, &s, CODE2, code_locked16, GUEST_SIZE(locked16));
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	jit_run_plainly(r, &s);
	second_stop(&second);
	assert_int_equal(rig_get64(r, 0x300000), 2 * TURNS);
	assert_int_equal(rig_get64(r, 0x300008), 2 * TURNS);
}

/* ---- a device that writes code with its lock held, for which the other waits ---- */

#define WRITER_PORT 0xf7

/* Each turn: the device adds 1 to the number in the function, which both run. */
GUEST(caller, "mov $0x212000, %ebp\n1: out %al, $0xf7\ncall *%rbp\nadd %rax, %rbx\ndec %r12d\njnz 1b\n"
	      "test %r13d, %r13d\n2: jnz 2b\nout %al, $0xf4\nhlt\n");

static void device_writes_code(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	uint32_t number = (uint32_t)rig_get64(opaque, FUNC + 1) + 1;

	sched_yield(); /* so that the other waits for the lock */
	rig_put(opaque, FUNC + 1, &number, 4);
}

static void test_device_lock(void **state)
{
	static const struct bus_ops ops = {.read = rig_read, .write = device_writes_code};
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	struct second second;
	struct rig *r = *state;
	struct x86_state s;

	assert_int_equal(bus_add(r->bus, BUS_PIO, WRITER_PORT, 1, "writer", &ops, r, &lock), 0);
	start(r, &s);
	s.reg[X86_RBX] = 0;
	s.reg[X86_R12] = 2000;
	rig_put(r, CODE, code_caller, GUEST_SIZE(caller));
	second_start(&second, r, &s, CODE2, code_caller, GUEST_SIZE(caller));
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	alarm(60); /* they waited for each other once */
	jit_run_plainly(r, &s);
	alarm(0);
	second_stop(&second);
	/* In each turn no number is older than one's own write. */
	assert_true(s.reg[X86_RBX] >= 2000ull * 2001 / 2);
	bus_remove(r->bus, BUS_PIO, WRITER_PORT);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(test_device_lock),
		RIG_TEST(test_cross_modify),
		RIG_TEST(test_cross_modify_by_alias),
		RIG_TEST(test_modify_freely),
		RIG_TEST(test_same_page),
		RIG_TEST(test_locked),
		RIG_TEST(test_locked16),
	};
	int status = rig_main(argc, argv, "ENGINE");

	return status ? status : cmocka_run_group_tests_name(rig_ops->name, tests, NULL, NULL);
}
