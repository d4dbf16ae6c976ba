/*
 * The local APICs of a machine (Intel SDM volume 3A, chapter 11; x2APIC in 11.12): one `struct lapic`
 * for each vCPU, and the `struct lapic_bus` over which interrupt messages travel: IPIs, the I/O APIC's
 * and MSIs.
 *
 * The timer counts at 1 GHz, one tick a nanosecond, before its divider.
 *
 * Left out: CMCI; focus processor checking; arbitration priority (reads 0); writes of the APIC ID,
 * which is read-only as on recent processors. Where the register page lies is the caller's business: the
 * address in APIC_BASE is kept and moves nothing. An RTE or MSI reaches IDs above 254 by the extended
 * destination ID (address bits 11-5, RTE bits 55-49).
 *
 * Threads: every function may be called from any thread; one mutex a lapic_bus guards all of its
 * LAPICs and is not held by the caller. Callbacks given in the configs run with that mutex held and
 * must not call back, except `eoi`, which runs without it.
 */
#ifndef LODGE_DEVICE_IRQ_LAPIC_H
#define LODGE_DEVICE_IRQ_LAPIC_H

#include "base/types.h"
#include "base/util.h"
#include "device/timer_source.h"

#define LAPIC_BASE_DEFAULT     0xfee00000ull
#define LAPIC_BASE_BSP	       0x100ull
#define LAPIC_BASE_X2APIC      0x400ull
#define LAPIC_BASE_ENABLE      0x800ull
#define LAPIC_MSR_FIRST	       0x800u
#define LAPIC_MSR_LAST	       0x8ffu
#define LAPIC_MSR_TSC_DEADLINE 0x6e0u

/* What a LAPIC tells its vCPU. */
enum lapic_signal {
	LAPIC_SIGNAL_INTR,   /* lapic_pending() may have something; also sent when it did before */
	LAPIC_SIGNAL_EXTINT, /* the PIC may have something, see lapic_accepts_pic() */
	LAPIC_SIGNAL_NMI,
	LAPIC_SIGNAL_INIT, /* the vCPU calls lapic_init() when it obeys */
	LAPIC_SIGNAL_SIPI, /* with the vector */
	LAPIC_SIGNAL_SMI,
};

enum lapic_delivery {
	LAPIC_FIXED = 0,
	LAPIC_LOWEST = 1,
	LAPIC_SMI = 2,
	LAPIC_NMI = 4,
	LAPIC_INIT = 5,
	LAPIC_SIPI = 6,
	LAPIC_EXTINT = 7,
};

/* An interrupt message as it travels. */
struct irq_message {
	uint32_t destination; /* APIC ID, or logical destination */
	uint8_t vector;
	uint8_t delivery; /* enum lapic_delivery */
	bool logical;
	bool level;  /* trigger mode */
	bool x2apic; /* the destination is 32 bits wide: 0xff is an ID, not everybody */
};

struct lapic;
struct lapic_bus;

struct lapic_bus_config {
	struct timer_source *time;
	/* A level-triggered vector was finished: for the I/O APICs. */
	void (*eoi)(void *opaque, uint8_t vector);
	void *opaque;
};

struct lapic_config {
	uint32_t id;
	bool bsp;
	bool x2apic;	   /* CPUID offers x2APIC */
	bool tsc_deadline; /* CPUID offers the TSC-deadline timer */
	uint8_t phys_bits; /* of APIC_BASE; 0: 46 */
	void (*notify)(void *opaque, enum lapic_signal signal, uint8_t vector);
	/* The moment, on the time source's clock, at which the guest's TSC reaches this value; the past
	 * or 0 if it has, UINT64_MAX if never. */
	uint64_t (*tsc_to_ns)(void *opaque, uint64_t tsc);
	void *opaque;
};

/* Plain data: the register page, one entry for each 16-byte slot, as xAPIC lays it out. Slot 0x29,
 * reserved in the page, holds errors not yet latched into ESR. */
struct lapic_state {
	uint64_t apic_base;
	uint32_t reg[64];
	uint64_t timer_left_ns; /* until the count reaches zero; 0 = not counting */
	uint64_t tsc_deadline;	/* guest TSC; 0 = disarmed */
};

/* Errors: -ENOMEM. */
int lapic_bus_create(const struct lapic_bus_config *config, struct lapic_bus **ret_bus);
/* After all of its LAPICs. */
void lapic_bus_free(struct lapic_bus *bus);

/* Makes a LAPIC in its power-up state and puts it on the bus. Errors: -ENOMEM, -EEXIST (the ID). */
int lapic_create(
	struct lapic_bus *bus, const struct lapic_config *config, struct lapic **ret_lapic);
void lapic_free(struct lapic *lapic);
/* Power-up: registers, APIC_BASE, timer off. */
void lapic_reset(struct lapic *lapic);
/* INIT: the registers are reset, APIC_BASE and the ID stay. */
void lapic_init(struct lapic *lapic);
/* What firmware leaves behind on the boot processor: LINT0 takes the PIC's interrupts, LINT1 NMIs. */
void lapic_set_virtual_wire(struct lapic *lapic);

/* Sends a message to every LAPIC it addresses. Returns how many accepted it. */
unsigned lapic_bus_deliver(struct lapic_bus *bus, const struct irq_message *message);
/* Sends the message that a write of data to addr in 0xfeexxxxx stands for. */
unsigned lapic_bus_msi(struct lapic_bus *bus, uint64_t addr, uint32_t data);

/* The vector that would be delivered now, taking priorities into account, or -1. */
int lapic_pending(struct lapic *lapic);
/* As lapic_pending(), and the vector goes into service. */
int lapic_ack(struct lapic *lapic);
/* Whether the PIC's interrupts go to this processor: LINT0 is set to ExtINT, or there is no APIC. */
bool lapic_accepts_pic(struct lapic *lapic);
/* LINT0 or LINT1 changes level. The PIC's INTR goes to LINT0 of the boot processor. */
void lapic_set_lint(struct lapic *lapic, unsigned pin, bool level);

/* MOV to and from CR8: the task priority's high nibble. */
uint8_t lapic_read_cr8(struct lapic *lapic);
void lapic_write_cr8(struct lapic *lapic, uint8_t priority);

/* offset is relative to the page. Any width and alignment. */
uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset, unsigned size_bytes);
void lapic_mmio_write(struct lapic *lapic, uint64_t offset, unsigned size_bytes, uint64_t value);

/* MSRs 0x800-0x8ff and 0x6e0. False: #GP. */
MUST_CHECK bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *ret_value);
MUST_CHECK bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value);
/* IA32_APIC_BASE. A false write: #GP. */
uint64_t lapic_base_read(struct lapic *lapic);
MUST_CHECK bool lapic_base_write(struct lapic *lapic, uint64_t value);

void lapic_save(struct lapic *lapic, struct lapic_state *ret_state);
/* Errors: -EINVAL (APIC_BASE), and nothing was changed. Reserved bits of registers are dropped. */
MUST_CHECK int lapic_load(struct lapic *lapic, const struct lapic_state *state);

#endif
