/*
 * lodge run: boot a kernel in a new machine, its console on this terminal.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "base/number.h"
#include "base/util.h"
#include "boot/firmware.h"
#include "cli/cli.h"
#include "cli/opt_links.h"
#include "cli/opt_machine.h"
#include "engine/jit/options.h"
#include "host/running.h"
#include "vmm/disk_list.h"
#include "vmm/net_list.h"
#include "vmm/run.h"
#include "vmm/share.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_MEMORY	MIB(512)
#define DISK_MEMORY	GIB(1) /* of a machine that boots from a disk */
#define DEFAULT_PORTS	4  /* of a machine with a control socket, for what is attached */
#define PORTS_DEVICES	16 /* and no more devices than these, which share the slots with them */
#define DEFAULT_CMDLINE "console=ttyS0"

struct run_options {
	const char *engine;
	uint64_t cpus, memory_bytes;
	struct boot_file kernel, firmware, initrd[BOOT_INITRDS_MAX];
	const char *firmware_name, *uefi_vars, *firmware_log, *vnc, *screenshot, *control;
	char *module_path[BOOT_INITRDS_MAX]; /* owned; of those that came by --module */
	unsigned initrd_count;
	const char *cmdline;
	enum boot_protocol protocol;
	struct x86_cpu_choice cpu;
	const char *jit;
	struct vmm_disk_list disk;
	struct vmm_net_list net;
	struct opt_machine machine;
	const char *append;
	struct opt_links links;
	bool keep_packed, exit_on_reboot, stats, json, help, cpu_help, no_rng;
	struct virtio_options virtio;
	uint64_t hotplug_ports;
	bool ports_given;
	struct vmm_shares shares;
	struct running_socket socket; /* of a machine with a name */
};

static const char usage_text[] =
	"usage: lodge run IMAGE|FILE [OPTION...]\n"
	"       lodge run --kernel FILE [OPTION...]\n"
	"\n"
	"IMAGE is one of `lodge image list`, such as debian, of which the machine gets a copy-on-write clone;\n"
	"FILE, with a slash in it, is a disk image. Its kernel is read from inside it.\n"
	"\n"
	"  --name NAME         keep the clone as the machine NAME (without: it goes when the machine ends)\n"
	"  --cloud-init FILE   user-data for cloud-init in the guest\n"
	"  --meta-data FILE    for cloud-init (default: with the machine's name)\n"
	"  --network-config FILE\n"
	"                      for cloud-init (default: DHCP)\n"
	"  --kernel FILE       bzImage, ELF (PVH or plain) or multiboot kernel\n"
	"  --firmware NAME     start firmware in place of a kernel: bios (SeaBIOS), uefi (OVMF) or a file\n"
	"  --uefi-vars FILE    where UEFI firmware keeps its variables; made if it is not there (default: with the\n"
	"                      machine NAME, or until the machine ends)\n"
	"  --firmware-log FILE what the firmware writes to its debug port\n"
	"  --vnc WHERE         a graphics card, keyboard and mouse, shown at unix:PATH, 127.0.0.1:PORT or :DISPLAY\n"
	"  --screenshot FILE   a graphics card, and its last picture as a PNG file at the machine's end\n"
	"  --initrd FILE       initial RAM disk; may be given several times\n"
	"  --module 'FILE [WORDS]'\n"
	"                      a multiboot or PVH kernel's module and its command line; several times\n"
	"  --cmdline TEXT      kernel command line (default: " DEFAULT_CMDLINE ", or the disk's own)\n"
	"  --append TEXT       more of it, behind the default or --cmdline\n"
	"  --memory SIZE       guest memory, such as 512M (default; 1G with a disk) or 2G; a number\n"
	"                      alone is in MiB\n"
	"  --cpus N            vCPUs, 1 (default) to 64\n"
	"  --cpu MODEL[,+FLAG,-FLAG...]\n"
	"                      max (default), host, x86-64-v1, x86-64-v2 or x86-64-v3; `--cpu help` says what\n"
	"                      each gives on this host\n"
	"  --engine NAME       auto (default), kvm, jit or interp; `lodge doctor` says what auto takes\n"
	"  --boot PROTOCOL     auto (default), linux, pvh, elf or multiboot\n"
	"  --keep-packed       let a bzImage unpack itself (slower; with kernel address randomisation)\n"
	"  --on-reboot WHAT    restart (default) or exit, with status 100\n"
	"  --jit SWITCH,...    of the translator: cache=SIZE of each vCPU (128M), perf; docs/jit.md has more\n"
	"  --share DIR[:TARGET][,OPTION...]\n"
	"                      show the guest a directory: TARGET is where it mounts it (default: /mnt) or a tag;\n"
	"                      options ro, uid=N, gid=N, ids=host, cache=none|auto|always, tag=NAME (docs/share.md)\n"
	"  --virtio SWITCH,... of virtio devices: mmio (no PCI); split, noevent, noindirect (of their queues)\n"
	"  --disk FILE[,format=raw|qcow2,readonly,cache=MODE,as=sata|cdrom,serial=TEXT...]\n"
	"                      a disk: an image, or an export at an nbd:// URI. Several times; docs/disks.md\n"
	"  --net NETWORK[,mac=MAC,mtu=N,queues=N,card=e1000]\n"
	"                      a network card on: user (default: NAT, nothing to set up), passt, tap=NAME,\n"
	"                      bridge=NAME, switch=NAME (your own machines only); none. Several times.\n"
	"                      user also takes isolated, no-host, no-ipv6 (docs/networks.md)\n"
	"  --forward [udp:][ADDRESS:]PORT:GUESTPORT\n"
	"                      a port of this host (127.0.0.1 unless told otherwise) is one of the guest's\n"
	"  --hotplug-ports N   PCI Express ports for devices that come while the guest runs (default: 0; 4 with\n"
	"                      a name or --control)\n"
	"  --control PATH      a socket at which `lodge machine` and others tell the machine things; one with a name\n"
	"                      has it by itself (docs/control.md)\n"
	"  --rng on|off        a virtio entropy device (default: on)\n"
	"  --console WHAT      what is typed goes to: serial (default), the serial port; virtio, a virtio console\n"
	"                      (hvc0). What either prints is printed\n"
	"  --port name=NAME,path=SOCKET\n"
	"                      a port /dev/virtio-ports/NAME in the guest for who connects to the Unix socket\n"
	"  --vsock PATH[,cid=N]\n"
	"                      AF_VSOCK for the guest, with Unix sockets here: docs/devices.md; cid 3 unless given\n"
	"  --pmem FILE[,ro|,cow]\n"
	"                      the file as persistent memory (/dev/pmem0): shared, read-only or copy on write\n"
	"  --balloon WHAT      on (default; the guest's free memory goes back to the host), off, or a size, such\n"
	"                      as 256M, that the guest is to give away\n"
	"  --watchdog ACTION   a watchdog (i6300esb) that does reset, poweroff, pause or none when the guest no\n"
	"                      longer answers; off (default)\n"
	"  --json              `--cpu help` for programs\n"
	"  --stats             print each vCPU's counters at the end\n"
	"\n"
	"On a terminal, Ctrl-A x ends the machine. Exit status: 0 when the guest powers off; the status it\n"
	"writes to I/O port 0xf4; 1 not started or failed; 2 bad usage; 100 reboot; 101 guest panic;\n"
	"102 guest crash; 103 Ctrl-A x or `lodge machine stop`; 128 + N ended by signal N.\n";

/* ---- options with a value: 0, or an error with a line for people ---- */

static int set_firmware(struct run_options *o, const char *value, struct error *err)
{
	if (!*value)
		return error_set(err, EINVAL, "--firmware wants bios, uefi or the name of a file");
	o->firmware_name = value;
	o->firmware.path = firmware_path(value);
	return 0;
}

static int set_initrd(struct run_options *o, const char *value, struct error *err)
{
	if (o->initrd_count == BOOT_INITRDS_MAX)
		return error_set(err, EINVAL, "more than %d --initrd and --module", BOOT_INITRDS_MAX);
	if (!*value)
		return error_set(err, EINVAL, "--initrd wants the name of a file");
	o->initrd[o->initrd_count++].path = value;
	return 0;
}

/* FILE up to the first space, then its command line, as in a boot loader's menu. */
static int set_module(struct run_options *o, const char *value, struct error *err)
{
	size_t length = strcspn(value, " ");

	if (o->initrd_count == BOOT_INITRDS_MAX)
		return error_set(err, EINVAL, "more than %d --initrd and --module", BOOT_INITRDS_MAX);
	if (!length)
		return error_set(err, EINVAL, "--module wants the name of a file, then the words it is given");
	char *path = strndup(value, length);
	if (!path)
		return error_set(err, ENOMEM, "no memory");
	o->module_path[o->initrd_count] = path;
	o->initrd[o->initrd_count++] = (struct boot_file){
		.path = path, .args = value + length + strspn(value + length, " ")};
	return 0;
}

static int set_memory(struct run_options *o, const char *value, struct error *err)
{
	int status = size_parse(value, &o->memory_bytes);

	if (status < 0 || o->memory_bytes < MACHINE_MEMORY_MIN || o->memory_bytes > MACHINE_MEMORY_MAX)
		return error_set(err, EINVAL, "--memory '%s' is no size of guest memory: give %dM to %dG, such as 512M",
			value, (int)(MACHINE_MEMORY_MIN >> 20), (int)(MACHINE_MEMORY_MAX >> 30));
	return 0;
}

static int set_cpus(struct run_options *o, const char *value, struct error *err)
{
	if (number_parse(value, 1, MACHINE_CPUS_MAX, &o->cpus) < 0)
		return error_set(err, EINVAL, "--cpus '%s' is no number of vCPUs: give 1 to %d", value,
			MACHINE_CPUS_MAX);
	return 0;
}

static int set_cpu(struct run_options *o, const char *value, struct error *err)
{
	o->cpu_help = strcmp(value, "help") == 0;
	return o->cpu_help ? 0 : x86_cpu_choice_parse(&o->cpu, value, err);
}

static int set_engine(struct run_options *o, const char *value, struct error *err)
{
	o->engine = value;
	if (strcmp(value, "auto") && !engine_find(value))
		return error_set(err, EINVAL, "no engine '%s': there are auto, kvm, jit and interp", value);
	return 0;
}

static int set_jit(struct run_options *o, const char *value, struct error *err)
{
	struct jit_options options;

	o->jit = value;
	return jit_options_parse(&options, value, err);
}

static int set_boot(struct run_options *o, const char *value, struct error *err)
{
	if (boot_protocol_parse(value, &o->protocol) < 0)
		return error_set(err, EINVAL, "no boot protocol '%s': there are auto, linux, pvh, elf and multiboot",
			value);
	return 0;
}

static int set_on_reboot(struct run_options *o, const char *value, struct error *err)
{
	o->exit_on_reboot = strcmp(value, "exit") == 0;
	if (!o->exit_on_reboot && strcmp(value, "restart"))
		return error_set(err, EINVAL, "--on-reboot '%s': give restart or exit", value);
	return 0;
}

static int set_virtio(struct run_options *o, const char *value, struct error *err)
{
	if (cli_parse_virtio(value, &o->virtio) < 0)
		return error_set(err, EINVAL, "--virtio '%s': give mmio, split, noevent or noindirect, with commas", value);
	return 0;
}

static int set_hotplug_ports(struct run_options *o, const char *value, struct error *err)
{
	o->ports_given = true;
	if (number_parse(value, 0, MACHINE_HOTPLUG_PORTS_MAX, &o->hotplug_ports) < 0)
		return error_set(err, EINVAL, "--hotplug-ports '%s': give a number up to %d", value,
			MACHINE_HOTPLUG_PORTS_MAX);
	return 0;
}

static int set_rng(struct run_options *o, const char *value, struct error *err)
{
	o->no_rng = strcmp(value, "off") == 0;
	if (!o->no_rng && strcmp(value, "on"))
		return error_set(err, EINVAL, "--rng '%s': give on or off", value);
	return 0;
}

/* What has a file of its own. */
#define OTHERS_OPTION(name, field, add)                                                   \
	static int set_##name(struct run_options *o, const char *value, struct error *err) \
	{                                                                                 \
		return add(&o->field, value, err);                                        \
	}
OTHERS_OPTION(disk, disk, vmm_disk_list_add)
OTHERS_OPTION(net, net, vmm_net_list_add)
OTHERS_OPTION(forward, net, vmm_net_list_forward)
OTHERS_OPTION(share, shares, cli_parse_share)
OTHERS_OPTION(console, links, opt_links_console)
OTHERS_OPTION(port, links, opt_links_port)
OTHERS_OPTION(vsock, links, opt_links_vsock)
OTHERS_OPTION(pmem, links, opt_links_pmem)
OTHERS_OPTION(balloon, links, opt_links_balloon)
OTHERS_OPTION(watchdog, links, opt_links_watchdog)

struct valued_option {
	const char *name;
	int (*set)(struct run_options *options, const char *value, struct error *err);
	size_t field;	   /* set is NULL: the text that takes the value */
	const char *wants; /* which then is no empty one; NULL: it may be */
};

#define CALL(name, set)               \
	{                             \
		name, set, 0, NULL    \
	}
#define TEXT(name, field, wants)                                        \
	{                                                               \
		name, NULL, offsetof(struct run_options, field), wants \
	}

static const struct valued_option valued_options[] = {
	TEXT("--kernel", kernel.path, "the name of a kernel file"),
	TEXT("--vnc", vnc, "a place: unix:PATH, 127.0.0.1:PORT or a display such as :1"),
	TEXT("--screenshot", screenshot, "the name of a file"),
	TEXT("--control", control, "the name of a socket"),
	TEXT("--uefi-vars", uefi_vars, "the name of a file"),
	TEXT("--firmware-log", firmware_log, "the name of a file"),
	TEXT("--cmdline", cmdline, NULL),
	TEXT("--append", append, NULL),
	TEXT("--name", machine.name, "a name"),
	TEXT("--cloud-init", machine.cloud_init, "the name of a file"),
	TEXT("--meta-data", machine.meta_data, "the name of a file"),
	TEXT("--network-config", machine.network_config, "the name of a file"),
	CALL("--firmware", set_firmware),
	CALL("--initrd", set_initrd),
	CALL("--module", set_module),
	CALL("--memory", set_memory),
	CALL("--cpus", set_cpus),
	CALL("--cpu", set_cpu),
	CALL("--engine", set_engine),
	CALL("--jit", set_jit),
	CALL("--boot", set_boot),
	CALL("--on-reboot", set_on_reboot),
	CALL("--disk", set_disk),
	CALL("--net", set_net),
	CALL("--forward", set_forward),
	CALL("--hotplug-ports", set_hotplug_ports),
	CALL("--rng", set_rng),
	CALL("--share", set_share),
	CALL("--console", set_console),
	CALL("--port", set_port),
	CALL("--vsock", set_vsock),
	CALL("--pmem", set_pmem),
	CALL("--balloon", set_balloon),
	CALL("--watchdog", set_watchdog),
	CALL("--virtio", set_virtio),
};

/* 0 or negative; what is wrong has been said. */
static int set_value(struct run_options *o, const struct valued_option *option, const char *value)
{
	struct error err;

	if (option->set)
		return option->set(o, value, &err) < 0 ? cli_complain(&err), -EINVAL : 0;
	if (option->wants && !*value)
		return cli_refuse("%s wants %s", option->name, option->wants);
	*(const char **)((char *)o + option->field) = value;
	return 0;
}

static bool set_flag(struct run_options *o, const char *name)
{
	if (strcmp(name, "--keep-packed") == 0)
		o->keep_packed = true;
	else if (strcmp(name, "--stats") == 0)
		o->stats = true;
	else if (strcmp(name, "--json") == 0)
		o->json = true;
	else if (cli_is_help(name))
		o->help = true;
	else
		return false;
	return true;
}

/* `--name value` or `--name=value`. Returns how many arguments it took, or negative. */
static int set_option(struct run_options *o, const char *arg, const char *next)
{
	for (size_t i = 0; i < ARRAY_SIZE(valued_options); i++) {
		size_t length = strlen(valued_options[i].name);
		if (strncmp(arg, valued_options[i].name, length))
			continue;
		if (arg[length] == '=')
			return set_value(o, &valued_options[i], arg + length + 1) < 0 ? -EINVAL : 1;
		if (arg[length])
			continue;
		if (!next)
			return cli_refuse("%s wants a value (lodge run --help)", arg);
		return set_value(o, &valued_options[i], next) < 0 ? -EINVAL : 2;
	}
	if (set_flag(o, arg))
		return 1;
	if (arg[0] == '-')
		return cli_refuse("no option '%s' (lodge run --help lists them)", arg);
	if (o->machine.what)
		return cli_refuse("'%s' and '%s': one image at a time (lodge run --help)", o->machine.what, arg);
	o->machine.what = arg;
	return *arg ? 1 : cli_refuse("an image has a name (lodge run --help)");
}

static int parse(struct run_options *o, int argc, char **argv)
{
	struct error err;

	for (int i = 1; i < argc;) {
		int took = set_option(o, argv[i], i + 1 < argc ? argv[i + 1] : NULL);
		if (took < 0)
			return took;
		i += took;
	}
	if (o->json && !o->cpu_help && !o->help)
		return cli_refuse("--json goes with --cpu help");
	if (o->help || o->cpu_help)
		return 0;
	if (!o->kernel.path && !o->firmware.path && !opt_machine_named(&o->machine) && !o->disk.count)
		return cli_refuse("nothing to boot: name an image (lodge run debian), or --kernel FILE, or --firmware bios "
			      "(lodge run --help)");
	if (opt_machine_check(&o->machine, &err) < 0)
		return cli_refuse("%s", err.text);
	if (o->control && o->machine.name)
		return cli_refuse("--control: a machine with a name has its socket by itself (lodge machine --help)");
	if (o->firmware.path && (o->kernel.path || o->initrd_count))
		return cli_refuse("firmware finds its kernel by itself: leave out --kernel, --initrd and --module");
	if (o->uefi_vars && (!o->firmware.path || strcmp(o->firmware_name, "bios") == 0))
		return cli_refuse("--uefi-vars goes with --firmware uefi, or a file of that kind");
	if (vmm_net_list_finish(&o->net, &err) < 0)
		return cli_refuse("%s", err.text);
	return 0;
}

static const struct engine_ops *choose_engine(const char *name, struct error *err)
{
	struct engine_probe probe;

	if (strcmp(name, "auto") == 0)
		return engine_choose(&probe);
	const struct engine_ops *engine = engine_find(name);
	engine->probe(&probe);
	if (probe.usable)
		return engine;
	error_set(err, ENODEV, "engine %s can't be used here: %s", name, probe.reason);
	return NULL;
}

/* A disk before those that --disk names. */
static int add_first_disk(struct run_options *o, const char *path, const char *format, enum disk_backing_rule backing)
{
	struct vmm_disk_list *d = &o->disk;

	if (d->count == VMM_DISKS_MAX)
		return cli_refuse("more than %d disks", VMM_DISKS_MAX);
	char *copy = strdup(path);
	if (!copy)
		return cli_refuse("no memory");
	memmove(d->disks + 1, d->disks, d->count++ * sizeof(*d->disks));
	d->disks[0] = (struct vmm_disk){ .path = copy, .options = { .format = format, .backing = backing } };
	return 0;
}

/* The image's or machine's disk, and cloud-init's seed behind all others. */
static int add_machine_disks(struct run_options *o)
{
	const struct opt_machine *m = &o->machine;
	int status = 0;

	if (m->disk && m->disk == m->clone.disk) /* no other file of the host can be named in it */
		status = add_first_disk(o, m->disk, "qcow2", DISK_BACKING_BESIDE);
	else if (m->disk)
		status = add_first_disk(o, m->disk, NULL, DISK_BACKING_ANY);
	if (status < 0 || !m->seed)
		return status;
	if (o->disk.count == VMM_DISKS_MAX)
		return cli_refuse("more than %d disks", VMM_DISKS_MAX);
	char *copy = strdup(m->seed);
	if (!copy)
		return cli_refuse("no memory");
	o->disk.disks[o->disk.count++] = (struct vmm_disk){ .path = copy, .options = { .format = "raw", .readonly = true } };
	return 0;
}

/* The image that lodge built mounts them by itself. */
static int append_shares(struct run_options *o)
{
	for (unsigned i = 0; i < o->shares.count; i++) {
		const struct vmm_share *share = &o->shares.share[i];
		AUTO_FREE char *word = NULL;

		if (!share->mount_point)
			continue;
		if (asprintf(&word, "lodge.share=%s:%s%s", share->tag, share->mount_point,
			    share->config.readonly ? ":ro" : "") < 0) {
			word = NULL;
			return -ENOMEM;
		}
		if (opt_machine_append(&o->machine, word) < 0)
			return -ENOMEM;
	}
	return 0;
}

/* What is behind the command line, whoever's it is. */
static int append_all(struct run_options *o, bool from_disk)
{
	if (from_disk && append_shares(o) < 0)
		return cli_refuse("no memory");
	if (o->append && opt_machine_append(&o->machine, o->append) < 0)
		return cli_refuse("no memory");
	return 0;
}

/* The guest's kernel talks before it has a driver for a virtio console. */
static const char *default_cmdline(const struct run_options *o)
{
	return o->links.spec.console ? DEFAULT_CMDLINE " console=hvc0" : DEFAULT_CMDLINE;
}

/* The command line of a kernel that was named. Caller frees. */
static int compose_cmdline(const struct run_options *o, char **ret_line)
{
	const char *more = o->machine.append;

	if (asprintf(ret_line, "%s%s%s", o->cmdline ? o->cmdline : default_cmdline(o), more ? " " : "", more ? more : "") >= 0)
		return 0;
	*ret_line = NULL;
	return cli_refuse("no memory");
}

/* What will be written can be: known before the machine runs, not at its end. NULL is allowed. */
static int open_output(const char *path, int flags, int *ret_fd)
{
	if (!path)
		return 0;
	*ret_fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666);
	return *ret_fd < 0 ? cli_refuse("can't write %s: %s", path, strerror(errno)) : 0;
}

static unsigned choose_ports(const struct run_options *o)
{
	const bool controlled = o->control || o->machine.name;
	const unsigned devices = o->disk.count + o->net.count + o->shares.count + o->links.spec.pmems;

	if (o->ports_given || !controlled || o->virtio.mmio || devices > PORTS_DEVICES)
		return (unsigned)o->hotplug_ports;
	return DEFAULT_PORTS;
}

/* A machine that is kept keeps its own. */
static void choose_variables(const struct run_options *o, struct vmm_config *config)
{
	config->variables = o->uefi_vars;
	config->variables_template = o->firmware_name ? firmware_variables(o->firmware_name) : NULL;
	if (config->variables_template && !o->uefi_vars)
		config->variables = o->machine.clone.variables;
}

static int run(struct run_options *o)
{
	struct error err = { 0 };
	AUTO_FREE char *cmdline = NULL;
	const bool named = o->kernel.path || o->firmware.path;
	struct vmm_config config = {
		.machine = {
			.name = o->machine.name ? o->machine.name : "machine",
			.engine = choose_engine(o->engine, &err),
			.cpus = (unsigned)o->cpus,
			.memory_bytes = o->memory_bytes,
			.cpu = o->cpu,
			.tuning = { .jit = o->jit },
			.vga = o->vnc || o->screenshot,
			.rng = !o->no_rng,
			.balloon = !o->links.no_balloon,
			.balloon_bytes = o->links.balloon_bytes,
			.watchdog = o->links.watchdog,
			.virtio_mmio = o->virtio.mmio,
			.hotplug_ports = choose_ports(o),
			.virtio_features_off = o->virtio.features_off,
			.boot = {
				.kernel = o->kernel,
				.initrd = o->initrd,
				.initrd_count = o->initrd_count,
				.protocol = o->protocol,
				.keep_packed = o->keep_packed,
				.firmware = o->firmware,
			},
		},
		.nets = o->net.net,
		.net_count = o->net.count,
		.shares = &o->shares,
		.vnc = o->vnc,
		.screenshot = o->screenshot,
		.control = o->control,
		.links = o->links.spec,
		.exit_on_reboot = o->exit_on_reboot,
		.stats = o->stats,
	};

	AUTO_CLOSE int log = -1, picture = -1;

	if (open_output(o->firmware_log, O_TRUNC, &log) < 0 || open_output(o->screenshot, 0, &picture) < 0)
		return VMM_EXIT_FAILURE;
	if (o->firmware_log)
		config.machine.firmware_log = log;
	if (!config.machine.engine)
		return cli_complain(&err);
	if (o->cpu_help)
		return cli_cpu_help(config.machine.engine, o->json);
	if (cli_cpu_check(config.machine.engine, &o->cpu) < 0)
		return VMM_EXIT_FAILURE;
	int status = opt_machine_open(&o->machine);
	if (status)
		return status;
	if (o->machine.name) {
		if (running_socket_in(o->machine.clone.folder, &o->socket, &err) < 0)
			return cli_complain(&err);
		config.control = o->socket.path;
	}
	if (add_machine_disks(o) < 0 || append_all(o, !named) < 0 || compose_cmdline(o, &cmdline) < 0)
		return VMM_EXIT_FAILURE;
	choose_variables(o, &config);
	config.disks = o->disk.disks;
	config.disk_count = o->disk.count;
	config.machine.boot.cmdline = cmdline;
	config.disk_boot = (struct vmm_disk_boot){ .on = !named, .cmdline = o->cmdline, .append = o->machine.append };
	if (!o->memory_bytes)
		config.machine.memory_bytes = o->disk.count ? DISK_MEMORY : DEFAULT_MEMORY;
	if (config.machine.balloon_bytes >= config.machine.memory_bytes)
		return cli_misuse("--balloon: of %u MiB of guest memory %" PRIu64 " MiB can't be given away",
			(unsigned)(config.machine.memory_bytes >> 20), config.machine.balloon_bytes >> 20);
	return vmm_run(&config);
}

int verb_run(int argc, char **argv)
{
	struct run_options options = { .engine = "auto", .cpus = 1, .socket.folder = -1 };

	int status = EXIT_USAGE;
	if (parse(&options, argc, argv) == 0)
		status = options.help ? (fputs(usage_text, stdout), 0) : run(&options);
	for (unsigned i = 0; i < options.initrd_count; i++)
		free(options.module_path[i]);
	opt_machine_close(&options.machine);
	running_socket_done(&options.socket);
	cli_shares_done(&options.shares);
	vmm_disk_list_done(&options.disk);
	opt_links_done(&options.links);
	return status;
}
