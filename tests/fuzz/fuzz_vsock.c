/*
 * Fuzz target: a vsock driver that does anything, packets that make sense among it, and programs on the host that
 * connect, are connected to, read, write, and go away at any time.
 *
 * What must hold: nothing crashes or leaks a descriptor; connections are bounded; each packet that the guest is given is
 * well-formed, and no connection is given more bytes than the credit that the guest last spoke of.
 */
#include "tests/fuzz/virtio_driver.h"

#include "device/virtio/vsock.h"
#include "device/vsock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#define OPS_MAX 300
#define CID	5
#define FAR_MAX 64
#define RX	0
#define TX	1
#define HEADER	44u
/* Where buffers to receive are, apart from all else. */
#define RX_DATA	 0x200000u
#define RX_BYTES 4096u

struct target {
	struct driver d;
	struct vsock_host host;
	struct vsock_peer peer;
	struct virtio_vsock *vsock;
	int far[FAR_MAX]; /* the other ends of the sockets; -1: none */
	unsigned next;
	uint16_t used; /* of the receive queue: seen so far */
};

static void keep_far(struct target *t, int fd)
{
	int *slot = &t->far[t->next++ % FAR_MAX];

	if (*slot >= 0)
		close(*slot);
	*slot = fd;
}

static void host_attach(struct vsock_host *host, const struct vsock_peer *peer)
{
	struct target *t = container_of(host, struct target, host);

	t->peer = peer ? *peer : (struct vsock_peer){0};
}

static int pair(struct target *t)
{
	int fd[2], small = 1;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd) < 0)
		return -errno;
	if (t->next & 1)
		setsockopt(fd[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	keep_far(t, fd[0]);
	return fd[1];
}

static int host_open(struct vsock_host *host, uint32_t port)
{
	return port & 8 ? -ECONNREFUSED : pair(container_of(host, struct target, host));
}

static void host_accepted(struct vsock_host *host, int fd, uint32_t host_port)
{
	(void)!send(fd, "OK\n", 3, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static const struct vsock_host_ops host_ops = {
	.attach = host_attach, .open = host_open, .accepted = host_accepted};

/* ---- the guest's programs ---- */

static void add_packet(struct target *t, struct rig_input *in)
{
	static const uint32_t credits[4] = {65536, 7, 0, UINT32_MAX};
	const uint32_t gpa = DRIVER_DATA + (uint32_t)rig_take(in, 2) * 8;
	uint8_t ports = (uint8_t)rig_take(in, 1), how = (uint8_t)rig_take(in, 1);
	uint32_t bytes = how & 16 ? (uint32_t)rig_take(in, 2) : 0;
	uint8_t *p = driver_at(&t->d, gpa);

	store_le64(p, CID);
	store_le64(p + 8, 2);
	store_le32(p + 16, ports % 4);
	/* Ports of the host's own connections, too. */
	store_le32(p + 20, (ports / 4 % 16) | (ports & 0x80 ? 1u << 30 : 0));
	store_le32(p + 24, bytes);
	store_le16(p + 28, 1);
	store_le16(p + 30, how % 8);
	store_le32(p + 32, how / 64);
	store_le32(p + 36, credits[how / 32 % 4]);
	store_le32(p + 40, (uint32_t)rig_take(in, 1) * 100);
	const struct driver_part part[2] = {
		{gpa, HEADER, false}, {gpa + HEADER, bytes + (how & 8 ? 0 : 1), false}};
	driver_add(&t->d, TX, part, bytes ? 2 : 1);
}

static void add_buffers(struct target *t, struct rig_input *in)
{
	uint8_t how = (uint8_t)rig_take(in, 1);
	const unsigned size = t->d.queue[RX].size;

	for (unsigned i = 0; size && i < how % 8u + 1; i++) {
		const unsigned at = t->d.queue[RX].desc % size % 256;
		const struct driver_part part = {
			RX_DATA + at * RX_BYTES, how & 128 ? RX_BYTES : HEADER + 1 + how, true};
		driver_add(&t->d, RX, &part, 1);
	}
}

/* What the guest was given, where nothing but the device writes: split rings only, and as long as it lives. */
static void check_received(struct target *t)
{
	const gpa_t ring = DRIVER_RINGS + RX * 0x10000u + 0xa000;
	const unsigned size = t->d.queue[RX].size;

	pthread_mutex_lock(&t->d.lock);
	const bool live = virtio_live(t->d.device);
	pthread_mutex_unlock(&t->d.lock);
	if (t->d.packed || !live || !size)
		return;
	for (; t->used != load_le16(driver_at(&t->d, ring + 2)); t->used++) {
		const uint8_t *element = driver_at(&t->d, ring + 4 + 8 * (t->used % size));
		const uint32_t id = load_le32(element), bytes = load_le32(element + 4);
		if (id >= size || bytes < HEADER)
			continue; /* poked */
		const uint8_t *d = driver_at(&t->d, DRIVER_RINGS + 16 * id);
		const uint64_t gpa = load_le64(d);
		if (gpa < RX_DATA || gpa >= DRIVER_RAM - RX_BYTES)
			continue;
		const uint8_t *p = driver_at(&t->d, gpa);
		if (load_le64(p) != 2 || load_le64(p + 8) != CID)
			continue;
		const unsigned op = load_le16(p + 30);
		MUST(load_le16(p + 28) == 1 && op >= 1 && op <= 7);
		MUST(op == 5 || !load_le32(p + 24));
		MUST(load_le32(p + 32) <= 3);
		MUST(load_le32(p + 24) <= RX_BYTES);
	}
}

/* ---- the host's programs ---- */

static void host_op(struct target *t, struct rig_input *in)
{
	static uint8_t bytes[65536];
	uint8_t how = (uint8_t)rig_take(in, 1);
	int *slot = &t->far[(how >> 3) % FAR_MAX];

	if (how % 8 == 0 && t->peer.connect) {
		int fd = pair(t);
		if (fd >= 0)
			t->peer.connect(t->peer.opaque, fd, how >> 6);
		return;
	}
	slot = &t->far[(t->next - 1 - (how >> 3) % 8) % FAR_MAX];
	if (*slot < 0)
		return;
	switch (how % 8) {
	case 1:
	case 2: (void)!send(*slot, bytes, rig_take(in, 2) + 1, MSG_NOSIGNAL | MSG_DONTWAIT); break;
	case 3:
	case 4: (void)!read(*slot, bytes, rig_take(in, 2) + 1); break;
	case 5: shutdown(*slot, SHUT_WR); break;
	case 6: shutdown(*slot, SHUT_RD); break;
	default: close(*slot); *slot = -1;
	}
}

static void one_op(struct target *t, struct rig_input *in)
{
	uint8_t op = (uint8_t)rig_take(in, 1);

	switch (op % 16) {
	case 0:
		if (op & 0x10) {
			driver_start(&t->d, in);
			t->used = 0;
		}
		break;
	case 1: driver_add_any(&t->d, op / 16 % 3, in, HEADER); break;
	case 2: driver_poke(&t->d, in); break;
	case 3:
	case 4: add_buffers(t, in); break;
	case 5:
	case 6:
	case 7:
	case 8: add_packet(t, in); break;
	case 9:
	case 10:
	case 11: host_op(t, in); break;
	case 12: driver_config(&t->d, in); break;
	default:
		virtio_kick(t->d.device, op & 0x10 ? RX : TX);
		driver_run(&t->d);
		check_received(t);
		MUST(virtio_vsock_connections(t->vsock) <= VSOCK_CONNECTIONS_MAX);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	static struct target t;

	if (!t.d.memory)
		driver_init(&t.d);
	const int before = rig_lowest_fd();
	t.host.ops = &host_ops;
	t.next = t.used = 0;
	memset(t.far, 0xff, sizeof(t.far));
	const struct virtio_vsock_config config = {
		.wiring = driver_wiring(&t.d), .cid = CID, .host = &t.host};
	MUST(virtio_vsock_create(&config, &t.vsock) == 0);
	driver_attach(&t.d, virtio_vsock_device(t.vsock));
	driver_start(&t.d, &in);
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&t, &in);
	virtio_vsock_free(t.vsock);
	for (unsigned i = 0; i < FAR_MAX; i++)
		if (t.far[i] >= 0)
			close(t.far[i]);
	driver_wipe(&t.d);
	MUST(rig_lowest_fd() == before);
	return 0;
}
