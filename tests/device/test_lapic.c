/*
 * device/irq/lapic: priorities, IPIs, timer, both access modes, APIC_BASE, save and load, threads.
 */
#include "tests/device/fake.h"

#include "device/irq/lapic.h"

#include <errno.h>

#define CPUS	   4
#define TSC_PER_NS 3

struct fixture;

struct cpu {
	struct fixture *f;
	struct lapic *lapic;
	unsigned signals[6];
	uint8_t sipi_vector;
};

struct fixture {
	struct fake_time time;
	struct lapic_bus *bus;
	struct cpu cpu[CPUS];
	unsigned eois;
	uint8_t eoi_vector;
};

static void note_signal(void *opaque, enum lapic_signal signal, uint8_t vector)
{
	struct cpu *cpu = opaque;

	__atomic_fetch_add(&cpu->signals[signal], 1, __ATOMIC_RELAXED);
	if (signal == LAPIC_SIGNAL_SIPI)
		cpu->sipi_vector = vector;
}

static uint64_t tsc_to_ns(void *opaque, uint64_t tsc)
{
	return tsc / TSC_PER_NS;
}

/* The I/O APIC may send at once what is still asserted: the bus must be free again. */
static void note_eoi(void *opaque, uint8_t vector)
{
	struct fixture *f = opaque;
	struct irq_message nobody = {.destination = 77, .vector = 0x50};

	f->eois++;
	f->eoi_vector = vector;
	assert_int_equal(lapic_bus_deliver(f->bus, &nobody), 0);
}

static uint32_t rd(struct cpu *cpu, unsigned offset)
{
	return (uint32_t)lapic_mmio_read(cpu->lapic, offset, 4);
}

static void wr(struct cpu *cpu, unsigned offset, uint32_t value)
{
	lapic_mmio_write(cpu->lapic, offset, 4, value);
}

static uint64_t rdmsr(struct cpu *cpu, uint32_t index)
{
	uint64_t value = 0;

	assert_true(lapic_msr_read(cpu->lapic, index, &value));
	return value;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct lapic_bus_config bus = {.time = &f->time.source, .eoi = note_eoi, .opaque = f};

	fake_time_init(&f->time);
	assert_int_equal(lapic_bus_create(&bus, &f->bus), 0);
	for (unsigned i = 0; i < CPUS; i++) {
		struct lapic_config config = {
			.id = i,
			.bsp = i == 0,
			.x2apic = true,
			.tsc_deadline = true,
			.notify = note_signal,
			.tsc_to_ns = tsc_to_ns,
			.opaque = &f->cpu[i],
		};

		f->cpu[i].f = f;
		assert_int_equal(lapic_create(f->bus, &config, &f->cpu[i].lapic), 0);
		wr(&f->cpu[i], 0xf0, 0x1ff);
	}
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < CPUS; i++)
		lapic_free(f->cpu[i].lapic);
	lapic_bus_free(f->bus);
	free(f);
	return 0;
}

static unsigned send(struct fixture *f, uint32_t destination, uint8_t vector)
{
	struct irq_message message = {.destination = destination, .vector = vector};

	return lapic_bus_deliver(f->bus, &message);
}

static void test_reset_state(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[1];
	struct lapic_config twin = {.id = 2, .notify = note_signal};
	struct lapic *unused;

	lapic_reset(cpu->lapic);
	assert_int_equal(rd(cpu, 0x20), 1u << 24);
	assert_int_equal(rd(cpu, 0x30), 0x01050014);
	assert_int_equal(rd(cpu, 0xe0), 0xffffffff);
	assert_int_equal(rd(cpu, 0xf0), 0xff);
	assert_int_equal(rd(cpu, 0x350), 0x10000);
	assert_true(lapic_base_read(cpu->lapic) == 0xfee00800);
	assert_true(lapic_base_read(f->cpu[0].lapic) == 0xfee00900);
	/* Software-disabled: no vectors, and LVT entries stay masked. */
	assert_int_equal(send(f, 1, 0x40), 0);
	wr(cpu, 0x320, 0x30);
	assert_int_equal(rd(cpu, 0x320), 0x10030);
	assert_int_equal(lapic_create(f->bus, &twin, &unused), -EEXIST);
}

static void test_priorities(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[0];

	assert_int_equal(lapic_pending(cpu->lapic), -1);
	assert_int_equal(send(f, 0, 0x41), 1);
	assert_int_equal(cpu->signals[LAPIC_SIGNAL_INTR], 1);
	send(f, 0, 0x45);
	assert_int_equal(rd(cpu, 0x220), 1u << 1 | 1u << 5);
	assert_int_equal(lapic_ack(cpu->lapic), 0x45);
	assert_int_equal(rd(cpu, 0x120), 1u << 5);
	assert_int_equal(rd(cpu, 0x220), 1u << 1);
	assert_int_equal(rd(cpu, 0xa0), 0x40);
	/* Same class: waits. A higher class: nests. */
	assert_int_equal(lapic_pending(cpu->lapic), -1);
	send(f, 0, 0xf3);
	assert_int_equal(lapic_ack(cpu->lapic), 0xf3);
	wr(cpu, 0xb0, 0);
	assert_int_equal(rd(cpu, 0xa0), 0x40);
	wr(cpu, 0x80, 0x50);
	wr(cpu, 0xb0, 0);
	assert_int_equal(rd(cpu, 0xa0), 0x50);
	assert_int_equal(lapic_pending(cpu->lapic), -1);
	assert_int_equal(lapic_read_cr8(cpu->lapic), 5);
	cpu->signals[LAPIC_SIGNAL_INTR] = 0;
	lapic_write_cr8(cpu->lapic, 3);
	assert_int_equal(rd(cpu, 0x80), 0x30);
	assert_int_equal(cpu->signals[LAPIC_SIGNAL_INTR], 1);
	assert_int_equal(lapic_ack(cpu->lapic), 0x41);
	wr(cpu, 0xb0, 0);
	wr(cpu, 0xb0, 0); /* one too many */
	assert_int_equal(lapic_ack(cpu->lapic), -1);
	assert_int_equal(f->eois, 0);
}

static void test_level_eoi(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[0];
	struct irq_message level = {.vector = 0x61, .level = true};

	lapic_bus_deliver(f->bus, &level);
	assert_int_equal(rd(cpu, 0x1b0), 2);
	assert_int_equal(lapic_ack(cpu->lapic), 0x61);
	wr(cpu, 0xb0, 0);
	assert_int_equal(f->eois, 1);
	assert_int_equal(f->eoi_vector, 0x61);
	/* With broadcasts suppressed the guest tells the I/O APIC itself. */
	wr(cpu, 0xf0, 0x11ff);
	lapic_bus_deliver(f->bus, &level);
	lapic_ack(cpu->lapic);
	wr(cpu, 0xb0, 0);
	assert_int_equal(f->eois, 1);
	wr(cpu, 0xf0, 0x1ff);
	/* The same vector as an edge clears TMR. */
	send(f, 0, 0x61);
	lapic_ack(cpu->lapic);
	wr(cpu, 0xb0, 0);
	assert_int_equal(f->eois, 1);
}

/* A bit for each processor that has vector pending; takes it away. */
static unsigned take(struct fixture *f, int vector)
{
	unsigned who = 0;

	for (unsigned i = 0; i < CPUS; i++) {
		if (lapic_ack(f->cpu[i].lapic) == vector) {
			uint64_t base = lapic_base_read(f->cpu[i].lapic);

			who |= 1u << i;
			if (base & LAPIC_BASE_X2APIC)
				assert_true(lapic_msr_write(f->cpu[i].lapic, 0x80b, 0));
			else
				wr(&f->cpu[i], 0xb0, 0);
		}
	}
	return who;
}

static void icr(struct cpu *cpu, uint32_t high, uint32_t low)
{
	wr(cpu, 0x310, high);
	wr(cpu, 0x300, low);
}

static void test_ipi(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[1];

	icr(cpu, 2u << 24, 0x40fd);
	assert_int_equal(take(f, 0xfd), 1u << 2);
	assert_int_equal(rd(cpu, 0x300), 0x40fd); /* delivery status idle */
	icr(cpu, 0, 0x400fd);
	assert_int_equal(take(f, 0xfd), 1u << 1);
	icr(cpu, 0, 0x800fd);
	assert_int_equal(take(f, 0xfd), 0xf);
	icr(cpu, 0, 0xc00fd);
	assert_int_equal(take(f, 0xfd), 0xd);
	icr(cpu, 0xffu << 24, 0xfd);
	assert_int_equal(take(f, 0xfd), 0xf);
	icr(cpu, 9u << 24, 0xfd);
	assert_int_equal(take(f, 0xfd), 0);

	/* INIT, its de-assertion, and SIPI, as Linux wakes a processor. */
	icr(cpu, 3u << 24, 0xc500);
	icr(cpu, 3u << 24, 0x8500);
	assert_int_equal(f->cpu[3].signals[LAPIC_SIGNAL_INIT], 1);
	icr(cpu, 3u << 24, 0x069a);
	assert_int_equal(f->cpu[3].signals[LAPIC_SIGNAL_SIPI], 1);
	assert_int_equal(f->cpu[3].sipi_vector, 0x9a);
	icr(cpu, 0, 0xc0400);
	assert_int_equal(f->cpu[0].signals[LAPIC_SIGNAL_NMI], 1);
	assert_int_equal(f->cpu[1].signals[LAPIC_SIGNAL_NMI], 0);
	icr(cpu, 0, 0x200);
	assert_int_equal(f->cpu[0].signals[LAPIC_SIGNAL_SMI], 1);
	/* Reserved delivery modes go nowhere. */
	icr(cpu, 0, 0x80300 | 0x55);
	icr(cpu, 0, 0x80700 | 0x55);
	assert_int_equal(take(f, 0x55), 0);
	assert_int_equal(f->cpu[0].signals[LAPIC_SIGNAL_EXTINT], 0);
}

static void test_logical(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < CPUS; i++)
		wr(&f->cpu[i], 0xd0, 1u << (24 + i));
	icr(&f->cpu[0], 0x0au << 24, 0x8fd);
	assert_int_equal(take(f, 0xfd), 0xa);
	icr(&f->cpu[0], 0xffu << 24, 0x8fd);
	assert_int_equal(take(f, 0xfd), 0xf);
	/* Clusters of two: 0 and 1 are cluster 1; 2 and 3 are cluster 2. */
	for (unsigned i = 0; i < CPUS; i++) {
		wr(&f->cpu[i], 0xe0, 0x0fffffff);
		wr(&f->cpu[i], 0xd0, (((i / 2 + 1) << 4) | 1u << (i % 2)) << 24);
	}
	icr(&f->cpu[0], 0x13u << 24, 0x8fd);
	assert_int_equal(take(f, 0xfd), 0x3);
	icr(&f->cpu[0], 0x22u << 24, 0x8fd);
	assert_int_equal(take(f, 0xfd), 0x8);
	icr(&f->cpu[0], 0x33u << 24, 0x8fd);
	assert_int_equal(take(f, 0xfd), 0);
}

static void test_lowest(void **state)
{
	struct fixture *f = *state;
	struct irq_message message = {
		.destination = 0xf, .logical = true, .vector = 0x70, .delivery = LAPIC_LOWEST};
	unsigned who[3];

	for (unsigned i = 0; i < CPUS; i++)
		wr(&f->cpu[i], 0xd0, 1u << (24 + i));
	wr(&f->cpu[0], 0x80, 0x20);
	wr(&f->cpu[1], 0x80, 0x10);
	wr(&f->cpu[2], 0x80, 0x20);
	wr(&f->cpu[3], 0x80, 0x20);
	assert_int_equal(lapic_bus_deliver(f->bus, &message), 1);
	assert_int_equal(take(f, 0x70), 1u << 1);
	/* Among equals it goes round; a disabled one is left out. */
	wr(&f->cpu[1], 0x80, 0x20);
	wr(&f->cpu[3], 0xf0, 0xff);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(lapic_bus_deliver(f->bus, &message), 1);
		who[i] = take(f, 0x70);
	}
	assert_int_equal(who[0] | who[1] | who[2], 0x7);
	message.destination = 0x8;
	assert_int_equal(lapic_bus_deliver(f->bus, &message), 0);
}

static void test_msi(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(lapic_bus_msi(f->bus, 0xfee02000, 0x51), 1);
	assert_int_equal(take(f, 0x51), 1u << 2);
	assert_int_equal(lapic_bus_msi(f->bus, 0xfeeff000, 0x51), 4);
	assert_int_equal(take(f, 0x51), 0xf);
	assert_int_equal(lapic_bus_msi(f->bus, 0xfee01020, 0x51), 0); /* ID 0x101 */
	assert_int_equal(lapic_bus_msi(f->bus, 0xfed02000, 0x51), 0);
	assert_int_equal(lapic_bus_msi(f->bus, 0x1fee02000ull, 0x51), 0);
	assert_int_equal(lapic_bus_msi(f->bus, 0xfee02000, 0x8051), 1);
	assert_int_equal(rd(&f->cpu[2], 0x1a0), 1u << 17);
	wr(&f->cpu[0], 0xd0, 1u << 24);
	wr(&f->cpu[1], 0xd0, 1u << 25);
	assert_int_equal(lapic_bus_msi(f->bus, 0xfee0300c, 0x52), 1); /* either */
	assert_int_equal(lapic_bus_msi(f->bus, 0xfee03004, 0x53), 2); /* both */
}

static void test_errors(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[0];

	wr(cpu, 0x370, 0xfe);
	icr(cpu, 1u << 24, 0x05);
	assert_int_equal(lapic_ack(cpu->lapic), 0xfe);
	assert_int_equal(rd(cpu, 0x280), 0);
	wr(cpu, 0x280, 0);
	assert_int_equal(rd(cpu, 0x280), 0x20);
	wr(cpu, 0x280, 0);
	assert_int_equal(rd(cpu, 0x280), 0);
	send(f, 1, 0x0f);
	wr(&f->cpu[1], 0x280, 0);
	assert_int_equal(rd(&f->cpu[1], 0x280), 0x40);
	rd(cpu, 0x3f0);
	wr(cpu, 0x280, 0);
	assert_int_equal(rd(cpu, 0x280), 0x80);
	/* An error vector that is itself an error. */
	wr(&f->cpu[2], 0x370, 0x03);
	send(f, 2, 0x01);
	assert_int_equal(lapic_pending(f->cpu[2].lapic), -1);
}

static void test_timer_oneshot(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[0];

	wr(cpu, 0x320, 0x30);
	wr(cpu, 0x3e0, 0x3); /* by 16 */
	wr(cpu, 0x380, 1000);
	assert_int_equal(rd(cpu, 0x390), 1000);
	fake_time_run(&f->time, 16 * 400);
	assert_int_equal(rd(cpu, 0x390), 600);
	assert_int_equal(lapic_pending(cpu->lapic), -1);
	/* Dividing by 1 from here: 600 ns remain. */
	wr(cpu, 0x3e0, 0xb);
	assert_int_equal(rd(cpu, 0x390), 600);
	fake_time_run(&f->time, 599);
	assert_int_equal(lapic_pending(cpu->lapic), -1);
	assert_int_equal(rd(cpu, 0x390), 1);
	fake_time_run(&f->time, 1);
	assert_int_equal(lapic_ack(cpu->lapic), 0x30);
	assert_int_equal(rd(cpu, 0x390), 0);
	assert_int_equal(rd(cpu, 0x380), 1000);
	wr(cpu, 0xb0, 0);
	fake_time_run(&f->time, 100000);
	assert_int_equal(lapic_pending(cpu->lapic), -1);
	/* A masked timer counts and stays silent; writing 0 stops it. */
	wr(cpu, 0x320, 0x10030);
	wr(cpu, 0x380, 1000);
	fake_time_run(&f->time, 1000);
	assert_int_equal(lapic_pending(cpu->lapic), -1);
	wr(cpu, 0x320, 0x30);
	wr(cpu, 0x380, 1000);
	wr(cpu, 0x380, 0);
	assert_null(fake_time_next(&f->time));
}

static void test_timer_divider(void **state)
{
	static const struct {
		uint32_t code, divider;
	} table[] = {{0, 2}, {1, 4}, {2, 8}, {3, 16}, {8, 32}, {9, 64}, {10, 128}, {11, 1}};
	struct fixture *f = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
		wr(&f->cpu[0], 0x3e0, table[i].code);
		wr(&f->cpu[0], 0x380, 1000000);
		fake_time_run(&f->time, 128 * 100);
		assert_int_equal(rd(&f->cpu[0], 0x390), 1000000 - 12800 / table[i].divider);
	}
}

static void test_timer_periodic(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[0];

	wr(cpu, 0x3e0, 0xb);
	wr(cpu, 0x320, 0x20030);
	wr(cpu, 0x380, 100000);
	for (unsigned i = 0; i < 3; i++) {
		fake_time_run(&f->time, 100000);
		assert_int_equal(lapic_ack(cpu->lapic), 0x30);
		wr(cpu, 0xb0, 0);
	}
	fake_time_run(&f->time, 30000);
	assert_int_equal(rd(cpu, 0x390), 70000);
	/* A late callback: no burst, and the phase stays. */
	f->time.now_ns += 1000000;
	f->time.fired = 0;
	assert_int_equal(rd(cpu, 0x390), 70000);
	fake_time_run(&f->time, 0);
	assert_int_equal(f->time.fired, 1);
	assert_int_equal(rd(cpu, 0x390), 70000);
	/* The shortest period there is does not storm. */
	wr(cpu, 0x380, 1);
	f->time.fired = 0;
	fake_time_run(&f->time, 1000000);
	assert_in_range(f->time.fired, 1, 20);
}

static void test_timer_deadline(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[0];
	uint64_t now = f->time.now_ns;

	assert_true(lapic_msr_write(cpu->lapic, 0x6e0, (now + 500) * TSC_PER_NS));
	assert_true(rdmsr(cpu, 0x6e0) == 0); /* not in that mode: ignored */
	wr(cpu, 0x320, 0x40031);
	assert_true(lapic_msr_write(cpu->lapic, 0x6e0, (now + 500) * TSC_PER_NS));
	assert_true(rdmsr(cpu, 0x6e0) == (now + 500) * TSC_PER_NS);
	wr(cpu, 0x380, 5);
	assert_int_equal(rd(cpu, 0x390), 0);
	fake_time_run(&f->time, 499);
	assert_int_equal(lapic_pending(cpu->lapic), -1);
	fake_time_run(&f->time, 1);
	assert_int_equal(lapic_ack(cpu->lapic), 0x31);
	assert_true(rdmsr(cpu, 0x6e0) == 0);
	wr(cpu, 0xb0, 0);
	/* In the past: at once. */
	assert_true(lapic_msr_write(cpu->lapic, 0x6e0, 1));
	assert_int_equal(lapic_ack(cpu->lapic), 0x31);
	wr(cpu, 0xb0, 0);
	/* Disarming, by zero and by leaving the mode. */
	assert_true(lapic_msr_write(cpu->lapic, 0x6e0, ~0ull));
	assert_true(lapic_msr_write(cpu->lapic, 0x6e0, 0));
	assert_null(fake_time_next(&f->time));
	assert_true(lapic_msr_write(cpu->lapic, 0x6e0, ~0ull));
	wr(cpu, 0x320, 0x31);
	assert_null(fake_time_next(&f->time));
	assert_true(rdmsr(cpu, 0x6e0) == 0);
}

/* A callback that was under way when the guest re-armed must not count. */
static void test_timer_stale(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[0];

	wr(cpu, 0x3e0, 0xb);
	wr(cpu, 0x320, 0x30);
	wr(cpu, 0x380, 1000);
	f->time.timer[0].fire(f->time.timer[0].opaque);
	assert_int_equal(lapic_pending(cpu->lapic), -1);
	wr(cpu, 0x380, 0);
	f->time.now_ns += 5000;
	f->time.timer[0].fire(f->time.timer[0].opaque);
	assert_int_equal(lapic_pending(cpu->lapic), -1);
}

static void test_lint(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[0];

	assert_false(lapic_accepts_pic(cpu->lapic));
	lapic_set_lint(cpu->lapic, 0, true);
	assert_int_equal(cpu->signals[LAPIC_SIGNAL_EXTINT], 0);
	wr(cpu, 0x350, 0x700); /* the line is up already */
	assert_int_equal(cpu->signals[LAPIC_SIGNAL_EXTINT], 1);
	assert_true(lapic_accepts_pic(cpu->lapic));
	lapic_set_lint(cpu->lapic, 0, false);
	lapic_set_lint(cpu->lapic, 0, true);
	assert_int_equal(cpu->signals[LAPIC_SIGNAL_EXTINT], 2);
	lapic_set_lint(cpu->lapic, 0, false);
	/* Linux's check_timer() tries it as a plain vector too. */
	wr(cpu, 0x350, 0x30);
	lapic_set_lint(cpu->lapic, 0, true);
	assert_int_equal(lapic_ack(cpu->lapic), 0x30);
	wr(cpu, 0x360, 0x400);
	lapic_set_lint(cpu->lapic, 1, true);
	lapic_set_lint(cpu->lapic, 1, true);
	assert_int_equal(cpu->signals[LAPIC_SIGNAL_NMI], 1);
	/* No APIC: the PIC's line is the processor's own. */
	assert_true(lapic_base_write(cpu->lapic, 0xfee00100));
	assert_true(lapic_accepts_pic(cpu->lapic));
	/* As firmware leaves it. */
	lapic_reset(cpu->lapic);
	assert_false(lapic_accepts_pic(cpu->lapic));
	lapic_set_virtual_wire(cpu->lapic);
	assert_true(lapic_accepts_pic(cpu->lapic));
}

static void test_base(void **state)
{
	struct fixture *f = *state;
	struct lapic *lapic = f->cpu[1].lapic;

	assert_int_equal(lapic_base_read(lapic), 0xfee00800);
	assert_true(lapic_base_write(lapic, 0xfed00800));
	assert_int_equal(lapic_base_read(lapic), 0xfed00800);
	assert_false(lapic_base_write(lapic, 0xfee00801)); /* reserved */
	assert_false(lapic_base_write(lapic, 0xfee00a00));
	assert_false(lapic_base_write(lapic, 1ull << 46 | 0x800));
	assert_false(lapic_base_write(lapic, 0xfee00400)); /* x2APIC, disabled */
	assert_true(lapic_base_write(lapic, 0xfee00c00));
	assert_false(lapic_base_write(lapic, 0xfee00800)); /* x2APIC -> xAPIC */
	assert_true(lapic_base_write(lapic, 0xfee00000));
	assert_false(lapic_base_write(lapic, 0xfee00c00)); /* disabled -> x2APIC */
	assert_int_equal(lapic_mmio_read(lapic, 0x30, 4), 0);
	assert_int_equal(send(f, 1, 0x40), 0);
	assert_true(lapic_base_write(lapic, 0xfee00800));
	assert_int_equal(lapic_mmio_read(lapic, 0xf0, 4), 0xff); /* was reset */
}

static void test_x2apic(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[3];
	struct lapic *lapic = cpu->lapic;
	uint64_t value;

	assert_false(lapic_msr_read(lapic, 0x802, &value));
	assert_false(lapic_msr_write(lapic, 0x808, 0));
	for (unsigned i = 0; i < CPUS; i++)
		assert_true(lapic_base_write(
			f->cpu[i].lapic, lapic_base_read(f->cpu[i].lapic) | 0xc00));
	assert_int_equal(rdmsr(cpu, 0x802), 3);
	assert_int_equal(rdmsr(cpu, 0x80d), 8);
	assert_int_equal(rdmsr(cpu, 0x80f), 0x1ff); /* kept */
	assert_int_equal(rd(cpu, 0x20), 0);	    /* the page is gone */

	assert_true(lapic_msr_write(lapic, 0x830, 1ull << 32 | 0x40fd));
	assert_int_equal(take(f, 0xfd), 1u << 1);
	assert_int_equal(rdmsr(cpu, 0x830), 1ull << 32 | 0x40fd);
	assert_true(lapic_msr_write(lapic, 0x830, 0x5ull << 32 | 0x8fd));
	assert_int_equal(take(f, 0xfd), 0x5);
	assert_true(lapic_msr_write(lapic, 0x830, 0x10005ull << 32 | 0x8fd));
	assert_int_equal(take(f, 0xfd), 0);
	assert_true(lapic_msr_write(lapic, 0x830, 0xffffffffull << 32 | 0xfd));
	assert_int_equal(take(f, 0xfd), 0xf);
	assert_true(lapic_msr_write(lapic, 0x830, 0xffull << 32 | 0xfd)); /* an ID here */
	assert_int_equal(take(f, 0xfd), 0);
	assert_true(lapic_msr_write(lapic, 0x830, 0xc00fd));
	assert_int_equal(take(f, 0xfd), 0x7);
	assert_true(lapic_msr_write(lapic, 0x83f, 0xfd));
	assert_int_equal(take(f, 0xfd), 0x8);
	/* 0xff from an I/O APIC is still everybody. */
	assert_int_equal(send(f, 0xff, 0x44), 4);

	static const struct {
		uint32_t index;
		uint64_t value;
	} faults[] = {
		{0x802, 0},
		{0x803, 0},
		{0x804, 0},
		{0x808, 0x100},
		{0x80a, 0},
		{0x80b, 1},
		{0x80d, 0},
		{0x80e, 0},
		{0x80f, 0x2000},
		{0x810, 0},
		{0x827, 0},
		{0x828, 1},
		{0x829, 0},
		{0x82f, 0},
		{0x830, 1u << 20},
		{0x831, 0},
		{0x832, 1u << 20},
		{0x838, 1ull << 32},
		{0x839, 0},
		{0x83e, 4},
		{0x83f, 0x100},
		{0x840, 0},
		{0x8ff, 0},
	};
	for (unsigned i = 0; i < ARRAY_SIZE(faults); i++)
		assert_false(lapic_msr_write(lapic, faults[i].index, faults[i].value));
	static const uint16_t unreadable[] = {
		0x800, 0x804, 0x80b, 0x80c, 0x80e, 0x829, 0x82f, 0x831, 0x83a, 0x83f, 0x840, 0x8ff};
	for (unsigned i = 0; i < ARRAY_SIZE(unreadable); i++)
		assert_false(lapic_msr_read(lapic, unreadable[i], &value));
}

static void test_wide_id(void **state)
{
	struct fixture *f = *state;
	struct cpu far = {.f = f};
	struct lapic_config config = {
		.id = 300, .x2apic = true, .notify = note_signal, .opaque = &far};

	assert_int_equal(lapic_create(f->bus, &config, &far.lapic), 0);
	assert_true(lapic_base_write(f->cpu[0].lapic, 0xfee00d00));
	/* Still in xAPIC mode, it must hear its INIT. */
	assert_true(lapic_msr_write(f->cpu[0].lapic, 0x830, 300ull << 32 | 0x4500));
	assert_int_equal(far.signals[LAPIC_SIGNAL_INIT], 1);
	assert_true(lapic_base_write(far.lapic, 0xfee00c00));
	assert_true(lapic_msr_write(far.lapic, 0x80f, 0x1ff));
	assert_int_equal(rdmsr(&far, 0x80d), 18 << 16 | 1 << 12);
	assert_int_equal(lapic_bus_msi(f->bus, 0xfee00000 | (300 & 0xff) << 12 | 1 << 5, 0x40), 1);
	assert_int_equal(lapic_ack(far.lapic), 0x40);
	lapic_free(far.lapic);
	assert_int_equal(send(f, 300, 0x40), 0);
}

static void test_access_widths(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[2];

	assert_int_equal(lapic_mmio_read(cpu->lapic, 0x23, 1), 2);
	assert_int_equal(lapic_mmio_read(cpu->lapic, 0x32, 2), 0x0105);
	assert_int_equal(lapic_mmio_read(cpu->lapic, 0x33, 2), 0);
	assert_int_equal(lapic_mmio_read(cpu->lapic, 0x30, 8), 0);
	lapic_mmio_write(cpu->lapic, 0x80, 1, 0x40);
	lapic_mmio_write(cpu->lapic, 0x84, 4, 0x40);
	assert_int_equal(rd(cpu, 0x80), 0);
	for (uint64_t offset = 0; offset < 0x1010; offset++) {
		for (unsigned size = 1; size <= 8; size *= 2) {
			lapic_mmio_read(cpu->lapic, offset, size);
			lapic_mmio_write(cpu->lapic, offset, size, ~0ull);
		}
	}
	lapic_mmio_read(cpu->lapic, ~0ull, 8);
}

static void test_save_load(void **state)
{
	struct fixture *f = *state;
	struct cpu *cpu = &f->cpu[0];
	struct lapic_state saved, again, bad;

	wr(cpu, 0x3e0, 0xb);
	wr(cpu, 0x320, 0x20030);
	wr(cpu, 0x380, 1000000);
	wr(cpu, 0x80, 0x20);
	wr(cpu, 0x350, 0x700);
	send(f, 0, 0x90);
	send(f, 0, 0x80);
	lapic_ack(cpu->lapic);
	fake_time_run(&f->time, 400000);
	lapic_save(cpu->lapic, &saved);
	assert_true(saved.timer_left_ns == 600000);
	lapic_reset(cpu->lapic);
	assert_null(fake_time_next(&f->time));
	assert_int_equal(lapic_load(cpu->lapic, &saved), 0);
	lapic_save(cpu->lapic, &again);
	again.reg[0x0a] = saved.reg[0x0a];
	assert_memory_equal(&saved, &again, sizeof(saved));
	fake_time_run(&f->time, 600000);
	assert_int_equal(rd(cpu, 0x210), 1u << 16 | 0);
	wr(cpu, 0xb0, 0);
	assert_int_equal(lapic_ack(cpu->lapic), 0x80);

	bad = saved, bad.apic_base = 0xfee00401;
	assert_int_equal(lapic_load(cpu->lapic, &bad), -EINVAL);
	memset(&bad, 0xff, sizeof(bad));
	bad.apic_base = 0xfee00900;
	assert_int_equal(lapic_load(cpu->lapic, &bad), 0);
	assert_int_equal(rd(cpu, 0x100), 0xffff0000);
	assert_int_equal(rd(cpu, 0x200), 0xffff0000);
	assert_int_equal(rd(cpu, 0x30), 0x01050014);
	assert_int_equal(rd(cpu, 0x20), 0);

	/* A deadline travels as a TSC value. */
	lapic_reset(cpu->lapic);
	wr(cpu, 0xf0, 0x1ff);
	wr(cpu, 0x320, 0x40031);
	assert_true(lapic_msr_write(cpu->lapic, 0x6e0, (f->time.now_ns + 900) * TSC_PER_NS));
	lapic_save(cpu->lapic, &saved);
	lapic_reset(cpu->lapic);
	assert_int_equal(lapic_load(cpu->lapic, &saved), 0);
	fake_time_run(&f->time, 900);
	assert_int_equal(lapic_ack(cpu->lapic), 0x31);
}

#define IPIS 20000

static void *ipi_thread(void *opaque)
{
	struct cpu *cpu = opaque;

	for (unsigned i = 0; i < IPIS; i++) {
		icr(cpu, 0, 0x80040 + i % 4 * 0x10);
		if (lapic_ack(cpu->lapic) >= 0)
			wr(cpu, 0xb0, 0);
		lapic_write_cr8(cpu->lapic, i & 3);
	}
	return NULL;
}

/* All send to all at once; nothing is left behind once the last one has looked. */
static void test_threads(void **state)
{
	struct fixture *f = *state;
	pthread_t thread[CPUS];

	for (unsigned i = 0; i < CPUS; i++)
		pthread_create(&thread[i], NULL, ipi_thread, &f->cpu[i]);
	for (unsigned i = 0; i < CPUS; i++)
		pthread_join(thread[i], NULL);
	for (unsigned i = 0; i < CPUS; i++) {
		assert_true(f->cpu[i].signals[LAPIC_SIGNAL_INTR] > 0);
		lapic_write_cr8(f->cpu[i].lapic, 0);
		while (lapic_ack(f->cpu[i].lapic) >= 0)
			wr(&f->cpu[i], 0xb0, 0);
		for (unsigned reg = 0x100; reg < 0x180; reg += 0x10)
			assert_int_equal(rd(&f->cpu[i], reg), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_reset_state, setup, teardown),
		cmocka_unit_test_setup_teardown(test_priorities, setup, teardown),
		cmocka_unit_test_setup_teardown(test_level_eoi, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ipi, setup, teardown),
		cmocka_unit_test_setup_teardown(test_logical, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lowest, setup, teardown),
		cmocka_unit_test_setup_teardown(test_msi, setup, teardown),
		cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
		cmocka_unit_test_setup_teardown(test_timer_oneshot, setup, teardown),
		cmocka_unit_test_setup_teardown(test_timer_divider, setup, teardown),
		cmocka_unit_test_setup_teardown(test_timer_periodic, setup, teardown),
		cmocka_unit_test_setup_teardown(test_timer_deadline, setup, teardown),
		cmocka_unit_test_setup_teardown(test_timer_stale, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lint, setup, teardown),
		cmocka_unit_test_setup_teardown(test_base, setup, teardown),
		cmocka_unit_test_setup_teardown(test_x2apic, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wide_id, setup, teardown),
		cmocka_unit_test_setup_teardown(test_access_widths, setup, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
