/*
 * Fuzz target: a whole small machine (two processors, 16 MiB, the board of rig.h) that runs the input.
 *
 * The input chooses a mode (real to long), changes bytes of the descriptor tables, page tables and TSSs
 * that were made for that mode, and of the processor's state as a hostile snapshot might; what is left
 * of it is the code. All vectors lead back into the code, so that a fault is not the end.
 *
 * Each input runs a bounded number of steps with x86_step(), or in an engine (FUZZ_ENGINE, else the
 * interpreter) until a thread kicks it. What must hold: nothing crashes, no sanitizer complains, each step ends soon, no
 * byte of memory changes without the dirty log knowing (rig_wipe() relies on it).
 */
#include "tests/fuzz/rig.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "engine/soft/soft.h"
#include "isa/x86/cpuid.h"

#define STEPS_MAX 3000
#define ENGINE_US 400 /* until the kick */
/* What an input may take; a few milliseconds are usual, but hosts may be busy. */
#define INPUT_NS_MAX 10000000000ull

/* Where things are; all within the first MiB, mapped one to one. */
#define GDT	   0x1000
#define IDT	   0x2000
#define TSS	   0x3000 /* TSS2 0x100 after it */
#define LDT	   0x3800
#define TABLES	   0x4000 /* up to four levels, a page each */
#define STACK	   0x9000
#define CODE	   0x10000
#define CODE_BYTES 0x2000

enum mode { REAL, REAL_BIG, PROTECTED16, PROTECTED32, PAGED32, PAE32, LONG64, COMPAT, V86, MODES };

struct machine {
	struct rig rig;
	struct engine_vm *vm;
	struct engine_vcpu *vcpu[RIG_CPUS];
	struct soft_vm step_vm; /* for the steps: vCPU 0 with no engine around it */
	struct soft_vcpu step;
	uint8_t *ram;
};

/* ---- tables ---- */

static void put(struct machine *m, gpa_t at, uint64_t value, unsigned bytes)
{
	MUST(memory_write(m->rig.memory, at, &value, bytes) == 0);
}

static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t attr)
{
	return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 |
	       (uint64_t)(attr & 0xff) << 40 | (uint64_t)(limit >> 16 & 15) << 48 |
	       (uint64_t)(attr >> 12 & 15) << 52 | (uint64_t)(base >> 24) << 56;
}

enum {
	CODE0 = 8,
	DATA0 = 16,
	CODE3 = 24,
	DATA3 = 32,
	CODE64 = 40,
	TR = 48,
	TR2 = 64,
	LDTR = 80,
	GATE = 96,
	TASK = 112
};

static void write_gdt(struct machine *m, bool wide)
{
	const uint32_t size = wide ? 0xc000 : 0x0000;

	put(m, GDT + CODE0, descriptor(0, 0xfffff, 0x9b | size | 0x8000), 8);
	put(m, GDT + DATA0, descriptor(0, 0xfffff, 0x93 | size | 0x8000), 8);
	put(m, GDT + CODE3, descriptor(0, 0xfffff, 0xfb | size | 0x8000), 8);
	put(m, GDT + DATA3, descriptor(0, 0xfffff, 0xf3 | size | 0x8000), 8);
	put(m, GDT + CODE64, descriptor(0, 0xfffff, 0x9b | 0xa000), 8);
	put(m, GDT + TR, descriptor(TSS, 0xff, 0x8b), 8);
	put(m, GDT + TR2, descriptor(TSS + 0x100, 0xff, 0x89), 8);
	put(m, GDT + LDTR, descriptor(LDT, 0xff, 0x82), 8);
	put(m, GDT + GATE,
		(CODE & 0xffff) | CODE0 << 16 | 0xec00ull << 32 | (uint64_t)(CODE >> 16) << 48, 8);
	put(m, GDT + TASK, (uint64_t)TR2 << 16 | 0xe500ull << 32, 8);
}

static void write_idt(struct machine *m, enum mode mode)
{
	for (unsigned v = 0; v < 256; v++) {
		uint32_t to = CODE + v * 16 % CODE_BYTES;
		uint64_t gate = (to & 0xffff) | (v % 8 == 7 ? 0xef00ull : 0xee00ull) << 32 |
				(uint64_t)(to >> 16) << 48;
		if (mode == LONG64 || mode == COMPAT)
			put(m, IDT + v * 16, gate | CODE64 << 16, 8);
		else if (mode == REAL || mode == REAL_BIG)
			put(m, v * 4, (to >> 4) << 16, 4);
		else
			put(m, IDT + v * 8, gate | CODE0 << 16, 8);
	}
}

static void write_tss(struct machine *m, enum mode mode)
{
	if (mode == LONG64 || mode == COMPAT) {
		for (unsigned at = 4; at < 92; at += 8)
			put(m, TSS + at, STACK, 8);
		return;
	}
	for (gpa_t tss = TSS; tss <= TSS + 0x100; tss += 0x100) {
		put(m, tss + 4, STACK, 4);
		put(m, tss + 8, DATA0, 4);
		put(m, tss + 28, TABLES, 4);
		put(m, tss + 32, CODE, 4);
		put(m, tss + 36, 0x202, 4);
		put(m, tss + 56, STACK, 4);
		for (unsigned i = 0; i < 6; i++)
			put(m, tss + 72 + i * 4, i == 1 ? CODE0 : DATA0, 4);
	}
}

static void write_tables(struct machine *m, enum mode mode)
{
	if (mode == PAGED32 || mode == V86) {
		put(m, TABLES, TABLES + 0x1007, 4);
		put(m, TABLES + 4, 0x400087, 4);
		put(m, TABLES + 0x3fb * 4, 0xfec00087, 4);
		for (unsigned i = 0; i < 256; i++)
			put(m, TABLES + 0x1000 + i * 4, i << 12 | 7, 4);
		return;
	}
	gpa_t at = TABLES;
	if (mode != PAE32) { /* level 4 */
		put(m, at, at + 0x1007, 8);
		put(m, at + 0x1ff * 8, at + 7, 8); /* itself */
		at += 0x1000;
	}
	put(m, at, at + 0x1000 + (mode == PAE32 ? 1 : 7), 8);
	put(m, at + 24, at + 0x1000 + (mode == PAE32 ? 1 : 7), 8);
	at += 0x1000;
	put(m, at, at + 0x1007, 8);
	put(m, at + 8, 0x200087, 8);
	put(m, at + 0x1f7 * 8, 0xfee00087, 8);
	put(m, at + 0x1f6 * 8, 0xfec00087, 8);
	at += 0x1000;
	for (unsigned i = 0; i < 256; i++)
		put(m, at + i * 8, i << 12 | 7, 8);
}

/* ---- the processor's state ---- */

static struct x86_segment segment(uint16_t selector, uint32_t attr)
{
	return (struct x86_segment){
		.selector = selector, .limit = 0xffffffff, .attr = (uint16_t)attr};
}

static void state_protected(struct x86_state *s, enum mode mode, unsigned cpl)
{
	const uint32_t dpl = cpl << 5, wide = mode == PROTECTED16 ? 0 : 0xc000;

	s->cr0 |= X86_CR0_PE;
	s->seg[X86_CS] = segment((uint16_t)(cpl ? CODE3 | 3 : CODE0), 0x9b | dpl | wide);
	for (unsigned i = 0; i < 6; i++)
		if (i != X86_CS)
			s->seg[i] = segment((uint16_t)(cpl ? DATA3 | 3 : DATA0), 0x93 | dpl | wide);
	s->tr = (struct x86_segment){TSS, 0xff, TR, 0x8b};
	s->ldtr = (struct x86_segment){LDT, 0xff, LDTR, 0x82};
	s->gdtr = (struct x86_table_register){GDT, 0xff};
	s->idtr = (struct x86_table_register){IDT, 0xfff};
	s->cr3 = TABLES;
	if (mode >= PAGED32)
		s->cr0 |= X86_CR0_PG;
	if (mode == PAGED32 || mode == V86)
		s->cr4 |= X86_CR4_PSE;
	if (mode == PAE32 || mode == LONG64 || mode == COMPAT)
		s->cr4 |= X86_CR4_PAE;
	if (mode == PAE32)
		for (unsigned i = 0; i < 4; i += 3)
			s->pdpte[i] = TABLES + 0x1001;
	if (mode == LONG64 || mode == COMPAT)
		s->msr.efer |= X86_EFER_LME | X86_EFER_LMA;
	if (mode == LONG64)
		s->seg[X86_CS].attr = (uint16_t)(0xa09b | dpl);
}

static void state_for(struct x86_state *s, enum mode mode, unsigned cpl, struct rig_input *in)
{
	x86_state_reset(s);
	s->cr0 = X86_CR0_ET | X86_CR0_NE;
	s->cr4 = X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE;
	s->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
	s->msr.efer = X86_EFER_SCE | X86_EFER_NXE;
	s->msr.lstar = s->msr.cstar = s->msr.sysenter_eip = CODE + 0x100;
	s->msr.star = (uint64_t)CODE0 << 32 | (uint64_t)CODE3 << 48;
	s->msr.sysenter_cs = CODE0;
	s->msr.sysenter_esp = STACK;
	for (unsigned i = 0; i < 16; i++)
		s->reg[i] = i % 3 ? CODE + 64 * i : rig_take(in, 4);
	s->reg[X86_RSP] = STACK - 64;
	s->reg[X86_RIP] = CODE;
	for (unsigned i = 0; i < 6; i++) {
		s->seg[i].base = i == X86_CS ? CODE : 0;
		s->seg[i].selector = i == X86_CS ? CODE >> 4 : 0;
	}
	if (mode == REAL || mode == REAL_BIG)
		s->reg[X86_RIP] = 0;
	if (mode == REAL_BIG)
		for (unsigned i = 0; i < 6; i++)
			s->seg[i].limit = 0xffffffff;
	if (mode == V86) {
		state_protected(s, mode, 3);
		s->rflags |= X86_VM | X86_IOPL;
		for (unsigned i = 0; i < 6; i++)
			s->seg[i] = (struct x86_segment){CODE, 0xffff, CODE >> 4, 0xf3};
		s->reg[X86_RIP] = 0;
	} else if (mode >= PROTECTED16) {
		state_protected(s, mode, cpl);
	}
}

/* A bool that is neither true nor false cannot come out of a stream; any other byte can. */
static void normalise(struct x86_state *s)
{
	bool *const bools[] = {&s->interrupt_shadow, &s->mov_ss_shadow, &s->nmi_blocked,
		&s->nmi_pending, &s->event.has_error};

	for (unsigned i = 0; i < ARRAY_SIZE(bools); i++) {
		uint8_t byte;
		memcpy(&byte, bools[i], 1);
		*bools[i] = byte & 1;
	}
}

/* Everywhere but in the vector registers, which may hold anything and are most of the state. */
static void mutate_state(struct x86_state *s, struct rig_input *in)
{
	const size_t hole = offsetof(struct x86_state, fpu.vec), skip = sizeof(s->fpu.vec);
	unsigned count = (unsigned)rig_take(in, 1) % 16;

	for (unsigned i = 0; i < count; i++) {
		size_t at = rig_take(in, 2) % (sizeof(*s) - skip);
		size_t bytes = rig_take(in, 1) % 8 + 1;

		at += at >= hole ? skip : 0;
		rig_take_bytes(in, (uint8_t *)s + at, MIN(bytes, sizeof(*s) - at));
	}
	normalise(s);
}

/* Nothing of it is right. */
static void scramble_state(struct x86_state *s, struct rig_input *in)
{
	uint64_t seed = rig_take(in, 8) | 1;
	uint8_t *bytes = (uint8_t *)s;

	for (size_t i = 0; i < sizeof(*s); i++)
		bytes[i] = (uint8_t)(rig_random(&seed) >> 24);
	s->activity &= 3;
	normalise(s);
}

/* Bytes of the tables; offsets favour those in use. */
static void mutate_memory(struct machine *m, struct rig_input *in)
{
	static const gpa_t areas[] = {GDT, IDT, TSS, LDT, TABLES, TABLES + 0x1000, TABLES + 0x2000,
		TABLES + 0x3000, STACK - 256, 0};
	unsigned count = (unsigned)rig_take(in, 1) % 24;

	for (unsigned i = 0; i < count; i++) {
		gpa_t at = areas[rig_take(in, 1) % ARRAY_SIZE(areas)] + rig_take(in, 1) * 4;
		put(m, at, rig_take(in, 4), 4);
	}
}

static void write_code(struct machine *m, const struct rig_input *in)
{
	if (!in->left)
		return;
	for (size_t at = 0; at < CODE_BYTES; at += in->left)
		MUST(memory_write(m->rig.memory, CODE + at, in->data,
			     MIN(in->left, CODE_BYTES - at)) == 0);
}

/* ---- steps ---- */

static enum x86_status attend(struct machine *m, struct rig_cpu *r)
{
	const struct x86_event nmi = {.type = X86_EVENT_NMI, .vector = X86_NMI};
	int vector;

	if (r->nmi && !m->step.cpu.s.nmi_blocked && !m->step.cpu.s.mov_ss_shadow) {
		r->nmi = false;
		return x86_deliver(&m->step.cpu, &nmi);
	}
	if (!r->intr || !x86_interruptible(&m->step.cpu))
		return X86_OK;
	vector = rig_hooks.interrupt_ack(r);
	r->intr = vector >= 0;
	if (vector < 0)
		return X86_OK;
	return x86_deliver(
		&m->step.cpu, &(struct x86_event){.type = X86_EVENT_INTR, .vector = (uint8_t)vector});
}

static void run_steps(struct machine *m)
{
	struct rig_cpu *r = &m->rig.cpu[0];
	uint64_t start = clock_monotonic_ns();

	for (unsigned i = 0; i < STEPS_MAX && !m->rig.ended; i++) {
		if (attend(m, r) == X86_TRIPLE)
			return;
		if (m->step.cpu.s.activity == X86_RUNNING) {
			enum x86_status status = x86_step(&m->step.cpu);
			MUST(status != X86_FAULT);
			if (status == X86_TRIPLE)
				return;
		}
		MUST(m->step.cpu.s.reg[X86_ZERO] == 0 && m->step.cpu.s.activity <= X86_SHUTDOWN);
		fake_time_run(&m->rig.time, m->step.cpu.s.activity == X86_RUNNING ? 1000 : 100000);
		MUST(clock_monotonic_ns() - start < INPUT_NS_MAX);
	}
}

/* ---- the engine ---- */

static const struct engine_ops *engine(void)
{
	static const struct engine_ops *ops;
	const char *name = getenv("FUZZ_ENGINE");

	if (!ops)
		ops = name ? engine_find(name) : &engine_interp_ops;
	MUST(ops);
	return ops;
}

/* The stepper writes behind the engine's back. */
static void step_code_written(struct x86_cpu *cpu, gpa_t gpa, unsigned size)
{
	struct guest_memory *memory = cpu->memory;

	if (memory->code_listener)
		memory->code_listener(memory->code_opaque, gpa, size);
}

static const struct x86_env_ops *step_env(void)
{
	static struct x86_env_ops env;

	env = soft_env;
	env.code_written = step_code_written;
	return &env;
}

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct engine_vcpu *target; /* kick it soon */
} kicker = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void *kicker_thread(void *opaque)
{
	pthread_mutex_lock(&kicker.lock);
	for (;;) {
		while (!kicker.target)
			pthread_cond_wait(&kicker.changed, &kicker.lock);
		pthread_mutex_unlock(&kicker.lock);
		usleep(ENGINE_US);
		pthread_mutex_lock(&kicker.lock);
		if (kicker.target)
			engine()->kick(kicker.target);
		kicker.target = NULL;
	}
	return NULL;
}

static void kick_soon(struct engine_vcpu *vcpu)
{
	static bool started;
	pthread_t thread;

	if (vcpu && !started) {
		started = true;
		MUST(pthread_create(&thread, NULL, kicker_thread, NULL) == 0);
	}
	pthread_mutex_lock(&kicker.lock);
	kicker.target = vcpu;
	pthread_cond_signal(&kicker.changed);
	pthread_mutex_unlock(&kicker.lock);
}

static void run_engine(struct machine *m, unsigned index)
{
	struct engine_vcpu *vcpu = m->vcpu[index];
	struct rig_cpu *r = &m->rig.cpu[index];
	struct x86_state s;

	m->rig.current = index;
	for (unsigned i = 0; i < 8 && !m->rig.ended; i++) {
		uint64_t start = clock_monotonic_ns();
		if (r->intr)
			engine()->interrupt(vcpu);
		if (r->nmi)
			engine()->nmi(vcpu);
		r->intr = r->nmi = false;
		kick_soon(vcpu);
		enum engine_exit exit = engine()->run(vcpu, NULL);
		kick_soon(NULL);
		MUST(clock_monotonic_ns() - start < INPUT_NS_MAX);
		MUST(engine()->get_state(vcpu, &s) == 0);
		MUST(s.reg[X86_ZERO] == 0 && s.activity <= X86_SHUTDOWN);
		fake_time_run(&m->rig.time, 200000);
		if (exit != ENGINE_EXIT_HALTED || !(r->intr || r->nmi))
			return;
	}
}

/* ---- one input ---- */

static void machine_init(struct machine *m)
{
	rig_init(&m->rig);
	const struct engine_vm_config config = {.memory = m->rig.memory,
		.bus = m->rig.bus,
		.hooks = &rig_hooks,
		.cpuid = &m->rig.cpuid,
		.cpus_max = RIG_CPUS};

	MUST(engine()->vm_create(&m->vm, &config, NULL) == 0);
	for (unsigned i = 0; i < RIG_CPUS; i++) {
		const struct engine_vcpu_config vcpu = {
			.index = i, .apic_id = i, .opaque = &m->rig.cpu[i]};
		MUST(engine()->vcpu_create(&m->vcpu[i], m->vm, &vcpu, NULL) == 0);
	}
	const struct engine_vcpu_config step = {.opaque = &m->rig.cpu[0]};
	memset(&m->step, 0, sizeof(m->step));
	MUST(soft_vm_init(&m->step_vm, &config, "stepper", NULL) == 0);
	MUST(soft_vcpu_init(&m->step, &m->step_vm, &step, step_env(), NULL) == 0);
}

/* Devices keep what earlier inputs did to them unless they are put back. */
static void devices_reset(struct machine *m)
{
	struct rig *rig = &m->rig;

	for (unsigned i = 0; i < RIG_CPUS; i++) {
		struct rig_cpu *r = &rig->cpu[i];
		lapic_reset(r->lapic);
		r->intr = r->nmi = r->init = r->sipi = false;
		r->tsc_offset = 0;
	}
	lapic_set_virtual_wire(rig->cpu[0].lapic);
	rig->ended = false;
	rig->current = 0;
}

static struct machine *the_machine(void)
{
	static struct machine machine;
	static unsigned inputs;

	/* Now and then a new one, so that devices start afresh; before that, all memory must be zero. */
	if (inputs && inputs % 512 == 0) {
		rig_wipe(&machine.rig);
		const uint8_t *ram = machine.rig.memory->region[0].host;
		for (size_t i = 0; i < RIG_MEMORY_BYTES; i += 8)
			MUST(*(const uint64_t *)(ram + i) == 0);
		for (unsigned i = 0; i < RIG_CPUS; i++)
			engine()->vcpu_free(machine.vcpu[i]);
		engine()->vm_free(machine.vm);
		soft_vcpu_done(&machine.step);
		soft_vm_done(&machine.step_vm);
		rig_done(&machine.rig);
	}
	if (inputs++ % 512 == 0)
		machine_init(&machine);
	return &machine;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	struct machine *m = the_machine();
	struct x86_state state;

	if (size < 8)
		return 0;
	enum mode mode = rig_take(&in, 1) % MODES;
	uint8_t flags = (uint8_t)rig_take(&in, 1);
	rig_wipe(&m->rig);
	MUST(engine()->dirty_sync(m->vm) == 0);
	devices_reset(m);
	write_gdt(m, mode != PROTECTED16);
	write_idt(m, mode);
	write_tss(m, mode);
	if (mode >= PAGED32)
		write_tables(m, mode);
	state_for(&state, mode, flags & 3, &in);
	if (flags & 4)
		state.rflags |= X86_IF;
	if (flags & 8)
		mutate_state(&state, &in);
	if (flags & 128 && flags & 8)
		scramble_state(&state, &in);
	if (flags & 16)
		mutate_memory(m, &in);
	write_code(m, &in);
	if (flags & 32) {
		for (unsigned i = 0; i < (flags & 64 ? 2 : 1); i++)
			if (engine()->set_state(m->vcpu[i], &state) == 0)
				run_engine(m, i);
	} else {
		x86_cpu_load(&m->step.cpu, &state);
		run_steps(m);
	}
	return 0;
}

/* Opcode bytes rather than any bytes: prefixes, escapes and small ModRM displacements now and then. */
size_t rig_make(uint8_t *buf, size_t size, uint64_t *seed)
{
	static const uint8_t often[] = {0x0f, 0x66, 0xf2, 0xf3, 0xf0, 0x48, 0xc5, 0xc4, 0xcd, 0x8e,
		0xcf, 0xea, 0x9a, 0xff, 0xd9, 0xdd, 0xe6, 0xee, 0xec, 0xa4, 0xab, 0xae, 0x6c, 0x6e,
		0xfb, 0xf4, 0x90, 0x30, 0x22, 0x20, 0x23, 0x38, 0x3a, 0xc7, 0xae, 0x01, 0x00};
	size_t length = 64 + rig_random(seed) % 512;

	for (size_t i = 0; i < length; i++) {
		uint64_t r = rig_random(seed);
		buf[i] = (uint8_t)(r >> 16);
		if (r % 5 == 0)
			buf[i] = often[(r >> 8) % sizeof(often)];
	}
	return length;
}
