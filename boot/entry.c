/*
 * Entry states: Linux boot protocol ("32-bit boot protocol", "64-bit boot protocol"), the x86/HVM
 * direct boot ABI and multiboot 0.6.96 section 3.2 agree on flat segments with interrupts off; the
 * selectors are Linux's. Segment attributes: SDM 3A 3.4.5. Page tables: SDM 3A 4.5.
 *
 * What firmware would have set up besides, and no protocol mentions: MTRRs on with write-back as the
 * default type. The local APIC's state is the board's (board_lapic_state).
 */
#include "boot/entry.h"

#include "base/bytes.h"
#include "boot/layout.h"
#include "isa/x86/state.h"
#include "memory/memory.h"

#define SELECTOR_CODE 0x10
#define SELECTOR_DATA 0x18
#define SELECTOR_TSS  0x20

#define ATTR_CODE32 (X86_SEG_G | X86_SEG_DB | X86_SEG_P | X86_SEG_S | 0xb)
#define ATTR_CODE64 (X86_SEG_G | X86_SEG_L | X86_SEG_P | X86_SEG_S | 0xb)
#define ATTR_DATA   (X86_SEG_G | X86_SEG_DB | X86_SEG_P | X86_SEG_S | 0x3)
#define ATTR_TSS    (X86_SEG_P | 0xb) /* busy: VM entry asks for it */

#define GDT_ENTRIES 6 /* the TSS takes two in long mode */
#define TSS_LIMIT   0x67

#define MTRR_DEFAULT_WRITE_BACK (BIT(11) | 6) /* SDM 3A 11.11.2.1: enabled, type WB */

#define PTE_P  BIT(0)
#define PTE_W  BIT(1)
#define PTE_PS BIT(7)

static uint64_t descriptor(uint16_t attr, uint32_t limit)
{
	uint64_t field = attr & X86_SEG_G ? limit >> 12 : limit;

	return (field & 0xffff) | (field & 0xf0000) << 32 | (uint64_t)(attr & 0xff) << 40 |
	       (uint64_t)(attr & 0xf000) << 40;
}

static int write_gdt(struct guest_memory *memory, bool long_mode)
{
	uint16_t code = long_mode ? ATTR_CODE64 : ATTR_CODE32;
	uint8_t gdt[GDT_ENTRIES * 8] = {0};

	store_le64(gdt + SELECTOR_CODE, descriptor(code, UINT32_MAX));
	store_le64(gdt + SELECTOR_DATA, descriptor(ATTR_DATA, UINT32_MAX));
	store_le64(gdt + SELECTOR_TSS, descriptor(ATTR_TSS & ~2, TSS_LIMIT));
	return memory_write(memory, BOOT_GDT_GPA, gdt, sizeof(gdt));
}

/* One PML4 page, one PDPT page, four page directories of 2 MiB pages. */
static int write_page_tables(struct guest_memory *memory)
{
	gpa_t pdpt = BOOT_PAGE_TABLES_GPA + GUEST_PAGE_SIZE;
	uint8_t table[GUEST_PAGE_SIZE] = {0};
	int r;

	store_le64(table, pdpt | PTE_P | PTE_W);
	r = memory_write(memory, BOOT_PAGE_TABLES_GPA, table, sizeof(table));
	for (unsigned i = 0; i < 4; i++)
		store_le64(table + 8 * i, (pdpt + (i + 1) * GUEST_PAGE_SIZE) | PTE_P | PTE_W);
	if (!r)
		r = memory_write(memory, pdpt, table, sizeof(table));
	for (unsigned i = 0; !r && i < 4; i++) {
		for (unsigned j = 0; j < 512; j++)
			store_le64(table + 8 * j, GIB(i) | MIB(2 * j) | PTE_P | PTE_W | PTE_PS);
		r = memory_write(
			memory, pdpt + (i + 1) * GUEST_PAGE_SIZE, table, sizeof(table));
	}
	return r;
}

/* The EBDA's segment and the size of conventional memory in KiB: kernels older than ACPI ask here. */
static int write_bda(struct guest_memory *memory)
{
	uint8_t word[2];
	int r;

	store_le16(word, (uint16_t)(BOOT_EBDA_GPA >> 4));
	r = memory_write(memory, BOOT_BDA_GPA + 0x0e, word, 2);
	store_le16(word, (uint16_t)(BOOT_EBDA_GPA >> 10));
	if (!r)
		r = memory_write(memory, BOOT_BDA_GPA + 0x13, word, 2);
	word[0] = 1; /* the EBDA's own size in KiB */
	return r ? r : memory_write(memory, BOOT_EBDA_GPA, word, 1);
}

/*
 * There is no BIOS to call, and every vector leads to a handler that says so: "carry set, nothing done", as a
 * BIOS answers a function that it does not have. Xen, for one, goes back to real mode and asks.
 */
static int write_ivt(struct guest_memory *memory)
{
	static const uint8_t handler[] = {
		0x55,			/* push bp */
		0x89, 0xe5,		/* mov bp, sp */
		0x80, 0x4e, 0x06, 0x01, /* or byte [bp + 6], 1: the caller's carry flag */
		0x5d,			/* pop bp */
		0xcf,			/* iret */
	};
	uint8_t ivt[BOOT_IVT_BYTES];
	int r;

	for (unsigned i = 0; i < BOOT_IVT_BYTES; i += 4)
		store_le32(ivt + i, (uint32_t)BOOT_NO_BIOS_GPA); /* segment 0 */
	r = memory_write(memory, 0, ivt, sizeof(ivt));
	return r ? r : memory_write(memory, BOOT_NO_BIOS_GPA, handler, sizeof(handler));
}

int boot_entry_tables(struct guest_memory *memory, bool long_mode)
{
	int r = write_gdt(memory, long_mode);

	if (!r && long_mode)
		r = write_page_tables(memory);
	if (!r)
		r = write_ivt(memory);
	return r ? r : write_bda(memory);
}

static void set_segment(
	struct x86_segment *segment, uint16_t selector, uint16_t attr, uint32_t limit)
{
	*segment = (struct x86_segment){.limit = limit, .selector = selector, .attr = attr};
}

static void entry_common(struct x86_state *state, gpa_t rip, uint16_t code)
{
	for (unsigned i = 0; i < X86_RIP; i++)
		state->reg[i] = 0;
	state->reg[X86_RIP] = rip;
	state->reg[X86_RSP] = BOOT_STACK_TOP_GPA;
	state->rflags = X86_FLAGS_FIXED;
	for (unsigned i = 0; i < 6; i++)
		set_segment(&state->seg[i], SELECTOR_DATA, ATTR_DATA, UINT32_MAX);
	set_segment(&state->seg[X86_CS], SELECTOR_CODE, code, UINT32_MAX);
	set_segment(&state->tr, SELECTOR_TSS, ATTR_TSS, TSS_LIMIT);
	state->gdtr = (struct x86_table_register){BOOT_GDT_GPA, GDT_ENTRIES * 8 - 1};
	state->idtr = (struct x86_table_register){0, 0};
	state->msr.mtrr_def_type = MTRR_DEFAULT_WRITE_BACK;
	state->activity = X86_RUNNING;
}

void boot_entry_flat32(struct x86_state *state, gpa_t rip)
{
	entry_common(state, rip, ATTR_CODE32);
	state->cr0 = X86_CR0_PE | X86_CR0_ET;
	state->cr3 = 0;
	state->cr4 = 0;
	state->msr.efer = 0;
}

void boot_entry_long64(struct x86_state *state, gpa_t rip)
{
	entry_common(state, rip, ATTR_CODE64);
	state->cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_PG;
	state->cr3 = BOOT_PAGE_TABLES_GPA;
	state->cr4 = X86_CR4_PAE;
	state->msr.efer = X86_EFER_LME | X86_EFER_LMA;
}
