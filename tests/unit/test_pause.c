/*
 * A whole machine of several processors, paused and resumed over and over: while it is paused no processor
 * runs and each one's state can be read; the guest's own clock stands still. Argument: the engine; 77 where
 * this host has no KVM.
 */
#include "device/bus.h"
#include "tests/unit/machine_rig.h"

#define PAUSES 30

static const struct engine_ops *ops;

static void check_states(struct machine *m, uint64_t tsc[CPUS])
{
	for (unsigned i = 0; i < CPUS; i++) {
		struct x86_state s;

		assert_int_equal(ops->get_state(m->vcpu[i].engine, &s), 0);
		uint64_t at = s.seg[X86_CS].base + s.reg[X86_RIP];
		if (i == 0)
			assert_in_range(at, KERNEL_LOAD, KERNEL_LOAD + sizeof(struct kernel_image));
		else if (s.activity == X86_RUNNING)
			assert_in_range(at, AP_GPA, AP_GPA + sizeof(ap));
		else
			assert_int_equal(s.activity, X86_WAIT_FOR_SIPI);
		tsc[i] = s.tsc;
	}
}

static void check_paused(struct machine *m)
{
	const uint32_t first = counter(m, FIRST), others = counter(m, OTHERS);
	uint64_t before[CPUS], after[CPUS];

	check_states(m, before);
	usleep(2000);
	check_states(m, after);
	assert_int_equal(counter(m, FIRST), first);
	assert_int_equal(counter(m, OTHERS), others);
	assert_memory_equal(before, after, sizeof(before));
}

static void test_pause(void **state)
{
	struct machine *m = machine_rig(ops, "pause");
	struct error err;

	assert_int_equal(machine_start(m, &err), 0);
	for (unsigned i = 0; i < PAUSES; i++) {
		if (i % 3)
			wait_running(m);
		machine_pause(m);
		if (i % 5 == 0)
			machine_pause(m); /* does not count */
		check_paused(m);
		machine_resume(m);
	}
	wait_running(m);
	machine_pause(m);
	machine_free(m); /* from a pause */
}

/* Who resumes ends its own pause only. */
static void test_reasons(void **state)
{
	struct machine *m = machine_rig(ops, "reasons");
	struct error err;

	assert_int_equal(machine_start(m, &err), 0);
	wait_running(m);
	machine_pause_for(m, MACHINE_PAUSE_WATCHDOG);
	machine_pause(m);
	machine_resume(m);
	check_paused(m);
	machine_pause_for(m, MACHINE_PAUSE_PLUG);
	machine_resume_for(m, MACHINE_PAUSE_WATCHDOG);
	check_paused(m);
	machine_resume(m); /* which has none */
	check_paused(m);
	machine_resume_for(m, MACHINE_PAUSE_PLUG);
	wait_running(m);
	machine_free(m);
}

static void *pauser(void *opaque)
{
	for (unsigned i = 0; i < 500; i++)
		machine_pause(opaque);
	return NULL;
}

/* Who pauses does not wait for a machine that another lets go on. */
static void test_pause_against_resume(void **state)
{
	struct machine *m = machine_rig(ops, "against");
	struct error err;
	pthread_t thread;

	assert_int_equal(machine_start(m, &err), 0);
	wait_running(m);
	assert_int_equal(pthread_create(&thread, NULL, pauser, m), 0);
	while (pthread_tryjoin_np(thread, NULL) != 0)
		machine_resume(m);
	machine_pause(m);
	check_paused(m);
	assert_int_equal(machine_paused(m), MACHINE_PAUSE_ASKED);
	machine_resume(m);
	assert_int_equal(machine_paused(m), 0);
	wait_running(m);
	machine_free(m);
}

/* A device whose handler keeps a vCPU until it is let out. */
struct slow_device {
	_Atomic bool entered, out;
};

static void slow_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct slow_device *slow = opaque;

	slow->entered = true;
	while (!slow->out)
		usleep(1000);
}

static const struct bus_ops slow_ops = {.write = slow_write};

#define SLOW_PORT 0x500
/* 16 bits: mov dx, SLOW_PORT; 1: out dx, al; jmp 1b */
static const uint8_t into_slow[] = {0xba, 0x00, 0x05, 0xee, 0xeb, 0xfd};

static void *plug_pauser(void *opaque)
{
	machine_pause_for(opaque, MACHINE_PAUSE_PLUG);
	return NULL;
}

/* A pause that the machine's end meets: no vCPU is in a handler when it returns, for what is freed then. */
static void test_pause_against_end(void **state)
{
	struct machine *m = machine_rig(ops, "end");
	struct slow_device slow = {0};
	struct error err;
	pthread_t thread;

	assert_int_equal(bus_add(m->bus, BUS_PIO, SLOW_PORT, 1, "slow", &slow_ops, &slow, NULL), 0);
	assert_int_equal(memory_write(m->memory, AP_GPA, into_slow, sizeof(into_slow)), 0);
	assert_int_equal(machine_start(m, &err), 0);
	while (!slow.entered)
		usleep(100);
	machine_stop(m);
	assert_int_equal(pthread_create(&thread, NULL, plug_pauser, m), 0);
	usleep(50000);
	assert_int_not_equal(pthread_tryjoin_np(thread, NULL), 0);
	slow.out = true;
	assert_int_equal(pthread_join(thread, NULL), 0);
	machine_free(m);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_pause), cmocka_unit_test(test_reasons),
		cmocka_unit_test(test_pause_against_resume), cmocka_unit_test(test_pause_against_end)};
	int status = machine_rig_main(argc, argv, &ops, "pauses of machines");

	return status ? status : cmocka_run_group_tests_name(ops->name, tests, NULL, NULL);
}
