/*
 * The disks of machines that are made from images. A machine with a name keeps its disk, in
 * ${XDG_DATA_HOME:-~/.local/share}/lodge/machines/NAME; one without is temporary and its disk goes with it.
 *
 *	base.img	the image's disk, by a hard link (so the image may be removed or replaced), never written
 *	disk.qcow2	what differs from it
 *	seed.iso	cloud-init's, if there is one
 *	uefi-vars.fd	what UEFI firmware keeps, once the machine was started by it
 *	image		the image's name
 */
#ifndef LODGE_HOST_CLONE_H
#define LODGE_HOST_CLONE_H

#include "base/util.h"

#include <stdbool.h>

struct error;

struct clone {
	char *folder;
	char *disk; /* disk.qcow2; NULL: this is only a place for a seed */
	char *seed; /* seed.iso, whether or not it is there */
	char *variables; /* uefi-vars.fd, whether or not it is there; NULL: nothing here is kept */
	int lock;   /* says that its owner lives; nobody else gets in meanwhile */
	bool temporary;
};

/* image NULL: the machine must be there; name NULL: a temporary one. Both NULL: a place for a seed only. A machine that
 * is there keeps its disk. Errors: -ENOENT, -EINVAL (it was made from another image), -EBUSY (it runs), with a line for people. */
MUST_CHECK int clone_open(struct clone *ret_clone, const char *image, const char *name, struct error *err);
/* Removes a temporary one. A zeroed one may be closed too. */
void clone_close(struct clone *clone);

struct clone_record {
	char name[64], image[64];
	unsigned long long used_bytes; /* of the host's disk */
};

/* All there are, by name. Caller frees. */
MUST_CHECK int clone_list(struct clone_record **ret_list, unsigned *ret_count, struct error *err);
/* Remove a machine and its disk. Errors: -EBUSY (it runs). */
MUST_CHECK int clone_remove(const char *name, struct error *err);

#endif
