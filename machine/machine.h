/*
 * A virtual machine: guest memory, a board of devices, and one thread for each vCPU, run by any engine.
 *
 * Life: create (loads the kernel) -> start -> wait -> free. A machine that was reset by its guest has
 * ended; whoever wants it to go on makes a new one from the same configuration.
 *
 * Threads: create, start, wait and free by the owner; the others by anyone between create and free.
 */
#ifndef LODGE_MACHINE_MACHINE_H
#define LODGE_MACHINE_MACHINE_H

#include "base/types.h"
#include "base/util.h"
#include "boot/boot.h"
#include "device/virtio/blk.h"
#include "engine/engine.h"

#define MACHINE_CPUS_MAX     64
#define MACHINE_MEMORY_MIN   MIB(16) /* less holds no kernel */
#define MACHINE_MEMORY_MAX   GIB(1024)
#define MACHINE_HOTPLUG_PORTS_MAX 16

struct balloon_statistics;
struct display;
struct flash_store;
struct loop;
struct fs;
struct machine;
struct memory_file;
struct net;
struct stream;
struct vsock_host;

/*
 * Virtual time: the guest's clocks count the instructions that its processor has completed and not the host's
 * time, and whatever else could differ from run to run is fixed. Two runs of one configuration without input
 * are the same, instruction by instruction. One vCPU only; not with an engine that cannot count. All zero: off.
 */
struct machine_virtual_time {
	bool on;
	uint32_t ns_per_kiloinstruction; /* guest time of 1000 instructions; 0: 1000 */
	uint64_t start_realtime_ns;	 /* wall clock at the start, since 1970 UTC */
};

/* A network card; the network stays the caller's. */
struct machine_nic {
	struct net *net;
	uint8_t mac[6];
	unsigned queue_pairs; /* of a virtio card */
	bool e1000;	      /* Intel's card in place of virtio's */
};

/* A directory of the host's, or whatever file system the server has. */
struct machine_share {
	struct fs *fs; /* open until after machine_free(); for one machine at a time */
	const char *tag;
};

enum machine_disk_kind { MACHINE_DISK_VIRTIO, MACHINE_DISK_SATA, MACHINE_DISK_CDROM };

/* A disk of the guest's, on machine_config.io; virtio_blk_config's namesakes, of which the other kinds take block and
 * serial. */
struct machine_disk {
	enum machine_disk_kind kind;
	struct block *block;
	const char *serial;
	unsigned queues;
	enum virtio_blk_errors errors;
	void (*stalled)(void *opaque, int status);
	void *opaque;
};

/* A port of the virtio console. The stream stays the caller's; NULL: the port is not there. */
struct machine_port {
	struct stream *stream;
	const char *name; /* NULL: a console */
};

/* What is done when the guest no longer pats its watchdog. OFF: it has none. */
enum machine_watchdog {
	MACHINE_WATCHDOG_OFF,
	MACHINE_WATCHDOG_RESET,
	MACHINE_WATCHDOG_POWEROFF,
	MACHINE_WATCHDOG_PAUSE,
	MACHINE_WATCHDOG_NOTHING, /* but a line in the log */
};

struct machine_config {
	const char *name; /* for messages */
	const struct engine_ops *engine;
	unsigned cpus;
	uint64_t memory_bytes; /* a multiple of the page size */
	struct x86_cpu_choice cpu;
	struct boot_config boot; /* a kernel, or firmware */
	struct flash_store *flash; /* what firmware keeps, below its image; outlives the machine. NULL: none */
	int firmware_log;	 /* > 0: the descriptor to which firmware's debug output goes */
	struct machine_virtual_time virtual_time;
	struct engine_tuning tuning; /* for tests; random_seed is 1 if virtual time is on and it is 0 */
	/* The first serial port. output: on a vCPU's thread, must not call back. room: input that was
	 * not taken would be now; only wake somebody. */
	void (*console_output)(void *opaque, const uint8_t *bytes, size_t count);
	void (*console_room)(void *opaque);
	void *console_opaque;
	/* Devices, on a loop that a thread runs from before machine_create() until after machine_free(). NULL: none. */
	struct loop *io;
	bool virtio_mmio;	      /* the devices are in memory, and there is no PCI */
	uint64_t virtio_features_off; /* device/virtio/virtio.h: for tests */
	bool rng;		      /* an entropy device */
	const struct machine_disk *disks; /* in this order */
	unsigned disk_count;
	bool vga;		      /* a graphics card, keyboard and mouse: machine_display() */
	unsigned hotplug_ports;	      /* root ports for machine_device_plug(); not with virtio_mmio */
	const struct machine_nic *nics;
	unsigned nic_count;
	const struct machine_share *shares;
	unsigned share_count;
	/* Ports of virtio consoles. The first one is for the machine's own console: no stream if that is not virtio's. */
	const struct machine_port *ports;
	unsigned port_count;
	bool balloon;	     /* a balloon; free pages that the guest reports go back to the host */
	uint64_t balloon_bytes; /* what it is to take at the start */
	struct vsock_host *vsock; /* NULL: none */
	uint32_t vsock_cid;
	struct memory_file *const *pmems; /* persistent memory, above RAM; aligned to VIRTIO_PMEM_ALIGN */
	unsigned pmem_count;
	enum machine_watchdog watchdog;
};

enum machine_end {
	MACHINE_POWERED_OFF, /* by the guest */
	MACHINE_RESET,	     /* by the guest */
	MACHINE_EXITED,	     /* the guest wrote a status to the debug exit port */
	MACHINE_PANICKED,    /* the guest's kernel says so */
	MACHINE_CRASHED,     /* triple fault, or a state from which nothing can follow */
	MACHINE_FAILED,	     /* the monitor or the host cannot go on */
	MACHINE_STOPPED,     /* machine_stop() */
};

struct machine_result {
	enum machine_end end;
	uint8_t status;	 /* of MACHINE_EXITED */
	char text[512];	 /* one line for people */
};

/* Errors: negative errno with a line for people. `config` is copied; what it points to outlives the
 * machine. */
MUST_CHECK int machine_create(struct machine **ret_machine, const struct machine_config *config,
	struct error *err);
/* Stops it if need be. NULL is allowed. */
void machine_free(struct machine *machine);

/* Start the vCPUs. Errors: no threads to be had. */
MUST_CHECK int machine_start(struct machine *machine, struct error *err);
/* Wait until the machine has ended and all its vCPUs have stopped. */
void machine_wait(struct machine *machine, struct machine_result *ret_result);
/* End it from outside, at once. */
void machine_stop(struct machine *machine);

/* End it from outside, at once, as a reset by its guest does. */
void machine_reset(struct machine *machine);

/* Why a machine is paused; a bit each. */
enum machine_pause {
	MACHINE_PAUSE_ASKED = 1, /* machine_pause() */
	MACHINE_PAUSE_WATCHDOG = 2,
	MACHINE_PAUSE_PLUG = 4, /* for a moment: a device comes or goes */
	MACHINE_PAUSE_DISK = 8, /* a disk's requests have to wait for the host */
};

/* Hold all vCPUs and guest time; returns when none runs guest code, or when the reason is gone by then. Nested calls do
 * not count. The machine goes on when no reason is left; `reasons` may be several. */
void machine_pause_for(struct machine *machine, enum machine_pause reason);
void machine_resume_for(struct machine *machine, unsigned reasons);
/* For the user's own reason. */
void machine_pause(struct machine *machine);
void machine_resume(struct machine *machine);
/* The reasons that there are now. */
unsigned machine_paused(struct machine *machine);

/* Every signal of the eventfd, until it is turned off, is an edge on the interrupt line: for back ends that
 * other processes or threads serve. With KVM no thread of ours runs for it. The eventfd stays the caller's. */
MUST_CHECK int machine_irqfd(struct machine *machine, unsigned gsi, int eventfd, bool on);

/*
 * Plug a device into a free port, for the guest to find: the only one that `with` asks for, of which nothing but
 * its devices counts and which need not outlive the call (what it points to does). `name` is at most 15 characters long.
 * After a reset, which makes a new machine, it is there if that one's configuration has it.
 *
 * unplug asks the guest to let go of it, and waits; 0: it is gone, and its back end is free. May be called again after
 * -ETIMEDOUT: a guest may also throw a device out by itself.
 *
 * Threads: on any but the devices' loop and vCPUs; vCPUs are paused for a moment. Errors: with a line for people;
 * -ENODEV (no ports), -EBUSY (no free one), -EEXIST, -ENOENT, -ETIMEDOUT, -ECANCELED (the machine has ended), and what
 * making the device says.
 */
MUST_CHECK int machine_device_plug(struct machine *machine, const char *name,
	const struct machine_config *with, struct error *err);
MUST_CHECK int machine_device_unplug(
	struct machine *machine, const char *name, unsigned timeout_ms, struct error *err);

/* Press the power button: a guest that listens shuts down. */
void machine_press_power(struct machine *machine);

/* What a VNC server shows and uses, good until the machine is freed. false: config.vga was not set. */
bool machine_display(struct machine *machine, struct display *ret_display);
/* Ask the guest to give that much of its memory away, for as long as it can spare it. -ENODEV: no balloon. */
MUST_CHECK int machine_balloon_set(struct machine *machine, uint64_t bytes);
/* What is known of the guest's memory (device/virtio/balloon.h). poll_ns: have the guest tell again now and so often,
 * 0: no more. -ENODEV: no balloon. */
MUST_CHECK int machine_balloon_statistics(struct machine *machine, struct balloon_statistics *ret_statistics);
MUST_CHECK int machine_balloon_poll(struct machine *machine, uint64_t poll_ns);

/* Type into the first serial port; returns how many bytes it took. */
size_t machine_console_input(struct machine *machine, const uint8_t *bytes, size_t count);

/* One vCPU's counters; index < cpus. */
void machine_counters(struct machine *machine, unsigned index, struct engine_counters *ret_counters);

#endif
