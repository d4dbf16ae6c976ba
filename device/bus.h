/*
 * The bus: which device answers at which I/O port or guest-physical address. Engines call
 * bus_read/bus_write for every access that is not RAM; devices register ranges on it.
 *
 * An access that no device claims reads as all ones and is dropped when written, as on a PC. Accesses
 * are 1, 2, 4 or 8 bytes (ports: up to 4) at any alignment. One that lies inside a range goes to its
 * device whole, or in pieces if the device asked for them; one that straddles the end of a range is
 * taken apart into bytes, each of which goes to whoever claims it.
 *
 * Threads: all functions may be called from any thread, add and remove also from inside a device's
 * handler. Each access takes the device's lock given at registration (NULL: the device locks for
 * itself). A device that was removed may still see an access that was under way: free it only while
 * no vCPU runs.
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
	/* 1, 2 or 4: wider accesses come in pieces of this size, lowest address first; a device of
	 * byte-wide registers says 1. 0: the device takes any width. */
	unsigned access_max_bytes;
};

enum bus_space { BUS_PIO, BUS_MMIO, BUS_SPACES };

int bus_create(struct bus **ret_bus);
void bus_free(struct bus *bus);

/* Errors: -EINVAL (zero length, wrap), -EEXIST (overlaps a registered range), -ENOMEM. `lock`, if
 * not NULL, is held around each call of ops. `name` must outlive the bus. */
int bus_add(struct bus *bus, enum bus_space space, uint64_t base, uint64_t length, const char *name,
	const struct bus_ops *ops, void *device, pthread_mutex_t *lock);
void bus_remove(struct bus *bus, enum bus_space space, uint64_t base);

/* A doorbell: a write of `size_bytes` (1, 2, 4, 8) at addr, of `value` or of any, adds 1 to the eventfd and
 * goes no further. It may lie inside a device's range. The eventfd stays its owner's and must be open until
 * the doorbell is removed.
 *
 * If `ring` is there, bus_write() calls ring(opaque) instead of adding to the eventfd, on the caller's thread with no
 * lock held; who takes doorbells without the bus (a host's kernel) knows the eventfd only. As a device's handler, it
 * may still be called for a moment after the removal. */
struct bus_doorbell {
	enum bus_space space;
	uint64_t addr;
	unsigned size_bytes;
	bool any_value;
	uint64_t value;
	int eventfd;
	void (*ring)(void *opaque); /* may be NULL */
	void *opaque;
};

/* Errors: -EINVAL (size), -EEXIST (same place, size and value), -ENOMEM. */
int bus_add_doorbell(struct bus *bus, const struct bus_doorbell *bell);
/* The one that is equal to it. Errors: -ENOENT. */
int bus_remove_doorbell(struct bus *bus, const struct bus_doorbell *bell);

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size_bytes);
void bus_write(
	struct bus *bus, enum bus_space space, uint64_t addr, unsigned size_bytes, uint64_t value);

#endif
