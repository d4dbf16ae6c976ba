/*
 * device/net_e1000 by its registers: EEPROM by both ways, frames out (legacy and extended, with checksums and segments),
 * frames in through filters and several buffers, VLANs, and rings that lie.
 */
#include "tests/device/pci_rig.h"

#include "base/bytes.h"
#include "device/net.h"
#include "device/net_e1000.h"

#include <errno.h>
#include <unistd.h>

#define TX    0x1000u /* rings of 16 */
#define RX    0x2000u
#define DATA  0x10000u
#define COUNT 16u
#define CARD  PCI_DEVFN(3, 0)

struct fixture {
	struct pci_rig rig;
	struct e1000 *card;
	struct net net;
	struct net_peer peer;
	_Atomic unsigned sent, readies;
	struct net_offload offload;
	uint8_t frame[NET_FRAME_MAX + 4];
	uint32_t bytes;
};

static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};

/* ---- the network ---- */

static void fake_attach(struct net *net, const struct net_peer *peer, unsigned takes)
{
	struct fixture *f = container_of(net, struct fixture, net);

	f->peer = peer ? *peer : (struct net_peer){0};
	assert_int_equal(takes, 0);
}

static void fake_send(struct net *net, const struct net_offload *offload, const struct iovec *iov, unsigned iov_count)
{
	struct fixture *f = container_of(net, struct fixture, net);

	f->bytes = 0;
	for (unsigned i = 0; i < iov_count; i++) {
		assert_true(f->bytes + iov[i].iov_len <= sizeof(f->frame));
		memcpy(f->frame + f->bytes, iov[i].iov_base, iov[i].iov_len);
		f->bytes += (uint32_t)iov[i].iov_len;
	}
	assert_true(net_offload_check(offload, f->bytes));
	f->offload = *offload;
	f->sent++;
}

static void fake_ready(struct net *net)
{
	container_of(net, struct fixture, net)->readies++;
}

static const struct net_ops fake_ops = {.attach = fake_attach, .send = fake_send, .ready = fake_ready};

/* ---- the rig ---- */

static void nothing(void *opaque)
{
}

/* Until what was posted has been done. */
static void drain(struct fixture *f)
{
	for (unsigned i = 0; i < 4; i++)
		loop_invoke(f->rig.loop, nothing, NULL);
}

static uint32_t rd(struct fixture *f, unsigned at)
{
	return pci_rig_read(&f->rig, at);
}

static void wr(struct fixture *f, unsigned at, uint32_t value)
{
	pci_rig_write(&f->rig, at, value);
}

static void put(struct fixture *f, gpa_t at, const void *bytes, unsigned count)
{
	assert_int_equal(memory_write(f->rig.memory, at, bytes, count), 0);
}

static void get(struct fixture *f, gpa_t at, void *bytes, unsigned count)
{
	assert_int_equal(memory_read(f->rig.memory, at, bytes, count), 0);
}

static void make_card(void *opaque)
{
	struct fixture *f = opaque;
	struct e1000_config config = {.memory = f->rig.memory, .loop = f->rig.loop, .bus = f->rig.bus, .net = &f->net,
		.intx = pci_rig_line(&f->rig)};

	memcpy(config.mac, mac, 6);
	assert_int_equal(e1000_create(&config, f->rig.host, CARD, &f->card), 0);
}

static void free_card(void *opaque)
{
	e1000_free(opaque);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->net.ops = &fake_ops;
	pci_rig_init(&f->rig, MIB(1));
	pci_rig_start(&f->rig);
	loop_invoke(f->rig.loop, make_card, f);
	e1000_assign(f->card, REGS);
	pci_rig_set_master(&f->rig, CARD, true);
	wr(f, 0x3800, TX);
	wr(f, 0x3808, COUNT * 16);
	wr(f, 0x400, 2);
	wr(f, 0x2800, RX);
	wr(f, 0x2808, COUNT * 16);
	wr(f, 0x100, 0x8002 | 0x20); /* on, broadcast, long frames; buffers of 2 KiB */
	wr(f, 0xd0, ~0u);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	loop_invoke(f->rig.loop, free_card, f->card);
	pci_rig_done(&f->rig);
	free(f);
	return 0;
}

static void descriptor(struct fixture *f, unsigned index, uint64_t address, uint32_t dword2, uint32_t dword3)
{
	uint8_t d[16];

	store_le64(d, address);
	store_le32(d + 8, dword2);
	store_le32(d + 12, dword3);
	put(f, TX + 16 * index, d, 16);
}

static void send_up_to(struct fixture *f, unsigned tail)
{
	wr(f, 0x3818, tail);
	drain(f);
}

/* ---- tests ---- */

static uint16_t wire_bit(struct fixture *f, uint32_t in)
{
	wr(f, 0x10, 0x42 | in);
	wr(f, 0x10, 0x43 | in);
	const uint16_t out = rd(f, 0x10) >> 3 & 1;
	wr(f, 0x10, 0x42 | in);
	return out;
}

static void test_eeprom(void **state)
{
	struct fixture *f = *state;
	uint16_t sum = 0;

	for (unsigned i = 0; i < 64; i++) {
		uint16_t word = 0;

		wr(f, 0x14, i << 8 | 1);
		assert_true(rd(f, 0x14) & 0x10);
		sum = (uint16_t)(sum + (rd(f, 0x14) >> 16));
		wr(f, 0x10, 0x40); /* the chip is not selected, then it is */
		wr(f, 0x10, 0x42);
		for (int bit = 8; bit >= 0; bit--)
			wire_bit(f, ((0x180 | i) >> bit & 1) << 2);
		for (unsigned bit = 0; bit < 16; bit++)
			word = (uint16_t)(word << 1 | wire_bit(f, 0));
		assert_int_equal(word, rd(f, 0x14) >> 16);
		if (i < 3)
			assert_int_equal(word, load_le16(mac + 2 * i));
	}
	assert_int_equal(sum, 0xbaba);
	wr(f, 0x20, 0x08000000 | 1 << 21 | 2 << 16);
	assert_int_equal(rd(f, 0x20) & 0x1000ffff, 0x10000141);
	wr(f, 0x20, 0x08000000 | 2 << 21 | 2 << 16);
	assert_int_equal(rd(f, 0x20) & 0x40000000, 0x40000000);
	assert_int_equal(rd(f, 0x5400), load_le32(mac));
}

static void test_legacy(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[100];

	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)i;
	put(f, DATA, bytes, sizeof(bytes));
	descriptor(f, 0, DATA, 60, 0);
	descriptor(f, 1, DATA + 60, 40 | 9u << 24, 0); /* end, report */
	send_up_to(f, 2);
	assert_int_equal(f->sent, 1);
	assert_int_equal(f->bytes, 100);
	assert_memory_equal(f->frame, bytes, 100);
	assert_int_equal(rd(f, 0x3810), 2);
	get(f, TX + 16 + 12, bytes, 1);
	assert_int_equal(bytes[0] & 1, 1);
	assert_true(f->rig.line);
	assert_int_equal(rd(f, 0xc0) & 3, 3);
	assert_false(f->rig.line);
	assert_int_equal(rd(f, 0x4080), 1);
	assert_int_equal(rd(f, 0x4080), 0);
	/* With a tag put in. */
	descriptor(f, 2, DATA, 60 | 0x41u << 24, 0x123u << 16);
	send_up_to(f, 3);
	assert_int_equal(f->bytes, 64);
	assert_int_equal(load_be32(f->frame + 12), 0x81000123);
	assert_int_equal(f->frame[16], 12);
}

/* A TCP frame of 14 + 20 + 20 bytes of headers. */
static void put_tcp(struct fixture *f, unsigned payload)
{
	uint8_t frame[54] = {0};

	store_be16(frame + 12, 0x0800);
	frame[14] = 0x45;
	frame[23] = 6;
	memcpy(frame + 26, "\12\0\2\17\12\0\2\2", 8);
	frame[46] = 0x50;
	put(f, DATA, frame, sizeof(frame));
	for (unsigned i = 0; i < payload; i++)
		put(f, DATA + 54 + i, "x", 1);
}

static uint16_t sum16(const uint8_t *bytes, unsigned count)
{
	uint32_t sum = 0;

	for (unsigned i = 0; i < count; i += 2)
		sum += load_be16(bytes + i);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

static void test_segments(void **state)
{
	struct fixture *f = *state;

	put_tcp(f, 5000);
	/* Context: IP at 14 (sum at 24) to 33, TCP at 34 (sum at 50); header 54, segments of 1000. */
	descriptor(f, 0, 14 | 24 << 8 | 33u << 16 | 34ull << 32 | 50ull << 40, 5000 | 0x27u << 24, 54 << 8 | 1000u << 16);
	descriptor(f, 1, DATA, 5054 | 1u << 20 | 0x2fu << 24, 3 << 8);
	send_up_to(f, 2);
	assert_int_equal(f->sent, 1);
	assert_int_equal(f->bytes, 5054);
	assert_int_equal(f->offload.gso_type, NET_GSO_TCP4);
	assert_int_equal(f->offload.gso_bytes, 1000);
	assert_int_equal(f->offload.header_bytes, 54);
	assert_int_equal(f->offload.csum_start, 34);
	assert_int_equal(f->offload.csum_offset, 16);
	assert_int_equal(load_be16(f->frame + 16), 5040);
	assert_int_equal(sum16(f->frame + 14, 20), 0xffff);
	/* The pseudo header's sum: addresses, protocol and length. */
	const uint8_t pseudo[12] = {10, 0, 2, 15, 10, 0, 2, 2, 0, 6, 5020 >> 8, 5020 & 0xff};
	assert_int_equal(load_be16(f->frame + 50), sum16(pseudo, 12));
	/* Not cut: only sums. */
	put_tcp(f, 10);
	descriptor(f, 2, DATA, 64 | 1u << 20 | 0x29u << 24, 3 << 8);
	send_up_to(f, 3);
	assert_int_equal(f->bytes, 64);
	assert_int_equal(f->offload.gso_type, 0);
	assert_int_equal(f->offload.flags, NET_NEEDS_CSUM);
	assert_int_equal(sum16(f->frame + 14, 20), 0xffff);
}

/* A tag that the card puts in: the context's offsets are those of the frame without it. */
static void test_tagged(void **state)
{
	struct fixture *f = *state;

	put_tcp(f, 5000);
	descriptor(f, 0, 14 | 24 << 8 | 33u << 16 | 34ull << 32 | 50ull << 40, 5000 | 0x27u << 24, 54 << 8 | 1000u << 16);
	descriptor(f, 1, DATA, 5054 | 1u << 20 | 0x6fu << 24, 3 << 8 | 0x123u << 16);
	send_up_to(f, 2);
	assert_int_equal(f->sent, 1);
	assert_int_equal(f->bytes, 5058);
	assert_int_equal(load_be32(f->frame + 12), 0x81000123);
	assert_int_equal(load_be16(f->frame + 20), 5040);
	assert_int_equal(sum16(f->frame + 18, 20), 0xffff);
	assert_int_equal(f->offload.csum_start, 38);
	assert_int_equal(f->offload.csum_offset, 16);
	assert_int_equal(f->offload.header_bytes, 58);
	/* One that is too long with it is not sent at all, least of all without. */
	const unsigned part = 13000, last = NET_FRAME_MAX - 2 - 5 * part;
	for (unsigned i = 0; i < 5; i++)
		descriptor(f, 2 + i, DATA, part | 1u << 20 | 0x20u << 24, 0);
	descriptor(f, 7, DATA, last | 1u << 20 | 0x61u << 24, 0x123u << 16);
	send_up_to(f, 8);
	assert_int_equal(rd(f, 0x3810), 8);
	assert_int_equal(f->sent, 1);
}

struct give {
	struct fixture *f;
	const uint8_t *bytes;
	unsigned count;
	bool taken;
};

static void give_there(void *opaque)
{
	struct give *give = opaque;
	const struct net_offload none = {0};
	/* In two pieces. */
	const struct iovec iov[2] = {{(void *)(uintptr_t)give->bytes, 7}, {(void *)(uintptr_t)(give->bytes + 7), give->count - 7}};

	give->taken = give->f->peer.receive(give->f->peer.opaque, &none, iov, 2);
}

static bool give(struct fixture *f, const uint8_t *bytes, unsigned count)
{
	struct give give = {f, bytes, count, false};

	loop_invoke(f->rig.loop, give_there, &give);
	return give.taken;
}

static void test_receive(void **state)
{
	struct fixture *f = *state;
	uint8_t frame[3000] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 2, 2, 2, 2, 2, 8, 0}, d[16], data[16];

	for (unsigned i = 14; i < sizeof(frame); i++)
		frame[i] = (uint8_t)(i * 3);
	for (unsigned i = 0; i < COUNT; i++) {
		store_le64(d, DATA + 0x1000 * i);
		put(f, RX + 16 * i, d, 8);
	}
	assert_false(give(f, frame, 60)); /* no buffers yet */
	assert_true(rd(f, 0xc0) & 0x40);
	wr(f, 0x2818, 4);
	drain(f);
	assert_int_equal(f->readies, 1);
	assert_true(give(f, frame, 30));
	get(f, RX, d, 16);
	assert_int_equal(load_le16(d + 8), 64); /* padded, and room for the frame's checksum */
	assert_int_equal(d[12], 7);
	assert_int_equal(rd(f, 0x2810), 1);
	assert_true(rd(f, 0xc0) & 0x80);
	/* Over two buffers. */
	assert_true(give(f, frame, 3000));
	get(f, RX + 16, d, 16);
	assert_int_equal(load_le16(d + 8), 2048);
	assert_int_equal(d[12], 5);
	get(f, RX + 32, d, 16);
	assert_int_equal(load_le16(d + 8), 956);
	assert_int_equal(d[12], 7);
	get(f, DATA + 0x2000, data, 16);
	assert_memory_equal(data, frame + 2048, 16);
	assert_false(give(f, frame, 3000)); /* one is left, and it wants two */
	/* Filters: ours, another's, a group. */
	wr(f, 0x2818, 15);
	memcpy(frame, mac, 6);
	const unsigned head = rd(f, 0x2810);
	give(f, frame, 60);
	assert_int_equal(rd(f, 0x2810), head + 1);
	frame[5]++;
	give(f, frame, 60);
	assert_int_equal(rd(f, 0x2810), head + 1);
	memcpy(frame, "\1\0\136\0\0\1", 6);
	give(f, frame, 60);
	assert_int_equal(rd(f, 0x2810), head + 1);
	wr(f, 0x5200 + 4 * (0x010 >> 5), 1u << (0x010 & 31)); /* bits 47:36 */
	give(f, frame, 60);
	assert_int_equal(rd(f, 0x2810), head + 2);
	/* A tag taken out. */
	wr(f, 0x0000, 0x40000000);
	memcpy(frame, mac, 6);
	store_be32(frame + 12, 0x81000055);
	give(f, frame, 100);
	get(f, RX + 16 * (head + 2), d, 16);
	assert_int_equal(load_le16(d + 8), 100);
	assert_int_equal(d[12], 15);
	assert_int_equal(load_le16(d + 14), 0x55);
}

/* Without bus mastering nothing of the guest's memory is read or written. */
static void test_master(void **state)
{
	struct fixture *f = *state;
	uint8_t frame[100] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, done;

	pci_rig_set_master(&f->rig, CARD, false);
	for (unsigned i = 0; i < COUNT; i++) {
		uint8_t to[8];

		store_le64(to, DATA + 0x1000 * i);
		put(f, RX + 16 * i, to, 8);
	}
	wr(f, 0x2818, 4);
	descriptor(f, 0, DATA, 100 | 9u << 24, 0);
	send_up_to(f, 1);
	assert_int_equal(f->sent, 0);
	assert_int_equal(rd(f, 0x3810), 0);
	assert_true(give(f, frame, sizeof(frame)));
	assert_int_equal(rd(f, 0x2810), 0);
	assert_int_equal(rd(f, 0x4010), 1);
	pci_rig_set_master(&f->rig, CARD, true);
	drain(f);
	assert_int_equal(f->sent, 1);
	assert_int_equal(rd(f, 0x3810), 1);
	get(f, TX + 12, &done, 1);
	assert_int_equal(done & 1, 1);
	assert_true(give(f, frame, sizeof(frame)));
	assert_int_equal(rd(f, 0x2810), 1);
}

static void test_hostile(void **state)
{
	struct fixture *f = *state;
	uint8_t frame[1500] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	uint32_t random = 3;

	for (unsigned round = 0; round < 3000; round++) {
		for (unsigned i = 0; i < COUNT; i++) {
			uint8_t d[16];

			for (unsigned n = 0; n < 16; n++) {
				random = random * 1664525 + 1013904223;
				d[n] = (uint8_t)(random >> 24);
			}
			if (round & 1)
				store_le64(d, random % MIB(1));
			put(f, (round & 2 ? TX : RX) + 16 * i, d, 16);
		}
		if (round % 8 == 0) {
			static const uint16_t regs[] = {0x2808, 0x2810, 0x2818, 0x3808, 0x3810, 0x3818, 0x2800, 0x2804,
				0x3800, 0x3804, 0x100, 0x400};

			wr(f, regs[random % ARRAY_SIZE(regs)], random >> 5);
		} else {
			wr(f, 0x3800, TX);
			wr(f, 0x3804, 0);
			wr(f, 0x3808, COUNT * 16);
			wr(f, 0x400, 2);
			wr(f, 0x100, 0x803e | (random & 0x02030000));
		}
		wr(f, 0x3818, random >> 8 & 15);
		wr(f, 0x2818, random >> 12 & 15);
		give(f, frame, 8 + random % 1492);
	}
	drain(f);
	fake_hammer(f->rig.bus, BUS_MMIO, REGS, 0x6100, 20000);
	drain(f);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_eeprom),
		TEST(test_legacy),
		TEST(test_segments),
		TEST(test_tagged),
		TEST(test_receive),
		TEST(test_master),
		TEST(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
