/*
 * What the guest is told of files: attributes, inode numbers, entries.
 */
#include "backend/share/internal.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>

#define CONFIGFS_MAGIC 0x62656570
#define FUSECTL_MAGIC  0x65735543

#define PROC_FD "/proc/self/fd/"

struct fd_path share_fd_path(int fd)
{
	struct fd_path path;

	snprintf(path.text, sizeof(path.text), PROC_FD "%d", fd);
	return path;
}

const char *share_fd_name(const struct fd_path *path)
{
	return path->text + strlen(PROC_FD);
}

int share_statx(int dir_fd, const char *name, struct statx *ret_stat)
{
	const int flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT;

	return statx(dir_fd, name, flags, NODE_STATX, ret_stat) < 0 ? -errno : 0;
}

/* ---- inode numbers ---- */

#define DEVICE_SHIFT 52 /* what is above it tells host devices apart */

/* A small number for each device, 0 for the root's; all of those past the last are one. */
static uint64_t device_index(struct share *share, uint64_t device)
{
	unsigned i = 0;

	AUTO_LOCK(&share->device_lock);
	while (i < share->device_count && share->device[i] != device)
		i++;
	if (i == share->device_count && i < SHARE_DEVICES_MAX)
		share->device[share->device_count++] = device;
	return i;
}

uint64_t share_inode_number(struct share *share, const struct statx *stat)
{
	const uint64_t device = (uint64_t)stat->stx_dev_major << 32 | stat->stx_dev_minor;

	return stat->stx_ino ^ device_index(share, device) << DEVICE_SHIFT;
}

/* ---- attributes ---- */

/* As the kernel encodes a device number in 32 bits. */
static uint32_t device_number(uint32_t major, uint32_t minor)
{
	return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

void share_fill_attr(struct share *share, const struct statx *stat, struct fuse_attr *ret_attr)
{
	*ret_attr = (struct fuse_attr){
		.ino = share_inode_number(share, stat),
		.size = stat->stx_size,
		.blocks = stat->stx_blocks,
		.atime = (uint64_t)stat->stx_atime.tv_sec,
		.mtime = (uint64_t)stat->stx_mtime.tv_sec,
		.ctime = (uint64_t)stat->stx_ctime.tv_sec,
		.atimensec = stat->stx_atime.tv_nsec,
		.mtimensec = stat->stx_mtime.tv_nsec,
		.ctimensec = stat->stx_ctime.tv_nsec,
		.mode = stat->stx_mode,
		.nlink = stat->stx_nlink,
		.uid = identity_show_uid(&share->identity, stat->stx_uid),
		.gid = identity_show_gid(&share->identity, stat->stx_gid),
		.rdev = device_number(stat->stx_rdev_major, stat->stx_rdev_minor),
		.blksize = stat->stx_blksize,
	};
}

uint64_t share_valid_seconds(const struct share *share)
{
	switch (share->cache) {
	case SHARE_CACHE_NONE: return 0;
	case SHARE_CACHE_AUTO: return 1;
	case SHARE_CACHE_ALWAYS: break;
	}
	return 86400;
}

/* ---- entries ---- */

static bool is_mounted(const struct node *dir, const struct statx *stat)
{
	return S_ISDIR(stat->stx_mode) && (stat->stx_dev_major != dir->key.dev_major ||
						  stat->stx_dev_minor != dir->key.dev_minor);
}

/* File systems whose files are the kernel's interface: /proc/self/mem is this process. Who shares / doesn't mean them;
 * their roots are shown, for guests that mount their own there. */
static bool is_kernels(int dir_fd, const char *name)
{
	static const uint32_t magics[] = {PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC,
		CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC, SECURITYFS_MAGIC, SELINUX_MAGIC,
		SMACK_MAGIC, BPF_FS_MAGIC, EFIVARFS_MAGIC, PSTOREFS_MAGIC, NSFS_MAGIC,
		DEVPTS_SUPER_MAGIC, BINFMTFS_MAGIC, CONFIGFS_MAGIC, FUSECTL_MAGIC};
	AUTO_CLOSE int fd = openat(dir_fd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct statfs fs;

	if (fd < 0 || fstatfs(fd, &fs) < 0)
		return true;
	for (size_t i = 0; i < ARRAY_SIZE(magics); i++)
		if ((uint32_t)fs.f_type == magics[i])
			return true;
	return false;
}

int share_enter_stat(struct share *share, struct node_use *dir, const char *name,
	const struct statx *stat, struct fuse_entry_out *ret_entry, struct node_use *ret_use)
{
	AUTO_NODE struct node_use use = {0};
	const bool closed = is_mounted(dir->node, stat) && is_kernels(dir->fd, name);
	int status = node_enter(&share->nodes, dir->node, name, stat, closed, &use);

	if (status < 0)
		return status;
	*ret_entry = (struct fuse_entry_out){.nodeid = use.node->id,
		.entry_valid = share_valid_seconds(share),
		.attr_valid = share_valid_seconds(share)};
	share_fill_attr(share, stat, &ret_entry->attr);
	if (ret_use) {
		*ret_use = use;
		use.node = NULL;
	}
	return 0;
}

int share_enter(struct share *share, struct node_use *dir, const char *name,
	struct fuse_entry_out *ret_entry, struct node_use *ret_use)
{
	struct statx stat;
	int status = share_statx(dir->fd, name, &stat);

	return status < 0 ? status : share_enter_stat(share, dir, name, &stat, ret_entry, ret_use);
}

void share_drop_suid(struct share *share, int fd)
{
	const struct fd_path path = share_fd_path(fd);
	struct statx now;

	if (!share->identity.is_root || share_statx(fd, "", &now) < 0 || !S_ISREG(now.stx_mode) ||
		!(now.stx_mode & (S_ISUID | S_ISGID)))
		return;
	const mode_t kill = now.stx_mode & S_IXGRP ? S_ISUID | S_ISGID : S_ISUID;
	(void)!fchmodat(share->proc_fd, share_fd_name(&path), now.stx_mode & 07777 & ~kill, 0);
}

mode_t share_mode(uint32_t asked, bool directory)
{
	/* A guest must not make programs that other users of the host would run as this one. */
	return asked & (directory ? 03777 : 01777);
}
