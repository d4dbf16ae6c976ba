/*
 * A seed for cloud-init (its NoCloud data source): a small ISO 9660 image named cidata with user-data, meta-data
 * and perhaps network-config, which a machine gets as a read-only disk.
 */
#ifndef LODGE_HOST_SEED_H
#define LODGE_HOST_SEED_H

#include "base/util.h"

struct error;

#define SEED_FILE_MAX MIB(1)

struct seed {
	const char *user_data;	    /* files */
	const char *meta_data;	    /* NULL: one is made, of the host name and an instance ID */
	const char *network_config; /* NULL: none, which means DHCP */
	const char *hostname;	    /* for the meta-data that is made; NULL: the guest keeps its own */
};

/* Write the image to this path, which is replaced. The instance ID is a digest of all that cloud-init is told, so it
 * runs again when that has changed, and else once. Errors: with a line for people. */
MUST_CHECK int seed_write(const struct seed *seed, const char *path, struct error *err);

#endif
