/*
 * Fuzz target: any bytes through the decoder and the formatter. Byte 0 chooses mode and features, the
 * rest is code. Checked: lengths, register numbers in range, and that an instruction needs exactly the
 * bytes it says.
 */
#include "tests/fuzz/rig.h"

#include "isa/x86/insn.h"


static void check_operand(const struct x86_operand *op)
{
	static const uint8_t limits[] = {
		[X86_O_GPR] = 16,
		[X86_O_GPR8H] = 4,
		[X86_O_MEM] = 16,
		[X86_O_IMM] = 2,
		[X86_O_REL] = 1,
		[X86_O_FAR] = 1,
		[X86_O_SEG] = 6,
		[X86_O_CR] = 9,
		[X86_O_DR] = 8,
		[X86_O_MMX] = 8,
		[X86_O_VEC] = 16,
		[X86_O_ST] = 8,
	};
	MUST(op->kind != X86_O_NONE && op->kind < sizeof(limits));
	MUST(op->reg < limits[op->kind]);
	MUST(op->size <= 64);
}

static void check_insn(const struct x86_insn *insn)
{
	MUST(insn->row && insn->fn);
	MUST(insn->base < X86_REGS && insn->index < X86_REGS && insn->scale < 4);
	MUST(insn->seg <= X86_GS);
	MUST(insn->osize == 2 || insn->osize == 4 || insn->osize == 8);
	MUST(insn->asize == 2 || insn->asize == 4 || insn->asize == 8);
	MUST(insn->vl == 16 || insn->vl == 32);
	MUST(insn->operand_count <= X86_OPERANDS_MAX);
	for (unsigned i = 0; i < insn->operand_count; i++)
		check_operand(&insn->op[i]);
}

static void check_format(const struct x86_insn *insn)
{
	char text[96];
	for (size_t size = 0; size <= sizeof(text); size += 12) {
		memset(text, 'x', sizeof(text));
		x86_format(insn, 0x1000, text, size);
		MUST(!size || memchr(text, 0, size));
		MUST(size == sizeof(text) || text[size] == 'x');
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t modes[] = {16, 32, 64, 64};
	struct x86_insn insn, again;
	if (size < 1)
		return 0;
	unsigned mode = modes[data[0] & 3], avail = size > 64 ? 63 : (unsigned)size - 1;
	bool real = mode == 16 && data[0] & 4;
	struct x86_feature_set none = {0}, *features = data[0] & 8 ? &none : NULL;
	/* An exact copy, so that the sanitizer sees a byte too many. */
	uint8_t *bytes = malloc(avail ? avail : 1);
	MUST(bytes);
	memcpy(bytes, data + 1, avail);
	enum x86_decode_result result = x86_decode(&insn, bytes, avail, mode, real, features);
	MUST(insn.len >= 1 && insn.len <= X86_INSN_BYTES_MAX && insn.len <= (avail ? avail : 1));
	if (result == X86_DECODE_OK) {
		check_insn(&insn);
		check_format(&insn);
		MUST(x86_decode(&again, bytes, insn.len, mode, real, features) == X86_DECODE_OK);
		MUST(memcmp(&insn, &again, sizeof(insn)) == 0);
		for (unsigned n = 0; n < insn.len; n++)
			MUST(x86_decode(&again, bytes, n, mode, real, features) ==
				X86_DECODE_TRUNCATED);
	}
	free(bytes);
	return 0;
}
