/*
 * Interrupts for KVM guests: the routes of the PC's interrupt lines to the kernel's controllers, MSIs, and
 * the eventfds by which lines are raised and writes are told without this process running. Linux's
 * Documentation/virt/kvm/api.rst: KVM_SET_GSI_ROUTING, KVM_IRQ_LINE, KVM_SIGNAL_MSI, KVM_IRQFD,
 * KVM_IOEVENTFD.
 */
#include "base/cleanup.h"
#include "device/bus.h"
#include "engine/kvm/private.h"
#include <errno.h>
#include <stdlib.h>

#define ISA_LINES   16
#define IOAPIC_PINS 24

/* Bits 63 to 20 of a message's address (SDM 3A 11.11.1). */
#define MSI_BASE_SHIFT 20
#define MSI_BASE       0xfeeu

static void add_route(struct kvm_irq_routing *table, unsigned gsi, unsigned chip, unsigned pin)
{
	table->entries[table->nr++] = (struct kvm_irq_routing_entry){.gsi = gsi,
		.type = KVM_IRQ_ROUTING_IRQCHIP,
		.u.irqchip = {.irqchip = chip, .pin = pin}};
}

/* As a PC is wired, and as the board's own controllers are: the timer (line 0) is at pin 2 of the I/O
 * APIC, every other line at the pin of its number. KVM's default has the timer at pin 0. */
int kvm_irq_routes(struct engine_vm *vm)
{
	AUTO_FREE struct kvm_irq_routing *table =
		calloc(1, sizeof(*table) + (ISA_LINES + IOAPIC_PINS) * sizeof(table->entries[0]));

	if (!table)
		return -ENOMEM;
	for (unsigned gsi = 0; gsi < ISA_LINES; gsi++)
		if (gsi != 2) /* the second PIC's */
			add_route(table, gsi,
				gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi & 7);
	for (unsigned gsi = 0; gsi < IOAPIC_PINS; gsi++)
		if (gsi != 2)
			add_route(table, gsi, KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi);
	return kvm_ioctl(vm->fd, KVM_SET_GSI_ROUTING, table);
}

int kvm_irq_line(struct engine_vm *vm, unsigned gsi, bool level)
{
	struct kvm_irq_level line = {.irq = gsi, .level = level};

	return kvm_ioctl(vm->fd, KVM_IRQ_LINE, &line);
}

/* KVM would take any address for that of a local APIC's; elsewhere a message is a write to memory or to nothing, which
 * devices' messages are not let do here. */
int kvm_msi(struct engine_vm *vm, uint64_t address, uint32_t data)
{
	struct kvm_msi msi = {.address_lo = (uint32_t)address,
		.address_hi = (uint32_t)(address >> 32),
		.data = data};
	if (address >> MSI_BASE_SHIFT != MSI_BASE)
		return 0;
	int status = kvm_ioctl(vm->fd, KVM_SIGNAL_MSI, &msi);

	/* 0: no processor took it, which is the guest's affair. */
	return status < 0 ? status : 0;
}

int kvm_irqfd(struct engine_vm *vm, unsigned gsi, int eventfd, bool on)
{
	struct kvm_irqfd irqfd = {
		.fd = (uint32_t)eventfd, .gsi = gsi, .flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN};

	return kvm_ioctl(vm->fd, KVM_IRQFD, &irqfd);
}

/* The bus has the doorbell as well, for the instructions that engine/kvm/emulate.c executes. */
int kvm_ioeventfd(struct engine_vm *vm, const struct bus_doorbell *bell, bool on)
{
	struct kvm_ioeventfd k = {.addr = bell->addr,
		.len = bell->size_bytes,
		.fd = bell->eventfd,
		.datamatch = bell->any_value ? 0 : bell->value};
	int status = on ? bus_add_doorbell(vm->config.bus, bell)
			: bus_remove_doorbell(vm->config.bus, bell);

	if (status < 0)
		return status;
	k.flags = (bell->space == BUS_PIO ? KVM_IOEVENTFD_FLAG_PIO : 0) |
		  (bell->any_value ? 0 : KVM_IOEVENTFD_FLAG_DATAMATCH) |
		  (on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN);
	status = kvm_ioctl(vm->fd, KVM_IOEVENTFD, &k);
	if (status < 0 && on)
		bus_remove_doorbell(vm->config.bus, bell);
	return status;
}
