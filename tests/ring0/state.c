/*
 * The state that a case of the ring-0 test starts from: registers near memory, segments, control registers
 * and MSRs as an operating system would have them, and sometimes otherwise.
 */
#include "tests/ring0/gen.h"

#include "base/util.h"
#include "isa/x86/descriptor.h"
#include "isa/x86/msr.h"
#include "isa/x86/semantics.h"

#include <string.h>

/* ---- control registers ---- */

static bool has(const struct r0_gen *g, unsigned feature)
{
	return x86_has(&g->source->features, feature);
}

static uint64_t maybe(struct r0_gen *g, uint64_t bit, unsigned percent)
{
	return r0_percent(g, percent) ? bit : 0;
}

static uint64_t maybe_feature(struct r0_gen *g, unsigned feature, uint64_t bit, unsigned percent)
{
	const uint64_t value = maybe(g, bit, percent);

	return has(g, feature) ? value : 0;
}

static void choose_control(struct r0_gen *g)
{
	struct x86_state *s = &g->c->in;
	const unsigned mode = g->c->mode;

	s->cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE | maybe(g, X86_CR0_WP, 80) |
		 maybe(g, X86_CR0_AM, 40) | maybe(g, X86_CR0_TS, 8) | maybe(g, X86_CR0_MP, 70) |
		 maybe(g, X86_CR0_EM, 4);
	s->cr4 = maybe(g, X86_CR4_PGE, 50) | maybe(g, X86_CR4_DE, 30) | maybe(g, X86_CR4_TSD, 10) |
		 maybe(g, X86_CR4_OSFXSR, 90) | maybe(g, X86_CR4_OSXMMEXCPT, 90) |
		 maybe(g, X86_CR4_PCE, 20) | maybe(g, X86_CR4_MCE, 30) |
		 maybe_feature(g, X86_F_XSAVE, X86_CR4_OSXSAVE, 75) |
		 maybe_feature(g, X86_F_FSGSBASE, X86_CR4_FSGSBASE, 75) |
		 maybe_feature(g, X86_F_SMEP, X86_CR4_SMEP, 25) |
		 maybe_feature(g, X86_F_SMAP, X86_CR4_SMAP, 20) |
		 maybe_feature(g, X86_F_UMIP, X86_CR4_UMIP, 20);
	s->msr.efer = maybe(g, X86_EFER_SCE, 85) | maybe_feature(g, X86_F_NX, X86_EFER_NXE, 85);
	s->cr3 = r0_cr3(mode, r0_percent(g, 10));
	if (r0_paged(mode))
		s->cr0 |= X86_CR0_PG;
	if (mode == R0_PAE || r0_wide(mode))
		s->cr4 |= X86_CR4_PAE;
	else if (mode == R0_PSE)
		s->cr4 |= maybe(g, X86_CR4_PSE, 95);
	if (r0_wide(mode)) {
		s->msr.efer |= X86_EFER_LME | X86_EFER_LMA;
		s->cr4 |= maybe_feature(g, X86_F_PCID, X86_CR4_PCIDE, 35);
		if (s->cr4 & X86_CR4_PCIDE)
			s->cr3 |= r0_pick(g, 4);
	}
	if (mode == R0_PAE)
		memcpy(s->pdpte, g->source->image[mode] + s->cr3, sizeof(s->pdpte));
	s->xcr0 = X86_XCR0_X87 | (has(g, X86_F_XSAVE) ? X86_XCR0_SSE : 0) |
		  maybe_feature(g, X86_F_AVX, X86_XCR0_AVX, 85);
	s->cr8 = mode == R0_LONG ? r0_pick(g, 16) : 0;
	s->cr2 = r0_address(g, 1, false);
	s->dr[6] = 0xffff0ff0;
	s->dr[7] = 0x400;
	for (unsigned i = 0; i < 4; i++)
		s->dr[i] = r0_address(g, 8, true) & (r0_wide(mode) ? ~0ull : 0xffffffff);
	if (r0_percent(g, 3))
		s->dr[7] |= 0x2000; /* general detect */
}

/* ---- MSRs ---- */

static uint64_t canonical(uint64_t value)
{
	return (uint64_t)((int64_t)(value << 16) >> 16);
}

static void choose_msrs(struct r0_gen *g)
{
	struct x86_msrs *m = &g->c->in.msr;
	const uint64_t high = g->c->mode == R0_LONG && r0_percent(g, 30) ? R0_HIGH : 0;

	m->star = (uint64_t)(R0_UCODE32 & ~3) << 48 | (uint64_t)R0_KCODE64 << 32 |
		  (R0_HANDLERS + 0x81 * 16);
	if (r0_percent(g, 20))
		m->star ^= (uint64_t)r0_pick(g, 4) << 48 | (uint64_t)r0_pick(g, 4) << 32;
	m->lstar = R0_HANDLERS + 0x82 * 16 + high;
	m->cstar = R0_HANDLERS + 0x83 * 16;
	m->sfmask = r0_percent(g, 50) ? 0x47700 : diff_random(&g->rng) & 0xffffffff;
	m->kernel_gs_base = canonical(r0_address(g, 8, true));
	m->sysenter_cs = r0_percent(g, 85) ? R0_KCODE64 : r0_pick(g, 0x20);
	m->sysenter_esp = R0_STACK0 - 0x200;
	m->sysenter_eip = R0_HANDLERS + 0x84 * 16;
	m->pat = 0x0007040600070406;
	m->misc_enable = 0x1801;
	if (has(g, X86_F_RDTSCP))
		m->tsc_aux = r0_pick(g, 0x1000);
}

/* ---- segments ---- */

static void choose_segments(struct r0_gen *g)
{
	struct x86_state *s = &g->c->in;
	const uint8_t *image = g->source->image[g->c->mode];
	const bool wide = g->c->mode == R0_LONG, user = g->c->cpl == 3;
	static const uint8_t data[] = {X86_ES, X86_DS, X86_FS, X86_GS};

	s->seg[X86_CS] = r0_segment(
		image, user ? (wide ? R0_UCODE64 : R0_UCODE32) : (wide ? R0_KCODE64 : R0_KCODE32));
	s->seg[X86_SS] = r0_segment(image, user ? R0_UDATA : R0_KDATA);
	if (wide && !user && r0_percent(g, 25))
		s->seg[X86_SS] = (struct x86_segment){0};
	for (unsigned i = 0; i < ARRAY_SIZE(data); i++) {
		uint16_t selector = r0_percent(g, 50) || user ? R0_UDATA : R0_KDATA;
		/* QEMU does not check limits, types and presence in accesses. */
		if (g->source->host == R0_HOST_TCG)
			selector = wide && r0_percent(g, 20) ? 0 : selector;
		else if (r0_percent(g, 4))
			selector = R0_SMALL | 3;
		else if (r0_percent(g, 4))
			selector = R0_BASED | 3;
		else if (r0_percent(g, 4))
			selector = R0_READONLY | 3;
		else if (r0_percent(g, 4) && !user)
			selector = R0_EXPAND;
		else if (r0_percent(g, wide ? 20 : 3))
			selector = 0;
		s->seg[data[i]] = r0_segment(image, selector);
	}
	if (wide && r0_percent(g, 70)) {
		s->seg[X86_FS].base = canonical(r0_address(g, 8, false));
		s->seg[X86_GS].base = canonical(r0_address(g, 8, false));
	}
	s->ldtr = r0_segment(image, R0_LDTR);
	s->tr = r0_segment(image, R0_TR);
	/* QEMU 7.2 knows a TSS by the type that LTR finds, before it is busy: with a busy one, ports are denied
	 * whatever its bitmap says, and stacks of 32-bit TSSs are not found ("invalid tss type": it aborts). */
	if (g->source->host == R0_HOST_TCG)
		s->tr.attr &= (uint16_t)~X86_TSS_BUSY_BIT;
	s->gdtr = (struct x86_table_register){R0_GDT, R0_GDT_LIMIT};
	s->idtr = (struct x86_table_register){
		R0_IDT, (uint16_t)(R0_VECTORS * (r0_wide(g->c->mode) ? 16 : 8) - 1)};
}

/* ---- the rest ---- */

static void choose_fpu(struct r0_gen *g)
{
	struct x86_fpu *f = &g->c->in.fpu;

	f->fcw = 0x37f;
	f->mxcsr = 0x1f80;
	f->ftw = r0_percent(g, 50) ? 0 : (uint8_t)diff_random(&g->rng);
	for (unsigned i = 0; i < 8; i++)
		diff_extended(&g->rng, f->st[i]);
	for (unsigned i = 0; i < 16; i++)
		diff_values(&g->rng, f->vec[i].b, has(g, X86_F_AVX) ? 32 : 16);
}

static uint64_t choose_flags(struct r0_gen *g)
{
	uint64_t flags = X86_FLAGS_FIXED | (diff_random(&g->rng) & X86_FLAGS_ARITH);

	flags |= maybe(g, X86_IF, 50) | maybe(g, X86_DF, 12) | maybe(g, X86_AC, 12) |
		 maybe(g, X86_ID, 10) | maybe(g, X86_NT, 3) | maybe(g, X86_TF, 2) |
		 maybe(g, X86_RF, 2);
	return flags | (uint64_t)r0_pick(g, 4) << X86_IOPL_SHIFT;
}

/* Where the snippet lies: anywhere in the two pages of code, sometimes across their border. */
static void choose_place(struct r0_gen *g)
{
	struct r0_case *c = g->c;
	const uint32_t at = r0_percent(g, 85) ? r0_pick(g, 0xf00) : 0x1000 - r0_pick(g, 12);

	c->code_gpa = R0_CODE + at;
	c->in.reg[X86_RIP] = c->code_gpa;
	if (c->cpl == 3 && r0_paged(c->mode))
		c->in.reg[X86_RIP] = R0_UCODE + at;
	else if (c->mode == R0_LONG && !c->cpl && r0_percent(g, 25))
		c->in.reg[X86_RIP] += R0_HIGH;
}

void r0_choose_state(struct r0_gen *g)
{
	struct r0_case *c = g->c;
	struct x86_state *s = &c->in;

	x86_state_reset(s);
	s->lapic.apic_base = 0; /* leave the engine's as it is */
	choose_control(g);
	choose_msrs(g);
	choose_segments(g);
	choose_fpu(g);
	for (unsigned i = 0; i < (g->e.mode == 64 ? 16u : 8u); i++)
		r0_set_reg(
			g, i, r0_percent(g, 50) ? r0_address(g, 8, false) : diff_integer(&g->rng));
	const uint64_t stack = c->cpl == 3 ? R0_USTACK + 0x800 : R0_STACK + 0x1800;
	r0_set_reg(g, X86_RSP,
		r0_percent(g, 88) ? stack - 8 * r0_pick(g, 64) : r0_address(g, 8, true));
	s->rflags = choose_flags(g);
	choose_place(g);
}

/* ---- what system instructions are to find ---- */

static void choose_msr(struct r0_gen *g)
{
	static const uint32_t msrs[] = {X86_MSR_EFER, X86_MSR_STAR, X86_MSR_LSTAR, X86_MSR_CSTAR,
		X86_MSR_SFMASK, X86_MSR_FS_BASE, X86_MSR_GS_BASE, X86_MSR_KERNEL_GS_BASE,
		X86_MSR_TSC_AUX, X86_MSR_SYSENTER_CS, X86_MSR_SYSENTER_ESP, X86_MSR_SYSENTER_EIP,
		X86_MSR_PAT, X86_MSR_MTRR_DEF_TYPE, X86_MSR_MTRR_FIX64K, X86_MSR_MTRR_FIX4K + 3,
		X86_MSR_MTRR_BASE0, X86_MSR_MTRR_BASE0 + 1, X86_MSR_MTRR_BASE0 + 5, X86_MSR_MTRRCAP,
		0x00123456, 0xc0001234};
	const uint32_t index = msrs[r0_pick(g, ARRAY_SIZE(msrs))];
	/* QEMU's SVM looks all of RCX up in the map of MSRs. */
	const bool upper = g->e.mode == 64 && g->source->host != R0_HOST_TCG;
	uint64_t value = diff_integer(&g->rng);

	if (index == X86_MSR_EFER)
		value = g->c->in.msr.efer ^
			(r0_percent(g, 80) ? BIT(r0_pick(g, 13)) : BIT(r0_pick(g, 64)));
	else if (index == X86_MSR_PAT)
		value = r0_percent(g, 80) ? 0x0407050600070106 ^ BIT(8 * r0_pick(g, 8)) : value;
	else if (index >= X86_MSR_MTRR_FIX64K && index <= X86_MSR_MTRR_FIX4K + 7)
		value = r0_percent(g, 80) ? 0x0606060606060600 | r0_pick(g, 8) : value;
	else if (index == X86_MSR_MTRR_DEF_TYPE)
		value = r0_percent(g, 80) ? r0_pick(g, 8) | r0_pick(g, 4) << 10 : value;
	else if (r0_percent(g, 60))
		value = r0_address(g, 8, false);
	if (r0_claim(g, X86_RCX))
		r0_set_reg(g, X86_RCX, index | (upper ? diff_random(&g->rng) << 32 : 0));
	if (r0_claim(g, X86_RAX))
		r0_set_reg(g, X86_RAX, value);
	if (r0_claim(g, X86_RDX))
		r0_set_reg(g, X86_RDX, value >> 32);
}

/* A value for MOV to CR or DR: mostly near the present one. */
static uint64_t control_value(struct r0_gen *g, const struct x86_insn *insn)
{
	const struct x86_state *s = &g->c->in;
	uint64_t value = diff_integer(&g->rng);

	if (insn->fn == sem_mov_to_dr) {
		if (insn->op[0].reg >= 6 && r0_percent(g, 85))
			value = (uint32_t)value & (insn->op[0].reg == 7 ? 0xffffff00 : ~0u);
		return value;
	}
	if (insn->op[0].reg == 3)
		return r0_percent(g, 85)
			       ? r0_cr3(g->c->mode, r0_percent(g, 50)) | r0_pick(g, 0x20) |
					 (r0_percent(g, 20) ? BIT(63) : 0)
			       : value;
	if (insn->op[0].reg == 8 && r0_percent(g, 80))
		return r0_pick(g, 18);
	if (insn->op[0].reg == 2 || r0_percent(g, 5))
		return value;
	value = insn->op[0].reg == 4 ? s->cr4 : s->cr0;
	for (unsigned n = 1 + r0_pick(g, 3); n; n--)
		value ^= BIT(r0_percent(g, 95) ? r0_pick(g, 32) : r0_pick(g, 64));
	return value;
}

void r0_choose_control(struct r0_gen *g, const struct x86_insn *insn)
{
	x86_semantic *fn = insn->fn;

	if ((fn == sem_mov_to_cr || fn == sem_mov_to_dr) && r0_claim(g, insn->op[1].reg))
		r0_set_reg(g, insn->op[1].reg, control_value(g, insn));
	if (fn == sem_rdmsr || fn == sem_wrmsr)
		choose_msr(g);
	if (fn == sem_xsetbv || fn == sem_xgetbv) {
		if (r0_claim(g, X86_RCX))
			r0_set_reg(g, X86_RCX, r0_percent(g, 85) ? 0 : r0_pick(g, 3));
		if (r0_claim(g, X86_RAX))
			r0_set_reg(g, X86_RAX, r0_pick(g, 16));
		if (r0_claim(g, X86_RDX))
			r0_set_reg(g, X86_RDX, r0_percent(g, 90) ? 0 : r0_pick(g, 3));
	}
	if (fn == sem_invpcid && r0_claim(g, insn->op[0].reg))
		r0_set_reg(g, insn->op[0].reg,
			r0_percent(g, 90) ? r0_pick(g, 5) : diff_integer(&g->rng));
	if (fn == x86_sysret) {
		/* QEMU's takes VM and RF, and not VIF and VIP. */
		const uint64_t unwanted =
			X86_TF |
			(g->source->host == R0_HOST_TCG ? X86_VM | X86_RF | X86_VIF | X86_VIP : 0);
		if (r0_claim(g, X86_RCX))
			r0_set_reg(g, X86_RCX, r0_code_address(g, 3));
		if (r0_claim(g, X86_R11))
			r0_set_reg(g, X86_R11, diff_random(&g->rng) & ~unwanted);
	}
	if (fn == x86_sysexit) {
		if (r0_claim(g, X86_RDX))
			r0_set_reg(g, X86_RDX, r0_code_address(g, 3));
		if (r0_claim(g, X86_RCX))
			r0_set_reg(g, X86_RCX, R0_USTACK + 0x800);
	}
	if ((fn == x86_wrfsbase || fn == x86_wrgsbase) && r0_percent(g, 70) &&
		r0_claim(g, insn->op[0].reg))
		r0_set_reg(g, insn->op[0].reg, r0_address(g, 8, false));
}
