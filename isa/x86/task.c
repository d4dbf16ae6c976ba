/*
 * Hardware task switches (SDM 3A chapter 8): JMP, CALL, IRET and task gates, with 16- and 32-bit TSSs, and
 * the debug trap of the T flag. They do not exist in long mode.
 *
 * A switch has two halves. Until the outgoing state is saved a fault belongs to the old task, and leaves
 * it untouched (busy bits of checked descriptors are written last). From then on a fault belongs to
 * the new one: its selectors are loaded, the descriptors that were not reached are unusable, and
 * X86_REPEAT tells the caller to deliver cpu->fault there.
 *
 * The upper halves of registers that a 16-bit TSS does not hold become zero.
 */
#include "isa/x86/descriptor.h"

/* Table 8-1 and figures 8-2, 8-10: where things are. The dynamic part is EIP up to GS (DS). */
#define TSS32_CR3     28
#define TSS32_DYNAMIC 32
#define TSS32_SAVED   64 /* bytes */
#define TSS32_LDT     96
#define TSS32_TRAP    100
#define TSS32_BYTES   104
#define TSS16_DYNAMIC 14
#define TSS16_SAVED   28
#define TSS16_LDT     42
#define TSS16_BYTES   44

#define DR6_BT	  (1ull << 15)
#define DR7_LOCAL 0x155ull /* L0-L3 and LE */

/* What is loaded from a TSS. */
struct task_state {
	uint32_t cr3, eip, eflags, reg[8];
	uint16_t seg[6], ldt;
	bool wide, trap;
};

/* A switch under way. */
struct task_switch {
	enum x86_task_reason reason;
	const struct x86_event *event; /* of X86_TASK_EVENT */
	uint64_t flags;		       /* to save */
	uint32_t ext;
	struct x86_descriptor old, next; /* of the two TSSs */
	struct x86_segment tr;		 /* the new one */
	bool wide;			 /* it is a 32-bit TSS */
};

static bool tss_wide(uint16_t attr)
{
	return x86_attr_system(attr) & 8;
}

static gva_t tss_address(const struct x86_segment *tr, unsigned offset)
{
	return (uint32_t)(tr->base + offset);
}

/* ---- the first half: in the old task ---- */

static enum x86_status fetch_next(struct x86_cpu *cpu, struct task_switch *sw, uint16_t selector)
{
	bool busy = sw->reason == X86_TASK_IRET;
	unsigned vector = busy ? X86_TS : X86_GP;
	uint32_t error = x86_selector_error(selector, sw->ext);

	if (selector & 4)
		return x86_fault_code(cpu, vector, error);
	X86_TRY(x86_descriptor_fetch(cpu, selector, vector, sw->ext, &sw->next));
	if (!x86_attr_tss(cpu, sw->next.attr, busy))
		return x86_fault_code(cpu, vector, error);
	if (!(sw->next.attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, error);
	sw->wide = tss_wide(sw->next.attr);
	sw->tr = x86_descriptor_segment(&sw->next, selector);
	sw->tr.attr |= X86_TSS_BUSY_BIT;
	if (sw->tr.limit < (sw->wide ? TSS32_BYTES : TSS16_BYTES) - 1)
		return x86_fault_code(cpu, X86_TS, error);
	return X86_OK;
}

/* Everything that the first half will write, and read: so that the rest cannot fault. */
static enum x86_status probe(struct x86_cpu *cpu, struct task_switch *sw)
{
	const struct x86_segment *tr = &cpu->s.tr;
	bool wide = tss_wide(tr->attr);
	uint8_t bytes[TSS32_BYTES];

	X86_TRY(x86_descriptor_fetch(cpu, tr->selector, X86_TS, sw->ext, &sw->old));
	if (tr->limit < (wide ? TSS32_BYTES : TSS16_BYTES) - 1)
		return x86_fault_code(cpu, X86_TS, x86_selector_error(tr->selector, sw->ext));
	X86_TRY(x86_probe_write(cpu, tss_address(tr, wide ? TSS32_DYNAMIC : TSS16_DYNAMIC),
		wide ? TSS32_SAVED : TSS16_SAVED, false));
	X86_TRY(x86_probe_write(cpu, sw->old.linear, 8, false));
	X86_TRY(x86_probe_write(cpu, sw->next.linear, 8, false));
	if (sw->reason == X86_TASK_CALL || sw->reason == X86_TASK_EVENT)
		X86_TRY(x86_probe_write(cpu, tss_address(&sw->tr, 0), 2, false));
	return x86_read_linear(
		cpu, tss_address(&sw->tr, 0), bytes, sw->wide ? TSS32_BYTES : TSS16_BYTES, false);
}

static void put32(uint8_t *bytes, unsigned index, uint32_t value)
{
	memcpy(bytes + index * 4, &value, 4);
}

static void put16(uint8_t *bytes, unsigned index, uint64_t value)
{
	uint16_t low = (uint16_t)value;
	memcpy(bytes + index * 2, &low, 2);
}

static enum x86_status save_old(struct x86_cpu *cpu, const struct task_switch *sw)
{
	const struct x86_state *s = &cpu->s;
	uint64_t flags = sw->reason == X86_TASK_IRET ? sw->flags & ~(uint64_t)X86_NT : sw->flags;
	uint8_t bytes[TSS32_SAVED];

	if (tss_wide(s->tr.attr)) {
		put32(bytes, 0, (uint32_t)s->reg[X86_RIP]);
		put32(bytes, 1, (uint32_t)flags);
		for (unsigned i = 0; i < 8; i++)
			put32(bytes, 2 + i, (uint32_t)s->reg[i]);
		for (unsigned i = 0; i < 6; i++)
			put32(bytes, 10 + i, s->seg[i].selector);
		return x86_write_linear(
			cpu, tss_address(&s->tr, TSS32_DYNAMIC), bytes, TSS32_SAVED, false);
	}
	put16(bytes, 0, s->reg[X86_RIP]);
	put16(bytes, 1, flags);
	for (unsigned i = 0; i < 8; i++)
		put16(bytes, 2 + i, s->reg[i]);
	for (unsigned i = 0; i < 4; i++)
		put16(bytes, 10 + i, s->seg[i].selector);
	return x86_write_linear(cpu, tss_address(&s->tr, TSS16_DYNAMIC), bytes, TSS16_SAVED, false);
}

/* Busy bits and the back link; all of it was probed. */
static enum x86_status link_tasks(struct x86_cpu *cpu, struct task_switch *sw)
{
	bool nested = sw->reason == X86_TASK_CALL || sw->reason == X86_TASK_EVENT;

	if (!nested)
		X86_TRY(x86_descriptor_type(cpu, &sw->old, 0, X86_TSS_BUSY_BIT));
	if (sw->reason != X86_TASK_IRET)
		X86_TRY(x86_descriptor_type(cpu, &sw->next, X86_TSS_BUSY_BIT, 0));
	if (nested)
		X86_TRY(x86_write_linear(
			cpu, tss_address(&sw->tr, 0), &cpu->s.tr.selector, 2, false));
	return X86_OK;
}

/* ---- the second half: in the new task ---- */

static uint32_t get32(const uint8_t *bytes, unsigned offset)
{
	uint32_t value;
	memcpy(&value, bytes + offset, 4);
	return value;
}

static uint16_t get16(const uint8_t *bytes, unsigned offset)
{
	uint16_t value;
	memcpy(&value, bytes + offset, 2);
	return value;
}

static enum x86_status read_state(
	struct x86_cpu *cpu, const struct task_switch *sw, struct task_state *t)
{
	uint8_t bytes[TSS32_BYTES];

	*t = (struct task_state){.wide = sw->wide};
	X86_TRY(x86_read_linear(
		cpu, tss_address(&sw->tr, 0), bytes, sw->wide ? TSS32_BYTES : TSS16_BYTES, false));
	if (!sw->wide) {
		t->eip = get16(bytes, TSS16_DYNAMIC);
		t->eflags = get16(bytes, TSS16_DYNAMIC + 2);
		for (unsigned i = 0; i < 8; i++)
			t->reg[i] = get16(bytes, TSS16_DYNAMIC + 4 + 2 * i);
		for (unsigned i = 0; i < 4; i++)
			t->seg[i] = get16(bytes, TSS16_DYNAMIC + 20 + 2 * i);
		t->ldt = get16(bytes, TSS16_LDT);
		return X86_OK;
	}
	t->cr3 = get32(bytes, TSS32_CR3);
	t->eip = get32(bytes, TSS32_DYNAMIC);
	t->eflags = get32(bytes, TSS32_DYNAMIC + 4);
	for (unsigned i = 0; i < 8; i++)
		t->reg[i] = get32(bytes, TSS32_DYNAMIC + 8 + 4 * i);
	for (unsigned i = 0; i < 6; i++)
		t->seg[i] = get16(bytes, TSS32_DYNAMIC + 40 + 4 * i);
	t->ldt = get16(bytes, TSS32_LDT);
	t->trap = get16(bytes, TSS32_TRAP) & 1;
	return X86_OK;
}

/* Registers and selectors; no descriptor yet. In virtual-8086 mode that is all there is to do. */
static void load_registers(
	struct x86_cpu *cpu, const struct task_switch *sw, const struct task_state *t)
{
	const uint32_t mask = X86_FLAGS_WRITABLE | X86_RF | X86_VM | X86_VIF | X86_VIP;
	unsigned cpl = t->seg[X86_CS] & 3;

	cpu->s.tr = sw->tr;
	cpu->s.rflags = (t->eflags & mask) | X86_FLAGS_FIXED;
	if (sw->reason == X86_TASK_CALL || sw->reason == X86_TASK_EVENT)
		cpu->s.rflags |= X86_NT;
	cpu->s.reg[X86_RIP] = t->eip;
	for (unsigned i = 0; i < 8; i++)
		cpu->s.reg[i] = t->reg[i];
	for (unsigned i = 0; i < 6; i++)
		cpu->s.seg[i] = cpu->s.rflags & X86_VM ? x86_segment_v86(t->seg[i])
						       : x86_segment_null(t->seg[i], cpl);
	cpu->s.ldtr = x86_segment_null(t->ldt, 0);
	cpu->s.cr0 |= X86_CR0_TS;
	cpu->s.dr[7] &= ~DR7_LOCAL;
	x86_cpu_refresh(cpu);
}

static enum x86_status load_ldt(
	struct x86_cpu *cpu, const struct task_switch *sw, uint16_t selector)
{
	struct x86_descriptor desc;
	uint32_t error = x86_selector_error(selector, sw->ext);

	if (x86_selector_null(selector))
		return X86_OK;
	if (selector & 4)
		return x86_fault_code(cpu, X86_TS, error);
	X86_TRY(x86_descriptor_fetch(cpu, selector, X86_TS, sw->ext, &desc));
	if (x86_attr_system(desc.attr) != X86_SYS_LDT || !(desc.attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_TS, error);
	cpu->s.ldtr = x86_descriptor_segment(&desc, selector);
	return X86_OK;
}

static enum x86_status load_code(
	struct x86_cpu *cpu, const struct task_switch *sw, uint16_t selector)
{
	struct x86_descriptor desc;
	uint32_t error = x86_selector_error(selector, sw->ext);
	unsigned rpl = selector & 3;

	X86_TRY(x86_descriptor_fetch(cpu, selector, X86_TS, sw->ext, &desc));
	unsigned dpl = x86_attr_dpl(desc.attr);
	if (!x86_attr_code(desc.attr) || (x86_attr_conforming(desc.attr) ? dpl > rpl : dpl != rpl))
		return x86_fault_code(cpu, X86_TS, error);
	if (!(desc.attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, error);
	X86_TRY(x86_descriptor_accessed(cpu, &desc));
	cpu->s.seg[X86_CS] = x86_descriptor_segment(&desc, selector);
	return X86_OK;
}

static enum x86_status load_data(
	struct x86_cpu *cpu, const struct task_switch *sw, unsigned index, uint16_t selector)
{
	struct x86_descriptor desc;
	uint32_t error = x86_selector_error(selector, sw->ext);

	if (x86_selector_null(selector)) {
		cpu->s.seg[index] = x86_segment_null(selector, 0);
		return X86_OK;
	}
	X86_TRY(x86_descriptor_fetch(cpu, selector, X86_TS, sw->ext, &desc));
	unsigned dpl = x86_attr_dpl(desc.attr);
	if (!x86_attr_readable(desc.attr) ||
		(!x86_attr_conforming(desc.attr) && (dpl < cpu->cpl || dpl < (selector & 3u))))
		return x86_fault_code(cpu, X86_TS, error);
	if (!(desc.attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, error);
	X86_TRY(x86_descriptor_accessed(cpu, &desc));
	cpu->s.seg[index] = x86_descriptor_segment(&desc, selector);
	return X86_OK;
}

static enum x86_status load_descriptors(
	struct x86_cpu *cpu, const struct task_switch *sw, const struct task_state *t)
{
	static const uint8_t data[] = {X86_DS, X86_ES, X86_FS, X86_GS};

	X86_TRY(load_ldt(cpu, sw, t->ldt));
	if (cpu->s.rflags & X86_VM)
		return X86_OK;
	X86_TRY(load_code(cpu, sw, t->seg[X86_CS]));
	X86_TRY(x86_stack_segment(
		cpu, t->seg[X86_SS], t->seg[X86_CS] & 3, X86_TS, sw->ext, &cpu->s.seg[X86_SS]));
	for (unsigned i = 0; i < sizeof(data); i++)
		X86_TRY(load_data(cpu, sw, data[i], t->seg[data[i]]));
	return X86_OK;
}

static enum x86_status push_error(struct x86_cpu *cpu, const struct task_switch *sw)
{
	struct x86_frame frame;

	if (!sw->event || !sw->event->has_error)
		return X86_OK;
	x86_frame_current(&frame, cpu, sw->wide ? 4 : 2, sw->ext);
	x86_frame_push(&frame, sw->event->error);
	X86_TRY(x86_frame_write(&frame, cpu));
	x86_frame_commit(&frame, cpu);
	return X86_OK;
}

static enum x86_status enter_task(
	struct x86_cpu *cpu, const struct task_switch *sw, const struct task_state *t)
{
	load_registers(cpu, sw, t);
	if (t->wide && (cpu->s.cr0 & X86_CR0_PG) && x86_write_cr(cpu, 3, t->cr3) == X86_FAULT)
		return X86_FAULT;
	enum x86_status status = load_descriptors(cpu, sw, t);
	x86_cpu_refresh(cpu);
	X86_TRY(status);
	X86_TRY(push_error(cpu, sw));
	if (!x86_rip_valid(cpu, cpu->s.reg[X86_RIP]))
		return x86_gp(cpu, sw->ext);
	if (!t->trap)
		return X86_OK;
	x86_fault(cpu, X86_DB);
	cpu->fault.dr6 = DR6_BT;
	return X86_FAULT;
}

/* ---- entries ---- */

enum x86_status x86_task_switch(struct x86_cpu *cpu, uint16_t selector, enum x86_task_reason reason,
	uint64_t flags, const struct x86_event *event)
{
	struct task_switch sw = {.reason = reason, .event = event, .flags = flags};
	struct task_state next;

	sw.ext = event && event->type != X86_EVENT_SOFT_INT && event->type != X86_EVENT_SOFT_EXC;
	X86_TRY(fetch_next(cpu, &sw, selector));
	X86_TRY(probe(cpu, &sw));
	X86_TRY(save_old(cpu, &sw));
	X86_TRY(link_tasks(cpu, &sw));
	X86_TRY(read_state(cpu, &sw, &next));
	if (enter_task(cpu, &sw, &next) == X86_FAULT)
		return X86_REPEAT;
	return X86_BOUNDARY;
}

enum x86_status x86_task_transfer(
	struct x86_cpu *cpu, uint16_t selector, enum x86_task_reason reason)
{
	enum x86_status status = x86_task_switch(cpu, selector, reason, cpu->s.rflags, NULL);

	return status == X86_REPEAT ? x86_deliver_fault(cpu) : status;
}

enum x86_status x86_task_return(struct x86_cpu *cpu)
{
	uint16_t link;

	if (cpu->s.tr.limit < 1)
		return x86_fault_code(cpu, X86_TS, x86_selector_error(cpu->s.tr.selector, 0));
	X86_TRY(x86_read_linear(cpu, tss_address(&cpu->s.tr, 0), &link, 2, false));
	return x86_task_transfer(cpu, link, X86_TASK_IRET);
}
