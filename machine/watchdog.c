/*
 * The machine's watchdog: see watchdog.h.
 *
 * A pause is asked for by a thread of its own: it waits for the vCPUs, and they may wait for the thread that the
 * watchdog barks on.
 */
#include "machine/watchdog.h"
#include "boot/layout.h"
#include "device/pci/i6300esb.h"
#include "machine/private.h"
#include <errno.h>
#include <stdlib.h>

#define SLOT 29 /* behind the devices of devices.c */

struct watchdog {
	struct machine *machine;
	pthread_mutex_t lock;
	struct i6300esb *dog;
	struct log_limit limit;
	pthread_t pauser;
	bool pausing; /* pauser is to be joined */
};

static void *pause_thread(void *opaque)
{
	struct watchdog *watchdog = opaque;

	machine_pause_for(watchdog->machine, MACHINE_PAUSE_WATCHDOG);
	return NULL;
}

static void start_pause(struct watchdog *watchdog)
{
	/* The pause before this one is over if its thread is: the user let the machine go on. */
	if (watchdog->pausing && pthread_tryjoin_np(watchdog->pauser, NULL) != 0)
		return;
	const int code = pthread_create(&watchdog->pauser, NULL, pause_thread, watchdog);
	watchdog->pausing = code == 0;
	if (code)
		machine_end(watchdog->machine, MACHINE_FAILED, 0,
			"the watchdog barked, and there is no thread to pause the machine");
}

/* With the lock held. */
static void bark(void *opaque)
{
	struct watchdog *watchdog = opaque;
	struct machine *m = watchdog->machine;
	static const char *const done[] = {
		[MACHINE_WATCHDOG_RESET] = "the machine is reset",
		[MACHINE_WATCHDOG_POWEROFF] = "the machine is powered off",
		[MACHINE_WATCHDOG_PAUSE] = "the machine is paused",
		[MACHINE_WATCHDOG_NOTHING] = "nothing is done",
	};

	log_limited(&watchdog->limit, LOG_LEVEL_WARN, "watchdog",
		"%s: the guest no longer answers: %s", m->config.name, done[m->config.watchdog]);
	if (m->config.watchdog == MACHINE_WATCHDOG_RESET)
		machine_end(m, MACHINE_RESET, 0, "the watchdog reset the machine");
	else if (m->config.watchdog == MACHINE_WATCHDOG_POWEROFF)
		machine_end(m, MACHINE_POWERED_OFF, 0, "the watchdog powered the machine off");
	else if (m->config.watchdog == MACHINE_WATCHDOG_PAUSE)
		start_pause(watchdog);
}

static int plug(struct watchdog *watchdog)
{
	struct machine *m = watchdog->machine;
	const struct i6300esb_config config = {.bus = m->bus,
		.lock = &watchdog->lock,
		.time = machine_clock_source(m->clock),
		.bark = bark,
		.opaque = watchdog};
	int status = i6300esb_create(&config, &watchdog->dog);

	if (status == 0)
		status = pci_device_plug(
			i6300esb_function(watchdog->dog), board_pci(m->board), PCI_DEVFN(SLOT, 0));
	if (status == 0 && !m->config.boot.firmware.path)
		pci_device_assign(i6300esb_function(watchdog->dog), 0, BOOT_WATCHDOG_GPA);
	return status;
}

int watchdog_create(struct watchdog **ret_watchdog, struct machine *m, struct error *err)
{
	if (m->config.watchdog == MACHINE_WATCHDOG_OFF)
		return 0;
	if (!board_pci(m->board))
		return error_set(err, ENOTSUP,
			"the watchdog is a PCI device: a machine without PCI has none");
	struct watchdog *watchdog = calloc(1, sizeof(*watchdog));
	if (!watchdog)
		return error_set(err, ENOMEM, "no memory for the watchdog");
	watchdog->machine = m;
	pthread_mutex_init(&watchdog->lock, NULL);
	int status = plug(watchdog);
	if (status < 0) {
		watchdog_free(watchdog);
		return error_set_errno(err, -status, "can't add the watchdog");
	}
	*ret_watchdog = watchdog;
	return 0;
}

void watchdog_free(struct watchdog *watchdog)
{
	if (!watchdog)
		return;
	i6300esb_free(watchdog->dog);
	if (watchdog->pausing)
		pthread_join(watchdog->pauser, NULL);
	pthread_mutex_destroy(&watchdog->lock);
	free(watchdog);
}
