/*
 * The board without a machine: see rig.h.
 */
#include "tests/fuzz/rig.h"

#include "base/util.h"

/* ---- interrupts ---- */

static void gsi_set(void *opaque, unsigned gsi, bool level)
{
	struct rig *rig = opaque;

	pic_set_irq(rig->pic, gsi, level);
	ioapic_set_irq(rig->ioapic, gsi ? gsi : 2, level);
}

static struct irq_line gsi_line(struct rig *rig, unsigned gsi)
{
	return (struct irq_line){.set = gsi_set, .opaque = rig, .line = gsi};
}

static void pic_intr(void *opaque, unsigned line, bool level)
{
	struct rig *rig = opaque;

	lapic_set_lint(rig->cpu[0].lapic, 0, level);
}

static void lapic_notify(void *opaque, enum lapic_signal signal, uint8_t vector)
{
	struct rig_cpu *cpu = opaque;

	switch (signal) {
	case LAPIC_SIGNAL_INTR:
	case LAPIC_SIGNAL_EXTINT: cpu->intr = true; break;
	case LAPIC_SIGNAL_NMI: cpu->nmi = true; break;
	case LAPIC_SIGNAL_INIT: cpu->init = true; break;
	case LAPIC_SIGNAL_SIPI:
		cpu->sipi = true;
		cpu->sipi_vector = vector;
		break;
	case LAPIC_SIGNAL_SMI: break;
	}
}

static uint64_t tsc_to_ns(void *opaque, uint64_t tsc)
{
	struct rig_cpu *cpu = opaque;
	int64_t at = (int64_t)(tsc - cpu->tsc_offset);

	return at > 0 ? (uint64_t)at : 0;
}

static void lapic_eoi(void *opaque, uint8_t vector)
{
	struct rig *rig = opaque;

	ioapic_eoi(rig->ioapic, vector);
}

static uint64_t page_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct rig *rig = opaque;

	return lapic_mmio_read(rig->cpu[rig->current].lapic, offset, size_bytes);
}

static void page_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct rig *rig = opaque;

	lapic_mmio_write(rig->cpu[rig->current].lapic, offset, size_bytes, value);
}

static void add_irqchip(struct rig *rig)
{
	static const struct bus_ops page_ops = {.read = page_read, .write = page_write};
	const struct lapic_bus_config bus_config = {
		.time = &rig->time.source, .eoi = lapic_eoi, .opaque = rig};
	const struct pic_config pic_config = {
		.lock = &rig->pic_lock, .intr = {.set = pic_intr, .opaque = rig}};

	MUST(lapic_bus_create(&bus_config, &rig->lapics) == 0);
	for (unsigned i = 0; i < RIG_CPUS; i++) {
		const struct lapic_config config = {
			.id = i,
			.bsp = i == 0,
			.x2apic = true,
			.tsc_deadline = true,
			.notify = lapic_notify,
			.tsc_to_ns = tsc_to_ns,
			.opaque = &rig->cpu[i],
		};
		rig->cpu[i] = (struct rig_cpu){.rig = rig, .index = i};
		MUST(lapic_create(rig->lapics, &config, &rig->cpu[i].lapic) == 0);
	}
	lapic_set_virtual_wire(rig->cpu[0].lapic);
	MUST(bus_add(rig->bus, BUS_MMIO, LAPIC_BASE_DEFAULT, GUEST_PAGE_SIZE, "lapic", &page_ops,
		     rig, NULL) == 0);
	MUST(pic_create(&pic_config, &rig->pic) == 0 && pic_attach(rig->pic, rig->bus) == 0);
	MUST(ioapic_create(&(struct ioapic_config){.lapics = rig->lapics}, &rig->ioapic) == 0);
	MUST(ioapic_attach(rig->ioapic, rig->bus, 0xfec00000) == 0);
}

/* ---- the other devices ---- */

static void ended(void *opaque)
{
	((struct rig *)opaque)->ended = true;
}

static void slept(void *opaque, unsigned type)
{
	ended(opaque);
}

static void byte_written(void *opaque, uint8_t byte)
{
	ended(opaque);
}

static void output(void *opaque, const uint8_t *bytes, size_t count)
{
	((struct rig *)opaque)->output_bytes += count;
}

static void add_devices(struct rig *rig)
{
	struct timer_source *time = &rig->time.source;
	const struct pit_config pit = {
		.lock = &rig->device_lock, .irq = gsi_line(rig, 0), .time = time};
	const struct rtc_config rtc = {
		.lock = &rig->device_lock, .irq = gsi_line(rig, 8), .time = time};
	const struct uart_config uart = {.lock = &rig->device_lock,
		.irq = gsi_line(rig, 4),
		.output = output,
		.opaque = rig};

	MUST(pit_create(&pit, &rig->pit) == 0 && pit_attach(rig->pit, rig->bus) == 0);
	MUST(rtc_create(&rtc, &rig->rtc) == 0 && rtc_attach(rig->rtc, rig->bus) == 0);
	MUST(uart_create(&uart, &rig->uart) == 0 && uart_attach(rig->uart, rig->bus, 0x3f8) == 0);
	rig->pm = (struct acpi_pm){.lock = &rig->device_lock,
		.sci = gsi_line(rig, 9),
		.time = time,
		.sleep = slept,
		.reset = ended,
		.opaque = rig};
	rig->i8042 = (struct i8042){.lock = &rig->device_lock, .reset = ended, .opaque = rig};
	rig->debug_exit = (struct debug_exit){.exit = byte_written, .opaque = rig};
	rig->pvpanic = (struct pvpanic){.event = byte_written, .opaque = rig};
	MUST(acpi_pm_attach(&rig->pm, rig->bus, ACPI_PM_PORT) == 0);
	MUST(i8042_attach(&rig->i8042, rig->bus) == 0);
	MUST(debug_exit_attach(&rig->debug_exit, rig->bus, DEBUG_EXIT_PORT) == 0);
	MUST(pvpanic_attach(&rig->pvpanic, rig->bus, PVPANIC_PORT) == 0);
}

void rig_init(struct rig *rig)
{
	memset(rig, 0, sizeof(*rig));
	fake_time_init(&rig->time);
	rig->time.realtime_base_ns = 1700000000ull * 1000000000;
	pthread_mutex_init(&rig->device_lock, NULL);
	pthread_mutex_init(&rig->pic_lock, NULL);
	x86_cpuid_default(&rig->cpuid, RIG_CPUS, 1000000000);
	MUST(memory_create(&rig->memory) == 0 && bus_create(&rig->bus) == 0);
	MUST(memory_add_ram(rig->memory, 0, RIG_MEMORY_BYTES, 0, "ram", NULL) == 0);
	MUST(memory_dirty_start(rig->memory) == 0);
	add_irqchip(rig);
	add_devices(rig);
}

void rig_done(struct rig *rig)
{
	rtc_free(rig->rtc);
	pit_free(rig->pit);
	for (unsigned i = 0; i < RIG_CPUS; i++)
		lapic_free(rig->cpu[i].lapic);
	uart_free(rig->uart);
	ioapic_free(rig->ioapic);
	lapic_bus_free(rig->lapics);
	pic_free(rig->pic);
	bus_free(rig->bus);
	memory_free(rig->memory);
	pthread_mutex_destroy(&rig->device_lock);
	pthread_mutex_destroy(&rig->pic_lock);
}

void rig_wipe(struct rig *rig)
{
	struct guest_memory *memory = rig->memory;
	uint8_t *ram = memory->region[0].host;

	memory_dirty_fetch(memory, 0, rig->dirty);
	for (unsigned page = 0; page < RIG_MEMORY_BYTES >> GUEST_PAGE_SHIFT; page++) {
		gpa_t gpa = (gpa_t)page << GUEST_PAGE_SHIFT;

		if (!(rig->dirty[page / 64] >> page % 64 & 1))
			continue;
		memset(ram + gpa, 0, GUEST_PAGE_SIZE);
		/* Behind the back of who has translated it: memory_write() would tell, but dirty the page. */
		if (memory->code_listener && memory_code_page(memory, gpa))
			memory->code_listener(memory->code_opaque, gpa, GUEST_PAGE_SIZE);
	}
}

/* ---- the engine's hooks ---- */

static int hook_interrupt_ack(void *opaque)
{
	struct rig_cpu *cpu = opaque;
	int vector = lapic_ack(cpu->lapic);

	if (vector < 0 && lapic_accepts_pic(cpu->lapic) && pic_pending(cpu->rig->pic))
		vector = pic_ack(cpu->rig->pic);
	return vector;
}

static bool hook_msr_read(void *opaque, uint32_t index, uint64_t *ret_value)
{
	struct rig_cpu *cpu = opaque;

	if (index == 0x1b) {
		*ret_value = lapic_base_read(cpu->lapic);
		return true;
	}
	return ((index >= LAPIC_MSR_FIRST && index <= LAPIC_MSR_LAST) ||
		       index == LAPIC_MSR_TSC_DEADLINE) &&
	       lapic_msr_read(cpu->lapic, index, ret_value);
}

static bool hook_msr_write(void *opaque, uint32_t index, uint64_t value)
{
	struct rig_cpu *cpu = opaque;

	if (index == 0x1b)
		return lapic_base_write(cpu->lapic, value);
	return ((index >= LAPIC_MSR_FIRST && index <= LAPIC_MSR_LAST) ||
		       index == LAPIC_MSR_TSC_DEADLINE) &&
	       lapic_msr_write(cpu->lapic, index, value);
}

static uint8_t hook_cr8_read(void *opaque)
{
	return lapic_read_cr8(((struct rig_cpu *)opaque)->lapic);
}

static void hook_cr8_write(void *opaque, uint8_t value)
{
	lapic_write_cr8(((struct rig_cpu *)opaque)->lapic, value);
}

static uint64_t hook_tsc(void *opaque)
{
	struct rig_cpu *cpu = opaque;

	return cpu->rig->time.now_ns + cpu->tsc_offset;
}

static void hook_adjust_tsc(void *opaque, uint64_t delta)
{
	struct rig_cpu *cpu = opaque;

	cpu->tsc_offset += delta;
}

static uint64_t hook_hypercall(void *opaque, uint64_t number, const uint64_t args[4])
{
	return number ^ args[0];
}

const struct engine_hooks rig_hooks = {
	.interrupt_ack = hook_interrupt_ack,
	.msr_read = hook_msr_read,
	.msr_write = hook_msr_write,
	.cr8_read = hook_cr8_read,
	.cr8_write = hook_cr8_write,
	.tsc = hook_tsc,
	.adjust_tsc = hook_adjust_tsc,
	.hypercall = hook_hypercall,
};

/* ---- input ---- */

void rig_take_bytes(struct rig_input *in, void *to, size_t bytes)
{
	size_t have = MIN(bytes, in->left);

	memset(to, 0, bytes);
	if (!have)
		return;
	memcpy(to, in->data, have);
	in->data += have;
	in->left -= have;
}

uint64_t rig_take(struct rig_input *in, unsigned bytes)
{
	uint64_t value = 0;

	rig_take_bytes(in, &value, bytes);
	return value;
}
