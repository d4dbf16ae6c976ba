/*
 * A gigabit network card that every system has a driver for: Intel's 82540EM, PCI 8086:100e (PCI/PCI-X Family of Gigabit
 * Ethernet Controllers Software Developer's Manual, 317453), on any network (device/net.h).
 *
 * Legacy and extended descriptors, checksums and TCP segmentation of the sender, receive filters, VLAN tags in both
 * directions, EEPROM, PHY, statistics of frames and bytes. Left out: checksums found right for the receiver, packet split,
 * flow control, wake-up, interrupt moderation (interrupts come at once), frame checksums (their four bytes are zeros).
 *
 * While the function is no bus master (PCI 3.0, 6.2.2) descriptors rest, and frames from the network are lost and counted as
 * missed.
 *
 * Threads: registers on vCPUs' threads; descriptors are worked off on the loop, where the network lives too.
 */
#ifndef LODGE_DEVICE_NET_E1000_H
#define LODGE_DEVICE_NET_E1000_H

#include "base/types.h"
#include "base/util.h"
#include "device/irq_line.h"
#include "device/pci/host.h"

struct e1000;
struct guest_memory;
struct loop;
struct net;

struct e1000_config {
	struct guest_memory *memory;
	struct loop *loop;
	struct bus *bus;
	struct irq_line intx;
	struct net *net; /* stays the caller's, and outlives the card */
	uint8_t mac[6];
};

/* On the loop's thread, or before it runs. Errors: -ENOMEM, pci_device_plug()'s. */
MUST_CHECK int e1000_create(
	const struct e1000_config *config, struct pci_host *host, unsigned devfn, struct e1000 **ret_card);
/* As firmware does: where its registers are. */
void e1000_assign(struct e1000 *card, gpa_t registers);
/* On the loop's thread; no vCPU runs. NULL is allowed. */
void e1000_free(struct e1000 *card);

#endif
