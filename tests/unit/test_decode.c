/*
 * The decoder by itself: hand-picked encodings with what they must mean, the rules that cut across
 * instructions (prefixes, lengths, modes, features), and that every row of the table can be reached.
 * test_decode_zydis.c compares it with another decoder.
 */
#include "tests/unit/encode.h"

#include "base/util.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Decode bytes written as hex; fails the test unless the result is as expected. */
static struct x86_insn decode_as(unsigned mode, const char *hex, enum x86_decode_result expected)
{
	uint8_t bytes[32];
	unsigned count = 0, value;
	struct x86_insn insn;
	for (int used; sscanf(hex, "%2x%n", &value, &used) == 1; hex += used)
		bytes[count++] = (uint8_t)value;
	enum x86_decode_result result = x86_decode(&insn, bytes, count, mode, false, NULL);
	assert_int_equal(result, expected);
	if (result == X86_DECODE_OK)
		assert_int_equal(insn.len, count);
	return insn;
}

static void table_is_understood(void **state)
{
	int bad = x86_index_get()->bad_row;
	if (bad >= 0)
		fail_msg("row not understood: \"%s\", \"%s\"", x86_rows[bad].encoding,
			x86_rows[bad].operands);
}

/* Text is a compact way to say what an instruction means. */
static void texts_are_right(void **state)
{
	static const struct {
		unsigned mode;
		const char *hex, *text;
	} cases[] = {
		{64, "01 04 25 01 02 03 04", "add dword ptr [0x4030201], eax"},
		{64, "f0 48 83 84 98 01 00 00 00 ff",
			"lock add qword ptr [rax+rbx*4+0x1], 0xffffffffffffffff"},
		{64, "00 e6", "add dh, ah"},
		{64, "40 00 e6", "add sil, spl"},
		{64, "45 00 c7", "add r15b, r8b"},
		{64, "8b 05 fc ff ff ff", "mov eax, dword ptr [rip-0x4]"},
		{64, "67 8b 05 fc ff ff ff", "mov eax, dword ptr [eip-0x4]"},
		{32, "8b 05 fc ff ff ff", "mov eax, dword ptr [0xfffffffc]"},
		{64, "41 8b 45 00", "mov eax, dword ptr [r13]"},
		{64, "42 8b 04 20", "mov eax, dword ptr [rax+r12]"},
		{64, "8b 04 60", "mov eax, dword ptr [rax]"},
		{16, "8b 42 ff", "mov ax, word ptr [bp+si-0x1]"},
		{16, "66 67 8b 04 24", "mov eax, dword ptr [esp]"},
		{16, "8b 06 34 12", "mov ax, word ptr [0x1234]"},
		{64, "64 2e 8b 00", "mov eax, dword ptr fs:[rax]"},
		{32, "64 2e 8b 00", "mov eax, dword ptr cs:[eax]"},
		{64, "48 b8 01 02 03 04 05 06 07 08", "mov rax, 0x807060504030201"},
		{64, "48 c7 c0 ff ff ff ff", "mov rax, 0xffffffffffffffff"},
		{64, "b8 ff ff ff ff", "mov eax, 0xffffffff"},
		{64, "65 a0 01 02 03 04 05 06 07 f8", "mov al, byte ptr gs:[0xf807060504030201]"},
		{64, "67 a0 01 02 03 f4", "mov al, byte ptr [0xf4030201]"},
		{64, "6a ff", "push 0xffffffffffffffff"},
		{64, "66 6a ff", "push 0xffff"},
		{64, "41 57", "push r15"},
		{64, "c8 34 12 05", "enter 0x1234, 0x5"},
		{16, "9a 34 12 78 56", "call 0x5678:0x1234"},
		{32, "9a 78 56 34 12 cd ab", "call 0xabcd:0x12345678"},
		{64, "e8 fb ff ff ff", "call 0x1000"},
		{64, "66 e8 fa ff ff ff", "call 0x1000"},
		{16, "eb fe", "jmp 0x1000"},
		{64, "90", "nop"},
		{64, "f3 90", "pause"},
		{64, "49 90", "xchg r8, rax"},
		{64, "f3 48 a5", "rep movsq qword ptr es:[rdi], qword ptr [rsi]"},
		{32, "f2 64 a6", "repne cmpsb byte ptr fs:[esi], byte ptr es:[edi]"},
		{64, "0f 20 00", "mov rax, cr0"}, /* mod is ignored */
		{64, "44 0f 20 c0", "mov rax, cr8"},
		{64, "f3 0f b8 c1", "popcnt eax, ecx"},
		{64, "66 f3 0f b8 c1", "popcnt ax, cx"},
		{64, "0f bc c1", "bsf eax, ecx"},
		{64, "f3 0f bc c1", "tzcnt eax, ecx"},
		{64, "66 f2 0f 38 f1 c1", "crc32 eax, cx"},
		{64, "f2 f3 0f 58 c1", "addss xmm0, xmm1"}, /* the last of F2, F3 counts */
		{64, "f3 f2 0f 58 c1", "addsd xmm0, xmm1"},
		{64, "66 f3 0f 58 c1", "addss xmm0, xmm1"},
		{64, "66 0f 6f c8", "movdqa xmm1, xmm0"},
		{64, "66 48 0f 6e c8", "movq xmm1, rax"},
		{64, "4f 0f 6f c8", "movq mm1, mm0"}, /* REX.R and B mean nothing to MMX */
		{64, "f3 0f 10 08", "movss xmm1, dword ptr [rax]"},
		{64, "c5 f4 58 c2", "vaddps ymm0, ymm1, ymm2"},
		{32, "c5 f4 58 c2", "vaddps ymm0, ymm1, ymm2"},
		{32, "c5 44 24 08", "lds eax, fword ptr [esp+0x8]"},
		{64, "c4 e2 f1 90 04 1a", "vpgatherdq xmm0, qword ptr [rdx+xmm3], xmm1"},
		{64, "c4 e2 f5 90 04 9a", "vpgatherdq ymm0, qword ptr [rdx+xmm3*4], ymm1"},
		{64, "c4 e3 71 4a c2 30", "vblendvps xmm0, xmm1, xmm2, xmm3"},
		{64, "c4 e1 f9 6e c0", "vmovq xmm0, rax"},
		{32, "c4 e1 f9 6e c0", "vmovd xmm0, eax"},
		{64, "d9 c1", "fld st(1)"},
		{64, "d8 c1", "fadd st(0), st(1)"},
		{32, "63 c8", "arpl ax, cx"},
		{64, "48 63 c8", "movsxd rcx, eax"},
		{64, "0f ae e8", "lfence"},
		{64, "48 0f c7 08", "cmpxchg16b xmmword ptr [rax]"},
		{64, "0f c7 08", "cmpxchg8b qword ptr [rax]"},
	};
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct x86_insn insn = decode_as(cases[i].mode, cases[i].hex, X86_DECODE_OK);
		char buf[128];
		assert_string_equal(x86_format(&insn, 0x1000, buf, sizeof(buf)), cases[i].text);
	}
}

static void undefined_is_refused(void **state)
{
	static const struct {
		unsigned mode;
		const char *hex;
	} cases[] = {
		{64, "f0 00 c0"}, /* LOCK with a register */
		{64, "f0 8b 00"}, /* LOCK with what cannot have it */
		{64, "06"},
		{64, "37"},
		{64, "0f 20 c8"},    /* CR1 */
		{64, "44 0f 21 c0"}, /* DR8 */
		{64, "8e c8"},
		{64, "8e f0"}, /* MOV to CS, segment register 6 */
		{64, "66 c5 f4 58 c2"},
		{64, "f3 c5 f4 58 c2"},
		{64, "f0 c5 f4 58 c2"},
		{64, "40 c5 f4 58 c2"}, /* prefixes before VEX */
		{64, "c5 f4 51 c2"},	/* vvvv in use without an operand for it */
		{64, "c5 f0 77"},
		{64, "c4 e0 71 58 c2"},
		{64, "c4 e4 71 58 c2"},	   /* maps 0 and 4 */
		{64, "62 f1 7c 48 58 c2"}, /* EVEX */
		{64, "8f e8 78 c0 c1 01"}, /* XOP */
		{64, "0f 0f c0 9e"},	   /* 3DNow! */
		{64, "c4 e2 f1 90 04 0a"}, /* gather: index is the mask */
		{64, "c4 e2 f1 90 00"},	   /* gather without SIB */
		{64, "f2 0f 28 c0"},
		{64, "66 0f ae e8"},
		{64, "0f 0a"},
	};
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
		decode_as(cases[i].mode, cases[i].hex, X86_DECODE_UD);
}

static void length_is_limited(void **state)
{
	struct x86_insn insn =
		decode_as(64, "66 66 66 66 66 66 66 66 66 66 66 66 66 00 c0", X86_DECODE_OK);
	assert_int_equal(insn.osize, 2);
	decode_as(64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 00 c0", X86_DECODE_TOO_LONG);
	decode_as(64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", X86_DECODE_TOO_LONG);
	decode_as(64, "2e 2e 2e 2e 2e 48 c7 84 24 00 00 00 00 00 00 00 00", X86_DECODE_TOO_LONG);
	insn = decode_as(64, "", X86_DECODE_TRUNCATED);
	assert_int_equal(insn.len, 1);
}

/* Cut short at any byte, an instruction is TRUNCATED; whole, it does not look further. */
static void cut_is_truncated(void **state)
{
	static const uint8_t bytes[] = {0x64, 0x48, 0xc7, 0x84, 0x24, 1, 2, 3, 4, 5, 6, 7, 8};
	static const uint8_t vex[] = {0xc4, 0xe3, 0x71, 0x4a, 0x84, 0x24, 1, 2, 3, 4, 0x30};
	struct x86_insn insn;
	for (unsigned n = 0; n < sizeof(bytes); n++)
		assert_int_equal(
			x86_decode(&insn, bytes, n, 64, false, NULL), X86_DECODE_TRUNCATED);
	for (unsigned n = 0; n < sizeof(vex); n++)
		assert_int_equal(x86_decode(&insn, vex, n, 64, false, NULL), X86_DECODE_TRUNCATED);
	assert_int_equal(x86_decode(&insn, vex, sizeof(vex), 64, false, NULL), X86_DECODE_OK);
}

/* A REX counts only right before the opcode. */
static void rex_must_be_last(void **state)
{
	struct x86_insn insn = decode_as(64, "48 66 01 c0", X86_DECODE_OK);
	assert_int_equal(insn.osize, 2);
	assert_int_equal(insn.rex, 0);
	assert_false(insn.prefix & X86_P_REX);
	insn = decode_as(64, "66 48 01 c0", X86_DECODE_OK);
	assert_int_equal(insn.osize, 8);
	insn = decode_as(64, "41 48 01 c0", X86_DECODE_OK);
	assert_int_equal(insn.rex, 8);
}

static void segments_default_to_base(void **state)
{
	assert_int_equal(decode_as(64, "8b 04 24", X86_DECODE_OK).seg, X86_SS);
	assert_int_equal(decode_as(64, "8b 45 00", X86_DECODE_OK).seg, X86_SS);
	assert_int_equal(decode_as(64, "41 8b 45 00", X86_DECODE_OK).seg, X86_DS);
	assert_int_equal(decode_as(64, "41 8b 04 24", X86_DECODE_OK).seg, X86_DS);
	assert_int_equal(decode_as(64, "8b 04 2d 00 00 00 00", X86_DECODE_OK).seg, X86_DS);
	assert_int_equal(decode_as(64, "65 8b 04 24", X86_DECODE_OK).seg, X86_GS);
	assert_int_equal(decode_as(32, "3e 8b 04 24", X86_DECODE_OK).seg, X86_DS);
	assert_int_equal(decode_as(16, "8b 46 00", X86_DECODE_OK).seg, X86_SS);
	assert_int_equal(decode_as(16, "8b 06 00 00", X86_DECODE_OK).seg, X86_DS);
	assert_int_equal(decode_as(16, "26 a4", X86_DECODE_OK).seg, X86_ES);
	assert_int_equal(decode_as(16, "64 aa", X86_DECODE_OK).seg, X86_ES);
	assert_int_equal(decode_as(16, "64 d7", X86_DECODE_OK).seg, X86_FS);
}

/* A row whose feature the guest lacks is not there: TZCNT is BSF then, as on such a processor. */
static void features_are_tested(void **state)
{
	static const uint8_t tzcnt[] = {0xf3, 0x0f, 0xbc, 0xc1}, addps[] = {0x0f, 0x58, 0xc1};
	struct x86_feature_set none = {0};
	struct x86_insn insn;
	char buf[64];
	assert_int_equal(x86_decode(&insn, tzcnt, 4, 64, false, &none), X86_DECODE_OK);
	assert_string_equal(x86_format(&insn, 0, buf, sizeof(buf)), "bsf eax, ecx");
	assert_int_equal(x86_decode(&insn, addps, 3, 64, false, &none), X86_DECODE_UD);
	none.bits[X86_F_SSE / 64] |= 1ull << X86_F_SSE % 64;
	assert_int_equal(x86_decode(&insn, addps, 3, 64, false, &none), X86_DECODE_OK);
}

static void real_mode_lacks_rows(void **state)
{
	static const uint8_t lldt[] = {0x0f, 0x00, 0xd0}, vex[] = {0xc5, 0xf4, 0x58, 0xc2};
	struct x86_insn insn;
	assert_int_equal(x86_decode(&insn, lldt, 3, 16, false, NULL), X86_DECODE_OK);
	assert_int_equal(x86_decode(&insn, lldt, 3, 16, true, NULL), X86_DECODE_UD);
	assert_int_equal(x86_decode(&insn, vex, 4, 16, false, NULL), X86_DECODE_OK);
	assert_int_equal(x86_decode(&insn, vex, 4, 16, true, NULL), X86_DECODE_UD);
}

/* All rows of one opcode agree on whether there is a ModRM byte, or the length would be guesswork. */
static void opcodes_agree_on_modrm(void **state)
{
	const struct x86_index *index = x86_index_get();
	for (unsigned i = 0; i < x86_row_count; i++) {
		const struct x86_form *form = &index->forms[i];
		for (unsigned k = 0; k < form->opcode_count; k++) {
			bool modrm = index->slot[form->map][form->opcode + k][0].modrm;
			if (modrm != !!(form->flags & X86_FORM_MODRM))
				fail_msg("\"%s\" %s", x86_rows[i].encoding, x86_rows[i].name);
		}
	}
}

/* Every row is what some byte string decodes to: none hides behind another. */
static void rows_are_reachable(void **state)
{
	const struct x86_index *index = x86_index_get();
	struct rng rng = {7};
	for (unsigned i = 0; i < x86_row_count; i++) {
		bool reached = false;
		for (unsigned k = 0; k < 200 && !reached; k++) {
			struct encoding e;
			struct x86_insn insn;
			unsigned mode = encode_mode(&index->forms[i], &rng);
			encode_form(&e, &index->forms[i], mode, &rng);
			reached = x86_decode(&insn, e.bytes, 15, mode, false, NULL) ==
					  X86_DECODE_OK &&
				  insn.row == &x86_rows[i];
		}
		if (!reached)
			fail_msg("\"%s\" %s %s", x86_rows[i].encoding, x86_rows[i].name,
				x86_rows[i].operands);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(table_is_understood),
		cmocka_unit_test(texts_are_right),
		cmocka_unit_test(undefined_is_refused),
		cmocka_unit_test(length_is_limited),
		cmocka_unit_test(cut_is_truncated),
		cmocka_unit_test(rex_must_be_last),
		cmocka_unit_test(segments_default_to_base),
		cmocka_unit_test(features_are_tested),
		cmocka_unit_test(real_mode_lacks_rows),
		cmocka_unit_test(opcodes_agree_on_modrm),
		cmocka_unit_test(rows_are_reachable),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
