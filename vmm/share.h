/*
 * Directories of the host that a machine shares with its guest (docs/share.md): what the user asked for, and the
 * servers, which are open as long as the process runs machines.
 */
#ifndef LODGE_VMM_SHARE_H
#define LODGE_VMM_SHARE_H

#include "backend/share/share.h"
#include "device/virtio/fs.h"

#define VMM_SHARES_MAX 16

/* Zeroed: nothing. */
struct vmm_share {
	char *path;	   /* of the directory; heap, config.path points to it */
	char *mount_point; /* where the guest is to mount it; heap; NULL: the guest decides */
	char tag[VIRTIO_FS_TAG_BYTES + 1];
	struct share_config config;
};

struct vmm_shares {
	unsigned count;
	struct vmm_share share[VMM_SHARES_MAX];
};

struct machine_share;

/* Serve them all; NULL is none. *ret_shares is an array of shares->count for machine_config. Raises the process's
 * limit of open files to what it may be. Errors: with a line for people. */
MUST_CHECK int vmm_shares_open(
	const struct vmm_shares *shares, struct machine_share **ret_shares, struct error *err);
/* NULL is allowed; no machine uses them any more. */
void vmm_shares_close(const struct vmm_shares *shares, struct machine_share *open);

#endif
