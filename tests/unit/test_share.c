/*
 * backend/share: operations as a guest sees them, limits, read-only shares, owners, threads. The attacks on what is
 * outside the directory are in test_share_confine.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <sys/resource.h>
#include <sys/xattr.h>

#include "tests/unit/share_rig.h"

#define ROOT FUSE_ROOT_ID

static struct share_rig *make(struct share_config config)
{
	struct share_rig *rig = malloc(sizeof(*rig));

	assert_non_null(rig);
	share_rig_init(rig);
	share_rig_share(rig, config);
	return rig;
}

static void unmake(struct share_rig *rig)
{
	share_rig_done(rig);
	free(rig);
}

static unsigned descriptors_open(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	assert_non_null(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

static void file_is(struct share_rig *rig, const char *name, const char *text)
{
	char bytes[256] = "";
	int fd = openat(rig->dir, name, O_RDONLY);

	assert_true(fd >= 0);
	assert_true(read(fd, bytes, sizeof(bytes) - 1) >= 0);
	close(fd);
	assert_string_equal(bytes, text);
}

/* ---- sessions ---- */

static void test_init(void **state)
{
	struct share_rig *rig = malloc(sizeof(*rig));
	struct fuse_init_in in = {.major = 7, .minor = 36, .max_readahead = 131072, .flags = ~0u};
	const struct fuse_init_out *out = (void *)rig->reply;

	share_rig_init(rig);
	char path[128];
	struct error err;
	snprintf(path, sizeof(path), "%s/in", rig->path);
	assert_int_equal(share_create(&rig->share, &(struct share_config){.path = path}, &err), 0);
	/* Nothing before INIT, and INIT in a version that Linux's virtiofs has. */
	assert_int_equal(share_rig_named(rig, FUSE_LOOKUP, ROOT, "a"), -EIO);
	in.minor = 27;
	assert_int_equal(share_rig_call(rig, FUSE_INIT, 0, &in, NULL), -EPROTO);
	in.major = 6;
	assert_int_equal(share_rig_call(rig, FUSE_INIT, 0, &in, NULL), -EPROTO);
	in.major = 8;
	assert_int_equal(share_rig_call(rig, FUSE_INIT, 0, &in, NULL), 0);
	assert_int_equal(out->major, 7);
	assert_int_equal(share_rig_named(rig, FUSE_LOOKUP, ROOT, "a"), -EIO);
	in = (struct fuse_init_in){
		.major = 7, .minor = 31, .max_readahead = 4096, .flags = FUSE_MAX_PAGES};
	/* The shorter argument of older kernels. */
	assert_int_equal(share_rig_send(rig, FUSE_INIT, 0, &in, 16, NULL, 0), 0);
	assert_int_equal(rig->bytes, sizeof(*out));
	assert_int_equal(out->flags, FUSE_MAX_PAGES);
	assert_int_equal(out->max_pages, 256);
	assert_int_equal(out->max_write, 1 << 20);
	assert_int_equal(share_rig_named(rig, FUSE_LOOKUP, ROOT, "a"), -ENOENT);
	/* Never what would let the server be led elsewhere, or what it doesn't have. */
	assert_int_equal(share_rig_init_session(rig), 0);
	assert_int_equal(
		out->flags & (FUSE_EXPORT_SUPPORT | FUSE_POSIX_ACL | FUSE_SUBMOUNTS |
				     FUSE_WRITEBACK_CACHE | FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS |
				     FUSE_SETXATTR_EXT | FUSE_DONT_MASK),
		0);
	assert_int_equal(share_rig_send(rig, FUSE_DESTROY, 0, NULL, 0, NULL, 0), 0);
	assert_int_equal(share_rig_named(rig, FUSE_LOOKUP, ROOT, "a"), -EIO);
	unmake(rig);
}

static void test_cannot_open(void **state)
{
	struct share *share;
	struct error err;

	assert_int_equal(
		share_create(&share, &(struct share_config){.path = "/nowhere"}, &err), -ENOENT);
	assert_string_equal(err.text, "can't share '/nowhere': No such file or directory");
	assert_int_equal(
		share_create(&share, &(struct share_config){.path = "/dev/null"}, &err), -ENOTDIR);
}

static void test_session_end(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	const unsigned before = descriptors_open();
	uint64_t node, handle, nodes[20], handles[20];

	for (int i = 0; i < 20; i++) {
		char name[8];
		snprintf(name, sizeof(name), "f%d", i);
		handles[i] = share_rig_create(rig, ROOT, name, O_RDWR, 0644, &nodes[i]);
		assert_int_not_equal(handles[i], 0);
	}
	assert_int_equal(descriptors_open(), before + 40);
	/* A new session knows nothing of the old one's. */
	assert_int_equal(share_rig_init_session(rig), 0);
	nodes_bury(&rig->share->nodes);
	assert_int_equal(descriptors_open(), before);
	assert_int_equal(share_rig_pread(rig, nodes[3], handles[3], 0, 10), -EBADF);
	assert_null(share_rig_getattr(rig, nodes[3]));
	assert_int_equal(rig->error, -ESTALE);
	handle = share_rig_create(rig, ROOT, "f3", O_RDWR, 0644, &node);
	assert_int_not_equal(handle, 0);
	assert_int_not_equal(handle, handles[3]);
	assert_int_not_equal(node, nodes[3]);
	unmake(rig);
}

/* ---- files ---- */

static void test_file(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	uint64_t node;
	uint64_t handle = share_rig_create(rig, ROOT, "file", O_RDWR, 0640, &node);

	assert_int_not_equal(handle, 0);
	assert_int_equal(share_rig_pwrite(rig, node, handle, 0, "hello, world", 0), 12);
	assert_int_equal(share_rig_pwrite(rig, node, handle, 7, "lodge", 0), 5);
	file_is(rig, "file", "hello, lodge");
	assert_int_equal(share_rig_pread(rig, node, handle, 7, 100), 5);
	assert_memory_equal(rig->reply, "lodge", 5);
	assert_int_equal(share_rig_pread(rig, node, handle, 100, 100), 0);
	assert_int_equal(share_rig_getattr(rig, node)->size, 12);
	/* O_APPEND is wherever the end is, whatever the guest believes. */
	assert_int_equal(share_rig_pwrite(rig, node, handle, 2, "!", O_APPEND), 1);
	file_is(rig, "file", "hello, lodge!");
	assert_int_equal(share_rig_setattr(rig, node,
				 (struct fuse_setattr_in){
					 .valid = FATTR_SIZE | FATTR_FH, .fh = handle, .size = 5}),
		0);
	file_is(rig, "file", "hello");
	assert_int_equal(share_rig_setattr(rig, node,
				 (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 4}),
		0);
	file_is(rig, "file", "hell");
	/* The file lives on when its name is gone, by handle and by node. */
	assert_int_equal(share_rig_named(rig, FUSE_UNLINK, ROOT, "file"), 0);
	assert_int_equal(share_rig_pread(rig, node, handle, 0, 100), 4);
	assert_int_equal(share_rig_getattr(rig, node)->nlink, 0);
	assert_int_equal(share_rig_release(rig, FUSE_RELEASE, node, handle), 0);
	assert_int_equal(share_rig_release(rig, FUSE_RELEASE, node, handle), -EBADF);
	assert_int_equal(share_rig_pread(rig, node, handle, 0, 100), -EBADF);
	unmake(rig);
}

/* The guest's buffers are in pieces, of which none ends where a structure does. */
static void test_scattered(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	uint64_t node;
	const uint64_t handle = share_rig_create(rig, ROOT, "file", O_RDWR, 0640, &node);
	uint8_t bytes[4096];
	struct iovec out[200], in[200];
	struct {
		struct fuse_in_header header;
		struct fuse_write_in write;
		char data[300];
	} ask = {.header = {.len = sizeof(ask), .opcode = FUSE_WRITE, .nodeid = node},
		.write = {.fh = handle, .size = sizeof(ask.data)}};

	memset(ask.data, 'x', sizeof(ask.data));
	ask.data[299] = 'y';
	for (int i = 0; i < 200; i++) {
		const size_t at = (size_t)i * 3;
		out[i] = (struct iovec){
			(uint8_t *)&ask + at, at < sizeof(ask) ? MIN(sizeof(ask) - at, 3ul) : 0};
		in[i] = (struct iovec){bytes + i * 3, 3};
	}
	struct fs_request request = {.out = out,
		.out_count = 200,
		.in = in,
		.in_count = 200,
		.out_bytes = sizeof(ask),
		.in_bytes = 600};
	assert_int_equal(share_serve(rig->share, &rig->scratch, &request), 24);
	assert_int_equal(((struct fuse_write_out *)(bytes + 16))->size, 300);
	struct {
		struct fuse_in_header header;
		struct fuse_read_in read;
	} get = {.header = {.len = sizeof(get), .opcode = FUSE_READ, .nodeid = node},
		.read = {.fh = handle, .size = 1000}};
	struct iovec one = {&get, sizeof(get)};
	request.out = &one;
	request.out_count = 1;
	request.out_bytes = sizeof(get);
	assert_int_equal(share_serve(rig->share, &rig->scratch, &request), 316);
	assert_memory_equal(bytes + 16, ask.data, 300);
	unmake(rig);
}

static void test_ranges(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	uint64_t node, other;
	const uint64_t handle = share_rig_create(rig, ROOT, "file", O_RDWR, 0640, &node);
	const uint64_t to = share_rig_create(rig, ROOT, "to", O_RDWR, 0640, &other);
	struct fuse_fallocate_in room = {.fh = handle, .offset = 0, .length = 1 << 20};
	struct fuse_lseek_in seek = {.fh = handle, .offset = 0, .whence = SEEK_DATA};
	struct fuse_copy_file_range_in copy = {
		.fh_in = handle, .nodeid_out = other, .fh_out = to, .off_out = 1, .len = 3};
	struct fuse_fsync_in sync = {.fh = handle};

	assert_int_equal(share_rig_call(rig, FUSE_FALLOCATE, node, &room, NULL), 0);
	assert_int_equal(share_rig_getattr(rig, node)->size, 1 << 20);
	room.mode = 0x20; /* FALLOC_FL_INSERT_RANGE: moves what is behind */
	assert_int_equal(share_rig_call(rig, FUSE_FALLOCATE, node, &room, NULL), -EOPNOTSUPP);
	assert_int_equal(share_rig_pwrite(rig, node, handle, 1 << 19, "abc", 0), 3);
	assert_int_equal(share_rig_call(rig, FUSE_LSEEK, node, &seek, NULL), 0);
	seek.whence = SEEK_SET;
	assert_int_equal(share_rig_call(rig, FUSE_LSEEK, node, &seek, NULL), -EINVAL);
	seek.whence = SEEK_HOLE;
	seek.offset = ~0ull;
	assert_int_equal(share_rig_call(rig, FUSE_LSEEK, node, &seek, NULL), -EINVAL);
	copy.off_in = 1 << 19;
	assert_int_equal(share_rig_call(rig, FUSE_COPY_FILE_RANGE, node, &copy, NULL), 0);
	assert_int_equal(((struct fuse_write_out *)rig->reply)->size, 3);
	assert_int_equal(share_rig_pread(rig, other, to, 1, 10), 3);
	assert_memory_equal(rig->reply, "abc", 3);
	copy.off_in = ~0ull;
	assert_int_equal(share_rig_call(rig, FUSE_COPY_FILE_RANGE, node, &copy, NULL), -EINVAL);
	assert_int_equal(share_rig_call(rig, FUSE_FSYNC, node, &sync, NULL), 0);
	unmake(rig);
}

static void test_setattr(void **state)
{
	struct share_rig *rig = make((struct share_config){.uid = 7, .gid = 8});
	uint64_t node;
	const struct fuse_attr *attr;

	assert_int_not_equal(share_rig_create(rig, ROOT, "file", O_RDWR, 06755, &node), 0);
	attr = share_rig_getattr(rig, node);
	/* Never a program that runs as somebody else. */
	assert_int_equal(attr->mode, S_IFREG | 0755);
	assert_int_equal(attr->uid, 7);
	assert_int_equal(attr->gid, 8);
	assert_int_equal(share_rig_setattr(rig, node,
				 (struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 06711}),
		0);
	assert_int_equal(share_rig_getattr(rig, node)->mode, S_IFREG | 0711);
	assert_int_equal(share_rig_setattr(rig, ROOT,
				 (struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 03755}),
		0);
	assert_int_equal(share_rig_getattr(rig, ROOT)->mode, S_IFDIR | 03755);
	/* To whom it belongs already: yes. To anybody else: no. */
	assert_int_equal(share_rig_setattr(rig, node,
				 (struct fuse_setattr_in){
					 .valid = FATTR_UID | FATTR_GID, .uid = 7, .gid = 8}),
		0);
	assert_int_equal(share_rig_setattr(
				 rig, node, (struct fuse_setattr_in){.valid = FATTR_UID, .uid = 1}),
		-EPERM);
	assert_int_equal(share_rig_setattr(
				 rig, node, (struct fuse_setattr_in){.valid = FATTR_GID, .gid = 1}),
		-EPERM);
	assert_int_equal(share_rig_setattr(rig, node,
				 (struct fuse_setattr_in){.valid = FATTR_ATIME | FATTR_MTIME,
					 .atime = 1000,
					 .mtime = 2000,
					 .mtimensec = 5}),
		0);
	attr = share_rig_getattr(rig, node);
	assert_int_equal(attr->atime, 1000);
	assert_int_equal(attr->mtime, 2000);
	assert_int_equal(attr->mtimensec, 5);
	assert_int_equal(share_rig_setattr(rig, node,
				 (struct fuse_setattr_in){.valid = FATTR_ATIME | FATTR_ATIME_NOW}),
		0);
	attr = share_rig_getattr(rig, node);
	assert_true(attr->atime > 1600000000);
	assert_int_equal(attr->mtime, 2000);
	assert_int_equal(share_rig_setattr(rig, node,
				 (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = ~0ull}),
		-EFBIG);
	assert_int_equal(
		share_rig_setattr(rig, ROOT, (struct fuse_setattr_in){.valid = FATTR_SIZE}),
		-EISDIR);
	unmake(rig);
}

static void test_owners(void **state)
{
	struct share_rig *rig = make((struct share_config){.uid = 1000, .gid = 1000});

	share_rig_write(rig, "in/file", "x");
	if (geteuid() == 0)
		assert_int_equal(fchownat(rig->dir, "file", 33, 33, 0), 0);
	uint64_t node = share_rig_lookup(rig, ROOT, "file");
	assert_int_equal(share_rig_getattr(rig, node)->uid, geteuid() ? 1000 : 65534);
	assert_int_equal(share_rig_getattr(rig, node)->gid, geteuid() ? 1000 : 65534);
	if (geteuid() == 0) {
		/* Taking it over is what the guest's root may do if the host's user may. */
		assert_int_equal(
			share_rig_setattr(rig, node,
				(struct fuse_setattr_in){
					.valid = FATTR_UID | FATTR_GID, .uid = 1000, .gid = 1000}),
			0);
		assert_int_equal(share_rig_getattr(rig, node)->uid, 1000);
	}
	unmake(rig);
	rig = make((struct share_config){.host_ids = true});
	assert_int_equal(share_rig_getattr(rig, ROOT)->uid, geteuid());
	unmake(rig);
}

static void test_names(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	struct fuse_mkdir_in dir = {.mode = 0755};
	struct fuse_rename_in into;
	struct fuse_rename2_in how = {.newdir = ROOT, .flags = RENAME_NOREPLACE};
	struct fuse_mknod_in node_in = {.mode = S_IFREG | 0600};
	struct fuse_link_in link_in;

	assert_int_equal(share_rig_call(rig, FUSE_MKDIR, ROOT, &dir, "d"), 0);
	const uint64_t d = ((struct fuse_entry_out *)rig->reply)->nodeid;
	assert_int_equal(share_rig_call(rig, FUSE_MKDIR, ROOT, &dir, "d"), -EEXIST);
	assert_int_equal(share_rig_call(rig, FUSE_MKNOD, d, &node_in, "f"), 0);
	const uint64_t f = ((struct fuse_entry_out *)rig->reply)->nodeid;
	assert_int_equal(share_rig_named(rig, FUSE_RMDIR, ROOT, "d"), -ENOTEMPTY);
	assert_int_equal(share_rig_send(rig, FUSE_SYMLINK, ROOT, "l\0../secret", 12, NULL, 0), 0);
	const uint64_t l = ((struct fuse_entry_out *)rig->reply)->nodeid;
	assert_int_equal(share_rig_send(rig, FUSE_READLINK, l, NULL, 0, NULL, 0), 0);
	assert_int_equal(rig->bytes, 9);
	assert_memory_equal(rig->reply, "../secret", 9);
	link_in.oldnodeid = f;
	assert_int_equal(share_rig_call(rig, FUSE_LINK, ROOT, &link_in, "f2"), 0);
	assert_int_equal(((struct fuse_entry_out *)rig->reply)->nodeid, f);
	assert_int_equal(share_rig_getattr(rig, f)->nlink, 2);
	/* A link to a symbolic link is one to the link, not to where it leads. */
	link_in.oldnodeid = l;
	assert_int_equal(share_rig_call(rig, FUSE_LINK, ROOT, &link_in, "l2"), 0);
	assert_int_equal(((struct fuse_entry_out *)rig->reply)->nodeid, l);
	into.newdir = d;
	assert_int_equal(
		share_rig_send(rig, FUSE_RENAME, ROOT, &into, sizeof(into), "f2\0g", 5), 0);
	assert_int_equal(share_rig_lookup(rig, d, "g"), f);
	assert_int_equal(
		share_rig_send(rig, FUSE_RENAME2, ROOT, &how, sizeof(how), "l\0d", 4), -EEXIST);
	how.flags = RENAME_EXCHANGE;
	assert_int_equal(share_rig_send(rig, FUSE_RENAME2, ROOT, &how, sizeof(how), "l\0d", 4), 0);
	assert_int_equal(share_rig_lookup(rig, ROOT, "l"), d);
	assert_int_equal(share_rig_lookup(rig, d, "f"), f);
	how.flags = RENAME_WHITEOUT;
	assert_int_equal(
		share_rig_send(rig, FUSE_RENAME2, ROOT, &how, sizeof(how), "l\0x", 4), -EINVAL);
	unmake(rig);
}

static void test_umask(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	struct fuse_mkdir_in dir = {.mode = 0777};
	const mode_t before = umask(0);

	assert_int_equal(share_rig_call(rig, FUSE_MKDIR, ROOT, &dir, "d"), 0);
	assert_int_equal(((struct fuse_entry_out *)rig->reply)->attr.mode, S_IFDIR | 0777);
	umask(before);
	unmake(rig);
}

/* ---- directories ---- */

/* How many of n0 ... n(COUNT-1) a listing in requests of `size` bytes has, each once. */
static unsigned listed(
	struct share_rig *rig, uint64_t dir, uint32_t opcode, uint32_t size, unsigned count)
{
	const uint64_t handle = share_rig_open(rig, FUSE_OPENDIR, dir, 0);
	struct fuse_read_in in = {.fh = handle, .size = size};
	const size_t head = opcode == FUSE_READDIRPLUS ? sizeof(struct fuse_entry_out) : 0;
	AUTO_FREE uint8_t *seen = calloc(count, 1);
	unsigned found = 0;

	assert_int_not_equal(handle, 0);
	for (;;) {
		assert_int_equal(share_rig_call(rig, opcode, dir, &in, NULL), 0);
		assert_true(rig->bytes <= size);
		if (!rig->bytes)
			break;
		for (uint32_t at = 0; at < rig->bytes;) {
			const struct fuse_dirent *entry = (void *)(rig->reply + at + head);
			unsigned number;

			in.offset = entry->off;
			if (entry->name[0] == 'n') {
				number = (unsigned)strtoul(entry->name + 1, NULL, 10);
				assert_true(number < count && !seen[number]);
				seen[number] = 1;
				found++;
				if (head)
					assert_int_not_equal(
						((struct fuse_entry_out *)(rig->reply + at))
							->nodeid,
						0);
			} else if (head) {
				assert_int_equal(
					((struct fuse_entry_out *)(rig->reply + at))->nodeid, 0);
			}
			at += FUSE_DIRENT_ALIGN(head + FUSE_NAME_OFFSET + entry->namelen);
		}
	}
	assert_int_equal(share_rig_release(rig, FUSE_RELEASEDIR, dir, handle), 0);
	return found;
}

static void test_readdir(void **state)
{
	struct share_rig *rig = make((struct share_config){0});

	for (int i = 0; i < 1000; i++) {
		char name[16];
		snprintf(name, sizeof(name), "in/n%d", i);
		share_rig_write(rig, name, "");
	}
	assert_int_equal(listed(rig, ROOT, FUSE_READDIR, 4096, 1000), 1000);
	assert_int_equal(listed(rig, ROOT, FUSE_READDIR, 65536, 1000), 1000);
	assert_int_equal(listed(rig, ROOT, FUSE_READDIR, 32, 1000), 1000);
	assert_int_equal(listed(rig, ROOT, FUSE_READDIRPLUS, 4096, 1000), 1000);
	assert_int_equal(listed(rig, ROOT, FUSE_READDIRPLUS, 200, 1000), 1000);
	struct fuse_read_in in = {.fh = share_rig_open(rig, FUSE_OPENDIR, ROOT, 0), .size = 16};
	assert_int_equal(share_rig_call(rig, FUSE_READDIR, ROOT, &in, NULL), -EINVAL);
	in.size = 4096;
	in.offset = ~0ull;
	assert_int_equal(share_rig_call(rig, FUSE_READDIR, ROOT, &in, NULL), -EINVAL);
	in.offset = 12345678; /* nobody's place: whatever the host makes of it */
	share_rig_call(rig, FUSE_READDIR, ROOT, &in, NULL);
	/* Not for reading as a file. */
	assert_int_equal(share_rig_pread(rig, ROOT, in.fh, 0, 10), -EBADF);
	assert_int_equal(share_rig_release(rig, FUSE_RELEASE, ROOT, in.fh), -EBADF);
	assert_int_equal(share_rig_release(rig, FUSE_RELEASEDIR, ROOT, in.fh), 0);
	/* The parent of the root is none of the guest's business. */
	in = (struct fuse_read_in){.fh = share_rig_open(rig, FUSE_OPENDIR, ROOT, 0), .size = 4096};
	struct stat up;
	assert_int_equal(fstatat(rig->dir, "..", &up, 0), 0);
	assert_int_equal(share_rig_call(rig, FUSE_READDIR, ROOT, &in, NULL), 0);
	for (uint32_t at = 0; at < rig->bytes;) {
		const struct fuse_dirent *entry = (void *)(rig->reply + at);
		assert_int_not_equal(entry->ino, up.st_ino);
		at += FUSE_DIRENT_SIZE(entry);
	}
	unmake(rig);
}

/* ---- attributes ---- */

static void test_xattr(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	struct fuse_getxattr_in get = {.size = 100};
	struct {
		uint32_t size, flags;
	} set = {3, 0};

	share_rig_write(rig, "in/file", "x");
	const uint64_t node = share_rig_lookup(rig, ROOT, "file");
	if (fsetxattr(rig->dir, "user.try", "1", 1, 0) < 0) {
		print_message("NOT CHECKED: extended attributes (the file system of %s has none)\n",
			rig->path);
		unmake(rig);
		skip();
	}
	assert_int_equal(share_rig_send(rig, FUSE_SETXATTR, node, &set, 8, "user.a\0xyz", 10), 0);
	assert_int_equal(share_rig_call(rig, FUSE_GETXATTR, node, &get, "user.a"), 0);
	assert_int_equal(rig->bytes, 3);
	assert_memory_equal(rig->reply, "xyz", 3);
	get.size = 2;
	assert_int_equal(share_rig_call(rig, FUSE_GETXATTR, node, &get, "user.a"), -ERANGE);
	get.size = 0;
	assert_int_equal(share_rig_call(rig, FUSE_GETXATTR, node, &get, "user.a"), 0);
	assert_int_equal(((struct fuse_getxattr_out *)rig->reply)->size, 3);
	get.size = 100;
	assert_int_equal(share_rig_call(rig, FUSE_GETXATTR, node, &get, "user.none"), -ENODATA);
	/* What means something to the host's kernel. */
	assert_int_equal(
		share_rig_call(rig, FUSE_GETXATTR, node, &get, "security.capability"), -ENODATA);
	assert_int_equal(share_rig_call(rig, FUSE_GETXATTR, node, &get, "system.posix_acl_access"),
		-EOPNOTSUPP);
	assert_int_equal(
		share_rig_send(rig, FUSE_SETXATTR, node, &set, 8, "security.capability\0xyz", 23),
		-EOPNOTSUPP);
	assert_int_equal(share_rig_send(rig, FUSE_SETXATTR, node, &set, 8, "trusted.a\0xyz", 13),
		-EOPNOTSUPP);
	assert_int_equal(
		share_rig_named(rig, FUSE_REMOVEXATTR, node, "security.capability"), -EOPNOTSUPP);
	if (geteuid() == 0) {
		int fd = openat(rig->dir, "file", O_RDONLY);
		assert_int_equal(fsetxattr(fd, "trusted.hidden", "1", 1, 0), 0);
		close(fd);
	}
	assert_int_equal(share_rig_call(rig, FUSE_LISTXATTR, node, &get, NULL), 0);
	assert_int_equal(rig->bytes, 7);
	assert_memory_equal(rig->reply, "user.a", 7);
	/* The size lies. */
	set.size = 4;
	assert_int_equal(
		share_rig_send(rig, FUSE_SETXATTR, node, &set, 8, "user.a\0xyz", 10), -EINVAL);
	set.size = ~0u;
	assert_int_equal(
		share_rig_send(rig, FUSE_SETXATTR, node, &set, 8, "user.a\0xyz", 10), -EINVAL);
	assert_int_equal(share_rig_named(rig, FUSE_REMOVEXATTR, node, "user.a"), 0);
	assert_int_equal(share_rig_named(rig, FUSE_REMOVEXATTR, node, "user.a"), -ENODATA);
	unmake(rig);
}

/* ---- read-only ---- */

static void test_readonly(void **state)
{
	struct share_rig *rig = make((struct share_config){.readonly = true});
	struct fuse_mkdir_in dir = {.mode = 0755};
	struct fuse_rename_in into = {.newdir = ROOT};
	struct fuse_access_in access_in = {.mask = W_OK};
	struct fuse_fallocate_in room = {.length = 1};
	uint64_t node;

	share_rig_write(rig, "in/file", "as it was");
	const uint64_t file = share_rig_lookup(rig, ROOT, "file");
	const uint64_t handle = share_rig_open(rig, FUSE_OPEN, file, O_RDONLY);
	assert_int_equal(share_rig_pread(rig, file, handle, 0, 100), 9);
	assert_int_equal(share_rig_open(rig, FUSE_OPEN, file, O_RDWR), 0);
	assert_int_equal(rig->error, -EROFS);
	assert_int_equal(share_rig_open(rig, FUSE_OPEN, file, O_RDONLY | O_TRUNC), 0);
	assert_int_equal(rig->error, -EROFS);
	assert_int_equal(share_rig_pwrite(rig, file, handle, 0, "x", 0), -EROFS);
	assert_int_equal(share_rig_create(rig, ROOT, "new", O_RDWR, 0644, &node), 0);
	assert_int_equal(rig->error, -EROFS);
	assert_int_equal(
		share_rig_setattr(rig, file, (struct fuse_setattr_in){.valid = FATTR_MODE}),
		-EROFS);
	assert_int_equal(share_rig_call(rig, FUSE_MKDIR, ROOT, &dir, "d"), -EROFS);
	assert_int_equal(share_rig_named(rig, FUSE_UNLINK, ROOT, "file"), -EROFS);
	assert_int_equal(
		share_rig_send(rig, FUSE_RENAME, ROOT, &into, sizeof(into), "file\0g", 7), -EROFS);
	assert_int_equal(share_rig_send(rig, FUSE_SYMLINK, ROOT, "l\0x", 4, NULL, 0), -EROFS);
	assert_int_equal(share_rig_call(rig, FUSE_ACCESS, file, &access_in, NULL), -EROFS);
	assert_int_equal(share_rig_call(rig, FUSE_FALLOCATE, file, &room, NULL), -EROFS);
	assert_int_equal(share_rig_named(rig, FUSE_REMOVEXATTR, file, "user.a"), -EROFS);
	file_is(rig, "file", "as it was");
	unmake(rig);
}

/* ---- limits ---- */

static void test_few_descriptors(void **state)
{
	struct share_rig *rig = make((struct share_config){.max_descriptors = 64});
	struct fuse_mkdir_in dir = {.mode = 0755};
	const unsigned before = descriptors_open();
	uint64_t nodes[300], at = ROOT;
	struct fuse_rename_in into = {.newdir = ROOT};

	/* A tower of directories, of which few can be held open at a time. */
	for (int i = 0; i < 300; i++) {
		assert_int_equal(share_rig_call(rig, FUSE_MKDIR, at, &dir, "d"), 0);
		at = nodes[i] = ((struct fuse_entry_out *)rig->reply)->nodeid;
	}
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 300; i++) {
			const unsigned which = (unsigned)(i * 7919 + round) % 300;
			assert_non_null(share_rig_getattr(rig, nodes[which]));
			const uint64_t handle = share_rig_open(rig, FUSE_OPENDIR, nodes[which], 0);
			assert_int_not_equal(handle, 0);
			assert_int_equal(
				share_rig_release(rig, FUSE_RELEASEDIR, nodes[which], handle), 0);
			assert_true(descriptors_open() <= before + 64);
		}
	}
	/* The foot of the tower gets another name, by the guest: all above is still found. */
	assert_int_equal(share_rig_send(rig, FUSE_RENAME, ROOT, &into, sizeof(into), "d\0e", 4), 0);
	for (int i = 299; i >= 0; i--)
		assert_non_null(share_rig_getattr(rig, nodes[i]));
	/* By the host: what is not held open is stale until it is looked up. */
	assert_int_equal(renameat(rig->dir, "e", rig->dir, "f"), 0);
	for (int i = 299; i >= 0; i--)
		if (!share_rig_getattr(rig, nodes[i]))
			assert_int_equal(rig->error, -ESTALE);
	assert_int_equal(share_rig_lookup(rig, ROOT, "f"), nodes[0]);
	for (int i = 299; i >= 0; i--)
		assert_non_null(share_rig_getattr(rig, nodes[i]));
	for (int i = 0; i < 300; i++)
		share_rig_forget(rig, nodes[i], i ? 1 : 2);
	nodes_bury(&rig->share->nodes);
	assert_int_equal(descriptors_open(), before);
	unmake(rig);
}

static void test_too_many_open(void **state)
{
	struct share_rig *rig = make((struct share_config){.max_descriptors = 64});
	uint64_t handles[64], node = 0;
	unsigned count = 0;

	share_rig_write(rig, "in/file", "x");
	node = share_rig_lookup(rig, ROOT, "file");
	while (count < 64 && (handles[count] = share_rig_open(rig, FUSE_OPEN, node, O_RDONLY)))
		count++;
	assert_int_equal(count, 16);
	assert_int_equal(rig->error, -ENFILE);
	assert_int_equal(share_rig_release(rig, FUSE_RELEASE, node, handles[3]), 0);
	assert_int_not_equal(share_rig_open(rig, FUSE_OPEN, node, O_RDONLY), 0);
	unmake(rig);
}

static void test_too_many_nodes(void **state)
{
	struct share_rig *rig = make((struct share_config){.max_nodes = 4});
	uint64_t nodes[4];

	for (int i = 0; i < 4; i++) {
		char name[16];
		snprintf(name, sizeof(name), "in/n%d", i);
		share_rig_write(rig, name, "");
		nodes[i] = share_rig_lookup(rig, ROOT, name + 3);
	}
	assert_int_equal(nodes[3], 0);
	assert_int_equal(rig->error, -ENFILE);
	share_rig_forget(rig, nodes[0], 1);
	assert_int_not_equal(share_rig_lookup(rig, ROOT, "n3"), 0);
	/* A listing has them all; those that are too many as mere names. */
	const uint64_t handle = share_rig_open(rig, FUSE_OPENDIR, ROOT, 0);
	struct fuse_read_in in = {.fh = handle, .size = 4096};
	assert_int_equal(share_rig_call(rig, FUSE_READDIRPLUS, ROOT, &in, NULL), 0);
	assert_true(rig->bytes > 6 * 150);
	unmake(rig);
}

static void test_process_has_no_descriptors(void **state)
{
	struct share_rig *rig = make((struct share_config){.max_descriptors = 4096});
	int filler[4096];
	unsigned count = 0;
	uint64_t nodes[100];
	struct fuse_mkdir_in dir = {.mode = 0755};

	for (int i = 0; i < 100; i++) {
		char name[16];
		snprintf(name, sizeof(name), "d%d", i);
		assert_int_equal(share_rig_call(rig, FUSE_MKDIR, ROOT, &dir, name), 0);
		nodes[i] = ((struct fuse_entry_out *)rig->reply)->nodeid;
		/* The first 50 are held open. */
		if (i < 50)
			share_rig_named(rig, FUSE_LOOKUP, nodes[i], "x");
	}
	/* dup2 to the limit is quicker than to open 20000 files: the limit is brought down instead. */
	struct rlimit before, low;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	low = before;
	low.rlim_cur = 200;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	while (count < 4096 && (filler[count] = dup(rig->dir)) >= 0)
		count++;
	/* Old ones are closed for new ones. */
	for (int i = 50; i < 100; i++)
		assert_int_equal(share_rig_named(rig, FUSE_LOOKUP, nodes[i], "x"), -ENOENT);
	while (count)
		close(filler[--count]);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	unmake(rig);
}

/* ---- what the guest may keep ---- */

static void test_keep_cache(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	const struct fuse_open_out *out = (void *)rig->reply;
	const struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};

	share_rig_write(rig, "in/file", "one");
	const uint64_t node = share_rig_lookup(rig, ROOT, "file");
	/* Changed just now: a change more might not show. */
	share_rig_open(rig, FUSE_OPEN, node, O_RDONLY);
	assert_int_equal(out->open_flags & FOPEN_KEEP_CACHE, 0);
	share_rig_open(rig, FUSE_OPEN, node, O_RDONLY);
	assert_int_equal(out->open_flags & FOPEN_KEEP_CACHE, 0);
	sleep(3);
	share_rig_open(rig, FUSE_OPEN, node, O_RDONLY);
	share_rig_open(rig, FUSE_OPEN, node, O_RDONLY);
	assert_int_equal(out->open_flags & FOPEN_KEEP_CACHE, FOPEN_KEEP_CACHE);
	/* The host changes it, and gives it the old time and size. */
	share_rig_write(rig, "in/file", "two");
	assert_int_equal(utimensat(rig->dir, "file", old, 0), 0);
	share_rig_open(rig, FUSE_OPEN, node, O_RDONLY);
	assert_int_equal(out->open_flags & FOPEN_KEEP_CACHE, 0);
	unmake(rig);

	rig = make((struct share_config){.cache = SHARE_CACHE_NONE});
	out = (void *)rig->reply;
	share_rig_write(rig, "in/file", "one");
	share_rig_open(rig, FUSE_OPEN, share_rig_lookup(rig, ROOT, "file"), O_RDONLY);
	assert_int_equal(out->open_flags, FOPEN_DIRECT_IO);
	unmake(rig);

	rig = make((struct share_config){.cache = SHARE_CACHE_ALWAYS});
	assert_true(rig->share->writeback);
	/* The guest reads what it writes a part of. */
	share_rig_write(rig, "in/file", "one");
	const uint64_t file = share_rig_lookup(rig, ROOT, "file");
	const uint64_t handle = share_rig_open(rig, FUSE_OPEN, file, O_WRONLY);
	assert_int_equal(share_rig_pread(rig, file, handle, 0, 10), 3);
	/* That there is none it may remember too. */
	assert_int_equal(share_rig_lookup(rig, ROOT, "none"), 0);
	assert_int_equal(rig->error, 0);
	unmake(rig);
}

/* ---- threads ---- */

struct asked {
	struct fs_request request;
	struct fuse_in_header header;
	char name[16];
	struct {
		struct fuse_out_header header;
		struct fuse_entry_out entry;
	} reply;
	struct iovec out[2], in;
	int *pending;
	uint32_t written;
};

static void answered(struct fs_request *request, uint32_t written)
{
	struct asked *asked = request->opaque;

	asked->written = written;
	__atomic_sub_fetch(asked->pending, 1, __ATOMIC_RELEASE);
}

static void ask(struct fs *fs, struct asked *asked, uint32_t opcode, const void *argument,
	size_t bytes, int *pending)
{
	uint32_t written = 0;

	*asked = (struct asked){.header = {.len = (uint32_t)(sizeof(asked->header) + bytes),
					.opcode = opcode,
					.nodeid = ROOT,
					.unique = 7},
		.pending = pending};
	asked->out[0] = (struct iovec){&asked->header, sizeof(asked->header)};
	asked->out[1] = (struct iovec){(void *)argument, bytes};
	asked->in = (struct iovec){&asked->reply, sizeof(asked->reply)};
	asked->request = (struct fs_request){.out = asked->out,
		.out_count = 2,
		.in = &asked->in,
		.in_count = 1,
		.out_bytes = asked->header.len,
		.in_bytes = sizeof(asked->reply),
		.done = answered,
		.opaque = asked};
	__atomic_add_fetch(pending, 1, __ATOMIC_RELAXED);
	if (fs_submit(fs, &asked->request, &written))
		answered(&asked->request, written);
}

static void wait_for(int *pending)
{
	for (int i = 0; i < 10000 && __atomic_load_n(pending, __ATOMIC_ACQUIRE); i++)
		usleep(1000);
	assert_int_equal(__atomic_load_n(pending, __ATOMIC_ACQUIRE), 0);
}

static void test_threads(void **state)
{
	struct share_rig *rig = malloc(sizeof(*rig));
	struct asked *asked = calloc(500, sizeof(*asked));
	struct fuse_init_in init = {.major = 7, .minor = 36};
	const struct fuse_forget_in forget = {.nlookup = 1};
	char path[128], name[] = "file";
	struct fs *fs;
	struct error err;
	int pending = 0, answers = 0;

	share_rig_init(rig);
	share_rig_write(rig, "in/file", "x");
	snprintf(path, sizeof(path), "%s/in", rig->path);
	assert_int_equal(share_open(&fs, &(struct share_config){.path = path}, &err), 0);
	for (int round = 0; round < 20; round++) {
		ask(fs, &asked[0], FUSE_INIT, &init, sizeof(init), &pending);
		wait_for(&pending);
		assert_int_equal(asked[0].reply.header.error, 0);
		for (int i = 0; i < 500; i++)
			ask(fs, &asked[i], FUSE_LOOKUP, name, sizeof(name), &pending);
		/* In the middle of it the guest resets the device. */
		if (round % 2) {
			fs_abandon(fs);
			wait_for(&pending);
			for (int i = 0; i < 500; i++)
				answers += asked[i].written > 0;
			continue;
		}
		wait_for(&pending);
		for (int i = 0; i < 500; i++) {
			assert_int_equal(asked[i].reply.header.error, 0);
			assert_int_equal(asked[i].reply.entry.nodeid, asked[0].reply.entry.nodeid);
		}
		for (int i = 0; i < 500; i++) {
			ask(fs, &asked[i], FUSE_FORGET, &forget, sizeof(forget), &pending);
			assert_int_equal(asked[i].written, 0);
		}
	}
	assert_true(answers < 10 * 500);
	fs_close(fs);
	free(asked);
	unmake(rig);
}

/* ---- many guests' threads at once, on few names and few descriptors ---- */

#define STRESS_THREADS 4

struct stress {
	struct share_rig rig; /* its own replies; the share is common */
	uint64_t dice;
	pthread_t thread;
};

static unsigned roll(struct stress *s, unsigned below)
{
	s->dice ^= s->dice << 13;
	s->dice ^= s->dice >> 7;
	s->dice ^= s->dice << 17;
	return (unsigned)(s->dice >> 20) % below;
}

static const char *any_name(struct stress *s)
{
	static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};

	return names[roll(s, ARRAY_SIZE(names))];
}

/* One of a few directories, in one another; with a lookup to be taken back for each but the root. */
static uint64_t descend(struct stress *s, uint64_t path[4], unsigned *ret_depth)
{
	uint64_t at = ROOT;
	unsigned depth = 0;

	while (depth < 4 && roll(s, 3)) {
		const uint64_t next = share_rig_lookup(&s->rig, at, any_name(s));

		if (!next)
			break;
		path[depth++] = at = next;
	}
	*ret_depth = depth;
	return at;
}

static void stress_file(struct stress *s, uint64_t dir)
{
	struct share_rig *rig = &s->rig;
	uint64_t node;
	const uint64_t handle = share_rig_create(rig, dir, any_name(s), O_RDWR, 0644, &node);

	if (!handle)
		return;
	share_rig_pwrite(rig, node, handle, roll(s, 1000), "some bytes", 0);
	share_rig_pread(rig, node, handle, 0, 1000);
	share_rig_getattr(rig, node);
	share_rig_release(rig, FUSE_RELEASE, node, handle);
	share_rig_forget(rig, node, 1);
}

static void stress_list(struct stress *s, uint64_t dir)
{
	struct share_rig *rig = &s->rig;
	struct fuse_read_in in = {.fh = share_rig_open(rig, FUSE_OPENDIR, dir, 0), .size = 4096};

	if (!in.fh)
		return;
	if (share_rig_call(rig, FUSE_READDIRPLUS, dir, &in, NULL) == 0) {
		uint64_t nodes[64];
		unsigned count = 0;

		for (uint32_t at = 0; at < rig->bytes;) {
			const struct fuse_direntplus *entry = (void *)(rig->reply + at);
			nodes[count++] = entry->entry_out.nodeid;
			at += FUSE_DIRENTPLUS_SIZE(entry);
		}
		while (count)
			share_rig_forget(rig, nodes[--count], 1);
	}
	share_rig_release(rig, FUSE_RELEASEDIR, dir, in.fh);
}

static void stress_once(struct stress *s)
{
	struct share_rig *rig = &s->rig;
	struct fuse_mkdir_in mkdir_in = {.mode = 0755};
	struct fuse_rename2_in rename_in = {.flags = roll(s, 2) ? 0 : RENAME_EXCHANGE};
	uint64_t path[4], other[4];
	unsigned depth, other_depth;
	const uint64_t dir = descend(s, path, &depth);
	char names[4] = "x\0y";

	switch (roll(s, 8)) {
	case 0:
	case 1: stress_file(s, dir); break;
	case 2: stress_list(s, dir); break;
	case 3:
		if (share_rig_call(rig, FUSE_MKDIR, dir, &mkdir_in, any_name(s)) == 0)
			share_rig_forget(rig, ((struct fuse_entry_out *)rig->reply)->nodeid, 1);
		break;
	case 4: share_rig_named(rig, FUSE_UNLINK, dir, any_name(s)); break;
	case 5: share_rig_named(rig, FUSE_RMDIR, dir, any_name(s)); break;
	case 6:
		rename_in.newdir = descend(s, other, &other_depth);
		names[0] = any_name(s)[0];
		names[2] = any_name(s)[0];
		share_rig_send(rig, FUSE_RENAME2, dir, &rename_in, sizeof(rename_in), names, 4);
		while (other_depth)
			share_rig_forget(rig, other[--other_depth], 1);
		break;
	/* The host's hand, of which the server doesn't hear. */
	case 7:
		renameat2(rig->dir, any_name(s), rig->dir, any_name(s),
			roll(s, 2) ? 0 : RENAME_EXCHANGE);
		break;
	}
	while (depth)
		share_rig_forget(rig, path[--depth], 1);
}

static void *stress_main(void *opaque)
{
	struct stress *s = opaque;

	for (int i = 0; i < 4000; i++)
		stress_once(s);
	return NULL;
}

static void test_stress(void **state)
{
	struct share_rig *rig = make((struct share_config){.max_descriptors = 64});
	struct stress *all = calloc(STRESS_THREADS, sizeof(*all));
	const unsigned before = descriptors_open();

	assert_non_null(all);
	for (unsigned i = 0; i < STRESS_THREADS; i++) {
		all[i].rig.share = rig->share;
		all[i].rig.dir = rig->dir;
		all[i].dice = 88172645463325252ull + i;
		assert_int_equal(pthread_create(&all[i].thread, NULL, stress_main, &all[i]), 0);
	}
	for (unsigned i = 0; i < STRESS_THREADS; i++)
		pthread_join(all[i].thread, NULL);
	/* All was taken back. */
	nodes_bury(&rig->share->nodes);
	assert_int_equal(rig->share->nodes.count, 1);
	assert_int_equal(rig->share->nodes.fd_count, 1);
	assert_int_equal(rig->share->handles.count, 0);
	assert_int_equal(descriptors_open(), before);
	free(all);
	unmake(rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_init),
		cmocka_unit_test(test_cannot_open),
		cmocka_unit_test(test_session_end),
		cmocka_unit_test(test_file),
		cmocka_unit_test(test_scattered),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_setattr),
		cmocka_unit_test(test_owners),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_umask),
		cmocka_unit_test(test_readdir),
		cmocka_unit_test(test_xattr),
		cmocka_unit_test(test_readonly),
		cmocka_unit_test(test_few_descriptors),
		cmocka_unit_test(test_too_many_open),
		cmocka_unit_test(test_too_many_nodes),
		cmocka_unit_test(test_process_has_no_descriptors),
		cmocka_unit_test(test_keep_cache),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_stress),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
