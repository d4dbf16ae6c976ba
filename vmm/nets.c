/*
 * The networks of the machine in this process: see nets.h.
 */
#include "vmm/nets.h"

#include "base/error.h"
#include "base/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define QUEUES_DEFAULT_MAX 4 /* more cost receive buffers, and are of use to few */

struct vmm_nets {
	struct loop *loop;
	const struct vmm_net *net;
	unsigned count, cpus;
	struct machine_nic nic[VMM_NETS_MAX]; /* .net NULL: not open */
	struct error *err;
	int status;
};

/* Where no other machine is, always the same address: what the guest remembers of its card then holds. Elsewhere
 * two machines must differ. */
static void choose_mac(const struct vmm_net *net, unsigned index, uint8_t mac[6])
{
	static const uint8_t usual[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};

	memcpy(mac, net->mac_given ? net->mac : usual, 6);
	if (net->mac_given)
		return;
	if (net->network.kind == NETWORK_USER || net->network.kind == NETWORK_PASST ||
		getrandom(mac + 3, 3, 0) != 3)
		mac[5] = (uint8_t)(mac[5] + index);
}

static void open_all(void *opaque)
{
	struct vmm_nets *nets = opaque;

	for (unsigned i = 0; i < nets->count && nets->status == 0; i++) {
		const struct vmm_net *net = &nets->net[i];
		struct machine_nic *nic = &nets->nic[i];
		nic->e1000 = net->e1000;
		nic->queue_pairs =
			net->queues ? net->queues : MIN(nets->cpus, (unsigned)QUEUES_DEFAULT_MAX);
		choose_mac(net, i, nic->mac);
		nets->status = network_open(&net->network, nets->loop, &nic->net, nets->err);
	}
}

static void close_all(void *opaque)
{
	struct vmm_nets *nets = opaque;

	for (unsigned i = 0; i < nets->count; i++)
		net_close(nets->nic[i].net);
}

int vmm_nets_open(const struct vmm_net *net, unsigned count, unsigned cpus, struct loop *loop,
	struct vmm_nets **ret_nets, struct error *err)
{
	struct vmm_nets *nets = calloc(1, sizeof(*nets));

	if (!nets)
		return error_set(err, ENOMEM, "no memory for networks");
	*nets = (struct vmm_nets){
		.loop = loop, .net = net, .count = count, .cpus = cpus, .err = err};
	loop_invoke(loop, open_all, nets);
	int status = nets->status;
	nets->err = NULL;
	if (status < 0) {
		vmm_nets_close(nets);
		return status;
	}
	*ret_nets = nets;
	return 0;
}

void vmm_nets_close(struct vmm_nets *nets)
{
	if (!nets)
		return;
	loop_invoke(nets->loop, close_all, nets);
	free(nets);
}

const struct machine_nic *vmm_nets_nics(const struct vmm_nets *nets, unsigned *ret_count)
{
	*ret_count = nets->count;
	return nets->nic;
}
