/*
 * FXSAVE, FXRSTOR, the XSAVE family: formats, header checks, what is left untouched, round trips.
 */
#include <errno.h>

#include "x86_run.h"

#include "isa/x86/fpu.h"
#include "isa/x86/xsave.h"

#define FXSAVE	  "\x0f\xae\x03" /* [rbx] */
#define FXRSTOR	  "\x0f\xae\x0b"
#define FXSAVE64  "\x48\x0f\xae\x03"
#define FXRSTOR64 "\x48\x0f\xae\x0b"
#define XSAVE	  "\x48\x0f\xae\x23"
#define XRSTOR	  "\x48\x0f\xae\x2b"
#define XSAVEOPT  "\x48\x0f\xae\x33"
#define XSAVEC	  "\x48\x0f\xc7\x23"
#define XSAVES	  "\x48\x0f\xc7\x2b"
#define XRSTORS	  "\x48\x0f\xc7\x1b"

static uint8_t *area(struct test_cpu *t)
{
	return test_host(t, DATA);
}

static uint64_t *header(struct test_cpu *t)
{
	return (uint64_t *)(area(t) + 512);
}

/* A state in which no two bytes of a register are alike. */
static void fill(struct x86_fpu *fpu)
{
	*fpu = (struct x86_fpu){.fcw = 0x27f,
		.fsw = 3 << 11 | 0x20,
		.fop = 0x123,
		.ftw = 0x5a,
		.fip = 0x123456789a,
		.fdp = 0xabcdef0123,
		.mxcsr = 0x1fa0};
	for (unsigned i = 0; i < 8; i++)
		for (unsigned j = 0; j < 10; j++)
			fpu->st[i][j] = (uint8_t)(i * 16 + j + 1);
	for (unsigned i = 0; i < 16; i++)
		for (unsigned j = 0; j < 32; j++)
			fpu->vec[i].b[j] = (uint8_t)(i * 37 + j * 3 + 1);
}

static void request(struct test_cpu *t, uint64_t mask)
{
	t->cpu.s.reg[X86_RAX] = (uint32_t)mask;
	t->cpu.s.reg[X86_RDX] = mask >> 32;
}

static void test_fxsave(void **state)
{
	struct test_cpu *t = *state;
	struct x86_fpu before;

	fill(&t->cpu.s.fpu);
	before = t->cpu.s.fpu;
	memset(area(t), 0xcc, 1024);
	RUN_OK(t, FXSAVE64);
	assert_int_equal(*(uint16_t *)area(t), 0x27f);
	assert_int_equal(area(t)[4], 0x5a);
	assert_int_equal(*(uint64_t *)(area(t) + 8), before.fip);
	assert_int_equal(*(uint32_t *)(area(t) + 24), 0x1fa0);
	assert_int_equal(*(uint32_t *)(area(t) + 28), 0xffff);
	assert_memory_equal(area(t) + 160 + 15 * 16, before.vec[15].b, 16);
	assert_int_equal(area(t)[416], 0xcc);
	memset(&t->cpu.s.fpu, 0, sizeof(before));
	RUN_OK(t, FXRSTOR64);
	for (unsigned i = 0; i < 16; i++)
		memset(before.vec[i].b + 16, 0, 16);
	assert_memory_equal(&t->cpu.s.fpu, &before, sizeof(before));
}

static void test_fxsave_32(void **state)
{
	struct test_cpu *t = *state;

	test_protected(t, 32, 0);
	t->cpu.s.msr.efer = 0;
	x86_cpu_refresh(&t->cpu);
	fill(&t->cpu.s.fpu);
	t->cpu.s.fpu.fcs = 8;
	t->cpu.s.fpu.fds = 0x10;
	memset(area(t), 0xcc, 512);
	RUN_OK(t, FXSAVE);
	assert_int_equal(*(uint32_t *)(area(t) + 8), 0x3456789a);
	assert_int_equal(*(uint32_t *)(area(t) + 12), 8);
	assert_int_equal(*(uint32_t *)(area(t) + 20), 0x10);
	assert_int_equal(area(t)[160 + 8 * 16], 0xcc);
	memset(area(t) + 160, 0, 256);
	RUN_OK(t, FXRSTOR);
	assert_int_equal(t->cpu.s.fpu.vec[7].q[0], 0);
	assert_int_not_equal(t->cpu.s.fpu.vec[8].q[0], 0);
	/* Segment limits hold for the whole area. */
	t->cpu.s.seg[X86_DS].limit = DATA + 511 - 1;
	x86_cpu_refresh(&t->cpu);
	RUN_FAULT(t, FXRSTOR, X86_GP);
}

static void test_fxsave_faults(void **state)
{
	struct test_cpu *t = *state;
	struct x86_fpu before;

	fill(&t->cpu.s.fpu);
	before = t->cpu.s.fpu;
	t->cpu.s.reg[X86_RBX] = DATA + 8;
	RUN_FAULT(t, FXSAVE, X86_GP);
	RUN_FAULT(t, FXRSTOR, X86_GP);
	t->cpu.s.reg[X86_RBX] = DATA;
	memset(area(t), 0, 512);
	*(uint32_t *)(area(t) + 24) = 0x10000;
	RUN_FAULT(t, FXRSTOR, X86_GP);
	assert_memory_equal(&t->cpu.s.fpu, &before, sizeof(before));
	t->cpu.s.cr0 |= X86_CR0_TS;
	RUN_FAULT(t, FXSAVE, X86_NM);
}

static void test_xsave_standard(void **state)
{
	struct test_cpu *t = *state;
	struct x86_fpu before;

	fill(&t->cpu.s.fpu);
	before = t->cpu.s.fpu;
	memset(area(t), 0xcc, 1024);
	memset(header(t), 0, 64);
	header(t)[0] = 1ull << 40; /* of a component that is not asked for: kept */
	request(t, ~0ull);
	RUN_OK(t, XSAVE);
	assert_int_equal(header(t)[0], 1ull << 40 | 7);
	assert_memory_equal(area(t) + 576 + 15 * 16, before.vec[15].b + 16, 16);
	assert_int_equal(area(t)[416], 0xcc);
	assert_int_equal(area(t)[832], 0xcc);
	header(t)[0] = 7;
	memset(&t->cpu.s.fpu, 0, sizeof(before));
	RUN_OK(t, XRSTOR);
	assert_memory_equal(&t->cpu.s.fpu, &before, sizeof(before));
	/* Only what is asked for. */
	memset(area(t), 0xcc, 1024);
	memset(header(t), 0, 64);
	request(t, 4);
	RUN_OK(t, XSAVE);
	assert_int_equal(area(t)[0], 0xcc);
	assert_int_equal(area(t)[160], 0xcc);
	assert_int_equal(*(uint32_t *)(area(t) + 24), 0x1fa0);
	assert_int_equal(header(t)[0], 4);
}

static void test_xsave_init(void **state)
{
	struct test_cpu *t = *state;

	memset(area(t), 0, 1024);
	header(t)[0] = 7;
	request(t, 7);
	RUN_OK(t, XSAVE);
	assert_int_equal(header(t)[0], 0);
	assert_int_equal(*(uint16_t *)area(t), 0x37f); /* XSAVE writes it all the same */
	memset(area(t), 0, 512);
	t->cpu.s.fpu.vec[3].b[20] = 1;
	RUN_OK(t, XSAVEOPT);
	assert_int_equal(header(t)[0], 4);
	assert_int_equal(*(uint16_t *)area(t), 0);
	assert_int_equal(*(uint32_t *)(area(t) + 24), 0x1f80);
	fill(&t->cpu.s.fpu);
	header(t)[0] = 0;
	*(uint32_t *)(area(t) + 24) = 0x1f81;
	RUN_OK(t, XRSTOR);
	assert_int_equal(t->cpu.s.fpu.fcw, 0x37f);
	assert_int_equal(t->cpu.s.fpu.ftw, 0);
	assert_int_equal(t->cpu.s.fpu.mxcsr, 0x1f81); /* not subject to XSTATE_BV here */
	assert_int_equal(t->cpu.s.fpu.vec[9].q[0] | t->cpu.s.fpu.vec[9].q[3], 0);
}

static void test_xsave_compacted(void **state)
{
	struct test_cpu *t = *state;
	struct x86_fpu before;

	fill(&t->cpu.s.fpu);
	before = t->cpu.s.fpu;
	memset(area(t), 0, 1024);
	request(t, 7);
	RUN_OK(t, XSAVEC);
	assert_int_equal(header(t)[0], 7);
	assert_true(header(t)[1] == (1ull << 63 | 7));
	memset(&t->cpu.s.fpu, 0, sizeof(before));
	RUN_OK(t, XRSTOR);
	assert_memory_equal(&t->cpu.s.fpu, &before, sizeof(before));
	memset(&t->cpu.s.fpu, 0, sizeof(before));
	RUN_OK(t, XRSTORS);
	assert_memory_equal(&t->cpu.s.fpu, &before, sizeof(before));
	/* MXCSR belongs to the SSE component. */
	header(t)[0] = 5;
	RUN_OK(t, XRSTOR);
	assert_int_equal(t->cpu.s.fpu.mxcsr, 0x1f80);
	t->cpu.s.fpu = (struct x86_fpu){.fcw = 0x37f, .mxcsr = 0x1f81};
	RUN_OK(t, XSAVES);
	assert_int_equal(header(t)[0], 2);
}

static void bad_header(struct test_cpu *t, unsigned word, uint64_t value)
{
	uint64_t saved = header(t)[word];
	struct x86_fpu before = t->cpu.s.fpu;

	header(t)[word] = value;
	RUN_FAULT(t, XRSTOR, X86_GP);
	assert_memory_equal(&t->cpu.s.fpu, &before, sizeof(before));
	header(t)[word] = saved;
	RUN_OK(t, XRSTOR);
}

static void test_header_checks(void **state)
{
	struct test_cpu *t = *state;

	fill(&t->cpu.s.fpu);
	memset(area(t), 0, 1024);
	request(t, 7);
	RUN_OK(t, XSAVE);
	bad_header(t, 0, 1ull << 9);
	bad_header(t, 0, 1ull << 63);
	bad_header(t, 1, 1);
	bad_header(t, 2, 1);
	RUN_FAULT(t, XRSTORS, X86_GP); /* takes the compacted format only */
	RUN_OK(t, XSAVEC);
	bad_header(t, 0, 1ull << 63 | 7);
	bad_header(t, 1, 1ull << 63 | 3); /* component 2 present but not in XCOMP_BV */
	bad_header(t, 1, 1ull << 63 | 15);
	for (unsigned word = 2; word < 8; word++)
		bad_header(t, word, 1ull << 40);
	test_feature(t, X86_F_XSAVEC, false);
	RUN_FAULT(t, XRSTOR, X86_GP);
	test_feature(t, X86_F_XSAVEC, true);
	*(uint32_t *)(area(t) + 24) = 0x10000;
	RUN_FAULT(t, XRSTOR, X86_GP);
	t->cpu.s.reg[X86_RBX] = DATA + 32;
	RUN_FAULT(t, XSAVE, X86_GP);
	t->cpu.s.cr0 |= X86_CR0_TS;
	RUN_FAULT(t, XSAVE, X86_NM);
	t->cpu.s.cr4 &= ~(uint64_t)X86_CR4_OSXSAVE;
	RUN_FAULT(t, XSAVE, X86_UD);
}

/* XSAVE, XRSTOR, XSAVEOPT and XSAVEC of these components, DS ending or beginning at this limit. */
static void bounded(struct test_cpu *t, bool down, uint32_t limit, uint64_t mask, bool good)
{
	static const char code[4][4] = {
		"\x0f\xae\x23", "\x0f\xae\x2b", "\x0f\xae\x33", "\x0f\xc7\x23"};
	struct x86_segment *ds = &t->cpu.s.seg[X86_DS];

	ds->limit = DATA + limit;
	ds->attr = (uint16_t)(ds->attr & ~X86_SEG_EXPAND) | (down ? X86_SEG_EXPAND : 0);
	x86_cpu_refresh(&t->cpu);
	request(t, mask);
	memset(area(t), 0, X86_XSAVE_BYTES);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(run_bytes(t, code[i], 3), good ? X86_OK : X86_FAULT);
}

/* The area's first and last byte are looked at even if nothing is saved or restored there. */
static void test_area_bounds(void **state)
{
	struct test_cpu *t = *state;

	test_protected(t, 32, 0);
	t->cpu.s.msr.efer = 0;
	bounded(t, false, 575, 0, true);
	bounded(t, false, 574, 0, false);
	bounded(t, false, 575, X86_XCR0_SSE, true);
	bounded(t, false, 574, X86_XCR0_SSE, false);
	bounded(t, false, 831, X86_XCR0_AVX, true);
	bounded(t, false, 830, X86_XCR0_AVX, false);
	bounded(t, true, (uint32_t)-1, X86_XCR0_AVX, true);
	bounded(t, true, 0, X86_XCR0_AVX, false);
	bounded(t, true, 0, 0, false);

	/* A compacted image has only the components that it names. */
	t->cpu.s.seg[X86_DS].attr &= (uint16_t)~X86_SEG_EXPAND;
	t->cpu.s.seg[X86_DS].limit = DATA + 575;
	x86_cpu_refresh(&t->cpu);
	request(t, 7);
	memset(area(t), 0, X86_XSAVE_BYTES);
	header(t)[1] = 1ull << 63 | 3;
	RUN_OK(t, "\x0f\xae\x2b");
}

static void test_images(void **state)
{
	struct x86_state *from = calloc(1, sizeof(*from)), *to = calloc(1, sizeof(*to));
	uint8_t image[1024];

	assert_true(from && to);
	fill(&from->fpu);
	x86_fpu_to_xsave(from, image, sizeof(image));
	assert_int_equal(x86_fpu_from_xsave(to, image, sizeof(image)), 0);
	assert_memory_equal(&to->fpu, &from->fpu, sizeof(to->fpu));
	assert_int_equal(x86_fpu_from_xsave(to, image, X86_XSAVE_BYTES - 1), -EINVAL);
	image[512] = 8;
	assert_int_equal(x86_fpu_from_xsave(to, image, sizeof(image)), -EINVAL);
	image[512] = 7;
	image[26] = 1;
	assert_int_equal(x86_fpu_from_xsave(to, image, sizeof(image)), -EINVAL);
	assert_memory_equal(&to->fpu, &from->fpu, sizeof(to->fpu));
	from->fpu = (struct x86_fpu){.fcw = 0x37f, .mxcsr = 0x1f81};
	x86_fpu_to_xsave(from, image, sizeof(image));
	assert_int_equal(image[512], 2);
	assert_int_equal(x86_fpu_from_xsave(to, image, sizeof(image)), 0);
	assert_memory_equal(&to->fpu, &from->fpu, sizeof(to->fpu));
	free(from);
	free(to);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_fxsave),
		TEST(test_fxsave_32),
		TEST(test_fxsave_faults),
		TEST(test_xsave_standard),
		TEST(test_xsave_init),
		TEST(test_xsave_compacted),
		TEST(test_header_checks),
		TEST(test_area_bounds),
		cmocka_unit_test(test_images),
	};

	return cmocka_run_group_tests_name("xsave", tests, NULL, NULL);
}
