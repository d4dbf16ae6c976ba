/*
 * The AHCI controller: see ahci.h. Numbers in comments are sections of AHCI 1.3.1.
 */
#include "device/disk/ahci_private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "device/pci/device.h"
#include "memory/memory.h"

#define BAR_REGISTERS	5
#define REGISTERS_BYTES 0x1000u
#define PORT_FIRST	0x100u
#define PORT_BYTES	0x80u

/* Generic registers (3.1) */
#define REG_CAP	  0x00
#define REG_GHC	  0x04
#define REG_IS	  0x08
#define REG_PI	  0x0c
#define REG_VS	  0x10
#define VERSION	  0x00010300u
#define CAP_FIXED 0xc0341f00u /* 64 bits, NCQ, 32 slots, interface speed 3, AHCI only, list override */
#define GHC_RESET 0x01u
#define GHC_IRQ	  0x02u
#define GHC_AHCI  0x80000000u

/* Port registers (3.3) */
enum port_register {
	PORT_CLB = 0x00,
	PORT_CLBU = 0x04,
	PORT_FB = 0x08,
	PORT_FBU = 0x0c,
	PORT_IS = 0x10,
	PORT_IE = 0x14,
	PORT_CMD = 0x18,
	PORT_TFD = 0x20,
	PORT_SIG = 0x24,
	PORT_SSTS = 0x28,
	PORT_SCTL = 0x2c,
	PORT_SERR = 0x30,
	PORT_SACT = 0x34,
	PORT_CI = 0x38,
};

#define IS_D2H	     0x01u
#define IS_PIO	     0x02u
#define IS_SDB	     0x08u
#define IS_TASK_FILE 0x40000000u
#define IE_MASK	     0xfdc000ffu

#define CMD_START	0x0001u
#define CMD_SPIN	0x0002u
#define CMD_POWER	0x0004u
#define CMD_OVERRIDE	0x0008u
#define CMD_FIS		0x0010u
#define CMD_FIS_RUNS	0x4000u
#define CMD_RUNS	0x8000u
#define CMD_ATAPI	0x01000000u
#define CMD_WRITABLE	(CMD_START | CMD_SPIN | CMD_POWER | CMD_FIS | CMD_ATAPI)

#define SSTS_THERE    0x123u /* present, generation 2, active */
#define SIG_DISK      0x00000101u
#define SIG_CDROM     0xeb140101u
#define DET_COMRESET  1u

#define HEADER_BYTES	32u
#define TABLE_BUFFERS	0x80u
#define BUFFER_BYTES	16u
#define FIS_PIO_SETUP	0x20u
#define FIS_D2H		0x40u
#define FIS_SDB		0x58u
#define FIS_H2D_TYPE	0x27u
#define COMMAND_FPDMA_READ  0x60u
#define COMMAND_FPDMA_WRITE 0x61u

struct ahci {
	struct ahci_config config;
	pthread_mutex_t lock;
	pthread_cond_t idle; /* nothing runs any more */
	struct pci_device *pci;
	uint32_t ghc, is;
	bool resetting;	 /* GHC.HR: until nothing runs any more */
	bool stopping;	 /* ahci_free() waits: nothing new starts */
	struct loop_call call;
	struct ahci_port port[AHCI_PORTS_MAX];
};

/* ---- interrupts ---- */

static void update_line(struct ahci *ahci)
{
	for (unsigned i = 0; i < ahci->config.count; i++)
		if (ahci->port[i].is & ahci->port[i].ie)
			ahci->is |= 1u << i;
	pci_device_intx(ahci->pci, (ahci->ghc & GHC_IRQ) && ahci->is);
}

static void port_interrupt(struct ahci_port *port, uint32_t cause)
{
	port->is |= cause;
	update_line(port->ahci);
}

/* ---- what the drive says ---- */

static void write_fis(const struct ahci_port *port, unsigned at, const uint8_t *bytes, unsigned count)
{
	if ((port->cmd & CMD_FIS) && pci_device_is_master(port->ahci->pci))
		(void)!memory_write(port->ahci->config.memory, port->fis + at, bytes, count);
}

static void send_d2h(struct ahci_port *port, const struct ahci_command *command, bool interrupt)
{
	uint8_t fis[20] = {0x34, interrupt ? 0x40 : 0, (uint8_t)port->tfd, (uint8_t)(port->tfd >> 8)};

	if (command) { /* LBA and count as they were asked for, but a packet's reason */
		memcpy(fis + 4, command->fis + 4, 10);
		if (port->drive.cdrom)
			fis[12] = 3; /* status: command done */
	} else {
		fis[4] = fis[12] = 1;
		fis[5] = port->drive.cdrom ? 0x14 : 0;
		fis[6] = port->drive.cdrom ? 0xeb : 0;
	}
	write_fis(port, FIS_D2H, fis, sizeof(fis));
	if (interrupt)
		port_interrupt(port, IS_D2H);
}

/* After power-on and reset: what it is. */
static void send_signature(struct ahci_port *port)
{
	port->sig = port->drive.cdrom ? SIG_CDROM : SIG_DISK;
	port->tfd = 0x0100u | (port->drive.cdrom ? 0 : ATA_READY | ATA_SEEK);
	send_d2h(port, NULL, false);
}

static void send_sdb(struct ahci_port *port, uint32_t ended)
{
	uint8_t fis[8] = {0xa1, 0x40, (uint8_t)(port->tfd & 0x77), (uint8_t)(port->tfd >> 8)};

	store_le32(fis + 4, ended);
	write_fis(port, FIS_SDB, fis, sizeof(fis));
	port_interrupt(port, IS_SDB);
}

/* ---- the end of a command ---- */

static void port_settle(struct ahci_port *port);

static void give_up(struct ahci_port *port)
{
	for (unsigned slot = 0; slot < AHCI_SLOTS; slot++) {
		port->command[slot].aborted |= port->command[slot].running;
		if (port->command[slot].end_waits)
			loop_post(port->ahci->config.loop, &port->ahci->call);
	}
}

/* After an error the drive has forgotten what else it was doing (ATA8-ACS 4.16.4): the error must still be seen when the
 * guest comes to look, and it tries again what has not ended. */
static void tell_end(struct ahci_command *command, uint8_t error)
{
	struct ahci_port *port = command->port;
	const uint32_t bit = 1u << command->slot;
	uint8_t count[4];

	port->tfd = ATA_READY | ATA_SEEK | (error ? ATA_ERROR : 0) | (uint32_t)error << 8;
	store_le32(count, (uint32_t)command->moved);
	(void)!memory_write(port->ahci->config.memory, command->header + 4, count, 4);
	if (command->queued) {
		port->sact &= error ? ~0u : ~bit;
		send_sdb(port, error ? 0 : bit);
	} else {
		send_d2h(port, command, true);
		if (!error)
			port->ci &= ~bit;
	}
	if (error) {
		give_up(port);
		port_interrupt(port, IS_TASK_FILE);
	}
}

void ahci_end(struct ahci_command *command, uint8_t error)
{
	struct ahci_port *port = command->port;

	command->end_waits = !command->aborted && !pci_device_is_master(port->ahci->pci);
	command->end_error = error;
	if (command->end_waits)
		return;
	command->running = false;
	port->running--;
	if (!command->aborted)
		tell_end(command, error);
	port_settle(port);
}

/* ---- data ---- */

void ahci_give(struct ahci_command *command, const void *bytes, uint64_t count)
{
	const uint8_t *from = bytes;

	command->moved = MIN(count, command->room);
	for (uint64_t i = 0, done = 0, part; done < command->moved; done += part, i++) {
		part = MIN(command->moved - done, (uint64_t)command->iov[i].iov_len);
		(void)!memory_write(command->port->ahci->config.memory, command->iov_gpa[i], from + done, part);
	}
	ahci_end(command, 0);
}

uint64_t ahci_take(const struct ahci_command *command, void *bytes, uint64_t count)
{
	const uint64_t all = MIN(count, command->room);
	uint8_t *to = bytes;

	for (uint64_t i = 0, done = 0, part; done < all; done += part, i++) {
		part = MIN(all - done, (uint64_t)command->iov[i].iov_len);
		memcpy(to + done, command->iov[i].iov_base, part);
	}
	return all;
}

/* After the bytes came. */
static void tell_memory(const struct ahci_command *command)
{
	struct guest_memory *memory = command->port->ahci->config.memory;

	for (uint64_t i = 0, done = 0, part; done < command->moved; done += part, i++) {
		part = MIN(command->moved - done, (uint64_t)command->iov[i].iov_len);
		memory_mark_dirty(memory_find(memory, command->iov_gpa[i]), command->iov_gpa[i], part);
		memory_written(memory, command->iov_gpa[i], part);
	}
}

static void transfer_done(struct block_request *request, int status)
{
	struct ahci_command *command = request->opaque;
	struct ahci *ahci = command->port->ahci;

	AUTO_LOCK(&ahci->lock);
	if (status == 0 && request->op == BLOCK_READ)
		tell_memory(command);
	if (status < 0)
		command->moved = 0;
	ahci_end(command, status < 0 ? command->status_on_error : 0);
}

/* `done` may come inside submit and takes the lock, which the caller holds: so it is let go of. Nothing else can have been
 * done to the command meanwhile but that it was aborted. */
static void submit(struct ahci_command *command)
{
	struct ahci *ahci = command->port->ahci;

	pthread_mutex_unlock(&ahci->lock);
	block_submit(command->port->drive.block, &command->request);
	pthread_mutex_lock(&ahci->lock);
}

void ahci_transfer(
	struct ahci_command *command, enum block_op op, uint64_t offset, uint64_t bytes, uint8_t error)
{
	const bool data = op == BLOCK_READ || op == BLOCK_WRITE;
	unsigned count = 0;
	uint64_t left = data ? bytes : 0;

	if (left > command->room) { /* buffers for less than was asked for */
		ahci_end(command, ATA_ABORTED);
		return;
	}
	for (; left; count++) {
		command->request_iov[count] = command->iov[count];
		command->request_iov[count].iov_len = MIN(left, (uint64_t)command->iov[count].iov_len);
		left -= command->request_iov[count].iov_len;
	}
	command->moved = data ? bytes : 0;
	command->status_on_error = error;
	command->request = (struct block_request){.op = op,
		.offset = offset,
		.bytes = bytes,
		.iov = command->request_iov,
		.iov_count = count,
		.unmap = true,
		.done = transfer_done,
		.opaque = command};
	submit(command);
}

/* ---- the start of a command ---- */

/* The list of buffers (4.2.3.3). false: it is none. */
static bool read_buffers(struct ahci_command *command, gpa_t table, unsigned count)
{
	struct guest_memory *memory = command->port->ahci->config.memory;

	command->iov_count = 0;
	command->room = 0;
	if (count > AHCI_IOV_MAX)
		return false;
	for (unsigned i = 0; i < count; i++) {
		uint8_t entry[BUFFER_BYTES];

		if (memory_read(memory, table + TABLE_BUFFERS + (gpa_t)i * BUFFER_BYTES, entry, BUFFER_BYTES) < 0)
			return false;
		const gpa_t gpa = load_le64(entry) & ~1ull;
		const uint64_t bytes = (load_le32(entry + 12) & 0x3fffff) + 1;
		void *host = memory_host(memory, gpa, bytes, true);
		if (!host)
			return false;
		command->iov[i] = (struct iovec){host, bytes};
		command->iov_gpa[i] = gpa;
		command->room += bytes;
	}
	command->iov_count = count;
	return true;
}

static bool read_command(struct ahci_command *command)
{
	struct ahci_port *port = command->port;
	struct guest_memory *memory = port->ahci->config.memory;
	uint8_t header[HEADER_BYTES];
	gpa_t table;

	command->header = port->command_list + (gpa_t)command->slot * HEADER_BYTES;
	if (memory_read(memory, command->header, header, sizeof(header)) < 0)
		return false;
	table = load_le64(header + 8) & ~127ull;
	if (memory_read(memory, table, command->fis, sizeof(command->fis)) < 0 ||
		memory_read(memory, table + 64, command->packet, sizeof(command->packet)) < 0)
		return false;
	return read_buffers(command, table, load_le16(header + 2));
}

/* A soft reset (ATA 9.2): a FIS with the C bit clear and SRST set, then one with it clear. */
static void control_fis(struct ahci_command *command)
{
	struct ahci_port *port = command->port;

	port->ci &= ~(1u << command->slot);
	command->running = false;
	port->running--;
	if (!(command->fis[15] & 4))
		send_signature(port);
	port_settle(port);
}

static void start_command(struct ahci_port *port, unsigned slot)
{
	struct ahci_command *command = &port->command[slot];

	command->port = port;
	command->slot = slot;
	command->running = true;
	command->queued = command->aborted = command->end_waits = false;
	command->moved = command->room = 0;
	port->running++;
	if (!read_command(command) || command->fis[0] != FIS_H2D_TYPE) {
		ahci_end(command, ATA_ABORTED);
		return;
	}
	if (!(command->fis[1] & 0x80)) {
		control_fis(command);
		return;
	}
	command->queued = !port->drive.cdrom && (command->fis[2] == COMMAND_FPDMA_READ ||
							command->fis[2] == COMMAND_FPDMA_WRITE);
	if (command->queued)
		port->ci &= ~(1u << slot); /* the drive has it; SACT says that it runs */
	else
		port->tfd |= ATA_BUSY;
	if (port->drive.cdrom)
		atapi_execute(command);
	else
		ata_execute(command);
}

/* After an error nothing more starts until the guest has stopped and started the port (6.2.2). */
static bool may_start(const struct ahci_port *port, unsigned slot)
{
	const uint32_t wanted = CMD_START | CMD_FIS;

	return pci_device_is_master(port->ahci->pci) && (port->cmd & wanted) == wanted && !port->resetting && !port->ahci->resetting &&
	       !port->ahci->stopping && !(port->tfd & (ATA_ERROR | ATA_BUSY)) && (port->ci >> slot & 1) &&
	       !port->command[slot].running;
}

/* Those that had to wait for bus mastering. */
static void end_commands(struct ahci_port *port)
{
	for (unsigned slot = 0; slot < AHCI_SLOTS; slot++) {
		struct ahci_command *command = &port->command[slot];

		command->aborted |= command->running && port->ahci->stopping;
		if (command->end_waits)
			ahci_end(command, command->end_error);
	}
}

/* On the loop. */
static void run_commands(void *opaque)
{
	struct ahci *ahci = opaque;

	AUTO_LOCK(&ahci->lock);
	for (unsigned i = 0; i < ahci->config.count; i++)
		end_commands(&ahci->port[i]);
	for (unsigned i = 0; i < ahci->config.count; i++)
		for (unsigned slot = 0; slot < AHCI_SLOTS; slot++)
			if (may_start(&ahci->port[i], slot))
				start_command(&ahci->port[i], slot);
}

/* ---- stops and resets, which are complete when nothing runs any more ---- */

static void port_reset(struct ahci_port *port)
{
	port->cmd = CMD_SPIN | CMD_POWER | (port->drive.cdrom ? CMD_ATAPI : 0);
	port->is = port->ie = port->sctl = port->serr = port->sact = port->ci = 0;
	port->command_list = port->fis = 0;
	port->resetting = false;
	send_signature(port);
}

static bool all_idle(const struct ahci *ahci)
{
	for (unsigned i = 0; i < ahci->config.count; i++)
		if (ahci->port[i].running)
			return false;
	return true;
}

static void controller_settle(struct ahci *ahci)
{
	if (!all_idle(ahci))
		return;
	pthread_cond_broadcast(&ahci->idle);
	if (!ahci->resetting)
		return;
	ahci->resetting = false;
	ahci->ghc = GHC_AHCI;
	ahci->is = 0;
	for (unsigned i = 0; i < ahci->config.count; i++)
		port_reset(&ahci->port[i]);
	update_line(ahci);
}

/* Something of the port has ended, or is to. */
static void port_settle(struct ahci_port *port)
{
	if (!(port->cmd & CMD_FIS))
		port->cmd &= ~CMD_FIS_RUNS;
	if (!port->running) {
		if (!(port->cmd & CMD_START))
			port->cmd &= ~CMD_RUNS;
		if (port->resetting && (port->sctl & 15) != DET_COMRESET) {
			port->resetting = false;
			port->serr |= 0x04050000; /* what a connection leaves */
			send_signature(port);
		}
		controller_settle(port->ahci);
	}
	if (port->ci)
		loop_post(port->ahci->config.loop, &port->ahci->call);
}

static void write_cmd(struct ahci_port *port, uint32_t value)
{
	const uint32_t before = port->cmd;

	port->cmd = (before & ~CMD_WRITABLE) | (value & CMD_WRITABLE);
	if ((value & CMD_OVERRIDE) && !(before & CMD_START))
		port->tfd &= ~(ATA_BUSY | ATA_REQUEST);
	if (port->cmd & CMD_FIS)
		port->cmd |= CMD_FIS_RUNS;
	if ((port->cmd & CMD_START) && !(before & CMD_START)) {
		port->cmd |= CMD_RUNS;
		port->tfd &= ~ATA_ERROR;
	}
	if (!(port->cmd & CMD_START) && (before & CMD_START)) {
		give_up(port);
		port->ci = port->sact = 0;
		port->tfd &= ~ATA_BUSY;
	}
	if ((port->cmd & CMD_FIS) && !(before & CMD_FIS) && !port->running)
		send_d2h(port, NULL, false); /* the signature waited for somewhere to go */
	port_settle(port);
}

static void write_sctl(struct ahci_port *port, uint32_t value)
{
	port->sctl = value & 0xfff;
	if ((value & 15) == DET_COMRESET) {
		port->resetting = true;
		port->tfd = 0x7f;
		port->ci = port->sact = 0; /* the drive has forgotten them */
		give_up(port);
	}
	port_settle(port);
}

/* ---- registers ---- */

static uint32_t port_read(const struct ahci_port *port, unsigned reg)
{
	switch (reg) {
	case PORT_CLB: return (uint32_t)port->command_list;
	case PORT_CLBU: return (uint32_t)(port->command_list >> 32);
	case PORT_FB: return (uint32_t)port->fis;
	case PORT_FBU: return (uint32_t)(port->fis >> 32);
	case PORT_IS: return port->is;
	case PORT_IE: return port->ie;
	case PORT_CMD: return port->cmd;
	case PORT_TFD: return port->tfd;
	case PORT_SIG: return port->sig;
	case PORT_SSTS: return port->resetting ? 1 : SSTS_THERE;
	case PORT_SCTL: return port->sctl;
	case PORT_SERR: return port->serr;
	case PORT_SACT: return port->sact;
	case PORT_CI: return port->ci;
	default: return 0;
	}
}

static void set_low(uint64_t *address, uint32_t value, uint32_t align)
{
	*address = (*address & ~0xffffffffull) | (value & ~(align - 1));
}

static void set_high(uint64_t *address, uint32_t value)
{
	*address = (*address & 0xffffffffull) | (uint64_t)value << 32;
}

static void port_write(struct ahci_port *port, unsigned reg, uint32_t value)
{
	switch (reg) {
	case PORT_CLB: set_low(&port->command_list, value, 1024); break;
	case PORT_CLBU: set_high(&port->command_list, value); break;
	case PORT_FB: set_low(&port->fis, value, 256); break;
	case PORT_FBU: set_high(&port->fis, value); break;
	case PORT_IS: port->is &= ~value; break;
	case PORT_IE: port->ie = value & IE_MASK; break;
	case PORT_CMD: write_cmd(port, value); break;
	case PORT_SCTL: write_sctl(port, value); break;
	case PORT_SERR: port->serr &= ~value; break;
	case PORT_SACT:
		if (port->cmd & CMD_START)
			port->sact |= value;
		break;
	case PORT_CI:
		if (port->cmd & CMD_START) {
			port->ci |= value;
			loop_post(port->ahci->config.loop, &port->ahci->call);
		}
		break;
	default: break;
	}
	update_line(port->ahci);
}

static uint32_t generic_read(const struct ahci *ahci, unsigned reg)
{
	switch (reg) {
	case REG_CAP: return CAP_FIXED | (AHCI_PORTS_MAX - 1);
	case REG_GHC: return ahci->ghc | (ahci->resetting ? GHC_RESET : 0);
	case REG_IS: return ahci->is;
	case REG_PI: return (1u << ahci->config.count) - 1;
	case REG_VS: return VERSION;
	default: return 0;
	}
}

static void generic_write(struct ahci *ahci, unsigned reg, uint32_t value)
{
	if (reg == REG_IS) {
		ahci->is &= ~value;
		update_line(ahci);
	} else if (reg == REG_GHC) {
		ahci->ghc = GHC_AHCI | (value & GHC_IRQ);
		if (value & GHC_RESET) {
			ahci->resetting = true;
			for (unsigned i = 0; i < ahci->config.count; i++)
				give_up(&ahci->port[i]);
			controller_settle(ahci);
		}
		update_line(ahci);
	}
}

static uint64_t registers_read(void *device, uint64_t offset, unsigned size_bytes)
{
	struct ahci *ahci = device;
	const unsigned port = (unsigned)(offset - PORT_FIRST) / PORT_BYTES, at = (unsigned)offset & ~3u;
	uint32_t value = 0;

	if (offset < PORT_FIRST)
		value = generic_read(ahci, at);
	else if (port < ahci->config.count)
		value = port_read(&ahci->port[port], at % PORT_BYTES);
	return value >> 8 * (offset & 3);
}

/* Only whole registers are written, as drivers do. */
static void registers_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct ahci *ahci = device;
	const unsigned port = (unsigned)(offset - PORT_FIRST) / PORT_BYTES;

	if (size_bytes != 4 || offset & 3)
		return;
	if (offset < PORT_FIRST)
		generic_write(ahci, (unsigned)offset, (uint32_t)value);
	else if (port < ahci->config.count)
		port_write(&ahci->port[port], (unsigned)offset % PORT_BYTES, (uint32_t)value);
}

/* Bus mastering may be on now: what had to wait for it goes on. */
static void config_written(void *opaque, unsigned offset, unsigned size_bytes)
{
	struct ahci *ahci = opaque;

	if (pci_device_is_master(ahci->pci))
		loop_post(ahci->config.loop, &ahci->call);
}

/* ---- life ---- */

static int add_port(struct ahci *ahci, unsigned index)
{
	struct ahci_port *port = &ahci->port[index];

	*port = (struct ahci_port){.ahci = ahci, .index = index, .drive = ahci->config.drive[index]};
	block_limits(port->drive.block, &port->limits);
	if (port->limits.sector_bytes != ATA_SECTOR)
		return -EINVAL;
	if (port->drive.serial)
		snprintf(port->serial, sizeof(port->serial), "%.*s", AHCI_SERIAL_BYTES, port->drive.serial);
	else
		snprintf(port->serial, sizeof(port->serial), "LODGE%05u", index + 1);
	port->command = calloc(AHCI_SLOTS, sizeof(*port->command));
	if (!port->command)
		return -ENOMEM;
	port_reset(port);
	return 0;
}

static int add_function(struct ahci *ahci, struct pci_host *host, unsigned devfn)
{
	static const struct bus_ops ops = {
		.read = registers_read, .write = registers_write, .access_max_bytes = 4};
	const struct pci_device_config config = {.name = "ahci",
		.vendor = 0x8086,
		.device = 0x2922,
		.subsystem_vendor = 0x1af4,
		.subsystem = 0x1100,
		.class_code = 0x010601,
		.revision = 2,
		.bus = ahci->config.bus,
		.lock = &ahci->lock,
		.intx = ahci->config.intx,
		.config_written = config_written,
		.opaque = ahci};
	int status = pci_device_create(&config, &ahci->pci);

	if (status == 0)
		status = pci_device_add_bar(
			ahci->pci, BAR_REGISTERS, PCI_BAR_MEM32, false, REGISTERS_BYTES, &ops, ahci);
	return status < 0 ? status : pci_device_plug(ahci->pci, host, devfn);
}

int ahci_create(
	const struct ahci_config *config, struct pci_host *host, unsigned devfn, struct ahci **ret_ahci)
{
	struct ahci *ahci;
	int status = 0;

	if (config->count > AHCI_PORTS_MAX)
		return -EINVAL;
	ahci = calloc(1, sizeof(*ahci));
	if (!ahci)
		return -ENOMEM;
	ahci->config = *config;
	ahci->ghc = GHC_AHCI;
	ahci->call = (struct loop_call){.fn = run_commands, .opaque = ahci};
	pthread_mutex_init(&ahci->lock, NULL);
	pthread_cond_init(&ahci->idle, NULL);
	for (unsigned i = 0; status == 0 && i < config->count; i++)
		status = add_port(ahci, i);
	if (status == 0)
		status = add_function(ahci, host, devfn);
	if (status < 0) {
		ahci_free(ahci);
		return status;
	}
	*ret_ahci = ahci;
	return 0;
}

void ahci_assign(struct ahci *ahci, gpa_t registers)
{
	pci_device_assign(ahci->pci, BAR_REGISTERS, registers);
}

static void cancel_call(void *opaque)
{
	struct ahci *ahci = opaque;

	loop_cancel(ahci->config.loop, &ahci->call);
}

static void stop(struct ahci *ahci)
{
	pthread_mutex_lock(&ahci->lock);
	ahci->stopping = true;
	loop_post(ahci->config.loop, &ahci->call);
	while (!all_idle(ahci))
		pthread_cond_wait(&ahci->idle, &ahci->lock);
	pthread_mutex_unlock(&ahci->lock);
	loop_invoke(ahci->config.loop, cancel_call, ahci);
}

void ahci_free(struct ahci *ahci)
{
	if (!ahci)
		return;
	if (ahci->pci)
		stop(ahci);
	pci_device_free(ahci->pci);
	for (unsigned i = 0; i < AHCI_PORTS_MAX; i++)
		free(ahci->port[i].command);
	pthread_cond_destroy(&ahci->idle);
	pthread_mutex_destroy(&ahci->lock);
	free(ahci);
}
