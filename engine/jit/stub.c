/*
 * The stubs: code that each vCPU's cache begins with, which translated code calls and jumps to. All of
 * them move between two worlds: the guest's registers in the host's (RSP at the vCPU), and C with its own
 * stack and everything of the guest in cpu.s.
 */
#include "engine/jit/jit.h"

#define CTX(member)  offsetof(struct engine_vcpu, member)
#define CTX_REG(i)   CTX(soft.cpu.s.reg[i])
#define CTX_VEC(i)   CTX(soft.cpu.s.fpu.vec[i])
#define HOST_MXCSR   0x1f80u
#define MOV_STORE    (0x89 | EM_W)
#define MOV_LOAD     (0x8b | EM_W)

/* ---- flags ---- */

void jit_flags_keep(struct emit *e)
{
	emit_mov_rr(e, HR_10, HR_AX);
	EMIT_LITERAL(e, "\x9f\x0f\x90\xc0"); /* lahf; seto al */
	emit_ctx(e, 0x89 | EM_66, HR_AX, CTX(flags_kept));
	emit_mov_rr(e, HR_AX, HR_10);
}

static void flags_load(struct emit *e)
{
	emit_ctx(e, 0xb7 | EM_0F, HR_AX, CTX(flags_kept)); /* movzx eax, word */
	EMIT_LITERAL(e, "\x04\x7f\x9e");		   /* add al, 0x7f: OF; sahf */
}

void jit_flags_restore(struct emit *e)
{
	emit_mov_rr(e, HR_10, HR_AX);
	flags_load(e);
	emit_mov_rr(e, HR_AX, HR_10);
}

void jit_flags_restore_slowly(struct emit *e)
{
	emit_ctx(e, MOV_STORE, HR_AX, CTX(scratch));
	flags_load(e);
	emit_ctx(e, MOV_LOAD, HR_AX, CTX(scratch));
}

/* ---- all registers ---- */

static bool in_host_register(unsigned reg)
{
	return reg != X86_RSP && !(reg >= X86_R9 && reg <= X86_R11);
}

static void registers(struct emit *e, unsigned op)
{
	for (unsigned i = 0; i < 16; i++)
		if (in_host_register(i))
			emit_ctx(e, op, i, CTX_REG(i));
	emit_ctx(e, op, HR_9, CTX_REG(X86_RSP));
}

/* After the registers were stored: RAX is free. */
static void flags_keep_spilled(struct emit *e)
{
	EMIT_LITERAL(e, "\x9f\x0f\x90\xc0");
	emit_ctx(e, 0x89 | EM_66, HR_AX, CTX(flags_kept));
}

static void load_all(struct emit *e)
{
	flags_load(e);
	registers(e, MOV_LOAD);
}

/* ---- vectors: called, so that the context is 8 bytes above RSP ---- */

enum { VEC_STORE = 0x11, VEC_LOAD = 0x10, VEC_YMM = 4 /* VEX.L */ };

static void vec_moves(struct emit *e, unsigned op, unsigned length)
{
	for (unsigned i = 0; i < 16; i++) {
		emit8(e, 0xc5);
		emit8(e, (i < 8 ? 0xf8 : 0x78) | length);
		emit8(e, op);
		emit_address(e, i, HR_SP, HR_NONE, 0, (int32_t)CTX_VEC(i) + 8);
	}
}

/* ZF: all upper halves are zero. Clobbers XMM0. */
static void test_upper_halves(struct emit *e)
{
	EMIT_LITERAL(e, "\xc5\xf9\xef\xc0"); /* vpxor xmm0, xmm0, xmm0 */
	for (unsigned i = 0; i < 16; i++) {
		EMIT_LITERAL(e, "\xc5\xf9\xeb"); /* vpor xmm0, xmm0, [context] */
		emit_address(e, 0, HR_SP, HR_NONE, 0, (int32_t)CTX_VEC(i) + 16 + 8);
	}
	EMIT_LITERAL(e, "\xc4\xe2\x79\x17\xc0"); /* vptest xmm0, xmm0 */
}

static void mxcsr(struct emit *e, unsigned digit, size_t offset)
{
	emit_ctx(e, 0xae | EM_0F, digit, offset + 8);
}

static uint8_t *make_vec_save(struct engine_vcpu *v, struct emit *e)
{
	uint8_t *start = e->p;

	vec_moves(e, VEC_STORE, VEC_YMM);
	mxcsr(e, 3, CTX(soft.cpu.s.fpu.mxcsr));
	EMIT_LITERAL(e, "\xc5\xf8\x77"); /* vzeroupper */
	emit_ctx(e, 0xc7, 0, CTX(scratch) + 8);
	emit32(e, HOST_MXCSR);
	mxcsr(e, 2, CTX(scratch));
	emit8(e, 0xc3);
	return start;
}

/*
 * Upper halves that are zero must be so in a way that the processor knows of: else each SSE instruction of the guest
 * would wait for its destination's old value, and a loop run at a third of its speed.
 */
static void vec_fill(struct emit *e)
{
	emit_ctx(e, MOV_STORE, HR_AX, CTX(scratch) + 8);
	EMIT_LITERAL(e, "\x9f\x0f\x90\xc0"); /* lahf; seto al */
	test_upper_halves(e);
	uint8_t *used = emit_jump(e, EM_JCC(CC_NE), NULL);
	vec_moves(e, VEC_LOAD, 0);
	uint8_t *done = emit_jump(e, EM_JMP, NULL);
	emit_patch(used, e->p);
	vec_moves(e, VEC_LOAD, VEC_YMM);
	emit_patch(done, e->p);
	EMIT_LITERAL(e, "\x04\x7f\x9e"); /* add al, 0x7f; sahf */
	emit_ctx(e, MOV_LOAD, HR_AX, CTX(scratch) + 8);
}

static void make_vec_load(struct engine_vcpu *v, struct emit *e)
{
	v->stub.vec_ready = jit_rx(v, e->p);
	emit8(e, 0xc3);
	v->stub.vec_load = jit_rx(v, e->p);
	vec_fill(e);
	mxcsr(e, 2, CTX(soft.cpu.s.fpu.mxcsr));
	emit_ctx(e, 0xc6, 0, CTX(vec_live) + 8);
	emit8(e, 1);
	emit_mov_imm64(e, HR_11, (uintptr_t)v->stub.vec_ready);
	emit_ctx(e, MOV_STORE, HR_11, CTX(vec_entry) + 8);
	emit8(e, 0xc3);
}

/* If vectors are live, call `stub`. */
static void if_live_call(struct emit *e, const uint8_t *stub)
{
	emit_ctx(e, 0x80, 7, CTX(vec_live));
	emit8(e, 0);
	emit8(e, 0x74); /* je over the call */
	emit8(e, 5);
	emit_jump(e, EM_CALL, stub);
}

/* ---- leaving and entering ---- */

#define SAVED_REGISTERS "\x5d\x5b\x41\x5c\x41\x5d\x41\x5e\x41\x5f" /* pop rbp rbx r12 r13 r14 r15 */

static uint8_t *make_leave(struct emit *e)
{
	uint8_t *start = e->p;

	emit_ctx(e, MOV_LOAD, HR_SP, CTX(host_rsp));
	EMIT_LITERAL(e, "\x48\x83\xc4\x08"); /* add rsp, 8 */
	EMIT_LITERAL(e, SAVED_REGISTERS);
	emit8(e, 0xc3);
	return start;
}

static void make_enter(struct engine_vcpu *v, struct emit *e)
{
	const void *rx = jit_rx(v, e->p);

	memcpy(&v->stub.enter, &rx, sizeof(rx));
	EMIT_LITERAL(e, "\x41\x57\x41\x56\x41\x55\x41\x54\x53\x55"); /* push r15 r14 r13 r12 rbx rbp */
	EMIT_LITERAL(e, "\x48\x83\xec\x08");			     /* sub rsp, 8 */
	emit_rm(e, MOV_STORE, HR_SP, HR_DI, HR_NONE, 0, (int32_t)CTX(host_rsp));
	emit_mov_rr(e, HR_SP, HR_DI);
	emit_ctx(e, MOV_STORE, HR_SI, CTX(return_to));
	load_all(e);
	emit_ctx(e, 0xff, 4, CTX(return_to)); /* jmp */
}

static void leave_with(struct emit *e, enum jit_exit_kind kind, const uint8_t *leave)
{
	emit_mov_imm32(e, HR_AX, kind);
	emit_jump(e, EM_JMP, leave);
}

/* R10 = the exit's argument. */
static uint8_t *make_exit(struct emit *e, enum jit_exit_kind kind, bool flags_native,
	const uint8_t *vec_save, const uint8_t *leave)
{
	uint8_t *start = e->p;

	registers(e, MOV_STORE);
	if (flags_native)
		flags_keep_spilled(e);
	emit_ctx(e, MOV_STORE, HR_10, CTX(exit_arg));
	if_live_call(e, vec_save);
	leave_with(e, kind, leave);
	return start;
}

/* R11 = the place of the target R10 in the branch cache. */
static void branch_place(struct emit *e)
{
	EMIT_LITERAL(e, "\xc4\x62\xaa\xf5"); /* pext r11, r10, [context] */
	emit_address(e, HR_11, HR_SP, HR_NONE, 0, (int32_t)CTX(branch_mask));
}

void jit_branch(struct emit *e, unsigned mode)
{
	branch_place(e);
	emit_rm(e, 0xff | EM_GS, 4, HR_NONE, HR_11, 3,
		jit_tables(mode) + (int32_t)offsetof(struct x86_tlb, branch_code));
}

/* ---- slow paths: R10D = the site; called ---- */

/* All that slow paths have put by. */
static void reload(struct engine_vcpu *v, struct emit *e)
{
	if_live_call(e, (const uint8_t *)v->stub.vec_load - codebuf_delta(&v->cache.code));
	load_all(e);
}

static uint8_t *make_slow(struct engine_vcpu *v, struct emit *e, bool flags_native,
	const uint8_t *vec_save, const uint8_t *leave)
{
	uint8_t *start = e->p;

	EMIT_LITERAL(e, "\x41\x5b"); /* pop r11 */
	emit_ctx(e, MOV_STORE, HR_11, CTX(return_to));
	registers(e, MOV_STORE);
	if (flags_native)
		flags_keep_spilled(e);
	if_live_call(e, vec_save);
	emit_mov_rr(e, HR_DI, HR_SP);
	emit_rr(e, 0x89, HR_10, HR_SI);
	emit_ctx(e, MOV_LOAD, HR_SP, CTX(host_rsp));
	emit_mov_imm64(e, HR_AX, (uintptr_t)jit_slow);
	EMIT_LITERAL(e, "\xff\xd0"); /* call rax */
	emit_mov_imm64(e, HR_SP, (uintptr_t)v);
	EMIT_LITERAL(e, "\x85\xc0"); /* test eax, eax */
	uint8_t *done = emit_jump(e, EM_JCC(CC_E), NULL);
	EMIT_LITERAL(e, "\x83\xf8"); /* cmp eax */
	emit8(e, JIT_SLOW_BRANCH);
	uint8_t *branch = emit_jump(e, EM_JCC(CC_E), NULL);
	leave_with(e, JIT_EXIT_STATUS, leave);
	emit_patch(done, e->p);
	reload(v, e);
	emit_ctx(e, 0xff, 6, CTX(return_to)); /* push; ret: the call is matched by a return */
	emit8(e, 0xc3);
	emit_patch(branch, e->p);
	/* The privilege may be another one, so the tables are those that the processor knows. */
	emit_ctx(e, MOV_LOAD, HR_10, CTX_REG(X86_RIP));
	branch_place(e);
	emit_ctx(e, MOV_LOAD, HR_AX, CTX(soft.cpu.tlb_now));
	emit_rm(e, MOV_LOAD, HR_AX, HR_AX, HR_11, 3, (int32_t)offsetof(struct x86_tlb, branch_code));
	emit_ctx(e, MOV_STORE, HR_AX, CTX(return_to));
	reload(v, e);
	emit_ctx(e, MOV_LOAD, HR_10, CTX_REG(X86_RIP));
	branch_place(e);
	emit_ctx(e, 0xff, 4, CTX(return_to)); /* jmp */
	return start;
}

void jit_stubs_make(struct engine_vcpu *v, struct emit *e)
{
	const uint8_t *leave = make_leave(e), *save = make_vec_save(v, e);

	make_vec_load(v, e);
	make_enter(v, e);
	v->stub.exit_link = make_exit(e, JIT_EXIT_LINK, true, save, leave);
	v->stub.exit_poll = make_exit(e, JIT_EXIT_POLL, false, save, leave);
	v->stub.exit_step = make_exit(e, JIT_EXIT_STEP, false, save, leave);
	v->stub.branch_miss = make_exit(e, JIT_EXIT_BRANCH, false, save, leave);
	v->stub.slow_native = make_slow(v, e, true, save, leave);
	v->stub.slow_kept = make_slow(v, e, false, save, leave);
	v->vec_entry = v->stub.vec_load;
}
