/*
 * The I/O APIC (Intel 82093AA data sheet; version 0x20 with the EOI register): 24 pins, each with a
 * redirection entry that says which message its interrupt becomes.
 *
 * Left out: the delivery-status bit (a message is delivered at once) and moving the ID onto a bus.
 *
 * Locks: its own, taken after device locks and before the local APICs'.
 */
#ifndef LODGE_DEVICE_IRQ_IOAPIC_H
#define LODGE_DEVICE_IRQ_IOAPIC_H

#include "base/types.h"
#include "base/util.h"
#include "device/bus.h"

#define IOAPIC_PINS 24

struct ioapic;
struct lapic_bus;

struct ioapic_state {
	uint8_t id, select;
	uint32_t lines; /* the pins' present levels */
	uint64_t entry[IOAPIC_PINS];
};

struct ioapic_config {
	struct lapic_bus *lapics; /* outlives it */
};

/* Errors: -ENOMEM. */
int ioapic_create(const struct ioapic_config *config, struct ioapic **ret_ioapic);
void ioapic_free(struct ioapic *ioapic);
/* Registers a page at gpa. Errors: as bus_add(). */
int ioapic_attach(struct ioapic *ioapic, struct bus *bus, gpa_t gpa);

/* Any thread. pin < IOAPIC_PINS, others are ignored. */
void ioapic_set_irq(struct ioapic *ioapic, unsigned pin, bool level);
/* A local APIC ended a level-triggered vector: a pin that is still high sends again. Any thread, with no
 * local APIC's lock held. */
void ioapic_eoi(struct ioapic *ioapic, uint8_t vector);

void ioapic_save(struct ioapic *ioapic, struct ioapic_state *ret_state);
/* Errors: -EINVAL, and nothing was changed. */
MUST_CHECK int ioapic_load(struct ioapic *ioapic, const struct ioapic_state *state);

#endif
