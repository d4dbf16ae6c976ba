/*
 * Archives into file systems: tar (ustar, pax, GNU) by libarchive. The archive is hostile: its names are walked inside
 * the image (image_fs.h), and what it unpacks to is bounded by bytes, entries and the image's own size.
 *
 * Whiteouts: OCI image specification 1.1, layer.md. A whiteout hides what lower layers brought, and never what its own
 * layer brings, so a layer is read twice: once for them, once for the rest.
 */
#include "base/error.h"
#include "base/cleanup.h"
#include "host/image_private.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK_BYTES    KIB(128)
#define WHITEOUT       ".wh."
#define WHITEOUT_ALL   ".wh..wh..opq"
#define ATTRIBUTE_MAX  KIB(64)
#define NAME_IN_TEXT   200

struct unpack {
	struct archive *archive;
	struct image_fs *fs;
	const struct image_limits *limits;
	const char *name;
	uint64_t bytes, entries;
};

static int fail(struct unpack *u, struct error *err)
{
	const char *why = archive_error_string(u->archive);

	return error_set(err, EBADMSG, "%s: %s", u->name, why ? why : "this is no archive that can be read");
}

static int open_archive(struct unpack *u, int fd, struct error *err)
{
	u->archive = archive_read_new();
	if (!u->archive)
		return error_set(err, ENOMEM, "no memory");
	archive_read_support_format_tar(u->archive);
	archive_read_support_filter_gzip(u->archive);
	archive_read_support_filter_zstd(u->archive);
	archive_read_support_filter_xz(u->archive);
	archive_read_support_filter_bzip2(u->archive);
	int r = archive_read_open_fd(u->archive, fd, BLOCK_BYTES);
	return r == ARCHIVE_OK || r == ARCHIVE_WARN ? 0 : fail(u, err);
}

/* 1: an entry; 0: the end. */
static int next_entry(struct unpack *u, struct archive_entry **ret_entry, struct error *err)
{
	int r = archive_read_next_header(u->archive, ret_entry);

	if (image_stop(u->limits))
		return error_set(err, EINTR, "interrupted");
	if (r == ARCHIVE_EOF)
		return 0;
	if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
		return fail(u, err);
	if (++u->entries > u->limits->entries)
		return error_set(err, EFBIG, "%s holds more than %llu entries: it is not unpacked", u->name,
			(unsigned long long)u->limits->entries);
	/* What filters produce counts too, whether or not it is kept. */
	if ((uint64_t)archive_filter_bytes(u->archive, 0) > u->limits->bytes)
		return error_set(err, EFBIG, "%s unpacks to more than %llu MiB: it is not unpacked", u->name,
			(unsigned long long)(u->limits->bytes >> 20));
	return 1;
}

static ssize_t read_data(void *opaque, void *buf, size_t size, struct error *err)
{
	struct unpack *u = opaque;
	la_ssize_t got = archive_read_data(u->archive, buf, size);

	if (got == ARCHIVE_RETRY || got == ARCHIVE_WARN)
		got = archive_read_data(u->archive, buf, size);
	if (got < 0)
		return fail(u, err);
	u->bytes += (uint64_t)got;
	if (u->bytes > u->limits->bytes)
		return error_set(err, EFBIG, "%s unpacks to more than %llu MiB: it is not unpacked", u->name,
			(unsigned long long)(u->limits->bytes >> 20));
	return image_stop(u->limits) ? error_set(err, EINTR, "interrupted") : (ssize_t)got;
}

static int add_attributes(struct unpack *u, struct archive_entry *entry, const char *path, struct error *err)
{
	const char *name;
	const void *value;
	size_t size;

	archive_entry_xattr_reset(entry);
	while (archive_entry_xattr_next(entry, &name, &value, &size) == ARCHIVE_OK) {
		/* The host's marks of its own; ACLs have a form of their own in ext4. */
		if (size > ATTRIBUTE_MAX || (strncmp(name, "user.", 5) && strncmp(name, "security.capability", 20)))
			continue;
		int status = image_fs_attribute(u->fs, path, name, value, size, err);
		if (status < 0)
			return status;
	}
	return 0;
}

static int add_entry(struct unpack *u, struct archive_entry *entry, const char *path, struct error *err)
{
	const char *hard_link = archive_entry_hardlink(entry);

	if (hard_link)
		return image_fs_link(u->fs, path, hard_link, err);
	const struct image_entry added = {
		.path = path,
		.mode = archive_entry_mode(entry),
		.uid = (uint32_t)archive_entry_uid(entry),
		.gid = (uint32_t)archive_entry_gid(entry),
		.mtime_s = archive_entry_mtime(entry),
		.target = archive_entry_symlink(entry),
		.dev_major = (uint32_t)archive_entry_rdevmajor(entry) & 0xfff,
		.dev_minor = (uint32_t)archive_entry_rdevminor(entry) & 0xfffff,
		.read = read_data,
		.opaque = u,
	};
	int status = image_fs_add(u->fs, &added, err);
	return status < 0 ? status : add_attributes(u, entry, path, err);
}

/* The last component, or NULL if it ends in a slash. */
static const char *last_part(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static bool is_whiteout(const char *path)
{
	return strncmp(last_part(path), WHITEOUT, sizeof(WHITEOUT) - 1) == 0;
}

static int unpack_all(struct unpack *u, bool layer, struct error *err)
{
	struct archive_entry *entry;
	int status;

	while ((status = next_entry(u, &entry, err)) > 0) {
		const char *path = archive_entry_pathname(entry);
		if (!path)
			return error_set(err, EBADMSG, "%s holds an entry without a name", u->name);
		if (layer && is_whiteout(path))
			continue;
		status = add_entry(u, entry, path, err);
		if (status < 0) {
			error_prefix(err, "%.*s", NAME_IN_TEXT, u->name);
			return status;
		}
	}
	return status;
}

static int carry_out(struct unpack *u, const char *path, struct error *err)
{
	char lower[IMAGE_PATH_MAX];
	const char *last = last_part(path);
	const size_t folder = (size_t)(last - path);

	if (strlen(path) >= sizeof(lower))
		return error_set(err, EINVAL, "a name in %s is too long", u->name);
	memcpy(lower, path, folder);
	lower[folder] = '\0';
	if (strcmp(last, WHITEOUT_ALL) == 0)
		return image_fs_remove(u->fs, lower, true, err);
	last += sizeof(WHITEOUT) - 1;
	if (!*last || strcmp(last, ".") == 0 || strcmp(last, "..") == 0)
		return error_set(err, EINVAL, "%s holds a whiteout of nothing: '%s'", u->name, path);
	strcpy(lower + folder, last);
	return image_fs_remove(u->fs, lower, false, err);
}

static int all_whiteouts(struct unpack *u, struct error *err)
{
	struct archive_entry *entry;
	int status;

	while ((status = next_entry(u, &entry, err)) > 0) {
		const char *path = archive_entry_pathname(entry);
		if (!path || !is_whiteout(path))
			continue;
		status = carry_out(u, path, err);
		if (status < 0)
			return status;
	}
	return status;
}

int image_archive_unpack(struct image_fs *fs, int fd, bool layer, const struct image_limits *limits, const char *name,
	struct error *err)
{
	struct unpack u = { .fs = fs, .limits = limits, .name = name };
	int status = open_archive(&u, fd, err);

	if (status == 0)
		status = unpack_all(&u, layer, err);
	archive_read_free(u.archive);
	return status;
}

int image_archive_whiteouts(struct image_fs *fs, int fd, const struct image_limits *limits, const char *name,
	struct error *err)
{
	struct unpack u = { .fs = fs, .limits = limits, .name = name };
	int status = open_archive(&u, fd, err);

	if (status == 0)
		status = all_whiteouts(&u, err);
	archive_read_free(u.archive);
	return status;
}
