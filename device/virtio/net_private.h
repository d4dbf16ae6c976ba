/*
 * What the files of the network card share: net.c (frames) and net_control.c (commands and filters).
 */
#ifndef LODGE_DEVICE_VIRTIO_NET_PRIVATE_H
#define LODGE_DEVICE_VIRTIO_NET_PRIVATE_H

#include "base/log.h"
#include "base/loop.h"
#include "device/net.h"
#include "device/virtio/net.h"
#include "device/virtio/virtio.h"

/* Feature bits of the card (virtio 1.2, 5.1.3). */
#define NET_F_CSUM		  (1ull << 0)
#define NET_F_GUEST_CSUM	  (1ull << 1)
#define NET_F_CTRL_GUEST_OFFLOADS (1ull << 2)
#define NET_F_MTU		  (1ull << 3)
#define NET_F_MAC		  (1ull << 5)
#define NET_F_GUEST_TSO4	  (1ull << 7)
#define NET_F_GUEST_TSO6	  (1ull << 8)
#define NET_F_GUEST_ECN		  (1ull << 9)
#define NET_F_HOST_TSO4		  (1ull << 11)
#define NET_F_HOST_TSO6		  (1ull << 12)
#define NET_F_HOST_ECN		  (1ull << 13)
#define NET_F_MRG_RXBUF		  (1ull << 15)
#define NET_F_STATUS		  (1ull << 16)
#define NET_F_CTRL_VQ		  (1ull << 17)
#define NET_F_CTRL_RX		  (1ull << 18)
#define NET_F_CTRL_VLAN		  (1ull << 19)
#define NET_F_CTRL_RX_EXTRA	  (1ull << 20)
#define NET_F_GUEST_ANNOUNCE	  (1ull << 21)
#define NET_F_MQ		  (1ull << 22)
#define NET_F_CTRL_MAC_ADDR	  (1ull << 23)
#define NET_F_GUEST_USO4	  (1ull << 54)
#define NET_F_GUEST_USO6	  (1ull << 55)
#define NET_F_HOST_USO		  (1ull << 56)

/* What CTRL_GUEST_OFFLOADS may turn on and off. */
#define NET_GUEST_OFFLOADS                                                          \
	(NET_F_GUEST_CSUM | NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_ECN | \
		NET_F_GUEST_USO4 | NET_F_GUEST_USO6)

#define NET_QUEUE_SIZE	 256
#define NET_CHAINS_MAX	 128 /* receive buffers under one frame */
#define NET_FLOWS	 256 /* places of the steering table */
#define NET_FILTER_MACS	 64
#define NET_HEAD_BYTES	 64 /* of a frame, looked at for its flow */
#define NET_CONFIG_BYTES 12

#define NET_STATUS_LINK_UP  1
#define NET_STATUS_ANNOUNCE 2

/* Which received frames the guest wants (5.1.6.5.1 to 5.1.6.5.3). */
struct net_filter {
	bool promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast;
	bool unicast_overflow, multicast_overflow; /* more addresses than fit: all pass */
	unsigned unicasts, multicasts;
	uint8_t unicast[NET_FILTER_MACS][6], multicast[NET_FILTER_MACS][6];
	bool vlans_filtered;
	uint64_t vlans[4096 / 64];
};

struct virtio_net {
	struct virtio_device *device;
	struct net *net;
	struct loop *loop;
	pthread_mutex_t *lock;
	const char *name;
	uint16_t mtu;
	unsigned pairs_max;
	uint64_t offered;
	uint8_t first_mac[6];

	/* Guarded by the lock. */
	uint8_t mac[6];
	uint64_t features; /* agreed on */
	uint64_t offloads; /* of NET_GUEST_OFFLOADS: on now */
	unsigned pairs;	   /* in use */
	bool link_up, announcing;
	struct net_filter filter;
	uint8_t flow[NET_FLOWS]; /* the pair that last sent for it */
	struct virtq_buffer tx, control, rx[NET_CHAINS_MAX];
	struct log_limit limit;

	/* The loop's thread only. */
	bool in_card; /* below a call of ours to the network, with the lock held */
	bool starved; /* a frame waits for receive buffers */
	struct loop_call attach_call;
	struct loop_call again_call[VIRTIO_NET_PAIRS_MAX]; /* send more */
	struct net_again {
		struct virtio_net *card;
		unsigned pair;
	} again[VIRTIO_NET_PAIRS_MAX];
};

static inline bool net_has(const struct virtio_net *card, uint64_t feature)
{
	return (card->features & feature) != 0;
}

/* Index of the control queue with the features agreed on. */
unsigned net_control_queue(const struct virtio_net *card);
/* Serve all commands that are waiting. Lock held, on the loop's thread. */
void net_control_run(struct virtio_net *card);
void net_filter_reset(struct virtio_net *card);
/* Does the guest want this frame? `head`: its first bytes, at least 18 or all there are. */
bool net_filter_pass(const struct virtio_net *card, const uint8_t *head, size_t head_bytes);
/* Tell the network what the guest takes now. */
void net_attach(struct virtio_net *card);

#endif
