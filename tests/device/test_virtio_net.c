/*
 * device/virtio/net: frames both ways through every kind of ring, with what is left to do to them; receive buffers
 * that are merged, too small or missing; the control queue; several pairs; and a driver that lies.
 */
#include "tests/device/virtio_rig.h"

#include "base/bytes.h"
#include "device/net.h"
#include "device/virtio/net.h"
#include "device/virtio/net_private.h"

#define FRAMES 64
#define ALL_TX (NET_F_CSUM | NET_F_HOST_TSO4 | NET_F_HOST_TSO6 | NET_F_HOST_ECN | NET_F_HOST_USO)
#define ALL_RX (NET_F_GUEST_CSUM | NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_ECN)
#define CTRL                                                                     \
	(NET_F_CTRL_VQ | NET_F_CTRL_RX | NET_F_CTRL_RX_EXTRA | NET_F_CTRL_VLAN | \
		NET_F_CTRL_MAC_ADDR | NET_F_CTRL_GUEST_OFFLOADS | NET_F_GUEST_ANNOUNCE)

/* A network that remembers what it is given, and can answer at once. */
struct fake_net {
	struct net net;
	struct net_peer peer;
	unsigned takes, attached, sent, ready, features;
	struct net_offload offload[FRAMES];
	size_t bytes[FRAMES];
	uint8_t frame[FRAMES][2048]; /* the first of them */
	bool echo;
};

struct fixture {
	struct virtio_rig rig;
	struct fake_net net;
	struct virtio_net *card;
};

static struct fake_net *fake_of(struct net *net)
{
	return container_of(net, struct fake_net, net);
}

static void fake_attach(struct net *net, const struct net_peer *peer, unsigned takes)
{
	struct fake_net *fake = fake_of(net);

	fake->peer = peer ? *peer : (struct net_peer){0};
	fake->takes = takes;
	fake->attached++;
}

static unsigned fake_features(struct net *net)
{
	return fake_of(net)->features;
}

static uint16_t fake_mtu(struct net *net)
{
	return 1500;
}

static void fake_send(struct net *net, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	struct fake_net *fake = fake_of(net);
	unsigned n = fake->sent % FRAMES;
	size_t bytes = 0;

	for (unsigned i = 0; i < iov_count; i++) {
		for (size_t k = 0; k < iov[i].iov_len && bytes + k < sizeof(fake->frame[n]); k++)
			fake->frame[n][bytes + k] = ((uint8_t *)iov[i].iov_base)[k];
		bytes += iov[i].iov_len;
	}
	fake->bytes[n] = bytes;
	fake->offload[n] = *offload;
	fake->sent++;
	if (fake->echo)
		fake->peer.receive(fake->peer.opaque, &(struct net_offload){0}, iov, iov_count);
}

static void fake_ready(struct net *net)
{
	fake_of(net)->ready++;
}

static const struct net_ops fake_ops = {
	.attach = fake_attach,
	.features = fake_features,
	.mtu = fake_mtu,
	.send = fake_send,
	.ready = fake_ready,
};

static const uint8_t our_mac[6] = {0x52, 0x54, 0, 1, 2, 3};

static int setup_pairs(void **state, unsigned pairs)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	virtio_rig_init(&f->rig);
	f->net.net.ops = &fake_ops;
	f->net.features = NET_CSUM | NET_TSO4 | NET_TSO6 | NET_USO;
	struct virtio_config wiring = {
		.memory = f->rig.memory,
		.lock = &f->rig.lock,
		.loop = f->rig.loop,
		.name = "net0",
	};
	struct virtio_net_config config = {
		.wiring = &wiring,
		.net = &f->net.net,
		.queue_pairs = pairs,
	};
	memcpy(config.mac, our_mac, 6);
	assert_int_equal(virtio_net_create(&config, &f->card), 0);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	return setup_pairs(state, 1);
}

static int setup_four(void **state)
{
	return setup_pairs(state, 4);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_net_free(f->card);
	assert_null(f->net.peer.receive);
	virtio_rig_done(&f->rig);
	free(f);
	return 0;
}

static void begin(struct fixture *f, uint64_t features)
{
	virtio_rig_start(&f->rig, virtio_net_device(f->card), features);
}

/* Header and frame of `bytes` as one chain of `parts` parts on a transmit queue. */
static void transmit(struct fixture *f, unsigned queue, const struct net_offload *offload,
	uint32_t bytes, unsigned parts)
{
	uint32_t total = NET_HEADER_BYTES + bytes, done = 0, written;
	gpa_t gpa = virtio_rig_alloc(&f->rig, total);
	uint8_t *host = virtio_rig_at(&f->rig, gpa);
	struct rig_part part[RIG_PARTS_MAX];

	net_offload_store(host, offload);
	for (uint32_t i = 0; i < bytes; i++)
		host[NET_HEADER_BYTES + i] = (uint8_t)(i * 7 + bytes);
	for (unsigned i = 0; i < parts; i++) {
		uint32_t size = i + 1 < parts ? total / parts : total - done;
		part[i] = (struct rig_part){.gpa = gpa + done, .bytes = size};
		done += size;
	}
	assert_true(virtio_rig_add(&f->rig, queue, part, parts) >= 0);
	virtio_rig_kick(&f->rig, queue);
	virtio_rig_run(&f->rig);
	assert_true(virtio_rig_used(&f->rig, queue, &written) >= 0);
	assert_int_equal(written, 0);
}

static gpa_t offer(struct fixture *f, unsigned queue, uint32_t bytes)
{
	gpa_t gpa = virtio_rig_alloc(&f->rig, bytes);
	struct rig_part part = {.gpa = gpa, .bytes = bytes, .in = true};

	memset(virtio_rig_at(&f->rig, gpa), 0xee, bytes);
	assert_true(virtio_rig_add(&f->rig, queue, &part, 1) >= 0);
	virtio_rig_kick(&f->rig, queue);
	return gpa;
}

static uint8_t pattern(size_t i)
{
	return (uint8_t)(i * 13 + 5);
}

/* A frame for the guest; its addresses are the pattern's unless given. */
static bool receive(struct fixture *f, const struct net_offload *offload, size_t bytes,
	const uint8_t *head, size_t head_bytes)
{
	uint8_t *frame = malloc(bytes + 1);

	for (size_t i = 0; i < bytes; i++)
		frame[i] = pattern(i);
	if (head)
		memcpy(frame, head, head_bytes);
	struct iovec iov[2] = {{frame, bytes / 3}, {frame + bytes / 3, bytes - bytes / 3}};
	bool taken = f->net.peer.receive(f->net.peer.opaque, offload, iov, 2);
	free(frame);
	return taken;
}

static void test_transmit(void **state)
{
	struct fixture *f = *state;

	for (unsigned kind = 0; kind < 8; kind++) {
		f->rig.packed = kind & 1;
		f->rig.event_index = kind & 2;
		f->rig.indirect = kind & 4;
		f->net.sent = 0;
		begin(f, 0);
		for (unsigned i = 0; i < 300; i++) {
			uint32_t bytes = 60 + i * 5 % 1400;
			transmit(f, 1, &(struct net_offload){0}, bytes, 1 + i % 4);
			unsigned n = (f->net.sent - 1) % FRAMES;
			assert_int_equal(f->net.sent, i + 1);
			assert_int_equal(f->net.bytes[n], bytes);
			for (uint32_t k = 0; k < bytes; k++)
				assert_int_equal(f->net.frame[n][k], (uint8_t)(k * 7 + bytes));
		}
	}
}

/* What a frame may ask for is what was agreed on, and lies within it. */
static void test_transmit_checks(void **state)
{
	struct fixture *f = *state;
	static const struct {
		struct net_offload offload;
		uint32_t bytes;
		bool sent;
	} cases[] = {
		{{.flags = 1, .csum_start = 34, .csum_offset = 16}, 100, true},
		{{.flags = 1, .csum_start = 82, .csum_offset = 16}, 100, true},
		{{.flags = 1, .csum_start = 83, .csum_offset = 16}, 100, false},
		{{.flags = 1, .csum_start = 65535, .csum_offset = 65535}, 100, false},
		{{.flags = 1, .csum_start = 4, .csum_offset = 16}, 100, false},
		{{.flags = 0xfe}, 100, true}, /* bits that are not for senders */
		{{0}, 13, false},
		{{0}, 0, false},
		{{.flags = 1,
			 .gso_type = 1,
			 .gso_bytes = 1448,
			 .csum_start = 34,
			 .csum_offset = 16},
			60000, true},
		{{.flags = 1,
			 .gso_type = 0x81,
			 .gso_bytes = 1448,
			 .csum_start = 34,
			 .csum_offset = 16},
			60000, true},
		{{.flags = 0, .gso_type = 1, .gso_bytes = 1448}, 60000, false},
		{{.flags = 1, .gso_type = 1, .csum_start = 34, .csum_offset = 16}, 60000, false},
		{{.flags = 1, .gso_type = 2, .gso_bytes = 9, .csum_start = 34, .csum_offset = 16},
			60000, false},
		{{.flags = 1, .gso_type = 3, .gso_bytes = 1480, .csum_start = 34, .csum_offset = 6},
			60000, false},
		{{.flags = 1, .gso_type = 0x85, .gso_bytes = 9, .csum_start = 34, .csum_offset = 6},
			60000, false},
		{{.flags = 1, .gso_type = 5, .gso_bytes = 1000, .csum_start = 34, .csum_offset = 6},
			60000, true},
		{{0}, NET_FRAME_MAX, true},
		{{0}, NET_FRAME_MAX + 1, false},
	};

	begin(f, ALL_TX);
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		unsigned before = f->net.sent;
		transmit(f, 1, &cases[i].offload, cases[i].bytes, 1);
		assert_int_equal(f->net.sent - before, cases[i].sent);
	}
	begin(f, NET_F_CSUM | NET_F_HOST_TSO6);
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		unsigned before = f->net.sent;
		transmit(f, 1, &cases[i].offload, cases[i].bytes, 1);
		assert_int_equal(f->net.sent - before, cases[i].sent && !cases[i].offload.gso_type);
	}
	begin(f, 0);
	unsigned before = f->net.sent;
	transmit(f, 1, &cases[0].offload, 100, 1);
	assert_int_equal(f->net.sent, before);
}

/* A chain with no room for the header: nothing is sent, and it comes back. */
static void test_transmit_short(void **state)
{
	struct fixture *f = *state;
	struct rig_part part = {.gpa = virtio_rig_alloc(&f->rig, 64), .bytes = 11};
	uint32_t written;

	begin(f, 0);
	assert_true(virtio_rig_add(&f->rig, 1, &part, 1) >= 0);
	virtio_rig_kick(&f->rig, 1);
	virtio_rig_run(&f->rig);
	assert_true(virtio_rig_used(&f->rig, 1, &written) >= 0);
	assert_int_equal(f->net.sent, 0);
}

static void check_received(struct fixture *f, gpa_t gpa, size_t bytes)
{
	const uint8_t *host = virtio_rig_at(&f->rig, gpa);

	for (size_t i = 0; i < bytes; i++)
		assert_int_equal(host[NET_HEADER_BYTES + i], pattern(i));
}

static void test_receive(void **state)
{
	struct fixture *f = *state;
	uint32_t written;

	for (unsigned kind = 0; kind < 4; kind++) {
		f->rig.packed = kind & 1;
		f->rig.event_index = kind & 2;
		begin(f, 0);
		for (unsigned i = 0; i < 300; i++) {
			size_t bytes = 14 + i * 31 % 1500;
			gpa_t gpa = offer(f, 0, 1526);
			assert_true(receive(f, &(struct net_offload){0}, bytes, NULL, 0));
			assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
			assert_int_equal(written, NET_HEADER_BYTES + bytes);
			check_received(f, gpa, bytes);
			assert_int_equal(load_le16((uint8_t *)virtio_rig_at(&f->rig, gpa) + 10), 1);
		}
		/* Longer than the buffer: dropped, and the buffer stays. */
		gpa_t gpa = offer(f, 0, 1000);
		assert_true(receive(f, &(struct net_offload){0}, 1200, NULL, 0));
		assert_int_equal(virtio_rig_used(&f->rig, 0, &written), -1);
		assert_true(receive(f, &(struct net_offload){0}, 900, NULL, 0));
		assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
		check_received(f, gpa, 900);
	}
}

/* One frame over many buffers becomes visible at once, with its number of buffers; each but the last is full. */
static void test_receive_merged(void **state)
{
	struct fixture *f = *state;
	struct net_offload gso = {.flags = NET_NEEDS_CSUM,
		.gso_type = NET_GSO_TCP4,
		.gso_bytes = 1448,
		.csum_start = 34,
		.csum_offset = 16,
		.header_bytes = 54};
	gpa_t gpa[64];
	uint32_t written;

	for (unsigned kind = 0; kind < 4; kind++) {
		f->rig.packed = kind & 1;
		f->rig.event_index = kind & 2;
		begin(f, ALL_RX | NET_F_MRG_RXBUF);
		for (unsigned round = 0; round < 40; round++) {
			size_t bytes = 20000 + round * 577, seen = 0;
			for (unsigned i = 0; i < 40; i++)
				gpa[i] = offer(f, 0, 1536);
			assert_true(receive(f, &gso, bytes, NULL, 0));
			unsigned want = (unsigned)((bytes + NET_HEADER_BYTES + 1535) / 1536);
			const uint8_t *header = virtio_rig_at(&f->rig, gpa[0]);
			struct net_offload got;
			net_offload_load(&got, header);
			assert_int_equal(got.buffers, want);
			assert_int_equal(got.gso_type, NET_GSO_TCP4);
			assert_int_equal(got.gso_bytes, 1448);
			for (unsigned i = 0; i < want; i++) {
				assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
				const uint8_t *host = virtio_rig_at(&f->rig, gpa[i]);
				uint32_t from = i ? 0 : NET_HEADER_BYTES;
				assert_true(i + 1 == want || written == 1536);
				for (uint32_t k = from; k < written; k++)
					assert_int_equal(host[k], pattern(seen++));
			}
			assert_int_equal(seen, bytes);
			assert_int_equal(virtio_rig_used(&f->rig, 0, &written), -1);
			/* The rest goes too. */
			for (unsigned i = want; i < 40; i++) {
				assert_true(receive(f, &(struct net_offload){0}, 60, NULL, 0));
				assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
				assert_int_equal(written, 72);
			}
		}
	}
}

/* With too few buffers nothing is used; the network hears when there are more, wherever the event index stands. */
static void test_receive_starved(void **state)
{
	struct fixture *f = *state;
	uint32_t written;

	for (unsigned kind = 0; kind < 4; kind++) {
		f->rig.packed = kind & 1;
		f->rig.event_index = kind & 2;
		begin(f, ALL_RX | NET_F_MRG_RXBUF);
		for (unsigned round = 0; round < 300; round++) {
			unsigned ready = f->net.ready;
			for (unsigned i = 0; i < 3; i++)
				offer(f, 0, 1536);
			virtio_rig_run(&f->rig);
			assert_int_equal(f->net.ready, ready);
			assert_false(receive(f, &(struct net_offload){0}, 5000, NULL, 0));
			assert_int_equal(virtio_rig_used(&f->rig, 0, &written), -1);
			offer(f, 0, 1536);
			virtio_rig_run(&f->rig);
			assert_int_equal(f->net.ready, ready + 1);
			assert_true(receive(f, &(struct net_offload){0}, 5000, NULL, 0));
			for (unsigned i = 0; i < 4; i++)
				assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
		}
	}
}

/* What the guest did not agree to take, or what makes no sense, is dropped. */
static void test_receive_checks(void **state)
{
	struct fixture *f = *state;
	struct net_offload csum = {.flags = NET_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
	struct net_offload valid = {.flags = NET_DATA_VALID};
	uint32_t written;

	begin(f, NET_F_GUEST_CSUM);
	assert_int_equal(f->net.takes, NET_CSUM);
	offer(f, 0, 2000);
	assert_true(receive(f, &csum, 13, NULL, 0));
	assert_true(receive(f, &csum, 51, NULL, 0));
	csum.gso_type = NET_GSO_TCP4;
	csum.gso_bytes = 100;
	assert_true(receive(f, &csum, 1000, NULL, 0));
	assert_int_equal(virtio_rig_used(&f->rig, 0, &written), -1);
	csum.gso_type = 0;
	assert_true(receive(f, &csum, 1000, NULL, 0));
	assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
	/* To a guest that knows nothing of it, "valid" is not said. */
	begin(f, 0);
	assert_int_equal(f->net.takes, 0);
	gpa_t gpa = offer(f, 0, 2000);
	assert_true(receive(f, &csum, 1000, NULL, 0));
	assert_int_equal(virtio_rig_used(&f->rig, 0, &written), -1);
	assert_true(receive(f, &valid, 1000, NULL, 0));
	assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, gpa), 0);
}

/* A frame that comes while one is sent: the lock is held then. */
static void test_echo(void **state)
{
	struct fixture *f = *state;
	uint32_t written;

	begin(f, 0);
	f->net.echo = true;
	gpa_t gpa = offer(f, 0, 2000);
	transmit(f, 1, &(struct net_offload){0}, 700, 2);
	assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
	assert_int_equal(written, 712);
	assert_int_equal(
		((uint8_t *)virtio_rig_at(&f->rig, gpa))[NET_HEADER_BYTES + 1], (uint8_t)(7 + 700));
}

static void test_config(void **state)
{
	struct fixture *f = *state;

	begin(f, NET_F_MAC | NET_F_STATUS | NET_F_MTU | NET_F_GUEST_ANNOUNCE | NET_F_CTRL_VQ);
	struct virtio_device *device = virtio_net_device(f->card);
	pthread_mutex_lock(&f->rig.lock);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(virtio_config_read(device, i, 1), our_mac[i]);
	assert_int_equal(virtio_config_read(device, 6, 2), 1);
	assert_int_equal(virtio_config_read(device, 8, 2), 1);
	assert_int_equal(virtio_config_read(device, 10, 2), 1500);
	pthread_mutex_unlock(&f->rig.lock);
	unsigned before = f->rig.config_interrupts;
	f->net.peer.link(f->net.peer.opaque, false);
	assert_int_equal(f->rig.config_interrupts, before + 1);
	f->net.peer.link(f->net.peer.opaque, false);
	assert_int_equal(f->rig.config_interrupts, before + 1);
	assert_int_equal(virtio_config_read(device, 6, 2), 0);
	f->net.peer.link(f->net.peer.opaque, true);
	virtio_net_announce(f->card);
	assert_int_equal(virtio_config_read(device, 6, 2), 3);
	static const uint8_t ack[2] = {3, 0};
	uint8_t status = 9;
	assert_int_equal(virtio_rig_request(&f->rig, 2, ack, 2, &status, 1), 1);
	assert_int_equal(status, 0);
	assert_int_equal(virtio_config_read(device, 6, 2), 1);
}

/* ---- commands ---- */

static uint8_t command(struct fixture *f, unsigned queue, const void *bytes, uint32_t size)
{
	uint8_t status = 0xaa;

	assert_int_equal(virtio_rig_request(&f->rig, queue, bytes, size, &status, 1), 1);
	return status;
}

#define COMMAND(f, ...)                               \
	command(f, 2, (const uint8_t[]){__VA_ARGS__}, \
		(uint32_t)sizeof((const uint8_t[]){__VA_ARGS__}))

/* Does a frame to this address, with this VLAN (0: none) come through? */
static bool passes(struct fixture *f, const uint8_t *mac, uint16_t vlan)
{
	uint8_t head[18] = {0};
	uint32_t written;

	memcpy(head, mac, 6);
	store_be16(head + 12, vlan ? 0x8100 : 0x0800);
	store_be16(head + 14, (uint16_t)(0x6000 | vlan));
	assert_true(receive(f, &(struct net_offload){0}, 60, head, sizeof(head)));
	if (virtio_rig_used(&f->rig, 0, &written) < 0)
		return false;
	offer(f, 0, 200);
	return true;
}

static void test_filters(void **state)
{
	struct fixture *f = *state;
	static const uint8_t other[6] = {2, 0, 0, 0, 0, 9}, multi[6] = {1, 0, 0x5e, 0, 0, 1},
			     broad[6] = {255, 255, 255, 255, 255, 255};

	begin(f, CTRL);
	offer(f, 0, 200);
	assert_true(passes(f, other, 0));
	assert_int_equal(COMMAND(f, 0, 0, 0), 0); /* not promiscuous */
	assert_true(passes(f, our_mac, 0));
	assert_false(passes(f, other, 0));
	assert_false(passes(f, multi, 0));
	assert_true(passes(f, broad, 0));
	assert_int_equal(COMMAND(f, 0, 1, 1), 0); /* all multicast */
	assert_true(passes(f, multi, 0));
	assert_int_equal(COMMAND(f, 0, 3, 1), 0); /* no multicast */
	assert_false(passes(f, multi, 0));
	assert_int_equal(COMMAND(f, 0, 3, 0), 0);
	assert_int_equal(COMMAND(f, 0, 1, 0), 0);
	assert_int_equal(COMMAND(f, 0, 5, 1), 0); /* no broadcast */
	assert_false(passes(f, broad, 0));
	assert_int_equal(COMMAND(f, 0, 2, 1), 0); /* all unicast */
	assert_true(passes(f, other, 0));
	assert_int_equal(COMMAND(f, 0, 2, 0), 0);
	/* One of each in the table. */
	assert_int_equal(
		COMMAND(f, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1), 0);
	assert_true(passes(f, other, 0));
	assert_true(passes(f, multi, 0));
	/* Another address of our own. */
	assert_int_equal(COMMAND(f, 1, 1, 2, 2, 2, 2, 2, 2), 0);
	assert_false(passes(f, our_mac, 0));
	assert_int_equal(virtio_config_read(virtio_net_device(f->card), 3, 1), 2);
	/* VLANs. */
	assert_false(passes(f, other, 7));
	assert_int_equal(COMMAND(f, 2, 0, 7, 0), 0);
	assert_true(passes(f, other, 7));
	assert_false(passes(f, other, 8));
	assert_int_equal(COMMAND(f, 2, 1, 7, 0), 0);
	assert_false(passes(f, other, 7));
	/* A reset forgets it all. */
	begin(f, 0);
	offer(f, 0, 200);
	assert_true(passes(f, our_mac, 0));
	assert_true(passes(f, multi, 9));
	assert_int_equal(virtio_config_read(virtio_net_device(f->card), 3, 1), our_mac[3]);
}

/* More addresses than fit let all through; a table that is cut short changes nothing. */
static void test_filter_table(void **state)
{
	struct fixture *f = *state;
	static const uint8_t other[6] = {2, 0, 0, 0, 0, 9};
	uint8_t table[2 + 4 + 100 * 6 + 4] = {1, 0, 100};

	begin(f, CTRL);
	offer(f, 0, 200);
	assert_int_equal(COMMAND(f, 0, 0, 0), 0);
	assert_int_equal(command(f, 2, table, sizeof(table) - 5), 1);
	assert_false(passes(f, other, 0));
	assert_int_equal(command(f, 2, table, sizeof(table)), 0);
	assert_true(passes(f, other, 0));
	assert_int_equal(COMMAND(f, 1, 0, 255, 255, 255, 255, 0, 0, 0, 0), 1);
}

static void test_bad_commands(void **state)
{
	struct fixture *f = *state;
	uint8_t status = 7;

	begin(f, CTRL);
	assert_int_equal(COMMAND(f, 0), 1);
	assert_int_equal(COMMAND(f, 0, 0), 1);
	assert_int_equal(COMMAND(f, 0, 6, 1), 1);
	assert_int_equal(COMMAND(f, 1, 1, 1, 2, 3), 1);
	assert_int_equal(COMMAND(f, 1, 2, 1, 2, 3, 4, 5, 6), 1);
	assert_int_equal(COMMAND(f, 2, 0, 0, 16), 1);
	assert_int_equal(COMMAND(f, 4, 0, 1, 0), 1);
	assert_int_equal(COMMAND(f, 5, 0, 0, 0, 0), 1);
	assert_int_equal(COMMAND(f, 99, 0, 0), 1);
	/* No room for the answer: comes back all the same. */
	assert_int_equal(virtio_rig_request(&f->rig, 2, "\0\0\0", 3, NULL, 0), 0);
	/* Nothing to read but an answer wanted. */
	assert_int_equal(virtio_rig_request(&f->rig, 2, NULL, 0, &status, 1), 1);
	assert_int_equal(status, 1);
	begin(f, NET_F_CTRL_VQ);
	assert_int_equal(COMMAND(f, 0, 0, 0), 1);
	assert_int_equal(COMMAND(f, 1, 1, 2, 2, 2, 2, 2, 2), 1);
}

static void test_offloads(void **state)
{
	struct fixture *f = *state;

	begin(f, CTRL | ALL_RX);
	assert_int_equal(f->net.takes, NET_CSUM | NET_TSO4 | NET_TSO6);
	assert_int_equal(COMMAND(f, 5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0), 0);
	assert_int_equal(f->net.takes, NET_CSUM | NET_TSO4);
	assert_int_equal(COMMAND(f, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0), 0);
	assert_int_equal(f->net.takes, 0);
	/* Not agreed on: USO. */
	assert_int_equal(COMMAND(f, 5, 0, 0, 0, 0, 0, 0, 0, 0x40, 0), 1);
}

/* ---- several pairs ---- */

static void tcp_head(uint8_t *head, uint16_t from, uint16_t to)
{
	memset(head, 0, 54);
	store_be16(head + 12, 0x0800);
	head[14] = 0x45;
	head[23] = 6;
	store_be32(head + 26, from < to ? 1 : 2);
	store_be32(head + 30, from < to ? 2 : 1);
	store_be16(head + 34, from);
	store_be16(head + 36, to);
}

/* Answers to what a pair sent come to that pair. */
static void test_pairs(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[NET_HEADER_BYTES + 60] = {0}, head[54];
	uint32_t written;

	begin(f, NET_F_MQ | NET_F_CTRL_VQ);
	assert_int_equal(virtio_config_read(virtio_net_device(f->card), 8, 2), 4);
	/* Before it is said that there are more, the others are not served. */
	tcp_head(bytes + NET_HEADER_BYTES, 1000, 80);
	struct rig_part part = {.gpa = virtio_rig_alloc(&f->rig, 100), .bytes = sizeof(bytes)};
	memcpy(virtio_rig_at(&f->rig, part.gpa), bytes, sizeof(bytes));
	assert_true(virtio_rig_add(&f->rig, 5, &part, 1) >= 0);
	virtio_rig_kick(&f->rig, 5);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->net.sent, 0);
	assert_int_equal(command(f, 8, (const uint8_t[]){4, 0, 0, 0}, 4), 1);
	assert_int_equal(command(f, 8, (const uint8_t[]){4, 0, 5, 0}, 4), 1);
	assert_int_equal(command(f, 8, (const uint8_t[]){4, 0, 4, 0}, 4), 0);
	virtio_kick(virtio_net_device(f->card), 5);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->net.sent, 1);
	for (unsigned i = 0; i < 4; i++)
		offer(f, 2 * i, 200);
	for (uint16_t port = 2000; port < 2100; port++) {
		unsigned pair = port % 4;
		tcp_head(bytes + NET_HEADER_BYTES, port, 80);
		virtio_rig_used(&f->rig, 2 * pair + 1, &written);
		assert_int_equal(
			virtio_rig_request(&f->rig, 2 * pair + 1, bytes, sizeof(bytes), NULL, 0),
			0);
		tcp_head(head, 80, port);
		assert_true(receive(f, &(struct net_offload){0}, 60, head, sizeof(head)));
		assert_true(virtio_rig_used(&f->rig, 2 * pair, &written) >= 0);
		offer(f, 2 * pair, 200);
	}
	/* Without MQ the control queue is the third. */
	begin(f, NET_F_CTRL_VQ | NET_F_CTRL_RX);
	assert_int_equal(COMMAND(f, 0, 0, 0), 0);
}

/* A receive buffer without room for the header breaks the rules. */
static void test_hostile_buffers(void **state)
{
	struct fixture *f = *state;
	struct rig_part part = {.gpa = virtio_rig_alloc(&f->rig, 64), .bytes = 8, .in = true};

	for (unsigned in = 0; in < 2; in++) {
		part.in = in;
		begin(f, NET_F_MRG_RXBUF);
		assert_true(virtio_rig_add(&f->rig, 0, &part, 1) >= 0);
		assert_true(receive(f, &(struct net_offload){0}, 60, NULL, 0));
		assert_true(virtio_rig_status(&f->rig) & VIRTIO_STATUS_NEEDS_RESET);
		assert_true(receive(f, &(struct net_offload){0}, 60, NULL, 0));
		/* Some hundred one-byte buffers are too many for one frame: dropped, and no harm done. */
		begin(f, NET_F_MRG_RXBUF);
		offer(f, 0, 12);
		for (unsigned i = 0; i < 200; i++)
			offer(f, 0, 1);
		assert_true(receive(f, &(struct net_offload){0}, 150, NULL, 0));
		assert_true(receive(f, &(struct net_offload){0}, 20, NULL, 0));
		uint32_t written;
		for (unsigned i = 0; i < 21; i++)
			assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
		assert_int_equal(virtio_rig_used(&f->rig, 0, &written), -1);
	}
}

/* Freed while a start is still to be told to the network: nothing is called later. */
static void test_free_early(void **state)
{
	struct fixture *f = *state;

	begin(f, 0);
	virtio_rig_set_status(&f->rig, 0);
	virtio_net_free(f->card);
	f->card = NULL;
	virtio_rig_run(&f->rig);
	assert_int_equal(setup(state), 0);
	virtio_rig_done(&f->rig);
	free(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_transmit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_transmit_checks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_transmit_short, setup, teardown),
		cmocka_unit_test_setup_teardown(test_receive, setup, teardown),
		cmocka_unit_test_setup_teardown(test_receive_merged, setup, teardown),
		cmocka_unit_test_setup_teardown(test_receive_starved, setup, teardown),
		cmocka_unit_test_setup_teardown(test_receive_checks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_echo, setup, teardown),
		cmocka_unit_test_setup_teardown(test_config, setup, teardown),
		cmocka_unit_test_setup_teardown(test_filters, setup, teardown),
		cmocka_unit_test_setup_teardown(test_filter_table, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_commands, setup, teardown),
		cmocka_unit_test_setup_teardown(test_offloads, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pairs, setup_four, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_buffers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_free_early, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
