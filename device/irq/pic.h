/*
 * The PC's two 8259A interrupt controllers, the second behind input 2 of the first, with the ELCR
 * registers that make inputs level-triggered (Intel 8259A data sheet; ELCR: 82371 data sheets).
 *
 * Left out: MCS-80 mode, buffered mode, special fully nested mode's nesting rule.
 *
 * Locks: the interrupt controllers have a lock of their own, taken after a device's: pic_set_irq()
 * is called with device locks held.
 */
#ifndef LODGE_DEVICE_IRQ_PIC_H
#define LODGE_DEVICE_IRQ_PIC_H

#include "base/util.h"
#include "device/bus.h"
#include "device/irq_line.h"

#define PIC_MASTER_PORT 0x20
#define PIC_SLAVE_PORT	0xa0
#define PIC_ELCR_PORT	0x4d0
#define PIC_INPUTS	16

struct pic_chip_state {
	uint8_t irr, isr, imr, elcr;
	uint8_t lines;	     /* the inputs' present levels */
	uint8_t vector_base; /* ICW2 */
	uint8_t lowest;	     /* the input of lowest priority; 7 unless rotated */
	uint8_t init_step;   /* 0: initialised; else the ICW (2..4) expected next */
	bool needs_icw4, single;
	bool auto_eoi, rotate_on_auto_eoi;
	bool read_isr, poll, special_mask;
};

struct pic_state {
	struct pic_chip_state chip[2];
};

struct pic_config {
	pthread_mutex_t *lock;
	struct irq_line intr; /* to the processor (or LINT0) */
};

struct pic;

/* Errors: -ENOMEM. */
int pic_create(const struct pic_config *config, struct pic **ret_pic);
void pic_free(struct pic *pic);
/* Errors: as bus_add(). */
int pic_attach(struct pic *pic, struct bus *bus);

/* input 0..15 (2 is the cascade: ignored). Any thread; takes the lock. */
void pic_set_irq(struct pic *pic, unsigned input, bool level);
/* The processor's acknowledge cycle: the vector, and the interrupt goes into service. A spurious one
 * gives input 7's vector. Any thread; takes the lock. */
uint8_t pic_ack(struct pic *pic);
/* Is INTR raised? Takes the lock. */
bool pic_pending(struct pic *pic);

void pic_save(struct pic *pic, struct pic_state *ret_state);
/* Errors: -EINVAL, and nothing was changed. */
MUST_CHECK int pic_load(struct pic *pic, const struct pic_state *state);

#endif
