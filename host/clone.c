/*
 * Disks of machines: see clone.h.
 *
 * Temporary ones are in machines/.run-XXXXXX, with a lock that their process holds: what a killed one left is
 * removed by the next machine that starts.
 */
#include "host/clone.h"
#include "backend/disk/image.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "host/names.h"
#include "host/paths.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define RUN_PREFIX ".run-"
#define NEW_PREFIX ".new-"

static int no_memory(struct error *err)
{
	return error_set(err, ENOMEM, "no memory");
}

/* FOLDER/NAME, on the heap; NULL: no memory. */
static char *join(const char *folder, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

/* ---- leftovers ---- */

static int lock_folder(const char *folder)
{
	AUTO_FREE char *path = join(folder, "lock");
	AUTO_CLOSE int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;

	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
		return -1;
	return take_fd(&fd);
}

static void remove_leftovers(const char *machines)
{
	AUTO_CLOSEDIR DIR *dir = opendir(machines);
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, RUN_PREFIX, strlen(RUN_PREFIX)) && strncmp(entry->d_name, NEW_PREFIX, strlen(NEW_PREFIX)))
			continue;
		AUTO_FREE char *path = join(machines, entry->d_name);
		AUTO_CLOSE int lock = path ? lock_folder(path) : -1;
		if (lock >= 0)
			paths_remove(path, NULL);
	}
}

/* ---- making ---- */

/* The image's disk under a name of the machine's own. */
static int link_base(const char *folder, const char *image, struct error *err)
{
	AUTO_FREE char *images = NULL, *base = join(folder, "base.img"), *disk = NULL;
	int status = paths_data(&images, "images", false, err);

	if (status < 0)
		return status;
	if (!base || asprintf(&disk, "%s/%s/disk.img", images, image) < 0) {
		disk = NULL;
		return no_memory(err);
	}
	if (link(disk, base) == 0)
		return 0;
	if (errno == ENOENT)
		return error_set(err, ENOENT, "no image '%s' (lodge image list shows those there are)", image);
	return error_set_errno(err, errno, "can't link %s to %s", base, disk);
}

static int fill(const char *folder, const char *image, struct error *err)
{
	const struct image_create create = { .format = "qcow2", .backing = "base.img", .backing_format = "raw",
		.lazy_refcounts = true };
	AUTO_FREE char *disk = join(folder, "disk.qcow2"), *note = join(folder, "image");

	if (!disk || !note)
		return no_memory(err);
	int status = link_base(folder, image, err);
	if (status == 0)
		status = image_create(disk, &create, err);
	if (status < 0)
		return status;
	AUTO_FCLOSE FILE *file = fopen(note, "we");
	if (!file || fprintf(file, "%s\n", image) < 0 || fflush(file) || fsync(fileno(file)) < 0)
		return error_set_errno(err, errno, "can't write %s", note);
	return 0;
}

/* A directory of its own, locked. */
static int make_folder(char **ret_folder, int *ret_lock, const char *machines, const char *prefix, struct error *err)
{
	AUTO_FREE char *folder = NULL;

	if (asprintf(&folder, "%s/%sXXXXXX", machines, prefix) < 0) {
		folder = NULL;
		return no_memory(err);
	}
	if (!mkdtemp(folder))
		return error_set_errno(err, errno, "can't make a directory in %s", machines);
	*ret_lock = lock_folder(folder);
	if (*ret_lock < 0) {
		paths_remove(folder, NULL);
		return error_set(err, EIO, "can't lock the new directory %s", folder);
	}
	*ret_folder = take_ptr(&folder);
	return 0;
}

static int make_named(const char *machines, const char *path, const char *image, struct error *err)
{
	AUTO_FREE char *folder = NULL, *lock_path = NULL;
	AUTO_CLOSE int lock = -1;
	int status = make_folder(&folder, &lock, machines, NEW_PREFIX, err);

	if (status < 0)
		return status;
	status = fill(folder, image, err);
	lock_path = join(folder, "lock");
	if (status == 0 && lock_path)
		unlink(lock_path);
	if (status == 0 && renameat2(AT_FDCWD, folder, AT_FDCWD, path, RENAME_NOREPLACE) == 0)
		return 0;
	if (status == 0 && errno != EEXIST)
		status = error_set_errno(err, errno, "can't make %s", path);
	paths_remove(folder, NULL); /* or another was faster: then that one it is */
	return status;
}

/* ---- opening ---- */

static int read_note(const char *folder, char image[static 64])
{
	AUTO_FREE char *note = join(folder, "image");
	AUTO_FCLOSE FILE *file = note ? fopen(note, "re") : NULL;

	*image = '\0';
	if (!file || !fgets(image, 64, file))
		return -ENOENT;
	image[strcspn(image, "\n")] = '\0';
	return 0;
}

static int open_named(struct clone *c, const char *machines, const char *image, const char *name, struct error *err)
{
	char made_from[64];

	if (!name_ok(name))
		return error_set(err, EINVAL,
			"'%s' is no name of a machine: letters, digits, '.', '_' and '-', the first a letter or digit", name);
	c->folder = join(machines, name);
	if (!c->folder)
		return no_memory(err);
	if (access(c->folder, F_OK) < 0) {
		if (!image)
			return error_set(err, ENOENT, "no machine '%s': name the image that it is to be made from", name);
		int status = make_named(machines, c->folder, image, err);
		if (status < 0)
			return status;
	}
	if (read_note(c->folder, made_from) < 0)
		return error_set(err, EINVAL, "%s is no machine of Lodge", c->folder);
	if (image && strcmp(image, made_from))
		return error_set(err, EINVAL, "the machine '%s' was made from '%s', not from '%s'", name, made_from, image);
	return 0;
}

static int open_any(struct clone *c, const char *image, const char *name, struct error *err)
{
	AUTO_FREE char *machines = NULL;
	int status = paths_data(&machines, "machines", true, err);

	if (status < 0)
		return status;
	remove_leftovers(machines);
	if (name)
		return open_named(c, machines, image, name, err);
	c->temporary = true;
	status = make_folder(&c->folder, &c->lock, machines, RUN_PREFIX, err);
	return status == 0 && image ? fill(c->folder, image, err) : status;
}

int clone_open(struct clone *c, const char *image, const char *name, struct error *err)
{
	*c = (struct clone){ .lock = -1 };
	int status = image && !name_ok(image) ? error_set(err, EINVAL, "'%s' is no name of an image", image) :
						open_any(c, image, name, err);
	if (status == 0) {
		c->seed = join(c->folder, "seed.iso");
		c->disk = image || name ? join(c->folder, "disk.qcow2") : NULL;
		if (!c->seed || (!c->disk && (image || name)))
			status = no_memory(err);
	}
	if (status < 0)
		clone_close(c);
	return status;
}

void clone_close(struct clone *c)
{
	if (c->temporary && c->folder)
		paths_remove(c->folder, NULL);
	if (c->lock > 0)
		close(c->lock);
	free(c->folder);
	free(c->disk);
	free(c->seed);
	*c = (struct clone){ .lock = -1 };
}

/* ---- all of them ---- */

static int compare_names(const void *a, const void *b)
{
	return strcmp(((const struct clone_record *)a)->name, ((const struct clone_record *)b)->name);
}

static bool describe(struct clone_record *record, const char *machines, const char *name)
{
	AUTO_FREE char *folder = join(machines, name), *disk = folder ? join(folder, "disk.qcow2") : NULL;
	struct stat st;

	if (!disk || stat(disk, &st) < 0 || read_note(folder, record->image) < 0)
		return false;
	snprintf(record->name, sizeof(record->name), "%s", name);
	record->used_bytes = (unsigned long long)st.st_blocks * 512;
	return true;
}

int clone_list(struct clone_record **ret_list, unsigned *ret_count, struct error *err)
{
	AUTO_FREE char *machines = NULL;
	AUTO_FREE struct clone_record *list = NULL;
	unsigned count = 0;
	struct dirent *entry;
	int status = paths_data(&machines, "machines", false, err);

	*ret_list = NULL;
	*ret_count = 0;
	if (status < 0)
		return status;
	AUTO_CLOSEDIR DIR *dir = opendir(machines);
	while (dir && (entry = readdir(dir))) {
		struct clone_record record;
		if (!name_ok(entry->d_name) || !describe(&record, machines, entry->d_name))
			continue;
		struct clone_record *more = reallocarray(list, count + 1, sizeof(*list));
		if (!more)
			return no_memory(err);
		list = more;
		list[count++] = record;
	}
	if (count)
		qsort(list, count, sizeof(*list), compare_names);
	*ret_list = take_ptr(&list);
	*ret_count = count;
	return 0;
}

int clone_remove(const char *name, struct error *err)
{
	AUTO_FREE char *machines = NULL;
	struct clone_record record;
	struct disk *disk = NULL;
	int status = paths_data(&machines, "machines", false, err);

	if (status < 0)
		return status;
	if (!name_ok(name) || !describe(&record, machines, name))
		return error_set(err, ENOENT, "no machine '%s' (lodge machine list shows those there are)", name);
	AUTO_FREE char *folder = join(machines, name), *path = folder ? join(folder, "disk.qcow2") : NULL;
	if (!path)
		return no_memory(err);
	/* The disk's own lock says whether it runs. A damaged disk may go all the same. */
	const struct disk_options options = { .format = "qcow2", .backing = DISK_BACKING_IGNORE };
	status = disk_open(path, &options, &disk, err);
	if (status == 0)
		status = disk_close(disk);
	if (status == -EAGAIN)
		return error_set(err, EBUSY, "the machine '%s' runs", name);
	return paths_remove(folder, err);
}
