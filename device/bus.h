/*
 * The bus: which device answers at which I/O port or guest-physical address. Engines call
 * bus_read/bus_write for every access that is not RAM; devices register ranges on it.
 *
 * An access that no device claims reads as all ones and is dropped when written, as on a PC. Accesses
 * are 1, 2, 4 or 8 bytes (ports: up to 4) at any alignment; an access that straddles the end of a
 * range goes to the device in which it starts if the device takes it (offset + size <= length), else
 * it counts as unclaimed byte by byte.
 *
 * Threads: ranges are added and removed while no vCPU runs or under the bus lock (write side). Each
 * access takes the device's lock given at registration (NULL: the device locks for itself).
 */
#ifndef LODGE_DEVICE_BUS_H
#define LODGE_DEVICE_BUS_H

#include "base/types.h"
#include <pthread.h>

struct bus;

struct bus_ops {
	/* offset is relative to the range's base. Return the value, zero-extended. */
	uint64_t (*read)(void *device, uint64_t offset, unsigned size_bytes);
	void (*write)(void *device, uint64_t offset, unsigned size_bytes, uint64_t value);
};

enum bus_space { BUS_PIO, BUS_MMIO, BUS_SPACES };

int bus_create(struct bus **ret_bus);
void bus_free(struct bus *bus);

/* Errors: -EINVAL (zero length, wrap), -EEXIST (overlaps a registered range), -ENOMEM. `lock`, if
 * not NULL, is held around each call of ops. `name` must outlive the bus. */
int bus_add(struct bus *bus, enum bus_space space, uint64_t base, uint64_t length, const char *name,
	const struct bus_ops *ops, void *device, pthread_mutex_t *lock);
void bus_remove(struct bus *bus, enum bus_space space, uint64_t base);

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size_bytes);
void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size_bytes,
	uint64_t value);

#endif
