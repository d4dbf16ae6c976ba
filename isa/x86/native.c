/*
 * The native executor: makes, keeps and finds stubs that run one host instruction on operands in a
 * context.
 *
 * An instruction is encoded anew from its row (SDM 2, 2.1 and 2.3): operand i that is a vector
 * register becomes XMM(i+1), MMX register MM(i+1), a general register RAX, RCX or RDX by i, memory
 * [RDI + mem]. So stubs differ only in row, immediates, VEX.W, VEX.L and memory or register form:
 * that is the key.
 *
 * Invariants: stubs obey the C calling convention (no callee-saved register is touched, MMX state
 * is left with EMMS, upper halves are zeroed, MXCSR and FCW are the host's again). A stub never
 * faults: its memory is the context, SIMD exceptions are masked, and an x87 exception stays pending
 * until the stub's FNINIT drops it. (x87 status flags of the host are not kept.)
 */
#include "isa/x86/native_stub.h"

#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "isa/x86/cpuid_flags.h"

/* ---- the row's encoding ---- */

static int encoding_hex(const char *token)
{
	char *end;
	long value;

	if (!token[0] || !token[1] || token[2])
		return -1;
	value = strtol(token, &end, 16);
	return *end ? -1 : (int)value;
}

static void encoding_vex(const char *token, struct native_encoding *e)
{
	e->vex = true;
	e->map = strstr(token, ".0F38") ? 2 : strstr(token, ".0F3A") ? 3 : 1;
	e->prefix = strstr(token, ".66.")   ? 0x66
		    : strstr(token, ".F3.") ? 0xf3
		    : strstr(token, ".F2.") ? 0xf2
					    : 0;
}

/* Legacy bytes: prefixes come before 0F, 38 and 3A right after it. Returns true at the opcode. */
static bool encoding_byte(int byte, struct native_encoding *e)
{
	if (e->map == 0 && (byte == 0x66 || byte == 0xf3 || byte == 0xf2))
		e->prefix = (uint8_t)byte;
	else if (e->map == 0 && byte == 0x0f)
		e->map = 1;
	else if (e->map == 1 && (byte == 0x38 || byte == 0x3a))
		e->map = byte == 0x38 ? 2 : 3;
	else
		return true;
	return false;
}

int x86_native_encoding(const struct x86_row *row, struct native_encoding *ret_encoding)
{
	struct native_encoding e = {.digit = -1};
	bool opcode = false;
	char text[64], *save, *token;

	if ((size_t)snprintf(text, sizeof(text), "%s", row->encoding) >= sizeof(text))
		return -EINVAL;
	for (token = strtok_r(text, " ", &save); token; token = strtok_r(NULL, " ", &save)) {
		int byte = encoding_hex(token);

		if (!strncmp(token, "VEX.", 4))
			encoding_vex(token, &e);
		else if (token[0] == '/' && token[1] >= '0' && token[1] <= '7')
			e.digit = (int8_t)(token[1] - '0');
		else if (byte >= 0 && !opcode)
			opcode = e.vex || encoding_byte(byte, &e);
	}
	*ret_encoding = e;
	return opcode ? 0 : -EINVAL;
}

/* ---- what the host has ---- */

/* CPUID leaves a virtual machine, if the host is one: asked once. */
static bool host_lacks[X86_FEATURES];
static pthread_once_t host_once = PTHREAD_ONCE_INIT;

static bool host_cpuid_bit(const struct x86_cpuid_flag *f)
{
	uint32_t r[4];

	return __get_cpuid_count(f->leaf, f->subleaf, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) &&
	       (r[f->reg] >> f->bit & 1);
}

/* Does the host's kernel keep the upper halves of the vector registers (SDM 1, 14.3)? */
static bool host_keeps_avx(void)
{
	const uint32_t both = X86_XCR0_SSE | X86_XCR0_AVX;
	uint32_t r[4], low, high;

	if (!__get_cpuid(1, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) || !(r[ECX] & bit_OSXSAVE))
		return false;
	__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (low & both) == both;
}

static void host_ask(void)
{
	const bool avx = host_keeps_avx();

	for (unsigned i = 0; i < x86_cpuid_flag_count; i++) {
		const struct x86_cpuid_flag *f = &x86_cpuid_flags[i];
		const bool needs_avx = f->feature == X86_F_AVX || f->base == X86_F_AVX;

		if (f->feature != X86_F_BASE && !(f->need & NEED_DERIVED))
			host_lacks[f->feature] = !host_cpuid_bit(f) || (needs_avx && !avx);
	}
}

bool x86_native_host_has(unsigned feature)
{
	pthread_once(&host_once, host_ask);
	return !host_lacks[feature]; /* every x86-64 processor has what CPUID has no bit for */
}

/* ---- emitting ---- */

struct emit {
	uint8_t *p, *end; /* past `end` nothing is written; p still moves */
};

static void emit8(struct emit *e, unsigned byte)
{
	if (e->p < e->end)
		*e->p = (uint8_t)byte;
	e->p++;
}

static void emit_bytes(struct emit *e, const char *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		emit8(e, (uint8_t)bytes[i]);
}
#define EMIT(e, literal) emit_bytes(e, literal, sizeof(literal) - 1)

static void emit32(struct emit *e, uint32_t value)
{
	for (unsigned i = 0; i < 4; i++)
		emit8(e, value >> 8 * i);
}

/* ModRM of [RDI + offset]. */
static void emit_ctx(struct emit *e, unsigned reg, size_t offset)
{
	emit8(e, 0x87 | reg << 3);
	emit32(e, (uint32_t)offset);
}
#define CTX(member) offsetof(struct native_ctx, member)

/* Where operand i lives while the instruction runs. */
static unsigned stub_register(const struct x86_insn *insn, const char *const *letters, unsigned i)
{
	if (insn->op[i].kind == X86_O_GPR)
		return i;
	return !strncmp(letters[i], "XMM0", 4) ? 0 : i + 1;
}

static void stub_operand_load(
	struct emit *e, const struct x86_insn *insn, bool vex, unsigned i, unsigned reg)
{
	unsigned kind = insn->op[i].kind;

	if (kind != X86_O_VEC && kind != X86_O_MMX && kind != X86_O_GPR)
		return;
	EMIT(e, "\x48\x8b"); /* mov rsi, [rdi + operand[i]] */
	emit_ctx(e, 6, CTX(operand) + i * sizeof(void *));
	if (kind == X86_O_GPR)
		EMIT(e, "\x48\x8b"); /* mov reg, [rsi] */
	else if (kind == X86_O_MMX)
		EMIT(e, "\x0f\x6f"); /* movq */
	else if (vex)
		EMIT(e, "\xc5\xfc\x10"); /* vmovups ymm */
	else
		EMIT(e, "\x0f\x10"); /* movups */
	emit8(e, 0x06 | reg << 3);
}

static void stub_result_store(struct emit *e, unsigned kind, bool vex, unsigned reg)
{
	if (kind == X86_O_GPR) {
		EMIT(e, "\x48\x89");
		emit_ctx(e, reg, CTX(out_gpr));
		return;
	}
	if (kind == X86_O_MMX)
		EMIT(e, "\x0f\x7f");
	else if (vex)
		EMIT(e, "\xc5\xfc\x11");
	else
		EMIT(e, "\x0f\x11");
	emit_ctx(e, reg, CTX(out));
}

/* ---- one instruction ---- */

/* The fields of ModRM, VEX.vvvv and the fourth register, as operands' letters assign them. */
struct stub_fields {
	unsigned reg, rm, vvvv, is4;
	bool mem, has_is4;
	unsigned imm_count;
};

static int stub_field(struct stub_fields *f, char letter, unsigned kind, unsigned reg)
{
	if (kind == X86_O_MEM) {
		f->mem = true;
		return 0;
	}
	switch (letter) {
	case 'V':
	case 'P':
	case 'G': f->reg = reg; return 0;
	case 'W':
	case 'Q':
	case 'E':
	case 'U':
	case 'N':
	case 'R': f->rm = reg; return 0;
	case 'H':
	case 'B': f->vvvv = reg; return 0;
	case 'L':
		f->is4 = reg;
		f->has_is4 = true;
		return 0;
	case 'I': f->imm_count++; return 0;
	case 'X': return 0; /* XMM0 */
	default: return -EINVAL;
	}
}

static void stub_opcode(struct emit *e, const struct x86_insn *insn,
	const struct native_encoding *enc, const struct stub_fields *f)
{
	static const char maps[][3] = {"", "\x0f", "\x0f\x38", "\x0f\x3a"};
	unsigned w = insn->rex >> 3 & 1;

	/* A width that follows VEX.W (VCVTSI2SD) does so in 64-bit mode only. */
	if (insn->mode != 64 && strstr(insn->row->encoding, "WIG"))
		w = 0;
	if (enc->vex) {
		unsigned pp = enc->prefix == 0x66   ? 1
			      : enc->prefix == 0xf3 ? 2
			      : enc->prefix	    ? 3
						    : 0;

		emit8(e, 0xc4);
		emit8(e, 0xe0 | enc->map);
		emit8(e, w << 7 | (~f->vvvv & 15) << 3 | (insn->vl == 32) << 2 | pp);
	} else {
		if (enc->prefix)
			emit8(e, enc->prefix);
		if (w)
			emit8(e, 0x48);
		emit_bytes(e, maps[enc->map], strlen(maps[enc->map]));
	}
	emit8(e, insn->opcode);
}

static void stub_instruction(struct emit *e, const struct x86_insn *insn,
	const struct native_encoding *enc, const struct stub_fields *f)
{
	unsigned reg = enc->digit >= 0 ? (unsigned)enc->digit : f->reg;

	stub_opcode(e, insn, enc, f);
	if (f->mem)
		emit_ctx(e, reg, CTX(mem));
	else
		emit8(e, 0xc0 | reg << 3 | f->rm);
	if (f->has_is4)
		emit8(e, f->is4 << 4 | (insn->imm & 15));
	if (f->imm_count >= 1 && !f->has_is4)
		emit8(e, (uint8_t)insn->imm);
	if (f->imm_count >= 2)
		emit8(e, (uint8_t)insn->imm2);
}

static void stub_mxcsr_enter(struct emit *e)
{
	EMIT(e, "\x0f\xae"); /* stmxcsr, ldmxcsr */
	emit_ctx(e, 3, CTX(host_mxcsr));
	EMIT(e, "\x0f\xae");
	emit_ctx(e, 2, CTX(mxcsr));
}

static void stub_mxcsr_leave(struct emit *e)
{
	EMIT(e, "\x0f\xae");
	emit_ctx(e, 3, CTX(mxcsr));
	EMIT(e, "\x0f\xae");
	emit_ctx(e, 2, CTX(host_mxcsr));
}

static void stub_flags_out(struct emit *e)
{
	EMIT(e, "\x9c\x8f"); /* pushfq; pop [rdi + rflags] */
	emit_ctx(e, 0, CTX(rflags));
}

/* PCMPxSTRx: lengths in, index and mask out. */
static void stub_pcmpstr_in(struct emit *e)
{
	EMIT(e, "\x48\x8b");
	emit_ctx(e, 0, CTX(rax));
	EMIT(e, "\x48\x8b");
	emit_ctx(e, 2, CTX(rdx));
}

static bool insn_has_kind(const struct x86_insn *insn, unsigned kind)
{
	for (unsigned i = 0; i < insn->operand_count; i++)
		if (insn->op[i].kind == kind)
			return true;
	return false;
}

/* The operands' text split at commas; pieces point into `row`. */
static unsigned row_letters(const struct x86_row *row, const char *letters[X86_OPERANDS_MAX])
{
	const char *p = row->operands;
	unsigned n = 0;

	while (*p && n < X86_OPERANDS_MAX) {
		p += strspn(p, ", ");
		if (*p)
			letters[n++] = p;
		p += strcspn(p, ",");
	}
	return n;
}

static void stub_epilogue(
	struct emit *e, const struct x86_insn *insn, const struct native_encoding *enc)
{
	if (insn->row->attr & X86_A_MXCSR)
		stub_mxcsr_leave(e);
	if (insn_has_kind(insn, X86_O_MMX) || (insn->row->attr & X86_A_MMX))
		EMIT(e, "\x0f\x77");
	if (enc->vex)
		EMIT(e, "\xc5\xf8\x77");
	emit8(e, 0xc3);
}

static int stub_make_vec(struct emit *e, const struct x86_insn *insn, enum native_shape shape)
{
	const char *letters[X86_OPERANDS_MAX];
	struct native_encoding enc;
	struct stub_fields f = {0};

	if (x86_native_encoding(insn->row, &enc) < 0 || enc.map == 0)
		return -EINVAL;
	if (row_letters(insn->row, letters) != insn->operand_count)
		return -EINVAL;
	if (insn->row->attr & X86_A_MXCSR)
		stub_mxcsr_enter(e);
	for (unsigned i = 0; i < insn->operand_count; i++) {
		unsigned reg = stub_register(insn, letters, i);

		if (insn->op[i].kind == X86_O_GPR && i > 2)
			return -EINVAL;
		if (stub_field(&f, letters[i][0], insn->op[i].kind, reg) < 0)
			return -EINVAL;
		stub_operand_load(e, insn, enc.vex, i, reg);
	}
	if (shape == NATIVE_PCMPSTR)
		stub_pcmpstr_in(e);
	stub_instruction(e, insn, &enc, &f);
	if (insn->row->flags_out[0])
		stub_flags_out(e);
	if (shape == NATIVE_PCMPSTR) {
		stub_result_store(e, X86_O_GPR, enc.vex, 1);
		stub_result_store(e, X86_O_VEC, enc.vex, 0);
	} else if (insn->op[0].kind != X86_O_MEM && insn->operand_count) {
		stub_result_store(e, insn->op[0].kind, enc.vex, stub_register(insn, letters, 0));
	}
	stub_epilogue(e, insn, &enc);
	return 0;
}

/* The host's MXCSR is in the image, so that FXRSTOR leaves it alone. */
static int stub_make_x87(struct emit *e, const struct x86_insn *insn)
{
	EMIT(e, "\x0f\xae"); /* stmxcsr [fx + 24] */
	emit_ctx(e, 3, CTX(fx) + 24);
	EMIT(e, "\xd9"); /* fnstcw */
	emit_ctx(e, 7, CTX(host_fcw));
	EMIT(e, "\x48\x0f\xae"); /* fxrstor64 */
	emit_ctx(e, 1, CTX(fx));
	EMIT(e, "\xff"); /* push [rdi + rflags]; popfq */
	emit_ctx(e, 6, CTX(rflags));
	EMIT(e, "\x9d");
	emit8(e, insn->opcode);
	if (insn->modrm < 0xc0)
		emit_ctx(e, insn->modrm >> 3 & 7, CTX(mem));
	else
		emit8(e, insn->modrm);
	stub_flags_out(e);
	EMIT(e, "\x48\x0f\xae"); /* fxsave64 */
	emit_ctx(e, 0, CTX(fx));
	EMIT(e, "\xdb\xe3\xd9"); /* fninit; fldcw */
	emit_ctx(e, 5, CTX(host_fcw));
	emit8(e, 0xc3);
	return 0;
}

/*
 * Arithmetic on two registers or memory; exceptions are masked, and the host's stack is empty, as
 * its calling convention says, and must be empty again afterwards. The result is ST(0) for D8 and
 * memory; the other register, below, is dropped after D8. It is below what was ST(0) for DC, which is
 * dropped; DE popped it.
 */
static int stub_make_x87_light(struct emit *e, const struct x86_insn *insn)
{
	bool mem = insn->modrm < 0xc0;

	EMIT(e, "\xd9"); /* fnstcw; fnclex; fldcw */
	emit_ctx(e, 7, CTX(host_fcw));
	EMIT(e, "\xdb\xe2\xd9");
	emit_ctx(e, 5, CTX(fcw));
	if (!mem) {
		EMIT(e, "\xdb"); /* fld tword */
		emit_ctx(e, 5, CTX(st) + 16);
	}
	EMIT(e, "\xdb");
	emit_ctx(e, 5, CTX(st));
	emit8(e, insn->opcode);
	if (mem)
		emit_ctx(e, insn->modrm >> 3 & 7, CTX(mem));
	else
		emit8(e, (insn->modrm & 0xf8) | 1);
	EMIT(e, "\xdd"); /* fnstsw */
	emit_ctx(e, 7, CTX(fsw));
	if (!mem && insn->opcode == 0xdc)
		EMIT(e, "\xdd\xd8"); /* fstp st0 */
	if (!mem && insn->opcode == 0xd8)
		EMIT(e, "\xdd\xd9"); /* fstp st1 */
	EMIT(e, "\xdb");	     /* fstp tword */
	emit_ctx(e, 7, CTX(st));
	EMIT(e, "\xd9"); /* fldcw */
	emit_ctx(e, 5, CTX(host_fcw));
	emit8(e, 0xc3);
	return 0;
}

/* ---- the cache ---- */

static uint64_t stub_key(const struct x86_insn *insn, enum native_shape shape)
{
	uint64_t key = (uint64_t)(insn->row - x86_rows) | 1ull << 63;

	if (shape == NATIVE_X87 || shape == NATIVE_X87_LIGHT)
		return key | (uint64_t)insn->modrm << 16 | (uint64_t)shape << 60;
	return key | (insn->imm & 0xff) << 16 | (uint64_t)(insn->imm2 & 0xff) << 24 |
	       (uint64_t)(insn->rex >> 3 & 1) << 32 | (uint64_t)(insn->vl == 32) << 33 |
	       (uint64_t)(insn->modrm >= 0xc0) << 34 | (uint64_t)(insn->mode == 64) << 35;
}

static unsigned stub_hash(uint64_t key)
{
	return (unsigned)((key * 0x9e3779b97f4a7c15ull) >> 40) & (NATIVE_STUBS - 1);
}

static int stub_make(struct emit *e, const struct x86_insn *insn, enum native_shape shape)
{
	switch (shape) {
	case NATIVE_X87: return stub_make_x87(e, insn);
	case NATIVE_X87_LIGHT: return stub_make_x87_light(e, insn);
	default: return stub_make_vec(e, insn, shape);
	}
}

static void native_flush(struct x86_native *native)
{
	memset(native->stub, 0, sizeof(native->stub));
	native->stub_count = 0;
	native->used = 0;
}

/* A stub at the end of the code buffer, not yet in the table. */
static native_fn *native_make(
	struct x86_native *native, const struct x86_insn *insn, enum native_shape shape)
{
	uint8_t *start = codebuf_write(&native->code, native->used);
	struct emit e = {.p = start, .end = start + NATIVE_STUB_BYTES};
	const void *code = codebuf_code(&native->code, native->used);
	int ret;

	if (!x86_native_host_has(insn->row->feature))
		return NULL;
	if (codebuf_open(&native->code) < 0)
		return NULL;
	ret = stub_make(&e, insn, shape);
	if (codebuf_close(&native->code) < 0 || ret < 0 || e.p > e.end)
		return NULL;
	native->used = ALIGN_UP(native->used + (size_t)(e.p - start), (size_t)16);
	return (native_fn *)(uintptr_t)code;
}

static native_fn *native_add(struct x86_native *native, const struct x86_insn *insn,
	enum native_shape shape, uint64_t key)
{
	unsigned i = stub_hash(key);
	native_fn *fn;

	if (native->stub_count >= NATIVE_STUBS / 2 ||
		native->used + NATIVE_STUB_BYTES > native->code.size_bytes)
		native_flush(native);
	fn = native_make(native, insn, shape);
	if (!fn) {
		log_debug("native", "cannot execute %s (%s)", insn->row->name, insn->row->encoding);
		return NULL;
	}
	while (native->stub[i].key)
		i = (i + 1) & (NATIVE_STUBS - 1);
	native->stub[i].key = key;
	native->stub[i].fn = fn;
	native->stub_count++;
	return fn;
}

native_fn *x86_native_stub(
	struct x86_cpu *cpu, const struct x86_insn *insn, enum native_shape shape)
{
	uint64_t key = stub_key(insn, shape);
	unsigned i = stub_hash(key);
	struct x86_native *native = cpu->native;

	if (unlikely(!native)) {
		if (x86_native_create(&cpu->native) < 0)
			return NULL;
		native = cpu->native;
	}
	for (; native->stub[i].key; i = (i + 1) & (NATIVE_STUBS - 1))
		if (native->stub[i].key == key)
			return native->stub[i].fn;
	return native_add(native, insn, shape, key);
}

int x86_native_create(struct x86_native **ret_native)
{
	struct x86_native *native = aligned_alloc(64, ALIGN_UP(sizeof(*native), (size_t)64));
	int ret;

	if (!native)
		return -ENOMEM;
	memset(native, 0, sizeof(*native));
	ret = codebuf_init(&native->code, NATIVE_CODE_BYTES, NULL);
	if (ret < 0) {
		free(native);
		return ret;
	}
	*ret_native = native;
	return 0;
}

void x86_native_free(struct x86_native *native)
{
	if (!native)
		return;
	codebuf_done(&native->code);
	free(native);
}

/* ---- memory operands ---- */

/* Unaligned operands of aligned instructions are #GP(0), judged by the linear address. */
static enum x86_status operand_linear(struct x86_cpu *cpu, const struct x86_insn *insn,
	unsigned size, enum x86_access access, gva_t *ret_linear)
{
	const uint64_t ea = x86_ea(cpu, insn);
	enum x86_status status = x86_linear(cpu, insn->seg, ea, size, access, ret_linear);

	if (!(insn->row->attr & X86_A_ALIGN))
		return status;
	if (unlikely(status != X86_OK)) /* a #SS for the segment's limit comes after alignment */
		*ret_linear = ea + (insn->seg < 6 ? cpu->s.seg[insn->seg].base : 0);
	return IS_ALIGNED(*ret_linear, (gva_t)size) ? status : x86_gp(cpu, 0);
}

static void copy_operand(void *to, const void *from, unsigned size)
{
	switch (size) {
	case 4: memcpy(to, from, 4); break;
	case 8: memcpy(to, from, 8); break;
	case 16: memcpy(to, from, 16); break;
	case 32: memcpy(to, from, 32); break;
	default: memcpy(to, from, size); break;
	}
}

enum x86_status x86_native_load(
	struct x86_cpu *cpu, const struct x86_insn *insn, void *buf, unsigned size)
{
	const void *host;
	gva_t linear;

	X86_TRY(operand_linear(cpu, insn, size, X86_READ, &linear));
	host = x86_tlb_host(cpu, linear, size, X86_READ);
	if (unlikely(!host))
		return x86_load_slow(cpu, insn->seg, linear, size, buf);
	copy_operand(buf, host, size);
	return X86_OK;
}

enum x86_status x86_native_store(
	struct x86_cpu *cpu, const struct x86_insn *insn, const void *buf, unsigned size)
{
	void *host;
	gva_t linear;

	X86_TRY(operand_linear(cpu, insn, size, X86_WRITE, &linear));
	host = x86_tlb_host(cpu, linear, size, X86_WRITE);
	if (unlikely(!host))
		return x86_store_slow(cpu, insn->seg, linear, size, buf);
	copy_operand(host, buf, size);
	return X86_OK;
}
