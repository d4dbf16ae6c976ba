/*
 * The machine object: see machine.h. Its board is in board.c, what engines ask of it in hooks.c, the
 * vCPU threads in vcpu.c.
 */
#include "machine/machine.h"
#include "base/cleanup.h"
#include "boot/layout.h"
#include "device/bus.h"
#include "device/virtio/balloon.h"
#include "memory/memory.h"
#include "machine/irqfd.h"
#include "boot/firmware.h"
#include "device/flash.h"
#include "machine/firmware.h"
#include "machine/private.h"
#include "machine/virtual.h"
#include "machine/watchdog.h"
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the end ---- */

static void kick_all(struct machine *m)
{
	for (unsigned i = 0; i < m->vcpu_count; i++) {
		/* In virtual time a run is short and its end must not depend on the host. */
		if (m->vcpu[i].engine && !m->config.virtual_time.on)
			m->config.engine->kick(m->vcpu[i].engine);
		vcpu_post(&m->vcpu[i], VCPU_WAKE);
	}
}

void machine_end(struct machine *m, enum machine_end end, uint8_t status, const char *fmt, ...)
{
	AUTO_LOCK(&m->lock);
	if (m->has_result)
		return;
	m->has_result = true;
	m->result.end = end;
	m->result.status = status;
	va_list args;
	va_start(args, fmt);
	vsnprintf(m->result.text, sizeof(m->result.text), fmt, args);
	va_end(args);
	m->stopping = true;
	kick_all(m);
	pthread_cond_broadcast(&m->changed);
}

void machine_stop(struct machine *m)
{
	machine_end(m, MACHINE_STOPPED, 0, "the machine was stopped");
}

void machine_reset(struct machine *m)
{
	machine_end(m, MACHINE_RESET, 0, "the machine was reset");
}

/* ---- pause ---- */

static bool all_parked(const struct machine *m)
{
	for (unsigned i = 0; i < m->vcpu_count; i++)
		if (m->vcpu[i].started && !m->vcpu[i].parked)
			return false;
	return true;
}

void machine_pause_for(struct machine *m, enum machine_pause reason)
{
	AUTO_LOCK(&m->lock);
	m->paused |= reason;
	kick_all(m);
	/* At the machine's end, too: whoever takes something from under the vCPUs may be asking. */
	while (!all_parked(m) && m->paused & reason)
		pthread_cond_wait(&m->changed, &m->lock);
	/* Somebody has resumed it meanwhile. */
	if (!(m->paused & reason))
		return;
	machine_clock_hold(m->clock);
	if (!m->held && m->config.engine->hold(m->vm) < 0)
		log_warn("machine", "%s: the guest's clocks run on while it is paused", m->config.name);
	m->held = true;
}

void machine_resume_for(struct machine *m, unsigned reasons)
{
	AUTO_LOCK(&m->lock);
	if (m->paused & ~reasons) {
		m->paused &= ~reasons;
		pthread_cond_broadcast(&m->changed);
		return;
	}
	if (m->held && m->config.engine->release(m->vm) < 0)
		log_warn("machine", "%s: the guest's clocks ran on while it was paused", m->config.name);
	m->held = false;
	machine_clock_run(m->clock);
	m->paused = 0;
	pthread_cond_broadcast(&m->changed);
}

void machine_pause(struct machine *m)
{
	machine_pause_for(m, MACHINE_PAUSE_ASKED);
}

void machine_resume(struct machine *m)
{
	machine_resume_for(m, MACHINE_PAUSE_ASKED);
}

unsigned machine_paused(struct machine *m)
{
	return m->paused;
}

/* ---- construction ---- */

static int check_config(const struct machine_config *config, struct error *err)
{
	if (config->cpus < 1 || config->cpus > MACHINE_CPUS_MAX)
		return error_set(err, EINVAL, "a machine has 1 to %d vCPUs, not %u",
			MACHINE_CPUS_MAX, config->cpus);
	if (config->memory_bytes < MACHINE_MEMORY_MIN || config->memory_bytes > MACHINE_MEMORY_MAX)
		return error_set(err, EINVAL,
			"a machine has %" PRIu64 " MiB to %" PRIu64 " GiB of memory, not %" PRIu64
			" bytes",
			(uint64_t)MACHINE_MEMORY_MIN >> 20, (uint64_t)MACHINE_MEMORY_MAX >> 30,
			config->memory_bytes);
	/* Guests choose their mitigations by these: on hardware they must be the truth. */
	if ((config->engine->caps & ENGINE_CAP_HARDWARE) && !x86_cpu_choice_is_native(&config->cpu))
		return error_set(err, ENOTSUP,
			"engine %s shows the host's own vendor, family, model and stepping: leave "
			"them out of the CPU model, or take a software engine",
			config->engine->name);
	if (config->virtio_mmio && config->boot.firmware.path)
		return error_set(err, EINVAL, "firmware needs a PCI bus, which a machine with virtio in memory lacks");
	if (config->hotplug_ports > MACHINE_HOTPLUG_PORTS_MAX || (config->hotplug_ports && config->virtio_mmio))
		return error_set(err, EINVAL,
			"a machine has at most %d ports to plug devices into, and none without PCI",
			MACHINE_HOTPLUG_PORTS_MAX);
	return config->virtual_time.on ? virtual_check(config, err) : 0;
}

static int add_clock(struct machine *m, struct error *err)
{
	const struct machine_virtual_time *virtual_time = &m->config.virtual_time;

	return virtual_time->on ? machine_clock_create_virtual(
					  &m->clock, virtual_time->start_realtime_ns, err) :
				  machine_clock_create(&m->clock, err);
}

static gpa_t end_of_memory(const struct machine *m)
{
	const struct memory_region *last = &m->memory->region[m->memory->region_count - 1];

	return MAX(last->base + last->size_bytes, (gpa_t)BOOT_HOLE_END_GPA);
}

/* Apart from RAM and from one another, for what kernels keep about memory they keep for large pieces. */
static int add_pmems(struct machine *m, struct error *err)
{
	int status = 0;

	for (unsigned i = 0; status == 0 && i < m->config.pmem_count; i++)
		status = memory_add_file(m->memory, ALIGN_UP(end_of_memory(m), GIB(1)),
			m->config.pmems[i], "pmem", err);
	return status;
}

static int add_memory(struct machine *m, struct error *err)
{
	uint64_t total = m->config.memory_bytes & GUEST_PAGE_MASK;
	const bool firmware = m->config.boot.firmware.path;
	uint64_t low = MIN(boot_ram_low_bytes(total), firmware ? (uint64_t)FIRMWARE_RAM_LOW : total);
	uint64_t high = total - low;
	int status = memory_create(&m->memory);

	if (status < 0)
		return error_set(err, ENOMEM, "no memory for the machine");
	/* Firmware looks for a graphics card where a kernel is told that there is none. */
	if (firmware) {
		status = memory_add_ram(m->memory, 0, BOOT_VGA_GPA, 0, "ram-base", err);
		if (status == 0)
			status = memory_add_ram(m->memory, BOOT_VGA_END_GPA, low - BOOT_VGA_END_GPA, 0, "ram", err);
	} else {
		status = memory_add_ram(m->memory, 0, low, 0, "ram", err);
	}
	if (status == 0 && high)
		status = memory_add_ram(m->memory, BOOT_HOLE_END_GPA, high, 0, "ram-high", err);
	return status < 0 ? status : add_pmems(m, err);
}

/* OVMF maps all that the processor can address, in pages of 2 MiB: with a host's 46 bits that takes seconds and 256 MiB of
 * tables. So it gets what desktop processors have, and room for memory and as much again for PCI in any case. */
static void limit_addresses(struct machine *m)
{
	unsigned bits = FIRMWARE_PHYS_BITS;

	while (BIT(bits - 1) < end_of_memory(m))
		bits++;
	x86_cpuid_limit_phys_bits(&m->cpuid, bits);
}

static int check_pmem(struct machine *m, struct error *err)
{
	if (m->config.pmem_count && end_of_memory(m) > BIT(m->cpuid.phys_bits))
		return error_set(err, ENOSPC,
			"the processor's %u bits of address have no room for all persistent memory",
			m->cpuid.phys_bits);
	return 0;
}

/* That this process may use, where the host has not more than the set holds. */
static unsigned count_host_cpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		return (unsigned)CPU_COUNT(&set);
	return (unsigned)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1l);
}

static int add_vcpus(struct machine *m, struct error *err)
{
	m->host_cpus = count_host_cpus();
	m->vcpu = calloc(m->config.cpus, sizeof(*m->vcpu));
	if (!m->vcpu)
		return error_set(err, ENOMEM, "no memory for %u vCPUs", m->config.cpus);
	for (unsigned i = 0; i < m->config.cpus; i++) {
		struct machine_vcpu *vcpu = &m->vcpu[i];
		struct engine_vcpu_config config = { .index = i, .apic_id = i, .opaque = vcpu };

		vcpu->machine = m;
		vcpu->index = i;
		pthread_mutex_init(&vcpu->lock, NULL);
		pthread_cond_init(&vcpu->wake, NULL);
		m->vcpu_count++;
		int status = m->config.engine->vcpu_create(&vcpu->engine, m->vm, &config, err);
		if (status < 0)
			return status;
	}
	return 0;
}

/* Firmware gives every processor the same memory types; kernels complain of others. */
static void copy_mtrrs(struct x86_msrs *to, const struct x86_msrs *from)
{
	to->mtrr_def_type = from->mtrr_def_type;
	memcpy(to->mtrr_fixed, from->mtrr_fixed, sizeof(to->mtrr_fixed));
	memcpy(to->mtrr_base, from->mtrr_base, sizeof(to->mtrr_base));
	memcpy(to->mtrr_mask, from->mtrr_mask, sizeof(to->mtrr_mask));
}

/* All processors in their first state: the boot processor as the kernel's protocol says, the others
 * waiting. */
static int set_first_states(struct machine *m, const struct x86_state *boot_state, struct error *err)
{
	for (unsigned i = 0; i < m->vcpu_count; i++) {
		struct x86_state state = *boot_state;

		if (i > 0) {
			x86_state_reset(&state);
			copy_mtrrs(&state.msr, &boot_state->msr);
			state.activity = X86_WAIT_FOR_SIPI;
		}
		board_lapic_state(m->board, i, &state.lapic);
		int status = m->config.engine->set_state(m->vcpu[i].engine, &state);
		if (status < 0)
			return error_set_errno(err, -status, "can't set the state of vCPU %u", i);
	}
	return 0;
}

static int build(struct machine *m, struct error *err)
{
	struct x86_state boot_state;
	int status = check_config(&m->config, err);

	if (status == 0)
		status = add_memory(m, err);
	if (status == 0)
		status = add_clock(m, err);
	if (status == 0 && bus_create(&m->bus) < 0)
		status = error_set(err, ENOMEM, "no memory for the bus");
	if (status == 0 && m->config.boot.firmware.path)
		status = machine_load_firmware(m, err);
	if (status < 0)
		return status;
	status = x86_cpuid_choose(&m->cpuid, &m->config.cpu, m->config.cpus,
		machine_clock_tsc_hz(m->clock), err);
	if (status == 0 && m->config.boot.firmware.path)
		limit_addresses(m);
	if (status == 0)
		status = check_pmem(m, err);
	if (status < 0)
		return status;
	struct engine_vm_config vm_config = { .memory = m->memory, .bus = m->bus,
		.hooks = &machine_hooks, .cpuid = &m->cpuid, .cpus_max = m->config.cpus,
		.tuning = m->config.tuning };
	status = m->config.engine->vm_create(&m->vm, &vm_config, err);
	if (status == 0)
		status = add_vcpus(m, err);
	if (status == 0)
		status = board_create(&m->board, m, err);
	if (status == 0)
		status = devices_create(&m->devices, m, err);
	if (status == 0)
		status = watchdog_create(&m->watchdog, m, err);
	if (status < 0)
		return status;
	x86_state_reset(&boot_state);
	if (!m->config.boot.firmware.path) {
		status = board_tables(m->board, &m->config.boot, err);
		if (status == 0)
			status = boot_load(m->memory, &m->config.boot, &boot_state, err);
	}
	if (status == 0)
		status = set_first_states(m, &boot_state, err);
	return status;
}

int machine_create(struct machine **ret_machine, const struct machine_config *config,
	struct error *err)
{
	struct machine *m = calloc(1, sizeof(*m));

	if (!m)
		return error_set(err, ENOMEM, "no memory for the machine");
	m->config = *config;
	if (config->virtual_time.on)
		virtual_defaults(&m->config);
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->changed, NULL);
	int status = build(m, err);
	if (status < 0) {
		machine_free(m);
		return status;
	}
	*ret_machine = m;
	return 0;
}

int machine_start(struct machine *m, struct error *err)
{
	/* A pause that comes meanwhile waits, and then finds every thread. */
	AUTO_LOCK(&m->lock);
	if (!m->paused)
		machine_clock_run(m->clock);
	for (unsigned i = 0; i < m->vcpu_count; i++) {
		struct machine_vcpu *vcpu = &m->vcpu[i];
		int status = pthread_create(&vcpu->thread, NULL, vcpu_thread, vcpu);
		if (status)
			return error_set_errno(err, status, "can't start a thread for vCPU %u", i);
		vcpu->started = true;
	}
	return 0;
}

void machine_wait(struct machine *m, struct machine_result *ret_result)
{
	pthread_mutex_lock(&m->lock);
	while (!m->has_result)
		pthread_cond_wait(&m->changed, &m->lock);
	*ret_result = m->result;
	pthread_mutex_unlock(&m->lock);
	devices_ended(m->devices);
	for (unsigned i = 0; i < m->vcpu_count; i++) {
		if (m->vcpu[i].started)
			pthread_join(m->vcpu[i].thread, NULL);
		m->vcpu[i].started = false;
	}
}

void machine_free(struct machine *m)
{
	struct machine_result ignored;

	if (!m)
		return;
	machine_stop(m);
	machine_wait(m, &ignored);
	irqfds_free(m->irqfds);
	devices_free(m->devices);
	watchdog_free(m->watchdog);
	board_free(m->board);
	for (unsigned i = 0; i < m->vcpu_count; i++) {
		m->config.engine->vcpu_free(m->vcpu[i].engine);
		pthread_mutex_destroy(&m->vcpu[i].lock);
		pthread_cond_destroy(&m->vcpu[i].wake);
	}
	free(m->vcpu);
	if (m->vm)
		m->config.engine->vm_free(m->vm);
	flash_free(m->flash);
	bus_free(m->bus);
	machine_clock_free(m->clock);
	memory_free(m->memory);
	pthread_mutex_destroy(&m->lock);
	pthread_cond_destroy(&m->changed);
	free(m);
}

static void pulse_gsi(void *opaque, unsigned gsi)
{
	struct machine *m = opaque;

	board_pulse_gsi(m->board, gsi);
}

int machine_irqfd(struct machine *m, unsigned gsi, int eventfd, bool on)
{
	if (m->config.engine->caps & ENGINE_CAP_IRQCHIP)
		return m->config.engine->irqfd(m->vm, gsi, eventfd, on);
	AUTO_LOCK(&m->lock);
	int status = m->irqfds ? 0 : irqfds_create(&m->irqfds, pulse_gsi, m);
	if (status < 0)
		return status;
	return on ? irqfds_add(m->irqfds, gsi, eventfd) : irqfds_remove(m->irqfds, eventfd);
}

void machine_press_power(struct machine *m)
{
	board_press_power(m->board);
}

bool machine_display(struct machine *m, struct display *ret_display)
{
	return board_display(m->board, ret_display);
}

int machine_balloon_set(struct machine *m, uint64_t bytes)
{
	struct virtio_balloon *balloon = devices_find(m->devices, "balloon");

	if (!balloon)
		return -ENODEV;
	virtio_balloon_set(balloon, bytes);
	return 0;
}

int machine_balloon_statistics(struct machine *m, struct balloon_statistics *ret_statistics)
{
	struct virtio_balloon *balloon = devices_find(m->devices, "balloon");

	if (!balloon)
		return -ENODEV;
	virtio_balloon_statistics(balloon, ret_statistics);
	return 0;
}

int machine_balloon_poll(struct machine *m, uint64_t poll_ns)
{
	struct virtio_balloon *balloon = devices_find(m->devices, "balloon");

	if (!balloon)
		return -ENODEV;
	virtio_balloon_poll(balloon, poll_ns);
	return 0;
}

size_t machine_console_input(struct machine *m, const uint8_t *bytes, size_t count)
{
	return board_console_input(m->board, bytes, count);
}

void machine_counters(struct machine *m, unsigned index, struct engine_counters *ret_counters)
{
	m->config.engine->counters(m->vcpu[index].engine, ret_counters);
}
