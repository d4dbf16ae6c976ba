/*
 * backend/net/offload: sums against a slow one, segments and fragments put together again, and frames that lie.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "backend/net/offload.h"
#include "base/bytes.h"

static uint32_t seed = 1;

static uint32_t rnd(void)
{
	seed = seed * 1664525 + 1013904223;
	return seed >> 8 | seed << 24;
}

/* RFC 1071 as it is written: 16 bits at a time, big endian. */
static uint16_t slow_sum(const uint8_t *bytes, size_t count, uint32_t sum)
{
	for (size_t i = 0; i < count; i++)
		sum += i & 1 ? bytes[i] : bytes[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* A frame with random payload: `options` bytes of TCP options (or UDP), in IPv4 or IPv6, maybe with a VLAN tag. */
struct made {
	uint8_t frame[OFFLOAD_FRAME_MAX];
	size_t bytes;
	unsigned ip, transport, payload;
	bool ipv6, udp;
};

static void make(struct made *m, bool ipv6, bool udp, bool vlan, unsigned options, size_t payload)
{
	uint8_t *f = m->frame;

	memset(m, 0, sizeof(*m));
	m->ipv6 = ipv6;
	m->udp = udp;
	m->ip = vlan ? 18 : 14;
	m->transport = m->ip + (ipv6 ? 40 : 20);
	m->payload = m->transport + (udp ? 8 : 20 + options);
	m->bytes = m->payload + payload;
	for (size_t i = 0; i < m->bytes; i++)
		f[i] = (uint8_t)rnd();
	if (vlan)
		store_be16(f + 12, 0x8100);
	store_be16(f + m->ip - 2, ipv6 ? 0x86dd : 0x0800);
	size_t length = m->bytes - m->ip;
	uint8_t *ip = f + m->ip;
	ip[0] = ipv6 ? 0x60 : 0x45;
	if (ipv6) {
		store_be16(ip + 4, (uint16_t)(length - 40));
		ip[6] = udp ? IPPROTO_UDP : IPPROTO_TCP;
	} else {
		store_be16(ip + 2, (uint16_t)length);
		store_be16(ip + 6, 0x4000);
		ip[9] = udp ? IPPROTO_UDP : IPPROTO_TCP;
	}
	if (udp)
		store_be16(f + m->transport + 4, (uint16_t)(m->bytes - m->transport));
	else
		f[m->transport + 12] = (uint8_t)((20 + options) / 4 << 4);
}

/* Are the IP and transport checksums of a complete frame right? By the slow sum. */
static bool sums_right(const uint8_t *f, size_t bytes, unsigned ip, bool ipv6, bool udp)
{
	unsigned transport = ip + (ipv6 ? 40 : 20);
	uint32_t length = (uint32_t)bytes - transport, pseudo = (udp ? 17 : 6) + length;

	if (!ipv6 && slow_sum(f + ip, 20, 0) != 0xffff)
		return false;
	for (unsigned i = 0; i < (ipv6 ? 32 : 8); i++)
		pseudo += f[ip + (ipv6 ? 8 : 12) + i] << (i & 1 ? 0 : 8);
	if (udp && load_be16(f + transport + 4) != length)
		return false;
	return slow_sum(f + transport, length, pseudo) == 0xffff;
}

static void test_sum(void **state)
{
	static uint8_t bytes[70000];
	(void)state;

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)rnd();
	for (unsigned i = 0; i < 3000; i++) {
		size_t at = rnd() % 64, count = i < 200 ? i : rnd() % 65000;
		uint16_t fast = offload_fold(offload_sum(bytes + at, count, 0));
		assert_int_equal(be16toh(fast), slow_sum(bytes + at, count, 0));
	}
	memset(bytes, 255, sizeof(bytes));
	assert_int_equal(offload_fold(offload_sum(bytes, sizeof(bytes), 0)), 0xffff);
}

struct joined {
	const struct made *whole;
	unsigned segment_bytes, count;
	size_t payload;
	uint8_t *bytes;
};

static void join_segment(void *opaque, uint8_t *f, size_t bytes)
{
	struct joined *j = opaque;
	const struct made *w = j->whole;
	const uint8_t *tcp = f + w->transport;
	size_t part = bytes - w->payload;
	bool last = j->payload + part == w->bytes - w->payload;

	assert_true(sums_right(f, bytes, w->ip, w->ipv6, w->udp));
	assert_true(part == j->segment_bytes || (last && part < j->segment_bytes));
	assert_memory_equal(f, w->frame, w->ip);
	if (w->ipv6)
		assert_int_equal(load_be16(f + w->ip + 4), bytes - w->ip - 40);
	else
		assert_int_equal(load_be16(f + w->ip + 4),
			(uint16_t)(load_be16(w->frame + w->ip + 4) + j->count));
	if (!w->udp) {
		uint8_t flags = w->frame[w->transport + 13];
		assert_int_equal(load_be32(tcp + 4),
			(uint32_t)(load_be32(w->frame + w->transport + 4) + j->payload));
		if (!last)
			flags &= (uint8_t)~0x09;
		if (j->count)
			flags &= (uint8_t)~0x80;
		assert_int_equal(tcp[13], flags);
		assert_memory_equal(
			tcp + 20, w->frame + w->transport + 20, w->payload - w->transport - 20);
	}
	memcpy(j->bytes + j->payload, f + w->payload, part);
	j->payload += part;
	j->count++;
}

static void test_cut(void **state)
{
	static uint8_t room[OFFLOAD_FRAME_MAX], bytes[OFFLOAD_FRAME_MAX];
	static struct made m;
	(void)state;

	for (unsigned i = 0; i < 400; i++) {
		size_t payload = i < 20 ? i + 1 : 1 + rnd() % 65000;
		make(&m, i & 1, i & 2, i & 4, rnd() % 11 * 4, payload);
		unsigned segment = 1 + rnd() % (i % 7 ? 1500 : 20000);
		if (payload / segment > 3000)
			segment = 100;
		struct joined j = {.whole = &m, .segment_bytes = segment, .bytes = bytes};
		assert_true(offload_cut(
			m.frame, m.bytes, segment, room, sizeof(room), join_segment, &j));
		assert_int_equal(j.payload, payload);
		assert_memory_equal(bytes, m.frame + m.payload, payload);
	}
	/* Not to be cut. */
	make(&m, false, false, false, 0, 100);
	assert_false(offload_cut(m.frame, m.payload, 10, room, sizeof(room), join_segment, NULL));
	assert_false(offload_cut(m.frame, m.bytes, 0, room, sizeof(room), join_segment, NULL));
	assert_false(offload_cut(m.frame, m.bytes, 100, room, 120, join_segment, NULL));
	m.frame[m.ip + 9] = 1;
	assert_false(offload_cut(m.frame, m.bytes, 10, room, sizeof(room), join_segment, NULL));
}

static void test_checksum(void **state)
{
	static struct made m;
	(void)state;

	for (unsigned i = 0; i < 200; i++) {
		make(&m, i & 1, i & 2, i & 4, 0, rnd() % 3000);
		/* What a guest leaves in the field: the sum of the pseudo header. */
		struct net_offload o = {.flags = NET_NEEDS_CSUM,
			.csum_start = (uint16_t)m.transport,
			.csum_offset = m.udp ? 6 : 16};
		uint32_t pseudo = (m.udp ? 17 : 6) + (uint32_t)(m.bytes - m.transport);
		for (unsigned k = 0; k < (m.ipv6 ? 32u : 8u); k++)
			pseudo += m.frame[m.ip + (m.ipv6 ? 8 : 12) + k] << (k & 1 ? 0 : 8);
		store_be16(m.frame + m.transport + o.csum_offset, slow_sum(NULL, 0, pseudo));
		offload_checksum(m.frame, m.bytes, &o);
		store_be16(m.frame + m.ip + 10, m.ipv6 ? load_be16(m.frame + m.ip + 10) : 0);
		if (!m.ipv6)
			store_be16(m.frame + m.ip + 10, (uint16_t)~slow_sum(m.frame + m.ip, 20, 0));
		assert_true(sums_right(m.frame, m.bytes, m.ip, m.ipv6, m.udp));
		assert_true(load_be16(m.frame + m.transport + o.csum_offset) != 0);
	}
}

static void test_whole(void **state)
{
	static struct made m;
	struct frame_layout l;
	(void)state;

	for (unsigned i = 0; i < 100; i++) {
		make(&m, i & 1, i & 2, i & 4, 0, 1 + rnd() % 65000);
		/* The lengths that a sender leaves do not count. */
		store_be16(m.frame + m.ip + (m.ipv6 ? 4 : 2), 0);
		assert_true(offload_layout(m.frame, m.bytes, true, &l));
		assert_int_equal(l.payload, m.payload);
		assert_true(offload_make_whole(m.frame, m.bytes, &l));
		assert_true(sums_right(m.frame, m.bytes, m.ip, m.ipv6, m.udp));
	}
	make(&m, false, false, false, 0, 65535 - 40 + 1);
	assert_true(offload_layout(m.frame, m.bytes, true, &l));
	assert_false(offload_make_whole(m.frame, m.bytes, &l));
}

/* A large frame told as segments, then cut by what was told: the guest's way. */
static void test_bundle(void **state)
{
	static uint8_t room[OFFLOAD_FRAME_MAX], bytes[OFFLOAD_FRAME_MAX];
	static struct made m;
	struct net_offload o;
	(void)state;

	for (unsigned i = 0; i < 100; i++) {
		make(&m, i & 1, false, false, 0, 2000 + rnd() % 60000);
		size_t head = 160;
		assert_true(offload_bundle(m.frame, head, m.bytes, 1448, &o));
		assert_true(net_offload_check(&o, m.bytes));
		assert_int_equal(o.gso_type, m.ipv6 ? NET_GSO_TCP6 : NET_GSO_TCP4);
		assert_int_equal(o.header_bytes, m.payload);
		struct joined j = {.whole = &m, .segment_bytes = o.gso_bytes, .bytes = bytes};
		assert_true(offload_cut(
			m.frame, m.bytes, o.gso_bytes, room, sizeof(room), join_segment, &j));
		/* And the sum that was left is the pseudo header's: completing it gives a right one. */
		offload_checksum(m.frame, m.bytes, &o);
		if (!m.ipv6) {
			store_be16(m.frame + m.ip + 10, 0);
			store_be16(m.frame + m.ip + 10, (uint16_t)~slow_sum(m.frame + m.ip, 20, 0));
		}
		assert_true(sums_right(m.frame, m.bytes, m.ip, m.ipv6, false));
	}
	make(&m, false, false, false, 0, 1448);
	assert_false(offload_bundle(m.frame, m.bytes, m.bytes, 1448, &o));
	make(&m, false, true, false, 0, 3000);
	assert_false(offload_bundle(m.frame, 160, m.bytes, 1448, &o));
}

struct fragments {
	size_t at;
	unsigned count;
	bool ended;
	uint8_t bytes[OFFLOAD_FRAME_MAX];
};

static void join_fragment(void *opaque, uint8_t *f, size_t bytes)
{
	struct fragments *j = opaque;
	unsigned offset = (load_be16(f + 14 + 6) & 0x1fff) * 8u;

	assert_true(bytes <= 1514);
	assert_int_equal(slow_sum(f + 14, 20, 0), 0xffff);
	assert_int_equal(load_be16(f + 16), bytes - 14);
	assert_int_equal(offset, j->at);
	assert_false(j->ended);
	j->ended = !(load_be16(f + 20) & 0x2000);
	memcpy(j->bytes + j->at, f + 34, bytes - 34);
	j->at += bytes - 34;
	j->count++;
}

static void test_fragment(void **state)
{
	static uint8_t room[OFFLOAD_FRAME_MAX];
	static struct fragments j;
	static struct made m;
	(void)state;

	for (unsigned i = 0; i < 50; i++) {
		make(&m, false, true, false, 0, 1500 + rnd() % 60000);
		store_be16(m.frame + m.ip + 6, 0);
		memset(&j, 0, sizeof(j));
		assert_true(offload_fragment(
			m.frame, m.bytes, 1500, room, sizeof(room), join_fragment, &j));
		assert_true(j.ended);
		assert_int_equal(j.at, m.bytes - 34);
		assert_memory_equal(j.bytes, m.frame + 34, j.at);
	}
	store_be16(m.frame + m.ip + 6, 0x4000);
	assert_false(
		offload_fragment(m.frame, m.bytes, 1500, room, sizeof(room), join_fragment, &j));
}

static void test_mss(void **state)
{
	static struct made m;
	struct frame_layout l;
	(void)state;

	for (unsigned i = 0; i < 200; i++) {
		make(&m, i & 1, false, false, 12, 0);
		uint8_t *tcp = m.frame + m.transport;
		tcp[13] = i & 2 ? 0x12 : 0x02;
		const uint8_t options[12] = {1, 1, 4, 2, 2, 4, 0x05, 0xb4, 3, 3, 7, 0};
		memcpy(tcp + 20, options, 12);
		assert_true(offload_layout(m.frame, m.bytes, false, &l));
		assert_true(offload_make_whole(m.frame, m.bytes, &l));
		assert_false(offload_raise_mss(m.frame, m.bytes, false, 1440, 32768));
		assert_true(sums_right(m.frame, m.bytes, m.ip, m.ipv6, false));
		assert_true(offload_raise_mss(m.frame, m.bytes, false, 1460, (uint16_t)rnd()));
		assert_true(sums_right(m.frame, m.bytes, m.ip, m.ipv6, false));
		/* Not without SYN, and not with options that lie. */
		make(&m, i & 1, false, false, 12, 0);
		memcpy(tcp + 20, options, 12);
		tcp[13] = 0x10;
		assert_false(offload_raise_mss(m.frame, m.bytes, false, 1460, 9));
		tcp[13] = 2;
		tcp[23] = 200;
		assert_false(offload_raise_mss(m.frame, m.bytes, false, 1460, 9));
		tcp[23] = 0;
		assert_false(offload_raise_mss(m.frame, m.bytes, false, 1460, 9));
	}
}

static void count_give(
	void *opaque, const struct net_offload *offload, uint8_t *frame, size_t bytes)
{
	unsigned *needs = opaque;

	*needs |= net_offload_needs(offload);
}

/* Only what is taken is left to do. */
static void test_complete(void **state)
{
	static uint8_t room[OFFLOAD_FRAME_MAX];
	static struct made m;
	(void)state;

	for (unsigned takes = 0; takes < 16; takes++) {
		for (unsigned kind = 0; kind < 4; kind++) {
			make(&m, kind & 1, kind & 2, false, 0, 9000);
			struct net_offload o = {.flags = NET_NEEDS_CSUM,
				.gso_type = m.udp    ? NET_GSO_UDP
					    : m.ipv6 ? NET_GSO_TCP6
						     : NET_GSO_TCP4,
				.gso_bytes = 1000,
				.csum_start = (uint16_t)m.transport,
				.csum_offset = m.udp ? 6 : 16};
			unsigned given = 0;
			offload_complete(takes, &o, m.frame, m.bytes, room, count_give, &given);
			assert_int_equal(given & ~takes, 0);
		}
	}
}

static void ignore(void *opaque, uint8_t *frame, size_t bytes)
{
	*(uint64_t *)opaque += frame[bytes - 1];
}

static void ignore_give(
	void *opaque, const struct net_offload *offload, uint8_t *frame, size_t bytes)
{
	*(uint64_t *)opaque += frame[bytes - 1];
}

/* Random damage: nothing is read or written outside (the sanitizers look). */
static void test_hostile(void **state)
{
	static uint8_t room[OFFLOAD_FRAME_MAX];
	static struct made m;
	uint64_t sum = 0;
	(void)state;

	for (unsigned i = 0; i < 30000; i++) {
		make(&m, i & 1, i & 2, i & 4, rnd() % 11 * 4, rnd() % 400);
		for (unsigned k = rnd() % 4; k--;)
			m.frame[m.ip + rnd() % 60] = (uint8_t)rnd();
		size_t bytes = i % 3 ? m.bytes : rnd() % (m.bytes + 1);
		uint8_t *exact = malloc(bytes + !bytes);
		memcpy(exact, m.frame, bytes);
		struct net_offload o = {.flags = rnd() & 1,
			.gso_type = (uint8_t)(rnd() % 7),
			.gso_bytes = (uint16_t)(rnd() % 300),
			.csum_start = (uint16_t)(rnd() % 200),
			.csum_offset = (uint16_t)(rnd() % 100)};
		(void)offload_fragment(exact, bytes, rnd() % 200, room, sizeof(room), ignore, &sum);
		(void)offload_cut(exact, bytes, rnd() % 200, room, sizeof(room), ignore, &sum);
		(void)offload_raise_mss(exact, bytes, false, (uint16_t)rnd(), 9);
		if (net_offload_check(&o, bytes)) {
			offload_complete(rnd() % 16, &o, exact, bytes, room, ignore_give, &sum);
			offload_whole(&o, exact, bytes, 60 + rnd() % 500, room, ignore, &sum);
		}
		(void)offload_bundle(exact, bytes, bytes, rnd() % 100, &o);
		free(exact);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sum),
		cmocka_unit_test(test_checksum),
		cmocka_unit_test(test_cut),
		cmocka_unit_test(test_whole),
		cmocka_unit_test(test_bundle),
		cmocka_unit_test(test_fragment),
		cmocka_unit_test(test_mss),
		cmocka_unit_test(test_complete),
		cmocka_unit_test(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
