/*
 * See disks.h.
 */
#include "vmm/disks.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct open_disk {
	struct vmm_disks *all;
	struct disk *disk; /* NULL: it is its block device's */
	const char *path;
	bool stalled; /* the loop's thread */
};

struct vmm_disks {
	struct vmm_disks_config config;
	struct open_disk *open;
	struct machine_disk *list;
	unsigned count;	  /* that are open */
	unsigned stalled; /* the loop's thread */
	int status;	  /* of opening them */
	struct error *err;
};

/* ---- full hosts ---- */

static void disk_stalled(void *opaque, int status)
{
	struct open_disk *disk = opaque;
	struct vmm_disks *all = disk->all;

	if (disk->stalled == (status < 0))
		return;
	disk->stalled = status < 0;
	if (disk->stalled) {
		log_warn("disk", "%s: %s: the machine waits until that is over", disk->path,
			status == -ENOSPC ? "no room left on the host" : strerror(-status));
		if (all->stalled++ == 0)
			all->config.hold(all->config.opaque, true);
	} else {
		log_warn("disk", "%s: the machine goes on", disk->path);
		if (--all->stalled == 0)
			all->config.hold(all->config.opaque, false);
	}
}

/* ---- life ---- */

/* Not on the loop, which serves other disks, and clients: a server may be slow. */
static int open_images(struct vmm_disks *all, struct error *err)
{
	int status = 0;

	for (unsigned i = 0; i < all->config.count && status == 0; i++)
		status = disk_block_image(all->config.disks[i].path, &all->config.disks[i].options, &all->open[i].disk, err);
	return status;
}

/* On the loop's thread, as the next two. */
static int create_one(struct vmm_disks *all, const struct vmm_disk *wanted)
{
	struct open_disk *disk = &all->open[all->count];
	struct block *block;
	int status = disk_block_create(all->config.io, take_ptr(&disk->disk), &wanted->options, &block, all->err);

	if (status < 0)
		return status;
	*disk = (struct open_disk){.all = all, .path = wanted->path};
	all->list[all->count++] = (struct machine_disk){
		.kind = wanted->kind,
		.block = block,
		.serial = wanted->serial,
		.queues = wanted->queues ? wanted->queues
					 : MIN(all->config.cpus, (unsigned)VIRTIO_BLK_QUEUES_MAX),
		.errors = wanted->errors,
		.stalled = disk_stalled,
		.opaque = disk,
	};
	return 0;
}

static void create_all(void *opaque)
{
	struct vmm_disks *all = opaque;

	for (unsigned i = 0; i < all->config.count && all->status == 0; i++)
		all->status = create_one(all, &all->config.disks[i]);
}

static void close_all(void *opaque)
{
	struct vmm_disks *all = opaque;

	for (unsigned i = 0; i < all->count; i++)
		block_close(all->list[i].block);
	/* Nothing waits any more. */
	if (all->stalled)
		all->config.hold(all->config.opaque, false);
}

int vmm_disks_open(
	const struct vmm_disks_config *config, struct vmm_disks **ret_disks, struct error *err)
{
	struct vmm_disks *all = calloc(1, sizeof(*all));

	if (!all)
		return error_set(err, ENOMEM, "no memory for disks");
	all->config = *config;
	all->err = err;
	all->open = calloc(config->count + 1, sizeof(*all->open));
	all->list = calloc(config->count + 1, sizeof(*all->list));
	all->status = all->open && all->list ? 0 : error_set(err, ENOMEM, "no memory for disks");
	if (all->status == 0)
		all->status = open_images(all, err);
	loop_invoke(config->io, create_all, all);
	if (all->status < 0) {
		int status = all->status;

		vmm_disks_close(all);
		return status;
	}
	*ret_disks = all;
	return 0;
}

void vmm_disks_close(struct vmm_disks *all)
{
	if (!all)
		return;
	loop_invoke(all->config.io, close_all, all);
	for (unsigned i = 0; all->open && i < all->config.count; i++)
		if (all->open[i].disk)
			(void)disk_close(all->open[i].disk);
	free(all->open);
	free(all->list);
	free(all);
}

const struct machine_disk *vmm_disks_list(const struct vmm_disks *all)
{
	return all->list;
}
