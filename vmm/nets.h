/*
 * The networks of the machine in this process: their back ends, which stay open from one life of the machine to the next,
 * and its network cards.
 */
#ifndef LODGE_VMM_NETS_H
#define LODGE_VMM_NETS_H

#include "backend/net/network.h"
#include "machine/machine.h"

#define VMM_NETS_MAX 8

struct error;
struct loop;
struct vmm_nets;

struct vmm_net {
	struct network_spec network;
	bool mac_given;
	uint8_t mac[6];	 /* if given; else one is chosen */
	unsigned queues; /* pairs; 0: by the number of vCPUs */
	bool e1000;	 /* the card is Intel's, not virtio's */
};

/* Open them on the loop, which is running. Errors: with a line for people. */
MUST_CHECK int vmm_nets_open(const struct vmm_net *net, unsigned count, unsigned cpus,
	struct loop *loop, struct vmm_nets **ret_nets, struct error *err);
/* NULL is allowed. No machine uses them any more, and the loop is running. */
void vmm_nets_close(struct vmm_nets *nets);

/* What a machine is told of its cards; they outlive it. */
const struct machine_nic *vmm_nets_nics(const struct vmm_nets *nets, unsigned *ret_count);

#endif
