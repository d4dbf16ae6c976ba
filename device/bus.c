/*
 * The bus: sorted arrays of ranges, one for each address space, searched by bisection.
 *
 * A look-up copies the range under the read lock and drops the lock before it calls the device: a
 * device may therefore add and remove ranges from its own handler (a guest that moves a PCI BAR). The
 * price is that a device may still be called for a moment after its removal; whoever frees a device
 * stops the vCPUs first.
 *
 * Invariants: ranges are sorted by base, do not overlap and do not wrap.
 */
#include "device/bus.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/util.h"

#define PIO_LIMIT 0x10000ull

struct bus_range {
	uint64_t base;
	uint64_t length;
	const char *name;
	const struct bus_ops *ops;
	void *device;
	pthread_mutex_t *lock;
};

struct bus_table {
	struct bus_range *range;
	size_t count, capacity;
};

struct bus {
	pthread_rwlock_t lock; /* guards the tables, not the devices */
	struct bus_table table[BUS_SPACES];
	struct bus_doorbell *bell; /* a handful: searched in order */
	size_t bell_capacity;
	_Atomic size_t bell_count; /* changed under the lock, read outside for a quick no */
};

int bus_create(struct bus **ret_bus)
{
	struct bus *bus = calloc(1, sizeof(*bus));

	if (!bus)
		return -ENOMEM;
	if (pthread_rwlock_init(&bus->lock, NULL)) {
		free(bus);
		return -ENOMEM;
	}
	*ret_bus = bus;
	return 0;
}

void bus_free(struct bus *bus)
{
	if (!bus)
		return;
	for (unsigned i = 0; i < BUS_SPACES; i++)
		free(bus->table[i].range);
	free(bus->bell);
	pthread_rwlock_destroy(&bus->lock);
	free(bus);
}

/* The number of ranges that start at or below addr: the candidate is the one before. */
static size_t table_search(const struct bus_table *table, uint64_t addr)
{
	size_t low = 0, high = table->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (table->range[middle].base <= addr)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The index at which [base, base + length) goes in, or -EEXIST. */
static ssize_t table_place(const struct bus_table *table, uint64_t base, uint64_t length)
{
	size_t at = table_search(table, base);

	if (at > 0) {
		const struct bus_range *before = &table->range[at - 1];

		if (base - before->base < before->length)
			return -EEXIST;
	}
	if (at < table->count && table->range[at].base - base < length)
		return -EEXIST;
	return (ssize_t)at;
}

static int table_insert(struct bus_table *table, const struct bus_range *new)
{
	ssize_t at = table_place(table, new->base, new->length);

	if (at < 0)
		return (int)at;
	if (table->count == table->capacity) {
		size_t capacity = table->capacity ? table->capacity * 2 : 16;
		struct bus_range *grown;

		grown = reallocarray(table->range, capacity, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		table->range = grown;
		table->capacity = capacity;
	}
	memmove(&table->range[at + 1], &table->range[at],
		(table->count - (size_t)at) * sizeof(*new));
	table->range[at] = *new;
	table->count++;
	return 0;
}

int bus_add(struct bus *bus, enum bus_space space, uint64_t base, uint64_t length, const char *name,
	const struct bus_ops *ops, void *device, pthread_mutex_t *lock)
{
	struct bus_range new = {
		.base = base,
		.length = length,
		.name = name,
		.ops = ops,
		.device = device,
		.lock = lock,
	};
	uint64_t end;
	int rc;

	if (!length || __builtin_add_overflow(base, length, &end))
		return -EINVAL;
	if (space == BUS_PIO && end > PIO_LIMIT)
		return -EINVAL;
	pthread_rwlock_wrlock(&bus->lock);
	rc = table_insert(&bus->table[space], &new);
	pthread_rwlock_unlock(&bus->lock);
	return rc;
}

void bus_remove(struct bus *bus, enum bus_space space, uint64_t base)
{
	struct bus_table *table = &bus->table[space];
	size_t after;

	pthread_rwlock_wrlock(&bus->lock);
	after = table_search(table, base);
	if (after > 0 && table->range[after - 1].base == base) {
		memmove(&table->range[after - 1], &table->range[after],
			(table->count - after) * sizeof(table->range[0]));
		table->count--;
	}
	pthread_rwlock_unlock(&bus->lock);
}

/* ---- doorbells ---- */

/* The index of a doorbell at the same place that answers to the same value, or -1. */
static ssize_t bell_find(const struct bus *bus, const struct bus_doorbell *bell)
{
	for (size_t i = 0; i < bus->bell_count; i++) {
		const struct bus_doorbell *b = &bus->bell[i];

		if (b->space == bell->space && b->addr == bell->addr &&
			b->size_bytes == bell->size_bytes && b->any_value == bell->any_value &&
			(b->any_value || b->value == bell->value))
			return (ssize_t)i;
	}
	return -1;
}

static int bell_insert(struct bus *bus, const struct bus_doorbell *bell)
{
	if (bell_find(bus, bell) >= 0)
		return -EEXIST;
	if (bus->bell_count == bus->bell_capacity) {
		size_t capacity = bus->bell_capacity ? bus->bell_capacity * 2 : 8;
		struct bus_doorbell *grown = reallocarray(bus->bell, capacity, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		bus->bell = grown;
		bus->bell_capacity = capacity;
	}
	bus->bell[bus->bell_count++] = *bell;
	return 0;
}

int bus_add_doorbell(struct bus *bus, const struct bus_doorbell *bell)
{
	unsigned size = bell->size_bytes;
	int rc;

	if (size != 1 && size != 2 && size != 4 && size != 8)
		return -EINVAL;
	pthread_rwlock_wrlock(&bus->lock);
	rc = bell_insert(bus, bell);
	pthread_rwlock_unlock(&bus->lock);
	return rc;
}

int bus_remove_doorbell(struct bus *bus, const struct bus_doorbell *bell)
{
	ssize_t at;

	pthread_rwlock_wrlock(&bus->lock);
	at = bell_find(bus, bell);
	if (at >= 0 && bus->bell[at].eventfd == bell->eventfd)
		bus->bell[at] = bus->bell[--bus->bell_count];
	else
		at = -1;
	pthread_rwlock_unlock(&bus->lock);
	return at < 0 ? -ENOENT : 0;
}

/* Signals under the lock: after its removal a doorbell's eventfd is not touched. But `ring` may come back to us. */
static bool bell_ring(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size_bytes,
	uint64_t value)
{
	void (*ring)(void *opaque) = NULL;
	void *opaque = NULL;
	bool rung = false;

	pthread_rwlock_rdlock(&bus->lock);
	for (size_t i = 0; !rung && i < bus->bell_count; i++) {
		const struct bus_doorbell *b = &bus->bell[i];

		rung = b->space == space && b->addr == addr && b->size_bytes == size_bytes &&
		       (b->any_value || b->value == value);
		if (rung && b->ring) {
			ring = b->ring;
			opaque = b->opaque;
		} else if (rung) {
			eventfd_write(b->eventfd, 1); /* a full counter is a ring that nobody heard yet */
		}
	}
	pthread_rwlock_unlock(&bus->lock);
	if (ring)
		ring(opaque);
	return rung;
}

/* ---- accesses ---- */

enum bus_hit {
	BUS_HIT_NONE,  /* no byte of the access is claimed */
	BUS_HIT_WHOLE, /* one device takes all of it */
	BUS_HIT_PARTS, /* it straddles an end of a range */
};

static enum bus_hit bus_find(struct bus *bus, enum bus_space space, uint64_t addr,
	unsigned size_bytes, struct bus_range *ret_range)
{
	const struct bus_table *table = &bus->table[space];
	enum bus_hit hit = BUS_HIT_NONE;
	size_t after;

	pthread_rwlock_rdlock(&bus->lock);
	after = table_search(table, addr);
	if (after < table->count && table->range[after].base - addr < size_bytes)
		hit = BUS_HIT_PARTS;
	if (after > 0) {
		const struct bus_range *range = &table->range[after - 1];
		uint64_t offset = addr - range->base;

		if (offset < range->length) {
			hit = BUS_HIT_PARTS;
			if (range->length - offset >= size_bytes) {
				*ret_range = *range;
				hit = BUS_HIT_WHOLE;
			}
		}
	}
	pthread_rwlock_unlock(&bus->lock);
	return hit;
}

static uint64_t size_mask(unsigned size_bytes)
{
	return size_bytes >= 8 ? ~0ull : BIT(8 * size_bytes) - 1;
}

/* The widest access the device takes in one piece. */
static unsigned range_step(const struct bus_range *range, unsigned size_bytes)
{
	unsigned max = range->ops->access_max_bytes;

	return max && max < size_bytes ? max : size_bytes;
}

static uint64_t range_read(const struct bus_range *range, uint64_t offset, unsigned size_bytes)
{
	unsigned step = range_step(range, size_bytes);
	uint64_t value = 0;

	if (range->lock)
		pthread_mutex_lock(range->lock);
	for (unsigned at = 0; at < size_bytes; at += step) {
		uint64_t part = range->ops->read(range->device, offset + at, step);

		value |= (part & size_mask(step)) << (8 * at);
	}
	if (range->lock)
		pthread_mutex_unlock(range->lock);
	return value;
}

static void range_write(
	const struct bus_range *range, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	unsigned step = range_step(range, size_bytes);

	if (range->lock)
		pthread_mutex_lock(range->lock);
	for (unsigned at = 0; at < size_bytes; at += step)
		range->ops->write(
			range->device, offset + at, step, (value >> (8 * at)) & size_mask(step));
	if (range->lock)
		pthread_mutex_unlock(range->lock);
}

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size_bytes)
{
	struct bus_range range;
	uint64_t value = 0;

	switch (bus_find(bus, space, addr, size_bytes, &range)) {
	case BUS_HIT_WHOLE: return range_read(&range, addr - range.base, size_bytes);
	case BUS_HIT_NONE: return size_mask(size_bytes);
	case BUS_HIT_PARTS: break;
	}
	for (unsigned i = 0; i < size_bytes; i++) {
		uint64_t byte = 0xff;

		if (bus_find(bus, space, addr + i, 1, &range) == BUS_HIT_WHOLE)
			byte = range_read(&range, addr + i - range.base, 1);
		value |= byte << (8 * i);
	}
	return value;
}

void bus_write(
	struct bus *bus, enum bus_space space, uint64_t addr, unsigned size_bytes, uint64_t value)
{
	struct bus_range range;

	if (unlikely(bus->bell_count) &&
		bell_ring(bus, space, addr, size_bytes, value & size_mask(size_bytes)))
		return;
	switch (bus_find(bus, space, addr, size_bytes, &range)) {
	case BUS_HIT_WHOLE:
		range_write(&range, addr - range.base, size_bytes, value & size_mask(size_bytes));
		return;
	case BUS_HIT_NONE: return;
	case BUS_HIT_PARTS: break;
	}
	for (unsigned i = 0; i < size_bytes; i++) {
		if (bus_find(bus, space, addr + i, 1, &range) == BUS_HIT_WHOLE)
			range_write(&range, addr + i - range.base, 1, (value >> (8 * i)) & 0xff);
	}
}
