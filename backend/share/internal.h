/*
 * The parts of a share, for its own files only.
 *
 * share.c opens it and has its threads; call.c takes a request apart and sends it to one of the op_ functions in
 * ops_*.c; nodes.c and node_fds.c know the files that the guest knows, handles.c those it has open, identity.c whose they are.
 *
 * Locks: nodes.lock and handles.lock guard their tables and are leaves; no system call that may wait is made with
 * one held. The pool's lock is a leaf too.
 */
#ifndef LODGE_BACKEND_SHARE_INTERNAL_H
#define LODGE_BACKEND_SHARE_INTERNAL_H

#include "backend/share/share.h"
#include "base/cleanup.h"

#include <linux/fuse.h>
#include <pthread.h>
#include <sys/stat.h>

#define SHARE_NAME_MAX	   255
#define SHARE_WRITE_MAX	   MIB(1)	  /* bytes in one READ or WRITE */
#define SHARE_REPLY_MAX	   65536	  /* of all others */
#define SHARE_ARGUMENT_MAX (65536 + 1024) /* of all but WRITE: an attribute and its name */
#define SHARE_VECTOR_MAX   1024		  /* iovecs in a system call (IOV_MAX) */
#define SHARE_NODES_MAX	   (2u << 20)

/* ---- nodes.c: what the guest knows by a number ---- */

/* What makes two files the same one. */
struct node_key {
	uint64_t ino, mount;
	uint64_t born_ns; /* 0: unknown. An inode number may be used again */
	uint32_t dev_major, dev_minor;
	uint32_t type; /* of S_IFMT; never changes */
};

/* A file's state when the guest last opened it: if it is the same now, its pages in the guest are good. */
struct node_seen {
	uint64_t size;
	struct statx_timestamp mtime, ctime;
	bool settled; /* and was then old enough for a change to show in its times */
};

/*
 * A file that the guest has looked up. It is found by where the guest found it (parent and name), and has an O_PATH
 * descriptor only when something was done with it lately; then it stays itself whatever its name is.
 */
struct node {
	uint64_t id;
	struct node_key key;
	struct node *parent; /* NULL: the root, or nowhere. Has a reference */
	char *name;
	uint64_t lookups; /* that the guest has not taken back with FORGET */
	unsigned refs;	  /* of children, of handles, of who works with it, one for lookups > 0 */
	unsigned pins;	  /* that want the descriptor kept */
	int fd;		  /* O_PATH; -1: none now */
	struct node_seen seen;
	struct node *hash_next;
	struct node *newer, *older; /* among those with a descriptor and no pin */
	bool hashed;
	bool closed; /* what is in this directory is not for guests */
};

struct node_slot {
	struct node *node;   /* NULL: free */
	uint32_t generation; /* upper half of the id, so that an id is never used again */
	uint32_t next_free;
};

struct nodes {
	pthread_mutex_t lock;
	struct node *root;
	struct node **bucket;
	unsigned bucket_count, count, max;
	struct node_slot *slot;
	uint32_t slot_count, slot_room, free_slot;
	struct node *newest, *oldest;
	unsigned fd_count, fd_max; /* the latter is passed if all are pinned */
	struct node *dead; /* gone from the tables, descriptor not yet closed; by hash_next */
};

/* root_fd is taken over on success. Errors: -ENOMEM, statx()'s. */
MUST_CHECK int nodes_init(struct nodes *nodes, int root_fd, unsigned max, unsigned fd_max);
void nodes_done(struct nodes *nodes);
/* The guest knows nothing any more. Nodes in use live on until they are put. */
void nodes_forget_all(struct nodes *nodes);
void nodes_forget(struct nodes *nodes, uint64_t id, uint64_t lookups);
/* Close what has died. Closing the last descriptor of a removed file may take its time. */
void nodes_bury(struct nodes *nodes);
bool nodes_have_dead(struct nodes *nodes);

/* A node with a reference and a pinned descriptor, until node_let_go(). */
struct node_use {
	struct nodes *nodes;
	struct node *node;
	int fd; /* O_PATH; -1 if it was got without */
};

/* Errors: -ESTALE (no such id, or it isn't where it was), -EACCES (closed), open's. */
MUST_CHECK int node_use(struct nodes *nodes, uint64_t id, struct node_use *ret_use);
/* As node_use(), without a descriptor. */
MUST_CHECK int node_find(struct nodes *nodes, uint64_t id, struct node_use *ret_use);
void node_let_go(struct node_use *use); /* zeroes are allowed */
#define AUTO_NODE CLEANUP(node_let_go)

#define NODE_STATX (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID)

/* What it is now. Errors: -ESTALE, statx()'s. */
MUST_CHECK int node_stat(struct nodes *nodes, uint64_t id, struct statx *ret_stat);
/* The guest gets to know the file `stat` tells of, which was found in `parent` as `name`: one more lookup.
 * closed: and nothing of what is in it.
 * Errors: -ENOMEM, -ENFILE (the guest knows too many), -ELOOP (the root itself). */
MUST_CHECK int node_enter(struct nodes *nodes, struct node *parent, const char *name,
	const struct statx *stat, bool closed, struct node_use *ret_use);
/* Give it this O_PATH descriptor if it has none, and pin it. */
void node_adopt_fd(struct node_use *use, int fd);
/* A file was renamed: if the guest knows what is now `name` in `parent`, that is where it is. */
void node_moved(
	struct nodes *nodes, struct node *parent, const char *name, const struct statx *stat);
/* May the guest keep what it has of the file's bytes? And remember how the file is now. */
bool node_unchanged(struct nodes *nodes, struct node *node, const struct statx *now);

/* ---- handles.c: what the guest has open ---- */

struct handle {
	uint64_t id;
	struct node_use use;
	int fd;
	bool directory;
	unsigned refs;		  /* the guest's, and of who works with it */
	pthread_mutex_t dir_lock; /* where the directory is read */
};

struct handle_slot {
	struct handle *handle;
	uint32_t generation, next_free;
};

struct handles {
	pthread_mutex_t lock;
	struct handle_slot *slot;
	uint32_t slot_count, slot_room, free_slot;
	unsigned count, max;
};

MUST_CHECK int handles_init(struct handles *handles, unsigned max);
void handles_done(struct handles *handles);
void handles_close_all(struct handles *handles);
/* fd and the use are taken over on success. Errors: -ENOMEM, -ENFILE. */
MUST_CHECK int handle_open(
	struct handles *handles, struct node_use *use, int fd, bool directory, uint64_t *ret_id);
/* Errors: -EBADF. */
MUST_CHECK int handle_close(struct handles *handles, uint64_t id, bool directory);

struct handle_use {
	struct handles *handles;
	struct handle *handle;
};

/* Errors: -EBADF: no such handle, or not of this node, or of the wrong kind. */
MUST_CHECK int handle_use(struct handles *handles, uint64_t id, uint64_t node_id, bool directory,
	struct handle_use *ret_use);
void handle_let_go(struct handle_use *use);
#define AUTO_HANDLE CLEANUP(handle_let_go)

/* ---- identity.c: whose files are ---- */

struct identity {
	bool host_ids, is_root;
	uint32_t uid, gid; /* that the guest sees */
	uid_t host_uid;
	gid_t host_gid;
	gid_t *groups;
	unsigned group_count;
};

MUST_CHECK int identity_init(struct identity *identity, const struct share_config *config);
void identity_done(struct identity *identity);
uint32_t identity_show_uid(const struct identity *identity, uid_t uid);
uint32_t identity_show_gid(const struct identity *identity, gid_t gid);
/* What to give chown() for what the guest asks; (uid_t)-1: leave it. Errors: -EPERM. */
MUST_CHECK int identity_take_uid(
	const struct identity *identity, uint32_t asked, uid_t now, uid_t *ret_uid);
MUST_CHECK int identity_take_gid(
	const struct identity *identity, uint32_t asked, gid_t now, gid_t *ret_gid);

/* ---- share.c ---- */

#define SHARE_DEVICES_MAX 256

struct share {
	struct fs fs;
	bool readonly, skip_flush;
	enum share_cache cache;
	int proc_fd; /* /proc/self/fd */
	struct nodes nodes;
	struct handles handles;
	struct identity identity;
	/* The session: */
	bool begun;	/* INIT was answered; atomic */
	bool writeback; /* and agreed on this; atomic */
	/* Host devices by number, so that files of two have two inode numbers: */
	pthread_mutex_t device_lock;
	uint64_t device[SHARE_DEVICES_MAX];
	unsigned device_count;
	struct pool *pool;
};

MUST_CHECK int share_create(
	struct share **ret_share, const struct share_config *config, struct error *err);
void share_free(struct share *share);
/* The guest has nothing open and knows nothing. */
void share_end_session(struct share *share);

/* The inode number that the guest sees. */
uint64_t share_inode_number(struct share *share, const struct statx *stat);

/* ---- pool.c: threads ---- */

struct pool;

MUST_CHECK int pool_create(struct pool **ret_pool, struct share *share);
void pool_free(struct pool *pool); /* NULL is allowed; nothing is under way */
void pool_submit(struct pool *pool, struct fs_request *request);
/* What has not begun ends without effect, and so does the session. */
void pool_abandon(struct pool *pool);
/* Have a thread call nodes_bury(). */
void pool_bury(struct pool *pool);

/* ---- call.c ---- */

/* A thread's own memory for one request after the other. */
struct scratch {
	uint8_t argument[SHARE_ARGUMENT_MAX] __attribute__((aligned(8)));
	uint8_t reply[SHARE_REPLY_MAX] __attribute__((aligned(8)));
	uint8_t names[32768] __attribute__((aligned(8))); /* getdents64() */
	struct iovec vector[SHARE_VECTOR_MAX];
};

struct call {
	struct share *share;
	struct scratch *scratch;
	const struct fs_request *request;
	struct fuse_in_header header;
	const void *argument; /* a copy; what the header says it is long */
	size_t argument_bytes;
	size_t next_string; /* offset in the argument */
	void *reply;	    /* payload goes here, unless it is in the guest's memory already */
	size_t reply_room;  /* bytes of payload that fit both there and in the guest's buffers */
	bool direct;
};

/* Answer one request; returns the bytes of the reply. Threads: any, each with scratch of its own. */
uint32_t share_serve(
	struct share *share, struct scratch *scratch, const struct fs_request *request);
/* Is it a request that may be answered where it came, since it never waits? */
bool share_is_quick(const struct fs_request *request);
uint32_t share_serve_quick(struct share *share, const struct fs_request *request);

/* The next NUL-terminated string of the argument; NULL: there is none. */
const char *call_string(struct call *call);
/* The same, and it names something in a directory. Errors: -EINVAL, -ENAMETOOLONG. */
MUST_CHECK int call_name(struct call *call, const char **ret_name);
/* The guest's buffers from byte `skip` on, `bytes` of them: fills `vec`; returns how many entries. */
unsigned call_vector(const struct iovec *iov, unsigned count, uint64_t skip, uint64_t bytes,
	struct iovec *vec, unsigned max);

/* An operation: returns bytes of payload or negative errno. */
typedef int op_fn(struct call *call);

op_fn op_init, op_destroy, op_statfs, op_syncfs;
op_fn op_lookup, op_getattr, op_setattr, op_readlink, op_access;
op_fn op_symlink, op_mknod, op_mkdir, op_unlink, op_rmdir, op_rename, op_rename2, op_link;
op_fn op_open, op_create, op_read, op_write, op_flush, op_release, op_fsync, op_fallocate, op_lseek,
	op_copy_range;
op_fn op_opendir, op_readdir, op_readdirplus, op_releasedir, op_fsyncdir;
op_fn op_setxattr, op_getxattr, op_listxattr, op_removexattr;

/* ---- attr.c ---- */

/* The path of a descriptor, for calls that want one. */
struct fd_path {
	char text[32]; /* "/proc/self/fd/N" */
};

struct fd_path share_fd_path(int fd);
/* Its name in share->proc_fd. */
const char *share_fd_name(const struct fd_path *path);

int share_statx(int dir_fd, const char *name,
	struct statx *ret_stat); /* 0 or negative errno; never follows */
void share_fill_attr(struct share *share, const struct statx *stat, struct fuse_attr *ret_attr);
/* Whole seconds that the guest may keep names and attributes. */
uint64_t share_valid_seconds(const struct share *share);
/* Find name in the directory and fill in what the guest gets to know; *ret_use (may be NULL) is the node. */
MUST_CHECK int share_enter(struct share *share, struct node_use *dir, const char *name,
	struct fuse_entry_out *ret_entry, struct node_use *ret_use);
/* The same of a file whose stat is known. */
MUST_CHECK int share_enter_stat(struct share *share, struct node_use *dir, const char *name,
	const struct statx *stat, struct fuse_entry_out *ret_entry, struct node_use *ret_use);
/* For a process that may keep set-uid bits on writing; the host's kernel drops them for all others. */
void share_drop_suid(struct share *share, int fd);
/* The mode that a file the guest makes or changes may have. */
mode_t share_mode(uint32_t asked, bool directory);

#endif
