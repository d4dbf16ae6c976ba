/*
 * Boots a kernel in a machine with ports, and does what the guest's console says: a line "@plug NAME" plugs an entropy
 * device in, "@unplug NAME" asks for it back. What came of it is on standard output too, in lines that begin with "@".
 *
 *	plug ENGINE KERNEL INITRD CMDLINE
 *
 * Exit status: 0 when the guest powers off.
 */
#include "base/error.h"
#include "base/loop.h"
#include "machine/machine.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PORTS	   2
#define UNPLUG_MS  30000
#define LINE_BYTES 256

struct plug {
	struct loop *io;
	struct machine *machine;
	int pipe[2]; /* lines for the main thread, each of LINE_BYTES */
	char line[LINE_BYTES];
	size_t length;
	struct machine_result result;
};

static void tell(struct plug *p, const char *text)
{
	char line[LINE_BYTES];

	snprintf(line, sizeof(line), "%s", text);
	if (write(p->pipe[1], line, sizeof(line)) != sizeof(line))
		abort();
}

/* On a vCPU's thread: must not call back. */
static void console_output(void *opaque, const uint8_t *bytes, size_t count)
{
	struct plug *p = opaque;

	fwrite(bytes, 1, count, stdout);
	fflush(stdout);
	for (size_t i = 0; i < count; i++) {
		if (bytes[i] != '\n' && bytes[i] != '\r' && p->length < sizeof(p->line) - 1) {
			p->line[p->length++] = (char)bytes[i];
			continue;
		}
		p->line[p->length] = 0;
		p->length = 0;
		if (p->line[0] == '@')
			tell(p, p->line);
	}
}

static void console_room(void *opaque)
{
}

static void *run_io(void *opaque)
{
	loop_run(((struct plug *)opaque)->io);
	return NULL;
}

static void *wait_for_end(void *opaque)
{
	struct plug *p = opaque;

	machine_wait(p->machine, &p->result);
	tell(p, "@end");
	return NULL;
}

static void obey(struct plug *p, const char *line)
{
	static const struct machine_config with = { .rng = true };
	char name[LINE_BYTES];
	struct error err = { 0 };
	int status;

	if (sscanf(line, "@plug %255s", name) == 1)
		status = machine_device_plug(p->machine, name, &with, &err);
	else if (sscanf(line, "@unplug %255s", name) == 1)
		status = machine_device_unplug(p->machine, name, UNPLUG_MS, &err);
	else
		return;
	printf("\n@%s: %s\n", line, status == 0 ? "done" : err.text);
	fflush(stdout);
}

static int serve(struct plug *p)
{
	char line[LINE_BYTES];
	pthread_t waiter;

	if (pthread_create(&waiter, NULL, wait_for_end, p))
		return 1;
	while (read(p->pipe[0], line, sizeof(line)) == sizeof(line) && strcmp(line, "@end"))
		obey(p, line);
	pthread_join(waiter, NULL);
	return p->result.end == MACHINE_POWERED_OFF ? 0 : 1;
}

int main(int argc, char **argv)
{
	struct plug p = { 0 };
	struct error err = { 0 };
	pthread_t io;

	if (argc != 5 || pipe(p.pipe) < 0 || loop_create(&p.io) < 0 ||
		pthread_create(&io, NULL, run_io, &p))
		return 2;
	const struct boot_file initrd = { .path = argv[3] };
	const struct machine_config config = {
		.name = "machine",
		.engine = engine_find(argv[1]),
		.cpus = 2,
		.memory_bytes = MIB(512),
		.boot = { .kernel.path = argv[2], .initrd = &initrd, .initrd_count = 1,
			.cmdline = argv[4] },
		.console_output = console_output,
		.console_room = console_room,
		.console_opaque = &p,
		.io = p.io,
		.hotplug_ports = PORTS,
	};
	int status = machine_create(&p.machine, &config, &err);
	if (status == 0)
		status = machine_start(p.machine, &err);
	if (status < 0)
		fprintf(stderr, "%s\n", err.text);
	else
		status = serve(&p);
	machine_free(p.machine);
	loop_stop(p.io);
	pthread_join(io, NULL);
	loop_free(p.io);
	return status ? 1 : 0;
}
