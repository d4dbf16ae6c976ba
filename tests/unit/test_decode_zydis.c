/*
 * The decoder against Zydis, an independent one: byte strings made from the table's rows and random ones,
 * in 16, 32 and 64-bit code. Validity, length, mnemonic, operands (kind, size, register, address, value),
 * flags and the attributes that Zydis knows must agree, but for the reasoned differences below.
 *
 * LODGE_DECODE_SEED and LODGE_DECODE_COUNT choose another and a longer run.
 */
#include "tests/unit/encode.h"
#include "isa/x86/semantics.h"

#include "base/util.h"

#include <Zydis/Zydis.h>
#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <cmocka.h>

#define REPORTS_MAX 60

struct oracle {
	ZydisDecoder decoder[4]; /* 16, 32, 64, real mode */
	struct rng rng;
	unsigned compared, valid, mismatches, reports;
	unsigned *reported; /* by row: one report each */
};

/* One comparison. */
struct pair {
	struct oracle *oracle;
	const uint8_t *bytes;
	unsigned mode;
	bool real;
	struct x86_insn ours;
	enum x86_decode_result result;
	ZydisDecodedInstruction zydis;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	bool zydis_ok;
};

/* ---- reports ---- */

static void __attribute__((format(printf, 2, 3))) mismatch(struct pair *p, const char *format, ...)
{
	struct oracle *o = p->oracle;
	unsigned key = p->ours.row ? (unsigned)(p->ours.row - x86_rows)
				   : x86_row_count + p->zydis.mnemonic;
	va_list args;
	o->mismatches++;
	if (o->reported[key]++ || o->reports++ >= REPORTS_MAX)
		return;
	char text[160];
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	printf("%u-bit%s", p->mode, p->real ? " real" : "");
	unsigned length = MAX(p->ours.len, p->zydis_ok ? p->zydis.length : 0u);
	for (unsigned i = 0; i < length; i++)
		printf(" %02x", p->bytes[i]);
	printf(": %s", text);
	if (p->ours.row) {
		char buf[128];
		printf(" [%s \"%s\" %s: %s]", p->ours.row->encoding, p->ours.row->name,
			p->ours.row->operands, x86_format(&p->ours, 0, buf, sizeof(buf)));
	}
	if (p->zydis_ok)
		printf(" [zydis %s]", ZydisMnemonicGetString(p->zydis.mnemonic));
	printf("\n");
}

/* ---- reasoned differences ---- */

static bool name_is_in(const struct x86_insn *insn, const char *const *names, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		if (strcasecmp(insn->row->name, names[i]) == 0)
			return true;
	}
	return false;
}

/* What Zydis decodes and the table leaves out: instruction sets that no guest of ours is shown. */
static bool is_left_out(const struct pair *p)
{
	static const uint16_t sets[] = {
		ZYDIS_ISA_EXT_AMD3DNOW,
		ZYDIS_ISA_EXT_AMD_INVLPGB,
		ZYDIS_ISA_EXT_AVX512EVEX,
		ZYDIS_ISA_EXT_AVX512VEX,
		ZYDIS_ISA_EXT_CET,
		ZYDIS_ISA_EXT_CLZERO,
		ZYDIS_ISA_EXT_ENQCMD,
		ZYDIS_ISA_EXT_FMA4,
		ZYDIS_ISA_EXT_HRESET,
		ZYDIS_ISA_EXT_KNC,
		ZYDIS_ISA_EXT_KNCE,
		ZYDIS_ISA_EXT_KNCV,
		ZYDIS_ISA_EXT_KEYLOCKER,
		ZYDIS_ISA_EXT_KEYLOCKER_WIDE,
		ZYDIS_ISA_EXT_MCOMMIT,
		ZYDIS_ISA_EXT_MONITORX,
		ZYDIS_ISA_EXT_MOVDIR,
		ZYDIS_ISA_EXT_PADLOCK,
		ZYDIS_ISA_EXT_PCONFIG,
		ZYDIS_ISA_EXT_PKU,
		ZYDIS_ISA_EXT_RDPRU,
		ZYDIS_ISA_EXT_RTM,
		ZYDIS_ISA_EXT_SGX,
		ZYDIS_ISA_EXT_SGX_ENCLV,
		ZYDIS_ISA_EXT_SMX,
		ZYDIS_ISA_EXT_SNP,
		ZYDIS_ISA_EXT_SSE4A,
		ZYDIS_ISA_EXT_SVM,
		ZYDIS_ISA_EXT_TDX,
		ZYDIS_ISA_EXT_TSX_LDTRK,
		ZYDIS_ISA_EXT_UINTR,
		ZYDIS_ISA_EXT_VMFUNC,
		ZYDIS_ISA_EXT_VTX,
		ZYDIS_ISA_EXT_WAITPKG,
		ZYDIS_ISA_EXT_XOP,
		ZYDIS_ISA_EXT_AMX_TILE,
		ZYDIS_ISA_EXT_AMX_INT8,
		ZYDIS_ISA_EXT_AMX_BF16,
		ZYDIS_ISA_EXT_PT,
	};
	for (unsigned i = 0; i < ARRAY_SIZE(sets); i++) {
		if (p->zydis.meta.isa_ext == sets[i])
			return true;
	}
	return p->zydis.mnemonic == ZYDIS_MNEMONIC_RSM; /* outside SMM: #UD */
}

/* SYSENTER and SYSEXIT raise #GP, not #UD, in real mode (SDM 2): their semantics do. */
static bool is_missed(const struct pair *p)
{
	return p->real && (p->ours.fn == x86_sysenter || p->ours.fn == x86_sysexit);
}

/*
 * Mnemonics that differ in name only: ours, theirs.
 * Zydis names hints and aliases that the table has as NOP, or as the instruction they equal.
 */
static bool same_mnemonic(const char *ours, const char *theirs)
{
	static const char *const pairs[][2] = {
		{"retf", "ret"},
		{"fstp", "fstpnce"},
		{"feni", "feni8087_nop"},
		{"fdisi", "fdisi8087_nop"},
		{"fsetpm", "fsetpm287_nop"},
		{"prefetchw", "nop"},
		{"prefetchw", "prefetch"},
		{"prefetchw", "prefetchwt1"},
		{"nop", "prefetchnta"},
		{"nop", "prefetcht0"},
		{"nop", "prefetcht1"},
		{"nop", "prefetcht2"},
		{"nop", "prefetchwt1"},
	};
	for (unsigned i = 0; i < ARRAY_SIZE(pairs); i++) {
		if (strcmp(ours, pairs[i][0]) == 0 && strcmp(theirs, pairs[i][1]) == 0)
			return true;
	}
	return strcmp(ours, theirs) == 0;
}

static bool is_string(const struct x86_insn *insn)
{
	return insn->row->attr & X86_A_REP;
}

/* MOVSXD r16: memory is 4 bytes, as processors read it; a register then has 4 too, 2 in Zydis. */
static bool is_movsxd16(const struct x86_insn *insn)
{
	return strcasecmp(insn->row->name, "movsxd") == 0 && insn->osize == 2;
}

/* F3 49 90 is an exchange with R8, as processors do it; Zydis names it PAUSE. */
static bool is_exchange_r8(const struct pair *p)
{
	return p->ours.opcode == 0x90 && p->ours.rex & 1 &&
	       p->zydis.mnemonic == ZYDIS_MNEMONIC_PAUSE;
}

/* Rows whose operands are not worth naming as Zydis does: the operands of hints and UD0, UD1, fences. */
static bool has_other_operands(const struct x86_insn *insn)
{
	static const char *const names[] = {"nop", "prefetchw", "ud0", "ud1", "fcom", "fcomp",
		"fucom", "fucomp", "lar", "lsl", "clflush", "clflushopt", "clwb"};
	return name_is_in(insn, names, ARRAY_SIZE(names)) || is_string(insn) || is_movsxd16(insn);
}

/* Zydis 4.0 takes R13D for the base of [index*scale+disp32] if 67 and REX.B are there (SDM 2 2.2.1.2). */
static bool is_zydis_sib_bug(const struct pair *p)
{
	const struct x86_insn *insn = &p->ours;
	return p->mode == 64 && insn->asize == 4 && insn->rex & 1 && insn->base == X86_ZERO;
}

/*
 * Zydis does not know that MOV CR and DR leave flags undefined and that (V)PTEST and VTESTPx clear those
 * they do not set; VMCALL is what the hypervisor makes of it.
 */
static bool has_other_flags(const struct x86_insn *insn)
{
	static const char *const names[] = {"vptest", "vtestps", "vtestpd", "vmcall"};
	return name_is_in(insn, names, ARRAY_SIZE(names)) || insn->op[0].kind == X86_O_CR ||
	       insn->op[0].kind == X86_O_DR || insn->op[1].kind == X86_O_CR ||
	       insn->op[1].kind == X86_O_DR;
}

/* ---- operands ---- */

static unsigned zydis_reg_number(ZydisRegister reg)
{
	if (reg == ZYDIS_REGISTER_NONE)
		return X86_ZERO;
	if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP)
		return X86_RIP;
	return (unsigned)ZydisRegisterGetId(reg);
}

static bool memory_agrees(
	struct pair *p, const struct x86_operand *ours, const ZydisDecodedOperand *op)
{
	static const ZydisRegister segs[] = {ZYDIS_REGISTER_ES, ZYDIS_REGISTER_CS,
		ZYDIS_REGISTER_SS, ZYDIS_REGISTER_DS, ZYDIS_REGISTER_FS, ZYDIS_REGISTER_GS};
	const struct x86_insn *insn = &p->ours;
	if (is_zydis_sib_bug(p))
		return true;
	bool moffs = op->encoding == ZYDIS_OPERAND_ENCODING_DISP16_32_64;
	uint64_t mask = ~0ull >> (64 - insn->asize * 8);
	uint64_t disp = moffs && insn->asize == 8 ? insn->imm : (uint64_t)(int64_t)insn->disp;
	unsigned base = ours->reg ? ours->reg : insn->base;
	unsigned seg = ours->reg == X86_RDI ? X86_ES : insn->seg;
	return zydis_reg_number(op->mem.base) == base &&
	       zydis_reg_number(op->mem.index) == insn->index &&
	       (insn->index == X86_ZERO || op->mem.scale == 1u << insn->scale) &&
	       ((uint64_t)op->mem.disp.value & mask) == (disp & mask) &&
	       (op->mem.type == ZYDIS_MEMOP_TYPE_AGEN || op->mem.segment == segs[seg]);
}

static bool register_agrees(struct pair *p, const struct x86_operand *ours, ZydisRegister reg)
{
	unsigned id = (unsigned)ZydisRegisterGetId(reg);
	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_GPR8:
		if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
			return ours->kind == X86_O_GPR8H && ours->reg == reg - ZYDIS_REGISTER_AH;
		return ours->kind == X86_O_GPR && ours->size == 1 &&
		       ours->reg == (reg < ZYDIS_REGISTER_AH
						    ? id
						    : id - (reg > ZYDIS_REGISTER_BH ? 4 : 0));
	case ZYDIS_REGCLASS_GPR16:
		return ours->kind == X86_O_GPR && ours->reg == id && ours->size == 2;
	case ZYDIS_REGCLASS_GPR32:
		return ours->kind == X86_O_GPR && ours->reg == id && ours->size == 4;
	case ZYDIS_REGCLASS_GPR64:
		return ours->kind == X86_O_GPR && ours->reg == id && ours->size == 8;
	case ZYDIS_REGCLASS_X87: return ours->kind == X86_O_ST && ours->reg == id;
	case ZYDIS_REGCLASS_MMX: return ours->kind == X86_O_MMX && ours->reg == id;
	case ZYDIS_REGCLASS_XMM:
		return ours->kind == X86_O_VEC && ours->reg == id && ours->size <= 16;
	case ZYDIS_REGCLASS_YMM:
		return ours->kind == X86_O_VEC && ours->reg == id && ours->size == 32;
	case ZYDIS_REGCLASS_SEGMENT: return ours->kind == X86_O_SEG && ours->reg == id;
	case ZYDIS_REGCLASS_CONTROL: return ours->kind == X86_O_CR && ours->reg == id;
	case ZYDIS_REGCLASS_DEBUG: return ours->kind == X86_O_DR && ours->reg == id;
	default: return false;
	}
}

static bool immediate_agrees(
	struct pair *p, const struct x86_operand *ours, const ZydisDecodedOperand *op)
{
	uint64_t mask = ours->size && ours->size < 8 ? (1ull << ours->size * 8) - 1 : ~0ull;
	if (op->imm.is_relative)
		return ours->kind == X86_O_REL && op->imm.value.u == p->ours.imm;
	uint64_t value = ours->reg ? p->ours.imm2 : p->ours.imm;
	return ours->kind == X86_O_IMM && ((op->imm.value.u ^ value) & mask) == 0;
}

static void compare_operand(struct pair *p, unsigned i, const ZydisDecodedOperand *op)
{
	const struct x86_operand *ours = &p->ours.op[i];
	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		if (!register_agrees(p, ours, op->reg.value))
			mismatch(p, "operand %u: register %s, ours kind %u reg %u size %u", i,
				ZydisRegisterGetString(op->reg.value), ours->kind, ours->reg,
				ours->size);
		break;
	case ZYDIS_OPERAND_TYPE_MEMORY:
		if (ours->kind != X86_O_MEM || !memory_agrees(p, ours, op))
			mismatch(p, "operand %u: other memory", i);
		else if (ours->size && op->size != ours->size * 8)
			mismatch(p, "operand %u: memory of %u bytes, ours %u", i, op->size / 8,
				ours->size);
		break;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		if (!immediate_agrees(p, ours, op))
			mismatch(p, "operand %u: immediate %llx, ours %llx", i,
				(unsigned long long)op->imm.value.u,
				(unsigned long long)p->ours.imm);
		break;
	case ZYDIS_OPERAND_TYPE_POINTER:
		if (ours->kind != X86_O_FAR || op->ptr.offset != (uint32_t)p->ours.imm ||
			op->ptr.segment != p->ours.imm2)
			mismatch(p, "operand %u: other far pointer", i);
		break;
	default: mismatch(p, "operand %u: unknown type", i); break;
	}
}

/* Our operands with those left out that Zydis hides: XMM0 of the SSE4 blends, ST(0) of FCOM. */
static unsigned visible_operands(const struct pair *p, uint8_t list[X86_OPERANDS_MAX])
{
	const char *operands = p->ours.row->operands;
	bool blend = strstr(operands, ",XMM0");
	unsigned n = 0;
	for (unsigned i = 0; i < p->ours.operand_count; i++) {
		if (!blend || i < 2)
			list[n++] = i;
	}
	return n;
}

static void compare_operands(struct pair *p)
{
	uint8_t list[X86_OPERANDS_MAX];
	unsigned visible = 0, ours = visible_operands(p, list);
	for (unsigned i = 0; i < p->zydis.operand_count; i++)
		visible += p->op[i].visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN;
	if (has_other_operands(&p->ours))
		return;
	if (visible != ours) {
		mismatch(p, "%u operands, ours %u", visible, ours);
		return;
	}
	for (unsigned i = 0; i < visible; i++)
		compare_operand(p, list[i], &p->op[i]);
}

/* ---- the rest ---- */

static void compare_mnemonic(struct pair *p)
{
	const char *theirs = ZydisMnemonicGetString(p->zydis.mnemonic);
	char buf[160], *name = buf;
	x86_format(&p->ours, 0, buf, sizeof(buf));
	static const char *const prefixes[] = {"lock ", "rep ", "repe ", "repne "};
	for (unsigned i = 0; i < ARRAY_SIZE(prefixes); i++) {
		if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
			name += strlen(prefixes[i]);
	}
	name[strcspn(name, " ")] = 0;
	if (!same_mnemonic(name, theirs))
		mismatch(p, "mnemonic %s", name);
}

/* Flags: what is written or left undefined must agree, and we may read more but not less. */
static void compare_flags(struct pair *p)
{
	const struct x86_row *row = p->ours.row;
	const ZydisAccessedFlags none = {0}, *f = p->zydis.cpu_flags ? p->zydis.cpu_flags : &none;
	uint32_t all = X86_FLAGS_ARITH | X86_DF;
	if (has_other_flags(&p->ours))
		return;
	uint32_t in = x86_flags_mask(row->flags_in), out = x86_flags_mask(row->flags_out);
	uint32_t undef = x86_flags_mask(row->flags_undef),
		 written = f->modified | f->set_0 | f->set_1;
	if (f->tested & ~in & all)
		mismatch(p, "flags: reads %x, ours %x", f->tested, in);
	if (((written | f->undefined) ^ (out | undef)) & all)
		mismatch(p, "flags: writes %x, undefined %x, ours %x %x", written, f->undefined,
			out, undef);
}

/*
 * What the row says of operand 0: read, written, or both. A conditional write keeps the old value, so it
 * is RMW with us; so is a scalar that is merged into its register, which Zydis does not count as reading,
 * and BSF and BSR, which leave the destination alone if the source is 0.
 */
static void compare_access(struct pair *p)
{
	uint32_t attr = p->ours.row->attr;
	const ZydisDecodedOperand *op = &p->op[0];
	static const char *const scans[] = {"bsf", "bsr"};
	bool memory = p->ours.op[0].kind == X86_O_MEM;
	bool merges =
		p->ours.op[0].kind == X86_O_VEC || name_is_in(&p->ours, scans, ARRAY_SIZE(scans));
	bool conditional = op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE;
	bool writes = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	bool reads = op->actions & ZYDIS_OPERAND_ACTION_MASK_READ || conditional;
	if (!p->ours.operand_count || op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN ||
		attr & X86_A_X87 || has_other_operands(&p->ours) || (memory && !p->ours.op[0].size))
		return;
	if (attr & X86_A_RMW ? !(writes && (reads || merges)) : reads && writes)
		mismatch(p, "operand 0: read %d, written %d", reads, writes);
	if (memory && !!(attr & X86_A_WRITES_MEM) != (writes && !reads))
		mismatch(p, "memory operand 0: read %d, written %d", reads, writes);
}

/* ALIGN and MXCSR follow from the exception class (SDM 2, 2.4; tables 2-17 and on). */
static void compare_class(struct pair *p)
{
	static const char *const unaligned[] = {"movups", "movupd", "movdqu", "lddqu", "pcmpestrm",
		"pcmpestri", "pcmpistrm", "pcmpistri"};
	uint32_t attr = p->ours.row->attr;
	ZydisExceptionClass class = p->zydis.meta.exception_class;
	bool mxcsr = class == ZYDIS_EXCEPTION_CLASS_SSE2 || class == ZYDIS_EXCEPTION_CLASS_SSE3 ||
		     class == ZYDIS_EXCEPTION_CLASS_AVX2 || class == ZYDIS_EXCEPTION_CLASS_AVX3 ||
		     class == ZYDIS_EXCEPTION_CLASS_AVX11;
	bool align = class == ZYDIS_EXCEPTION_CLASS_SSE1 || class == ZYDIS_EXCEPTION_CLASS_SSE2 ||
		     class == ZYDIS_EXCEPTION_CLASS_SSE4 || class == ZYDIS_EXCEPTION_CLASS_AVX1;
	bool memory16 = false;
	if (class == ZYDIS_EXCEPTION_CLASS_NONE)
		return;
	for (unsigned i = 0; i < p->ours.operand_count; i++)
		memory16 |= p->ours.op[i].kind == X86_O_MEM && p->ours.op[i].size >= 16;
	align &= !name_is_in(&p->ours, unaligned, ARRAY_SIZE(unaligned));
	if (mxcsr != !!(attr & X86_A_MXCSR))
		mismatch(p, "MXCSR: %d", mxcsr);
	if (memory16 && align != !!(attr & X86_A_ALIGN))
		mismatch(p, "ALIGN: %d", align);
}

/* Not #GP but #UD first (CLAC, STAC, MONITOR, MWAIT, XSETBV, SYSRET), or unknown to Zydis (LGDT). */
static void compare_rules(struct pair *p)
{
	static const char *const others[] = {"clac", "stac", "monitor", "mwait", "xsetbv", "sysret",
		"lgdt"};
	uint32_t attr = p->ours.row->attr;
	ZydisInstructionAttributes theirs = p->zydis.attributes;
	bool privileged = theirs & ZYDIS_ATTRIB_IS_PRIVILEGED;
	bool reps = theirs & (ZYDIS_ATTRIB_ACCEPTS_REP | ZYDIS_ATTRIB_ACCEPTS_REPE);
	if (privileged != !!(attr & X86_A_CPL0) &&
		!name_is_in(&p->ours, others, ARRAY_SIZE(others)))
		mismatch(p, "privileged: %d", privileged);
	if (!(theirs & ZYDIS_ATTRIB_ACCEPTS_LOCK) != !(attr & X86_A_LOCK) &&
		p->ours.op[0].kind == X86_O_MEM)
		mismatch(p, "LOCK: %d", !!(theirs & ZYDIS_ATTRIB_ACCEPTS_LOCK));
	if (reps != !!(attr & X86_A_REP))
		mismatch(p, "REP: %d", reps);
}

static void compare(struct oracle *o, const uint8_t *bytes, unsigned mode, bool real)
{
	struct pair p = {.oracle = o, .bytes = bytes, .mode = mode, .real = real};
	const ZydisDecoder *decoder = &o->decoder[real ? 3 : mode / 32];
	unsigned avail = 16;
	p.zydis_ok = ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, bytes, avail, &p.zydis, p.op));
	p.result = x86_decode(&p.ours, bytes, avail, mode, real, NULL);
	o->compared++;
	if (!p.zydis_ok) {
		if (p.result == X86_DECODE_OK && !is_missed(&p))
			mismatch(&p, "Zydis finds it invalid");
		return;
	}
	if (p.result != X86_DECODE_OK) {
		if (!is_left_out(&p)) {
			p.ours.row = NULL;
			mismatch(&p, "valid, ours %d", p.result);
		}
		return;
	}
	o->valid++;
	if (is_exchange_r8(&p))
		return;
	if (p.ours.len != p.zydis.length) {
		mismatch(&p, "length %u, ours %u", p.zydis.length, p.ours.len);
		return;
	}
	compare_mnemonic(&p);
	compare_operands(&p);
	compare_flags(&p);
	compare_access(&p);
	compare_class(&p);
	compare_rules(&p);
}

/* ---- runs ---- */

static void oracle_mode(ZydisDecoder *decoder, ZydisMachineMode mode, ZydisStackWidth width)
{
	static const ZydisDecoderMode off[] = {ZYDIS_DECODER_MODE_MPX, ZYDIS_DECODER_MODE_CET,
		ZYDIS_DECODER_MODE_KNC, ZYDIS_DECODER_MODE_CLDEMOTE, ZYDIS_DECODER_MODE_WBNOINVD,
		ZYDIS_DECODER_MODE_AMD_BRANCHES};
	assert_true(ZYAN_SUCCESS(ZydisDecoderInit(decoder, mode, width)));
	for (unsigned i = 0; i < ARRAY_SIZE(off); i++)
		ZydisDecoderEnableMode(decoder, off[i], ZYAN_FALSE);
}

static uint64_t number_from(const char *variable, uint64_t otherwise)
{
	const char *text = getenv(variable);
	return text ? strtoull(text, NULL, 0) : otherwise;
}

static void oracle_init(struct oracle *o)
{
	uint64_t seed = number_from("LODGE_DECODE_SEED", 20261121);
	*o = (struct oracle){.rng = {seed | 1}};
	o->reported = calloc(x86_row_count + ZYDIS_MNEMONIC_MAX_VALUE + 1, sizeof(*o->reported));
	assert_non_null(o->reported);
	oracle_mode(&o->decoder[0], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
	oracle_mode(&o->decoder[1], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
	oracle_mode(&o->decoder[2], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	oracle_mode(&o->decoder[3], ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16);
	printf("seed %llu\n", (unsigned long long)seed);
}

static void oracle_finish(struct oracle *o)
{
	printf("%u byte strings, %u valid, %u differ\n", o->compared, o->valid, o->mismatches);
	free(o->reported);
	assert_int_equal(o->mismatches, 0);
}

/* Every row, many times. */
static void rows_agree(void **state)
{
	const struct x86_index *index = x86_index_get();
	uint64_t rounds = number_from("LODGE_DECODE_COUNT", 400000) / x86_row_count + 1;
	struct oracle o;
	oracle_init(&o);
	for (uint64_t k = 0; k < rounds; k++) {
		for (unsigned i = 0; i < x86_row_count; i++) {
			struct encoding e;
			unsigned mode = encode_mode(&index->forms[i], &o.rng);
			encode_form(&e, &index->forms[i], mode, &o.rng);
			compare(&o, e.bytes, mode, mode == 16 && rng_rare(&o.rng, 2));
		}
	}
	oracle_finish(&o);
}

/* Random bytes, half of them behind something that leads to the crowded opcode maps. */
static void random_bytes(struct rng *rng, uint8_t bytes[ENCODE_BYTES])
{
	static const uint8_t prefixes[] = {
		0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x48, 0x41, 0x4f};
	unsigned at = 0;
	for (unsigned i = 0; i < ENCODE_BYTES; i++)
		bytes[i] = (uint8_t)rng_next(rng);
	while (rng_rare(rng, 2) && at < 16)
		bytes[at++] = prefixes[rng_below(rng, sizeof(prefixes))];
	switch (rng_below(rng, 6)) {
	case 0: bytes[at] = 0x0f; break;
	case 1:
		bytes[at] = 0x0f;
		bytes[at + 1] = rng_rare(rng, 2) ? 0x38 : 0x3a;
		break;
	case 2:
		bytes[at] = 0xc4;
		bytes[at + 1] = (bytes[at + 1] & 0xe0) | rng_below(rng, 5);
		break;
	case 3: bytes[at] = 0xc5; break;
	default: break;
	}
}

static void random_bytes_agree(void **state)
{
	uint64_t count = number_from("LODGE_DECODE_COUNT", 400000);
	struct oracle o;
	oracle_init(&o);
	for (uint64_t k = 0; k < count; k++) {
		uint8_t bytes[ENCODE_BYTES];
		unsigned mode = 16u << rng_below(&o.rng, 3);
		random_bytes(&o.rng, bytes);
		compare(&o, bytes, mode, mode == 16 && rng_rare(&o.rng, 2));
	}
	oracle_finish(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rows_agree),
		cmocka_unit_test(random_bytes_agree),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
