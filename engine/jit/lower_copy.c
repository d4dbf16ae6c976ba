/*
 * Lowering by copies: instructions that run on the host as they are, with other operands (rewrite.c).
 */
#include "engine/jit/lower.h"

#include "isa/x86/semantics.h"

int jit_memory_operand(const struct x86_insn *insn)
{
	for (unsigned k = 0; k < insn->operand_count; k++)
		if (insn->op[k].kind == X86_O_MEM)
			return (int)k;
	return -1;
}

bool jit_writes_memory(const struct x86_insn *insn, int k)
{
	return k == 0 && (insn->row->attr & (X86_A_RMW | X86_A_WRITES_MEM));
}

/* Registers of an instruction that live in memory, and where they are meanwhile. */
struct temps {
	unsigned count;
	uint8_t guest[2], host[2];
};

/* Gives each general-purpose operand its host register; false: too many that live in memory. */
static bool assign(const struct x86_insn *insn, bool memory, struct jit_operands *operands,
	struct temps *temps)
{
	static const uint8_t free_host[2] = { HR_10, HR_11 };
	const unsigned room = memory ? 1 : 2;

	temps->count = 0;
	for (unsigned k = 0; k < insn->operand_count; k++) {
		const struct x86_operand *op = &insn->op[k];
		unsigned n;

		if (op->kind != X86_O_GPR)
			continue;
		operands->reg[k] = (uint8_t)host_of(op->reg);
		if (!spilled(op->reg))
			continue;
		for (n = 0; n < temps->count && temps->guest[n] != op->reg; n++)
			;
		if (n == room)
			return false;
		if (n == temps->count) {
			temps->guest[n] = op->reg;
			temps->host[n] = free_host[n];
			temps->count++;
		}
		operands->reg[k] = temps->host[n];
	}
	return true;
}

static void temps_load(struct translation *t, const struct temps *temps)
{
	for (unsigned n = 0; n < temps->count; n++)
		emit_ctx(&t->e, MOV_LOAD, temps->host[n], CTX_REG(temps->guest[n]));
}

/* Storing one that did not change does no harm. */
static void temps_store(struct translation *t, const struct temps *temps)
{
	for (unsigned n = 0; n < temps->count; n++)
		emit_ctx(&t->e, MOV_STORE, temps->host[n], CTX_REG(temps->guest[n]));
}

/* Does it end in a register that is written as an operand but 0? */
static bool only_reads(const struct x86_insn *insn)
{
	x86_semantic *fn = insn->fn;

	return fn == x86_sem_cmp || fn == x86_sem_test ||
	       (insn->op[0].kind == X86_O_MEM && fn != x86_sem_xchg && fn != x86_sem_xadd);
}

unsigned jit_required_alignment(const struct x86_insn *insn, unsigned size)
{
	/* CMPXCHG16B asks for it by itself; SHA on some processors. */
	if (insn->fn == x86_sem_cmpxchg16b || insn->row->feature == X86_F_SHA)
		return size;
	return insn->row->attr & X86_A_ALIGN ? size : 1;
}

bool jit_native_now(const struct translation *t, unsigned i)
{
	const uint32_t attr = t->insn[i].row->attr;

	if ((attr & X86_A_SSE) && !(t->mode & JIT_MODE_SSE))
		return false;
	if ((attr & X86_A_AVX) && !(t->mode & JIT_MODE_AVX))
		return false;
	return !(attr & X86_A_MXCSR) || (t->mode & JIT_MODE_MASKED);
}

/* A high byte register cannot be encoded beside a register that needs a REX. */
static bool has_high_byte(const struct x86_insn *insn)
{
	for (unsigned k = 0; k < insn->operand_count; k++)
		if (insn->op[k].kind == X86_O_GPR8H)
			return true;
	return false;
}

/* Are there enough host registers for its operands, and can they be encoded? */
bool jit_copy_fits(const struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	uint8_t space[32];
	struct emit probe = { .p = space, .end = space + sizeof(space) };
	struct temps temps;
	struct jit_operands operands = { .base = HR_11, .index = HR_10 };

	if (!assign(insn, jit_memory_operand(insn) >= 0, &operands, &temps))
		return false;
	return !has_high_byte(insn) || jit_rewrite(&probe, row_of(t, i), insn, t->bytes + t->offset[i], &operands);
}

/* What its operands name is there: registers, and memory that was looked up already. */
static void copy(struct translation *t, unsigned i, bool memory, struct jit_operands operands)
{
	const struct x86_insn *insn = &t->insn[i];
	struct temps temps;

	assign(insn, memory, &operands, &temps);
	if (jit_needs_flags(t, i))
		jit_want_flags(t);
	temps_load(t, &temps);
	jit_rewrite(&t->e, row_of(t, i), insn, t->bytes + t->offset[i], &operands);
	if (!only_reads(insn))
		temps_store(t, &temps);
	if (jit_written_of(t, i))
		t->kept = false;
}

static void copy_with_memory(struct translation *t, unsigned i, int k)
{
	const struct x86_insn *insn = &t->insn[i];
	const unsigned size = insn->op[k].size;
	struct jit_operands operands = { .base = HR_11, .index = HR_10 };
	struct temps temps;
	bool flags = jit_needs_flags(t, i);
	struct place place;

	if (jit_span_place(t, i, &place)) {
		copy(t, i, true,
			(struct jit_operands){ .base = place.base, .index = place.index, .disp = place.disp });
		return;
	}
	assign(insn, true, &operands, &temps);
	jit_clobber_flags(t, jit_live_before(t, i));
	struct slow *slow = jit_slow_begin(t, i);
	jit_emit_linear(t, i, slow);
	jit_emit_lookup(t, slow, size, jit_writes_memory(insn, k) ? X86_WRITE : X86_READ,
		jit_required_alignment(insn, size));
	if (temps.count) {
		emit_rm(&t->e, 0x8d | EM_W, HR_11, HR_11, HR_10, 0, 0);
		operands.index = HR_NONE;
		temps_load(t, &temps);
	}
	if (flags)
		jit_flags_restore_slowly(&t->e);
	jit_rewrite(&t->e, row_of(t, i), insn, t->bytes + t->offset[i], &operands);
	if (!only_reads(insn))
		temps_store(t, &temps);
	if (flags || jit_written_of(t, i))
		t->kept = false;
	jit_slow_end(t, slow);
}

void jit_copy_with_registers(struct translation *t, unsigned i)
{
	copy(t, i, false, (struct jit_operands){ 0 });
}

/* INC and DEC by the one-byte opcodes that became REX. */
static void lower_short_inc(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];

	if (jit_needs_flags(t, i))
		jit_want_flags(t);
	emit_rr(&t->e, 0xff | (insn->osize == 2 ? EM_66 : 0), insn->opcode >> 3 & 1,
		host_of(insn->op[0].reg));
	t->kept = false;
}

/* RDRAND and RDSEED: from the host, or from a sequence that their semantic functions know. */
static bool may_be_native(const struct translation *t, unsigned i)
{
	return !(t->insn[i].row->attr & X86_A_NOTEST) || !t->v->soft.cpu.random;
}

static bool native_fits(const struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	const int k = jit_memory_operand(insn);

	if (!may_be_native(t, i) || !jit_native_now(t, i) || !jit_copy_fits(t, i))
		return false;
	return k < 0 || (jit_simple_address(t, i) && insn->op[k].size && insn->op[k].size <= 64);
}

bool jit_native_fits(struct translation *t, unsigned i)
{
	if (!t->fits[i])
		t->fits[i] = native_fits(t, i) ? 1 : 2;
	return t->fits[i] == 1;
}

bool jit_lower_native(struct translation *t, unsigned i)
{
	const struct x86_insn *insn = &t->insn[i];
	int k = jit_memory_operand(insn);

	if ((insn->row->attr & X86_A_NO64) && row_of(t, i)->plus_reg) {
		lower_short_inc(t, i);
		return true;
	}
	if (!jit_native_fits(t, i))
		return false;
	if (k < 0)
		jit_copy_with_registers(t, i);
	else
		copy_with_memory(t, i, k);
	return true;
}
