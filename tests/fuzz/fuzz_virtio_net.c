/*
 * Fuzz target: a driver of the virtio network card that does anything: chains of any shape on any queue with headers and
 * commands from the input, bytes poked into rings and buffers, features, resets; while a network gives frames of any
 * size with any offloads, and sends some back at once.
 *
 * What must hold: nothing crashes; what the network is given is consistent in itself (net_offload_check) and asks only
 * for what was agreed on; a frame is dropped, delivered or refused, never half delivered.
 */
#include "tests/fuzz/rig.h"

#include "base/bytes.h"
#include "base/log.h"
#include "base/loop.h"
#include "device/net.h"
#include "device/virtio/net.h"
#include "device/virtio/net_private.h"
#include "device/virtio/transport.h"
#include "tests/turns.h"

#define OPS_MAX	  300
#define PAIRS	  2
#define QUEUES	  (2 * PAIRS + 1)
#define RINGS	  0x10000u /* 64 KiB for each queue */
#define DATA	  0x100000u
#define RAM_BYTES MIB(4)
#define PARTS_MAX 6

struct fake {
	struct net net;
	struct net_peer peer;
	unsigned takes;
	bool echo, depth;
	uint64_t features;
	uint64_t sum;
};

struct target {
	struct guest_memory *memory;
	struct loop *loop;
	pthread_mutex_t lock;
	struct fake fake;
	struct virtio_net *card;
	struct virtio_device *device;
	struct {
		uint16_t avail, desc, size;
	} queue[QUEUES];
	bool packed;
};

static struct fake *fake_of(struct net *net)
{
	return container_of(net, struct fake, net);
}

static void fake_attach(struct net *net, const struct net_peer *peer, unsigned takes)
{
	fake_of(net)->peer = peer ? *peer : (struct net_peer){0};
	fake_of(net)->takes = takes;
}

static unsigned fake_features(struct net *net)
{
	return NET_CSUM | NET_TSO4 | NET_TSO6 | NET_USO;
}

static uint16_t fake_mtu(struct net *net)
{
	return 1500;
}

static unsigned agreed(const struct fake *fake)
{
	return (fake->features & NET_F_CSUM ? NET_CSUM : 0) |
	       (fake->features & NET_F_HOST_TSO4 ? NET_TSO4 : 0) |
	       (fake->features & NET_F_HOST_TSO6 ? NET_TSO6 : 0) |
	       (fake->features & NET_F_HOST_USO ? NET_USO : 0);
}

static void fake_send(struct net *net, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	struct fake *fake = fake_of(net);
	uint64_t bytes = 0;

	for (unsigned i = 0; i < iov_count; i++) {
		bytes += iov[i].iov_len;
		/* All of it can be read. */
		if (iov[i].iov_len)
			fake->sum += ((uint8_t *)iov[i].iov_base)[0] +
				     ((uint8_t *)iov[i].iov_base)[iov[i].iov_len - 1];
	}
	MUST(net_offload_check(offload, bytes));
	MUST(!(net_offload_needs(offload) & ~agreed(fake)));
	if (!fake->echo || fake->depth || !fake->peer.receive)
		return;
	/* A network keeps its own copy. */
	static uint8_t copy[NET_FRAME_MAX];
	struct iovec own = {copy, 0};
	for (unsigned i = 0; i < iov_count; i++) {
		memcpy(copy + own.iov_len, iov[i].iov_base, iov[i].iov_len);
		own.iov_len += iov[i].iov_len;
	}
	fake->depth = true;
	(void)fake->peer.receive(fake->peer.opaque, offload, &own, 1);
	fake->depth = false;
}

static void fake_ready(struct net *net)
{
	fake_of(net)->sum++;
}

static const struct net_ops fake_ops = {
	.attach = fake_attach,
	.features = fake_features,
	.mtu = fake_mtu,
	.send = fake_send,
	.ready = fake_ready,
};

static void ignore_queue(void *opaque, unsigned queue) {}

static void ignore(void *opaque) {}

static const struct virtio_transport_ops transport = {
	.queue_interrupt = ignore_queue, .config_interrupt = ignore, .was_reset = ignore};

static void run(struct target *t)
{
	run_turns(t->loop, 3);
}

static uint8_t *at(struct target *t, gpa_t gpa)
{
	uint8_t *host = memory_host(t->memory, gpa, 1, false);

	MUST(host);
	return host;
}

/* ---- what a driver does ---- */

static void start(struct target *t, struct rig_input *in)
{
	uint64_t wanted = rig_take(in, 3) | rig_take(in, 1) << 50 | rig_take(in, 1) << 56;
	uint8_t how = (uint8_t)rig_take(in, 1);

	pthread_mutex_lock(&t->lock);
	virtio_set_status(t->device, 0);
	memset(t->queue, 0, sizeof(t->queue));
	wanted |= (how & 1 ? VIRTIO_F_EVENT_IDX : 0) | (how & 2 ? VIRTIO_F_INDIRECT_DESC : 0) |
		  (how & 4 ? VIRTIO_F_RING_PACKED : 0) | VIRTIO_F_VERSION_1;
	wanted &= virtio_features_offered(t->device);
	t->packed = how & 4;
	t->fake.echo = how & 8;
	t->fake.features = wanted;
	virtio_set_features_driver(t->device, 0, (uint32_t)wanted);
	virtio_set_features_driver(t->device, 1, (uint32_t)(wanted >> 32));
	virtio_set_status(t->device, 11);
	for (unsigned i = 0; i < QUEUES; i++) {
		struct virtq_setup *setup = virtio_queue_setup(t->device, i);
		gpa_t base = RINGS + i * 0x10000u;
		memset(at(t, base), 0, 0x10000);
		t->queue[i].size = setup->size = how & 16 ? 8 : 256;
		setup->desc = base;
		setup->driver = base + 0x8000;
		setup->device = base + 0xa000;
		if (!(how & 32) || i != rig_take(in, 1) % QUEUES)
			virtio_queue_enable(t->device, i);
	}
	virtio_set_status(t->device, 15);
	pthread_mutex_unlock(&t->lock);
	run(t);
}

static void put_descriptor(struct target *t, unsigned q, unsigned index, uint32_t gpa,
	uint32_t bytes, bool in, bool more)
{
	uint8_t *d = at(t, RINGS + q * 0x10000u + 16 * index);
	uint16_t flags = (in ? 2 : 0) | (more ? 1 : 0);

	store_le64(d, gpa);
	store_le32(d + 8, bytes);
	if (t->packed) {
		bool wrap = !(t->queue[q].desc / t->queue[q].size & 1);
		store_le16(d + 12, (uint16_t)index);
		store_le16(d + 14, flags | (wrap ? 0x80 : 0x8000));
	} else {
		store_le16(d + 12, flags);
		store_le16(d + 14, (uint16_t)((index + 1) % t->queue[q].size));
	}
}

/* A chain of a few parts, with bytes of the input at the front of the first. */
static void add_chain(struct target *t, unsigned q, struct rig_input *in, unsigned front)
{
	uint8_t how = (uint8_t)rig_take(in, 1);
	unsigned parts = 1 + how % PARTS_MAX, size = t->queue[q].size;
	uint32_t gpa = DATA + (uint32_t)rig_take(in, 2) * 16;
	bool writable = how & 0x80 ? how & 0x40 : !(q & 1) && q < 2 * PAIRS;
	unsigned head = size ? t->queue[q].desc % size : 0;

	if (!size)
		return;
	rig_take_bytes(in, at(t, gpa), front);
	for (unsigned i = 0; i < parts; i++) {
		uint32_t bytes = (uint32_t)rig_take(in, 1) << (how & 0x20 ? 4 : 0) << (i % 3 * 3);
		bool answer = q == 2 * PAIRS && i + 1 == parts && parts > 1;
		if (!i)
			bytes += how & 0x10 ? front : 0;
		put_descriptor(t, q, t->queue[q].desc % size, gpa, bytes, writable || answer,
			i + 1 < parts);
		t->queue[q].desc++;
		gpa += bytes;
	}
	if (t->packed)
		return;
	uint8_t *avail = at(t, RINGS + q * 0x10000u + 0x8000);
	store_le16(avail + 4 + 2 * (t->queue[q].avail % size), (uint16_t)head);
	store_le16(avail + 2, ++t->queue[q].avail);
}

static void receive(struct target *t, struct rig_input *in)
{
	static uint8_t frame[NET_FRAME_MAX + 8];
	size_t bytes = rig_take(in, 2) + (rig_take(in, 1) & 1 ? 100 : 0);
	uint8_t header[NET_HEADER_BYTES];
	struct net_offload offload;

	rig_take_bytes(in, header, 10);
	rig_take_bytes(in, frame, 20);
	net_offload_load(&offload, header);
	struct iovec iov[2] = {{frame, bytes / 2}, {frame + bytes / 2, bytes - bytes / 2}};
	if (t->fake.peer.receive)
		(void)t->fake.peer.receive(t->fake.peer.opaque, &offload, iov, 2);
}

static void poke(struct target *t, struct rig_input *in)
{
	gpa_t gpa = (rig_take(in, 3) + RINGS) % (RAM_BYTES - 16);

	rig_take_bytes(in, at(t, gpa), rig_take(in, 1) % 16);
}

static void other(struct target *t, struct rig_input *in)
{
	uint8_t how = (uint8_t)rig_take(in, 1);
	unsigned size = 1u << how % 4;

	if (how & 0x80 && t->fake.peer.link)
		t->fake.peer.link(t->fake.peer.opaque, how & 1);
	if (how & 0x40)
		virtio_net_announce(t->card);
	pthread_mutex_lock(&t->lock);
	(void)virtio_config_read(t->device, rig_take(in, 1) % 16, size);
	if (how & 0x20)
		virtio_set_status(t->device, 0);
	pthread_mutex_unlock(&t->lock);
}

static void one_op(struct target *t, struct rig_input *in)
{
	uint8_t op = (uint8_t)rig_take(in, 1);
	unsigned q = op / 16 % QUEUES;

	switch (op % 16) {
	case 0: start(t, in); break;
	case 1:
	case 2: add_chain(t, q, in, 0); break;
	case 3:
	case 4: add_chain(t, (q | 1) % (2 * PAIRS), in, 12 + 34); break;
	case 5:
	case 6: add_chain(t, 2 * PAIRS, in, 12); break;
	case 7: poke(t, in); break;
	case 8: other(t, in); break;
	case 9:
	case 10: receive(t, in); break;
	case 11: run(t); break;
	default: virtio_kick(t->device, q); run(t);
	}
}

static void init(struct target *t)
{
	struct virtio_config wiring = {
		.memory = t->memory, .lock = &t->lock, .loop = t->loop, .name = "fuzz"};
	struct virtio_net_config config = {.wiring = &wiring,
		.net = &t->fake.net,
		.mac = {2, 0, 0, 0, 0, 1},
		.queue_pairs = PAIRS};

	t->fake = (struct fake){.net.ops = &fake_ops};
	MUST(virtio_net_create(&config, &t->card) == 0);
	t->device = virtio_net_device(t->card);
	virtio_attach(t->device, &transport, t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	static struct target t;

	if (!t.memory) {
		log_level_set(LOG_LEVEL_ERROR);
		MUST(memory_create(&t.memory) == 0);
		MUST(memory_add_ram(t.memory, 0, RAM_BYTES, 0, "ram", NULL) == 0);
		MUST(loop_create(&t.loop) == 0);
		pthread_mutex_init(&t.lock, NULL);
	}
	init(&t);
	start(&t, &in);
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&t, &in);
	virtio_net_free(t.card);
	run(&t);
	memset(at(&t, 0), 0, RAM_BYTES);
	return 0;
}
