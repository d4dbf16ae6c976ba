/*
 * --disk FILE[,KEY=VALUE...]: see disk_list.h.
 */
#include "vmm/disk_list.h"
#include "backend/disk/nbd.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/number.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIMEOUT_MAX_S 86400

struct word {
	const char *name;
	int value;
};

static const struct word caches[] = {
	{"writeback", DISK_CACHE_WRITEBACK},
	{"none", DISK_CACHE_NONE},
	{"writethrough", DISK_CACHE_WRITETHROUGH},
	{"unsafe", DISK_CACHE_UNSAFE},
	{NULL, 0},
};

static const struct word aios[] = {
	{"auto", DISK_AIO_AUTO},
	{"io_uring", DISK_AIO_URING},
	{"threads", DISK_AIO_THREADS},
	{NULL, 0},
};

static const struct word errors[] = {
	{"pause-full", VIRTIO_BLK_PAUSE_FULL},
	{"pause", VIRTIO_BLK_PAUSE},
	{"report", VIRTIO_BLK_REPORT},
	{NULL, 0},
};

static const struct word backings[] = {
	{"any", DISK_BACKING_ANY},
	{"beside", DISK_BACKING_BESIDE},
	{"refuse", DISK_BACKING_REFUSE},
	{NULL, 0},
};

static const struct word discards[] = {
	{"unmap", false},
	{"ignore", true},
	{NULL, 0},
};

static const struct word formats[] = {
	{"raw", 0},
	{"qcow2", 1},
	{NULL, 0},
};

static const struct word kinds[] = {
	{"virtio", MACHINE_DISK_VIRTIO},
	{"sata", MACHINE_DISK_SATA},
	{"cdrom", MACHINE_DISK_CDROM},
	{NULL, 0},
};

static const struct word switches[] = {
	{"on", true},
	{"off", false},
	{NULL, 0},
};

static int pick(const struct word *words, const char *key, const char *value, int *ret_value,
	struct error *err)
{
	char all[128] = "";

	for (const struct word *w = words; w->name; w++) {
		if (strcmp(value, w->name) == 0) {
			*ret_value = w->value;
			return 0;
		}
		snprintf(all + strlen(all), sizeof(all) - strlen(all), "%s%s",
			w == words  ? ""
			: w[1].name ? ", "
				    : " or ",
			w->name);
	}
	return error_set(err, EINVAL, "%s=%s: give %s", key, value, all);
}

static int set_serial(struct vmm_disk *disk, const char *value, struct error *err)
{
	if (strlen(value) > VIRTIO_BLK_SERIAL_BYTES)
		return error_set(err, EINVAL, "serial=%s: at most %d characters", value,
			VIRTIO_BLK_SERIAL_BYTES);
	free(disk->serial);
	disk->serial = strdup(value);
	return disk->serial ? 0 : error_set(err, ENOMEM, "no memory");
}

static int set_queues(struct vmm_disk *disk, const char *value, struct error *err)
{
	uint64_t queues;

	if (number_parse(value, 1, VIRTIO_BLK_QUEUES_MAX, &queues) < 0)
		return error_set(
			err, EINVAL, "queues=%s: give 1 to %d", value, VIRTIO_BLK_QUEUES_MAX);
	disk->queues = (unsigned)queues;
	return 0;
}

static int set_timeout(struct vmm_disk *disk, const char *value, struct error *err)
{
	uint64_t seconds;

	if (number_parse(value, 0, TIMEOUT_MAX_S, &seconds) < 0)
		return error_set(err, EINVAL, "timeout=%s: give 0 (none) to %d seconds", value, TIMEOUT_MAX_S);
	if (!nbd_file_is_uri(disk->path))
		return error_set(err, EINVAL, "timeout is for disks at an NBD server");
	disk->options.nbd_timeout_ns = seconds ? seconds * NS_PER_SEC : NBD_NO_TIMEOUT;
	return 0;
}

static int set_key(struct vmm_disk *disk, const char *key, const char *value, struct error *err)
{
	int status, word = 0;

	if (strcmp(key, "serial") == 0)
		return set_serial(disk, value, err);
	if (strcmp(key, "queues") == 0)
		return set_queues(disk, value, err);
	if (strcmp(key, "timeout") == 0)
		return set_timeout(disk, value, err);
	if (strcmp(key, "format") == 0) {
		status = pick(formats, key, value, &word, err);
		disk->options.format = formats[word].name;
	} else if (strcmp(key, "cache") == 0) {
		status = pick(caches, key, value, &word, err);
		disk->options.cache = (enum disk_cache)word;
	} else if (strcmp(key, "aio") == 0) {
		status = pick(aios, key, value, &word, err);
		disk->options.aio = (enum disk_aio)word;
	} else if (strcmp(key, "on-error") == 0) {
		status = pick(errors, key, value, &word, err);
		disk->errors = (enum virtio_blk_errors)word;
	} else if (strcmp(key, "backing") == 0) {
		status = pick(backings, key, value, &word, err);
		disk->options.backing = (enum disk_backing_rule)word;
	} else if (strcmp(key, "discard") == 0) {
		status = pick(discards, key, value, &word, err);
		disk->options.ignore_discard = word;
	} else if (strcmp(key, "as") == 0) {
		status = pick(kinds, key, value, &word, err);
		disk->kind = (enum machine_disk_kind)word;
		disk->options.readonly |= word == MACHINE_DISK_CDROM;
	} else if (strcmp(key, "readonly") == 0) {
		status = pick(switches, key, value, &word, err);
		disk->options.readonly = word;
	} else {
		status = error_set(err, EINVAL,
			"no key '%s': there are format, readonly, cache, aio, discard, serial, "
			"on-error, timeout, queues, backing and as",
			key);
	}
	return status;
}

/* Up to the next comma, two of which stand for one. *at moves behind it. NULL: no memory. */
static char *next_part(const char **at)
{
	char *part = malloc(strlen(*at) + 1);
	size_t n = 0;

	if (!part)
		return NULL;
	for (; **at; (*at)++) {
		if (**at == ',' && *++*at != ',')
			break;
		part[n++] = **at;
	}
	part[n] = 0;
	return part;
}

static int parse_keys(struct vmm_disk *disk, const char *at, struct error *err)
{
	while (*at) {
		char *part = next_part(&at);
		if (!part)
			return error_set(err, ENOMEM, "no memory");
		char *value = strchr(part, '=');
		if (value)
			*value++ = 0;
		/* `readonly` alone is enough. */
		int status = value || strcmp(part, "readonly") == 0
				     ? set_key(disk, part, value ? value : "on", err)
				     : error_set(err, EINVAL, "'%s' wants a value", part);
		free(part);
		if (status < 0)
			return status;
	}
	return 0;
}

static void free_disk(struct vmm_disk *disk)
{
	free(disk->path);
	free(disk->serial);
	*disk = (struct vmm_disk){0};
}

static int parse(struct vmm_disk *disk, const char *text, struct error *err)
{
	disk->path = next_part(&text);
	if (!disk->path)
		return error_set(err, ENOMEM, "no memory");
	if (!*disk->path)
		return error_set(err, EINVAL, "it wants the name of an image");
	return parse_keys(disk, text, err);
}

int vmm_disk_list_add(struct vmm_disk_list *list, const char *value, struct error *err)
{
	struct vmm_disk disk = {0};

	if (list->count == VMM_DISKS_MAX)
		return error_set(err, EINVAL, "more than %d --disk", VMM_DISKS_MAX);
	if (parse(&disk, value, err) < 0) {
		free_disk(&disk);
		return error_prefix(err, "--disk");
	}
	list->disks[list->count++] = disk;
	return 0;
}

void vmm_disk_list_done(struct vmm_disk_list *list)
{
	while (list->count)
		free_disk(&list->disks[--list->count]);
}
