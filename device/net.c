/*
 * What a card and a network say to each other about a frame: see net.h. (virtio 1.2, 5.1.6)
 */
#include "device/net.h"

#include "base/bytes.h"

#define ETHERNET_BYTES 14u

static bool gso_check(const struct net_offload *offload, uint64_t frame_bytes)
{
	switch (offload->gso_type & ~NET_GSO_ECN) {
	case NET_GSO_NONE: return offload->gso_type == NET_GSO_NONE;
	case NET_GSO_UDP:
		if (offload->gso_type & NET_GSO_ECN)
			return false;
		break;
	case NET_GSO_TCP4:
	case NET_GSO_TCP6: break;
	default: return false;
	}
	/* A segment's checksum can only be made by who makes the segment. */
	return offload->flags & NET_NEEDS_CSUM && offload->gso_bytes &&
	       offload->csum_start < frame_bytes;
}

bool net_offload_check(const struct net_offload *offload, uint64_t frame_bytes)
{
	if (frame_bytes < ETHERNET_BYTES || frame_bytes > NET_FRAME_MAX)
		return false;
	if (offload->flags & ~(NET_NEEDS_CSUM | NET_DATA_VALID))
		return false;
	/* Not over the addresses, and all of it within the frame. */
	if (offload->flags & NET_NEEDS_CSUM &&
		(offload->csum_start < ETHERNET_BYTES ||
			(uint32_t)offload->csum_start + offload->csum_offset + 2 > frame_bytes))
		return false;
	return gso_check(offload, frame_bytes);
}

unsigned net_offload_needs(const struct net_offload *offload)
{
	unsigned needs = offload->flags & NET_NEEDS_CSUM ? NET_CSUM : 0;

	switch (offload->gso_type & ~NET_GSO_ECN) {
	case NET_GSO_TCP4: return needs | NET_TSO4;
	case NET_GSO_TCP6: return needs | NET_TSO6;
	case NET_GSO_UDP: return needs | NET_USO;
	default: return needs;
	}
}

void net_offload_load(struct net_offload *ret_offload, const uint8_t *bytes)
{
	*ret_offload = (struct net_offload){
		.flags = bytes[0],
		.gso_type = bytes[1],
		.header_bytes = load_le16(bytes + 2),
		.gso_bytes = load_le16(bytes + 4),
		.csum_start = load_le16(bytes + 6),
		.csum_offset = load_le16(bytes + 8),
		.buffers = load_le16(bytes + 10),
	};
}

void net_offload_store(uint8_t *bytes, const struct net_offload *offload)
{
	bytes[0] = offload->flags;
	bytes[1] = offload->gso_type;
	store_le16(bytes + 2, offload->header_bytes);
	store_le16(bytes + 4, offload->gso_bytes);
	store_le16(bytes + 6, offload->csum_start);
	store_le16(bytes + 8, offload->csum_offset);
	store_le16(bytes + 10, offload->buffers);
}
