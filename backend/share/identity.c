/*
 * Whose files are: between the host's numbers and those the guest sees (docs/share.md, "Owners").
 *
 * The guest's kernel checks permissions by what it is shown, the host's by who runs lodge. So all that the user of
 * the host owns is one user's of the guest, and the rest is nobody's.
 */
#include "backend/share/internal.h"

#define NOBODY 65534

static int take_groups(struct identity *identity)
{
	int count = getgroups(0, NULL);

	if (count <= 0)
		return count < 0 ? -errno : 0;
	identity->groups = calloc((size_t)count, sizeof(gid_t));
	if (!identity->groups)
		return -ENOMEM;
	count = getgroups(count, identity->groups);
	identity->group_count = (unsigned)MAX(count, 0);
	return count < 0 ? -errno : 0;
}

int identity_init(struct identity *identity, const struct share_config *config)
{
	*identity = (struct identity){.host_ids = config->host_ids,
		.is_root = geteuid() == 0,
		.uid = config->uid,
		.gid = config->gid,
		.host_uid = geteuid(),
		.host_gid = getegid()};
	return take_groups(identity);
}

void identity_done(struct identity *identity)
{
	free(identity->groups);
}

static bool is_ours(const struct identity *identity, gid_t gid)
{
	if (gid == identity->host_gid)
		return true;
	for (unsigned i = 0; i < identity->group_count; i++)
		if (identity->groups[i] == gid)
			return true;
	return false;
}

uint32_t identity_show_uid(const struct identity *identity, uid_t uid)
{
	if (identity->host_ids)
		return uid;
	return uid == identity->host_uid ? identity->uid : NOBODY;
}

uint32_t identity_show_gid(const struct identity *identity, gid_t gid)
{
	if (identity->host_ids)
		return gid;
	return is_ours(identity, gid) ? identity->gid : NOBODY;
}

int identity_take_uid(const struct identity *identity, uint32_t asked, uid_t now, uid_t *ret_uid)
{
	*ret_uid = (uid_t)-1;
	if (asked == identity_show_uid(identity, now))
		return 0;
	if (identity->host_ids)
		*ret_uid = asked;
	else if (asked == identity->uid)
		*ret_uid = identity->host_uid;
	else
		return -EPERM;
	return 0;
}

int identity_take_gid(const struct identity *identity, uint32_t asked, gid_t now, gid_t *ret_gid)
{
	*ret_gid = (gid_t)-1;
	if (asked == identity_show_gid(identity, now))
		return 0;
	if (identity->host_ids)
		*ret_gid = asked;
	else if (asked == identity->gid)
		*ret_gid = identity->host_gid;
	else
		return -EPERM;
	return 0;
}
