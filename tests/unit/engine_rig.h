/*
 * A bare machine for the tests of engines: memory, a bus whose one device keeps a record, hooks that do
 * nothing of their own, and guests of a few bytes. No board: the guest ends by writing to END_PORT, whose
 * handler kicks the vCPU.
 */
#ifndef LODGE_TESTS_ENGINE_RIG_H
#define LODGE_TESTS_ENGINE_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/util.h"
#include "device/bus.h"
#include "engine/engine.h"
#include "memory/memory.h"

#define RAM_BYTES  MIB(4)
#define CODE	   0x1000u /* where guests start */
#define HANDLERS   0x2000u /* a page of interrupt handlers */
#define IDT	   0x3000u
#define GDT	   0x4000u
#define DATA	   0x5000u
#define PAGING	   0x10000u /* PML4, PDPT, four page directories: 4 GiB as they are */
#define STACK	   0x9000u
#define END_PORT   0xf4
#define READY_PORT 0xf5
#define PORT	   0x300
#define MMIO_GPA   0xd0000000u
#define MMIO_BYTES 0x2000u
#define ACCESSES   64
#define HAS_AVX	   0x5090u /* rig_long() says here whether there is AVX2 */
#define CS64	   0x08
#define SS64	   0x10

struct access {
	bool write;
	uint64_t addr, value;
	unsigned size;
};

struct rig {
	const struct engine_ops *ops;
	struct guest_memory *memory;
	struct bus *bus;
	struct x86_cpuid_model model;
	struct engine_vm *vm;
	struct engine_vcpu *vcpu;

	unsigned access_count;
	struct access access[ACCESSES];
	uint64_t next_value; /* that the device gives */
	bool count;	     /* the engine is made to count instructions */
	bool kick_on_read;   /* the device kicks the vCPU that reads from it */

	pthread_mutex_t lock;
	pthread_cond_t wake; /* interrupts a HLT that came back to us */
	_Atomic int vector;  /* for interrupt_ack; -1: none */
	_Atomic bool done;   /* the guest wrote to END_PORT */
	_Atomic bool ready;  /* the guest wrote to READY_PORT */
	_Atomic bool woken;
	bool has_rdtscp;
	bool has_avx; /* the engine lets guests have AVX2 */
	uint8_t cr8;
	uint64_t tsc_offset;
	struct engine_tsc_line line; /* span 0: none */
	unsigned lines; /* asked for */
};

/* ---- the bus ---- */

static void rig_note(struct rig *r, bool write, uint64_t addr, unsigned size, uint64_t value)
{
	if (r->access_count < ACCESSES)
		r->access[r->access_count] = (struct access){write, addr, value, size};
	r->access_count++;
}

static uint64_t rig_read(void *device, uint64_t offset, unsigned size)
{
	struct rig *r = device;
	uint64_t value = r->next_value & (size == 8 ? ~0ull : BIT(8 * size) - 1);

	rig_note(r, false, offset, size, value);
	r->next_value += 0x0101010101010101ull;
	if (r->kick_on_read)
		r->ops->kick(r->vcpu);
	return value;
}

static void rig_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	rig_note(device, true, offset, size, value);
}

static void rig_end(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct rig *r = device;

	r->done = true;
	r->ops->kick(r->vcpu);
}

static void rig_ready(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	((struct rig *)device)->ready = true;
}

static const struct bus_ops rig_device = {.read = rig_read, .write = rig_write};
static const struct bus_ops rig_end_device = {.read = rig_read, .write = rig_end};
static const struct bus_ops rig_ready_device = {.read = rig_read, .write = rig_ready};

/* ---- hooks ---- */

static int rig_ack(void *opaque)
{
	struct rig *r = opaque;

	return atomic_exchange(&r->vector, -1);
}

static bool rig_msr_read(void *opaque, uint32_t index, uint64_t *ret_value)
{
	return false;
}

static bool rig_msr_write(void *opaque, uint32_t index, uint64_t value)
{
	return false;
}

static uint8_t rig_cr8_read(void *opaque)
{
	return ((struct rig *)opaque)->cr8;
}

static void rig_cr8_write(void *opaque, uint8_t value)
{
	((struct rig *)opaque)->cr8 = value;
}

static uint64_t rig_tsc(void *opaque)
{
	return clock_monotonic_ns() + ((struct rig *)opaque)->tsc_offset;
}

static void rig_adjust_tsc(void *opaque, uint64_t delta)
{
	((struct rig *)opaque)->tsc_offset += delta;
}

static bool rig_tsc_line(void *opaque, struct engine_tsc_line *ret_line)
{
	struct rig *r = opaque;

	r->lines++;
	*ret_line = r->line;
	ret_line->guest += r->tsc_offset;
	return r->line.span;
}

static uint64_t rig_hypercall(void *opaque, uint64_t number, const uint64_t args[4])
{
	return (uint64_t)-1000;
}

static const struct engine_hooks rig_hooks = {
	.interrupt_ack = rig_ack,
	.msr_read = rig_msr_read,
	.msr_write = rig_msr_write,
	.cr8_read = rig_cr8_read,
	.cr8_write = rig_cr8_write,
	.tsc = rig_tsc,
	.adjust_tsc = rig_adjust_tsc,
	.tsc_line = rig_tsc_line,
	.hypercall = rig_hypercall,
};

/* ---- life ---- */

/* A VM and a vCPU of this engine on the rig's memory and bus. */
static inline void rig_engine(struct rig *r, const struct engine_ops *ops)
{
	const struct engine_vm_config vm = {.memory = r->memory,
		.bus = r->bus,
		.hooks = &rig_hooks,
		.cpuid = &r->model,
		.cpus_max = 1,
		.tuning.count = r->count};
	const struct engine_vcpu_config vcpu = {.opaque = r};
	struct error err = {0};

	r->ops = ops;
	if (ops->vm_create(&r->vm, &vm, &err) < 0 ||
		ops->vcpu_create(&r->vcpu, r->vm, &vcpu, &err) < 0)
		fail_msg("%s", err.text);
}

static inline struct rig *rig_new(const struct engine_ops *ops)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct error err = {0};

	assert_non_null(r);
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->wake, NULL);
	r->vector = -1;
	r->next_value = 0x8877665544332211ull;
	assert_int_equal(memory_create(&r->memory), 0);
	assert_int_equal(memory_add_ram(r->memory, 0, RAM_BYTES, 0, "ram", &err), 0);
	assert_int_equal(bus_create(&r->bus), 0);
	assert_int_equal(bus_add(r->bus, BUS_PIO, END_PORT, 1, "end", &rig_end_device, r, NULL), 0);
	assert_int_equal(
		bus_add(r->bus, BUS_PIO, READY_PORT, 1, "ready", &rig_ready_device, r, NULL), 0);
	assert_int_equal(bus_add(r->bus, BUS_PIO, PORT, 8, "test", &rig_device, r, NULL), 0);
	assert_int_equal(
		bus_add(r->bus, BUS_MMIO, MMIO_GPA, MMIO_BYTES, "test", &rig_device, r, NULL), 0);
	x86_cpuid_default(&r->model, 1, 1000000000ull);
	rig_engine(r, ops);
	return r;
}

static inline void rig_free(struct rig *r)
{
	if (r->vm) {
		r->ops->vcpu_free(r->vcpu);
		r->ops->vm_free(r->vm);
	}
	bus_free(r->bus);
	memory_free(r->memory);
	pthread_mutex_destroy(&r->lock);
	pthread_cond_destroy(&r->wake);
	free(r);
}

/* ---- memory ---- */

static inline void rig_put(struct rig *r, gpa_t gpa, const void *bytes, size_t count)
{
	assert_int_equal(memory_write(r->memory, gpa, bytes, count), 0);
}

static inline void rig_put64(struct rig *r, gpa_t gpa, uint64_t value)
{
	rig_put(r, gpa, &value, sizeof(value));
}

/* Atomic: the guest may be running. */
static inline uint64_t rig_get64(struct rig *r, gpa_t gpa)
{
	const uint64_t *at = memory_host(r->memory, gpa, 8, false);

	assert_non_null(at);
	return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}

/* ---- states ---- */

static inline struct x86_segment rig_segment(uint16_t selector, uint16_t attr)
{
	return (struct x86_segment){.limit = ~0u, .selector = selector, .attr = attr};
}

#define RIG_CODE \
	(X86_SEG_P | X86_SEG_S | X86_SEG_CODE | X86_SEG_WRITE | X86_SEG_ACCESSED | X86_SEG_G)
#define RIG_DATA (X86_SEG_P | X86_SEG_S | X86_SEG_WRITE | X86_SEG_ACCESSED | X86_SEG_G | X86_SEG_DB)

static inline void rig_real(struct x86_state *s)
{
	x86_state_reset(s);
	s->seg[X86_CS].base = s->seg[X86_CS].selector = 0;
	s->cr0 = X86_CR0_ET;
	s->reg[X86_RIP] = CODE;
	s->reg[X86_RSP] = STACK;
	s->lapic.apic_base = 0; /* leave the engine's as it is */
}

/* Flat 32-bit protected mode without paging. */
static inline void rig_flat(struct x86_state *s)
{
	rig_real(s);
	s->cr0 |= X86_CR0_PE | X86_CR0_NE;
	for (unsigned i = 0; i < 6; i++)
		s->seg[i] = rig_segment(SS64, RIG_DATA);
	s->seg[X86_CS] = rig_segment(CS64, RIG_CODE | X86_SEG_DB);
}

/* 64-bit mode, everything mapped as it is, SSE and AVX usable. */
static inline void rig_long(struct rig *r, struct x86_state *s)
{
	rig_put64(r, PAGING, (PAGING + 0x1000) | 3);
	for (unsigned i = 0; i < 4; i++)
		rig_put64(r, PAGING + 0x1000 + 8 * i, (PAGING + 0x2000 + 0x1000 * i) | 3);
	for (unsigned i = 0; i < 2048; i++)
		rig_put64(r, PAGING + 0x2000 + 8 * i, MIB(2) * i | 0x83);
	rig_put64(r, GDT + CS64, 0x00af9b000000ffffull);
	rig_put64(r, GDT + SS64, 0x00cf93000000ffffull);
	rig_flat(s);
	s->seg[X86_CS] = rig_segment(CS64, RIG_CODE | X86_SEG_L);
	s->gdtr = (struct x86_table_register){GDT, 0x17};
	s->idtr = (struct x86_table_register){IDT, 0xfff};
	s->cr0 |= X86_CR0_PG | X86_CR0_MP | X86_CR0_WP;
	s->cr3 = PAGING;
	s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT;
	s->msr.efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_SCE;
	rig_put(r, HAS_AVX, r->has_avx ? "\1" : "", 1);
	if (r->has_avx) {
		s->cr4 |= X86_CR4_OSXSAVE;
		s->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
	}
}

/* A 64-bit interrupt gate to HANDLERS + offset, and the handler there. */
static inline void rig_gate(
	struct rig *r, unsigned vector, unsigned offset, const uint8_t *code, size_t bytes)
{
	uint64_t at = HANDLERS + offset;

	rig_put(r, at, code, bytes);
	rig_put64(r, IDT + 16 * vector,
		(at & 0xffff) | CS64 << 16 | 0x8e00ull << 32 | (at >> 16) << 48);
	rig_put64(r, IDT + 16 * vector + 8, 0);
}

/* ---- running ---- */

static inline void rig_load(
	struct rig *r, const struct x86_state *s, const uint8_t *code, size_t bytes)
{
	rig_put(r, CODE, code, bytes);
	assert_int_equal(r->ops->set_state(r->vcpu, s), 0);
}
#define RIG_LOAD(r, state, code) rig_load(r, state, code, sizeof(code))

/* Until the guest ends or something else than a kick or a HLT comes. A HLT waits for rig_wake(). */
static inline enum engine_exit rig_run(struct rig *r)
{
	struct error err = {0};
	enum engine_exit exit;

	for (;;) {
		exit = r->ops->run(r->vcpu, &err);
		if (exit == ENGINE_EXIT_ERROR)
			fail_msg("%s", err.text);
		if (exit != ENGINE_EXIT_HALTED || r->done)
			return exit;
		pthread_mutex_lock(&r->lock);
		while (!r->woken)
			pthread_cond_wait(&r->wake, &r->lock);
		r->woken = false;
		pthread_mutex_unlock(&r->lock);
	}
}

static inline void rig_run_to_end(struct rig *r)
{
	enum engine_exit exit = rig_run(r);

	if (exit != ENGINE_EXIT_KICKED || !r->done) {
		struct x86_state s;
		r->ops->get_state(r->vcpu, &s);
		fail_msg("the guest did not end: exit %d at %#llx", exit,
			(unsigned long long)s.reg[X86_RIP]);
	}
}

static inline void rig_wake(struct rig *r)
{
	pthread_mutex_lock(&r->lock);
	r->woken = true;
	pthread_cond_signal(&r->wake);
	pthread_mutex_unlock(&r->lock);
}

/* mov eax, 1; cpuid; mov [0x5000], ecx; mov eax, 7; xor ecx, ecx; cpuid; mov [0x5004], ebx;
 * mov eax, 0x80000001; cpuid; mov [0x5008], edx; out END_PORT, al; hlt */
static const uint8_t rig_ask[] = {0xb8, 0x01, 0x00, 0x00, 0x00, 0x0f, 0xa2, 0x89, 0x0d, 0x00, 0x50,
	0x00, 0x00, 0xb8, 0x07, 0x00, 0x00, 0x00, 0x31, 0xc9, 0x0f, 0xa2, 0x89, 0x1d, 0x04, 0x50,
	0x00, 0x00, 0xb8, 0x01, 0x00, 0x00, 0x80, 0x0f, 0xa2, 0x89, 0x15, 0x08, 0x50, 0x00, 0x00,
	0xe6, 0xf4, 0xf4};

/* What guests may have is what they are told. */
static inline void rig_find_features(struct rig *r)
{
	struct x86_state s;

	rig_flat(&s);
	RIG_LOAD(r, &s, rig_ask);
	rig_run_to_end(r);
	uint64_t bits = rig_get64(r, DATA);
	r->has_avx = (bits >> 26 & 1) && (bits >> 28 & 1) && (bits >> 37 & 1);
	if (!r->has_avx)
		print_message(
			"NOT CHECKED: XSAVE and AVX (%s gives guests none here)\n", r->ops->name);
	r->has_rdtscp = rig_get64(r, DATA + 8) >> 27 & 1;
	rig_put64(r, DATA, 0);
	rig_put64(r, DATA + 8, 0);
	r->done = false;
}

static inline void rig_state(struct rig *r, struct x86_state *s)
{
	assert_int_equal(r->ops->get_state(r->vcpu, s), 0);
}

/* ---- programs whose argument is an engine ---- */

static const struct engine_ops *rig_ops __attribute__((unused));

static inline int rig_setup(void **state)
{
	struct rig *r = rig_new(rig_ops);

	rig_find_features(r);
	*state = r;
	return 0;
}

static inline int rig_teardown(void **state)
{
	rig_free(*state);
	return 0;
}

#define RIG_TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)

/* 0, or the program's exit status: 77 where the engine cannot be had. `more` ends the engine's name in the message. */
static inline int rig_must_have(const struct engine_ops *engine, const char *more)
{
	struct engine_probe probe;

	engine->probe(&probe);
	if (probe.usable)
		return 0;
	printf("NOT CHECKED: the %s engine%s: %s\n", engine->name, more, probe.reason);
	return 77;
}

/* Sets rig_ops. 0, or the program's exit status. */
static inline int rig_main(int argc, char **argv, const char *usage)
{
	rig_ops = argc > 1 ? engine_find(argv[1]) : NULL;
	if (rig_ops)
		return rig_must_have(rig_ops, "");
	fprintf(stderr, "usage: %s %s\n", argv[0], usage);
	return 2;
}

#endif
