/*
 * What a KVM's list of supported CPUID leaves makes of a model. No KVM is asked.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/util.h"
#include "engine/kvm/private.h"

#define TSC_HZ 2000000000ull

/* A processor with AVX2 and all of XSAVE. */
static void host(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	regs[0] = leaf == 0 ? 0x16 : leaf == 0x80000000 ? 0x80000008 : ~0u;
	regs[1] = regs[2] = regs[3] = ~0u;
	if (leaf == 0)
		regs[1] = 0x756e6547, regs[2] = 0x6c65746e, regs[3] = 0x49656e69;
	if (leaf == 2 || leaf == 4)
		regs[0] = regs[1] = regs[2] = regs[3] = 0;
}

/* A list that has every bit of each of the model's leaves, but those. */
static struct kvm_cpuid2 *all_but(const struct x86_cpuid_model *m, uint32_t leaf, uint32_t subleaf,
	uint32_t eax, uint32_t ecx)
{
	struct kvm_cpuid2 *list = calloc(1, sizeof(*list) + m->count * sizeof(list->entries[0]));

	assert_non_null(list);
	for (unsigned i = 0; i < m->count; i++) {
		const bool here = m->leaf[i].leaf == leaf && m->leaf[i].subleaf == subleaf;

		list->entries[list->nent++] = (struct kvm_cpuid_entry2){.function = m->leaf[i].leaf,
			.index = m->leaf[i].subleaf,
			.eax = here ? ~eax : ~0u,
			.ebx = ~0u,
			.ecx = here ? ~ecx : ~0u,
			.edx = ~0u};
	}
	return list;
}

static void reduced(
	struct x86_cpuid_model *m, uint32_t leaf, uint32_t subleaf, uint32_t eax, uint32_t ecx)
{
	x86_cpuid_from_host(m, 1, TSC_HZ, host);
	struct kvm_cpuid2 *list = all_but(m, leaf, subleaf, eax, ecx);

	kvm_cpuid_reduce(m, list, true);
	free(list);
}

static void check(const struct x86_cpuid_model *m, uint32_t mask, uint32_t bytes)
{
	uint32_t r[4];

	x86_cpuid_query(m, 0, 0, mask, 0, 0xd, 0, r);
	assert_int_equal(r[0], mask);
	assert_int_equal(r[1], bytes);
	assert_int_equal(r[2], bytes);
	x86_cpuid_query(m, 0, 0, mask, 0, 0xd, 2, r);
	assert_int_equal(r[0], mask & X86_XCR0_AVX ? 256 : 0);
	assert_int_equal(r[1], mask & X86_XCR0_AVX ? 576 : 0);
	assert_int_equal(x86_has(&m->features, X86_F_XSAVE), mask != 0);
	assert_int_equal(x86_has(&m->features, X86_F_AVX), !!(mask & X86_XCR0_AVX));
	assert_int_equal(x86_has(&m->features, X86_F_AVX2), !!(mask & X86_XCR0_AVX));
	assert_int_equal(x86_has(&m->features, X86_F_FMA), !!(mask & X86_XCR0_AVX));
	assert_int_equal(x86_has(&m->features, X86_F_VAES), !!(mask & X86_XCR0_AVX));
}

static void test_xsave(void **state)
{
	struct x86_cpuid_model m;

	reduced(&m, 0, 0, 0, 0);
	check(&m, 7, 832);
	reduced(&m, 1, 0, 0, 1u << 28);
	check(&m, 3, 576);
	reduced(&m, 0xd, 0, X86_XCR0_AVX, 0); /* a host whose system has not switched it on */
	check(&m, 3, 576);
	reduced(&m, 0xd, 0, X86_XCR0_AVX | X86_XCR0_SSE, 0);
	check(&m, 0, 0);
	reduced(&m, 1, 0, 0, 1u << 26);
	check(&m, 0, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_xsave)};

	return cmocka_run_group_tests_name("kvm_cpuid", tests, NULL, NULL);
}
