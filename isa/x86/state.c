/*
 * The processor's state after RESET, INIT and SIPI: SDM 3A table 10-1 and section 9.4.
 *
 * Left out on purpose: what a board decides (bootstrap processor bit, local APIC's id and registers), and
 * the signature in EDX, which the CPUID model knows (x86_cpu_init()).
 */
#include "isa/x86/state.h"

#include <string.h>

#define RESET_CR0	(X86_CR0_CD | X86_CR0_NW | X86_CR0_ET)
#define RESET_PAT	0x0007040600070406ull
#define RESET_DR6	0xffff0ff0ull
#define RESET_DR7	0x400ull
#define RESET_APIC_BASE 0xfee00800ull /* enabled, at its usual place */
#define APIC_BASE_BSP	0x100ull
/* IA32_MISC_ENABLE: fast strings; branch trace store and PEBS unavailable. */
#define RESET_MISC_ENABLE 0x1801ull

#define ATTR_CODE (X86_SEG_P | X86_SEG_S | X86_SEG_CODE | X86_SEG_WRITE | X86_SEG_ACCESSED)
#define ATTR_DATA (X86_SEG_P | X86_SEG_S | X86_SEG_WRITE | X86_SEG_ACCESSED)
#define ATTR_LDT  (X86_SEG_P | 2)
#define ATTR_TR	  (X86_SEG_P | 11) /* a busy 32-bit TSS, as virtualization hardware wants it */

static void reset_segments(struct x86_state *s)
{
	for (unsigned i = 0; i < 6; i++)
		s->seg[i] = (struct x86_segment){.limit = 0xffff, .attr = ATTR_DATA};
	s->seg[X86_CS] = (struct x86_segment){
		.base = 0xffff0000, .limit = 0xffff, .selector = 0xf000, .attr = ATTR_CODE};
	s->ldtr = (struct x86_segment){.limit = 0xffff, .attr = ATTR_LDT};
	s->tr = (struct x86_segment){.limit = 0xffff, .attr = ATTR_TR};
	s->gdtr = s->idtr = (struct x86_table_register){.limit = 0xffff};
}

/* What RESET and INIT have in common; the rest of *s is zero. */
static void reset_common(struct x86_state *s)
{
	s->reg[X86_RIP] = 0xfff0;
	s->rflags = X86_FLAGS_FIXED;
	reset_segments(s);
	s->cr0 = RESET_CR0;
	s->dr[6] = RESET_DR6;
	s->dr[7] = RESET_DR7;
}

void x86_state_reset(struct x86_state *state)
{
	memset(state, 0, sizeof(*state));
	reset_common(state);
	state->xcr0 = X86_XCR0_X87;
	state->msr.pat = RESET_PAT;
	state->msr.misc_enable = RESET_MISC_ENABLE;
	state->fpu.fcw = 0x40;
	state->fpu.ftw = 0xff; /* all registers hold a valid zero */
	state->fpu.mxcsr = 0x1f80;
	state->lapic.apic_base = RESET_APIC_BASE;
	state->activity = X86_RUNNING;
}

void x86_state_init(struct x86_state *state)
{
	const struct x86_state old = *state;

	memset(state, 0, sizeof(*state));
	reset_common(state);
	state->cr0 = X86_CR0_ET | (old.cr0 & (X86_CR0_CD | X86_CR0_NW));
	state->xcr0 = old.xcr0;
	state->msr = old.msr;
	state->msr.efer = 0;
	state->tsc = old.tsc;
	state->fpu = old.fpu;
	state->lapic = old.lapic;
	state->activity = old.lapic.apic_base & APIC_BASE_BSP ? X86_RUNNING : X86_WAIT_FOR_SIPI;
}

void x86_state_sipi(struct x86_state *state, uint8_t vector)
{
	state->seg[X86_CS].selector = (uint16_t)(vector << 8);
	state->seg[X86_CS].base = (uint64_t)vector << 12;
	state->reg[X86_RIP] = 0;
	state->sipi_vector = vector;
	state->activity = X86_RUNNING;
}
