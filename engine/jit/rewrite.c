/*
 * Copies of guest instructions with other operands: see jit.h. The copy has the original's opcode and
 * immediates; prefixes that do nothing in it are dropped, addresses become [base + index + disp], and VEX prefixes
 * take their three-byte form.
 */
#include "engine/jit/jit.h"
#include "isa/x86/index.h"

/* Where the parts of an instruction's bytes are. */
struct parts {
	bool opsize, vex, wide, lock;
	uint8_t map, opcode, modrm, vex_last; /* map 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A */
	uint8_t vvvv;			      /* not inverted */
	const uint8_t *tail;		      /* immediates */
	unsigned tail_bytes;
};

static bool is_prefix(uint8_t byte, bool mode64)
{
	switch (byte) {
	case 0x26:
	case 0x2e:
	case 0x36:
	case 0x3e:
	case 0x64:
	case 0x65:
	case 0x66:
	case 0x67:
	case 0xf0:
	case 0xf2:
	case 0xf3: return true;
	default: return mode64 && (byte & 0xf0) == 0x40;
	}
}

static const uint8_t *parse_vex(struct parts *p, const uint8_t *at, bool mode64)
{
	bool three = *at++ == 0xc4;

	p->vex = true;
	p->map = three ? *at++ & 31 : 1;
	p->vvvv = ~*at >> 3 & (mode64 ? 15 : 7);
	p->vex_last = *at++ & 7;
	return at;
}

static const uint8_t *parse_legacy(struct parts *p, const uint8_t *at)
{
	if (*at != 0x0f)
		return at;
	p->map = 1;
	at++;
	if (*at == 0x38 || *at == 0x3a)
		p->map = *at++ == 0x38 ? 2 : 3;
	return at;
}

/* 32 and 64-bit addressing only. */
static const uint8_t *skip_address(const uint8_t *at, uint8_t modrm)
{
	unsigned mod = modrm >> 6, rm = modrm & 7;

	if (mod == 3)
		return at;
	if (rm == 4 && (*at++ & 7) == 5 && mod == 0)
		return at + 4;
	if (mod == 0)
		return rm == 5 ? at + 4 : at;
	return at + (mod == 1 ? 1 : 4);
}

static void parse(struct parts *p, const struct jit_row *row, const struct x86_insn *insn,
	const uint8_t *bytes)
{
	const uint8_t *at = bytes;

	*p = (struct parts){ .lock = insn->prefix & X86_P_LOCK };
	for (; is_prefix(*at, insn->mode == 64); at++)
		p->opsize |= *at == 0x66;
	p->wide = insn->rex & 8; /* the decoder has cleared it where it means nothing */
	at = insn->prefix & X86_P_VEX ? parse_vex(p, at, insn->mode == 64) : parse_legacy(p, at);
	p->opcode = *at++;
	if (row->modrm) {
		p->modrm = *at++;
		at = skip_address(at, p->modrm);
	}
	p->tail = at;
	p->tail_bytes = (unsigned)(bytes + insn->len - at);
}

/* The register numbers of the copy's fields. */
struct fields {
	uint8_t reg, rm, vvvv, opcode_reg;
	bool memory, byte_rex, no_rex;
	bool is4; /* the immediate names a vector register */
};

static void field_of_byte(struct fields *f, const struct x86_operand *op, unsigned host)
{
	if (op->kind == X86_O_GPR8H)
		f->no_rex = true;
	else if (op->size == 1 && host >= 4 && host < 8)
		f->byte_rex = true;
}

static void fields_of(struct fields *f, struct parts *p, const struct jit_row *row,
	const struct x86_insn *insn, const struct jit_operands *operands)
{
	/* Vector registers and opcode digits keep their numbers. */
	*f = (struct fields){ .reg = (p->modrm >> 3 & 7) | (insn->rex & 4) << 1,
		.rm = (p->modrm & 7) | (insn->rex & 1) << 3, .vvvv = p->vvvv };
	for (unsigned i = 0; i < insn->operand_count; i++) {
		const struct x86_operand *op = &insn->op[i];
		uint8_t host = operands->reg[i];

		if (op->kind == X86_O_MEM)
			f->memory = true;
		f->is4 |= row->where[i] == X86_W_VEC_IS4;
		if (op->kind != X86_O_GPR && op->kind != X86_O_GPR8H)
			continue;
		if (op->kind == X86_O_GPR8H)
			host = op->reg + 4;
		switch (row->where[i]) {
		case X86_W_GPR_REG: f->reg = host; break;
		case X86_W_GPR_VVVV: f->vvvv = host; break;
		case X86_W_GPR_OPCODE: f->opcode_reg = host; break;
		case X86_W_GPR_FIXED:
		case X86_W_GPR_FIXED_HIGH: continue;
		default: f->rm = host; break;
		}
		field_of_byte(f, op, host);
	}
}

static void emit_modrm(struct emit *e, const struct fields *f, const struct jit_operands *operands)
{
	if (f->memory)
		emit_address(e, f->reg, operands->base, operands->index, 0, operands->disp);
	else
		emit8(e, 0xc0 | (f->reg & 7) << 3 | (f->rm & 7));
}

static void emit_vex(struct emit *e, const struct parts *p, const struct fields *f,
	const struct jit_operands *operands)
{
	unsigned rm = f->memory ? operands->base : f->rm;
	unsigned index = f->memory && operands->index != HR_NONE ? operands->index : 0;

	emit8(e, 0xc4);
	emit8(e, (~(unsigned)f->reg << 4 & 0x80) | (~index << 3 & 0x40) | (~rm << 2 & 0x20) | p->map);
	emit8(e, (p->wide ? 0x80 : 0) | (~f->vvvv & 15u) << 3 | p->vex_last);
	emit8(e, p->opcode);
	emit_modrm(e, f, operands);
}

static void emit_legacy(struct emit *e, const struct parts *p, const struct jit_row *row,
	const struct fields *f, const struct jit_operands *operands)
{
	unsigned op = p->opcode | (unsigned)p->map << 8;
	unsigned rm = row->plus_reg ? f->opcode_reg : f->memory ? operands->base : f->rm;
	unsigned index = f->memory && operands->index != HR_NONE ? operands->index : 0;

	op |= (p->wide ? EM_W : 0) | (p->opsize ? EM_66 : 0) | (p->lock ? EM_LOCK : 0) |
	      (f->byte_rex ? EM_BYTE : 0) | (f->no_rex ? EM_NOREX : 0) |
	      (row->prefix == 0xf3 ? EM_F3 : row->prefix == 0xf2 ? EM_F2 : 0);
	if (row->plus_reg)
		op = (op & ~7u) | (rm & 7);
	emit_opcode(e, op, row->modrm ? f->reg : 0, index, rm);
	if (row->modrm)
		emit_modrm(e, f, operands);
}

bool jit_rewrite(struct emit *e, const struct jit_row *row, const struct x86_insn *insn,
	const uint8_t *bytes, const struct jit_operands *operands)
{
	uint8_t *start = e->p;
	struct parts p;
	struct fields f;

	parse(&p, row, insn, bytes);
	fields_of(&f, &p, row, insn, operands);
	if (p.vex)
		emit_vex(e, &p, &f, operands);
	else
		emit_legacy(e, &p, row, &f, operands);
	if (f.is4 && insn->mode != 64)
		emit8(e, *p.tail & 0x7f);
	else
		emit_bytes(e, p.tail, p.tail_bytes);
	/* `full` for want of room stays; for a high byte register it is ours to take back. */
	if (f.no_rex && e->full && e->end - e->p >= X86_INSN_BYTES_MAX) {
		e->full = false;
		e->p = start;
		return false;
	}
	return true;
}
