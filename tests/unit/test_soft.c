/*
 * engine/soft without an engine: vCPUs whose guest code is a loop of this file. Exclusive sections of vCPUs
 * and of a thread that is none, vCPUs that come and go meanwhile, events and HLT around the loop.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "device/bus.h"
#include "engine/soft/soft.h"
#include "memory/memory.h"

#define VCPUS	 3
#define TURNS	 200u
#define LIMIT_NS 20000000000ull

struct rig {
	struct guest_memory *memory;
	struct bus *bus;
	struct x86_cpuid_model model;
	struct soft_vm vm;
	_Atomic int vector;	    /* for interrupt_ack; -1: none */
	_Atomic unsigned inside;    /* vCPUs that execute an "instruction" now */
	_Atomic unsigned exclusive; /* sections entered and not left: 0 or 1 */
	_Atomic unsigned intruders; /* how often both were seen */
	_Atomic unsigned sections, instructions;
	_Atomic bool stop;
};

struct runner {
	struct soft_vcpu soft; /* first, as an engine has it */
	struct rig *rig;
	pthread_t thread;
	unsigned count;
};

/* ---- hooks ---- */

static int hook_ack(void *opaque)
{
	struct runner *r = opaque;

	return atomic_exchange(&r->rig->vector, -1);
}

static uint64_t hook_tsc(void *opaque)
{
	return 0;
}

static uint8_t hook_cr8(void *opaque)
{
	return 0;
}

static const struct engine_hooks hooks = {
	.interrupt_ack = hook_ack, .tsc = hook_tsc, .cr8_read = hook_cr8};

/* ---- the rig ---- */

static void rig_init(struct rig *rig)
{
	struct error err;

	*rig = (struct rig){.vector = -1};
	assert_int_equal(memory_create(&rig->memory), 0);
	assert_int_equal(memory_add_ram(rig->memory, 0, MIB(1), 0, "ram", &err), 0);
	assert_int_equal(bus_create(&rig->bus), 0);
	x86_cpuid_default(&rig->model, VCPUS, 2500000000ull);
	const struct engine_vm_config config = {.memory = rig->memory,
		.bus = rig->bus,
		.hooks = &hooks,
		.cpuid = &rig->model,
		.cpus_max = VCPUS};
	assert_int_equal(soft_vm_init(&rig->vm, &config, "test", &err), 0);
}

static void rig_done(struct rig *rig)
{
	assert_int_equal(rig->vm.vcpu_count, 0);
	assert_int_equal(rig->vm.exclusive_depth, 0);
	soft_vm_done(&rig->vm);
	bus_free(rig->bus);
	memory_free(rig->memory);
}

static struct runner *runner_new(struct rig *rig, unsigned index)
{
	struct runner *r = calloc(1, sizeof(*r));
	const struct engine_vcpu_config config = {.index = index, .apic_id = index, .opaque = r};
	struct error err;

	assert_non_null(r);
	r->rig = rig;
	assert_int_equal(soft_vcpu_init(&r->soft, &rig->vm, &config, &soft_env, &err), 0);
	return r;
}

static void runner_free(struct runner *r)
{
	soft_vcpu_done(&r->soft);
	free(r);
}

static struct engine_vcpu *slot(struct runner *r)
{
	return (struct engine_vcpu *)&r->soft;
}

/* ---- exclusive sections ---- */

static void section(struct rig *rig, struct soft_vcpu *self)
{
	soft_exclusive_begin(&rig->vm, self);
	if (atomic_fetch_add(&rig->exclusive, 1) || atomic_load(&rig->inside))
		rig->intruders++;
	for (unsigned i = 0; i < 20; i++) {
		sched_yield();
		if (atomic_load(&rig->inside))
			rig->intruders++;
	}
	atomic_fetch_sub(&rig->exclusive, 1);
	rig->sections++;
	soft_exclusive_end(&rig->vm, self);
}

static void instruction(struct rig *rig)
{
	atomic_fetch_add(&rig->inside, 1);
	if (atomic_load(&rig->exclusive))
		rig->intruders++;
	atomic_fetch_sub(&rig->inside, 1);
	rig->instructions++;
}

static void nested(struct runner *r)
{
	struct soft_vm *vm = &r->rig->vm;

	soft_exclusive_begin(vm, &r->soft);
	section(r->rig, &r->soft);
	/* Still ours: the inner end has let nobody go. */
	if (atomic_load(&r->rig->inside))
		r->rig->intruders++;
	soft_exclusive_end(vm, &r->soft);
}

static enum x86_status busy_loop(struct soft_vcpu *v)
{
	struct runner *r = container_of(v, struct runner, soft);

	for (;;) {
		uint32_t attention = atomic_load(&v->attention);

		if (attention & SOFT_KICK)
			return X86_STOP;
		if (soft_must_attend(v, attention))
			soft_attend(v, attention);
		instruction(r->rig);
		if (++r->count % 512 == 0)
			section(r->rig, v);
		else if (r->count % 1280 == 0)
			nested(r);
	}
}

static void *vcpu_thread(void *opaque)
{
	struct runner *r = opaque;

	while (!r->rig->stop)
		soft_run(&r->soft, busy_loop);
	return NULL;
}

static void stop_all(struct rig *rig, struct runner **r, unsigned count)
{
	rig->stop = true;
	for (unsigned i = 0; i < count; i++)
		soft_kick(slot(r[i]));
	for (unsigned i = 0; i < count; i++) {
		pthread_join(r[i]->thread, NULL);
		runner_free(r[i]);
	}
}

static void test_exclusive(void **state)
{
	struct rig rig;
	struct runner *r[VCPUS];

	rig_init(&rig);
	for (unsigned i = 0; i < VCPUS; i++) {
		r[i] = runner_new(&rig, i);
		assert_int_equal(pthread_create(&r[i]->thread, NULL, vcpu_thread, r[i]), 0);
	}
	uint64_t begun = clock_monotonic_ns();
	for (unsigned i = 0; i < TURNS || rig.sections < 2 * TURNS; i++) {
		section(&rig, NULL);
		soft_kick(slot(r[i % VCPUS])); /* one is in between two runs */
		/* One that is just made, and one that goes. */
		struct runner *guest = runner_new(&rig, VCPUS);
		runner_free(guest);
		assert_true(clock_monotonic_ns() - begun < LIMIT_NS);
	}
	stop_all(&rig, r, VCPUS);
	assert_int_equal(rig.intruders, 0);
	assert_true(rig.instructions > 0);
	rig_done(&rig);
}

/* Made while a section lasts: it must not run before the end. */
static void test_new_vcpu_held(void **state)
{
	struct rig rig;

	rig_init(&rig);
	soft_exclusive_begin(&rig.vm, NULL);
	struct runner *r = runner_new(&rig, 0);
	assert_int_equal(pthread_create(&r->thread, NULL, vcpu_thread, r), 0);
	usleep(20000);
	assert_int_equal(rig.instructions, 0);
	soft_exclusive_end(&rig.vm, NULL);
	uint64_t begun = clock_monotonic_ns();
	while (!rig.instructions) {
		sched_yield();
		assert_true(clock_monotonic_ns() - begun < LIMIT_NS);
	}
	stop_all(&rig, &r, 1);
	rig_done(&rig);
}

/* ---- what soft_run does around the loop ---- */

static enum x86_status halting_loop(struct soft_vcpu *v)
{
	container_of(v, struct runner, soft)->count++;
	v->cpu.s.activity = X86_HALTED;
	return X86_HLT;
}

static enum x86_status triple_loop(struct soft_vcpu *v)
{
	v->cpu.s.activity = X86_SHUTDOWN;
	return X86_TRIPLE;
}

static void test_run(void **state)
{
	struct rig rig;

	rig_init(&rig);
	struct runner *r = runner_new(&rig, 0);
	struct x86_cpu *cpu = &r->soft.cpu;
	soft_kick(slot(r));
	assert_int_equal(soft_run(&r->soft, halting_loop), ENGINE_EXIT_KICKED);
	assert_int_equal(r->count, 0); /* and the kick is used up */
	assert_int_equal(soft_run(&r->soft, halting_loop), ENGINE_EXIT_HALTED);
	assert_int_equal(r->count, 1);
	/* With IF clear an interrupt leaves it halted; then it is taken, through the IVT of real mode. */
	rig.vector = 0x20;
	soft_interrupt(slot(r));
	assert_int_equal(soft_run(&r->soft, halting_loop), ENGINE_EXIT_HALTED);
	assert_int_equal(r->count, 1);
	cpu->s.rflags |= X86_IF;
	cpu->s.reg[X86_RSP] = 0x8000;
	assert_int_equal(soft_run(&r->soft, halting_loop), ENGINE_EXIT_HALTED);
	assert_int_equal(r->count, 2);
	assert_false(cpu->s.rflags & X86_IF);
	assert_int_equal(rig.vector, -1);
	/* An NMI wakes it in any case. */
	soft_nmi(slot(r));
	assert_int_equal(soft_run(&r->soft, halting_loop), ENGINE_EXIT_HALTED);
	assert_int_equal(r->count, 3);
	cpu->s.activity = X86_RUNNING;
	assert_int_equal(soft_run(&r->soft, triple_loop), ENGINE_EXIT_SHUTDOWN);
	runner_free(r);
	rig_done(&rig);
}

static void test_too_many(void **state)
{
	struct soft_vm vm;
	struct error err;
	const struct engine_vm_config config = {.cpus_max = SOFT_CPUS_MAX + 1};

	assert_int_equal(soft_vm_init(&vm, &config, "test", &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_exclusive),
		cmocka_unit_test(test_new_vcpu_held),
		cmocka_unit_test(test_run),
		cmocka_unit_test(test_too_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
