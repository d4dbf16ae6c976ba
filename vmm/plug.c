/*
 * See plug.h.
 *
 * Lock order: `calls` (attach and detach, one at a time; held while a guest is waited for) -> `lock`, which is a leaf and
 * guards the list. The list is changed with both.
 */
#include "vmm/plug.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "vmm/current.h"
#include "vmm/disk_list.h"
#include "vmm/net_list.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

struct attached {
	struct attached *next;
	char name[VMM_PLUG_NAME_BYTES];
	char *text;
	/* One of them. */
	struct vmm_disks *disks;
	struct vmm_nets *nets;
	/* What they point to. */
	struct vmm_disk_list disk_list;
	struct vmm_net_list net_list;
};

struct vmm_plug {
	struct vmm_plug_config config;
	pthread_mutex_t calls, lock;
	struct attached *first;
};

/* ---- one of them ---- */

static void attached_free(struct attached *a)
{
	if (!a)
		return;
	vmm_disks_close(a->disks);
	vmm_nets_close(a->nets);
	vmm_disk_list_done(&a->disk_list);
	free(a->text);
	free(a);
}

DEFINE_AUTO(attached, struct attached *, attached_free)

static int open_disk(struct vmm_plug *plug, struct attached *a, const char *text, struct error *err)
{
	const struct vmm_disks_config config = {
		.io = plug->config.io,
		.disks = a->disk_list.disks,
		.count = 1,
		.cpus = plug->config.cpus,
		.hold = plug->config.hold,
		.opaque = plug->config.opaque,
	};
	int status = vmm_disk_list_add(&a->disk_list, text, err);

	if (status < 0)
		return status;
	if (a->disk_list.disks[0].kind != MACHINE_DISK_VIRTIO)
		return error_set(err, EINVAL,
			"only virtio disks can come while the guest runs: leave out as=");
	return vmm_disks_open(&config, &a->disks, err);
}

/* Not the one that cards on its network have from the start; the same in all lives of the guest. */
static void choose_mac(struct vmm_net *net)
{
	static const uint8_t local[3] = {0x52, 0x54, 0x00};

	if (net->mac_given || getrandom(net->mac + 3, 3, 0) != 3)
		return;
	memcpy(net->mac, local, sizeof(local));
	net->mac_given = true;
}

static int open_net(struct vmm_plug *plug, struct attached *a, const char *text, struct error *err)
{
	int status = vmm_net_list_add(&a->net_list, text, err);

	if (status < 0)
		return status;
	if (!a->net_list.count || a->net_list.net[0].e1000)
		return error_set(err, EINVAL,
			"only virtio network cards can come while the guest runs%s",
			a->net_list.count ? ": leave out card=" : ", and on a network");
	choose_mac(&a->net_list.net[0]);
	return vmm_nets_open(a->net_list.net, 1, plug->config.cpus, plug->config.io, &a->nets, err);
}

static int plug_in(struct machine *machine, const struct attached *a, struct error *err)
{
	struct machine_config with = {0};

	if (a->disks) {
		with.disks = vmm_disks_list(a->disks);
		with.disk_count = 1;
	} else {
		with.nics = vmm_nets_nics(a->nets, &with.nic_count);
	}
	return machine_device_plug(machine, a->name, &with, err);
}

/* ---- their list ---- */

static struct attached **find(struct vmm_plug *plug, const char *name)
{
	struct attached **at = &plug->first;

	while (*at && strcmp((*at)->name, name))
		at = &(*at)->next;
	return at;
}

static void insert(struct vmm_plug *plug, struct attached *a)
{
	AUTO_LOCK(&plug->lock);
	*find(plug, a->name) = a;
}

static struct attached *take_out(struct vmm_plug *plug, const char *name)
{
	AUTO_LOCK(&plug->lock);
	struct attached **at = find(plug, name), *a = *at;
	*at = a->next;
	return a;
}

static bool is_name(const char *name)
{
	const size_t length =
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");

	return length && length < VMM_PLUG_NAME_BYTES && !name[length];
}

static int choose_name(
	struct vmm_plug *plug, struct attached *a, const char *name, bool is_net, struct error *err)
{
	if (name && !is_name(name))
		return error_set(err, EINVAL,
			"'%s' is no name of a device: up to %d letters, digits, '.', '_' and '-'",
			name, VMM_PLUG_NAME_BYTES - 1);
	if (name && *find(plug, name))
		return error_set(err, EEXIST, "a device '%s' is attached already", name);
	if (name)
		strcpy(a->name, name);
	for (unsigned i = 1; !name && (i == 1 || *find(plug, a->name)); i++)
		snprintf(a->name, sizeof(a->name), "%s%u", is_net ? "net" : "disk", i);
	return 0;
}

/* ---- calls ---- */

/* Puts what is open into the machine and into the list. */
static int add(struct vmm_plug *plug, struct machine *machine, struct attached *a, const char *name,
	char ret_name[static VMM_PLUG_NAME_BYTES], struct error *err)
{
	AUTO_LOCK(&plug->calls);
	int status = choose_name(plug, a, name, a->nets, err);

	if (status == 0)
		status = plug_in(machine, a, err);
	if (status < 0)
		return status;
	strcpy(ret_name, a->name);
	insert(plug, a);
	return 0;
}

int vmm_plug_attach(struct vmm_plug *plug, struct vmm_current *current, const char *disk,
	const char *net, const char *name, char ret_name[static VMM_PLUG_NAME_BYTES],
	struct error *err)
{
	CLEANUP(cleanup_attached) struct attached *a = calloc(1, sizeof(*a));

	if (!a || !(a->text = strdup(disk ? disk : net)))
		return error_set(err, ENOMEM, "no memory for a device");
	int status = disk ? open_disk(plug, a, disk, err) : open_net(plug, a, net, err);
	if (status < 0)
		return status;
	struct machine *machine = vmm_current_wait(current);
	if (!machine)
		return error_set(err, ECANCELED, "the machine has ended");
	status = add(plug, machine, a, name, ret_name, err);
	if (status == 0)
		a = NULL;
	vmm_current_give_back(current);
	return status;
}

int vmm_plug_detach(struct vmm_plug *plug, struct machine *machine, const char *name,
	unsigned timeout_ms, struct error *err)
{
	AUTO_LOCK(&plug->calls);
	if (!*find(plug, name))
		return error_set(err, ENOENT, "no device '%s' is attached", name);
	int status = machine_device_unplug(machine, name, timeout_ms, err);
	/* A machine that did not take it again has none. */
	if (status == 0 || status == -ENOENT)
		attached_free(take_out(plug, name));
	return status == -ENOENT ? 0 : status;
}

void vmm_plug_again(struct vmm_plug *plug, struct machine *machine)
{
	AUTO_LOCK(&plug->calls);
	for (const struct attached *a = plug->first; a; a = a->next) {
		struct error err;

		if (plug_in(machine, a, &err) < 0)
			log_warn("plug", "%s is not attached any more: %s", a->name, err.text);
	}
}

void vmm_plug_each(struct vmm_plug *plug,
	void (*fn)(void *opaque, const char *name, bool is_net, const char *text), void *opaque)
{
	AUTO_LOCK(&plug->lock);
	for (const struct attached *a = plug->first; a; a = a->next)
		fn(opaque, a->name, a->nets, a->text);
}

/* ---- life ---- */

struct vmm_plug *vmm_plug_create(const struct vmm_plug_config *config)
{
	struct vmm_plug *plug = calloc(1, sizeof(*plug));

	if (!plug)
		return NULL;
	plug->config = *config;
	pthread_mutex_init(&plug->calls, NULL);
	pthread_mutex_init(&plug->lock, NULL);
	return plug;
}

void vmm_plug_free(struct vmm_plug *plug)
{
	if (!plug)
		return;
	while (plug->first)
		attached_free(take_out(plug, plug->first->name));
	pthread_mutex_destroy(&plug->calls);
	pthread_mutex_destroy(&plug->lock);
	free(plug);
}
