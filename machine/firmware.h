/*
 * What a machine that starts with firmware has besides: the image and the flash with its variables, and on the board fw_cfg,
 * the chip set's registers, what CMOS says of memory, and a debug port.
 */
#ifndef LODGE_MACHINE_FIRMWARE_H
#define LODGE_MACHINE_FIRMWARE_H

#include "device/char/debug_console.h"
#include "device/fw_cfg.h"
#include "device/pci/q35.h"

struct acpi_config;
struct board;
struct error;
struct machine;
struct rtc;

struct board_firmware {
	struct board *board;
	struct machine *machine;
	pthread_mutex_t *lock; /* the devices' */
	struct pci_host *pci;
	struct q35 q35;
	struct fw_cfg *fw_cfg;
	struct debug_console debug;
	gpa_t ecam; /* on the bus there; 0: nowhere */
	uint64_t ecam_bytes;
};

/* The image in memory, and config.flash below it; before the engine learns of memory. Errors: with a line for people. */
MUST_CHECK int machine_load_firmware(struct machine *machine, struct error *err);

/* Before the PCI host is made, which takes the chip set's bridge from it. */
void board_firmware_init(
	struct board_firmware *firmware, struct board *board, struct machine *machine, pthread_mutex_t *lock);
/* The rest: host and RTC exist. Errors: -ENOMEM, as bus_add(). */
MUST_CHECK int board_firmware_add(struct board_firmware *firmware, struct pci_host *pci, struct rtc *rtc);
void board_firmware_done(struct board_firmware *firmware);
/* ECAM and PCI windows as the guest has set them. */
void board_firmware_describe(const struct board_firmware *firmware, struct acpi_config *config);

#endif
