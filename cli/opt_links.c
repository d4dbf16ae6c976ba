/*
 * --console, --port, --vsock, --pmem, --balloon and --watchdog of lodge run: see opt_links.h, docs/devices.md.
 */
#include "cli/opt_links.h"
#include "base/error.h"
#include "base/number.h"
#include "cli/cli.h"
#include "device/virtio/console.h"
#include "device/virtio/vsock.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CID 3

/* A copy that lives as long as the options; NULL: no memory. */
static char *copy(struct opt_links *links, const char *text)
{
	char *copied = strdup(text);

	if (copied)
		links->text[links->texts++] = copied;
	return copied;
}

int opt_links_console(struct opt_links *links, const char *value, struct error *err)
{
	links->spec.console = strcmp(value, "virtio") == 0;
	if (!links->spec.console && strcmp(value, "serial"))
		return error_set(err, EINVAL, "--console '%s': give serial or virtio", value);
	return 0;
}

/* ---- --port ---- */

static bool is_port_name(const char *name)
{
	for (const char *c = name; *c; c++)
		if (*c <= ' ' || *c > '~' || *c == '/')
			return false;
	return *name && strlen(name) <= VIRTIO_CONSOLE_NAME_MAX;
}

/* name=NAME,path=PATH: a path may hold commas, so it comes last. */
int opt_links_port(struct opt_links *links, const char *value, struct error *err)
{
	struct vmm_links_spec *spec = &links->spec;
	char *comma;

	if (spec->ports == VMM_PORTS_MAX)
		return error_set(err, EINVAL, "more than %d --port", VMM_PORTS_MAX);
	char *text = copy(links, value);
	if (!text)
		return error_set(err, ENOMEM, "no memory for --port");
	comma = strchr(text, ',');
	if (strncmp(text, "name=", 5) || !comma || strncmp(comma, ",path=", 6) || !comma[6])
		return error_set(err, EINVAL, "--port '%s': give name=NAME,path=SOCKET", value);
	*comma = 0;
	if (!is_port_name(text + 5))
		return error_set(err, EINVAL,
			"--port: '%s' is no name of a port: 1 to %d printable characters but '/'",
			text + 5, VIRTIO_CONSOLE_NAME_MAX);
	for (unsigned i = 0; i < spec->ports; i++)
		if (strcmp(spec->port[i].name, text + 5) == 0)
			return error_set(err, EINVAL, "--port: two are called '%s'", text + 5);
	spec->port[spec->ports].name = text + 5;
	spec->port[spec->ports++].path = comma + 6;
	return 0;
}

/* ---- --vsock ---- */

int opt_links_vsock(struct opt_links *links, const char *value, struct error *err)
{
	uint64_t cid = DEFAULT_CID;
	char *text, *comma;

	if (links->spec.vsock_path)
		return error_set(err, EINVAL, "a machine has one --vsock");
	text = copy(links, value);
	if (!text)
		return error_set(err, ENOMEM, "no memory for --vsock");
	comma = strrchr(text, ',');
	if (comma && strncmp(comma, ",cid=", 5) == 0) {
		*comma = 0;
		if (number_parse(comma + 5, VSOCK_CID_FIRST, VSOCK_CID_LAST, &cid) < 0)
			return error_set(err, EINVAL,
				"--vsock: '%s' is no guest's address: give %d to %u", comma + 5,
				VSOCK_CID_FIRST, VSOCK_CID_LAST);
	}
	if (!*text)
		return error_set(err, EINVAL, "--vsock '%s': give PATH or PATH,cid=N", value);
	links->spec.vsock_path = text;
	links->spec.vsock_cid = (uint32_t)cid;
	return 0;
}

/* ---- --pmem ---- */

int opt_links_pmem(struct opt_links *links, const char *value, struct error *err)
{
	static const struct {
		const char *name;
		enum memory_file_mode mode;
	} modes[] = {{"ro", MEMORY_FILE_READONLY}, {"cow", MEMORY_FILE_PRIVATE},
		{"rw", MEMORY_FILE_SHARED}};
	struct vmm_links_spec *spec = &links->spec;
	enum memory_file_mode mode = MEMORY_FILE_SHARED;

	if (spec->pmems == VMM_PMEMS_MAX)
		return error_set(err, EINVAL, "more than %d --pmem", VMM_PMEMS_MAX);
	char *text = copy(links, value);
	if (!text)
		return error_set(err, ENOMEM, "no memory for --pmem");
	char *comma = strrchr(text, ',');
	for (unsigned i = 0; comma && i < ARRAY_SIZE(modes); i++)
		if (strcmp(comma + 1, modes[i].name) == 0) {
			mode = modes[i].mode;
			*comma = 0;
			break;
		}
	if (!*text)
		return error_set(err, EINVAL, "--pmem '%s': give FILE, FILE,ro or FILE,cow", value);
	spec->pmem[spec->pmems].path = text;
	spec->pmem[spec->pmems++].mode = mode;
	return 0;
}

/* ---- --balloon ---- */

int opt_links_balloon(struct opt_links *links, const char *value, struct error *err)
{
	links->no_balloon = strcmp(value, "off") == 0;
	links->balloon_bytes = 0;
	if (links->no_balloon || strcmp(value, "on") == 0)
		return 0;
	if (size_parse(value, &links->balloon_bytes) < 0)
		return error_set(err, EINVAL,
			"--balloon '%s': give on, off or how much it takes, such as 256M", value);
	return 0;
}

int opt_links_watchdog(struct opt_links *links, const char *value, struct error *err)
{
	static const struct {
		const char *name;
		enum machine_watchdog action;
	} actions[] = {{"off", MACHINE_WATCHDOG_OFF}, {"reset", MACHINE_WATCHDOG_RESET},
		{"poweroff", MACHINE_WATCHDOG_POWEROFF}, {"pause", MACHINE_WATCHDOG_PAUSE},
		{"none", MACHINE_WATCHDOG_NOTHING}};

	for (unsigned i = 0; i < ARRAY_SIZE(actions); i++)
		if (strcmp(value, actions[i].name) == 0) {
			links->watchdog = actions[i].action;
			return 0;
		}
	return error_set(
		err, EINVAL, "--watchdog '%s': give reset, poweroff, pause, none or off", value);
}

void opt_links_done(struct opt_links *links)
{
	for (unsigned i = 0; i < links->texts; i++)
		free(links->text[i]);
	links->texts = 0;
}
