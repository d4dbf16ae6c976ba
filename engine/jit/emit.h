/*
 * Machine code into a buffer: the few forms of x86-64 instructions that the translator makes itself
 * (SDM 2, 2.1 to 2.3). Guest instructions that are copied are put together by rewrite.c.
 *
 * Registers are host registers by their encoding. A buffer that is full swallows what follows and says so in
 * `full`; the block is then given up.
 */
#ifndef LODGE_ENGINE_JIT_EMIT_H
#define LODGE_ENGINE_JIT_EMIT_H

#include "base/types.h"
#include "base/util.h"

#include <string.h>

enum host_reg { HR_AX, HR_CX, HR_DX, HR_BX, HR_SP, HR_BP, HR_SI, HR_DI, HR_8, HR_9, HR_10, HR_11, HR_NONE = 255 };

struct emit {
	uint8_t *p;   /* where the next byte goes, in the writable mapping */
	uint8_t *end; /* nothing is written from here on */
	bool full;
};

/* An opcode: its byte, its map, and what stands before it. */
enum emit_opcode {
	EM_0F = 0x100,
	EM_0F38 = 0x200,
	EM_0F3A = 0x300,
	EM_MAP = 0x300,
	EM_W = 0x400,  /* REX.W */
	EM_66 = 0x800,
	EM_F3 = 0x1000,
	EM_F2 = 0x2000,
	EM_GS = 0x4000,
	EM_LOCK = 0x8000,
	EM_BYTE = 0x10000, /* byte registers 4 to 7 are SPL to DIL: needs a REX */
	EM_NOREX = 0x20000, /* a high byte register: must not have one (then `full` is set) */
};

static inline void emit8(struct emit *e, unsigned byte)
{
	if (likely(e->p < e->end))
		*e->p++ = (uint8_t)byte;
	else
		e->full = true;
}

static inline void emit32(struct emit *e, uint32_t value)
{
	if (likely(e->end - e->p >= 4)) {
		memcpy(e->p, &value, 4);
		e->p += 4;
	} else {
		e->full = true;
	}
}

static inline void emit64(struct emit *e, uint64_t value)
{
	emit32(e, (uint32_t)value);
	emit32(e, (uint32_t)(value >> 32));
}

static inline void emit_bytes(struct emit *e, const void *bytes, size_t count)
{
	if (likely((size_t)(e->end - e->p) >= count)) {
		memcpy(e->p, bytes, count);
		e->p += count;
	} else {
		e->full = true;
	}
}
#define EMIT_LITERAL(e, literal) emit_bytes(e, literal, sizeof(literal) - 1)

/* Prefixes, REX and opcode bytes. reg, index, rm: the registers that REX extends. */
static inline void emit_opcode(struct emit *e, unsigned op, unsigned reg, unsigned index, unsigned rm)
{
	unsigned rex = (op & EM_W ? 8 : 0) | (reg >> 1 & 4) | (index >> 2 & 2) | (rm >> 3 & 1);

	if (op & EM_LOCK)
		emit8(e, 0xf0);
	if (op & EM_GS)
		emit8(e, 0x65);
	if (op & EM_66)
		emit8(e, 0x66);
	if (op & EM_F3)
		emit8(e, 0xf3);
	if (op & EM_F2)
		emit8(e, 0xf2);
	if (rex || (op & EM_BYTE)) {
		emit8(e, 0x40 | rex);
		if (op & EM_NOREX)
			e->full = true;
	}
	if (op & EM_MAP)
		emit8(e, 0x0f);
	if ((op & EM_MAP) == EM_0F38)
		emit8(e, 0x38);
	if ((op & EM_MAP) == EM_0F3A)
		emit8(e, 0x3a);
	emit8(e, op & 0xff);
}

/* op reg, rm with two registers. */
static inline void emit_rr(struct emit *e, unsigned op, unsigned reg, unsigned rm)
{
	emit_opcode(e, op, reg, 0, rm);
	emit8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

/* ModRM, SIB and displacement of [base + (index << scale) + disp]; base and index may be HR_NONE. */
static inline void emit_address(struct emit *e, unsigned reg, unsigned base, unsigned index, unsigned scale,
	int32_t disp)
{
	unsigned r = (reg & 7) << 3, mod;

	if (base == HR_NONE) {
		emit8(e, r | 4);
		emit8(e, scale << 6 | (index == HR_NONE ? 4 : index & 7) << 3 | 5);
		emit32(e, (uint32_t)disp);
		return;
	}
	mod = disp == 0 && (base & 7) != HR_BP ? 0 : disp == (int8_t)disp ? 0x40 : 0x80;
	if (index == HR_NONE && (base & 7) != HR_SP) {
		emit8(e, mod | r | (base & 7));
	} else {
		emit8(e, mod | r | 4);
		emit8(e, scale << 6 | (index == HR_NONE ? 4 : index & 7) << 3 | (base & 7));
	}
	if (mod == 0x40)
		emit8(e, (uint8_t)disp);
	else if (mod)
		emit32(e, (uint32_t)disp);
}

/* op reg, [base + (index << scale) + disp] */
static inline void emit_rm(struct emit *e, unsigned op, unsigned reg, unsigned base, unsigned index,
	unsigned scale, int32_t disp)
{
	emit_opcode(e, op, reg, index == HR_NONE ? 0 : index, base == HR_NONE ? 0 : base);
	emit_address(e, reg, base, index, scale, disp);
}

/* op reg, [context + offset]: the context is where RSP points. */
static inline void emit_ctx(struct emit *e, unsigned op, unsigned reg, size_t offset)
{
	emit_rm(e, op, reg, HR_SP, HR_NONE, 0, (int32_t)offset);
}

static inline void emit_mov_rr(struct emit *e, unsigned to, unsigned from)
{
	emit_rr(e, 0x89 | EM_W, from, to);
}

static inline void emit_mov_imm64(struct emit *e, unsigned to, uint64_t value)
{
	emit_opcode(e, (0xb8 | (to & 7)) | EM_W, 0, 0, to);
	emit64(e, value);
}

static inline void emit_mov_imm32(struct emit *e, unsigned to, uint32_t value)
{
	emit_opcode(e, 0xb8 | (to & 7), 0, 0, to);
	emit32(e, value);
}

static inline void emit_lea(struct emit *e, unsigned to, unsigned base, int32_t disp)
{
	emit_rm(e, 0x8d | EM_W, to, base, HR_NONE, 0, disp);
}

/* rel32 at `at` (in the writable mapping) := target; both in one mapping, or both offsets of it. */
static inline void emit_patch(uint8_t *at, const uint8_t *target)
{
	int32_t rel = (int32_t)(target - (at + 4));

	memcpy(at, &rel, 4);
}

/* jmp, call, jcc to a target in the same mapping; returns where its rel32 is. */
static inline uint8_t *emit_jump(struct emit *e, unsigned op, const uint8_t *target)
{
	if (op & EM_MAP)
		emit8(e, 0x0f);
	emit8(e, op & 0xff);
	uint8_t *at = e->p;
	emit32(e, 0);
	if (!e->full && target)
		emit_patch(at, target);
	return at;
}
#define EM_JMP	   0xe9
#define EM_CALL	   0xe8
#define EM_JCC(cc) (0x80 | (cc) | EM_0F)
enum emit_condition { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A };

#endif
