/*
 * Seeds for cloud-init: see seed.h. libarchive writes ISO 9660 with Rock Ridge and Joliet, by which the guest sees
 * the files' names as they are.
 */
#include "host/seed.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "host/sha256.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INSTANCE_DIGITS 16

struct text {
	char *bytes;
	size_t size;
};

static void text_free(struct text *text)
{
	free(text->bytes);
}

#define AUTO_TEXT CLEANUP(text_free)

static int read_text(struct text *ret_text, const char *path, struct error *err)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	AUTO_FREE char *bytes = malloc(SEED_FILE_MAX + 1);
	size_t have = 0;
	ssize_t got = 1;

	if (!bytes)
		return error_set(err, ENOMEM, "no memory");
	if (fd < 0)
		return error_set_errno(err, errno, "can't open %s", path);
	while (have <= SEED_FILE_MAX && (got = read(fd, bytes + have, SEED_FILE_MAX + 1 - have)) > 0)
		have += (size_t)got;
	if (got < 0)
		return error_set_errno(err, errno, "can't read %s", path);
	if (have > SEED_FILE_MAX)
		return error_set(err, EFBIG, "%s is larger than %d MiB", path, (int)(SEED_FILE_MAX >> 20));
	*ret_text = (struct text){ take_ptr(&bytes), have };
	return 0;
}

/* cloud-init takes a file without one of its first lines for nothing, and says so only in a log in the guest. */
static int check_user_data(const struct text *text, const char *path, struct error *err)
{
	static const char *const starts[] = { "#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler",
		"#upstart-job", "## template:", "Content-Type:", "MIME-Version:", "From ", "\x1f\x8b" };

	for (unsigned i = 0; i < ARRAY_SIZE(starts); i++)
		if (text->size >= strlen(starts[i]) && memcmp(text->bytes, starts[i], strlen(starts[i])) == 0)
			return 0;
	return error_set(err, EINVAL, "%s is nothing that cloud-init reads: its first line should be #cloud-config", path);
}

static int make_meta_data(struct text *ret_text, const struct seed *seed, const struct text *user, const struct text *net,
	struct error *err)
{
	char digest[SHA256_TEXT], name[300] = "";
	struct sha256 sum;

	sha256_init(&sum);
	sha256_add(&sum, user->bytes, user->size);
	sha256_add(&sum, "", 1);
	if (net->size)
		sha256_add(&sum, net->bytes, net->size);
	sha256_add(&sum, "", 1);
	if (seed->hostname) {
		sha256_add(&sum, seed->hostname, strlen(seed->hostname));
		snprintf(name, sizeof(name), "local-hostname: %s\n", seed->hostname);
	}
	sha256_end(&sum, digest);
	const int length = asprintf(&ret_text->bytes, "instance-id: lodge-%.*s\n%s", INSTANCE_DIGITS, digest, name);
	if (length < 0) {
		ret_text->bytes = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	ret_text->size = (size_t)length;
	return 0;
}

static int add(struct archive *archive, const char *name, const struct text *text)
{
	struct archive_entry *entry = archive_entry_new();

	if (!entry)
		return -ENOMEM;
	archive_entry_set_pathname(entry, name);
	archive_entry_set_filetype(entry, AE_IFREG);
	archive_entry_set_perm(entry, 0444);
	archive_entry_set_size(entry, (la_int64_t)text->size);
	archive_entry_set_mtime(entry, 0, 0);
	const bool ok = archive_write_header(archive, entry) == ARCHIVE_OK &&
			archive_write_data(archive, text->bytes, text->size) == (la_ssize_t)text->size;
	archive_entry_free(entry);
	return ok ? 0 : -EIO;
}

static int write_iso(int fd, const struct text *user, const struct text *meta, const struct text *net, struct error *err)
{
	struct archive *archive = archive_write_new();
	int status;

	if (!archive)
		return error_set(err, ENOMEM, "no memory");
	if (archive_write_set_format_iso9660(archive) != ARCHIVE_OK ||
		archive_write_set_options(archive, "volume-id=cidata,joliet,rockridge=useful") != ARCHIVE_OK ||
		archive_write_open_fd(archive, fd) != ARCHIVE_OK) {
		status = -EIO;
	} else {
		status = add(archive, "meta-data", meta);
		if (status == 0)
			status = add(archive, "user-data", user);
		if (status == 0 && net->size)
			status = add(archive, "network-config", net);
		if (status == 0 && archive_write_close(archive) != ARCHIVE_OK)
			status = -EIO;
	}
	if (status < 0) {
		const char *why = archive_error_string(archive);
		status = error_set(err, -status, "can't write the seed of cloud-init: %s", why ? why : strerror(-status));
	}
	archive_write_free(archive);
	return status;
}

int seed_write(const struct seed *seed, const char *path, struct error *err)
{
	AUTO_TEXT struct text user = { 0 }, meta = { 0 }, net = { 0 };
	int status = read_text(&user, seed->user_data, err);

	if (status == 0)
		status = check_user_data(&user, seed->user_data, err);
	if (status == 0 && seed->network_config)
		status = read_text(&net, seed->network_config, err);
	if (status == 0)
		status = seed->meta_data ? read_text(&meta, seed->meta_data, err) :
					   make_meta_data(&meta, seed, &user, &net, err);
	if (status < 0)
		return status;
	if (unlink(path) < 0 && errno != ENOENT)
		return error_set_errno(err, errno, "can't replace %s", path);
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return fd < 0 ? error_set_errno(err, errno, "can't make %s", path) : write_iso(fd, &user, &meta, &net, err);
}
