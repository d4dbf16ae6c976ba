/*
 * What the translator copies of a guest's instructions, as an independent decoder (Zydis) sees the copies: each row
 * that is copied, in many random encodings of 32 and 64-bit code. A copy must be the same instruction, on the
 * registers that it was given and on memory of the size and in the direction that were checked before; must
 * touch no register that is the translator's (RSP above all); and what faults on the host must be known:
 * alignment, unmasked SIMD exceptions.
 */
#include "encode.h"

#include "base/util.h"
#include "engine/jit/jit.h"
#include "isa/x86/native_stub.h"
#include "isa/x86/semantics.h"

#include <Zydis/Zydis.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define TRIES	    400 /* of each row */
#define REPORTS_MAX 60

struct check {
	ZydisDecoder decoder[2]; /* 32, 64 */
	struct rng rng;
	const struct jit_row *rows;
	unsigned copies, wrong, *reported; /* by row */
	/* Of the copy that is looked at. */
	const uint8_t *bytes;
	struct x86_insn insn;
	uint8_t copy[32];
	struct jit_operands operands;
	bool is_temp[16];
	ZydisDecodedInstruction from, to;
	ZydisDecodedOperand from_op[ZYDIS_MAX_OPERAND_COUNT], op[ZYDIS_MAX_OPERAND_COUNT];
};

static void __attribute__((format(printf, 2, 3))) wrong(struct check *c, const char *format, ...)
{
	const struct x86_row *row = c->insn.row;
	char text[128];
	va_list args;

	c->wrong++;
	if (c->reported[row - x86_rows]++)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	printf("%s \"%s\" %s, %u-bit", row->encoding, row->name, row->operands, c->insn.mode);
	for (unsigned i = 0; i < c->insn.len; i++)
		printf(" %02x", c->bytes[i]);
	printf(": %s\n", text);
}

/* As lower.c gives them out. */
static void give_registers(struct check *c)
{
	const bool memory = c->operands.base;
	unsigned next = HR_10;

	memset(c->is_temp, 0, sizeof(c->is_temp));
	for (unsigned i = 0; i < c->insn.operand_count; i++) {
		const struct x86_operand *op = &c->insn.op[i];

		if (op->kind != X86_O_GPR)
			continue;
		c->operands.reg[i] = op->reg == X86_RSP ? HR_9 : op->reg;
		if (op->reg == X86_RSP)
			c->is_temp[HR_9] = true;
		if (op->reg < X86_R9 || op->reg > X86_R11)
			continue;
		c->operands.reg[i] = (uint8_t)next;
		c->is_temp[next] = true;
		next += memory ? 0 : next == HR_10;
	}
	if (memory)
		c->operands.index = next == HR_10 && c->is_temp[HR_10] ? HR_NONE : HR_10;
}

static int memory_of(const struct x86_insn *insn)
{
	for (unsigned i = 0; i < insn->operand_count; i++)
		if (insn->op[i].kind == X86_O_MEM)
			return (int)i;
	return -1;
}

static void check_memory(struct check *c, const ZydisDecodedOperand *op, int k)
{
	const uint32_t attr = c->insn.row->attr;
	const bool writable = k == 0 && (attr & (X86_A_RMW | X86_A_WRITES_MEM));
	const ZydisRegister index = c->operands.index == HR_NONE ? ZYDIS_REGISTER_NONE : ZYDIS_REGISTER_R10;

	if (op->mem.type != ZYDIS_MEMOP_TYPE_MEM || op->mem.base != ZYDIS_REGISTER_R11 ||
		op->mem.index != index || (index && op->mem.scale != 1) || op->mem.disp.value)
		wrong(c, "other memory");
	if (op->mem.segment == ZYDIS_REGISTER_GS || op->mem.segment == ZYDIS_REGISTER_FS)
		wrong(c, "the host's segment");
	if (k >= 0 && op->size > c->insn.op[k].size * 8u)
		wrong(c, "touches %u bits, %u bytes are checked", op->size, c->insn.op[k].size);
	if ((op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && !writable)
		wrong(c, "writes memory that is checked for reading");
}

static void check_register(struct check *c, const ZydisDecodedOperand *op)
{
	const ZydisRegister wide = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, op->reg.value);

	if (ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_FLAGS)
		return;
	if (wide == ZYDIS_REGISTER_RSP)
		wrong(c, "uses RSP");
	for (unsigned r = HR_9; r <= HR_11; r++)
		if (wide == ZYDIS_REGISTER_RAX + r && !c->is_temp[r])
			wrong(c, "uses R%u", r);
}

static void check_operands(struct check *c)
{
	unsigned count = 0;

	for (unsigned i = 0; i < c->to.operand_count; i++) {
		const ZydisDecodedOperand *op = &c->op[i];

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
			check_register(c, op);
		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			check_memory(c, op, memory_of(&c->insn));
			count++;
		}
		if (i < c->from.operand_count && op->type != c->from_op[i].type)
			wrong(c, "operand %u is of another kind", i);
		else if (i < c->from.operand_count && op->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
			op->size != c->from_op[i].size)
			wrong(c, "operand %u has %u bits, the original's %u", i, op->size, c->from_op[i].size);
	}
	if (count != (memory_of(&c->insn) >= 0))
		wrong(c, "%u memory operands", count);
}

/* Instructions of those classes that do not ask for alignment, or raise no exception. */
static bool is_in(const char *name, const char *const *names, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (!strcmp(name, names[i]))
			return true;
	return false;
}

static void check_faults(struct check *c)
{
	static const char *const unaligned[] = {"movups", "movupd", "movdqu", "lddqu"};
	static const char *const quiet[] = {"movss", "movsd", "movddup", "cvtdq2pd", "vcvtdq2pd", "cvtpi2pd"};
	const char *name = c->insn.row->name;
	const uint32_t attr = c->insn.row->attr;
	const int k = memory_of(&c->insn);
	const ZydisExceptionClass class = c->to.meta.exception_class;

	if (c->to.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED)
		wrong(c, "privileged");
	if (k >= 0 && c->insn.op[k].size >= 16 && !(c->insn.prefix & X86_P_VEX) && !(attr & X86_A_ALIGN) &&
		c->insn.row->feature != X86_F_SHA && c->insn.fn != x86_sem_cmpxchg16b &&
		!is_in(name, unaligned, ARRAY_SIZE(unaligned)))
		wrong(c, "may ask for alignment");
	if (k >= 0 && class == ZYDIS_EXCEPTION_CLASS_AVX1 && !(attr & X86_A_ALIGN))
		wrong(c, "asks for alignment");
	if ((class == ZYDIS_EXCEPTION_CLASS_SSE2 || class == ZYDIS_EXCEPTION_CLASS_SSE3 ||
		    class == ZYDIS_EXCEPTION_CLASS_AVX2 || class == ZYDIS_EXCEPTION_CLASS_AVX3 ||
		    class == ZYDIS_EXCEPTION_CLASS_AVX11) &&
		!(attr & X86_A_MXCSR) && !is_in(name, quiet, ARRAY_SIZE(quiet)))
		wrong(c, "may raise a SIMD exception (class %d)", class);
}

static void check_copy(struct check *c, const struct jit_row *row)
{
	struct emit e = {.p = c->copy, .end = c->copy + sizeof(c->copy)};

	c->operands = (struct jit_operands){.base = memory_of(&c->insn) >= 0 ? HR_11 : 0};
	give_registers(c);
	if (!jit_rewrite(&e, row, &c->insn, c->bytes, &c->operands))
		return;
	c->copies++;
	const size_t bytes = (size_t)(e.p - c->copy);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&c->decoder[c->insn.mode == 64], c->bytes, c->insn.len, &c->from,
		    c->from_op)))
		return; /* other tests compare what is an instruction */
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&c->decoder[1], c->copy, bytes, &c->to, c->op)) ||
		c->to.length != bytes) {
		wrong(c, "the copy is none");
		return;
	}
	if (c->to.mnemonic != c->from.mnemonic)
		wrong(c, "the copy is %s", ZydisMnemonicGetString(c->to.mnemonic));
	if (!(c->from.attributes & ZYDIS_ATTRIB_HAS_LOCK) != !(c->to.attributes & ZYDIS_ATTRIB_HAS_LOCK))
		wrong(c, "LOCK is not as it was");
	check_operands(c);
	check_faults(c);
}

static void check_row(struct check *c, unsigned i)
{
	const struct x86_form *form = &x86_index_get()->forms[i];
	const struct jit_row *row = &c->rows[i];

	if (row->kind == JIT_NATIVE && !x86_native_host_has(x86_rows[i].feature)) {
		printf("%s %s: copied, but this processor lacks it\n", x86_rows[i].encoding, x86_rows[i].name);
		c->wrong++;
	}
	for (unsigned n = 0; n < TRIES; n++) {
		const unsigned mode = encode_mode(form, &c->rng);
		struct encoding e;

		encode_form(&e, form, mode, &c->rng);
		c->bytes = e.bytes;
		if (mode == 16 || x86_decode(&c->insn, e.bytes, ENCODE_BYTES, mode, false, NULL) ||
			c->insn.row != &x86_rows[i] || c->insn.asize == 2)
			continue;
		if (row->kind == JIT_BIT ? c->insn.op[0].kind != X86_O_GPR : row->kind != JIT_NATIVE)
			continue;
		/* INC and DEC of one byte are not copied (lower_short_inc). */
		if (!(x86_rows[i].attr & X86_A_NO64 && row->plus_reg))
			check_copy(c, row);
	}
}

static void test_copies(void **state)
{
	struct check c = {.rng = {0x1234567}, .rows = jit_rows()};

	c.reported = calloc(x86_row_count, sizeof(*c.reported));
	assert_non_null(c.reported);
	assert_non_null(c.rows);
	ZydisDecoderInit(&c.decoder[0], ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
	ZydisDecoderInit(&c.decoder[1], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	for (unsigned i = 0; i < x86_row_count; i++)
		check_row(&c, i);
	free(c.reported);
	print_message("%u copies\n", c.copies);
	assert_true(c.copies > 100000);
	assert_int_equal(c.wrong, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_copies),
	};

	return cmocka_run_group_tests_name("copies", tests, NULL, NULL);
}
