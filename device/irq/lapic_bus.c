/*
 * The bus between local APICs: interrupt messages, who they are for and what they do there (SDM 3A
 * 11.6 to 11.8, 11.11 for MSIs, 11.12.9 and 11.12.10 for x2APIC).
 *
 * Lowest-priority messages go to the addressed processor with the lowest PPR; among equals they go
 * round.
 */
#include "device/irq/lapic_internal.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"

#define ICR_LOGICAL	 0x00000800u
#define ICR_LEVEL_ASSERT 0x00004000u
#define ICR_SHORTHAND	 0x000c0000u
#define ICR_TO_SELF	 0x00040000u
#define ICR_TO_ALL	 0x00080000u
#define ICR_TO_OTHERS	 0x000c0000u

#define MSI_LOGICAL   0x004u
#define MSI_REDIRECT  0x008u
#define MSI_LEVEL     0x8000u
#define MSI_ADDR_BASE 0xfee00000u
#define MSI_ADDR_MASK 0xfff00000u

int lapic_bus_create(const struct lapic_bus_config *config, struct lapic_bus **ret_bus)
{
	struct lapic_bus *bus = calloc(1, sizeof(*bus));

	if (!bus)
		return -ENOMEM;
	if (pthread_mutex_init(&bus->lock, NULL)) {
		free(bus);
		return -ENOMEM;
	}
	bus->config = *config;
	*ret_bus = bus;
	return 0;
}

void lapic_bus_free(struct lapic_bus *bus)
{
	if (!bus)
		return;
	free(bus->lapic);
	pthread_mutex_destroy(&bus->lock);
	free(bus);
}

int lapic_bus_add(struct lapic_bus *bus, struct lapic *lapic)
{
	for (unsigned i = 0; i < bus->count; i++) {
		if (bus->lapic[i]->config.id == lapic->config.id)
			return -EEXIST;
	}
	if (bus->count == bus->capacity) {
		unsigned capacity = bus->capacity ? bus->capacity * 2 : 8;
		struct lapic **grown = reallocarray(bus->lapic, capacity, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		bus->lapic = grown;
		bus->capacity = capacity;
	}
	bus->lapic[bus->count++] = lapic;
	return 0;
}

void lapic_bus_remove(struct lapic_bus *bus, struct lapic *lapic)
{
	for (unsigned i = 0; i < bus->count; i++) {
		if (bus->lapic[i] == lapic) {
			bus->lapic[i] = bus->lapic[--bus->count];
			return;
		}
	}
}

static bool is_broadcast(const struct irq_message *message)
{
	return message->destination == 0xffffffff ||
	       (message->destination == 0xff && !message->x2apic);
}

static bool match_physical(const struct lapic *lapic, uint32_t destination)
{
	/* An ID too wide for xAPIC mode still finds a processor that waits for its first INIT. */
	if (lapic_is_x2apic(lapic) || destination > 0xff)
		return destination == lapic->config.id;
	return destination == (uint8_t)lapic->config.id;
}

static bool match_logical(const struct lapic *lapic, uint32_t destination)
{
	uint32_t ldr = lapic->reg[LAPIC_LDR];

	if (lapic_is_x2apic(lapic))
		return destination >> 16 == ldr >> 16 && (destination & ldr & 0xffff);
	if (destination > 0xff)
		return false;
	ldr >>= 24;
	if (lapic->reg[LAPIC_DFR] >> 28 == 0xf)
		return destination & ldr;
	return (destination ^ ldr) < 0x10 && (destination & ldr & 0xf);
}

static bool is_addressed(const struct lapic *lapic, const struct irq_message *message)
{
	if (!lapic_enabled(lapic))
		/* INIT and SIPI reach a processor whatever its APIC; nothing else does. */
		return (message->delivery == LAPIC_INIT || message->delivery == LAPIC_SIPI) &&
		       (is_broadcast(message) ||
			       (!message->logical && match_physical(lapic, message->destination)));
	if (is_broadcast(message))
		return true;
	return message->logical ? match_logical(lapic, message->destination)
				: match_physical(lapic, message->destination);
}

static bool accept_vector(struct lapic *lapic, const struct irq_message *message)
{
	if (!lapic_software_enabled(lapic))
		return false;
	if (message->vector < 16)
		lapic_note_error(lapic, ESR_RECEIVE_VECTOR);
	else
		lapic_accept(lapic, message->vector, message->level);
	return true;
}

static bool accept_message(struct lapic *lapic, const struct irq_message *message)
{
	switch ((enum lapic_delivery)message->delivery) {
	case LAPIC_FIXED:
	case LAPIC_LOWEST: return accept_vector(lapic, message);
	case LAPIC_SMI: lapic_notify(lapic, LAPIC_SIGNAL_SMI, 0); return true;
	case LAPIC_NMI: lapic_notify(lapic, LAPIC_SIGNAL_NMI, 0); return true;
	case LAPIC_INIT: lapic_notify(lapic, LAPIC_SIGNAL_INIT, 0); return true;
	case LAPIC_SIPI: lapic_notify(lapic, LAPIC_SIGNAL_SIPI, message->vector); return true;
	case LAPIC_EXTINT: lapic_notify(lapic, LAPIC_SIGNAL_EXTINT, 0); return true;
	}
	return false;
}

static unsigned route_lowest(struct lapic_bus *bus, const struct irq_message *message)
{
	struct lapic *best = NULL;
	unsigned best_at = 0;

	for (unsigned n = 0; n < bus->count; n++) {
		unsigned at = (bus->rotor + n) % bus->count;
		struct lapic *lapic = bus->lapic[at];

		if (!is_addressed(lapic, message) || !lapic_software_enabled(lapic))
			continue;
		if (!best || lapic_priority(lapic) < lapic_priority(best)) {
			best = lapic;
			best_at = at;
		}
	}
	if (!best)
		return 0;
	bus->rotor = best_at + 1;
	return accept_message(best, message);
}

unsigned lapic_route(struct lapic_bus *bus, const struct irq_message *message)
{
	unsigned accepted = 0;

	if (message->delivery == LAPIC_LOWEST)
		return route_lowest(bus, message);
	for (unsigned i = 0; i < bus->count; i++) {
		if (is_addressed(bus->lapic[i], message))
			accepted += accept_message(bus->lapic[i], message);
	}
	return accepted;
}

unsigned lapic_bus_deliver(struct lapic_bus *bus, const struct irq_message *message)
{
	AUTO_LOCK(&bus->lock);

	return lapic_route(bus, message);
}

unsigned lapic_bus_msi(struct lapic_bus *bus, uint64_t addr, uint32_t data)
{
	struct irq_message message = {
		.destination = ((addr >> 12) & 0xff) | (((addr >> 5) & 0x7f) << 8),
		.vector = (uint8_t)data,
		.delivery = (data >> 8) & 7,
		.logical = addr & MSI_LOGICAL,
		.level = data & MSI_LEVEL,
	};

	if ((addr & ~(uint64_t)(~MSI_ADDR_MASK)) != MSI_ADDR_BASE)
		return 0;
	/* The redirection hint asks for one of those addressed. */
	if ((addr & MSI_REDIRECT) && message.logical && message.delivery == LAPIC_FIXED)
		message.delivery = LAPIC_LOWEST;
	return lapic_bus_deliver(bus, &message);
}

/* To everybody, with or without the sender. */
static void send_all(struct lapic *sender, const struct irq_message *message, bool with_self)
{
	struct lapic_bus *bus = sender->bus;

	for (unsigned i = 0; i < bus->count; i++) {
		struct lapic *lapic = bus->lapic[i];

		if ((with_self || lapic != sender) && is_addressed(lapic, message))
			accept_message(lapic, message);
	}
}

static bool icr_is_valid(struct lapic *lapic, uint32_t icr)
{
	switch (((icr >> 8) & 7)) {
	case LAPIC_FIXED:
	case LAPIC_LOWEST:
		if ((icr & LVT_VECTOR) >= 16)
			return true;
		lapic_note_error(lapic, ESR_SEND_VECTOR);
		return false;
	case LAPIC_INIT:
		/* The de-assert message only resets arbitration IDs of processors long gone. */
		return icr & ICR_LEVEL_ASSERT;
	case LAPIC_SMI:
	case LAPIC_NMI:
	case LAPIC_SIPI: return true;
	default: return false;
	}
}

void lapic_send_icr(struct lapic *lapic)
{
	uint32_t icr = lapic->reg[LAPIC_ICR];
	uint32_t high = lapic->reg[LAPIC_ICR_HIGH];
	bool x2apic = lapic_is_x2apic(lapic);
	struct irq_message message = {
		.destination = x2apic ? high : high >> 24,
		.vector = (uint8_t)icr,
		.delivery = (icr >> 8) & 7,
		.logical = icr & ICR_LOGICAL,
		.x2apic = x2apic,
	};

	if (!icr_is_valid(lapic, icr))
		return;
	if (icr & ICR_SHORTHAND)
		message.destination = 0xffffffff;
	switch (icr & ICR_SHORTHAND) {
	case ICR_TO_SELF:
		if (message.delivery == LAPIC_FIXED)
			accept_message(lapic, &message);
		break;
	case ICR_TO_ALL: send_all(lapic, &message, true); break;
	case ICR_TO_OTHERS: send_all(lapic, &message, false); break;
	default: lapic_route(lapic->bus, &message);
	}
}
