/*
 * What the protected-mode code of this room shares: descriptors, frames pushed on a stack that is not
 * loaded yet, stacks found in the TSS, and task switches. Internal to isa/x86.
 *
 * Invariant kept by everything that includes this: SS.attr's DPL is the CPL (a null SS too), and
 * CS.selector's low two bits are the CPL in protected mode.
 *
 * Every function returns X86_OK or X86_FAULT (recorded in cpu->fault), and a fault leaves the processor
 * as it was; accessed bits of descriptors that passed their checks may have been set in memory.
 *
 * `ext` is or'ed into the error code of a fault: bit 0 = the transfer is made by an event external to
 * the program (SDM 3A 6.13).
 */
#ifndef LODGE_ISA_X86_DESCRIPTOR_H
#define LODGE_ISA_X86_DESCRIPTOR_H

#include "isa/x86/access.h"

/* System descriptor types (S = 0). */
enum x86_system_type {
	X86_SYS_TSS16 = 1,
	X86_SYS_LDT = 2,
	X86_SYS_TSS16_BUSY = 3,
	X86_SYS_CALL16 = 4,
	X86_SYS_TASK_GATE = 5,
	X86_SYS_INT16 = 6,
	X86_SYS_TRAP16 = 7,
	X86_SYS_TSS32 = 9, /* 64-bit in long mode; so are the next four */
	X86_SYS_TSS32_BUSY = 11,
	X86_SYS_CALL32 = 12,
	X86_SYS_INT32 = 14,
	X86_SYS_TRAP32 = 15,
};

#define X86_TSS_BUSY_BIT 2u /* in a TSS descriptor's type */

/* A descriptor as read from the GDT or LDT. */
struct x86_descriptor {
	uint64_t raw[2]; /* the second only after x86_descriptor_extend() */
	gva_t linear;	 /* where it is */
	uint16_t selector;
	uint16_t attr; /* X86_SEG_* */
};

static inline unsigned x86_attr_dpl(uint16_t attr)
{
	return (attr & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT;
}

static inline bool x86_attr_code(uint16_t attr)
{
	return (attr & (X86_SEG_S | X86_SEG_CODE)) == (X86_SEG_S | X86_SEG_CODE);
}

static inline bool x86_attr_conforming(uint16_t attr)
{
	return x86_attr_code(attr) && (attr & X86_SEG_EXPAND);
}

static inline bool x86_attr_writable(uint16_t attr)
{
	return (attr & (X86_SEG_S | X86_SEG_CODE | X86_SEG_WRITE)) == (X86_SEG_S | X86_SEG_WRITE);
}

/* Data, or code that may be read: what a data segment register accepts. */
static inline bool x86_attr_readable(uint16_t attr)
{
	return (attr & X86_SEG_S) && (!(attr & X86_SEG_CODE) || (attr & X86_SEG_WRITE));
}

/* The type of a system descriptor or gate; 0 (reserved) for code and data. */
static inline unsigned x86_attr_system(uint16_t attr)
{
	return attr & X86_SEG_S ? 0 : attr & X86_SEG_TYPE;
}

/* Is it a TSS (either width, busy or not, as told) that exists in the present mode? */
static inline bool x86_attr_tss(const struct x86_cpu *cpu, uint16_t attr, bool busy)
{
	unsigned type = x86_attr_system(attr) ^ (busy ? X86_TSS_BUSY_BIT : 0);
	return type == X86_SYS_TSS32 || (type == X86_SYS_TSS16 && !cpu->long_mode);
}

/* A selector that names no descriptor. */
static inline bool x86_selector_null(uint16_t selector)
{
	return !(selector & 0xfffc);
}

/* The error code that names a selector. */
static inline uint32_t x86_selector_error(uint16_t selector, uint32_t ext)
{
	return (selector & 0xfffcu) | ext;
}

/* ---- descriptors (isa/x86/segment.c) ---- */

/* Read the descriptor of a selector. *ret_found is false if it is null or outside its table. */
enum x86_status x86_descriptor_read(
	struct x86_cpu *cpu, uint16_t selector, struct x86_descriptor *ret_desc, bool *ret_found);
/* The same, where an absent one is #vector(selector), and a null one #vector(0). */
enum x86_status x86_descriptor_fetch(struct x86_cpu *cpu, uint16_t selector, unsigned vector,
	uint32_t ext, struct x86_descriptor *ret_desc);
/* Long mode: read the upper half of a 16-byte system descriptor; its type must be 0, else #vector. */
enum x86_status x86_descriptor_extend(
	struct x86_cpu *cpu, struct x86_descriptor *desc, unsigned vector, uint32_t ext);
/* Set and clear bits of a descriptor's type in memory, atomically, and in *desc. */
enum x86_status x86_descriptor_type(
	struct x86_cpu *cpu, struct x86_descriptor *desc, unsigned set, unsigned clear);
/* Set the accessed bit of a code or data descriptor if it is clear. */
static inline enum x86_status x86_descriptor_accessed(
	struct x86_cpu *cpu, struct x86_descriptor *desc)
{
	if (desc->attr & X86_SEG_ACCESSED)
		return X86_OK;
	return x86_descriptor_type(cpu, desc, X86_SEG_ACCESSED, 0);
}

uint64_t x86_descriptor_base(const struct x86_descriptor *desc); /* 64 bits if it was extended */
uint32_t x86_descriptor_limit(const struct x86_descriptor *desc);
/* The segment register a descriptor makes. */
struct x86_segment x86_descriptor_segment(const struct x86_descriptor *desc, uint16_t selector);
/* A segment register with a null selector: unusable. */
struct x86_segment x86_segment_null(uint16_t selector, unsigned dpl);
/* A segment register as real mode (from its old value) or virtual-8086 mode loads it. */
struct x86_segment x86_segment_real(const struct x86_segment *old, uint16_t selector);
struct x86_segment x86_segment_v86(uint16_t selector);
/* A flat segment as SYSCALL and its kin make it: flags = X86_SEG_L, X86_SEG_DB, neither. */
struct x86_segment x86_segment_flat(uint16_t selector, bool code, unsigned dpl, uint16_t flags);

/* Does [offset, +size) lie within the segment's limit (expand-down ones too)? */
bool x86_segment_within(const struct x86_segment *seg, uint64_t offset, unsigned size);
/* May execution go on at `rip` in this code segment? */
bool x86_rip_within(const struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t rip);
/* After a change to a lower privilege: null the data segments that it may not use. */
void x86_segment_drop_privileged(struct x86_cpu *cpu);
/* A new stack segment for code that runs at `cpl`: SDM's checks, with #bad(selector) for a wrong one
 * (#TS from the TSS, #GP on returns) and #SS(selector) if it is not present. */
enum x86_status x86_stack_segment(struct x86_cpu *cpu, uint16_t selector, unsigned cpl,
	unsigned bad, uint32_t ext, struct x86_segment *ret_ss);

/* ---- frames (isa/x86/frame.c) ---- */

#define X86_FRAME_MAX 40

/* Values that are to be pushed together, on a stack that need not be the present one. */
struct x86_frame {
	struct x86_segment ss;
	uint64_t sp;	/* where the first push starts from; x86_frame_write() moves it */
	uint8_t width;	/* of the stack pointer: 2, 4, 8 bytes */
	uint8_t slot;	/* bytes of one push */
	uint8_t cpl;	/* privilege of the stack */
	uint32_t error; /* #SS's error code */
	unsigned count;
	uint64_t value[X86_FRAME_MAX];
};

/* The present stack. */
void x86_frame_current(
	struct x86_frame *frame, const struct x86_cpu *cpu, unsigned slot, uint32_t ext);
/* The stack that the TSS holds for privilege `cpl`, which must be checked and loaded by the caller's
 * commit; 64-bit in long mode, from entry `ist` if that is not 0. */
enum x86_status x86_frame_from_tss(struct x86_frame *frame, struct x86_cpu *cpu, unsigned cpl,
	unsigned ist, unsigned slot, uint32_t ext);
static inline void x86_frame_push(struct x86_frame *frame, uint64_t value)
{
	frame->value[frame->count++] = value;
}
/* Write all of it to the stack, or nothing. */
enum x86_status x86_frame_write(struct x86_frame *frame, struct x86_cpu *cpu);
/* Make frame->ss and sp the processor's stack. The caller refreshes cpu. */
void x86_frame_commit(const struct x86_frame *frame, struct x86_cpu *cpu);

/* ---- events (isa/x86/event.c) ---- */

/* INT n and its kin: deliver once; a fault comes back as X86_FAULT, as of the instruction itself. */
enum x86_status x86_deliver_software(struct x86_cpu *cpu, const struct x86_event *event);

/* ---- tasks (isa/x86/task.c) ---- */

enum x86_task_reason { X86_TASK_JMP, X86_TASK_CALL, X86_TASK_IRET, X86_TASK_EVENT };

/*
 * Switch to the task whose TSS is `selector`; RIP is saved as it is, and `flags`. The caller has checked
 * privilege. X86_FAULT: nothing happened. X86_BOUNDARY: done. X86_REPEAT: the switch happened, and
 * cpu->fault then arose in the new task and is still to be delivered.
 */
enum x86_status x86_task_switch(struct x86_cpu *cpu, uint16_t selector, enum x86_task_reason reason,
	uint64_t flags, const struct x86_event *event);
/* For instructions: the same, with what arose in the new task delivered. */
enum x86_status x86_task_transfer(
	struct x86_cpu *cpu, uint16_t selector, enum x86_task_reason reason);
/* IRET with NT: back to the task that the TSS's link names. */
enum x86_status x86_task_return(struct x86_cpu *cpu);

#endif
