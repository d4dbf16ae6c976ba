/*
 * The differential harness's interpreter half: see interp.h. Instructions go one at a time through
 * x86_fetch(), x86_check_row() and the semantic function, and the first exception ends the case
 * instead of being delivered.
 */
#include "interp.h"

#include "base/util.h"
#include "isa/x86/access.h"
#include "isa/x86/semantics.h"

#include <errno.h>
#include <stdlib.h>

#define VSYSCALL  0xffffffffff600000ull
#define STEPS_MAX 2000

const char *const diff_skip_names[DIFF_SKIPS] = {
	[DIFF_SKIP_NOTEST] = "result depends on time or on the host's set-up",
	[DIFF_SKIP_SYSCALL] = "enters the host's kernel",
	[DIFF_SKIP_VSYSCALL] = "jumps into Linux's vsyscall page",
	[DIFF_SKIP_INTERRUPT] = "goes through the host's IDT",
	[DIFF_SKIP_UMIP] = "Linux emulates it for ring 3 (UMIP)",
	[DIFF_SKIP_XCR0] = "shows the host's XCR0 or its AVX-512 state",
	[DIFF_SKIP_HOST] = "this host lacks the feature",
	[DIFF_SKIP_UNDEFINED] = "reads a flag that was left undefined",
	[DIFF_SKIP_ENDLESS] = "does not end",
	[DIFF_SKIP_EXTRA] = "the host has the instruction, the table does not",
	[DIFF_SKIP_HOST_LOOP] =
		"the host never ends, or delivers, its fault (32-bit pushes across 4 GiB)",
	[DIFF_SKIP_MODE32] = "this host's kernel runs no 32-bit code",
	[DIFF_SKIP_MXCSR] = "uses MXCSR.MM, which guests are not offered",
	[DIFF_SKIP_CPU_NODE] = "uses Linux's selector with the CPU's number",
	[DIFF_SKIP_XINUSE] = "saves AVX state that is all zero, in use or not",
	[DIFF_SKIP_PARTIAL] = "faults half-way, with registers loaded or not",
	[DIFF_SKIP_VENDOR] = "differs between Intel's and AMD's processors",
};

/* ---- environment: nothing is out there ---- */

static uint64_t env_mmio_read(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes)
{
	return ~0ull;
}
static void env_mmio_write(struct x86_cpu *cpu, gpa_t gpa, unsigned size_bytes, uint64_t value) {}
static uint32_t env_pio_read(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes)
{
	return ~0u;
}
static void env_pio_write(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes, uint32_t value)
{
}
static bool env_msr_read(struct x86_cpu *cpu, uint32_t index, uint64_t *ret_value)
{
	return false;
}
static bool env_msr_write(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
	return false;
}
static uint64_t env_tsc(struct x86_cpu *cpu)
{
	return 0;
}
static void env_adjust_tsc(struct x86_cpu *cpu, uint64_t delta) {}
static uint8_t env_cr8_read(struct x86_cpu *cpu)
{
	return 0;
}
static void env_cr8_write(struct x86_cpu *cpu, uint8_t value) {}
static void env_nothing(struct x86_cpu *cpu) {}

static const struct x86_env_ops env_ops = {
	.mmio_read = env_mmio_read,
	.mmio_write = env_mmio_write,
	.pio_read = env_pio_read,
	.pio_write = env_pio_write,
	.msr_read = env_msr_read,
	.msr_write = env_msr_write,
	.tsc = env_tsc,
	.adjust_tsc = env_adjust_tsc,
	.cr8_read = env_cr8_read,
	.cr8_write = env_cr8_write,
	.hypercall = env_nothing,
	.exclusive_begin = env_nothing,
	.exclusive_end = env_nothing,
};

int diff_interp_create(const struct diff_shared *shared, struct diff_interp **ret_interp)
{
	struct diff_interp *interp = calloc(1, sizeof(*interp));

	if (!interp)
		return -ENOMEM;
	int rc = diff_guest_init(&interp->guest, shared);
	if (rc == 0)
		rc = x86_cpu_init(
			&interp->cpu, interp->guest.memory, &interp->guest.model, &env_ops, interp);
	if (rc < 0) {
		diff_guest_done(&interp->guest);
		free(interp);
		return rc;
	}
	diff_guest_processor(&interp->cpu);
	*ret_interp = interp;
	return 0;
}

void diff_interp_free(struct diff_interp *interp)
{
	x86_cpu_done(&interp->cpu);
	diff_guest_done(&interp->guest);
	free(interp);
}

/* ---- what cannot be compared ---- */

static bool is_one_of(x86_semantic *fn, x86_semantic *const *list, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (list[i] == fn)
			return true;
	return false;
}

static enum diff_skip row_kind(const struct x86_row *row)
{
	static x86_semantic *const syscalls[] = {x86_syscall, x86_sysenter};
	static x86_semantic *const interrupts[] = {x86_int, x86_int1, x86_int3, x86_into};
	static x86_semantic *const umip[] = {x86_sgdt, x86_sidt, x86_sldt, x86_str, sem_smsw};

	if (is_one_of(row->fn, syscalls, ARRAY_SIZE(syscalls)))
		return DIFF_SKIP_SYSCALL;
	if (is_one_of(row->fn, interrupts, ARRAY_SIZE(interrupts)))
		return DIFF_SKIP_INTERRUPT;
	if (is_one_of(row->fn, umip, ARRAY_SIZE(umip)))
		return DIFF_SKIP_UMIP;
	if (row->fn == sem_xgetbv)
		return DIFF_SKIP_XCR0;
	/* Of ports only the #GP that ring 3 gets is compared. */
	if ((row->attr & X86_A_NOTEST) && !(row->attr & (X86_A_IO | X86_A_CPL0)))
		return DIFF_SKIP_NOTEST;
	return DIFF_SKIP_NONE;
}

enum diff_skip diff_row_skip(const struct diff_interp *interp, const struct x86_row *row)
{
	if (!x86_has(&interp->cpu.features, row->feature))
		return DIFF_SKIP_HOST;
	if ((row->attr & X86_A_NO64) && !interp->mode32)
		return DIFF_SKIP_MODE32;
	return row_kind(row);
}

static uint64_t linear_ea(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return x86_ea(cpu, insn) +
	       (cpu->mode == 64 && insn->seg >= X86_FS ? cpu->s.seg[insn->seg].base : 0);
}

static bool is_xsave_family(x86_semantic *fn)
{
	return fn == x86_fpu_xsave || fn == x86_fpu_xrstor || fn == x86_fpu_xsaveopt ||
	       fn == x86_fpu_xsavec;
}

/* A selector in the instruction's operand that says on which CPU we are. */
static bool reads_cpu_node(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t selector = 0;

	if (insn->fn != x86_lsl && insn->fn != x86_lar)
		return false;
	return x86_op_read(cpu, insn, 1, &selector) == X86_OK && (selector & 0xfffc) == 0x78;
}

/* Is a SHA instruction's operand unaligned? Intel's raise #GP(0), AMD's do not. */
static bool is_unaligned_sha(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return insn->row->feature == X86_F_SHA && insn->op[1].kind == X86_O_MEM &&
	       (linear_ea(cpu, insn) & 15);
}

/* FS or GS and an offset that is not canonical by itself: Intel's look at the sum with the base only, AMD's raise
 * #GP(0) all the same. Ours are Intel's. */
static bool is_wrapping_offset(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	int64_t ea = (int64_t)x86_ea(cpu, insn);

	if (insn->fn == x86_vec_maskmov) /* its operand in memory is not in the instruction */
		ea = (int64_t)(cpu->s.reg[X86_RDI] & (insn->asize == 8 ? UINT64_MAX : UINT32_MAX));
	return insn->mode == 64 && (insn->seg == X86_FS || insn->seg == X86_GS) &&
	       ea != (int64_t)((uint64_t)ea << 16) >> 16;
}

/* VPINSRD and VPEXTRD with VEX.W outside 64-bit mode: Intel's ignore W, AMD's raise #UD. The decoder has
 * dropped W by then, so look for it in the bytes. */
static bool is_wide_insert(const struct x86_insn *insn, const uint8_t *bytes)
{
	const uint8_t *vex = memchr(bytes, 0xc4, insn->len);

	return insn->mode == 32 && vex && vex[2] & 0x80 &&
	       (strcmp(insn->row->name, "vpinsrd") == 0 || strcmp(insn->row->name, "vpextrd") == 0);
}

/* Near branches with an operand-size prefix, and far pointers with REX.W, in 64-bit mode: Intel's ignore
 * the one and honour the other, AMD's the reverse. 0F 0D with a register: a NOP on Intel's, #UD on
 * AMD's. Ours are Intel's. */
static bool differs_by_vendor(const struct x86_insn *insn, const uint8_t *bytes)
{
	if (strcmp(insn->row->name, "PREFETCHW") == 0 && insn->op[0].kind == X86_O_GPR)
		return true;
	if (is_wide_insert(insn, bytes))
		return true;
	if (insn->mode != 64)
		return false;
	if ((insn->row->attr & X86_A_F64) && (insn->prefix & X86_P_OPSIZE) && !(insn->rex & 8))
		return true;
	return strstr(insn->row->operands, "Mp") && (insn->rex & 8);
}

/* LOOPE and LOOPNE with F2 or F3: AMD's take the condition from the prefix. */
static bool is_prefixed_loop(const struct x86_insn *insn)
{
	return (insn->fn == x86_sem_loope || insn->fn == x86_sem_loopne) &&
	       (insn->prefix & (X86_P_REP | X86_P_REPNE));
}

/* Is there anything but zero in the upper halves of the vectors? If not, a processor may call them in use
 * or not (SDM 1 13.6). */
static bool upper_halves(const struct x86_cpu *cpu)
{
	uint64_t any = 0;

	for (unsigned i = 0; i < (cpu->mode == 64 ? 16 : 8); i++)
		any |= cpu->s.fpu.vec[i].q[2] | cpu->s.fpu.vec[i].q[3];
	return any;
}

/* The same of the x87 state, pointers apart. */
static bool x87_is_initial(const struct x86_cpu *cpu)
{
	return cpu->s.fpu.fcw == 0x37f && !cpu->s.fpu.fsw && !cpu->s.fpu.ftw;
}

static enum diff_skip insn_skip(
	struct x86_cpu *cpu, const struct x86_insn *insn, const uint8_t *bytes)
{
	enum diff_skip skip = row_kind(insn->row);

	if (skip)
		return skip;
	if (is_xsave_family(insn->fn) && (cpu->s.reg[X86_RAX] & 0xfffffff8))
		return DIFF_SKIP_XCR0;
	if (reads_cpu_node(cpu, insn))
		return DIFF_SKIP_CPU_NODE;
	if (is_xsave_family(insn->fn) && insn->fn != x86_fpu_xrstor &&
		(!upper_halves(cpu) || x87_is_initial(cpu)))
		return DIFF_SKIP_XINUSE;
	return differs_by_vendor(insn, bytes) || is_prefixed_loop(insn) ||
			       is_wrapping_offset(cpu, insn) || is_unaligned_sha(cpu, insn)
		       ? DIFF_SKIP_VENDOR
		       : DIFF_SKIP_NONE;
}

/* ---- what is compared less than exactly ---- */

/* Do the manuals leave open in which order its memory accesses happen? */
static bool has_open_order(x86_semantic *fn)
{
	static x86_semantic *const list[] = {x86_fpu_ldenv, x86_fpu_stenv, x86_fpu_restore,
		x86_fpu_save, x86_fpu_fxsave, x86_fpu_fxrstor, x86_fpu_xsave, x86_fpu_xsavec,
		x86_fpu_xsaveopt, x86_fpu_xrstor, x86_sem_pusha, x86_sem_popa, x86_sem_enter,
		x86_retf, x86_iret, x86_call_far, x86_jmp_far};

	return is_one_of(fn, list, ARRAY_SIZE(list));
}

/*
 * What FXSAVE and its kin store and guests see otherwise: MXCSR_MASK has the host's MM (bit 17), which
 * they are not offered; and AMD's processors store the x87 pointers only while an exception is pending.
 */
static void mend_fxsave(struct diff_interp *interp, const struct x86_insn *insn, uint64_t ea,
	struct diff_notes *notes)
{
	const uint64_t at = ea - DIFF_DATA;
	const bool fxsave = insn->fn == x86_fpu_fxsave;
	uint8_t *image;
	uint32_t mask;

	if (!fxsave && insn->fn != x86_fpu_xsave && insn->fn != x86_fpu_xsaveopt &&
		insn->fn != x86_fpu_xsavec)
		return;
	if (at > DIFF_DATA_BYTES - 32)
		return;
	notes->mended = true;
	if (interp->unmended)
		return;
	image = interp->guest.data + at;
	memcpy(&mask, image + 28, 4);
	if (mask == 0xffff && (fxsave || (interp->cpu.s.reg[X86_RAX] & 6)))
		mask = 0x2ffff;
	memcpy(image + 28, &mask, 4);
	if (!(interp->cpu.s.fpu.fsw & 0x80) && (fxsave || (interp->cpu.s.reg[X86_RAX] & 1))) {
		memset(image + 6, 0, 2);
		memset(image + 8, 0, 16);
	}
}

/* ---- running ---- */

/* Flags that a count of 0 leaves alone are named as read, so this holds for shifts too. */
static bool uses_undefined(const struct x86_insn *insn, uint32_t undefined)
{
	return undefined & x86_flags_mask(insn->row->flags_in);
}

/* Was it refused because of MXCSR.MM alone? */
static bool loads_mm(const struct diff_interp *interp, const struct x86_insn *insn, uint64_t linear)
{
	const bool image = insn->fn == x86_fpu_fxrstor || insn->fn == x86_fpu_xrstor;
	const uint64_t at = linear - DIFF_DATA + (image ? 24 : 0);
	uint32_t value;

	if ((!image && insn->fn != x86_vec_mxcsr) || interp->cpu.fault.vector != X86_GP ||
		at > DIFF_DATA_BYTES - 4)
		return false;
	memcpy(&value, interp->guest.data + at, 4);
	return (value & 0xffff0000) == 0x20000;
}

/* A fault while fetching: would the whole instruction have been compared? */
static enum diff_skip fetch_skip(
	struct diff_interp *interp, const struct diff_case *c, uint64_t rip)
{
	uint8_t bytes[X86_INSN_BYTES_MAX] = {0};
	const uint64_t at = rip - c->in.rip;
	struct x86_cpu *cpu = &interp->cpu;
	struct x86_insn insn;

	if (rip - VSYSCALL < GUEST_PAGE_SIZE)
		return DIFF_SKIP_VSYSCALL;
	if (at >= c->code_bytes)
		return DIFF_SKIP_NONE;
	memcpy(bytes, c->code + at, MIN(sizeof(bytes), c->code_bytes - at));
	if (x86_decode(&insn, bytes, sizeof(bytes), cpu->mode, false, &cpu->features) !=
		X86_DECODE_OK)
		return DIFF_SKIP_NONE;
	return differs_by_vendor(&insn, bytes) ? DIFF_SKIP_VENDOR : DIFF_SKIP_NONE;
}

/* Has it so many prefixes that it may be over 15 bytes long? Without them none is longer than this. */
static bool may_be_too_long(const struct diff_interp *interp, uint64_t rip)
{
	enum { UNPREFIXED_MAX = 11 };
	const uint64_t at = rip - DIFF_CODE;
	unsigned prefixes = 0;

	if (at >= DIFF_CODE_BYTES - X86_INSN_BYTES_MAX)
		return false;
	for (const uint8_t *b = interp->guest.code + at; prefixes < X86_INSN_BYTES_MAX;
		b++, prefixes++)
		if (!memchr("\x66\x67\xf0\xf2\xf3\x2e\x26\x36\x3e\x64\x65", *b, 11) &&
			!(interp->cpu.mode == 64 && (*b & 0xf0) == 0x40))
			break;
	return prefixes + UNPREFIXED_MAX > X86_INSN_BYTES_MAX;
}

static enum x86_status step(struct diff_interp *interp, const struct diff_case *c,
	struct diff_notes *notes, enum diff_skip *skip)
{
	struct x86_cpu *cpu = &interp->cpu;
	const uint64_t rip = cpu->s.reg[X86_RIP];
	struct x86_insn insn;

	cpu->s.interrupt_shadow = cpu->s.mov_ss_shadow = false;
	notes->cr2_open = notes->checks_open = notes->mxcsr_open = false;
	if (x86_fetch(cpu, &insn) != X86_OK) {
		*skip = fetch_skip(interp, c, rip);
		notes->length_open = may_be_too_long(interp, rip);
		return *skip ? X86_STOP : X86_FAULT;
	}
	if (insn.fn == x86_int3) {
		cpu->s.reg[X86_RIP] = rip + insn.len;
		notes->instructions++;
		return X86_STOP;
	}
	cpu->s.reg[X86_RIP] = rip + insn.len;
	if (cpu->mode != 64)
		cpu->s.reg[X86_RIP] = (uint32_t)cpu->s.reg[X86_RIP];
	*skip = insn_skip(cpu, &insn, interp->guest.code + (rip - DIFF_CODE));
	if (!*skip && uses_undefined(&insn, notes->undefined))
		*skip = DIFF_SKIP_UNDEFINED;
	if (*skip)
		return X86_STOP;
	X86_TRY(x86_check_row(cpu, &insn));
	const uint64_t linear = linear_ea(cpu, &insn);
	enum x86_status status = insn.fn(cpu, &insn);
	notes->cr2_open = has_open_order(insn.fn);
	notes->mxcsr_open = strstr(insn.row->name, "dpp");
	notes->checks_open = insn.fn == x86_retf || insn.fn == x86_iret ||
			     strstr(insn.row->operands, "Mp") || strstr(insn.row->operands, "Mt") ||
			     (insn.mode == 32 && has_open_order(insn.fn));
	if (status == X86_FAULT && insn.fn == x86_sem_popa)
		*skip = DIFF_SKIP_PARTIAL;
	if (status == X86_FAULT && loads_mm(interp, &insn, linear))
		*skip = DIFF_SKIP_MXCSR;
	if (status == X86_FAULT)
		return *skip ? X86_STOP : status;
	if (status == X86_REPEAT)
		cpu->s.reg[X86_RIP] = rip;
	else
		notes->instructions++;
	mend_fxsave(interp, &insn, linear, notes);
	notes->undefined &= ~x86_flags_mask(insn.row->flags_out);
	notes->undefined |= x86_flags_mask(insn.row->flags_undef);
	return status == X86_TRIPLE ? X86_STOP : X86_OK;
}

/* To the end of the case; result: what ended it. */
static enum diff_skip run(struct diff_interp *interp, const struct diff_case *c,
	struct diff_result *r, struct diff_notes *notes)
{
	struct x86_cpu *cpu = &interp->cpu;
	enum diff_skip skip = DIFF_SKIP_NONE;
	uint64_t rip = 0;

	for (unsigned i = 0; i < STEPS_MAX; i++) {
		const bool trap = cpu->s.rflags & X86_TF;
		rip = cpu->s.reg[X86_RIP];
		enum x86_status status = step(interp, c, notes, &skip);
		if (status == X86_FAULT) {
			cpu->s.reg[X86_RIP] = rip;
			notes->instructions++;
			r->vector = cpu->fault.vector;
			r->error = cpu->fault.has_error ? cpu->fault.error : 0;
			r->cr2 = cpu->fault.address;
			return DIFF_SKIP_NONE;
		}
		if (status == X86_STOP)
			return skip;
		if (trap && !cpu->s.mov_ss_shadow) {
			r->vector = X86_DB;
			notes->instructions++; /* engines count a trap's delivery too */
			return DIFF_SKIP_NONE;
		}
	}
	return DIFF_SKIP_ENDLESS;
}

enum diff_skip diff_interp_run(struct diff_interp *interp, const struct diff_case *c,
	struct diff_result *ret_result, struct diff_notes *ret_notes)
{
	struct diff_guest *guest = &interp->guest;

	diff_guest_begin(guest, &interp->cpu, c);
	diff_place(c, guest->code, guest->data);
	memory_written(guest->memory, DIFF_GUEST_CODE, DIFF_CODE_BYTES);
	memory_written(guest->memory, DIFF_GUEST_DATA, DIFF_DATA_BYTES);
	diff_guest_load(&interp->cpu, &c->in);
	*ret_notes = (struct diff_notes){0};
	ret_result->vector = X86_BP;
	ret_result->error = 0;
	enum diff_skip skip = run(interp, c, ret_result, ret_notes);
	diff_guest_save(&interp->cpu, &ret_result->out);
	diff_collect_data(guest->shared->pattern[c->pattern], guest->data, ret_result);
	if (c->changes_code)
		diff_collect_code(guest->code, ret_result);
	diff_remove_code(c, guest->code);
	return skip;
}
