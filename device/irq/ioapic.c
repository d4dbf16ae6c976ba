/*
 * The I/O APIC: see ioapic.h.
 */
#include "device/irq/ioapic.h"
#include "base/cleanup.h"
#include "device/irq/lapic.h"
#include <errno.h>
#include <stdlib.h>

#define PAGE_BYTES  0x1000
#define REG_SELECT  0x00
#define REG_WINDOW  0x10
#define REG_EOI	    0x40
#define IDX_ID	    0x00
#define IDX_VERSION 0x01
#define IDX_ARB	    0x02
#define IDX_ENTRIES 0x10
#define VERSION	    (0x20u | (IOAPIC_PINS - 1) << 16)

#define ENTRY_LOGICAL	 BIT(11)
#define ENTRY_STATUS	 BIT(12)
#define ENTRY_REMOTE_IRR BIT(14)
#define ENTRY_LEVEL	 BIT(15)
#define ENTRY_MASKED	 BIT(16)
#define ENTRY_READ_ONLY	 (ENTRY_STATUS | ENTRY_REMOTE_IRR)
/* vector, delivery, destination mode, polarity, trigger, mask; destination with its extended bits */
#define ENTRY_DEFINED (BIT_MASK(16, 0) | BIT_MASK(63, 49))

struct ioapic {
	struct ioapic_config config;
	pthread_mutex_t lock;
	struct ioapic_state s;
};

/* Send the pin's message. Returns whether a local APIC took it. */
static bool send(struct ioapic *ioapic, unsigned pin)
{
	uint64_t entry = ioapic->s.entry[pin];
	const struct irq_message m = {
		.destination = (uint32_t)(entry >> 56) | (uint32_t)(entry >> 49 & 0x7f) << 8,
		.vector = (uint8_t)entry,
		.delivery = entry >> 8 & 7,
		.logical = entry & ENTRY_LOGICAL,
		.level = entry & ENTRY_LEVEL,
	};

	return lapic_bus_deliver(ioapic->config.lapics, &m) > 0;
}

/* Send a level-triggered pin's message if it is due. Polarity is not looked at: a line is asserted or
 * it is not. */
static void service(struct ioapic *ioapic, unsigned pin)
{
	uint64_t *entry = &ioapic->s.entry[pin];
	unsigned delivery = *entry >> 8 & 7;

	if (!(*entry & ENTRY_LEVEL) || !(ioapic->s.lines >> pin & 1) ||
		(*entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR)))
		return;
	/* Only vectors end with an EOI: other messages leave no remote IRR behind. */
	if (send(ioapic, pin) && delivery <= LAPIC_LOWEST)
		*entry |= ENTRY_REMOTE_IRR;
}

void ioapic_set_irq(struct ioapic *ioapic, unsigned pin, bool level)
{
	AUTO_LOCK(&ioapic->lock);
	uint32_t bit = 1u << (pin & 31);
	bool rose;

	if (pin >= IOAPIC_PINS)
		return;
	rose = level && !(ioapic->s.lines & bit);
	ioapic->s.lines = level ? ioapic->s.lines | bit : ioapic->s.lines & ~bit;
	if (ioapic->s.entry[pin] & ENTRY_LEVEL)
		service(ioapic, pin);
	else if (rose && !(ioapic->s.entry[pin] & ENTRY_MASKED))
		send(ioapic, pin); /* an edge on a masked pin is lost, as on the chip */
}

static void end_vector(struct ioapic *ioapic, uint8_t vector)
{
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t *entry = &ioapic->s.entry[pin];

		if ((uint8_t)*entry != vector || !(*entry & ENTRY_REMOTE_IRR))
			continue;
		*entry &= ~ENTRY_REMOTE_IRR;
		service(ioapic, pin);
	}
}

void ioapic_eoi(struct ioapic *ioapic, uint8_t vector)
{
	AUTO_LOCK(&ioapic->lock);
	end_vector(ioapic, vector);
}

/* ---- registers ---- */

static void entry_write(struct ioapic *ioapic, unsigned pin, bool high, uint32_t value)
{
	uint64_t *entry = &ioapic->s.entry[pin], old = *entry;
	uint64_t merged =
		high ? (old & 0xffffffffu) | (uint64_t)value << 32 : (old & ~0xffffffffull) | value;

	*entry = (merged & ENTRY_DEFINED & ~ENTRY_READ_ONLY) | (old & ENTRY_READ_ONLY);
	/* An edge-triggered entry has no remote IRR; Linux uses that to clear a stuck one. */
	if (!(*entry & ENTRY_LEVEL))
		*entry &= ~ENTRY_REMOTE_IRR;
	service(ioapic, pin);
}

static uint32_t window_read(struct ioapic *ioapic)
{
	unsigned index = ioapic->s.select, pin = (index - IDX_ENTRIES) / 2;

	switch (index) {
	case IDX_ID:
	case IDX_ARB: return (uint32_t)ioapic->s.id << 24;
	case IDX_VERSION: return VERSION;
	default: break;
	}
	if (index < IDX_ENTRIES || pin >= IOAPIC_PINS)
		return 0;
	return (uint32_t)(ioapic->s.entry[pin] >> (index & 1) * 32);
}

static void window_write(struct ioapic *ioapic, uint32_t value)
{
	unsigned index = ioapic->s.select, pin = (index - IDX_ENTRIES) / 2;

	if (index == IDX_ID)
		ioapic->s.id = value >> 24 & 15;
	else if (index >= IDX_ENTRIES && pin < IOAPIC_PINS)
		entry_write(ioapic, pin, index & 1, value);
}

static uint64_t ioapic_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct ioapic *ioapic = opaque;

	switch (offset) {
	case REG_SELECT: return ioapic->s.select;
	case REG_WINDOW: return window_read(ioapic);
	default: return 0;
	}
}

static void ioapic_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct ioapic *ioapic = opaque;

	switch (offset) {
	case REG_SELECT: ioapic->s.select = (uint8_t)value; break;
	case REG_WINDOW: window_write(ioapic, (uint32_t)value); break;
	case REG_EOI: end_vector(ioapic, (uint8_t)value); break;
	default: break;
	}
}

/* ---- life ---- */

int ioapic_create(const struct ioapic_config *config, struct ioapic **ret_ioapic)
{
	struct ioapic *ioapic = calloc(1, sizeof(*ioapic));

	if (!ioapic)
		return -ENOMEM;
	ioapic->config = *config;
	pthread_mutex_init(&ioapic->lock, NULL);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		ioapic->s.entry[pin] = ENTRY_MASKED;
	*ret_ioapic = ioapic;
	return 0;
}

void ioapic_free(struct ioapic *ioapic)
{
	if (!ioapic)
		return;
	pthread_mutex_destroy(&ioapic->lock);
	free(ioapic);
}

int ioapic_attach(struct ioapic *ioapic, struct bus *bus, gpa_t gpa)
{
	static const struct bus_ops ops = {.read = ioapic_read, .write = ioapic_write};

	return bus_add(bus, BUS_MMIO, gpa, PAGE_BYTES, "ioapic", &ops, ioapic, &ioapic->lock);
}

void ioapic_save(struct ioapic *ioapic, struct ioapic_state *ret_state)
{
	AUTO_LOCK(&ioapic->lock);
	*ret_state = ioapic->s;
}

int ioapic_load(struct ioapic *ioapic, const struct ioapic_state *state)
{
	AUTO_LOCK(&ioapic->lock);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t entry = state->entry[pin];

		if ((entry & (~ENTRY_DEFINED | ENTRY_STATUS)) ||
			((entry & ENTRY_REMOTE_IRR) && !(entry & ENTRY_LEVEL)))
			return -EINVAL;
	}
	if (state->id > 15 || state->lines >> IOAPIC_PINS)
		return -EINVAL;
	ioapic->s = *state;
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		service(ioapic, pin);
	return 0;
}
