/*
 * What machine lodge run boots when no kernel is given: an image's clone, a machine that has a name, or a disk image
 * by its path; and cloud-init's seed for it.
 */
#ifndef LODGE_CLI_OPT_MACHINE_H
#define LODGE_CLI_OPT_MACHINE_H

#include "host/clone.h"

struct error;

struct opt_machine {
	const char *what; /* the word that is no option: an image's name, or a path */
	const char *name; /* --name */
	const char *cloud_init, *meta_data, *network_config;
	/* Found by opt_machine_open(). */
	const char *disk; /* the first disk, NULL: there is none of these */
	const char *seed; /* NULL: none */
	struct clone clone;
	char *append;	  /* for the kernel's command line */
};

/* Is a machine named, so that neither kernel nor firmware has to be? */
bool opt_machine_named(const struct opt_machine *o);
/* Errors: -EINVAL (options that do not go together), with a line for people. */
MUST_CHECK int opt_machine_check(const struct opt_machine *o, struct error *err);
/* Find it, clone it, write the seed. An image `debian` that is not there is built, which takes a minute. Returns an exit
 * status; what went wrong has been said. */
int opt_machine_open(struct opt_machine *o);
/* Removes what was temporary. A zeroed one may be closed too. */
void opt_machine_close(struct opt_machine *o);
/* Append a word to the kernel's command line; blanks in it are fine. Errors: -ENOMEM. */
MUST_CHECK int opt_machine_append(struct opt_machine *o, const char *word);

#endif
