/*
 * What the ring-0 test does not hold against anyone: what a host is known to do otherwise than the manuals
 * say. A case that meets it is left out with its reason, which the run prints and counts; what touches many
 * cases is taken out of the comparison instead (r0_excuse_state(), r0_excuse_memory()).
 *
 * Rules are asked only about cases that differ. "QEMU" is the emulation of QEMU 7.2, in which the KVM runs;
 * "this KVM" is one that runs ring 3 on the processor and emulates ring 0.
 */
#include "ring0.h"

#include "base/util.h"
#include "isa/x86/msr.h"
#include "isa/x86/semantics.h"

#include <string.h>

#define TABLE_A	     0x20u /* accessed */
#define TABLE_AD     0x60u /* and dirty */
#define TABLES_END   (R0_TABLES + 0x10000)
#define DESCRIPTOR_A 0x100u /* accessed, in a descriptor's upper half */
#define DR7_GD	     0x2000u
#define DR7_UNKNOWN  0xd800ull /* reserved */

/* ---- what a case has in it ---- */

static bool has(const struct r0_case *c, x86_semantic *fn)
{
	for (unsigned i = 0; i < c->insn_count; i++)
		if (x86_rows[c->row[i]].fn == fn)
			return true;
	return false;
}

static bool has_attribute(const struct r0_case *c, uint32_t attr)
{
	for (unsigned i = 0; i < c->insn_count; i++)
		if (x86_rows[c->row[i]].attr & attr)
			return true;
	return false;
}

static bool has_name(const struct r0_case *c, const char *name)
{
	for (unsigned i = 0; i < c->insn_count; i++)
		if (strstr(x86_rows[c->row[i]].name, name))
			return true;
	return false;
}

static bool has_byte(const struct r0_case *c, uint8_t byte)
{
	return memchr(c->code, byte, c->code_bytes);
}

/* Did it end in the handler of this vector? */
static bool at_handler(const struct r0_result *r, unsigned vector)
{
	return r->end == R0_END_OUT && r->out.reg[X86_RIP] == R0_HANDLERS + 16 * vector + 2;
}

/* The error code on the stack of the handler that it ended in. */
static uint32_t error_code(const struct r0_result *r)
{
	const uint64_t at = r->out.reg[X86_RSP];
	uint32_t value = ~0u;

	if (at <= R0_RAM_BYTES - 4)
		memcpy(&value, r->ram + at, 4);
	return value;
}

/* ---- rules ---- */

enum fact {
	F_REFUSED = 1u << 0, /* interp: #GP, #SS, or what becomes of them */
	F_PAGE = 1u << 1,    /* either: #PF, or what becomes of it */
	F_ALLOWED = 1u << 2, /* the other has no #GP */
	F_UNKNOWN = 1u << 3, /* the other has #UD, or what becomes of it; interp has not */
	F_BYTE66 = 1u << 4,
	F_BYTE2E = 1u << 5,
	F_TF = 1u << 6,
	F_LONG = 1u << 7, /* 64-bit code */
	F_WIDE = 1u << 8, /* long mode */
	F_CODE32 = 1u << 9,
	F_PAE = 1u << 10,
	F_USER = 1u << 11,
	F_DOUBLE = 1u << 12, /* interp: #DF or a triple fault */
};

static uint32_t find_facts(const struct r0_verdict *v)
{
	const struct r0_result *a = v->interp, *b = v->other;
	const bool broken = at_handler(a, X86_DF_EXC) || a->end == R0_END_SHUTDOWN;
	const bool refused = at_handler(a, X86_GP) || at_handler(a, X86_SS_EXC) || broken;
	const bool page = at_handler(a, X86_PF_EXC) || at_handler(b, X86_PF_EXC) || broken;
	const bool unknown = (at_handler(b, X86_UD) || at_handler(b, X86_DF_EXC)) &&
			     !at_handler(a, X86_UD) && !broken;
	const struct r0_case *c = v->c;

	return (refused ? F_REFUSED : 0u) | (page ? F_PAGE : 0u) |
	       (at_handler(b, X86_GP) ? 0u : F_ALLOWED) | (unknown ? F_UNKNOWN : 0u) |
	       (has_byte(c, 0x66) ? F_BYTE66 : 0u) | (has_byte(c, 0x2e) ? F_BYTE2E : 0u) |
	       (c->in.rflags & X86_TF ? F_TF : 0u) | (c->mode == R0_LONG ? F_LONG : F_CODE32) |
	       (r0_wide(c->mode) ? F_WIDE : 0u) | (c->mode == R0_PAE ? F_PAE : 0u) |
	       (c->cpl == 3 ? F_USER : 0u) | (broken ? F_DOUBLE : 0u);
}

/* It applies to cases with an instruction of that function, with that in its name, or with one of these
 * attributes (as far as they are given), if all the facts hold, and `also` does. */
struct rule {
	const char *reason;
	x86_semantic *fn;
	const char *name;
	uint32_t attr, facts;
	bool (*also)(const struct r0_verdict *v);
};

static const char *apply(const struct r0_verdict *v, const struct rule *rules, unsigned count)
{
	const uint32_t facts = find_facts(v);

	for (unsigned i = 0; i < count; i++) {
		const struct rule *r = &rules[i];

		if ((r->facts & ~facts) == 0 && (!r->fn || has(v->c, r->fn)) &&
			(!r->name || has_name(v->c, r->name)) &&
			(!r->attr || has_attribute(v->c, r->attr)) && (!r->also || r->also(v)))
			return r->reason;
	}
	return NULL;
}

/* ---- any KVM, and what AMD's processors do in their own way ---- */

static bool is_late(const struct r0_verdict *v)
{
	return v->other->end == R0_END_LATE;
}

static bool is_late_mmio(const struct r0_verdict *v)
{
	return is_late(v) && v->interp->mmio;
}

static bool steps_at_end(const struct r0_verdict *v)
{
	const uint64_t rip = v->interp->out.reg[X86_RIP];

	/* In front of the handler's OUT, not behind it. */
	return (v->other->out.rflags & X86_TF) || (rip - R0_HANDLERS < 0x1000 && rip % 16 == 0);
}

static bool other_sysenter(const struct r0_verdict *v)
{
	return v->interp->out.msr.sysenter_eip != v->other->out.msr.sysenter_eip ||
	       v->interp->out.msr.sysenter_esp != v->other->out.msr.sysenter_esp;
}

static bool has_vme(const struct r0_verdict *v)
{
	return v->other->out.cr4 & (X86_CR4_VME | X86_CR4_PVI);
}

/* Did it store into page tables, other than the one entry that is dropped from the TLB afterwards? */
static bool tables_overwritten(const struct r0_verdict *v)
{
	const uint8_t *image = v->source->image[v->c->mode];
	unsigned changed = 0;

	for (uint32_t at = R0_TABLES; at < TABLES_END; at += 4) {
		uint32_t was, interp, other;

		memcpy(&was, image + at, 4);
		memcpy(&interp, v->interp->ram + at, 4);
		memcpy(&other, v->other->ram + at, 4);
		changed += ((was ^ interp) & ~TABLE_AD) || ((was ^ other) & ~TABLE_AD);
	}
	return changed > 1;
}

static bool code_overwritten(const struct r0_verdict *v)
{
	const struct r0_case *c = v->c;

	return memcmp(v->interp->ram + c->code_gpa, c->code, c->code_bytes) != 0 ||
	       memcmp(v->other->ram + c->code_gpa, c->code, c->code_bytes) != 0;
}

static bool low_msr(const struct r0_verdict *v)
{
	return (has(v->c, sem_rdmsr) || has(v->c, sem_wrmsr)) &&
	       (uint32_t)v->interp->out.reg[X86_RCX] <= X86_MSR_TSC;
}

static bool other_tsc_aux(const struct r0_verdict *v)
{
	return v->interp->out.msr.tsc_aux != v->other->out.msr.tsc_aux;
}

static bool long_string(const struct r0_verdict *v)
{
	return v->interp->out.reg[X86_RCX] > 0x1000;
}

static bool null_ss(const struct r0_verdict *v)
{
	return !(v->other->out.seg[X86_SS].selector & 0xfffc);
}

static const struct rule any_rules[] = {
	{"KVM: does not get on with an operand in MMIO", .also = is_late_mmio},
	{"KVM: does not get on with page tables outside RAM", sem_mov_to_cr, .also = is_late},
	{"KVM: CR4.VME and PVI though the model has them not", sem_mov_to_cr, .also = has_vme},
	{"KVM: does not get on", .also = is_late},
	{"a single step of the last OUT", .also = steps_at_end},
	{"page tables were overwritten under the TLB", .also = tables_overwritten},
	{"code was changed while it ran", .also = code_overwritten},
	{"MSRs that only one of them has, and the TSC", .also = low_msr},
	{"AMD: SYSENTER_ESP and SYSENTER_EIP are 32 bits wide, and take any address", sem_wrmsr,
		.also = other_sysenter},
};

/* What processors do in their own way, and KVM with them. */
#define AMD_FAR "AMD: far pointers have no 64-bit offset"
static const struct rule processor_rules[] = {
	{AMD_FAR, x86_lss, .facts = F_LONG},
	{AMD_FAR, x86_lfs, .facts = F_LONG},
	{AMD_FAR, x86_lgs, .facts = F_LONG},
	{AMD_FAR, x86_jmp_far, .facts = F_LONG},
	{AMD_FAR, x86_call_far, .facts = F_LONG},
	{"AMD: SS takes a null selector of any RPL", .facts = F_REFUSED, .also = null_ss},
	{"AMD: 66 before a near branch", .attr = X86_A_F64, .facts = F_BYTE66},
	{"AMD: ignores the upper half of TSC_AUX", sem_wrmsr, .also = other_tsc_aux},
	{"SHLD and SHRD by more than 16 bits", .name = "SHLD", .facts = F_BYTE66},
	{"SHLD and SHRD by more than 16 bits", .name = "SHRD", .facts = F_BYTE66},
	{"BSWAP of 16 bits", .name = "BSWAP", .facts = F_BYTE66},
	{"CMPS: which operand faults first", x86_sem_cmps, .facts = F_PAGE},
	{"CMPS: which operand faults first", x86_sem_cmps, .facts = F_REFUSED},
	{"a long port string", .attr = X86_A_IO, .also = long_string},
	{"KVM: port strings write a part before the fault", .attr = X86_A_IO, .facts = F_PAGE},
	{"KVM: the return address of an INT n that it injects again", x86_int, .facts = F_REFUSED},
};

/* ---- QEMU ---- */

static bool loads_null_tr(const struct r0_verdict *v)
{
	return !(v->other->out.tr.selector & 0xfffc);
}

static bool pushed_flags(const struct r0_verdict *v)
{
	return v->interp->out.reg[X86_RIP] - R0_HANDLERS < 16 * 0x80;
}

static bool both_ud(const struct r0_verdict *v)
{
	return at_handler(v->interp, X86_UD) && at_handler(v->other, X86_UD);
}

static bool general_detect(const struct r0_verdict *v)
{
	return v->c->in.dr[7] & DR7_GD;
}

static bool no_alignment_check(const struct r0_verdict *v)
{
	return at_handler(v->interp, X86_AC_EXC);
}

static bool emulates_fpu(const struct r0_verdict *v)
{
	return (v->c->in.cr0 | v->interp->out.cr0) & X86_CR0_EM;
}

static bool nm_before_ud(const struct r0_verdict *v)
{
	return at_handler(v->interp, X86_UD) && at_handler(v->other, X86_NM);
}

static bool gp_for_ss(const struct r0_verdict *v)
{
	return at_handler(v->interp, X86_SS_EXC) && at_handler(v->other, X86_GP);
}

static bool np_for_ss(const struct r0_verdict *v)
{
	return at_handler(v->interp, X86_SS_EXC) && at_handler(v->other, X86_NP);
}

static bool only_other_pages(const struct r0_verdict *v)
{
	return at_handler(v->other, X86_PF_EXC) && !at_handler(v->interp, X86_PF_EXC);
}

static bool other_cr4(const struct r0_verdict *v)
{
	return v->interp->out.cr4 != v->other->out.cr4;
}

static bool odd_r11(const struct r0_verdict *v)
{
	return v->c->in.reg[X86_R11] & (X86_VM | X86_RF | X86_VIF | X86_VIP);
}

static bool no_selector_in_error(const struct r0_verdict *v)
{
	return error_code(v->interp) == 0;
}

static bool odd_stack(const struct r0_verdict *v)
{
	return !(v->c->in.seg[X86_SS].attr & X86_SEG_P) || v->c->in.reg[X86_RSP] >> 32;
}

/* MSRs that SVM leaves to the processor. */
static bool address_msr(const struct r0_verdict *v)
{
	const uint32_t index = (uint32_t)v->interp->out.reg[X86_RCX];

	return (index >= X86_MSR_FS_BASE && index <= X86_MSR_KERNEL_GS_BASE) ||
	       index == X86_MSR_LSTAR || index == X86_MSR_CSTAR;
}

/* A segment register that some access is refused through. */
static bool odd_segment(const struct r0_case *c, const struct x86_segment *s)
{
	if (!(s->attr & X86_SEG_P))
		return c->mode != R0_LONG;
	return s->limit != ~0u || (s->attr & X86_SEG_CODE) || !(s->attr & X86_SEG_WRITE);
}

static bool odd_segments(const struct r0_verdict *v)
{
	static const uint8_t data[] = {X86_ES, X86_SS, X86_DS, X86_FS, X86_GS};

	for (unsigned i = 0; i < ARRAY_SIZE(data); i++)
		if (odd_segment(v->c, &v->c->in.seg[data[i]]) ||
			odd_segment(v->c, &v->interp->out.seg[data[i]]) ||
			odd_segment(v->c, &v->other->out.seg[data[i]]))
			return true;
	return false;
}

#define SEGMENTS "QEMU: does not check segments' limits and types"
#define ALIASES	 "QEMU: knows no aliases of NOP, TEST and PREFETCH"
#define XMM16	 "QEMU: VZEROALL, VZEROUPPER and VBLENDV know sixteen registers in 32-bit code"
#define NARROW	 "QEMU: a narrow return takes the width of SS in 64-bit code"
#define STEPS	 "QEMU and KVM: no single step of port strings, PAUSE and STI"
static const struct rule tcg_rules[] = {
	/* one instruction */
	{"QEMU: LTR loads a null selector", x86_ltr, .also = loads_null_tr},
	{"QEMU: LAR gives 0 in bits 16 to 19", x86_lar},
	{"QEMU: INT1 is #UD", x86_int1},
	{"QEMU: SYSCALL clears DF and the arithmetic flags", x86_syscall, .also = pushed_flags},
	{"QEMU: SYSENTER of an AMD processor in long mode", x86_sysenter, .facts = F_WIDE},
	{"QEMU: SYSEXIT of an AMD processor in long mode", x86_sysexit, .facts = F_WIDE},
	{"QEMU: only 0 is a null selector in SYSENTER_CS", x86_sysenter, .facts = F_REFUSED},
	{"QEMU: only 0 is a null selector in SYSENTER_CS", x86_sysexit, .facts = F_REFUSED},
	{"QEMU: SYSRET takes VM and RF, and not VIF and VIP", x86_sysret, .also = odd_r11},
	{"QEMU: LGDT and LIDT take a base that is not canonical", x86_lgdt, .facts = F_REFUSED},
	{"QEMU: LGDT and LIDT take a base that is not canonical", x86_lidt, .facts = F_REFUSED},
	{"QEMU: WRFSBASE and WRGSBASE take a base that is not canonical", .name = "SBASE",
		.facts = F_REFUSED},
	{"QEMU: WRMSR takes addresses that are not canonical", sem_wrmsr, .facts = F_REFUSED,
		.also = address_msr},
	{"QEMU: sets reserved bits in directory pointers", sem_mov_to_cr, .facts = F_PAE},
	{"KVM: the upper half of what is written to CR4", sem_mov_to_cr, .facts = F_REFUSED,
		.also = other_cr4},
	{"QEMU: CR8 takes reserved bits", sem_mov_to_cr, .facts = F_LONG | F_REFUSED | F_ALLOWED},
	{"QEMU: DR7.GD comes after the intercept", sem_mov_to_dr, .also = general_detect},
	{"QEMU: DR7.GD comes after the intercept", sem_mov_from_dr, .also = general_detect},
	{"QEMU: ENTER does not look at the stack it leaves", x86_sem_enter},
	{"QEMU: ADCX and ADOX leave rubbish in RFLAGS", .name = "ADCX"},
	{"QEMU: ADCX and ADOX leave rubbish in RFLAGS", .name = "ADOX"},
	{"QEMU: CF of BLSI", x86_sem_blsi},
	{"QEMU: 66 before LGDT and LIDT in 64-bit code", x86_lgdt, .facts = F_LONG | F_BYTE66},
	{"QEMU: 66 before LGDT and LIDT in 64-bit code", x86_lidt, .facts = F_LONG | F_BYTE66},
	{"QEMU: 66 and REX.W before MOVBE", .name = "MOVBE", .facts = F_BYTE66},
	{"QEMU: 66 before RDFSBASE and the like", .name = "SBASE", .facts = F_BYTE66},
	{"QEMU: CLFLUSH does not look for its page", .name = "CLFLUSH"},
	{"QEMU: CLFLUSH does not look for its page", .name = "CLWB"},
	{ALIASES, .name = "NOP", .also = both_ud},
	{ALIASES, .name = "NOP", .facts = F_UNKNOWN},
	{ALIASES, .name = "PREFETCH", .facts = F_UNKNOWN},
	{ALIASES, .name = "TEST", .facts = F_UNKNOWN},
	{ALIASES, .name = "TEST", .facts = F_PAGE},
	{"QEMU: BSF and BSR of 0 clear the upper half", .name = "BSF"},
	{"QEMU: BSF and BSR of 0 clear the upper half", .name = "BSR"},
	/* x87 and vectors */
	{"QEMU: FXSAVE leaves reserved bytes alone", .name = "fxsave"},
	{"QEMU: FXSAVE leaves reserved bytes alone", .name = "xsave"},
	{"QEMU: XRSTOR looks at its area before CR0.TS", .name = "xrstor"},
	{"QEMU: LDMXCSR takes reserved bits", .name = "ldmxcsr", .facts = F_REFUSED},
	{"QEMU: x87 and MMX", .attr = X86_A_X87 | X86_A_MMX},
	{"QEMU: CVTPI2PS of memory enters MMX state", .name = "cvtpi2"},
	{"QEMU: AVX heeds CR0.EM", .attr = X86_A_AVX, .also = emulates_fpu},
	{"QEMU: #NM before #UD", .also = nm_before_ud},
	{"QEMU: does not check the alignment of vectors", .attr = X86_A_ALIGN | X86_A_SSE,
		.facts = F_REFUSED},
	{"QEMU: MXCSR is written before the fault", .attr = X86_A_MXCSR, .facts = F_PAGE},
	{"QEMU: writes a part before the fault", .name = "maskmov", .facts = F_PAGE},
	{XMM16, .name = "vzero", .facts = F_CODE32},
	{XMM16, .name = "blendv", .facts = F_CODE32},
	/* faults */
	{"QEMU: has no #AC", .also = no_alignment_check},
	{"QEMU: #GP, not #SS, for a stack address that is not canonical", .also = gp_for_ss},
	{"QEMU: #NP, not #SS, for a stack segment that is not present", .also = np_for_ss},
	{"QEMU: reads 32 bytes of a 16-byte operand", .attr = X86_A_AVX, .also = only_other_pages},
	{"QEMU: SGDT and SIDT write before they fault", x86_sgdt, .facts = F_PAGE},
	{"QEMU: SGDT and SIDT write before they fault", x86_sidt, .facts = F_PAGE},
	{"QEMU: far calls write the stack with privilege 0", x86_call_far,
		.facts = F_USER | F_PAGE},
	{"QEMU: far returns read the stack with privilege 0", x86_retf, .facts = F_USER | F_PAGE},
	{"QEMU: far returns read the stack with privilege 0", x86_iret, .facts = F_USER | F_PAGE},
	{"QEMU: reads before it finds that it may not write", .attr = X86_A_RMW, .facts = F_PAGE},
	{STEPS, .attr = X86_A_IO, .facts = F_TF},
	{STEPS, x86_sem_pause, .facts = F_TF},
	{STEPS, x86_sti, .facts = F_TF},
	/* segments */
	{NARROW, x86_retf, .facts = F_WIDE, .also = odd_stack},
	{NARROW, x86_iret, .facts = F_WIDE, .also = odd_stack},
	{SEGMENTS, .facts = F_CODE32 | F_REFUSED | F_ALLOWED, .also = no_selector_in_error},
	{SEGMENTS, .facts = F_BYTE2E | F_REFUSED},
	{SEGMENTS, .also = odd_segments},
};

/* ---- a KVM that emulates ring 0 in software ---- */

static bool no_ss(const struct r0_verdict *v)
{
	return !(v->interp->out.seg[X86_SS].attr & X86_SEG_P);
}

static bool ss_for_gp(const struct r0_verdict *v)
{
	return at_handler(v->interp, X86_GP) && at_handler(v->other, X86_SS_EXC);
}

static bool gives_up(const struct r0_verdict *v)
{
	return is_late(v) || v->other->end == R0_END_SHUTDOWN;
}

#define TRANSFERS  "this KVM: far transfers"
#define SELECTORS  "this KVM: writes of selectors are 8 or 2 bytes wide"
#define MXCSR_MASK "this KVM: MXCSR_MASK is the host's"
static const struct rule software_rules[] = {
	{"this KVM: does not know an instruction", .facts = F_UNKNOWN},
	{TRANSFERS, x86_iret},
	{TRANSFERS, x86_retf},
	{TRANSFERS, x86_call_far},
	{TRANSFERS, x86_jmp_far},
	{TRANSFERS, x86_sysret},
	{TRANSFERS, x86_sysexit},
	{"this KVM: double faults", .facts = F_DOUBLE},
	{SELECTORS, x86_mov_from_seg},
	{SELECTORS, x86_push_seg},
	{SELECTORS, x86_sldt},
	{SELECTORS, x86_str},
	{"this KVM: does not look at CR4.FSGSBASE", .name = "SBASE"},
	{"this KVM: TZCNT and LZCNT are BSF and BSR", .name = "ZCNT"},
	{"this KVM: reserved bits of CR and DR", sem_mov_to_cr},
	{"this KVM: reserved bits of CR and DR", sem_mov_to_dr},
	{"this KVM: reserved bits of MSRs", sem_wrmsr, .facts = F_REFUSED | F_ALLOWED},
	{MXCSR_MASK, .name = "fxsave"},
	{MXCSR_MASK, .name = "xsave"},
	{"this KVM: LDMXCSR takes the bits that the host has", .name = "ldmxcsr",
		.facts = F_REFUSED},
	{"this KVM: x87 and MMX", .attr = X86_A_X87 | X86_A_MMX},
	{"this KVM: single step and faults of port strings", .attr = X86_A_IO},
	{"this KVM: single step and faults of port strings", .facts = F_TF},
	{"this KVM: writes to a code segment", .facts = F_BYTE2E | F_REFUSED},
	{"this KVM: page faults of what crosses a page or is half done", .facts = F_PAGE},
	{"this KVM: error codes of LTR", x86_ltr},
	{"this KVM: flags of AAD and AAM", x86_sem_aad},
	{"this KVM: flags of AAD and AAM", x86_sem_aam},
	{"this KVM: INT n of some vectors", x86_int},
	{"this KVM: heeds an override by SS in 64-bit code", .facts = F_LONG, .also = ss_for_gp},
	{"this KVM: an SS that is null", .also = no_ss},
	{"this KVM: segments' limits and types", .facts = F_CODE32 | F_REFUSED | F_ALLOWED},
	{"this KVM: gives up", .also = gives_up},
};

/* ---- what is not run in the other engine ---- */

static const char *before_software(const struct r0_case *c)
{
	if (c->mode == R0_PSE || c->mode == R0_PAE)
		return "this KVM does not run 32-bit code with paging";
	if (c->cpl == 3)
		return "this KVM runs privilege 3 with the host's flags";
	return NULL;
}

/* May it go to privilege 3, after something that may have been done for KVM by the interpreter? The state that
 * KVM is given back then has a busy TSS (see r0_choose_state()). */
static bool may_be_busy(const struct r0_case *c, const struct r0_result *interp)
{
	if (r0_wide(c->mode))
		return false;
	for (unsigned i = 1; i < c->insn_count; i++) {
		x86_semantic *fn = x86_rows[c->row[i]].fn;

		if (fn == x86_iret || fn == x86_retf || fn == x86_sysret || fn == x86_sysexit)
			return true;
	}
	return interp->mmio;
}

/* What would end QEMU, and with it the test. */
static const char *before_tcg(const struct r0_case *c, const struct r0_result *interp)
{
	const uint64_t efer = interp->out.msr.efer;

	if (may_be_busy(c, interp))
		return "QEMU aborts if a 32-bit TSS is busy";
	if (has(c, x86_ltr) && c->insn_count > 1)
		return "QEMU aborts after an LTR of a null selector";
	if ((efer & (X86_EFER_LME | X86_EFER_LMA)) == X86_EFER_LME)
		return "QEMU hangs with EFER.LME and no paging";
	if (interp->out.dr[7] != c->in.dr[7])
		return "QEMU crashes when a guest's guest changes DR7";
	return NULL;
}

const char *r0_excuse_before(
	const struct r0_source *source, const struct r0_case *c, const struct r0_result *interp)
{
	switch (source->host) {
	case R0_HOST_SOFTWARE: return before_software(c);
	case R0_HOST_TCG: return before_tcg(c, interp);
	default: return NULL;
	}
}

const char *r0_excuse(const struct r0_verdict *v)
{
	if (v->other->end == R0_END_ERROR)
		return v->other->error;
	const char *reason = apply(v, any_rules, ARRAY_SIZE(any_rules));
	if (!reason && v->source->host == R0_HOST_SOFTWARE)
		reason = apply(v, software_rules, ARRAY_SIZE(software_rules));
	if (!reason && v->source->host != R0_HOST_SOFTWARE)
		reason = apply(v, processor_rules, ARRAY_SIZE(processor_rules));
	if (!reason && v->source->host == R0_HOST_TCG)
		reason = apply(v, tcg_rules, ARRAY_SIZE(tcg_rules));
	return reason;
}

/* ---- what is not compared ---- */

/* Flags that a KVM that emulates ring 0 does not keep, as it runs the guest with the host's. */
#define SOFTWARE_FLAGS ((uint64_t)(X86_IOPL | X86_AC | X86_RF | X86_VIF | X86_VIP | X86_ID))

/* RF stays until QEMU's block of code ends; it has no VIF and VIP; SYSCALL clears DF and the
 * arithmetic flags. */
static void excuse_flags(
	const struct r0_verdict *v, struct x86_state *interp, struct x86_state *other)
{
	uint64_t not_compared = X86_VIF | X86_VIP;

	if (v->c->in.rflags & X86_RF)
		not_compared |= X86_RF;
	if (has(v->c, x86_syscall))
		not_compared |= X86_FLAGS_ARITH | X86_DF;
	interp->rflags &= ~not_compared;
	other->rflags &= ~not_compared;
}

/* Segments are kept as they were before they were accessed; SS is cleared where an interrupt of the same
 * privilege changes stacks, and SYSCALL clears its RPL; what a return to an outer privilege drops keeps its
 * base; directory pointers with a reserved bit (which QEMU sets) are not loaded. */
static void excuse_segments(
	const struct r0_verdict *v, struct x86_state *interp, struct x86_state *other)
{
	const bool changes_stack = at_handler(v->other, X86_DF_EXC) || at_handler(v->other, 0x2a) ||
				   at_handler(v->other, 0x2b);

	for (unsigned i = 0; i < 6; i++) {
		interp->seg[i].attr &= (uint16_t)~X86_SEG_ACCESSED;
		other->seg[i].attr &= (uint16_t)~X86_SEG_ACCESSED;
	}
	if (r0_wide(v->c->mode) && !other->seg[X86_SS].selector && changes_stack)
		other->seg[X86_SS] = interp->seg[X86_SS];
	if (r0_wide(v->c->mode) && !interp->seg[X86_SS].selector && !other->seg[X86_SS].selector)
		other->seg[X86_SS] = interp->seg[X86_SS];
	if (has(v->c, x86_syscall))
		other->seg[X86_SS].selector |= interp->seg[X86_SS].selector & 3;
	for (unsigned i = X86_FS; i <= X86_GS; i++)
		if (!interp->seg[i].selector && !other->seg[i].selector &&
			v->c->in.seg[i].selector && !interp->seg[i].base)
			other->seg[i].base = 0;
	if (v->c->mode == R0_PAE)
		memcpy(other->pdpte, interp->pdpte, sizeof(other->pdpte));
}

/* An MMX register gets no exponent; reserved bits of DR6 and DR7 are stored; SYSENTER_CS has 16 bits, the
 * others 32, as AMD's have. */
static void excuse_registers(struct x86_state *interp, struct x86_state *other)
{
	for (unsigned i = 0; i < 8; i++)
		if (interp->fpu.st[i][8] == 0xff && interp->fpu.st[i][9] == 0xff)
			memset(other->fpu.st[i] + 8, 0xff, 2);
	other->dr[6] &= ~BIT(12);
	other->dr[7] &= ~DR7_UNKNOWN;
	interp->msr.sysenter_cs = (uint16_t)interp->msr.sysenter_cs;
	interp->msr.sysenter_eip = (uint32_t)interp->msr.sysenter_eip;
	interp->msr.sysenter_esp = (uint32_t)interp->msr.sysenter_esp;
	other->msr.sysenter_eip = (uint32_t)other->msr.sysenter_eip;
	other->msr.sysenter_esp = (uint32_t)other->msr.sysenter_esp;
}

void r0_excuse_state(const struct r0_verdict *v, struct x86_state *interp, struct x86_state *other)
{
	if (v->source->host == R0_HOST_SOFTWARE)
		interp->rflags =
			(interp->rflags & ~SOFTWARE_FLAGS) | (other->rflags & SOFTWARE_FLAGS);
	if (v->source->host != R0_HOST_TCG)
		return;
	excuse_flags(v, interp, other);
	excuse_segments(v, interp, other);
	excuse_registers(interp, other);
}

/* An instruction of the snippet, or one of the bytes that it may have gone to. */
static bool reads_and_writes(const struct r0_case *c)
{
	return has_attribute(c, X86_A_RMW | X86_A_F64) || has(c, x86_call_far) ||
	       has(c, x86_jmp_far) || has(c, x86_retf) || has(c, x86_iret);
}

/* A word that may be an error code: QEMU leaves P out with a reserved bit, and W where an instruction reads
 * what it would write; error codes that name a gate have twice its number in long mode. */
static bool same_error(const struct r0_verdict *v, uint32_t interp, uint32_t other)
{
	const uint32_t more = ((interp & X86_PFEC_RSVD) ? X86_PFEC_P : 0) |
			      (reads_and_writes(v->c) ? X86_PFEC_W : 0);

	if (r0_wide(v->c->mode) && (interp & 6) == 2 && other - 2 == 2 * (interp - 2))
		return true;
	return interp < 32 && (interp & ~more) == (other & ~more) && !(other & more & ~interp);
}

/* The two pages of memory (data pages change places between the sets of page tables) behind an address. */
static uint32_t pages_of(uint64_t linear)
{
	const uint32_t gpa = (uint32_t)linear & (R0_RAM_BYTES - 1) & ~0x1fffu;

	return gpa == R0_UCODE && linear < R0_RAM_BYTES ? R0_CODE : gpa;
}

/* Is it where a stack pointer of the case points to? */
static bool on_stack(const struct r0_verdict *v, uint32_t gpa)
{
	return pages_of(gpa) == pages_of(v->interp->out.reg[X86_RSP]) ||
	       pages_of(gpa) == pages_of(v->c->in.reg[X86_RSP] - 1);
}

/* QEMU does not push RF, VIF and VIP; it does not mark a code segment accessed; it sets A in upper tables before it knows about the lower ones, and in the
 * directory pointers of PAE paging; of what is read and written it sets A before it finds a fault, and D
 * though nothing is written. */
static bool same_to_tcg(const struct r0_verdict *v, uint32_t gpa, uint32_t interp, uint32_t other)
{
	const bool is_table = gpa >= R0_TABLES && gpa < TABLES_END;

	if (on_stack(v, gpa) && ((interp ^ other) & ~(X86_RF | X86_VIF | X86_VIP)) == 0)
		return true;
	if (gpa == R0_GDT + R0_CODE_NEW + 4 && other == (interp & ~DESCRIPTOR_A))
		return true;
	if (is_table && (gpa & 0x7fff) < 0x3000)
		return other == (interp | TABLE_A);
	if (is_table && has(v->c, x86_retf))
		return other == (interp | TABLE_A);
	if (is_table && (has_attribute(v->c, X86_A_RMW) || has_name(v->c, "maskmov")))
		return ((other ^ interp) & ~TABLE_AD) == 0;
	return on_stack(v, gpa) && same_error(v, interp, other);
}

bool r0_excuse_memory(const struct r0_verdict *v, uint32_t gpa, uint32_t interp, uint32_t other)
{
	switch (v->source->host) {
	case R0_HOST_SOFTWARE: return on_stack(v, gpa) && ((interp ^ other) & ~SOFTWARE_FLAGS) == 0;
	case R0_HOST_TCG: return same_to_tcg(v, gpa, interp, other);
	default: return false;
	}
}
