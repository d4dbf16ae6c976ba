/*
 * backend/flash_file: made from the template, kept byte by byte, kept from others, and refused when it is something else.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/flash_file.h"
#include "base/error.h"

#define SIZE (4 * FLASH_BLOCK_BYTES)

struct fixture {
	char folder[64], template[96], path[96];
	uint8_t first[SIZE];
	struct error err;
};

static void write_file(const char *path, const uint8_t *bytes, size_t count)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, count), count);
	close(fd);
}

static void assert_file(const char *path, const uint8_t *bytes, size_t count)
{
	uint8_t *got = malloc(count + 1);
	int fd = open(path, O_RDONLY);

	assert_true(got && fd >= 0);
	assert_int_equal(read(fd, got, count + 1), count);
	assert_memory_equal(got, bytes, count);
	close(fd);
	free(got);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->folder, "/tmp/lodge-flash-XXXXXX");
	if (!mkdtemp(f->folder))
		return -1;
	snprintf(f->template, sizeof(f->template), "%s/template", f->folder);
	snprintf(f->path, sizeof(f->path), "%s/vars", f->folder);
	for (unsigned i = 0; i < SIZE; i++)
		f->first[i] = (uint8_t)(i / 3);
	memcpy(f->first + 40, "_FVH", 4);
	write_file(f->template, f->first, SIZE);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	unlink(f->template);
	unlink(f->path);
	assert_int_equal(rmdir(f->folder), 0); /* nothing else is left there */
	free(f);
	return 0;
}

static void test_made_and_kept(void **state)
{
	struct fixture *f = *state;
	struct flash_file *file;

	assert_int_equal(flash_file_open(f->path, f->template, &file, &f->err), 0);
	struct flash_store *store = flash_file_store(file);
	assert_int_equal(store->size_bytes, SIZE);
	assert_memory_equal(store->bytes, f->first, SIZE);
	assert_file(f->path, f->first, SIZE);
	assert_int_equal(store->write(store, SIZE - 3, (const uint8_t *)"abc", 3), 0);
	memcpy(f->first + SIZE - 3, "abc", 3);
	/* At once, whatever becomes of the process. */
	assert_file(f->path, f->first, SIZE);
	assert_memory_equal(store->bytes, f->first, SIZE);
	flash_file_close(file);
	assert_int_equal(flash_file_open(f->path, f->template, &file, &f->err), 0);
	assert_memory_equal(flash_file_store(file)->bytes, f->first, SIZE);
	flash_file_close(file);
	/* One's own needs no template. */
	assert_int_equal(flash_file_open(f->path, NULL, &file, &f->err), 0);
	flash_file_close(file);
}

static void test_in_memory(void **state)
{
	struct fixture *f = *state;
	struct flash_file *file;

	assert_int_equal(flash_file_open(NULL, f->template, &file, &f->err), 0);
	struct flash_store *store = flash_file_store(file);
	assert_int_equal(store->write(store, 0, (const uint8_t *)"abc", 3), 0);
	assert_memory_equal(store->bytes, "abc", 3);
	assert_file(f->template, f->first, SIZE);
	flash_file_close(file);
}

static void test_in_use(void **state)
{
	struct fixture *f = *state;
	struct flash_file *file, *other;

	assert_int_equal(flash_file_open(f->path, f->template, &file, &f->err), 0);
	assert_int_equal(flash_file_open(f->path, f->template, &other, &f->err), -EAGAIN);
	assert_non_null(strstr(f->err.text, f->path));
	flash_file_close(file);
	assert_int_equal(flash_file_open(f->path, f->template, &other, &f->err), 0);
	flash_file_close(other);
}

static void assert_refused(struct fixture *f, const char *template, int status, const char *text)
{
	struct flash_file *file;

	assert_int_equal(flash_file_open(f->path, template, &file, &f->err), status);
	if (!strstr(f->err.text, text))
		fail_msg("'%s' does not say '%s'", f->err.text, text);
}

static void test_refused(void **state)
{
	struct fixture *f = *state;

	assert_refused(f, NULL, -ENOENT, f->path);
	write_file(f->path, f->first, 0);
	assert_refused(f, f->template, -EINVAL, "no multiple of 4 KiB");
	write_file(f->path, f->first, SIZE - 1);
	assert_refused(f, f->template, -EINVAL, "no multiple of 4 KiB");
	write_file(f->path, f->first, SIZE / 2);
	assert_refused(f, f->template, -EINVAL, "8 KiB of UEFI variables, and the firmware wants the 16 KiB");
	f->first[40] = 'x';
	write_file(f->path, f->first, SIZE);
	assert_refused(f, f->template, -EINVAL, "no firmware volume");
	assert_file(f->path, f->first, SIZE);
	assert_int_equal(truncate(f->path, FLASH_BYTES_MAX + FLASH_BLOCK_BYTES), 0);
	assert_refused(f, NULL, -EINVAL, "more than 1024 KiB");
	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(mkfifo(f->path, 0600), 0);
	assert_refused(f, f->template, -EINVAL, "no regular file");
	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(unlink(f->template), 0);
	assert_refused(f, f->template, -ENOENT, f->template);
	assert_int_equal(access(f->path, F_OK), -1);
	write_file(f->template, f->first, SIZE);
}

/* The guest may erase all of it: firmware makes it anew. */
static void test_erased(void **state)
{
	struct fixture *f = *state;
	struct flash_file *file;

	memset(f->first, 0xff, SIZE);
	write_file(f->path, f->first, SIZE);
	assert_int_equal(flash_file_open(f->path, f->template, &file, &f->err), 0);
	flash_file_close(file);
}

/* The host takes no more: what is there stays, here and in the file, and nothing half made. */
static void test_host_fails(void **state)
{
	struct fixture *f = *state;
	struct flash_file *file;
	struct rlimit before, limit = {.rlim_cur = 5000};

	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	limit.rlim_max = before.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_refused(f, f->template, -EFBIG, f->path);
	assert_int_equal(access(f->path, F_OK), -1);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	assert_int_equal(flash_file_open(f->path, f->template, &file, &f->err), 0);
	struct flash_store *store = flash_file_store(file);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(store->write(store, 6000, (const uint8_t *)"abc", 3), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	assert_memory_equal(store->bytes, f->first, SIZE);
	assert_file(f->path, f->first, SIZE);
	flash_file_close(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_made_and_kept, setup, teardown),
		cmocka_unit_test_setup_teardown(test_in_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(test_in_use, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(test_erased, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host_fails, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
