/*
 * Importing disk images: raw and qcow2 (backend/disk), copied into a raw one with holes where there is nothing.
 *
 * A qcow2 image may come from anywhere: what it names as its backing file is only read if it lies beside it.
 */
#include "backend/disk/image.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "host/image_private.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define SIZE_MIN KIB(64) /* less is some other file */

static int close_after(struct disk *disk, int status, struct error *err)
{
	int closed = disk_close(disk);

	return status == 0 && closed < 0 ? error_set_errno(err, -closed, "can't write the image") : status;
}

static int open_source(struct disk **ret_disk, const char *path, struct error *err)
{
	const struct disk_options options = { .readonly = true, .backing = DISK_BACKING_BESIDE };
	int status = disk_open(path, &options, ret_disk, err);

	if (status < 0)
		return status;
	if (disk_size_bytes(*ret_disk) >= SIZE_MIN)
		return 0;
	status = error_set(err, EINVAL, "%s is no disk image: it has less than 64 KiB", path);
	return close_after(*ret_disk, status, err);
}

static bool asked_to_stop(void *opaque, uint64_t done_bytes, uint64_t all_bytes)
{
	const struct image_build *build = opaque;

	return build->stop && build->stop(build->opaque);
}

static int copy_to(struct image_draft *draft, struct disk *from, const struct image_build *build, struct error *err)
{
	const struct disk_options options = { .format = "raw", .lock = DISK_LOCK_NONE };
	const struct image_copy copy = { .target_zero = true, .progress = { asked_to_stop, (void *)(uintptr_t)build } };
	AUTO_FREE char *path = NULL;
	struct disk *to;

	if (ftruncate(draft->disk, (off_t)disk_size_bytes(from)) < 0)
		return error_set_errno(err, errno, "can't make a disk of that size");
	if (asprintf(&path, "%s/disk.img", draft->path) < 0) {
		path = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	int status = disk_open(path, &options, &to, err);
	return status < 0 ? status : close_after(to, image_copy(from, to, &copy, err), err);
}

static int import_in(struct image_draft *draft, const struct image_build *build, const char *path, struct error *err)
{
	struct image_record record;
	struct disk *from;

	if (!build->replace && image_find(&record, draft->name, NULL) == 0)
		return error_set(err, EEXIST, "there is an image '%s' already: --replace takes its place", draft->name);
	int status = open_source(&from, path, err);
	if (status < 0)
		return status;
	record = (struct image_record){ .kind = "import", .size_bytes = disk_size_bytes(from) };
	snprintf(record.source, sizeof(record.source), "%s", path);
	status = close_after(from, copy_to(draft, from, build, err), err);
	return status < 0 ? status : image_draft_commit(draft, &record, err);
}

int image_import(const struct image_build *build, const char *path, struct error *err)
{
	struct image_draft draft;
	int status = image_draft_begin(&draft, build->name, build->progress, build->opaque, err);

	if (status == 0)
		status = import_in(&draft, build, path, err);
	image_draft_done(&draft);
	return status;
}
