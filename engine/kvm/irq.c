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

int kvm_msi(struct engine_vm *vm, uint64_t address, uint32_t data)
{
	struct kvm_msi msi = {.address_lo = (uint32_t)address,
		.address_hi = (uint32_t)(address >> 32),
		.data = data};
	int status = kvm_ioctl(vm->fd, KVM_SIGNAL_MSI, &msi);

	/* 0: no processor took it, which is the guest's affair. */
	return status < 0 ? status : 0;
}
