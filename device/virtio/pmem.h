/*
 * virtio persistent memory (Virtual I/O Device 1.2, 5.19): a file that is part of the guest's address space
 * (memory_add_file()); the device says where it is, and makes lasting what was written to it.
 *
 * Threads: as virtio.h says.
 */
#ifndef LODGE_DEVICE_VIRTIO_PMEM_H
#define LODGE_DEVICE_VIRTIO_PMEM_H

#include "base/types.h"
#include "base/util.h"
#include "device/virtio/virtio.h"

struct memory_file;
struct virtio_pmem;

#define VIRTIO_PMEM_ALIGN MIB(2) /* of address and size: what Linux wants */

struct virtio_pmem_config {
	struct virtio_config wiring; /* all but ops and device */
	gpa_t gpa;		  /* where the file is */
	struct memory_file *file; /* the caller's, open until after virtio_pmem_free() */
};

/* Errors: -ENOMEM, those of threads and virtio_create(). Before the loop runs, or on its thread. */
MUST_CHECK int virtio_pmem_create(
	const struct virtio_pmem_config *config, struct virtio_pmem **ret_pmem);
/* NULL is allowed. The loop does not run, nor does a vCPU. Waits for a flush that is under way. */
void virtio_pmem_free(struct virtio_pmem *pmem);

/* For a transport. */
struct virtio_device *virtio_pmem_device(struct virtio_pmem *pmem);

#endif
