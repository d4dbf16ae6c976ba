/*
 * backend/share: a hostile guest, which wants at what is outside the directory, or wants the server to fail.
 *
 * What is out of bounds is SCRATCH/secret and SCRATCH/out; after every test they are as they were.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include "tests/unit/share_rig.h"

#define ROOT	 FUSE_ROOT_ID
#define OLD_TIME 1000000

static struct share_rig *make(struct share_config config)
{
	struct share_rig *rig = malloc(sizeof(*rig));
	const struct timespec old[2] = {{.tv_sec = OLD_TIME}, {.tv_sec = OLD_TIME}};
	char path[128];

	assert_non_null(rig);
	share_rig_init(rig);
	snprintf(path, sizeof(path), "%s/out", rig->path);
	assert_int_equal(mkdir(path, 0755), 0);
	share_rig_write(rig, "out/file", "not for guests");
	assert_int_equal(utimensat(rig->dir, "../secret", old, 0), 0);
	share_rig_share(rig, config);
	return rig;
}

static void check_outside(struct share_rig *rig)
{
	char bytes[64] = "";
	struct stat stat;

	int fd = openat(rig->dir, "../secret", O_RDONLY | O_NOATIME);
	assert_true(fd >= 0);
	assert_int_equal(read(fd, bytes, sizeof(bytes) - 1), 14);
	assert_string_equal(bytes, "not for guests");
	assert_int_equal(fstat(fd, &stat), 0);
	assert_int_equal(stat.st_mode, S_IFREG | 0644);
	assert_int_equal(stat.st_nlink, 1);
	assert_int_equal(stat.st_mtime, OLD_TIME);
	assert_int_equal(stat.st_atime, OLD_TIME);
	assert_int_equal(flistxattr(fd, NULL, 0), 0);
	close(fd);
	assert_int_equal(fstatat(rig->dir, "../out/file", &stat, 0), 0);
	assert_int_equal(stat.st_size, 14);
	assert_int_equal(stat.st_nlink, 1);
	assert_int_equal(fstatat(rig->dir, "../out", &stat, 0), 0);
	assert_int_equal(stat.st_mode, S_IFDIR | 0755);
	assert_int_equal(faccessat(rig->dir, "../out/new", F_OK, 0), -1);
	assert_int_equal(faccessat(rig->dir, "../new", F_OK, 0), -1);
}

static void unmake(struct share_rig *rig)
{
	check_outside(rig);
	share_rig_done(rig);
	free(rig);
}

static void link_to(struct share_rig *rig, const char *target, const char *name)
{
	assert_int_equal(symlinkat(target, rig->dir, name), 0);
}

/* ---- names ---- */

/* Every operation that takes a name, with a bad one; `after` is a second name. */
static void all_refuse(struct share_rig *rig, const char *name, size_t bytes, int error)
{
	struct fuse_mkdir_in mkdir_in = {.mode = 0755};
	struct fuse_mknod_in mknod_in = {.mode = S_IFREG | 0644};
	struct fuse_create_in create_in = {.flags = O_RDWR | O_TRUNC, .mode = 0644};
	struct fuse_rename_in rename_in = {.newdir = ROOT};
	struct fuse_rename2_in rename2_in = {.newdir = ROOT, .flags = RENAME_EXCHANGE};
	struct fuse_link_in link_in = {.oldnodeid = share_rig_lookup(rig, ROOT, "file")};
	char pair[1024];

	assert_int_not_equal(link_in.oldnodeid, 0);
	assert_int_equal(share_rig_send(rig, FUSE_LOOKUP, ROOT, name, bytes, NULL, 0), error);
	assert_int_equal(share_rig_send(rig, FUSE_UNLINK, ROOT, name, bytes, NULL, 0), error);
	assert_int_equal(share_rig_send(rig, FUSE_RMDIR, ROOT, name, bytes, NULL, 0), error);
	assert_int_equal(
		share_rig_send(rig, FUSE_MKDIR, ROOT, &mkdir_in, sizeof(mkdir_in), name, bytes),
		error);
	assert_int_equal(
		share_rig_send(rig, FUSE_MKNOD, ROOT, &mknod_in, sizeof(mknod_in), name, bytes),
		error);
	assert_int_equal(
		share_rig_send(rig, FUSE_CREATE, ROOT, &create_in, sizeof(create_in), name, bytes),
		error);
	assert_int_equal(
		share_rig_send(rig, FUSE_LINK, ROOT, &link_in, sizeof(link_in), name, bytes),
		error);
	assert_int_equal(share_rig_send(rig, FUSE_SYMLINK, ROOT, name, bytes, "x", 2), error);
	memcpy(pair, "file", 5);
	memcpy(pair + 5, name, bytes);
	assert_int_equal(share_rig_send(rig, FUSE_RENAME, ROOT, &rename_in, sizeof(rename_in), pair,
				 bytes + 5),
		error);
	assert_int_equal(share_rig_send(rig, FUSE_RENAME2, ROOT, &rename2_in, sizeof(rename2_in),
				 pair, bytes + 5),
		error);
	memcpy(pair, name, bytes);
	memcpy(pair + bytes, "file", 5);
	assert_int_equal(share_rig_send(rig, FUSE_RENAME, ROOT, &rename_in, sizeof(rename_in), pair,
				 bytes + 5),
		error);
}

static void test_bad_names(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	char long_name[300];

	share_rig_write(rig, "in/file", "x");
	all_refuse(rig, "..", 3, -EINVAL);
	all_refuse(rig, ".", 2, -EINVAL);
	all_refuse(rig, "", 1, -EINVAL);
	all_refuse(rig, "/", 2, -EINVAL);
	all_refuse(rig, "../secret", 10, -EINVAL);
	all_refuse(rig, "../new", 7, -EINVAL);
	all_refuse(rig, "/tmp/new", 9, -EINVAL);
	all_refuse(rig, "a/b", 4, -EINVAL);
	all_refuse(rig, "new/", 5, -EINVAL);
	memset(long_name, 'a', sizeof(long_name));
	long_name[256] = 0;
	all_refuse(rig, long_name, 257, -ENAMETOOLONG);
	/* No NUL at the end of what there is. */
	assert_int_equal(share_rig_send(rig, FUSE_LOOKUP, ROOT, "file", 4, NULL, 0), -EINVAL);
	assert_int_equal(share_rig_send(rig, FUSE_LOOKUP, ROOT, NULL, 0, NULL, 0), -EINVAL);
	assert_int_equal(share_rig_send(rig, FUSE_SYMLINK, ROOT, "a\0b", 3, NULL, 0), -EINVAL);
	/* What follows a NUL is not part of the name. */
	assert_int_equal(
		share_rig_send(rig, FUSE_LOOKUP, ROOT, "file\0/../../secret", 18, NULL, 0), 0);
	unmake(rig);
}

/* ---- symbolic links ---- */

static void test_links_are_not_followed(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	struct fuse_access_in access_in = {.mask = R_OK};
	struct fuse_getxattr_in get = {.size = 100};
	const struct {
		uint32_t size, flags;
	} set = {1, 0};

	link_to(rig, "../secret", "l");
	const uint64_t l = share_rig_lookup(rig, ROOT, "l");
	assert_int_equal(share_rig_getattr(rig, l)->mode & S_IFMT, S_IFLNK);
	for (unsigned flags = 0; flags < 3; flags++) {
		assert_int_equal(share_rig_open(rig, FUSE_OPEN, l, flags | O_TRUNC), 0);
		assert_int_equal(rig->error, -ENXIO);
	}
	assert_int_equal(share_rig_open(rig, FUSE_OPENDIR, l, 0), 0);
	assert_int_equal(rig->error, -ENOTDIR);
	assert_int_equal(
		share_rig_setattr(rig, l, (struct fuse_setattr_in){.valid = FATTR_SIZE}), -EINVAL);
	assert_int_equal(share_rig_setattr(rig, l,
				 (struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 0777}),
		-EOPNOTSUPP);
	/* Times and owners are the link's own. */
	assert_int_equal(
		share_rig_setattr(rig, l,
			(struct fuse_setattr_in){
				.valid = FATTR_ATIME | FATTR_MTIME, .atime = 5, .mtime = 6}),
		0);
	assert_int_equal(share_rig_getattr(rig, l)->mtime, 6);
	assert_int_equal(share_rig_send(rig, FUSE_SETXATTR, l, &set, 8, "user.a\0x", 8), -EPERM);
	assert_int_equal(share_rig_call(rig, FUSE_GETXATTR, l, &get, "user.a"), -ENODATA);
	assert_int_equal(share_rig_named(rig, FUSE_REMOVEXATTR, l, "user.a"), -EPERM);
	assert_int_equal(share_rig_call(rig, FUSE_LISTXATTR, l, &get, NULL), 0);
	assert_int_equal(rig->bytes, 0);
	share_rig_call(rig, FUSE_ACCESS, l, &access_in, NULL);
	unmake(rig);
}

static void test_links_to_directories(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	struct fuse_mkdir_in dir = {.mode = 0755};
	struct fuse_rename_in into = {0};
	uint64_t node;

	link_to(rig, "../out", "l");
	const uint64_t l = into.newdir = share_rig_lookup(rig, ROOT, "l");
	assert_int_equal(share_rig_lookup(rig, l, "file"), 0);
	assert_int_equal(rig->error, -ENOTDIR);
	assert_int_equal(share_rig_create(rig, l, "new", O_RDWR, 0644, &node), 0);
	assert_int_equal(rig->error, -ENOTDIR);
	assert_int_equal(share_rig_call(rig, FUSE_MKDIR, l, &dir, "new"), -ENOTDIR);
	assert_int_equal(share_rig_named(rig, FUSE_UNLINK, l, "file"), -ENOTDIR);
	share_rig_write(rig, "in/file", "x");
	assert_int_equal(
		share_rig_send(rig, FUSE_RENAME, ROOT, &into, sizeof(into), "file\0new", 9),
		-ENOTDIR);
	unmake(rig);
}

static void test_create_over_links(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	uint64_t node;

	link_to(rig, "../secret", "l");
	link_to(rig, "../new", "dangling");
	assert_int_equal(share_rig_create(rig, ROOT, "l", O_RDWR | O_TRUNC, 0644, &node), 0);
	assert_int_equal(rig->error, -ESTALE);
	assert_int_equal(share_rig_create(rig, ROOT, "dangling", O_RDWR, 0644, &node), 0);
	assert_int_equal(rig->error, -ESTALE);
	assert_int_equal(share_rig_create(rig, ROOT, "dangling", O_RDWR | O_EXCL, 0644, &node), 0);
	assert_int_equal(rig->error, -EEXIST);
	unmake(rig);
}

/* ---- what is not a file ---- */

static void test_special_files(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	struct fuse_mknod_in in = {.mode = S_IFCHR | 0666, .rdev = 0x105};
	uint64_t node;

	/* The guest makes none that mean something to the host's kernel. */
	assert_int_equal(share_rig_call(rig, FUSE_MKNOD, ROOT, &in, "zero"), -EPERM);
	in.mode = S_IFBLK | 0666;
	assert_int_equal(share_rig_call(rig, FUSE_MKNOD, ROOT, &in, "disk"), -EPERM);
	in.mode = S_IFDIR | 0755;
	assert_int_equal(share_rig_call(rig, FUSE_MKNOD, ROOT, &in, "dir"), -EINVAL);
	in.mode = S_IFIFO | 0644;
	assert_int_equal(share_rig_call(rig, FUSE_MKNOD, ROOT, &in, "fifo"), 0);
	const uint64_t fifo = ((struct fuse_entry_out *)rig->reply)->nodeid;
	in.mode = S_IFSOCK | 0644;
	assert_int_equal(share_rig_call(rig, FUSE_MKNOD, ROOT, &in, "socket"), 0);
	/* Opening a FIFO would wait for somebody at its other end. */
	assert_int_equal(share_rig_open(rig, FUSE_OPEN, fifo, O_RDONLY), 0);
	assert_int_equal(rig->error, -ENXIO);
	assert_int_equal(share_rig_create(rig, ROOT, "fifo", O_WRONLY, 0644, &node), 0);
	assert_int_equal(rig->error, -ESTALE);
	assert_int_equal(
		share_rig_setattr(rig, fifo, (struct fuse_setattr_in){.valid = FATTR_SIZE}),
		-EINVAL);
	if (geteuid() == 0 && mknodat(rig->dir, "null", S_IFCHR | 0666, makedev(1, 3)) == 0) {
		const uint64_t null = share_rig_lookup(rig, ROOT, "null");
		assert_int_equal(share_rig_getattr(rig, null)->rdev, 0x103);
		assert_int_equal(share_rig_open(rig, FUSE_OPEN, null, O_RDWR), 0);
		assert_int_equal(rig->error, -ENXIO);
	} else {
		print_message("NOT CHECKED: a device in the directory (not root)\n");
	}
	unmake(rig);
}

/* Who shares / shares no way into this very process. */
static void test_kernels_files(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	struct share *share = rig->share;
	struct error err;
	struct statfs fs;

	if (statfs("/proc", &fs) < 0 || fs.f_type != 0x9fa0)
		fail_msg("no /proc");
	assert_int_equal(share_create(&rig->share,
				 &(struct share_config){.path = "/", .readonly = true}, &err),
		0);
	assert_int_equal(share_rig_init_session(rig), 0);
	const uint64_t proc = share_rig_lookup(rig, ROOT, "proc");
	assert_int_not_equal(proc, 0);
	assert_int_equal(share_rig_getattr(rig, proc)->mode & S_IFMT, S_IFDIR);
	assert_int_equal(share_rig_lookup(rig, proc, "self"), 0);
	assert_int_equal(rig->error, -EACCES);
	assert_int_equal(share_rig_lookup(rig, proc, "version"), 0);
	assert_int_equal(rig->error, -EACCES);
	assert_int_equal(share_rig_open(rig, FUSE_OPENDIR, proc, 0), 0);
	assert_int_equal(rig->error, -EACCES);
	/* What else is mounted is part of it. */
	const uint64_t dev = share_rig_lookup(rig, ROOT, "dev");
	assert_int_not_equal(share_rig_lookup(rig, dev, "null"), 0);
	share_free(rig->share);
	rig->share = share;
	unmake(rig);
}

/* ---- the host changes things under the guest ---- */

static void test_swapped_directory(void **state)
{
	struct share_rig *rig = make((struct share_config){.max_descriptors = 64});
	uint64_t node;

	assert_int_equal(mkdirat(rig->dir, "d", 0755), 0);
	assert_int_equal(mkdirat(rig->dir, "e", 0755), 0);
	const uint64_t d = share_rig_lookup(rig, ROOT, "d");
	const uint64_t e = share_rig_lookup(rig, ROOT, "e");
	assert_int_equal(share_rig_lookup(rig, e, "x"), 0); /* e is held open, d not */
	assert_int_equal(renameat(rig->dir, "d", rig->dir, "d2"), 0);
	assert_int_equal(renameat(rig->dir, "e", rig->dir, "e2"), 0);
	link_to(rig, "../out", "d");
	link_to(rig, "../out", "e");
	assert_int_equal(share_rig_lookup(rig, d, "file"), 0);
	assert_int_equal(rig->error, -ESTALE);
	assert_int_equal(share_rig_create(rig, d, "new", O_RDWR, 0644, &node), 0);
	assert_int_equal(rig->error, -ESTALE);
	assert_null(share_rig_getattr(rig, d));
	/* Held open it stays the directory it was. */
	assert_int_not_equal(share_rig_create(rig, e, "new", O_RDWR, 0644, &node), 0);
	assert_int_equal(faccessat(rig->dir, "e2/new", F_OK, 0), 0);
	unmake(rig);
}

struct swapper {
	struct share_rig *rig;
	bool stop;
	unsigned long swaps;
};

/* "f" is in turn a file and a link to the secret; "d" a directory and a link to "out". */
static void *swap(void *opaque)
{
	struct swapper *swapper = opaque;
	const int dir = swapper->rig->dir;

	while (!__atomic_load_n(&swapper->stop, __ATOMIC_RELAXED)) {
		if (renameat2(dir, "f", dir, "f2", RENAME_EXCHANGE) < 0 ||
			renameat2(dir, "d", dir, "d2", RENAME_EXCHANGE) < 0)
			abort();
		swapper->swaps++;
	}
	return NULL;
}

static void attack(struct share_rig *rig)
{
	uint64_t node;
	uint64_t handle = 0;
	const uint64_t f = share_rig_lookup(rig, ROOT, "f");
	const uint64_t d = share_rig_lookup(rig, ROOT, "d");

	if (f) {
		handle = share_rig_open(rig, FUSE_OPEN, f, O_RDWR | O_TRUNC);
		if (handle) {
			assert_true(share_rig_pwrite(rig, f, handle, 0, "broken into", 0) >= 0);
			share_rig_release(rig, FUSE_RELEASE, f, handle);
		}
		share_rig_setattr(rig, f, (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 1});
		share_rig_setattr(
			rig, f, (struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 0600});
		share_rig_setattr(
			rig, f, (struct fuse_setattr_in){.valid = FATTR_MTIME, .mtime = 1});
		share_rig_forget(rig, f, 1);
	}
	handle = share_rig_create(rig, ROOT, "f", O_RDWR | O_TRUNC, 0644, &node);
	if (handle) {
		share_rig_pwrite(rig, node, handle, 0, "broken into", 0);
		share_rig_release(rig, FUSE_RELEASE, node, handle);
		share_rig_forget(rig, node, 1);
	}
	if (d) {
		handle = share_rig_create(rig, d, "new", O_RDWR, 0644, &node);
		if (handle)
			share_rig_release(rig, FUSE_RELEASE, node, handle);
		share_rig_named(rig, FUSE_UNLINK, d, "file");
		share_rig_forget(rig, d, 1);
	}
}

static void test_races(void **state)
{
	struct share_rig *rig = make((struct share_config){.max_descriptors = 64});
	struct swapper swapper = {.rig = rig};
	pthread_t thread;

	share_rig_write(rig, "in/f", "a file");
	link_to(rig, "../secret", "f2");
	assert_int_equal(mkdirat(rig->dir, "d", 0755), 0);
	link_to(rig, "../out", "d2");
	assert_int_equal(pthread_create(&thread, NULL, swap, &swapper), 0);
	for (int i = 0; i < 5000; i++)
		attack(rig);
	__atomic_store_n(&swapper.stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	assert_true(swapper.swaps > 100);
	unmake(rig);
}

/* The host turns a branch of the tree upside down: what we know of paths must not go in circles. */
static void test_circle(void **state)
{
	struct share_rig *rig = make((struct share_config){.max_descriptors = 64});

	assert_int_equal(mkdirat(rig->dir, "a", 0755), 0);
	assert_int_equal(mkdirat(rig->dir, "a/b", 0755), 0);
	const uint64_t a = share_rig_lookup(rig, ROOT, "a");
	const uint64_t b = share_rig_lookup(rig, a, "b");
	assert_int_equal(share_rig_lookup(rig, b, "x"), 0);
	assert_int_equal(renameat(rig->dir, "a/b", rig->dir, "b"), 0);
	assert_int_equal(renameat(rig->dir, "a", rig->dir, "b/a"), 0);
	/* b, which is held open, was last seen in a; now a is seen in b. */
	assert_int_equal(share_rig_lookup(rig, b, "a"), a);
	assert_non_null(share_rig_getattr(rig, a));
	assert_non_null(share_rig_getattr(rig, b));
	share_rig_forget(rig, a, 2);
	share_rig_forget(rig, b, 1);
	assert_int_equal(rig->share->nodes.count, 1);
	unmake(rig);
}

/* A number that the file system gives to a new file is not the old file. */
static void test_number_used_again(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	struct stat was = {0}, is = {0};
	bool again = false;

	for (int i = 0; i < 100 && !again; i++) {
		share_rig_write(rig, "in/a", "x");
		const uint64_t a = share_rig_lookup(rig, ROOT, "a");
		assert_int_equal(fstatat(rig->dir, "a", &was, 0), 0);
		assert_int_equal(unlinkat(rig->dir, "a", 0), 0);
		share_rig_write(rig, "in/b", "x");
		assert_int_equal(fstatat(rig->dir, "b", &is, 0), 0);
		again = was.st_ino == is.st_ino;
		const uint64_t b = share_rig_lookup(rig, ROOT, "b");
		if (again) {
			assert_int_not_equal(a, b);
			assert_null(share_rig_getattr(rig, a));
			assert_int_equal(rig->error, -ESTALE);
			assert_non_null(share_rig_getattr(rig, b));
		}
		assert_int_equal(unlinkat(rig->dir, "b", 0), 0);
	}
	if (!again)
		print_message("NOT CHECKED: inode numbers used again (this file system did not)\n");
	unmake(rig);
}

/* ---- ids ---- */

static void test_ids(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	uint64_t a, b,
		bad[] = {0, 2, 99, 1ull << 32, (1ull << 32) + 1, ~0ull, 0x7fffffff, ~0ull << 32};
	const uint64_t handle = share_rig_create(rig, ROOT, "a", O_RDWR, 0644, &a);
	const uint64_t other = share_rig_create(rig, ROOT, "b", O_RDWR, 0644, &b);

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		if (bad[i] != a && bad[i] != b) {
			assert_null(share_rig_getattr(rig, bad[i]));
			assert_int_equal(rig->error, -ESTALE);
			assert_int_equal(share_rig_lookup(rig, bad[i], "a"), 0);
			assert_int_equal(rig->error, -ESTALE);
			share_rig_forget(rig, bad[i], ~0ull);
		}
		if (bad[i] != handle && bad[i] != other)
			assert_int_equal(share_rig_pread(rig, a, bad[i], 0, 1), -EBADF);
	}
	/* A handle goes with its file. */
	assert_int_equal(share_rig_pread(rig, b, handle, 0, 1), -EBADF);
	assert_int_equal(share_rig_pwrite(rig, b, handle, 0, "x", 0), -EBADF);
	/* More than it has is all. */
	assert_int_equal(share_rig_release(rig, FUSE_RELEASE, a, handle), 0);
	share_rig_forget(rig, a, ~0ull);
	assert_null(share_rig_getattr(rig, a));
	share_rig_forget(rig, a, 1);
	share_rig_forget(rig, ROOT, ~0ull);
	assert_non_null(share_rig_getattr(rig, ROOT));
	/* What is open lives until it is closed, but has no name for the guest. */
	share_rig_forget(rig, b, 1);
	assert_int_equal(share_rig_pwrite(rig, b, other, 0, "x", 0), 1);
	assert_int_equal(share_rig_release(rig, FUSE_RELEASE, b, other), 0);
	assert_null(share_rig_getattr(rig, b));
	unmake(rig);
}

static void test_lookups_wrap(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	struct {
		struct fuse_batch_forget_in in;
		struct fuse_forget_one one[2];
	} batch = {.in.count = ~0u};

	share_rig_write(rig, "in/file", "x");
	const uint64_t file = share_rig_lookup(rig, ROOT, "file");
	for (int i = 0; i < 9; i++)
		assert_int_equal(share_rig_lookup(rig, ROOT, "file"), file);
	/* The count lies: what there is counts. */
	batch.one[0] = (struct fuse_forget_one){file, 5};
	batch.one[1] = (struct fuse_forget_one){file, 4};
	share_rig_send(rig, FUSE_BATCH_FORGET, 0, &batch, sizeof(batch), NULL, 0);
	assert_non_null(share_rig_getattr(rig, file));
	share_rig_send(rig, FUSE_BATCH_FORGET, 0, &batch, sizeof(batch), NULL, 0);
	assert_null(share_rig_getattr(rig, file));
	unmake(rig);
}

/* ---- lengths ---- */

static void test_lengths(void **state)
{
	struct share_rig *rig = make((struct share_config){0});
	uint64_t node;
	const uint64_t handle = share_rig_create(rig, ROOT, "file", O_RDWR, 0644, &node);
	struct fuse_write_in write_in = {.fh = handle, .size = 100};
	struct fuse_getattr_in getattr_in = {0};

	/* The header's length against what is there. */
	rig->lie_len = 41 + 4;
	assert_int_equal(share_rig_named(rig, FUSE_LOOKUP, ROOT, "fil"), -EINVAL);
	rig->lie_len = 39;
	assert_int_equal(share_rig_named(rig, FUSE_LOOKUP, ROOT, "file"), -EINVAL);
	rig->lie_len = ~0u;
	assert_int_equal(share_rig_named(rig, FUSE_LOOKUP, ROOT, "file"), -EINVAL);
	rig->lie_len = 40;
	assert_int_equal(share_rig_call(rig, FUSE_GETATTR, ROOT, &getattr_in, NULL), -EINVAL);
	/* WRITE's size against the data. */
	assert_int_equal(
		share_rig_send(rig, FUSE_WRITE, node, &write_in, sizeof(write_in), "abc", 3),
		-EINVAL);
	write_in.size = ~0u;
	assert_int_equal(
		share_rig_send(rig, FUSE_WRITE, node, &write_in, sizeof(write_in), "abc", 3),
		-EINVAL);
	write_in.size = 3;
	write_in.offset = ~0ull;
	assert_int_equal(
		share_rig_send(rig, FUSE_WRITE, node, &write_in, sizeof(write_in), "abc", 3),
		-EINVAL);
	/* Room for the reply. */
	rig->reply_room = sizeof(struct fuse_entry_out) - 1;
	assert_int_equal(share_rig_named(rig, FUSE_LOOKUP, ROOT, "file"), -EINVAL);
	write_in.offset = 0;
	assert_int_equal(
		share_rig_send(rig, FUSE_WRITE, node, &write_in, sizeof(write_in), "abc", 3), 0);
	rig->reply_room = 2;
	assert_int_equal(share_rig_pread(rig, node, handle, 0, 100), 2);
	assert_int_equal(share_rig_pread(rig, node, handle, ~0ull, 100), -EINVAL);
	assert_int_equal(share_rig_pread(rig, node, handle, 0, ~0u), 3);
	/* More argument than any operation has. */
	uint8_t *much = calloc(1, 1 << 20);
	assert_int_equal(share_rig_send(rig, FUSE_LOOKUP, ROOT, much, 1 << 20, NULL, 0), -E2BIG);
	free(much);
	for (uint32_t opcode = 0; opcode < 5000; opcode += opcode < 70 ? 1 : 97)
		share_rig_send(rig, opcode, ROOT, NULL, 0, NULL, 0);
	/* No room for a header at all: nothing is written. */
	struct fuse_in_header header = {
		.len = sizeof(header), .opcode = FUSE_STATFS, .nodeid = ROOT};
	struct iovec out = {&header, sizeof(header)}, in = {rig->reply, 15};
	struct fs_request request = {.out = &out,
		.out_count = 1,
		.in = &in,
		.in_count = 1,
		.out_bytes = sizeof(header),
		.in_bytes = 15};
	assert_int_equal(share_serve(rig->share, &rig->scratch, &request), 0);
	out.iov_len = request.out_bytes = 10;
	assert_int_equal(share_serve(rig->share, &rig->scratch, &request), 0);
	unmake(rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bad_names),
		cmocka_unit_test(test_links_are_not_followed),
		cmocka_unit_test(test_links_to_directories),
		cmocka_unit_test(test_create_over_links),
		cmocka_unit_test(test_special_files),
		cmocka_unit_test(test_kernels_files),
		cmocka_unit_test(test_swapped_directory),
		cmocka_unit_test(test_races),
		cmocka_unit_test(test_circle),
		cmocka_unit_test(test_number_used_again),
		cmocka_unit_test(test_ids),
		cmocka_unit_test(test_lookups_wrap),
		cmocka_unit_test(test_lengths),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
