/*
 * What this host offers a virtual machine, and the exact remedy for what is missing.
 */
#ifndef LODGE_HOST_DOCTOR_H
#define LODGE_HOST_DOCTOR_H

#include <stdbool.h>
#include <stddef.h>

#define DOCTOR_FINDINGS_MAX 16

enum doctor_verdict {
	DOCTOR_OK,	/* there, and works */
	DOCTOR_LIMITED, /* works, with a loss that the text names */
	DOCTOR_MISSING, /* not there; the remedy says what to do */
};

struct doctor_finding {
	const char *name; /* stable, for scripts: "kvm", "tun" ... */
	enum doctor_verdict verdict;
	char text[256];	  /* what was found */
	char remedy[256]; /* what to do; empty if nothing */
};

struct doctor_report {
	unsigned count;
	struct doctor_finding finding[DOCTOR_FINDINGS_MAX];
	const char *engine; /* that `--engine auto` takes */
};

/* Look around. Changes nothing on the host; takes a few milliseconds, a little more where KVM is slow. */
void doctor_examine(struct doctor_report *ret_report);

#endif
