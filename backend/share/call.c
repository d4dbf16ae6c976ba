/*
 * FUSE requests (linux/fuse.h, protocol 7.31 and later): taken apart, checked, sent to an operation, answered.
 *
 * A request is read once from the guest's memory into scratch memory, and only the copy is looked at; but for the
 * bytes of READ and WRITE, which go between file and guest directly. The length that a request gives itself counts, if
 * that much is there.
 */
#include "backend/share/internal.h"

#include <string.h>

/* ---- iovecs of the guest ---- */

/* Where one is in them. */
struct place {
	const struct iovec *iov;
	unsigned count;
	uint64_t skip; /* bytes, from the start of iov */
};

/* The next bytes that lie together, at most `bytes`; length 0: there are no more. */
static struct iovec next_piece(struct place *at, uint64_t bytes)
{
	while (at->count && at->skip >= at->iov->iov_len) {
		at->skip -= at->iov->iov_len;
		at->iov++;
		at->count--;
	}
	if (!at->count)
		return (struct iovec){0};
	const struct iovec piece = {(uint8_t *)at->iov->iov_base + at->skip,
		MIN(at->iov->iov_len - at->skip, bytes)};
	at->skip += piece.iov_len;
	return piece;
}

static uint64_t gather(
	const struct iovec *iov, unsigned count, uint64_t skip, void *to, uint64_t bytes)
{
	struct place at = {iov, count, skip};
	struct iovec piece;
	uint64_t done = 0;

	for (; (piece = next_piece(&at, bytes - done)).iov_len; done += piece.iov_len)
		memcpy((uint8_t *)to + done, piece.iov_base, piece.iov_len);
	return done;
}

static void scatter(
	const struct iovec *iov, unsigned count, uint64_t skip, const void *from, uint64_t bytes)
{
	struct place at = {iov, count, skip};
	struct iovec piece;
	uint64_t done = 0;

	for (; (piece = next_piece(&at, bytes - done)).iov_len; done += piece.iov_len)
		memcpy(piece.iov_base, (const uint8_t *)from + done, piece.iov_len);
}

unsigned call_vector(const struct iovec *iov, unsigned count, uint64_t skip, uint64_t bytes,
	struct iovec *vec, unsigned max)
{
	struct place at = {iov, count, skip};
	unsigned used = 0;

	for (; used < max && (vec[used] = next_piece(&at, bytes)).iov_len; used++)
		bytes -= vec[used].iov_len;
	return used;
}

/* ---- strings ---- */

const char *call_string(struct call *call)
{
	const char *text = (const char *)call->argument + call->next_string;
	const size_t left = call->argument_bytes - call->next_string;
	const char *end = left ? memchr(text, 0, left) : NULL;

	if (!end)
		return NULL;
	call->next_string += (size_t)(end - text) + 1;
	return text;
}

int call_name(struct call *call, const char **ret_name)
{
	const char *name = call_string(call);

	if (!name || !*name || strchr(name, '/') || strcmp(name, ".") == 0 ||
		strcmp(name, "..") == 0)
		return -EINVAL;
	if (strlen(name) > SHARE_NAME_MAX)
		return -ENAMETOOLONG;
	*ret_name = name;
	return 0;
}

/* ---- which operation ---- */

enum { CHANGES = 1, BEFORE_INIT = 2 }; /* is refused by a read-only share; needs no session */

struct op {
	op_fn *fn;
	uint16_t argument_bytes; /* of structure, at least; what follows is strings or data */
	uint16_t reply_bytes;	 /* of payload, at least, that the guest must have room for */
	uint8_t flags;
};

#define ENTRY_OUT sizeof(struct fuse_entry_out)
#define ATTR_OUT  sizeof(struct fuse_attr_out)
#define OPEN_OUT  sizeof(struct fuse_open_out)

static const struct op ops[] = {
	/* INIT's argument was 16 bytes before 7.36. */
	[FUSE_INIT] = {op_init, 16, sizeof(struct fuse_init_out), BEFORE_INIT},
	[FUSE_DESTROY] = {op_destroy},
	[FUSE_LOOKUP] = {op_lookup, 0, ENTRY_OUT},
	[FUSE_GETATTR] = {op_getattr, sizeof(struct fuse_getattr_in), ATTR_OUT},
	[FUSE_SETATTR] = {op_setattr, sizeof(struct fuse_setattr_in), ATTR_OUT, CHANGES},
	[FUSE_READLINK] = {op_readlink, 0, 1},
	[FUSE_SYMLINK] = {op_symlink, 0, ENTRY_OUT, CHANGES},
	[FUSE_MKNOD] = {op_mknod, sizeof(struct fuse_mknod_in), ENTRY_OUT, CHANGES},
	[FUSE_MKDIR] = {op_mkdir, sizeof(struct fuse_mkdir_in), ENTRY_OUT, CHANGES},
	[FUSE_UNLINK] = {op_unlink, 0, 0, CHANGES},
	[FUSE_RMDIR] = {op_rmdir, 0, 0, CHANGES},
	[FUSE_RENAME] = {op_rename, sizeof(struct fuse_rename_in), 0, CHANGES},
	[FUSE_RENAME2] = {op_rename2, sizeof(struct fuse_rename2_in), 0, CHANGES},
	[FUSE_LINK] = {op_link, sizeof(struct fuse_link_in), ENTRY_OUT, CHANGES},
	[FUSE_OPEN] = {op_open, sizeof(struct fuse_open_in), OPEN_OUT},
	[FUSE_CREATE] = {op_create, sizeof(struct fuse_create_in), ENTRY_OUT + OPEN_OUT, CHANGES},
	[FUSE_READ] = {op_read, sizeof(struct fuse_read_in)},
	[FUSE_WRITE] = {op_write, sizeof(struct fuse_write_in), sizeof(struct fuse_write_out),
		CHANGES},
	[FUSE_STATFS] = {op_statfs, 0, sizeof(struct fuse_statfs_out)},
	[FUSE_RELEASE] = {op_release, sizeof(struct fuse_release_in)},
	[FUSE_FSYNC] = {op_fsync, sizeof(struct fuse_fsync_in)},
	[FUSE_SETXATTR] = {op_setxattr, FUSE_COMPAT_SETXATTR_IN_SIZE, 0, CHANGES},
	[FUSE_GETXATTR] = {op_getxattr, sizeof(struct fuse_getxattr_in)},
	[FUSE_LISTXATTR] = {op_listxattr, sizeof(struct fuse_getxattr_in)},
	[FUSE_REMOVEXATTR] = {op_removexattr, 0, 0, CHANGES},
	[FUSE_FLUSH] = {op_flush, sizeof(struct fuse_flush_in)},
	[FUSE_OPENDIR] = {op_opendir, sizeof(struct fuse_open_in), OPEN_OUT},
	[FUSE_READDIR] = {op_readdir, sizeof(struct fuse_read_in)},
	[FUSE_READDIRPLUS] = {op_readdirplus, sizeof(struct fuse_read_in)},
	[FUSE_RELEASEDIR] = {op_releasedir, sizeof(struct fuse_release_in)},
	[FUSE_FSYNCDIR] = {op_fsyncdir, sizeof(struct fuse_fsync_in)},
	[FUSE_ACCESS] = {op_access, sizeof(struct fuse_access_in)},
	[FUSE_FALLOCATE] = {op_fallocate, sizeof(struct fuse_fallocate_in), 0, CHANGES},
	[FUSE_LSEEK] = {op_lseek, sizeof(struct fuse_lseek_in), sizeof(struct fuse_lseek_out)},
	[FUSE_COPY_FILE_RANGE] = {op_copy_range, sizeof(struct fuse_copy_file_range_in),
		sizeof(struct fuse_write_out), CHANGES},
	[FUSE_SYNCFS] = {op_syncfs},
};

static int run(struct call *call)
{
	const uint32_t opcode = call->header.opcode;
	const struct op *op = opcode < ARRAY_SIZE(ops) ? &ops[opcode] : NULL;

	if (!op || !op->fn)
		return -ENOSYS;
	if (!(op->flags & BEFORE_INIT) && !__atomic_load_n(&call->share->begun, __ATOMIC_ACQUIRE))
		return -EIO;
	if (op->flags & CHANGES && call->share->readonly)
		return -EROFS;
	/* Room first: what is done and can't be told can't be undone by the guest. */
	if (call->argument_bytes < op->argument_bytes || call->reply_room < op->reply_bytes)
		return -EINVAL;
	call->next_string = op->argument_bytes;
	return op->fn(call);
}

/* ---- a request and its reply ---- */

static uint32_t reply(const struct call *call, int result)
{
	const struct fs_request *request = call->request;
	const uint32_t payload = result > 0 ? (uint32_t)result : 0;
	const struct fuse_out_header header = {.len = (uint32_t)sizeof(header) + payload,
		.error = result < 0 ? result : 0,
		.unique = call->header.unique};

	if (!call->direct)
		scatter(request->in, request->in_count, sizeof(header), call->reply, payload);
	scatter(request->in, request->in_count, 0, &header, sizeof(header));
	return header.len;
}

/* Copies the header and the argument; WRITE's data stays where it is. */
static int take(struct call *call)
{
	const struct fs_request *request = call->request;
	const uint64_t header_bytes = sizeof(call->header);

	if (gather(request->out, request->out_count, 0, &call->header, header_bytes) <
			header_bytes ||
		call->header.len < header_bytes || call->header.len > request->out_bytes)
		return -EINVAL;
	call->argument_bytes = call->header.len - header_bytes;
	const size_t copied = call->header.opcode == FUSE_WRITE
				      ? MIN(call->argument_bytes, sizeof(struct fuse_write_in))
				      : call->argument_bytes;
	if (copied > sizeof(call->scratch->argument))
		return -E2BIG;
	gather(request->out, request->out_count, header_bytes, call->scratch->argument, copied);
	return 0;
}

uint32_t share_serve(struct share *share, struct scratch *scratch, const struct fs_request *request)
{
	struct call call = {.share = share,
		.scratch = scratch,
		.request = request,
		.argument = scratch->argument,
		.reply = scratch->reply};

	if (share_is_quick(request))
		return share_serve_quick(share, request);
	int result = take(&call);
	if (request->in_bytes < sizeof(struct fuse_out_header))
		return 0;
	call.reply_room =
		MIN(request->in_bytes - sizeof(struct fuse_out_header), (uint64_t)SHARE_REPLY_MAX);
	if (result == 0)
		result = run(&call);
	return reply(&call, result);
}

/* ---- FORGET, BATCH_FORGET, INTERRUPT: no reply, no wait ---- */

bool share_is_quick(const struct fs_request *request)
{
	struct fuse_in_header header;

	if (gather(request->out, request->out_count, 0, &header, sizeof(header)) < sizeof(header))
		return false;
	return header.opcode == FUSE_FORGET || header.opcode == FUSE_BATCH_FORGET ||
	       header.opcode == FUSE_INTERRUPT;
}

static void batch_forget(
	struct share *share, const struct fs_request *request, uint64_t at, uint64_t end)
{
	struct fuse_batch_forget_in in;

	if (at + sizeof(in) > end)
		return;
	gather(request->out, request->out_count, at, &in, sizeof(in));
	at += sizeof(in);
	for (uint32_t i = 0; i < in.count && at + sizeof(struct fuse_forget_one) <= end; i++) {
		struct fuse_forget_one one;

		gather(request->out, request->out_count, at, &one, sizeof(one));
		nodes_forget(&share->nodes, one.nodeid, one.nlookup);
		at += sizeof(one);
	}
}

/* A batch that is larger than any guest makes is cut: the guest's loss. */
#define BATCH_MAX KIB(64)

uint32_t share_serve_quick(struct share *share, const struct fs_request *request)
{
	struct fuse_in_header header;
	struct fuse_forget_in in;

	gather(request->out, request->out_count, 0, &header, sizeof(header));
	const uint64_t end = MIN(MIN((uint64_t)header.len, request->out_bytes), BATCH_MAX);
	if (header.opcode == FUSE_BATCH_FORGET) {
		batch_forget(share, request, sizeof(header), end);
	} else if (header.opcode == FUSE_FORGET && end >= sizeof(header) + sizeof(in)) {
		gather(request->out, request->out_count, sizeof(header), &in, sizeof(in));
		nodes_forget(&share->nodes, header.nodeid, in.nlookup);
	}
	return 0;
}
