/*
 * Fuzz target: what a guest can do to PCI functions and to virtio's transports by accesses of the bus: configuration
 * space by ports and by its window, BARs wherever they have been put, MSI-X tables, the page of virtio over MMIO; while
 * the devices interrupt, take their queues and reset, and one comes and goes behind a root port.
 *
 * What must hold: an access gives no bits above its width; identities and capabilities stay as they are; a BAR that is
 * on the bus is where its register says; a message is only sent that a table entry holds, unmasked; doorbells are where
 * they belong, and gone at the end.
 */
#include "tests/fuzz/rig.h"

#include <errno.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/loop.h"
#include "device/pci/device.h"
#include "device/pci/host.h"
#include "device/pci/port.h"
#include "device/virtio/mmio.h"
#include "device/virtio/pci.h"
#include "device/virtio/transport.h"
#include "tests/turns.h"

#define OPS_MAX	  400
#define RAM_BYTES 0x20000u
#define ECAM	  0xe0000000ull
#define PAGE	  0xf0000000ull
#define QUEUES	  3u
#define SLOTS	  4u /* a plain function, a virtio one, a root port, what is behind it */
#define HOT	  3u
#define BUSES	  8u
#define VECTORS	  5u
#define BELLS_MAX 16u

struct fuzz;

struct device {
	struct fuzz *fuzz;
	pthread_mutex_t lock;
	struct virtio_device *virtio;
	struct virtq_buffer buffer;
	uint8_t config[7];
	bool defer;
	bool line;
};

struct fuzz {
	struct guest_memory *memory;
	struct bus *bus;
	struct loop *loop;
	struct pci_host *host;
	pthread_mutex_t host_lock;
	struct device plain, on_pci, on_mmio, hot, root;
	struct pci_device *function[SLOTS];
	struct virtio_pci *pci, *hot_pci;
	struct virtio_mmio *mmio;
	struct pci_port *port;
	bool gone; /* the guest has let go of what is behind the port */
	uint64_t identity[SLOTS];
	unsigned bells;
};

/* ---- the devices ---- */

static unsigned queue_size(void *device, unsigned index)
{
	return index < QUEUES ? 16 : 0;
}

static void config_read(void *opaque, unsigned offset, void *bytes, unsigned size)
{
	struct device *d = opaque;

	MUST(size <= sizeof(d->config) && offset <= sizeof(d->config) - size);
	memcpy(bytes, d->config + offset, size);
}

static void config_write(void *opaque, unsigned offset, const void *bytes, unsigned size)
{
	struct device *d = opaque;

	MUST(size <= sizeof(d->config) && offset <= sizeof(d->config) - size);
	memcpy(d->config + offset, bytes, size);
}

static void notify(void *opaque, unsigned index)
{
	struct device *d = opaque;
	struct virtq *q = virtio_queue(d->virtio, index);

	for (unsigned i = 0; i < 40 && virtq_pop(q, &d->buffer) > 0; i++)
		virtq_push(q, &d->buffer, i);
	virtq_signal(q);
}

static bool reset(void *opaque)
{
	return !((struct device *)opaque)->defer;
}

static const struct virtio_ops ops = {.id = 61,
	.name = "fuzz",
	.queue_size = queue_size,
	.config_bytes = 7,
	.config_read = config_read,
	.config_write = config_write,
	.notify = notify,
	.reset = reset};

/* A line is told of changes only. */
static void set_line(void *opaque, unsigned line, bool level)
{
	struct device *d = opaque;

	MUST(level != d->line);
	d->line = level;
}

static void take_message(void *opaque, uint64_t address, uint32_t data)
{
	MUST(!(address & 3));
}

static int doorbell(void *opaque, const struct bus_doorbell *bell, bool on)
{
	struct fuzz *f = opaque;

	if (on && f->bells == BELLS_MAX)
		return -ENOSPC;
	const int status = on ? bus_add_doorbell(f->bus, bell) : bus_remove_doorbell(f->bus, bell);
	if (status == 0)
		f->bells += on ? 1 : -1u;
	return status;
}

static uint64_t plain_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	return offset * 0x0101010101010101ull;
}

static void plain_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value) {}

static void make_virtio(struct fuzz *f, struct device *d)
{
	const struct virtio_config config = {.ops = &ops,
		.device = d,
		.memory = f->memory,
		.lock = &d->lock,
		.loop = f->loop,
		.name = "fuzz0"};

	MUST(virtio_create(&config, &d->virtio) == 0);
}

static void make_plain(struct fuzz *f)
{
	static const struct bus_ops bar_ops = {
		.read = plain_read, .write = plain_write, .access_max_bytes = 2};
	const struct pci_device_config config = {.name = "plain",
		.vendor = 0x1234,
		.device = 0x5678,
		.bus = f->bus,
		.lock = &f->plain.lock,
		.intx = {set_line, &f->plain, 0},
		.msi = {take_message, f}};
	struct pci_device *d;

	MUST(pci_device_create(&config, &f->function[0]) == 0);
	d = f->function[0];
	MUST(pci_device_add_bar(d, 0, PCI_BAR_IO, false, 32, &bar_ops, f) == 0);
	MUST(pci_device_add_bar(d, 1, PCI_BAR_MEM32, false, 4096, NULL, NULL) == 0);
	MUST(pci_device_add_bar(d, 2, PCI_BAR_MEM64, true, 0x10000, &bar_ops, f) == 0);
	MUST(pci_device_add_msix(d, 1, 512, VECTORS) == 0);
	MUST(pci_device_plug(d, f->host, PCI_DEVFN(1, 0)) == 0);
}

static void make_transports(struct fuzz *f)
{
	const struct virtio_pci_config pci = {.virtio = f->on_pci.virtio,
		.bus = f->bus,
		.intx = {set_line, &f->on_pci, 0},
		.msi = {take_message, f},
		.doorbell = doorbell,
		.opaque = f};
	const struct virtio_mmio_config mmio = {.virtio = f->on_mmio.virtio,
		.bus = f->bus,
		.base = PAGE,
		.irq = {set_line, &f->on_mmio, 0},
		.doorbell = doorbell,
		.opaque = f};

	MUST(virtio_pci_create(&pci, &f->pci) == 0);
	f->function[1] = virtio_pci_function(f->pci);
	MUST(pci_device_plug(f->function[1], f->host, PCI_DEVFN(2, 0)) == 0);
	pci_device_assign(f->function[1], 0, 0xc0000000);
	MUST(virtio_mmio_create(&mmio, &f->mmio) == 0);
}

static uint64_t identity_of(const struct pci_device *d)
{
	const uint8_t *space = pci_device_config_space((struct pci_device *)d);

	return load_le32(space) | (uint64_t)load_le32(space + 0x2c) << 32;
}

/* ---- the root port ---- */

static void reset_hot(void *opaque)
{
	struct fuzz *f = opaque;

	MUST(f->hot_pci && !f->gone);
	pthread_mutex_lock(&f->hot.lock);
	virtio_pci_reset(f->hot_pci);
	pthread_mutex_unlock(&f->hot.lock);
}

static void eject_hot(void *opaque)
{
	struct fuzz *f = opaque;

	reset_hot(f);
	pci_port_pull(f->port, f->function[HOT]);
	f->gone = true;
}

static void make_port(struct fuzz *f)
{
	const struct pci_port_config config = {.name = "root",
		.slot = 1,
		.host = f->host,
		.devfn = PCI_DEVFN(3, 0),
		.bus = f->bus,
		.intx = {set_line, &f->root, 0},
		.msi = {take_message, f},
		.reset = reset_hot,
		.eject = eject_hot,
		.opaque = f};

	MUST(pci_port_create(&config, &f->port) == 0);
	f->function[2] = pci_port_function(f->port);
}

static void free_hot(struct fuzz *f)
{
	virtio_pci_free(f->hot_pci);
	virtio_free(f->hot.virtio);
	f->hot_pci = NULL;
	f->hot.virtio = NULL;
	f->function[HOT] = NULL;
	MUST(!f->hot.line);
}

/* The one before is freed only now, as the machine does it. */
static void plug_hot(struct fuzz *f)
{
	if (f->gone)
		free_hot(f);
	if (f->hot_pci)
		return;
	MUST(pci_port_is_empty(f->port));
	make_virtio(f, &f->hot);
	const struct virtio_pci_config config = {.virtio = f->hot.virtio,
		.bus = f->bus,
		.intx = {set_line, &f->hot, 0},
		.msi = {take_message, f},
		.doorbell = doorbell,
		.opaque = f,
		.express = PCI_EXPRESS_ENDPOINT};
	MUST(virtio_pci_create(&config, &f->hot_pci) == 0);
	f->function[HOT] = virtio_pci_function(f->hot_pci);
	f->identity[HOT] = identity_of(f->function[HOT]);
	f->gone = false;
	pci_port_plug(f->port, f->function[HOT]);
}

/* The guest's writes that matter most. */
static void drive_port(struct fuzz *f, uint8_t how)
{
	const uint64_t port = ECAM + (3ull << 15);
	const uint64_t cap = port + pci_device_express_at(f->function[2]);

	switch (how & 7) {
	case 0: plug_hot(f); break;
	case 1: pci_port_press(f->port); break;
	case 2: bus_write(f->bus, BUS_MMIO, port + 0x19, 1, how >> 4); break;
	case 3: bus_write(f->bus, BUS_MMIO, cap + 0x18, 2, how & 128 ? 0x400 : how >> 3); break;
	case 4: bus_write(f->bus, BUS_MMIO, cap + 0x1a, 2, how & 128 ? 0x109 : how >> 3); break;
	case 5: bus_write(f->bus, BUS_MMIO, port + 0x3e, 2, how & 128 ? 0x40 : 0); break;
	case 6: bus_write(f->bus, BUS_MMIO, ECAM + ((how >> 4) % BUSES << 20) + 4, 2, 6); break;
	default: bus_write(f->bus, BUS_MMIO, cap + 0x18, 2, 0x1029); break;
	}
	MUST(pci_port_is_empty(f->port) == (!f->hot_pci || f->gone));
}

/* ---- what is done ---- */

static uint64_t place_of(struct fuzz *f, struct rig_input *in, enum bus_space *ret_space)
{
	static const uint64_t common[] = {
		0, 4, 8, 12, 16, 20, 22, 24, 26, 28, 32, 36, 40, 44, 48, 52};
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const unsigned slot = how >> 7;
	uint64_t base, offset = rig_take(in, 1);

	*ret_space = BUS_MMIO;
	switch (how & 7) {
	case 0: return ECAM + ((1ull + slot) << 15) + (offset & 0x3f);
	case 1: return ECAM + ((1ull + slot) << 15) + 0x40 + offset % 0xc0;
	case 2: return PAGE + (how & 64 ? 0x100 + offset % 12 : offset);
	case 3: *ret_space = BUS_PIO; return 0xcf8 + offset % 8;
	case 4: /* virtio's common registers, by their fields */
		base = pci_device_bar(f->function[1], 0);
		return base + (how & 64 ? offset : common[offset % ARRAY_SIZE(common)]);
	case 5: /* its other areas */
		base = pci_device_bar(f->function[1], 0);
		return base + 0x1000 * (1 + (how >> 3 & 3)) + offset;
	case 6: /* the port's registers, and those behind it */
		if (how & 8)
			return ECAM + (3ull << 15) + offset;
		base = f->function[HOT] ? pci_device_bar(f->function[HOT], 0) : UINT64_MAX;
		if (how & 16 && base != UINT64_MAX)
			return base + (how & 64 ? offset : common[offset % ARRAY_SIZE(common)]);
		return ECAM + ((how >> 4) % BUSES << 20) + offset;
	default:
		*ret_space = (how >> 3 & 7) % PCI_BARS == 0 && !slot ? BUS_PIO : BUS_MMIO;
		base = pci_device_bar(f->function[slot], (how >> 3 & 7) % PCI_BARS);
		return (base & ~0xfull) + (how & 64 ? 512 : 0) + offset;
	}
}

static void access_bus(struct fuzz *f, struct rig_input *in, bool write)
{
	enum bus_space space;
	uint64_t addr = place_of(f, in, &space);
	const unsigned size = 1u << rig_take(in, 1) % (space == BUS_PIO ? 3 : 4);

	if (space == BUS_PIO)
		addr &= 0xffff;
	if (write) {
		bus_write(f->bus, space, addr, size, rig_take(in, size));
		return;
	}
	const uint64_t value = bus_read(f->bus, space, addr, size);
	MUST(size == 8 || !(value >> 8 * size));
}

/* BARs to places where they meet each other and what is there. */
static void move_bar(struct fuzz *f, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const uint64_t config = ECAM + ((1ull + (how & 1)) << 15);
	static const uint32_t places[] = {0xc0000000, 0xc0008000, 0xc0001000, (uint32_t)PAGE,
		(uint32_t)ECAM, 0xffff0000, 0, 0xc000};

	bus_write(
		f->bus, BUS_MMIO, config + 0x10 + 4 * (how >> 1 & 7) % 6, 4, places[how >> 4 & 7]);
	bus_write(f->bus, BUS_MMIO, config + 4, 2, rig_take(in, 1) & 7);
}

static void check_function(struct fuzz *f, unsigned slot)
{
	struct pci_device *d = f->function[slot];

	if (!d)
		return;
	const uint8_t *space = pci_device_config_space(d);
	unsigned at = space[0x34], count = 0;

	/* A bridge has something else where others have their subsystem. */
	MUST(slot == 2 || load_le32(space + 0x2c) == f->identity[slot] >> 32);
	MUST(load_le32(space) == (uint32_t)f->identity[slot]);
	for (; at; at = space[at + 1])
		MUST(at >= 0x40 && count++ < 48);
	for (unsigned i = 0; i < PCI_BARS; i++) {
		enum pci_bar_kind kind;
		bool prefetchable;
		const uint64_t bytes = pci_device_bar_bytes(d, i, &kind, &prefetchable);
		const uint64_t base = pci_device_bar(d, i);

		MUST(base == UINT64_MAX || (bytes && IS_ALIGNED(base, bytes)));
	}
}

static void run_loop(struct fuzz *f)
{
	run_turns(f->loop, 2);
}

static void interrupt(struct fuzz *f, uint8_t how)
{
	struct device *d = how & 1 ? &f->on_pci : &f->on_mmio;

	pthread_mutex_lock(&f->plain.lock);
	pci_device_msix(f->function[0], how / 4 % (VECTORS + 1));
	pci_device_intx(f->function[0], how & 2);
	if (how == 0xff)
		pci_device_reset(f->function[0]);
	pthread_mutex_unlock(&f->plain.lock);
	pthread_mutex_lock(&d->lock);
	if (how & 4)
		virtio_config_changed(d->virtio);
	if (how & 8)
		virtio_reset_done(d->virtio);
	/* Where a write waits for the end of a reset, somebody has to end it. */
	f->on_pci.defer = how & 16;
	pthread_mutex_unlock(&d->lock);
}

/* As a driver does it, in few bytes: everything up to a queue that runs. */
static void start_virtio(struct fuzz *f, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const uint64_t bar = pci_device_bar(f->function[1], 0);
	const uint64_t area[3] = {0x1000, 0x3000, 0x5000};

	if (bar == UINT64_MAX)
		return;
	bus_write(f->bus, BUS_MMIO, ECAM + (2ull << 15) + 4, 2, 6);
	bus_write(f->bus, BUS_MMIO, bar + 20, 1, 3);
	for (unsigned half = 0; half < 2; half++) {
		bus_write(f->bus, BUS_MMIO, bar + 8, 4, half);
		bus_write(f->bus, BUS_MMIO, bar + 12, 4, half ? 1 | (how & 4) : (how & 3u) << 28);
	}
	bus_write(f->bus, BUS_MMIO, bar + 20, 1, 11);
	bus_write(f->bus, BUS_MMIO, bar + 22, 2, how >> 3 & 3);
	for (unsigned i = 0; i < 3; i++)
		bus_write(f->bus, BUS_MMIO, bar + 32 + 8 * i, 8, area[i] + (how >> 5) * 0x10);
	bus_write(f->bus, BUS_MMIO, bar + 28, 2, 1);
	bus_write(f->bus, BUS_MMIO, bar + 20, 1, 15);
}

static void write_memory(struct fuzz *f, struct rig_input *in)
{
	uint8_t bytes[24];
	const gpa_t gpa = rig_take(in, 2) % 0x6000;

	rig_take_bytes(in, bytes, sizeof(bytes));
	(void)!memory_write(f->memory, gpa, bytes, sizeof(bytes));
}

static void one_op(struct fuzz *f, struct rig_input *in)
{
	const uint8_t op = (uint8_t)rig_take(in, 1);

	switch (op % 16) {
	case 0:
	case 1:
	case 2: access_bus(f, in, false); break;
	case 3: move_bar(f, in); break;
	case 4: run_loop(f); break;
	case 5: interrupt(f, (uint8_t)rig_take(in, 1)); break;
	case 6: start_virtio(f, in); break;
	case 7: write_memory(f, in); break;
	case 8: drive_port(f, (uint8_t)rig_take(in, 1)); break;
	default: access_bus(f, in, true);
	}
	for (unsigned i = 0; i < SLOTS; i++)
		check_function(f, i);
}

/* ---- one input ---- */

static void make_machine(struct fuzz *f)
{
	const struct pci_host_config host = {.lock = &f->host_lock, .buses = BUSES};

	MUST(memory_create(&f->memory) == 0 && loop_create(&f->loop) == 0);
	MUST(memory_add_ram(f->memory, 0, RAM_BYTES, 0, "ram", NULL) == 0);
	MUST(bus_create(&f->bus) == 0 && pci_host_create(&host, &f->host) == 0);
	MUST(pci_host_attach(f->host, f->bus) == 0);
	MUST(pci_host_attach_ecam(f->host, f->bus, ECAM) == 0);
	for (unsigned i = 0; i < 3; i++) {
		struct device *d = (struct device *[]){&f->plain, &f->on_pci, &f->on_mmio}[i];

		d->fuzz = f;
		pthread_mutex_init(&d->lock, NULL);
		if (i)
			make_virtio(f, d);
	}
	make_plain(f);
	make_transports(f);
	pthread_mutex_init(&f->hot.lock, NULL);
	make_port(f);
	for (unsigned i = 0; i < HOT; i++)
		f->identity[i] = identity_of(f->function[i]);
}

static void free_machine(struct fuzz *f)
{
	if (f->hot_pci)
		free_hot(f);
	pci_port_free(f->port);
	virtio_pci_free(f->pci);
	virtio_mmio_free(f->mmio);
	pci_device_free(f->function[0]);
	MUST(f->bells == 0 && !f->plain.line && !f->on_pci.line && !f->on_mmio.line &&
		!f->root.line);
	virtio_free(f->on_pci.virtio);
	virtio_free(f->on_mmio.virtio);
	virtq_buffer_free(&f->on_pci.buffer);
	virtq_buffer_free(&f->on_mmio.buffer);
	virtq_buffer_free(&f->hot.buffer);
	pci_host_free(f->host);
	bus_free(f->bus);
	loop_free(f->loop);
	memory_free(f->memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	struct fuzz f = {.host_lock = PTHREAD_MUTEX_INITIALIZER};

	log_level_now = LOG_LEVEL_ERROR;
	make_machine(&f);
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&f, &in);
	free_machine(&f);
	return 0;
}
