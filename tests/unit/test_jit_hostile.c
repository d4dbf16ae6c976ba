/*
 * What only a hostile guest does: code at the edge of the address space, and clocks written over code. The
 * monitor must live, and the guest get what the architecture says.
 */
#include "jit_rig.h"

#define EDGE	   0x7ffffffff000ull /* the last page before the addresses that are none */
#define EDGE_GPA   0x300000u
#define EDGE_TABLE 0x1c000u /* three of them */

static void map_edge(struct rig *r)
{
	rig_put64(r, PAGING + 255 * 8, EDGE_TABLE | P | W | U);
	rig_put64(r, EDGE_TABLE + 511 * 8, (EDGE_TABLE + 0x1000) | P | W | U);
	rig_put64(r, EDGE_TABLE + 0x1000 + 511 * 8, (EDGE_TABLE + 0x2000) | P | W | U);
	rig_put64(r, EDGE_TABLE + 0x2000 + 511 * 8, EDGE_GPA | P | W | U);
}

/* The same by all ways out of the page, of which the target is no address; EAX = 0 when one is taken. */
GUEST(edge_jmp, "xor %eax, %eax\njmp .+0x1000");
GUEST(edge_jcc, "xor %eax, %eax\njz .+0x1000");
GUEST(edge_jrcxz, "xor %eax, %eax\nxor %ecx, %ecx\njrcxz .+0x70");
GUEST(edge_call, "xor %eax, %eax\ncall .+0x1000");
GUEST(edge_indirect, "xor %eax, %eax\nlea 1f(%rip), %rbx\njmp *%rbx\n1: jmp .+0x1000");
GUEST(edge_ret, "lea 1f(%rip), %rbx\npush %rbx\nret\n1: xor %eax, %eax\njmp .+0x1000");
GUEST(edge_through, "xor %eax, %eax\nnop\nnop");

static const struct edge_case {
	const char *name;
	const uint8_t *code, *end;
	unsigned at;
	unsigned fault_at; /* of the instruction, from the code's end; 0: what is behind the page */
} edges[] = {
#define EDGE_CASE(name, at, fault_at) {#name, code_##name, code_##name##_end, at, fault_at}
	EDGE_CASE(edge_jmp, 0x100, 5),
	EDGE_CASE(edge_jcc, 0x100, 6),
	EDGE_CASE(edge_jrcxz, 0xfa0, 2),
	EDGE_CASE(edge_call, 0x100, 5),
	EDGE_CASE(edge_indirect, 0x100, 5),
	EDGE_CASE(edge_ret, 0x100, 5),
	EDGE_CASE(edge_through, 0xffc, 0),
};

static void test_edge(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(edges); i++) {
		const struct edge_case *c = &edges[i];
		const size_t bytes = (size_t)(c->end - c->code);
		struct rig *r = *state;
		struct x86_state s;
		struct trap trap;

		jit_state(r, &s);
		map_edge(r);
		rig_put(r, EDGE_GPA + c->at, c->code, bytes);
		s.reg[X86_RIP] = EDGE + c->at;
		assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
		jit_run(r, &trap);
		if (trap.vector != X86_GP || trap.rip != EDGE + c->at + bytes - c->fault_at ||
			trap.rsp != STACK || trap.s.reg[X86_RAX] != 0)
			fail_msg("%s: exception %u at %#llx, RSP %#llx", c->name, trap.vector,
				(unsigned long long)trap.rip, (unsigned long long)trap.rsp);
	}
}

/* ---- a device that writes code, on the vCPU's own thread: as the clocks' MSRs make the machine do ---- */

#define PATCH_PORT 0xf6

GUEST(patched, "mov $0x10, %ecx\n1: mov $1, %ebx\nout %al, $0xf6\nmov $1, %ebx\ndec %ecx\njnz 1b\n"
	       "out %al, $0xf4\nhlt");
#define PATCH_AT (CODE + 13) /* the second 1 */

static void patch(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	const uint8_t two = 2;

	rig_put(opaque, PATCH_AT, &two, 1);
}

static const struct bus_ops patch_device = {.read = rig_read, .write = patch};

static void test_own_device(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	assert_int_equal(bus_add(r->bus, BUS_PIO, PATCH_PORT, 1, "patch", &patch_device, r, NULL), 0);
	jit_state(r, &s);
	JIT_LOAD(r, &s, patched);
	assert_int_equal(code_patched[PATCH_AT - CODE], 1);
	alarm(20); /* it waited for itself once */
	jit_run_plainly(r, &s);
	alarm(0);
	assert_int_equal(s.reg[X86_RBX], 2);
	assert_int_equal(s.reg[X86_RCX], 0);
}

/* ---- a page that is mapped elsewhere while its code runs ---- */

/*
 * At X, that maps OLD, the code changes X to map NEW, without INVLPG, and has its translation for execution evicted
 * by code whose address has the same index; so a jump within the page may end in NEW. At Y, that maps OLD, it
 * never may: there the same jump leads to OLD, or a program could make another one's pages jump to its own.
 */
#define X	(ALIAS + 0x100000u)
#define Y	(ALIAS + 0x101000u)
#define OLD	0x120000u
#define NEW	0x121000u
#define RETURNS 0x100000u /* X's index */
#define STEPS	0x5300u

GUEST(remapped, "1: mov (%rbx), %rax\nmov 8(%rbx), %rsi\nadd $16, %rbx\nmov %rax, (%rdi)\ncall *%rsi\n"
		"dec %ecx\njz 2f\njmp 1b\n2: mov $1, %edx\nout %al, $0xf4\nhlt");

static void run_remapped(struct rig *r, uint64_t at, unsigned steps, unsigned switch_in, struct x86_state *ret)
{
	struct x86_state s;

	jit_state(r, &s);
	jit_map(r, X, OLD, P | W | U);
	jit_map(r, Y, OLD, P | W | U);
	for (unsigned i = 0; i < steps; i++) {
		rig_put64(r, STEPS + 16 * i, (i == switch_in ? NEW : OLD) | P | W | U);
		rig_put64(r, STEPS + 16 * i + 8, RETURNS + (i == switch_in ? 128 : 64));
	}
	s.reg[X86_RIP] = at;
	s.reg[X86_RCX] = steps;
	s.reg[X86_RBX] = STEPS;
	s.reg[X86_RDI] = ALIAS_TABLE + 0x100 * 8;
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	jit_run_plainly(r, ret);
}

static void test_remapped(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	rig_put(r, OLD, code_remapped, GUEST_SIZE(remapped));
	rig_put(r, NEW, code_remapped, GUEST_SIZE(remapped));
	rig_put(r, NEW + GUEST_SIZE(remapped) - 7, "\2", 1); /* in EDX */
	rig_put(r, RETURNS + 64, "\xc3", 1);
	rig_put(r, RETURNS + 128, "\xc3", 1);
	run_remapped(r, X, 8, 7, &s);
	assert_in_range(s.reg[X86_RDX], 1, 2);
	run_remapped(r, Y, 1, 1, &s);
	assert_int_equal(s.reg[X86_RDX], 1);
}

/* ---- a locked operation on a device's register that is another each time it is read ---- */

GUEST(counter, "mov $0xd0000000, %ebx\nlock incl (%rbx)\nxchg %eax, 2(%rbx)\nout %al, $0xf4\nhlt");

static void test_locked_counter(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	jit_state(r, &s);
	JIT_LOAD(r, &s, counter);
	alarm(20); /* it went on for ever once */
	jit_run_plainly(r, &s);
	alarm(0);
	assert_true(r->access_count > 4);
}

/* ---- instructions that guests are given whether the host has them or not ---- */

#define BUFFER 0x5200u

GUEST(movbe, "movbe (%rbx), %eax\nout %al, $0xf4\nhlt");
GUEST(popcnt, "popcnt %ecx, %eax\nout %al, $0xf4\nhlt");
GUEST(lzcnt, "lzcnt %ecx, %eax\nout %al, $0xf4\nhlt");
GUEST(tzcnt, "tzcnt %ecx, %eax\nout %al, $0xf4\nhlt");
GUEST(adcx, "stc\nadcx %ecx, %eax\nout %al, $0xf4\nhlt");
GUEST(movdiri, "movdiri %ecx, (%rbx)\nmov (%rbx), %eax\nout %al, $0xf4\nhlt");
GUEST(movdir64b, "movdir64b (%rsi), %rbx\nmov (%rbx), %eax\nout %al, $0xf4\nhlt");
GUEST(clflushopt, "clflushopt (%rbx)\nmov (%rbx), %eax\nout %al, $0xf4\nhlt");
GUEST(clwb, "clwb (%rbx)\nmov (%rbx), %eax\nout %al, $0xf4\nhlt");
GUEST(serialize, "serialize\nmov (%rbx), %eax\nout %al, $0xf4\nhlt");
GUEST(rdpid, "rdpid %rax\nout %al, $0xf4\nhlt");
GUEST(crc32, "xor %eax, %eax\ncrc32b (%rbx), %eax\nout %al, $0xf4\nhlt");
GUEST(rdrand, "1: rdrand %rax\njnc 1b\nxor %eax, %eax\nout %al, $0xf4\nhlt");
GUEST(rdseed, "1: rdseed %rax\njnc 1b\nxor %eax, %eax\nout %al, $0xf4\nhlt");

/* With RCX = 0x00f0, bytes 11 22 33 44 at RBX and 55 66 77 88 at RSI. */
static const struct feature_case {
	const char *name;
	const uint8_t *code, *end;
	unsigned feature;
	uint32_t eax;
} features[] = {
#define FEATURE_CASE(name, feature, eax) {#name, code_##name, code_##name##_end, feature, eax}
	FEATURE_CASE(movbe, X86_F_MOVBE, 0x11223344),
	FEATURE_CASE(popcnt, X86_F_POPCNT, 4),
	FEATURE_CASE(lzcnt, X86_F_ABM, 24),
	FEATURE_CASE(tzcnt, X86_F_BMI1, 4),
	FEATURE_CASE(adcx, X86_F_ADX, 0xf1),
	FEATURE_CASE(movdiri, X86_F_MOVDIRI, 0xf0),
	FEATURE_CASE(movdir64b, X86_F_MOVDIR64B, 0x88776655),
	FEATURE_CASE(clflushopt, X86_F_CLFLUSHOPT, 0x44332211),
	FEATURE_CASE(clwb, X86_F_CLWB, 0x44332211),
	FEATURE_CASE(serialize, X86_F_SERIALIZE, 0x44332211),
	FEATURE_CASE(rdpid, X86_F_RDPID, 0),
	FEATURE_CASE(crc32, X86_F_SSE42, 0xe235446c),
	FEATURE_CASE(rdrand, X86_F_RDRAND, 0),
	FEATURE_CASE(rdseed, X86_F_RDSEED, 0),
};

static void test_features(void **state)
{
	struct rig *r = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(features); i++) {
		const struct feature_case *c = &features[i];
		struct x86_state s;

		if (!x86_has(&r->model.features, c->feature)) {
			print_message("NOT CHECKED: %s (guests are not given it here)\n", c->name);
			continue;
		}
		jit_state(r, &s);
		rig_put64(r, BUFFER, 0x44332211);
		rig_put64(r, BUFFER + 64, 0x88776655);
		s.reg[X86_RAX] = 0;
		s.reg[X86_RBX] = BUFFER;
		s.reg[X86_RSI] = BUFFER + 64;
		s.reg[X86_RCX] = 0xf0;
		rig_load(r, &s, c->code, (size_t)(c->end - c->code));
		jit_run_plainly(r, &s); /* an illegal instruction would end the monitor */
		if (s.reg[X86_RAX] != c->eax)
			fail_msg("%s: %#llx, not %#x", c->name, (unsigned long long)s.reg[X86_RAX], c->eax);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(test_features),
		RIG_TEST(test_edge),
		RIG_TEST(test_own_device),
		RIG_TEST(test_remapped),
		RIG_TEST(test_locked_counter),
	};
	int status = rig_main(argc, argv, "ENGINE");

	return status ? status : cmocka_run_group_tests_name(rig_ops->name, tests, NULL, NULL);
}
