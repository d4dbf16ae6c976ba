/*
 * One local APIC: interrupt priorities, the local sources, its life and modes. Its registers as the
 * guest sees them are in lapic_registers.c.
 *
 * Invariants: vectors 0-15 are never in IRR or ISR; reserved bits of reg[] are zero; while the APIC is
 * software-disabled every LVT entry is masked, except what lapic_set_virtual_wire() left.
 */
#include "device/irq/lapic_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

bool lapic_enabled(const struct lapic *lapic)
{
	return lapic->apic_base & LAPIC_BASE_ENABLE;
}

bool lapic_is_x2apic(const struct lapic *lapic)
{
	return (lapic->apic_base & BASE_MODE) == BASE_MODE;
}

bool lapic_software_enabled(const struct lapic *lapic)
{
	return lapic_enabled(lapic) && (lapic->reg[LAPIC_SVR] & SVR_ENABLE);
}

/* Interrupt bits: 256 in eight registers from `reg`. */
static void bit_set(struct lapic *lapic, unsigned reg, uint8_t vector)
{
	lapic->reg[reg + vector / 32] |= 1u << vector % 32;
}

void lapic_bit_clear(struct lapic *lapic, unsigned reg, uint8_t vector)
{
	lapic->reg[reg + vector / 32] &= ~(1u << vector % 32);
}

bool lapic_bit_test(const struct lapic *lapic, unsigned reg, uint8_t vector)
{
	return lapic->reg[reg + vector / 32] >> vector % 32 & 1;
}

int lapic_bit_highest(const struct lapic *lapic, unsigned reg)
{
	for (int word = 7; word >= 0; word--) {
		uint32_t bits = lapic->reg[reg + (unsigned)word];

		if (bits)
			return word * 32 + 31 - __builtin_clz(bits);
	}
	return -1;
}

uint8_t lapic_priority(const struct lapic *lapic)
{
	int in_service = lapic_bit_highest(lapic, LAPIC_ISR);
	uint8_t task = (uint8_t)lapic->reg[LAPIC_TPR];

	if (in_service > 0 && (in_service & 0xf0) > (task & 0xf0))
		return in_service & 0xf0;
	return task;
}

static int pending_vector(const struct lapic *lapic)
{
	int vector;

	if (!lapic_software_enabled(lapic))
		return -1;
	vector = lapic_bit_highest(lapic, LAPIC_IRR);
	if (vector < 0 || (vector & 0xf0) <= (lapic_priority(lapic) & 0xf0))
		return -1;
	return vector;
}

void lapic_update(struct lapic *lapic)
{
	if (pending_vector(lapic) >= 0)
		lapic_notify(lapic, LAPIC_SIGNAL_INTR, 0);
}

void lapic_accept(struct lapic *lapic, uint8_t vector, bool level)
{
	bit_set(lapic, LAPIC_IRR, vector);
	if (level)
		bit_set(lapic, LAPIC_TMR, vector);
	else
		lapic_bit_clear(lapic, LAPIC_TMR, vector);
	lapic_update(lapic);
}

void lapic_note_error(struct lapic *lapic, uint32_t errors)
{
	uint32_t lvt = lapic->reg[LAPIC_LVT_ERROR];
	bool news = errors & ~lapic->reg[LAPIC_ERRORS];

	lapic->reg[LAPIC_ERRORS] |= errors;
	/* Not through lapic_fire_lvt(): a bad vector here must not raise an error for ever. */
	if (news && !(lvt & LVT_MASKED) && (lvt & LVT_VECTOR) >= 16)
		lapic_accept(lapic, (uint8_t)lvt, false);
}

void lapic_fire_lvt(struct lapic *lapic, unsigned reg)
{
	uint32_t lvt = lapic->reg[reg];

	if (lvt & LVT_MASKED)
		return;
	/* The timer has no delivery mode: its bits 8-10 are zero, which is "fixed". */
	switch ((lvt & LVT_DELIVERY) >> 8) {
	case LAPIC_FIXED:
		if ((lvt & LVT_VECTOR) >= 16)
			lapic_accept(lapic, (uint8_t)lvt, false);
		else
			lapic_note_error(lapic, ESR_RECEIVE_VECTOR);
		break;
	case LAPIC_NMI: lapic_notify(lapic, LAPIC_SIGNAL_NMI, 0); break;
	case LAPIC_SMI: lapic_notify(lapic, LAPIC_SIGNAL_SMI, 0); break;
	case LAPIC_INIT: lapic_notify(lapic, LAPIC_SIGNAL_INIT, 0); break;
	case LAPIC_EXTINT: lapic_notify(lapic, LAPIC_SIGNAL_EXTINT, 0); break;
	}
}

int lapic_pending(struct lapic *lapic)
{
	AUTO_LOCK(&lapic->bus->lock);

	return pending_vector(lapic);
}

int lapic_ack(struct lapic *lapic)
{
	int vector;
	AUTO_LOCK(&lapic->bus->lock);

	vector = pending_vector(lapic);
	if (vector >= 0) {
		lapic_bit_clear(lapic, LAPIC_IRR, (uint8_t)vector);
		bit_set(lapic, LAPIC_ISR, (uint8_t)vector);
	}
	return vector;
}

bool lapic_accepts_pic_locked(const struct lapic *lapic)
{
	uint32_t lvt = lapic->reg[LAPIC_LVT_LINT0];

	if (!lapic_enabled(lapic))
		return true;
	return !(lvt & LVT_MASKED) && (lvt & LVT_DELIVERY) >> 8 == LAPIC_EXTINT;
}

bool lapic_accepts_pic(struct lapic *lapic)
{
	AUTO_LOCK(&lapic->bus->lock);

	return lapic_accepts_pic_locked(lapic);
}

void lapic_set_lint(struct lapic *lapic, unsigned pin, bool level)
{
	bool rose;
	AUTO_LOCK(&lapic->bus->lock);

	if (pin > 1)
		return;
	rose = level && !lapic->lint[pin];
	lapic->lint[pin] = level;
	if (!rose)
		return;
	if (lapic_enabled(lapic))
		lapic_fire_lvt(lapic, LAPIC_LVT_LINT0 + pin);
	else /* the pins are then the processor's own INTR and NMI */
		lapic_notify(lapic, pin ? LAPIC_SIGNAL_NMI : LAPIC_SIGNAL_EXTINT, 0);
}

void lapic_set_tpr(struct lapic *lapic, uint8_t value)
{
	lapic->reg[LAPIC_TPR] = value;
	lapic_update(lapic);
}

uint8_t lapic_read_cr8(struct lapic *lapic)
{
	AUTO_LOCK(&lapic->bus->lock);

	return (uint8_t)lapic->reg[LAPIC_TPR] >> 4;
}

void lapic_write_cr8(struct lapic *lapic, uint8_t priority)
{
	AUTO_LOCK(&lapic->bus->lock);

	lapic_set_tpr(lapic, (uint8_t)(priority << 4));
}

/* Life and modes ------------------------------------------------------------------------------ */

/* ID and LDR have another shape in each mode. */
static void set_identity(struct lapic *lapic)
{
	uint32_t id = lapic->config.id;

	if (lapic_is_x2apic(lapic)) {
		lapic->reg[LAPIC_ID] = id;
		lapic->reg[LAPIC_LDR] = (id >> 4) << 16 | 1u << (id & 0xf);
	} else {
		lapic->reg[LAPIC_ID] = id << 24;
	}
}

static void reset_registers(struct lapic *lapic)
{
	lapic_timer_stop(lapic);
	lapic->tsc_deadline = 0;
	memset(lapic->reg, 0, sizeof(lapic->reg));
	lapic->reg[LAPIC_VERSION] = LAPIC_VERSION_VALUE;
	lapic->reg[LAPIC_DFR] = 0xffffffff;
	lapic->reg[LAPIC_SVR] = 0xff;
	for (unsigned reg = LAPIC_LVT_TIMER; reg <= LAPIC_LVT_ERROR; reg++)
		lapic->reg[reg] = LVT_MASKED;
	set_identity(lapic);
}

static void set_base(struct lapic *lapic, uint64_t value)
{
	lapic->apic_base = value;
}

static void reset_all(struct lapic *lapic)
{
	set_base(lapic,
		LAPIC_BASE_DEFAULT | LAPIC_BASE_ENABLE | (lapic->config.bsp ? LAPIC_BASE_BSP : 0));
	reset_registers(lapic);
}

int lapic_create(struct lapic_bus *bus, const struct lapic_config *config, struct lapic **ret_lapic)
{
	struct lapic *lapic = calloc(1, sizeof(*lapic));
	int rc;

	if (!lapic)
		return -ENOMEM;
	lapic->bus = bus;
	lapic->config = *config;
	if (!lapic->config.phys_bits)
		lapic->config.phys_bits = 46;
	reset_all(lapic);
	rc = lapic_timer_create(lapic);
	if (rc == 0) {
		pthread_mutex_lock(&bus->lock);
		rc = lapic_bus_add(bus, lapic);
		pthread_mutex_unlock(&bus->lock);
	}
	if (rc < 0) {
		timer_free_in(bus->config.time, lapic->timer);
		free(lapic);
		return rc;
	}
	*ret_lapic = lapic;
	return 0;
}

void lapic_free(struct lapic *lapic)
{
	if (!lapic)
		return;
	pthread_mutex_lock(&lapic->bus->lock);
	lapic_timer_stop(lapic);
	lapic_bus_remove(lapic->bus, lapic);
	pthread_mutex_unlock(&lapic->bus->lock);
	timer_free_in(lapic->bus->config.time, lapic->timer);
	free(lapic);
}

void lapic_reset(struct lapic *lapic)
{
	AUTO_LOCK(&lapic->bus->lock);

	reset_all(lapic);
}

void lapic_init(struct lapic *lapic)
{
	AUTO_LOCK(&lapic->bus->lock);

	reset_registers(lapic);
}

void lapic_set_virtual_wire(struct lapic *lapic)
{
	AUTO_LOCK(&lapic->bus->lock);

	lapic->reg[LAPIC_LVT_LINT0] = LAPIC_EXTINT << 8;
	lapic->reg[LAPIC_LVT_LINT1] = LAPIC_NMI << 8;
}

uint64_t lapic_base_read(struct lapic *lapic)
{
	AUTO_LOCK(&lapic->bus->lock);

	return lapic->apic_base;
}

static bool base_is_valid(const struct lapic *lapic, uint64_t value)
{
	uint64_t allowed = BIT_MASK(lapic->config.phys_bits - 1, 12) | LAPIC_BASE_BSP |
			   LAPIC_BASE_ENABLE | (lapic->config.x2apic ? LAPIC_BASE_X2APIC : 0);

	/* x2APIC without the APIC does not exist. */
	return !(value & ~allowed) && (value & BASE_MODE) != LAPIC_BASE_X2APIC;
}

bool lapic_base_write(struct lapic *lapic, uint64_t value)
{
	uint64_t from, to = value & BASE_MODE;
	AUTO_LOCK(&lapic->bus->lock);

	from = lapic->apic_base & BASE_MODE;
	/* Into x2APIC only from xAPIC, and out of it only to disabled (SDM 3A figure 11-27). */
	if (!base_is_valid(lapic, value) || (to == BASE_MODE && !from) ||
		(from == BASE_MODE && to == LAPIC_BASE_ENABLE))
		return false;
	set_base(lapic, value);
	if (!to && from)
		reset_registers(lapic);
	else if (to != from)
		set_identity(lapic);
	return true;
}

void lapic_save(struct lapic *lapic, struct lapic_state *ret_state)
{
	AUTO_LOCK(&lapic->bus->lock);

	memset(ret_state, 0, sizeof(*ret_state));
	ret_state->apic_base = lapic->apic_base;
	memcpy(ret_state->reg, lapic->reg, sizeof(lapic->reg));
	ret_state->reg[LAPIC_PPR] = lapic_priority(lapic);
	ret_state->reg[LAPIC_TIMER_CURRENT] = lapic_timer_current(lapic);
	ret_state->timer_left_ns = lapic_timer_left_ns(lapic);
	/* Due this moment, its callback still on the way: the loader must see it fire. */
	if (lapic->timer_on && !ret_state->timer_left_ns)
		ret_state->timer_left_ns = 1;
	ret_state->tsc_deadline = lapic->tsc_deadline;
	if (lapic->tsc_deadline)
		ret_state->timer_left_ns = 0;
}

static void load_registers(struct lapic *lapic, const uint32_t *reg)
{
	static const uint32_t interrupt_first = 0xffff0000; /* no vectors below 16 */

	lapic->reg[LAPIC_TPR] = reg[LAPIC_TPR] & 0xff;
	if (!lapic_is_x2apic(lapic))
		lapic->reg[LAPIC_LDR] = reg[LAPIC_LDR] & 0xff000000;
	lapic->reg[LAPIC_DFR] = reg[LAPIC_DFR] | 0x0fffffff;
	lapic->reg[LAPIC_SVR] = reg[LAPIC_SVR] & SVR_WRITABLE;
	for (unsigned i = LAPIC_ISR; i < LAPIC_ESR; i++)
		lapic->reg[i] = reg[i] & (i % 8 ? ~0u : interrupt_first);
	lapic->reg[LAPIC_ESR] = reg[LAPIC_ESR] & ESR_ALL;
	lapic->reg[LAPIC_ERRORS] = reg[LAPIC_ERRORS] & ESR_ALL;
	lapic->reg[LAPIC_ICR] = reg[LAPIC_ICR] & ~(ICR_RESERVED | ICR_BUSY);
	lapic->reg[LAPIC_ICR_HIGH] =
		reg[LAPIC_ICR_HIGH] & (lapic_is_x2apic(lapic) ? ~0u : 0xff000000);
	for (unsigned i = LAPIC_LVT_TIMER; i <= LAPIC_LVT_ERROR; i++)
		lapic->reg[i] = reg[i] & lapic_lvt_writable(lapic, i);
	lapic->reg[LAPIC_TIMER_INITIAL] = reg[LAPIC_TIMER_INITIAL];
	lapic->reg[LAPIC_TIMER_DIVIDE] = reg[LAPIC_TIMER_DIVIDE] & 0xb;
}

int lapic_load(struct lapic *lapic, const struct lapic_state *state)
{
	AUTO_LOCK(&lapic->bus->lock);

	if (!base_is_valid(lapic, state->apic_base))
		return -EINVAL;
	set_base(lapic, state->apic_base);
	reset_registers(lapic);
	load_registers(lapic, state->reg);
	lapic_timer_restore(lapic, state->timer_left_ns, state->tsc_deadline);
	lapic_update(lapic);
	return 0;
}
