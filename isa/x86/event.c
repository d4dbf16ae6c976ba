/*
 * Delivery of exceptions and interrupts (SDM 3A chapter 6, SDM 2 "INT n", SDM 3A 20.1.4 and 20.3 for
 * real and virtual-8086 mode; AMD APM 2 chapter 8).
 *
 * An event is delivered in one attempt, which either commits everything or faults and commits nothing.
 * x86_deliver() turns a fault of an attempt into the next event: served one after the other, a double
 * fault, or a triple fault (SDM 3A table 6-5).
 *
 * Left out: the virtual-8086 mode extensions (CR4.VME is not offered), shadow stacks.
 */
#include "isa/x86/descriptor.h"

/* One attempt. */
struct delivery {
	const struct x86_event *event;
	uint32_t ext;	    /* the EXT bit of error codes */
	uint32_t idt_error; /* the error code that names the IDT entry */
	bool software;	    /* a gate's DPL is checked */
	uint64_t flags;	    /* RFLAGS as they are pushed */
};

/* An interrupt or trap gate. */
struct gate {
	uint64_t offset;
	uint16_t selector;
	uint16_t attr; /* X86_SEG_* */
	uint8_t ist;
};

/* Where the handler runs: checked, not yet loaded. */
struct target {
	struct x86_segment cs;
	uint64_t rip;
	uint8_t cpl;
};

/* Faults, as opposed to traps and aborts, are pushed with RF set (SDM 3B 17.3.1.1). */
static bool sets_rf(const struct x86_event *event)
{
	const uint32_t faults = 1u << X86_DE | 1u << X86_BR | 1u << X86_UD | 1u << X86_NM |
				1u << X86_TS | 1u << X86_NP | 1u << X86_SS_EXC | 1u << X86_GP |
				1u << X86_PF_EXC | 1u << X86_MF | 1u << X86_AC_EXC | 1u << X86_XM;

	return event->type == X86_EVENT_EXCEPTION && event->vector < 32 &&
	       (faults >> event->vector & 1);
}

static void delivery_init(
	struct delivery *d, const struct x86_cpu *cpu, const struct x86_event *event)
{
	bool soft = event->type == X86_EVENT_SOFT_INT || event->type == X86_EVENT_SOFT_EXC;

	d->event = event;
	d->software = soft;
	d->ext = soft ? 0 : 1;
	d->idt_error = event->vector * 8u + 2 + d->ext;
	d->flags = cpu->s.rflags;
	if (sets_rf(event))
		d->flags |= X86_RF;
	else if (soft || event->type == X86_EVENT_ICEBP)
		d->flags &= ~(uint64_t)X86_RF;
}

/* Read the event's entry of the IDT or IVT. */
static enum x86_status read_entry(
	struct x86_cpu *cpu, const struct delivery *d, void *entry, unsigned bytes)
{
	unsigned offset = d->event->vector * bytes;
	gva_t linear = cpu->s.idtr.base + offset;

	if (offset + bytes - 1 > cpu->s.idtr.limit)
		return x86_gp(cpu, d->idt_error);
	return x86_read_linear(
		cpu, cpu->long_mode ? linear : (uint32_t)linear, entry, bytes, false);
}

/* ---- real mode ---- */

static enum x86_status deliver_real(struct x86_cpu *cpu, const struct delivery *d)
{
	uint16_t entry[2];
	struct x86_frame frame;

	X86_TRY(read_entry(cpu, d, entry, sizeof(entry)));
	struct x86_segment cs = x86_segment_real(&cpu->s.seg[X86_CS], entry[1]);
	if (!x86_rip_within(cpu, &cs, entry[0]))
		return x86_gp(cpu, 0);
	x86_frame_current(&frame, cpu, 2, 0);
	x86_frame_push(&frame, d->flags);
	x86_frame_push(&frame, cpu->s.seg[X86_CS].selector);
	x86_frame_push(&frame, cpu->s.reg[X86_RIP]);
	X86_TRY(x86_frame_write(&frame, cpu));
	x86_frame_commit(&frame, cpu);
	cpu->s.seg[X86_CS] = cs;
	cpu->s.reg[X86_RIP] = entry[0];
	cpu->s.rflags &= ~(uint64_t)(X86_IF | X86_TF | X86_RF | X86_AC);
	return X86_BOUNDARY;
}

/* ---- protected and long mode: gates ---- */

static enum x86_status read_gate(struct x86_cpu *cpu, const struct delivery *d, struct gate *gate)
{
	uint64_t raw[2] = {0, 0};

	X86_TRY(read_entry(cpu, d, raw, cpu->long_mode ? 16 : 8));
	gate->offset = (raw[0] & 0xffff) | (raw[0] >> 32 & 0xffff0000);
	gate->selector = (uint16_t)(raw[0] >> 16);
	gate->attr = raw[0] >> 40 & 0xff;
	gate->ist = 0;
	if (cpu->long_mode) {
		gate->offset |= raw[1] << 32;
		gate->ist = raw[0] >> 32 & 7;
	}
	return X86_OK;
}

static bool gate_type_known(const struct x86_cpu *cpu, unsigned type)
{
	if (type == X86_SYS_INT32 || type == X86_SYS_TRAP32)
		return true;
	return !cpu->long_mode &&
	       (type == X86_SYS_TASK_GATE || type == X86_SYS_INT16 || type == X86_SYS_TRAP16);
}

static enum x86_status check_gate(
	struct x86_cpu *cpu, const struct delivery *d, const struct gate *gate)
{
	if (!gate_type_known(cpu, x86_attr_system(gate->attr)))
		return x86_gp(cpu, d->idt_error);
	if (d->software && x86_attr_dpl(gate->attr) < cpu->cpl)
		return x86_gp(cpu, d->idt_error);
	if (!(gate->attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, d->idt_error);
	return X86_OK;
}

/* The handler's code segment: SDM 2 "INT n", PROTECTED-MODE and IA-32e. */
static enum x86_status find_target(struct x86_cpu *cpu, const struct delivery *d,
	const struct gate *gate, struct target *target)
{
	struct x86_descriptor desc;
	uint32_t error = x86_selector_error(gate->selector, d->ext);

	X86_TRY(x86_descriptor_fetch(cpu, gate->selector, X86_GP, d->ext, &desc));
	unsigned dpl = x86_attr_dpl(desc.attr);
	if (!x86_attr_code(desc.attr) || dpl > cpu->cpl)
		return x86_gp(cpu, error);
	if (cpu->long_mode && (desc.attr & (X86_SEG_L | X86_SEG_DB)) != X86_SEG_L)
		return x86_gp(cpu, error);
	/* Virtual-8086 mode can only be left for privilege 0. */
	if ((cpu->s.rflags & X86_VM) && (x86_attr_conforming(desc.attr) || dpl))
		return x86_gp(cpu, error);
	if (!(desc.attr & X86_SEG_P))
		return x86_fault_code(cpu, X86_NP, error);
	X86_TRY(x86_descriptor_accessed(cpu, &desc));
	target->cpl = x86_attr_conforming(desc.attr) ? cpu->cpl : (uint8_t)dpl;
	target->cs = x86_descriptor_segment(&desc, (gate->selector & ~3u) | target->cpl);
	target->rip = x86_attr_system(gate->attr) & 8 ? gate->offset : gate->offset & 0xffff;
	if (!x86_rip_within(cpu, &target->cs, target->rip))
		return x86_gp(cpu, d->ext);
	return X86_OK;
}

static enum x86_status choose_stack(struct x86_cpu *cpu, const struct delivery *d,
	const struct gate *gate, const struct target *target, struct x86_frame *frame)
{
	unsigned slot = cpu->long_mode ? 8 : x86_attr_system(gate->attr) & 8 ? 4 : 2;

	if (target->cpl != cpu->cpl)
		X86_TRY(x86_frame_from_tss(frame, cpu, target->cpl, gate->ist, slot, d->ext));
	else
		x86_frame_current(frame, cpu, slot, d->ext);
	if (!cpu->long_mode)
		return X86_OK;
	if (gate->ist && target->cpl == cpu->cpl) {
		struct x86_segment ss = frame->ss;
		X86_TRY(x86_frame_from_tss(frame, cpu, target->cpl, gate->ist, slot, d->ext));
		frame->ss = ss;
	}
	frame->width = 8;
	frame->sp &= ~(uint64_t)15;
	return X86_OK;
}

static void push_frame(struct x86_frame *frame, const struct x86_cpu *cpu, const struct delivery *d,
	const struct target *target)
{
	static const uint8_t data[] = {X86_GS, X86_FS, X86_DS, X86_ES};

	if (cpu->s.rflags & X86_VM)
		for (unsigned i = 0; i < sizeof(data); i++)
			x86_frame_push(frame, cpu->s.seg[data[i]].selector);
	if (cpu->long_mode || target->cpl != cpu->cpl) {
		x86_frame_push(frame, cpu->s.seg[X86_SS].selector);
		x86_frame_push(frame, cpu->s.reg[X86_RSP]);
	}
	x86_frame_push(frame, d->flags);
	x86_frame_push(frame, cpu->s.seg[X86_CS].selector);
	x86_frame_push(frame, cpu->s.reg[X86_RIP]);
	if (d->event->has_error)
		x86_frame_push(frame, d->event->error);
}

static void enter_handler(struct x86_cpu *cpu, const struct gate *gate, const struct target *target,
	const struct x86_frame *frame)
{
	static const uint8_t data[] = {X86_GS, X86_FS, X86_DS, X86_ES};

	x86_frame_commit(frame, cpu);
	cpu->s.seg[X86_CS] = target->cs;
	cpu->s.reg[X86_RIP] = target->rip;
	if (cpu->s.rflags & X86_VM)
		for (unsigned i = 0; i < sizeof(data); i++)
			cpu->s.seg[data[i]] = x86_segment_null(0, 0);
	cpu->s.rflags &= ~(uint64_t)(X86_TF | X86_NT | X86_RF | X86_VM);
	if (!(x86_attr_system(gate->attr) & 1)) /* an interrupt gate, not a trap gate */
		cpu->s.rflags &= ~(uint64_t)X86_IF;
}

static enum x86_status deliver_protected(struct x86_cpu *cpu, const struct delivery *d)
{
	struct gate gate;
	struct target target;
	struct x86_frame frame;

	/* INT n of virtual-8086 mode is for the monitor to allow (SDM 3A 20.2.7); INT3, INTO are not. */
	if ((cpu->s.rflags & X86_VM) && d->event->type == X86_EVENT_SOFT_INT &&
		(cpu->s.rflags & X86_IOPL) != X86_IOPL)
		return x86_gp(cpu, 0);
	X86_TRY(read_gate(cpu, d, &gate));
	X86_TRY(check_gate(cpu, d, &gate));
	if (x86_attr_system(gate.attr) == X86_SYS_TASK_GATE)
		return x86_task_switch(cpu, gate.selector, X86_TASK_EVENT, d->flags, d->event);
	X86_TRY(find_target(cpu, d, &gate, &target));
	X86_TRY(choose_stack(cpu, d, &gate, &target, &frame));
	push_frame(&frame, cpu, d, &target);
	X86_TRY(x86_frame_write(&frame, cpu));
	enter_handler(cpu, &gate, &target, &frame);
	return X86_BOUNDARY;
}

/* One attempt. X86_REPEAT: as x86_task_switch(). */
static enum x86_status deliver_once(struct x86_cpu *cpu, const struct x86_event *event)
{
	struct delivery d;
	enum x86_status status;

	delivery_init(&d, cpu, event);
	if (cpu->s.cr0 & X86_CR0_PE)
		status = deliver_protected(cpu, &d);
	else
		status = deliver_real(cpu, &d);
	if (status == X86_FAULT)
		return status;
	cpu->s.activity = X86_RUNNING;
	cpu->s.interrupt_shadow = false;
	cpu->s.mov_ss_shadow = false;
	x86_cpu_refresh(cpu);
	return status;
}

/* ---- what a fault during delivery becomes ---- */

enum fault_class { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum fault_class classify(const struct x86_event *event)
{
	if (event->type != X86_EVENT_EXCEPTION)
		return BENIGN;
	switch (event->vector) {
	case X86_DE:
	case X86_TS:
	case X86_NP:
	case X86_SS_EXC:
	case X86_GP: return CONTRIBUTORY;
	case X86_PF_EXC: return PAGE_FAULT;
	case X86_DF_EXC: return DOUBLE_FAULT;
	default: return BENIGN;
	}
}

/* The architectural side effects of cpu->fault that come before its delivery; makes it an event. */
static struct x86_event take_fault(struct x86_cpu *cpu)
{
	if (cpu->fault.vector == X86_PF_EXC)
		cpu->s.cr2 = cpu->fault.address;
	if (cpu->fault.vector == X86_DB) {
		/* SDM 3B 17.2.3: B0-B3 are of this exception; the others stay until software clears
		 * them. Reserved bits read as one. */
		cpu->s.dr[6] = (cpu->s.dr[6] & ~15ull) | cpu->fault.dr6 | 0xffff0ff0;
		cpu->s.dr[7] &= ~(1ull << 13); /* GD */
		cpu->s.msr.debugctl &= ~1ull;  /* LBR */
	}
	return (struct x86_event){
		.type = X86_EVENT_EXCEPTION,
		.vector = cpu->fault.vector,
		.has_error = cpu->fault.has_error,
		.error = cpu->fault.error,
	};
}

/* `first` could not be delivered because of `second`: which is delivered next? false: shut down. */
static bool combine(const struct x86_event *first, struct x86_event *second)
{
	enum fault_class a = classify(first), b = classify(second);

	if (a == DOUBLE_FAULT && b != BENIGN)
		return false;
	if ((a == CONTRIBUTORY && b == CONTRIBUTORY) ||
		(a == PAGE_FAULT && (b == CONTRIBUTORY || b == PAGE_FAULT)))
		*second = (struct x86_event){
			.type = X86_EVENT_EXCEPTION, .vector = X86_DF_EXC, .has_error = true};
	return true;
}

static enum x86_status triple_fault(struct x86_cpu *cpu)
{
	cpu->s.event.type = X86_EVENT_NONE;
	cpu->s.activity = X86_SHUTDOWN;
	return X86_TRIPLE;
}

/* A guest can chain task gates so that each new task faults at once, for ever: stop it after this. */
#define ATTEMPTS_MAX 32

enum x86_status x86_deliver(struct x86_cpu *cpu, const struct x86_event *event)
{
	struct x86_event now = *event;

	for (unsigned attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
		cpu->s.event = now;
		if (now.type == X86_EVENT_NMI)
			cpu->s.nmi_blocked = true;
		enum x86_status status = deliver_once(cpu, &now);
		if (status != X86_FAULT && status != X86_REPEAT) {
			cpu->s.event = (struct x86_event){.type = X86_EVENT_NONE};
			return status;
		}
		struct x86_event next = take_fault(cpu);
		/* After a task switch the new task starts with a clean slate. */
		if (status == X86_FAULT && !combine(&now, &next))
			return triple_fault(cpu);
		now = next;
	}
	return triple_fault(cpu);
}

enum x86_status x86_deliver_fault(struct x86_cpu *cpu)
{
	struct x86_event event = take_fault(cpu);

	cpu->instructions++;
	return x86_deliver(cpu, &event);
}

enum x86_status x86_deliver_software(struct x86_cpu *cpu, const struct x86_event *event)
{
	enum x86_status status = deliver_once(cpu, event);

	return status == X86_REPEAT ? x86_deliver_fault(cpu) : status;
}
