/*
 * The differential test of ring-0 snippets: what its parts share. A case is a few instructions with the
 * whole state of a processor and the memory of a machine that has descriptor tables, task state, page
 * tables and exception handlers, but no operating system. It runs in two engines, through engine_ops, and
 * everything is compared: image.c makes the memory, gen.c the cases, machine.c runs them, compare.c judges.
 *
 * Every case ends at an OUT to END_PORT, which stands behind the snippet and in every handler: the address
 * of the OUT is the vector, the frame on the stack says the rest. What jumps elsewhere meets INT3.
 *
 * Linear addresses in all modes (in those without paging they are the physical ones):
 *	GDT, IDT, LDT, TSS, HANDLERS, CODE, STACK: supervisor
 *	UCODE (an alias of CODE), USTACK: user
 *	DATA: 16 pages of every kind, see image.c
 *	LARGE_S, LARGE_U: all of memory once more, by a large page: supervisor; user, read-only, no execution
 *	HIGH + any of these, in 64-bit mode
 */
#ifndef LODGE_TESTS_RING0_H
#define LODGE_TESTS_RING0_H

#include "engine/engine.h"
#include "tests/diff/gen.h"

#include <stdio.h>

#define R0_RAM_BYTES  0x40000u
#define R0_GDT	      0x1000u
#define R0_GDT_LIMIT  0x13fu
#define R0_IDT	      0x2000u
#define R0_LDT	      0x3000u
#define R0_TSS	      0x4000u
#define R0_TSS2	      0x4200u /* of another task */
#define R0_HANDLERS   0x5000u /* 16 bytes each */
#define R0_CODE	      0x6000u /* two pages */
#define R0_UCODE      0x8000u
#define R0_STACK      0xa000u /* two pages */
#define R0_STACK0     0xcf00u /* of privilege 0, in the TSS */
#define R0_IST	      0xc808u
#define R0_USTACK     0xd000u
#define R0_DATA	      0x10000u
#define R0_DATA_PAGES 16u
#define R0_TABLES     0x20000u
#define R0_LARGE_S    0x400000u
#define R0_LARGE_U    0x800000u
#define R0_HIGH	      0xffffffff80000000ull
#define R0_END_PORT   0xf4u
#define R0_PORT	      0x300u
#define R0_VECTORS    0x40u /* of the IDT */

/* Selectors. The order of the first six is what SYSCALL, SYSRET, SYSENTER and SYSEXIT want. */
enum {
	R0_KCODE64 = 0x08,
	R0_KDATA = 0x10,
	R0_KCODE32 = 0x18,
	R0_UCODE32 = 0x23,
	R0_UDATA = 0x2b,
	R0_UCODE64 = 0x33,
	R0_CONFORMING64 = 0x38,
	R0_CONFORMING32 = 0x40,
	R0_ABSENT_DATA = 0x48,
	R0_ABSENT_CODE = 0x50,
	R0_READONLY = 0x58,
	R0_EXPAND = 0x60,
	R0_DATA1 = 0x68, /* of privilege 1 */
	R0_CODE1 = 0x70,
	R0_EXECONLY = 0x78,
	R0_TR = 0x80,
	R0_LDTR = 0x90,
	R0_CALL = 0xa0,
	R0_CALL_ABSENT = 0xb0,
	R0_TR_FREE = 0xc0,
	R0_CALL_WRONG = 0xd0, /* to data */
	R0_CODE_LD = 0xe0,    /* L and D at once */
	R0_SMALL = 0xe8,      /* data, with a base and a small limit */
	R0_BASED = 0xf0,
	R0_CODE16 = 0xf8,
	R0_INT_GATE = 0x100,
	R0_RESERVED = 0x108,
	R0_TASK_GATE = 0x110,
	R0_CODE_NEW = 0x118, /* not accessed yet */
	R0_DATA_NEW = 0x120,
	R0_ZERO = 0x128,
};

enum r0_mode {
	R0_LONG,   /* 64-bit code */
	R0_COMPAT, /* 32-bit code in long mode */
	R0_FLAT,   /* protected mode without paging */
	R0_PSE,	   /* with two levels of tables */
	R0_PAE,	   /* with three */
	R0_MODES
};

static inline bool r0_wide(unsigned mode)
{
	return mode <= R0_COMPAT;
}

static inline unsigned r0_code_bits(unsigned mode)
{
	return mode == R0_LONG ? 64 : 32;
}

static inline bool r0_paged(unsigned mode)
{
	return mode != R0_FLAT;
}

#define R0_PATCHES     12
#define R0_PATCH_BYTES 64
#define R0_CODE_MAX    80
#define R0_INSNS_MAX   4

struct r0_patch {
	uint32_t gpa;
	uint32_t size_bytes;
	uint8_t bytes[R0_PATCH_BYTES];
};

struct r0_case {
	struct x86_state in;
	uint8_t mode, cpl; /* enum r0_mode */
	uint8_t code_bytes, patch_count, insn_count;
	uint16_t row[R0_INSNS_MAX];
	uint32_t code_gpa;
	uint64_t undefined; /* flags that the last instruction leaves undefined */
	uint8_t code[R0_CODE_MAX];
	struct r0_patch patch[R0_PATCHES];
};

/* How a case ended. */
enum r0_end { R0_END_OUT, R0_END_SHUTDOWN, R0_END_HALTED, R0_END_LATE, R0_END_ERROR, R0_END_RESET };

struct r0_result {
	enum r0_end end;
	struct x86_state out;
	const uint8_t *ram;
	bool mmio;     /* it used physical addresses without RAM */
	bool emulated; /* engine/kvm had the interpreter do a part of it */
	char error[1024];
};

/* One engine with its memory. */
struct r0_machine;
int r0_machine_create(struct r0_machine **ret_machine, const struct engine_ops *ops,
	const struct x86_cpuid_model *model, struct error *err);
void r0_machine_free(struct r0_machine *m);
/* The model that the guest sees: what the engine left of the one that it was given. */
const struct x86_cpuid_model *r0_machine_model(const struct r0_machine *m);
/* Run one case from `image`; result->ram is valid until the next. limit_ms: an end that does not come is R0_END_LATE. */
int r0_machine_run(struct r0_machine *m, const uint8_t *image, const struct r0_case *c,
	unsigned limit_ms, struct r0_result *ret_result);

/* ---- image.c ---- */

/* Memory of a mode, R0_RAM_BYTES. */
void r0_image(unsigned mode, uint8_t *image);
/* The page tables: CR3 of the first set and of the second. */
uint64_t r0_cr3(unsigned mode, bool second);
/* A descriptor of the image as it is once loaded. */
struct x86_segment r0_segment(const uint8_t *image, uint16_t selector);
/* The entry of the image's lowest table that maps a page below R0_RAM_BYTES; its size is 8, or 4 for R0_PSE. */
uint32_t r0_entry_gpa(unsigned mode, uint32_t linear);

/* ---- gen.c ---- */

struct r0_rows {
	uint16_t *system, *any;
	unsigned system_count, any_count;
};

/* What the other engine is known to do wrong depends on what runs it. */
enum r0_host {
	R0_HOST_REAL,	  /* a processor, or what is as good as one */
	R0_HOST_SOFTWARE, /* a KVM that emulates ring 0 in software */
	R0_HOST_TCG,	  /* a KVM inside QEMU's emulation */
};

struct r0_source {
	const uint8_t *image[R0_MODES];
	struct x86_feature_set features;
	struct r0_rows rows;
	uint32_t modes; /* a bit for each that is wanted */
	enum r0_host host;
};

/* Choose rows of the table: those of `only` (a name, or NULL for all). Returns -ENOENT if none is left. */
int r0_rows_choose(struct r0_source *source, const char *only);
void r0_generate(
	const struct r0_source *source, uint64_t seed, uint64_t index, struct r0_case *ret_case);

/* ---- compare.c ---- */

/* A case of one source, and what it came to in interp and in the other engine. */
struct r0_verdict {
	const struct r0_source *source;
	const struct r0_case *c;
	const struct r0_result *interp, *other;
	const char *name; /* of the other engine */
	bool avx;
};

/* Is everything that is defined the same? */
bool r0_agree(const struct r0_verdict *v);
/* The differences; `all`: the whole case. */
void r0_print(FILE *out, const struct r0_verdict *v, bool all);

/* ---- excuse.c ---- */

/* A reason not to run a case in the other engine, or not to hold a difference against either; NULL: none. */
const char *r0_excuse_before(
	const struct r0_source *source, const struct r0_case *c, const struct r0_result *interp);
const char *r0_excuse(const struct r0_verdict *v);
/* Make the same in both states what differs only in a way that the host is known for. */
void r0_excuse_state(const struct r0_verdict *v, struct x86_state *interp, struct x86_state *other);
/* Does a word of memory differ in no other way? */
bool r0_excuse_memory(const struct r0_verdict *v, uint32_t gpa, uint32_t interp, uint32_t other);

#endif
