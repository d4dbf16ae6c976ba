/*
 * ACPI fixed hardware (ACPI 6.4, 4.8): PM1 event and control registers, the PM timer, and the reset
 * register. The guest powers off, sleeps and resets through it; the host presses its buttons.
 *
 *	base + 0	PM1a_EVT: status (16 bits), enable (16 bits)
 *	base + 4	PM1a_CNT (16 bits)
 *	base + 8	PM_TMR (32 bits, 3.579545 MHz)
 *	base + 12	reset register (8 bits): ACPI_PM_RESET_VALUE resets
 *	base + 0x30	SMI_EN as Intel's chip sets have it: says that SMM is set up, so that firmware leaves it alone
 */
#ifndef LODGE_DEVICE_ACPI_PM_H
#define LODGE_DEVICE_ACPI_PM_H

#include "base/util.h"
#include "device/bus.h"
#include "device/irq_line.h"
#include "device/timer_source.h"

#define ACPI_PM_PORT	    0x600
#define ACPI_PM_PORTS	    16
#define ACPI_PM_SMI_EN	    0x30 /* 4 ports */
#define ACPI_PM_EVENT	    0
#define ACPI_PM_CONTROL	    4
#define ACPI_PM_TIMER	    8
#define ACPI_PM_RESET	    12
#define ACPI_PM_RESET_VALUE 0x01
#define ACPI_PM_SLEEP_S1    1 /* SLP_TYP values, as the DSDT's \_Sx objects must say */
#define ACPI_PM_SLEEP_S3    3
#define ACPI_PM_SLEEP_S5    0 /* what OVMF writes without looking at the DSDT */
#define ACPI_PM_TIMER_HZ    3579545u

struct acpi_pm_state {
	uint16_t status, enable, control;
};

struct acpi_pm {
	pthread_mutex_t *lock;
	struct irq_line sci; /* level */
	struct timer_source *time;
	/* On the writing vCPU's thread, with the lock held: only note it. type: SLP_TYP. */
	void (*sleep)(void *opaque, unsigned type);
	void (*reset)(void *opaque);
	void *opaque;
	struct acpi_pm_state s;
	bool sci_level;
};

/* Fill in everything above `s` first. The struct is the caller's and outlives the bus. Errors: as
 * bus_add(). */
int acpi_pm_attach(struct acpi_pm *pm, struct bus *bus, uint16_t base);
/* The host's hand on the buttons; no effect until the guest enables the event. Any thread. */
void acpi_pm_press_power(struct acpi_pm *pm);
void acpi_pm_press_sleep(struct acpi_pm *pm);
/* Wake from a sleep state: sets WAK_STS. */
void acpi_pm_wake(struct acpi_pm *pm);
void acpi_pm_save(struct acpi_pm *pm, struct acpi_pm_state *ret_state);
/* Errors: -EINVAL, and nothing was changed. */
MUST_CHECK int acpi_pm_load(struct acpi_pm *pm, const struct acpi_pm_state *state);

#endif
