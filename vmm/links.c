/*
 * The links of the machine in this process: see links.h. Those with sockets are made and closed on the loop's thread.
 */
#include "vmm/links.h"
#include "backend/port.h"
#include "backend/vsock.h"
#include "base/error.h"
#include "base/loop.h"
#include "device/virtio/pmem.h"
#include <errno.h>
#include <stdlib.h>

struct vmm_links {
	const struct vmm_links_spec *spec;
	struct loop *loop;
	struct stream *console;
	struct port_socket *port[VMM_PORTS_MAX];
	struct vsock_sockets *vsock;
	struct memory_file *pmem[VMM_PMEMS_MAX];
	struct machine_port machine_port[1 + VMM_PORTS_MAX];
	unsigned machine_ports;
	int status;
	struct error *err;
};

static int open_pmems(struct vmm_links *links, struct error *err)
{
	int status = 0;

	for (unsigned i = 0; status == 0 && i < links->spec->pmems; i++)
		status = memory_file_open(links->spec->pmem[i].path, links->spec->pmem[i].mode,
			VIRTIO_PMEM_ALIGN, &links->pmem[i], err);
	return status;
}

static void open_sockets(void *opaque)
{
	struct vmm_links *links = opaque;
	const struct vmm_links_spec *spec = links->spec;

	for (unsigned i = 0; links->status == 0 && i < spec->ports; i++)
		links->status = port_socket_open(
			links->loop, spec->port[i].path, &links->port[i], links->err);
	if (links->status == 0 && spec->vsock_path)
		links->status = vsock_sockets_open(
			links->loop, spec->vsock_path, &links->vsock, links->err);
}

static void close_sockets(void *opaque)
{
	struct vmm_links *links = opaque;

	for (unsigned i = 0; i < links->spec->ports; i++)
		port_socket_close(links->port[i]);
	vsock_sockets_close(links->vsock);
}

/* Port 0 is the console's, whether there is one or not. */
static void list_ports(struct vmm_links *links)
{
	const struct vmm_links_spec *spec = links->spec;

	if (spec->console)
		links->machine_port[0].stream = links->console;
	for (unsigned i = 0; i < spec->ports; i++)
		links->machine_port[1 + i] = (struct machine_port){
			.stream = port_socket_stream(links->port[i]), .name = spec->port[i].name};
	links->machine_ports = spec->console || spec->ports ? 1 + spec->ports : 0;
}

int vmm_links_open(const struct vmm_links_spec *spec, struct loop *loop, struct stream *console,
	struct vmm_links **ret_links, struct error *err)
{
	struct vmm_links *links = calloc(1, sizeof(*links));

	if (!links)
		return error_set(err, ENOMEM, "no memory for the machine's links");
	*links = (struct vmm_links){.spec = spec, .loop = loop, .console = console, .err = err};
	links->status = open_pmems(links, err);
	if (links->status == 0)
		loop_invoke(loop, open_sockets, links);
	const int status = links->status;
	if (status < 0) {
		vmm_links_close(links);
		return status;
	}
	list_ports(links);
	*ret_links = links;
	return 0;
}

void vmm_links_close(struct vmm_links *links)
{
	if (!links)
		return;
	loop_invoke(links->loop, close_sockets, links);
	for (unsigned i = 0; i < links->spec->pmems; i++)
		memory_file_close(links->pmem[i]);
	free(links);
}

void vmm_links_configure(const struct vmm_links *links, struct machine_config *config)
{
	config->ports = links->machine_port;
	config->port_count = links->machine_ports;
	config->vsock = links->vsock ? vsock_sockets_host(links->vsock) : NULL;
	config->vsock_cid = links->spec->vsock_cid;
	config->pmems = links->pmem;
	config->pmem_count = links->spec->pmems;
}
