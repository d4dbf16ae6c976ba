/*
 * device/virtio, PCI and MMIO: registers as a driver sees them, doorbells, interrupts of both sorts, the way to the BAR
 * through configuration space, resets that take their time. The device signals each chain that it gets, unread.
 */
#include "tests/device/virtio_rig.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "device/pci/host.h"
#include "device/virtio/mmio.h"
#include "device/virtio/pci.h"

#define ECAM   0xe0000000ull
#define SLOT   PCI_DEVFN(1, 0)
#define BAR    0xc0010000ull
#define ISR    (BAR + 0x1000)
#define CONFIG (BAR + 0x2000)
#define NOTIFY (BAR + 0x3000)
#define TABLE  (BAR + 0x4000)
#define PAGE   0xf0000000ull
#define QUEUES 3u
#define BELLS  8u

struct fixture {
	struct virtio_rig rig; /* memory, loop and lock; its driver is not used */
	struct bus *bus;
	struct pci_host *host;
	pthread_mutex_t host_lock;
	struct fake_irq irq;
	struct virtio_device *virtio;
	struct virtio_pci *pci;
	struct virtio_mmio *mmio;
	struct virtq_buffer buffer;
	unsigned notified[QUEUES], messages;
	uint32_t message;
	uint64_t config;
	bool defer;
	unsigned bells;
	bool no_bells;
	bool resetting;
};

static unsigned queue_size(void *device, unsigned index)
{
	return index < QUEUES ? 64 : 0;
}

static void config_read(void *device, unsigned offset, void *bytes, unsigned size)
{
	struct fixture *f = device;

	memcpy(bytes, (uint8_t *)&f->config + offset, size);
}

static void config_write(void *device, unsigned offset, const void *bytes, unsigned size)
{
	struct fixture *f = device;

	memcpy((uint8_t *)&f->config + offset, bytes, size);
}

static void notify(void *device, unsigned index)
{
	struct fixture *f = device;
	struct virtq *q = virtio_queue(f->virtio, index);

	f->notified[index]++;
	while (virtq_pop(q, &f->buffer) > 0)
		virtq_push(q, &f->buffer, 0);
	virtq_signal(q);
}

static bool reset(void *device)
{
	struct fixture *f = device;

	f->resetting = f->defer;
	return !f->defer;
}

static void take_message(void *opaque, uint64_t address, uint32_t data)
{
	struct fixture *f = opaque;

	f->messages++;
	f->message = data;
}

static int doorbell(void *opaque, const struct bus_doorbell *bell, bool on)
{
	struct fixture *f = opaque;

	if (f->no_bells)
		return -ENOSPC;
	int status = on ? bus_add_doorbell(f->bus, bell) : bus_remove_doorbell(f->bus, bell);
	if (status == 0)
		f->bells += on ? 1 : -1u;
	return status;
}

static struct fixture *make(void)
{
	static const struct virtio_ops ops = {.id = 42,
		.name = "test",
		.queue_size = queue_size,
		.config_bytes = 8,
		.config_read = config_read,
		.config_write = config_write,
		.notify = notify,
		.reset = reset};
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	virtio_rig_init(&f->rig);
	const struct virtio_config config = {.ops = &ops,
		.device = f,
		.memory = f->rig.memory,
		.lock = &f->rig.lock,
		.loop = f->rig.loop,
		.name = "test0"};
	assert_int_equal(virtio_create(&config, &f->virtio), 0);
	assert_int_equal(bus_create(&f->bus), 0);
	f->config = 0x8877665544332211;
	return f;
}

static int setup_pci(void **state)
{
	struct fixture *f = make();
	const struct pci_host_config host = {.lock = &f->host_lock};
	const struct virtio_pci_config config = {.virtio = f->virtio,
		.bus = f->bus,
		.intx = fake_irq_line(&f->irq),
		.msi = {take_message, f},
		.doorbell = doorbell,
		.opaque = f};

	pthread_mutex_init(&f->host_lock, NULL);
	assert_int_equal(pci_host_create(&host, &f->host), 0);
	assert_int_equal(pci_host_attach_ecam(f->host, f->bus, ECAM), 0);
	assert_int_equal(virtio_pci_create(&config, &f->pci), 0);
	assert_int_equal(pci_device_plug(virtio_pci_function(f->pci), f->host, SLOT), 0);
	pci_device_assign(virtio_pci_function(f->pci), 0, BAR);
	*state = f;
	return 0;
}

static int setup_mmio(void **state)
{
	struct fixture *f = make();
	const struct virtio_mmio_config config = {.virtio = f->virtio,
		.bus = f->bus,
		.base = PAGE,
		.irq = fake_irq_line(&f->irq),
		.doorbell = doorbell,
		.opaque = f};

	assert_int_equal(virtio_mmio_create(&config, &f->mmio), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_pci_free(f->pci);
	virtio_mmio_free(f->mmio);
	assert_int_equal(f->bells, 0);
	assert_false(f->irq.level);
	virtio_free(f->virtio);
	virtq_buffer_free(&f->buffer);
	pci_host_free(f->host);
	bus_free(f->bus);
	virtio_rig_done(&f->rig);
	free(f);
	return 0;
}

static uint64_t get(struct fixture *f, uint64_t addr, unsigned size)
{
	return bus_read(f->bus, BUS_MMIO, addr, size);
}

static void put(struct fixture *f, uint64_t addr, unsigned size, uint64_t value)
{
	bus_write(f->bus, BUS_MMIO, addr, size, value);
}

static uint32_t cfg(struct fixture *f, unsigned offset, unsigned size)
{
	return (uint32_t)get(f, ECAM + (SLOT << 12) + offset, size);
}

static void set_cfg(struct fixture *f, unsigned offset, unsigned size, uint32_t value)
{
	put(f, ECAM + (SLOT << 12) + offset, size, value);
}

/* Makes `count` empty-handed chains available in a split queue whose areas lie at 1, 2 and 3 MiB + queue. */
static gpa_t area(unsigned queue, unsigned which)
{
	return MIB(6 + which) + 0x10000 * queue;
}

static void offer(struct fixture *f, unsigned queue, uint16_t count)
{
	for (unsigned i = 0; i < 64; i++) {
		rig_set_descriptor(&f->rig, area(queue, 0), i, MIB(10), 16, 0, 0);
		*rig_u16(&f->rig, area(queue, 1) + 4 + 2 * i) = (uint16_t)i;
	}
	*rig_u16(&f->rig, area(queue, 1) + 2) =
		(uint16_t)(*rig_u16(&f->rig, area(queue, 1) + 2) + count);
}

static unsigned used(struct fixture *f, unsigned queue)
{
	return *rig_u16(&f->rig, area(queue, 2) + 2);
}

/* ---- PCI ---- */

static void start_pci(struct fixture *f, bool msix)
{
	set_cfg(f, 4, 2, 6);
	put(f, BAR + 20, 1, 3);
	put(f, BAR + 8, 4, 1);
	put(f, BAR + 12, 4, 1);
	put(f, BAR + 8, 4, 0);
	put(f, BAR + 12, 4, 0);
	put(f, BAR + 20, 1, 11);
	assert_int_equal(get(f, BAR + 20, 1), 11);
	if (msix) {
		unsigned at = cfg(f, 0x34, 1);

		while (cfg(f, at, 1) != 0x11)
			at = cfg(f, at + 1, 1);
		assert_int_equal(cfg(f, at + 2, 2), QUEUES);
		set_cfg(f, at + 2, 2, 0x8000);
		for (unsigned i = 0; i < QUEUES + 1; i++) {
			put(f, TABLE + 16 * i, 4, 0xfee00000);
			put(f, TABLE + 16 * i + 8, 8, 100 + i);
		}
		put(f, BAR + 16, 2, 0);
		assert_int_equal(get(f, BAR + 16, 2), 0);
	}
	for (unsigned q = 0; q < QUEUES; q++) {
		put(f, BAR + 22, 2, q);
		assert_int_equal(get(f, BAR + 22, 2), q);
		assert_int_equal(get(f, BAR + 24, 2), 64);
		assert_int_equal(get(f, BAR + 26, 2), 0xffff);
		assert_int_equal(get(f, BAR + 28, 2), 0);
		assert_int_equal(get(f, BAR + 30, 2), q);
		if (msix)
			put(f, BAR + 26, 2, q + 1);
		for (unsigned which = 0; which < 3; which++) {
			put(f, BAR + 32 + 8 * which, 8, area(q, which));
			assert_int_equal(get(f, BAR + 32 + 8 * which, 8), area(q, which));
		}
		put(f, BAR + 28, 2, 1);
		assert_int_equal(get(f, BAR + 28, 2), 1);
	}
	put(f, BAR + 20, 1, 15);
	assert_int_equal(get(f, BAR + 20, 1), 15);
	virtio_rig_run(&f->rig);
	memset(f->notified, 0, sizeof(f->notified));
}

static void test_pci_registers(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(cfg(f, 0, 4), 0x106a1af4);
	assert_int_equal(get(f, BAR + 18, 2), QUEUES);
	assert_int_equal(get(f, BAR + 4, 4), 3u << 28);
	put(f, BAR, 4, 1);
	assert_int_equal(get(f, BAR, 4), 1);
	assert_int_equal(get(f, BAR + 4, 4), 5);
	put(f, BAR, 4, 2);
	assert_int_equal(get(f, BAR + 4, 4), 0);
	put(f, BAR + 16, 2, 99); /* no such vector */
	assert_int_equal(get(f, BAR + 16, 2), 0xffff);
	put(f, BAR + 22, 2, 77); /* no such queue */
	assert_int_equal(get(f, BAR + 24, 2), 0);
	put(f, BAR + 26, 2, 0);
	put(f, BAR + 28, 2, 1);
	put(f, BAR + 20, 4, ~0u); /* not as wide as the register: nothing */
	assert_int_equal(get(f, BAR + 20, 1), 0);
	assert_int_equal(get(f, BAR + 56, 4), 0);
	assert_true(get(f, CONFIG, 8) == 0x8877665544332211);
	put(f, CONFIG + 2, 2, 0xbeef);
	assert_int_equal(get(f, CONFIG, 4), 0xbeef2211);
	assert_int_equal(get(f, CONFIG + 8, 4), 0);
	fake_hammer(f->bus, BUS_MMIO, BAR, 0x8000, 200000);
	fake_hammer(f->bus, BUS_MMIO, ECAM + (SLOT << 12), 0x100, 20000);
}

static void test_pci_doorbells(void **state)
{
	struct fixture *f = *state;

	for (unsigned without = 0; without < 2; without++) {
		f->no_bells = without;
		put(f, BAR + 20, 1, 0);
		for (unsigned q = 0; q < QUEUES; q++)
			memset(virtio_rig_at(&f->rig, area(q, 1)), 0, 256);
		start_pci(f, false);
		assert_int_equal(f->bells, without ? 0 : QUEUES);
		for (unsigned q = 0; q < QUEUES; q++) {
			offer(f, q, 3);
			put(f, NOTIFY + 4 * q, 2, q);
			virtio_rig_run(&f->rig);
			assert_int_equal(f->notified[q], 1);
			put(f, NOTIFY + 4 * q, 4, q); /* of a width that no doorbell hears */
			virtio_rig_run(&f->rig);
			assert_int_equal(f->notified[q], 2);
			assert_int_equal(used(f, q), 3);
			memset(virtio_rig_at(&f->rig, area(q, 2)), 0, 1024);
		}
		put(f, NOTIFY + 4 * 99, 2, 0);
		put(f, BAR + 20, 1, 0);
		assert_int_equal(f->bells, 0);
		get(f, ISR, 1);
	}
	/* They follow the BAR. */
	f->no_bells = false;
	start_pci(f, false);
	set_cfg(f, 0x10, 4, 0xd0000000);
	assert_int_equal(f->bells, QUEUES);
	put(f, NOTIFY, 2, 0);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->notified[0], 0);
	put(f, 0xd0003000, 2, 0);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->notified[0], 1);
	set_cfg(f, 4, 2, 0);
	assert_int_equal(f->bells, 0);
}

static void other_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	*(unsigned *)opaque += offset == 0x3000 && size_bytes == 2;
}

static uint64_t other_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	return 0;
}

/* A BAR that the guest puts over something else is not there, and neither are its doorbells. */
static void test_pci_doorbells_overlap(void **state)
{
	static const struct bus_ops ops = {.read = other_read, .write = other_write};
	struct fixture *f = *state;
	unsigned writes = 0;

	assert_int_equal(
		bus_add(f->bus, BUS_MMIO, 0xd0000000, 0x8000, "other", &ops, &writes, NULL), 0);
	start_pci(f, false);
	assert_int_equal(f->bells, QUEUES);
	set_cfg(f, 0x10, 4, 0xd0000000);
	assert_int_equal(f->bells, 0);
	put(f, 0xd0003000, 2, 0);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->notified[0], 0);
	assert_int_equal(writes, 1);
	/* It is back where there is room. */
	set_cfg(f, 0x10, 4, 0xd0008000);
	assert_int_equal(f->bells, QUEUES);
	put(f, 0xd000b000, 2, 0);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->notified[0], 1);
	assert_int_equal(writes, 1);
}

static void test_pci_lines(void **state)
{
	struct fixture *f = *state;

	start_pci(f, false);
	offer(f, 1, 1);
	put(f, NOTIFY + 4, 2, 1);
	virtio_rig_run(&f->rig);
	assert_true(f->irq.level);
	assert_int_equal(get(f, ISR, 1), 1);
	assert_false(f->irq.level);
	assert_int_equal(get(f, ISR, 1), 0);
	pthread_mutex_lock(&f->rig.lock);
	virtio_config_changed(f->virtio);
	pthread_mutex_unlock(&f->rig.lock);
	assert_true(f->irq.level);
	assert_int_equal(get(f, ISR, 1), 2);
	assert_int_equal(f->messages, 0);
}

static void test_pci_messages(void **state)
{
	struct fixture *f = *state;

	start_pci(f, true);
	for (unsigned q = 0; q < QUEUES; q++) {
		offer(f, q, 2);
		put(f, NOTIFY + 4 * q, 2, q);
		virtio_rig_run(&f->rig);
		assert_int_equal(f->messages, q + 1);
		assert_int_equal(f->message, 101 + q);
	}
	pthread_mutex_lock(&f->rig.lock);
	virtio_config_changed(f->virtio);
	pthread_mutex_unlock(&f->rig.lock);
	assert_int_equal(f->message, 100);
	assert_int_equal(get(f, ISR, 1), 0);
	put(f, BAR + 22, 2, 1);
	put(f, BAR + 26, 2, 0xffff); /* none for this queue */
	offer(f, 1, 1);
	put(f, NOTIFY + 4, 2, 1);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->messages, QUEUES + 1);
	assert_false(f->irq.level);
}

static void test_pci_reset(void **state)
{
	struct fixture *f = *state;

	start_pci(f, true);
	f->defer = true;
	put(f, BAR + 20, 1, 0);
	assert_int_equal(get(f, BAR + 20, 1), 15); /* it takes its time */
	pthread_mutex_lock(&f->rig.lock);
	virtio_reset_done(f->virtio);
	pthread_mutex_unlock(&f->rig.lock);
	f->defer = false;
	assert_int_equal(get(f, BAR + 20, 1), 0);
	assert_int_equal(get(f, BAR + 16, 2), 0xffff);
	assert_int_equal(get(f, BAR + 22, 2), 0);
	assert_int_equal(f->bells, 0);
}

/* Reads and writes of the BAR by way of the capability. */
static void test_pci_access(void **state)
{
	struct fixture *f = *state;
	unsigned at = cfg(f, 0x34, 1);

	while (cfg(f, at, 1) != 9 || cfg(f, at + 3, 1) != 5)
		at = cfg(f, at + 1, 1);
	set_cfg(f, at + 8, 4, 18); /* number of queues */
	set_cfg(f, at + 12, 4, 2);
	assert_int_equal(cfg(f, at + 16, 2), QUEUES);
	set_cfg(f, at + 8, 4, 20); /* status */
	set_cfg(f, at + 12, 4, 1);
	set_cfg(f, at + 16, 1, 3);
	assert_int_equal(get(f, BAR + 20, 1), 3);
	assert_int_equal(cfg(f, at + 16, 4), 3);
	set_cfg(f, at + 8, 4, 0x2000);
	set_cfg(f, at + 12, 4, 4);
	set_cfg(f, at + 16, 4, 0x01020304);
	assert_true(f->config == 0x8877665501020304);
	/* What cannot be: another BAR, an odd length, no alignment, past the end. */
	static const uint32_t bad[][3] = {{1, 0x2000, 4}, {0, 0x2000, 3}, {0, 0x2002, 4},
		{0, 0x8000, 4}, {0, 0xfffffffc, 4}, {0, 0x2000, 0}};
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		set_cfg(f, at + 4, 1, bad[i][0]);
		set_cfg(f, at + 8, 4, bad[i][1]);
		set_cfg(f, at + 12, 4, bad[i][2]);
		set_cfg(f, at + 16, 4, 0xffffffff);
		assert_int_equal(cfg(f, at + 16, 4), 0xffffffff);
		assert_true(f->config == 0x8877665501020304);
	}
	/* A doorbell too. */
	start_pci(f, false);
	set_cfg(f, at + 4, 1, 0);
	set_cfg(f, at + 8, 4, 0x3004);
	set_cfg(f, at + 12, 4, 2);
	set_cfg(f, at + 16, 2, 1);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->notified[1], 1);
}

/* ---- MMIO ---- */

static void start_mmio(struct fixture *f)
{
	put(f, PAGE + 0x70, 4, 3);
	put(f, PAGE + 0x24, 4, 1);
	put(f, PAGE + 0x20, 4, 1);
	put(f, PAGE + 0x70, 4, 11);
	assert_int_equal(get(f, PAGE + 0x70, 4), 11);
	for (unsigned q = 0; q < QUEUES; q++) {
		put(f, PAGE + 0x30, 4, q);
		assert_int_equal(get(f, PAGE + 0x34, 4), 64);
		put(f, PAGE + 0x38, 4, 64);
		for (unsigned which = 0; which < 3; which++) {
			put(f, PAGE + 0x80 + 16 * which, 4, area(q, which));
			put(f, PAGE + 0x84 + 16 * which, 4, 0);
		}
		put(f, PAGE + 0x44, 4, 1);
		assert_int_equal(get(f, PAGE + 0x44, 4), 1);
	}
	put(f, PAGE + 0x70, 4, 15);
	assert_int_equal(f->bells, QUEUES);
	virtio_rig_run(&f->rig);
	memset(f->notified, 0, sizeof(f->notified));
}

static void test_mmio_registers(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(get(f, PAGE, 4), 0x74726976);
	assert_int_equal(get(f, PAGE + 4, 4), 2);
	assert_int_equal(get(f, PAGE + 8, 4), 42);
	assert_int_equal(get(f, PAGE + 0x10, 4), 3u << 28);
	put(f, PAGE + 0x14, 4, 1);
	assert_int_equal(get(f, PAGE + 0x10, 4), 5);
	put(f, PAGE + 0x14, 4, 2);
	assert_int_equal(get(f, PAGE + 0x10, 4), 0);
	assert_true(get(f, PAGE + 0xb0, 8) == ~0ull); /* no shared memory */
	put(f, PAGE + 0x30, 4, 3);
	assert_int_equal(get(f, PAGE + 0x34, 4), 0);
	put(f, PAGE + 0x44, 4, 1);
	assert_int_equal(get(f, PAGE + 0x44, 4), 0);
	assert_int_equal(get(f, PAGE + 1, 1), 0); /* not whole */
	assert_true(get(f, PAGE + 0x100, 8) == 0x8877665544332211);
	put(f, PAGE + 0x106, 2, 0xbeef);
	assert_true(f->config == 0xbeef665544332211);
	fake_hammer(f->bus, BUS_MMIO, PAGE, 0x200, 200000);
}

static void test_mmio_works(void **state)
{
	struct fixture *f = *state;

	start_mmio(f);
	for (unsigned q = 0; q < QUEUES; q++) {
		offer(f, q, 5);
		put(f, PAGE + 0x50, 4, q);
		virtio_rig_run(&f->rig);
		assert_int_equal(f->notified[q], 1);
		assert_int_equal(used(f, q), 5);
		assert_true(f->irq.level);
		assert_int_equal(get(f, PAGE + 0x60, 4), 1);
		put(f, PAGE + 0x64, 4, 2);
		assert_true(f->irq.level);
		put(f, PAGE + 0x64, 4, 1);
		assert_false(f->irq.level);
		assert_int_equal(get(f, PAGE + 0x60, 4), 0);
	}
	put(f, PAGE + 0x50, 4, 99);
	/* A queue that is taken back stands still and can be given again. */
	put(f, PAGE + 0x30, 4, 1);
	put(f, PAGE + 0x44, 4, 0);
	assert_int_equal(get(f, PAGE + 0x44, 4), 0);
	assert_int_equal(f->bells, QUEUES - 1);
	offer(f, 1, 1);
	put(f, PAGE + 0x50, 4, 1);
	virtio_rig_run(&f->rig);
	assert_int_equal(f->notified[1], 1);
	const uint32_t generation = (uint32_t)get(f, PAGE + 0xfc, 4);
	pthread_mutex_lock(&f->rig.lock);
	virtio_config_changed(f->virtio);
	pthread_mutex_unlock(&f->rig.lock);
	assert_int_equal(get(f, PAGE + 0x60, 4), 2);
	assert_int_not_equal(get(f, PAGE + 0xfc, 4), generation);
	put(f, PAGE + 0x70, 4, 0);
	assert_int_equal(get(f, PAGE + 0x70, 4), 0);
	assert_false(f->irq.level);
	assert_int_equal(f->bells, 0);
}

/* The device ends the reset on another thread; the driver waits in its write. */
static void *end_reset(void *opaque)
{
	struct fixture *f = opaque;

	for (bool begun = false; !begun;) {
		AUTO_LOCK(&f->rig.lock);
		begun = f->resetting;
	}
	AUTO_LOCK(&f->rig.lock);
	f->resetting = false;
	virtio_reset_done(f->virtio);
	return NULL;
}

static void test_mmio_slow_reset(void **state)
{
	struct fixture *f = *state;
	pthread_t thread;

	start_mmio(f);
	f->defer = true;
	assert_int_equal(pthread_create(&thread, NULL, end_reset, f), 0);
	put(f, PAGE + 0x70, 4, 0);
	assert_int_equal(get(f, PAGE + 0x70, 4), 0);
	pthread_join(thread, NULL);
	assert_int_equal(pthread_create(&thread, NULL, end_reset, f), 0);
	virtio_quiesce(f->virtio);
	assert_false(f->resetting);
	pthread_join(thread, NULL);
	f->defer = false;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_pci_registers, setup_pci, teardown),
		cmocka_unit_test_setup_teardown(test_pci_doorbells, setup_pci, teardown),
		cmocka_unit_test_setup_teardown(test_pci_doorbells_overlap, setup_pci, teardown),
		cmocka_unit_test_setup_teardown(test_pci_lines, setup_pci, teardown),
		cmocka_unit_test_setup_teardown(test_pci_messages, setup_pci, teardown),
		cmocka_unit_test_setup_teardown(test_pci_reset, setup_pci, teardown),
		cmocka_unit_test_setup_teardown(test_pci_access, setup_pci, teardown),
		cmocka_unit_test_setup_teardown(test_mmio_registers, setup_mmio, teardown),
		cmocka_unit_test_setup_teardown(test_mmio_works, setup_mmio, teardown),
		cmocka_unit_test_setup_teardown(test_mmio_slow_reset, setup_mmio, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
