/*
 * Fuzz target: what a guest can do to the devices that a PC has for its firmware and for systems without virtio: Q35's
 * bridges, the SATA controller with a disk and a CD-ROM, the e1000, the VGA, the keyboard controller. Registers by every
 * way there is (ports, BARs wherever they have been put, configuration space by ports and by a window that moves), commands,
 * packets, rings and descriptors in memory that make sense and that do not; while block devices hold and fail requests, the
 * network sends and echoes, and somebody types.
 *
 * What must hold: nothing crashes; an access gives no bits above its width; a request to a block device is within the
 * disk, in whole sectors, with buffers of just its length in the guest's RAM; a frame says of itself what is true; a command that
 * may start does not stay; a picture can always be drawn; all is gone at the end.
 */
#include "tests/fuzz/rig.h"

#include "base/bytes.h"
#include "base/log.h"
#include "base/loop.h"
#include "device/block.h"
#include "device/disk/ahci.h"
#include "device/display/vga.h"
#include "device/net.h"
#include "device/net_e1000.h"
#include "device/pci/host.h"
#include "device/pci/q35.h"
#include "tests/turns.h"

#include <errno.h>

#define OPS_MAX	   300
#define RAM_BYTES  0x80000u
#define HIGH	   0x100000000ull /* more RAM */
#define HIGH_BYTES 0x10000u
#define HELD_MAX   128
#define DISK_BYTES 0x40000u
#define DRAWN_MAX  0x10000u /* pixels; larger ones once */

#define VGA_DEVFN  PCI_DEVFN(30, 0)
#define AHCI_DEVFN PCI_DEVFN(31, 2)
#define NIC_DEVFN  PCI_DEVFN(3, 0)

#define AHCI_REGISTERS 0xe0000000u
#define NIC_REGISTERS  0xe0020000u
#define VGA_REGISTERS  0xe0040000u
#define VGA_MEMORY     0xe1000000u
#define ECAM	       0xb0000000u

/* Where the driver has its things. */
#define LISTS	0x1000u /* a page for each port */
#define FISES	0x3000u
#define TABLES	0x8000u /* 2 KiB for each slot; ports share them */
#define TX_RING 0x20000u
#define RX_RING 0x21000u
#define RING	32u
#define DATA	0x30000u

struct fake_block {
	struct block block;
	struct block_limits limits;
	struct block_request *held[HELD_MAX];
	unsigned held_count;
	uint8_t mood; /* bit 0 hold, 1 fail */
	struct pc *pc;
};

struct pc {
	struct guest_memory *memory;
	struct bus *bus;
	struct loop *loop;
	struct loop_call let_go, end;
	pthread_mutex_t host_lock, device_lock;
	struct pci_host *host;
	struct q35 q35;
	gpa_t ecam;
	uint64_t ecam_bytes;
	struct ahci *ahci;
	struct e1000 *nic;
	struct vga *vga;
	struct i8042 i8042;
	struct fake_block drive[2];
	struct net net;
	struct net_peer peer;
	bool echo, echoing, drawn;
	int lines[4];
	uint64_t sum;
	uint16_t tx_tail, rx_tail;
	struct picture picture;
};

/* ---- the block devices ---- */

static bool is_ram(struct pc *pc, const uint8_t *from, uint64_t bytes)
{
	const uint8_t *low = memory_host(pc->memory, 0, 1, false), *high = memory_host(pc->memory, HIGH, 1, false);

	return (from >= low && from + bytes <= low + RAM_BYTES) ||
	       (from >= high && from + bytes <= high + HIGH_BYTES);
}

static void check_request(const struct fake_block *fake, const struct block_request *r)
{
	uint64_t bytes = 0;

	if (r->op == BLOCK_FLUSH)
		return;
	MUST(r->bytes && r->offset <= fake->limits.size_bytes && r->bytes <= fake->limits.size_bytes - r->offset);
	MUST(r->offset % 512 == 0 && r->bytes % 512 == 0);
	MUST(r->op == BLOCK_READ || !fake->limits.readonly);
	MUST(r->op != BLOCK_DISCARD || fake->limits.discard);
	if (r->op != BLOCK_READ && r->op != BLOCK_WRITE)
		return;
	for (unsigned i = 0; i < r->iov_count; i++) {
		MUST(is_ram(fake->pc, r->iov[i].iov_base, r->iov[i].iov_len));
		bytes += r->iov[i].iov_len;
	}
	MUST(bytes == r->bytes);
}

static void end_request(struct fake_block *fake, struct block_request *r)
{
	for (unsigned i = 0; i < r->iov_count; i++) {
		if (r->op == BLOCK_READ)
			memset(r->iov[i].iov_base, 0x5a, r->iov[i].iov_len);
		r->iov[i] = (struct iovec){0}; /* it may be changed */
	}
	r->done(r, fake->mood & 2 ? -EIO : 0);
}

static void fake_submit(struct block *block, struct block_request *r)
{
	struct fake_block *fake = container_of(block, struct fake_block, block);

	check_request(fake, r);
	if (fake->mood & 1 && fake->held_count < HELD_MAX)
		fake->held[fake->held_count++] = r;
	else
		end_request(fake, r);
}

static void fake_limits(struct block *block, struct block_limits *ret_limits)
{
	*ret_limits = container_of(block, struct fake_block, block)->limits;
}

static const struct block_ops block_ops = {.submit = fake_submit, .limits = fake_limits};

static void let_go(void *opaque)
{
	struct pc *pc = opaque;

	for (unsigned i = 0; i < ARRAY_SIZE(pc->drive); i++) {
		struct fake_block *fake = &pc->drive[i];

		for (unsigned count = fake->held_count; count; count--) {
			struct block_request *r = fake->held[0];

			fake->held[0] = fake->held[--fake->held_count];
			end_request(fake, r);
		}
	}
}

/* ---- the network ---- */

static void net_attach(struct net *net, const struct net_peer *peer, unsigned takes)
{
	container_of(net, struct pc, net)->peer = peer ? *peer : (struct net_peer){0};
}

static void net_send(struct net *net, const struct net_offload *offload, const struct iovec *iov, unsigned iov_count)
{
	struct pc *pc = container_of(net, struct pc, net);
	uint64_t bytes = 0;

	for (unsigned i = 0; i < iov_count; i++) {
		bytes += iov[i].iov_len;
		for (size_t at = 0; at < iov[i].iov_len; at += 64)
			pc->sum += ((const uint8_t *)iov[i].iov_base)[at];
	}
	MUST(net_offload_check(offload, bytes));
	if (!pc->echo || pc->echoing)
		return;
	pc->echoing = true;
	(void)pc->peer.receive(pc->peer.opaque, offload, iov, iov_count);
	pc->echoing = false;
}

static void net_ready(struct net *net)
{
	container_of(net, struct pc, net)->sum++;
}

static const struct net_ops net_ops = {.attach = net_attach, .send = net_send, .ready = net_ready};

static void receive(struct pc *pc, struct rig_input *in)
{
	static uint8_t frame[20000];
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const size_t bytes = rig_take(in, 2) % (how & 7 ? 1600 : sizeof(frame)), cut = bytes / 3;
	const struct net_offload offload = {0};
	const struct iovec iov[2] = {{frame, cut}, {frame + cut, bytes - cut}};

	rig_take_bytes(in, frame, 16);
	if (how & 8)
		memset(frame, 0xff, 6);
	if (how & 16)
		store_be16(frame + 12, 0x8100);
	(void)pc->peer.receive(pc->peer.opaque, &offload, iov, 2);
}

/* ---- accesses ---- */

static const struct place {
	enum bus_space space;
	uint32_t base, bytes;
} places[] = {
	{BUS_MMIO, AHCI_REGISTERS, 0x40},
	{BUS_MMIO, AHCI_REGISTERS + 0x100, 0x40},
	{BUS_MMIO, AHCI_REGISTERS + 0x180, 0x40},
	{BUS_MMIO, AHCI_REGISTERS, 0x1000},
	{BUS_MMIO, NIC_REGISTERS, 0x200},
	{BUS_MMIO, NIC_REGISTERS + 0x400, 0x20},
	{BUS_MMIO, NIC_REGISTERS + 0x2800, 0x20},
	{BUS_MMIO, NIC_REGISTERS + 0x3800, 0x20},
	{BUS_MMIO, NIC_REGISTERS, 0x20000},
	{BUS_MMIO, VGA_REGISTERS + 0x400, 0x120},
	{BUS_MMIO, VGA_MEMORY, 0x1000000},
	{BUS_MMIO, 0xa0000, 0x20000},
	{BUS_PIO, 0x3b0, 0x30},
	{BUS_PIO, 0x3c0, 0x10},
	{BUS_PIO, 0x1ce, 3},
	{BUS_PIO, 0xcf8, 8},
	{BUS_PIO, 0xc000, 0x40},
	{BUS_PIO, 0x60, 5},
	{BUS_MMIO, ECAM, 0x100000},
	{BUS_MMIO, ECAM, 0x100},
	{BUS_MMIO, ECAM + 0xf8000, 0x100},
};

static void access_bus(struct pc *pc, struct rig_input *in, bool write)
{
	const struct place *place = &places[rig_take(in, 1) % ARRAY_SIZE(places)];
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const unsigned size = 1u << how % (place->space == BUS_PIO ? 3 : 4);
	uint64_t at = rig_take(in, place->bytes > 256 ? 3 : 1) % place->bytes;

	if (how & 0x30) /* mostly where registers are */
		at &= ~(uint64_t)(size - 1);
	if (write) {
		bus_write(pc->bus, place->space, place->base + at, size, rig_take(in, size));
		return;
	}
	const uint64_t value = bus_read(pc->bus, place->space, place->base + at, size);
	MUST(size == 8 || !(value >> 8 * size));
}

static void configure(struct pc *pc, unsigned devfn, unsigned at, unsigned size, uint32_t value)
{
	bus_write(pc->bus, BUS_PIO, 0xcf8, 4, 0x80000000u | devfn << 8 | (at & 0xfc));
	bus_write(pc->bus, BUS_PIO, 0xcfc + (at & 3), size, value);
}

static uint32_t configuration(struct pc *pc, unsigned devfn, unsigned at)
{
	bus_write(pc->bus, BUS_PIO, 0xcf8, 4, 0x80000000u | devfn << 8 | at);
	return (uint32_t)bus_read(pc->bus, BUS_PIO, 0xcfc, 4);
}

/* BARs to each other's places, over RAM, and off; the window of the configuration space, too. */
static void move_things(struct pc *pc, struct rig_input *in)
{
	static const uint32_t bars[] = {AHCI_REGISTERS, NIC_REGISTERS, VGA_REGISTERS, VGA_MEMORY, 0, 0xc000, 0xfffff000,
		ECAM};
	static const uint8_t functions[] = {0, VGA_DEVFN, AHCI_DEVFN, NIC_DEVFN, Q35_LPC_DEVFN};
	const uint8_t how = (uint8_t)rig_take(in, 1), where = (uint8_t)rig_take(in, 1);
	const unsigned devfn = functions[how % ARRAY_SIZE(functions)];

	if (!devfn && how & 0x40) {
		configure(pc, 0, 0x64, 4, where & 0x80 ? (uint32_t)rig_take(in, 1) : 0);
		configure(pc, 0, 0x60, 4, (where & 0x40 ? bars[where & 7] : ECAM) | (where >> 3 & 7));
	} else if (how & 0x20) {
		configure(pc, devfn, where, 1u << (how >> 6) % 3, (uint32_t)rig_take(in, 4));
	} else {
		configure(pc, devfn, 0x10 + 4 * (where >> 5) % 24, 4, bars[where & 7]);
		configure(pc, devfn, 0x04, 2, how & 0x80 ? 7 : where >> 3 & 7);
	}
}

/* As a driver finds them. */
static void put_back(struct pc *pc)
{
	configure(pc, AHCI_DEVFN, 0x24, 4, AHCI_REGISTERS);
	configure(pc, NIC_DEVFN, 0x10, 4, NIC_REGISTERS);
	configure(pc, NIC_DEVFN, 0x14, 4, 0xc000);
	configure(pc, VGA_DEVFN, 0x10, 4, VGA_MEMORY);
	configure(pc, VGA_DEVFN, 0x18, 4, VGA_REGISTERS);
	configure(pc, AHCI_DEVFN, 0x04, 2, 6);
	configure(pc, NIC_DEVFN, 0x04, 2, 7);
	configure(pc, VGA_DEVFN, 0x04, 2, 2);
	configure(pc, 0, 0x64, 4, 0);
	configure(pc, 0, 0x60, 4, ECAM | 1);
}

static void write_ram(struct pc *pc, gpa_t gpa, const void *bytes, unsigned count)
{
	(void)!memory_write(pc->memory, gpa, bytes, count);
}

static gpa_t any_buffer(struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const uint16_t low = (uint16_t)rig_take(in, 2);

	switch (how % 16) {
	case 0: return HIGH + low;
	case 1: return low; /* rings, lists, tables */
	case 2: return RAM_BYTES - low % 64;
	case 3: return how & 0x10 ? AHCI_REGISTERS + low % 0x1000 : VGA_MEMORY + low;
	case 4: return how & 0x20 ? rig_take(in, 8) : 0ull - low;
	default: return DATA + low * 4;
	}
}

static void poke(struct pc *pc, struct rig_input *in)
{
	uint8_t bytes[16];
	const gpa_t gpa = rig_take(in, 3) % RAM_BYTES;

	rig_take_bytes(in, bytes, sizeof(bytes));
	write_ram(pc, gpa, bytes, 1 + (unsigned)rig_take(in, 1) % sizeof(bytes));
}

/* ---- the SATA driver ---- */

static uint32_t port_read(struct pc *pc, unsigned port, unsigned at)
{
	return (uint32_t)bus_read(pc->bus, BUS_MMIO, AHCI_REGISTERS + 0x100 + 0x80 * port + at, 4);
}

static void port_write(struct pc *pc, unsigned port, unsigned at, uint32_t value)
{
	bus_write(pc->bus, BUS_MMIO, AHCI_REGISTERS + 0x100 + 0x80 * port + at, 4, value);
}

static void start_port(struct pc *pc, unsigned port)
{
	port_write(pc, port, 0x18, 0);
	port_write(pc, port, 0x00, LISTS + 0x1000 * port);
	port_write(pc, port, 0x04, 0);
	port_write(pc, port, 0x08, FISES + 0x1000 * port);
	port_write(pc, port, 0x0c, 0);
	port_write(pc, port, 0x14, ~0u);
	port_write(pc, port, 0x18, 0x10);
	port_write(pc, port, 0x18, 0x11);
}

static unsigned put_buffers(struct pc *pc, struct rig_input *in, gpa_t table)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	unsigned count = how % 8;

	for (unsigned i = 0; i < count; i++) {
		uint8_t entry[16] = {0};

		store_le64(entry, how & 0x40 ? DATA + 0x1000u * i : any_buffer(in));
		store_le32(entry + 12, how & 8 ? (how & 0x10 ? 2047 : 511) : (uint32_t)rig_take(in, how & 0x20 ? 3 : 1));
		write_ram(pc, table + 0x80 + 16 * i, entry, sizeof(entry));
	}
	return how >> 6 == 3 ? (unsigned)rig_take(in, 2) : count;
}

/* Most are on the disk, many at its end. */
static uint16_t any_sector(struct rig_input *in, unsigned all)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);

	return (uint16_t)(how & 0x80 ? all + 2 - (how & 7) : how);
}

static void put_command(struct pc *pc, struct rig_input *in)
{
	static const uint8_t commands[] = {0x06, 0x20, 0x24, 0x25, 0x30, 0x35, 0x40, 0x42, 0x60, 0x61, 0xa0, 0xa0, 0xa0,
		0xa1, 0xc8, 0xca, 0xe7, 0xea, 0xec, 0xef, 0x08};
	static const uint8_t packets[] = {0x00, 0x03, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0x28, 0x43, 0x46, 0x4a, 0x51, 0x5a,
		0xa8, 0xbd, 0xbb};
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const unsigned port = how & 1, slot = how >> 1 & 3;
	const gpa_t table = TABLES + 0x800 * slot;
	uint8_t header[32] = {5}, fis[80] = {0x27, 0x80};

	fis[2] = commands[rig_take(in, 1) % ARRAY_SIZE(commands)];
	const bool queued = fis[2] >> 1 == 0x30;
	store_le16(fis + 4, any_sector(in, DISK_BYTES / 512));
	fis[queued ? 3 : 12] = how >> 3 & 3;
	fis[queued ? 12 : 3] = (uint8_t)(slot << 3 | 1);
	fis[7] = 0x40;
	fis[64] = packets[rig_take(in, 1) % ARRAY_SIZE(packets)];
	store_be32(fis + 66, any_sector(in, DISK_BYTES / 2048 - 1));
	fis[fis[64] == 0xa8 ? 73 : 72] = (uint8_t)rig_take(in, 1) % 4;
	fis[65] = (uint8_t)rig_take(in, 1);
	if ((how & 0x60) == 0x20) /* anything */
		rig_take_bytes(in, fis + 3, 13);
	else if ((how & 0x60) == 0x40)
		rig_take_bytes(in, fis + 64, 16);
	else if ((how & 0xe0) == 0xe0)
		rig_take_bytes(in, fis, 3);
	store_le16(header + 2, (uint16_t)put_buffers(pc, in, table));
	store_le64(header + 8, table);
	write_ram(pc, table, fis, sizeof(fis));
	write_ram(pc, LISTS + 0x1000 * port + 32 * slot, header, sizeof(header));
	/* Nothing starts behind an error. */
	if (slot && (port_read(pc, port, 0x20) & 1))
		start_port(pc, port);
	if (queued)
		port_write(pc, port, 0x34, 1u << slot);
	port_write(pc, port, 0x38, how & 0x80 ? ~0u : 1u << slot);
}

static void control_ports(struct pc *pc, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const unsigned port = how & 1;

	switch (how >> 1 & 7) {
	case 0: port_write(pc, port, 0x2c, how & 0x10 ? 1 : 0); break;
	case 1: bus_write(pc->bus, BUS_MMIO, AHCI_REGISTERS + 4, 4, how & 0x10 ? 1 : 2); break;
	case 2: port_write(pc, port, 0x18, how & 0x10 ? 0x10 : 0x11); break;
	case 3: port_write(pc, port, 0x10, ~0u); break;
	case 4: port_write(pc, port, 0x00, (uint32_t)rig_take(in, 4)); break;
	case 5: port_write(pc, port, 0x08, (uint32_t)rig_take(in, 4)); break;
	default: start_port(pc, port);
	}
}

/* What may start does not stay, and a port that is stopped has nothing to do. */
static void check_ports(struct pc *pc)
{
	if (bus_read(pc->bus, BUS_MMIO, AHCI_REGISTERS + 0x10, 4) != 0x00010300)
		return; /* it is elsewhere */
	if (bus_read(pc->bus, BUS_MMIO, AHCI_REGISTERS + 4, 4) & 1)
		return; /* a reset waits for what is held */
	if (!(configuration(pc, AHCI_DEVFN, 0x04) & 4))
		return; /* nothing starts or ends: no bus master */
	for (unsigned port = 0; port < ARRAY_SIZE(pc->drive); port++) {
		const uint32_t cmd = port_read(pc, port, 0x18), ci = port_read(pc, port, 0x38);

		MUST((cmd & 1) || (!ci && !port_read(pc, port, 0x34)));
		/* Started, connected, no error, not busy. */
		if (!pc->drive[port].held_count && (cmd & 0x11) == 0x11 && port_read(pc, port, 0x28) == 0x123 &&
			!(port_read(pc, port, 0x20) & 0x81))
			MUST(!ci);
	}
}

/* ---- the network card's driver ---- */

static void nic_write(struct pc *pc, unsigned at, uint32_t value)
{
	bus_write(pc->bus, BUS_MMIO, NIC_REGISTERS + at, 4, value);
}

static void start_nic(struct pc *pc, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);

	nic_write(pc, 0x0000, how & 1 ? 0x04000000 : 0x40 | (how & 2 ? 0x40000000 : 0));
	nic_write(pc, 0x2800, RX_RING);
	nic_write(pc, 0x2808, RING * 16);
	nic_write(pc, 0x3800, TX_RING);
	nic_write(pc, 0x3808, RING * 16);
	nic_write(pc, 0x2810, 0);
	nic_write(pc, 0x2818, 0);
	nic_write(pc, 0x3810, 0);
	nic_write(pc, 0x3818, 0);
	nic_write(pc, 0x00d0, ~0u);
	nic_write(pc, 0x0400, 2);
	/* Everything, or what the filters let pass; sizes of buffers. */
	nic_write(pc, 0x0100, 2 | (how & 4 ? 0x18 : 0) | 0x8000 | (how & 8 ? 0x20 : 0) | (how & 0x30u) << 12 |
			     (how & 0x40 ? 0x02000000 : 0) | (how & 0x80 ? 0x04040000 : 0));
	pc->tx_tail = pc->rx_tail = 0;
}

static void put_receive(struct pc *pc, struct rig_input *in)
{
	for (unsigned i = 0, count = (unsigned)rig_take(in, 1) % 8; i < count; i++) {
		uint8_t d[16] = {0};

		store_le64(d, any_buffer(in));
		write_ram(pc, RX_RING + 16 * (pc->rx_tail % RING), d, sizeof(d));
		pc->rx_tail++;
	}
	nic_write(pc, 0x2818, pc->rx_tail % RING);
}

static void put_transmit(struct pc *pc, struct rig_input *in)
{
	for (unsigned i = 0, count = 1 + (unsigned)rig_take(in, 1) % 4; i < count; i++) {
		const uint8_t how = (uint8_t)rig_take(in, 1);
		uint8_t d[16];

		rig_take_bytes(in, d, sizeof(d));
		if (how & 1) { /* a context that makes sense, mostly */
			d[0] = 14;
			d[1] = 24;
			d[4] = how & 2 ? 34 : 54;
			d[5] = (uint8_t)(d[4] + 16);
			store_le32(d + 8, 0x20000000u | (how & 2 ? 3u : 1u) << 24);
			d[13] = (uint8_t)(d[4] + 20);
			store_le16(d + 14, (uint16_t)rig_take(in, 1) * 8);
		} else if (how & 2) {
			store_le64(d, any_buffer(in));
			store_le32(d + 8, (uint32_t)rig_take(in, how & 4 ? 2 : 1) + 14);
			d[10] |= 0x10;
			d[11] = (uint8_t)(0x28 | (how >> 3 & 0x45));
		} else if (how & 4) {
			store_le64(d, DATA + how * 64u);
			store_le16(d + 8, (uint16_t)(rig_take(in, 1) * 8));
			d[11] = (uint8_t)(0x08 | (how >> 3 & 0x45));
		}
		write_ram(pc, TX_RING + 16 * (pc->tx_tail % RING), d, sizeof(d));
		pc->tx_tail++;
	}
	nic_write(pc, 0x3818, pc->tx_tail % RING);
}

/* ---- the screen and the hands ---- */

static void set_mode(struct pc *pc, struct rig_input *in)
{
	static const uint8_t depths[] = {8, 15, 16, 24, 32, 32, 4, 0};
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const uint16_t values[] = {(uint16_t)(rig_take(in, 1) * (how & 0x80 ? 40 : 4)),
		(uint16_t)(rig_take(in, 1) * (how & 0x80 ? 17 : 1)), depths[how & 7]};

	bus_write(pc->bus, BUS_PIO, 0x1ce, 2, 4);
	bus_write(pc->bus, BUS_PIO, 0x1cf, 2, 0);
	for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
		bus_write(pc->bus, BUS_PIO, 0x1ce, 2, 1 + i);
		bus_write(pc->bus, BUS_PIO, 0x1cf, 2, values[i]);
	}
	bus_write(pc->bus, BUS_PIO, 0x1ce, 2, 4);
	bus_write(pc->bus, BUS_PIO, 0x1cf, 2, 0x80 | (how >> 3 & 1) | (how & 0x10 ? 0x40 : 0) | (how & 0x20));
	for (unsigned i = 0; i < (how & 0x40 ? 4 : 0); i++) { /* virtual width, offsets, bank */
		bus_write(pc->bus, BUS_PIO, 0x1ce, 2, (uint32_t[]){6, 8, 9, 5}[i]);
		bus_write(pc->bus, BUS_PIO, 0x1cf, 2, rig_take(in, 2));
	}
}

/* A mode of 4096 by 4096 takes its time, the more under a sanitizer. */
static bool is_small(struct pc *pc)
{
	uint64_t sides[3];

	for (unsigned i = 0; i < 3; i++) {
		bus_write(pc->bus, BUS_PIO, 0x1ce, 2, i ? i : 4);
		sides[i] = bus_read(pc->bus, BUS_PIO, 0x1cf, 2);
	}
	return !(sides[0] & 1) || sides[1] * sides[2] < DRAWN_MAX;
}

static void draw(struct pc *pc)
{
	if (pc->drawn && !is_small(pc))
		return;
	pc->drawn |= !is_small(pc);
	MUST(vga_draw(pc->vga, &pc->picture) == 0);
	MUST(pc->picture.width && pc->picture.width <= PICTURE_SIDE_MAX);
	MUST(pc->picture.height && pc->picture.height <= PICTURE_SIDE_MAX);
	const uint64_t last = (uint64_t)pc->picture.width * pc->picture.height - 1;
	MUST(!(pc->picture.pixels[0] >> 24) && !(pc->picture.pixels[last] >> 24));
}

static void use_hands(struct pc *pc, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);

	if (how & 1)
		i8042_key(&pc->i8042, (uint8_t)rig_take(in, 1), how & 2);
	else
		i8042_move(&pc->i8042, (int)rig_take(in, how & 4 ? 4 : 1), (int32_t)(int16_t)rig_take(in, 2),
			(int8_t)rig_take(in, 1), how >> 5);
	MUST(pc->i8042.keyboard.queue.count <= PS2_QUEUE_BYTES && pc->i8042.mouse.queue.count <= PS2_QUEUE_BYTES);
}

/* ---- one input ---- */

static void run(struct pc *pc)
{
	run_turns(pc->loop, 3);
}

static void one_op(struct pc *pc, struct rig_input *in)
{
	const uint8_t op = (uint8_t)rig_take(in, 1);

	switch (op % 20) {
	case 0:
	case 1: access_bus(pc, in, false); break;
	case 2:
	case 3:
	case 4: access_bus(pc, in, true); break;
	case 5: move_things(pc, in); break;
	case 6: put_back(pc); break;
	case 7: poke(pc, in); break;
	case 8: control_ports(pc, in); break;
	case 9:
	case 10: put_command(pc, in); break;
	case 11: start_nic(pc, in); break;
	case 12: put_receive(pc, in); break;
	case 13: put_transmit(pc, in); break;
	case 14: receive(pc, in); break;
	case 15: set_mode(pc, in); break;
	case 16: draw(pc); break;
	case 17: use_hands(pc, in); break;
	case 18:
		pc->drive[op & 32 ? 1 : 0].mood = op >> 6;
		pc->echo = op & 32;
		if (op & 128)
			loop_post(pc->loop, &pc->let_go);
		break;
	default: run(pc); check_ports(pc);
	}
}

static void set_line(void *opaque, unsigned line, bool level)
{
	((struct pc *)opaque)->lines[line] = level;
}

static void ignore(void *opaque) {}

/* As machine/firmware.c does it. */
static void move_ecam(void *opaque, gpa_t base, uint64_t bytes)
{
	struct pc *pc = opaque;

	if (pc->ecam_bytes)
		bus_remove(pc->bus, BUS_MMIO, pc->ecam);
	pc->ecam_bytes = 0;
	if (!bytes || pci_host_attach_ecam(pc->host, pc->bus, base) < 0)
		return;
	pc->ecam = base;
	pc->ecam_bytes = bytes;
}

static void set_up(struct pc *pc)
{
	log_level_set(LOG_LEVEL_ERROR);
	MUST(memory_create(&pc->memory) == 0 && loop_create(&pc->loop) == 0);
	MUST(memory_add_ram(pc->memory, 0, RAM_BYTES, 0, "ram", NULL) == 0);
	MUST(memory_add_ram(pc->memory, HIGH, HIGH_BYTES, 0, "high", NULL) == 0);
	pthread_mutex_init(&pc->host_lock, NULL);
	pthread_mutex_init(&pc->device_lock, NULL);
	pc->let_go = (struct loop_call){.fn = let_go, .opaque = pc};
}

static void make_bridges(struct pc *pc)
{
	const struct pci_host_config host = {
		.lock = &pc->host_lock, .bridge = &q35_bridge_ops, .bridge_opaque = &pc->q35};

	pc->q35 = (struct q35){.ecam = move_ecam, .opaque = pc};
	q35_reset(&pc->q35);
	pc->ecam_bytes = 0;
	MUST(bus_create(&pc->bus) == 0 && pci_host_create(&host, &pc->host) == 0);
	MUST(pci_host_attach(pc->host, pc->bus) == 0);
	MUST(pci_host_add(pc->host, Q35_LPC_DEVFN, &q35_lpc_ops, &pc->q35) == 0);
}

static void make_devices(struct pc *pc, uint8_t how)
{
	const struct ahci_config ahci = {.memory = pc->memory,
		.loop = pc->loop,
		.bus = pc->bus,
		.intx = {.set = set_line, .opaque = pc, .line = 0},
		.count = 2,
		.drive = {{.block = &pc->drive[0].block}, {.block = &pc->drive[1].block, .cdrom = true}}};
	const struct e1000_config nic = {.memory = pc->memory,
		.loop = pc->loop,
		.bus = pc->bus,
		.intx = {.set = set_line, .opaque = pc, .line = 1},
		.net = &pc->net,
		.mac = {2, 0, 0, 0, 0, 1}};

	for (unsigned i = 0; i < ARRAY_SIZE(pc->drive); i++)
		pc->drive[i] = (struct fake_block){.block.ops = &block_ops,
			.limits = {.size_bytes = DISK_BYTES - (i ? 512 : 0),
				.sector_bytes = 512,
				.memory_align = 1,
				.readonly = i || how & 1,
				.discard = how & 2},
			.pc = pc};
	pc->net.ops = &net_ops;
	pc->echo = pc->echoing = pc->drawn = false;
	pc->i8042 = (struct i8042){.lock = &pc->device_lock,
		.reset = ignore,
		.irq = {{.set = set_line, .opaque = pc, .line = 2}, {.set = set_line, .opaque = pc, .line = 3}},
		.plugged = !(how & 4)};
	MUST(ahci_create(&ahci, pc->host, AHCI_DEVFN, &pc->ahci) == 0);
	MUST(e1000_create(&nic, pc->host, NIC_DEVFN, &pc->nic) == 0);
	MUST(vga_create(pc->bus, pc->host, VGA_DEVFN, &pc->vga) == 0);
	MUST(i8042_attach(&pc->i8042, pc->bus) == 0);
	put_back(pc);
}

/* On the loop: with nothing held nothing is waited for. */
static void end(void *opaque)
{
	struct pc *pc = opaque;

	let_go(pc);
	ahci_free(pc->ahci);
	e1000_free(pc->nic);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	static struct pc pc;

	if (!pc.memory)
		set_up(&pc);
	make_bridges(&pc);
	make_devices(&pc, (uint8_t)rig_take(&in, 1));
	start_port(&pc, 0);
	start_port(&pc, 1);
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&pc, &in);
	pc.drive[0].mood = pc.drive[1].mood = 0;
	pc.end = (struct loop_call){.fn = end, .opaque = &pc};
	loop_post(pc.loop, &pc.end);
	run(&pc);
	vga_free(pc.vga);
	MUST(!pc.lines[0] && !pc.lines[1] && !pc.drive[0].held_count && !pc.drive[1].held_count && !pc.peer.receive);
	pci_host_free(pc.host);
	bus_free(pc.bus);
	memset(memory_host(pc.memory, 0, RAM_BYTES, false), 0, RAM_BYTES);
	memset(memory_host(pc.memory, HIGH, HIGH_BYTES, false), 0, HIGH_BYTES);
	return 0;
}
