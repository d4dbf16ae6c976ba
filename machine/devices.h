/*
 * The devices that a machine's configuration asks for: made, plugged into the board, described to the guest.
 *
 * To add a kind of device: its part of machine_config, and a line in the table of kinds in devices.c.
 *
 * Threads: create and free by the machine's owner, on another thread than the devices' loop, which runs. No lock is
 * held.
 */
#ifndef LODGE_MACHINE_DEVICES_H
#define LODGE_MACHINE_DEVICES_H

#include "base/util.h"

struct acpi_config;
struct devices;
struct error;
struct machine;

/* The machine's board and VM exist. Without machine_config.io there are none. Errors: with a line for people. */
MUST_CHECK int devices_create(
	struct devices **ret_devices, struct machine *machine, struct error *err);
/* No vCPU runs. Waits until requests that are under way have let go of guest memory. NULL is allowed. */
void devices_free(struct devices *devices);

/* The machine has ended: nobody waits any more for its guest to let go of a device. NULL is allowed. */
void devices_ended(struct devices *devices);

/* The first device of a kind (machine/kinds.h); NULL: there is none. */
void *devices_find(const struct devices *devices, const char *kind);

/* Those that the guest cannot find by itself. */
void devices_describe(const struct devices *devices, struct acpi_config *acpi);

#endif
