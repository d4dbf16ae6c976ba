/*
 * backend/net/switch: several ports in one process. Who hears what, ports that come, go and die, work left to do, full
 * sockets, and datagrams that lie.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/net/network.h"
#include "backend/net/offload.h"
#include "backend/net/switch.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/loop.h"
#include "tests/turns.h"

#define PORTS 4

struct port {
	struct net *net;
	unsigned frames, refuse; /* refuse so many more */
	size_t bytes;		 /* of the last */
	uint64_t sum;
	uint32_t next; /* the number that the next frame should have */
	struct net_offload offload;
	uint8_t frame[OFFLOAD_FRAME_MAX];
	bool numbered;
};

struct fixture {
	struct loop *loop;
	struct loop_timer *timer;
	char directory[64];
	struct port port[PORTS];
};

static void stop(void *opaque)
{
	loop_stop(((struct fixture *)opaque)->loop);
}

/* The loop, for as long as something is ready. */
static void run(struct fixture *f)
{
	run_turns(f->loop, 8);
}

static void run_ms(struct fixture *f, unsigned ms)
{
	loop_timer_arm(f->timer, clock_monotonic_ns() + ms * NS_PER_MS);
	loop_run(f->loop);
}

static bool receive(void *opaque, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	struct port *port = opaque;

	if (port->refuse) {
		port->refuse--;
		return false;
	}
	port->bytes = offload_gather(port->frame, sizeof(port->frame), iov, iov_count, 0);
	port->offload = *offload;
	port->frames++;
	if (port->numbered) {
		assert_int_equal(load_le32(port->frame + 14), port->next);
		port->next++;
	}
	return true;
}

static void join(struct fixture *f, unsigned i, unsigned takes)
{
	struct network_spec spec = {.kind = NETWORK_SWITCH, .name = "lan"};
	struct net_peer peer = {.receive = receive, .opaque = &f->port[i]};
	struct error err = {0};

	if (switch_open(&spec, f->loop, &f->port[i].net, &err) < 0)
		fail_msg("%s", err.text);
	f->port[i].net->ops->attach(f->port[i].net, &peer, takes);
	run(f);
}

static void leave(struct fixture *f, unsigned i)
{
	net_close(f->port[i].net);
	f->port[i].net = NULL;
	run(f);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->directory, "/tmp/lodge-test-XXXXXX");
	assert_non_null(mkdtemp(f->directory));
	setenv("XDG_RUNTIME_DIR", f->directory, 1);
	assert_int_equal(loop_create(&f->loop), 0);
	f->timer = loop_timer_create(f->loop, stop, f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char path[128];

	for (unsigned i = 0; i < PORTS; i++)
		net_close(f->port[i].net);
	loop_free(f->loop);
	/* The last one took the switch's directory along. */
	snprintf(path, sizeof(path), "%s/lodge/switch-lan", f->directory);
	assert_int_equal(access(path, F_OK), -1);
	snprintf(path, sizeof(path), "%s/lodge", f->directory);
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(rmdir(f->directory), 0);
	free(f);
	return 0;
}

static void send_offload(struct fixture *f, unsigned from, unsigned to, uint8_t *frame,
	size_t bytes, const struct net_offload *offload)
{
	struct iovec iov[2] = {{frame, 6}, {frame + 6, bytes - 6}};

	memset(frame, 2, 12);
	frame[5] = (uint8_t)to;
	frame[11] = (uint8_t)from;
	if (to == 255)
		memset(frame, 255, 6);
	f->port[from].net->ops->send(f->port[from].net, offload, iov, 2);
}

static void send_frame(struct fixture *f, unsigned from, unsigned to, size_t bytes)
{
	static uint8_t frame[OFFLOAD_FRAME_MAX];

	memset(frame + 12, (int)bytes, bytes - 12);
	send_offload(f, from, to, frame, bytes, &(struct net_offload){0});
	run(f);
}

static void expect(struct fixture *f, unsigned a, unsigned b, unsigned c)
{
	assert_int_equal(f->port[0].frames, a);
	assert_int_equal(f->port[1].frames, b);
	assert_int_equal(f->port[2].frames, c);
}

static void test_learning(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < 3; i++)
		join(f, i, 0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(switch_peers(switch_of(f->port[i].net)), 2);
	/* Unknown and broadcast go everywhere but back. */
	send_frame(f, 0, 2, 60);
	expect(f, 0, 1, 1);
	send_frame(f, 1, 255, 1514);
	expect(f, 1, 1, 2);
	assert_int_equal(f->port[2].bytes, 1514);
	assert_int_equal(f->port[2].frame[1513], (uint8_t)1514);
	/* 0 and 1 were heard of. */
	send_frame(f, 2, 0, 100);
	expect(f, 2, 1, 2);
	send_frame(f, 2, 1, 100);
	expect(f, 2, 2, 2);
	send_frame(f, 0, 2, 100);
	expect(f, 2, 2, 3);
	/* One that is gone is not written to; its station may turn up elsewhere. */
	leave(f, 2);
	assert_int_equal(switch_peers(switch_of(f->port[0].net)), 1);
	send_frame(f, 0, 2, 100);
	expect(f, 2, 3, 3);
	join(f, 2, 0);
	assert_int_equal(switch_peers(switch_of(f->port[0].net)), 2);
	send_frame(f, 0, 2, 100);
	expect(f, 2, 4, 4);
}

static unsigned entries(struct fixture *f)
{
	char path[128];
	unsigned count = 0;

	snprintf(path, sizeof(path), "%s/lodge/switch-lan", f->directory);
	DIR *dir = opendir(path);
	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));)
		count += e->d_name[0] != '.';
	closedir(dir);
	return count;
}

/* A port whose process was killed leaves its socket behind: who joins removes it, and who sends to it. */
static void test_killed(void **state)
{
	struct fixture *f = *state;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

	join(f, 0, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/lodge/switch-lan/%s", f->directory,
		"0123456789abcdef");
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	join(f, 1, 0);
	assert_int_equal(switch_peers(switch_of(f->port[1].net)), 2);
	close(fd);
	assert_int_equal(entries(f), 3);
	join(f, 2, 0);
	assert_int_equal(entries(f), 2 + 1);
	assert_int_equal(switch_peers(switch_of(f->port[2].net)), 2);
	run(f);
	assert_int_equal(switch_peers(switch_of(f->port[1].net)), 2);
	/* And now without anybody joining. */
	fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	leave(f, 1);
	join(f, 1, 0);
	assert_int_equal(switch_peers(switch_of(f->port[1].net)), 3);
	close(fd);
	send_frame(f, 1, 255, 60);
	assert_int_equal(switch_peers(switch_of(f->port[1].net)), 2);
	assert_int_equal(entries(f), 3);
	expect(f, 1, 0, 1);
}

/* A large TCP frame: whole to who takes it, in segments to others. */
static void test_offloads(void **state)
{
	struct fixture *f = *state;
	static uint8_t frame[OFFLOAD_FRAME_MAX];
	struct net_offload o = {.flags = NET_NEEDS_CSUM,
		.gso_type = NET_GSO_TCP4,
		.gso_bytes = 1000,
		.csum_start = 34,
		.csum_offset = 16,
		.header_bytes = 9999};

	join(f, 0, NET_CSUM);
	join(f, 1, 0);
	join(f, 2, NET_CSUM | NET_TSO4);
	memset(frame, 7, sizeof(frame));
	store_be16(frame + 12, 0x0800);
	frame[14] = 0x45;
	store_be16(frame + 20, 0);
	frame[23] = 6;
	frame[46] = 0x50;
	send_offload(f, 0, 255, frame, 54 + 10500, &o);
	run(f);
	expect(f, 0, 11, 1);
	assert_int_equal(f->port[1].bytes, 54 + 500);
	assert_int_equal(f->port[1].offload.flags, 0);
	assert_int_equal(f->port[2].bytes, 54 + 10500);
	assert_int_equal(f->port[2].offload.gso_bytes, 1000);
	/* What the sender's guest says of the headers is not passed on. */
	assert_int_equal(f->port[2].offload.header_bytes, 54);
	/* The largest there is. */
	send_offload(f, 2, 255, frame, 65535 + 14, &o);
	run(f);
	assert_int_equal(f->port[1].frames, 11 + 66);
}

/* A receiver that takes nothing for a while loses nothing, up to the limits, and the order stays. */
static void test_pressure(void **state)
{
	struct fixture *f = *state;
	static uint8_t frame[OFFLOAD_FRAME_MAX];

	for (unsigned i = 0; i < 3; i++)
		join(f, i, 0);
	send_frame(f, 1, 255, 60);
	f->port[1].numbered = true;
	f->port[1].refuse = 5;
	for (uint32_t i = 0; i < 2000; i++) {
		store_le32(frame + 14, i);
		send_offload(f, 0, 1, frame, 1000, &(struct net_offload){0});
	}
	run(f);
	assert_int_equal(f->port[1].frames, 0);
	for (unsigned i = 0; i < 1000 && f->port[1].frames < 2000; i++) {
		f->port[1].net->ops->ready(f->port[1].net);
		run_ms(f, 1);
	}
	assert_int_equal(f->port[1].frames, 2000);
	/* Beyond the limit frames are dropped and the rest comes. */
	f->port[1].numbered = false;
	f->port[1].refuse = 1;
	for (uint32_t i = 0; i < 500; i++)
		send_offload(f, 0, 1, frame, 60000, &(struct net_offload){0});
	run(f);
	f->port[1].net->ops->ready(f->port[1].net);
	run_ms(f, 20);
	assert_in_range(f->port[1].frames, 2000 + 20, 2000 + 499);
}

static void test_hostile(void **state)
{
	struct fixture *f = *state;
	static uint8_t bytes[SWITCH_HEADER_BYTES + 200];
	struct switch_net *s;

	join(f, 0, 0);
	join(f, 1, 0);
	s = switch_of(f->port[0].net);
	memset(bytes, 0, sizeof(bytes));
	switch_input(s, bytes, sizeof(bytes)); /* no magic */
	store_le32(bytes, SWITCH_MAGIC);
	for (size_t size = 0; size < SWITCH_HEADER_BYTES + 14; size++)
		switch_input(s, bytes, size);
	bytes[12] = NET_NEEDS_CSUM;
	store_le16(bytes + 18, 200);
	switch_input(s, bytes, sizeof(bytes)); /* a sum behind the end */
	bytes[12] = 0;
	bytes[13] = NET_GSO_TCP4;
	switch_input(s, bytes, sizeof(bytes));
	expect(f, 0, 0, 0);
	bytes[13] = 0;
	switch_input(s, bytes, SWITCH_HEADER_BYTES + 14); /* a sender that nobody knows is heard */
	expect(f, 1, 0, 0);
}

static void test_names(void **state)
{
	struct fixture *f = *state;
	struct network_spec spec = {.kind = NETWORK_SWITCH, .name = "lan"};
	struct error err = {0};
	char path[128];
	struct net *net;

	assert_true(switch_name_valid("lan-1_x.y"));
	assert_false(switch_name_valid(""));
	assert_false(switch_name_valid(".lan"));
	assert_false(switch_name_valid("../lan"));
	assert_false(switch_name_valid("a/b"));
	assert_false(switch_name_valid("0123456789012345678901234567890123456789"));
	/* A directory that others may enter is not trusted. */
	snprintf(path, sizeof(path), "%s/lodge", f->directory);
	assert_int_equal(mkdir(path, 0755), 0);
	assert_int_equal(chmod(path, 0755), 0);
	assert_int_equal(switch_open(&spec, f->loop, &net, &err), -EPERM);
	assert_non_null(strstr(err.text, "nobody else"));
	assert_int_equal(chmod(path, 0700), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_learning, setup, teardown),
		cmocka_unit_test_setup_teardown(test_killed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_offloads, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pressure, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_names, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
