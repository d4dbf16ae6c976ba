/*
 * One machine in this process: see run.h.
 *
 * The caller's thread waits for the machine; one waits for signals, which are blocked everywhere else; one
 * runs the loop of devices and back ends; console.h has its own.
 */
#include "vmm/run.h"
#include "backend/flash_file.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/loop.h"
#include "vmm/console.h"
#include "vmm/control.h"
#include "vmm/current.h"
#include "vmm/hold.h"
#include "vmm/links.h"
#include "vmm/nets.h"
#include "vmm/screen.h"
#include "vmm/share.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

struct vmm {
	const struct vmm_config *config;
	struct console *console;
	struct loop *io; /* of devices and back ends */
	pthread_t io_thread;
	struct vmm_nets *nets;
	struct machine_share *shares;
	struct vmm_disks *disks;
	struct vmm_screen screen;
	struct vmm_links *links;
	struct flash_file *variables; /* the firmware's; NULL: none */
	struct vmm_hold *hold;
	struct vmm_control *control;
	struct vmm_current current;
	unsigned holds; /* that hold_machine() was asked for; the loop's */
	pthread_mutex_t lock; /* what follows */
	bool end_asked;
	int signal; /* that asked for the end; 0: the user did */
};

/* ---- the end from outside ---- */

static void note_end(struct vmm *vmm, int signal_number)
{
	AUTO_LOCK(&vmm->lock);
	if (!vmm->end_asked)
		vmm->signal = signal_number;
	vmm->end_asked = true;
}

static bool end_was_asked(struct vmm *vmm)
{
	AUTO_LOCK(&vmm->lock);
	return vmm->end_asked;
}

/* If there is no machine now, publish() finds it noted. */
static void ask_to_end(struct vmm *vmm, int signal_number)
{
	note_end(vmm, signal_number);
	struct machine *machine = vmm_current_take(&vmm->current);
	if (!machine)
		return;
	machine_stop(machine);
	vmm_current_give_back(&vmm->current);
}

static void user_quits(void *opaque)
{
	ask_to_end(opaque, 0);
}

/* By the control socket. */
static void client_quits(void *opaque)
{
	struct vmm *vmm = opaque;

	console_abandon(vmm->console);
	ask_to_end(vmm, 0);
}

static void signals_of_interest(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGHUP);
	sigaddset(set, SIGQUIT);
	sigaddset(set, SIGWINCH);
	sigaddset(set, SIGUSR2); /* our own: the thread's end */
}

static void *signal_thread(void *opaque)
{
	struct vmm *vmm = opaque;
	sigset_t set;
	int number;

	signals_of_interest(&set);
	while (sigwait(&set, &number) == 0 && number != SIGUSR2) {
		if (number == SIGWINCH) {
			console_resized(vmm->console);
			continue;
		}
		console_abandon(vmm->console);
		ask_to_end(vmm, number);
	}
	return NULL;
}

/* ---- the I/O loop ---- */

static void *io_thread(void *opaque)
{
	struct vmm *vmm = opaque;

	pthread_setname_np(pthread_self(), "io");
	loop_run(vmm->io);
	return NULL;
}

static int start_io(struct vmm *vmm, struct error *err)
{
	int status = loop_create(&vmm->io);

	if (status < 0)
		return error_set_errno(err, -status, "can't make the devices' event loop");
	int code = pthread_create(&vmm->io_thread, NULL, io_thread, vmm);
	if (code) {
		loop_free(vmm->io);
		return error_set_errno(err, code, "can't start a thread for devices");
	}
	return 0;
}

static void end_io(struct vmm *vmm)
{
	loop_stop(vmm->io);
	pthread_join(vmm->io_thread, NULL);
	loop_free(vmm->io);
}

/* ---- back ends, which are there for all lives of the machine ---- */

/* On a thread of its own. */
static void pause_or_resume(void *machine, bool hold)
{
	if (hold)
		machine_pause_for(machine, MACHINE_PAUSE_DISK);
	else
		machine_resume_for(machine, MACHINE_PAUSE_DISK);
}

/* A disk's requests have to wait: the guest waits with them. On the I/O loop, for which a vCPU may be waiting. Those of
 * the command line speak with one voice, and each that was attached with its own. */
static void hold_machine(void *opaque, bool hold)
{
	struct vmm *vmm = opaque;

	if (hold)
		vmm->holds++;
	else
		vmm->holds--;
	vmm_hold_set(vmm->hold, vmm->holds);
}

static int open_disks(struct vmm *vmm, struct error *err)
{
	const struct vmm_disks_config config = {
		.io = vmm->io,
		.disks = vmm->config->disks,
		.count = vmm->config->disk_count,
		.cpus = vmm->config->machine.cpus,
		.hold = hold_machine,
		.opaque = vmm,
	};

	return vmm_disks_open(&config, &vmm->disks, err);
}

static int open_control(struct vmm *vmm, struct error *err)
{
	const struct vmm_control_config config = {
		.io = vmm->io,
		.config = vmm->config,
		.current = &vmm->current,
		.quit = client_quits,
		.hold = hold_machine,
		.opaque = vmm,
	};

	return vmm->config->control ? vmm_control_open(&config, &vmm->control, err) : 0;
}

/* On an error close_back_ends() is called too. The control socket is the last: that the disks are ours says that no other
 * process serves it. */
static int open_back_ends(struct vmm *vmm, struct error *err)
{
	const struct vmm_config *config = vmm->config;
	int status = vmm_nets_open(config->nets, config->net_count, config->machine.cpus, vmm->io,
		&vmm->nets, err);

	if (status == 0)
		status = vmm_shares_open(config->shares, &vmm->shares, err);
	if (status == 0)
		status = open_disks(vmm, err);
	if (status == 0)
		status = vmm_links_open(&config->links, vmm->io, console_stream(vmm->console),
			&vmm->links, err);
	if (status == 0)
		status = vmm_screen_open(&vmm->screen, config, vmm->io, err);
	if (status == 0 && (config->variables || config->variables_template))
		status = flash_file_open(config->variables, config->variables_template, &vmm->variables, err);
	if (status == 0)
		status = open_control(vmm, err);
	return status;
}

static void give_back_ends(struct vmm *vmm, struct machine_config *config)
{
	config->io = vmm->io;
	config->nics = vmm_nets_nics(vmm->nets, &config->nic_count);
	config->disks = vmm_disks_list(vmm->disks);
	config->disk_count = vmm->config->disk_count;
	vmm_links_configure(vmm->links, config);
	config->flash = flash_file_store(vmm->variables);
	config->shares = vmm->shares;
	config->share_count = vmm->config->shares ? vmm->config->shares->count : 0;
}

static void close_back_ends(struct vmm *vmm)
{
	vmm_current_end(&vmm->current);
	vmm_control_end(vmm->control);
	flash_file_close(vmm->variables);
	vmm_links_close(vmm->links);
	vmm_disks_close(vmm->disks);
	vmm_screen_close(&vmm->screen);
	vmm_shares_close(vmm->config->shares, vmm->shares);
	vmm_nets_close(vmm->nets);
	/* Whose clients learn by it that all this is done. */
	vmm_control_free(vmm->control);
}

/* ---- the machine's lives ---- */

static void print_stats(struct machine *machine, unsigned cpus)
{
	for (unsigned i = 0; i < cpus; i++) {
		struct engine_counters c;

		machine_counters(machine, i, &c);
		fprintf(stderr, "lodge: vCPU %u:", i);
		for (const struct engine_counter_name *n = engine_counter_names; n->name; n++)
			if (engine_counter(&c, n->offset))
				fprintf(stderr, " %" PRIu64 " %s,", engine_counter(&c, n->offset), n->name);
		fprintf(stderr, " nothing else\n");
	}
}

/* NULL: there is none for now. */
static void publish(struct vmm *vmm, struct machine *machine)
{
	vmm_hold_machine(vmm->hold, machine);
	vmm_current_set(&vmm->current, machine);
	/* Asked while there was no machine. */
	if (machine && end_was_asked(vmm))
		machine_stop(machine);
}

/* From start to end; frees the machine. Errors: could not be started. */
static int one_life(struct vmm *vmm, struct machine *machine, struct machine_result *ret_result,
	struct error *err)
{
	vmm_control_renew(vmm->control, machine);
	int status = machine_start(machine, err);
	if (status == 0) {
		publish(vmm, machine);
		vmm_screen_enter(&vmm->screen, machine);
		console_attach(vmm->console, machine);
		machine_wait(machine, ret_result);
		publish(vmm, NULL);
		vmm_screen_leave(&vmm->screen, machine);
		console_detach(vmm->console);
		console_flush(vmm->console);
		if (vmm->config->stats)
			print_stats(machine, vmm->config->machine.cpus);
	}
	machine_free(machine);
	return status;
}

static int exit_status(const struct vmm *vmm, const struct machine_result *result)
{
	switch (result->end) {
	case MACHINE_POWERED_OFF: return VMM_EXIT_OK;
	case MACHINE_EXITED: return result->status;
	case MACHINE_RESET: return VMM_EXIT_RESET;
	case MACHINE_PANICKED: return VMM_EXIT_PANIC;
	case MACHINE_CRASHED: return VMM_EXIT_CRASH;
	case MACHINE_STOPPED: return vmm->signal ? VMM_EXIT_SIGNAL + vmm->signal : VMM_EXIT_QUIT;
	default: return VMM_EXIT_FAILURE;
	}
}

static bool worth_saying(enum machine_end end)
{
	return end == MACHINE_PANICKED || end == MACHINE_CRASHED || end == MACHINE_FAILED;
}

static int complain(struct error *err)
{
	fprintf(stderr, "lodge: %s\n", err->text);
	return VMM_EXIT_FAILURE;
}

/* A machine for one life. A disk that it boots from is looked at anew: the guest may have a new kernel by now. */
static int make_machine(struct vmm *vmm, struct machine **ret_machine, const struct machine_config *base,
	struct error *err)
{
	const struct vmm_disk_boot *boot = &vmm->config->disk_boot;
	struct machine_config config = *base;
	struct vmm_disk_booted booted = {0};
	struct boot_file initrd;
	int status;

	if (!boot->on)
		return machine_create(ret_machine, base, err);
	status = vmm_disk_boot(boot, vmm->io, config.disks[0].block, &booted, err);
	if (status < 0)
		return status;
	initrd = (struct boot_file){.path = "the disk's initial RAM disk", .fd = booted.found.initrd};
	config.boot.kernel = (struct boot_file){.path = "the disk's kernel", .fd = booted.found.kernel};
	config.boot.initrd = &initrd;
	config.boot.initrd_count = booted.found.initrd > 0;
	config.boot.cmdline = booted.cmdline;
	/* All of it is read here; nothing points to it afterwards. */
	status = machine_create(ret_machine, &config, err);
	vmm_disk_booted_done(&booted);
	return status;
}

/* Takes `machine`, the first, over. */
static int run_lives(struct vmm *vmm, struct machine *machine, const struct machine_config *config,
	struct machine_result *ret_result, struct error *err)
{
	for (;;) {
		int status = one_life(vmm, machine, ret_result, err);
		if (status < 0 || ret_result->end != MACHINE_RESET || vmm->config->exit_on_reboot)
			return status;
		status = make_machine(vmm, &machine, config, err);
		if (status < 0)
			return status;
	}
}

/* With the console open and the I/O loop running. */
static int tell(struct vmm *vmm, struct machine_result *ret_result, struct error *err)
{
	struct machine_config config = vmm->config->machine;
	struct machine *machine;
	pthread_t signals;
	int code = pthread_create(&signals, NULL, signal_thread, vmm);

	if (code)
		return error_set_errno(err, code, "can't start a thread for signals");
	config.console_output = console_output;
	config.console_room = console_room;
	config.console_opaque = vmm->console;
	give_back_ends(vmm, &config);
	int status = make_machine(vmm, &machine, &config, err);
	if (status == 0)
		status = run_lives(vmm, machine, &config, ret_result, err);
	/* A reader that takes nothing can be given up by a signal until here. */
	console_flush(vmm->console);
	pthread_kill(signals, SIGUSR2);
	pthread_join(signals, NULL);
	return status;
}

/* The whole story, with the console open. */
static int tell_all(struct vmm *vmm, struct machine_result *ret_result, struct error *err)
{
	int status = start_io(vmm, err);

	if (status < 0)
		return status;
	status = vmm_hold_create(&vmm->hold, pause_or_resume);
	if (status < 0)
		error_set_errno(err, -status, "can't start a thread that pauses the machine");
	else
		status = open_back_ends(vmm, err);
	if (status == 0)
		status = tell(vmm, ret_result, err);
	close_back_ends(vmm);
	end_io(vmm);
	vmm_hold_free(vmm->hold);
	return status;
}

/* All that the process may have: the guest's files, connections and sockets of many programs are ours, and must not
 * keep the next caller of a socket out. */
static void raise_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)!setrlimit(RLIMIT_NOFILE, &limit);
}

int vmm_run(const struct vmm_config *config)
{
	struct vmm vmm = {.config = config, .lock = PTHREAD_MUTEX_INITIALIZER};
	struct machine_result result = {.end = MACHINE_FAILED};
	struct error err = {0};
	sigset_t set;

	/* Blocked in every thread from here on; signal_thread takes them. */
	signals_of_interest(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* A guest that writes past RLIMIT_FSIZE gets EFBIG. */
	signal(SIGXFSZ, SIG_IGN);
	raise_descriptors();
	vmm_current_init(&vmm.current);
	if (console_open(&vmm.console, config->links.console, user_quits, &vmm, &err) < 0)
		return complain(&err);
	int status = tell_all(&vmm, &result, &err);
	console_close(vmm.console);
	vmm_current_done(&vmm.current);
	if (status < 0)
		return complain(&err);
	if (worth_saying(result.end))
		fprintf(stderr, "lodge: %s\n", result.text);
	return exit_status(&vmm, &result);
}
