/*
 * How semantic functions reach operands and memory: inline fast paths, and the slow paths they fall
 * back to (isa/x86/access.c). Every function returns X86_OK or X86_FAULT with cpu->fault recorded, and
 * changes nothing when it faults.
 *
 * Atomicity: an access within a naturally aligned 8 bytes is a single host access (x86 memory model on an
 * x86 host); larger ones are not atomic, as on a processor.
 */
#ifndef LODGE_ISA_X86_ACCESS_H
#define LODGE_ISA_X86_ACCESS_H

#include "isa/x86/cpu.h"
#include <string.h>

#define X86_TRY(expr)                                                                              \
	do {                                                                                       \
		enum x86_status x86_try_status = (expr);                                           \
		if (__builtin_expect(x86_try_status != X86_OK, 0))                                 \
			return x86_try_status;                                                     \
	} while (0)

/* ---- slow paths; any size up to 64 bytes (fxsave: 4096), page crossings, MMIO, faults ---- */

/* Linear addresses; `user`: with user privilege (system accesses to tables use false). */
enum x86_status x86_read_linear(struct x86_cpu *cpu, gva_t linear, void *buf, unsigned size, bool user);
enum x86_status x86_write_linear(struct x86_cpu *cpu, gva_t linear, const void *buf, unsigned size,
	bool user);
/* Check that a later write of [linear, +size) cannot fault. */
enum x86_status x86_probe_write(struct x86_cpu *cpu, gva_t linear, unsigned size, bool user);

/* To be called after a write to RAM of this vCPU's that did not go through a TLB entry for writing, within a
 * page: tells the engine if translated code is there. */
void x86_code_written(struct x86_cpu *cpu, gpa_t gpa, unsigned size);

/* ---- addresses ---- */

/* Effective address of the memory operand, truncated to the address size. */
static inline uint64_t x86_ea(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t ea = cpu->s.reg[insn->base] + (cpu->s.reg[insn->index] << insn->scale) +
		      (uint64_t)(int64_t)insn->disp;
	if (insn->asize == 4)
		return (uint32_t)ea;
	if (insn->asize == 2)
		return (uint16_t)ea;
	return ea;
}

/*
 * Segment:offset -> linear. In 64-bit mode a non-canonical result is caught by the TLB miss that it
 * must cause, so the fast path checks nothing.
 */
static inline enum x86_status x86_linear(struct x86_cpu *cpu, unsigned seg, uint64_t offset,
	unsigned size, enum x86_access access, gva_t *ret_linear)
{
	if (cpu->mode == 64) {
		*ret_linear = offset + (seg >= X86_FS && seg != X86_SEG_NONE ? cpu->s.seg[seg].base : 0);
		return X86_OK;
	}
	if ((cpu->flat >> seg & 1) && offset + size <= 0x100000000ull) {
		*ret_linear = offset;
		return X86_OK;
	}
	return x86_segment_check(cpu, (enum x86_seg_index)seg, offset, size, access, ret_linear);
}

/* The slow half of x86_load/x86_store: knows the segment for #SS / #GP of a non-canonical address. */
enum x86_status x86_load_slow(struct x86_cpu *cpu, unsigned seg, gva_t linear, unsigned size, void *buf);
enum x86_status x86_store_slow(struct x86_cpu *cpu, unsigned seg, gva_t linear, unsigned size,
	const void *buf);

/* Host pointer if [linear, +size) lies in one page that the TLB holds for this access, else NULL. */
static inline void *x86_tlb_host(const struct x86_cpu *cpu, gva_t linear, unsigned size,
	enum x86_access access)
{
	const struct x86_tlb_entry *e =
		&cpu->tlb_now->entry[access][x86_tlb_index(linear)];
	/* Masked, and not what was just subtracted: that would make the access wait for e->page. */
	if (__builtin_expect(linear - e->page <= GUEST_PAGE_SIZE - size, 1))
		return (void *)(e->host + (linear & ~GUEST_PAGE_MASK));
	return NULL;
}

/* One host access of 1, 2, 4 or 8 bytes; zero-extended. */
static inline uint64_t x86_host_load(const void *host, unsigned size)
{
	switch (size) {
	case 1: return *(const volatile uint8_t *)host;
	case 2: { uint16_t v; memcpy(&v, host, 2); return v; }
	case 4: { uint32_t v; memcpy(&v, host, 4); return v; }
	default: { uint64_t v; memcpy(&v, host, 8); return v; }
	}
}

static inline void x86_host_store(void *host, unsigned size, uint64_t value)
{
	switch (size) {
	case 1: *(volatile uint8_t *)host = (uint8_t)value; break;
	case 2: { uint16_t v = (uint16_t)value; memcpy(host, &v, 2); break; }
	case 4: { uint32_t v = (uint32_t)value; memcpy(host, &v, 4); break; }
	default: memcpy(host, &value, 8); break;
	}
}

/* ---- loads and stores of 1, 2, 4, 8 bytes at segment:offset, values zero-extended ---- */

static inline enum x86_status x86_load(struct x86_cpu *cpu, unsigned seg, uint64_t offset,
	unsigned size, uint64_t *ret_value)
{
	gva_t linear;
	X86_TRY(x86_linear(cpu, seg, offset, size, X86_READ, &linear));
	const void *host = x86_tlb_host(cpu, linear, size, X86_READ);
	if (__builtin_expect(!host, 0)) {
		*ret_value = 0;
		return x86_load_slow(cpu, seg, linear, size, ret_value);
	}
	*ret_value = x86_host_load(host, size);
	return X86_OK;
}

static inline enum x86_status x86_store(struct x86_cpu *cpu, unsigned seg, uint64_t offset,
	unsigned size, uint64_t value)
{
	gva_t linear;
	X86_TRY(x86_linear(cpu, seg, offset, size, X86_WRITE, &linear));
	void *host = x86_tlb_host(cpu, linear, size, X86_WRITE);
	if (__builtin_expect(!host, 0))
		return x86_store_slow(cpu, seg, linear, size, &value);
	x86_host_store(host, size, value);
	return X86_OK;
}

/* The same for buffers of any size up to 4096 (vectors, FXSAVE areas, descriptors). */
enum x86_status x86_load_bytes(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size, void *buf);
enum x86_status x86_store_bytes(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
	const void *buf);

/* #AC if alignment is checked now and an operand of this size at this address lacks it. */
enum x86_status x86_check_alignment(struct x86_cpu *cpu, gva_t linear, unsigned size);

/* Would x86_store_bytes() fault? Then it says so in its stead. */
enum x86_status x86_check_store(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size);

/* Elements of masked vector accesses, 1 to 8 bytes: alignment is never checked. */
enum x86_status x86_load_element(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
	uint64_t *ret_value);
enum x86_status x86_store_element(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
	uint64_t value);
enum x86_status x86_check_element(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size);

/*
 * Atomic read-modify-write of 1, 2, 4, 8 bytes: if the memory still holds *expected, store desired and
 * set *ret_done; else load *expected. Also right on MMIO (read, then write) and across pages.
 * Faults are those of a write, even if nothing is stored.
 */
enum x86_status x86_cmpxchg(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
	uint64_t *expected, uint64_t desired, bool *ret_done);
enum x86_status x86_cmpxchg16(struct x86_cpu *cpu, unsigned seg, uint64_t offset, uint64_t expected[2],
	const uint64_t desired[2], bool *ret_done);
/* Hold all other vCPUs outside guest code; may nest. */
void x86_exclusive_begin(struct x86_cpu *cpu);
void x86_exclusive_end(struct x86_cpu *cpu);
/* A read that is checked as a write: first half of a read-modify-write that must not half-happen. */
enum x86_status x86_load_for_write(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
	uint64_t *ret_value);

/* ---- registers ---- */

static inline uint64_t x86_size_mask(unsigned size)
{
	return ~0ull >> (64 - size * 8);
}

static inline uint64_t x86_gpr_read(const struct x86_cpu *cpu, unsigned reg, unsigned size)
{
	return cpu->s.reg[reg] & x86_size_mask(size);
}

/* 4-byte writes zero the upper half, 1 and 2 byte writes keep the rest. */
static inline void x86_gpr_write(struct x86_cpu *cpu, unsigned reg, unsigned size, uint64_t value)
{
	uint64_t *r = &cpu->s.reg[reg];
	switch (size) {
	case 1: *r = (*r & ~0xffull) | (uint8_t)value; break;
	case 2: *r = (*r & ~0xffffull) | (uint16_t)value; break;
	case 4: *r = (uint32_t)value; break;
	default: *r = value; break;
	}
}

/* ---- operands (sizes 1, 2, 4, 8): register, high byte, memory or immediate ---- */

static inline enum x86_status x86_op_read(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned i,
	uint64_t *ret_value)
{
	const struct x86_operand *op = &insn->op[i];
	switch (op->kind) {
	case X86_O_GPR: *ret_value = x86_gpr_read(cpu, op->reg, op->size); return X86_OK;
	case X86_O_MEM: return x86_load(cpu, insn->seg, x86_ea(cpu, insn), op->size, ret_value);
	case X86_O_GPR8H: *ret_value = (uint8_t)(cpu->s.reg[op->reg] >> 8); return X86_OK;
	default: *ret_value = insn->imm & x86_size_mask(op->size ? op->size : 8); return X86_OK;
	}
}

static inline enum x86_status x86_op_write(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned i,
	uint64_t value)
{
	const struct x86_operand *op = &insn->op[i];
	switch (op->kind) {
	case X86_O_GPR: x86_gpr_write(cpu, op->reg, op->size, value); return X86_OK;
	case X86_O_MEM: return x86_store(cpu, insn->seg, x86_ea(cpu, insn), op->size, value);
	default: /* X86_O_GPR8H */
		cpu->s.reg[op->reg] = (cpu->s.reg[op->reg] & ~0xff00ull) | (value & 0xff) << 8;
		return X86_OK;
	}
}

/* ---- stack ---- */

static inline uint64_t x86_stack_mask(const struct x86_cpu *cpu)
{
	return x86_size_mask(cpu->stack_bytes);
}

/* Set the stack pointer, keeping the bits above the stack's width (16 and 32-bit stacks). */
static inline void x86_set_sp(struct x86_cpu *cpu, uint64_t sp)
{
	uint64_t mask = x86_stack_mask(cpu);
	if (cpu->stack_bytes == 4)
		cpu->s.reg[X86_RSP] = (uint32_t)sp;
	else
		cpu->s.reg[X86_RSP] = (cpu->s.reg[X86_RSP] & ~mask) | (sp & mask);
}

static inline enum x86_status x86_push(struct x86_cpu *cpu, unsigned size, uint64_t value)
{
	uint64_t sp = (cpu->s.reg[X86_RSP] - size) & x86_stack_mask(cpu);
	X86_TRY(x86_store(cpu, X86_SS, sp, size, value));
	x86_set_sp(cpu, sp);
	return X86_OK;
}

static inline enum x86_status x86_pop(struct x86_cpu *cpu, unsigned size, uint64_t *ret_value)
{
	uint64_t sp = cpu->s.reg[X86_RSP] & x86_stack_mask(cpu);
	X86_TRY(x86_load(cpu, X86_SS, sp, size, ret_value));
	x86_set_sp(cpu, sp + size);
	return X86_OK;
}

#endif
