/*
 * The comparison of lockstep: no byte of a state and no page of RAM is left out.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/util.h"
#include "compare.h"

#define RAM_BYTES MIB(4)

/* 6 bytes behind either table register, 1 in fpu, 5 in the event and at the end: see state.h. */
static void test_every_byte_counts(void **state)
{
	struct x86_state a = {0}, b = {0};
	unsigned ignored = 0;

	assert_true(compare_states(&a, &b, 0));
	for (size_t i = 0; i < sizeof(b); i++) {
		((uint8_t *)&b)[i] ^= 0x80;
		ignored += compare_states(&a, &b, 0);
		((uint8_t *)&b)[i] ^= 0x80;
	}
	unsigned padding = 2 * (sizeof(a.gdtr) - 10) + offsetof(struct x86_fpu, fip) -
			   offsetof(struct x86_fpu, ftw) - 1 + offsetof(struct x86_event, error) -
			   3 + sizeof(a) - offsetof(struct x86_state, nmi_pending) - 1 +
			   sizeof(a.fpu) - offsetof(struct x86_fpu, opmask) - sizeof(a.fpu.opmask) +
			   offsetof(struct x86_fpu, vec) - offsetof(struct x86_fpu, st) -
			   sizeof(a.fpu.st);
	assert_int_equal(ignored, padding);
}

static void test_dead_flags(void **state)
{
	struct x86_state a = {0}, b = {.rflags = X86_CF | X86_AF};

	assert_true(compare_states(&a, &b, X86_CF | X86_AF));
	assert_false(compare_states(&a, &b, X86_CF));
}

static struct guest_memory *memory_new(void)
{
	struct guest_memory *memory;
	struct error err = {0};

	assert_int_equal(memory_create(&memory), 0);
	assert_int_equal(memory_add_ram(memory, 0, RAM_BYTES, 0, "ram", &err), 0);
	assert_int_equal(memory_add_ram(memory, GIB(4), RAM_BYTES, 0, "high", &err), 0);
	return memory;
}

static void test_ram(void **state)
{
	static const gpa_t places[] = {
		0, 4095, 4096, RAM_BYTES - 1, MIB(1) + 77, GIB(4), GIB(4) + RAM_BYTES - 1};
	struct guest_memory *a = memory_new(), *b = memory_new();
	struct compare_ram ram;
	gpa_t gpa;

	assert_int_equal(compare_ram_init(&ram, a, b), 0);
	for (unsigned i = 0; i < 2 * ARRAY_SIZE(places); i++) {
		struct guest_memory *one = i & 1 ? a : b, *other = i & 1 ? b : a;
		const gpa_t at = places[i / 2];
		const uint8_t byte = (uint8_t)(i + 1);

		assert_int_equal(memory_write(one, at, &byte, 1), 0);
		assert_false(compare_ram(&ram, false, &gpa));
		assert_int_equal(gpa, at);
		assert_true(compare_ram(&ram, false, &gpa)); /* nothing was written since */
		assert_false(compare_ram(&ram, true, &gpa));
		assert_int_equal(memory_write(other, at, &byte, 1), 0);
		assert_true(compare_ram(&ram, false, &gpa));
		assert_true(compare_ram(&ram, true, &gpa));
	}
	compare_ram_done(&ram);
	memory_free(a);
	memory_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_byte_counts),
		cmocka_unit_test(test_dead_flags),
		cmocka_unit_test(test_ram),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
