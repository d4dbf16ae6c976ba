/*
 * An interrupt line as a device sees it: something to raise and lower. The machine decides what it is
 * wired to (PIC and I/O APIC pins, or an in-kernel irqchip's GSI).
 *
 * Threads: set() may be called from any thread, with the device's lock held; it must not call back
 * into the device.
 */
#ifndef LODGE_DEVICE_IRQ_LINE_H
#define LODGE_DEVICE_IRQ_LINE_H

#include <stdbool.h>

struct irq_line {
	void (*set)(void *opaque, unsigned line, bool level);
	void *opaque;
	unsigned line;
};

static inline void irq_line_set(const struct irq_line *irq, bool level)
{
	if (irq->set)
		irq->set(irq->opaque, irq->line, level);
}

#endif
