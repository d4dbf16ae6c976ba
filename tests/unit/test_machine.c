/*
 * The state a machine's processors start in, what INIT leaves of it, and lines driven by eventfds. Argument: the engine; 77 where this
 * host has no KVM.
 */
#include "tests/unit/machine_rig.h"

#include "boot/layout.h"
#include "device/bus.h"
#include "device/irq/lapic.h"
#include <sys/eventfd.h>

/* Slots of the local APIC's page (SDM 3A table 11-1). */
#define LDR    (0xd0 / 16)
#define SVR    (0xf0 / 16)
#define LVT    (0x320 / 16)
#define LINT0  (0x350 / 16)
#define MASKED 0x10000u
#define EXTINT 0x700u

static const struct engine_ops *ops;

/* Whoever has it: the machine, or an engine with interrupt controllers of its own. */
static void get_lapic(struct machine *m, unsigned index, struct x86_lapic *ret_lapic)
{
	struct machine_vcpu *vcpu = &m->vcpu[index];
	struct lapic_state own;
	struct x86_state s;

	assert_int_equal(ops->get_state(vcpu->engine, &s), 0);
	*ret_lapic = s.lapic;
	if (!vcpu->lapic)
		return;
	lapic_save(vcpu->lapic, &own);
	ret_lapic->apic_base = own.apic_base;
	memcpy(ret_lapic->reg, own.reg, sizeof(own.reg));
}

static void set_lapic(struct machine *m, unsigned index, const struct x86_lapic *lapic)
{
	struct machine_vcpu *vcpu = &m->vcpu[index];
	struct lapic_state own = {.apic_base = lapic->apic_base};
	struct x86_state s;

	assert_int_equal(ops->get_state(vcpu->engine, &s), 0);
	s.lapic = *lapic;
	assert_int_equal(ops->set_state(vcpu->engine, &s), 0);
	memcpy(own.reg, lapic->reg, sizeof(own.reg));
	if (vcpu->lapic)
		assert_int_equal(lapic_load(vcpu->lapic, &own), 0);
}

/* Firmware's work: write-back memory, and the same on all of them. */
static void test_mtrrs(void **state)
{
	struct machine *m = machine_rig(ops, "mtrrs");
	struct x86_state first, s;

	assert_int_equal(ops->get_state(m->vcpu[0].engine, &first), 0);
	assert_int_equal(first.msr.mtrr_def_type & ~0x400ull, 0x806);
	for (unsigned i = 1; i < CPUS; i++) {
		assert_int_equal(ops->get_state(m->vcpu[i].engine, &s), 0);
		assert_int_equal(s.msr.mtrr_def_type, first.msr.mtrr_def_type);
		assert_memory_equal(
			s.msr.mtrr_fixed, first.msr.mtrr_fixed, sizeof(s.msr.mtrr_fixed));
		assert_memory_equal(s.msr.mtrr_base, first.msr.mtrr_base, sizeof(s.msr.mtrr_base));
		assert_memory_equal(s.msr.mtrr_mask, first.msr.mtrr_mask, sizeof(s.msr.mtrr_mask));
		assert_int_equal(s.activity, X86_WAIT_FOR_SIPI);
	}
	machine_free(m);
}

/* Virtual wire on the boot processor: the PIC's interrupts arrive there and nowhere else. */
static void test_virtual_wire(void **state)
{
	struct machine *m = machine_rig(ops, "wire");

	for (unsigned i = 0; i < CPUS; i++) {
		struct x86_lapic lapic;

		get_lapic(m, i, &lapic);
		assert_int_equal(lapic.reg[LINT0], i ? MASKED : EXTINT);
		assert_int_equal(lapic.apic_base & ~0xfffull, LAPIC_BASE_DEFAULT);
		assert_int_equal(lapic.apic_base & LAPIC_BASE_BSP, i ? 0 : LAPIC_BASE_BSP);
	}
	machine_free(m);
}

/* Pause it with all processors out of INIT. */
static void wait_others(struct machine *m)
{
	const uint64_t end = clock_monotonic_ns() + WAIT_NS;

	for (unsigned i = 1; i < CPUS;) {
		struct x86_state s;

		if (clock_monotonic_ns() > end)
			fail_msg("processor %u does not start", i);
		usleep(1000);
		machine_pause(m);
		assert_int_equal(ops->get_state(m->vcpu[i].engine, &s), 0);
		if (s.activity == X86_RUNNING)
			i++;
		if (i < CPUS)
			machine_resume(m);
	}
}

/* The guest sends INIT to processors whose local APICs are in use. */
static void test_init_resets_lapic(void **state)
{
	struct machine *m = machine_rig(ops, "init");
	struct x86_lapic before, lapic;
	struct error err;

	for (unsigned i = 1; i < CPUS; i++) {
		get_lapic(m, i, &lapic);
		before = lapic;
		lapic.reg[SVR] = 0x1ff;
		lapic.reg[LVT] = MASKED | 0x40;
		lapic.reg[LDR] = 0x01000000u << i;
		set_lapic(m, i, &lapic);
		get_lapic(m, i, &lapic);
		assert_int_equal(lapic.reg[SVR], 0x1ff);
	}
	assert_int_equal(machine_start(m, &err), 0);
	wait_others(m);
	for (unsigned i = 1; i < CPUS; i++) {
		get_lapic(m, i, &lapic);
		assert_int_equal(lapic.reg[SVR], 0xff);
		assert_int_equal(lapic.reg[LVT], MASKED);
		assert_int_equal(lapic.reg[LDR], 0);
		assert_int_equal(lapic.reg[2] >> 24, i); /* the ID stays */
		assert_int_equal(lapic.apic_base, before.apic_base);
	}
	machine_free(m);
}

static int wait_vector(struct machine *m)
{
	const uint64_t end = clock_monotonic_ns() + WAIT_NS;
	int vector;

	while ((vector = lapic_ack(m->vcpu[0].lapic)) < 0 && clock_monotonic_ns() < end)
		usleep(100);
	return vector;
}

#define GSI    7
#define VECTOR 0x47

/* An eventfd's signal is an edge on the board's line, each time. */
static void test_irqfd(void **state)
{
	struct machine *m = machine_rig(ops, "irqfd");
	int fd = eventfd(0, EFD_CLOEXEC);

	assert_true(fd >= 0);
	if (!m->vcpu[0].lapic) {
		printf("NOT CHECKED: lines of the board by eventfd (%s has its own)\n", ops->name);
		machine_free(m);
		close(fd);
		return;
	}
	lapic_mmio_write(m->vcpu[0].lapic, SVR * 16, 4, 0x1ff);
	bus_write(m->bus, BUS_MMIO, BOOT_IOAPIC_GPA, 4, 0x10 + 2 * GSI);
	bus_write(m->bus, BUS_MMIO, BOOT_IOAPIC_GPA + 0x10, 4, VECTOR); /* edge, to ID 0 */
	assert_int_equal(machine_irqfd(m, GSI, fd, true), 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(lapic_ack(m->vcpu[0].lapic), -1);
		eventfd_write(fd, 1);
		assert_int_equal(wait_vector(m), VECTOR);
		lapic_mmio_write(m->vcpu[0].lapic, 0xb0, 4, 0); /* EOI */
	}
	assert_int_equal(machine_irqfd(m, GSI, fd, false), 0);
	machine_free(m);
	close(fd);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mtrrs),
		cmocka_unit_test(test_virtual_wire),
		cmocka_unit_test(test_init_resets_lapic),
		cmocka_unit_test(test_irqfd),
	};
	int status = machine_rig_main(argc, argv, &ops, "first states of machines");

	return status ? status : cmocka_run_group_tests_name(ops->name, tests, NULL, NULL);
}
