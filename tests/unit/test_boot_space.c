/*
 * boot/: the memory map for guests of several sizes, and placement.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "boot/layout.h"
#include "boot/space.h"
#include "memory/memory.h"

static struct guest_memory *ram(uint64_t size_bytes)
{
	struct guest_memory *memory;

	assert_int_equal(memory_create(&memory), 0);
	assert_int_equal(memory_add_ram(memory, 0, boot_ram_low_bytes(size_bytes), 0, "low", NULL), 0);
	if (boot_ram_high_bytes(size_bytes))
		assert_int_equal(memory_add_ram(memory, BOOT_HOLE_END_GPA,
			boot_ram_high_bytes(size_bytes), 0, "high", NULL), 0);
	return memory;
}

static void assert_entry(
	const struct boot_map *map, unsigned i, gpa_t base, gpa_t end, uint32_t type)
{
	assert_true(i < map->count);
	assert_int_equal(map->entry[i].base, base);
	assert_int_equal(map->entry[i].base + map->entry[i].size_bytes, end);
	assert_int_equal(map->entry[i].type, type);
}

static void assert_low_entries(const struct boot_map *map)
{
	assert_entry(map, 0, 0, 0x9fc00, BOOT_MAP_RAM);
	assert_entry(map, 1, 0x9fc00, 0xa0000, BOOT_MAP_RESERVED);
	assert_entry(map, 2, 0xe0000, 0x100000, BOOT_MAP_RESERVED);
}

static void test_map_sizes(void **state)
{
	static const struct {
		uint64_t size_bytes;
		gpa_t low_end, high_end;
	} shapes[] = {
		{MIB(64), MIB(64), 0},
		{GIB(3), GIB(3), 0},
		{GIB(6), GIB(3), GIB(7)},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		struct guest_memory *memory = ram(shapes[i].size_bytes);
		struct boot_map map;

		assert_int_equal(boot_map_build(memory, NULL, 0, &map), 0);
		assert_low_entries(&map);
		assert_entry(&map, 3, MIB(1), shapes[i].low_end, BOOT_MAP_RAM);
		if (shapes[i].high_end)
			assert_entry(&map, 4, GIB(4), shapes[i].high_end, BOOT_MAP_RAM);
		assert_int_equal(map.count, shapes[i].high_end ? 5 : 4);
		memory_free(memory);
	}
}

static void test_map_reserved(void **state)
{
	const struct boot_map_entry reserved[] = {
		{BOOT_ECAM_GPA, BOOT_ECAM_BYTES, BOOT_MAP_RESERVED},
		{MIB(2), MIB(1), BOOT_MAP_ACPI},
	};
	const struct boot_map_entry wraps = {UINT64_MAX - 5, 10, BOOT_MAP_RESERVED};
	struct boot_map_entry many[BOOT_MAP_MAX];
	struct guest_memory *memory = ram(MIB(64));
	struct boot_map map;

	assert_int_equal(memory_add_ram(memory, 0xfffc0000, 0x40000, MEMORY_READONLY, "rom", NULL), 0);
	assert_int_equal(boot_map_build(memory, reserved, 2, &map), 0);
	assert_low_entries(&map);
	assert_entry(&map, 3, MIB(1), MIB(2), BOOT_MAP_RAM);
	assert_entry(&map, 4, MIB(2), MIB(3), BOOT_MAP_ACPI);
	assert_entry(&map, 5, MIB(3), MIB(64), BOOT_MAP_RAM);
	assert_entry(&map, 6, BOOT_ECAM_GPA, BOOT_ECAM_GPA + BOOT_ECAM_BYTES, BOOT_MAP_RESERVED);
	assert_entry(&map, 7, 0xfffc0000, GIB(4), BOOT_MAP_RESERVED);
	assert_int_equal(map.count, 8);

	assert_int_equal(boot_map_build(memory, &wraps, 1, &map), -EINVAL);
	for (unsigned i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = (struct boot_map_entry){MIB(2) + i * 0x2000, 0x1000, BOOT_MAP_ACPI};
	assert_int_equal(boot_map_build(memory, many, ARRAY_SIZE(many), &map), -ENOSPC);
	memory_free(memory);
}

static void test_take(void **state)
{
	struct guest_memory *memory = ram(MIB(64));
	struct boot_space space;
	struct error err = {0};

	boot_space_init(&space, memory);
	assert_int_equal(boot_space_take(&space, MIB(1), MIB(1), "a", "f", &err), 0);
	assert_int_equal(boot_space_take(&space, MIB(2) - 1, 1, "b", "f", &err), -EEXIST);
	assert_int_equal(boot_space_take(&space, MIB(2), 1, "b", "f", &err), 0);
	assert_int_equal(boot_space_take(&space, 0x7000, 16, "b", "f", &err), -EEXIST);
	assert_int_equal(boot_space_take(&space, 0xfffff, 2, "b", "f", &err), -EEXIST);
	assert_int_equal(boot_space_take(&space, 0x40000, 0x10000, "low", "f", &err), 0);
	assert_int_equal(boot_space_take(&space, MIB(63), MIB(2), "b", "f", &err), -ENOMEM);
	assert_non_null(strstr(err.text, "at least 65 MiB"));
	assert_int_equal(boot_space_take(&space, GIB(5), 1, "b", "f", &err), -ENOMEM);
	assert_int_equal(boot_space_take(&space, UINT64_MAX - 1, 8, "b", "f", &err), -EINVAL);
	assert_int_equal(boot_space_take(&space, MIB(3), UINT64_MAX - MIB(3), "b", "f", &err),
		-ENOMEM);
	assert_int_equal(boot_space_take(&space, MIB(9), 0, "nothing", "f", &err), 0);
	for (unsigned i = space.count; i < BOOT_TAKEN_MAX; i++)
		assert_int_equal(boot_space_take(&space, MIB(10) + i, 1, "c", "f", &err), 0);
	assert_int_equal(boot_space_take(&space, MIB(20), 1, "c", "f", &err), -ENOSPC);
	memory_free(memory);
}

static void test_find(void **state)
{
	struct guest_memory *memory = ram(MIB(64));
	struct boot_space space;
	gpa_t found = 0;

	boot_space_init(&space, memory);
	assert_int_equal(boot_space_find(&space, MIB(1) + 1, MIB(1), GIB(2), true, &found), 0);
	assert_int_equal(found, MIB(63) - 0x1000);
	assert_int_equal(boot_space_find(&space, MIB(1), 0, GIB(2), false, &found), 0);
	assert_int_equal(found, MIB(1));
	assert_int_equal(boot_space_take(&space, MIB(62) + 5, 10, "x", "f", NULL), 0);
	assert_int_equal(boot_space_find(&space, MIB(2), MIB(1), GIB(2), true, &found), 0);
	assert_int_equal(found, MIB(60));
	assert_int_equal(boot_space_find(&space, MIB(1), MIB(62), GIB(2), false, &found), 0);
	assert_int_equal(found, MIB(62) + 0x1000);
	assert_int_equal(boot_space_find(&space, MIB(62), MIB(1), GIB(2), true, &found), -ENOMEM);
	assert_int_equal(boot_space_find(&space, UINT64_MAX, MIB(1), GIB(2), true, &found), -ENOMEM);
	assert_int_equal(boot_space_find(&space, 1, MIB(70), MIB(60), true, &found), -ENOMEM);
	memory_free(memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map_sizes),
		cmocka_unit_test(test_map_reserved),
		cmocka_unit_test(test_take),
		cmocka_unit_test(test_find),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
