/*
 * The high precision event timer (IA-PC HPET Specification 1.0a): a 64-bit counter of 100 MHz and three
 * comparators, all of which can be periodic.
 *
 * Left out: delivery by message (FSB). Byte and word writes are ignored; the specification has none.
 *
 * Invariant: however it is programmed, a periodic comparator interrupts at most every 50 us.
 */
#ifndef LODGE_DEVICE_TIMER_HPET_H
#define LODGE_DEVICE_TIMER_HPET_H

#include "base/types.h"
#include "base/util.h"
#include "device/bus.h"
#include "device/irq_line.h"
#include "device/timer_source.h"

#define HPET_BASE      0xfed00000ull
#define HPET_BYTES     0x400
#define HPET_TIMERS    3
#define HPET_PERIOD_FS 10000000u /* of a tick: 10 ns */
#define HPET_TICK_NS   10u

struct hpet;

struct hpet_config {
	pthread_mutex_t *lock;
	/* Its `line` is replaced by the number of the interrupt a comparator is routed to (the I/O APIC's
	 * pin), or under legacy replacement by 0 and 8, the ISA interrupts of the PIT and the RTC. */
	struct irq_line irq;
	uint32_t routes; /* pins that comparators may be routed to, one bit each */
	struct timer_source *time;
	/* Legacy replacement goes on or off: the machine then cuts off PIT and RTC, or connects them
	 * again. With the lock held. May be NULL. */
	void (*legacy)(void *opaque, bool on);
	void *opaque;
};

struct hpet_timer_state {
	uint64_t config, comparator, period;
};

struct hpet_state {
	uint64_t config;  /* enable, legacy replacement */
	uint64_t status;  /* level-triggered interrupts that stand */
	uint64_t counter; /* at the moment of the save */
	struct hpet_timer_state timer[HPET_TIMERS];
};

/* Errors: -ENOMEM. */
int hpet_create(const struct hpet_config *config, struct hpet **ret_hpet);
void hpet_free(struct hpet *hpet);
/* Registers HPET_BYTES at base. Errors: as bus_add(). */
int hpet_attach(struct hpet *hpet, struct bus *bus, gpa_t base);

void hpet_save(struct hpet *hpet, struct hpet_state *ret_state);
/* Errors: -EINVAL, and nothing was changed. */
MUST_CHECK int hpet_load(struct hpet *hpet, const struct hpet_state *state);

#endif
