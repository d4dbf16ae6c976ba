/*
 * The PIC's inputs of a machine whose PCI interrupt lines (PIRQ A to D) the guest routes to them (ICH9 data sheet,
 * 13.1.10, PIRQ[n]_ROUT): an input is high while its own device's line is, or any PIRQ that is routed to it.
 *
 * Left out: that the chip set takes a routed input from its ISA device, and that it inverts; lines here are active high.
 *
 * Threads: the caller's lock, which `out` is called with.
 */
#ifndef LODGE_DEVICE_PCI_PIRQ_H
#define LODGE_DEVICE_PCI_PIRQ_H

#include <stdbool.h>
#include <stdint.h>

#include "device/irq_line.h"

#define PIRQ_LINES 4

struct pirq {
	struct irq_line out; /* called with the input (0 to 15) when its level changes; `line` is not used */
	uint16_t own;	     /* inputs that their own devices raise */
	uint16_t shown;	     /* inputs that are high */
	bool line[PIRQ_LINES];
	int route[PIRQ_LINES]; /* the input, or -1 */
};

/* Nothing is raised, and routed nowhere. */
void pirq_init(struct pirq *pirq, struct irq_line out);
/* The line of an input's own device. */
void pirq_own_set(struct pirq *pirq, unsigned input, bool level);
void pirq_line_set(struct pirq *pirq, unsigned line, bool level);
/* Route all lines anew; what is not an input (0 to 15) is nowhere. */
void pirq_route_set(struct pirq *pirq, const int route[PIRQ_LINES]);

#endif
