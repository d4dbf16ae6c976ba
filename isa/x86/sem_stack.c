/*
 * The stack: PUSH POP PUSHA POPA PUSHF POPF ENTER LEAVE (SDM 2). Segment registers are elsewhere.
 * RSP moves only after the last access that may fault.
 */
#include "isa/x86/sem.h"

/* PUSH of a register or immediate; PUSH rSP pushes the old value. */
enum x86_status x86_sem_push(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_op_read(cpu, insn, 0, &value));
	return x86_push(cpu, insn->osize, value);
}

/* POP of a register: the popped value wins over the incremented rSP. */
enum x86_status x86_sem_pop(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	X86_TRY(x86_pop(cpu, insn->osize, &value));
	x86_gpr_write(cpu, insn->op[0].reg, insn->osize, value);
	return X86_OK;
}

/* POP of r/m: an address based on rSP uses it incremented. */
enum x86_status x86_sem_pop_rm(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value, before = cpu->s.reg[X86_RSP];

	X86_TRY(x86_pop(cpu, insn->osize, &value));
	enum x86_status status = x86_op_write(cpu, insn, 0, value);
	if (status != X86_OK)
		cpu->s.reg[X86_RSP] = before;
	return status;
}

enum x86_status x86_sem_pusha(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t sp = cpu->s.reg[X86_RSP], mask = x86_stack_mask(cpu), ignored;
	unsigned size = insn->osize;

	for (unsigned i = 1; i <= 8; i++)
		X86_TRY(x86_load_for_write(cpu, X86_SS, (sp - i * size) & mask, size, &ignored));
	for (unsigned i = 0; i < 8; i++)
		X86_TRY(x86_store(cpu, X86_SS, (sp - (i + 1) * size) & mask, size, cpu->s.reg[i]));
	x86_set_sp(cpu, sp - 8 * size);
	return X86_OK;
}

/* The image of rSP is skipped. */
enum x86_status x86_sem_popa(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t sp = cpu->s.reg[X86_RSP], mask = x86_stack_mask(cpu), value[8];
	unsigned size = insn->osize;

	for (unsigned i = 0; i < 8; i++)
		X86_TRY(x86_load(cpu, X86_SS, (sp + (7 - i) * size) & mask, size, &value[i]));
	for (unsigned i = 0; i < 8; i++)
		if (i != X86_RSP)
			x86_gpr_write(cpu, i, size, value[i]);
	x86_set_sp(cpu, sp + 8 * size);
	return X86_OK;
}

static bool v86_restricted(const struct x86_cpu *cpu)
{
	return (cpu->s.rflags & X86_VM) && (cpu->s.rflags & X86_IOPL) != X86_IOPL;
}

/* Virtual-8086 mode with IOPL < 3: only the 16-bit forms, and only with VME, which gives them VIF for IF. */
enum x86_status x86_sem_pushf(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t image = cpu->s.rflags & ~(uint64_t)(X86_RF | X86_VM);

	if (v86_restricted(cpu)) {
		if (!(cpu->s.cr4 & X86_CR4_VME) || insn->osize != 2)
			return x86_gp(cpu, 0);
		image = (image & ~(uint64_t)X86_IF) | X86_IOPL | (image & X86_VIF ? X86_IF : 0);
	}
	return x86_push(cpu, insn->osize, image);
}

/* The flags POPF may change in the present mode. */
static uint64_t popf_writable(const struct x86_cpu *cpu, unsigned size)
{
	uint64_t mask = X86_FLAGS_WRITABLE;
	unsigned iopl = cpu->s.rflags >> X86_IOPL_SHIFT & 3;

	if (!(cpu->s.cr0 & X86_CR0_PE) || cpu->cpl == 0)
		return size == 2 ? mask & 0xffff : mask;
	mask &= ~(uint64_t)X86_IOPL;
	if (cpu->cpl > iopl)
		mask &= ~(uint64_t)X86_IF;
	return size == 2 ? mask & 0xffff : mask;
}

/* POPF of 16 bits with VME and IOPL < 3: IF goes to VIF. */
static enum x86_status popf_vme(struct x86_cpu *cpu, uint64_t image)
{
	uint64_t mask = X86_FLAGS_WRITABLE & 0xffff & ~(uint64_t)(X86_IOPL | X86_IF);

	if ((image & X86_TF) || ((image & X86_IF) && (cpu->s.rflags & X86_VIP)))
		return x86_gp(cpu, 0);
	cpu->s.rflags = (cpu->s.rflags & ~(mask | X86_VIF)) | (image & mask) |
			(image & X86_IF ? X86_VIF : 0);
	return X86_OK;
}

static void popf_commit(struct x86_cpu *cpu, uint64_t image, unsigned size)
{
	uint64_t mask = popf_writable(cpu, size);
	uint64_t cleared = size == 2 ? 0 : X86_RF;
	cpu->s.rflags = (cpu->s.rflags & ~(mask | cleared)) | (image & mask) | X86_FLAGS_FIXED;
}

enum x86_status x86_sem_popf(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->osize;
	uint64_t image, sp = cpu->s.reg[X86_RSP] & x86_stack_mask(cpu), before = cpu->s.rflags;

	if (v86_restricted(cpu) && (!(cpu->s.cr4 & X86_CR4_VME) || size != 2))
		return x86_gp(cpu, 0);
	X86_TRY(x86_load(cpu, X86_SS, sp, size, &image));
	if (v86_restricted(cpu))
		X86_TRY(popf_vme(cpu, image));
	else
		popf_commit(cpu, image, size);
	x86_set_sp(cpu, sp + size);
	if ((cpu->s.rflags ^ before) & (X86_TF | X86_AC))
		x86_cpu_refresh(cpu);
	return X86_BOUNDARY;
}

/* The frame pointers of the enclosing procedures, copied below the pushed rBP. */
static enum x86_status enter_copy(struct x86_cpu *cpu, unsigned size, unsigned level, uint64_t *sp)
{
	uint64_t mask = x86_stack_mask(cpu), from = cpu->s.reg[X86_RBP], value;

	for (unsigned i = 1; i < level; i++) {
		from = (from - size) & mask;
		X86_TRY(x86_load(cpu, X86_SS, from, size, &value));
		*sp = (*sp - size) & mask;
		X86_TRY(x86_store(cpu, X86_SS, *sp, size, value));
	}
	return X86_OK;
}

/*
 * ENTER size, level. Stack bytes below rSP may be written before a fault; no register is. The last byte
 * of the new frame must be writable, although nothing is stored there.
 */
enum x86_status x86_sem_enter(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->osize, level = insn->imm2 & 31;
	uint64_t mask = x86_stack_mask(cpu), frame, sp, ignored;

	sp = frame = (cpu->s.reg[X86_RSP] - size) & mask;
	X86_TRY(x86_store(cpu, X86_SS, sp, size, cpu->s.reg[X86_RBP]));
	X86_TRY(enter_copy(cpu, size, level, &sp));
	if (level) {
		sp = (sp - size) & mask;
		X86_TRY(x86_store(cpu, X86_SS, sp, size, frame));
	}
	sp = (sp - (uint16_t)insn->imm) & mask;
	X86_TRY(x86_load_for_write(cpu, X86_SS, sp, size, &ignored));
	x86_gpr_write(cpu, X86_RBP, size, frame);
	x86_set_sp(cpu, sp);
	return X86_OK;
}

enum x86_status x86_sem_leave(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t sp = cpu->s.reg[X86_RBP] & x86_stack_mask(cpu), value;
	X86_TRY(x86_load(cpu, X86_SS, sp, insn->osize, &value));
	x86_set_sp(cpu, sp + insn->osize);
	x86_gpr_write(cpu, X86_RBP, insn->osize, value);
	return X86_OK;
}
