/*
 * lodge machine: the verbs that tell a running machine things, by its control socket (docs/control.md).
 */
#include "api/client.h"
#include "backend/disk/nbd.h"
#include "base/base64.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/number.h"
#include "cli/cli.h"
#include "cli/machine.h"
#include "host/running.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define CALL_MS	  60000 /* longer than any call takes */
#define GLANCE_MS 1000
#define END_MS	  20000

DEFINE_AUTO(json, json_t *, json_decref)

/* Takes the request over. What went wrong has been said; NULL then. */
static json_t *ask_at(int fd, const char *machine, json_t *taken)
{
	CLEANUP(cleanup_json) json_t *request = taken;
	json_t *reply;
	struct error err;

	if (!request)
		error_set(&err, EINVAL, "what was given is no UTF-8, which all that a machine is told must be");
	else if (api_ask(fd, request, CALL_MS, &reply, &err) == 0)
		return reply;
	error_prefix(&err, "%s", machine);
	cli_complain(&err);
	return NULL;
}

static json_t *ask(const char *machine, json_t *request)
{
	struct error err;
	AUTO_CLOSE int fd = running_connect(machine, &err);

	if (fd >= 0)
		return ask_at(fd, machine, request);
	json_decref(request);
	cli_complain(&err);
	return NULL;
}

static void print_json(const json_t *reply)
{
	json_dumpf(reply, stdout, JSON_COMPACT);
	putchar('\n');
}

static const char *text_in(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));

	return text ? text : "?";
}

static uint64_t number_in(const json_t *object, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(object, name));
}

/* ---- status ---- */

static void print_state(const json_t *reply)
{
	const json_t *why = json_object_get(reply, "why");
	const char *between = " (";
	const json_t *reason;
	size_t i;

	printf("%s", text_in(reply, "state"));
	json_array_foreach(why, i, reason)
	{
		printf("%s%s", between, json_string_value(reason));
		between = ", ";
	}
	puts(json_array_size(why) ? ")" : "");
}

static void print_status(const json_t *reply)
{
	const json_t *balloon = json_object_get(reply, "balloon");

	printf("%-9s", "state");
	print_state(reply);
	printf("%-9s%s\n", "engine", text_in(reply, "engine"));
	printf("%-9s%" PRIu64 "\n", "vCPUs", number_in(reply, "cpus"));
	printf("%-9s%" PRIu64 " MiB\n", "memory", number_in(reply, "memory_bytes") >> 20);
	if (json_object_get(reply, "uptime_ms"))
		printf("%-9s%.1f s\n", "uptime", (double)number_in(reply, "uptime_ms") / 1000);
	if (balloon)
		printf("%-9s%" PRIu64 " MiB of %" PRIu64 "\n", "balloon",
			number_in(balloon, "actual_bytes") >> 20,
			number_in(balloon, "target_bytes") >> 20);
	const json_t *one;
	size_t i;
	json_array_foreach(json_object_get(reply, "attached"), i, one)
		printf("%-9s%s (%s)\n", "attached", text_in(one, "device"),
			text_in(one, json_object_get(one, "disk") ? "disk" : "net"));
	printf("%-9s%" PRIu64 "\n", "process", number_in(reply, "pid"));
}

int machine_status(const struct machine_args *args)
{
	CLEANUP(cleanup_json)
	json_t *reply = ask(args->word[0], json_pack("{s:s}", "do", "status"));

	if (!reply)
		return EXIT_FAILURE;
	if (args->json)
		print_json(reply);
	else
		print_status(reply);
	return 0;
}

void machine_state(const char *name, char state[static 16])
{
	CLEANUP(cleanup_json) json_t *request = json_pack("{s:s}", "do", "status");
	CLEANUP(cleanup_json) json_t *reply = NULL;
	struct error err;
	AUTO_CLOSE int fd = running_connect(name, &err);

	/* Who has its socket and says nothing runs, too. */
	strcpy(state, fd < 0 ? "stopped" : "running");
	if (fd >= 0 && request && api_ask(fd, request, GLANCE_MS, &reply, NULL) == 0)
		snprintf(state, 16, "%s", text_in(reply, "state"));
}

/* ---- pause, resume, stop ---- */

static int pause_or_resume(const struct machine_args *args, const char *call, const char *expected)
{
	CLEANUP(cleanup_json) json_t *reply = ask(args->word[0], json_pack("{s:s}", "do", call));

	if (!reply)
		return EXIT_FAILURE;
	if (args->json) {
		print_json(reply);
	} else if (strcmp(text_in(reply, "state"), expected)) {
		printf("%s is ", args->word[0]);
		print_state(reply);
	}
	return 0;
}

int machine_pause_verb(const struct machine_args *args)
{
	return pause_or_resume(args, "pause", "paused");
}

int machine_resume_verb(const struct machine_args *args)
{
	return pause_or_resume(args, "resume", "running");
}

/* The machine's process; -1: not to be seen from here. */
static int open_process(int fd)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.pid <= 0)
		return -1;
	return pidfd_open(peer.pid, 0);
}

/* Returns when it has ended, so that a machine of its name can begin. */
int machine_stop_verb(const struct machine_args *args)
{
	struct error err;
	AUTO_CLOSE int fd = running_connect(args->word[0], &err);

	if (fd < 0)
		return cli_complain(&err);
	AUTO_CLOSE int process = open_process(fd);
	CLEANUP(cleanup_json)
	json_t *reply = ask_at(fd, args->word[0], json_pack("{s:s}", "do", "stop"));
	if (!reply)
		return EXIT_FAILURE;
	struct pollfd wait = {.fd = process, .events = POLLIN};
	if (api_wait_end(fd, END_MS) < 0 || (process >= 0 && poll(&wait, 1, END_MS) == 0))
		return cli_refuse("%s has not ended yet", args->word[0]), EXIT_FAILURE;
	if (args->json)
		print_json(reply);
	return 0;
}

/* Nothing is printed of what went well. */
static int just_do(const struct machine_args *args, json_t *request)
{
	CLEANUP(cleanup_json) json_t *reply = ask(args->word[0], request);

	if (reply && args->json)
		print_json(reply);
	return reply ? 0 : EXIT_FAILURE;
}

int machine_poweroff(const struct machine_args *args)
{
	return just_do(args, json_pack("{s:s}", "do", "poweroff"));
}

int machine_reset_verb(const struct machine_args *args)
{
	return just_do(args, json_pack("{s:s}", "do", "reset"));
}

/* ---- attach, detach ---- */

/* FILE,... with the file as it is called from everywhere. Commas in a name are doubled. Caller frees; NULL: no memory. */
static char *make_absolute(const char *disk)
{
	AUTO_FREE char *here = NULL;
	char *whole, *to;

	if (*disk == '/' || nbd_file_is_uri(disk))
		return strdup(disk);
	here = getcwd(NULL, 0);
	whole = here ? malloc(2 * strlen(here) + 1 + strlen(disk) + 1) : NULL;
	if (!whole)
		return NULL;
	to = whole;
	for (const char *c = here; *c; c++) {
		*to++ = *c;
		if (*c == ',')
			*to++ = ',';
	}
	*to++ = '/';
	strcpy(to, disk);
	return whole;
}

int machine_attach(const struct machine_args *args)
{
	AUTO_FREE char *disk = args->disk ? make_absolute(args->disk) : NULL;

	if (!args->disk == !args->net)
		return cli_misuse("machine attach wants one of --disk and --net");
	if (args->disk && !disk)
		return cli_refuse("no memory, or no working directory"), EXIT_FAILURE;
	CLEANUP(cleanup_json)
	json_t *reply = ask(args->word[0], json_pack("{s:s,s:s*,s:s*,s:s*}", "do", "attach", "disk",
						   disk, "net", args->net, "device", args->device));
	if (!reply)
		return EXIT_FAILURE;
	if (args->json)
		print_json(reply);
	else
		puts(text_in(reply, "device"));
	return 0;
}

int machine_detach(const struct machine_args *args)
{
	return just_do(args, json_pack("{s:s,s:s}", "do", "detach", "device", args->word[1]));
}

/* ---- screenshot ---- */

static int write_file(const char *path, const uint8_t *bytes, size_t count)
{
	AUTO_FCLOSE FILE *file = fopen(path, "wbe");

	if (file && fwrite(bytes, 1, count, file) == count && fflush(file) == 0)
		return 0;
	return cli_refuse("can't write %s: %s", path, strerror(errno)), EXIT_FAILURE;
}

int machine_screenshot(const struct machine_args *args)
{
	AUTO_FREE uint8_t *png = NULL;
	size_t count;
	CLEANUP(cleanup_json)
	json_t *reply = ask(args->word[0], json_pack("{s:s}", "do", "screenshot"));

	if (!reply)
		return EXIT_FAILURE;
	if (base64_decode(text_in(reply, "png"), &png, &count) < 0)
		return cli_refuse("the machine's answer makes no sense"), EXIT_FAILURE;
	return write_file(args->word[1], png, count);
}

/* ---- balloon ---- */

static void print_balloon(const json_t *reply)
{
	const json_t *guest = json_object_get(reply, "guest"), *value;
	const char *name;

	printf("target_bytes %" PRIu64 "\nactual_bytes %" PRIu64 "\n",
		number_in(reply, "target_bytes"), number_in(reply, "actual_bytes"));
	if (!json_is_true(json_object_get(reply, "driver")))
		puts("(the guest has no driver for it)");
	json_object_foreach((json_t *)guest, name, value)
		printf("guest %s %" JSON_INTEGER_FORMAT "\n", name, json_integer_value(value));
}

int machine_balloon(const struct machine_args *args)
{
	json_t *request = json_pack("{s:s}", "do", "balloon");
	uint64_t bytes;

	if (args->count > 1 && size_parse(args->word[1], &bytes) < 0) {
		json_decref(request);
		return cli_misuse("balloon '%s': give a size such as 256M, or 0", args->word[1]);
	}
	if (args->count > 1)
		json_object_set_new(request, "target_bytes",
			json_integer((json_int_t)MIN(bytes, (uint64_t)INT64_MAX)));
	CLEANUP(cleanup_json) json_t *reply = ask(args->word[0], request);
	if (!reply)
		return EXIT_FAILURE;
	if (args->json)
		print_json(reply);
	else if (args->count == 1)
		print_balloon(reply);
	return 0;
}
