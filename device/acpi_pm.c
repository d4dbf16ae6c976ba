/*
 * ACPI fixed hardware: see acpi_pm.h.
 */
#include "device/acpi_pm.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include <errno.h>

enum event {
	EVENT_TIMER = 1 << 0,
	EVENT_GLOBAL = 1 << 5,
	EVENT_POWER = 1 << 8,
	EVENT_SLEEP = 1 << 9,
	EVENT_RTC = 1 << 10, /* may be enabled; nothing sleeps here, so the alarm never wakes */
	EVENT_WAKE = 1 << 15
};
#define SMI_EN_APMC 0x20u /* a write to the APM port raises an SMI: set by who set SMM up */
#define EVENTS_STATUS \
	(EVENT_TIMER | EVENT_GLOBAL | EVENT_POWER | EVENT_SLEEP | EVENT_RTC | EVENT_WAKE)
#define EVENTS_ENABLE	   (EVENT_TIMER | EVENT_GLOBAL | EVENT_POWER | EVENT_SLEEP | EVENT_RTC)
#define CONTROL_SCI_ENABLE 0x0001
#define CONTROL_SLP_TYP	   0x1c00
#define CONTROL_SLP_EN	   0x2000
#define CONTROL_WRITABLE   (0x0002 | CONTROL_SLP_TYP) /* BM_RLD; SCI_EN is always on: no SMM here */

static void update_sci(struct acpi_pm *pm)
{
	bool level = pm->s.status & pm->s.enable;

	if (level == pm->sci_level)
		return;
	pm->sci_level = level;
	irq_line_set(&pm->sci, level);
}

static uint32_t timer_count(struct acpi_pm *pm)
{
	unsigned __int128 ticks =
		(unsigned __int128)pm->time->ops->now_ns(pm->time) * ACPI_PM_TIMER_HZ;

	return (uint32_t)(ticks / NS_PER_SEC);
}

/* Registers as the bytes of a 16-byte block, so that any width at any offset reads right. */
static void block_read(struct acpi_pm *pm, uint8_t block[ACPI_PM_PORTS])
{
	uint32_t count = timer_count(pm);
	const uint16_t words[] = {pm->s.status, pm->s.enable, pm->s.control | CONTROL_SCI_ENABLE, 0,
		(uint16_t)count, (uint16_t)(count >> 16), 0, 0};

	for (unsigned i = 0; i < ACPI_PM_PORTS; i++)
		block[i] = (uint8_t)(words[i / 2] >> i % 2 * 8);
}

static uint64_t pm_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	uint8_t block[ACPI_PM_PORTS];
	uint64_t value = 0;

	block_read(opaque, block);
	for (unsigned i = 0; i < size_bytes && offset + i < ACPI_PM_PORTS; i++)
		value |= (uint64_t)block[offset + i] << i * 8;
	return value;
}

static void control_write(struct acpi_pm *pm, uint16_t value)
{
	pm->s.control = value & CONTROL_WRITABLE;
	if (value & CONTROL_SLP_EN)
		pm->sleep(pm->opaque, (value & CONTROL_SLP_TYP) >> 10);
}

/* One byte; `value` in place within its 16-bit register, the other byte from the register (or zero
 * where ones clear). */
static void byte_write(struct acpi_pm *pm, unsigned offset, uint8_t byte)
{
	unsigned shift = offset % 2 * 8;
	uint16_t value = (uint16_t)(byte << shift), mask = (uint16_t)(0xff << shift);

	switch (offset & ~1u) {
	case ACPI_PM_EVENT: pm->s.status &= (uint16_t)~value; break;
	case ACPI_PM_EVENT + 2:
		pm->s.enable = ((pm->s.enable & (uint16_t)~mask) | value) & EVENTS_ENABLE;
		break;
	case ACPI_PM_CONTROL: control_write(pm, (pm->s.control & (uint16_t)~mask) | value); break;
	case ACPI_PM_RESET:
		if (offset == ACPI_PM_RESET && byte == ACPI_PM_RESET_VALUE)
			pm->reset(pm->opaque);
		break;
	default: break;
	}
	update_sci(pm);
}

static void pm_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	for (unsigned i = 0; i < size_bytes && offset + i < ACPI_PM_PORTS; i++)
		byte_write(opaque, (unsigned)offset + i, (uint8_t)(value >> i * 8));
}

static uint64_t smi_read(void *opaque, uint64_t offset, unsigned size)
{
	return offset == 0 ? SMI_EN_APMC : 0;
}

static void smi_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
}

int acpi_pm_attach(struct acpi_pm *pm, struct bus *bus, uint16_t base)
{
	static const struct bus_ops ops = {.read = pm_read, .write = pm_write};

	static const struct bus_ops smi_ops = {.read = smi_read, .write = smi_write};
	int status;

	pm->s = (struct acpi_pm_state){0};
	pm->sci_level = false;
	status = bus_add(bus, BUS_PIO, base, ACPI_PM_PORTS, "acpi-pm", &ops, pm, pm->lock);
	return status < 0 ? status
			  : bus_add(bus, BUS_PIO, base + ACPI_PM_SMI_EN, 4, "acpi-pm-smi", &smi_ops, pm, pm->lock);
}

static void raise_event(struct acpi_pm *pm, uint16_t event)
{
	AUTO_LOCK(pm->lock);
	pm->s.status |= event;
	update_sci(pm);
}

void acpi_pm_press_power(struct acpi_pm *pm)
{
	raise_event(pm, EVENT_POWER);
}

void acpi_pm_press_sleep(struct acpi_pm *pm)
{
	raise_event(pm, EVENT_SLEEP);
}

void acpi_pm_wake(struct acpi_pm *pm)
{
	raise_event(pm, EVENT_WAKE);
}

void acpi_pm_save(struct acpi_pm *pm, struct acpi_pm_state *ret_state)
{
	AUTO_LOCK(pm->lock);
	*ret_state = pm->s;
}

int acpi_pm_load(struct acpi_pm *pm, const struct acpi_pm_state *state)
{
	AUTO_LOCK(pm->lock);
	if ((state->status & ~EVENTS_STATUS) || (state->enable & ~EVENTS_ENABLE) ||
		(state->control & ~CONTROL_WRITABLE))
		return -EINVAL;
	pm->s = *state;
	update_sci(pm);
	return 0;
}
