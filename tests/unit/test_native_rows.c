/*
 * Every vector and x87 row of the instruction table, on random operands: its semantic function
 * against the very bytes executed natively with all registers loaded. What the two share is the
 * host's arithmetic; operand roles, sizes, what is kept or zeroed, and flags are checked. Forms the
 * host lacks are named and skipped.
 */
#include <stdio.h>

#include "x86_run.h"

#include "base/codebuf.h"
#include "isa/x86/fpu.h"
#include "isa/x86/native_stub.h"
#include "isa/x86/semantics.h"

#define ROUNDS	  24
#define MEM_BYTES 128

/* What native code is given and leaves behind. */
struct host {
	uint8_t fx[512] __attribute__((aligned(64)));
	uint8_t mem[MEM_BYTES] __attribute__((aligned(64)));
	uint8_t ymm[16][32];
	uint64_t gpr[16]; /* RSP unused */
	uint64_t rflags;
	uint32_t mxcsr, saved_mxcsr;
};

/* One form of a row as bytes. */
struct form {
	uint8_t bytes[X86_INSN_BYTES_MAX];
	unsigned count;
};

/* What of a row's text varies: chosen at random or by the loop. */
struct choice {
	bool mem, w, l;
	unsigned reg, rm, vvvv, is4;
	uint8_t imm[2];
};

static uint64_t random_next(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* ---- bytes ---- */

static void put(struct form *form, unsigned byte)
{
	form->bytes[form->count++] = (uint8_t)byte;
}

static bool row_has(const struct x86_row *row, const char *letters)
{
	for (const char *p = row->operands; *p; p += strcspn(p, ","), p += *p == ',')
		if (strchr(letters, *p) && strncmp(p, "XMM0", 4) != 0)
			return true;
	return false;
}

static unsigned row_opcode(const struct x86_row *row)
{
	const char *p = row->encoding;
	unsigned opcode = 0, map = 0;

	for (; *p; p += strcspn(p, " "), p += *p == ' ') {
		char *end;
		unsigned long byte = strtoul(p, &end, 16);

		if (end != p + 2 || (*end && *end != ' '))
			continue;
		opcode = (unsigned)byte;
		if (strncmp(row->encoding, "VEX", 3) == 0 || map++ > 3)
			break;
	}
	return opcode;
}

static void form_prefix(
	struct form *form, const struct native_encoding *enc, const struct choice *c)
{
	static const char maps[][3] = {"", "\x0f", "\x0f\x38", "\x0f\x3a"};
	unsigned pp = enc->prefix == 0x66 ? 1 : enc->prefix == 0xf3 ? 2 : enc->prefix ? 3 : 0;

	if (enc->vex) {
		put(form, 0xc4);
		put(form, (c->reg < 8) << 7 | 1 << 6 | (c->mem || c->rm < 8) << 5 | enc->map);
		put(form, c->w << 7 | (~c->vvvv & 15) << 3 | c->l << 2 | pp);
		return;
	}
	if (enc->prefix)
		put(form, enc->prefix);
	put(form, 0x40 | c->w << 3 | (c->reg >= 8) << 2 | (!c->mem && c->rm >= 8));
	for (const char *m = maps[enc->map]; *m; m++)
		put(form, (uint8_t)*m);
}

static void form_make(struct form *form, const struct x86_row *row, const struct choice *choice)
{
	struct native_encoding enc;
	struct choice c = *choice;
	bool vsib = row->attr & X86_A_VSIB;

	assert_int_equal(x86_native_encoding(row, &enc), 0);
	if (enc.digit >= 0)
		c.reg = (unsigned)enc.digit;
	if (!row_has(row, "HB"))
		c.vvvv = 0;
	form->count = 0;
	form_prefix(form, &enc, &c);
	put(form, row_opcode(row));
	if (strstr(row->encoding, "/r") || enc.digit >= 0) {
		unsigned rm = vsib ? 4 : X86_RBX;

		put(form, (c.mem ? rm : 0xc0 | (c.rm & 7)) | (c.reg & 7) << 3);
		if (vsib && c.mem)
			put(form, X86_RBX | (c.rm & 7) << 3);
	}
	if (row_has(row, "L"))
		put(form, c.is4 << 4);
	else if (row_has(row, "I"))
		put(form, c.imm[0]);
	if (strstr(row->operands, "Ib,Ib"))
		put(form, c.imm[1]);
}

/* ---- running natively ---- */

static uint8_t *out_bytes(uint8_t *p, const void *bytes, size_t count)
{
	memcpy(p, bytes, count);
	return p + count;
}

static uint8_t *out_offset(uint8_t *p, size_t offset)
{
	uint32_t value = (uint32_t)offset;

	return out_bytes(p, &value, 4);
}

#define OUT(literal)   (p = out_bytes(p, literal, sizeof(literal) - 1))
#define OUT_AT(member) (p = out_offset(p, member))

static uint8_t *out_vectors(uint8_t *p, unsigned opcode)
{
	for (unsigned i = 0; i < 16; i++) {
		*p++ = 0xc5; /* vmovups */
		*p++ = i < 8 ? 0xfc : 0x7c;
		*p++ = (uint8_t)opcode;
		*p++ = (uint8_t)(0x87 | (i & 7) << 3);
		OUT_AT(offsetof(struct host, ymm) + i * 32);
	}
	return p;
}

static uint8_t *out_general(uint8_t *p, unsigned opcode)
{
	for (unsigned i = 0; i < 16; i++) {
		if (i == X86_RSP || i == X86_RDI)
			continue;
		*p++ = i < 8 ? 0x48 : 0x4c;
		*p++ = (uint8_t)opcode;
		*p++ = (uint8_t)(0x87 | (i & 7) << 3);
		OUT_AT(offsetof(struct host, gpr) + i * 8);
	}
	return p;
}

static void host_emit(uint8_t *p, const struct form *form)
{
	OUT("\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57\x57"); /* push rbx rbp r12-r15 rdi */
	OUT("\x0f\xae\x9f"), OUT_AT(offsetof(struct host, saved_mxcsr));
	OUT("\x48\x0f\xae\x8f"), OUT_AT(offsetof(struct host, fx));
	OUT("\x0f\xae\x97"), OUT_AT(offsetof(struct host, mxcsr));
	p = out_vectors(p, 0x10);
	OUT("\xff\xb7"), OUT_AT(offsetof(struct host, rflags));
	OUT("\x9d");
	p = out_general(p, 0x8b);
	OUT("\x48\x8b\xbf"), OUT_AT(offsetof(struct host, gpr) + X86_RDI * 8);
	p = out_bytes(p, form->bytes, form->count);
	OUT("\x57\x48\x8b\x7c\x24\x08\x9c"); /* push rdi; mov rdi, [rsp+8]; pushfq */
	p = out_general(p, 0x89);
	OUT("\x8f\x87"), OUT_AT(offsetof(struct host, rflags));
	OUT("\x8f\x87"), OUT_AT(offsetof(struct host, gpr) + X86_RDI * 8);
	p = out_vectors(p, 0x11);
	OUT("\x0f\xae\x9f"), OUT_AT(offsetof(struct host, mxcsr));
	OUT("\x48\x0f\xae\x87"), OUT_AT(offsetof(struct host, fx));
	OUT("\x0f\xae\x97"), OUT_AT(offsetof(struct host, saved_mxcsr));
	OUT("\xdb\xe3\xc5\xf8\x77"); /* fninit; vzeroupper */
	OUT("\x5f\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3");
}

static void host_run(struct codebuf *code, const struct form *form, struct host *host)
{
	void (*fn)(struct host *) = (void (*)(struct host *))(uintptr_t)codebuf_code(code, 0);

	assert_int_equal(codebuf_open(code), 0);
	host_emit(codebuf_write(code, 0), form);
	assert_int_equal(codebuf_close(code), 0);
	fn(host);
}

/* ---- states ---- */

/* Bits, small integers, or floating-point numbers of either width. */
static uint64_t random_lane(uint64_t *seed, unsigned kind)
{
	uint64_t r = random_next(seed);
	double d = (double)(int32_t)r / 65536;
	float f[2] = {(float)(int16_t)r / 16, (float)(int16_t)(r >> 16)};
	uint64_t lane;

	switch (kind) {
	case 0: return r;
	case 1: return r & 0x1f0000001f;
	case 2: memcpy(&lane, &d, 8); return lane;
	default: memcpy(&lane, f, 8); return lane;
	}
}

static void guest_randomize(struct test_cpu *t, uint64_t *seed)
{
	struct x86_fpu *fpu = &t->cpu.s.fpu;
	unsigned kind = random_next(seed) & 3;

	memset(fpu, 0, sizeof(*fpu));
	fpu->fcw = 0x37f;
	fpu->fsw = (uint16_t)((random_next(seed) & 7) << X86_FSW_TOP_SHIFT);
	fpu->ftw = (uint8_t)random_next(seed);
	fpu->mxcsr = 0x1f80 | (random_next(seed) & 3) << 13;
	for (unsigned i = 0; i < 64; i++)
		fpu->vec[i / 4].q[i % 4] = random_lane(seed, kind);
	for (unsigned i = 0; i < 8; i++) {
		uint64_t lane = random_lane(seed, kind);

		memcpy(fpu->st[i], &lane, 8);
		memset(fpu->st[i] + 8, 0x3f, 2);
		lane = random_lane(seed, kind);
		memcpy((uint8_t *)test_host(t, DATA) + i * 8, &lane, 8);
	}
	for (unsigned i = 0; i < 16; i++)
		t->cpu.s.reg[i] = random_next(seed);
	t->cpu.s.reg[X86_RAX] &= 31;
	t->cpu.s.reg[X86_RDX] &= 31;
	t->cpu.s.reg[X86_RBX] = t->cpu.s.reg[X86_RDI] = DATA;
	t->cpu.s.rflags = (random_next(seed) & X86_FLAGS_ARITH) | X86_FLAGS_FIXED;
}

static void host_load(struct test_cpu *t, struct host *host)
{
	const struct x86_fpu *fpu = &t->cpu.s.fpu;

	memset(host, 0, sizeof(*host));
	memcpy(host->fx, &fpu->fcw, 2);
	memcpy(host->fx + 2, &fpu->fsw, 2);
	host->fx[4] = fpu->ftw;
	memcpy(host->fx + 24, &fpu->mxcsr, 4);
	memcpy(host->fx + 32, fpu->st, sizeof(fpu->st));
	for (unsigned i = 0; i < 16; i++) {
		memcpy(host->ymm[i], &fpu->vec[i], 32);
		host->gpr[i] = t->cpu.s.reg[i];
	}
	host->gpr[X86_RBX] = host->gpr[X86_RDI] = (uintptr_t)host->mem;
	host->rflags = t->cpu.s.rflags;
	host->mxcsr = fpu->mxcsr;
	memcpy(host->mem, test_host(t, DATA), MEM_BYTES);
}

static void compare(struct test_cpu *t, struct host *host, const char *name, uint64_t flags)
{
	const struct x86_fpu *fpu = &t->cpu.s.fpu;
	const char *bad = NULL;
	uint16_t fcw;

	memcpy(&fcw, host->fx, 2);
	host->gpr[X86_RSP] = t->cpu.s.reg[X86_RSP];
	host->gpr[X86_RBX] = host->gpr[X86_RDI] = DATA;
	for (unsigned i = 0; i < 16; i++)
		if (memcmp(host->ymm[i], &fpu->vec[i], 32) != 0)
			bad = "vector register";
	if (memcmp(host->gpr, t->cpu.s.reg, sizeof(host->gpr)) != 0)
		bad = "general register";
	if ((host->rflags ^ t->cpu.s.rflags) & flags)
		bad = "flags";
	if (memcmp(host->mem, test_host(t, DATA), MEM_BYTES) != 0)
		bad = "memory";
	if (host->mxcsr != fpu->mxcsr)
		bad = "MXCSR";
	if (fcw != fpu->fcw || host->fx[4] != fpu->ftw || memcmp(host->fx + 2, &fpu->fsw, 2) != 0)
		bad = "x87 state";
	for (unsigned i = 0; i < 8; i++)
		if (memcmp(host->fx + 32 + i * 16, fpu->st[i], 10) != 0)
			bad = "MMX register";
	if (bad)
		fail_msg("%s: %s differs", name, bad);
}

/* ---- rows ---- */

static bool row_is_vector(const struct x86_row *row)
{
	return (row->attr & (X86_A_MMX | X86_A_SSE | X86_A_AVX)) && row->fn != x86_vec_mxcsr &&
	       !strstr(row->encoding, "0F 18") && !strstr(row->name, "fence");
}

/* Indexes within the operand: small, odd doublewords zero. */
static void tame_indexes(struct test_cpu *t, const struct choice *c)
{
	for (unsigned i = 0; i < 4; i++)
		t->cpu.s.fpu.vec[c->rm].q[i] &= 0x1f;
}

static void choose(struct choice *c, const struct x86_row *row, uint64_t *seed)
{
	uint64_t r = random_next(seed);

	c->w = strstr(row->encoding, "REX.W ") || strstr(row->encoding, ".W1");
	if (!strstr(row->encoding, ".W0") && !strstr(row->encoding, "REX.W"))
		c->w |= r >> 40 & 1;
	c->reg = r & (row_has(row, "P") ? 7 : 15);
	c->rm = r >> 4 & (row_has(row, "QN") ? 7 : 15);
	if (row->attr & X86_A_VSIB) {
		c->reg = 1;
		c->rm = 2 + (r >> 4 & 1);
	}
	if (row_has(row, "G") && (c->reg == X86_RSP || c->reg == X86_RBX || c->reg == X86_RDI))
		c->reg = X86_RCX;
	if (row_has(row, "ER") && (c->rm == X86_RSP || c->rm == X86_RBX || c->rm == X86_RDI))
		c->rm = X86_RDX;
	c->vvvv = row->attr & X86_A_VSIB ? 5 : r >> 8 & 15;
	c->is4 = r >> 12 & 15;
	c->imm[0] = (uint8_t)(r >> 16);
	c->imm[1] = (uint8_t)(r >> 24);
}

/* Does the decoder take these bytes for this row? Another may be preferred (W, mandatory forms). */
static bool decodes_to(const struct form *form, const struct x86_row *row)
{
	struct x86_insn insn;

	return x86_decode(&insn, form->bytes, form->count, 64, false, NULL) == X86_DECODE_OK &&
	       insn.row == row && insn.len == form->count;
}

static bool check_once(struct test_cpu *t, struct codebuf *code, const struct x86_row *row,
	struct choice *c, uint64_t *seed)
{
	uint64_t flags = X86_FLAGS_ARITH & ~(uint64_t)x86_flags_mask(row->flags_undef);
	struct host host;
	struct form form;
	char name[128];

	choose(c, row, seed);
	form_make(&form, row, c);
	if (!decodes_to(&form, row))
		return false;
	guest_randomize(t, seed);
	if (row->attr & X86_A_VSIB)
		tame_indexes(t, c);
	host_load(t, &host);
	host_run(code, &form, &host);
	snprintf(name, sizeof(name), "%s (%s) %s", row->name, row->encoding,
		c->mem ? "memory" : "register");
	if (run_bytes(t, (const char *)form.bytes, form.count) != X86_OK)
		fail_msg("%s: fault %u", name, t->cpu.fault.vector);
	compare(t, &host, name, flags);
	return true;
}

/* Both vector lengths, both forms. Returns how many rounds ran. */
static unsigned check_row(
	struct test_cpu *t, struct codebuf *code, const struct x86_row *row, uint64_t *seed)
{
	unsigned ran = 0;

	for (unsigned i = 0; i < 4 * ROUNDS; i++) {
		struct choice c = {.mem = i & 1, .l = i & 2};

		ran += check_once(t, code, row, &c, seed);
	}
	return ran;
}

static void test_rows(void **state)
{
	struct test_cpu *t = *state;
	uint64_t seed = 0x9e3779b97f4a7c15;
	unsigned rows = 0, rounds = 0, unreached = 0;
	struct codebuf code;

	if (!x86_native_host_has(X86_F_AVX2)) {
		print_message("SKIPPED: no vector row was checked: the host has no AVX2\n");
		skip();
	}
	assert_int_equal(codebuf_init(&code, 4096, NULL), 0);
	for (unsigned i = 0; i < x86_row_count; i++) {
		const struct x86_row *row = &x86_rows[i];
		unsigned ran;

		if (!row_is_vector(row))
			continue;
		if (!x86_native_host_has(row->feature)) {
			print_message("SKIPPED: %s: not on this host\n", row->name);
			continue;
		}
		ran = check_row(t, &code, row, &seed);
		if (!ran) {
			print_message("NOT REACHED: %s (%s)\n", row->name, row->encoding);
			unreached++;
		}
		rows++;
		rounds += ran;
	}
	print_message("%u rows, %u rounds\n", rows, rounds);
	assert_true(rows > 800);
	assert_int_equal(unreached, 0);
	codebuf_done(&code);
}

/* ---- x87 ---- */

/*
 * The row's ModRM: memory at [RBX], or the register form's byte, its low bits chosen if it says so.
 */
static void x87_form(struct form *form, const struct x86_row *row, unsigned i)
{
	const char *p = row->encoding, *second = strchr(p, ' ');

	form->count = 0;
	put(form, (unsigned)strtoul(p, NULL, 16));
	if (!second)
		return;
	if (second[1] == '/')
		put(form, (unsigned)(second[2] - '0') << 3 | X86_RBX);
	else
		put(form, (unsigned)strtoul(second + 1, NULL, 16) + (strchr(second, '+') ? i : 0));
}

/* Ordinary numbers, and every kind of strange one. */
static void x87_random_register(uint8_t st[16], uint64_t *seed)
{
	static const uint16_t exponents[] = {0, 1, 0x3ffe, 0x4000, 0x7ffe, 0x7fff,
		/* the ends of double and single precision */
		0x3c00, 0x3c01, 0x43fe, 0x43ff, 0x3f80, 0x3f81, 0x407e, 0x407f};
	uint64_t r = random_next(seed), mantissa = random_next(seed) | 1ull << 63;
	uint16_t exponent = (uint16_t)(0x3fff + (r & 31) - 16);

	if ((r >> 8 & 7) < 3)
		exponent = exponents[(r >> 11 & 0xff) % ARRAY_SIZE(exponents)];
	if ((r >> 20 & 7) == 0)
		mantissa = 1ull << 63;
	else if ((r >> 20 & 7) == 1)
		mantissa = r >> 23 & 1 ? 0 : mantissa << 1;
	if ((r >> 25 & 3) == 0) /* fits double, maybe single precision */
		mantissa &= r >> 27 & 1 ? ~0ull << 11 : ~0ull << 40;
	exponent |= (uint16_t)((r >> 24 & 1) << 15);
	memset(st, 0, 16);
	memcpy(st, &mantissa, 8);
	memcpy(st + 8, &exponent, 2);
}

/* Old flags: those of unmasked exceptions only before instructions that do not wait. */
static void x87_random_flags(struct x86_fpu *fpu, bool waits, uint64_t r)
{
	fpu->fsw = (uint16_t)(r & 0x7f7f);
	if (waits)
		fpu->fsw &= (uint16_t)(fpu->fcw | ~X86_FSW_FLAGS);
	x86_fpu_summarize(fpu);
}

static void x87_randomize(struct test_cpu *t, const struct x86_row *row, uint64_t *seed)
{
	struct x86_fpu *fpu = &t->cpu.s.fpu;
	uint64_t r = random_next(seed);
	uint8_t *mem = test_host(t, DATA);

	guest_randomize(t, seed);
	for (unsigned i = 0; i < 8; i++) {
		x87_random_register(fpu->st[i], seed);
		x87_random_register(mem + i * 16, seed);
	}
	if (r >> 60 & 1) { /* single or double precision, not too large */
		float f = (float)(int32_t)r / 1024;
		double d = (double)(int32_t)r / 1024;

		memcpy(mem, r >> 61 & 1 ? (void *)&f : (void *)&d, r >> 61 & 1 ? 4 : 8);
	}
	fpu->ftw = (uint8_t)(r | (r >> 8 & 1 ? 0xff : 0));
	fpu->fcw = x86_fcw_fix((uint16_t)(r >> 9 & 1 ? 0x37f : r >> 16));
	x87_random_flags(fpu, !(row->attr & X86_A_NOWAIT), r >> 32);
}

/*
 * FIP, FDP, FOP and selectors in a stored environment: AMD processors show them only with an
 * exception.
 */
static void x87_forget_pointers(uint8_t *env)
{
	memset(env + 12, 0, 16);
}

static void x87_check(
	struct test_cpu *t, struct codebuf *code, const struct x86_row *row, uint64_t *seed)
{
	bool env = row->fn == x86_fpu_stenv || row->fn == x86_fpu_save;
	uint64_t r = random_next(seed);
	struct host host;
	struct form form;
	char name[128];

	x87_form(&form, row, r & 7);
	assert_true(decodes_to(&form, row));
	x87_randomize(t, row, seed);
	host_load(t, &host);
	host_run(code, &form, &host);
	snprintf(name, sizeof(name), "%s (%s)", row->name, row->encoding);
	if (run_bytes(t, (const char *)form.bytes, form.count) != X86_OK)
		fail_msg("%s: fault %u", name, t->cpu.fault.vector);
	if (env) {
		x87_forget_pointers(host.mem);
		x87_forget_pointers(test_host(t, DATA));
	}
	compare(t, &host, name, X86_FLAGS_ARITH);
}

/* Feature-named rows that are not D8 to DF, and those with FIP in the way, are other tests'. */
static bool row_is_x87(const struct x86_row *row)
{
	return (row->feature == X86_F_FPU || row->fn == x86_fpu_run) && row->fn != x86_fpu_wait;
}

static void test_x87_rows(void **state)
{
	struct test_cpu *t = *state;
	uint64_t seed = 0x123456789abcdef1;
	struct codebuf code;
	unsigned rows = 0;

	assert_int_equal(codebuf_init(&code, 4096, NULL), 0);
	for (unsigned i = 0; i < x86_row_count; i++) {
		if (!row_is_x87(&x86_rows[i]))
			continue;
		rows++;
		for (unsigned round = 0; round < 40 * ROUNDS; round++)
			x87_check(t, &code, &x86_rows[i], &seed);
	}
	print_message("%u x87 rows\n", rows);
	assert_true(rows > 130);
	codebuf_done(&code);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_rows),
		TEST(test_x87_rows),
	};

	return cmocka_run_group_tests_name("native_rows", tests, NULL, NULL);
}
