/*
 * memory/: regions, look-up, copies, dirty log, code marks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/error.h"
#include "base/util.h"
#include "memory/memory.h"

#define PAGE GUEST_PAGE_SIZE

static int setup(void **state)
{
	struct guest_memory *memory;

	if (memory_create(&memory) < 0)
		return -1;
	/* Added out of order; 'low' and 'mid' touch, 'high' is past a hole, 'rom' below 4 GiB. */
	assert_int_equal(memory_add_ram(memory, GIB(4), MIB(4), 0, "high", NULL), 0);
	assert_int_equal(memory_add_ram(memory, 0, 4 * PAGE, 0, "low", NULL), 0);
	assert_int_equal(memory_add_ram(memory, 4 * PAGE, 130 * PAGE, 0, "mid", NULL), 0);
	assert_int_equal(
		memory_add_ram(memory, GIB(4) - 2 * PAGE, 2 * PAGE, MEMORY_READONLY, "rom", NULL),
		0);
	*state = memory;
	return 0;
}

static int teardown(void **state)
{
	memory_free(*state);
	return 0;
}

static void test_add_refuses(void **state)
{
	struct guest_memory *memory = *state;
	struct error err = {0};

	assert_int_equal(memory_add_ram(memory, GIB(1) + 1, PAGE, 0, "x", &err), -EINVAL);
	assert_int_equal(memory_add_ram(memory, GIB(1), PAGE - 1, 0, "x", &err), -EINVAL);
	assert_int_equal(memory_add_ram(memory, GIB(1), 0, 0, "x", &err), -EINVAL);
	assert_int_equal(memory_add_ram(memory, 3 * PAGE, PAGE, 0, "x", &err), -EINVAL);
	assert_int_equal(
		memory_add_ram(memory, GIB(4) - 3 * PAGE, 2 * PAGE, 0, "x", &err), -EINVAL);
	assert_string_equal(err.text, "memory regions x and rom overlap");
	assert_int_equal(memory_add_ram(memory, ~0ull - PAGE + 1, PAGE, 0, "x", &err), -EINVAL);
	assert_int_equal(memory_add_ram(memory, GIB(8), ~0ull - PAGE + 1, 0, "x", &err), -EINVAL);
	assert_int_equal(memory->region_count, 4);
	for (unsigned i = 4; i < MEMORY_REGIONS_MAX; i++)
		assert_int_equal(memory_add_ram(memory, GIB(8 + i), PAGE, 0, "x", &err), 0);
	assert_int_equal(memory_add_ram(memory, GIB(100), PAGE, 0, "x", &err), -ENOSPC);
}

static void test_find(void **state)
{
	struct guest_memory *memory = *state;

	assert_string_equal(memory_find(memory, 0)->name, "low");
	assert_string_equal(memory_find(memory, 4 * PAGE - 1)->name, "low");
	assert_string_equal(memory_find(memory, 4 * PAGE)->name, "mid");
	assert_null(memory_find(memory, 134 * PAGE));
	assert_null(memory_find(memory, GIB(4) - 2 * PAGE - 1));
	assert_string_equal(memory_find(memory, GIB(4) - 1)->name, "rom");
	assert_string_equal(memory_find(memory, GIB(4))->name, "high");
	assert_null(memory_find(memory, GIB(4) + MIB(4)));
	assert_null(memory_find(memory, ~0ull));
	assert_true(memory_ram_bytes(memory) == MIB(4) + 136 * PAGE);
	/* So that huge pages of guest and host can coincide. */
	assert_int_equal((uintptr_t)memory_find(memory, GIB(4))->host % MIB(2), 0);
}

static void test_copy(void **state)
{
	struct guest_memory *memory = *state;
	uint8_t in[64], out[64] = {0};

	for (unsigned i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i + 1);
	/* Across two regions that touch. */
	assert_int_equal(memory_write(memory, 4 * PAGE - 20, in, sizeof(in)), 0);
	assert_int_equal(memory_read(memory, 4 * PAGE - 20, out, sizeof(out)), 0);
	assert_memory_equal(in, out, sizeof(in));
	assert_int_equal(*(uint8_t *)memory_host(memory, 4 * PAGE, 1, false), 21);
	/* Into a hole, and past the end of the address space. */
	assert_int_equal(memory_read(memory, 134 * PAGE - 1, out, 2), -EFAULT);
	assert_int_equal(memory_write(memory, GIB(4) + MIB(4) - 1, in, 2), -EFAULT);
	assert_int_equal(memory_read(memory, ~0ull, out, 2), -EFAULT);
	assert_int_equal(memory_read(memory, 134 * PAGE, out, 0), 0);
}

static void test_rom(void **state)
{
	struct guest_memory *memory = *state;
	gpa_t rom = GIB(4) - 2 * PAGE;
	uint8_t byte = 0x55;

	/* Who fills a ROM does it through the region. */
	memory_find(memory, rom)->host[0] = 0xaa;
	assert_int_equal(memory_write(memory, rom, &byte, 1), 0);
	assert_int_equal(memory_read(memory, rom, &byte, 1), 0);
	assert_int_equal(byte, 0xaa);
	assert_null(memory_host(memory, rom, 1, true));
	assert_non_null(memory_host(memory, rom, 2 * PAGE, false));
}

static void test_host(void **state)
{
	struct guest_memory *memory = *state;

	assert_non_null(memory_host(memory, PAGE, 3 * PAGE, true));
	assert_null(memory_host(memory, PAGE, 3 * PAGE + 1, true));
	assert_null(memory_host(memory, PAGE, ~0ull, false));
	assert_null(memory_host(memory, 134 * PAGE, 1, false));
}

static void test_dirty(void **state)
{
	struct guest_memory *memory = *state;
	uint64_t bits[16];
	unsigned mid = 1;

	assert_string_equal(memory->region[mid].name, "mid");
	memory_write(memory, 5 * PAGE, "x", 1);
	assert_int_equal(memory_dirty_start(memory), 0);
	memory_dirty_fetch(memory, mid, bits);
	assert_true(bits[0] == 0 && bits[1] == 0 && bits[2] == 0);

	memory_write(memory, 6 * PAGE - 1, "xy", 2);
	memory_host(memory, (4 + 63) * PAGE, 2 * PAGE, true);
	memory_host(memory, 7 * PAGE, 1, false);
	memory_mark_dirty(&memory->region[mid], 133 * PAGE, GIB(1));
	memory_mark_dirty(&memory->region[mid], 4 * PAGE, 0);
	memory_dirty_fetch(memory, mid, bits);
	assert_true(bits[0] == (BIT(63) | BIT(1) | BIT(2)));
	assert_true(bits[1] == BIT(0));
	assert_true(bits[2] == BIT(1));
	memory_dirty_fetch(memory, mid, bits);
	assert_true(bits[0] == 0 && bits[1] == 0 && bits[2] == 0);

	/* A region added meanwhile is logged too. */
	assert_int_equal(memory_add_ram(memory, GIB(8), PAGE, 0, "hot", NULL), 0);
	memory_write(memory, GIB(8), "x", 1);
	memory_dirty_fetch(memory, 4, bits);
	assert_true(bits[0] == 1);

	memory_write(memory, 5 * PAGE, "x", 1);
	memory_dirty_stop(memory);
	memory_write(memory, 6 * PAGE, "x", 1);
	assert_int_equal(memory_dirty_start(memory), 0);
	memory_dirty_fetch(memory, mid, bits);
	assert_true(bits[0] == 0);
	memory_dirty_stop(memory);
}

#define MARKS 20000

static void *mark_thread(void *opaque)
{
	const struct memory_region *region = opaque;

	for (unsigned i = 0; i < MARKS; i++)
		memory_mark_dirty(region, region->base + (i % 128) * PAGE, 1);
	return NULL;
}

/* Marks race with fetches; nothing that was marked after the last fetch may be missing. */
static void test_dirty_threads(void **state)
{
	struct guest_memory *memory = *state;
	uint64_t bits[3], seen[3] = {0};
	pthread_t thread[2];

	assert_int_equal(memory_dirty_start(memory), 0);
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&thread[i], NULL, mark_thread, &memory->region[1]);
	for (unsigned i = 0; i < 100; i++) {
		memory_dirty_fetch(memory, 1, bits);
		seen[0] |= bits[0];
		seen[1] |= bits[1];
	}
	for (unsigned i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	memory_dirty_fetch(memory, 1, bits);
	assert_true((seen[0] | bits[0]) == ~0ull);
	assert_true((seen[1] | bits[1]) == ~0ull);
}

/* ---- code marks ---- */

struct heard {
	unsigned count;
	gpa_t gpa[4];
	uint64_t size_bytes[4];
};

static void hear(void *opaque, gpa_t gpa, uint64_t size_bytes)
{
	struct heard *heard = opaque;

	assert_true(heard->count < 4);
	heard->gpa[heard->count] = gpa;
	heard->size_bytes[heard->count++] = size_bytes;
}

static void test_code_marks(void **state)
{
	struct guest_memory *memory = *state;
	const gpa_t page = 5 * PAGE, rom = GIB(4) - 2 * PAGE;

	assert_true(memory_code_bits(memory, page, PAGE) == 0);
	assert_false(memory_code_page(memory, page));
	assert_true(memory_code_mark(memory, page + 63, 2) == 0);
	assert_true(memory_code_mark(memory, page + PAGE - 1, 1) == (BIT(0) | BIT(1)));
	assert_true(memory_code_bits(memory, page, PAGE) == (BIT(0) | BIT(1) | BIT(63)));
	assert_true(memory_code_bits(memory, page + 127, 2) == BIT(1));
	assert_true(memory_code_bits(memory, page + 128, PAGE - 192) == 0);
	assert_true(memory_code_page(memory, page + 5));
	assert_false(memory_code_page(memory, page + PAGE));
	assert_false(memory_code_page(memory, page - 1));
	/* The last page of a region; ROM; and what is no RAM. */
	memory_code_mark(memory, 133 * PAGE, PAGE);
	assert_true(memory_code_bits(memory, 133 * PAGE, PAGE) == ~0ull);
	memory_code_mark(memory, rom, 1);
	assert_true(memory_code_page(memory, rom));
	assert_true(memory_code_mark(memory, 134 * PAGE, 1) == 0);
	assert_false(memory_code_page(memory, 134 * PAGE));
	memory_code_clear(memory, page, ~0ull);
	assert_false(memory_code_page(memory, page));
	assert_true(memory_code_page(memory, 133 * PAGE));
}

/* A write that spans marked and unmarked pages, and two regions. */
static void test_code_listener(void **state)
{
	struct guest_memory *memory = *state;
	static const uint8_t bytes[3 * PAGE];
	struct heard heard = {0};

	memory_code_mark(memory, 3 * PAGE, 1);
	assert_int_equal(memory_write(memory, 3 * PAGE, bytes, 1), 0); /* nobody listens */
	memory_set_code_listener(memory, hear, &heard);
	memory_code_mark(memory, 5 * PAGE + 128, 1);
	assert_int_equal(memory_write(memory, 4 * PAGE - 10, bytes, 2 * PAGE), 0);
	assert_int_equal(heard.count, 1);
	assert_true(heard.gpa[0] == 5 * PAGE && heard.size_bytes[0] == PAGE - 10);
	assert_int_equal(memory_write(memory, 3 * PAGE + 1, bytes, 3 * PAGE), 0);
	assert_int_equal(heard.count, 3);
	assert_true(heard.gpa[1] == 3 * PAGE + 1 && heard.size_bytes[1] == PAGE - 1);
	assert_true(heard.gpa[2] == 5 * PAGE && heard.size_bytes[2] == PAGE);
	/* Beside the marks. */
	assert_int_equal(memory_write(memory, 5 * PAGE + 64, bytes, 64), 0);
	assert_int_equal(memory_write(memory, 5 * PAGE + 192, bytes, 64), 0);
	assert_int_equal(heard.count, 3);
	memory_written(memory, 5 * PAGE + 191, 1);
	assert_int_equal(heard.count, 4);
	memory_code_clear(memory, 5 * PAGE, ~0ull);
	memory_written(memory, 5 * PAGE, PAGE);
	assert_int_equal(heard.count, 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_add_refuses, setup, teardown),
		cmocka_unit_test_setup_teardown(test_find, setup, teardown),
		cmocka_unit_test_setup_teardown(test_copy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rom, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host, setup, teardown),
		cmocka_unit_test_setup_teardown(test_dirty, setup, teardown),
		cmocka_unit_test_setup_teardown(test_dirty_threads, setup, teardown),
		cmocka_unit_test_setup_teardown(test_code_marks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_code_listener, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
