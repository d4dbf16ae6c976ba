/*
 * Fuzz target: scripts of what can be done to the devices of a board (rig.h): accesses of any width at any
 * place, time that passes, interrupt lines, input, messages, acknowledge cycles; and states saved, changed
 * and loaded, as a hostile migration stream might.
 *
 * What must hold: nothing crashes, an access gives no bits above its width, time passed costs a
 * bounded number of timer callbacks, a state that a device saved itself can be loaded again, and a load
 * that fails changes nothing.
 */
#include "tests/fuzz/rig.h"

#include "base/util.h"

#define OPS_MAX 400
/* The fastest timer may fire each 50 us; there are a handful of them. */
#define FIRES_PER_MS (21u * 5)

struct place {
	enum bus_space space;
	uint64_t base;
	unsigned bytes;
};

static const struct place places[] = {
	{BUS_PIO, 0x20, 2},
	{BUS_PIO, 0xa0, 2},
	{BUS_PIO, 0x4d0, 2},
	{BUS_PIO, 0x40, 4},
	{BUS_PIO, 0x60, 8},
	{BUS_PIO, 0x70, 2},
	{BUS_PIO, 0x3f8, 8},
	{BUS_PIO, 0x600, 16},
	{BUS_PIO, 0xf4, 4},
	{BUS_PIO, 0x505, 1},
	{BUS_MMIO, 0xfee00000, 0x400},
	{BUS_MMIO, 0xfec00000, 0x60},
	{BUS_PIO, 0, 0x10000},
	{BUS_MMIO, 0xfec00000, 0x300000},
};

static void access_bus(struct rig *rig, struct rig_input *in, bool write)
{
	const struct place *place = &places[rig_take(in, 1) % ARRAY_SIZE(places)];
	/* One before to one after. */
	uint64_t addr =
		place->base + rig_take(in, place->bytes > 250 ? 3 : 1) % (place->bytes + 2) - 1;
	unsigned how = (unsigned)rig_take(in, 1);
	unsigned size = 1u << how % (place->space == BUS_PIO ? 3 : 4);

	/* An APIC's registers are 16 bytes apart. */
	if (place->bytes == 0x400 && how & 0x80)
		addr = place->base + (addr & 0x3f0);
	if (place->space == BUS_PIO)
		addr &= 0xffff;
	if (write) {
		bus_write(rig->bus, place->space, addr, size, rig_take(in, size));
		return;
	}
	uint64_t value = bus_read(rig->bus, place->space, addr, size);
	MUST(size == 8 || !(value >> 8 * size));
}

static void access_msr(struct rig *rig, struct rig_input *in)
{
	static const uint32_t known[] = {0x1b, LAPIC_MSR_TSC_DEADLINE, 0x830, 0x80b, 0x832, 0x838};
	uint8_t how = (uint8_t)rig_take(in, 1);
	uint32_t index = how & 1 ? known[how / 4 % ARRAY_SIZE(known)] : 0x800u + how;
	uint64_t value = rig_take(in, 8);

	if (how & 2)
		(void)!rig_hooks.msr_write(&rig->cpu[rig->current], index, value);
	else
		(void)!rig_hooks.msr_read(&rig->cpu[rig->current], index, &value);
}

static void pass_time(struct rig *rig, struct rig_input *in)
{
	uint64_t ns = rig_take(in, 1) << rig_take(in, 1) % 18;
	unsigned before = rig->time.fired;

	fake_time_run(&rig->time, ns);
	MUST(rig->time.fired - before <= (ns / 1000000 + 1) * FIRES_PER_MS);
}

static void deliver(struct rig *rig, struct rig_input *in)
{
	struct irq_message message = {
		.destination = (uint32_t)rig_take(in, 4),
		.vector = (uint8_t)rig_take(in, 1),
		.delivery = rig_take(in, 1) & 7,
	};
	uint8_t flags = (uint8_t)rig_take(in, 1);

	message.logical = flags & 1;
	message.level = flags & 2;
	message.x2apic = flags & 4;
	MUST(lapic_bus_deliver(rig->lapics, &message) <= RIG_CPUS);
	lapic_bus_msi(rig->lapics, 0xfee00000 | rig_take(in, 4), (uint32_t)rig_take(in, 4));
}

static void acknowledge(struct rig *rig)
{
	for (unsigned i = 0; i < RIG_CPUS; i++) {
		int pending = lapic_pending(rig->cpu[i].lapic);
		MUST(pending < 256 && rig_hooks.interrupt_ack(&rig->cpu[i]) < 256);
	}
}

static void type_in(struct rig *rig, struct rig_input *in)
{
	uint8_t bytes[24];
	size_t count = rig_take(in, 1) % (sizeof(bytes) + 1);

	rig_take_bytes(in, bytes, count);
	MUST(uart_receive(rig->uart, bytes, count) <= count);
}

/* ---- states ---- */

/* Bytes of a struct changed; `bools` (offsets, ended by 0xffff) are kept true or false, as whatever reads a
 * stream makes them. */
static void mutate(void *state, size_t size, const uint16_t *bools, struct rig_input *in)
{
	uint8_t *bytes = state;
	unsigned count = (unsigned)rig_take(in, 1) % 6;

	for (unsigned i = 0; i < count; i++) {
		size_t at = rig_take(in, 2) % size;
		rig_take_bytes(in, bytes + at, MIN(size - at, (size_t)rig_take(in, 1) % 8 + 1));
	}
	for (; *bools != 0xffff; bools++)
		bytes[*bools] &= 1;
}

/* Save, load what was saved, change, load. bools of the struct: see mutate(). */
#define RELOAD(type, save, load, object, ...)                                        \
	do {                                                                         \
		static const uint16_t bools[] = {__VA_ARGS__};                       \
		struct type before = {0}, changed, after = {0};                      \
		save(object, &before);                                               \
		MUST(load(object, &before) == 0);                                    \
		save(object, &before); /* with the padding that `after` will have */ \
		changed = before;                                                    \
		mutate(&changed, sizeof(changed), bools, in);                        \
		if (load(object, &changed) < 0) {                                    \
			save(object, &after);                                        \
			MUST(memcmp(&before, &after, sizeof(before)) == 0);          \
		} else {                                                             \
			save(object, &after);                                        \
			MUST(load(object, &after) == 0);                             \
		}                                                                    \
	} while (0)

#define CHIP(n, member) offsetof(struct pic_state, chip[n].member)
#define CHIP_BOOLS(n)                                                                         \
	CHIP(n, needs_icw4), CHIP(n, single), CHIP(n, auto_eoi), CHIP(n, rotate_on_auto_eoi), \
		CHIP(n, read_isr), CHIP(n, poll), CHIP(n, special_mask)
#define CHANNEL(n, member) offsetof(struct pit_state, channel[n].member)
#define CHANNEL_BOOLS(n)                                                                   \
	CHANNEL(n, bcd), CHANNEL(n, gate), CHANNEL(n, null_count), CHANNEL(n, write_high), \
		CHANNEL(n, read_high), CHANNEL(n, latched), CHANNEL(n, status_latched)

static void reload_irq(struct rig *rig, struct rig_input *in)
{
	struct lapic *lapic = rig->cpu[rig_take(in, 1) % RIG_CPUS].lapic;

	RELOAD(pic_state, pic_save, pic_load, rig->pic, CHIP_BOOLS(0), CHIP_BOOLS(1), 0xffff);
	RELOAD(ioapic_state, ioapic_save, ioapic_load, rig->ioapic, 0xffff);
	RELOAD(lapic_state, lapic_save, lapic_load, lapic, 0xffff);
}

static void reload_others(struct rig *rig, struct rig_input *in)
{
	RELOAD(pit_state, pit_save, pit_load, rig->pit, CHANNEL_BOOLS(0), CHANNEL_BOOLS(1),
		CHANNEL_BOOLS(2), offsetof(struct pit_state, speaker), 0xffff);
	RELOAD(rtc_state, rtc_save, rtc_load, rig->rtc, offsetof(struct rtc_state, line), 0xffff);
	RELOAD(uart_state, uart_save, uart_load, rig->uart,
		offsetof(struct uart_state, thr_pending), 0xffff);
	RELOAD(i8042_state, i8042_save, i8042_load, &rig->i8042,
		offsetof(struct i8042_state, output_full), 0xffff);
	RELOAD(acpi_pm_state, acpi_pm_save, acpi_pm_load, &rig->pm, 0xffff);
}

/* ---- one input ---- */

static void one_op(struct rig *rig, struct rig_input *in)
{
	uint8_t op = (uint8_t)rig_take(in, 1);

	switch (op % 16) {
	case 0: pass_time(rig, in); break;
	case 1:
	case 2:
	case 3: access_bus(rig, in, false); break;
	case 4: ioapic_set_irq(rig->ioapic, (unsigned)rig_take(in, 1) % 32, op & 16); break;
	case 5: pic_set_irq(rig->pic, (unsigned)rig_take(in, 1) % 16, op & 16); break;
	case 6: type_in(rig, in); break;
	case 7: deliver(rig, in); break;
	case 8: acknowledge(rig); break;
	case 9: access_msr(rig, in); break;
	case 10: rig->current = op / 16 % RIG_CPUS; break;
	case 11:
		if (op & 64)
			reload_irq(rig, in);
		else if (op & 128)
			reload_others(rig, in);
		else
			rig_hooks.cr8_write(&rig->cpu[0], (uint8_t)rig_take(in, 1) & 15);
		break;
	case 12:
		acpi_pm_press_power(&rig->pm);
		lapic_init(rig->cpu[rig->current].lapic);
		break;
	default: access_bus(rig, in, true);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	static struct rig rig;

	rig_init(&rig);
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&rig, &in);
	rig_done(&rig);
	return 0;
}
