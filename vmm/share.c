/*
 * Shared directories of this process: see share.h.
 */
#include "vmm/share.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "machine/machine.h"
#include <errno.h>
#include <sys/resource.h>

#define DESCRIPTORS_SPARE 1024 /* for all else in the process, if there are that many */
#define DESCRIPTORS_SHARE 65536

/* Each gets its part of what the process has, which is all that it may have. */
static unsigned descriptors_each(unsigned count)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 0;
	const rlim_t spare = MIN(limit.rlim_cur / 4, (rlim_t)DESCRIPTORS_SPARE);
	return (unsigned)MIN((limit.rlim_cur - spare) / count, (rlim_t)DESCRIPTORS_SHARE);
}

int vmm_shares_open(
	const struct vmm_shares *shares, struct machine_share **ret_shares, struct error *err)
{
	struct machine_share *open;
	int status = 0;

	*ret_shares = NULL;
	if (!shares || !shares->count)
		return 0;
	const unsigned descriptors = descriptors_each(shares->count);
	open = calloc(shares->count, sizeof(*open));
	if (!open)
		return error_set(err, ENOMEM, "no memory for shared directories");
	for (unsigned i = 0; status == 0 && i < shares->count; i++) {
		struct share_config config = shares->share[i].config;

		config.path = shares->share[i].path;
		config.max_descriptors = descriptors;
		open[i].tag = shares->share[i].tag;
		status = share_open(&open[i].fs, &config, err);
	}
	if (status < 0)
		vmm_shares_close(shares, open);
	else
		*ret_shares = open;
	return status;
}

void vmm_shares_close(const struct vmm_shares *shares, struct machine_share *open)
{
	if (!open)
		return;
	for (unsigned i = 0; i < shares->count; i++)
		fs_close(open[i].fs);
	free(open);
}
