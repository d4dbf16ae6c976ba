/*
 * Checksums and segmentation in software, for networks and guests that do not take them undone: completing frames
 * (net.h: struct net_offload), cutting large TCP frames and bundles of UDP datagrams into segments, and the other way
 * round: telling a guest that a large TCP frame stands for segments.
 *
 * Frames here are contiguous and private to the caller (never guest RAM): lengths in them are read several times.
 * Any bytes may come; what makes no sense is refused.
 */
#ifndef LODGE_BACKEND_NET_OFFLOAD_H
#define LODGE_BACKEND_NET_OFFLOAD_H

#include "base/util.h"
#include "device/net.h"

#include <stdbool.h>
#include <stddef.h>

#define OFFLOAD_FRAME_MAX NET_FRAME_MAX

/* Where the headers of a TCP or UDP frame are. */
struct frame_layout {
	bool ipv6;
	uint8_t protocol;     /* IPPROTO_TCP or IPPROTO_UDP */
	unsigned ip, payload; /* offsets: IP header, first byte after the TCP or UDP header */
	unsigned transport;   /* offset of the TCP or UDP header */
	unsigned end;	      /* of the IP packet; what is behind it is padding */
};

/* False: not TCP or UDP over IP, or a fragment, or cut short. `large`: the IP length does not count, the frame
 * ends where it ends (senders of segmentation work may leave it at anything). */
bool offload_layout(
	const uint8_t *frame, size_t bytes, bool large, struct frame_layout *ret_layout);

/* Copies at most `size` bytes of the iov, from `skip` on; returns how many. */
size_t offload_gather(
	uint8_t *to, size_t size, const struct iovec *iov, unsigned iov_count, size_t skip);

/* Ones' complement sum of the bytes (not folded), added to `sum`: the start is even for the sum's sake. */
uint64_t offload_sum(const void *bytes, size_t count, uint64_t sum);
uint16_t offload_fold(uint64_t sum); /* not complemented; as it lies in memory */

/* Do the checksum that net_offload_check()ed `offload` leaves to do. */
void offload_checksum(uint8_t *frame, size_t bytes, const struct net_offload *offload);

/* The IPv4 header's checksum, and the lengths in IP and UDP headers, of a frame that is not cut: after which it is
 * one large, valid packet but for the TCP or UDP checksum, which is made too. False: longer than IP can say. */
bool offload_make_whole(uint8_t *frame, size_t bytes, const struct frame_layout *layout);

/* Cut a frame into segments of `segment_bytes` of payload, each complete in all checksums; `emit` gets them one
 * after the other. `room` holds a segment with its headers, room_bytes of it. False: not to be cut (no TCP or UDP,
 * no payload, segments do not fit into the room). */
typedef void offload_emit(void *opaque, uint8_t *frame, size_t bytes);
bool offload_cut(const uint8_t *frame, size_t bytes, unsigned segment_bytes, uint8_t *room,
	size_t room_bytes, offload_emit *emit, void *opaque);

/* A received, complete TCP frame longer than `segment_bytes` of payload: say in *ret_offload that it stands for
 * segments, and make its checksum what that demands. `head` holds its first bytes, all headers among them, and is
 * changed; frame_bytes is its whole length. False: not TCP, or no longer than that; then nothing was done. */
bool offload_bundle(uint8_t *head, size_t head_bytes, size_t frame_bytes, unsigned segment_bytes,
	struct net_offload *ret_offload);

/* Cut an IPv4 packet (not TCP work) that is longer than `mtu` into fragments. False: not IPv4, or must not be. */
bool offload_fragment(const uint8_t *frame, size_t bytes, unsigned mtu, uint8_t *room,
	size_t room_bytes, offload_emit *emit, void *opaque);

/* A frame for somebody who takes `takes` (enum net_feature): `emit` gets it as it is, or in as many frames as are
 * complete enough. The frame is changed. `room`: OFFLOAD_FRAME_MAX bytes. What can't be cut is dropped. */
typedef void offload_give(
	void *opaque, const struct net_offload *offload, uint8_t *frame, size_t bytes);
void offload_complete(unsigned takes, const struct net_offload *offload, uint8_t *frame,
	size_t bytes, uint8_t *room, offload_give *give, void *opaque);

/* A frame of a guest's for a network that knows no offloads but large frames: completed, TCP work as few packets
 * of up to `most` bytes (of IP), UDP work as its datagrams. The frame is changed; `room` as above. */
void offload_whole(const struct net_offload *offload, uint8_t *frame, size_t bytes, unsigned most,
	uint8_t *room, offload_emit *emit, void *opaque);

/* If it is a TCP frame with SYN whose maximum segment size option says `from`, make that `to`. Checksums that are
 * complete (!partial) are kept right. */
bool offload_raise_mss(uint8_t *frame, size_t bytes, bool partial, uint16_t from, uint16_t to);

#endif
