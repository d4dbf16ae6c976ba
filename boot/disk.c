/*
 * Finding what to boot on a disk: see disk.h.
 */
#include "boot/disk.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "boot/disk_private.h"
#include "boot/file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_BYTES_MAX GIB(2)
#define READS_MAX      2000000
#define TEXT_MAX       MIB(1) /* of a configuration file */
#define CHUNK	       MIB(1)
#define SEPARATOR      4 /* initial RAM disks begin at multiples */

int boot_read(struct boot_reader *reader, void *buf, uint64_t bytes, uint64_t offset)
{
	const struct boot_source *s = reader->source;

	if (offset > s->size_bytes || bytes > s->size_bytes - offset)
		return -EIO;
	if (!reader->reads_left || bytes > reader->bytes_left)
		return -EFBIG;
	reader->reads_left--;
	reader->bytes_left -= bytes;
	return s->read(s->opaque, buf, bytes, offset);
}

struct finder {
	struct boot_reader reader;
	const struct boot_partition *partition;
	struct ext fs;
	struct boot_entry entry;
	char config[64]; /* the file that the entry is from */
	struct boot_found *found;
	struct error *err;
	bool file_system; /* one was readable */
};

/* ---- files ---- */

/* Caller frees; ends in a zero. */
static int read_text(struct finder *f, const char *path, char **ret_text)
{
	struct ext_file file;
	int status = ext_find(&f->fs, path, &file);

	if (status < 0)
		return status;
	if (!S_ISREG(file.mode) || file.bytes > TEXT_MAX)
		return -EINVAL;
	AUTO_FREE char *text = malloc(file.bytes + 1);
	if (!text)
		return -ENOMEM;
	status = ext_read(&f->fs, &file, text, file.bytes, 0);
	if (status < 0)
		return status;
	text[file.bytes] = '\0';
	*ret_text = take_ptr(&text);
	return 0;
}

static int write_all(int fd, const uint8_t *bytes, uint64_t count)
{
	while (count) {
		ssize_t n = write(fd, bytes, count);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		bytes += n;
		count -= (uint64_t)n;
	}
	return 0;
}

/* Append a file of the disk to a memory file. */
static int copy_file(struct finder *f, const char *path, int fd, uint64_t *total)
{
	AUTO_FREE uint8_t *buf = malloc(CHUNK);
	static const uint8_t zeros[SEPARATOR];
	struct ext_file file;
	int status = buf ? ext_find(&f->fs, path, &file) : -ENOMEM;

	if (status < 0)
		return status;
	if (!S_ISREG(file.mode) || !file.bytes)
		return -EINVAL;
	if (file.bytes > BOOT_KERNEL_MAX_BYTES - *total)
		return -EFBIG;
	for (uint64_t at = 0; at < file.bytes && status == 0; at += CHUNK) {
		const uint64_t count = MIN(file.bytes - at, CHUNK);
		status = ext_read(&f->fs, &file, buf, count, at);
		if (status == 0)
			status = write_all(fd, buf, count);
	}
	*total += file.bytes;
	if (status == 0 && file.bytes % SEPARATOR)
		status = write_all(fd, zeros, SEPARATOR - file.bytes % SEPARATOR);
	return status;
}

/* A path of a configuration file: without GRUB's device, and from its own folder if it is relative. */
static void full_path(const struct finder *f, const char *path, char full[2 * BOOT_MENU_TEXT])
{
	if (*path == '(' && strchr(path, ')'))
		path = strchr(path, ')') + 1;
	const char *slash = strrchr(f->config, '/');
	const int folder = *path == '/' || !slash ? 0 : (int)(slash + 1 - f->config);
	snprintf(full, 2 * BOOT_MENU_TEXT, "%.*s%s", folder, f->config, path);
}

static int take_files(struct finder *f)
{
	char path[2 * BOOT_MENU_TEXT];
	AUTO_CLOSE int kernel = memfd_create("kernel", MFD_CLOEXEC), initrd = -1;
	uint64_t kernel_bytes = 0, initrd_bytes = 0;

	full_path(f, f->entry.kernel, path);
	int status = kernel < 0 ? -errno : copy_file(f, path, kernel, &kernel_bytes);
	if (status == 0 && f->entry.initrd_count) {
		initrd = memfd_create("initrd", MFD_CLOEXEC);
		status = initrd < 0 ? -errno : 0;
	}
	for (unsigned i = 0; i < f->entry.initrd_count && status == 0; i++) {
		full_path(f, f->entry.initrd[i], path);
		status = copy_file(f, path, initrd, &initrd_bytes);
	}
	if (status < 0)
		return error_set_errno(f->err, -status, "%s of the disk names %.200s, which can't be read", f->config, path);
	f->found->kernel = take_fd(&kernel);
	f->found->initrd = take_fd(&initrd);
	return 0;
}

static int take_entry(struct finder *f)
{
	f->found->cmdline = strdup(f->entry.cmdline);
	if (!f->found->cmdline)
		return error_set(f->err, ENOMEM, "no memory");
	if (*f->partition->root)
		snprintf(f->found->partition, sizeof(f->found->partition), "root=%s", f->partition->root);
	else
		snprintf(f->found->partition, sizeof(f->found->partition), "root=UUID=%s", f->fs.uuid);
	if (f->partition->number)
		snprintf(f->found->from, sizeof(f->found->from), "partition %u, %s", f->partition->number, f->config);
	else
		snprintf(f->found->from, sizeof(f->found->from), "%s", f->config);
	int status = take_files(f);
	if (status < 0)
		boot_found_done(f->found);
	return status;
}

/* ---- where a configuration can be ---- */

static bool try_config(struct finder *f, const char *path, bool (*parse)(const char *text, struct boot_entry *entry))
{
	AUTO_FREE char *text = NULL;

	if (read_text(f, path, &text) < 0 || !parse(text, &f->entry))
		return false;
	snprintf(f->config, sizeof(f->config), "%s", path);
	return take_entry(f) == 0;
}

struct newest {
	char name[256];
};

/* By version, as boot loaders sort them; rescue entries last. */
static bool is_newer(void *opaque, const char *name, uint32_t inode)
{
	struct newest *best = opaque;
	const size_t length = strlen(name);

	if (length < 6 || strcmp(name + length - 5, ".conf"))
		return false;
	const int rescue = !!strstr(name, "rescue") - !!strstr(best->name, "rescue");
	if (!*best->name || rescue < 0 || (rescue == 0 && strverscmp(name, best->name) > 0))
		snprintf(best->name, sizeof(best->name), "%s", name);
	return false;
}

static bool try_bls(struct finder *f, const char *folder)
{
	struct newest best = { "" };
	char path[320];
	struct ext_file dir;

	if (ext_find(&f->fs, folder, &dir) < 0 || ext_list(&f->fs, &dir, is_newer, &best) < 0 || !*best.name)
		return false;
	snprintf(path, sizeof(path), "%s/%s", folder, best.name);
	return try_config(f, path, boot_menu_bls);
}

/* The links that Debian and others keep; there is no command line then. */
static bool try_links(struct finder *f)
{
	static const char *const pairs[][2] = { { "/vmlinuz", "/initrd.img" }, { "/boot/vmlinuz", "/boot/initrd.img" } };
	struct ext_file file;

	for (unsigned i = 0; i < ARRAY_SIZE(pairs); i++) {
		if (ext_find(&f->fs, pairs[i][0], &file) < 0)
			continue;
		memset(&f->entry, 0, sizeof(f->entry));
		strcpy(f->entry.kernel, pairs[i][0]);
		if (ext_find(&f->fs, pairs[i][1], &file) == 0)
			strcpy(f->entry.initrd[f->entry.initrd_count++], pairs[i][1]);
		snprintf(f->config, sizeof(f->config), "%s", pairs[i][0]);
		if (take_entry(f) == 0)
			return true;
	}
	return false;
}

static bool try_partition(struct finder *f)
{
	static const char *const grub[] = { "/boot/grub/grub.cfg", "/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub2/grub.cfg" };
	static const char *const bls[] = { "/boot/loader/entries", "/loader/entries" };
	static const char *const extlinux[] = { "/boot/extlinux/extlinux.conf", "/extlinux/extlinux.conf",
		"/boot/extlinux.conf", "/extlinux.conf", "/boot/syslinux/syslinux.cfg", "/syslinux.cfg" };

	if (ext_open(&f->fs, &f->reader, f->partition->offset, f->partition->bytes) < 0)
		return false;
	f->file_system = true;
	for (unsigned i = 0; i < ARRAY_SIZE(grub); i++)
		if (try_config(f, grub[i], boot_menu_grub))
			return true;
	for (unsigned i = 0; i < ARRAY_SIZE(bls); i++)
		if (try_bls(f, bls[i]))
			return true;
	for (unsigned i = 0; i < ARRAY_SIZE(extlinux); i++)
		if (try_config(f, extlinux[i], boot_menu_extlinux))
			return true;
	return try_links(f);
}

static int find(struct finder *f, struct boot_partition *list)
{
	const int count = boot_partitions(&f->reader, list);

	if (count < 0)
		return error_set_errno(f->err, -count, "can't read the disk's partition table");
	for (int i = 0; i < count; i++) {
		f->partition = &list[i];
		if (try_partition(f))
			return 0;
	}
	if (f->err && f->err->code) /* a menu whose files are not there */
		return -f->err->code;
	if (f->reader.bytes_left == 0 || f->reader.reads_left == 0)
		return error_set(f->err, EFBIG, "the disk's file systems are damaged, or made to take for ever");
	return error_set(f->err, ENOENT, f->file_system ?
		"no kernel was found on the disk: give one with --kernel" :
		"the disk has no file system that is read here (ext2, ext3, ext4): give a kernel with --kernel");
}

int boot_disk_find(const struct boot_source *source, struct boot_found *ret_found, struct error *err)
{
	AUTO_FREE struct finder *f = calloc(1, sizeof(*f));
	AUTO_FREE struct boot_partition *list = calloc(BOOT_PARTITIONS_MAX, sizeof(*list));
	struct error own = { 0 };

	*ret_found = (struct boot_found){ .kernel = -1, .initrd = -1 };
	if (!f || !list)
		return error_set(err, ENOMEM, "no memory");
	f->reader = (struct boot_reader){ source, READ_BYTES_MAX, READS_MAX };
	f->found = ret_found;
	f->err = err ? err : &own;
	f->err->code = 0;
	return find(f, list);
}

void boot_found_done(struct boot_found *found)
{
	if (found->kernel > 0)
		close(found->kernel);
	if (found->initrd > 0)
		close(found->initrd);
	free(found->cmdline);
	*found = (struct boot_found){ .kernel = -1, .initrd = -1 };
}
