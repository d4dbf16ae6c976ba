/*
 * Memory of the ring-0 test's machine, for each of its modes: descriptor tables with right and wrong
 * descriptors, gates with right and wrong targets, task state, page tables, handlers, and code pages full
 * of INT3.
 *
 * The data pages, by their number (user, writable, no-execute):
 *	0 1 S W	  2 absent   3 S R   4 5 U W   6 U R   7 absent   8 S W NX   9 U W NX   10 S W global
 *	11 U W not accessed yet   12 reserved bits   13 S R not accessed   14 absent   15 U W
 */
#include "ring0.h"

#include "base/util.h"
#include "isa/x86/descriptor.h"

#include <string.h>

#define ENTRY_P	  1ull
#define ENTRY_W	  2ull
#define ENTRY_U	  4ull
#define ENTRY_A	  0x20ull
#define ENTRY_D	  0x40ull
#define ENTRY_PS  0x80ull
#define ENTRY_G	  0x100ull
#define ENTRY_NX  BIT(63)
#define RESERVED  BIT(50)
#define TABLE	  (ENTRY_P | ENTRY_W | ENTRY_U)
#define LEAF	  (ENTRY_P | ENTRY_W | ENTRY_A | ENTRY_D)
#define SET_BYTES 0x8000u /* of one set of tables */

#define A_CODE (X86_SEG_P | X86_SEG_S | X86_SEG_CODE | X86_SEG_WRITE | X86_SEG_ACCESSED)
#define A_DATA (X86_SEG_P | X86_SEG_S | X86_SEG_WRITE | X86_SEG_ACCESSED)
#define A_BIG  (X86_SEG_G | X86_SEG_DB)
#define A_LONG (X86_SEG_G | X86_SEG_L)
#define A_DPL3 X86_SEG_DPL
#define A_DPL1 (1u << X86_SEG_DPL_SHIFT)

static void put(uint8_t *image, uint32_t at, uint64_t value, unsigned bytes)
{
	memcpy(image + at, &value, bytes);
}

/* ---- descriptors ---- */

static uint64_t descriptor(uint32_t base, uint32_t limit20, uint16_t attr)
{
	return (limit20 & 0xffffull) | (base & 0xffffffull) << 16 | (attr & 0xffull) << 40 |
	       (limit20 >> 16 & 0xfull) << 48 | (uint64_t)(attr >> 12) << 52 |
	       (uint64_t)(base >> 24) << 56;
}

static uint64_t gate(uint32_t offset, uint16_t selector, unsigned attr, unsigned ist)
{
	return (offset & 0xffffull) | (uint64_t)selector << 16 | (uint64_t)ist << 32 |
	       (uint64_t)attr << 40 | (uint64_t)(offset >> 16) << 48;
}

static const struct {
	uint16_t selector, attr;
	uint32_t base, limit;
} descriptors[] = {
	{R0_KCODE64, A_CODE | A_LONG, 0, 0xfffff},
	{R0_KDATA, A_DATA | A_BIG, 0, 0xfffff},
	{R0_KCODE32, A_CODE | A_BIG, 0, 0xfffff},
	{R0_UCODE32, A_CODE | A_BIG | A_DPL3, 0, 0xfffff},
	{R0_UDATA, A_DATA | A_BIG | A_DPL3, 0, 0xfffff},
	{R0_UCODE64, A_CODE | A_LONG | A_DPL3, 0, 0xfffff},
	{R0_CONFORMING64, A_CODE | A_LONG | X86_SEG_EXPAND, 0, 0xfffff},
	{R0_CONFORMING32, A_CODE | A_BIG | X86_SEG_EXPAND, 0, 0xfffff},
	{R0_ABSENT_DATA, (A_DATA | A_BIG) & ~X86_SEG_P, 0, 0xfffff},
	{R0_ABSENT_CODE, (A_CODE | A_LONG) & ~X86_SEG_P, 0, 0xfffff},
	{R0_READONLY, (A_DATA | A_BIG | A_DPL3) & ~X86_SEG_WRITE, 0, 0xfffff},
	{R0_EXPAND, A_DATA | A_BIG | X86_SEG_EXPAND, 0, 0x0000a},
	{R0_DATA1, A_DATA | A_BIG | A_DPL1, 0, 0xfffff},
	{R0_CODE1, A_CODE | A_BIG | A_DPL1, 0, 0xfffff},
	{R0_EXECONLY, (A_CODE | A_BIG) & ~X86_SEG_WRITE, 0, 0xfffff},
	{R0_CODE_LD, A_CODE | A_LONG | X86_SEG_DB, 0, 0xfffff},
	{R0_SMALL, A_DATA | X86_SEG_DB | A_DPL3, R0_DATA, 0x0ffe},
	{R0_BASED, A_DATA | A_BIG | A_DPL3, R0_DATA, 0xfffff},
	{R0_CODE16, A_CODE, 0, 0xffff},
	{R0_RESERVED, X86_SEG_P | 8, 0, 0xffff},
	{R0_CODE_NEW, (A_CODE | A_LONG) & ~X86_SEG_ACCESSED, 0, 0xfffff},
	{R0_DATA_NEW, (A_DATA | A_BIG | A_DPL3) & ~X86_SEG_ACCESSED, 0, 0xfffff},
};

static void descriptor_tables(unsigned mode, uint8_t *image)
{
	const uint16_t kernel = r0_wide(mode) ? R0_KCODE64 : R0_KCODE32;
	const unsigned call = X86_SEG_P | A_DPL3 | X86_SYS_CALL32;
	const uint32_t target = R0_HANDLERS + 0x80 * 16;

	for (unsigned i = 0; i < ARRAY_SIZE(descriptors); i++) {
		uint16_t attr = descriptors[i].attr;
		/* Without long mode, code is what runs there. */
		if (!r0_wide(mode) && (attr & X86_SEG_L) && !(attr & X86_SEG_DB))
			attr ^= X86_SEG_L | X86_SEG_DB;
		put(image, R0_GDT + (descriptors[i].selector & ~7u),
			descriptor(descriptors[i].base, descriptors[i].limit, attr), 8);
	}
	put(image, R0_GDT + R0_TR, descriptor(R0_TSS, 0x1ff, X86_SEG_P | X86_SYS_TSS32_BUSY), 8);
	put(image, R0_GDT + R0_TR_FREE, descriptor(R0_TSS2, 0x1ff, X86_SEG_P | X86_SYS_TSS32), 8);
	put(image, R0_GDT + R0_LDTR, descriptor(R0_LDT, 0x3f, X86_SEG_P | X86_SYS_LDT), 8);
	put(image, R0_GDT + R0_CALL, gate(target, kernel, call, 0), 8);
	put(image, R0_GDT + R0_CALL_ABSENT, gate(target, kernel, call & ~X86_SEG_P, 0), 8);
	put(image, R0_GDT + R0_CALL_WRONG, gate(target, R0_KDATA, call, 0), 8);
	put(image, R0_GDT + R0_INT_GATE, gate(target, kernel, X86_SEG_P | X86_SYS_INT32, 0), 8);
	put(image, R0_GDT + R0_TASK_GATE,
		gate(0, R0_TR_FREE, X86_SEG_P | A_DPL3 | X86_SYS_TASK_GATE, 0), 8);
	/* The local table: the first six of the global one. */
	memcpy(image + R0_LDT, image + R0_GDT, 0x38);
}

/* ---- gates ---- */

/* Vectors from 0x20 on: right and wrong in every way, open to INT n at privilege 3 but for the last. */
static const struct {
	uint8_t attr, ist;
	uint16_t selector; /* 0: the kernel's code */
	uint32_t offset;   /* on a page that is not there; 0: the vector's handler */
} gates[] = {
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, 0, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_TRAP32, 0, 0, 0},
	{A_DPL3 | X86_SYS_INT32, 0, 0, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, 3, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, R0_KDATA, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, 0x200, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, R0_CONFORMING64, 0},
	{X86_SEG_P | A_DPL3 | 0xd, 0, 0, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_CALL32, 0, 0, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_TASK_GATE, 0, R0_TR_FREE, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 1, 0, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_TRAP32, 7, 0, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, R0_ABSENT_CODE, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT16, 0, 0, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, R0_UCODE64, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, 0x04 | 8, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, R0_CODE_NEW, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, R0_CODE1, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, R0_CODE_LD, 0},
	{X86_SEG_P | A_DPL3 | X86_SYS_INT32, 0, 0, R0_DATA + 0x2000},
	{X86_SEG_P | X86_SYS_INT32, 0, 0, 0},
};

static void interrupt_table(unsigned mode, uint8_t *image)
{
	const unsigned entry = r0_wide(mode) ? 16 : 8;
	const uint16_t kernel = r0_wide(mode) ? R0_KCODE64 : R0_KCODE32;

	for (unsigned v = 0; v < R0_VECTORS; v++) {
		unsigned attr = X86_SEG_P | X86_SYS_INT32, ist = v == X86_DF_EXC ? 1 : 0;
		uint32_t offset = R0_HANDLERS + 16 * v;
		uint16_t selector = kernel;

		if (v == X86_BP || v == X86_OF_EXC)
			attr |= A_DPL3;
		if (v >= 0x20 && v - 0x20 < ARRAY_SIZE(gates)) {
			attr = gates[v - 0x20].attr;
			ist = gates[v - 0x20].ist;
			selector = gates[v - 0x20].selector ? gates[v - 0x20].selector : kernel;
			if (gates[v - 0x20].offset && r0_paged(mode))
				offset = gates[v - 0x20].offset;
		}
		put(image, R0_IDT + entry * v,
			gate(offset, selector, attr, r0_wide(mode) ? ist : 0), 8);
	}
}

/* ---- tasks ---- */

static void task_state(unsigned mode, uint8_t *image)
{
	static const uint32_t tss[2] = {R0_TSS, R0_TSS2};

	for (unsigned i = 0; i < 2; i++) {
		if (r0_wide(mode)) {
			put(image, tss[i] + 4, R0_STACK0, 8);
			put(image, tss[i] + 12, R0_STACK0 - 0x80, 8);
			put(image, tss[i] + 36, R0_IST, 8);
			put(image, tss[i] + 84, R0_DATA + 0x2100, 8); /* IST7: not there */
		} else {
			put(image, tss[i] + 4, R0_STACK0, 4);
			put(image, tss[i] + 8, R0_KDATA, 2);
			put(image, tss[i] + 12, R0_STACK0 - 0x80, 4);
			put(image, tss[i] + 16, R0_DATA1 | 1, 2);
		}
		put(image, tss[i] + 102, 0x68, 2);
		/* Ports whose number has bit 2 set are free to all. */
		memset(image + tss[i] + 0x68, 0x0f, 0x90);
	}
	if (r0_wide(mode))
		return;
	put(image, R0_TSS2 + 28, r0_cr3(mode, false), 4);
	put(image, R0_TSS2 + 32, R0_HANDLERS + 0x90 * 16, 4);
	put(image, R0_TSS2 + 36, 2, 4);
	put(image, R0_TSS2 + 56, R0_STACK0 - 0x100, 4);
	for (unsigned i = 0; i < 6; i++)
		put(image, R0_TSS2 + 72 + 4 * i, i == X86_CS ? R0_KCODE32 : R0_KDATA, 2);
	put(image, R0_TSS2 + 96, R0_LDTR, 2);
}

/* ---- page tables ---- */

/* What maps a page below R0_RAM_BYTES; the second set has the data pages in another order. */
static uint64_t leaf(uint32_t linear, bool second)
{
	static const uint64_t data[R0_DATA_PAGES] = {LEAF, LEAF, 0, LEAF & ~ENTRY_W, LEAF | ENTRY_U,
		LEAF | ENTRY_U, (LEAF | ENTRY_U) & ~ENTRY_W, 0, LEAF | ENTRY_NX,
		LEAF | ENTRY_U | ENTRY_NX, LEAF | ENTRY_G, ENTRY_P | ENTRY_W | ENTRY_U,
		LEAF | RESERVED, ENTRY_P, 0, LEAF | ENTRY_U};
	const uint32_t page = (linear - R0_DATA) / 0x1000;

	if (linear < 0x1000)
		return 0;
	if (linear >= R0_UCODE && linear < R0_UCODE + 0x2000)
		return (linear - R0_UCODE + R0_CODE) | LEAF | ENTRY_U;
	if (linear >= R0_USTACK && linear < R0_USTACK + 0x1000)
		return linear | LEAF | ENTRY_U;
	if (linear < R0_DATA || page >= R0_DATA_PAGES)
		return linear | LEAF;
	return (second ? linear ^ 0x1000 : linear) | data[second ? page ^ 3 : page];
}

static void tables_long(uint8_t *image, uint32_t at, bool second)
{
	const uint32_t pdpt = at + 0x1000, pd = at + 0x2000, pt = at + 0x3000;

	put(image, at, pdpt | TABLE, 8);
	put(image, at + 8 * 511, pdpt | TABLE, 8);
	put(image, pdpt, pd | TABLE, 8);
	put(image, pdpt + 8 * 510, pd | TABLE, 8);
	put(image, pd, pt | TABLE, 8);
	put(image, pd + 8 * 2, LEAF | ENTRY_PS | (second ? ENTRY_G : 0), 8);
	put(image, pd + 8 * 4, (LEAF & ~ENTRY_W) | ENTRY_U | ENTRY_PS | (second ? 0 : ENTRY_NX), 8);
	for (uint32_t i = 0; i < R0_RAM_BYTES / 0x1000; i++)
		put(image, pt + 8 * i, leaf(i * 0x1000, second), 8);
}

static void tables_pae(uint8_t *image, uint32_t at, bool second)
{
	tables_long(image, at, second);
	memset(image + at, 0, 0x2000);
	for (unsigned i = 0; i < 2; i++)
		put(image, at + 8 * 3 * i, (at + 0x2000) | ENTRY_P, 8);
}

static void tables_pse(uint8_t *image, uint32_t at, bool second)
{
	const uint32_t pt = at + 0x3000;

	put(image, at, pt | TABLE, 4);
	put(image, at + 4 * 1, LEAF | ENTRY_PS | (second ? ENTRY_G : 0), 4);
	put(image, at + 4 * 2, (LEAF & ~ENTRY_W) | ENTRY_U | ENTRY_PS, 4);
	for (uint32_t i = 0; i < R0_RAM_BYTES / 0x1000; i++)
		put(image, pt + 4 * i, leaf(i * 0x1000, second) & 0xffffffff, 4);
}

uint64_t r0_cr3(unsigned mode, bool second)
{
	return r0_paged(mode) ? R0_TABLES + (second ? SET_BYTES : 0) : 0;
}

uint32_t r0_entry_gpa(unsigned mode, uint32_t linear)
{
	return R0_TABLES + 0x3000 + linear / 0x1000 * (mode == R0_PSE ? 4 : 8);
}

/* ---- the whole ---- */

static void code(uint8_t *image)
{
	static const uint8_t end[] = {0xe6, R0_END_PORT, 0xf4};

	memset(image + R0_CODE, 0xcc, 0x2000);
	memset(image + R0_UCODE, 0xcc, 0x2000);
	for (unsigned i = 0; i < 256; i++)
		memcpy(image + R0_HANDLERS + 16 * i, end, sizeof(end));
}

void r0_image(unsigned mode, uint8_t *image)
{
	memset(image, 0, R0_RAM_BYTES);
	for (unsigned i = 0; i < 3; i++)
		diff_pattern(mode, i, image + R0_DATA + i * DIFF_DATA_BYTES);
	diff_pattern(mode, 3, image + 0x30000);
	code(image);
	descriptor_tables(mode, image);
	interrupt_table(mode, image);
	task_state(mode, image);
	for (unsigned second = 0; second < 2 && r0_paged(mode); second++) {
		const uint32_t at = (uint32_t)r0_cr3(mode, second);

		if (mode == R0_PAE)
			tables_pae(image, at, second);
		else if (mode == R0_PSE)
			tables_pse(image, at, second);
		else
			tables_long(image, at, second);
	}
}

struct x86_segment r0_segment(const uint8_t *image, uint16_t selector)
{
	struct x86_descriptor desc = {0};

	if (!(selector & 0xfffc))
		return (struct x86_segment){.selector = selector};
	memcpy(&desc.raw[0], image + (selector & 4 ? R0_LDT : R0_GDT) + (selector & 0xfff8), 8);
	desc.attr = desc.raw[0] >> 40 & 0xf0ff;
	return x86_descriptor_segment(&desc, selector);
}
