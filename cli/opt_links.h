/*
 * The options of lodge run that link guest and host: --console, --port, --vsock, --pmem, --balloon, --watchdog.
 */
#ifndef LODGE_CLI_OPT_LINKS_H
#define LODGE_CLI_OPT_LINKS_H

#include "vmm/links.h"

struct error;

struct opt_links {
	struct vmm_links_spec spec;
	enum machine_watchdog watchdog;
	bool no_balloon;
	uint64_t balloon_bytes;
	char *text[VMM_PORTS_MAX + VMM_PMEMS_MAX + 1]; /* copies that the spec points into */
	unsigned texts;
};

/* Each reads one option's value. Errors: -EINVAL with a line for people, -ENOMEM. */
int opt_links_console(struct opt_links *links, const char *value, struct error *err);
int opt_links_port(struct opt_links *links, const char *value, struct error *err);
int opt_links_vsock(struct opt_links *links, const char *value, struct error *err);
int opt_links_pmem(struct opt_links *links, const char *value, struct error *err);
int opt_links_watchdog(struct opt_links *links, const char *value, struct error *err);
int opt_links_balloon(struct opt_links *links, const char *value, struct error *err);
void opt_links_done(struct opt_links *links);

#endif
