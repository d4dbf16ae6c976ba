/*
 * The two functions of Intel's Q35 chip set that firmware talks to: the host bridge's registers at 00:00.0 (82Q35 MCH
 * data sheet, 5.1: PCIEXBAR, PAM, SMRAM) and the LPC bridge at 00:1f.0 (ICH9 data sheet, 13.1: PMBASE, ACPI_CNTL,
 * PIRQ routing, RCBA). SeaBIOS and OVMF know the machine by them.
 *
 * Left out: shadowing (the RAM below 1 MiB is always RAM, so PAM and SMRAM only remember), SMM, and that PMBASE moves
 * anything (both programs set it to where the board has the block: ACPI_PM_PORT).
 *
 * Threads: as of any PCI function, with the lock of the host bridge held.
 */
#ifndef LODGE_DEVICE_PCI_Q35_H
#define LODGE_DEVICE_PCI_Q35_H

#include "base/types.h"
#include "device/pci/host.h"

#define Q35_LPC_DEVFN PCI_DEVFN(31, 0)
#define Q35_PIRQS     8

struct q35 {
	/* PCIEXBAR was written: the memory window of the configuration space is [base, +bytes) from now on, or is
	 * off (bytes 0). With the lock held. */
	void (*ecam)(void *opaque, gpa_t base, uint64_t bytes);
	/* The routing of INTx to the PICs changed. May be NULL. */
	void (*routes)(void *opaque);
	void *opaque;
	uint8_t bridge[256], lpc[256]; /* configuration spaces */
};

/* Fill in the callbacks first. The struct is the caller's. */
void q35_reset(struct q35 *q35);
extern const struct pci_function_ops q35_bridge_ops, q35_lpc_ops;

/* The PIC input of PIRQ A to H (0-7), or -1: to none. */
int q35_pirq(const struct q35 *q35, unsigned pirq);
/* Where the window is; bytes 0: off. */
gpa_t q35_ecam(const struct q35 *q35, uint64_t *ret_bytes);

#endif
