/*
 * The 82540EM: see net_e1000.h. Names of registers are the manual's (table 13-2).
 */
#include "device/net_e1000.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/loop.h"
#include "device/net.h"
#include "device/pci/device.h"
#include "memory/memory.h"

#define BAR_REGISTERS	0
#define BAR_PORTS	1
#define REGISTERS_BYTES 0x20000u
#define PORTS_BYTES	0x40u
#define KEPT_BYTES	0x6000u /* of the registers, those with anything in them */

enum reg {
	REG_CTRL = 0x0000,
	REG_STATUS = 0x0008,
	REG_EECD = 0x0010,
	REG_EERD = 0x0014,
	REG_MDIC = 0x0020,
	REG_ICR = 0x00c0,
	REG_ICS = 0x00c8,
	REG_IMS = 0x00d0,
	REG_IMC = 0x00d8,
	REG_RCTL = 0x0100,
	REG_TCTL = 0x0400,
	REG_PBA = 0x1000,
	REG_RDBAL = 0x2800,
	REG_RDBAH = 0x2804,
	REG_RDLEN = 0x2808,
	REG_RDH = 0x2810,
	REG_RDT = 0x2818,
	REG_TDBAL = 0x3800,
	REG_TDBAH = 0x3804,
	REG_TDLEN = 0x3808,
	REG_TDH = 0x3810,
	REG_TDT = 0x3818,
	REG_STATS = 0x4000,
	REG_MPC = 0x4010,
	REG_GPRC = 0x4074,
	REG_GPTC = 0x4080,
	REG_GORCL = 0x4088,
	REG_GOTCL = 0x4090,
	REG_TPR = 0x40d0,
	REG_TPT = 0x40d4,
	REG_STATS_END = 0x4100,
	REG_MTA = 0x5200,
	REG_RAL = 0x5400,
	REG_VFTA = 0x5600,
};

#define CTRL_LINK  0x00000040u /* set it up */
#define CTRL_RESET 0x04000000u
#define CTRL_VLAN  0x40000000u
#define STATUS_UP  0x00000083u /* full duplex, link, 1 Gb/s */
#define EECD_CLOCK 0x00000001u
#define EECD_CHIP  0x00000002u
#define EECD_IN	   0x00000004u
#define EECD_OUT   0x00000008u
#define EECD_ASK   0x00000040u
#define EECD_GIVEN 0x00000080u
#define EECD_THERE 0x00000100u
#define EEPROM_COMMAND_BITS 9u /* start bit, operation, address */
#define EEPROM_READ	    6u /* the first three of them */
#define EERD_DONE  0x00000010u
#define MDIC_READ  0x08000000u
#define MDIC_WRITE 0x04000000u
#define MDIC_READY 0x10000000u
#define MDIC_ERROR 0x40000000u

#define INT_TX_DONE   0x0001u
#define INT_TX_EMPTY  0x0002u
#define INT_LINK      0x0004u
#define INT_RX_LOW    0x0010u
#define INT_RX_FULL   0x0040u
#define INT_RX	      0x0080u
#define INT_ALL	      0x1ffffu

#define RCTL_ON	       0x00000002u
#define RCTL_UNICAST   0x00000008u
#define RCTL_MULTICAST 0x00000010u
#define RCTL_BROADCAST 0x00008000u
#define RCTL_VLANS     0x00040000u
#define RCTL_LARGE     0x02000000u
#define RCTL_STRIP_CRC 0x04000000u
#define TCTL_ON	       0x00000002u

#define DESCRIPTOR_BYTES 16u
#define RX_DONE		 0x01u
#define RX_END		 0x02u
#define RX_NO_SUMS	 0x04u
#define RX_VLAN		 0x08u
#define TX_END		 0x01u
#define TX_INSERT_SUM	 0x04u /* legacy */
#define TX_SEGMENT	 0x04u /* extended */
#define TX_REPORT	 0x08u
#define TX_EXTENDED	 0x20u
#define TX_VLAN		 0x40u
#define TX_SUM_IP	 0x01u
#define TX_SUM_TCP	 0x02u
#define CONTEXT_TCP	 0x01u
#define CONTEXT_IPV4	 0x02u
#define TX_TURN		 256 /* descriptors before others get their turn */

#define ETHER_BYTES   14u
#define ETHER_LEAST   60u
#define ETHER_MOST    1522u
#define ETHER_CRC     4u
#define VLAN_BYTES    4u
#define JUMBO_MOST    16384u
#define EEPROM_WORDS  64u
#define EEPROM_SUM    0xbabau

/* What a context descriptor says (3.3.6). */
struct context {
	uint8_t ip_start, ip_sum, start, sum, command, header_bytes;
	uint16_t ip_end, segment_bytes;
};

struct e1000 {
	struct e1000_config config;
	pthread_mutex_t lock;
	struct pci_device *pci;
	struct loop_call call;
	uint32_t reg[KEPT_BYTES / 4];
	uint32_t cause; /* ICR */
	uint16_t eeprom[EEPROM_WORDS], phy[32];
	uint32_t port_address;
	uint32_t eeprom_in; /* bits that came over the wire since it was selected, and */
	unsigned eeprom_bits; /* how many, with those that went back */
	bool starved; /* the network was told that there are no buffers */
	struct context context;
	/* The frame that is put together. */
	uint8_t frame[NET_FRAME_MAX];
	uint32_t frame_bytes;
	bool too_long, first_seen, segment;
	uint8_t sums;
};

static uint32_t *reg(struct e1000 *card, unsigned at)
{
	return &card->reg[at / 4];
}

static void count(struct e1000 *card, unsigned at, uint64_t add)
{
	*reg(card, at) += (uint32_t)add;
}

static void update_line(struct e1000 *card)
{
	pci_device_intx(card->pci, card->cause & *reg(card, REG_IMS));
}

static void interrupt(struct e1000 *card, uint32_t cause)
{
	card->cause |= cause;
	update_line(card);
}

/* ---- frames from the guest ---- */

static uint32_t sum_words(const uint8_t *bytes, uint32_t bytes_count, uint32_t sum)
{
	for (uint32_t i = 0; i + 1 < bytes_count; i += 2)
		sum += load_be16(bytes + i);
	return bytes_count & 1 ? sum + (bytes[bytes_count - 1] << 8) : sum;
}

static uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* The header checksum of IPv4, from ip_start to ip_end. */
static void sum_ip(struct e1000 *card)
{
	const struct context *c = &card->context;
	const uint32_t end = c->ip_end ? MIN(c->ip_end + 1u, card->frame_bytes) : card->frame_bytes;

	if (c->ip_start >= end || c->ip_sum + 2u > card->frame_bytes)
		return;
	store_be16(card->frame + c->ip_sum, 0);
	store_be16(card->frame + c->ip_sum, (uint16_t)~fold(sum_words(card->frame + c->ip_start, end - c->ip_start, 0)));
}

/*
 * A frame to be cut into segments: the driver leaves lengths out of its headers, since the card fills them in for each
 * segment; the network wants them as of one large frame. Returns false if the headers are not in the frame.
 */
static bool prepare_segments(struct e1000 *card)
{
	const struct context *c = &card->context;
	uint8_t *ip = card->frame + c->ip_start, *tcp = card->frame + c->start;
	uint32_t length, sum;

	if (c->start < c->ip_start + 20u || c->start + 20u > card->frame_bytes || c->sum + 2u > card->frame_bytes)
		return false;
	length = card->frame_bytes - c->start;
	if (c->command & CONTEXT_IPV4) {
		store_be16(ip + 2, (uint16_t)MIN(card->frame_bytes - c->ip_start, 0xffffu));
		sum_ip(card);
		sum = sum_words(ip + 12, 8, 0);
	} else {
		if (c->start < c->ip_start + 40u)
			return false;
		store_be16(ip + 4, (uint16_t)MIN(card->frame_bytes - c->ip_start - 40, 0xffffu));
		sum = sum_words(ip + 8, 32, 0);
	}
	store_be16(tcp + (c->sum - c->start), fold(sum + 6 + length));
	return true;
}

/* What is left to the network, by the context's offsets, which do not count a tag that is yet to be put in. false: the frame
 * is none. */
static bool describe(struct e1000 *card, struct net_offload *offload)
{
	const struct context *c = &card->context;

	*offload = (struct net_offload){0};
	if (card->segment && (!(c->command & CONTEXT_TCP) || c->sum < c->start || !prepare_segments(card)))
		return false;
	if (!card->segment && (card->sums & TX_SUM_IP))
		sum_ip(card);
	if (!card->segment && !(card->sums & TX_SUM_TCP))
		return true;
	offload->flags = NET_NEEDS_CSUM;
	offload->csum_start = c->start;
	offload->csum_offset = (uint16_t)(c->sum - c->start);
	if (card->segment && card->frame_bytes > (uint32_t)c->header_bytes + c->segment_bytes) {
		offload->gso_type = c->command & CONTEXT_IPV4 ? NET_GSO_TCP4 : NET_GSO_TCP6;
		offload->header_bytes = c->header_bytes;
		offload->gso_bytes = c->segment_bytes;
	}
	return c->sum >= c->start;
}

static bool insert_vlan(struct e1000 *card, uint16_t tag, struct net_offload *offload)
{
	if (card->frame_bytes > sizeof(card->frame) - VLAN_BYTES)
		return false;
	memmove(card->frame + 16, card->frame + 12, card->frame_bytes - 12);
	store_be16(card->frame + 12, 0x8100);
	store_be16(card->frame + 14, tag);
	card->frame_bytes += VLAN_BYTES;
	if (offload->flags & NET_NEEDS_CSUM)
		offload->csum_start += VLAN_BYTES;
	if (offload->gso_type)
		offload->header_bytes += VLAN_BYTES;
	return true;
}

/* `last`: the frame's last descriptor. The lock is let go of meanwhile: the network may answer at once. Only the loop's thread
 * works on frames. */
static void send_frame(struct e1000 *card, const uint8_t *last)
{
	struct net *net = card->config.net;
	struct net_offload offload;

	if (card->too_long || card->frame_bytes < ETHER_BYTES || !describe(card, &offload))
		return;
	if ((last[11] & TX_VLAN) && !insert_vlan(card, load_le16(last + 14), &offload))
		return;
	if (!net_offload_check(&offload, card->frame_bytes))
		return;
	count(card, REG_GPTC, 1);
	count(card, REG_TPT, 1);
	count(card, REG_GOTCL, card->frame_bytes);
	const struct iovec iov = {card->frame, card->frame_bytes};
	pthread_mutex_unlock(&card->lock);
	net->ops->send(net, &offload, &iov, 1);
	pthread_mutex_lock(&card->lock);
}

static void add_data(struct e1000 *card, const uint8_t *descriptor, uint32_t bytes)
{
	if (card->too_long || bytes > NET_FRAME_MAX - card->frame_bytes ||
		memory_read(card->config.memory, load_le64(descriptor), card->frame + card->frame_bytes, bytes) < 0) {
		card->too_long = true;
		return;
	}
	card->frame_bytes += bytes;
}

static void load_context(struct context *c, const uint8_t *d)
{
	*c = (struct context){.ip_start = d[0],
		.ip_sum = d[1],
		.ip_end = load_le16(d + 2),
		.start = d[4],
		.sum = d[5],
		.command = d[11],
		.header_bytes = d[13],
		.segment_bytes = load_le16(d + 14)};
}

/* A legacy descriptor's checksum: to be computed from d[13] on and stored at d[10]. */
static void legacy_sum(struct e1000 *card, const uint8_t *d)
{
	if (!(d[11] & TX_INSERT_SUM))
		return;
	card->sums = TX_SUM_TCP;
	card->context.start = d[13];
	card->context.sum = d[10];
}

static void take_descriptor(struct e1000 *card, const uint8_t *d)
{
	const bool extended = d[11] & TX_EXTENDED, is_context = extended && (d[10] & 0xf0) == 0;

	if (is_context) {
		load_context(&card->context, d);
		return;
	}
	if (!card->first_seen) {
		card->sums = extended ? d[13] : 0;
		card->segment = extended && (d[11] & TX_SEGMENT);
	}
	card->first_seen = true;
	add_data(card, d, extended ? load_le32(d + 8) & 0xfffff : load_le16(d + 8));
	if (!extended)
		legacy_sum(card, d);
	if (!(d[11] & TX_END))
		return;
	send_frame(card, d);
	card->frame_bytes = 0;
	card->too_long = card->first_seen = false;
}

static uint32_t ring_count(struct e1000 *card, unsigned length)
{
	return (*reg(card, length) & 0xfff80) / DESCRIPTOR_BYTES;
}

static gpa_t ring_at(struct e1000 *card, unsigned base, uint32_t index)
{
	return ((uint64_t)*reg(card, base + 4) << 32 | (*reg(card, base) & ~15u)) + (gpa_t)index * DESCRIPTOR_BYTES;
}

/* One descriptor; false: there is none. */
static bool transmit_one(struct e1000 *card)
{
	const uint32_t all = ring_count(card, REG_TDLEN), head = *reg(card, REG_TDH);
	const gpa_t at = ring_at(card, REG_TDBAL, head);
	uint8_t d[DESCRIPTOR_BYTES];

	if (!pci_device_is_master(card->pci) || !(*reg(card, REG_TCTL) & TCTL_ON) || head >= all || *reg(card, REG_TDT) >= all || head == *reg(card, REG_TDT))
		return false;
	if (memory_read(card->config.memory, at, d, sizeof(d)) < 0)
		return false;
	take_descriptor(card, d);
	/* The lock was let go of: the guest may have set the ring up anew. */
	if (*reg(card, REG_TDH) != head || ring_at(card, REG_TDBAL, head) != at)
		return true;
	*reg(card, REG_TDH) = head + 1 == all ? 0 : head + 1;
	if (d[11] & TX_REPORT) {
		d[12] |= RX_DONE;
		(void)!memory_write(card->config.memory, at + 12, d + 12, 1);
		card->cause |= INT_TX_DONE;
	}
	return true;
}

/* On the loop. */
static void work(void *opaque)
{
	struct e1000 *card = opaque;
	struct net *net = card->config.net;
	unsigned done = 0;

	pthread_mutex_lock(&card->lock);
	while (done < TX_TURN && transmit_one(card))
		done++;
	if (done && done < TX_TURN)
		card->cause |= INT_TX_EMPTY;
	if (done == TX_TURN)
		loop_post(card->config.loop, &card->call);
	update_line(card);
	const bool ready = card->starved && *reg(card, REG_RDH) != *reg(card, REG_RDT);
	card->starved &= !ready;
	pthread_mutex_unlock(&card->lock);
	if (ready)
		net->ops->ready(net);
}

/* ---- frames for the guest ---- */

static bool vlan_passes(struct e1000 *card, const uint8_t *frame)
{
	const unsigned id = load_be16(frame + 14) & 0xfff;

	if (!(*reg(card, REG_RCTL) & RCTL_VLANS) || load_be16(frame + 12) != 0x8100)
		return true;
	return *reg(card, REG_VFTA + id / 32 * 4) >> (id & 31) & 1;
}

static bool multicast_passes(struct e1000 *card, const uint8_t *to)
{
	static const uint8_t shifts[4] = {4, 3, 2, 0};
	const unsigned hash = (load_le16(to + 4) >> shifts[*reg(card, REG_RCTL) >> 12 & 3]) & 0xfff;

	return *reg(card, REG_MTA + hash / 32 * 4) >> (hash & 31) & 1;
}

static bool passes(struct e1000 *card, const uint8_t *frame)
{
	static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	const uint32_t rctl = *reg(card, REG_RCTL);

	if (!vlan_passes(card, frame))
		return false;
	if (memcmp(frame, broadcast, 6) == 0 && (rctl & RCTL_BROADCAST))
		return true;
	if (rctl & (frame[0] & 1 ? RCTL_MULTICAST : RCTL_UNICAST))
		return true;
	for (unsigned i = 0; i < 16; i++) {
		const uint32_t high = *reg(card, REG_RAL + 8 * i + 4);

		if (high >> 31 && load_le32(frame) == *reg(card, REG_RAL + 8 * i) &&
			load_le16(frame + 4) == (high & 0xffff))
			return true;
	}
	return (frame[0] & 1) && multicast_passes(card, frame);
}

static uint32_t buffer_bytes(struct e1000 *card)
{
	const uint32_t rctl = *reg(card, REG_RCTL), bytes = 2048u >> (rctl >> 16 & 3);

	return rctl & RCTL_LARGE && bytes < 2048 ? bytes * 16 : bytes;
}

static uint32_t free_buffers(struct e1000 *card, uint32_t all)
{
	const uint32_t head = *reg(card, REG_RDH), tail = *reg(card, REG_RDT);

	if (head >= all || tail >= all)
		return 0;
	return tail >= head ? tail - head : all - head + tail;
}

/* Into as many buffers as it takes; the caller has seen that they are there. */
static void put_frame(struct e1000 *card, const uint8_t *bytes, uint32_t size, uint16_t tag, uint8_t status)
{
	const uint32_t all = ring_count(card, REG_RDLEN), room = buffer_bytes(card);

	for (uint32_t done = 0, part; done < size; done += part) {
		const uint32_t head = *reg(card, REG_RDH);
		const gpa_t at = ring_at(card, REG_RDBAL, head);
		uint8_t d[DESCRIPTOR_BYTES];

		part = MIN(size - done, room);
		if (memory_read(card->config.memory, at, d, sizeof(d)) < 0)
			return;
		(void)!memory_write(card->config.memory, load_le64(d), bytes + done, part);
		store_le16(d + 8, (uint16_t)part);
		store_le16(d + 10, 0);
		d[12] = (uint8_t)(RX_DONE | status | (done + part == size ? RX_END : 0));
		d[13] = 0;
		store_le16(d + 14, tag);
		(void)!memory_write(card->config.memory, at + 8, d + 8, 8);
		*reg(card, REG_RDH) = head + 1 == all ? 0 : head + 1;
	}
}

static uint32_t flatten(uint8_t *to, const struct iovec *iov, unsigned iov_count)
{
	uint32_t bytes = 0;

	for (unsigned i = 0; i < iov_count; i++) {
		if (iov[i].iov_len > JUMBO_MOST - bytes)
			return UINT32_MAX;
		memcpy(to + bytes, iov[i].iov_base, iov[i].iov_len);
		bytes += (uint32_t)iov[i].iov_len;
	}
	return bytes;
}

/* Takes the tag out of the frame and returns it. */
static uint16_t strip_vlan(uint8_t *frame, uint32_t *bytes)
{
	const uint16_t tag = load_be16(frame + 14);

	memmove(frame + 12, frame + 16, *bytes - 16);
	*bytes -= VLAN_BYTES;
	return tag;
}

static bool receive(void *opaque, const struct net_offload *offload, const struct iovec *iov, unsigned iov_count)
{
	struct e1000 *card = opaque;
	uint8_t frame[JUMBO_MOST + ETHER_CRC];
	uint32_t bytes = flatten(frame, iov, iov_count);
	uint8_t status = RX_NO_SUMS;
	uint16_t tag = 0;

	AUTO_LOCK(&card->lock);
	const uint32_t rctl = *reg(card, REG_RCTL), all = ring_count(card, REG_RDLEN);
	if (!(rctl & RCTL_ON) || bytes == UINT32_MAX || bytes < ETHER_BYTES)
		return true; /* dropped, as on a wire */
	if (bytes < ETHER_LEAST) {
		memset(frame + bytes, 0, ETHER_LEAST - bytes);
		bytes = ETHER_LEAST;
	}
	if (!passes(card, frame) || (bytes > ETHER_MOST && !(rctl & 0x20)))
		return true;
	if ((*reg(card, REG_CTRL) & CTRL_VLAN) && load_be16(frame + 12) == 0x8100) {
		tag = strip_vlan(frame, &bytes);
		status |= RX_VLAN;
	}
	if (!(rctl & RCTL_STRIP_CRC)) {
		memset(frame + bytes, 0, ETHER_CRC);
		bytes += ETHER_CRC;
	}
	if (!pci_device_is_master(card->pci)) { /* lost, and counted */
		count(card, REG_MPC, 1);
		return true;
	}
	if ((uint64_t)free_buffers(card, all) * buffer_bytes(card) < bytes) {
		card->starved = true;
		interrupt(card, INT_RX_FULL);
		return false;
	}
	put_frame(card, frame, bytes, tag, status);
	count(card, REG_GPRC, 1);
	count(card, REG_TPR, 1);
	count(card, REG_GORCL, bytes);
	interrupt(card, INT_RX | (free_buffers(card, all) < all / 2 ? INT_RX_LOW : 0));
	return true;
}

/* ---- registers ---- */

static void read_eeprom(struct e1000 *card, uint32_t value)
{
	const unsigned index = value >> 8 & 0xff;

	if (value & 1)
		*reg(card, REG_EERD) = EERD_DONE | (value & 0xff00) |
				       (uint32_t)(index < EEPROM_WORDS ? card->eeprom[index] : 0xffff) << 16;
}

/* The EEPROM's own wire (5.3.3: Microwire), which drivers of this card clock by hand: the next bit at each rising edge. */
static void write_eecd(struct e1000 *card, uint32_t value)
{
	const uint32_t before = *reg(card, REG_EECD), kept = EECD_CLOCK | EECD_CHIP | EECD_IN | EECD_ASK;
	const bool rises = (value & EECD_CHIP) && (value & EECD_CLOCK) && !(before & EECD_CLOCK);
	uint32_t out = before & EECD_OUT;

	if (!(value & EECD_CHIP) || !(before & EECD_CHIP))
		card->eeprom_bits = card->eeprom_in = 0;
	if (rises && card->eeprom_bits < EEPROM_COMMAND_BITS) {
		card->eeprom_in = card->eeprom_in << 1 | !!(value & EECD_IN);
		card->eeprom_bits += card->eeprom_in != 0; /* zeros before the start bit do not count */
		out = 0;
	} else if (rises) {
		const unsigned bit = (card->eeprom_bits++ - EEPROM_COMMAND_BITS) % 16;
		const uint16_t word = card->eeprom_in >> 6 == EEPROM_READ ? card->eeprom[card->eeprom_in & 63] : 0;

		out = word >> (15 - bit) & 1 ? EECD_OUT : 0;
	}
	*reg(card, REG_EECD) = (value & kept) | out | EECD_THERE | (value & EECD_ASK ? EECD_GIVEN : 0);
}

static void access_phy(struct e1000 *card, uint32_t value)
{
	const unsigned index = value >> 16 & 31;

	if ((value >> 21 & 31) != 1) /* there is one PHY, number 1 */
		value |= MDIC_ERROR;
	else if (value & MDIC_READ)
		value = (value & ~0xffffu) | card->phy[index];
	else if ((value & MDIC_WRITE) && (index == 0 || index == 4 || index == 9 || index == 16))
		card->phy[index] = (uint16_t)(index ? value : value & ~0x8200u); /* resets end at once */
	*reg(card, REG_MDIC) = value | MDIC_READY;
}

static void make_phy(struct e1000 *card)
{
	static const struct {
		uint8_t index;
		uint16_t value;
	} there[] = {{0, 0x1140}, {1, 0x796d}, {2, 0x0141}, {3, 0x0c20}, {4, 0x01e1}, {5, 0x45e1}, {6, 1}, {9, 0x0300},
		{10, 0x3c00}, {15, 0x3000}, {16, 0x0360}, {17, 0xac08}, {20, 0x0d60}};

	memset(card->phy, 0, sizeof(card->phy));
	for (unsigned i = 0; i < ARRAY_SIZE(there); i++)
		card->phy[there[i].index] = there[i].value;
}

static void make_eeprom(struct e1000 *card)
{
	uint16_t sum = 0;

	for (unsigned i = 0; i < 3; i++)
		card->eeprom[i] = load_le16(card->config.mac + 2 * i);
	card->eeprom[10] = 0x4408;
	card->eeprom[11] = 0x1100;
	card->eeprom[12] = 0x1af4;
	card->eeprom[13] = 0x100e;
	card->eeprom[14] = 0x8086;
	for (unsigned i = 0; i < EEPROM_WORDS - 1; i++)
		sum = (uint16_t)(sum + card->eeprom[i]);
	card->eeprom[EEPROM_WORDS - 1] = (uint16_t)(EEPROM_SUM - sum);
}

static void reset(struct e1000 *card)
{
	memset(card->reg, 0, sizeof(card->reg));
	*reg(card, REG_STATUS) = STATUS_UP;
	*reg(card, REG_EECD) = EECD_THERE;
	*reg(card, REG_PBA) = 0x00100030;
	*reg(card, REG_RAL) = load_le32(card->config.mac);
	*reg(card, REG_RAL + 4) = 0x80000000u | load_le16(card->config.mac + 4);
	card->cause = 0;
	card->frame_bytes = 0;
	card->too_long = card->first_seen = false;
	make_phy(card);
	update_line(card);
}

static uint32_t register_read(struct e1000 *card, unsigned at)
{
	uint32_t value;

	if (at == REG_ICR) { /* reading clears */
		value = card->cause | (card->cause & *reg(card, REG_IMS) ? 0x80000000u : 0);
		card->cause = 0;
		update_line(card);
		return value;
	}
	if (at >= KEPT_BYTES || at == REG_ICS || at == REG_IMC)
		return 0;
	value = *reg(card, at);
	if (at >= REG_STATS && at < REG_STATS_END) /* so do these */
		*reg(card, at) = 0;
	return value;
}

static void write_control(struct e1000 *card, uint32_t value)
{
	if (value & CTRL_RESET) {
		reset(card);
		return;
	}
	const bool rises = (value & CTRL_LINK) && !(*reg(card, REG_CTRL) & CTRL_LINK);

	*reg(card, REG_CTRL) = value;
	if (rises)
		interrupt(card, INT_LINK);
}

static void register_write(struct e1000 *card, unsigned at, uint32_t value)
{
	switch (at) {
	case REG_CTRL: write_control(card, value); return;
	case REG_STATUS:
	case REG_ICR + 4: return;
	case REG_EECD: write_eecd(card, value); return;
	case REG_EERD: read_eeprom(card, value); return;
	case REG_MDIC: access_phy(card, value); return;
	case REG_ICR: card->cause &= ~value; break;
	case REG_ICS: card->cause |= value & INT_ALL; break;
	case REG_IMS: *reg(card, REG_IMS) |= value & INT_ALL; break;
	case REG_IMC: *reg(card, REG_IMS) &= ~value; break;
	case REG_TDH:
	case REG_TDT:
	case REG_RDH:
	case REG_RDT: *reg(card, at) = value & 0xffff; break;
	default:
		if (at < KEPT_BYTES && !(at >= REG_STATS && at < REG_STATS_END))
			*reg(card, at) = value;
		break;
	}
	if (at == REG_TDT || at == REG_RDT || at == REG_TCTL || at == REG_RCTL)
		loop_post(card->config.loop, &card->call);
	update_line(card);
}

static uint64_t registers_read(void *device, uint64_t offset, unsigned size_bytes)
{
	const uint32_t value = register_read(device, (unsigned)offset & ~3u);

	return value >> 8 * (offset & 3);
}

/* Only whole registers are written, as drivers do. */
static void registers_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	if (size_bytes == 4 && !(offset & 3))
		register_write(device, (unsigned)offset, (uint32_t)value);
}

/* The same by two ports: address, data. */
static uint64_t ports_read(void *device, uint64_t offset, unsigned size_bytes)
{
	struct e1000 *card = device;

	if (offset == 0)
		return card->port_address;
	return offset == 4 ? register_read(card, card->port_address & 0x1fffc) : 0;
}

static void ports_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct e1000 *card = device;

	if (size_bytes != 4)
		return;
	if (offset == 0)
		card->port_address = (uint32_t)value;
	else if (offset == 4)
		register_write(card, card->port_address & 0x1fffc, (uint32_t)value);
}

/* Bus mastering may be on now: what is in the ring is sent. */
static void config_written(void *opaque, unsigned offset, unsigned size_bytes)
{
	struct e1000 *card = opaque;

	if (pci_device_is_master(card->pci))
		loop_post(card->config.loop, &card->call);
}

/* ---- life ---- */

static int add_function(struct e1000 *card, struct pci_host *host, unsigned devfn)
{
	static const struct bus_ops registers_ops = {
		.read = registers_read, .write = registers_write, .access_max_bytes = 4};
	static const struct bus_ops ports_ops = {.read = ports_read, .write = ports_write};
	const struct pci_device_config config = {.name = "e1000",
		.vendor = 0x8086,
		.device = 0x100e,
		.subsystem_vendor = 0x1af4,
		.subsystem = 0x1100,
		.class_code = 0x020000,
		.revision = 3,
		.bus = card->config.bus,
		.lock = &card->lock,
		.intx = card->config.intx,
		.config_written = config_written,
		.opaque = card};
	int status = pci_device_create(&config, &card->pci);

	if (status == 0)
		status = pci_device_add_bar(card->pci, BAR_REGISTERS, PCI_BAR_MEM32, false, REGISTERS_BYTES,
			&registers_ops, card);
	if (status == 0)
		status = pci_device_add_bar(
			card->pci, BAR_PORTS, PCI_BAR_IO, false, PORTS_BYTES, &ports_ops, card);
	return status < 0 ? status : pci_device_plug(card->pci, host, devfn);
}

int e1000_create(
	const struct e1000_config *config, struct pci_host *host, unsigned devfn, struct e1000 **ret_card)
{
	struct e1000 *card = calloc(1, sizeof(*card));

	if (!card)
		return -ENOMEM;
	card->config = *config;
	card->call = (struct loop_call){.fn = work, .opaque = card};
	pthread_mutex_init(&card->lock, NULL);
	make_eeprom(card);
	int status = add_function(card, host, devfn);
	if (status < 0) {
		pci_device_free(card->pci);
		pthread_mutex_destroy(&card->lock);
		free(card);
		return status;
	}
	reset(card);
	const struct net_peer peer = {.receive = receive, .opaque = card};
	config->net->ops->attach(config->net, &peer, 0);
	*ret_card = card;
	return 0;
}

void e1000_assign(struct e1000 *card, gpa_t registers)
{
	pci_device_assign(card->pci, BAR_REGISTERS, registers);
}

void e1000_free(struct e1000 *card)
{
	if (!card)
		return;
	loop_cancel(card->config.loop, &card->call);
	card->config.net->ops->attach(card->config.net, NULL, 0);
	pci_device_free(card->pci);
	pthread_mutex_destroy(&card->lock);
	free(card);
}
