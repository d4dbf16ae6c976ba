/*
 * A network as a network card (virtio net, e1000) sees it: frames out, frames in. User-mode networking, taps, passt
 * and virtual switches (backend/net) implement it; a test has one of its own.
 *
 * A frame is an Ethernet frame without its checksum, with what the sender left to do before it: struct net_offload,
 * which has the layout of struct virtio_net_hdr (virtio 1.2, 5.1.6; little endian, 12 bytes with num_buffers).
 *
 * Threads: all on the thread of the loop that the network was opened with.
 */
#ifndef LODGE_DEVICE_NET_H
#define LODGE_DEVICE_NET_H

#include "base/util.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define NET_FRAME_MAX \
	(65536 + 18) /* of a frame with segmentation left to do; the header not counted */

struct net_offload {
	uint8_t flags;	  /* VIRTIO_NET_HDR_F_* */
	uint8_t gso_type; /* VIRTIO_NET_HDR_GSO_* */
	uint16_t header_bytes, gso_bytes, csum_start, csum_offset;
	uint16_t buffers;
};

enum { /* net_offload.flags and .gso_type */
	NET_NEEDS_CSUM =
		1, /* sum up from csum_start to the frame's end, store at csum_start + csum_offset */
	NET_DATA_VALID = 2, /* its checksums were found right */
	NET_GSO_NONE = 0,
	NET_GSO_TCP4 = 1,
	NET_GSO_TCP6 = 4,
	NET_GSO_UDP = 5, /* USO: datagrams, not fragments */
	NET_GSO_ECN = 0x80,
};

#define NET_HEADER_BYTES 12 /* of struct net_offload on the wire */

enum net_feature {    /* what a side can take in the frames that it is given */
	NET_CSUM = 1, /* checksums left to do */
	NET_TSO4 = 2, /* TCP segments larger than the MTU */
	NET_TSO6 = 4,
	NET_USO = 8,
};

/* The card's side. */
struct net_peer {
	/* A frame for the guest. false: no buffers now; then `ready` is called on the network when there are some, and
	 * the frame is the network's to give again or drop. The bytes are not guest RAM. */
	bool (*receive)(void *opaque, const struct net_offload *offload, const struct iovec *iov,
		unsigned iov_count);
	void (*link)(void *opaque, bool up); /* may be NULL */
	void *opaque;
};

/* Is what is said about a frame of `frame_bytes` within the frame and in itself consistent? Everything that came from
 * a guest or another process passes here before anything else looks at it. It does not look into the frame. */
bool net_offload_check(const struct net_offload *offload, uint64_t frame_bytes);
/* What a receiver must be able to take to be given this (enum net_feature). */
unsigned net_offload_needs(const struct net_offload *offload);
/* To and from NET_HEADER_BYTES of little endian. */
void net_offload_load(struct net_offload *ret_offload, const uint8_t *bytes);
void net_offload_store(uint8_t *bytes, const struct net_offload *offload);

struct net {
	const struct net_ops *ops;
};

struct net_ops {
	/* Must be called before the first frame; also again after a reset of the card. `peer` is copied; `takes` is
	 * what the guest can be given (enum net_feature). NULL: nobody listens, frames are dropped. */
	void (*attach)(struct net *net, const struct net_peer *peer, unsigned takes);
	unsigned (*features)(struct net *net); /* what the network can be given */
	uint16_t (*mtu)(struct net *net);
	/* A frame of the guest's; taken or dropped when it returns. */
	void (*send)(struct net *net, const struct net_offload *offload, const struct iovec *iov,
		unsigned iov_count);
	/* The card has buffers again after a receive() that returned false. */
	void (*ready)(struct net *net);
	void (*close)(struct net *net);
};

#endif
