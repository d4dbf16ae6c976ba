/*
 * Root file systems from OCI image layouts: a directory, or a tar archive of one (OCI image specification 1.1,
 * image-layout.md, image-index.md, manifest.md). Layers are applied in order; every document and layer is compared
 * with its digest before it is used. Only SHA-256 digests and local blobs; nothing is downloaded.
 *
 * Left out: the configuration (entry point, environment, user), which says how to start a container: this makes the
 * disk of a machine, which has an init.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "host/image_private.h"
#include "host/paths.h"
#include "host/sha256.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DOCUMENT_MAX MIB(4)
#define LAYERS_MAX   512
#define INDEX_DEPTH  3 /* indexes in indexes */
#define DIGEST_TEXT  (sizeof("sha256:") - 1 + SHA256_TEXT - 1)

struct layout {
	int folder;
	const char *path, *tag; /* tag NULL: whichever it is */
	const struct image_build *build;
	const struct image_limits *limits;
	struct image_fs *fs;
};

DEFINE_AUTO(json, json_t *, json_decref)

/* ---- blobs ---- */

static bool digest_ok(const char *digest)
{
	return digest && strlen(digest) == DIGEST_TEXT && strncmp(digest, "sha256:", 7) == 0 &&
	       strspn(digest + 7, "0123456789abcdef") == SHA256_TEXT - 1;
}

static int verify(int fd, const char *digest, const struct image_limits *limits, struct error *err)
{
	static const size_t room = KIB(128);
	AUTO_FREE uint8_t *buf = malloc(room);
	char text[SHA256_TEXT];
	struct sha256 sum;
	ssize_t got = 0;

	if (!buf)
		return error_set(err, ENOMEM, "no memory");
	sha256_init(&sum);
	while ((got = read(fd, buf, room)) > 0) {
		if (image_stop(limits))
			return error_set(err, EINTR, "interrupted");
		sha256_add(&sum, buf, (size_t)got);
	}
	if (got < 0)
		return error_set_errno(err, errno, "can't read the blob %s", digest);
	sha256_end(&sum, text);
	if (strcmp(text, digest + 7))
		return error_set(err, EBADMSG, "the blob %s is damaged: its digest is %s", digest, text);
	return lseek(fd, 0, SEEK_SET) < 0 ? error_set_errno(err, errno, "can't read the blob %s", digest) : 0;
}

/* Open a blob, after its digest was found right. */
static int open_blob(const struct layout *l, const json_t *descriptor, int *ret_fd, struct error *err)
{
	const char *digest = json_string_value(json_object_get(descriptor, "digest"));
	char name[sizeof("blobs/sha256/") + SHA256_TEXT];
	struct stat st;

	if (!digest_ok(digest))
		return error_set(err, EINVAL, "%s names a blob by '%.100s', which is no SHA-256 digest", l->path,
			digest ? digest : "nothing");
	snprintf(name, sizeof(name), "blobs/sha256/%s", digest + 7);
	AUTO_CLOSE int fd = openat(l->folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return error_set_errno(err, errno, "%s lacks %s", l->path, name);
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return error_set(err, EINVAL, "%s of %s is no file", name, l->path);
	int status = verify(fd, digest, l->limits, err);
	if (status == 0)
		*ret_fd = take_fd(&fd);
	return status;
}

static int read_document(int fd, const char *name, json_t **ret_document, struct error *err)
{
	AUTO_FREE char *text = malloc(DOCUMENT_MAX + 1);
	json_error_t why;
	size_t have = 0;
	ssize_t got = 1;

	if (!text)
		return error_set(err, ENOMEM, "no memory");
	while (have <= DOCUMENT_MAX && (got = read(fd, text + have, DOCUMENT_MAX + 1 - have)) > 0)
		have += (size_t)got;
	if (got < 0)
		return error_set_errno(err, errno, "can't read %s", name);
	if (have > DOCUMENT_MAX)
		return error_set(err, EFBIG, "%s is too large", name);
	*ret_document = json_loadb(text, have, JSON_REJECT_DUPLICATES, &why);
	if (json_is_object(*ret_document))
		return 0;
	json_decref(take_ptr(ret_document));
	return error_set(err, EINVAL, "%s is no JSON object: %s", name, why.text);
}

/* ---- which image ---- */

static bool is_index(const json_t *descriptor)
{
	const char *type = json_string_value(json_object_get(descriptor, "mediaType"));

	return type && (strcmp(type, "application/vnd.oci.image.index.v1+json") == 0 ||
			       strcmp(type, "application/vnd.docker.distribution.manifest.list.v2+json") == 0);
}

static bool for_us(const json_t *descriptor)
{
	const json_t *platform = json_object_get(descriptor, "platform");
	const char *cpu = json_string_value(json_object_get(platform, "architecture"));

	return !cpu || strcmp(cpu, "amd64") == 0;
}

static const char *tag_of(const json_t *descriptor)
{
	return json_string_value(
		json_object_get(json_object_get(descriptor, "annotations"), "org.opencontainers.image.ref.name"));
}

/* A borrowed reference. tag NULL: the only one there is. */
static int choose(const struct layout *l, const json_t *index, const char *tag, const json_t **ret_chosen,
	struct error *err)
{
	const json_t *each;
	unsigned count = 0;
	size_t i;

	json_array_foreach(json_object_get(index, "manifests"), i, each) {
		const char *name = tag_of(each);
		if (!for_us(each) || (tag && (!name || strcmp(name, tag))))
			continue;
		*ret_chosen = each;
		count++;
	}
	if (count == 1)
		return 0;
	if (!count)
		return error_set(err, ENOENT, "%s has no image%s%s for amd64", l->path, tag ? " " : "", tag ? tag : "");
	return error_set(err, EINVAL, "%s has %u images for amd64: say which, by LAYOUT:TAG", l->path, count);
}

static int find_manifest(const struct layout *l, json_t **ret_manifest, struct error *err)
{
	CLEANUP(cleanup_json) json_t *document = NULL;
	AUTO_CLOSE int first = openat(l->folder, "index.json", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	const char *tag = l->tag;

	if (first < 0)
		return error_set_errno(err, errno, "%s is no OCI image layout: index.json", l->path);
	int status = read_document(first, "index.json", &document, err);
	for (unsigned depth = 0; status == 0; depth++) {
		CLEANUP(cleanup_json) json_t *inner = NULL;
		const json_t *chosen = NULL;
		AUTO_CLOSE int fd = -1;
		if (depth == INDEX_DEPTH)
			return error_set(err, EINVAL, "%s has indexes in indexes in indexes", l->path);
		status = choose(l, document, tag, &chosen, err);
		if (status == 0)
			status = open_blob(l, chosen, &fd, err);
		if (status == 0)
			status = read_document(fd, "a manifest", &inner, err);
		if (status < 0)
			return status;
		if (!is_index(chosen)) {
			*ret_manifest = take_ptr(&inner);
			return 0;
		}
		tag = NULL;
		json_decref(document);
		document = take_ptr(&inner);
	}
	return status;
}

/* ---- layers ---- */

static int apply(const struct layout *l, const json_t *layer, size_t number, size_t count, struct error *err)
{
	AUTO_CLOSE int fd = -1;
	char name[64];

	snprintf(name, sizeof(name), "layer %zu of %zu", number, count);
	image_progress(l->build, name);
	int status = open_blob(l, layer, &fd, err);
	if (status == 0)
		status = image_archive_whiteouts(l->fs, fd, l->limits, name, err);
	if (status == 0 && lseek(fd, 0, SEEK_SET) < 0)
		status = error_set_errno(err, errno, "can't read %s again", name);
	return status < 0 ? status : image_archive_unpack(l->fs, fd, true, l->limits, name, err);
}

static int apply_all(const struct layout *l, struct error *err)
{
	CLEANUP(cleanup_json) json_t *manifest = NULL;
	const json_t *layers, *layer;
	size_t i;
	int status = find_manifest(l, &manifest, err);

	if (status < 0)
		return status;
	layers = json_object_get(manifest, "layers");
	const size_t count = json_array_size(layers);
	if (!count || count > LAYERS_MAX)
		return error_set(err, EINVAL, "%s: an image of %zu layers is none", l->path, count);
	json_array_foreach(layers, i, layer) {
		status = apply(l, layer, i + 1, count, err);
		if (status < 0)
			return status;
	}
	return 0;
}

/* ---- a layout in an archive ---- */

/* index.json and blobs/sha256/HEX are all that is taken out of it. */
static bool wanted(const char *path)
{
	if (path[0] == '.' && path[1] == '/')
		path += 2;
	return strcmp(path, "index.json") == 0 ||
	       (strncmp(path, "blobs/sha256/", 13) == 0 && strlen(path) == 13 + SHA256_TEXT - 1 &&
		       strspn(path + 13, "0123456789abcdef") == SHA256_TEXT - 1);
}

static int take_out(struct archive *archive, const char *folder, const char *path, uint64_t *left, struct error *err)
{
	AUTO_FREE char *to = NULL;
	char buf[65536];
	la_ssize_t got;

	if (asprintf(&to, "%s/%s", folder, path) < 0) {
		to = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	AUTO_CLOSE int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_set_errno(err, errno, "can't make %s", to);
	while ((got = archive_read_data(archive, buf, sizeof(buf))) > 0) {
		if ((uint64_t)got > *left)
			return error_set(err, EFBIG, "the layout unpacks to too much");
		*left -= (uint64_t)got;
		if (write(fd, buf, (size_t)got) != got)
			return error_set_errno(err, errno, "can't write %s", to);
	}
	return got < 0 ? error_set(err, EBADMSG, "the layout's archive: %s", archive_error_string(archive)) : 0;
}

static int take_all(struct archive *archive, const char *folder, const struct image_limits *limits, struct error *err)
{
	struct archive_entry *entry;
	uint64_t left = limits->bytes;
	int r;

	while ((r = archive_read_next_header(archive, &entry)) == ARCHIVE_OK || r == ARCHIVE_WARN) {
		const char *path = archive_entry_pathname(entry);
		if (image_stop(limits))
			return error_set(err, EINTR, "interrupted");
		if (!path || !wanted(path) || archive_entry_filetype(entry) != AE_IFREG)
			continue;
		int status = take_out(archive, folder, path, &left, err);
		if (status < 0)
			return status;
	}
	return r == ARCHIVE_EOF ? 0 : error_set(err, EBADMSG, "the layout's archive: %s", archive_error_string(archive));
}

static int unpack_layout(const char *path, const char *folder, const struct image_limits *limits, struct error *err)
{
	AUTO_FREE char *blobs = NULL;

	if (mkdir(folder, 0700) < 0 || asprintf(&blobs, "%s/blobs", folder) < 0 || mkdir(blobs, 0700) < 0)
		return error_set_errno(err, errno, "can't make a directory for the layout");
	AUTO_FREE char *sha256 = NULL;
	if (asprintf(&sha256, "%s/sha256", blobs) < 0 || mkdir(sha256, 0700) < 0)
		return error_set_errno(err, errno, "can't make a directory for the layout");
	struct archive *archive = archive_read_new();
	if (!archive)
		return error_set(err, ENOMEM, "no memory");
	archive_read_support_format_tar(archive);
	archive_read_support_filter_gzip(archive);
	archive_read_support_filter_zstd(archive);
	int status = archive_read_open_filename(archive, path, 65536) == ARCHIVE_OK ?
			     take_all(archive, folder, limits, err) :
			     error_set(err, EBADMSG, "can't read %s: %s", path, archive_error_string(archive));
	archive_read_free(archive);
	return status;
}

/* ---- the whole ---- */

/* path is changed: PATH:TAG, if there is no file of the whole name. */
static const char *split_tag(char *path)
{
	char *colon = strrchr(path, ':');

	if (access(path, F_OK) == 0 || !colon || strchr(colon, '/'))
		return NULL;
	*colon = '\0';
	return colon + 1;
}

int image_oci_fill(struct image_fs *fs, const struct image_build *build, const char *scratch,
	const struct image_limits *limits, struct error *err)
{
	AUTO_FREE char *path = strdup(build->oci);
	struct layout l = { .fs = fs, .build = build, .limits = limits };
	struct stat st;
	int status = 0;

	if (!path)
		return error_set(err, ENOMEM, "no memory");
	l.tag = split_tag(path);
	l.path = path;
	if (stat(path, &st) < 0)
		return error_set_errno(err, errno, "can't open %s", path);
	if (!S_ISDIR(st.st_mode))
		status = unpack_layout(path, scratch, limits, err);
	AUTO_CLOSE int folder = open(S_ISDIR(st.st_mode) ? path : scratch, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (status == 0 && folder < 0)
		status = error_set_errno(err, errno, "can't open %s", path);
	l.folder = folder;
	if (status == 0)
		status = apply_all(&l, err);
	if (!S_ISDIR(st.st_mode))
		paths_remove(scratch, NULL);
	return status;
}
