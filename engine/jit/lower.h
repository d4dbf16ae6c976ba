/*
 * What the lowerings (lower_*.c) share. See lower.c. `i` is an instruction's place in the block. A lowering that
 * returns bool and says false has emitted nothing: the instruction becomes a call of its semantic function.
 */
#ifndef LODGE_ENGINE_JIT_LOWER_H
#define LODGE_ENGINE_JIT_LOWER_H

#include "engine/jit/translate.h"

/* The host register of a guest register that has one. */
static inline unsigned host_of(unsigned guest)
{
	return guest == X86_RSP ? HR_9 : guest;
}

/* Does it live in cpu.s.reg[] only? */
static inline bool spilled(unsigned guest)
{
	return guest >= X86_R9 && guest <= X86_R11;
}

/* Operand size of an address or a stack slot. */
static inline unsigned wide(const struct translation *t)
{
	return t->mode64 ? EM_W : 0;
}

static inline const struct jit_row *row_of(const struct translation *t, unsigned i)
{
	return jit_row_of(t->v->rows, &t->insn[i]);
}

static inline unsigned stack_bytes(const struct translation *t)
{
	return t->mode64 ? 8 : 4;
}

/* Where a relative branch leads: a page offset, or one outside. */
static inline int64_t target_of(const struct translation *t, unsigned i)
{
	return (int64_t)t->offset[i + 1] + (int64_t)t->insn[i].imm;
}

static inline bool in_page(int64_t target)
{
	return target >= 0 && target < (int64_t)GUEST_PAGE_SIZE;
}

/* ---- flags, sites, slow paths (lower.c) ---- */

/* The host's flags are about to become junk: keep them if some are live. */
void jit_clobber_flags(struct translation *t, uint16_t live);
/* The host's flags must be the guest's. */
void jit_want_flags(struct translation *t);
/* Flags that somebody may read, apart from what instruction i writes; what it writes; whether the host's must be
 * the guest's when it runs, as it reads some or changes but a part. */
uint16_t jit_live_before(const struct translation *t, unsigned i);
uint16_t jit_written_of(const struct translation *t, unsigned i);
bool jit_needs_flags(const struct translation *t, unsigned i);
/* A slow path begins before the address is made; jumps to it, five at most, until nothing is committed; it comes
 * back where it ends. */
struct jit_site *jit_make_site(struct translation *t, unsigned i);
struct slow *jit_slow_begin(struct translation *t, unsigned i);
void jit_slow_jump(struct translation *t, struct slow *slow, unsigned condition);
void jit_slow_end(struct translation *t, struct slow *slow);
/* `done` instructions of the block were executed, where they are counted. Uses R10. */
void jit_emit_count(struct translation *t, unsigned done);
void jit_emit_count_to(struct translation *t, struct emit *e, unsigned done);

/* ---- memory (lower_memory.c) ---- */

/* Its host register, or `temp` with its value. */
unsigned jit_loaded(struct translation *t, unsigned guest, unsigned temp);
/* Can the next two make the address of its memory operand? */
bool jit_simple_address(const struct translation *t, unsigned i);
/* The effective address goes to `to` (flags stay), the linear one to R10. Both may use R10 and R11. */
void jit_emit_ea(struct translation *t, unsigned i, unsigned to);
void jit_emit_linear(struct translation *t, unsigned i, struct slow *slow);
/* R10 = linear address -> R11 = offset of its entry in each table. */
void jit_emit_index(struct emit *e);
/* R10 = linear address -> R11 = host address of its page, R10 = offset in it; or the slow path. */
void jit_emit_lookup(struct translation *t, struct slow *slow, unsigned size, enum x86_access access,
	unsigned align);

/* Where the table for this access is, from where GS is based. */
int32_t jit_table(const struct translation *t, enum x86_access access);

/* ---- spans (span.c) ---- */

void jit_plan_spans(struct translation *t);
/* The place of instruction i's access, if it is in a span: R11 is its base. May clobber flags and R10. */
bool jit_span_place(struct translation *t, unsigned i, struct place *ret_place);
/* Instruction i was lowered. */
void jit_span_behind(struct translation *t, unsigned i);
/* Where a slow path of instruction i goes on, if not behind it. */
struct leaving *jit_span_resume(struct translation *t, unsigned i);

/* ---- copies (lower_copy.c) ---- */

/* The number of its memory operand; -1: none. What is said of that operand. */
int jit_memory_operand(const struct x86_insn *insn);
bool jit_writes_memory(const struct x86_insn *insn, int k);
unsigned jit_required_alignment(const struct x86_insn *insn, unsigned size);
/* Will jit_lower_native() say true? */
bool jit_native_fits(struct translation *t, unsigned i);

bool jit_native_now(const struct translation *t, unsigned i);
bool jit_copy_fits(const struct translation *t, unsigned i);
void jit_copy_with_registers(struct translation *t, unsigned i);
bool jit_lower_native(struct translation *t, unsigned i);

/* ---- stack (lower_stack.c) ---- */

/* Will jit_lower_lea(); those of PUSH, POP, LEAVE, CALL, RET? */
bool jit_lea_fits(const struct x86_insn *insn);
bool jit_stack_fits(const struct translation *t, unsigned i);
bool jit_lower_lea(struct translation *t, unsigned i);
/* The slot, checked; NULL: of a span, which has no slow path. jit_push_end() and jit_pop_end() move RSP. */
struct slow *jit_push_begin(struct translation *t, unsigned i, struct place *ret_place);
void jit_push_end(struct translation *t);
void jit_push_scratch(struct translation *t, struct place *place);
struct slow *jit_pop_begin(struct translation *t, unsigned i, unsigned from, struct place *ret_place);
/* op reg, [place]; make R10 free that is its index. */
void jit_emit_place(struct translation *t, unsigned op, unsigned reg, const struct place *place);
void jit_free_r10(struct translation *t, struct place *place);
void jit_pop_end(struct translation *t, unsigned more);
bool jit_lower_push(struct translation *t, unsigned i);
bool jit_lower_pop(struct translation *t, unsigned i);
bool jit_lower_leave(struct translation *t, unsigned i);

/* ---- ways out (lower_branch.c) ---- */

void jit_lower_jcc(struct translation *t, unsigned i);
void jit_lower_jrcxz(struct translation *t, unsigned i);
bool jit_lower_call(struct translation *t, unsigned i);
bool jit_lower_ret(struct translation *t, unsigned i);
bool jit_lower_jmp_rm(struct translation *t, unsigned i);
bool jit_lower_call_rm(struct translation *t, unsigned i);
/* Take the branch that instruction i is. */
void jit_lower_branch(struct translation *t, unsigned i);
/* A way out to a block without spans. */
struct leaving *jit_leave_plainly(struct translation *t, int64_t target, unsigned done);

/* ---- system (lower_system.c) ---- */

void jit_lower_direction(struct translation *t, unsigned i, bool set);
void jit_lower_cli(struct translation *t, unsigned i);
bool jit_lower_sti(struct translation *t, unsigned i);
void jit_lower_swapgs(struct translation *t, unsigned i);
bool jit_lower_pushf(struct translation *t, unsigned i);
void jit_lower_rdtsc(struct translation *t, unsigned i, bool with_aux);

/* ---- arithmetic (lower_arith.c) ---- */

bool jit_lower_divide(struct translation *t, unsigned i, bool is_signed);
bool jit_lower_bit(struct translation *t, unsigned i);

#endif
