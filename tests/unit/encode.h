/*
 * Makes byte strings that decode to a given row of the instruction table, for the tests of the decoder.
 * The tail (SIB, displacement, immediates) is random: the decoder takes what it needs of it.
 */
#ifndef LODGE_TESTS_UNIT_ENCODE_H
#define LODGE_TESTS_UNIT_ENCODE_H

#include "isa/x86/index.h"

#define ENCODE_BYTES 32

struct rng {
	uint64_t state;
};

/* xorshift64*: small, and the same numbers everywhere. */
static inline uint64_t rng_next(struct rng *rng)
{
	uint64_t x = rng->state;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	rng->state = x;
	return (x * 0x2545f4914f6cdd1dull) >> 16;
}

static inline unsigned rng_below(struct rng *rng, unsigned n)
{
	return (unsigned)(rng_next(rng) % n);
}

/* True with a chance of one in n. */
static inline bool rng_rare(struct rng *rng, unsigned n)
{
	return rng_below(rng, n) == 0;
}

struct encoding {
	uint8_t bytes[ENCODE_BYTES];
	unsigned at;
};

static inline void encode_byte(struct encoding *e, unsigned byte)
{
	e->bytes[e->at++] = (uint8_t)byte;
}

/* A code size that the form exists in, of 16, 32, 64. */
static inline unsigned encode_mode(const struct x86_form *form, struct rng *rng)
{
	if (form->deny & X86_C_MODE64)
		return rng_rare(rng, 2) ? 16 : 32;
	if (form->deny & X86_C_MODE32)
		return 64;
	return 16u << rng_below(rng, 3);
}

/* Prefixes that do not change which row it is: segment, address size. */
static inline void encode_free_prefixes(struct encoding *e, struct rng *rng)
{
	static const uint8_t segs[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
	if (rng_rare(rng, 4))
		encode_byte(e, segs[rng_below(rng, 6)]);
	if (rng_rare(rng, 6))
		encode_byte(e, 0x67);
}

static inline void encode_mandatory(
	struct encoding *e, const struct x86_form *form, struct rng *rng)
{
	bool opsize_free = !(form->deny & X86_C_66) || (form->deny & X86_C_NP);
	if (form->flags & X86_FORM_66 || (opsize_free && rng_rare(rng, 4)))
		encode_byte(e, 0x66);
	if (form->deny & X86_C_NP && !(form->deny & X86_C_F3))
		encode_byte(e, 0xf3);
	else if (form->deny & X86_C_NP && !(form->deny & X86_C_F2))
		encode_byte(e, 0xf2);
}

static inline void encode_legacy(
	struct encoding *e, const struct x86_form *form, unsigned mode, struct rng *rng)
{
	static const uint8_t second[] = {0, 0, 0x38, 0x3a};
	encode_mandatory(e, form, rng);
	unsigned rex = rng_below(rng, 16);
	if (form->deny & X86_C_W1)
		rex &= ~8u;
	if (form->deny & X86_C_W0)
		rex |= 8;
	if (form->deny & X86_C_B1)
		rex &= ~1u;
	if (mode == 64 && (form->deny & X86_C_W0 || rng_rare(rng, 2)))
		encode_byte(e, 0x40 | rex);
	if (form->map != X86_MAP_BASE)
		encode_byte(e, 0x0f);
	if (second[form->map])
		encode_byte(e, second[form->map]);
}

/* Three-byte VEX, or two bytes when they suffice and chance will have it. */
static inline void encode_vex(
	struct encoding *e, const struct x86_form *form, unsigned mode, struct rng *rng)
{
	unsigned pp = !(form->deny & X86_C_NP)	 ? 0
		      : !(form->deny & X86_C_66) ? 1
		      : !(form->deny & X86_C_F3) ? 2
						 : 3;
	bool w = form->deny & X86_C_W0 ? true : form->deny & X86_C_W1 ? false : rng_rare(rng, 2);
	bool l = form->deny & X86_C_L0 ? true : form->deny & X86_C_L1 ? false : rng_rare(rng, 2);
	unsigned vvvv = form->flags & X86_FORM_VVVV ? rng_below(rng, mode == 64 ? 16 : 8) : 0;
	unsigned low = (~vvvv & 15) << 3 | (l ? 4 : 0) | pp;
	unsigned rxb = mode == 64 ? rng_below(rng, 8) : 7;
	unsigned map = form->map - (X86_MAP_VEX - 1);
	if (map == 1 && !w && rng_rare(rng, 2)) {
		encode_byte(e, 0xc5);
		encode_byte(e, (rxb & 4) << 5 | low);
		return;
	}
	encode_byte(e, 0xc4);
	encode_byte(e, rxb << 5 | map);
	encode_byte(e, (w ? 0x80u : 0) | low);
}

static inline void encode_modrm(struct encoding *e, const struct x86_form *form, struct rng *rng)
{
	unsigned modrm = rng_below(rng, 256);
	if (form->deny & X86_C_REG && modrm >= 0xc0)
		modrm &= 0x3f | rng_below(rng, 3) << 6;
	if (form->deny & X86_C_MEM)
		modrm |= 0xc0;
	if (x86_rows[form->row].attr & X86_A_VSIB)
		modrm = (modrm & ~7u) | 4;
	encode_byte(e, (modrm & ~form->modrm_mask) | form->modrm_value);
}

/* Bytes that should decode to the form in that mode, followed by random ones. */
static inline void encode_form(
	struct encoding *e, const struct x86_form *form, unsigned mode, struct rng *rng)
{
	*e = (struct encoding){0};
	encode_free_prefixes(e, rng);
	if (form->map >= X86_MAP_VEX)
		encode_vex(e, form, mode, rng);
	else
		encode_legacy(e, form, mode, rng);
	encode_byte(e, form->opcode + rng_below(rng, form->opcode_count));
	if (form->flags & X86_FORM_MODRM)
		encode_modrm(e, form, rng);
	for (unsigned i = e->at; i < ENCODE_BYTES; i++)
		e->bytes[i] = (uint8_t)rng_next(rng);
}

#endif
