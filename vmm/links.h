/*
 * What links the machine in this process with the host apart from disks, networks and directories: ports of its
 * virtio console, a vsock, persistent memory, the balloon. Open from before the machine's first life until after its
 * last.
 */
#ifndef LODGE_VMM_LINKS_H
#define LODGE_VMM_LINKS_H

#include "machine/machine.h"
#include "memory/memory.h"

#define VMM_PORTS_MAX 15
#define VMM_PMEMS_MAX 8

struct error;
struct loop;
struct vmm_links;

struct vmm_links_spec { /* the names outlive it */
	bool console;	/* the machine's console is the virtio one */
	unsigned ports;
	struct {
		const char *name, *path;
	} port[VMM_PORTS_MAX];
	const char *vsock_path; /* NULL: none */
	uint32_t vsock_cid;
	unsigned pmems;
	struct {
		const char *path;
		enum memory_file_mode mode;
	} pmem[VMM_PMEMS_MAX];
};

/* console: what port 0 is on, if spec->console. On another thread than the loop's, which runs. Errors: with a line for
 * people. */
MUST_CHECK int vmm_links_open(const struct vmm_links_spec *spec, struct loop *loop,
	struct stream *console, struct vmm_links **ret_links, struct error *err);
/* NULL is allowed. No machine has them any more; the loop runs. */
void vmm_links_close(struct vmm_links *links);
/* Have a machine use them. */
void vmm_links_configure(const struct vmm_links *links, struct machine_config *config);

#endif
