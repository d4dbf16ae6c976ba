/*
 * FUSE operations on directories that are open.
 *
 * A place in a directory is the host file system's own cookie (d_off), which the guest hands back. Each request seeks
 * there, so that handles keep nothing.
 */
#include "backend/share/internal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

struct linux_dirent64 {
	uint64_t ino;
	int64_t next; /* the place behind it */
	uint16_t bytes;
	uint8_t type;
	char name[];
} __attribute__((packed));

int op_opendir(struct call *call)
{
	struct share *share = call->share;
	struct fuse_open_out *out = call->reply;
	AUTO_NODE struct node_use use = {0};
	int status = node_use(&share->nodes, call->header.nodeid, &use);

	if (status < 0)
		return status;
	if (!S_ISDIR(use.node->key.type))
		return -ENOTDIR;
	const struct fd_path path = share_fd_path(use.fd);
	AUTO_CLOSE int fd =
		openat(share->proc_fd, share_fd_name(&path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	*out = (struct fuse_open_out){0};
	if (share->cache == SHARE_CACHE_ALWAYS)
		out->open_flags = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
	status = handle_open(&share->handles, &use, fd, true, &out->fh);
	if (status < 0)
		return status;
	(void)take_fd(&fd);
	return sizeof(*out);
}

int op_releasedir(struct call *call)
{
	const struct fuse_release_in *in = call->argument;

	return handle_close(&call->share->handles, in->fh, true);
}

/* ---- reading ---- */

struct listing {
	struct call *call;
	struct handle *handle;
	size_t used, room; /* of call->reply */
	bool plus;
};

static bool is_dots(const char *name)
{
	return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static uint64_t entry_ino(const struct listing *list, const struct linux_dirent64 *entry)
{
	const struct node *dir = list->handle->use.node;
	struct statx stat = {.stx_ino = entry->ino,
		.stx_dev_major = dir->key.dev_major,
		.stx_dev_minor = dir->key.dev_minor};

	/* What is above the directory that is shared is no business of the guest's. */
	if (dir->id == FUSE_ROOT_ID && strcmp(entry->name, "..") == 0)
		stat.stx_ino = dir->key.ino;
	return share_inode_number(list->call->share, &stat);
}

/* False: it doesn't fit. */
static bool add_entry(struct listing *list, const struct linux_dirent64 *entry)
{
	const size_t name_bytes = strlen(entry->name);
	const size_t head = list->plus ? sizeof(struct fuse_entry_out) : 0;
	const size_t bytes = FUSE_DIRENT_ALIGN(head + FUSE_NAME_OFFSET + name_bytes);
	uint8_t *at = (uint8_t *)list->call->reply + list->used;

	if (bytes > list->room - list->used)
		return false;
	memset(at, 0, bytes);
	/* Without a node (0) it is a mere name to the guest. */
	if (list->plus && !is_dots(entry->name) &&
		share_enter(list->call->share, &list->handle->use, entry->name,
			(struct fuse_entry_out *)at, NULL) < 0)
		memset(at, 0, head);
	*(struct fuse_dirent *)(at + head) = (struct fuse_dirent){
		.ino = entry_ino(list, entry),
		.off = (uint64_t)entry->next,
		.namelen = (uint32_t)name_bytes,
		.type = entry->type,
	};
	memcpy(at + head + FUSE_NAME_OFFSET, entry->name, name_bytes);
	list->used += bytes;
	return true;
}

static int add_entries(struct listing *list, const uint8_t *names, size_t bytes)
{
	for (size_t at = 0; at < bytes;) {
		const struct linux_dirent64 *entry = (const void *)(names + at);

		if (!add_entry(list, entry))
			return list->used ? 0 : -EINVAL;
		at += entry->bytes;
	}
	return 0;
}

static int read_names(struct call *call, bool plus)
{
	const struct fuse_read_in *in = call->argument;
	struct scratch *scratch = call->scratch;
	struct listing list = {
		.call = call, .room = MIN(call->reply_room, (size_t)in->size), .plus = plus};
	AUTO_HANDLE struct handle_use use = {0};
	int status = handle_use(&call->share->handles, in->fh, call->header.nodeid, true, &use);

	if (status < 0)
		return status;
	list.handle = use.handle;
	/* About what fits: an entry with attributes is several times as long as one without. */
	size_t want = MIN(plus ? list.room / 5 : list.room, sizeof(scratch->names));
	want = MAX(want, (size_t)512); /* one name of any length */
	AUTO_LOCK(&use.handle->dir_lock);
	if (lseek(use.handle->fd, (off_t)in->offset, SEEK_SET) < 0)
		return -errno;
	const long bytes = syscall(SYS_getdents64, use.handle->fd, scratch->names, want);
	if (bytes < 0)
		return -errno;
	status = add_entries(&list, scratch->names, (size_t)bytes);
	return status < 0 ? status : (int)list.used;
}

int op_readdir(struct call *call)
{
	return read_names(call, false);
}

int op_readdirplus(struct call *call)
{
	return read_names(call, true);
}
