/*
 * Message-signalled interrupts as a device sees them: a write of `data` to `address` (PCI Express Base 6.1.4;
 * SDM 3, 11.11). The machine decides what takes it: its local APICs, or an engine's own.
 *
 * Threads: send on any thread, with the device's lock held; it must not call back into the device.
 */
#ifndef LODGE_DEVICE_MSI_H
#define LODGE_DEVICE_MSI_H

#include <stdint.h>

struct msi_sink {
	void (*send)(void *opaque, uint64_t address, uint32_t data);
	void *opaque;
};

static inline void msi_send(const struct msi_sink *sink, uint64_t address, uint32_t data)
{
	if (sink->send)
		sink->send(sink->opaque, address, data);
}

#endif
