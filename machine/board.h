/*
 * The board: which devices a machine has, at which addresses, and how their interrupt lines are wired.
 * A legacy PC without firmware (interrupt controllers, timers, clock, one serial port, ACPI), the same
 * for every engine; an engine with an irqchip of its own replaces PIC, I/O APIC and local APICs.
 */
#ifndef LODGE_MACHINE_BOARD_H
#define LODGE_MACHINE_BOARD_H

#include "base/types.h"
#include "base/util.h"
#include "device/display/picture.h"
#include "device/irq_line.h"
#include "device/msi.h"
#include "isa/x86/state.h"

struct board;
struct boot_config;
struct error;
struct machine;
struct pci_host;

/* The machine's memory, clock, bus, VM and vCPUs exist. Errors: with a line for people. */
MUST_CHECK int board_create(struct board **ret_board, struct machine *machine, struct error *err);
void board_free(struct board *board);

/* Write the ACPI tables that describe the board, and tell `boot` where they are and which ranges the
 * memory map has to reserve. */
MUST_CHECK int board_tables(struct board *board, struct boot_config *boot, struct error *err);

/* The state in which vCPU `index`'s local APIC starts. */
void board_lapic_state(struct board *board, unsigned index, struct x86_lapic *ret_lapic);

void board_press_power(struct board *board);
/* The screen, keyboard and mouse, good until the board is gone; false: it has none. */
bool board_display(struct board *board, struct display *ret_display);
size_t board_console_input(struct board *board, const uint8_t *bytes, size_t count);

/* Is there an interrupt that board_pic_ack() or the local APIC of vCPU `index` would give now? */
bool board_interrupt_pending(struct board *board, unsigned index);

/* The PIC's acknowledge cycle, if INTR is raised; -1: it is not. */
int board_pic_ack(struct board *board);

/* For the devices of devices.c: the host bridge; the lines that they share, of which a pin (0 = A) of a PCI slot has the one
 * that boot_pci_line() says; where messages go; the addresses above RAM for large BARs. */
struct pci_host *board_pci(struct board *board);
struct irq_line board_shared_line(struct board *board, unsigned slot, unsigned pin, unsigned *ret_gsi);
struct msi_sink board_msi(struct board *board);
void board_pci_high_window(struct board *board, uint64_t *ret_base, uint64_t *ret_bytes);

/* An edge on a global system interrupt's line (ACPI 6.4, 5.2.13: GSI 0-23). Takes the device lock. */
void board_pulse_gsi(struct board *board, unsigned gsi);

/* ---- for firmware.c ---- */

/* The PIC inputs that the four shared lines go to besides, or -1. With the device lock held. */
void board_route_pirqs(struct board *board, const int route[4]);

struct acpi_config;
/* What the ACPI tables say of this board. With the device lock held, or before the first vCPU runs. */
void board_describe(struct board *board, struct acpi_config *ret_config);

#endif
