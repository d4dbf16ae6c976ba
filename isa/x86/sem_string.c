/*
 * String instructions: MOVS STOS LODS SCAS CMPS and their repetition (SDM 1 7.3.9, SDM 2 "REP").
 *
 * A call does one element, or a run of elements of one page with host memory operations. It commits
 * the registers after each, so a fault keeps the finished iterations, and returns X86_REPEAT while
 * elements are left: interrupts are polled at least once a page.
 *
 * A run is taken only where it cannot be told from single elements: forward, no wrap of the address size,
 * no segment limit in the way, both pages in the TLB, no single-step. The rest goes one by one.
 */
#include "isa/x86/sem.h"

#define SLOW_ITERATIONS_MAX 256 /* elements one by one, in one call */

/* One string instruction being executed. */
struct string {
	struct x86_cpu *cpu;
	const struct x86_insn *insn;
	uint64_t mask; /* of the address size */
	int64_t step;  /* bytes to the next element: -size with DF */
	unsigned size;
	bool repeat;
};

static struct string string_of(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->opcode & 1 ? insn->osize : 1;
	return (struct string){
		.cpu = cpu, .insn = insn, .size = size, .mask = x86_size_mask(insn->asize),
		.step = cpu->s.rflags & X86_DF ? -(int64_t)size : (int64_t)size,
		.repeat = insn->prefix & (X86_P_REP | X86_P_REPNE),
	};
}

static uint64_t source(const struct string *s)
{
	return s->cpu->s.reg[X86_RSI] & s->mask;
}

static uint64_t target(const struct string *s)
{
	return s->cpu->s.reg[X86_RDI] & s->mask;
}

static uint64_t left(const struct string *s)
{
	return s->repeat ? s->cpu->s.reg[X86_RCX] & s->mask : 1;
}

static void advance_reg(const struct string *s, unsigned reg, uint64_t count)
{
	x86_gpr_write(s->cpu, reg, s->insn->asize, s->cpu->s.reg[reg] + count * (uint64_t)s->step);
}

static void count_down(const struct string *s, uint64_t count)
{
	if (s->repeat)
		x86_gpr_write(s->cpu, X86_RCX, s->insn->asize, s->cpu->s.reg[X86_RCX] - count);
}

/* May this call do more than one element? */
static bool single_only(const struct string *s)
{
	return s->cpu->slow_path || s->cpu->s.rflags & X86_TF;
}

/*
 * Host address of a run of elements that starts at `offset`; lowers *count to what fits its page. NULL: the
 * next element must go alone.
 */
static void *run(const struct string *s, unsigned seg, uint64_t offset, enum x86_access access,
	uint64_t *count)
{
	struct x86_cpu *cpu = s->cpu;
	gva_t linear;

	if (s->step < 0 || x86_linear(cpu, seg, offset, s->size, access, &linear) != X86_OK)
		return NULL;
	uint64_t room = GUEST_PAGE_SIZE - (linear & ~GUEST_PAGE_MASK);
	uint64_t wrap = s->mask - offset;
	uint64_t fits = (wrap < room ? wrap : room) / s->size;
	*count = MIN(*count, fits);
	if (*count == 0)
		return NULL;
	unsigned bytes = (unsigned)*count * s->size;
	if (x86_linear(cpu, seg, offset, bytes, access, &linear) != X86_OK)
		return NULL;
	return x86_tlb_host(cpu, linear, bytes, access);
}

/* ---- MOVS ---- */

static enum x86_status movs_one(const struct string *s)
{
	uint64_t value;
	X86_TRY(x86_load(s->cpu, s->insn->seg, source(s), s->size, &value));
	X86_TRY(x86_store(s->cpu, X86_ES, target(s), s->size, value));
	advance_reg(s, X86_RSI, 1);
	advance_reg(s, X86_RDI, 1);
	count_down(s, 1);
	return X86_OK;
}

/* A copy onto itself, a little further on, repeats a pattern: element by element. */
static void copy_overlapping(uint8_t *to, const uint8_t *from, uint64_t bytes, unsigned size)
{
	for (uint64_t i = 0; i < bytes; i += size)
		x86_host_store(to + i, size, x86_host_load(from + i, size));
}

/* Returns the elements done, 0 if the next must go alone. */
static uint64_t movs_run(const struct string *s)
{
	uint64_t count = left(s), count2;
	const uint8_t *from = run(s, s->insn->seg, source(s), X86_READ, &count);
	count2 = count;
	uint8_t *to = from ? run(s, X86_ES, target(s), X86_WRITE, &count2) : NULL;
	if (!to)
		return 0;
	uint64_t bytes = count2 * s->size;
	if (to > from && to < from + bytes)
		copy_overlapping(to, from, bytes, s->size);
	else
		memmove(to, from, bytes);
	advance_reg(s, X86_RSI, count2);
	advance_reg(s, X86_RDI, count2);
	count_down(s, count2);
	return count2;
}

/* ---- STOS ---- */

static enum x86_status stos_one(const struct string *s)
{
	X86_TRY(x86_store(s->cpu, X86_ES, target(s), s->size, s->cpu->s.reg[X86_RAX]));
	advance_reg(s, X86_RDI, 1);
	count_down(s, 1);
	return X86_OK;
}

static void fill(uint8_t *to, uint64_t value, uint64_t bytes, unsigned size)
{
	switch (size) {
	case 1: value = (uint8_t)value * 0x0101010101010101ull; break;
	case 2: value = (uint16_t)value * 0x0001000100010001ull; break;
	case 4: value = (uint32_t)value * 0x0000000100000001ull; break;
	default: break;
	}
	if (value == (uint8_t)value * 0x0101010101010101ull) {
		memset(to, (int)(uint8_t)value, bytes);
		return;
	}
	uint64_t i = 0;
	for (; i + 8 <= bytes; i += 8)
		memcpy(to + i, &value, 8);
	memcpy(to + i, &value, bytes - i);
}

static uint64_t stos_run(const struct string *s)
{
	uint64_t count = left(s);
	uint8_t *to = run(s, X86_ES, target(s), X86_WRITE, &count);
	if (!to)
		return 0;
	fill(to, s->cpu->s.reg[X86_RAX], count * s->size, s->size);
	advance_reg(s, X86_RDI, count);
	count_down(s, count);
	return count;
}

/* ---- LODS ---- */

static enum x86_status lods_one(const struct string *s)
{
	uint64_t value;
	X86_TRY(x86_load(s->cpu, s->insn->seg, source(s), s->size, &value));
	x86_gpr_write(s->cpu, X86_RAX, s->size, value);
	advance_reg(s, X86_RSI, 1);
	count_down(s, 1);
	return X86_OK;
}

/* Only the last element of a run is seen. */
static uint64_t lods_run(const struct string *s)
{
	uint64_t count = left(s);
	const uint8_t *from = run(s, s->insn->seg, source(s), X86_READ, &count);
	if (!from)
		return 0;
	x86_gpr_write(s->cpu, X86_RAX, s->size, x86_host_load(from + (count - 1) * s->size, s->size));
	advance_reg(s, X86_RSI, count);
	count_down(s, count);
	return count;
}

/* ---- the loop ---- */

typedef enum x86_status string_one(const struct string *s);
typedef uint64_t string_run(const struct string *s);

static enum x86_status repeat(struct x86_cpu *cpu, const struct x86_insn *insn, string_one *one,
	string_run *many)
{
	struct string s = string_of(cpu, insn);

	if (!s.repeat)
		return one(&s);
	if (single_only(&s)) {
		if (left(&s))
			X86_TRY(one(&s));
		return left(&s) ? X86_REPEAT : X86_OK;
	}
	for (unsigned i = 0; left(&s); i++) {
		if (i == SLOW_ITERATIONS_MAX)
			return X86_REPEAT;
		if (many(&s))
			return left(&s) ? X86_REPEAT : X86_OK;
		X86_TRY(one(&s));
	}
	return X86_OK;
}

enum x86_status x86_sem_movs(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return repeat(cpu, insn, movs_one, movs_run);
}

enum x86_status x86_sem_stos(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return repeat(cpu, insn, stos_one, stos_run);
}

enum x86_status x86_sem_lods(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return repeat(cpu, insn, lods_one, lods_run);
}

/* ---- SCAS and CMPS: also end when ZF is not what the prefix asks for ---- */

static bool ends(const struct string *s, bool equal)
{
	return equal != !!(s->insn->prefix & X86_P_REP);
}

static enum x86_status scas_one(const struct string *s)
{
	uint64_t value, r;
	X86_TRY(x86_load(s->cpu, X86_ES, target(s), s->size, &value));
	x86_set_flags(s->cpu, x86_flags_sub(s->cpu->s.reg[X86_RAX], value, s->size, &r));
	advance_reg(s, X86_RDI, 1);
	count_down(s, 1);
	return X86_OK;
}

static uint64_t scas_run(const struct string *s)
{
	uint64_t count = left(s), i, value = 0, r;
	uint64_t wanted = x86_gpr_read(s->cpu, X86_RAX, s->size);
	const uint8_t *at = run(s, X86_ES, target(s), X86_READ, &count);
	if (!at)
		return 0;
	for (i = 0; i < count;) {
		value = x86_host_load(at + i++ * s->size, s->size);
		if (ends(s, value == wanted))
			break;
	}
	x86_set_flags(s->cpu, x86_flags_sub(wanted, value, s->size, &r));
	advance_reg(s, X86_RDI, i);
	count_down(s, i);
	return i;
}

static enum x86_status cmps_one(const struct string *s)
{
	uint64_t a, b, r;
	X86_TRY(x86_load(s->cpu, s->insn->seg, source(s), s->size, &a));
	X86_TRY(x86_load(s->cpu, X86_ES, target(s), s->size, &b));
	x86_set_flags(s->cpu, x86_flags_sub(a, b, s->size, &r));
	advance_reg(s, X86_RSI, 1);
	advance_reg(s, X86_RDI, 1);
	count_down(s, 1);
	return X86_OK;
}

static uint64_t cmps_run(const struct string *s)
{
	uint64_t count = left(s), i, a = 0, b = 0, r;
	const uint8_t *first = run(s, s->insn->seg, source(s), X86_READ, &count);
	const uint8_t *second = first ? run(s, X86_ES, target(s), X86_READ, &count) : NULL;
	if (!second)
		return 0;
	for (i = 0; i < count;) {
		a = x86_host_load(first + i * s->size, s->size);
		b = x86_host_load(second + i++ * s->size, s->size);
		if (ends(s, a == b))
			break;
	}
	x86_set_flags(s->cpu, x86_flags_sub(a, b, s->size, &r));
	advance_reg(s, X86_RSI, i);
	advance_reg(s, X86_RDI, i);
	count_down(s, i);
	return i;
}

static bool zf_ends(const struct string *s)
{
	return ends(s, s->cpu->s.rflags & X86_ZF);
}

static enum x86_status repeat_compare(struct x86_cpu *cpu, const struct x86_insn *insn, string_one *one,
	string_run *many)
{
	struct string s = string_of(cpu, insn);

	if (!s.repeat)
		return one(&s);
	for (unsigned i = 0; left(&s); i++) {
		if (i == SLOW_ITERATIONS_MAX)
			return X86_REPEAT;
		bool ran = !single_only(&s) && many(&s);
		if (!ran)
			X86_TRY(one(&s));
		if (zf_ends(&s))
			return X86_OK;
		if (ran || single_only(&s))
			return left(&s) ? X86_REPEAT : X86_OK;
	}
	return X86_OK;
}

enum x86_status x86_sem_scas(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return repeat_compare(cpu, insn, scas_one, scas_run);
}

enum x86_status x86_sem_cmps(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return repeat_compare(cpu, insn, cmps_one, cmps_run);
}
