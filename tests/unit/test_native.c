/*
 * Vector instructions on the host: one of each shape of operands, against values computed here;
 * what is kept and zeroed around the result; SIMD exceptions; the stub cache.
 */
#include <errno.h>
#include <math.h>

#include "x86_run.h"

#include "base/codebuf.h"
#include "isa/x86/fpu.h"
#include "isa/x86/native_stub.h"

static union x86_vector *vec(struct test_cpu *t, unsigned i)
{
	return &t->cpu.s.fpu.vec[i];
}

/* Every register differs from every other in every byte of its 64. */
static void fill(struct test_cpu *t)
{
	for (unsigned i = 0; i < 16; i++)
		for (unsigned j = 0; j < 64; j++)
			vec(t, i)->b[j] = (uint8_t)(i * 16 + j * 7 + 3);
}

static void assert_upper(struct test_cpu *t, unsigned i, const union x86_vector *before, bool kept)
{
	static const uint8_t zero[64];

	assert_memory_equal(vec(t, i)->b + 16, kept ? before->b + 16 : zero, 48);
}

static void test_codebuf(void **state)
{
	static const uint8_t code[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov eax, 42; ret */
	struct codebuf buf;
	int (*fn)(void);

	assert_int_equal(codebuf_init(&buf, 0, NULL), -EINVAL);
	assert_int_equal(codebuf_init(&buf, 100, NULL), 0);
	assert_true(buf.size_bytes >= 4096);
	assert_int_equal(codebuf_open(&buf), 0);
	memcpy(codebuf_write(&buf, 64), code, sizeof(code));
	assert_int_equal(codebuf_close(&buf), 0);
	fn = (int (*)(void))(uintptr_t)codebuf_code(&buf, 64);
	assert_int_equal(fn(), 42);
	assert_true(buf.dual == (buf.rw != buf.rx));
	codebuf_done(&buf);
	codebuf_done(&buf);
}

/* One mapping, whose protection changes. */
static void test_codebuf_single(void **state)
{
	struct codebuf buf;

	assert_int_equal(codebuf_init_single(&buf, 4096, NULL), 0);
	assert_false(buf.dual);
	assert_int_equal(codebuf_open(&buf), 0);
	*codebuf_write(&buf, 0) = 0xc3;
	assert_int_equal(codebuf_close(&buf), 0);
	((void (*)(void))(uintptr_t)codebuf_code(&buf, 0))();
	codebuf_done(&buf);
}

static void test_legacy_and_vex(void **state)
{
	struct test_cpu *t = *state;
	union x86_vector before;

	fill(t);
	before = *vec(t, 9);
	RUN_OK(t, "\x66\x44\x0f\xfe\xca"); /* paddd xmm9, xmm2 */
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(vec(t, 9)->d[i], (uint32_t)(before.d[i] + vec(t, 2)->d[i]));
	assert_upper(t, 9, &before, true);
	memcpy(test_host(t, DATA), vec(t, 3), 32);
	RUN_OK(t, "\xc5\x35\xfe\x03"); /* vpaddd ymm8, ymm9, [rbx] */
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(vec(t, 8)->d[i], (uint32_t)(vec(t, 9)->d[i] + vec(t, 3)->d[i]));
	assert_int_equal(vec(t, 8)->q[4] | vec(t, 8)->q[7], 0);
	RUN_OK(t, "\xc5\xb1\xfe\xc2"); /* vpaddd xmm0, xmm9, xmm2 */
	assert_int_equal(vec(t, 0)->d[3], (uint32_t)(vec(t, 9)->d[3] + vec(t, 2)->d[3]));
	assert_upper(t, 0, &before, false);
}

static void test_moves(void **state)
{
	struct test_cpu *t = *state;
	union x86_vector before;

	fill(t);
	before = *vec(t, 1);
	RUN_OK(t, "\x0f\x29\x13");     /* movaps [rbx], xmm2 */
	RUN_OK(t, "\x0f\x10\x4b\x03"); /* movups xmm1, [rbx+3] */
	assert_memory_equal(vec(t, 1), vec(t, 2)->b + 3, 13);
	assert_upper(t, 1, &before, true);
	RUN_FAULT(t, "\x0f\x28\x4b\x03", X86_GP);     /* movaps */
	RUN_FAULT(t, "\x66\x0f\xfe\x4b\x08", X86_GP); /* paddd */
	before = *vec(t, 3);
	RUN_OK(t, "\xc5\xfc\x10\x1b"); /* vmovups ymm3, [rbx] */
	assert_memory_equal(vec(t, 3), vec(t, 2), 16);
	assert_int_equal(vec(t, 3)->q[4], 0);
	before = *vec(t, 4);
	RUN_OK(t, "\xf3\x0f\x10\x23"); /* movss xmm4, [rbx] */
	assert_int_equal(vec(t, 4)->q[0], vec(t, 2)->d[0]);
	assert_int_equal(vec(t, 4)->q[1], 0);
	assert_upper(t, 4, &before, true);
	before = *vec(t, 5);
	RUN_OK(t, "\xf3\x0f\x10\xea"); /* movss xmm5, xmm2 */
	assert_int_equal(vec(t, 5)->d[0], vec(t, 2)->d[0]);
	assert_memory_equal(vec(t, 5)->b + 4, before.b + 4, 60);
}

static void test_movd(void **state)
{
	struct test_cpu *t = *state;
	union x86_vector before;

	fill(t);
	t->cpu.s.reg[X86_RAX] = 0x1122334455667788;
	before = *vec(t, 1);
	RUN_OK(t, "\x66\x0f\x6e\xc8"); /* movd xmm1, eax */
	assert_true(vec(t, 1)->q[0] == 0x55667788 && vec(t, 1)->q[1] == 0);
	assert_upper(t, 1, &before, true);
	RUN_OK(t, "\x66\x48\x0f\x6e\xc8"); /* movq xmm1, rax */
	assert_true(vec(t, 1)->q[0] == 0x1122334455667788);
	RUN_OK(t, "\xc5\xf9\x6e\xd0"); /* vmovd xmm2, eax */
	assert_upper(t, 2, &before, false);
	RUN_OK(t, "\x66\x0f\x7e\xc9"); /* movd ecx, xmm1 */
	assert_true(t->cpu.s.reg[X86_RCX] == 0x55667788);
	RUN_OK(t, "\x66\x48\x0f\x7e\x0b"); /* movq [rbx], xmm1 */
	RUN_OK(t, "\xf3\x0f\x7e\x1b");	   /* movq xmm3, [rbx] */
	assert_true(vec(t, 3)->q[0] == 0x1122334455667788 && vec(t, 3)->q[1] == 0);
	RUN_OK(t, "\x66\x0f\xd6\x63\x10"); /* movq [rbx+16], xmm4 */
	assert_memory_equal(test_host(t, DATA + 16), vec(t, 4), 8);
	assert_int_equal(*(uint64_t *)test_host(t, DATA + 24), 0);
	RUN_OK(t, "\xf3\x0f\x7e\xe5"); /* movq xmm4, xmm5 */
	assert_true(vec(t, 4)->q[0] == vec(t, 5)->q[0] && vec(t, 4)->q[1] == 0);
}

static void test_logic(void **state)
{
	struct test_cpu *t = *state;
	union x86_vector a, b;

	fill(t);
	a = *vec(t, 1);
	b = *vec(t, 2);
	RUN_OK(t, "\x66\x0f\xef\xca"); /* pxor xmm1, xmm2 */
	assert_true(vec(t, 1)->q[1] == (a.q[1] ^ b.q[1]));
	assert_upper(t, 1, &a, true);
	a = *vec(t, 3);
	RUN_OK(t, "\x0f\x55\xda"); /* andnps xmm3, xmm2 */
	assert_true(vec(t, 3)->q[0] == (~a.q[0] & b.q[0]));
	a = *vec(t, 4);
	memcpy(test_host(t, DATA + 1), &b, 32);
	RUN_OK(t, "\xc5\xdd\xef\x6b\x01"); /* vpxor ymm5, ymm4, [rbx+1] */
	assert_true(vec(t, 5)->q[3] == (a.q[3] ^ b.q[3]) && vec(t, 5)->q[4] == 0);
}

static void test_general_registers(void **state)
{
	struct test_cpu *t = *state;
	double d = -7.5;

	fill(t);
	t->cpu.s.reg[X86_R9] = (uint64_t) - (1ll << 40);
	RUN_OK(t, "\xf2\x49\x0f\x2a\xd1"); /* cvtsi2sd xmm2, r9 */
	assert_true(vec(t, 2)->df[0] == -(double)(1ll << 40));
	RUN_OK(t, "\xf2\x41\x0f\x2a\xd1"); /* cvtsi2sd xmm2, r9d */
	assert_true(vec(t, 2)->df[0] == 0);
	memcpy(test_host(t, DATA), &d, 8);
	t->cpu.s.reg[X86_RDX] = ~0ull;
	RUN_OK(t, "\xf2\x0f\x2d\x13"); /* cvtsd2si edx, [rbx] */
	assert_true(t->cpu.s.reg[X86_RDX] == 0xfffffff8);
	RUN_OK(t, "\xf2\x48\x0f\x2d\x13");
	assert_true(t->cpu.s.reg[X86_RDX] == (uint64_t)-8);
	memset(vec(t, 6), 0x80, 16);
	vec(t, 6)->b[3] = 0;
	RUN_OK(t, "\x66\x44\x0f\xd7\xee"); /* pmovmskb r13d, xmm6 */
	assert_true(t->cpu.s.reg[X86_R13] == 0xfff7);
	t->cpu.s.reg[X86_RSI] = 0xabcd1234;
	RUN_OK(t, "\x66\x0f\xc4\xf6\x05"); /* pinsrw xmm6, esi, 5 */
	assert_int_equal(vec(t, 6)->w[5], 0x1234);
	RUN_OK(t, "\x66\x0f\x3a\x14\xf7\x0b"); /* pextrb edi, xmm6, 11 */
	assert_true(t->cpu.s.reg[X86_RDI] == 0x12);
	RUN_OK(t, "\x66\x0f\x3a\x14\x73\x20\x0a"); /* pextrb [rbx+32], xmm6, 10 */
	assert_int_equal(*(uint16_t *)test_host(t, DATA + 32), 0x34);
}

static void test_flags(void **state)
{
	struct test_cpu *t = *state;

	vec(t, 1)->df[0] = 1;
	vec(t, 2)->df[0] = 2;
	vec(t, 1)->q[3] = 5;
	t->cpu.s.rflags |= X86_OF | X86_IF;
	RUN_OK(t, "\x66\x0f\x2f\xca"); /* comisd xmm1, xmm2 */
	assert_int_equal(t->cpu.s.rflags & (X86_FLAGS_ARITH | X86_IF), X86_CF | X86_IF);
	assert_true(vec(t, 1)->q[3] == 5);
	vec(t, 2)->df[0] = NAN;
	RUN_OK(t, "\x66\x0f\x2f\xca");
	assert_int_equal(t->cpu.s.rflags & X86_FLAGS_ARITH, X86_CF | X86_ZF | X86_PF);
	assert_int_equal(t->cpu.s.fpu.mxcsr, 0x1f81);
	memset(vec(t, 3), 0, 64);
	RUN_OK(t, "\xc4\xe2\x7d\x17\xdb"); /* vptest ymm3, ymm3 */
	assert_int_equal(t->cpu.s.rflags & X86_FLAGS_ARITH, X86_ZF | X86_CF);
}

static void test_immediates(void **state)
{
	struct test_cpu *t = *state;
	union x86_vector a, b, c;

	fill(t);
	a = *vec(t, 1);
	RUN_OK(t, "\x66\x0f\x70\xd1\x1b"); /* pshufd xmm2, xmm1, 0x1b */
	assert_int_equal(vec(t, 2)->d[0], a.d[3]);
	RUN_OK(t, "\x66\x0f\x70\xd1\xe4");
	assert_memory_equal(vec(t, 2), &a, 16);
	RUN_OK(t, "\x66\x41\x0f\x73\xd9\x05"); /* psrldq xmm9, 5 */
	assert_int_equal(vec(t, 9)->b[0], (uint8_t)(9 * 16 + 5 * 7 + 3));
	assert_int_equal(vec(t, 9)->b[15], 0);
	b = *vec(t, 4);
	c = *vec(t, 5);
	RUN_OK(t, "\xc4\xe3\x5d\x06\xdd\x31"); /* vperm2f128 ymm3, ymm4, ymm5, 0x31 */
	assert_memory_equal(vec(t, 3)->b, b.b + 16, 16);
	assert_memory_equal(vec(t, 3)->b + 16, c.b + 16, 16);
	RUN_OK(t, "\xc4\xe3\x7d\x39\x23\x01"); /* vextracti128 [rbx], ymm4, 1 */
	assert_memory_equal(test_host(t, DATA), b.b + 16, 16);
	RUN_OK(t, "\xc4\xc3\x7d\x39\xe2\x01"); /* vextracti128 xmm10, ymm4, 1 */
	assert_memory_equal(vec(t, 10), b.b + 16, 16);
	assert_upper(t, 10, &b, false);
}

static void test_implicit_and_fourth(void **state)
{
	struct test_cpu *t = *state;
	union x86_vector a, b;

	fill(t);
	a = *vec(t, 3);
	b = *vec(t, 4);
	memset(vec(t, 0), 0, 16);
	vec(t, 0)->b[7] = 0x80;
	RUN_OK(t, "\x66\x0f\x38\x10\xdc"); /* pblendvb xmm3, xmm4 */
	a.b[7] = b.b[7];
	assert_memory_equal(vec(t, 3), &a, 64);
	a = *vec(t, 5);
	vec(t, 12)->q[0] = vec(t, 12)->q[1] = vec(t, 12)->q[2] = 0;
	vec(t, 12)->q[3] = 1ull << 63;
	RUN_OK(t, "\xc4\xe3\x55\x4a\xf4\xc0"); /* vblendvps ymm6, ymm5, ymm4, ymm12 */
	a.d[7] = b.d[7];
	assert_memory_equal(vec(t, 6), &a, 32);
}

static void test_crypto(void **state)
{
	struct test_cpu *t = *state;
	union x86_vector want;

	if (!x86_native_host_has(X86_F_AES) || !x86_native_host_has(X86_F_SHA)) {
		print_message("SKIPPED: AESENC, SHA256RNDS2: the host has no AES or SHA\n");
		return;
	}
	fill(t);
	want = *vec(t, 1);
	__asm__("movups %0, %%xmm1; movups %1, %%xmm2; aesenc %%xmm2, %%xmm1; movups %%xmm1, %0"
		: "+m"(want)
		: "m"(*vec(t, 2))
		: "xmm1", "xmm2");
	RUN_OK(t, "\x66\x0f\x38\xdc\xca");
	assert_memory_equal(vec(t, 1), &want, 64);
	want = *vec(t, 4);
	__asm__("movups %0, %%xmm1; movups %1, %%xmm2; movups %2, %%xmm0;"
		"sha256rnds2 %%xmm0, %%xmm2, %%xmm1; movups %%xmm1, %0"
		: "+m"(want)
		: "m"(*vec(t, 5)), "m"(*vec(t, 0))
		: "xmm0", "xmm1", "xmm2");
	RUN_OK(t, "\x0f\x38\xcb\xe5");
	assert_memory_equal(vec(t, 4), &want, 64);
}

static void test_fma_and_half(void **state)
{
	struct test_cpu *t = *state;

	for (unsigned i = 0; i < 4; i++) {
		vec(t, 1)->df[i] = i;
		vec(t, 2)->df[i] = 0.1;
		vec(t, 3)->df[i] = 10;
	}
	RUN_OK(t, "\xc4\xe2\xed\xb8\xcb"); /* vfmadd231pd ymm1, ymm2, ymm3 */
	for (unsigned i = 0; i < 4; i++)   /* rounded once */
		assert_true(vec(t, 1)->df[i] == (double)((long double)0.1 * 10 + i));
	for (unsigned i = 0; i < 8; i++)
		vec(t, 4)->f[i] = (float)i;
	memset(test_host(t, DATA), 0xcc, 32);
	RUN_OK(t, "\xc4\xe3\x7d\x1d\x23\x00"); /* vcvtps2ph [rbx], ymm4, 0 */
	assert_int_equal(((uint16_t *)test_host(t, DATA))[3], 0x4200);
	assert_int_equal(((uint8_t *)test_host(t, DATA))[16], 0xcc);
}

static void test_simd_exceptions(void **state)
{
	struct test_cpu *t = *state;
	union x86_vector before;

	vec(t, 1)->df[0] = 1;
	vec(t, 2)->df[0] = 3;
	before = *vec(t, 1);
	RUN_OK(t, "\xf2\x0f\x5e\xca"); /* divsd xmm1, xmm2 */
	assert_int_equal(t->cpu.s.fpu.mxcsr, 0x1fa0);
	assert_true(vec(t, 1)->df[0] == 1.0 / 3);
	*vec(t, 1) = before;
	t->cpu.s.fpu.mxcsr = 0x1f80 | 2u << 13; /* round up */
	RUN_OK(t, "\xf2\x0f\x5e\xca");
	assert_true(vec(t, 1)->df[0] > 1.0 / 3);
	*vec(t, 1) = before;
	vec(t, 2)->df[0] = 0;
	t->cpu.s.fpu.mxcsr = 0x1f80 & ~0x200u; /* divide by zero unmasked */
	RUN_FAULT(t, "\xf2\x0f\x5e\xca", X86_XM);
	assert_int_equal(t->cpu.s.fpu.mxcsr, (0x1f80 & ~0x200u) | 4);
	assert_memory_equal(vec(t, 1), &before, 64);
	t->cpu.s.cr4 &= ~(uint64_t)X86_CR4_OSXMMEXCPT;
	RUN_FAULT(t, "\xf2\x0f\x5e\xca", X86_UD);
	t->cpu.s.cr4 |= X86_CR4_OSXMMEXCPT;
	vec(t, 1)->q[0] = 1ull << 53; /* 2^-1021, halved twice: tiny but exact */
	vec(t, 2)->df[0] = 4;
	t->cpu.s.fpu.mxcsr = 0x1f80;
	RUN_OK(t, "\xf2\x0f\x5e\xca");
	assert_true(vec(t, 1)->q[0] == 1ull << 51 && t->cpu.s.fpu.mxcsr == 0x1f80);
	t->cpu.s.fpu.mxcsr = 0x1f80 & ~0x800u; /* underflow unmasked */
	RUN_FAULT(t, "\xf2\x0f\x5e\xca", X86_XM);
	assert_true(vec(t, 1)->q[0] == 1ull << 51);
	__asm__ volatile("stmxcsr %0" : "=m"(*(uint32_t *)test_host(t, DATA)));
	assert_int_equal(*(uint32_t *)test_host(t, DATA) & 0xffc0, 0x1f80); /* the host's */
}

static void test_mxcsr(void **state)
{
	struct test_cpu *t = *state;
	uint32_t *m = test_host(t, DATA);

	*m = 0x7f80;
	RUN_OK(t, "\x0f\xae\x13"); /* ldmxcsr */
	assert_int_equal(t->cpu.s.fpu.mxcsr, 0x7f80);
	*m = 0x10000;
	RUN_FAULT(t, "\x0f\xae\x13", X86_GP);
	RUN_OK(t, "\x0f\xae\x1b"); /* stmxcsr */
	assert_int_equal(*m, 0x7f80);
}

/* MMX registers are the physical x87 registers; TOP becomes 0, all tags valid. */
static void test_mmx(void **state)
{
	struct test_cpu *t = *state;
	struct x86_fpu *fpu = &t->cpu.s.fpu;
	uint64_t value = 0x0102030405060708;

	RUN_OK(t, "\xd9\xe8"); /* fld1: R7 */
	memcpy(test_host(t, DATA), &value, 8);
	RUN_OK(t, "\x0f\x6f\x0b"); /* movq mm1, [rbx] */
	assert_int_equal(x86_fpu_top(fpu), 0);
	assert_int_equal(fpu->ftw, 0xff);
	assert_memory_equal(fpu->st[1], "\x08\x07\x06\x05\x04\x03\x02\x01\xff\xff", 10);
	assert_memory_equal(fpu->st[7], "\0\0\0\0\0\0\0\x80\xff\x3f", 10);
	RUN_OK(t, "\x0f\xfc\xc9"); /* paddb mm1, mm1 */
	RUN_OK(t, "\x0f\x7f\x4b\x08");
	assert_true(*(uint64_t *)test_host(t, DATA + 8) == 2 * value);
	RUN_OK(t, "\x0f\x77"); /* emms */
	assert_int_equal(fpu->ftw, 0);
	RUN_OK(t, "\x66\x0f\x2a\x13"); /* cvtpi2pd xmm2, [rbx]: no transition */
	assert_int_equal(fpu->ftw, 0);
	assert_true(vec(t, 2)->df[0] == 0x05060708);
	RUN_OK(t, "\x66\x0f\x2a\xd1"); /* cvtpi2pd xmm2, mm1 */
	assert_int_equal(fpu->ftw, 0xff);
}

static void test_strings(void **state)
{
	struct test_cpu *t = *state;

	memcpy(vec(t, 1), "aeiou\0xxxxxxxxxx", 16);
	memcpy(vec(t, 2), "xyz hello world!", 16);
	t->cpu.s.reg[X86_RCX] = ~0ull;
	RUN_OK(t, "\x66\x0f\x3a\x63\xca\x00"); /* pcmpistri xmm1, xmm2, equal any */
	assert_true(t->cpu.s.reg[X86_RCX] == 5);
	assert_int_equal(t->cpu.s.rflags & X86_FLAGS_ARITH, X86_CF | X86_SF);
	t->cpu.s.reg[X86_RAX] = 5;
	t->cpu.s.reg[X86_RDX] = 6;
	vec(t, 0)->q[2] = 77;
	RUN_OK(t, "\x66\x0f\x3a\x60\xca\x00"); /* pcmpestrm: 5 and 6 characters */
	assert_true(vec(t, 0)->q[0] == 0x20 && vec(t, 0)->q[1] == 0 && vec(t, 0)->q[2] == 77);
}

static void test_masked(void **state)
{
	struct test_cpu *t = *state;
	uint8_t *m = test_host(t, DATA);
	const union x86_vector mask = {.d = {1u << 31, 0, ~0u, 1}};

	fill(t);
	*vec(t, 2) = mask;
	memset(m, 0xcc, 64);
	t->cpu.s.reg[X86_RDI] = DATA + 1;
	RUN_OK(t, "\x66\x0f\xf7\xca"); /* maskmovdqu xmm1, xmm2 */
	assert_int_equal(m[0], 0xcc);
	assert_int_equal(m[1], 0xcc);
	assert_int_equal(m[4], vec(t, 1)->b[3]);
	assert_memory_equal(m + 9, vec(t, 1)->b + 8, 4);
	assert_int_equal(m[13], 0xcc);
	memset(m, 0xcc, 64);
	RUN_OK(t, "\xc4\xe2\x69\x8e\x0b"); /* vpmaskmovd [rbx], xmm2, xmm1 */
	assert_memory_equal(m, vec(t, 1), 4);
	assert_int_equal(*(uint32_t *)(m + 4), 0xcccccccc);
	RUN_OK(t, "\xc4\xe2\x69\x8c\x23"); /* vpmaskmovd xmm4, xmm2, [rbx] */
	assert_int_equal(vec(t, 4)->d[0], vec(t, 1)->d[0]);
	assert_int_equal(vec(t, 4)->d[1], 0);
	assert_int_equal(vec(t, 4)->d[2], vec(t, 1)->d[2]);
	/*
	 * A non-canonical element that is masked off does not fault; one that is not, changes
	 * nothing.
	 */
	t->cpu.s.reg[X86_RBX] = 0x7ffffffffff8;
	vec(t, 2)->d[0] = vec(t, 2)->d[1] = 0;
	RUN_FAULT(t, "\xc4\xe2\x69\x8e\x0b", X86_GP);
	vec(t, 2)->d[2] = 0;
	RUN_OK(t, "\xc4\xe2\x69\x8e\x0b");
}

static void test_gather(void **state)
{
	struct test_cpu *t = *state;
	uint32_t *m = test_host(t, DATA);

	fill(t);
	for (unsigned i = 0; i < 16; i++)
		m[i] = 100 + i;
	*vec(t, 2) = (union x86_vector){.d = {5, (uint32_t)-1, 2, 9}}; /* indexes */
	*vec(t, 3) = (union x86_vector){.d = {~0u, ~0u, 0, ~0u}};
	vec(t, 1)->d[2] = 7;
	RUN_OK(t, "\xc4\xe2\x61\x90\x4c\x93\x04"); /* vpgatherdd xmm1, [rbx+xmm2*4+4], xmm3 */
	assert_int_equal(vec(t, 1)->d[0], 106);
	assert_int_equal(vec(t, 1)->d[1], 100);
	assert_int_equal(vec(t, 1)->d[2], 7);
	assert_int_equal(vec(t, 1)->d[3], 110);
	assert_int_equal(vec(t, 1)->q[2] | vec(t, 3)->q[0] | vec(t, 3)->q[1], 0);
	*vec(t, 2) = (union x86_vector){.q = {1, 3, 5, 7}};
	memset(vec(t, 3), 0xff, 64);
	RUN_OK(t, "\xc4\xe2\x65\x91\x0c\x93"); /* vpgatherqd xmm1, [rbx+ymm2*4], xmm3 */
	assert_int_equal(vec(t, 1)->d[3], 107);
	assert_int_equal(vec(t, 1)->q[2] | vec(t, 3)->q[0] | vec(t, 3)->q[7], 0);
}

static void test_zero(void **state)
{
	struct test_cpu *t = *state;
	union x86_vector before;

	fill(t);
	before = *vec(t, 15);
	RUN_OK(t, "\xc5\xf8\x77"); /* vzeroupper */
	assert_memory_equal(vec(t, 15), &before, 16);
	assert_upper(t, 15, &before, false);
	RUN_OK(t, "\xc5\xfc\x77"); /* vzeroall */
	assert_int_equal(vec(t, 15)->q[0] | vec(t, 0)->q[1], 0);
}

/* More stubs than the cache holds. */
static void test_cache(void **state)
{
	static const char opcodes[][4] = {"\x66\x0f\x70", "\xf2\x0f\x70", "\xf3\x0f\x70"};
	struct test_cpu *t = *state;
	char bytes[5];

	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < 3 * 512; i++) {
			bool mem = i / 3 / 256;

			memcpy(bytes, opcodes[i % 3], 3);
			bytes[3] = (char)(mem ? 0x13 : 0xd1); /* xmm2, [rbx] or xmm1 */
			bytes[4] = (char)(i / 3);
			fill(t);
			memcpy(test_host(t, DATA), vec(t, 1), 16);
			assert_int_equal(run_bytes(t, bytes, 5), X86_OK);
			if (i % 3 == 0)
				assert_int_equal(vec(t, 2)->d[3], vec(t, 1)->d[i / 3 >> 6 & 3]);
			if (i % 3 == 1)
				assert_int_equal(vec(t, 2)->w[3], vec(t, 1)->w[i / 3 >> 6 & 3]);
		}
		assert_true(t->cpu.native->stub_count <= NATIVE_STUBS / 2);
	}
}

/* As the compiler's run-time library sees this processor. */
static void test_host_features(void **state)
{
	__builtin_cpu_init();
	assert_int_equal(x86_native_host_has(X86_F_POPCNT), !!__builtin_cpu_supports("popcnt"));
	assert_int_equal(x86_native_host_has(X86_F_SSE42), !!__builtin_cpu_supports("sse4.2"));
	assert_int_equal(x86_native_host_has(X86_F_SSE4A), !!__builtin_cpu_supports("sse4a"));
	assert_int_equal(x86_native_host_has(X86_F_AVX), !!__builtin_cpu_supports("avx"));
	assert_int_equal(x86_native_host_has(X86_F_AVX2), !!__builtin_cpu_supports("avx2"));
	assert_int_equal(x86_native_host_has(X86_F_FMA), !!__builtin_cpu_supports("fma"));
	assert_int_equal(x86_native_host_has(X86_F_BMI1), !!__builtin_cpu_supports("bmi"));
	assert_int_equal(x86_native_host_has(X86_F_BMI2), !!__builtin_cpu_supports("bmi2"));
	assert_true(x86_native_host_has(X86_F_BASE));
	assert_true(x86_native_host_has(X86_F_CMOV));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_host_features),
		cmocka_unit_test(test_codebuf),
		cmocka_unit_test(test_codebuf_single),
		TEST(test_legacy_and_vex),
		TEST(test_moves),
		TEST(test_movd),
		TEST(test_logic),
		TEST(test_general_registers),
		TEST(test_flags),
		TEST(test_immediates),
		TEST(test_implicit_and_fourth),
		TEST(test_crypto),
		TEST(test_fma_and_half),
		TEST(test_simd_exceptions),
		TEST(test_mxcsr),
		TEST(test_mmx),
		TEST(test_strings),
		TEST(test_masked),
		TEST(test_gather),
		TEST(test_zero),
		TEST(test_cache),
	};

	return cmocka_run_group_tests_name("native", tests, NULL, NULL);
}
