/*
 * Fuzzing of the server of shared directories: an input is a guest's requests, and what the host does to the
 * directory in between. Requests are mostly well formed, with nodes and handles that earlier replies gave, so that
 * they come far; any part of one may lie.
 *
 * Beside the directory lie files that nobody may touch: after each input they are as they were. Whatever the guest
 * held is gone when its session ends.
 */
#include "tests/fuzz/rig.h"

#include "backend/share/internal.h"
#include "base/error.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define REQUESTS_MAX 200
#define KNOWN	     8
#define ROOM_MAX     70000

static const char *const names[] = {"a", "b", "c", "dir", "link", "up", "fifo", "sub", "hard", "..",
	".", "", "../outside/file", "/", "a/b", "dir/..", "long", "new"};
static const char *const targets[] = {"../outside", "../outside/file", "/", "a", "..", "."};

struct fuzz {
	char path[64];
	int scratch, dir; /* descriptors: SCRATCH, SCRATCH/in */
	struct share *share;
	struct scratch memory;
	struct rig_input *in;
	uint64_t nodes[KNOWN], handles[KNOWN];
	unsigned next_node, next_handle;
	uint64_t handle_nodes[KNOWN]; /* whose they are */
	unsigned chosen;	      /* handle last taken, + 1 */
	uint64_t node;		      /* of the request */
	uint8_t request[ROOM_MAX];
	uint32_t bytes;
};

/* ---- the scratch directory ---- */

static void make_file(int dir, const char *name)
{
	int fd = openat(dir, name, O_CREAT | O_WRONLY | O_TRUNC, 0644);

	MUST(fd >= 0 && write(fd, "as it was", 9) == 9);
	close(fd);
}

static void remove_tree(int dir, const char *name)
{
	DIR *list;
	struct dirent *entry;
	int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);

	if (fd < 0) {
		unlinkat(dir, name, 0);
		return;
	}
	fchmod(fd, 0700);
	list = fdopendir(fd);
	while ((entry = readdir(list)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			remove_tree(fd, entry->d_name);
	closedir(list);
	unlinkat(dir, name, AT_REMOVEDIR);
}

static void fill(struct fuzz *f)
{
	remove_tree(f->scratch, "in");
	MUST(mkdirat(f->scratch, "in", 0755) == 0);
	f->dir = openat(f->scratch, "in", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	MUST(f->dir >= 0);
	make_file(f->dir, "a");
	MUST(mkdirat(f->dir, "dir", 0755) == 0 && mkdirat(f->dir, "dir/sub", 0755) == 0);
	make_file(f->dir, "dir/b");
	MUST(symlinkat("../outside/file", f->dir, "link") == 0 &&
		symlinkat("..", f->dir, "up") == 0);
	MUST(mkfifoat(f->dir, "fifo", 0644) == 0);
	MUST(linkat(f->dir, "a", f->dir, "hard", 0) == 0);
}

static void check_untouched(const struct fuzz *f)
{
	static const char *const outside[] = {"outside", "outside/file"};
	static struct stat before[2];
	struct stat now;

	/* That somebody on this machine lists the directory is no business of ours. */
	for (unsigned i = 0; i < 2; i++) {
		MUST(fstatat(f->scratch, outside[i], &now, AT_SYMLINK_NOFOLLOW) == 0);
		if (!before[i].st_ino)
			before[i] = now;
		MUST(now.st_ino == before[i].st_ino &&
			now.st_ctim.tv_sec == before[i].st_ctim.tv_sec &&
			now.st_ctim.tv_nsec == before[i].st_ctim.tv_nsec &&
			(!S_ISREG(now.st_mode) || now.st_atim.tv_sec == before[i].st_atim.tv_sec) &&
			now.st_size == before[i].st_size && now.st_nlink == before[i].st_nlink);
	}
	/* Nothing new beside it either. */
	MUST(fstatat(f->scratch, ".", &now, 0) == 0 && now.st_nlink == 4);
}

static void prepare(struct fuzz *f)
{
	const struct rlimit size = {MIB(1), MIB(1)};
	const struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 2000}};

	/* Memory, if there is such a file system: some operations wait for a disk. */
	snprintf(f->path, sizeof(f->path), "%s/lodge-fuzz-XXXXXX",
		access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	MUST(mkdtemp(f->path));
	f->scratch = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	MUST(f->scratch >= 0 && mkdirat(f->scratch, "outside", 0755) == 0);
	make_file(f->scratch, "outside/file");
	/* An access after this would show. */
	MUST(utimensat(f->scratch, "outside/file", old, 0) == 0);
	MUST(setrlimit(RLIMIT_FSIZE, &size) == 0);
	signal(SIGXFSZ, SIG_IGN);
}

static struct fuzz *the_fuzz(void);

static void clean_up(void)
{
	remove_tree(AT_FDCWD, the_fuzz()->path);
}

static struct fuzz *the_fuzz(void)
{
	static struct fuzz fuzz;

	if (!fuzz.scratch) {
		prepare(&fuzz);
		atexit(clean_up);
	}
	return &fuzz;
}

/* ---- making a request ---- */

static unsigned take(struct fuzz *f, unsigned below)
{
	return (unsigned)rig_take(f->in, 1) % below;
}

static void put(struct fuzz *f, const void *bytes, size_t count)
{
	MUST(f->bytes + count <= sizeof(f->request));
	memcpy(f->request + f->bytes, bytes, count);
	f->bytes += (uint32_t)count;
}

static void put_32(struct fuzz *f, uint32_t value)
{
	put(f, &value, sizeof(value));
}

static void put_64(struct fuzz *f, uint64_t value)
{
	put(f, &value, sizeof(value));
}

/* Small ones, and all the others. */
static uint64_t any(struct fuzz *f)
{
	const unsigned kind = take(f, 8);

	if (kind == 7)
		return rig_take(f->in, 8);
	if (kind == 6)
		return rig_take(f->in, 4);
	return take(f, 64);
}

static uint64_t any_node(struct fuzz *f)
{
	const unsigned which = take(f, 24);

	if (which == 23)
		return any(f);
	return which < KNOWN * 2 ? f->nodes[which / 2] : FUSE_ROOT_ID;
}

static uint64_t any_handle(struct fuzz *f)
{
	const unsigned which = take(f, 24);

	f->chosen = which % KNOWN + 1;
	return which == 23 ? any(f) : f->handles[which % KNOWN];
}

static void put_name(struct fuzz *f)
{
	const unsigned which = take(f, 40);
	char name[300];

	if (which < 32) {
		const char *known = names[which % 9];
		put(f, known, strlen(known) + 1);
	} else if (which < 38) {
		const char *known = names[take(f, ARRAY_SIZE(names))];
		put(f, known, strlen(known) + 1);
	} else {
		const size_t bytes = (size_t)rig_take(f->in, 2) % sizeof(name);
		memset(name, 'l', sizeof(name));
		rig_take_bytes(f->in, name, MIN(bytes, (size_t)16));
		put(f, name, bytes);
	}
}

static uint32_t any_mode(struct fuzz *f)
{
	static const uint32_t types[] = {
		S_IFREG, S_IFREG, S_IFDIR, S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK, 0};

	/* The owner may always: or little comes after it. */
	return types[take(f, 8)] | 0700 | ((uint32_t)rig_take(f->in, 2) & 07077);
}

static void put_setattr(struct fuzz *f)
{
	struct fuse_setattr_in in = {.valid = (uint32_t)rig_take(f->in, 2) & 0xfff,
		.fh = any_handle(f),
		.size = any(f),
		.atime = any(f),
		.mtime = any(f),
		.atimensec = (uint32_t)any(f),
		.mode = any_mode(f)};

	put(f, &in, sizeof(in));
}

static void put_flags(struct fuzz *f)
{
	static const uint32_t flags[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_TRUNC,
		O_RDWR | O_APPEND, O_RDWR | O_EXCL, O_RDONLY | O_DIRECTORY, O_ACCMODE};

	put_32(f, take(f, 16) == 15 ? (uint32_t)rig_take(f->in, 4) : flags[take(f, 8)]);
}

static void put_write(struct fuzz *f)
{
	const uint32_t bytes = take(f, 16) ? take(f, 200) : (uint32_t)rig_take(f->in, 2);
	struct fuse_write_in in = {.fh = any_handle(f),
		.offset = any(f),
		.size = take(f, 16) ? bytes : (uint32_t)any(f),
		.write_flags = take(f, 8),
		.flags = take(f, 2) ? O_APPEND : 0};
	static uint8_t data[65536];

	put(f, &in, sizeof(in));
	put(f, data, bytes);
}

static void put_read(struct fuzz *f)
{
	struct fuse_read_in in = {.fh = any_handle(f),
		.offset = take(f, 4) ? 0 : any(f),
		.size = take(f, 4) ? 4096 : (uint32_t)any(f)};

	put(f, &in, sizeof(in));
}

static void put_xattr(struct fuzz *f, bool set)
{
	static const char *const known[] = {"user.a", "user.b", "user.", "security.capability",
		"trusted.a", "system.posix_acl_access", ""};
	const char *name = known[take(f, ARRAY_SIZE(known))];

	put_32(f, take(f, 4) ? 4 : (uint32_t)any(f));
	put_32(f, take(f, 4));
	put(f, name, strlen(name) + 1);
	if (set)
		put_32(f, (uint32_t)any(f));
}

static void put_batch(struct fuzz *f)
{
	const unsigned count = take(f, 20);

	put_32(f, take(f, 4) ? count : (uint32_t)any(f));
	put_32(f, 0);
	for (unsigned i = 0; i < count; i++) {
		put_64(f, any_node(f));
		put_64(f, any(f));
	}
}

static void put_copy(struct fuzz *f)
{
	const uint64_t to = any_handle(f), node = f->handle_nodes[f->chosen - 1];

	put_64(f, any_handle(f));
	put_64(f, any(f));
	put_64(f, take(f, 8) ? node : any_node(f));
	put_64(f, to);
	put_64(f, any(f));
	put_64(f, any(f));
	put_64(f, take(f, 8) == 7);
}

/* The argument of an operation, as it should be. */
static void put_argument(struct fuzz *f, uint32_t opcode)
{
	switch (opcode) {
	case FUSE_LOOKUP:
	case FUSE_UNLINK:
	case FUSE_RMDIR: put_name(f); break;
	case FUSE_FORGET: put_64(f, any(f)); break;
	case FUSE_BATCH_FORGET: put_batch(f); break;
	case FUSE_GETATTR:
		put_64(f, take(f, 2));
		put_64(f, any_handle(f));
		break;
	case FUSE_SETATTR: put_setattr(f); break;
	case FUSE_SYMLINK:
		put_name(f);
		put(f, "../outside/file", 16);
		break;
	case FUSE_MKNOD:
		put_32(f, any_mode(f));
		put_32(f, 0x103);
		put_64(f, 0);
		put_name(f);
		break;
	case FUSE_MKDIR:
		put_32(f, any_mode(f));
		put_32(f, 0);
		put_name(f);
		break;
	case FUSE_LINK:
	case FUSE_RENAME:
		put_64(f, any_node(f));
		put_name(f);
		put_name(f);
		break;
	case FUSE_RENAME2:
		put_64(f, any_node(f));
		put_64(f, take(f, 8));
		put_name(f);
		put_name(f);
		break;
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		put_flags(f);
		put_32(f, take(f, 2));
		break;
	case FUSE_CREATE:
		put_flags(f);
		put_32(f, any_mode(f));
		put_64(f, 0);
		put_name(f);
		break;
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS: put_read(f); break;
	case FUSE_WRITE: put_write(f); break;
	case FUSE_SETXATTR: put_xattr(f, true); break;
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR: put_xattr(f, false); break;
	case FUSE_REMOVEXATTR: put(f, "user.a", 7); break;
	case FUSE_INIT:
		put_32(f, take(f, 8) ? 7 : (uint32_t)any(f));
		put_32(f, take(f, 8) ? 36 : (uint32_t)any(f));
		put_64(f, rig_take(f->in, 8));
		for (unsigned i = 0; i < 6; i++)
			put_64(f, ~0ull);
		break;
	case FUSE_COPY_FILE_RANGE: put_copy(f); break;
	default: /* a handle and numbers */
		put_64(f, any_handle(f));
		for (unsigned i = 0; i < 6; i++)
			put_64(f, any(f));
		put_64(f, any_handle(f));
	}
}

/* ---- sending it ---- */

static void remember(struct fuzz *f, uint32_t opcode, const uint8_t *payload, uint32_t bytes)
{
	const struct fuse_entry_out *entry = (const void *)payload;
	const struct fuse_open_out *open_out = (const void *)payload;

	switch (opcode) {
	case FUSE_CREATE:
		open_out = (const void *)(payload + sizeof(*entry));
		__attribute__((fallthrough));
	case FUSE_LOOKUP:
	case FUSE_MKDIR:
	case FUSE_MKNOD:
	case FUSE_SYMLINK:
	case FUSE_LINK:
		MUST(bytes >= sizeof(*entry));
		MUST(entry->nodeid != FUSE_ROOT_ID);
		f->nodes[f->next_node++ % KNOWN] = entry->nodeid;
		if (opcode != FUSE_CREATE)
			return;
		break;
	case FUSE_OPEN:
	case FUSE_OPENDIR: MUST(bytes >= sizeof(*open_out)); break;
	default: return;
	}
	f->handle_nodes[f->next_handle % KNOWN] = opcode == FUSE_CREATE ? entry->nodeid : f->node;
	f->handles[f->next_handle++ % KNOWN] = open_out->fh;
}

/* In memory of exactly that size, in up to three pieces each. */
static void send(struct fuzz *f, uint32_t opcode)
{
	const uint32_t room = take(f, 8) ? 8192 : (uint32_t)rig_take(f->in, 2);
	const uint32_t cut = take(f, 4) ? 0 : MIN(take(f, 256), f->bytes),
		       reply_cut = MIN(cut, room);
	uint8_t *request = malloc(f->bytes ? f->bytes : 1), *reply = calloc(1, room ? room : 1);
	struct iovec out[] = {{request, cut}, {NULL, 0}, {request + cut, f->bytes - cut}};
	struct iovec in[] = {{reply, reply_cut}, {reply + reply_cut, room - reply_cut}};
	struct fs_request ask = {.out = out,
		.out_count = 3,
		.in = in,
		.in_count = 2,
		.out_bytes = f->bytes,
		.in_bytes = room};
	struct fuse_out_header header;

	MUST(request && reply);
	memcpy(request, f->request, f->bytes);
	const uint32_t written = share_serve(f->share, &f->memory, &ask);
	MUST(written <= room);
	if (written) {
		MUST(written >= sizeof(header));
		memcpy(&header, reply, sizeof(header));
		MUST(header.len == written && header.error <= 0 && header.error > -512);
		if (!header.error)
			remember(f, opcode, reply + sizeof(header),
				written - (uint32_t)sizeof(header));
	}
	free(request);
	free(reply);
}

static void one_request(struct fuzz *f)
{
	static const uint8_t likely[] = {FUSE_LOOKUP, FUSE_LOOKUP, FUSE_CREATE, FUSE_OPEN,
		FUSE_OPENDIR, FUSE_READDIR, FUSE_READDIRPLUS, FUSE_READ, FUSE_WRITE, FUSE_MKDIR,
		FUSE_RENAME, FUSE_RENAME2, FUSE_SYMLINK, FUSE_LINK, FUSE_SETATTR, FUSE_GETATTR,
		FUSE_UNLINK, FUSE_RMDIR, FUSE_RELEASE, FUSE_RELEASEDIR, FUSE_FORGET, FUSE_MKNOD};
	const uint32_t opcode = take(f, 4) ? likely[take(f, ARRAY_SIZE(likely))] : take(f, 56);
	struct fuse_in_header header = {.opcode = opcode, .unique = 1, .nodeid = any_node(f)};

	/* What ends all before it is rare. */
	if ((opcode == FUSE_INIT || opcode == FUSE_DESTROY || opcode == FUSE_SYNCFS) && take(f, 16))
		return;
	f->bytes = sizeof(header);
	f->chosen = 0;
	put_argument(f, opcode);
	header.len = f->bytes;
	/* A handle goes with its node, mostly. */
	if (f->chosen && take(f, 8))
		header.nodeid = f->handle_nodes[f->chosen - 1];
	f->node = header.nodeid;
	const unsigned lie = take(f, 64);
	if (lie == 63)
		header.len = (uint32_t)any(f);
	else if (lie == 62)
		f->bytes -= MIN(f->bytes, take(f, 64));
	else if (lie == 61)
		header.opcode = (uint32_t)rig_take(f->in, 4);
	memcpy(f->request, &header, MIN(sizeof(header), (size_t)f->bytes));
	send(f, header.opcode);
}

/* ---- what the host does ---- */

static void host_acts(struct fuzz *f)
{
	const char *from = names[take(f, 9)], *to = names[take(f, 9)];

	switch (take(f, 8)) {
	case 0: renameat2(f->dir, from, f->dir, to, 0); break;
	case 1: renameat2(f->dir, from, f->dir, to, RENAME_EXCHANGE); break;
	case 2: unlinkat(f->dir, from, 0); break;
	case 3: symlinkat(targets[take(f, ARRAY_SIZE(targets))], f->dir, from); break;
	case 4: mkdirat(f->dir, from, 0755); break;
	case 5: remove_tree(f->dir, from); break;
	case 6: renameat2(f->dir, "dir/sub", f->dir, to, RENAME_EXCHANGE); break;
	case 7: linkat(f->dir, from, f->dir, to, 0); break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	struct fuzz *f = the_fuzz();
	char path[128];
	struct error err;

	f->in = &in;
	memset(f->nodes, 0, sizeof(f->nodes));
	memset(f->handles, 0, sizeof(f->handles));
	memset(f->handle_nodes, 0, sizeof(f->handle_nodes));
	f->next_node = f->next_handle = 0;
	fill(f);
	snprintf(path, sizeof(path), "%.63s/in", f->path);
	const unsigned how = take(f, 16);
	const struct share_config config = {.path = path,
		.max_descriptors = 1,
		.max_nodes = 12 + how,
		.readonly = how == 15,
		.cache = (enum share_cache)(how % 3),
		.host_ids = how & 4};
	MUST(share_create(&f->share, &config, &err) == 0);
	f->share->begun = how != 14;
	/* As if there were few: descriptors come and go. */
	f->share->nodes.fd_max = 1 + how % 4;
	f->share->skip_flush = how & 1;
	f->share->writeback = how % 3 == SHARE_CACHE_ALWAYS;
	for (unsigned i = 0; i < REQUESTS_MAX && in.left; i++)
		if (take(f, 8))
			one_request(f);
		else
			host_acts(f);
	/* The guest is gone, and with it all it held. */
	share_end_session(f->share);
	MUST(f->share->nodes.count == 1 && f->share->nodes.fd_count == 1 &&
		f->share->handles.count == 0);
	share_free(f->share);
	close(f->dir);
	check_untouched(f);
	return 0;
}
