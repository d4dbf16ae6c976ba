/*
 * --share DIR[:TARGET][,OPTION...] (docs/share.md).
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "base/number.h"
#include "cli/cli.h"
#include "vmm/share.h"
#include <ctype.h>
#include <errno.h>
#include <string.h>

#define DEFAULT_MOUNT_POINT "/mnt"

/* ---- tags ---- */

/* "/home/me/" is "home-me". */
static int tag_of(struct vmm_share *share, const char *mount_point, struct error *err)
{
	size_t used = 0;

	for (const char *at = mount_point; *at; at++) {
		const bool slash = *at == '/';

		/* Slashes in a row, at the start and at the end count as none. */
		if (slash && (!used || at[1] == '/' || !at[1]))
			continue;
		if (used == VIRTIO_FS_TAG_BYTES)
			return error_set(err, EINVAL,
				"'%s' makes a tag of more than %d bytes: give another with tag=NAME",
				mount_point, VIRTIO_FS_TAG_BYTES);
		share->tag[used++] = slash ? '-' : *at;
	}
	share->tag[used] = 0;
	return used ? 0 : error_set(err, EINVAL, "a directory can't be mounted on the guest's /");
}

/* It goes into lines of fstab and the kernel's command line. */
static bool is_plain(const char *text)
{
	for (; *text; text++)
		if (!isgraph((unsigned char)*text) || strchr("\"'\\:", *text))
			return false;
	return true;
}

static int set_tag(struct vmm_share *share, const char *tag, struct error *err)
{
	if (!*tag || strlen(tag) > VIRTIO_FS_TAG_BYTES || strchr(tag, '/') || !is_plain(tag))
		return error_set(err, EINVAL, "a tag has 1 to %d bytes, and no / or space",
			VIRTIO_FS_TAG_BYTES);
	strcpy(share->tag, tag);
	return 0;
}

static int set_target(struct vmm_share *share, const char *target, struct error *err)
{
	if (!is_plain(target))
		return error_set(err, EINVAL,
			"'%s' is no mount point and no tag: it has a space, a quote or the like",
			target);
	if (target[0] != '/')
		return set_tag(share, target, err);
	share->mount_point = strdup(target);
	if (!share->mount_point)
		return error_set(err, ENOMEM, "no memory");
	return share->tag[0] ? 0 : tag_of(share, target, err);
}

/* ---- options ---- */

static int set_id(uint32_t *id, const char *text, struct error *err)
{
	uint64_t number;

	if (number_parse(text, 0, 65534 * 65536ull, &number) < 0)
		return error_set(err, EINVAL, "'%s' is no number of a user or group", text);
	*id = (uint32_t)number;
	return 0;
}

static int set_cache(struct share_config *config, const char *text, struct error *err)
{
	if (strcmp(text, "auto") == 0)
		config->cache = SHARE_CACHE_AUTO;
	else if (strcmp(text, "none") == 0)
		config->cache = SHARE_CACHE_NONE;
	else if (strcmp(text, "always") == 0)
		config->cache = SHARE_CACHE_ALWAYS;
	else
		return error_set(
			err, EINVAL, "no cache '%s': there are auto, none and always", text);
	return 0;
}

static int set_option(struct vmm_share *share, const char *text, struct error *err)
{
	struct share_config *config = &share->config;

	if (strcmp(text, "ro") == 0)
		config->readonly = true;
	else if (strcmp(text, "rw") == 0)
		config->readonly = false;
	else if (strcmp(text, "ids=host") == 0)
		config->host_ids = true;
	else if (strncmp(text, "uid=", 4) == 0)
		return set_id(&config->uid, text + 4, err);
	else if (strncmp(text, "gid=", 4) == 0)
		return set_id(&config->gid, text + 4, err);
	else if (strncmp(text, "cache=", 6) == 0)
		return set_cache(config, text + 6, err);
	else if (strncmp(text, "tag=", 4) == 0)
		return set_tag(share, text + 4, err);
	else
		return error_set(err, EINVAL,
			"no option '%s': there are ro, rw, uid=N, gid=N, ids=host, cache=WHAT and tag=NAME",
			text);
	return 0;
}

/* ---- the whole ---- */

/* The directory ends at the last colon, or, without one, at the first comma. */
static int parse(struct vmm_share *share, char *text, struct error *err)
{
	char *target = strrchr(text, ':');
	char *options = strchr(target ? target : text, ',');
	int status = 0;

	if (target)
		*target++ = 0;
	if (options)
		*options++ = 0;
	if (!*text)
		return error_set(err, EINVAL, "it names no directory");
	for (char *next; status == 0 && options; options = next) {
		next = strchr(options, ',');
		if (next)
			*next++ = 0;
		status = set_option(share, options, err);
	}
	return status == 0 ? set_target(share, target ? target : DEFAULT_MOUNT_POINT, err) : status;
}

static bool tag_is_taken(const struct vmm_shares *shares, const char *tag)
{
	for (unsigned i = 0; i < shares->count; i++)
		if (strcmp(shares->share[i].tag, tag) == 0)
			return true;
	return false;
}

int cli_parse_share(struct vmm_shares *shares, const char *value, struct error *err)
{
	if (shares->count == VMM_SHARES_MAX)
		return error_set(err, EINVAL, "more than %d --share", VMM_SHARES_MAX);
	struct vmm_share *share = &shares->share[shares->count];
	*share = (struct vmm_share){.path = strdup(value)};
	if (!share->path)
		return error_set(err, ENOMEM, "no memory");
	int status = parse(share, share->path, err);
	if (status == 0 && tag_is_taken(shares, share->tag))
		status = error_set(err, EINVAL, "the tag '%s' is another's: give one with tag=NAME",
			share->tag);
	if (status == 0) {
		shares->count++;
		return 0;
	}
	free(share->path);
	free(share->mount_point);
	return error_prefix(err, "--share '%s'", value);
}

void cli_shares_done(struct vmm_shares *shares)
{
	for (unsigned i = 0; i < shares->count; i++) {
		free(shares->share[i].path);
		free(shares->share[i].mount_point);
	}
	shares->count = 0;
}
