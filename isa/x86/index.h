/*
 * The decode index: the instruction table translated once into compact forms, found by opcode map,
 * opcode and ModRM.reg. Private to isa/x86/decode.c, index.c and their tests.
 *
 * Invariants: built before first use and read-only from then on; the forms of a slot are in order of
 * preference, so the first that matches is the instruction.
 */
#ifndef LODGE_ISA_X86_INDEX_H
#define LODGE_ISA_X86_INDEX_H

#include "isa/x86/insn.h"

/* Opcode maps: legacy 0..3, VEX 4..6 (VEX.mmmmm + 3). */
enum { X86_MAP_BASE, X86_MAP_0F, X86_MAP_0F38, X86_MAP_0F3A, X86_MAP_VEX, X86_MAPS = 7 };

/* What an instruction looks like before its form is known; a form denies some of these bits. */
enum x86_form_context {
	X86_C_NP = 1,
	X86_C_66 = 2,
	X86_C_F3 = 4,
	X86_C_F2 = 8, /* exactly one of the four */
	X86_C_W0 = 16,
	X86_C_W1 = 32,
	X86_C_L0 = 64,
	X86_C_L1 = 128,
	X86_C_MODE64 = 256,
	X86_C_MODE32 = 512,
	X86_C_REAL = 1024,
	X86_C_MEM = 2048,
	X86_C_REG = 4096,
	X86_C_B1 = 8192, /* REX.B */
};

enum x86_form_flags {
	X86_FORM_MODRM = 1,
	X86_FORM_VVVV = 2,	 /* has an operand in VEX.vvvv */
	X86_FORM_66 = 4,	 /* 66 selects it, so it is not the operand size */
	X86_FORM_IGNORE_MOD = 8, /* MOV to and from CR, DR */
};

/* Where an operand comes from. */
enum x86_where {
	X86_W_GPR_REG,
	X86_W_GPR_RM,
	X86_W_GPR_OPCODE,
	X86_W_GPR_VVVV,
	X86_W_GPR_FIXED,
	X86_W_EA,
	X86_W_GPR_FIXED_HIGH,
	X86_W_SEG_REG,
	X86_W_SEG_FIXED,
	X86_W_CR,
	X86_W_DR,
	X86_W_MMX_REG,
	X86_W_MMX_RM,
	X86_W_VEC_REG,
	X86_W_VEC_RM,
	X86_W_VEC_VVVV,
	X86_W_VEC_IS4,
	X86_W_VEC_FIXED,
	X86_W_ST_FIXED,
	X86_W_ST_RM,
	X86_W_IMM,
	X86_W_IMM_SIGNED,
	X86_W_ONE,
	X86_W_REL,
	X86_W_FAR,
	X86_W_MOFFS,
	X86_W_X,
	X86_W_Y,
};

/* Size codes; those up to X86_S_FIXED_MAX are the size itself. */
enum x86_size_code {
	X86_S_FIXED_MAX = 64,
	X86_S_OSIZE,
	X86_S_Z,
	X86_S_Y,
	X86_S_FARPTR,
	X86_S_DESCRIPTOR,
	X86_S_VL,
	X86_S_VL2,
	X86_S_VL4,
	X86_S_VL8,
	X86_S_NATURAL,
	X86_S_PAIR,
};

struct x86_form_operand {
	uint8_t where;	  /* enum x86_where */
	uint8_t rm_where; /* for E Q W: the same operand with mod == 3 */
	uint8_t size;	  /* enum x86_size_code */
	uint8_t reg;	  /* of fixed ones */
};

struct x86_form {
	uint16_t row;
	uint16_t deny; /* enum x86_form_context */
	uint8_t modrm_mask, modrm_value;
	uint8_t flags; /* enum x86_form_flags */
	uint8_t feature;
	uint8_t rank; /* higher is preferred */
	uint8_t operand_count;
	uint8_t map, opcode, opcode_count; /* opcode_count 8: opcode + register */
	struct x86_form_operand op[X86_OPERANDS_MAX];
};

struct x86_slot {
	uint16_t first;
	uint8_t count;
	bool modrm; /* this opcode has a ModRM byte */
};

struct x86_index {
	const struct x86_form *forms; /* forms[i] is that of x86_rows[i] */
	const uint16_t *list;
	struct x86_slot slot[X86_MAPS][256][8]; /* [map][opcode][ModRM.reg]; [0] without ModRM */
	int bad_row; /* first row whose text is not understood (it was left out), or -1 */
};

/* The index; builds it at the first call. Any thread. */
const struct x86_index *x86_index_get(void);

/* Translate one row's text. Returns 0 or -EINVAL. */
int x86_form_parse(const struct x86_row *row, struct x86_form *ret_form);

#endif
