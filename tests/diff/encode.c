/*
 * Encodes instructions of a row at random: prefixes, REX or VEX, opcode and ModRM as its form
 * (isa/x86/index.h) allows, random elsewhere.
 */
#include "gen.h"

#include "isa/x86/index.h"

#define FOUR (X86_C_NP | X86_C_66 | X86_C_F3 | X86_C_F2)

static void emit(struct diff_encoder *e, unsigned byte)
{
	e->bytes[e->count++] = (uint8_t)byte;
}

static void emit_value(struct diff_encoder *e, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		emit(e, (unsigned)(value >> (8 * i)) & 0xff);
}

/* One of the contexts NP, 66, F3, F2 that a form allows. */
static unsigned choose_prefix(struct diff_encoder *e, const struct x86_form *form, uint32_t attr)
{
	const unsigned allowed = FOUR & ~form->deny, die = diff_pick(e->rng, 100);
	unsigned one;

	if (allowed == FOUR) {
		if (attr & X86_A_REP)
			return die < 40	  ? X86_C_NP
			       : die < 50 ? X86_C_66
			       : die < 80 ? X86_C_F3
					  : X86_C_F2;
		return die < 74 ? X86_C_NP : die < 92 ? X86_C_66 : die < 96 ? X86_C_F3 : X86_C_F2;
	}
	do
		one = 1u << diff_pick(e->rng, 4);
	while (!(allowed & one));
	return one;
}

static void emit_common_prefixes(struct diff_encoder *e)
{
	static const uint8_t segments[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};

	if (diff_percent(e->rng, 10))
		emit(e, segments[diff_pick(e->rng, 6)]);
	if (diff_percent(e->rng, 8))
		emit(e, 0x67);
}

static bool choose_w(struct diff_encoder *e, const struct x86_form *form)
{
	if (form->deny & X86_C_W0)
		return true;
	return !(form->deny & X86_C_W1) && diff_percent(e->rng, 40);
}

static void emit_legacy(struct diff_encoder *e, const struct x86_form *form, uint32_t attr)
{
	const unsigned prefix = choose_prefix(e, form, attr);

	if (diff_percent(e->rng, attr & X86_A_LOCK ? 25 : 1))
		emit(e, 0xf0);
	emit_common_prefixes(e);
	if (prefix == X86_C_66 || ((prefix & (X86_C_F3 | X86_C_F2)) && diff_percent(e->rng, 12)))
		emit(e, 0x66);
	if (prefix & (X86_C_F3 | X86_C_F2))
		emit(e, prefix == X86_C_F3 ? 0xf3 : 0xf2);
	if (e->mode == 64) {
		const unsigned w = choose_w(e, form) ? 8 : 0;
		const unsigned rxb = diff_percent(e->rng, 55) ? diff_pick(e->rng, 8) : 0;
		if (w || rxb || diff_percent(e->rng, 10))
			emit(e, 0x40 | w | rxb);
	}
	if (form->map >= X86_MAP_0F)
		emit(e, 0x0f);
	if (form->map == X86_MAP_0F38 || form->map == X86_MAP_0F3A)
		emit(e, form->map == X86_MAP_0F38 ? 0x38 : 0x3a);
}

static void emit_vex(struct diff_encoder *e, const struct x86_form *form, uint32_t attr)
{
	const unsigned prefix = choose_prefix(e, form, attr);
	const unsigned pp = prefix == X86_C_66	 ? 1
			    : prefix == X86_C_F3 ? 2
			    : prefix == X86_C_F2 ? 3
						 : 0;
	const unsigned map = form->map - X86_MAP_VEX + 1;
	const bool w = choose_w(e, form);
	const bool l =
		form->deny & X86_C_L0 || (!(form->deny & X86_C_L1) && diff_percent(e->rng, 50));
	unsigned rxb = e->mode == 64 ? diff_pick(e->rng, 8) : 0, vvvv = 15;

	if (form->flags & X86_FORM_VVVV || diff_percent(e->rng, 1))
		vvvv = diff_pick(e->rng, 16);
	if (e->mode != 64)
		vvvv |= 8;
	emit_common_prefixes(e);
	if (map == 1 && !w && !(rxb & 3) && diff_percent(e->rng, 70)) {
		emit(e, 0xc5);
		emit(e, (~rxb & 4) << 5 | vvvv << 3 | l << 2 | pp);
		return;
	}
	emit(e, 0xc4);
	emit(e, (~rxb & 7) << 5 | map);
	emit(e, w << 7 | vvvv << 3 | l << 2 | pp);
}

static void emit_displacement(struct diff_encoder *e, unsigned bytes)
{
	const bool small = diff_percent(e->rng, 60);
	emit_value(e,
		small ? (uint64_t)(int64_t)((int)diff_pick(e->rng, 512) - 256)
		      : diff_random(e->rng),
		bytes);
}

static void emit_memory16(struct diff_encoder *e, unsigned mod, unsigned rm)
{
	if (mod == 0 && rm == 6)
		emit_displacement(e, 2);
	else if (mod)
		emit_displacement(e, mod);
}

/* What follows a ModRM byte of memory. */
static void emit_memory(struct diff_encoder *e, unsigned mod, unsigned rm)
{
	unsigned base = rm, disp_bytes = mod == 2 ? 4 : mod;

	if (rm == 4) {
		const unsigned sib = diff_pick(e->rng, 256);
		emit(e, sib);
		base = sib & 7;
	}
	if (mod == 0 && base == 5) {
		disp_bytes = 4;
		e->disp_at = e->count;
		e->disp_bytes = 4;
	}
	emit_displacement(e, disp_bytes);
}

static void emit_modrm(struct diff_encoder *e, const struct x86_form *form, uint32_t attr)
{
	unsigned modrm = diff_pick(e->rng, 256);
	bool memory = diff_percent(e->rng, 60);
	bool addr16 = false;

	if (form->deny & X86_C_REG)
		memory = true;
	if (form->deny & X86_C_MEM)
		memory = false;
	modrm = memory ? (modrm & 63) | diff_pick(e->rng, 3) << 6 : modrm | 0xc0;
	if (memory && attr & X86_A_VSIB)
		modrm = (modrm & ~7u) | 4;
	modrm = (modrm & ~form->modrm_mask) | form->modrm_value;
	emit(e, modrm);
	for (unsigned i = 0; i + 1 < e->count; i++)
		addr16 |= e->mode == 32 && e->bytes[i] == 0x67;
	if (modrm >= 0xc0 || form->flags & X86_FORM_IGNORE_MOD)
		return;
	if (addr16)
		emit_memory16(e, modrm >> 6, modrm & 7);
	else
		emit_memory(e, modrm >> 6, modrm & 7);
}

void diff_emit_row(struct diff_encoder *e, const struct x86_row *row, const struct x86_form *form)
{
	e->count = e->disp_bytes = 0;
	if (form->map >= X86_MAP_VEX)
		emit_vex(e, form, row->attr);
	else
		emit_legacy(e, form, row->attr);
	emit(e, form->opcode +
			(form->opcode_count > 1 ? diff_pick(e->rng, form->opcode_count) : 0u));
	if (form->flags & X86_FORM_MODRM)
		emit_modrm(e, form, row->attr);
	for (unsigned i = 0; i < form->operand_count; i++) {
		if (form->op[i].where == X86_W_MOFFS) {
			e->disp_at = e->count;
			e->disp_bytes = 8; /* cut to the address size later */
		}
	}
	emit_value(e, diff_integer(e->rng), 8);
	emit_value(e, diff_random(e->rng), 8);
}
