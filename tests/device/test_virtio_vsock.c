/*
 * virtio vsock: connections from either side, credit, half-closed and reset connections, and packets that no driver
 * would send. The host's side is socket pairs.
 */
#include "tests/device/virtio_rig.h"

#include <errno.h>
#include <signal.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "device/virtio/vsock.h"
#include "device/vsock.h"

#define RX     0
#define TX     1
#define CID    42
#define HEADER 44

enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };
enum { SHUT_RCV = 1, SHUT_SEND = 2, SHUT_BOTH = 3 };

struct fixture {
	struct virtio_rig rig;
	struct vsock_host host;
	struct vsock_peer peer;
	struct virtio_vsock *vsock;
	int far[2000]; /* our ends of what the guest opened */
	unsigned opened, accepted;
	uint32_t accepted_port;
	gpa_t rx_gpa[VIRTIO_QUEUE_SIZE_MAX]; /* by id */
	uint32_t rx_bytes;
	unsigned refused;
	void (*refusing)(struct fixture *f); /* or NULL */
};

static void host_attach(struct vsock_host *host, const struct vsock_peer *peer)
{
	struct fixture *f = container_of(host, struct fixture, host);

	f->peer = peer ? *peer : (struct vsock_peer){0};
}

static int host_open(struct vsock_host *host, uint32_t port)
{
	struct fixture *f = container_of(host, struct fixture, host);
	int fd[2];

	if (port >= 5000) {
		f->refused++;
		if (f->refusing)
			f->refusing(f);
		return -ECONNREFUSED;
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd) < 0)
		return -errno;
	f->far[f->opened++] = fd[0];
	return fd[1];
}

static void host_accepted(struct vsock_host *host, int fd, uint32_t host_port)
{
	struct fixture *f = container_of(host, struct fixture, host);

	f->accepted++;
	f->accepted_port = host_port;
	assert_int_equal(write(fd, "OK\n", 3), 3);
}

static const struct vsock_host_ops host_ops = {
	.attach = host_attach, .open = host_open, .accepted = host_accepted};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	virtio_rig_init(&f->rig);
	f->host.ops = &host_ops;
	f->rx_bytes = 4096 + HEADER;
	const struct virtio_vsock_config config = {.wiring = {.memory = f->rig.memory,
							   .lock = &f->rig.lock,
							   .loop = f->rig.loop,
							   .name = "vsock"},
		.cid = CID,
		.host = &f->host};
	assert_int_equal(virtio_vsock_create(&config, &f->vsock), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_vsock_free(f->vsock);
	virtio_rig_done(&f->rig);
	for (unsigned i = 0; i < f->opened; i++)
		close(f->far[i]);
	free(f);
	return 0;
}

/* ---- the driver ---- */

struct packet {
	uint32_t host_port, guest_port, bytes, flags, buffer, forwarded;
	uint16_t op;
	const uint8_t *data;
};

static void give(struct fixture *f, unsigned count)
{
	while (count--) {
		struct rig_part part = {.gpa = virtio_rig_alloc(&f->rig, f->rx_bytes),
			.bytes = f->rx_bytes,
			.in = true};
		int id = virtio_rig_add(&f->rig, RX, &part, 1);

		assert_true(id >= 0);
		f->rx_gpa[id] = part.gpa;
	}
	virtio_rig_kick(&f->rig, RX);
}

static void begin(struct fixture *f, unsigned buffers)
{
	virtio_rig_start(&f->rig, virtio_vsock_device(f->vsock), 0);
	assert_int_equal(virtio_config_read(f->rig.device, 0, 8), CID);
	give(f, buffers);
}

static void header(uint8_t *bytes, const struct packet *p)
{
	store_le64(bytes, CID);
	store_le64(bytes + 8, 2);
	store_le32(bytes + 16, p->guest_port);
	store_le32(bytes + 20, p->host_port);
	store_le32(bytes + 24, p->bytes);
	store_le16(bytes + 28, 1);
	store_le16(bytes + 30, p->op);
	store_le32(bytes + 32, p->flags);
	store_le32(bytes + 36, p->buffer ? p->buffer : 65536);
	store_le32(bytes + 40, p->forwarded);
}

static void send_raw(struct fixture *f, const uint8_t *bytes, uint32_t size)
{
	assert_int_equal(virtio_rig_request(&f->rig, TX, bytes, size, NULL, 0), 0);
}

static void send_packet(struct fixture *f, const struct packet *p)
{
	uint8_t bytes[HEADER + 65536];

	header(bytes, p);
	if (p->bytes)
		memcpy(bytes + HEADER, p->data, p->bytes);
	send_raw(f, bytes, HEADER + p->bytes);
}

static void say(
	struct fixture *f, uint32_t host_port, uint32_t guest_port, uint16_t op, uint32_t flags)
{
	send_packet(f, &(struct packet){.host_port = host_port,
			       .guest_port = guest_port,
			       .op = op,
			       .flags = flags});
}

/* The next packet to the guest; false: there is none. The buffer is given again. */
static bool receive(struct fixture *f, struct packet *ret)
{
	uint32_t written;

	virtio_rig_run(&f->rig);
	int id = virtio_rig_used(&f->rig, RX, &written);
	if (id < 0)
		return false;
	const uint8_t *bytes = virtio_rig_at(&f->rig, f->rx_gpa[id]);
	assert_true(written >= HEADER);
	assert_int_equal(load_le64(bytes), 2);
	assert_int_equal(load_le64(bytes + 8), CID);
	assert_int_equal(load_le16(bytes + 28), 1);
	*ret = (struct packet){.host_port = load_le32(bytes + 16),
		.guest_port = load_le32(bytes + 20),
		.bytes = load_le32(bytes + 24),
		.op = load_le16(bytes + 30),
		.flags = load_le32(bytes + 32),
		.buffer = load_le32(bytes + 36),
		.forwarded = load_le32(bytes + 40),
		.data = bytes + HEADER};
	assert_int_equal(written, HEADER + ret->bytes);
	return true;
}

static struct packet expect(struct fixture *f, uint32_t host_port, uint32_t guest_port, uint16_t op)
{
	struct packet p;

	assert_true(receive(f, &p));
	give(f, 1);
	assert_int_equal(p.op, op);
	assert_int_equal(p.host_port, host_port);
	assert_int_equal(p.guest_port, guest_port);
	return p;
}

static void expect_silence(struct fixture *f)
{
	struct packet p;

	assert_false(receive(f, &p));
}

/* A connection from the guest; returns our end. */
static int open_one(struct fixture *f, uint32_t host_port, uint32_t guest_port, uint32_t buffer)
{
	send_packet(f, &(struct packet){.host_port = host_port,
			       .guest_port = guest_port,
			       .op = REQUEST,
			       .buffer = buffer});
	struct packet p = expect(f, host_port, guest_port, RESPONSE);
	assert_int_equal(p.buffer, VSOCK_BUFFER_BYTES);
	return f->far[f->opened - 1];
}

static void send_bytes(struct fixture *f, uint32_t host_port, uint32_t guest_port, const void *data,
	uint32_t bytes)
{
	send_packet(f, &(struct packet){.host_port = host_port,
			       .guest_port = guest_port,
			       .op = RW,
			       .bytes = bytes,
			       .data = data});
}

static void assert_reads(int fd, const char *text)
{
	char bytes[100];
	const ssize_t got = read(fd, bytes, sizeof(bytes));

	assert_int_equal(got, strlen(text));
	assert_memory_equal(bytes, text, strlen(text));
}

static unsigned connections(struct fixture *f)
{
	return virtio_vsock_connections(f->vsock);
}

/* ---- tests ---- */

static void test_from_guest(void **state)
{
	struct fixture *f = *state;

	begin(f, 16);
	int fd = open_one(f, 1234, 5678, 0);
	send_bytes(f, 1234, 5678, "hello", 5);
	assert_reads(fd, "hello");
	assert_int_equal(write(fd, "answer", 6), 6);
	struct packet p = expect(f, 1234, 5678, RW);
	assert_int_equal(p.bytes, 6);
	assert_memory_equal(p.data, "answer", 6);
	assert_int_equal(p.forwarded, 5);
	expect_silence(f);
	/* Nobody at that port; the same connection twice. */
	say(f, 5000, 1, REQUEST, 0);
	expect(f, 5000, 1, RST);
	say(f, 1234, 5678, REQUEST, 0);
	expect(f, 1234, 5678, RST);
	assert_int_equal(connections(f), 0);
	assert_int_equal(read(fd, &p, 1), 0);
}

static int connect_from_host(struct fixture *f, uint32_t port)
{
	int fd[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
	f->peer.connect(f->peer.opaque, fd[1], port);
	return fd[0];
}

static bool is_closed(int fd)
{
	char byte;

	return read(fd, &byte, 1) == 0;
}

static void test_from_host(void **state)
{
	struct fixture *f = *state;
	struct packet p;

	/* No driver yet. */
	int fd = connect_from_host(f, 80);
	assert_true(is_closed(fd));
	close(fd);
	begin(f, 16);
	fd = connect_from_host(f, 80);
	assert_true(receive(f, &p));
	assert_int_equal(p.op, REQUEST);
	assert_int_equal(p.guest_port, 80);
	const uint32_t host_port = p.host_port;
	/* What is written before the answer waits for it. */
	assert_int_equal(write(fd, "early", 5), 5);
	expect_silence(f);
	assert_int_equal(f->accepted, 0);
	send_packet(f, &(struct packet){.host_port = host_port, .guest_port = 80, .op = RESPONSE});
	assert_int_equal(f->accepted, 1);
	assert_int_equal(f->accepted_port, host_port);
	p = expect(f, host_port, 80, RW);
	assert_memory_equal(p.data, "early", 5);
	send_bytes(f, host_port, 80, "page", 4);
	assert_reads(fd, "OK\npage");
	/* A second one has a port of its own; the guest refuses it. */
	int other = connect_from_host(f, 80);
	assert_true(receive(f, &p));
	assert_true(p.op == REQUEST && p.host_port != host_port);
	say(f, p.host_port, 80, RST, 0);
	assert_true(is_closed(other));
	assert_int_equal(connections(f), 1);
	close(other);
	/* Who went away before the answer is still given it, and then hung up on. */
	other = connect_from_host(f, 81);
	assert_true(receive(f, &p));
	close(other);
	virtio_rig_run(&f->rig);
	signal(SIGPIPE, SIG_IGN);
	close(fd);
	expect(f, host_port, 80, SHUTDOWN);
}

static void test_credit_of_guest(void **state)
{
	struct fixture *f = *state;
	static const uint8_t bytes[3000];
	uint32_t got = 0;
	struct packet p;

	f->rx_bytes = 300 + HEADER;
	begin(f, 64);
	int fd = open_one(f, 1, 2, 1000);
	assert_int_equal(write(fd, bytes, 3000), 3000);
	while (receive(f, &p) && p.op == RW) {
		assert_true(p.bytes <= 300);
		got += p.bytes;
		give(f, 1);
	}
	assert_int_equal(got, 1000);
	assert_int_equal(p.op, CREDIT_REQUEST);
	expect_silence(f);
	send_packet(f, &(struct packet){.host_port = 1,
			       .guest_port = 2,
			       .op = CREDIT_UPDATE,
			       .buffer = 1000,
			       .forwarded = 700});
	while (receive(f, &p) && p.op == RW)
		got += p.bytes;
	assert_int_equal(got, 1700);
	/* Nonsense: more than was ever sent. Nothing, rather than everything. */
	send_packet(f, &(struct packet){.host_port = 1,
			       .guest_port = 2,
			       .op = CREDIT_UPDATE,
			       .buffer = 1000,
			       .forwarded = 70000});
	expect_silence(f);
	send_packet(f, &(struct packet){.host_port = 1,
			       .guest_port = 2,
			       .op = CREDIT_UPDATE,
			       .buffer = 0xffffffff,
			       .forwarded = 1700});
	while (receive(f, &p))
		got += p.op == RW ? p.bytes : 0;
	assert_int_equal(got, 3000);
}

static void test_no_buffers(void **state)
{
	struct fixture *f = *state;
	uint32_t got = 0;
	struct packet p;

	begin(f, 0);
	say(f, 7, 8, REQUEST, 0);
	expect_silence(f);
	int fd = f->far[0];
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(write(fd, "0123456789", 10), 10);
	expect_silence(f);
	f->rx_bytes = HEADER + 7;
	give(f, 1);
	assert_true(receive(f, &p) && p.op == RESPONSE);
	for (unsigned i = 0; i < 15; i++) {
		give(f, 1);
		assert_true(receive(f, &p) && p.op == RW);
		for (unsigned n = 0; n < p.bytes; n++)
			assert_int_equal(p.data[n], '0' + (got + n) % 10);
		got += p.bytes;
	}
	assert_int_equal(got, 100);
	give(f, 1);
	expect_silence(f);
}

/* What nobody reads on the host is kept up to the credit, and a guest that sends more is cut off. */
static void test_credit_of_host(void **state)
{
	struct fixture *f = *state;
	static uint8_t block[32768];
	uint32_t sent = 0;
	struct packet p;
	int small = 1;

	begin(f, 16);
	int fd = open_one(f, 1, 2, 0);
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	uint32_t forwarded = 0;
	while (sent - forwarded + sizeof(block) <= VSOCK_BUFFER_BYTES) {
		for (unsigned i = 0; i < sizeof(block); i++)
			block[i] = (uint8_t)((sent + i) * 7);
		send_bytes(f, 1, 2, block, sizeof(block));
		sent += sizeof(block);
		while (receive(f, &p)) {
			assert_int_equal(p.op, CREDIT_UPDATE);
			forwarded = p.forwarded;
			give(f, 1);
		}
	}
	assert_true(sent >= VSOCK_BUFFER_BYTES);
	/* It is all there, in order, and the guest hears of the room. */
	uint32_t got = 0;
	while (got < sent) {
		virtio_rig_run(&f->rig);
		const ssize_t n = read(fd, block, 1000);
		assert_true(n > 0);
		for (ssize_t i = 0; i < n; i++)
			assert_int_equal(block[i], (uint8_t)((got + i) * 7));
		got += (uint32_t)n;
		while (receive(f, &p)) {
			forwarded = p.forwarded;
			give(f, 1);
		}
	}
	assert_true(sent - forwarded < VSOCK_BUFFER_BYTES / 2);
	for (unsigned i = 0; i < 20 && connections(f); i++)
		send_bytes(f, 1, 2, block, sizeof(block));
	while (receive(f, &p) && p.op != RST)
		give(f, 1);
	assert_int_equal(p.op, RST);
	assert_int_equal(connections(f), 0);
}

static void test_half_close(void **state)
{
	struct fixture *f = *state;
	struct packet p;

	begin(f, 16);
	/* The guest ends first. */
	int fd = open_one(f, 1, 2, 0);
	send_bytes(f, 1, 2, "last", 4);
	say(f, 1, 2, SHUTDOWN, SHUT_SEND);
	assert_reads(fd, "last");
	assert_true(is_closed(fd));
	assert_int_equal(write(fd, "answer", 6), 6);
	p = expect(f, 1, 2, RW);
	assert_memory_equal(p.data, "answer", 6);
	shutdown(fd, SHUT_WR);
	p = expect(f, 1, 2, SHUTDOWN);
	assert_int_equal(p.flags, SHUT_BOTH); /* ours and its own: nothing is left of the socket */
	say(f, 1, 2, RST, 0);
	assert_int_equal(connections(f), 0);
	/* The host ends first, with bytes under way. */
	fd = open_one(f, 1, 3, 0);
	assert_int_equal(write(fd, "last", 4), 4);
	shutdown(fd, SHUT_WR);
	p = expect(f, 1, 3, RW);
	assert_memory_equal(p.data, "last", 4);
	p = expect(f, 1, 3, SHUTDOWN);
	assert_int_equal(p.flags, SHUT_SEND);
	expect_silence(f);
	send_bytes(f, 1, 3, "still", 5);
	assert_reads(fd, "still");
	say(f, 1, 3, SHUTDOWN, SHUT_BOTH);
	expect(f, 1, 3, RST);
	assert_true(is_closed(fd));
	assert_int_equal(connections(f), 0);
	/* The guest sends after it said that it would not. */
	fd = open_one(f, 1, 4, 0);
	say(f, 1, 4, SHUTDOWN, SHUT_SEND);
	send_bytes(f, 1, 4, "more", 4);
	expect(f, 1, 4, RST);
	/* It wants no more: the host's writers hear of it. */
	fd = open_one(f, 1, 5, 0);
	say(f, 1, 5, SHUTDOWN, SHUT_RCV);
	assert_true(send(fd, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	send_bytes(f, 1, 5, "one way", 7);
	assert_reads(fd, "one way");
}

/* The guest is done, its bytes are not: they arrive, however late, and the ports are free at once. */
static void test_close_with_bytes(void **state)
{
	struct fixture *f = *state;
	static uint8_t block[65536];
	uint32_t sent = 0, got = 0;

	begin(f, 16);
	int fd = open_one(f, 1, 2, 0);
	for (; sent < 6 * sizeof(block) && connections(f); sent += sizeof(block)) {
		struct packet p;

		memset(block, (int)(sent / sizeof(block)), sizeof(block));
		send_bytes(f, 1, 2, block, sizeof(block));
		if (receive(f, &p)) {
			assert_int_equal(p.op, CREDIT_UPDATE);
			give(f, 1);
		} else {
			sent += sizeof(block);
			break;
		}
	}
	say(f, 1, 2, SHUTDOWN, SHUT_BOTH);
	expect(f, 1, 2, RST);
	assert_int_equal(connections(f), 1);
	int again = open_one(f, 1, 2, 0);
	send_bytes(f, 1, 2, "new", 3);
	assert_reads(again, "new");
	while (got < sent) {
		virtio_rig_run(&f->rig);
		const ssize_t n = read(fd, block, 7000);
		assert_true(n > 0);
		for (ssize_t i = 0; i < n; i++)
			assert_int_equal(block[i], (got + (uint32_t)i) / sizeof(block));
		got += (uint32_t)n;
	}
	virtio_rig_run(&f->rig);
	assert_true(is_closed(fd));
	assert_int_equal(connections(f), 1);
}

static void test_host_closes(void **state)
{
	struct fixture *f = *state;
	struct packet p;

	f->rx_bytes = HEADER + 5;
	begin(f, 16);
	int fd = open_one(f, 1, 2, 8);
	assert_int_equal(write(fd, "0123456789", 10), 10);
	close(fd);
	f->far[0] = -1;
	p = expect(f, 1, 2, RW);
	assert_memory_equal(p.data, "01234", 5);
	p = expect(f, 1, 2, RW);
	assert_memory_equal(p.data, "567", 3);
	expect(f, 1, 2, CREDIT_REQUEST);
	expect_silence(f);
	send_packet(f, &(struct packet){.host_port = 1,
			       .guest_port = 2,
			       .op = CREDIT_UPDATE,
			       .buffer = 8,
			       .forwarded = 8});
	p = expect(f, 1, 2, RW);
	assert_memory_equal(p.data, "89", 2);
	p = expect(f, 1, 2, SHUTDOWN);
	assert_int_equal(p.flags, SHUT_BOTH);
	send_bytes(f, 1, 2, "to nobody", 9);
	expect(f, 1, 2, RST);
	assert_int_equal(connections(f), 0);
}

static void test_reset(void **state)
{
	struct fixture *f = *state;

	begin(f, 16);
	int fd = open_one(f, 1, 2, 0), other = open_one(f, 1, 3, 0);
	int third = connect_from_host(f, 80);
	assert_int_equal(connections(f), 3);
	begin(f, 16);
	assert_int_equal(connections(f), 0);
	assert_true(is_closed(fd) && is_closed(other) && is_closed(third));
	close(third);
	expect_silence(f);
	fd = open_one(f, 1, 2, 0);
	send_bytes(f, 1, 2, "new", 3);
	assert_reads(fd, "new");
}

static void test_hostile(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[HEADER + 10] = {0};
	struct packet p = {.host_port = 1, .guest_port = 2, .op = REQUEST};

	begin(f, 16);
	/* Addresses of others, and packets that are none. */
	header(bytes, &p);
	store_le64(bytes, CID + 1);
	send_raw(f, bytes, HEADER);
	header(bytes, &p);
	store_le64(bytes + 8, 3);
	send_raw(f, bytes, HEADER);
	send_raw(f, bytes, HEADER - 1);
	send_raw(f, bytes, 1);
	assert_int_equal(virtio_rig_request(&f->rig, TX, NULL, 0, bytes, 10), 0);
	p.bytes = 11;
	p.op = RW;
	header(bytes, &p);
	send_raw(f, bytes, sizeof(bytes));
	p.bytes = UINT32_MAX;
	header(bytes, &p);
	send_raw(f, bytes, sizeof(bytes));
	expect_silence(f);
	assert_int_equal(f->opened, 0);
	/* A type and operations that there are not; a RST is never answered. */
	p.bytes = 0;
	p.op = REQUEST;
	header(bytes, &p);
	store_le16(bytes + 28, 2);
	send_raw(f, bytes, HEADER);
	expect(f, 1, 2, RST);
	say(f, 1, 2, RST, 0);
	expect_silence(f);
	static const uint16_t ops[] = {
		0, RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 8, 0xffff};
	for (unsigned i = 0; i < ARRAY_SIZE(ops); i++) {
		say(f, 1, 2, ops[i], 0);
		expect(f, 1, 2, RST);
	}
	open_one(f, 1, 2, 0);
	say(f, 1, 2, RESPONSE, 0);
	expect(f, 1, 2, RST);
	open_one(f, 1, 2, 0);
	say(f, 1, 2, 8, 0);
	expect(f, 1, 2, RST);
	open_one(f, 1, 2, 0);
	say(f, 1, 2, SHUTDOWN, 0); /* of neither side */
	say(f, 1, 2, SHUTDOWN, 0xfffffffc);
	expect_silence(f);
	/* The host asks, the guest answers with something else. */
	int fd = connect_from_host(f, 80);
	struct packet asked;
	assert_true(receive(f, &asked));
	send_bytes(f, asked.host_port, 80, "x", 1);
	expect(f, asked.host_port, 80, RST);
	assert_true(is_closed(fd));
	close(fd);
}

/* No buffers to receive into, and packet after packet that wants an answer. */
static void test_flood(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[HEADER];
	unsigned added = 0, answered = 0;
	uint32_t written;
	struct packet p;

	begin(f, 0);
	header(bytes, &(struct packet){.host_port = 9000, .guest_port = 1, .op = RW});
	gpa_t gpa = virtio_rig_alloc(&f->rig, HEADER);
	memcpy(virtio_rig_at(&f->rig, gpa), bytes, HEADER);
	for (unsigned i = 0; i < 2000; i++) {
		const struct rig_part part = {.gpa = gpa, .bytes = HEADER};

		added += virtio_rig_add(&f->rig, TX, &part, 1) >= 0;
		virtio_rig_kick(&f->rig, TX);
		virtio_rig_run(&f->rig);
		while (virtio_rig_used(&f->rig, TX, &written) >= 0)
			;
	}
	assert_true(added >= 256 && added < 2000);
	for (unsigned i = 0; i < 2000 && answered < added; i++) {
		give(f, 1);
		assert_true(receive(f, &p) && p.op == RST);
		answered++;
	}
	assert_int_equal(answered, added);
}

static void add_requests(struct fixture *f, unsigned count)
{
	const struct rig_part part = {.gpa = virtio_rig_alloc(&f->rig, HEADER), .bytes = HEADER};

	header(virtio_rig_at(&f->rig, part.gpa),
		&(struct packet){.host_port = 9000, .guest_port = 1, .op = REQUEST});
	while (count--)
		assert_true(virtio_rig_add(&f->rig, TX, &part, 1) >= 0);
	virtio_rig_kick(&f->rig, TX);
}

static void add_more(struct fixture *f)
{
	uint32_t written;

	if (f->refused != 200)
		return;
	while (virtio_rig_used(&f->rig, TX, &written) >= 0)
		;
	add_requests(f, 60);
}

/* ... of a driver that adds some while others are looked at, when nobody wants a kick. */
static void test_flood_meanwhile(void **state)
{
	struct fixture *f = *state;
	unsigned answered = 0;
	struct packet p;

	f->rig.event_index = true;
	f->refusing = add_more;
	begin(f, 256);
	expect_silence(f);
	add_requests(f, 256);
	while (receive(f, &p)) {
		assert_int_equal(p.op, RST);
		give(f, 1);
		answered++;
	}
	assert_int_equal(answered, 256 + 60);
}

static void test_many(void **state)
{
	struct fixture *f = *state;

	begin(f, 16);
	for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
		struct packet p = {.host_port = 1, .guest_port = 1000 + i, .op = REQUEST};

		send_packet(f, &p);
		assert_true(receive(f, &p));
		give(f, 1);
		/* Who may have few descriptors can't see the limit. */
		if (p.op != RESPONSE) {
			print_message("NOT CHECKED: the limit of connections (ulimit -n)\n");
			return;
		}
	}
	say(f, 1, 999, REQUEST, 0);
	expect(f, 1, 999, RST);
	assert_int_equal(connections(f), VSOCK_CONNECTIONS_MAX);
	say(f, 1, 1500, RST, 0);
	open_one(f, 1, 999, 0);
	for (unsigned i = 0; i < 10; i++) {
		assert_int_equal(write(f->far[i], &i, sizeof(i)), sizeof(i));
		struct packet p = expect(f, 1, 1000 + i, RW);
		assert_memory_equal(p.data, &i, sizeof(i));
	}
}

static void test_small_buffer(void **state)
{
	struct fixture *f = *state;

	f->rx_bytes = HEADER;
	begin(f, 1);
	say(f, 1, 2, REQUEST, 0);
	virtio_rig_run(&f->rig);
	assert_true(virtio_rig_status(&f->rig) & VIRTIO_STATUS_NEEDS_RESET);
	begin(f, 0);
	assert_int_equal(connections(f), 0);
}

/* Both ways at once, in pieces of all sizes: nothing is lost, doubled or changed. */
static void bulk(struct fixture *f, bool packed, bool event_index, bool indirect, uint16_t size)
{
	enum { TOTAL = 600000 };
	uint32_t out = 0, back = 0, in = 0, put = 0, seed = size, room = VSOCK_BUFFER_BYTES,
		 seen = 0;
	static uint8_t block[70000];
	struct packet p;

	f->rig.packed = packed;
	f->rig.event_index = event_index;
	f->rig.indirect = indirect;
	f->rig.size = size;
	begin(f, size - 2);
	int fd = open_one(f, 1, 2, 0);
	while (out < TOTAL || back < TOTAL) {
		const uint32_t bytes = MIN(fake_random(&seed) % 9000 + 1, (uint32_t)TOTAL - in);
		if (bytes && bytes <= room - (in - seen)) {
			for (uint32_t i = 0; i < bytes; i++)
				block[i] = (uint8_t)((in + i) * 13);
			p = (struct packet){.host_port = 1,
				.guest_port = 2,
				.op = RW,
				.bytes = bytes,
				.data = block,
				.forwarded = back};
			send_packet(f, &p);
			in += bytes;
		} else {
			send_packet(f, &(struct packet){.host_port = 1,
					       .guest_port = 2,
					       .op = CREDIT_UPDATE,
					       .forwarded = back});
		}
		const ssize_t got = read(fd, block, 1 + fake_random(&seed) % 20000);
		for (ssize_t i = 0; i < got; i++)
			assert_int_equal(block[i], (uint8_t)((out + i) * 13));
		out += got > 0 ? (uint32_t)got : 0;
		const uint32_t more = MIN(fake_random(&seed) % 20000 + 1, (uint32_t)TOTAL - put);
		for (uint32_t i = 0; i < more; i++)
			block[i] = (uint8_t)((put + i) * 17);
		const ssize_t wrote = more ? write(fd, block, more) : 0;
		put += wrote > 0 ? (uint32_t)wrote : 0;
		while (receive(f, &p)) {
			assert_true(p.op == RW || p.op == CREDIT_UPDATE || p.op == CREDIT_REQUEST);
			for (uint32_t i = 0; i < p.bytes; i++)
				assert_int_equal(p.data[i], (uint8_t)((back + i) * 17));
			back += p.bytes;
			seen = p.forwarded;
			give(f, 1);
		}
	}
	assert_true(out == TOTAL && back == TOTAL);
}

static void test_bulk(void **state)
{
	bulk(*state, false, false, false, 16);
	bulk(*state, false, true, true, 64);
	bulk(*state, true, true, false, 128);
}

static void test_create_refuses(void **state)
{
	struct fixture *f = *state;
	struct virtio_vsock *vsock = NULL;
	static const uint32_t cids[] = {0, 1, 2, 0xffffffff};

	for (unsigned i = 0; i < ARRAY_SIZE(cids); i++) {
		const struct virtio_vsock_config config = {.wiring = {.memory = f->rig.memory,
								   .lock = &f->rig.lock,
								   .loop = f->rig.loop,
								   .name = "vsock"},
			.cid = cids[i],
			.host = &f->host};
		assert_int_equal(virtio_vsock_create(&config, &vsock), -EINVAL);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_from_guest, setup, teardown),
		cmocka_unit_test_setup_teardown(test_from_host, setup, teardown),
		cmocka_unit_test_setup_teardown(test_credit_of_guest, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_buffers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_credit_of_host, setup, teardown),
		cmocka_unit_test_setup_teardown(test_half_close, setup, teardown),
		cmocka_unit_test_setup_teardown(test_close_with_bytes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host_closes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_flood, setup, teardown),
		cmocka_unit_test_setup_teardown(test_flood_meanwhile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_small_buffer, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bulk, setup, teardown),
		cmocka_unit_test_setup_teardown(test_create_refuses, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
