/*
 * What --net and --forward say, into what vmm_config wants: docs/networks.md.
 */
#ifndef LODGE_VMM_NET_LIST_H
#define LODGE_VMM_NET_LIST_H

#include "vmm/nets.h"

struct error;

struct vmm_net_list {
	struct vmm_net net[VMM_NETS_MAX];
	unsigned count;
	bool none; /* --net none */
	unsigned forward_count;
	struct network_forward forward[NETWORK_FORWARDS_MAX];
};

/* One option each. Errors: -EINVAL with a line for people. */
MUST_CHECK int vmm_net_list_add(struct vmm_net_list *list, const char *value, struct error *err);
MUST_CHECK int vmm_net_list_forward(struct vmm_net_list *list, const char *value, struct error *err);
/* All are read: the network that is there when none is named, and whose the forwards are. */
MUST_CHECK int vmm_net_list_finish(struct vmm_net_list *list, struct error *err);

#endif
