/*
 * What the files of the local APIC share: lapic.c (priorities, life), lapic_registers.c (accesses by the
 * guest), lapic_bus.c (messages and who they are for) and lapic_timer.c. Not for others.
 *
 * Functions here are called with the bus mutex held unless they say otherwise.
 */
#ifndef LODGE_DEVICE_IRQ_LAPIC_INTERNAL_H
#define LODGE_DEVICE_IRQ_LAPIC_INTERNAL_H

#include <pthread.h>

#include "device/irq/lapic.h"

/* Registers by their slot: offset in the page / 16, and MSR - 0x800. */
enum lapic_register {
	LAPIC_ID = 0x02,
	LAPIC_VERSION = 0x03,
	LAPIC_TPR = 0x08,
	LAPIC_APR = 0x09,
	LAPIC_PPR = 0x0a,
	LAPIC_EOI = 0x0b,
	LAPIC_RRD = 0x0c,
	LAPIC_LDR = 0x0d,
	LAPIC_DFR = 0x0e,
	LAPIC_SVR = 0x0f,
	LAPIC_ISR = 0x10, /* eight slots each */
	LAPIC_TMR = 0x18,
	LAPIC_IRR = 0x20,
	LAPIC_ESR = 0x28,
	LAPIC_ERRORS = 0x29, /* ours: not yet latched into ESR */
	LAPIC_ICR = 0x30,
	LAPIC_ICR_HIGH = 0x31,
	LAPIC_LVT_TIMER = 0x32,
	LAPIC_LVT_THERMAL = 0x33,
	LAPIC_LVT_PMC = 0x34,
	LAPIC_LVT_LINT0 = 0x35,
	LAPIC_LVT_LINT1 = 0x36,
	LAPIC_LVT_ERROR = 0x37,
	LAPIC_TIMER_INITIAL = 0x38,
	LAPIC_TIMER_CURRENT = 0x39,
	LAPIC_TIMER_DIVIDE = 0x3e,
	LAPIC_SELF_IPI = 0x3f, /* x2APIC only */
};

#define BASE_MODE (LAPIC_BASE_ENABLE | LAPIC_BASE_X2APIC)

/* Reserved in the x2APIC ICR; bit 12, the delivery status, may be written and is dropped. */
#define ICR_RESERVED 0xfff32000u
#define ICR_BUSY     0x00001000u

#define LAPIC_VERSION_VALUE 0x01050014u /* integrated, 6 LVT entries, EOI broadcast suppression */

#define SVR_ENABLE	 0x100u
#define SVR_SUPPRESS_EOI 0x1000u
#define SVR_WRITABLE	 0x11ffu

#define LVT_VECTOR   0x000000ffu
#define LVT_DELIVERY 0x00000700u
#define LVT_MASKED   0x00010000u
#define LVT_LINT     0x0001a7ffu /* writable bits of LINT0 and LINT1 */
#define LVT_PMC	     0x000107ffu
#define LVT_ERROR    0x000100ffu
#define LVT_TIMER    0x000700ffu

#define LVT_TIMER_MODE	   0x00060000u
#define LVT_TIMER_PERIODIC 0x00020000u
#define LVT_TIMER_DEADLINE 0x00040000u

#define ESR_SEND_VECTOR	   0x20u
#define ESR_RECEIVE_VECTOR 0x40u
#define ESR_REGISTER	   0x80u
#define ESR_ALL		   0xffu

struct lapic {
	struct lapic_bus *bus;
	struct lapic_config config;
	uint64_t apic_base;
	uint32_t reg[64];
	uint64_t tsc_deadline;
	bool lint[2];

	struct device_timer *timer;
	bool timer_on;
	uint64_t timer_deadline_ns; /* when the count reaches zero; valid while timer_on */
};

struct lapic_bus {
	pthread_mutex_t lock;
	struct lapic_bus_config config;
	struct lapic **lapic;
	unsigned count, capacity;
	unsigned rotor; /* where the next lowest-priority arbitration begins */
};

/* lapic.c */
bool lapic_enabled(const struct lapic *lapic);		/* globally */
bool lapic_software_enabled(const struct lapic *lapic); /* and globally */
bool lapic_is_x2apic(const struct lapic *lapic);
/* Puts a vector into IRR and tells the vCPU. */
void lapic_accept(struct lapic *lapic, uint8_t vector, bool level);
void lapic_note_error(struct lapic *lapic, uint32_t errors);
uint8_t lapic_priority(const struct lapic *lapic); /* PPR */
/* Tells the vCPU if a vector can be delivered now. */
void lapic_update(struct lapic *lapic);
void lapic_set_tpr(struct lapic *lapic, uint8_t value);
bool lapic_accepts_pic_locked(const struct lapic *lapic);
/* Interrupt bits: 256 in eight registers from `reg`. The highest one set, or -1. */
void lapic_bit_clear(struct lapic *lapic, unsigned reg, uint8_t vector);
bool lapic_bit_test(const struct lapic *lapic, unsigned reg, uint8_t vector);
int lapic_bit_highest(const struct lapic *lapic, unsigned reg);
/* What a local source does by its LVT entry. */
void lapic_fire_lvt(struct lapic *lapic, unsigned reg);
static inline void lapic_notify(struct lapic *lapic, enum lapic_signal signal, uint8_t vector)
{
	lapic->config.notify(lapic->config.opaque, signal, vector);
}

/* lapic_registers.c */
/* Bits of LVT entry `reg` that can be set. */
uint32_t lapic_lvt_writable(const struct lapic *lapic, unsigned reg);

/* lapic_bus.c */
unsigned lapic_route(struct lapic_bus *bus, const struct irq_message *message);
/* The ICR was written. */
void lapic_send_icr(struct lapic *lapic);
int lapic_bus_add(struct lapic_bus *bus, struct lapic *lapic);
void lapic_bus_remove(struct lapic_bus *bus, struct lapic *lapic);

/* lapic_timer.c */
int lapic_timer_create(struct lapic *lapic);
void lapic_timer_stop(struct lapic *lapic);
void lapic_timer_write_initial(struct lapic *lapic, uint32_t count);
void lapic_timer_write_divide(struct lapic *lapic, uint32_t value);
void lapic_timer_write_lvt(struct lapic *lapic, uint32_t value);
void lapic_timer_write_deadline(struct lapic *lapic, uint64_t tsc);
uint32_t lapic_timer_current(struct lapic *lapic);
uint64_t lapic_timer_left_ns(struct lapic *lapic);
/* From a saved state; the registers are loaded. */
void lapic_timer_restore(struct lapic *lapic, uint64_t left_ns, uint64_t tsc_deadline);

#endif
