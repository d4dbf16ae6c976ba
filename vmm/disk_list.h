/*
 * What --disk says, FILE[,KEY=VALUE...], into what vmm_config wants: docs/disks.md.
 */
#ifndef LODGE_VMM_DISK_LIST_H
#define LODGE_VMM_DISK_LIST_H

#include "vmm/disks.h"

#define VMM_DISKS_MAX 24

/* Those given so far; starts zeroed. */
struct vmm_disk_list {
	struct vmm_disk disks[VMM_DISKS_MAX];
	unsigned count;
};

/* Errors: -EINVAL, -ENOMEM, with a line for people. */
MUST_CHECK int vmm_disk_list_add(struct vmm_disk_list *list, const char *value, struct error *err);
void vmm_disk_list_done(struct vmm_disk_list *list);

#endif
