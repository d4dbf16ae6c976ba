/*
 * The local APIC's registers as the guest sees them: the page of xAPIC mode (SDM 3A 11.4.1) and the MSRs
 * of x2APIC mode (11.12.1). What the two share is in read_common() and write_common().
 *
 * Invariant: the EOI broadcast goes out with the bus mutex released.
 */
#include "device/irq/lapic_internal.h"

#include "base/cleanup.h"

/* Ends the service of the highest vector. Returns it if the I/O APICs must hear of it, else -1. */
static int write_eoi(struct lapic *lapic)
{
	int vector = lapic_bit_highest(lapic, LAPIC_ISR);

	if (vector < 0)
		return -1;
	lapic_bit_clear(lapic, LAPIC_ISR, (uint8_t)vector);
	lapic_update(lapic);
	if (!lapic_bit_test(lapic, LAPIC_TMR, (uint8_t)vector) ||
		(lapic->reg[LAPIC_SVR] & SVR_SUPPRESS_EOI))
		return -1;
	return vector;
}

/* Bits of LVT entry `reg` that can be set. */
uint32_t lapic_lvt_writable(const struct lapic *lapic, unsigned reg)
{
	switch (reg) {
	case LAPIC_LVT_TIMER:
		return lapic->config.tsc_deadline ? LVT_TIMER : LVT_TIMER & ~LVT_TIMER_DEADLINE;
	case LAPIC_LVT_THERMAL:
	case LAPIC_LVT_PMC: return LVT_PMC;
	case LAPIC_LVT_LINT0:
	case LAPIC_LVT_LINT1: return LVT_LINT;
	default: return LVT_ERROR;
	}
}

static void write_lvt(struct lapic *lapic, unsigned reg, uint32_t value)
{
	value &= lapic_lvt_writable(lapic, reg);
	if (!(lapic->reg[LAPIC_SVR] & SVR_ENABLE))
		value |= LVT_MASKED;
	if (reg == LAPIC_LVT_TIMER) {
		lapic_timer_write_lvt(lapic, value);
		return;
	}
	lapic->reg[reg] = value;
	/* The PIC may have been waiting for this. */
	if (reg == LAPIC_LVT_LINT0 && lapic->lint[0] && lapic_accepts_pic_locked(lapic))
		lapic_notify(lapic, LAPIC_SIGNAL_EXTINT, 0);
}

static void write_svr(struct lapic *lapic, uint32_t value)
{
	lapic->reg[LAPIC_SVR] = value & SVR_WRITABLE;
	if (!(value & SVR_ENABLE)) {
		for (unsigned reg = LAPIC_LVT_TIMER; reg <= LAPIC_LVT_ERROR; reg++)
			lapic->reg[reg] |= LVT_MASKED;
	}
	lapic_update(lapic);
}

static void write_esr(struct lapic *lapic)
{
	lapic->reg[LAPIC_ESR] = lapic->reg[LAPIC_ERRORS];
	lapic->reg[LAPIC_ERRORS] = 0;
}

/* Registers that exist in both modes with one meaning. Returns whether reg is one. */
static bool write_common(struct lapic *lapic, unsigned reg, uint32_t value)
{
	switch (reg) {
	case LAPIC_TPR: lapic_set_tpr(lapic, (uint8_t)value); return true;
	case LAPIC_SVR: write_svr(lapic, value); return true;
	case LAPIC_ESR: write_esr(lapic); return true;
	case LAPIC_LVT_TIMER ... LAPIC_LVT_ERROR: write_lvt(lapic, reg, value); return true;
	case LAPIC_TIMER_INITIAL: lapic_timer_write_initial(lapic, value); return true;
	case LAPIC_TIMER_DIVIDE: lapic_timer_write_divide(lapic, value); return true;
	default: return false;
	}
}

/* A register that both modes can read. Returns whether reg is one. */
static bool read_common(struct lapic *lapic, unsigned reg, uint32_t *ret_value)
{
	switch (reg) {
	case LAPIC_PPR: *ret_value = lapic_priority(lapic); return true;
	case LAPIC_TIMER_CURRENT: *ret_value = lapic_timer_current(lapic); return true;
	case LAPIC_ID:
	case LAPIC_VERSION:
	case LAPIC_TPR:
	case LAPIC_LDR:
	case LAPIC_SVR:
	case LAPIC_ISR ... LAPIC_ESR:
	case LAPIC_ICR:
	case LAPIC_LVT_TIMER ... LAPIC_TIMER_INITIAL:
	case LAPIC_TIMER_DIVIDE: *ret_value = lapic->reg[reg]; return true;
	default: return false;
	}
}

/* The page ---------------------------------------------------------------------------------- */

static uint32_t page_read(struct lapic *lapic, unsigned reg)
{
	uint32_t value = 0;

	switch (reg) {
	case LAPIC_DFR:
	case LAPIC_ICR_HIGH: return lapic->reg[reg];
	case LAPIC_APR:
	case LAPIC_RRD:
	case LAPIC_EOI: return 0;
	default:
		if (!read_common(lapic, reg, &value))
			lapic_note_error(lapic, ESR_REGISTER);
		return value;
	}
}

uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset, unsigned size_bytes)
{
	unsigned at = offset & 0xf;
	uint64_t value;
	AUTO_LOCK(&lapic->bus->lock);

	/* 12 of every 16 bytes are reserved. */
	if (!lapic_enabled(lapic) || lapic_is_x2apic(lapic) || at + size_bytes > 4 ||
		offset >= 0x1000)
		return 0;
	if (offset >= 0x400) {
		lapic_note_error(lapic, ESR_REGISTER);
		return 0;
	}
	value = page_read(lapic, (unsigned)(offset >> 4)) >> (8 * at);
	return value & (BIT(8 * size_bytes) - 1);
}

/* Returns a vector whose end the I/O APICs must hear of, or -1. */
static int page_write(struct lapic *lapic, unsigned reg, uint32_t value)
{
	switch (reg) {
	case LAPIC_EOI: return write_eoi(lapic);
	case LAPIC_LDR: lapic->reg[reg] = value & 0xff000000; break;
	case LAPIC_DFR: lapic->reg[reg] = value | 0x0fffffff; break;
	case LAPIC_ICR:
		lapic->reg[reg] = value & ~(ICR_RESERVED | ICR_BUSY);
		lapic_send_icr(lapic);
		break;
	case LAPIC_ICR_HIGH: lapic->reg[reg] = value & 0xff000000; break;
	case LAPIC_ID: /* read-only, and so is what follows */
	case LAPIC_VERSION:
	case LAPIC_APR:
	case LAPIC_PPR:
	case LAPIC_RRD:
	case LAPIC_ISR ... LAPIC_ESR - 1:
	case LAPIC_TIMER_CURRENT: break;
	default:
		if (!write_common(lapic, reg, value))
			lapic_note_error(lapic, ESR_REGISTER);
	}
	return -1;
}

/* Without the mutex: the I/O APIC may send the interrupt anew at once. */
static void broadcast_eoi(struct lapic *lapic, int vector)
{
	const struct lapic_bus_config *config = &lapic->bus->config;

	if (vector >= 0 && config->eoi)
		config->eoi(config->opaque, (uint8_t)vector);
}

void lapic_mmio_write(struct lapic *lapic, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	int ended = -1;

	/* Registers take whole, aligned writes only; a wider one reaches the first register. */
	if ((offset & 0xf) || size_bytes < 4 || offset >= 0x1000)
		return;
	pthread_mutex_lock(&lapic->bus->lock);
	if (lapic_enabled(lapic) && !lapic_is_x2apic(lapic)) {
		if (offset < 0x400)
			ended = page_write(lapic, (unsigned)(offset >> 4), (uint32_t)value);
		else
			lapic_note_error(lapic, ESR_REGISTER);
	}
	pthread_mutex_unlock(&lapic->bus->lock);
	broadcast_eoi(lapic, ended);
}

/* The MSRs ---------------------------------------------------------------------------------- */

bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *ret_value)
{
	unsigned reg = index - LAPIC_MSR_FIRST;
	uint32_t low = 0;
	AUTO_LOCK(&lapic->bus->lock);

	if (index == LAPIC_MSR_TSC_DEADLINE) {
		*ret_value = lapic->tsc_deadline;
		return lapic->config.tsc_deadline;
	}
	if (!lapic_is_x2apic(lapic) || reg >= ARRAY_SIZE(lapic->reg))
		return false;
	if (!read_common(lapic, reg, &low))
		return false;
	*ret_value = low;
	if (reg == LAPIC_ICR)
		*ret_value |= (uint64_t)lapic->reg[LAPIC_ICR_HIGH] << 32;
	return true;
}

static bool msr_write_icr(struct lapic *lapic, uint64_t value)
{
	if ((uint32_t)value & ICR_RESERVED)
		return false;
	lapic->reg[LAPIC_ICR] = (uint32_t)value & ~ICR_BUSY;
	lapic->reg[LAPIC_ICR_HIGH] = value >> 32;
	lapic_send_icr(lapic);
	return true;
}

/* Bits that raise #GP, for the registers both modes share. */
static uint32_t msr_reserved(const struct lapic *lapic, unsigned reg)
{
	switch (reg) {
	case LAPIC_TPR: return ~0xffu;
	case LAPIC_SVR: return ~0x13ffu; /* bit 9 may be written and stays 0 */
	case LAPIC_ESR: return ~0u;
	case LAPIC_LVT_TIMER ... LAPIC_LVT_ERROR:
		return ~(lapic_lvt_writable(lapic, reg) | 0x5000u); /* the read-only status bits */
	case LAPIC_TIMER_DIVIDE: return ~0xbu;
	default: return 0;
	}
}

static bool msr_write_reg(struct lapic *lapic, unsigned reg, uint64_t value, int *ret_ended)
{
	if (reg == LAPIC_ICR)
		return msr_write_icr(lapic, value);
	if (value >> 32)
		return false;
	switch (reg) {
	case LAPIC_EOI:
		if (value)
			return false;
		*ret_ended = write_eoi(lapic);
		return true;
	case LAPIC_SELF_IPI:
		if (value & ~0xffull)
			return false;
		if (value < 16)
			lapic_note_error(lapic, ESR_SEND_VECTOR | ESR_RECEIVE_VECTOR);
		else if (lapic_software_enabled(lapic))
			lapic_accept(lapic, (uint8_t)value, false);
		return true;
	default:
		if (value & msr_reserved(lapic, reg))
			return false;
		return write_common(lapic, reg, (uint32_t)value);
	}
}

bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value)
{
	unsigned reg = index - LAPIC_MSR_FIRST;
	int ended = -1;
	bool ok = false;

	pthread_mutex_lock(&lapic->bus->lock);
	if (index == LAPIC_MSR_TSC_DEADLINE) {
		ok = lapic->config.tsc_deadline;
		if (ok)
			lapic_timer_write_deadline(lapic, value);
	} else if (lapic_is_x2apic(lapic) && reg < ARRAY_SIZE(lapic->reg)) {
		ok = msr_write_reg(lapic, reg, value, &ended);
	}
	pthread_mutex_unlock(&lapic->bus->lock);
	broadcast_eoi(lapic, ended);
	return ok;
}
