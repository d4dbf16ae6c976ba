/*
 * Making an image: disk, file system, its contents from one of the sources, boot loader, record. See image.h.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "host/image_disk.h"
#include "host/image_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ENTRIES_MAX	   4000000
#define UNPACKED_FACTOR	   4 /* what archives may unpack to, in sizes of the image: layers replace each other */
#define LOADER_PART_MAX	   MIB(8)
#define LOADER_FOLDER	   "/usr/lib/lodge/grub/"

struct maker {
	const struct image_build *build;
	struct image_draft *draft;
	struct image_disk disk;
	char fs_uuid[IMAGE_GUID_TEXT];
	struct image_fs *fs;
	struct image_limits limits;
};

/* ---- what depends on the disk ---- */

static int put_text(struct image_fs *fs, const char *path, const char *text, struct error *err)
{
	return image_fs_put(fs, path, 0644, text, strlen(text), err);
}

static int put_fstab(struct maker *m, struct error *err)
{
	char text[256];

	if (!m->build->debian_suite && image_fs_exists(m->fs, "/etc/fstab"))
		return 0;
	snprintf(text, sizeof(text), "PARTUUID=%s / ext4 errors=remount-ro 0 1\n", m->disk.root_guid);
	return put_text(m->fs, "/etc/fstab", text, err);
}

/* A menu that never needs an update: Debian keeps the links to the newest kernel. */
static int put_menu(struct maker *m, struct error *err)
{
	char text[1024];
	const bool top = image_fs_exists(m->fs, "/vmlinuz");
	const char *folder = top ? "" : "/boot";

	if ((!top && !image_fs_exists(m->fs, "/boot/vmlinuz")) || image_fs_exists(m->fs, "/boot/grub/grub.cfg"))
		return 0;
	snprintf(text, sizeof(text),
		"# Made by lodge image build; it stays true when kernels are installed.\n"
		"set timeout=1\n"
		"serial --unit=0 --speed=115200\n"
		"terminal_input console serial\n"
		"terminal_output console serial\n"
		"menuentry 'Linux' {\n"
		"\tlinux %s/vmlinuz root=PARTUUID=%s ro quiet console=tty0 console=ttyS0,115200\n"
		"%s%s%s"
		"}\n",
		folder, m->disk.root_guid, image_fs_exists(m->fs, top ? "/initrd.img" : "/boot/initrd.img") ? "\tinitrd " : "",
		image_fs_exists(m->fs, top ? "/initrd.img" : "/boot/initrd.img") ? folder : "",
		image_fs_exists(m->fs, top ? "/initrd.img" : "/boot/initrd.img") ? "/initrd.img\n" : "");
	return put_text(m->fs, "/boot/grub/grub.cfg", text, err);
}

/* ---- sources ---- */

static int fill_tar(struct maker *m, struct error *err)
{
	AUTO_CLOSE int fd = open(m->build->tar, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return error_set_errno(err, errno, "can't open %s", m->build->tar);
	image_progress(m->build, "unpacking");
	return image_archive_unpack(m->fs, fd, false, &m->limits, m->build->tar, err);
}

static int fill_debian(struct maker *m, struct error *err)
{
	AUTO_FREE char *log = NULL;

	if (asprintf(&log, "%s/.%s.log", m->draft->folder, m->draft->name) < 0) {
		log = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	return image_debian_fill(m->fs, m->build, m->fs_uuid, log, &m->limits, err);
}

static int fill_oci(struct maker *m, struct error *err)
{
	AUTO_FREE char *scratch = NULL;

	if (asprintf(&scratch, "%s/layout", m->draft->path) < 0) {
		scratch = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	return image_oci_fill(m->fs, m->build, scratch, &m->limits, err);
}

static int fill(struct maker *m, struct error *err)
{
	int status;

	if (m->build->debian_suite)
		status = fill_debian(m, err);
	else if (m->build->tar)
		status = fill_tar(m, err);
	else
		status = fill_oci(m, err);
	if (status == 0)
		status = put_fstab(m, err);
	return status < 0 ? status : put_menu(m, err);
}

/* ---- boot loader ---- */

struct loader_bytes {
	uint8_t *boot, *core, *efi;
};

static void get_part(struct maker *m, const char *path, uint8_t **ret_bytes, const uint8_t **ret_view, size_t *ret_size)
{
	/* Without them the disk starts from no firmware, which lodge run does not need. */
	if (image_fs_get(m->fs, path, LOADER_PART_MAX, ret_bytes, ret_size, NULL) == 0)
		*ret_view = *ret_bytes;
}

static int finish_disk(struct maker *m, struct error *err)
{
	struct image_loader loader = { 0 };
	struct loader_bytes bytes = { 0 };

	image_progress(m->build, "writing the boot loader");
	get_part(m, LOADER_FOLDER "boot.img", &bytes.boot, &loader.boot, &loader.boot_bytes);
	get_part(m, LOADER_FOLDER "core.img", &bytes.core, &loader.core, &loader.core_bytes);
	get_part(m, LOADER_FOLDER "bootx64.efi", &bytes.efi, &loader.efi, &loader.efi_bytes);
	int status = image_fs_finish(take_ptr(&m->fs), err);
	if (status == 0)
		status = image_disk_write(m->draft->disk, &m->disk, &loader, err);
	free(bytes.boot);
	free(bytes.core);
	free(bytes.efi);
	return status;
}

/* ---- the whole ---- */

static int make(struct maker *m, struct error *err)
{
	int status = image_disk_init(&m->disk, m->build->size_bytes, err);

	if (status == 0)
		status = image_guid(m->fs_uuid, err);
	if (status < 0)
		return status;
	if (ftruncate(m->draft->disk, (off_t)m->disk.size_bytes) < 0)
		return error_set_errno(err, errno, "can't make a disk of that size");
	image_progress(m->build, "making the file system");
	status = image_fs_create(&m->fs, m->draft->disk, IMAGE_ROOT_OFFSET,
		m->disk.size_bytes - IMAGE_ROOT_OFFSET - IMAGE_DISK_TAIL, "lodge", m->fs_uuid, err);
	if (status == 0)
		status = fill(m, err);
	if (status == 0)
		status = finish_disk(m, err);
	image_fs_free(take_ptr(&m->fs));
	return status;
}

static void describe(const struct maker *m, struct image_record *ret_info)
{
	const struct image_build *b = m->build;
	const char *kind = b->debian_suite ? "debian" : b->tar ? "tar" : "oci";
	const char *source = b->debian_suite ? b->debian_suite : b->tar ? b->tar : b->oci;

	*ret_info = (struct image_record){ .size_bytes = m->disk.size_bytes };
	snprintf(ret_info->kind, sizeof(ret_info->kind), "%s", kind);
	snprintf(ret_info->source, sizeof(ret_info->source), "%s", source);
	snprintf(ret_info->root, sizeof(ret_info->root), "PARTUUID=%s", m->disk.root_guid);
}

static int build_in(struct image_draft *draft, const struct image_build *build, bool *ret_built, struct error *err)
{
	struct maker m = { .build = build, .draft = draft,
		.limits = { .bytes = build->size_bytes * UNPACKED_FACTOR, .entries = ENTRIES_MAX, .stop = build->stop,
			.opaque = build->opaque } };
	struct image_record info;

	*ret_built = build->replace || image_find(&info, build->name, NULL) < 0;
	if (!*ret_built)
		return 0;
	int status = make(&m, err);
	if (status < 0)
		return status;
	if (image_stop(&m.limits))
		return error_set(err, EINTR, "interrupted");
	describe(&m, &info);
	return image_draft_commit(draft, &info, err);
}

int image_build(const struct image_build *build, bool *ret_built, struct error *err)
{
	struct image_draft draft;
	int status = image_draft_begin(&draft, build->name, build->progress, build->opaque, err);

	*ret_built = false;
	if (status == 0)
		status = build_in(&draft, build, ret_built, err);
	image_draft_done(&draft);
	return status;
}
