/*
 * A virtio network card (virtio 1.2, 5.1) on any network (device/net.h).
 *
 * Several queue pairs with automatic receive steering, mergeable receive buffers, checksums and segmentation left to
 * the other side in both directions, the control queue (receive filters, VLANs, MAC address, queue pairs,
 * offloads of the guest, announcing), MAC, MTU and link status. Left out: hashes and receive-side scaling
 * (HASH_REPORT, RSS), coalescing of notifications, UDP fragmentation offload (UFO), standby.
 *
 * Threads: create and free by the owner, while the loop is not running and no vCPU runs; the others on the loop's
 * thread.
 */
#ifndef LODGE_DEVICE_VIRTIO_NET_H
#define LODGE_DEVICE_VIRTIO_NET_H

#include "base/types.h"
#include "base/util.h"

#define VIRTIO_NET_PAIRS_MAX 16
#define VIRTIO_NET_MTU_MIN   68

struct net;
struct virtio_config;
struct virtio_device;
struct virtio_net;

struct virtio_net_config {
	const struct virtio_config
		*wiring; /* all but ops and device; the loop is the network's too */
	struct net *net; /* stays the caller's, and outlives the card */
	uint8_t mac[6];
	unsigned queue_pairs; /* 1 to VIRTIO_NET_PAIRS_MAX */
	uint16_t mtu;	      /* 0: the network's */
};

/* Errors: -ENOMEM, -EINVAL (queue_pairs), and virtio_create()'s. */
MUST_CHECK int virtio_net_create(
	const struct virtio_net_config *config, struct virtio_net **ret_card);
void virtio_net_free(struct virtio_net *card); /* NULL is allowed */

/* What a transport is given; the card keeps it. */
struct virtio_device *virtio_net_device(struct virtio_net *card);
/* Ask the guest to tell the network where it is (after a migration). */
void virtio_net_announce(struct virtio_net *card);

#endif
