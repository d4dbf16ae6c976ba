/*
 * The x86 instruction decoder: bytes to struct x86_insn, for 16, 32 and 64-bit code (SDM 2, chapter 2).
 * What instructions exist is only in the instruction table; this file knows how an instruction is put
 * together: prefixes, REX, VEX, ModRM, SIB, displacement, immediates.
 *
 * Left out on purpose: EVEX, XOP and 3DNow! (always #UD). Where Intel and AMD differ, it is Intel:
 * near branches in 64-bit mode ignore 66.
 *
 * Invariants: reads no byte beyond min(avail, 15); the result depends only on the arguments.
 */
#include "isa/x86/index.h"

#include "base/util.h"

#include <string.h>

/* The state of one decode. */
struct decoder {
	struct x86_insn *insn;
	const struct x86_feature_set *features;
	const uint8_t *bytes;
	unsigned pos, end;
	bool real, short_of_bytes; /* ran into `end` */
	uint8_t map, vvvv;
	uint8_t seg_override; /* X86_SEG_NONE: none */
	uint16_t context;     /* enum x86_form_context */
};

static inline uint8_t get8(struct decoder *d)
{
	if (unlikely(d->pos >= d->end)) {
		d->short_of_bytes = true;
		return 0;
	}
	return d->bytes[d->pos++];
}

/* A little-endian number of 1, 2, 4 or 8 bytes. */
static inline uint64_t get_bytes(struct decoder *d, unsigned size)
{
	uint64_t value = 0;
	if (unlikely(d->end - d->pos < size)) {
		d->short_of_bytes = true;
		return 0;
	}
	switch (size) {
	case 1: value = d->bytes[d->pos]; break;
	case 2: memcpy(&value, d->bytes + d->pos, 2); break;
	case 4: memcpy(&value, d->bytes + d->pos, 4); break;
	default: memcpy(&value, d->bytes + d->pos, 8); break;
	}
	d->pos += size;
	return value;
}

static inline int64_t get_signed(struct decoder *d, unsigned size)
{
	unsigned shift = 64 - size * 8;
	return (int64_t)(get_bytes(d, size) << shift) >> shift;
}

/* ---- prefixes ---- */

enum prefix_class { NOT_PREFIX, SEGMENT, SEGMENT64, OPSIZE, ADDRSIZE, LOCK, REPNE, REP, REX };

static const uint8_t prefix_classes[256] = {
	[0x26] = SEGMENT,
	[0x2e] = SEGMENT,
	[0x36] = SEGMENT,
	[0x3e] = SEGMENT,
	[0x64] = SEGMENT64,
	[0x65] = SEGMENT64,
	[0x66] = OPSIZE,
	[0x67] = ADDRSIZE,
	[0xf0] = LOCK,
	[0xf2] = REPNE,
	[0xf3] = REP,
	[0x40 ... 0x4f] = REX,
};

static void legacy_prefix(struct decoder *d, uint8_t byte)
{
	struct x86_insn *insn = d->insn;
	switch (prefix_classes[byte]) {
	case SEGMENT:
		if (insn->mode == 64)
			break;
		insn->prefix |= X86_P_SEG;
		d->seg_override = byte >> 3 & 3;
		break;
	case SEGMENT64:
		insn->prefix |= X86_P_SEG;
		d->seg_override = byte == 0x64 ? X86_FS : X86_GS;
		break;
	case OPSIZE: insn->prefix |= X86_P_OPSIZE; break;
	case ADDRSIZE: insn->prefix |= X86_P_ADDRSIZE; break;
	case LOCK: insn->prefix |= X86_P_LOCK; break;
	case REPNE: insn->prefix = (insn->prefix & ~X86_P_REP) | X86_P_REPNE; break;
	default: insn->prefix = (insn->prefix & ~X86_P_REPNE) | X86_P_REP; break;
	}
}

/* Take all prefixes; returns the byte after them. A REX that is not the last of them is void. */
static uint8_t take_prefixes(struct decoder *d)
{
	struct x86_insn *insn = d->insn;
	for (;;) {
		uint8_t byte = get8(d);
		unsigned class = prefix_classes[byte];
		if (likely(class == NOT_PREFIX) || d->short_of_bytes)
			return byte;
		if (class == REX) {
			if (insn->mode != 64)
				return byte;
			insn->rex = byte & 15;
			insn->prefix |= X86_P_REX;
		} else {
			insn->rex = 0;
			insn->prefix &= ~X86_P_REX;
			legacy_prefix(d, byte);
		}
	}
}

/* ---- opcode ---- */

static void context_of_legacy(struct decoder *d)
{
	const struct x86_insn *insn = d->insn;
	d->context |= insn->prefix & X86_P_REP	    ? X86_C_F3
		      : insn->prefix & X86_P_REPNE  ? X86_C_F2
		      : insn->prefix & X86_P_OPSIZE ? X86_C_66
						    : X86_C_NP;
	d->context |= insn->rex & 8 ? X86_C_W1 : X86_C_W0;
}

/* The bytes after C4 or C5. Returns false: #UD. */
static bool vex_prefix(struct decoder *d, bool three)
{
	static const uint16_t pp_context[4] = {X86_C_NP, X86_C_66, X86_C_F3, X86_C_F2};
	struct x86_insn *insn = d->insn;
	if (insn->prefix & (X86_P_REX | X86_P_OPSIZE | X86_P_REP | X86_P_REPNE | X86_P_LOCK) ||
		d->real)
		return false;
	insn->prefix |= X86_P_VEX;
	uint8_t first = get8(d), last = first, map = 1, rex = ~first >> 5 & 4;
	if (three) {
		last = get8(d);
		rex = (~first >> 5 & 7) | (last >> 4 & 8);
		map = first & 31;
	}
	d->vvvv = ~last >> 3 & 15;
	if (insn->mode != 64)
		rex &= 8;
	insn->rex = rex;
	insn->vl = last & 4 ? 32 : 16;
	d->context |= pp_context[last & 3] | (rex & 8 ? X86_C_W1 : X86_C_W0) |
		      (last & 4 ? X86_C_L1 : X86_C_L0);
	d->map = X86_MAP_VEX - 1 + map;
	return map >= 1 && map <= 3;
}

/* Is this C4, C5 or 62 a vector prefix? Outside 64-bit mode it is LES, LDS, BOUND with memory. */
static bool is_vector_prefix(struct decoder *d)
{
	if (d->insn->mode == 64)
		return true;
	if (d->pos >= d->end) {
		d->short_of_bytes = true;
		return false;
	}
	return d->bytes[d->pos] >= 0xc0;
}

static void legacy_escape(struct decoder *d)
{
	uint8_t byte = get8(d);
	d->map = X86_MAP_0F;
	if (byte == 0x38 || byte == 0x3a) {
		d->map = byte == 0x38 ? X86_MAP_0F38 : X86_MAP_0F3A;
		byte = get8(d);
	}
	d->insn->opcode = byte;
	context_of_legacy(d);
}

/* Everything up to the opcode. Returns false: #UD (or short of bytes). */
static bool take_opcode(struct decoder *d)
{
	uint8_t byte = take_prefixes(d);
	if (byte == 0x0f) {
		legacy_escape(d);
	} else if ((byte == 0xc4 || byte == 0xc5) && is_vector_prefix(d)) {
		if (!vex_prefix(d, byte == 0xc4))
			return false;
		d->insn->opcode = get8(d);
	} else if (byte == 0x62 && is_vector_prefix(d)) {
		return false;
	} else {
		d->insn->opcode = byte;
		context_of_legacy(d);
	}
	return !d->short_of_bytes;
}

/* ---- form ---- */

static bool form_matches(const struct decoder *d, const struct x86_form *form, uint16_t context)
{
	return !(context & form->deny) &&
	       !((d->insn->modrm ^ form->modrm_value) & form->modrm_mask) &&
	       (!d->features || x86_has(d->features, form->feature));
}

static const struct x86_form *find_form(struct decoder *d)
{
	const struct x86_index *index = x86_index_get();
	struct x86_insn *insn = d->insn;
	const struct x86_slot *slot = index->slot[d->map][insn->opcode];
	uint16_t context = d->context | (insn->mode == 64 ? X86_C_MODE64 : X86_C_MODE32) |
			   (d->real ? X86_C_REAL : 0) | (insn->rex & 1 ? X86_C_B1 : 0);
	if (slot->modrm) {
		insn->modrm = get8(d);
		if (d->short_of_bytes)
			return NULL;
		context |= insn->modrm >= 0xc0 ? X86_C_REG : X86_C_MEM;
		slot += insn->modrm >> 3 & 7;
	}
	for (unsigned i = 0; i < slot->count; i++) {
		const struct x86_form *form = &index->forms[index->list[slot->first + i]];
		if (form_matches(d, form, context))
			return form;
	}
	return NULL;
}

/* ---- sizes ---- */

static unsigned operand_size(
	const struct x86_insn *insn, const struct x86_form *form, uint32_t attr)
{
	bool wide = insn->rex & 8,
	     toggled = insn->prefix & X86_P_OPSIZE && !(form->flags & X86_FORM_66);
	if (insn->mode == 64) {
		if (wide || attr & X86_A_F64)
			return 8;
		if (toggled)
			return 2;
		return attr & X86_A_D64 ? 8 : 4;
	}
	if (insn->prefix & X86_P_VEX)
		return 4;
	return (insn->mode == 16) != toggled ? 2 : 4;
}

static unsigned address_size(const struct x86_insn *insn)
{
	bool toggled = insn->prefix & X86_P_ADDRSIZE;
	if (insn->mode == 64)
		return toggled ? 4 : 8;
	return (insn->mode == 16) != toggled ? 2 : 4;
}

static unsigned size_of(const struct x86_insn *insn, unsigned code)
{
	switch (code) {
	case X86_S_OSIZE: return insn->osize;
	case X86_S_Z: return insn->osize < 4 ? insn->osize : 4;
	case X86_S_Y: return insn->osize > 4 ? insn->osize : 4;
	case X86_S_FARPTR: return insn->osize + 2;
	case X86_S_DESCRIPTOR: return insn->mode == 64 ? 10 : 6;
	case X86_S_VL: return insn->vl;
	case X86_S_VL2: return insn->vl / 2;
	case X86_S_VL4: return insn->vl / 4;
	case X86_S_VL8: return insn->vl / 8;
	case X86_S_NATURAL: return insn->mode == 64 ? 8 : 4;
	case X86_S_PAIR: return insn->osize * 2;
	default: return code;
	}
}

/* ---- memory operand ---- */

static void set_default_segment(struct decoder *d, unsigned seg)
{
	d->insn->seg = d->seg_override != X86_SEG_NONE ? d->seg_override : seg;
}

static void take_memory16(struct decoder *d, unsigned mod, unsigned rm)
{
	static const struct {
		uint8_t base, index;
	} forms[8] = {
		{X86_RBX, X86_RSI},
		{X86_RBX, X86_RDI},
		{X86_RBP, X86_RSI},
		{X86_RBP, X86_RDI},
		{X86_RSI, X86_ZERO},
		{X86_RDI, X86_ZERO},
		{X86_RBP, X86_ZERO},
		{X86_RBX, X86_ZERO},
	};
	struct x86_insn *insn = d->insn;
	insn->base = forms[rm].base;
	insn->index = forms[rm].index;
	if (mod == 0 && rm == 6) {
		insn->base = X86_ZERO;
		insn->disp = (int16_t)get_bytes(d, 2);
	} else if (mod) {
		insn->disp = (int32_t)get_signed(d, mod);
	}
	set_default_segment(d, insn->base == X86_RBP ? X86_SS : X86_DS);
}

static unsigned take_sib(struct decoder *d, bool vsib)
{
	struct x86_insn *insn = d->insn;
	uint8_t sib = get8(d);
	insn->index = (sib >> 3 & 7) | (insn->rex & 2) << 2;
	insn->scale = sib >> 6;
	if (insn->index == X86_RSP && !vsib) {
		insn->index = X86_ZERO;
		insn->scale = 0;
	}
	return sib & 7;
}

static void take_memory32(struct decoder *d, unsigned mod, unsigned rm, bool vsib)
{
	struct x86_insn *insn = d->insn;
	unsigned base = rm == 4 ? take_sib(d, vsib) : rm;
	unsigned disp_size = mod == 2 ? 4 : mod;
	insn->base = base | (insn->rex & 1) << 3;
	if (mod == 0 && base == 5) {
		insn->base = rm == 5 && insn->mode == 64 ? X86_RIP : X86_ZERO;
		disp_size = 4;
	}
	if (disp_size)
		insn->disp = (int32_t)get_signed(d, disp_size);
	set_default_segment(d, insn->base == X86_RSP || insn->base == X86_RBP ? X86_SS : X86_DS);
}

/* Returns false: #UD. */
static bool take_memory(struct decoder *d, bool vsib)
{
	unsigned mod = d->insn->modrm >> 6, rm = d->insn->modrm & 7;
	if (vsib && (rm != 4 || d->insn->asize == 2))
		return false;
	if (d->insn->asize == 2)
		take_memory16(d, mod, rm);
	else
		take_memory32(d, mod, rm, vsib);
	return true;
}

/* ---- operands ---- */

static void byte_register(const struct x86_insn *insn, struct x86_operand *op)
{
	if (op->size == 1 && op->reg >= 4 && op->reg < 8 &&
		!(insn->prefix & (X86_P_REX | X86_P_VEX))) {
		op->kind = X86_O_GPR8H;
		op->reg -= 4;
	}
}

static void set_gpr(const struct x86_insn *insn, struct x86_operand *op, unsigned reg)
{
	op->kind = X86_O_GPR;
	op->reg = reg;
	byte_register(insn, op);
}

static void set_reg(struct x86_operand *op, unsigned kind, unsigned reg)
{
	op->kind = kind;
	op->reg = reg;
}

/* Immediates are taken in the order of the operands; the second goes to imm2. */
static void take_immediate(struct decoder *d, struct x86_operand *op, bool is_signed, bool second)
{
	struct x86_insn *insn = d->insn;
	unsigned size = op->size;
	op->kind = X86_O_IMM;
	if (second) {
		insn->imm2 = (uint16_t)get_bytes(d, size);
		op->reg = 1;
	} else if (is_signed) {
		insn->imm = (uint64_t)get_signed(d, size);
		op->size = insn->osize;
	} else {
		insn->imm = get_bytes(d, size);
	}
}

static void take_far(struct decoder *d, struct x86_operand *op)
{
	struct x86_insn *insn = d->insn;
	op->kind = X86_O_FAR;
	insn->imm = get_bytes(d, insn->osize == 2 ? 2 : 4);
	insn->imm2 = (uint16_t)get_bytes(d, 2);
}

static void take_moffs(struct decoder *d, struct x86_operand *op)
{
	struct x86_insn *insn = d->insn;
	op->kind = X86_O_MEM;
	insn->imm = get_bytes(d, insn->asize);
	insn->disp = (int32_t)insn->imm;
}

static void set_string(struct decoder *d, struct x86_operand *op, unsigned reg)
{
	struct x86_insn *insn = d->insn;
	op->kind = X86_O_MEM;
	op->reg = reg;
	if (reg == X86_RSI) {
		insn->base = X86_RSI;
		set_default_segment(d, X86_DS);
	} else if (insn->base == X86_ZERO) {
		insn->base = X86_RDI;
		insn->seg = X86_ES;
	}
}

static unsigned vvvv_register(const struct decoder *d)
{
	return d->insn->mode == 64 ? d->vvvv : d->vvvv & 7;
}

static bool control_register_exists(unsigned reg)
{
	return reg == 0 || (reg >= 2 && reg <= 4) || reg == 8;
}

/* The operands that ModRM.reg, vvvv and opcode bits name. Returns false: #UD. */
static bool set_register_operand(struct decoder *d, const struct x86_form_operand *from,
	struct x86_operand *op, unsigned number)
{
	struct x86_insn *insn = d->insn;
	unsigned modrm_reg = insn->modrm >> 3 & 7, reg = modrm_reg | (insn->rex & 4) << 1;
	switch (from->where) {
	case X86_W_GPR_REG: set_gpr(insn, op, reg); return true;
	case X86_W_GPR_OPCODE:
		set_gpr(insn, op, (insn->opcode & 7) | (insn->rex & 1) << 3);
		return true;
	case X86_W_GPR_VVVV: set_reg(op, X86_O_GPR, vvvv_register(d)); return true;
	case X86_W_GPR_FIXED: set_reg(op, X86_O_GPR, from->reg); return true;
	case X86_W_GPR_FIXED_HIGH: set_reg(op, X86_O_GPR8H, from->reg); return true;
	case X86_W_SEG_REG:
		set_reg(op, X86_O_SEG, modrm_reg);
		return modrm_reg <= X86_GS && !(number == 0 && modrm_reg == X86_CS);
	case X86_W_SEG_FIXED: set_reg(op, X86_O_SEG, from->reg); return true;
	case X86_W_CR: set_reg(op, X86_O_CR, reg); return control_register_exists(reg);
	case X86_W_DR: set_reg(op, X86_O_DR, reg); return reg < 8;
	case X86_W_MMX_REG: set_reg(op, X86_O_MMX, modrm_reg); return true;
	case X86_W_VEC_REG: set_reg(op, X86_O_VEC, reg); return true;
	case X86_W_VEC_VVVV: set_reg(op, X86_O_VEC, vvvv_register(d)); return true;
	case X86_W_VEC_FIXED: set_reg(op, X86_O_VEC, from->reg); return true;
	default: set_reg(op, X86_O_ST, from->reg); return true;
	}
}

static void set_rm_register(struct decoder *d, unsigned where, struct x86_operand *op)
{
	struct x86_insn *insn = d->insn;
	unsigned rm = insn->modrm & 7, reg = rm | (insn->rex & 1) << 3;
	switch (where) {
	case X86_W_GPR_RM: set_gpr(insn, op, reg); break;
	case X86_W_MMX_RM: set_reg(op, X86_O_MMX, rm); break;
	case X86_W_VEC_RM: set_reg(op, X86_O_VEC, reg); break;
	default: set_reg(op, X86_O_ST, rm); break;
	}
}

static void take_is4(struct decoder *d, struct x86_operand *op)
{
	d->insn->imm = get8(d);
	set_reg(op, X86_O_VEC, d->insn->imm >> 4 & (d->insn->mode == 64 ? 15 : 7));
}

static bool set_operand(struct decoder *d, const struct x86_form_operand *from,
	struct x86_operand *op, unsigned number, unsigned *immediates)
{
	struct x86_insn *insn = d->insn;
	op->size = size_of(insn, from->size);
	switch (from->where) {
	case X86_W_EA:
		if (insn->modrm < 0xc0)
			op->kind = X86_O_MEM;
		else
			set_rm_register(d, from->rm_where, op);
		return true;
	case X86_W_GPR_RM:
	case X86_W_MMX_RM:
	case X86_W_VEC_RM:
	case X86_W_ST_RM: set_rm_register(d, from->where, op); return true;
	case X86_W_IMM: take_immediate(d, op, false, (*immediates)++); return true;
	case X86_W_IMM_SIGNED: take_immediate(d, op, true, (*immediates)++); return true;
	case X86_W_ONE:
		op->kind = X86_O_IMM;
		insn->imm = 1;
		return true;
	case X86_W_REL:
		op->kind = X86_O_REL;
		insn->imm = (uint64_t)get_signed(d, op->size);
		op->size = insn->osize;
		return true;
	case X86_W_FAR: take_far(d, op); return true;
	case X86_W_MOFFS: take_moffs(d, op); return true;
	case X86_W_X: set_string(d, op, X86_RSI); return true;
	case X86_W_Y: set_string(d, op, X86_RDI); return true;
	case X86_W_VEC_IS4: take_is4(d, op); return true;
	default: return set_register_operand(d, from, op, number);
	}
}

/* Gathers: destination, index and mask must be three registers. */
static bool gather_is_valid(const struct x86_insn *insn)
{
	unsigned dest = insn->op[0].reg, mask = insn->op[2].reg;
	return dest != insn->index && dest != mask && mask != insn->index;
}

/* ModRM's memory and all operands, with the form known. Returns false: #UD. */
static bool take_operands(struct decoder *d, const struct x86_form *form, uint32_t attr)
{
	struct x86_insn *insn = d->insn;
	bool has_memory = form->flags & X86_FORM_MODRM && !(form->flags & X86_FORM_IGNORE_MOD) &&
			  insn->modrm < 0xc0;
	if (has_memory && !take_memory(d, attr & X86_A_VSIB))
		return false;
	insn->operand_count = form->operand_count;
	unsigned immediates = 0;
	for (unsigned i = 0; i < form->operand_count; i++) {
		if (!set_operand(d, &form->op[i], &insn->op[i], i, &immediates))
			return false;
	}
	if (attr & X86_A_VSIB && !gather_is_valid(insn))
		return false;
	if (d->vvvv && !(form->flags & X86_FORM_VVVV))
		return false;
	return !(insn->prefix & X86_P_LOCK) || (attr & X86_A_LOCK && insn->op[0].kind == X86_O_MEM);
}

static bool decode_form(struct decoder *d)
{
	struct x86_insn *insn = d->insn;
	if (!take_opcode(d))
		return false;
	set_default_segment(d, X86_DS);
	const struct x86_form *form = find_form(d);
	if (!form)
		return false;
	/* Outside 64-bit mode VEX.W says nothing about the operand size, only which row it is. */
	if (insn->mode != 64 && !(form->deny & (X86_C_W0 | X86_C_W1)))
		insn->rex &= ~8;
	insn->row = &x86_rows[form->row];
	insn->fn = insn->row->fn;
	insn->asize = address_size(insn);
	insn->osize = operand_size(insn, form, insn->row->attr);
	return take_operands(d, form, insn->row->attr);
}

enum x86_decode_result x86_decode(struct x86_insn *insn, const uint8_t *bytes, unsigned avail,
	unsigned mode, bool real, const struct x86_feature_set *features)
{
	*insn = (struct x86_insn){.mode = mode, .base = X86_ZERO, .index = X86_ZERO, .vl = 16};
	struct decoder d = {.insn = insn,
		.features = features,
		.bytes = bytes,
		.end = MIN(avail, (unsigned)X86_INSN_BYTES_MAX),
		.real = real,
		.seg_override = X86_SEG_NONE};
	bool ok = decode_form(&d);
	insn->len = MAX(d.pos, 1u);
	/* Bytes that could not be had matter only if it was not #UD before. */
	if (d.short_of_bytes)
		return d.end == X86_INSN_BYTES_MAX ? X86_DECODE_TOO_LONG : X86_DECODE_TRUNCATED;
	return ok ? X86_DECODE_OK : X86_DECODE_UD;
}
