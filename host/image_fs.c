/*
 * Filling an ext4 file system in a file: see image_fs.h.
 *
 * The order of the calls for one file is that of mke2fs -d. Directories are left without an index, which the
 * kernel makes when they grow, and without access control lists of their own.
 */
#include "host/image_fs.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "host/process.h"

#include <errno.h>
#include <ext2fs/ext2fs.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define LINKS_MAX	40 /* symbolic links on the way to one name, as in Linux */
#define DEPTH_MAX	256 /* directories in one another that are removed */
#define HARD_LINKS_MAX	65000
#define COPY_BYTES	KIB(256)

struct image_fs {
	ext2_filsys fs;
	uint8_t copy[COPY_BYTES];
};

/* ---- errors ---- */

/* err may hold the source's own words already, if code is negative. */
static int fail(struct error *err, errcode_t code, const char *path)
{
	switch (code) {
	case EXT2_ET_BLOCK_ALLOC_FAIL:
	case EXT2_ET_INODE_ALLOC_FAIL:
	case ENOSPC:
		return error_set(err, ENOSPC,
			"the image is full at '%s': make it greater with --size (or see that the host's disk has room)", path);
	case EXT2_ET_FILE_NOT_FOUND: return error_set(err, ENOENT, "'%s' is not in the image", path);
	case EXT2_ET_NO_MEMORY:
	case ENOMEM: return error_set(err, ENOMEM, "no memory");
	case EXT2_ET_NO_DIRECTORY: return error_set(err, ENOTDIR, "'%s': part of this name is no directory", path);
	default:
		return error_set(err, code > 0 && code < 4096 ? (int)code : EIO, "can't write '%s' into the image: %s", path,
			error_message(code));
	}
}

/* ---- making ---- */

static int make(int fd, uint64_t offset, uint64_t size_bytes, const char *label, const char *uuid, struct error *err)
{
	char file[64], where[64], blocks[32];

	snprintf(file, sizeof(file), "/proc/self/fd/%d", fd);
	/* The file is new and all zeros: inode tables need not be written, nor by the guest later. */
	snprintf(where, sizeof(where), "offset=%" PRIu64 ",assume_storage_prezeroed=1", offset);
	snprintf(blocks, sizeof(blocks), "%" PRIu64 "k", size_bytes >> 10);
	const char *const argv[] = { "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "1", "-L",
		label, "-U", uuid, "-E", where, file, blocks, NULL };
	return process_run(argv, fd, "e2fsprogs", err);
}

int image_fs_create(struct image_fs **ret_fs, int fd, uint64_t offset, uint64_t size_bytes, const char *label,
	const char *uuid, struct error *err)
{
	AUTO_FREE struct image_fs *fs = calloc(1, sizeof(*fs));
	char file[64], options[64];

	if (!fs)
		return error_set(err, ENOMEM, "no memory");
	int status = make(fd, offset, size_bytes, label, uuid, err);
	if (status < 0)
		return status;
	initialize_ext2_error_table();
	snprintf(file, sizeof(file), "/proc/self/fd/%d", fd);
	snprintf(options, sizeof(options), "offset=%" PRIu64, offset);
	errcode_t code = ext2fs_open2(file, options, EXT2_FLAG_RW | EXT2_FLAG_64BITS, 0, 0, unix_io_manager, &fs->fs);
	if (!code)
		code = ext2fs_read_bitmaps(fs->fs);
	if (code) {
		status = error_set(err, EIO, "can't open the new file system: %s", error_message(code));
		image_fs_free(take_ptr(&fs));
		return status;
	}
	*ret_fs = take_ptr(&fs);
	return 0;
}

int image_fs_finish(struct image_fs *fs, struct error *err)
{
	errcode_t code = ext2fs_flush(fs->fs);

	if (!code)
		code = ext2fs_close_free(&fs->fs);
	image_fs_free(fs);
	return code ? error_set(err, EIO, "can't write the file system: %s", error_message(code)) : 0;
}

void image_fs_free(struct image_fs *fs)
{
	if (!fs)
		return;
	if (fs->fs)
		ext2fs_free(fs->fs);
	free(fs);
}

uint64_t image_fs_used_bytes(const struct image_fs *fs)
{
	return (ext2fs_blocks_count(fs->fs->super) - ext2fs_free_blocks_count(fs->fs->super)) * fs->fs->blocksize;
}

/* ---- names ---- */

/* The next component of *rest, which moves behind it; false at the end. Skips slashes and dots. */
static bool next_name(const char **rest, const char **ret_name, size_t *ret_length)
{
	const char *at = *rest;

	for (;;) {
		while (*at == '/')
			at++;
		if (at[0] != '.' || (at[1] && at[1] != '/'))
			break;
		at++;
	}
	*ret_name = at;
	*ret_length = strcspn(at, "/");
	*rest = at + *ret_length;
	return *ret_length > 0;
}

static bool is_last(const char *rest)
{
	const char *name;
	size_t length;

	return !next_name(&rest, &name, &length);
}

static errcode_t read_inode(struct image_fs *fs, ext2_ino_t ino, struct ext2_inode *ret_inode)
{
	return ext2fs_read_inode(fs->fs, ino, ret_inode);
}

/* Where a symbolic link leads. Caller frees. */
static errcode_t read_link(struct image_fs *fs, ext2_ino_t ino, struct ext2_inode *inode, char **ret_target)
{
	const uint64_t size = inode->i_size;
	AUTO_FREE char *target = calloc(1, IMAGE_PATH_MAX);
	ext2_file_t file;
	unsigned got = 0;

	if (!target)
		return ENOMEM;
	if (!size || size >= IMAGE_PATH_MAX)
		return EXT2_ET_SYMLINK_LOOP;
	if (ext2fs_is_fast_symlink(inode)) {
		memcpy(target, inode->i_block, MIN(size, sizeof(inode->i_block)));
	} else {
		errcode_t code = ext2fs_file_open(fs->fs, ino, 0, &file);
		if (code)
			return code;
		code = ext2fs_file_read(file, target, (unsigned)size, &got);
		ext2fs_file_close(file);
		if (code)
			return code;
	}
	*ret_target = take_ptr(&target);
	return 0;
}

static errcode_t link_name(struct image_fs *fs, ext2_ino_t dir, const char *name, ext2_ino_t ino, int kind)
{
	errcode_t code = ext2fs_link(fs->fs, dir, name, ino, kind);

	if (code == EXT2_ET_DIR_NO_SPACE) {
		code = ext2fs_expand_dir(fs->fs, dir);
		if (!code)
			code = ext2fs_link(fs->fs, dir, name, ino, kind);
	}
	return code;
}

static errcode_t make_dir(struct image_fs *fs, ext2_ino_t parent, const char *name, ext2_ino_t *ret_ino)
{
	errcode_t code = ext2fs_mkdir(fs->fs, parent, 0, name);

	if (code == EXT2_ET_DIR_NO_SPACE) {
		code = ext2fs_expand_dir(fs->fs, parent);
		if (!code)
			code = ext2fs_mkdir(fs->fs, parent, 0, name);
	}
	return code ? code : ext2fs_lookup(fs->fs, parent, name, (int)strlen(name), NULL, ret_ino);
}

/* How a name is looked up. */
struct walk {
	bool make;   /* directories on the way that are missing */
	bool follow; /* the last component too, if it is a symbolic link */
	unsigned links;
};

static errcode_t walk_from(struct image_fs *fs, struct walk *walk, ext2_ino_t from, const char *path, ext2_ino_t *ret_dir,
	ext2_ino_t *ret_ino, char *ret_name);

/* `dir` holds the symbolic link `ino`. */
static errcode_t walk_link(struct image_fs *fs, struct walk *walk, ext2_ino_t dir, ext2_ino_t ino, struct ext2_inode *inode,
	ext2_ino_t *ret_ino)
{
	AUTO_FREE char *target = NULL;
	struct walk inner = { .make = walk->make, .follow = true, .links = walk->links + 1 };
	ext2_ino_t parent;
	char name[EXT2_NAME_LEN + 1];

	if (inner.links > LINKS_MAX)
		return EXT2_ET_SYMLINK_LOOP;
	errcode_t code = read_link(fs, ino, inode, &target);
	if (code)
		return code;
	code = walk_from(fs, &inner, *target == '/' ? EXT2_ROOT_INO : dir, target, &parent, ret_ino, name);
	walk->links = inner.links;
	if (!code && !*ret_ino)
		code = walk->make ? make_dir(fs, parent, name, ret_ino) : EXT2_ET_FILE_NOT_FOUND;
	return code;
}

/* One directory further down. A `..` only comes from symbolic links here: archives' own are refused before. */
static errcode_t step(struct image_fs *fs, struct walk *walk, ext2_ino_t dir, const char *name, ext2_ino_t *ret_ino)
{
	struct ext2_inode inode;
	errcode_t code = ext2fs_lookup(fs->fs, dir, name, (int)strlen(name), NULL, ret_ino);

	if (code == EXT2_ET_FILE_NOT_FOUND && walk->make)
		return make_dir(fs, dir, name, ret_ino);
	if (!code)
		code = read_inode(fs, *ret_ino, &inode);
	if (!code && LINUX_S_ISLNK(inode.i_mode))
		code = walk_link(fs, walk, dir, *ret_ino, &inode, ret_ino);
	return code;
}

static errcode_t must_be_dir(struct image_fs *fs, ext2_ino_t ino)
{
	return ext2fs_check_directory(fs->fs, ino);
}

/* *ret_dir holds the last component, *ret_name; *ret_ino is 0 if there is no such entry. The root has no name. */
static errcode_t walk_from(struct image_fs *fs, struct walk *walk, ext2_ino_t from, const char *path, ext2_ino_t *ret_dir,
	ext2_ino_t *ret_ino, char *ret_name)
{
	const char *name, *rest = path;
	struct ext2_inode inode;
	size_t length;
	errcode_t code;

	*ret_dir = *ret_ino = from;
	*ret_name = '\0';
	while (next_name(&rest, &name, &length)) {
		if (length > EXT2_NAME_LEN)
			return ENAMETOOLONG;
		memcpy(ret_name, name, length);
		ret_name[length] = '\0';
		*ret_dir = *ret_ino;
		code = must_be_dir(fs, *ret_dir);
		if (!code && !is_last(rest))
			code = step(fs, walk, *ret_dir, ret_name, ret_ino);
		else if (!code)
			code = ext2fs_lookup(fs->fs, *ret_dir, ret_name, (int)length, NULL, ret_ino);
		if (code == EXT2_ET_FILE_NOT_FOUND && is_last(rest))
			*ret_ino = 0;
		else if (code)
			return code;
	}
	if (!walk->follow || !*ret_ino || read_inode(fs, *ret_ino, &inode) || !LINUX_S_ISLNK(inode.i_mode))
		return 0;
	return walk_link(fs, walk, *ret_dir, *ret_ino, &inode, ret_ino);
}

/* Does a component of an archive's name lead up, or is it too long? */
static int check_path(const char *path, struct error *err)
{
	const char *name, *rest = path;
	size_t length;

	if (strlen(path) >= IMAGE_PATH_MAX)
		return error_set(err, EINVAL, "a name of %zu bytes is too long: '%.80s...'", strlen(path), path);
	while (next_name(&rest, &name, &length)) {
		if (length == 2 && name[0] == '.' && name[1] == '.')
			return error_set(err, EINVAL, "the name '%s' leads up: this archive is broken or hostile", path);
		if (length > EXT2_NAME_LEN)
			return error_set(err, EINVAL, "a part of the name '%.80s...' is longer than %d bytes", path, EXT2_NAME_LEN);
	}
	return 0;
}

static int walk(struct image_fs *fs, const char *path, struct walk how, ext2_ino_t *ret_dir, ext2_ino_t *ret_ino,
	char *ret_name, struct error *err)
{
	int status = check_path(path, err);

	if (status < 0)
		return status;
	errcode_t code = walk_from(fs, &how, EXT2_ROOT_INO, path, ret_dir, ret_ino, ret_name);
	if (code == EXT2_ET_SYMLINK_LOOP)
		return error_set(err, ELOOP, "too many symbolic links on the way to '%s'", path);
	return code ? fail(err, code, path) : 0;
}

/* ---- removing ---- */

static errcode_t drop_inode(struct image_fs *fs, ext2_ino_t ino)
{
	struct ext2_inode inode;
	errcode_t code = read_inode(fs, ino, &inode);

	if (code)
		return code;
	const bool is_dir = LINUX_S_ISDIR(inode.i_mode);
	if (inode.i_links_count)
		inode.i_links_count--;
	if (is_dir || !inode.i_links_count) {
		inode.i_links_count = 0;
		inode.i_dtime = (uint32_t)inode.i_mtime ? (uint32_t)inode.i_mtime : 1;
		if (ext2fs_inode_has_valid_blocks2(fs->fs, &inode)) {
			code = ext2fs_free_ext_attr(fs->fs, ino, (struct ext2_inode_large *)&inode);
			if (!code)
				code = ext2fs_punch(fs->fs, ino, &inode, NULL, 0, ~0ull);
		}
		if (code)
			return code;
		ext2fs_inode_alloc_stats2(fs->fs, ino, -1, is_dir);
	}
	return ext2fs_write_inode(fs->fs, ino, &inode);
}

struct first_child {
	ext2_ino_t ino;
	char name[EXT2_NAME_LEN + 1];
};

static int pick_child(ext2_ino_t dir, int entry, struct ext2_dir_entry *dirent, int offset, int blocksize, char *buf,
	void *opaque)
{
	struct first_child *child = opaque;
	const int length = ext2fs_dirent_name_len(dirent);

	if (entry != DIRENT_OTHER_FILE)
		return 0;
	memcpy(child->name, dirent->name, (size_t)length);
	child->name[length] = '\0';
	child->ino = dirent->inode;
	return DIRENT_ABORT;
}

static errcode_t remove_entry(struct image_fs *fs, ext2_ino_t dir, const char *name, ext2_ino_t ino, unsigned depth);

static errcode_t remove_children(struct image_fs *fs, ext2_ino_t ino, unsigned depth)
{
	struct first_child child;
	errcode_t code;

	if (depth > DEPTH_MAX)
		return ENAMETOOLONG;
	do {
		child.ino = 0;
		code = ext2fs_dir_iterate2(fs->fs, ino, 0, NULL, pick_child, &child);
		if (!code && child.ino)
			code = remove_entry(fs, ino, child.name, child.ino, depth + 1);
	} while (!code && child.ino);
	return code;
}

static errcode_t remove_entry(struct image_fs *fs, ext2_ino_t dir, const char *name, ext2_ino_t ino, unsigned depth)
{
	struct ext2_inode parent;
	const bool is_dir = !ext2fs_check_directory(fs->fs, ino);
	errcode_t code = is_dir ? remove_children(fs, ino, depth) : 0;

	if (!code)
		code = ext2fs_unlink(fs->fs, dir, name, ino, 0);
	if (!code)
		code = drop_inode(fs, ino);
	if (code || !is_dir)
		return code;
	code = read_inode(fs, dir, &parent); /* its `..` is gone */
	if (code)
		return code;
	if (parent.i_links_count > 2)
		parent.i_links_count--;
	return ext2fs_write_inode(fs->fs, dir, &parent);
}

int image_fs_remove(struct image_fs *fs, const char *path, bool children_only, struct error *err)
{
	ext2_ino_t dir, ino;
	char name[EXT2_NAME_LEN + 1];
	int status = walk(fs, path, (struct walk){ .follow = children_only }, &dir, &ino, name, err);

	if (status == -ENOENT || status == -ENOTDIR || (status == 0 && !ino))
		return 0;
	if (status < 0)
		return status;
	if (children_only && ext2fs_check_directory(fs->fs, ino))
		return 0;
	if (!children_only && ino == EXT2_ROOT_INO)
		return error_set(err, EINVAL, "the root can't be removed");
	errcode_t code = children_only ? remove_children(fs, ino, 0) : remove_entry(fs, dir, name, ino, 0);
	return code ? fail(err, code, path) : 0;
}

/* ---- adding ---- */

static void describe(struct ext2_inode *inode, const struct image_entry *e)
{
	const int64_t when = MAX(MIN(e->mtime_s, INT32_MAX), 0);

	inode->i_mode = (uint16_t)e->mode;
	inode->i_uid = (uint16_t)e->uid;
	inode->i_gid = (uint16_t)e->gid;
	ext2fs_set_i_uid_high(*inode, (uint16_t)(e->uid >> 16));
	ext2fs_set_i_gid_high(*inode, (uint16_t)(e->gid >> 16));
	inode->i_atime = inode->i_ctime = inode->i_mtime = (uint32_t)when;
}

static int copy_data(struct image_fs *fs, ext2_file_t file, const struct image_entry *e, struct error *err)
{
	for (;;) {
		ssize_t got = e->read(e->opaque, fs->copy, sizeof(fs->copy), err);
		if (got <= 0)
			return (int)got;
		for (size_t done = 0; done < (size_t)got;) {
			unsigned wrote = 0;
			errcode_t code = ext2fs_file_write(file, fs->copy + done, (unsigned)((size_t)got - done), &wrote);
			if (code)
				return fail(err, code, e->path);
			done += wrote;
		}
	}
}

static int fill(struct image_fs *fs, ext2_ino_t ino, const struct image_entry *e, struct error *err)
{
	ext2_file_t file;
	errcode_t code = ext2fs_file_open(fs->fs, ino, EXT2_FILE_WRITE, &file);

	if (code)
		return fail(err, code, e->path);
	int status = copy_data(fs, file, e, err);
	code = ext2fs_file_close(file);
	return status == 0 && code ? fail(err, code, e->path) : status;
}

static errcode_t with_extents(struct image_fs *fs, ext2_ino_t ino, struct ext2_inode *inode)
{
	ext2_extent_handle_t handle;
	errcode_t code = ext2fs_extent_open2(fs->fs, ino, inode, &handle);

	if (!code)
		ext2fs_extent_free(handle);
	return code;
}

static int directory_type(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFCHR: return EXT2_FT_CHRDEV;
	case S_IFBLK: return EXT2_FT_BLKDEV;
	case S_IFIFO: return EXT2_FT_FIFO;
	case S_IFSOCK: return EXT2_FT_SOCK;
	default: return EXT2_FT_REG_FILE;
	}
}

/* The encoding of Linux' new_encode_dev(), where the old one is too small. */
static void set_device(struct ext2_inode *inode, uint32_t major, uint32_t minor)
{
	if (major < 256 && minor < 256)
		inode->i_block[0] = major << 8 | minor;
	else
		inode->i_block[1] = (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

/* A regular file, still empty, or a special one. */
static errcode_t add_inode(struct image_fs *fs, ext2_ino_t dir, const char *name, const struct image_entry *e,
	ext2_ino_t *ret_ino)
{
	struct ext2_inode inode = { 0 };
	errcode_t code = ext2fs_new_inode(fs->fs, dir, 010755, 0, ret_ino);

	if (!code)
		code = link_name(fs, dir, name, *ret_ino, directory_type(e->mode));
	if (code)
		return code;
	if (ext2fs_test_inode_bitmap2(fs->fs->inode_map, *ret_ino))
		return EXT2_ET_INODE_ALLOC_FAIL;
	ext2fs_inode_alloc_stats2(fs->fs, *ret_ino, +1, 0);
	describe(&inode, e);
	inode.i_links_count = 1;
	if (S_ISCHR(e->mode) || S_ISBLK(e->mode))
		set_device(&inode, e->dev_major, e->dev_minor);
	else if (S_ISREG(e->mode))
		code = with_extents(fs, *ret_ino, &inode);
	return code ? code : ext2fs_write_new_inode(fs->fs, *ret_ino, &inode);
}

static errcode_t add_symlink(struct image_fs *fs, ext2_ino_t dir, const char *name, const struct image_entry *e,
	ext2_ino_t *ret_ino)
{
	errcode_t code = ext2fs_symlink(fs->fs, dir, 0, name, e->target);

	if (code == EXT2_ET_DIR_NO_SPACE) {
		code = ext2fs_expand_dir(fs->fs, dir);
		if (!code)
			code = ext2fs_symlink(fs->fs, dir, 0, name, e->target);
	}
	return code ? code : ext2fs_lookup(fs->fs, dir, name, (int)strlen(name), NULL, ret_ino);
}

/* Owner, times and permissions of what is already there. */
static errcode_t redescribe(struct image_fs *fs, ext2_ino_t ino, const struct image_entry *e)
{
	struct ext2_inode inode;
	errcode_t code = read_inode(fs, ino, &inode);

	if (code)
		return code;
	describe(&inode, e);
	return ext2fs_write_inode(fs->fs, ino, &inode);
}

static bool known_kind(const struct image_entry *e)
{
	if (S_ISLNK(e->mode))
		return e->target && *e->target && strlen(e->target) < IMAGE_PATH_MAX - 1;
	return S_ISREG(e->mode) || S_ISDIR(e->mode) || S_ISCHR(e->mode) || S_ISBLK(e->mode) || S_ISFIFO(e->mode) ||
	       S_ISSOCK(e->mode);
}

int image_fs_add(struct image_fs *fs, const struct image_entry *e, struct error *err)
{
	ext2_ino_t dir, ino;
	char name[EXT2_NAME_LEN + 1];

	if (!known_kind(e))
		return error_set(err, EINVAL, "'%s' is of a kind that can't be in an image", e->path);
	int status = walk(fs, e->path, (struct walk){ .make = true }, &dir, &ino, name, err);
	if (status < 0)
		return status;
	errcode_t code = 0;
	const bool keep = ino && S_ISDIR(e->mode) && !ext2fs_check_directory(fs->fs, ino);
	if (ino == EXT2_ROOT_INO && !keep)
		return error_set(err, EINVAL, "the root of the archive is no directory");
	if (ino && !keep)
		code = remove_entry(fs, dir, name, ino, 0);
	if (code || keep)
		;
	else if (S_ISDIR(e->mode))
		code = make_dir(fs, dir, name, &ino);
	else if (S_ISLNK(e->mode))
		code = add_symlink(fs, dir, name, e, &ino);
	else
		code = add_inode(fs, dir, name, e, &ino);
	if (!code && (S_ISDIR(e->mode) || S_ISLNK(e->mode)))
		code = redescribe(fs, ino, e);
	if (code)
		return fail(err, code, e->path);
	return S_ISREG(e->mode) && e->read ? fill(fs, ino, e, err) : 0;
}

int image_fs_link(struct image_fs *fs, const char *path, const char *existing, struct error *err)
{
	ext2_ino_t dir, ino, old_dir, old_ino;
	char name[EXT2_NAME_LEN + 1];
	struct ext2_inode inode;

	int status = walk(fs, existing, (struct walk){ 0 }, &old_dir, &old_ino, name, err);
	if (status < 0)
		return status;
	if (!old_ino)
		return error_set(err, ENOENT, "'%s' is a link to '%s', which is not there", path, existing);
	status = walk(fs, path, (struct walk){ .make = true }, &dir, &ino, name, err);
	if (status < 0 || ino == old_ino)
		return status;
	errcode_t code = ino ? remove_entry(fs, dir, name, ino, 0) : 0;
	if (!code)
		code = read_inode(fs, old_ino, &inode);
	if (code)
		return fail(err, code, path);
	if (LINUX_S_ISDIR(inode.i_mode) || !inode.i_links_count || inode.i_links_count >= HARD_LINKS_MAX)
		return error_set(err, EINVAL, "'%s' can't be a link to '%s'", path, existing);
	code = link_name(fs, dir, name, old_ino,
		LINUX_S_ISLNK(inode.i_mode) ? EXT2_FT_SYMLINK : directory_type(inode.i_mode));
	inode.i_links_count++;
	if (!code)
		code = ext2fs_write_inode(fs->fs, old_ino, &inode);
	return code ? fail(err, code, path) : 0;
}

int image_fs_attribute(struct image_fs *fs, const char *path, const char *attribute, const void *value, size_t size,
	struct error *err)
{
	ext2_ino_t dir, ino;
	char name[EXT2_NAME_LEN + 1];
	struct ext2_xattr_handle *handle;
	int status = walk(fs, path, (struct walk){ 0 }, &dir, &ino, name, err);

	if (status < 0 || !ino)
		return status;
	errcode_t code = ext2fs_xattrs_open(fs->fs, ino, &handle);
	if (code)
		return fail(err, code, path);
	code = ext2fs_xattrs_read(handle);
	if (!code)
		code = ext2fs_xattr_set(handle, attribute, value, size);
	ext2fs_xattrs_close(&handle);
	return code ? fail(err, code, path) : 0;
}

struct bytes {
	const uint8_t *at;
	size_t left;
};

static ssize_t read_bytes(void *opaque, void *buf, size_t size, struct error *err)
{
	struct bytes *bytes = opaque;
	const size_t count = MIN(size, bytes->left);

	memcpy(buf, bytes->at, count);
	bytes->at += count;
	bytes->left -= count;
	return (ssize_t)count;
}

int image_fs_put(struct image_fs *fs, const char *path, mode_t permissions, const void *bytes, size_t size,
	struct error *err)
{
	struct bytes from = { bytes, size };
	const struct image_entry entry = { .path = path, .mode = S_IFREG | permissions,
		.mtime_s = (int64_t)time(NULL), .read = read_bytes, .opaque = &from };

	return image_fs_add(fs, &entry, err);
}

/* ---- reading back ---- */

int image_fs_get(struct image_fs *fs, const char *path, size_t max_bytes, uint8_t **ret_bytes, size_t *ret_size,
	struct error *err)
{
	AUTO_FREE uint8_t *bytes = NULL;
	ext2_ino_t dir, ino;
	char name[EXT2_NAME_LEN + 1];
	struct ext2_inode inode;
	ext2_file_t file;
	unsigned got = 0;
	int status = walk(fs, path, (struct walk){ .follow = true }, &dir, &ino, name, err);

	if (status < 0)
		return status;
	if (!ino || read_inode(fs, ino, &inode) || !LINUX_S_ISREG(inode.i_mode))
		return error_set(err, ENOENT, "'%s' is not in the image, or no file", path);
	if (EXT2_I_SIZE(&inode) > max_bytes)
		return error_set(err, EFBIG, "'%s' is too large", path);
	const unsigned size = (unsigned)EXT2_I_SIZE(&inode);
	bytes = calloc(1, (size_t)size + 1);
	if (!bytes)
		return error_set(err, ENOMEM, "no memory");
	errcode_t code = ext2fs_file_open(fs->fs, ino, 0, &file);
	if (!code) {
		code = ext2fs_file_read(file, bytes, size, &got);
		ext2fs_file_close(file);
	}
	if (code || got != size)
		return fail(err, code ? code : EIO, path);
	*ret_size = size;
	*ret_bytes = take_ptr(&bytes);
	return 0;
}

bool image_fs_exists(struct image_fs *fs, const char *path)
{
	struct walk how = { .follow = true };
	ext2_ino_t dir, ino;
	char name[EXT2_NAME_LEN + 1];

	return !walk_from(fs, &how, EXT2_ROOT_INO, path, &dir, &ino, name) && ino;
}
