/*
 * Where images are kept: see image.h.
 *
 *	images/NAME/disk.img, image.json	an image
 *	images/.NAME.XXXXXX/			one that is being made
 *	images/.NAME.lock			held by whoever makes, replaces or removes it
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "host/image_private.h"
#include "host/names.h"
#include "host/paths.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RECORD_MAX KIB(64)

static int check_name(const char *name, struct error *err)
{
	if (name_ok(name))
		return 0;
	return error_set(err, EINVAL,
		"'%s' is no name of an image: letters, digits, '.', '_' and '-', the first a letter or digit", name);
}

/* FOLDER/NAME/FILE; file may be NULL. */
static int path_of(char **ret_path, const char *name, const char *file, struct error *err)
{
	AUTO_FREE char *folder = NULL;
	int status = check_name(name, err);

	if (status == 0)
		status = paths_data(&folder, "images", false, err);
	if (status < 0)
		return status;
	if (asprintf(ret_path, "%s/%s%s%s", folder, name, file ? "/" : "", file ? file : "") < 0) {
		*ret_path = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	return 0;
}

int image_disk_path(char **ret_path, const char *name, struct error *err)
{
	return path_of(ret_path, name, "disk.img", err);
}

/* ---- records ---- */

static void take_text(json_t *record, const char *key, char *to, size_t size)
{
	const char *text = json_string_value(json_object_get(record, key));

	if (text)
		snprintf(to, size, "%s", text);
}

/* JSON is UTF-8; a path may be anything, or have been cut in the middle of a character. */
static void make_utf8(char *text)
{
	json_t *string = json_string(text);

	for (; !string && *text; text++)
		if ((unsigned char)*text >= 0x80)
			*text = '?';
	json_decref(string);
}

static int write_record(const char *folder, const struct image_record *info, struct error *err)
{
	AUTO_FREE char *path = NULL;
	json_t *record = json_pack("{s:i, s:s, s:s, s:s, s:s, s:I}", "version", 1, "kind", info->kind, "source",
		info->source, "created", info->created, "root", info->root, "size_bytes", (json_int_t)info->size_bytes);

	if (!record || asprintf(&path, "%s/image.json", folder) < 0) {
		json_decref(record);
		return error_set(err, ENOMEM, "no memory");
	}
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	int status = 0;
	if (fd < 0 || json_dumpfd(record, fd, JSON_INDENT(2)) < 0 || write(fd, "\n", 1) != 1 || fsync(fd) < 0)
		status = error_set_errno(err, errno, "can't write %s", path);
	json_decref(record);
	return status;
}

static int read_record(struct image_record *info, const char *path, struct error *err)
{
	char text[RECORD_MAX];
	json_error_t why;
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof(text));

	if (size < 0)
		return error_set_errno(err, errno, "can't read %s", path);
	json_t *record = json_loadb(text, (size_t)size, 0, &why);
	if (!json_is_object(record) || json_integer_value(json_object_get(record, "version")) != 1) {
		json_decref(record);
		return error_set(err, EINVAL, "%s is no record of an image that this Lodge knows", path);
	}
	take_text(record, "kind", info->kind, sizeof(info->kind));
	take_text(record, "source", info->source, sizeof(info->source));
	take_text(record, "created", info->created, sizeof(info->created));
	take_text(record, "root", info->root, sizeof(info->root));
	json_decref(record);
	return 0;
}

int image_find(struct image_record *ret_info, const char *name, struct error *err)
{
	AUTO_FREE char *disk = NULL, *record = NULL;
	struct stat st;
	int status = path_of(&disk, name, "disk.img", err);

	*ret_info = (struct image_record){ 0 };
	if (status == 0)
		status = path_of(&record, name, "image.json", err);
	if (status < 0)
		return status;
	if (stat(disk, &st) < 0)
		return errno == ENOENT ? error_set(err, ENOENT, "no image '%s' (lodge image list shows those there are)", name) :
					 error_set_errno(err, errno, "can't look at %s", disk);
	snprintf(ret_info->name, sizeof(ret_info->name), "%s", name);
	ret_info->size_bytes = (uint64_t)st.st_size;
	ret_info->used_bytes = (uint64_t)st.st_blocks * 512;
	return read_record(ret_info, record, err);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(((const struct image_record *)a)->name, ((const struct image_record *)b)->name);
}

int image_list(struct image_record **ret_list, unsigned *ret_count, struct error *err)
{
	AUTO_FREE char *folder = NULL;
	AUTO_FREE struct image_record *list = NULL;
	unsigned count = 0;
	struct dirent *entry;
	int status = paths_data(&folder, "images", false, err);

	*ret_list = NULL;
	*ret_count = 0;
	if (status < 0)
		return status;
	AUTO_CLOSEDIR DIR *dir = opendir(folder);
	if (!dir)
		return errno == ENOENT ? 0 : error_set_errno(err, errno, "can't read %s", folder);
	while ((entry = readdir(dir))) {
		struct image_record info;
		if (!name_ok(entry->d_name) || image_find(&info, entry->d_name, NULL) < 0)
			continue;
		struct image_record *more = reallocarray(list, count + 1, sizeof(*list));
		if (!more)
			return error_set(err, ENOMEM, "no memory");
		list = more;
		list[count++] = info;
	}
	if (count)
		qsort(list, count, sizeof(*list), compare_names);
	*ret_list = take_ptr(&list);
	*ret_count = count;
	return 0;
}

/* ---- locks and drafts ---- */

static int lock_name(int *ret_fd, const char *folder, const char *name, void (*say)(void *opaque, const char *line),
	void *opaque, struct error *err)
{
	AUTO_FREE char *path = NULL;

	if (asprintf(&path, "%s/.%s.lock", folder, name) < 0)
		return error_set(err, ENOMEM, "no memory");
	AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_set_errno(err, errno, "can't make %s", path);
	int r = flock(fd, LOCK_EX | LOCK_NB);
	if (r < 0 && errno == EWOULDBLOCK) {
		if (say)
			say(opaque, "another lodge works on this image: waiting for it");
		r = flock(fd, LOCK_EX); /* a signal ends it */
	}
	if (r < 0)
		return error_set_errno(err, errno, "can't lock %s", path);
	*ret_fd = take_fd(&fd);
	return 0;
}

/* What an earlier lodge that was killed left behind. The lock is held. */
static void remove_leftovers(const char *folder, const char *name)
{
	char prefix[IMAGE_NAME_MAX + 4];
	struct dirent *entry;
	AUTO_CLOSEDIR DIR *dir = opendir(folder);

	snprintf(prefix, sizeof(prefix), ".%s.", name);
	while (dir && (entry = readdir(dir))) {
		const size_t length = strlen(prefix);
		AUTO_FREE char *path = NULL;
		/* mkdtemp's six characters, and a directory: no other name's draft, lock or log is meant */
		if (entry->d_type != DT_DIR || strncmp(entry->d_name, prefix, length) || strlen(entry->d_name) != length + 6 ||
			asprintf(&path, "%s/%s", folder, entry->d_name) < 0)
			continue;
		paths_remove(path, NULL);
	}
}

int image_draft_begin(struct image_draft *draft, const char *name, void (*say)(void *opaque, const char *line),
	void *opaque, struct error *err)
{
	AUTO_FREE char *disk = NULL;

	*draft = (struct image_draft){ .lock = -1, .disk = -1 };
	int status = check_name(name, err);
	if (status == 0)
		status = paths_data(&draft->folder, "images", true, err);
	if (status == 0)
		status = lock_name(&draft->lock, draft->folder, name, say, opaque, err);
	if (status < 0)
		return status;
	snprintf(draft->name, sizeof(draft->name), "%s", name);
	remove_leftovers(draft->folder, name);
	if (asprintf(&draft->path, "%s/.%s.XXXXXX", draft->folder, name) < 0) {
		draft->path = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	if (!mkdtemp(draft->path)) {
		status = error_set_errno(err, errno, "can't make a directory in %s", draft->folder);
		free(take_ptr(&draft->path));
		return status;
	}
	if (asprintf(&disk, "%s/disk.img", draft->path) < 0)
		return error_set(err, ENOMEM, "no memory");
	draft->disk = open(disk, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return draft->disk < 0 ? error_set_errno(err, errno, "can't make %s", disk) : 0;
}

static int sync_folder(const char *path, struct error *err)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 || fsync(fd) < 0 ? error_set_errno(err, errno, "can't make %s lasting", path) : 0;
}

/* Give the draft its name; what had it before is removed. */
static int give_name(struct image_draft *draft, struct error *err)
{
	AUTO_FREE char *path = NULL;

	if (asprintf(&path, "%s/%s", draft->folder, draft->name) < 0)
		return error_set(err, ENOMEM, "no memory");
	if (renameat2(AT_FDCWD, draft->path, AT_FDCWD, path, RENAME_NOREPLACE) == 0) {
		free(take_ptr(&draft->path));
		return sync_folder(draft->folder, err);
	}
	if (errno != EEXIST || renameat2(AT_FDCWD, draft->path, AT_FDCWD, path, RENAME_EXCHANGE) < 0)
		return error_set_errno(err, errno, "can't give the image its name, %s", path);
	int status = sync_folder(draft->folder, err);
	paths_remove(draft->path, NULL); /* the old one, now */
	free(take_ptr(&draft->path));
	return status;
}

int image_draft_commit(struct image_draft *draft, const struct image_record *info, struct error *err)
{
	struct image_record full = *info;
	struct tm now;
	const time_t seconds = time(NULL);

	strftime(full.created, sizeof(full.created), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &now));
	make_utf8(full.source);
	int status = write_record(draft->path, &full, err);
	if (status < 0)
		return status;
	if (fchmod(draft->disk, 0444) < 0 || fsync(draft->disk) < 0 || chmod(draft->path, 0755) < 0)
		return error_set_errno(err, errno, "can't make the image lasting");
	status = sync_folder(draft->path, err);
	return status < 0 ? status : give_name(draft, err);
}

void image_draft_done(struct image_draft *draft)
{
	if (draft->disk >= 0)
		close(draft->disk);
	if (draft->path)
		paths_remove(draft->path, NULL);
	if (draft->lock >= 0)
		close(draft->lock);
	free(draft->path);
	free(draft->folder);
}

int image_remove(const char *name, struct error *err)
{
	AUTO_FREE char *folder = NULL, *path = NULL;
	AUTO_CLOSE int lock = -1;
	struct image_record info;
	int status = image_find(&info, name, err);

	if (status == -EINVAL && name_ok(name)) /* of another version: it may go */
		status = 0;
	if (status == 0)
		status = paths_data(&folder, "images", false, err);
	if (status == 0)
		status = lock_name(&lock, folder, name, NULL, NULL, err);
	if (status == 0)
		status = path_of(&path, name, NULL, err);
	return status < 0 ? status : paths_remove(path, err);
}
