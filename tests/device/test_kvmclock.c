/*
 * device/kvmclock: the scale, the pages as a guest reads them, bad addresses.
 */
#include "tests/device/fake.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "device/kvmclock.h"
#include "memory/memory.h"

#include <errno.h>

static int setup(void **state)
{
	struct guest_memory *memory;

	if (memory_create(&memory) < 0)
		return -1;
	*state = memory;
	return memory_add_ram(memory, 0, MIB(1), 0, "ram", NULL);
}

static int teardown(void **state)
{
	memory_free(*state);
	return 0;
}

/* What the guest makes of a TSC difference. */
static uint64_t scaled(uint64_t ticks, uint32_t mul, int8_t shift)
{
	ticks = shift < 0 ? ticks >> -shift : ticks << shift;
	return (uint64_t)((unsigned __int128)ticks * mul >> 32);
}

static void test_scale(void **state)
{
	static const uint64_t rates[] = {1000000, 14318180, 999999999, 1000000000, 1000000001,
		1999999999, 2000000000, 2000000001, 2394454000, 3700000000, 5800000000,
		40000000000};

	for (unsigned i = 0; i < ARRAY_SIZE(rates); i++) {
		uint32_t mul;
		int8_t shift;
		uint64_t ns;

		kvmclock_scale(rates[i], &mul, &shift);
		/* An hour's worth within a part in a hundred million. */
		ns = scaled(rates[i] * 3600, mul, shift);
		assert_in_range(ns, 3600 * NS_PER_SEC - 36000, 3600 * NS_PER_SEC + 36000);
	}
	for (uint64_t hz = 0; hz < 3; hz++) {
		uint32_t mul;
		int8_t shift;

		kvmclock_scale(hz, &mul, &shift);
	}
}

static void test_system(void **state)
{
	struct guest_memory *memory = *state;
	struct kvmclock_time time = {.tsc = 123456789, .system_ns = 42000, .tsc_hz = 2400000000};
	uint8_t page[32];

	memset(page, 0xee, sizeof(page));
	store_le32(page, 7); /* odd: as if it were caught in mid-update */
	memory_write(memory, 0x1000, page, sizeof(page));
	assert_int_equal(kvmclock_write_system(memory, 0x1001, &time), 0);
	memory_read(memory, 0x1000, page, sizeof(page));
	assert_int_equal(load_le32(page), 8);
	assert_true(load_le64(page + 8) == 123456789);
	assert_true(load_le64(page + 16) == 42000);
	assert_in_range(scaled(2400000000, load_le32(page + 24), (int8_t)page[28]), NS_PER_SEC - 10,
		NS_PER_SEC + 10);
	assert_int_equal(page[29], 1);
	time.paused = true;
	assert_int_equal(kvmclock_write_system(memory, 0x1001, &time), 0);
	memory_read(memory, 0x1000, page, sizeof(page));
	assert_int_equal(load_le32(page), 10);
	assert_int_equal(page[29], 3);
	/* Disabled: not a byte changes. */
	assert_int_equal(kvmclock_write_system(memory, 0x1000, &time), 0);
	memory_read(memory, 0x1000, page, sizeof(page));
	assert_int_equal(load_le32(page), 10);
}

static void test_wall(void **state)
{
	struct guest_memory *memory = *state;
	uint8_t page[12];

	assert_int_equal(kvmclock_write_wall(memory, 0x2000, 1709164790123456789ull), 0);
	memory_read(memory, 0x2000, page, sizeof(page));
	assert_int_equal(load_le32(page), 2);
	assert_int_equal(load_le32(page + 4), 1709164790);
	assert_int_equal(load_le32(page + 8), 123456789);
}

static void test_bad_addresses(void **state)
{
	struct guest_memory *memory = *state;
	struct kvmclock_time time = {.tsc_hz = 1000000000};

	assert_int_equal(kvmclock_write_system(memory, MIB(1) | 1, &time), -EFAULT);
	assert_int_equal(kvmclock_write_system(memory, (MIB(1) - 16) | 1, &time), -EFAULT);
	assert_int_equal(kvmclock_write_system(memory, ~0ull, &time), -EINVAL);
	assert_int_equal(kvmclock_write_system(memory, ~2ull, &time), -EFAULT);
	assert_int_equal(kvmclock_write_system(memory, 3, &time), -EINVAL);
	assert_int_equal(kvmclock_write_wall(memory, MIB(1) - 4, 0), -EFAULT);
	assert_int_equal(kvmclock_write_wall(memory, ~0ull, 0), -EFAULT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_scale, setup, teardown),
		cmocka_unit_test_setup_teardown(test_system, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wall, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_addresses, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
