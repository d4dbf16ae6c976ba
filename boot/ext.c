/*
 * Reading files of an ext2, ext3 or ext4 file system: Linux' Documentation/filesystems/ext4. See disk_private.h.
 *
 * Directories are read from end to end, which works with and without an index. Left out: replay of the journal (what a
 * crash left in it alone is not seen), checksums, encrypted files, data inside inodes, META_BG.
 *
 * Every number is checked before it is used; every loop reads, and reads are counted (boot_read()).
 */
#include "base/bytes.h"
#include "base/cleanup.h"
#include "boot/disk_private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAGIC	       0xef53
#define EXTENT_MAGIC   0xf30a
#define ROOT_INODE     2
#define BLOCK_MAX      65536
#define EXTENT_DEPTH   5
#define DIRECTORY_MAX  MIB(16)
#define LINK_MAX       4095
#define LINKS_MAX      40
#define NAME_MAX_BYTES 255

#define FLAG_ENCRYPTED 0x800
#define FLAG_EXTENTS   0x80000
#define FLAG_INLINE    0x10000000

#define INCOMPAT_64BIT 0x80
/* filetype, recover, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, casefold */
#define INCOMPAT_KNOWN (0x2 | 0x4 | 0x40 | INCOMPAT_64BIT | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000)

static int read_at(struct ext *fs, void *buf, uint64_t bytes, uint64_t offset)
{
	if (offset > fs->bytes || bytes > fs->bytes - offset)
		return -EBADMSG;
	return boot_read(fs->reader, buf, bytes, fs->offset + offset);
}

static int read_block(struct ext *fs, uint8_t *buf, uint64_t block)
{
	if (block >= fs->bytes / fs->block_bytes)
		return -EBADMSG;
	return read_at(fs, buf, fs->block_bytes, block * fs->block_bytes);
}

/* ---- the file system ---- */

static bool take_geometry(struct ext *fs, const uint8_t *sb)
{
	const uint32_t shift = load_le32(sb + 0x18), blocks_per_group = load_le32(sb + 0x20);
	const uint32_t incompat = load_le32(sb + 0x60), revision = load_le32(sb + 0x4c);
	uint64_t blocks = load_le32(sb + 4);

	if (shift > 6 || !blocks_per_group || incompat & ~INCOMPAT_KNOWN)
		return false;
	if (incompat & INCOMPAT_64BIT)
		blocks |= (uint64_t)load_le32(sb + 0x150) << 32;
	fs->block_bytes = 1024u << shift;
	fs->inodes = load_le32(sb);
	fs->inodes_per_group = load_le32(sb + 0x28);
	fs->first_block = load_le32(sb + 0x14);
	fs->inode_bytes = revision ? load_le16(sb + 0x58) : 128;
	fs->desc_bytes = incompat & INCOMPAT_64BIT ? load_le16(sb + 0xfe) : 32;
	if (blocks < fs->first_block || (blocks - fs->first_block) / blocks_per_group >= UINT32_MAX)
		return false;
	fs->groups = (uint32_t)((blocks - fs->first_block + blocks_per_group - 1) / blocks_per_group);
	return fs->inodes_per_group && fs->first_block <= 1 && fs->inode_bytes >= 128 &&
	       fs->inode_bytes <= fs->block_bytes && fs->desc_bytes >= 32 && fs->desc_bytes <= 1024;
}

int ext_open(struct ext *fs, struct boot_reader *reader, uint64_t offset, uint64_t bytes)
{
	uint8_t sb[1024];

	*fs = (struct ext){ .reader = reader, .offset = offset, .bytes = bytes };
	if (bytes < 4096)
		return -EINVAL;
	int status = read_at(fs, sb, sizeof(sb), 1024);
	if (status < 0)
		return status;
	if (load_le16(sb + 0x38) != MAGIC || !take_geometry(fs, sb))
		return -EINVAL;
	const uint8_t *u = sb + 0x68;
	snprintf(fs->uuid, sizeof(fs->uuid), "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0],
		u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
	return 0;
}

/* ---- inodes ---- */

static int read_inode(struct ext *fs, uint32_t number, struct ext_file *ret_file)
{
	uint8_t desc[64] = { 0 }, inode[128];

	if (!number || number > fs->inodes)
		return -EBADMSG;
	const uint32_t group = (number - 1) / fs->inodes_per_group, index = (number - 1) % fs->inodes_per_group;
	if (group >= fs->groups)
		return -EBADMSG;
	int status = read_at(fs, desc, MIN(fs->desc_bytes, sizeof(desc)),
		(fs->first_block + 1ull) * fs->block_bytes + (uint64_t)group * fs->desc_bytes);
	if (status < 0)
		return status;
	const uint64_t table = load_le32(desc + 8) | (fs->desc_bytes >= 64 ? (uint64_t)load_le32(desc + 0x28) << 32 : 0);
	if (table >= fs->bytes / fs->block_bytes)
		return -EBADMSG;
	status = read_at(fs, inode, sizeof(inode), table * fs->block_bytes + (uint64_t)index * fs->inode_bytes);
	if (status < 0)
		return status;
	*ret_file = (struct ext_file){ .inode = number, .mode = load_le16(inode), .flags = load_le32(inode + 0x20),
		.bytes = load_le32(inode + 4) };
	if (!S_ISLNK(ret_file->mode))
		ret_file->bytes |= (uint64_t)load_le32(inode + 0x6c) << 32;
	memcpy(ret_file->map, inode + 0x28, sizeof(ret_file->map));
	return ret_file->flags & (FLAG_INLINE | FLAG_ENCRYPTED) ? -EOPNOTSUPP : 0;
}

/* ---- where a file's blocks are ---- */

/* A run of a file's blocks from the one that was asked for. block 0: a hole. */
struct run {
	uint64_t block, count;
};

/* In one node of an extent tree: the entry for `want`, or NULL; *ret_next is where the one after it begins. */
static const uint8_t *find_entry(const uint8_t *node, size_t bytes, uint64_t want, unsigned *ret_depth, uint64_t *ret_next)
{
	const unsigned count = load_le16(node + 2);
	const uint8_t *found = NULL;

	*ret_depth = load_le16(node + 6);
	*ret_next = UINT64_MAX;
	if (load_le16(node) != EXTENT_MAGIC || count > (bytes - 12) / 12)
		return NULL;
	for (unsigned i = 0; i < count; i++) {
		const uint8_t *entry = node + 12 + 12 * i;
		if (load_le32(entry) > want) {
			*ret_next = load_le32(entry);
			break;
		}
		found = entry;
	}
	return found;
}

static void leaf_run(const uint8_t *entry, uint64_t want, uint64_t next, struct run *ret_run)
{
	const uint64_t first = load_le32(entry);
	const uint16_t length = load_le16(entry + 4);
	const uint64_t count = length > 32768 ? length - 32768u : length; /* longer: allocated, reads as zeros */

	if (want - first >= count) {
		*ret_run = (struct run){ 0, next - want };
		return;
	}
	ret_run->count = first + count - want;
	ret_run->block = load_le32(entry + 8) | (uint64_t)load_le16(entry + 6) << 32;
	ret_run->block = length > 32768 ? 0 : ret_run->block + (want - first);
}

static int map_extents(struct ext *fs, const struct ext_file *file, uint64_t want, struct run *ret_run)
{
	AUTO_FREE uint8_t *block = NULL;
	const uint8_t *node = file->map;
	size_t bytes = sizeof(file->map);
	uint64_t limit = UINT64_MAX;

	for (unsigned level = 0; level <= EXTENT_DEPTH; level++) {
		unsigned depth;
		uint64_t next;
		const uint8_t *entry = find_entry(node, bytes, want, &depth, &next);
		if (load_le16(node) != EXTENT_MAGIC || depth > EXTENT_DEPTH)
			return -EBADMSG;
		limit = MIN(limit, next);
		if (!entry) {
			*ret_run = (struct run){ 0, limit - want };
			return limit > want ? 0 : -EBADMSG;
		}
		if (depth == 0) {
			leaf_run(entry, want, limit, ret_run);
			return ret_run->count ? 0 : -EBADMSG;
		}
		if (!block)
			block = malloc(fs->block_bytes);
		if (!block)
			return -ENOMEM;
		int status = read_block(fs, block, load_le32(entry + 4) | (uint64_t)load_le16(entry + 8) << 32);
		if (status < 0)
			return status;
		node = block;
		bytes = fs->block_bytes;
	}
	return -EBADMSG;
}

/* ext2's and ext3's: twelve blocks, then one, two and three levels of lists. */
static int map_lists(struct ext *fs, const struct ext_file *file, uint64_t want, struct run *ret_run)
{
	const uint64_t per_block = fs->block_bytes / 4;
	uint64_t span = 1;
	unsigned level = 0;

	ret_run->count = 1;
	if (want < 12) {
		ret_run->block = load_le32(file->map + 4 * want);
		return 0;
	}
	want -= 12;
	for (level = 1, span = per_block; level <= 3 && want >= span; level++) {
		want -= span;
		span *= per_block;
	}
	if (level > 3)
		return -EBADMSG;
	uint64_t block = load_le32(file->map + 4 * (11 + level));
	while (level-- && block) {
		uint8_t pointer[4];
		span /= per_block;
		if (block >= fs->bytes / fs->block_bytes)
			return -EBADMSG;
		int status = read_at(fs, pointer, 4, block * fs->block_bytes + want / span * 4);
		if (status < 0)
			return status;
		block = load_le32(pointer);
		want %= span;
	}
	ret_run->block = block;
	return 0;
}

int ext_read(struct ext *fs, const struct ext_file *file, void *buf, uint64_t bytes, uint64_t offset)
{
	uint8_t *to = buf;

	while (bytes) {
		const uint64_t want = offset / fs->block_bytes, skip = offset % fs->block_bytes;
		struct run run;
		if (want > UINT32_MAX)
			return -EBADMSG;
		int status = file->flags & FLAG_EXTENTS ? map_extents(fs, file, want, &run) :
							  map_lists(fs, file, want, &run);
		if (status < 0)
			return status;
		/* A count can be close to 2^64: behind the last extent there is a hole without end. */
		const uint64_t chunk = run.count > bytes / fs->block_bytes + 1 ? bytes :
									       MIN(bytes, run.count * fs->block_bytes - skip);
		if (!run.block)
			memset(to, 0, chunk);
		else if (run.block >= fs->bytes / fs->block_bytes)
			status = -EBADMSG;
		else
			status = read_at(fs, to, chunk, run.block * fs->block_bytes + skip);
		if (status < 0)
			return status;
		to += chunk;
		offset += chunk;
		bytes -= chunk;
	}
	return 0;
}

/* ---- names ---- */

static int list_block(const uint8_t *block, uint32_t bytes, bool (*each)(void *opaque, const char *name, uint32_t inode),
	void *opaque)
{
	for (uint32_t at = 0; at + 8 <= bytes;) {
		const uint32_t inode = load_le32(block + at);
		uint32_t length = load_le16(block + at + 4);
		const uint8_t name_bytes = block[at + 6];
		char name[NAME_MAX_BYTES + 1];

		if (bytes == BLOCK_MAX && (length == 0xffff || !length))
			length = BLOCK_MAX;
		if (length < 8 || length > bytes - at || name_bytes > length - 8)
			return -EBADMSG;
		memcpy(name, block + at + 8, name_bytes);
		name[name_bytes] = '\0';
		if (inode && name_bytes && strlen(name) == name_bytes && each(opaque, name, inode))
			return 1;
		at += length;
	}
	return 0;
}

int ext_list(struct ext *fs, const struct ext_file *dir, bool (*each)(void *opaque, const char *name, uint32_t inode),
	void *opaque)
{
	AUTO_FREE uint8_t *block = malloc(fs->block_bytes);
	int status = 0;

	if (!block)
		return -ENOMEM;
	if (!S_ISDIR(dir->mode))
		return -ENOTDIR;
	if (dir->bytes > DIRECTORY_MAX)
		return -EFBIG;
	for (uint64_t at = 0; at + fs->block_bytes <= dir->bytes && status == 0; at += fs->block_bytes) {
		status = ext_read(fs, dir, block, fs->block_bytes, at);
		if (status == 0)
			status = list_block(block, fs->block_bytes, each, opaque);
	}
	return MIN(status, 0);
}

struct lookup {
	const char *name;
	size_t length;
	uint32_t inode;
};

static bool is_it(void *opaque, const char *name, uint32_t inode)
{
	struct lookup *l = opaque;

	if (strlen(name) != l->length || memcmp(name, l->name, l->length))
		return false;
	l->inode = inode;
	return true;
}

/* A walk through directories; links are counted over all of it. */
static int walk(struct ext *fs, uint32_t from, const char *path, unsigned *links, struct ext_file *ret_file)
{
	int status = read_inode(fs, *path == '/' ? ROOT_INODE : from, ret_file);

	while (status == 0) {
		path += strspn(path, "/");
		struct lookup l = { .name = path, .length = strcspn(path, "/") };
		const uint32_t dir = ret_file->inode;
		if (!l.length)
			return 0;
		path += l.length;
		status = ext_list(fs, ret_file, is_it, &l);
		if (status == 0)
			status = l.inode ? read_inode(fs, l.inode, ret_file) : -ENOENT;
		if (status < 0 || !S_ISLNK(ret_file->mode))
			continue;
		char target[LINK_MAX + 1];
		if (++*links > LINKS_MAX)
			return -ELOOP;
		if (!ret_file->bytes || ret_file->bytes > LINK_MAX)
			return -EBADMSG;
		if (ret_file->bytes < sizeof(ret_file->map) && !(ret_file->flags & FLAG_EXTENTS))
			memcpy(target, ret_file->map, ret_file->bytes);
		else
			status = ext_read(fs, ret_file, target, ret_file->bytes, 0);
		target[ret_file->bytes] = '\0';
		if (status == 0)
			status = walk(fs, dir, target, links, ret_file);
	}
	return status;
}

int ext_find(struct ext *fs, const char *path, struct ext_file *ret_file)
{
	unsigned links = 0;

	return walk(fs, ROOT_INODE, path, &links, ret_file);
}
