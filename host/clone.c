/*
 * Disks of machines: see clone.h.
 *
 * Temporary ones are in machines/.run-XXXXXX, with a lock that their process holds; one that will get a name is made in
 * machines/.new-XXXXXX. What a killed process left is removed by the next machine that starts. Who has one with a name
 * holds a lock on its file `image`.
 *
 * Who makes or removes machines or leftovers holds machines.lock meanwhile, so that nobody's new one is taken for a leftover.
 */
#include "host/clone.h"
#include "backend/disk/image.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
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
#define TELL_NS	   NS_PER_SEC
#define LOOK_US	   20000

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

/* A descriptor that holds it, or -1 with errno; EWOULDBLOCK: somebody else does. */
static int lock_file(const char *path)
{
	AUTO_CLOSE int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;

	return fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0 ? -1 : take_fd(&fd);
}

static int lock_named(const char *folder)
{
	AUTO_FREE char *note = join(folder, "image");

	return lock_file(note);
}

static int lock_folder(const char *folder)
{
	AUTO_FREE char *path = join(folder, "lock");

	return lock_file(path);
}

/* Nobody has it for long. If somebody does all the same, whoever waits is told for what; a signal ends the wait. */
static int lock_patiently(int fd, const char *path)
{
	const uint64_t tell_ns = clock_monotonic_ns() + TELL_NS;

	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK)
			return -errno;
		if (clock_monotonic_ns() >= tell_ns) {
			log_warn("machines", "waiting for another lodge, which has %s locked", path);
			return flock(fd, LOCK_EX) < 0 ? -errno : 0;
		}
		usleep(LOOK_US);
	}
	return 0;
}

static int lock_all(int *ret_lock, struct error *err)
{
	AUTO_FREE char *path = NULL;
	int status = paths_data(&path, "machines.lock", false, err);

	if (status < 0)
		return status;
	AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	status = fd < 0 ? -errno : lock_patiently(fd, path);
	if (status < 0)
		return error_set_errno(err, -status, "can't lock %s", path);
	*ret_lock = take_fd(&fd);
	return 0;
}

/* With all locked. */
static void remove_leftovers(const char *machines)
{
	AUTO_CLOSEDIR DIR *dir = opendir(machines);
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		const bool temporary = strncmp(entry->d_name, RUN_PREFIX, strlen(RUN_PREFIX)) == 0;

		if (!temporary && strncmp(entry->d_name, NEW_PREFIX, strlen(NEW_PREFIX)))
			continue;
		AUTO_FREE char *path = join(machines, entry->d_name);
		AUTO_CLOSE int lock = path && temporary ? lock_folder(path) : -1;
		if (path && (lock >= 0 || !temporary))
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

static int make_folder(char **ret_folder, const char *machines, const char *prefix, struct error *err)
{
	AUTO_FREE char *folder = NULL;

	if (asprintf(&folder, "%s/%sXXXXXX", machines, prefix) < 0) {
		folder = NULL;
		return no_memory(err);
	}
	if (!mkdtemp(folder))
		return error_set_errno(err, errno, "can't make a directory in %s", machines);
	*ret_folder = take_ptr(&folder);
	return 0;
}

static int make_named(const char *machines, const char *path, const char *image, struct error *err)
{
	AUTO_FREE char *folder = NULL;
	int status = make_folder(&folder, machines, NEW_PREFIX, err);

	if (status < 0)
		return status;
	status = fill(folder, image, err);
	if (status == 0 && renameat2(AT_FDCWD, folder, AT_FDCWD, path, RENAME_NOREPLACE) < 0)
		status = error_set_errno(err, errno, "can't make %s", path);
	if (status < 0)
		paths_remove(folder, NULL);
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
	c->lock = lock_named(c->folder);
	if (c->lock < 0 && errno == EWOULDBLOCK)
		return error_set(err, EBUSY, "the machine '%s' is in use: it runs already", name);
	return c->lock < 0 ? error_set_errno(err, errno, "can't lock the machine '%s'", name) : 0;
}

static int open_temporary(struct clone *c, const char *machines, const char *image, struct error *err)
{
	int status = make_folder(&c->folder, machines, RUN_PREFIX, err);

	if (status < 0)
		return status;
	c->temporary = true;
	c->lock = lock_folder(c->folder);
	if (c->lock < 0)
		return error_set_errno(err, errno, "can't lock the new directory %s", c->folder);
	return image ? fill(c->folder, image, err) : 0;
}

static int open_any(struct clone *c, const char *image, const char *name, struct error *err)
{
	AUTO_FREE char *machines = NULL;
	AUTO_CLOSE int all = -1;
	int status = paths_data(&machines, "machines", true, err);

	if (status == 0)
		status = lock_all(&all, err);
	if (status < 0)
		return status;
	remove_leftovers(machines);
	return name ? open_named(c, machines, image, name, err) : open_temporary(c, machines, image, err);
}

int clone_open(struct clone *c, const char *image, const char *name, struct error *err)
{
	*c = (struct clone){ .lock = -1 };
	int status = image && !name_ok(image) ? error_set(err, EINVAL, "'%s' is no name of an image", image) :
						open_any(c, image, name, err);
	if (status == 0) {
		c->seed = join(c->folder, "seed.iso");
		c->disk = image || name ? join(c->folder, "disk.qcow2") : NULL;
		c->variables = name ? join(c->folder, "uefi-vars.fd") : NULL;
		if (!c->seed || (!c->disk && (image || name)) || (!c->variables && name))
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
	free(c->variables);
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
	if (!dir)
		return errno == ENOENT ? 0 : error_set_errno(err, errno, "can't read %s", machines);
	while ((entry = readdir(dir))) {
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
	AUTO_CLOSE int all = -1;
	int status = paths_data(&machines, "machines", true, err);

	if (status == 0)
		status = lock_all(&all, err);
	if (status < 0)
		return status;
	if (!name_ok(name) || !describe(&record, machines, name))
		return error_set(err, ENOENT, "no machine '%s' (lodge machine list shows those there are)", name);
	AUTO_FREE char *folder = join(machines, name), *path = folder ? join(folder, "disk.qcow2") : NULL;
	if (!path)
		return no_memory(err);
	AUTO_CLOSE int lock = lock_named(folder);
	if (lock < 0 && errno == EWOULDBLOCK)
		return error_set(err, EBUSY, "the machine '%s' runs", name);
	/* Others than machines may have its disk. A damaged one may go all the same. */
	const struct disk_options options = { .format = "qcow2", .backing = DISK_BACKING_IGNORE, .inspect = true };
	if (disk_open(path, &options, &disk, err) == -EAGAIN)
		return error_set(err, EBUSY, "the machine '%s' runs", name);
	status = paths_remove(folder, err);
	if (disk)
		disk_close(disk);
	return status;
}
