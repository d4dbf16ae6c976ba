/*
 * One machine in this process: see run.h.
 *
 * Three kinds of threads besides the machine's own: the caller's waits for the machine, one feeds the
 * console from stdin, one waits for signals (they are blocked everywhere else).
 */
#include "vmm/run.h"
#include "backend/terminal.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/util.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define OUTPUT_CHUNK_BYTES 256u /* what a descriptor that polls writable takes without waiting */

struct vmm {
	const struct vmm_config *config;
	struct terminal *terminal;
	pthread_mutex_t lock; /* machine and what follows */
	pthread_cond_t room;
	struct machine *machine; /* NULL between two lives */
	bool has_room, quit;
	int signal; /* that asked for the end */
	bool user_quit;
	int end_fd; /* readable from then on */
	_Atomic bool output_broken;
};

static const char help_text[] = "\r\nlodge: Ctrl-A x ends the machine, Ctrl-A Ctrl-A types Ctrl-A\r\n";

/* ---- console ---- */

/* Wait until stdout takes more. A reader that does not read stops the guest, but not the monitor: false
 * when the machine is to end. */
static bool output_wait(struct vmm *vmm)
{
	struct pollfd fds[2] = {
		{.fd = STDOUT_FILENO, .events = POLLOUT},
		{.fd = vmm->end_fd, .events = POLLIN},
	};

	while (poll(fds, 2, -1) < 0)
		if (errno != EINTR)
			return false;
	return fds[0].revents;
}

static void console_output(void *opaque, const uint8_t *bytes, size_t count)
{
	struct vmm *vmm = opaque;

	while (count && !vmm->output_broken && output_wait(vmm)) {
		ssize_t put = write(STDOUT_FILENO, bytes, MIN(count, OUTPUT_CHUNK_BYTES));
		if (put < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (put <= 0) {
			vmm->output_broken = true; /* nobody reads: the guest runs on */
			return;
		}
		bytes += put;
		count -= (size_t)put;
	}
}

static void console_room(void *opaque)
{
	struct vmm *vmm = opaque;

	pthread_mutex_lock(&vmm->lock);
	vmm->has_room = true;
	pthread_cond_signal(&vmm->room);
	pthread_mutex_unlock(&vmm->lock);
}

/* Hand input to the guest, waiting for room as long as it takes. False: the end. */
static bool feed(struct vmm *vmm, const uint8_t *bytes, size_t count)
{
	pthread_mutex_lock(&vmm->lock);
	while (count && !vmm->quit) {
		size_t took = 0;

		vmm->has_room = false;
		if (vmm->machine) {
			/* Unlocked: room() may be called from inside. The machine stays until quit. */
			struct machine *machine = vmm->machine;
			pthread_mutex_unlock(&vmm->lock);
			took = machine_console_input(machine, bytes, count);
			pthread_mutex_lock(&vmm->lock);
		}
		bytes += took;
		count -= took;
		while (count && !took && !vmm->has_room && !vmm->quit)
			pthread_cond_wait(&vmm->room, &vmm->lock);
	}
	bool go_on = !vmm->quit;
	pthread_mutex_unlock(&vmm->lock);
	return go_on;
}

static void ask_to_end(struct vmm *vmm, int signal_number)
{
	const uint64_t one = 1;

	(void)!write(vmm->end_fd, &one, sizeof(one));
	pthread_mutex_lock(&vmm->lock);
	vmm->signal = signal_number;
	vmm->user_quit = signal_number == 0;
	if (vmm->machine)
		machine_stop(vmm->machine);
	pthread_mutex_unlock(&vmm->lock);
}

static bool quitting(struct vmm *vmm)
{
	AUTO_LOCK(&vmm->lock);
	return vmm->quit;
}

static void *input_thread(void *opaque)
{
	struct vmm *vmm = opaque;
	uint8_t buf[256];

	for (;;) {
		enum terminal_command command;
		int got = terminal_read(vmm->terminal, buf, sizeof(buf), &command);

		/* At the end of the input the guest simply runs on. */
		if (got < 0 || quitting(vmm))
			return NULL;
		if (command == TERMINAL_QUIT)
			ask_to_end(vmm, 0);
		else if (command == TERMINAL_HELP)
			console_output(vmm, (const uint8_t *)help_text, sizeof(help_text) - 1);
		if (got > 0 && !feed(vmm, buf, (size_t)got))
			return NULL;
	}
}

/* ---- signals ---- */

static void signals_of_interest(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGHUP);
	sigaddset(set, SIGQUIT);
	sigaddset(set, SIGUSR2); /* our own: the thread's end */
}

static void *signal_thread(void *opaque)
{
	struct vmm *vmm = opaque;
	sigset_t set;
	int number;

	signals_of_interest(&set);
	while (sigwait(&set, &number) == 0 && number != SIGUSR2)
		ask_to_end(vmm, number);
	return NULL;
}

/* ---- the machine's lives ---- */

static void print_stats(struct machine *machine, unsigned cpus)
{
	for (unsigned i = 0; i < cpus; i++) {
		struct engine_counters c;

		machine_counters(machine, i, &c);
		fprintf(stderr,
			"lodge: vCPU %u: %" PRIu64 " instructions, %" PRIu64 " blocks decoded, %" PRIu64
			" flushes, %" PRIu64 " exits, %" PRIu64 " interrupts, %" PRIu64
			" exceptions, %" PRIu64 " MMIO, %" PRIu64 " port I/O, %" PRIu64 " emulated\n",
			i, c.instructions, c.blocks_decoded, c.block_flushes, c.exits, c.interrupts,
			c.exceptions, c.mmio, c.pio, c.emulated);
	}
}

static void publish(struct vmm *vmm, struct machine *machine)
{
	AUTO_LOCK(&vmm->lock);
	vmm->machine = machine;
	vmm->has_room = true;
	pthread_cond_signal(&vmm->room);
	/* A signal that came while there was no machine. */
	if (machine && (vmm->signal || vmm->user_quit))
		machine_stop(machine);
}

/* From creation to end. Errors: could not be started. */
static int one_life(struct vmm *vmm, struct machine *machine, struct machine_result *ret_result,
	struct error *err)
{
	int status = machine_start(machine, err);

	if (status < 0)
		return status;
	publish(vmm, machine);
	machine_wait(machine, ret_result);
	if (vmm->config->stats)
		print_stats(machine, vmm->config->machine.cpus);
	return 0;
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

/* The input thread may be inside the machine: it is stopped before a machine is freed. */
struct threads {
	pthread_t input, signals;
	bool has_input, has_signals;
};

static int threads_start(struct vmm *vmm, struct threads *threads, struct error *err)
{
	vmm->quit = false;
	int status = pthread_create(&threads->signals, NULL, signal_thread, vmm);
	threads->has_signals = status == 0;
	if (status == 0) {
		status = pthread_create(&threads->input, NULL, input_thread, vmm);
		threads->has_input = status == 0;
	}
	return status ? error_set_errno(err, status, "can't start the console's threads") : 0;
}

static void threads_stop(struct vmm *vmm, struct threads *threads)
{
	pthread_mutex_lock(&vmm->lock);
	vmm->quit = true;
	vmm->machine = NULL;
	pthread_cond_signal(&vmm->room);
	pthread_mutex_unlock(&vmm->lock);
	terminal_wake(vmm->terminal);
	if (threads->has_input)
		pthread_join(threads->input, NULL);
	if (threads->has_signals) {
		pthread_kill(threads->signals, SIGUSR2);
		pthread_join(threads->signals, NULL);
	}
}

static int complain(struct error *err)
{
	fprintf(stderr, "lodge: %s\n", err->text);
	return VMM_EXIT_FAILURE;
}

/* Takes `machine` over. */
static int run_lives(struct vmm *vmm, struct machine *machine, struct machine_config *config)
{
	struct machine_result result = { .end = MACHINE_FAILED };
	struct error err = { 0 };
	int status;

	do {
		struct threads threads = { 0 };

		status = threads_start(vmm, &threads, &err);
		if (status == 0)
			status = one_life(vmm, machine, &result, &err);
		threads_stop(vmm, &threads);
		machine_free(machine);
		machine = NULL;
		if (status < 0 || result.end != MACHINE_RESET || vmm->config->exit_on_reboot)
			break;
		status = machine_create(&machine, config, &err);
	} while (status == 0);

	terminal_close(vmm->terminal);
	if (status < 0)
		return complain(&err);
	if (worth_saying(result.end))
		fprintf(stderr, "lodge: %s\n", result.text);
	return exit_status(vmm, &result);
}

/* The machine is made before the terminal changes, so that mistakes in its configuration are told on an
 * ordinary one. */
static int make_and_run(struct vmm *vmm, struct machine_config *config)
{
	struct machine *machine;
	struct error err = { 0 };

	if (machine_create(&machine, config, &err) < 0)
		return complain(&err);
	if (terminal_open(&vmm->terminal, &err) < 0) {
		machine_free(machine);
		return complain(&err);
	}
	return run_lives(vmm, machine, config);
}

int vmm_run(const struct vmm_config *config)
{
	struct vmm vmm = { .config = config, .lock = PTHREAD_MUTEX_INITIALIZER,
		.room = PTHREAD_COND_INITIALIZER };
	struct machine_config machine_config = config->machine;
	struct error err = { 0 };
	sigset_t set;

	vmm.end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vmm.end_fd < 0) {
		error_set_errno(&err, errno, "can't make an event descriptor");
		return complain(&err);
	}
	machine_config.console_output = console_output;
	machine_config.console_room = console_room;
	machine_config.console_opaque = &vmm;
	/* Blocked in every thread from here on; signal_thread takes them. */
	signals_of_interest(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	int status = make_and_run(&vmm, &machine_config);
	close(vmm.end_fd);
	return status;
}
