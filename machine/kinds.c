/*
 * The kinds of virtio devices: what each takes from the configuration. See kinds.h.
 */
#include "machine/kinds.h"
#include "base/error.h"
#include "device/virtio/balloon.h"
#include "device/virtio/blk.h"
#include "device/virtio/console.h"
#include "device/virtio/fs.h"
#include "device/virtio/net.h"
#include "device/virtio/pmem.h"
#include "device/virtio/rng.h"
#include "device/virtio/vsock.h"
#include "memory/memory.h"
#include <errno.h>
#include <string.h>

/* ---- network card ---- */

/* The nth card that is virtio's; NULL: there are fewer. */
static const struct machine_nic *virtio_nic(const struct machine_config *config, unsigned n)
{
	for (unsigned i = 0; i < config->nic_count; i++)
		if (!config->nics[i].e1000 && !n--)
			return &config->nics[i];
	return NULL;
}

static unsigned net_count(const struct machine_config *config)
{
	unsigned count = 0;

	while (virtio_nic(config, count))
		count++;
	return count;
}

static int net_create(const struct machine_config *config, unsigned index,
	const struct virtio_config *wiring, void **ret_device, struct virtio_device **ret_virtio,
	struct error *err)
{
	const struct machine_nic *nic = virtio_nic(config, index);
	struct virtio_net_config card_config = {
		.wiring = wiring, .net = nic->net, .queue_pairs = nic->queue_pairs};
	struct virtio_net *card;

	memcpy(card_config.mac, nic->mac, sizeof(card_config.mac));
	int status = virtio_net_create(&card_config, &card);
	if (status < 0)
		return error_set_errno(err, -status, "can't make a network card");
	*ret_device = card;
	*ret_virtio = virtio_net_device(card);
	return 0;
}

static void net_free(void *device)
{
	virtio_net_free(device);
}

const struct device_kind net_kind = {"net", net_count, net_create, net_free, true};

/* ---- entropy ---- */

static unsigned rng_count(const struct machine_config *config)
{
	return config->rng;
}

static int rng_create(const struct machine_config *config, unsigned index,
	const struct virtio_config *wiring, void **ret_device, struct virtio_device **ret_virtio,
	struct error *err)
{
	struct virtio_rng *rng;
	int status = virtio_rng_create(wiring, &rng);

	if (status < 0)
		return error_set_errno(err, -status, "can't make the entropy device");
	*ret_device = rng;
	*ret_virtio = virtio_rng_virtio(rng);
	return 0;
}

static void rng_free(void *device)
{
	virtio_rng_free(device);
}

const struct device_kind rng_kind = {"rng", rng_count, rng_create, rng_free, true};

/* ---- shared directory ---- */

static unsigned fs_count(const struct machine_config *config)
{
	return config->share_count;
}

static int fs_create(const struct machine_config *config, unsigned index,
	const struct virtio_config *wiring, void **ret_device, struct virtio_device **ret_virtio,
	struct error *err)
{
	const struct machine_share *share = &config->shares[index];
	struct virtio_fs *fs;
	int status = virtio_fs_create(
		&(struct virtio_fs_config){ .wiring = wiring, .fs = share->fs, .tag = share->tag, .queues = 1 }, &fs);

	if (status < 0)
		return error_set_errno(err, -status, "can't share as '%s'", share->tag);
	*ret_device = fs;
	*ret_virtio = virtio_fs_device(fs);
	return 0;
}

static void fs_free(void *device)
{
	virtio_fs_free(device);
}

const struct device_kind fs_kind = {"fs", fs_count, fs_create, fs_free, true};

/* ---- disk ---- */

/* The nth disk that is virtio's; NULL: there are fewer. */
static const struct machine_disk *virtio_disk(const struct machine_config *config, unsigned n)
{
	for (unsigned i = 0; i < config->disk_count; i++)
		if (config->disks[i].kind == MACHINE_DISK_VIRTIO && !n--)
			return &config->disks[i];
	return NULL;
}

static unsigned disk_count(const struct machine_config *config)
{
	unsigned count = 0;

	while (virtio_disk(config, count))
		count++;
	return count;
}

static int disk_create(const struct machine_config *config, unsigned index,
	const struct virtio_config *wiring, void **ret_device, struct virtio_device **ret_virtio,
	struct error *err)
{
	const struct machine_disk *disk = virtio_disk(config, index);
	const struct virtio_blk_config blk_config = {
		.block = disk->block,
		.serial = disk->serial,
		.queues = disk->queues,
		.errors = disk->errors,
		.stalled = disk->stalled,
		.opaque = disk->opaque,
	};
	struct virtio_blk *blk;
	int status = virtio_blk_create(wiring, &blk_config, &blk);

	if (status < 0)
		return error_set_errno(err, -status, "can't make disk %u", index);
	*ret_device = blk;
	*ret_virtio = virtio_blk_virtio(blk);
	return 0;
}

static void disk_free(void *device)
{
	virtio_blk_free(device);
}

const struct device_kind disk_kind = {"disk", disk_count, disk_create, disk_free, true};

/* ---- console ---- */

/* The console is a device of its own, the simplest there is; the other ports have another, with an empty port 0. */
static bool has_console(const struct machine_config *config)
{
	return config->port_count && config->ports[0].stream;
}

static unsigned console_count(const struct machine_config *config)
{
	return has_console(config) + (config->port_count > 1);
}

static int console_create(const struct machine_config *config, unsigned index,
	const struct virtio_config *wiring, void **ret_device, struct virtio_device **ret_virtio,
	struct error *err)
{
	struct virtio_console_config console_config = {
		.wiring = *wiring, .ports = config->port_count};
	struct virtio_console *console;

	if (config->port_count > VIRTIO_CONSOLE_PORTS_MAX)
		return error_set(
			err, EINVAL, "a console has at most %d ports", VIRTIO_CONSOLE_PORTS_MAX);
	if (has_console(config) && index == 0) {
		console_config.ports = 1;
		console_config.port[0].stream = config->ports[0].stream;
	}
	for (unsigned i = 1; i < console_config.ports; i++) {
		console_config.port[i].stream = config->ports[i].stream;
		console_config.port[i].name = config->ports[i].name;
	}
	int status = virtio_console_create(&console_config, &console);
	if (status < 0)
		return error_set_errno(err, -status, "can't make the console");
	*ret_device = console;
	*ret_virtio = virtio_console_device(console);
	return 0;
}

static void console_free(void *device)
{
	virtio_console_free(device);
}

const struct device_kind console_kind = {"console", console_count, console_create, console_free, false};

/* ---- balloon ---- */

static unsigned balloon_count(const struct machine_config *config)
{
	return config->balloon;
}

static int balloon_create(const struct machine_config *config, unsigned index,
	const struct virtio_config *wiring, void **ret_device, struct virtio_device **ret_virtio,
	struct error *err)
{
	const struct virtio_balloon_config balloon_config = {
		.wiring = *wiring, .target_bytes = config->balloon_bytes};
	struct virtio_balloon *balloon;
	int status = virtio_balloon_create(&balloon_config, &balloon);

	if (status < 0)
		return error_set_errno(err, -status, "can't make the balloon");
	*ret_device = balloon;
	*ret_virtio = virtio_balloon_device(balloon);
	return 0;
}

static void balloon_free(void *device)
{
	virtio_balloon_free(device);
}

const struct device_kind balloon_kind = {"balloon", balloon_count, balloon_create, balloon_free, false};

/* ---- vsock ---- */

static unsigned vsock_count(const struct machine_config *config)
{
	return config->vsock != NULL;
}

static int vsock_create(const struct machine_config *config, unsigned index,
	const struct virtio_config *wiring, void **ret_device, struct virtio_device **ret_virtio,
	struct error *err)
{
	const struct virtio_vsock_config vsock_config = {
		.wiring = *wiring, .cid = config->vsock_cid, .host = config->vsock};
	struct virtio_vsock *vsock;
	int status = virtio_vsock_create(&vsock_config, &vsock);

	if (status < 0)
		return error_set_errno(err, -status, "can't make the vsock");
	*ret_device = vsock;
	*ret_virtio = virtio_vsock_device(vsock);
	return 0;
}

static void vsock_free(void *device)
{
	virtio_vsock_free(device);
}

const struct device_kind vsock_kind = {"vsock", vsock_count, vsock_create, vsock_free, false};

/* ---- pmem ---- */

/* Where the machine has put it. */
static gpa_t gpa_of(const struct guest_memory *memory, const struct memory_file *file)
{
	for (unsigned i = 0; i < memory->region_count; i++)
		if (memory->region[i].file == file)
			return memory->region[i].base;
	return 0;
}

static unsigned pmem_count(const struct machine_config *config)
{
	return config->pmem_count;
}

static int pmem_create(const struct machine_config *config, unsigned index,
	const struct virtio_config *wiring, void **ret_device, struct virtio_device **ret_virtio,
	struct error *err)
{
	const struct virtio_pmem_config pmem_config = {.wiring = *wiring,
		.gpa = gpa_of(wiring->memory, config->pmems[index]),
		.file = config->pmems[index]};
	struct virtio_pmem *pmem;
	int status = virtio_pmem_create(&pmem_config, &pmem);

	if (status < 0)
		return error_set_errno(err, -status, "can't make a pmem device");
	*ret_device = pmem;
	*ret_virtio = virtio_pmem_device(pmem);
	return 0;
}

static void pmem_free(void *device)
{
	virtio_pmem_free(device);
}

const struct device_kind pmem_kind = {"pmem", pmem_count, pmem_create, pmem_free, false};
