/*
 * A serial ATA controller (AHCI 1.3.1) with disks (ATA8-ACS) and CD-ROM drives (MMC) on struct blocks: what firmware and
 * operating systems without virtio drive. As Intel's ICH9 has it, PCI 8086:2922.
 *
 * Native command queuing, 32 commands a port; DMA and PIO commands of 28 and 48 bits; flush, TRIM; packet commands for
 * CD-ROMs. Left out: port multipliers, power states, hot plug, command completion coalescing, SMART (aborted, as by a
 * drive that has none).
 *
 * While the function is no bus master (PCI 3.0, 6.2.2) commands wait in their slots, and so do the ends of those that ran; only
 * what the host is transferring still reaches the guest's memory. An interrupt on the line is no such access.
 *
 * A command that fails on the host is reported to the guest, which sees a drive that cannot read or write there.
 *
 * Threads: registers on vCPUs' threads; commands run on the loop. Nothing of the guest's memory is used twice: a command's
 * header, table and list of buffers are copied when it starts.
 */
#ifndef LODGE_DEVICE_DISK_AHCI_H
#define LODGE_DEVICE_DISK_AHCI_H

#include "base/types.h"
#include "base/util.h"
#include "device/irq_line.h"
#include "device/pci/host.h"

#define AHCI_PORTS_MAX	  6
#define AHCI_SERIAL_BYTES 20

struct ahci;
struct block;
struct guest_memory;
struct loop;

struct ahci_drive {
	struct block *block; /* the caller's, opened on the loop, open until after ahci_free(); sectors of 512 bytes */
	bool cdrom;
	const char *serial; /* NULL: one is made up */
};

struct ahci_config {
	struct guest_memory *memory;
	struct loop *loop;
	struct bus *bus;
	struct irq_line intx;
	unsigned count; /* of drives, up to AHCI_PORTS_MAX */
	struct ahci_drive drive[AHCI_PORTS_MAX];
};

/* Errors: -ENOMEM; -EINVAL (too many drives, sectors that are not of 512 bytes); pci_device_plug()'s. */
MUST_CHECK int ahci_create(
	const struct ahci_config *config, struct pci_host *host, unsigned devfn, struct ahci **ret_ahci);
/* As firmware does: where its registers are. */
void ahci_assign(struct ahci *ahci, gpa_t registers);
/* No vCPU runs; the loop does, and this is another thread: waits until all requests have ended. NULL is allowed. */
void ahci_free(struct ahci *ahci);

#endif
