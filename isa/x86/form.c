/*
 * Reads the text of one row of the instruction table (notation: isa/x86/insn.h, which is that of the
 * SDM, volume 2, 3.1.1 and appendix A.2) and makes the compact form that the decoder works with.
 *
 * Runs once for each row, when the index is built. Rows are our own text, so errors are ours too: they
 * are reported to the unit test, and such a row is left out of the index.
 */
#include "isa/x86/index.h"

#include "base/util.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define X86_C_PREFIXES (X86_C_NP | X86_C_66 | X86_C_F3 | X86_C_F2)

enum {
	RANK_EXACT = 128,
	RANK_RANGE = 64,
	RANK_DIGIT = 32,
	RANK_PREFIX = 8,
	RANK_W = 4,
	RANK_L = 2,
	RANK_OPCODE = 1
};

/* ---- encoding ---- */

static void form_prefix(struct x86_form *form, unsigned allowed)
{
	form->deny |= X86_C_PREFIXES & ~allowed;
	if (allowed != (X86_C_NP | X86_C_66))
		form->rank |= RANK_PREFIX;
	if (allowed == X86_C_66)
		form->flags |= X86_FORM_66;
}

static void form_w(struct x86_form *form, bool w)
{
	form->deny |= w ? X86_C_W0 : X86_C_W1;
	form->rank |= RANK_W;
}

static void form_l(struct x86_form *form, bool l)
{
	form->deny |= l ? X86_C_L0 : X86_C_L1;
	form->rank |= RANK_L;
}

/* One field of "VEX.128.66.0F.WIG". */
static int form_vex_field(struct x86_form *form, const char *field)
{
	static const struct {
		const char *name;
		char kind;
		uint8_t value;
	} fields[] = {
		{"VEX", 0, 0},
		{"LIG", 0, 0},
		{"WIG", 0, 0},
		{"128", 'l', 0},
		{"LZ", 'l', 0},
		{"L0", 'l', 0},
		{"256", 'l', 1},
		{"L1", 'l', 1},
		{"W0", 'w', 0},
		{"W1", 'w', 1},
		{"NP", 'p', X86_C_NP},
		{"66", 'p', X86_C_66},
		{"F3", 'p', X86_C_F3},
		{"F2", 'p', X86_C_F2},
		{"0F", 'm', 1},
		{"0F38", 'm', 2},
		{"0F3A", 'm', 3},
	};
	for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
		if (strcmp(field, fields[i].name) != 0)
			continue;
		switch (fields[i].kind) {
		case 'l': form_l(form, fields[i].value); break;
		case 'w': form_w(form, fields[i].value); break;
		case 'p': form_prefix(form, fields[i].value); break;
		case 'm': form->map = X86_MAP_VEX - 1 + fields[i].value; break;
		default: break;
		}
		return 0;
	}
	return -EINVAL;
}

static int form_vex(struct x86_form *form, char *token)
{
	char *save = NULL;
	for (char *f = strtok_r(token, ".", &save); f; f = strtok_r(NULL, ".", &save)) {
		if (form_vex_field(form, f) < 0)
			return -EINVAL;
	}
	bool complete = form->map && (form->deny & X86_C_PREFIXES);
	return complete ? 0 : -EINVAL;
}

static void form_modrm(struct x86_form *form, unsigned value, unsigned mask)
{
	form->flags |= X86_FORM_MODRM;
	form->modrm_value = value;
	form->modrm_mask = mask;
	form->rank |= mask == 0xff ? RANK_EXACT : mask == 0xf8 ? RANK_RANGE : mask ? RANK_DIGIT : 0;
}

/* A byte of the encoding: mandatory prefix, escape, opcode, or (after it) ModRM. */
static int form_byte(struct x86_form *form, bool *has_opcode, unsigned byte, bool plus)
{
	if (*has_opcode) {
		form_modrm(form, byte, plus ? 0xf8 : 0xff);
		return 0;
	}
	if (form->map == X86_MAP_BASE && !plus) {
		switch (byte) {
		case 0x66: form_prefix(form, X86_C_66); return 0;
		case 0xf3: form_prefix(form, X86_C_F3); return 0;
		case 0xf2: form_prefix(form, X86_C_F2); return 0;
		case 0x0f: form->map = X86_MAP_0F; return 0;
		default: break;
		}
	}
	if (form->map == X86_MAP_0F && (byte == 0x38 || byte == 0x3a)) {
		form->map = byte == 0x38 ? X86_MAP_0F38 : X86_MAP_0F3A;
		return 0;
	}
	*has_opcode = true;
	form->opcode = byte;
	form->opcode_count = plus ? 8 : 1;
	if (!plus)
		form->rank |= RANK_OPCODE;
	return 0;
}

static bool is_hex(char c)
{
	return isdigit((unsigned char)c) || (c >= 'A' && c <= 'F');
}

static int form_token(struct x86_form *form, bool *has_opcode, char *t)
{
	if (strncmp(t, "VEX.", 4) == 0)
		return form_vex(form, t);
	if (strcmp(t, "NP") == 0) {
		form_prefix(form, X86_C_NP);
	} else if (strcmp(t, "NFx") == 0) {
		form_prefix(form, X86_C_NP | X86_C_66);
	} else if (strcmp(t, "REX.W") == 0 || strcmp(t, "REX.W1") == 0) {
		form_w(form, true);
	} else if (strcmp(t, "REX.W0") == 0) {
		form_w(form, false);
	} else if (strcmp(t, "/r") == 0) {
		form_modrm(form, 0, 0);
	} else if (t[0] == '/' && t[1] >= '0' && t[1] <= '7' && !t[2]) {
		form_modrm(form, (t[1] - '0') << 3, 0x38);
	} else if (t[0] == '=' && is_hex(t[1]) && is_hex(t[2]) && !t[3]) {
		form_modrm(form, strtoul(t + 1, NULL, 16), 0xff);
	} else if (is_hex(t[0]) && is_hex(t[1]) && (!t[2] || t[2] == '+')) {
		return form_byte(form, has_opcode, strtoul(t, NULL, 16), t[2] == '+');
	} else if (!(t[0] == 'i' || t[0] == 'c' || t[0] == 'm' || strcmp(t, "/is4") == 0)) {
		return -EINVAL; /* not ib, iw, cb, mo...: documentation */
	}
	return 0;
}

static int form_encoding(struct x86_form *form, const char *text)
{
	char buf[64];
	if (strlen(text) >= sizeof(buf))
		return -EINVAL;
	strcpy(buf, text);
	bool has_opcode = false;
	char *save = NULL;
	for (char *t = strtok_r(buf, " ", &save); t; t = strtok_r(NULL, " ", &save)) {
		if (form_token(form, &has_opcode, t) < 0)
			return -EINVAL;
	}
	/* 41 90 is XCHG R8,rAX, not NOP. */
	if (form->map == X86_MAP_BASE && form->opcode == 0x90 && form->opcode_count == 1)
		form->deny |= X86_C_B1;
	return has_opcode ? 0 : -EINVAL;
}

/* ---- operands ---- */

static int form_size(const char *suffix)
{
	static const struct {
		char name[4];
		uint8_t code;
	} sizes[] = {
		{"", 0},
		{"b", 1},
		{"w", 2},
		{"d", 4},
		{"q", 8},
		{"v", X86_S_OSIZE},
		{"z", X86_S_Z},
		{"y", X86_S_Y},
		{"p", X86_S_FARPTR},
		{"s", X86_S_DESCRIPTOR},
		{"dq", X86_S_VL},
		{"ps", X86_S_VL},
		{"pd", X86_S_VL},
		{"x", X86_S_VL},
		{"o", 16},
		{"qq", 32},
		{"ss", 4},
		{"sd", 8},
		{"t", 10},
		{"h", X86_S_VL2},
		{"f", X86_S_VL4},
		{"e", X86_S_VL8},
		{"n", X86_S_NATURAL},
		{"m", 0},
		{"a", X86_S_PAIR},
	};
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		if (strcmp(suffix, sizes[i].name) == 0)
			return sizes[i].code;
	}
	return -EINVAL;
}

/* AL, CX, eDX, rSI...: returns false if the text is not one. */
static bool operand_fixed_gpr(struct x86_form_operand *op, const char *t)
{
	static const char names[8][3] = {"AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI"};
	uint8_t size = *t == 'e' ? X86_S_Z : *t == 'r' ? X86_S_OSIZE : 2;
	const char *name = size == 2 ? t : t + 1;
	for (unsigned i = 0; i < 8; i++) {
		if (strcmp(name, names[i]) == 0) {
			*op = (struct x86_form_operand){X86_W_GPR_FIXED, 0, size, i};
			return true;
		}
		if (i < 4 && t[0] == names[i][0] && (t[1] == 'L' || t[1] == 'H') && !t[2]) {
			uint8_t where = t[1] == 'L' ? X86_W_GPR_FIXED : X86_W_GPR_FIXED_HIGH;
			*op = (struct x86_form_operand){where, 0, 1, i};
			return true;
		}
	}
	return false;
}

static bool operand_fixed(struct x86_form_operand *op, const char *t)
{
	static const char segs[6][3] = {"ES", "CS", "SS", "DS", "FS", "GS"};
	for (unsigned i = 0; i < 6; i++) {
		if (strcmp(t, segs[i]) == 0) {
			*op = (struct x86_form_operand){X86_W_SEG_FIXED, 0, 2, i};
			return true;
		}
	}
	if (strcmp(t, "1") == 0)
		*op = (struct x86_form_operand){X86_W_ONE, 0, 1, 0};
	else if (strcmp(t, "ST0") == 0)
		*op = (struct x86_form_operand){X86_W_ST_FIXED, 0, 10, 0};
	else if (strcmp(t, "STi") == 0)
		*op = (struct x86_form_operand){X86_W_ST_RM, 0, 10, 0};
	else if (strcmp(t, "XMM0") == 0)
		*op = (struct x86_form_operand){X86_W_VEC_FIXED, 0, 16, 0};
	else
		return operand_fixed_gpr(op, t);
	return true;
}

/* The letters of appendix A.2. deny: contexts the letter rules out. */
static const struct operand_letter {
	char letter;
	uint8_t where, rm_where;
	uint16_t deny;
} operand_letters[] = {
	{'A', X86_W_FAR, 0, 0},
	{'B', X86_W_GPR_VVVV, 0, 0},
	{'C', X86_W_CR, 0, 0},
	{'D', X86_W_DR, 0, 0},
	{'E', X86_W_EA, X86_W_GPR_RM, 0},
	{'G', X86_W_GPR_REG, 0, 0},
	{'H', X86_W_VEC_VVVV, 0, 0},
	{'I', X86_W_IMM, 0, 0},
	{'J', X86_W_REL, 0, 0},
	{'L', X86_W_VEC_IS4, 0, 0},
	{'M', X86_W_EA, 0, X86_C_REG},
	{'N', X86_W_MMX_RM, 0, X86_C_MEM},
	{'O', X86_W_MOFFS, 0, 0},
	{'P', X86_W_MMX_REG, 0, 0},
	{'Q', X86_W_EA, X86_W_MMX_RM, 0},
	{'R', X86_W_GPR_RM, 0, X86_C_MEM},
	{'S', X86_W_SEG_REG, 0, 0},
	{'U', X86_W_VEC_RM, 0, X86_C_MEM},
	{'V', X86_W_VEC_REG, 0, 0},
	{'W', X86_W_EA, X86_W_VEC_RM, 0},
	{'X', X86_W_X, 0, 0},
	{'Y', X86_W_Y, 0, 0},
	{'Z', X86_W_GPR_OPCODE, 0, 0},
};

static int operand_lettered(struct x86_form *form, struct x86_form_operand *op, const char *t)
{
	bool is_signed = strcmp(t, "Ibs") == 0 || strcmp(t, "Iz") == 0;
	int size = strcmp(t, "Ibs") == 0 ? 1 : form_size(t + 1);
	if (size < 0)
		return -EINVAL;
	for (unsigned i = 0; i < ARRAY_SIZE(operand_letters); i++) {
		const struct operand_letter *l = &operand_letters[i];
		if (l->letter != t[0])
			continue;
		*op = (struct x86_form_operand){l->where, l->rm_where, size, 0};
		if (l->where == X86_W_IMM && is_signed)
			op->where = X86_W_IMM_SIGNED;
		if (l->where == X86_W_GPR_VVVV || l->where == X86_W_VEC_VVVV)
			form->flags |= X86_FORM_VVVV;
		if (l->where == X86_W_CR || l->where == X86_W_DR)
			form->flags |= X86_FORM_IGNORE_MOD;
		form->deny |= l->deny;
		return 0;
	}
	return -EINVAL;
}

static int form_operands(struct x86_form *form, const char *text)
{
	char buf[64];
	if (strlen(text) >= sizeof(buf))
		return -EINVAL;
	strcpy(buf, text);
	char *save = NULL;
	for (char *t = strtok_r(buf, ", ", &save); t; t = strtok_r(NULL, ", ", &save)) {
		if (form->operand_count == X86_OPERANDS_MAX)
			return -EINVAL;
		struct x86_form_operand *op = &form->op[form->operand_count++];
		if (!operand_fixed(op, t) && operand_lettered(form, op, t) < 0)
			return -EINVAL;
		if (op->where == X86_W_ST_RM)
			form->deny |= X86_C_MEM;
	}
	if (form->flags & X86_FORM_IGNORE_MOD)
		form->deny &= ~(X86_C_MEM | X86_C_REG);
	return 0;
}

/* ---- rows ---- */

int x86_form_parse(const struct x86_row *row, struct x86_form *ret_form)
{
	*ret_form = (struct x86_form){.feature = row->feature};
	if (form_encoding(ret_form, row->encoding) < 0 ||
		form_operands(ret_form, row->operands) < 0)
		return -EINVAL;
	if (row->attr & X86_A_NO64)
		ret_form->deny |= X86_C_MODE64;
	if (row->attr & X86_A_ONLY64)
		ret_form->deny |= X86_C_MODE32;
	if (row->attr & X86_A_NOREAL)
		ret_form->deny |= X86_C_REAL;
	if (!(ret_form->flags & X86_FORM_MODRM))
		ret_form->deny &= ~(X86_C_MEM | X86_C_REG);
	return 0;
}
