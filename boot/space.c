/*
 * Placement in guest RAM and the memory map. See space.h.
 */
#include "boot/space.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "boot/layout.h"
#include "memory/memory.h"

static int map_add(struct boot_map *map, gpa_t base, gpa_t end, uint32_t type)
{
	struct boot_map_entry *last = map->count ? &map->entry[map->count - 1] : NULL;

	if (base >= end)
		return 0;
	if (last && last->type == type && last->base + last->size_bytes == base) {
		last->size_bytes += end - base;
		return 0;
	}
	if (map->count == BOOT_MAP_MAX)
		return -ENOSPC;
	map->entry[map->count++] = (struct boot_map_entry){base, end - base, type};
	return 0;
}

/* The legacy hole comes first, so that it is part of every machine's map. */
static const struct boot_map_entry legacy_reserved[] = {
	{BOOT_EBDA_GPA, BOOT_VGA_GPA - BOOT_EBDA_GPA, BOOT_MAP_RESERVED},
	{BOOT_ACPI_GPA, BOOT_ACPI_BYTES, BOOT_MAP_RESERVED},
};

struct map_sources {
	struct guest_memory *memory;
	const struct boot_map_entry *reserved;
	unsigned reserved_count;
};

static bool range_has(gpa_t base, uint64_t size_bytes, gpa_t gpa)
{
	return gpa >= base && gpa - base < size_bytes;
}

/* What is at gpa: 0 for nothing. */
static uint32_t map_type_at(const struct map_sources *from, gpa_t gpa)
{
	const struct memory_region *region = memory_find(from->memory, gpa);

	for (unsigned i = 0; i < ARRAY_SIZE(legacy_reserved); i++) {
		if (range_has(legacy_reserved[i].base, legacy_reserved[i].size_bytes, gpa))
			return legacy_reserved[i].type;
	}
	for (unsigned i = 0; i < from->reserved_count; i++) {
		if (range_has(from->reserved[i].base, from->reserved[i].size_bytes, gpa))
			return from->reserved[i].type;
	}
	if (!region || region->flags & MEMORY_DEVICE || (gpa >= BOOT_VGA_GPA && gpa < BOOT_HIGH_GPA))
		return 0;
	return region->flags & MEMORY_READONLY ? BOOT_MAP_RESERVED : BOOT_MAP_RAM;
}

static void next_edge(gpa_t gpa, gpa_t base, uint64_t size_bytes, gpa_t *next)
{
	if (base > gpa)
		*next = MIN(*next, base);
	if (base + size_bytes > gpa)
		*next = MIN(*next, base + size_bytes);
}

/* The next address at which the type may change. */
static gpa_t map_next(const struct map_sources *from, gpa_t gpa)
{
	gpa_t next = UINT64_MAX;

	for (unsigned i = 0; i < from->memory->region_count; i++)
		next_edge(gpa, from->memory->region[i].base, from->memory->region[i].size_bytes,
			&next);
	for (unsigned i = 0; i < ARRAY_SIZE(legacy_reserved); i++)
		next_edge(gpa, legacy_reserved[i].base, legacy_reserved[i].size_bytes, &next);
	for (unsigned i = 0; i < from->reserved_count; i++)
		next_edge(gpa, from->reserved[i].base, from->reserved[i].size_bytes, &next);
	next_edge(gpa, BOOT_VGA_GPA, BOOT_HIGH_GPA - BOOT_VGA_GPA, &next);
	return next;
}

int boot_map_build(struct guest_memory *memory, const struct boot_map_entry *reserved,
	unsigned reserved_count, struct boot_map *ret_map)
{
	const struct map_sources from = {memory, reserved, reserved_count};

	ret_map->count = 0;
	for (unsigned i = 0; i < reserved_count; i++) {
		if (reserved[i].size_bytes > UINT64_MAX - reserved[i].base)
			return -EINVAL;
	}
	for (gpa_t gpa = 0, next; gpa != UINT64_MAX; gpa = next) {
		uint32_t type = map_type_at(&from, gpa);

		next = map_next(&from, gpa);
		if (type && map_add(ret_map, gpa, next, type) < 0)
			return -ENOSPC;
	}
	return 0;
}

static void space_insert(struct boot_space *space, gpa_t base, gpa_t end, const char *what)
{
	unsigned i = space->count++;

	for (; i && space->taken[i - 1].base > base; i--)
		space->taken[i] = space->taken[i - 1];
	space->taken[i] = (struct boot_taken){base, end, what};
}

void boot_space_init(struct boot_space *space, struct guest_memory *memory)
{
	space->memory = memory;
	space->count = 0;
	space_insert(space, 0, BOOT_LOW_END_GPA, "the boot loader's own low memory");
	space_insert(space, BOOT_EBDA_GPA, BOOT_HIGH_GPA, "the firmware's area below 1 MiB");
}

/* Regions may touch, and then count as one. */
static bool space_is_ram(struct guest_memory *memory, gpa_t base, uint64_t size_bytes)
{
	while (size_bytes) {
		const struct memory_region *region = memory_find(memory, base);
		uint64_t here;

		if (!region || region->flags & (MEMORY_READONLY | MEMORY_DEVICE))
			return false;
		here = MIN(size_bytes, region->size_bytes - (base - region->base));
		base += here;
		size_bytes -= here;
	}
	return true;
}

static const struct boot_taken *space_overlap(const struct boot_space *space, gpa_t base, gpa_t end)
{
	for (unsigned i = 0; i < space->count; i++) {
		if (base < space->taken[i].end && space->taken[i].base < end)
			return &space->taken[i];
	}
	return NULL;
}

static int space_no_ram(const struct boot_space *space, gpa_t base, uint64_t size_bytes,
	const char *what, const char *file, struct error *err)
{
	if (base >= BOOT_HOLE_GPA || size_bytes > BOOT_HOLE_GPA - base)
		return error_set(err, ENOMEM,
			"%s: %s wants to be at 0x%llx to 0x%llx, where no guest has RAM (RAM ends "
			"at 0x%llx): the file is damaged, or made for another kind of machine",
			file, what, (unsigned long long)base,
			(unsigned long long)(base + size_bytes), BOOT_HOLE_GPA);
	return error_set(err, ENOMEM,
		"%s: %s needs memory up to %llu MiB, and the guest has %llu MiB: give it at least "
		"%llu MiB",
		file, what, (unsigned long long)((base + size_bytes + MIB(1) - 1) >> 20),
		(unsigned long long)(memory_ram_bytes(space->memory) >> 20),
		(unsigned long long)((base + size_bytes + MIB(1) - 1) >> 20));
}

int boot_space_take(struct boot_space *space, gpa_t base, uint64_t size_bytes, const char *what,
	const char *file, struct error *err)
{
	const struct boot_taken *other;

	if (!size_bytes)
		return 0;
	if (size_bytes > UINT64_MAX - base)
		return error_set(err, EINVAL,
			"%s: %s ends past the address space: the file is damaged", file, what);
	other = space_overlap(space, base, base + size_bytes);
	if (other)
		return error_set(err, EEXIST,
			"%s: %s at 0x%llx to 0x%llx overlaps %s at 0x%llx to 0x%llx: link it to "
			"another address, 1 MiB or more", file, what, (unsigned long long)base,
			(unsigned long long)(base + size_bytes), other->what,
			(unsigned long long)other->base, (unsigned long long)other->end);
	if (!space_is_ram(space->memory, base, size_bytes))
		return space_no_ram(space, base, size_bytes, what, file, err);
	if (space->count == BOOT_TAKEN_MAX)
		return error_set(err, ENOSPC, "%s: more than %d parts to load", file,
			BOOT_TAKEN_MAX);
	space_insert(space, base, base + size_bytes, what);
	return 0;
}

/* Narrow [*low, *high) to the part of it that starts after, or ends before, what is in the way. */
static bool space_fit(const struct boot_space *space, uint64_t size_bytes, gpa_t low, gpa_t high,
	bool highest, gpa_t *ret_base)
{
	low = ALIGN_UP(low, GUEST_PAGE_SIZE);
	while (low < high && high - low >= size_bytes) {
		gpa_t base = highest ? ALIGN_DOWN(high - size_bytes, GUEST_PAGE_SIZE) : low;
		const struct boot_taken *other;

		if (base < low)
			return false;
		other = space_overlap(space, base, base + size_bytes);
		if (!other) {
			*ret_base = base;
			return true;
		}
		if (highest)
			high = other->base;
		else
			low = ALIGN_UP(other->end, GUEST_PAGE_SIZE);
	}
	return false;
}

int boot_space_find(const struct boot_space *space, uint64_t size_bytes, gpa_t min, gpa_t limit,
	bool highest, gpa_t *ret_base)
{
	unsigned count = space->memory->region_count;

	for (unsigned i = 0; i < count; i++) {
		const struct memory_region *region =
			&space->memory->region[highest ? count - 1 - i : i];
		gpa_t low = MAX(min, region->base);
		gpa_t high = MIN(limit, region->base + region->size_bytes);

		if (!(region->flags & (MEMORY_READONLY | MEMORY_DEVICE)) &&
			space_fit(space, size_bytes, low, high, highest, ret_base))
			return 0;
	}
	return -ENOMEM;
}

gpa_t boot_space_end(const struct boot_space *space)
{
	gpa_t end = 0;

	for (unsigned i = 0; i < space->count; i++)
		end = MAX(end, space->taken[i].end);
	return end;
}

int boot_zero(struct guest_memory *memory, gpa_t base, uint64_t size_bytes)
{
	static const uint8_t zeros[4096];

	while (size_bytes) {
		uint64_t part = MIN(size_bytes, (uint64_t)sizeof(zeros));
		int r = memory_write(memory, base, zeros, part);

		if (r < 0)
			return r;
		base += part;
		size_bytes -= part;
	}
	return 0;
}
