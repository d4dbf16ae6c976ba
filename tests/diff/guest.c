/*
 * The guest that cases run in: see guest.h.
 *
 * Physical memory: page tables, GDT, TSS and what exceptions need first, then code and data. Linux's GDT is
 * copied as far as ring 3 can see it. System structures are mapped in the upper half, for the supervisor.
 */
#include "guest.h"

#include "base/error.h"
#include "base/util.h"
#include "isa/x86/native_stub.h"

#include <errno.h>

#define PML4	      0x1000u
#define PDPT	      0x2000u
#define PD	      0x3000u
#define PT	      0x4000u
#define SYS_PDPT      0x5000u
#define SYS_PD	      0x6000u
#define GDT	      0x8000u
#define TSS	      0x9000u
#define IDT	      0xa000u
#define HANDLERS      0xb000u
#define STACK_TOP     0xd000u
#define CODE	      DIFF_GUEST_CODE
#define DATA	      DIFF_GUEST_DATA
#define RAM_BYTES     0x200000u
#define SYS_LINEAR    0xffff800000000000ull /* physical memory, for the supervisor */
#define PTE_P	      1u
#define PTE_W	      2u
#define PTE_U	      4u
#define PTE_LARGE     0x80u
#define PTE_NX	      BIT(63)
#define HANDLER_BYTES 16

/* ---- set-up ---- */

static void make_tables(struct diff_guest *guest, uint8_t *ram)
{
	uint64_t *pml4 = (uint64_t *)(ram + PML4), *pdpt = (uint64_t *)(ram + PDPT),
		 *pd = (uint64_t *)(ram + PD), *pt = (uint64_t *)(ram + PT);
	const uint64_t all = PTE_P | PTE_W | PTE_U;

	guest->code = ram + CODE;
	guest->data = ram + DATA;
	memset(guest->code, 0xcc, DIFF_CODE_BYTES);
	pml4[0] = PDPT | all;
	pdpt[0] = PD | all;
	pd[DIFF_CODE >> 21] = PT | all;
	for (unsigned i = 0; i < DIFF_CODE_BYTES >> 12; i++)
		pt[(DIFF_CODE >> 12 & 511) + i] = (CODE + i * 0x1000) | PTE_P | PTE_U;
	for (unsigned i = 0; i < DIFF_DATA_PAGES; i++)
		if (i != DIFF_HOLE)
			pt[(DIFF_DATA >> 12 & 511) + i] = (DATA + i * 0x1000) | PTE_P | PTE_U |
							  PTE_NX | (i == DIFF_READONLY ? 0 : PTE_W);
	pml4[256] = SYS_PDPT | PTE_P | PTE_W;
	*(uint64_t *)(ram + SYS_PDPT) = SYS_PD | PTE_P | PTE_W;
	*(uint64_t *)(ram + SYS_PD) = PTE_LARGE | PTE_P | PTE_W;

	uint64_t *gdt = (uint64_t *)(ram + GDT);
	gdt[1] = 0x00cf9b000000ffffull; /* kernel, 32-bit code */
	gdt[2] = 0x00af9b000000ffffull;
	gdt[3] = 0x00cf93000000ffffull;
	gdt[4] = 0x00cffb000000ffffull; /* user, 32-bit code, data, 64-bit code */
	gdt[5] = 0x00cff3000000ffffull;
	gdt[6] = 0x00affb000000ffffull;
	gdt[8] = 0x00008b0000002087ull;					  /* TSS */
	*(uint16_t *)(ram + TSS + 0x66) = 0xffff;			  /* no I/O map */
	memcpy(ram + TSS + 0x24, &(uint64_t){SYS_LINEAR + STACK_TOP}, 8); /* IST1 */
	gdt[15] = 0x0040f50000000000ull | guest->shared->cpu_node_limit;
}

/* Every vector leads to a HLT of its own, on a stack of its own. */
static void make_handlers(uint8_t *ram)
{
	uint64_t *idt = (uint64_t *)(ram + IDT);

	memset(ram + HANDLERS, 0xf4, 0x1000);
	for (unsigned i = 0; i < DIFF_VECTORS; i++) {
		const uint64_t at = SYS_LINEAR + HANDLERS + i * HANDLER_BYTES;
		idt[2 * i] =
			(at & 0xffff) | 0x10 << 16 | 0xee01ull << 32 | (at >> 16 & 0xffff) << 48;
		idt[2 * i + 1] = at >> 32;
	}
}

static struct x86_segment segment(uint16_t selector)
{
	const uint16_t data =
		X86_SEG_P | X86_SEG_S | X86_SEG_DPL | X86_SEG_WRITE | X86_SEG_ACCESSED | X86_SEG_G;
	struct x86_segment s = {.limit = 0xffffffff, .selector = selector, .attr = data};

	switch (selector) {
	case DIFF_DS: s.attr |= X86_SEG_DB; break;
	case DIFF_CS32: s.attr |= X86_SEG_DB | X86_SEG_CODE; break;
	case DIFF_CS64: s.attr |= X86_SEG_L | X86_SEG_CODE; break;
	default: s = (struct x86_segment){.selector = selector}; break;
	}
	return s;
}

static void set_system_state(struct x86_cpu *cpu)
{
	struct x86_state *s = &cpu->s;

	s->cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM |
		 X86_CR0_PG;
	s->cr3 = PML4;
	s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_FSGSBASE |
		 X86_CR4_OSXSAVE | X86_CR4_UMIP;
	s->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
	s->msr.efer = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
	s->gdtr = (struct x86_table_register){SYS_LINEAR + GDT, 127};
	s->idtr = (struct x86_table_register){SYS_LINEAR + IDT, DIFF_VECTORS * 16 - 1};
	s->ldtr = (struct x86_segment){0};
	s->tr = (struct x86_segment){
		.base = SYS_LINEAR + TSS, .limit = 0x67, .selector = 0x40, .attr = X86_SEG_P | 11};
}

/* Features that software engines have whatever the host is. */
static void drop_what_host_lacks(struct x86_cpu *cpu)
{
	for (unsigned i = 0; i < X86_FEATURES; i++)
		if (!x86_native_host_has(i))
			cpu->features.bits[i / 64] &= ~BIT(i % 64);
}

int diff_guest_init(struct diff_guest *guest, const struct diff_shared *shared)
{
	struct error err = {0};

	*guest = (struct diff_guest){.shared = shared, .pattern_now = -1};
	int rc = memory_create(&guest->memory);
	if (rc < 0)
		return rc;
	rc = memory_add_ram(guest->memory, 0, RAM_BYTES, 0, "ram", &err);
	if (rc < 0)
		return rc;
	uint8_t *ram = memory_host(guest->memory, 0, RAM_BYTES, true);
	x86_cpuid_default(&guest->model, 1, 1000000000ull);
	make_tables(guest, ram);
	make_handlers(ram);
	return 0;
}

void diff_guest_done(struct diff_guest *guest)
{
	memory_free(guest->memory);
}

void diff_guest_processor(struct x86_cpu *cpu)
{
	drop_what_host_lacks(cpu);
	set_system_state(cpu);
}

/* ---- state ---- */

void diff_guest_load(struct x86_cpu *cpu, const struct diff_state *in)
{
	struct x86_state *s = &cpu->s;
	struct x86_fpu *f = &s->fpu;

	memcpy(s->reg, in->reg, sizeof(in->reg));
	s->reg[X86_RIP] = in->rip;
	s->reg[X86_ZERO] = 0;
	s->rflags = in->rflags;
	for (unsigned i = 0; i < 6; i++)
		s->seg[i] = segment(in->seg[i]);
	s->seg[X86_FS].base = in->fs_base;
	s->seg[X86_GS].base = in->gs_base;
	f->fcw = in->fcw;
	f->fsw = in->fsw;
	f->fop = in->fop;
	f->ftw = in->ftw;
	f->fip = in->fip;
	f->fdp = in->fdp;
	f->fcs = f->fds = 0;
	f->mxcsr = in->mxcsr;
	memcpy(f->st, in->st, sizeof(f->st));
	for (unsigned i = 0; i < 16; i++)
		memcpy(f->vec[i].b, in->vec[i], 32);
	s->interrupt_shadow = s->mov_ss_shadow = false;
	s->activity = X86_RUNNING;
	x86_cpu_refresh(cpu);
}

void diff_guest_save(const struct x86_cpu *cpu, struct diff_state *out)
{
	const struct x86_state *s = &cpu->s;
	const struct x86_fpu *f = &s->fpu;

	memcpy(out->reg, s->reg, sizeof(out->reg));
	out->rip = s->reg[X86_RIP];
	out->rflags = s->rflags;
	for (unsigned i = 0; i < 6; i++)
		out->seg[i] = s->seg[i].selector;
	out->fs_base = s->seg[X86_FS].base;
	out->gs_base = s->seg[X86_GS].base;
	out->fcw = f->fcw;
	out->fsw = f->fsw;
	out->fop = f->fop;
	out->ftw = f->ftw;
	out->fip = f->fip;
	out->fdp = f->fdp;
	out->mxcsr = f->mxcsr;
	memcpy(out->st, f->st, sizeof(out->st));
	for (unsigned i = 0; i < 16; i++)
		memcpy(out->vec[i], f->vec[i].b, 32);
}

/* ---- memory ---- */

/* The code's second mapping is there for cases that want it alone: the others might meet it by chance. */
static void map_alias(struct diff_guest *guest, struct x86_cpu *cpu, bool present)
{
	uint64_t *pt = memory_host(guest->memory, PT, 0x1000, true);

	if (guest->alias == present)
		return;
	guest->alias = present;
	for (unsigned i = 0; i < DIFF_CODE_BYTES >> 12; i++)
		pt[(DIFF_ALIAS >> 12 & 511) + i] =
			present ? (CODE + i * 0x1000) | PTE_P | PTE_U | PTE_W | PTE_NX : 0;
	x86_tlb_flush(cpu);
}

void diff_guest_begin(struct diff_guest *guest, struct x86_cpu *cpu, const struct diff_case *c)
{
	const uint8_t *pattern = guest->shared->pattern[c->pattern];

	map_alias(guest, cpu, c->changes_code);

	if (guest->pattern_now != c->pattern)
		memcpy(guest->data, pattern, DIFF_DATA_BYTES);
	guest->pattern_now = c->pattern;
}

/* ---- exceptions ---- */

unsigned diff_guest_delivered(
	const struct diff_guest *guest, const struct x86_cpu *cpu, struct diff_result *r)
{
	const uint32_t with_error = 1u << X86_DF_EXC | 1u << X86_TS | 1u << X86_NP |
				    1u << X86_SS_EXC | 1u << X86_GP | 1u << X86_PF_EXC |
				    1u << X86_AC_EXC;
	const uint64_t at = cpu->s.reg[X86_RIP] - 1 - (SYS_LINEAR + HANDLERS);
	uint64_t frame[6];

	if (at >= DIFF_VECTORS * HANDLER_BYTES || at % HANDLER_BYTES)
		return DIFF_DIED;
	r->vector = (uint32_t)(at / HANDLER_BYTES);
	memory_read(guest->memory, STACK_TOP - sizeof(frame), frame, sizeof(frame));
	r->error = r->vector < 32 && (with_error >> r->vector & 1) ? (uint32_t)frame[0] : 0;
	r->cr2 = cpu->s.cr2;
	r->out.rip = frame[1];
	r->out.seg[X86_CS] = (uint16_t)frame[2];
	r->out.rflags = frame[3];
	r->out.reg[X86_RSP] = frame[4];
	r->out.seg[X86_SS] = (uint16_t)frame[5];
	return r->vector;
}
