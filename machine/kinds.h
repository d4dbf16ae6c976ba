/*
 * Kinds of devices that a machine can have: what devices.c needs to know of each.
 */
#ifndef LODGE_MACHINE_KINDS_H
#define LODGE_MACHINE_KINDS_H

#include "device/virtio/virtio.h"
#include "machine/machine.h"

struct error;

/* A kind of device: how many of them the configuration has, and how to make and free one. `wiring` is all but ops and
 * device. Both run on the I/O loop's thread. */
struct device_kind {
	const char *name;
	unsigned (*count)(const struct machine_config *config);
	int (*create)(const struct machine_config *config, unsigned index,
		const struct virtio_config *wiring, void **ret_device,
		struct virtio_device **ret_virtio, struct error *err);
	void (*free)(void *device);
	bool pluggable; /* while the guest runs: it needs nothing that is set up with the machine */
};

extern const struct device_kind net_kind, rng_kind, fs_kind, disk_kind, console_kind, balloon_kind, vsock_kind, pmem_kind;

#endif
