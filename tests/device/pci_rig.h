/*
 * What a PCI device with registers in memory and work on a loop has around it in a test: bus, RAM, host bridge, the loop
 * on a thread of its own, and the level of its interrupt line.
 */
#ifndef LODGE_TESTS_DEVICE_PCI_RIG_H
#define LODGE_TESTS_DEVICE_PCI_RIG_H

#include "tests/device/fake.h"

#include "base/error.h"
#include "base/loop.h"
#include "device/pci/device.h"
#include "memory/memory.h"

#define REGS 0xe0000000ull /* where the device's registers are */

struct pci_rig {
	struct bus *bus;
	struct guest_memory *memory;
	struct pci_host *host;
	struct loop *loop;
	pthread_t thread;
	pthread_mutex_t lock;
	_Atomic bool line;
};

static void pci_rig_set_line(void *opaque, unsigned line, bool level)
{
	((struct pci_rig *)opaque)->line = level;
}

static void *pci_rig_run(void *opaque)
{
	loop_run(opaque);
	return NULL;
}

static inline struct irq_line pci_rig_line(struct pci_rig *rig)
{
	return (struct irq_line){.set = pci_rig_set_line, .opaque = rig};
}

/* The loop does not run yet. */
static inline void pci_rig_init(struct pci_rig *rig, uint64_t ram_bytes)
{
	const struct pci_host_config host_config = {.lock = &rig->lock};
	struct error err;

	pthread_mutex_init(&rig->lock, NULL);
	assert_int_equal(bus_create(&rig->bus), 0);
	assert_int_equal(memory_create(&rig->memory), 0);
	assert_int_equal(memory_add_ram(rig->memory, 0, ram_bytes, 0, "ram", &err), 0);
	assert_int_equal(pci_host_create(&host_config, &rig->host), 0);
	assert_int_equal(pci_host_attach(rig->host, rig->bus), 0);
	assert_int_equal(loop_create(&rig->loop), 0);
}

static inline void pci_rig_start(struct pci_rig *rig)
{
	assert_int_equal(pthread_create(&rig->thread, NULL, pci_rig_run, rig->loop), 0);
}

/* The device is gone. */
static inline void pci_rig_done(struct pci_rig *rig)
{
	loop_stop(rig->loop);
	pthread_join(rig->thread, NULL);
	loop_free(rig->loop);
	pci_host_free(rig->host);
	memory_free(rig->memory);
	bus_free(rig->bus);
}

static inline uint32_t pci_rig_read(struct pci_rig *rig, unsigned at)
{
	return (uint32_t)bus_read(rig->bus, BUS_MMIO, REGS + at, 4);
}

static inline void pci_rig_write(struct pci_rig *rig, unsigned at, uint32_t value)
{
	bus_write(rig->bus, BUS_MMIO, REGS + at, 4, value);
}

/* May the function at devfn access memory? It answers in memory. */
static inline void pci_rig_set_master(struct pci_rig *rig, unsigned devfn, bool on)
{
	bus_write(rig->bus, BUS_PIO, 0xcf8, 4, 0x80000004 | devfn << 8);
	bus_write(rig->bus, BUS_PIO, 0xcfc, 2, on ? 6 : 2);
}

#endif
