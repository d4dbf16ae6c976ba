/*
 * device/virtio/fs: what comes from a driver reaches the server and goes back, whoever's thread ends it, and resets
 * wait for what is under way. The server is a fake; the last test has a real one.
 */
#include "tests/device/virtio_rig.h"

#include "backend/share/share.h"
#include "base/bytes.h"
#include "base/error.h"
#include "device/fs.h"
#include "device/virtio/fs.h"
#include "device/virtio/virtio.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define HELD_MAX 256

struct fake_fs {
	struct fs fs;

	struct fs_request *held[HELD_MAX];
	unsigned held_count, abandoned, submitted;
	pthread_t thread;
};

struct fixture {
	struct virtio_rig rig;
	struct fake_fs server;
	struct virtio_fs *fs;
	struct virtio_config wiring;
};

/* Replies with the request's bytes, each one higher. */
static uint32_t answer(const struct fs_request *r)
{
	const uint8_t *from = r->out[0].iov_base;
	uint8_t *to = r->in[0].iov_base;
	const uint32_t bytes = (uint32_t)MIN(r->out_bytes, r->in_bytes);

	assert_true(r->out[0].iov_len >= bytes && r->in[0].iov_len >= bytes);
	for (uint32_t i = 0; i < bytes; i++)
		to[i] = from[i] + 1;
	return bytes;
}

static void *answer_all(void *opaque)
{
	struct fake_fs *server = opaque;

	while (server->held_count) {
		struct fs_request *r = server->held[--server->held_count];

		r->done(r, answer(r));
	}
	return NULL;
}

/* On another thread, the last first. */
static void let_go(struct fake_fs *server)
{
	assert_int_equal(pthread_create(&server->thread, NULL, answer_all, server), 0);
	pthread_join(server->thread, NULL);
}

static bool fake_submit(struct fs *fs, struct fs_request *r, uint32_t *ret_written)
{
	struct fake_fs *server = container_of(fs, struct fake_fs, fs);

	server->submitted++;
	*ret_written = 0;
	if (!r->in_count) /* as FORGET */
		return true;
	assert_true(server->held_count < HELD_MAX);
	server->held[server->held_count++] = r;
	return false;
}

static void fake_abandon(struct fs *fs)
{
	container_of(fs, struct fake_fs, fs)->abandoned++;
}

static const struct fs_ops fake_ops = {.submit = fake_submit, .abandon = fake_abandon};

static struct virtio_fs_config config_of(struct fixture *f)
{
	f->wiring = (struct virtio_config){
		.memory = f->rig.memory, .lock = &f->rig.lock, .loop = f->rig.loop, .name = "fs0"};
	return (struct virtio_fs_config){
		.wiring = &f->wiring, .fs = &f->server.fs, .tag = "mnt", .queues = 1};
}

static struct fixture *make(unsigned flavour)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	virtio_rig_init(&f->rig);
	f->rig.packed = flavour & 1;
	f->rig.indirect = f->rig.event_index = flavour & 2;
	f->server.fs.ops = &fake_ops;
	const struct virtio_fs_config config = config_of(f);
	assert_int_equal(virtio_fs_create(&config, &f->fs), 0);
	virtio_rig_start(&f->rig, virtio_fs_device(f->fs), 0);
	return f;
}

static void unmake(struct fixture *f)
{
	virtio_fs_free(f->fs);
	virtio_rig_done(&f->rig);
	free(f);
}

static void test_config(void **state)
{
	struct fixture *f = make(0);
	struct virtio_device *device = virtio_fs_device(f->fs);
	char tag[VIRTIO_FS_TAG_BYTES + 1] = "";
	struct virtio_fs_config config = config_of(f);
	struct virtio_fs *other;

	pthread_mutex_lock(&f->rig.lock);
	for (unsigned i = 0; i < VIRTIO_FS_TAG_BYTES; i++)
		tag[i] = (char)virtio_config_read(device, i, 1);
	assert_string_equal(tag, "mnt");
	assert_int_equal(virtio_config_read(device, VIRTIO_FS_TAG_BYTES, 4), 1);
	pthread_mutex_unlock(&f->rig.lock);
	assert_int_equal(f->rig.queue_count, 2);
	config.queues = 0;
	assert_int_equal(virtio_fs_create(&config, &other), -EINVAL);
	config.queues = VIRTIO_FS_QUEUES_MAX + 1;
	assert_int_equal(virtio_fs_create(&config, &other), -EINVAL);
	config.queues = VIRTIO_FS_QUEUES_MAX;
	config.tag = "";
	assert_int_equal(virtio_fs_create(&config, &other), -EINVAL);
	config.tag = "0123456789012345678901234567890123456";
	assert_int_equal(virtio_fs_create(&config, &other), -EINVAL);
	config.tag++; /* as long as may be: no NUL fits */
	assert_int_equal(virtio_fs_create(&config, &other), 0);
	virtio_fs_free(other);
	unmake(f);
}

/* Adds a request of `bytes` bytes of `fill`; returns where its reply will be. */
static gpa_t add(struct fixture *f, unsigned queue, uint8_t fill, uint32_t bytes)
{
	struct rig_part part[2] = {{.gpa = virtio_rig_alloc(&f->rig, bytes), .bytes = bytes},
		{.gpa = virtio_rig_alloc(&f->rig, bytes), .bytes = bytes, .in = true}};

	memset(virtio_rig_at(&f->rig, part[0].gpa), fill, bytes);
	memset(virtio_rig_at(&f->rig, part[1].gpa), 0xee, bytes);
	assert_true(virtio_rig_add(&f->rig, queue, part, 2) >= 0);
	return part[1].gpa;
}

static void test_requests(void **state)
{
	for (unsigned flavour = 0; flavour < 4; flavour++) {
		struct fixture *f = make(flavour);
		gpa_t reply[40];
		uint32_t written;

		for (unsigned i = 0; i < 40; i++)
			reply[i] = add(f, i % 2, (uint8_t)i, 100);
		virtio_rig_kick(&f->rig, 0);
		virtio_rig_kick(&f->rig, 1);
		virtio_rig_run(&f->rig);
		assert_int_equal(f->server.held_count, 40);
		assert_int_equal(virtio_rig_used(&f->rig, 1, &written), -1);
		let_go(&f->server);
		for (unsigned i = 0; i < 40; i++) {
			assert_true(virtio_rig_used(&f->rig, i % 2, &written) >= 0);
			assert_int_equal(written, 100);
			assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, reply[i]), i + 1);
			assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, reply[i] + 99), i + 1);
		}
		assert_true(f->rig.interrupts[0] && f->rig.interrupts[1]);
		unmake(f);
	}
}

static void test_no_reply(void **state)
{
	struct fixture *f = make(2);
	struct rig_part part = {.gpa = virtio_rig_alloc(&f->rig, 64), .bytes = 48};
	uint32_t written = 1;

	/* Those that end at once come back while another is under way. */
	add(f, 1, 1, 10);
	virtio_rig_kick(&f->rig, 1);
	virtio_rig_run(&f->rig);
	for (unsigned i = 0; i < 1000; i++) {
		assert_true(virtio_rig_add(&f->rig, 0, &part, 1) >= 0);
		virtio_rig_kick(&f->rig, 0);
		virtio_rig_run(&f->rig);
		assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
		assert_int_equal(written, 0);
	}
	assert_int_equal(f->server.submitted, 1001);
	let_go(&f->server);
	assert_true(virtio_rig_used(&f->rig, 1, &written) >= 0);
	unmake(f);
}

static void set_status(struct fixture *f, uint8_t status)
{
	pthread_mutex_lock(&f->rig.lock);
	virtio_set_status(virtio_fs_device(f->fs), status);
	pthread_mutex_unlock(&f->rig.lock);
}

static uint8_t get_status(struct fixture *f)
{
	pthread_mutex_lock(&f->rig.lock);
	const uint8_t status = virtio_status(virtio_fs_device(f->fs));
	pthread_mutex_unlock(&f->rig.lock);
	return status;
}

static void test_reset(void **state)
{
	struct fixture *f = make(0);
	uint32_t written;
	const unsigned before = f->server.abandoned;

	for (unsigned i = 0; i < 10; i++)
		add(f, 1, 5, 10);
	virtio_rig_kick(&f->rig, 1);
	virtio_rig_run(&f->rig);
	set_status(f, 0);
	assert_int_equal(f->server.abandoned, before + 1);
	/* Not before the server has let go of guest memory. */
	assert_int_not_equal(get_status(f), 0);
	let_go(&f->server);
	assert_int_equal(get_status(f), 0);
	assert_int_equal(virtio_rig_used(&f->rig, 1, &written), -1);
	/* And it works again. */
	virtio_rig_start(&f->rig, virtio_fs_device(f->fs), 0);
	const gpa_t reply = add(f, 1, 7, 10);
	virtio_rig_kick(&f->rig, 1);
	virtio_rig_run(&f->rig);
	let_go(&f->server);
	assert_true(virtio_rig_used(&f->rig, 1, &written) >= 0);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, reply), 8);
	unmake(f);
}

static void *let_go_later(void *opaque)
{
	struct fixture *f = opaque;

	usleep(100000);
	return answer_all(&f->server);
}

static void test_free_waits(void **state)
{
	struct fixture *f = make(0);
	pthread_t thread;

	add(f, 1, 5, 10);
	virtio_rig_kick(&f->rig, 1);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->server.held_count, 1);
	assert_int_equal(pthread_create(&thread, NULL, let_go_later, f), 0);
	virtio_fs_free(f->fs);
	assert_int_equal(f->server.held_count, 0);
	pthread_join(thread, NULL);
	virtio_rig_done(&f->rig);
	free(f);
}

/* The driver errs while requests are under way: they end and say nothing. */
static void test_failed(void **state)
{
	struct fixture *f = make(0);
	struct rig_part part = {.gpa = RIG_MEMORY_BYTES, .bytes = 10};
	uint32_t written;

	add(f, 1, 5, 10);
	virtio_rig_kick(&f->rig, 1);
	virtio_rig_run(&f->rig);
	virtio_rig_add(&f->rig, 1, &part, 1);
	virtio_kick(f->rig.device, 1);
	virtio_rig_run(&f->rig);
	assert_true(get_status(f) & VIRTIO_STATUS_NEEDS_RESET);
	let_go(&f->server);
	assert_int_equal(virtio_rig_used(&f->rig, 1, &written), -1);
	set_status(f, 0);
	assert_int_equal(get_status(f), 0);
	unmake(f);
}

/* ---- with a real server ---- */

static void test_share(void **state)
{
	char path[] = "/tmp/lodge-fs-XXXXXX", file[64];
	struct fixture *f = calloc(1, sizeof(*f));
	struct error err;
	struct fs *share;

	assert_non_null(mkdtemp(path));
	snprintf(file, sizeof(file), "%s/file", path);
	assert_int_equal(share_open(&share, &(struct share_config){.path = path}, &err), 0);
	virtio_rig_init(&f->rig);
	struct virtio_fs_config config = config_of(f);
	config.fs = share;
	assert_int_equal(virtio_fs_create(&config, &f->fs), 0);
	for (unsigned life = 0; life < 20; life++) {
		f->rig.packed = life & 1;
		f->rig.next_data = RIG_DATA_GPA;
		virtio_rig_start(&f->rig, virtio_fs_device(f->fs), 0);
		struct {
			struct fuse_in_header header;
			struct fuse_init_in init;
		} init = {.header = {.len = sizeof(init), .opcode = FUSE_INIT},
			.init = {.major = 7, .minor = 36}};
		struct {
			struct fuse_out_header header;
			struct fuse_init_out init;
		} began;
		assert_int_equal(
			virtio_rig_request(&f->rig, 1, &init, sizeof(init), &began, sizeof(began)),
			sizeof(began));
		assert_int_equal(began.header.error, 0);
		struct {
			struct fuse_in_header header;
			struct fuse_create_in create;
			char name[5];
		} __attribute__((packed)) create = {.header = {.len = sizeof(create),
							    .opcode = FUSE_CREATE,
							    .nodeid = FUSE_ROOT_ID},
			.create = {.flags = 2, .mode = 0600},
			.name = "file"};
		struct {
			struct fuse_out_header header;
			struct fuse_entry_out entry;
			struct fuse_open_out open;
		} created;
		/* Many of them at once; then a reset, with some under way. */
		for (unsigned i = 0; i < 60; i++) {
			struct rig_part part[2] = {
				{.gpa = virtio_rig_alloc(&f->rig, sizeof(create)),
					.bytes = sizeof(create)},
				{.gpa = virtio_rig_alloc(&f->rig, sizeof(created)),
					.bytes = sizeof(created),
					.in = true}};
			memcpy(virtio_rig_at(&f->rig, part[0].gpa), &create, sizeof(create));
			assert_true(virtio_rig_add(&f->rig, 1, part, 2) >= 0);
		}
		virtio_rig_kick(&f->rig, 1);
		virtio_rig_run(&f->rig);
		/* Where the host is busy nothing may have begun yet, and then nothing does. */
		if (life == 0)
			assert_true(virtio_rig_wait(&f->rig, 1));
		set_status(f, 0);
		while (get_status(f))
			usleep(1000);
	}
	assert_int_equal(access(file, F_OK), 0);
	virtio_fs_free(f->fs);
	fs_close(share);
	virtio_rig_done(&f->rig);
	free(f);
	unlink(file);
	rmdir(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_config),
		cmocka_unit_test(test_requests),
		cmocka_unit_test(test_no_reply),
		cmocka_unit_test(test_reset),
		cmocka_unit_test(test_free_waits),
		cmocka_unit_test(test_failed),
		cmocka_unit_test(test_share),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
