/*
 * The DSDT: what the other tables cannot say. Processors, serial ports, the clock, PCI, virtio on MMIO,
 * and the sleep states (ACPI 6.4: 6.1 device identification, 6.2 configuration, 7.4.2 \_Sx, 8.4
 * processors; PCI Firmware Specification 3.3 for the host bridge and its ECAM).
 *
 * Only names and constants: no method that touches hardware. _OSC is there for PCI Express's hot-plug only (without it the
 * system leaves PCIe's native services alone). Left out on purpose: _PRW, thermal zones, hot-plug by ACPI.
 */
#include <stdio.h>

#include "boot/acpi.h"
#include "boot/aml.h"
#include "boot/layout.h"

#define PCI_SLOTS 32
#define PCI_PINS  4

static void write_hid_uid(struct aml *aml, const char *eisaid, uint64_t uid)
{
	aml_name(aml, "_HID");
	aml_eisaid(aml, eisaid);
	aml_name(aml, "_UID");
	aml_integer(aml, uid);
}

/* A device that has nothing but its resources, which are written between these two. */
struct device {
	unsigned block, resources;
};

static struct device device_open(struct aml *aml, const char *name, const char *eisaid, uint64_t uid)
{
	struct device device = {.block = aml_device_open(aml, name)};

	write_hid_uid(aml, eisaid, uid);
	aml_name(aml, "_CRS");
	device.resources = aml_resources_open(aml);
	return device;
}

static void device_close(struct aml *aml, struct device device)
{
	aml_resources_close(aml, device.resources);
	aml_close(aml, device.block);
}

static void write_sleep_states(struct aml *aml, const struct acpi_config *config)
{
	for (unsigned n = 0; n < ARRAY_SIZE(config->sleep_type); n++) {
		char name[] = {'\\', '_', 'S', (char)('0' + n), 0};
		unsigned package;

		if (!(config->sleep_states & BIT(n)))
			continue;
		aml_name(aml, name);
		package = aml_package_open(aml, 4);
		aml_integer(aml, config->sleep_type[n]); /* PM1a */
		aml_integer(aml, config->sleep_type[n]); /* PM1b, which there is none of */
		aml_integer(aml, 0);
		aml_integer(aml, 0);
		aml_close(aml, package);
	}
}

static void write_cpus(struct aml *aml, const struct acpi_config *config)
{
	for (unsigned i = 0; i < config->cpu_count; i++) {
		unsigned device;
		char name[8];

		snprintf(name, sizeof(name), "C%03X", i & 0xfff);
		device = aml_device_open(aml, name);
		aml_name(aml, "_HID");
		aml_string(aml, "ACPI0007");
		aml_name(aml, "_UID");
		aml_integer(aml, i);
		aml_close(aml, device);
	}
}

static void write_serials(struct aml *aml, const struct acpi_config *config)
{
	for (unsigned i = 0; i < config->serial_count; i++) {
		char name[] = {'C', 'O', 'M', (char)('1' + i), 0};
		const struct device device = device_open(aml, name, "PNP0501", i + 1);

		aml_res_io(aml, config->serial[i].port, 8);
		aml_res_irq(aml, config->serial[i].irq);
		device_close(aml, device);
	}
}

static void write_rtc(struct aml *aml)
{
	const struct device device = device_open(aml, "RTC", "PNP0B00", 0);

	aml_res_io(aml, 0x70, 2);
	aml_res_irq(aml, 8);
	device_close(aml, device);
}

static void write_keyboard(struct aml *aml)
{
	const struct device keyboard = device_open(aml, "KBD", "PNP0303", 0);

	aml_res_io(aml, 0x60, 1);
	aml_res_io(aml, 0x64, 1);
	aml_res_irq(aml, 1);
	device_close(aml, keyboard);
	const struct device mouse = device_open(aml, "MOU", "PNP0F13", 0);
	aml_res_irq(aml, 12);
	device_close(aml, mouse);
}

/* QEMU's panic notifier; drivers know it by this ID. */
static void write_pvpanic(struct aml *aml, const struct acpi_config *config)
{
	unsigned device = aml_device_open(aml, "PEVT"), resources;

	aml_name(aml, "_HID");
	aml_string(aml, "QEMU0001");
	aml_name(aml, "_CRS");
	resources = aml_resources_open(aml);
	aml_res_io(aml, config->pvpanic_port, 1);
	aml_resources_close(aml, resources);
	aml_close(aml, device);
}

/* The ports outside the configuration mechanism's own, and the windows. */
static void write_pci_resources(struct aml *aml, const struct acpi_config *config)
{
	unsigned resources;

	aml_name(aml, "_CRS");
	resources = aml_resources_open(aml);
	aml_res_bus_range(aml, 0, config->pci_last_bus);
	aml_res_io(aml, 0xcf8, 8);
	aml_res_io_range(aml, 0, 0xcf7);
	aml_res_io_range(aml, 0xd00, 0xffff);
	if (config->pci_window_bytes)
		aml_res_memory_range(aml, config->pci_window_base,
			config->pci_window_base + config->pci_window_bytes - 1);
	if (config->pci_window2_bytes)
		aml_res_memory_range(aml, config->pci_window2_base,
			config->pci_window2_base + config->pci_window2_bytes - 1);
	if (config->pci_high_window_bytes)
		aml_res_memory_range(aml, config->pci_high_window_base,
			config->pci_high_window_base + config->pci_high_window_bytes - 1);
	aml_resources_close(aml, resources);
}

static void write_pci_routes(struct aml *aml, const struct acpi_config *config)
{
	unsigned table, route;

	aml_name(aml, "_PRT");
	table = aml_package_open(aml, PCI_SLOTS * PCI_PINS);
	for (unsigned i = 0; i < PCI_SLOTS * PCI_PINS; i++) {
		unsigned slot = i / PCI_PINS, pin = i % PCI_PINS;

		route = aml_package_open(aml, 4);
		aml_integer(aml, (uint64_t)slot << 16 | 0xffff); /* any function */
		aml_integer(aml, pin);
		aml_integer(aml, 0); /* no link device: a fixed interrupt */
		aml_integer(aml, config->pci_gsi[boot_pci_line(slot, pin)]);
		aml_close(aml, route);
	}
	aml_close(aml, table);
}

/* The ECAM must be reserved by a motherboard resource, else systems do not trust MCFG. */
static void write_ecam(struct aml *aml, const struct acpi_config *config)
{
	const struct device device = device_open(aml, "ECAM", "PNP0C02", 0);

	aml_res_memory_range(aml, config->ecam_base,
		config->ecam_base + MIB(config->pci_last_bus + 1ull) - 1);
	device_close(aml, device);
}

/* The system may drive whatever it asks for (PCI Firmware Specification, 4.5): nobody else does. */
static void write_osc(struct aml *aml)
{
	unsigned method = aml_method_open(aml, "_OSC", 4);

	aml_return_argument(aml, 3);
	aml_close(aml, method);
}

static void write_pci(struct aml *aml, const struct acpi_config *config)
{
	unsigned device = aml_device_open(aml, "PCI0");

	aml_name(aml, "_HID");
	aml_eisaid(aml, config->ecam_base ? "PNP0A08" : "PNP0A03");
	aml_name(aml, "_CID");
	aml_eisaid(aml, "PNP0A03");
	aml_name(aml, "_UID");
	aml_integer(aml, 0);
	aml_name(aml, "_SEG");
	aml_integer(aml, 0);
	aml_name(aml, "_BBN");
	aml_integer(aml, 0);
	write_pci_resources(aml, config);
	write_pci_routes(aml, config);
	if (config->pci_hotplug)
		write_osc(aml);
	aml_close(aml, device);
	if (config->ecam_base)
		write_ecam(aml, config);
}

static void write_hpet(struct aml *aml, const struct acpi_config *config)
{
	const struct device device = device_open(aml, "HPET", "PNP0103", 0);

	aml_res_memory32(aml, (uint32_t)config->hpet_base, 0x400);
	device_close(aml, device);
}

static void write_virtio_mmios(struct aml *aml, const struct acpi_config *config)
{
	for (unsigned i = 0; i < config->virtio_mmio_count; i++) {
		const struct acpi_virtio_mmio *virtio = &config->virtio_mmio[i];
		unsigned device, resources;
		char name[8];

		snprintf(name, sizeof(name), "VR%02X", i & 0xff);
		device = aml_device_open(aml, name);
		aml_name(aml, "_HID");
		aml_string(aml, "LNRO0005");
		aml_name(aml, "_UID");
		aml_integer(aml, i);
		aml_name(aml, "_CRS");
		resources = aml_resources_open(aml);
		aml_res_memory32(aml, virtio->base, virtio->size_bytes);
		aml_res_gsi(aml, virtio->gsi);
		aml_resources_close(aml, resources);
		aml_close(aml, device);
	}
}

void acpi_dsdt_write(struct aml *aml, const struct acpi_config *config)
{
	unsigned scope;

	write_sleep_states(aml, config);
	scope = aml_scope_open(aml, "\\_SB");
	write_cpus(aml, config);
	write_serials(aml, config);
	if (config->rtc)
		write_rtc(aml);
	if (config->keyboard)
		write_keyboard(aml);
	if (config->hpet_base)
		write_hpet(aml, config);
	if (config->pvpanic_port)
		write_pvpanic(aml, config);
	if (config->pci)
		write_pci(aml, config);
	write_virtio_mmios(aml, config);
	aml_close(aml, scope);
}
