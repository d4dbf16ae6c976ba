/*
 * virtio pmem: where it is, flushes that end when the file's bytes are safe, and requests that make no sense.
 */
#include "tests/device/virtio_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/bytes.h"
#include "device/virtio/pmem.h"

#define PMEM_GPA GIB(4)

struct fixture {
	struct virtio_rig rig;
	struct memory_file *file;
	struct virtio_pmem *pmem;
	char path[64];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->path, "/tmp/lodge-pmem-XXXXXX");
	int fd = mkstemp(f->path);
	assert_int_equal(ftruncate(fd, (off_t)MIB(2)), 0);
	close(fd);
	virtio_rig_init(&f->rig);
	assert_int_equal(
		memory_file_open(f->path, MEMORY_FILE_SHARED, VIRTIO_PMEM_ALIGN, &f->file, NULL),
		0);
	assert_int_equal(memory_add_file(f->rig.memory, PMEM_GPA, f->file, "pmem", NULL), 0);
	const struct virtio_pmem_config config = {.wiring = {.memory = f->rig.memory,
							  .lock = &f->rig.lock,
							  .loop = f->rig.loop,
							  .name = "pmem"},
		.gpa = PMEM_GPA,
		.file = f->file};
	assert_int_equal(virtio_pmem_create(&config, &f->pmem), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_pmem_free(f->pmem);
	virtio_rig_done(&f->rig);
	memory_file_close(f->file);
	unlink(f->path);
	free(f);
	return 0;
}

static void begin(struct fixture *f)
{
	virtio_rig_start(&f->rig, virtio_pmem_device(f->pmem), 0);
}

static void test_config(void **state)
{
	struct fixture *f = *state;

	begin(f);
	assert_true(virtio_config_read(f->rig.device, 0, 8) == PMEM_GPA);
	assert_true(virtio_config_read(f->rig.device, 8, 8) == MIB(2));
	assert_true(virtio_config_read(f->rig.device, 12, 8) == 0);
}

static void test_flush(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < 4; i++) {
		uint32_t flush = 0, answer = 77;

		f->rig.packed = i & 1;
		f->rig.indirect = i & 2;
		begin(f);
		assert_int_equal(
			memory_write(f->rig.memory, PMEM_GPA + 5000 + i, &"abcd"[i], 1), 0);
		assert_int_equal(virtio_rig_request(&f->rig, 0, &flush, 4, &answer, 4), 4);
		assert_int_equal(answer, 0);
	}
	int fd = open(f->path, O_RDONLY);
	char bytes[4];
	assert_int_equal(pread(fd, bytes, 4, 5000), 4);
	assert_memory_equal(bytes, "abcd", 4);
	close(fd);
}

/* A queue full of them, again and again. */
static void test_many(void **state)
{
	struct fixture *f = *state;
	unsigned added = 0, ended = 0;

	begin(f);
	memset(virtio_rig_at(&f->rig, MIB(8)), 0, 4);
	while (ended < 500) {
		const struct rig_part part[2] = {
			{.gpa = MIB(8), .bytes = 4}, {.gpa = MIB(8) + 16, .bytes = 4, .in = true}};
		uint32_t written;

		while (virtio_rig_add(&f->rig, 0, part, 2) >= 0)
			added++;
		virtio_rig_kick(&f->rig, 0);
		assert_true(virtio_rig_wait(&f->rig, 0));
		while (virtio_rig_used(&f->rig, 0, &written) >= 0) {
			assert_int_equal(written, 4);
			ended++;
		}
	}
	assert_true(added >= ended);
}

/* Flushes that are under way while the driver resets the device are not answered in its next life. */
static void test_reset(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < 50; i++) {
		const struct rig_part part[2] = {
			{.gpa = MIB(8), .bytes = 4}, {.gpa = MIB(8) + 16, .bytes = 4, .in = true}};
		uint32_t flush = 0, answer = 77, written;

		begin(f);
		assert_int_equal(virtio_rig_request(&f->rig, 0, &flush, 4, &answer, 4), 4);
		for (unsigned n = 0; n < 10; n++)
			assert_true(virtio_rig_add(&f->rig, 0, part, 2) >= 0);
		virtio_rig_kick(&f->rig, 0);
		virtio_rig_run(&f->rig);
		begin(f);
		assert_int_equal(virtio_rig_used(&f->rig, 0, &written), -1);
	}
}

static void test_hostile(void **state)
{
	struct fixture *f = *state;
	uint32_t type = 5, answer = 77;
	uint8_t small[2] = {7, 7};

	begin(f);
	assert_int_equal(virtio_rig_request(&f->rig, 0, &type, 4, &answer, 4), 4);
	assert_int_equal(answer, UINT32_MAX);
	type = 0;
	assert_int_equal(virtio_rig_request(&f->rig, 0, &type, 3, &answer, 4), 4);
	assert_int_equal(answer, UINT32_MAX);
	assert_int_equal(virtio_rig_request(&f->rig, 0, &type, 4, NULL, 0), 0);
	assert_int_equal(virtio_rig_request(&f->rig, 0, &type, 4, small, 2), 2);
	assert_int_equal(virtio_rig_request(&f->rig, 0, NULL, 0, &answer, 4), 4);
	virtio_config_write(f->rig.device, 0, 8, 0);
	assert_true(virtio_config_read(f->rig.device, 0, 8) == PMEM_GPA);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_config, setup, teardown),
		cmocka_unit_test_setup_teardown(test_flush, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
