/*
 * memory/: files in the guest's address space, and memory that is given back to the host.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/util.h"
#include "memory/memory.h"

#define PAGE	  GUEST_PAGE_SIZE
#define FILE_GPA  GIB(8)
#define FILE_SIZE (5 * PAGE + 100)

struct fixture {
	struct guest_memory *memory;
	char path[64];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->path, "/tmp/lodge-memory-XXXXXX");
	int fd = mkstemp(f->path);
	if (fd < 0 || memory_create(&f->memory) < 0)
		return -1;
	for (unsigned i = 0; i < FILE_SIZE; i++)
		assert_int_equal(write(fd, &(uint8_t){(uint8_t)(i / PAGE + 1)}, 1), 1);
	close(fd);
	assert_int_equal(memory_add_ram(f->memory, 0, 64 * PAGE, 0, "ram", NULL), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	memory_free(f->memory);
	unlink(f->path);
	free(f);
	return 0;
}

static uint8_t byte_at(const struct guest_memory *memory, gpa_t gpa)
{
	uint8_t byte;

	assert_int_equal(memory_read(memory, gpa, &byte, 1), 0);
	return byte;
}

static uint8_t file_byte(const struct fixture *f, off_t at)
{
	int fd = open(f->path, O_RDONLY);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	close(fd);
	return byte;
}

static struct memory_file *add(struct fixture *f, enum memory_file_mode mode, uint64_t align_bytes)
{
	struct memory_file *file;

	assert_int_equal(memory_file_open(f->path, mode, align_bytes, &file, NULL), 0);
	assert_int_equal(memory_add_file(f->memory, FILE_GPA, file, "file", NULL), 0);
	return file;
}

static void test_private(void **state)
{
	struct fixture *f = *state;
	struct memory_file *file = add(f, MEMORY_FILE_PRIVATE, MIB(2));
	const struct memory_region *region = memory_find(f->memory, FILE_GPA);

	assert_true(memory_file_bytes(file) == MIB(2) && region->size_bytes == MIB(2));
	assert_int_equal((uintptr_t)region->host % MIB(2), 0);
	assert_int_equal(byte_at(f->memory, FILE_GPA + 5 * PAGE + 99), 6);
	assert_int_equal(byte_at(f->memory, FILE_GPA + 5 * PAGE + 100), 0);
	assert_int_equal(byte_at(f->memory, FILE_GPA + MIB(2) - 1), 0);
	assert_int_equal(memory_write(f->memory, FILE_GPA + PAGE, "x", 1), 0);
	assert_int_equal(memory_write(f->memory, FILE_GPA + MIB(1), "y", 1), 0);
	assert_int_equal(byte_at(f->memory, FILE_GPA + PAGE), 'x');
	assert_int_equal(memory_file_flush(file), 0);
	assert_int_equal(file_byte(f, PAGE), 2);
	/* It is there for the next machine, as it is. */
	memory_free(f->memory);
	assert_int_equal(memory_create(&f->memory), 0);
	assert_int_equal(memory_add_file(f->memory, MIB(512), file, "file", NULL), 0);
	assert_int_equal(byte_at(f->memory, MIB(512) + PAGE), 'x');
	assert_int_equal(byte_at(f->memory, MIB(512) + MIB(1)), 'y');
	memory_free(f->memory);
	f->memory = NULL;
	memory_file_close(file);
}

static void test_readonly(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(chmod(f->path, 0400), 0);
	struct memory_file *file = add(f, MEMORY_FILE_READONLY, PAGE);

	assert_true(memory_file_bytes(file) == 6 * PAGE);
	assert_int_equal(memory_write(f->memory, FILE_GPA + PAGE, "x", 1), 0);
	assert_int_equal(byte_at(f->memory, FILE_GPA + PAGE), 2);
	assert_null(memory_host(f->memory, FILE_GPA, 1, true));
	assert_non_null(memory_host(f->memory, FILE_GPA, 6 * PAGE, false));
	memory_free(f->memory);
	f->memory = NULL;
	memory_file_close(file);
}

static void test_shared(void **state)
{
	struct fixture *f = *state;
	struct memory_file *file = NULL;
	struct error err;

	assert_int_equal(
		memory_file_open(f->path, MEMORY_FILE_SHARED, MIB(2), &file, &err), -EINVAL);
	assert_non_null(strstr(err.text, "truncate --size=%2048K"));
	assert_int_equal(truncate(f->path, 6 * PAGE), 0);
	file = add(f, MEMORY_FILE_SHARED, PAGE);
	/* All the logs and marks of RAM. */
	uint64_t bits;
	assert_int_equal(memory_dirty_start(f->memory), 0);
	memory_code_mark(f->memory, FILE_GPA + 3 * PAGE, 64);
	assert_true(memory_code_page(f->memory, FILE_GPA + 3 * PAGE));
	assert_int_equal(memory_write(f->memory, FILE_GPA + 6 * PAGE - 1, "z", 1), 0);
	memory_dirty_fetch(f->memory, 1, &bits);
	assert_true(bits == BIT(5));
	assert_int_equal(memory_file_flush(file), 0);
	assert_int_equal(file_byte(f, 6 * PAGE - 1), 'z');
	memory_free(f->memory);
	f->memory = NULL;
	memory_file_close(file);
}

/* Not RAM to those who ask how much of that there is, nor to be discarded. */
static void test_not_ram(void **state)
{
	struct fixture *f = *state;
	struct memory_file *file = add(f, MEMORY_FILE_PRIVATE, PAGE);

	assert_true(memory_ram_bytes(f->memory) == 64 * PAGE);
	assert_int_equal(memory_discard(f->memory, FILE_GPA, PAGE), -EFAULT);
	assert_int_equal(byte_at(f->memory, FILE_GPA), 1);
	assert_int_equal(memory_add_file(f->memory, 63 * PAGE, file, "again", NULL), -EINVAL);
	memory_free(f->memory);
	f->memory = NULL;
	memory_file_close(file);
}

static void test_open_refuses(void **state)
{
	struct fixture *f = *state;
	struct memory_file *file = NULL;
	struct error err = {0};

	assert_int_equal(
		memory_file_open("/nowhere/at/all", MEMORY_FILE_READONLY, PAGE, &file, &err),
		-ENOENT);
	assert_int_equal(
		memory_file_open("/dev/zero", MEMORY_FILE_READONLY, PAGE, &file, &err), -EINVAL);
	assert_int_equal(
		memory_file_open("/tmp", MEMORY_FILE_READONLY, PAGE, &file, &err), -EINVAL);
	assert_int_equal(truncate(f->path, 0), 0);
	assert_int_equal(
		memory_file_open(f->path, MEMORY_FILE_READONLY, PAGE, &file, &err), -EINVAL);
	assert_non_null(strstr(err.text, "is empty"));
	assert_null(file);
}

/* ---- discard ---- */

static bool is_resident(const struct guest_memory *memory, gpa_t gpa)
{
	unsigned char in;

	assert_int_equal(mincore(memory_host(memory, gpa, PAGE, false), PAGE, &in), 0);
	return in & 1;
}

struct heard {
	unsigned count;
	gpa_t gpa;
};

static void hear(void *opaque, gpa_t gpa, uint64_t size_bytes)
{
	struct heard *heard = opaque;

	heard->count++;
	heard->gpa = gpa;
}

static void test_discard(void **state)
{
	struct fixture *f = *state;
	struct heard heard = {0};
	uint64_t bits;

	for (unsigned i = 0; i < 64; i++)
		assert_int_equal(memory_write(f->memory, i * PAGE, "x", 1), 0);
	memory_set_code_listener(f->memory, hear, &heard);
	memory_code_mark(f->memory, 10 * PAGE + 100, 1);
	assert_int_equal(memory_dirty_start(f->memory), 0);
	uint8_t *host = memory_host(f->memory, 10 * PAGE, 1, false);
	assert_int_equal(memory_discard(f->memory, 8 * PAGE, 4 * PAGE), 0);
	assert_false(is_resident(f->memory, 8 * PAGE));
	assert_false(is_resident(f->memory, 11 * PAGE));
	assert_true(is_resident(f->memory, 7 * PAGE) && is_resident(f->memory, 12 * PAGE));
	assert_int_equal(*host, 0);
	*host = 'y';
	assert_int_equal(byte_at(f->memory, 10 * PAGE), 'y');
	assert_int_equal(byte_at(f->memory, 11 * PAGE), 0);
	assert_int_equal(byte_at(f->memory, 12 * PAGE), 'x');
	assert_int_equal(heard.count, 1);
	assert_true(heard.gpa == 10 * PAGE);
	memory_dirty_fetch(f->memory, 0, &bits);
	assert_true(bits == 0xf00);
}

static void test_discard_refuses(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(memory_add_ram(f->memory, MIB(1), PAGE, MEMORY_READONLY, "rom", NULL), 0);
	assert_int_equal(memory_discard(f->memory, 1, PAGE), -EINVAL);
	assert_int_equal(memory_discard(f->memory, PAGE, PAGE - 1), -EINVAL);
	assert_int_equal(memory_discard(f->memory, 64 * PAGE, PAGE), -EFAULT);
	assert_int_equal(memory_discard(f->memory, 63 * PAGE, 2 * PAGE), -EFAULT);
	assert_int_equal(memory_discard(f->memory, MIB(1), PAGE), -EFAULT);
	assert_int_equal(memory_discard(f->memory, 0, ALIGN_DOWN(~0ull, PAGE)), -EFAULT);
	assert_int_equal(memory_discard(f->memory, ALIGN_DOWN(~0ull, PAGE), PAGE), -EFAULT);
	assert_int_equal(memory_discard(f->memory, 0, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_private, setup, teardown),
		cmocka_unit_test_setup_teardown(test_readonly, setup, teardown),
		cmocka_unit_test_setup_teardown(test_shared, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_ram, setup, teardown),
		cmocka_unit_test_setup_teardown(test_open_refuses, setup, teardown),
		cmocka_unit_test_setup_teardown(test_discard, setup, teardown),
		cmocka_unit_test_setup_teardown(test_discard_refuses, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
