/*
 * A guest's side of a shared directory, for tests: requests made by hand, replies as they came. The directory is
 * SCRATCH/in; what is in SCRATCH beside it is out of bounds.
 */
#ifndef LODGE_TESTS_UNIT_SHARE_RIG_H
#define LODGE_TESTS_UNIT_SHARE_RIG_H

#include "backend/share/internal.h"
#include "base/error.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct share_rig {
	char path[64]; /* of the scratch directory */
	int dir;       /* "in" */
	struct share *share;
	struct scratch scratch;
	uint64_t unique;
	/* The last reply: */
	int error; /* 0 or negative errno */
	uint32_t bytes;
	uint8_t reply[SHARE_REPLY_MAX] __attribute__((aligned(8)));
	/* For the next call only; 0: the natural value. */
	uint32_t lie_len, reply_room;
};

#define RIG_MUST(condition)                                                                 \
	do {                                                                                \
		if (!(condition)) {                                                         \
			fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, \
				strerror(errno));                                           \
			abort();                                                            \
		}                                                                           \
	} while (0)

static inline void share_rig_write(const struct share_rig *rig, const char *name, const char *text)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", rig->path, name);
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
	RIG_MUST(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

/* Sends a request of up to two parts after the header, each with a length; returns 0 or negative errno. */
static inline int share_rig_send(struct share_rig *rig, uint32_t opcode, uint64_t node,
	const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
	struct fuse_in_header header = {.len = (uint32_t)(sizeof(header) + a_bytes + b_bytes),
		.opcode = opcode,
		.unique = ++rig->unique,
		.nodeid = node};
	struct fuse_out_header out = {0};
	const uint32_t room = rig->reply_room ? rig->reply_room : (uint32_t)sizeof(rig->reply);
	struct iovec readable[] = {
		{&header, sizeof(header)}, {(void *)a, a_bytes}, {(void *)b, b_bytes}};
	struct iovec writable[] = {{&out, sizeof(out)}, {rig->reply, room}};
	struct fs_request request = {.out = readable,
		.out_count = 3,
		.in = writable,
		.in_count = 2,
		.out_bytes = header.len,
		.in_bytes = sizeof(out) + room};

	if (rig->lie_len)
		header.len = rig->lie_len;
	uint32_t written = share_serve(rig->share, &rig->scratch, &request);
	rig->lie_len = rig->reply_room = 0;
	if (!written)
		return rig->error = 0;
	RIG_MUST(written == out.len && written >= sizeof(out) && written <= request.in_bytes);
	RIG_MUST(out.unique == rig->unique && out.error <= 0 && out.error > -1000);
	rig->bytes = written - (uint32_t)sizeof(out);
	return rig->error = out.error;
}

static inline size_t share_rig_string_bytes(const char *text)
{
	return text ? strlen(text) + 1 : 0;
}

#define share_rig_call(rig, opcode, node, in, text) \
	share_rig_send(rig, opcode, node, in, sizeof(*(in)), text, share_rig_string_bytes(text))
#define share_rig_named(rig, opcode, node, text) \
	share_rig_send(rig, opcode, node, text, strlen(text) + 1, NULL, 0)

static inline int share_rig_init_session(struct share_rig *rig)
{
	struct fuse_init_in in = {.major = 7, .minor = 36, .max_readahead = 131072, .flags = ~0u};

	return share_rig_call(rig, FUSE_INIT, 0, &in, NULL);
}

static inline void share_rig_share(struct share_rig *rig, struct share_config config)
{
	char path[128];
	struct error err;

	snprintf(path, sizeof(path), "%s/in", rig->path);
	config.path = path;
	RIG_MUST(share_create(&rig->share, &config, &err) == 0);
	RIG_MUST(share_rig_init_session(rig) == 0);
}

static inline void share_rig_init(struct share_rig *rig)
{
	char path[128];

	memset(rig, 0, sizeof(*rig));
	snprintf(rig->path, sizeof(rig->path), "%s/lodge-share-XXXXXX",
		getenv("TMPDIR") && strlen(getenv("TMPDIR")) < 32 ? getenv("TMPDIR") : "/tmp");
	RIG_MUST(mkdtemp(rig->path));
	snprintf(path, sizeof(path), "%s/in", rig->path);
	RIG_MUST(mkdir(path, 0755) == 0);
	rig->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	RIG_MUST(rig->dir >= 0);
	share_rig_write(rig, "secret", "not for guests");
}

static inline void share_rig_done(struct share_rig *rig)
{
	char command[128];

	if (rig->share)
		share_free(rig->share);
	close(rig->dir);
	snprintf(command, sizeof(command), "rm -rf '%s'", rig->path);
	RIG_MUST(system(command) == 0);
}

/* Node of a name; 0: the error is in rig->error. */
static inline uint64_t share_rig_lookup(struct share_rig *rig, uint64_t dir, const char *name)
{
	if (share_rig_named(rig, FUSE_LOOKUP, dir, name) < 0)
		return 0;
	return ((struct fuse_entry_out *)rig->reply)->nodeid;
}

static inline void share_rig_forget(struct share_rig *rig, uint64_t node, uint64_t count)
{
	struct fuse_forget_in in = {.nlookup = count};

	share_rig_call(rig, FUSE_FORGET, node, &in, NULL);
}

/* Handle of a file or directory; 0: the error is in rig->error. */
static inline uint64_t share_rig_open(
	struct share_rig *rig, uint32_t opcode, uint64_t node, uint32_t flags)
{
	struct fuse_open_in in = {.flags = flags};

	if (share_rig_call(rig, opcode, node, &in, NULL) < 0)
		return 0;
	return ((struct fuse_open_out *)rig->reply)->fh;
}

static inline int share_rig_release(
	struct share_rig *rig, uint32_t opcode, uint64_t node, uint64_t handle)
{
	struct fuse_release_in in = {.fh = handle};

	return share_rig_call(rig, opcode, node, &in, NULL);
}

/* Handle; *ret_node is the new file. 0: the error is in rig->error. */
static inline uint64_t share_rig_create(struct share_rig *rig, uint64_t dir, const char *name,
	uint32_t flags, uint32_t mode, uint64_t *ret_node)
{
	struct fuse_create_in in = {.flags = flags, .mode = mode};

	*ret_node = 0;
	if (share_rig_call(rig, FUSE_CREATE, dir, &in, name) < 0)
		return 0;
	*ret_node = ((struct fuse_entry_out *)rig->reply)->nodeid;
	return ((struct fuse_open_out *)(rig->reply + sizeof(struct fuse_entry_out)))->fh;
}

static inline int share_rig_pwrite(struct share_rig *rig, uint64_t node, uint64_t handle,
	uint64_t offset, const char *text, uint32_t flags)
{
	struct fuse_write_in in = {
		.fh = handle, .offset = offset, .size = (uint32_t)strlen(text), .flags = flags};

	if (share_rig_send(rig, FUSE_WRITE, node, &in, sizeof(in), text, in.size) < 0)
		return rig->error;
	return (int)((struct fuse_write_out *)rig->reply)->size;
}

/* Bytes read, which are in rig->reply, or negative errno. */
static inline int share_rig_pread(
	struct share_rig *rig, uint64_t node, uint64_t handle, uint64_t offset, uint32_t size)
{
	struct fuse_read_in in = {.fh = handle, .offset = offset, .size = size};

	if (share_rig_call(rig, FUSE_READ, node, &in, NULL) < 0)
		return rig->error;
	return (int)rig->bytes;
}

static inline int share_rig_setattr(struct share_rig *rig, uint64_t node, struct fuse_setattr_in in)
{
	return share_rig_call(rig, FUSE_SETATTR, node, &in, NULL);
}

static inline const struct fuse_attr *share_rig_getattr(struct share_rig *rig, uint64_t node)
{
	struct fuse_getattr_in in = {0};

	if (share_rig_call(rig, FUSE_GETATTR, node, &in, NULL) < 0)
		return NULL;
	return &((struct fuse_attr_out *)rig->reply)->attr;
}

#endif
