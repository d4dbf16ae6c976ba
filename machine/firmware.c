/*
 * The firmware's side of the board: see the header.
 */
#include "machine/firmware.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "boot/firmware.h"
#include "device/flash.h"
#include "device/timer/rtc.h"
#include "machine/private.h"
#include "memory/memory.h"

#define TABLES_BYTES	KIB(128)
#define MAP_BYTES	(FIRMWARE_MAP_ENTRY * MEMORY_REGIONS_MAX)
#define PCI_WINDOW_END	0xfc000000ull
#define COM1_PORT	0x3f8

/* CMOS registers that tell of memory (SeaBIOS's docs/Memory map; OVMF reads the same). */
#define CMOS_BASE_KIB	  0x15 /* 2 bytes */
#define CMOS_EXTENDED_KIB 0x30 /* 2 bytes: from 1 MiB, at most 63 MiB; also at 0x17 */
#define CMOS_LOW	  0x34 /* 2 bytes: from 16 MiB, in 64 KiB */
#define CMOS_BOOT_LAST	  0x38
#define CMOS_BOOT_FIRST	  0x3d
#define CMOS_HIGH	  0x5b /* 3 bytes: from 4 GiB, in 64 KiB */
#define CMOS_CPUS	  0x5f /* less one */

/* ---- ACPI ---- */

void board_firmware_describe(const struct board_firmware *firmware, struct acpi_config *config)
{
	const uint64_t low = MIN((uint64_t)FIRMWARE_RAM_LOW, firmware->machine->config.memory_bytes);
	const gpa_t first = MAX(ALIGN_UP(low, MIB(256)), (uint64_t)FIRMWARE_RAM_LOW);

	config->ecam_base = firmware->ecam_bytes ? firmware->ecam : 0;
	config->pci_window_base = first;
	config->pci_window_bytes = PCI_WINDOW_END - first;
	if (!config->ecam_base || config->ecam_base < first || config->ecam_base >= PCI_WINDOW_END)
		return; /* it takes nothing out of the window */
	config->pci_window_bytes = config->ecam_base - first;
	config->pci_window2_base = config->ecam_base + firmware->ecam_bytes;
	if (config->pci_window2_base < PCI_WINDOW_END)
		config->pci_window2_bytes = PCI_WINDOW_END - config->pci_window2_base;
}

/* The guest asks for the tables: by now it has set up the bus. */
static void make_tables(void *opaque)
{
	struct board_firmware *firmware = opaque;
	AUTO_FREE uint8_t *tables = calloc(1, TABLES_BYTES);
	uint8_t script[FIRMWARE_SCRIPT_BYTES];
	struct acpi_relocations relocations;
	struct acpi_config config;
	struct error err = {0};
	uint32_t bytes = 0;

	board_describe(firmware->board, &config);
	if (!tables || acpi_build_movable(&config, tables, TABLES_BYTES, &bytes, &relocations, &err) < 0) {
		log_warn("machine", "%s: firmware gets no ACPI tables: %s", firmware->machine->config.name,
			tables ? err.text : "no memory");
		return;
	}
	fw_cfg_set(firmware->fw_cfg, FIRMWARE_FILE_TABLES, tables, bytes);
	fw_cfg_set(firmware->fw_cfg, FIRMWARE_FILE_RSDP, tables, ACPI_RSDP_BYTES);
	fw_cfg_set(firmware->fw_cfg, FIRMWARE_FILE_SCRIPT, script, firmware_script(&relocations, script));
}

/* ---- the chip set ---- */

/* Only bus 0 is behind it, whatever length was chosen. */
static void move_ecam(void *opaque, gpa_t base, uint64_t bytes)
{
	struct board_firmware *firmware = opaque;
	struct bus *bus = firmware->machine->bus;

	if (firmware->ecam_bytes)
		bus_remove(bus, BUS_MMIO, firmware->ecam);
	firmware->ecam_bytes = 0;
	if (!bytes || pci_host_attach_ecam(firmware->pci, bus, base) < 0)
		return; /* where something else is there is none */
	firmware->ecam = base;
	firmware->ecam_bytes = bytes;
}

static void route_pirqs(void *opaque)
{
	struct board_firmware *firmware = opaque;
	int route[4];

	for (unsigned i = 0; i < ARRAY_SIZE(route); i++)
		route[i] = q35_pirq(&firmware->q35, i);
	board_route_pirqs(firmware->board, route);
}

/* ---- what it is told ---- */

static void cmos_word(struct rtc *rtc, unsigned index, uint64_t value)
{
	rtc_set_cmos(rtc, index, (uint8_t)value);
	rtc_set_cmos(rtc, index + 1, (uint8_t)(value >> 8));
}

static void tell_cmos(const struct board_firmware *firmware, struct rtc *rtc)
{
	const uint64_t total = firmware->machine->config.memory_bytes & GUEST_PAGE_MASK;
	const uint64_t low = MIN(total, (uint64_t)FIRMWARE_RAM_LOW), high = (total - low) >> 16;

	cmos_word(rtc, CMOS_BASE_KIB, 640);
	cmos_word(rtc, CMOS_EXTENDED_KIB, MIN(low - MIB(1), MIB(63)) >> 10);
	cmos_word(rtc, 0x17, MIN(low - MIB(1), MIB(63)) >> 10);
	cmos_word(rtc, CMOS_LOW, low > MIB(16) ? (low - MIB(16)) >> 16 : 0);
	cmos_word(rtc, CMOS_HIGH, high);
	rtc_set_cmos(rtc, CMOS_HIGH + 2, (uint8_t)(high >> 16));
	rtc_set_cmos(rtc, CMOS_CPUS, (uint8_t)(firmware->machine->vcpu_count - 1));
	rtc_set_cmos(rtc, CMOS_BOOT_LAST, 0x01); /* none; and a floppy's signature is not looked at */
	rtc_set_cmos(rtc, CMOS_BOOT_FIRST, 0x32); /* disk, then CD */
}

/* SeaBIOS's part of a graphics card; other firmware has its own. Without it there is just no picture. */
static int add_vga_rom(struct board_firmware *firmware)
{
	const struct boot_file file = {.path = FIRMWARE_VGA_ROM};
	struct boot_image image;
	struct error err = {0};

	if (boot_image_read(&image, &file, MIB(1), &err) < 0) {
		log_warn("machine", "%s: no picture under a BIOS: %s", firmware->machine->config.name, err.text);
		return 0;
	}
	int status = fw_cfg_add_file(
		firmware->fw_cfg, "vgaroms/vgabios-stdvga.bin", image.bytes, (uint32_t)image.size_bytes);
	boot_image_done(&image);
	return status;
}

static int add_files(struct board_firmware *firmware)
{
	struct fw_cfg *fw_cfg = firmware->fw_cfg;
	const uint16_t console = COM1_PORT;
	uint8_t map[MAP_BYTES];
	uint32_t bytes = firmware_map(firmware->machine->memory, map, sizeof(map));
	int status = fw_cfg_add_file(fw_cfg, FIRMWARE_FILE_MAP, map, bytes);

	if (status == 0)
		status = fw_cfg_add_file(fw_cfg, FIRMWARE_FILE_RSDP, NULL, ACPI_RSDP_BYTES);
	if (status == 0)
		status = fw_cfg_add_file(fw_cfg, FIRMWARE_FILE_TABLES, NULL, TABLES_BYTES);
	if (status == 0)
		status = fw_cfg_add_file(fw_cfg, FIRMWARE_FILE_SCRIPT, NULL, FIRMWARE_SCRIPT_BYTES);
	if (status < 0)
		return status;
	if (firmware->machine->config.vga)
		return add_vga_rom(firmware);
	return fw_cfg_add_file(fw_cfg, "etc/sercon-port", &console, sizeof(console));
}

static int add_fw_cfg(struct board_firmware *firmware)
{
	const struct fw_cfg_config config = {.lock = firmware->lock,
		.memory = firmware->machine->memory,
		.make = make_tables,
		.opaque = firmware};
	const struct machine *m = firmware->machine;
	int status = fw_cfg_create(&config, &firmware->fw_cfg);

	if (status < 0)
		return status;
	fw_cfg_add_number(firmware->fw_cfg, FW_CFG_RAM_SIZE, 8, m->config.memory_bytes);
	fw_cfg_add_number(firmware->fw_cfg, FW_CFG_CPUS, 2, m->vcpu_count);
	fw_cfg_add_number(firmware->fw_cfg, FW_CFG_CPUS_MAX, 2, m->vcpu_count);
	fw_cfg_add_number(firmware->fw_cfg, FW_CFG_NOGRAPHIC, 2, !m->config.vga);
	fw_cfg_add_number(firmware->fw_cfg, FW_CFG_BOOT_MENU, 2, 0);
	status = add_files(firmware);
	return status < 0 ? status : fw_cfg_attach(firmware->fw_cfg, m->bus);
}

/* ---- in memory ---- */

int machine_load_firmware(struct machine *m, struct error *err)
{
	struct flash_config config = {.memory = m->memory, .bus = m->bus, .store = m->config.flash};
	int status = firmware_load(m->memory, &m->config.boot.firmware, &config.base, err);

	if (status < 0 || !config.store)
		return status;
	config.base -= config.store->size_bytes;
	if (config.base < BOOT_HOLE_END_GPA - FIRMWARE_MAX_BYTES)
		return error_set(err, EFBIG, "firmware and its variables have more than %d MiB",
			(int)(FIRMWARE_MAX_BYTES >> 20));
	return flash_create(&config, &m->flash, err);
}

/* ---- life ---- */

void board_firmware_init(
	struct board_firmware *firmware, struct board *board, struct machine *machine, pthread_mutex_t *lock)
{
	*firmware = (struct board_firmware){.board = board, .machine = machine, .lock = lock};
	firmware->q35.ecam = move_ecam;
	firmware->q35.routes = route_pirqs;
	firmware->q35.opaque = firmware;
	q35_reset(&firmware->q35);
}

int board_firmware_add(struct board_firmware *firmware, struct pci_host *pci, struct rtc *rtc)
{
	struct bus *bus = firmware->machine->bus;
	int status = pci_host_add(pci, Q35_LPC_DEVFN, &q35_lpc_ops, &firmware->q35);

	firmware->pci = pci;
	firmware->debug = (struct debug_console){
		.lock = firmware->lock, .fd = firmware->machine->config.firmware_log};
	if (status == 0)
		status = add_fw_cfg(firmware);
	if (status == 0 && firmware->debug.fd > 0)
		status = debug_console_attach(&firmware->debug, bus);
	if (status == 0)
		tell_cmos(firmware, rtc);
	return status;
}

void board_firmware_done(struct board_firmware *firmware)
{
	fw_cfg_free(firmware->fw_cfg);
}
