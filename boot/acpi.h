/*
 * The ACPI tables of a board, made from a description of it: RSDP, XSDT, FADT, FACS, DSDT, MADT, and
 * MCFG and HPET where there is such hardware.
 */
#ifndef LODGE_BOOT_ACPI_H
#define LODGE_BOOT_ACPI_H

#include "base/types.h"
#include "base/util.h"
#include "boot/layout.h"

struct error;
struct guest_memory;

#define ACPI_CPUS_MAX	      1024
#define ACPI_SERIALS_MAX      4
#define ACPI_VIRTIO_MMIOS_MAX 32

struct acpi_serial {
	uint16_t port; /* 8 ports from here */
	uint8_t irq;
};

struct acpi_virtio_mmio {
	uint32_t base, size_bytes;
	uint32_t gsi;
};

/* Ports and addresses of 0 mean that there is no such thing. */
struct acpi_config {
	unsigned cpu_count;
	const uint32_t *apic_id; /* cpu_count of them, or NULL: 0, 1, 2 ... */
	gpa_t lapic_base;
	gpa_t ioapic_base;
	uint8_t ioapic_id;
	uint8_t sci_gsi; /* level, active high */

	/* Fixed hardware (device/acpi_pm.h) */
	uint16_t pm1_event_port;   /* 4 ports: status, enable */
	uint16_t pm1_control_port; /* 2 ports */
	uint16_t pm_timer_port;	   /* 4 ports */
	bool pm_timer_32bit;	   /* else 24 bits */
	uint16_t reset_port;
	uint8_t reset_value;
	uint8_t sleep_states;	/* bit n: \_Sn is offered; 5 for power-off */
	uint8_t sleep_type[6];	/* SLP_TYP to write for \_Sn */
	bool power_button, sleep_button;

	/* Legacy devices */
	bool i8042, rtc, vga;
	bool keyboard; /* and a mouse, at the i8042 */
	uint16_t pvpanic_port; /* 1 port */
	unsigned serial_count;
	struct acpi_serial serial[ACPI_SERIALS_MAX];

	gpa_t hpet_base;

	bool pci; /* a host bridge at the ports 0xcf8 to 0xcff */
	gpa_t ecam_base;	   /* 0: only the ports */
	uint8_t pci_last_bus;
	bool pci_hotplug; /* PCI Express's own, which the system is to drive */
	gpa_t pci_window_base;	   /* below 4 GiB */
	uint64_t pci_window_bytes;
	gpa_t pci_window2_base; /* a second one below 4 GiB, or 0 */
	uint64_t pci_window2_bytes;
	gpa_t pci_high_window_base; /* above RAM, or 0 */
	uint64_t pci_high_window_bytes;
	uint8_t pci_gsi[4]; /* device d's pin p is wired to pci_gsi[boot_pci_line(d, p)] */

	unsigned virtio_mmio_count;
	struct acpi_virtio_mmio virtio_mmio[ACPI_VIRTIO_MMIOS_MAX];
};

/* One CPU, the addresses of boot/layout.h, COM1, RTC, i8042, no PCI, no HPET. The fixed hardware is left
 * for the caller, who knows the device's ports and sleep types. */
void acpi_config_init(struct acpi_config *ret_config);

/*
 * Make the tables for the address `gpa` in `bytes`, with the RSDP first. Errors: -EINVAL (a count is too
 * large), -ENOSPC (more than room_bytes).
 */
MUST_CHECK int acpi_build(const struct acpi_config *config, gpa_t gpa, uint8_t *bytes,
	uint32_t room_bytes, uint32_t *ret_size_bytes, struct error *err);

/*
 * What firmware has to do to tables that were built for address 0 when it moves them: add the new address to the
 * pointers, and make the checksums of the tables in which they are right again. The RSDP is in the first
 * ACPI_RSDP_BYTES.
 */
#define ACPI_RSDP_BYTES	  36
#define ACPI_POINTERS_MAX 16
#define ACPI_SUMS_MAX	  4

struct acpi_relocations {
	unsigned pointer_count, sum_count;
	struct {
		uint32_t offset;
		uint8_t size_bytes; /* 4 or 8 */
	} pointer[ACPI_POINTERS_MAX];
	struct {
		uint32_t offset, size_bytes; /* of the table; its byte 9 is the checksum */
	} sum[ACPI_SUMS_MAX];
};

/* As acpi_build() for address 0, but that the checksums of what moves are left to whoever moves it: 0. */
MUST_CHECK int acpi_build_movable(const struct acpi_config *config, uint8_t *bytes, uint32_t room_bytes,
	uint32_t *ret_size_bytes, struct acpi_relocations *ret_relocations, struct error *err);

/* Make them and write them to the firmware's area; *ret_rsdp is what boot_config.rsdp wants. */
MUST_CHECK int acpi_install(struct guest_memory *memory, const struct acpi_config *config,
	gpa_t *ret_rsdp, struct error *err);

/* acpi_dsdt.c: the DSDT's AML, without the table's header. */
struct aml;
void acpi_dsdt_write(struct aml *aml, const struct acpi_config *config);

#endif
