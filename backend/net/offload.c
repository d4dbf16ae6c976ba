/*
 * Checksums and segmentation in software: see offload.h. (RFC 791, 1071, 1624, 8200, 9293; what a segment of TCP work
 * looks like: virtio 1.2, 5.1.6.2, and what network cards do)
 *
 * Left out: jumbograms, IPsec and tunnels (a tunnelled frame is no TCP here and stays uncut), UDP-Lite.
 */
#include "backend/net/offload.h"

#include "base/bytes.h"

#include <netinet/in.h>
#include <string.h>

#define ETHERNET_BYTES 14u
#define VLANS_MAX      2
#define EXTENSIONS_MAX 8 /* IPv6 headers before the transport's */
#define TCP_CSUM       16
#define UDP_CSUM       6
#define TCP_FIN	       0x01
#define TCP_SYN	       0x02
#define TCP_PSH	       0x08
#define TCP_CWR	       0x80

/* ---- where things are ---- */

/* Offset of the IP header and the type of what is there; 0: the frame is too short. */
static unsigned skip_ethernet(const uint8_t *frame, size_t bytes, uint16_t *ret_type)
{
	unsigned at = ETHERNET_BYTES;

	if (bytes < at)
		return 0;
	*ret_type = load_be16(frame + 12);
	for (unsigned i = 0; i < VLANS_MAX && (*ret_type == 0x8100 || *ret_type == 0x88a8); i++) {
		if (bytes < at + 4)
			return 0;
		*ret_type = load_be16(frame + at + 2);
		at += 4;
	}
	return at;
}

static bool layout_ipv4(const uint8_t *frame, size_t bytes, bool large, struct frame_layout *l)
{
	const uint8_t *ip = frame + l->ip;
	unsigned left = (unsigned)(bytes - l->ip), header;

	if (left < 20 || ip[0] >> 4 != 4)
		return false;
	header = (ip[0] & 15u) * 4;
	unsigned total = large ? left : load_be16(ip + 2);
	/* More fragments, or an offset. */
	if (header < 20 || total < header || total > left || load_be16(ip + 6) & 0x3fff)
		return false;
	l->protocol = ip[9];
	l->transport = l->ip + header;
	l->end = l->ip + total;
	return true;
}

static bool layout_ipv6(const uint8_t *frame, size_t bytes, bool large, struct frame_layout *l)
{
	const uint8_t *ip = frame + l->ip;
	unsigned left = (unsigned)(bytes - l->ip);

	if (left < 40 || ip[0] >> 4 != 6)
		return false;
	unsigned total = large ? left : 40u + load_be16(ip + 4);
	if (total > left)
		return false;
	l->ipv6 = true;
	l->protocol = ip[6];
	l->transport = l->ip + 40;
	l->end = l->ip + total;
	for (unsigned i = 0; i < EXTENSIONS_MAX; i++) {
		if (l->protocol != IPPROTO_HOPOPTS && l->protocol != IPPROTO_ROUTING &&
			l->protocol != IPPROTO_DSTOPTS)
			return true;
		if (l->end - l->transport < 8)
			return false;
		unsigned size = (frame[l->transport + 1] + 1u) * 8;
		if (size > l->end - l->transport)
			return false;
		l->protocol = frame[l->transport];
		l->transport += size;
	}
	return false;
}

bool offload_layout(const uint8_t *frame, size_t bytes, bool large, struct frame_layout *ret_layout)
{
	struct frame_layout l = {0};
	uint16_t type;

	if (bytes > OFFLOAD_FRAME_MAX)
		return false;
	l.ip = skip_ethernet(frame, bytes, &type);
	if (!l.ip || (type != 0x0800 && type != 0x86dd))
		return false;
	if (type == 0x0800 ? !layout_ipv4(frame, bytes, large, &l)
			   : !layout_ipv6(frame, bytes, large, &l))
		return false;
	unsigned left = l.end - l.transport, header = 8;
	if (l.protocol == IPPROTO_TCP) {
		if (left < 20)
			return false;
		header = (frame[l.transport + 12] >> 4) * 4u;
		if (header < 20)
			return false;
	} else if (l.protocol != IPPROTO_UDP) {
		return false;
	}
	if (header > left)
		return false;
	l.payload = l.transport + header;
	*ret_layout = l;
	return true;
}

size_t offload_gather(
	uint8_t *to, size_t size, const struct iovec *iov, unsigned iov_count, size_t skip)
{
	size_t done = 0;

	for (unsigned i = 0; i < iov_count && done < size; i++) {
		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		size_t part = MIN(iov[i].iov_len - skip, size - done);
		memcpy(to + done, (const uint8_t *)iov[i].iov_base + skip, part);
		done += part;
		skip = 0;
	}
	return done;
}

/* ---- sums ---- */

uint64_t offload_sum(const void *bytes, size_t count, uint64_t sum)
{
	const uint8_t *p = bytes;
	uint64_t low[2] = {0, 0}, high[2] = {0, 0}, word[2];
	uint32_t rest32;

	/* Halves of 64-bit words: 2^32 of them fit before anything is carried out. */
	for (; count >= 16; count -= 16, p += 16) {
		memcpy(word, p, 16);
		low[0] += (uint32_t)word[0];
		high[0] += word[0] >> 32;
		low[1] += (uint32_t)word[1];
		high[1] += word[1] >> 32;
	}
	sum += low[0] + low[1] + high[0] + high[1];
	for (; count >= 4; count -= 4, p += 4) {
		memcpy(&rest32, p, 4);
		sum += rest32;
	}
	if (count) {
		rest32 = 0;
		memcpy(&rest32, p, count);
		sum += rest32;
	}
	return sum;
}

uint16_t offload_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

static void store_raw16(uint8_t *at, uint16_t raw)
{
	memcpy(at, &raw, 2);
}

/* Of the addresses, the protocol and the length behind the IP headers. */
static uint64_t pseudo_sum(const uint8_t *frame, const struct frame_layout *l, uint32_t length)
{
	const uint8_t *ip = frame + l->ip;
	uint64_t sum = l->ipv6 ? offload_sum(ip + 8, 32, 0) : offload_sum(ip + 12, 8, 0);

	return sum + htobe16(l->protocol) + htobe32(length);
}

static unsigned csum_offset(const struct frame_layout *l)
{
	return l->protocol == IPPROTO_TCP ? TCP_CSUM : UDP_CSUM;
}

/* A sum of 0 is written as 0xffff: UDP keeps 0 for "none", and to TCP both are the same. */
static uint16_t complement(uint64_t sum)
{
	uint16_t folded = (uint16_t)~offload_fold(sum);

	return folded ? folded : 0xffff;
}

void offload_checksum(uint8_t *frame, size_t bytes, const struct net_offload *offload)
{
	unsigned start = offload->csum_start;

	if (!(offload->flags & NET_NEEDS_CSUM))
		return;
	store_raw16(frame + start + offload->csum_offset,
		complement(offload_sum(frame + start, bytes - start, 0)));
}

static void sum_ipv4(uint8_t *ip)
{
	store_raw16(ip + 10, 0);
	store_raw16(ip + 10, (uint16_t)~offload_fold(offload_sum(ip, (ip[0] & 15u) * 4, 0)));
}

/* Lengths and all checksums of a frame of `bytes`, whose headers are laid out as in l. */
static void seal(uint8_t *frame, size_t bytes, const struct frame_layout *l)
{
	uint8_t *ip = frame + l->ip, *transport = frame + l->transport;
	uint32_t length = (uint32_t)bytes - l->transport;

	if (l->ipv6) {
		store_be16(ip + 4, (uint16_t)(bytes - l->ip - 40));
	} else {
		store_be16(ip + 2, (uint16_t)(bytes - l->ip));
		sum_ipv4(ip);
	}
	if (l->protocol == IPPROTO_UDP)
		store_be16(transport + 4, (uint16_t)length);
	store_raw16(transport + csum_offset(l), 0);
	store_raw16(transport + csum_offset(l),
		complement(offload_sum(transport, length, pseudo_sum(frame, l, length))));
}

bool offload_make_whole(uint8_t *frame, size_t bytes, const struct frame_layout *layout)
{
	if (bytes - layout->ip - (layout->ipv6 ? 40 : 0) > 0xffff)
		return false;
	seal(frame, bytes, layout);
	return true;
}

/* ---- cutting ---- */

/* The headers of the segment that begins at `done` of the payload. */
static void head_of_segment(
	uint8_t *segment, const struct frame_layout *l, uint32_t done, unsigned index, bool last)
{
	uint8_t *ip = segment + l->ip, *tcp = segment + l->transport;

	if (!l->ipv6)
		store_be16(ip + 4, (uint16_t)(load_be16(ip + 4) + index));
	if (l->protocol != IPPROTO_TCP)
		return;
	store_be32(tcp + 4, load_be32(tcp + 4) + done);
	if (!last)
		tcp[13] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
	if (index)
		tcp[13] &= (uint8_t)~TCP_CWR;
}

bool offload_cut(const uint8_t *frame, size_t bytes, unsigned segment_bytes, uint8_t *room,
	size_t room_bytes, offload_emit *emit, void *opaque)
{
	struct frame_layout l;

	if (!segment_bytes || !offload_layout(frame, bytes, true, &l) || l.payload >= bytes)
		return false;
	size_t payload = bytes - l.payload;
	size_t most = MIN(payload, (size_t)segment_bytes);
	if (l.payload + most > room_bytes || l.payload + most - l.ip > 0xffff)
		return false;
	unsigned index = 0;
	for (size_t done = 0; done < payload; index++) {
		size_t part = MIN(payload - done, most);
		memcpy(room, frame, l.payload);
		memcpy(room + l.payload, frame + l.payload + done, part);
		head_of_segment(room, &l, (uint32_t)done, index, done + part == payload);
		seal(room, l.payload + part, &l);
		emit(opaque, room, l.payload + part);
		done += part;
	}
	return true;
}

bool offload_fragment(const uint8_t *frame, size_t bytes, unsigned mtu, uint8_t *room,
	size_t room_bytes, offload_emit *emit, void *opaque)
{
	uint16_t type;
	unsigned at = skip_ethernet(frame, bytes, &type);

	if (!at || type != 0x0800 || bytes - at < 20 || frame[at] >> 4 != 4)
		return false;
	unsigned header = (frame[at] & 15u) * 4, total = load_be16(frame + at + 2);
	unsigned flags = load_be16(frame + at + 6);
	if (header < 20 || total <= header || total > bytes - at || flags & 0x4000 ||
		mtu < header + 8 || at + mtu > room_bytes)
		return false;
	unsigned most = (mtu - header) & ~7u, payload = total - header;
	for (unsigned done = 0, part; done < payload; done += part) {
		part = MIN(payload - done, most);
		unsigned more = done + part < payload ? 0x2000 : flags & 0x2000;
		memcpy(room, frame, at + header);
		memcpy(room + at + header, frame + at + header + done, part);
		store_be16(room + at + 2, (uint16_t)(header + part));
		store_be16(room + at + 6, (uint16_t)(more | ((flags & 0x1fff) + done / 8)));
		sum_ipv4(room + at);
		emit(opaque, room, at + header + part);
	}
	return true;
}

/* ---- towards the guest ---- */

bool offload_bundle(uint8_t *head, size_t head_bytes, size_t frame_bytes, unsigned segment_bytes,
	struct net_offload *ret_offload)
{
	struct frame_layout l;

	/* The layout looks at headers only; that the payload is not in `head` is no matter when `large` is set. */
	if (!segment_bytes || !offload_layout(head, head_bytes, true, &l) ||
		l.protocol != IPPROTO_TCP || frame_bytes - l.payload <= segment_bytes)
		return false;
	uint32_t length = (uint32_t)frame_bytes - l.transport;
	store_raw16(head + l.transport + TCP_CSUM, offload_fold(pseudo_sum(head, &l, length)));
	*ret_offload = (struct net_offload){
		.flags = NET_NEEDS_CSUM,
		.gso_type = l.ipv6 ? NET_GSO_TCP6 : NET_GSO_TCP4,
		.header_bytes = (uint16_t)l.payload,
		.gso_bytes = (uint16_t)segment_bytes,
		.csum_start = (uint16_t)l.transport,
		.csum_offset = TCP_CSUM,
	};
	return true;
}

struct completion {
	offload_give *give;
	void *opaque;
};

static void give_complete(void *opaque, uint8_t *frame, size_t bytes)
{
	struct completion *c = opaque;

	c->give(c->opaque, &(struct net_offload){0}, frame, bytes);
}

void offload_complete(unsigned takes, const struct net_offload *offload, uint8_t *frame,
	size_t bytes, uint8_t *room, offload_give *give, void *opaque)
{
	struct completion c = {give, opaque};

	if (!(net_offload_needs(offload) & ~takes)) {
		give(opaque, offload, frame, bytes);
	} else if (offload->gso_type == NET_GSO_NONE) {
		offload_checksum(frame, bytes, offload);
		give_complete(&c, frame, bytes);
	} else {
		(void)offload_cut(frame, bytes, offload->gso_bytes, room, OFFLOAD_FRAME_MAX,
			give_complete, &c);
	}
}

void offload_whole(const struct net_offload *offload, uint8_t *frame, size_t bytes, unsigned most,
	uint8_t *room, offload_emit *emit, void *opaque)
{
	const bool udp = offload->gso_type == NET_GSO_UDP;
	struct frame_layout l;

	if (offload->gso_type == NET_GSO_NONE) {
		offload_checksum(frame, bytes, offload);
		emit(opaque, frame, bytes);
		return;
	}
	if (!offload_layout(frame, bytes, true, &l) || (l.protocol == IPPROTO_UDP) != udp)
		return;
	if (!udp && bytes - l.ip <= most && offload_make_whole(frame, bytes, &l)) {
		emit(opaque, frame, bytes);
		return;
	}
	unsigned headers = l.payload - l.ip;
	unsigned part = udp ? offload->gso_bytes : most > headers ? (most - headers) / 2 : 0;
	(void)offload_cut(frame, bytes, part, room, OFFLOAD_FRAME_MAX, emit, opaque);
}

/* RFC 1624: a sum after 16 bits of what it sums up have changed, at an even place. */
static void update_sum(uint8_t *sum, uint16_t before, uint16_t after)
{
	uint16_t old;

	memcpy(&old, sum, 2);
	store_raw16(sum, (uint16_t)~offload_fold((uint64_t)(uint16_t)~old +
						 (uint16_t)~htobe16(before) + htobe16(after)));
}

bool offload_raise_mss(uint8_t *frame, size_t bytes, bool partial, uint16_t from, uint16_t to)
{
	struct frame_layout l;

	if (!offload_layout(frame, bytes, false, &l) || l.protocol != IPPROTO_TCP ||
		!(frame[l.transport + 13] & TCP_SYN))
		return false;
	for (unsigned at = l.transport + 20; at < l.payload;) {
		if (frame[at] == 0)
			return false;
		if (frame[at] == 1) {
			at++;
			continue;
		}
		unsigned size = at + 1 < l.payload ? frame[at + 1] : 0;
		if (size < 2 || size > l.payload - at)
			return false;
		if (frame[at] == 2 && size == 4) {
			/* At an odd place the two bytes count in two words: left alone, nobody sends it so. */
			if (load_be16(frame + at + 2) != from || (at - l.transport) & 1)
				return false;
			store_be16(frame + at + 2, to);
			if (!partial)
				update_sum(frame + l.transport + TCP_CSUM, from, to);
			return true;
		}
		at += size;
	}
	return false;
}
