/*
 * What the verbs of lodge machine share.
 */
#ifndef LODGE_CLI_MACHINE_H
#define LODGE_CLI_MACHINE_H

#include <stdbool.h>

/* What was given behind the verb. */
struct machine_args {
	int count;
	char **word; /* those that are no options; the first is a machine */
	bool json;
	const char *disk, *net, *device; /* NULL: not given */
};

/* Verbs of machines that run. Each returns an exit status. */
int machine_status(const struct machine_args *args);
int machine_pause_verb(const struct machine_args *args);
int machine_resume_verb(const struct machine_args *args);
int machine_balloon(const struct machine_args *args);
int machine_attach(const struct machine_args *args);
int machine_detach(const struct machine_args *args);
int machine_screenshot(const struct machine_args *args);
int machine_poweroff(const struct machine_args *args);
int machine_reset_verb(const struct machine_args *args);
int machine_stop_verb(const struct machine_args *args);

/* running, paused, starting, or stopped. */
void machine_state(const char *name, char state[static 16]);

#endif
