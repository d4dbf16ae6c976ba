/*
 * The 8254 programmable interval timer with the PC's wiring: channel 0 on interrupt 0, channel 1 the
 * DRAM refresh tick, channel 2 the speaker behind port 0x61 (Intel 8254 data sheet).
 *
 * Counters are computed from the clock when they are read; only channel 0 has a timer, for its interrupt.
 * Left out: a sound; the exact moment of reload after a new count in modes 2 and 3 (it is immediate);
 * in modes 1 and 5, waiting for the gate before the first count.
 *
 * Invariant: however fast it is programmed, channel 0 interrupts at most every 50 us, so that a guest
 * cannot keep the event thread busy.
 */
#ifndef LODGE_DEVICE_TIMER_PIT_H
#define LODGE_DEVICE_TIMER_PIT_H

#include "base/util.h"
#include "device/bus.h"
#include "device/irq_line.h"
#include "device/timer_source.h"

#define PIT_PORT	 0x40
#define PIT_SPEAKER_PORT 0x61
#define PIT_HZ		 1193182u
#define PIT_CHANNELS	 3

struct pit_channel {
	uint32_t count; /* 1..65536, in ticks (BCD already converted) */
	uint8_t mode;	/* 0..5 */
	uint8_t access; /* 1 low byte, 2 high byte, 3 low then high */
	bool bcd;
	bool gate;
	bool null_count;	    /* programmed, no count written yet */
	bool write_high, read_high; /* the second byte of an access-3 pair is next */
	uint8_t write_low;	    /* the first */
	bool latched, status_latched;
	uint16_t latch;
	uint8_t status;
	uint64_t start_ns; /* guest time when counting (re)started */
	uint64_t held_ns;  /* guest time when the gate fell; valid while it is low */
};

struct pit_state {
	struct pit_channel channel[PIT_CHANNELS];
	bool speaker;
};

struct pit_config {
	pthread_mutex_t *lock;
	struct irq_line irq;
	struct timer_source *time;
};

struct pit;

/* Errors: -ENOMEM. */
int pit_create(const struct pit_config *config, struct pit **ret_pit);
void pit_free(struct pit *pit);
/* Registers ports 0x40-0x43 and 0x61. Errors: as bus_add(). */
int pit_attach(struct pit *pit, struct bus *bus);

void pit_save(struct pit *pit, struct pit_state *ret_state);
/* Errors: -EINVAL, and nothing was changed. */
MUST_CHECK int pit_load(struct pit *pit, const struct pit_state *state);

#endif
