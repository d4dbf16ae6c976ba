/*
 * Run one machine in this process, its console on the caller's terminal, until it ends.
 */
#ifndef LODGE_VMM_RUN_H
#define LODGE_VMM_RUN_H

#include "machine/machine.h"
#include "vmm/disk_boot.h"
#include "vmm/disks.h"
#include "vmm/links.h"

struct error;
struct vmm_net;
struct vmm_shares;

/* Exit statuses of `lodge run`, documented in docs/run.md. A guest that writes to the debug exit port
 * chooses its own. */
enum vmm_exit {
	VMM_EXIT_OK = 0,	/* the guest powered off */
	VMM_EXIT_FAILURE = 1,	/* the machine could not be started, or the host failed it */
	VMM_EXIT_USAGE = 2,
	VMM_EXIT_RESET = 100,	/* the guest reset the machine and --on-reboot is exit */
	VMM_EXIT_PANIC = 101,	/* the guest's kernel reported a panic */
	VMM_EXIT_CRASH = 102,	/* triple fault */
	VMM_EXIT_QUIT = 103,	/* Ctrl-A x, or the call `stop` */
	VMM_EXIT_SIGNAL = 128,	/* + the signal that ended it */
};

struct vmm_config {
	struct machine_config machine; /* the console callbacks and back ends are set here */
	const struct vmm_net *nets; /* vmm/nets.h; outlive vmm_run() */
	unsigned net_count;
	const struct vmm_shares *shares; /* NULL: none */
	const struct vmm_disk *disks;
	unsigned disk_count;
	const char *vnc;	/* where to show the screen (backend/vnc.h), or NULL */
	const char *screenshot; /* the file that gets the last picture, or NULL */
	const char *control;	/* the control socket (vmm/control.h), or NULL */
	struct vmm_disk_boot disk_boot; /* from inside the first disk */
	struct vmm_links_spec links;
	/* The firmware's variables (backend/flash_file.h): both NULL is none. */
	const char *variables, *variables_template;
	bool exit_on_reboot;
	bool stats; /* print each vCPU's counters at the end */
};

/* Returns an exit status; what went wrong has been said on stderr. */
int vmm_run(const struct vmm_config *config);

#endif
