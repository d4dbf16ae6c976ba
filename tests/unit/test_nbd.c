/*
 * backend/disk/nbd: against nbdkit. What is written is there, servers come and go, and what a server has lost that
 * was not flushed is sent again.
 */
#include "backend/disk/block.h"
#include "backend/disk/nbd.h"
#include "base/clock.h"
#include "base/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define DISK_BYTES MIB(4)

struct fixture {
	char dir[64], socket[96], image[96], uri[160];
	pid_t server;
	struct disk_file *file;
	uint8_t *bytes, *other;
};

/* ---- the server ---- */

/* Its socket is there a moment before it listens. */
static bool does_listen(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, path);
	bool listens = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
	close(fd);
	return listens;
}

static void start_server(struct fixture *f, const char *const *more)
{
	const char *argv[24] = {"nbdkit", "--exit-with-parent", "-f", "-U", f->socket};
	unsigned n = 5;

	while (*more)
		argv[n++] = *more++;
	unlink(f->socket);
	f->server = fork();
	if (f->server == 0) {
		execvp("nbdkit", (char **)argv);
		_exit(127);
	}
	bool listens = false;
	for (unsigned i = 0; i < 500 && !listens; i++) {
		listens = does_listen(f->socket);
		if (!listens)
			usleep(10000);
	}
	assert_true(listens);
}

static void serve_file(struct fixture *f)
{
	start_server(f, (const char *[]){"file", f->image, NULL});
}

/* It answers nothing from here on. */
static void stop_server(struct fixture *f)
{
	kill(f->server, SIGSTOP);
	assert_int_equal(waitpid(f->server, NULL, WUNTRACED), f->server);
}

static void kill_server(struct fixture *f)
{
	if (f->server <= 0)
		return;
	kill(f->server, SIGKILL);
	waitpid(f->server, NULL, 0);
	f->server = 0;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	if (system("nbdkit --version >/dev/null 2>&1")) {
		print_message("NOT CHECKED: NBD (no nbdkit)\n");
		exit(77);
	}
	strcpy(f->dir, "/tmp/lodge-nbd-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->socket, sizeof(f->socket), "%s/socket", f->dir);
	snprintf(f->image, sizeof(f->image), "%s/image", f->dir);
	snprintf(f->uri, sizeof(f->uri), "nbd+unix:///?socket=%s", f->socket);
	int fd = open(f->image, O_RDWR | O_CREAT, 0600);
	assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
	close(fd);
	f->bytes = malloc(DISK_BYTES);
	f->other = malloc(DISK_BYTES);
	for (unsigned i = 0; i < DISK_BYTES; i++)
		f->bytes[i] = (uint8_t)(i * 7 + i / 4096);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	disk_file_close(f->file);
	kill_server(f);
	unlink(f->socket);
	unlink(f->image);
	rmdir(f->dir);
	free(f->bytes);
	free(f->other);
	free(f);
	return 0;
}

static void connect_with(struct fixture *f, struct nbd_file_options options)
{
	struct error err = {0};
	int status = nbd_file_open(f->uri, &options, &f->file, &err);

	if (status < 0)
		print_message("%s\n", err.text);
	assert_int_equal(status, 0);
}

/* ---- tests ---- */

static void test_uri(void **state)
{
	assert_true(nbd_file_is_uri("nbd://host/"));
	assert_true(nbd_file_is_uri("nbd+unix:///x?socket=/y"));
	assert_false(nbd_file_is_uri("nbd"));
	assert_false(nbd_file_is_uri("/nbd://host"));
	assert_false(nbd_file_is_uri("disk.img"));
}

static void test_round_trip(void **state)
{
	struct fixture *f = *state;
	uint64_t size_bytes;

	serve_file(f);
	connect_with(f, (struct nbd_file_options){0});
	assert_int_equal(f->file->ops->size(f->file, &size_bytes), 0);
	assert_int_equal(size_bytes, DISK_BYTES);
	assert_int_equal(disk_file_write(f->file, f->bytes, DISK_BYTES, 0), 0);
	assert_int_equal(f->file->ops->flush(f->file), 0);
	struct iovec iov[3] = {{f->other, 100}, {f->other + 100, 5000}, {f->other + 5100, 8192}};
	assert_int_equal(f->file->ops->readv(f->file, iov, 3, 1234), 0);
	assert_memory_equal(f->other, f->bytes + 1234, 13292);
	assert_int_equal(f->file->ops->writev(f->file, iov, 3, 4321), 0);
	assert_int_equal(disk_file_read(f->file, f->other + MIB(1), 13292, 4321), 0);
	assert_memory_equal(f->other, f->other + MIB(1), 13292);
	assert_int_equal(f->file->ops->punch(f->file, 8192, 4096), 0);
	assert_int_equal(f->file->ops->zero(f->file, 65536, 65536), 0);
	assert_int_equal(f->file->ops->discard(f->file, MIB(2), 65536), 0);
	assert_int_equal(disk_file_read(f->file, f->other, DISK_BYTES, 0), 0);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(f->other[8192 + i], 0);
	for (unsigned i = 0; i < 65536; i++)
		assert_int_equal(f->other[65536 + i], 0);
	assert_memory_equal(f->other + 131072, f->bytes + 131072, MIB(1));
	/* The end: zeros beyond, no room beyond. */
	memset(f->other, 0xee, 4096);
	assert_int_equal(disk_file_read(f->file, f->other, 4096, DISK_BYTES - 1000), 0);
	assert_memory_equal(f->other, f->bytes + DISK_BYTES - 1000, 1000);
	for (unsigned i = 1000; i < 4096; i++)
		assert_int_equal(f->other[i], 0);
	assert_int_equal(disk_file_write(f->file, f->bytes, 4096, DISK_BYTES - 1000), -ENOSPC);
}

/* A server that refuses what is not in blocks of 4096. */
static void test_coarse_server(void **state)
{
	struct fixture *f = *state;

	start_server(f, (const char *[]){"--filter=blocksize-policy", "file", f->image,
				"blocksize-minimum=4096", "blocksize-preferred=4096",
				"blocksize-maximum=64k", "blocksize-error-policy=error", NULL});
	connect_with(f, (struct nbd_file_options){0});
	assert_int_equal(disk_file_write(f->file, f->bytes, MIB(1), 0), 0);
	memcpy(f->other, f->bytes, MIB(1));
	memset(f->other + 5, 0x11, 3);
	memset(f->other + 4090, 0x22, 10000);
	assert_int_equal(disk_file_write(f->file, f->other + 5, 3, 5), 0);
	assert_int_equal(disk_file_write(f->file, f->other + 4090, 10000, 4090), 0);
	assert_int_equal(f->file->ops->zero(f->file, 20000, 300), 0);
	memset(f->other + 20000, 0, 300);
	assert_int_equal(f->file->ops->discard(f->file, 30000, 100), 0);
	uint8_t *now = malloc(MIB(1));
	assert_int_equal(disk_file_read(f->file, now, 7777, 3), 0);
	assert_memory_equal(now, f->other + 3, 7777);
	assert_int_equal(disk_file_read(f->file, now, MIB(1), 0), 0);
	assert_memory_equal(now, f->other, MIB(1));
	free(now);
}

static void test_readonly(void **state)
{
	struct fixture *f = *state;
	struct nbd_file_options options = {0};
	struct error err;

	start_server(f, (const char *[]){"-r", "file", f->image, NULL});
	assert_int_equal(nbd_file_open(f->uri, &options, &f->file, &err), -EROFS);
	assert_non_null(strstr(err.text, "readonly"));
	connect_with(f, (struct nbd_file_options){.readonly = true});
	assert_int_equal(disk_file_read(f->file, f->other, 512, 0), 0);
	assert_int_equal(disk_file_write(f->file, f->other, 512, 0), -EROFS);
}

static void test_nobody_there(void **state)
{
	struct fixture *f = *state;
	struct nbd_file_options options = {0};
	struct error err = {0};

	assert_true(nbd_file_open(f->uri, &options, &f->file, &err) < 0);
	assert_non_null(strstr(err.text, f->uri));
	assert_true(nbd_file_open("nbd://[", &options, &f->file, &err) < 0);
}

static void read_image(struct fixture *f, uint8_t *to)
{
	int fd = open(f->image, O_RDONLY);

	assert_int_equal(pread(fd, to, DISK_BYTES, 0), DISK_BYTES);
	close(fd);
}

/* The server crashes and its host forgets what was not flushed. */
static void test_unflushed_sent_again(void **state)
{
	struct fixture *f = *state;

	serve_file(f);
	connect_with(f, (struct nbd_file_options){0});
	assert_int_equal(disk_file_write(f->file, f->bytes, MIB(1), 0), 0);
	assert_int_equal(f->file->ops->flush(f->file), 0);
	assert_int_equal(disk_file_write(f->file, f->bytes + MIB(1), MIB(1), MIB(1)), 0);
	assert_int_equal(disk_file_write(f->file, f->bytes, 4096, MIB(1) + 8192), 0);
	assert_int_equal(f->file->ops->punch(f->file, MIB(1) + 4096, 4096), 0);
	kill_server(f);
	read_image(f, f->other);
	assert_memory_equal(f->other + MIB(1), f->bytes + MIB(1), 4096);
	int fd = open(f->image, O_WRONLY);
	memset(f->other, 0xdd, MIB(1));
	assert_int_equal(pwrite(fd, f->other, MIB(1), MIB(1)), MIB(1));
	close(fd);
	serve_file(f);
	assert_int_equal(f->file->ops->flush(f->file), 0);
	read_image(f, f->other);
	assert_memory_equal(f->other, f->bytes, MIB(1) + 4096);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(f->other[MIB(1) + 4096 + i], 0);
	assert_memory_equal(f->other + MIB(1) + 8192, f->bytes, 4096);
	assert_memory_equal(f->other + MIB(1) + 12288, f->bytes + MIB(1) + 12288, 4096);
}

/* The server that comes back does not take what the first one had acknowledged: no flush may succeed then. */
static void test_lost_write_told(void **state)
{
	struct fixture *f = *state;

	serve_file(f);
	connect_with(f, (struct nbd_file_options){0});
	assert_int_equal(disk_file_write(f->file, f->bytes, 4096, 0), 0);
	kill_server(f);
	start_server(f, (const char *[]){"--filter=error", "file", f->image,
				"error-pwrite-rate=100%", NULL});
	assert_int_equal(f->file->ops->flush(f->file), -EIO);
	kill_server(f);
	serve_file(f);
	assert_int_equal(disk_file_write(f->file, f->bytes, 4096, 0), 0);
	assert_int_equal(f->file->ops->flush(f->file), -EIO);
}

struct writer {
	struct fixture *f;
	unsigned index;
	int status;
};

static void *write_blocks(void *opaque)
{
	struct writer *w = opaque;
	uint64_t base = w->index * MIB(1);

	for (unsigned i = 0; i < 1500 && !w->status; i++) {
		uint64_t at = base + i % 256 * 4096;

		w->status = disk_file_write(w->f->file, w->f->bytes + at, 4096, at);
		if (!w->status && i % 16 == 0)
			w->status = w->f->file->ops->flush(w->f->file);
		usleep(500);
	}
	return NULL;
}

/* Killed again and again under four writers: none of them sees it. */
static void test_server_comes_and_goes(void **state)
{
	struct fixture *f = *state;
	struct writer writer[4];
	pthread_t thread[4];

	serve_file(f);
	connect_with(f, (struct nbd_file_options){0});
	for (unsigned i = 0; i < 4; i++) {
		writer[i] = (struct writer){f, i, 0};
		assert_int_equal(pthread_create(&thread[i], NULL, write_blocks, &writer[i]), 0);
	}
	for (unsigned i = 0; i < 3; i++) {
		usleep(300000);
		kill_server(f);
		serve_file(f);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(thread[i], NULL);
		assert_int_equal(writer[i].status, 0);
	}
	assert_int_equal(f->file->ops->flush(f->file), 0);
	read_image(f, f->other);
	assert_memory_equal(f->other, f->bytes, DISK_BYTES);
}

/* Until the server is there again. */
static int read_soon(struct fixture *f, void *to, uint64_t bytes)
{
	int status = -EIO;

	for (unsigned i = 0; i < 80 && status < 0; i++) {
		usleep(100000);
		status = disk_file_read(f->file, to, bytes, 0);
	}
	return status;
}

static void test_gives_up(void **state)
{
	struct fixture *f = *state;

	serve_file(f);
	connect_with(f, (struct nbd_file_options){.timeout_ns = NS_PER_SEC});
	assert_int_equal(disk_file_write(f->file, f->bytes, 4096, 0), 0);
	kill_server(f);
	assert_int_equal(disk_file_read(f->file, f->other, 4096, 0), -ETIMEDOUT);
	uint64_t start_ns = clock_monotonic_ns();
	assert_int_equal(disk_file_read(f->file, f->other, 4096, 0), -ETIMEDOUT);
	assert_true(clock_monotonic_ns() - start_ns < NS_PER_SEC / 2);
	serve_file(f);
	assert_int_equal(read_soon(f, f->other, 4096), 0);
	assert_memory_equal(f->other, f->bytes, 4096);
}

/* It is there and says nothing any more; then it does again, and all that was acknowledged is lasting. */
static void test_silent_server(void **state)
{
	struct fixture *f = *state;

	serve_file(f);
	connect_with(f, (struct nbd_file_options){.timeout_ns = NS_PER_SEC});
	assert_int_equal(disk_file_write(f->file, f->bytes, MIB(1), 0), 0);
	stop_server(f);
	uint64_t start_ns = clock_monotonic_ns();
	assert_int_equal(disk_file_write(f->file, f->bytes + MIB(1), MIB(1), MIB(1)), -ETIMEDOUT);
	assert_in_range(clock_monotonic_ns() - start_ns, NS_PER_SEC * 9 / 10, 10 * NS_PER_SEC);
	/* No flush may say that it is done, nor that something is lost. */
	assert_int_equal(f->file->ops->flush(f->file), -ETIMEDOUT);
	kill_server(f);
	int fd = open(f->image, O_WRONLY);
	assert_int_equal(pwrite(fd, f->other, MIB(1), 0), MIB(1));
	close(fd);
	serve_file(f);
	assert_int_equal(read_soon(f, f->other, MIB(1)), 0);
	assert_memory_equal(f->other, f->bytes, MIB(1));
	assert_int_equal(f->file->ops->flush(f->file), 0);
	read_image(f, f->other);
	assert_memory_equal(f->other, f->bytes, MIB(1));
}

/* The same one goes on. */
static void test_silent_for_a_while(void **state)
{
	struct fixture *f = *state;

	serve_file(f);
	connect_with(f, (struct nbd_file_options){.timeout_ns = NS_PER_SEC});
	assert_int_equal(disk_file_write(f->file, f->bytes, MIB(1), 0), 0);
	stop_server(f);
	assert_int_equal(disk_file_read(f->file, f->other, 4096, 0), -ETIMEDOUT);
	kill(f->server, SIGCONT);
	assert_int_equal(read_soon(f, f->other, MIB(1)), 0);
	assert_memory_equal(f->other, f->bytes, MIB(1));
	assert_int_equal(f->file->ops->flush(f->file), 0);
}

struct queue {
	struct fixture *f;
	atomic_uint left, failed;
};

static void *read_queue(void *opaque)
{
	struct queue *q = opaque;
	char bytes[512];

	while ((int)atomic_fetch_sub(&q->left, 1) > 0)
		if (disk_file_read(q->f->file, bytes, sizeof(bytes), 0) == -ETIMEDOUT)
			q->failed++;
	return NULL;
}

/* It accepts connections, and answers no read: of many requests that queue up only the first wait for the whole time. */
static void test_answers_no_read(void **state)
{
	struct fixture *f = *state;
	struct queue queue = {.f = f, .left = 200};
	pthread_t thread[8];

	/* One thread: nbdkit 1.32 may abort when the requests of a lost connection fail at the same time. */
	start_server(f, (const char *[]){"--threads=1", "--filter=delay", "file", f->image, "rdelay=60", NULL});
	connect_with(f, (struct nbd_file_options){.timeout_ns = NS_PER_SEC});
	uint64_t start_ns = clock_monotonic_ns();
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, read_queue, &queue), 0);
	for (unsigned i = 0; i < 8; i++)
		pthread_join(thread[i], NULL);
	assert_int_equal(queue.failed, 200);
	assert_true(clock_monotonic_ns() - start_ns < 12 * NS_PER_SEC);
	/* Until there is a connection. */
	int status = -ETIMEDOUT;
	for (unsigned i = 0; i < 80 && status < 0; i++) {
		usleep(100000);
		status = disk_file_write(f->file, f->bytes, 4096, 0);
	}
	assert_int_equal(status, 0);
	assert_int_equal(f->file->ops->flush(f->file), 0);
}

/* It takes writes, and never ends a flush: what has to be kept for it has a limit, of one large write too. */
static void test_answers_no_flush(void **state)
{
	struct fixture *f = *state;
	char *large = calloc(1, 3 * NBD_JOURNAL_BYTES), script[192];
	struct stat st;

	snprintf(script, sizeof(script), "pwrite=cat >/dev/null; if [ $4 != 0 ]; then echo $4 >>%s; fi", f->image);
	assert_int_equal(truncate(f->image, 0), 0);
	start_server(f, (const char *[]){"eval", "get_size=echo 128M", "pread=exec head -c $3 /dev/zero", script,
				"can_write=exit 0", "can_flush=exit 0", "flush=exec sleep 3", NULL});
	connect_with(f, (struct nbd_file_options){.timeout_ns = NS_PER_SEC});
	assert_int_equal(disk_file_write(f->file, large, 3 * NBD_JOURNAL_BYTES, 0), -ETIMEDOUT);
	free(large);
	for (unsigned i = 0; i < 30; i++) {
		usleep(100000);
		assert_int_equal(disk_file_write(f->file, f->bytes, 4096, 4096), -ETIMEDOUT);
	}
	assert_int_equal(stat(f->image, &st), 0);
	assert_int_equal(st.st_size, 0);
}

static void test_no_greeting(void **state)
{
	struct fixture *f = *state;
	struct nbd_file_options options = {.timeout_ns = NS_PER_SEC};
	struct error err = {0};

	serve_file(f);
	stop_server(f);
	uint64_t start_ns = clock_monotonic_ns();
	assert_int_equal(nbd_file_open(f->uri, &options, &f->file, &err), -ETIMEDOUT);
	assert_true(clock_monotonic_ns() - start_ns < 7 * NS_PER_SEC);
	assert_non_null(strstr(err.text, "no answer for 1 s"));
	assert_non_null(strstr(err.text, f->uri));
}

static void *wake_later(void *opaque)
{
	struct fixture *f = opaque;

	usleep(300000);
	kill(f->server, SIGCONT);
	return NULL;
}

static void test_no_timeout(void **state)
{
	struct fixture *f = *state;
	pthread_t thread;

	serve_file(f);
	connect_with(f, (struct nbd_file_options){.timeout_ns = NBD_NO_TIMEOUT});
	stop_server(f);
	assert_int_equal(pthread_create(&thread, NULL, wake_later, f), 0);
	assert_int_equal(disk_file_read(f->file, f->other, 4096, 0), 0);
	pthread_join(thread, NULL);
}

/* Closing does not wait for a server that is not there. */
static void test_close_without_server(void **state)
{
	struct fixture *f = *state;

	serve_file(f);
	connect_with(f, (struct nbd_file_options){0});
	assert_int_equal(disk_file_write(f->file, f->bytes, 4096, 0), 0);
	kill_server(f);
	usleep(100000);
	uint64_t start_ns = clock_monotonic_ns();
	disk_file_close(f->file);
	f->file = NULL;
	assert_true(clock_monotonic_ns() - start_ns < 2 * NS_PER_SEC);
}

/* As a guest's disk. */
struct one {
	struct block_request request;
	struct block *block;
	struct loop *loop;
	int status;
};

static void one_done(struct block_request *request, int status)
{
	struct one *one = request->opaque;

	one->status = status;
	loop_stop(one->loop);
}

static void one_submit(void *opaque)
{
	struct one *one = opaque;

	block_submit(one->block, &one->request);
}

static int perform(struct loop *loop, struct block *block, enum block_op op, void *bytes,
	uint64_t offset, uint64_t size)
{
	struct iovec iov = {bytes, size};
	struct one one = {.block = block,
		.loop = loop,
		.request = {.op = op,
			.offset = offset,
			.bytes = size,
			.iov = &iov,
			.iov_count = 1,
			.done = one_done}};
	struct loop_call call = {.fn = one_submit, .opaque = &one};

	one.request.opaque = &one;
	loop_post(loop, &call);
	loop_run(loop);
	return one.status;
}

static void test_as_block(void **state)
{
	struct fixture *f = *state;
	struct disk_block_options options = {.format = "raw"};
	struct block_limits limits;
	struct block *block;
	struct error err = {0};
	struct loop *loop;

	serve_file(f);
	assert_int_equal(loop_create(&loop), 0);
	assert_int_equal(disk_block_open(loop, f->uri, &options, &block, &err), 0);
	block_limits(block, &limits);
	assert_int_equal(limits.size_bytes, DISK_BYTES);
	assert_int_equal(perform(loop, block, BLOCK_WRITE, f->bytes, 0, MIB(1)), 0);
	assert_int_equal(perform(loop, block, BLOCK_FLUSH, NULL, 0, 0), 0);
	assert_int_equal(perform(loop, block, BLOCK_READ, f->other, 4096, 65536), 0);
	assert_memory_equal(f->other, f->bytes + 4096, 65536);
	block_close(block);
	loop_free(loop);
	read_image(f, f->other);
	assert_memory_equal(f->other, f->bytes, MIB(1));
}

/* A flush that had no answer has failed, but not all that come after it. */
static void test_silent_block(void **state)
{
	struct fixture *f = *state;
	struct disk_block_options options = {.format = "raw", .nbd_timeout_ns = NS_PER_SEC};
	struct block *block;
	struct error err = {0};
	struct loop *loop;
	int status = -EIO;

	serve_file(f);
	assert_int_equal(loop_create(&loop), 0);
	assert_int_equal(disk_block_open(loop, f->uri, &options, &block, &err), 0);
	assert_int_equal(perform(loop, block, BLOCK_WRITE, f->bytes, 0, MIB(1)), 0);
	stop_server(f);
	assert_int_equal(perform(loop, block, BLOCK_FLUSH, NULL, 0, 0), -ETIMEDOUT);
	kill(f->server, SIGCONT);
	for (unsigned i = 0; i < 80 && status < 0; i++) {
		usleep(100000);
		status = perform(loop, block, BLOCK_FLUSH, NULL, 0, 0);
	}
	assert_int_equal(status, 0);
	block_close(block);
	loop_free(loop);
	read_image(f, f->other);
	assert_memory_equal(f->other, f->bytes, MIB(1));
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_uri),
		TEST(test_round_trip),
		TEST(test_coarse_server),
		TEST(test_readonly),
		TEST(test_nobody_there),
		TEST(test_unflushed_sent_again),
		TEST(test_lost_write_told),
		TEST(test_server_comes_and_goes),
		TEST(test_gives_up),
		TEST(test_silent_server),
		TEST(test_silent_for_a_while),
		TEST(test_answers_no_read),
		TEST(test_answers_no_flush),
		TEST(test_no_greeting),
		TEST(test_no_timeout),
		TEST(test_close_without_server),
		TEST(test_as_block),
		TEST(test_silent_block),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
