/*
 * Instructions as text, Intel syntax: for logs, traces and the differ. Mnemonics follow the SDM, which
 * has several for some rows of the table (CBW, CWDE, CDQE): operand or address size chooses.
 *
 * Left out on purpose: anything an assembler would need to give back the same bytes.
 */
#include "isa/x86/insn.h"

#include "base/util.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

struct text {
	char *buf;
	size_t size, len;
};

static void __attribute__((format(printf, 2, 3))) put(struct text *t, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	if (t->len < t->size) {
		int n = vsnprintf(t->buf + t->len, t->size - t->len, format, args);
		t->len += n > 0 ? (size_t)n : 0;
	}
	va_end(args);
}

/* ---- mnemonics ---- */

enum choice { BY_OSIZE, BY_ASIZE, BY_WIDE };

/* Names by size 2, 4, 8; BY_WIDE: the last with REX.W. */
static const struct mnemonic {
	const char *row;
	enum choice choice;
	const char *by_size[3];
} mnemonics[] = {
	{"cbw", BY_OSIZE, {"cbw", "cwde", "cdqe"}},
	{"cwd", BY_OSIZE, {"cwd", "cdq", "cqo"}},
	{"pusha", BY_OSIZE, {"pusha", "pushad", "pushad"}},
	{"popa", BY_OSIZE, {"popa", "popad", "popad"}},
	{"pushf", BY_OSIZE, {"pushf", "pushfd", "pushfq"}},
	{"popf", BY_OSIZE, {"popf", "popfd", "popfq"}},
	{"iret", BY_OSIZE, {"iret", "iretd", "iretq"}},
	{"jrcxz", BY_ASIZE, {"jcxz", "jecxz", "jrcxz"}},
	{"jcxz", BY_ASIZE, {"jcxz", "jecxz", "jrcxz"}},
	{"fxsave", BY_WIDE, {"fxsave", "fxsave", "fxsave64"}},
	{"fxrstor", BY_WIDE, {"fxrstor", "fxrstor", "fxrstor64"}},
	{"xsave", BY_WIDE, {"xsave", "xsave", "xsave64"}},
	{"xsaveopt", BY_WIDE, {"xsaveopt", "xsaveopt", "xsaveopt64"}},
	{"xsavec", BY_WIDE, {"xsavec", "xsavec", "xsavec64"}},
	{"xsaves", BY_WIDE, {"xsaves", "xsaves", "xsaves64"}},
	{"xrstor", BY_WIDE, {"xrstor", "xrstor", "xrstor64"}},
	{"xrstors", BY_WIDE, {"xrstors", "xrstors", "xrstors64"}},
	{"movs", BY_OSIZE, {"movsw", "movsd", "movsq"}},
	{"cmps", BY_OSIZE, {"cmpsw", "cmpsd", "cmpsq"}},
	{"stos", BY_OSIZE, {"stosw", "stosd", "stosq"}},
	{"lods", BY_OSIZE, {"lodsw", "lodsd", "lodsq"}},
	{"scas", BY_OSIZE, {"scasw", "scasd", "scasq"}},
	{"ins", BY_OSIZE, {"insw", "insd", "insd"}},
	{"outs", BY_OSIZE, {"outsw", "outsd", "outsd"}},
};

static const char *mnemonic_by_size(const struct x86_insn *insn, const struct mnemonic *m)
{
	switch (m->choice) {
	case BY_OSIZE: return m->by_size[insn->osize / 4];
	case BY_ASIZE: return m->by_size[insn->asize / 4];
	default: return m->by_size[insn->rex & 8 ? 2 : 0];
	}
}

static bool is_string(const struct x86_insn *insn)
{
	return insn->row->attr & X86_A_REP;
}

static void put_mnemonic(struct text *t, const struct x86_insn *insn)
{
	const char *name = insn->row->name;
	bool bytes = is_string(insn) && !(insn->opcode & 1);
	for (unsigned i = 0; i < ARRAY_SIZE(mnemonics) && !bytes; i++) {
		if (strcasecmp(name, mnemonics[i].row) == 0) {
			put(t, "%s", mnemonic_by_size(insn, &mnemonics[i]));
			return;
		}
	}
	for (; *name; name++)
		put(t, "%c", tolower((unsigned char)*name));
	if (bytes)
		put(t, "b");
}

static void put_prefixes(struct text *t, const struct x86_insn *insn)
{
	if (insn->prefix & X86_P_LOCK)
		put(t, "lock ");
	if (is_string(insn) && insn->prefix & X86_P_REP)
		put(t, insn->row->flags_out[0] ? "repe " : "rep ");
	if (is_string(insn) && insn->prefix & X86_P_REPNE)
		put(t, "repne ");
}

/* ---- operands ---- */

static void put_gpr(struct text *t, unsigned reg, unsigned size)
{
	static const char *const names[] = {"ax", "cx", "dx", "bx", "sp", "bp", "si", "di"};
	if (reg == X86_RIP)
		put(t, size == 8 ? "rip" : "eip");
	else if (reg >= X86_R8)
		put(t, "r%u%s", reg, size == 1 ? "b" : size == 2 ? "w" : size == 4 ? "d" : "");
	else if (size == 1)
		put(t, reg < 4 ? "%.1sl" : "%sl", names[reg]);
	else
		put(t, "%s%s", size == 2 ? "" : size == 4 ? "e" : "r", names[reg]);
}

/* Is the vector index of a gather a YMM register? Not if the data are wider than the indexes. */
static bool gather_index_is_wide(const struct x86_insn *insn)
{
	return insn->vl == 32 && (insn->opcode & 1 || !(insn->rex & 8));
}

static void put_index(struct text *t, const struct x86_insn *insn)
{
	if (insn->row->attr & X86_A_VSIB)
		put(t, "%cmm%u", gather_index_is_wide(insn) ? 'y' : 'x', insn->index);
	else
		put_gpr(t, insn->index, insn->asize);
	if (insn->scale)
		put(t, "*%u", 1u << insn->scale);
}

static void put_displacement(struct text *t, const struct x86_insn *insn, bool alone)
{
	int64_t disp = insn->disp;
	if (!alone && disp)
		put(t, "%c0x%llx", disp < 0 ? '-' : '+',
			(unsigned long long)(disp < 0 ? -disp : disp));
	else if (alone)
		put(t, "0x%llx",
			(unsigned long long)((uint64_t)disp & (~0ull >> (64 - insn->asize * 8))));
}

static void put_address(struct text *t, const struct x86_insn *insn, const struct x86_operand *op)
{
	if (op->reg) {
		put_gpr(t, op->reg, insn->asize);
		return;
	}
	bool alone = insn->base == X86_ZERO && insn->index == X86_ZERO;
	if (insn->base != X86_ZERO)
		put_gpr(t, insn->base, insn->asize);
	if (insn->base != X86_ZERO && insn->index != X86_ZERO)
		put(t, "+");
	if (insn->index != X86_ZERO)
		put_index(t, insn);
	if (alone && insn->asize == 8 && strchr(insn->row->operands, 'O'))
		put(t, "0x%llx", (unsigned long long)insn->imm);
	else
		put_displacement(t, insn, alone);
}

static void put_memory(struct text *t, const struct x86_insn *insn, const struct x86_operand *op)
{
	static const char *const segs[] = {"es:", "cs:", "ss:", "ds:", "fs:", "gs:"};
	static const struct {
		uint8_t size;
		const char *name;
	} sizes[] = {
		{1, "byte ptr "},
		{2, "word ptr "},
		{4, "dword ptr "},
		{6, "fword ptr "},
		{8, "qword ptr "},
		{10, "tbyte ptr "},
		{16, "xmmword ptr "},
		{32, "ymmword ptr "},
	};
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		if (sizes[i].size == op->size)
			put(t, "%s", sizes[i].name);
	}
	if (op->reg == X86_RDI)
		put(t, "%s", segs[X86_ES]);
	else if (insn->prefix & X86_P_SEG)
		put(t, "%s", segs[insn->seg]);
	put(t, "[");
	put_address(t, insn, op);
	put(t, "]");
}

static void put_immediate(struct text *t, const struct x86_insn *insn, const struct x86_operand *op)
{
	uint64_t value = op->reg ? insn->imm2 : insn->imm;
	if (op->size && op->size < 8)
		value &= (1ull << op->size * 8) - 1;
	put(t, "0x%llx", (unsigned long long)value);
}

static void put_target(
	struct text *t, const struct x86_insn *insn, const struct x86_operand *op, uint64_t rip)
{
	uint64_t target = rip + insn->len + insn->imm;
	if (op->size < 8)
		target &= (1ull << op->size * 8) - 1;
	put(t, "0x%llx", (unsigned long long)target);
}

static void put_operand(
	struct text *t, const struct x86_insn *insn, const struct x86_operand *op, uint64_t rip)
{
	static const char segs[] = "ecsdfg";
	switch (op->kind) {
	case X86_O_GPR: put_gpr(t, op->reg, op->size); break;
	case X86_O_GPR8H: put(t, "%ch", "acdb"[op->reg & 3]); break;
	case X86_O_MEM: put_memory(t, insn, op); break;
	case X86_O_IMM: put_immediate(t, insn, op); break;
	case X86_O_REL: put_target(t, insn, op, rip); break;
	case X86_O_FAR: put(t, "0x%x:0x%llx", insn->imm2, (unsigned long long)insn->imm); break;
	case X86_O_SEG: put(t, "%cs", segs[op->reg]); break;
	case X86_O_CR: put(t, "cr%u", op->reg); break;
	case X86_O_DR: put(t, "dr%u", op->reg); break;
	case X86_O_MMX: put(t, "mm%u", op->reg); break;
	case X86_O_VEC: put(t, "%cmm%u", op->size > 16 ? 'y' : 'x', op->reg); break;
	case X86_O_ST: put(t, "st(%u)", op->reg); break;
	default: break;
	}
}

char *x86_format(const struct x86_insn *insn, uint64_t rip, char *buf, size_t size)
{
	struct text t = {.buf = buf, .size = size};
	if (size)
		buf[0] = 0;
	if (!insn->row) {
		put(&t, "(bad)");
		return buf;
	}
	put_prefixes(&t, insn);
	put_mnemonic(&t, insn);
	for (unsigned i = 0; i < insn->operand_count; i++) {
		put(&t, i ? ", " : " ");
		put_operand(&t, insn, &insn->op[i], rip);
	}
	return buf;
}
