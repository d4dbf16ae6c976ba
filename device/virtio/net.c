/*
 * The virtio network card: see net.h. Here is the way of the frames (virtio 1.2, 5.1.6); commands are in net_control.c.
 *
 * Invariants:
 * - What the guest says of a frame is copied once and checked (net_offload_check()) before the network sees it, and has
 *   only what was agreed on. The frame itself stays guest RAM: a network that looks into it copies it first.
 * - A frame reaches the guest whole or not at all: buffers are collected first and given back together.
 * - The lock is held while the network is given frames, and the network may answer with frames at once: in_card
 *   tells that the lock is held already. Frames come on the loop's thread only, which is what makes that sound.
 */
#include "device/virtio/net_private.h"

#include "base/bytes.h"
#include "base/cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TX_BATCH       64 /* chains, then others have their turn */
#define TX_BATCH_BYTES MIB(1)

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd

/* ---- features and configuration ---- */

static uint64_t offered_features(struct net *net, unsigned pairs)
{
	unsigned network = net->ops->features(net);
	uint64_t f = NET_F_GUEST_CSUM | NET_F_CTRL_GUEST_OFFLOADS | NET_F_MTU | NET_F_MAC |
		     NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_ECN | NET_F_GUEST_USO4 |
		     NET_F_GUEST_USO6 | NET_F_MRG_RXBUF | NET_F_STATUS | NET_F_CTRL_VQ |
		     NET_F_CTRL_RX | NET_F_CTRL_VLAN | NET_F_CTRL_RX_EXTRA | NET_F_GUEST_ANNOUNCE |
		     NET_F_CTRL_MAC_ADDR;

	if (pairs > 1)
		f |= NET_F_MQ;
	if (network & NET_CSUM)
		f |= NET_F_CSUM;
	if (network & NET_TSO4)
		f |= NET_F_HOST_TSO4 | NET_F_HOST_ECN;
	if (network & NET_TSO6)
		f |= NET_F_HOST_TSO6 | NET_F_HOST_ECN;
	if (network & NET_USO)
		f |= NET_F_HOST_USO;
	return f;
}

static uint64_t card_features(void *opaque)
{
	return ((struct virtio_net *)opaque)->offered;
}

static unsigned card_queue_size(void *opaque, unsigned index)
{
	const struct virtio_net *card = opaque;

	return index <= 2 * card->pairs_max ? NET_QUEUE_SIZE : 0;
}

static void card_config_read(void *opaque, unsigned offset, void *bytes, unsigned size)
{
	const struct virtio_net *card = opaque;
	uint8_t config[NET_CONFIG_BYTES];
	uint16_t status = card->link_up ? NET_STATUS_LINK_UP : 0;

	if (card->announcing)
		status |= NET_STATUS_ANNOUNCE;
	memcpy(config, card->mac, 6);
	store_le16(config + 6, status);
	store_le16(config + 8, (uint16_t)card->pairs_max);
	store_le16(config + 10, card->mtu);
	memcpy(bytes, config + offset, size);
}

/* The calls to the network that it may answer at once. */
#define BELOW_NETWORK(card, call)        \
	do {                             \
		(card)->in_card = true;  \
		call;                    \
		(card)->in_card = false; \
	} while (0)

/* Takes the lock, unless this thread has it. */
static pthread_mutex_t *lock_card(const struct virtio_net *card)
{
	if (card->in_card)
		return NULL;
	pthread_mutex_lock(card->lock);
	return card->lock;
}

#define AUTO_CARD(card)         \
	CLEANUP(cleanup_unlock) \
	pthread_mutex_t *auto_card_ __attribute__((unused)) = lock_card(card)

/* ---- flows: a reply goes to the pair that sent (5.1.6.5.6.1) ---- */

/* The same for both directions. */
static unsigned flow_of(const uint8_t *head, size_t head_bytes)
{
	uint32_t hash = 0, addresses = 0, ports = 0;
	size_t at = 0;

	if (head_bytes >= 38 && load_be16(head + 12) == ETHERTYPE_IPV4 && head[14] == 0x45) {
		addresses = load_le32(head + 26) ^ load_le32(head + 30);
		at = 34;
		hash = head[23];
	} else if (head_bytes >= 58 && load_be16(head + 12) == ETHERTYPE_IPV6) {
		for (unsigned i = 0; i < 32; i += 4)
			addresses ^= load_le32(head + 22 + i);
		at = 54;
		hash = head[20];
	}
	if (at && (hash == 6 || hash == 17))
		ports = (uint32_t)load_le16(head + at) ^ load_le16(head + at + 2);
	hash = (hash ^ addresses ^ ports << 8) * 0x9e3779b1u;
	return hash >> 24 & (NET_FLOWS - 1);
}

/* ---- to the network ---- */

/* What was negotiated bounds what a frame may ask for; a driver that asks for more loses the frame. */
static bool sendable(
	const struct virtio_net *card, const struct net_offload *offload, uint64_t bytes)
{
	unsigned needs = net_offload_needs(offload), may = 0;

	if (net_has(card, NET_F_CSUM))
		may |= NET_CSUM;
	if (net_has(card, NET_F_HOST_TSO4))
		may |= NET_TSO4;
	if (net_has(card, NET_F_HOST_TSO6))
		may |= NET_TSO6;
	if (net_has(card, NET_F_HOST_USO))
		may |= NET_USO;
	if (offload->gso_type & NET_GSO_ECN && !net_has(card, NET_F_HOST_ECN))
		return false;
	return net_offload_check(offload, bytes) && !(needs & ~may);
}

/* Drops `bytes` from the front of the chain's readable part. */
static unsigned skip_front(struct virtq_buffer *buffer, size_t bytes, struct iovec **ret_iov)
{
	unsigned i = 0;

	for (; i < buffer->out_count && bytes >= buffer->out[i].iov_len; i++)
		bytes -= buffer->out[i].iov_len;
	if (i < buffer->out_count) {
		buffer->out[i].iov_base = (uint8_t *)buffer->out[i].iov_base + bytes;
		buffer->out[i].iov_len -= bytes;
	}
	*ret_iov = buffer->out + i;
	return buffer->out_count - i;
}

static void send_chain(struct virtio_net *card, struct virtq_buffer *buffer, unsigned pair)
{
	uint8_t bytes[NET_HEADER_BYTES + NET_HEAD_BYTES];
	struct net_offload offload;
	struct iovec *iov;
	size_t got = (size_t)virtq_read(buffer, 0, bytes, sizeof(bytes));

	if (got < NET_HEADER_BYTES)
		return;
	net_offload_load(&offload, bytes);
	/* Only receivers are told that data are valid, and how many buffers there are. */
	offload.flags &= NET_NEEDS_CSUM;
	offload.buffers = 0;
	if (!sendable(card, &offload, buffer->out_bytes - NET_HEADER_BYTES)) {
		log_limited(&card->limit, LOG_LEVEL_DEBUG, card->name,
			"dropped a frame whose header makes no sense");
		return;
	}
	if (card->pairs > 1)
		card->flow[flow_of(bytes + NET_HEADER_BYTES, got - NET_HEADER_BYTES)] =
			(uint8_t)pair;
	unsigned count = skip_front(buffer, NET_HEADER_BYTES, &iov);
	BELOW_NETWORK(card, card->net->ops->send(card->net, &offload, iov, count));
}

/* Send what is waiting, up to a batch. True: there may be more. */
static bool send_batch(struct virtio_net *card, struct virtq *queue, unsigned pair)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < TX_BATCH && bytes < TX_BATCH_BYTES; i++) {
		if (virtq_pop(queue, &card->tx) <= 0)
			return false;
		bytes += card->tx.out_bytes;
		send_chain(card, &card->tx, pair);
		virtq_push(queue, &card->tx, 0);
	}
	return true;
}

static void send_waiting(struct virtio_net *card, unsigned pair)
{
	struct virtq *queue = virtio_queue(card->device, 2 * pair + 1);
	bool more;

	if (pair >= card->pairs || !virtq_is_enabled(queue))
		return;
	virtq_want_kicks(queue, false);
	do {
		more = send_batch(card, queue, pair);
	} while (!more && virtio_live(card->device) && virtq_want_kicks(queue, true));
	virtq_signal(queue);
	if (more)
		loop_post(card->loop, &card->again_call[pair]);
}

static void send_again(void *opaque)
{
	struct net_again *again = opaque;

	AUTO_LOCK(again->card->lock);
	if (virtio_live(again->card->device))
		send_waiting(again->card, again->pair);
}

/* ---- from the network ---- */

static unsigned takes_now(const struct virtio_net *card)
{
	unsigned takes = 0;

	if (card->offloads & NET_F_GUEST_CSUM)
		takes |= NET_CSUM;
	if (card->offloads & NET_F_GUEST_TSO4)
		takes |= NET_TSO4;
	if (card->offloads & NET_F_GUEST_TSO6)
		takes |= NET_TSO6;
	if (card->offloads & NET_F_GUEST_USO4 && card->offloads & NET_F_GUEST_USO6)
		takes |= NET_USO;
	return takes;
}

static uint64_t iov_bytes(const struct iovec *iov, unsigned count)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < count; i++)
		bytes += iov[i].iov_len;
	return bytes;
}

static size_t frame_head(const struct iovec *iov, unsigned count, uint8_t *head)
{
	size_t done = 0;

	for (unsigned i = 0; i < count && done < NET_HEAD_BYTES; i++) {
		size_t part = MIN(iov[i].iov_len, NET_HEAD_BYTES - done);
		memcpy(head + done, iov[i].iov_base, part);
		done += part;
	}
	return done;
}

/* Pops chains until they hold `bytes`. Returns how many; 0: too few now; negative: the frame is not for them. */
static int collect(struct virtio_net *card, struct virtq *queue, uint64_t bytes)
{
	bool merge = net_has(card, NET_F_MRG_RXBUF);
	uint64_t room = 0;
	int count = 0, status = 1;

	while (room < bytes && status > 0) {
		if (count == (merge ? NET_CHAINS_MAX : 1)) {
			status = -EMSGSIZE;
			break;
		}
		status = virtq_pop(queue, &card->rx[count]);
		if (status <= 0)
			break;
		if (card->rx[count].in_bytes < (count ? 1 : NET_HEADER_BYTES)) {
			virtio_fail(card->device, "a receive buffer of %u bytes",
				(unsigned)card->rx[count].in_bytes);
			return -EINVAL;
		}
		room += card->rx[count++].in_bytes;
	}
	if (status > 0)
		return count;
	while (status != -EINVAL && count--)
		virtq_unpop(queue, &card->rx[count]);
	return status;
}

/* Goes on filling the collected chains, at a place that is kept. */
struct fill {
	struct virtio_net *card;
	unsigned chain;
	uint64_t offset; /* in the chain */
	uint32_t written[NET_CHAINS_MAX];
};

static void fill(struct fill *f, const uint8_t *bytes, size_t size)
{
	while (size) {
		struct virtq_buffer *chain = &f->card->rx[f->chain];
		size_t done = (size_t)virtq_write(chain, f->offset, bytes, size);
		bytes += done;
		size -= done;
		f->offset += done;
		f->written[f->chain] += (uint32_t)done;
		if (size) {
			f->chain++;
			f->offset = 0;
		}
	}
}

static void deliver(struct virtio_net *card, struct virtq *queue, const struct net_offload *offload,
	const struct iovec *iov, unsigned iov_count, unsigned chains)
{
	struct virtq_buffer *all[NET_CHAINS_MAX];
	uint8_t header[NET_HEADER_BYTES];
	struct net_offload said = *offload;
	struct fill f = {.card = card};

	said.buffers = (uint16_t)chains;
	if (!net_has(card, NET_F_GUEST_CSUM))
		said.flags = 0;
	if (!net_has(card, NET_F_GUEST_ECN))
		said.gso_type &= (uint8_t)~NET_GSO_ECN;
	net_offload_store(header, &said);
	fill(&f, header, sizeof(header));
	for (unsigned i = 0; i < iov_count; i++)
		fill(&f, iov[i].iov_base, iov[i].iov_len);
	for (unsigned i = 0; i < chains; i++)
		all[i] = &card->rx[i];
	virtq_push_all(queue, all, f.written, chains);
	virtq_signal(queue);
}

/* As collect(). At 0 the guest's next buffers kick: the second look is what asks for that, where the buffers end. */
static int collect_or_wait(struct virtio_net *card, struct virtq *queue, uint64_t bytes)
{
	int count = collect(card, queue, bytes);

	if (count || !virtio_live(card->device))
		return count;
	virtq_want_kicks(queue, true);
	count = collect(card, queue, bytes);
	if (count)
		virtq_want_kicks(queue, false);
	else
		card->starved = true;
	return count;
}

static bool card_receive(void *opaque, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	struct virtio_net *card = opaque;
	uint64_t bytes = iov_bytes(iov, iov_count);
	uint8_t head[NET_HEAD_BYTES];

	AUTO_CARD(card);
	/* Since the network was told what the guest takes the guest may have been reset. */
	if (!virtio_live(card->device) || !net_offload_check(offload, bytes) ||
		net_offload_needs(offload) & ~takes_now(card))
		return true;
	size_t head_bytes = frame_head(iov, iov_count, head);
	if (!net_filter_pass(card, head, head_bytes))
		return true;
	unsigned pair = card->pairs > 1 ? card->flow[flow_of(head, head_bytes)] : 0;
	struct virtq *queue = virtio_queue(card->device, 2 * (pair < card->pairs ? pair : 0));
	if (!virtq_is_enabled(queue))
		return true;
	int chains = collect_or_wait(card, queue, NET_HEADER_BYTES + bytes);
	if (chains > 0)
		deliver(card, queue, offload, iov, iov_count, (unsigned)chains);
	return chains != 0;
}

static void buffers_came(struct virtio_net *card, unsigned queue)
{
	if (!card->starved)
		return;
	card->starved = false;
	virtq_want_kicks(virtio_queue(card->device, queue), false);
	BELOW_NETWORK(card, card->net->ops->ready(card->net));
}

static void card_link(void *opaque, bool up)
{
	struct virtio_net *card = opaque;

	AUTO_CARD(card);
	if (card->link_up == up)
		return;
	card->link_up = up;
	virtio_config_changed(card->device);
}

/* ---- life ---- */

void net_attach(struct virtio_net *card)
{
	struct net_peer peer = {.receive = card_receive, .link = card_link, .opaque = card};
	unsigned takes = takes_now(card);

	BELOW_NETWORK(card, card->net->ops->attach(card->net, &peer, takes));
}

static void attach_posted(void *opaque)
{
	struct virtio_net *card = opaque;

	AUTO_LOCK(card->lock);
	card->starved = false;
	net_attach(card);
}

static void card_start(void *opaque, uint64_t features)
{
	struct virtio_net *card = opaque;

	card->features = features;
	card->offloads = features & NET_GUEST_OFFLOADS;
	net_filter_reset(card);
	/* Without NET_F_MQ the third queue is no receive queue. */
	for (unsigned i = 0; i < (net_has(card, NET_F_MQ) ? card->pairs_max : 1); i++)
		virtq_want_kicks(virtio_queue(card->device, 2 * i), false);
	loop_post(card->loop, &card->attach_call);
}

static void card_notify(void *opaque, unsigned queue)
{
	struct virtio_net *card = opaque;

	if (net_has(card, NET_F_CTRL_VQ) && queue == net_control_queue(card))
		net_control_run(card);
	else if (queue >= 2 * card->pairs_max)
		return;
	else if (queue & 1)
		send_waiting(card, queue / 2);
	else
		buffers_came(card, queue);
}

static bool card_reset(void *opaque)
{
	struct virtio_net *card = opaque;

	card->features = card->offloads = 0;
	card->pairs = 1;
	card->announcing = false;
	memcpy(card->mac, card->first_mac, sizeof(card->mac));
	memset(card->flow, 0, sizeof(card->flow));
	net_filter_reset(card);
	return true;
}

static const struct virtio_ops net_ops = {
	.id = VIRTIO_ID_NET,
	.name = "net",
	.features = card_features,
	.queue_size = card_queue_size,
	.config_bytes = NET_CONFIG_BYTES,
	.config_read = card_config_read,
	.start = card_start,
	.notify = card_notify,
	.reset = card_reset,
};

static void init_calls(struct virtio_net *card)
{
	card->attach_call = (struct loop_call){.fn = attach_posted, .opaque = card};
	for (unsigned i = 0; i < VIRTIO_NET_PAIRS_MAX; i++) {
		card->again[i].card = card;
		card->again[i].pair = i;
		card->again_call[i] =
			(struct loop_call){.fn = send_again, .opaque = &card->again[i]};
	}
}

int virtio_net_create(const struct virtio_net_config *config, struct virtio_net **ret_card)
{
	struct virtio_net *card;

	if (!config->queue_pairs || config->queue_pairs > VIRTIO_NET_PAIRS_MAX)
		return -EINVAL;
	card = calloc(1, sizeof(*card));
	if (!card)
		return -ENOMEM;
	card->net = config->net;
	card->loop = config->wiring->loop;
	card->lock = config->wiring->lock;
	card->name = config->wiring->name;
	card->mtu = config->mtu ? config->mtu : config->net->ops->mtu(config->net);
	card->pairs_max = config->queue_pairs;
	card->offered = offered_features(config->net, config->queue_pairs);
	card->link_up = true;
	memcpy(card->first_mac, config->mac, sizeof(card->first_mac));
	card_reset(card);
	init_calls(card);
	struct virtio_config virtio = *config->wiring;
	virtio.ops = &net_ops;
	virtio.device = card;
	int status = virtio_create(&virtio, &card->device);
	if (status < 0) {
		free(card);
		return status;
	}
	net_attach(card);
	*ret_card = card;
	return 0;
}

void virtio_net_free(struct virtio_net *card)
{
	if (!card)
		return;
	card->net->ops->attach(card->net, NULL, 0);
	loop_cancel(card->loop, &card->attach_call);
	for (unsigned i = 0; i < VIRTIO_NET_PAIRS_MAX; i++)
		loop_cancel(card->loop, &card->again_call[i]);
	virtio_free(card->device);
	virtq_buffer_free(&card->tx);
	virtq_buffer_free(&card->control);
	for (unsigned i = 0; i < NET_CHAINS_MAX; i++)
		virtq_buffer_free(&card->rx[i]);
	free(card);
}

struct virtio_device *virtio_net_device(struct virtio_net *card)
{
	return card->device;
}

void virtio_net_announce(struct virtio_net *card)
{
	AUTO_LOCK(card->lock);
	if (!net_has(card, NET_F_GUEST_ANNOUNCE))
		return;
	card->announcing = true;
	virtio_config_changed(card->device);
}
