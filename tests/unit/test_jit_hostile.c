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

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		JIT_TEST(test_edge),
		JIT_TEST(test_own_device),
	};
	int status = jit_main(argc, argv);

	return status ? status : cmocka_run_group_tests_name(jit_ops->name, tests, NULL, NULL);
}
