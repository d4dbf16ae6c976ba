/*
 * Which parts of guest RAM a boot has taken, and the memory map it tells the guest.
 */
#ifndef LODGE_BOOT_SPACE_H
#define LODGE_BOOT_SPACE_H

#include "base/types.h"
#include "base/util.h"

struct error;
struct guest_memory;

/* Types of the BIOS call E820, which PVH and multiboot share (ACPI 6.4, table 15.1). */
enum boot_map_type {
	BOOT_MAP_RAM = 1,
	BOOT_MAP_RESERVED = 2,
	BOOT_MAP_ACPI = 3,
};

struct boot_map_entry {
	gpa_t base;
	uint64_t size_bytes;
	uint32_t type; /* enum boot_map_type */
};

#define BOOT_MAP_MAX 64

/* Sorted by base, never overlapping; what is in no entry is not there. */
struct boot_map {
	unsigned count;
	struct boot_map_entry entry[BOOT_MAP_MAX];
};

/*
 * Describe memory: its regions as RAM (read-only ones as reserved), less the legacy hole below 1 MiB,
 * and the `reserved` ranges, which win over RAM. Errors: -ENOSPC when that takes more than
 * BOOT_MAP_MAX entries, -EINVAL for a reserved range that wraps.
 */
MUST_CHECK int boot_map_build(struct guest_memory *memory,
	const struct boot_map_entry *reserved, unsigned reserved_count, struct boot_map *ret_map);

#define BOOT_TAKEN_MAX 128

struct boot_taken {
	gpa_t base, end;
	const char *what; /* for people; static string */
};

struct boot_space {
	struct guest_memory *memory;
	unsigned count;
	struct boot_taken taken[BOOT_TAKEN_MAX]; /* sorted, never overlapping */
};

/* Start with the loader's low memory and the legacy hole taken. */
void boot_space_init(struct boot_space *space, struct guest_memory *memory);

/*
 * Take [base, base+size_bytes) for `what`. Errors: -ENOMEM if part of it is not RAM (the text says
 * how much memory would do), -EEXIST if it overlaps what is taken, -ENOSPC. `file` is named in them.
 */
MUST_CHECK int boot_space_take(struct boot_space *space, gpa_t base, uint64_t size_bytes,
	const char *what, const char *file, struct error *err);

/*
 * A page-aligned free range of size_bytes within [min, limit) that lies in one region: the highest one,
 * or the lowest. Does not take it. Errors: -ENOMEM.
 */
MUST_CHECK int boot_space_find(const struct boot_space *space, uint64_t size_bytes, gpa_t min,
	gpa_t limit, bool highest, gpa_t *ret_base);

/* The end of what is taken below the hole: what a guest needs at the least, without initrds. */
gpa_t boot_space_end(const struct boot_space *space);

/* Set guest RAM to zero. Errors: -EFAULT. */
MUST_CHECK int boot_zero(struct guest_memory *memory, gpa_t base, uint64_t size_bytes);

#endif
