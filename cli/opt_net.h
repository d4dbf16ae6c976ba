/*
 * --net and --forward of lodge run.
 */
#ifndef LODGE_CLI_OPT_NET_H
#define LODGE_CLI_OPT_NET_H

#include "vmm/nets.h"

struct error;

struct opt_net {
	struct vmm_net net[VMM_NETS_MAX];
	unsigned count;
	bool none; /* --net none */
	unsigned forward_count;
	struct network_forward forward[NETWORK_FORWARDS_MAX];
};

/* One option each. Errors: -EINVAL with a line for people. */
MUST_CHECK int opt_net_add(struct opt_net *o, const char *value, struct error *err);
MUST_CHECK int opt_net_forward(struct opt_net *o, const char *value, struct error *err);
/* All are read: the network that is there when none is named, and whose the forwards are. */
MUST_CHECK int opt_net_finish(struct opt_net *o, struct error *err);

#endif
