/*
 * The PCI host bridge: configuration space by ports 0xcf8 and 0xcfc (PCI Local Bus 3.0, section 3.2.2.3.2)
 * and by a memory window (PCI Express Base, "Enhanced Configuration Access Mechanism"), for the functions
 * of bus 0 and those on links below root ports (port.h). The bridge itself is function 00:00.0. Port 0xcf9 is the reset control register of Intel's
 * chip sets.
 *
 * A function that is not there reads as all ones. Left out: BARs of the bridge (none).
 *
 * Threads: functions are added and removed while no vCPU runs or with the lock held; the lock is held
 * around a function's handlers.
 */
#ifndef LODGE_DEVICE_PCI_HOST_H
#define LODGE_DEVICE_PCI_HOST_H

#include "base/types.h"
#include "base/util.h"
#include "device/bus.h"

#define PCI_HOST_PORT	    0xcf8
#define PCI_HOST_RESET_PORT 0xcf9
#define PCI_FUNCTIONS	    256 /* of a bus */
#define PCI_ECAM_BUS_BYTES  (1u << 20)

/* Device 0-31 and function 0-7, as they stand in a configuration address. */
#define PCI_DEVFN(device, function) ((device) << 3 | (function))

struct pci_host;

struct pci_function_ops {
	/* offset + size_bytes <= 4096; size_bytes is 1, 2 or 4. */
	uint32_t (*config_read)(void *function, unsigned offset, unsigned size_bytes);
	void (*config_write)(void *function, unsigned offset, unsigned size_bytes, uint32_t value);
};

struct pci_host_config {
	pthread_mutex_t *lock;
	/* A write to port 0xcf9 asked for a reset. On the writing vCPU's thread, with the lock held:
	 * only note it. May be NULL. */
	void (*reset)(void *opaque);
	void *opaque;
	unsigned buses; /* that the memory window is for; 0: one */
	/* The bridge's own function in place of the plain one, or NULL. */
	const struct pci_function_ops *bridge;
	void *bridge_opaque;
};

struct pci_host_state {
	uint32_t address; /* port 0xcf8 */
	uint16_t command; /* of the bridge */
	uint8_t reset_control;
};

/* Errors: -ENOMEM. */
int pci_host_create(const struct pci_host_config *config, struct pci_host **ret_host);
void pci_host_free(struct pci_host *host);
/* Registers ports 0xcf8-0xcff. Errors: as bus_add(). */
int pci_host_attach(struct pci_host *host, struct bus *bus);
/* Registers the memory window: PCI_ECAM_BUS_BYTES for each bus at base. Errors: as bus_add(). */
int pci_host_attach_ecam(struct pci_host *host, struct bus *bus, gpa_t base);

/* Errors: -EEXIST; -EINVAL (not a devfn). The ops outlive the host. */
int pci_host_add(
	struct pci_host *host, unsigned devfn, const struct pci_function_ops *ops, void *function);
void pci_host_remove(struct pci_host *host, unsigned devfn);

/* A bus of one function, its device 0, below a root port. The number is changed with the host's lock held. */
struct pci_link {
	uint8_t number;			    /* of the bus; 0: none yet */
	const struct pci_function_ops *ops; /* NULL: nothing is plugged in */
	void *function;
	struct pci_link *next; /* the host's */
};
void pci_host_add_link(struct pci_host *host, struct pci_link *link);
void pci_host_remove_link(struct pci_host *host, struct pci_link *link);
pthread_mutex_t *pci_host_lock(const struct pci_host *host);

void pci_host_save(struct pci_host *host, struct pci_host_state *ret_state);
/* Errors: -EINVAL, and nothing was changed. */
MUST_CHECK int pci_host_load(struct pci_host *host, const struct pci_host_state *state);

#endif
