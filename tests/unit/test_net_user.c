/*
 * backend/net/user, with a guest that is a few frames: large pieces for who takes them, segments and fragments for who does
 * not, also in the middle of a connection; forwards; and that nothing is left open.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net/network.h"
#include "backend/net/offload.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/loop.h"

#define GUEST_IP  0x0a00020fu
#define ROUTER_IP 0x0a000202u
#define REPLY	  8000
#define STREAM	  300000

static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};

struct guest {
	struct loop *loop;
	struct loop_timer *timer;
	struct net *net;
	unsigned frames, large, fragments, segments_told;
	uint32_t next_sequence, our_sequence; /* TCP */
	bool connected;
	size_t came; /* bytes of payload in order */
	uint8_t frame[OFFLOAD_FRAME_MAX];
	uint16_t port, host_port;
};

static void stop(void *opaque)
{
	loop_stop(((struct guest *)opaque)->loop);
}

static void run_ms(struct guest *g, unsigned ms)
{
	loop_timer_arm(g->timer, clock_monotonic_ns() + ms * NS_PER_MS);
	loop_run(g->loop);
}

static void ethernet(uint8_t *f, uint16_t type)
{
	memset(f, 0xff, 6);
	memcpy(f + 6, mac, 6);
	store_be16(f + 12, type);
}

static void send_frame(struct guest *g, uint8_t *f, size_t bytes)
{
	struct iovec iov = {f, bytes};

	g->net->ops->send(g->net, &(struct net_offload){0}, &iov, 1);
}

static void send_ip(struct guest *g, uint8_t *f, size_t bytes, uint8_t protocol)
{
	struct frame_layout l;

	ethernet(f, 0x0800);
	f[14] = 0x45;
	store_be16(f + 16, (uint16_t)(bytes - 14));
	f[22] = 64;
	f[23] = protocol;
	store_be32(f + 26, GUEST_IP);
	store_be32(f + 30, ROUTER_IP);
	assert_true(offload_layout(f, bytes, false, &l));
	assert_true(offload_make_whole(f, bytes, &l));
	send_frame(g, f, bytes);
}

static void send_tcp(struct guest *g, uint8_t flags)
{
	uint8_t f[58] = {0};
	unsigned options = flags & 2 ? 4 : 0;

	store_be16(f + 34, g->port);
	store_be16(f + 36, g->host_port);
	store_be32(f + 38, g->our_sequence);
	store_be32(f + 42, g->next_sequence);
	f[46] = (uint8_t)((20 + options) / 4 << 4);
	f[47] = flags;
	store_be16(f + 48, 65535);
	memcpy(f + 54, "\x02\x04\x05\xb4", 4); /* a segment of 1460 */
	send_ip(g, f, 54 + options, 6);
}

static void answer_arp(struct guest *g)
{
	uint8_t f[42];

	if (load_be16(g->frame + 20) != 1 || load_be32(g->frame + 38) != GUEST_IP)
		return;
	memcpy(f, g->frame, 42);
	memcpy(f, g->frame + 6, 6);
	memcpy(f + 6, mac, 6);
	store_be16(f + 20, 2);
	memcpy(f + 22, mac, 6);
	store_be32(f + 28, GUEST_IP);
	memcpy(f + 32, g->frame + 22, 10);
	send_frame(g, f, 42);
}

static void tcp_came(struct guest *g, size_t bytes)
{
	const uint8_t *tcp = g->frame + 34;
	size_t header = 34 + (tcp[12] >> 4) * 4u, payload = bytes - header;
	uint32_t sequence = load_be32(tcp + 4);

	if (load_be16(tcp + 2) != g->port)
		return;
	if (tcp[13] & 2) {
		g->next_sequence = sequence + 1;
		g->our_sequence++;
		g->connected = true;
	} else if (payload && sequence == g->next_sequence) {
		for (size_t i = 0; i < payload; i++)
			assert_int_equal(g->frame[header + i], (uint8_t)((g->came + i) * 31 >> 4));
		g->came += payload;
		g->next_sequence += (uint32_t)payload;
	}
	send_tcp(g, 0x10);
}

static bool receive(void *opaque, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	struct guest *g = opaque;
	size_t bytes = offload_gather(g->frame, sizeof(g->frame), iov, iov_count, 0);

	assert_true(net_offload_check(offload, bytes));
	g->frames++;
	g->large += bytes > 1514;
	g->segments_told += offload->gso_type != NET_GSO_NONE;
	if (offload->gso_type != NET_GSO_NONE)
		assert_int_equal(offload->gso_bytes, 1460);
	if (load_be16(g->frame + 12) == 0x0806) {
		answer_arp(g);
	} else if (load_be16(g->frame + 12) == 0x0800) {
		g->fragments += (load_be16(g->frame + 20) & 0x3fff) != 0;
		if (g->frame[23] == 6)
			tcp_came(g, bytes);
		else if (g->frame[23] == 17 && !(load_be16(g->frame + 20) & 0x1fff))
			g->came = load_be16(g->frame + 38) - 8u;
	}
	return true;
}

static void attach(struct guest *g, unsigned takes)
{
	struct net_peer peer = {.receive = receive, .opaque = g};

	g->net->ops->attach(g->net, &peer, takes);
}

static int setup(void **state)
{
	struct guest *g = calloc(1, sizeof(*g));
	struct network_spec spec = {.kind = NETWORK_USER};
	struct error err;

	assert_int_equal(loop_create(&g->loop), 0);
	g->timer = loop_timer_create(g->loop, stop, g);
	assert_int_equal(network_open(&spec, g->loop, &g->net, &err), 0);
	g->port = 4000;
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	struct guest *g = *state;

	net_close(g->net);
	loop_free(g->loop);
	free(g);
	return 0;
}

/* A server's socket on the host's loopback. */
static int serve(int kind, uint16_t *ret_port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	int fd = socket(AF_INET, kind, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
	if (kind == SOCK_STREAM)
		assert_int_equal(listen(fd, 5), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
	*ret_port = ntohs(address.sin_port);
	return fd;
}

static void udp_round(struct guest *g, int fd)
{
	static uint8_t reply[REPLY];
	struct sockaddr_in from;
	socklen_t size = sizeof(from);
	uint8_t f[60] = {0};

	store_be16(f + 34, 5000);
	store_be16(f + 36, g->host_port);
	g->came = 0;
	send_ip(g, f, sizeof(f), 17);
	assert_int_equal(recvfrom(fd, f, sizeof(f), 0, (struct sockaddr *)&from, &size), 60 - 42);
	assert_int_equal(
		sendto(fd, reply, sizeof(reply), 0, (struct sockaddr *)&from, size), REPLY);
	for (unsigned i = 0; i < 300 && !g->came; i++)
		run_ms(g, 10);
	assert_int_equal(g->came, REPLY);
}

/* A datagram larger than the MTU: whole for who has room, in fragments for who does not. */
static void test_datagrams(void **state)
{
	struct guest *g = *state;
	int fd = serve(SOCK_DGRAM, &g->host_port);

	attach(g, NET_CSUM | NET_TSO4 | NET_TSO6);
	udp_round(g, fd);
	assert_int_equal(g->fragments, 0);
	assert_int_equal(g->large, 1);
	attach(g, 0);
	g->large = 0;
	udp_round(g, fd);
	run_ms(g, 20);
	assert_int_equal(g->large, 0);
	assert_int_equal(g->fragments, 6);
	close(fd);
}

static void stream(struct guest *g, int fd, size_t upto)
{
	static uint8_t bytes[STREAM];
	static size_t sent;

	if (g->came == 0)
		sent = 0;
	for (size_t i = 0; i < STREAM; i++)
		bytes[i] = (uint8_t)(i * 31 >> 4);
	for (unsigned i = 0; i < 2000 && g->came < upto; i++) {
		ssize_t part = send(fd, bytes + sent, upto - sent, MSG_DONTWAIT);
		sent += part > 0 ? (size_t)part : 0;
		run_ms(g, 2);
	}
	assert_int_equal(g->came, upto);
}

static int connect_tcp(struct guest *g, int server)
{
	g->came = 0;
	g->connected = false;
	g->our_sequence = 77;
	g->next_sequence = 0;
	g->port++;
	send_tcp(g, 2);
	for (unsigned i = 0; i < 300 && !g->connected; i++)
		run_ms(g, 10);
	assert_true(g->connected);
	return accept(server, NULL, NULL);
}

/* A stream into the guest: large pieces that stand for segments, or segments; and when the guest is another one, that
 * takes less, in the middle. */
static void test_stream(void **state)
{
	struct guest *g = *state;
	int server = serve(SOCK_STREAM, &g->host_port);

	attach(g, NET_CSUM | NET_TSO4 | NET_TSO6);
	int fd = connect_tcp(g, server);
	stream(g, fd, STREAM / 2);
	assert_true(g->large >= 3 && g->segments_told == g->large);
	attach(g, 0);
	g->large = g->segments_told = 0;
	stream(g, fd, STREAM);
	assert_int_equal(g->large, 0);
	close(fd);
	/* One that never took more has segments from the start. */
	g->frames = 0;
	fd = connect_tcp(g, server);
	stream(g, fd, STREAM);
	assert_int_equal(g->large + g->segments_told, 0);
	assert_true(g->frames >= STREAM / 1460);
	close(fd);
	close(server);
}

/* What the guest does not take waits, and comes when it does. */
static bool refuse(void *opaque, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	return false;
}

static void test_no_buffers(void **state)
{
	struct guest *g = *state;
	struct net_peer none = {.receive = refuse, .opaque = g};
	int server = serve(SOCK_STREAM, &g->host_port);

	attach(g, NET_CSUM | NET_TSO4);
	int fd = connect_tcp(g, server);
	g->net->ops->attach(g->net, &none, NET_CSUM | NET_TSO4);
	assert_true(send(fd, "\0\1\3\5", 4, 0) == 4);
	run_ms(g, 50);
	assert_int_equal(g->came, 0);
	attach(g, NET_CSUM | NET_TSO4); /* forgets what waited: TCP sends it again */
	for (unsigned i = 0; i < 500 && g->came < 4; i++)
		run_ms(g, 10);
	assert_int_equal(g->came, 4);
	close(fd);
	close(server);
}

static unsigned open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

static void test_forwards(void **state)
{
	struct network_spec spec = {.kind = NETWORK_USER, .forward_count = 2};
	struct error err = {0};
	struct loop *loop;
	struct net *net;
	uint16_t taken, udp;
	int server = serve(SOCK_STREAM, &taken), other = serve(SOCK_DGRAM, &udp);
	unsigned before = open_files();
	char who[128];
	(void)state;

	close(other);
	spec.forward[0] = (struct network_forward){.udp = true,
		.host.s_addr = htonl(INADDR_LOOPBACK),
		.host_port = udp,
		.guest_port = 53};
	spec.forward[1] = (struct network_forward){
		.host.s_addr = htonl(INADDR_LOOPBACK), .host_port = taken, .guest_port = 80};
	assert_int_equal(loop_create(&loop), 0);
	assert_int_equal(network_open(&spec, loop, &net, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, "test_net_user (process"));
	assert_true(port_owner(false, taken, who, sizeof(who)));
	close(server);
	assert_false(port_owner(false, taken, who, sizeof(who)));
	assert_int_equal(network_open(&spec, loop, &net, &err), 0);
	assert_true(port_owner(false, taken, who, sizeof(who)));
	assert_true(port_owner(true, udp, who, sizeof(who)));
	net_close(net);
	loop_free(loop);
	assert_int_equal(open_files(), before - 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_datagrams, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stream, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_buffers, setup, teardown),
		cmocka_unit_test(test_forwards),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
