/*
 * What the translator knows of each row of the instruction table: computed once from the table's own
 * text, so that a new row is translated (by a call of its semantic function, if nothing better) without
 * a word here.
 */
#include "engine/jit/jit.h"
#include "isa/x86/index.h"
#include "isa/x86/native_stub.h"
#include "isa/x86/semantics.h"

#include <pthread.h>
#include <stdlib.h>

#define PREFIXES (X86_C_NP | X86_C_66 | X86_C_F3 | X86_C_F2)

static struct jit_row *table;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Semantic functions that have a lowering of their own. */
static const struct {
	x86_semantic *fn;
	uint8_t kind;
} lowered[] = {
	{ x86_sem_lea, JIT_LEA },
	{ x86_sem_push, JIT_PUSH },
	{ x86_sem_pop, JIT_POP },
	{ x86_sem_leave, JIT_LEAVE },
	{ x86_sem_jmp, JIT_JMP },
	{ x86_sem_jrcxz, JIT_JRCXZ },
	{ x86_sem_call, JIT_CALL },
	{ x86_sem_jmp_rm, JIT_JMP_RM },
	{ x86_sem_call_rm, JIT_CALL_RM },
	{ x86_sem_ret, JIT_RET },
	{ x86_sem_nop, JIT_NOP },
	{ x86_sem_fence, JIT_RAW },
	{ x86_vec_zero, JIT_RAW_VECTOR },
	{ x86_sem_cld, JIT_CLD },
	{ x86_sem_std, JIT_STD },
	{ x86_cli, JIT_CLI },
	{ x86_sti, JIT_STI },
	{ x86_swapgs, JIT_SWAPGS },
	{ x86_sem_pushf, JIT_PUSHF },
	{ sem_rdtsc, JIT_RDTSC },
	{ sem_rdtscp, JIT_RDTSCP },
	{ x86_sem_div, JIT_DIV },
	{ x86_sem_idiv, JIT_IDIV },
	{ x86_sem_jo, JIT_JCC },
	{ x86_sem_jno, JIT_JCC },
	{ x86_sem_jb, JIT_JCC },
	{ x86_sem_jnb, JIT_JCC },
	{ x86_sem_jz, JIT_JCC },
	{ x86_sem_jnz, JIT_JCC },
	{ x86_sem_jbe, JIT_JCC },
	{ x86_sem_jnbe, JIT_JCC },
	{ x86_sem_js, JIT_JCC },
	{ x86_sem_jns, JIT_JCC },
	{ x86_sem_jp, JIT_JCC },
	{ x86_sem_jnp, JIT_JCC },
	{ x86_sem_jl, JIT_JCC },
	{ x86_sem_jnl, JIT_JCC },
	{ x86_sem_jle, JIT_JCC },
	{ x86_sem_jnle, JIT_JCC },
};

/* What availability of SIMD instructions or the masks of their exceptions hang on. */
static bool changes_mode(const struct x86_row *row)
{
	static x86_semantic *const fns[] = { x86_vec_mxcsr, x86_fpu_fxrstor, x86_fpu_xrstor,
		x86_fpu_xrstors };

	for (unsigned i = 0; i < ARRAY_SIZE(fns); i++)
		if (row->fn == fns[i])
			return true;
	return false;
}

static uint8_t kind_of(const struct x86_row *row)
{
	const uint32_t never = X86_A_X87 | X86_A_MMX | X86_A_VSIB | X86_A_REP | X86_A_CPL0 | X86_A_IO;

	for (unsigned i = 0; i < ARRAY_SIZE(lowered); i++)
		if (row->fn == lowered[i].fn)
			return lowered[i].kind;
	if (!(row->attr & X86_A_NATIVE) && (row->fn == x86_sem_bt || row->fn == x86_sem_bts ||
						   row->fn == x86_sem_btr || row->fn == x86_sem_btc))
		return JIT_BIT;
	if (!(row->attr & X86_A_NATIVE) || (row->attr & (never | X86_A_END)))
		return JIT_HELPER;
	/* Guests are given some instructions that the host may lack, or take for others (LZCNT). */
	if (!x86_native_host_has(row->feature))
		return JIT_HELPER;
	/* Opcodes that mean something else in the host's 64-bit code; INC and DEC have another. */
	if ((row->attr & X86_A_NO64) && row->fn != x86_sem_inc && row->fn != x86_sem_dec &&
		row->fn != x86_sem_sahf && row->fn != x86_sem_lahf)
		return JIT_HELPER;
	return JIT_NATIVE;
}

/* What copies write; all others: who knows. */
static const struct {
	x86_semantic *fn;
	uint8_t writes;
} writers[] = {
	{ x86_sem_cmp, 0 },
	{ x86_sem_test, 0 },
	{ x86_sem_bt, 0 },
	{ x86_sem_stc, 0 },
	{ x86_sem_clc, 0 },
	{ x86_sem_cmc, 0 },
	{ x86_sem_sahf, 0 },
	{ x86_sem_mov, JIT_WRITES_FIRST },
	{ x86_sem_movsx, JIT_WRITES_FIRST },
	{ x86_sem_movbe, JIT_WRITES_FIRST },
	{ x86_sem_setcc, JIT_WRITES_FIRST },
	{ x86_sem_cmov, JIT_WRITES_FIRST },
	{ x86_sem_add, JIT_WRITES_FIRST },
	{ x86_sem_adc, JIT_WRITES_FIRST },
	{ x86_sem_adcx, JIT_WRITES_FIRST },
	{ x86_sem_adox, JIT_WRITES_FIRST },
	{ x86_sem_sub, JIT_WRITES_FIRST },
	{ x86_sem_sbb, JIT_WRITES_FIRST },
	{ x86_sem_and, JIT_WRITES_FIRST },
	{ x86_sem_andn, JIT_WRITES_FIRST },
	{ x86_sem_or, JIT_WRITES_FIRST },
	{ x86_sem_xor, JIT_WRITES_FIRST },
	{ x86_sem_not, JIT_WRITES_FIRST },
	{ x86_sem_neg, JIT_WRITES_FIRST },
	{ x86_sem_inc, JIT_WRITES_FIRST },
	{ x86_sem_dec, JIT_WRITES_FIRST },
	{ x86_sem_imul2, JIT_WRITES_FIRST },
	{ x86_sem_imul3, JIT_WRITES_FIRST },
	{ x86_sem_shl, JIT_WRITES_FIRST },
	{ x86_sem_shr, JIT_WRITES_FIRST },
	{ x86_sem_sar, JIT_WRITES_FIRST },
	{ x86_sem_rol, JIT_WRITES_FIRST },
	{ x86_sem_ror, JIT_WRITES_FIRST },
	{ x86_sem_rcl, JIT_WRITES_FIRST },
	{ x86_sem_rcr, JIT_WRITES_FIRST },
	{ x86_sem_shld, JIT_WRITES_FIRST },
	{ x86_sem_shrd, JIT_WRITES_FIRST },
	{ x86_sem_shlx, JIT_WRITES_FIRST },
	{ x86_sem_shrx, JIT_WRITES_FIRST },
	{ x86_sem_sarx, JIT_WRITES_FIRST },
	{ x86_sem_rorx, JIT_WRITES_FIRST },
	{ x86_sem_bts, JIT_WRITES_FIRST },
	{ x86_sem_btr, JIT_WRITES_FIRST },
	{ x86_sem_btc, JIT_WRITES_FIRST },
	{ x86_sem_bsf, JIT_WRITES_FIRST },
	{ x86_sem_bsr, JIT_WRITES_FIRST },
	{ x86_sem_tzcnt, JIT_WRITES_FIRST },
	{ x86_sem_lzcnt, JIT_WRITES_FIRST },
	{ x86_sem_popcnt, JIT_WRITES_FIRST },
	{ x86_sem_bswap, JIT_WRITES_FIRST },
	{ x86_sem_bextr, JIT_WRITES_FIRST },
	{ x86_sem_bzhi, JIT_WRITES_FIRST },
	{ x86_sem_pext, JIT_WRITES_FIRST },
	{ x86_sem_pdep, JIT_WRITES_FIRST },
	{ x86_sem_xchg, JIT_WRITES_FIRST | JIT_WRITES_SECOND },
	{ x86_sem_xadd, JIT_WRITES_FIRST | JIT_WRITES_SECOND },
	{ x86_sem_mulx, JIT_WRITES_FIRST | JIT_WRITES_SECOND },
	{ x86_sem_cmpxchg, JIT_WRITES_FIRST | JIT_WRITES_AX_DX },
	{ x86_sem_mul, JIT_WRITES_AX_DX },
	{ x86_sem_imul1, JIT_WRITES_AX_DX },
	{ x86_sem_cbw, JIT_WRITES_AX_DX },
	{ x86_sem_cwd, JIT_WRITES_AX_DX },
	{ x86_sem_lahf, JIT_WRITES_AX_DX },
};

static uint8_t writes_of(const struct x86_row *row)
{
	for (unsigned i = 0; i < ARRAY_SIZE(writers); i++)
		if (row->fn == writers[i].fn)
			return writers[i].writes;
	/* Vector instructions that are copied write a general register only as their first operand. */
	return row->attr & (X86_A_SSE | X86_A_AVX) && row->attr & X86_A_NATIVE ? JIT_WRITES_FIRST : JIT_WRITES_ALL;
}

static void row_init(struct jit_row *r, const struct x86_row *row, const struct x86_form *form)
{
	const unsigned allowed = PREFIXES & ~form->deny;

	*r = (struct jit_row){
		.kind = kind_of(row),
		.flags_in = (uint16_t)(x86_flags_mask(row->flags_in) & X86_FLAGS_ARITH),
		.flags_kill = (uint16_t)((x86_flags_mask(row->flags_out) |
						 x86_flags_mask(row->flags_undef)) & X86_FLAGS_ARITH),
		.flags_undef = (uint16_t)(x86_flags_mask(row->flags_undef) & X86_FLAGS_ARITH),
		.checked = row->attr & X86_A_CHECKED,
		.vector = row->attr & (X86_A_SSE | X86_A_AVX),
		.leaves = (row->attr & X86_A_END) || changes_mode(row),
		.writes = writes_of(row),
		.modrm = form->flags & X86_FORM_MODRM,
		.plus_reg = form->opcode_count == 8,
		.prefix = allowed == X86_C_F3 ? 0xf3 : allowed == X86_C_F2 ? 0xf2 : 0,
	};
	for (unsigned i = 0; i < X86_OPERANDS_MAX; i++)
		r->where[i] = form->op[i].where;
}

static void make_table(void)
{
	const struct x86_index *index = x86_index_get();

	table = calloc(x86_row_count, sizeof(*table));
	if (!table)
		return;
	for (unsigned i = 0; i < x86_row_count; i++)
		row_init(&table[i], &x86_rows[i], &index->forms[i]);
}

const struct jit_row *jit_rows(void)
{
	pthread_once(&once, make_table);
	return table;
}
