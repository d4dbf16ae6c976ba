/*
 * The control queue of the virtio network card, and the receive filters that it sets: see net.h. (virtio 1.2, 5.1.6.5)
 *
 * A command is copied before it is looked at. What was not negotiated, is unknown or cut short gets VIRTIO_NET_ERR
 * and changes nothing.
 */
#include "device/virtio/net_private.h"

#include "base/bytes.h"

#include <errno.h>
#include <string.h>

#define CTRL_OK	 0
#define CTRL_ERR 1

enum {
	CLASS_RX = 0,
	CLASS_MAC = 1,
	CLASS_VLAN = 2,
	CLASS_ANNOUNCE = 3,
	CLASS_MQ = 4,
	CLASS_OFFLOADS = 5
};
enum { RX_PROMISC, RX_ALLMULTI, RX_ALLUNI, RX_NOMULTI, RX_NOUNI, RX_NOBCAST };
enum { MAC_TABLE_SET, MAC_ADDR_SET };
enum { VLAN_ADD, VLAN_DEL };

#define COMMANDS_MAX 64 /* at one notification; the driver waits for each anyway */

unsigned net_control_queue(const struct virtio_net *card)
{
	return net_has(card, NET_F_MQ) ? 2 * card->pairs_max : 2;
}

/* ---- filters ---- */

void net_filter_reset(struct virtio_net *card)
{
	memset(&card->filter, 0, sizeof(card->filter));
	/* Until the guest says what it wants. */
	card->filter.promiscuous = true;
	card->filter.vlans_filtered = net_has(card, NET_F_CTRL_VLAN);
}

static bool listed(const uint8_t (*list)[6], unsigned count, const uint8_t *mac)
{
	for (unsigned i = 0; i < count; i++)
		if (memcmp(list[i], mac, 6) == 0)
			return true;
	return false;
}

static bool vlan_pass(const struct net_filter *f, const uint8_t *head, size_t head_bytes)
{
	if (!f->vlans_filtered || head_bytes < 18 || load_be16(head + 12) != 0x8100)
		return true;
	unsigned id = load_be16(head + 14) & 4095;
	return f->vlans[id / 64] >> id % 64 & 1;
}

bool net_filter_pass(const struct virtio_net *card, const uint8_t *head, size_t head_bytes)
{
	static const uint8_t broadcast[6] = {255, 255, 255, 255, 255, 255};
	const struct net_filter *f = &card->filter;

	if (!vlan_pass(f, head, head_bytes))
		return false;
	if (f->promiscuous)
		return true;
	if (memcmp(head, broadcast, 6) == 0)
		return !f->no_broadcast;
	if (head[0] & 1)
		return !f->no_multicast && (f->all_multicast || f->multicast_overflow ||
						   listed(f->multicast, f->multicasts, head));
	return !f->no_unicast &&
	       (f->all_unicast || f->unicast_overflow || memcmp(head, card->mac, 6) == 0 ||
		       listed(f->unicast, f->unicasts, head));
}

/* ---- commands; the data of one begin behind class and command ---- */

struct command {
	const struct virtq_buffer *buffer;
	uint64_t at; /* next byte of data */
};

static bool take(struct command *c, void *to, size_t size)
{
	size_t got = (size_t)virtq_read(c->buffer, c->at, to, size);

	c->at += got;
	return got == size;
}

static bool set_rx_mode(struct virtio_net *card, uint8_t which, struct command *c)
{
	struct net_filter *f = &card->filter;
	bool *mode[] = {&f->promiscuous, &f->all_multicast, &f->all_unicast, &f->no_multicast,
		&f->no_unicast, &f->no_broadcast};
	uint64_t need = which <= RX_ALLMULTI ? NET_F_CTRL_RX : NET_F_CTRL_RX_EXTRA;
	uint8_t on;

	if (which >= ARRAY_SIZE(mode) || !net_has(card, need) || !take(c, &on, 1))
		return false;
	*mode[which] = on != 0;
	return true;
}

/* A list of addresses of any length, of which the first few are kept. */
static bool take_macs(
	struct command *c, uint8_t (*list)[6], unsigned *ret_count, bool *ret_overflow)
{
	uint8_t raw[4];

	if (!take(c, raw, sizeof(raw)))
		return false;
	uint64_t count = load_le32(raw), left = c->buffer->out_bytes - c->at;
	if (count * 6 > left)
		return false;
	*ret_overflow = count > NET_FILTER_MACS;
	*ret_count = *ret_overflow ? 0 : (unsigned)count;
	if (*ret_count && !take(c, list, (size_t)*ret_count * 6))
		return false;
	c->at += (count - *ret_count) * 6;
	return true;
}

static bool set_mac(struct virtio_net *card, uint8_t which, struct command *c)
{
	uint8_t mac[6];

	if (which == MAC_ADDR_SET) {
		if (!net_has(card, NET_F_CTRL_MAC_ADDR) || !take(c, mac, sizeof(mac)))
			return false;
		memcpy(card->mac, mac, sizeof(mac));
		return true;
	}
	struct net_filter f = card->filter;
	if (which != MAC_TABLE_SET || !net_has(card, NET_F_CTRL_RX) ||
		!take_macs(c, f.unicast, &f.unicasts, &f.unicast_overflow) ||
		!take_macs(c, f.multicast, &f.multicasts, &f.multicast_overflow))
		return false;
	card->filter = f;
	return true;
}

static bool set_vlan(struct virtio_net *card, uint8_t which, struct command *c)
{
	uint8_t raw[2];

	if (which > VLAN_DEL || !net_has(card, NET_F_CTRL_VLAN) || !take(c, raw, sizeof(raw)))
		return false;
	unsigned id = load_le16(raw);
	if (id > 4095)
		return false;
	if (which == VLAN_ADD)
		card->filter.vlans[id / 64] |= 1ull << id % 64;
	else
		card->filter.vlans[id / 64] &= ~(1ull << id % 64);
	return true;
}

static bool set_pairs(struct virtio_net *card, uint8_t which, struct command *c)
{
	uint8_t raw[2];

	if (which != 0 || !net_has(card, NET_F_MQ) || !take(c, raw, sizeof(raw)))
		return false;
	unsigned pairs = load_le16(raw);
	if (!pairs || pairs > card->pairs_max)
		return false;
	card->pairs = pairs;
	return true;
}

static bool set_offloads(struct virtio_net *card, uint8_t which, struct command *c)
{
	uint8_t raw[8];

	if (which != 0 || !net_has(card, NET_F_CTRL_GUEST_OFFLOADS) || !take(c, raw, sizeof(raw)))
		return false;
	uint64_t offloads = load_le64(raw);
	if (offloads & ~(card->features & NET_GUEST_OFFLOADS))
		return false;
	card->offloads = offloads;
	net_attach(card);
	return true;
}

static bool acknowledge_announce(struct virtio_net *card, uint8_t which)
{
	if (which != 0 || !net_has(card, NET_F_GUEST_ANNOUNCE))
		return false;
	card->announcing = false;
	return true;
}

static bool command(struct virtio_net *card, const struct virtq_buffer *buffer)
{
	struct command c = {.buffer = buffer};
	uint8_t head[2];

	if (!take(&c, head, sizeof(head)))
		return false;
	switch (head[0]) {
	case CLASS_RX: return set_rx_mode(card, head[1], &c);
	case CLASS_MAC: return set_mac(card, head[1], &c);
	case CLASS_VLAN: return set_vlan(card, head[1], &c);
	case CLASS_ANNOUNCE: return acknowledge_announce(card, head[1]);
	case CLASS_MQ: return set_pairs(card, head[1], &c);
	case CLASS_OFFLOADS: return set_offloads(card, head[1], &c);
	default: return false;
	}
}

void net_control_run(struct virtio_net *card)
{
	struct virtq *queue = virtio_queue(card->device, net_control_queue(card));
	unsigned served = 0;

	while (served < COMMANDS_MAX && virtq_pop(queue, &card->control) > 0) {
		uint8_t ack = command(card, &card->control) ? CTRL_OK : CTRL_ERR;
		uint32_t written = (uint32_t)virtq_write(&card->control, 0, &ack, 1);
		virtq_push(queue, &card->control, written);
		served++;
	}
	if (served)
		virtq_signal(queue);
}
