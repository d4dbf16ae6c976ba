/*
 * The control socket: see control.h.
 *
 * Invariant: `calls` counts the calls that were begun and not answered. A thread of one touches the loop only once its
 * loop_call is posted, and is joined before the call is answered.
 */
#include "vmm/control.h"

#include "api/server.h"
#include "backend/listener.h"
#include "backend/screenshot.h"
#include "base/base64.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/loop.h"
#include "device/virtio/balloon.h"
#include "vmm/current.h"
#include "vmm/plug.h"
#include "vmm/run.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#define TELL_NS	  (1 * NS_PER_SEC) /* that a guest has to tell its statistics */
#define GLANCE_US 5000
#define DETACH_MS 30000 /* Linux waits for 5 seconds whether the button is pressed again */

struct vmm_control {
	struct vmm_control_config config;
	struct listener *listener;
	struct api_server *server;
	struct vmm_plug *plug;
	int status; /* of opening it */
	struct error *err;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* Under `lock`. */
	unsigned calls;
	bool has_target; /* of the balloon, by a call */
	uint64_t target_bytes;
};

/* One that was asked for. */
struct call {
	struct vmm_control *control;
	struct api_client *client;
	const struct api_request *request;
	struct machine *machine; /* taken; NULL: none, for a call that does without */
	json_t *reply;		 /* {"ok":true}, for what there is to tell */
	struct error err;
	int status;
	struct loop_call done;
	pthread_t thread; /* of one that waits */
};

/* ---- what is told ---- */

/* NULL values are ignored, as all of jansson does; what is not there was no memory's. */
static void tell_number(json_t *object, const char *name, uint64_t value)
{
	json_object_set_new(
		object, name, json_integer((json_int_t)MIN(value, (uint64_t)INT64_MAX)));
}

static void tell_text(json_t *object, const char *name, const char *text)
{
	json_object_set_new(object, name, json_string(text));
}

static json_t *reasons_of(unsigned paused)
{
	static const struct {
		unsigned reason;
		const char *name;
	} names[] = {{MACHINE_PAUSE_ASKED, "asked"}, {MACHINE_PAUSE_WATCHDOG, "watchdog"},
		{MACHINE_PAUSE_DISK, "disk"}};
	json_t *reasons = json_array();

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (paused & names[i].reason)
			json_array_append_new(reasons, json_string(names[i].name));
	return reasons;
}

/* A moment's pause for a device is none. */
static void tell_state(const struct call *call)
{
	const unsigned paused =
		call->machine ? machine_paused(call->machine) & ~(unsigned)MACHINE_PAUSE_PLUG : 0;

	tell_text(call->reply, "state",
		!call->machine ? "starting"
		: paused       ? "paused"
			       : "running");
	if (paused)
		json_object_set_new(call->reply, "why", reasons_of(paused));
}

static void tell_balloon(json_t *object, const struct balloon_statistics *s)
{
	tell_number(object, "target_bytes", s->target_bytes);
	tell_number(object, "actual_bytes", s->actual_bytes);
}

/* What the guest told, of what it may. */
static void tell_statistics(json_t *object, const struct balloon_statistics *s)
{
	static const char *const names[BALLOON_STATISTICS] = {
		[BALLOON_SWAP_IN] = "swap_in_bytes",
		[BALLOON_SWAP_OUT] = "swap_out_bytes",
		[BALLOON_MAJOR_FAULTS] = "major_faults",
		[BALLOON_MINOR_FAULTS] = "minor_faults",
		[BALLOON_FREE] = "free_bytes",
		[BALLOON_TOTAL] = "total_bytes",
		[BALLOON_AVAILABLE] = "available_bytes",
		[BALLOON_CACHES] = "cache_bytes",
		[BALLOON_HUGE_PAGES] = "huge_pages",
		[BALLOON_HUGE_FAILURES] = "huge_page_failures",
	};

	for (unsigned i = 0; i < BALLOON_STATISTICS; i++)
		if (s->told >> i & 1)
			tell_number(object, names[i], s->value[i]);
}

static void tell_attached(void *opaque, const char *name, bool is_net, const char *text)
{
	json_array_append_new(
		opaque, json_pack("{s:s,s:s}", "device", name, is_net ? "net" : "disk", text));
}

/* ---- the calls ---- */

static int do_status(struct call *call)
{
	struct vmm_control *control = call->control;
	const struct machine_config *config = &control->config.config->machine;
	struct balloon_statistics balloon;
	json_t *reply = call->reply;

	tell_text(reply, "version", LODGE_VERSION);
	tell_text(reply, "name", config->name);
	tell_number(reply, "pid", (uint64_t)getpid());
	tell_state(call);
	tell_text(reply, "engine", config->engine->name);
	tell_number(reply, "cpus", config->cpus);
	tell_number(reply, "memory_bytes", config->memory_bytes);
	json_t *attached = json_array();
	vmm_plug_each(control->plug, tell_attached, attached);
	json_object_set_new(reply, "attached", attached);
	if (!call->machine)
		return 0;
	tell_number(reply, "uptime_ms",
		(clock_monotonic_ns() - control->config.current->since_ns) / NS_PER_MS);
	if (machine_balloon_statistics(call->machine, &balloon) == 0) {
		json_t *object = json_object();

		tell_balloon(object, &balloon);
		json_object_set_new(reply, "balloon", object);
	}
	return 0;
}

static int do_pause(struct call *call)
{
	machine_pause(call->machine);
	tell_state(call);
	return 0;
}

/* A watchdog's pause waits for somebody to look at it, who has done so now. */
static int do_resume(struct call *call)
{
	machine_resume_for(call->machine, MACHINE_PAUSE_ASKED | MACHINE_PAUSE_WATCHDOG);
	tell_state(call);
	return 0;
}

/* Until the guest has told anew, but no longer than it takes one that can. */
static int ask_guest(struct call *call, struct balloon_statistics *ret)
{
	struct machine *machine = call->machine;
	const uint64_t begin_ns = clock_monotonic_ns();
	int status = machine_balloon_statistics(machine, ret);

	if (status < 0 || !ret->live || machine_paused(machine))
		return status;
	status = machine_balloon_poll(machine, 0);
	while (status == 0 && ret->told_ns < begin_ns &&
		clock_monotonic_ns() < begin_ns + TELL_NS &&
		!vmm_current_is_over(call->control->config.current)) {
		usleep(GLANCE_US);
		status = machine_balloon_statistics(machine, ret);
	}
	return status;
}

/* For this machine and those after it: the last of several calls counts for all. */
static int set_balloon(struct call *call, uint64_t target_bytes)
{
	struct vmm_control *control = call->control;

	AUTO_LOCK(&control->lock);
	int status = machine_balloon_set(call->machine, target_bytes);
	control->has_target |= status == 0;
	control->target_bytes = target_bytes;
	return status;
}

static void tell_guest(json_t *reply, const struct balloon_statistics *balloon)
{
	json_t *guest = json_object();

	tell_statistics(guest, balloon);
	tell_number(guest, "age_ms", (clock_monotonic_ns() - balloon->told_ns) / NS_PER_MS);
	json_object_set_new(reply, "guest", guest);
}

static int do_balloon(struct call *call)
{
	struct balloon_statistics balloon;
	uint64_t target_bytes;
	int status = 0;

	if (api_request_number(call->request, "target_bytes", &target_bytes)) {
		if (target_bytes >= call->control->config.config->machine.memory_bytes)
			return error_set(
				&call->err, EINVAL, "the guest can't give all of its memory away");
		status = set_balloon(call, target_bytes);
	}
	if (status == 0)
		status = ask_guest(call, &balloon);
	if (status < 0)
		return error_set(&call->err, -status, "the machine has no balloon");
	tell_balloon(call->reply, &balloon);
	json_object_set_new(call->reply, "driver", json_boolean(balloon.live));
	tell_number(call->reply, "inflated_bytes", balloon.inflated_bytes);
	tell_number(call->reply, "deflated_bytes", balloon.deflated_bytes);
	tell_number(call->reply, "reported_bytes", balloon.reported_bytes);
	if (balloon.told_ns)
		tell_guest(call->reply, &balloon);
	return 0;
}

static int do_attach(struct call *call)
{
	const char *disk = api_request_text(call->request, "disk"),
		   *net = api_request_text(call->request, "net");
	char name[VMM_PLUG_NAME_BYTES];

	if (!disk == !net)
		return error_set(&call->err, EINVAL, "attach wants one of disk and net");
	int status = vmm_plug_attach(call->control->plug, call->control->config.current, disk, net,
		api_request_text(call->request, "device"), name, &call->err);
	if (status == 0)
		tell_text(call->reply, "device", name);
	return status;
}

static int do_detach(struct call *call)
{
	if (machine_paused(call->machine) & ~(unsigned)MACHINE_PAUSE_PLUG)
		return error_set(&call->err, EAGAIN,
			"the machine is paused: its guest can't let go of anything");
	return vmm_plug_detach(call->control->plug, call->machine,
		api_request_text(call->request, "device"), DETACH_MS, &call->err);
}

static int do_screenshot(struct call *call)
{
	struct display display;
	AUTO_FREE char *png = NULL;
	size_t bytes = 0;

	if (!machine_display(call->machine, &display))
		return error_set(
			&call->err, ENODEV, "the machine has no screen: --vnc gives it one");
	FILE *file = open_memstream(&png, &bytes);
	bool ok = file && screenshot_put(file, &display);
	if (file)
		ok &= fclose(file) == 0;
	AUTO_FREE char *text = ok ? base64_encode((const uint8_t *)png, bytes) : NULL;
	if (!text)
		return error_set(&call->err, ENOMEM, "no memory for the picture");
	tell_text(call->reply, "png", text);
	return 0;
}

static int do_poweroff(struct call *call)
{
	machine_press_power(call->machine);
	return 0;
}

static int do_reset(struct call *call)
{
	machine_reset(call->machine);
	return 0;
}

static int do_stop(struct call *call)
{
	call->control->config.quit(call->control->config.opaque);
	return 0;
}

enum need {
	NEEDS,	      /* a machine, for which it waits; without `waits`: that there is one now */
	DOES_WITHOUT, /* if there is none now */
	BY_ITSELF,    /* takes one when it needs it */
};

static const struct {
	int (*run)(struct call *call); /* errors: with call->err filled */
	bool waits;		       /* has a thread */
	enum need need;
} calls[API_CALLS] = {
	[API_STATUS] = {do_status, .need = DOES_WITHOUT},
	[API_PAUSE] = {do_pause, .waits = true},
	[API_RESUME] = {do_resume, .waits = true},
	[API_BALLOON] = {do_balloon, .waits = true},
	[API_ATTACH] = {do_attach, .waits = true, .need = BY_ITSELF},
	[API_DETACH] = {do_detach, .waits = true},
	[API_SCREENSHOT] = {do_screenshot, .waits = true},
	[API_POWEROFF] = {do_poweroff, .waits = true},
	[API_RESET] = {do_reset, .waits = true},
	[API_STOP] = {do_stop, .need = DOES_WITHOUT},
};

/* ---- their way ---- */

static void run(struct call *call)
{
	struct vmm_current *current = call->control->config.current;
	const enum api_call_id id = call->request->call;

	if (calls[id].need != BY_ITSELF)
		call->machine =
			calls[id].waits ? vmm_current_wait(current) : vmm_current_take(current);
	if (call->machine || calls[id].need != NEEDS)
		call->status = calls[id].run(call);
	else
		call->status = error_set(&call->err, ECANCELED, "the machine has ended");
	if (call->machine)
		vmm_current_give_back(current);
}

/* On the loop. */
static void answer(struct call *call)
{
	struct vmm_control *control = call->control;

	if (call->status < 0) {
		json_decref(call->reply);
		call->reply = api_reply_error(call->err.text);
	}
	api_server_reply(call->client, call->reply);
	free(call);
	AUTO_LOCK(&control->lock);
	control->calls--;
	pthread_cond_broadcast(&control->changed);
}

/* On the loop, which the thread may still be about to wake: it is waited for, so that the loop outlives it. */
static void thread_done(void *opaque)
{
	struct call *call = opaque;

	pthread_join(call->thread, NULL);
	answer(call);
}

static void *call_thread(void *opaque)
{
	struct call *call = opaque;

	pthread_setname_np(pthread_self(), "call");
	run(call);
	loop_post(call->control->config.io, &call->done);
	return NULL;
}

static void request(void *opaque, struct api_client *client, const struct api_request *request)
{
	struct vmm_control *control = opaque;
	struct call *call = calloc(1, sizeof(*call));

	if (!call) {
		api_server_reply(client, NULL);
		return;
	}
	*call = (struct call){
		.control = control, .client = client, .request = request, .reply = api_reply_ok()};
	call->done = (struct loop_call){.fn = thread_done, .opaque = call};
	pthread_mutex_lock(&control->lock);
	control->calls++;
	pthread_mutex_unlock(&control->lock);
	int code = 0;
	if (!calls[request->call].waits)
		run(call);
	else
		code = pthread_create(&call->thread, NULL, call_thread, call);
	if (code)
		call->status =
			error_set_errno(&call->err, code, "can't start a thread for the call");
	if (code || !calls[request->call].waits)
		answer(call);
}

static void accepted(void *opaque, int fd)
{
	api_server_add(((struct vmm_control *)opaque)->server, fd);
}

void vmm_control_renew(struct vmm_control *control, struct machine *machine)
{
	if (!control)
		return;
	vmm_plug_again(control->plug, machine);
	AUTO_LOCK(&control->lock);
	/* It has one: an earlier one had. */
	if (control->has_target)
		(void)!machine_balloon_set(machine, control->target_bytes);
}

/* ---- life ---- */

static void open_there(void *opaque)
{
	struct vmm_control *control = opaque;

	control->status = listener_open(control->config.io, control->config.config->control,
		accepted, control, &control->listener, control->err);
}

int vmm_control_open(const struct vmm_control_config *config, struct vmm_control **ret_control,
	struct error *err)
{
	struct vmm_control *control = calloc(1, sizeof(*control));

	if (!control)
		return error_set(err, ENOMEM, "no memory for the control socket");
	control->config = *config;
	control->err = err;
	pthread_mutex_init(&control->lock, NULL);
	pthread_cond_init(&control->changed, NULL);
	const struct vmm_plug_config plug_config = {.io = config->io,
		.cpus = config->config->machine.cpus,
		.hold = config->hold,
		.opaque = config->opaque};
	control->plug = vmm_plug_create(&plug_config);
	int status = control->plug
			     ? api_server_create(config->io, request, control, &control->server)
			     : -ENOMEM;
	if (status < 0)
		error_set(err, ENOMEM, "no memory for the control socket");
	else
		loop_invoke(config->io, open_there, control);
	if (status < 0 || control->status < 0) {
		status = MIN(status, control->status);
		vmm_control_free(control);
		return status;
	}
	*ret_control = control;
	return 0;
}

static void end_there(void *opaque)
{
	struct vmm_control *control = opaque;

	listener_close(control->listener);
	control->listener = NULL;
	api_server_deafen(control->server);
}

void vmm_control_end(struct vmm_control *control)
{
	if (!control)
		return;
	loop_invoke(control->config.io, end_there, control);
	pthread_mutex_lock(&control->lock);
	while (control->calls)
		pthread_cond_wait(&control->changed, &control->lock);
	pthread_mutex_unlock(&control->lock);
	vmm_plug_free(control->plug);
	control->plug = NULL;
}

static void free_there(void *opaque)
{
	api_server_free(opaque);
}

void vmm_control_free(struct vmm_control *control)
{
	if (!control)
		return;
	vmm_plug_free(control->plug);
	loop_invoke(control->config.io, free_there, control->server);
	pthread_mutex_destroy(&control->lock);
	pthread_cond_destroy(&control->changed);
	free(control);
}
