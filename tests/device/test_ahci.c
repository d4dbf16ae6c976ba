/*
 * device/disk: the controller driven by its registers as a driver does it, a disk and a CD-ROM on memory; errors, resets
 * while requests are under way, and guests whose lists of buffers lie.
 */
#include "tests/device/pci_rig.h"

#include "base/bytes.h"
#include "device/block.h"
#include "device/disk/ahci.h"

#include <errno.h>
#include <unistd.h>

#define RAM_BYTES  MIB(1)
#define DISK_BYTES KIB(256)
#define SLOT	   PCI_DEVFN(31, 2)
#define LIST	   0x1000u
#define FIS	   0x2000u
#define TABLE	   0x3000u /* 1 KiB for each slot */
#define DATA	   0x20000u
#define DISK	   0 /* ports */
#define CD	   1

struct fake_block {
	struct block block;
	struct block_limits limits;
	uint8_t bytes[DISK_BYTES];
	int status;
	bool hold;
	struct block_request *held[64];
	unsigned held_count, flushes, discards;
};

struct fixture {
	struct pci_rig rig;
	struct ahci *ahci;
	struct fake_block disk, cd;
};

/* ---- the block devices ---- */

static void end_request(struct fake_block *fake, struct block_request *r)
{
	uint64_t at = r->offset;

	for (unsigned i = 0; i < r->iov_count && fake->status == 0; i++) {
		assert_true(at + r->iov[i].iov_len <= DISK_BYTES);
		if (r->op == BLOCK_READ)
			memcpy(r->iov[i].iov_base, fake->bytes + at, r->iov[i].iov_len);
		else
			memcpy(fake->bytes + at, r->iov[i].iov_base, r->iov[i].iov_len);
		at += r->iov[i].iov_len;
	}
	fake->flushes += r->op == BLOCK_FLUSH;
	fake->discards += r->op == BLOCK_DISCARD;
	r->done(r, fake->status);
}

static void fake_submit(struct block *block, struct block_request *r)
{
	struct fake_block *fake = container_of(block, struct fake_block, block);

	if (fake->hold)
		fake->held[fake->held_count++] = r;
	else
		end_request(fake, r);
}

static void fake_limits(struct block *block, struct block_limits *ret_limits)
{
	*ret_limits = container_of(block, struct fake_block, block)->limits;
}

static const struct block_ops fake_ops = {.submit = fake_submit, .limits = fake_limits};

static void let_go(void *opaque)
{
	struct fake_block *fake = opaque;

	fake->hold = false;
	for (unsigned i = 0; i < fake->held_count; i++)
		end_request(fake, fake->held[i]);
	fake->held_count = 0;
}

static void nothing(void *opaque)
{
}

/* ---- the rig ---- */

static uint32_t rd(struct fixture *f, unsigned at)
{
	return pci_rig_read(&f->rig, at);
}

static void wr(struct fixture *f, unsigned at, uint32_t value)
{
	pci_rig_write(&f->rig, at, value);
}

static uint32_t port(struct fixture *f, unsigned n, unsigned at)
{
	return rd(f, 0x100 + 0x80 * n + at);
}

static void set_port(struct fixture *f, unsigned n, unsigned at, uint32_t value)
{
	wr(f, 0x100 + 0x80 * n + at, value);
}

static void start_port(struct fixture *f, unsigned n)
{
	set_port(f, n, 0x00, LIST + 0x400 * n);
	set_port(f, n, 0x08, FIS + 0x100 * n);
	set_port(f, n, 0x14, ~0u);
	set_port(f, n, 0x18, 0x10);
	set_port(f, n, 0x18, 0x11);
	assert_int_equal(port(f, n, 0x18) & 0xc011, 0xc011);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->disk.block.ops = f->cd.block.ops = &fake_ops;
	f->disk.limits = (struct block_limits){
		.size_bytes = DISK_BYTES, .sector_bytes = 512, .discard = true, .volatile_cache = true};
	f->cd.limits = (struct block_limits){.size_bytes = DISK_BYTES, .sector_bytes = 512, .readonly = true};
	for (unsigned i = 0; i < DISK_BYTES; i++) {
		f->disk.bytes[i] = (uint8_t)(i >> 9);
		f->cd.bytes[i] = (uint8_t)(i >> 11);
	}
	pci_rig_init(&f->rig, RAM_BYTES);
	const struct ahci_config config = {.memory = f->rig.memory,
		.loop = f->rig.loop,
		.bus = f->rig.bus,
		.intx = pci_rig_line(&f->rig),
		.count = 2,
		.drive = {{.block = &f->disk.block, .serial = "S1"}, {.block = &f->cd.block, .cdrom = true}}};
	assert_int_equal(ahci_create(&config, f->rig.host, SLOT, &f->ahci), 0);
	ahci_assign(f->ahci, REGS);
	pci_rig_start(&f->rig);
	pci_rig_set_master(&f->rig, SLOT, true);
	wr(f, 0x04, 0x80000002);
	start_port(f, DISK);
	start_port(f, CD);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	loop_invoke(f->rig.loop, let_go, &f->disk); /* what a test that failed has left */
	ahci_free(f->ahci);
	pci_rig_done(&f->rig);
	free(f);
	return 0;
}

/* Lay a command down: fis bytes 2 on, one buffer. */
static void lay(struct fixture *f, unsigned n, unsigned slot, const uint8_t fis[16], const uint8_t *packet, gpa_t data,
	uint32_t bytes)
{
	const gpa_t table = TABLE + 0x400 * slot + 0x8000 * n;
	uint8_t header[32] = {5}, h2d[64] = {0x27, 0x80}, entry[16] = {0};

	store_le16(header + 2, bytes ? 1 : 0);
	store_le64(header + 8, table);
	memcpy(h2d + 2, fis, 14);
	store_le64(entry, data);
	store_le32(entry + 12, bytes - 1);
	assert_int_equal(memory_write(f->rig.memory, LIST + 0x400 * n + 32 * slot, header, 32), 0);
	assert_int_equal(memory_write(f->rig.memory, table, h2d, 64), 0);
	if (packet)
		assert_int_equal(memory_write(f->rig.memory, table + 64, packet, 16), 0);
	assert_int_equal(memory_write(f->rig.memory, table + 128, entry, 16), 0);
}

/* Issue it and wait. Returns the task file. */
static uint32_t go(struct fixture *f, unsigned n, unsigned slot)
{
	set_port(f, n, 0x38, 1u << slot);
	for (unsigned i = 0; i < 5000 && !(port(f, n, 0x10) & 0x40000009); i++)
		usleep(1000);
	return port(f, n, 0x20);
}

/* And take the interrupt. */
static void settle(struct fixture *f, unsigned n)
{
	set_port(f, n, 0x10, ~0u);
	wr(f, 0x08, ~0u);
	assert_false(f->rig.line);
}

static void restart(struct fixture *f, unsigned n)
{
	settle(f, n);
	set_port(f, n, 0x18, 0x10);
	assert_int_equal(port(f, n, 0x18) & 0x8000, 0);
	assert_int_equal(port(f, n, 0x38), 0);
	set_port(f, n, 0x18, 0x11);
}

static uint32_t moved(struct fixture *f, unsigned n, unsigned slot)
{
	uint8_t bytes[4];

	assert_int_equal(memory_read(f->rig.memory, LIST + 0x400 * n + 32 * slot + 4, bytes, 4), 0);
	return load_le32(bytes);
}

static void get(struct fixture *f, gpa_t at, void *bytes, unsigned count)
{
	assert_int_equal(memory_read(f->rig.memory, at, bytes, count), 0);
}

static uint32_t disk_command(struct fixture *f, uint8_t command, uint64_t lba, unsigned count, unsigned bytes)
{
	const uint8_t fis[16] = {command, 0, (uint8_t)lba, (uint8_t)(lba >> 8), (uint8_t)(lba >> 16), 0x40,
		(uint8_t)(lba >> 24), (uint8_t)(lba >> 32), (uint8_t)(lba >> 40), 0, (uint8_t)count, (uint8_t)(count >> 8)};

	lay(f, DISK, 3, fis, NULL, DATA, bytes);
	return go(f, DISK, 3);
}

static uint32_t cd_packet(struct fixture *f, const uint8_t packet[16], unsigned bytes)
{
	const uint8_t fis[16] = {0xa0, 1, 0, 0, 8};

	lay(f, CD, 0, fis, packet, DATA, bytes);
	return go(f, CD, 0);
}

/* ---- tests ---- */

static void test_registers(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(rd(f, 0x0c), 3);
	assert_int_equal(rd(f, 0x10), 0x10300);
	assert_int_equal(rd(f, 0x00) & 0x1f, 5);
	assert_int_equal(port(f, DISK, 0x28), 0x123);
	assert_int_equal(port(f, DISK, 0x24), 0x00000101);
	assert_int_equal(port(f, CD, 0x24), 0xeb140101);
	assert_int_equal(port(f, 2, 0x28), 0); /* no such port */
	assert_int_equal(bus_read(f->rig.bus, BUS_MMIO, REGS + 0x129, 1), 0x01); /* a byte of SSTS */
	set_port(f, DISK, 0x00, 0x123456ff);
	assert_int_equal(port(f, DISK, 0x00), 0x12345400);
}

static void test_identify(void **state)
{
	struct fixture *f = *state;
	uint8_t data[512], sum = 0;

	assert_int_equal(disk_command(f, 0xec, 0, 0, 512), 0x50);
	assert_true(f->rig.line);
	assert_int_equal(rd(f, 0x08), 1);
	assert_int_equal(port(f, DISK, 0x38), 0);
	assert_int_equal(moved(f, DISK, 3), 512);
	settle(f, DISK);
	get(f, DATA, data, 512);
	for (unsigned i = 0; i < 512; i++)
		sum = (uint8_t)(sum + data[i]);
	assert_int_equal(sum, 0);
	assert_int_equal(load_le64(data + 200), DISK_BYTES / 512);
	assert_memory_equal(data + 20, "1S", 2);
	/* A CD-ROM says no to that, and has one of its own. */
	const uint8_t fis[16] = {0xec}, packet_fis[16] = {0xa1};
	lay(f, CD, 1, fis, NULL, DATA, 512);
	assert_int_equal(go(f, CD, 1), 0x0451);
	restart(f, CD);
	lay(f, CD, 1, packet_fis, NULL, DATA, 512);
	assert_int_equal(go(f, CD, 1), 0x50);
	get(f, DATA, data, 2);
	assert_int_equal(load_le16(data), 0x8580);
}

static void test_read_write(void **state)
{
	static const struct {
		uint8_t read, write;
	} commands[] = {{0xc8, 0xca}, {0x25, 0x35}, {0x20, 0x30}, {0x24, 0x34}, {0xc4, 0xc5}};
	struct fixture *f = *state;
	uint8_t data[1024];

	for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
		assert_int_equal(disk_command(f, commands[i].read, 5, 2, 1024), 0x50);
		settle(f, DISK);
		assert_int_equal(moved(f, DISK, 3), 1024);
		get(f, DATA, data, 1024);
		assert_int_equal(data[0], 5);
		assert_int_equal(data[1023], 6);
		memset(data, 0xa0 + (int)i, sizeof(data));
		assert_int_equal(memory_write(f->rig.memory, DATA, data, 1024), 0);
		assert_int_equal(disk_command(f, commands[i].write, 100, 2, 1024), 0x50);
		settle(f, DISK);
		assert_memory_equal(f->disk.bytes + 100 * 512, data, 1024);
		assert_int_equal(f->disk.bytes[102 * 512], 102);
	}
	/* A count of 0 is the most there is: past the end here. */
	assert_int_equal(disk_command(f, 0x25, 0, 0, 1024) & 0xff01, 0x1001);
	restart(f, DISK);
	/* Past the end; around it; not enough buffers; without LBA. */
	assert_int_equal(disk_command(f, 0x25, DISK_BYTES / 512, 1, 512) & 0xff01, 0x1001);
	restart(f, DISK);
	assert_int_equal(disk_command(f, 0x25, 0xffffffffffff, 1, 512) & 0xff01, 0x1001);
	restart(f, DISK);
	assert_int_equal(disk_command(f, 0x25, 0, 2, 1000) & 0xff01, 0x0401);
	restart(f, DISK);
	const uint8_t chs[16] = {0xc8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1};
	lay(f, DISK, 3, chs, NULL, DATA, 512);
	assert_int_equal(go(f, DISK, 3) & 0xff01, 0x0401);
	/* After an error nothing starts. */
	set_port(f, DISK, 0x38, 1u << 4);
	usleep(20000);
	assert_int_equal(port(f, DISK, 0x38), 1u << 3 | 1u << 4);
	restart(f, DISK);
	assert_int_equal(disk_command(f, 0x25, 0, 1, 512), 0x50);
}

static void test_queued(void **state)
{
	struct fixture *f = *state;
	uint8_t data[512];

	for (unsigned slot = 0; slot < 32; slot++) {
		const uint8_t fis[16] = {0x60, 1, (uint8_t)(slot + 10), 0, 0, 0x40, 0, 0, 0, 0, (uint8_t)(slot << 3)};

		lay(f, DISK, slot, fis, NULL, DATA + 512 * slot, 512);
	}
	set_port(f, DISK, 0x34, ~0u);
	set_port(f, DISK, 0x38, ~0u);
	for (unsigned i = 0; i < 5000 && port(f, DISK, 0x34); i++)
		usleep(1000);
	assert_int_equal(port(f, DISK, 0x34), 0);
	assert_int_equal(port(f, DISK, 0x38), 0);
	assert_true(port(f, DISK, 0x10) & 8);
	for (unsigned slot = 0; slot < 32; slot++) {
		get(f, DATA + 512 * slot, data, 512);
		assert_int_equal(data[77], slot + 10);
	}
	settle(f, DISK);
	/* One that fails leaves its bit. */
	f->disk.status = -EIO;
	set_port(f, DISK, 0x34, 4);
	assert_int_equal(go(f, DISK, 2) & 0xff01, 0x4001);
	assert_int_equal(port(f, DISK, 0x34), 4);
	restart(f, DISK);
	f->disk.status = 0;
}

static void end_first_badly(void *opaque)
{
	struct fake_block *fake = opaque;

	fake->hold = false;
	for (unsigned i = 0; i < fake->held_count; i++) {
		fake->status = i ? 0 : -EIO;
		end_request(fake, fake->held[i]);
	}
	fake->held_count = 0;
}

/* The error stays to be seen, and what was queued with it is the guest's to try again. */
static void test_queued_error(void **state)
{
	struct fixture *f = *state;

	f->disk.hold = true;
	for (unsigned slot = 0; slot < 3; slot++) {
		const uint8_t fis[16] = {0x60, 1, (uint8_t)(slot + 10), 0, 0, 0x40, 0, 0, 0, 0, (uint8_t)(slot << 3)};

		lay(f, DISK, slot, fis, NULL, DATA + 512 * slot, 512);
	}
	set_port(f, DISK, 0x34, 7);
	set_port(f, DISK, 0x38, 7);
	for (unsigned i = 0; i < 5000 && f->disk.held_count < 3; i++)
		usleep(1000);
	assert_int_equal(f->disk.held_count, 3);
	loop_invoke(f->rig.loop, end_first_badly, &f->disk);
	assert_true(port(f, DISK, 0x10) & 0x40000000);
	assert_int_equal(port(f, DISK, 0x20) & 0xff01, 0x4001);
	assert_int_equal(port(f, DISK, 0x34), 7);
	restart(f, DISK);
	assert_int_equal(disk_command(f, 0x25, 0, 1, 512), 0x50);
}

/* A page that a read has filled is dirty from then on, whenever the dirty log was last looked at. */
static void test_dirty(void **state)
{
	struct fixture *f = *state;
	const uint8_t fis[16] = {0x25, 0, 9, 0, 0, 0x40, 0, 0, 0, 0, 1};
	uint64_t dirty[(RAM_BYTES >> GUEST_PAGE_SHIFT) / 64];

	assert_int_equal(memory_dirty_start(f->rig.memory), 0);
	f->disk.hold = true;
	lay(f, DISK, 0, fis, NULL, DATA, 512);
	set_port(f, DISK, 0x38, 1);
	for (unsigned i = 0; i < 5000 && !f->disk.held_count; i++)
		usleep(1000);
	memory_dirty_fetch(f->rig.memory, 0, dirty);
	loop_invoke(f->rig.loop, let_go, &f->disk);
	memory_dirty_fetch(f->rig.memory, 0, dirty);
	assert_true(dirty[(DATA >> GUEST_PAGE_SHIFT) / 64] >> ((DATA >> GUEST_PAGE_SHIFT) % 64) & 1);
	memory_dirty_stop(f->rig.memory);
}

static void test_others(void **state)
{
	struct fixture *f = *state;
	uint8_t range[512] = {8, 0, 0, 0, 0, 0, 4, 0};

	assert_int_equal(disk_command(f, 0xea, 0, 0, 0), 0x50);
	settle(f, DISK);
	assert_int_equal(f->disk.flushes, 1);
	assert_int_equal(disk_command(f, 0xe7, 0, 0, 0), 0x50);
	settle(f, DISK);
	assert_int_equal(f->disk.flushes, 2);
	assert_int_equal(memory_write(f->rig.memory, DATA, range, 512), 0);
	const uint8_t trim[16] = {0x06, 1, 0, 0, 0, 0x40, 0, 0, 0, 0, 1};
	lay(f, DISK, 3, trim, NULL, DATA, 512);
	assert_int_equal(go(f, DISK, 3), 0x50);
	settle(f, DISK);
	assert_int_equal(f->disk.discards, 1);
	assert_int_equal(disk_command(f, 0xb0, 0, 0, 0) & 0xff01, 0x0401); /* SMART */
	restart(f, DISK);
	f->disk.limits.readonly = true; /* known from the start only */
	f->disk.status = -ENOSPC;
	assert_int_equal(disk_command(f, 0x35, 0, 1, 512) & 0xff01, 0x0401);
	restart(f, DISK);
	f->disk.status = 0;
	assert_int_equal(disk_command(f, 0x40, 3, 1, 0), 0x50);
}

static void test_cdrom(void **state)
{
	struct fixture *f = *state;
	static const uint8_t ready[16] = {0}, capacity[16] = {0x25}, inquiry[16] = {0x12, 0, 0, 0, 36},
			     toc[16] = {0x43, 2, 0, 0, 0, 0, 0, 0, 20}, read[16] = {0x28, 0, 0, 0, 0, 3, 0, 0, 2},
			     beyond[16] = {0x28, 0, 0, 0, 0, 127, 0, 0, 2}, sense[16] = {0x03, 0, 0, 0, 18},
			     bad[16] = {0xff}, config[16] = {0x46, 0, 0, 0, 0, 0, 0, 0, 8},
			     event[16] = {0x4a, 1, 0, 0, 16, 0, 0, 0, 8}, mode[16] = {0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 28};
	uint8_t data[4096];

	assert_int_equal(cd_packet(f, ready, 0), 0x50);
	settle(f, CD);
	assert_int_equal(cd_packet(f, inquiry, 64), 0x50);
	assert_int_equal(moved(f, CD, 0), 36);
	get(f, DATA, data, 36);
	assert_memory_equal(data + 8, "LODGE   CD-ROM", 14);
	settle(f, CD);
	assert_int_equal(cd_packet(f, capacity, 8), 0x50);
	get(f, DATA, data, 8);
	assert_int_equal(load_be32(data), DISK_BYTES / 2048 - 1);
	assert_int_equal(load_be32(data + 4), 2048);
	settle(f, CD);
	assert_int_equal(cd_packet(f, read, 4096), 0x50);
	get(f, DATA, data, 4096);
	assert_int_equal(data[0], 3);
	assert_int_equal(data[4095], 4);
	settle(f, CD);
	assert_int_equal(cd_packet(f, toc, 20), 0x50);
	get(f, DATA, data, 20);
	assert_int_equal(data[6], 1);
	assert_int_equal(data[14], 0xaa);
	assert_int_equal(data[10], 2); /* minute 0, second 2 */
	settle(f, CD);
	assert_int_equal(cd_packet(f, beyond, 4096), 0x5451);
	restart(f, CD);
	assert_int_equal(cd_packet(f, sense, 18), 0x50);
	get(f, DATA, data, 18);
	assert_int_equal(data[2], 5);
	assert_int_equal(data[12], 0x21);
	settle(f, CD);
	assert_int_equal(cd_packet(f, bad, 0), 0x5451);
	restart(f, CD);
	assert_int_equal(cd_packet(f, config, 8), 0x50);
	settle(f, CD);
	assert_int_equal(cd_packet(f, event, 8), 0x50);
	settle(f, CD);
	assert_int_equal(cd_packet(f, mode, 28), 0x50);
	settle(f, CD);
	f->cd.status = -EIO;
	assert_int_equal(cd_packet(f, read, 4096), 0x3451);
}

/* Stops and resets wait for what is under way, whose end is told to nobody. */
static void test_under_way(void **state)
{
	struct fixture *f = *state;
	const uint8_t fis[16] = {0x25, 0, 9, 0, 0, 0x40, 0, 0, 0, 0, 1};

	for (unsigned how = 0; how < 3; how++) {
		f->disk.hold = true;
		lay(f, DISK, 0, fis, NULL, DATA, 512);
		set_port(f, DISK, 0x38, 1);
		for (unsigned i = 0; i < 5000 && !f->disk.held_count; i++)
			usleep(1000);
		assert_int_equal(f->disk.held_count, 1);
		if (how == 0) {
			set_port(f, DISK, 0x18, 0x10);
			assert_int_equal(port(f, DISK, 0x18) & 0x8000, 0x8000);
		} else if (how == 1) {
			set_port(f, DISK, 0x2c, 1);
			set_port(f, DISK, 0x2c, 0);
			assert_int_equal(port(f, DISK, 0x28), 1);
		} else {
			wr(f, 0x04, 0x80000001);
			assert_int_equal(rd(f, 0x04) & 1, 1);
		}
		loop_invoke(f->rig.loop, let_go, &f->disk);
		assert_int_equal(port(f, DISK, 0x10) & 1, 0);
		if (how == 0)
			assert_int_equal(port(f, DISK, 0x18) & 0x8000, 0);
		assert_int_equal(port(f, DISK, 0x28), 0x123);
		assert_int_equal(rd(f, 0x04) & 1, 0);
		wr(f, 0x04, 0x80000002);
		set_port(f, DISK, 0x18, 0x10);
		start_port(f, DISK);
		settle(f, DISK);
		assert_int_equal(disk_command(f, 0x25, 0, 1, 512), 0x50);
		settle(f, DISK);
	}
	/* Freed with one under way: teardown waits for it. */
	f->disk.hold = true;
	set_port(f, DISK, 0x38, 8);
	for (unsigned i = 0; i < 5000 && !f->disk.held_count; i++)
		usleep(1000);
	struct loop_call call = {.fn = let_go, .opaque = &f->disk};
	loop_post(f->rig.loop, &call);
	loop_invoke(f->rig.loop, nothing, NULL);
}

static void wait_held(struct fixture *f)
{
	for (unsigned i = 0; i < 5000 && !f->disk.held_count; i++)
		usleep(1000);
	assert_int_equal(f->disk.held_count, 1);
}

/* Without bus mastering nothing starts, and nothing ends in the guest's memory, until there is some again. */
static void test_master(void **state)
{
	struct fixture *f = *state;
	const uint8_t fis[16] = {0x25, 0, 9, 0, 0, 0x40, 0, 0, 0, 0, 1};
	uint8_t moved[4], d2h[20], zeros[20] = {0};

	pci_rig_set_master(&f->rig, SLOT, false);
	f->disk.hold = true;
	lay(f, DISK, 0, fis, NULL, DATA, 512);
	set_port(f, DISK, 0x38, 1);
	loop_invoke(f->rig.loop, nothing, NULL);
	assert_int_equal(f->disk.held_count, 0);
	assert_int_equal(port(f, DISK, 0x38), 1);
	pci_rig_set_master(&f->rig, SLOT, true);
	wait_held(f);
	/* It ends while there is none. */
	pci_rig_set_master(&f->rig, SLOT, false);
	assert_int_equal(memory_write(f->rig.memory, FIS + 0x40, zeros, 20), 0);
	loop_invoke(f->rig.loop, let_go, &f->disk);
	get(f, LIST + 4, moved, 4);
	assert_int_equal(load_le32(moved), 0);
	get(f, FIS + 0x40, d2h, 20);
	assert_memory_equal(d2h, zeros, 20);
	assert_int_equal(port(f, DISK, 0x38), 1);
	assert_false(f->rig.line);
	pci_rig_set_master(&f->rig, SLOT, true);
	loop_invoke(f->rig.loop, nothing, NULL);
	get(f, LIST + 4, moved, 4);
	assert_int_equal(load_le32(moved), 512);
	get(f, FIS + 0x40, d2h, 20);
	assert_int_equal(d2h[0], 0x34);
	assert_int_equal(port(f, DISK, 0x38), 0);
	assert_true(f->rig.line);
	settle(f, DISK);
	/* A reset does not wait for it. */
	f->disk.hold = true;
	set_port(f, DISK, 0x38, 1);
	wait_held(f);
	pci_rig_set_master(&f->rig, SLOT, false);
	loop_invoke(f->rig.loop, let_go, &f->disk);
	wr(f, 0x04, 0x80000001);
	loop_invoke(f->rig.loop, nothing, NULL);
	assert_int_equal(rd(f, 0x04) & 1, 0);
	/* Nor does the end. */
	pci_rig_set_master(&f->rig, SLOT, true);
	start_port(f, DISK);
	f->disk.hold = true;
	set_port(f, DISK, 0x38, 1);
	wait_held(f);
	pci_rig_set_master(&f->rig, SLOT, false);
	loop_invoke(f->rig.loop, let_go, &f->disk);
}

static void test_soft_reset(void **state)
{
	struct fixture *f = *state;
	uint8_t fis[64] = {0x27}, d2h[20];

	for (unsigned srst = 4; srst <= 4; srst -= 4) {
		const uint8_t none[16] = {0};

		lay(f, CD, 0, none, NULL, DATA, 0);
		fis[15] = (uint8_t)srst;
		assert_int_equal(memory_write(f->rig.memory, TABLE + 0x8000, fis, 64), 0);
		set_port(f, CD, 0x38, 1);
		for (unsigned i = 0; i < 5000 && port(f, CD, 0x38); i++)
			usleep(1000);
		assert_int_equal(port(f, CD, 0x38), 0);
		if (!srst)
			break;
	}
	get(f, FIS + 0x100 + 0x40, d2h, 20);
	assert_int_equal(d2h[5], 0x14);
	assert_int_equal(d2h[6], 0xeb);
}

static void test_hostile(void **state)
{
	struct fixture *f = *state;
	const uint8_t read[16] = {0x25, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 1};
	uint8_t header[32] = {5};
	uint32_t random = 7;

	/* Buffers and tables where no RAM is; more buffers than there may be. */
	lay(f, DISK, 0, read, NULL, RAM_BYTES - 100, 512);
	assert_int_equal(go(f, DISK, 0) & 1, 1);
	restart(f, DISK);
	store_le64(header + 8, ~0ull & ~127ull);
	assert_int_equal(memory_write(f->rig.memory, LIST, header, 32), 0);
	assert_int_equal(go(f, DISK, 0) & 1, 1);
	restart(f, DISK);
	store_le64(header + 8, TABLE);
	store_le16(header + 2, 0xffff);
	assert_int_equal(memory_write(f->rig.memory, LIST, header, 32), 0);
	assert_int_equal(go(f, DISK, 0) & 1, 1);
	restart(f, DISK);
	set_port(f, DISK, 0x18, 0x10);
	set_port(f, DISK, 0x04, ~0u); /* the list itself */
	set_port(f, DISK, 0x18, 0x11);
	assert_int_equal(go(f, DISK, 1) & 1, 1);
	set_port(f, DISK, 0x04, 0);
	restart(f, DISK);
	/* Random tables and registers. */
	for (unsigned i = 0; i < 3000; i++) {
		uint8_t bytes[0x400];

		for (unsigned n = 0; n < sizeof(bytes); n++) {
			random = random * 1664525 + 1013904223;
			bytes[n] = (uint8_t)(random >> 24);
		}
		bytes[0] = 0x27;
		bytes[1] = 0x80;
		if (i & 1)
			bytes[2] = (uint8_t[]){0x25, 0x35, 0x60, 0x61, 0xc8, 0xca, 0x06, 0xa0}[i / 2 % 8];
		bytes[64] = (uint8_t[]){0x28, 0x43, 0x5a, 0xa8}[i % 4];
		for (unsigned n = 0; n < 8; n++) { /* buffers in RAM, most of them */
			store_le64(bytes + 128 + 16 * n, random % RAM_BYTES);
			store_le32(bytes + 140 + 16 * n, random >> 20);
		}
		assert_int_equal(memory_write(f->rig.memory, TABLE + 0x8000 * (i & 1), bytes, sizeof(bytes)), 0);
		store_le16(header + 2, (uint16_t)(random >> 8 & 7));
		store_le64(header + 8, TABLE + 0x8000 * (i & 1));
		assert_int_equal(memory_write(f->rig.memory, LIST + 0x400 * (i & 1), header, 32), 0);
		set_port(f, i & 1, 0x38, 1);
		if (i % 16 == 0)
			bus_write(f->rig.bus, BUS_MMIO, REGS + (random >> 4) % 0x400, 4, random);
		set_port(f, i & 1, 0x18, 0x10);
		set_port(f, i & 1, 0x00, LIST + 0x400 * (i & 1));
		set_port(f, i & 1, 0x18, 0x11);
	}
	fake_hammer(f->rig.bus, BUS_MMIO, REGS, 0x1000, 5000);
}

static void barrier(void *opaque) {}

/* A disk that it can't show, such as one of sectors of 4 KiB: nothing of the controller that was not made stays on the loop. */
static void test_refused(void **state)
{
	struct fixture *f = *state;
	struct ahci *refused = NULL;
	struct ahci_config config = {.memory = f->rig.memory,
		.loop = f->rig.loop,
		.bus = f->rig.bus,
		.count = 2,
		.drive = {{.block = &f->cd.block}, {.block = &f->disk.block}}};

	loop_invoke(f->rig.loop, barrier, NULL);
	f->disk.limits.sector_bytes = 4096;
	assert_int_equal(ahci_create(&config, f->rig.host, PCI_DEVFN(9, 0), &refused), -EINVAL);
	assert_null(refused);
	loop_invoke(f->rig.loop, barrier, NULL);
	f->disk.limits.sector_bytes = 512;
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_registers),
		TEST(test_identify),
		TEST(test_read_write),
		TEST(test_queued),
		TEST(test_queued_error),
		TEST(test_dirty),
		TEST(test_others),
		TEST(test_cdrom),
		TEST(test_under_way),
		TEST(test_master),
		TEST(test_soft_reset),
		TEST(test_hostile),
		TEST(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
